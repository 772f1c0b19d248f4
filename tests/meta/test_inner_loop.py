"""The step of the inner loop: PyTorch's, and in pieces the same."""

import math
from functools import partial

import pytest
import torch

from metaseg.meta import inner_loop
from metaseg.meta.inner_loop import OPTIMIZERS, SCHEDULES, InnerLoop, initial_moments, slope, update, update_in_place


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("lam", "frozen"), [(0.0, 0), (2.0, 0), (2.0, 3)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_update_in_place_is_update(
    monkeypatch: pytest.MonkeyPatch, schedule: str, optimizer: str, lam: float, frozen: int
) -> None:
    monkeypatch.setattr(inner_loop, "PIECE", 4)  # eleven parameters: two whole pieces and a rest
    torch.manual_seed(0)
    rates = torch.cat([torch.zeros(frozen), torch.full((11 - frozen,), 0.5)])
    loop = InnerLoop(optimizer, lr=0.1, steps=5, lam=lam, schedule=schedule, rates=rates if frozen else None)
    theta = torch.randn(11)
    phi, state = theta, initial_moments(loop, theta)
    pieces, moments = theta, initial_moments(loop, theta)
    for count in range(1, 6):
        gradient = torch.randn(11)
        phi, state = update(loop, count, theta, phi, gradient, state)
        before = pieces.clone()
        after = update_in_place(loop, count, pieces, slope(loop, theta, pieces, gradient), moments)
        assert torch.equal(pieces, before)
        pieces = after
        if optimizer != "adam":
            assert torch.equal(pieces, phi)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(moments, state, strict=True))
        # Adam's kernel rounds differently.
        torch.testing.assert_close([pieces, *moments], [phi, *state])
    assert not torch.equal(phi[frozen:], theta[frozen:])
    assert torch.equal(phi[:frozen], theta[:frozen])


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", torch.optim.SGD),
        ("momentum", partial(torch.optim.SGD, momentum=0.9)),
        ("adam", torch.optim.Adam),
    ],
)
def test_a_step_is_that_of_pytorchs_optimiser(name, reference):
    start, *gradients = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs, loop = start.clone().requires_grad_(), InnerLoop(name, lr=0.1)
    optimizer, phi, moments = reference([theirs], 0.1), start, initial_moments(loop, start)
    for count, theirs.grad in enumerate(gradients, 1):
        phi, moments = update(loop, count, start, phi, theirs.grad, moments)
        optimizer.step()
        torch.testing.assert_close(phi, theirs.detach())


def test_cosine_schedule_warms_up_and_decays_to_zero():
    loop = InnerLoop("sgd", lr=2.0, steps=100, schedule="cosine")
    rates = [loop.lr_at(count) for count in range(1, 101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates.index(max(rates)) == 9
    assert rates[50] == pytest.approx(1.0)
    assert rates[-1] < 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        *({"optimizer": "newton"}, {"schedule": "steps"}, {"lr": 0.0}, {"steps": -1}, {"lam": -1}, {"tolerance": 1.0}),
        *({"lr": math.nan}, {"lr": math.inf}, {"steps": 1.5}, {"lam": math.nan}, {"tolerance": math.nan}),
    ],
)
def test_invalid_inner_loops_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        InnerLoop(**wrong)


def test_adam_takes_whole_steps_along_small_gradients():
    loop, start = InnerLoop("adam", lr=0.1), torch.zeros(2, dtype=torch.float64)
    gradient = torch.tensor([1e-5, -1e-6], dtype=torch.float64)
    phi, _ = update(loop, 1, start, start, gradient, initial_moments(loop, start))
    torch.testing.assert_close(phi, -0.1 * gradient.sign(), rtol=1e-4, atol=0)
