"""The server part of a run, as Flower starts it: a process whose output goes nowhere."""

import os
import subprocess
import sys
from pathlib import Path

from export.signing import VerifiedRelease
from tests import simulators

SCRIPT = """
import logging
from types import SimpleNamespace
from coordinator import flower, rounds, server_app
from flwr.superlink.grid import http_grid

def run_rounds(grid, home, config):
    logging.getLogger("coordinator.rounds").info("rounds of %s", config.name)
    assert http_grid.inflate_object_from_contents is flower._inflate_bounded
    raise OSError("the disk is gone")

server_app.run_rounds = run_rounds
server_app.main(None, SimpleNamespace(run_config={"rounds": 3}))
"""


def test_its_log_and_what_ended_it_are_in_the_log_of_rounds(tmp_path: Path, world: VerifiedRelease) -> None:
    del world
    home = simulators.make_coordinator(tmp_path / "hub")

    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "SFUMATO_COORDINATOR_HOME": str(home.root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )

    log = (home.logs / "rounds.log").read_text()
    assert ran.returncode == 1
    assert "coordinator.rounds INFO rounds of guild" in log
    assert "OSError: the disk is gone" in log
