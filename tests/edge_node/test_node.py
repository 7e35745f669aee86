"""`sfumato up` from the inside: when styles are renewed, what an unreachable coordinator does, and how it ends."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.endpoint import create_endpoint
from edge_node import library, node, releases, styles
from edge_node.config import Home
from edge_node.errors import NotJoinedError, NoWorksError
from export import release
from export.files import write_json
from export.signing import VerifiedRelease
from tests import simulators


@pytest.fixture
def home(tmp_path: Path, world: VerifiedRelease) -> Home:
    del world
    return simulators.trusting(simulators.make_node(tmp_path / "home", poll_s=0.5))


def make_member(home: Home, role: str = "gallery", port: int = 1) -> None:
    write_json(
        home.membership_file,
        {"federation": "guild", "alias": "Ada", "role": role, "node_id": "1", "host": "127.0.0.1", "port": port},
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
        assert node._look_for_release(home) is False

    assert "makes no sense" in caplog.text


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
