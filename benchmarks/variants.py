"""iMAML's outer step in other precisions, memory layouts and compiled, each compared with float32 in the same run.

The same measurements give the share of the step outside convolutions and the time for the paper's tables.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks import training_hours as training
from benchmarks.compilation import cold_compiler, compile_cost
from benchmarks.convolutions import HOW, shares
from benchmarks.methods import ours
from benchmarks.methods.base import TOLERANCE
from benchmarks.methods.variants import BASE, VARIANTS
from benchmarks.report import Report
from benchmarks.setting import Setting, make_episode
from benchmarks.timing import Timing, round_robin
from metaseg.data.batches import Episode
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.memory import of_call, tidy
from metaseg.meta.gradients import MetaGradient
from metaseg.training.process import prepare_process

COLUMNS = (
    "variant",
    "shots",
    "× base",
    "middle half",
    "cosine",
    "relative error",
    "norm ratio",
    "peak, MiB",
    "products (residual)",
    "remark",
)
PAPER_SHOTS, PAPER_TIMED = (5, 20), (10,)
"""Shots of the table at the paper's size, and shots timed only for the estimate of hours."""


def variants(setting: Setting, rounds: int, compiled: bool = True, paper: bool = False) -> Report:
    """Run the benchmark.

    Args:
        setting: the task.
        rounds: number of rounds of timing.
        compiled: include torch.compile, which takes minutes on a CPU.
        paper: use 32 features, images of 256×256 and 5 and 20 shots instead of the setting's.
    """
    if setting.tf32:
        raise MetasegError("variants compares with float32 and sets TF32 itself; omit --tf32.")
    if paper:
        setting = replace(setting.paper(), shots=PAPER_SHOTS[0])
    names = [name for name, variant in VARIANTS.items() if compiled or not variant.compiled]
    report = Report("variants", "Variants of iMAML's outer step", setting, COLUMNS)
    with cold_compiler():
        for shots in PAPER_SHOTS if paper else (setting.shots,):
            numbers = measure(replace(setting, shots=shots), names, rounds)
            report.rows += [_row(shots, numbers["variants"][name]) for name in names]
            report.numbers[f"{shots} shots"] = numbers
        for shots in PAPER_TIMED if paper else ():
            report.numbers[f"{shots} shots"] = measure(replace(setting, shots=shots), [BASE], rounds)
    report.notes = _notes(setting, rounds, report.numbers)
    return report


def measure(setting: Setting, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """All measurements at one number of shots.

    Returns:
        ``variants``: name → measurements, or why it is ``missing``; ``maml``: likewise for second-order MAML in
        float32, time only; ``shares`` of the base step (None: unavailable).
    """
    setting.apply()
    prepare_process(tf32=False)
    episode = make_episode(setting)
    runs: dict[str, Callable[[], MetaGradient]] = {}
    found: dict[str, dict[str, Any]] = {}
    expected = torch.zeros(0)
    with Console(stderr=True).status("first runs") as status:
        for name in names:
            variant = VARIANTS[name]
            status.update(f"first run, {setting.shots} shots: {variant.title}")
            reason = variant.missing(setting.device) if BASE in runs or name == BASE else "the base cannot be run"
            if reason is not None:
                found[name] = {"title": variant.title, "missing": reason}
                continue
            try:
                learner = variant.learner(setting)
                plain = VARIANTS[BASE].learner(setting)
                once = compile_cost(setting, learner, plain, episode, rounds) if variant.compiled else {}
                run = _run(learner, episode, variant.tf32)
                result = run()
                expected = expected if runs else result.gradient
                # The second run completes the warm-up; for the base it also measures repeatability.
                again, peak = _again(run, setting.device)
                compared = compare(again.gradient if name == BASE else result.gradient, expected)
            except Exception as error:  # one failing variant must not lose the table
                found[name] = {"title": variant.title, "missing": _failed(error)}
                continue
            runs[name] = run
            assert result.solution is not None
            solve = {"products": result.solution.iterations, "residual": result.solution.residual}
            found[name] = {"title": variant.title, **compared, **solve, "peak_mib": peak, **once}
        maml, found_maml = _maml(setting, episode) if BASE in runs else (None, {"missing": "the base cannot be run"})
    if BASE not in runs:
        return {"variants": found, "maml": found_maml, "shares": None}
    base = runs.pop(BASE)
    of_base, timings = round_robin(runs | ({"maml": maml} if maml else {}), base, rounds, setting.device)
    for name, timing in {BASE: of_base, **timings}.items():
        (found_maml if name == "maml" else found[name]).update(_times(timing))
    return {"variants": found, "maml": found_maml, "shares": shares(base, setting.device)}


def compare(x: Tensor, base: Tensor) -> dict[str, float]:
    """``cosine``, ``relative`` error ‖x - base‖ / ‖base‖ and ``norm_ratio`` ‖x‖ / ‖base‖, in double precision."""
    x, base = x.double(), base.double()
    cosine = torch.nn.functional.cosine_similarity(x, base, dim=0)
    numbers = {"cosine": cosine, "relative": (x - base).norm() / base.norm(), "norm_ratio": x.norm() / base.norm()}
    return {name: number.item() for name, number in numbers.items()}


def _run(learner: Learner, episode: Episode, tf32: bool) -> Callable[[], MetaGradient]:
    theta = learner.theta()

    def run() -> MetaGradient:
        _set_tf32(tf32)
        try:
            return learner.meta_gradient(theta, episode)
        finally:
            _set_tf32(False)

    return run


def _set_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def _again(run: Callable[[], MetaGradient], device: str) -> tuple[MetaGradient, float | None]:
    """Run once more; on a GPU also return the peak above the memory in use before, in MiB."""
    if device == "cpu":
        return run(), None
    results: list[MetaGradient] = []
    tidy(device)
    peak, _ = of_call(lambda: results.append(run()), device)
    return results[0], peak


def _maml(setting: Setting, episode: Episode) -> tuple[Callable[[], MetaGradient] | None, dict[str, Any]]:
    """MAML, with checkpointed inner steps if they do not fit into memory otherwise."""
    reason = ""
    for checkpoint in (False, True):
        try:
            run = _run(ours.maml_learner(setting, checkpoint), episode, tf32=False)
            run()
        except RuntimeError as error:
            reason = _failed(error)
        else:
            return run, {"checkpoint": checkpoint}
        tidy(setting.device)
    return None, {"missing": reason}


def _failed(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _times(timing: Timing) -> dict[str, Any]:
    return {"seconds": timing.seconds, "ratios": timing.ratios, "ratio": timing.ratio, "spread": timing.spread}


def _row(shots: int, found: dict[str, Any]) -> list[str]:
    if "missing" in found:
        return [found["title"], str(shots), *("" for _ in COLUMNS[3:]), found["missing"]]
    low, high = found["spread"]
    return [
        found["title"],
        str(shots),
        f"{found['ratio']:.2f}",
        f"{low:.2f} - {high:.2f}",
        f"{found['cosine']:.6f}",
        f"{found['relative']:.1e}",
        f"{found['norm_ratio']:.4f}",
        "" if found["peak_mib"] is None else f"{found['peak_mib']:.0f}",
        f"{found['products']} ({found['residual']:.1e})",
        "" if math.isfinite(found["relative"]) else "the gradient is not finite",
    ]


def _notes(setting: Setting, rounds: int, numbers: dict[str, Any]) -> list[str]:
    notes = [
        f"One outer step of one task, solved to a relative residual of {TOLERANCE:g}; shots as in the column. "
        f"Time: median over {rounds} rounds of the ratio to the base of the same round; middle half: 25 % to 75 %. "
        "Other precisions and compilation apply only to inner steps, except TF32 everywhere; channels last applies to "
        "the whole step.",
        "Cosine, ‖x - base‖ / ‖base‖ and ‖x‖ / ‖base‖ of the meta-gradient x; in the base's row, of a second run. "
        "Products: curvature products of the solve, and the relative residual reached. Peak: memory of one step above "
        "that in use before, by torch.cuda.max_memory_allocated; not measured on a CPU.",
    ]
    for title, found in numbers.items():
        notes += [f"{title}: {line}" for line in findings(setting, found)]
    return notes + training.notes(
        {
            learner: {
                int(title.split()[0]): median(row["seconds"])
                for title, found in numbers.items()
                if "seconds" in (row := found["maml"] if learner == "maml" else found["variants"][BASE])
            }
            for learner in ("imaml", "maml")
        }
    )


def findings(setting: Setting, found: dict[str, Any]) -> list[str]:
    """Sentences on the results of ``measure`` that are not in the table."""
    lines = []
    if "missing" in found["maml"]:
        lines.append(f"MAML {found['maml']['missing']}.")
    elif found["maml"]["checkpoint"]:
        lines.append("MAML did not fit into memory; it was timed with learner.checkpoint=true.")
    if part := found["shares"]:
        lines.append(
            f"{1 - part['convolution']:.0%} of the base step's time on the device is not spent in convolutions, "
            f"including {part['matrix']:.0%} of the time in matrix products, which implement the 1×1 convolutions "
            f"({HOW[setting.device]}; {1000 * part['seconds']:.1f} ms in all, of a step of "
            f"{1000 * median(found['variants'][BASE]['seconds']):.1f} ms without the profiler)."
        )
    elif BASE in found["variants"] and "missing" not in found["variants"][BASE]:
        lines.append("the profiler recorded nothing, so the share of convolutions is unknown.")
    cost = found["variants"].get("compiled", {})
    if "compile_seconds" in cost:
        even, tasks = cost["break_even_evaluations"], cost["break_even_tasks"]
        lines.append(
            f"compiling takes {cost['compile_seconds']:.1f} s once (nothing cached) and saves "
            f"{1000 * cost['saved_seconds']:.2f} ms of the {1000 * cost['evaluation_seconds']:.2f} ms of an inner "
            "evaluation: it "
            + (
                "never pays off."
                if even is None
                else f"pays off after {even:.0f} evaluations, {tasks:.0f} tasks with {setting.inner_steps} inner steps."
            )
        )
    return lines
