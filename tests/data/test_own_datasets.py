"""A dataset of one's own: one YAML beside it, by patterns or by a CSV file of pairs, from check to training."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import command
from disk_datasets import folders, picture, save, write_dataset

from metaseg.cli import pairs
from metaseg.data import catalogue, layouts, pools
from metaseg.data.check import check
from metaseg.data.module import Target, image_count, load_pool
from metaseg.errors import MetasegError
from metaseg.training import run

main = command("data")

pytestmark = pytest.mark.usefixtures("own_cache")
STEMS = [f"s{number}" for number in range(6)]


def describe(root, name="mine", **keys):
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{name}.yaml").write_text(yaml.safe_dump({"title": "My moles", **keys}), encoding="utf-8")
    return catalogue.get(name, root)


def write_pairs(folder, rows, columns=("image", "mask", "group"), delimiter=",", encoding="utf-8"):
    with (folder / "pairs.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])


def by_csv(root, stems=STEMS, groups=None, **options):
    """A dataset in folders of no pattern, and the CSV file that pairs them."""
    write_dataset(root / "mine", stems, images="a/{stem}/photo.jpg", masks="b/mask of {stem}.png")
    groups = groups or ["p1", "p1", "p2", "p2", "", ""]
    rows = [(f"a/{s}/photo.jpg", f"b/mask of {s}.png", g) for s, g in zip(stems, groups, strict=True)]
    write_pairs(root / "mine", rows, **options)
    return describe(root, pairs="pairs.csv")


def test_title_alone_describes_images_and_masks(tmp_path):
    write_dataset(tmp_path / "mine", STEMS)
    dataset = describe(tmp_path)
    assert (dataset.folders, dataset.count, dataset.foreground) == (("mine",), None, None)
    assert [pair.id for pair in layouts.find(dataset, tmp_path)] == STEMS
    assert check(dataset, tmp_path).faults == ()


def test_the_folder_may_be_anywhere(tmp_path):
    write_dataset(tmp_path / "elsewhere" / "photos", STEMS)
    assert len(layouts.find(describe(tmp_path / "data", folder="../elsewhere/photos"), tmp_path / "data")) == 6
    assert len(layouts.find(describe(tmp_path / "data", folder=str(tmp_path / "elsewhere/photos")), tmp_path)) == 6


@pytest.mark.parametrize(
    ("images", "masks", "written"),
    [
        ("photos/{stem}", "outlines/{stem}_mask", ("photos/{stem}.jpg", "outlines/{stem}_mask.png")),
        ("photos/*.jpg", "outlines/*.png", ("photos/{stem}.jpg", "outlines/{stem}.png")),
        ("{stem}", "{stem}_mask", ("{stem}.png", "{stem}_mask.png")),
        ("{stem}.jpg", "{stem}.png", ("{stem}.jpg", "{stem}.png")),
        ("*/{stem}", "m/{stem}_*", ("2024/{stem}.jpg", "m/{stem}_by-jane.png")),
        ("set [1]/{stem}", "set [2]/{stem}", ("set [1]/{stem}.jpg", "set [2]/{stem}.png")),
    ],
)
def test_patterns(tmp_path, images, masks, written):
    write_dataset(tmp_path / "mine", STEMS, *written)
    dataset = describe(tmp_path, images=images, masks=masks)
    found = layouts.find(dataset, tmp_path)
    assert [pair.id for pair in found] == STEMS
    assert all(pair.group is None for pair in found)


@pytest.mark.parametrize("between", ["/", "_"])
def test_groups_named_by_the_pattern_are_never_separated(tmp_path, between):
    stems = [f"{patient}{between}{number}_left" for patient in ("anna", "ben", "cleo") for number in (1, 2)]
    write_dataset(tmp_path / "mine", stems, images="photos/{stem}.jpg", masks="masks/{stem}.png")
    pattern = "{group}" + between + "{stem}"
    dataset = describe(tmp_path, images=f"photos/{pattern}", masks=f"masks/{pattern}")
    pool = pools.prepare(dataset, tmp_path, 32)
    assert pool.ids == tuple(f"{stem.partition(between)[0]}/{stem.partition(between)[2]}" for stem in stems)
    assert pool.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert "3 groups as named" in str(next(iter(check(dataset, tmp_path).table().renderables)))
    for seed in range(5):
        train, held_out = pools.split_by_group(pool, 0.3, seed)
        assert not set(pool.groups[train]) & set(pool.groups[held_out])


@pytest.mark.parametrize(
    "options", [{}, {"delimiter": ";"}, {"encoding": "utf-8-sig"}, {"columns": (" image", "mask ", "group")}]
)
def test_a_csv_file_of_pairs(tmp_path, options):
    dataset = by_csv(tmp_path, **options)
    pool = pools.prepare(dataset, tmp_path, 32)
    assert pool.ids == tuple(f"a/{stem}/photo" for stem in STEMS)
    assert pool.groups.tolist() == [0, 0, 1, 1, 2, 3]
    report = check(dataset, tmp_path)
    assert report.faults == ()
    assert "pairs.csv" in str(next(iter(report.table().renderables)))


def test_a_csv_file_may_name_ids_and_files_anywhere(tmp_path):
    write_dataset(tmp_path / "far", STEMS)
    rows = [(tmp_path / "far/images" / f"{s}.jpg", f"../far/masks/{s}.png", f"case {s}") for s in STEMS]
    (tmp_path / "mine").mkdir()
    write_pairs(tmp_path / "mine", rows, ("image", "mask", "id"))
    pool = pools.prepare(describe(tmp_path, pairs="pairs.csv"), tmp_path, 32)
    assert pool.ids == tuple(f"case {stem}" for stem in STEMS)
    assert len(set(pool.groups)) == 6


def test_a_changed_csv_file_or_image_is_prepared_again(tmp_path, monkeypatch):
    monkeypatch.setenv("METASEG_CACHE", str(tmp_path / "cache"))
    first = pools.prepare(by_csv(tmp_path), tmp_path, 32)
    again = pools.prepare(by_csv(tmp_path), tmp_path, 32)
    assert again.key == first.key
    regrouped = pools.prepare(by_csv(tmp_path, groups=["p1"] * 3 + ["p2"] * 3), tmp_path, 32)
    assert regrouped.groups.tolist() == [0, 0, 0, 1, 1, 1]
    save(picture(77)[0], tmp_path / "mine/a/s0/photo.jpg")
    changed = pools.prepare(catalogue.get("mine", tmp_path), tmp_path, 32)
    assert len({first.key, regrouped.key, changed.key}) == 3
    assert len(folders(tmp_path / "cache")) == 1


def test_all_faults_of_a_csv_file_are_reported_at_once(tmp_path):
    dataset = by_csv(tmp_path)
    (tmp_path / "mine/a/s0/photo.jpg").unlink()
    (tmp_path / "mine/b/mask of s1.png").unlink()
    with (tmp_path / "mine/pairs.csv").open("a") as file:
        file.write("a/s2/photo.jpg,b/mask of s2.png,p2\n")
    found = sorted((fault.kind, fault.images) for fault in check(dataset, tmp_path).faults)
    assert found == [
        ("absent", ("b/mask of s1.png",)),
        ("absent", ("s0/photo.jpg",)),
        ("ambiguous", ("s2/photo.jpg",)),
        ("ambiguous", ("s2/photo.jpg",)),
    ]
    with pytest.raises(MetasegError, match=r"2 files that share an id .* 2 listed in the CSV file but missing"):
        layouts.find(dataset, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("picture,mask\na,b\n", "columns image, mask .* image is missing, found picture, mask"),
        ("", "found nothing"),
        ("image,mask\na.jpg,\n", "line 2, should name an image and a mask, found a.jpg and nothing"),
        ('image,mask\n"a.jpg,b\n', "is not a UTF-8 CSV file"),
        (b"image,mask\n\xff\xfe,b\n", "is not a UTF-8 CSV file"),
        ("image,mask\n/,b\n", "line 2"),
        ("image,mask\n~no-such-user/a.png,b\n", "no-such-user"),
        (f"image,mask\n{'x' * 200_000},b\n", "is not a UTF-8 CSV file"),
        ("image,mask\n" + "a,b\n" * 200_001, "more than 200000 lines"),
    ],
)
def test_faulty_csv_files_are_refused(tmp_path, text, words):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pairs.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MetasegError, match=words):
        layouts.scan(describe(tmp_path, pairs="pairs.csv"), tmp_path)


def test_a_name_too_long_for_a_file_is_missing(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pairs.csv").write_text(f"image,mask\n{'x' * 300},b\n")
    assert len(layouts.scan(describe(tmp_path, pairs="pairs.csv"), tmp_path).absent) == 2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"images": "a/{stem}"}, "only one of images and masks"),
        ({"images": "a/{stem}", "masks": "b/x"}, "should be paths inside the folder with {stem}"),
        ({"images": "{group}/{stem}", "masks": "b/{stem}"}, "{group} in both or neither"),
        ({"images": "../a/{stem}", "masks": "b/{stem}"}, "inside the folder"),
        ({"pairs": "p.csv", "images": "a/*", "masks": "b/*"}, "both pairs and images"),
        ({"folder": "x", "folders": ["y"]}, "both folder and folders"),
        ({"title": None}, "title should be text, not None"),
        ({"sources": [{"url": "ftp://x/y.zip"}]}, "sources should be a list of"),
        ({"sources": [{"url": "https://[x/y.zip"}]}, "sources should be a list of"),
        ({"sources": [{"url": "https://x/y.zip", "file": "../y.zip"}]}, "sources should be a list of"),
        ({"sources": [{"url": "https://x/y.zip", "sha256": "abc"}]}, "sources should be a list of"),
    ],
)
def test_faulty_descriptions_are_refused(tmp_path, keys, words):
    with pytest.raises(MetasegError) as caught:
        describe(tmp_path, **keys)
    assert words in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_names(tmp_path):
    describe(tmp_path)
    (tmp_path / "settings.yaml").write_text("colour: red\n")
    assert catalogue.names(tmp_path) == [*catalogue.names(), "mine"]
    with pytest.raises(
        MetasegError, match=r"unknown dataset 'mien': choose from cvc, .*, mine, or describe it in .*mien\.yaml"
    ):
        catalogue.get("mien", tmp_path)
    with pytest.raises(MetasegError, match="unknown key colour"):
        catalogue.get("settings", tmp_path)
    with pytest.raises(MetasegError, match="already describes"):
        describe(tmp_path, name="ph2")


def test_missing_files_of_ones_own_do_not_lead_to_twins_or_downloads(tmp_path):
    with pytest.raises(
        MetasegError, match=r"none of the folders mine contains it.*its YAML file, mine\.yaml"
    ) as caught:
        layouts.find(describe(tmp_path), tmp_path)
    assert "twin" not in str(caught.value)
    assert "fetch" not in str(caught.value)
    (tmp_path / "mine").mkdir()
    with pytest.raises(MetasegError, match=r"mine holds no pairs\.csv"):
        layouts.find(describe(tmp_path, pairs="pairs.csv"), tmp_path)


def test_data_commands_accept_own_datasets(tmp_path, capsys):
    by_csv(tmp_path)
    root = ["--root", str(tmp_path)]
    assert main(["table", "mine", *root]) == 0
    assert "My moles" in capsys.readouterr().out
    assert main(["check", "mine", *root]) == 0
    assert "My moles: 6 pairs, 4 groups as named" in capsys.readouterr().out
    assert main(["prepare", "mine", *root, "--size", "32"]) == 0
    assert "My moles: 6 images at 32×32, ready" in capsys.readouterr().out
    assert main(["check", "mien", *root]) == 1
    assert "unknown dataset 'mien'" in capsys.readouterr().err
    (tmp_path / "yours.yaml").write_text("title: [")
    assert main(["check", "yours", "mine", *root]) == 1
    shown = capsys.readouterr()
    assert "yours.yaml is not valid YAML" in shown.err
    assert "My moles: 6 pairs" in shown.out  # all the same


def test_blocks_of_one_video_are_left_together_when_scored(tmp_path):
    write_dataset(tmp_path / "mine", STEMS)
    blocks = Target.of(pools.prepare(describe(tmp_path, blocks=2), tmp_path, 32), 0, 0)
    assert len(blocks.draw(2, 0, 0)[1]) == 4
    alone = replace(blocks, pool=replace(blocks.pool, blocks=False))
    assert len(alone.draw(1, 0, 0)[1]) == 3


def test_images_of_unknown_count_are_counted_for_estimates(tmp_path):
    by_csv(tmp_path)
    assert image_count("mine", "real", str(tmp_path)) == 6
    assert image_count("isic", "real", str(tmp_path)) == 2594
    assert image_count("isic", "synthetic", str(tmp_path)) == 200
    for name in (load_pool, image_count):
        with pytest.raises(MetasegError, match="twins of"):
            name("mine", source="synthetic", root=str(tmp_path), **({"size": 32} if name is load_pool else {}))


@pytest.fixture
def root(tmp_path):
    """A data.root with a dataset by CSV file, one by pattern, and a Kvasir-SEG."""
    stems = [f"n{number:02d}" for number in range(14)]
    by_csv(tmp_path / "data", stems, [f"p{number // 2}" for number in range(14)])
    write_dataset(tmp_path / "data" / "yours", stems, "{stem}.jpg", "{stem}.png", first_seed=20)
    describe(tmp_path / "data", "yours", images="{stem}.jpg", masks="{stem}.png")
    write_dataset(tmp_path / "data" / "kvasir", stems, first_seed=40)
    return tmp_path / "data"


REAL = ["data=real", "data.size=32", "data.validation=0.5", "shots=2", "tasks.query=2", "learner=fomaml"]


def test_an_own_dataset_can_be_source_and_target(train, tmp_path, root):
    settings = [*REAL, f"data.root={root}", "model.features=2"]
    finished = train(*settings, "pair=[mine,kvasir]", "target=yours")
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["settings"]["pair"] == {"name": "mine+kvasir", "pools": ["mine", "kvasir"], "target": ["isic"]}
    assert {name: (one["images"], one["groups"]) for name, one in result["data"].items()} == {
        "mine": (14, 7),
        "kvasir": (14, 14),
        "yours": (14, 14),
    }
    assert len({one["key"] for one in result["data"].values()}) == 3
    assert np.isfinite(result["targets"]["yours"]["dsc"]["mean"])


def test_a_shared_start_that_the_images_do_not_suffice_for_is_refused_before_anything_is_written(train, tmp_path, root):
    starts = ["start=joint", f"starts.dir={tmp_path / 'starts'}", "starts.query=9"]
    refused = train(*REAL, *starts, f"data.root={root}", "pair=[mine,kvasir]", "target=yours")
    assert refused.returncode == 1
    assert "starts.query images: An episode needs 10 support + 9 query" in refused.stderr
    assert not (tmp_path / "starts").exists()
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("pair", "name", "others"),
    [
        ("[yours]", "yours+", []),
        ("[yours,kvasir,mine2]", "yours+kvasir+mine2", ["tasks.mixing=mixed"]),
    ],
)
def test_one_or_three_sources_with_it_as_target(train, root, monkeypatch, pair, name, others):
    """As far as training."""
    seen = []
    monkeypatch.setattr(run, "train_and_test", lambda settings, learner, data, *_: seen.append((settings, data)))
    shutil.copytree(root / "yours", root / "mine2")
    describe(root, "mine2", images="{stem}.jpg", masks="{stem}.png")
    finished = train(*REAL, f"data.root={root}", "target=mine", f"pair={pair}", *others)
    assert finished.returncode == 0, finished.stderr
    ((settings, data),) = seen
    assert settings.pair.name == name
    assert list(data.targets) == ["mine"]
    assert "+".join(name for name, _ in data.train_plan.pools) == name.rstrip("+")


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("[mine,ph3]", ["unknown dataset 'ph3'", "mine", "ph3.yaml"]),
        ("[mine,mine]", ["once"]),
        ("mine", ["pair must be one of", "pair=[ph2,kvasir]", "'mine'"]),
        ("[mine,isic]", ["target", "isic"]),
    ],
)
def test_wrong_lists_are_refused_in_one_sentence(train, root, pair, words):
    finished = train(*REAL, f"data.root={root}", f"pair={pair}")
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last


@pytest.mark.parametrize("given", ["[]", "[mine,../x]"])
def test_values_that_are_not_dataset_lists_are_refused(given):
    with pytest.raises(MetasegError, match="pair"):
        pairs.chosen([f"pair={given}"])


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("[cvc, ph2, kvasir]", "cvc+ph2+kvasir"),
        ("[mine]", "mine+"),
        ("[ph2,kvasir]", "ph2_kvasir"),
        ("[kvasir,ph2]", "kvasir+ph2"),
        ("[mine,ph2],ph2_kvasir,[mine]", "mine+ph2,ph2_kvasir,mine+"),
        ("choice([mine,ph2],none)", "choice(mine+ph2,none)"),
        ("mine+ph2", "mine+ph2"),
        ("ph2", "ph2"),
    ],
)
def test_lists_become_names_that_hydra_knows(given, made):
    assert pairs.chosen(["learner=maml", f"pair={given}"]) == ["learner=maml", f"pair={made}"]


@pytest.mark.slow  # tests/sweeps runs cells of their own process; lists as values are tested without running them
def test_lists_are_values_of_a_sweep_and_reach_cells_of_their_own_process(train, tmp_path):
    sweep = ["learner=scratch", "pair=[kvasir,cvc],[kvasir]", f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m"]
    finished = train(*sweep)  # in this process, its cells in theirs
    assert finished.returncode == 0, finished.stderr + finished.stdout
    results = (tmp_path / "sweep").rglob("result.json")
    assert {json.loads(path.read_text())["settings"]["pair"]["name"] for path in results} == {"kvasir+cvc", "kvasir+"}
    assert "2 finished, 0 to continue, 0 to run" in train(*sweep).stdout


@pytest.mark.parametrize("content", ["", "target: [isic]", "pools: 3", "pools: [", "- ph2"])
def test_faulty_pair_files_do_not_affect_other_pairs(tmp_path, monkeypatch, content):
    (tmp_path / "faulty.yaml").write_text(content)
    (tmp_path / "mine.yaml").write_text("pools: [ph2, kvasir]")
    monkeypatch.setattr(pairs, "FOLDER", tmp_path)
    assert pairs.chosen(["pair=[ph2,kvasir]"]) == ["pair=mine"]
