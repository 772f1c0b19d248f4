"""What a run leaves in result.json, typed; results of earlier versions are read as those of this one.

A number that is missing, NaN or infinite is None, in memory as in the file, where it is null. Dice and IoU are
fractions in [0, 1]. The order of the fields is that of the file: what a reader looks for first stands first.
"""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from metaseg.errors import MetasegError

VERSION: Literal[1] = 1
"""Of result.json; files without one are of version 0."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Fraction = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_finite)]


class ResultPart(BaseModel):
    """A part of a result; keys that this version does not know are left out."""

    model_config = ConfigDict(frozen=True, strict=True)


class Estimate(ResultPart):
    """A mean over images and draws with its interval; without bounds where there is a single score."""

    mean: Fraction
    low: Fraction = None
    high: Fraction = None
    level: float = 0.95


class Curve(ResultPart):
    """Dice over adaptation steps; lists of equal length, but for bounds that are not known, which are empty."""

    steps: list[int] = []
    dsc: list[Fraction] = []
    low: list[Fraction] = []
    high: list[Fraction] = []

    @model_validator(mode="after")
    def _of_equal_length(self) -> Curve:
        if len(self.dsc) != len(self.steps) or {len(self.low), len(self.high)} - {0, len(self.steps)}:
            lengths = [len(values) for values in (self.steps, self.dsc, self.low, self.high)]
            raise ValueError(f"steps, dsc, low and high should be of one length, not of {lengths}")
        return self


class FromScratch(Estimate):
    """Of training on the support set alone, after adaptation."""

    curve: Curve = Curve()


class Seconds(ResultPart):
    """Mean over draws."""

    adapting: Number = None
    image: Number = None
    """Of segmenting one image after adaptation."""


class Followed(ResultPart):
    """How far a draw followed its descent from θ: ``alpha`` 1 is to the end."""

    alpha: Fraction
    held_out: dict[str, Fraction]
    """α → mean Dice of the support images that were held out, by which it was chosen."""


class Scores(ResultPart):
    """The scores on one target."""

    dsc: Estimate
    """After adaptation."""
    dsc_before: Estimate | None = None
    dsc_inner: Estimate | None = None
    """After the inner problem of training alone, of learners that have one."""
    dsc_alone: Estimate | None = None
    """Of one network at the end of its descent, without what the recipe adds: ensemble, α below 1, mirror images."""
    followed: list[Followed] = []
    """By draw, where α is chosen."""
    pooled_dsc: Fraction = None
    """Of the pixels of all images together."""
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
    """What it was computed on; `cores` are those that the process might use."""

    cpu: str = "–"
    cores: int | None = None
    gpus: list[Gpu] = []


class Dataset(ResultPart):
    """What was prepared of a dataset; `key` is a hash of its files and preparation."""

    images: int
    groups: int
    key: str


class Cost(ResultPart):
    """What training cost, as `metaseg.training.compute` counts it; `seconds` without validation."""

    outer_steps: int
    operations: Number = None
    passes: Number = None
    seconds: Number


class Weights(ResultPart):
    """Pre-trained weights; what else `metaseg.networks.weights_record` says of them is kept as it is."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    name: str = "–"
    source: str = "–"
    sha256: str = "–"
    trained_on: str = "–"
    licence: str = "–"


class Result(ResultPart):
    """All that result.json holds; `targets` and `scratch` are by the target's name, `data` by the dataset's."""

    version: Literal[1]
    targets: dict[str, Scores] = Field(min_length=1)
    scratch: dict[str, FromScratch] = {}
    wall_seconds: Number = None
    peak_memory_mib: dict[str, Number] = {}
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    data: dict[str, Dataset] = {}
    settings: dict[str, Any]
    """Resolved, as they were written: those of earlier versions lack settings of this one, so that reports cannot read
    them as `schema.Run`; all have learner.name, shots and seed."""
    compute: Cost | None = None
    strengths: dict[str, Number] | None = Field(None, alias="lambda")
    """Learned proximal strengths: layer or part → λ."""
    start: str | None = None
    weights: Weights | None = None

    @property
    def strongest(self) -> list[tuple[str, float]]:
        """The learned strengths in falling order: what is held most comes first."""
        known = [(name, value) for name, value in (self.strengths or {}).items() if value is not None]
        return sorted(known, key=lambda pair: -pair[1])


class VolumeScores(ResultPart):
    """Dice of brain-MRI volumes, as `metaseg.training.pretraining.score_volume` defines them: means over patients."""

    dice: float
    dice_unfiltered: float
    dice_slices: Fraction
    patients: dict[str, Fraction]
    """Dice of each."""
    epoch: int
    """Whose weights these are, from 0."""


class Slices(ResultPart):
    """What pre-training learned from."""

    patients: int
    slices: int
    steps_per_epoch: int


class PretrainingResult(ResultPart):
    """All that pretrain.py leaves in result.json."""

    weights: str
    """Name of their file in the run's directory."""
    validation: VolumeScores
    training: Slices
    wall_seconds: Number = None
    peak_memory_mib: dict[str, Number] = {}
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    settings: dict[str, Any]


class _Learner(ResultPart):
    name: str


class _Settings(ResultPart):
    learner: _Learner
    shots: int
    seed: int


class _Known(ResultPart):
    settings: _Settings


Kind = TypeVar("Kind", bound=ResultPart)


def plain(part: ResultPart) -> dict[str, Any]:
    """As plain containers, for JSON: what was given, not what was left to its default."""
    return part.model_dump(exclude_unset=True, by_alias=True)


def read(path: Path) -> Result:
    """Read a result.json.

    Raises:
        MetasegError: it is missing, is no JSON, is of a later version, or a key does not hold what it should.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MetasegError(
            f"expected a finished run with {path}, found none: give the directory of a finished run"
        ) from None
    except (OSError, ValueError) as error:
        raise MetasegError(
            f"{path} should hold a run's result but cannot be read ({error}): run the evaluation again"
        ) from error
    checked(_Known, found, path)
    version = found.get("version", 0)
    if version not in range(VERSION + 1):
        raise MetasegError(
            f"{path} should be of version {VERSION} or below, found {version!r}: read it with the metaseg that wrote it"
        )
    return checked(Result, upgraded(found), path)


def upgraded(found: dict[str, Any]) -> dict[str, Any]:
    """A result of this or an earlier version, as this one writes it."""
    found = {**found, "version": VERSION}
    # Version 0 began without a record of pre-trained weights; its settings name a file or a repository's weights.
    if "weights" not in found:
        network, model = found["settings"]["learner"].get("network"), found["settings"].get("model") or {}
        begun = (model if network is None else network).get("encoder_weights")
        if begun is None and network is None and model.get("init") == "brain_mri":
            begun = model.get("init_path") or "brain_mri"
        unknown = dict.fromkeys(Weights.model_fields, "not recorded")
        found["weights"] = None if begun is None else unknown | {"name": Path(str(begun)).name}
    return found


def checked(kind: type[Kind], found: Any, path: Path) -> Kind:
    """What was read from `path` as a `kind`.

    Raises:
        MetasegError: a sentence with the first key that does not hold what it should.
    """
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key, value = ".".join(map(str, first["loc"])) or "it", reprlib.repr(first["input"])
        if first["type"] == "missing":
            fault = "is missing"
        else:
            said = "should be an object" if first["type"] in ("model_type", "dict_type") else first["msg"]
            fault = f"{said.removeprefix('Input ').removeprefix('Value error, ')}, found {value}"
        raise MetasegError(f"{path}: {key} {fault}; run it again") from None
