"""The amount of work of a test, for its progress display.

The unit is one image's pass through one network. It is an estimate, used only to extrapolate the time left from the
measured pace.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from metaseg.progress import Progress

OF_STEP = 3
"""Passes per image in an adaptation step: forward, and twice as much backward [D]."""


@dataclass(frozen=True)
class Work:
    """The work of `metaseg.evaluation.metatest.score_target`.

    Attributes:
        draws: support sets.
        steps: adaptation steps up to the last scored one.
        support: support images per adaptation step, on average, summed over all networks of an ensemble.
        points: adaptation step → (images segmented after it, forward passes per image).
    """

    draws: int
    steps: int
    support: float
    points: Mapping[int, tuple[int, int]]

    @property
    def of_draw(self) -> float:
        """Passes of one draw."""
        return OF_STEP * self.steps * self.support + sum(images * members for images, members in self.points.values())

    @property
    def total(self) -> float:
        """Passes of all draws."""
        return self.draws * self.of_draw

    def done(self, draw: int, step: float, images: int) -> float:
        """Passes completed.

        Args:
            draw: the draw, from 0.
            step: adaptation steps taken in it.
            images: images segmented after that step.
        """
        before = sum(count * members for after, (count, members) in self.points.items() if after < step)
        most, members = self.points.get(int(step), (0, 0))
        return draw * self.of_draw + OF_STEP * step * self.support + before + min(images, most) * members


def reporter(progress: Progress, parts: Mapping[str, Work], name: str) -> Callable[[int, float, int], None]:
    """The progress callback for `score_target` in part `name` of a test.

    Args:
        progress: of the whole test, with the sum of the parts' work as its total.
        parts: name → work, in their order.
        name: the part, as displayed.
    """
    names = list(parts)
    before = sum(parts[one].total for one in names[: names.index(name)])
    work = parts[name]

    def report(draw: int, step: float, images: int) -> None:
        texts = [name, f"draw {draw + 1}/{work.draws}"]
        if work.steps:
            texts.append(f"step {int(step)}/{work.steps}")
        count, _ = work.points.get(int(step), (0, 0))
        if 0 < images < count:
            texts.append(f"image {images}/{count}")
        progress.note(", ".join(texts))
        progress.update(before + work.done(draw, step, images))

    return report
