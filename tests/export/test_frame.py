"""The frame: put on and taken off inside the graph, whatever the photo's size."""

from typing import Final

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export import frame
from export.runtime import Engine, open_engine
from models.contract import Frame, Signature, TensorSpec, Work
from tests import pictures

SIGNATURE: Final = Signature(
    medium="image",
    sampler="feed-forward",
    content=TensorSpec("photo", "uint8", (1, None, None, 3)),
    code=TensorSpec("code", "float32", (1, 3)),
    output=TensorSpec("picture", "uint8", (1, None, None, 3)),
)
SIZE: Final = "seen__size"


def framed(edge: Frame) -> Engine:
    """A graph that hands its content on less what a network would use up, and says of what size it was given it."""
    used = [edge.used] * 2
    constants = {"starts": used, "ends": [-u or 2**30 for u in used], "axes": [1, 2]}
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["photo"], [SIZE]),
            helper.make_node("Identity", ["photo"], ["all"]),
            helper.make_node("Slice", ["photo", *constants], ["picture"]),
        ],
        "hand on",
        [helper.make_tensor_value_info("photo", TensorProto.UINT8, [1, None, None, 3])],
        [
            helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, None, None, 3]),
            helper.make_tensor_value_info(SIZE, TensorProto.INT64, [4]),
            helper.make_tensor_value_info("all", TensorProto.UINT8, [1, None, None, 3]),
        ],
        [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    frame.put_inplace(model, SIGNATURE, edge)
    onnx.checker.check_model(model, full_check=True)
    return open_engine(model.SerializeToString(), "framed", threads=1)


EDGES: Final = [Frame(1, 0), Frame(4, 0), Frame(4, 10, 2), Frame(7, 3, 3), Frame(8, 33, 1)]
ENGINES: Final = {edge: framed(edge) for edge in EDGES}


def noise(height: int, width: int) -> Work:
    return pictures.noise((height, width))


@given(st.sampled_from(EDGES), st.integers(1, 40), st.integers(1, 40))
def test_a_network_that_changes_nothing_gives_the_photo_back_and_is_given_a_whole_multiple(
    edge: Frame, height: int, width: int
) -> None:
    photo = noise(height, width)

    seen = ENGINES[edge].run({"photo": photo[None]})

    assert np.array_equal(seen["picture"][0], photo)
    for side, given_side in zip((height, width), np.asarray(seen[SIZE])[1:3].tolist(), strict=True):
        assert given_side % edge.multiple == 0
        assert 0 <= given_side - side - 2 * edge.margin < edge.multiple


def test_the_frame_repeats_the_edge() -> None:
    photo = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)

    given_photo = ENGINES[Frame(4, 10, 2)].run({"photo": photo[None]})["all"][0]

    assert given_photo.shape == (24, 24, 3)
    assert (given_photo[:, :11] == photo[0, 0]).all()
    assert (given_photo[:, 11:] == photo[0, 1]).all()


@pytest.mark.parametrize("edge", EDGES)
def test_only_the_frame_is_added(edge: Frame) -> None:
    graph = onnx.load_from_string(_bytes_of(edge)).graph
    before, after = frame.nodes_of(graph, SIGNATURE)

    assert [node.op_type for node in before][-1] == "Pad"
    assert [node.op_type for node in after][-1] == "Slice"
    assert len(before) + len(after) + 3 == len(graph.node)


def _bytes_of(edge: Frame) -> bytes:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", [a], [b]) for a, b in (("photo", "x"), ("x", "y"), ("y", "picture"))],
            "hand on",
            [helper.make_tensor_value_info("photo", TensorProto.UINT8, [1, None, None, 3])],
            [helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, None, None, 3])],
        )
    )
    frame.put_inplace(model, SIGNATURE, edge)
    serialised: bytes = model.SerializeToString()
    return serialised
