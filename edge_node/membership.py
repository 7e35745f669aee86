"""Joining a federation, remembering it, and being known by it again after it was restored from a backup."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from edge_node import clock, consent, discovery, keys, remote
from edge_node.config import Home
from edge_node.errors import NotAMemberError, NotJoinedError
from edge_node.remote import Remote
from export import requests
from export.errors import IntegrityError, NotConfiguredError, RefusedError
from export.files import digest_of, read_bounded, write_atomic, write_json
from export.identity import PublicKeys, certificate_request, check_digits
from export.invite import Invite
from export.ledger import Ledger
from export.signing import Trust

_FILE_MAX_BYTES: Final = 64 * 2**10
_WORD_MAX: Final = 100
_RENEW_LEFT_S: Final = 200 * 86400.0
"""A provenance certificate is renewed when less than this is left of it: half of what the coordinator gives."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What this node is in a federation.

    Attributes:
        federation: its name.
        alias, role, node_id: this node's there.
        host, port: where the coordinator answers.
        digits: the six digits of the joining, which the coordinator shows too.
    """

    federation: str
    alias: str
    role: str
    node_id: str
    host: str
    port: int
    digits: str

    @property
    def address(self) -> str:
        """Where the coordinator answers, as Flower wants it said."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def join(home: Home, invite: Invite) -> Membership:
    """Join: check who answers, then send the secret and the public keys, then remember whom to trust.

    The ledger gets a line as soon as it is known to whom the keys were given.

    Raises:
        RefusedError: this node is a member of a federation already.
        NoCoordinatorError, WrongCoordinatorError, JoinRefusedError: see ``remote``.
    """
    if home.membership_file.exists():
        raise RefusedError(
            f"this machine is a member of {load(home).federation!r} already",
            advice="Use another home folder (--home) for another federation.",
        )
    config = home.config()
    met = remote.meet(invite)
    clock.learn(home, met.time_s())
    shown = keys.public_keys(home)
    answer = _signing(home, met).join(invite.secret, shown, keys.proofs(home, shown))
    trust = Trust.from_plain(answer.get("trust"))
    membership = _membership(answer, trust, met, shown)
    _note(home, "joined", membership, shown)
    if answer.get("modality") != config.modality:
        raise RefusedError(
            f"this federation works on {answer.get('modality')}, this machine on {config.modality}",
            advice=f"Set modality in {home.config_file} and ask for a new invite.",
        )
    certificate = _certificate(str(answer.get("certificate")), met.ca_pem, shown)
    write_atomic(home.ca_certificate, met.ca_pem.encode())
    trust.save(home.trust_file)
    _remember(home, membership, certificate, answer.get("enrolment"))
    consent.keep_offered(home, *coordinator(home).policy())
    return membership


def placed(home: Home, invite: Invite) -> Invite:
    """An invite with an address: its own, or that of the coordinator on this network who proves to be the one who made it.

    Raises:
        NotConfiguredError: it has none, and this machine does not look for coordinators.
        NoCoordinatorError: none was found.
    """
    if invite.host:
        return invite
    if not home.config().discovery:
        raise NotConfiguredError(
            "the invite names no address, and this machine does not look for coordinators (discovery = false)",
            advice=f"Add --at HOST:PORT, or set discovery = true in {home.config_file}.",
        )
    return discovery.find_coordinator(invite, discovery.discover())


def move(home: Home, host: str, port: int) -> Membership:
    """Follow the coordinator to another address, if it is the same one who answers there.

    Raises:
        NotJoinedError: there is none to follow.
        NoCoordinatorError, WrongCoordinatorError, IntegrityError: see ``remote``; nothing was changed.
    """
    moved = replace(load(home), host=host, port=port)
    pem = read_bounded(home.ca_certificate, _FILE_MAX_BYTES).decode()
    Remote(host, port, pem).time_s()
    write_json(home.membership_file, asdict(moved))
    return moved


def rejoin(home: Home) -> Membership:
    """Ask the coordinator, who has forgotten this member, to take it back. What releases were seen is not forgotten here.

    Raises:
        JoinRefusedError, MembershipEndedError: it does not, and why.
        NoCoordinatorError, WrongCoordinatorError, IntegrityError: see ``remote``.
    """
    old, shown, asked = load(home), keys.public_keys(home), coordinator(home)
    try:
        word = json.loads(read_bounded(home.enrolment_file, _FILE_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise NotAMemberError(
            "the coordinator does not know this machine, and its word that it did is gone",
            advice="Ask the coordinator for a new invite, and join from a new home folder (--home).",
        ) from error
    answer = asked.rejoin(shown, word)
    trust = Trust.from_plain(answer.get("trust"))
    if replace(trust, highest_version=0) != replace(Trust.load(home.trust_file), highest_version=0):
        raise IntegrityError(
            "the coordinator came back with other keys than it had",
            advice="Ask the coordinator; if its keys were lost, join anew from a new home folder (--home).",
        )
    membership = _membership(answer, trust, asked, shown)
    _note(home, "rejoined", membership, shown)
    certificate = _certificate(str(answer.get("certificate")), asked.ca_pem, shown)
    _remember(home, replace(membership, digits=old.digits), certificate, answer.get("enrolment"))
    return membership


def load(home: Home) -> Membership:
    """The membership.

    Raises:
        NotJoinedError: there is none.
        IntegrityError: the file cannot be read.
    """
    try:
        return Membership(**json.loads(read_bounded(home.membership_file, _FILE_MAX_BYTES)))
    except FileNotFoundError as error:
        raise NotJoinedError("this machine has joined no federation", advice="Join with: sfumato join INVITE") from error
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError("the membership file cannot be read", advice="Join the federation again.") from error


def coordinator(home: Home) -> Remote:
    """The coordinator this node joined, for requests in this node's name.

    Asks it for the time first, if this machine was started since it was last asked: requests are signed with it.

    Raises:
        NotJoinedError: there is none.
        NoCoordinatorError, WrongCoordinatorError, IntegrityError: see ``remote``.
    """
    membership = load(home)
    pem = read_bounded(home.ca_certificate, _FILE_MAX_BYTES).decode()
    known = Remote(membership.host, membership.port, pem)
    if clock.anchored(home) is None:
        clock.learn(home, known.time_s())
    return _signing(home, known)


def renew_certificate(home: Home, asked: Remote) -> bool:
    """Get a new term for the provenance certificate, if less than half of the old one is left; whether it was got."""
    try:
        pem = read_bounded(home.provenance_certificate, _FILE_MAX_BYTES)
        ends_s = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except (OSError, ValueError):  # gone or damaged
        ends_s = 0.0
    if ends_s - clock.expiry_s(home) > _RENEW_LEFT_S:
        return False
    certificate = _certificate(asked.certificate(), asked.ca_pem, keys.public_keys(home))
    write_atomic(home.provenance_certificate, certificate)
    return True


def _signing(home: Home, known: Remote) -> Remote:
    """The same coordinator, with requests signed by this node."""
    return replace(known, sign=lambda request: requests.sign(request, keys.enrolled_key(home), clock.now_s(home)))


def _remember(home: Home, membership: Membership, certificate: bytes, enrolment: object) -> None:
    write_json(home.enrolment_file, enrolment)
    write_atomic(home.provenance_certificate, certificate)
    write_json(home.membership_file, asdict(membership))


def _note(home: Home, what: str, membership: Membership, shown: PublicKeys) -> None:
    sent = json.dumps(shown.to_plain()).encode()
    Ledger(home.ledger_file).append(
        {
            "what": what,
            "federation": membership.federation,
            "alias": membership.alias,
            "role": membership.role,
            "bytes": len(sent),
            "sha256": digest_of(sent),
            "digits": membership.digits,
        }
    )


def _membership(answer: Mapping[str, object], trust: Trust, met: Remote, shown: PublicKeys) -> Membership:
    ca = x509.load_pem_x509_certificate(met.ca_pem.encode()).public_bytes(serialization.Encoding.DER)
    return Membership(
        federation=trust.federation,
        alias=_word(answer, "alias"),
        role=_word(answer, "role"),
        node_id=_word(answer, "node_id"),
        host=met.host,
        port=met.port,
        digits=check_digits(ca, shown),
    )


def _certificate(pem: str, ca_pem: str, shown: PublicKeys) -> bytes:
    """The certificate the coordinator gave, if it is one of its own for this node's key.

    Raises:
        IntegrityError: it is not.
    """
    try:
        if len(pem) > _FILE_MAX_BYTES:
            raise ValueError("too long")
        given = x509.load_pem_x509_certificate(pem.encode())
        given.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem.encode()))
        if given.public_key() != certificate_request(shown.provenance).public_key():
            raise ValueError("another key's")
    except (ValueError, TypeError, InvalidSignature) as error:
        raise IntegrityError(
            "the coordinator gave no certificate for this machine's pictures", advice="Update Sfumato on both machines."
        ) from error
    return pem.encode()


def _word(answer: Mapping[str, object], name: str) -> str:
    word = str(answer.get(name))
    if len(word) > _WORD_MAX or not word.isprintable():
        raise IntegrityError(f"the coordinator's answer holds no usable {name}", advice="Update Sfumato on both machines.")
    return word
