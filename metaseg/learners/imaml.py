"""iMAML, the paper's method: the implicit gradient of the proximal inner problem

    φ(θ, Λ) = argmin_φ  L(φ; S) + ½ (φ - θ)ᵀ Λ (φ - θ)

in which Λ is λ times the identity, as in the paper, or one learned λ for each part or layer of the network: what
generalises stays at θ, what has to be fitted to a few images is let go. The same solve that gives the gradient in θ
gives that in each λ (`metaseg.meta.gradients.implicit_gradient`); λ follows it by its logarithm.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from metaseg.data.batches import Episode
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.learners.strengths import GROUPINGS, Strengths
from metaseg.meta.gradients import CURVATURES, MetaGradient, Task, implicit_gradient
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.vectors import Parameters


class ImplicitMAML(Learner):
    """Implicit MAML [paper eq. 1 and 2].

    Args:
        lam: λ > 0 of the proximal term; where strengths are learned, what each begins with.
        cg: the solver: steps (most curvature products, ≥ 1), tolerance (relative residual at which it stops, ≥ 0).
        curvature: "hessian" or "gauss_newton".
        strengths: which λ are learned: ``by`` "none", "part" (encoder, decoder, head) or "layer", and ``lr`` > 0, the
            step size of the outer Adam on log λ, which follows the schedule of the others; None: none.
        settings: see ``Learner``.
    """

    def __init__(
        self,
        *,
        lam: float,
        cg: Mapping[str, Any],
        curvature: str,
        strengths: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
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
        strengths = strengths or {"by": "none", "lr": 1.0}
        if strengths["by"] not in GROUPINGS or not strengths["lr"] > 0:
            raise MetasegError(
                f"learner.strengths.by must be one of {', '.join(GROUPINGS)} and learner.strengths.lr > 0, found "
                f"{strengths['by']!r} and {strengths['lr']}."
            )
        if strengths["by"] != "none":
            if not settings["inner"]["proximal"]:
                raise MetasegError(
                    f"learner.strengths.by={strengths['by']} needs a proximal term to learn the strengths of, found "
                    "learner.inner.proximal=false; set it to true."
                )
            self.strengths = Strengths(self.network, strengths["by"], self._inner_rates, lam, strengths["lr"])
        self.lam, self.curvature = lam, curvature
        self.cg_steps, self.cg_tolerance = cg["steps"], cg["tolerance"]

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The implicit gradient of one task."""

        def estimate(products: str, task: Task, theta: Parameters, inner: InnerLoop) -> MetaGradient:
            return implicit_gradient(
                task,
                theta,
                inner,
                lam=self.lam if inner.strengths is None else inner.strengths,
                cg_steps=self.cg_steps,
                cg_tolerance=self.cg_tolerance,
                curvature=self.curvature,
                products=products,
            )

        return self.with_products(lambda products: self.on_task(theta, episode, partial(estimate, products)))
