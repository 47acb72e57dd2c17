"""How far an embedding moves under what should not move it, measured in distances between patients.

Embeddings are standardised over patients (each dimension by its mean and deviation over one window of every patient);
distances are cosine and Euclidean. A ratio is the median displacement over the median distance between patients: 0 is
an embedding that does not notice, 1 one that might as well be another person's. Bootstrap over patients: a pair of two
patients is drawn as often as the product of their counts, a pair of one patient's recordings as often as the patient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from csfm_jax.evaluation import bootstrap
from csfm_jax.evaluation.bootstrap import Interval, interval
from csfm_jax.evaluation.moved import AS_IT_IS, LATER, Moved
from data_pipelines.errors import BadInput

METRICS = ("cosine", "euclidean")
BETWEEN, OF_PATIENT = "two patients", "two recordings of a patient"
_PAIRS = 20_000  # of patients, drawn at random where there are more
_FEWEST = 3  # patients


@dataclass(frozen=True)
class Line:
    """What became of one perturbation, or of one kind of pair.

    Attributes:
        name, kind: of the perturbation; kind "" of pairs of unperturbed windows. cases: recordings or pairs.
        patients: among them. figures: "cosine", "euclidean" (medians), "cosine_ratio", "euclidean_ratio",
            "cosine_retrieval", "euclidean_retrieval" (share whose nearest recording is still their patient's).
        differences: of these to the first model's; {} of the first.
    """

    name: str
    kind: str
    cases: int
    patients: int
    figures: dict[str, Interval]
    differences: dict[str, Interval]


@dataclass(frozen=True)
class Standardised:
    """A model's embeddings [N, D] in units of their deviation over patients.

    Args:
        moved: of the N recordings. rows: [n] those that are audited. subject: [N].
    """

    moved: Moved
    rows: np.ndarray
    subject: np.ndarray

    @cached_property
    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        of = dict(zip(self.moved.rows[AS_IT_IS].tolist(), self.moved.values[AS_IT_IS]))
        _, first = np.unique(self.subject[self.rows], return_index=True)
        every = np.stack([of[row] for row in self.rows[first]]).astype(np.float64)
        deviation = every.std(axis=0)
        return every.mean(axis=0), np.where(deviation > 1e-9, deviation, 1.0)

    def of(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(positions among the audited recordings [m], embeddings [m, D] float64)."""
        centre, scale = self._scale
        place = np.full(len(self.subject), -1)
        place[self.rows] = np.arange(len(self.rows))
        here = place[self.moved.rows[name]]
        kept = here >= 0
        return here[kept], (self.moved.values[name][kept] - centre) / scale


def distances(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """[n, D] and [n, D] -> metric -> [n]; the cosine distance of a vector of length 0 is 1."""
    length = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = np.einsum("nd,nd->n", first, second) / np.where(length > 0, length, 1.0)
    return {"cosine": 1 - cosine, "euclidean": np.linalg.norm(first - second, axis=1)}


@dataclass(frozen=True)
class Median:
    """The median of values under case weights [R, N]: `rows` [n] or [n, 2] says whose each is."""

    values: np.ndarray
    rows: np.ndarray

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        order = np.argsort(self.values, kind="stable")
        rows = self.rows[order]
        mine = weights[:, rows] if rows.ndim == 1 else weights[:, rows[:, 0]] * weights[:, rows[:, 1]]
        total = np.cumsum(mine, axis=1)
        middle = np.argmax(total >= total[:, -1:] / 2, axis=1)
        return np.where(total[:, -1] > 0, self.values[order][middle], np.nan)


@dataclass(frozen=True)
class Share:
    """The share of true `values` under case weights; `rows` as of `Median`."""

    values: np.ndarray
    rows: np.ndarray

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        mine = weights[:, self.rows]
        total = mine.sum(axis=1)
        return np.where(total > 0, mine @ self.values.astype(np.float32) / np.maximum(total, 1), np.nan)


def audited(moved: Sequence[Moved], subject: np.ndarray) -> np.ndarray:
    """Recordings that every model has embedded twice: as they are, and their second window.

    Raises:
        BadInput: of too few patients for a distance between them.
    """
    sets = [set(one.rows.get(name, np.zeros(0, int)).tolist()) for one in moved for name in (AS_IT_IS, LATER)]
    rows = np.array(sorted(set.intersection(*sets)), int)
    if (patients := len(np.unique(subject[rows]))) < _FEWEST:
        raise BadInput("--store", f"recordings of {patients} patients", f"{_FEWEST} or more", "use other stores")
    return rows


def measure(
    models: dict[str, Moved], subject: np.ndarray, groups: dict[str, np.ndarray], replicates: int, seed: int
) -> dict[str, list[Line]]:
    """Every line of every model, on the same draws of patients.

    Args:
        models: word -> embeddings of the N recordings. subject: [N]. groups: name of labels -> [N, K] of 0, 1 and NaN;
            patients of equal and of other labels are told apart. replicates, seed: of the bootstrap and of pairs.
    """
    rows = audited(list(models.values()), subject)
    pairs = _pairs(subject[rows], groups, rows, seed)
    figures, places = [], []
    for word, moved in models.items():
        for name, kind, quantities, cases in _quantities(Standardised(moved, rows, subject), pairs):
            for metric, quantity in quantities.items():
                places.append((word, name, kind, metric, cases))
                figures.append(quantity)
    drawn = bootstrap.replicate(figures, subject[rows], replicates, seed)
    return _lines(list(models), places, drawn, subject[rows])


def _pairs(subject, groups, rows, seed) -> dict[str, np.ndarray]:
    """name -> [n, 2] positions of two recordings."""
    rng, n = np.random.default_rng(seed), len(subject)
    if n * (n - 1) // 2 <= _PAIRS:
        every = np.stack(np.triu_indices(n, 1), axis=1)
    else:
        every = np.unique(np.sort(rng.integers(n, size=(_PAIRS, 2)), axis=1), axis=0)
        every = every[every[:, 0] != every[:, 1]]
    others = every[subject[every[:, 0]] != subject[every[:, 1]]]
    found = {BETWEEN: others}
    for name, labels in groups.items():
        labels = labels[rows]
        known = ~np.isnan(labels).any(axis=1)
        some = others[known[others].all(axis=1)]
        equal = (labels[some[:, 0]] == labels[some[:, 1]]).all(axis=1)
        found |= {f"two patients of equal {name}": some[equal], f"two patients of other {name}": some[~equal]}
    own = [pair for who in np.unique(subject) for pair in _of_one(np.flatnonzero(subject == who))]
    found[OF_PATIENT] = np.array(own, int).reshape(-1, 2)
    return {name: pair for name, pair in found.items() if len(pair)}


def _of_one(rows: np.ndarray) -> list[tuple[int, int]]:
    return [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 : i + 5]]  # a night's hundreds weigh no more


def _quantities(model: Standardised, pairs):
    """(name, kind, metric -> function of weights, rows [n] or [n, 2]) of every line."""
    _, reference = model.of(AS_IT_IS)
    who = model.subject[model.rows]
    for name, pair in pairs.items():
        apart = distances(reference[pair[:, 0]], reference[pair[:, 1]])
        whose = pair[:, 0] if name == OF_PATIENT else pair
        yield name, "", {metric: Median(apart[metric], whose) for metric in METRICS}, pair
    for name, kind in model.moved.kind.items():
        if name == AS_IT_IS or name not in model.moved.rows:
            continue
        rows, values = model.of(name)
        if not len(rows):
            continue
        apart = distances(values, reference[rows])
        quantities = {metric: Median(apart[metric], rows) for metric in METRICS}
        for metric, nearest in _nearest(values, reference).items():
            quantities[f"{metric}_retrieval"] = Share(who[nearest] == who[rows], rows)
        yield name, kind, quantities, rows


def _nearest(values: np.ndarray, gallery: np.ndarray) -> dict[str, np.ndarray]:
    """Metric -> [n], position of the nearest of the gallery."""
    product = values @ gallery.T
    lengths = np.linalg.norm(gallery, axis=1)
    return {
        "cosine": np.argmax(product / np.where(lengths > 0, lengths, 1.0), axis=1),
        "euclidean": np.argmin(np.square(lengths) - 2 * product, axis=1),
    }


def _lines(words, places, drawn, subject) -> dict[str, list[Line]]:
    """The figures of `places` (word, name, kind, figure, rows) and what follows from two of them."""
    values: dict[tuple[str, str], dict] = {}
    about = {}
    for i, (word, name, kind, figure, rows) in enumerate(places):
        values.setdefault((word, name), {})[figure] = drawn.point[i], drawn.drawn[i]
        about[word, name] = kind, rows
    for (word, _), mine in values.items():
        for metric in METRICS:
            of = values[word, BETWEEN][metric]
            mine[f"{metric}_ratio"] = tuple(_over(a, b) for a, b in zip(mine[metric], of))
    found: dict[str, list[Line]] = {word: [] for word in words}
    for (word, name), mine in values.items():
        first = values.get((words[0], name), {}) if word != words[0] else {}
        less = {f: interval(float(p - first[f][0]), d - first[f][1]) for f, (p, d) in mine.items() if f in first}
        kind, rows = about[word, name]
        each = {figure: interval(float(point), draws) for figure, (point, draws) in mine.items()}
        found[word].append(Line(name, kind, len(rows), len(np.unique(subject[rows])), each, less))
    return found


def _over(a, b):
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=np.asarray(b) > 0)
