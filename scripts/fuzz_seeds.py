"""What scripts/fuzz.py gives to its readers: small valid files, and odd values and texts to put into them."""

import gzip
import io
import itertools
import json
import pickle
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import tifffile
import torch
import yaml
from PIL import Image
from pydicom.encaps import encapsulate
from safetensors.torch import save as serialized

from metaseg import configuration
from metaseg.adapting.loading import learner_of, load
from metaseg.adapting.saved import save
from metaseg.learners.checkpoints import origin
from metaseg.networks import encoder_unet, smp  # noqa: F401 (else each child imports them when a file names them)
from metaseg.runs import schema, validation
from metaseg.runs.directory import RunDirectory

Seeds = dict[str, bytes]
"""File name → content."""
PIXELS = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
LABELS = np.zeros((20, 24), np.uint8)
LABELS[4:12, 5:15] = 1
SETTINGS = ("learner=joint", "data=synthetic", "data.size=32", "model.features=2", "shots=3", "logger=csv")

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
NAMES = (
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "\0",
        "a\nb",
        "~no-such/x",
        "../../x",
        "/etc/passwd",
        "x" * 300,
        "{stem}",
        "{stem}" * 40,
    ),
    *("{group}{stem}", "**/*", "[", "${oc.env:HOME}", "${", "ÿ\ud800", "os.system", "tu-hf-hub:a/b"),
    *("subprocess.Popen", "metaseg.learners.base.Learner", "metaseg.networks.vgg.VGG16", "metaseg.__main__.x"),
)
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 0.5, 4096, 2**20, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), DEEP, *NAMES),
    *([], {}, [[]], {"a": 1}, {"_target_": "os.system", "command": "touch executed"}, [1, "a"], {"": None}),
    list(range(5000)),
)
LAUGHS = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghij")]
MERGES = [f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}" for a, b in itertools.pairwise("abcdefgh")]
TEXTS = (
    *("\n".join(["a: &a [x]", *LAUGHS]), "\n".join(["a: &a {x: 1}", *MERGES]), "&a [*a]", "title: &a [*a]"),
    *("- &a\n- *a", "[" * 3000, '{"a":' * 3000, "!!python/object/apply:os.system ['touch executed']"),
    *("title: !!int x", "title: !!bool x", "title: !!timestamp x", "title: 2001-99-99", f"title: {'9' * 5000}"),
    *("title: !!binary '*'", "? [a]\n: b", "? {a: b}\n: c", "\t", "%YAML 9.9\n---\n", "---\n---\n", "<<: x"),
    *("title: !!set {a, b}", "title: 1:99:99", "title: 1" + ":1" * 100000, "\ufeff", '"', "a,b", ",", ";", "a\0b"),
    *("1e999", "image,mask\n/,/", f"image,mask\n{'x' * 200000},b", "image,mask\n~no-such/x,b"),
    "image,mask\n" + "a,b\n" * 300000,
)


class Executed:
    """A pickle that leaves a file if it is executed."""

    def __reduce__(self) -> Any:
        """Called by the unpickler."""
        return Path.touch, (Path("executed"),)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures() -> Seeds:
    """Photographs."""
    image, deep = Image.fromarray(PIXELS), Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200)
    kinds = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "gif": "GIF", "webp": "WEBP", "ppm": "PPM", "jp2": "JPEG2000"}
    found = {f"a.{suffix}": saved(image, kind) for suffix, kind in kinds.items()}
    tiffs = {f"{how}.tif": saved(image, "TIFF", compression=how) for how in ("tiff_lzw", "tiff_deflate", "jpeg")}
    return found | tiffs | {"deep.png": saved(deep, "PNG"), "deep.tif": saved(deep, "TIFF"), "raw.tif": tiff(PIXELS)}


def masks() -> Seeds:
    """Masks of all kinds."""
    grey = Image.fromarray(LABELS * 255)
    modes = {mode: saved(grey.convert(mode), "PNG") for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16", "I")}
    floats = saved(Image.fromarray(LABELS.astype(np.float32)), "TIFF")
    return {f"{mode}.png".replace(";", ""): content for mode, content in modes.items()} | {
        "a.jpg": saved(grey, "JPEG"), "a.gif": saved(grey, "GIF"), "a.tif": saved(grey, "TIFF"), "f.tif": floats
    }  # fmt: skip


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """A TIFF as tifffile writes it."""
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def stacks() -> Seeds:
    """TIFF of several pages, and NIfTI."""
    volume, found = np.arange(480, dtype=np.int16).reshape(12, 10, 4), {}
    for name, values in {"a.nii": volume, "f.nii.gz": volume / 480, "m.nii.gz": (volume > 99).astype(np.uint8)}.items():
        content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
        found[name] = gzip.compress(content) if name.endswith("gz") else content
    pages = np.repeat(PIXELS[None, ..., 0], 3, 0)
    return found | {
        "a.tif": tiff(pages, photometric="minisblack"),
        "b.tif": tiff(pages.astype(np.uint16), photometric="minisblack", compression="zlib"),
    }


def dicom() -> Seeds:
    """DICOM with several transfer syntaxes, and DICOM-SEG."""
    uid, jpeg = pydicom.uid, saved(Image.fromarray(PIXELS[..., 0]), "JPEG")
    found = {}
    for name, syntax in {
        "plain": uid.ExplicitVRLittleEndian, "implicit": uid.ImplicitVRLittleEndian, "big": uid.ExplicitVRBigEndian,
        "deflated": uid.DeflatedExplicitVRLittleEndian, "rle": uid.RLELossless, "jpeg": uid.JPEGBaseline8Bit,
        "jp2": uid.JPEG2000Lossless, "video": uid.MPEG2MPML, "seg": uid.ExplicitVRLittleEndian,
    }.items():  # fmt: skip
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = syntax if name != "rle" else uid.ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
        one.Rows, one.Columns, one.SamplesPerPixel, one.PhotometricInterpretation = 20, 24, 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 8, 8, 7, 0
        one.WindowCenter, one.WindowWidth, one.PixelData = 100, 200, PIXELS[..., 0].tobytes()
        if name in ("jpeg", "jp2", "video"):
            one.PixelData = encapsulate([saved(Image.fromarray(PIXELS[..., 0]), "JPEG2000") if name == "jp2" else jpeg])
            one["PixelData"].is_undefined_length = True
        if name == "seg":
            one.SOPClassUID, one.NumberOfFrames, one.SegmentationType = "1.2.840.10008.5.1.4.1.1.66.4", 2, "FRACTIONAL"
            one.MaximumFractionalValue, one.PixelData = 1, np.stack([LABELS, LABELS[::-1]]).tobytes()
            one.PerFrameFunctionalGroupsSequence = []
            for number in (1, 2):
                group, segment, place = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
                segment.ReferencedSegmentNumber, place.ImagePositionPatient = number, [0, 0, number]
                group.SegmentIdentificationSequence, group.PlanePositionSequence = [segment], [place]
                one.PerFrameFunctionalGroupsSequence.append(group)
        if name == "rle":
            one.compress(uid.RLELossless)
        file = io.BytesIO()
        one.save_as(file, enforce_file_format=True)
        found[f"{name}.dcm"] = file.getvalue()
    return found


def tables() -> Seeds:
    """CSV files."""
    return {
        "pairs.csv": b"image,mask,group,id\nimages/a.png,masks/a.png,p1,a\nimages/b.png,masks/b.png,p2,b\n",
        "patients.csv": b"stem,patient\na_1,p\na_2,p\n",
    }


@cache
def settings() -> dict[str, Any]:
    """Of a tiny run."""
    return validation.read(schema.Run, configuration.composed("config", SETTINGS)).plain


def documents() -> Seeds:
    """YAML files."""
    own = {
        "title": "Mine",
        "images": "images/*.png",
        "masks": "masks/*.png",
        "blocks": 3,
        "count": 7,
        "foreground": 0.1,
    }
    more = {
        "title": "Mine",
        "layouts": [{"images": "a/{stem}", "masks": "b/{stem}"}],
        "sequence_starts": [1, 5],
        "url": "u",
    }
    sources = {"sources": [{"url": "https://a/b.zip", "sha256": "0" * 64, "bytes": 3}], "folders": ["a", "b"]}
    run = {"config.yaml": settings()}
    return {
        name: yaml.safe_dump(tree).encode()
        for name, tree in (
            {"own.yaml": own, "more.yaml": more | sources, "csv.yaml": {"title": "M", "pairs": "pairs.csv"}} | run
        ).items()
    }


def weights() -> Seeds:
    """Checkpoints, model files, segmenters and weight files."""
    plain = settings()
    _, learner = learner_of(plain)
    state = {"settings": plain, "state_dict": learner.state_dict(), "global_step": 3, **origin(learner.network)}
    file, legacy, evil = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(state, file)
    torch.save(state["state_dict"], legacy, _use_new_zipfile_serialization=False)
    torch.save({"settings": Executed()}, evil)
    card = {"learner": "joint", "shots": 3, "size": 32, "encoder": None, "datasets": {}, "commit": None, "scores": {}}
    described = {"format": 1, "version": "0", "card": card, "settings": plain, **origin(learner.network)}
    return {
        "best.ckpt": file.getvalue(), "evil.ckpt": evil.getvalue(), "plain.ckpt": pickle.dumps(Executed()),
        "weights.pth": file.getvalue(), "legacy.pth": legacy.getvalue(),
        "model.safetensors": serialized(state["state_dict"], {"metaseg-model": json.dumps(described)}),
    }  # fmt: skip


def segmenters() -> Seeds:
    """A saved segmenter."""
    place = Path("run")
    RunDirectory(place).write_config(settings() | {"train": False})
    adapted = load(place, "cpu").adapt([PIXELS] * 2, [LABELS > 0] * 2, steps=1, folds=0)
    return {"a.safetensors": save(adapted, place / "a.safetensors").read_bytes()}


def packed() -> Seeds:
    """Archives, some of them with what leaves the folder."""
    found = {}
    for suffix in ("", "gz", "xz", "bz2"):
        for name, kind in (("file", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode=f"w:{suffix}") as tar:  # type: ignore[call-overload]
                one, folder = tarfile.TarInfo("d/a.png"), tarfile.TarInfo("d")
                one.type, one.linkname, one.size, folder.type = kind, "/etc", 4 * (name == "file"), tarfile.DIRTYPE
                tar.addfile(folder)
                tar.addfile(one, io.BytesIO(b"four"))
            found[f"{name}.tar.{suffix}"] = file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d/a.png", b"x" * 2000)
        archive.writestr("b.png", b"y")
    return found | {"a.zip": file.getvalue()}


def runs() -> Seeds:
    """The files of a finished run."""
    scores = {
        "dsc": {"mean": 0.5, "low": 0.4, "high": 0.6},
        "images": 2,
        "draws": 1,
        "curve": {"steps": [0], "dsc": [0.1]},
    }
    result = {
        "version": 1,
        "targets": {"isic": scores},
        "wall_seconds": 3.0,
        "data": {"isic": {"images": 2, "groups": 2, "key": "k"}},
    }
    lines = ("dataset,image,draw,dsc_after,group", "isic,a,0,0.5,g", "isic,b,0,0.6,h", "")
    table = "\n".join(lines).encode()
    return {
        "result.json": json.dumps(result | {"settings": settings()}).encode(),
        "config.yaml": yaml.safe_dump(settings()).encode(),
        "per_image.csv": table,
        "per_image.csv.gz": gzip.compress(table),
        "metrics.csv": b"step,epoch,loss\n0,0,0.5\n1,0,0.4\n",
        "cells.json": b'["a", "b"]',
        "compute.json": b'{"outer_steps": 1, "seconds": 2.0}',
    }
