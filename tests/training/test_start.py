"""Starting points of learners, and the reported cost of their training."""

import json
import multiprocessing
import time
from socket import socket
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, settings_of
from filelock import FileLock

from metaseg.data.batches import Episode
from metaseg.data.module import EpisodicData
from metaseg.errors import MetasegError
from metaseg.learners.build import build_learner
from metaseg.learners.checkpoints import origin
from metaseg.runs.directory import RunDirectory
from metaseg.training import start
from metaseg.training.compute import Compute, FlopCounter, of_one_image
from metaseg.training.outer import MetaTraining
from metaseg.training.start import directory_of, joint_settings, load_start, starting_point


def settings(tmp_path, *overrides):
    return settings_of(*TINY, f"starts.dir={tmp_path}", "start=joint", "starts.epochs=1", *overrides)


def begins(chosen):
    return starting_point(chosen, build_learner(chosen))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["start=auto"], "joint"),
        (["start=auto", "protocol=paper"], "model"),
        (["start=auto", "learner=scratch"], "model"),
        (["start=auto", "train=false"], "model"),
        (["start=auto", "learner=feyjie", "learner.adapt.steps=0"], "model"),
        (["start=auto", "learner=naive", "learner.train_on=target"], "model"),
        (["start=joint", "learner=scratch"], "joint"),
        (["start=model"], "model"),
    ],
)
def test_auto_is_the_protocols_where_the_models_network_learns_from_the_pair(tmp_path, overrides, expected):
    assert begins(settings(tmp_path, *overrides)) == expected


@pytest.mark.parametrize(
    "overrides",
    [["learner=feyjie", "learner.adapt.steps=0"], ["learner=naive", "learner.train_on=target"], ["start=/no/such/run"]],
)
def test_impossible_starts_are_refused(tmp_path, overrides):
    with pytest.raises(MetasegError, match="start"):
        begins(settings(tmp_path, *overrides))


def test_a_run_that_goes_on_needs_its_start_no_more(tmp_path):
    chosen = settings(tmp_path, "start=/no/such/run")
    assert starting_point(chosen, build_learner(chosen), resumed=True) == "/no/such/run"


@pytest.mark.parametrize("name", ["imaml", "maml", "fomaml", "anil", "reptile", "naive", "prototypes"])
def test_learners_that_auto_sends_to_joint_training_take_its_weights(tmp_path, name):
    joint = build_learner(settings(tmp_path, "learner=joint"))
    for parameter in joint.parameters():
        torch.nn.init.normal_(parameter)
    torch.save({**origin(joint.network), "state_dict": joint.state_dict()}, tmp_path / "joint.ckpt")
    chosen = settings(tmp_path, f"learner={name}", "start=auto", *["learner.adapt.steps=0"] * (name == "prototypes"))
    learner = build_learner(chosen)
    assert begins(chosen) == "joint"
    own = {part: one.clone() for part, one in learner.theta().items()}
    load_start(str(tmp_path / "joint.ckpt"), learner, None)
    kept = {part: one for part, one in own.items() if torch.equal(one, learner.theta()[part])}
    assert set(kept) == ({"backbone.conv.weight", "backbone.conv.bias"} if name == "prototypes" else set())
    taken = {part.removeprefix("backbone."): one for part, one in learner.theta().items() if part not in kept}
    assert all(torch.equal(one, joint.theta()[part]) for part, one in taken.items())


@pytest.mark.long
def test_the_shared_start_depends_on_pair_model_and_seed_and_not_on_learner_shots_or_target(tmp_path):
    def place(*overrides):
        return directory_of(joint_settings(settings(tmp_path, *overrides)))

    alike = ["learner=maml", "shots=2", "target=kvasir_capsule", "evaluation.draws=3", "trainer.max_epochs=7"]
    alike += ["trainer.max_passes=100"]
    others = ["seed=1", "pair=isic_ph2", "model.features=4", "loss=dice", "starts.epochs=2", "data.augment=none"]
    assert len({place(), *(place(one) for one in alike)}) == 1
    assert len({place(), *(place(one) for one in others)}) == 1 + len(others)


@pytest.mark.parametrize("scale", ["full", "small", "toy"])
def test_a_learner_that_trains_for_longer_has_the_same_start(scale):
    usual, longer = (settings_of(f"scale={scale}", *more) for more in ([], ["trainer.max_epochs=50"]))
    assert usual.starts.epochs == usual.trainer.max_epochs == longer.starts.epochs


def test_learners_begin_from_one_joint_training_made_once(tmp_path, train):
    starts = [f"starts.dir={tmp_path / 'starts'}", "start=joint", "starts.epochs=1", "starts.shots=2", "starts.query=2"]
    still = "learner.optimizer.lr=1e-12"
    for name in ("fomaml", "maml"):
        assert train(*starts, still, f"learner={name}", directory=tmp_path / name).returncode == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("fomaml", "maml")]
    (made,) = (tmp_path / "starts").iterdir()
    written = (made / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    first, second = (
        torch.load(tmp_path / name / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for name in ("fomaml", "maml")
    )
    begun = torch.load(made / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in begun.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(first[name], value, atol=1e-6, rtol=0)
            torch.testing.assert_close(second[name], value, atol=1e-6, rtol=0)
    assert written < (tmp_path / "fomaml" / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    assert [result["start"] for result in results] == [str(made / "checkpoints" / "best.ckpt")] * 2
    compute = [result["compute"] for result in results]
    assert compute[0]["outer_steps"] == compute[1]["outer_steps"] == 2
    assert 0 < compute[0]["passes"] < compute[1]["passes"]  # second derivatives cost more
    assert json.loads((tmp_path / "maml" / "compute.json").read_text()) == compute[1]

    replaced = json.loads((made / "images.json").read_text())
    replaced["kvasir"] = "other files"
    (made / "images.json").write_text(json.dumps(replaced))
    refused = train(*starts, "learner=maml", directory=tmp_path / "refused")
    assert refused.returncode == 1
    assert f"{made} was trained on other images of kvasir" in refused.stderr


@pytest.mark.long
def test_training_ends_once_its_passes_are_spent(tmp_path):
    chosen = settings(tmp_path, "learner=fomaml", "learner.optimizer.schedule=cosine")
    learner = build_learner(chosen)
    compute = Compute(learner, 32, RunDirectory(tmp_path), most=4.0)
    module = MetaTraining(learner, None, lambda: compute.spent)
    trainer = SimpleNamespace(world_size=1, strategy=SimpleNamespace(broadcast=lambda value: value), should_stop=False)
    rates = []
    while not trainer.should_stop:
        rates.append(module._schedule())
        compute.on_train_batch_start(trainer, module, None, 0)
        learner.network(torch.rand(2, 3, 32, 32)).sum().backward()
        compute.on_train_batch_end(trainer, module, None, None, 0)
    assert compute.spent == pytest.approx(1, abs=0.05)
    assert rates == pytest.approx([1.0, 0.5], abs=0.05)
    continued = Compute(learner, 32, RunDirectory(tmp_path), most=4.0)
    continued.load_state_dict(compute.state_dict())
    assert continued.spent == compute.spent


@pytest.mark.long
def test_a_step_on_held_stages_can_be_counted(tmp_path):
    """Outputs of held stages are leaves and inputs of modules, where the counter's own hooks break off."""
    chosen = settings(tmp_path, "learner=imaml", "learner.inner.rates={encoder: 0}")
    learner = build_learner(chosen)
    images, masks = torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) > 0.5).float()
    with FlopCounter() as counted:
        learner.meta_gradient(learner.theta(), Episode(images, masks, images, masks))
    assert counted.flops > 2 * of_one_image(learner, 32)


def follow(rank, folder, chosen):
    """Go to the shared start as one of two ranks, and note by an empty file what this rank does."""

    def note(what):
        (folder / f"{rank} {what}").touch()

    start.fit = lambda *_: note("trains")
    start.read_checkpoint = lambda *_: {}
    start.restore = lambda *_: note("loads")
    note("arrives")
    start.load_start("joint", build_learner(chosen), start.data_of("joint", chosen, EpisodicData(chosen)))
    # A run would go on. Gloo aborts a process that ends with its threads alive, or whose partner has gone before.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.long
@pytest.mark.parametrize(
    ("exists", "done"), [(True, {"loads"}), pytest.param(False, {"trains", "loads"}, marks=pytest.mark.slow)]
)
def test_ranks_that_torchrun_launches_wait_for_another_run_and_then_do_the_same(tmp_path, monkeypatch, exists, done):
    """The other run finishes the start, or is killed before."""
    chosen = settings(tmp_path / "starts", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    other = RunDirectory(directory_of(joint_settings(chosen)))
    other.checkpoints.mkdir(parents=True)
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    every = {"TORCHELASTIC_RUN_ID": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    for name, value in (every | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items():
        monkeypatch.setenv(name, str(value))
    folder, ranks = tmp_path / "notes", []
    folder.mkdir()
    with FileLock(other.path / ".start.lock"):
        for rank in (0, 1):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            ranks.append(multiprocessing.get_context("spawn").Process(target=follow, args=(rank, folder, chosen)))
            ranks[-1].start()
        while len(list(folder.glob("* arrives"))) < 2:
            assert all(one.is_alive() for one in ranks)
            time.sleep(0.1)
        time.sleep(3)
        assert len(list(folder.iterdir())) == 2
        if exists:
            other.trained.touch()
    for one in ranks:
        one.join(300)
    assert [one.exitcode for one in ranks] == [0, 0]
    assert {path.name for path in folder.glob("*s")} == {f"{r} {what}" for r in (0, 1) for what in {"arrives", *done}}
