"""`metaseg COMMAND`: what it starts, and what it says of commands there are not."""

import sys

import pytest
from omegaconf import OmegaConf

from metaseg.cli import program


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


@pytest.mark.parametrize("arguments", [(), ("teach",)])
def test_another_command_is_refused_in_a_sentence(metaseg, arguments):
    status, _, said = metaseg(*arguments)
    assert status == 1
    assert said.startswith("error: Expected one of the commands train, adapt,")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["train", "pretrain"])
def test_an_unknown_option_names_the_command(metaseg, name):
    status, _, said = metaseg(name, "--nonsense")
    assert status == 1
    assert f"`metaseg {name} --help`" in said
    assert said.count("\n") == 1


def test_bench_says_where_it_is_to_be_had(metaseg, monkeypatch):
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    status, _, said = metaseg("bench", "outer_step")
    assert status == 1
    assert "checkout" in said


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
