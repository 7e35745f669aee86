"""The coordinator's own certificate authority, its server certificate and its release key.

Certificates start in 1970, since an artist's box without a battery may think it is then; what bounds them is that the
invite pins the authority and that a node trusts no other.
"""

from __future__ import annotations

import ipaddress
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.config import Home
from export.files import read_bounded, write_atomic
from export.identity import PublicKeys, certificate_request, check_digits

_START = datetime(1970, 1, 1, tzinfo=UTC)
_CA_LIFE, _SERVER_LIFE = timedelta(days=365 * 120), timedelta(days=365 * 110)
_PROVENANCE_LIFE = timedelta(days=400)
"""Renewed at every contact in its second half, so that a box that sleeps for a season still signs."""
_NAME_MAX_CHARACTERS = 64  # X.509's upper bound for both kinds of name we use
_KEY_MAX_BYTES = 16 * 2**10


def create(home: Home, host: str) -> None:
    """Make authority, server certificate and release key; private keys are readable by this user only."""
    ca_key = ec.generate_private_key(ec.SECP384R1())
    ca = _ca_certificate(ca_key)
    server_key = ec.generate_private_key(ec.SECP384R1())
    server = _server_certificate(server_key, ca_key, ca, host)
    write_atomic(home.ca_key, _pem(ca_key), mode=0o600)
    write_atomic(home.ca_certificate, ca.public_bytes(serialization.Encoding.PEM))
    write_atomic(home.server_key, _pem(server_key), mode=0o600)
    _write_chain(home, server, ca)
    write_atomic(home.release_key, _pem(Ed25519PrivateKey.generate()), mode=0o600)


def require_host(home: Home, host: str) -> bool:
    """Have the server certificate be for every name a node may dial; whether it was made anew for that.

    A machine gets another name or address now and then. Members trust the authority, so that nothing changes for them but the
    address.

    Args:
        home: the coordinator's folder.
        host: the name or address that invites give.
    """
    chain = x509.load_pem_x509_certificates(read_bounded(home.server_certificate, 2 * _KEY_MAX_BYTES))
    named = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if set(_names(host)) <= set(named):
        return False
    ca = x509.load_pem_x509_certificate(read_bounded(home.ca_certificate, _KEY_MAX_BYTES))
    _write_chain(home, _server_certificate(_ec_key(home.server_key), _ec_key(home.ca_key), ca, host), ca)
    return True


def provenance_certificate(home: Home, request: bytes, alias: str, federation: str, now_s: float) -> bytes:
    """Certify a node's provenance key: PEM, the authority's certificate after it.

    As C2PA wants a signer's certificate: not an authority, for signatures only, with its issuer's identifier and the purpose of
    protecting e-mail, the one every validator knows. The names are ours; nothing is taken over from the request but its key.

    Args:
        home: the coordinator's folder.
        request: PKCS #10, DER, checked already (``export.identity.certificate_request``).
        alias: the member's name.
        federation: its name.
        now_s: seconds since 1970.
    """
    ca = x509.load_pem_x509_certificate(read_bounded(home.ca_certificate, _KEY_MAX_BYTES))
    ca_key, key = _ec_key(home.ca_key), certificate_request(request).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("the node's provenance key is an EC key")
    subject = x509.Name([_name(NameOID.ORGANIZATION_NAME, federation), _name(NameOID.COMMON_NAME, alias)])
    life = timedelta(seconds=now_s) + _PROVENANCE_LIFE
    certificate = (
        _certificate(subject, ca.subject, key, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + ca.public_bytes(serialization.Encoding.PEM)


def ca_der(home: Home) -> bytes:
    """The authority's certificate as DER: what an invite holds the fingerprint of."""
    certificate = x509.load_pem_x509_certificate(read_bounded(home.ca_certificate, _KEY_MAX_BYTES))
    return certificate.public_bytes(serialization.Encoding.DER)


def digits(home: Home, keys: PublicKeys) -> str:
    """The six digits of a joining, as the node showed them."""
    return check_digits(ca_der(home), keys)


def release_key(home: Home) -> Ed25519PrivateKey:
    """The key releases are signed with."""
    return load_ed25519(home.release_key)


def load_ed25519(path: Path) -> Ed25519PrivateKey:
    """A private Ed25519 key from a PEM file."""
    key = serialization.load_pem_private_key(read_bounded(path, _KEY_MAX_BYTES), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError(f"{path.name} is not an Ed25519 key")
    return key


def _ec_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(read_bounded(path, _KEY_MAX_BYTES), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path.name} is not an EC key")
    return key


def _write_chain(home: Home, server: x509.Certificate, ca: x509.Certificate) -> None:
    chain = server.public_bytes(serialization.Encoding.PEM) + ca.public_bytes(serialization.Encoding.PEM)
    write_atomic(home.server_certificate, chain)


def _ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # Not the federation's name, which may be longer than the 64 bytes X.509 has room for.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sfumato federation")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _certificate(subject, subject, key.public_key(), _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey, ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, host: str
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfumato-coordinator")])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _certificate(subject, ca.subject, key.public_key(), _SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(ca_key, hashes.SHA384())
    )


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_START)
        .not_valid_after(_START + life)
    )


def _name(kind: x509.ObjectIdentifier, text: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(kind, text[:_NAME_MAX_CHARACTERS])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _names(host: str) -> list[x509.GeneralName]:
    """Every name a node may dial: the configured one, this machine's, and loopback."""
    names = dict.fromkeys([host, socket.gethostname(), "localhost", "127.0.0.1", "::1"])
    return [_general_name(name) for name in names]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
