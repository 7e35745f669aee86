"""Machines whose clocks are wrong join a federation and take part in its rounds; nobody sets their clocks."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from coordinator import service
from coordinator.endpoint import create_endpoint
from coordinator.store import Store
from edge_node import releases, updater
from export.flower_bundle import fab_digest
from export.signing import VerifiedRelease
from tests import simulators
from tests.flower_harness import build_test_fab, federation, until
from tests.machines import CLOCKS, needs_faketime, with_clock
from tests.simulators import CoordinatorHome, Registry

pytestmark = [pytest.mark.slow, needs_faketime]


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> Iterator[CoordinatorHome]:
    del world
    home = simulators.make_coordinator(tmp_path / "hub")
    with simulators.serve_coordinator(home, create_endpoint(home, Registry())):
        yield home


@pytest.mark.parametrize("setting", CLOCKS)
def test_a_machine_joins_and_fetches_the_release_whatever_its_clock_says(
    hub: CoordinatorHome, tmp_path: Path, setting: str
) -> None:
    home = simulators.make_node(tmp_path / "node")
    invite = service.invite(hub, "Ada", "gallery", 3600.0)
    said = run_under(setting, "join", invite, "--json", "--home", str(home.root))

    answer = json.loads(said)
    assert answer["ok"], answer
    assert [node.alias for node in Store(hub.database).nodes()] == ["Ada"]
    # The rest in this process, whose clock is right, by the note that was made under the wrong one.
    assert updater.update(home).installed is not None
    assert releases.current(home).manifest.version == 1


def test_the_faked_clocks_are_really_wrong() -> None:
    script = "import time; print(time.time())"
    told = [float(run(with_clock(setting), sys.executable, "-c", script)) - time.time() for setting in CLOCKS]

    assert told[0] < -50 * 365 * 86400
    assert -620 < told[1] < -590
    assert 5 < told[2] < 15
    assert told[3] > 9.9 * 365 * 86400


def test_nodes_take_part_in_rounds_whatever_their_clocks_say_and_not_without_the_coordinators_time(tmp_path: Path) -> None:
    with federation(tmp_path) as there:
        fab = build_test_fab(tmp_path / "fab")
        digest = fab_digest(fab)
        nodes = [there.add_node(f"node-{n}", digest, machine=with_clock(setting)) for n, setting in enumerate(CLOCKS)]

        (round_,) = there.run(fab, nodes=len(nodes))

        assert sorted(reply["node"] for reply in round_["replies"]) == sorted(node.node_id for node in nodes)
        assert not [reply for reply in round_["replies"] if "code" in reply]
        # The control: the same clock, and nobody said what the time is. One that was told, and started later, is there first.
        lost = there.add_node("lost", digest, machine=with_clock("+10s"), knows_the_time=False)
        told = there.add_node("told", digest, machine=with_clock("+10s"))
        until(lambda: told.node_id in there.control.online_nodes(), "a node that is 10 s fast and knows it")
        assert lost.node_id not in there.control.online_nodes()


def run_under(setting: str, *arguments: str) -> str:
    """The node's own program in a process with that clock; whatever it prints."""
    return run(with_clock(setting), sys.executable, "-m", "edge_node", *arguments)


def run(machine: Mapping[str, str], *command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **machine}, timeout=300)
    return ran.stdout
