"""What a node may ask of a coordinator beside Flower's own calls. Served below ``/sfumato/v1/`` on the public TLS port.

| path | asked by | answers |
|---|---|---|
| GET /ca | anybody | the authority's certificate, which an invite pins |
| GET /time | anybody | the time |
| POST /join | the holder of an invite | membership, provenance certificate, whom to trust, the time |
| POST /rejoin | a member this database has forgotten | the same |
| POST /certificate | a member | a provenance certificate with a new term |
| GET /release, /releases/… | a member | the served release and what became of the member's last updates; its files |
| GET /policy | a member | the policy that holds |

All but the first two are signed with the node's enrolled key (``export/requests.py``). What is checked of a signed request, in
this order:

1. The headers say who asks, in our form (401).
2. Whoever asks is a member, or brings his keys along: joining and rejoining (403, with what to do).
3. The signature is that key's over this request; of a joining, the two other keys have signed as well (401).
4. Its time is near ours and its nonce new (401).
5. The membership was not ended (403). Only now, so that nobody but its holder hears what became of a key.

Bodies are bounded, paths are looked up in the signed manifest and never joined from what a client sent, and errors say one
sentence.
"""

from __future__ import annotations

import binascii
import json
import logging
import secrets
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from coordinator import enrolment, pki, policies
from coordinator.admission import ADVICE
from coordinator.config import Home
from coordinator.errors import JoinRefusedError, MembershipEndedError, NotAMemberError, UnsignedError
from coordinator.publish import current_release, open_release
from coordinator.store import Answer, Node, Store
from export import policy
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
from export.identity import Proofs, PublicKeys
from export.ledger import Ledger
from export.requests import Claim, Replays, Request, claim_of, is_signed
from export.signing import MANIFEST, SIGNATURES, Trust

PREFIX: Final = "/sfumato/v1"
_BODY_MAX_BYTES: Final = 8192
_ANSWERS: Final = 20
_FILE_MAX_BYTES: Final = 64 * 2**20

_JOINING: Final = threading.Lock()

_log = logging.getLogger(__name__)

RegisterNode = Callable[[bytes], int]
"""Tells Flower of a node's public key and returns its node id."""
OnlineNodes = Callable[[], frozenset[int] | None]
"""The nodes that Flower sees; None if it does not answer."""


@dataclass(frozen=True, slots=True)
class Joining:
    """The body of a request to join: an invite's secret, the keys to enrol, and that whoever asks holds them."""

    secret: bytes
    keys: PublicKeys
    proofs: Proofs

    @classmethod
    def parse(cls, raw: bytes) -> Joining:
        """Read a request.

        Raises:
            UsageError: not a request to join.
        """
        try:
            plain = _fields(raw, {"secret", "keys", "proofs"})
            secret = b64decode(str(plain["secret"]), validate=True)
            return cls(secret, PublicKeys.from_plain(plain["keys"]), Proofs.from_plain(plain["proofs"]))
        except (ValueError, binascii.Error, IntegrityError) as error:
            raise UsageError("this is not a request to join", advice="Update Sfumato on your machine.") from error

    def require_held(self) -> None:
        """Have the two keys that do not sign the request be in the same hands as the one that does.

        Raises:
            UnsignedError: they are not.
        """
        # 3.
        if not self.proofs.prove(self.keys):
            raise UnsignedError("the keys are not all held by who shows them", advice="Update Sfumato on your machine.")


def create_endpoint(home: Home, register_node: RegisterNode, online_nodes: OnlineNodes = lambda: None) -> Starlette:
    """The ASGI app.

    Args:
        home: the coordinator's folder.
        register_node: called in a thread when somebody joins as an artist.
        online_nodes: called in a thread when a member asks how things stand.
    """
    store = Store(home.database)
    door = _Door(store, Replays(time.time()))

    async def ca(_request: HttpRequest) -> Response:
        return PlainTextResponse(read_bounded(home.ca_certificate, _BODY_MAX_BYTES), media_type="application/x-pem-file")

    async def now(_request: HttpRequest) -> Response:
        return JSONResponse({"time": time.time()})

    async def join(request: HttpRequest) -> Response:
        signed, claim = await _signed(request)
        joining = Joining.parse(signed.body)
        door.require(signed, claim, joining.keys)
        joining.require_held()
        return JSONResponse(await run_in_threadpool(_join, home, store, joining, register_node))

    async def rejoin(request: HttpRequest) -> Response:
        signed, claim = await _signed(request)
        keys, word = _rejoining(signed.body)
        door.require(signed, claim, keys)
        return JSONResponse(await run_in_threadpool(_rejoin, home, store, keys, word, register_node))

    async def certificate(request: HttpRequest) -> Response:
        signed, claim = await _signed(request)
        member = await run_in_threadpool(door.member, signed, claim)
        return JSONResponse({"certificate": await run_in_threadpool(_certify, home, member)})

    async def release(request: HttpRequest) -> Response:
        member = await run_in_threadpool(door.member, *await _signed(request))
        return JSONResponse(await run_in_threadpool(_newest, home, store, member, online_nodes))

    async def policy_(request: HttpRequest) -> Response:
        await run_in_threadpool(door.member, *await _signed(request))
        return JSONResponse(policy.to_plain(await run_in_threadpool(policies.current, home)))

    async def release_file(request: HttpRequest) -> Response:
        await run_in_threadpool(door.member, *await _signed(request))
        version, path = int(request.path_params["version"]), request.path_params["path"]
        return await run_in_threadpool(_release_file, home, version, path)

    return Starlette(
        routes=[
            Route(f"{PREFIX}/ca", ca),
            Route(f"{PREFIX}/time", now),
            Route(f"{PREFIX}/join", join, methods=["POST"]),
            Route(f"{PREFIX}/rejoin", rejoin, methods=["POST"]),
            Route(f"{PREFIX}/certificate", certificate, methods=["POST"]),
            Route(f"{PREFIX}/release", release),
            Route(f"{PREFIX}/policy", policy_),
            Route(f"{PREFIX}/releases/{{version:int}}/{{path:path}}", release_file),
        ],
        exception_handlers={SfumatoError: _said, Exception: _unsaid},
    )


@dataclass(frozen=True, slots=True)
class _Door:
    """Tells members from others; the numbers are the module's."""

    store: Store
    replays: Replays

    def member(self, request: Request, claim: Claim) -> Node:
        """Whoever asks.

        Raises:
            NotAMemberError, UnsignedError, MembershipEndedError: see the module.
        """
        # 2.
        node = self.store.member(claim.node)
        if node is None:
            raise NotAMemberError("this coordinator does not know this machine", advice="Join with: sfumato join INVITE")
        self.require(request, claim, node.keys)
        # 5.
        if node.revoked is not None:
            raise MembershipEndedError(
                f"the membership of {node.alias!r} was ended on {node.revoked[:10]}",
                advice="Ask the coordinator why. What this machine learned and installed stays usable.",
            )
        return node

    def require(self, request: Request, claim: Claim, keys: PublicKeys) -> None:
        """Have a request be signed by the holder of some keys, now and once.

        Raises:
            UnsignedError: it is not.
        """
        # 3.
        if not is_signed(request, claim, keys.enrolled):
            raise UnsignedError("the request's signature is wrong", advice="Update Sfumato on your machine.")
        # 4.
        fault = self.replays.refuse(claim, time.time())
        if fault == "clock":
            raise UnsignedError("the request is not from now", advice="Start sfumato up again; it asks for the time first.")
        if fault is not None:
            raise UnsignedError("the request was made before", advice="Try again.")


async def _signed(request: HttpRequest) -> tuple[Request, Claim]:
    """The request as it is signed, and who it says made it.

    Raises:
        UnsignedError: it says nobody did.
    """
    body = await _bounded_body(request)
    # 1.
    claim = claim_of(request.headers)
    if claim is None:
        raise UnsignedError("the request is not signed", advice="Update Sfumato on your machine.")
    return Request(request.method, request.scope["raw_path"].decode("ascii", "replace"), body), claim


def _join(home: Home, store: Store, joining: Joining, register_node: RegisterNode) -> dict[str, object]:
    """Take the invite, tell Flower, remember the member, answer with whom to trust.

    Who asks again with the same invite and keys did not get the answer, and is given it again.
    """
    return _welcome(home, _enrol(home, store, joining, register_node))


def _enrol(home: Home, store: Store, joining: Joining, register_node: RegisterNode) -> Node:
    """One at a time: a name is looked up before Flower is told of a key, since Flower never forgets a key it was told of."""
    with _JOINING:
        member = store.joined_with(joining.secret, joining.keys)
        if member is not None:
            return member
        now = time.time()
        _, role = store.invited(joining.secret, joining.keys, now)
        # A gallery takes no part in rounds, so that Flower need not know it.
        node_id = register_node(joining.keys.flower.encode()) if role == "artist" else secrets.randbits(63)
        member = store.join(joining.secret, joining.keys, node_id, now)
    _note(home, "joined", member)
    return member


def _rejoin(home: Home, store: Store, keys: PublicKeys, word: object, register_node: RegisterNode) -> dict[str, object]:
    """Take a member back whom this database has forgotten, on the coordinator's own signed word."""
    said = enrolment.verify(word, home.config().name, pki.release_key(home))
    if said.keys != keys.digest:
        raise RefusedError("that enrolment is another machine's", advice="Ask the coordinator for an invite.")
    with _JOINING:
        known = store.member(keys.node_key)
        if known is not None and known.revoked is None:
            return _welcome(home, known)
        if known is not None:
            raise JoinRefusedError("the membership of this machine's key was ended", advice="Ask the coordinator.")
        node_id = register_node(keys.flower.encode()) if said.role == "artist" else secrets.randbits(63)
        member = Node(node_id, said.alias, said.role, keys, said.joined)
        store.take_back(member)
    _note(home, "rejoined", member)
    return _welcome(home, member)


def _welcome(home: Home, member: Node) -> dict[str, object]:
    """What a member is told: who it is, whom to trust, its certificate, and the word to be taken back with."""
    config, now = home.config(), time.time()
    # Newest for a newcomer is what is served: whatever number was given out beyond it, it could not fetch that.
    trust = replace(Trust.load(home.trust_file), highest_version=current_release(home).manifest.version)
    certificate = pki.provenance_certificate(home, member.keys.provenance, member.alias, config.name, now)
    return {
        "alias": member.alias,
        "role": member.role,
        "node_id": str(member.node_id),
        "trust": trust.to_plain(),
        "modality": config.modality,
        "certificate": certificate.decode(),
        "enrolment": enrolment.sign(member, config.name, pki.release_key(home)),
        "time": now,
    }


def _certify(home: Home, member: Node) -> str:
    """A new term for the provenance key a member joined with, and for no other."""
    now, name = time.time(), home.config().name
    return pki.provenance_certificate(home, member.keys.provenance, member.alias, name, now).decode()


def _note(home: Home, what: str, member: Node) -> None:
    digits = pki.digits(home, member.keys)
    entry = {"what": what, "alias": member.alias, "role": member.role, "node": str(member.node_id), "digits": digits}
    Ledger(home.ledger_file).append(entry)
    _log.info("node %d %s as %s, %s; its six digits are %s", member.node_id, what, member.alias, member.role, digits)


def _newest(home: Home, store: Store, member: Node, online_nodes: OnlineNodes) -> dict[str, object]:
    """The served release, whether a round is under way (in which nodes had better not be busy elsewhere), which policy holds,
    what became of this member's last updates, and whether Flower sees its node: one that hangs does not know it.
    """
    rounds = store.rounds()  # before the release: whoever reads that no round is under way reads what the last one made
    running = bool(rounds) and not rounds[-1].is_over
    release = current_release(home)
    files = sorted(release.manifest.files)
    return {
        "version": release.manifest.version,
        "files": files,
        "round_running": running,
        "time": time.time(),
        "policy": policies.current(home).digest,
        "online": _is_online(member, online_nodes),
        "answers": [_verdict(number, answer) for number, answer in store.answers_of(member.node_id, _ANSWERS)],
    }


def _is_online(member: Node, online_nodes: OnlineNodes) -> bool | None:
    """Whether Flower would give the member's node a message now; None if that cannot be told, or is nobody's question."""
    online = online_nodes() if member.role == "artist" else None
    return None if online is None else member.node_id in online


def _verdict(number: int, answer: Answer) -> dict[str, object]:
    """What became of a member's part in a round, and what can be done about it: told to that member alone."""
    advice = "" if answer.accepted else ADVICE.get(answer.reason, "Ask the coordinator.")
    said = {"round": number, "accepted": answer.accepted, "sha256": answer.sha256, "reason": answer.reason}
    return {**said, "advice": advice}


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


def _rejoining(raw: bytes) -> tuple[PublicKeys, object]:
    try:
        plain = _fields(raw, {"keys", "enrolment"})
        return PublicKeys.from_plain(plain["keys"]), plain["enrolment"]
    except (ValueError, IntegrityError) as error:
        raise UsageError("this is not a request to rejoin", advice="Update Sfumato on your machine.") from error


def _fields(raw: bytes, names: set[str]) -> Mapping[str, object]:
    """A JSON object with exactly these fields.

    Raises:
        ValueError: anything else.
    """
    try:
        plain = json.loads(raw)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(plain, dict) or set(plain) != names:
        raise ValueError("other fields")
    return plain


async def _bounded_body(request: HttpRequest) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_MAX_BYTES:
            raise UsageError("the request is too large", advice="Update Sfumato on your machine.")
    return body


async def _said(_request: HttpRequest, error: Exception) -> Response:
    """An error that is meant for the one who asked."""
    if not isinstance(error, SfumatoError):
        return await _unsaid(_request, error)
    if isinstance(error, UnreachableError | ResourceError | NotConfiguredError):  # the words are for our own people
        _log.error("a request could not be answered: %s", error)
        return JSONResponse({"error": "the coordinator cannot answer now", "advice": "Try again later."}, status_code=503)
    said = {"error": str(error), "advice": error.advice, "code": error.code}
    return JSONResponse(said, status_code=_status(error))


def _status(error: SfumatoError) -> int:
    if isinstance(error, UnsignedError):
        return 401
    if isinstance(error, RefusedError):
        return 403
    return 503 if isinstance(error, IntegrityError) else 400


async def _unsaid(_request: HttpRequest, error: Exception) -> Response:
    """An error that is nobody's business outside."""
    _log.error("a request failed: %s", type(error).__name__, exc_info=error)
    return JSONResponse({"error": "the coordinator failed"}, status_code=500)
