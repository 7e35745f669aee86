"""The int8 graph: in the form that ONNX Runtime fuses, near the folded one, and nothing left lying about."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.fold import calibrate, fold
from export.parity import compare
from export.quantize import int8_onnx
from export.runtime import inputs_of, open_engine
from models.samplers import paint
from tests.export.conftest import Exported


@pytest.fixture(scope="module")
def folded(exported: Exported) -> bytes:
    statistics = calibrate(exported.exact, exported.signature, exported.codes[0], exported.photos)
    return fold(exported.exact, exported.signature, exported.codes[0], statistics)


@pytest.fixture(scope="module")
def int8(exported: Exported, folded: bytes) -> bytes:
    return int8_onnx(folded, exported.signature, exported.photos)


def test_the_int8_graph_takes_and_gives_what_the_folded_one_does(exported: Exported, int8: bytes) -> None:
    engine = open_engine(int8, "int8")

    assert inputs_of(engine) == ("photo",)
    assert paint(engine.run, exported.signature, exported.photos[0], None).shape == exported.photos[0].shape


def test_every_convolution_has_int8_weights_by_channel_and_uint8_activations(int8: bytes) -> None:
    model = onnx.load_from_string(int8)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]

    assert len(convolutions) == 16
    for node in convolutions:
        activation, weight, bias = (makers[name] for name in node.input)
        assert {n.op_type for n in (activation, weight, bias)} == {"DequantizeLinear"}
        assert tensors[activation.input[2]].dtype == np.uint8
        quantised = tensors[weight.input[0]]
        assert quantised.dtype == np.int8
        assert tensors[weight.input[1]].shape == (quantised.shape[0],)
        assert not tensors[weight.input[2]].any()  # symmetric
        assert tensors[bias.input[0]].dtype == np.int32


def test_int8_paints_nearly_what_the_folded_graph_paints(exported: Exported, folded: bytes, int8: bytes) -> None:
    reference, quantised = (
        [paint(open_engine(model, "graph").run, exported.signature, photo, None) for photo in exported.photos]
        for model in (folded, int8)
    )

    parity = compare(reference, quantised)

    # Of a random network with heavy contrast; a trained one is held to INT8_PSNR_DB by the gate.
    assert parity.psnr_db > 20
    assert parity.ssim > 0.8
    assert parity.psnr_db < 99  # something really was rounded


def test_nothing_is_left_behind_and_the_root_logger_is_as_it_was(
    exported: Exported, folded: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    level = logging.getLogger().level

    int8_onnx(folded, exported.signature, exported.photos[:1])

    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger().level == level


def test_the_logger_is_put_back_when_quantising_fails(exported: Exported, folded: bytes) -> None:
    level = logging.getLogger().level

    with pytest.raises(ValueError, match="No data is collected"):
        int8_onnx(folded, exported.signature, [])

    assert logging.getLogger().level == level
