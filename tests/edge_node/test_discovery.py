"""Looking for the coordinator on the network: what is heard offers an address to try, and is believed in nothing."""

import ipaddress
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from coordinator import service
from coordinator.announce import announced
from coordinator.endpoint import create_endpoint
from edge_node import discovery, membership
from edge_node.config import Home
from edge_node.discovery import TEXT, Address, Location, Record, Service, Text, sift
from edge_node.errors import NoCoordinatorError, NotJoinedError, WrongCoordinatorError
from edge_node.membership import Membership
from export import settings
from export.errors import NotConfiguredError
from export.invite import SERVICE, Invite, InviteError
from export.processes import free_port
from export.signing import VerifiedRelease
from tests import simulators
from tests.simulators import CoordinatorHome, FakeCoordinator, Registry

NAME: Final = "0123456789abcdef"
OTHER: Final = "fedcba9876543210"
HOST: Final = f"{NAME}.local."


def said(name: str = NAME, port: int = 7443, address: str = "192.168.1.7", text: bytes = TEXT) -> list[Record]:
    """What an honest coordinator says."""
    instance, host = f"{name}.{SERVICE}", f"{name}.local."
    return [Service(instance, host, port), Text(instance, text), Location(host, ipaddress.ip_address(address).packed)]


def test_what_a_coordinator_says_is_an_address() -> None:
    assert sift(said()) == [Address("192.168.1.7", 7443)]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_without_one_of_its_three_records_there_is_none(missing: int) -> None:
    records = said()
    del records[missing]

    assert sift(records) == []


@pytest.mark.parametrize(
    "name",
    [NAME.upper(), NAME[:-1], NAME + "0", "studio", "0123456789abcde/", "../../etc/passw", "", "0123456789abcdeg", NAME + "\n"],
)
def test_a_name_that_no_coordinator_of_ours_makes_is_dropped(name: str) -> None:
    assert sift(said(name)) == []


def test_a_service_on_anothers_host_is_dropped() -> None:
    service_, text, place = said()
    assert isinstance(service_, Service)

    assert sift([replace(service_, host=f"{OTHER}.local."), text, place, *said(OTHER)]) == [Address("192.168.1.7", 7443)]
    assert sift([replace(service_, host=f"{OTHER}.local."), text, Location(f"{OTHER}.local.", b"\xc0\xa8\x01\x07")]) == []


@pytest.mark.parametrize(("port", "counts"), [(-1, False), (0, False), (1, True), (65535, True), (65536, False)])
def test_a_port_is_one(port: int, *, counts: bool) -> None:
    assert bool(sift(said(port=port))) == counts


@pytest.mark.parametrize("text", [b"", b"\x03v=2", b"\x03v=1\x00", b"v=1", TEXT * 2, TEXT + b"\x10url=http://evil/"])
def test_a_text_that_says_anything_else_is_dropped(text: bytes) -> None:
    assert sift(said(text=text)) == []


@pytest.mark.parametrize(
    ("address", "counts"),
    [
        ("9.255.255.255", False),
        ("10.0.0.0", True),
        ("10.255.255.255", True),
        ("11.0.0.0", False),
        ("172.15.255.255", False),
        ("172.16.0.0", True),
        ("172.31.255.255", True),
        ("172.32.0.0", False),
        ("192.167.255.255", False),
        ("192.168.0.1", True),
        ("192.169.0.0", False),
        ("169.254.1.1", True),
        ("169.254.169.254", False),
        ("8.8.8.8", False),
        ("0.0.0.1", False),
        ("255.255.255.255", False),
        ("224.0.0.251", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
    ],
)
def test_an_address_is_of_a_network_of_its_own(address: str, *, counts: bool) -> None:
    assert bool(sift(said(address=address))) == counts


def test_this_machines_own_address_counts_where_only_it_was_asked() -> None:
    assert sift(said(address="127.0.0.1"), at_home=True) == [Address("127.0.0.1", 7443)]


def test_no_more_than_eight_services_are_offered_those_first_that_were_heard_first() -> None:
    records = [record for number in range(20) for record in said(f"{number:016x}", address=f"10.0.0.{number}")]

    assert sift(records) == [Address(f"10.0.0.{number}", 7443) for number in range(8)]


def test_no_more_than_four_addresses_of_one_service_are_offered() -> None:
    more: list[Record] = [Location(HOST, bytes([10, 0, 0, number])) for number in range(20)]

    assert len(sift([*said(), *more])) == 4


def test_no_more_than_a_thousand_records_are_kept() -> None:
    flood: list[Record] = [Location(HOST, bytes([10, 0, number // 256, number % 256])) for number in range(1000)]
    sieve = discovery.Sieve()
    for record in [*flood, *said()]:
        sieve.take(record)

    assert sieve.dropped == 3
    assert sieve.offers() == []


def test_what_one_says_takes_no_other_away() -> None:
    assert sift([*said(OTHER, address="10.0.0.9"), *said()]) == [Address("10.0.0.9", 7443), Address("192.168.1.7", 7443)]


# --- Whom an address belongs to ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    del world
    return simulators.make_coordinator(tmp_path / "hub", port=7443)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return simulators.make_node(tmp_path / "node")


def bare(invite: str) -> str:
    return invite.partition("@")[0]


def test_a_liar_on_the_network_is_sent_no_secret_and_does_not_keep_the_coordinator_from_being_found(
    hub: CoordinatorHome, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The liar has a certificate of his own; and repeats the true one, which everybody may have, without its key."""
    liar = simulators.make_coordinator(tmp_path / "liar")
    theirs = FakeCoordinator({"/sfumato/v1/ca": (200, hub.ca_certificate.read_bytes())})
    own = FakeCoordinator({"/sfumato/v1/ca": (200, liar.ca_certificate.read_bytes())})
    with (
        simulators.serve(theirs, liar.server_certificate, liar.server_key) as first,
        simulators.serve(own, liar.server_certificate, liar.server_key) as second,
        simulators.serve_coordinator(hub, create_endpoint(hub, Registry())) as port,
    ):
        offered = [Address("127.0.0.1", number) for number in (first, second, port)]
        monkeypatch.setattr(discovery, "discover", lambda: offered)
        invite = Invite.parse(bare(service.invite(hub, "Ada", "artist", 3600.0)))

        joined = membership.join(home, membership.placed(home, invite))
        simulators.until(lambda: bool(theirs.received and own.received), "both to be asked")

    assert joined.port == port  # the control: the coordinator itself was sent the secret, or there were no membership
    assert {path for _, path, _ in theirs.received} == {"/sfumato/v1/ca"}
    assert {path for _, path, _ in own.received} == {"/sfumato/v1/ca"}
    assert invite.secret not in theirs.everything() + own.everything()
    assert invite.secret.hex().encode() not in theirs.everything() + own.everything()


@pytest.mark.slow
def test_one_who_announces_himself_for_the_coordinator_is_sent_no_secret(
    hub: CoordinatorHome, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same with real packets, on this machine's own interface."""
    look = discovery.discover
    monkeypatch.setattr(discovery, "discover", lambda: look(3.0, ["127.0.0.1"]))
    liar = simulators.make_coordinator(tmp_path / "liar")
    heard = FakeCoordinator({"/sfumato/v1/ca": (200, hub.ca_certificate.read_bytes())})
    with (
        simulators.serve(heard, liar.server_certificate, liar.server_key) as false,
        announced("127.0.0.1", false),
        simulators.serve_coordinator(hub, create_endpoint(hub, Registry())) as true,
        announced("127.0.0.1", true),
    ):
        invite = Invite.parse(bare(service.invite(hub, "Ada", "artist", 3600.0)))
        joined = membership.join(home, membership.placed(home, invite))
        simulators.until(lambda: bool(heard.received), "the liar to be asked")

    assert joined.port == true
    assert heard.received == [("GET", "/sfumato/v1/ca", b"")]


def test_if_nobody_proves_to_be_the_coordinator_the_advice_is_an_address(
    hub: CoordinatorHome, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "discover", lambda: [Address("127.0.0.1", free_port())])

    with pytest.raises(NoCoordinatorError, match=r"was not found on this network \(1 tried\)") as caught:
        membership.placed(home, Invite.parse(bare(service.invite(hub, "Ada", "artist", 3600.0))))

    assert "CODE@HOST:PORT" in caught.value.advice


def test_looking_can_be_switched_off(hub: CoordinatorHome, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> list[Address]:
        pytest.fail("it looked")

    monkeypatch.setattr(discovery, "discover", never)
    settings.save(home.config_file, replace(home.config(), discovery=False))

    with pytest.raises(NotConfiguredError, match="does not look for coordinators") as caught:
        membership.placed(home, Invite.parse(bare(service.invite(hub, "Ada", "artist", 3600.0))))
    assert "--at HOST:PORT" in caught.value.advice


def test_an_address_that_is_given_is_taken_and_nobody_is_looked_for(
    hub: CoordinatorHome, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "discover", lambda: pytest.fail("it looked"))
    text = service.invite(hub, "Ada", "artist", 3600.0)

    assert membership.placed(home, Invite.parse(text)).host == "127.0.0.1"
    given = membership.placed(home, Invite.parse(bare(text), "192.168.1.9:99"))
    assert (given.host, given.port) == ("192.168.1.9", 99)
    assert membership.placed(home, Invite.parse(text, "[fe80::1]:99")).host == "fe80::1"


@pytest.mark.parametrize("at", ["", "host", "host:", "host:0", "host:65536", "a b:1", "host:1/", "http://host:1"])
def test_an_address_that_is_none_is_refused(hub: CoordinatorHome, at: str) -> None:
    with pytest.raises(InviteError, match="names no address"):
        Invite.parse(service.invite(hub, "Ada", "artist", 3600.0), at)


@pytest.mark.parametrize("error", [OSError("no such device"), RuntimeError("no interfaces")])
def test_a_network_that_cannot_be_asked_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr(discovery, "_ask", fail)

    with pytest.raises(NoCoordinatorError, match="the network cannot be searched"):
        discovery.discover()


def test_a_machine_without_zeroconf_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)

    with pytest.raises(NotConfiguredError, match="zeroconf is not installed here") as caught:
        discovery.discover()

    assert "CODE@HOST:PORT" in caught.value.advice
    assert "pip install zeroconf" in caught.value.advice


# --- Moving --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def left(hub: CoordinatorHome, home: Home) -> Membership:
    """What a machine remembers of a coordinator that has gone from where it was."""
    with simulators.serve_coordinator(hub, create_endpoint(hub, Registry())):
        return membership.join(home, Invite.parse(service.invite(hub, "Ada", "artist", 3600.0)))


def test_a_member_follows_its_coordinator_to_another_address(hub: CoordinatorHome, home: Home, left: Membership) -> None:
    with simulators.serve_coordinator(hub, create_endpoint(hub, Registry())) as port:
        moved = membership.move(home, "127.0.0.1", port)

        assert moved == replace(left, port=port)
        assert membership.load(home) == moved
        assert membership.coordinator(home).newest().version == 1


def test_nobody_else_is_followed(home: Home, left: Membership, tmp_path: Path) -> None:
    liar = simulators.make_coordinator(tmp_path / "liar")

    with (
        simulators.serve_coordinator(liar, create_endpoint(liar, Registry())) as port,
        pytest.raises(WrongCoordinatorError, match="cannot prove to be the coordinator"),
    ):
        membership.move(home, "127.0.0.1", port)

    assert membership.load(home) == left


def test_to_where_nobody_answers_nobody_is_followed(home: Home, left: Membership) -> None:
    with pytest.raises(NoCoordinatorError, match="nobody answers at"):
        membership.move(home, "127.0.0.1", free_port())

    assert membership.load(home) == left


def test_who_joined_nobody_has_nobody_to_follow(home: Home) -> None:
    with pytest.raises(NotJoinedError):
        membership.move(home, "127.0.0.1", 9)
