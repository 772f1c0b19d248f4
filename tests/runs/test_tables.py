"""Which runs belong to which cell, on settings alone; and which commands would make these runs."""

import re
from dataclasses import dataclass, field, replace

import pytest
import yaml
from conftest import ROOT, composed
from run_directories import settings_of

from experiments import shares
from metaseg.errors import MetasegError
from metaseg.runs import tables
from metaseg.runs.schema import Run
from metaseg.runs.tables import NUMBERS, fill, load_table, matches, numbers_of, required
from metaseg.runs.validation import read
from metaseg.sweeps.cells import of_tables


@dataclass
class Made:
    """What `fill` needs of a run."""

    name: str
    settings: dict
    targets: list[str] = field(default_factory=lambda: ["isic"])


def made(name, learner="imaml", shots=5, seed=0, pair="ph2_kvasir", mixing="exclusive", targets=("isic",), **changes):
    return Made(name, settings_of(learner, shots, seed, pair, mixing, list(targets), **changes), list(targets))


def row_of(table, learner):
    return next(row for row in table.rows if row.learner == learner)


def cell_of(cells, learner, shots, target="isic"):
    found = [
        cell
        for cell in cells
        if (cell.row.learner, cell.shots, cell.target) == (learner, shots, target)
        and "learner.strengths.by=layer" not in cell.row.overrides
    ]
    return found[-1]


def test_the_papers_figures_are_those_of_the_paper():
    published = {
        (number, row.learner, target): values
        for number in NUMBERS
        for row in load_table(number).rows
        for target, values in row.paper.items()
        if number != 7
    }
    assert published[2, "imaml", "isic"] == (77.39, 79.17, 83.26)
    assert published[3, "maml", "isic"] == (66.19, 68.54, 70.61)
    assert published[4, "imaml", "isic"] == (63.56, 65.09, 66.71)
    assert published[5, "imaml", "kvasir_capsule"] == (56.39, 59.34, 61.28)
    assert published[6, "imaml", "kvasir"] == (62.00, 65.10, 66.58)
    assert published[6, "maml", "kvasir_capsule"] == (52.26, 54.09, 57.47)
    assert published[5, "naive", "kvasir_capsule"] == (16.23,)
    assert [row.paper.get("isic") for row in load_table(7).rows] == [(73.90,), (76.85,), None]


@pytest.mark.long
@pytest.mark.parametrize("number", NUMBERS)
def test_every_command_composes_to_settings_that_fill_their_own_row(number):
    """Overrides for learners whose configuration is elsewhere are left out; the others must come back to their cell.

    Tables 3 to 6 repeat rows of table 2: two show their pair and loss.
    """
    table = load_table(number)
    known = {path.stem for path in (ROOT / "conf" / "learner").glob("*.yaml")}
    if number in range(3, 7):
        known &= {"imaml", "scratch"}
    runs = []
    for index, cell in enumerate(of_tables([table], [], [0])):
        overrides = cell.arguments()
        if dict(cell.overrides)["learner"] not in known:
            continue
        # Composing is slow, and shots choose no group.
        config = composed(*(text for text in overrides if not text.startswith("shots=")))
        config.shots = int(dict(cell.overrides)["shots"])
        settings = read(Run, config).plain
        assert settings["learner"]["train_on"] == "target" or not set(settings["pair"]["pools"]) & set(
            settings["target"]
        )
        runs.append(Made(str(index), settings, settings["target"]))
    cells = [cell for cell in fill(table, runs) if cell.row.learner in known]
    assert len(cells) >= 3
    assert all(len(cell.runs) == 1 and not cell.left_out for cell in cells)
    assert {run.name for cell in cells for run in cell.runs} == {run.name for run in runs}


def test_a_run_belongs_to_the_narrowest_row():
    scalar, learned = made("scalar"), made("learned", learner__strengths={"by": "layer"})
    rows = {run.name: cell.row.label for cell in fill(load_table(2), [scalar, learned]) for run in cell.runs}
    assert rows == {"scalar": "iMAML", "learned": "iMAML, learned strengths"}


def test_runs_without_a_pair_are_shared_by_all_tables():
    run = made("s", "scratch", pair="isic_ph2", mixing="mixed", targets=["kvasir_capsule"])
    for number in (5, 6):
        assert cell_of(fill(load_table(number), [run]), "scratch", 5, "kvasir_capsule").runs == (run,)
    naive = made("n", "naive", pair="cvc_ph2", targets=["kvasir_capsule"], learner__train_on="target")
    for number in (5, 6):
        assert cell_of(fill(load_table(number), [naive]), "naive", 5, "kvasir_capsule").runs == (naive,)


def test_a_pair_that_a_row_names_is_used_and_still_not_compared():
    table = load_table(6)
    row = row_of(table, "scratch")
    named = replace(table, rows=(replace(row, overrides=(*row.overrides, "pair=ph2_kvasir")),))
    run = made("s", "scratch", pair="isic_ph2", targets=["kvasir"])
    assert cell_of(fill(named, [run]), "scratch", 5, "kvasir").runs == (run,)


def test_a_row_of_its_own_target_has_no_cell_in_other_columns():
    cells = [cell for cell in fill(load_table(6), []) if cell.row.learner == "naive"]
    assert [(cell.row.label[-10:], cell.target) for cell in cells] == [
        ("rce images", "kvasir"),
        ("rce images", "kvasir_capsule"),
        ("Kvasir-SEG", "kvasir"),
        ("apsule-SEG", "kvasir_capsule"),
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"pair": "cvc_kvasir"},
        {"mixing": "mixed"},
        {"learner": "maml"},
        {"shots": 10},
        {"loss": "dice"},
        {"tasks__count": 20},
        {"learner__train_on": "target"},
        {"targets": ["kvasir_capsule"]},
    ],
)
def test_different_settings_make_different_cells(other):
    assert cell_of(fill(load_table(2), [made("a")]), "imaml", 5).runs
    assert not cell_of(fill(load_table(2), [made("a", **other)]), "imaml", 5).runs


def test_the_targets_that_were_scored_count_not_those_that_were_asked_for():
    run = made("a", targets=["isic", "kvasir_capsule"])
    assert cell_of(fill(load_table(2), [run]), "imaml", 5).runs == (run,)


def test_a_group_is_compared_by_name_and_numbers_as_hydra_reads_them():
    settings = {"learner": {"name": "imaml", "lr": 0.001}, "shots": 5}
    assert matches(settings, {"learner": "imaml", "learner.lr": 1e-3, "shots": 5})
    assert not matches(settings, {"learner": "maml"})
    assert not matches(settings, {"learner.momentum": 0.9})
    assert not matches(settings, {"shots.more": 5})
    table = load_table(7)
    assert required(table, table.rows[0]) == {
        "pair": "cvc_ph2",
        "tasks.mixing": "exclusive",
        "tasks.count": 20,
        "learner": "imaml",
        "learner.curvature": "hessian",
        "learner.train_on": "source",
        "loss": "dice",
    }


def test_seeds_are_pooled_and_other_settings_are_not():
    runs = [made("b", seed=1), made("a", seed=0), made("c", model__init="brain_mri"), made("d", seed=1)]
    cell = cell_of(fill(load_table(2), runs), "imaml", 5)
    assert [run.name for run in cell.runs] == ["a", "b"]
    assert cell.left_out == (
        ("d", "same settings and seed as b"),
        ("c", "different settings: model.init=brain_mri"),
    )


def test_of_equally_many_seeds_the_usual_settings_are_shown():
    runs = [made("a", model__init="brain_mri"), made("b"), made("c", "maml"), made("d", "joint")]
    cell = cell_of(fill(load_table(2), runs), "imaml", 5)
    assert [run.name for run in cell.runs] == ["b"]
    assert cell.left_out == (("a", "different settings: model.init=brain_mri"),)


def test_settings_that_change_no_score_do_not_part_seeds():
    runs = [made("a"), made("b", seed=1, data__root="elsewhere", scale={"name": "full"}, target=["isic", "kvasir"])]
    assert len(cell_of(fill(load_table(2), runs), "imaml", 5).runs) == 2


def test_settings_that_only_earlier_versions_have_part_seeds_only_if_they_change_a_score():
    def earlier(name, seed, precision="float32"):
        run = made(name, seed=seed, learner__inner={"steps": 5, "precision": precision, "compile": False})
        run.settings["learner"]["adapt"]["by"] = "recipe"
        return run

    runs = [made("a", learner__inner={"steps": 5}), earlier("b", 1), earlier("c", 2, "bfloat16")]
    cell = cell_of(fill(load_table(2), runs), "imaml", 5)
    assert [run.name for run in cell.runs] == ["a", "b"]
    assert cell.left_out == (("c", "different settings: learner.inner.precision=bfloat16"),)


def test_a_learner_s_own_seed_follows_the_run_s_and_parts_nothing():
    runs = [made("a", "feyjie", learner__seed=0), made("b", "feyjie", seed=1, learner__seed=1)]
    assert [run.name for run in cell_of(fill(load_table(2), runs), "feyjie", 5).runs] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda table: table.pop("columns"), "columns"),
        (lambda table: table["paper_rows"][0].update(paper={"isic": [1, 2]}), "1 shots but 2 figures"),
        (lambda table: table["paper_rows"][0].update(qouted=True), "qouted"),
    ],
)
def test_a_faulty_definition_is_reported(tmp_path, change, fault):
    document = yaml.safe_load((tables.FOLDER / "table7.yaml").read_text(encoding="utf-8"))
    change(document["table"])
    (tmp_path / "table7.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(MetasegError, match=rf"table7\.yaml.*{fault}"):
        load_table(7, tmp_path)


def test_a_missing_definition_is_reported(tmp_path):
    with pytest.raises(MetasegError, match=r"definition of a table in .*table7\.yaml"):
        load_table(7, tmp_path)
    (tmp_path / "table7.yaml").write_text("title: x")
    with pytest.raises(MetasegError, match="should have a key `table`"):
        load_table(7, tmp_path)


def test_a_table_compares_runs_of_one_size_and_protocol():
    small = [made(f"small{seed}", seed=seed) for seed in (0, 1)] + [made("maml", "maml")]
    large = [made("large", "maml", data__size=256), made("paper", "joint", protocol__name="paper")]
    cells = fill(load_table(2), small + large)
    assert {run.name for cell in cells for run in cell.runs} == {"small0", "small1", "maml"}
    reasons = dict(reason for cell in cells for reason in cell.left_out)
    assert reasons == {
        "large": "different size or protocol: data.size=256",
        "paper": "different size or protocol: protocol.name=paper",
    }


def test_a_run_that_only_tests_fills_no_row_that_trains():
    tested = made("tested", train=False, ckpt_path="runs/of/5shot/checkpoints/best.ckpt", data__size=256)
    cells = fill(load_table(2), [tested, made("scratch", "scratch", train=False), made("seed1", seed=1, train=True)])
    assert cell_of(cells, "scratch", 5).runs
    cell = cell_of(cells, "imaml", 5)
    assert [run.name for run in cell.runs] == ["seed1"]
    assert [(name, "train=false" in reason) for name, reason in cell.left_out] == [("tested", True)]


def test_only_a_run_that_trains_is_labelled_with_the_tables_it_fills():
    trained = composed("learner=imaml", "pair=ph2_kvasir", "shots=5")
    assert 2 in numbers_of(read(Run, trained))
    trained.train = False
    assert numbers_of(read(Run, trained)) == ()


def test_recipes_are_chosen_on_datasets_that_no_table_tests_on():
    tested_on = {column for number in NUMBERS for column in load_table(number).columns}
    ablations = (ROOT / "experiments" / "ablations.sh").read_text(encoding="utf-8")
    for chosen_on in (composed("experiment=recipes").target, re.findall(r"target=\[(.*)\]", ablations)):
        assert chosen_on
        assert tested_on.isdisjoint(chosen_on)


@pytest.mark.parametrize("target", ["isic", "kvasir", "kvasir_capsule"])
def test_no_tables_target_chooses_alpha(target, tmp_path, capsys):
    with pytest.raises(SystemExit):
        shares.main([str(tmp_path), "--target", target])
    assert "no table tests on" in capsys.readouterr().err


def test_more_seeds_are_shown_before_more_usual_settings():
    runs = [made("a", model__init="brain_mri"), made("b", seed=1, model__init="brain_mri")]
    runs += [made("c"), made("d", "maml"), made("e", "joint")]
    assert [run.name for run in cell_of(fill(load_table(2), runs), "imaml", 5).runs] == ["a", "b"]
