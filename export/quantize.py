"""Folded fp32 graph → int8 graph: bytes from end to end, static, calibrated on real photos.

What is written is laid out for the kernels. Every tensor lies as (H, W, C); four neighbouring pixels of the photo are read as
one of twelve channels, so that the stem needs no shuffle; a PixelShuffle moves whole runs of bytes; the photo's bytes are the
first convolution's input and the last one's output is the picture's bytes, where saturation does the clipping.

A first norm that was left live (``fold.py``) stays live: its statistics are those of the very integers the stem's
convolution adds up, taken at every second of its places each way, and go into that convolution's scales and biases. Nothing
is rounded in between, so a bare wall, whose norm multiplies by three hundred, has no steps.

Two forms from one calibration, since one cannot serve both runtimes: ONNX Runtime fuses a convolution only with a quantised
bias, OpenVINO and TensorRT only with one in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import frame
from export.fold import epsilon_of, way_past
from export.runtime import open_engine
from models.contract import Signature, Work

Target = Literal["onnxruntime", "openvino"]
Array = npt.NDArray[Any]
_BYTE: Final = 1 / 255  # a photo's and a picture's step
_GROUPED: Final = 4  # neighbouring pixels read as one
_LANES: Final = 16  # filters a kernel computes side by side
_LOUDER: Final = 8.0  # by this much at the most is a quiet channel amplified
_BIAS_MAX: Final = 2.0**30  # steps of a bias, which is an int32
_CHANNELS_FIRST: Final = (0, 3, 1, 2)
_CHANNELS_LAST: Final = (0, 2, 3, 1)


class QuantizeError(ValueError):
    """The graph holds something we do not quantise; it has to stay fp32."""


@dataclass(frozen=True, slots=True)
class Span:
    """What values the channels of a tensor of the fp32 graph take on the calibration photos, each (C,).

    The mean over the photos of each one's least and greatest: the greatest of all is reached by one pixel of one photo, and
    eight bits that reach that far have little left for the others.
    """

    low: Array
    high: Array


@dataclass(frozen=True, slots=True)
class _LiveNorm:
    """``(x - mean) / sqrt(variance + epsilon) * scale + shift`` of a picture's own mean and variance, or x as it is.

    Attributes:
        scale, shift: (C,).
        passes: (C,) bool, the channels that are handed on as they are.
        epsilon: of the norm.
    """

    scale: Array
    shift: Array
    passes: Array
    epsilon: float


@dataclass(frozen=True, slots=True)
class _Step:
    """One operator of the body, with the ReLU after it.

    Attributes:
        kind: of operator.
        inputs: names of the tensors it reads.
        output: name of the tensor it makes, after the ReLU.
        relu: whether there is one.
        weight: (O, I, h, w) of a convolution.
        bias: (O,) of a convolution.
        stride: of a convolution.
        pads: of a convolution, on every side; of a crop what is taken away there.
        norm: of the first convolution, if it was left live.
    """

    kind: Literal["conv", "add", "shuffle", "crop"]
    inputs: tuple[str, ...]
    output: str
    relu: bool = False
    weight: Array | None = None
    bias: Array | None = None
    stride: int = 1
    pads: int = 0
    norm: _LiveNorm | None = None


def observe(folded: bytes, signature: Signature, photos: Sequence[Work]) -> dict[str, Span]:
    """Run the folded graph over photos and note what values its tensors take.

    Args:
        folded: serialised fp32 graph.
        signature: of the modality.
        photos: (H, W, 3) uint8 to calibrate on, public.

    Raises:
        QuantizeError: see the class.
    """
    model = onnx.load_from_string(folded)
    names = [step.output for step in _steps(model.graph, signature)]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), "all_but_channels"))
    for name in names:
        for operator in ("ReduceMin", "ReduceMax"):
            output = f"{name}__{operator}"
            model.graph.node.append(helper.make_node(operator, [name, "all_but_channels"], [output], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    engine = open_engine(model.SerializeToString(), "calibration")
    seen = [engine.run({signature.content.name: photo[None]}) for photo in photos]
    return {
        name: Span(
            low=np.mean([np.asarray(values[f"{name}__ReduceMin"], np.float32) for values in seen], axis=0),
            high=np.mean([np.asarray(values[f"{name}__ReduceMax"], np.float32) for values in seen], axis=0),
        )
        for name in names
    }


def int8_onnx(folded: bytes, signature: Signature, spans: Mapping[str, Span], target: Target) -> bytes:
    """Quantise a folded graph.

    Args:
        folded: serialised fp32 graph.
        signature: of the modality.
        spans: what ``observe`` returned for it.
        target: the runtime that is to run it.

    Raises:
        QuantizeError: see the class.
    """
    model = onnx.load_from_string(folded)
    steps, spans = _equalised(_steps(model.graph, signature), spans)
    writer = _Writer(signature, _grids(steps, spans), {s.inputs[0] for s in steps if s.kind == "shuffle"}, target)
    writer.photo()
    for step in steps[:-2]:
        writer.step(step)
    writer.picture(steps[-2])
    before, after = frame.nodes_of(model.graph, signature)
    numbers = [t for t in model.graph.initializer if any(t.name in n.input for n in (*before, *after))]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend([*before, *writer.nodes, *after])
    model.graph.initializer.extend([*numbers, *writer.constants])
    onnx.checker.check_model(model, full_check=True)
    quantised: bytes = model.SerializeToString(deterministic=True)
    return quantised


def _steps(graph: onnx.GraphProto, signature: Signature) -> list[_Step]:
    """The body as steps, from the photo's colours in [0, 1] to the picture's; the last two are a convolution and a shuffle.

    Raises:
        QuantizeError: an operator we do not know, or ends that are not bytes.
    """
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    first = next((i for i, n in enumerate(graph.node) if frame.inside(signature.content.name) in n.input), 0)
    last = next((i for i, n in enumerate(graph.node) if n.op_type == "Clip"), 0)
    kinds = [n.op_type for n in graph.node]
    if kinds[first : first + 3] != ["Transpose", "Cast", "Div"] or kinds[last : last + 5] != _TO_BYTES:
        raise QuantizeError("the graph does not begin and end with bytes")
    steps: list[_Step] = []
    body = list(graph.node[first + 3 : last])
    if len(body) > 1 and body[1].op_type == "InstanceNormalization":
        steps.append(_normed(_step(body[0], weights), body[1], graph))
        body = body[[node.output[0] for node in body].index(steps[0].output) + 1 :]
    for node in body:
        if node.op_type == "Relu" and steps and steps[-1].output == node.input[0]:
            steps[-1] = replace(steps[-1], output=node.output[0], relu=True)
        else:
            steps.append(_step(node, weights))
    steps = _relu_before_shuffle(steps)
    if [step.kind for step in steps[-2:]] != ["conv", "shuffle"] or steps[-1].relu:
        raise QuantizeError("the graph does not end with a convolution and a PixelShuffle")
    return steps


_TO_BYTES: Final = ["Clip", "Mul", "Round", "Transpose", "Cast"]


def _step(node: onnx.NodeProto, weights: Mapping[str, Array]) -> _Step:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Add":
        return _Step("add", tuple(node.input), node.output[0])
    if node.op_type == "DepthToSpace" and attributes == {"blocksize": 2, "mode": b"CRD"}:
        return _Step("shuffle", tuple(node.input), node.output[0])
    if node.op_type == "Pad" and len(node.input) == 2 and node.input[1] in weights:
        pads = weights[node.input[1]].tolist()
        if pads == [0, 0, *pads[2:4]] * 2 and pads[2] == pads[3] < 0:
            return _Step("crop", (node.input[0],), node.output[0], pads=-pads[2])
    if node.op_type == "Conv" and len(node.input) == 3 and attributes.get("group", 1) == 1:
        pads, strides = attributes.get("pads", [0] * 4), attributes.get("strides", [1, 1])
        if len(set(pads)) == len(set(strides)) == 1 and attributes.get("auto_pad", b"NOTSET") == b"NOTSET":
            weight, bias = (weights[name] for name in node.input[1:])
            read = {"weight": weight, "bias": bias, "stride": strides[0], "pads": pads[0]}
            return _Step("conv", (node.input[0],), node.output[0], **read)
    raise QuantizeError(f"the graph holds a {node.op_type} that is not quantised")


def _normed(conv: _Step, node: onnx.NodeProto, graph: onnx.GraphProto) -> _Step:
    """A convolution with the live norm after it.

    Raises:
        QuantizeError: a channel is neither normed nor handed on, or is both.
    """
    tensors = {t.name: t for t in graph.initializer}
    past = way_past(node, graph, tensors)
    if past is None or conv.kind != "conv" or node.input[0] != conv.output:
        raise QuantizeError("the graph holds a norm that is not quantised")
    scale, shift = (numpy_helper.to_array(tensors[name]) for name in node.input[1:])
    passes = past.share == 1
    if not np.all(np.where(passes, (scale == 0) & (shift == 0), past.share == 0)):
        raise QuantizeError("the graph holds a norm that mixes what it norms with what it does not")
    return replace(conv, output=past.added.output[0], norm=_LiveNorm(scale, shift, passes, epsilon_of(node)))


def _relu_before_shuffle(steps: Sequence[_Step]) -> list[_Step]:
    """The same steps, with a ReLU after a shuffle done before it, where the convolution does it on the way."""
    moved = list(steps)
    for i, step in enumerate(moved[1:], start=1):
        if step.kind == "shuffle" and step.relu and moved[i - 1].output == step.inputs[0]:
            moved[i - 1], moved[i] = replace(moved[i - 1], relu=True), replace(step, relu=False)
    return moved


class _Kin:
    """Tensors of a kind, found by joining them two by two."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def join(self, one: str, other: str) -> None:
        if self.of(one) != self.of(other):
            self._parents[self.of(one)] = self.of(other)

    def of(self, name: str) -> str:
        """The name of its kind."""
        while name in self._parents:
            name = self._parents[name]
        return name


def _equalised(steps: Sequence[_Step], spans: Mapping[str, Span]) -> tuple[list[_Step], dict[str, Span]]:
    """The same function, with the channels of a tensor brought nearer to each other in range.

    A channel is multiplied by a number where it is made and divided by it where it is read, which a ReLU lets through
    (Nagel et al. 2019, arXiv 1906.04721, section 4.1). Without that a trunk's busiest channel takes most of the eight bits
    from the underpainting that lies beside it.
    """
    kin = _Kin()
    for step in steps:
        if step.kind in ("add", "crop"):
            for name in step.inputs:
                kin.join(name, step.output)
    # A tensor a shuffle reads has four channels for each one of what it makes.
    makes = {step.inputs[0]: step.output for step in steps if step.kind == "shuffle"}
    trunk = [step.output for step in steps if step.relu or step.kind == "shuffle"]
    ranges: dict[str, Array] = {}
    for name in trunk:
        if name not in makes:
            known = ranges.get(kin.of(name), np.zeros(1))
            ranges[kin.of(name)] = np.maximum(known, spans[name].high)
    factors = {kind: _factors(high) for kind, high in ranges.items()}
    last = steps[-1].output  # a picture's channels are what they are
    factors.pop(kin.of(last), None)

    def factor(name: str) -> Array | None:
        if name in makes:
            inner = factors.get(kin.of(makes[name]))
            return None if inner is None else np.repeat(inner, 4)
        return factors.get(kin.of(name))

    changed, wide = [], {}
    for step in steps:
        made = factor(step.output)
        scale = np.ones(1) if made is None else made
        wide[step.output] = Span(spans[step.output].low * scale, spans[step.output].high * scale)
        changed.append(_amplified(step, factor(step.inputs[0]), scale))
    return changed, wide


def _amplified(step: _Step, read: Array | None, made: Array) -> _Step:
    """A convolution that reads channels multiplied by ``read`` and makes its own so by ``made``; another step as it is."""
    if step.weight is None or step.bias is None:
        return step
    weight, norm = step.weight, step.norm
    if norm is not None:  # what it norms is made louder by the norm
        whole = np.broadcast_to(made, norm.scale.shape)
        norm = replace(norm, scale=norm.scale * whole, shift=norm.shift * whole)
        made = np.where(norm.passes, whole, 1.0)
    if read is not None:
        weight = weight / read[None, :, None, None]
    return replace(step, weight=weight * made[:, None, None, None], bias=step.bias * made, norm=norm)


def _factors(high: Array) -> Array:
    """By what each channel is multiplied so that quiet ones are heard: half of the way to the loudest, in decibels."""
    loudest = max(float(high.max()), 1e-6)
    factors: Array = np.minimum(np.sqrt(loudest / np.maximum(high, 1e-3 * loudest)), _LOUDER)
    return factors


@dataclass(frozen=True, slots=True)
class _Grid:
    """The values eight bits can take: ``(0..255 - zero) * scale``."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> _Grid:
        low, high = min(low, 0.0), max(high, 0.0, 1e-6)
        scale = (high - low) / 255
        return cls(scale, round(-low / scale))


def _grids(steps: Sequence[_Step], spans: Mapping[str, Span]) -> dict[str, _Grid]:
    """The grid of every tensor. Those that a trunk of additions joins share one, so that what passes them does so exactly."""
    kin = _Kin()
    for step in steps:
        if step.kind in ("shuffle", "crop"):
            kin.join(step.inputs[0], step.output)
        elif step.kind == "add":
            for name in step.inputs:
                if sum(name in other.inputs for other in steps) > 1:  # the trunk, and not what is added to it
                    kin.join(name, step.output)
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for step in steps:
        kind, span = kin.of(step.output), spans[step.output]
        # What a shuffle hands on was seen before its ReLU was moved.
        low[kind] = min(low.get(kind, 0.0), 0.0 if step.relu else float(span.low.min()))
        high[kind] = max(high.get(kind, 0.0), float(span.high.max()))
    return {step.output: _Grid.of(low[kin.of(step.output)], high[kin.of(step.output)]) for step in steps}


class _Writer:
    """Writes the int8 body, step by step."""

    def __init__(self, signature: Signature, grids: Mapping[str, _Grid], shuffled: set[str], target: Target) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._signature = signature
        self._grids = grids
        self._shuffled = shuffled  # tensors a shuffle reads
        self._target = target
        self._photo = ""
        self._bytes: dict[str, str] = {}  # tensor of the fp32 graph → the bytes (1, C, H, W) that stand for it here
        self._meanings: dict[str, str] = {}
        self._filters: dict[str, int] = {}  # channels of a convolution's output

    def photo(self) -> None:
        """Read four pixels as one of twelve channels: the bytes lie that way already."""
        grouped = self._node("Reshape", frame.inside(self._signature.content.name), self._numbers([0, 0, -1, 3 * _GROUPED]))
        self._photo = self._node("Transpose", grouped, perm=_CHANNELS_FIRST)
        if self._target == "openvino":  # bytes it has not quantised itself it multiplies in bfloat16, for twice the time
            grid = _Grid(_BYTE, 0)
            self._photo = self._to_bytes(self._meaning(self._photo, grid), grid)

    def step(self, step: _Step) -> None:
        """Write one step; its output is then known by the name it has in the fp32 graph."""
        if step.kind in ("shuffle", "crop"):
            self._move(step)
            return
        if step.norm is not None:
            self._bytes[step.output] = self._normed_convolution(step, step.norm)
            return
        result = self._convolution(step) if step.kind == "conv" else self._sum(step)
        made = self._node("Relu", result) if step.relu else result
        self._bytes[step.output] = self._to_bytes(made, self._grids[step.output])

    def picture(self, conv: _Step) -> None:
        """The last convolution, its shuffle, and the bytes of a picture (1, H, W, 3)."""
        # ONNX Runtime takes 1.8 times as long for 12 filters as for 16; OpenVINO does not.
        made = self._to_bytes(self._convolution(conv, fills_lanes=self._target == "onnxruntime"), _Grid(_BYTE, 0))
        rows = self._in_rows(made, 3, self._filters[conv.output])
        self.nodes.append(helper.make_node("Identity", [rows], [frame.inside(self._signature.output.name)]))

    def _sum(self, step: _Step) -> str:
        return self._node("Add", *(self._values(name) for name in step.inputs))

    def _values(self, name: str) -> str:
        """What the bytes of a tensor mean."""
        if name not in self._meanings:
            self._meanings[name] = self._meaning(self._bytes[name], self._grids[name])
        return self._meanings[name]

    def _convolution(self, step: _Step, *, fills_lanes: bool = False) -> str:
        """A convolution with int8 weights, one scale a filter."""
        if step.weight is None or step.bias is None:
            raise QuantizeError("a convolution without weights")
        weight, bias, strides = step.weight, step.bias, [step.stride] * 2
        if step.output in self._shuffled:
            weight, bias = _by_phase(weight), _by_phase(bias)
        if fills_lanes:
            weight, bias = _in_full_lanes(weight), _in_full_lanes(bias)
        if step.inputs[0] in self._grids:
            grid, values = self._grids[step.inputs[0]], self._values(step.inputs[0])
        else:
            grid, strides = _Grid(_BYTE, 0), [step.stride, step.stride // _GROUPED]
            values, weight = self._meaning(self._photo, grid), _of_groups(step)
        self._filters[step.output] = len(weight)
        _refuse_infinite(weight, bias, np.array(grid.scale))
        # A filter of next to nothing beside its bias gets steps so coarse that the bias still has a whole number.
        greatest = np.maximum(np.abs(weight).max(axis=(1, 2, 3)) / 127, np.abs(bias) / (grid.scale * _BIAS_MAX))
        scales = np.maximum(greatest, 1e-12).astype(np.float32)
        steps = np.round(weight / scales[:, None, None, None]).astype(np.int8)
        small = self._integers(steps, self._constant(scales))
        return self._node(
            "Conv",
            values,
            small,
            self._bias(bias, np.float32(grid.scale) * scales),
            kernel_shape=list(weight.shape[2:]),
            strides=strides,
            pads=[step.pads] * 4,
        )

    def _normed_convolution(self, step: _Step, norm: _LiveNorm) -> str:
        """The stem with its norm: int8 weights, whose scales and whose biases depend on the photo.

        Where ``n`` is the sum of weights' times pixels' steps and ``unit`` what one of these is worth, the norm of
        ``unit * n`` is ``gain * (n - mean(n)) + shift`` with ``gain = |scale| / sqrt(variance(n) + epsilon / unit^2)``; the
        sign of the scale is in the weights.
        """
        if step.weight is None or step.bias is None:
            raise QuantizeError("a convolution without weights")
        _refuse_infinite(step.weight, step.bias, norm.scale, norm.shift)
        weight = _of_groups(replace(step, weight=step.weight * np.where(norm.scale < 0, -1.0, 1.0)[:, None, None, None]))
        self._filters[step.output] = len(weight)
        scales = np.maximum(np.abs(weight).max(axis=(1, 2, 3)) / 127, 1e-12)
        integers = np.round(weight / scales[:, None, None, None]).astype(np.int8)
        units = _BYTE * scales
        gain, bias = self._live(integers, step, norm, units)
        window = {"kernel_shape": weight.shape[2:], "strides": [step.stride, step.stride // _GROUPED]}
        grid = self._grids[step.output]
        if self._target == "onnxruntime":  # which fuses by itself only what has constant scales
            numbers = self._node("Div", gain, self._constant(np.array(_BYTE, np.float32)))
            steps = self._node("Cast", self._node("Round", bias), to=TensorProto.INT32)
            zeros = self._constant(np.zeros(len(integers), np.int8))
            pixels = (self._photo, *self._grid(_Grid(_BYTE, 0)))
            # A ReLU needs no operator: bytes end where it does.
            return self._node(
                "QLinearConv", *pixels, self._constant(integers), numbers, zeros, *self._grid(grid), steps, **window
            )
        # OpenVINO computes in eight bits only with scales it knows beforehand; what follows is a multiplication of its own.
        values = self._meaning(self._photo, _Grid(_BYTE, 0))
        sums = self._node("Conv", values, self._integers(integers, self._constant(scales.astype(np.float32))), **window)
        factor = self._node("Div", gain, self._constant(units.astype(np.float32)))
        by_channel = self._numbers([1, -1, 1, 1])
        product = self._node("Mul", sums, self._node("Reshape", factor, by_channel))
        normed = self._node("Add", product, self._node("Reshape", self._node("Mul", gain, bias), by_channel))
        return self._to_bytes(self._node("Relu", normed) if step.relu else normed, grid)

    def _live(self, integers: Array, step: _Step, norm: _LiveNorm, units: Array) -> tuple[str, str]:
        """Gain and bias of a live norm, each (C,) float32, for sums of integers: ``gain * (n + bias)``."""
        count = len(integers)
        # (C, 4 * 3, 8, 2) → (8 rows * 8 columns * 3 colours, C), the order in which a window's bytes lie
        by_byte = integers.reshape(count, _GROUPED, 3, integers.shape[2], -1).transpose(3, 4, 1, 2, 0)
        height, width = by_byte.shape[0], by_byte.shape[1] * _GROUPED
        weight = by_byte.reshape(-1, count)
        windows = self._windows(height, width)
        if self._target == "onnxruntime":
            whole = self._node("MatMulInteger", windows, self._constant(weight))
            sums = self._node("Cast", whole, to=TensorProto.FLOAT)
        else:
            numbers = self._node("Cast", windows, to=TensorProto.FLOAT)
            sums = self._node("MatMul", numbers, self._constant(weight.astype(np.float32)))
        mean = self._node("ReduceMean", sums, self._numbers([0]), keepdims=0)
        apart = self._node("Sub", sums, mean)
        variance = self._node("ReduceMean", self._node("Mul", apart, apart), self._numbers([0]), keepdims=0)
        safe = self._node("Add", variance, self._constant((norm.epsilon / units**2).astype(np.float32)))
        gain = self._node("Div", self._constant(np.abs(norm.scale).astype(np.float32)), self._node("Sqrt", safe))
        # A scale of next to nothing still leaves the shift a whole number.
        least = np.maximum(np.abs(norm.shift) / _BIAS_MAX, 1e-12).astype(np.float32)
        gain = self._node("Max", gain, self._constant(least))
        bias = self._node("Sub", self._node("Div", self._constant(norm.shift.astype(np.float32)), gain), mean)
        passes = self._constant(norm.passes)
        return (
            self._node("Where", passes, self._constant(units.astype(np.float32)), gain),
            self._node("Where", passes, self._constant((np.asarray(step.bias) / units).astype(np.float32)), bias),
        )

    def _windows(self, height: int, width: int) -> str:
        """Bytes of the photo's windows, side by side: (N, height * width * 3)."""
        photo = frame.inside(self._signature.content.name)
        window = self._numbers([height, width])
        counts = self._node("Div", self._node("Shape", photo, start=1, end=3), window)
        sides = self._node("Mul", counts, window)
        whole = self._node("Slice", photo, self._numbers([0, 0]), sides, self._numbers([1, 2]))
        down, across = (self._node("Slice", counts, *map(self._numbers, ([i], [i + 1], [0]))) for i in range(2))
        shape = self._node("Concat", down, self._numbers([height]), across, self._numbers([3 * width]), axis=0)
        apart = self._node("Transpose", self._node("Reshape", whole, shape), perm=(0, 2, 1, 3))
        return self._node("Reshape", apart, self._numbers([-1, 3 * height * width]))

    def _integers(self, weight: Array, scales: str) -> str:
        """Int8 weights (O, I, h, w) with a scale for each filter."""
        steps, zeros = self._constant(weight), self._constant(np.zeros(len(weight), np.int8))
        return self._node("DequantizeLinear", steps, scales, zeros, axis=0)

    def _bias(self, bias: Array, scales: Array) -> str:
        if self._target == "openvino":
            return self._constant(bias.astype(np.float32))
        steps = np.round(bias / scales).astype(np.int32)
        return self._node("DequantizeLinear", *map(self._constant, (steps, scales, np.zeros(len(scales), np.int32))), axis=0)

    def _move(self, step: _Step) -> None:
        """A PixelShuffle by two, or a crop.

        Bytes are moved for ONNX Runtime. For OpenVINO it is the numbers they stand for, which come to the same there: it
        finds where a convolution's input was quantised by going back through what moves numbers, and through nothing else.
        """
        source, openvino = step.inputs[0], self._target == "openvino"
        whole = self._values(source) if openvino else self._bytes[source]
        made = self._cropped(whole, step.pads) if step.kind == "crop" else self._enlarged(whole, self._filters[source])
        (self._meanings if openvino else self._bytes)[step.output] = made

    def _cropped(self, whole: str, pixels: int) -> str:
        return self._node("Slice", whole, *map(self._numbers, ([pixels] * 2, [-pixels] * 2, [2, 3])))

    def _enlarged(self, small: str, filters: int) -> str:
        return self._node("Transpose", self._in_rows(small, filters // 4, filters), perm=_CHANNELS_FIRST)

    def _in_rows(self, small: str, channels: int, filters: int) -> str:
        """(1, filters, h, w), phases outermost → (1, H, W, channels): runs of two pixels, from beside each other to two rows.

        Cut in two and put together again, which is a third of what a Transpose of five axes costs. Filters beyond four a
        channel are let go.
        """
        sizes = [2 * channels, 2 * channels, *([filters - 4 * channels] if filters > 4 * channels else [])]
        parts = [f"split_{len(self.nodes)}_{i}" for i in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [small, self._numbers(sizes)], parts, axis=1))
        upper, lower = (self._node("Transpose", part, perm=_CHANNELS_LAST) for part in parts[:2])
        rows = (self._node("Reshape", row, self._numbers([0, 0, 1, -1])) for row in (upper, lower))
        both = self._node("Concat", *rows, axis=2)
        size = self._node("Mul", self._node("Shape", upper, start=1, end=3), self._numbers([2, 2]))
        shape = self._node("Concat", self._numbers([1]), size, self._numbers([channels]), axis=0)
        return self._node("Reshape", both, shape)

    def _to_bytes(self, values: str, grid: _Grid) -> str:
        return self._node("QuantizeLinear", values, *self._grid(grid))

    def _meaning(self, steps: str, grid: _Grid) -> str:
        return self._node("DequantizeLinear", steps, *self._grid(grid))

    def _grid(self, grid: _Grid) -> tuple[str, str]:
        return self._constant(np.array(grid.scale, np.float32)), self._constant(np.array(grid.zero, np.uint8))

    def _numbers(self, values: Sequence[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, values: Array) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name


def _refuse_infinite(*numbers: Array) -> None:
    if not all(np.isfinite(array).all() for array in numbers):
        raise QuantizeError("a convolution holds numbers that are not finite")


def _of_groups(step: _Step) -> Array:
    """The stem's weights (O, 3, h, w) for groups of four pixels: (O, 12, h, w / 4).

    Raises:
        QuantizeError: it does not go by whole groups.
    """
    weight = np.asarray(step.weight)
    filters, colours, height, width = weight.shape
    if step.pads or step.stride % _GROUPED or width % _GROUPED:
        raise QuantizeError("the first convolution does not go by four pixels at a time")
    grouped = weight.reshape(filters, colours, height, width // _GROUPED, _GROUPED).transpose(0, 4, 1, 2, 3)
    return grouped.reshape(filters, _GROUPED * colours, height, width // _GROUPED)


def _in_full_lanes(values: Array) -> Array:
    """Filters (O, ...) or biases (O,), and zeros up to a multiple of 16."""
    return np.pad(values, [(0, -len(values) % _LANES), *[(0, 0)] * (values.ndim - 1)])


def _by_phase(values: Array) -> Array:
    """Channels from PixelShuffle's order, phases innermost, to the order in which pixels lie, phases outermost."""
    return values.reshape(-1, 4, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
