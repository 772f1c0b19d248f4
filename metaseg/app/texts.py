"""The page's texts. File names come from users and are escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metaseg.app import outlines
from metaseg.app.uploads import Limits
from metaseg.errors import MetasegError, plural

if TYPE_CHECKING:
    from metaseg.app.picture import Picture
    from metaseg.app.session import Session

Colour = tuple[int, int, int]
WORD = "lesion"
"""What is segmented, until the user enters their own word."""
_LONGEST_WORD = 30

TITLE = "# Segment images from a few marked examples"
PRIVACY = (
    "Everything stays on this computer. Images are kept in a temporary folder and deleted when you close or reload "
    "this page, leave it unused for half a day, or lose the connection for ten minutes: download your results first. "
    "For research, not for diagnosis."
)
YOUR_WORD = "What do you want to segment?"
LABEL = "Label (for label maps; empty: everything but the background)"
BY_DOUBT = "Show the least confident first"
NO_CANVAS = "Click an image above"
DISCARD = "Discard my mask"
FILL = "Fill closed outlines, so that painting the outline is enough"
COMPARE = "Compare your mask and the prediction at full resolution"
COMPARED = "The saved mask and the prediction. Scroll to move; both sides move together."
BUDGET = "Time for learning"
BUDGETS = [("ten seconds", 10.0), ("a minute", 60.0), ("five minutes", 300.0)]
"""Label and seconds."""
REVIEW = (
    "Look through the images above. Correct a mask by painting or erasing; your paint is saved when you move on. Then "
    "learn again, from all marked images."
)
KEPT = "I have a saved segmenter"
KEEP = "Load a segmenter that this page or `metaseg adapt` saved: it segments all images without learning."
KEEPING = (
    "*The segmenter does the same for other images, here or with `metaseg adapt`. Its file contains small copies of "
    "the marked images: share it only with people who may see them.*"
)
GO_ON = "Learn from the images of the loaded segmenter as well"


def word(text: str | None) -> str:
    """A user's word for what is segmented: printable, on one line, at most 30 characters; `WORD` if empty."""
    printable = "".join(one if one.isprintable() else " " for one in text or "")
    return " ".join(printable.split())[:_LONGEST_WORD].strip() or WORD


def label(text: str | None) -> int | None:
    """The label of label maps in a text field; None if it is empty.

    Raises:
        MetasegError: unless it is a whole number from 1 up.
    """
    found = (text or "").strip()
    if not found:
        return None
    if not found.isdecimal() or not 1 <= int(found) < 2**31:
        raise MetasegError(
            f"Expected a label as a whole number from 1 up, found {found[:_LONGEST_WORD]}; change it, or leave it "
            "empty for everything but the background, and upload the masks again."
        )
    return int(found)


def mark(of: str) -> str:
    """Heading of step 2."""
    return f"## 2 · Mark the {escaped(of)} in a few"


def how_to_mark(of: str) -> str:
    """Below the heading of step 2."""
    name = escaped(of)
    return (
        f"Paint over the {name} in yellow. Or scribble: a few strokes inside in yellow and a few outside in pink, the "
        "second colour beside the canvas; everything else then counts as unmarked."
    )


def empty(of: str) -> str:
    """On the button for an image without foreground."""
    return f"No {of} here"


def masks(of: str) -> str:
    """Above the upload of masks."""
    return (
        f"Upload the masks after the images. A mask is white inside the {escaped(of)} and has the size and name of its "
        "image: `a.png` or `a_mask.png` for `a.jpg`. For one label of a label map, enter it first."
    )


def download(of: str) -> str:
    """Below the download of masks."""
    return (
        f"*A PNG per image at its original size, white inside the {escaped(of)}, and a table. Your masks replace "
        "predictions; scribbles do not.*"
    )


def legend() -> str:
    """Below the gallery, as HTML: what the outlines mean, by colour and line."""
    kinds = (
        ("solid", outlines.YOURS, "your mask (✓)"),
        ("dashed", outlines.PREDICTED, "prediction, with the network's confidence"),
    )
    swatches = "".join(
        f'<span class="swatch"><i style="border-top: 3px {line} rgb{colour}"></i></span>{line}: {what} '
        for line, colour, what in kinds
    )
    return f'<p id="legend">{swatches}</p>'


def comparison(picture: Picture | None, address: Callable[[Path], str]) -> str:
    """The selected image with the user's mask and with the prediction, as HTML.

    Outlines are drawn by the browser, so that they stay thin however far one zooms in.

    Args:
        picture: the selected image.
        address: file → its address in the page.
    """
    if picture is None:
        return f"<p>{NO_CANVAS}.</p>"
    sides = (
        ("Your mask", picture.yours(), "solid", outlines.YOURS),
        ("Prediction", picture.prediction(), "dashed", outlines.PREDICTED),
    )
    return f'<div class="sides">{"".join(_side(picture, address, *side) for side in sides)}</div>'


def _side(
    picture: Picture, address: Callable[[Path], str], what: str, mask: np.ndarray | None, line: str, colour: Colour
) -> str:
    height, width = picture.size
    said = f"{what}{'' if mask is not None else ': none yet'}"
    outline = "" if mask is None else f'<path class="{line}" stroke="rgb{colour}" d="{outlines.path(mask)}"/>'
    alternative = html.escape(f"{picture.name}. {said}")
    return (
        f'<figure><figcaption>{said}</figcaption><div class="pane" tabindex="0" role="group" aria-label="{said}">'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{alternative}">'
        f'<image href="{html.escape(address(picture.full()))}" width="{width}" height="{height}"/>{outline}</svg>'
        "</div></figure>"
    )


def images(limits: Limits) -> str:
    """Above the upload."""
    return f"Images: up to {limits.max_images}, {limits.max_mb:g} MB each"


def learn(marked: int, count: int) -> str:
    """On the main button."""
    if not marked:
        return "Learn and segment"
    return f"Learn from {plural(marked, 'marked image')}, segment {'all ' if count > 1 else ''}{count}"


def caption(picture: Picture) -> str:
    """Below an image of the gallery, which truncates long names."""
    if picture.annotated:
        return f"✓ {picture.name}"
    if picture.line:
        return f"{confidence(picture)} · {picture.name}"
    return picture.name


def confidence(picture: Picture) -> str:
    """The network's confidence in its prediction."""
    if picture.line is None or not picture.line["area"]:
        return "none found"
    return f"{100 * picture.line['confidence']:.0f} %"


def title(picture: Picture | None, of: str) -> str:
    """Above the canvas."""
    if picture is None:
        return f"*Click an image to mark the {escaped(of)} in it.*"
    if picture.scribbled:
        what = "your scribbles; add strokes inside or outside, then save"
    elif picture.annotated:
        what = "your mask; paint or erase to change it, then save"
    elif picture.line:
        sure = "nothing found" if not picture.line["area"] else f"predicted, confidence {confidence(picture)}"
        what = f"{sure}; to correct it, paint or erase, save, then learn again"
    else:
        what = f"paint over the {escaped(of)}, then save"
    return f"**{escaped(picture.name)}** · {what}"


def status(session: Session) -> str:
    """The session's status and next step."""
    count, marked, found = len(session.pictures), len(session.annotated), len(session.segmented)
    if not count:
        return "No images yet."
    said = f"{plural(count, 'image')}, {marked} marked by you, {found} segmented."
    if session.stale:
        return f"{said} **Images or masks have changed: learn again{', or only segment' if found < count else ''}.**"
    if not marked and not found:
        return f"{said} Click an image and mark the {escaped(session.word)}; five to twenty marked images work best."
    if not found:
        return f"{said} {'Marking more images improves the result.' if marked < 5 else 'Ready to learn.'}"
    doubtful = session.doubtful()
    if not doubtful:
        return said
    return f"{said} Check the least confident first: {', '.join(f'**{escaped(name)}**' for name in doubtful)}."


def notes(session: Session) -> str:
    """The warnings as a list."""
    return "\n".join(f"- ⚠ {escaped(sentence)}" for sentence in session.notes)


def estimated(sentences: list[str]) -> str:
    """The verdict and the estimate with an explanation, or why there are none; empty before learning."""
    if len(sentences) < 2:
        return escaped("".join(sentences))
    verdict, estimate = (escaped(sentence) for sentence in sentences)
    meaning = "*Dice is the overlap of prediction and mask: 100 % is perfect, 0 % is none.*"
    return f"**{verdict}**\n\n{estimate}\n\n{meaning}"


def escaped(text: str) -> str:
    """Users' text with HTML and Markdown escaped."""
    return html.escape(re.sub(r"([\\`*_\[\]~#|])", r"\\\1", text))
