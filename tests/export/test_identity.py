"""The public halves of a node's keys: each of its kind, spelt in one way, and told apart by six digits."""

import base64
import hashlib
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from export.errors import IntegrityError
from export.identity import Proofs, PublicKeys, certificate_request, check_digits
from tests.simulators import credentials

ADA, BERTHE = credentials("Ada").keys, credentials("Berthe").keys
PROOFS, HERS = credentials("Ada").proofs, credentials("Berthe").proofs


def a_request(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anybody")])
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return request.public_bytes(serialization.Encoding.DER)


def openssh(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def test_keys_come_back_as_they_were_sent() -> None:
    assert PublicKeys.from_plain(ADA.to_plain()) == ADA


def test_each_key_counts_in_the_digest_and_another_request_for_the_same_key_does_not() -> None:
    again = credentials.__wrapped__("Ada").keys  # ECDSA draws anew for each signature

    assert again.provenance != ADA.provenance
    assert again.digest == ADA.digest
    for other in (
        replace(ADA, flower=BERTHE.flower),
        replace(ADA, enrolled=BERTHE.enrolled),
        replace(ADA, provenance=BERTHE.provenance),
    ):
        assert other.digest != ADA.digest


def test_six_digits_depend_on_the_authority_and_on_every_key() -> None:
    shown = {
        check_digits(ca, keys) for ca in (b"one", b"another") for keys in (ADA, BERTHE, replace(ADA, flower=BERTHE.flower))
    }

    assert len(shown) == 6
    assert all(len(digits) == 7 and digits[3] == " " and (digits[:3] + digits[4:]).isdigit() for digits in shown)


def test_six_digits_are_the_stated_hash() -> None:
    inner = hashlib.sha256(b"sfumato joining v1\n" + hashlib.sha256(b"ca").digest() + bytes.fromhex(ADA.digest)).digest()

    assert check_digits(b"ca", ADA).replace(" ", "") == f"{int.from_bytes(inner[:8], 'big') % 10**6:06d}"


P384, P256, ED25519 = (
    ec.generate_private_key(ec.SECP384R1()),
    ec.generate_private_key(ec.SECP256R1()),
    Ed25519PrivateKey.generate(),
)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"flower": openssh(P256)}, id="Flower key on another curve"),
        pytest.param({"flower": openssh(ED25519)}, id="Flower key of another kind"),
        pytest.param({"flower": ADA.flower + " Ada's"}, id="Flower key with a comment"),
        pytest.param({"flower": ADA.flower + "\n"}, id="Flower key of two lines"),
        pytest.param({"flower": ""}, id="no Flower key"),
        pytest.param({"flower": "ecdsa-sha2-nistp384 " + "A" * 600}, id="endless Flower key"),
        pytest.param({"flower": 3}, id="a number"),
        pytest.param({"enrolled": base64.b64encode(b"k" * 31).decode()}, id="short enrolled key"),
        pytest.param({"enrolled": base64.b64encode(b"k" * 33).decode()}, id="long enrolled key"),
        pytest.param({"enrolled": "not base64!"}, id="no base64"),
        pytest.param({"provenance": base64.b64encode(a_request(P384)).decode()}, id="provenance key on another curve"),
        pytest.param({"provenance": base64.b64encode(a_request(ED25519)).decode()}, id="provenance key of another kind"),
        pytest.param({"provenance": base64.b64encode(b"0" * 3000).decode()}, id="endless request"),
        pytest.param({"provenance": base64.b64encode(ADA.provenance[:-1] + b"x").decode()}, id="request signed by nobody"),
        pytest.param({"provenance": ""}, id="no request"),
        pytest.param({"role": "coordinator"}, id="a surplus field"),
    ],
)
def test_what_are_no_three_keys_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match="not a node's keys") as caught:
        PublicKeys.from_plain({**ADA.to_plain(), **changes})

    assert caught.value.advice


@pytest.mark.parametrize("plain", [None, [], "text", {}, {"flower": "k"}])
def test_what_is_no_object_of_three_is_refused(plain: object) -> None:
    with pytest.raises(IntegrityError):
        PublicKeys.from_plain(plain)


def test_a_request_whose_key_was_exchanged_is_refused() -> None:
    # A man in the middle puts his key in: the signature in the request is no longer by its key.
    mine = x509.load_der_x509_csr(ADA.provenance).public_key()
    his = x509.load_der_x509_csr(BERTHE.provenance).public_key()
    raw = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    exchanged = ADA.provenance.replace(mine.public_bytes(*raw), his.public_bytes(*raw))
    assert exchanged != ADA.provenance

    with pytest.raises(ValueError, match="not signed"):
        certificate_request(exchanged)


# --- That one holds what one shows ---------------------------------------------------------------------------------------


def test_proofs_come_back_as_they_were_sent_and_prove_their_own_keys() -> None:
    assert Proofs.from_plain(PROOFS.to_plain()) == PROOFS
    assert PROOFS.prove(ADA)
    assert PROOFS.prove(credentials.__wrapped__("Ada").keys)  # another request for the same key


@pytest.mark.parametrize(
    "keys",
    [BERTHE, *(replace(ADA, **{name: getattr(BERTHE, name)}) for name in ("flower", "enrolled", "provenance"))],
    ids=["all", "flower", "enrolled", "provenance"],
)
def test_proofs_prove_no_other_keys_nor_one_of_them_with_others(keys: PublicKeys) -> None:
    assert not PROOFS.prove(keys)


@pytest.mark.parametrize("name", ["flower", "provenance"])
@pytest.mark.parametrize("proof", [b"", b"nonsense", None])
def test_both_proofs_are_needed(name: str, proof: bytes | None) -> None:
    assert not replace(PROOFS, **{name: getattr(HERS, name) if proof is None else proof}).prove(ADA)
    assert not replace(PROOFS, flower=PROOFS.provenance, provenance=PROOFS.flower).prove(ADA)


@pytest.mark.parametrize("plain", [None, [], "text", {}, {"flower": "AAAA"}, {**PROOFS.to_plain(), "enrolled": "AAAA"}])
def test_what_are_no_two_proofs_is_refused(plain: object) -> None:
    with pytest.raises(ValueError, match="other fields"):
        Proofs.from_plain(plain)


@pytest.mark.parametrize("proof", [3, None, "not base64!", "\u00e4"])
def test_a_proof_is_base64(proof: object) -> None:
    with pytest.raises(ValueError, match=r"other fields|base64|ASCII"):
        Proofs.from_plain({**PROOFS.to_plain(), "flower": proof})


@pytest.mark.parametrize(("length", "is_read"), [(127, True), (128, True), (129, False)])
def test_a_proof_is_no_longer_than_a_signature_can_be(length: int, *, is_read: bool) -> None:
    plain = {**PROOFS.to_plain(), "flower": base64.b64encode(b"p" * length).decode()}

    if is_read:
        assert Proofs.from_plain(plain).flower == b"p" * length
    else:
        with pytest.raises(ValueError, match="too long"):
            Proofs.from_plain(plain)
