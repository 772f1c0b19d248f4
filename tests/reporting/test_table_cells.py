"""The numbers of a table's cells: Dice with intervals, the best system, paired differences, runs without a pair."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from run_directories import write_run

from metaseg.evaluation.intervals import bootstrap_interval, holm
from metaseg.reporting.cells import blocks, covers, ours
from metaseg.reporting.exports import caption
from metaseg.reporting.runs import read_runs
from metaseg.reporting.shots import over_shots
from metaseg.runs.tables import load_table


def block_of(folder):
    """Table 2 of the runs in a folder."""
    (block,) = blocks(load_table(2), read_runs(folder).runs)
    return block


def line_of(block, system):
    """A system's line with five images."""
    (found,) = [line for line in block.lines if line.row.label == system and line.shots == (5,)]
    return found


def test_scratch_beside_a_system_is_of_the_same_seeds(tmp_path):
    for seed, dice in ((0, 0.4), (1, 0.6)):
        write_run(tmp_path / f"scratch{seed}", "scratch", seed=seed, dice=dice)
        write_run(tmp_path / f"imaml{seed}", "imaml", seed=seed)
    write_run(tmp_path / "maml", "maml")
    beside = {name: line_of(block_of(tmp_path), name).scratch for name in ("iMAML", "MAML")}
    assert beside == pytest.approx({"iMAML": 0.5, "MAML": 0.4}, abs=0.01)
    write_run(tmp_path / "maml2", "maml", seed=2)  # without scratch
    assert line_of(block_of(tmp_path), "MAML").scratch is None


def test_runs_of_a_version_without_a_setting_stand_beside_those_that_do_the_same(tmp_path):
    for seed, changes in enumerate(({}, {"learner__adapt__start_worth": 0, "model__recipe": {"adapt": 1}})):
        write_run(tmp_path / str(seed), "scratch", seed=seed, **changes)
    write_run(tmp_path / "another", "scratch", seed=2, learner__adapt__start_worth=2)
    assert line_of(block_of(tmp_path), "No pair").ours.seeds == 2


def test_images_of_one_group_count_once_and_p_is_corrected_for_all_planned_comparisons(tmp_path):
    for learner, dice in (("imaml", 0.8), ("maml", 0.75), ("joint", 0.79), ("scratch", 0.6)):
        for seed in (0, 1):
            write_run(tmp_path / f"{learner}{seed}", learner, seed=seed, dice=dice, images=12, draws=3)
    alone = block_of(tmp_path)
    for path in tmp_path.glob("*/per_image.csv"):
        table = pd.read_csv(path, dtype={"image": str})
        # Images that are equally hard in one group: three alike are no more than one.
        order = table.groupby("image")["dsc_after"].mean().rank(method="first").astype(int) - 1
        table.assign(group=table["image"].map(order) // 3).to_csv(path, index=False)
    grouped = block_of(tmp_path)

    def width(block):
        dice = line_of(block, "iMAML").ours.dice
        return dice.high - dice.low

    assert width(grouped) > width(alone)
    assert [block.comparisons[0].test.groups for block in (alone, grouped)] == [12, 4]
    tests = [one.test.p for one in alone.comparisons]
    assert len(tests) == 3
    without_runs = math.nan  # first-order MAML; iMAML with learned strengths and other shots are families of their own
    assert [one.p for one in alone.comparisons] == holm([*tests, without_runs])[:3]


def test_systems_with_fewer_seeds_do_not_compete_for_the_best(tmp_path):
    for learner, dices in (("imaml", (0.7, 0.7)), ("maml", (0.9,)), ("joint", (0.6, 0.6))):
        for seed, dice in enumerate(dices):
            write_run(tmp_path / f"{learner}{seed}", learner, seed=seed, dice=dice)
    block = block_of(tmp_path)
    assert [line.row.label for line in block.lines if line.best] == ["iMAML"]
    write_run(tmp_path / "imaml2", "imaml", seed=2, dice=0.1)  # which the others lack
    block = block_of(tmp_path)
    assert [line.row.label for line in block.lines if line.best] == ["iMAML"]


def test_systems_without_a_common_seed_are_not_compared_for_the_best(tmp_path):
    for learner, seeds in (("imaml", (0, 1)), ("maml", (2,))):
        for seed in seeds:
            write_run(tmp_path / f"{learner}{seed}", learner, seed=seed)
    assert not any(line.best for line in block_of(tmp_path).lines)


def test_draws_of_other_data_are_not_paired(tmp_path):
    for learner in ("imaml", "maml"):
        for seed in (0, 1):
            path = write_run(tmp_path / f"{learner}{seed}", learner, seed=seed) / "result.json"
            result = json.loads(path.read_text())
            key = "other" if (learner, seed) == ("maml", 1) else "same"
            result["data"] = {"isic": {"images": 12, "groups": 12, "key": key}}
            path.write_text(json.dumps(result))
    block = block_of(tmp_path)
    assert block.comparisons[0].test.seeds == 1


def test_a_cell_is_the_bootstrap_of_seeds_with_all_their_draws(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), "imaml", seed=seed, dice=0.75 - 0.04 * seed)
    line = line_of(block_of(tmp_path), "iMAML")
    scores = np.concatenate([run.matrix("isic").to_numpy() for run in read_runs(tmp_path).runs])
    assert scores.shape == (4, 12)
    assert np.isnan(scores).sum() == 4
    mean, low, high = bootstrap_interval(scores, seeds=[0, 0, 1, 1])
    np.testing.assert_allclose(line.ours.dice, (mean, max(low, 0), min(high, 1)))
    assert line.ours.by_seed == pytest.approx({0: np.nanmean(scores[:2]), 1: np.nanmean(scores[2:])})


def test_scratch_scores_of_runs_replace_missing_scratch_runs(tmp_path):
    write_run(tmp_path / "a", "imaml", scratch=0.42)
    block = block_of(tmp_path)
    assert {line.scratch for line in block.lines if line.shots == (5,)} == {0.42}


def test_runs_of_one_seed_are_one_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_run(tmp_path / name, seed=seed)
    found = ours(read_runs(tmp_path).runs, "isic")
    assert (found.seeds, len(found.by_seed)) == (2, 2)


def test_what_an_interval_covers(tmp_path):
    for name, seed in (("imaml", 0), ("maml", 0), ("maml", 1)):
        write_run(tmp_path / f"{name}{seed}", name, seed=seed)
    block = block_of(tmp_path)
    assert caption([block]) == (
        "Dice in %; the interval is over seeds (or draws, if wider) and groups of images, or draws and groups of "
        "images of one seed."
    )
    assert block.comparisons[0].test.seeds == 1
    path = tmp_path / "maml1" / "per_image.csv"
    pd.read_csv(path, dtype={"image": str}).assign(group=0).to_csv(path, index=False)
    runs = read_runs(tmp_path).runs
    assert covers(ours([one], "isic") for one in runs if one.name == "maml1") == (
        "draws of one seed only, because all images are one group"
    )
    assert covers(ours([one], "isic") for one in runs) == (
        "draws and groups of images of one seed (without images where all are one group)"
    )


def test_systems_trained_on_the_target_do_not_compete_for_the_best_and_set_no_floor(tmp_path):
    shared = {"pair": "isic_ph2", "targets": ["kvasir"]}
    write_run(tmp_path / "imaml", "imaml", dice=0.5, **shared)
    other = {"all_foreground": 0.9, "centred_disc": 0.9, "mean_support_mask": 0.9, "otsu": 0.9}
    write_run(tmp_path / "naive", "naive", dice=0.9, learner__train_on="target", trivial=other, **shared)
    block = next(one for one in blocks(load_table(6), read_runs(tmp_path).runs) if one.target == "kvasir")
    assert len(block.runs) == 2
    assert [line.row.learner for line in block.lines if line.best] == ["imaml"]
    assert line_of(block, "MAML").trivial == {"all_foreground": 0.311, "centred_disc": 0.53, "mean_support_mask": 0.52}


def test_systems_trained_on_the_target_are_not_in_the_curves_over_shots(tmp_path):
    for shots in (5, 10, 20):
        write_run(tmp_path / f"imaml{shots}", "imaml", shots)
    write_run(tmp_path / "naive", "naive", pair="none", learner__train_on="target")
    (figure,) = over_shots(read_runs(tmp_path).runs)
    assert set(figure.learners) == {"imaml"}
