"""The benchmark of the data package runs and gives numbers; how good they are is no test's business."""

import json

import pytest

from benchmarks import episodes


@pytest.mark.long
def test_the_benchmark_of_episodes_measures_all_it_promises(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    small = {"size": 32, "shots": 2, "repeats": 1, "features": 2, "step": 0.01, "steps": 3, "images": 6}
    options = [f"--{name}={value}" for name, value in small.items()]
    result = episodes.main([*options, "--workers", "0", "1", "--json", str(tmp_path / "numbers.json")])
    assert json.loads((tmp_path / "numbers.json").read_text()) == result
    assert [one["images"] for one in result["episodes"]] == [4, 4, 8, 8]
    assert all(one["episode_ms"] > 0 for one in result["episodes"])
    assert result["shares"][0]["share_none_%"] > 0
    assert [one["workers"] for one in result["waiting"]] == [0, 1, 0, 1]
    assert all(0 <= one["waiting_%"] <= 100 for one in result["waiting"])
    assert result["preparing"][0]["speedup"] == 1
    shown = capsys.readouterr().out
    for title in ("An episode at 32×32", "Share of the minimal time", "Waiting time", "Decoding, checking"):
        assert title in shown
    assert not (tmp_path / "home").exists()
