import os

import pytest
from disk_datasets import picture, save, write_dataset

from metaseg.data import layouts
from metaseg.data.catalogue import get
from metaseg.data.images import read_image, read_mask
from metaseg.errors import MetasegError

PUBLISHED = {
    "ph2": (
        "ph2",
        "PH2Dataset/PH2 Dataset images/{stem}/{stem}_Dermoscopic_Image/{stem}.bmp",
        "PH2Dataset/PH2 Dataset images/{stem}/{stem}_lesion/{stem}_lesion.bmp",
    ),
    "ph2 as unpacked": (
        "PH2Dataset",
        "PH2 Dataset images/{stem}/{stem}_Dermoscopic_Image/{stem}.bmp",
        "PH2 Dataset images/{stem}/{stem}_lesion/{stem}_lesion.bmp",
    ),
    "kvasir": ("Kvasir-SEG", "images/{stem}.jpg", "masks/{stem}.jpg"),
    "cvc": ("CVC-ClinicDB", "Original/{stem}.tif", "Ground Truth/{stem}.tif"),
    "cvc as png": ("CVC-ClinicDB", "PNG/Original/{stem}.png", "PNG/Ground Truth/{stem}.png"),
    "isic": (
        "isic2018",
        "ISIC2018_Task1-2_Training_Input/{stem}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/{stem}_segmentation.png",
    ),
    "isic as unpacked": (
        ".",
        "ISIC2018_Task1-2_Training_Input/{stem}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/{stem}_segmentation.png",
    ),
    "kvasir_capsule": ("KvasirCapsule-SEG", "images/{stem}.jpg", "masks/{stem}.jpg"),
    "ph2 plain": ("ph2", "images/{stem}.jpeg", "masks/{stem}.PNG"),
    "isic plain": ("isic", "images/{stem}.tiff", "masks/{stem}.bmp"),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_every_layout_is_read(tmp_path, case):
    folder, images, masks = PUBLISHED[case]
    truth = write_dataset(tmp_path / folder, ["10", "9", "100"], images, masks)
    pairs = layouts.find(get(case.split()[0]), tmp_path)
    assert [pair.id for pair in pairs] == ["9", "10", "100"]
    for pair in pairs:
        assert read_image(pair.image).shape == (72, 96, 3)
        agreement = (read_mask(pair.mask) == truth[pair.id]).mean()
        assert agreement == 1 if pair.mask.suffix != ".jpg" else agreement > 0.995


def test_other_files_are_passed_over(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a", "b"])
    (tmp_path / "kvasir" / "images" / "ATTRIBUTION.txt").write_text("thanks")
    (tmp_path / "kvasir" / "images" / "._a.jpg").write_bytes(b"\0")
    assert [pair.id for pair in layouts.find(get("kvasir"), tmp_path)] == ["a", "b"]


def test_a_stem_must_be_the_same_all_along_the_path(tmp_path):
    folder, images, masks = PUBLISHED["ph2"]
    write_dataset(tmp_path / folder, ["IMD002"], images, masks)
    nested = tmp_path / folder / "PH2Dataset" / "PH2 Dataset images"
    save(picture(1)[0], nested / "IMD003" / "IMD003_Dermoscopic_Image" / "IMD004.bmp")
    assert [pair.id for pair in layouts.find(get("ph2"), tmp_path)] == ["IMD002"]


@pytest.mark.parametrize("name", ["ph2", "isic"])
def test_plain_folders_directly_under_the_root_belong_to_nobody(tmp_path, name):
    write_dataset(tmp_path, ["a", "b"])
    with pytest.raises(MetasegError, match="was not found"):
        layouts.find(get(name), tmp_path)


def test_missing_data_says_where_and_how(tmp_path):
    with pytest.raises(MetasegError) as caught:
        layouts.find(get("kvasir"), tmp_path)
    for part in ("kvasir", str(tmp_path), "Kvasir-SEG", "download", "https://datasets.simula.no", "data=synthetic"):
        assert part in str(caught.value)
    with pytest.raises(MetasegError, match="nowhere does not exist"):
        layouts.find(get("kvasir"), tmp_path / "nowhere")
    (tmp_path / "kvasir_seg").mkdir()
    with pytest.raises(MetasegError, match=r"kvasir_seg holds no images laid out as .*images/\{stem\}"):
        layouts.find(get("kvasir"), tmp_path)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """Scores are written under the names of images, at the end of a run."""
    write_dataset(tmp_path / "kvasir", ["a", "b"])
    image = tmp_path / "kvasir" / "images" / "a.jpg"
    try:
        image.rename(image.with_name(os.fsdecode(b"caf\xe9.jpg")))
    except OSError:
        pytest.skip("file names are text on this file system")
    with pytest.raises(MetasegError, match=r"names in UTF-8, found 'images/caf\\udce9.jpg'; rename it"):
        layouts.find(get("kvasir"), tmp_path)


def test_unpaired_files_are_counted(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a", "b", "c", "d"])
    (tmp_path / "kvasir" / "masks" / "a.png").unlink()
    (tmp_path / "kvasir" / "masks" / "b.png").unlink()
    (tmp_path / "kvasir" / "images" / "c.jpg").unlink()
    with pytest.raises(
        MetasegError, match=r"2 without a mask \(such as a.jpg\), 1 masks without an image \(such as c.png"
    ):
        layouts.find(get("kvasir"), tmp_path)
    listing = layouts.scan(get("kvasir"), tmp_path)
    assert [pair.id for pair in listing.pairs] == ["d"]
    assert [path.name for path in listing.images_without_mask] == ["a.jpg", "b.jpg"]
    assert [path.name for path in listing.masks_without_image] == ["c.png"]


def test_two_files_of_one_stem_are_ambiguous(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a", "b"])
    save(picture(7)[0], tmp_path / "kvasir" / "images" / "a.png")
    listing = layouts.scan(get("kvasir"), tmp_path)
    assert [path.name for path in listing.ambiguous] == ["a.jpg", "a.png"]
    assert [pair.id for pair in listing.pairs] == ["b"]
    with pytest.raises(MetasegError, match="2 files that share a stem"):
        layouts.find(get("kvasir"), tmp_path)


def test_images_alone_are_unpaired_not_missing(tmp_path):
    write_dataset(tmp_path / "kvasir", ["a", "b"])
    for mask in (tmp_path / "kvasir" / "masks").iterdir():
        mask.unlink()
    assert layouts.scan(get("kvasir"), tmp_path).faults == 2


def test_natural_order():
    names = ["10", "9", "a10", "a9b2", "a9b10", "a", "IMD003", "IMD002"]
    assert sorted(names, key=layouts.natural_key) == ["9", "10", "IMD002", "IMD003", "a", "a9b2", "a9b10", "a10"]


@pytest.mark.skipif("METASEG_DATA" not in os.environ, reason="needs the real datasets in METASEG_DATA")
@pytest.mark.parametrize(
    ("name", "most"), [("ph2", 200), ("kvasir", 1000), ("cvc", 612), ("isic", 2594), ("kvasir_capsule", 55)]
)
def test_real_datasets_are_found(name, most):
    pairs = layouts.find(get(name), os.environ["METASEG_DATA"])
    assert 0.99 * most <= len(pairs) <= most
    assert read_mask(pairs[0].mask).shape == read_image(pairs[0].image).shape[:2]
