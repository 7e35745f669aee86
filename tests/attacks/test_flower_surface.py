"""Attacks on the coordinator by a stranger with its address and its public CA file, and on its loopback by a neighbour.

Each goes through real TLS and real processes, as an attacker would. What they are after: to start a run (which is code
that runs on the coordinator), to take a run's task and its token, to read the API's description, to be a node without a
key, and to fill the memory.
"""

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import ErrorCode
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from coordinator.flower import LOOPBACK
from export.flower_bundle import build_fab, installed_fab_digest
from tests.flower_harness import Federation, build_test_fab, command_of, federation, make_node_key, until

pytestmark = pytest.mark.slow

PROTOBUF = {"content-type": "application/protobuf"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Run a coordinator without nodes."""
    with federation(tmp_path_factory.mktemp("federation")) as started:
        yield started


@pytest.fixture(scope="module")
def stranger(running: Federation) -> httpx.Client:
    """Return what everybody with the CA file can make."""
    return running.client()


def _talk(running: Federation, request: bytes) -> bytes:
    """Send bytes through TLS as they are, and return what comes back."""
    context = running.trust()
    address = (LOOPBACK, running.endpoint.public_port)
    with (
        socket.create_connection(address, timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=LOOPBACK) as tls,
    ):
        tls.sendall(request)
        return tls.recv(65536)


def _assert_refused(response: httpx.Response) -> None:
    assert (response.status_code, response.content) == (403, b"")
    assert "server" not in response.headers


def test_what_nodes_and_visitors_need_is_there(stranger: httpx.Client) -> None:
    assert stranger.get("/health").status_code == 200
    assert stranger.get("/sfumato/join").text == "/sfumato/join"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/redoc",
        "/docs/oauth2-redirect",
        "/v1/responses",
        "/v1/runtime/acquire-task",
        "/v1/runtime/get-nodes",
        "/v1/runtime/push-task-output",
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/control/register-node",
        "/v1/control/stream-logs",
        "/v1/fleet/register-node",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_the_rest_of_flower_is_not_on_the_public_port(stranger: httpx.Client, method: str, path: str) -> None:
    _assert_refused(stranger.request(method, path, headers=PROTOBUF))


@pytest.mark.parametrize(
    "target",
    [
        b"//v1/control/list-runs",
        b"/v1/fleet/../control/list-runs",
        b"/v1/fleet/..%2fcontrol/list-runs",
        b"/v1/fleet/%2e%2e/control/list-runs",
        b"/v1/fleet/pull-messages/../../control/list-runs",
        b"/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2flist-runs",
        b"/V1/CONTROL/list-runs",
        b"/v1/control/list-runs?x=/v1/fleet/pull-messages",
        b"/sfumato/../v1/control/list-runs",
        b"/sfumato/%2e%2e/v1/control/list-runs",
        b"/health/../v1/control/list-runs",
        b"https://127.0.0.1/v1/control/list-runs",
        b"*",
    ],
)
def test_no_spelling_of_a_path_gets_around_the_filter(running: Federation, target: bytes) -> None:
    lines = [b"POST " + target + b" HTTP/1.1", b"Host: x", b"Content-Type: application/protobuf", b"Content-Length: 0"]

    answer = _talk(running, b"\r\n".join([*lines, b"", b""]))

    assert answer.split(b"\r\n")[0] in {b"HTTP/1.1 403 Forbidden", b"HTTP/1.1 400 Bad Request"}
    assert b"run" not in answer


@pytest.mark.parametrize(
    "header",
    [
        b"X-Forwarded-For: 127.0.0.1",
        b"X-Forwarded-Prefix: /v1/fleet",
        b"X-Original-URL: /v1/control/list-runs",
        b"X-HTTP-Method-Override: POST",
        b"Forwarded: for=127.0.0.1",
    ],
)
def test_no_header_opens_the_filter(running: Federation, header: bytes) -> None:
    lines = [b"POST /v1/control/list-runs HTTP/1.1", b"Host: 127.0.0.1", header, b"Content-Length: 0"]

    assert _talk(running, b"\r\n".join([*lines, b"", b""])).startswith(b"HTTP/1.1 403 ")


def test_a_second_request_hidden_in_the_first_is_refused_too(running: Federation) -> None:
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    hidden = b"POST /v1/control/list-runs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    context = running.trust()
    answer = b""
    with (
        socket.create_connection((LOOPBACK, running.endpoint.public_port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=LOOPBACK) as tls,
    ):
        tls.sendall(health + hidden)
        while part := tls.recv(65536):
            answer += part

    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert answer.count(b"HTTP/1.1 403 Forbidden") == 1


def test_a_websocket_is_refused(running: Federation) -> None:
    lines = [
        b"GET /v1/control/stream-logs HTTP/1.1",
        b"Host: x",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]

    assert _talk(running, b"\r\n".join([*lines, b"", b""])).startswith(b"HTTP/1.1 403 ")


def test_a_run_cannot_be_started_from_outside(running: Federation) -> None:
    fab = build_fab()
    request = StartRunRequest(fab=Fab(hash_str=installed_fab_digest(), content=fab))
    before = set(_runs(running))
    client = ControlHttpClient(running.public_url, verify=running.trust())

    with client, pytest.raises(httpx.HTTPStatusError) as caught:
        client.StartRun(request)

    _assert_refused(caught.value.response)
    assert set(_runs(running)) == before


def _runs(running: Federation) -> list[int]:
    with ControlHttpClient(f"http://{LOOPBACK}:{running.endpoint.loopback_port}") as client:
        return list(client.ListRuns(ListRunsRequest()).run_dict)


def test_a_changed_app_bundle_is_refused_by_the_node_and_never_unpacked(running: Federation, tmp_path: Path) -> None:
    """An attack by the coordinator itself: it offers a run of another app than the one the node installed."""
    evil = build_test_fab(tmp_path)
    node = running.add_node("careful", installed_fab_digest())
    until(lambda: running.control.online_nodes() or None, "a node online")

    [round_] = running.run(evil, nodes=1)

    assert round_["missing"] == 0
    assert round_["replies"] == [{"node": node.node_id, "code": ErrorCode.INVALID_FAB, "reason": "another-app"}]
    assert not list(node.settings.home.rglob("sfumato_app"))
    assert not list(node.settings.home.rglob("*.py"))
    assert node.runner.exit_code() is None
    # The coordinator's side does install the bundle, in its own home, so the search above would have found one.
    assert list(running.settings.flwr_home.rglob("sfumato_app"))
    running.control.unregister_node(node.node_id)


def test_a_task_cannot_be_taken_from_outside_even_with_the_secret(running: Federation) -> None:
    secret = running.settings.secret_file.read_bytes()

    with pytest.raises(httpx.HTTPStatusError) as caught:
        _acquire(running.public_url, running.trust(), secret)

    _assert_refused(caught.value.response)


def test_a_task_cannot_be_taken_by_a_neighbour_without_the_secret(running: Federation) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        _acquire(f"http://{LOOPBACK}:{running.endpoint.loopback_port}", None, b"guess")

    assert caught.value.response.status_code == 401


def _acquire(url: str, trust: ssl.SSLContext | None, secret: bytes) -> None:
    proof = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"}))
    version = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
    with RuntimeHttpClient(url, interceptors=[version, proof], verify=trust or True) as client:
        client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))


def test_what_flower_keeps_is_readable_by_its_owner_only(running: Federation) -> None:
    for file in (running.settings.secret_file, running.settings.database):
        assert file.stat().st_mode & 0o077 == 0


def test_a_call_of_a_node_without_a_signature_is_refused(stranger: httpx.Client) -> None:
    for call in ("activate-node", "pull-messages", "get-fab", "push-object"):
        assert stranger.post(f"/v1/fleet/{call}", headers=PROTOBUF).status_code == 401


def test_a_node_whose_key_is_not_registered_is_refused(running: Federation) -> None:
    before = running.control.nodes()
    node = running.add_node("stranger", installed_fab_digest(), registered=False)

    code = until(lambda: (node.supernode.exit_code() is not None and [node.supernode.exit_code()]) or None, "the end")

    assert code == [1]
    assert running.control.nodes() == before


def test_a_node_that_was_shut_out_is_refused(running: Federation) -> None:
    """Asked with the node's key itself: Flower's own SuperNode does not always end when it is shut out."""
    key = make_node_key(running.folder, "revoked")
    node_id = running.control.register_node(key.public)
    private_key = serialization.load_ssh_private_key(key.file.read_bytes(), None)
    assert isinstance(private_key, ec.EllipticCurvePrivateKey)
    proof = NodeAuthHttpInterceptor(private_key, private_key.public_key())
    request = PullMessagesRequest(node=NodeProto(node_id=node_id))
    with FleetHttpClient(running.public_url, verify=running.trust(), interceptors=[proof]) as node:
        node.ActivateNode(ActivateNodeRequest(public_key=key.public, heartbeat_interval=30))
        node.PullMessages(request)
        assert node_id in running.control.online_nodes()

        running.control.unregister_node(node_id)

        with pytest.raises(httpx.HTTPStatusError) as caught:
            node.PullMessages(request)
    assert caught.value.response.status_code == 401
    assert node_id not in running.control.online_nodes()


@pytest.mark.parametrize(("length", "status"), [((16 << 20) + 1, b"413"), (10**12, b"413")])
def test_a_huge_body_is_refused_before_it_is_sent(running: Federation, length: int, status: bytes) -> None:
    head = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"

    assert _talk(running, head.encode()).split(b" ")[1] == status


def test_a_body_without_an_end_is_refused(running: Federation) -> None:
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n"

    assert _talk(running, head).split(b" ")[1] == b"411"


def test_the_public_port_speaks_tls_1_3_only(running: Federation) -> None:
    context = running.trust()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((LOOPBACK, running.endpoint.public_port), timeout=30) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname=LOOPBACK)


def test_the_public_port_does_not_speak_plain_http(running: Federation) -> None:
    with pytest.raises(httpx.TransportError), httpx.Client(trust_env=False) as client:
        client.get(f"http://{LOOPBACK}:{running.endpoint.public_port}/health")


def test_the_rest_of_flower_listens_on_loopback_only(running: Federation) -> None:
    listening = _listening_addresses(command_of(running.superlink))

    assert listening == {
        (LOOPBACK, running.endpoint.loopback_port),
        (LOOPBACK, running.endpoint.public_port),  # the test's own public_host
    }
    assert json.loads(running.settings.endpoint_file.read_bytes())["pid"] == command_of(running.superlink)


def _listening_addresses(pid: int) -> set[tuple[str, int]]:
    """Return the IPv4 addresses a process listens on, from /proc."""
    inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:  # 0A: LISTEN
            address, port = fields[1].split(":")
            found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found
