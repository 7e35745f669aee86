"""Setting a coordinator up, inviting, following rounds, and what is said while nothing runs."""

import time
from pathlib import Path
from typing import Any, Self

import pytest

from coordinator import pki, publish, service
from coordinator.config import Home
from coordinator.errors import NotRunningError
from coordinator.flower import RunState
from coordinator.store import Round, Store
from export.errors import ResourceError, SfumatoError, UsageError
from export.invite import Invite
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


def test_an_invite_names_the_authority_the_address_and_a_secret_that_is_kept(hub: CoordinatorHome) -> None:
    invite = Invite.parse(service.invite(hub, "Ada", "gallery", 60.0))

    assert invite.matches(pki.ca_der(hub))
    assert (invite.host, invite.port) == ("127.0.0.1", 4433)
    assert Store(hub.database).use_invite(invite.secret, "a key", 0.0) == ("Ada", "gallery")


def test_two_invites_are_never_the_same(hub: CoordinatorHome) -> None:
    assert len({service.invite(hub, "Ada", "artist", 60.0) for _ in range(20)}) == 20


@pytest.mark.parametrize("alias", ["", "  ", "x" * 41, "a\tb", "a\x1b[31m"])
def test_an_invite_for_nobody_is_refused(hub: CoordinatorHome, alias: str) -> None:
    with pytest.raises(UsageError, match="cannot be a member's name"):
        service.invite(hub, alias, "artist", 60.0)


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
        phase, details = self._states.pop(0)
        return RunState(phase, details)

    def stop_run(self, run: int) -> None:
        self.stopped.append(run)


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


def test_ctrl_c_stops_the_run(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(hub, [("running", "")])
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
    with pytest.raises(ResourceError, match="the last one ended as refused: so it went") as caught:
        service.require_success(hub, [1])
    assert "stays in use" in caught.value.advice


def test_progress_says_what_is_being_waited_for(hub: CoordinatorHome) -> None:
    store = Store(hub.database)
    assert service._progress(store, 0) == "waiting for the round to start"
    number = store.open_round(time.time())
    assert service._progress(store, 0).startswith("round 1: gathering, beginning (")
    assert isinstance(store.rounds()[number - 1], Round)
