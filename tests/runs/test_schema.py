"""The schema: what is right passes, and what is wrong is refused by the setting's name."""

import copy

import pytest
from conftest import ROOT, TINY, settings_of
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metaseg.errors import MetasegError
from metaseg.learners.build import build_learner
from metaseg.runs import schema

LEARNERS = sorted(path.stem for path in (ROOT / "conf" / "learner").glob("[a-z]*.yaml"))


@pytest.fixture(scope="module")
def right():
    """A configuration that passes; composing it for each wrong value would take a minute."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", TINY)


@pytest.mark.long
@pytest.mark.parametrize(
    ("learner", "model"), [*((one, "attention_unet") for one in LEARNERS), ("imaml", "pretrained"), ("imaml", "smp")]
)
def test_what_conf_says_passes(learner, model):
    settings = settings_of(f"learner={learner}", f"model={model}", "protocol=paper")
    assert settings.learner.name == settings.plain["learner"]["name"]


@pytest.mark.parametrize("scale", ["full", "small", "tiny", "toy"])
def test_every_scale_passes(scale):
    assert settings_of(f"scale={scale}").trainer.max_epochs >= 1


@pytest.mark.parametrize(
    "wrong",
    [
        "shots=1.5",
        "shots=0",
        "shots=true",
        "seed=-1",
        "seed=abc",
        "target=3",
        "loss=cross_entropy",
        "train=perhaps",
        "data.size=gross",
        "data.size=4",
        "data.validation=1",
        "data.augment=some",
        "data.source=nowhere",
        "data.workers=-1",
        "tasks.mixing=all",
        "tasks.order=random",
        "tasks.count=0",
        "tasks.recolour=2",
        "trainer.max_epochs=0",
        "trainer.patience=0",
        "trainer.progress=maybe",
        "logger.overlay_every=-1",
        "logger.mode=ofline",
        "evaluation.draws=0",
        "evaluation.batch=0",
        "evaluation.limit=0",
        "evaluation.curve=[-1]",
        "starts.epochs=0",
        "learner.train_on=both",
        "learner.train_images=0",
        "learner.optimizer.lr=0",
        "learner.optimizer.schedule=linear",
        "learner.optimizer.rates.encoder=-1",
        "learner.inner.optimizer=lbfgs",
        "learner.inner.precision=int8",
        "learner.inner.steps=-1",
        "learner.inner.tolerance=1",
        "learner.inner.bound.every=-1",
        "learner.inner.bound.share=0",
        "learner.adapt.lr=none",
        "learner.adapt.lr=-1",
        "learner.adapt.schedule=linear",
        "learner.adapt.folds=-2",
        "learner.adapt.folds=1",
        "learner.adapt.by=magic",
        "learner.adapt.rates.head=-1",
        "trainer.accelerator=tpu",
        "trainer.devices=0",
        "trainer.devices=[]",
        "trainer.devices=[0,0]",
        "trainer.devices=[-1]",
        "trainer.devices=true",
        "trainer.strategy=fsdp",
        "trainer.precision=8-true",
        "model.features=0",
        "model.norm.encoder=layer",
        "model.recipe.lam=-1",
        "model.recipe.adapt.quick.steps=-1",
        "model.recipe.rates.outer.head=-1",
        "protocol.outer_lr=0",
        "protocol.curvature=fisher",
        "protocol.adapt.schedule=linear",
        "model.recipe.inner.bound.share=0",
        "scale.name=3",
    ],
)
def test_a_wrong_value_is_refused_by_its_name(right, wrong):
    name = wrong.partition("=")[0]
    changed = copy.deepcopy(right)
    OmegaConf.update(changed, name, OverridesParser.create().parse_override(wrong).value())
    with pytest.raises(MetasegError) as caught:
        schema.read(schema.Run, changed)
    assert f"{name} must be" in str(caught.value)


def test_each_of_several_wrong_values_has_its_sentence():
    with pytest.raises(MetasegError) as caught:
        settings_of("shots=0", "evaluation.draws=0")
    assert "shots " in str(caught.value)
    assert "evaluation.draws " in str(caught.value)


def test_a_setting_that_there_is_not_is_refused():
    with pytest.raises(MetasegError, match=r"data\.colour"):
        settings_of("+data.colour=3")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("+learner.curvatur=hessian", "learner.curvature"),
        ("learner.products=3", "learner.products"),
        ("learner.lam=much", "learner.lam"),
    ],
)
def test_what_one_learner_takes_is_checked_by_its_constructor(given, named):
    settings = settings_of(*TINY, given)
    with pytest.raises(MetasegError, match=named.replace(".", r"\.")):
        build_learner(settings)


@pytest.mark.parametrize(
    ("command", "given", "wrong"),
    [
        ("adapt", ["checkpoint=a", "support=b", "out=c"], "folds=1"),
        ("adapt", ["checkpoint=a", "support=b", "out=c"], "export=[tflite]"),
        ("adapt", ["checkpoint=a", "support=b", "out=c"], "device=tpu"),
        ("adapt", ["checkpoint=a", "support=b", "out=c"], "lr=0"),
        ("adapt", ["checkpoint=a", "support=b", "out=c"], "overwrite=1"),
        ("app", ["checkpoint=a"], "port=70000"),
        ("app", ["checkpoint=a"], "max_mb=0"),
        ("app", ["checkpoint=a"], "steps=0"),
        ("pretrain", [], "data.batch=0"),
        ("pretrain", [], "data.size=40"),
        ("pretrain", [], "data.augment.flip=2"),
        ("pretrain", [], "optimizer.lr=-1"),
    ],
)
def test_the_other_commands_refuse_by_name_too(command, given, wrong):
    kind = {"adapt": schema.Adaptation, "app": schema.Page, "pretrain": schema.Pretraining}[command]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        right, bad = (compose(command, [*given, *more]) for more in ([], [wrong]))
    assert schema.read(kind, right).plain == OmegaConf.to_container(right, resolve=True)
    with pytest.raises(MetasegError) as caught:
        schema.read(kind, bad)
    assert str(caught.value).startswith(f"{wrong.partition('=')[0]} ")


def test_every_setting_of_conf_is_documented():
    plain = OmegaConf.to_container(OmegaConf.create(settings_of().plain))
    known = {one.key for one in schema.documented(schema.Run)}
    open_groups = ("protocol", "model", "scale", "experiment", "table", "learner", "starts.learner")

    def leaves(tree, prefix=""):
        for key, value in tree.items():
            name = f"{prefix}{key}"
            yield from leaves(value, f"{name}.") if isinstance(value, dict) and name not in known else [name]

    missing = {name for name in leaves(plain) if name not in known and not name.startswith(open_groups)}
    assert missing == set()
    assert all(one.meaning and one.values for one in schema.documented(schema.Run))
