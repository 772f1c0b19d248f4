"""Figures of a report, read back from what was drawn."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from run_directories import write_run

from metaseg.plots.figures import look_of
from metaseg.reporting import comparisons
from metaseg.reporting.runs import read_runs
from metaseg.runs.result import Curve


@pytest.fixture
def drawn(monkeypatch):
    kept = []
    save = comparisons.save
    monkeypatch.setattr(comparisons, "save", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def test_curves_of_seeds_are_averaged_at_their_common_steps():
    curves = [
        Curve(steps=[0, 5, 10], dsc=[0.2, None, 0.4], low=[0.1, None, 0.3], high=[0.3, None, 0.5]),
        Curve(steps=[0, 5, 10, 20], dsc=[0.4, 0.5, 0.6, 0.7], low=[0] * 4, high=[1] * 4),
    ]
    curve = comparisons.mean_curve(curves)
    assert curve.steps == [0, 10]
    assert curve.dsc == pytest.approx([0.3, 0.5])
    assert curve.low == []
    assert comparisons.mean_curve(curves[:1]).low == [0.1, 0.3]
    assert comparisons.mean_curve([]) is None


def test_learning_curves_of_learners_and_shots_in_one_figure(tmp_path, drawn):
    for learner in ("imaml", "maml"):
        for shots in (5, 10):
            write_run(tmp_path / f"{learner}{shots}", learner, shots, pictures=True)
    runs = read_runs(tmp_path / "").runs
    groups = [(run.learner, run.settings["shots"], [run]) for run in runs]
    looks = {"imaml": look_of(0), "maml": look_of(1)}
    assert comparisons.epoch_curves(groups, tmp_path / "a.png", looks) is not None
    assert len(drawn[0].axes) == 4
    lines = {line.get_label(): line for line in drawn[0].axes[0].get_lines()}
    assert set(lines) == {"imaml, 5 shots", "imaml, 10 shots", "maml, 5 shots", "maml, 10 shots"}
    assert lines["imaml, 5 shots"].get_color() == lines["imaml, 10 shots"].get_color()
    assert lines["imaml, 5 shots"].get_linestyle() == lines["maml, 5 shots"].get_linestyle()
    # Five steps an epoch fall by 0.02 each from 0.81: their mean is 0.77, 0.67, ...
    np.testing.assert_allclose(lines["imaml, 5 shots"].get_ydata(), [0.77, 0.67, 0.57, 0.47])
    assert list(lines["imaml, 5 shots"].get_xdata()) == [1, 2, 3, 4]


def test_no_figure_without_logged_values(tmp_path):
    write_run(tmp_path / "a")
    runs = read_runs(tmp_path).runs
    assert comparisons.epoch_curves([("iMAML", 5, runs)], tmp_path / "a.png", {"iMAML": look_of(0)}) is None
    assert not (tmp_path / "a.png").exists()


def test_violins_show_median_and_quartiles_and_take_equal_values(tmp_path, drawn):
    series = {"spread": np.linspace(0, 1, 5), "equal": np.full(4, 0.5)}
    comparisons.violins(series, tmp_path / "a.png", "", {"spread": look_of(0), "equal": look_of(1)})
    (axes,) = drawn[0].axes
    lines = [(list(line.get_xdata()), line.get_ydata()[0]) for line in axes.get_lines()]
    assert ([25, 75], 1) in lines
    assert ([50], 1) in lines
    assert ([50], 0) in lines
    assert [label.get_text() for label in axes.get_yticklabels()] == ["equal", "spread"]


def test_embedded_pictures_are_small_and_open(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (600, 1200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    for photograph, kind in ((True, "JPEG"), (False, "PNG")):
        head, _, body = comparisons.embedded(tmp_path / "a.png", 300, photograph).partition(",")
        assert head == f"data:image/{kind.lower()};base64"
        with Image.open(io.BytesIO(base64.b64decode(body))) as picture:
            assert (picture.format, picture.size) == (kind, (300, 150))
