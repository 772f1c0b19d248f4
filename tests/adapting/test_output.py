"""Results take the place of earlier ones only when they are whole."""

from pathlib import Path

import pytest
from test_adapt_command import contents

from metaseg.adapting import output
from metaseg.adapting.results import RESULTS
from metaseg.errors import MetasegError


def write(folder, names, text):
    for name in names:
        for part in ("masks", "overlays"):
            (folder / part).mkdir(exist_ok=True)
            (folder / part / f"{name}.png").write_text(text)
    (folder / RESULTS).write_text("image\n" + "".join(f"{name}\n" for name in names))


def stop_midway(out, names, error):
    with output.replaced(out, overwrite=True) as folder:
        write(folder, names, "new")
        raise error


@pytest.fixture
def earlier(tmp_path):
    """A folder of results, with the user's own files among them."""
    with output.replaced(tmp_path / "out") as folder:
        write(folder, ["a", "b"], "old")
    for own in ("notes.txt", "masks/mine.png"):
        (tmp_path / "out" / own).write_text("mine")
    return tmp_path / "out"


def test_new_results_replace_all_earlier_ones_and_nothing_else(earlier):
    with output.replaced(earlier, overwrite=True) as folder:
        write(folder, ["b", "c"], "new")
    found = {str(path.relative_to(earlier)): text for path, text in contents(earlier).items()}
    mine = {"notes.txt": b"mine", "masks/mine.png": b"mine"}
    new = {f"{part}/{name}.png": b"new" for part in ("masks", "overlays") for name in "bc"}
    assert found == mine | new | {RESULTS: b"image\nb\nc\n"}


@pytest.mark.parametrize("stopped", [MetasegError, KeyboardInterrupt, ZeroDivisionError])
def test_earlier_results_stay_if_the_new_ones_are_not_whole(earlier, stopped):
    before = contents(earlier)
    with pytest.raises(stopped):
        stop_midway(earlier, ["b", "c"], stopped)
    assert contents(earlier) == before


def test_new_results_that_cannot_take_the_place_of_earlier_ones_are_kept(earlier):
    (earlier / "masks" / "c.png").mkdir()
    for number in (1, 2):
        name = f"not-replaced-{number}"
        with pytest.raises(MetasegError, match=name), output.replaced(earlier, overwrite=True) as folder:
            write(folder, ["b", "c"], f"new {number}")
        assert (earlier / "masks" / "b.png").read_text() == f"new {number}"
        assert (earlier / name / "masks" / "c.png").read_text() == f"new {number}"
    assert (earlier / "not-replaced-1" / "masks" / "c.png").read_text() == "new 1"


def test_nothing_is_replaced_if_the_table_is_not(earlier, monkeypatch):
    before = contents(earlier)
    replace = Path.replace

    def locked(path, target):
        if path.name == RESULTS:
            raise PermissionError(13, "Permission denied", str(target))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", locked)
    with pytest.raises(MetasegError, match="not-replaced-1"), output.replaced(earlier, overwrite=True) as folder:
        write(folder, ["b", "c"], "new")
    after = contents(earlier)
    assert {path: after[path] for path in before} == before


def test_a_segmenter_in_use_is_not_removed(earlier):
    for name in output.SEGMENTERS:
        (earlier / name).write_text("old")
    with output.replaced(earlier, overwrite=True, kept=str(earlier / "masks" / ".." / output.SEGMENTERS[0])) as folder:
        write(folder, ["b"], "new")
    assert [(earlier / name).exists() for name in output.SEGMENTERS] == [True, False, False]


def test_an_empty_result_leaves_earlier_results(earlier):
    before = contents(earlier)
    with output.replaced(earlier, overwrite=True):
        pass
    assert contents(earlier) == before


def test_leftovers_of_a_killed_call_are_removed(earlier):
    leftover = earlier / output._UNFINISHED / "masks" / "z.png"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    with output.replaced(earlier, overwrite=True) as folder:
        write(folder, ["c"], "new")
    assert not leftover.exists()
    assert not (earlier / "masks" / "z.png").exists()


def test_incomplete_first_results_are_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stop_midway(tmp_path / "out", ["a"], KeyboardInterrupt)
    assert (tmp_path / "out" / "masks" / "a.png").read_text() == "new"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MetasegError, match=r"file.out.*choose another"), output.replaced(tmp_path / "file" / "out"):
        pass


def test_a_folder_serves_one_call_at_a_time(tmp_path):
    out = tmp_path / "out"
    with output.replaced(out) as folder:
        write(folder, ["a"], "new")
        with pytest.raises(MetasegError, match=r"no other call to write to out="), output.replaced(out, overwrite=True):
            pass
    # The second call had passed its check before the first one ended.
    with pytest.raises(MetasegError, match="of an earlier call"), output.replaced(out):
        pass
    assert sorted(path.name for path in out.iterdir()) == ["masks", "overlays", RESULTS]
