"""What a user does besides the first learning: stopping, scribbles, keeping what was learnt and going on from it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_session import drawn, unpacked
from tiny_run import limits_fixture, network_fixture, painted_fixture, run_fixture, session_fixture, upload_fixture  # noqa: F401

from metaseg.app import outlines, texts
from metaseg.app.picture import FRAME, INSIDE, OUTSIDE
from metaseg.app.session import Network, Session, Stopped
from metaseg.errors import MetasegError


@pytest.fixture(name="network")
def quick_fixture(network):
    """With a given number of steps no time is spent on measuring how many fit into the budget."""
    return Network(network.model, steps=1, lr=0.01)


@pytest.fixture(name="other")
def other_fixture(network, limits, tmp_path):
    (tmp_path / "others").mkdir()
    session = Session(network, limits, tmp_path / "others")
    yield session
    session.close()


def strokes(mask):
    """A stroke inside the lesion and one along the image's upper edge, as a painting."""
    marks = np.zeros(FRAME, np.uint8)
    rows, columns = np.nonzero(drawn(mask))
    row, column = int(rows.mean()), int(columns.mean())
    marks[row - 10 : row + 10, column - 40 : column + 40] = INSIDE
    marks[60:80, 100:800] = OUTSIDE
    return marks


@pytest.mark.parametrize("activity", ["learning", "segmenting"])
def test_stopping_leaves_the_earlier_result(session, upload, activity):
    session.add_images(upload("image", 0, 1, 2))
    session.add_masks(upload("mask", 0))
    session.adapt()
    adapted, masks = session.adapted, {name: picture.prediction() for name, picture in session.pictures.items()}
    lines = [picture.line for picture in session.pictures.values()]
    session.set_mask("case1", ~session.picture("case1").mask())

    def stop(done, what):
        if what == activity and done > 0:
            session.stopping.set()

    with pytest.raises(Stopped):
        session.adapt(stop)
    assert session.adapted is adapted
    assert session.stale
    assert [picture.line for picture in session.pictures.values()] == lines
    assert all((picture.prediction() == masks[name]).all() for name, picture in session.pictures.items())
    session.stopping.clear()
    session.adapt()
    assert session.adapted is not adapted


@pytest.mark.parametrize("activity", ["learning", "segmenting"])
@pytest.mark.parametrize("removed", [("case0",), ("case0", "case1", "case2")])
def test_images_may_be_removed_while_it_learns(session, upload, activity, removed):
    session.add_images(upload("image", 0, 1, 2))
    session.add_masks(upload("mask", 0, 1))

    def remove(done, what):
        if what == activity and done > 0:
            for name in set(removed) & set(session.pictures):
                session.remove(name)

    session.adapt(remove)
    assert session.adapted is not None
    assert session.keep().is_file()
    assert session.stale
    assert all(picture.line for picture in session.pictures.values())
    assert sorted(session.pictures) == sorted({"case0", "case1", "case2"} - set(removed))


def test_scribbles_are_learnt_from_and_are_no_mask(session, upload, painted):
    session.add_images(upload("image", 0, 1, 2))
    session.paint("case0", strokes(painted[1][0]))
    picture = session.picture("case0")
    assert picture.scribbled
    marks = picture.marks()
    assert marks.shape == (64, 96)
    assert (marks == INSIDE).any()
    assert (marks == OUTSIDE).any()
    assert (marks == 0).mean() > 0.5, "the outline of a scribble is not filled, the rest is not outside"
    with pytest.raises(MetasegError):
        session.download()
    session.mark_empty("case1")
    assert list(unpacked(session.download())[0]) == ["masks/case1.png"]
    session.remove_mask("case1")
    session.adapt()
    assert set(np.unique(session.adapted.support.masks)) == {0, 1, 255}
    masks, table = unpacked(session.download())
    assert table["mask"].tolist() == ["predicted"] * 3
    assert ((masks["masks/case0.png"] > 0) == picture.prediction()).all()
    assert picture.tile().is_file()

    painting = picture.drawn()
    painting[painting == OUTSIDE] = 0
    session.paint("case0", painting)
    assert picture.masked
    assert (picture.mask() == (marks == INSIDE)).all()
    session.remove_mask("case0")
    assert not picture.scribbled


def test_a_painting_is_read_in_the_colours_it_was_painted_in(session, upload, painted):
    page = pytest.importorskip("metaseg.app.page")
    session.add_images(upload("image", 0))
    session.paint("case0", strokes(painted[1][0]))
    picture = session.picture("case0")
    layer = np.asarray(Image.open(picture.paint()))
    assert (page._marks({"layers": [layer]}) == picture.drawn()).all()
    over = layer.copy()  # a stroke of each colour over the other's, half transparent
    over[layer[..., 2] > 0, :3] = np.add(2 * np.array([255, 235, 0]), [230, 0, 255]) // 3
    over[(layer[..., 3] > 0) & (layer[..., 2] == 0), :3] = np.add([255, 235, 0], 2 * np.array([230, 0, 255])) // 3
    swapped = np.array([0, OUTSIDE, INSIDE])[picture.drawn()]
    assert (page._marks({"layers": [over]}) == swapped).all()
    with pytest.raises(MetasegError, match="size"):
        page._marks({"layers": [layer[:5]]})


def test_what_was_learnt_is_kept_and_used_elsewhere(session, other, upload, tmp_path):
    assert session.keep() is None
    session.add_images(upload("image", 0, 1, 2))
    session.add_masks(upload("mask", 0, 1))
    session.adapt()
    file = session.keep().replace(tmp_path / "kept.safetensors")
    other.add_images(upload("image", 2, 3))
    other.add_masks(upload("mask", 2))
    with pytest.raises(MetasegError, match="Nothing has been learnt"):
        other.segment()
    other.stopping.set()
    with pytest.raises(Stopped):
        other.load(shutil.copy(file, tmp_path / "again.safetensors"))
    assert other.loaded is None
    other.stopping.clear()
    other.load(file)
    assert not file.exists()
    same = other.picture("case2").prediction() == session.picture("case2").prediction()
    assert same.mean() > 0.99, "the file is in half precision"
    assert other.picture("case3").line
    assert not other.stale
    other.add_images(upload("image", 4))
    assert other.stale
    other.segment()
    assert other.picture("case4").line
    assert not other.can_go_on, "the file of a run's segmenter does not hold the run"
    other.adapt()
    assert len(other.adapted.support.images) == 1


def test_learning_goes_on_from_a_loaded_segmenter_unless_told_otherwise(session, network, upload, painted):
    images, masks = painted
    session.add_images(upload("image", 2, 3))
    session.add_masks(upload("mask", 2))
    session.loaded = replace(network.model.adapt(images[:2], masks[:2], steps=1, folds=0), label=2)
    session.adapt()
    assert len(session.adapted.support.images) == 3
    assert (session.adapted.support.masks == 1).any((1, 2)).all(), "the new mask is its foreground, whatever the label"
    assert session.adapted.label == 2
    session.adapt()
    assert len(session.adapted.support.images) == 3
    session.go_on = False
    session.adapt()
    assert len(session.adapted.support.images) == 1


@pytest.mark.parametrize(("name", "content"), [("a.safetensors", b"no"), ("a.png", b"no"), ("a.safetensors", None)])
def test_refuses_other_files_than_segmenters(session, tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MetasegError, match=name) as raised:
        session.load(path)
    assert str(tmp_path) not in str(raised.value)
    assert not path.exists()
    assert session.loaded is None


@pytest.mark.parametrize(
    ("typed", "word"),
    [
        ("  polyp ", "polyp"),
        ("", texts.WORD),
        (None, texts.WORD),
        ("cell\n\x00 nuclei", "cell nuclei"),
        ("a" * 99, "a" * 30),
    ],
)
def test_a_users_word_is_a_short_line(typed, word):
    assert texts.word(typed) == word


def test_a_users_word_is_used_everywhere_and_is_no_markup(session, upload):
    session.word = texts.word("<b>*nuclei*")
    session.add_images(upload("image", 0))
    said = [one(session.word) for one in (texts.mark, texts.how_to_mark, texts.masks, texts.download)]
    said += [
        texts.title(None, session.word),
        texts.title(session.picture("case0"), session.word),
        texts.status(session),
    ]
    assert all("nuclei" in one and "<b>" not in one and " *nuclei" not in one for one in said)
    with pytest.raises(MetasegError, match="nuclei"):
        session.adapt()
    with pytest.raises(MetasegError, match="nuclei"):
        session.paint("case0", np.zeros(FRAME, np.uint8))


def test_a_label_is_a_whole_number():
    assert texts.label(" 3 ") == 3
    assert texts.label("") is None
    for typed in ("0", "-1", "1.5", "two", "9" * 20):
        with pytest.raises(MetasegError, match="label"):
            texts.label(typed)


def test_outlines_are_thin_and_told_apart_without_colour():
    mask = np.zeros((100, 100), bool)
    mask[20:80, 20:80] = True
    ground = np.full((100, 100, 3), 90, np.uint8)
    solid, dashed = (outlines.drawn(ground, mask, which) for which in (False, True))
    changed = [(one != ground).any(-1) for one in (solid, dashed)]
    assert changed[0].sum(1)[50] == 4, "two pixels on either side"
    assert 0.3 < changed[1].sum() / changed[0].sum() < 0.8
    assert outlines.path(mask).count("M") == 1
    assert outlines.path(np.zeros((5, 5), bool)) == ""
