"""`sfumato up` from the inside: when styles are renewed, what an unreachable coordinator does, and how it ends."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.endpoint import create_endpoint
from edge_node import library, node, releases, styles, updater
from edge_node.config import Home
from edge_node.errors import NoConsentError, NotJoinedError, NoWorksError
from export import release
from export.errors import NotConfiguredError, RefusedError
from export.files import held, write_json
from export.signing import VerifiedRelease
from export.supervisor import Supervisor
from tests import simulators


@pytest.fixture
def home(tmp_path: Path, world: VerifiedRelease) -> Home:
    del world
    return simulators.trusting(simulators.make_node(tmp_path / "home", poll_s=0.5))


def make_member(home: Home, role: str = "gallery", port: int = 1) -> None:
    write_json(
        home.membership_file,
        {"federation": "guild", "alias": "Ada", "role": role, "node_id": "1", "host": "127.0.0.1", "port": port, "digits": "0"},
    )


@pytest.fixture
def installed(home: Home, world: VerifiedRelease, tmp_path: Path) -> VerifiedRelease:
    """The guild's first release, with the base's body."""
    simulators.release_again(world, tmp_path / "one")
    return releases.install(home, tmp_path / "one")


def test_a_machine_that_joined_nobody_takes_part_in_nothing(home: Home) -> None:
    with pytest.raises(NotJoinedError):
        node.run(home)


def test_an_artist_without_works_takes_no_part(home: Home) -> None:
    make_member(home, role="artist")

    with pytest.raises(NoWorksError, match="no work to learn from"):
        node.run(home)


def test_a_machine_without_a_release_has_nothing_to_renew(home: Home) -> None:
    assert not node.needs_renewal(home)


def test_a_style_on_the_current_body_is_not_renewed(home: Home, installed: VerifiedRelease) -> None:
    styles.compile_style(home, "sea", simulators.style_code(installed), installed, simulators.LINEAGE)

    assert not node.needs_renewal(home)


def test_a_style_on_another_body_is_renewed_once_for_each_body(home: Home, installed: VerifiedRelease) -> None:
    style = styles.compile_style(home, "sea", simulators.style_code(installed), installed, simulators.LINEAGE)
    record = style.folder / "style.json"
    record.write_text(record.read_text().replace(installed.manifest.body, "0" * 64))

    assert node.needs_renewal(home)
    node.note_renewed(home, installed.manifest.body)
    assert not node.needs_renewal(home)
    node.note_renewed(home, "1" * 64)
    assert node.needs_renewal(home)


def test_the_rounds_style_is_made_after_the_first_round(home: Home, installed: VerifiedRelease) -> None:
    del installed
    home.training.mkdir()
    (home.training / "code.safetensors").write_bytes(b"?")

    assert node.needs_renewal(home)


def test_a_coordinator_that_is_away_is_a_line_in_the_log_and_no_more(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    make_member(home)
    home.ca_certificate.write_text("not a certificate")

    with caplog.at_level(logging.WARNING):
        assert node._look_for_release(home, node._Sight()) is False

    assert "makes no sense" in caplog.text


def test_a_node_that_the_coordinator_does_not_see_for_a_while_is_lost_and_counts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sight = simulators.Clock(), node._Sight()
    monkeypatch.setattr(node, "time", clock)
    sight.note(is_seen=False)
    clock.sleep(89)
    sight.note(is_seen=False)
    assert not sight.is_lost()
    clock.sleep(2)
    assert sight.is_lost()
    assert not sight.is_lost()
    clock.sleep(91)
    assert sight.is_lost()


@pytest.mark.parametrize("is_seen", [True, None])
def test_a_node_that_is_seen_or_of_which_nothing_is_known_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, *, is_seen: bool | None
) -> None:
    clock, sight = simulators.Clock(), node._Sight()
    monkeypatch.setattr(node, "time", clock)
    sight.note(is_seen=False)
    clock.sleep(80)
    sight.note(is_seen=is_seen)
    clock.sleep(80)
    assert not sight.is_lost()


# --- Renewals ----------------------------------------------------------------------------------------------------------


@dataclass
class Renewing:
    """Renewals whose processes and time are the test's, and what was asked of the supervisor."""

    renewals: node._Renewals
    clock: simulators.Clock
    started: list[simulators.FakeChild]
    asked: list[str]


@pytest.fixture
def renewing(home: Home, monkeypatch: pytest.MonkeyPatch) -> Renewing:
    made = Renewing(node._Renewals(home, Supervisor()), simulators.Clock(), [], [])

    def start(_home: Home) -> simulators.FakeChild:
        made.started.append(simulators.FakeChild())
        return made.started[-1]

    monkeypatch.setattr(node, "time", made.clock)
    monkeypatch.setattr(node, "_start_renewal", start)
    monkeypatch.setattr(Supervisor, "rest", lambda _self, name: made.asked.append(f"rest {name}"))
    monkeypatch.setattr(Supervisor, "resume", lambda _self, name: made.asked.append(f"resume {name}"))
    return made


def test_the_runner_rests_while_styles_are_renewed_and_no_longer(renewing: Renewing) -> None:
    renewing.renewals.begin()
    renewing.renewals.tend()
    assert renewing.asked == ["rest runner"]

    renewing.started[0].code = 0
    renewing.renewals.tend()
    assert renewing.asked == ["rest runner", "resume runner"]


def test_one_renewal_runs_at_a_time(renewing: Renewing) -> None:
    renewing.renewals.begin()
    renewing.renewals.begin()
    assert len(renewing.started) == 1

    renewing.started[0].code = 0
    renewing.renewals.tend()
    renewing.renewals.begin()
    assert len(renewing.started) == 2


def test_a_renewal_that_failed_is_not_tried_again_at_once(renewing: Renewing) -> None:
    renewing.renewals.begin()
    renewing.started[0].code = 6
    renewing.renewals.tend()
    assert renewing.asked[-1] == "resume runner"

    renewing.clock.sleep(node._RENEWAL_PAUSE_S - 1)
    renewing.renewals.begin()
    assert len(renewing.started) == 1
    renewing.clock.sleep(1)
    renewing.renewals.begin()
    assert len(renewing.started) == 2


def test_a_machine_without_room_for_a_process_goes_on_with_its_rounds(
    renewing: Renewing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_home: Home) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(node, "_start_renewal", none_left)
    renewing.renewals.begin()

    assert renewing.asked == ["rest runner", "resume runner"]
    assert renewing.renewals.child is None
    assert renewing.renewals.not_before > renewing.clock.now


def test_a_renewal_under_way_ends_with_the_program(renewing: Renewing) -> None:
    renewing.renewals.stop()
    renewing.renewals.begin()
    renewing.renewals.stop()

    assert renewing.started[0].is_stopped


@pytest.mark.parametrize("is_running", [True, False])
def test_styles_are_not_renewed_while_a_round_runs(home: Home, monkeypatch: pytest.MonkeyPatch, *, is_running: bool) -> None:
    monkeypatch.setattr(updater, "update", lambda _home: updater.News(None, is_round_running=is_running))
    monkeypatch.setattr(node, "needs_renewal", lambda _home: True)

    assert node._look_for_release(home, node._Sight()) is not is_running


def test_a_folder_called_models_where_up_was_typed_is_not_ours(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('another models')")
    monkeypatch.chdir(tmp_path)
    home.config_file.unlink()

    with node._start_renewal(home) as child:
        assert child.wait(120) == 3

    said = (home.logs / "renewal.log").read_text()
    assert "there is no Sfumato in" in said
    assert "another models" not in said


# --- The whole of it ---------------------------------------------------------------------------------------------------


def test_a_machine_takes_part_once(home: Home) -> None:
    make_member(home)

    with held(home.up_lock, "sfumato up"), pytest.raises(RefusedError, match="sfumato up is running already"):
        node.run(home)


def test_what_a_killed_process_left_is_swept_away_at_the_start(home: Home) -> None:
    make_member(home)
    home.ca_certificate.write_text("not a certificate")
    (home.releases / ".incoming-abc").mkdir(parents=True)

    node.run(home, on_ready=lambda: os.kill(os.getpid(), signal.SIGTERM))

    assert list(home.releases.iterdir()) == []


def test_an_artist_who_has_not_agreed_to_the_policy_takes_no_part(home: Home, tmp_path: Path) -> None:
    make_member(home, role="artist")
    simulators.write_works(tmp_path / "works")
    library.add(home, tmp_path / "works")

    with pytest.raises(NoConsentError, match="have not agreed") as caught:
        node.run(home)

    assert "sfumato policy show" in caught.value.advice


def test_an_artist_without_flower_is_told_what_to_install(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulators.agreeing(home)
    make_member(home, role="artist")
    simulators.write_works(tmp_path / "works")
    library.add(home, tmp_path / "works")
    monkeypatch.setitem(sys.modules, "edge_node.flower", None)

    with pytest.raises(NotConfiguredError) as caught:
        node.run(home)

    assert caught.value.advice.endswith("pip install 'sfumato[learn]'")


def test_a_coordinator_that_never_answers_keeps_nobody_from_ending(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    make_member(home)
    asked, over = threading.Event(), threading.Event()

    def hang(_home: Home) -> updater.News:
        asked.set()
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait(60)
        return updater.News(None, is_round_running=False)

    monkeypatch.setattr(updater, "update", hang)
    monkeypatch.setattr(node, "needs_renewal", lambda _home: False)
    node.run(home)

    assert asked.is_set()
    assert not over.is_set()
    over.set()


class Stopped:
    """Sends this process a signal once something is so, as a person at the keyboard would."""

    def __init__(self, home: Home, number: signal.Signals) -> None:
        self._thread = threading.Thread(target=self._wait, args=(home, number))

    @staticmethod
    def _wait(home: Home, number: signal.Signals) -> None:
        try:
            simulators.until(lambda: releases.versions(home) != [], "the release")
        finally:
            os.kill(os.getpid(), number)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._thread.join()


@pytest.fixture
def served(home: Home, tmp_path: Path) -> Iterator[Home]:
    """A gallery whose coordinator is up."""
    hub = simulators.make_coordinator(tmp_path / "hub")
    with simulators.serve_coordinator(hub, create_endpoint(hub, simulators.Registry())) as port:
        make_member(home, port=port)
        home.ca_certificate.write_bytes(hub.ca_certificate.read_bytes())
        home.trust_file.write_bytes(hub.trust_file.read_bytes().replace(b'"highest_version":1', b'"highest_version":0'))
        simulators.make_known(hub, home, "gallery")
        yield home


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gallery_fetches_the_release_starts_no_flower_and_ends_when_told(served: Home, number: signal.Signals) -> None:
    ready: list[bool] = []
    before = signal.getsignal(number)

    with Stopped(served, number):
        node.run(served, on_ready=lambda: ready.append(True))

    assert ready == [True]
    assert releases.current(served).manifest.version == 1
    assert not served.flower.exists()
    assert signal.getsignal(number) is before


def test_the_installed_release_holds_the_base_body(home: Home, installed: VerifiedRelease, world: VerifiedRelease) -> None:
    assert library.entries(home) == []
    assert installed.read(release.BODY) == world.read(release.BODY)
