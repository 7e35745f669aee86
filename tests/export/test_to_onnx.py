"""The exact graph says what its signature says, in operators everyone has, and tells nothing of who made it."""

import getpass
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.runtime import open_engine
from export.to_onnx import OPSET, exact_onnx, with_body
from models.samplers import paint
from models.state import shared_arrays
from models.update import LayoutError
from tests.export.conftest import Exported
from tests.tiny import STYLE, shaken

# What TensorRT, OpenVINO and every mobile runtime can read; a new operator here is a decision, not an accident.
OPERATORS = {
    "Add",
    "Cast",
    "Clip",
    "Concat",
    "Conv",
    "DepthToSpace",
    "Div",
    "Expand",
    "InstanceNormalization",
    "Mod",
    "Mul",
    "Pad",
    "Relu",
    "Reshape",
    "Round",
    "Shape",
    "Slice",
    "Split",
    "Sub",
    "Transpose",
}


@pytest.fixture(scope="module")
def model(exported: Exported) -> onnx.ModelProto:
    return onnx.load_from_string(exported.exact)


def test_inputs_and_output_are_those_of_the_signature(model: onnx.ModelProto, exported: Exported) -> None:
    signature = exported.signature

    assert [value.name for value in model.graph.input] == [signature.content.name, signature.code.name]
    assert [value.name for value in model.graph.output] == [signature.output.name]
    for value, spec in zip(
        (*model.graph.input, *model.graph.output),
        (signature.content, signature.code, signature.output),
        strict=True,
    ):
        assert onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) == spec.dtype
        sides = [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        assert tuple(sides) == spec.shape


def test_only_common_operators_of_one_opset_are_used(model: onnx.ModelProto) -> None:
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert not model.functions


def test_every_norm_is_one_operator(model: onnx.ModelProto) -> None:
    assert sum(node.op_type == "InstanceNormalization" for node in model.graph.node) == 14
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 15  # the last has no norm


def test_no_private_tensor_is_in_the_graph(model: onnx.ModelProto, exported: Exported) -> None:
    """The codes are an input; neither they nor their statistics may be baked in."""
    private = {name: t for name, t in exported.net.state_dict().items() if not STYLE.is_shared(name)}
    for tensor in model.graph.initializer:
        array = torch.tensor(onnx.numpy_helper.to_array(tensor)).flatten()
        for name, theirs in private.items():
            assert name.rsplit(".", maxsplit=1)[-1] not in tensor.name
            for row in theirs:
                assert array.numel() != row.numel() or not torch.allclose(array.to(row.dtype), row)


def test_no_path_or_name_of_the_machine_is_in_the_file(exported: Exported) -> None:
    for word in (str(Path(__file__).parents[2]), "site-packages", ".py", getpass.getuser() + "/", "Traceback"):
        assert word.encode() not in exported.exact


def test_the_same_network_gives_the_same_bytes(exported: Exported) -> None:
    assert exact_onnx(STYLE, exported.net) == exported.exact


def test_the_exporter_leaves_the_logger_as_it_was(exported: Exported) -> None:
    assert exported.exact
    assert logging.getLogger("torch.onnx").level == logging.NOTSET


def test_the_graph_can_be_opened(exported: Exported) -> None:
    assert open_engine(exported.exact, "exact").runtime == "onnxruntime"


def test_an_exporter_that_gives_nothing_is_an_error(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *_a, **_k: None)

    with pytest.raises(RuntimeError, match="returned nothing"):
        exact_onnx(STYLE, exported.net)


# One body's graph with another body's numbers.


def test_a_graph_with_another_body_paints_as_that_bodys_own_graph_does(exported: Exported) -> None:
    other = shaken(STYLE.build(seed=8), seed=8)
    own = exact_onnx(STYLE, other)

    replaced = with_body(exported.exact, shared_arrays(STYLE, other))

    one, two, before = (
        paint(open_engine(graph, "exact").run, exported.signature, exported.photos[0], exported.codes[0])
        for graph in (replaced, own, exported.exact)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, before)


def test_a_graph_with_its_own_body_put_in_is_the_same_file(exported: Exported) -> None:
    assert with_body(exported.exact, shared_arrays(STYLE, exported.net)) == exported.exact


@pytest.mark.parametrize("name", ["stem", "weight", "codes", "", "net.stem.weight.more"])
def test_a_tensor_the_graph_does_not_have_or_has_more_than_once_is_refused(exported: Exported, name: str) -> None:
    with pytest.raises(LayoutError, match="no place for tensor"):
        with_body(exported.exact, {name: np.zeros((8, 3, 8, 8), np.float32)})


@pytest.mark.parametrize("shape", [(8, 3, 8), (3, 8, 8, 8), (), (9, 3, 8, 8)])
def test_a_tensor_of_another_shape_is_refused(exported: Exported, shape: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match=r"no place for tensor 'stem\.weight'"):
        with_body(exported.exact, {"stem.weight": np.zeros(shape, np.float32)})
