"""One user's session, independent of the page: add images, annotate some, adapt, get masks."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metaseg.adapting import checks
from metaseg.adapting.masks import Reading
from metaseg.adapting.model import BUDGET, Adapted, Model
from metaseg.adapting.model_file import SUFFIX
from metaseg.adapting.results import row
from metaseg.adapting.saved import NAME, load_segmenter, savable, save
from metaseg.app.collection import SILENT, Collection, OnProgress
from metaseg.app.packing import packed
from metaseg.app.picture import Picture
from metaseg.app.uploads import Limits, named
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import THRESHOLD

_LEARNT = 1024  # longer side in pixels of the images that are learnt from, so that all fit into memory


class Stopped(MetasegError):
    """The user stopped the computation."""


@dataclass(frozen=True)
class Network:
    """A trained run shared by all sessions, with its adaptation settings.

    Attributes:
        model: the run.
        steps: adaptation steps; None: the run's.
        lr: step size; None: the run's.
    """

    model: Model
    steps: int | None = None
    lr: float | None = None


class Session(Collection):
    """One user's images and masks, and what was learnt from them.

    Attributes:
        network: the network to adapt.
        notes: warnings of the last adaptation.
        adapted: the segmenter of the predictions; None before the first.
        loaded: a saved segmenter; None without one.
        go_on: whether `adapt` learns from the images of `loaded` as well.
        stopping: set to stop a computation, by the user or when the page loses its connection.
        canvas_marks: what the canvas showed of the selected image's marks at `look`, of the shape of FRAME; None:
            no image.
    """

    def __init__(self, network: Network, limits: Limits, parent: Path) -> None:
        super().__init__(limits, parent)
        self.network = network
        self.notes: list[str] = []
        self.adapted: Adapted | None = None
        self.loaded: Adapted | None = None
        self.go_on = True
        self.stopping = threading.Event()
        self.canvas_marks: np.ndarray | None = None
        self.tiles: list[tuple[str, str]] = []
        self._files = 0
        self._learnt: tuple[object, ...] = ()

    @property
    def can_go_on(self) -> bool:
        """Whether `loaded` holds all that `adapt` needs to continue from it; the file of a run's segmenter does not."""
        return self.loaded is not None and self.loaded.model.complete

    @property
    def stale(self) -> bool:
        """Whether masks or images have changed since the last adaptation; False before the first."""
        return self.adapted is not None and (self._learnt != self._state() or len(self.segmented) < len(self.pictures))

    def _state(self) -> tuple[object, ...]:
        return tuple((picture.name, picture.changes) for picture in self.annotated)

    def adapt(self, on_progress: OnProgress = SILENT, budget: float | None = BUDGET) -> list[str]:
        """Adapt the network to the annotated images and segment all images.

        It starts from the network rather than from the last result, see `Adapted.with_more`.

        Args:
            on_progress: progress callback.
            budget: see `Model.adapt`.

        Returns:
            warnings, also in `notes`.

        Raises:
            MetasegError: if nothing is annotated, no mask has foreground, or an image is there twice.
            Stopped: if `stopping` is set; what was there before stays.
        """
        self.require_open()
        with self.changing:  # none is removed meanwhile
            state, support = self._state(), self._support()
            images, masks = zip(*(picture.reduced(_LEARNT) for picture in support), strict=True)
        if not any((mask == 1).any() for mask in masks):
            raise MetasegError(f"No mask shows a {self.word}: mark the {self.word} in at least one image.")
        thumbnails = np.stack([checks.thumbnail(image) for image in images])
        checks.require_different([picture.name for picture in support], thumbnails)
        on_progress(0, "learning")
        how: dict[str, Any] = {
            "steps": self.network.steps,
            "lr": self.network.lr,
            "progress": self._share_of(on_progress, "learning", 0.0, 0.8),
            "budget": budget,
        }
        if self.loaded is not None and self.go_on:
            # Its label has been chosen in these masks, which are of background and foreground.
            adapted = replace(self.loaded, label=None).with_more(images, masks, **how)
            adapted = replace(adapted, label=self.loaded.label)
        else:
            adapted = self.network.model.adapt(images, masks, **how)
        if self._masks is not None:
            adapted = replace(adapted, colours=self._masks.colours)
        self._segment(adapted, self._share_of(on_progress, "segmenting", 0.8, 1.0))
        self._learnt = state
        with self.changing:
            self.notes = self._warnings(support)
        return self.notes

    def segment(self, on_progress: OnProgress = SILENT) -> None:
        """Segment all images with what was learnt before.

        Raises:
            MetasegError: if there is nothing learnt, or no image.
            Stopped: as for `adapt`.
        """
        self.require_open()
        if self.adapted is None:
            raise MetasegError("Nothing has been learnt yet: mark some images and learn, or load a segmenter.")
        if not self.pictures:
            raise MetasegError("There are no images yet; upload some first.")
        self._segment(self.adapted, self._share_of(on_progress, "segmenting", 0.0, 1.0))

    def load(self, file: str | Path, on_progress: OnProgress = SILENT) -> None:
        """Read a segmenter of `keep`, segment all images with it, and let `adapt` continue from it; removes the file.

        Raises:
            MetasegError: if it is not such a file.
            Stopped: as for `adapt`.
        """
        self.require_open()
        path = Path(file)
        try:
            if path.suffix != SUFFIX:
                raise MetasegError(
                    f"Expected a segmenter ({SUFFIX}), found {path.name}; choose the file that this page or metaseg "
                    "adapt saved."
                )
            with named(path):
                found = load_segmenter(path, self.network.model.learner.device.type)
        finally:
            path.unlink(missing_ok=True)
        self._segment(found, self._share_of(on_progress, "segmenting", 0.0, 1.0))
        self.loaded, self.go_on = found, found.model.complete
        if self._masks is None:  # else keep numbers already shown to the user
            self._masks = Reading.of_colours(found.colours)
        self.notes, self._learnt = [], self._state()

    def estimate(self) -> list[str]:
        """The verdict and the expected Dice, as sentences; empty before `adapt`."""
        if self.adapted is None:
            return []
        if len(self.adapted.support.images) < 2:
            return ["How good the masks are is unknown: a single marked image cannot be held out. Mark more."]
        found = self.adapted.estimate
        if found is None:
            return ["The time for learning was too short for an estimate."]
        return [found.verdict(), found.sentence()]

    def _support(self) -> list[Picture]:
        support = self.annotated
        if not self.pictures:
            raise MetasegError("There are no images yet; upload some first.")
        if not support:
            raise MetasegError(
                f"No image has a mask yet: mark the {self.word} in at least one; five or more are better."
            )
        return support

    def _warnings(self, support: Sequence[Picture]) -> list[str]:
        """What is remarkable about the annotated images that are still there, and about the others beside them."""
        whole = [picture for picture in support if picture.masked and self._has(picture)]
        said = []
        if whole:
            said += checks.of_support(
                [picture.name for picture in whole],
                [picture.size for picture in whole],
                [picture.mask() for picture in whole],
            )
        others = [picture for picture in list(self.pictures.values()) if not picture.annotated]
        if others:
            known, new = (np.stack([picture.look for picture in some]) for some in (support, others))
            said += checks.of_new(known, new, [picture.name for picture in others])
        return said

    def _segment(self, adapted: Adapted, progress: Callable[[int, int], None]) -> None:
        """Segment all images that are still there; earlier predictions stay until all are done."""
        pictures = list(self.pictures.values())
        lines: list[tuple[Picture, dict[str, Any]]] = []
        for number, picture in enumerate(pictures):
            with self.changing:
                pixels = picture.source.read() if self._has(picture) else None
            if pixels is not None:
                ((probabilities, confidence),) = adapted.predict([pixels])
                source = picture.source
                lines.append((picture, row(picture.name, source.path.name, source.page, probabilities, confidence)))
                with self.changing:
                    if self._has(picture):
                        picture.foresee(probabilities > THRESHOLD)
            progress(number + 1, len(pictures))
        with self.changing:
            for picture, line in lines:
                if self._has(picture):
                    picture.predicted(line)
            self.adapted = adapted

    def _has(self, picture: Picture) -> bool:
        return self.pictures.get(picture.name) is picture  # may have been removed meanwhile

    def _share_of(self, on_progress: OnProgress, what: str, low: float, high: float) -> Callable[[int, int], None]:
        def progress(done: int, of: int) -> None:
            self.require_open()  # stops the computation of a closed page
            if self.stopping.is_set():
                raise Stopped("Stopped at your request, or because the page was closed; the earlier result stays.")
            on_progress(low + (high - low) * done / max(1, of), what)

        return progress

    # Output

    def download(self) -> Path:
        """A zip file: masks/NAME.png at each image's original size (the user's mask if there is one), results.csv.

        Raises:
            MetasegError: if there is no mask yet.
        """
        return packed(list(self.pictures.values()), self._fresh("download", "masks.zip"))

    def look(self) -> None:
        """Remember what the canvas shows, to find out later whether the user has painted since."""
        picture = self.pictures.get(self.chosen or "")
        self.canvas_marks = None if picture is None else picture.drawn()

    def keep(self) -> Path | None:
        """A file of what was learnt, for `load`; None if there is nothing that can be kept."""
        if self.adapted is None or not savable(self.adapted):
            return None
        return save(self.adapted, self._fresh("learnt", NAME))

    def _fresh(self, kind: str, name: str) -> Path:
        """Where to write a file, in a new folder that no browser has cached; removes the last of its kind."""
        self.require_open()
        with self.changing:
            for old in self.folder.glob(f"{kind}-*"):
                shutil.rmtree(old, ignore_errors=True)
            self._files += 1
            folder = self.folder / f"{kind}-{self._files}"
            folder.mkdir()
        return folder / name
