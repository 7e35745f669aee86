"""Joining a federation, and remembering it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_node import remote
from edge_node.config import Home
from edge_node.errors import NotJoinedError
from edge_node.remote import Remote
from export.errors import IntegrityError, RefusedError
from export.files import digest_of, read_bounded, write_atomic, write_json
from export.invite import Invite
from export.ledger import Ledger
from export.signing import Trust

_FILE_MAX_BYTES: Final = 64 * 2**10
_WORD_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Membership:
    """What this node is in a federation."""

    federation: str
    alias: str
    role: str
    node_id: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """Where the coordinator answers, as Flower wants it said."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def join(home: Home, invite: Invite) -> Membership:
    """Join: check who answers, then send the secret and the public key, then remember whom to trust.

    The ledger gets a line as soon as it is known to whom the key was given.

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
    coordinator = remote.meet(invite)
    key = _public_key(home)
    answer = coordinator.join(invite.secret, key)
    trust = Trust.from_plain(answer.get("trust"))
    membership = _membership(answer, trust, coordinator)
    Ledger(home.ledger_file).append(
        {
            "what": "joined",
            "federation": membership.federation,
            "alias": membership.alias,
            "role": membership.role,
            "bytes": len(key),
            "sha256": digest_of(key.encode()),
        }
    )
    if answer.get("modality") != config.modality:
        raise RefusedError(
            f"this federation works on {answer.get('modality')}, this machine on {config.modality}",
            advice=f"Set modality in {home.config_file} and ask for a new invite.",
        )
    write_atomic(home.ca_certificate, coordinator.ca_pem.encode())
    trust.save(home.trust_file)
    write_json(home.membership_file, asdict(membership))
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
    """The coordinator this node joined."""
    membership = load(home)
    pem = read_bounded(home.ca_certificate, _FILE_MAX_BYTES).decode()
    return Remote(membership.host, membership.port, pem)


def _membership(answer: Mapping[str, object], trust: Trust, coordinator: Remote) -> Membership:
    return Membership(
        federation=trust.federation,
        alias=_word(answer, "alias"),
        role=_word(answer, "role"),
        node_id=_word(answer, "node_id"),
        host=coordinator.host,
        port=coordinator.port,
    )


def _word(answer: Mapping[str, object], name: str) -> str:
    word = str(answer.get(name))
    if len(word) > _WORD_MAX or not word.isprintable():
        raise IntegrityError(f"the coordinator's answer holds no usable {name}", advice="Update Sfumato on both machines.")
    return word


def _public_key(home: Home) -> str:
    """The public half of this node's Flower key, made on first use; the private half never leaves this machine."""
    if not home.flower_key.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        write_atomic(home.flower_key, private, mode=0o600)
    key_file = read_bounded(home.flower_key, _FILE_MAX_BYTES)
    public = serialization.load_ssh_private_key(key_file, password=None).public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
