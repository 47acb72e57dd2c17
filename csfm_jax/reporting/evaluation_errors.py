"""The most confident errors of a study's first model, and of its first network, on ECG paper: what moved its score."""

import numpy as np

from csfm_jax.evaluation import saliency
from csfm_jax.evaluation.cell import Cell
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.evaluation.study_models import FINE_TUNED
from csfm_jax.evaluation.study_results import Group, Judged
from csfm_jax.reporting import markup
from data_pipelines.errors import BadInput
from data_pipelines.signals import modality_of
from data_pipelines.store import Store
from data_pipelines.windows import fixed_starts

_DRAWN = 4
_STRETCH = 0.1  # seconds that are shaded alike
_TOLD = (
    "Shaded by integrated gradients of the label's logit, from the mean signal to the first window: red spoke for the "
    "label, blue against it; the strongest tenth of a second of a page is the darkest."
)


def section(group: Group, stores: list[Store], cells: list[Cell]) -> str:
    """HTML of the test recordings of which models are surest and wrong; no id is in it.

    Args:
        group: of all sensors. stores: of the study. cells: of the task; the first fine-tuned transformer among them is
            asked what it looked at.
    """
    first = next(iter(group.models))
    network = next((c for c in cells if _is_explained(c) and c.model.word in group.models), None)
    words = [first] + ([network.model.word] if network is not None and network.model.word != first else [])
    parts = []
    for word in words:
        model = None
        if network is not None and word == network.model.word:
            try:
                model = FineTuned.load(network.place, calibration=False).merged()
            except BadInput as error:  # its predictions are kept, its weights were removed
                parts.append(f"<p>{markup.text(f'Nothing is shaded for {word}: {error}')}</p>")
        parts.append(_of_model(word, group, stores, model))
    return "".join(parts)


def _is_explained(cell: Cell) -> bool:
    return cell.model.kind in (*FINE_TUNED, "given") and cell.model.config.backbone.name == "transformer"


def _of_model(word: str, group: Group, stores: list[Store], model: FineTuned | None) -> str:
    judged, figures, begin = group.models[word], [], group.setup.task.begin
    for row, label in most_confident(judged, _DRAWN):
        store, number = _found(judged.test.key[row], stores)
        name = judged.test.outputs[label]
        found = None if model is None else _explained(model, store, number, name)
        picture = markup.picture(store, number, begin, marked=None if found is None else _marked(found))
        if picture is None:
            continue
        probability, truth = judged.test.values[row, label], judged.test.labels[row, label]
        told = f"{name}: predicted {probability:.3f}, labelled {truth:.0f}"
        if found is not None:
            told += f"; the first window's logit {found.score:+.2f}, of the mean signal {found.baseline:+.2f}"
        image = f'<img alt="a recording on ECG paper" src="{picture}">'
        figures.append(f"<figure>{image}<figcaption>{markup.text(told)}</figcaption></figure>")
    if not figures:
        return ""
    told = f'<p class="soft">{_TOLD}</p>' if model is not None else ""
    return f"<h3>The most confident errors of {markup.text(word)}</h3>{told}{''.join(figures)}"


def _explained(model: FineTuned, store: Store, number: int, name: str) -> saliency.Saliency | None:
    starts, length = fixed_starts(model.config.data.window, float(store.index.milliseconds[number]) / 1000)
    window = store.read_window(number, float(starts[0]), length)
    return saliency.explain(model, window, model.outputs.index(name))


def _marked(found: saliency.Saliency) -> dict[int, list[tuple[float, float, float]]]:
    """Channel -> (from, to, strength) of its stretches; the strongest of the page is 1 or -1."""
    sums = {c: saliency.stretches(x, modality_of(c).rate, _STRETCH) for c, x in found.channels}
    largest = max((abs(value) for some in sums.values() for *_, value in some), default=0.0)
    return {c: [(a, b, value / largest) for a, b, value in some] for c, some in sums.items()} if largest else {}


def most_confident(judged: Judged, number: int) -> list[tuple[int, int]]:
    """(row, label) of the largest errors of more than one half, each of another recording, the largest first."""
    error = np.abs(judged.test.values - judged.test.labels)
    label = np.nan_to_num(error, nan=0.0).argmax(axis=1)
    largest = np.nan_to_num(error, nan=0.0).max(axis=1)
    order = [int(row) for row in np.argsort(-largest, kind="stable")[:number] if largest[row] > 0.5]
    return [(row, int(label[row])) for row in order]


def _found(key: str, stores: list[Store]) -> tuple[Store, int]:
    name, _, study = key.rpartition("/")
    store = next(store for store in stores if store.name == name)
    return store, int(np.flatnonzero(store.index.study == study.encode())[0])
