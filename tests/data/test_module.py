"""The data module: which images are trained on, given away without masks, and scored."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import settings_of

from metaseg.data import module
from metaseg.data.pools import prepare_arrays
from metaseg.errors import MetasegError
from metaseg.evaluation.metatest import limited

SETTINGS = ["data=synthetic", "data.size=16", "data.augment=none", "data.workers=0", "shots=3", "tasks.count=4"]
SETTINGS += ["tasks.query=3", "tasks.validation=1", "tasks.recolour=0"]
SIZES = {"ph2": 40, "kvasir": 60, "isic": 50, "kvasir_capsule": 55}


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
    def load(name, **_):
        generator = np.random.default_rng(len(name))
        images = generator.integers(0, 256, (SIZES[name], 16, 16, 3), dtype=np.uint8)
        groups = np.arange(SIZES[name]) // 11 if name == "kvasir_capsule" else None
        return prepare_arrays(name, images, images[..., 0] > 127, groups=groups)

    monkeypatch.setattr(module, "load_pool", load)


def data(**changes):
    names = {"targets": "target", "pools": "pair.pools"}
    given = [f"{names.get(key, f'learner.{key}')}={value}" for key, value in changes.items()]
    given = [f"+{one}" if one.startswith("learner.unlabelled") else one for one in given]
    found = module.EpisodicData(settings_of(*SETTINGS, *given))
    found.setup()
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", ["isic", "kvasir_capsule"])
def test_images_given_away_without_masks_are_never_scored(name):
    found = data(targets=[name], unlabelled=0.1).targets[name]
    assert 1 <= len(found.unlabelled) <= 0.2 * SIZES[name]
    assert len(found.candidates) == SIZES[name]
    for draw in range(3):
        support, scored = found.draw(3, 0, draw)
        assert not set(scored) & (set(found.unlabelled) | set(support))
        plain_support, plain_scored = data(targets=[name]).targets[name].draw(3, 0, draw)
        assert np.array_equal(support, plain_support)
        assert set(scored) == set(plain_scored) - set(found.unlabelled)


@pytest.mark.parametrize("mixing", ["exclusive", "mixed"])
def test_tasks_are_counted_in_all_or_of_each_pool(mixing):
    def taken(*given):
        found = module.EpisodicData(settings_of(*SETTINGS, f"tasks.mixing={mixing}", *given))
        found.setup()
        return found.train_plan.count // found.per_step

    assert taken() == (2 if mixing == "exclusive" else 4)
    assert taken("tasks.count_in=pool") == 4


def test_validation_images_are_never_trained_on():
    found = data()
    for (_, trained), (_, held_out) in zip(found.train_plan.pools, found.validation_plan.pools, strict=True):
        assert len(held_out)
        assert not set(trained) & set(held_out)


def test_without_training_no_images_are_needed_for_episodes():
    many = [*SETTINGS, "shots=39"]
    with pytest.raises(MetasegError, match="An episode needs 39 support"):
        module.EpisodicData(settings_of(*many)).setup()
    module.EpisodicData(settings_of(*many, "train=false")).setup()


def test_an_episode_carries_one_unlabelled_image_of_its_epoch_and_index():
    found = data(unlabelled=0.1)
    episodes = module.EpisodeDataset(found.pools, found.train_plan, "none", found.unlabelled)
    allowed = found.targets["isic"].pool.take(found.targets["isic"].unlabelled)[0]
    for index in range(4):
        image = episodes[0, index].unlabelled
        assert image.shape == (1, 16, 16, 3)
        assert any(np.array_equal(image[0], one) for one in allowed)
        assert np.array_equal(image, episodes[0, index].unlabelled)
        assert episodes[0, index].normalised().unlabelled.shape == (1, 3, 16, 16)
    assert len({episodes[epoch, 0].unlabelled.numpy().tobytes() for epoch in range(8)}) > 1
    assert data().unlabelled == []


def test_validation_sees_images_as_they_are():
    found = module.EpisodicData(settings_of(*SETTINGS, "data.augment=standard", "tasks.recolour=1"))
    found.setup()
    found.trainer = SimpleNamespace(global_rank=0, world_size=1)
    for index, raw in enumerate(found.val_dataloader()):
        parts = found.validation_plan.episode(0, index)
        for images, which in ((raw.support_images, "support"), (raw.query_images, "query")):
            expected = [found.pools[part.pool].images[getattr(part, which)] for part in parts]
            assert np.array_equal(images, np.concatenate(expected))


@pytest.mark.long
def test_training_images_are_limited_over_all_pools_together():
    everything = sum(len(indices) for _, indices in data().train_plan.pools)
    assert everything == 80
    limited = data(train_images=50).train_plan.pools
    assert sum(len(indices) for _, indices in limited) == 50
    for (name, some), (_, full) in zip(limited, data().train_plan.pools, strict=True):
        assert set(some) < set(full), name
    assert sum(len(indices) for _, indices in data(train_images=500).train_plan.pools) == everything


def test_a_learner_of_the_target_trains_on_most_of_it_and_is_scored_on_the_rest():
    found = data(targets=["kvasir_capsule"], train_on="target")
    target = found.targets["kvasir_capsule"]
    ((name, trained_on),) = found.train_plan.pools
    assert (name, list(found.targets)) == ("kvasir_capsule", ["kvasir_capsule"])
    assert len(target.scored) == 11  # one of five blocks
    for indices in (trained_on, found.validation_plan.pools[0][1], target.draw(3, 0, 0)[0]):
        assert len(indices)
        assert set(indices) <= set(target.candidates)
    assert not set(target.candidates) & set(target.scored)


def test_without_a_pair_there_are_targets_only():
    found = data(pools=[])
    assert list(found.targets) == ["isic"]
    with pytest.raises(MetasegError, match="pair=none"):
        found.require_training_data()
    data(pools=[], train_on="target").require_training_data()


def test_a_limit_keeps_the_same_images_where_some_are_not_scored():
    whole, less = (data(unlabelled=share).targets["isic"] for share in (0.0, 0.2))
    kept, fewer = limited(whole, 20, 0), limited(less, 20, 0)
    assert [index for index in kept if index in fewer] == [index for index in kept if index not in less.unlabelled]
