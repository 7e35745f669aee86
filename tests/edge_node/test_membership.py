"""Joining, against the coordinator's real endpoint over TLS: once per invite, and never half."""

import json
import re
import sqlite3
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from coordinator import pki, service
from coordinator.endpoint import create_endpoint
from coordinator.store import Store
from edge_node import clock, keys, membership, updater
from edge_node.config import Home
from edge_node.errors import (
    JoinRefusedError,
    MembershipEndedError,
    NoCoordinatorError,
    NotAMemberError,
    NotJoinedError,
    WrongCoordinatorError,
)
from edge_node.membership import Membership
from export import settings
from export.errors import IntegrityError, RefusedError
from export.files import digest_of
from export.identity import check_digits
from export.invite import Invite, InviteError
from export.ledger import Ledger
from export.processes import free_port
from export.signing import Trust, VerifiedRelease
from tests import simulators
from tests.simulators import CoordinatorHome, Registry


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> Iterator[CoordinatorHome]:
    del world
    home = simulators.make_coordinator(tmp_path / "hub")
    with simulators.serve_coordinator(home, create_endpoint(home, Registry())):
        yield home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return simulators.make_node(tmp_path / "node")


def invited(hub: CoordinatorHome, alias: str = "Ada", lasts_s: float = 3600.0) -> str:
    return service.invite(hub, alias, "artist", lasts_s)


def test_a_member_remembers_whom_it_joined_and_whom_to_trust(hub: CoordinatorHome, home: Home) -> None:
    joined = membership.join(home, Invite.parse(invited(hub)))

    assert membership.load(home) == joined
    assert (joined.federation, joined.alias, joined.role) == ("guild", "Ada", "artist")
    assert (joined.host, joined.port) == ("127.0.0.1", hub.config().port)
    assert home.ca_certificate.read_bytes() == hub.ca_certificate.read_bytes()
    assert Trust.load(home.trust_file).keys == Trust.load(hub.trust_file).keys
    assert membership.coordinator(home).newest().version == 1


def test_joining_is_a_line_in_the_ledger_with_what_was_sent(hub: CoordinatorHome, home: Home) -> None:
    membership.join(home, Invite.parse(invited(hub)))

    (entry,) = Ledger(home.ledger_file).entries()
    assert (entry["what"], entry["federation"], entry["alias"], entry["role"]) == ("joined", "guild", "Ada", "artist")
    (node,) = Store(hub.database).nodes()
    sent = json.dumps(node.keys.to_plain()).encode()
    assert (entry["sha256"], entry["bytes"]) == (digest_of(sent), len(sent))
    assert entry["digits"] == pki.digits(hub, node.keys)


@pytest.mark.parametrize(("host", "address"), [("10.0.0.7", "10.0.0.7:9"), ("a.example", "a.example:9"), ("::1", "[::1]:9")])
def test_the_coordinators_address_is_one_piece(host: str, address: str) -> None:
    assert Membership("guild", "Ada", "artist", "1", host, 9, "012 345").address == address


def test_the_coordinator_knows_the_member_by_its_public_key_alone(hub: CoordinatorHome, home: Home) -> None:
    joined = membership.join(home, Invite.parse(invited(hub)))

    (node,) = Store(hub.database).nodes()
    assert (str(node.node_id), node.alias, node.role) == (joined.node_id, "Ada", "artist")
    assert node.keys.digest == keys.public_keys(home).digest
    for file in (home.flower_key, home.enrolled_key, home.provenance_key):
        assert file.stat().st_mode & 0o077 == 0
        secret = file.read_bytes().splitlines()[1]
        assert len(secret) >= 60
        assert not any(secret in path.read_bytes() for path in hub.root.rglob("*") if path.is_file())


def test_both_sides_show_the_same_six_digits(hub: CoordinatorHome, home: Home) -> None:
    joined = membership.join(home, Invite.parse(invited(hub)))

    (node,) = Store(hub.database).nodes()
    assert joined.digits == pki.digits(hub, node.keys)
    assert re.fullmatch(r"\d{3} \d{3}", joined.digits)


def test_a_thief_of_the_invite_shows_other_digits(hub: CoordinatorHome, home: Home, tmp_path: Path) -> None:
    # The one who was invited looks at digits of his own keys; the coordinator, at those of whoever joined.
    thief = simulators.make_node(tmp_path / "thief")
    membership.join(thief, Invite.parse(invited(hub)))

    (node,) = Store(hub.database).nodes()
    ca = ssl.PEM_cert_to_DER_cert(hub.ca_certificate.read_text())
    assert check_digits(ca, keys.public_keys(home)) != pki.digits(hub, node.keys)


def test_a_member_holds_a_certificate_for_its_pictures(hub: CoordinatorHome, home: Home) -> None:
    membership.join(home, Invite.parse(invited(hub)))

    leaf, ca = x509.load_pem_x509_certificates(home.provenance_certificate.read_bytes())
    leaf.verify_directly_issued_by(ca)
    assert ca.public_bytes(serialization.Encoding.PEM) == hub.ca_certificate.read_bytes()


def test_a_certificate_is_renewed_in_its_second_half(hub: CoordinatorHome, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    membership.join(home, Invite.parse(invited(hub)))
    before = home.provenance_certificate.read_bytes()
    asked = membership.coordinator(home)

    assert not membership.renew_certificate(home, asked)
    assert home.provenance_certificate.read_bytes() == before
    monkeypatch.setattr(clock, "expiry_s", lambda _home: time.time() + 201 * 86400)
    assert membership.renew_certificate(home, asked)
    assert home.provenance_certificate.read_bytes() != before
    home.provenance_certificate.unlink()
    assert membership.renew_certificate(home, asked)


@pytest.mark.parametrize("given", ["", "no certificate", "another authority's", "another key's"])
def test_a_certificate_that_is_not_for_this_machine_makes_no_member(
    hub: CoordinatorHome, home: Home, tmp_path: Path, given: str
) -> None:
    other = simulators.make_coordinator(tmp_path / "other", port=1)
    mine = keys.public_keys(home).provenance
    pems = {
        "another authority's": lambda: pki.provenance_certificate(other, mine, "Ada", "guild", 0.0),
        "another key's": lambda: pki.provenance_certificate(
            hub, simulators.credentials("Berthe").keys.provenance, "Ada", "guild", 0.0
        ),
    }
    pem = pems[given]().decode() if given in pems else given

    with pytest.raises(IntegrityError, match="gave no certificate"):
        membership._certificate(pem, hub.ca_certificate.read_text(), keys.public_keys(home))


# --- After a restore ----------------------------------------------------------------------------------------------------


def forget_members(hub: CoordinatorHome) -> None:
    """As a coordinator does that is restored from a backup older than its members."""
    with sqlite3.connect(hub.database) as database:
        database.execute("DELETE FROM nodes")
    database.close()


def test_a_node_rejoins_after_a_restore_without_a_new_invite(hub: CoordinatorHome, home: Home) -> None:
    first = membership.join(home, Invite.parse(invited(hub)))
    Trust.load(home.trust_file).having_seen(7).save(home.trust_file)
    forget_members(hub)
    with pytest.raises(NotAMemberError):
        membership.coordinator(home).newest()

    updater.update(home)

    assert membership.coordinator(home).newest().version == 1
    assert membership.load(home) == replace(first, node_id=membership.load(home).node_id)
    assert Trust.load(home.trust_file).highest_version == 7
    assert [entry["what"] for entry in Ledger(home.ledger_file).entries()] == ["joined", "rejoined"]


def test_a_node_that_lost_the_coordinators_word_is_told_to_ask_for_an_invite(hub: CoordinatorHome, home: Home) -> None:
    membership.join(home, Invite.parse(invited(hub)))
    forget_members(hub)
    home.enrolment_file.unlink()

    with pytest.raises(NotAMemberError, match="is gone") as caught:
        updater.update(home)

    assert "new invite" in caught.value.advice


def test_a_coordinator_that_comes_back_with_other_keys_is_not_believed(hub: CoordinatorHome, home: Home) -> None:
    membership.join(home, Invite.parse(invited(hub)))
    Trust("guild", (b"k" * 32,)).save(home.trust_file)

    with pytest.raises(IntegrityError, match="with other keys than it had"):
        membership.rejoin(home)


def test_who_was_put_out_does_not_come_back(hub: CoordinatorHome, home: Home) -> None:
    membership.join(home, Invite.parse(invited(hub)))
    service.end_membership(hub, "Ada")

    for ask in (updater.update, membership.rejoin):
        with pytest.raises((MembershipEndedError, JoinRefusedError), match="was ended"):
            ask(home)


def test_an_invite_is_good_once(hub: CoordinatorHome, home: Home, tmp_path: Path) -> None:
    invite = Invite.parse(invited(hub))
    membership.join(home, invite)
    second = simulators.make_node(tmp_path / "second")

    with pytest.raises(JoinRefusedError, match="used already") as caught:
        membership.join(second, invite)

    assert caught.value.advice
    assert not second.membership_file.exists()
    assert not second.trust_file.exists()


def test_an_expired_invite_is_refused(hub: CoordinatorHome, home: Home) -> None:
    with pytest.raises(JoinRefusedError, match="expired"):
        membership.join(home, Invite.parse(invited(hub, lasts_s=-1.0)))

    assert Store(hub.database).nodes() == []


def test_an_invite_the_coordinator_never_made_is_refused(hub: CoordinatorHome, home: Home) -> None:
    invite = Invite.parse(invited(hub))

    with pytest.raises(JoinRefusedError, match="does not know that invite"):
        membership.join(home, replace(invite, secret=b"0123456789"))

    membership.join(home, invite)  # and guessing spoilt nothing


def test_a_mistyped_invite_is_noticed_before_anything_is_sent(home: Home) -> None:
    text = str(Invite(b"f" * 16, b"s" * 10, "127.0.0.1", free_port()))
    swapped = ("B" if text[6] != "B" else "C").join((text[:6], text[7:]))

    with pytest.raises(InviteError, match="typing error"):
        membership.join(home, Invite.parse(swapped))


def test_an_impostor_is_not_told_the_secret(hub: CoordinatorHome, home: Home, tmp_path: Path) -> None:
    other = simulators.make_coordinator(tmp_path / "other")
    fake = simulators.FakeCoordinator({"/sfumato/v1/ca": (200, other.ca_certificate.read_bytes())})
    with simulators.serve(fake, other.server_certificate, other.server_key) as port:
        invite = replace(Invite.parse(invited(hub)), port=port)
        with pytest.raises(WrongCoordinatorError):
            membership.join(home, invite)

    assert [(method, path, body) for method, path, body in fake.received] == [("GET", "/sfumato/v1/ca", b"")]
    assert not home.membership_file.exists()


def test_a_coordinator_that_is_not_there_is_told(home: Home) -> None:
    with pytest.raises(NoCoordinatorError):
        membership.join(home, Invite(b"f" * 16, b"s" * 10, "127.0.0.1", free_port()))

    assert not home.membership_file.exists()


def test_a_member_joins_nobody_else(hub: CoordinatorHome, home: Home) -> None:
    membership.join(home, Invite.parse(invited(hub)))

    with pytest.raises(RefusedError, match="a member of 'guild' already") as caught:
        membership.join(home, Invite.parse(invited(hub, "Berthe")))

    assert "--home" in caught.value.advice
    assert len(Store(hub.database).nodes()) == 1


def test_a_name_that_is_taken_is_refused_and_the_invite_is_good_for_nothing_less(
    hub: CoordinatorHome, home: Home, tmp_path: Path
) -> None:
    first, invite = (Invite.parse(invited(hub, "Ada")) for _ in range(2))
    membership.join(home, first)
    second = simulators.make_node(tmp_path / "second")

    for _ in range(2):  # the refusal gave the invite back, so the second try is refused for the same reason
        with pytest.raises(JoinRefusedError, match="there is a member called 'Ada'"):
            membership.join(second, invite)


def test_a_federation_of_another_kind_of_art_is_not_joined(hub: CoordinatorHome, home: Home) -> None:
    settings.save(home.config_file, replace(home.config(), modality="style-kiosk"))

    with pytest.raises(RefusedError, match="works on style-studio, this machine on style-kiosk"):
        membership.join(home, Invite.parse(invited(hub)))

    assert not home.trust_file.exists()


@pytest.mark.parametrize(
    "answer", [b"{}", b"[]", b'{"trust": {}}', b'{"trust": {"federation": "guild", "keys": [], "threshold": 0}}', b"nonsense"]
)
def test_a_nonsense_answer_makes_no_member(hub: CoordinatorHome, home: Home, answer: bytes) -> None:
    fake = simulators.FakeCoordinator(
        {
            "/sfumato/v1/ca": (200, hub.ca_certificate.read_bytes()),
            "/sfumato/v1/join": (200, answer),
            "/sfumato/v1/time": (200, b'{"time": 1e9}'),
        }
    )
    with simulators.serve(fake, hub.server_certificate, hub.server_key) as port, pytest.raises(IntegrityError):
        membership.join(home, replace(Invite.parse(invited(hub)), port=port))

    assert not home.membership_file.exists()
    assert not home.trust_file.exists()


@pytest.mark.parametrize("alias", ["a\nb", "\x1b[2J", "a" * 101])
def test_a_name_nobody_can_read_makes_no_member(hub: CoordinatorHome, home: Home, alias: str) -> None:
    trust = json.loads(hub.trust_file.read_bytes())
    answer = {"trust": trust, "alias": alias, "role": "artist", "node_id": "1", "modality": "style-studio", "enrolment": {}}
    fake = simulators.FakeCoordinator(
        {
            "/sfumato/v1/ca": (200, hub.ca_certificate.read_bytes()),
            "/sfumato/v1/join": (200, json.dumps(answer).encode()),
            "/sfumato/v1/time": (200, b'{"time": 1e9}'),
        }
    )
    with (
        simulators.serve(fake, hub.server_certificate, hub.server_key) as port,
        pytest.raises(IntegrityError, match="no usable alias"),
    ):
        membership.join(home, replace(Invite.parse(invited(hub)), port=port))

    assert not home.membership_file.exists()


def test_a_machine_that_joined_nobody_says_how_to(home: Home) -> None:
    with pytest.raises(NotJoinedError, match="joined no federation") as caught:
        membership.load(home)

    assert "sfumato join" in caught.value.advice


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"federation": "guild", "surprise": 1})])
def test_a_damaged_membership_is_told(home: Home, text: str) -> None:
    home.membership_file.parent.mkdir()
    home.membership_file.write_text(text)

    with pytest.raises(IntegrityError, match="membership file cannot be read"):
        membership.load(home)
