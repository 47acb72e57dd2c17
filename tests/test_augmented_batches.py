"""Augmentation in the loader: of training windows alone, the same whoever reads them, never more than was planned."""

from dataclasses import replace

import numpy as np
import pytest
from small_stores import mixed_store
from test_loader import DATA, TOKENS, assert_equal, take

from data_pipelines import loader, rows
from data_pipelines.augment import AugmentConfig
from data_pipelines.errors import BadInput

NOTHING = AugmentConfig()
EVERYTHING = AugmentConfig(2.5, 0.5, 0.3, 0.2, 0.1, 0.3, 0.5, probability=0.7)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [mixed_store(folder / "a", 24, "a", ("train", "train", "validation"), gaps=1, seed=4)]


@pytest.fixture
def make(stores, tmp_path):
    made = []

    def make(augment=NOTHING, data=DATA, **more):
        data = replace(data, augment=augment)
        made.append(loader.make_loader(stores, TOKENS, data, plans_dir=tmp_path / "plans", **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def tokens_of(batches):
    """(batch, row, slot) -> {(channel, time): patch} of signal tokens."""
    found = {}
    for number, batch in enumerate(batches):
        for row, at in zip(*np.nonzero(batch.patches.any(axis=-1))):
            key = number, int(row), int(batch.segment[row, at]) - 1
            place = int(batch.channel[row, at]), round(float(batch.time[row, at]), 3)
            found.setdefault((*key, int(batch.window[row, key[2]])), {})[place] = batch.patches[row, at]
    return found


def test_workers_hosts_and_a_restart_change_nothing(make):
    one = make(EVERYTHING)
    first = take(one, 3)
    state = one.state()
    rest = take(one, 3)
    for a, b in zip(first + rest, take(make(EVERYTHING, replace(DATA, workers=2)), 6)):
        assert_equal(a, b)
    for a, b in zip(rest, take(make(EVERYTHING, state=state), 3)):
        assert_equal(a, b)
    halves = [take(make(EVERYTHING, host=h, hosts=2), 2) for h in range(2)]
    for whole, a, b in zip(first, *halves):
        assert_equal(whole, type(whole)(*map(np.concatenate, zip(a, b))))


def test_off_and_outside_training_nothing_changes(make, stores, tmp_path):
    plain, never = take(make(), 3), AugmentConfig(scale=0.5, probability=0.0)
    for a, b in zip(plain, take(make(never), 3)):
        assert_equal(a, b)
    assert any((a.patches != b.patches).any() for a, b in zip(plain, take(make(EVERYTHING), 3)))
    for a, b in zip(take(make(split="validation"), 2), take(make(EVERYTHING, split="validation"), 2)):
        assert_equal(a, b)
    for split in ("train", "validation"):
        both = [
            list(
                loader.evaluation_batches(stores, TOKENS, replace(DATA, augment=a), split, plans_dir=tmp_path / "plans")
            )
            for a in (NOTHING, EVERYTHING)
        ]
        assert len(both[0]) == len(both[1]) > 0
        for a, b in zip(*both):
            assert_equal(a, b)


def test_plans_are_the_same_and_never_exceeded(make):
    plain, changed = make(), make(EVERYTHING)
    assert plain.state() == changed.state() and plain.plan_digest == changed.plan_digest
    for a, b in zip(take(plain, 3), take(changed, 3)):
        before, after = (np.count_nonzero(x.channel, axis=1) for x in (a, b))
        assert (after <= before).all() and after.sum() < before.sum()
        # every window keeps its slot, or leaves it empty
        assert ((b.window == a.window) | (b.window == -1)).all() and (b.window >= 0).any()
        # what is hidden is chosen among the tokens that are there
        assert (b.target <= (b.channel > 0)).all()
        seen = b.visible < DATA.row_tokens
        assert (np.take_along_axis(b.channel, np.minimum(b.visible, DATA.row_tokens - 1), 1)[seen] > 0).all()


CHANGES = {
    "crop_seconds": 1.5, "shift_seconds": 1.0, "scale": 0.5, "noise": 0.3, "powerline": 0.4, "drop": 0.5,
    "cutout_seconds": 1.5,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_augmentation_is_seen_in_a_batch(make, name):
    plain, changed = (
        tokens_of(take(make(a), 2)) for a in (NOTHING, AugmentConfig(**{name: CHANGES[name]}, probability=1.0))
    )
    assert changed.keys() <= plain.keys() and len(changed) > 5
    pairs = [(plain[key], changed[key]) for key in changed]
    if name == "crop_seconds":
        assert all(max(t for _, t in after) < 1.5 for _, after in pairs)
        assert max(t for before, _ in pairs for _, t in before) > 3
    elif name == "shift_seconds":
        # samples move by less than a patch, too: no token is what it was, and some are gone
        assert all(len(after) < len(before) for before, after in pairs)
    elif name == "scale":
        factors = [np.concatenate([after[at] / before[at] for at in after if at[0] <= 13]) for before, after in pairs]
        middle = [np.median(f) for f in factors]
        assert all(np.allclose(f[np.isfinite(f)], m, rtol=1e-3) for f, m in zip(factors, middle))
        assert np.ptp(middle) > 0.2 and min(middle) >= 1 / 1.5 - 1e-3 and max(middle) <= 1.5 + 1e-3
    elif name == "drop":
        lost = [{c for c, _ in before} - {c for c, _ in after} for before, after in pairs]
        assert max(map(len, lost)) >= 3 and all({c for c, _ in after} for _, after in pairs)
        for before, after in pairs:  # the others stay as they were
            assert all(np.array_equal(before[at], after[at]) for at in after)
    elif name == "cutout_seconds":
        for before, after in pairs:
            assert all(np.array_equal(before[at], after[at]) for at in after)
        # 1.5 s, and a patch of respiration that it begins or ends in is 1 s long
        gone = [sorted({t for _, t in before.keys() - after.keys()}) for before, after in pairs]
        assert max(max(g) - min(g) for g in gone if g) > 0.4 and all(max(g) - min(g) <= 2.5 for g in gone if g)
    else:
        ecg = [np.concatenate([after[at] - before[at] for at in after if at[0] <= 12]) for before, after in pairs
               if any(at[0] <= 12 for at in after)]  # fmt: skip
        assert all(added.any() for added in ecg)
        # white noise is independent from sample to sample; a sine of 50 or 60 Hz at 250 Hz is not
        together = [abs(np.corrcoef(added[:-1], added[1:])[0, 1]) for added in ecg]
        assert all(r < 0.1 for r in together) if name == "noise" else min(together) > 0.02


def test_sensors_move_together_and_have_noise_of_their_own():
    changes = rows.WindowChanges(AugmentConfig(shift_seconds=2.0, noise=0.5, probability=1.0))
    change = changes.of(0, 1, 2, 3)
    x = np.random.default_rng(0).standard_normal((1, 1000)).astype(np.float32)
    one, two = change(x, 250), change(x, 250)
    there = ~np.isnan(one)
    np.testing.assert_array_equal(there, ~np.isnan(two))
    assert 0 < there.sum() < 1000 and np.abs(one - two)[there].max() > 0.05
    again = rows.WindowChanges(changes._config).of(0, 1, 2, 3)
    np.testing.assert_array_equal(again(x, 250), one)
    other = changes.of(0, 1, 2, 4)(x, 250)
    assert not np.array_equal(np.isnan(other), np.isnan(one))


def test_wrong_amounts_are_refused_before_anything_is_read(make):
    with pytest.raises(BadInput, match="config.data.augment.drop"):
        make(AugmentConfig(drop=1.5))
