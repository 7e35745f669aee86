"""The node's runner: calls the installed app and nothing else, tells nothing, and outlives whatever happens to it."""

import ast
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import flwr
import pytest
import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from edge_node import flower
from edge_node.flower import RunnerRefused, SupernodeSettings, run_tasks
from export.files import Digest
from export.flower_bundle import FabDigest, build_fab, fab_digest, installed_fab_digest
from export.processes import free_port
from tests.flower_harness import SECRET_PATH, Federation, build_test_fab, command_of, federation, node_app, until

SECRET = b"a secret of this home folder"
DIGEST = FabDigest(Digest("0" * 64))


@pytest.fixture
def settings(tmp_path: Path) -> SupernodeSettings:
    """Return the settings of a node in an empty home."""
    return SupernodeSettings(
        home=tmp_path,
        superlink="gallery.example:9443",
        root_certificates=tmp_path / "ca.pem",
        private_key=tmp_path / "node.key",
        port=4711,
        node_home=tmp_path,
    )


# --- The SuperNode's command -----------------------------------------------------------------------------------------


def test_supernode_has_tls_a_key_a_secret_and_a_port_on_loopback_only(settings: SupernodeSettings) -> None:
    command = flower.supernode_command(settings)
    flags = dict(zip(command[5::2], command[6::2], strict=True))

    assert command[:5] == [sys.executable, "-P", "-m", "edge_node.supernode", str(settings.node_home)]
    assert flags == {
        "--isolation": "process",
        "--superexec-auth-secret-file": str(settings.secret_file),
        "--root-certificates": str(settings.root_certificates),
        "--superlink": "gallery.example:9443",
        "--auth-supernode-private-key": str(settings.private_key),
        "--host": "127.0.0.1",
        "--port": "4711",
    }


# --- The clock -------------------------------------------------------------------------------------------------------


def _clock_readers(source: str) -> set[str]:
    """Calls in a file that read the system's clock."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {ast.unparse(func) for func in calls} & {
        "time.time",
        "time.time_ns",
        "time",
        "datetime.now",
        "datetime.datetime.now",
        "datetime.utcnow",
        "datetime.datetime.utcnow",
        "datetime.datetime.today",
    }


def test_flowers_node_reads_the_systems_clock_in_one_function() -> None:
    package = Path(flwr.__file__).parent
    readers = {
        file.relative_to(package).as_posix()
        for part in ("supernode", "supercore", "clientapp", "app", "common")
        for file in (package / part).rglob("*.py")
        if _clock_readers(file.read_text())
    }

    assert "supercore/date.py" in readers
    # Telemetry and the look for updates are switched off; connectors are for agents, which a node has none of.
    assert readers <= {
        "supercore/date.py",
        "supercore/telemetry.py",
        "supercore/update_check.py",
        "supercore/task_process/connector/oauth.py",
    }


def test_after_the_correction_every_module_of_flower_reads_our_time() -> None:
    script = """
import datetime, sys
import edge_node.flower, flwr.supernode.cli.flower_supernode, flwr.supernode.start_client_internal
from flwr.supercore import date
before = date.now
holders = [n for n, m in list(sys.modules.items()) if n.startswith("flwr") and getattr(m, "now", None) is before]
edge_node.flower.correct_clock(lambda: 1e9)
import flwr.supernode.node_auth_http_interceptor as signer, flwr.app.message.message as message
told = datetime.datetime.fromtimestamp(1e9, tz=datetime.UTC)
assert len(holders) > 3, holders
assert [m for m in sys.modules.values() if getattr(m, "now", None) is before] == []
assert date.now() == signer.now() == message.now() == told
print("as we said")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)

    assert ran.stdout == "as we said\n", ran.stderr


# --- One task --------------------------------------------------------------------------------------------------------


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch) -> Message:
    """Return a message as the runner gets it; Flower lets nobody make a reply outside a task."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "the-message"
    return message


@pytest.fixture
def context() -> Context:
    """Return the context of a node."""
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def recording_app(calls: list[str]) -> ClientApp:
    """Return an app that notes that it was called."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        del context
        calls.append(message.metadata.message_type)
        return Message(RecordDict(), reply_to=message)

    return app


def test_installed_app_answers_the_bundle_it_was_installed_with(message: Message, context: Context) -> None:
    calls: list[str] = []

    reply = flower._answer(message, context, build_fab(), installed_fab_digest(), recording_app(calls))

    assert calls == ["train"]
    assert not reply.has_error()


@pytest.mark.parametrize("fab", [b"", b"not even a zip", build_fab() + b"\0"])
def test_another_bundle_is_refused_without_calling_the_app(message: Message, context: Context, fab: bytes) -> None:
    calls: list[str] = []

    reply = flower._answer(message, context, fab, installed_fab_digest(), recording_app(calls))

    assert calls == []
    assert (reply.error.code, reply.error.reason) == (ErrorCode.INVALID_FAB, "another-app")


@pytest.mark.parametrize("behaviour", ["raise", "exit"])
def test_an_app_that_fails_answers_with_a_code_and_no_text(
    message: Message, context: Context, behaviour: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    reply = flower._answer(message, context, build_fab(), installed_fab_digest(), node_app(behaviour))

    assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "app-failed")
    assert "the app failed" in caplog.text
    assert SECRET_PATH not in caplog.text


def test_a_message_of_an_unknown_kind_is_a_failure_of_the_app(message: Message, context: Context) -> None:
    reply = flower._answer(message, context, build_fab(), installed_fab_digest(), ClientApp())

    assert reply.error.reason == "app-failed"


# --- The loop, against Flower's own node API -------------------------------------------------------------------------


@contextmanager
def supernode_api(port: int, secret: bytes) -> Iterator[None]:
    """Serve the API a SuperNode has for its runner, with nothing to do."""
    app = create_app(NodeStateFactory(objectstore_factory=ObjectStoreFactory()), secret)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the node API")
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def runner(port: int, stop: threading.Event) -> Iterator[threading.Thread]:
    """Run the loop in a thread and insist that it ends when told to."""
    thread = threading.Thread(target=run_tasks, args=(f"127.0.0.1:{port}", SECRET, DIGEST, ClientApp(), stop), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def test_runner_with_another_secret_is_told() -> None:
    port = free_port()
    with supernode_api(port, b"another"), pytest.raises(RunnerRefused, match="HTTP 401") as caught:
        run_tasks(f"127.0.0.1:{port}", SECRET, DIGEST, ClientApp(), threading.Event())

    assert "runner.secret" in caught.value.advice
    assert caught.value.exit_code == 3


def test_runner_waits_for_a_supernode_and_for_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "_BACKOFF_MAX_S", 0.1)
    polls: list[bool] = []
    acquire = flower._acquire

    def noted(poll: RuntimeHttpClient) -> str | None:
        try:
            token = acquire(poll)
        except Exception:
            polls.append(False)
            raise
        polls.append(True)
        return token

    monkeypatch.setattr(flower, "_acquire", noted)
    port = free_port()
    with runner(port, threading.Event()):
        for _ in range(2):
            polls.clear()
            until(lambda: False in polls, "a poll that finds nobody")
            with supernode_api(port, SECRET):
                until(lambda: True in polls, "a poll that is answered")


def test_runner_stops_while_nobody_answers() -> None:
    stop = threading.Event()
    with runner(free_port(), stop) as thread:
        assert thread.is_alive()


def test_runner_bears_a_supernode_that_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "_BACKOFF_MAX_S", 0.1)
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as ill:

        def answer() -> None:
            for reply in (b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n", b"nonsense\r\n\r\n", b"") * 2:
                connection, _ = ill.accept()
                with connection:
                    asked.append(connection.recv(65536))
                    connection.sendall(reply)

        doctor = threading.Thread(target=answer, daemon=True)
        doctor.start()
        with runner(ill.getsockname()[1], threading.Event()):
            doctor.join(60)

    assert len(asked) == 6


def test_a_token_nobody_knows_is_a_task_lost_not_a_runner_lost(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with supernode_api(port, SECRET):
        flower._run_task(f"127.0.0.1:{port}", "no-such-token", DIGEST, ClientApp())

    assert "the task was not answered" in caplog.text


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    with flower._client("127.0.0.1:1", RuntimeTokenHttpInterceptor("t")) as client:
        assert client._client.trust_env is False


# --- The whole of it, with real processes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Run a coordinator for the tests of this module; each adds the nodes it needs and takes them away."""
    with federation(tmp_path_factory.mktemp("federation")) as started:
        yield started


@pytest.fixture
def nodes_leave(running: Federation) -> Iterator[Callable[[int], None]]:
    """Return a wait for so many nodes online; afterwards, all nodes leave, so that the next test has none."""

    def wait(count: int) -> None:
        until(lambda: len(running.control.online_nodes()) == count, f"{count} nodes online")

    yield wait
    for node_id in running.control.online_nodes():
        running.control.unregister_node(node_id)


@pytest.mark.slow
def test_an_app_that_fails_tells_the_coordinator_nothing_and_the_next_round_asks_again(
    running: Federation, tmp_path: Path, nodes_leave: Callable[[int], None]
) -> None:
    fab = build_test_fab(tmp_path)
    nodes = [running.add_node(f"failing-{how}", fab_digest(fab), how) for how in ("raise", "exit")]
    nodes_leave(2)

    rounds = running.run(fab, nodes=2, rounds=2)

    for round_ in rounds:
        assert {reply["node"] for reply in round_["replies"]} == {node.node_id for node in nodes}
        assert {reply["code"] for reply in round_["replies"]} == {ErrorCode.CLIENT_APP_RAISED_EXCEPTION}
        assert {reply["reason"] for reply in round_["replies"]} == {"app-failed"}
    assert [node.runner.exit_code() for node in nodes] == [None, None]
    assert SECRET_PATH not in json.dumps(rounds)
    for file in running.home.rglob("*"):
        assert file.is_dir() or SECRET_PATH.encode() not in file.read_bytes()


@pytest.mark.slow
def test_runner_survives_a_supernode_that_restarts(
    running: Federation, tmp_path: Path, nodes_leave: Callable[[int], None]
) -> None:
    fab = build_test_fab(tmp_path)
    node = running.add_node("restarted", fab_digest(fab))
    nodes_leave(1)
    # Online is what the coordinator says first; a node stopped before it has heard so would not sign out.
    until(lambda: "SuperNode ID" in running.log("restarted-supernode"), "the SuperNode to know", [node.supernode])
    node.supernode.stop()
    nodes_leave(0)
    again = running.restart_supernode(node)
    until(lambda: node.node_id in running.control.online_nodes(), "the SuperNode to be back", [again])

    [round_] = running.run(fab, nodes=1)

    assert round_["replies"] == [{"node": node.node_id}]
    assert node.runner.exit_code() is None


@pytest.mark.slow
def test_a_killed_supernode_is_refused_until_its_last_heartbeat_has_lapsed(
    running: Federation, nodes_leave: Callable[[int], None]
) -> None:
    """Not what we want but what Flower does; supervisors start the node again for a minute because of it."""
    node = running.add_node("killed", DIGEST)
    nodes_leave(1)
    os.kill(command_of(node.supernode), signal.SIGKILL)
    assert node.supernode.wait(60) == 128 + signal.SIGKILL

    again = running.restart_supernode(node)

    assert again.wait(60) == 1
    assert "[code: 2004]" in running.log("killed-again-supernode")


@pytest.mark.slow
def test_node_processes_are_told_to_call_nobody(running: Federation, nodes_leave: Callable[[int], None]) -> None:
    node = running.add_node("silent", DIGEST)
    nodes_leave(1)

    for child in (node.supernode, node.runner):
        lines = Path(f"/proc/{command_of(child)}/environ").read_bytes().split(b"\0")
        environment = dict(line.decode().split("=", 1) for line in lines if b"=" in line)
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert environment["FLWR_HOME"] == str(node.settings.flwr_home)
        assert "HTTPS_PROXY" not in environment


if sys.platform != "linux":  # pragma: no cover
    pytest.skip("these tests look into /proc", allow_module_level=True)
