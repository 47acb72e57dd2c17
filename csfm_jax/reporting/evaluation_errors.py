"""The most confident errors of a study's first model, on ECG paper."""

import numpy as np

from csfm_jax.evaluation.study_results import Group, Judged
from csfm_jax.reporting import markup
from data_pipelines.store import Store

_DRAWN = 4


def section(group: Group, stores: list[Store]) -> str:
    """HTML of the test recordings of which the first model is surest and wrong; no id is in it."""
    word, judged = next(iter(group.models)), group.first
    figures = []
    for row, label in most_confident(judged, _DRAWN):
        store, number = _found(judged.test.key[row], stores)
        picture = markup.picture(store, number, group.setup.task.begin)
        if picture is None:
            continue
        probability, truth = judged.test.values[row, label], judged.test.labels[row, label]
        told = f"{judged.test.outputs[label]}: predicted {probability:.3f}, labelled {truth:.0f}"
        image = f'<img alt="a recording on ECG paper" src="{picture}">'
        figures.append(f"<figure>{image}<figcaption>{markup.text(told)}</figcaption></figure>")
    return f"<h3>The most confident errors of {markup.text(word)}</h3>{''.join(figures)}" if figures else ""


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
