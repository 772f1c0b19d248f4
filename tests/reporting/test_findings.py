"""The sentences at the top of the report."""

from types import SimpleNamespace

import pytest

from metaseg.evaluation.intervals import Interval
from metaseg.evaluation.paired import PairedTest
from metaseg.reporting.cells import Block, Comparison
from metaseg.reporting.findings import findings

SCRATCH = "Training from scratch"


def compared(second, mean, low, high, p=0.01, shots=5):
    test = PairedTest(Interval(mean, low, high), p, images=10, draws=3, ahead=5, behind=5)
    return Comparison("iMAML", second, shots, test, p, opponent="scratch" if second == SCRATCH else "maml")


def block(*comparisons, target="isic", differences=()):
    lines = [
        SimpleNamespace(row=SimpleNamespace(label="iMAML"), shots=(number,), paper=0.5, difference=difference)
        for number, difference in enumerate(differences)
    ]
    return Block(None, target, [], lines, list(comparisons))


def test_only_what_is_certain_is_called_ahead_or_behind():
    ahead, behind = compared(SCRATCH, 0.04, 0.01, 0.07), compared(SCRATCH, -0.04, -0.07, -0.01, shots=10)
    unsure = compared(SCRATCH, 0.04, -0.01, 0.09, shots=20)
    corrected = compared(SCRATCH, 0.03, 0.001, 0.06, p=0.2, shots=50)
    (sentence,) = findings([block(ahead, behind, unsure, corrected)])
    assert "in 1 of 4 comparisons and behind in 1; in 2" in sentence


def test_learners_and_the_paper_have_sentences_of_their_own():
    ours = block(compared(SCRATCH, 0.1, 0.05, 0.15), compared("MAML", 0, -0.1, 0.1))
    papers = block(target="kvasir", differences=(0.1, -0.1, 0.2))
    first, second, third = findings([ours, papers])
    assert "scratch" in first
    assert "in 0 of 1 comparison" in second
    assert "above the paper's in 2 of 3 cells" in third


def test_what_several_tables_share_counts_once():
    shared = compared("MAML", 0.04, 0.01, 0.07)
    (sentence,) = findings([block(shared), block(shared)])
    assert "1 of 1 comparison" in sentence


@pytest.mark.parametrize("blocks", [[], [block()], [block(Comparison("iMAML", "MAML", 5, None))]])
def test_without_results_nothing_is_said(blocks):
    assert findings(blocks) == []
