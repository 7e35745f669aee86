"""Talking to the coordinator's own endpoint: joining, the time, the newest release, its files. Standard library only.

A gallery joins and updates without flwr or torch. After the first contact, in which nothing is sent, only the CA
certificate the invite pins is trusted; every answer is bounded and every wait has an end. TLS says who the coordinator is;
who the node is, a signature over each request says (``export/requests.py``).
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from edge_node.errors import (
    JoinRefusedError,
    MembershipEndedError,
    NoCoordinatorError,
    NotAMemberError,
    WrongCoordinatorError,
)
from export import policy
from export.errors import IntegrityError, SfumatoError
from export.identity import Proofs, PublicKeys
from export.invite import Invite
from export.requests import Request

PREFIX: Final = "/sfumato/v1"
_TIMEOUT_S: Final = 15.0  # for each step: a connection, a handshake, the next bytes
_ANSWER_S: Final = 60.0  # for a whole exchange, so that a coordinator that drips bytes cannot hold a node for ever
_FILE_S: Final = 900.0  # for a whole file of a release, over a slow line
_VERDICTS_MAX: Final = 100
_ANSWER_MAX_BYTES: Final = 256 * 2**10


Sign: TypeAlias = Callable[[Request], Mapping[str, str]]
"""Gives the headers that sign a request with this node's enrolled key."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a coordinator said when it was asked for its newest release.

    Attributes:
        version: of the served release.
        files: of it.
        is_round_running: whether a round is under way.
        time_s: the coordinator's time then.
        policy: digest of the policy that holds.
        verdicts: what became of this node's last updates, the newest first.
        is_seen: whether Flower sees this node there; None if that cannot be told.
    """

    version: int
    files: tuple[str, ...]
    is_round_running: bool
    time_s: float
    policy: str
    verdicts: tuple[Verdict, ...]
    is_seen: bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of this node's part in a round, in the coordinator's words.

    Attributes:
        round: its number.
        accepted: whether the update counts.
        reason: why not, as one word.
        advice: what the artist can do.
    """

    round: int
    accepted: bool
    reason: str
    advice: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A coordinator at an address, known by its CA certificate.

    Attributes:
        host, port: where it answers.
        ca_pem: its authority's certificate.
        sign: signs what only members may ask; without it only certificate and time can be asked for.
    """

    host: str
    port: int
    ca_pem: str
    sign: Sign | None = None

    def time_s(self) -> float:
        """The coordinator's time now: what it said, and half of the time the exchange took.

        Raises:
            NoCoordinatorError, WrongCoordinatorError, IntegrityError: see ``_request``.
        """
        asked = time.monotonic()
        plain = _object(self._request("GET", "/time", is_signed=False))
        said = plain.get("time")
        if not isinstance(said, float | int) or abs(said) > 2**53:  # an integer may have more digits than a float holds
            raise _nonsense()
        return float(said) + (time.monotonic() - asked) / 2

    def newest(self) -> Offer:
        """What the coordinator serves now.

        Raises:
            NoCoordinatorError, WrongCoordinatorError, IntegrityError: see ``_request``.
        """
        plain = _object(self._request("GET", "/release"))
        try:
            files = plain["files"]
            if not isinstance(files, list):
                raise TypeError("files is not a list")
            return Offer(
                version=int(str(plain["version"])),
                files=tuple(str(f) for f in files),
                is_round_running=plain["round_running"] is True,
                time_s=float(str(plain["time"])),
                policy=_words(plain["policy"]),
                verdicts=_verdicts(plain["answers"]),
                is_seen=_truth(plain["online"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _nonsense() from error

    def policy(self) -> tuple[bytes, bytes]:
        """The policy that holds and the signatures over it; unverified, the caller checks it.

        Raises:
            NoCoordinatorError, WrongCoordinatorError, IntegrityError: see ``_request``.
        """
        try:
            return policy.from_plain(_object(self._request("GET", "/policy")))
        except ValueError as error:
            raise _nonsense() from error

    def file(self, version: int, path: str, limit_bytes: int) -> bytes:
        """One file of a release; unverified, the caller checks it."""
        return self._request("GET", f"/releases/{version}/{path}", limit_bytes=limit_bytes, total_s=_FILE_S)

    def join(self, secret: bytes, keys: PublicKeys, proofs: Proofs) -> Mapping[str, object]:
        """Use an invite.

        Raises:
            JoinRefusedError: used, expired, taken back or unknown; in the coordinator's words.
            NoCoordinatorError, WrongCoordinatorError, IntegrityError: see ``_request``.
        """
        body = {"secret": base64.b64encode(secret).decode(), "keys": keys.to_plain(), "proofs": proofs.to_plain()}
        return _object(self._request("POST", "/join", json.dumps(body).encode()))

    def rejoin(self, keys: PublicKeys, enrolment: object) -> Mapping[str, object]:
        """Ask a coordinator that has forgotten this member to take it back, on its own signed word.

        Raises:
            JoinRefusedError, MembershipEndedError: it does not, and why.
            NoCoordinatorError, WrongCoordinatorError, IntegrityError: see ``_request``.
        """
        body = {"keys": keys.to_plain(), "enrolment": enrolment}
        return _object(self._request("POST", "/rejoin", json.dumps(body).encode()))

    def certificate(self) -> str:
        """The provenance key's certificate with a new term: PEM, unverified.

        Raises:
            NotAMemberError, MembershipEndedError, NoCoordinatorError, WrongCoordinatorError, IntegrityError: see ``_request``.
        """
        return str(_object(self._request("POST", "/certificate", b"")).get("certificate"))

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        limit_bytes: int = _ANSWER_MAX_BYTES,
        total_s: float = _ANSWER_S,
        *,
        is_signed: bool = True,
    ) -> bytes:
        """An answer, or what was said instead: see ``_exchange`` and ``_refusal``."""
        try:
            context = ssl.create_default_context(cadata=self.ca_pem)
        except (ssl.SSLError, ValueError) as error:
            raise _nonsense() from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        headers: Mapping[str, str] = {}
        if is_signed:
            if self.sign is None:
                raise AssertionError("only members may ask that")
            headers = self.sign(Request(method, f"{PREFIX}{path}", body or b""))
        line = _Line(self.host, self.port, context, total_s)
        status, data = _exchange(line, method, path, body, limit_bytes, headers)
        if status != http.client.OK:
            raise _refusal(status, data)
        return data


def meet(invite: Invite) -> Remote:
    """Find out whether whoever answers is the coordinator who made the invite. Sends nothing but a request for a name.

    Raises:
        NoCoordinatorError: nobody answers.
        WrongCoordinatorError: somebody else does; the invite's secret was not sent.
    """
    # Deliberately unverified: the certificate fetched here is public, and is believed only if the invite pins it.
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname = False
    stranger.verify_mode = ssl.CERT_NONE
    line = _Line(invite.host, invite.port, stranger, _ANSWER_S)
    status, data = _exchange(line, "GET", "/ca", None, _ANSWER_MAX_BYTES, {})
    pem = data.decode(errors="replace")
    try:
        matches = status == http.client.OK and invite.matches(ssl.PEM_cert_to_DER_cert(pem))
    except ValueError:
        matches = False
    if not matches:
        raise WrongCoordinatorError(
            f"whoever answers at {invite.host}:{invite.port} is not the coordinator who invited you",
            advice="Nothing was sent. Check the address, and ask the coordinator for the invite again.",
        )
    return Remote(invite.host, invite.port, pem)


class _Line(http.client.HTTPSConnection):
    """A TLS connection that is cut after a total time, whatever the other side is doing then."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, total_s: float) -> None:
        super().__init__(host, port, timeout=_TIMEOUT_S, context=context)
        self._tls = context
        self._watch = threading.Timer(total_s, self._cut)
        self._watch.daemon = True
        self.was_cut = False

    def connect(self) -> None:
        """Connect and shake hands, with the clock running from here."""
        plain = socket.create_connection((self.host, self.port), _TIMEOUT_S)
        self.sock = self._wire = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        self._watch.start()
        self.sock.do_handshake()

    def hang_up(self) -> None:
        """Close, and stop the clock. Not in ``close``: http.client calls that while an answer's body is still to come."""
        self._watch.cancel()
        self.close()

    def _cut(self) -> None:
        self.was_cut = True
        with suppress(OSError):
            # Not SSLSocket.shutdown, which pulls the TLS state from under the thread that reads.
            socket.socket.shutdown(self._wire, socket.SHUT_RDWR)


def _exchange(
    line: _Line, method: str, path: str, body: bytes | None, limit_bytes: int, signed: Mapping[str, str]
) -> tuple[int, bytes]:
    """One request, one bounded answer: its status and what it holds.

    Raises:
        NoCoordinatorError: nobody answers, or not in time.
        WrongCoordinatorError: the certificate is not under the pinned authority, or for another name.
        IntegrityError: the answer is longer than it may be.
    """
    host, port = line.host, line.port
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        line.request(method, f"{PREFIX}{path}", body, {**headers, **signed})
        response = line.getresponse()
        data = response.read(limit_bytes + 1)
        if line.was_cut:
            raise TimeoutError("the answer took too long")
    except ssl.SSLCertVerificationError as error:
        raise WrongCoordinatorError(
            f"whoever answers at {host}:{port} cannot prove to be the coordinator ({error.verify_message})",
            advice="Nothing was sent. Check the address with the coordinator.",
        ) from error
    except (OSError, http.client.HTTPException, socket.timeout) as error:  # noqa: UP041 - said for the reader
        raise NoCoordinatorError(
            f"nobody answers at {host}:{port}",
            advice="Check the address and your network, and ask whether the coordinator is running. If it moved, follow it "
            "with: sfumato move HOST:PORT",
        ) from error
    finally:
        line.hang_up()
    if len(data) > limit_bytes:
        raise _nonsense()
    return response.status, data


_REFUSALS: Final[Mapping[str, type[SfumatoError]]] = {
    error.code: error for error in (NotAMemberError, MembershipEndedError, JoinRefusedError)
}


def _refusal(status: int, data: bytes) -> SfumatoError:
    """What the coordinator said, if it said something: to refuse (403), to be asked again later (503), or else to fail."""
    try:
        said = _object(data)
        message, advice, code = _words(said["error"]), _words(said.get("advice", "Ask the coordinator.")), said.get("code")
    except (IntegrityError, KeyError):
        if status != http.client.SERVICE_UNAVAILABLE:
            return _nonsense()
        message, advice, code = "not now", "Try again in a minute.", None
    if status == http.client.FORBIDDEN:
        return _REFUSALS.get(str(code), JoinRefusedError)(message, advice=advice)
    kind = NoCoordinatorError if status == http.client.SERVICE_UNAVAILABLE else IntegrityError
    return kind(f"the coordinator answered: {message}", advice=advice)


def _truth(said: object) -> bool | None:
    if said is not None and not isinstance(said, bool):
        raise TypeError("neither true nor false nor unknown")
    return said


def _verdicts(said: object) -> tuple[Verdict, ...]:
    if not isinstance(said, list) or len(said) > _VERDICTS_MAX:
        raise TypeError("no list of verdicts")
    return tuple(
        Verdict(int(str(one["round"])), one["accepted"] is True, _words(one["reason"]), _words(one["advice"])) for one in said
    )


def _words(said: object) -> str:
    """What a terminal may be given to show."""
    return "".join(sign for sign in str(said) if sign.isprintable())[:300]


def _object(data: bytes) -> Mapping[str, object]:
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _nonsense() from error
    if not isinstance(plain, dict):
        raise _nonsense()
    return plain


def _nonsense() -> IntegrityError:
    return IntegrityError(
        "the coordinator's answer makes no sense to this version",
        advice="Update Sfumato on both machines; if that does not help, ask the coordinator.",
    )
