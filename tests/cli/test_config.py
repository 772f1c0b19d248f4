"""Every configuration composes, and every key has the value its name promises."""

import conftest
import pytest
from conftest import ROOT, settings_of
from omegaconf import OmegaConf

CONF = ROOT / "conf"
GROUPS = ["pair", "model", "data", "trainer", "logger", "protocol"]
"""Those whose options are the same under each protocol; learners are built under both below."""


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


def composed(*overrides):
    return OmegaConf.to_container(conftest.composed(*overrides), resolve=True)


@pytest.mark.long
@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in options(group)])
def test_every_option_composes_and_passes(group, option):
    assert settings_of(f"{group}={option}").shots == 20


def test_the_paper_protocol_has_the_published_settings():
    settings = composed("protocol=paper")
    assert settings["learner"]["lam"] == 100
    assert settings["learner"]["optimizer"]["lr"] == 1e-5
    assert settings["learner"]["optimizer"]["weight_decay"] == 5e-4
    assert settings["data"]["size"] == 256
    assert settings["tasks"]["count"] == 50
    assert settings["trainer"]["max_epochs"] == 50
    assert (settings["trainer"]["patience"], settings["trainer"]["min_delta"]) == (10, 0.001)
    assert settings["loss"] == "bce_log_cosh_dice"


@pytest.mark.long
def test_pairs_bring_the_targets_of_the_paper():
    targets = {pair: composed(f"pair={pair}")["target"] for pair in options("pair")}
    assert targets == {
        "ph2_kvasir": ["isic"],
        "cvc_kvasir": ["isic"],
        "isic_ph2": ["kvasir", "kvasir_capsule"],
        "cvc_ph2": ["isic"],
        "none": ["isic"],
    }


@pytest.mark.long
@pytest.mark.parametrize("learner", options("learner"))
def test_the_learner_that_a_configuration_names_can_be_built(learner, vgg16_weights, monkeypatch):
    from metaseg.learners.build import build_learner

    monkeypatch.setenv("METASEG_VGG16", str(vgg16_weights))
    for protocol in options("protocol"):
        settings = settings_of(f"learner={learner}", f"protocol={protocol}", "model.features=2")
        assert build_learner(settings).adapt_loop.steps == settings.learner.adapt.steps


def test_networks_of_learners_have_the_models_width_and_otherwise_that_of_vgg16():
    assert composed("learner=feyjie", "model.features=8")["learner"]["network"]["features"] == 8
    assert composed("learner=pmg", "model=smp")["learner"]["network"]["features"] == 32


@pytest.mark.long
def test_the_pretrained_encoder_is_a_file_where_one_is_named(monkeypatch):
    monkeypatch.delenv("METASEG_VGG16", raising=False)
    assert composed("learner=pretrained")["learner"]["network"]["encoder_weights"] == "imagenet"
    monkeypatch.setenv("METASEG_VGG16", "/somewhere/vgg16.pth")
    settings = composed("learner=pretrained")["learner"]
    assert settings["network"]["encoder_weights"] == "/somewhere/vgg16.pth"
    # Networks of the paper's baselines are random like the paper's, and pre-trained where all others are.
    for learner in ("feyjie", "pmg"):
        of_scales = [composed(f"learner={learner}", f"scale={scale}")["learner"] for scale in ("full", "small")]
        assert [one["network"]["encoder_weights"] for one in of_scales] == [None, "/somewhere/vgg16.pth"]
    assert settings["adapt"] == composed("learner=scratch")["learner"]["adapt"]
