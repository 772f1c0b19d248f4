"""What a Python user may pass, and what is refused with the remedy."""

import numpy as np
import pytest
from PIL import Image

import metaseg
from metaseg.adapting.arguments import at_least, several
from metaseg.adapting.arrays import rgb
from metaseg.errors import MetasegError


def test_arrays_and_pillow_images_are_taken():
    picture = Image.fromarray(np.full((4, 6, 3), 7, np.uint8))
    arrays = several([picture, np.zeros((3, 3))], "images")
    assert [one.shape for one in arrays] == [(4, 6, 3), (3, 3)]
    assert [one.shape for one in several(np.zeros((5, 4, 6, 3)), "images")] == [(4, 6, 3)] * 5
    assert [one.shape for one in several(np.zeros((5, 4, 6), bool), "masks")] == [(4, 6)] * 5


def test_a_palette_is_colours_in_an_image_and_labels_in_a_mask():
    painted = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    painted.putpalette([0, 0, 0, 200, 10, 10])
    assert several([painted], "images")[0].tolist() == [[[0, 0, 0], [200, 10, 10]]]
    assert several([painted], "masks")[0].tolist() == [[0, 1]]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LA", "PA", "RGBA", "HSV", "LAB"])
def test_pillow_images_of_any_mode_become_colours(mode):
    colour = (180, 180, 180) if mode in ("LA", "PA") else (200, 120, 40)
    picture = Image.new("RGB", (6, 4), colour).convert("L" if mode in ("LA", "PA") else "RGB").convert(mode)
    (found,) = several([picture], "images")
    assert np.abs(rgb(found, "a").astype(int) - colour).max() <= 3


def test_a_stack_of_grey_images_is_refused_with_what_works():
    stack = np.zeros((5, 4, 6))
    with pytest.raises(MetasegError, match=r"list\(images\)"):
        several(stack, "images")
    assert len(several(list(stack), "images")) == 5
    with pytest.raises(MetasegError, match=r"\[mask\]"):
        several(stack[0], "masks")


@pytest.mark.parametrize("given", [np.zeros((4, 6, 3)), np.zeros((4, 6)), Image.new("L", (4, 6)), "a.png", None, 3])
def test_a_single_image_is_refused(given):
    with pytest.raises(MetasegError, match="list of images"):
        several(given, "images")


def test_file_names_are_not_images():
    with pytest.raises(MetasegError, match="read the files"):
        several(["a.png"], "images")


@pytest.mark.parametrize("value", [-1, 1.5, "3", True])
def test_numbers_are_checked(value):
    at_least(0, steps=None, seed=0)
    with pytest.raises(MetasegError, match="seed"):
        at_least(0, seed=value)


def test_segmenters_explain_why_a_single_array_is_refused(trained, lesions):
    segmenter = metaseg.load(trained).adapt(*lesions, steps=1, folds=0)
    with pytest.raises(MetasegError, match=r"\[image\]"):
        segmenter.segment(lesions[0][0])
    with pytest.raises(MetasegError, match="batch"):
        segmenter.segment(lesions[0], batch=0)


def test_the_module_lists_what_it_offers():
    assert {"load", "load_segmenter", "save"} <= set(dir(metaseg))


def test_an_image_that_is_annotated_twice_is_refused(trained, lesions):
    with pytest.raises(MetasegError, match="found image 0 and image 1 alike"):
        metaseg.load(trained).adapt(*([several[0]] * 2 for several in lesions), steps=0)
