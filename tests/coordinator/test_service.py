"""Setting a coordinator up, inviting, following rounds, and what is said while nothing runs."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import pytest

from coordinator import pki, publish, service
from coordinator.config import Home
from coordinator.errors import GateRefusedError, NotRunningError
from coordinator.flower import FlowerNode, FlowerUnavailable, SuperlinkEndpoint
from coordinator.store import RoundState, Store
from export import settings
from export.errors import NotConfiguredError, RefusedError, SfumatoError, UsageError
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


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens on the network while a coordinator runs whose processes are not started."""
    heard: list[str] = []

    @contextmanager
    def announced(host: str, port: int) -> Iterator[bool]:
        heard.append(f"{host}:{port} begins")
        yield True
        heard.append(f"{host}:{port} ends")

    monkeypatch.setattr(service, "announced", announced)
    monkeypatch.setattr(service, "_start", lambda *_: SuperlinkEndpoint(1, 7443, 1))
    monkeypatch.setattr(service, "tell_flower", lambda _home: None)
    return heard


def run_for_a_moment(home: Home, said: list[str]) -> None:
    def ready(_port: int) -> None:
        said.append("ready")
        os.kill(os.getpid(), signal.SIGTERM)

    service.run(home, ready)


def test_a_coordinator_announces_itself_for_as_long_as_it_runs(hub: CoordinatorHome, said: list[str]) -> None:
    settings.save(hub.config_file, replace(hub.config(), host="192.168.1.9"))

    run_for_a_moment(hub, said)

    assert said == ["192.168.1.9:7443 begins", "ready", "192.168.1.9:7443 ends"]


@pytest.mark.parametrize("changes", [{"host": "192.168.1.9", "announce": False}, {"host": "127.0.0.1"}, {"host": "localhost"}])
def test_a_coordinator_is_silent_if_told_so_and_where_nobody_could_hear(
    hub: CoordinatorHome, said: list[str], changes: dict[str, Any]
) -> None:
    settings.save(hub.config_file, replace(hub.config(), **changes))

    run_for_a_moment(hub, said)

    assert said == ["ready"]


def test_a_coordinator_whose_address_changed_has_a_certificate_for_the_new_one_before_it_answers(
    hub: CoordinatorHome, said: list[str]
) -> None:
    before, authority = hub.server_certificate.read_bytes(), hub.ca_certificate.read_bytes()
    run_for_a_moment(hub, said)
    assert hub.server_certificate.read_bytes() == before

    settings.save(hub.config_file, replace(hub.config(), host="192.168.1.9", announce=False))
    run_for_a_moment(hub, said)

    assert hub.server_certificate.read_bytes() != before
    assert hub.ca_certificate.read_bytes() == authority
    assert not pki.require_host(hub, "192.168.1.9")


@pytest.mark.parametrize("host", ["", "a_b", "192.168.1.9:7443", "D\u00fcrer"])
def test_a_coordinator_does_not_run_under_a_name_that_can_be_none(hub: CoordinatorHome, said: list[str], host: str) -> None:
    settings.save(hub.config_file, replace(hub.config(), host=host))

    with pytest.raises(NotConfiguredError, match="cannot be this machine's name or address") as caught:
        run_for_a_moment(hub, said)

    assert str(hub.config_file) in caught.value.advice
    assert said == []


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


# --- Rounds -------------------------------------------------------------------------------------------------------------


def follow(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, on_look: Callable[[int, Store, int], None]) -> list[str]:
    """Ask for a round and follow it, while the test does what happens elsewhere; gives what was said."""
    said: list[str] = []
    store = Store(hub.database)

    def say(text: str) -> None:
        said.append(text)
        job = store.open_job()
        assert job is not None
        on_look(len(said), store, job.job)

    monkeypatch.setattr(service, "_endpoint", lambda _home: None)
    monkeypatch.setattr(service, "is_running", lambda _home: len(said) != 1)
    monkeypatch.setattr(service, "time", Clock())
    service.hold_rounds(hub, 1, say)
    return said


def finish(store: Store, job: int) -> None:
    simulators.open_round(store, "published", "release 2")
    store.close_job(job, "done", "", 1.0)


def test_rounds_are_asked_for_and_followed_to_their_end(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    def happens(look: int, store: Store, job: int) -> None:
        if look == 3:
            simulators.open_round(store, "training", "1 of 2 updates in", now=1_700_000_000.0)
        if look == 4:
            store.set_round(1, "published", "release 2", 0.0)
            store.close_job(job, "done", "", 1.0)

    said = follow(hub, monkeypatch, happens)

    assert said[0] == "waiting for the process that holds rounds"
    assert said[1] == "the coordinator is down; the rounds go on when it is up again"
    assert said[3].startswith("round 1: training, 1 of 2 updates in (")


def test_rounds_that_were_given_up_are_told_with_where_the_log_is(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SfumatoError, match="the rounds did not end well: it broke") as caught:
        follow(hub, monkeypatch, lambda _look, store, job: store.close_job(job, "failed", "it broke", 1.0))

    assert "rounds.log" in caught.value.advice


def test_ctrl_c_calls_the_rounds_off(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_look: int, store: Store, _job: int) -> None:
        simulators.open_round(store, "training")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(hub, monkeypatch, interrupt)

    store = Store(hub.database)
    assert (store.job(1).state, store.job(1).detail) == ("stopped", "called off")
    assert [(r.state, r.detail) for r in store.rounds()] == [("failed", "called off")]


def test_rounds_are_not_asked_for_twice_at_once(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(hub.database).add_job(1)

    with pytest.raises(RefusedError, match="rounds are being held already"):
        follow(hub, monkeypatch, lambda _look, store, job: finish(store, job))


def test_no_round_is_held_under_a_policy_nobody_has_read(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.policy_file.write_text(hub.policy_file.read_text().replace("noise = 0.0", "noise = 0.5"))

    with pytest.raises(RefusedError, match="was changed and not published") as caught:
        follow(hub, monkeypatch, lambda _look, store, job: finish(store, job))

    assert "policy publish" in caught.value.advice
    assert Store(hub.database).open_job() is None


@dataclass(slots=True)
class Runs:
    """Flower's control over runs, in memory."""

    is_away: bool = False
    started: list[int] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)

    def __enter__(self) -> Self:
        if self.is_away:
            raise FlowerUnavailable("no answer", advice="Wait.")
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to close."""

    def start_run(self, _fab: bytes, _config: object) -> int:
        self.started.append(len(self.started) + 1)
        return self.started[-1]

    def stop_run(self, run: int) -> None:
        self.stopped.append(run)


@dataclass(slots=True)
class Holding:
    """What tends to rounds, with its clock, Flower, and whether a process is at work, in the test's hands."""

    store: Store
    runs: Runs
    clock: Clock
    holder: service._Holder
    at_work: list[bool] = field(default_factory=list)

    def passes(self, seconds: float, *, at_work: bool) -> None:
        """Time in which it looks twice a second."""
        self.at_work[:] = [at_work]
        for _ in range(int(2 * seconds)):
            self.clock.sleep(0.5)
            self.holder.tend()


@pytest.fixture
def holding(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> Holding:
    found = Holding(Store(hub.database), Runs(), Clock(), service._Holder(hub))
    monkeypatch.setattr(service, "_control", lambda _home: found.runs)
    monkeypatch.setattr(service, "_is_held", lambda _lock: found.at_work == [True])
    monkeypatch.setattr(service, "time", found.clock)
    return found


def test_nothing_is_started_while_no_round_was_asked_for(holding: Holding) -> None:
    holding.passes(100, at_work=False)

    assert (holding.runs.started, holding.runs.stopped) == ([], [])


def test_a_run_is_started_once_and_left_alone_while_it_is_at_work(holding: Holding) -> None:
    holding.store.add_job(1)
    holding.passes(30, at_work=False)  # it is importing torch
    holding.passes(3600, at_work=True)

    assert (holding.runs.started, holding.runs.stopped) == ([1], [])
    assert holding.store.job(1).run == 1


def test_a_run_whose_process_was_killed_is_followed_by_another_within_seconds(holding: Holding) -> None:
    holding.store.add_job(1)
    holding.passes(1, at_work=False)
    holding.passes(30, at_work=True)
    holding.passes(2, at_work=False)
    assert holding.runs.started == [1]

    holding.passes(2, at_work=False)

    assert (holding.runs.started, holding.runs.stopped) == ([1, 2], [1])


def test_a_run_that_never_gets_to_work_is_tried_again_and_given_up(holding: Holding) -> None:
    holding.store.add_job(1)
    holding.passes(91, at_work=False)
    assert (holding.runs.started, holding.runs.stopped) == ([1, 2], [1])
    holding.passes(91 * 6, at_work=False)

    assert len(holding.runs.started) == 5
    assert (holding.store.job(1).state, holding.store.job(1).detail) == ("failed", "given up after 5 starts without a round")


def test_a_coordinator_that_was_restarted_goes_on_with_what_was_asked_for(hub: CoordinatorHome, holding: Holding) -> None:
    holding.store.add_job(1)
    holding.passes(1, at_work=False)
    holding.passes(30, at_work=True)
    holding.holder = service._Holder(hub)  # the process was killed, and its run with it
    holding.passes(1, at_work=False)

    assert holding.runs.started == [1, 2]
    assert holding.runs.stopped == [1]


def test_rounds_that_were_called_off_are_stopped(holding: Holding) -> None:
    holding.store.add_job(1)
    holding.passes(1, at_work=False)
    holding.passes(10, at_work=True)
    holding.store.close_job(1, "stopped", "called off", 1.0)
    holding.passes(10, at_work=True)

    assert (holding.runs.started, holding.runs.stopped) == ([1], [1])


def test_a_superlink_that_is_away_is_asked_again(holding: Holding) -> None:
    holding.store.add_job(1)
    holding.runs.is_away = True
    holding.passes(10, at_work=False)
    holding.runs.is_away = False
    holding.passes(1, at_work=False)

    assert holding.runs.started == [1]


def test_whether_a_process_holds_rounds_is_told_by_its_lock(hub: CoordinatorHome) -> None:
    assert not service._is_held(hub.rounds_lock)
    with held(hub.rounds_lock, "a run of rounds"):
        assert service._is_held(hub.rounds_lock)
    assert not service._is_held(hub.rounds_lock)


def test_one_release_among_the_rounds_is_success(hub: CoordinatorHome) -> None:
    store = Store(hub.database)
    states: tuple[RoundState, ...] = ("refused", "published")
    for state in states:
        simulators.open_round(store, state, "so it went")

    service.require_success(hub, [1, 2])
    with pytest.raises(GateRefusedError, match="the last one ended as refused: so it went") as caught:
        service.require_success(hub, [1])
    assert "stays in use" in caught.value.advice
    simulators.open_round(store, "failed", "too few")
    with pytest.raises(SfumatoError, match="the last one ended as failed: too few") as failed:
        service.require_success(hub, [1, 3])
    assert failed.value.exit_code == 1
