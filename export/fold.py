"""Style code + norm statistics + exact graph → folded graph: plain convolutions, which int8 kernels like best.

Whatever the exact graph computes from the code alone becomes numbers. Each ``InstanceNormalization`` computes
``(x - mean) / sqrt(var + epsilon) * scale + shift`` with the picture's own mean and variance. With the mean and variance of
some calibration photos instead, that is one factor and one offset per channel, which go into the convolution before it. No
torch: a gallery can fold a new mix.

The first norm can be left as it is. It is the one through which a photo's own exposure and contrast come in, so most of what
folding changes goes with it: pictures of three painters' learned styles differed by a CIEDE2000 of 2.7 to 4.8 with all norms
frozen at the quieter photos, and by 2.2 to 4.0 with that one live. In int8 (``quantize.py``) a picture takes 6 to 17 % longer
for it, and has to be painted whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.runtime import open_engine
from export.trim import trim_inplace
from models.contract import Signature, Work
from models.samplers import Code

_NORM = "InstanceNormalization"
Vector = npt.NDArray[np.float32]


class FoldError(ValueError):
    """The graph has a norm that does not follow a convolution; it has to stay exact."""


@dataclass(frozen=True, slots=True)
class NormStatistics:
    """What one norm of the exact graph saw on the calibration photos: each (C,)."""

    mean: Vector
    variance: Vector


def calibrate(exact: bytes, signature: Signature, code: Code, photos: Sequence[Work]) -> dict[str, NormStatistics]:
    """Run the exact graph over photos and keep statistics of each norm that lie in the middle of the photos' own.

    Args:
        exact: serialised exact graph.
        signature: of the modality.
        code: (D,) float32.
        photos: (H, W, 3) uint8, public.

    Returns:
        Statistics by the name of the norm's output.
    """
    return calibrations(exact, signature, code, photos)[0]


def calibrations(
    exact: bytes, signature: Signature, code: Code, photos: Sequence[Work]
) -> tuple[dict[str, NormStatistics], dict[str, NormStatistics]]:
    """See ``calibrate``: statistics in the middle of the photos' own, and others that lean to the quieter photos.

    With these, strokes are stronger. Which ones a style's pictures are truer with is seen when they are painted.
    """
    model = onnx.load_from_string(exact)
    norms = [node for node in model.graph.node if node.op_type == _NORM]
    for node in norms:
        _expose_inplace(model.graph, node)
    engine = open_engine(model.SerializeToString(), "calibration")
    seen: dict[str, list[NormStatistics]] = {node.output[0]: [] for node in norms}
    for photo in photos:
        outputs = engine.run({signature.content.name: photo[None], signature.code.name: code[None]})
        for node in norms:
            seen[node.output[0]].append(_statistics(node.input[0], outputs))
    middle, quiet = (
        {node.output[0]: typical(seen[node.output[0]], epsilon_of(node)) for node in norms} for typical in (_middle, _quiet)
    )
    return middle, quiet


def _expose_inplace(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Add a norm's per-channel moments to the graph's outputs."""
    x = node.input[0]
    axes = f"{x}__axes"
    mean, square, mean_square = f"{x}__mean", f"{x}__square", f"{x}__mean_square"
    graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), axes))
    graph.node.extend(
        [
            helper.make_node("ReduceMean", [x, axes], [mean], keepdims=0),
            helper.make_node("Mul", [x, x], [square]),
            helper.make_node("ReduceMean", [square, axes], [mean_square], keepdims=0),
        ]
    )
    for name in (mean, mean_square):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _statistics(x: str, outputs: Mapping[str, npt.NDArray[np.generic]]) -> NormStatistics:
    """What a norm with input ``x`` saw of one photo."""
    mean, mean_square = (np.ravel(outputs[f"{x}__{role}"]).astype(np.float64) for role in ("mean", "mean_square"))
    variance = np.maximum(mean_square - mean**2, 0)
    return NormStatistics(mean.astype(np.float32), variance.astype(np.float32))


def _middle(statistics: Sequence[NormStatistics], epsilon: float) -> NormStatistics:
    """The mean of the photos' means, and the variance whose factor is the geometric mean of the photos' factors.

    The mean of the variances would lean to the busiest photo and leave a quiet sky without strokes.
    """
    variances = np.array([s.variance for s in statistics], dtype=np.float64) + epsilon
    variance = np.maximum(np.exp(np.log(variances).mean(axis=0)) - epsilon, 0)
    mean = np.array([s.mean for s in statistics], dtype=np.float64).mean(axis=0)
    return NormStatistics(mean.astype(np.float32), variance.astype(np.float32))


def _quiet(statistics: Sequence[NormStatistics], epsilon: float) -> NormStatistics:
    """Statistics whose factor and offset are the mean of the photos' factors and offsets, which quiet photos have large."""
    factors = [1 / np.sqrt(s.variance.astype(np.float64) + epsilon) for s in statistics]
    factor = np.mean(factors, axis=0)
    mean = np.mean([s.mean * f for s, f in zip(statistics, factors, strict=True)], axis=0) / factor
    variance = np.maximum(factor**-2 - epsilon, 0)
    return NormStatistics(mean.astype(np.float32), variance.astype(np.float32))


def fold(
    exact: bytes, signature: Signature, code: Code, statistics: Mapping[str, NormStatistics], *, first_live: bool = False
) -> bytes:
    """Put the code into the graph and every norm into the convolution before it.

    Args:
        exact: serialised exact graph.
        signature: of the modality.
        code: (D,) float32.
        statistics: what ``calibrate`` returned for the same graph and code.
        first_live: leave the first norm to the statistics of the photo at hand.

    Returns:
        A serialised graph that takes the content alone.

    Raises:
        FoldError: a norm follows something else than a convolution, or a convolution and a PixelShuffle, of its own.
    """
    model = onnx.load_from_string(exact)
    graph = model.graph
    _bind_inplace(model, signature.code.name, code)
    makers = {output: node for node in graph.node for output in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    for node in [n for n in graph.node if n.op_type == _NORM][int(first_live) :]:
        conv, repeat = _convolution_before(node, makers)
        past = way_past(node, graph, weights)
        feeds = {node.input[0]: 1 + bool(past), conv.output[0]: 1 if repeat > 1 else 1 + bool(past), conv.input[1]: 1}
        if any(readers[name] != times for name, times in feeds.items()):
            raise FoldError("a convolution or its weights feed more than one norm")
        scale, shift = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
        gain, offset = _affine(node, statistics[node.output[0]], scale, shift)
        result = node.output[0]
        if past:
            gain = gain + past.share
            result = past.added.output[0]
            graph.node.remove(past.multiplied)
            graph.node.remove(past.added)
        _scale_inplace(graph, conv, weights, np.repeat(gain, repeat), np.repeat(offset, repeat))
        renamed[result] = node.input[0]
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    _drop_unused_inplace(graph, keep_inputs={signature.content.name})
    trim_inplace(model, signature)
    onnx.checker.check_model(model, full_check=True)
    folded: bytes = model.SerializeToString(deterministic=True)
    return folded


def _bind_inplace(model: onnx.ModelProto, name: str, code: Code) -> None:
    """Compute once what is computed from the code alone, and put the numbers where it was."""
    graph = model.graph
    constants, bound, nodes = {t.name for t in graph.initializer}, {name}, []
    for node in graph.node:
        inputs = set(node.input) - {""}
        if inputs & bound and inputs <= bound | constants:
            bound |= set(node.output)
            nodes.append(node)
    for node in nodes:
        graph.node.remove(node)
    wanted = sorted(bound & {read for node in graph.node for read in node.input})
    if not wanted:
        return
    computed = onnx.ModelProto()
    computed.CopyFrom(model)
    del computed.graph.node[:], computed.graph.output[:]
    computed.graph.node.extend(nodes)
    for value in wanted:  # by a copy of its own, since the code itself may be among them
        computed.graph.node.append(helper.make_node("Identity", [value], [f"{value}__bound"]))
        computed.graph.output.append(helper.make_tensor_value_info(f"{value}__bound", TensorProto.FLOAT, None))
    _drop_unused_inplace(computed.graph, keep_inputs={name})
    values = open_engine(computed.SerializeToString(), "code's").run({name: code[None]})
    graph.initializer.extend(numpy_helper.from_array(values[f"{value}__bound"], value) for value in wanted)


def _convolution_before(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> tuple[onnx.NodeProto, int]:
    """The convolution a norm can go into, and how many of its channels make one channel of the norm."""
    before, repeat = makers.get(node.input[0]), 1
    if before is not None and before.op_type == "DepthToSpace":
        attributes = {a.name: a for a in before.attribute}
        if attributes["mode"].s != b"CRD":
            raise FoldError("a norm follows a DepthToSpace of an order we do not fold")
        repeat = attributes["blocksize"].i ** 2  # CRD: channel c comes from channels c * block², ..., + block² - 1
        before = makers.get(before.input[0])
    if before is None or before.op_type != "Conv":
        raise FoldError("a norm does not follow a convolution")
    return before, repeat


@dataclass(frozen=True, slots=True)
class WayPast:
    """``norm(x) + x * share``: what some channels keep of what the norm was given, share (C,)."""

    multiplied: onnx.NodeProto
    added: onnx.NodeProto
    share: Vector


def way_past(norm: onnx.NodeProto, graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> WayPast | None:
    """The way past a norm, if there is one with a constant share for each channel."""
    for multiplied in (n for n in graph.node if n.op_type == "Mul" and norm.input[0] in n.input):
        share = next((weights[name] for name in multiplied.input if name in weights), None)
        pair = {norm.output[0], multiplied.output[0]}
        added = next((n for n in graph.node if n.op_type == "Add" and set(n.input) == pair), None)
        if share is not None and added is not None:
            return WayPast(multiplied, added, numpy_helper.to_array(share).reshape(-1))
    return None


def _affine(node: onnx.NodeProto, seen: NormStatistics, scale: Vector, shift: Vector) -> tuple[Vector, Vector]:
    gain = scale / np.sqrt(seen.variance + np.float32(epsilon_of(node)))
    return gain, shift - seen.mean * gain


def epsilon_of(norm: onnx.NodeProto) -> float:
    """What a norm adds to the variance."""
    return next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)


def _scale_inplace(
    graph: onnx.GraphProto, conv: onnx.NodeProto, weights: dict[str, TensorProto], gain: Vector, offset: Vector
) -> None:
    """conv(x) * gain + offset, as one convolution."""
    weight = weights[conv.input[1]]
    array = numpy_helper.to_array(weight) * gain[:, None, None, None]
    weight.CopyFrom(numpy_helper.from_array(array.astype(np.float32), weight.name))
    old_bias = numpy_helper.to_array(weights[conv.input[2]]) if len(conv.input) > 2 else np.float32(0)
    name = f"{weight.name}__folded_bias"
    graph.initializer.append(numpy_helper.from_array((old_bias * gain + offset).astype(np.float32), name))
    conv.input[:] = [conv.input[0], conv.input[1], name]


def _drop_unused_inplace(graph: onnx.GraphProto, keep_inputs: set[str]) -> None:
    """Remove what no output needs any more: the code's slices and the code itself."""
    needed = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):
        if needed & set(node.output):
            needed |= set(node.input)
        else:
            graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name not in needed]:
        graph.initializer.remove(tensor)
    for value in [i for i in graph.input if i.name not in keep_inputs]:
        graph.input.remove(value)
    del graph.value_info[:]
