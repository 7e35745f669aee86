"""Setting a coordinator up, inviting, following rounds, and what is said while nothing runs."""

import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import pytest

from coordinator import pki, publish, service
from coordinator.config import Home
from coordinator.errors import GateRefusedError, NotRunningError
from coordinator.flower import FlowerNode, FlowerUnavailable, RunState
from coordinator.store import Round, Store
from export.errors import RefusedError, SfumatoError, UsageError
from export.files import held
from export.invite import Invite
from export.ledger import Ledger
from export.signing import Trust, VerifiedRelease
from tests import simulators
from tests.simulators import Clock, CoordinatorHome


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    del world
    return simulators.make_coordinator(tmp_path / "hub", port=4433)


def test_a_new_coordinator_has_keys_settings_and_release_1(hub: CoordinatorHome) -> None:
    assert hub.root.stat().st_mode & 0o077 == 0
    assert hub.config().name == "guild"
    assert Trust.load(hub.trust_file).federation == "guild"
    assert service.served_version(hub) == publish.current_release(hub).manifest.version == 1
    assert Store(hub.database).nodes() == []


@pytest.mark.usefixtures("world")
def test_a_coordinator_is_not_set_up_twice(hub: CoordinatorHome) -> None:
    authority = hub.ca_certificate.read_bytes()

    with pytest.raises(UsageError, match="there is a coordinator in") as caught:
        service.init(hub, "guild", "127.0.0.1", 0)

    assert "--home" in caught.value.advice
    assert hub.ca_certificate.read_bytes() == authority


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("name", "is_taken"),
    [("g", True), ("x" * 60, True), ("x" * 61, False), ("", False), (" ", False), ("a\nb", False)],
)
def test_a_federations_name_is_1_to_60_printable_characters(tmp_path: Path, name: str, *, is_taken: bool) -> None:
    home = Home(tmp_path / "hub")

    if is_taken:
        service.init(home, name, "127.0.0.1", 0)
        assert publish.current_release(home).manifest.federation == name
    else:
        with pytest.raises(UsageError, match="cannot be a federation's name"):
            service.init(home, name, "127.0.0.1", 0)
        assert not home.root.exists()


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    "host", ["", "a_b", "a b", "a:4433", "a.example:4433", "[::1]", "fe80::1%eth0", "Dürer", "a\n", "x" * 254]
)
def test_a_host_that_cannot_stand_in_an_invite_is_refused_before_anything_is_made(tmp_path: Path, host: str) -> None:
    home = Home(tmp_path / "hub")

    with pytest.raises(UsageError, match="cannot be this machine's name or address") as caught:
        service.init(home, "guild", host, 0)

    assert "--port" in caught.value.advice
    assert not home.root.exists()


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("host", ["studio.example", "192.0.2.7", "2001:db8::7"])
def test_a_host_that_can_stand_in_an_invite_does(tmp_path: Path, host: str) -> None:
    home = Home(tmp_path / "hub")
    service.init(home, "g\u00fc" * 30, host, 4433)  # 90 bytes: the authority's certificate has room for 64

    assert Invite.parse(service.invite(home, "Ada", "artist", 60.0)).host == host


def test_a_coordinator_does_not_run_twice(hub: CoordinatorHome) -> None:
    with held(hub.up_lock, "this coordinator"), pytest.raises(RefusedError, match="this coordinator is running already"):
        service.run(hub, lambda _port: None)


def test_a_round_that_was_under_way_when_the_power_failed_is_closed_when_it_runs_again(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(hub.database)
    store.open_round(0.0)

    def break_off(*_arguments: object) -> None:
        raise NotRunningError("not here", advice="Nothing.")

    monkeypatch.setattr(service, "_start", break_off)
    with pytest.raises(NotRunningError):
        service.run(hub, lambda _port: None)

    assert [(r.state, r.detail) for r in store.rounds()] == [("failed", "interrupted")]


def test_the_child_is_our_own_program_whatever_lies_in_the_working_folder(tmp_path: Path) -> None:
    for package in ("models", "export", "coordinator"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('a stranger')")

    ran = subprocess.run(
        service.serve_command(Home(tmp_path / "nowhere")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (ran.returncode, ran.stderr.split(" in ")[0]) == (3, "there is no coordinator")


def test_an_invite_names_the_authority_the_address_and_a_secret_that_is_kept(hub: CoordinatorHome) -> None:
    invite = Invite.parse(service.invite(hub, "Ada", "gallery", 60.0))

    assert invite.matches(pki.ca_der(hub))
    assert (invite.host, invite.port) == ("127.0.0.1", 4433)
    assert Store(hub.database).invited(invite.secret, simulators.credentials("Ada").keys, 0.0) == ("Ada", "gallery")


def test_two_invites_are_never_the_same(hub: CoordinatorHome) -> None:
    assert len({service.invite(hub, "Ada", "artist", 60.0) for _ in range(20)}) == 20


@pytest.mark.parametrize("alias", ["", "  ", "x" * 41, "a\tb", "a\x1b[31m"])
def test_an_invite_for_nobody_is_refused(hub: CoordinatorHome, alias: str) -> None:
    with pytest.raises(UsageError, match="cannot be a member's name"):
        service.invite(hub, alias, "artist", 60.0)


def test_an_invite_under_a_members_name_is_refused(hub: CoordinatorHome) -> None:
    simulators.enrol(hub, 1)

    with pytest.raises(UsageError, match="there is a member called 'artist-1' already") as caught:
        service.invite(hub, "artist-1", "artist", 60.0)

    assert "another name" in caught.value.advice


def test_an_invite_without_a_known_port_needs_a_running_coordinator(tmp_path: Path, world: VerifiedRelease) -> None:
    del world
    home = simulators.make_coordinator(tmp_path / "hub", port=0)

    with pytest.raises(NotRunningError, match="is not running") as caught:
        service.invite(home, "Ada", "artist", 60.0)

    assert caught.value.advice == "Start it with: sfumato-coordinator up"


def test_while_it_does_not_run_nobody_is_online_and_no_round_is_held(hub: CoordinatorHome) -> None:
    assert not service.is_running(hub)
    assert service.online(hub) == frozenset()
    with pytest.raises(NotRunningError):
        service.hold_rounds(hub, 1, lambda _text: None)


def test_an_unused_invite_can_be_taken_back_and_then_there_is_none(hub: CoordinatorHome) -> None:
    service.invite(hub, "Ada", "artist", 60.0)
    service.invite(hub, "Ada", "artist", 60.0)

    assert service.take_invites_back(hub, "Ada") == 2
    with pytest.raises(UsageError, match="no unused invite for 'Ada'") as caught:
        service.take_invites_back(hub, "Ada")
    assert "nodes revoke" in caught.value.advice


@dataclass(slots=True)
class Members:
    """What Flower knows of members, in memory."""

    known: dict[int, Literal["registered", "online", "offline", "unregistered"]] = field(default_factory=dict)
    heard: list[object] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to close."""

    def nodes(self) -> tuple[FlowerNode, ...]:
        return tuple(FlowerNode(node_id, b"", status) for node_id, status in self.known.items())

    def register_node(self, key: bytes) -> int:
        self.heard.append(key)
        return 900 + len(self.heard)

    def unregister_node(self, node_id: int) -> None:
        self.heard.append(node_id)


@pytest.mark.parametrize("name", ["artist-1", "1"])
@pytest.mark.parametrize("is_running", [True, False])
def test_a_membership_is_ended_by_name_or_number_here_at_once_and_in_flower_if_it_runs(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, name: str, *, is_running: bool
) -> None:
    simulators.enrol(hub, 1, 2)
    members = Members()
    monkeypatch.setattr(service, "_control", lambda _home: members)
    monkeypatch.setattr(service, "is_running", lambda _home: is_running)

    assert service.end_membership(hub, name).node_id == 1

    assert [node.node_id for node in Store(hub.database).nodes()] == [2]
    assert Ledger(hub.ledger_file).entries()[-1]["what"] == "revoked"
    assert members.heard == ([1] if is_running else [])
    with pytest.raises(UsageError, match="there is no member called"):
        service.end_membership(hub, name)


def test_flower_is_told_who_is_a_member_when_it_starts(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(hub.database)
    simulators.enrol(hub, 1, 2, 3, 4)
    simulators.add_member(store, 5, "the gallery", "gallery")
    for gone in (3, 4):
        store.revoke(gone, 1.0)
    # It knows 1; 2 was lost with its own memory; 3 was ended and it has not heard so, of 4 it has.
    members = Members({1: "offline", 3: "online", 4: "unregistered"})
    monkeypatch.setattr(service, "_control", lambda _home: members)

    service.tell_flower(hub)

    assert members.heard == [simulators.credentials("key-2").keys.flower.encode(), 3]
    assert sorted(node.node_id for node in store.nodes()) == [1, 5, 901]


class Control:
    """Flower's control, in memory: a run that ends after three looks."""

    def __init__(self, hub: CoordinatorHome, states: list[tuple[Any, str]], *, opens: bool = True) -> None:
        self._store = Store(hub.database)
        self._states = states
        self._opens = opens
        self.stopped: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to close."""

    def start_run(self, _fab: bytes, _config: object) -> int:
        if self._opens:
            number = self._store.open_round(0.0)
            self._store.set_round(number, "published", "release 2", 9.0, 2)
        return 5

    def run_status(self, _run: int) -> RunState:
        phase, details = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if phase == "away":
            raise FlowerUnavailable("no answer", advice="Wait.")
        return RunState(phase, details)

    def stop_run(self, run: int) -> None:
        self.stopped.append(run)
        if self._states[0][0] == "away":
            raise FlowerUnavailable("no answer", advice="Wait.")


def install(patch: pytest.MonkeyPatch, control: Control) -> None:
    patch.setattr(service, "_control", lambda _home: control)
    patch.setattr(service, "time", Clock())


def test_rounds_are_followed_to_their_end(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    install(monkeypatch, Control(hub, [("running", ""), ("running", ""), ("finished", "")]))

    assert service.hold_rounds(hub, 1, said.append) == [1]
    assert len(said) == 2
    assert said[0].startswith("round 1: published, release 2 (")


@pytest.mark.parametrize("opens", [True, False])
def test_a_run_that_breaks_off_is_told_with_where_the_log_is(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, *, opens: bool
) -> None:
    install(monkeypatch, Control(hub, [("failed", "it broke")], opens=opens))

    with pytest.raises(SfumatoError, match="release 2" if opens else "it broke") as caught:
        service.hold_rounds(hub, 1, lambda _text: None)

    assert "rounds.log" in caught.value.advice


def test_a_superlink_that_comes_back_is_waited_for(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    away = [("away", "")] * 100  # 50 seconds of looking twice a second
    install(monkeypatch, Control(hub, [*away, ("running", ""), *away, ("finished", "")]))

    assert service.hold_rounds(hub, 1, lambda _text: None) == [1]


def test_a_superlink_that_stays_away_is_given_up(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(hub, [("away", "")])
    install(monkeypatch, control)

    with pytest.raises(FlowerUnavailable):
        service.hold_rounds(hub, 1, lambda _text: None)

    assert control.stopped == [5]


def test_a_run_that_does_not_begin_is_given_up_and_stopped(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(hub, [("pending", "")], opens=False)
    install(monkeypatch, control)

    with pytest.raises(SfumatoError, match="the run did not begin within 60 s") as caught:
        service.hold_rounds(hub, 1, lambda _text: None)

    assert "rounds.log" in caught.value.advice
    assert control.stopped == [5]


def test_a_round_whose_process_was_killed_is_closed_once_its_run_is_over(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Control(hub, [("running", ""), ("failed", "killed")]))
    store = Store(hub.database)

    with pytest.raises(SfumatoError, match="interrupted"):
        service.hold_rounds(hub, 1, lambda _text: store.set_round(1, "training", "", 0.0))

    assert [(r.state, r.detail) for r in store.rounds()] == [("failed", "interrupted")]


def test_rounds_are_not_held_twice_at_once(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Control(hub, [("running", "")]))

    with held(hub.rounds_lock, "a run of rounds"), pytest.raises(RefusedError, match="a run of rounds is running already"):
        service.hold_rounds(hub, 1, lambda _text: None)

    assert Store(hub.database).rounds() == []


@pytest.mark.parametrize("state", ["running", "away"])
def test_ctrl_c_stops_the_run(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    control = Control(hub, [(state, "")])
    install(monkeypatch, control)

    def interrupt(_text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        service.hold_rounds(hub, 1, interrupt)

    assert control.stopped == [5]


def test_one_release_among_the_rounds_is_success(hub: CoordinatorHome) -> None:
    store = Store(hub.database)
    for state in ("refused", "published"):
        store.set_round(store.open_round(0.0), state, "so it went", 1.0)

    service.require_success(hub, [1, 2])
    with pytest.raises(GateRefusedError, match="the last one ended as refused: so it went") as caught:
        service.require_success(hub, [1])
    assert "stays in use" in caught.value.advice
    store.set_round(store.open_round(0.0), "failed", "too few", 1.0)
    with pytest.raises(SfumatoError, match="the last one ended as failed: too few") as failed:
        service.require_success(hub, [1, 3])
    assert failed.value.exit_code == 1


def test_progress_says_what_is_being_waited_for(hub: CoordinatorHome) -> None:
    store = Store(hub.database)
    assert service._progress(store, 0) == "waiting for the round to start"
    number = store.open_round(time.time())
    assert service._progress(store, 0).startswith("round 1: gathering, beginning (")
    assert isinstance(store.rounds()[number - 1], Round)
