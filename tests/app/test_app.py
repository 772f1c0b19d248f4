"""app.py on the command line: missing packages and invalid settings give one-sentence errors."""

import importlib
import logging
import sys
from unittest import mock

import pytest
from tiny_run import run_fixture  # noqa: F401

import metaseg.app
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


def test_sessions_need_no_web_library(monkeypatch):
    importlib.import_module("metaseg.app.session")  # and all else that it imports, which stays
    monkeypatch.setattr(metaseg, "app", metaseg.app)  # is this one again afterwards
    with mock.patch.dict(sys.modules, {"gradio": None}):
        for name in [name for name in sys.modules if f"{name}.".startswith("metaseg.app.")]:
            del sys.modules[name]
        importlib.import_module("metaseg.app.session")


def test_a_picture_removed_while_it_is_fetched_is_no_error_of_the_log():
    def record(error):
        return logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "", None, (type(error), error, None))

    assert not command._but_for_removed_files(record(RuntimeError("File at path tile.jpg does not exist.")))
    assert command._but_for_removed_files(record(RuntimeError("else")))
    assert command._but_for_removed_files(logging.LogRecord("uvicorn.error", logging.INFO, "", 0, "", None, None))
