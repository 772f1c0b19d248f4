"""Which cells a sweep consists of."""

from dataclasses import replace

import pytest

from metaseg.errors import MetasegError
from metaseg.runs.tables import NUMBERS, Row, Table, load_table
from metaseg.sweeps.cells import Choice, of_multirun, of_tables


def row(overrides, shots):
    return Row("", tuple(overrides), tuple(shots), {}, quoted=False, trains=True, further=False)


ROWS = (
    row(["learner=imaml"], [5, 10]),
    row(["learner=naive", "learner.train_on=target", "pair=none", "target=[isic]"], [5]),
    row(["learner=scratch", "pair=none"], [5]),
)
FIXED = ("pair=ph2_kvasir", "tasks.mixing=mixed", "tasks.count=50", "target=[isic,kvasir_capsule]")
TABLE = Table(3, "", FIXED, ("isic",), ROWS)


def settings(cell):
    return dict(cell.overrides)


def test_a_multirun_is_the_product_of_its_choices():
    cells = of_multirun(
        [Choice("learner", ("imaml", "maml")), Choice("shots", ("5", "20")), Choice("data.root", ("/x",))]
    )
    assert [cell.name for cell in cells] == [
        "learner=imaml,shots=5",
        "learner=imaml,shots=20",
        "learner=maml,shots=5",
        "learner=maml,shots=20",
    ]
    assert all(settings(cell)["data.root"] == "/x" for cell in cells)
    again = [Choice("shots", ("5", "20")), Choice("shots", ("10",))]  # as everywhere in Hydra, the last one counts
    assert [cell.name for cell in of_multirun(again)] == ["shots=10"]


def test_a_table_gives_a_cell_for_each_row_shot_count_and_seed():
    cells = of_tables([TABLE], [], [0, 1])
    assert [cell.name for cell in cells] == [
        "ph2_kvasir_mixed/imaml_5shot_seed0",
        "ph2_kvasir_mixed/imaml_5shot_seed1",
        "ph2_kvasir_mixed/imaml_10shot_seed0",
        "ph2_kvasir_mixed/imaml_10shot_seed1",
        "alone/naive_5shot_train_on=target_target=isic_seed0",
        "alone/naive_5shot_train_on=target_target=isic_seed1",
        "alone/scratch_5shot_seed0",
        "alone/scratch_5shot_seed1",
    ]
    naive = settings(cells[4])
    assert naive["target"] == "[isic]"
    assert naive["pair"] == "none"
    assert naive["tasks.count"] == "50"


def test_tables_that_share_cells_run_them_once():
    other = replace(TABLE, rows=(row(["learner=imaml"], [5]),))
    assert len(of_tables([TABLE, other], [], [0])) == len(of_tables([TABLE], [], [0]))


def test_the_command_line_chooses_rows_and_changes_the_rest():
    given = [
        Choice("learner", ("imaml",)),
        Choice("shots", ("5",)),
        Choice("seed", ("3",)),
        Choice("tasks.count", ("4",)),
    ]
    (cell,) = of_tables([TABLE], given, [0, 1])
    assert cell.name == "ph2_kvasir_mixed/imaml_5shot_tasks.count=4_seed3"
    assert settings(cell)["tasks.count"] == "4"


def test_settings_without_effect_are_not_in_the_name():
    given = [
        ("learner", "imaml"),
        ("shots", "5"),
        ("scale", "toy"),
        ("trainer", "cpu"),
        ("logger", "csv"),
        ("data.root", "x"),
    ]
    (cell,) = of_tables([TABLE], [Choice(key, (value,)) for key, value in given], [0])
    assert cell.name == "ph2_kvasir_mixed/imaml_5shot_seed0"


def test_a_choice_is_compared_as_a_value_and_not_as_text():
    names = [cell.name for cell in of_tables([TABLE], [Choice("target", ("isic",))], [0]) if "naive" in cell.name]
    assert names == ["alone/naive_5shot_train_on=target_target=isic_seed0"]


@pytest.mark.parametrize("key", ["learner.inner.lr", "learner.adapt.lr", "trainer.max_epochs", "model.encoder_weights"])
def test_values_of_any_setting_make_cells_apart(key):
    values = ("a(b).pt", "ab.pt") if key == "model.encoder_weights" else ("1", "2")
    for cells in (of_multirun([Choice(key, values)]), of_tables([TABLE], [Choice(key, values)], [0])):
        assert len({cell.name for cell in cells}) == len(cells) > 1


def test_cells_that_would_share_a_directory_are_refused():
    twice = replace(
        TABLE, rows=(row(["learner=imaml", "tasks.query=3"], [5]), row(["learner=imaml", "tasks.query=4"], [5]))
    )
    with pytest.raises(MetasegError, match="share the directory"):
        of_tables([twice], [], [0])
    with pytest.raises(MetasegError, match="scale"):
        of_tables([TABLE], [Choice("scale", ("toy", "small"))], [0])
    with pytest.raises(MetasegError, match="share the directory"):
        of_multirun([Choice("trainer", ("cpu", "gpu"))])


def test_several_values_of_another_key_multiply_the_cells_and_are_named():
    given = [Choice("learner", ("imaml",)), Choice("shots", ("5",)), Choice("learner.lam", ("1", "10"))]
    assert [cell.name for cell in of_tables([TABLE], given, [0])] == [
        "ph2_kvasir_mixed/imaml_5shot_learner.lam=1_seed0",
        "ph2_kvasir_mixed/imaml_5shot_learner.lam=10_seed0",
    ]


def test_a_choice_that_no_row_has_is_refused_in_words():
    with pytest.raises(MetasegError, match="learner=proto"):
        of_tables([TABLE], [Choice("learner", ("proto",))], [0])


def test_names_suit_every_file_system():
    (cell,) = of_multirun([Choice("target", ("[isic,ph2]",)), Choice("model.init_path", ("/a b/c'd.pt",))])
    assert not set(cell.name) & set("/[]' \\:*?\"<>|")


def test_long_names_are_cut_and_stay_apart():
    choices = [Choice(f"some.long.setting.number{index}", ("1",)) for index in range(20)]
    cells = of_multirun([*choices, Choice("seed", ("0", "1"))])
    assert all(len(cell.name) <= 150 for cell in cells)
    assert cells[0].name != cells[1].name


def test_the_paper_s_tables_share_what_can_be_shared():
    cells = of_tables([load_table(number) for number in NUMBERS], [], [0])
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names))
    each = [{cell.name for cell in of_tables([load_table(number)], [], [0])} for number in NUMBERS]
    two, three, four, five, six, seven = each
    assert {name for name in five if "imaml" in name} == {name for name in three if "imaml" in name}
    assert {name for name in two if name.startswith("alone/scratch")} <= three & four & five & six
    assert "alone/naive_5shot_resample=true_train_on=target_target=kvasir_capsule_seed0" in five & six
    assert len(seven) == 3
    assert len(set.union(*each)) == len(names)


def test_cells_that_differ_in_their_seed_alone_share_a_name_without_it():
    cells = of_tables([TABLE], [Choice("learner", ("imaml",))], [0, 1])
    cells += of_multirun([Choice("learner", ("imaml", "maml")), Choice("seed", ("0", "1"))])
    assert [cell.seedless for cell in cells] == [
        *["ph2_kvasir_mixed/imaml_5shot"] * 2,
        *["ph2_kvasir_mixed/imaml_10shot"] * 2,
        *["learner=imaml"] * 2,
        *["learner=maml"] * 2,
    ]
    long = [Choice(f"some.long.setting.number{index}", ("1",)) for index in range(20)]
    assert len({cell.seedless for cell in of_multirun([*long, Choice("seed", ("0", "1"))])}) == 1
