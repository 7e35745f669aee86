"""The public port's filter, the SuperLink's life and its control, and Flower's private functions held to the pin."""

import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.app import Array, Message
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata as MetadataProto
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.run import Run
from flwr.superlink.grid import http_grid
from starlette.applications import Starlette

from coordinator import flower
from coordinator.flower import (
    FlowerControl,
    FlowerUnavailable,
    NodeKeyRefused,
    RunState,
    RunUnknown,
    SuperlinkSettings,
)
from coordinator.public_port import FLEET_CALLS
from export.flower_bundle import fab_digest
from export.processes import Child, child_environment, free_port
from tests.flower_harness import (
    SECRET_PATH,
    Federation,
    build_test_fab,
    command_of,
    federation,
    make_node_key,
    superlink_settings,
    until,
)
from tests.simulators import Clock, put_together

FLEET = "/v1/fleet/pull-messages"

# --- Contracts with the pinned Flower --------------------------------------------------------------------------------


def test_the_ten_calls_are_flowers_but_for_the_two_of_nodes_without_a_key() -> None:
    from flwr.superlink.routers.fleet.router import router  # noqa: PLC0415  (a server's worth of modules)

    routes = {route.path for route in router.routes}  # type: ignore[attr-defined]

    assert routes - FLEET_CALLS == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert routes >= FLEET_CALLS


def test_flowers_app_has_node_authentication_and_a_secret(tmp_path: Path) -> None:
    settings = superlink_settings(tmp_path)

    app: Any = flower._flower_app(settings, 1)

    assert app.state.enable_supernode_auth is True
    assert app.state.superexec_auth_secret == settings.secret_file.read_bytes()
    assert settings.database.exists()


def repeated(times: int) -> dict[str, bytes]:
    """An array of 1 MiB as Flower sends it, whose one chunk is named so many times."""
    array = Array("float32", (1,), "numpy.ndarray", bytes(2**20))
    contents = {name: o.deflate() for name, o in get_all_nested_objects(array).items()}
    named = b'"arraychunk_ids": [%b]' % b", ".join([b"0"] * times)
    assert b'"arraychunk_ids": [0]' in contents[array.object_id]
    contents["array"] = contents.pop(array.object_id).replace(b'"arraychunk_ids": [0]', named)
    return contents


@pytest.mark.parametrize(("times", "is_refused"), [(1, False), (63, False), (65, True), (200, True)])
def test_an_array_whose_chunks_come_again_and_again_is_bounded(
    monkeypatch: pytest.MonkeyPatch, times: int, *, is_refused: bool
) -> None:
    monkeypatch.setattr(http_grid, "inflate_object_from_contents", inflate_object_from_contents)
    # Flower itself puts together whatever is asked for; when it does not any more, ours can go.
    whole = put_together("array", repeated(times))
    assert isinstance(whole, Array)
    assert len(whole.data) == times * 2**20

    flower.bound_replies()

    if is_refused:
        with pytest.raises(ValueError, match="the reply is too large"):
            put_together("array", repeated(times))
    else:
        assert put_together("array", repeated(times)) == whole


def test_many_arrays_are_bounded_together() -> None:
    contents = repeated(40)
    contents |= {"another": contents["array"].replace(b'"float32"', b'"float16"')}

    with pytest.raises(ValueError, match="the reply is too large"):
        flower._inflate_bounded("array", contents)


def test_flowers_grid_fetches_replies_and_puts_them_together_by_the_names_that_are_bounded() -> None:
    assert {"pull_objects", "inflate_object_from_contents"} <= set(http_grid.HttpGrid.pull_messages.__code__.co_names)


class HeldBackReply:
    """A SuperLink with a reply whose parts a node announced; it has those it was given."""

    def __init__(self, parts: dict[str, bytes], announced: list[str]) -> None:
        self.parts = parts
        self.tree = ObjectTree(object_id="reply", children=[ObjectTree(object_id=name) for name in announced])

    def PullMessages(self, _request: object) -> PullAppMessagesResponse:  # noqa: N802 - Flower's name
        reply = MessageProto(metadata=MetadataProto(message_id="reply", reply_to_message_id="asked"))
        return PullAppMessagesResponse(messages_list=[reply], message_object_trees=[self.tree])

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802 - Flower's name
        content = self.parts.get(request.object_id)
        return PullObjectResponse(object_found=True, object_available=content is not None, object_content=content or b"")


def pulled(monkeypatch: pytest.MonkeyPatch, superlink: HeldBackReply) -> Message:
    """What Flower's grid makes of the reply."""
    grid = http_grid.HttpGrid(token="some")
    monkeypatch.setattr(http_grid.HttpGrid, "_runtime_client", superlink)
    grid.set_run(Run.create_empty(run_id=1))
    [message] = grid.pull_messages(["asked"])
    return message


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        pytest.param(HeldBackReply({}, ["a"]), "timeout", id="parts held back"),
        pytest.param(HeldBackReply({}, [f"part {n}" for n in range(256)]), "257 parts are too many", id="too many parts"),
        pytest.param(
            HeldBackReply({"reply": bytes(2**25), "a": bytes(2**25), "b": bytes(2**25)}, ["a", "b"]),
            "the parts are too large",
            id="parts too large",
        ),
    ],
)
def test_a_reply_that_costs_too_much_becomes_a_message_with_an_error(
    monkeypatch: pytest.MonkeyPatch, held: HeldBackReply, reason: str
) -> None:
    for name in ("pull_objects", "inflate_object_from_contents"):
        monkeypatch.setattr(http_grid, name, getattr(http_grid, name))  # so that they come back
    monkeypatch.setattr(flower, "_REPLY_MAX_S", 0.0)
    flower.bound_replies()

    message = pulled(monkeypatch, held)

    assert message.has_error()
    assert reason in str(message.error.reason)


def test_flower_itself_waits_for_hours_for_parts_held_back() -> None:
    """When it does not any more, ours can go."""
    assert inspect.signature(pull_objects).parameters["max_time"].default > 60 * flower._REPLY_MAX_S


# --- Processes of the coordinator ------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> SuperlinkSettings:
    """Return settings in an empty home."""
    return superlink_settings(tmp_path)


def test_superlink_refuses_an_environment_that_is_not_a_childs(
    settings: SuperlinkSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in child_environment(settings.flwr_home, {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")

    with pytest.raises(FlowerUnavailable, match=r"FLWR_TELEMETRY_ENABLED$"):
        flower.serve_superlink(settings, Starlette())


def test_a_port_that_stays_taken_is_refused_by_name_and_no_other_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "time", Clock())
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(FlowerUnavailable, match=f"port {taken.getsockname()[1]} ") as caught,
        flower._listen("127.0.0.1", taken.getsockname()[1]),
    ):
        pass

    assert "this port" in caught.value.advice


def test_a_port_that_comes_free_in_time_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    clock = Clock()
    monkeypatch.setattr(flower, "time", clock)
    monkeypatch.setattr(clock.__class__, "sleep", lambda _self, _seconds: taken.close())

    with flower._listen("127.0.0.1", port) as listener:
        assert listener.getsockname()[1] == port


def test_port_zero_is_any_port() -> None:
    with flower._listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"pid": 1}', b'{"loopback_port": "x"}', b"7" * 9999])
def test_no_endpoint_without_a_whole_file(settings: SuperlinkSettings, content: bytes | None) -> None:
    if content is not None:
        settings.endpoint_file.write_bytes(content)

    assert flower.superlink_endpoint(settings) is None


def test_no_endpoint_when_its_process_is_gone(settings: SuperlinkSettings) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    settings.endpoint_file.write_text(json.dumps({"loopback_port": 1, "public_port": 2, "pid": gone.pid}))

    assert flower.superlink_endpoint(settings) is None


def test_no_endpoint_when_nobody_answers(settings: SuperlinkSettings) -> None:
    settings.endpoint_file.write_text(json.dumps({"loopback_port": free_port(), "public_port": 2, "pid": os.getpid()}))

    assert flower.superlink_endpoint(settings) is None


def test_waiting_for_a_superlink_that_ended_says_so(settings: SuperlinkSettings) -> None:
    with (
        Child.start("superlink", ["false"], environment={"PATH": os.defpath}) as child,
        pytest.raises(FlowerUnavailable, match="exit code 1"),
    ):
        flower.wait_for_superlink(settings, child)


def test_waiting_for_a_superlink_has_an_end(settings: SuperlinkSettings) -> None:
    with (
        Child.start("superlink", ["sleep", "600"], environment={"PATH": os.defpath}) as child,
        pytest.raises(FlowerUnavailable, match="not up within 0 s"),
    ):
        flower.wait_for_superlink(settings, child, timeout_s=0.2)


def test_superexec_is_told_the_port_and_the_secret(settings: SuperlinkSettings) -> None:
    command = flower.superexec_command(settings, 4711)

    assert Path(command[0]).exists()
    assert command[command.index("--runtime-api-address") + 1] == "127.0.0.1:4711"
    assert command[command.index("--superexec-auth-secret-file") + 1] == str(settings.secret_file)
    assert "--allow-runtime-dependency-installation" not in command


# --- Control ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "phase", "over"),
    [
        (("pending", ""), "pending", False),
        (("starting", ""), "pending", False),
        (("running", ""), "running", False),
        (("finished", "completed"), "finished", True),
        (("finished", "failed"), "failed", True),
        (("finished", "stopped"), "stopped", True),
    ],
)
def test_flowers_words_for_a_run_are_translated(words: tuple[str, str], phase: str, *, over: bool) -> None:
    state = flower._run_state(*words, "why")

    assert (state.phase, state.details, state.is_over) == (phase, "why", over)


@pytest.mark.parametrize("words", [("finished", ""), ("finished", "odd"), ("", ""), ("odd", "")])
def test_an_unfamiliar_word_for_a_run_is_an_error(words: tuple[str, str]) -> None:
    with pytest.raises(FlowerUnavailable, match="unfamiliar run status"):
        flower._run_state(*words, "")


def test_an_unfamiliar_word_for_a_node_is_an_error() -> None:
    with pytest.raises(FlowerUnavailable, match="unfamiliar node status odd"):
        flower._node_status("odd")


def _openssh(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _pem(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_both_spellings_of_a_key_are_one() -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()

    assert flower._canonical_key(_openssh(key)) == flower._canonical_key(_pem(key)) == _pem(key)


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"-----BEGIN PUBLIC KEY-----\n",
        b"ssh-ed25519 AAAA",
        b"\x00\xff",
        _pem(ec.generate_private_key(ec.SECP256R1()).public_key()),
        _pem(ed25519.Ed25519PrivateKey.generate().public_key()),
        _openssh(ed25519.Ed25519PrivateKey.generate().public_key()),
    ],
    ids=["empty", "a heading alone", "too short", "bytes", "another curve", "another kind in PEM", "another kind in OpenSSH"],
)
def test_another_kind_of_key_is_refused(key: bytes) -> None:
    with pytest.raises(NodeKeyRefused, match="P-384"):
        flower._canonical_key(key)


def test_no_superlink_is_one_error_with_advice() -> None:
    with FlowerControl(free_port()) as control, pytest.raises(FlowerUnavailable, match="no answer") as caught:
        control.nodes()

    assert caught.value.advice
    assert caught.value.exit_code == 4


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    with FlowerControl(1) as control:
        assert control._client._client.trust_env is False


def test_an_error_of_flower_is_told_by_its_public_text() -> None:
    response = httpx.Response(500, json={"code": 1, "detail": "no disk"}, request=httpx.Request("POST", "http://x"))

    with (
        pytest.raises(FlowerUnavailable, match="would not list the nodes: no disk"),
        flower._translated("list the nodes"),
    ):
        response.raise_for_status()


# --- The whole of it, with real processes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Run a coordinator for the tests of this module."""
    with federation(tmp_path_factory.mktemp("federation")) as started:
        yield started


@pytest.mark.slow
def test_a_key_is_registered_once_and_never_again_after_it_was_shut_out(running: Federation) -> None:
    key = make_node_key(running.folder, "registered")

    node_id = running.control.register_node(key.public)

    assert running.control.register_node(key.public) == node_id
    assert [n.status for n in running.control.nodes() if n.node_id == node_id] == ["registered"]
    assert node_id not in running.control.online_nodes()
    running.control.unregister_node(node_id)
    running.control.unregister_node(node_id)
    with pytest.raises(NodeKeyRefused, match="shut out"):
        running.control.register_node(key.public)


@pytest.mark.slow
def test_a_run_nobody_knows_is_unknown(running: Federation) -> None:
    with pytest.raises(RunUnknown):
        running.control.run_status(12345)
    with pytest.raises(RunUnknown):
        running.control.stop_run(12345)


@pytest.mark.slow
def test_a_run_may_override_only_what_the_bundle_names(running: Federation, tmp_path: Path) -> None:
    with pytest.raises(FlowerUnavailable, match="start a run"):
        running.control.start_run(build_test_fab(tmp_path), {"unheard-of": 1})


@pytest.mark.slow
def test_a_stopped_run_is_stopped_and_may_be_stopped_again(running: Federation, tmp_path: Path) -> None:
    run_id = running.control.start_run(build_test_fab(tmp_path), {"quorum": 99})
    until(lambda: running.control.run_status(run_id).phase == "running", "the run to start")

    running.control.stop_run(run_id)
    running.control.stop_run(run_id)

    assert running.control.run_status(run_id).phase == "stopped"


@pytest.mark.slow
def test_a_server_part_that_raises_is_a_failed_run(running: Federation, tmp_path: Path) -> None:
    run_id = running.control.start_run(build_test_fab(tmp_path, "raise OSError('no model')\napp = None"), {})

    def over() -> RunState | None:
        state = running.control.run_status(run_id)
        return state if state.is_over else None

    assert until(over, "the end of the run").phase == "failed"


@pytest.mark.slow
def test_every_process_is_told_to_call_nobody(running: Federation) -> None:
    for child in (running.superlink, running.superexec):
        lines = Path(f"/proc/{command_of(child)}/environ").read_bytes().split(b"\0")
        environment = dict(line.decode().split("=", 1) for line in lines if b"=" in line)
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert environment["FLWR_HOME"] == str(running.settings.flwr_home)
        assert environment["SFUMATO_COORDINATOR_HOME"] == str(running.home)
        assert "HTTPS_PROXY" not in environment


@pytest.mark.slow
def test_two_nodes_hold_two_rounds_and_a_killed_superlink_loses_nothing(tmp_path: Path) -> None:
    fab = build_test_fab(tmp_path)
    with federation(tmp_path) as running:
        nodes = [running.add_node(name, fab_digest(fab)) for name in ("one", "two")]
        until(lambda: len(running.control.online_nodes()) == 2, "both nodes online", [n.supernode for n in nodes])

        [first, second] = running.run(fab, nodes=2, rounds=2)

        assert {reply["node"] for reply in first["replies"]} == {node.node_id for node in nodes}
        assert (first["mean"], second["mean"]) == (1.0, 2.0)
        assert (first["missing"], second["missing"]) == (0, 0)

        for pushed in running.home.glob("pushed-*"):
            pushed.unlink()
        run_id = running.control.start_run(fab, {"rounds": 1, "quorum": 2, "deadline-s": 150.0})
        until((running.home / "pushed-1").exists, "the round to be under way")
        os.kill(command_of(running.superlink), 9)
        again = running.start_superlink()
        endpoint = flower.wait_for_superlink(running.settings, again)
        running.wait_for_run(run_id)

        assert (endpoint.loopback_port, endpoint.public_port) == (
            running.endpoint.loopback_port,
            running.endpoint.public_port,
        )
        assert [round_["mean"] for round_ in running.rounds()] == [1.0]
        assert SECRET_PATH not in running.log("coordinator-superlink")
