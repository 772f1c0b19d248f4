"""Requests that never end, or grow without end; visits that leave nothing behind."""

import asyncio
import gc
import json
import socket
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from tiny_run import limits_fixture, network_fixture, run_fixture  # noqa: F401

from metaseg.app import arrivals, command
from metaseg.app.sessions import Sessions
from metaseg.errors import MetasegError


async def _application(scope, receive, send):
    """Reads the whole body and answers its length."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"%d" % len(body)})


async def _status(pieces, largest=100, seconds=0.2):
    """The status for a body that comes in pieces; None: that never comes."""
    sent, waiting = [], list(pieces)

    async def receive():
        piece = waiting.pop(0)
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    await arrivals.Bounded(_application, largest, seconds)({"type": "http"}, receive, send)
    return sent[0]["status"]


def test_a_body_that_never_ends_or_is_too_large_is_dropped_and_others_are_served():
    async def together():
        return await asyncio.gather(_status([b"1", None]), _status([b"12", b"34"]), _status([b"1" * 60, b"1" * 60]))

    assert asyncio.run(together()) == [408, 200, 413]


def test_an_upload_that_never_ends_does_not_keep_the_page_from_others(network, limits, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setattr(arrivals, "SECONDS", 2.0)
    with command.serving(Sessions(network, limits, tmp_path)) as address:
        place = urlsplit(address)
        with socket.create_connection((place.hostname, place.port), timeout=60) as slow:
            head = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost:7860\r\nContent-Length: 1000000\r\n"
            part = '--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            slow.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n{part}".encode())
            assert urlopen(address, timeout=60).status == 200
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:7860", None, 200),
        ("localhost:7861", "http://localhost:7861", 200),
        ("evil.example", None, 403),
        ("127.0.0.1:7860", "https://evil.example", 403),
        ("127.0.0.1:7860", "null", 403),
        ("127.0.0.1:7860", "http://[", 403),
    ],
)
def test_other_sites_are_refused(host, origin, status):
    sent, headers = [], [(b"host", host.encode())] + ([] if origin is None else [(b"origin", origin.encode())])

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    served = arrivals.FromThisMachine(_application, command.HOSTS)
    asyncio.run(served({"type": "http", "headers": headers}, receive, send))
    assert sent[0]["status"] == status


def test_of_many_visits_only_the_last_are_kept(network, limits, tmp_path, monkeypatch):
    state_holder = pytest.importorskip("gradio.state_holder")
    monkeypatch.setattr(command, "_PAGES", 2)
    with command.serving(Sessions(network, limits, tmp_path)) as address:
        page = json.load(urlopen(f"{address}config", timeout=60))
        load = next(one["id"] for one in page["dependencies"] for _, event in one["targets"] if event == "load")
        for visitor in range(4):
            body = json.dumps({"data": [], "fn_index": load, "session_hash": f"{visitor}"}).encode()
            urlopen(Request(f"{address}gradio_api/queue/join", body, {"Content-Type": "application/json"}), timeout=60)
            answers = urlopen(f"{address}gradio_api/queue/data?session_hash={visitor}", timeout=60).read()
            assert b"process_completed" in answers
        gc.collect()
        assert sum(isinstance(one, state_holder.SessionState) for one in gc.get_objects()) == 2


def test_a_page_may_lose_its_connection_for_a_while_and_says_when_it_is_closed(network, limits, tmp_path):
    pytest.importorskip("gradio")
    sessions = Sessions(network, limits, tmp_path)
    with command.serving(sessions) as address:
        session = sessions.of("a")
        with urlopen(f"{address}gradio_api/heartbeat/a", timeout=60) as connection:
            connection.readline()
        assert session.stopping.wait(60)  # nobody waits for its work
        assert sessions.of("a") is session
        assert urlopen(Request(f"{address}goodbye/a", b""), timeout=60).status == 204
    assert not session.folder.exists()
    with pytest.raises(MetasegError, match="was closed"):
        sessions.of("a")


def test_work_that_fails_because_its_page_was_closed_leaves_no_traceback(network, limits, tmp_path, capsys):
    gradio = pytest.importorskip("gradio")
    from metaseg.app.page import _errors_shown

    sessions = Sessions(network, limits, tmp_path)
    request = gradio.Request(session_hash="a")

    def failing(closed, request: gradio.Request):
        sessions.of("a")
        if closed:
            sessions.end("a")
        raise FileNotFoundError

    for closed in (False, True):
        with pytest.raises(gradio.Error):
            _errors_shown(failing, sessions)(closed, request)
        assert ("Traceback" in capsys.readouterr().err) == (not closed)
