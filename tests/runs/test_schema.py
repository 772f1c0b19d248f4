"""The schema: what is right passes, and what is wrong is refused by the setting's name."""

import re
from typing import get_args

import pytest
from conftest import TINY, composed, settings_of
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metaseg.errors import MetasegError
from metaseg.learners.build import build_learner
from metaseg.meta.gradients import CURVATURES
from metaseg.meta.inner_loop import OPTIMIZERS, SCHEDULES
from metaseg.meta.losses import LOSSES
from metaseg.runs import schema, validation
from metaseg.runs.directory import RunDirectory
from metaseg.runs.settings import RETIRED, changed
from metaseg.training.run import begin, require_resumable


@pytest.fixture
def right():
    """A configuration that passes."""
    return composed(*TINY)


@pytest.mark.long
@pytest.mark.parametrize("model", ["pretrained", "smp"])
def test_the_papers_protocol_fits_other_models(model):
    assert settings_of(f"model={model}", "protocol=paper").learner.inner.steps > 0


@pytest.mark.parametrize("scale", ["full", "small", "toy"])
def test_every_scale_passes(scale):
    assert settings_of(f"scale={scale}").trainer.max_epochs >= 1


def test_the_command_line_goes_before_a_scale():
    settings = settings_of("scale=toy", "data=real", "trainer=gpu")
    assert (settings.data.source, settings.trainer.accelerator) == ("real", "gpu")


@pytest.mark.parametrize(
    "wrong",
    [
        "shots=1.5",
        "shots=true",
        "seed=-1",
        "target=[kvasir,kvasir]",
        "loss=cross_entropy",
        "train=perhaps",
        "data.validation=1",
        "data.workers=-1",
        "tasks.recolour=2",
        "evaluation.limit=0",
        "evaluation.curve=[-1]",
        "learner.optimizer.lr=0",
        "learner.adapt.folds=1",
        "trainer.devices=[0,0]",
        "model.norm.encoder=layer",
        "model.recipe.rates.outer.head=-1",
        "scale.name=3",
    ],
)
def test_a_wrong_value_is_refused_by_its_name(right, wrong):
    name = wrong.partition("=")[0]
    OmegaConf.update(right, name, OverridesParser.create().parse_override(wrong).value())
    with pytest.raises(MetasegError) as caught:
        validation.read(schema.Run, right)
    assert f"{name} must be" in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        ["trainer.devices=[0,1]", "trainer.accelerator=cuda", "trainer.strategy=ddp"],
        ["trainer.devices=auto", "trainer.accelerator=gpu", "trainer.strategy=auto"],
        ["trainer.devices=[3]", "trainer.precision=64-true"],
        ["trainer.accelerator=mps"],
        ["model.norm=batch"],
    ],
)
def test_devices_and_norms_may_be_given_in_several_ways(right, given):
    for one in OverridesParser.create().parse_overrides(given):
        OmegaConf.update(right, one.key_or_group, one.value(), merge=False)
    assert validation.read(schema.Run, right).plain == OmegaConf.to_container(right, resolve=True)


def test_one_word_sets_the_statistics_of_both_parts():
    norm = settings_of(*TINY, "model.norm=batch").model.norm
    assert (norm.encoder, norm.decoder) == ("batch", "batch")


def test_the_choices_of_the_schema_are_those_of_the_code():
    assert get_args(schema.Loss) == tuple(LOSSES)
    assert get_args(schema.Curvature) == CURVATURES
    assert (get_args(schema.Descent), get_args(schema.Schedule)) == (tuple(OPTIMIZERS), SCHEDULES)


def test_a_config_of_an_earlier_version_says_the_same_when_a_run_goes_on(tmp_path, right, capsys):
    """Reading by the schema adds nothing to the settings, and leaves each value as it was given."""
    given = right
    OmegaConf.update(given, "model.norm", "support", merge=False)
    OmegaConf.update(given, "learner.optimizer.lr", 1)
    OmegaConf.update(given, "target", "isic")
    directory = RunDirectory(tmp_path)
    OmegaConf.save(given, directory.config, resolve=True)  # as every version has written it
    before = directory.config.read_text()
    settings = validation.read(schema.Run, given)
    assert changed(OmegaConf.to_container(OmegaConf.load(directory.config)), settings.plain, ()) == ()
    begin(directory, settings, resumed=True)
    assert capsys.readouterr().out == ""
    assert directory.config.read_text() == before


@pytest.mark.parametrize("retired", RETIRED)
def test_a_run_goes_on_without_settings_that_only_earlier_versions_have(tmp_path, right, retired):
    directory = RunDirectory(tmp_path).create()
    settings = validation.read(schema.Run, right)
    OmegaConf.update(right, retired, RETIRED[retired], force_add=True)
    directory.write_config(OmegaConf.to_container(right, resolve=True))
    assert directory.read_config() == settings.plain
    OmegaConf.update(right, retired, "other")
    directory.write_config(OmegaConf.to_container(right, resolve=True))
    with pytest.raises(MetasegError, match=f"{re.escape(retired)} is not a setting of this version, found 'other'"):
        require_resumable(directory, directory.last, settings)


@pytest.mark.parametrize("retired", RETIRED)
def test_settings_that_only_earlier_versions_have_are_refused_on_the_command_line(retired):
    with pytest.raises(MetasegError, match=f"{re.escape(retired)} is not a setting of this version"):
        settings_of("learner=imaml", f"+{retired}={RETIRED[retired]}")


def test_each_of_several_wrong_values_has_its_sentence():
    with pytest.raises(MetasegError) as caught:
        settings_of("shots=0", "evaluation.draws=0")
    assert "shots " in str(caught.value)
    assert "evaluation.draws " in str(caught.value)


def test_unknown_settings_are_refused():
    with pytest.raises(MetasegError, match=r"data\.colour"):
        settings_of("+data.colour=3")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("+learner.curvatur=hessian", "learner.curvature"),
        ("learner.products=3", "learner.products"),
        ("learner.lam=much", "learner.lam"),
        ("learner.lam=0", "learner.lam"),
        ("learner.cg.steps=0", "learner.cg.steps"),
        ("+learner.cg.step=3", "did you mean learner.cg.steps?"),
        ("learner.strengths.by=pixel", "learner.strengths.by"),
        ("learner=pmg learner.network.features=many", "learner.network.features"),
        ("+learner.norm=batch", "learner.norm is set elsewhere"),
    ],
)
def test_learner_settings_are_validated_by_the_constructor(given, named):
    settings = settings_of(*TINY, *given.split())
    with pytest.raises(MetasegError, match=named.replace(".", r"\.")):
        build_learner(settings)


@pytest.mark.parametrize(
    ("command", "given", "wrong"),
    [
        ("adapt", ["checkpoint=a", "support=b", "out=c"], "export=[tflite]"),
        ("app", ["checkpoint=a"], "port=70000"),
        ("pretrain", [], "data.size=40"),
        ("pretrain", [], "optimizer.lr=0"),
        ("pretrain", [], "trainer.devices=2"),
        ("pretrain", [], "+trainer.stop_by=training"),
    ],
)
def test_the_other_commands_refuse_by_name_too(command, given, wrong):
    kind = schema.CONFIGURATIONS[command]
    right, bad = (composed(*given, *more, command=command) for more in ([], [wrong]))
    assert validation.read(kind, right).plain == OmegaConf.to_container(right, resolve=True)
    with pytest.raises(MetasegError) as caught:
        validation.read(kind, bad)
    assert str(caught.value).startswith(f"{wrong.lstrip('+').partition('=')[0]} ")


def test_every_setting_of_conf_is_documented():
    plain = OmegaConf.to_container(OmegaConf.create(settings_of().plain))
    known = {one.key for one in validation.documented(schema.Run)}
    open_groups = ("learner", "starts.learner")

    def leaves(tree, prefix=""):
        for key, value in tree.items():
            name = f"{prefix}{key}"
            yield from leaves(value, f"{name}.") if isinstance(value, dict) and name not in known else [name]

    missing = {name for name in leaves(plain) if name not in known and not name.startswith(open_groups)}
    assert missing == set()
    assert all(one.meaning and one.values for one in validation.documented(schema.Run))
