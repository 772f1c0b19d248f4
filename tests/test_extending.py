"""docs/extending.md does what it says: its learner, as printed there, trains and is tested."""

import json
import re

from conftest import ROOT

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_the_printed_learner_is_one_file_and_one_yaml(train, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (settings,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "signed.py").write_text(code)
    (tmp_path / "conf" / "learner").mkdir(parents=True)
    (tmp_path / "conf" / "learner" / "signed.yaml").write_text(settings.replace("metaseg.learners.signed", "signed"))
    monkeypatch.syspath_prepend(tmp_path)
    done = train("learner=signed", f"hydra.searchpath=[file://{tmp_path / 'conf'}]")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["settings"]["learner"]["name"] == "signed"


def test_the_files_it_names_are_there():
    for path in re.findall(r"(?:metaseg|conf|tests)/[\w./]+\.(?:py|yaml)", TEXT):
        if "signed" not in path:
            assert (ROOT / path).is_file(), path
