import numpy as np
import pytest

from metaseg.data.episodes import EpisodePlan, Stream, target_support
from metaseg.errors import MetasegError


def plan(**changes):
    settings = {
        "pools": (("a", np.arange(30)), ("b", np.arange(100, 150))),
        "shots": 5,
        "query": 7,
        "mixing": "exclusive",
        "order": "interleaved",
        "count": 10,
        "resample": True,
        "seed": 3,
    }
    return EpisodePlan(**(settings | changes))


def same(first, second):
    return all(
        x.pool == y.pool and np.array_equal(x.support, y.support) and np.array_equal(x.query, y.query)
        for x, y in zip(first, second, strict=True)
    )


def test_an_episode_is_a_pure_function_of_seed_epoch_and_index():
    assert same(plan().episode(4, 7), plan().episode(4, 7))
    assert not same(plan().episode(4, 7), plan().episode(5, 7))
    assert not same(plan().episode(4, 7), plan().episode(4, 5))
    assert not same(plan().episode(4, 7), plan(seed=4).episode(4, 7))
    assert not same(plan().episode(4, 7), plan(stream=Stream.VALIDATION).episode(4, 7))


@pytest.mark.parametrize("mixing", ["exclusive", "mixed"])
def test_support_and_query_are_disjoint_without_repeats_and_within_the_pool(mixing):
    episodes = plan(mixing=mixing)
    for index in range(10):
        for part in episodes.episode(0, index):
            both = np.concatenate([part.support, part.query])
            assert len(set(both)) == 12
            assert set(both) <= set(episodes.pools[part.pool][1])


def test_exclusive_episodes_alternate_and_mixed_ones_hold_every_pool():
    assert [plan().episode(0, i)[0].pool for i in range(4)] == [0, 1, 0, 1]
    assert all(len(plan().episode(0, i)) == 1 for i in range(10))
    assert [part.pool for part in plan(mixing="mixed").episode(0, 3)] == [0, 1]
    assert plan().group == 2
    assert plan(mixing="mixed").group == 1


def test_sequential_episodes_finish_one_pool_before_the_next():
    assert [plan(order="sequential").episode(0, i)[0].pool for i in range(10)] == [0] * 5 + [1] * 5


def test_a_fixed_pool_of_tasks_repeats_every_epoch():
    fixed = plan(resample=False)
    assert same(fixed.episode(0, 2), fixed.episode(9, 2))
    assert same(fixed.episode(0, 2), plan().episode(0, 2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shots": 25}, "25 support \\+ 7 query = 32 images per pool for train, but a has 30"),
        ({"count": 9}, "multiple of the 2 pools"),
    ],
)
def test_impossible_plans_are_refused_with_the_numbers(changes, words):
    with pytest.raises(MetasegError, match=words):
        plan(**changes)


def test_a_pool_of_just_enough_images_will_do():
    (part,) = plan(pools=(("a", np.arange(12)),)).episode(0, 0)
    assert sorted([*part.support, *part.query]) == list(range(12))


def test_an_index_out_of_range_is_an_error():
    with pytest.raises(IndexError):
        plan().episode(0, 10)


def test_target_support_depends_on_seed_and_draw_alone():
    first = target_support(50, 20, 0, 1)
    assert np.array_equal(first, target_support(50, 20, 0, 1))
    assert len(set(first)) == 20
    assert not np.array_equal(first, target_support(50, 20, 0, 2))
    assert not np.array_equal(first, target_support(50, 20, 1, 1))


def test_published_support_sets_stay_what_they_are():
    assert target_support(50, 5, 0, 1).tolist() == [15, 24, 32, 40, 44]


def test_every_image_of_a_pool_is_drawn_sooner_or_later():
    drawn = {int(i) for epoch in range(20) for i in range(10) for i in plan().episode(epoch, i)[0].support}
    assert drawn == set(range(30)) | set(range(100, 150))
