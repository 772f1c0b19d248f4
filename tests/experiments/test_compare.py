"""experiments/compare.py as its users run it."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, environment


def write_run(path, learner, dsc, generator):
    path.mkdir()
    curve = {"steps": [0, 10], "dsc": [0.2, dsc], "low": [0.1, dsc - 0.1], "high": [0.3, dsc + 0.1]}
    score = {"mean": dsc, "low": dsc - 0.1, "high": dsc + 0.1, "level": 0.95}
    target = {
        "dsc": score,
        "dsc_before": score,
        "pooled_dsc": dsc,
        "iou": dsc,
        "images": 30,
        "draws": 3,
        "curve": curve,
    }
    target["trivial"] = {"otsu": 0.4}
    settings = {"learner": {"name": learner, "adapt": {"steps": 10}}, "shots": 5}
    (path / "result.json").write_text(
        json.dumps({"settings": settings, "targets": {"isic": target}, "wall_seconds": 60})
    )
    draws, images = np.indices((3, 30)).reshape(2, -1)
    rows = pd.DataFrame({"dataset": "isic", "image": images, "draw": draws})
    rows["dsc_after"] = dsc + generator.normal(0, 0.01, len(rows))
    rows.to_csv(path / "per_image.csv", index=False)
    return path


def compare(*arguments):
    command = [sys.executable, str(ROOT / "experiments" / "compare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def test_runs_stand_beside_each_other_with_their_paired_difference(tmp_path):
    generator = np.random.default_rng(0)
    runs = [write_run(tmp_path / name, name, dsc, generator) for name, dsc in (("imaml", 0.7), ("maml", 0.6))]
    finished = compare("isic", tmp_path / "out", *runs)
    assert finished.returncode == 0, finished.stderr
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| imaml, 5 shots | 70.0 (60.0 to 80.0) |" in table
    (difference,) = [line for line in table.splitlines() if line.startswith("| imaml, 5 shots - maml, 5 shots")]
    assert float(difference.split("|")[2].split()[0]) == pytest.approx(10, abs=0.5)
    assert (tmp_path / "out" / "adaptation_isic.png").stat().st_size > 0


def test_a_run_that_is_not_finished_is_named(tmp_path):
    finished = compare("isic", tmp_path / "out", tmp_path / "nothing")
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: ")
    assert "nothing" in finished.stderr
