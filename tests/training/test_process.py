import sys

import pytest

from metaseg.training.process import interruptible


def lightning_interrupted():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def test_an_interruption_comes_out_as_such_though_the_trainer_exits():
    with pytest.raises(KeyboardInterrupt), interruptible():
        lightning_interrupted()


def test_other_exits_and_errors_pass():
    with pytest.raises(SystemExit) as end, interruptible():
        sys.exit(3)
    assert end.value.code == 3
    with pytest.raises(ValueError, match="other"), interruptible():
        raise ValueError("other")
