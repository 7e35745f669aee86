"""What a node may ask of a coordinator beside Flower's own calls: the CA certificate, to join, the time, releases.

Served below ``/sfumato/v1/`` on the public TLS port. Bodies are bounded, paths are looked up in the signed manifest and
never joined from what a client sent, and errors say one sentence.
"""

from __future__ import annotations

import binascii
import json
import logging
import secrets
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from coordinator.config import Home
from coordinator.publish import current_release, open_release
from coordinator.store import Node, Store
from export.errors import (
    IntegrityError,
    NotConfiguredError,
    RefusedError,
    ResourceError,
    SfumatoError,
    UnreachableError,
    UsageError,
)
from export.files import read_bounded
from export.ledger import Ledger
from export.signing import MANIFEST, SIGNATURES, Trust

PREFIX: Final = "/sfumato/v1"
_JOIN_MAX_BYTES: Final = 8192
_KEY_MAX_CHARACTERS: Final = 2048
_FILE_MAX_BYTES: Final = 64 * 2**20

_JOINING: Final = threading.Lock()

_log = logging.getLogger(__name__)

RegisterNode = Callable[[bytes], int]
"""Tells Flower of a node's public key and returns its node id."""


@dataclass(frozen=True, slots=True)
class Joining:
    """The body of a join request."""

    secret: bytes
    flower_key: str

    @classmethod
    def parse(cls, raw: bytes) -> Joining:
        """Read a request.

        Raises:
            UsageError: not a join request.
        """
        try:
            plain = json.loads(raw)
            if set(plain) != {"secret", "flower_key"} or not isinstance(plain["flower_key"], str):
                raise ValueError("other fields")
            if len(plain["flower_key"]) > _KEY_MAX_CHARACTERS:
                raise ValueError("the key is too long")
            return cls(b64decode(plain["secret"], validate=True), plain["flower_key"])
        except (ValueError, TypeError, AttributeError, binascii.Error, RecursionError) as error:
            raise UsageError("this is not a request to join", advice="Update Sfumato on your machine.") from error


def create_endpoint(home: Home, register_node: RegisterNode) -> Starlette:
    """The ASGI app.

    Args:
        home: the coordinator's folder.
        register_node: called in a thread when somebody joins as an artist.
    """
    store = Store(home.database)

    async def ca(_request: Request) -> Response:
        return PlainTextResponse(read_bounded(home.ca_certificate, _JOIN_MAX_BYTES), media_type="application/x-pem-file")

    async def now(_request: Request) -> Response:
        return JSONResponse({"time": time.time()})

    async def join(request: Request) -> Response:
        joining = Joining.parse(await _bounded_body(request))
        return JSONResponse(await run_in_threadpool(_join, home, store, joining, register_node))

    async def release(_request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(_newest, home, store))

    async def release_file(request: Request) -> Response:
        version, path = int(request.path_params["version"]), request.path_params["path"]
        return await run_in_threadpool(_release_file, home, version, path)

    return Starlette(
        routes=[
            Route(f"{PREFIX}/ca", ca),
            Route(f"{PREFIX}/time", now),
            Route(f"{PREFIX}/join", join, methods=["POST"]),
            Route(f"{PREFIX}/release", release),
            Route(f"{PREFIX}/releases/{{version:int}}/{{path:path}}", release_file),
        ],
        exception_handlers={SfumatoError: _said, Exception: _unsaid},
    )


def _join(home: Home, store: Store, joining: Joining, register_node: RegisterNode) -> dict[str, object]:
    """Take the invite, tell Flower, remember the member, answer with whom to trust.

    Who asks again with the same invite and key did not get the answer, and is given it again.
    """
    member = _enrol(home, store, joining, register_node)
    # Newest for a newcomer is what is served: whatever number was given out beyond it, it could not fetch that.
    trust = replace(Trust.load(home.trust_file), highest_version=current_release(home).manifest.version)
    return {
        "alias": member.alias,
        "role": member.role,
        "node_id": str(member.node_id),
        "trust": trust.to_plain(),
        "modality": home.config().modality,
    }


def _enrol(home: Home, store: Store, joining: Joining, register_node: RegisterNode) -> Node:
    """One at a time: a name is looked up before Flower is told of a key, since Flower never forgets a key it was told of."""
    with _JOINING:
        member = store.joined_with(joining.secret, joining.flower_key)
        if member is not None:
            return member
        now = time.time()
        _, role = store.invited(joining.secret, joining.flower_key, now)
        # A gallery takes no part in rounds, so that Flower need not know it.
        node_id = register_node(joining.flower_key.encode()) if role == "artist" else secrets.randbits(63)
        member = store.join(joining.secret, joining.flower_key, node_id, now)
    Ledger(home.ledger_file).append({"what": "joined", "alias": member.alias, "role": role, "node": str(node_id)})
    _log.info("node %d joined as %s, %s", node_id, member.alias, role)
    return member


def _newest(home: Home, store: Store) -> dict[str, object]:
    """The served release and whether a round is under way, in which nodes had better not be busy elsewhere."""
    rounds = store.rounds()  # before the release: whoever reads that no round is under way reads what the last one made
    running = bool(rounds) and rounds[-1].state in ("gathering", "training", "judging")
    release = current_release(home)
    return {"version": release.manifest.version, "files": sorted(release.manifest.files), "round_running": running}


def _release_file(home: Home, version: int, path: str) -> Response:
    try:
        release = open_release(home, version)
        if path in (MANIFEST, SIGNATURES):
            data = read_bounded(release.folder / path, _FILE_MAX_BYTES)
        else:
            data = release.read(path)
    except (SfumatoError, OSError):
        return JSONResponse({"error": "no such release or file"}, status_code=404)
    return Response(data, media_type="application/octet-stream")


async def _bounded_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _JOIN_MAX_BYTES:
            raise UsageError("the request is too large", advice="Update Sfumato on your machine.")
    return body


async def _said(_request: Request, error: Exception) -> Response:
    """An error that is meant for the one who asked."""
    if not isinstance(error, SfumatoError):
        return await _unsaid(_request, error)
    if isinstance(error, UnreachableError | ResourceError | NotConfiguredError):  # the words are for our own people
        _log.error("a request could not be answered: %s", error)
        return JSONResponse({"error": "the coordinator cannot answer now", "advice": "Try again later."}, status_code=503)
    status = 403 if isinstance(error, RefusedError) else 503 if isinstance(error, IntegrityError) else 400
    return JSONResponse({"error": str(error), "advice": error.advice, "code": error.code}, status_code=status)


async def _unsaid(_request: Request, error: Exception) -> Response:
    """An error that is nobody's business outside."""
    _log.error("a request failed: %s", type(error).__name__, exc_info=error)
    return JSONResponse({"error": "the coordinator failed"}, status_code=500)
