"""What is written is what was read; a fault is told by file and key."""

import copy
import json
import math

import pytest

from metaseg.errors import MetasegError
from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import Interval, Result, plain, read

WHOLE = {
    "version": 1,
    "targets": {
        "isic": {
            "dsc": {"mean": 0.6, "low": None, "high": 0.7, "level": 0.95},
            "dsc_before": {"mean": 0.2, "low": 0.1, "high": 0.3, "level": 0.95},
            "dsc_inner": {"mean": 0.5, "low": 0.4, "high": 0.6, "level": 0.95},
            "pooled_dsc": 0.61,
            "iou": 0.5,
            "iou_before": 0.1,
            "images": 12,
            "draws": 2,
            "seconds": {"adapting": 1.5, "image": 0.01},
            "curve": {"steps": [0, 5], "dsc": [0.2, None], "low": [0.1, None], "high": [0.3, None]},
            "trivial": {"all_foreground": 0.3, "otsu": None},
        }
    },
    "scratch": {
        "isic": {
            "mean": 0.4,
            "low": 0.3,
            "high": 0.5,
            "level": 0.95,
            "curve": {"steps": [], "dsc": [], "low": [], "high": []},
        }
    },
    "wall_seconds": 12.5,
    "peak_memory_mib": {"process": 1000.0, "largest_child": 0.0},
    "commit": None,
    "dirty": None,
    "versions": {"python": "3.11.7"},
    "hardware": {"cpu": "a CPU", "cores": 2, "gpus": [{"name": "a GPU", "memory_mib": 1024, "capability": "9.0"}]},
    "data": {"isic": {"images": 12, "groups": 12, "key": "abc"}},
    "settings": {"learner": {"name": "imaml"}, "shots": 5, "seed": 0, "data": {"size": 64}},
    "compute": {"outer_steps": 10, "operations": 1e12, "passes": None, "seconds": 3.5},
    "lambda": {"decoder": 2.0, "head": 40.0},
    "start": "model",
    "weights": {
        "name": "VGG16",
        "source": "vgg16.pth",
        "sha256": "7e8d20f2",
        "trained_on": "ImageNet",
        "licence": "MIT",
        "mean": [0.5, 0.5, 0.5],
        "missing": ["head.weight"],
    },
}
"""All that this version writes, in its order; weights and curves shortened."""


def changed(path, value):
    """`WHOLE` with another value, or without it where that is ...; `path` with slashes."""
    result = copy.deepcopy(WHOLE)
    *groups, key = path.split("/")
    place = result
    for group in groups:
        place = place[group]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return result


@pytest.mark.parametrize(
    "changes",
    [
        {"version": list(range(9999))},
        {"settings": {"learner": {"name": "a", "network": 1}}},
        {"settings": {"learner": {"name": "a"}, "shots": 1, "seed": 0, "pair": "x"}},
        {"settings": {"learner": {"name": "a", "adapt": "x"}, "shots": 1, "seed": 0}},
        {"settings": {"learner": {"name": "a", "adapt": {"steps": "many"}}, "shots": 1, "seed": 0}},
    ],
)
def test_a_hostile_result_is_refused_in_a_short_sentence(tmp_path, changes):
    settings = {"learner": {"name": "a"}, "shots": 1, "seed": 0, "model": None}
    (tmp_path / "result.json").write_text(json.dumps({"version": 1, "targets": {}, "settings": settings} | changes))
    with pytest.raises(MetasegError, match=r"result\.json") as caught:
        read(tmp_path / "result.json")
    assert len(str(caught.value)) < 500


def test_all_that_is_written_is_read_back(tmp_path):
    run = RunDirectory(tmp_path)
    result = Result.model_validate(WHOLE)
    run.write_result(result)
    assert run.read_result() == result
    assert result.strongest == [("head", 40.0), ("decoder", 2.0)]
    text = run.result.read_text(encoding="utf-8")
    assert text == json.dumps(WHOLE, indent=2) + "\n"  # order and all


def test_non_finite_numbers_become_null(tmp_path):
    assert Interval(mean=math.nan, low=math.inf, high=0.5) == Interval(mean=None, low=None, high=0.5)
    result = Result.model_validate(changed("wall_seconds", math.nan))
    assert result.wall_seconds is None
    RunDirectory(tmp_path).write_result(result)
    assert json.loads((tmp_path / "result.json").read_text())["wall_seconds"] is None
    assert read(tmp_path / "result.json") == result


def test_unset_fields_are_not_written():
    short = {"version": 1, "targets": {"isic": {"dsc": {"mean": 0.5}}}, "settings": WHOLE["settings"]}
    result = Result.model_validate(short)
    assert plain(result) == short
    scores = result.targets["isic"]
    assert (scores.dsc_before, scores.iou, scores.curve.steps, scores.trivial) == (None, None, [], {})
    assert (result.commit, result.weights, result.hardware.gpus, result.strongest) == (None, None, [], [])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (changed("settings/learner/name", ...), r"settings\.learner\.name is missing"),
        (changed("settings/learner", "imaml"), r"settings\.learner should be an object, found 'imaml'"),
        (changed("settings/shots", "5"), r"settings\.shots should be a valid integer, found '5'"),
        (changed("settings/seed", ...), r"settings\.seed is missing"),
        (changed("settings", ...), "settings is missing"),
        (changed("targets", []), r"targets should be an object, found \[\]"),
        (changed("targets/isic", [1]), r"targets\.isic should be an object, found \[1\]"),
        (changed("targets/isic/dsc", ...), r"targets\.isic\.dsc is missing"),
        (changed("targets/isic/dsc/mean", 63.4), r"targets\.isic\.dsc\.mean .*less than or equal to 1, found 63\.4"),
        (changed("targets/isic/trivial/otsu", "x"), r"targets\.isic\.trivial\.otsu .*number, found 'x'"),
        (changed("targets/isic/curve/dsc", [0.5]), r"targets\.isic\.curve .*same length, not \[2, 1, 2, 2\]"),
        (changed("version", 2), "version 1, found 2"),
        ([1], r"it should be an object, found \[1\]"),
    ],
)
def test_a_fault_is_one_sentence_with_file_and_key(tmp_path, found, words):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(found))
    with pytest.raises(MetasegError, match=rf"result\.json.*{words}") as told:
        read(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("content", "words"), [(None, "found none"), ("{", "cannot be read")], ids=str)
def test_missing_files_and_files_without_json_are_reported(tmp_path, content, words):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(MetasegError, match=words):
        read(tmp_path / "result.json")
