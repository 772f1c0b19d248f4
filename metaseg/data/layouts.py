"""Find the pairs of files in a folder.

An image's id is the text matched by the layout's `{stem}`, prefixed by that of `{group}` if there is one. Hidden files
(including macOS' `._` files) and non-image files such as licences are ignored.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metaseg.data import pair_files
from metaseg.data.catalogue import PLAIN, Dataset, Layout
from metaseg.data.images import SUFFIXES
from metaseg.data.pair_files import Pair
from metaseg.errors import MetasegError, expanded, require_text


@dataclass(frozen=True)
class Listing:
    """A dataset's files under one layout or in its CSV file of pairs: pairs in natural order, and unpaired files."""

    folder: Path
    layout: Layout | None  # None: a CSV file of pairs
    pairs: tuple[Pair, ...]
    images_without_mask: tuple[Path, ...]
    masks_without_image: tuple[Path, ...]
    ambiguous: tuple[Path, ...]  # files that share a stem and differ only in suffix; in a CSV file, that share an id
    absent: tuple[Path, ...] = ()  # files listed in a CSV file but missing

    @property
    def faults(self) -> int:
        """Number of unusable files."""
        return len(self.images_without_mask) + len(self.masks_without_image) + len(self.ambiguous) + len(self.absent)

    def unpaired(self) -> str:
        """What was expected and found instead: how many files of each fault, and one of them."""
        faults = (
            (self.images_without_mask, "without a mask"),
            (self.masks_without_image, "masks without an image"),
            (self.ambiguous, "files that share a stem" if self.layout else "files that share an id"),
            (self.absent, "listed in the CSV file but missing"),
        )
        parts = [f"{len(files)} {what} (such as {files[0].name})" for files, what in faults if files]
        return f"expected one mask for each image in {self.folder}, found {', '.join(parts)}"

    @property
    def grouped(self) -> bool:
        """Whether the layout or the CSV file defines groups."""
        return any(pair.group is not None for pair in self.pairs)


def find(dataset: Dataset, root: str | Path) -> list[Pair]:
    """The dataset's pairs under root, in natural order of their ids (2 before 10). Raises as `complete` does."""
    return list(complete(dataset, root).pairs)


def complete(dataset: Dataset, root: str | Path) -> Listing:
    """`scan`, requiring every file to be paired.

    Raises MetasegError if the dataset is missing (naming the folders searched and how to get it) or a file lacks its
    partner: skipping such images would silently change the dataset.
    """
    listing = scan(dataset, root)
    if listing.faults:
        raise MetasegError(
            f"{dataset.name}: {listing.unpaired()}: add or remove files; `metaseg data check {dataset.name} --root "
            f"{root}` lists them all"
        )
    return listing


def scan(dataset: Dataset, root: str | Path) -> Listing:
    """List the first folder and layout with pairs; if there is none, the one with the most files.

    Raises MetasegError if none has a file.
    """
    root = expanded(root)
    looked_in = [root / expanded(folder) for folder in dataset.folders]
    incomplete: list[Listing] = []
    for folder in looked_in:
        for listing in _listings(dataset, folder, root):
            if listing.pairs:
                return listing
            if listing.faults:
                incomplete.append(listing)
    if incomplete:
        return max(incomplete, key=lambda listing: listing.faults)
    raise MetasegError(_not_found(dataset, root, looked_in))


def _listings(dataset: Dataset, folder: Path, root: Path) -> Iterator[Listing]:
    if dataset.pairs:
        file = folder / expanded(dataset.pairs)
        if file.exists():
            yield _of_csv(file)
    elif folder.is_dir():
        # images/ and masks/ directly under data.root could belong to any dataset, so the plain layout needs a folder.
        for layout in dataset.layouts:
            if folder != root or layout != PLAIN:
                yield _list(folder, layout)


def _not_found(dataset: Dataset, root: Path, looked_in: list[Path]) -> str:
    present = [folder for folder in looked_in if folder.is_dir() and folder != root]
    patterns = " or ".join(f"{_any(layout.images)} with {_any(layout.masks)}" for layout in dataset.layouts)
    if present:
        lacks = f"no {dataset.pairs}" if dataset.pairs else f"no images laid out as {patterns}"
        state = f"{', '.join(map(str, present))} holds {lacks}"
    elif root.is_dir() or Path(dataset.folders[0]).is_absolute():
        state = f"none of the folders {', '.join(dataset.folders)} contains it"
    else:
        state = f"the folder {root} does not exist"
    where = f"{dataset.how} ({dataset.url})" if dataset.url else dataset.how
    fetch = f"`metaseg data fetch {dataset.name} --root {root}`" if dataset.sources else ""
    ways = [way for way in (where, fetch) if way]
    remedies = [
        f"To get it: {'; or '.join(ways)}" if ways else f"Correct its YAML file, {dataset.name}.yaml",
        "set another folder with data.root=DIR or METASEG_DATA",
        *(["use its synthetic twin with data=synthetic"] if dataset.paper_count is not None else []),
    ]
    return f"{dataset.name} ({dataset.title}) was not found under {root.resolve()}: {state}. {'; or '.join(remedies)}"


def _any(pattern: str) -> str:
    return pattern if _has_suffix(pattern) else f"{pattern}.*"


def _has_suffix(pattern: str) -> bool:
    return pattern.lower().endswith(SUFFIXES)


def _of_csv(file: Path) -> Listing:
    rows = pair_files.read(file)
    times = Counter(row.id for row in rows)
    files = {path for row in rows for path in (row.image, row.mask)}
    absent = {path for path in files if not _is_file(path)}
    good = [row for row in rows if times[row.id] == 1 and not absent & {row.image, row.mask}]
    return Listing(
        folder=file.parent,
        layout=None,
        pairs=tuple(sorted(good, key=lambda row: natural_key(row.id))),
        images_without_mask=(),
        masks_without_image=(),
        ambiguous=tuple(row.image for row in rows if times[row.id] > 1),
        absent=tuple(sorted(absent)),
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def _list(folder: Path, layout: Layout) -> Listing:
    images, masks = _match(folder, layout.images), _match(folder, layout.masks)
    # If both are in one folder, a pattern such as {stem} also matches {stem}_mask.
    taken = {path for paths in masks.values() for path in paths}
    for key in list(images):
        images[key] = [path for path in images[key] if path not in taken]
    ambiguous = [path for files in (images, masks) for paths in files.values() if len(paths) > 1 for path in paths]
    keys = {key for files in (images, masks) for key, paths in files.items() if paths}
    ids = {key: "/".join(part for part in key if part) for key in keys}
    ordered = sorted(keys, key=lambda key: natural_key(ids[key]))
    return Listing(
        folder=folder,
        layout=layout,
        pairs=tuple(
            Pair(ids[k], images[k][0], masks[k][0], k[0] or None)
            for k in ordered
            if len(images[k]) == len(masks[k]) == 1
        ),
        images_without_mask=tuple(path for k in ordered if not masks[k] for path in images[k]),
        masks_without_image=tuple(path for k in ordered if not images[k] for path in masks[k]),
        ambiguous=tuple(ambiguous),
    )


def _match(folder: Path, pattern: str) -> defaultdict[tuple[str, str], list[Path]]:
    """Files that match a layout's pattern, by ({group}, {stem}); a repeated placeholder must match the same text."""
    whole = _has_suffix(pattern)
    glob = re.sub(r"([\[?])", r"[\1]", re.sub(r"\{(stem|group)\}", "*", pattern)) + ("" if whole else ".*")
    expression = re.compile(_expression(pattern))
    found: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in sorted(folder.glob(glob)):
        name = path.relative_to(folder)
        match = expression.fullmatch((name if whole else name.with_suffix("")).as_posix())
        if match and path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            require_text(name)
            parts = match.groupdict()
            found[parts.get("group", ""), parts["stem"]].append(path)
    return found


def _expression(pattern: str) -> str:
    """A pattern as a regular expression; in `{group}_{stem}` the group matches as little as possible."""
    first = {"{stem}": "(?P<stem>[^/]+)", "{group}": "(?P<group>[^/]+?)", "*": "[^/]*"}
    again = {"{stem}": "(?P=stem)", "{group}": "(?P=group)"}
    parts = []
    for part in re.split(r"(\{stem\}|\{group\}|\*)", pattern):
        parts.append(first.get(part, re.escape(part)))
        if part in again:
            first[part] = again[part]
    return "".join(parts)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that orders numbers inside text by value: 2 before 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]
