"""Scaling on paper: what one task of an outer step computes, counted, and what it sends, over several V100 GPUs.

Operations are counted by running one task on small images: those of convolutions grow with the pixels. Speeds are
published peaks times an assumed share of them, so the times say where communication begins to matter, not how long
training takes.
"""

from dataclasses import dataclass, replace

from benchmarks.methods import ours
from benchmarks.report import Report
from benchmarks.setting import Setting, make_episode
from metaseg.meta.vectors import flatten
from metaseg.training.compute import FlopCounter

COLUMNS = (
    "GPUs",
    "tasks per GPU and step",
    "tasks per step",
    "compute, ms",
    "sending, ms",
    "efficiency",
    "tasks per s",
)
GPUS = (1, 8, 64)
TASKS = (1, 2, 4)

PEAK = 15.7e12
"""Float32 operations of a V100 SXM2 per second [NVIDIA Tesla V100 datasheet]."""
USED = 0.4
"""Share of the peak that convolutions of this size reach [assumed]."""
IN_NODE, BETWEEN = 120e9, 10e9
"""Bytes per second of a ring between the eight GPUs of a node (NVLink 2, 150 GB/s each way), and of a node's link
(EDR InfiniBand, 12.5 GB/s), at 80 % of their peaks [assumed]."""
NODE = 8
HOP = 20e-6
"""Seconds of one hop of a ring, mostly the start of a kernel [assumed]."""
COUNTED = 64
"""Largest side in pixels of the images whose operations are counted: one task of 256 takes a CPU over five minutes."""


@dataclass(frozen=True)
class Step:
    """One task of an outer step.

    Attributes:
        operations: floating-point operations.
        bytes: that a rank contributes to the all-reduce: the gradient and the norm statistics, in float32.
    """

    operations: float
    bytes: int

    def seconds(self, tasks: int) -> float:
        """Of computing so many tasks on one GPU."""
        return tasks * self.operations / (USED * PEAK)


def measured(setting: Setting) -> Step:
    """Count the operations and bytes of one task of iMAML."""
    small = replace(setting, size=min(setting.size, COUNTED))
    learner = ours.imaml_learner(small, "hessian", ours.TOLERANCE)
    with FlopCounter() as count:
        found = learner.meta_gradient(learner.theta(), make_episode(small))
    operations = count.flops * (setting.size / small.size) ** 2
    statistics = sum(flatten(pair).numel() for pair in found.found.values())
    # Beside these: the number of tasks and the diagnostics, some 60 bytes.
    return Step(operations, 4 * (found.gradient.numel() + statistics))


def all_reduce(size: int, gpus: int) -> float:
    """Seconds to sum a vector of ``size`` bytes over the GPUs: a ring in each node, then one between nodes."""
    nodes = -(-gpus // NODE)
    near = min(gpus, NODE)
    within = 2 * (near - 1) * (size / near / IN_NODE + HOP)
    across = 2 * (nodes - 1) * (size / nodes / BETWEEN + HOP)
    return within + across


def scaling(setting: Setting) -> Report:
    """Run the benchmark."""
    setting.apply()
    step = measured(setting)
    report = Report("scaling", "Scaling over V100 GPUs, on paper", setting, COLUMNS)
    report.numbers = {"operations": step.operations, "bytes": step.bytes, "rows": []}
    for gpus in GPUS:
        sending = all_reduce(step.bytes, gpus)
        for tasks in TASKS:
            computing = step.seconds(tasks)
            efficiency = computing / (computing + sending)
            rate = gpus * tasks / (computing + sending)
            numbers = {"gpus": gpus, "tasks": tasks, "compute": computing, "sending": sending, "efficiency": efficiency}
            report.numbers["rows"].append(numbers)
            cells = (f"{1000 * computing:.0f}", f"{1000 * sending:.1f}", f"{efficiency:.1%}", f"{rate:.1f}")
            report.rows.append([str(gpus), str(tasks), str(gpus * tasks), *cells])
    report.notes = [
        f"One task computes {step.operations / 1e12:.2f}·10¹² operations (counted) and each rank sends "
        f"{step.bytes / 1e6:.1f} MB once per step: the gradient summed over its tasks, and the norm statistics.",
        f"Assumed: {USED:.0%} of a V100's {PEAK / 1e12:.1f}·10¹² float32 operations per second; nodes of {NODE}, rings "
        f"of {IN_NODE / 1e9:.0f} GB/s within and {BETWEEN / 1e9:.0f} GB/s between them; {1e6 * HOP:.0f} µs a hop. Not "
        "counted: tasks of unequal length, for which the ranks wait, and loading, which runs beside the step.",
    ]
    return report
