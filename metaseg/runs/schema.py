"""Every setting of every command: type, range and meaning. Defaults and their sources are in conf/.

`metaseg.runs.validation` checks values by these models and describes the models on the settings page. Keys of a single
learner are declared by its constructor's signature, so a new learner needs no change here.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
)

Loss = Literal["bce_log_cosh_dice", "log_cosh_dice", "dice", "bce_dice", "lovasz"]
Descent = Literal["sgd", "momentum", "adam"]
Schedule = Literal["constant", "cosine"]
Initial = Literal["random", "brain_mri"]
Augmentation = Literal["none", "flips", "standard", "coupled"]
Curvature = Literal["hessian", "gauss_newton"]
Statistics = Literal["frozen", "support", "batch", "running"]
"""Batch-norm statistics for prediction: those of the pre-trained weights, never updated (frozen); of the support set;
of the batch being predicted (transductive); or running averages from training."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
WIDEST = 256
"""Largest width of a network's first level: eight times the paper's, some 500 million parameters."""
Features = Annotated[int, Field(ge=1, le=WIDEST)]
WorkingSize = Annotated[int, Field(ge=32, le=2048, multiple_of=32)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LONGEST_TAG = 64
"""W&B's maximum length of a tag, in characters."""
Tag = Annotated[str, Field(min_length=1, max_length=LONGEST_TAG)]
Path = Annotated[str, Field(min_length=1)]
Side = Annotated[int, Field(ge=8, le=1024)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _distinct(value: list[Any]) -> list[Any]:
    if len(set(value)) < len(value):
        raise ValueError("duplicate values")
    return value


Names = Annotated[list[str], BeforeValidator(_listed), AfterValidator(_distinct)]
Label = Annotated[int, Field(ge=1)]
Labels = Annotated[list[Label], Field(min_length=1), AfterValidator(_distinct)]
Devices = Annotated[list[Natural], Field(min_length=1), AfterValidator(_distinct)]


def setting(meaning: str, **limits: Any) -> Any:
    """A setting with its meaning; its default is in conf/."""
    return Field(..., description=meaning, **limits)


def optional(meaning: str, default: Any = None) -> Any:
    """A setting that may be absent: in runs of earlier versions and for learners that do not use it."""
    return Field(default, description=meaning)


class Group(BaseModel):
    """A group of settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    _plain: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """The settings as given to `checked`, for config.yaml, checkpoints, results and loggers."""
        return self._plain


class Open(Group):
    """A group that also accepts keys of a particular learner or model."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    @property
    def others(self) -> dict[str, Any]:
        """The keys that are not declared here."""
        return dict(self.model_extra or {})


class Rates(Group):
    """Multipliers of a step size by part of the network."""

    encoder: NotNegative = optional("multiplier for the encoder; 0 freezes it", 1.0)
    decoder: NotNegative = optional("multiplier for the decoder; 0 freezes it", 1.0)
    head: NotNegative = optional("multiplier for the last layers, which output the logits; 0 freezes them", 1.0)


class Optimizer(Group):
    """The outer Adam."""

    lr: Positive = setting("learning rate")
    weight_decay: NotNegative = setting("L2 penalty")
    clip_norm: Positive | None = setting("maximum norm of the outer gradient; null: no clipping")
    schedule: Schedule = optional("learning-rate schedule over the run", "constant")
    rates: Rates | None = optional("multipliers of the learning rate by part")


class Bound(Group):
    """Bound on the inner step size, relative to the largest curvature of the inner problem."""

    every: Natural = setting("outer steps between measurements of the curvature; 0: no bound")
    share: Positive = setting("largest step size, as a multiple of 1 / largest curvature")


class Solution(Group):
    """How an inner problem is solved."""

    optimizer: Descent = setting("optimiser of the steps")
    lr: Positive = setting("step size")
    steps: Natural = setting("maximum number of steps")
    tolerance: BelowOne = optional("gradient norm relative to that at theta at which to stop; 0: take all steps", 0.0)
    bound: Bound | None = optional("bound on the step size")


class Inner(Solution):
    """The inner loop of training and validation episodes."""

    proximal: bool = setting("include lambda/2 |phi - theta|^2 in the inner problem")
    rates: Rates | None = optional("multipliers of the step size by part")


class FineTuning(Group):
    """Fine-tuning on a target's support set."""

    optimizer: Descent = setting("optimiser of the steps")
    lr: Positive = setting("step size")
    steps: Natural = setting("number of steps; 0: no fine-tuning")
    schedule: Schedule = optional("step-size schedule; cosine warms up over 10 steps, then decays to 0", "constant")
    folds: Literal[0] | Annotated[int, Field(ge=2)] = optional(
        "folds of the support set; each held-out fold adds a network to the ensemble; 0: no ensemble", 0
    )
    flips: bool = optional("average predictions over an image and its mirror images", False)
    batch: Count | None = optional("maximum number of images of a step; null: all", None)
    share: Share | None = optional(
        "alpha, how far to go from the start to the fine-tuned parameters; null: chosen on the held-out folds or, "
        "without folds, by start_worth",
        None,
    )
    start_worth: NotNegative = optional(
        "how many images the start is worth: alpha = K / (K + start_worth); no effect with a proximal term", 0.0
    )
    rates: Rates | None = optional("multipliers of the step size by part")


class Adapt(FineTuning):
    """How a learner adapts to a target."""

    lam: NotNegative | None = setting("strength of a proximal term; null: the learned strengths, or none")


class Network(Open):
    """A learner's own network; further keys are arguments of its class."""

    target_: str = Field(..., alias="_target_", description="class of the network")


class Learner(Open):
    """Settings shared by all learners; further keys are arguments of the learner's constructor."""

    target_: str = Field(..., alias="_target_", description="class of the learner")
    name: str = setting("name of the learner in results")
    train_on: Literal["source", "target"] = setting("train on the pair, or on 80 % of the target")
    train_images: Count | None = optional("maximum number of training images over all pools; null: all")
    unlabelled: BelowOne = optional("share of the target used without masks and never scored", 0.0)
    network: Network | None = optional("network of the learner, replacing the model")
    channels_last: bool = optional("channels-last memory layout of images and activations", False)
    adapt: Adapt = setting("fine-tuning on a target")
    optimizer: Optimizer | None = optional("outer optimiser, for learners that train")
    inner: Inner | None = optional("inner loop, for learners that have one")


class Pair(Group):
    """Source datasets, and the paper's targets for them."""

    name: str = setting("name of the pair")
    pools: list[str] = setting("source datasets")
    target: list[str] = setting("targets that the paper tests for this pair")


def _both(value: Any) -> Any:
    return dict.fromkeys(Norms.model_fields, value) if isinstance(value, str) else value


class Norms(Group):
    """Batch-norm statistics by part."""

    encoder: Statistics = setting("batch-norm statistics of the encoder; model.norm=VALUE sets both")
    decoder: Statistics = setting("batch-norm statistics of the decoder and head")


class OuterAndInner(Group):
    """Multipliers of both step sizes."""

    outer: Rates = setting("multipliers of the outer step size")
    inner: Rates = setting("multipliers of the inner step size")


class Choices(Group):
    """Settings of several groups that are set jointly by a network's recipe or a protocol."""

    size: Side = setting("side of the square images, in pixels")
    channels_last: bool = setting("channels-last memory layout of images and activations")
    outer_lr: Positive = setting("learning rate of the outer Adam")
    rates: OuterAndInner = setting("multipliers of the step sizes by part")
    inner: Solution = setting("the inner loop")
    free_steps: Count | None = optional("maximum number of inner steps of learners without the proximal term")
    lam: NotNegative = setting("strength of the proximal term")
    cg_steps: Count = setting("maximum number of curvature products per solve")
    cg_tolerance: NotNegative = setting("relative residual at which a solve stops")


class FineTunings(Group):
    """Fine-tuning recipes; adapt.recipe chooses one."""

    default: FineTuning | None = optional("fine-tune the whole network")
    quick: FineTuning | None = optional("fine-tune the decoder only")


class ModelRecipe(Choices):
    """Settings tuned for a network; used by protocol=tuned."""

    adapt: FineTunings = setting("fine-tuning recipes")


class Patience(Group):
    """When training ends early."""

    patience: Count | None = setting("epochs within which the monitored score must move by min_delta; null: never")
    min_delta: NotNegative = setting("smallest change of that score that counts")


class Stopping(Patience):
    """When training ends early, and by which score."""

    stop_by: Literal["validation", "training"] = optional(
        "stop when the validation loss no longer improves, or when the training loss no longer changes",
        "validation",
    )


class Protocol(Choices, Stopping):
    """Values that the other groups refer to, so that one choice changes them all; learners may use further keys."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = setting("name of the protocol")
    metric_lr: Positive = setting("learning rate of metric-based learners")
    weight_decay: NotNegative = setting("L2 penalty")
    clip_norm: Positive | None = setting("maximum norm of the outer gradient; null: no clipping")
    schedule: Schedule = setting("learning-rate schedule over the run")
    start: str = setting("value of start=auto: model, joint, a run directory or a checkpoint")
    epochs: Count = setting("maximum number of epochs")
    recolour: Share = setting("share of the training tasks with random colours")
    query: Count = setting("Q: query images per pool")
    task_count: Count = setting("tasks per epoch")
    resample: bool = setting("draw new tasks every epoch; false: reuse those of the first epoch")
    augment: Augmentation = setting("augmentation of support and training query images")
    init: Initial = setting("initial weights")
    curvature: Curvature = setting("curvature matrix of iMAML's linear system")
    adapt: Adapt = setting("fine-tuning on a target")


class Scale(Open):
    """Size of the experiment."""

    name: str = setting("name of the scale")
    encoder_weights: Path | None = setting(
        "encoder weights of learner=pretrained: a file, or imagenet (downloaded); null: random"
    )
    metric_weights: Path | None = optional("likewise, of learner=feyjie and pmg")


class Model(Group):
    """The network; arguments of `metaseg.networks.build.build`, not all of which apply to each kind of network."""

    name: Literal["attention_unet", "unet", "pretrained", "smp"] = setting("kind of network")
    init: Initial = setting("initial weights")
    init_path: Path | None = optional("file with brain-MRI weights; null: torch hub's")
    features: Features = optional("width of the first level", 32)
    arch: str = optional("smp's name of the architecture", "Unet")
    encoder: str = optional("smp's name of the encoder", "resnet18")
    encoder_weights: Path | None = optional("encoder weights: package, imagenet or a file; null: random")
    widths: list[Annotated[int, Field(ge=1, le=16 * WIDEST)]] = optional(
        "widths of the decoder's levels, coarsest first", []
    )
    norm: Annotated[Norms, BeforeValidator(_both)] = setting("batch-norm statistics by part")
    recipe: ModelRecipe | None = optional("settings used by protocol=tuned")


class Tasks(Group):
    """Training and validation episodes."""

    mixing: Literal["exclusive", "mixed"] = setting("a task's images come from one pool, or K from each pool")
    order: Literal["interleaved", "sequential"] = setting(
        "each outer step has a task from every pool, or the pools take turns"
    )
    count: Count = setting("number of tasks")
    count_in: Literal["epoch", "pool"] = optional("whether count is per epoch, or per pool and epoch", "epoch")
    per_step: Count = setting("tasks per pool (mixed: tasks) in an outer step")
    recolour: Share = setting("share of the training tasks with random colours")
    resample: bool = setting("draw new tasks every epoch; false: reuse those of the first epoch")
    query: Count = setting("Q: query images per pool")
    validation: Count = setting("validation tasks per pool (mixed: tasks)")

    def in_epoch(self, pools: int) -> int:
        """Training tasks of an epoch."""
        return self.count * (pools if self.count_in == "pool" and self.mixing == "exclusive" else 1)


class Data(Group):
    """Images and their location."""

    source: Literal["real", "synthetic"] = setting("files, or synthetic twins of the datasets")
    root: Path = setting("folder of the datasets")
    size: Side = setting("side of the square images, in pixels")
    validation: Annotated[float, Field(gt=0, lt=1)] = setting("share of each source pool held out for validation")
    augment: Augmentation = setting("augmentation of support and training query images")
    workers: Natural | Literal["auto"] = setting("worker processes that prefetch episodes")


class AnyTrainer(Patience):
    """Devices and early stopping, of training and pre-training."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = setting(
        "auto: a GPU if available; gpu: cuda (Nvidia) or mps (Apple); tests run on cuda or the CPU"
    )
    devices: Count | Devices | Literal["auto"] = setting("number of devices, or their indices: [0, 1]; auto: all")
    strategy: Literal["auto", "ddp"] = setting("auto: ddp with several devices; ddp: one process per device")
    tf32: bool = setting("allow TF32 in convolutions and matrix products on a GPU")
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = setting("training precision, as in Lightning")
    max_epochs: Count = setting("maximum number of epochs")
    save_every: Count = setting("outer steps between writes of last.ckpt")
    progress: bool = setting("show progress")


class Trainer(AnyTrainer, Stopping):
    """Devices and early stopping."""

    precision: Literal["32-true", "64-true"] = setting("training precision, as in Lightning")
    max_passes: Positive | None = optional(
        "number of image passes to spend, which the learning-rate schedule follows; nothing stops early"
    )
    skip_norm: Positive | None = optional(
        "norm of the outer gradient above which a step is skipped; null: only if it is not finite"
    )
    max_skips: Count = optional("outer steps skipped in a row that end the run", 10)


class Logger(Group):
    """Weights & Biases; metrics.csv is always written."""

    wandb: bool = setting("log to Weights & Biases")
    project: str = setting("W&B project")
    entity: str | None = setting("W&B user or team; null: the account's default")
    group: str | None = setting("W&B group; null: the paper's tables and the pair")
    cell: str | None = setting("name shared by runs that differ only in seed; null: derived from the settings")
    tags: list[Tag] = setting("additional tags")
    mode: Literal["online", "offline", "disabled"] | None = setting(
        "W&B mode; null: WANDB_MODE, else online with an API key, offline without"
    )
    overlay_every: Natural = setting("epochs between overlays of the same validation images; 0: none")
    overlay_images: Count = setting("overlays per pool")
    artifacts: bool = setting("upload best.ckpt")


class ScratchBeside(Group):
    """Comparison with training only on the support set."""

    compare: bool = setting("also report training only on the support set")


class Evaluation(Group):
    """The meta-test."""

    draws: Count = setting("support sets drawn per target")
    limit: Count | None = setting("maximum number of images scored per draw; null: all")
    batch: Count = setting("batch size for prediction")
    curve: list[Natural] = setting("adaptation steps at which Dice is measured")
    curve_limit: Count = setting("images scored at each of these steps")
    compress: bool = setting("write per_image.csv.gz instead of per_image.csv")
    scratch: ScratchBeside = setting("training only on the support set")


class Recipe(Group):
    """The model's recipe for adapting to a target."""

    recipe: Literal["default", "quick"] = setting("fine-tuning recipe: default, or quick (decoder only)")


class Starts(Group):
    """The joint training shared by learners with ``start=joint``."""

    dir: Path = setting("folder of the shared starts")
    epochs: Count = setting("epochs of joint training")
    shots: Count = setting("support images per pool in an episode")
    query: Count = setting("query images per pool in an episode")
    learner: Learner = setting("joint training")


class Run(Group):
    """train.py: train a learner and test it."""

    shots: Count = setting("K: support images per pool, and per target")
    target: Names = setting("datasets to test on")
    loss: Loss = setting("segmentation loss")
    seed: Seed = setting("seed of weights, episodes and draws")
    adapt: Recipe = setting("adaptation to a target")
    start: str = setting("where training starts: auto, model, joint, a run directory or a checkpoint")
    starts: Starts = setting("the shared start")
    train: bool = setting("train; false: only test the weights of ckpt_path, or of start")
    ckpt_path: Path | None = setting("last: resume the run; with train=false, the checkpoint to test")
    protocol: Protocol = setting("values that the other groups refer to")
    scale: Scale = setting("size of the experiment")
    learner: Learner = setting("the learner")
    pair: Pair = setting("source datasets")
    model: Model = setting("the network")
    tasks: Tasks = setting("episodes")
    data: Data = setting("images")
    trainer: Trainer = setting("devices and early stopping")
    logger: Logger = setting("logging")
    evaluation: Evaluation = setting("the meta-test")


class Prepared(Open):
    """How images were prepared."""

    size: Side = setting("side of the square images, in pixels")
    augment: Augmentation = setting("augmentation of support and training query images")


class Trained(Open):
    """The settings of a run, possibly of another version, that adapting needs."""

    seed: Seed = setting("seed of weights, episodes and draws")
    loss: Loss = setting("segmentation loss")
    learner: Learner = setting("the learner")
    model: Model = setting("the network")
    data: Prepared = setting("images")


class SliceAugmentation(Group):
    """Augmentation of training slices."""

    scale: Annotated[float, Field(ge=0, le=0.9)] = setting("maximum change of scale, up or down")
    rotation: Annotated[float, Field(ge=0, le=180)] = setting("maximum rotation in degrees, either way")
    flip: Share = setting("probability of a horizontal flip")


class Slices(Group):
    """Brain-MRI slices."""

    source: Literal["real", "synthetic"] = setting("files, or a synthetic twin")
    root: Path = setting("folder with lgg_brain_mri or kaggle_3m")
    # Halved four times, a smaller side leaves the U-Net's bottleneck a single pixel.
    size: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = setting("side of the slices, in pixels")
    validation: Count | Literal["auto"] = setting("patients held out for validation")
    augment: SliceAugmentation = setting("augmentation of training slices")
    workers: Natural | Literal["auto"] = setting("worker processes that prefetch batches")
    batch: Count = setting("slices per batch")
    steps: Count | None = setting("batches per epoch; null: as many as the training slices fill")


class Width(Group):
    """The U-Net."""

    features: Features = setting("width of the first level")


class Adam(Group):
    """The optimiser of pre-training."""

    lr: Positive = setting("learning rate")


class OneDevice(AnyTrainer):
    """A trainer on a single device, since pre-training has no tasks to divide."""

    devices: Literal[1] | Annotated[Devices, Field(max_length=1)] = setting("1, or the index of the device: [0]")
    strategy: Literal["auto"] = setting("auto, because there is one device")


class PretrainingProtocol(Patience):
    """Values that the groups data and trainer refer to."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = setting("name of the protocol")
    size: Side = setting("side of the slices, in pixels")
    epochs: Count = setting("maximum number of epochs")


class Pretraining(Group):
    """pretrain.py: pre-train a U-Net on brain MRI."""

    seed: Seed = setting("seed of initial weights, split and batches")
    ckpt_path: Path | None = setting("last: resume the run")
    model: Width = setting("the U-Net")
    data: Slices = setting("brain-MRI slices")
    optimizer: Adam = setting("Adam")
    trainer: OneDevice = setting("devices and early stopping")
    logger: Logger = setting("logging")
    protocol: PretrainingProtocol = setting("values that the other groups refer to")


class Adaptation(Group):
    """adapt.py: segment new images from a few annotated ones."""

    checkpoint: Path | None = setting(
        "a run directory of train.py, its best.ckpt, a file of metaseg models build, or a saved segmenter (both "
        ".safetensors); null: the built-in model"
    )
    support: Path | None = setting(
        "annotated images: DIR/images and DIR/masks with equal stems, or DIR/a.jpg with DIR/a_mask.png; added to those "
        "of a saved segmenter"
    )
    images: Path | None = setting(
        "images to segment (JPEG, PNG, TIFF, DICOM, NIfTI, ...); null: only estimate the Dice"
    )
    out: Path = setting("output folder: masks/NAME.png, overlays/NAME.png, results.csv")
    truth: Path | None = setting("true masks with the images' stems; adds Dice and IoU to results.csv")
    label: Label | Labels | Literal["all"] | None = setting(
        "label of the masks that is foreground; several, or all: one segmenter each, in out/label_N; null: any label"
    )
    overwrite: bool = setting("replace the results of an earlier call in out")
    recipe: Literal["default", "quick"] | None = setting(
        "default, or quick: decoder only, takes seconds; null: the run's recipe"
    )
    steps: Natural | None = setting("adaptation steps; null: the recipe's, or as many as the budget allows")
    lr: Positive | None = setting("step size; null: as in the run's recipe")
    seed: Seed = setting("seed of the random augmentation")
    size: WorkingSize | None = setting(
        "working size: side in pixels of a square with as many pixels as the network's input; null: by the masks"
    )
    crop: WorkingSize | None = setting("side in pixels of the crops to adapt to; null: whole images, or by the budget")
    per_step: Count | None = setting(
        "maximum number of annotated images per step and network; null: the recipe's, or by the budget"
    )
    folds: Literal[0] | Annotated[int, Field(ge=2)] | None = setting(
        "folds of the annotated images, each with a network that gives the estimate; 0: none; null: 3"
    )
    curve: bool = setting("also print the Dice by number of annotated images: whether more would help")
    budget: Positive | None = setting("seconds for adapting and 20 new images; null: no limit")
    probabilities: bool = setting("write probabilities/NAME.png, 16 bits")
    overlays: bool = setting("write images with outlined masks")
    save: bool = setting("write segmenter.safetensors, which contains the annotated images at the working size")
    export: list[Literal["onnx", "torch"]] = setting("formats in which to export the adapted segmenter")
    device: Literal["auto", "cpu", "cuda"] = setting("device to run on")
    batch: Count = setting("batch size for prediction")


class Page(Group):
    """app.py: the web app."""

    checkpoint: Path | None = setting(
        "a run directory of train.py, its best.ckpt, or a file of metaseg models build; null: the built-in model"
    )
    port: Annotated[int, Field(ge=0, le=65535)] = setting("port on http://127.0.0.1; 0: any free port")
    browser: bool = setting("open the page in a browser")
    max_images: Annotated[int, Field(ge=1, le=10_000)] = setting("maximum number of images per user")
    max_mb: Positive = setting("maximum size of a file in megabytes")
    max_megapixels: Positive = setting("maximum size of an image in megapixels")
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = setting(
        "adaptation steps; null: as many as the budget allows, at most the run's"
    )
    lr: Positive | None = setting("step size; null: as in the run's recipe")
    device: Literal["auto", "cpu", "cuda"] = setting("device to run on")


CONFIGURATIONS: dict[str, type[Group]] = {"config": Run, "adapt": Adaptation, "app": Page, "pretrain": Pretraining}
"""Name of the file in conf/ → its settings."""
