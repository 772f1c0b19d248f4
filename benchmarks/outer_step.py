"""The outer step: time, memory and error of each method for meta-gradients, relative to the passes all of them need."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.methods.base import QUANTITIES, Answer, Method, MissingError, Run
from benchmarks.methods.plain import FLOOR, STEP
from benchmarks.reference import Error, Reference
from benchmarks.report import Report
from benchmarks.setting import Problem, Setting, make_problem
from benchmarks.timing import Timing, round_robin
from benchmarks.worker import in_fresh_process
from metaseg.memory import HOW, tidy
from metaseg.training.process import prepare_process

COLUMNS = (
    "method",
    "computes",
    "× floor",
    "middle half",
    "memory, MiB",
    "× plain step",
    "error (cosine)",
    "residual",
    "it says",
    "products",
)


def outer_step(
    setting: Setting, methods: Sequence[Method], rounds: int, errors: bool = True, memory: bool = True
) -> Report:
    """Run the benchmark.

    Args:
        setting: the task.
        methods: methods to compare.
        rounds: number of rounds of timing.
        errors: compare with the double-precision reference, which needs as much time and memory as the slowest methods.
        memory: measure peak memory, each in a fresh process.
    """
    setting.apply()
    prepare_process(setting.tf32)
    problem = make_problem(setting)
    runs, answers, reasons = first_answers(problem, methods)
    floor = FLOOR.prepare(problem)
    floor()
    of_floor, timings = round_robin(runs, floor, rounds, setting.device)
    exact = judge(setting, methods, answers) if errors else {}
    tidy(setting.device)  # fresh processes share the GPU
    peaks = measure_peaks(setting, [STEP, FLOOR, *(method for method in methods if method.name in runs)], memory)

    report = Report("outer_step", "Outer step", setting, COLUMNS)
    report.rows.append(_row(FLOOR, of_floor, peaks))
    numbers: dict[str, Any] = {FLOOR.name: {"title": FLOOR.title, "seconds": of_floor.seconds}}
    for method in methods:
        if method.name in reasons:
            report.rows.append([method.title, *("" for _ in COLUMNS[2:]), reasons[method.name]])
            numbers[method.name] = {"title": method.title, "missing": reasons[method.name]}
            continue
        answer, timing, error = answers[method.name], timings[method.name], exact.get(method.name)
        report.rows.append(_row(method, timing, peaks, answer, error))
        numbers[method.name] = {
            "title": method.title,
            "quantity": method.quantity,
            "seconds": timing.seconds,
            "ratios": timing.ratios,
            "ratio": timing.ratio,
            "products": answer.products,
            "residual_reported": answer.residual,
            "error": error if isinstance(error, str) or error is None else vars(error),
        }
    for name, peak in peaks.items():
        numbers.setdefault(name, {})["memory"] = peak
    report.numbers = numbers
    report.notes = _notes(setting, of_floor, rounds, peaks)
    return report


def first_answers(
    problem: Problem, methods: Sequence[Method]
) -> tuple[dict[str, Run], dict[str, Answer], dict[str, str]]:
    """Set up and run each method once: returns runs, answers (on the CPU), and why the others cannot be run."""
    runs: dict[str, Run] = {}
    answers: dict[str, Answer] = {}
    reasons: dict[str, str] = {}
    with Console(stderr=True).status("first runs") as status:
        for method in methods:
            status.update(f"first run: {method.title}")
            try:
                run = method.prepare(problem)
                answer = run()
            except MissingError as reason:
                reasons[method.name] = str(reason)
            except Exception as error:  # one failing method must not lose the table
                reasons[method.name] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
            else:
                gradient = None if answer.gradient is None else answer.gradient.detach().cpu()
                answers[method.name] = Answer(gradient, answer.products, answer.residual, answer.phi)
                runs[method.name] = run
    return runs, answers, reasons


def judge(setting: Setting, methods: Sequence[Method], answers: dict[str, Answer]) -> dict[str, Error | str]:
    """Each answer's error, or why there is none (the reference may not fit into memory)."""
    found: dict[str, Error | str] = {}
    with Console(stderr=True).status("reference in double precision"):
        references: list[tuple[Tensor | None, Reference]] = []
        for method in methods:
            if method.name not in answers or method.quantity is None:
                continue
            gradient, phi = answers[method.name].gradient, answers[method.name].phi
            assert gradient is not None
            try:
                reference = next((known for at, known in references if _equal(at, phi)), None)
                if reference is None:
                    reference = Reference(setting, phi)
                    references.append((phi, reference))
                found[method.name] = reference.error(method.quantity, gradient)
            except RuntimeError as error:
                found[method.name] = f"no reference: {type(error).__name__}"
            else:
                if method.quantity in reference.unsolved:
                    residual = reference.unsolved[method.quantity]
                    found[method.name] = f"reference itself unsolved (residual {residual:.0e})"
    return found


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def measure_peaks(setting: Setting, methods: Sequence[Method], wanted: bool = True) -> dict[str, dict[str, Any]]:
    """Name → ``mib`` and ``how``, or ``missing``."""
    peaks: dict[str, dict[str, Any]] = {}
    with Console(stderr=True).status("memory") as status:
        for method in methods if wanted else ():
            status.update(f"memory: {method.title}")
            try:
                peaks[method.name] = in_fresh_process(
                    "benchmarks.peak:of_method", setting, method.name, live_memory=True
                )
            except MissingError as reason:
                peaks[method.name] = {"missing": str(reason)}
    return peaks


def _row(
    method: Method,
    timing: Timing,
    peaks: dict[str, dict[str, Any]],
    answer: Answer | None = None,
    error: Error | str | None = None,
) -> list[str]:
    low, high = timing.spread
    peak, step = (peaks.get(name, {}).get("mib") for name in (method.name, STEP.name))
    if isinstance(error, Error):
        shown, residual = f"{error.relative:.1e} ({error.cosine:.6f})", _number(error.residual)
    else:
        shown, residual = error or "", ""
    return [
        method.title,
        QUANTITIES[method.quantity] if method.quantity else "",
        f"{timing.ratio:.2f}",
        f"{low:.2f} - {high:.2f}",
        "" if peak is None else f"{peak:.0f}",
        "" if peak is None or not step else f"{peak / step:.1f}",
        shown,
        residual,
        _number(answer.residual) if answer else "",
        "" if answer is None or answer.products is None else str(answer.products),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _notes(setting: Setting, floor: Timing, rounds: int, peaks: dict[str, dict[str, Any]]) -> list[str]:
    notes = [
        f"Floor: {setting.inner_steps + 1} forward and backward passes over the support set and one over the query "
        f"set, with torch's own layers; median {1000 * median(floor.seconds):.1f} ms. Time is the median over "
        f"{rounds} rounds of the ratio to the floor of the same round, with all methods in turn in one process; "
        "middle half: 25 % to 75 % of these ratios. As in training, the process keeps freed memory.",
        "Error: ‖x - exact‖ / ‖exact‖ and cosine against the exact result in double precision "
        "(g = ∇L(φ; Q); H, G: Hessian and Gauss-Newton matrix of the support loss at φ). Implicit and first-order "
        "gradients are compared at the φ reached by the inner loop at the precision above (metaseg's own; for the "
        "others that of plain torch), unrolled ones from θ, so that their error includes rounding in the inner loop, "
        "which is the same for all. "
        "Residual: ‖g - A x‖ / ‖g‖ of the method's answer with the double-precision operator, followed by the value "
        "that the method reports, if any. Products: curvature products, including those for an initial residual.",
    ]
    if STEP.name in peaks and "mib" in peaks[STEP.name]:
        step = peaks[STEP.name]
        notes.append(
            f"Memory: peak of one run above the memory in use before it, each in a fresh process that returns "
            f"freed memory at once, by {HOW[step['how']]}. "
            f"One plain training step (forward and backward over the support set): {step['mib']:.0f} MiB."
        )
    missing = {name: peak["missing"] for name, peak in peaks.items() if "missing" in peak}
    return notes + [f"Memory of {name} not measured: {reason}." for name, reason in missing.items()]
