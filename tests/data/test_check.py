import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import command
from disk_datasets import picture, save, truncate, write_dataset
from PIL import Image, ImageEnhance
from rich.console import Console

from metaseg.data import check, duplicates
from metaseg.data.catalogue import get

main = command("data")

KVASIR = replace(get("kvasir"), count=4)


def kinds(report):
    return sorted((fault.severity, fault.kind, fault.images) for fault in report.faults)


def test_a_whole_dataset_has_no_fault(tmp_path):
    truth = write_dataset(tmp_path / "kvasir", ["a", "b", "c", "d"], masks="masks/{stem}.jpg")
    report = check.check(KVASIR, tmp_path)
    assert report.faults == ()
    assert report.ids == ("a", "b", "c", "d")
    assert report.groups.tolist() == [0, 1, 2, 3]
    assert report.foreground == pytest.approx(np.mean([mask.mean() for mask in truth.values()]), abs=0.002)


def test_all_faults_are_reported_at_once(tmp_path):
    folder = tmp_path / "kvasir"
    write_dataset(folder, ["good", "alone", "cut", "small", "empty", "photo", "label", "twice", "maskcut"])
    (folder / "masks" / "alone.png").unlink()
    save(Image.fromarray(picture(90)[1]), folder / "masks" / "orphan.png")
    truncate(folder / "images" / "cut.jpg")
    truncate(folder / "masks" / "maskcut.png")
    save(Image.fromarray(np.full((72, 95), 255, np.uint8)), folder / "masks" / "small.png")
    save(Image.fromarray(np.zeros((72, 96), np.uint8)), folder / "masks" / "empty.png")
    save(picture(91)[0].convert("L"), folder / "masks" / "photo.png")
    save(Image.fromarray(picture(92)[1].astype(np.uint8) * 2), folder / "masks" / "label.png")
    save(picture(93)[0], folder / "images" / "twice.png")
    report = check.check(KVASIR, tmp_path)
    assert kinds(report) == sorted(
        [
            ("error", "unpaired", ("images/alone.jpg",)),
            ("error", "unpaired", ("masks/orphan.png",)),
            ("error", "ambiguous", ("images/twice.jpg",)),
            ("error", "ambiguous", ("images/twice.png",)),
            ("error", "unreadable", ("cut",)),
            ("error", "unreadable", ("maskcut",)),
            ("error", "size", ("small",)),
            ("error", "not binary", ("photo",)),
            ("warning", "empty mask", ("empty",)),
            ("error", "not binary", ("label",)),
            ("warning", "count", ()),
        ]
    )
    assert report.ids == ("empty", "good")
    assert sum(fault.kind == "unpaired" for fault in report.faults) == 2
    messages = {fault.images: fault.message for fault in report.faults}
    assert messages[("small",)].startswith("small.png has 95×72 pixels, its image 96×72")
    assert "its largest is 2: expected black and white; if its values are labels" in messages[("label",)]
    assert "7 pairs found, 4 published" in messages[()]


def test_one_pair_can_have_several_faults(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a"])
    truncate(tmp_path / "kvasir" / "images" / "a.jpg")
    truncate(tmp_path / "kvasir" / "masks" / "a.png")
    report = check.check(replace(KVASIR, count=1), tmp_path)
    assert [fault.kind for fault in report.faults] == ["unreadable", "unreadable"]
    assert len(report.groups) == 0
    assert np.isnan(report.foreground)


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_grey_edges_of_jpeg_masks_are_no_fault(tmp_path, quality):
    mask = Image.fromarray(picture(5)[1].astype(np.uint8) * 255)
    mask.save(tmp_path / "mask.jpg", quality=quality)
    grey = check.grey_mask(tmp_path / "mask.jpg")
    assert ((grey > 0) & (grey < 255)).any()
    assert check._grey_share(grey, grey > 127) == 0


def test_grey_share_by_hand():
    grey = np.zeros((100, 100), np.uint8)
    grey[:, 50:] = 255
    grey[:, 45:55] = 120  # within a JPEG block of the edge, which lies at 55 after the threshold
    assert check._grey_share(grey, grey > 127) == pytest.approx(0.02)  # columns 45 and 46: 47 to 54 are near the edge
    grey[:, 45:47] = 0
    assert check._grey_share(grey, grey > 127) == 0


def test_copies_are_found_despite_other_colours_and_another_crop(tmp_path):
    folder = tmp_path / "kvasir"
    write_dataset(folder, ["a", "b", "c"])
    image, mask = picture(1)
    copy = ImageEnhance.Color(ImageEnhance.Brightness(image.crop((1, 1, 95, 71)).resize((96, 72))).enhance(1.2))
    save(copy.enhance(0.6), folder / "images" / "z.jpg")
    save(Image.fromarray(mask), folder / "masks" / "z.png")
    report = check.check(KVASIR, tmp_path)
    assert kinds(report) == [("warning", "near-duplicate", ("b", "z"))]
    assert report.groups.tolist() == [0, 1, 2, 1]


def test_near_duplicates_follow_the_two_thresholds():
    bits = np.zeros((5, 256), dtype=bool)
    bits[1, :40] = True  # 40 from 0: sure
    bits[2, :41] = True  # 41 from 0, 1 from 1
    bits[3, 100:160] = True  # 60 from 0, 100 and more from 1 and 2
    bits[4, 100:161] = True  # 61 from 0, 1 from 3
    apart, alike = np.eye(5, 676, dtype=np.float32), np.eye(5, 676, dtype=np.float32)
    alike[3] = 0.85 * alike[0] + np.sqrt(1 - 0.85**2) * alike[3] + 1e-4
    alike[4] = alike[0]
    assert duplicates.near_duplicates(bits, apart) == [(0, 1), (1, 2), (3, 4)]
    assert duplicates.near_duplicates(bits, alike) == [(0, 1), (0, 3), (1, 2), (3, 4)]


def test_near_duplicates_across_blocks_of_rows():
    rng = np.random.default_rng(0)
    bits = rng.random((2600, 256)) < 0.5
    details = np.zeros((2600, 4), np.float32)
    for first, second in ((3, 2599), (1023, 1024), (1030, 2100)):
        bits[second] = bits[first]
    assert duplicates.near_duplicates(bits, details) == [(3, 2599), (1023, 1024), (1030, 2100)]


def test_groups_follow_chains_and_first_appearance():
    assert duplicates.merge(6, [(1, 4), (4, 5), (0, 2)]).tolist() == [0, 1, 0, 2, 1, 1]
    assert duplicates.merge(3, []).tolist() == [0, 1, 2]
    assert duplicates.merge(0, []).tolist() == []


def test_video_sequences_are_groups_and_their_likeness_no_fault(tmp_path):
    write_dataset(tmp_path / "cvc", ["1", "25", "26", "50", "51", "612"])
    for frame in ("25", "50"):  # one copy within a sequence, one in another
        save(picture(0)[0], tmp_path / "cvc" / "images" / f"{frame}.jpg")
    report = check.check(replace(get("cvc"), count=6), tmp_path)
    assert report.faults == ()
    assert report.groups.tolist() == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize("name", ["0", "frame7"])
def test_frames_without_a_number_are_an_error(tmp_path, name):
    write_dataset(tmp_path / "cvc", ["1", name])
    faults = check.check(replace(get("cvc"), count=2), tmp_path).errors
    assert [fault.kind for fault in faults] == ["frame number"]
    assert name in faults[0].message


def test_one_video_becomes_five_blocks():
    ids = [str(frame) for frame in range(55)]
    blocks = duplicates.groups(get("kvasir_capsule"), ids, np.zeros((55, 256), bool), np.zeros((55, 676), np.float32))
    assert blocks.tolist() == np.repeat(np.arange(5), 11).tolist()
    few = duplicates.groups(get("kvasir_capsule"), ids[:3], np.zeros((3, 256), bool), np.zeros((3, 676), np.float32))
    assert few.tolist() == [0, 1, 2]


def test_command_exits_with_1_on_errors_only(tmp_path, capsys):
    write_dataset(tmp_path / "kvasir_seg", ["a", "b"])
    assert main(["check", "kvasir", "--root", str(tmp_path)]) == 0
    assert "2 pairs found, 1000 published" in capsys.readouterr().out
    truncate(tmp_path / "kvasir_seg" / "images" / "a.jpg")
    assert main(["check", "kvasir", "ph2", "--root", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "unreadable" in captured.out
    assert captured.err.startswith("error: ph2 (PH²) was not found")


def test_file_names_are_printed_as_they_are(tmp_path):
    write_dataset(tmp_path / "kvasir", ["[red]a", "b"])
    truncate(tmp_path / "kvasir" / "images" / "[red]a.jpg")
    console = Console(width=300)
    with console.capture() as capture:
        console.print(check.check(KVASIR, tmp_path).table())
    assert "images/[red]a.jpg" in capture.get()


@pytest.mark.long
@pytest.mark.skipif("METASEG_DATA" not in os.environ, reason="needs the real datasets in METASEG_DATA")
@pytest.mark.parametrize(
    "name", ["ph2", "kvasir", "cvc", pytest.param("isic", marks=pytest.mark.slow), "kvasir_capsule"]
)
def test_real_datasets_can_be_used(name):
    report = check.check(get(name), os.environ["METASEG_DATA"])
    assert report.errors == []
    assert report.foreground == pytest.approx(report.dataset.foreground, abs=0.01)
    assert len(np.unique(report.groups)) == {"cvc": 29, "kvasir_capsule": 5}.get(name, len(np.unique(report.groups)))
    if name == "isic":
        alike = [fault.images for fault in report.warnings if fault.kind == "near-duplicate"]
        assert ("ISIC_0000162", "ISIC_0014826") in alike  # one photograph under two names, seen by eye
        assert len(alike) < 40


def test_near_duplicates_by_their_structure_across_blocks_of_rows():
    generator = np.random.default_rng(0)
    bits = generator.random((1100, 256)) < 0.5
    details = generator.standard_normal((1100, 676)).astype(np.float32)
    details /= np.linalg.norm(details, axis=1, keepdims=True)
    bits[1090], details[1090] = bits[1080], details[1080]
    bits[1090, :50] ^= True
    assert duplicates.near_duplicates(bits, details) == [(1080, 1090)]


def test_a_mask_that_lies_on_its_side_is_of_another_size(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a"])
    save(Image.fromarray(picture(0)[1].T), tmp_path / "kvasir" / "masks" / "a.png")
    assert [fault.kind for fault in check.check(replace(KVASIR, count=1), tmp_path).errors] == ["size"]


def test_named_groups_come_before_blocks():
    bits, details = np.zeros((5, 256), bool), np.zeros((5, 676), np.float32)
    named = ["p", "q", "p", None, "q"]
    assert duplicates.groups(get("kvasir_capsule"), list("abcde"), bits, details, named).tolist() == [0, 1, 0, 2, 1]
