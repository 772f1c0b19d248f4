"""The tables of the paper on synthetic twins at toy size: their cells, and the report of them."""

import pandas as pd
import pytest
from conftest import command

from metaseg.runs.tables import NUMBERS, load_table

main = command("report")

TOY = ["scale=toy", "shots=5", "seed=0", "tasks.count=4", "hydra/launcher=basic"]
TOY += ["protocol.adapt.folds=0", "protocol.inner.steps=1", "protocol.free_steps=1"]
A_LEARNER_OF_EACH_KIND = "learner=fomaml,feyjie,scratch"
"""By an inner loop, by comparison, and on the support set alone."""


def test_cells_run_are_reported_and_finished_at_once_when_asked_for_again(program, tmp_path):
    settings = ["experiment=table2", A_LEARNER_OF_EACH_KIND, *TOY, f"hydra.sweep.dir={tmp_path / 'results'}", "-m"]
    finished = program("train.py", *settings, directory=tmp_path)
    assert finished.returncode == 0, finished.stderr
    check_report(tmp_path / "results", 2, cells=3)
    again = program("train.py", *settings, directory=tmp_path)
    assert "3 finished, 0 to continue, 0 to run" in again.stdout


@pytest.fixture(autouse=True)
def small_figures(monkeypatch):
    """The report draws all its figures, but small."""
    monkeypatch.setattr("metaseg.plots.figures.DOTS", 20)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One directory for all tables, so that cells of several tables run once."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_every_table_runs_end_to_end(program, tmp_path, results, number):
    finished = program(
        "train.py", f"experiment=table{number}", *TOY, f"hydra.sweep.dir={results}", "-m", directory=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    check_report(results, number, cells=3)


def check_report(results, number, cells):
    assert len({path.parent for path in results.rglob("result.json")}) >= cells
    assert main([str(results)]) == 0
    page = (results / "report" / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert len(pd.read_csv(results / "report" / f"table{number}.csv")) >= len(load_table(number).rows)
