"""One user's session, independent of the page: add images, annotate some, adapt, get masks."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from metaseg.adapting import checks
from metaseg.adapting.arrays import same_size
from metaseg.adapting.files import Source
from metaseg.adapting.masks import Reading, Survey, decide, survey
from metaseg.adapting.model import BUDGET, Adapted, Model
from metaseg.adapting.results import row
from metaseg.app.packing import packed
from metaseg.app.picture import Picture
from metaseg.app.uploads import Limits, images_of, masks_of
from metaseg.data.check import plural
from metaseg.errors import MetasegError
from metaseg.evaluation.scores import THRESHOLD

OnProgress = Callable[[float, str], None]
"""Called with (fraction done in [0, 1], current activity)."""
SESSION = "session-"
"""Prefix of session folders."""
_LEARNT = 1024  # longer side in pixels of the images that are learnt from, so that all fit into memory
_SILENT: OnProgress = lambda done, what: None  # noqa: E731


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


class Session:
    """One user's images and masks, in a folder that `close` removes.

    Attributes:
        network: the network to adapt.
        limits: of uploads.
        folder: where everything is stored.
        pictures: name → image, in upload order.
        notes: warnings of the last adaptation.
        chosen: name of the selected image, or None.
        by_doubt: whether the least confident predictions come first in `ordered`.
    """

    def __init__(self, network: Network, limits: Limits, parent: Path) -> None:
        self.network = network
        self.limits = limits
        self.folder = Path(mkdtemp(prefix=SESSION, dir=parent))
        self.pictures: dict[str, Picture] = {}
        self.notes: list[str] = []
        self.chosen: str | None = None
        self.by_doubt = False
        self.closed = False
        self._arrivals = 0
        self._downloads = 0
        self._adapted: Adapted | None = None
        self._seen: tuple[object, ...] = ()
        self._changing = threading.RLock()

    # Images and masks

    def add_images(self, files: Iterable[str | Path], on_progress: OnProgress = _SILENT) -> list[str]:
        """Add uploaded images; moves or removes the files.

        Returns:
            an error message for each refused file; the others were added.
        """
        paths = [Path(path) for path in files]
        try:
            return self._each(paths, self._add_image, on_progress)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def add_masks(
        self, files: Iterable[str | Path], on_progress: OnProgress = _SILENT, label: int | None = None
    ) -> list[str]:
        """Add uploaded masks to the images of the same name (a.png or a_mask.png for a.jpg); removes the files.

        Args:
            files: read together, as `metaseg.adapting.masks` describes.
            on_progress: progress callback.
            label: the label that is foreground; None: all but the background.

        Returns:
            a message for each refused file and each empty mask, and how the masks are read if they have several labels.
        """
        paths = [Path(path) for path in files]
        seen: dict[Path, list[tuple[str, Source, Survey]]] = {}

        def look(path: Path) -> None:
            images = [picture.source for picture in self.pictures.values()]
            masks = masks_of(path, self.limits, images).items()
            with _named(path):
                seen[path] = [(name, mask, survey(mask.read_mask())) for name, mask in masks]

        try:
            said = self._each(paths, look, on_progress)
            reading = decide([one for found in seen.values() for *_, one in found], label)
            if len(reading.labels) > 1:
                said.append(f"The masks have {reading.sentence()}.")
            return said + self._each(list(seen), lambda path: self._add_mask(path, seen[path], reading), on_progress)
        except MetasegError as error:
            return [*said, str(error)]
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def _each(self, paths: Sequence[Path], take: Callable[[Path], str | None], on_progress: OnProgress) -> list[str]:
        said: list[str | None] = []
        for number, path in enumerate(paths):
            on_progress(number / len(paths), f"reading {path.name}")
            try:
                self._open()
                with self._changing:
                    said.append(take(path))
            except MetasegError as error:
                said.append(str(error))
        return [sentence for sentence in said if sentence]

    def _add_image(self, path: Path) -> None:
        if len(self.pictures) >= self.limits.max_images:
            raise MetasegError(
                f"{path.name} was not added: the limit is {plural(self.limits.max_images, 'image')}; remove some first."
            )
        self._arrivals += 1
        folder = self.folder / f"{self._arrivals:04d}"
        try:
            (folder / "file").mkdir(parents=True)
            kept = folder / "file" / path.name
            if path.is_file():
                shutil.move(path, kept)
            found = images_of(kept, self.limits)
            taken = [source.name for source, _ in found if source.name in self.pictures]
            if taken:
                raise MetasegError(
                    f"There is already an image called {taken[0]}; rename {path.name}, or remove that image."
                )
            if len(self.pictures) + len(found) > self.limits.max_images:
                raise MetasegError(
                    f"{path.name} has {len(found)} pages, which exceeds the limit of {self.limits.max_images} images."
                )
            for number, (source, pixels) in enumerate(found):
                own = folder / f"{number:04d}"
                own.mkdir()
                self.pictures[source.name] = Picture.of(source, pixels, own)
        except MetasegError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _add_mask(self, path: Path, found: Sequence[tuple[str, Source, Survey]], reading: Reading) -> str | None:
        empty = []
        for name, source, _ in found:
            with _named(path):
                mask = reading.foreground(source.read_mask())
            if not mask.any() and source.page is not None:
                continue  # a slice of a volume that is not annotated
            self.set_mask(name, mask)
            empty += [] if mask.any() else [name]
        if not empty:
            return None
        return f"{path.name} is empty, which means that {', '.join(empty)} shows no lesion; please check."

    def set_mask(self, name: str, mask: np.ndarray) -> None:
        """Annotate an image; an empty mask means no lesion.

        Args:
            name: of the image.
            mask: bool (H, W), of the image's size.

        Raises:
            MetasegError: if there is no such image, or the sizes differ.
        """
        picture = self.picture(name)
        same_size(np.empty(picture.size), mask, f"the mask of {name}")
        picture.annotate(mask)

    def paint(self, name: str, painted: np.ndarray, fill: bool = True) -> None:
        """Annotate an image from a painting over its mask or prediction.

        Args:
            name: of the image.
            painted: bool, of the shape of FRAME: the painted area.
            fill: whether to fill closed outlines.

        Raises:
            MetasegError: if there is no such image, the sizes differ, or nothing is painted.
        """
        picture = self.picture(name)
        same_size(picture.drawn_mask(), painted, f"the painting of {name}")
        if not painted[picture.within].any():
            raise MetasegError(
                f"Nothing is marked in {name}: paint the lesion first, or mark the image as having none."
            )
        picture.annotate(picture.painted_over(painted, fill))

    def mark_empty(self, name: str) -> None:
        """Annotate an image as showing no lesion.

        Raises:
            MetasegError: if there is no such image.
        """
        picture = self.picture(name)
        picture.annotate(np.zeros(picture.size, bool))

    def remove_mask(self, name: str) -> None:
        """Remove an image's mask; its prediction stays.

        Raises:
            MetasegError: if there is no such image.
        """
        self.picture(name).forget_mask()

    def remove(self, name: str) -> None:
        """Remove an image.

        Raises:
            MetasegError: if there is no such image.
        """
        with self._changing:
            shutil.rmtree(self.picture(name).folder, ignore_errors=True)
            del self.pictures[name]
            self.chosen = None if self.chosen == name else self.chosen

    def picture(self, name: str | None) -> Picture:
        """An image by its name.

        Raises:
            MetasegError: if there is no such image, or the session has ended.
        """
        self._open()
        if name is None or name not in self.pictures:
            raise MetasegError("Select an image first." if name is None else f"There is no image called {name}.")
        return self.pictures[name]

    # Adapting

    @property
    def annotated(self) -> list[Picture]:
        """Images with a user's mask."""
        return [picture for picture in list(self.pictures.values()) if picture.annotated]

    @property
    def segmented(self) -> list[Picture]:
        """Images with a prediction."""
        return [picture for picture in list(self.pictures.values()) if picture.line]

    def ordered(self) -> list[Picture]:
        """All images in upload order, or by doubt: predictions from the least confident on, then the others."""
        pictures = list(self.pictures.values())
        if not self.by_doubt:
            return pictures
        return sorted(pictures, key=lambda one: (one.annotated or not one.line, (one.line or {}).get("confidence", 0)))

    @property
    def stale(self) -> bool:
        """Whether masks or images have changed since the last adaptation; False before the first."""
        return self._adapted is not None and (self._seen != self._state() or len(self.segmented) < len(self.pictures))

    def _state(self) -> tuple[object, ...]:
        return tuple((picture.name, picture.changes) for picture in self.annotated)

    def adapt(self, on_progress: OnProgress = _SILENT, budget: float | None = BUDGET) -> list[str]:
        """Adapt the network to the annotated images and segment all images.

        Args:
            on_progress: progress callback.
            budget: see `Model.adapt`.

        Returns:
            warnings, also in `notes`.

        Raises:
            MetasegError: if nothing is annotated, or no mask has foreground.
        """
        self._open()
        state = self._state()
        support = self._support()
        images, masks = zip(*(picture.reduced(_LEARNT) for picture in support), strict=True)
        on_progress(0, "learning")
        self._adapted = self.network.model.adapt(
            images,
            masks,
            self.network.steps,
            self.network.lr,
            progress=self._share_of(on_progress, "learning", 0.0, 0.8),
            budget=budget,
        )
        self._seen = state
        self._segment(self._adapted, self._share_of(on_progress, "segmenting", 0.8, 1.0))
        self.notes = checks.of_support(
            [picture.name for picture in support],
            [picture.size for picture in support],
            [picture.mask() for picture in support],
        )
        others = [picture for picture in list(self.pictures.values()) if not picture.annotated]
        if others:
            new = np.stack([picture.small for picture in others])
            self.notes += checks.of_new(
                np.stack([picture.small for picture in support]), new, [picture.name for picture in others]
            )
        return self.notes

    def estimate(self) -> list[str]:
        """The Dice to expect and what it means, as sentences; empty before `adapt`, or if one image is annotated."""
        if self._adapted is None or len(self._adapted.support.images) < 2:
            return []
        found = self._adapted.estimate
        return (
            ["The time for learning was too short for an estimate."]
            if found is None
            else [
                found.verdict(),
                found.sentence(),
            ]
        )

    def _support(self) -> list[Picture]:
        support = self.annotated
        if not self.pictures:
            raise MetasegError("There are no images yet; upload some first.")
        if not support:
            raise MetasegError("No image has a mask yet: mark the lesion in at least one; five or more are better.")
        if not any(picture.mask().any() for picture in support):
            raise MetasegError("No mask shows a lesion: mark the lesion in at least one image.")
        return support

    def _segment(self, adapted: Adapted, progress: Callable[[int, int], None]) -> None:
        pictures = list(self.pictures.values())
        for number, picture in enumerate(pictures):
            ((probabilities, confidence),) = adapted.predict([picture.source.read()])
            line = row(picture.name, picture.source.path.name, picture.source.page, probabilities, confidence)
            with self._changing:
                if self.pictures.get(picture.name) is picture:  # may have been removed meanwhile
                    picture.predicted(probabilities > THRESHOLD, line)
            progress(number + 1, len(pictures))

    def _share_of(self, on_progress: OnProgress, what: str, low: float, high: float) -> Callable[[int, int], None]:
        def progress(done: int, of: int) -> None:
            self._open()  # stops the computation of a closed page
            on_progress(low + (high - low) * done / max(1, of), what)

        return progress

    # Output

    def doubtful(self, count: int = 3) -> list[str]:
        """Names of the least confident predictions among images without a mask."""
        found = [(picture.line["confidence"], picture.name) for picture in self.segmented if not picture.annotated]  # type: ignore[index]
        return [name for _, name in sorted(found)[:count]]

    def download(self) -> Path:
        """A zip file: masks/NAME.png at each image's original size (the user's mask if there is one), results.csv.

        Raises:
            MetasegError: if there is no mask yet.
        """
        self._open()
        with self._changing:
            for old in self.folder.glob("download-*"):
                shutil.rmtree(old, ignore_errors=True)
            self._downloads += 1
            path = self.folder / f"download-{self._downloads}" / "masks.zip"
            path.parent.mkdir()
            packed(list(self.pictures.values()), path)
        return path

    def close(self) -> None:
        """Remove everything; a running computation stops at its next progress report."""
        self.closed = True
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> None:
        if self.closed:
            raise MetasegError("This session has ended and its images were removed; reload the page.")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name an uploaded file without its folder."""
    try:
        yield
    except MetasegError as error:
        raise MetasegError(str(error).replace(str(path), path.name)) from error
