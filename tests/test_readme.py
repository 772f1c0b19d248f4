"""Every command of the documentation is taken as it stands, with what makes it small; a new one needs a line here.

Trainings pass all checks of settings and data and end before they begin: tests/training carries them out.
"""

import os
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT, TINY, TINY_PRETRAINING
from conftest import command as command_named

from benchmarks.__main__ import _options
from metaseg.cli import data as data_command
from metaseg.training import run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def commands(text):
    """Those of shell blocks and in running text, in their order."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^((?:metaseg|python|make) .*?)(?:\s{2,}#.*)?$", blocks, re.MULTILINE)
    inline = re.findall(r"`((?:metaseg \w+|python|make) [^`\n]*)`", text)
    return [*lines, *inline]


COMMANDS = list(dict.fromkeys(command for text in TEXTS.values() for command in commands(text)))

SMALL = [one for one in TINY if not one.startswith("data=")]
HERE = "hydra/launcher=basic"
"""Cells run in this process: tests/sweeps shows those that are processes of their own."""
TOY = ["scale=toy", "trainer=cpu", "logger=csv", "learner=scratch", "shots=5", "seed=0", HERE]
APPENDED = {
    "metaseg train learner=imaml shots=20 pair=ph2_kvasir": SMALL,
    "metaseg train 'pair=[mine,ph2]' target=kvasir": SMALL,
    "metaseg train target=mine": SMALL,
    "metaseg train learner=scratch pair=none target=mine": SMALL,
    "metaseg train model.init=brain_mri model.init_path=FILE model.features=8": [*SMALL, "model.features=8"],
    "metaseg train learner=imaml shots=5 pair=isic_ph2 target=kvasir model=pretrained": [
        *(one for one in SMALL if not one.startswith("model.")),
        "model.widths=[8,8]",
    ],
    "metaseg train model=smp model.encoder=tu-tf_efficientnet_lite0 model.encoder_weights=package": [
        *(one for one in SMALL if not one.startswith("model.")),
        "learner=scratch",
    ],
    "metaseg train --cfg job --resolve": [],
    "metaseg train -m experiment=table2 --dry-run": TOY,
    "metaseg train -m experiment=table2": TOY,
    "metaseg train -m experiment=tables seed=0,1,2": [*TOY, "--dry-run"],
    "metaseg train -m experiment=recipes learner.adapt.steps=80,160": [
        *(one for one in SMALL if not one.startswith("model.")),
        "model.widths=[8,8]",
        HERE,
    ],
    "metaseg train -m learner=imaml,maml shots=5,20 hydra.sweep.dir=DIR": [*SMALL, HERE],
    "metaseg pretrain model.features=8": TINY_PRETRAINING,
    "metaseg adapt --help": [],
    "metaseg app --help": [],
    "metaseg adapt support=DIR images=DIR out=DIR": ["steps=2"],
}
NOT_HERE = {
    "metaseg app": "serves until it is stopped: tests/app/test_page.py starts it",
    "metaseg models build my-model.safetensors data.root=DIR": "trains: tests/adapting/test_model_file.py",
    "metaseg data fetch kvasir isic": "needs the internet: tests/data/fetching has its own server",
    "metaseg dashboard ENTITY/PROJECT": "needs an account: tests/tracking has a stand-in",
    "metaseg train learner=signed shots=5": "tests/test_extending.py writes this learner and runs it",
    "metaseg train -m experiment=tables hydra/launcher=slurm hydra.launcher.partition=gpu": "needs a cluster",
    "python scripts/fuzz.py --minutes 60 --folder DIR": "takes an hour: tests/test_fuzz.py shows it at work",
    "python scripts/kill_at_random.py --times 20 --folder DIR": "takes hours",
    "python scripts/kill_at_random.py --times 20 --only sweep --folder DIR": "takes half an hour",
    "python scripts/ranks.py --folder DIR": "takes minutes: tests/training/test_run.py has two processes",
    "python scripts/soak.py training --minutes 60 --folder DIR": "takes an hour",
    "python scripts/soak.py page --minutes 60 --folder DIR": "takes an hour",
    "python -m benchmarks.coverage": "takes minutes of simulation",
}


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Small datasets, one of them somebody's own."""
    data = tmp_path_factory.mktemp("painted")
    for name, count in (("ph2", 40), ("kvasir", 40), ("isic", 40), ("cvc", 120), ("kvasir_capsule", 55)):
        size = ["--count", str(count), "--size", "64", "--out", str(data / name)]
        assert data_command.main(["paint", name, *size]) == 0
    assert data_command.main(["paint", "ph2", "--count", "5", "--size", "64", "--out", str(data / "five")]) == 0
    for path in list((data / "cvc").rglob("*.png")):  # published are numbers of frames, from 1 on
        path.rename(path.with_stem(str(int(path.stem.removeprefix("cvc_")) + 1)))
    shutil.copytree(data / "isic", data / "mine")
    (data / "mine.yaml").write_text("title: My moles\n")
    return data


@pytest.fixture
def place(painted, tmp_path, monkeypatch):
    """A folder to work in, with the datasets under data/."""
    monkeypatch.chdir(tmp_path)
    for name in ("METASEG_DATA", "METASEG_CACHE"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(painted, tmp_path / "data", copy_function=os.link)
    return tmp_path


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("make ")])
def test_the_target_is_in_the_makefile(command):
    arguments = ["make", "-n", "-C", str(ROOT), *shlex.split(command)[1:]]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("python -m benchmarks ")])
def test_the_benchmark_takes_these_options(command):
    _options(shlex.split(command)[3:])


@pytest.fixture
def untrained(monkeypatch):
    """Runs end where they would begin to train; the settings of each."""
    seen = []
    monkeypatch.setattr(run, "train_and_test", lambda settings, *_: seen.append(settings))
    return seen


@pytest.mark.parametrize("command", [one for one in COMMANDS if not one.startswith(("make ", "python -m benchmarks "))])
def test_the_command_runs_as_documented(command, place, program, trained, untrained, capfd):
    words = shlex.split(command)
    if command in NOT_HERE:
        pytest.skip(NOT_HERE[command])
    if words[1] == "data":
        arguments = [word.replace("mine/", "painted/") for word in words[2:]]
        status = data_command.main(arguments)
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
        assert (status, errors) == (0, [])
        return
    if words[1] == "suggest":
        assert command_named("suggest")(["data/ph2/images", *words[3:]]) == 0
        assert len(capfd.readouterr().out.splitlines()) == 5
        return
    if words[1] == "status":
        assert command_named("status")([str(trained.parent)]) == 0
        return
    if words[1] == "report":
        assert command_named("report")([str(trained.parent)]) == 0
        return
    if words[1] == "adapt" and any("mine/" in word for word in words):
        pytest.skip("run by test_the_walk_through_runs")
    if words[1] == "adapt" and "--help" not in words:
        (place / "new").mkdir()
        shutil.copy("data/isic/images/isic_0000.png", "new")
        words[2:] = ["support=data/five", "images=new", "out=out", "folds=2", "recipe=quick"]
    if "model.init_path=FILE" in words:
        assert program("pretrain.py", *TINY_PRETRAINING, "model.features=8", directory=place / "mri").returncode == 0
        (weights,) = (place / "mri").glob("unet-*.pt")
        words = [word.replace("FILE", str(weights)) for word in words]
    given = [*words[2:], *APPENDED[command]]
    first = [word for word in given if word not in ("-m", "--cfg", "job", "--help")]
    options = [word for word in given if word not in first]  # at the end, as the fixture begins with an override
    finished = program(f"{words[1]}.py", *first, *options, directory=place / "run")
    assert finished.returncode == 0, finished.stderr
    assert bool(untrained) == (words[1] == "train" and not {"--cfg", "--dry-run"} & set(given))


def test_the_walk_through_runs(place, program):
    """The commands that paint images and adapt to them, one after the other."""
    painting = [one for one in COMMANDS if " paint " in one]
    adapting, *again = (one for one in COMMANDS if one.startswith("metaseg adapt") and "mine/" in one)
    for command in painting:
        assert data_command.main([*shlex.split(command)[2:], "--size", "64"]) == 0
    finished = program("adapt.py", *shlex.split(adapting)[2:], "steps=2", directory=place / "run")
    assert finished.returncode == 0, finished.stderr
    assert len(list((place / "mine" / "out" / "masks").iterdir())) == 25
    assert "Dice        " in finished.stdout
    (place / "one").mkdir()
    shutil.copy(next((place / "mine" / "new" / "images").iterdir()), "one")
    for number, command in enumerate(again):
        command = command.replace("support=DIR", "support=mine/support").replace("images=DIR", "images=one")
        words = shlex.split(command.replace("out=DIR", f"out=again{number}"))[2:]
        quickly = ["steps=1", "folds=0", "size=64"] if "support=" in command else []
        finished = program("adapt.py", *words, *quickly, directory=place / "run")
        assert finished.returncode == 0, finished.stderr
        assert len(list((place / f"again{number}" / "masks").iterdir())) == 1


def test_the_printed_python_runs(lesions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS["docs/quickstart.md"], re.DOTALL)
    images, masks = lesions
    names = {"images": images, "masks": masks, "new_images": images[:2]}
    exec(code.replace(".adapt(images, masks)", ".adapt(images, masks, steps=2)"), names)
    assert [mask.shape for mask in names["predicted"]] == [image.shape[:2] for image in images[:2]]


def test_the_printed_meta_gradient_is_that_of_the_minimiser():
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS["docs/meta_gradients.md"], re.DOTALL)
    names = {}
    exec(code, names)
    (x, x_query), (y, y_query), theta = names["x"], names["y"], names["theta"]["w"].requires_grad_()
    hessian = 2 / len(x) * x.T @ x
    phi = torch.linalg.solve(hessian + torch.eye(4), 2 / len(x) * x.T @ y + theta)
    (expected,) = torch.autograd.grad((x_query @ phi - y_query).square().mean(), theta)
    torch.testing.assert_close(names["result"].gradient, expected, rtol=1e-4, atol=1e-5)


def test_files_that_are_linked_are_there():
    """In the repository's own view; `make docs` checks the site, with the headings of all pages."""
    for page, text in TEXTS.items():
        for path in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert ((ROOT / page).parent / path).exists(), (page, path)
