"""Masks of every kind mean what they look like, whichever way they come in."""

import numpy as np
import pytest
from conftest import lesion
from PIL import Image

from metaseg.adapting.formats import read_mask
from metaseg.adapting.masks import Reading, decide, foregrounds, of_array, survey
from metaseg.errors import MetasegError

Y, X = np.mgrid[:60, :80]
DISC = (Y - 25) ** 2 + (X - 30) ** 2 < 15**2
CUP = (Y - 25) ** 2 + (X - 30) ** 2 < 7**2
OTHER = (Y > 44) & (X > 50) & (X < 70)
LABELS = (DISC.astype(int) + CUP + 3 * OTHER.astype(int)).astype(np.uint8)  # 0, 1, 2, 3
ANY = LABELS > 0


def read(*masks, label=None):
    found, reading = foregrounds([of_array(mask, f"mask {number}") for number, mask in enumerate(masks)], label)
    return found, reading


def saved(tmp_path, *images, suffix=".png", **options):
    """The files' masks, as the program reads them."""
    raws = []
    for number, image in enumerate(images):
        path = tmp_path / f"{number}{suffix}"
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
        raws.append(read_mask(path))
    return raws


def in_colours(colours, labels=LABELS):
    return np.array(colours, np.uint8)[labels]


def indexed(labels, colours, **options):
    image = Image.fromarray(labels, mode="L").convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette(np.ravel(colours).tolist(), **options)
    return image


@pytest.mark.parametrize("values", [(0, 1), (0, 2), (0, 255), (0, 100), (0, 65535)])
def test_two_values_are_background_and_foreground(values):
    (mask,), _ = read(np.where(DISC, values[1], values[0]))
    assert (mask == DISC).all()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((0, 1, 2, 3), np.uint8),
        ((0, 1, 2, 3), float),
        ((0, 85, 170, 255), np.uint8),
        ((0, 85, 170, 255), np.int64),
        ((0, 128, 255, 64), np.uint8),
        ((0, 1, 2, 255), np.uint8),
        ((0, 5, 900, 70), np.uint16),
        ((0, 5, 900, 70), float),
    ],
)
def test_all_labels_are_foreground_and_one_can_be_chosen(values, kind):
    labels = np.array(values)[LABELS].astype(kind)
    (mask,), reading = read(labels)
    assert (mask == ANY).all()
    assert reading.labels == sorted(values[1:])
    for number in (1, 2, 3):
        (chosen,), _ = read(labels, label=values[number])
        assert (chosen == (number == LABELS)).all()


def test_a_label_that_no_mask_has_is_refused_with_those_there_are():
    with pytest.raises(MetasegError, match=r"label=7.*1, 2, 3"):
        read(LABELS, label=7)


def test_the_rule_follows_from_all_masks_together():
    part = np.where(LABELS == 2, 2, 0)  # 0 and 2 alone
    (mask, other), reading = read(part, LABELS, label=1)
    assert not mask.any()
    assert (other == (LABELS == 1)).all()
    assert reading.labels == [1, 2, 3]
    # A mask that is blank but for a soft edge's rest is not one of two values.
    soft = np.asarray(Image.fromarray(DISC.astype(np.uint8) * 255).resize((40, 30), Image.Resampling.BILINEAR))
    (empty, _), _ = read(np.where(soft == 255, 0, soft), soft)
    assert empty.sum() < 0.1 * (soft > 127).sum() + (soft > 127).sum()


def test_thin_labels_are_labels():
    vessels = np.zeros((60, 80), np.uint8)
    vessels[10, 5:70] = vessels[20:50, 40] = 1
    vessels[30, 5:70] = vessels[5:55, 60] = 2
    (mask,), reading = read(vessels)
    assert reading.labels == [1, 2]
    assert (mask == (vessels > 0)).all()


def test_many_numbered_cells_are_labels():
    cells = np.zeros((200, 200), np.uint16)
    for number in range(80):
        row, column = divmod(number, 10)
        cells[row * 24 + 3 : row * 24 + 18, column * 20 + 2 : column * 20 + 16] = number + 1
    (mask,), reading = read(cells)
    assert (mask == (cells > 0)).all()
    assert len(reading.labels) == 80


@pytest.mark.parametrize("blur", ["jpeg", "smaller", "probabilities"])
def test_soft_edges_are_cut_at_half(tmp_path, blur):
    large = np.kron(DISC, np.ones((4, 4), bool))
    if blur == "jpeg":
        raws = saved(tmp_path, large.astype(np.uint8) * 255, suffix=".jpg", quality=60)
    else:
        pixels = np.asarray(Image.fromarray(large.astype(np.float32)).resize((100, 75), Image.Resampling.BICUBIC))
        pixels = np.clip(pixels, 0, 1)
        large = np.asarray(Image.fromarray(large).resize((100, 75), Image.Resampling.NEAREST))
        raws = [of_array(pixels if blur == "probabilities" else np.rint(pixels * 255).astype(np.uint8), "a")]
    (mask,), reading = foregrounds(raws)
    assert (mask != large).mean() < 0.01
    assert reading.labels == []
    with pytest.raises(MetasegError, match="label=1"):
        foregrounds(raws, label=1)


def test_indices_of_a_palette_are_labels(tmp_path):
    colours = [(0, 0, 0), (128, 0, 0), (0, 4, 0), (0, 0, 200)]
    (mask,), reading = foregrounds(saved(tmp_path, indexed(LABELS, colours)))
    assert (mask == ANY).all()
    assert reading.labels == [1, 2, 3]


def test_a_palette_in_which_black_is_not_index_0_is_read_by_colour(tmp_path):
    (mask,), _ = foregrounds(saved(tmp_path, indexed((~DISC).astype(np.uint8), [(255, 255, 255), (0, 0, 0)])))
    assert (mask == DISC).all()


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
def test_a_transparent_entry_of_a_palette_is_background_and_opaque_black_is_not(tmp_path, transparency):
    drawn = np.where(DISC, 0, 1).astype(np.uint8)
    drawn[:5] = 2
    image = indexed(drawn, [(0, 0, 0), (90, 90, 90), (200, 0, 0)])
    (mask,), _ = foregrounds(saved(tmp_path, image, transparency=transparency))
    assert (mask == (drawn != 1)).all()


def test_masks_with_palettes_of_their_own_are_read_by_colour(tmp_path):
    first = indexed(LABELS, [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)])
    second = indexed(np.array([0, 3, 1, 2], np.uint8)[LABELS], [(0, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 0)])
    masks, reading = foregrounds(saved(tmp_path, first, second), label=3)
    assert reading.labels == [1, 2, 3]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] == (LABELS == 1)).all()  # red is the last


@pytest.mark.parametrize(
    ("opacity", "colour", "below"),
    [
        (255, (255, 0, 0), 0),
        (128, (0, 60, 0), 255),
        (255, (0, 0, 0), 0),
        (40, (0, 0, 0), 255),
        (128, (255, 255, 255), 0),
        (40, (255, 255, 255), 255),
    ],
)
def test_colour_painted_over_transparency_is_the_mask(tmp_path, opacity, colour, below):
    layer = np.full((60, 80, 4), (below, below, below, 0), np.uint8)
    layer[DISC] = (*colour, opacity)
    empty = np.full((60, 80, 4), (below, below, below, 0), np.uint8)
    (mask, none), _ = foregrounds(saved(tmp_path, layer, empty))
    assert (mask == DISC).all()
    assert not none.any()


def test_several_colours_over_transparency_are_labels(tmp_path):
    layer = np.dstack([in_colours([(9, 9, 9), (255, 0, 0), (0, 200, 0), (0, 0, 90)]), np.where(ANY, 180, 0)])
    (mask,), reading = foregrounds(saved(tmp_path, layer.astype(np.uint8)))
    assert (mask == ANY).all()
    assert reading.labels == [1, 2, 3]


def test_a_piece_cut_out_of_the_photograph_is_the_mask(tmp_path):
    image, mask = lesion(0)
    (found,), _ = foregrounds(saved(tmp_path, np.dstack([image, mask.astype(np.uint8) * 255])))
    assert (found == mask).all()


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (40, 60, 80)])
def test_colours_are_labels(tmp_path, background):
    colours = [background, (255, 0, 0), (0, 200, 0), (0, 0, 255)]
    (mask,), reading = foregrounds(saved(tmp_path, in_colours(colours)))
    assert (mask == ANY).all()
    assert reading.labels == [1, 2, 3]
    (blue,), _ = foregrounds(saved(tmp_path, in_colours(colours)), label=1)
    assert (blue == (LABELS == 3)).all()


def test_colours_keep_their_labels_in_a_later_set(tmp_path):
    _, reading = foregrounds(saved(tmp_path, in_colours([(0, 0, 0), (255, 0, 0), (0, 200, 0), (0, 0, 255)])), label=2)
    assert (reading.label, reading.labels) == (2, [1, 2, 3])  # blue, green, red
    fewer = saved(tmp_path, in_colours([(0, 0, 0), (255, 0, 0), (0, 0, 255), (0, 0, 255)]))
    later = decide([survey(one) for one in fewer], 3, reading)
    assert (later.foreground(fewer[0]) == (LABELS == 1)).all()
    assert not decide([survey(one) for one in fewer], 2, reading).foreground(fewer[0]).any()  # green is not there
    unknown = saved(tmp_path, in_colours([(0, 0, 0), (9, 9, 99), (0, 0, 255), (0, 0, 255)]))
    assert decide([survey(one) for one in unknown], None, reading).labels == [1, 4]


def test_colours_keep_their_labels_if_only_these_are_known(tmp_path):
    red, green, blue, white = (255, 0, 0), (0, 200, 0), (0, 0, 255), (255, 255, 255)
    first = saved(tmp_path, in_colours([white, green, red, red]))
    like = Reading.of_colours(foregrounds(first, label=1)[1].colours)
    assert like.labels == [1, 2]  # green, red
    # Blue is new, and white the background still, of which there is less now.
    raws = saved(tmp_path, in_colours([blue, green, red, white]))
    (mask,), later = foregrounds(raws, label=1, like=like)
    assert np.array_equal(mask, LABELS == 1)
    assert later.after(like).colours == {0xFFFFFF: 0, 0x00C800: 1, 0xFF0000: 2, 0x0000FF: 3}
    # Of a palette, index 1 is red.
    raws = saved(tmp_path, indexed(LABELS, [white, red, green, green]))
    assert np.array_equal(foregrounds(raws, label=1, like=like)[0][0], LABELS > 1)
    # Neither is the background of masks that have labels alone.
    raws = saved(tmp_path, in_colours([red, green, green, green]))
    assert np.array_equal(foregrounds(raws, like=like)[0][0], np.ones(LABELS.shape))
    assert Reading.of_colours({}) is None


def test_soft_edges_have_no_label_of_an_earlier_set():
    soft = np.asarray(Image.fromarray(DISC.astype(np.float32)).resize((50, 37), Image.Resampling.BILINEAR))
    assert foregrounds([of_array(soft, "a")])[1].rules["grey"].labels is None
    with pytest.raises(MetasegError, match="label=1"):
        foregrounds([of_array(soft, "a")], label=1, like=Reading.of_colours({0: 0, 255: 1}))


def test_one_colour_and_grey_as_colours(tmp_path):
    red, grey = (
        in_colours([(0, 0, 0), (128, 0, 0)], DISC.astype(int)),
        in_colours([(0,) * 3, (7,) * 3], DISC.astype(int)),
    )
    for image in (red, grey):
        (mask,), _ = foregrounds(saved(tmp_path, image))
        assert (mask == DISC).all()
    (mask,), _ = foregrounds(saved(tmp_path, np.kron(red, np.ones((4, 4, 1), np.uint8)), suffix=".jpg", quality=70))
    assert (mask[2::4, 2::4] != DISC).mean() < 0.02


def photograph(kind):
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((128, 96), Image.Resampling.BICUBIC))
    noise = generator.integers(0, 16, smooth.shape, dtype=np.uint8)
    return {"smooth": smooth, "noise": smooth // 2 + noise, "dark": smooth // 8 + noise}[kind]


@pytest.mark.parametrize("kind", ["noise", "dark", "smooth"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("grey", [False, True])
def test_a_photograph_is_refused_by_its_name(tmp_path, kind, suffix, grey):
    image = photograph(kind)
    raws = saved(tmp_path, DISC.astype(np.uint8) * 255, image[..., 0] if grey else image, suffix=suffix)
    with pytest.raises(MetasegError, match=rf"photograph.*1\{suffix}"):
        foregrounds(raws)


def test_all_masks_empty_are_refused_and_some_are_not():
    with pytest.raises(MetasegError, match="2 empty masks"):
        read(np.zeros((9, 9)), np.zeros((9, 9), bool))
    (empty, full), _ = read(np.zeros((9, 9)), np.full((9, 9), 255))
    assert not empty.any()
    assert full.all()


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((4, 4, 2)),
        np.zeros((4, 4, 3)),
        np.full((4, 4), -1),
        np.full((4, 4), np.nan),
        np.array([["a"]]),
        np.zeros((0, 4)),
    ],
)
def test_arrays_that_are_not_masks_are_refused(mask):
    with pytest.raises(MetasegError, match="mask 0 must"):
        of_array(mask, "mask 0")


def test_the_reading_of_masks_is_described():
    sentence = read(LABELS)[1].sentence()
    assert "0, 1, 2, 3" in sentence
    assert "label=N" in sentence
    assert "label 2" in read(LABELS, label=2)[1].sentence()


def test_a_mask_unlike_those_the_rule_came_from_is_refused():
    reading = decide([survey(of_array(LABELS, "a"))])
    with pytest.raises(MetasegError, match="other values in b"):
        reading.foreground(of_array(LABELS * 7, "b"))


def test_formats_of_files_do_not_matter(tmp_path):
    for suffix in (".png", ".bmp", ".tif", ".gif"):
        (mask,), reading = foregrounds(saved(tmp_path, LABELS, suffix=suffix))
        assert (mask == ANY).all(), suffix
        assert reading.labels == [1, 2, 3]
    (mask,), _ = foregrounds(saved(tmp_path, DISC))  # of one bit
    assert (mask == DISC).all()


def test_a_mask_of_two_values_among_soft_ones_is_read_as_it_stands():
    large = np.kron(DISC, np.ones((4, 4), bool))
    soft = np.asarray(Image.fromarray(large.astype(np.uint8) * 255).resize((100, 75), Image.Resampling.BICUBIC))
    (_, mask), reading = read(soft, (soft > 127).astype(np.uint8))  # 0 and 1
    assert reading.labels == []
    assert (mask == (soft > 127)).all()


def test_a_palette_without_black_is_read_by_its_indices(tmp_path):
    raws = saved(tmp_path, indexed(LABELS, [(255, 255, 255), (255, 0, 0), (0, 200, 0), (0, 0, 255)]))
    (mask,), _ = foregrounds(raws, label=1)
    assert (mask == (LABELS == 1)).all()


def test_without_0_the_lowest_grey_value_is_the_background_however_little_there_is():
    (mask,), _ = read(np.where(OTHER, 1, 2))
    assert (mask == ~OTHER).all()


def test_a_float_mask_of_two_values_keeps_its_labels():
    (mask, _), reading = read(DISC.astype(float), LABELS.astype(float), label=1)
    assert reading.labels == [1, 2, 3]
    assert (mask == DISC).all()


def test_a_label_that_neither_this_set_nor_the_earlier_one_has_is_refused():
    earlier = decide([survey(of_array(LABELS, "a"))])
    with pytest.raises(MetasegError, match="label=7"):
        decide([survey(of_array(LABELS, "b"))], 7, earlier)
