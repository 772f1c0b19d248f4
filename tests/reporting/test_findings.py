"""The sentences at the top of the report."""

from types import SimpleNamespace

import pytest

from metaseg.evaluation.intervals import Interval
from metaseg.evaluation.paired import PairedTest
from metaseg.reporting import findings as module
from metaseg.reporting.cells import Block, Comparison
from metaseg.reporting.findings import differences, draw, findings

SCRATCH = "Training from scratch"


def compared(second, mean, low, high, p=0.01, shots=5, first="iMAML", seeds=3):
    test = PairedTest(Interval(mean, low, high), p, seeds, images=10, draws=3, groups=10, ahead=5, behind=5)
    return Comparison(first, second, shots, test, p, opponent={SCRATCH: "scratch"}.get(second, second.lower()))


def block(*comparisons, target="isic", differences=(), table=2):
    lines = [
        SimpleNamespace(
            row=SimpleNamespace(label="iMAML"),
            shots=(number,),
            paper=0.5,
            difference=difference,
            scratch=0.4 + difference,
        )
        for number, difference in enumerate(differences)
    ]
    return Block(SimpleNamespace(number=table), target, [], lines, list(comparisons))


def test_only_what_is_certain_is_called_ahead_or_behind():
    ahead, behind = compared(SCRATCH, 0.04, 0.01, 0.07), compared(SCRATCH, -0.04, -0.07, -0.01, shots=10)
    unsure = compared(SCRATCH, 0.04, -0.01, 0.09, shots=20)
    corrected = compared(SCRATCH, 0.03, 0.001, 0.06, p=0.2, shots=50)
    (sentence,) = findings([block(ahead, behind, unsure, corrected)])
    assert "in 1 of 4 comparisons and behind in 1; in 2" in sentence


def test_intervals_of_one_seed_are_counted_and_called_so():
    alone = {"p": float("nan"), "seeds": 1}
    ahead = compared(SCRATCH, 0.04, 0.01, 0.07, **alone)
    behind = compared(SCRATCH, -0.04, -0.07, -0.01, shots=10, **alone)
    unsure = compared(SCRATCH, 0.04, -0.01, 0.09, shots=20, **alone)
    nan = compared(SCRATCH, 0.04, float("nan"), float("nan"), shots=50, **alone)
    (sentence,) = findings([block(ahead, behind, unsure, nan)])
    assert sentence == (
        "Over draws and groups of images of one seed, the 95 % interval of iMAML's lead over training from scratch is "
        "above 0 in 1 of 4 comparisons and below 0 in 1. This says nothing about other seeds."
    )
    (both,) = findings([block(ahead, compared(SCRATCH, 0.04, 0.01, 0.07, shots=20))])
    assert both.startswith("iMAML is ahead of training from scratch in 1 of 1 comparison and behind in 0; in 0")
    assert both.endswith("is above 0 in 1 of 1 comparison and below 0 in 0. This says nothing about other seeds.")


def test_learners_and_the_paper_have_sentences_of_their_own():
    ours = block(compared(SCRATCH, 0.1, 0.05, 0.15), compared("MAML", 0, -0.1, 0.1))
    papers = block(target="kvasir", differences=(0.1, -0.1, 0.2))
    first, second, third = findings([ours, papers])
    assert "scratch" in first
    assert "in 0 of 1 comparison" in second
    assert third == "Our means are above the paper's in 2 of 3 cells; training from scratch alone is above them in 1."


def test_what_several_tables_share_counts_once():
    shared = compared("MAML", 0.04, 0.01, 0.07)
    (sentence,) = findings([block(shared), block(shared)])
    assert "1 of 1 comparison" in sentence


def test_the_sentences_are_about_the_papers_method_and_its_variants_are_not_counted():
    variant = "iMAML, learned strengths"
    plain, other = compared("MAML", 0.04, 0.01, 0.07), compared("MAML", -0.04, -0.07, -0.01, first=variant)
    (sentence,) = findings([block(plain, other, compared("iMAML", 0.1, 0.05, 0.15, first=variant))])
    assert sentence.startswith("iMAML is ahead of the learners it is compared with in 1 of 1 comparison")


def test_the_figure_has_a_panel_for_each_opponent_and_a_row_for_each_cell(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    first = block(compared(SCRATCH, 0.04, 0.01, 0.07), compared("MAML", 0.01, -0.03, 0.05))
    second = block(compared("MAML", -0.04, -0.07, -0.01, shots=20), target="kvasir", table=6)
    draw(differences([first, second]), tmp_path / "differences.png", {"isic": "ISIC-2018"})
    scratch, maml = kept[0].axes
    assert (
        kept[0].legends[0].get_title().get_text()
        == "95 % intervals over seeds (or draws, if wider) and groups of images"
    )
    assert [label.get_text() for label in scratch.get_yticklabels()] == [
        "table 2: ISIC-2018, 5 shots",
        "table 6: kvasir, 20 shots",
    ]
    assert (scratch.get_title(), maml.get_title()) == ("against training from scratch", "against MAML")
    certain, unsure, behind = (axes.containers[number][0] for axes, number in ((scratch, 0), (maml, 0), (maml, 1)))
    assert [one.get_xdata()[0] for one in (certain, unsure, behind)] == pytest.approx([4, 1, -4])
    assert [one.get_markerfacecolor() == "white" for one in (certain, unsure, behind)] == [False, True, False]


@pytest.mark.parametrize("blocks", [[], [block()], [block(Comparison("iMAML", "MAML", 5, None))]])
def test_without_results_nothing_is_said(blocks):
    assert findings(blocks) == []
