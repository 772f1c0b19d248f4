"""How runs are labelled on the dashboard."""

import pytest
from conftest import settings_of

from metaseg.tracking import labels_of
from metaseg.training import run

SCRATCH = ["learner=scratch", "pair=none", "target=[isic,kvasir,kvasir_capsule]"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "group", "tables"),
    [
        (["shots=5"], "table 2 ph2_kvasir", {"table 2"}),
        (
            ["learner=maml", "tasks.mixing=mixed", "target=[isic,kvasir_capsule]"],
            "tables 3+5 ph2_kvasir",
            {"table 3", "table 5"},
        ),
        ([*SCRATCH, "shots=10"], "tables 2+3+4+5+6 alone", {f"table {number}" for number in range(2, 7)}),
        (["pair=cvc_ph2", "shots=5", "tasks.count=20", "learner.curvature=hessian", "loss=dice"], None, {"table 7"}),
        (["shots=7"], "ph2_kvasir exclusive", set()),
        (["target=kvasir_capsule"], "ph2_kvasir exclusive", set()),
    ],
)
def test_a_run_has_the_tags_of_all_tables_that_it_serves(overrides, group, tables):
    found = labels_of(settings_of(*overrides))
    assert found.group == (group or "table 7 cvc_ph2")
    assert {tag for tag in found.tags if tag.startswith("table")} == tables


@pytest.mark.long
def test_runs_of_a_cell_differ_only_in_their_seed():
    one = labels_of(settings_of("seed=0"))
    other = labels_of(settings_of("seed=1", "data.root=/elsewhere", "logger.tags=[mine]"))
    assert one.cell == other.cell
    assert one.name.removesuffix("-seed0") == other.name.removesuffix("-seed1")
    for change in (
        "loss=dice",
        "learner.strengths.by=layer",
        "scale=small",
        "protocol=paper",
        "shots=10",
        "tasks.mixing=mixed",
    ):
        changed = labels_of(settings_of(change))
        assert changed.cell != one.cell
        assert changed.name != one.name


@pytest.mark.long
@pytest.mark.parametrize(
    ("learner", "apart"),
    [(["learner=naive", "learner.train_on=target"], True), (["learner=feyjie"], True), (["learner=naive"], False)],
)
def test_targets_tell_runs_apart_that_learn_from_them(learner, apart):
    one, other = (labels_of(settings_of(*learner, f"target=[{target}]")) for target in ("isic", "kvasir"))
    assert (one.cell != other.cell) == (one.name != other.name) == apart


def test_tags_are_as_short_as_wandb_wants_them():
    long = labels_of(settings_of(f"logger.cell={'x' * 100}"))
    assert long.cell == f"full-tuned/{'x' * 100}"
    assert all(len(tag) <= 64 for tag in long.tags)


def test_wandb_takes_the_name_of_a_listed_pair_for_a_checkpoint():
    wandb = pytest.importorskip("wandb")
    sources = "+".join(f"a_long_name_of_a_dataset_{number}" for number in range(9))
    found = labels_of(settings_of(f"pair.name='{sources}'"))
    assert wandb.Artifact(found.name, type="model").name == found.name
    assert labels_of(settings_of("pair.name='mine+'")).name.startswith("imaml-mine_exclusive-")


def test_a_sweep_names_its_cells(train, tmp_path, monkeypatch):
    cells = []
    monkeypatch.setattr(run, "train_and_test", lambda settings, *_: cells.append(labels_of(settings).cell))
    sweep = ["hydra/launcher=basic", f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m"]
    finished = train("learner=scratch", "seed=0,1", *sweep)
    assert finished.returncode == 0, finished.stderr
    assert len(cells) == 2
    (cell,) = set(cells)
    assert cell.startswith("full-tuned/")
    assert "tasks.count=4" in cell
    assert "seed" not in cell
