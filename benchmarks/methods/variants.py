"""Variants of iMAML's outer step that differ only in precision, memory layout or compilation."""

from dataclasses import dataclass

import torch

from benchmarks.methods import ours
from benchmarks.setting import Setting
from metaseg.learners.base import Learner
from metaseg.learners.imaml import ImplicitMAML, Solver


@dataclass(frozen=True)
class Variant:
    """One variant of the step: settings of the learner, and whether all of it may use TF32."""

    title: str
    precision: str = "float32"
    channels_last: bool = False
    tf32: bool = False
    compiled: bool = False

    def learner(self, setting: Setting) -> Learner:
        """The iMAML learner with the Hessian."""
        return ours.make_learner(
            ImplicitMAML,
            setting,
            cg=Solver(steps=setting.cg_steps, tolerance=ours.TOLERANCE),
            curvature="hessian",
            inner={"precision": self.precision, "compile": self.compiled},
            channels_last=self.channels_last,
        )

    def missing(self, device: str) -> str | None:
        """Why the variant is unavailable on this device, as far as known in advance."""
        if self.tf32 or self.precision == "tf32":
            if device == "cpu":
                return "needs a GPU"
            if torch.cuda.get_device_capability()[0] < 8:
                return "this GPU has no TF32"
        emulated = device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "this GPU has no bfloat16" if self.precision == "bfloat16" and emulated else None


BASE = "float32"
VARIANTS = {
    BASE: Variant("float32, contiguous (base)"),
    "channels_last": Variant("channels last", channels_last=True),
    "tf32_inner": Variant("TF32, inner loop", "tf32"),
    "tf32": Variant("TF32, everywhere", tf32=True),
    "bfloat16": Variant("bfloat16, inner loop", "bfloat16"),
    "float16": Variant("float16, inner loop", "float16"),
    "channels_last_bfloat16": Variant("channels last, bfloat16 inner loop", "bfloat16", channels_last=True),
    "compiled": Variant("compiled inner loop", compiled=True),
}
