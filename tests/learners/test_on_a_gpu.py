"""Learners on a GPU give what they give on the CPU, and keep what they promise about memory there.

`make test-slow` runs those that can on the CPU as well, which shows that they work, though not that devices agree.
"""

import pytest
import torch
from test_learners import ADAPT, EPISODIC, INNER, episode, in_double, make, pictures, support_set

from metaseg.data.batches import Episode, image_tensor
from metaseg.meta.vectors import flatten
from metaseg.networks.build import build

ON_A_GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), ON_A_GPU])
STRENGTHS = {"strengths": {"by": "layer", "lr": 0.05}}
EXACT = {"curvature": "hessian", "products": "autograd"}


@pytest.fixture(autouse=True)
def full_precision():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on(device, parts):
    return Episode(*(part if part is None else part.to(device) for part in parts))


def gradient_on(device, name, **changes):
    learner = make(name, **changes).double().to(device)
    return learner.meta_gradient(learner.theta(), on(device, in_double(episode())))


@DEVICES
@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in EPISODIC), ("imaml", EXACT), ("imaml", STRENGTHS), ("maml", {"checkpoint": True})],
)
def test_a_meta_gradient_does_not_depend_on_the_device(device, name, changes):
    expected, found = gradient_on("cpu", name, **changes), gradient_on(device, name, **changes)
    assert found.gradient.device.type == device
    torch.testing.assert_close(found.gradient.cpu(), expected.gradient, rtol=1e-6, atol=1e-9)
    if changes == STRENGTHS:
        torch.testing.assert_close(found.by_strengths.cpu(), expected.by_strengths, rtol=1e-6, atol=1e-9)


@DEVICES
@pytest.mark.parametrize("changes", [{}, {"channels_last": True}])
def test_adaptation_does_not_depend_on_the_device(device, changes):
    images = image_tensor(pictures(4, 50)[0])
    # Adam in single precision magnifies the rounding of each step: after 25, by up to 0.16.
    few = changes | {"adapt": ADAPT | {"steps": 5}}
    expected, found = (make("imaml", **few).to(place).adapt(support_set())(images) for place in ("cpu", device))
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0.05)
    assert (found.cpu() > 0.5).float().sub((expected > 0.5).float()).abs().mean() < 0.01


def peak_of(steps):
    """The highest memory of one task, bytes, above what is in use before it."""
    network = build(name="attention_unet", features=8, seed=1)
    learner = make("imaml", network=network, inner=INNER | {"steps": steps, "proximal": True}).to("cuda")
    task, theta = on("cuda", episode(shots=4, side=64)), learner.theta()
    learner.meta_gradient(theta, task)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    learner.meta_gradient(theta, task)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.gpu
def test_the_implicit_gradients_memory_does_not_grow_with_inner_steps():
    assert peak_of(32) < 1.02 * peak_of(2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["imaml", "maml"])
def test_a_hundred_tasks_leave_no_memory_behind(name):
    learner = make(name).to("cuda")
    task, theta = on("cuda", episode()), learner.theta()
    in_use = []
    for _ in range(100):
        learner.meta_gradient(theta, task)
        in_use.append(torch.cuda.memory_allocated())
    assert max(in_use[-10:]) <= max(in_use[:10])


@DEVICES
@pytest.mark.parametrize("by", ["none", "layer"])
def test_a_run_resumes_on_either_device(device, by, train, tmp_path):
    trainer, learner = {"cpu": "cpu", "cuda": "gpu"}[device], ["learner=imaml", f"learner.strengths.by={by}"]
    assert train(*learner, f"trainer={trainer}").returncode == 0
    for place, epochs in (("cpu", 2), (trainer, 3)):
        resumed = train(*learner, f"trainer={place}", "ckpt_path=last", f"trainer.max_epochs={epochs}")
        assert resumed.returncode == 0, resumed.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.isfinite(flatten(state.values())).all()
