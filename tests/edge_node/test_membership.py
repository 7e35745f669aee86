"""Joining, against the coordinator's real endpoint over TLS: once per invite, and never half."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator import service
from coordinator.endpoint import create_endpoint
from coordinator.store import Store
from edge_node import membership
from edge_node.config import Home
from edge_node.errors import JoinRefusedError, NoCoordinatorError, NotJoinedError, WrongCoordinatorError
from edge_node.membership import Membership
from export import settings
from export.errors import IntegrityError, RefusedError
from export.files import digest_of
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
    assert membership.coordinator(home).newest()[0] == 1


def test_joining_is_a_line_in_the_ledger_with_what_was_sent(hub: CoordinatorHome, home: Home) -> None:
    membership.join(home, Invite.parse(invited(hub)))

    (entry,) = Ledger(home.ledger_file).entries()
    assert (entry["what"], entry["federation"], entry["alias"], entry["role"]) == ("joined", "guild", "Ada", "artist")
    (node,) = Store(hub.database).nodes()
    assert entry["sha256"] == digest_of(node.public_key.encode())
    assert entry["bytes"] == len(node.public_key)


@pytest.mark.parametrize(("host", "address"), [("10.0.0.7", "10.0.0.7:9"), ("a.example", "a.example:9"), ("::1", "[::1]:9")])
def test_the_coordinators_address_is_one_piece(host: str, address: str) -> None:
    assert Membership("guild", "Ada", "artist", "1", host, 9).address == address


def test_the_coordinator_knows_the_member_by_its_public_key_alone(hub: CoordinatorHome, home: Home) -> None:
    joined = membership.join(home, Invite.parse(invited(hub)))

    (node,) = Store(hub.database).nodes()
    assert (str(node.node_id), node.alias, node.role) == (joined.node_id, "Ada", "artist")
    assert node.public_key.startswith("ecdsa-sha2-nistp384 ")
    private = home.flower_key.read_bytes()
    assert home.flower_key.stat().st_mode & 0o077 == 0
    assert not any(private[100:164] in path.read_bytes() for path in hub.root.rglob("*") if path.is_file())


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
        {"/sfumato/v1/ca": (200, hub.ca_certificate.read_bytes()), "/sfumato/v1/join": (200, answer)}
    )
    with simulators.serve(fake, hub.server_certificate, hub.server_key) as port, pytest.raises(IntegrityError):
        membership.join(home, replace(Invite.parse(invited(hub)), port=port))

    assert not home.membership_file.exists()
    assert not home.trust_file.exists()


@pytest.mark.parametrize("alias", ["a\nb", "\x1b[2J", "a" * 101])
def test_a_name_nobody_can_read_makes_no_member(hub: CoordinatorHome, home: Home, alias: str) -> None:
    trust = json.loads(hub.trust_file.read_bytes())
    answer = {"trust": trust, "alias": alias, "role": "artist", "node_id": "1", "modality": "style-studio"}
    fake = simulators.FakeCoordinator(
        {
            "/sfumato/v1/ca": (200, hub.ca_certificate.read_bytes()),
            "/sfumato/v1/join": (200, json.dumps(answer).encode()),
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
