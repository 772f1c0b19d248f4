import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from PIL import Image

from metaseg.errors import MetasegError
from metaseg.plots import figures
from metaseg.runs.result import Curve


@pytest.fixture
def drawn(monkeypatch):
    """Keep each figure that is saved, so that the numbers in it can be read back."""
    kept = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_learning_curves_average_training_over_the_epoch(tmp_path, drawn):
    pd.DataFrame(
        {
            "epoch": [0, 0, 0, 1, 1],
            "step": [0, 1, 1, 2, 3],
            "train/query_loss_after": [1.0, 2.0, None, 3.0, 5.0],
            "train/query_dice_after": [0.25, 0.75, None, 0.5, 0.5],
            "validation/query_loss_before": [None, None, 0.75, None, None],
            "validation/query_loss_after": [None, None, 0.5, None, None],
            "validation/dice_after": [None, None, 0.625, None, None],
            "train/cg_residual": [None] * 5,
        }
    ).to_csv(tmp_path / "metrics.csv", index=False)
    path = figures.learning_curves(tmp_path / "metrics.csv", tmp_path / "figures" / "curves.png")
    loss, dice = drawn[0].axes
    assert lines(loss) == {
        "training, after inner loop": ([1, 2], [1.5, 4.0]),
        "validation, before inner loop": ([1], [0.75]),
        "validation, after inner loop": ([1], [0.5]),
    }
    assert lines(dice) == {
        "training, after inner loop": ([1, 2], [50.0, 50.0]),
        "validation, after inner loop": ([1], [62.5]),
    }
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 400


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_no_epoch_is_a_fraction(tmp_path, drawn, epochs):
    table = tmp_path / "metrics.csv"
    pd.DataFrame({"epoch": range(epochs), "train/loss": 1.0}).to_csv(table, index=False)
    figures.learning_curves(table, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_panels_without_columns_are_left_out(tmp_path, drawn):
    table = tmp_path / "metrics.csv"
    table.write_text("step,train/loss\n0,2.0\n1,1.0\n")
    assert figures.learning_curves(table, tmp_path / "a.png") is not None
    (axes,) = drawn[0].axes
    assert lines(axes) == {"training": ([0, 1], [2.0, 1.0])}
    assert axes.get_xlabel() == "step"
    table.write_text("step,epoch,lr\n0,0,2.0\n")
    assert figures.learning_curves(table, tmp_path / "b.png") is None
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("content", [None, ""])
def test_missing_metrics_are_reported(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(MetasegError, match=r"metrics\.csv"):
        figures.learning_curves(tmp_path / "metrics.csv", tmp_path / "a.png")


def test_adaptation_curve_shows_steps_band_and_baselines(tmp_path, drawn):
    curve = Curve(
        steps=[0, 5, 200], dsc=[0.25, 0.5, 0.75], low=[0.125, 0.375, 0.625], high=[0.375, 0.625, float("nan")]
    )
    figures.adaptation_curve(
        {"trained": curve, "initial": Curve(steps=[0, 20], dsc=[0.0, 0.5])},
        tmp_path / "a.png",
        {"all foreground": 0.25, "Otsu": None},
    )
    (axes,) = drawn[0].axes
    assert lines(axes)["trained"] == ([0, 5, 200], [25, 50, 75])
    assert lines(axes)["all foreground"][1] == [25, 25]
    assert "Otsu" not in lines(axes)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "5", "20", "200"]  # those measured
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert {tuple(corner) for corner in corners} >= {(0, 12.5), (0, 37.5), (5, 37.5), (5, 62.5)}
    # Equal distances on the axis for equal ratios of 1 + steps.
    along = axes.transData.transform(np.array([[0.0, 50], [1.0, 50], [3.0, 50], [7.0, 50]]))[:, 0]
    assert np.allclose(np.diff(along), np.diff(along)[0])


def test_a_system_that_does_not_adapt_is_a_dashed_line_across(tmp_path, drawn):
    series = {"adapts": Curve(steps=[0, 20], dsc=[0.25, 0.5]), "prototypes": Curve(steps=[0], dsc=[0.75])}
    figures.adaptation_curve(series, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    (line,) = [line for line in axes.get_lines() if line.get_label() == "prototypes"]
    assert line.get_linestyle() == "--"
    assert set(line.get_ydata()) == {75}
    assert axes.get_xlim()[1] >= 20


def test_many_systems_are_told_apart_and_look_the_same_in_every_figure(tmp_path, drawn):
    looks = [figures.look_of(place) for place in range(14)]
    variants = [figures.look_of(0, variant) for variant in (1, 2)]
    assert len({(look["color"], look["marker"], look["markerfacecolor"]) for look in (*looks, *variants)}) == 16
    names = [f"system {place}" for place in range(14)]
    curve = Curve(steps=[0, 5], dsc=[0.25, 0.5])
    shared = dict(zip(names, looks, strict=True))
    figures.adaptation_curve(dict.fromkeys(names, curve), tmp_path / "a.png", looks=shared)
    figures.adaptation_curve({names[9]: curve}, tmp_path / "b.png", looks=shared)
    (first,), (second,) = (figure.axes for figure in drawn)
    one = next(line for line in first.get_lines() if line.get_label() == names[9])
    (other,) = second.get_lines()
    assert (one.get_color(), one.get_marker()) == (other.get_color(), other.get_marker())
    # So many entries stand below the axes, where they hide nothing.
    (legend,) = drawn[0].legends
    assert legend.get_window_extent().y1 < first.get_window_extent().y0


@pytest.mark.parametrize("letters", [20, 30, 31, 40, 45, 80])
def test_a_legend_is_never_cut_off(tmp_path, drawn, letters):
    curve = Curve(steps=[0, 10], dsc=[0.3, 0.5])
    figures.adaptation_curve({"a" * letters: curve, "b" * letters: curve}, tmp_path / "curve.png")
    (figure,) = drawn
    (legend,) = [*figure.legends, *filter(None, [figure.axes[0].get_legend()])]
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    plot = figure.axes[0].get_window_extent()
    assert min(box.x1, plot.x1) <= max(box.x0, plot.x0) or min(box.y1, plot.y1) <= max(box.y0, plot.y0)
