"""The cross-validated Dice estimate: folds, values, sentence."""

import numpy as np
import pytest

import metaseg
from metaseg.adapting.held_out import HeldOut, hold_out
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import dice


def test_each_image_is_segmented_by_a_network_adapted_to_the_others(trained, lesions):
    images, masks = lesions
    model = metaseg.load(trained)
    found = hold_out(model, images, masks, steps=5, lr=3e-3)
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        others = [number for number in range(5) if number != index]
        adapted = model.adapt([images[one] for one in others], [masks[one] for one in others], steps=5, lr=3e-3)
        assert found.dsc[index] == dice(adapted.segment([image])[0][None], mask[None])[0]
    assert found.folds == 5


def test_parts_are_held_out_together(trained, lesions, monkeypatch):
    images, masks = lesions
    model, seen, progress = metaseg.load(trained), [], []
    original = type(model).adapt_to

    def spy(self, small, *rest):
        seen.append(len(small))
        return original(self, small, *rest)

    monkeypatch.setattr(type(model), "adapt_to", spy)
    found = hold_out(model, images, masks, folds=2, progress=lambda done, of: progress.append((done, of)))
    assert sorted(seen) == [2, 3]
    assert progress == [(1, 2), (2, 2)]
    assert len(found.dsc) == 5
    assert not np.isnan(found.dsc).any()


def test_sentence_contains_mean_and_spread():
    said = HeldOut(np.array([0.5, 0.7, 0.9]), np.array([0.2, 0.3, 0.4]), 3).sentence()
    assert said == (
        "Dice to expect: 70.0 % (standard deviation 20.0, from 50.0 to 90.0; 3 annotated images, leave-one-out; "
        "their mean mask alone: 30.0 %)"
    )


@pytest.mark.parametrize(("count", "folds"), [(1, None), (3, 4), (3, 1)])
def test_too_few_images_are_refused(trained, lesions, count, folds):
    images, masks = lesions
    with pytest.raises(MetasegError, match="at least two annotated images"):
        hold_out(metaseg.load(trained), images[:count], masks[:count], folds)
