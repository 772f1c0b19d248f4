"""A Weights & Biases run: start, axes, summaries, end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger

from metaseg.errors import MetasegError, expanded
from metaseg.runs.directory import RunDirectory
from metaseg.system import replacing

_AXES = {
    "train/*": "trainer/global_step",  # the outer step, from 0
    "validation/*": "epoch",
    "progress/*": "epoch",
    "adaptation/*": "adaptation/step",
}
"""The x axis of metrics; patterns must not overlap, as W&B does not document which one wins."""
_SUMMARIES = {
    "validation/query_loss_after": "min,last",
    "validation/dice_after": "max,last",
    "validation/loss": "min,last",
    "validation/dice": "max,last",
    "train/gradient_norm": "max,last",
    "train/stationarity": "mean,last",
    "train/inner_steps": "mean,last",
    "train/unsolved": "mean,last",
    "train/still": "mean,last",
    "train/cg_residual": "mean,max,last",
    "train/cg_iterations": "mean,last",
    "train/cg_negative_curvature": "mean,last",
    "train/smallest_curvature": "min,last",
}
"""Summary statistics of curves in the table of runs; other curves show their last value."""
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


class WandbRunLogger(WandbLogger):
    """Lightning's WandbLogger, except that a run never prompts, never joins another one and prints no noise.

    Lightning's reuses any open run, so jobs of a sweep merge, and sets WANDB_MODE for the whole process. `settings` are
    the arguments of wandb.init, including `mode` ("online" or "offline").

    Raises (at the first logged value):
        MetasegError: if W&B refuses the key or cannot be reached.
    """

    def __init__(self, run: RunDirectory, resume: bool = False, **settings: Any) -> None:
        super().__init__(save_dir=str(run.path), **settings)
        self._wandb_init.pop("anonymous", None)  # deprecated by W&B, still set by Lightning
        self._run_directory = run
        self._resumed = resume

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at the first call."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    def _start(self) -> Any:
        import wandb

        stored = self._run_directory.wandb_id
        earlier = stored.read_text().strip() if self._resumed and stored.exists() else None
        offline = self._wandb_init["mode"] == "offline"
        settings = self._wandb_init | {
            "id": earlier,
            # W&B ignores `resume` offline; parts with the same id are joined on syncing.
            "resume": "allow" if earlier and not offline else None,
            "reinit": "finish_previous",
            "settings": wandb.Settings(silent=True, console="off"),
        }
        self._run_directory.path.mkdir(parents=True, exist_ok=True)  # otherwise W&B would use the temporary folder
        try:
            run = wandb.init(**settings)
        except (wandb.errors.Error, TimeoutError) as error:
            raise MetasegError(
                f"W&B did not start a run ({error}): check WANDB_API_KEY and the network, "
                "or use logger.mode=offline or logger=csv"
            ) from error
        for axis in dict.fromkeys(_AXES.values()):
            run.define_metric(axis)
        for pattern, axis in _AXES.items():
            run.define_metric(pattern, step_metric=axis)
        for name, summary in _SUMMARIES.items():
            run.define_metric(name, step_metric=_AXES[f"{name.partition('/')[0]}/*"], summary=summary)
        with replacing(stored) as temporary:
            temporary.write_text(run.id + "\n")
        if offline:
            parts = sorted(stored.parent.glob(f"offline-run-*-{run.id}*"))  # a second run in the same second ends in -1
            print(f"W&B is offline; to upload this run: wandb sync {' '.join(map(str, parts))}")
        else:
            print(f"W&B: {run.url}")
        return run

    def log_media(self, values: dict[str, Any]) -> None:
        """Log images or tables. Tables are staged under the run directory: `wandb sync` reads them from there."""
        with _staged_in(self._run_directory.path / "wandb" / "data"):
            self.experiment.log(values)

    def log_model(self, name: str, weights: Path, others: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Log an artifact of type `model`, under the aliases `best` and `latest`.

        Args:
            name: letters, digits, dots, dashes and underscores.
            weights: a large file; not copied, so it must not change until uploaded or synced.
            others: small files, copied next to those of `log_media`.
            metadata: shown on the artifact's page.
        """
        import wandb

        artifact = wandb.Artifact(name, type="model", metadata=dict(metadata))
        with _staged_in(self._run_directory.path / "wandb" / "data"):
            # Otherwise W&B would keep one copy for the upload and another in its cache.
            artifact.add_file(str(weights), policy="immutable", skip_cache=True)
            for path in others:
                artifact.add_file(str(path), skip_cache=True)
            self.experiment.log_artifact(artifact, aliases=["best", "latest"])

    def finish(self, exit_code: int = 0) -> None:
        """End the W&B run, if there is one; a non-zero exit code marks it as failed."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=exit_code)
            self._experiment = None


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    # W&B offers only an environment variable for this. Its default is in the home directory, so copies of the run
    # directory would lack the tables.
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def wandb_mode(requested: str | None) -> str:
    """`online`, `offline` or `disabled`: the configured mode, else WANDB_MODE, else online if there is an API key.

    Raises:
        MetasegError: on an unknown mode, or `online` without a key (W&B would prompt for one).
    """
    wanted = requested or os.environ.get("WANDB_MODE")
    if wanted and wanted not in _MODES:
        raise MetasegError(f"logger.mode or WANDB_MODE must be online, offline or disabled, found {wanted!r}")
    if not wanted:
        return "online" if has_api_key() else "offline"
    if _MODES[wanted] == "online" and not has_api_key():
        raise MetasegError(
            "W&B mode online needs an API key, found none: run `wandb login`, set WANDB_API_KEY, "
            "or use logger.mode=offline or logger=csv"
        )
    return _MODES[wanted]


def has_api_key() -> bool:
    """Whether W&B can log in without a prompt: by WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE or `wandb login`'s netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url).netloc
    # W&B's service has had several addresses; a key stored under the first one works for all.
    hosted = host.endswith((".wandb.ai", ".coreweave.com"))
    named = os.environ.get("NETRC")
    paths = [expanded(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return any(_in_netrc(name, path) for name in {host, "api.wandb.ai" if hosted else host} for path in paths)


def _in_netrc(host: str, path: Path) -> bool:
    try:
        entry = netrc(str(path)).authenticators(host)
    except (OSError, NetrcParseError):
        return False
    return bool(entry and entry[2])
