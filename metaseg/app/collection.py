"""The images and masks of a session, in a folder that `close` removes."""

from __future__ import annotations

import shutil
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from metaseg.adapting.arrays import same_size
from metaseg.adapting.files import Source, image_of_mask
from metaseg.adapting.formats import forget_volumes, stem
from metaseg.adapting.masks import Reading, Survey, decide, survey
from metaseg.app import texts
from metaseg.app.picture import INSIDE, OUTSIDE, Picture
from metaseg.app.uploads import Limits, images_of, masks_of, named
from metaseg.errors import MetasegError, plural

OnProgress = Callable[[float, str], None]
"""Called with (fraction done in [0, 1], current activity)."""
SESSION = "session-"
"""Prefix of session folders."""
SILENT: OnProgress = lambda done, what: None  # noqa: E731


class Collection:
    """One user's images and masks.

    Attributes:
        limits: of uploads.
        folder: where everything is stored.
        pictures: name → image, in upload order.
        chosen: name of the selected image, or None.
        by_doubt: whether the least confident predictions come first in `ordered`.
        comparing: whether the user looks closely at the selected image.
        word: the user's, for what is segmented.
        changing: held while images change.
    """

    def __init__(self, limits: Limits, parent: Path) -> None:
        self.limits = limits
        self.folder = Path(mkdtemp(prefix=SESSION, dir=parent))
        self.pictures: dict[str, Picture] = {}
        self.chosen: str | None = None
        self.by_doubt = False
        self.comparing = False
        self.word = texts.WORD
        self.closed = False
        self.changing = threading.RLock()
        self._arrivals = 0
        self._masks: Reading | None = None
        """How uploaded masks with the most labels were read: colours keep their numbers in later ones."""

    def add_images(self, files: Iterable[str | Path], on_progress: OnProgress = SILENT) -> list[str]:
        """Add uploaded images; moves or removes the files.

        Returns:
            an error message for each refused file; the others were added.
        """
        paths = [Path(path) for path in files]
        stems = dict.fromkeys([*map(stem, paths), *(picture.source.stem for picture in self.pictures.values())])

        def add(path: Path) -> None:
            if (image := image_of_mask(stem(path), stems)) is not None:
                raise MetasegError(f"{path.name} seems to be the mask of {image}: add it as a mask, or rename it.")
            self._add_image(path)

        try:
            return self._each(paths, add, on_progress)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def add_masks(
        self, files: Iterable[str | Path], on_progress: OnProgress = SILENT, label: int | None = None
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
            with named(path):
                seen[path] = [(name, mask, survey(mask.read_mask())) for name, mask in masks]

        try:
            said = self._each(paths, look, on_progress)
            reading = decide([one for found in seen.values() for *_, one in found], label, self._masks)
            if self._masks is None or len(reading.labels) >= len(self._masks.labels):
                self._masks = reading.after(self._masks)
            else:
                self._masks = self._masks.after(reading)
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
                self.require_open()
                with self.changing:
                    said.append(take(path))
            except MetasegError as error:
                said.append(str(error))
            except Exception as error:  # only this file fails, e.g. on a full disk; the others continue
                said.append(self._unexpected(path, error))
        return [sentence for sentence in said if sentence]

    def _unexpected(self, path: Path, error: Exception) -> str:
        """The message for a file that no check has refused; details go to the terminal."""
        if self.closed:
            return f"{path.name} was not added, because this session has ended; reload the page."
        traceback.print_exception(error)
        if isinstance(error, OSError):
            why = error.strerror or type(error).__name__
            return f"{path.name} was not added ({why}): make room on the disk if it is full, and upload it again."
        return f"{path.name} was not added ({type(error).__name__}): save it as PNG, and upload that."

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
            names = {name.casefold(): name for name in self.pictures}  # on some disks, A.png is a.png
            taken = [names[source.name.casefold()] for source, _ in found if source.name.casefold() in names]
            if taken:
                raise MetasegError(
                    f"There is already an image called {taken[0]}; rename {path.name}, or remove that image."
                )
            if len(self.pictures) + len(found) > self.limits.max_images:
                raise MetasegError(
                    f"{path.name} has {len(found)} pages, which exceeds the limit of {self.limits.max_images} images."
                )
            added = {}
            for number, (source, pixels) in enumerate(found):
                own = folder / f"{number:04d}"
                own.mkdir()
                added[source.name] = Picture.of(source, pixels, own)
            self.pictures |= added
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _add_mask(self, path: Path, found: Sequence[tuple[str, Source, Survey]], reading: Reading) -> str | None:
        empty = []
        for name, source, _ in found:
            with named(path):
                mask = reading.foreground(source.read_mask())
            if not mask.any() and source.page is not None:
                continue  # a slice of a volume that is not annotated
            self.set_mask(name, mask)
            empty += [] if mask.any() else [name]
        if not empty:
            return None
        return f"{path.name} is empty, which means that {', '.join(empty)} shows no {self.word}; please check."

    def set_mask(self, name: str, mask: np.ndarray) -> None:
        """Annotate an image; an empty mask means no foreground.

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
        """Annotate an image from a painting over its mask, scribbles or prediction.

        Args:
            name: of the image.
            painted: marks, of the shape of FRAME. With any `OUTSIDE` they are scribbles, and the rest is unmarked;
                without, the rest is outside.
            fill: whether to fill closed outlines.

        Raises:
            MetasegError: if there is no such image, the sizes differ, or nothing is painted.
        """
        picture = self.picture(name)
        same_size(picture.drawn(), painted, f"the painting of {name}")
        if not painted[picture.within].any():
            raise MetasegError(
                f"Nothing is marked in {name}: paint the {self.word} first, or mark the image as having none."
            )
        marks = picture.painted_over(painted, fill)
        if (marks == OUTSIDE).any():
            picture.scribble(marks)
        else:
            picture.annotate(marks == INSIDE)

    def mark_empty(self, name: str) -> None:
        """Annotate an image as having no foreground.

        Raises:
            MetasegError: if there is no such image.
        """
        picture = self.picture(name)
        picture.annotate(np.zeros(picture.size, bool))

    def remove_mask(self, name: str) -> None:
        """Remove an image's mask or scribbles; its prediction stays.

        Raises:
            MetasegError: if there is no such image.
        """
        with self.changing:
            self.picture(name).forget_mask()

    def remove(self, name: str) -> None:
        """Remove an image, and the uploaded file with the last of its images.

        Raises:
            MetasegError: if there is no such image.
        """
        with self.changing:
            removed = self.picture(name)
            del self.pictures[name]
            upload = removed.folder.parent  # with the file, of which the other pages are images as well
            last = all(picture.folder.parent != upload for picture in self.pictures.values())
            shutil.rmtree(upload if last else removed.folder, ignore_errors=True)
            self.chosen = None if self.chosen == name else self.chosen

    def picture(self, name: str | None) -> Picture:
        """An image by its name.

        Raises:
            MetasegError: if there is no such image, or the session has ended.
        """
        self.require_open()
        if name is None or name not in self.pictures:
            raise MetasegError("Select an image first." if name is None else f"There is no image called {name}.")
        return self.pictures[name]

    @property
    def annotated(self) -> list[Picture]:
        """Images with a user's mask or scribbles."""
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
        return sorted(pictures, key=lambda one: (one.masked or not one.line, (one.line or {}).get("confidence", 0)))

    def doubtful(self) -> list[str]:
        """Names of the three least confident predictions among images without a user's mask."""
        found = [(picture.line["confidence"], picture.name) for picture in self.segmented if not picture.masked]  # type: ignore[index]
        return [name for _, name in sorted(found)[:3]]

    def close(self) -> None:
        """Remove everything."""
        self.closed = True
        shutil.rmtree(self.folder, ignore_errors=True)
        forget_volumes()

    def require_open(self) -> None:
        """Refuse to continue after `close`.

        Raises:
            MetasegError: if the session has ended.
        """
        if self.closed:
            raise MetasegError("This session has ended and its images were removed; reload the page.")
