"""The page's texts. File names come from users and are escaped."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from metaseg.app.uploads import Limits
from metaseg.data.check import plural

if TYPE_CHECKING:
    from metaseg.app.picture import Picture
    from metaseg.app.session import Session

TITLE = "# Segment images from a few marked examples"
PRIVACY = (
    "Everything stays on this computer. Images are kept in a temporary folder and deleted when you close or reload "
    "this page: download your results first. For research, not for diagnosis."
)
MASKS = (
    "Upload the masks after the images. A mask is white inside the lesion and has the size and name of its image: "
    "`a.png` or `a_mask.png` for `a.jpg`."
)
GALLERY = (
    "Wide blue outlines (✓) are your masks; thin yellow ones are predictions, shown with the network's confidence."
)
REVIEW = (
    "Look through the images above. Correct a mask by painting or erasing; paint is saved when you go on. Learn again."
)
BY_DOUBT = "Show the least confident first"
NOTHING_CHOSEN = "*Click an image to mark the lesion in it.*"
NO_CANVAS = "Click an image above"
FILL = "Fill closed outlines, so that painting the outline is enough"
BUDGET = "Time for learning"
BUDGETS = [("ten seconds", 10.0), ("a minute", 60.0), ("five minutes", 300.0)]
"""Label and seconds."""
DOWNLOAD = (
    "*A PNG per image at its original size, white inside the lesion, and a table. Your masks replace predictions.*"
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


def title(picture: Picture | None) -> str:
    """Above the canvas."""
    if picture is None:
        return NOTHING_CHOSEN
    if picture.annotated:
        what = "your mask; paint or erase to change it, then save"
    elif picture.line:
        sure = "nothing found" if not picture.line["area"] else f"predicted, confidence {confidence(picture)}"
        what = f"{sure}; to correct it, paint or erase, save, then learn again"
    else:
        what = "paint over the lesion, then save"
    return f"**{escaped(picture.name)}** · {what}"


def status(session: Session) -> str:
    """The session's status and next step."""
    count, marked, found = len(session.pictures), len(session.annotated), len(session.segmented)
    if not count:
        return "No images yet."
    said = f"{plural(count, 'image')}, {marked} with your mask, {found} segmented."
    if not marked:
        return f"{said} Click an image and mark the lesion; five to twenty marked images work best."
    if session.stale:
        return f"{said} **Images or masks have changed: learn again to see the effect.**"
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
    return re.sub(r"([\\`*_\[\]~#|])", r"\\\1", html.escape(text))
