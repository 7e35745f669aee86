"""What a node shows of itself when it joins: the public halves of three keys, one use each.

| key | use |
|---|---|
| EC P-384, OpenSSH form | signing in with Flower |
| Ed25519, the *enrolled key* | signing requests to the coordinator's endpoint, updates, style cards |
| EC P-256, as a certificate request | signing provenance on pictures (C2PA's ES256) |

The private halves are made on the node and stay there (``edge_node/keys.py``); the coordinator certifies the third
(``coordinator/pki.py``). Who joins proves to hold all of them: the enrolled key signs the request, and the two others sign that
they belong with it (``Proofs``), so that nobody enrols a key that was only seen somewhere. Both programs compute the same six
digits from what was exchanged, so that two people can make sure over a telephone that nobody else joined with the invite.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NewType, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from export.errors import IntegrityError
from export.files import Digest, canonical_json, digest_of

NodeKey = NewType("NodeKey", str)
"""The sha256 of a raw enrolled key in lower-case hexadecimal: how a signed request says who asks."""

_HELD: Final = b"sfumato keys held v1\n"
_PROOF_MAX_BYTES: Final = 128  # an ECDSA signature on P-384 has 104 at the most
_OPENSSH_MAX_CHARACTERS: Final = 512
_REQUEST_MAX_BYTES: Final = 2048
_ENROLLED_BYTES: Final = 32
_FIELDS: Final = frozenset({"flower", "enrolled", "provenance"})
_PROVEN: Final = frozenset({"flower", "provenance"})


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """The public halves of a node's three keys.

    Attributes:
        flower: EC P-384, one line in OpenSSH form, without a comment.
        enrolled: raw Ed25519 key.
        provenance: certificate request (PKCS #10, DER) for an EC P-256 key, signed with that key.
    """

    flower: str
    enrolled: bytes
    provenance: bytes

    @property
    def node_key(self) -> NodeKey:
        """Names the enrolled key."""
        return node_key(self.enrolled)

    @property
    def digest(self) -> Digest:
        """sha256 of the three keys; another request for the same key does not change it."""
        plain = {**self.to_plain(), "provenance": base64.b64encode(_subject_key(self.provenance)).decode()}
        return digest_of(b"sfumato node keys v1\n" + canonical_json(plain))

    def to_plain(self) -> dict[str, str]:
        """As JSON data; see ``from_plain``."""
        return {
            "flower": self.flower,
            "enrolled": base64.b64encode(self.enrolled).decode(),
            "provenance": base64.b64encode(self.provenance).decode(),
        }

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Read and check them: each is of its kind, and the request is signed by the key it is for.

        Raises:
            IntegrityError: they are not three such keys.
        """
        try:
            if not isinstance(plain, Mapping) or set(plain) != _FIELDS or not all(isinstance(v, str) for v in plain.values()):
                raise ValueError("other fields")
            keys = cls(
                plain["flower"],
                base64.b64decode(plain["enrolled"], validate=True),
                base64.b64decode(plain["provenance"], validate=True),
            )
            _flower_key(keys.flower)
            if len(keys.enrolled) != _ENROLLED_BYTES:
                raise ValueError("the enrolled key has another length")
            Ed25519PublicKey.from_public_bytes(keys.enrolled)
            certificate_request(keys.provenance)
        except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm) as error:
            raise IntegrityError(f"these are not a node's keys ({error})", advice="Update Sfumato on both machines.") from error
        return keys


@dataclass(frozen=True, slots=True)
class Proofs:
    """That the Flower and the provenance key are in the same hands as the enrolled one: each signs all three (ECDSA, DER)."""

    flower: bytes
    provenance: bytes

    @classmethod
    def make(cls, keys: PublicKeys, flower: ec.EllipticCurvePrivateKey, provenance: ec.EllipticCurvePrivateKey) -> Self:
        """By the private halves."""
        held = _held(keys)
        return cls(flower.sign(held, ec.ECDSA(hashes.SHA384())), provenance.sign(held, ec.ECDSA(hashes.SHA256())))

    def prove(self, keys: PublicKeys) -> bool:
        """Whether they are by these keys, over these keys."""
        provenance = certificate_request(keys.provenance).public_key()
        return _is_by(self.flower, _flower_key(keys.flower), hashes.SHA384(), keys) and _is_by(
            self.provenance, provenance, hashes.SHA256(), keys
        )

    def to_plain(self) -> dict[str, str]:
        """As JSON data; see ``from_plain``."""
        return {
            "flower": base64.b64encode(self.flower).decode(),
            "provenance": base64.b64encode(self.provenance).decode(),
        }

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Read them; whether they prove anything is not looked at.

        Raises:
            ValueError: they are not two such proofs.
        """
        if not isinstance(plain, Mapping) or set(plain) != _PROVEN or not all(isinstance(v, str) for v in plain.values()):
            raise ValueError("other fields")
        read = {name: base64.b64decode(text, validate=True) for name, text in plain.items()}
        if any(len(proof) > _PROOF_MAX_BYTES for proof in read.values()):
            raise ValueError("a proof is too long")
        return cls(**read)


def node_key(enrolled: bytes) -> NodeKey:
    """The name of a raw enrolled key."""
    return NodeKey(digest_of(enrolled))


def certificate_request(der: bytes) -> x509.CertificateSigningRequest:
    """A request for a certificate, checked: an EC P-256 key that signed it.

    Raises:
        ValueError: anything else.
    """
    if len(der) > _REQUEST_MAX_BYTES:
        raise ValueError("the certificate request is too long")
    request = x509.load_der_x509_csr(der)
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the provenance key is not on P-256")  # noqa: TRY004 - a value off the wire, not a programmer's type
    try:
        is_signed = request.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm) as error:
        raise ValueError("the certificate request is not signed") from error
    if not is_signed:
        raise ValueError("the certificate request is not signed by its key")
    return request


def check_digits(ca_der: bytes, keys: PublicKeys) -> str:
    """Six digits over the authority that was met and the keys that were shown, as ``"012 345"``.

    They say that two people look at the same joining. A thief of an invite, who joins in another's name, has other keys and so
    other digits; he does not know beforehand which ones would match.
    """
    seen = hashlib.sha256(b"sfumato joining v1\n" + hashlib.sha256(ca_der).digest() + bytes.fromhex(keys.digest)).digest()
    digits = f"{int.from_bytes(seen[:8]) % 1_000_000:06}"
    return f"{digits[:3]} {digits[3:]}"


def _subject_key(request: bytes) -> bytes:
    """The public key a request is for: SubjectPublicKeyInfo, DER."""
    key = x509.load_der_x509_csr(request).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _held(keys: PublicKeys) -> bytes:
    return _HELD + bytes.fromhex(keys.digest)


def _is_by(proof: bytes, key: object, algorithm: hashes.HashAlgorithm, keys: PublicKeys) -> bool:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(proof, _held(keys), ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _flower_key(text: str) -> ec.EllipticCurvePublicKey:
    if len(text) > _OPENSSH_MAX_CHARACTERS or not text.isascii() or not text.isprintable():
        raise ValueError("the Flower key is not one line")
    key = serialization.load_ssh_public_key(text.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("the Flower key is not on P-384")  # noqa: TRY004 - a value off the wire, not a programmer's type
    canonical = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    if canonical != text:  # two spellings of one key would be two members
        raise ValueError("the Flower key is spelt in another way")
    return key
