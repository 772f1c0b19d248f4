"""Requests of other sites; visits that leave nothing behind."""

import asyncio
import gc
import json
import socket
import threading
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from tiny_run import limits_fixture, network_fixture, run_fixture  # noqa: F401

from metaseg.app import command
from metaseg.app.arrivals import FromThisMachine
from metaseg.app.sessions import Sessions
from metaseg.errors import MetasegError


async def _application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})


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

    async def send(message):
        sent.append(message)

    served = FromThisMachine(_application, command.HOSTS)
    asyncio.run(served({"type": "http", "headers": headers}, None, send))
    assert sent[0]["status"] == status


def test_only_the_latest_visits_are_kept(network, limits, tmp_path, monkeypatch):
    state_holder = pytest.importorskip("gradio.state_holder")
    monkeypatch.setattr(command, "_PAGES", 2)

    def kept():
        gc.collect()
        return sum(isinstance(one, state_holder.SessionState) for one in gc.get_objects())

    before = kept()
    with command.serving(Sessions(network, limits, tmp_path)) as address:
        page = json.load(urlopen(f"{address}config", timeout=60))
        load = next(one["id"] for one in page["dependencies"] for _, event in one["targets"] if event == "load")
        for visitor in range(4):
            body = json.dumps({"data": [], "fn_index": load, "session_hash": f"{visitor}"}).encode()
            urlopen(Request(f"{address}gradio_api/queue/join", body, {"Content-Type": "application/json"}), timeout=60)
            answers = urlopen(f"{address}gradio_api/queue/data?session_hash={visitor}", timeout=60).read()
            assert b"process_completed" in answers
        assert kept() == before + 2


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


def test_a_page_closed_during_an_upload_leaves_no_traceback(network, limits, tmp_path, monkeypatch, capfd):
    pytest.importorskip("gradio")
    handled, no_answer = threading.Event(), command._no_answer

    async def noticed(request, error):
        handled.set()
        return await no_answer(request, error)

    monkeypatch.setattr(command, "_no_answer", noticed)
    with command.serving(Sessions(network, limits, tmp_path)) as address:
        place = urlsplit(address)
        headers = [f"Host: {place.netloc}", "Content-Length: 1000", "Content-Type: multipart/form-data; boundary=half"]
        request = "\r\n".join(["POST /gradio_api/upload HTTP/1.1", *headers, "", "--half\r\n"])
        with socket.create_connection((place.hostname, place.port)) as upload:
            upload.sendall(request.encode())
        assert handled.wait(60)
    assert "Traceback" not in capfd.readouterr().err
