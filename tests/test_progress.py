"""Progress of long work: what is said where, when and how often."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import settings_of

from metaseg.data.module import Target
from metaseg.data.pools import prepare_arrays
from metaseg.evaluation.metatest import score_target
from metaseg.evaluation.metatest import work as work_of
from metaseg.evaluation.work import Work, reporter
from metaseg.progress import EVERY, Progress, duration
from metaseg.training.callbacks import TrainingProgress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pipe():
    return io.StringIO()


def work(progress, clock, steps, seconds, first=0, **values):
    for done in range(first + 1, first + steps + 1):
        clock.now += seconds
        progress.update(done, values=values)


def lines(stream):
    return stream.getvalue().splitlines()


def test_a_pipe_gets_an_early_line_then_one_every_few_seconds_and_one_at_the_end(clock, pipe):
    with Progress("training", 40, "steps", stream=pipe, clock=clock) as progress:
        work(progress, clock, steps=40, seconds=1, loss="0.43")
        inside = lines(pipe)
    assert len(inside) == 40 / EVERY
    assert [re.search(r"(\d+)/40 steps", line)[1] for line in inside[:3]] == ["1", "6", "11"]
    assert all(line.startswith("training") and "loss 0.43" in line for line in inside)
    assert "0:34 left" in inside[1]
    (last,) = lines(pipe)[len(inside) :]
    assert "40/40 steps" in last
    assert "0:40" in last
    assert "left" not in last
    assert "\x1b" not in pipe.getvalue()
    assert "\r" not in pipe.getvalue()


def test_short_work_gets_one_line(clock, pipe):
    with Progress("adapting", None, "steps", stream=pipe, clock=clock) as progress:
        clock.now += 0.4
        progress.update(3, 3)
    (line,) = lines(pipe)
    assert "3/3 steps" in line


def test_brief_work_is_mentioned_only_where_it_takes_long(clock, pipe):
    with Progress("drawing", stream=pipe, clock=clock, brief=True):
        clock.now += 0.4
    assert lines(pipe) == []
    with Progress("drawing", stream=pipe, clock=clock, brief=True) as progress:
        clock.now += 3
        progress.note("figures")
    assert len(lines(pipe)) == 2
    assert "figures" in lines(pipe)[0]


def test_lines_appear_though_the_work_reports_nothing(clock, pipe):
    with Progress("training", 4, "steps", stream=pipe, clock=clock) as progress:
        for _ in range(11):
            clock.now += 1
            progress._speak()  # as the thread beside the work does
        assert len(lines(pipe)) == 3
        assert all("0/4 steps" in line for line in lines(pipe))


def test_silence_on_request(clock, pipe):
    for stream in (pipe, Terminal()):
        with Progress("training", 4, "steps", stream=stream, clock=clock, shown=False) as progress:
            work(progress, clock, steps=4, seconds=10)
            progress.note("validating")
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    with Progress("training", 8, "steps", stream=terminal, clock=clock) as progress:
        work(progress, clock, steps=8, seconds=1, Dice="71.2 %")
        clock.now += 0.5
    shown = terminal.getvalue()
    assert "training" in shown
    assert "━" in shown
    assert "8/8 steps" in shown
    assert "Dice 71.2 %" in shown
    assert "took 0:08" in shown


def test_a_terminal_that_cannot_draw_gets_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with Progress("training", 8, "steps", stream=terminal, clock=clock) as progress:
        work(progress, clock, steps=8, seconds=1)
    assert "\x1b" not in terminal.getvalue()
    assert len(lines(terminal)) == 3


def test_resumed_work_is_timed_by_what_is_done_now(clock, pipe):
    with Progress("training", 160, "steps", done=120, stream=pipe, clock=clock) as progress:
        work(progress, clock, steps=10, seconds=2, first=120)
        assert "130/160 steps" in progress.text()
        assert "1:00 left" in progress.text()


def test_the_time_left_follows_a_change_of_pace(clock, pipe):
    with Progress("training", 100, "steps", stream=pipe, clock=clock) as progress:
        work(progress, clock, steps=20, seconds=0.1)
        work(progress, clock, steps=20, seconds=2, first=20)
        assert "2:00 left" in progress.text()


def test_the_time_left_counts_down_between_reports_and_waits_for_late_ones(clock, pipe):
    with Progress("training", 10, "steps", stream=pipe, clock=clock) as progress:
        work(progress, clock, steps=2, seconds=10)
        assert "1:20 left" in progress.text()
        clock.now += 4
        assert "1:16 left" in progress.text()
        clock.now += 400
        assert "1:10 left" in progress.text()


def test_the_count_never_goes_back(clock, pipe):
    with Progress("training", 10, "steps", stream=pipe, clock=clock) as progress:
        progress.update(4)
        progress.update(3)
        assert "4/10 steps" in progress.text()


def test_failed_work_has_no_final_line(clock, pipe):
    def fails(seconds):
        clock.now += seconds
        progress.update(1)
        raise ValueError

    for seconds, said in ((0.1, 0), (2, 2)):
        stream = io.StringIO()
        progress = Progress("training", 4, "steps", stream=stream, clock=clock)
        with pytest.raises(ValueError), progress:  # noqa: PT011
            fails(seconds)
        assert len(lines(stream)) == said
        assert "took" not in stream.getvalue()
    progress.stop()
    assert len(lines(stream)) == 2


def test_progress_survives_a_closed_pipe(clock):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with Progress("training", 9, "steps", stream=Closed(), clock=clock) as progress:
        work(progress, clock, steps=9, seconds=6)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


WORK = Work(draws=2, steps=10, support=5, points={0: (8, 1), 4: (2, 4), 10: (8, 4)})


def test_the_work_of_a_test_ends_at_its_total():
    assert WORK.of_draw == 3 * 10 * 5 + 8 + 2 * 4 + 8 * 4
    places = [(0, 0, 0), (0, 0, 8), (0, 2, 0), (0, 4, 0), (0, 4, 2), (0, 10, 0), (0, 10, 5), (0, 10, 8), (1, 0, 0)]
    done = [WORK.done(*place) for place in places]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-2] == done[-1] == WORK.of_draw
    assert WORK.done(1, 10, 8) == WORK.total
    assert WORK.done(1, 10, 9) == WORK.total  # a draw may score more images than the first


def test_a_test_names_its_current_target_and_counts_all_of_them(clock, pipe):
    parts = {"isic": WORK, "isic from scratch": WORK}
    with Progress("testing", 2 * WORK.total, "%", stream=pipe, clock=clock) as progress:
        report = reporter(progress, parts, "isic from scratch")
        clock.now += 10
        report(0, 0, 0)
        assert "50 %" in progress.text()
        assert "isic from scratch" in progress.text()
        clock.now += 10
        report(1, 10, 8)
        assert "100 %" in progress.text()
        assert "2/2" in progress.text()


class Adapting:
    """A learner of so many steps; it tells of each of them, or of none."""

    device = torch.device("cpu")

    def __init__(self, steps, tells):
        self.adapt_loop, self.tells = SimpleNamespace(steps=steps, schedule="constant"), tells

    def passes(self, images):
        return 2.0 * images, 3

    def after_inner(self, support):
        return None

    def adaptation(self, support, at, progress):
        last = max(at)
        for step in range(last + 1):
            if step and self.tells:
                progress(step, last)
            if step in at:
                yield step, lambda images: torch.ones(len(images), 1, *images.shape[2:])


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("steps", [0, 6])
def test_a_test_reports_its_progress_from_start_to_end(steps, tells):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    pool = prepare_arrays("kvasir", images, (images[..., 0] > 127).astype(np.uint8))
    target = Target.of(pool, 0, 0)
    evaluation = ("draws=2", "limit=8", "batch=3", "curve=[0,2,9]", "curve_limit=4")
    how = settings_of("shots=3", *(f"evaluation.{one}" for one in evaluation))
    learner = Adapting(steps, tells)
    whole = work_of(learner, target, how)
    assert {step: networks for step, (_, networks) in whole.points.items()} == (
        {0: 1, 2: 3, 6: 4, 9: 3} if steps else {0: 1}
    )
    assert whole.points[0] == (8, 1)
    places = []
    score_target(learner, target, how, lambda *place: places.append(place))
    done = [whole.done(*place) for place in places]
    assert done == sorted(done)
    assert done[0] == 0 or tells
    assert done[-1] == whole.total
    if steps and tells:
        assert {(0, step, 0) for step in range(10)} < set(places)


def trainer(**changes):
    start = {"is_global_zero": True, "estimated_stepping_batches": 8, "global_step": 0, "num_val_batches": [3]}
    return SimpleNamespace(**start | {"progress_bar_metrics": {}} | changes)


def test_training_is_counted_from_where_it_stands_and_validation_is_named(clock, pipe, monkeypatch):
    monkeypatch.setattr(
        "metaseg.training.callbacks.Progress", lambda *a, **k: Progress(*a, **k, stream=pipe, clock=clock)
    )
    run = trainer(global_step=4)
    callback = TrainingProgress()
    callback.on_train_start(run)
    run.global_step, run.progress_bar_metrics = 5, {"loss": 0.4321}
    clock.now += 6
    callback.on_train_batch_end(run)
    callback.on_validation_start(run)
    callback.on_validation_batch_end(run)
    clock.now += 6
    callback.on_validation_batch_end(run)
    run.progress_bar_metrics |= {"dice": 0.712}
    clock.now += 6
    callback.on_validation_end(run)
    callback.on_train_end(run)
    training, validating, validated, end = lines(pipe)
    assert "5/8 steps" in training
    assert "loss 0.432" in training
    assert "validating 2/3" in validating
    assert "Dice" not in validating
    assert "validating" not in validated
    assert "5/8 steps" in end  # stopped early
    assert "Dice 71.2 %" in end
    callback.on_exception(run)
    assert len(lines(pipe)) == 4


def test_only_rank_zero_speaks(clock, pipe, monkeypatch):
    monkeypatch.setattr(
        "metaseg.training.callbacks.Progress", lambda *a, **k: Progress(*a, **k, stream=pipe, clock=clock)
    )
    for callback, run in ((TrainingProgress(), trainer(is_global_zero=False)), (TrainingProgress(False), trainer())):
        callback.on_train_start(run)
        clock.now += 60
        callback.on_train_batch_end(run)
        callback.on_validation_start(run)
        callback.on_validation_end(run)
        callback.on_train_end(run)
    assert pipe.getvalue() == ""
