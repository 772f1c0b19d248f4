"""iMAML, the paper's method: the implicit gradient of the proximal inner problem

    φ(θ, Λ) = argmin_φ  L(φ; S) + ½ (φ - θ)ᵀ Λ (φ - θ)

where Λ is λ times the identity, as in the paper, or has one learned λ per part or layer of the network, so that parts
that generalise stay near θ and parts that must fit the few images can move. One solve gives the gradient by θ and by
each λ (`metaseg.meta.gradients.implicit_gradient`); the outer step updates log λ.
"""

from functools import partial
from typing import Any, Literal

from metaseg.data.batches import Episode
from metaseg.errors import MetasegError
from metaseg.learners.base import Learner
from metaseg.learners.strengths import Strengths
from metaseg.meta.gradients import MetaGradient, Task, implicit_gradient
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.losses import LOSSES
from metaseg.meta.vectors import Parameters
from metaseg.runs.schema import Count, Curvature, Group, NotNegative, Positive, setting


class Solver(Group):
    """The solver of the linear system."""

    steps: Count = setting("maximum number of curvature products per solve")
    tolerance: NotNegative = setting("relative residual at which a solve stops")


class LearnedStrengths(Group):
    """Which λ are learned."""

    by: Literal["none", "part", "layer"] = setting(
        "one lambda per part (encoder, decoder, head), one per layer, or none"
    )
    lr: Positive = setting("learning rate of the outer Adam on log lambda, with the schedule of the other parameters")


class ImplicitMAML(Learner):
    """Implicit MAML [paper eq. 1 and 2].

    Args:
        lam: λ > 0 of the proximal term; the initial value of every learned strength.
        cg: the solver.
        curvature: "hessian" or "gauss_newton".
        strengths: which λ are learned; None: none.
        settings: see ``Learner``.

    Raises:
        MetasegError: on incompatible settings.
    """

    def __init__(
        self,
        *,
        lam: Positive,
        cg: Solver,
        curvature: Curvature,
        strengths: LearnedStrengths | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(lam=lam, **settings)
        if curvature == "gauss_newton" and self.loss.curvature is None:
            curved = ", ".join(loss.name for loss in LOSSES.values() if loss.curvature is not None)
            raise MetasegError(
                f"learner.curvature=gauss_newton needs a loss with a curvature ({curved}), but loss={self.loss.name} "
                "has none; set learner.curvature=hessian or another loss."
            )
        if strengths is not None and strengths.by != "none":
            if not settings["inner"].proximal:
                raise MetasegError(
                    f"learner.strengths.by={strengths.by} needs a proximal term, found learner.inner.proximal=false; "
                    "set it to true."
                )
            self.strengths = Strengths(self.network, strengths.by, self._inner_rates, lam, strengths.lr)
        self.lam, self.curvature, self.cg = lam, curvature, cg

    def meta_gradient(self, theta: Parameters, episode: Episode) -> MetaGradient:
        """The implicit gradient of one task."""

        def estimate(products: str, task: Task, theta: Parameters, inner: InnerLoop) -> MetaGradient:
            return implicit_gradient(
                task,
                theta,
                inner,
                lam=self.lam if inner.strengths is None else inner.strengths,
                cg_steps=self.cg.steps,
                cg_tolerance=self.cg.tolerance,
                curvature=self.curvature,
                products=products,
            )

        return self.with_products(lambda products: self.on_task(theta, episode, partial(estimate, products)))
