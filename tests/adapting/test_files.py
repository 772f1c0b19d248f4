"""Which files are found, how they are paired, and that each format is read as it is seen."""

import os

import numpy as np
import pytest
from PIL import Image

from metaseg.adapting.arrays import same_size
from metaseg.adapting.files import annotated_in, images_in, passed_over, truth_in
from metaseg.adapting.formats import is_turned
from metaseg.errors import MetasegError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def save(path, pixels=PIXELS, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_images_are_found_in_natural_order_under_names_of_their_own(tmp_path):
    for name in ("b10.png", "b2.PNG", "a.jpg", "a.png", ".hidden.png", "notes.txt"):
        save(tmp_path / name, format="PNG")
    found = images_in(tmp_path)
    assert [source.name for source in found] == ["a.jpg", "a.png", "b2", "b10"]
    assert np.array_equal(found[2].read(), PIXELS)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    image = save(tmp_path / "a.png")
    try:
        image.rename(image.with_name(os.fsdecode(b"caf\xe9.png")))
    except OSError:
        pytest.skip("file names are text on this file system")
    with pytest.raises(MetasegError, match=r"names in UTF-8, found 'caf\\udce9.png'; rename it"):
        images_in(tmp_path)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(images_in(tmp_path)[0].read(), np.rot90(PIXELS, -1))


def test_pictures_stored_rotated_are_recognised(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    save(tmp_path / "turned.jpg", exif=exif)
    save(tmp_path / "upright.png")
    (tmp_path / "damaged.png").touch()
    assert [is_turned(tmp_path / name) for name in ("turned.jpg", "upright.png", "damaged.png")] == [True, False, False]
    with pytest.raises(MetasegError, match="stored rotated"):
        same_size(PIXELS, PIXELS[..., 0].T, "a mask")
    with pytest.raises(MetasegError, match="another image"):
        same_size(PIXELS, PIXELS[:4, :, 0], "a mask")


def test_grey_deep_and_transparent_images_are_read_as_colours(tmp_path):
    save(tmp_path / "1.png", PIXELS[..., 0])
    save(tmp_path / "2.png", PIXELS[..., 0].astype(np.uint16) * 257)
    save(tmp_path / "3.png", np.dstack([PIXELS, np.full((12, 20), 255, np.uint8)]))
    grey, deep, clear = (source.read() for source in images_in(tmp_path))
    assert np.array_equal(grey, np.repeat(PIXELS[..., :1], 3, axis=2))
    assert np.abs(deep.astype(int) - grey).max() <= 8
    assert np.array_equal(clear, PIXELS)


def test_each_page_of_a_tiff_is_an_image(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pages = np.stack([PIXELS[..., 0], PIXELS[..., 1], PIXELS[..., 2]])
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "single.tif", PIXELS, photometric="rgb")
    found = images_in(tmp_path)
    assert [source.name for source in found] == ["single", "stack_0000", "stack_0001", "stack_0002"]
    assert np.array_equal(found[0].read(), PIXELS)
    for page, source in zip(pages, found[1:], strict=True):
        assert np.array_equal(source.read(), np.repeat(page[..., None], 3, axis=2))


def dicom(path, values, **fields):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    colours = values.ndim == 3
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if colours else (1, "MONOCHROME2")
    if colours:
        dataset.PlanarConfiguration = 0
    bits = 8 * values.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits, bits - 1, 0
    dataset.PixelData = values.tobytes()
    for key, value in fields.items():
        setattr(dataset, key, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_dicom_is_shown_in_its_window(tmp_path):
    values = np.arange(12 * 20, dtype=np.uint16).reshape(12, 20) * 16
    dicom(tmp_path / "1.dcm", values, WindowCenter=1000, WindowWidth=1000)
    dicom(tmp_path / "2.dcm", values, PhotometricInterpretation="MONOCHROME1")
    dicom(tmp_path / "3.dcm", PIXELS)
    windowed, inverted, colours = (source.read() for source in images_in(tmp_path))
    expected = np.clip((values - (999.5 - 499.5)) / 999 * 255, 0, 255)
    assert np.abs(windowed[..., 0] - expected).max() <= 1.5
    assert np.abs(inverted[..., 0] - (255 - values / values.max() * 255)).max() <= 2
    assert np.array_equal(colours, PIXELS)


@pytest.mark.parametrize("kind", ["YBR_FULL", "YBR_FULL_422"])
def test_colours_of_dicom_are_shown_as_they_are(tmp_path, kind):
    pixels = np.repeat(PIXELS, 2, axis=1)  # two neighbours share their colour in YBR_FULL_422
    luminances_and_colours = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    if kind == "YBR_FULL_422":
        first, second = (luminances_and_colours[:, start::2] for start in (0, 1))
        luminances_and_colours = np.stack([first[..., 0], second[..., 0], first[..., 1], first[..., 2]], axis=-1)
    path = dicom(tmp_path / "1.dcm", np.ascontiguousarray(luminances_and_colours).reshape(len(pixels), -1, 1)[..., 0])
    dataset = pytest.importorskip("pydicom").dcmread(path)
    dataset.Columns, dataset.SamplesPerPixel, dataset.PlanarConfiguration = pixels.shape[1], 3, 0
    dataset.PhotometricInterpretation = kind
    dataset.save_as(path)
    found = images_in(tmp_path)[0].read()
    assert np.abs(found.astype(int) - pixels).max() <= 4


def test_a_dicom_palette_is_looked_up(tmp_path):
    entries = np.array([0, 65535, 32768], np.uint16)
    palette = {"RedPaletteColorLookupTable": entries, "GreenPaletteColorLookupTable": entries[[1, 0, 2]]}
    palette["BluePaletteColorLookupTable"] = entries[[2, 0, 1]]
    fields = {f"{name}Data": values.tobytes() for name, values in palette.items()}
    fields |= {f"{name}Descriptor": [3, 0, 16] for name in palette}
    dicom(tmp_path / "1.dcm", np.array([[0, 1, 2]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **fields)
    (found,) = images_in(tmp_path)[0].read()
    assert np.abs(found.astype(int) - [[0, 255, 128], [255, 0, 0], [128, 128, 255]]).max() <= 1


def test_dicom_of_several_frames_is_refused(tmp_path):
    dicom(tmp_path / "1.dcm", np.zeros((12, 20), np.uint16), NumberOfFrames=2)
    with pytest.raises(MetasegError, match="several frames"):
        images_in(tmp_path)[0].read()


@pytest.mark.parametrize("suffix", [".png", ".dcm", ".tif"])
def test_errors_name_damaged_files(tmp_path, suffix):
    (tmp_path / f"broken{suffix}").write_bytes(b"II*\0 nothing of the kind")
    with pytest.raises(MetasegError, match=rf"cannot read .*broken{suffix}"):
        images_in(tmp_path)[0].read()


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").touch()
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(MetasegError, match=r"pydicom.*'metaseg-implicit\[medical\]'"):
        images_in(tmp_path)[0].read()


MASK = (PIXELS[..., 0] > 127).astype(np.uint8) * 255


def test_annotated_images_lie_in_two_folders(tmp_path):
    for stem in ("case 10", "case 2"):
        save(tmp_path / "images" / f"{stem}.jpg")
        save(tmp_path / "masks" / f"{stem}.png", MASK)
    found = annotated_in(tmp_path)
    assert [one.image.name for one in found] == ["case 2", "case 10"]
    assert np.array_equal(found[0].mask.read_mask().values, MASK)


@pytest.mark.parametrize("ending", ["_mask", "-mask", "_segmentation", "_seg"])
def test_annotated_images_lie_in_one_folder(tmp_path, ending):
    for stem in ("a", "b"):
        save(tmp_path / f"{stem}.jpg")
        save(tmp_path / f"{stem}{ending}.png", MASK)
    assert [(one.image.name, one.mask.path.name) for one in annotated_in(tmp_path)] == [
        ("a", f"a{ending}.png"),
        ("b", f"b{ending}.png"),
    ]


def test_mask_suffixes_are_accepted_in_the_masks_folder(tmp_path):
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "a_segmentation.png", MASK)
    assert annotated_in(tmp_path)[0].mask.path.name == "a_segmentation.png"


def test_errors_name_files_without_a_partner(tmp_path):
    with pytest.raises(MetasegError, match="found none at"):
        annotated_in(tmp_path / "gone")
    save(tmp_path / "a.jpg")
    with pytest.raises(MetasegError, match="no mask among them"):
        annotated_in(tmp_path)
    save(tmp_path / "a_mask.png", MASK)
    save(tmp_path / "b.jpg")
    with pytest.raises(MetasegError, match=r"b\.jpg has no mask"):
        annotated_in(tmp_path)
    save(tmp_path / "b.png")
    with pytest.raises(MetasegError, match=r"b\.jpg and b\.png"):
        annotated_in(tmp_path)


def test_truth_is_found_by_stem(tmp_path):
    save(tmp_path / "new" / "a.jpg")
    save(tmp_path / "new" / "b.jpg")
    save(tmp_path / "truth" / "b_mask.png", MASK)
    images = images_in(tmp_path / "new")
    assert {name: mask.path.name for name, mask in truth_in(tmp_path / "truth", images).items()} == {"b": "b_mask.png"}
    save(tmp_path / "other" / "c.png", MASK)
    with pytest.raises(MetasegError, match="Expected masks"):
        truth_in(tmp_path / "other", images)
    with pytest.raises(MetasegError, match="Expected images in"):
        images_in(tmp_path)


def test_a_mask_belongs_to_the_image_of_its_own_name_and_an_image_has_one_mask(tmp_path):
    for name in ("case", "case_seg"):
        save(tmp_path / "data" / "images" / f"{name}.png")
        save(tmp_path / "data" / "masks" / f"{name}.png", MASK)
    found = {one.image.name: one.mask.path.name for one in annotated_in(tmp_path / "data")}
    assert found == {"case": "case.png", "case_seg": "case_seg.png"}
    save(tmp_path / "new" / "a.jpg")
    for name in ("a.png", "a_mask.png"):
        save(tmp_path / "truth" / name, MASK)
    with pytest.raises(MetasegError, match=r"one mask for each image, found a\.png and a_mask\.png for a;"):
        truth_in(tmp_path / "truth", images_in(tmp_path / "new"))


def test_errors_name_what_a_folder_without_images_holds(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(MetasegError, match="but the folder scans; give the folder"):
        images_in(tmp_path)
    (tmp_path / "IM0001").touch()
    with pytest.raises(MetasegError, match=r"1 file without a suffix \(IM0001\); rename DICOM files"):
        images_in(tmp_path)


def test_names_of_results_fit_into_a_file_system(tmp_path):
    pytest.importorskip("tifffile").imwrite(tmp_path / f"{'x' * 249}.tif", np.zeros((2, 12, 20), np.uint8))
    with pytest.raises(MetasegError, match="at most 251 bytes"):
        images_in(tmp_path)


def test_results_that_would_replace_one_another_are_refused(tmp_path):
    pytest.importorskip("tifffile").imwrite(tmp_path / "stack.tif", np.zeros((2, 12, 20), np.uint8))
    save(tmp_path / "stack_0001.png")
    with pytest.raises(MetasegError, match=r"stack_0001\.png.*rename"):
        images_in(tmp_path)
    (tmp_path / "stack.tif").unlink()
    save(tmp_path / "STACK_0001.jpg")  # the same to the file systems of macOS and Windows
    assert sorted(source.name for source in images_in(tmp_path)) == ["STACK_0001.jpg", "stack_0001.png"]


def test_files_that_cannot_be_read_are_not_passed_over_in_silence(tmp_path):
    save(tmp_path / "a.png")
    for name in ("notes.txt", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).touch()
    assert passed_over(tmp_path) == []
    for name in ("b.heic", "c.mha"):
        (tmp_path / name).touch()
    (said,) = passed_over(tmp_path)
    assert "(b.heic, c.mha)" in said
    assert len(images_in(tmp_path)) == 1


def test_masks_beside_their_images_are_not_images(tmp_path):
    for name in ("a.png", "a_mask.png", "b.jpg", "b_segmentation.png", "c_mask.png"):
        save(tmp_path / name)
    assert [source.path.name for source in images_in(tmp_path)] == ["a.png", "b.jpg", "c_mask.png"]
    (said,) = passed_over(tmp_path)
    assert "(a_mask.png, b_segmentation.png)" in said


def test_suggests_the_images_subfolder(tmp_path):
    save(tmp_path / "images" / "a.png")
    with pytest.raises(MetasegError, match=r"did you mean .*images\?"):
        images_in(tmp_path)


def test_floats_from_0_to_1_are_not_read_as_black(tmp_path):
    share = (PIXELS[..., 0] / 255).astype(np.float32)
    save(tmp_path / "a.tif", share)
    save(tmp_path / "b.tif", share * 255)
    shares, grey = (source.read() for source in images_in(tmp_path))
    assert np.array_equal(shares[..., 0], PIXELS[..., 0])
    assert np.abs(grey.astype(int) - shares).max() <= 8
