"""Random pieces of images and their masks."""

import numpy as np

from metaseg.data.augment import cropped


def test_pieces_are_of_both_alike_and_depend_on_the_position_alone():
    masks = np.zeros((400, 40, 30), np.uint8)
    masks[:, 2, 27] = 1
    images = np.random.default_rng(0).integers(0, 255, (400, 40, 30, 3), dtype=np.uint8)
    images[masks == 1] = 255
    pieces, of_masks = cropped(images, masks, 8, (1, 2), range(400))
    assert pieces.shape == (400, 8, 8, 3)
    assert np.array_equal((pieces == 255).all(-1), of_masks == 1)
    # Half of the pieces are centred on the foreground, and few of the others hold it.
    assert 0.45 < of_masks.any((1, 2)).mean() < 0.6
    again, _ = cropped(images[10:20], masks[10:20], 8, (1, 2), range(10, 20))
    assert np.array_equal(again, pieces[10:20])
    elsewhere, _ = cropped(images[10:20], masks[10:20], 8, (1, 3), range(10, 20))
    assert not np.array_equal(elsewhere, again)
    whole, _ = cropped(images[:, :30], masks[:, :30], 30, (1, 2), range(400))
    assert np.array_equal(whole, images[:, :30])
