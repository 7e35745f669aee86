"""The whole way with real processes: a coordinator and three artists' machines as their people start them, and Flower between.

In the public endpoint's filter sits a tap (``tests/filter_tap``): every byte a node sent is read there, after TLS. The base
body is the packaged one and the frozen network the real one, so this is slow.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import coordinator.config
import edge_node.config
from coordinator.flower import superlink_endpoint
from coordinator.service import _superlink_settings
from edge_node import keys, library, membership, releases, styles, train
from export import settings, weights
from export.errors import SfumatoError
from export.files import digest_of
from export.ledger import Ledger
from export.processes import Child
from models import codecs
from tests import pictures, simulators

pytestmark = pytest.mark.slow

NAMES: Final = ("ada", "berthe", "clara")
DEADLINE_S: Final = 1200.0
CANARY: Final = b"a canary that must be heard: 7b1d4f0c9e2a86535d20c4b7f1e98a6355c0"


@dataclass
class Federation:
    """The processes, the homes and what reached the coordinator's public filter in one round."""

    folder: Path
    hub: coordinator.config.Home
    tap: Path
    homes: dict[str, edge_node.config.Home] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)
    rounds: Any = None

    def until(self, condition: Any, what: str) -> None:
        """Poll; fail when a process ends or at a deadline far beyond what any machine needs."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            ended = [child.name for child in self.children if child.exit_code() is not None]
            assert not ended, f"{ended} ended while waiting for {what}: {self.logs()}"
            assert time.monotonic() < deadline, f"gave up waiting for {what}: {self.logs()}"
            time.sleep(0.2)

    def received(self) -> bytes:
        """Every request that reached the public filter so far, whole."""
        return self.tap.read_bytes()

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {path}\n{path.read_text()[-1500:]}" for path in sorted(self.folder.rglob("*.log")))


TAP: Final = Path(__file__).parent.parent / "filter_tap"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


def command(program: str, *arguments: str) -> Any:
    """Run a command to its end and give its data."""
    ran = subprocess.run(
        [sys.executable, "-m", program, *arguments, "--json"],
        capture_output=True,
        check=False,
        env=environment(),
        timeout=DEADLINE_S,
    )
    answer = json.loads(ran.stdout)
    assert answer["ok"], answer
    return answer["data"]


def start(federation: Federation, stack: ExitStack, program: str, home: Path, **more: str) -> Child:
    log = os.open(federation.folder / f"{home.name}-up.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stack.callback(os.close, log)
    child = stack.enter_context(
        Child.start(
            f"{program} up",
            [sys.executable, "-m", program, "up", "--home", str(home)],
            environment=environment(**more),
            log=log,
            grace_s=60,
        )
    )
    federation.children.append(child)
    return child


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    with ExitStack() as stack:
        hub = coordinator.config.Home(folder / "hub")
        command("coordinator", "init", "guild", "--home", str(hub.root))
        settings.save(hub.config_file, replace(hub.config(), bind="127.0.0.1", fit_steps=1))
        simulators.change_policy(hub, minimum_nodes=len(NAMES), steps=2, clip=0.05)
        found = Federation(folder, hub, folder / "tap")
        start(found, stack, "coordinator", hub.root, PYTHONPATH=str(TAP), FILTER_TAP=str(found.tap))
        found.until(lambda: superlink_endpoint(_superlink_settings(hub)) is not None, "the coordinator")
        for number, name in enumerate(NAMES):
            _join(found, stack, name, number)
        found.rounds = command("coordinator", "round", "--rounds", "1", "--home", str(hub.root))["rounds"]
        for home in found.homes.values():
            found.until(lambda home=home: 2 in releases.versions(home), "the release on every node")
            found.until(lambda home=home: styles.names(home), "a style on every node")
        yield found
    assert all(child.exit_code() is not None for child in found.children)


def _join(found: Federation, stack: ExitStack, name: str, number: int) -> None:
    home = found.homes[name] = edge_node.config.Home(found.folder / name)
    place = ("--home", str(home.root))
    command("edge_node", "init", "--artist", name, "--threads", "1", *place)
    settings.save(home.config_file, replace(home.config(), renew_steps=1, poll_s=0.5))
    simulators.write_works(found.folder / f"works-{name}", seed=number)
    command("edge_node", "works", "add", str(found.folder / f"works-{name}"), *place)
    invite = command("coordinator", "invite", name, "--home", str(found.hub.root))["invite"]
    command("edge_node", "join", invite, *place)
    command("edge_node", "policy", "show", *place)
    command("edge_node", "policy", "accept", *place)
    start(found, stack, "edge_node", home.root)


def test_the_round_is_published_and_counts_every_artist(federation: Federation) -> None:
    (round_,) = federation.rounds

    assert (round_["state"], round_["version"]) == ("published", 2)
    assert sorted(answer["node"] for answer in round_["answers"]) == list(NAMES)
    assert all(answer["accepted"] for answer in round_["answers"])


def test_the_release_is_installed_on_every_node(federation: Federation) -> None:
    for home in federation.homes.values():
        installed = releases.current(home)
        assert (installed.manifest.federation, installed.manifest.version) == ("guild", 2)
        assert installed.manifest.contributors == len(NAMES)


def test_a_picture_is_painted_with_the_style_the_round_left(federation: Federation) -> None:
    photo = pictures.shapes((96, 130), seed=2)
    (federation.folder / "photo.png").write_bytes(pictures.encoded(photo, "PNG"))
    arguments = (str(federation.folder / "photo.png"), "--style", "ada", "-o", str(federation.folder / "picture.png"))

    data = command("edge_node", "paint", *arguments, "--home", str(federation.homes["ada"].root))

    picture = codecs.decode((federation.folder / "picture.png").read_bytes())
    assert (data["width"], data["height"]) == (130, 96)
    assert picture.shape == photo.shape
    assert picture.std() > 3
    assert np.abs(picture.astype(int) - photo).mean() > 3


def test_the_updates_in_the_nodes_ledgers_are_what_went_over_the_wire(federation: Federation) -> None:
    sent = federation.received()
    found = {digest_of(row) for row in _rows_of_bytes(sent)}

    for home in federation.homes.values():
        (entry,) = [entry for entry in Ledger(home.ledger_file).entries() if entry["what"] == "update"]
        assert entry["sha256"] in found


def test_no_byte_a_node_sent_is_of_a_work_or_of_a_style_code(federation: Federation) -> None:
    sent = federation.received()

    for home in federation.homes.values():
        for secret in _secrets(home):
            assert not simulators.shares_a_window(sent, secret)


def test_a_work_or_a_code_in_the_stream_would_have_been_found(federation: Federation) -> None:
    sent = federation.received()

    for home in federation.homes.values():
        for secret in _secrets(home):
            assert simulators.shares_a_window(sent + secret[101:165] + sent[:99], secret)


def test_a_canary_sent_by_the_same_pipe_is_found(federation: Federation) -> None:
    home = federation.homes["ada"]
    pipe, shown = membership.coordinator(home), keys.public_keys(home)

    with pytest.raises(SfumatoError, match=r"not a request to join|invite"):
        pipe.join(CANARY, shown, keys.proofs(home, shown))
    with pytest.raises(SfumatoError):
        pipe._request("POST", "/join", CANARY)

    assert simulators.shares_a_window(federation.received(), CANARY)


def _secrets(home: edge_node.config.Home) -> list[bytes]:
    """What must never be sent: each work as a file and as pixels, each style code as its file and as numbers."""
    works = [entry.path.read_bytes() for entry in library.entries(home)]
    code_files = [train._code_file(home), *home.styles.rglob("*.style")]
    assert len(works) == 2
    assert len(code_files) >= 2
    codes = [weights.unpack(file.read_bytes())["code"].tobytes() for file in code_files]
    return [*works, *[codecs.decode(work).tobytes() for work in works], *codes]


def _rows_of_bytes(sent: bytes) -> list[bytes]:
    """Every one-dimensional uint8 array in a stream, as numpy writes one."""
    rows, header, at = [], b"'descr': '|u1', 'fortran_order': False, 'shape': (", -1
    while (at := sent.find(header, at + 1)) >= 0:
        length = int(sent[at + len(header) : at + len(header) + 12].partition(b",")[0])
        start = sent.index(b"\n", at) + 1
        rows.append(sent[start : start + length])
    return rows
