"""The checkpoint of the best validation."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights of the epoch with the best validation in best.ckpt.

    Args:
        folder: of the checkpoint.
        monitor: the logged metric.
        mode: "min" or "max": which is best.
    """

    def __init__(self, folder: Path, monitor: str, mode: str = "min") -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_weights_only=True,
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # before the last checkpoint, which has to hold the best value so far
        )

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints: that of Lightning's class, as earlier versions wrote it."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from a checkpoint, also if the run has been moved since: Lightning would forget the best value."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        moved: dict[str, Any] = {key: here(state_dict[key]) for key in state_dict if key.endswith("_model_path")}
        moved["best_k_models"] = {here(path): value for path, value in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"dirpath": self.dirpath})
