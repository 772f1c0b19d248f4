"""Bounds on what a browser sends: a request that never ends, grows without end, or is of another site, is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

SECONDS = 600.0
"""For a request to arrive; over the loopback interface the largest takes seconds."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Bounded:
    """An ASGI application that answers 408 to requests that arrive too slowly, and 413 to those that are too large.

    Args:
        application: gets all others.
        largest: bytes of a request.
        seconds: until all of it must be there.
    """

    def __init__(self, application: Callable[..., Awaitable[None]], largest: float, seconds: float) -> None:
        self.application, self.largest, self.seconds = application, largest, seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, and its body as far as it is in bounds."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        left, until, whole = self.largest, asyncio.get_running_loop().time() + self.seconds, False

        async def bounded() -> Message:
            nonlocal left, whole
            if whole:  # then only the end of the connection comes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - asyncio.get_running_loop().time())
            except asyncio.TimeoutError:
                raise _RefusedError(408) from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise _RefusedError(413)
            whole = not message.get("more_body")
            return message

        try:
            await self.application(scope, bounded, send)
        except _RefusedError as refused:
            await _refuse(refused.status, send)


class FromThisMachine:
    """An ASGI application that answers 403 to requests of other web sites, whose scripts reach this machine too.

    Args:
        application: gets all others.
        hosts: names of this machine, in the headers Host and Origin.
    """

    def __init__(self, application: Callable[..., Awaitable[None]], hosts: Sequence[str]) -> None:
        self.application, self.hosts = application, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on if its headers name this machine alone."""
        headers = {key: value.decode("latin-1") for key, value in scope.get("headers", ())}
        named = [f"//{headers[b'host']}"] if b"host" in headers else []
        named += [headers[b"origin"]] if b"origin" in headers else []
        if scope["type"] == "http" and any(_host(one) not in self.hosts for one in named):
            await _refuse(403, send)
            return
        await self.application(scope, receive, send)


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


async def _refuse(status: int, send: Send) -> None:
    headers = [(b"connection", b"close"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body"})


class _RefusedError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
