"""A modality's exact graph → ONNX: photo and code in, picture out. Done once per body by whoever publishes it."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from export import frame
from models.contract import Modality, TensorSpec
from models.update import Arrays, LayoutError

OPSET = 18  # the first with every operator we use and the last that TensorRT 10 reads in full
_EXAMPLE_SIDE = 64


def exact_onnx(modality: Modality[Any, Any], net: nn.Module) -> bytes:
    """Export the graph that ships.

    Returns:
        A serialised ONNX model with ``modality.signature``'s inputs and output, height and width free; it frames its
        content itself.
    """
    signature, edge = modality.signature, modality.frame
    buffer = io.BytesIO()
    graph = modality.graph(net).eval()
    arguments = (_example(signature.content), _example(signature.code))
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        # The exporter warns of packages it could use and of its own deprecations; neither is ours to mend.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            arguments,
            dynamo=True,
            dynamic_shapes=(_free(signature.content, edge.multiple), _free(signature.code, 1)),
            input_names=[signature.content.name, signature.code.name],
            output_names=[signature.output.name],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the ONNX exporter returned nothing")
    model = _anonymous(program.model_proto)
    frame.put_inplace(model, signature, edge)
    onnx.checker.check_model(model, full_check=True)
    buffer.write(model.SerializeToString(deterministic=True))
    return buffer.getvalue()


def _example(spec: TensorSpec) -> torch.Tensor:
    shape = [side if side is not None else _EXAMPLE_SIDE + 32 * axis for axis, side in enumerate(spec.shape)]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _free(spec: TensorSpec, multiple: int) -> dict[int, Any]:
    """The free dimensions, as multiples of what the graph needs."""
    return {
        axis: multiple * torch.export.Dim(f"{spec.name}_{axis}", min=2, max=2**14)
        for axis, side in enumerate(spec.shape)
        if side is None
    }


def _anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes: they hold stack traces with paths of the machine that made the file."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


class _quiet:  # noqa: N801 - used like a function
    """Silence a logger inside a ``with``."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._level = self._logger.level

    def __enter__(self) -> None:
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_exception: object) -> None:
        self._logger.setLevel(self._level)


def with_body(exact: bytes, body: Arrays) -> bytes:
    """The exact graph of one body, with another body's numbers in it.

    The graph depends on the modality alone, so publishing a refined body needs no exporter.

    Args:
        exact: an exact graph of the same modality.
        body: the tensors to put in; each must stand in the graph exactly once under its own name.

    Raises:
        LayoutError: a tensor is missing from the graph, or has another shape there.
    """
    model = onnx.load_from_string(exact)
    for name, array in body.items():
        places = [t for t in model.graph.initializer if t.name == name or t.name.endswith(f".{name}")]
        if len(places) != 1 or tuple(places[0].dims) != array.shape:
            raise LayoutError(f"the graph has no place for tensor {name!r} of shape {array.shape}")
        places[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), places[0].name))
    replaced: bytes = model.SerializeToString(deterministic=True)
    return replaced
