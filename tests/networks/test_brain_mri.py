import hashlib
import io
import re
import zipfile
from urllib.error import URLError

import pytest
import torch

from metaseg.errors import MetasegError
from metaseg.networks import brain_mri
from metaseg.networks.attention_unet import AttentionUNet, UNet
from metaseg.networks.brain_mri import load_brain_mri, save_in_hub_layout


@pytest.fixture
def unet():
    torch.manual_seed(7)
    network = UNet(2)
    network.encoder1.enc1norm1.running_mean.fill_(3.0)  # buffers travel too
    return network


def named_by_hash(tensors, folder):
    """`tensors` in a file whose name carries its hash, as a user would name it."""
    path = folder / "weights.pt"
    torch.save(tensors, path)
    return path.rename(folder / f"weights-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pt")


def test_gates_stay_random_and_all_else_is_loaded(unet, tmp_path):
    path = save_in_hub_layout(unet, tmp_path / "weights")
    torch.manual_seed(8)
    network = AttentionUNet(2)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    report = load_brain_mri(network, path)
    given = unet.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, own[name] if name.startswith("gate") else given[name]), name
    gates = {name for name in own if name.startswith("gate") and not name.endswith("num_batches_tracked")}
    assert set(report.missing) == gates
    # 18 norms of 4 tensors and 18 convolutions, 4 upsamplings and the head of 2; counters are not recorded.
    assert (report.loaded, report.unused, report.source) == (100, (), path.name)


def test_plain_unet_takes_everything(unet, tmp_path):
    report = load_brain_mri(UNet(2), save_in_hub_layout(unet, tmp_path))
    assert report.missing == ()


def test_file_name_carries_the_hash_and_does_not_depend_on_the_folder(unet, tmp_path):
    first, second = (save_in_hub_layout(unet, tmp_path / folder) for folder in "ab")
    assert first.name == second.name == f"unet-{hashlib.sha256(first.read_bytes()).hexdigest()[:8]}.pt"
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_unwritable_folder_is_reported(unet, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MetasegError, match="choose another folder"):
        save_in_hub_layout(unet, tmp_path / "file")


def test_gates_are_not_written(tmp_path):
    path = save_in_hub_layout(AttentionUNet(1), tmp_path)
    assert set(torch.load(path, weights_only=True)) == set(UNet(1).state_dict())


def test_old_file_without_batch_counters(unet, tmp_path):
    tensors = {name: value for name, value in unet.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert load_brain_mri(UNet(2), named_by_hash(tensors, tmp_path)).loaded == 100


def test_tensors_without_a_place_are_reported(unet, tmp_path):
    report = load_brain_mri(UNet(2), named_by_hash(unet.state_dict() | {"extra.weight": torch.zeros(1)}, tmp_path))
    assert report.unused == ("extra.weight",)


def test_other_width_is_refused_with_both_widths(unet, tmp_path):
    network = AttentionUNet(4)
    before = network.conv.weight.clone()
    with pytest.raises(MetasegError, match=r"model\.features=4, found weights of 2 features .* set model\.features=2"):
        load_brain_mri(network, save_in_hub_layout(unet, tmp_path))
    assert torch.equal(network.conv.weight, before)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("encoder1.enc1conv1.weight", (2, 1, 3, 3)), ("conv.weight", (3, 2, 1, 1))],
)
def test_another_shape_is_refused(unet, tmp_path, name, shape):
    tensors = unet.state_dict() | {name: torch.zeros(shape)}
    with pytest.raises(MetasegError, match=rf"{re.escape(name)} of shape .*, found {re.escape(str(shape))}"):
        load_brain_mri(UNet(2), named_by_hash(tensors, tmp_path))


def test_damaged_file_is_refused_before_it_is_unpickled(unet, tmp_path, monkeypatch):
    path = save_in_hub_layout(unet, tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the file was read"))
    with pytest.raises(
        MetasegError, match=rf"starts with {path.stem[-8:]}, found {hashlib.sha256(content).hexdigest()[:8]}"
    ):
        load_brain_mri(UNet(2), path)


def test_name_without_hash_is_refused_with_the_name_to_give(unet, tmp_path):
    path = save_in_hub_layout(unet, tmp_path)
    plain = path.rename(tmp_path / "mine.pt")
    with pytest.raises(MetasegError, match=rf"rename it to mine-{path.stem[-8:]}\.pt"):
        load_brain_mri(UNet(2), plain)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(MetasegError, match=r"nowhere-00000000\.pt, found no readable file"):
        load_brain_mri(UNet(2), tmp_path / "nowhere-00000000.pt")


def test_pickled_code_is_refused(tmp_path):
    with pytest.raises(MetasegError, match="file of tensors"):
        load_brain_mri(UNet(1), named_by_hash(UNet(1), tmp_path))


def test_compressed_file_is_refused_before_it_is_unpacked(unet, tmp_path):
    memory = io.BytesIO()
    with (
        zipfile.ZipFile(save_in_hub_layout(unet, tmp_path)) as old,
        zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path = tmp_path / f"unet-{hashlib.sha256(memory.getvalue()).hexdigest()[:8]}.pt"
    path.write_bytes(memory.getvalue())
    with pytest.raises(MetasegError, match=r"written by torch\.save"):
        load_brain_mri(UNet(2), path)


def test_file_of_another_network_is_refused(tmp_path):
    with pytest.raises(MetasegError, match="found no encoder1"):
        load_brain_mri(UNet(1), named_by_hash(torch.nn.Linear(2, 2).state_dict(), tmp_path))


def test_incomplete_file_is_refused(unet, tmp_path):
    tensors = {name: value for name, value in unet.state_dict().items() if not name.startswith("decoder2")}
    with pytest.raises(MetasegError, match=r"10 missing, including decoder2\.dec2conv1\.weight"):
        load_brain_mri(UNet(2), named_by_hash(tensors, tmp_path))


def test_hub_file_is_downloaded_once_into_torch_hubs_cache(unet, tmp_path, monkeypatch):
    source = save_in_hub_layout(unet, tmp_path / "server")
    monkeypatch.setattr(brain_mri, "URL", source.as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    first = load_brain_mri(UNet(2), "hub")
    assert (tmp_path / "hub" / "checkpoints" / source.name).is_file()
    source.unlink()
    assert load_brain_mri(UNet(2), "hub") == first


def test_downloaded_file_of_another_hash_is_refused(unet, tmp_path, monkeypatch):
    source = save_in_hub_layout(unet, tmp_path / "server")
    monkeypatch.setattr(brain_mri, "URL", source.rename(source.with_name("unet-e012d006.pt")).as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(MetasegError, match=r"Could not download .*invalid hash value"):
        load_brain_mri(UNet(2), "hub")
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_without_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MetasegError, match=r"no route to host.*set model\.init_path to it, or set model\.init=random"):
        load_brain_mri(UNet(2), "hub")
