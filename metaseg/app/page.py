"""The page: a thin gradio layer over sessions, concerned only with text and layout."""

from __future__ import annotations

import functools
import html
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import numpy as np

from metaseg.adapting.formats import READABLE
from metaseg.adapting.model import BUDGET
from metaseg.adapting.model_file import SUFFIX
from metaseg.app import texts
from metaseg.app.picture import FRAME, INSIDE, OPACITY, OUTSIDE, PAINTS
from metaseg.app.session import Session, Stopped
from metaseg.app.sessions import Sessions
from metaseg.errors import MetasegError

CSS = """
.gradio-container {max-width: 1100px !important; margin: auto}
#images .grid-wrap {max-height: 330px; min-height: 120px}
#images .grid-container {grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important}
#images .caption-label {max-width: 100%; font-size: 12px}
#legend .swatch i {display: inline-block; width: 28px; margin: 0 6px 4px 12px}
#legend .swatch {background: #444; padding: 4px 0; margin-right: 6px}
#compare {background: var(--body-background-fill)}
#compare .sides {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 8px}
#compare figure {margin: 0; min-width: 0}
#compare .pane {overflow: auto; max-height: 80vh}
#compare svg {display: block; width: calc(var(--zoom, 1) * 100%); height: auto}
#compare path {fill: none; stroke-width: 1.5px; vector-effect: non-scaling-stroke}
#compare path.dashed {stroke-dasharray: 5 4}
#editor .swatch {display: flex}
#editor button.color {width: auto; padding: 0 8px; color: black; font-size: 12px; opacity: 1}
#editor button.color::after {content: "inside"}
#editor button.color ~ button.color::after {content: "outside"}
@media (max-width: 600px) {#editor, #editor .image-container {height: 340px !important}}
.step h2 {margin: 4px 0 0 0; font-size: var(--text-lg)}
.or {color: inherit !important}
#packed, #editor button[aria-label="Clear canvas"] {display: none !important}
footer {display: none !important}
"""
_SHOWN_AT_ONCE = 4  # refused files named individually
_PROGRESS = gr.Progress()  # a default that gradio fills in
_BRUSHES = [(f"rgb{colour}", OPACITY) for colour in PAINTS.values()]
_COVERED = 64  # of 255: minimum opacity that counts as paint; half of a stroke's, i.e. the middle of its soft edge
_BLUE = sum(colour[2] for colour in PAINTS.values()) // 2  # of 255: paint of more blue is outside
_A_TOUCH = 50  # pixels of the frame: half of the smallest dot of the brush
_ASK_BEFORE_LEAVING = """() => window.addEventListener("beforeunload", event => {
  if (document.querySelector("#images img")) event.preventDefault();
})"""
# A finger on the canvas sends no mousedown, by which gradio 6.31 closes the palette.
_CLOSE_PALETTE = """() => document.addEventListener("click", event => {
  if (event.target.closest?.("#editor button.color"))
    setTimeout(() => document.body.dispatchEvent(new MouseEvent("mousedown", {bubbles: true})));
}, true)"""
_SCROLL_TOGETHER = """() => document.addEventListener("scroll", event => {
  if (!event.target.classList?.contains("pane")) return;
  for (const pane of document.querySelectorAll("#compare .pane"))
    pane.scrollTo(event.target.scrollLeft, event.target.scrollTop);
}, true)"""
GOODBYE = "goodbye"
"""Where a page reports that it is closed or reloaded; one that has merely lost its connection cannot."""
_SAY_GOODBYE = f"""key => addEventListener("pagehide", () => navigator.sendBeacon("{GOODBYE}/" + key))"""
_FETCH = """() => document.querySelector("#packed").click()"""
_ZOOM = """zoom => document.querySelector("#compare").style.setProperty("--zoom", zoom)"""
_FULL_SCREEN = """() => document.querySelector("#compare").requestFullscreen?.()"""

Updates = dict[Any, Any]
"""Component → new value."""


def theme() -> gr.themes.Base:
    """Colours and system fonts, so that nothing is fetched from the network."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    ).set(  # dark enough for white text
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
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
            gr.Markdown(texts.PRIVACY)
            self.chosen = gr.State(None)  # name of the selected image
            self.key = gr.Textbox(visible=False)  # of the session
            self._lay_out_upload()
            self._lay_out_canvas()
            self._lay_out_comparison()
            self._lay_out_learning()
            self._wire()

    def _lay_out_upload(self) -> None:
        """Step 1."""
        kinds = [*READABLE, ".gz"]
        gr.Markdown("## 1 · Add images", elem_classes="step")
        self.word = gr.Textbox(label=texts.YOUR_WORD, placeholder=texts.WORD, max_length=30, elem_id="word")
        self.images = gr.File(
            file_count="multiple",
            file_types=kinds,
            label=texts.images(self.sessions.limits),
            height=110,
            elem_id="upload",
        )
        with gr.Accordion("I have masks for some of them", open=False, elem_id="have-masks"):
            self.about_masks = gr.Markdown(texts.masks(texts.WORD))
            self.label = gr.Textbox(label=texts.LABEL, max_length=10, elem_id="label")
            self.masks = gr.File(file_count="multiple", file_types=kinds, label="Masks", height=120, elem_id="masks")
        with gr.Accordion(texts.KEPT, open=False, elem_id="have-segmenter"):
            gr.Markdown(texts.KEEP)
            self.before = gr.File(file_types=[SUFFIX], label=f"Segmenter ({SUFFIX})", height=120, elem_id="segmenter")
        self.status = gr.Markdown(elem_id="status")

    def _lay_out_learning(self) -> None:
        """Steps 3 to 5, below the images they are about."""
        gr.Markdown("## 3 · Learn and segment", elem_classes="step")
        self.budget = gr.Radio(texts.BUDGETS, value=BUDGET, label=texts.BUDGET, elem_id="budget")
        self.go_on = gr.Checkbox(True, label=texts.GO_ON, visible=False, elem_id="go-on")
        self.adapt = gr.Button("Learn and segment", variant="primary", interactive=False, elem_id="adapt")
        with gr.Row():
            self.only_segment = gr.Button("Segment without learning", interactive=False, elem_id="only-segment")
            self.stop = gr.Button("Cancel", interactive=False, elem_id="stop")
        self.notes = gr.Markdown(elem_id="notes")
        self.estimated = gr.Markdown(elem_id="estimated")
        gr.Markdown("## 4 · Review and correct", elem_classes="step")
        gr.Markdown(texts.REVIEW)
        self.by_doubt = gr.Checkbox(False, label=texts.BY_DOUBT, elem_id="by-doubt")
        gr.Markdown("## 5 · Download", elem_classes="step")
        self.download = gr.Button("Download the masks (ZIP)", interactive=False, elem_id="download")
        self.packed = gr.DownloadButton(elem_id="packed")  # clicked by the page, once there is a file
        self.about_download = gr.Markdown(texts.download(texts.WORD))
        self.keep = gr.DownloadButton("Keep what was learnt (segmenter)", interactive=False, elem_id="keep")
        gr.Markdown(texts.KEEPING)

    def _lay_out_canvas(self) -> None:
        """Step 2: the gallery and the selected image."""
        self.heading = gr.Markdown(texts.mark(texts.WORD), elem_classes="step")
        self.how_to_mark = gr.Markdown(texts.how_to_mark(texts.WORD))
        self.gallery = gr.Gallery(
            show_label=False,
            columns=6,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            visible=False,
            elem_id="images",
        )
        gr.HTML(texts.legend())
        self.title = gr.Markdown(elem_id="title")
        # Always visible: if gradio 6.31 shows the canvas after its first image, it cannot be painted on.
        with gr.Column():
            with gr.Row():
                self.save = gr.Button(
                    "Save as mask", variant="primary", interactive=False, min_width=140, elem_id="save"
                )
                self.empty = gr.Button(texts.empty(texts.WORD), interactive=False, min_width=140, elem_id="empty")
                self.forget = gr.Button(texts.DISCARD, interactive=False, min_width=140, elem_id="forget")
                self.remove = gr.Button("Remove image", interactive=False, min_width=140, elem_id="remove")
            self.editor = gr.ImageEditor(
                show_label=False,
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=12, colors=_BRUSHES, color_mode="fixed"),
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

    def _lay_out_comparison(self) -> None:
        """Both masks of the selected image, filled in while the accordion is open."""
        self.comparing = gr.Accordion(texts.COMPARE, open=False, elem_id="comparing")
        with self.comparing, gr.Column(elem_id="compare"):
            with gr.Row():
                self.zoom = gr.Radio([("fit", 1), ("2 ×", 2), ("4 ×", 4), ("8 ×", 8)], value=1, label="Zoom")
                self.full_screen = gr.Button("Full screen", elem_id="full-screen")
            self.comparison = gr.HTML(elem_id="comparison")
            gr.Markdown(texts.COMPARED)

    def _wire(self) -> None:
        """Connect each event with its handler."""
        everything = [
            *(self.chosen, self.gallery, self.status, self.notes, self.adapt, self.estimated, self.download),
            *(self.save, self.empty, self.forget, self.remove, self.title, self.editor, self.comparison),
            *(self.heading, self.how_to_mark, self.about_masks, self.about_download, self.go_on, self.only_segment),
        ]

        def on(
            event: Callable[..., Any], handler: Callable[..., Any], inputs: list[Any], outputs: Any, **how: Any
        ) -> Any:
            return event(_errors_shown(handler, self.sessions), inputs, outputs, api_visibility="private", **how)

        # One adaptation saturates the processor. Other users queue and see their position.
        alone = {"concurrency_id": "network", "concurrency_limit": 1}
        on(self.blocks.load, self.start, [], [*everything, self.key], show_progress="hidden").then(
            None, [self.key], js=_SAY_GOODBYE
        )
        self.blocks.unload(self.lose)
        on(self.images.upload, self.add_images, [self.images], [*everything, self.images], show_progress_on=self.status)
        painting = [self.editor, self.fill]
        masks = [self.masks, self.label, *painting]
        on(self.masks.upload, self.add_masks, masks, [*everything, self.masks], show_progress_on=self.status)
        on(self.word.change, self.name, [self.word], everything, show_progress="hidden")
        for script in (_ASK_BEFORE_LEAVING, _CLOSE_PALETTE, _SCROLL_TOGETHER):
            self.blocks.load(None, js=script)
        for event, shown in ((self.comparing.expand, True), (self.comparing.collapse, False)):
            on(event, self.comparing_is(shown), [], everything, show_progress="hidden")
        self.zoom.change(None, [self.zoom], js=_ZOOM)
        self.full_screen.click(None, js=_FULL_SCREEN)
        painted = [self.editor, self.chosen, self.fill]
        on(self.gallery.select, self.choose, painting, everything, show_progress="hidden")
        on(self.by_doubt.change, self.sort, [self.by_doubt], everything, show_progress="hidden")
        on(self.save.click, self.save_mask, painted, everything, show_progress_on=self.title)
        for button, change in (
            (self.empty, Session.mark_empty),
            (self.forget, Session.remove_mask),
            (self.remove, Session.remove),
        ):
            on(button.click, self.changing(change), [self.chosen], everything, show_progress="hidden")
        on(self.go_on.input, self.go_on_is, [self.go_on], [], show_progress="hidden")
        # Without the canvas, which would be sent back after every message of progress.
        working = [*(one for one in everything if one is not self.editor), self.keep, self.before]
        for event, handler, inputs, place in (
            (self.adapt.click, self.learn, [self.budget, *painting], self.adapt),
            (self.only_segment.click, self.segment, painting, self.only_segment),
            (self.before.upload, self.load, [self.before, *painting], self.status),
        ):
            on(event, self.begin, [], self.stop, show_progress="hidden", queue=False)
            worked = on(event, handler, inputs, working, show_progress_on=place, **alone)
            on(worked.then, self.after, [self.editor], [*everything, self.stop], show_progress="hidden")
        on(
            self.download.click, self.pack, painting, [*everything, self.packed], show_progress_on=self.download
        ).success(None, js=_FETCH)
        on(self.stop.click, self.cancel, [], [], show_progress="hidden", queue=False)

    def _of(self, request: gr.Request) -> Session:
        return self.sessions.of(_key(request))

    def _shown(self, session: Session, canvas: bool = True) -> Updates:
        """Everything that depends on the session; `canvas=False` leaves out the canvas, where the user may be painting.

        The session holds the selected image, which may have changed since the request.
        """
        name = session.chosen
        pictures = session.ordered()
        picture = session.pictures.get(name) if name else None
        marked = len(session.annotated)
        some = any(one.best_file() for one in pictures)  # scribbles are not a mask
        tiles = [(str(one.tile()), texts.caption(one)) for one in pictures]
        place = next((place for place, one in enumerate(pictures) if one.name == name), None)
        gallery: dict[str, Any] = {"visible": bool(pictures), "selected_index": place}
        if tiles != session.tiles:  # redrawing the gallery would lose a click in progress
            gallery["value"] = tiles
        result: Updates = {
            self.chosen: name,
            self.gallery: gr.update(**gallery),
            self.status: texts.status(session),
            self.notes: texts.notes(session),
            self.adapt: gr.update(value=texts.learn(marked, len(pictures)), interactive=marked > 0),
            self.estimated: texts.estimated(session.estimate()),
            self.download: gr.update(interactive=some),
            **dict.fromkeys((self.save, self.remove), gr.update(interactive=picture is not None)),
            self.forget: gr.update(interactive=picture is not None and picture.annotated),
            self.title: texts.title(picture, session.word),
            self.comparison: texts.comparison(picture, _address) if session.comparing else "",
            self.heading: texts.mark(session.word),
            self.how_to_mark: texts.how_to_mark(session.word),
            self.about_masks: texts.masks(session.word),
            self.about_download: texts.download(session.word),
            self.empty: gr.update(value=texts.empty(session.word), interactive=picture is not None),
            self.go_on: gr.update(visible=session.can_go_on, value=session.go_on),
            self.only_segment: gr.update(interactive=session.adapted is not None and bool(pictures)),
        }
        if canvas:
            session.look()
            result[self.editor] = (
                {"background": str(picture.shown), "layers": [str(picture.paint())], "composite": None}
                if picture
                else None
            )
        session.tiles = tiles
        return result

    def start(self, request: gr.Request) -> Updates:
        return self._shown(self._of(request)) | {self.key: _key(request)}

    def lose(self, request: gr.Request) -> None:
        self.sessions.lose(_key(request))

    def add_images(self, files: list[str] | None, request: gr.Request, progress: gr.Progress = _PROGRESS) -> Updates:
        session = self._of(request)
        _warn(session.add_images(files or [], progress))
        return self._shown(session, canvas=False) | {self.images: None}

    def add_masks(
        self,
        files: list[str] | None,
        label: str,
        painted: dict[str, Any] | None,
        closed: bool,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> Updates:
        session = self._of(request)
        _keep(session, painted, closed)
        try:
            _warn(session.add_masks(files or [], progress, texts.label(label)))
        except MetasegError as error:
            _warn([str(error)])  # an error would leave the refused files in the field
        return self._shown(session) | {self.masks: None}

    def choose(
        self, painted: dict[str, Any] | None, closed: bool, request: gr.Request, event: gr.SelectData
    ) -> Updates:
        session = self._of(request)
        names = [picture.name for picture in session.ordered()]
        _keep(session, painted, closed)
        session.chosen = names[event.index] if event.index < len(names) else None
        return self._shown(session)

    def name(self, word: str, request: gr.Request) -> Updates:
        session = self._of(request)
        session.word = texts.word(word)
        return self._shown(session, canvas=False)

    def comparing_is(self, shown: bool) -> Callable[[gr.Request], Updates]:
        """A handler that shows or hides the comparison."""

        def handler(request: gr.Request) -> Updates:
            session = self._of(request)
            session.comparing = shown
            return self._shown(session, canvas=False)

        return handler

    def go_on_is(self, go_on: bool, request: gr.Request) -> None:
        self._of(request).go_on = go_on

    def begin(self, request: gr.Request) -> Updates:
        self._of(request).stopping.clear()
        return {self.stop: gr.update(interactive=True)}

    def cancel(self, request: gr.Request) -> None:
        self._of(request).stopping.set()

    def sort(self, by_doubt: bool, request: gr.Request) -> Updates:
        session = self._of(request)
        session.by_doubt = by_doubt
        return self._shown(session, canvas=False)

    def save_mask(self, painted: dict[str, Any] | None, name: str | None, closed: bool, request: gr.Request) -> Updates:
        session = self._of(request)
        session.paint(session.picture(name).name, _marks(painted), closed)
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
        return self._computed(request, lambda session: session.adapt(progress, budget), painted, closed)

    def segment(
        self, painted: dict[str, Any] | None, closed: bool, request: gr.Request, progress: gr.Progress = _PROGRESS
    ) -> Updates:
        return self._computed(request, lambda session: session.segment(progress), painted, closed)

    def load(
        self,
        file: str | None,
        painted: dict[str, Any] | None,
        closed: bool,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> Updates:
        try:
            found = self._computed(request, lambda session: session.load(file or "", progress), painted, closed)
        except MetasegError as error:
            _warn([str(error)])  # as for masks
            found = self._shown(self._of(request), canvas=False)
        return found | {self.before: None}

    def _computed(
        self, request: gr.Request, work: Callable[[Session], Any], painted: dict[str, Any] | None, closed: bool
    ) -> Updates:
        """Save the paint, do some work that the user may stop, and show its result but for the canvas."""
        session = self._of(request)
        _keep(session, painted, closed)
        session.look()
        try:
            work(session)
        except Stopped as stopped:
            gr.Info(str(stopped), title="Stopped")
            return self._shown(session, canvas=False)
        kept = session.keep()
        return self._shown(session, canvas=False) | {
            self.keep: gr.update(value=None if kept is None else str(kept), interactive=kept is not None)
        }

    def after(self, painted: dict[str, Any] | None, request: gr.Request) -> Updates:
        """Show the prediction on the canvas, unless the user has painted meanwhile."""
        session = self._of(request)
        untouched = not _differ(_marks(painted), session.canvas_marks)
        return self._shown(session, canvas=untouched) | {self.stop: gr.update(interactive=False)}

    def pack(self, painted: dict[str, Any] | None, closed: bool, request: gr.Request) -> Updates:
        session = self._of(request)
        _keep(session, painted, closed)
        packed = str(session.download())  # an error would leave the page without what is shown
        return self._shown(session, canvas=False) | {self.packed: packed}


def _keep(session: Session, painted: dict[str, Any] | None, fill: bool) -> None:
    """Save paint that the user has not saved, before the canvas shows another image or the network learns."""
    picture = session.pictures.get(session.chosen or "")
    if picture is None:
        return
    marks, before = _marks(painted), picture.drawn()
    if not (painted or {}).get("layers") or not _differ(marks, before):
        return
    if marks[picture.within].any():
        session.paint(picture.name, marks, fill)
    else:
        _warn(
            [
                f"All paint of {picture.name} was erased, but its mask stays: choose “{texts.empty(session.word)}” or "
                f"“{texts.DISCARD}” instead."
            ]
        )


def _differ(marks: np.ndarray, before: np.ndarray | None) -> bool:
    """Whether the user has painted or erased since."""
    return before is not None and int((marks != before).sum()) > _A_TOUCH


def _key(request: gr.Request) -> str:
    if not request.session_hash:
        raise MetasegError("The page has no session; reload it.")
    return request.session_hash


def _marks(painted: dict[str, Any] | None) -> np.ndarray:
    """What is painted as marks, uint8 of the shape of FRAME; 0 without a layer."""
    marks = np.zeros(FRAME, np.uint8)
    for layer in map(np.asarray, (painted or {}).get("layers", [])):
        if layer.shape != (*FRAME, 4):
            raise MetasegError("The painting has another size than the canvas; select the image again.")
        marks[layer[..., 3] > _COVERED] = INSIDE
        marks[(layer[..., 3] > _COVERED) & (layer[..., 2] > _BLUE)] = OUTSIDE
    return marks


def _address(path: Path) -> str:
    """Where the page fetches a file of the session."""
    return f"gradio_api/file={quote(str(path))}"


def _warn(sentences: list[str]) -> None:
    for sentence in sentences[:_SHOWN_AT_ONCE]:
        gr.Warning(html.escape(sentence), duration=None, title="Please look")
    if len(sentences) > _SHOWN_AT_ONCE:
        gr.Warning(
            f"{len(sentences) - _SHOWN_AT_ONCE} more files have similar problems.", duration=None, title="Please look"
        )


def _errors_shown(handler: Callable[..., Any], sessions: Sessions) -> Callable[..., Any]:
    """Wrap a handler so that errors appear as one sentence on the page, with user-supplied file names escaped.

    A failure because the page was closed meanwhile, and its files removed, is not an error.
    """

    @functools.wraps(handler)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return handler(*arguments, **options)
        except MetasegError as error:
            raise gr.Error(html.escape(str(error)), duration=None, title="Not done", print_exception=False) from None
        except Exception as error:
            if all(sessions.has(_key(one)) for one in arguments if isinstance(one, gr.Request)):
                traceback.print_exc()  # on the terminal
            sentence = f"Unexpected error ({type(error).__name__}); your images and masks are still there."
            raise gr.Error(sentence, duration=None, title="Not done", print_exception=False) from None

    call.__signature__ = inspect.signature(handler, eval_str=True)  # type: ignore[attr-defined]
    return call
