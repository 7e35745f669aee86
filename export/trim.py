"""What only the frame needed is not computed: a folded graph is cropped on its way up.

A frame is as wide as the deepest part of a network looks around, and the layers after the trunk look around far less. In a
folded graph a pixel depends on its neighbourhood alone, so what lies further out than they look can go before they see it. In
an exact graph it cannot: the norms take their statistics from all there is.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export import frame
from models.contract import Signature

_BY_PIXEL: Final = frozenset({"Add", "Relu", "Clip", "Mul", "Round", "Transpose", "Cast", "Identity"})


def trim_inplace(model: onnx.ModelProto, signature: Signature) -> None:
    """Crop a folded, framed graph as early on its way up as it can be told what it looks at; the picture stays the same."""
    graph = model.graph
    starts = frame.starts_of(graph)
    if starts is None:
        return
    margin = int(numpy_helper.to_array(starts).min())
    last = frame.inside(signature.output.name)
    node, scale, reach = next(iter(_enlargements(graph, last)), (None, 1, margin))
    spare = margin // scale - reach
    if node is not None and spare > 0:
        _crop_inplace(graph, node, spare)
        starts.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(starts) - scale * spare, starts.name))


def _enlargements(graph: onnx.GraphProto, last: str) -> list[tuple[onnx.NodeProto, int, int]]:
    """Convolutions before an enlargement, first to last: each with the picture's pixels in one of its input's, and how many
    of these around it the picture depends on. Only those whose input nobody else reads.
    """
    readers = Counter(name for node in graph.node for name in node.input)
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    reach, scale = {last: 0}, {last: 1}
    found: list[tuple[onnx.NodeProto, int, int]] = []
    before_enlargement = set()
    for node in reversed(graph.node):
        output = node.output[0]
        if output not in reach:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = [name for name in node.input if name and name not in constants]
        if node.op_type == "DepthToSpace":
            around, larger = -(-reach[output] // attributes["blocksize"]), attributes["blocksize"]
            before_enlargement.add(inputs[0])
        elif node.op_type == "Conv" and set(attributes.get("strides", [1])) == {1} and _keeps_size(attributes):
            around, larger = reach[output] + attributes["kernel_shape"][0] // 2, 1
        elif node.op_type in _BY_PIXEL:
            around, larger = reach[output], 1
        else:
            break  # the stem, or what we do not know
        for name in inputs:
            reach[name] = max(reach.get(name, 0), around)
            scale[name] = scale[output] * larger
        if node.op_type == "Conv" and output in before_enlargement and readers[inputs[0]] == 1 and inputs[0] in makers:
            found.insert(0, (node, scale[inputs[0]], reach[inputs[0]]))
    return found


def _keeps_size(attributes: dict[str, object]) -> bool:
    """Whether a convolution's padding gives back what its window, square and odd, takes away."""
    kernel, pads = attributes.get("kernel_shape"), attributes.get("pads", [0] * 4)
    return (
        isinstance(kernel, list)
        and isinstance(pads, list)
        and len(set(kernel)) == 1
        and kernel[0] % 2 == 1
        and set(pads) == {kernel[0] // 2}
        and set(attributes.get("dilations", [1])) == {1}  # type: ignore[call-overload]  # a list of integers
    )


def _crop_inplace(graph: onnx.GraphProto, reader: onnx.NodeProto, pixels: int) -> None:
    """Take so many pixels away on every side of what a node reads."""
    whole = reader.input[0]
    amounts, cropped = f"{whole}__trim", f"{whole}__trimmed"
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -pixels, -pixels] * 2, np.int64), amounts))
    reader.input[0] = cropped
    place = next(i for i, node in enumerate(graph.node) if node is reader or node.output[0] == reader.output[0])
    graph.node.insert(place, helper.make_node("Pad", [whole, amounts], [cropped]))
