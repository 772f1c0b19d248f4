"""Shared helpers: the program run as users run it."""

import copy
import functools
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import omegaconf
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from PIL import Image

ROOT = Path(__file__).parents[1]

TINY = [
    "shots=3",
    "tasks.query=3",
    "data=synthetic",
    "data.size=32",
    "model.features=2",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.progress=false",
    "tasks.count=4",
    "tasks.validation=1",
    "learner.adapt.steps=2",
    "protocol.adapt.folds=0",
    "protocol.inner.steps=1",
    "protocol.free_steps=1",
    "evaluation.draws=2",
    "evaluation.limit=8",
    "evaluation.curve=[0,1]",
    "evaluation.curve_limit=4",
    "evaluation.scratch.compare=false",
    "logger=csv",
    "start=model",
]
"""Settings of a run that takes seconds."""

TINY_PRETRAINING = [
    "data=synthetic",
    "data.size=32",
    "model.features=2",
    "optimizer.lr=1e-2",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.progress=false",
]
"""The same for pretrain.py."""


PROGRAMS = {"program", "train_process", "trained", "pretrained"}
"""Fixtures that run a whole program."""


def pytest_collection_finish():
    """The garbage collector need not look at what has been imported, again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items):
    """What runs whole programs is left out by `make test-fast`."""
    for item in items:
        if not PROGRAMS.isdisjoint(item.fixturenames):
            item.add_marker("long")


def quicken_composition():
    """Let libyaml read conf/, and parse each interpolation once: composing, done hundreds of times, takes half as long.

    OmegaConf derives its loader from yaml.SafeLoader whenever it reads a file, and does not change parse trees.
    """
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    parse = omegaconf.grammar_parser.parse
    once = functools.cache(parse)
    for module in [one for name, one in sys.modules.items() if name.startswith("omegaconf")]:
        if getattr(module, "parse", None) is parse:
            module.parse = once


quicken_composition()


@functools.cache
def _composed(command: str, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(command, list(overrides))


def composed(*overrides, command="config"):
    """What conf/ and these overrides give: an unresolved configuration of one's own."""
    return copy.deepcopy(_composed(command, overrides))


def settings_of(*overrides, command="config"):
    """The typed settings that conf/ and these overrides give, as a command would have them."""
    from metaseg.runs import schema, validation

    return validation.read(schema.CONFIGURATIONS[command], composed(*overrides, command=command))


@pytest.fixture(autouse=True)
def starts_no_program(request, monkeypatch):
    """A test of `make test-fast` that starts an interpreter fails: none stays unnoticed."""
    if any(request.node.get_closest_marker(name) for name in ("long", "slow", "gpu")):
        return
    start = subprocess.Popen.__init__

    def refuse(self, args, *rest, **named):
        if not isinstance(args, str) and Path(args[0]) == Path(sys.executable):
            pytest.fail("a test that starts a program needs the marker `long`")
        start(self, args, *rest, **named)

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As many threads in this process as in those it starts: another number gives sums of another order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def heeds_interrupts():
    """A shell's background jobs ignore Ctrl+C, and so would all that they start: what is tested here among it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(**changes):
    """A user's environment: no settings of W&B, Hydra or metaseg but these."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_", "METASEG_"))}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


@dataclass(frozen=True)
class Finished:
    """How a run of an entry point ended."""

    returncode: int
    stdout: str
    stderr: str


def assert_fails_in_words(finished, *words):
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    lines = finished.stderr.splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def blank(figure, path, *_):
    """Write an empty picture in place of a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, "PNG")


def run_here(script, *arguments, draws=False):
    """Run an entry point with these arguments in this process; its exit status.

    Figures, a quarter of a small run's time, are blank unless `draws`. Hydra composes once, not a first time for
    hydra.mode, which no file of conf/ sets.
    """
    modes = [RunMode[one.partition("=")[2]] for one in arguments if one.startswith("hydra.mode=")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        patch.setattr("metaseg.plots.figures.DOTS", 20)
        patch.setattr(Hydra, "get_mode", lambda *_, **__: modes[-1] if modes else None)
        if not draws:
            if script == "train.py":
                patch.setattr("metaseg.training.run.overlay_sheet", blank)
                patch.setattr("metaseg.training.run.adaptation_curve", blank)
            for place in ("figures", "overlays"):
                patch.setattr(f"metaseg.plots.{place}.save", blank)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        finally:
            GlobalHydra.instance().clear()
    return 0


def command(name):
    """`metaseg NAME` in this process: a function from its arguments to its exit status."""

    from metaseg.cli.program import main

    def call(arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["metaseg", name, *arguments])
            try:
                main()
            except SystemExit as end:
                return end.code or 0
        return 0

    return call


@pytest.fixture
def program(tmp_path, capfd, monkeypatch):
    """Run an entry point with overrides in this process, as its command line would."""
    for key in [key for key in os.environ if key.startswith(("WANDB_", "HYDRA_", "METASEG_"))]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)

    def call(script, *overrides, directory, **variables):
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        capfd.readouterr()
        status = run_here(script, f"hydra.run.dir={directory}", *overrides)
        return Finished(status, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def vgg16_weights(tmp_path_factory):
    """A file in the layout of VGG16's published weights, of small random numbers."""
    import torch
    from safetensors.torch import save_file

    from metaseg.networks.vgg import VGG16

    torch.manual_seed(0)
    tensors = {name: value.half() for name, value in VGG16().state_dict().items() if name.startswith("features.")}
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def train(program, tmp_path):
    """Run train.py with overrides in this process; ``directory`` is the run's directory.

    What a fresh process alone can show (signals, ranks, imports) is run by ``train_process``.
    """

    def call(*overrides, directory=tmp_path / "run", **variables):
        return program("train.py", *TINY, *overrides, directory=directory, **variables)

    return call


@pytest.fixture
def pretrain(program, tmp_path):
    """Run pretrain.py with overrides in this process; ``directory`` is the run's directory."""

    def call(*overrides, directory=tmp_path / "pretrained", **variables):
        return program("pretrain.py", *TINY_PRETRAINING, *overrides, directory=directory, **variables)

    return call


class Forked:
    """An entry point in a process of its own, forked from one that has imported all it needs: ten seconds less each.

    Args:
        folder: working directory; its output goes to files there.
        command: the script and its arguments.
        before: called in the process first; a function of a module.
        variables: of its environment.
    """

    _server = multiprocessing.get_context("forkserver")

    def __init__(self, folder, *command, before=None, **variables):
        self._server.set_forkserver_preload(["metaseg.training.run", "metaseg.training.pretraining"])
        self._files = [folder / f"{command[0]}.{name}" for name in ("out", "err")]
        given = (folder, self._files, command, before, environment(**variables))
        self._process = self._server.Process(target=_forked, args=given)
        self._process.start()

    @property
    def runs(self):
        """Whether it has not ended."""
        return self._process.is_alive()

    def interrupt(self, number=signal.SIGINT):
        """Send it a signal, by default that of Ctrl+C."""
        os.kill(self._process.pid, number)

    def finished(self, timeout=300):
        """How it ended."""
        self._process.join(timeout)
        if self.runs:
            self._process.kill()
            pytest.fail("the process did not end")
        return Finished(self._process.exitcode, *(path.read_text() for path in self._files))


def _forked(folder, files, command, before, variables):
    import torch

    torch.set_num_threads(1)
    for descriptor, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    if before is not None:
        before()
    sys.exit(run_here(*command))


@pytest.fixture
def train_process(tmp_path):
    """Run train.py with overrides in a process of its own."""

    def call(*overrides, directory=tmp_path / "run", **named):
        return Forked(tmp_path, "train.py", *TINY, f"hydra.run.dir={directory}", *overrides, **named).finished()

    return call


@pytest.fixture
def kept_threads():
    """A command that sets the number of threads sets it for the whole process."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """Nobody is logged in to W&B, and nothing of it is set."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DATA_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """No test reads or writes the user's own cache of prepared images."""
    monkeypatch.delenv("METASEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def kvasir_root(tmp_path):
    """A data.root with a Kvasir-SEG of six images."""
    from disk_datasets import STEMS, write_dataset

    write_dataset(tmp_path / "data" / "kvasir", STEMS, images="images/{stem}.png")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """overrides → the directory of a run that was told not to train: its settings alone."""

    def make(*overrides):
        directory = tmp_path_factory.mktemp("run")
        own = {"model=smp", "model=pretrained"}.intersection(overrides)
        tiny = [one for one in TINY if not (one.startswith("model.") and own)]
        OmegaConf.save(composed(*tiny, "train=false", *overrides), directory / "config.yaml", resolve=True)
        return directory

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The directory of a run that has trained, with first-order MAML for some seconds."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    assert run_here("train.py", *TINY, "learner=fomaml", f"hydra.run.dir={directory}", draws=True) == 0
    return directory


def lesion(number, size=(48, 64)):
    """A bright ellipse on a dark, noisy ground: uint8 (H, W, 3) and bool (H, W)."""
    generator = np.random.default_rng(number)
    height, width = size
    y, x = np.mgrid[:height, :width]
    centre = generator.uniform(0.4, 0.6, 2) * size
    mask = ((y - centre[0]) / (0.25 * height)) ** 2 + ((x - centre[1]) / (0.25 * width)) ** 2 < 1
    image = generator.integers(0, 60, (height, width, 3)).astype(np.uint8)
    image[mask] += np.array([150, 120, 100], np.uint8)
    return image, mask


@pytest.fixture
def lesions():
    """Five images with their masks, of different sizes."""
    pairs = [lesion(number, size) for number, size in enumerate([(48, 64), (64, 48), (40, 40), (48, 64), (33, 57)])]
    return [image for image, _ in pairs], [mask for _, mask in pairs]


@pytest.fixture
def folders(tmp_path):
    """support/{images,masks} of four, new/ of three and truth/ of two of these."""
    for number in range(7):
        image, mask = lesion(number)
        first, second = ("support/images", "support/masks") if number < 4 else ("new", "truth")
        for folder, pixels, wanted in ((first, image, True), (second, mask.astype(np.uint8) * 255, number != 6)):
            path = tmp_path / folder / f"case {number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if wanted:
                Image.fromarray(pixels).save(path)
    return tmp_path
