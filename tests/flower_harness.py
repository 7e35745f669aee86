"""A federation of real processes on loopback, for tests of the two `flower.py`.

Everything that is started is a `Child`, so that nothing outlives the test run, however it ends. Nothing sleeps to let
something happen: `until` polls a condition and fails at a deadline far beyond what any machine needs.

Run as a script it is the child itself: `superlink HOME` serves a SuperLink with a trivial endpoint, `runner …` a node's
app.
"""

import datetime as dt
import ipaddress
import json
import os
import shutil
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from starlette.types import Receive, Scope, Send

import edge_node.config
from coordinator import flower as coordinator_flower
from coordinator.flower import FlowerControl, RunState, SuperlinkEndpoint, SuperlinkSettings
from edge_node import clock
from edge_node import flower as node_flower
from edge_node.flower import SupernodeSettings
from export.files import Digest
from export.flower_bundle import APP_DIR, FabDigest, build_fab
from export.processes import Child, free_port

REPOSITORY: Final = Path(__file__).parents[1]
DEADLINE_S: Final = 120.0
SECRET_PATH: Final = "/home/artist/private/portrait-of-anna.png"
"""What an app that fails carries in its exception; it must stay on the node."""

# The server part of the test bundle: pushes one flat array, takes replies one by one until a deadline, notes them.
SERVER_SOURCE: Final = """
import json, os, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    home = Path(os.environ["SFUMATO_COORDINATOR_HOME"])
    flat, rounds = np.zeros(1000, np.float32), []
    for number in range(1, int(context.run_config["rounds"]) + 1):
        started, deadline = time.monotonic(), time.monotonic() + float(context.run_config["deadline-s"])
        while len(nodes := list(grid.get_node_ids())) < int(context.run_config["quorum"]):
            if time.monotonic() > deadline:
                raise TimeoutError("too few nodes")
            time.sleep(0.1)
        pushed = time.monotonic()
        pending = set(grid.push_messages([
            Message(RecordDict({"model": ArrayRecord({"flat": Array(flat)})}), dst_node_id=node,
                    message_type=MessageType.TRAIN, group_id=str(number)) for node in nodes
        ]))
        (home / f"pushed-{number}").touch()
        replies, total = [], np.zeros_like(flat)
        while pending and time.monotonic() < deadline:
            for waiting in list(pending):
                for reply in grid.pull_messages([waiting]):
                    pending.discard(waiting)
                    if reply.has_error():
                        error = {"code": reply.error.code, "reason": reply.error.reason}
                        replies.append({"node": reply.metadata.src_node_id, **error})
                    else:
                        total += reply.content["model"]["flat"].numpy()
                        replies.append({"node": reply.metadata.src_node_id})
            time.sleep(0.05)
        good = sum("code" not in reply for reply in replies)
        flat = total / good if good else flat
        rounds.append({"replies": replies, "missing": len(pending), "mean": float(flat.mean()),
                       "seconds": time.monotonic() - pushed, "waited": pushed - started})
    (home / "rounds.json").write_text(json.dumps(rounds))
"""


_T = TypeVar("_T")


def until(condition: Callable[[], _T | None], what: str, children: Sequence[Child] = ()) -> _T:
    """Return the first true value of `condition`; fail at the deadline, or when one of `children` has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        for child in children:
            assert child.exit_code() is None, f"{child.name} ended with {child.exit_code()} while waiting for {what}"
        time.sleep(0.05)
    raise AssertionError(f"gave up waiting for {what}")


def build_test_fab(folder: Path, server_source: str = SERVER_SOURCE) -> bytes:
    """Return a bundle like ours but with another server part, hence another digest."""
    app_dir = folder / "app"
    shutil.copytree(APP_DIR, app_dir, dirs_exist_ok=True)
    (app_dir / "sfumato_app" / "server.py").write_text(server_source)
    with (app_dir / "pyproject.toml").open("a") as config:  # ends with the table of what a run may override
        config.write("deadline-s = 3600.0\nquorum = 2\n")
    return build_fab(app_dir)


@dataclass(frozen=True)
class NodeKey:
    """A node's key pair: the private half as a file, the public one as PEM."""

    file: Path
    public: bytes


def make_node_key(folder: Path, name: str) -> NodeKey:
    """Make an EC P-384 key, the private half in OpenSSH format."""
    key = ec.generate_private_key(ec.SECP384R1())
    file = folder / f"{name}.key"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return NodeKey(file, public)


def make_pki(folder: Path) -> None:
    """Write `ca.pem`, `server.pem` and `server.key` for 127.0.0.1."""
    ca_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfumato test CA")])
    ca = _certificate(ca_name, ca_name, ca_key.public_key(), ca_key, x509.BasicConstraints(ca=True, path_length=0))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfumato test coordinator")])
    certificate = _certificate(server_name, ca_name, key.public_key(), ca_key, names)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    start = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)  # as coordinator/pki.py says it
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=110 * 365))
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    )
    return builder.sign(issuer_key, hashes.SHA256())


@dataclass(frozen=True)
class Node:
    """An artist's node: its SuperNode and its runner."""

    node_id: int
    settings: SupernodeSettings
    supernode: Child
    runner: Child


class Federation:
    """A SuperLink and a SuperExec, and as many nodes as a test asks for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Start the coordinator's two processes in `folder` and wait until they serve."""
        self.folder = folder
        self.home = folder / "coordinator"
        self.home.mkdir(mode=0o700)
        make_pki(folder)
        self._stack = stack
        self.settings = superlink_settings(self.home)
        self.superlink = self.start_superlink()
        self.endpoint: SuperlinkEndpoint = coordinator_flower.wait_for_superlink(self.settings, self.superlink)
        self.superexec = self._keep(
            coordinator_flower.start_superexec(
                self.settings, self.endpoint.loopback_port, self.environment, self._log("superexec")
            )
        )
        self.control = stack.enter_context(FlowerControl(self.endpoint.loopback_port))

    @property
    def environment(self) -> Mapping[str, str]:
        """What the children inherit; the proxy and the two switches are there to be removed."""
        return dict(os.environ) | {
            "PYTHONPATH": str(REPOSITORY),
            "SFUMATO_COORDINATOR_HOME": str(self.home),
            "HTTPS_PROXY": "http://127.0.0.1:1",
            "FLWR_TELEMETRY_ENABLED": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "0",
        }

    @property
    def public_url(self) -> str:
        """The address a node dials."""
        return f"https://127.0.0.1:{self.endpoint.public_port}"

    def start_superlink(self) -> Child:
        """Start the SuperLink (again)."""
        return self._start("superlink", [str(self.home)], self.settings.flwr_home)

    def add_node(
        self,
        name: str,
        digest: FabDigest,
        behaviour: str = "add",
        *,
        registered: bool = True,
        machine: Mapping[str, str] | None = None,
        knows_the_time: bool = True,
    ) -> Node:
        """Start a node whose app adds 1 to what it gets (`add`) or fails (`raise`).

        `machine` is what its processes find in their environment besides; one that knows the time has met the coordinator.
        """
        home = edge_node.config.Home(self.folder / name)
        if knows_the_time:
            clock.learn(home, time.time())
        environment = {**self.environment, **(machine or {})}
        key = make_node_key(self.folder, name)
        node_id = self.control.register_node(key.public) if registered else 0
        settings = SupernodeSettings(
            home=self.folder / name,
            superlink=f"127.0.0.1:{self.endpoint.public_port}",
            root_certificates=self.folder / "ca.pem",
            private_key=key.file,
            port=free_port(),
            node_home=home.root,
        )
        supernode = self._keep(node_flower.start_supernode(settings, environment, self._log(f"{name}-supernode")))
        arguments = [settings.runtime_address, str(settings.secret_file), digest, behaviour, str(home.root)]
        return Node(node_id, settings, supernode, self._start("runner", arguments, settings.flwr_home, name, environment))

    def restart_supernode(self, node: Node) -> Child:
        """Start a node's SuperNode again, on the port its runner knows."""
        name = f"{node.settings.home.name}-again-supernode"
        return self._keep(node_flower.start_supernode(node.settings, self.environment, self._log(name)))

    def run(self, fab: bytes, *, nodes: int, rounds: int = 1, deadline_s: float = DEADLINE_S) -> list[dict[str, Any]]:
        """Hold a run and return what its server part wrote down."""
        run_id = self.control.start_run(fab, {"rounds": rounds, "quorum": nodes, "deadline-s": deadline_s})
        self.wait_for_run(run_id)
        return self.rounds()

    def wait_for_run(self, run_id: int) -> None:
        """Wait until a run is over, and insist that its server part returned."""
        state = until(lambda: self._ended(run_id), "the end of the run")
        assert state.phase == "finished", (state, self.log("superexec"))

    def _ended(self, run_id: int) -> RunState | None:
        state = self.control.run_status(run_id)
        return state if state.is_over else None

    def rounds(self) -> list[dict[str, Any]]:
        """Return what the server part of the last run wrote down."""
        found: list[dict[str, Any]] = json.loads((self.home / "rounds.json").read_text())
        return found

    def log(self, name: str) -> str:
        """Return what a process has written so far."""
        return (self.folder / f"{name}.log").read_text()

    def client(self) -> httpx.Client:
        """Return what a stranger with the public CA file has."""
        return self._stack.enter_context(
            httpx.Client(base_url=self.public_url, verify=self.trust(), trust_env=False, timeout=30)
        )

    def trust(self) -> ssl.SSLContext:
        """Return a TLS context that trusts this coordinator's CA and no other."""
        return ssl.create_default_context(cafile=str(self.folder / "ca.pem"))

    def _start(
        self,
        role: str,
        arguments: Sequence[str],
        flwr_home: Path,
        owner: str = "coordinator",
        inherited: Mapping[str, str] | None = None,
    ) -> Child:
        child = Child.start(
            role,
            [sys.executable, "-m", "tests.flower_harness", role, *arguments],
            environment=coordinator_flower.child_environment(flwr_home, inherited or self.environment),
            log=self._log(f"{owner}-{role}"),
        )
        return self._keep(child)

    def _keep(self, child: Child) -> Child:
        return self._stack.enter_context(child)

    def _log(self, name: str) -> int:
        handle = os.open(self.folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._stack.callback(os.close, handle)
        return handle


@contextmanager
def federation(folder: Path) -> Iterator[Federation]:
    """Run a coordinator in `folder`, and end everything afterwards."""
    with ExitStack() as stack:
        yield Federation(folder, stack)


def superlink_settings(home: Path) -> SuperlinkSettings:
    """Return the settings of a SuperLink on loopback, with the PKI one folder up."""
    return SuperlinkSettings(
        home=home,
        certificate_chain=home.parent / "server.pem",
        private_key=home.parent / "server.key",
        public_host="127.0.0.1",
    )


def command_of(child: Child) -> int:
    """Return the process id of what a child's keeper runs."""
    children = Path(f"/proc/{child.keeper_pid}/task/{child.keeper_pid}/children").read_text().split()
    return int(children[0])


async def echo_endpoint(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path, as our own endpoint would with something useful."""
    del receive
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def node_app(behaviour: str) -> ClientApp:
    """Return an app that adds 1 to the model, or one that fails with a private path in its exception."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        del context
        if behaviour == "raise":
            raise OSError(2, "cannot read the work", SECRET_PATH)
        if behaviour == "exit":
            sys.exit(SECRET_PATH)
        flat = message.content.array_records["model"]["flat"].numpy()
        return Message(RecordDict({"model": ArrayRecord({"flat": Array(flat + 1)})}), reply_to=message)

    return app


def main(role: str, *arguments: str) -> None:
    """Be one of the processes."""
    if role == "superlink":
        coordinator_flower.serve_superlink(superlink_settings(Path(arguments[0])), echo_endpoint)
    else:
        address, secret_file, digest, behaviour, home = arguments
        node_flower.correct_clock(clock.Follower(edge_node.config.Home(Path(home))).now_s)
        node_flower.run_tasks(
            address,
            Path(secret_file).read_bytes(),
            FabDigest(Digest(digest)),
            node_app(behaviour),
            threading.Event(),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
