"""A coordinator's signed word that somebody is a member, kept by the member.

For the day the coordinator is restored from a backup older than the member: the member shows it, and is taken back without a
new invite. What it cannot say is that a membership was ended after the backup; whoever restores must end that one again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.store import Node, Role
from export.errors import RefusedError, UsageError
from export.files import canonical_json

_CONTEXT: Final = b"sfumato enrolment v1\n"
_FIELDS: Final = frozenset({"federation", "alias", "role", "joined", "keys", "signature"})


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What the word says.

    Attributes:
        federation: its name.
        alias, role, joined: as in ``store.Node``.
        keys: digest of the member's three public keys.
    """

    federation: str
    alias: str
    role: Role
    joined: str
    keys: str


def sign(node: Node, federation: str, key: Ed25519PrivateKey) -> dict[str, str]:
    """The word as JSON data.

    Args:
        node: the member.
        federation: its name.
        key: the coordinator's.
    """
    plain = {
        "federation": federation,
        "alias": node.alias,
        "role": node.role,
        "joined": node.joined,
        "keys": str(node.keys.digest),
    }
    return {**plain, "signature": base64.b64encode(key.sign(_CONTEXT + canonical_json(plain))).decode()}


def verify(plain: object, federation: str, key: Ed25519PrivateKey) -> Enrolment:
    """Read a word this coordinator signed; nothing of it is used before the signature is found good.

    Raises:
        UsageError: it is none.
        RefusedError: it is not this coordinator's.
    """
    if not isinstance(plain, Mapping) or set(plain) != _FIELDS or not all(isinstance(v, str) for v in plain.values()):
        raise UsageError("this is no enrolment", advice="Join with an invite: sfumato join INVITE")
    said = {name: value for name, value in plain.items() if name != "signature"}
    try:
        signature = base64.b64decode(plain["signature"], validate=True)
        key.public_key().verify(signature, _CONTEXT + canonical_json(said))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise RefusedError("that enrolment was not signed here", advice="Ask the coordinator for an invite.") from error
    if said["federation"] != federation or said["role"] not in ("artist", "gallery"):
        raise RefusedError("that enrolment is for another federation", advice="Ask the coordinator for an invite.")
    role: Role = "artist" if said["role"] == "artist" else "gallery"
    return Enrolment(federation, said["alias"], role, said["joined"], said["keys"])
