"""The page: a thin gradio layer over sessions, concerned only with text and layout."""

from __future__ import annotations

import functools
import html
import inspect
import traceback
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from metaseg.adapting.formats import READABLE
from metaseg.adapting.model import BUDGET
from metaseg.app import texts
from metaseg.app.picture import FRAME
from metaseg.app.session import Session
from metaseg.app.sessions import Sessions
from metaseg.errors import MetasegError

CSS = """
.gradio-container {max-width: 1100px !important; margin: auto}
#images .grid-wrap {max-height: 330px; min-height: 120px}
#images .grid-container {grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important}
#images .caption-label {max-width: 100%; font-size: 12px}
#editor button[aria-label="Color"] {display: none}
.privacy {opacity: 0.8}
.step h3 {margin: 4px 0 0 0}
footer {display: none !important}
"""
_SHOWN_AT_ONCE = 4  # refused files named individually
_PROGRESS = gr.Progress()  # a default that gradio fills in
_PAINT = ("rgb(255, 235, 0)", 0.5)
_COVERED = 64  # of 255: minimum opacity that counts as paint; half of a stroke's, i.e. the middle of its soft edge
_A_TOUCH = 50  # pixels of the frame: half of the smallest dot of the brush
_ASK_BEFORE_LEAVING = """() => window.addEventListener("beforeunload", event => {
  if (document.querySelector("#images img")) event.preventDefault();
})"""

Updates = dict[Any, Any]
"""Component → new value."""


def theme() -> gr.themes.Base:
    """Colours and system fonts, so that nothing is fetched from the network."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    )


def build(sessions: Sessions) -> gr.Blocks:
    """The page; every open copy has its own session."""
    return _Page(sessions).blocks


class _Page:
    """The components and their event handlers; most handlers return everything that depends on the session."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        with gr.Blocks(title="metaseg", analytics_enabled=False) as self.blocks:
            gr.Markdown(texts.TITLE)
            gr.Markdown(texts.PRIVACY, elem_classes="privacy")
            self.chosen = gr.State(None)  # name of the selected image
            self._lay_out_upload()
            self._lay_out_canvas()
            self._lay_out_learning()
            self._wire()

    def _lay_out_upload(self) -> None:
        """Step 1."""
        kinds = [*READABLE, ".gz"]
        gr.Markdown("### 1 · Add images", elem_classes="step")
        self.images = gr.File(
            file_count="multiple",
            file_types=kinds,
            label=texts.images(self.sessions.limits),
            height=150,
            elem_id="upload",
        )
        with gr.Accordion("I have masks for some of them", open=False, elem_id="have-masks"):
            gr.Markdown(texts.MASKS)
            self.masks = gr.File(file_count="multiple", file_types=kinds, label="Masks", height=120, elem_id="masks")
        self.status = gr.Markdown(elem_id="status")

    def _lay_out_learning(self) -> None:
        """Steps 3 to 5, below the images they are about."""
        gr.Markdown("### 3 · Learn and segment", elem_classes="step")
        self.budget = gr.Radio(texts.BUDGETS, value=BUDGET, label=texts.BUDGET, elem_id="budget")
        self.adapt = gr.Button("Learn and segment", variant="primary", interactive=False, elem_id="adapt")
        self.notes = gr.Markdown(elem_id="notes")
        self.estimated = gr.Markdown(elem_id="estimated")
        gr.Markdown("### 4 · Review and correct", elem_classes="step")
        gr.Markdown(texts.REVIEW)
        self.by_doubt = gr.Checkbox(False, label=texts.BY_DOUBT, elem_id="by-doubt")
        gr.Markdown("### 5 · Download", elem_classes="step")
        self.download = gr.DownloadButton("Download the masks (ZIP)", interactive=False, elem_id="download")
        gr.Markdown(texts.DOWNLOAD)

    def _lay_out_canvas(self) -> None:
        """Step 2: the gallery and the selected image."""
        gr.Markdown("### 2 · Mark the lesion in a few", elem_classes="step")
        gr.Markdown(texts.GALLERY)
        self.gallery = gr.Gallery(
            show_label=False,
            columns=6,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="images",
        )
        self.title = gr.Markdown(texts.NOTHING_CHOSEN, elem_id="title")
        # Always visible: if gradio 6.31 shows the canvas after its first image, it cannot be painted on.
        with gr.Column():
            with gr.Row():
                self.save = gr.Button("Save as mask", variant="primary", interactive=False, elem_id="save")
                self.empty = gr.Button("No lesion here", interactive=False, elem_id="empty")
                self.forget = gr.Button("Discard my mask", interactive=False, elem_id="forget")
                self.remove = gr.Button("Remove image", interactive=False, elem_id="remove")
            self.editor = gr.ImageEditor(
                show_label=False,
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=12, colors=[_PAINT], color_mode="fixed"),
                eraser=gr.Eraser(default_size=12),
                format="png",
                height=520,
                placeholder=texts.NO_CANVAS,
                canvas_size=FRAME[::-1],
                buttons=["fullscreen"],
                interactive=True,
                elem_id="editor",
            )
            self.fill = gr.Checkbox(True, label=texts.FILL, elem_id="fill")

    def _wire(self) -> None:
        """Connect each event with its handler."""
        everything = [
            *(self.chosen, self.gallery, self.status, self.notes, self.adapt, self.estimated, self.download),
            *(self.save, self.empty, self.forget, self.remove, self.title, self.editor),
        ]

        def on(
            event: Callable[..., Any], handler: Callable[..., Any], inputs: list[Any], outputs: Any, **how: Any
        ) -> None:
            event(_errors_shown(handler), inputs, outputs, api_visibility="private", **how)

        # One adaptation saturates the processor. Other users queue and see their position.
        alone = {"concurrency_id": "network", "concurrency_limit": 1}
        on(self.blocks.load, self.start, [], everything, show_progress="hidden")
        self.blocks.unload(self.end)
        for file, handler in ((self.images, self.add_images), (self.masks, self.add_masks)):
            on(file.upload, handler, [file], [*everything, file], show_progress_on=self.status)
        self.blocks.load(None, js=_ASK_BEFORE_LEAVING)
        painted = [self.editor, self.chosen, self.fill]
        on(self.gallery.select, self.choose, [self.editor, self.fill], everything, show_progress="hidden")
        on(self.by_doubt.change, self.sort, [self.by_doubt], everything, show_progress="hidden")
        on(self.save.click, self.save_mask, painted, everything, show_progress_on=self.title)
        for button, change in (
            (self.empty, Session.mark_empty),
            (self.forget, Session.remove_mask),
            (self.remove, Session.remove),
        ):
            on(button.click, self.changing(change), [self.chosen], everything, show_progress="hidden")
        learning = [self.budget, self.editor, self.fill]
        on(self.adapt.click, self.learn, learning, everything, show_progress_on=self.adapt, **alone)

    def _of(self, request: gr.Request) -> Session:
        return self.sessions.of(_key(request))

    def _shown(self, session: Session, canvas: bool = True) -> Updates:
        """Everything that depends on the session; `canvas=False` leaves the canvas alone, as the user may be painting.

        The session holds the selected image, which may have changed since the request.
        """
        name = session.chosen
        pictures = session.ordered()
        picture = session.pictures.get(name) if name else None
        marked, found = len(session.annotated), len(session.segmented)
        result: Updates = {
            self.chosen: name,
            self.gallery: gr.update(
                value=[(str(one.tile()), texts.caption(one)) for one in pictures],
                selected_index=next((place for place, one in enumerate(pictures) if one.name == name), None),
            ),
            self.status: texts.status(session),
            self.notes: texts.notes(session),
            self.adapt: gr.update(value=texts.learn(marked, len(pictures)), interactive=marked > 0),
            self.estimated: texts.estimated(session.estimate()),
            self.download: gr.update(
                value=str(session.download()) if marked or found else None, interactive=bool(marked or found)
            ),
            **dict.fromkeys((self.save, self.empty, self.remove), gr.update(interactive=picture is not None)),
            self.forget: gr.update(interactive=picture is not None and picture.annotated),
            self.title: texts.title(picture),
        }
        if canvas:
            result[self.editor] = (
                {"background": str(picture.shown), "layers": [str(picture.paint())], "composite": None}
                if picture
                else None
            )
        return result

    def start(self, request: gr.Request) -> Updates:
        return self._shown(self._of(request))

    def end(self, request: gr.Request) -> None:
        self.sessions.end(_key(request))

    def add_images(self, files: list[str] | None, request: gr.Request, progress: gr.Progress = _PROGRESS) -> Updates:
        session = self._of(request)
        _warn(session.add_images(files or [], progress))
        return self._shown(session, canvas=False) | {self.images: None}

    def add_masks(self, files: list[str] | None, request: gr.Request, progress: gr.Progress = _PROGRESS) -> Updates:
        session = self._of(request)
        _warn(session.add_masks(files or [], progress))
        return self._shown(session) | {self.masks: None}

    def choose(
        self, painted: dict[str, Any] | None, closed: bool, request: gr.Request, event: gr.SelectData
    ) -> Updates:
        session = self._of(request)
        names = [picture.name for picture in session.ordered()]
        _keep(session, painted, closed)
        session.chosen = names[event.index] if event.index < len(names) else None
        return self._shown(session)

    def sort(self, by_doubt: bool, request: gr.Request) -> Updates:
        session = self._of(request)
        session.by_doubt = by_doubt
        return self._shown(session, canvas=False)

    def save_mask(self, painted: dict[str, Any] | None, name: str | None, closed: bool, request: gr.Request) -> Updates:
        session = self._of(request)
        session.paint(session.picture(name).name, _covered(painted), closed)
        return self._shown(session)

    def changing(self, change: Callable[[Session, str], None]) -> Callable[[str | None, gr.Request], Updates]:
        """A handler that applies a change to a named image."""

        def handler(name: str | None, request: gr.Request) -> Updates:
            session = self._of(request)
            change(session, session.picture(name).name)
            return self._shown(session)

        return handler

    def learn(
        self,
        budget: float,
        painted: dict[str, Any] | None,
        closed: bool,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> Updates:
        session = self._of(request)
        _keep(session, painted, closed)
        session.adapt(progress, budget)
        looked_at = session.pictures.get(session.chosen or "")
        return self._shown(session, canvas=looked_at is not None and not looked_at.annotated)


def _keep(session: Session, painted: dict[str, Any] | None, fill: bool) -> None:
    """Save paint that the user has not saved, before the canvas shows another image or the network learns."""
    picture = session.pictures.get(session.chosen or "")
    if picture is None:
        return
    covered = _covered(painted)
    if covered[picture.within].any() and (covered != picture.drawn_mask()).sum() > _A_TOUCH:
        session.paint(picture.name, covered, fill)


def _key(request: gr.Request) -> str:
    if not request.session_hash:
        raise MetasegError("The page has no session; reload it.")
    return request.session_hash


def _covered(painted: dict[str, Any] | None) -> np.ndarray:
    """The painted area, bool, of the shape of FRAME; empty without a layer."""
    layers = [np.asarray(layer)[..., 3] > _COVERED for layer in (painted or {}).get("layers", [])]
    return np.any(layers, axis=0) if layers else np.zeros(FRAME, bool)


def _warn(sentences: list[str]) -> None:
    for sentence in sentences[:_SHOWN_AT_ONCE]:
        gr.Warning(html.escape(sentence), duration=None, title="Please look")
    if len(sentences) > _SHOWN_AT_ONCE:
        gr.Warning(
            f"{len(sentences) - _SHOWN_AT_ONCE} more files have similar problems.", duration=None, title="Please look"
        )


def _errors_shown(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler so that errors appear as one sentence on the page, with user-supplied file names escaped."""

    @functools.wraps(handler)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return handler(*arguments, **options)
        except MetasegError as error:
            raise gr.Error(html.escape(str(error)), duration=None, title="Not done", print_exception=False) from None
        except Exception as error:
            traceback.print_exc()  # on the terminal
            sentence = f"Unexpected error ({type(error).__name__}); your images and masks are still there."
            raise gr.Error(sentence, duration=None, title="Not done", print_exception=False) from None

    call.__signature__ = inspect.signature(handler, eval_str=True)  # type: ignore[attr-defined]
    return call
