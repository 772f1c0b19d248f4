"""How the Dice grows with the number of annotated images."""

import numpy as np
import pytest
from conftest import lesion

import metaseg
from metaseg.adapting.decision import with_threshold
from metaseg.adapting.learning_curve import BELIEVED, STEEPEST, TYPICAL, LearningCurve
from metaseg.data.batches import image_tensor
from metaseg.errors import MetasegError
from metaseg.learners.fine_tuning import held_out


@pytest.mark.parametrize(("measured", "believed"), [(0.5, 0.5), (-0.2, 0.0), (2.0, STEEPEST)])
def test_the_exponent_lies_between_the_measured_and_the_typical(measured, believed):
    curve = LearningCurve(6, few=(2, 1 - 0.4), most=(4, 1 - 0.4 * 2**-measured), expected=0.7)
    assert curve.exponent == pytest.approx(BELIEVED * believed + (1 - BELIEVED) * TYPICAL)
    assert curve.at(6) == pytest.approx(0.7)
    assert 1 - curve.at(12) == pytest.approx(0.3 * 2**-curve.exponent)


def test_perfect_scores_have_an_exponent_too():
    assert LearningCurve(3, (1, 1.0), (2, 1.0), 1.0).at(12) == 1


def test_networks_are_scored_on_images_they_have_not_seen(trained):
    images, masks = map(list, zip(*(lesion(number) for number in range(4)), strict=True))
    segmenter = metaseg.load(trained).adapt(images, masks, steps=2)
    done = []
    curve = metaseg.learning_curve(segmenter, lambda *given: done.append(given))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert (curve.images, curve.few[0], curve.most[0]) == (4, pytest.approx(4 / 3), pytest.approx(8 / 3))
    assert curve.expected == segmenter.estimate.expected
    model, support = segmenter.model, segmenter.support

    def score(network, index):
        small, mask = support.images[index : index + 1], support.masks[index] > 0
        found = network(image_tensor(small))[0, 0].numpy() > 0.5
        return 2 * (found & mask).sum() / max(1, found.sum() + mask.sum())

    few, most = [[] for _ in images], []
    for member, part in zip(segmenter.members, held_out(4, 3), strict=True):
        most += [score(member, index) for index in part]
        alone = with_threshold(model.fine_tuned(support.only(part), segmenter.plan), segmenter.threshold)
        for index in set(range(4)) - set(part.tolist()):
            few[index].append(score(alone, index))
    assert curve.most[1] == pytest.approx(np.mean(most))
    assert curve.few[1] == pytest.approx(np.mean([np.mean(scores) for scores in few]))
    assert "annotated images" in curve.sentence()


def test_three_images_are_needed(trained):
    images, masks = map(list, zip(*(lesion(number) for number in range(2)), strict=True))
    with pytest.raises(MetasegError, match="three"):
        metaseg.learning_curve(metaseg.load(trained).adapt(images, masks, steps=1))
