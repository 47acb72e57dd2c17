"""Linear CKA against its definitions, written out."""

import itertools

import numpy as np
import pytest

from csfm_jax.evaluation import similarity
from data_pipelines.errors import BadInput


def _plain(x, y):
    """Kornblith et al. 2019: HSIC through the centring matrix."""
    h = np.eye(len(x)) - 1 / len(x)
    hsic = lambda k, m: np.trace(k @ h @ m @ h)  # noqa: E731
    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("cases, widths", [(40, (5, 9)), (6, (20, 30)), (12, (5, 30))])
def test_both_forms_equal_the_definition(cases, widths, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, (cases, widths[0]))
    y = rng.normal(-50, 2, (cases, widths[1])) + x[:, :1]
    monkeypatch.setattr(similarity, "_ROWS", 7)
    assert similarity.linear_cka(x, y) == pytest.approx(_plain(x, y), abs=1e-9)
    single = x.astype(np.float32)
    assert similarity.linear_cka(single, single * 2) == pytest.approx(1.0, abs=1e-12)  # float64 inside


def test_rotation_scale_and_shift_do_not_matter_and_other_maps_do():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 8)) * np.arange(1, 9)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    assert similarity.linear_cka(x, 0.01 * x @ turn + 1000) == pytest.approx(1.0, abs=1e-9)
    assert similarity.linear_cka(x, x / np.arange(1, 9) ** 2) < 0.7
    assert similarity.linear_cka(x, rng.normal(size=(300, 8))) < 0.1


def test_the_table_holds_every_pair_and_marks_what_does_not_vary():
    rng = np.random.default_rng(2)
    first = [rng.normal(size=(30, d)) for d in (3, 4)]
    second = [rng.normal(size=(30, 5)), first[1] + 0.5, np.full((30, 2), 0.1, np.float32)]
    table = similarity.cka_table(first, second)
    assert table.shape == (2, 3) and np.isnan(table[:, 2]).all()
    assert table[0, 0] == pytest.approx(_plain(first[0], second[0]), abs=1e-9)
    assert table[1, 1] == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(BadInput, match="same cases"):
        similarity.cka_table(first, [rng.normal(size=(29, 4))])


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
    x, y = rng.normal(size=(16, 200)), rng.normal(size=(16, 200))
    assert similarity.linear_cka(x, y) > 0.7  # unrelated, and yet
    seen = similarity.MinibatchCKA(2, 1)
    for _ in range(40):
        x, y = rng.normal(size=(16, 200)), rng.normal(size=(16, 200))
        seen.add([x, y], [y])
    values = seen.values()
    assert abs(values[0, 0]) < 0.1 and values[1, 0] == pytest.approx(1.0, abs=1e-9)
    assert np.isnan(similarity.MinibatchCKA(1, 1).values()).all()
    with pytest.raises(BadInput, match="4 cases"):
        seen.add([x[:3], x[:3]], [y[:3]])
