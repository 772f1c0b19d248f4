"""The cost of data relative to an outer step: episodes with and without augmentation, waiting, preparing a dataset.

`python -m benchmarks.episodes` measures synthetic twins, written to disk and prepared like real data; `--root DIR` real
data (PH² and Kvasir-SEG). It answers four questions, one table each:

- How long do the stages of an episode with K + K images of each pool take in one process?
- What share is that of the minimal cost of an outer step: forward + backward K_inner + 1 times over the support images
  and once over the query images? The pass is measured on a few images and scaled linearly to those of the episode.
- How long does a training loop wait for its next outer step, by number of workers, if a step keeps another device busy
  for `--step` seconds (here the process sleeps, as it does while a GPU computes)? The copy to the device that follows
  is shown too; with a GPU, a thread of the loader hides part of it.
- How many images per second are decoded, with one thread and with one per core?
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from metaseg.data import catalogue, pools
from metaseg.data.augment import augment
from metaseg.data.batches import EpisodeDataset, OuterSteps, image_tensor, mask_tensor, step_loader
from metaseg.data.episodes import EpisodePlan
from metaseg.data.layouts import complete
from metaseg.data.pools import Pool
from metaseg.data.synthetic.twins import TWIN_SEED, twin
from metaseg.meta.losses import LOSSES
from metaseg.networks.attention_unet import AttentionUNet
from metaseg.system import cores

NAMES = ("ph2", "kvasir")
AUGMENTATIONS = ("none", "standard")
PUBLISHED = (768, 576)
"""Size of the twins' files in pixels, similar to PH² and Kvasir-SEG as published."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--root", type=Path, help="folder of the real datasets (default: synthetic twins)")
    add("--size", type=int, default=256, help="side of the images in pixels")
    add("--shots", type=int, default=20, help="K: support images per pool, and as many query images")
    add("--repeats", type=int, default=10, help="episodes to measure; the median is reported")
    add("--features", type=int, nargs="*", default=[8, 32], help="widths of the attention U-Net to compare with")
    add("--inner-steps", type=int, default=5, help="inner steps of the outer step to compare with")
    add("--step", type=float, default=0.5, help="duration of the simulated outer step in seconds")
    add("--steps", type=int, default=15, help="number of simulated outer steps")
    add("--workers", type=int, nargs="*", default=[0, 1, 2], help="numbers of workers to compare")
    add("--images", type=int, default=300, help="images to decode")
    add("--json", type=Path, help="output file for the numbers")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; returns the numbers for JSON. Times are in ms if a name ends in _ms, else in seconds."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.root or twins(Path(folder), max(60, 2 * arguments.shots), arguments.size)
        # Keep twins out of the user's cache, but leave real data prepared for training.
        place = None if arguments.root else Path(folder) / "cache"
        loaded = [pools.prepare(catalogue.get(name), root, arguments.size, place) for name in NAMES]
        result: dict[str, Any] = {
            "data": "real" if arguments.root else "synthetic twins",
            "size": arguments.size,
            "shots": arguments.shots,
            "cores": cores(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "episodes": [
                stages(loaded, arguments.shots, mixing, name, arguments.repeats)
                for mixing in ("exclusive", "mixed")
                for name in AUGMENTATIONS
            ],
        }
        images = 2 * arguments.shots
        result["shares"] = [
            share(result["episodes"], floor(features, arguments.size, images, arguments.inner_steps))
            for features in arguments.features
        ]
        print_episodes(result, console)
        result["waiting"] = [
            waiting(loaded, arguments.shots, name, workers, arguments.step, arguments.steps)
            for name in AUGMENTATIONS
            for workers in arguments.workers
        ]
        print_waiting(result, console)
        result["preparing"] = preparing(root, arguments.size, arguments.images)
        print_preparing(result, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def twins(root: Path, count: int, size: int) -> Path:
    """Write the twins of both source datasets below root as JPEG and PNG files of size `PUBLISHED`."""
    for name in NAMES:
        folder = root / catalogue.get(name).folders[0]
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        images, masks, ids, _ = twin(name, count, size, TWIN_SEED)
        for image, mask, stem in zip(images, masks, ids, strict=True):
            picture = Image.fromarray(image).resize(PUBLISHED, Image.Resampling.BICUBIC)
            picture.save(folder / "images" / f"{stem}.jpg", quality=90)
            Image.fromarray(mask * np.uint8(255)).resize(PUBLISHED, Image.Resampling.NEAREST).save(
                folder / "masks" / f"{stem}.png"
            )
    return root


def plan(loaded: Sequence[Pool], shots: int, mixing: str, count: int) -> EpisodePlan:
    """A plan over whole pools: K + K images of one pool (exclusive) or of each (mixed)."""
    return EpisodePlan(
        pools=tuple((pool.name, np.arange(len(pool))) for pool in loaded),
        shots=shots,
        query=shots,
        mixing=mixing,
        order="interleaved",
        count=count,
        resample=True,
        seed=0,
    )


def milliseconds(work: Callable[[int], Any], repeats: int) -> float:
    """Median duration of work(0), work(1), …, after a warm-up call."""
    work(repeats)
    taken = []
    for index in range(repeats):
        began = time.perf_counter()
        work(index)
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def stages(loaded: Sequence[Pool], shots: int, mixing: str, augmentation: str, repeats: int) -> dict[str, Any]:
    """Time of a whole episode in one process, ready for a learner, and of its stages."""
    episodes = EpisodeDataset(loaded, plan(loaded, shots, mixing, 2 * (repeats + 1)), augmentation)

    def read(index: int) -> list[tuple[np.ndarray, np.ndarray]]:
        parts = episodes.plan.episode(0, index)
        return [loaded[part.pool].take(which) for part in parts for which in (part.support, part.query)]

    images, masks = map(np.concatenate, zip(*read(0), strict=True))
    return {
        "mixing": mixing,
        "augmentation": augmentation,
        "images": len(images),
        "read_ms": milliseconds(read, repeats),
        "augment_ms": milliseconds(lambda index: augment(augmentation, images, masks, (index,)), repeats),
        "normalise_ms": milliseconds(lambda _: (image_tensor(images), mask_tensor(masks)), repeats),
        "episode_ms": milliseconds(lambda index: episodes[0, index].normalised(), repeats),
    }


def floor(features: int, size: int, images: int, inner_steps: int) -> dict[str, Any]:
    """Estimated minimal cost on this CPU of an outer step with `images` support and as many query images.

    inner_steps + 2 forward and backward passes over `images` images each, scaled from a pass over a few images.
    """
    few = 8 if features <= 8 else 2
    torch.manual_seed(0)
    network = AttentionUNet(features)
    inputs, targets = torch.rand(few, 3, size, size) * 2 - 1, (torch.rand(few, 1, size, size) > 0.8).float()
    loss = LOSSES["bce_log_cosh_dice"]
    taken = milliseconds(lambda _: loss(network(inputs), targets).backward(), 2)
    passed = taken / 1000 * images / few
    return {
        "features": features,
        "measured_images": few,
        "measured_pass_ms": taken,
        "pass": passed,
        "outer_step": (inner_steps + 2) * passed,
    }


def share(episodes: Sequence[dict[str, Any]], least: dict[str, Any]) -> dict[str, Any]:
    """Time of the 2K + 2K images of one outer step (one mixed or two exclusive tasks) in % of its minimal cost."""
    mixed = {one["augmentation"]: one["episode_ms"] for one in episodes if one["mixing"] == "mixed"}
    return least | {f"share_{name}_%": mixed[name] / 10 / least["outer_step"] for name in AUGMENTATIONS}


def waiting(
    loaded: Sequence[Pool], shots: int, augmentation: str, workers: int, seconds: float, count: int
) -> dict[str, Any]:
    """How long a loop of `count` outer steps of `seconds` each waits for episodes."""
    whole = plan(loaded, shots, "exclusive", len(loaded) * count)
    steps = OuterSteps(EpisodeDataset(loaded, whole, augmentation), len(loaded), 0, 1)
    loader = step_loader(steps, lambda: 0, workers)
    device: list[torch.Tensor] = []
    waited, copied = [], []
    began = time.perf_counter()
    for episodes in loader:
        arrived = time.perf_counter()
        parts = [part for episode in episodes for part in episode if part is not None]
        # Copies into preallocated memory simulate the transfer; conversion to floats happens on the device.
        device = device or [torch.zeros_like(part) for part in parts]
        for buffer, part in zip(device, parts, strict=True):
            buffer.copy_(part)
        waited.append(arrived - began)
        copied.append(time.perf_counter() - arrived)
        time.sleep(seconds)
        began = time.perf_counter()
    rest = sum(waited[1:])
    return {
        "augmentation": augmentation,
        "workers": workers,
        "step": seconds,
        "first_ms": 1000 * waited[0],
        "median_ms": 1000 * statistics.median(waited[1:]),
        "largest_ms": 1000 * max(waited[1:]),
        "waiting_%": 100 * rest / (rest + seconds * (len(waited) - 1)),
        "copy_ms": 1000 * statistics.median(copied[1:]),
    }


def preparing(root: Path, size: int, count: int) -> list[dict[str, Any]]:
    """Decode `count` pairs with one thread and with one per core, with files in the system's cache."""
    pairs = [pair for name in NAMES for pair in complete(catalogue.get(name), root).pairs]
    pairs = [pairs[index * len(pairs) // count] for index in range(count)]
    for _ in pools.decode(pairs, size):
        pass
    results = []
    for threads in dict.fromkeys((1, cores())):
        wall, cpu = min(_decoding(pairs, size, threads) for _ in range(3))
        results.append({"threads": threads, "images": count, "seconds": wall, "cores_used": cpu / wall})
    for one in results:
        one["speedup"] = results[0]["seconds"] / one["seconds"]
    return results


def _decoding(pairs: Sequence[Any], size: int, threads: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in pools.decode(pairs, size, threads):
        pass
    return time.perf_counter() - wall, time.process_time() - cpu


def print_episodes(result: dict[str, Any], console: Console) -> None:
    """Print the stages of an episode and its share of an outer step."""
    title = f"An episode at {result['size']}×{result['size']} from the prepared cache, {result['data']}, one process"
    table = Table("set-up", "augmentation", "images", "read", "augment", "normalise", "whole, ms", title=title)
    for one in result["episodes"]:
        parts = (f"{one[key]:.1f}" for key in ("read_ms", "augment_ms", "normalise_ms", "episode_ms"))
        table.add_row(one["mixing"], one["augmentation"], str(one["images"]), *parts)
    console.print(table)
    title = f"Share of the minimal time of an outer step, {result['threads']} threads (estimated from the images given)"
    table = Table("features", "measured on", "minimum, s", *(f"{name}, %" for name in AUGMENTATIONS), title=title)
    for one in result["shares"]:
        shares = (f"{one[f'share_{name}_%']:.3f}" for name in AUGMENTATIONS)
        table.add_row(str(one["features"]), f"{one['measured_images']} images", f"{one['outer_step']:.1f}", *shares)
    console.print(table)


def print_waiting(result: dict[str, Any], console: Console) -> None:
    """Print the waiting times of the loop."""
    seconds = result["waiting"][0]["step"] if result["waiting"] else 0
    title = f"Waiting time of a loop with outer steps of {seconds} s on another device, ms"
    table = Table("augmentation", "workers", "first", "median", "largest", "share, %", "copy", title=title)
    for one in result["waiting"]:
        times = (f"{one[key]:.0f}" for key in ("first_ms", "median_ms", "largest_ms"))
        rest = (f"{one['waiting_%']:.1f}", f"{one['copy_ms']:.0f}")
        table.add_row(one["augmentation"], str(one["workers"]), *times, *rest)
    console.print(table)


def print_preparing(result: dict[str, Any], console: Console) -> None:
    """Print the speed of preparing."""
    table = Table(
        "threads", "images", "s", "images/s", "cores in use", "speed-up", title="Decoding, checking, resizing"
    )
    for one in result["preparing"]:
        speed = f"{one['images'] / one['seconds']:.0f}"
        numbers = (f"{one['seconds']:.2f}", speed, f"{one['cores_used']:.2f}", f"{one['speedup']:.2f}")
        table.add_row(str(one["threads"]), str(one["images"]), *numbers)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Entry point of `python -m benchmarks.episodes`."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.episodes",
        description=summary,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
