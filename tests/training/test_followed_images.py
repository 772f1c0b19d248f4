"""Pictures of fixed images over epochs: which images, and that training does not notice."""

from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, settings_of

from metaseg import tracking
from metaseg.data.module import EpisodicData
from metaseg.learners.build import build_learner
from metaseg.training.followed_images import FollowedImages, followed
from metaseg.training.outer import MetaTraining


def built(*overrides):
    settings = settings_of(*TINY, *overrides)
    data = EpisodicData(settings)
    data.setup()
    return build_learner(settings), data


def test_images_are_held_out_and_of_every_pool():
    for mixing in ("exclusive", "mixed"):
        _, data = built("learner=fomaml", f"tasks.mixing={mixing}")
        found = followed(data, 2)
        assert len(found) == (2 if mixing == "exclusive" else 1)
        places = {pool: ids for one in found for pool, ids in one.places.items()}
        assert set(places) == {"ph2", "kvasir"}
        for pool, (name, allowed) in zip(data.pools, data.validation_plan.pools, strict=True):
            held_out = {pool.ids[index] for index in allowed}
            assert {name for _, name in places[name]} <= held_out
            assert len(places[name]) == 2
        for one in found:
            for name, shown in one.places.items():
                pool = next(pool for pool in data.pools if pool.name == name)
                for at, image in shown:
                    stored, mask = pool.take([pool.ids.index(image)])
                    assert torch.equal(one.episode.query_images[at], torch.from_numpy(stored[0]))
                    assert torch.equal(one.episode.query_masks[at], torch.from_numpy(mask[0]))


def test_images_are_drawn_at_the_networks_precision(monkeypatch):
    learner, data = built("learner=fomaml")
    assert draw(monkeypatch, learner.double(), data)


def draw(monkeypatch, learner, data, **changes):
    """What the callback sends after a validation: each pool's name, pictures and captions."""
    sent = []
    monkeypatch.setattr(tracking, "log_images", lambda _, *given, **named: sent.append(given[:3]))
    plugin = SimpleNamespace(val_step_context=torch.no_grad)
    settings = {"sanity_checking": False, "is_global_zero": True, "current_epoch": 0, "global_step": 1}
    trainer = SimpleNamespace(**settings | {"precision_plugin": plugin} | changes)
    FollowedImages(data, [], every=1, images=1).on_validation_end(trainer, MetaTraining(learner))
    return sent


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_only_rank_zero_draws_and_only_every_so_many_epochs(monkeypatch, epoch):
    learner, data = built("learner=fomaml")
    sent = []
    monkeypatch.setattr(tracking, "log_images", lambda *given, **named: sent.append((given[1], given[4])))
    callback = FollowedImages(data, [], every=2, images=1)
    plugin = SimpleNamespace(val_step_context=torch.no_grad)
    trainer = SimpleNamespace(sanity_checking=False, current_epoch=epoch, global_step=8, precision_plugin=plugin)
    for rank in (1, 0):
        trainer.is_global_zero = rank == 0
        callback.on_validation_end(trainer, MetaTraining(learner))
        assert bool(sent) == (rank == 0 and epoch % 2 == 0)
    if sent:
        assert sent == [(f"progress/{pool}", {"epoch": epoch, "trainer/global_step": 7}) for pool in ("ph2", "kvasir")]


def test_random_states_and_buffers_are_as_before(monkeypatch):
    learner, data = built("learner=imaml", "model.norm=running")
    trial = type(learner).trial

    def restless(self, episode):
        torch.rand(3)
        return trial(self, episode)

    monkeypatch.setattr(type(learner), "trial", restless)
    before, random = {key: value.clone() for key, value in learner.state_dict().items()}, torch.get_rng_state()
    assert draw(monkeypatch, learner, data)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())


@pytest.mark.parametrize("name", ["prototypes", "feyjie", "joint", "fomaml"])
def test_a_learner_without_inner_loop_has_one_half(monkeypatch, name):
    learner, data = built(f"learner={name}", *["learner.adapt.steps=0"] * (name in ("prototypes", "feyjie")))
    drawn = draw(monkeypatch, learner, data)
    assert {pool for pool, _, _ in drawn} == {"progress/ph2", "progress/kvasir"}
    for _, ((picture,), (caption,)), halves in ((pool, rest, 2 if name == "fomaml" else 1) for pool, *rest in drawn):
        assert picture.shape == (256, 256 * halves + 8 * (halves - 1), 3)
        assert caption.count("→") == halves - 1
