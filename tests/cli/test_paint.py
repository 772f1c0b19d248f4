"""`metaseg data paint`: images as someone's own would lie there."""

import numpy as np
import pytest
from conftest import command
from PIL import Image

from metaseg.adapting.files import annotated_in
from metaseg.data.synthetic.twins import TWIN_SEED, twin

main = command("data")


def test_painted_images_are_those_of_the_twin(tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(["paint", "isic", "--count", "3", "--first", "2", "--size", "32", "--out", str(out)]) == 0
    assert "3 synthetic images" in capsys.readouterr().out
    images, masks, ids, _ = twin("isic", 5, 32, TWIN_SEED)
    found = annotated_in(out)
    assert [one.image.name for one in found] == list(ids[2:])
    for one, image, mask in zip(found, images[2:], masks[2:], strict=True):
        assert np.array_equal(one.image.read(), image)
        assert np.array_equal(one.mask.read_mask().values > 0, mask > 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["isic", "ph2"], "paint needs one dataset"),
        (["isic", "--count", "0"], "--count from 1"),
        (["isic", "--first", "-1"], "--first from 0"),
        (["isic", "--size", "8"], "size ≥ 32"),
        (["mars"], "mars"),
    ],
)
def test_invalid_input_is_refused_in_one_sentence(tmp_path, capsys, arguments, words):
    assert main(["paint", *arguments, "--out", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert words in said
    assert not (tmp_path / "new").exists()


def test_impossible_folders_are_reported(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["paint", "isic", "--count", "1", "--size", "32", "--out", str(tmp_path / "file" / "new")]) == 1
    assert "could not be written" in capsys.readouterr().err


def test_existing_files_are_kept(tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "masks" / "mine.png")
    assert main(["paint", "isic", "--count", "1", "--size", "32", "--out", str(tmp_path)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.png")] == ["mine.png"]
