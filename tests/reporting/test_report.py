"""The report, as its users run it, on run directories with made-up scores."""

import contextlib
import csv
import io
import json
import os
import re
from html.parser import HTMLParser

import pytest
from conftest import ROOT, blank, command
from run_directories import TRIVIAL, write_run

from metaseg.errors import MetasegError
from metaseg.reporting.cells import blocks
from metaseg.reporting.differences import initial_weights, settings_of, uneven
from metaseg.reporting.exports import escaped, markdown, signed
from metaseg.reporting.page import size_of, strengths_of, weights_of
from metaseg.reporting.report import write_report
from metaseg.reporting.runs import read_run, read_runs
from metaseg.reporting.shots import over_shots
from metaseg.runs.tables import load_table

main = command("report")

TITLES = {"isic": "ISIC-2018"}


class Page(HTMLParser):
    """Rows of cells of every table, addresses of every picture and link, and whether each tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.addresses, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.addresses += [given[key] for key in ("src", "href") if key in given]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()


def page_of(folder):
    page = Page((folder / "report" / "index.html").read_text(encoding="utf-8"))
    assert not page.open
    return page


def table_of(folder, number):
    with (folder / "report" / f"table{number}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def line_of(rows, system, shots=5, target="isic"):
    (found,) = [row for row in rows if (row["system"], row["shots"], row["target"]) == (system, str(shots), target)]
    return found


@pytest.fixture(autouse=True, scope="module")
def blank_figures():
    """tests/reporting/test_comparisons.py and tests/plots look at what is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("plots.figures", "reporting.comparisons"):
            patch.setattr(f"metaseg.{place}.save", blank)
        yield


@pytest.fixture
def runs(tmp_path):
    """Two seeds of iMAML, one of MAML, joint, scratch and naive on ISIC; two targets; pictures."""
    return write_runs(tmp_path / "runs")


@pytest.fixture(scope="module")
def reported(tmp_path_factory, blank_figures):
    """The same with their report, and what its command printed."""
    folder, said = write_runs(tmp_path_factory.mktemp("reported") / "runs"), io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([str(folder)]) == 0
    return folder, said.getvalue()


def write_runs(folder):
    write_run(folder / "a" / "imaml0", "imaml", dice=0.75, pictures=True, packed=True)
    write_run(folder / "a" / "imaml1", "imaml", seed=1, dice=0.71, pictures=True)
    write_run(folder / "maml", "maml", dice=0.65, pictures=True)
    write_run(folder / "joint", "joint", dice=0.8)
    write_run(folder / "scratch", "scratch", dice=0.6, pair="isic_ph2", learner__adapt={"steps": 200})
    write_run(folder / "naive", "naive", dice=0.9, learner__train_on="target")
    write_run(folder / "mixed", "imaml", dice=0.5, mixing="mixed", targets=["isic", "kvasir_capsule"], pictures=True)
    return folder


@pytest.mark.long
def test_the_report_of_some_cells(reported):
    runs, said = reported
    assert "index.html: 7 runs" in said
    rows = table_of(runs, 2)
    imaml = line_of(rows, "iMAML")
    assert (imaml["seeds"], imaml["draws"], imaml["images"]) == ("2", "4", "12")
    assert imaml["paper"] == "77.39"
    assert float(imaml["difference"]) == pytest.approx(float(imaml["ours"]) - 77.39, abs=1e-3)
    scratch, joint = (line_of(rows, name) for name in ("No pair", "Joint training + fine-tuning"))
    assert float(joint["scratch"]) == pytest.approx(float(scratch["ours"]), abs=1e-3)
    assert float(imaml["all_foreground"]) == pytest.approx(100 * TRIVIAL["all_foreground"])
    assert imaml["otsu"] == ""
    empty = line_of(rows, "iMAML", 10)
    assert (empty["ours"], empty["mean_support_mask"], empty["centred_disc"]) == ("", "", "53.0")
    assert line_of(rows, "Feyjie et al.")["quoted"] == "True"
    # The naive baseline saw most of the target and does not compete.
    assert [row["system"] for row in rows if row["best"] == "True"] == ["Joint training + fine-tuning"]
    for number in range(2, 8):
        assert (runs / "report" / f"table{number}.tex").read_text(encoding="utf-8").count("\\toprule") >= 1
        assert (runs / "report" / f"table{number}.md").is_file()


@pytest.mark.long
def test_the_page_holds_everything_itself(reported):
    runs, _ = reported
    page = page_of(runs)
    assert page.addresses
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    text = (runs / "report" / "index.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "<script" not in text
    # Tables 2, 3 and 5 have runs; the rest is a sentence.
    links = {address for address in page.addresses if address.startswith("#table")}
    assert links == {"#table1", "#table2", "#table3", "#table5"}
    assert "No runs yet for" in text
    assert "the same training runs as in table 3" in text
    (line,) = [row for row in page.rows if row[:2] == ["iMAML", "5"] and "77.39" in row]
    assert line[6:10] == ["50", "2", "4", "12"]
    assert ["Feyjie et al.", "5", "61.38quoted", "–, not run"] in [row[:4] for row in page.rows]
    # iMAML against MAML, joint and scratch on the draws and images of seed 0, of which one a draw is the support.
    pairs = {row[0]: row for row in page.rows if row and row[0].startswith("iMAML − ")}
    assert list(pairs) == ["iMAML − MAML", "iMAML − Joint training + fine-tuning", "iMAML − No pair"]
    assert pairs["iMAML − MAML"][-1] == "12 (12 / 0), 2"
    assert "synthetic images" not in text


def test_stages_of_the_dice_and_training_cost_are_shown(tmp_path):
    for seed, inner, passes in ((0, 0.7, 1000), (1, 0.8, 2000)):
        write_run(tmp_path / str(seed), "imaml", seed=seed, dice=0.4 + 0.5 * seed)  # one fails, the other does not
        path = tmp_path / str(seed) / "result.json"
        result = json.loads(path.read_text())
        result["targets"]["isic"] |= {"dsc_inner": {"mean": inner}, "dsc_alone": {"mean": inner - 0.1}}
        result["compute"] = {"outer_steps": 10, "operations": 1e9, "passes": passes, "seconds": 60 * (seed + 1)}
        result["compute"] |= {"inner_problems": 20, "unsolved": 4 * seed}
        path.write_text(json.dumps(result))
    write_run(tmp_path / "joint", "joint")
    assert main([str(tmp_path)]) == 0
    rows = table_of(tmp_path, 2)
    columns = ("after_inner_problem", "alone", "unsolved", "training_passes", "training_seconds")
    assert [float(line_of(rows, "iMAML")[name]) for name in columns] == pytest.approx([75, 65, 10, 1500, 90])
    assert [line_of(rows, "Joint training + fine-tuning")[name] for name in columns] == [""] * 5
    assert 40 <= float(line_of(rows, "iMAML")["failed"]) <= 50
    assert float(line_of(rows, "Joint training + fine-tuning")["failed"]) == 0
    (line,) = [row for row in page_of(tmp_path).rows if row[:2] == ["iMAML", "5"] and len(row) == 10]
    assert (line[3:5], line[7:]) == (["75.0", "65.0"], ["10 %", "1,500", "1.5"])


def test_the_page_explains_intervals_and_that_p_needs_two_seeds(tmp_path):
    for learner in ("imaml", "maml"):
        write_run(tmp_path / learner, learner)
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    (row,) = [row for row in page_of(tmp_path).rows if row and row[0] == "iMAML − MAML"]
    assert row[4:6] == ["1", "–"]
    of_one = "interval is over draws and groups of images of one seed."
    assert page.count(of_one) == 2
    for suffix in ("md", "tex"):
        assert of_one in (tmp_path / "report" / f"table2.{suffix}").read_text(encoding="utf-8")


def test_differences_between_runs_of_a_table_are_named(tmp_path):
    def write(name, keys, of="a", epochs=4, start="ph2_kvasir-seed0-1a", **changes):
        starts = {"dir": of, "epochs": epochs, "learner": {"adapt": {"steps": epochs}}}
        path = write_run(tmp_path / name, name, starts=starts, **changes) / "result.json"
        data = {
            of: {"images": 9, "groups": 9, "key": 32 * key} for of, key in zip(("isic", "kvasir"), keys, strict=True)
        }
        start = f"runs/starts/{start}/checkpoints/best.ckpt"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": data, "start": start}))

    def protocol(**adapt):
        return {"name": "tuned", "adapt": adapt}

    write("imaml", "ab", protocol=protocol(steps=50, start_worth=2), tasks__query=5)
    write("maml", "ab", of="b", epochs=10, learner__adapt={"steps": 10}, protocol=protocol(steps=50), tasks__query=5)
    # Q follows K.
    again = "ph2_kvasir-seed0-2b"
    write("joint", "cb", start=again, protocol=protocol(steps=50, start_worth=2), shots=10, tasks__query=10)
    # What trains on no pair has no part in its settings, nor do the images of a dataset that it is not tested on.
    write("scratch", "ad", epochs=20, pair="none", protocol=protocol(steps=40), trainer={"max_epochs": 9})
    filled = blocks(load_table(2), read_runs(tmp_path).runs)
    lines = [
        "protocol.adapt.start_worth: 2, but absent in maml",
        "protocol.adapt.steps: 50, but 40 in scratch",
        "starts.epochs: 4, but 10 in maml",
        "images of isic: aaaaaaaa, but cccccccc in joint",
        "start of seed 0: ph2_kvasir-seed0-1a, but ph2_kvasir-seed0-2b in joint",
    ]
    assert uneven(filled) == lines
    assert all(f"Runs of this table differ in {line}." in markdown(filled, TITLES) for line in lines)
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert all(f"<li>{line}</li>" in page for line in lines)


def test_systems_that_were_not_run_share_a_line(tmp_path):
    write_run(tmp_path / "a", "imaml")
    text = markdown(blocks(load_table(2), read_runs(tmp_path).runs), TITLES)
    assert "| ANIL | 5, 10, 20 |  | –, not run |" in text
    assert "| MAML | 10 | 77.31 | –, not run |" in text
    assert re.search(
        r"\| iMAML \| 5 \| 77\.39 \| \*\*\d\d\.\d\*\* \| \d\d\.\d to \d\d\.\d \| −\d+\.\d \| 50 \| 1, 2, 12", text
    )


def test_nothing_to_report(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "at least one finished run" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "no folder" in capsys.readouterr().err


@pytest.mark.long
def test_broken_and_unfinished_directories_are_named_and_the_rest_is_reported(tmp_path, capsys):
    write_run(tmp_path / "good")
    for name, fault in {
        "no_json": lambda path: (path / "result.json").write_text("{"),
        "no_settings": lambda path: (path / "result.json").write_text("{}"),
        "no_scores": lambda path: (path / "per_image.csv").unlink(),
        "empty_scores": lambda path: (path / "per_image.csv").write_text(""),
        "no_column": lambda path: (path / "per_image.csv").write_text("dataset,image,draw\nisic,1,0\n"),
        "per_cent": lambda path: (path / "per_image.csv").write_text("dataset,image,draw,dsc_after\nisic,1,0,70\n"),
        "twice": lambda path: (path / "per_image.csv").write_text(
            "dataset,image,draw,dsc_after\n" + "isic,1,0,0.7\n" * 2
        ),
        "other_target": lambda path: (path / "per_image.csv").write_text("dataset,image,draw,dsc_after\nph2,1,0,0.7\n"),
    }.items():
        fault(write_run(tmp_path / name))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("seed: 0\n")
    of_wandb = tmp_path / "good" / "wandb" / "run-1" / "files"
    of_wandb.mkdir(parents=True)
    (of_wandb / "config.yaml").write_text("seed: 0\n")
    assert main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "1 run\n" in out
    assert "unfinished, skipped: begun\n" in out
    named = re.findall(r"error: (\w+) is unreadable", err)
    assert sorted(named) == sorted(set(os.listdir(tmp_path)) - {"good", "begun", "report"})  # noqa: PTH208
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "no_json" in text
    assert "begun" in text
    # A second report does not take the first for a run.
    assert len(read_runs(tmp_path).runs) == 1


@pytest.mark.long
def test_an_earlier_figure_that_cannot_be_removed_is_reported(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "report" / "figures" / "old.png").mkdir(parents=True)
    with pytest.raises(MetasegError, match="could not be written"):
        write_report(tmp_path)


def test_null_and_nan_are_dashes(tmp_path):
    path = write_run(tmp_path / "a", "imaml", pictures=True, images=3, draws=1)
    result = json.loads((path / "result.json").read_text())
    score = result["targets"]["isic"]
    score["curve"]["dsc"][2] = score["curve"]["low"][1] = None
    score["dsc"]["low"] = None
    score["trivial"]["centred_disc"] = result["peak_memory_mib"]["process"] = None
    for key in ("wall_seconds", "commit"):
        result[key] = None
    for key in ("versions", "hardware"):
        del result[key]
    (path / "result.json").write_text(json.dumps(result))
    (path / "per_image.csv").write_text("dataset,image,draw,dsc_after\nisic,1,0,0.5\nisic,2,0,\n")
    (path / "figures" / "overlays_isic.png").write_text("no picture")
    assert main([str(tmp_path)]) == 0
    row = line_of(table_of(tmp_path, 2), "iMAML")
    assert (row["ours"], row["low"], row["high"], row["otsu"]) == ("50.0", "", "", "")
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert ">nan" not in text.lower()
    assert "None" not in text
    assert "overlays_isic.png of a cannot be read" in text


def test_a_run_without_curve_metrics_and_pictures(tmp_path):
    path = write_run(tmp_path / "a", "imaml")
    result = json.loads((path / "result.json").read_text())
    del result["targets"]["isic"]["curve"], result["targets"]["isic"]["trivial"], result["scratch"]
    (path / "result.json").write_text(json.dumps(result))
    assert main([str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("difference", "said"), [(0.012, "+1.2"), (-0.012, "−1.2"), (0.0004, "0.0"), (-0.0004, "0.0"), (None, "–")]
)
def test_a_difference_that_rounds_to_zero_has_no_sign(difference, said):
    assert signed(difference) == said


def test_names_cannot_break_the_page_or_the_tables(tmp_path):
    write_run(tmp_path / "a <b> & c", "imaml", synthetic_note="<script>alert(1)</script>", data__source="synthetic")
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt; &amp; c" in text
    assert "<script>" not in text
    assert "synthetic images" in text
    assert escaped("50 % of PH² & a_b") == r"50 \% of PH\textsuperscript{2} \& a\_b"


@pytest.mark.long
def test_runs_outside_the_tables_are_shown_with_the_reason(runs):
    write_run(runs / "wider", "imaml", model__features=16)
    write_run(runs / "other", "supervised", dice=0.7)
    assert main([str(runs)]) == 0
    page = page_of(runs)
    shown = {row[0]: row for row in page.rows if row and row[0] in ("wider", "other") and len(row) == 8}
    assert shown["other"][1:5] == ["supervised", "5", "50", "ISIC-2018"]
    assert set(shown) == {"wider", "other"}
    page = (runs / "report" / "index.html").read_text(encoding="utf-8")
    assert "size or protocol: model.features=16" in page


def test_runs_that_only_test_are_shown_outside_the_tables_with_the_reason(tmp_path):
    write_run(tmp_path / "tested", "imaml", train=False, ckpt_path="runs/a/checkpoints/best.ckpt")
    assert main([str(tmp_path)]) == 0
    assert line_of(table_of(tmp_path, 2), "iMAML")["ours"] == ""
    assert [row[0] for row in page_of(tmp_path).rows if len(row) == 8 and row[1] == "imaml"] == ["tested"]
    assert "tested: only tested (train=false)" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_dice_is_drawn_over_three_and_more_numbers_of_shots(tmp_path):
    for shots, dice in ((1, 0.4), (5, 0.6), (50, 0.8)):
        for seed in (0, 1):
            write_run(tmp_path / f"imaml{shots}-{seed}", "imaml", dice=dice, shots=shots, seed=seed)
        for seed in (0, 1) if shots == 1 else (0,):
            write_run(
                tmp_path / f"scratch{shots}-{seed}", "scratch", dice=dice - 0.1, shots=shots, pair="none", seed=seed
            )
    write_run(tmp_path / "other", "imaml", dice=0.3, shots=5, pair="isic_ph2")
    (found,) = over_shots(read_runs(tmp_path).runs)
    assert (found.pair, found.target) == ("ph2_kvasir", "isic")
    means = {
        learner: {shots: one.dice.mean for shots, one in curve.items()} for learner, curve in found.learners.items()
    }
    assert means["imaml"] == pytest.approx({1: 0.4, 5: 0.6, 50: 0.8}, abs=0.03)
    assert means["scratch"] == pytest.approx({1: 0.3, 5: 0.5, 50: 0.7}, abs=0.03)
    assert set(found.trivial["centred_disc"]) == {1, 5, 50}
    assert not any(name.startswith("other") for name in found.runs)
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    order = ("What was found", "Paired differences in Dice", "Dice over the number of annotated images", 'id="read"')
    assert sorted(order, key=page.index) == list(order)
    assert re.search(
        r"On ISIC-2018, iMAML trained on PH² and Kvasir-SEG differs from fine-tuning without a pair "
        r"by \+\d+\.\d points \([^)]+; 2 seeds\) with 1 image, \+\d+\.\d points \([^);]+\) with 5 images",
        page,
    )
    assert [found.leads[shots].difference.mean for shots in (1, 5, 50)] == pytest.approx([0.1] * 3, abs=0.03)


@pytest.mark.long
def test_a_curve_over_shots_is_of_one_trained_network_and_counts_a_seed_once(tmp_path):
    for shots, dice in ((1, 0.4), (5, 0.6), (50, 0.8)):
        for seed in (0, 1):
            path = f"runs/imaml_5shot_seed{seed}/checkpoints/best.ckpt"
            name = f"tested{shots}-{seed}"
            write_run(
                tmp_path / name, dice=dice, shots=shots, seed=seed, draws=3, images=9, train=False, ckpt_path=path
            )
    write_run(tmp_path / "trained5", dice=0.6, shots=5)
    write_run(tmp_path / "trained20", dice=0.9, shots=20)
    write_run(
        tmp_path / "again5",
        dice=0.6,
        shots=5,
        draws=3,
        train=False,
        ckpt_path="runs/imaml_5shot_seed0/checkpoints/best.ckpt",
    )
    write_run(tmp_path / "joint5", "joint", dice=0.6, shots=5)
    write_run(tmp_path / "scratch5", "scratch", pair="none", train=False)
    (found,) = over_shots(read_runs(tmp_path).runs)
    assert list(found.learners["imaml"]) == [1, 5, 50]
    assert found.once == ("imaml",)
    # Of the seed 0 at five shots, the run with twelve images replaces that with nine.
    tested = [f"tested{shots}-{seed}" for shots in (1, 5, 50) for seed in (0, 1) if (shots, seed) != (5, 0)]
    assert set(found.runs) == {*tested, "again5", "scratch5"}  # joint training has one number
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "trained for each number, but those of iMAML are the same at all numbers." in page


@pytest.mark.long
def test_initial_weights_are_set_against_each_other(runs):
    write_run(
        runs / "mri0", "imaml", dice=0.77, pictures=True, model__init="brain_mri", model__init_path="x-e012d006.pt"
    )
    network = {"_target_": "metaseg.networks.vgg.VGGUNet", "weights": "weights/vgg16.pt"}
    write_run(
        runs / "vgg",
        "pretrained",
        learner__network=network,
        learner___target_="metaseg.learners.scratch.Learner",
        learner__adapt={"steps": 200},
    )
    (of_scratch, of_imaml) = sorted(
        initial_weights(read_runs(runs).runs), key=lambda group: group.learner, reverse=True
    )
    assert of_imaml.learner == "imaml"
    # There are random weights with seeds 0 and 1; those of seed 1 have nothing to stand beside.
    assert {text: [run.settings["seed"] for run in found] for text, found in of_imaml.variants.items()} == {
        "attention_unet, 8 features: random weights": [0],
        "attention_unet, 8 features: brain_mri weights": [0],
    }
    assert of_scratch.learner == "pretrained, scratch"
    assert set(of_scratch.variants) == {"attention_unet, 8 features: random weights", "VGGUNet: vgg16.pt"}

    assert main([str(runs)]) == 0
    assert (runs / "report" / "figures" / "initial_imaml_5shot_isic.png").stat().st_size > 0
    assert "from different initial weights: imaml, ISIC-2018, 5 shots" in (runs / "report" / "index.html").read_text()


@pytest.mark.long
def test_learned_strengths_are_listed_from_largest_to_smallest(runs, reported):
    assert strengths_of(read_runs(runs).runs) == []
    assert "Learned proximal strengths" not in (reported[0] / "report" / "index.html").read_text()
    path = next(runs.rglob("result.json"))
    learned = {"head": 0.25, "decoder": 40.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lambda": learned}))
    (one,) = strengths_of(read_runs(runs).runs)
    assert one["rows"] == [("decoder", "40"), ("head", "0.25")]
    assert path.parent.as_posix().endswith(one["run"])
    assert main([str(runs)]) == 0
    assert "Learned proximal strengths" in (runs / "report" / "index.html").read_text()


@pytest.mark.long
def test_pre_trained_weights_are_named_with_their_systems(runs):
    assert weights_of(read_runs(runs).runs, []) == []
    mri = write_run(runs / "mri", "imaml", shots=7) / "result.json"
    record = {"name": "VGG16", "source": "vgg16.pth", "sha256": "7e8d20f2".ljust(64, "0"), "licence": "MIT"}
    record |= {"trained_on": "edges <BSDS500>", "mean": [0.5] * 3}
    in_tables = next(run for run in read_runs(runs).runs if run.learner == "joint").directory.result
    alone = write_run(runs / "alone", "joint", shots=7).joinpath("result.json")
    for path, weights in ((in_tables, record), (mri, record | {"name": "U-Net"}), (alone, None)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": weights}))

    assert main([str(runs)]) == 0
    rows = {row[0]: row[1:] for row in page_of(runs).rows if len(row) == 6}
    assert rows["VGG16"] == ["edges <BSDS500>", "MIT", "vgg16.pth", "7e8d20f2", "Joint training + fine-tuning"]
    assert rows["U-Net"][4] == "imaml"  # in no line of a table


@pytest.mark.long
def test_table_one_shows_the_found_values(tmp_path, reported):
    (line,) = [row for row in page_of(reported[0]).rows if row[:1] == ["ISIC-2018"] and "dermoscopy" in row]
    assert line[1:5] == ["2596", "2594", "–", "–"]
    write_run(tmp_path / "one")
    found = {"isic": {"found": 2584, "source": "files", "foreground": 0.2141}}
    (tmp_path / "table1.json").write_text(json.dumps(found))
    assert main([str(tmp_path)]) == 0
    table = tmp_path / "report" / "table1.csv"
    (row,) = [row for row in csv.DictReader(table.open()) if row["dataset"] == "ISIC-2018"]
    assert (row["found"], row["foreground"]) == ("2584", "21.4")
    assert "toprule" in table.with_suffix(".tex").read_text()
    (tmp_path / "table1.json").write_text("[")
    assert main([str(tmp_path)]) == 1


def test_every_setting_stands_once(runs):
    found = read_runs(runs).runs
    settings = settings_of(found)
    assert settings.common["model.features"] == "8"
    assert settings.by_learner["imaml"]["learner.curvature"] == "gauss_newton"
    assert settings.by_run["mixed"]["tasks.mixing"] == "mixed"
    assert "tasks.mixing" not in settings.by_learner["imaml"]
    for run in found:
        own, learner = settings.by_run[run.name], settings.by_learner[run.learner]
        assert len({*own, *learner, *settings.common}) == len(own) + len(learner) + len(settings.common)


def test_a_wrong_command_line_ends_in_one_sentence(capsys):
    assert main(["a", "b"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "`metaseg report --help`" in said


def test_the_size_names_pretrained_weights_and_where_training_began():
    name = "experiments/results/small-tuned/ph2_kvasir_exclusive/imaml_5shot_seed0"
    facts = dict(size_of([read_run(ROOT / name, name)]))
    assert facts["network"].startswith("pretrained")
    assert facts["initial weights"] == "EfficientNet-Lite0 (ImageNet-1k classification)"
    assert facts["start of meta-training"] == "checkpoints in runs/starts"
