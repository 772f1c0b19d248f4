"""The sentences at the top of the report."""

from types import SimpleNamespace

import pytest

from metaseg.evaluation.intervals import Interval
from metaseg.evaluation.paired import PairedTest
from metaseg.reporting import findings as module
from metaseg.reporting.cells import NO_PAIR, Block, Comparison
from metaseg.reporting.findings import differences, draw, findings


def compared(second, mean, low, high, p=0.01, shots=5, first="iMAML", seeds=3):
    test = PairedTest(Interval(mean, low, high), p, seeds, images=10, draws=3, groups=10, ahead=5, behind=5)
    return Comparison(first, second, shots, test, p, opponent={NO_PAIR: "scratch"}.get(second, second.lower()))


def block(*comparisons, target="isic", lines=(), cells=(), table=2):
    return Block(SimpleNamespace(number=table), target, list(cells), list(lines), list(comparisons))


def test_how_far_ahead_and_how_sure_is_said_for_each_number_of_images():
    ahead, behind = compared(NO_PAIR, 0.04, 0.01, 0.07), compared(NO_PAIR, -0.04, -0.07, -0.01)
    unsure = compared(NO_PAIR, 0.02, -0.01, 0.09, seeds=2)
    corrected = compared(NO_PAIR, 0.03, 0.001, 0.06, p=0.2)
    alone = compared(NO_PAIR, 0.05, 0.01, 0.09, p=float("nan"), shots=20, seeds=1)
    nan = compared(NO_PAIR, 0.01, float("nan"), float("nan"), p=float("nan"), shots=20, seeds=1)
    (sentence,) = findings([block(ahead, behind, unsure, corrected, alone, nan)])
    assert sentence == (
        "With 5 images (2 to 3 seeds), iMAML differs from fine-tuning without a pair by −4.0 to +4.0 points; it is "
        "ahead (95 % interval above 0) in 2 of 4 comparisons and behind (below 0) in 1. With 20 images (1 seed): "
        "+1.0 to +5.0 points, ahead in 1 of 2, behind in none. Significant after correction for multiple comparisons "
        "(p < 5 %): 2 of 4 with several seeds (iMAML is behind in 1)."
    )
    (of_one,) = findings([block(alone)])
    assert of_one.endswith("ahead (95 % interval above 0) in 1 of 1 comparison and behind (below 0) in none.")


def test_learners_and_the_paper_have_sentences_of_their_own():
    ours = block(compared(NO_PAIR, 0.1, 0.05, 0.15), compared("MAML", 0, -0.1, 0.1), compared("Joint", 0.02, 0, 0.1))
    row = SimpleNamespace(label="iMAML", further=False)
    model = {"name": "pretrained", "encoder": "lite0", "encoder_weights": "package"}
    run = SimpleNamespace(settings={"learner": {}, "model": model, "data": {"size": 128}})
    of_its_own = SimpleNamespace(settings=run.settings | {"learner": {"network": {"_target_": "metaseg.PMGNetwork"}}})
    lines = [
        SimpleNamespace(row=row, shots=(number,), paper=0.5, difference=difference, scratch=scratch, trivial=trivial)
        for number, (difference, scratch, trivial) in enumerate(
            [(0.1, 0.6, {}), (-0.1, 0.4, {"all_foreground": 0.4}), (0.2, None, {}), (0.3, 0.9, {"all_foreground": 0.7})]
        )
    ]
    papers = block(target="kvasir", lines=lines, cells=[SimpleNamespace(row=row, runs=[of_its_own, run])])
    first, second, third = findings([ours, papers])
    assert "iMAML differs from fine-tuning without a pair by +10.0 points" in first
    assert "iMAML differs from MAML and joint by 0.0 to +2.0 points" in second
    assert third == (
        "Our means are above the paper's figures in 2 of 3 cells (left out: 1 in which marking every pixel exceeds the "
        "paper's figure), those of fine-tuning without a pair in 1 of 2. Our network is pretrained, lite0: package "
        "weights at 128 pixels; the paper's is an attention U-Net with random or brain-MRI weights at 256 pixels."
    )


def test_what_several_tables_share_counts_once():
    shared = compared("MAML", 0.04, 0.01, 0.07)
    (sentence,) = findings([block(shared), block(shared)])
    assert "(95 % interval above 0) in 1 of 1" in sentence


def test_the_sentences_are_about_the_papers_method_and_its_variants_are_not_counted():
    variant = "iMAML, learned strengths"
    plain, other = compared("MAML", 0.04, 0.01, 0.07), compared("MAML", -0.04, -0.07, -0.01, first=variant)
    (sentence,) = findings([block(plain, other, compared("iMAML", 0.1, 0.05, 0.15, first=variant))])
    assert sentence.startswith("With 5 images (3 seeds), iMAML differs from MAML by +4.0 points;")


def test_the_figure_has_a_panel_for_each_opponent_and_a_row_for_each_cell(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    first = block(compared(NO_PAIR, 0.04, 0.01, 0.07), compared("MAML", 0.01, -0.03, 0.05))
    second = block(compared("MAML", -0.04, -0.07, -0.01, shots=20, seeds=1), target="kvasir", table=6)
    draw(differences([first, second]), tmp_path / "differences.png", {"isic": "ISIC-2018"})
    scratch, maml = kept[0].axes
    (_, _, (whiskers,)) = maml.containers[0]
    (_, _, (of_one_seed,)) = maml.containers[1]
    assert whiskers.get_linestyle() != of_one_seed.get_linestyle()
    assert [label.get_text() for label in scratch.get_yticklabels()] == [
        "table 2: ISIC-2018, 5 shots",
        "table 6: kvasir, 20 shots",
    ]
    assert (scratch.get_title(), maml.get_title()) == ("against no pair", "against MAML")
    certain, unsure, behind = (axes.containers[number][0] for axes, number in ((scratch, 0), (maml, 0), (maml, 1)))
    assert [one.get_xdata()[0] for one in (certain, unsure, behind)] == pytest.approx([4, 1, -4])
    assert [one.get_markerfacecolor() == "white" for one in (certain, unsure, behind)] == [False, True, False]


@pytest.mark.parametrize("blocks", [[], [block()], [block(Comparison("iMAML", "MAML", 5, None))]])
def test_without_results_nothing_is_said(blocks):
    assert findings(blocks) == []
