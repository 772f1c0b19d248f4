"""Every table of the paper, end to end on synthetic twins at toy size: its cells, and its report."""

import pandas as pd
import pytest

from metaseg.cli.report import main
from metaseg.runs.tables import NUMBERS, load_table


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """One directory for all tables, so that cells of several tables run once."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.parametrize("number", NUMBERS)
def test_every_table_runs_end_to_end_on_the_twins(program, tmp_path, results, number):
    finished = program(
        "train.py", f"experiment=table{number}", "scale=toy", "shots=5", "seed=0", "tasks.count=4",
        "hydra/launcher=basic", f"hydra.sweep.dir={results}", "-m", directory=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    cells = {path.parent for path in results.rglob("result.json")}
    assert len(cells) >= 3
    assert main([str(results)]) == 0
    page = (results / "report" / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    rows = pd.read_csv(results / "report" / f"table{number}.csv")
    assert len(rows) >= len(load_table(number).rows)


def test_a_table_whose_cells_are_there_is_finished_at_once(program, tmp_path, results):
    settings = ["experiment=table7", "scale=toy", "shots=5", "seed=0", "tasks.count=4", "hydra/launcher=basic"]
    first = program("train.py", *settings, f"hydra.sweep.dir={results}", "-m", directory=tmp_path)
    assert first.returncode == 0, first.stderr
    again = program("train.py", *settings, f"hydra.sweep.dir={results}", "-m", directory=tmp_path)
    assert "3 cells" in again.stdout
    assert "3 finished, 0 to continue, 0 to run" in again.stdout
