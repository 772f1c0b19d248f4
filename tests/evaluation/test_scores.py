import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index
from torchmetrics.functional.segmentation import dice_score

from metaseg.errors import MetasegError
from metaseg.evaluation.scores import dice, foreground, iou, pixel_counts, pooled_dice

# Three images of 2×3 pixels: overlap 2 of 3 and 4; nothing in common; both empty.
PREDICTION = np.array([[[1, 1, 1], [0, 0, 0]], [[0, 0, 1], [0, 0, 0]], np.zeros((2, 3))], np.uint8)
TRUTH = np.array([[[1, 1, 0], [1, 1, 0]], [[1, 0, 0], [0, 0, 0]], np.zeros((2, 3))], np.uint8)


def test_hand_computed_values():
    np.testing.assert_allclose(dice(PREDICTION, TRUTH), [4 / 7, 0, 1])
    np.testing.assert_allclose(iou(PREDICTION, TRUTH), [2 / 5, 0, 1])
    assert pooled_dice(PREDICTION, TRUTH) == pytest.approx(4 / 9)
    both, total = pixel_counts(PREDICTION, TRUTH)
    np.testing.assert_array_equal(both, [2, 0, 0])
    np.testing.assert_array_equal(total, [7, 2, 0])


def test_pooled_dice_of_empty_images_is_one():
    assert pooled_dice(PREDICTION[2:], TRUTH[2:]) == 1.0


def test_one_side_empty_scores_zero():
    assert dice(PREDICTION[2:], TRUTH[:1])[0] == 0
    assert dice(PREDICTION[:1], TRUTH[2:])[0] == 0


def test_agrees_with_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(2, 20, 1, 1, generator=generator) * 0.8 + 0.1
    prediction, truth = torch.rand(2, 20, 16, 16, generator=generator) < shares
    f1 = binary_f1_score(prediction.int(), truth.int(), multidim_average="samplewise")
    np.testing.assert_allclose(dice(prediction, truth), f1, rtol=1e-6)
    segmentation = dice_score(
        prediction[:, None].int(),
        truth[:, None].int(),
        num_classes=1,
        include_background=True,
        average="none",
        input_format="one-hot",
    )
    np.testing.assert_allclose(dice(prediction, truth), segmentation[:, 0], rtol=1e-6)
    jaccard = [binary_jaccard_index(p.int(), t.int()) for p, t in zip(prediction, truth, strict=True)]
    np.testing.assert_allclose(iou(prediction, truth), jaccard, rtol=1e-6)
    assert pooled_dice(prediction, truth) == pytest.approx(float(binary_f1_score(prediction.int(), truth.int())))


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32, torch.bfloat16, np.bool_, np.float64])
def test_kinds_of_arrays_and_the_channel_axis(kind):
    def converted(mask):
        return torch.from_numpy(mask).to(kind) if isinstance(kind, torch.dtype) else mask.astype(kind)

    expected = [4 / 7, 0, 1]
    np.testing.assert_allclose(dice(converted(PREDICTION), converted(TRUTH)), expected)
    np.testing.assert_allclose(dice(converted(PREDICTION[:, None]), TRUTH), expected)


def test_counts_do_not_overflow():
    full = np.ones((1, 300, 300), np.uint8)
    assert dice(full, full)[0] == 1
    assert pixel_counts(full, full)[1][0] == 180000


def test_foreground_is_above_one_half():
    probabilities = torch.tensor([0.0, 0.5, 0.5000001, 1.0], requires_grad=True)
    np.testing.assert_array_equal(foreground(probabilities), [False, False, True, True])
    assert foreground(np.zeros((0, 4, 4))).shape == (0, 4, 4)


@pytest.mark.parametrize("values", [[-2.0, 3.0], [0.1, float("nan")]])
def test_foreground_refuses_logits_and_nan(values):
    with pytest.raises(MetasegError, match="sigmoid"):
        foreground(torch.tensor(values))


@pytest.mark.parametrize(
    ("prediction", "truth", "sentence"),
    [
        (PREDICTION[:2], TRUTH, r"\(2, 2, 3\).*\(3, 2, 3\)"),
        (PREDICTION[0], TRUTH[0], r"\(N, H, W\).*found \(2, 3\)"),
        (PREDICTION * 255, TRUTH, "prediction masks with values 0 and 1 but found 255"),
        (PREDICTION, TRUTH * 0.4, "truth masks with values 0 and 1 but found 0.4"),
        (PREDICTION, np.where(TRUTH, np.nan, 0), "found nan"),
    ],
)
def test_refuses_bad_input(prediction, truth, sentence):
    with pytest.raises(MetasegError, match=sentence):
        dice(prediction, truth)
