import csv
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metaseg.errors import MetasegError
from metaseg.runs.directory import PER_IMAGE_COLUMNS, RunDirectory, write_csv, write_json
from metaseg.runs.result import Cost
from metaseg.system import replacing


def test_json_turns_what_json_cannot_express_into_null_and_plain_types(tmp_path):
    value = {
        "nan": float("nan"),
        "inf": [np.float32("inf"), 1.5],
        "array": np.array([[1, 2], [3, 4]]),
        "array_nan": np.array([np.nan, 0.25]),
        "flag": np.bool_(True),
        "path": Path("a/b"),
        "tuple": (1, None),
        3: "κ",
    }
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {
        "nan": None,
        "inf": [None, 1.5],
        "array": [[1, 2], [3, 4]],
        "array_nan": [None, 0.25],
        "flag": True,
        "path": str(Path("a/b")),
        "tuple": [1, None],
        "3": "κ",
    }


def test_its_folders_are_made(tmp_path):
    run = RunDirectory(tmp_path / "new" / "run").create()
    assert run.checkpoints.is_dir()
    assert run.figures.is_dir()


def test_the_cost_of_training_is_read_as_it_was_written(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.read_compute() is None
    cost = Cost(outer_steps=3, operations=1e9, passes=None, seconds=0.5)
    run.write_compute(cost)
    assert run.read_compute() == cost
    run.compute.write_text('{"outer_steps": 3.5}')
    with pytest.raises(MetasegError, match=r"compute\.json: outer_steps .*found 3\.5"):
        run.read_compute()


def test_per_image_has_the_agreed_columns_and_refuses_others(tmp_path):
    run = RunDirectory(tmp_path)
    row = dict(
        zip(PER_IMAGE_COLUMNS, ["isic", "ISIC_1, left", 0, 0.25, 0.2, np.float64(0.5), None, 0.3, None, 3], strict=True)
    )
    run.write_per_image([row])
    with run.per_image.open(newline="") as file:
        assert list(csv.reader(file)) == [
            list(PER_IMAGE_COLUMNS),
            ["isic", "ISIC_1, left", "0", "0.25", "0.2", "0.5", "", "0.3", "", "3"],
        ]
    with pytest.raises(ValueError, match="row 0"):
        run.write_per_image([row | {"more": 1}])
    assert run.per_image.read_text().count("\n") == 2
    for compress, name in ((True, "per_image.csv.gz"), (False, "per_image.csv")):  # the run is tested again
        run.write_per_image([row], compress)
        assert [path.name for path in tmp_path.glob("per_image*")] == [name]


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "scores.csv"
    write_csv(path, [{"a": 1}], ["a"])

    def rows():
        yield {"a": 2}
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(MetasegError, match=r"scores\.csv could not be written \(No space left on device\)"):
        write_csv(path, rows(), ["a"])
    assert path.read_text().split() == ["a", "1"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.csv"]


def test_file_in_the_place_of_a_folder_is_reported(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(MetasegError, match=r"result\.json could not be written"):
        write_json(tmp_path / "run" / "result.json", {})
    with pytest.raises(MetasegError, match="checkpoints could not be written"):
        RunDirectory(tmp_path / "run").create()


@pytest.mark.long
def test_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"old": True})
    program = (
        "import pathlib, sys, time\n"
        "from metaseg.system import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('{')\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert json.loads(path.read_text()) == {"old": True}


def test_written_files_are_readable_by_the_group(tmp_path):
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "x.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o644
