import signal
import sys
import threading
import time

import pytest

from metaseg import interruption
from metaseg.interruption import Interruption, like_ctrl_c

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize("number", NUMBERS[1:])
def test_a_closed_terminal_or_a_scheduler_interrupts_as_ctrl_c_does(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), like_ctrl_c():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_noted_and_the_second_ends_at_once(number):
    request, before = Interruption(), signal.getsignal(number)
    with request.heeded():
        signal.raise_signal(number)
        assert request.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        request.requested = False
    assert signal.getsignal(number) is before


def test_work_that_ends_by_itself_after_a_signal_is_interrupted_all_the_same():
    with pytest.raises(KeyboardInterrupt), Interruption().heeded():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "PATIENCE"), (signal.SIGUSR1, "LONG_PATIENCE")])
def test_patience_has_an_end(monkeypatch, number, name):
    monkeypatch.setattr(interruption, name, 0.05)
    began, request, before = time.monotonic(), Interruption(), signal.getsignal(signal.SIGALRM)
    with request.heeded():
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20)
        request.requested = False
    assert time.monotonic() - began < 7
    assert signal.getsignal(signal.SIGALRM) is before


def test_sigterm_is_noted_whatever_handler_another_library_sets():
    request = Interruption()
    with request.heeded():
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("another library's"))
        request.note_sigterm()
        signal.raise_signal(signal.SIGTERM)
        assert request.requested
        request.requested = False


def lightning_interrupted():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def test_an_interruption_comes_out_as_such_though_the_trainer_exits():
    with pytest.raises(KeyboardInterrupt), Interruption().heeded():
        lightning_interrupted()


def test_other_exits_and_errors_pass():
    with pytest.raises(SystemExit) as end, Interruption().heeded():
        sys.exit(3)
    assert end.value.code == 3
    with pytest.raises(ValueError, match="other"), Interruption().heeded():
        raise ValueError("other")


def test_threads_leave_signals_alone():
    seen = []

    def work():
        with like_ctrl_c(), Interruption().heeded():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
