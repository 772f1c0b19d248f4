"""How far a learner follows the descent on a target's support set."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metaseg.data.batches import SupportSet, image_tensor
from metaseg.learners.fine_tuning import OF_ONE_IMAGE, SHARES, FineTuning, held_out
from metaseg.meta.inner_loop import InnerLoop
from metaseg.meta.losses import LOSSES
from metaseg.meta.vectors import flatten
from metaseg.networks.build import build
from metaseg.networks.functional import forward


def tuning(folds=2, norm="support", steps=20) -> FineTuning:
    return FineTuning(
        network=build(name="attention_unet", features=2, norm=norm, seed=1),
        loss=LOSSES["bce_log_cosh_dice"],
        norm=norm,
        loop=InnerLoop("adam", lr=0.02, steps=steps),
        folds=folds,
        device=torch.device("cpu"),
        memory_format=torch.contiguous_format,
    )


def theta(of: FineTuning):
    return {name: value.detach() for name, value in of.network.named_parameters()}


def discs(count, seed, bright=True):
    """Discs on noise; the mask is the disc where it is bright, else everything around it."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    centres = generator.uniform(10, 22, (count, 2, 1, 1))
    inside = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 40
    images = generator.integers(0, 90, (count, 32, 32, 3)) + 120 * inside[..., None]
    return SupportSet(images.astype(np.uint8), (inside if bright else ~inside).astype(np.uint8), "none", seed=0)


def contradicting():
    """The first half says the opposite of the second, so that no half serves the other."""
    one, other = discs(3, 1), discs(3, 2, bright=False)
    return SupportSet(np.concatenate([one.images, other.images]), np.concatenate([one.masks, other.masks]), "none", 0)


def share_of(way, segmenter, start):
    """Which share of the way from θ to φ the segmenter's parameters lie at."""
    moved = flatten(segmenter.parameters.values()) - start
    share = float(moved @ way / (way @ way))
    torch.testing.assert_close(moved, share * way, rtol=1e-3, atol=1e-5)
    return share


def adapted_share(support, at=20):
    of = tuning()
    start = flatten(theta(of).values())
    whole = dict(replace(of, folds=0).run(theta(of), support, [at]))
    found = dict(of.run(theta(of), support, [at]))
    return share_of(flatten(whole[at].parameters.values()) - start, found[at], start)


def test_images_that_serve_one_another_are_followed_all_the_way():
    assert adapted_share(discs(6, 3)) == pytest.approx(1, abs=1e-3)


def test_images_that_contradict_one_another_are_followed_less():
    assert adapted_share(contradicting()) < 0.9


def test_the_share_is_the_one_with_the_lowest_loss_of_held_out_images():
    of, support = tuning(folds=3), contradicting()
    start = flatten(theta(of).values())
    by_hand = np.zeros(len(SHARES))
    for rest, part in held_out(support, 3):
        ((_, end),) = replace(of, folds=0).run(theta(of), rest, [20])
        for row, share in enumerate(SHARES):
            parameters = {name: value.lerp(end.parameters[name], share) for name, value in theta(of).items()}
            images, masks = part.clean()
            with torch.no_grad():
                statistics = forward(of.network, parameters, rest.clean()[0])[1]
                logits = forward(of.network, parameters, images, statistics)[0]
            by_hand[row] += sum(of.loss(*one) for one in zip(logits[:, None], masks[:, None], strict=True))
    whole = dict(replace(of, folds=0).run(theta(of), support, [20]))
    found = dict(of.run(theta(of), support, [20]))
    share = share_of(flatten(whole[20].parameters.values()) - start, found[20], start)
    assert share == pytest.approx(SHARES[int(by_hand.argmin())], abs=1e-3)


def test_the_descent_does_not_mind_what_is_chosen_on_its_way():
    of, support = tuning(), contradicting()
    alone = dict(of.run(theta(of), support, [20]))
    among = dict(of.run(theta(of), support, [0, 1, 5, 20]))
    images = image_tensor(discs(2, 9).images)
    assert sorted(among) == [0, 1, 5, 20]
    torch.testing.assert_close(alone[20](images), among[20](images))
    assert all(torch.equal(among[0].parameters[name], value) for name, value in theta(of).items())


@pytest.mark.parametrize("norm", ["support", "batch", "running"])
def test_every_kind_of_statistics_can_be_weighed(norm):
    of = tuning(norm=norm, steps=3)
    ((_, found),) = of.run(theta(of), discs(5, 3), [3])
    assert torch.isfinite(found(image_tensor(discs(2, 9).images))).all()


def test_a_single_image_is_followed_half_the_way():
    assert adapted_share(discs(1, 3), at=5) == pytest.approx(OF_ONE_IMAGE, abs=1e-3)


@pytest.mark.parametrize(("count", "folds", "sizes"), [(5, 2, [3, 2]), (3, 7, [1, 1, 1]), (1, 2, []), (4, 0, [])])
def test_every_image_is_held_out_once(count, folds, sizes):
    support = discs(count, 4)
    parts = held_out(support, folds)
    assert [len(part.images) for _, part in parts] == sizes
    assert all(len(rest.images) == count - len(part.images) for rest, part in parts)
    if parts:
        assert np.array_equal(np.concatenate([part.images for _, part in parts]), support.images)
