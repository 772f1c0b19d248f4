"""How entry points start: Hydra composes the configuration; problems end in one sentence and exit status 1."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from metaseg.errors import MetasegError

CONFIG_FOLDER = Path(__file__).parents[1] / "conf"


def entry(main: Callable[[DictConfig], None]) -> None:
    """Run ``main`` under Hydra with conf/config.yaml; never returns normally on a user's mistake."""
    # Hydra would print errors in its own many-line way; told to raise them, it leaves the wording to us.
    own_wording = os.environ.setdefault("HYDRA_FULL_ERROR", "1") == "1"
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")(main)()
    except MetasegError as error:
        fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        if not own_wording:
            raise
        fail(_sentence(error))
    except KeyboardInterrupt:
        fail("Interrupted; continue with ckpt_path=last and hydra.run.dir set to the run's directory.", status=130)


def fail(sentence: str, status: int = 1) -> None:
    """Print one sentence to standard error and exit."""
    sys.stdout.flush()
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)


def _sentence(error: Exception) -> str:
    """Hydra's message in one sentence, with the allowed values of a group where they are known."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, value = str(error.missing_cfg_file).rpartition("/")
        allowed = ", ".join(option for option in error.options if not option.startswith("_"))
        return f"{group} must be one of {allowed}, found {value!r}."
    text = " ".join(str(error).split())
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text += f" ({' '.join(str(error.__cause__).split())})"
    return f"{text.rstrip('.')}; see conf/ or `python train.py --help` for the settings there are."
