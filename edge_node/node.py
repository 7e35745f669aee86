"""`sfumato up`: keeps this machine taking part. Starts Flower's SuperNode and the runner beside it, fetches releases, and
renews styles when the cores are free.

This process imports neither torch nor flwr, so that it stays small; each child is restarted when it ends.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_node import library, membership, releases, styles, updater
from edge_node.config import Config, Home
from edge_node.errors import NoWorksError
from export.errors import SfumatoError
from export.processes import Child, child_environment, free_port
from export.supervisor import Supervisor, open_log, stop_signal

_TICK_S: Final = 0.5
_RENEWAL_PAUSE_S: Final = 900.0  # after a renewal that failed

_log = logging.getLogger(__name__)


def run(home: Home, on_ready: Callable[[], None] = lambda: None) -> None:
    """Take part until SIGTERM or Ctrl-C.

    Raises:
        NotJoinedError: there is no federation to take part in.
        NoWorksError: there is nothing to train on.
    """
    config = home.config()
    member = membership.load(home)
    if member.role == "artist" and not library.entries(home):
        raise NoWorksError("there is no work to learn from", advice="Add works with: sfumato works add DIR")
    supervisor = Supervisor()
    with stop_signal() as stop:
        try:
            if member.role == "artist":
                _start_flower(home, member, supervisor)
            on_ready()
            _loop(home, config, supervisor, stop)
        finally:
            supervisor.stop()


def _start_flower(home: Home, member: membership.Membership, supervisor: Supervisor) -> None:
    """The SuperNode and our runner, which find each other on a loopback port chosen now."""
    from edge_node.flower import SupernodeSettings, start_supernode  # noqa: PLC0415 - galleries have no flwr

    settings = SupernodeSettings(
        home=home.flower,
        superlink=f"{member.host}:{member.port}",
        root_certificates=home.ca_certificate,
        private_key=home.flower_key,
        port=free_port(),
    )
    log = open_log(home.logs, "flower")
    supervisor.keep("supernode", lambda: start_supernode(settings, os.environ, log))
    command = [sys.executable, "-m", "edge_node", "run-tasks", "--home", str(home.root), "--port", str(settings.port)]
    environment = child_environment(settings.flwr_home, os.environ)
    supervisor.keep("runner", lambda: Child.start("runner", command, environment=environment, log=log))


def _loop(home: Home, config: Config, supervisor: Supervisor, stop: threading.Event) -> None:
    """Tend the children, and every ``poll_s`` look for a release.

    While a renewal runs the runner rests: both hold a network and its lessons, and a small box has memory for one. A
    round that begins meanwhile waits for it at the coordinator.
    """
    renewal: subprocess.Popen[bytes] | None = None
    since_poll, not_before = config.poll_s, 0.0
    try:
        while not stop.wait(_TICK_S):
            supervisor.tend()
            if renewal is not None and renewal.poll() is not None:
                _log.info("renewal ended with code %d", renewal.returncode)
                if renewal.returncode != 0:  # a full disk, say, which the next minute will not mend
                    not_before = time.monotonic() + _RENEWAL_PAUSE_S
                renewal = None
                supervisor.resume("runner")
            since_poll += _TICK_S
            if since_poll >= config.poll_s:
                since_poll = 0.0
                if _look_for_release(home) and renewal is None and time.monotonic() >= not_before:
                    supervisor.rest("runner")
                    renewal = _start_renewal(home)
    finally:
        if renewal is not None:
            renewal.send_signal(signal.SIGTERM)
            renewal.wait()


def _look_for_release(home: Home) -> bool:
    """Install what is new.

    Returns:
        Whether styles should be renewed now: one belongs to an older body, and no round wants the cores.
    """
    try:
        installed = updater.update(home)
        if installed is not None:
            _log.info("installed release %d", installed.manifest.version)
        return needs_renewal(home) and not updater.is_round_running(home)
    except SfumatoError as error:
        _log.warning("%s. %s", error, error.advice)
    except (OSError, ValueError) as error:  # a file of ours was damaged; the node goes on training and painting
        _log.error("could not look for a release: %s", type(error).__name__)
    return False


def needs_renewal(home: Home) -> bool:
    """Whether a style is not of the current body, or the round's style has not been made yet."""
    if not releases.versions(home):
        return False
    body = releases.current(home).manifest.body
    tried = renewed_for(home)
    waiting = [s.name for s in styles.all_styles(home) if s.body != body]
    wants_first = (home.training / "code.safetensors").exists() and home.config().style not in styles.names(home)
    return tried != body and bool(waiting or wants_first)


def renewed_for(home: Home) -> str:
    """The body renewal was last tried for; a style that was better on the old body is not tried again and again."""
    try:
        return _renewed_file(home).read_text()
    except OSError:
        return ""


def note_renewed(home: Home, body: str) -> None:
    """Remember that every style was offered this body."""
    _renewed_file(home).parent.mkdir(parents=True, exist_ok=True)
    _renewed_file(home).write_text(body)


def _renewed_file(home: Home) -> Path:
    return home.styles / ".renewed-for"


def _start_renewal(home: Home) -> subprocess.Popen[bytes]:
    _log.info("renewing styles for the current body")
    command = [sys.executable, "-m", "edge_node", "renew", "--home", str(home.root)]
    with open_log(home.logs, "renewal") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
