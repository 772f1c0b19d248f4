"""Hydra's plugins, a sweeper and a launcher, loaded at every start; the work is done in metaseg.sweeps."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class CellSweeper(Sweeper):
    """Expands a multirun, or the tables of conf/experiment, into cells and runs the missing ones.

    The arguments are the keys of conf/hydra/sweeper/cells.yaml.
    """

    def __init__(self, table: Any, tables: Any, seeds: Any, dry_run: bool) -> None:
        self.table, self.tables, self.seeds, self.dry_run = table, tables, seeds, dry_run

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context and set up the launcher."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the missing cells of the sweep given by the command line."""
        from metaseg.sweeps.sweep import sweep

        return sweep(self, arguments)


class CellLauncher(Launcher):
    """Runs each cell in a process of its own; the arguments are the keys of its file in conf/hydra/launcher."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context, and the arguments from `metaseg.cli.entry` that start the program."""
        self.hydra_context, self.config = hydra_context, config
        self.program: tuple[str, ...] = task_function.program  # type: ignore[attr-defined]

    def flags(self) -> list[str]:
        """Command-line options that cells need in addition to overrides: extra configuration folders."""
        sources = self.config.hydra.runtime.config_sources
        return [part for one in sources if one.provider == "command-line" for part in ("--config-dir", one.path)]


class SlotLauncher(CellLauncher):
    """Several cells at a time on this machine."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; a failed one is reported and the others still run."""
        from metaseg.sweeps.local_launcher import launch

        return launch(self, job_overrides)


class SlurmLauncher(CellLauncher):
    """Cells as jobs of a Slurm array."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit all jobs and wait for them."""
        from metaseg.sweeps.slurm import launch

        return launch(self, job_overrides)
