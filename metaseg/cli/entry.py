"""Run a command under Hydra; every user error ends in one sentence and exit status 1."""

import argparse
import errno
import functools
import importlib.util
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import hydra
import yaml
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from metaseg import configuration
from metaseg.cli.arguments import fail, tell
from metaseg.cli.help import known_settings, text
from metaseg.cli.pairs import JOINT, chosen
from metaseg.errors import MetasegError, shown
from metaseg.interruption import INTERRUPTED, like_ctrl_c
from metaseg.runs.directory import RunDirectory
from metaseg.runs.validation import nearest

_UNWRITABLE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "let the file system be written to",
    errno.EACCES: "give yourself the permission",
}
"""Why a file cannot be written (full disk or quota, file system that has become read-only, no permission) → the
remedy."""

DRY_RUN = "hydra.sweeper.dry_run=true"


def entry(
    main: Callable[[DictConfig], None],
    name: str,
    interrupted: str = "Interrupted; resume a run with ckpt_path=last and hydra.run.dir, a sweep by repeating it.",
    paths: Collection[str] = (),
) -> None:
    """Run ``main`` under Hydra with conf/``name``.yaml, train with conf/config.yaml; a user error exits the process.

    Args:
        main: called with the composed configuration.
        name: of the command.
        interrupted: message on Ctrl+C.
        paths: settings whose values are taken literally; Hydra would parse commas, brackets and numbers in them.
    """
    config_name = "config" if name == "train" else name
    # Makes Hydra raise its errors, so that we word them; by default it prints them over many lines.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sys.argv[1:] = _arguments(sys.argv[1:], paths)
    if {"-h", "--help"} & set(sys.argv[1:]):
        try:
            print(text(config_name, sys.argv[1:]))
        except (HydraException, OmegaConfBaseException) as error:
            fail(_sentence(error, config_name))
        return
    failed: list[str] = []
    begun = False

    @functools.wraps(main)
    def job(config: DictConfig) -> None:
        nonlocal begun
        begun = True
        # Caught here so that one failing job does not stop the rest of the sweep.
        try:
            refuse_half_a_sweep()
            quieten()
            with _restartable(name):
                main(config)
        except MetasegError as error:
            failed.append(str(error))
        except OmegaConfBaseException as error:
            failed.append(_sentence(error, config_name))
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            verb = "used" if error.errno == errno.EACCES else "written"  # files that are read have permissions, too
            trains = name in ("train", "pretrain")
            run = "hydra.run.dir; what a run has saved stays, and ckpt_path=last continues from it"
            failed.append(
                f"{_what(error)} cannot be {verb} ({error.strerror}): {_UNWRITABLE[error.errno]}, or choose another "
                f"{run if trains else 'folder'}."
            )
        except KeyboardInterrupt:
            clear_away(HydraConfig.get())
            raise
        else:
            return
        tell(failed[-1])
        clear_away(HydraConfig.get())
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise MetasegError(failed[-1])  # marks the job as failed in the sweep

    job.program = ("-m", "metaseg", name)  # type: ignore[attr-defined]  # starts each cell of a sweep
    try:
        with _refusing_in_a_sentence(), like_ctrl_c():
            hydra.main(version_base="1.3", config_path=str(configuration.FOLDER), config_name=config_name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(_sentence(error, config_name))
    except MetasegError as error:
        fail(str(error))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # Hydra passes on what its YAML reader raises
        if begun:
            raise
        if "--multirun" in str(error):  # options that exclude each other
            fail(f"{shown(error)}; see `{called()} --help`.")
        fail(f"The configuration holds a file that is not valid YAML ({shown(error)}): correct it.")
    except OSError as error:
        if begun:
            raise
        reason = error.strerror or str(error)
        fail(f"hydra.run.dir must be a writable folder, found {_what(error)} ({reason}): choose another.")
    except KeyboardInterrupt:
        fail(interrupted, status=INTERRUPTED)
    if failed:
        sys.exit(1)


@contextmanager
def _restartable(name: str) -> Iterator[None]:
    """Let Lightning start further ranks by `python -m metaseg NAME`, by `__main__` and `sys.argv`, which Hydra read."""
    main, arguments = sys.modules["__main__"], sys.argv
    spec = main.__spec__
    main.__spec__ = importlib.util.find_spec("metaseg.__main__")
    sys.argv = [arguments[0], name, *arguments[1:]]
    try:
        yield
    finally:
        main.__spec__, sys.argv = spec, arguments


def _what(error: OSError) -> str:
    """What could not be written."""
    return str(error.filename2 or error.filename or "one on a disk")


def _arguments(given: Sequence[str], paths: Collection[str]) -> list[str]:
    """Translate the command line for Hydra; exit on a mistake in it."""
    if "--dry-run" in given and not {"-m", "--multirun"} & set(given):
        fail("--dry-run lists the cells of a sweep: add -m.")
    for before, argument in zip(("", *given), given, strict=False):
        if "=" not in argument and not argument.startswith(("-", "~")) and not before.startswith("-"):
            fail(f"Expected NAME=VALUE, found {argument!r}; quote values that contain spaces.")
    try:
        arguments = chosen([as_it_stands(argument, paths) for argument in given])
    except MetasegError as error:
        fail(str(error))
    translated = [DRY_RUN if argument == "--dry-run" else argument for argument in arguments]
    # Hydra's parser takes an option between settings for the end of them.
    return sorted(translated, key=lambda argument: argument not in ("-m", "--multirun"))


@contextmanager
def _refusing_in_a_sentence() -> Iterator[None]:
    """Make Hydra's option parser raise MetasegError instead of printing its usage and exiting with status 2."""
    usual = argparse.ArgumentParser.error

    def refuse(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise MetasegError(f"{message}; see `{called()} --help`.")

    argparse.ArgumentParser.error = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = usual  # type: ignore[method-assign]


def called() -> str:
    """The program as the user called it: `python train.py`, `metaseg train`."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else name


def as_it_stands(argument: str, paths: Collection[str]) -> str:
    """Quote the value of `NAME=VALUE` for Hydra if NAME is in `paths`; null and quoted values are left unchanged."""
    key, equals, value = argument.partition("=")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key not in paths or not equals or value == "null" or quoted:
        return argument
    return configuration.literally(key, value)


def clear_away(hydra_config: HydraConf) -> None:
    """Remove the directory of a refused run if it holds only settings, a log and empty folders.

    Parent folders that come from the default path are removed too once they are empty. A directory that another process
    holds stays: that run may have written no more so far.
    """
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.output_subdir is None or RunDirectory(folder).in_use:
        return
    own = folder / hydra_config.output_subdir
    begun = [folder / name for name in ("checkpoints", "figures") if (folder / name).is_dir()]
    # Without these folders, config.yaml is not a run's.
    ours = {own, *begun, folder / ".lock"} | ({folder / "config.yaml"} if begun else set())
    logs = {folder / f"{hydra_config.job.name}.log"} & set(folder.glob("*.log"))
    if set(folder.glob("*")) - ours - logs or any(any(path.iterdir()) for path in begun):
        return
    with suppress(OSError):  # gone
        shutil.rmtree(own, ignore_errors=True)
        for path in (*begun, *(ours - {own, *begun}), *logs):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        folder.rmdir()
        named = configuration.names_its_folder()
        while hydra_config.mode == RunMode.RUN and not named and folder.parent != Path(hydra_config.runtime.cwd):
            folder = folder.parent
            folder.rmdir()


def refuse_half_a_sweep() -> None:
    """Refuse `experiment=tableN` without -m, which would silently be a single run of the defaults.

    Raises:
        MetasegError: a table was chosen without -m.
    """
    hydra_config = HydraConfig.get()
    chosen = hydra_config.runtime.choices.get("experiment", "none")
    sweeper = hydra_config.sweeper
    if hydra_config.mode == RunMode.RUN and (sweeper.get("table") or sweeper.get("tables")):
        raise MetasegError(f"experiment={chosen} is a sweep: add -m, or --dry-run -m to list its cells.")


def quieten() -> None:
    """Silence library messages that users cannot act on."""
    # By the leaf loggers' names: importing Lightning later resets the level of its root logger.
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # its errors come as exceptions, too
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")  # when resuming
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # some networks stay so


def _sentence(error: Exception, config_name: str) -> str:
    """Reword Hydra's error as one sentence, with a group's allowed values where known."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, value = str(error.missing_cfg_file).rpartition("/")
        allowed = ", ".join(option for option in error.options if not option.startswith("_") and JOINT not in option)
        lists = ", or a list of datasets as in pair=[ph2,kvasir]" if group == "pair" else ""
        return f"{group} must be one of {allowed}{lists}, found {value!r}."
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=… is required; see `{called()} --help`."
    said = " ".join(str(error).split())
    unknown = re.match(r"Could not override '([^']+)'", said)
    if unknown is not None:
        known = known_settings(config_name)
        if unknown[1] in known:  # a setting of the default choice
            group = unknown[1].partition(".")[0]
            return f"{unknown[1]} is not a setting of the {group} chosen: leave it out, or choose another {group}."
        near = nearest(unknown[1], known)
        return f"{unknown[1]} is not a setting: {near or f'`{called()} --help` lists them all.'}"
    if (several := re.match(r"Ambiguous value for argument '([^']+)'", said)) is not None:
        return f"{several[1]} names several values: add -m to run each of them."
    said = re.sub(r"(.*?) full_key: (\S+).*", r"\2: \1", said)  # of OmegaConf's errors
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        said += f" ({' '.join(str(error.__cause__).split())})"
    return f"{said.rstrip('.')}; see conf/ or `{called()} --help` for the available settings."
