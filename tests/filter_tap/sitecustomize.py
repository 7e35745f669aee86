"""Makes a coordinator's public filter keep every byte that reaches it after TLS. Not part of the program.

Python imports a module of this name at its start if it finds one: a test puts this folder on the PYTHONPATH of the
coordinator's processes, and names in ``FILTER_TAP`` the file to append to. So the program under test is the one that ships.
"""

import os
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator import public_port

_FILE: Final = os.environ["FILTER_TAP"]
_filter = public_port.public_filter


def tapped_filter(flower: ASGIApp, endpoint: ASGIApp) -> ASGIApp:
    """The public filter, behind a reader that keeps each request whole: target, headers and body."""
    filtered = _filter(flower, endpoint)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await filtered(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body", False):
            messages.append(await receive())
        _keep(scope, messages)

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await filtered(scope, again, send)

    return app


def _keep(scope: Scope, messages: list[Message]) -> None:
    """One write for a request, so that those of several connections do not mix."""
    target = b" ".join([scope["method"].encode(), scope["raw_path"], scope["query_string"]])
    headers = b"\n".join(name + b": " + value for name, value in scope["headers"])
    body = b"".join(message.get("body", b"") for message in messages)
    file = os.open(_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        row = b"\n".join([target, headers, body, b""])
        while row:
            row = row[os.write(file, row) :]
    finally:
        os.close(file)


public_port.public_filter = tapped_filter  # type: ignore[assignment]
