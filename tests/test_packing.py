"""The packing contract's arithmetic: exactly once, within capacities, a function of its arguments, well filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import packing
from data_pipelines.errors import BadInput
from data_pipelines.suggest import GOOD_FILL, suggest


@st.composite
def groups_and_capacities(draw):
    T = draw(st.integers(4, 300))
    V = draw(st.integers(2, T))
    S = draw(st.integers(1, 12))
    kinds = draw(st.lists(st.tuples(st.integers(1, T), st.integers(1, V), st.integers(1, S)), min_size=1, max_size=12))
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=200))
    return np.array(chosen, np.int32), (T, V, S)


@settings(max_examples=100, deadline=None)
@given(groups_and_capacities(), st.integers(0, 3), st.integers(0, 3))
def test_every_group_once_and_no_row_too_full(case, seed, epoch):
    sizes, capacities = case
    plan = packing.plan(sizes, capacities, seed, epoch)
    assert sorted(plan.row_windows) == list(range(len(sizes)))
    assert plan.row_offsets[0] == 0 and plan.row_offsets[-1] == len(sizes) and (np.diff(plan.row_offsets) > 0).all()
    used = np.add.reduceat(sizes[plan.row_windows].astype(np.int64), plan.row_offsets[:-1])
    assert (used <= capacities).all()
    np.testing.assert_allclose(plan.fill, used.sum(0) / (plan.rows * np.array(capacities)))
    again = packing.plan(sizes, capacities, seed, epoch)
    assert again.digest == plan.digest


@settings(max_examples=60, deadline=None)
@given(groups_and_capacities())
def test_no_two_rows_could_be_one(case):
    """Best-fit never leaves two rows that fit into one: the emptier would not have been begun."""
    sizes, (T, _, _) = case
    plan = packing.plan(sizes, (T, int(sizes[:, 1].sum()), int(sizes[:, 2].sum())), 0, 0)  # only T binds
    used = np.sort(np.add.reduceat(sizes[plan.row_windows].astype(np.int64), plan.row_offsets[:-1])[:, 0])
    assert plan.rows == 1 or used[0] + used[1] > T


def test_seed_and_epoch_change_who_shares_a_row_but_not_the_fill():
    sizes = np.array([[30, 8, 1], [50, 13, 1], [20, 6, 1]] * 50, np.int32)
    plans = [packing.plan(sizes, (100, 40, 8), seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({plan.digest for plan in plans}) == 3
    assert len({plan.fill for plan in plans}) == 1


def test_rows_are_shuffled_and_windows_are_spread():
    sizes = np.ones((1000, 3), np.int32)
    plan = packing.plan(sizes, (10, 10, 10), 0, 0)
    together = np.abs(np.diff(plan.row_windows.reshape(-1, 10), axis=1))
    assert np.median(together) > 100  # neighbours in the store do not stay neighbours
    sizes[:500, 0] = 10
    plan = packing.plan(sizes, (10, 10, 10), 0, 0)
    long_rows = np.flatnonzero(np.diff(plan.row_offsets) == 1)
    assert long_rows[0] < 50 and long_rows[-1] > plan.rows - 50


def test_mixed_sizes_fill_long_rows():
    """The mix of the design at a hundredth of its size; T binds, V and S do not."""
    rng = np.random.default_rng(0)
    n = 100_000
    signal = rng.choice([1200, 300, 150, 75], n, p=[0.1, 0.4, 0.25, 0.25]) - rng.integers(0, 60, n)
    text = np.where(rng.random(n) < 0.3, rng.integers(5, 64, n), 0)
    visible = 1 + np.rint(0.25 * signal) + np.rint(0.5 * text)
    sizes = np.stack([1 + signal + text, visible, np.ones(n)], 1).astype(np.int32)
    plan = packing.plan(sizes, (2048, 700, 64), 0, 0)
    assert plan.fill[0] >= 0.995


@pytest.mark.parametrize("column, field", list(enumerate(["row_tokens", "row_visible", "row_windows"])))
def test_a_window_larger_than_a_row_is_refused(column, field):
    sizes = np.full((5, 3), 2, np.int32)
    sizes[3, column] = 77
    with pytest.raises(BadInput, match=rf"{field}.*77.*50.*--suggest"):
        packing.plan(sizes, (50, 50, 50), 0, 0)


def test_groups_stay_in_one_row():
    starts = np.array([0, 2, 3, 6, 8])
    plan = packing.expand(
        packing.plan(np.array([[5, 5, 2], [3, 3, 1], [9, 9, 3], [5, 5, 2]]), (10, 10, 3), 0, 0), starts
    )
    group = np.repeat(np.arange(4), np.diff(starts))
    assert sorted(plan.row_windows) == list(range(8))
    rows = np.split(plan.row_windows, plan.row_offsets[1:-1])
    where = [{r for r, row in enumerate(rows) if g in group[row]} for g in range(4)]
    assert all(len(w) == 1 for w in where)


def test_a_saved_plan_is_mapped_back(tmp_path):
    plan = packing.plan(np.ones((20, 3), np.int32), (6, 6, 6), 0, 0)
    plan.save(tmp_path)
    again = packing.PackingPlan.open(tmp_path)
    assert isinstance(again.row_windows.base, np.memmap)
    assert again.digest == plan.digest and again.fill == plan.fill


def test_many_distinct_sizes_are_ranked_alike_by_both_ways(monkeypatch):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, (3000, 3)).astype(np.int32)
    table = packing.histogram(sizes)
    monkeypatch.setattr(packing, "_TABLE", 0)
    for a, b in zip(table, packing.histogram(sizes)):
        np.testing.assert_array_equal(a, b)
    classes, counts, member = table
    np.testing.assert_array_equal(classes[member], sizes)
    np.testing.assert_array_equal(np.bincount(member), counts)
    assert (np.diff(classes[:, 0]) <= 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(20, 1400), st.integers(1, 400)), min_size=1, max_size=4))
def test_suggested_rows_hold_every_window(kinds):
    sizes = np.concatenate([np.full((n, 3), (t, 1 + t // 4, 1), np.int32) for t, n in kinds])
    found = suggest(sizes)
    assert found.row_tokens % 128 == 0 and found.row_visible <= found.row_tokens
    plan = packing.plan(sizes, (found.row_tokens, found.row_visible, found.row_windows), 0, 0)
    np.testing.assert_allclose(plan.fill[:2], (found.fill_tokens, found.fill_visible))


def test_suggestion_for_twelve_leads_with_text():
    sizes = np.tile(np.array([[1265, 333, 1]], np.int32), (1000, 1))
    found = suggest(sizes)
    assert found.fill_tokens > GOOD_FILL and found.row_tokens in (1280, 2560)
    assert found.fill_visible > 0.9
