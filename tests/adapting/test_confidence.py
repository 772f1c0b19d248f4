"""What ranks predictions from the best to the worst."""

import numpy as np
import pytest

import metaseg
from metaseg.adapting.arrays import shrunk
from metaseg.adapting.confidence import agreement, confidence, soft_dice
from metaseg.data.batches import image_tensor


def half(value):
    """Two images of which the left half has this probability and the right half none; the second is empty."""
    found = np.zeros((2, 4, 4))
    found[0, :, :2] = value
    return found


@pytest.mark.parametrize(("value", "expected"), [(1.0, 1.0), (0.6, 2 * 0.6 / 1.6)])
def test_soft_dice_is_that_of_calibrated_probabilities(value, expected):
    assert soft_dice(half(value)) == pytest.approx([expected, 0])


def test_agreement_is_the_mean_dice_with_other_networks():
    other = np.zeros((2, 4, 4))
    other[0, :2, :2] = 1
    assert agreement(half(0.9), [half(0.8), other]) == pytest.approx([(1 + 2 / 3) / 2, 0])


def test_confidence_is_agreement_where_other_networks_are():
    unsure, wide = half(0.6), np.ones((2, 4, 4))
    assert confidence(unsure, [unsure], empty=False).tolist() == [1, 0]
    assert confidence(unsure, [wide], empty=False)[0] == pytest.approx(2 / 3)
    assert confidence(unsure, [], empty=False) == pytest.approx(soft_dice(unsure))


def test_where_images_may_be_empty_networks_that_find_nothing_agree():
    unsure, wide = half(0.6), np.ones((2, 4, 4))
    assert confidence(unsure, [unsure], empty=True).tolist() == [1, 1]
    assert confidence(unsure, [wide], empty=True)[1] == 0
    assert confidence(unsure - 0.2, [], empty=True)[0] == pytest.approx(0.6)


def test_predictions_carry_the_confidence_of_the_whole_ensemble(trained, lesions):
    adapted = metaseg.load(trained).adapt(*lesions, steps=5, lr=3e-3)
    found = adapted.predict(lesions[0])
    small = image_tensor(np.stack([shrunk(image, adapted.plan.shape) for image in lesions[0]]))
    whole, *others = (network(small)[:, 0].numpy() for network in (adapted.segmenter, *adapted.members))
    assert others
    assert [one.confidence for one in found] == pytest.approx(agreement(whole, others))
    alone = adapted.probabilities(lesions[0], batch=2)
    assert all(np.allclose(one.probabilities, other) for one, other in zip(found, alone, strict=True))
