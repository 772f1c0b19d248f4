"""`python -m benchmarks adaptation`."""

import json

import numpy as np
import pytest

from benchmarks import adaptation
from benchmarks.__main__ import main
from benchmarks.setting import Setting
from metaseg.data.batches import SupportSet

TINY = ("model=attention_unet", "model.features=2", "protocol.adapt.steps=4", "protocol.adapt.folds=2")


pytestmark = pytest.mark.usefixtures("kept_threads")


@pytest.mark.long
@pytest.mark.slow
def test_command_writes_dice_over_seconds_and_the_ratio_to_plain_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "RECIPES", {"tiny": TINY})
    options = ["--size", "32", "--shots", "2", "--images", "5", "--repeats", "2", "--threads", "1"]
    main(["adaptation", *options, "--out", str(tmp_path)])
    content, table = (tmp_path / f"adaptation_cpu.{kind}" for kind in ("json", "md"))
    found = json.loads(content.read_text())["numbers"]["tiny"]
    assert len(found["ratios"]) == 2
    assert min(found["curve"]["seconds"]) > 0
    assert len(found["curve"]["dice"]) == 5  # at 0, 1, 2, 3 and 4 steps; an eighth of four steps is none
    assert "| tiny | 3 × 4 |" in table.read_text()


def test_plain_passes_run_through_as_many_images_as_adaptation(monkeypatch):
    learner = adaptation.learner_of(TINY, Setting(size=32, shots=3))
    support = SupportSet(np.zeros((3, 32, 32, 3), np.uint8), np.zeros((3, 32, 32), np.uint8), "none", 0)
    seen: list[int] = []

    def count(_, images, output):
        seen.append(len(images[0]))

    learner.network.register_forward_hook(count)
    adaptation.plain_passes(learner, support)
    assert seen == [3, 1, 2] * 4
