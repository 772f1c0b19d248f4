"""app.py on the command line: missing packages and invalid settings give one-sentence errors."""

import logging
import sys
from pathlib import Path

import pytest
from tiny_run import run_fixture  # noqa: F401

from metaseg.app import command


@pytest.fixture
def app(program, tmp_path):
    return lambda *overrides: program("app.py", *overrides, directory=tmp_path)


def test_missing_gradio_error_names_the_package(app, run, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    ended = app(f"checkpoint={run}")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "gradio: pip install 'metaseg-implicit[app]'" in ended.stderr


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("port=70000", "port"),
        ("max_mb=-1", "max_mb"),
        ("checkpoint=nowhere", "nowhere"),
    ],
)
def test_refuses_invalid_settings(app, run, monkeypatch, override, expected):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: True)
    ended = app(f"checkpoint={run}", override)
    assert ended.returncode == 1
    assert expected in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_missing_checkpoint_is_refused(app, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: True)
    ended = app("checkpoint=gone")
    assert ended.returncode == 1
    assert "gone" in ended.stderr


def test_sessions_need_no_web_library():
    text = Path(sys.modules["metaseg.app.session"].__file__).parent
    users = [path.name for path in text.glob("*.py") if "import gradio" in path.read_text(encoding="utf-8")]
    assert users == ["page.py"]


def test_a_picture_removed_while_it_is_fetched_is_no_error_of_the_log():
    def record(error):
        return logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "", None, (type(error), error, None))

    assert not command._but_for_removed_files(record(RuntimeError("File at path tile.jpg does not exist.")))
    assert command._but_for_removed_files(record(RuntimeError("else")))
    assert command._but_for_removed_files(logging.LogRecord("uvicorn.error", logging.INFO, "", 0, "", None, None))
