"""File formats: pictures by Pillow, DICOM and DICOM-SEG by pydicom, NIfTI by nibabel.

OpenCV reads colours of 16 bits, which Pillow reduces, and tifffile the TIFFs that Pillow does not know.
"""

from __future__ import annotations

import importlib
import logging
import math
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from metaseg.adapting.arrays import content_window, of_pillow, rgb, windowed, windowed_colours
from metaseg.adapting.masks import RawMask, coded, of_array
from metaseg.data.images import DAMAGED, SUFFIXES, opened, require_size
from metaseg.errors import MetasegError, needs, reason, shown

DICOM = (".dcm", ".dicom", ".ima")
TIFF = (".tif", ".tiff")
NIFTI = (".nii", ".nii.gz")
READABLE = (*SUFFIXES, *DICOM, *NIFTI)
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
"""DICOM's class of segmentations; label maps have another."""
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"

BITS, KIND, TURNED, PLANES = 258, 262, 274, 284
"""Tags of a TIFF: bits per sample, photometric interpretation (0: 0 is white), orientation, planar configuration."""
MOST_VOXELS = 2**28
"""Largest volume: 1024 slices of 512×512."""
MOST_INFLATED = 2**28
"""Largest content of a DICOM file that is compressed as a whole, in bytes."""


def suffix(path: Path) -> str:
    """The file's suffix in lower case: ".nii.gz" is one."""
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def stem(path: Path) -> str:
    """The file's name without its suffix, in Unicode's composed form: macOS and Linux write ä in different ways."""
    return unicodedata.normalize("NFC", path.name[: len(path.name) - len(suffix(path))])


def pages(path: Path) -> int:
    """Number of images in a file: pages of a TIFF, slices of a NIfTI or DICOM-SEG file; 1 if it cannot be read."""
    kind = suffix(path)
    with suppress(MetasegError):  # reading it reports the problem
        if kind in NIFTI:
            return len(_volume(path))
        if kind in DICOM:
            return len(segmented(path)) or 1
        if kind in TIFF:
            return len(sizes(path)) or 1
    return 1


def sizes(path: Path) -> list[tuple[int, int]]:
    """(width, height) of a picture, or of each page of a TIFF, by its header.

    Raises:
        MetasegError: if the file is damaged, or not a picture.
    """
    try:
        with opened(path) as image:
            count = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            return [_size_at(image, page) for page in range(count)]
    except MetasegError:
        if suffix(path) not in TIFF:
            raise
    seen: dict[int, tuple[int, int]] = {}
    with _tiff(path) as file:
        for page in file.pages:
            if page.offset in seen:
                break  # damaged: it would go round and round
            seen[page.offset] = (page.imagewidth, page.imagelength)
    return list(seen.values())


def _size_at(image: Image.Image, page: int) -> tuple[int, int]:
    image.seek(page)
    return image.size


def read(path: Path, page: int | None = None) -> np.ndarray:
    """An image as it is shown, uint8 (H, W, 3).

    More than 8 bits are windowed: DICOM by its window, if it has one, others by `content_window`.

    Args:
        path: the file.
        page: from 0; None for a single-page file.

    Raises:
        MetasegError: if the file is damaged or its library is missing.
    """
    kind = suffix(path)
    if kind in DICOM:
        return _dicom(path)
    if kind in NIFTI:
        return rgb(windowed(_volume(path)[page or 0], _window(path, path.stat().st_mtime_ns)), str(path))
    return _shown(_picture(path, page or 0), path)


def read_mask(path: Path, page: int | None = None) -> RawMask:
    """A mask, not interpreted yet. Arguments and errors as for `read`."""
    kind = suffix(path)
    if kind in NIFTI:
        return of_array(_volume(path)[page or 0], str(path))
    if kind in DICOM:
        slices = segmented(path)
        if slices:
            return of_array(list(slices.values())[page or 0], str(path))
        with _damage_named(path):
            values = _pixels(read_dicom(path), path)
        return of_array(values, str(path))
    return _picture_mask(path, page or 0)


def forget_volumes() -> None:
    """Free the volumes that are kept to read their slices one by one."""
    for kept in (_slices, _segments, _window):
        kept.cache_clear()


@contextmanager
def _turned_to(path: Path, page: int) -> Iterator[Any]:
    """A picture of Pillow at a page, not decoded; None for a TIFF of a kind that Pillow does not know."""
    with ExitStack() as stack:
        try:
            image: Any = stack.enter_context(opened(path))
            image.seek(page)
            if _planes_of_words(image):
                image = None
        except (MetasegError, *DAMAGED):
            if suffix(path) not in TIFF:
                raise
            image = None
        if image is not None:
            require_size(path, *image.size)
            _require_parts(path, image)
        yield image


def is_turned(path: Path) -> bool:
    """Whether a picture is stored rotated or mirrored, to be shown upright (EXIF), and its sides do not show that."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(TURNED, 1)
            return turned in (2, 3, 4) or (turned in (5, 6, 7, 8) and image.width == image.height)
    except Exception:  # not a picture, or damaged: reading it reports more
        return False


def _planes_of_words(image: Any) -> bool:
    """Whether these are colours of 16 bits plane by plane, which Pillow 12 takes for 8 bits, and OpenCV for pixels."""
    if image.format != "TIFF":
        return False
    return image.tag_v2.get(PLANES) == 2 and max(image.tag_v2.get(BITS, (1,))) > 8


def _require_parts(path: Path, image: Any) -> None:
    """Refuse an uncompressed TIFF that lacks parts, which Pillow leaves black; if compressed, decoding them fails."""
    if image.format != "TIFF" or any(part[0] == "libtiff" for part in image.tile):
        return
    planes = len(image.getbands()) if image.tag_v2.get(PLANES) == 2 else 1
    area = sum((right - left) * (lower - upper) for _, (left, upper, right, lower), *_ in image.tile)
    if area < math.prod(image.size) * planes:
        raise MetasegError(f"cannot read {path}: parts are missing; replace it with a fresh copy, or remove it")


def _picture(path: Path, page: int) -> np.ndarray:
    """A picture's values, upright: (H, W), or (H, W, C) of colours."""
    with _turned_to(path, page) as image:
        if image is None:
            return _by_tifffile(path, page)
        if image.mode in ("RGB", "RGBA", "LA") and ";16" in str(getattr(image, "tile", "")):
            return _deep_colours(path, page, image)
        # Pillow inverts these if they have 8 bits.
        inverted = image.format == "TIFF" and image.mode.startswith(("I", "F")) and image.tag_v2.get(KIND) == 0
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        values = of_pillow(image)
        return values.max() - values if inverted else values


def _deep_colours(path: Path, page: int, image: Any) -> np.ndarray:
    """Colours of 16 bits, uint16 (H, W, 3 or 4); `image` is the same, not decoded."""
    import cv2

    with _damage_named(path):
        if image.format == "TIFF":  # OpenCV turns these upright, but with imread fails at those that lie on their side
            found = cv2.imreadmulti(str(path), page, 1, flags=cv2.IMREAD_UNCHANGED)[1]
            pixels, turned = found[0] if found else None, 1
        else:
            pixels, turned = cv2.imread(str(path), cv2.IMREAD_UNCHANGED), image.getexif().get(TURNED, 1)
    if pixels is None or pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise MetasegError(f"cannot read {path}; replace it with a fresh copy, or save it as 8-bit PNG")
    opaque = pixels[..., 2::-1]  # the fourth channel, if it is not opacity or has been applied to the colours
    clear = "A" in image.getbands() and "RGBa" not in str(image.tile)
    return _upright(np.dstack([opaque, pixels[..., 3:]]) if clear else opaque, turned)


def _upright(pixels: np.ndarray, turned: int) -> np.ndarray:
    """An image, (H, W, …), rotated and mirrored according to its EXIF orientation."""
    if turned in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows, columns = (-1 if turned in which else 1 for which in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return pixels[::rows, ::columns]


def _picture_mask(path: Path, page: int) -> RawMask:
    with _turned_to(path, page) as image:
        if image is None:
            return of_array(_by_tifffile(path, page), str(path))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.format in ("JPEG", "MPO"):
            return RawMask(str(path), "soft", np.asarray(image.convert("RGB")).max(axis=-1))
        if image.mode == "P":
            return RawMask(str(path), "index", np.asarray(image), _palette(image))
        if len(image.getbands()) > 1:
            clear = "A" in image.getbands() or "transparency" in image.info
            return of_array(np.asarray(image.convert("RGBA" if clear else "RGB")), str(path))
        return of_array(np.asarray(image), str(path))


def _palette(image: Image.Image) -> np.ndarray:
    """The palette's colours as 0xRRGGBB, (256,); 0 for transparent entries, and then not for opaque black."""
    given = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(given)] = given
    codes, clear = coded(colours), image.info.get("transparency")
    if clear is None:
        return codes
    opacity = np.full(256, 255)
    if isinstance(clear, int):
        opacity[clear] = 0
    else:
        opacity[: len(clear)] = list(clear)
    return np.where(opacity < 128, 0, np.maximum(codes, 1))


@contextmanager
def _tiff(path: Path) -> Iterator[Any]:
    """An open TIFF of tifffile, whose log adds nothing to the error."""
    tifffile = _library("tifffile", path)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with _damage_named(path), tifffile.TiffFile(path) as file:
        yield file


def _by_tifffile(path: Path, page: int) -> np.ndarray:
    """A page's values, upright: (H, W), or (H, W, C) of colours."""
    with _tiff(path) as file:
        found = file.pages[page]
        require_size(path, *found.shape)
        if found.photometric not in (0, 1, 2):  # white is 0, black is 0, RGB
            kind = shown(getattr(found.photometric, "name", found.photometric))
            raise MetasegError(f"Expected grey values or RGB in {path}, found {kind}; save it as PNG.")
        if found.photometric != 2 and found.samplesperpixel > 3:  # the fourth would be taken for opacity
            raise MetasegError(
                f"Expected an image with 1 or 3 channels, or RGB with opacity, in {path}, found "
                f"{found.samplesperpixel} grey ones; save those that matter as RGB or grey."
            )
        ends = [start + length for start, length in zip(found.dataoffsets, found.databytecounts, strict=True)]
        # tifffile reads parts that are missing as black.
        if len(ends) < math.prod(found.chunked) or max(ends) > file.filehandle.size:
            raise MetasegError(f"cannot read page {page} of {path}: parts are missing; replace it with a fresh copy")
        try:
            values = np.asarray(found.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            kind = shown(getattr(found.compression, "name", found.compression))
            raise MetasegError(
                f"Expected another compression of such pixels in {path}, found {kind}; save it uncompressed, or as PNG."
            ) from error
        turned = found.tags.get(TURNED)
        values = np.moveaxis(values, 0, -1) if found.axes == "SYX" else values
        values = values.max() - values if found.photometric == 0 else values
        return _upright(values, 1 if turned is None else turned.value)


def _shown(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim not in (2, 3) or values.shape[2:] not in ((), (1,), (3,), (4,)):
        raise MetasegError(
            f"Expected an image with 1, 3 or 4 channels in {path}, found {values.shape[-1]}; save it as RGB or grey."
        )
    eight_bits = values.dtype in (np.uint8, bool)
    shares = np.issubdtype(values.dtype, np.floating) and bool(((values >= 0) & (values <= 1)).all())
    return rgb(values if eight_bits or shares else windowed_colours(values), str(path))


def _volume(path: Path) -> np.ndarray:
    """A NIfTI file as slices along its third axis, (D, H, W), rows and columns as radiologists look at them."""
    with _damage_named(path):
        return _slices(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # slices are read one by one
def _slices(path: Path, changed: int) -> np.ndarray:
    nibabel = _library("nibabel", path)
    with _damage_named(path):
        image = nibabel.load(path)
        require_size(path, *image.shape, most=MOST_VOXELS)
        values = np.asarray(image.dataobj)
        axes = nibabel.aff2axcodes(image.affine)
    if values.dtype.names or not values.size or values.ndim < 2 or any(side > 1 for side in values.shape[3:]):
        raise MetasegError(
            f"Expected a NIfTI file of a slice or a volume, found {values.shape} in {path}; save volumes one by one."
        )
    values = values.reshape((*values.shape, 1)[:3])
    # In millimetres towards the patient's left, back and feet, but slices towards the head, as most files have them.
    wanted = ("LPI", "LPI", "LPS")
    turned = tuple(axis for axis in range(3) if axes[axis] is not None and axes[axis] not in wanted[axis])
    return np.flip(values, turned).transpose(2, 1, 0)


@lru_cache(maxsize=64)
def _window(path: Path, changed: int) -> tuple[float, float]:
    return content_window(_slices(path, changed))


def instance(path: Path) -> str | None:
    """The DICOM file's SOP instance UID, by which a DICOM-SEG file names its images."""
    if suffix(path) not in DICOM:
        return None
    with _damage_named(path):
        return str(getattr(read_dicom(path, stop_before_pixels=True), "SOPInstanceUID", "")) or None


def segmented(path: Path) -> dict[str, np.ndarray]:
    """The slices of a DICOM-SEG file: their image's SOP instance UID, or their position, → segment numbers, (H, W).

    The result is empty for any other file.

    Raises:
        MetasegError: if the file is damaged, or segments overlap.
    """
    if suffix(path) not in DICOM:
        return {}
    with _damage_named(path):
        return _segments(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # slices are read one by one
def _segments(path: Path, changed: int) -> dict[str, np.ndarray]:
    header = read_dicom(path, stop_before_pixels=True)
    if header.get("SOPClassUID") not in (SEGMENTATION, LABEL_MAP):
        return {}
    dataset = read_dicom(path)
    frames = _pixels(dataset, path).reshape(-1, dataset.Rows, dataset.Columns)
    if dataset.get("SegmentationType") == "FRACTIONAL":
        frames = frames > dataset.MaximumFractionalValue / 2
    found: dict[str, np.ndarray] = {}
    for frame, (place, number) in zip(frames, _frames(dataset), strict=True):
        labels, of_segment = found.setdefault(place, np.zeros(frame.shape, np.uint16)), frame > 0
        if labels[of_segment].any():
            raise MetasegError(
                f"Expected segments that do not overlap in {path}, found overlapping ones; save each to its own file."
            )
        labels[of_segment] = frame[of_segment] if number is None else number
    return found


def _frames(dataset: Any) -> Iterator[tuple[str, int | None]]:
    """For each frame of a DICOM-SEG file: its place, and its segment's number (None: a label map)."""
    shared = dataset.get("SharedFunctionalGroupsSequence", [{}])[0]
    for own in dataset.PerFrameFunctionalGroupsSequence:

        def item(name: str, own: Any = own) -> Any:
            return (own.get(name) or shared.get(name) or [None])[0]

        derived, position = item("DerivationImageSequence"), item("PlanePositionSequence")
        sources = derived.get("SourceImageSequence") if derived is not None else None
        of_segment = item("SegmentIdentificationSequence")
        place = sources[0].ReferencedSOPInstanceUID if sources else position.ImagePositionPatient if position else ""
        yield str(place), None if of_segment is None else int(of_segment.ReferencedSegmentNumber)


def _dicom(path: Path) -> np.ndarray:
    """The image as a DICOM viewer shows it: rescaled, windowed, inverted if its photometric interpretation demands."""
    _library("pydicom", path)
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    with _damage_named(path):
        dataset = read_dicom(path)
        if int(getattr(dataset, "NumberOfFrames", 1) or 1) > 1:
            raise MetasegError(
                f"Expected a single-frame DICOM file, found several frames in {path}; save them one by one."
            )
        values = _pixels(dataset, path)
        kind = str(getattr(dataset, "PhotometricInterpretation", ""))
        if values.ndim == 3:
            return _shown(values, path)  # pydicom has converted it to RGB
        if kind == "PALETTE COLOR":
            colours = apply_color_lut(values, dataset)
            return windowed(colours, (0, np.iinfo(colours.dtype).max))
        grey = _in_window(np.asarray(apply_modality_lut(values, dataset)), dataset)
    return rgb(255 - grey if kind == "MONOCHROME1" else grey, str(path))


def _in_window(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Values in the file's first window, else in that of their content: uint8 (H, W)."""
    tables = dataset.get("VOILUTSequence")
    if tables:
        from pydicom.pixels import apply_voi_lut

        return windowed(apply_voi_lut(values, dataset), (0, 2 ** int(tables[0].LUTDescriptor[2]) - 1))
    if dataset.get("WindowWidth") in (None, "") or dataset.get("WindowCenter") in (None, ""):
        return windowed(values)
    centre, width = (float(np.ravel(dataset.get(name))[0]) for name in ("WindowCenter", "WindowWidth"))
    function = dataset.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        return windowed(1 / (1 + np.exp(-4 * (values - centre) / width)), (0, 1))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return windowed(values, (centre - width / 2, centre + width / 2))


def read_dicom(path: Path, **options: Any) -> Any:
    """A DICOM file as pydicom reads it, with its options; errors are those of pydicom.

    Raises:
        MetasegError: if it is compressed as a whole and larger than `MOST_INFLATED`.
    """
    pydicom = _library("pydicom", path)
    with path.open("rb") as file:
        pydicom.filereader.read_preamble(file, force=True)
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
        if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
            inflating = zlib.decompressobj(-zlib.MAX_WBITS)
            inflating.decompress(file.read(), MOST_INFLATED)
            if inflating.unconsumed_tail:
                raise MetasegError(
                    f"Expected at most {MOST_INFLATED / 2**20:.0f} MiB in {path}, which is compressed as a whole, "
                    "found more; save it uncompressed, or as PNG."
                )
    return pydicom.dcmread(path, **options)


def _pixels(dataset: Any, path: Path) -> np.ndarray:
    sides = [int(dataset.get(name) or 1) for name in ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel")]
    require_size(path, *sides, most=MOST_VOXELS)
    uid = _library("pydicom.uid", path)
    if dataset.file_meta.TransferSyntaxUID in uid.JPEG2000TransferSyntaxes:
        for frame in _library("pydicom.encaps", path).generate_frames(dataset.PixelData, number_of_frames=sides[0]):
            _require_lengths(frame)
    return np.asarray(dataset.pixel_array)


def _require_lengths(frame: bytes) -> None:
    """Refuse a box of JPEG 2000 without a length: pydicom 3.0 steps from box to box, and would not get past it."""
    place = 12 if frame.startswith(b"\0\0\0\x0cjP  ") else len(frame)
    while place < len(frame) and frame[place + 4 : place + 8] != b"jp2c":
        length = int.from_bytes(frame[place : place + 4], "big")
        if not length:
            raise ValueError("a box of JPEG 2000 has no length")
        place += length


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except MetasegError:
        raise
    except Exception as error:  # damaged files and unsupported encodings raise errors of any type
        raise MetasegError(
            f"cannot read {path}: {reason(error)}; replace it with a fresh copy, or save it as PNG"
        ) from error


def _library(name: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MetasegError(needs(str(path), name, "medical")) from error
