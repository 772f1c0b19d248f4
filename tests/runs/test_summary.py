import io

import pytest
from rich.console import Console

from metaseg.runs.directory import RunDirectory
from metaseg.runs.result import Result
from metaseg.runs.summary import print_summary

RESULT = {
    "version": 1,
    "settings": {"learner": {"name": "imaml"}, "shots": 5, "seed": 0},
    "targets": {
        "isic": {
            "dsc": {"mean": 0.6345, "low": 0.601, "high": 0.667, "level": 0.95},
            "dsc_before": {"mean": 0.2104, "low": 0.18, "high": 0.24, "level": 0.95},
            "images": 120,
            "draws": 5,
            "trivial": {"all_foreground": 0.311, "centred_disc": 0.53, "mean_support_mask": 0.538, "otsu": None},
        },
        "kvasir_capsule": {"dsc": {"mean": None, "low": None, "high": None}, "images": 35, "draws": 1},
    },
    "scratch": {"isic": {"mean": 0.59, "low": 0.55, "high": 0.62}, "kvasir_capsule": {"mean": 0.71}},
}


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / ("a-long-folder-name-" * 6) / "[x]").create()
    for path in (run.per_image, run.overlays("isic"), run.checkpoints / "last.ckpt"):
        path.write_text("")
    return run


def test_summary_reads_well_where_there_is_no_terminal(run):
    out = io.StringIO()
    print_summary(Result.model_validate(RESULT), run, Console(file=out, width=80, highlight=False))
    text = out.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    rows = {line.strip().split("  ")[0]: line.split()[-4:] for line in lines if line.strip()}
    assert rows["before adaptation"] == ["21.0", "18.0", "–", "24.0"]
    # Two targets: the later row wins in the dictionary, so the first target is looked up line by line.
    after = [line.split()[2:] for line in lines if line.strip().startswith("after adaptation")]
    assert after == [["63.4", "60.1", "–", "66.7"], ["–"]]
    scratch = [line.split()[6:] for line in lines if "from scratch" in line]
    assert scratch == [["59.0", "55.0", "–", "62.0"], ["71.0"]]
    assert any(line.split() == ["all", "foreground", "31.1"] for line in lines)
    assert not any("Otsu" in line for line in lines)
    assert "isic: 120 images, 5 draws" in text
    assert "kvasir_capsule: 35 images, 1 draw " in text
    tables = [line for line in lines if str(run.path) not in line]
    assert max(map(len, tables)) <= 80
    # Numbers of all tables end in one column.
    ends = {line.index(number) + len(number) for number in ("63.4", "31.1", "71.0") for line in lines if number in line}
    assert len(ends) == 1


def test_learned_strengths_and_the_inner_problem_have_their_place(run):
    out = io.StringIO()
    isic = RESULT["targets"]["isic"] | {"dsc_inner": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    learned = {"head": 0.25, "decoder.first": 12.345, "decoder.last": 1.0}
    result = RESULT | {"targets": {"isic": isic}, "lambda": learned}
    print_summary(Result.model_validate(result), run, Console(file=out, width=80, highlight=False))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["after", "the", "inner", "problem", "alone", "50.0", "40.0", "–", "60.0"] in lines
    places = [lines.index(row) for row in (["decoder.first", "12.3"], ["decoder.last", "1"], ["head", "0.25"])]
    assert places == sorted(places)


@pytest.mark.parametrize("named", ["last.ckpt", "best.ckpt"])
def test_paths_are_whole_and_only_those_that_exist(run, named):
    (run.checkpoints / named).touch()
    out = io.StringIO()
    print_summary(Result.model_validate(RESULT), run, Console(file=out, width=80, highlight=False))
    lines = out.getvalue().splitlines()
    assert f"checkpoint  {run.checkpoints / named}" in lines
    assert f"scores      {run.per_image}" in lines
    assert f"overlays    {run.overlays('isic')}" in lines
    assert not any("kvasir_capsule.png" in line for line in lines)
