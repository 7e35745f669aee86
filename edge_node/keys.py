"""This node's three private keys, made here on first use; ``export/identity.py`` says what for. They never leave it."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from edge_node.config import Home
from export.errors import IntegrityError
from export.files import read_bounded, write_atomic
from export.identity import Proofs, PublicKeys

_KEY_MAX_BYTES: Final = 8 * 2**10
_PEM: Final = serialization.Encoding.PEM
_PKCS8: Final = serialization.PrivateFormat.PKCS8
_BARE: Final = serialization.NoEncryption()


def public_keys(home: Home) -> PublicKeys:
    """What a coordinator may see of the keys; those that are missing are made first."""
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    flower = _flower_key(home).public_key().public_bytes(*form).decode()
    return PublicKeys(flower, enrolled_key(home).public_key().public_bytes_raw(), provenance_request(home))


def proofs(home: Home, shown: PublicKeys) -> Proofs:
    """That this machine holds the keys it shows."""
    return Proofs.make(shown, _flower_key(home), _provenance_key(home))


def enrolled_key(home: Home) -> Ed25519PrivateKey:
    """Signs requests and updates.

    Raises:
        IntegrityError: the file holds another kind of key, or none.
    """
    if not home.enrolled_key.exists():
        write_atomic(home.enrolled_key, Ed25519PrivateKey.generate().private_bytes(_PEM, _PKCS8, _BARE), mode=0o600)
    key = _loaded(home.enrolled_key.name, read_bounded(home.enrolled_key, _KEY_MAX_BYTES))
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(home.enrolled_key.name)
    return key


def provenance_request(home: Home) -> bytes:
    """A request (PKCS #10, DER) that the provenance key be certified. The name in it is the coordinator's to choose.

    Raises:
        IntegrityError: the file holds another kind of key, or none.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfumato node")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(_provenance_key(home), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def derived_seed(home: Home, purpose: str) -> int:
    """A number of 128 bits that this machine alone knows and always knows again: HKDF (RFC 5869) over the enrolled key.

    For draws that must come out the same after a restart; privacy noise is none of them.
    """
    secret = enrolled_key(home).private_bytes_raw()
    info = f"sfumato seed: {purpose}".encode()
    return int.from_bytes(HKDF(hashes.SHA256(), 16, salt=None, info=info).derive(secret))


def _provenance_key(home: Home) -> ec.EllipticCurvePrivateKey:
    if not home.provenance_key.exists():
        write_atomic(
            home.provenance_key, ec.generate_private_key(ec.SECP256R1()).private_bytes(_PEM, _PKCS8, _BARE), mode=0o600
        )
    key = _loaded(home.provenance_key.name, read_bounded(home.provenance_key, _KEY_MAX_BYTES))
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _damaged(home.provenance_key.name)
    return key


def _flower_key(home: Home) -> ec.EllipticCurvePrivateKey:
    if not home.flower_key.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        write_atomic(home.flower_key, key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, _BARE), mode=0o600)
    try:
        private = serialization.load_ssh_private_key(read_bounded(home.flower_key, _KEY_MAX_BYTES), password=None)
    except ValueError as error:
        raise _damaged(home.flower_key.name) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise _damaged(home.flower_key.name)
    return private


def _loaded(name: str, pem: bytes) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise _damaged(name) from error


def _damaged(name: str) -> IntegrityError:
    return IntegrityError(
        f"this machine's {name} key cannot be read",
        advice="Put it back from a backup; without it, ask for a new invite and join from a new home folder (--home).",
    )
