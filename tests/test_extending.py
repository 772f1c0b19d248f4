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
    file = tmp_path / "conf" / "learner" / "signed.yaml"
    file.write_text(settings.replace("metaseg.learners.signed", "signed"))
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["learner=signed", "--config-dir", str(tmp_path / "conf")]
    done = train(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["settings"]["learner"]["name"] == "signed"
    file.write_text(file.read_text().replace("name: signed", "name: fomaml"))  # would fill that learner's rows
    refused = train(*arguments, directory=tmp_path / "second")
    assert refused.returncode == 1
    assert "learner.name must be signed, as its file in conf/learner, found fomaml" in refused.stderr


def test_the_files_it_names_are_there():
    for path in re.findall(r"(?:metaseg|conf|tests)/[\w./]+\.(?:py|yaml)", TEXT):
        if "signed" not in path:
            assert (ROOT / path).is_file(), path
