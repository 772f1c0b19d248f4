"""The typed content of result.json.

A number that is missing, NaN or infinite is None in memory and null in the file. Dice and IoU are fractions in [0, 1].
Fields have the same order as in the file, most important first.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from metaseg.documents import read_json
from metaseg.errors import MetasegError, quoted

VERSION: Literal[1] = 1
"""Version of the result.json format."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Fraction = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_finite)]


class ResultPart(BaseModel):
    """A part of a result; unknown keys are dropped."""

    model_config = ConfigDict(frozen=True, strict=True)


class Interval(ResultPart):
    """A mean over images and draws with its interval; no bounds if there is a single score."""

    mean: Fraction
    low: Fraction = None
    high: Fraction = None
    level: float = 0.95


class Curve(ResultPart):
    """Dice over adaptation steps; lists of equal length, except that unknown bounds are empty."""

    steps: list[int] = []
    dsc: list[Fraction] = []
    low: list[Fraction] = []
    high: list[Fraction] = []

    @model_validator(mode="after")
    def _of_equal_length(self) -> Curve:
        if len(self.dsc) != len(self.steps) or {len(self.low), len(self.high)} - {0, len(self.steps)}:
            lengths = [len(values) for values in (self.steps, self.dsc, self.low, self.high)]
            raise ValueError(f"steps, dsc, low and high should have the same length, not {lengths}")
        return self


class FromScratch(Interval):
    """The Dice after training only on the support set."""

    curve: Curve = Curve()


class Seconds(ResultPart):
    """Mean times over draws."""

    adapting: Number = None
    image: Number = None
    """To segment one image after adaptation."""


class ChosenShare(ResultPart):
    """How far a draw moved from θ along its descent; ``alpha`` 1 is the end."""

    alpha: Fraction
    held_out: dict[str, Fraction]
    """α → mean Dice on held-out support images, by which α was chosen."""


class TargetScores(ResultPart):
    """The scores on one target."""

    dsc: Interval
    """After adaptation."""
    dsc_before: Interval | None = None
    """None without adaptation steps."""
    dsc_inner: Interval | None = None
    """After the inner problem of training, without fine-tuning, for learners that have one."""
    dsc_alone: Interval | None = None
    """Of a single network at the end of its descent, without the recipe's ensemble, α below 1 and mirror images."""
    followed: list[ChosenShare] = []
    """One per draw, if α is chosen."""
    pooled_dsc: Fraction = None
    """Over the pixels of all images together."""
    iou: Fraction = None
    iou_before: Fraction = None
    images: int | None = None
    draws: int | None = None
    seconds: Seconds = Seconds()
    curve: Curve = Curve()
    trivial: dict[str, Fraction] = {}
    """Dice of each trivial baseline."""


class Gpu(ResultPart):
    """One GPU; `memory_mib` in MiB."""

    name: str
    memory_mib: int | None = None
    capability: str | None = None


class Hardware(ResultPart):
    """The hardware of a run; `cores` are those available to the process."""

    cpu: str = "–"
    cores: int | None = None
    gpus: list[Gpu] = []


class DatasetRecord(ResultPart):
    """A prepared dataset; `key` is a hash of its files and preparation."""

    images: int
    groups: int
    key: str


class Cost(ResultPart):
    """The cost of training, as counted by `metaseg.training.compute`; `seconds` excludes validation."""

    outer_steps: int
    operations: Number = None
    passes: Number = None
    seconds: Number
    inner_problems: int | None = None
    """Tasks with an inner loop."""
    unsolved: int | None = None
    """Of these, inner problems not solved to the tolerance within the maximum number of steps; None: a learner
    that solves none."""


class Weights(ResultPart):
    """Pre-trained weights; further fields of `metaseg.networks.weights_record` are kept."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    name: str = "–"
    source: str = "–"
    sha256: str = "–"
    trained_on: str = "–"
    licence: str = "–"


class Result(ResultPart):
    """The content of result.json; `targets` and `scratch` are keyed by target, `data` by dataset.

    A run that only makes a model has no targets.
    """

    version: Literal[1]
    targets: dict[str, TargetScores]
    scratch: dict[str, FromScratch] = {}
    wall_seconds: Number = None
    peak_memory_mib: dict[str, Number] = {}
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    data: dict[str, DatasetRecord] = {}
    settings: dict[str, Any]
    """Resolved settings as written. Earlier versions lack some and have others, so reports cannot read them as
    `schema.Run`; all have learner.name, shots and seed."""
    compute: Cost | None = None
    strengths: dict[str, Number] | None = Field(None, alias="lambda")
    """Learned proximal strengths: layer or part → λ."""
    start: str | None = None
    weights: Weights | None = None

    @property
    def strongest(self) -> list[tuple[str, float]]:
        """The learned strengths in descending order."""
        known = [(name, value) for name, value in (self.strengths or {}).items() if value is not None]
        return sorted(known, key=lambda pair: -pair[1])


class VolumeScores(ResultPart):
    """Dice of brain-MRI volumes, averaged over patients; see `metaseg.training.pretraining.score_volume`."""

    dice: float
    dice_unfiltered: float
    dice_slices: Fraction
    patients: dict[str, Fraction]
    """Dice of each patient."""
    epoch: int
    """Epoch of the weights, from 0."""


class SliceScores(ResultPart):
    """The training data of pre-training."""

    patients: int
    slices: int
    steps_per_epoch: int


class PretrainingResult(ResultPart):
    """The content of pretrain.py's result.json."""

    weights: str
    """Name of the weights file in the run directory."""
    validation: VolumeScores
    training: SliceScores
    wall_seconds: Number = None
    peak_memory_mib: dict[str, Number] = {}
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    settings: dict[str, Any]


class _FineTuning(ResultPart):
    steps: int | None = None


class _Learner(ResultPart):
    name: str
    adapt: _FineTuning | None = None
    network: dict[str, Any] | None = None


class _Settings(ResultPart):
    learner: _Learner
    model: dict[str, Any] | None = None
    pair: dict[str, Any] = {}
    data: dict[str, Any] = {}
    tasks: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    trainer: dict[str, Any] = {}
    shots: int
    seed: int


class _Known(ResultPart):
    settings: _Settings


Kind = TypeVar("Kind", bound=ResultPart)


def plain(part: ResultPart) -> dict[str, Any]:
    """As plain containers for JSON, without values left at their default."""
    return part.model_dump(exclude_unset=True, by_alias=True)


def read(path: Path) -> Result:
    """Read a result.json.

    Raises:
        MetasegError: it is missing, not JSON, of another version, or a key is invalid.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise MetasegError(
            f"expected a finished run with {path}, found none: name the directory of a finished run"
        ) from None
    except (OSError, ValueError) as error:
        raise MetasegError(
            f"{path} should contain a run's result but cannot be read ({error}): run the evaluation again"
        ) from error
    checked(_Known, found, path)
    version = found.get("version")
    if version != VERSION:
        raise MetasegError(
            f"{path} should have version {VERSION}, found {quoted(version)}: use the metaseg version that wrote it"
        )
    return checked(Result, found, path)


def checked(kind: type[Kind], found: Any, path: Path) -> Kind:
    """Validate what was read from `path` as a `kind`.

    Raises:
        MetasegError: a sentence on the first invalid key.
    """
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key, value = ".".join(map(str, first["loc"])) or "it", quoted(first["input"])
        if first["type"] == "missing":
            fault = "is missing"
        else:
            said = "should be an object" if first["type"] in ("model_type", "dict_type") else first["msg"]
            fault = f"{said.removeprefix('Input ').removeprefix('Value error, ')}, found {value}"
        raise MetasegError(f"{path}: {key} {fault}; run it again") from None
