import numpy as np
import pytest
from PIL import Image

from metaseg.errors import MetasegError
from metaseg.plots.overlays import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    OverlayRow,
    best_median_worst,
    overlay,
    overlay_sheet,
)


def marked(picture, colour):
    return np.all(picture == colour, axis=-1)


def square(size, start, stop):
    mask = np.zeros((size, size), np.uint8)
    mask[start:stop, start:stop] = 1
    return mask


def test_outlines_lie_on_the_boundary():
    image = np.full((256, 256, 3), 90, np.uint8)
    picture = overlay(image, square(256, 50, 100), square(256, 150, 200))
    assert picture.shape == image.shape
    truth = np.zeros((256, 256), bool)
    truth[48:102, 48:102] = True
    truth[52:98, 52:98] = False
    prediction = np.zeros((256, 256), bool)
    prediction[149:201, 149:201] = True
    prediction[151:199, 151:199] = False
    assert np.array_equal(marked(picture, TRUTH_COLOUR), truth)
    assert np.array_equal(marked(picture, PREDICTION_COLOUR), prediction)
    assert np.array_equal(picture[~(truth | prediction)], image[~(truth | prediction)])
    assert np.all(image == 90)


def test_both_outlines_are_seen_where_the_masks_agree():
    mask = square(256, 50, 100)
    picture = overlay(np.zeros((256, 256, 3), np.uint8), mask, mask)
    assert marked(picture, TRUTH_COLOUR).sum() > 100
    assert marked(picture, PREDICTION_COLOUR).sum() > 100


@pytest.mark.parametrize(
    ("size", "shape"),
    [((64, 64), (256, 256)), ((60, 100), (300, 500)), ((256, 300), (256, 300)), ((512, 512), (512, 512))],
)
def test_small_images_are_enlarged(size, shape):
    picture = overlay(np.zeros((*size, 3), np.uint8), np.ones(size), None)
    assert picture.shape == (*shape, 3)
    assert picture.dtype == np.uint8
    assert marked(picture, TRUTH_COLOUR)[0].all()  # a full mask is outlined along the image's edge
    assert not marked(picture, TRUTH_COLOUR)[10:-10, 10:-10].any()


def test_empty_masks_draw_nothing():
    image = np.random.default_rng(0).integers(0, 200, (256, 256, 3), np.uint8)
    assert np.array_equal(overlay(image, np.zeros((256, 256)), np.zeros((256, 256))), image)


def test_mask_of_another_size_is_refused():
    with pytest.raises(MetasegError, match=r"prediction should have the image's size \(64, 64\), found \(32, 32\)"):
        overlay(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64)), np.zeros((32, 32)))


def test_best_median_worst():
    assert best_median_worst([0.5, 0.9, float("nan"), 0.7, 0.1]) == {"best": 1, "median": 0, "worst": 2}
    assert best_median_worst([0.5]) == {"best": 0, "median": 0, "worst": 0}


def test_sheet_shows_image_and_both_predictions(tmp_path):
    image = np.full((64, 64, 3), 90, np.uint8)
    truth, wrong = square(64, 10, 30), square(64, 40, 60)
    rows = [OverlayRow(image, truth, wrong, truth, "best, Dice 100"), OverlayRow(image, truth, wrong, wrong, "worst")]
    path = overlay_sheet(rows, tmp_path / "figures" / "overlays.png", "isic")
    with Image.open(path) as file:
        sheet = np.asarray(file.convert("RGB")).astype(int)

    def near(part, colour):
        return (np.abs(part - np.array(colour)).max(axis=-1) < 40).sum()

    body = sheet[: int(0.9 * len(sheet))]  # without the legend
    first, before, after = np.array_split(body, 3, axis=1)
    assert near(first, TRUTH_COLOUR) == 0
    assert near(before, PREDICTION_COLOUR) > 200
    assert near(after, PREDICTION_COLOUR) > 200
    assert near(before, TRUTH_COLOUR) > 200
    assert near(sheet[int(0.9 * len(sheet)) :], TRUTH_COLOUR) > 20  # the legend


def test_sheet_without_predictions_before_has_two_columns(tmp_path):
    image, mask = np.zeros((64, 64, 3), np.uint8), square(64, 10, 30)
    wide = overlay_sheet([OverlayRow(image, mask, mask, mask, "")], tmp_path / "wide.png")
    narrow = overlay_sheet([OverlayRow(image, mask, None, mask, "")], tmp_path / "narrow.png")
    with Image.open(wide) as first, Image.open(narrow) as second:
        assert first.width / second.width == pytest.approx(1.5, abs=0.01)
    with pytest.raises(MetasegError, match="at least one image"):
        overlay_sheet([], tmp_path / "none.png")
