import logging

import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf

from metaseg.errors import MetasegError
from metaseg.networks.attention_unet import AttentionUNet, UNet
from metaseg.networks.brain_mri import save_in_hub_layout
from metaseg.networks.build import build, fingerprint


def test_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (build(features=2, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])


def test_gates_do_not_change_the_other_initial_weights():
    gated, plain = build(name="attention_unet", features=2, seed=1), build(name="unet", features=2, seed=1)
    assert isinstance(gated, AttentionUNet)
    assert all(torch.equal(value, gated.state_dict()[name]) for name, value in plain.state_dict().items())


def test_brain_mri_weights_by_path_are_reported(tmp_path, caplog):
    source = build(name="unet", features=2, seed=1)
    path = save_in_hub_layout(source, tmp_path)
    with caplog.at_level(logging.INFO):
        network = build(features=2, seed=2, init="brain_mri", init_path=path)
    assert torch.equal(network.bottleneck[0].weight, source.bottleneck[0].weight)
    assert (network.weights.source, network.weights.trained_on) == (path.name, "brain MRI")
    assert {name.split(".")[0] for name in network.weights.missing} == {"gate1", "gate2", "gate3", "gate4"}
    assert build(features=2).weights is None
    assert torch.equal(network.gate1.skip[0].weight, build(features=2, seed=2).gate1.skip[0].weight)
    assert caplog.messages == [f"Initial weights: {network.weights.sentence()}."]


def test_initial_weights_can_be_left_out_for_a_checkpoint(tmp_path):
    network = build(features=2, init="brain_mri", init_path=tmp_path / "gone-00000000.pt", initial_weights=False)
    assert torch.equal(network.conv.weight, build(features=2).conv.weight)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"init_path": "weights.pt"}, "found model.init=random and model.init_path=weights.pt"),
        ({"name": "nope"}, "found 'nope'"),
        ({"features": 0}, "model.features from 1"),
        ({"name": "smp", "init": "brain_mri"}, "model.init=random with model=smp, found brain_mri"),
    ],
)
def test_invalid_settings_are_refused(settings, sentence):
    with pytest.raises(MetasegError) as error:
        build(**settings)
    assert sentence in str(error.value)


@pytest.mark.parametrize("name", ["attention_unet", "smp", "pretrained"])
def test_configuration_files_hold_arguments_of_build(name):
    config = OmegaConf.to_container(composed(f"model={name}").model, resolve=False)
    settings = {key: value for key, value in config.items() if key not in ("norm", "recipe", "init")}
    settings |= {"features": 2} if name == "attention_unet" else {}
    assert build(**settings)(torch.randn(2, 3, 32, 32)).shape == (2, 1, 32, 32)


def test_fingerprint_tells_architectures_apart():
    assert fingerprint(build(features=2, seed=1)) == fingerprint(build(features=2, seed=2))
    assert fingerprint(UNet(32)).startswith("UNet(features=32), 7,763,041 parameters, layout ")
    assert len({fingerprint(network) for network in (UNet(2), UNet(3), AttentionUNet(2))}) == 3
