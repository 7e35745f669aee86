"""Requests to a coordinator's endpoint that say who asks: signed with the enrolled key, each good once and for minutes.

What is signed is method, path, the body's digest, time and a nonce, so that nothing of a request can be changed, sent to
another place or sent again. TLS carries the coordinator's identity alone; the node's is here. Pure: clocks and memories are
the caller's, but for ``Replays``, which the coordinator keeps.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from export.files import canonical_json, digest_of
from export.identity import NodeKey, node_key

WINDOW_S: Final = 300.0
"""How far a request's time may lie from the coordinator's."""

_CONTEXT: Final = b"sfumato request v1\n"
_NODE, _TIME, _NONCE, _SIGNATURE = "sfumato-node", "sfumato-time", "sfumato-nonce", "sfumato-signature"
_FORMS: Final = {
    _NODE: re.compile(r"[0-9a-f]{64}"),
    _TIME: re.compile(r"\d{1,16}"),
    _NONCE: re.compile(r"[0-9a-f]{32}"),
    _SIGNATURE: re.compile(r"[A-Za-z0-9+/]{86}=="),
}
_REMEMBERED_MAX: Final = 200_000

Fault = Literal["unsigned", "clock", "replayed", "signature"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is signed of a request.

    Attributes:
        method: in upper case.
        path: as sent, from the first slash.
        body: all of it.
    """

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request's headers say, before anything of it is believed."""

    node: NodeKey
    time_ms: int
    nonce: str
    signature: bytes


def sign(request: Request, key: Ed25519PrivateKey, now_s: float) -> dict[str, str]:
    """The headers that sign a request.

    Args:
        request: what is asked.
        key: the enrolled key.
        now_s: the coordinator's time, as well as the node knows it.
    """
    node = node_key(key.public_key().public_bytes_raw())
    time_ms, nonce = max(0, round(now_s * 1000)), secrets.token_hex(16)
    signature = base64.b64encode(key.sign(_message(request, node, time_ms, nonce))).decode()
    return {_NODE: node, _TIME: str(time_ms), _NONCE: nonce, _SIGNATURE: signature}


def claim_of(headers: Mapping[str, str]) -> Claim | None:
    """Whoever a request says it is from; None if it is not signed in our way. Header names in lower case."""
    said = {name: headers.get(name, "") for name in _FORMS}
    if not all(form.fullmatch(said[name]) for name, form in _FORMS.items()):
        return None
    try:
        signature = base64.b64decode(said[_SIGNATURE], validate=True)
    except binascii.Error:
        return None
    return Claim(NodeKey(said[_NODE]), int(said[_TIME]), said[_NONCE], signature)


def is_signed(request: Request, claim: Claim, enrolled: bytes) -> bool:
    """Whether a claim's signature is over exactly this request, by that raw Ed25519 key."""
    if node_key(enrolled) != claim.node:
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(enrolled)
        key.verify(claim.signature, _message(request, claim.node, claim.time_ms, claim.nonce))
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(slots=True)
class Replays:
    """Remembers which nonces were used, as long as their time would still be taken.

    In memory, and so forgotten by a restart: hence a request from before the start is not taken either.

    Attributes:
        started_s: when this memory began, by the coordinator's clock.
    """

    started_s: float
    _used: dict[tuple[NodeKey, str], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refuse(self, claim: Claim, now_s: float) -> Fault | None:
        """Why a claim is not taken now, or None: then it is used up. To be asked once its signature was found good.

        1. Its time is within the window around now, and not before the start.
        2. Its nonce was not used.
        """
        made_s = claim.time_ms / 1000
        # 1.
        if abs(now_s - made_s) > WINDOW_S or made_s < self.started_s - 1:  # a second, for what a node cannot know better
            return "clock"
        # 2.
        with self._lock:
            if (claim.node, claim.nonce) in self._used:
                return "replayed"
            if len(self._used) >= _REMEMBERED_MAX:
                self._used = {name: made for name, made in self._used.items() if now_s - made <= WINDOW_S}
            if len(self._used) >= _REMEMBERED_MAX:  # fail closed: a member floods us
                return "replayed"
            self._used[claim.node, claim.nonce] = made_s
        return None


def _message(request: Request, node: NodeKey, time_ms: int, nonce: str) -> bytes:
    signed = {
        "method": request.method,
        "path": request.path,
        "body": digest_of(request.body),
        "node": node,
        "time": time_ms,
        "nonce": nonce,
    }
    return _CONTEXT + canonical_json(signed)
