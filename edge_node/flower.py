"""The artist's side of Flower: everything that knows how Flower 1.41 works inside is in this file.

    start_supernode   the process that dials the coordinator, with the node's key; it opens a port on loopback only
    run_supernode     what is in that process: Flower's own command, with the coordinator's clock
    run_tasks         takes each message from it and calls the program installed here
    correct_clock     has Flower read the time from us, in whichever process it is called

The runner stands in for Flower's own, which would unpack and execute whatever bundle the coordinator pushes, in a new
process for every message. Ours never unpacks one: a bundle is a name to compare. And nothing the installed program
raises reaches the coordinator as text, since a message of an exception may name a work.

Flower refuses a node whose clock is 5 s fast or 305 s slow, and messages made before February 2025. It reads every time it
signs or checks from one function, `flwr.supercore.date.now`, and that is the one `correct_clock` puts another in the place of.

Private functions of Flower in use, held to the pin by `tests/edge_node/test_flower.py`: `pull_task_input`,
`push_message`, `push_task_output`, `RuntimeHttpClient` and three of its interceptors, `flwr.supercore.date.now` and that it
is Flower's only clock, the function behind `flower-supernode`.
"""

import datetime as dt
import hmac
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore import date as flower_date
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from export.errors import NotConfiguredError
from export.files import digest_of
from export.flower_bundle import FabDigest
from export.processes import Child, child_environment, load_or_create_secret

__all__ = [
    "APP_FAILED",
    "OTHER_APP",
    "RunnerRefused",
    "SupernodeSettings",
    "child_environment",
    "correct_clock",
    "run_supernode",
    "run_tasks",
    "start_supernode",
    "supernode_command",
]

LOOPBACK: Final = "127.0.0.1"
OTHER_APP: Final = "another-app"
APP_FAILED: Final = "app-failed"
"""The only two reasons a node ever gives to a coordinator."""

_log = logging.getLogger(__name__)

# Flower's node looks for new messages every 3 s, so polling faster would win nothing and cost a percent of a core.
_IDLE_POLL_S: Final = 0.25
_BACKOFF_MAX_S: Final = 10.0
# Flower gives a task up after two missed beats of 30 s.
_HEARTBEAT_S: Final = 10.0
_CALL_TIMEOUT_S: Final = 30.0
_TASK_TYPE: Final = "flwr-clientapp"
_ACQUIRE: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})


class RunnerRefused(NotConfiguredError):  # noqa: N818
    """The SuperNode does not accept this runner: another secret, or another version of Flower."""

    code = "runner-refused"


@dataclass(frozen=True, slots=True)
class SupernodeSettings:
    """What a SuperNode needs to know.

    `port` is its port on loopback, from `export.processes.free_port`. Keep it over restarts, since the runner knows it,
    and take a new one for both when the SuperNode ends at once.
    """

    home: Path
    superlink: str
    """The coordinator, as `host:port`."""
    root_certificates: Path
    private_key: Path
    """EC P-384 in OpenSSH format, without passphrase."""
    port: int
    node_home: Path
    """This node's folder: the note of the coordinator's time is in it."""

    @property
    def flwr_home(self) -> Path:
        """Flower's own folder."""
        return self.home / "flwr"

    @property
    def secret_file(self) -> Path:
        """What the runner proves itself with."""
        return self.home / "runner.secret"

    @property
    def runtime_address(self) -> str:
        """Where the runner finds the SuperNode."""
        return f"{LOOPBACK}:{self.port}"


def supernode_command(settings: SupernodeSettings) -> list[str]:
    """Return the command that dials the coordinator; TLS and the node's key are not optional."""
    return [
        *(sys.executable, "-P", "-m", "edge_node.supernode", str(settings.node_home)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(settings.secret_file)),
        *("--root-certificates", str(settings.root_certificates)),
        *("--superlink", settings.superlink),
        *("--auth-supernode-private-key", str(settings.private_key)),
        *("--host", LOOPBACK),
        *("--port", str(settings.port)),
    ]


def start_supernode(settings: SupernodeSettings, inherited: Mapping[str, str], log: IO[bytes] | int | None = None) -> Child:
    """Start the SuperNode in its own process group. It waits for the coordinator for ever and reconnects by itself.

    It ends at once with code 1 when the coordinator does not know its key. And in the same way for up to a minute when its
    predecessor was killed (or stopped in the instant of signing in) and could not sign out, since a coordinator takes a
    node for online until it misses two heartbeats of 30 s (flwr 1.41 common/constant.py): start it again until then before
    believing that the key was refused.

    One that is shut out while it runs may hang instead of ending (flwr 1.41 interrupts itself twice, and its server
    thread lives on), so an exit is not the only sign: ask the coordinator.
    """
    load_or_create_secret(settings.secret_file)
    return Child.start(
        "flower-supernode",
        supernode_command(settings),
        environment=child_environment(settings.flwr_home, inherited),
        log=log,
    )


def run_supernode(arguments: Sequence[str], now_s: Callable[[], float]) -> None:
    """Be a SuperNode until a signal.

    Args:
        arguments: of `flower-supernode`.
        now_s: the coordinator's time, in seconds since 1970.

    """
    from flwr.supernode.cli.flower_supernode import flower_supernode  # noqa: PLC0415  (for this process alone)

    correct_clock(now_s)
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


def correct_clock(now_s: Callable[[], float]) -> None:
    """Have Flower, in this process, read the time from `now_s`: seconds since 1970."""
    flowers = flower_date.now

    def corrected() -> dt.datetime:
        return dt.datetime.fromtimestamp(now_s(), tz=dt.UTC)

    # Its modules have taken the function by name when they were imported, or will.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "flwr" and getattr(module, "now", None) is flowers:
            module.now = corrected  # type: ignore[attr-defined]


def run_tasks(
    runtime_address: str,
    secret: bytes,
    installed_fab_digest: FabDigest,
    client_app: ClientApp,
    stop: threading.Event,
) -> None:
    """Answer the coordinator's messages with `client_app`, one at a time, until `stop` is set.

    Waits for a SuperNode that is not there yet or restarts, with a growing pause. A task under way is finished first,
    so whoever sets `stop` also tells the app to hurry. One runner a process: Flower keeps the task's identity in
    globals.

    Raises:
        RunnerRefused: the SuperNode knows another secret or speaks another version.

    """
    pause_s = _IDLE_POLL_S
    with _client(runtime_address, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE)) as poll:
        while not stop.is_set():
            try:
                token = _acquire(poll)
            except httpx.HTTPError as error:
                _log.debug("no SuperNode at %s (%s), again in %.1f s", runtime_address, type(error).__name__, pause_s)
                stop.wait(pause_s)
                pause_s = min(2 * pause_s, _BACKOFF_MAX_S)
                continue
            pause_s = _IDLE_POLL_S
            if token is None:
                stop.wait(pause_s)
            else:
                _run_task(runtime_address, token, installed_fab_digest, client_app)


def _acquire(poll: RuntimeHttpClient) -> str | None:
    """Return the token of a waiting task, or None."""
    try:
        answer = poll.AcquireTask(AcquireTaskRequest(supported_task_types=[_TASK_TYPE]))
    except httpx.HTTPStatusError as error:
        if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
            raise RunnerRefused(
                f"the SuperNode refuses our runner (HTTP {error.response.status_code})",
                advice="Stop every sfumato process of this home, delete runner.secret in it and start again.",
            ) from error
        raise
    return answer.token if answer.HasField("task") and answer.token else None


def _run_task(runtime_address: str, token: str, digest: FabDigest, client_app: ClientApp) -> None:
    """Do one task and tell the SuperNode that it is done, whatever happens in between."""
    context: Context | None = None
    outcome = SubStatus.FAILED
    with _client(runtime_address, RuntimeTokenHttpInterceptor(token)) as client, _heartbeat(client):
        try:
            message, context, run, fab = pull_task_input(client)
            reply = _answer(message, context, fab.content, digest, client_app)
            push_message(client, reply, context)
            outcome = SubStatus.FAILED if reply.has_error() else SubStatus.COMPLETED
            _log.info("run %s: answered message %s, %s", run.run_id, message.metadata.message_id, outcome)
        except Exception as error:  # noqa: BLE001  (the runner outlives every task; the next one may well succeed)
            _log_failure("the task was not answered", error)
        # Flower's function swallows transport errors but not a refusal, which a task stopped by the coordinator gets.
        with suppress(httpx.HTTPError):
            push_task_output(client=client, context=context, sub_status=outcome, details="")


def _answer(message: Message, context: Context, fab: bytes, digest: FabDigest, client_app: ClientApp) -> Message:
    """Call the installed app, if that is the one the coordinator means; else, and if it fails, answer with a code.

    The bundle is hashed and dropped: nothing is unpacked, installed or imported.
    """
    if not hmac.compare_digest(digest_of(fab), digest):
        _log.warning("the coordinator speaks another protocol than this installation: refused its bundle")
        return Message(Error(code=ErrorCode.INVALID_FAB, reason=OTHER_APP), reply_to=message)
    try:
        return client_app(message, context)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (what it says stays here: it may name a work)
        _log_failure("the app failed", error)
        return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=APP_FAILED), reply_to=message)


def _log_failure(what: str, error: BaseException) -> None:
    _log.error("%s: %s", what, type(error).__name__)
    _log.debug("%s", what, exc_info=error)


@contextmanager
def _client(runtime_address: str, proof: ProtobufClientInterceptor) -> Iterator[RuntimeHttpClient]:
    """Open a client without Flower's retries: those wait for ever, and answer a 401 by interrupting this process."""
    client = RuntimeHttpClient(
        f"http://{runtime_address}", interceptors=[RuntimeVersionHttpInterceptor(component_name=_TASK_TYPE), proof]
    )
    client._client.close()  # noqa: SLF001
    # trust_env=False: a proxy from the environment must not see loopback calls.
    client._client = httpx.Client(timeout=_CALL_TIMEOUT_S, trust_env=False)  # noqa: SLF001
    with client:
        yield client


@contextmanager
def _heartbeat(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the SuperNode every few seconds that the task is being worked on.

    Flower's own sender raises SIGINT in this process when a task is no longer wanted; here its reply is simply refused
    later.
    """
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_HEARTBEAT_S):
            with suppress(httpx.HTTPError):
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    thread = threading.Thread(target=beat, name="task-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_CALL_TIMEOUT_S + 1)
