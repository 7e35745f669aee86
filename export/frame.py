"""A frame around what a graph is given, put on and taken off inside the graph, so that nothing outside touches a pixel.

The edge is repeated outwards by the margin, and further below and on the right up to the multiple the network needs. The
zero padding inside the network then never shows, and a graph takes every size.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.contract import Frame, Signature


def inside(name: str) -> str:
    """What a graph's input or output is called within the frame."""
    return f"{name}__framed"


def put_inplace(model: onnx.ModelProto, signature: Signature, edge: Frame) -> None:
    """Let a graph that needs a frame put it on by itself.

    Args:
        model: takes ``signature.content`` and gives ``signature.output``, both (1, H, W, C), with the frame.
        signature: of the modality.
        edge: what the graph needs.
    """
    graph = model.graph
    content, output = signature.content.name, signature.output.name
    for node in graph.node:
        node.input[:] = [inside(name) if name == content else name for name in node.input]
        node.output[:] = [inside(name) if name == output else name for name in node.output]
    before, after = _nodes(content, output)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(_numbers(edge))
    for value, spec in ((graph.input, signature.content), (graph.output, signature.output)):
        place = next(i for i, v in enumerate(value) if v.name == spec.name)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        free = iter(("height", "width"))
        shape = [side if side is not None else next(free) for side in spec.shape]
        value[place].CopyFrom(helper.make_tensor_value_info(spec.name, kind, shape))


def _numbers(edge: Frame) -> list[TensorProto]:
    margin = edge.margin
    numbers = {
        "frame__margins": [margin, margin],
        "frame__starts": [margin - edge.used, margin - edge.used],
        "frame__both": [2 * margin, 2 * margin],
        "frame__multiple": [edge.multiple, edge.multiple],
        "frame__zero": [0],
        "frame__none": [0, 0],
        "frame__axes": [1, 2],
    }
    return [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in numbers.items()]


def _nodes(content: str, output: str) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """What comes before and after the network."""
    sides = ["frame__zero", "frame__margins", "frame__zero", "frame__zero", "frame__far", "frame__zero"]
    before = [
        helper.make_node("Shape", [content], ["frame__bare"], start=1, end=3),
        helper.make_node("Add", ["frame__bare", "frame__both"], ["frame__least"]),
        helper.make_node("Sub", ["frame__none", "frame__least"], ["frame__negative"]),
        helper.make_node("Mod", ["frame__negative", "frame__multiple"], ["frame__more"]),
        helper.make_node("Add", ["frame__margins", "frame__more"], ["frame__far"]),
        helper.make_node("Concat", sides, ["frame__pads"], axis=0),
        helper.make_node("Pad", [content, "frame__pads"], [inside(content)], mode="edge"),
    ]
    after = [
        helper.make_node("Add", ["frame__bare", "frame__starts"], ["frame__ends"]),
        helper.make_node("Slice", [inside(output), "frame__starts", "frame__ends", "frame__axes"], [output]),
    ]
    return before, after


def starts_of(graph: onnx.GraphProto) -> TensorProto | None:
    """By how many pixels, down and right, what a framed graph's network makes begins before the picture: int64 (2,)."""
    return next((tensor for tensor in graph.initializer if tensor.name == "frame__starts"), None)


def nodes_of(graph: onnx.GraphProto, signature: Signature) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """The nodes of a framed graph's frame: those before the network and those after it."""
    ends = (inside(signature.content.name), signature.output.name)
    nodes = [n for n in graph.node if n.output[0].startswith("frame__") or n.output[0] in ends]
    cut = next(i for i, n in enumerate(nodes) if n.output[0] == ends[0]) + 1
    return nodes[:cut], nodes[cut:]
