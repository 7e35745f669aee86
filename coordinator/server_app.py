"""The server part of a Flower run: finds this coordinator's folder and holds the rounds that were asked for.

Runs in a process that Flower starts for the run; its only settings are the number of rounds, which comes with the run, and
the folder, which comes with the environment of the coordinator's own processes.
"""

from __future__ import annotations

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.config import find_home
from coordinator.rounds import run_rounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Hold the rounds."""
    logging.getLogger("coordinator").setLevel(logging.INFO)
    home = find_home(None)
    run_rounds(grid, home, home.config(), int(context.run_config["rounds"]))
