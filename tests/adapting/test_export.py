"""Exported segmenters give what PyTorch gives."""

import os

import numpy as np
import pytest
import torch
from conftest import lesion

import metaseg
from metaseg.adapting.export import export, exportable
from metaseg.data.batches import image_tensor
from metaseg.errors import MetasegError

ENCODER = ["model=smp", "model.encoder=resnet18", "model.encoder_weights=null"]
PRETRAINED = ["model=pretrained", "model.widths=[8,8,8]"]


def pictures(count, size=32):
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def adapted(trained):
    images, masks = zip(*(lesion(number) for number in range(3)), strict=True)
    return metaseg.load(trained).adapt(images, masks, folds=0)


def expected(adapted, images):
    return adapted.segmenter(image_tensor(images))[:, 0].numpy()


@pytest.mark.slow  # by default one of the two formats
def test_torch_export_takes_any_number_of_images(adapted, tmp_path):
    (path,) = export(adapted, tmp_path, ["torch"])
    program = torch.export.load(path).module()
    for count in (1, 2, 5):
        images = pictures(count)
        found = program(torch.from_numpy(images))
        assert found.shape == (count, 32, 32)
        np.testing.assert_allclose(found.numpy(), expected(adapted, images), atol=1e-5)


def test_onnx_takes_any_number_of_images(adapted, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (path,) = export(adapted, tmp_path, ["onnx"])
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        images = pictures(count)
        (found,) = session.run(["probabilities"], {"images": images})
        np.testing.assert_allclose(found, expected(adapted, images), atol=1e-4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["segmenter.onnx"]  # weights inside


@pytest.mark.slow
@pytest.mark.parametrize("model", [ENCODER, PRETRAINED], ids=["smp", "pretrained"])
def test_networks_with_an_encoder_are_exported_like_ours(run_of, lesions, tmp_path, model):
    adapted = metaseg.load(run_of("learner=joint", *model)).adapt(*lesions)
    (path,) = export(adapted, tmp_path, ["torch"])
    images = pictures(3)
    found = torch.export.load(path).module()(torch.from_numpy(images))
    np.testing.assert_allclose(found.numpy(), expected(adapted, images), atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner=pmg", "learner.adapt.steps=0"], "compares images"),
        (["learner=joint", "model.norm=batch"], "model.norm=batch"),
    ],
)
def test_refuses_unexportable_segmenters(run_of, lesions, tmp_path, overrides, words):
    with pytest.raises(MetasegError, match=words):
        export(metaseg.load(run_of(*overrides)).adapt(*lesions), tmp_path, ["torch"])


def test_the_segmenter_is_not_changed(adapted):
    images = pictures(2)
    before = expected(adapted, images)
    module = exportable(adapted)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert np.array_equal(expected(adapted, images), before)


@pytest.mark.skipif("METASEG_DATA" not in os.environ, reason="needs the real datasets in METASEG_DATA")
@pytest.mark.slow
def test_on_real_images_they_agree(adapted, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    from metaseg.data import catalogue, pools

    images = np.array(pools.prepare(catalogue.get("kvasir"), os.environ["METASEG_DATA"], 32).images[:16])
    onnx, program = export(adapted, tmp_path, ["onnx", "torch"])
    (found,) = runtime.InferenceSession(onnx, providers=["CPUExecutionProvider"]).run(None, {"images": images})
    np.testing.assert_allclose(found, expected(adapted, images), atol=1e-4)
    by_torch = torch.export.load(program).module()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(by_torch, expected(adapted, images), atol=1e-5)
