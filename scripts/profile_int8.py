"""Where an int8 picture's time goes, operator by operator, and how near its convolutions are to what this machine can do.

What it can do is measured, not looked up: one large int8 convolution (256 channels to 256, 3x3, 64 x 64 pixels), in the same
runtime, which spends all its time multiplying.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from export.runtime import Runtime, open_engine
from models.contract import Work

_RUNS: Final = 20
_CHANNELS: Final = 256
_SIDE: Final = 64


@dataclass(frozen=True, slots=True)
class Profile:
    """One graph in one runtime, on one thread.

    Attributes:
        contender: tier and runtime.
        shares: percent of the time by operator, the largest first.
        gops: billions of int8 multiplications and additions a second, over the whole call.
        peak_gops: of one large convolution alone.
    """

    contender: str
    shares: dict[str, int]
    gops: float
    peak_gops: float


def profile(contender: str, graph: bytes, runtime: Runtime, photo: Work, multiplications: int) -> Profile:
    """Run a graph often and sum up.

    Args:
        contender: its name.
        graph: int8, in the runtime's form.
        runtime: to run it.
        photo: (H, W, 3) uint8.
        multiplications: of its convolutions for that photo.
    """
    spent = _of_onnxruntime(graph, photo) if runtime == "onnxruntime" else _of_openvino(graph, photo)
    total = sum(spent.values())
    shares = {name: round(100 * share / total) for name, share in spent.most_common() if share >= 0.01 * total}
    seconds = _seconds(graph, runtime, {"photo": photo[None]})
    reference = _reference(runtime)
    values = np.random.default_rng(0).integers(0, 256, (1, _CHANNELS, _SIDE, _SIDE), dtype=np.uint8)
    peak = 2 * _CHANNELS**2 * 9 * _SIDE**2 / _seconds(reference, runtime, {"values": values})
    return Profile(contender, shares, round(2 * multiplications / seconds / 1e9), round(peak / 1e9))


def _seconds(graph: bytes, runtime: Runtime, feed: dict[str, Any]) -> float:
    engine = open_engine(graph, "profiled", 1, runtime)
    times = []
    for _ in range(3 + _RUNS):
        started = time.perf_counter()
        engine.run(feed)
        times.append(time.perf_counter() - started)
    return float(np.median(times[3:]))


def _of_onnxruntime(graph: bytes, photo: Work) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, {"photo": photo[None]})
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return spent


def _of_openvino(graph: bytes, photo: Work) -> Counter[str]:
    import openvino  # noqa: PLC0415 - after export.runtime has kept it from reporting its import

    options = {"INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().read_model(graph)
    model.reshape({"photo": list(photo[None].shape)})
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    spent: Counter[str] = Counter()
    for _ in range(_RUNS):
        request.infer({"photo": photo[None]})
        for part in request.get_profiling_info():
            spent[f"{part.node_type} {part.exec_type.rpartition('_')[2]}"] += int(part.real_time.total_seconds() * 1e6)
    return spent


def _reference(runtime: Runtime) -> bytes:
    """One large int8 convolution, in the form that runtime fuses."""
    rng = np.random.default_rng(0)
    constants = {
        "step": np.array(0.02, np.float32),
        "zero": np.array(0, np.uint8),
        "weight": rng.integers(-127, 128, (_CHANNELS, _CHANNELS, 3, 3)).astype(np.int8),
        "weight_step": np.full(_CHANNELS, 1e-4, np.float32),
        "weight_zero": np.zeros(_CHANNELS, np.int8),
        "bias": np.zeros(_CHANNELS, np.int32 if runtime == "onnxruntime" else np.float32),
        "bias_step": np.full(_CHANNELS, 2e-6, np.float32),
        "bias_zero": np.zeros(_CHANNELS, np.int32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["values", "step", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_step", "weight_zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w", "b" if runtime == "onnxruntime" else "bias"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["y", "step", "zero"], ["out"]),
    ]
    if runtime == "onnxruntime":
        nodes.insert(2, helper.make_node("DequantizeLinear", ["bias", "bias_step", "bias_zero"], ["b"], axis=0))
    shape = [1, _CHANNELS, _SIDE, _SIDE]
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info("values", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("out", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    serialised: bytes = model.SerializeToString()
    return serialised
