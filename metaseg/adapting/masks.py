"""Masks as people have them → foreground: label maps, palettes, colours, overlays, soft edges.

One rule holds for a whole set of masks and is decided from all of them together, because a single mask may lack labels
that the others have. `survey` takes what the decision needs from a mask, `decide` makes it, and `Reading` applies it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from typing import Literal

import numpy as np
from scipy import ndimage

from metaseg.errors import MetasegError, listed, plural

Kind = Literal["grey", "index", "colour", "soft"]

MANY = 32
"""Masks with more values are label maps only if they are flat nearly everywhere, like numbered cells [D]."""
FLAT, FLAT_OF_MANY = 0.5, 0.8
"""Share of a label map's pixels, besides the background and the commonest label, that are in 2×2 blocks of one value
[D]. The soft edges of a two-valued mask, and photographs, have few such blocks."""
RAMP = 0.3
"""Share of pixels between a darker and a brighter neighbour from which thin areas are soft edges, not labels [D]."""
NOISE = 0.1
"""Values this close to black or to the brightest value, as a share of it, are the noise of compression [D]."""
GREYNESS, LEAST_GREY = 0.25, 0.03
"""A mask with soft edges is nearly two-valued: its greyness, the mean distance of its values from black or from the
brightest value as a share of that, is below `LEAST_GREY`, or below `GREYNESS` of the share of pixels above half of that
value (or below it, if these are fewer) [D]. 960 images of the six datasets at hand, whole and reduced, as PNG and JPEG,
exceed both, with 0.056 and 0.31 at least; 480 reduced masks have at most 0.027."""


@dataclass(frozen=True)
class RawMask:
    """A mask whose foreground is not decided yet.

    Attributes:
        name: of the mask, for messages.
        kind: of the values: "grey", palette "index", "colour" as 0xRRGGBB, or "soft" for grey values of a lossy format.
        values: (H, W), integers from 0.
        palette: colours of the indices as 0xRRGGBB, (N,); None without a palette.
    """

    name: str
    kind: Kind
    values: np.ndarray
    palette: np.ndarray | None = None


def of_array(mask: np.ndarray, name: str) -> RawMask:
    """An array as a mask.

    Args:
        mask: (H, W) or (H, W, 1) of bool or numbers from 0; or colours, uint8 (H, W, 3) or (H, W, 4).
        name: used in error messages.

    Raises:
        MetasegError: on another shape or type, or negative values.
    """
    pixels = np.asarray(mask)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,), (4,)) or not pixels.size:
        raise MetasegError(f"{name} must have the shape (H, W), or (H, W, 3 or 4) of colours, found {np.shape(mask)}.")
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise MetasegError(f"{name} must hold its colours as uint8, found {pixels.dtype}; convert it.")
        return RawMask(name, "colour", _painted(pixels))
    if pixels.dtype == bool:
        return RawMask(name, "grey", pixels.astype(np.uint8))
    if not np.issubdtype(pixels.dtype, np.number) or not np.isfinite(pixels).all() or pixels.min() < 0:
        raise MetasegError(f"{name} must hold numbers from 0 up, above 0 for the foreground, found others.")
    if np.issubdtype(pixels.dtype, np.floating):
        whole = np.rint(pixels)
        # Fractions up to 1 are probabilities or soft edges.
        pixels = (whole if pixels.max() > 1 or (whole == pixels).all() else np.rint(pixels * 255)).astype(np.int64)
    return RawMask(name, "grey", pixels)


def coded(colours: np.ndarray) -> np.ndarray:
    """Colours, uint8 (…, 3), as integers 0xRRGGBB."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _painted(pixels: np.ndarray) -> np.ndarray:
    """The colours of an image (H, W, 3 or 4) as 0xRRGGBB, 0 where it is transparent."""
    colours, opacity = pixels[..., :3], pixels[..., 3] if pixels.shape[2] == 4 else np.full(pixels.shape[:2], 255)
    visible = (opacity > opacity.max() / 2) & (opacity > 0)
    if visible.all():
        return coded(colours) if opacity.min() == 255 else coded(colours * (opacity[..., None] / 255))
    codes = coded(colours)
    of_visible = np.unique(codes[visible])
    if len(of_visible) > MANY:
        return np.where(visible, 0xFFFFFF, 0)  # cut out of a photograph: its shape is the mask
    # Where nothing is transparent black, black is a colour like others.
    return np.where(visible, codes if len(of_visible) > 1 else np.maximum(codes, 1), 0)


@dataclass(frozen=True)
class Survey:
    """What a decision needs to know of one mask: how many pixels have each value, and how they lie.

    Attributes:
        name: of the mask.
        kind: as in `RawMask`.
        values: (N,), distinct, ascending.
        pixels: (N,), number of pixels of each value.
        flat: (N,), those in a 2×2 block of one value.
        ramp: (N,), those between a darker and a brighter neighbour.
        palette: as in `RawMask`.
    """

    name: str
    kind: Kind
    values: np.ndarray
    pixels: np.ndarray
    flat: np.ndarray
    ramp: np.ndarray
    palette: np.ndarray | None = None

    def renamed(self, kind: Kind, values: np.ndarray) -> Survey:
        """The same with other values, of which several may be equal."""
        distinct, place = np.unique(values, return_inverse=True)
        pixels, flat, ramp = (np.bincount(place, one, len(distinct)) for one in (self.pixels, self.flat, self.ramp))
        return Survey(self.name, kind, distinct, pixels, flat, ramp)


def survey(raw: RawMask) -> Survey:
    """Look at a mask.

    Raises:
        MetasegError: if it is a photograph.
    """
    values, place = np.unique(raw.values, return_inverse=True)
    place = place.reshape(raw.values.shape)
    brightness = _brightness(raw.kind, values)[place]
    dark, bright = ndimage.minimum_filter(brightness, 3), ndimage.maximum_filter(brightness, 3)
    ramp = (dark < brightness) & (brightness < bright)
    flat, steep = (np.bincount(place[which], minlength=len(values)) for which in (_flat(place), ramp))
    found = Survey(raw.name, raw.kind, values, np.bincount(place.ravel()), flat, steep, raw.palette)
    if len(values) > MANY:
        _nature(found)
    return found


def _flat(values: np.ndarray) -> np.ndarray:
    """Pixels in a 2×2 block of one value: bool (H, W)."""
    height, width = values.shape
    corner = values[:-1, :-1]
    block = (corner == values[1:, :-1]) & (corner == values[:-1, 1:]) & (corner == values[1:, 1:])
    found = np.zeros(values.shape, bool)
    for down, right in product((0, 1), (0, 1)):
        found[down : height - 1 + down, right : width - 1 + right] |= block
    return found


def _brightness(kind: Kind, values: np.ndarray) -> np.ndarray:
    """Grey values, or the brightest channel of colours."""
    if kind != "colour":
        return values
    return np.maximum(np.maximum(values >> 16, values >> 8 & 255), values & 255)


def _nature(one: Survey) -> Literal["labels", "soft"]:
    """Whether values are labels, or a two-valued mask with soft edges.

    Raises:
        MetasegError: if they are neither.
    """
    if len(one.values) <= 2:
        return "labels"
    brightness = _brightness(one.kind, one.values)
    highest = brightness.max()
    shares = one.pixels / one.pixels.sum()
    grey = float(shares @ np.minimum(brightness, highest - brightness)) / highest
    foreground = float(shares[brightness > highest / 2].sum())
    two_valued = grey < max(LEAST_GREY, GREYNESS * min(foreground, 1 - foreground))
    others = (one.values > 0) & (np.arange(len(one.values)) != np.argmax(np.where(one.values > 0, one.pixels, 0)))
    flat, ramp = (float(part[others].sum() / one.pixels[others].sum()) for part in (one.flat, one.ramp))
    between = others & (brightness > NOISE * highest) & (brightness < (1 - NOISE) * highest)
    if one.kind != "soft" and len(one.values) <= MANY and (flat >= FLAT or (between.any() and ramp < RAMP)):
        return "labels"
    if two_valued:
        return "soft"
    if one.kind != "soft" and flat >= FLAT_OF_MANY:
        return "labels"
    raise MetasegError(
        f"Expected a mask, of few values, found {len(one.values)} values as in a photograph in {one.name}; it may be "
        "an image in a mask's place."
    )


@dataclass(frozen=True)
class Rule:
    """How masks of one kind are read.

    Attributes:
        labels: value → label, 0 for the background; None: soft edges.
        above: soft edges: the foreground is brighter than this.
    """

    labels: Mapping[int, int] | None
    above: float = 0.0


@dataclass(frozen=True)
class Reading:
    """How a set of masks is read.

    Attributes:
        rules: kind of mask, after palettes → its rule.
        by_colour: whether palettes are read by their colours, as their indices mean nothing.
        label: the label that is foreground; None: all but the background.
    """

    rules: Mapping[Kind, Rule]
    by_colour: bool
    label: int | None = None

    @classmethod
    def of_colours(cls, colours: Mapping[int, int]) -> Reading | None:
        """How a set was read of which only `colours` is known, for `decide`; None if it had none."""
        return cls({"colour": Rule(colours)}, by_colour=False) if colours else None

    @property
    def colours(self) -> Mapping[int, int]:
        """Colour, 0xRRGGBB → label, 0 for the background; empty if no mask of the set is in colour."""
        return (self.rules["colour"].labels or {}) if "colour" in self.rules else {}

    def after(self, earlier: Reading | None) -> Reading:
        """The same, with the colours that only an earlier set had."""
        if earlier is None or not earlier.colours:
            return self
        return replace(self, rules={**self.rules, "colour": Rule({**earlier.colours, **self.colours})})

    @property
    def labels(self) -> list[int]:
        """All labels, ascending, without the background."""
        found = {label for rule in self.rules.values() for label in (rule.labels or {}).values()}
        return sorted(found - {0})

    @property
    def empty(self) -> bool:
        """Whether no mask of the set has any foreground."""
        return not self.labels and all(rule.labels is not None for rule in self.rules.values())

    def require(self, label: int) -> None:
        """Refuse a label that no mask of the set has.

        Raises:
            MetasegError: if none has it.
        """
        if label not in self.labels:
            found = f"labels {listed(self.labels)}" if self.labels else "no labels: they are empty or have soft edges"
            raise MetasegError(f"Expected label={label} in the masks, found {found}; choose another, or omit label.")

    def foreground(self, raw: RawMask) -> np.ndarray:
        """The foreground of a mask of the set, bool (H, W).

        Raises:
            MetasegError: if it has values that no mask of the set had.
        """
        values, place = np.unique(raw.values, return_inverse=True)
        kind, values = _settled(raw.kind, values, raw.palette, self.by_colour, "colour" in self.rules)
        rule = self.rules.get(kind)
        if rule is None or (rule.labels is not None and not rule.labels.keys() >= set(values.tolist())):
            raise MetasegError(f"Expected a mask like the others, found other values in {raw.name}.")
        if rule.labels is None:
            two_valued = len(values) <= 2 and 0 in values  # without soft edges, unlike others
            chosen = _brightness(kind, values) > (0 if two_valued else rule.above)
        else:
            labels = np.array([rule.labels[value] for value in values.tolist()])
            chosen = labels > 0 if self.label is None else labels == self.label
        return chosen[place].reshape(raw.values.shape)

    def sentence(self) -> str:
        """What is read, e.g. "3 labels 0, 1, 2; foreground = everything above 0; label=N chooses one"."""
        return "; ".join(dict.fromkeys(self._sentences()))

    def _sentences(self) -> Iterator[str]:
        for kind, rule in self.rules.items():
            if rule.labels is None:
                yield f"soft edges; foreground = brighter than {rule.above:g}"
                continue
            if kind == "colour":
                named = listed([f"{label} = #{code:06x}" for code, label in rule.labels.items() if label])
                background = next((code for code, label in rule.labels.items() if not label), 0)
                yield f"{plural(sum(map(bool, rule.labels.values())), 'colour')} on #{background:06x}: {named}"
            elif len(rule.labels) > 2:
                what = "labels, as palette indices," if kind == "index" else "labels"
                yield f"{len(rule.labels)} {what} {listed(sorted(rule.labels))}"
            else:
                yield f"{'two values' if len(rule.labels) == 2 else 'one value'}, {listed(sorted(rule.labels))}"
            if self.label is not None:
                yield f"foreground = label {self.label}"
            elif len(self.labels) > 1:
                yield "foreground = everything above the background; label=N chooses one"


def decide(
    surveys: Sequence[Survey], label: int | None = None, like: Reading | None = None, some: bool = True
) -> Reading:
    """The rule for a set of masks.

    - Values of a palette are its indices, unless index 0 is not the background (not black, though black is used) or
      masks differ in the colours of an index; then they are colours.
    - Grey values and colours are labels if they are few and lie in areas; then 0, black or (without black) the
      commonest colour is the background. Without 0, the lowest of several grey values is.
    - Otherwise they are the soft edges of a two-valued mask, and the foreground is above half of the largest value.

    Args:
        surveys: of all masks.
        label: the label that is foreground; None: all but the background.
        like: how an earlier set was read: its colours keep their labels, and some of its labels may be missing.
        some: whether to refuse a set of labels without the one chosen.

    Raises:
        MetasegError: if a mask is a photograph, no mask has the label, or the values are not labels.
    """
    known = {} if like is None else like.colours
    # If labels stand for colours, indices are not labels, and white is not a grey value.
    by_colour = bool(like and known and "index" not in like.rules) or _misleading(
        [one for one in surveys if one.palette is not None]
    )
    in_colour = bool(known) or any(
        kind == "colour" and not _grey(values).all()
        for kind, values in (_settled(one.kind, one.values, one.palette, by_colour, True) for one in surveys)
    )
    groups: dict[Kind, list[Survey]] = {}
    for one in surveys:
        settled = one.renamed(*_settled(one.kind, one.values, one.palette, by_colour, in_colour))
        groups.setdefault(settled.kind, []).append(settled)
    reading = Reading({kind: _rule(kind, members, known) for kind, members in groups.items()}, by_colour, label)
    soft = any(rule.labels is None for rule in reading.rules.values())
    found = like is not None and {label, *reading.labels} <= set(like.labels)
    if label is not None and (soft or (some and not found)):
        reading.require(label)
    return reading


def foregrounds(
    raws: Sequence[RawMask], label: int | None = None, some: bool = True, like: Reading | None = None
) -> tuple[list[np.ndarray], Reading]:
    """The foreground of each mask of a set, bool (H, W), and how they were read.

    Args:
        raws: the masks.
        label: as for `decide`.
        some: whether to refuse a set without any foreground.
        like: as for `decide`.

    Raises:
        MetasegError: as `decide`, or if all masks are empty.
    """
    reading = decide([survey(raw) for raw in raws], label if raws else None, like, some)
    if some:
        require_foreground(reading, [raw.name for raw in raws])
    return [reading.foreground(raw) for raw in raws], reading


def require_foreground(reading: Reading, names: Sequence[str]) -> None:
    """Refuse a set of masks, given their names, if all are empty.

    Raises:
        MetasegError: if they are.
    """
    if reading.empty:
        raise MetasegError(
            f"Expected foreground in at least one mask, found {plural(len(names), 'empty mask')} "
            f"({listed(names, 3)}); mark what is to be segmented."
        )


def _rule(kind: Kind, members: Sequence[Survey], known: Mapping[int, int]) -> Rule:
    """The rule for masks of one kind; `known`: colour → label, of an earlier set."""
    parts = [
        np.concatenate(parts) for parts in zip(*((one.pixels, one.flat, one.ramp) for one in members), strict=True)
    ]
    values = np.concatenate([one.values for one in members])
    whole = Survey(members[0].name, kind, values, *parts).renamed(kind, values)
    if _nature(whole) == "soft":
        return Rule(None, _brightness(kind, whole.values).max() / 2)
    background = _background(kind, dict(zip(whole.values.tolist(), whole.pixels.tolist(), strict=True)), known)
    others = [value for value in whole.values.tolist() if value != background]
    if kind != "colour":
        return Rule({background: 0} | {value: value for value in others})
    free = count(max(known.values(), default=0) + 1)
    return Rule({background: 0} | {value: known[value] if value in known else next(free) for value in others})


def _background(kind: Kind, pixels: Mapping[int, int], known: Mapping[int, int]) -> int:
    """The value that is background, which need not be there; `pixels`: value → their number, in ascending order."""
    values = list(pixels)
    if kind == "colour" and (earlier := [value for value in values if known.get(value) == 0]):
        return earlier[0]
    if 0 in pixels or kind == "index" or len(values) == 1:
        return 0
    if kind != "colour":
        return values[0]
    return max((value for value in values if value not in known), key=lambda value: pixels[value], default=0)


def _misleading(surveys: Sequence[Survey]) -> bool:
    """Whether the indices of palettes mean nothing: index 0 is not the background, or palettes differ."""
    colours: dict[int, int] = {}
    coloured = False
    for one in surveys:
        assert one.palette is not None
        coloured |= bool(one.palette[0] != 0)
        for index, colour in zip(one.values.tolist(), one.palette[one.values].tolist(), strict=True):
            if colours.setdefault(index, colour) != colour:
                return True
    return coloured and 0 in colours.values()


def _settled(
    kind: Kind, values: np.ndarray, palette: np.ndarray | None, by_colour: bool, in_colour: bool
) -> tuple[Kind, np.ndarray]:
    """A mask's kind and values, with palettes looked up if they are read by colour, and grey colours as grey values."""
    if kind == "index" and by_colour:
        assert palette is not None
        kind, values = "colour", palette[values]
    if kind == "colour" and not in_colour:
        return "grey", values & 255
    return kind, values


def _grey(colours: np.ndarray) -> np.ndarray:
    return (colours >> 16 == colours & 255) & (colours >> 8 & 255 == colours & 255)
