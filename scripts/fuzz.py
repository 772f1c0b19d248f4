"""Give damaged and hostile files to everything that reads a file, and keep those that are not refused in a sentence.

Small valid files are changed in their bytes (flipped bits, extreme fields, pieces cut out or put elsewhere; inside of
their compression, too) and in their structure (odd values in JSON, YAML and CSV). A child process reads each, with a
limit of time and memory. A file is read, or refused by a MetasegError of one line; anything else is a finding.
"""

import argparse
import gzip
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import struct
import sys
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_seeds import (
    NAMES,
    ODD,
    TEXTS,
    Seeds,
    dicom,
    documents,
    masks,
    packed,
    pictures,
    runs,
    segmenters,
    settings,
    stacks,
    tables,
    weights,
)

from metaseg.adapting import model_file
from metaseg.adapting.files import images_in
from metaseg.adapting.loading import load
from metaseg.adapting.masks import decide, survey
from metaseg.adapting.saved import load_segmenter
from metaseg.app.collection import Collection
from metaseg.app.uploads import Limits
from metaseg.cli.models import trained
from metaseg.data import catalogue, images, layouts
from metaseg.data.check import inspect
from metaseg.data.fetching import archives
from metaseg.data.mri import volumes
from metaseg.data.overview import print_table
from metaseg.errors import MetasegError
from metaseg.networks import encoder_unet, smp  # noqa: F401 (else each child imports them when a file names them)
from metaseg.networks.weight_files import read_weights
from metaseg.reporting.runs import read_runs
from metaseg.runs.directory import RunDirectory
from metaseg.sweeps.overview import read_cells
from metaseg.sweeps.status import status_of
from metaseg.system import resident

SECONDS, MEMORY, ADDRESSES = 60, 3 * 2**30, 12 * 2**30
"""For one file: seconds, bytes of resident memory, bytes of address space."""
CHILD = multiprocessing.get_context("fork")


def any_of(*ways: Callable[[], Any]) -> None:
    """Read in several ways; a file is refused if all refuse it."""
    refused = []
    for way in ways:
        try:
            way()
        except MetasegError as error:  # noqa: PERF203
            refused.append(error)
    if refused and len(refused) == len(ways):
        raise refused[0]


def read_images(path: Path) -> None:
    """Pictures, their pages and slices, as adapt.py and as training read them."""
    sources = images_in(path.parent)[:5]
    any_of(lambda: [source.read() for source in sources], lambda: images.read_image(path))


def read_masks(path: Path) -> None:
    """Masks, their pages and slices, as adapt.py and as training read them."""
    raws = [source.read_mask() for source in images_in(path.parent)[:5]]
    any_of(*(lambda raw=raw: decide([survey(raw)]).foreground(raw) for raw in raws))
    if path.suffix in images.SUFFIXES:
        inspect(layouts.Pair("a", path, path))


def read_both(path: Path) -> None:
    """As images or as masks."""
    any_of(lambda: read_images(path), lambda: read_masks(path))


def read_table(path: Path) -> None:
    """Pairs as a dataset, patients as brain MRI."""
    if path.name == "pairs.csv":
        layouts.scan(catalogue.Dataset("mine", "Mine", (path.parent.name,), pairs=path.name), path.parent.parent)
        return
    folder = path.parent / volumes.FOLDERS[0]
    for name in ("images/a_1.png", "masks/a_1.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    path.rename(folder / path.name)
    volumes.find(path.parent)


def read_document(path: Path) -> None:
    """A dataset, or a run's settings."""
    if path.name != "config.yaml":
        dataset = catalogue.read(path)
        with redirect_stdout(io.StringIO()):
            print_table([dataset])
        with suppress(MetasegError):  # none of its folders is there
            layouts.scan(dataset, path.parent)
        return
    directory = RunDirectory(path.parent)
    shutil.copy("best.ckpt", directory.create().best)
    shutil.copy("best.ckpt", directory.last)
    read_cells(path.parent.parent)
    any_of(lambda: status_of(directory, settings()), lambda: load(path.parent, "cpu"))


def read_weights_of(path: Path) -> None:
    """As a model to start from, or as the weights of an encoder."""
    if path.suffix == ".pth":
        read_weights(path)
        return
    if model_file.is_one(path):
        model_file.lines(path)
    load(path, "cpu")


def read_archive(path: Path) -> None:
    """Unpacked into a folder, and nowhere else."""
    target = path.parent / "target"
    target.mkdir()
    try:
        archives.unpack(path, target)
    finally:
        assert set(path.parent.iterdir()) == {path, target}, "written outside of the folder"


def read_run(path: Path) -> None:
    """As `metaseg report`, `status` and `models` read a finished run."""
    found = read_runs(path.parent.parent)
    for run in found.runs:
        run.matrix("isic")
        run.groups("isic")
    list(trained(path.parent.parent))
    read_cells(path.parent.parent)
    RunDirectory(path.parent).read_compute()
    if found.unreadable:
        raise MetasegError(found.unreadable[0][1])


def upload(path: Path) -> None:
    """As the page takes it, first as an image, then as a mask."""
    place = path.parent.parent / "page"
    place.mkdir()
    collection = Collection(Limits(), place)
    copy = path.with_stem(f"{path.stem}_mask")
    shutil.copy(path, copy)
    said = collection.add_images([path])
    for picture in collection.pictures.values():
        picture.tile()
    if said + collection.add_masks([copy]) and not collection.pictures:
        raise MetasegError(said[0])


READERS: dict[str, tuple[Callable[[], Seeds], Callable[[Path], Any]]] = {
    "images": (pictures, read_images),
    "masks": (masks, read_masks),
    "stacks": (stacks, read_both),
    "dicom": (dicom, read_both),
    "csv": (tables, read_table),
    "yaml": (documents, read_document),
    "checkpoints": (weights, read_weights_of),
    "segmenters": (segmenters, lambda path: load_segmenter(path, "cpu")),
    "archives": (packed, read_archive),
    "runs": (runs, read_run),
    "uploads": (lambda: pictures() | masks() | stacks() | dicom(), upload),
}


def bent(chance: random.Random, tree: Any) -> Any:
    """A copy of plain containers in which a value or a key is odd, or missing."""
    if not isinstance(tree, (dict, list)) or not tree or chance.random() < 0.1:
        return chance.choice(ODD)
    copy: Any = tree.copy()
    place = chance.choice(list(copy)) if isinstance(copy, dict) else chance.randrange(len(copy))
    if chance.random() < 0.1:
        copy.pop(place)
    elif chance.random() < 0.1 and isinstance(copy, dict):
        copy[chance.choice(NAMES)] = copy.pop(place)
    else:
        copy[place] = bent(chance, copy[place])
    return copy


def broken(chance: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """A copy with some bytes changed, missing, repeated, or taken from another file."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        place = chance.randrange(min(len(data), chance.choice((64, 512, 2**30))) or 1)
        length = chance.choice((1, 2, 4, 8, 64))
        match chance.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                number = chance.choice(
                    (0, 1, 0x7F, 0xFF, 0x7FFF, 60000, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
                )
                size = chance.choice((1, 2, 4, 8))
                data[place : place + size] = (number % 256**size).to_bytes(size, chance.choice(("little", "big")))
            case 2:
                del data[place:]
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = data[place : place + length] * chance.choice((1, 2, 100))
            case 5:
                other = chance.choice(others)
                begin = chance.randrange(len(other) or 1)
                data[place : place + length] = other[begin : begin + length]
    return bytes(data)


def changed(chance: random.Random, name: str, content: bytes, others: list[bytes]) -> bytes:
    """A hostile copy of a file: structure, inside of its compression, or bytes."""
    suffix, deep = Path(name).suffix, chance.random() < 0.7
    if suffix in (".yaml", ".json", ".csv") and chance.random() < 0.15:
        text = chance.choice(TEXTS)
        return (text if chance.random() < 0.7 else content.decode() + text).encode("utf-8", "surrogatepass")
    if suffix == ".yaml" and deep:
        return yaml.safe_dump(bent(chance, yaml.safe_load(content))).encode("utf-8", "surrogatepass")
    if suffix == ".json" and deep:
        return json.dumps(bent(chance, json.loads(content))).encode("utf-8", "surrogatepass")
    if suffix == ".csv" and deep:
        cells = re.split(rb"([,\n])", content)
        cells[chance.randrange(len(cells))] = str(chance.choice(ODD)).encode("utf-8", "surrogatepass")
        return b"".join(cells)
    if suffix == ".safetensors" and deep:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        ((key, text),) = list(header["__metadata__"].items())
        header["__metadata__"][key] = json.dumps(bent(chance, json.loads(text)))
        head = json.dumps(header if chance.random() < 0.8 else bent(chance, header)).encode()
        return struct.pack("<Q", len(head)) + head + content[8 + length :]
    if suffix in (".ckpt", ".pth", ".zip") and zipfile.is_zipfile(io.BytesIO(content)) and deep:
        if suffix == ".ckpt" and chance.random() < 0.7 and b"Path" not in content:
            file, state = io.BytesIO(), torch.load(io.BytesIO(content), weights_only=True)
            torch.save(bent(chance, dict(state)), file)
            return file.getvalue()
        return rezipped(chance, content, others)
    if content[:2] == b"\x1f\x8b" and deep:
        return gzip.compress(broken(chance, gzip.decompress(content), others))
    if suffix == ".png" and deep:
        return checksummed(broken(chance, content, others))
    return broken(chance, content, others)


def rezipped(chance: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """A zip file with one member changed, or compressed zeros in its place."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(file, "w") as after, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names may occur twice
        chosen, bomb = chance.choice(before.namelist()), chance.random() < 0.1
        for member in before.infolist():
            inside = before.read(member)
            if member.filename == chosen:
                inside = bytes(2**28) if bomb else broken(chance, inside, others)
                member.filename = chance.choice((chosen, chosen, "../x", "/x", "C:\\x", "a/../../x", chosen.upper()))
                member.compress_type = zipfile.ZIP_DEFLATED if bomb else member.compress_type
            after.writestr(member, inside)
    return file.getvalue()


def checksummed(content: bytes) -> bytes:
    """A PNG with the checksums of its chunks made right."""
    data, place = bytearray(content), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(data)


def serve(reader: Callable[[Path], Any], pipe: Connection) -> None:
    """In a child: read each file named in the pipe, and answer how it ended."""
    warnings.simplefilter("ignore")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    while (path := pipe.recv()) is not None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        before = resident("VmRSS")
        try:
            reader(path)
            said = "read"
        except MetasegError as error:
            said = "refused" if "\n" not in str(error) and len(str(error)) < 1500 else f"not a sentence\n{error}"
            said = "MemoryError behind a sentence" if any(map(large, causes(error))) else said
        except BaseException as error:
            ours = [one for one in traceback.extract_tb(error.__traceback__) if "/metaseg/" in one.filename]
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "fuzz.py"
            said = f"{type(error).__name__} at {where}\n" + "".join(traceback.format_exception(error))
        if (resident("VmHWM") - before) * 2**20 > MEMORY:
            said = f"{(resident('VmHWM') - before) / 2**10:.1f} GiB, {said}"
        pipe.send("code was executed" if Path("executed").exists() else said)


def large(error: BaseException) -> bool:
    """Whether memory was asked for that might have been used; that for a part of a file is not, unless it is there."""
    line = traceback.extract_tb(error.__traceback__)[-1].line if error.__traceback__ else None
    return isinstance(error, MemoryError) and ".read(" not in (line or "")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def fuzz(name: str, seconds: float, chance: random.Random, kept: Path) -> tuple[Counter[str], Mapping[str, int]]:
    """Give changed files to a reader for a time; count how they ended, and keep one file of each finding."""
    make, reader = READERS[name]
    seeds, ended, findings = make(), Counter[str](), Counter[str]()
    child, until, number = None, time.monotonic() + seconds, 0
    names, contents = list(seeds), list(seeds.values())
    while time.monotonic() < until or number < len(names):
        if child is None or not child[0].is_alive():
            here, there = CHILD.Pipe()
            child = (CHILD.Process(target=serve, args=(reader, there), daemon=True), here)
            child[0].start()
            there.close()  # else the death of the child would not end the pipe
        # The first are the valid files.
        seed = names[number] if number < len(names) else chance.choice(names)
        content = seeds[seed] if number < len(names) else changed(chance, seed, seeds[seed], contents)
        number += 1
        place = Path("place") / "a"
        shutil.rmtree(place.parent, ignore_errors=True)
        place.mkdir(parents=True)
        if name == "runs":
            for other, whole in seeds.items():
                if other != "per_image.csv.gz":
                    (place / other).write_bytes(whole)
        (place / seed).write_bytes(content)
        child[1].send(place / seed)
        try:
            said = child[1].recv() if child[1].poll(SECONDS) else f"more than {SECONDS} s"
        except EOFError:
            child[0].join()
            said = f"died with {child[0].exitcode}"
        if said.startswith("more"):
            child[0].kill()
            child[0].join()
        Path("executed").unlink(missing_ok=True)
        ended[said if said in ("read", "refused") else "findings"] += 1
        if said not in ("read", "refused"):
            which = said.splitlines()[0][:150]
            findings[which] += 1
            if findings[which] == 1:
                stem = f"{name}-{len(findings)}"
                (kept / f"{stem}-{seed}").write_bytes(content)
                (kept / f"{stem}.txt").write_text(f"input {number}\n{said}")
    if child is not None:
        child[0].kill()
    return ended, findings


def main() -> None:
    """Print a line for each reader; exit with status 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="in all")
    parser.add_argument("--folder", type=Path, required=True, help="where the files of findings go")
    parser.add_argument("--seed", type=int, default=0, help="of the changes")
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS), metavar="READER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.folder / "findings"
    kept.mkdir(parents=True, exist_ok=True)
    kept = kept.resolve()
    os.chdir(options.folder)
    Path("best.ckpt").write_bytes(weights()["best.ckpt"])
    some = False
    for name in options.only:
        seconds = 60 * options.minutes / len(options.only)
        ended, findings = fuzz(name, seconds, random.Random(f"{options.seed} {name}"), kept)
        print(
            f"{name:<12} {ended.total():>7} inputs in {seconds / 60:.1f} min: {ended['read']} read, "
            f"{ended['refused']} refused, {ended['findings']} findings, of {len(findings)} kinds",
            flush=True,
        )
        for which, times in findings.items():
            print(f"    {times} × {which}", flush=True)
        some |= bool(findings)
    sys.exit(some)


if __name__ == "__main__":
    main()
