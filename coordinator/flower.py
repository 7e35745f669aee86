"""The coordinator's side of Flower: everything that knows how Flower 1.41 works inside is in this file.

    serve_superlink   one process: Flower's whole API on loopback, and on the public TLS port only what nodes need
    FlowerControl     registers nodes, starts and watches runs, over loopback
    start_superexec   the process that starts the server part of a run
    bound_replies     for the server part: what a reply may cost in memory and time

Why the SuperLink is embedded: Flower serves the nodes' API and the one that starts runs on a single port, and the
second is not authenticated. Whoever may reach that port may run code on the coordinator, so the public port must be
another, and a filter stands before it (`public_port.py`).

Fixed here, whatever the settings say: nodes sign in with a registered key, app processes are separate and prove
themselves with a secret, the state is in SQLite (with both, killing the SuperLink in mid-round loses nothing), nothing
is installed at run time. Private functions of Flower in use, held to the pin by `tests/coordinator/test_flower.py`:
`create_app`, `SuperLinkLifespan`, `SuperLinkLifespanConfig`, `load_control_authn_plugin`, `ControlHttpClient`,
`FlowerError`, `user_config_to_proto`, `pull_objects` and `inflate_object_from_contents` as `http_grid` calls them, the
metadata of a deflated `Array`.

This file refuses to know what a round is, what joins, and what a release is.
"""

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final, Literal, Self

import httpx
import uvicorn
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.public_port import public_filter
from export.errors import IntegrityError, RefusedError, SfumatoError, UnreachableError
from export.files import canonical_json, read_bounded, write_json
from export.flower_bundle import build_fab, fab_digest
from export.processes import Child, child_environment, installed_command, load_or_create_secret
from export.weights import BODY_MAX_BYTES

__all__ = [
    "FlowerControl",
    "FlowerNode",
    "FlowerUnavailable",
    "NodeKeyRefused",
    "RunState",
    "RunUnknown",
    "SuperlinkEndpoint",
    "SuperlinkSettings",
    "bound_replies",
    "build_fab",
    "child_environment",
    "fab_digest",
    "serve_superlink",
    "start_superexec",
    "superexec_command",
    "superlink_endpoint",
    "wait_for_superlink",
]

LOOPBACK: Final = "127.0.0.1"
_SHUTDOWN_S: Final = 5
_PORT_PATIENCE_S: Final = 15.0
"""How long a port may stay taken by whoever had it last: a predecessor that is still ending, a connection."""
_ENDPOINT_MAX_BYTES: Final = 4096
_REPLY_MAX_OBJECTS: Final = 256  # ours have about ten, and one more for every 5 MiB of body
_REPLY_MAX_BYTES: Final = BODY_MAX_BYTES + 2**20
_REPLY_MAX_S: Final = 60.0
"""How long the parts of an announced reply may be on their way. Other replies wait as long, so not for hours."""


class FlowerUnavailable(UnreachableError):  # noqa: N818  (reads as a sentence, like its two sisters)
    """Flower's SuperLink does not answer, or answers with an error."""

    code = "flower-unavailable"


class NodeKeyRefused(RefusedError):  # noqa: N818
    """A node's public key is not one we register."""

    code = "node-key-refused"


class RunUnknown(SfumatoError):  # noqa: N818
    """The SuperLink has no run of that number."""

    code = "run-unknown"


# --- The embedded SuperLink ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SuperlinkSettings:
    """Where the SuperLink keeps its state and listens.

    A port of 0 is chosen at the first start and kept from then on (in `superlink.json`), so that nodes and a running
    server part find a restarted SuperLink where they left it.
    """

    home: Path
    certificate_chain: Path
    private_key: Path
    public_host: str = "0.0.0.0"  # noqa: S104  (the filter stands before it)
    public_port: int = 0
    loopback_port: int = 0
    connections_max: int = 1024
    silence_max_s: int = 15

    @property
    def flwr_home(self) -> Path:
        """Flower's own folder: installed bundles."""
        return self.home / "flwr"

    @property
    def database(self) -> Path:
        """Runs, nodes, messages and objects."""
        return self.home / "superlink.sqlite"

    @property
    def secret_file(self) -> Path:
        """What `flower-superexec` proves itself with."""
        return self.home / "superexec.secret"

    @property
    def endpoint_file(self) -> Path:
        """Where the ports are written down; see `superlink_endpoint`."""
        return self.home / "superlink.json"


@dataclass(frozen=True, slots=True)
class SuperlinkEndpoint:
    """A SuperLink that is up: both ports listen."""

    loopback_port: int
    public_port: int
    pid: int


def serve_superlink(settings: SuperlinkSettings, endpoint: ASGIApp) -> None:
    """Serve until SIGTERM or SIGINT.

    Call it in a process of its own, started with `child_environment(settings.flwr_home)`.
    `endpoint` answers below `/sfumato/` on the public port. When both ports listen, `superlink.json` in the home names
    them and this process, and one line of the same JSON goes to stdout.

    Raises:
        FlowerUnavailable: the environment is not the children's, a port is taken, or the server stopped by itself.

    """
    _require_child_environment(settings.flwr_home)
    last = _read_endpoint(settings.endpoint_file) or SuperlinkEndpoint(0, 0, 0)
    with (
        _listen(LOOPBACK, settings.loopback_port or last.loopback_port) as loopback,
        _listen(settings.public_host, settings.public_port or last.public_port) as public,
    ):
        up = SuperlinkEndpoint(loopback.getsockname()[1], public.getsockname()[1], os.getpid())
        flower = _flower_app(settings, up.loopback_port)
        inside = _inside_server(flower)
        outside = _outside_server(settings, public_filter(flower, endpoint))
        asyncio.run(_serve(inside, loopback, outside, public, lambda: _announce(settings.endpoint_file, up)))


def superlink_endpoint(settings: SuperlinkSettings) -> SuperlinkEndpoint | None:
    """Return the ports of the SuperLink that runs now, or None."""
    endpoint = _read_endpoint(settings.endpoint_file)
    # Both: a container hands out the same process ids after every start, and a port may have gone to another program.
    return endpoint if endpoint is not None and _is_alive(endpoint.pid) and _answers(endpoint) else None


def wait_for_superlink(settings: SuperlinkSettings, child: Child, timeout_s: float = 60.0) -> SuperlinkEndpoint:
    """Return the ports once `child`, which runs `serve_superlink`, listens on both.

    Raises:
        FlowerUnavailable: it ended first, or took longer than `timeout_s`.

    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        endpoint = superlink_endpoint(settings)
        if endpoint is not None:
            return endpoint
        if child.wait(0.1) is not None:
            raise FlowerUnavailable(
                f"the SuperLink stopped while starting (exit code {child.exit_code()})",
                advice=f"Read the log of {child.name}; a port may be taken or the certificate unreadable.",
            )
    raise FlowerUnavailable(f"the SuperLink was not up within {timeout_s:.0f} s", advice="Read the SuperLink's log.")


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the signals to us: two of them share this process."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


def _require_child_environment(flwr_home: Path) -> None:
    """Fail closed: Flower reads its telemetry switch once, at import, which is before anything here could set it."""
    wanted = child_environment(flwr_home, {})
    wrong = sorted(name for name in wanted if name.startswith("FLWR_") and os.environ.get(name) != wanted[name])
    if wrong:
        raise FlowerUnavailable(
            f"the SuperLink was started in another environment than a child's: {', '.join(wrong)}",
            advice="Start it with `sfumato-coordinator up`.",
        )


class _Impatient(H11Protocol):
    """HTTP for strangers: the head of a request has a greatest length, which is h11's doing, and a time to arrive in.

    uvicorn waits for ever for a connection's first request, and for one that has begun to be said; and httptools, which it
    would rather use, keeps a head whole however long it is. So as few as ``connections_max`` that say nothing would lock
    everybody out, and a single one that goes on and on would fill the memory.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch = self.loop.call_later(self.timeout_keep_alive, self._look, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self, before: object) -> None:
        """Hang up if no request was under way since the last look, and none is now."""
        is_silent = self.cycle is before and (self.cycle is None or self.cycle.response_complete)
        if is_silent:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(self.timeout_keep_alive, self._look, self.cycle)


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Bind that port and no other, for it is written in invites and known to running processes; 0 takes any."""
    deadline = time.monotonic() + _PORT_PATIENCE_S
    while True:
        try:
            listener = socket.create_server((host, port), family=_family(host), backlog=512)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise FlowerUnavailable(
                    f"port {port} of {host} cannot be used: {error.strerror}",
                    advice="Stop the program that has it, and start again. Artists' machines know this port.",
                ) from error
        time.sleep(0.2)
    with listener:
        yield listener


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _flower_app(settings: SuperlinkSettings, loopback_port: int) -> ASGIApp:
    """Return Flower's own app, with node authentication on and no way to install anything."""
    # Imported here: a server's worth of modules that `FlowerControl` has no use for.
    from flwr.common.constant import (  # noqa: PLC0415
        ISOLATION_MODE_PROCESS,
        TRANSPORT_TYPE_GRPC_RERE,
    )
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan  # noqa: PLC0415
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin  # noqa: PLC0415
    from flwr.superlink.main import create_app  # noqa: PLC0415

    config = SuperLinkLifespanConfig(
        control_address=f"{LOOPBACK}:{loopback_port}",
        health_server_address=None,
        host=LOOPBACK,
        port=loopback_port,
        insecure=True,  # On loopback only; the public port has TLS of its own.
        certificates=None,
        superexec_auth_secret=load_or_create_secret(settings.secret_file),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,  # Flower's command line refuses this without TLS: hence our own config.
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(settings.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


def _inside_server(flower: ASGIApp) -> _Server:
    return _Server(uvicorn.Config(flower, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=_SHUTDOWN_S))


def _outside_server(settings: SuperlinkSettings, app: ASGIApp) -> _Server:
    """Return the public listener: TLS 1.3, a bound on connections, heads and silence, no lifespan of its own."""
    config = uvicorn.Config(
        app,
        http=_Impatient,
        timeout_keep_alive=settings.silence_max_s,
        lifespan="off",
        log_config=None,  # Logging is the program's business.
        access_log=False,  # A line per poll of every node says nothing.
        ws="none",
        proxy_headers=False,  # We stand behind no proxy, so what a peer claims to be is not its address.
        server_header=False,
        limit_concurrency=settings.connections_max,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        ssl_certfile=settings.certificate_chain,
        ssl_keyfile=settings.private_key,
    )
    config.load()
    if config.ssl is None:
        raise FlowerUnavailable("the public port has no TLS", advice="Run `sfumato-coordinator init` again.")
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return _Server(config)


async def _serve(
    inside: _Server, loopback: socket.socket, outside: _Server, public: socket.socket, announce: Callable[[], None]
) -> None:
    """Run both servers until a signal, or until one of them ends; the public one starts last."""
    servers = (inside, outside)

    def leave() -> None:
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, leave)
    tasks = [asyncio.create_task(inside.serve([loopback]))]
    await _started(inside, tasks[0])
    tasks.append(asyncio.create_task(outside.serve([public])))
    await _started(outside, tasks[1])
    announce()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    leave()
    await asyncio.gather(*tasks)


async def _started(server: _Server, task: asyncio.Task[None]) -> None:
    while not server.started:
        if task.done():
            task.result()
            raise FlowerUnavailable("the SuperLink's server ended while starting", advice="Read the SuperLink's log.")
        await asyncio.sleep(0.02)


def _announce(file: Path, endpoint: SuperlinkEndpoint) -> None:
    write_json(file, asdict(endpoint))
    sys.stdout.buffer.write(canonical_json(asdict(endpoint)) + b"\n")
    sys.stdout.flush()


def _read_endpoint(file: Path) -> SuperlinkEndpoint | None:
    try:
        fields = json.loads(read_bounded(file, _ENDPOINT_MAX_BYTES))
        return SuperlinkEndpoint(int(fields["loopback_port"]), int(fields["public_port"]), int(fields["pid"]))
    except (OSError, IntegrityError, ValueError, KeyError, TypeError):
        return None  # Not written yet, or by a hand that erred: it is written anew at the next start.


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _answers(endpoint: SuperlinkEndpoint) -> bool:
    try:
        with httpx.Client(trust_env=False, timeout=2.0) as client:
            return client.get(f"http://{LOOPBACK}:{endpoint.loopback_port}/health").is_success
    except httpx.HTTPError:
        return False


# --- The server part of a run ----------------------------------------------------------------------------------------


def superexec_command(settings: SuperlinkSettings, loopback_port: int) -> list[str]:
    """Return the command that waits for runs and starts `flwr-serverapp`, one process a run, for each.

    Those processes inherit its environment, which is how `SFUMATO_COORDINATOR_HOME` reaches `coordinator.server_app`.
    """
    return [
        installed_command("flower-superexec"),
        "--insecure",
        "--runtime-api-address",
        f"{LOOPBACK}:{loopback_port}",
        "--superexec-auth-secret-file",
        str(settings.secret_file),
    ]


def start_superexec(
    settings: SuperlinkSettings, loopback_port: int, inherited: Mapping[str, str], log: IO[bytes] | int | None = None
) -> Child:
    """Start the runner of server parts; it outlives the SuperLink and finds it again on the same port."""
    return Child.start(
        "flower-superexec",
        superexec_command(settings, loopback_port),
        environment=child_environment(settings.flwr_home, inherited),
        log=log,
    )


def bound_replies() -> None:
    """Have this process's `Grid` bound what a reply may cost: memory when it is fetched and put together, and time.

    An array names its chunks by number and may name one again and again: what is a megabyte on the wire could ask for
    all the memory there is. Such a reply leaves `Grid.pull_messages` as a `ValueError`. A node may also announce a reply
    and keep its parts back, or announce parts without end; Flower would ask for two hours. Such a reply becomes a message
    with an error, as one that Flower gave up on.
    """
    from flwr.superlink.grid import http_grid  # noqa: PLC0415  (for the server part alone)

    http_grid.pull_objects = _pull_bounded  # type: ignore[attr-defined, assignment]
    http_grid.inflate_object_from_contents = _inflate_bounded  # type: ignore[attr-defined, assignment]


def _pull_bounded(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
    """Do as Flower's function of that name does, within bounds for the parts' number and size and for the time."""
    if len(object_ids) > _REPLY_MAX_OBJECTS:
        raise ObjectPullError(object_ids[0], f"{len(object_ids)} parts are too many")
    received, lock = 0, threading.Lock()

    def counted(object_id: str) -> bytes:
        nonlocal received
        content = pull_object_fn(object_id)
        with lock:
            received += len(content)
            if received > _REPLY_MAX_BYTES:
                raise ObjectPullError(object_id, "the parts are too large")
        return content

    return pull_objects(object_ids, counted, max_time=_REPLY_MAX_S)


def _inflate_bounded(object_id: str, object_contents: dict[str, bytes]) -> InflatableObject:
    """Do as Flower's function of that name does, within a bound for all arrays of the object together."""
    if sum(_joined_bytes(content, object_contents) for content in object_contents.values()) > BODY_MAX_BYTES:
        raise ValueError("the reply is too large")
    return inflate_object_from_contents(object_id, object_contents)


def _joined_bytes(content: bytes, contents: Mapping[str, bytes]) -> int:
    """Return how large the chunks of an array are together, each as often as it is named; 0 for what is no array."""
    kind, chunk_ids, _ = get_object_head_values_from_object_content(content)
    if kind != Array.__qualname__:
        return 0
    return sum(len(contents[chunk_ids[index]]) for index in json.loads(get_object_body(content, Array))["arraychunk_ids"])


# --- Control ---------------------------------------------------------------------------------------------------------

RunPhase = Literal["pending", "running", "finished", "failed", "stopped"]

_ENDED: Final[Mapping[str, RunPhase]] = {"completed": "finished", "failed": "failed", "stopped": "stopped"}


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run stands. `finished` means the server part returned, not that it succeeded: that is in our round log."""

    phase: RunPhase
    details: str

    @property
    def is_over(self) -> bool:
        """Whether the phase will not change any more."""
        return self.phase in {"finished", "failed", "stopped"}


@dataclass(frozen=True, slots=True)
class FlowerNode:
    """A registered node. `public_key` is PEM, as the node sends it."""

    node_id: int
    public_key: bytes
    status: Literal["registered", "online", "offline", "unregistered"]


class FlowerControl:
    """The SuperLink's control API, over loopback. Usable from several threads; close it, or use it as a context."""

    def __init__(self, loopback_port: int, timeout_s: float = 10.0) -> None:
        """Connect to nobody yet; every call gives up after `timeout_s`."""
        self._client = ControlHttpClient(f"http://{LOOPBACK}:{loopback_port}")
        self._client._client.close()  # noqa: SLF001
        # trust_env=False: in a school, a proxy from the environment would be asked for our own loopback.
        self._client._client = httpx.Client(timeout=timeout_s, trust_env=False)  # noqa: SLF001

    def register_node(self, public_key: bytes) -> int:
        """Let the holder of a key sign in; return the node's number, the same one if the key is registered already.

        Args:
            public_key: EC P-384, as PEM or as an OpenSSH line.

        Raises:
            NodeKeyRefused: another kind of key, or one that was unregistered (Flower never takes such a key back).
            FlowerUnavailable: the SuperLink did not answer.

        """
        pem = _canonical_key(public_key)
        try:
            with _translated("register a node", ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE):
                return self._client.RegisterNode(RegisterNodeRequest(public_key=pem)).node_id
        except _Expected:
            return self._node_of(pem).node_id

    def unregister_node(self, node_id: int) -> None:
        """Shut a node out for good; its key is never accepted again. Nothing happens if it is out already."""
        with suppress(_Expected), _translated("unregister a node", ApiErrorCode.NODE_NOT_FOUND):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> tuple[FlowerNode, ...]:
        """Return every node that was ever registered."""
        with _translated("list the nodes"):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return tuple(FlowerNode(node.node_id, node.public_key, _node_status(node.status)) for node in found)

    def online_nodes(self) -> frozenset[int]:
        """Return the numbers of the nodes that would get a message now."""
        return frozenset(node.node_id for node in self.nodes() if node.status == "online")

    def start_run(self, fab: bytes, run_config: Mapping[str, str | int | float | bool]) -> int:
        """Queue a run of a bundle; return its number. `run_config` may only name what the bundle's own config names."""
        request = StartRunRequest(
            fab=Fab(hash_str=fab_digest(fab), content=fab), override_config=user_config_to_proto(dict(run_config))
        )
        with _translated("start a run"):
            run_id = self._client.StartRun(request).run_id
        if not run_id:
            raise FlowerUnavailable("Flower took no run", advice="The bundle is too large; reinstall sfumato.")
        return run_id

    def run_status(self, run_id: int) -> RunState:
        """Return how a run stands. Asking after one that is over also frees what it left in the database.

        Raises:
            RunUnknown: no such run.
            FlowerUnavailable: the SuperLink did not answer.

        """
        with _run_known(run_id), _translated("ask after a run", ApiErrorCode.RUN_ID_NOT_FOUND):
            status = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return _run_state(status.status, status.sub_status, status.details)

    def stop_run(self, run_id: int) -> None:
        """End a run; nothing happens if it is over.

        Raises:
            RunUnknown: no such run.
            FlowerUnavailable: the SuperLink did not answer.

        """
        if self.run_status(run_id).is_over:
            return
        with suppress(_Expected), _translated("stop a run", ApiErrorCode.RUN_ALREADY_FINISHED):
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        """Return this control."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the connections."""
        self.close()

    def _node_of(self, pem: bytes) -> FlowerNode:
        for node in self.nodes():
            if node.public_key == pem and node.status != "unregistered":
                return node
        raise NodeKeyRefused(
            "this key belongs to a node that was shut out", advice="Make a new key and join with a new invitation."
        )


class _Expected(Exception):  # noqa: N818  (an answer, not an error)
    """Flower refused with the code the caller had named."""


@contextmanager
def _translated(task: str, expected: ApiErrorCode | None = None) -> Iterator[None]:
    """Turn what Flower's client raises into `FlowerUnavailable`, or `_Expected` for the one code that is an answer."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        refusal = FlowerError.from_json(error.response.text)
        if expected is not None and refusal is not None and refusal.code == expected:
            raise _Expected from error
        reason = f"HTTP {error.response.status_code}" if refusal is None else refusal.message
        raise FlowerUnavailable(f"Flower would not {task}: {reason}", advice="Read the SuperLink's log.") from error
    except (httpx.HTTPError, ValueError) as error:
        raise FlowerUnavailable(
            f"no answer from the SuperLink, wanted to {task}: {type(error).__name__}",
            advice="Is `sfumato-coordinator up` running? Read the SuperLink's log.",
        ) from error


@contextmanager
def _run_known(run_id: int) -> Iterator[None]:
    try:
        yield
    except (_Expected, KeyError) as error:
        raise RunUnknown(f"Flower knows no run {run_id}", advice="It may belong to another home folder.") from error


def _run_state(status: str, sub_status: str, details: str) -> RunState:
    """Translate Flower's two words into one of ours; an unfamiliar one is an error, not a guess."""
    if status in {"pending", "starting"}:
        return RunState("pending", details)
    if status == "running":
        return RunState("running", details)
    if status == "finished" and sub_status in _ENDED:
        return RunState(_ENDED[sub_status], details)
    raise FlowerUnavailable(f"unfamiliar run status {status}:{sub_status}", advice="Install the pinned Flower version.")


def _node_status(status: str) -> Literal["registered", "online", "offline", "unregistered"]:
    match status:
        case "registered" | "online" | "offline" | "unregistered":
            return status
        case _:
            raise FlowerUnavailable(f"unfamiliar node status {status}", advice="Install the pinned Flower version.")


def _canonical_key(public_key: bytes) -> bytes:
    """Return a P-384 public key in the one spelling Flower compares: PEM SubjectPublicKeyInfo."""
    load = serialization.load_pem_public_key if public_key.startswith(b"-----") else serialization.load_ssh_public_key
    try:
        key = load(public_key)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise NodeKeyRefused("not an EC P-384 public key", advice="Run `sfumato join` again; it makes the right key.")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
