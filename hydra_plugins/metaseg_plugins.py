"""What Hydra loads of metaseg at each start: a sweeper and a launcher; the work is done in metaseg.sweeps."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class CellSweeper(Sweeper):
    """Expands a multirun, or the tables of conf/experiment, into cells, and runs those that are missing.

    Arguments: the keys of conf/hydra/sweeper/cells.yaml.
    """

    def __init__(self, table: Any, tables: Any, seeds: Any, dry_run: bool) -> None:
        self.table, self.tables, self.seeds, self.dry_run = table, tables, seeds, dry_run

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over, and set the launcher up."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the missing cells of the sweep that the command line describes."""
        from metaseg.sweeps.sweep import sweep

        return sweep(self, arguments)


class SlotLauncher(Launcher):
    """Runs each cell as a process of its own, several at a time.

    Arguments: the keys of conf/hydra/launcher/slots.yaml.
    """

    def __init__(self, slots: Any, threads: Any) -> None:
        self.slots, self.threads = slots, threads

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over, and how `metaseg.cli.entry` says that the program is started."""
        self.hydra_context, self.config = hydra_context, config
        self.program: tuple[str, ...] = task_function.program  # type: ignore[attr-defined]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; a failed one is reported and does not keep the others from running."""
        from metaseg.sweeps.local_launcher import launch

        return launch(self, job_overrides)
