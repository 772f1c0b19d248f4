"""A run that segments without having been trained, and uploads from the painted twins."""

import pytest
import yaml
from conftest import composed
from omegaconf import OmegaConf
from PIL import Image

from metaseg.adapting.loading import load
from metaseg.app.session import Network, Session
from metaseg.app.uploads import Limits
from metaseg.data.synthetic.twins import twin

SETTINGS = ["learner=scratch", "learner.adapt.steps=2", "data=synthetic", "data.size=32", "model.features=2", "shots=3"]


@pytest.fixture(name="run", scope="session")
def run_fixture(tmp_path_factory):
    """The directory of a run of training from scratch: it needs no checkpoint."""
    settings = OmegaConf.to_container(composed(*SETTINGS), resolve=True)
    directory = tmp_path_factory.mktemp("run")
    (directory / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return directory


@pytest.fixture(name="network", scope="session")
def network_fixture(run):
    return Network(load(run, "cpu"))


@pytest.fixture(name="limits")
def limits_fixture():
    return Limits(max_images=6, max_mb=1, max_megapixels=1)


@pytest.fixture(name="session")
def session_fixture(network, limits, tmp_path):
    (tmp_path / "sessions").mkdir()
    session = Session(network, limits, tmp_path / "sessions")
    yield session
    session.close()


@pytest.fixture(name="painted", scope="session")
def painted_fixture():
    """Images uint8 (8, 64, 96, 3) and masks bool (8, 64, 96): wider than high, so that turned axes are noticed."""
    images, masks, _, _ = twin("ph2", 8, 96, 0)
    return images[:, 16:80], masks[:, 16:80] > 0


@pytest.fixture(name="upload")
def upload_fixture(tmp_path, painted):
    """Write images or masks of the twin as files to upload: `upload("image", 0, 1)`, `upload("mask", 0)`."""
    folder = tmp_path / "uploads"
    folder.mkdir()

    def write(kind, *numbers):
        paths = []
        for number in numbers:
            stem = f"case{number}" if kind == "image" else f"case{number}_mask"
            pixels = painted[0][number] if kind == "image" else painted[1][number]
            paths.append(folder / f"{stem}.png")
            Image.fromarray(pixels).save(paths[-1])
        return paths

    return write
