"""`python -m benchmarks own_images`."""

import json

import numpy as np
import pytest
from conftest import lesion

import metaseg
from benchmarks import own_images, unannotated
from benchmarks.__main__ import main

pytestmark = pytest.mark.usefixtures("kept_threads")


def test_each_draw_is_measured_once_and_kept(trained, folders, tmp_path, monkeypatch, capsys):
    model = metaseg.load(trained)
    monkeypatch.setattr(metaseg, "load", lambda **_: model)
    monkeypatch.setattr(unannotated, "network", lambda: lambda images: images[:, :1])
    options = ["--of", "1", "2", "--draws", "1", "--images", "2", "--steps", "2", "--threads", "1"]
    command = ["own_images", str(folders / "support"), *options, "--out", str(tmp_path / "out")]
    main(command)
    record, content = (tmp_path / "out" / name for name in ("own_images.jsonl", "own_images_cpu.json"))
    one, two = (json.loads(line) for line in record.read_text().splitlines())
    assert (one["shots"], two["shots"]) == (1, 2)
    assert one["held_out"] is None
    assert len(two["held_out"]) == 2
    assert 0 <= two["dice"] <= 1
    assert two["unannotated"] > 0.9
    assert set(two["ranks"]) == {"soft", "agreement"}
    assert len(json.loads(content.read_text())["numbers"]["draws"]) == 2

    monkeypatch.setattr(own_images, "measured", lambda *_, **__: pytest.fail("measured again"))
    main(command)
    with pytest.raises(SystemExit, match="1"):
        main([*command, "--seed", "3"])
    assert "found seed=3 (was 0)" in capsys.readouterr().err


def test_salient_objects_are_found_at_the_size_of_each_image():
    images, masks = zip(*(lesion(number, size) for number, size in enumerate([(48, 64), (70, 50)])), strict=True)
    found = unannotated.salient(images, lambda images: 7 * images.mean(1, keepdims=True) - 3)
    for one, mask in zip(found, masks, strict=True):
        assert one.shape == mask.shape
        assert np.mean(one == mask) > 0.95


def test_without_its_extra_there_is_no_salient_object_network(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert unannotated.network() is None
