"""An invite: where the coordinator is, what certificate it must show, and a secret that joins one node.

``CODE@HOST:PORT``, or the code alone where the coordinator is looked for on the network; the code in base32 groups of four that
survive being read aloud: 1 version byte, 16 bytes of the CA certificate's sha256, 10 secret bytes, 2 checksum bytes. A typing
error is noticed before anything is sent, and the fingerprint is compared before the secret is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
from dataclasses import dataclass
from typing import Final, Self

from export.errors import UsageError

SERVICE: Final = "_sfumato._tcp.local."
"""How a coordinator is looked for on the local network (RFC 6763)."""

_VERSION: Final = 1
_FINGERPRINT_BYTES, _SECRET_BYTES, _CHECKSUM_BYTES = 16, 10, 2
_CODE_BYTES: Final = 1 + _FINGERPRINT_BYTES + _SECRET_BYTES + _CHECKSUM_BYTES
# Letters base32 does not use, for the digits people type instead.
_LOOKALIKES: Final = str.maketrans({"0": "O", "1": "I", "8": "B", "-": None, " ": None})
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]{1,253}):(\d{1,5})")


class InviteError(UsageError):
    """The text is not an invite; nothing was sent."""

    code = "invite-mistyped"


@dataclass(frozen=True, slots=True)
class Invite:
    """What the text holds.

    Attributes:
        fingerprint: first 16 bytes of the sha256 of the coordinator's CA certificate (DER).
        secret: single use.
        host, port: of the coordinator's public port; empty and 0 if the text was the code alone.
    """

    fingerprint: bytes
    secret: bytes
    host: str
    port: int

    @classmethod
    def new(cls, ca_der: bytes, host: str, port: int) -> Self:
        """A fresh invite of the coordinator with that CA certificate."""
        return cls(fingerprint_of(ca_der), secrets.token_bytes(_SECRET_BYTES), host, port)

    def matches(self, ca_der: bytes) -> bool:
        """Whether a CA certificate is the inviting coordinator's."""
        return hmac.compare_digest(fingerprint_of(ca_der), self.fingerprint)

    def __str__(self) -> str:
        """The text a coordinator hands to an artist."""
        payload = bytes([_VERSION]) + self.fingerprint + self.secret
        letters = base64.b32encode(payload + _checksum(payload)).decode().rstrip("=")
        groups = "-".join(letters[i : i + 4] for i in range(0, len(letters), 4))
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{groups}@{host}:{self.port}"

    @classmethod
    def parse(cls, text: str, at: str | None = None) -> Self:
        """Read what a person typed: case, dashes, spaces and 0/O, 1/I, 8/B do not matter.

        Args:
            text: CODE@HOST:PORT, or the code alone.
            at: HOST:PORT, in the place of what the text says.

        Raises:
            InviteError: mistyped, or from another version.
        """
        code, _, address = text.strip().partition("@")
        host, port = "", 0
        if at is not None or "@" in text:
            host, port = parse_address(address if at is None else at)
        payload = _payload(code)
        if payload[0] != _VERSION:
            raise InviteError("the invite is of another version", advice="Update Sfumato on both machines.")
        fingerprint, secret = payload[1 : 1 + _FINGERPRINT_BYTES], payload[1 + _FINGERPRINT_BYTES :]
        return cls(fingerprint, secret, host, port)


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 address in brackets.

    Raises:
        InviteError: it is none.
    """
    place = _ADDRESS.fullmatch(text.strip())
    if place is None or not 0 < int(place[2]) < 65536:
        raise InviteError(
            "what was typed names no address",
            advice="An address is HOST:PORT, an invite CODE@HOST:PORT, in one piece. On the same network the code will do.",
        )
    return place[1].strip("[]"), int(place[2])


def is_host(text: str) -> bool:
    """Whether a name or address can stand in an invite, and so in a certificate."""
    if ":" not in text:
        return _ADDRESS.fullmatch(f"{text}:1") is not None
    try:
        return _ADDRESS.fullmatch(f"[{ipaddress.IPv6Address(text)}]:1") is not None
    except ValueError:
        return False


def fingerprint_of(ca_der: bytes) -> bytes:
    """What an invite holds of a CA certificate."""
    return hashlib.sha256(ca_der).digest()[:_FINGERPRINT_BYTES]


def _payload(code: str) -> bytes:
    mistyped = InviteError(
        "the invite code has a typing error", advice="Compare it with the original, letter by letter, or paste it."
    )
    letters = code.upper().translate(_LOOKALIKES)
    try:
        raw = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except (binascii.Error, ValueError) as error:
        raise mistyped from error
    if len(raw) != _CODE_BYTES or base64.b32encode(raw).decode().rstrip("=") != letters:
        raise mistyped
    payload, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if not hmac.compare_digest(_checksum(payload), checksum):
        raise mistyped
    return payload


def _checksum(payload: bytes) -> bytes:
    """CRC-16 (CCITT): no hash, since it must notice for certain whatever changes up to sixteen bits in a row, three letters.

    A hash of this length lets one slip in 65,536 through, by chance; and against forgery neither helps, nor need it.
    """
    return binascii.crc_hqx(payload, 0xFFFF).to_bytes(_CHECKSUM_BYTES)
