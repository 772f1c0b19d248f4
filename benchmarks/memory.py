"""Peak memory against inner steps: iMAML's should be constant; MAML's grows unless its steps are checkpointed."""

from collections.abc import Iterable
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.methods.base import Method, MissingError
from benchmarks.methods.ours import CHECKPOINTED
from benchmarks.methods.plain import STEP
from benchmarks.methods.registry import METHODS
from benchmarks.outer_step import measure_peaks
from benchmarks.report import Report
from benchmarks.setting import Setting, make_problem
from benchmarks.timing import round_robin
from metaseg.memory import HOW

COLUMNS = ("method", "inner steps", "memory, MiB", "× plain step", "× fewest steps", "time × not checkpointed")
IMPLICIT_STEPS = (1, 5, 50)
UNROLLED_STEPS = (1, 4, 16)


def memory(
    setting: Setting,
    rounds: int,
    implicit_steps: Iterable[int] = IMPLICIT_STEPS,
    unrolled_steps: Iterable[int] = UNROLLED_STEPS,
) -> Report:
    """Run the benchmark."""
    setting.apply()
    cases = [(METHODS[name], tuple(implicit_steps)) for name in ("imaml_hessian_forced", "imaml_gn_forced")]
    cases += [(method, tuple(unrolled_steps)) for method in (METHODS["maml"], CHECKPOINTED)]
    step = measure_peaks(setting, [STEP])[STEP.name]
    report = Report("memory", "Peak memory over inner steps", setting, COLUMNS, numbers={STEP.name: step})
    for method, counts in cases:
        first = None
        for count in counts:
            chosen = replace(setting, inner_steps=count)
            peak = measure_peaks(chosen, [method])[method.name]
            numbers: dict[str, Any] = {"title": method.title, "inner_steps": count, "memory": peak}
            report.numbers[f"{method.name}_{count}"] = numbers
            if "missing" in peak:
                report.rows.append([method.title, str(count), peak["missing"], "", "", ""])
                continue
            first = first or peak["mib"]
            shares = [f"{peak['mib'] / whole:.2f}" if whole else "" for whole in (step.get("mib"), first)]
            cells = [method.title, str(count), f"{peak['mib']:.0f}", *shares]
            if method is CHECKPOINTED:
                numbers["ratios"] = slowdown(chosen, method, rounds)
            report.rows.append([*cells, f"{median(numbers['ratios']):.2f}" if numbers.get("ratios") else ""])
    report.notes = [
        "Inner steps as in the column, not as in the setting above. Implicit gradients with all CG steps forced.",
        f"Memory: peak of one run above the memory in use before it, each in a fresh process that returns "
        f"freed memory at once, by {HOW[step['how']]}. "
        f"One plain training step: {step['mib']:.0f} MiB."
        if "mib" in step
        else f"Memory of a plain training step not measured: {step['missing']}.",
        f"Time: median over {rounds} rounds of the ratio to MAML without checkpointing in the same round.",
    ]
    return report


def slowdown(setting: Setting, method: Method, rounds: int) -> list[float]:
    """Ratios of a method's time to MAML's without checkpointing; empty if either cannot be run."""
    problem = make_problem(setting)
    try:
        base, run = METHODS["maml"].prepare(problem), method.prepare(problem)
    except MissingError:
        return []
    base(), run()
    return round_robin({method.name: run}, base, rounds, setting.device)[1][method.name].ratios
