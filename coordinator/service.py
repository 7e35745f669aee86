"""What the coordinator's commands do: set up, run, invite, hold rounds."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator import pki, policies
from coordinator.announce import announced
from coordinator.config import HOME_VARIABLE, Config, Home
from coordinator.endpoint import create_endpoint
from coordinator.errors import GateRefusedError, NotRunningError
from coordinator.flower import (
    FlowerControl,
    FlowerUnavailable,
    SuperlinkEndpoint,
    SuperlinkSettings,
    child_environment,
    serve_superlink,
    start_superexec,
    superlink_endpoint,
    wait_for_superlink,
)
from coordinator.publish import adopt_base
from coordinator.store import Job, Node, Role, Store
from export import settings
from export.errors import NotConfiguredError, RefusedError, SfumatoError, UsageError
from export.files import held, read_bounded
from export.flower_bundle import build_fab
from export.invite import Invite, is_host
from export.ledger import Ledger
from export.processes import Child
from export.signing import Trust
from export.supervisor import Supervisor, open_log, stop_signal

_TICK_S: Final = 0.5
_PATIENCE_S: Final = 90.0
"""How long a run may take until its server part is at work: it imports torch first."""
_LOST_S: Final = 3.0
"""How long one that was at work may be seen not to be; Flower's supervisor may be handing over to another."""
_SEEN_S: Final = 3.0
_STARTS_MAX: Final = 5
"""How often a run is started anew without a round coming to an end."""

_log = logging.getLogger(__name__)


def init(home: Home, name: str, host: str, port: int) -> None:
    """Make authority, keys and settings, and publish the base body as release 1.

    Raises:
        UsageError: there is a coordinator here already, or the name or the host cannot be one.
    """
    if home.config_file.exists():
        raise UsageError(f"there is a coordinator in {home.root} already", advice="Choose another --home.")
    if not name.strip() or len(name) > 60 or not name.isprintable():
        raise UsageError(f"{name!r} cannot be a federation's name", advice="Use 1 to 60 printable characters.")
    if not is_host(host):
        raise UsageError(
            f"{host!r} cannot be this machine's name or address",
            advice="Use a name of letters, digits, dots and dashes, or an IP address; the port is given with --port.",
        )
    home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    pki.create(home, host)
    Trust(name, (pki.release_key(home).public_key().public_bytes_raw(),)).save(home.trust_file)
    config = Config(name=name, host=host, port=port)
    Store(home.database)
    adopt_base(home, name, config.modality)
    policies.begin(home, config)
    settings.save(home.config_file, config)  # last: with it, it is set up


def run(home: Home, on_ready: Callable[[int], None]) -> None:
    """Run until SIGTERM or Ctrl-C: the SuperLink with the public port, and the runner of rounds.

    Raises:
        RefusedError: it runs already.
        NotConfiguredError: the host in the settings cannot be one.
    """
    place, config = _superlink_settings(home), home.config()
    if not is_host(config.host):
        raise NotConfiguredError(
            f"host = {config.host!r} cannot be this machine's name or address",
            advice=f"Write a name of letters, digits, dots and dashes, or an IP address, into {home.config_file}.",
        )
    supervisor, holder = Supervisor(), _Holder(home)
    with held(home.up_lock, "this coordinator"), stop_signal() as stop:
        if pki.require_host(home, config.host):
            _log.info("the server certificate was made anew, for %s", config.host)
        try:
            endpoint = _start(home, place, supervisor)
            tell_flower(home)
            with announced(config.host, endpoint.public_port) if _is_to_announce(config) else nullcontext():
                on_ready(endpoint.public_port)
                while not stop.wait(_TICK_S):
                    supervisor.tend()
                    holder.tend()
        finally:
            supervisor.stop()


def _is_to_announce(config: Config) -> bool:
    """Whether there is a network to say it on: a coordinator for this machine alone has none."""
    return config.announce and config.host != "localhost" and not config.host.startswith("127.")


def tell_flower(home: Home) -> None:
    """Have Flower know exactly the artists who are members: after a restore it may know none, and a kill may have come between
    the end of a membership and Flower's hearing of it.
    """
    store = Store(home.database)
    with _control(home) as control:
        known = {node.node_id for node in control.nodes() if node.status != "unregistered"}
        for node in store.nodes_ever():
            if node.revoked is not None and node.node_id in known:
                control.unregister_node(node.node_id)
            elif node.revoked is None and node.role == "artist" and node.node_id not in known:
                store.renumber(node.node_id, control.register_node(node.keys.flower.encode()))


def serve(home: Home) -> None:
    """The child that holds the SuperLink and the public port."""
    place = _superlink_settings(home)

    def register(public_key: bytes) -> int:
        with _control(home) as control:
            return control.register_node(public_key)

    def seen() -> frozenset[int] | None:
        try:
            with _control(home) as control:
                return control.online_nodes()
        except SfumatoError:  # it is just starting
            return None

    serve_superlink(place, create_endpoint(home, register, _Lasting(seen, _SEEN_S)))


@dataclass(slots=True)
class _Lasting:
    """What a function said, for a while: many nodes ask the same within a second."""

    ask: Callable[[], frozenset[int] | None]
    lasts_s: float
    _said: frozenset[int] | None = None
    _at: float = float("-inf")

    def __call__(self) -> frozenset[int] | None:
        if time.monotonic() - self._at > self.lasts_s:
            self._said, self._at = self.ask(), time.monotonic()
        return self._said


def serve_command(home: Home) -> list[str]:
    """The command of `serve`; -P, since a folder called `models` where `up` was typed is not ours."""
    return [sys.executable, "-P", "-m", "coordinator", "serve", "--home", str(home.root)]


def invite(home: Home, alias: str, role: Role, lasts_s: float) -> str:
    """A new invite as the text to hand over.

    Raises:
        NotRunningError: the port is not known before the first `up`.
        UsageError: the name cannot be one, or is a member's already.
    """
    config = home.config()
    if not alias.strip() or len(alias) > 40 or not alias.isprintable():
        raise UsageError(f"{alias!r} cannot be a member's name", advice="Use 1 to 40 printable characters.")
    store = Store(home.database)
    if any(node.alias == alias for node in store.nodes()):
        raise UsageError(f"there is a member called {alias!r} already", advice="Choose another name for the invite.")
    port = config.port or _endpoint(home).public_port
    made = Invite.new(pki.ca_der(home), config.host, port)
    store.add_invite(made.secret, alias, role, time.time() + lasts_s)
    return str(made)


def take_invites_back(home: Home, alias: str) -> int:
    """Make worthless whatever invites of that name were not used yet; how many there were.

    Raises:
        UsageError: there was none.
    """
    taken = Store(home.database).revoke_invites(alias, time.time())
    if not taken:
        raise UsageError(
            f"there is no unused invite for {alias!r}",
            advice="See: sfumato-coordinator nodes. A member is ended with: sfumato-coordinator nodes revoke NODE",
        )
    return taken


def end_membership(home: Home, name: str) -> Node:
    """End a membership now: the node is asked nothing more, and neither its requests nor its updates are taken.

    Args:
        home: the coordinator's folder.
        name: the member's name, or its number.

    Raises:
        UsageError: no member is called so.
    """
    store = Store(home.database)
    member = next((n for n in store.nodes() if name in (n.alias, str(n.node_id))), None)
    if member is None:
        raise UsageError(f"there is no member called {name!r}", advice="See: sfumato-coordinator nodes")
    store.revoke(member.node_id, time.time())  # first, so that a kill after it leaves nobody in who was put out
    Ledger(home.ledger_file).append(
        {"what": "revoked", "alias": member.alias, "role": member.role, "node": str(member.node_id)}
    )
    if member.role == "artist" and is_running(home):
        with _control(home) as control:
            control.unregister_node(member.node_id)
    return member


def online(home: Home) -> frozenset[int]:
    """Node ids that are online now; none while the coordinator is not running."""
    if not is_running(home):
        return frozenset()
    with _control(home) as control:
        return control.online_nodes()


def is_running(home: Home) -> bool:
    """Whether `up` is running for this folder."""
    return superlink_endpoint(_superlink_settings(home)) is not None


def served_version(home: Home) -> int:
    """Version of the release nodes are offered."""
    return int(read_bounded(home.current_file, 32))


def hold_rounds(home: Home, count: int, say: Callable[[str], None]) -> list[int]:
    """Ask for rounds, which `up` holds, and follow them to their end.

    They are held whatever happens to this process, but for Ctrl-C, which calls off what is left of them.

    Returns:
        The numbers of the rounds that were held.

    Raises:
        NotRunningError: `up` is not running.
        RefusedError: rounds are being held already, or the policy was changed and not published.
        SfumatoError: they were given up, or called off elsewhere.
    """
    _endpoint(home)
    policies.require_published(home)
    store = Store(home.database)
    job = store.add_job(count)
    try:
        while (now := store.job(job.job)).state == "open":
            say(_progress(store, job.job, is_up=is_running(home)))
            time.sleep(_TICK_S)
    except BaseException:
        store.close_job(job.job, "stopped", "called off", time.time())
        raise
    numbers = [r.round for r in store.rounds_of(job.job)]
    if not numbers or now.state != "done":
        raise SfumatoError(f"the rounds did not end well: {now.detail or now.state}", advice=_see_log(home))
    return numbers


def require_success(home: Home, numbers: list[int]) -> None:
    """Raise if no round led to a release; a single refused round among others is a stated outcome and no failure.

    Raises:
        GateRefusedError: the last one was refused.
        SfumatoError: the last one failed.
    """
    rounds = [r for r in Store(home.database).rounds() if r.round in numbers]
    if not any(r.state == "published" for r in rounds):
        kind = GateRefusedError if rounds[-1].state == "refused" else SfumatoError
        raise kind(
            f"no round led to a release; the last one ended as {rounds[-1].state}: {rounds[-1].detail}",
            advice="The current release stays in use. Hold another round.",
        )


@dataclass(slots=True)
class _Holder:
    """Has the rounds that were asked for held, by a Flower run that is started again as often as it is lost.

    A run whose process was killed is called running by Flower for most of a minute. Ours holds a lock while it is at work, so
    that a lock let go of with rounds still to be held says the same at once.
    """

    home: Home
    started: int | None = None
    since: float = 0.0
    was_seen: bool = False

    def tend(self) -> None:
        """Start a run if rounds are to be held and nobody is at it; stop one that nobody wants any more."""
        store = Store(self.home.database)
        job = store.open_job()
        if job is None:
            self._stop()
            return
        is_at_work = _is_held(self.home.rounds_lock)
        self.was_seen = self.was_seen or is_at_work
        patience_s = _LOST_S if self.was_seen else _PATIENCE_S
        if is_at_work or (self.started is not None and time.monotonic() - self.since < patience_s):
            if is_at_work:
                self.since = time.monotonic()
            return
        if job.starts >= _STARTS_MAX:
            store.close_job(job.job, "failed", f"given up after {job.starts} starts without a round", time.time())
            return
        self._start(store, job)

    def _start(self, store: Store, job: Job) -> None:
        with suppress(FlowerUnavailable), _control(self.home) as control:
            if job.run is not None:
                with suppress(SfumatoError):
                    control.stop_run(job.run)
            run = control.start_run(build_fab(), {"rounds": job.wanted})
            store.note_run(job.job, run)
            self.started, self.since, self.was_seen = run, time.monotonic(), False
            _log.info("Flower run %d holds the rounds that were asked for (start %d)", run, job.starts + 1)

    def _stop(self) -> None:
        if self.started is not None:
            with suppress(SfumatoError), _control(self.home) as control:
                control.stop_run(self.started)
            self.started = None


def _is_held(lock: Path) -> bool:
    try:
        with held(lock, "a run of rounds"):
            return False
    except RefusedError:
        return True


def _see_log(home: Home) -> str:
    return f"The log says more: {home.logs / 'rounds.log'}"


def _start(home: Home, place: SuperlinkSettings, supervisor: Supervisor) -> SuperlinkEndpoint:
    environment = {**os.environ, HOME_VARIABLE: str(home.root)}
    superlink_log, rounds_log = open_log(home.logs, "superlink"), open_log(home.logs, "rounds")

    def start_superlink() -> Child:
        return Child.start(
            "superlink", serve_command(home), environment=child_environment(place.flwr_home, environment), log=superlink_log
        )

    child = supervisor.keep("superlink", start_superlink)
    endpoint = wait_for_superlink(place, child)
    supervisor.keep("superexec", lambda: start_superexec(place, endpoint.loopback_port, environment, log=rounds_log))
    return endpoint


def _progress(store: Store, job: int, *, is_up: bool) -> str:
    if not is_up:
        return "the coordinator is down; the rounds go on when it is up again"
    rounds = store.rounds_of(job)
    if not rounds:
        return "waiting for the process that holds rounds"
    now = rounds[-1]
    return f"round {now.round}: {now.state}, {now.detail or 'beginning'} ({time.time() - now.started:.0f} s)"


def _superlink_settings(home: Home) -> SuperlinkSettings:
    config = home.config()
    return SuperlinkSettings(
        home=home.flower,
        certificate_chain=home.server_certificate,
        private_key=home.server_key,
        public_host=config.bind,
        public_port=config.port,
    )


def _endpoint(home: Home) -> SuperlinkEndpoint:
    endpoint = superlink_endpoint(_superlink_settings(home))
    if endpoint is None:
        raise NotRunningError("the coordinator is not running", advice="Start it with: sfumato-coordinator up")
    return endpoint


def _control(home: Home) -> FlowerControl:
    return FlowerControl(_endpoint(home).loopback_port)
