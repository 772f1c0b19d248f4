"""The saved report: built and checked without network."""

import json
import sys

import pytest
from conftest import command

from metaseg.errors import MetasegError
from metaseg.tracking import dashboard

main = command("dashboard")


pytestmark = pytest.mark.usefixtures("no_account")


def test_a_dry_run_lists_the_panels(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(["team/metaseg", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Relative residual of conjugate gradient: train/cg_residual" in said
    assert "progress/kvasir" in said


def test_missing_package_gives_a_one_sentence_error(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(["team/metaseg"]) == 1
    assert "[dashboard]" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["metaseg"], ["a/b/c"], ["/metaseg"], ["a/b", "--tables", "9"]])
def test_wrong_arguments_are_refused(arguments, capsys):
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "`metaseg dashboard --help`" in said


def test_the_report_holds_all_panels_in_their_places():
    pytest.importorskip("wandb_workspaces")
    report = dashboard.build("team", "metaseg", [3, 5])
    spec = json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))  # what save() sends
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    wanted = dashboard.sections()
    assert len(grids) == len(wanted)
    for grid, section in zip(grids, wanted, strict=True):
        (runs,) = grid["runSets"]
        assert runs["filters"]["filters"][0]["key"] == {"section": "run", "name": "tags"}
        assert runs["filters"]["filters"][0]["value"] == ["table 3", "table 5"]
        assert runs["grouping"] == ([{"section": "config", "name": "cell.value"}] if section.by_cell else [])
        panels = grid["panelBankSectionConfig"]["panels"]
        for panel, one in zip(panels, section.panels, strict=True):
            text = json.dumps(panel)
            assert all(json.dumps(key) in text for key in one.keys), one.title
            assert panel["layout"]["x"] + panel["layout"]["w"] <= 24
            if one.x:
                assert panel["config"]["xAxis"] == one.x
        places = {(panel["layout"]["x"], panel["layout"]["y"]) for panel in panels}
        assert len(places) == len(panels)


def test_without_an_account_the_report_is_not_sent():
    pytest.importorskip("wandb_workspaces")
    with pytest.raises(MetasegError, match="API key"):
        dashboard.save(dashboard.build("team", "metaseg"))


def test_a_refusal_gives_a_one_sentence_error(monkeypatch):
    class Refused:
        def save(self):
            raise ValueError("no such\nproject")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(MetasegError, match="no such project"):
        dashboard.save(Refused())
