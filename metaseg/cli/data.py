"""`metaseg data table | check | prepare | show | fetch | paint`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from metaseg.cli.arguments import Parser, tell
from metaseg.data import catalogue, check, layouts, pools
from metaseg.data.overview import print_table, wide_console
from metaseg.data.synthetic.twins import TWIN_SEED, twin
from metaseg.errors import MetasegError
from metaseg.interruption import INTERRUPTED
from metaseg.system import os_errors_explained

if TYPE_CHECKING:
    from metaseg.plots.contact_sheets import SheetSection


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 if any dataset is missing or faulty, or 130 if interrupted."""
    options = _options(arguments)
    names = options.datasets or catalogue.names(options.root)
    if options.command in _TOGETHER:
        _TOGETHER[options.command](options, [catalogue.get(name, options.root) for name in names])
        return 0
    statuses = []
    for name in names:
        statuses.append(_one(options, name))
        if statuses[-1] == INTERRUPTED:
            break
    return max(statuses)


def _one(options: argparse.Namespace, name: str) -> int:
    try:
        dataset = catalogue.get(name, options.root)
        if options.command == "check":
            report = check.check(dataset, options.root)
            wide_console().print(report.table(), "")
            return 1 if report.errors else 0
        if options.command == "fetch":
            return _fetch(options, dataset)
        pool = pools.prepare(dataset, options.root, options.size, threads=options.threads)
        print(f"{dataset.title}: {len(pool)} images at {options.size}×{options.size}, ready")
    except MetasegError as error:
        tell(str(error))
        return 1
    return 0


def _fetch(options: argparse.Namespace, dataset: catalogue.Dataset) -> int:
    from metaseg.data.fetching.download import InterruptedDownloadError
    from metaseg.data.fetching.fetch import fetch

    try:
        fetch(dataset, options.root, options.keep)
    except InterruptedDownloadError as error:
        tell(str(error))
        return INTERRUPTED
    except KeyboardInterrupt:
        tell("interrupted; repeat the command to resume")
        return INTERRUPTED
    return 0


def _show(options: argparse.Namespace, datasets: Sequence[catalogue.Dataset]) -> None:
    """Draw a contact sheet of random images."""
    from metaseg.plots.contact_sheets import contact_sheet

    if options.count < 1 or not pools.SMALLEST <= options.size <= pools.LARGEST or options.seed < 0:
        raise MetasegError(
            f"show needs --count from 1, --seed from 0 and --size from {pools.SMALLEST} to {pools.LARGEST}, found "
            f"{options.count}, {options.seed} and {options.size}"
        )
    path = contact_sheet([_section(options, dataset) for dataset in datasets], options.out)
    print(f"{path}: {', '.join(dataset.title for dataset in datasets)}")


def _section(options: argparse.Namespace, dataset: catalogue.Dataset) -> SheetSection:
    from metaseg.plots.contact_sheets import SheetSection

    def some(total: int) -> np.ndarray:
        generator = np.random.default_rng(options.seed)
        return np.sort(generator.choice(total, min(options.count, total), replace=False))

    if options.synthetic:
        from metaseg.data.module import load_pool

        pool = load_pool(dataset.name, source="synthetic", root=options.root, size=options.size)
        chosen = some(len(pool))
        images, masks = pool.take(chosen)
        ids, total, what = [pool.ids[index] for index in chosen], len(pool), "synthetic twin of "
    else:
        pairs = layouts.find(dataset, options.root)
        chosen_pairs = [pairs[index] for index in some(len(pairs))]
        decoded = list(pools.decode(chosen_pairs, options.size))
        for found, _, _ in decoded:
            if faults := [fault for fault in found.faults if fault.severity == "error"]:
                raise MetasegError(
                    f"{dataset.name} has faulty images, the first being {faults[0].images[0]}: {faults[0].message}. "
                    f"`metaseg data check {dataset.name} --root {options.root}` lists them all"
                )
        images, masks = np.stack([image for _, image, _ in decoded]), np.stack([mask for *_, mask in decoded])
        ids, total, what = [pair.id for pair in chosen_pairs], len(pairs), ""
    title = f"{what}{dataset.title}: {len(ids)} of {total} images, resized to {options.size}×{options.size} pixels"
    return SheetSection(title, images, masks, ids)


def _paint(options: argparse.Namespace, datasets: Sequence[catalogue.Dataset]) -> None:
    """Write images of a synthetic twin and their masks in the plain layout, images/ and masks/."""
    if len(datasets) != 1 or options.count < 1 or options.first < 0:
        raise MetasegError(
            f"paint needs one dataset, --count from 1 and --first from 0, found {len(datasets)}, {options.count} and "
            f"{options.first}"
        )
    images, masks, ids, _ = twin(datasets[0].name, options.first + options.count, options.size, TWIN_SEED)
    existing = [options.out / part for part in ("images", "masks") if (options.out / part).exists()]
    if existing:
        raise MetasegError(f"{existing[0]} already exists; choose another folder with --out")
    with os_errors_explained(options.out, "free space or choose another folder with --out"):
        for part in ("images", "masks"):
            (options.out / part).mkdir(parents=True)
        for index in range(options.first, options.first + options.count):
            Image.fromarray(images[index]).save(options.out / "images" / f"{ids[index]}.png")
            Image.fromarray(masks[index] * np.uint8(255)).save(options.out / "masks" / f"{ids[index]}.png")
    print(f"{options.out}: {options.count} synthetic images and their masks, {options.size}×{options.size}")


def _table(_: argparse.Namespace, datasets: Sequence[catalogue.Dataset]) -> None:
    print_table(datasets)


_TOGETHER = {"table": _table, "show": _show, "paint": _paint}
"""Commands on all datasets together; the others go through them one by one, past those that fail."""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="metaseg data", description="List, download, check and prepare the datasets.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="table | check | prepare | show | fetch | paint"
    )
    known = ", ".join(catalogue.names())
    root = os.environ.get("METASEG_DATA") or "data"
    for name, text in (
        ("table", "print table 1 of the paper with URLs, licences and citations"),
        ("check", "read every file and report all problems at once; exit status 1 if there are errors"),
        ("prepare", "decode datasets into the cache, as training does at start-up"),
        ("show", "draw a contact sheet of images with their masks outlined"),
        ("fetch", "download, verify and unpack datasets; repeat the command to resume"),
        ("paint", "write images and masks of a synthetic twin to a folder, to experiment with"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        some = name in ("show", "fetch", "paint")
        described = f"{known}, or a dataset described by NAME.yaml in the root" + ("" if some else "; default: all")
        command.add_argument("datasets", nargs="+" if some else "*", metavar="DATASET", help=described)
        command.add_argument("--root", default=root, help=f"folder that holds the datasets (default: {root})")
        if name == "prepare":
            command.add_argument("--size", type=int, default=256, help="side of the images in pixels (default: 256)")
            command.add_argument("--threads", type=int, help="decoding threads (default: one per core)")
        if name == "show":
            out = Path("contact_sheet.png")
            command.add_argument(
                "--out", type=Path, default=out, help=f"output file, .png, .jpg or .pdf (default: {out})"
            )
            command.add_argument("--count", type=int, default=24, help="images per dataset (default: 24)")
            command.add_argument("--seed", type=int, default=0, help="seed of the random selection (default: 0)")
            command.add_argument("--size", type=int, default=128, help="side in pixels, as data.size (default: 128)")
            command.add_argument("--synthetic", action="store_true", help="show the synthetic twins, not the files")
        if name == "paint":
            command.add_argument("--out", type=Path, required=True, help="folder for images/ and masks/")
            command.add_argument("--count", type=int, default=25, help="number of images (default: 25)")
            command.add_argument("--first", type=int, default=0, help="index of the first image (default: 0)")
            command.add_argument("--size", type=int, default=256, help="side in pixels (default: 256)")
        if name == "fetch":
            command.add_argument("--keep", action="store_true", help="keep the archives in ROOT/downloads")
    return parser.parse_args(arguments)
