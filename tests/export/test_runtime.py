"""A graph is opened and run; what cannot be opened is refused by name."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import IntegrityError
from export.fold import calibrate, fold
from export.runtime import OnnxRuntimeEngine, Runtime, inputs_of, installed, open_engine
from models.samplers import paint
from tests import pictures
from tests.export.conftest import Exported


@pytest.fixture(scope="module")
def folded(exported: Exported) -> bytes:
    statistics = calibrate(exported.exact, exported.signature, exported.codes[0], exported.photos)
    return fold(exported.exact, exported.signature, exported.codes[0], statistics)


def test_an_engine_says_what_it_is_and_which_inputs_it_has(exported: Exported, folded: bytes) -> None:
    assert open_engine(exported.exact, "exact").runtime == "onnxruntime"
    assert inputs_of(open_engine(exported.exact, "exact")) == ("photo", "code")
    assert inputs_of(open_engine(folded, "folded")) == ("photo",)


def test_only_the_cpu_runs_it_and_with_as_many_threads_as_asked(exported: Exported) -> None:
    engine = open_engine(exported.exact, "exact", threads=1)
    assert isinstance(engine, OnnxRuntimeEngine)
    session = engine.session

    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.get_session_options().inter_op_num_threads == 1
    assert session.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"


def test_an_engine_gives_every_output_by_its_name_and_the_same_each_time(exported: Exported) -> None:
    engine = open_engine(exported.exact, "exact", threads=1)
    one, other = (paint(engine.run, exported.signature, exported.photos[0], exported.codes[0]) for _ in range(2))

    assert np.array_equal(one, other)
    assert one.shape == exported.photos[0].shape


@pytest.mark.parametrize("runtime", installed())
def test_a_picture_stays_as_it_was_when_the_next_one_is_painted(folded: bytes, runtime: Runtime) -> None:
    """Runtimes write where they are told; told the same place twice, they would paint over what was handed out."""
    engine = open_engine(folded, "folded", runtime=runtime)
    photos = [np.ascontiguousarray(pictures.shapes((32, 40), seed=seed))[None] for seed in range(4)]

    painted = [engine.run({"photo": photo})["picture"] for photo in photos]
    before = [picture.copy() for picture in painted]
    again = [engine.run({"photo": photo})["picture"] for photo in reversed(photos)]

    for kept, copy, repeated in zip(painted, before, reversed(again), strict=True):
        assert np.array_equal(kept, copy)
        assert np.array_equal(kept, repeated)
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations([*painted, *again], 2))


@pytest.mark.parametrize("runtime", installed())
def test_a_photo_that_lies_scattered_in_memory_is_painted_like_any_other(folded: bytes, runtime: Runtime) -> None:
    engine = open_engine(folded, "folded", runtime=runtime)
    photo = pictures.shapes((32, 40))
    mirrored = photo[:, ::-1]

    for _ in range(2):  # the first time goes another way
        scattered = engine.run({"photo": mirrored[None]})["picture"]
        assert np.array_equal(scattered, engine.run({"photo": np.ascontiguousarray(mirrored)[None]})["picture"])


def test_more_sizes_than_an_engine_is_ready_for_are_painted(folded: bytes) -> None:
    engine = open_engine(folded, "folded")

    for _ in range(2):
        for side in range(20, 20 + 8 * 6, 8):
            photo = pictures.shapes((side, 24))[None]
            assert engine.run({"photo": photo})["picture"].shape == photo.shape


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"not a graph", id="words"),
        pytest.param(b"\x08\x0a" * 100, id="rubbish"),
    ],
)
def test_what_is_no_graph_is_refused_by_name(model: bytes) -> None:
    with pytest.raises(IntegrityError, match="the exact graph cannot be opened") as caught:
        open_engine(model, "exact")

    assert "sfumato release install" in caught.value.advice


def test_a_graph_cut_short_is_refused(exported: Exported) -> None:
    with pytest.raises(IntegrityError, match="cannot be opened"):
        open_engine(exported.exact[: len(exported.exact) // 2], "exact")


def one_node(node: onnx.NodeProto, *tensors: TensorProto, opsets: tuple[str, ...] = ("",)) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([node], "one", [x], [y], list(tensors))
    return bytes(
        helper.make_model(
            graph, ir_version=8, opset_imports=[helper.make_opsetid(name, 18 if not name else 1) for name in opsets]
        ).SerializeToString()
    )


def test_a_graph_with_a_node_from_nowhere_is_refused() -> None:
    with pytest.raises(IntegrityError, match="cannot be opened"):
        open_engine(one_node(helper.make_node("Evil", ["x"], ["y"], domain="evil"), opsets=("", "evil")), "exact")


def test_a_graph_that_reads_its_weights_from_another_file_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file is there, in the working folder; a release's digest would not cover it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)

    with pytest.raises(IntegrityError, match="cannot be opened"):
        open_engine(one_node(helper.make_node("Add", ["x", "w"], ["y"]), tensor), "exact")

    capfd.readouterr()  # ONNX Runtime tells the terminal too


def test_the_made_up_graphs_above_are_refused_for_what_is_wrong_with_them() -> None:
    """The positive control: the same graph with its weights inside opens and runs."""
    tensor = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    engine = open_engine(one_node(helper.make_node("Add", ["x", "w"], ["y"]), tensor), "exact")

    assert engine.run({"x": np.ones(4, np.float32)})["y"].tolist() == [1, 2, 3, 4]


_WATCHED = """
import socket, sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
from export.runtime import open_engine
engine = open_engine(open(sys.argv[1], "rb").read(), "folded", runtime="openvino")
import numpy as np
assert engine.run({"photo": np.zeros((1, 20, 30, 3), np.uint8)})["picture"].shape == (1, 20, 30, 3)
import threading
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join()
print(sorted(set(seen)))
socket.getaddrinfo("127.0.0.1", 1)
print(sorted(set(seen)))
"""


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
def test_openvino_reports_to_nobody(folded: bytes, tmp_path: Path) -> None:
    (tmp_path / "folded.onnx").write_bytes(folded)

    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(tmp_path / "folded.onnx")], capture_output=True, text=True, check=True, timeout=300
    )

    # The second line is the control: the watch does see who asks for an address.
    assert done.stdout.splitlines() == ["[]", "['socket.getaddrinfo']"]


_SIGNALLED = """
import ctypes, faulthandler, os, signal, sys
from contextlib import nullcontext

import numpy as np

from export import runtime

if sys.argv[2] == "unkept":
    runtime._kept_signal_stack = nullcontext
faulthandler.enable()  # which puts up a stack for signal handlers, as test runners and services do


def place():
    stack = runtime._SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.base


before = place()
engine = runtime.open_engine(open(sys.argv[1], "rb").read(), "folded", runtime="openvino")
engine.run({"photo": np.zeros((1, 64, 64, 3), np.uint8)})
print("kept" if place() == before else "lost")
del engine
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
if sys.argv[2] == "kept":
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are put back on Linux alone")
@pytest.mark.parametrize(("how", "said"), [("kept", ["kept", "handled"]), ("unkept", ["lost"])])
def test_a_signal_after_a_picture_by_openvino_is_handled(folded: bytes, tmp_path: Path, how: str, said: list[str]) -> None:
    # "unkept" is the control: what OpenVINO does of its own accord.
    (tmp_path / "folded.onnx").write_bytes(folded)

    found = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, str(tmp_path / "folded.onnx"), how], capture_output=True, text=True, check=False
    )

    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == said


@pytest.mark.parametrize("before", [None, "0"])
def test_the_runtime_is_told_to_tell_nobody_before_it_is_loaded(before: str | None, tmp_path: Path) -> None:
    """What it does if it is not told, ``tests/journeys/test_egress.py`` has seen."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"ORT_DISABLE_TELEMETRY": before} if before is not None else {}
    # A module of that name in its place notes what the environment said when it was loaded.
    (tmp_path / "onnxruntime.py").write_text("import os; told = os.environ.get('ORT_DISABLE_TELEMETRY')")
    environment["PYTHONPATH"] = str(tmp_path)
    script = "import export.runtime, onnxruntime; assert onnxruntime.told == '1'"

    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_nothing_else_of_ours_loads_the_runtime() -> None:
    root = Path(__file__).parents[2]
    places = [path for package in ("models", "export", "edge_node", "coordinator") for path in (root / package).rglob("*.py")]

    assert [path.name for path in places if "import onnxruntime" in path.read_text()] == ["runtime.py"]
