"""What a wheel holds, and that its command works far from any checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, environment, lesion
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None


@pytest.mark.skipif(tomllib is None, reason="needs tomllib of Python 3.11")
def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "metaseg").rglob("*.py")}
    assert listed == there | {"metaseg.conf", "hydra_plugins"}


SOURCES = ("metaseg", "hydra_plugins", "conf", "README.md", "LICENSE", "pyproject.toml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the files that git knows or would add, so that nothing else in the checkout gets into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", *SOURCES],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    (source / "conf" / "local").mkdir()
    (source / "conf" / "local" / "train.yaml").write_text("seed: 1\n")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.long
def test_the_wheel_holds_code_configuration_and_templates(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "metaseg").rglob("*.py")}
    conf = [path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")]
    wanted |= {f"metaseg/conf/{path}" for path in conf if path.parts[0] != "local"}
    wanted |= {"metaseg/reporting/templates/report.html", "hydra_plugins/metaseg_plugins.py"}
    assert wanted <= held
    assert not any("/local/" in name for name in held)


@pytest.mark.long
@pytest.mark.slow
def test_the_installed_command_trains_adapts_and_reports(wheel, tmp_path):
    """With the libraries of this environment, but neither its metaseg nor the checkout."""
    place, home = tmp_path / "work", tmp_path / "venv"
    place.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    program = home / ("Scripts" if sys.platform == "win32" else "bin")
    (site,) = {Path(line) for line in _python(program, "import sysconfig; print(sysconfig.get_path('purelib'))")}
    install = [sys.executable, "-m", "pip", "--python", program / "python", "install", "--no-deps", "--quiet", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    (libraries,) = _python(sys.executable, "import sysconfig; print(sysconfig.get_path('purelib'))")
    # As a path alone: what that environment installs editably, such as metaseg, stays out.
    (site / "libraries.pth").write_text(libraries + "\n", encoding="utf-8")
    (where,) = _python(program / "python", "import metaseg; print(metaseg.__file__)")
    assert Path(where).is_relative_to(site)

    def metaseg(*arguments):
        done = subprocess.run(
            [program / "metaseg", *arguments],
            cwd=place, env=environment(), capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    metaseg("train", *TINY, "learner=fomaml", "hydra.run.dir=runs/one")
    metaseg("train", "-m", *TINY, "learner=scratch", "seed=1", "hydra.sweep.dir=runs/sweep")
    assert len(list((place / "runs" / "sweep").rglob("result.json"))) == 1
    for number in range(5):
        image, mask = lesion(number)
        for kind, pixels in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
            (place / "mine" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / "mine" / kind / f"{number}.png")
    metaseg("adapt", "checkpoint=runs/one", "support=mine", "images=mine/images", "out=out", "folds=2")
    assert len(list((place / "out" / "masks").iterdir())) == 5
    assert "Table 1" in metaseg("data", "table")
    assert "2 runs" in metaseg("report", "runs")
    assert (place / "runs" / "report" / "index.html").is_file()


def _python(interpreter, code):
    command = [interpreter if Path(interpreter).is_file() else Path(interpreter) / "python", "-c", code]
    done = subprocess.run(command, env=environment(PYTHONPATH=""), capture_output=True, text=True, check=True, cwd="/")
    return done.stdout.splitlines()
