"""Episodes as tensors: the same from any number of workers, after a stop, and in a process that was not forked."""

import dataclasses
import hashlib
import pickle

import lightning
import numpy as np
import pytest
import torch
from conftest import settings_of
from torch.utils.data import DataLoader

from metaseg.data import module
from metaseg.data.augment import one_thread, recolour
from metaseg.data.batches import Episode, EpisodeDataset, RawEpisode, SupportSet, image_tensor, mask_tensor
from metaseg.data.episodes import EpisodePlan
from metaseg.data.pools import prepare_arrays


def pool(name="ph2", count=30, size=32):
    rng = np.random.default_rng(len(name))
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return prepare_arrays(name, images, rng.integers(0, 2, (count, size, size), dtype=np.uint8))


def dataset(augmentation, mixing="mixed"):
    pools = [pool("a"), pool("bb")]
    plan = EpisodePlan(
        pools=tuple((one.name, np.arange(len(one))) for one in pools),
        shots=3,
        query=2,
        mixing=mixing,
        order="interleaved",
        count=4,
        resample=True,
        seed=0,
    )
    return EpisodeDataset(pools, plan, augmentation)


def digest(episode):
    return hashlib.blake2b(
        b"".join(part.contiguous().numpy().tobytes() for part in episode if part is not None)
    ).hexdigest()


def test_images_become_planes_between_minus_one_and_one():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    tensor = image_tensor(images)
    assert (tensor.dtype, tensor.shape) == (torch.float32, (2, 3, 4, 6))
    assert tensor.is_contiguous()
    assert np.array_equal(tensor.numpy(), images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1)
    assert torch.equal(image_tensor(torch.from_numpy(images)), tensor)
    ends = image_tensor(np.array([[[[0, 255, 0]]]], np.uint8))
    assert ends.flatten().tolist() == [-1, 1, -1]
    assert mask_tensor(np.array([[[0, 1]]], np.uint8)).tolist() == [[[[0.0, 1.0]]]]


@pytest.mark.parametrize(("mixing", "images"), [("exclusive", 1), ("mixed", 2)])
def test_an_episode_holds_the_images_of_its_plan(mixing, images):
    data = dataset("none", mixing)
    raw = data[2, 1]
    assert raw.unlabelled is None
    assert [part.dtype for part in raw[:4]] == [torch.uint8] * 4
    assert [part.shape[0] for part in raw[:4]] == [3 * images, 3 * images, 2 * images, 2 * images]
    parts = data.plan.episode(2, 1)
    expected = np.concatenate([data.pools[part.pool].images[part.query] for part in parts])
    assert np.array_equal(raw.query_images, expected)
    episode = raw.normalised()
    assert isinstance(episode, Episode)
    assert torch.equal(episode.query_images, image_tensor(expected))
    assert episode.support_masks.shape == (3 * images, 1, 32, 32)
    assert set(episode.support_masks.unique().tolist()) == {0, 1}


def test_writing_to_an_episode_does_not_change_the_pool():
    data = dataset("none")
    before = digest(data[0, 0])
    data[0, 0].support_images.zero_()
    assert digest(data[0, 0]) == before


class Listener(lightning.LightningModule):
    """Notes what each outer step is given; takes no gradient."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.automatic_optimization = False
        self.heard, self.validated = [], []

    def training_step(self, batch, index):
        assert all(isinstance(episode, Episode) for episode in batch)
        self.heard.append([digest(episode) for episode in batch])
        self.weight.grad = torch.ones(())
        self.optimizers().step()

    def validation_step(self, episode, index):
        self.validated.append(digest(episode))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def small_twins(monkeypatch):
    monkeypatch.setattr(module, "load_pool", lambda name, **_: pool(name))


def fit(tmp_path, workers, steps, checkpoint=None):
    settings = ["data=synthetic", "data.size=32", "data.augment=standard", f"data.workers={workers}", "shots=2"]
    settings += ["tasks.count=6", "tasks.recolour=0.5", "tasks.query=2", "tasks.validation=1"]
    data = module.EpisodicData(settings_of(*settings))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    listener = Listener()
    trainer.fit(listener, data, ckpt_path=checkpoint)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return listener


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_any_number_of_workers_gives_the_same_episodes_in_every_epoch_and_after_a_stop(tmp_path, small_twins):
    alone = fit(tmp_path, 0, 7)
    assert len(alone.heard) == 7  # two epochs of three outer steps, and one step of the third
    assert len({name for step in alone.heard for name in step}) == 14
    assert len(set(alone.validated)) == 2
    for workers in (1, 2):
        first = fit(tmp_path, workers, 4)
        rest = fit(tmp_path, workers, 7, checkpoint=tmp_path / "last.ckpt")
        assert first.heard + rest.heard == alone.heard
        assert set(first.validated + rest.validated) == set(alone.validated)


@pytest.mark.slow
def test_workers_that_are_not_forked_give_the_same_episodes():
    data = dataset("standard")
    keys = [(0, 1), (5, 2)]
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=keys,
        num_workers=1,
        worker_init_fn=one_thread,
        multiprocessing_context="spawn",
    )
    assert [digest(RawEpisode(*raw)) for raw in loader] == [digest(data[key]) for key in keys]


def test_augmentation_depends_on_the_seed_alone_not_on_threads():
    cv2 = pytest.importorskip("cv2")
    data, threads = dataset("standard"), cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        whole = digest(data[3, 1])
        one_thread()
        assert digest(data[3, 1]) == whole
    finally:
        cv2.setNumThreads(threads)
    assert digest(data[3, 2]) != whole


def test_auto_workers_depend_on_device_and_augmentation(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 8)
    assert module.worker_count("auto", "standard", on_cpu=False) == 2
    assert module.worker_count("auto", "standard", on_cpu=False, ranks=8) == 1
    assert module.worker_count("auto", "standard", on_cpu=True) == 0
    assert module.worker_count("auto", "none", on_cpu=False) == 0
    assert module.worker_count(5, "none", on_cpu=True) == 5


def test_a_pool_in_memory_survives_pickling():
    before = pool()
    after = pickle.loads(pickle.dumps(before))
    assert (after.name, after.ids) == (before.name, before.ids)
    assert np.array_equal(after.images, before.images)
    with pytest.raises(ValueError, match="read-only"):
        after.images[0] = 0


def test_the_images_of_a_task_share_their_colours_and_other_tasks_have_others():
    greys = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 3)).reshape(1, 16, 16, 3)
    support, query = recolour([greys, greys], 1.0, (1, 2))
    assert np.array_equal(support, query)
    assert support.dtype == np.uint8
    assert not np.array_equal(support, greys)
    assert not np.array_equal(support, recolour([greys], 1.0, (1, 3))[0])
    # Monotone in each channel, so that what could be told apart still can.
    levels = support.reshape(256, 3).astype(int)
    assert all(abs(np.sign(np.diff(levels[:, channel])).sum()) >= 100 for channel in range(3))
    assert np.array_equal(recolour([greys], 0.0, (1, 2))[0], greys)


def test_a_share_of_the_tasks_is_recoloured():
    plain = dataset("none")
    coloured = EpisodeDataset(plain.pools, plain.plan, "none", recolour=0.5)
    changed = [not torch.equal(plain[0, index].support_images, coloured[0, index].support_images) for index in range(4)]
    assert any(changed)
    assert not all(changed)
    assert all(torch.equal(plain[0, index].support_masks, coloured[0, index].support_masks) for index in range(4))


def of_one_image(augmentation, **settings):
    """Episodes of a pool whose images are all the same one."""
    image = pool(count=1).images
    alike = prepare_arrays("a", image.repeat(8, 0), np.zeros((8, 32, 32), np.uint8))
    plan = EpisodePlan((("a", np.arange(8)),), 2, 2, "mixed", "interleaved", 4, resample=False, seed=0)
    return torch.tensor(image), EpisodeDataset([alike], plan, augmentation, **settings)


def test_support_and_query_share_colours_that_are_new_in_each_epoch():
    image, data = of_one_image("none", recolour=1.0)
    first, second = data[0, 1], data[1, 1]
    assert torch.equal(first.support_images, first.query_images)
    assert not torch.equal(first.support_images[:1], image)
    assert not torch.equal(first.support_images, second.support_images)


def test_support_and_query_are_augmented_separately_and_again_in_each_epoch():
    _, data = of_one_image("standard")
    first, second = data[0, 1], data[1, 1]
    assert not torch.equal(first.support_images, first.query_images)
    assert not torch.equal(first.support_images, second.support_images)


def test_a_support_set_is_augmented_again_in_each_step():
    images = pool()
    support, other = (SupportSet(images.images, images.masks, "standard", seed) for seed in (0, 1))
    first, second = support.augmented(0)[0], support.augmented(1)[0]
    assert not torch.equal(first, second)
    assert torch.equal(support.augmented(1, np.array([4, 9]))[0], second[[4, 9]])
    assert not torch.equal(other.augmented(0)[0], first)


def test_other_seeds_augment_differently():
    _, one = of_one_image("standard")
    other = EpisodeDataset(one.pools, dataclasses.replace(one.plan, seed=1), "standard")
    assert not torch.equal(one[0, 1].support_images, other[0, 1].support_images)
