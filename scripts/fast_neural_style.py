"""The network everybody compares with: Johnson et al. 2016 as PyTorch's `fast_neural_style` example lays it out, in ONNX.

Our own writing of that architecture (9x9 stem, two strided convolutions, five residual blocks of 128 channels, two nearest
enlargements, 9x9 head; reflection padding and instance norms throughout), with random weights: what a picture looks like does
not change what it costs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

PARAMETERS = 1_679_235


def fp32_onnx(seed: int = 0) -> bytes:
    """A serialised graph: ``photo`` (1, 3, H, W) float32 in 0..255 → ``picture``, the same; H and W multiples of 4."""
    writer = _Writer(np.random.default_rng(seed))
    x = writer.layer("photo", 3, 32, 9)
    x = writer.layer(x, 32, 64, 3, stride=2)
    x = writer.layer(x, 64, 128, 3, stride=2)
    for _ in range(5):
        changed = writer.layer(writer.layer(x, 128, 128, 3), 128, 128, 3, relu=False)
        x = writer.node("Add", x, changed)
    x = writer.layer(writer.enlarged(x), 128, 64, 3)
    x = writer.layer(writer.enlarged(x), 64, 32, 3)
    writer.node("Identity", writer.convolution(x, 32, 3, 9), output="picture")
    shape = [1, 3, "height", "width"]
    graph = helper.make_graph(
        writer.nodes,
        "fast_neural_style",
        [helper.make_tensor_value_info("photo", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, shape)],
        writer.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString()
    return serialised


class _Writer:
    def __init__(self, rng: np.random.Generator) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self._rng = rng

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))  # type: ignore[arg-type]
        return name

    def constant(self, values: npt.NDArray[np.generic]) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def convolution(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        edge = kernel // 2
        pads = self.constant(np.array([0, 0, edge, edge, 0, 0, edge, edge], np.int64))
        spread = 1 / np.sqrt(inputs * kernel**2)
        weight = self.constant(self._rng.normal(0, spread, (outputs, inputs, kernel, kernel)).astype(np.float32))
        bias = self.constant(np.zeros(outputs, np.float32))
        return self.node("Conv", self.node("Pad", x, pads, mode="reflect"), weight, bias, strides=[stride, stride])

    def layer(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> str:
        made = self.convolution(x, inputs, outputs, kernel, stride)
        ones, zeros = (self.constant(np.full(outputs, value, np.float32)) for value in (1, 0))
        normed = self.node("InstanceNormalization", made, ones, zeros)
        return self.node("Relu", normed) if relu else normed

    def enlarged(self, x: str) -> str:
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.node("Resize", x, "", scales, **modes)
