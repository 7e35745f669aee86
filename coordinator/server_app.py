"""The server part of a Flower run: finds this coordinator's folder and holds the rounds that were asked for.

Runs in a process that Flower starts for the run; the folder comes with the environment of the coordinator's own processes, and
in it lies which rounds are to be held. Flower throws away what that process
writes to stdout and stderr, so it opens its log itself.
"""

from __future__ import annotations

import sys

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.config import find_home
from coordinator.flower import bound_replies
from coordinator.rounds import run_rounds
from export import console

app = ServerApp()


@app.main()
def main(grid: Grid, _context: Context) -> None:
    """Hold the rounds."""
    home = find_home(None)
    home.logs.mkdir(parents=True, exist_ok=True)
    sys.stderr = (home.logs / "rounds.log").open("a", buffering=1)
    console.log_to_stderr(debug=console.DEBUG)
    bound_replies()
    run_rounds(grid, home, home.config())
