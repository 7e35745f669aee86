"""The coordinator's certificates and keys: what they allow, how long, and who may read them."""

import ipaddress
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, VerificationError
from cryptography.x509.verification import Store as Authorities

from coordinator import pki
from coordinator.config import Home
from tests.simulators import credentials


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("hub"))
    pki.create(home, "gallery.example")
    return home


def chain_of(home: Home) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(home.server_certificate.read_bytes())


def test_the_server_is_signed_by_the_authority_and_brings_it_along(home: Home) -> None:
    server, authority = chain_of(home)

    server.verify_directly_issued_by(authority)
    assert authority.public_bytes(serialization.Encoding.DER) == pki.ca_der(home)
    authority.verify_directly_issued_by(authority)


def test_the_servers_key_is_the_certificates(home: Home) -> None:
    key = serialization.load_pem_private_key(home.server_key.read_bytes(), None)

    assert key.public_key() == chain_of(home)[0].public_key()


@pytest.mark.parametrize("name", ["gallery.example", "localhost"])
def test_the_server_is_known_by_its_names(home: Home, name: str) -> None:
    server, authority = chain_of(home)
    verifier = PolicyBuilder().store(Authorities([authority])).build_server_verifier(x509.DNSName(name))

    assert verifier.verify(server, [])


def test_the_server_is_known_by_loopback_addresses(home: Home) -> None:
    names = chain_of(home)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert set(names.get_values_for_type(x509.IPAddress)) >= {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}


def test_a_host_that_is_an_address_is_named_as_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    pki.create(home, "192.0.2.7")
    names = chain_of(home)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert ipaddress.ip_address("192.0.2.7") in names.get_values_for_type(x509.IPAddress)


def test_the_authoritys_name_is_no_longer_than_x509_has_room_for(home: Home) -> None:
    _, authority = chain_of(home)

    (name,) = authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "Sfumato federation"


def test_a_box_that_thinks_it_is_1970_takes_them(home: Home) -> None:
    for certificate in chain_of(home):
        assert certificate.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)
        assert certificate.not_valid_after_utc > datetime(2070, 1, 1, tzinfo=UTC)


def test_the_server_may_serve_and_not_sign(home: Home) -> None:
    server, authority = chain_of(home)
    constraints = [c.extensions.get_extension_for_class(x509.BasicConstraints).value for c in (server, authority)]
    usages = [c.extensions.get_extension_for_class(x509.KeyUsage).value for c in (server, authority)]

    assert [(c.ca, c.path_length) for c in constraints] == [(False, None), (True, 0)]
    assert [u.key_cert_sign for u in usages] == [False, True]
    extended = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_private_keys_are_for_this_user_only(home: Home) -> None:
    for file in (home.ca_key, home.server_key, home.release_key):
        assert b"PRIVATE KEY" in file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0


def test_the_release_key_is_ed25519_and_another_is_refused(home: Home) -> None:
    assert len(pki.release_key(home).public_key().public_bytes_raw()) == 32
    with pytest.raises(TypeError, match=r"server\.key is not an Ed25519 key"):
        pki.load_ed25519(home.server_key)


def test_two_coordinators_share_nothing(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path)
    pki.create(other, "gallery.example")

    assert pki.ca_der(other) != pki.ca_der(home)
    assert pki.release_key(other).public_key() != pki.release_key(home).public_key()
    assert chain_of(other)[0].serial_number != chain_of(home)[0].serial_number


NOW_S = 1_800_000_000.0


def certified(home: Home, alias: str = "Ada", federation: str = "guild") -> list[x509.Certificate]:
    request = credentials("Ada").keys.provenance
    return x509.load_pem_x509_certificates(pki.provenance_certificate(home, request, alias, federation, NOW_S))


def test_a_provenance_certificate_is_for_the_nodes_key_and_under_the_authority(home: Home) -> None:
    leaf, authority = certified(home)

    leaf.verify_directly_issued_by(authority)
    assert authority.public_bytes(serialization.Encoding.DER) == pki.ca_der(home)
    assert leaf.public_key() == x509.load_der_x509_csr(credentials("Ada").keys.provenance).public_key()


def test_a_provenance_certificate_has_what_c2pa_asks_for_and_may_do_nothing_else(home: Home) -> None:
    leaf, authority = certified(home)
    found = leaf.extensions

    usage = found.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not any((usage.value.key_cert_sign, usage.value.crl_sign, usage.value.key_agreement, usage.value.key_encipherment))
    assert not found.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(found.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.EMAIL_PROTECTION]
    issuer = found.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert issuer == authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def test_a_provenance_certificate_starts_in_1970_and_ends_400_days_from_now(home: Home) -> None:
    leaf, _ = certified(home)

    assert leaf.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)
    assert leaf.not_valid_after_utc.timestamp() == NOW_S + 400 * 86400


def test_a_provenance_certificate_names_whom_the_coordinator_says(home: Home) -> None:
    leaf, _ = certified(home, alias="Ada" * 30, federation="g" * 90)

    (name,) = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    (organisation,) = leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert (name.value, organisation.value) == (("Ada" * 30)[:64], "g" * 64)


def test_a_node_that_was_certified_cannot_serve_as_the_coordinator(home: Home) -> None:
    leaf, authority = certified(home, alias="localhost")
    verifier = PolicyBuilder().store(Authorities([authority])).build_server_verifier(x509.DNSName("localhost"))

    with pytest.raises(VerificationError):
        verifier.verify(leaf, [])


@pytest.fixture
def moving(tmp_path: Path) -> Home:
    moving = Home(tmp_path)
    pki.create(moving, "gallery.example")
    return moving


def named(home: Home) -> set[str]:
    names = chain_of(home)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def test_a_coordinator_that_moved_has_its_certificate_made_anew_under_the_same_authority(moving: Home) -> None:
    kept = [moving.ca_certificate, moving.ca_key, moving.server_key, moving.release_key]
    before = [file.read_bytes() for file in kept]

    assert pki.require_host(moving, "192.168.1.9")

    server, ca = chain_of(moving)
    server.verify_directly_issued_by(ca)
    assert "192.168.1.9" in named(moving)
    assert "gallery.example" not in named(moving)
    assert [file.read_bytes() for file in kept] == before


@pytest.mark.parametrize("host", ["gallery.example", "127.0.0.1", "192.168.1.9", "2001:DB8::7", "::1"])
def test_a_coordinator_that_stayed_keeps_its_certificate(moving: Home, host: str) -> None:
    pki.require_host(moving, host)
    before = moving.server_certificate.read_bytes()

    assert not pki.require_host(moving, host)
    assert moving.server_certificate.read_bytes() == before


def test_a_machine_that_was_renamed_has_its_certificate_made_anew(moving: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "atelier")

    assert pki.require_host(moving, "gallery.example")
    assert {"atelier", "gallery.example", "localhost"} <= named(moving)


@pytest.mark.parametrize("name", ["server_key", "ca_key"])
def test_a_certificate_is_made_with_no_other_kind_of_key(moving: Home, name: str) -> None:
    file: Path = getattr(moving, name)
    file.write_bytes(moving.release_key.read_bytes())

    with pytest.raises(TypeError, match="is not an EC key"):
        pki.require_host(moving, "192.168.1.9")
    assert "gallery.example" in named(moving)
