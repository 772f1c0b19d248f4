"""Every setting of every command: its type, its range, what it means. Defaults, with their sources, are in conf/.

From the models here come the typed settings that the program works with, the sentences about values that do not fit,
and the page of settings: `python -m metaseg.runs.schema` prints it. A key that only one learner has stands in its
constructor's signature, so a new learner needs no line here.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import annotated_types
from omegaconf import DictConfig, OmegaConf
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo

from metaseg.errors import MetasegError

Loss = Literal["bce_log_cosh_dice", "log_cosh_dice", "dice", "bce_dice", "lovasz"]
Descent = Literal["sgd", "momentum", "adam"]
Schedule = Literal["constant", "cosine"]
Initial = Literal["random", "brain_mri"]
Augmentation = Literal["none", "flips", "standard"]
Curvature = Literal["hessian", "gauss_newton"]
Statistics = Literal["frozen", "support", "batch", "running"]
"""What a batch norm predicts with: its own weights' statistics, never changed; those of the support set; of the
prediction's own batch (transductive); or running ones, which follow training."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Path = Annotated[str, Field(min_length=1)]
Side = Annotated[int, Field(ge=8, le=1024)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _distinct(value: list[int]) -> list[int]:
    if len(set(value)) < len(value):
        raise ValueError("twice the same")
    return value


Names = Annotated[list[str], BeforeValidator(_listed)]
Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"]
Devices = Annotated[list[Natural], Field(min_length=1), AfterValidator(_distinct)]


def setting(meaning: str, **limits: Any) -> Any:
    """A setting without default (that is in conf/), with what it means."""
    return Field(..., description=meaning, **limits)


def optional(meaning: str, default: Any = None) -> Any:
    """A setting that conf/ may leave out: runs of earlier versions, and learners that have no use for it, do."""
    return Field(default, description=meaning)


class Group(BaseModel):
    """Settings that belong together; no others are allowed beside them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    _plain: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """What `checked` was given, unchanged: for config.yaml, checkpoints, results and loggers."""
        return self._plain


class Open(Group):
    """The same, with keys of one learner or model beside them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    @property
    def others(self) -> dict[str, Any]:
        """The keys that are not declared here."""
        return dict(self.model_extra or {})


class Rates(Group):
    """Multipliers of a step size by part of the network."""

    encoder: NotNegative = optional("of the encoder; 0 freezes it", 1.0)
    decoder: NotNegative = optional("of the decoder; 0 freezes it", 1.0)
    head: NotNegative = optional("of the layer that makes the logits; 0 freezes it", 1.0)


class Optimizer(Group):
    """The outer Adam."""

    lr: Positive = setting("learning rate")
    weight_decay: NotNegative = setting("L2 penalty")
    clip_norm: Positive | None = setting("longest outer gradient; null: any")
    schedule: Schedule = optional("of the learning rate over the run", "constant")
    rates: Rates | None = optional("multipliers of the learning rate by part")


class Bound(Group):
    """Of the inner step size: a share of what the largest curvature of the inner problem allows."""

    every: Natural = setting("outer steps from one measurement of the curvature to the next; 0: no bound")
    share: Positive = setting("of 1 / largest curvature")


class Solution(Group):
    """How an inner problem is solved."""

    optimizer: Descent = setting("what takes the steps")
    lr: Positive = setting("step size")
    steps: Natural = setting("most steps")
    tolerance: BelowOne = optional("of the gradient's norm over that at theta; 0: all steps", 0.0)
    bound: Bound | None = optional("of the step size")


class Inner(Solution):
    """The inner loop of training and validation episodes."""

    precision: Literal["float32", "tf32", "bfloat16", "float16"] = optional("of the inner steps alone", "float32")
    compile: bool = optional("torch.compile the inner steps", False)
    proximal: bool = setting("whether lambda/2 |phi - theta|^2 is part of the inner problem")
    rates: Rates | None = optional("multipliers of the step size by part")


class FineTuning(Group):
    """The descent on a target's support set."""

    optimizer: Descent = setting("what takes the steps")
    lr: Positive = setting("step size")
    steps: Natural = setting("number of steps; 0: nothing is fitted")
    schedule: Schedule = optional("of the step size: cosine rises over 10 steps, falls to 0", "constant")
    folds: Literal[0] | Annotated[int, Field(ge=2)] = optional(
        "parts of the support set held out in turn, each a member of an ensemble; 0: none", 0
    )
    flips: bool = optional("whether predictions are averaged over an image and its mirror images", False)
    rates: Rates | None = optional("multipliers of the step size by part")


class Adapt(FineTuning):
    """How a learner meets a target."""

    lam: NotNegative | None = setting("strength of a proximal term; null: the learned strengths, or none")
    by: Literal["recipe", "inner"] = optional("these settings, or the inner problem of training", "recipe")


class Network(Open):
    """A learner's own network; the other keys are its class's arguments."""

    target_: str = Field(..., alias="_target_", description="class of the network")


class Learner(Open):
    """What all learners have; the keys of one alone are its constructor's arguments."""

    target_: str = Field(..., alias="_target_", description="class of the learner")
    name: str = setting("what results call it")
    train_on: Literal["source", "target"] = setting("the pair, or 80 % of the target")
    train_images: Count | None = optional("most training images over all pools; null: all")
    unlabelled: BelowOne = optional("share of the target given without masks, never scored", 0.0)
    network: Network | None = optional("a network of the learner's own, in place of the model's")
    channels_last: bool = optional("memory layout of images and activations", False)
    adapt: Adapt = setting("fine-tuning on a target")
    optimizer: Optimizer | None = optional("the outer optimiser, of learners that train")
    inner: Inner | None = optional("the inner loop, of learners that have one")


class Pair(Group):
    """Source datasets, and the paper's target for them."""

    name: str = setting("of the pair")
    pools: list[str] = setting("source datasets")
    target: list[str] = setting("the targets the paper has for it")


def _both(value: Any) -> Any:
    return dict.fromkeys(Norms.model_fields, value) if isinstance(value, str) else value


class Norms(Group):
    """Batch-norm statistics by part."""

    encoder: Statistics = setting("batch-norm statistics of the encoder; model.norm=WORD sets both")
    decoder: Statistics = setting("of the decoder and the head")


class OuterAndInner(Group):
    """Multipliers of both step sizes."""

    outer: Rates = setting("of the outer step")
    inner: Rates = setting("of the inner step")


class Choices(Group):
    """Settings of several groups that are chosen together, by a network's recipe or a protocol."""

    size: Side = setting("side of the square images, in pixels")
    channels_last: bool = setting("memory layout of images and activations")
    outer_lr: Positive = setting("learning rate of the outer Adam")
    rates: OuterAndInner = setting("multipliers of the step sizes by part")
    inner: Solution = setting("the inner loop")
    lam: NotNegative = setting("strength of the proximal term")
    cg_steps: Count = setting("most curvature products in a solve")
    cg_tolerance: NotNegative = setting("relative residual at which a solve stops")


class FineTunings(Group):
    """Recipes of fine-tuning; adapt.recipe chooses one."""

    default: FineTuning | None = optional("the network as a whole")
    quick: FineTuning | None = optional("the decoder alone")


class ModelRecipe(Choices):
    """What suits a network: protocol=tuned reads it."""

    adapt: FineTunings = setting("recipes of fine-tuning")


class Stopping(Group):
    """When training ends early."""

    stop_by: Literal["validation", "training"] = optional(
        "training ends once the validation loss falls no further, or once the training loss does not change",
        "validation",
    )
    patience: Count | None = setting("epochs in which that loss has to move by min_delta; null: no early end")
    min_delta: NotNegative = setting("by how much")


class Protocol(Choices, Stopping):
    """What the other groups read, so that one word changes all of them; others may stand here for learners to read."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = setting("of the protocol")
    metric_lr: Positive = setting("learning rate of learners that compare with the support")
    weight_decay: NotNegative = setting("L2 penalty")
    clip_norm: Positive | None = setting("longest outer gradient; null: any")
    schedule: Schedule = setting("of the learning rate over the run")
    start: str = setting("what start=auto is: model, joint, a run's directory or a checkpoint")
    epochs: Count = setting("most epochs")
    recolour: Share = setting("share of the training tasks with random colours")
    query: Count = setting("Q: query images of each pool")
    task_count: Count = setting("tasks in an epoch")
    resample: bool = setting("new tasks every epoch, or the first epoch's again")
    augment: Augmentation = setting("of support and training query images")
    init: Initial = setting("initial weights")
    curvature: Curvature = setting("what iMAML solves with")
    adapt: Adapt = setting("fine-tuning on a target")


class Scale(Open):
    """Size of the experiment."""

    name: str = setting("of the size")
    encoder_weights: Path | None = setting("of learner=pretrained: a file, or imagenet: downloaded; null: random")


class Experiment(Group):
    """The paper's tables: settings of the sweeper, none of a run."""


class Model(Group):
    """The network: arguments of `metaseg.networks.build.build`, of which each kind of network has some."""

    name: Literal["attention_unet", "unet", "pretrained", "smp"] = setting("kind of network")
    init: Initial = setting("initial weights")
    init_path: Path | None = optional("file with brain-MRI weights; null: torch hub's")
    features: Count = optional("width of the first level", 32)
    arch: str = optional("architecture, as smp names it", "Unet")
    encoder: str = optional("encoder, as smp names it", "resnet18")
    encoder_weights: Path | None = optional("of the encoder: package, imagenet or a file; null: random")
    widths: list[Count] = optional("of the decoder's levels, coarsest first", [])
    norm: Annotated[Norms, BeforeValidator(_both)] = setting("batch-norm statistics by part")
    recipe: ModelRecipe | None = optional("what protocol=tuned reads")


class Tasks(Group):
    """Training and validation episodes."""

    mixing: Literal["exclusive", "mixed"] = setting("a task's images come from one pool, or K from each")
    order: Literal["interleaved", "sequential"] = setting(
        "an outer step holds a task of each pool, or pools take turns"
    )
    count: Count = setting("tasks")
    count_in: Literal["epoch", "pool"] = optional("how many an epoch has in all, or of each pool", "epoch")
    per_step: Count = setting("tasks of each pool (mixed: tasks) in an outer step")
    recolour: Share = setting("share of the training tasks with random colours")
    resample: bool = setting("new tasks every epoch, or the first epoch's again")
    query: Count = setting("Q: query images of each pool")
    validation: Count = setting("validation tasks of each pool (mixed: tasks)")

    def in_epoch(self, pools: int) -> int:
        """Training tasks of an epoch."""
        return self.count * (pools if self.count_in == "pool" and self.mixing == "exclusive" else 1)


class Data(Group):
    """Images and where they are."""

    source: Literal["real", "synthetic"] = setting("files, or painted twins of the datasets")
    root: Path = setting("folder that holds the datasets")
    size: Side = setting("side of the square images, in pixels")
    validation: Annotated[float, Field(gt=0, lt=1)] = setting("share of each source pool held out")
    augment: Augmentation = setting("of support and training query images")
    workers: Natural | Literal["auto"] = setting("processes that prepare episodes ahead")


class Trainer(Stopping):
    """Devices, and when training ends."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = setting(
        "auto: a GPU where there is one; gpu: cuda (Nvidia) or mps (Apple); tests run on cuda or the CPU"
    )
    devices: Count | Devices | Literal["auto"] = setting("how many, or which: [0, 1]; auto: all there are")
    strategy: Strategy = setting("auto: ddp where there are several devices; ddp: one process a device")
    tf32: bool = setting("convolutions and products on a GPU round to TF32")
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = setting("of training, as Lightning names it")
    max_epochs: Count = setting("most epochs")
    max_passes: Positive | None = optional("most passes of images; the schedule of the step size follows them")
    save_every: Count = setting("outer steps between writes of last.ckpt")
    progress: bool = setting("whether progress is shown")


class Logger(Group):
    """metrics.csv, always, and Weights & Biases."""

    wandb: bool = setting("whether Weights & Biases is used")
    project: str = setting("its project")
    entity: str | None = setting("its team; null: the account's default")
    group: str | None = setting("of the run; null: tables and pair")
    cell: str | None = setting("name shared by runs that differ in their seed alone; null: from the settings")
    tags: list[str] = setting("further tags")
    mode: Literal["online", "offline", "disabled"] | None = setting("null: WANDB_MODE, else online with a key")
    overlay_every: Natural = setting("epochs between pictures of the same validation images; 0: none")
    overlay_images: Count = setting("such pictures of each pool")
    artifacts: bool = setting("whether best.ckpt is sent")


class ScratchBeside(Group):
    """Training on the support set alone, beside the learner."""

    compare: bool = setting("whether it is reported too")


class Evaluation(Group):
    """The meta-test."""

    draws: Count = setting("support sets drawn from a target")
    limit: Count | None = setting("most images scored per draw; null: all")
    batch: Count = setting("images segmented at once")
    curve: list[Natural] = setting("adaptation steps at which Dice is taken")
    curve_limit: Count = setting("images scored at each of them")
    compress: bool = setting("per_image.csv.gz in place of per_image.csv")
    scratch: ScratchBeside = setting("training on the support set alone")


class Recipe(Group):
    """Which of the model's recipes adapts to a target."""

    recipe: Literal["default", "quick"] = setting("default, or quick: by the decoder alone")


class Starts(Group):
    """The joint training that ``start=joint`` shares."""

    dir: Path = setting("folder of the shared starts")
    epochs: Count = setting("epochs of joint training")
    shots: Count = setting("support images of each pool in an episode")
    query: Count = setting("query images of each pool in an episode")
    learner: Learner = setting("joint training")


class Run(Group):
    """train.py: one training with its tests."""

    shots: Count = setting("K: support images of each pool, and of a target")
    target: Names = setting("datasets to test on")
    loss: Loss = setting("segmentation loss")
    seed: Natural = setting("of weights, episodes and draws")
    adapt: Recipe = setting("how a target is adapted to")
    start: str = setting("auto, model, joint, a run's directory or a checkpoint")
    starts: Starts = setting("the shared start")
    train: bool = setting("false: test what ckpt_path or the initial weights hold")
    ckpt_path: Path | None = setting("last: continue; a path: start from that checkpoint")
    protocol: Protocol = setting("what the other groups read")
    scale: Scale = setting("size of the experiment")
    experiment: Experiment | None = optional("the paper's tables")
    learner: Learner = setting("the learner")
    pair: Pair = setting("source datasets")
    model: Model = setting("the network")
    tasks: Tasks = setting("episodes")
    data: Data = setting("images")
    trainer: Trainer = setting("devices and the end of training")
    logger: Logger = setting("what is logged where")
    evaluation: Evaluation = setting("the meta-test")


class Prepared(Open):
    """How images were prepared."""

    size: Side = setting("side of the square images, in pixels")
    augment: Augmentation = setting("of support and training query images")


class Trained(Open):
    """What adapting reads of the settings of a run, which another version may have written."""

    seed: Natural = setting("of weights, episodes and draws")
    loss: Loss = setting("segmentation loss")
    learner: Learner = setting("the learner")
    model: Model = setting("the network")
    data: Prepared = setting("images")


class SliceAugmentation(Group):
    """Of training slices."""

    scale: Annotated[float, Field(ge=0, le=0.9)] = setting("up or down by at most so much")
    rotation: Annotated[float, Field(ge=0, le=180)] = setting("degrees, either way")
    flip: Share = setting("probability, from left to right")


class Slices(Group):
    """Brain-MRI slices."""

    source: Literal["real", "synthetic"] = setting("files, or a painted twin")
    root: Path = setting("folder that holds lgg_brain_mri or kaggle_3m")
    size: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = setting("side of the slices, in pixels")
    validation: Count | Literal["auto"] = setting("patients held out")
    augment: SliceAugmentation = setting("of training slices")
    workers: Natural | Literal["auto"] = setting("processes that prepare batches ahead")
    batch: Count = setting("slices in a batch")
    steps: Count | None = setting("batches in an epoch; null: all slices once")


class Width(Group):
    """The U-Net."""

    features: Count = setting("width of the first level")


class Adam(Group):
    """Of pre-training."""

    lr: Positive = setting("learning rate")


class OneDevice(Trainer):
    """A trainer without tasks to divide."""

    devices: Literal[1] | Annotated[Devices, Field(max_length=1)] = setting("1, or which one: [0]")


class PretrainingProtocol(Stopping):
    """What the groups data and trainer read."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = setting("of the protocol")
    size: Side = setting("side of the slices, in pixels")
    epochs: Count = setting("most epochs")


class Pretraining(Group):
    """pretrain.py: a U-Net on brain MRI."""

    seed: Natural = setting("of initial weights, split and batches")
    ckpt_path: Path | None = setting("last: continue; a path: start from that checkpoint")
    model: Width = setting("the U-Net")
    data: Slices = setting("brain-MRI slices")
    optimizer: Adam = setting("Adam")
    trainer: OneDevice = setting("devices and the end of training")
    logger: Logger = setting("what is logged where")
    protocol: PretrainingProtocol = setting("what the other groups read")


class Adaptation(Group):
    """adapt.py: segment images of a new kind from a few annotated ones."""

    checkpoint: Path = setting("a run directory of train.py, or its best.ckpt")
    support: Path = setting(
        "annotated images: DIR/images and DIR/masks with equal stems, or DIR/a.jpg with DIR/a_mask.png"
    )
    images: Path | None = setting("images to segment (JPEG, PNG, TIFF, DICOM, ...); null: only estimate the Dice")
    out: Path = setting("where results go: masks/NAME.png, overlays/NAME.png, results.csv")
    truth: Path | None = setting("true masks by the images' stems: Dice and IoU in results.csv")
    overwrite: bool = setting("replace what an earlier call left in out")
    recipe: Literal["default", "quick"] | None = setting(
        "default, or quick: in seconds, by the decoder alone; null: as the run did"
    )
    steps: Natural | None = setting("adaptation steps; null: as the run's recipe")
    lr: Positive | None = setting("step size; null: as the run's recipe")
    seed: Natural = setting("of the random augmentation")
    estimate: bool = setting("hold annotated images out, to say what Dice to expect")
    folds: Annotated[int, Field(ge=2)] | None = setting(
        "parts for the estimate: 5 is faster than null, as many as images"
    )
    probabilities: bool = setting("write probabilities/NAME.png, 16 bits")
    overlays: bool = setting("write pictures with outlines")
    export: list[Literal["onnx", "torch"]] = setting("the adapted segmenter as a file")
    device: Literal["auto", "cpu", "cuda"] = setting("where to compute")
    batch: Count = setting("images segmented at once")


class Page(Group):
    """app.py: the web page."""

    checkpoint: Path = setting("a run directory of train.py, or its best.ckpt")
    port: Annotated[int, Field(ge=0, le=65535)] = setting("of http://127.0.0.1; 0: any that is free")
    browser: bool = setting("open the page")
    max_images: Annotated[int, Field(ge=1, le=10_000)] = setting("images of one user")
    max_mb: Positive = setting("megabytes of a file")
    max_megapixels: Positive = setting("megapixels of an image")
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = setting("adaptation steps; null: as the run's recipe")
    lr: Positive | None = setting("step size; null: as the run's recipe")
    device: Literal["auto", "cpu", "cuda"] = setting("where to compute")


CONFIGURATIONS: dict[str, type[Group]] = {"config": Run, "adapt": Adaptation, "app": Page, "pretrain": Pretraining}
"""Name of the file in conf/ → its settings."""

Settings = TypeVar("Settings", bound=Group)


def checked(kind: type[Settings], settings: Mapping[str, Any]) -> Settings:
    """The settings as typed, immutable values.

    Args:
        kind: `Run`, `Adaptation`, `Page`, `Pretraining`, or one of their groups.
        settings: resolved, as plain containers.

    Raises:
        MetasegError: a sentence for each value that does not fit.
    """
    try:
        valid = kind.model_validate(settings)
    except ValidationError as error:
        wrong: dict[str, tuple[list[str], str, str]] = {}
        for one in error.errors():
            path = _path(kind, one["loc"])
            found = "nothing" if one["type"] == "missing" else repr(one["input"])
            wrong.setdefault(".".join(path), (path, found, one["type"]))
        raise MetasegError(" ".join(_sentence(kind, *one) for one in wrong.values())) from None
    valid._plain = dict(settings)
    return valid


def fitted(annotation: Any, key: str, value: Any) -> Any:
    """One value as a type has it, checked as `checked` does; `key`: its name, for the sentence.

    Raises:
        MetasegError: a sentence for what does not fit.
    """
    one = create_model("One", __base__=Group, value=(annotation, Field(alias=key)))
    return checked(one, {key: value}).value  # type: ignore[attr-defined]


def read(kind: type[Settings], config: DictConfig) -> Settings:
    """The settings of a composed configuration, as `checked`.

    Raises:
        MetasegError: a sentence for each value that does not fit.
        omegaconf.errors.MissingMandatoryValue: a setting without default was not given.
    """
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return checked(kind, cast(dict[str, Any], plain))


def _sentence(kind: type[BaseModel], path: list[str], found: str, what: str) -> str:
    key, field = ".".join(path), _field(kind, path)
    if field is None or what == "extra_forbidden":
        near = nearest(key, (one.key for one in documented(kind)))
        return f"{key} is no setting of this version, found {found}: {near or 'leave it out.'}"
    meaning = f" ({field.description})" if field.description else ""
    return f"{key} must be {expected(field)}, found {found}{meaning}."


def nearest(key: str, known: Iterable[str]) -> str:
    """A question after the known key that was meant, or nothing."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else ""


def _path(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys of a place that pydantic names; it also names members of unions and positions in lists."""
    found: list[str] = []
    for part in place:
        known = _model(kind, found)
        if isinstance(part, str) and known is not None and not part.endswith("]"):
            found.append(part)
    return found


def _model(kind: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    for key in path:
        field = _own(kind, key)
        model = None if field is None else _group(field.annotation)
        if model is None:
            return None
        kind = model
    return kind


def _field(kind: type[BaseModel], path: list[str]) -> FieldInfo | None:
    model = _model(kind, path[:-1])
    return None if model is None else _own(model, path[-1])


def _own(kind: type[BaseModel], key: str) -> FieldInfo | None:
    return next((field for name, field in kind.model_fields.items() if key in (name, field.alias)), None)


def _group(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, or may be besides None."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def expected(field: FieldInfo) -> str:
    """What values a setting takes, in words."""
    return in_words(field.annotation, tuple(field.metadata))


def in_words(annotation: Any, limits: tuple[Any, ...] = ()) -> str:
    """The values of a type, within limits, in words."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(members[0], tuple(_limits((*members[1:], *limits))))
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}" if len(members) > 1 else str(members[0])
    if annotation is type(None):
        return "null"
    if origin is list:
        return "a name or a list of names" if any(isinstance(one, BeforeValidator) for one in limits) else "a list"
    if origin is dict:
        return "a group of settings"
    if members:
        return " or ".join(in_words(one) for one in members)
    if annotation is Any:
        return "as conf/ shows"
    if _group(annotation) is not None:
        return "a group of settings"
    if annotation is str and any(isinstance(one, annotated_types.MinLen) for one in _limits(limits)):
        return "a path"
    name = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(annotation, "a mapping")
    return name + _range(tuple(_limits(limits)))


def _limits(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else (one,)


def _range(limits: tuple[Any, ...]) -> str:
    low = next((f" from {one.ge}" for one in limits if isinstance(one, annotated_types.Ge)), "")
    low = next((f" above {one.gt}" for one in limits if isinstance(one, annotated_types.Gt)), low)
    high = next((f" to {one.le}" for one in limits if isinstance(one, annotated_types.Le)), "")
    high = next((f" and below {one.lt}" for one in limits if isinstance(one, annotated_types.Lt)), high)
    multiple = next((f", a multiple of {one.multiple_of}" for one in limits if hasattr(one, "multiple_of")), "")
    return low + (high or (" on" if low.startswith(" from") else "")) + multiple


class Documented(BaseModel):
    """A setting as the page of settings shows it."""

    key: str
    values: str
    meaning: str


def documented(kind: type[BaseModel], prefix: str = "") -> Iterator[Documented]:
    """Every setting of a command, in order, groups resolved into their settings."""
    for name, field in kind.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        group = _group(field.annotation)
        if group is None:
            yield Documented(key=key, values=expected(field), meaning=field.description or "")
        else:
            yield from documented(group, f"{key}.")


def main() -> None:
    """Print the settings of all commands as Markdown."""
    for name, kind in CONFIGURATIONS.items():
        print(f"## metaseg {'train' if name == 'config' else name}\n\n| setting | values | |\n|---|---|---|")
        for one in documented(kind):
            print(f"| `{one.key}` | {one.values} | {one.meaning} |")
        print()


if __name__ == "__main__":
    main()
