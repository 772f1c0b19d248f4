"""Peak memory of one run of a method."""

from benchmarks.methods.registry import ALL
from benchmarks.setting import Setting, make_problem
from metaseg.memory import of_call, tidy


def of_method(setting: Setting, name: str) -> dict[str, float | str]:
    """Peak memory of one run above the memory in use before it, in a process that has only run the miniature task.

    One-time set-up (network, images, imports) is excluded; the weights that the method adapts are included.

    Returns:
        ``mib`` and ``how`` (a key of `metaseg.memory.HOW`).
    """
    method = ALL[name]
    method.prepare(make_problem(setting.miniature()))()
    run = method.prepare(make_problem(setting))
    tidy(setting.device)
    peak, how = of_call(run, setting.device)
    return {"mib": peak, "how": how}
