"""Refuse requests of other web sites."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class FromThisMachine:
    """An ASGI application that answers 403 to requests of other web sites, whose scripts reach this machine too.

    Args:
        application: gets all others.
        hosts: names of this machine, in the headers Host and Origin.
    """

    def __init__(self, application: Callable[..., Awaitable[None]], hosts: Sequence[str]) -> None:
        self.application, self.hosts = application, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on if its headers name only this machine."""
        given = {key: value.decode("latin-1") for key, value in scope.get("headers", ())}
        named = [f"//{given[b'host']}"] if b"host" in given else []
        named += [given[b"origin"]] if b"origin" in given else []
        if scope["type"] == "http" and any(_host(one) not in self.hosts for one in named):
            headers = [(b"connection", b"close"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body"})
            return
        await self.application(scope, receive, send)


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
