"""The interface of a method: its set-up, the quantity it computes, its answer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Literal

from torch import Tensor

from benchmarks.setting import Problem
from metaseg.errors import installing

Quantity = Literal["hessian", "gauss_newton", "unrolled", "first_order"]

QUANTITIES: dict[Quantity, str] = {
    "hessian": "(I + H/λ)⁻¹ g",
    "gauss_newton": "(I + G/λ)⁻¹ g",
    "unrolled": "through all inner steps",
    "first_order": "g",
}
"""Quantities computed by methods; g = ∇L(φ; Q), H and G: Hessian and Gauss-Newton matrix of the support loss at φ."""


TOLERANCE = 2e-2
"""Relative residual at which solves stop, unless all steps are forced."""


class MissingError(Exception):
    """A method that cannot be run here; the message gives the reason for the table."""


@dataclass(frozen=True)
class Answer:
    """The result of one run of a method.

    Attributes:
        gradient: the meta-gradient, shape (N,); None for plain passes.
        products: number of curvature products, including those for an initial residual.
        residual: ‖g - A x‖ / ‖g‖ as reported by the method.
        phi: the adapted parameters, shape (N,), if the method returns them.
    """

    gradient: Tensor | None = None
    products: int | None = None
    residual: float | None = None
    phi: Tensor | None = None


Run = Callable[[], Answer]


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name: for ``--only``.
        title: for tables.
        quantity: the quantity it should compute; None for plain passes.
        prepare: problem → run; does the one-time set-up, which is not timed.
    """

    name: str
    title: str
    quantity: Quantity | None
    prepare: Callable[[Problem], Run]


def to_tolerance_and_forced(
    name: str, title: str, quantity: Quantity, prepare: Callable[..., Run]
) -> tuple[Method, Method]:
    """A method that solves a system, once to `TOLERANCE` and once with all steps (a tolerance of 0)."""
    return (
        Method(name, f"{title}, to residual {TOLERANCE:g}", quantity, partial(prepare, tolerance=TOLERANCE)),
        Method(f"{name}_forced", f"{title}, all CG steps", quantity, partial(prepare, tolerance=0.0)),
    )


def optional(package: str) -> ModuleType:
    """Import a package of the extra ``benchmarks``.

    Raises:
        MissingError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise MissingError(f"not installed: {installing('benchmarks')}") from error
        raise MissingError(f"cannot be imported: {error}") from error
    except Exception as error:
        raise MissingError(f"cannot be imported: {type(error).__name__}: {error}") from error
