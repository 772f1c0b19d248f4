"""`python train.py -m …`: expand a sweep into cells, skip finished ones, resume or run the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from metaseg.errors import MetasegError, listed
from metaseg.runs import tables as definitions
from metaseg.runs.directory import RunDirectory
from metaseg.runs.schema import Run
from metaseg.runs.summary import percent
from metaseg.runs.validation import checked
from metaseg.sweeps import overview
from metaseg.sweeps.cells import Cell, Choice, of_multirun, of_tables
from metaseg.sweeps.datasets import table_of_datasets
from metaseg.sweeps.status import State, Status, status_of

if TYPE_CHECKING:
    from hydra_plugins.metaseg_plugins import CellSweeper

_PLAIN = ("seed", "shots")
"""Keys that every cell has and that do not select a config group."""


@dataclass(frozen=True)
class Planned:
    """A cell with its directory, resolved settings and status."""

    cell: Cell
    directory: RunDirectory
    settings: Mapping[str, Any]
    status: Status


def sweep(sweeper: CellSweeper, arguments: Sequence[str]) -> list[Sequence[JobReturn]]:
    """Run the missing cells of a sweep.

    Args:
        sweeper: the sweeper, with Hydra's configuration and the launcher.
        arguments: overrides from the command line.

    Returns:
        The returns of the jobs, as a single batch, as Hydra expects.

    Raises:
        MetasegError: no cell matches, or one has invalid settings; or, after all cells have run, one failed or has
            results with different settings; for table 1, a dataset is missing or faulty.
    """
    assert sweeper.hydra_context is not None
    assert sweeper.config is not None
    assert sweeper.launcher is not None
    loader = sweeper.hydra_context.config_loader
    if sweeper.table and sweeper.table.get("datasets"):
        config = loader.load_sweep_config(sweeper.config, list(arguments))
        data: Any = OmegaConf.to_container(config.data, resolve=True)
        table_of_datasets(data, None if sweeper.dry_run else Path(sweeper.config.hydra.sweep.dir))
        return []
    choices = [_choice(override) for override in OverridesParser.create(loader).parse_overrides(list(arguments))]
    tables = _tables(sweeper)
    cells = of_tables(tables, choices, sweeper.seeds) if tables else of_multirun(choices)
    root = Path(sweeper.config.hydra.sweep.dir)
    if root.exists() and not root.is_dir():
        raise MetasegError(
            f"Expected a folder for the sweep's cells, found the file {root}: choose another hydra.sweep.dir."
        )
    composed: dict[tuple[str, ...], DictConfig] = {}
    plan = [_planned(loader, sweeper.config, cell, root, composed) for cell in cells]
    console = Console(highlight=False, soft_wrap=True)
    # Wider than a narrow terminal, rather than without a table's last columns.
    console.width = max(console.width, 60 + max((len(one.cell.name) for one in plan), default=0))
    if sweeper.dry_run:
        from metaseg.sweeps.listing import print_plan

        print_plan(plan, console)
        return []
    counts = {state: sum(one.status.state is state for one in plan) for state in State}
    missing = [one for one in plan if one.status.state in (State.NEW, State.BEGUN)]
    for one in missing:  # now, and not when its turn comes after hours
        _require_valid(one)
    console.print(
        f"{len(plan)} cells in {root}: {counts[State.FINISHED]} finished, {counts[State.BEGUN]} to continue, "
        f"{counts[State.NEW]} to run"
        + (f", {counts[State.OTHER]} with different settings" if counts[State.OTHER] else ""),
        markup=False,
    )
    if plan:
        overview.remember(root, [one.cell.name for one in plan])
    for one in missing:
        _set_aside(one.directory)
    returns = sweeper.launcher.launch([_job(one) for one in missing], initial_job_idx=0) if missing else []
    failed = [one for one, job in zip(missing, returns, strict=True) if job.status is not JobStatus.COMPLETED]
    _report(plan, failed, console)
    return [returns]


def _require_valid(planned: Planned) -> None:
    try:
        checked(Run, planned.settings)
    except MetasegError as error:
        raise MetasegError(f"No cell was run, because {planned.cell.name} would be refused: {error}") from error


def _set_aside(directory: RunDirectory) -> None:
    """Rename a damaged result, because a cell that has a result is not run again."""
    try:
        directory.read_result()
    except MetasegError:
        with suppress(OSError):  # usually there is none
            directory.result.replace(directory.path / "result.damaged.json")


def _tables(sweeper: CellSweeper) -> list[definitions.Table]:
    numbers = sweeper.tables or ([sweeper.table["number"]] if sweeper.table else [])
    return [definitions.load_table(number) for number in numbers]


def _choice(override: Any) -> Choice:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return Choice(key, (override.get_value_element_as_str(),))
    if not override.is_discrete_sweep():
        raise MetasegError(f"A sweep needs discrete values, as in {key}=1,2, found {override.input_line}.")
    return Choice(key, tuple(override.sweep_string_iterator()))


def _planned(
    loader: ConfigLoader, sweep_config: DictConfig, cell: Cell, root: Path, composed: dict[tuple[str, ...], DictConfig]
) -> Planned:
    """The cell with its settings. Composing is slow, so `composed` caches it for cells that share a composition."""
    plain = {key: value for key, value in cell.overrides if key in _PLAIN}
    shared = tuple(argument for argument in cell.arguments() if argument.partition("=")[0] not in plain)
    if shared not in composed:
        config = loader.load_sweep_config(sweep_config, list(shared))
        composed[shared] = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    of_job = composed[shared]
    for override in OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in plain.items()]):
        OmegaConf.update(of_job, override.key_or_group, override.value())
    settings: dict[str, Any] = OmegaConf.to_container(of_job, resolve=True)  # type: ignore[assignment]
    directory = RunDirectory(root / cell.name)
    return Planned(cell, directory, settings, status_of(directory, settings))


def _job(planned: Planned) -> list[str]:
    resume = ["ckpt_path=last"] if planned.status.state is State.BEGUN else []
    # First, so that the command line takes precedence.
    named = [f"logger.cell='{planned.cell.seedless}'"]
    return [*named, *planned.cell.arguments(), *resume, f"hydra.sweep.subdir='{planned.cell.name}'"]


def _report(plan: Sequence[Planned], failed: Sequence[Planned], console: Console) -> None:
    """Print the Dice of every cell; raises if a cell failed or has different settings."""
    table = Table("cell", "target", "Dice, %", "95 % interval", box=None, pad_edge=False)
    for one in plan:
        try:
            targets = one.directory.read_result().targets
        except MetasegError:
            continue
        for target, scores in targets.items():
            low, mean, high = map(percent, (scores.dsc.low, scores.dsc.mean, scores.dsc.high))
            table.add_row(one.cell.name, target, mean, f"{low} – {high}")
    console.print(table)
    other = [one for one in plan if one.status.state is State.OTHER]
    problems = []
    if failed:
        problems.append(
            f"{len(failed)} of {len(plan)} cells failed ({_names(failed)}); repeat the command to retry them"
        )
    if other:
        first = "; ".join(other[0].status.differences[:3])
        problems.append(
            f"{len(other)} of {len(plan)} cells have existing results with different settings, which were kept "
            f"({_names(other)}; first: {first}); choose another hydra.sweep.dir or move them away"
        )
    if problems:
        raise MetasegError(". ".join(problems) + ".")


def _names(cells: Sequence[Planned]) -> str:
    return listed([one.cell.name for one in cells], 5)
