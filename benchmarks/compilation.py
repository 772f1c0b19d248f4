"""The one-time cost of compiling the inner loop, and after how many steps it pays off."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from benchmarks.setting import Setting
from benchmarks.timing import round_robin, timed
from metaseg.data.batches import Episode
from metaseg.learners.base import Learner
from metaseg.meta.inner_loop import as_leaves, by_autograd
from metaseg.meta.vectors import flatten


def compile_cost(setting: Setting, learner: Learner, plain: Learner, episode: Episode, rounds: int) -> dict[str, Any]:
    """Seconds that compiling takes once, and saves in each evaluation of the support loss in the inner loop.

    Args:
        setting: the task.
        learner: a learner that compiles and has not been called yet.
        plain: the same without compilation.
        episode: the task's images.
        rounds: number of timings of an evaluation.

    Returns:
        ``compile_seconds``: the first evaluation minus a later one; ``saved_seconds``: median over the rounds of an
        eager evaluation minus a compiled one; ``break_even_evaluations`` and, at K of them per task,
        ``break_even_tasks``: None if nothing is saved.
    """
    torch.compiler.reset()
    theta = learner.theta()
    start, compiled = flatten(theta.values()), learner.episode_task(theta, episode).task.evaluate
    assert compiled is not None
    by_eager = by_autograd(plain.episode_task(theta, episode).task.objective)
    runs = [lambda evaluate=evaluate: evaluate(as_leaves(start, theta)) for evaluate in (compiled, by_eager)]
    first = timed(runs[0], setting.device)
    for run in runs:
        run()
    of_plain, timings = round_robin({"compiled": runs[0]}, runs[1], rounds, setting.device)
    seconds = timings["compiled"].seconds
    once = first - median(seconds)
    saved = median(before - after for before, after in zip(of_plain.seconds, seconds, strict=True))
    evaluations = once / saved if saved > 0 else None
    return {
        "compile_seconds": once,
        "evaluation_seconds": median(of_plain.seconds),
        "saved_seconds": saved,
        "break_even_evaluations": evaluations,
        "break_even_tasks": None if evaluations is None else evaluations / setting.inner_steps,
    }


@contextmanager
def cold_compiler() -> Iterator[None]:
    """Hide the compilation cache of earlier processes from torch.compile."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name)
            os.environ.update({} if before is None else {name: before})
