"""metaseg.load and what it returns: loading, adapting to arrays, segmenting arrays."""

import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import metaseg
from metaseg.adapting.arrays import rgb, windowed
from metaseg.data.batches import SupportSet, image_tensor
from metaseg.errors import MetasegError

LEARNERS = ["imaml", "maml", "anil", "reptile", "joint", "scratch", "prototypes", "feyjie", "pmg"]


def test_three_lines_segment_images_of_any_size(trained, lesions):
    images, masks = lesions
    model = metaseg.load(trained)
    segmenter = model.adapt(images[:4], masks[:4], steps=60, lr=3e-3, folds=0)
    predicted = segmenter.segment(images)
    assert [(mask.dtype, mask.shape) for mask in predicted] == [(bool, image.shape[:2]) for image in images]
    # The last was not among those it was adapted to.
    both = 2 * (predicted[-1] & masks[-1]).sum() / (predicted[-1].sum() + masks[-1].sum())
    assert both > 0.7
    probabilities = segmenter.probabilities(images, batch=2)
    assert all(np.array_equal(one > 0.5, mask) for one, mask in zip(probabilities, predicted, strict=True))
    assert all(one.min() >= 0 and one.max() <= 1 for one in probabilities)


def test_adapt_equals_the_learner_on_prepared_images(trained, lesions):
    images, masks = lesions
    model = metaseg.load(trained)
    small = np.stack(
        [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in images]
    )
    truth = np.stack(
        [Image.fromarray(mask.astype(np.uint8)).resize((32, 32), Image.Resampling.NEAREST) for mask in masks]
    )
    expected = model.learner.adapt(SupportSet(small, truth, "standard", seed=3))(image_tensor(small))[:, 0]
    found = model.adapt(images, masks, seed=3, folds=0).segmenter(image_tensor(small))[:, 0]
    assert torch.equal(found, expected)


def test_adapting_does_not_change_the_model(trained, lesions):
    model = metaseg.load(trained)
    before = {name: value.clone() for name, value in model.learner.state_dict().items()}
    kept = model.learner.adapt_loop
    first = model.adapt(*lesions, steps=3, lr=0.1).probabilities(lesions[0])
    assert all(torch.equal(value, before[name]) for name, value in model.learner.state_dict().items())
    assert model.learner.adapt_loop == kept
    second = model.adapt(*lesions, steps=3, lr=0.1).probabilities(lesions[0])
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    other = model.adapt(*lesions, steps=3, lr=0.1, seed=1).probabilities(lesions[0])
    assert not np.array_equal(first[0], other[0])


def test_a_checkpoint_alone_is_enough_and_equals_its_run(trained, lesions, tmp_path):
    shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "moved.ckpt")
    alone, whole = (
        metaseg.load(path).adapt(*lesions).probabilities(lesions[0]) for path in (tmp_path / "moved.ckpt", trained)
    )
    assert all(np.array_equal(one, other) for one, other in zip(alone, whole, strict=True))


def test_a_checkpoint_without_settings_uses_its_run_directory(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)
    del state["settings"]
    torch.save(state, path)
    assert metaseg.load(path).size == 32
    moved = shutil.move(path, tmp_path / "alone.ckpt")
    with pytest.raises(MetasegError, match=r"checkpoint that contains its settings.*alone\.ckpt"):
        metaseg.load(moved)


@pytest.mark.long
@pytest.mark.parametrize(
    "learner",  # these adapt as iMAML does
    [pytest.param(name, marks=pytest.mark.slow) if name in ("maml", "reptile", "joint") else name for name in LEARNERS],
)
def test_every_learner_adapts_to_arrays(run_of, lesions, learner):
    steps = []
    compares = learner in ("prototypes", "feyjie", "pmg")
    model = metaseg.load(run_of(f"learner={learner}", *["learner.adapt.steps=0"] * compares))
    segmenter = model.adapt(*lesions, progress=lambda done, of: steps.append((done, of)))
    assert [mask.shape for mask in segmenter.segment(lesions[0])] == [image.shape[:2] for image in lesions[0]]
    assert steps[-1][0] == steps[-1][1] == (0 if compares else 2)


def test_initial_weights_of_the_run_are_not_needed(run_of, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["model"] |= {"init": "brain_mri", "init_path": "gone.pt"}
    config.write_text(yaml.safe_dump(settings))
    assert metaseg.load(tmp_path / "run").size == 32


def test_arrays_of_other_types_mean_the_same_image():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(rgb(image, ""), image)
    assert np.array_equal(rgb(image / 255, ""), image)
    assert np.array_equal(rgb(np.dstack([image, np.full((5, 7), 255, np.uint8)]), ""), image)
    assert np.array_equal(rgb(image[..., 0], ""), np.repeat(image[..., :1], 3, axis=2))
    assert np.array_equal(rgb(image[..., 0] > 99, ""), np.repeat((image[..., :1] > 99) * np.uint8(255), 3, axis=2))


def test_images_of_more_than_8_bits_are_windowed_by_their_content():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for deep in (image.astype(np.uint16) * 16, image.astype(np.int16) * 4 - 1000, image.astype(np.uint16) * 257):
        deep[0, 0] = np.iinfo(deep.dtype).max  # a dead pixel
        assert np.abs(rgb(deep, "").astype(int) - image)[1:].max() <= 4
    assert windowed(np.array([0, 0, 0, 9])).tolist() == [0, 0, 0, 255]
    assert windowed(np.full(3, 7)).tolist() == [0, 0, 0]
    assert windowed(np.array([-5, 0, 5, np.nan]), (0, 4)).tolist() == [0, 0, 255, 0]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"shape \(H, W\)"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.full((4, 4), 2.0), "from 0 to 1"),
        (np.full((4, 4), np.nan), "from 0 to 1"),
        (np.zeros((4, 4), complex), "integers or floats"),
    ],
)
def test_refuses_invalid_images(image, words):
    with pytest.raises(MetasegError, match=words):
        rgb(image, "image 0")


def test_arrays_that_do_not_belong_together_are_refused(trained, lesions):
    images, masks = lesions
    model = metaseg.load(trained)
    for wrong in ((images, masks[:2]), ([], [])):
        with pytest.raises(MetasegError, match="at least one image and a mask for each"):
            model.adapt(*wrong)
    with pytest.raises(MetasegError, match=r"64×48 pixels, found 48×64 in mask 0"):
        model.adapt(images[:1], masks[1:2])
    with pytest.raises(MetasegError, match="steps"):
        model.adapt(images, masks, steps=-1)
    assert model.learner.adapt_loop.steps == 2


def test_refuses_invalid_runs(trained, tmp_path):
    with pytest.raises(MetasegError, match="found nothing at"):
        metaseg.load(tmp_path / "gone")
    with pytest.raises(MetasegError, match=r"found no config\.yaml"):
        metaseg.load(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(MetasegError, match="something else or damaged"):
        metaseg.load(tmp_path / "a.ckpt")
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(MetasegError, match="found no learner in them"):
        metaseg.load(tmp_path)
    shutil.copy(trained / "config.yaml", tmp_path)
    with pytest.raises(MetasegError, match=r"Expected the checkpoint .*best\.ckpt"):
        metaseg.load(tmp_path)
    with pytest.raises(MetasegError, match="device must be one of"):
        metaseg.load(trained, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(MetasegError, match="device=cuda needs a GPU"):
            metaseg.load(trained, device="cuda")


def test_a_gpu_that_torch_has_no_kernels_for_is_left_alone(trained, monkeypatch, caplog):
    def refuse():
        raise MetasegError("no kernels")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("metaseg.adapting.loading.check_gpu", refuse)
    with pytest.raises(MetasegError, match="no kernels"):
        metaseg.load(trained, device="cuda")
    assert metaseg.load(trained).learner.device.type == "cpu"
    assert "Using the CPU: no kernels" in caplog.text


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harmed").touch, ())

    torch.save({"settings": {}, "harm": Harm()}, tmp_path / "hostile.ckpt")
    with pytest.raises(MetasegError, match="something else or damaged") as refused:
        metaseg.load(tmp_path / "hostile.ckpt")
    assert "weights_only" not in str(refused.value), "advice to load such files unsafely"
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("where", ["file", "directory"])
@pytest.mark.parametrize("node", ["learner", "network"])
def test_no_foreign_class_is_made_from_settings(trained, tmp_path, where, node):
    harm = {"_target_": "subprocess.Popen", "args": ["touch", str(tmp_path / "harmed")]}

    def hostile(settings):
        settings["learner"] = harm if node == "learner" else settings["learner"] | {"network": harm}
        return settings

    path = shutil.copytree(trained, tmp_path / "run")
    if where == "file":
        path = path / "checkpoints" / "best.ckpt"
        state = torch.load(path, weights_only=True)
        torch.save(state | {"settings": hostile(state["settings"])}, path)
    else:
        config = path / "config.yaml"
        config.write_text(yaml.safe_dump(hostile(yaml.safe_load(config.read_text()))))
    with pytest.raises(MetasegError, match=r"found subprocess\.Popen"):
        metaseg.load(path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"_target_": "metaseg.cli.program.Program"},
        {"_target_": "metaseg.learners.base.torch.nn.Module"},
        {"network": {"_target_": "metaseg.networks.pmg.PMGNetwork", "features": 2**20}},
        {"network": {"_target_": "metaseg.networks.smp.LibraryNetwork", "encoder": "tu-hf-hub:somebody/network"}},
    ],
)
def test_settings_of_a_file_build_nothing_but_networks_of_metaseg(trained, tmp_path, changes, monkeypatch):
    monkeypatch.setattr("socket.socket", None)
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    state["settings"]["learner"] |= changes
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(MetasegError):
        metaseg.load(tmp_path / "a.ckpt", "cpu")


def test_a_network_far_larger_than_the_weights_is_not_built(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("metaseg.adapting.loading._SPARE", 10**6)
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    state["settings"]["learner"]["network"] = {"_target_": "metaseg.networks.smp.LibraryNetwork", "encoder": "resnet18"}
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(MetasegError, match="at most 1 million weights"):
        metaseg.load(tmp_path / "a.ckpt", "cpu")


def test_compressed_checkpoints_are_refused(trained, tmp_path):
    """torch.save writes none, and torch.load would unpack whatever they claim."""
    written = tmp_path / "a.ckpt"
    with (
        zipfile.ZipFile(trained / "checkpoints" / "best.ckpt") as old,
        zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(MetasegError, match="compressed"):
        metaseg.load(written, "cpu")


def test_a_network_wider_than_the_widest_is_refused(trained, tmp_path):
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    state["settings"]["model"]["features"] = 2**20
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(MetasegError, match=r"model\.features"):
        metaseg.load(tmp_path / "a.ckpt", "cpu")


@pytest.mark.parametrize("content", ["[" * 3000, "a: &a [*a]", "x", b"\xff"])
def test_damaged_settings_of_a_run_are_named(trained, tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MetasegError, match=r"config\.yaml"):
        metaseg.load(tmp_path, "cpu")


def test_refuses_a_checkpoint_without_weights(trained, tmp_path):
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    for weights in ({}, {"state_dict": {}}):
        rest = {key: value for key, value in state.items() if key != "state_dict"}
        torch.save(rest | weights, tmp_path / "a.ckpt")
        with pytest.raises(MetasegError, match=r"settings and weights.*train again"):
            metaseg.load(tmp_path / "a.ckpt")


def test_reports_diverged_adaptation(trained, lesions):
    with pytest.raises(MetasegError, match=r"diverged.*smaller lr"):
        metaseg.load(trained).adapt(*lesions, lr=1e38).segment(lesions[0])


@pytest.mark.long
def test_the_built_in_model_needs_no_run(lesions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = metaseg.load(recipe="quick", device="cpu")
    assert model.learner.fine_tuning().share_of(1) == 1  # its decoder knows nothing
    assert (model.size, model.learner.adapt_loop.steps) == (128, 40)
    assert model.learner.weights.name.startswith("EfficientNet-Lite0")
    found = model.adapt(*lesions, steps=2).segment(lesions[0])
    assert [mask.shape for mask in found] == [image.shape[:2] for image in lesions[0]]
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_recipe_of_the_runs_network_replaces_its_adaptation(run_of, lesions):
    run = run_of("learner=joint", "model=pretrained", "model.widths=[8,8]", "model.recipe.adapt.quick.steps=3")
    model = metaseg.load(run, recipe="quick")
    assert model.learner.adapt_loop.steps == 3
    theta = model.learner.theta()
    moved = model.adapt(*lesions).segmenter.members[0].parameters
    assert all(torch.equal(moved[name], value) for name, value in theta.items() if name.startswith("encoder."))
    assert metaseg.load(run).learner.adapt_loop.steps == 2
    with pytest.raises(MetasegError, match=r"recipe .*default, quick"):
        metaseg.load(run, recipe="slow")


@pytest.mark.parametrize("where", ["file", "directory"])
def test_settings_that_only_earlier_versions_have_are_read_at_their_defaults(trained, tmp_path, where):
    path = shutil.copytree(trained, tmp_path / "run")
    best, config = path / "checkpoints" / "best.ckpt", path / "config.yaml"

    def loaded(precision="float32", compiled=False, by="recipe"):
        settings = yaml.safe_load((trained / "config.yaml").read_text())
        settings["learner"]["inner"] |= {"precision": precision, "compile": compiled}
        settings["learner"]["adapt"]["by"] = by
        if where == "directory":
            config.write_text(yaml.safe_dump(settings))
            return metaseg.load(path)
        torch.save(torch.load(best, weights_only=True) | {"settings": settings}, best)
        return metaseg.load(best)

    assert loaded().settings.plain == metaseg.load(trained).settings.plain
    for other in ({"precision": "bfloat16"}, {"compiled": True}, {"by": "inner"}):
        with pytest.raises(MetasegError, match=r"learner\.(inner|adapt)\.(precision|compile|by) is not a setting"):
            loaded(**other)


def test_refuses_unknown_settings_in_a_run(run_of):
    run = run_of("learner=maml")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["learner"]["inner"]["colour"] = "gate"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(MetasegError, match=r"learner\.inner\.colour"):
        metaseg.load(run)


def test_a_model_and_a_segmenter_are_shown_in_a_line(trained, lesions):
    model = metaseg.load(trained)
    adapted = model.adapt(*lesions, steps=1)
    assert repr(model) == "Model(fomaml, run, 32×32 pixels)"
    assert repr(adapted).startswith("Adapted(5 annotated images, Expected Dice: ")
    assert len(repr(adapted)) < 300


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"budget": "5"}, {"lr": float("nan")}])
def test_times_and_step_sizes_are_above_0(trained, lesions, wrong):
    (name,) = wrong
    with pytest.raises(MetasegError, match=f"{name} must be a number above 0"):
        metaseg.load(trained).adapt(*lesions, **wrong)


def test_a_run_keeps_its_working_size_however_much_time_there_is(run_of, lesions):
    model = metaseg.load(run_of("learner=scratch"))
    found = model._plan(*lesions, size=None, crop=None, per_step=None, steps=None, folds=0, budget=None)
    assert found.shape == (model.size, model.size)
    assert model.size < 192
    assert replace(model, origin="file")._plan(*lesions, None, None, None, None, 0, None).shape != found.shape
