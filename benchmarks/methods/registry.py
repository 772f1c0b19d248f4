"""All methods, by name."""

from collections.abc import Iterable

from benchmarks.methods import higher_peer, ours, plain, torchopt_peer
from benchmarks.methods.base import Method
from metaseg.errors import MetasegError

METHODS: dict[str, Method] = {
    method.name: method
    for method in (*ours.METHODS, *torchopt_peer.METHODS, *plain.METHODS[:2], *higher_peer.METHODS, *plain.METHODS[2:])
}
"""All methods that compute a meta-gradient, in the order of the table."""

ALL = METHODS | {method.name: method for method in (plain.FLOOR, plain.STEP, ours.CHECKPOINTED)}
"""These, and the plain passes and checkpointed MAML."""


def choose(names: Iterable[str] | None) -> list[Method]:
    """The methods with these names; None: all of the table.

    Raises:
        MetasegError: an unknown name.
    """
    if names is None:
        return list(METHODS.values())
    chosen = list(names)
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise MetasegError(f"--only takes names among {', '.join(METHODS)}; found {unknown[0]!r}.")
    return [method for name, method in METHODS.items() if name in chosen]
