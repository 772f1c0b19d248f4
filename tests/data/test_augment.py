"""Random changes of images and their masks, and random crops of them."""

import numpy as np
import pytest

from metaseg.data.augment import augment, cropped, recolour
from metaseg.meta.losses import UNMARKED


def marked(count=12, side=32):
    """Images that are their own masks: white where the mask is 1; without symmetry."""
    masks = np.zeros((count, side, side), np.uint8)
    masks[:, 3:14, 5:20], masks[:, 22:, 24:] = 1, UNMARKED
    return np.where(masks[..., None] == 1, np.uint8(255), np.uint8(0)).repeat(3, -1), masks


@pytest.mark.parametrize(("name", "alike"), [("flips", 1.0), ("standard", 0.97), ("coupled", 0.97)])
def test_a_mask_moves_with_its_image_and_keeps_its_values(name, alike):
    images, masks = marked()
    moved, of_masks = augment(name, images, masks, (1, 2))
    assert set(np.unique(of_masks)) == {0, 1, UNMARKED}
    assert ((moved[..., 1] > 120) == (of_masks == 1)).mean() >= alike
    assert not np.array_equal(of_masks, masks)


def test_flips_and_quarter_turns_give_all_eight_orientations():
    mask = np.arange(16, dtype=np.uint8).reshape(1, 4, 4).repeat(100, 0)
    _, found = augment("flips", mask[..., None].repeat(3, -1), mask, (1, 2))
    assert len({one.tobytes() for one in found}) == 8


@pytest.mark.parametrize(("name", "combinations"), [("standard", 12), ("coupled", 2)])
def test_changes_of_an_image_are_drawn_apart_unless_they_are_coupled(name, combinations):
    """Mirrored across, mirrored down, moved, recoloured: each by itself. Oblong images are not turned."""
    side = np.zeros((300, 32, 48), np.uint8)
    side[:, 2:9, 3:20] = 1
    grey = np.full((300, 32, 48, 3), 100, np.uint8)
    grey[side == 1] = (60, 120, 180)
    images, masks = augment(name, grey, side, (1, 2))
    rows, columns = (masks.any(axis) for axis in (2, 1))
    down = rows[:, 16:].sum(1) > rows[:, :16].sum(1)
    across = columns[:, 24:].sum(1) > columns[:, :24].sum(1)
    moved = np.array([mask.sum() != 7 * 17 for mask in masks])
    recoloured = np.array([not np.isin(image, (60, 100, 120, 180)).all() for image in images])
    assert len({*zip(down.tolist(), across.tolist(), moved.tolist(), recoloured.tolist(), strict=True)}) >= combinations
    assert ((down == across).all()) == (name == "coupled")


def test_each_image_is_augmented_by_its_position_alone():
    images, masks = marked(40)
    whole, rows = augment("standard", images, masks, (1, 2)), np.array([7, 2, 11])
    assert len({image.tobytes() for image in whole[0]}) >= 8
    for part, everything in zip(augment("standard", images[rows], masks[rows], (1, 2), rows), whole, strict=True):
        assert np.array_equal(part, everything[rows])


def test_crops_match_in_image_and_mask_and_depend_only_on_the_position():
    masks = np.zeros((400, 40, 30), np.uint8)
    masks[:, 2, 27] = 1
    images = np.random.default_rng(0).integers(0, 255, (400, 40, 30, 3), dtype=np.uint8)
    images[masks == 1] = 255
    crops, of_masks = cropped(images, masks, 8, (1, 2), range(400))
    assert crops.shape == (400, 8, 8, 3)
    assert np.array_equal((crops == 255).all(-1), of_masks == 1)
    # Half of the crops are centred on the foreground, and few of the others hold it.
    assert 0.45 < of_masks.any((1, 2)).mean() < 0.6
    again, _ = cropped(images[10:20], masks[10:20], 8, (1, 2), range(10, 20))
    assert np.array_equal(again, crops[10:20])
    elsewhere, _ = cropped(images[10:20], masks[10:20], 8, (1, 3), range(10, 20))
    assert not np.array_equal(elsewhere, again)
    whole, _ = cropped(images[:, :30], masks[:, :30], 30, (1, 2), range(400))
    assert np.array_equal(whole, images[:, :30])


def test_crops_reach_every_edge():
    images = np.zeros((400, 9, 9, 3), np.uint8)
    images[:, 0, 0], images[:, 8, 8] = 1, 2
    crops, _ = cropped(images, images[..., 0] * 0, 8, (1, 2), range(400))
    for corner in (1, 2):
        assert 0.18 < (crops == corner).any((1, 2, 3)).mean() < 0.32


def test_crops_of_the_foreground_are_centred_on_it():
    masks = np.zeros((400, 40, 30), np.uint8)
    masks[:, 20, 15] = 1
    _, crops = cropped(masks[..., None].repeat(3, -1), masks, 8, (1, 2), range(400))
    assert 0.45 < (crops[:, 4, 4] == 1).mean() < 0.55


def test_recolouring_exchanges_the_channels_and_inverts_half_of_the_tasks():
    ramp = np.zeros((1, 256, 1, 3), np.uint8)
    ramp[0, :, 0, 1] = np.arange(256)
    found = [recolour([ramp], 1.0, (seed,))[0][0, :, 0].astype(int) for seed in range(60)]
    assert {int(np.ptp(one, axis=0).argmax()) for one in found} == {0, 1, 2}
    assert 0.3 < np.mean([one[0].sum() > one[-1].sum() for one in found]) < 0.7
