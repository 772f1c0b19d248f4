"""`python -m benchmarks variants`, its arithmetic and its classification."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import training_hours
from benchmarks import variants as variants_module
from benchmarks.__main__ import main
from benchmarks.convolutions import classify
from benchmarks.methods.variants import VARIANTS, Variant
from benchmarks.setting import Setting
from benchmarks.variants import compare, findings, measure, variants

SETTING = Setting(features=2, size=32, shots=2, inner_steps=1, cg_steps=1)
TINY = ["--features", "2", "--size", "32", "--shots", "2", "--inner-steps", "1", "--cg-steps", "1", "--threads", "1"]


pytestmark = pytest.mark.usefixtures("kept_threads")


@pytest.mark.long
@pytest.mark.slow
def test_command_writes_table_and_numbers(tmp_path):
    main(["variants", *TINY, "--repeats", "2", "--no-compile", "--out", str(tmp_path)])
    content = json.loads((tmp_path / "variants_cpu.json").read_text())
    table = (tmp_path / "variants_cpu.md").read_text()
    found = content["numbers"]["2 shots"]
    assert list(found["variants"]) == [name for name in VARIANTS if name != "compiled"]
    assert all(row["title"] in table for row in found["variants"].values())
    assert found["variants"]["tf32"]["missing"] == found["variants"]["tf32_inner"]["missing"] == "needs a GPU"
    base, layout = found["variants"]["float32"], found["variants"]["channels_last"]
    assert base["ratio"] == 1
    assert base["relative"] == 0
    assert len(layout["ratios"]) == 2
    assert layout["relative"] < 1e-2
    assert found["variants"]["bfloat16"]["relative"] > layout["relative"]
    assert 0 < found["shares"]["convolution"] < 1
    assert "26 distinct training runs (14 of iMAML and 12 of MAML" in table
    assert "not spent in convolutions" in table


@pytest.mark.slow  # compiling takes a minute or more
def test_compiling_is_weighed_up():
    numbers = measure(SETTING, ["float32", "compiled"], 2)
    cost = numbers["variants"]["compiled"]
    assert "missing" not in cost
    assert cost["relative"] < 1e-2
    assert cost["compile_seconds"] > max(cost["seconds"])
    if cost["saved_seconds"] > 0:
        assert cost["break_even_evaluations"] == pytest.approx(cost["compile_seconds"] / cost["saved_seconds"])
    else:
        assert cost["break_even_tasks"] is None


def test_the_paper_preset_is_one_report(monkeypatch):
    asked = []

    def measured(setting, names, rounds):
        asked.append((setting.features, setting.size, setting.shots, len(names)))
        times = {"seconds": [1.0 * setting.shots], "ratio": 1.0, "spread": (1.0, 1.0), "title": "base"}
        row = {"cosine": 1.0, "relative": 0.0, "norm_ratio": 1.0, "peak_mib": 10.0, "products": 1, "residual": 0.01}
        return {
            "variants": dict.fromkeys(names, times | row),
            "maml": {"seconds": [2.0 * setting.shots], "checkpoint": True},
            "shares": None,
        }

    monkeypatch.setattr(variants_module, "measure", measured)
    report = variants(SETTING, 1, compiled=False, paper=True)
    assert asked == [(32, 256, 5, 7), (32, 256, 20, 7), (32, 256, 10, 1)]
    assert [row[1] for row in report.rows] == ["5"] * 7 + ["20"] * 7
    assert "MAML 10.000 (5 shots), 20.000 (10 shots), 40.000 (20 shots)" in " ".join(report.notes)
    assert "scaled" not in report.notes[-1]


@pytest.mark.parametrize(
    ("evaluations", "sentence"),
    [
        (
            60.0,
            "saves 1.00 ms of the 10.00 ms of an inner evaluation: it pays off after 60 evaluations, 12 tasks with 5",
        ),
        (None, "it never pays off."),
    ],
)
def test_the_break_even_is_said(evaluations, sentence):
    cost = {"compile_seconds": 0.06, "saved_seconds": 1e-3, "evaluation_seconds": 1e-2}
    cost |= {"break_even_evaluations": evaluations, "break_even_tasks": evaluations and evaluations / 5}
    found = {"variants": {"compiled": cost}, "maml": {"checkpoint": False}, "shares": None}
    assert sentence in " ".join(findings(Setting(inner_steps=5), found))


@pytest.mark.long
@pytest.mark.slow
def test_a_variant_that_fails_keeps_its_row(monkeypatch):
    monkeypatch.setitem(VARIANTS, "bfloat16", Variant("broken", "float64"))
    found = measure(SETTING, ["float32", "bfloat16"], 1)["variants"]
    assert found["bfloat16"]["missing"].startswith("failed: MetasegError: learner.inner.precision must be one of")
    assert len(found["float32"]["seconds"]) == 1


def test_a_base_that_fails_ends_in_words(monkeypatch):
    monkeypatch.setitem(VARIANTS, "float32", Variant("broken", "float64"))
    monkeypatch.setattr(variants_module, "VARIANTS", {name: VARIANTS[name] for name in ("float32", "channels_last")})
    report = variants(SETTING, 1)
    assert report.rows[0][-1].startswith("failed:")
    assert report.rows[1][-1] == "the base cannot be run"
    assert report.notes[-1].startswith("Hours of training: unknown")


def test_tf32_is_refused_for_the_base(capsys):
    with pytest.raises(SystemExit):
        main(["variants", *TINY, "--tf32"])
    assert "--tf32" in capsys.readouterr().err


def test_compare():
    base = torch.tensor([3.0, 4.0])
    assert compare(base, base) == pytest.approx({"cosine": 1, "relative": 0, "norm_ratio": 1})
    assert compare(-2 * base, base) == pytest.approx({"cosine": -1, "relative": 3, "norm_ratio": 2})


def event(name, parent=None, own=0.0, kernels=()):
    launched = [SimpleNamespace(duration=duration) for duration in kernels]
    return SimpleNamespace(name=name, cpu_parent=parent, self_cpu_time_total=own, kernels=launched)


def test_events_are_classified_by_what_they_stand_within():
    node = event("ConvolutionBackward0", own=1.0)
    backward = event("aten::convolution_backward", node, 2.0, (30.0, 20.0))
    events = [
        node,
        backward,
        event("aten::copy_", backward, 3.0, (10.0,)),
        event("aten::cudnn_convolution", None, 1.0, (20.0,)),
        event("aten::bmm", None, 1.0, (5.0,)),
        event("aten::_convert_indices_from_csr_to_coo", None, 1.0, (5.0,)),
        event("aten::add", None, 1.0, (10.0,)),
    ]
    assert classify(events, "cuda") == pytest.approx(
        {"convolution": 0.8, "matrix": 0.05, "other": 0.15, "seconds": 100e-6}
    )
    assert classify(events, "cpu")["convolution"] == pytest.approx(0.6)
    assert classify([node], "cuda") is None


def test_hours_for_all_tables():
    measured = {"imaml": {5: 1.0, 20: 4.0}, "maml": {5: 2.0, 20: 8.0}}
    assert training_hours.hours(1.0) == pytest.approx(5000 / 3600)
    assert [training_hours.count(name) for name in ("imaml", "maml", None)] == [14, 12, 26]
    assert training_hours.of_shots(measured["imaml"], 10) == pytest.approx(2.0)
    found = training_hours.all_tables(measured)
    # Four cells of 7 units each and learner (5, 10 and 20 shots: 1, 2 and 4), and two short runs of table 7.
    assert found[1] == pytest.approx((4 * 7 * (1 + 2) * 5000 + 2 * 2000) / 3600)
    assert found[1] / 4 <= found[4] < 1.2 * found[1] / 4
    assert found[8] >= 8.0 * 5000 / 3600


@pytest.mark.gpu
def test_variants_on_a_gpu():
    found = measure(Setting(features=8, size=64, shots=4, device="cuda"), [n for n in VARIANTS if n != "compiled"], 2)
    for name in ("channels_last", "float16"):
        assert found["variants"][name]["cosine"] > 0.9
        assert found["variants"][name]["peak_mib"] > 0
    assert found["shares"]["seconds"] > 0
