"""`sfumato up`: keeps this machine taking part. Starts Flower's SuperNode and the runner beside it, fetches releases, and
renews styles when the cores are free.

This process imports neither torch nor flwr, so that it stays small; each child is restarted when it ends. It never waits for
the coordinator: whoever presses Ctrl-C is obeyed at once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge_node import consent, library, membership, releases, styles, updater
from edge_node.config import Config, Home
from edge_node.errors import NoWorksError
from export.errors import NotConfiguredError, SfumatoError
from export.files import held
from export.processes import Child, child_environment, free_port
from export.supervisor import Supervisor, open_log, stop_signal

_TICK_S: Final = 0.5
_UNSEEN_S: Final = 90.0  # Flower itself takes a minute to call a node gone, and as long to know one that is back
_RENEWAL_PAUSE_S: Final = 900.0  # after a renewal that failed

_log = logging.getLogger(__name__)


def run(home: Home, on_ready: Callable[[], None] = lambda: None) -> None:
    """Take part until SIGTERM or Ctrl-C.

    Raises:
        NotJoinedError: there is no federation to take part in.
        NoWorksError: there is nothing to train on.
        NoConsentError: the artist has not agreed to the policy.
        NotConfiguredError: an artist's machine lacks what training needs.
        RefusedError: this machine takes part already.
    """
    config = home.config()
    member = membership.load(home)
    if member.role == "artist" and not library.entries(home):
        raise NoWorksError("there is no work to learn from", advice="Add works with: sfumato works add DIR")
    if member.role == "artist":
        consent.required(home)
    supervisor = Supervisor()
    with held(home.up_lock, "sfumato up"), stop_signal() as stop:
        updater.sweep(home)
        try:
            if member.role == "artist":
                _start_flower(home, member, supervisor)
            on_ready()
            _loop(home, config, supervisor, stop)
        finally:
            supervisor.stop()


def _start_flower(home: Home, member: membership.Membership, supervisor: Supervisor) -> None:
    """The SuperNode and our runner, which find each other on a loopback port chosen now."""
    try:
        from edge_node.flower import SupernodeSettings, start_supernode  # noqa: PLC0415 - galleries have no flwr
    except ImportError as error:
        raise NotConfiguredError(
            "taking part in rounds needs more than is installed here", advice="Install it with: pip install 'sfumato[learn]'"
        ) from error

    settings = SupernodeSettings(
        home=home.flower,
        superlink=member.address,
        root_certificates=home.ca_certificate,
        private_key=home.flower_key,
        port=free_port(),
        node_home=home.root,
    )
    log = open_log(home.logs, "flower")
    supervisor.keep("supernode", lambda: start_supernode(settings, os.environ, log))
    command = _own_command("run-tasks", "--home", str(home.root), "--port", str(settings.port))
    environment = child_environment(settings.flwr_home, os.environ)
    supervisor.keep("runner", lambda: Child.start("runner", command, environment=environment, log=log))


def _loop(home: Home, config: Config, supervisor: Supervisor, stop: threading.Event) -> None:
    """Tend the children, and every ``poll_s`` look for a release, in a thread that nobody waits for."""
    renewals, is_due = _Renewals(home, supervisor), threading.Event()
    sight = _Sight()

    def look() -> None:
        if _look_for_release(home, sight):
            is_due.set()

    looking, next_look = threading.Thread(), 0.0
    try:
        while not stop.wait(_TICK_S):
            supervisor.tend()
            renewals.tend()
            if is_due.is_set():
                is_due.clear()
                renewals.begin()
            if sight.is_lost():
                _log.warning("the coordinator has not seen this node for a while; Flower's part of it is started again")
                supervisor.rest("supernode")
                supervisor.resume("supernode")
            if not looking.is_alive() and time.monotonic() >= next_look:
                next_look = time.monotonic() + config.poll_s
                looking = threading.Thread(target=look, name="look for a release", daemon=True)
                looking.start()
    finally:
        renewals.stop()


@dataclass(slots=True)
class _Sight:
    """For how long the coordinator has not seen this node, though it answers.

    A SuperNode whose line breaks at the wrong moment may hang: it interrupts itself, and its server's thread lives on. Nothing
    on this machine tells; only the other end does.
    """

    lost_since: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, *, is_seen: bool | None) -> None:
        """What the coordinator said now; None if it cannot tell."""
        with self.lock:
            if is_seen is not False:
                self.lost_since = None
            elif self.lost_since is None:
                self.lost_since = time.monotonic()

    def is_lost(self) -> bool:
        """Whether it has lasted for too long; the count begins anew then."""
        with self.lock:
            if self.lost_since is None or time.monotonic() - self.lost_since < _UNSEEN_S:
                return False
            self.lost_since = time.monotonic()
            return True


@dataclass(slots=True)
class _Renewals:
    """At most one renewal at a time, and none for a while after one that failed.

    While it runs the runner rests: both hold a network and its lessons, and a small box has memory for one. A round that
    begins meanwhile waits for it at the coordinator.
    """

    home: Home
    supervisor: Supervisor
    child: Child | None = None
    not_before: float = 0.0

    def begin(self) -> None:
        """Start one, unless one runs or failed a moment ago."""
        if self.child is not None or time.monotonic() < self.not_before:
            return
        self.supervisor.rest("runner")
        try:
            self.child = _start_renewal(self.home)
        except OSError as error:
            _log.warning("renewal could not be started: %s", error.strerror)
            self._end(has_failed=True)

    def tend(self) -> None:
        """Notice that one has ended."""
        code = None if self.child is None else self.child.exit_code()
        if code is not None:
            _log.info("renewal ended with code %d", code)
            self._end(has_failed=code != 0)

    def stop(self) -> None:
        """End the one that runs."""
        if self.child is not None:
            self.child.stop()

    def _end(self, *, has_failed: bool) -> None:
        self.child = None
        if has_failed:  # on a full disk, say, which the next minute will not mend
            self.not_before = time.monotonic() + _RENEWAL_PAUSE_S
        self.supervisor.resume("runner")


def _look_for_release(home: Home, sight: _Sight) -> bool:
    """Install what is new.

    Returns:
        Whether styles should be renewed now: one belongs to an older body, and no round wants the cores.
    """
    try:
        news = updater.update(home)
        sight.note(is_seen=news.is_seen)
        if news.installed is not None:
            _log.info("installed release %d", news.installed.manifest.version)
        return needs_renewal(home) and not news.is_round_running
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
    waiting = [s.name for s in styles.all_styles(home).values() if s is not None and s.body != body]
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


def _start_renewal(home: Home) -> Child:
    _log.info("renewing styles for the current body")
    with open_log(home.logs, "renewal") as log:
        return Child.start("renewal", _own_command("renew", "--home", str(home.root)), environment=os.environ, log=log)


def _own_command(*words: str) -> list[str]:
    """This program in a process of its own; -P, since a folder called `models` where `up` was typed is not ours."""
    return [sys.executable, "-P", "-m", "edge_node", *words]
