"""Many tasks in a row with one learner, to see whether memory or time grows between the first and last ten."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.console import Console

from benchmarks.methods import ours
from benchmarks.methods.base import MissingError
from benchmarks.report import Report
from benchmarks.setting import Setting, make_episode
from benchmarks.timing import timed
from benchmarks.worker import in_fresh_process
from metaseg.memory import HOW, MIB, of_call, tidy
from metaseg.system import resident

COLUMNS = (
    "learner",
    "tasks",
    "ms, first",
    "ms, last",
    "in use after, MiB, first",
    "last",
    "highest, MiB, first",
    "last",
)
SPAN = 10


def measure(setting: Setting, name: str, count: str) -> dict[str, Any]:
    """Seconds, memory in use after and peak memory (MiB) of each task; to be run in a fresh process."""
    learner = ours.LEARNERS[name](setting)
    theta = learner.theta()
    learner.meta_gradient(theta, make_episode(setting))
    tidy(setting.device)
    found: dict[str, Any] = {"seconds": [], "in_use": [], "highest": []}
    for index in range(int(count)):
        run = partial(learner.meta_gradient, theta, make_episode(setting, index + 1))

        def task(run: Callable[[], object] = run) -> None:
            found["seconds"].append(timed(run, setting.device))

        before = in_use(setting.device)
        # As in training, memory is not freed explicitly between the tasks.
        peak, found["how"] = of_call(task, setting.device)
        # Memory cached by the allocator counts as in use before the call, so only the sum can be compared.
        found["highest"].append(before + peak)
        found["in_use"].append(in_use(setting.device))
    return found


def in_use(device: str) -> float:
    """MiB allocated by torch on a GPU, or resident in the process."""
    return torch.cuda.memory_allocated() / MIB if device == "cuda" else resident()


def tasks(setting: Setting, count: int) -> Report:
    """Run the benchmark, with one process per learner."""
    report = Report("tasks", f"{count} tasks in a row", setting, COLUMNS)
    how = ""
    with Console(stderr=True).status("tasks") as status:
        for name in ours.LEARNERS:
            status.update(f"tasks: {name}")
            try:
                found = in_fresh_process("benchmarks.tasks:measure", setting, name, str(count))
            except MissingError as reason:
                report.rows.append([name, str(reason), *("" for _ in COLUMNS[2:])])
                report.numbers[name] = {"missing": str(reason)}
                continue
            report.numbers[name], how = found, HOW[found["how"]]
            cells = [f"{1000 * value:.0f}" for value in ends(found["seconds"])]
            cells += [f"{value:.0f}" for key in ("in_use", "highest") for value in ends(found[key])]
            report.rows.append([name, str(count), *cells])
    report.notes = [
        f"First, last: medians over the first and last {min(SPAN, max(count // 2, 1))} tasks, after a warm-up task. "
        "Each learner runs in a separate process, each task has another episode, θ is fixed.",
        f"In use after: {'allocated by torch' if setting.device == 'cuda' else 'resident memory of the process'} after "
        f"a task; highest: peak during it, by {how}.",
    ]
    return report


def ends(values: list[float]) -> tuple[float, float]:
    """Medians of the first and last `SPAN` values, or of the halves if there are fewer."""
    span = min(SPAN, max(len(values) // 2, 1))
    return median(values[:span]), median(values[-span:])
