"""Pools from arrays, and splits that separate no group."""

import numpy as np
import pytest

from metaseg.data import pools
from metaseg.errors import MetasegError


def arrays(count=4, size=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), rng.random((count, size, size)) < 0.5


def test_a_pool_from_arrays():
    images, masks = arrays()
    pool = pools.prepare_arrays("twin", images, masks, ["w", "x", "y", "z"], np.array([0, 0, 1, 1]))
    assert (pool.ids, pool.groups.tolist()) == (("w", "x", "y", "z"), [0, 0, 1, 1])
    assert pool.masks.dtype == np.uint8
    assert np.array_equal(pool.masks, masks)
    with pytest.raises(ValueError, match="read-only"):
        pool.images[0] = 0
    images[0] = 0  # the caller's own array stays writable
    plain = pools.prepare_arrays("twin", *arrays())
    assert (plain.ids[:2], plain.groups.tolist()) == (("0000", "0001"), [0, 1, 2, 3])


def grouped(groups):
    count = len(groups)
    return pools.prepare_arrays("twin", *arrays(count), groups=np.array(groups))


def test_a_split_never_separates_a_group():
    for seed in range(20):
        pool = grouped(np.random.default_rng(seed).integers(0, 12, 60))
        train, held_out = pools.split_by_group(pool, 0.25, seed)
        assert sorted([*train, *held_out]) == list(range(60))
        assert not set(pool.groups[train]) & set(pool.groups[held_out])
        assert 0 < len(held_out) <= 15


def test_a_split_is_a_function_of_the_seed():
    pool = grouped(range(50))
    splits = [pools.split_by_group(pool, 0.2, seed)[1].tolist() for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1]
    assert len({tuple(split) for split in splits}) == 3
    assert all(len(split) == 10 for split in splits)


def test_the_capsule_video_is_split_44_to_11_in_one_stretch():
    pool = grouped(np.repeat(np.arange(5), 11))
    train, held_out = pools.split_by_group(pool, 0.2, seed=3)
    assert (len(train), len(held_out)) == (44, 11)
    assert np.ptp(held_out) == 10


def test_large_groups_and_impossible_splits():
    train, held_out = pools.split_by_group(grouped([0, 0, 0, 1, 1]), 0.1, seed=0)
    assert (train.tolist(), held_out.tolist()) == ([0, 1, 2], [3, 4])
    train, held_out = pools.split_by_group(grouped(range(4)), 0.9, seed=0)
    assert (len(train), len(held_out)) == (1, 3)
    with pytest.raises(MetasegError, match="its 3 images form a single group"):
        pools.split_by_group(grouped([7, 7, 7]), 0.5, seed=0)
