"""Linear CKA against its definition, written out."""

import itertools

import numpy as np
import pytest

from csfm_jax.evaluation import similarity
from data_pipelines.errors import BadInput


def alignment(first, second, of=30):
    """Of two sets of features [n, D] of the same cases, in batches."""
    seen = similarity.MinibatchCKA(1, 1)
    for at in range(0, len(first), of):
        seen.add([first[at : at + of]], [second[at : at + of]])
    return seen.values()[0, 0]


def test_rotation_scale_and_shift_do_not_matter_and_other_maps_do():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 8)) * np.arange(1, 9)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    assert alignment(x, 0.01 * x @ turn + 1000) == pytest.approx(1.0, abs=1e-9)
    assert alignment(x, x / np.arange(1, 9) ** 2) < 0.7
    assert abs(alignment(x, rng.normal(size=(300, 8)))) < 0.1
    single = x.astype(np.float32)
    assert alignment(single, single * 2) == pytest.approx(1.0, abs=1e-9)  # float64 inside
    assert np.isnan(alignment(x, np.ones((300, 2))))  # nothing varies


def _unbiased(k, m):
    """Song et al. 2012, equation 3: the mean over all four different cases."""
    total = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(len(k)), 4)]
    return np.mean(total)


def test_minibatches_equal_the_mean_over_all_fours():
    rng = np.random.default_rng(3)
    batches = [(rng.normal(size=(6, 3)), rng.normal(2, 1, (6, 4))) for _ in range(3)]
    seen = similarity.MinibatchCKA(1, 1)
    sums = np.zeros(3)
    for x, y in batches:
        seen.add([x], [y])
        k, m = x @ x.T, y @ y.T
        sums += _unbiased(k, m), _unbiased(k, k), _unbiased(m, m)
    assert seen.batches == 3
    assert seen.values()[0, 0] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-9)


def test_minibatches_are_not_misled_by_few_cases():
    rng = np.random.default_rng(4)
    seen = similarity.MinibatchCKA(2, 1)
    for _ in range(40):
        x, y = rng.normal(size=(16, 200)), rng.normal(size=(16, 200))
        seen.add([x, y], [y])
    values = seen.values()
    assert abs(values[0, 0]) < 0.1 and values[1, 0] == pytest.approx(1.0, abs=1e-9)
    assert np.isnan(similarity.MinibatchCKA(1, 1).values()).all()
    with pytest.raises(BadInput, match="4 cases"):
        seen.add([x[:3], x[:3]], [y[:3]])
