"""Volumes, DICOM-SEG and deep images: files as other programs write them."""

import gzip
import zlib

import numpy as np
import pytest
from PIL import Image
from test_files import PIXELS, dicom, save

from metaseg.adapting import formats
from metaseg.adapting.arrays import rgb
from metaseg.adapting.files import annotated_in, images_in, truth_in
from metaseg.adapting.masks import foregrounds
from metaseg.errors import MetasegError

VOLUME = np.random.default_rng(1).integers(0, 2000, (20, 12, 4)).astype(np.int16)  # x, y, z
LABELS = np.zeros((20, 12, 4), np.uint8)
LABELS[3:9, 2:7, 1] = 1
LABELS[10:15, 6:10, 1:3] = 2
RAS = np.diag([1.0, 1, 2, 1])


def nifti(path, values, affine=RAS):
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def seen(volume):
    """Slices of a volume towards right, front and head, as they are looked at."""
    return volume[::-1, ::-1].transpose(2, 1, 0)


def masks_of(annotated, label=None):
    return foregrounds([one.mask.read_mask() for one in annotated], label)[0]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_each_slice_of_a_volume_is_an_image_in_the_volumes_window(tmp_path, suffix):
    nifti(tmp_path / f"a{suffix}", VOLUME)
    found = images_in(tmp_path)
    assert [one.name for one in found] == ["a_0000", "a_0001", "a_0002", "a_0003"]
    expected = np.clip(seen(VOLUME) / 2000 * 255, 0, 255)
    for one, wanted in zip(found, expected, strict=True):
        assert one.read().shape == (12, 20, 3)
        assert np.abs(one.read()[..., 0] - wanted).max() <= 4


def test_slices_with_foreground_are_annotated_whatever_the_orientation_of_image_and_mask(tmp_path):
    nifti(tmp_path / "images" / "a.nii.gz", VOLUME)
    nifti(tmp_path / "masks" / "a_seg.nii", LABELS[::-1], np.diag([-1.0, 1, 2, 1]))
    found = annotated_in(tmp_path)
    assert [one.image.name for one in found] == ["a_0001", "a_0002"]
    for mask, wanted in zip(masks_of(found, label=2), seen(LABELS)[1:3], strict=True):
        assert (mask == (wanted == 2)).all()


def test_masks_are_found_for_slices_of_a_volume(tmp_path):
    nifti(tmp_path / "images" / "a.nii.gz", VOLUME)
    nifti(tmp_path / "whole" / "a.nii.gz", LABELS)
    save(tmp_path / "some" / "a_0002.png", seen(LABELS)[2])
    images = images_in(tmp_path / "images")
    assert list(truth_in(tmp_path / "whole", images)) == [one.name for one in images]
    (mask,) = truth_in(tmp_path / "some", images).items()
    assert mask[0] == "a_0002"


def test_a_single_slice_pairs_with_a_picture(tmp_path):
    save(tmp_path / "images" / "a.png")
    nifti(tmp_path / "masks" / "a.nii", (PIXELS[::-1, ::-1, 0] > 127).T.astype(float))
    (mask,) = masks_of(annotated_in(tmp_path))
    assert (mask == (PIXELS[..., 0] > 127)).all()


def test_volumes_that_do_not_belong_together_are_refused(tmp_path):
    nifti(tmp_path / "images" / "a.nii", VOLUME)
    nifti(tmp_path / "masks" / "a.nii", LABELS[..., :3])
    with pytest.raises(MetasegError, match=r"4, found 3 in .*a\.nii"):
        annotated_in(tmp_path)
    nifti(tmp_path / "masks" / "a.nii", np.zeros_like(LABELS))
    with pytest.raises(MetasegError, match="4 empty slices"):
        annotated_in(tmp_path)
    nifti(tmp_path / "images" / "a.nii", np.zeros((4, 4, 2, 3)))
    with pytest.raises(MetasegError, match=r"NIfTI.*a\.nii"):
        images_in(tmp_path / "images")[0].read()


def test_pages_of_a_tiff_have_masks_of_as_many_pages(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for folder, values in (("images", VOLUME.astype(np.uint16)), ("masks", LABELS)):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", values.transpose(2, 0, 1), photometric="minisblack")
    found = annotated_in(tmp_path)
    assert [one.image.name for one in found] == ["a_0001", "a_0002"]
    assert (masks_of(found, label=1)[0] == (LABELS[..., 1] == 1)).all()


def segmentation(path, frames, instances=None, kind="BINARY"):
    """A DICOM-SEG file; frames: (segment, slice, bool mask)."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset

    values = np.stack([mask for *_, mask in frames])
    packed = (
        pydicom.pixels.pack_bits(values.astype(np.uint8))
        if kind == "BINARY"
        else (values * 200).astype(np.uint8).tobytes()
    )
    bits = 1 if kind == "BINARY" else 8
    groups = []
    for number, place, _ in frames:
        group, of_segment, position = Dataset(), Dataset(), Dataset()
        of_segment.ReferencedSegmentNumber = number
        group.SegmentIdentificationSequence = [of_segment]
        position.ImagePositionPatient = [0, 0, place]
        group.PlanePositionSequence = [position]
        if instances:
            derived, source = Dataset(), Dataset()
            source.ReferencedSOPInstanceUID = instances[place]
            derived.SourceImageSequence = [source]
            group.DerivationImageSequence = [derived]
        groups.append(group)
    path.parent.mkdir(parents=True, exist_ok=True)
    return dicom(
        path,
        values[0].astype(np.uint8),
        NumberOfFrames=len(frames),
        SegmentationType=kind,
        MaximumFractionalValue=255,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4",
        BitsAllocated=bits,
        BitsStored=bits,
        HighBit=bits - 1,
        PerFrameFunctionalGroupsSequence=groups,
        PixelData=packed,
    )


SLICES = LABELS.transpose(2, 1, 0)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_segments_of_one_image_are_labels(tmp_path, kind):
    save(tmp_path / "images" / "a.png")
    segmentation(tmp_path / "masks" / "a.dcm", [(1, 0, SLICES[1] == 1), (2, 0, SLICES[1] == 2)], kind=kind)
    found = annotated_in(tmp_path)
    assert (masks_of(found)[0] == (SLICES[1] > 0)).all()
    assert (masks_of(found, label=2)[0] == (SLICES[1] == 2)).all()


def test_a_segmentation_of_a_series_names_its_images(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    (tmp_path / "images").mkdir()
    names = []
    for number in range(4):
        path = dicom(tmp_path / "images" / f"IM{number}.dcm", VOLUME[..., number].T.astype(np.uint16))
        names.append(pydicom.dcmread(path).SOPInstanceUID)
    frames = [(1, 1, SLICES[1] == 1), (2, 2, SLICES[2] == 2), (2, 1, SLICES[1] == 2)]
    segmentation(tmp_path / "masks" / "seg.dcm", frames, names)
    found = annotated_in(tmp_path)
    assert [one.image.name for one in found] == ["IM1", "IM2"]
    for one, mask, wanted in zip(found, masks_of(found), SLICES[1:3], strict=True):
        assert (mask == (wanted > 0)).all(), one.image.name


def test_overlapping_segments_are_refused(tmp_path):
    save(tmp_path / "images" / "a.png")
    segmentation(tmp_path / "masks" / "a.dcm", [(1, 0, SLICES[1] > 0), (2, 0, SLICES[1] == 2)])
    with pytest.raises(MetasegError, match=r"overlap in .*a\.dcm"):
        annotated_in(tmp_path)


def test_deep_pictures_of_every_kind_are_windowed(tmp_path):
    deep = PIXELS.astype(np.uint16) * 16
    cv2 = pytest.importorskip("cv2")
    for suffix in (".png", ".tif"):
        save(tmp_path / f"grey{suffix}", deep[..., 0])
        cv2.imwrite(str(tmp_path / f"rgb{suffix}"), deep[..., ::-1])
    for one in images_in(tmp_path):
        wanted = PIXELS if one.name.startswith("rgb") else PIXELS[..., :1]
        assert np.abs(one.read().astype(int) - wanted).max() <= 8, one.path


PICTURE = np.asarray(Image.fromarray(PIXELS).resize((80, 48)))
DEEP = PICTURE.astype(np.uint16) * 257


def paged(folder, pages, **options):
    """The first of Pillow's images as a TIFF of its own, and as the second page of another."""
    single, several = folder / "single.tif", folder / "several.tif"
    pages[0].save(single, **options)
    pages[1].save(several, save_all=True, append_images=pages[:1], **options)
    return single, several


def paged_by_tifffile(folder, values, photometric="rgb", turned=1, **options):
    tifffile = pytest.importorskip("tifffile")
    options |= {"photometric": photometric, "extratags": [(274, "H", 1, turned, True)]}
    single, several = folder / "single.tif", folder / "several.tif"
    tifffile.imwrite(single, values, **options)
    with tifffile.TiffWriter(several) as file:
        file.write(values // 2, **options)
        file.write(values, **options)
    return single, several


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P", "L", "1", "LA", "RGBA", "LAB", "I", "F"])
def test_a_page_is_read_like_a_picture_whatever_its_colours(tmp_path, mode):
    image, other = (Image.fromarray(one).convert(mode) for one in (PICTURE, 255 - PICTURE))
    single, several = paged(tmp_path, [image, other])
    assert formats.pages(several) == 2
    assert np.array_equal(formats.read(several, 1), formats.read(single))
    assert np.array_equal(formats.read_mask(several, 1).values, formats.read_mask(single).values)
    if mode in ("RGB", "CMYK", "RGBA", "LAB"):
        assert np.abs(formats.read(several, 1).astype(int) - PICTURE).mean() < 2


@pytest.mark.parametrize(("mode", "compression"), [("RGB", "tiff_lzw"), ("RGB", "jpeg"), ("1", "group4")])
def test_compressed_pages_are_read(tmp_path, mode, compression):
    image = Image.fromarray(PICTURE).convert(mode)
    _, several = paged(tmp_path, [image, image.transpose(Image.Transpose.ROTATE_180)], compression=compression)
    assert np.abs(formats.read(several, 1) - np.asarray(image.convert("RGB")).astype(float)).mean() < 4


@pytest.mark.parametrize("turned", [1, 3, 6, 8])  # neither, both, one and the other side swapped
@pytest.mark.parametrize("kind", ["grey", "colours", "deep grey", "deep colours", "deep planes", "doubles"])
def test_pages_and_pictures_are_turned_upright_like_their_masks(tmp_path, kind, turned):
    pixels = DEEP if kind.startswith("deep") else PICTURE
    grey = kind.endswith("grey") or kind == "doubles"
    stored = pixels[..., 0] if grey else pixels.transpose(2, 0, 1) if kind == "deep planes" else pixels
    stored = stored.astype(float) if kind == "doubles" else stored
    planes = {"planarconfig": "separate"} if kind == "deep planes" else {}
    found = paged_by_tifffile(tmp_path, stored, "minisblack" if grey else "rgb", turned, **planes)
    upright = PICTURE.swapaxes(0, 1) if turned > 4 else PICTURE
    upright = upright[:: -1 if turned in (3, 4, 7, 8) else 1, :: -1 if turned in (2, 3, 6, 7) else 1]
    wanted = upright[..., :1] if grey else upright
    for path, page in zip(found, (None, 1), strict=True):
        assert np.abs(formats.read(path, page).astype(int) - wanted).max() <= 8
        if kind != "deep planes":  # whose colours are no mask
            assert formats.read_mask(path, page).values.shape == upright.shape[:2]


@pytest.mark.parametrize("turned", [1, 6, 8])
def test_a_deep_png_is_turned_upright(tmp_path, turned):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), DEEP[..., ::-1])
    exif = Image.Exif()
    exif[274] = turned
    content, said = path.read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + said
    chunk = len(said).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[:33] + chunk + content[33:])  # behind the header
    found, upright = formats.read(path), np.rot90(PICTURE, {1: 0, 6: -1, 8: 1}[turned])
    assert formats.read_mask(path).values.shape == found.shape[:2]
    assert np.abs(found.astype(int) - upright).max() <= 2


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_pages_where_0_is_white_are_not_inverted(tmp_path, kind):
    values = (PICTURE if kind == "uint8" else DEEP)[..., 0]
    for path, page in zip(paged_by_tifffile(tmp_path, values, "miniswhite"), (None, 1), strict=True):
        assert np.abs(formats.read(path, page).astype(int) - (255 - PICTURE[..., :1])).max() <= 8


@pytest.mark.parametrize("extra", ["unspecified", "unassalpha", "assocalpha"])
def test_the_opacity_of_deep_colours_has_no_part_in_their_window(tmp_path, extra):
    dark = np.dstack([DEEP // 16, np.full(DEEP.shape[:2], 0 if extra == "unspecified" else 65535, np.uint16)])
    for path, page in zip(paged_by_tifffile(tmp_path, dark, extrasamples=[extra]), (None, 1), strict=True):
        assert np.abs(formats.read(path, page).astype(int) - PICTURE).max() <= 8
    half = np.dstack([DEEP // 16, np.full(DEEP.shape[:2], 32768, np.uint16)])
    half[0, 0, 3] = 65535
    assert np.abs(rgb(half, "a").astype(int) - PICTURE // 2)[1:].max() <= 8


def test_a_fourth_grey_channel_is_not_taken_for_opacity(tmp_path):
    stains = np.dstack([DEEP, DEEP[..., 0]])
    _, several = paged_by_tifffile(tmp_path, stains, "minisblack", planarconfig="contig")
    with pytest.raises(MetasegError, match=r"several\.tif, found 4 grey"):
        formats.read(several, 1)


def test_unreadable_formats_are_refused_with_a_remedy(tmp_path):
    samples = np.dstack([DEEP, DEEP[..., :2]])
    _, several = paged_by_tifffile(tmp_path, samples, extrasamples=["unspecified"] * 2)
    with pytest.raises(MetasegError, match=r"channels in .*several\.tif, found 5"):
        formats.read(several, 1)
    content = several.read_bytes()
    entry = bytes.fromhex("0301030001000000")  # Compression
    several.write_bytes(content.replace(entry + b"\1\0", entry + b"\5\0"))
    with pytest.raises(MetasegError, match=r"several\.tif.*LZW.*uncompressed"):
        formats.read(several, 1)


def test_an_uncompressed_page_without_some_parts_is_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((2, 64, 64), np.uint8), photometric="minisblack", rowsperstrip=16)
    content = path.read_bytes()
    entry = bytes.fromhex("1101030004000000")  # StripOffsets, four of them
    other = entry if entry in content else bytes.fromhex("1101040004000000")
    assert content.count(other) == 2
    path.write_bytes(content.replace(other, other[:4] + (2).to_bytes(4, "little")))
    refused(path, page=1)


def test_cyclic_tiff_pages_are_counted_once(tmp_path):
    _, several = paged_by_tifffile(tmp_path, PICTURE[..., 0].astype(float), "minisblack")
    content = several.read_bytes()
    tags = int.from_bytes(content[8:10], "little")
    second = content[10 + 12 * tags : 14 + 12 * tags]
    tags = int.from_bytes(content[int.from_bytes(second, "little") :][:2], "little")
    end = int.from_bytes(second, "little") + 2 + 12 * tags
    several.write_bytes(content[:end] + (8).to_bytes(4, "little") + content[end + 4 :])
    assert formats.pages(several) == 2


def test_stems_are_unicode_normalised(tmp_path):
    save(tmp_path / "images" / "a\u0308.png")
    save(tmp_path / "masks" / "\u00e4_mask.png", PIXELS[..., 0] // 128 * 255)
    (one,) = annotated_in(tmp_path)
    assert one.image.name == "\u00e4"


def test_the_window_of_a_dicom_file_and_not_its_content_sets_the_contrast(tmp_path):
    values = np.linspace(400, 600, 240).reshape(12, 20).astype(np.uint16)
    window = {"WindowCenter": 500, "WindowWidth": 1000}
    dicom(tmp_path / "1.dcm", values, **window)
    dicom(tmp_path / "2.dcm", values, **window, VOILUTFunction="SIGMOID")
    dicom(tmp_path / "3.dcm", values)
    linear, sigmoid, content = (one.read()[..., 0] for one in images_in(tmp_path))
    assert (linear.min(), linear.max()) == (102, 153)
    assert 90 < sigmoid.min() < sigmoid.max() < 160
    assert (content.min(), content.max()) == (0, 255)


def test_masks_of_dicom_without_segments_are_label_maps(tmp_path):
    save(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    dicom(tmp_path / "masks" / "a.dcm", np.ascontiguousarray(SLICES[1]))
    assert (masks_of(annotated_in(tmp_path), label=2)[0] == (SLICES[1] == 2)).all()
    assert Image.open(tmp_path / "images" / "a.png").size == SLICES[1].shape[::-1]


def refused(path, **details):
    """One line that names the file, for it as an image and as a mask."""
    for read in (formats.read, formats.read_mask):
        with pytest.raises(MetasegError, match=path.name) as caught:
            read(path, **details)
        assert "\n" not in str(caught.value)


def test_a_volume_that_claims_a_huge_size_is_refused(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", VOLUME)
    content = bytearray(gzip.decompress(path.read_bytes()))
    for size, sides in ((b"\xff\x7f", slice(42, 46)), (b"\x20\x00", slice(42, 46))):  # 32767×32767; 32×32: lies, too
        content[sides] = size * 2
        path.write_bytes(gzip.compress(bytes(content)))
        refused(path)


def test_pages_that_claim_a_huge_size_or_lack_parts_are_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((2, 64, 64), np.uint8), photometric="minisblack", rowsperstrip=16)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    refused(path, page=1)
    height = content.index(b"\x01\x01")  # ImageLength
    path.write_bytes(content[: height + 7] + (2**31).to_bytes(4, "little") + content[height + 11 :])
    refused(path, page=0)


def test_a_dicom_file_that_grows_or_claims_a_huge_size_is_refused(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    path = dicom(tmp_path / "a.dcm", PIXELS[..., 0], NumberOfFrames=2**20, Rows=2**15, Columns=2**15)
    refused(path)
    deflated = pydicom.dcmread(dicom(path, PIXELS[..., 0]))
    deflated.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    deflated.save_as(path, enforce_file_format=True)
    assert formats.read(path).shape == PIXELS.shape
    monkeypatch.setattr(formats, "MOST_INFLATED", 100)
    refused(path)


def test_a_box_of_jpeg_2000_without_a_length_is_refused(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(dicom(tmp_path / "a.dcm", PIXELS[..., 0]))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path / "a.dcm")


def test_a_volume_without_slices_is_refused(tmp_path):
    refused(nifti(tmp_path / "a.nii", VOLUME[..., :0]))
    assert len(images_in(tmp_path)) == 1  # which is not passed over, but refused when it is read


@pytest.mark.parametrize(
    "syntax", ["MPEG2MPML", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless", "SMPTEST211030PCMDigitalAudio"]
)
def test_dicom_of_another_transfer_syntax_than_its_pixels_is_refused(tmp_path, syntax):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(dicom(tmp_path / "a.dcm", PIXELS[..., 0]))
    dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    dataset.PixelData = pydicom.encaps.encapsulate([b"no image"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path / "a.dcm")


def test_fractional_segments_are_foreground_above_one_half(tmp_path):
    save(tmp_path / "images" / "a.png")
    segmentation(tmp_path / "masks" / "a.dcm", [(1, 0, np.where(SLICES[1] == 1, 1, 0.3))], kind="FRACTIONAL")
    (mask,) = masks_of(annotated_in(tmp_path))
    assert (mask == (SLICES[1] == 1)).all()


def test_the_window_of_a_dicom_file_is_of_its_rescaled_values(tmp_path):
    values = np.arange(240, dtype=np.uint16).reshape(12, 20) * 4
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 40, "WindowWidth": 400}
    dicom(tmp_path / "1.dcm", values, **rescaled)
    expected = np.clip((2.0 * values - 1000 - (39.5 - 199.5)) / 399 * 255, 0, 255)
    assert np.abs(images_in(tmp_path)[0].read()[..., 0] - expected).max() <= 1.5


def test_floats_of_a_page_where_0_is_white_are_inverted(tmp_path):
    for path, page in zip(
        paged_by_tifffile(tmp_path, PICTURE[..., 0].astype(float), "miniswhite"), (None, 1), strict=True
    ):
        assert np.abs(formats.read(path, page).astype(int) - (255 - PICTURE[..., :1])).max() <= 8


@pytest.mark.parametrize(("shape", "known"), [((12, 12), True), ((12, 20), False)])
def test_a_quarter_turn_of_a_square_image_is_known(tmp_path, shape, known):
    exif = Image.Exif()
    exif[274] = 6
    save(tmp_path / "a.jpg", PIXELS[: shape[0], : shape[1]], exif=exif)
    assert formats.is_turned(tmp_path / "a.jpg") == known


def test_a_segment_number_shared_by_all_frames_is_read(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    save(tmp_path / "images" / "a.png")
    dataset = pydicom.dcmread(segmentation(tmp_path / "masks" / "a.dcm", [(2, 0, SLICES[1] == 1)]))
    (frame,) = dataset.PerFrameFunctionalGroupsSequence
    shared = pydicom.Dataset()
    shared.SegmentIdentificationSequence = frame.SegmentIdentificationSequence
    del frame.SegmentIdentificationSequence
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.save_as(tmp_path / "masks" / "a.dcm")
    (mask,) = masks_of(annotated_in(tmp_path), label=2)
    assert (mask == (SLICES[1] == 1)).all()


def test_half_opacity_everywhere_counts_as_half():
    half = np.dstack([DEEP, np.full(DEEP.shape[:2], 32768, np.uint16)])
    assert np.abs(rgb(half, "a").astype(int) - PICTURE // 2).max() <= 8
