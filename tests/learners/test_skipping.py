"""Outer steps whose gradient is not finite or explodes: skipped, told, and not for ever."""

import copy
from dataclasses import replace

import pytest
import torch
from test_learners import episode, make, trainer

from metaseg.errors import MetasegError
from metaseg.training.outer import MetaTraining
from metaseg.training.skipping import Skipping

NAN, INFINITE, HUGE = float("nan"), float("inf"), 1e9


def trained(factors, skipping):
    """The learner after outer steps whose gradients are multiplied by these factors; and what was logged."""
    learner, logged = make("fomaml"), []
    usual, remaining = learner.meta_gradient, iter(factors)

    def spoilt(theta, task):
        result = usual(theta, task)
        return replace(result, gradient=result.gradient * next(remaining))

    learner.meta_gradient = spoilt
    training = MetaTraining(learner, skipping=skipping)
    training.log_dict = lambda values, **_: None
    training.log = lambda name, value, **_: logged.append((name, value))
    steps = [[episode(number)] for number, _ in enumerate(factors)]
    batches = torch.utils.data.DataLoader(steps, batch_size=None, collate_fn=lambda x: x)
    trainer(max_epochs=1).fit(training, batches)
    return learner, [value for name, value in logged if name == "train/skipped"]


@pytest.mark.parametrize("bad", [NAN, INFINITE, HUGE])
def test_a_step_is_skipped_and_leaves_no_trace(bad, caplog):
    learner, skipped = trained([1, bad, 1], Skipping(largest=1e6))
    assert skipped == [1, 1]
    (record,) = [one for one in caplog.records if one.name == "metaseg.training.skipping"]
    assert record.message.startswith("Outer step 1 was skipped: its gradient has norm")
    before = copy.deepcopy(trained([1], Skipping())[0].theta())
    after_skip, _ = trained([1, bad], Skipping(largest=1e6))
    for name, value in after_skip.theta().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert any((value != before[name]).any() for name, value in learner.theta().items())
    assert all(torch.isfinite(value).all() for value in learner.theta().values())


def test_a_large_gradient_is_taken_where_no_bound_is_set():
    assert trained([1, HUGE], Skipping(largest=None))[1] == []


def test_too_many_in_a_row_end_the_run_and_scattered_ones_do_not():
    with pytest.raises(MetasegError, match="2 times in a row"):
        trained([1, NAN, NAN], Skipping(most=2))
    assert trained([NAN, 1, NAN, 1], Skipping(most=2))[1] == [1, 1, 2, 2]


@pytest.mark.parametrize(("step", "remedy"), [(0, "check the loss"), (1, "ckpt_path=last continues")])
def test_the_remedy_depends_on_whether_a_step_was_ever_taken(step, remedy):
    with pytest.raises(MetasegError, match=f"1 time in a row; .*{remedy}"):
        Skipping(most=1).skips(NAN, step, [NAN])


@pytest.mark.parametrize("name", ["imaml", "maml", "reptile", "joint"])
def test_a_task_that_is_not_finite_gives_a_gradient_that_is_not(name):
    """So that the step is skipped, instead of the learner failing or hiding it."""
    task = episode()
    task.query_images[0, 0, 0, 0] = task.support_images[0, 0, 0, 0] = NAN
    learner = make(name)
    learner.inner_curvature = 2.0
    assert not torch.isfinite(learner.meta_gradient(learner.theta(), task).gradient).all()


def test_a_gradient_by_lambda_that_is_not_finite_skips_the_step():
    learner = make("imaml", strengths={"by": "part", "lr": 0.2})
    usual = learner.meta_gradient
    learner.meta_gradient = lambda *given: replace(usual(*given), by_strengths=torch.full((3,), NAN))
    training = MetaTraining(learner)
    training.log = lambda *_, **__: None
    training._step = lambda *_: pytest.fail("the step is to be skipped")
    training.training_step([episode()], 0)
    assert training.skipping.total == 1
