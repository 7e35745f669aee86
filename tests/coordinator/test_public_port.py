"""The gate of the public port: ten calls, one word on health, our own endpoint; all else is refused, and nothing is endless."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.public_port import BodyLimits, _in_time, public_filter

FLEET = "/v1/fleet/pull-messages"


def app_named(name: str) -> ASGIApp:
    """Return an app that reads its body and answers with its name and the body's length."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                await send({"type": "gone"})
                return
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{name} {size}".encode()})

    return app


def ask(
    path: str,
    method: str = "POST",
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    body: bytes = b"",
    limits: BodyLimits | None = None,
    **scope: Any,
) -> list[Message]:
    """Return what the filter sends for one request."""
    sent: list[Message] = []
    app = public_filter(app_named("flower"), app_named("endpoint"), limits or BodyLimits())
    request = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "headers": [(b"content-length", str(len(body)).encode())] if headers is None else headers,
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    _run(app(request | scope, receive, send))
    return sent


def _run(answer: Awaitable[None]) -> None:
    async def run() -> None:
        await answer

    asyncio.run(run())


def status(sent: list[Message]) -> int:
    """Return the status of an answer, and insist that a refusal has an empty body."""
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    code: int = sent[0]["status"]
    assert code == 200 or sent[1]["body"] == b""
    return code


@pytest.mark.parametrize(
    "call",
    [
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
    ],
)
def test_calls_of_a_node_reach_flower(call: str) -> None:
    assert ask(f"/v1/fleet/{call}", body=b"abc")[1]["body"] == b"flower 3"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_reaches_flower(method: str) -> None:
    assert ask("/health", method)[1]["body"] == b"flower 0"


@pytest.mark.parametrize("path", ["/sfumato/join", "/sfumato/releases/7/body.safetensors", "/sfumato/a-b_c~d.e"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_everything_below_sfumato_reaches_the_endpoint(path: str, method: str) -> None:
    assert ask(path, method, body=b"ab")[1]["body"] == b"endpoint 2"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "*",
        "/docs",
        "/openapi.json",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/responses",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/./pull-messages",
        "/v1/fleet//pull-messages",
        "//v1/fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "/V1/fleet/pull-messages",
        "/v1/Fleet/pull-messages",
        "/v1/fleet/PULL-MESSAGES",
        "/v1/fleet/pull-messages\n",
        "/v1/fleet/pull-messages;a",
        "/v1/fleet\\pull-messages",
        "/health/",
        "/Health",
        "/health/../docs",
        "http://127.0.0.1/v1/fleet/pull-messages",
        "/sfumato",
        "/sfumato/",
        "/sfumatox/join",
        "/Sfumato/join",
        "/sfumato//join",
        "/sfumato/../v1/control/start-run",
        "/sfumato/join/..",
        "/sfumato/.hidden",
        "/sfumato/join\n",
        "/sfumato/jo in",
        "/sfumato/fläche",
    ],
)
def test_any_other_path_is_refused(path: str) -> None:
    assert status(ask(path)) == 403
    assert status(ask(path, "GET")) == 403


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [
        (b"/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/../control/start-run"),
        (b"/v1%2ffleet/pull-messages", FLEET),
        (b"/v1/fleet/pull%2dmessages", FLEET),
        (b"/sfumato/%6aoin", "/sfumato/join"),
        (b"/%68ealth", "/health"),
    ],
)
def test_a_path_that_was_encoded_is_refused_even_if_it_decodes_to_a_good_one(raw: bytes, decoded: str) -> None:
    assert status(ask(decoded, raw_path=raw)) == 403
    assert status(ask(decoded, "GET", raw_path=raw)) == 403


@pytest.mark.parametrize(("path", "method"), [(FLEET, "GET"), (FLEET, "OPTIONS"), ("/health", "POST")])
def test_another_method_is_refused(path: str, method: str) -> None:
    assert status(ask(path, method)) == 403


def test_a_websocket_is_closed() -> None:
    assert ask(FLEET, type="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_a_lifespan_event_reaches_nobody() -> None:
    assert ask(FLEET, type="lifespan") == []


@pytest.mark.parametrize(("size", "expected"), [(9, 200), (10, 200), (11, 413)])
@pytest.mark.parametrize("path", [FLEET, "/sfumato/join"])
def test_a_body_has_a_largest_size(path: str, size: int, expected: int) -> None:
    assert status(ask(path, body=b"x" * size, limits=BodyLimits(one_max_bytes=10))) == expected


@pytest.mark.parametrize(
    "headers",
    [
        [(b"transfer-encoding", b"chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"content-length", b"1")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"1e3")],
        [(b"content-length", b"9" * 19)],
        [(b"content-length", b"")],
    ],
)
def test_a_body_says_how_long_it_is(headers: list[tuple[bytes, bytes]]) -> None:
    assert status(ask(FLEET, headers=headers)) == 411


def test_no_length_means_no_body() -> None:
    assert status(ask(FLEET, headers=[])) == 200


def test_bodies_have_a_largest_size_together() -> None:
    async def scenario() -> list[int]:
        codes: list[int] = []
        release = asyncio.Event()

        async def hold(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await app_named("flower")(scope, receive, send)

        app = public_filter(hold, hold, BodyLimits(one_max_bytes=10, together_max_bytes=20))

        async def request(size: int) -> None:
            async def receive() -> Message:
                return {"type": "http.request", "body": b"x" * size, "more_body": False}

            async def send(message: Message) -> None:
                codes.append(message.get("status", 0))

            headers = [(b"content-length", str(size).encode())]
            scope = {"type": "http", "method": "POST", "path": FLEET, "raw_path": FLEET.encode(), "headers": headers}
            await app(scope, receive, send)

        held = [asyncio.create_task(request(10)) for _ in range(2)]
        await asyncio.sleep(0)
        await request(1)  # One too many,
        codes.append(-1)
        release.set()
        await asyncio.gather(*held, request(0))  # but no body is never too much,
        codes.append(-1)
        await request(10)  # and room comes back.
        return [code for code in codes if code]

    assert asyncio.run(scenario()) == [503, -1, 200, 200, 200, -1, 200]


def test_a_body_that_does_not_come_counts_as_a_sender_gone() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    app = public_filter(app_named("flower"), app_named("endpoint"), BodyLimits(timeout_s=0.01))
    scope = {"type": "http", "method": "POST", "path": FLEET, "raw_path": FLEET.encode()}
    _run(app(scope | {"headers": [(b"content-length", b"5")]}, receive, send))

    assert sent == [{"type": "gone"}]


def test_waiting_for_a_disconnect_is_not_bounded() -> None:
    async def scenario() -> Message:
        messages = [
            {"type": "http.request", "body": b"", "more_body": False},
            {"type": "http.disconnect", "late": True},
        ]

        async def receive() -> Message:
            await asyncio.sleep(0.05 if len(messages) == 1 else 0)
            return messages.pop(0)

        bounded = _in_time(receive, 0.02)
        await bounded()
        return await bounded()

    assert asyncio.run(scenario()) == {"type": "http.disconnect", "late": True}
