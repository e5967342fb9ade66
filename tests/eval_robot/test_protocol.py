"""Seed ranges and the rules of the protocol."""

from itertools import combinations

import pytest

from eval_robot.protocol import SEED_RANGES, check_disjoint, protocol


def test_seed_ranges_are_disjoint() -> None:
    for first, second in combinations(SEED_RANGES.values(), 2):
        assert not set(first) & set(second)


def test_every_policy_meets_the_same_seeds() -> None:
    assert protocol("test").seeds(20)[:10] == protocol("test").seeds(10)
    assert set(protocol("test").seeds(50)) <= set(SEED_RANGES["test"])
    assert protocol("test").id != protocol("selection").id


def test_bad_requests_are_refused() -> None:
    for split in ("demos", "audit"):
        with pytest.raises(ValueError, match="expected selection or test"):
            protocol(split)
    for episodes in (0, len(SEED_RANGES["test"]) + 1):
        with pytest.raises(ValueError, match="seeds"):
            protocol("test").seeds(episodes)


def test_demonstrated_seeds_are_never_evaluated() -> None:
    check_disjoint([1, 2], [3], "d.hdf5")
    with pytest.raises(ValueError, match=r"d\.hdf5 holds demonstrations of 1 evaluation seeds"):
        check_disjoint([1, 2], [2, 3], "d.hdf5")
