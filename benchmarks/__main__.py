"""Run benchmarks: `python -m benchmarks COMMAND`, in the repository's root."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from benchmarks.adaptation import adaptation
from benchmarks.memory import memory
from benchmarks.methods.registry import METHODS, choose
from benchmarks.outer_step import outer_step
from benchmarks.own_images import own_images
from benchmarks.products import products
from benchmarks.report import Report
from benchmarks.setting import Setting
from benchmarks.worker import quieten
from metaseg.cli.arguments import fail
from metaseg.data import catalogue
from metaseg.errors import MetasegError
from metaseg.runs.provenance import check_gpu
from metaseg.system import cores

COMMANDS = {
    "outer_step": "time, memory and error of every method for meta-gradients, compared with other libraries",
    "products": "cost of one curvature product in units of a forward and backward pass",
    "memory": "peak memory against the number of inner steps",
    "own_images": "a few annotated images of each kind: Dice, time, error of the expected Dice, confidence",
    "adaptation": "Dice against seconds of adapting to a new dataset, by recipe; time relative to the plain passes",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark; print and save its table."""
    quieten()
    options = _options(arguments)
    try:
        setting = _setting(options)
        setting.apply()
        _carry_out(options, setting).publish(options.out)
    except MetasegError as error:
        fail(str(error))


def _carry_out(options: argparse.Namespace, setting: Setting) -> Report:
    if options.command == "outer_step":
        methods = choose(options.only)
        return outer_step(setting, methods, options.repeats, not options.no_errors, not options.no_memory)
    if options.command == "products":
        return products(setting, options.repeats)
    if options.command == "memory":
        return memory(setting, options.repeats)
    if options.command == "adaptation":
        return adaptation(setting, options.dataset, options.root, options.images, options.repeats)
    how = {"steps": options.steps, "budget": options.budget}
    record = options.out / "own_images.jsonl"
    return own_images(setting, options.folders, options.of, options.draws, options.images, record, **how)


def _setting(options: argparse.Namespace) -> Setting:
    given = {field.name: getattr(options, field.name) for field in fields(Setting) if hasattr(options, field.name)}
    if given["device"] == "cuda":
        if not torch.cuda.is_available():
            raise MetasegError("--device cuda needs a GPU, but torch sees none; use --device cpu.")
        check_gpu()
    for name in ("features", "size", "shots", "inner_steps", "cg_steps", "lam", "lr", "threads"):
        if given.get(name, 1) <= 0:
            raise MetasegError(f"--{name.replace('_', '-')} must be positive, found {given[name]}.")
    if given["size"] % 16:
        raise MetasegError(f"--size must be a multiple of 16, found {given['size']}.")
    setting = Setting(**given)
    return setting.paper() if getattr(options, "paper", False) else setting


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    shape = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    default = Setting()
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, formatter_class=shape)
        add = command.add_argument
        add(
            "--size",
            type=int,
            default=128 if name == "adaptation" else default.size,
            help="side of the images in pixels",
        )
        add(
            "--shots",
            type=int,
            default=5 if name == "adaptation" else default.shots,
            help="support images, and as many query images",
        )
        add("--seed", type=int, default=default.seed, help="seed of weights and images")
        add("--threads", type=int, default=cores(), help="torch threads")
        add("--device", choices=("cpu", "cuda"), default=default.device, help="device to run on")
        add("--out", type=Path, default=Path("benchmarks/results"), help="folder for the Markdown and JSON files")
        if name not in ("adaptation", "own_images"):
            add("--features", type=int, default=default.features, help="width of the attention U-Net")
            add("--inner-steps", type=int, default=default.inner_steps, help="number of inner steps T")
            add("--cg-steps", type=int, default=default.cg_steps, help="conjugate gradient steps")
            add("--lam", type=float, default=default.lam, help="lambda of the proximal term")
            add("--lr", type=float, default=default.lr, help="learning rate of the inner steps")
            add(
                "--norm", choices=("support", "batch"), default=default.norm, help="statistics that normalise the query"
            )
            add("--tf32", action="store_true", help="allow TF32 on a GPU")
        if name == "own_images":
            add("folders", type=Path, nargs="+", help="folders of annotated images, each of one kind")
            add("--of", type=int, nargs="+", default=[1, 5, 20], help="numbers of annotated images")
            add("--draws", type=int, default=2, help="random choices of the annotated images")
            add("--images", type=int, default=60, help="maximum number of other images to score")
            add("--steps", type=int, help="adaptation steps; default: as many as the budget allows")
            add("--budget", type=float, default=60.0, help="seconds for adapting and 20 images")
        else:
            add("--repeats", type=int, default=1 if name == "adaptation" else 10, help="rounds of timing")
        if name == "adaptation":
            add("--dataset", default="kvasir", choices=catalogue.names(), help="dataset to adapt to")
            add("--root", type=Path, help="folder of the dataset; default: its synthetic twin")
            add("--images", type=int, default=100, help="maximum number of other images to score")
        if name == "outer_step":
            add("--only", nargs="+", metavar="NAME", help=f"methods among {', '.join(METHODS)}; None: all")
            add("--no-errors", action="store_true", help="skip the double-precision reference")
            add("--no-memory", action="store_true", help="skip peak memory, which needs a fresh process per method")
            add("--paper", action="store_true", help="32 features, 256x256, overriding other options")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
