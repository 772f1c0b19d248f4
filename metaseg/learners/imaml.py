"""iMAML, the paper's method: the implicit gradient of the proximal inner problem."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from metaseg.data.batches import Episode
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.meta.gradients import CURVATURES, MetaGradient, implicit_gradient
from metaseg.meta.vectors import Parameters


class ImplicitMAML(Learner):
    """Implicit MAML [paper eq. 1 and 2].

    Args:
        lam: λ > 0 of the implicit gradient.
        cg: the solver: steps (most curvature products, ≥ 1), tolerance (relative residual at which it stops, ≥ 0).
        curvature: "hessian" or "gauss_newton".
        settings: see ``Learner``.
    """

    def __init__(self, *, lam: float, cg: Mapping[str, Any], curvature: str, **settings: Any) -> None:
        super().__init__(lam=lam, **settings)
        if curvature not in CURVATURES:
            raise MetasegError(f"learner.curvature must be one of {', '.join(CURVATURES)}, found {curvature!r}.")
        if lam <= 0 or cg["steps"] < 1 or cg["tolerance"] < 0:
            raise MetasegError(
                "learner.lam must be > 0, learner.cg.steps >= 1 and learner.cg.tolerance >= 0, "
                f"found {lam}, {cg['steps']} and {cg['tolerance']}."
            )
        if curvature == "gauss_newton" and self.loss.curvature is None:
            raise MetasegError(
                f"learner.curvature=gauss_newton needs a loss with a convex part, but that of loss={self.loss.name} "
                "is zero; use curvature=hessian or a loss with bce or log_cosh in its name."
            )
        self.lam, self.curvature = lam, curvature
        self.cg_steps, self.cg_tolerance = cg["steps"], cg["tolerance"]

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The implicit gradient of one task."""
        return self.with_products(
            lambda products: self.on_task(
                theta,
                episode,
                partial(
                    implicit_gradient,
                    lam=self.lam,
                    cg_steps=self.cg_steps,
                    cg_tolerance=self.cg_tolerance,
                    curvature=self.curvature,
                    products=products,
                ),
            )
        )
