"""The program app.py: load a run and serve the page to this machine only."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from metaseg.app.arrivals import FromThisMachine
from metaseg.errors import MetasegError, needs
from metaseg.interruption import handled
from metaseg.runs import schema, validation

HOST = "127.0.0.1"
"""There is no password, so only this machine may connect."""
HOSTS = (HOST, "localhost")
"""Names by which browsers may ask for the page, also through a tunnel; others are web sites that name this machine."""
_SWEEP = 60  # seconds
# Bytes. Paintings and segmenters arrive as files, too, and would be refused silently; sessions check images again.
_LARGEST = 200 * 2**20
# Pages whose components gradio keeps: half a MiB each, also after a page was closed. The oldest go first; one that is
# still open then loses its selection, no more.
_PAGES = 50


def run(config: DictConfig) -> None:
    """Run a composed configuration of conf/app.yaml; returns on Ctrl+C or SIGTERM.

    Raises:
        MetasegError: if gradio is missing, or on unusable settings.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MetasegError(needs("The web page", "gradio", "app"))
    settings = validation.read(schema.Page, config)

    from metaseg.adapting.loading import load
    from metaseg.app.session import Network
    from metaseg.app.sessions import Sessions, temporary_folder
    from metaseg.app.uploads import Limits
    from metaseg.memory import tidy

    network = Network(load(settings.checkpoint, settings.device), settings.steps, settings.lr)
    limits = Limits(settings.max_images, settings.max_mb, settings.max_megapixels)
    with temporary_folder() as folder, _until_stopped() as stopped:
        sessions = Sessions(network, limits, folder)
        try:
            with serving(sessions, settings.port, settings.browser) as address:
                print(f"page        {address}\nimages      {folder}, until the page is closed\nstop        Ctrl+C")
                while not stopped.wait(_SWEEP):
                    sessions.forget()
                    sessions.sweep()
                    tidy(network.model.learner.device.type)  # a visit's networks are freed in pieces that glibc keeps
        finally:
            sessions.end_all()
    print("Stopped; uploaded images and masks were removed.")


@contextmanager
def serving(sessions: Any, port: int = 0, browser: bool = False) -> Iterator[str]:
    """Serve the page; yields its address.

    Args:
        sessions: the page's sessions.
        port: 0 for any free port.
        browser: whether to open the page in a browser.

    Raises:
        MetasegError: if the port is taken.
    """
    # Gradio reads these on import and when the page is built: no telemetry, uploads in our folder.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(sessions.folder)
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect
    from starlette.routing import Route

    from metaseg.app.page import CSS, GOODBYE, build, theme

    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio's own requests at startup
    logging.getLogger("uvicorn.error").addFilter(_but_for_removed_files)
    page = build(sessions)
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port or free_port(),
            share=False,
            inbrowser=browser,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            max_file_size=max(int(sessions.limits.max_mb * 2**20), _LARGEST),
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            state_session_capacity=_PAGES,
            allowed_paths=[str(sessions.folder)],  # else gradio fails at hidden files, which sessions refuse by name
            app_kwargs={
                "routes": [Route(f"/{GOODBYE}/{{key}}", functools.partial(_goodbye, sessions), methods=["POST"])],
                "middleware": [Middleware(FromThisMachine, HOSTS)],
                "exception_handlers": {ClientDisconnect: _no_answer},
            },
            theme=theme(),
            css=CSS,
        )
    except OSError as error:
        raise MetasegError(f"Port {port} is taken; choose another, such as port={port + 1}.") from error
    try:
        yield address
    finally:
        page.close(verbose=False)


async def _goodbye(sessions: Any, request: Any) -> Any:
    """End the session of a page that reports that it is being closed."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response

    await run_in_threadpool(sessions.end, request.path_params["key"])
    return Response(status_code=204)


async def _no_answer(request: Any, error: Exception) -> Any:
    """For a page that was closed during an upload: nobody reads the answer, and the file is swept later."""
    from starlette.responses import Response

    return Response(status_code=400)


def _but_for_removed_files(record: logging.LogRecord) -> bool:
    """Filters log records of requests for pictures that were just removed."""
    error = record.exc_info[1] if record.exc_info else None
    while error is not None:
        if isinstance(error, FileNotFoundError) or (isinstance(error, RuntimeError) and "does not exist" in str(error)):
            return False
        error = error.exceptions[0] if hasattr(error, "exceptions") else error.__cause__
    return True


def free_port() -> int:
    """A free port."""
    import socket

    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """An event set by Ctrl+C and SIGTERM, so that the folder is removed either way."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    with handled({signal.SIGINT: stop, signal.SIGTERM: stop}):
        yield stopped
