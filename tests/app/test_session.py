"""What a user does, without the page: uploading, marking, adapting, correcting, downloading, wrong input."""

import io
import os
import shutil
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_run import limits_fixture, network_fixture, painted_fixture, run_fixture, session_fixture, upload_fixture  # noqa: F401

from metaseg.adapting import formats
from metaseg.adapting.files import Source
from metaseg.adapting.model import Model
from metaseg.adapting.saved import save
from metaseg.app import texts
from metaseg.app.picture import FRAME, Picture
from metaseg.app.session import Network, Session, Stopped
from metaseg.app.sessions import FORGOTTEN, LOST, Sessions, temporary_folder
from metaseg.app.uploads import Limits
from metaseg.errors import MetasegError


def drawn(mask):
    """A painting of a mask of 64 × 96 pixels: ten times as large, and grey above and below."""
    frame = np.zeros(FRAME, bool)
    frame[40:680] = np.kron(mask, np.ones((10, 10), bool))
    return frame


def unpacked(path):
    with zipfile.ZipFile(path) as archive:
        masks = {
            name: np.asarray(Image.open(io.BytesIO(archive.read(name))))
            for name in archive.namelist()
            if name.startswith("masks/")
        }
        return masks, pd.read_csv(io.BytesIO(archive.read("results.csv")))


@pytest.mark.long
def test_from_upload_to_download(session, upload, painted):
    assert session.add_images(upload("image", 0, 1, 2, 3)) == []
    assert session.add_masks(upload("mask", 0, 1)) == []
    told = []
    session.adapt(lambda done, what: told.append((done, what)))

    assert told[-1] == (1.0, "segmenting")
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    masks, table = unpacked(session.download())
    assert sorted(masks) == [f"masks/case{number}.png" for number in range(4)]
    for name, mask in masks.items():
        assert mask.shape == (64, 96)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}, name
    assert ((masks["masks/case1.png"] > 0) == painted[1][1]).all()
    assert table["mask"].tolist() == ["yours", "yours", "predicted", "predicted"]
    assert table["confidence"].isna().tolist() == [True, True, False, False]
    assert table["area"].tolist() == [int((masks[f"masks/case{number}.png"] > 0).sum()) for number in range(4)]
    session.pictures["case1"].forget_mask()
    assert unpacked(session.download())[1]["mask"].tolist() == ["yours", "predicted", "predicted", "predicted"]


@pytest.mark.long
def test_masks_equal_those_of_the_python_interface(session, network, upload, painted):
    images, masks = painted
    session.add_images(upload("image", 0, 1, 2))
    session.add_masks(upload("mask", 0, 1))
    session.network = Network(network.model, steps=3, lr=0.01)
    session.adapt()
    expected = network.model.adapt(images[:2], masks[:2], steps=3, lr=0.01).segment(images[2:3])[0]
    assert (unpacked(session.download())[0]["masks/case2.png"] > 0).tolist() == expected.tolist()


def test_a_correction_becomes_a_mask_and_changes_what_is_learnt(session, upload):
    session.add_images(upload("image", 0, 1, 2))
    session.add_masks(upload("mask", 0))
    session.network = Network(session.network.model, steps=1, lr=0.01)
    session.adapt()
    assert not session.stale
    before = session.pictures["case2"].line
    corrected = ~session.picture("case1").mask()
    corrected[0, 0] = True
    session.paint("case1", drawn(corrected), fill=False)
    assert session.stale
    assert "learn again" in texts.status(session)
    assert (session.picture("case1").mask() == corrected).all()
    session.adapt()
    assert not session.stale
    assert [picture.name for picture in session.annotated] == ["case0", "case1"]
    assert session.pictures["case2"].line != before
    session.mark_empty("case1")  # which was annotated before as well
    assert session.stale
    session.remove_mask("case1")
    assert not session.pictures["case1"].annotated


def test_painting_an_outline_fills_it_but_keeps_existing_holes(session, upload):
    session.add_images(upload("image", 0))
    ring = np.zeros((64, 96), bool)
    ring[10:30, 10:30] = True
    ring[11:29, 11:29] = False
    session.paint("case0", drawn(ring))
    assert session.picture("case0").mask()[10:30, 10:30].all()
    session.paint("case0", drawn(ring), fill=False)
    assert session.picture("case0").mask().sum() == ring.sum()
    more = ring.copy()
    more[40:50, 40:50] = True
    session.paint("case0", drawn(more))
    assert (session.picture("case0").mask() == more).all()


@pytest.mark.long
def test_unpainted_areas_of_a_large_image_keep_full_resolution(network, tmp_path):
    session = Session(network, Limits(max_megapixels=20), tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (1500, 3000, 3), np.uint8)).save(tmp_path / "large.png")
    assert session.add_images([tmp_path / "large.png"]) == []
    picture = session.picture("large")
    fine = rng.random((1500, 3000)) < 0.5
    session.set_mask("large", fine)
    assert picture.drawn_size == (480, 960)
    painting = picture.drawn()
    painting[picture.within][:100, :100] = True
    session.paint("large", painting, fill=False)
    assert picture.mask()[:310, :310].mean() > 0.7
    assert (picture.mask()[320:, 320:] == fine[320:, 320:]).all()


@pytest.mark.parametrize("size", [(200, 30), (30, 200), (1000, 400), (720, 960), (37, 41)])
def test_paint_lands_where_it_is_in_the_image(network, tmp_path, size):
    session = Session(network, Limits(), tmp_path)
    Image.new("L", size[::-1]).save(tmp_path / "a.png")
    session.add_images([tmp_path / "a.png"])
    picture = session.picture("a")
    corner = np.zeros(size, bool)
    corner[: size[0] // 2, : size[1] // 3] = True
    session.set_mask("a", corner)
    layer = np.asarray(Image.open(picture.paint()))[..., 3] > 64
    assert layer.shape == FRAME
    session.remove_mask("a")
    session.paint("a", layer, fill=False)
    assert (picture.mask() != corner).mean() < 0.03
    beside = np.ones(FRAME, bool)
    beside[picture.within] = False
    with pytest.raises(MetasegError, match="Nothing is marked"):
        session.paint("a", beside)


def test_painting_starts_from_the_saved_mask(session, upload, painted):
    session.add_images(upload("image", 0))
    session.add_masks(upload("mask", 0))
    layer = np.asarray(Image.open(session.picture("case0").paint()))
    assert layer.shape == (*FRAME, 4)
    assert ((layer[..., 3] > 64) == drawn(painted[1][0])).all()


def test_an_empty_mask_must_be_meant_and_an_unlike_image_is_named(session, upload, tmp_path):
    session.add_images(upload("image", 0, 1))
    with pytest.raises(MetasegError, match="Nothing is marked in case0"):
        session.paint("case0", np.zeros(FRAME, bool))
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(tmp_path / "case0_mask.png")
    (said,) = session.add_masks([tmp_path / "case0_mask.png"])
    assert "case0_mask.png is empty" in said
    with pytest.raises(MetasegError, match="No mask shows a lesion"):
        session.adapt()
    session.mark_empty("case1")
    session.add_masks(upload("mask", 0))
    Image.new("RGB", (96, 64), "green").save(tmp_path / "green.png")
    session.add_images([tmp_path / "green.png"])
    session.adapt()
    assert any("no foreground" in note and "case1" in note for note in session.notes)
    assert any("unlike the annotated ones" in note and "green" in note for note in session.notes)


def test_reports_steps_in_the_wrong_order(session, upload):
    with pytest.raises(MetasegError, match="no images yet"):
        session.adapt()
    with pytest.raises(MetasegError, match="no masks yet"):
        session.download()
    with pytest.raises(MetasegError, match="Select an image"):
        session.picture(None)
    session.add_images(upload("image", 0, 1))
    with pytest.raises(MetasegError, match="No image has a mask yet"):
        session.adapt()


def test_an_image_that_is_marked_twice_is_named(session, upload, tmp_path):
    for what in ("image", "mask"):
        (path,) = upload(what, 0)
        again = tmp_path / what / "again.png"
        again.parent.mkdir()
        shutil.copy(path, again)
        assert (session.add_images if what == "image" else session.add_masks)([str(path), str(again)]) == []
    with pytest.raises(MetasegError, match="found case0 and again alike"):
        session.adapt()


def test_the_chosen_time_and_steps_reach_the_model(session, network, upload, monkeypatch):
    def learn(model, images, masks, **how):
        raise Stopped(*(how[name] for name in ("steps", "lr", "budget")))

    monkeypatch.setattr(Model, "adapt", learn)
    session.network = Network(network.model, steps=3, lr=0.01)
    session.add_images(upload("image", 0))
    session.add_masks(upload("mask", 0))
    with pytest.raises(Stopped) as stopped:
        session.adapt(budget=7.0)
    assert stopped.value.args == (3, 0.01, 7.0)


def test_learning_gives_the_expected_dice_and_a_verdict(session, upload):
    session.add_images(upload("image", 0, 1, 2))
    assert session.estimate() == []
    session.add_masks(upload("mask", 0))
    session.adapt()
    assert "unknown" in " ".join(session.estimate())
    session.add_masks(upload("mask", 1))
    session.adapt()
    verdict, dice = session.estimate()
    assert dice.startswith("Expected Dice")
    assert verdict in texts.estimated([verdict, dice])


def refused(session, path, what):
    (said,) = session.add_images([path])
    assert what in said, said
    assert said.count(". ") == 0
    assert str(session.folder) not in said
    assert str(path.parent) not in said
    assert not path.exists()
    assert not session.pictures


def test_refuses_invalid_images(session, tmp_path):
    for name, content in (
        ("a.png", b"not an image"),
        ("a.txt", b"text"),
        (".png", b""),
        ("a.dcm", b"DICM"),
        ("b.png", b""),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        refused(session, path, name)
    path = tmp_path / "script.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")
    refused(session, path, "cannot read script.png")
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    refused(session, path, "cut.png")
    refused(session, tmp_path / "gone.png", "did not arrive")


@pytest.mark.long
def test_refuses_large_files_by_their_header(session, tmp_path):
    path = tmp_path / "heavy.png"
    path.write_bytes(b"0" * 1_100_000)
    refused(session, path, "limit is 1 MB")
    bomb = tmp_path / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(bomb)
    assert bomb.stat().st_size < 1e6
    refused(session, bomb, "bomb.png")
    wide = tmp_path / "wide.png"
    Image.new("L", (2000, 1000)).save(wide)
    refused(session, wide, "2000×1000 pixels; the limit is 1 million")
    for size in ((400, 20), (15, 15)):
        Image.new("L", size).save(tmp_path / "thin.png")
        refused(session, tmp_path / "thin.png", "along the shorter side")
    pages = tmp_path / "pages.tif"
    Image.new("L", (20, 20)).save(pages, save_all=True, append_images=[Image.new("1", (2000, 1000))])
    refused(session, pages, "1 million")


def test_every_page_of_a_file_is_judged(session, tmp_path):
    pages = tmp_path / "pages.tif"
    Image.new("L", (100, 100)).save(pages, save_all=True, append_images=[Image.new("L", (2000, 1))])
    refused(session, pages, "2000×1")


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000)])
def test_a_thin_image_can_be_drawn(tmp_path, size):
    source = Source("a", tmp_path / "a.png")
    picture = Picture.of(source, np.zeros((*size, 3), np.uint8), tmp_path)
    assert min(picture.drawn_size) == 1
    assert picture.tile().is_file()


def test_a_failure_at_one_file_loses_no_other(session, upload, monkeypatch):
    paths = upload("image", 0, 1, 2)
    store = Picture.of

    def full(source, pixels, folder):
        if source.name == "case1":
            (folder / "shown.png").write_bytes(b"half")
            raise OSError(28, "No space left on device", str(folder))
        return store(source, pixels, folder)

    monkeypatch.setattr(Picture, "of", full)
    (said,) = session.add_images(paths)
    assert said.startswith("case1.png was not added (No space left on device)")
    assert str(session.folder) not in said
    assert list(session.pictures) == ["case0", "case2"]
    assert not any(session.folder.glob("*/file/case1.png"))
    monkeypatch.setattr(Picture, "annotate", lambda picture, mask: 1 / (picture.name != "case0"))
    (said,) = session.add_masks(upload("mask", 0, 2))
    assert said.startswith("case0_mask.png was not added")


def test_a_page_that_fails_leaves_no_other_page_of_its_file(session, tmp_path, monkeypatch):
    store = Picture.of
    monkeypatch.setattr(Picture, "of", lambda source, *rest: store(source, *rest) if source.page == 0 else 1 / 0)
    pages = tmp_path / "pages.tif"
    Image.new("L", (20, 20)).save(pages, save_all=True, append_images=[Image.new("L", (20, 20))])
    refused(session, pages, "pages.tif")
    assert not any(session.folder.iterdir())


def test_an_uploaded_file_is_removed_with_its_last_image(session, upload, tmp_path):
    pages = tmp_path / "pages.tif"
    Image.new("L", (20, 20)).save(pages, save_all=True, append_images=[Image.new("L", (20, 20))])
    session.add_images([pages, *upload("image", 0)])
    session.remove("pages_0000")
    assert session.picture("pages_0001").source.read().shape == (20, 20, 3)
    session.remove("pages_0001")
    assert [path.name for path in session.folder.rglob("*") if path.is_file()] == ["case0.png", "shown.png"]


def test_no_volume_stays_in_memory_when_a_session_ends(session, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 900, (40, 32, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    session.add_images([tmp_path / "scan.nii.gz"])
    assert formats._slices.cache_info().currsize
    session.close()
    assert not formats._slices.cache_info().currsize


@pytest.mark.long
def test_too_many_images_are_refused_and_the_others_stay(session, upload):
    said = session.add_images(upload("image", *range(8)))
    assert len(said) == 2
    assert all("limit is 6 images" in sentence for sentence in said)
    assert list(session.pictures) == [f"case{number}" for number in range(6)]
    (said,) = session.add_images(upload("image", 0))
    session.chosen = "case5"
    session.remove("case5")
    assert session.chosen is None
    (said,) = session.add_images(upload("image", 0))
    assert "already an image called case0" in said
    assert session.add_images(upload("image", 7)) == []


def test_masks_among_the_images_and_names_of_other_case_are_refused(session, upload, tmp_path):
    first, mask, again = map(Path, upload("image", 0, 1, 2))
    session.add_images([first])
    mask, again = mask.rename(tmp_path / "case0_mask.png"), again.rename(tmp_path / "CASE0.png")
    said = session.add_images([mask, again])
    assert said[0] == "case0_mask.png seems to be the mask of case0: add it as a mask, or rename it."
    assert said[1].startswith("There is already an image called case0; rename CASE0.png")
    image, mask = map(Path, upload("image", 3, 4))
    (said,) = session.add_images([image, mask.rename(tmp_path / "case3_mask.png")])
    assert "mask of case3" in said
    assert list(session.pictures) == ["case0", "case3"]


def test_saving_the_same_mask_again_changes_nothing(session, upload, painted):
    session.add_images(upload("image", 0))
    for _ in range(2):
        session.set_mask("case0", painted[1][0])
    assert session.pictures["case0"].changes == 1


def test_refuses_masks_that_do_not_match(session, upload, tmp_path):
    session.add_images(upload("image", 0))
    Image.new("L", (96, 65), 255).save(tmp_path / "case0.png")
    (said,) = session.add_masks([tmp_path / "case0.png"])
    assert "96×65" in said
    assert "96×64" in said
    (said,) = session.add_masks(upload("mask", 1))
    assert "matches no image" in said
    Image.new("1", (2000, 1000)).save(tmp_path / "case0.png")
    (said,) = session.add_masks([tmp_path / "case0.png"])
    assert "limit is 1 million" in said
    (tmp_path / "case0.png").write_bytes(b"no")
    (said,) = session.add_masks([tmp_path / "case0.png"])
    assert "case0.png" in said
    with pytest.raises(MetasegError, match="960×720"):
        session.paint("case0", np.ones((10, 10), bool))
    assert not session.annotated


def test_uploaded_masks_are_read_together(session, upload, painted, tmp_path):
    session.add_images(upload("image", 0, 1))
    labels = [np.where(painted[1][number], 2, 0).astype(np.uint8) for number in (0, 1)]
    labels[1][:3, :3] = 1
    paths = [tmp_path / f"case{number}.png" for number in (0, 1)]

    def add(**options):
        for path, values in zip(paths, labels, strict=True):
            Image.fromarray(values).save(path)
        return session.add_masks(paths, **options)

    (said,) = add()
    assert "0, 1, 2" in said
    assert (session.picture("case1").mask() == (labels[1] > 0)).all()
    (empty, _) = add(label=1)[::-1]
    assert "case0" in empty
    assert (session.picture("case1").mask() == (labels[1] == 1)).all()
    (refused,) = add(label=5)
    assert "label=5" in refused
    assert not any(path.exists() for path in paths)


def test_colours_keep_their_labels_in_later_uploads(session, upload, tmp_path):
    session.add_images(upload("image", 0, 1))
    red, green, blue = (255, 0, 0), (0, 200, 0), (0, 0, 255)
    for number, colours in ((0, (red, green, blue)), (1, (red, blue, blue))):
        pixels = np.zeros((64, 96, 3), np.uint8)
        for place, colour in enumerate(colours):
            pixels[10:30, 10 + 20 * place : 25 + 20 * place] = colour
        Image.fromarray(pixels).save(tmp_path / f"case{number}.png")
        session.add_masks([tmp_path / f"case{number}.png"], label=3)  # by colour: blue, green, red
        assert np.array_equal(session.picture(f"case{number}").mask(), (pixels == red).all(-1))


def test_colours_of_single_uploads_have_numbers_of_their_own(session, upload, tmp_path):
    session.add_images(upload("image", 0, 1, 2))
    colours = [(255, 0, 0), (0, 0, 255), (200, 200, 0)]
    for number, colour in enumerate(colours):
        pixels = np.zeros((64, 96, 3), np.uint8)
        pixels[10:30, 10:30] = colour
        Image.fromarray(pixels).save(tmp_path / f"case{number}.png")
        session.add_masks([tmp_path / f"case{number}.png"])
    session.adapt()
    assert sorted(session.adapted.colours.values()) == [0, 1, 2, 3]


def test_colours_keep_the_labels_of_a_loaded_segmenter(session, network, upload, painted, tmp_path):
    images, masks = painted
    pixels = masks[0][..., None] * np.array([0, 200, 0], np.uint8)
    pixels[:4] = [255, 0, 0]
    found = network.model.adapt(images[:1], [pixels], label=1, steps=1, folds=0)  # green
    session.load(save(found, tmp_path / "green.safetensors"))
    session.add_images(upload("image", 0))
    pixels[4:8] = [0, 0, 255]
    Image.fromarray(pixels).save(tmp_path / "case0.png")
    session.add_masks([tmp_path / "case0.png"], label=1)
    assert np.array_equal(session.picture("case0").mask(), (pixels == [0, 200, 0]).all(-1))


def test_a_photograph_is_no_mask(session, upload, tmp_path):
    session.add_images(upload("image", 0, 1))
    (photograph,) = upload("image", 0)
    (said,) = session.add_masks([photograph, *upload("mask", 1)])
    assert "case0.png" in said
    assert str(tmp_path) not in said
    assert [picture.name for picture in session.annotated] == ["case1"]


def test_volumes_are_uploaded_as_their_slices(session, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).integers(0, 900, (40, 32, 3)).astype(np.int16)
    for name, values in (("scan.nii.gz", volume), ("scan_seg.nii.gz", np.zeros((40, 32, 3), np.uint8))):
        values[5:20, 5:20, 1] = 1
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / name)
    assert session.add_images([tmp_path / "scan.nii.gz"]) == []
    assert list(session.pictures) == ["scan_0000", "scan_0001", "scan_0002"]
    assert session.add_masks([tmp_path / "scan_seg.nii.gz"]) == []
    assert [picture.name for picture in session.annotated] == ["scan_0001"]
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 32, 7)), np.eye(4)), tmp_path / "deep.nii")
    (said,) = session.add_images([tmp_path / "deep.nii"])
    assert "7 slices" in said
    nibabel.save(nibabel.Nifti1Image(np.zeros((900, 900, 3), np.uint8), np.eye(4)), tmp_path / "wide.nii.gz")
    (said,) = session.add_images([tmp_path / "wide.nii.gz"])
    assert "2 million voxels" in said


def test_names_of_files_are_no_markup(session, upload):
    path = upload("image", 0)[0]
    path = path.rename(path.with_name("<img src=x onerror=alert(1)>[a](b).png"))
    session.add_images([path])
    (name,) = session.pictures
    assert "<" not in texts.title(session.pictures[name], texts.WORD)
    assert "\\[a\\]" in texts.title(session.pictures[name], texts.WORD)


def test_two_users_do_not_see_each_other_and_do_not_disturb_each_other(network, limits, tmp_path, upload):
    sessions = Sessions(network, limits, tmp_path)
    one, other = sessions.of("one"), sessions.of("other")
    assert sessions.of("one") is one
    alone = {}
    for session, number in ((one, 0), (other, 1)):
        session.add_images(upload("image", number, 2))
        session.add_masks(upload("mask", number))
        session.network = Network(network.model, steps=3 + number)
        session.adapt()
        alone[number] = session.pictures["case2"].line
    assert set(one.pictures) == {"case0", "case2"}
    assert set(other.pictures) == {"case1", "case2"}
    assert one.folder != other.folder
    threads = [
        threading.Thread(target=one.adapt),
        threading.Thread(target=other.adapt),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.pictures["case2"].line == alone[0]
    assert other.pictures["case2"].line == alone[1]


def test_closing_removes_everything_and_stops_the_work(network, limits, tmp_path, upload):
    with temporary_folder() as folder:
        sessions = Sessions(network, limits, folder)
        session = sessions.of("key")
        session.add_images(upload("image", 0, 1))
        session.add_masks(upload("mask", 0))
        left = folder / "background.png"  # as the web library leaves behind
        left.write_bytes(b"")
        with pytest.raises(MetasegError, match="session has ended"):
            session.adapt(lambda done, what: sessions.end("key"))
        assert not session.folder.exists()
        assert not left.exists()
        with pytest.raises(MetasegError, match="reload the page"):
            session.download()
        assert not list((tmp_path / "uploads").iterdir())
    assert not folder.exists()


def test_the_end_of_a_session_spares_other_sessions_and_uploads_in_progress(network, limits, tmp_path):
    sessions = Sessions(network, limits, tmp_path)
    one, other = sessions.of("one"), sessions.of("other")
    lock, left, arriving = (tmp_path / name for name in ("lock", "left.png", "arriving.png"))
    for path in (lock, left, arriving):
        path.touch()
    for path in (lock, left, other.folder):
        os.utime(path, (0, 0))
    sessions.end("one")
    assert not one.folder.exists()
    assert set(tmp_path.iterdir()) == {lock, arriving, other.folder}
    sessions.end("other")
    assert list(tmp_path.iterdir()) == [lock], "without it, another program would take the folder for a leftover"


def test_leftovers_of_a_killed_program_are_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "metaseg-app-killed"
    left.mkdir()
    (left / "image.png").write_bytes(b"")
    with temporary_folder() as running, temporary_folder() as second:
        assert not left.exists()
        assert running.is_dir()
        assert second.is_dir()
    assert not list(tmp_path.iterdir())


def test_the_least_confident_come_first_on_request(session, upload):
    session.add_images(upload("image", *range(6)))
    session.mark_empty("case5")
    for name, confidence in (("case0", 0.9), ("case1", 0.6), ("case2", 0.8), ("case3", 0.7), ("case5", 0.5)):
        session.pictures[name].line = {"confidence": confidence}
    assert session.doubtful() == ["case1", "case3", "case2"]
    assert [picture.name for picture in session.ordered()] == [f"case{number}" for number in range(6)]
    session.by_doubt = True
    names = [picture.name for picture in session.ordered()]
    assert names[:4] == ["case1", "case3", "case2", "case0"]
    assert sorted(names[4:]) == ["case4", "case5"]


@pytest.mark.parametrize("left", [FORGOTTEN, LOST])
def test_the_session_of_a_forgotten_or_lost_page_is_removed(network, limits, tmp_path, upload, monkeypatch, left):
    sessions = Sessions(network, limits, tmp_path)
    forgotten, used = sessions.of("forgotten"), sessions.of("used")
    forgotten.add_images(upload("image", 0))
    if left == LOST:
        sessions.lose("forgotten")
        sessions.lose("used")
    later = time.monotonic() + left
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert sessions.of("used") is used
    sessions.forget()
    assert not forgotten.folder.exists()
    assert used.folder.exists()
    with pytest.raises(MetasegError, match="10 minutes, or was unused for 12 hours"):
        sessions.of("forgotten")


def test_pages_of_a_file_count_as_images(session, upload, tmp_path):
    session.add_images(upload("image", *range(5)))
    page = Image.new("L", (20, 20))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    (said,) = session.add_images([tmp_path / "pages.tif"])
    assert "exceeds the limit of 6 images" in said
    assert len(session.pictures) == 5
