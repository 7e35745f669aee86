"""The process beside the SuperNode that answers its messages with the program installed here."""

from __future__ import annotations

from edge_node import clock
from edge_node.client_app import create_client_app
from edge_node.config import Home
from edge_node.flower import correct_clock, run_tasks
from edge_node.trainer import Trainer
from export.flower_bundle import installed_fab_digest
from export.processes import load_or_create_secret
from export.supervisor import stop_signal


def run(home: Home, port: int) -> None:
    """Answer until SIGTERM.

    Args:
        home: this machine's folder.
        port: the SuperNode's on loopback.
    """
    trainer = Trainer(home.root)
    trainer.warm()
    with stop_signal() as stop:
        try:
            correct_clock(clock.Follower(home).now_s)
            secret = load_or_create_secret(home.flower / "runner.secret")
            run_tasks(f"127.0.0.1:{port}", secret, installed_fab_digest(), create_client_app(trainer), stop)
        finally:
            trainer.close()
