"""The inner loop's step in pieces is the step."""

import pytest
import torch

from metaseg.meta import inner_loop
from metaseg.meta.inner_loop import OPTIMIZERS, InnerLoop, initial_state, slope, update, update_in_place


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("lam", "frozen"), [(0.0, 0), (2.0, 0), (2.0, 3)])
def test_update_in_place_is_update_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, optimizer: str, lam: float, frozen: int
) -> None:
    monkeypatch.setattr(inner_loop, "PIECE", 4)  # eleven parameters: two whole pieces and a rest
    torch.manual_seed(0)
    mask = torch.ones(11)
    mask[:frozen] = 0
    loop = InnerLoop(optimizer, lr=0.1, steps=5, lam=lam, rates=mask if frozen else None)
    theta = torch.randn(11)
    phi, state = theta, initial_state(loop, theta)
    pieces, moments = theta, initial_state(loop, theta)
    for count in range(1, 6):
        gradient = torch.randn(11)
        phi, state = update(loop, count, theta, phi, gradient, state)
        before = pieces.clone()
        after = update_in_place(loop, count, pieces, slope(loop, theta, pieces, gradient), moments)
        assert torch.equal(pieces, before)
        pieces = after
        assert torch.equal(pieces, phi)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(moments, state, strict=True))
    assert not torch.equal(phi[frozen:], theta[frozen:])
    assert torch.equal(phi[:frozen], theta[:frozen])
