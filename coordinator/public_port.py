"""The gate of the coordinator's public port: which requests reach Flower, which our own endpoint, and none other.

Behind it stands Flower's whole API, most of which is not authenticated. This file knows paths and sizes, and nothing of
what is said in a body.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The calls a registered node makes. Flower's other two, register-node and unregister-node, are for nodes without a key.
FLEET_CALLS: Final = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
# No segment starts with a dot and none is empty, so there is nothing to normalise, hence nothing to disagree about.
_ENDPOINT_PATH: Final = re.compile(r"/sfumato(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
# Flower cuts arrays into objects of 5 MiB (FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE), and reads a body before it asks whose.
_BODY_MAX_BYTES: Final = 16 << 20
_BODIES_MAX_BYTES: Final = 256 << 20
_BODY_TIMEOUT_S: Final = 120.0
_LENGTH_MAX_DIGITS: Final = 18


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What the public port reads before it knows who is asking."""

    one_max_bytes: int = _BODY_MAX_BYTES
    together_max_bytes: int = _BODIES_MAX_BYTES
    timeout_s: float = _BODY_TIMEOUT_S


def public_filter(flower: ASGIApp, endpoint: ASGIApp, limits: BodyLimits = BodyLimits()) -> ASGIApp:
    """Return the app of the public port.

    In this order, and the first that fails answers, with an empty body:

    1. Only HTTP; a websocket is closed (403).
    2. The path as sent is the path: nothing that was percent-encoded reaches either app (403).
    3. The path is one of the nodes' ten calls (by POST), `/health` (by GET or HEAD), or below `/sfumato/` (403).
    4. The body says how long it is (411) and is not longer than one may be (413).
    5. All bodies being read fit in memory together (503, which nodes take as "try again").

    A body that does not arrive in time ends as if its sender had gone. `endpoint` gets everything below `/sfumato/`,
    with the scope unchanged; neither app sees a lifespan event.
    """
    expected = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal expected
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        target = _target(scope, flower, endpoint)
        if target is None:
            await _refuse(send, 403)
            return
        length = _body_bytes(scope)
        status = _body_refusal(length, expected, limits)
        if status is not None:
            await _refuse(send, status)
            return
        assert length is not None  # _body_refusal has answered 411  # noqa: S101
        expected += length
        try:
            await target(scope, _in_time(receive, limits.timeout_s), send)
        finally:
            expected -= length

    return app


def _target(scope: Scope, flower: ASGIApp, endpoint: ASGIApp) -> ASGIApp | None:
    """Return the app a request may reach, if any (checks 2 and 3)."""
    path, method = scope["path"], scope["method"]
    if scope.get("raw_path", path.encode()) != path.encode():
        return None
    if path in FLEET_CALLS and method == "POST":
        return flower
    if path == "/health" and method in {"GET", "HEAD"}:
        return flower
    if _ENDPOINT_PATH.fullmatch(path):
        return endpoint
    return None


def _body_bytes(scope: Scope) -> int | None:
    """Return the length a request declares for its body, or None if it does not say."""
    headers = [(name.lower(), value) for name, value in scope["headers"]]
    if any(name == b"transfer-encoding" for name, _ in headers):
        return None
    lengths = {value for name, value in headers if name == b"content-length"} or {b"0"}
    length = lengths.pop()
    return int(length) if not lengths and length.isdigit() and len(length) <= _LENGTH_MAX_DIGITS else None


def _body_refusal(length: int | None, expected: int, limits: BodyLimits) -> int | None:
    """Return the status that refuses a body (checks 4 and 5), or None."""
    if length is None:
        return 411
    if length > limits.one_max_bytes:
        return 413
    if length and expected + length > limits.together_max_bytes:
        return 503
    return None


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def _in_time(receive: Receive, timeout_s: float) -> Receive:
    """Wrap `receive` so that the body is complete within `timeout_s`, or the sender counts as gone."""
    deadline = time.monotonic() + timeout_s
    complete = False

    async def bounded() -> Message:
        nonlocal complete
        if complete:  # From here on apps wait for a disconnect, for as long as they work.
            return await receive()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        complete = not message.get("more_body", False)
        return message

    return bounded
