"""Integrated gradients: complete, of the samples alone, and drawn where they belong."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from small_checkpoints import task_config, toy_params
from small_stores import recording, write_store

from csfm_jax import drawing, encoding
from csfm_jax.evaluation import saliency
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.objectives.supervised import Supervised
from csfm_jax.reporting import evaluation_errors
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import INVALID, get_spec
from data_pipelines.signals import CHANNEL_ID


def taught(**adaptation) -> FineTuned:
    config = task_config("simulated_rhythm", depth=2, **adaptation)
    params = toy_params(config)
    place = params["encoder"]["tokenizer"]["place"]  # channels and times would drown what patches say
    params["encoder"]["tokenizer"]["place"] = jax.tree.map(lambda x: 0.1 * x, place)
    params["head"] = jax.tree.map(lambda x: 50 * x, params["head"])
    made = encoding.with_params(lambda: Supervised(config, rngs=nnx.Rngs(0)), params, "toy")
    return FineTuned(config, made, get_spec("csfm-jax"), {})


def window(gap=False):
    made = recording(7, ("I", "II", "PPG"), 4.0).prepared
    found = [(int(c), x.copy()) for c, x in zip(made.channels, made.samples)]
    if gap:
        found[0][1][300:340] = INVALID
    return found


@pytest.fixture(scope="module")
def model():
    return taught()


@pytest.mark.parametrize("gap", [False, True])
def test_attributions_add_up_to_the_difference_of_the_logits(model, gap):
    for output in range(2):
        found = saliency.explain(model, window(gap), output)
        assert abs(found.score - found.baseline) > 0.02  # else any nothing would do
        total = sum(float(x.sum()) for _, x in found.channels)
        assert total == pytest.approx(found.score - found.baseline, rel=0.01)


def test_even_steps_would_not_be_complete(model, monkeypatch):
    """What the spacing is for: evenly spaced, steps miss the norm's corner."""
    monkeypatch.setattr(saliency, "_CORNER", 1e3)  # sinh is then a straight line
    found = saliency.explain(model, window(), 0, steps=17)  # a number of its own, hence a program of its own
    total = sum(float(x.sum()) for _, x in found.channels)
    assert total != pytest.approx(found.score - found.baseline, rel=0.05)


def test_what_was_not_read_has_no_attribution(model):
    first, lead = saliency.explain(model, window(gap=True), 0).channels[0], window(gap=True)[0]
    assert first[0] == lead[0] == CHANNEL_ID["I"] and len(first[1]) == len(lead[1])
    assert (first[1][250:375] == 0).all() and (first[1][:250] != 0).any()  # a token of half a second is absent
    respiration = [(CHANNEL_ID["V1"], np.full(1000, INVALID))]
    assert saliency.explain(model, respiration, 0) is None


def test_another_backbone_is_refused(model):

    config = dataclasses.replace(model.config, backbone=dataclasses.replace(model.config.backbone, name="s4"))
    with pytest.raises(BadInput, match="the backbone s4"):
        saliency.explain(model._replace(config=config), window(), 0)


def test_nothing_is_read_beyond_the_tasks_end(model, monkeypatch, tmp_path):
    """A task of the seconds 1 to 3 of recordings of 4 s, read by windows of 4 s, shows a network two seconds."""
    read = []
    monkeypatch.setattr(saliency, "explain", lambda model, window, output: read.extend(window))
    cut = dataclasses.replace(model.config.data.window, begin=1.0, end=3.0)
    config = dataclasses.replace(model.config, data=dataclasses.replace(model.config.data, window=cut))
    made = recording(7, ("I", "PPG"), 4.0)
    store = write_store(tmp_path / "store", [made])
    evaluation_errors._explained(model._replace(config=config), store, 0, "rate/fast")
    assert [len(x) for _, x in read] == [500, 500]
    assert all(np.array_equal(x, whole[250:750]) for (_, x), whole in zip(read, made.prepared.samples))


def test_stretches_and_their_shades():
    values = np.zeros(1000, np.float32)
    values[:25], values[60] = 0.1, -2.0
    found = saliency.stretches(values, 250.0, 0.1)
    assert [(round(a, 3), round(b, 3), round(v, 3)) for a, b, v in found] == [(0.0, 0.1, 2.5), (0.2, 0.3, -2.0)]
    trace = drawing.Trace("II", "mV", 250.0, np.sin(np.arange(1000) / 20), marked=((0.0, 0.1, 1.0), (0.2, 0.3, -0.5)))
    figure = drawing.draw([trace], 4.0)
    patches = [p for p in figure.axes[0].patches if p.get_gid() == "marked/II"]
    assert [round(p.get_alpha(), 2) for p in patches] == [0.6, 0.3]
    red, blue = (p.get_facecolor() for p in patches)
    assert red[0] > red[2] and blue[2] > blue[0] and patches[1].get_width() == pytest.approx(0.1 * drawing.SPEED)
