"""adapt.py as its users call it."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import yaml
from conftest import ROOT, assert_fails_in_words, composed, lesion
from omegaconf import OmegaConf
from PIL import Image

import metaseg
from metaseg.adapting import command
from metaseg.adapting.arrays import resized_mask
from metaseg.adapting.files import images_in
from metaseg.adapting.model import Adapted
from metaseg.cli.entry import as_it_stands
from metaseg.evaluation.scores import dice


@pytest.fixture
def adapt(program, trained, folders):
    """Run adapt.py on the folders, with what is given beside or instead."""

    def call(*overrides, **named):
        settings = {"checkpoint": trained, "support": folders / "support", "out": folders / "out"} | named
        given = [f"{key}='{value}'" for key, value in settings.items() if value is not None]
        quick = ["steps=2"] * (settings["checkpoint"] == trained)  # which overrides may change
        return program("adapt.py", *given, *quick, *overrides, directory=folders / "hydra")

    return call


def test_images_are_segmented_and_scored(adapt, folders, trained):
    done = adapt("probabilities=true", images=folders / "new", truth=folders / "truth")
    assert done.returncode == 0, done.stderr
    out = folders / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("masks", "overlays", "probabilities", "results.csv", "segmenter.safetensors"),
    ]
    table = pd.read_csv(out / "results.csv")
    assert table["image"].tolist() == ["case 4", "case 5", "case 6"]

    pairs = [lesion(number) for number in range(7)]
    segmenter = metaseg.load(trained).adapt(*map(list, zip(*pairs[:4], strict=True)), steps=2)
    for number, row in zip((4, 5, 6), table.itertuples(), strict=True):
        image, truth = pairs[number]
        (probabilities,) = segmenter.probabilities([image])
        mask = probabilities > 0.5
        name = f"case {number}.png"
        assert np.array_equal(np.asarray(Image.open(out / "masks" / name)), mask * np.uint8(255))
        deep = np.asarray(Image.open(out / "probabilities" / name))
        assert np.abs(deep / 65535 - probabilities).max() < 1e-5
        assert Image.open(out / "overlays" / name).size == (64 * 6, 48 * 6)  # small images are enlarged
        assert (row.width, row.height, row.area) == (64, 48, mask.sum())
        assert row.foreground == pytest.approx(mask.mean(), abs=1e-5)
        assert row.confidence == pytest.approx(segmenter.predict([image])[0].confidence, abs=1e-4)
        if number == 6:  # has no truth
            assert np.isnan(row.dsc)
        else:
            assert row.dsc == pytest.approx(dice(mask[None], truth[None])[0])
    assert "Expected Dice: " in done.stdout
    assert "4 annotated images, 3-fold cross-validation" in done.stdout
    # In a pipe progress is lines, at least the last of each part of the work.
    for work, count in (("adapting", "2/2"), ("segmenting", "3/3")):
        assert any(line.startswith(work) and count in line for line in done.stderr.splitlines())
    assert f"Dice        {100 * table['dsc'].mean():.1f} %" in done.stdout


def test_prints_the_estimate_without_images(adapt, folders):
    done = adapt("folds=2")
    assert done.returncode == 0, done.stderr
    assert "2-fold cross-validation" in done.stdout
    assert [path.name for path in (folders / "out").iterdir()] == ["segmenter.safetensors"]


def test_the_adapted_segmenter_is_exported(adapt, folders, monkeypatch):
    asked = []
    monkeypatch.setattr("metaseg.adapting.command.export", lambda *given: (asked.append(given), [given[1] / "it"])[1])
    done = adapt("folds=0", "export=[torch]", "save=false")
    assert done.returncode == 0, done.stderr
    ((adapted, _, formats),) = asked
    assert (type(adapted), formats) == (Adapted, ["torch"])
    assert str(folders / "out" / "it") in done.stdout


def test_a_saved_segmenter_segments_more_images_without_the_annotated_ones(adapt, folders):
    assert adapt("steps=5", images=folders / "new").returncode == 0
    kept = folders / "out" / "segmenter.safetensors"
    again = adapt(checkpoint=kept, support=None, images=folders / "new", out=folders / "again")
    assert again.returncode == 0, again.stderr
    assert "Expected Dice" in again.stdout
    first, second = (pd.read_csv(folders / name / "results.csv") for name in ("out", "again"))
    assert (first["area"] - second["area"]).abs().max() <= 0.01 * 48 * 64  # half precision
    for setting, more in (("steps=5", None), ("recipe=quick", folders / "support")):
        refused = adapt(setting, checkpoint=kept, support=more, images=folders / "new", out=folders / "refused")
        assert refused.returncode == 1
        assert f"found {setting}; leave it out" in refused.stderr


def test_one_annotated_image_works_without_an_estimate(adapt, folders):
    for number in (1, 2, 3):
        (folders / "support" / "images" / f"case {number}.png").unlink()
        (folders / "support" / "masks" / f"case {number}.png").unlink()
    done = adapt(images=folders / "new")
    assert done.returncode == 0, done.stderr
    assert "Expected Dice: unknown" in done.stdout


def test_annotated_images_are_not_scored_and_an_impossible_curve_is_only_a_warning(adapt, folders):
    for place, name in (("images", "new"), ("masks", "truth")):
        shutil.copy(folders / "support" / place / "case 0.png", folders / name / "again.png")
    done = adapt("folds=0", "curve=true", images=folders / "new", truth=folders / "truth")
    assert done.returncode == 0, done.stderr
    assert "warning: Expected three folds or more" in done.stderr
    table = pd.read_csv(folders / "out" / "results.csv").set_index("image")
    assert table.index[table["annotated"]].tolist() == ["again"]
    others = table.drop("again")["dsc"]
    assert f"Dice        {100 * others.mean():.1f} %" in done.stdout
    assert "2 images, without 1 that were learnt from)" in done.stdout


def test_warns_about_inconsistent_support(adapt, folders):
    Image.new("L", (64, 48)).save(folders / "support" / "masks" / "case 0.png")
    Image.new("RGB", (64, 48), "green").save(folders / "new" / "green.png")
    done = adapt("folds=0", images=folders / "new")
    assert done.returncode == 0, done.stderr
    assert "warning: case 0: the mask has no foreground" in done.stderr
    assert "1 image of 4 looks unlike the annotated ones in colour or contrast (green)" in done.stderr


def test_unreadable_images_do_not_stop_the_others(adapt, folders):
    (folders / "new" / "case 5.png").write_bytes(b"broken")
    done = adapt("folds=0", images=folders / "new")
    assert done.returncode == 1
    assert "warning: cannot read" in done.stderr
    assert "error: 1 of 3 images" in done.stderr
    assert sorted(path.name for path in (folders / "out" / "masks").iterdir()) == ["case 4.png", "case 6.png"]
    assert pd.read_csv(folders / "out" / "results.csv")["image"].tolist() == ["case 4", "case 6"]


def test_earlier_results_are_overwritten_only_on_request(adapt, folders):
    assert adapt("folds=0", images=folders / "new").returncode == 0
    (folders / "new" / "case 4.png").unlink()
    (folders / "out" / "notes.txt").write_text("mine")
    before = (folders / "out" / "results.csv").read_bytes()
    assert_fails_in_words(adapt("folds=0", images=folders / "new"), "of an earlier call", "overwrite=true")
    assert (folders / "out" / "results.csv").read_bytes() == before
    assert adapt("folds=0", "overwrite=true", images=folders / "new").returncode == 0
    assert sorted(path.name for path in (folders / "out" / "masks").iterdir()) == ["case 5.png", "case 6.png"]
    assert (folders / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("overrides", "named", "words"),
    [
        (["out"], {}, ["Expected NAME=VALUE, found 'out'"]),
        (["--foo"], {}, ["unrecognized arguments: --foo", "adapt.py --help"]),
        (["lr=fast"], {}, ["lr must be", "'fast'"]),
        (["support="], {"support": None}, ["support must be a path", "''"]),
        ([], {"out": None}, ["out=… is required"]),
        ([], {"support": "gone"}, ["folder of annotated images", "gone"]),
        ([], {"checkpoint": "gone"}, ["found nothing at gone"]),
        ([], {"images": "gone"}, ["folder of images", "gone"]),
        (["folds=9"], {}, ["folds", "found 4 images and 9"]),
        (["step=3"], {}, ["step"]),
        ([], {"truth": "x"}, ["truth=DIR needs images=DIR"]),
    ],
)
def test_invalid_input_gives_a_one_sentence_error(adapt, folders, overrides, named, words):
    assert_fails_in_words(adapt(*overrides, **named), *words)
    assert not (folders / "out" / "masks").exists()


def rewrite(folder, change):
    """Change every picture of a folder by a function of its pixels."""
    for path in folder.iterdir():
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def halves(mask):
    """A label map: the left half of a mask is 1, its right half 2."""
    return ((mask > 0) * np.where(np.arange(mask.shape[1]) < mask.shape[1] // 2, 1, 2)).astype(np.uint8)


def test_each_label_has_a_segmenter_and_a_folder_of_its_own(adapt, folders, trained):
    for folder in ("support/masks", "truth"):
        rewrite(folders / folder, halves)
    (folders / "new" / "damaged.png").touch()
    done = adapt("folds=0", "label=all", images=folders / "new", truth=folders / "truth")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "label_1" in last
    assert "label_2" in last  # a damaged image does not end the command
    assert sorted(path.name for path in (folders / "out").iterdir()) == ["label_1", "label_2"]
    assert "0, 1, 2" in done.stdout
    pairs = [lesion(number) for number in range(5)]
    images, masks = zip(*((image, halves(mask)) for image, mask in pairs), strict=True)
    for label in (1, 2):
        out = folders / "out" / f"label_{label}"
        (mask,) = metaseg.load(trained).adapt(images[:4], masks[:4], label=label, folds=0, steps=2).segment(images[4:])
        assert np.array_equal(np.asarray(Image.open(out / "masks" / "case 4.png")) > 0, mask)
        score = pd.read_csv(out / "results.csv")["dsc"][0]
        assert score == pytest.approx(dice(mask[None], (masks[4] == label)[None])[0])


def test_large_images_come_in_small_batches(folders, monkeypatch):
    sources = images_in(folders / "new")
    (folders / "new" / "case 5.png").write_bytes(b"")
    assert [len(batch) for batch in command._batches(sources, 2)] == [2, 1]
    monkeypatch.setattr(command, "_PIXELS", 64 * 48)
    batches = [[(source.name, type(image)) for source, image in batch] for batch in command._batches(sources, 16)]
    assert batches == [[("case 4", np.ndarray)], [("case 5", str), ("case 6", np.ndarray)]]


@pytest.fixture
def extended(monkeypatch, trained, folders):
    """Save a segmenter of the first annotated image that, other than the file of a run's, can be extended."""

    def make(change, label):
        image, mask = lesion(0)
        model = metaseg.load(trained)
        path = metaseg.save(model.adapt([image], [change(mask)], label=label, steps=1), folders / "one.safetensors")
        again = replace(metaseg.load_segmenter(path), model=model)
        monkeypatch.setattr("metaseg.adapting.command.load_segmenter", lambda *_: again)
        return path

    return make


def test_annotations_are_added_to_a_segmenter_of_any_label(adapt, folders, extended):
    for folder in ("support/masks", "truth"):
        rewrite(folders / folder, halves)
    kept = extended(halves, 2)
    done = adapt("steps=1", "folds=0", checkpoint=kept, images=folders / "new", truth=folders / "truth")
    assert done.returncode == 0, done.stderr
    found = safetensors.torch.load_file(folders / "out" / "segmenter.safetensors")["masks"].numpy()
    wanted = [resized_mask(halves(lesion(number)[1]) == 2, found.shape[1:]) for number in range(4)]
    assert np.array_equal(found, wanted)  # the first, annotated again, is there once
    assert "label=2" in done.stdout
    done = adapt("label=all", "steps=1", "folds=0", checkpoint=kept, out=folders / "all")
    assert done.returncode == 0, done.stderr
    assert (folders / "all" / "segmenter.safetensors").exists()
    assert_fails_in_words(adapt("label=[1,2]", checkpoint=kept, out=folders / "two"), "Expected label=2", "label=1")
    done = adapt(checkpoint=kept, support=None, images=folders / "new", truth=folders / "truth", out=folders / "same")
    assert done.returncode == 0, done.stderr
    for support in (None, folders / "support"):
        done = adapt("label=1", checkpoint=kept, support=support, images=folders / "new", out=folders / "other")
        assert_fails_in_words(done, "Expected label=2", "found label=1")
        assert not (folders / "other").exists()


def test_saved_segmenters_keep_the_meaning_of_colours(adapt, folders, extended):
    def green(mask):
        """The mask in green, above a red stripe."""
        pixels = (mask > 0)[..., None] * np.array([0, 200, 0], np.uint8)
        pixels[-4:] = [255, 0, 0]
        return pixels

    def blue(mask):
        """Likewise, below a blue stripe."""
        pixels = green(mask)
        pixels[:4] = [0, 0, 255]
        return pixels

    kept = extended(green, 1)
    for folder in ("support/masks", "truth"):
        rewrite(folders / folder, blue)
    done = adapt("steps=1", "folds=0", checkpoint=kept)
    assert done.returncode == 0, done.stderr
    found = safetensors.torch.load_file(folders / "out" / "segmenter.safetensors")["masks"].numpy()
    masks = [(blue(lesion(number)[1]) == [0, 200, 0]).all(-1) for number in range(5)]
    assert np.array_equal(found, [resized_mask(mask, found.shape[1:]) for mask in masks[:4]])
    done = adapt(checkpoint=kept, support=None, images=folders / "new", truth=folders / "truth", out=folders / "same")
    assert done.returncode == 0, done.stderr
    mask = np.asarray(Image.open(folders / "same" / "masks" / "case 4.png")) > 0
    score = pd.read_csv(folders / "same" / "results.csv")["dsc"][0]
    assert score == pytest.approx(dice(mask[None], masks[4][None])[0])


def test_annotated_images_are_not_scored_at_another_working_size(adapt, folders, extended):
    kept = extended(lambda mask: mask, None)
    shutil.copy(folders / "support" / "images" / "case 0.png", folders / "new" / "again.png")
    for folder in ("images", "masks"):
        (folders / "support" / folder / "case 0.png").unlink()
    done = adapt("steps=1", "folds=0", "size=96", checkpoint=kept, images=folders / "new")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(folders / "out" / "results.csv").set_index("image")
    assert table.index[table["annotated"]].tolist() == ["again"]


@pytest.mark.parametrize("where", ["support/masks", "truth"])
@pytest.mark.parametrize(
    ("change", "overrides", "words"),
    [
        (lambda mask: lesion(0)[0], [], ["photograph", "case"]),
        (np.zeros_like, [], ["empty masks", "case"]),
        (halves, ["label=7"], ["label=7", "1, 2"]),
        (halves, ["label=[1,7]"], ["label=7", "1, 2"]),
    ],
)
def test_implausible_masks_are_refused_before_anything_is_written(adapt, folders, where, change, overrides, words):
    rewrite(folders / where, change)
    if where == "truth" and overrides:
        rewrite(folders / "support" / "masks", lambda mask: (mask > 0) * np.uint8(7))
        overrides = ["label=7"]
    assert_fails_in_words(adapt(*overrides, images=folders / "new", truth=folders / "truth"), *words)
    assert not (folders / "out").exists()


def test_a_mask_of_another_size_is_refused(adapt, folders):
    Image.new("L", (6, 4), 255).save(folders / "support" / "masks" / "case 0.png")
    assert_fails_in_words(adapt(), "case 0.png", "64×48 pixels, found 6×4")


def test_an_image_that_is_annotated_twice_is_refused(adapt, folders):
    for kind in ("images", "masks"):
        shutil.copy(folders / "support" / kind / "case 0.png", folders / "support" / kind / "again.png")
    assert_fails_in_words(adapt(), "again", "case 0", "alike")
    assert not (folders / "out").exists()


def test_help_names_every_setting(program, tmp_path):
    done = program("adapt.py", "--help", directory=tmp_path)
    settings = yaml.safe_load((ROOT / "conf" / "adapt.yaml").read_text()).keys() - {"defaults", "hydra"}
    assert all(setting in done.stdout for setting in settings)
    assert done.stdout.startswith("Segment new images")


AWKWARD = ["a, b (2) [x] {y} = näme's # 100% \\", "2024", "true", "1e5", "[a,b]", "learner=imaml,shots=5", '"', "${x}"]


@pytest.mark.parametrize("name", AWKWARD)
def test_paths_are_composed_as_they_stand(name):
    given = ["checkpoint=a", "support=b", "out=c", as_it_stands(f"images={name}", ["images"])]
    config = composed(*given, command="adapt")
    assert OmegaConf.to_container(config, resolve=True)["images"] == name


def test_paths_are_used_verbatim(adapt, folders):
    name = AWKWARD[0]
    shutil.copytree(folders / "new", folders / name)  # in the working directory
    done = adapt("folds=0", "overlays=false", f"images={name}", f"out={name}/out")
    assert done.returncode == 0, done.stderr
    assert len(list((folders / name / "out" / "masks").iterdir())) == 3


def test_unusable_true_masks_lose_only_their_own_score(adapt, folders):
    (folders / "truth" / "case 4.png").write_bytes(b"broken")
    Image.new("L", (6, 4)).save(folders / "truth" / "case 6.png")
    done = adapt("folds=0", images=folders / "new", truth=folders / "truth")
    assert done.returncode == 1
    assert "64×48 pixels, found 6×4" in done.stderr
    assert "error: 2 true masks" in done.stderr
    assert "1 image)" in done.stdout  # scored
    assert len(list((folders / "out" / "masks").iterdir())) == 3
    assert pd.read_csv(folders / "out" / "results.csv")["dsc"].isna().tolist() == [True, False, True]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_never_replaces_files_of_others(adapt, folders, overwrite):
    before = contents(folders)
    for out, words in (("support", "support reads from it"), ("own", "may be your own")):
        if out == "own":
            shutil.copytree(folders / "truth", folders / "own" / "masks")
            before = contents(folders)
        done = adapt("folds=0", f"overwrite={overwrite}", images=folders / "new", out=folders / out)
        assert_fails_in_words(done, words)
        assert contents(folders) == before


def test_overwriting_removes_only_earlier_results(adapt, folders):
    assert adapt("folds=0", images=folders / "new").returncode == 0
    mine = folders / "out" / "masks" / "mine.png"
    mine.write_bytes(b"mine")
    (folders / "new" / "case 4.png").unlink()
    assert adapt("folds=0", "overwrite=true", "overlays=false", images=folders / "new").returncode == 0
    assert mine.read_bytes() == b"mine"
    assert sorted(path.name for path in (folders / "out" / "masks").iterdir()) == [
        "case 5.png",
        "case 6.png",
        "mine.png",
    ]
    assert not (folders / "out" / "overlays").exists()


def test_a_results_file_cannot_lead_out_of_the_folder(adapt, folders):
    (folders / "out").mkdir()
    (folders / "out" / "results.csv").write_text("image\n../../truth/case 4\n")
    before = contents(folders)
    done = adapt("folds=0", "overwrite=true", images=folders / "new")
    assert_fails_in_words(done, "no results.csv of an earlier call")
    assert contents(folders) == before


def test_reports_an_unwritable_output_folder(adapt, folders):
    (folders / "file").touch()
    done = adapt("folds=0", images=folders / "new", out=folders / "file" / "out")
    assert_fails_in_words(done, "out", "choose another folder")
