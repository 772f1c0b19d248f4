"""`metaseg COMMAND`: what it starts, and what it says of commands there are not."""

import sys
from importlib.metadata import version

import pytest
from conftest import command
from lightning.fabric.strategies.launchers.subprocess_script import _hydra_subprocess_cmd
from omegaconf import OmegaConf
from PIL import Image

from metaseg.cli import program
from metaseg.cli.entry import DRY_RUN, _arguments
from metaseg.runs.settings import leaves


@pytest.fixture
def metaseg(monkeypatch, capfd):
    """Run the command with arguments: exit status, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["metaseg", *arguments])
        status = 0
        try:
            program.main()
        except SystemExit as end:
            status = end.code or 0
        return status, *capfd.readouterr()

    return call


def test_every_command_is_listed_and_starts(metaseg):
    status, listed, _ = metaseg("--help")
    assert status == 0
    for name in program.COMMANDS:
        assert f"  {name} " in listed
        status, said, _ = metaseg(name, "--help")
        assert status == 0
        assert said


def test_the_version_is_that_of_the_package(metaseg):
    assert metaseg("--version") == (0, f"metaseg {version('metaseg-implicit')}\n", "")


@pytest.mark.parametrize("arguments", [(), ("teach",)])
def test_another_command_is_refused_in_a_sentence(metaseg, arguments):
    status, _, said = metaseg(*arguments)
    assert status == 1
    assert said.startswith("error: Expected one of the commands train, adapt,")
    assert said.count("\n") == 1


def test_a_sweep_may_be_asked_for_between_settings():
    assert _arguments(["shots=5", "-m", "seed=0,1", "--dry-run"], ()) == ["-m", "shots=5", "seed=0,1", DRY_RUN]


def test_options_that_exclude_each_other_are_refused_in_a_sentence(metaseg, nowhere):
    assert "Only one of" in refused(metaseg, "-m", "--cfg", "job")


@pytest.mark.parametrize("name", ["train", "pretrain", "status", "suggest", "models"])
def test_an_unknown_option_names_the_command(metaseg, name):
    status, _, said = metaseg(name, "--nonsense")
    assert status == 1
    assert f"`metaseg {name} --help`" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "setting", "value"), [("train", "shots", 7), ("adapt", "seed", 7), ("app", "port", 7)]
)
def test_local_defaults_come_before_the_command_line(metaseg, tmp_path, name, setting, value):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / f"{name}.yaml").write_text(f"{setting}: 7\n")
    shown = OmegaConf.create(metaseg(name, "--cfg", "job", "--config-dir", str(tmp_path))[1])
    assert shown[setting] == 7
    shown = OmegaConf.create(metaseg(name, f"{setting}=9", "--cfg", "job", "--config-dir", str(tmp_path))[1])
    assert shown[setting] == 9


def test_a_scale_goes_before_local_defaults_and_the_command_line_before_a_scale(metaseg, tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "train.yaml").write_text("trainer: {max_epochs: 20, patience: 3}\n")
    given = ["train", "--cfg", "job", "--config-dir", str(tmp_path)]
    small = OmegaConf.create(metaseg(*given, "scale=small")[1])
    assert (small.trainer.max_epochs, small.trainer.patience) == (4, 3)
    toy = OmegaConf.create(metaseg(*given, "scale=toy", "logger=wandb", "trainer.max_epochs=2")[1])
    assert (toy.trainer.max_epochs, toy.logger.wandb) == (2, True)


@pytest.mark.parametrize("text", ["a: [", "!!int x", "[" * 3000])
def test_a_damaged_file_of_a_folder_of_settings_is_refused_in_a_sentence(metaseg, tmp_path, text):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "adapt.yaml").write_text(text)
    status, _, said = metaseg("adapt", "--cfg", "job", "--config-dir", str(tmp_path))
    assert (status, said.count("\n"), said[:7]) == (1, 1, "error: ")


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(metaseg, *arguments):
    """What is said of arguments that are refused."""
    status, _, said = metaseg("train", "data=synthetic", "logger=csv", *arguments)
    assert status == 1
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said.removeprefix("error: ")


def test_help_for_an_unknown_choice_is_refused_in_one_sentence(metaseg):
    status, _, said = metaseg("train", "--help", "learner=nope")
    assert (status, said.count("\n")) == (1, 1)
    assert "learner must be one of anil" in said


@pytest.mark.long
def test_refused_runs_leave_no_folder(metaseg, nowhere):
    assert refused(metaseg, "data.size=gross").startswith("data.size ")
    assert list(nowhere.iterdir()) == []


@pytest.mark.long
def test_refused_runs_keep_existing_folders(metaseg, nowhere):
    (nowhere / "mine" / "run").mkdir(parents=True)
    (nowhere / "mine" / "run" / "metrics.csv").write_text("step\n")
    refused(metaseg, "seed=-1", "hydra.run.dir=mine/run")
    assert (nowhere / "mine" / "run" / "metrics.csv").is_file()
    refused(metaseg, "seed=-1", "hydra.run.dir=mine/other")
    assert [path.name for path in (nowhere / "mine").iterdir()] == ["run"]


def test_lightning_starts_further_ranks_with_the_same_command(metaseg, nowhere, monkeypatch):
    commands = []
    monkeypatch.setattr("metaseg.training.run.run", lambda _: commands.append(_hydra_subprocess_cmd(1)[0]))
    assert metaseg("train", "shots=3")[0] == 0
    assert commands[0][:5] == [sys.executable, "-m", "metaseg.__main__", "train", "shots=3"]
    assert sys.argv == ["metaseg train", "shots=3"]


@pytest.mark.parametrize(("trainer", "there"), [("gpu", 0), ("ddp", 0), ("ddp", 1)])
def test_missing_gpus_are_reported_before_anything_starts(metaseg, nowhere, monkeypatch, trainer, there):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    assert "trainer.accelerator" in refused(metaseg, f"trainer={trainer}")
    assert list(nowhere.iterdir()) == []


def test_settings_that_fail_the_test_are_refused_before_training(metaseg, nowhere):
    compare = ["evaluation.scratch.compare=true", "protocol.adapt.lr=0", "learner.adapt.lr=1e-3"]
    others = ["starts.learner.adapt.lr=1e-3", "data.size=32", "data.augment=none"]
    assert "lr must be" in refused(metaseg, *compare, *others)
    assert list(nowhere.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("evaluation.draw=2", "evaluation.draws"),
        ("+data.sizes=32", "data.size"),
        ("+learner.curvatur=hessian", "learner.curvature"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_one_that_was_meant(metaseg, nowhere, given, meant):
    said = refused(metaseg, given)
    assert given.lstrip("+").partition("=")[0] in said
    assert f"did you mean {meant}?" in said


def test_a_setting_of_another_choice_is_refused_with_its_group(metaseg, nowhere):
    assert "model.features is not a setting of the model chosen" in refused(
        metaseg, "model=pretrained", "model.features=2"
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["train", "adapt", "app", "pretrain"])
def test_help_shows_every_setting_with_its_value(metaseg, name):
    _, said, _ = metaseg(name, "--help")
    _, plain, _ = metaseg(name, "--cfg", "job")
    own = {"learner", "model", "starts", "protocol", "scale"}
    settings = {key for key in leaves(OmegaConf.to_container(OmegaConf.create(plain))) if key.split(".")[0] not in own}
    lines = {line.split()[0] for line in said.splitlines() if line.startswith("  ") and line[2:3].strip()}
    assert settings <= lines
    _, changed, _ = metaseg(name, "--help", "seed=17" if name != "app" else "port=17")
    assert "[17]" in changed


def test_models_lists_trained_runs_with_their_scores(trained, capsys):
    assert command("models")([str(trained.parent)]) == 0
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith(str(trained)))
    assert "fomaml, 3 shots" in line


def test_models_refuses_a_folder_that_is_not_there(tmp_path, capsys):
    assert command("models")([str(tmp_path / "gone")]) == 1
    assert "gone" in capsys.readouterr().err


def test_suggest_names_images_that_differ(tmp_path, capsys):
    for number, colour in enumerate(["red", "red", "red", "blue", "blue", "green"]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}-{colour}.png")
    assert command("suggest")([str(tmp_path), "--count", "3"]) == 0
    names = capsys.readouterr().out.split()
    assert sorted(name.split("-")[1] for name in names) == ["blue.png", "green.png", "red.png"]
    assert command("suggest")([str(tmp_path), "--count", "7"]) == 1
    assert "--count" in capsys.readouterr().err
