"""What the page says. Names of files are users' text: escaped."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from metaseg.app.uploads import Limits
from metaseg.data.check import plural

if TYPE_CHECKING:
    from metaseg.app.picture import Picture
    from metaseg.app.session import Session

TITLE = "# Segment images from a few that you mark"
PRIVACY = (
    "Everything stays on this computer. Images lie in a temporary folder while this page is open, and are removed when "
    "you close or reload it: download first. For research, not for diagnosis."
)
MASKS = (
    "Upload their files after the images. A mask is white where the lesion is, has the size of its image and its "
    "name: `a.png` or `a_mask.png` for `a.jpg`."
)
GALLERY = "Wide blue outlines (✓) are your masks; thin yellow ones were found, with how sure the network is."
NOTHING_CHOSEN = "*Click on an image to mark the lesion in it.*"
NO_CANVAS = "Click on an image above"
FILL = "Painting an outline is enough: fill what it closes in"
ESTIMATE = "*Optional: hides each marked image in turn and tries to find its lesion. Takes as many times as long.*"
STEPS = "How long to learn; empty: as in training"
LR = "Empty: as in training"
DOWNLOAD = (
    "*A PNG for each image at its own size, white where the lesion is, and a table. Your masks go before those found.*"
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
    """Below an image of the gallery, which cuts the end of long names off."""
    if picture.annotated:
        return f"✓ {picture.name}"
    if picture.line:
        return f"{confidence(picture)} · {picture.name}"
    return picture.name


def confidence(picture: Picture) -> str:
    """How sure the network is of what it found."""
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
        sure = "nothing was found" if not picture.line["area"] else f"found, {confidence(picture)} sure"
        what = f"{sure}; if it is wrong, paint or erase and save, then learn again"
    else:
        what = "paint over the lesion, then save"
    return f"**{escaped(picture.name)}** · {what}"


def status(session: Session) -> str:
    """Where the session stands, and what to do next."""
    count, marked, found = len(session.pictures), len(session.annotated), len(session.segmented)
    if not count:
        return "No images yet."
    said = f"{plural(count, 'image')}, {marked} with your mask, {found} segmented."
    if not marked:
        return f"{said} Click on an image and mark the lesion; five to twenty marked images work best."
    if session.stale:
        return f"{said} **Images or masks have changed: learn again to see the effect.**"
    if not found:
        return f"{said} {'More marked images make it better.' if marked < 5 else 'Ready to learn.'}"
    doubtful = session.doubtful()
    if not doubtful:
        return said
    return f"{said} Look first at the least sure: {', '.join(f'**{escaped(name)}**' for name in doubtful)}."


def notes(session: Session) -> str:
    """What is doubtful, as a list."""
    return "\n".join(f"- ⚠ {escaped(sentence)}" for sentence in session.notes)


def estimated(sentence: str) -> str:
    """The estimate, with what it means."""
    return (
        f"{escaped(sentence)}\n\n*Dice is the overlap of what is found with what you marked: 100 % is all, 0 % none.*"
    )


def escaped(text: str) -> str:
    """Users' text, so that it is neither HTML nor Markdown."""
    return re.sub(r"([\\`*_\[\]~#|])", r"\\\1", html.escape(text))
