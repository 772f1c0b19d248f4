"""What a method is: how it is set up, what it computes, what it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal

from torch import Tensor

from benchmarks.setting import Problem

Quantity = Literal["hessian", "gauss_newton", "unrolled", "first_order"]

QUANTITIES: dict[Quantity, str] = {
    "hessian": "(I + H/λ)⁻¹ g",
    "gauss_newton": "(I + G/λ)⁻¹ g",
    "unrolled": "through all inner steps",
    "first_order": "g",
}
"""What a method should compute; g = ∇L(φ; Q), H and G Hessian and Gauss-Newton matrix of the support loss at φ."""


class MissingError(Exception):
    """A method that cannot be run here; the message says why, for the table."""


@dataclass(frozen=True)
class Answer:
    """What one run of a method gave.

    Attributes:
        gradient: the meta-gradient, shape (N,); None for the passes that everything else is measured against.
        products: curvature products computed, those spent on a first residual included.
        residual: ‖g - A x‖ / ‖g‖ as the method itself reports it.
        phi: the adapted parameters, shape (N,), where the method tells them.
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
        quantity: what it should compute; None for the passes that everything else is measured against.
        prepare: problem → run; what is set up once is set up here and not timed.
    """

    name: str
    title: str
    quantity: Quantity | None
    prepare: Callable[[Problem], Run]


def optional(package: str) -> ModuleType:
    """Import a package of the extra ``benchmarks``.

    Raises:
        MissingError: if it is not installed, or does not import here.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise MissingError("not installed: pip install -e .[benchmarks]") from error
        raise MissingError(f"does not import: {error}") from error
    except Exception as error:
        raise MissingError(f"does not import: {type(error).__name__}: {error}") from error
