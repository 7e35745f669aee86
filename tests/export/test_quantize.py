"""The int8 graph: in the form each runtime fuses, bytes from end to end, and near the folded one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from torch.nn import functional as F  # noqa: N812 - the customary name

from export import quantize
from export.fold import calibrate, fold
from export.parity import compare
from export.quantize import QuantizeError, Span, Target, int8_onnx, observe
from export.runtime import OpenVinoEngine, inputs_of, installed, open_engine
from models.contract import Work
from models.samplers import paint
from tests import pictures
from tests.export.conftest import Exported
from tests.tiny import framed

TARGETS: tuple[Target, ...] = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def folded(exported: Exported) -> bytes:
    statistics = calibrate(exported.exact, exported.signature, exported.codes[0], exported.photos)
    return fold(exported.exact, exported.signature, exported.codes[0], statistics)


@pytest.fixture(scope="module")
def half_folded(exported: Exported) -> bytes:
    """With its first norm live."""
    statistics = calibrate(exported.exact, exported.signature, exported.codes[0], exported.photos)
    return fold(exported.exact, exported.signature, exported.codes[0], statistics, first_live=True)


@pytest.fixture(scope="module")
def spans(exported: Exported, folded: bytes) -> dict[str, Span]:
    return observe(folded, exported.signature, exported.photos)


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    made: Target = request.param
    return made


@pytest.fixture(scope="module")
def int8(exported: Exported, folded: bytes, spans: dict[str, Span], target: Target) -> bytes:
    return int8_onnx(folded, exported.signature, spans, target)


def test_the_int8_graph_takes_and_gives_what_the_folded_one_does(exported: Exported, int8: bytes) -> None:
    engine = open_engine(int8, "int8")

    assert inputs_of(engine) == ("photo",)
    for size in ((1, 1), (5, 90), (64, 33)):
        photo = pictures.shapes(size)
        assert paint(engine.run, exported.signature, photo, None).shape == photo.shape


def moved_from(name: str, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto:
    """What made the numbers that a few operators only move about."""
    while makers[name].op_type in ("Transpose", "Reshape", "Concat", "Split", "Slice"):
        name = makers[name].input[0]
    return makers[name]


def test_every_convolution_has_int8_weights_by_channel_and_uint8_activations(int8: bytes, target: Target) -> None:
    model = onnx.load_from_string(int8)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]

    assert len(convolutions) == 15
    for node in convolutions:
        activation, weight = moved_from(node.input[0], makers), makers[node.input[1]]
        assert {n.op_type for n in (activation, weight)} == {"DequantizeLinear"}
        assert tensors[activation.input[2]].dtype == np.uint8
        assert not tensors[activation.input[2]].any()  # nothing that is convolved goes below zero
        quantised = tensors[weight.input[0]]
        assert quantised.dtype == np.int8
        assert tensors[weight.input[1]].shape == (quantised.shape[0],)
        assert not tensors[weight.input[2]].any()  # symmetric
        if target == "onnxruntime":
            assert tensors[makers[node.input[2]].input[0]].dtype == np.int32
        else:
            assert tensors[node.input[2]].dtype == np.float32


def test_the_photos_bytes_are_convolved_and_the_pictures_bytes_come_out(int8: bytes, target: Target) -> None:
    """No operator turns pixels into floats or back but those that a runtime fuses into a convolution."""
    operators = Counter(node.op_type for node in onnx.load_from_string(int8).graph.node)

    assert not {"Cast", "Clip", "Round", "Sigmoid", "Div", "InstanceNormalization"} & set(operators)
    # After each convolution and each addition; OpenVINO wants to see the photo's bytes made, too.
    assert operators["QuantizeLinear"] == 15 + 6 + (target == "openvino")


def test_onnx_runtime_fuses_every_convolution_into_its_int8_kernel(
    exported: Exported, folded: bytes, spans: dict[str, Span], tmp_path: Path
) -> None:
    """As its own record of the graph it runs says."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 3
    int8 = int8_onnx(folded, exported.signature, spans, "onnxruntime")

    ort.InferenceSession(int8, options, providers=["CPUExecutionProvider"])

    operators = Counter(node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node)
    assert operators["QLinearConv"] == 15
    assert operators["QLinearAdd"] == 6
    assert not {"Conv", "Relu", "QuantizeLinear", "DequantizeLinear"} & set(operators)


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


def test_what_was_not_seen_while_calibrating_is_what_makes_it_worse(exported: Exported, folded: bytes) -> None:
    """The control: spans far too narrow do show in the parity."""
    narrow = {name: Span(s.low / 20, s.high / 20) for name, s in observe(folded, exported.signature, exported.photos).items()}
    int8 = int8_onnx(folded, exported.signature, narrow, "onnxruntime")
    reference, quantised = (
        [paint(open_engine(model, "graph").run, exported.signature, photo, None) for photo in exported.photos]
        for model in (folded, int8)
    )

    assert compare(reference, quantised).psnr_db < 20


def both_painted(exported: Exported, graph: bytes, target: Target, photos: Sequence[Work]) -> tuple[list[Work], list[Work]]:
    int8 = int8_onnx(graph, exported.signature, observe(graph, exported.signature, exported.photos), target)
    one, other = (
        [paint(open_engine(model, "graph").run, exported.signature, photo, None) for photo in photos] for model in (graph, int8)
    )
    return one, other


LARGER = (pictures.shapes((160, 200), seed=4), pictures.shapes((160, 200), seed=5) // 3)
"""Of a size at which the windows a live norm looks at leave little out."""


def test_a_live_norm_is_quantised_with_the_rest(exported: Exported, half_folded: bytes, target: Target) -> None:
    parity = compare(*both_painted(exported, half_folded, target, LARGER))

    assert parity.psnr_db > 20
    assert parity.ssim > 0.8


def test_a_live_norm_in_int8_shows_no_steps_on_a_wall(exported: Exported, half_folded: bytes, target: Target) -> None:
    """A norm multiplies what little there is by a hundred; the control is a wall of half as many tones."""
    slope = 120 + np.arange(160)[:, None, None] / 32 + np.arange(160)[None, :, None] / 48
    wall = np.broadcast_to(slope, (160, 160, 3)).round().astype(np.uint8)

    one, other = both_painted(exported, half_folded, target, [wall])
    stepped = paint(open_engine(half_folded, "graph").run, exported.signature, wall // 2 * 2, None)

    assert compare(one, other).psnr_db > 20
    assert compare(one, other).psnr_db > compare(one, [stepped]).psnr_db + 3


@pytest.mark.parametrize("scale", [-1.0, 1e-12, 0.0])
def test_a_live_norm_may_turn_a_channel_round_or_leave_nothing_of_it(
    exported: Exported, half_folded: bytes, target: Target, scale: float
) -> None:
    model = onnx.load_from_string(half_folded)
    norm = next(node for node in model.graph.node if node.op_type == "InstanceNormalization")
    tensor = next(t for t in model.graph.initializer if t.name == norm.input[1])
    scales = numpy_helper.to_array(tensor).copy()
    scales[:2] *= scale
    tensor.CopyFrom(numpy_helper.from_array(scales, tensor.name))

    one, other = both_painted(exported, model.SerializeToString(), target, LARGER)

    assert compare(one, other).psnr_db > 20


def test_a_norm_that_mixes_what_it_norms_with_what_it_does_not_is_refused(exported: Exported, half_folded: bytes) -> None:
    model = onnx.load_from_string(half_folded)
    norm = next(node for node in model.graph.node if node.op_type == "InstanceNormalization")
    tensor = next(t for t in model.graph.initializer if t.name == norm.input[2])
    tensor.CopyFrom(numpy_helper.from_array(np.ones_like(numpy_helper.to_array(tensor)), tensor.name))

    with pytest.raises(QuantizeError, match="mixes what it norms"):
        observe(model.SerializeToString(), exported.signature, exported.photos)


def test_a_norm_without_a_way_past_it_is_refused(exported: Exported, half_folded: bytes) -> None:
    model = onnx.load_from_string(half_folded)
    norm = next(node for node in model.graph.node if node.op_type == "InstanceNormalization")
    for node in model.graph.node:
        if node.op_type == "Mul" and norm.input[0] in node.input:
            node.op_type = "Div"

    with pytest.raises(QuantizeError, match="a norm that is not quantised"):
        observe(model.SerializeToString(), exported.signature, exported.photos)


def test_onnx_runtime_fuses_the_convolution_of_a_live_norm_too(exported: Exported, half_folded: bytes, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 3
    spans = observe(half_folded, exported.signature, exported.photos)

    ort.InferenceSession(
        int8_onnx(half_folded, exported.signature, spans, "onnxruntime"), options, providers=["CPUExecutionProvider"]
    )

    operators = Counter(node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node)
    assert operators["QLinearConv"] == 15
    assert not {"Conv", "Relu", "QuantizeLinear", "DequantizeLinear", "InstanceNormalization"} & set(operators)


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
def test_openvino_computes_every_convolution_in_int8_and_writes_bytes(
    exported: Exported, folded: bytes, spans: dict[str, Span]
) -> None:
    """As its own record of the graph it runs says; the control is the form for ONNX Runtime, with biases it cannot fuse."""
    ours, other = (
        openvino_kernels(int8_onnx(folded, exported.signature, spans, target)) for target in ("openvino", "onnxruntime")
    )

    assert len(ours) == 15
    assert all("I8" in kernel and precision == "u8" for kernel, precision in ours)
    assert not all("I8" in kernel and precision == "u8" for kernel, precision in other)


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
def test_openvino_computes_the_convolution_of_a_live_norm_in_int8_too(exported: Exported, half_folded: bytes) -> None:
    spans = observe(half_folded, exported.signature, exported.photos)

    kernels = openvino_kernels(int8_onnx(half_folded, exported.signature, spans, "openvino"))

    assert len(kernels) == 15
    assert all("I8" in kernel for kernel, _ in kernels)
    assert Counter(precision for _, precision in kernels) == {"u8": 14, "f32": 1}  # the stem's sums, before their norm


def openvino_kernels(int8: bytes) -> list[tuple[str, str]]:
    """Kernel and precision of what each convolution writes."""
    engine = open_engine(int8, "int8", runtime="openvino")
    assert isinstance(engine, OpenVinoEngine)
    engine.run({"photo": np.zeros((1, 64, 64, 3), np.uint8)})
    running = engine._request({"photo": np.zeros((1, 64, 64, 3), np.uint8)}).get_compiled_model().get_runtime_model()
    facts = [node.get_rt_info() for node in running.get_ops()]
    return [(str(f["primitiveType"].astype(str)), str(f["outputPrecisions"].astype(str))) for f in facts if is_convolution(f)]


def is_convolution(facts: Any) -> bool:
    return str(facts["layerType"].astype(str)) == "Convolution"


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
def test_openvino_paints_what_onnx_runtime_paints(exported: Exported, folded: bytes, spans: dict[str, Span]) -> None:
    int8 = int8_onnx(folded, exported.signature, spans, "openvino")
    one, other = (
        [paint(open_engine(int8, "int8", runtime=runtime).run, exported.signature, p, None) for p in exported.photos]
        for runtime in ("onnxruntime", "openvino")
    )

    parity = compare(one, other)
    assert parity.psnr_db > 25
    assert parity.ssim > 0.98


def test_both_forms_have_the_same_weights(exported: Exported, folded: bytes, spans: dict[str, Span]) -> None:
    one, other = (
        [t.raw_data for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
        for model in (onnx.load_from_string(int8_onnx(folded, exported.signature, spans, target)) for target in TARGETS)
    )

    assert len(one) == 15
    assert one[:-1] == other[:-1]
    # The last one's 12 filters are filled up to 16 for ONNX Runtime.
    assert one[-1] == other[-1] + bytes(len(other[-1]) // 3)


def test_the_same_graph_and_spans_give_the_same_bytes(
    exported: Exported, folded: bytes, spans: dict[str, Span], target: Target, int8: bytes
) -> None:
    assert int8_onnx(folded, exported.signature, spans, target) == int8


def test_a_graph_with_an_operator_we_do_not_quantise_is_refused(exported: Exported, folded: bytes) -> None:
    model = onnx.load_from_string(folded)
    place = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Relu")
    model.graph.node[place].CopyFrom(helper.make_node("Sigmoid", model.graph.node[place].input, model.graph.node[place].output))

    with pytest.raises(QuantizeError, match="Sigmoid"):
        observe(model.SerializeToString(), exported.signature, exported.photos)


def test_a_pad_is_quantised_only_if_it_takes_the_same_away_on_every_side(exported: Exported, folded: bytes) -> None:
    model = onnx.load_from_string(folded)
    pads = next(node.input[1] for node in model.graph.node if node.op_type == "Pad" and node.input[0] != "photo")
    tensor = next(t for t in model.graph.initializer if t.name == pads)
    for uneven in ([0, 0, -5, -5, 0, 0, -5, -4], [0, 0, 1, 1, 0, 0, 1, 1], [0, -1, -5, -5, 0, -1, -5, -5]):
        tensor.CopyFrom(numpy_helper.from_array(np.array(uneven, np.int64), pads))

        with pytest.raises(QuantizeError, match="Pad"):
            observe(model.SerializeToString(), exported.signature, exported.photos)


def test_a_graph_that_does_not_begin_with_bytes_is_refused(exported: Exported, folded: bytes) -> None:
    model = onnx.load_from_string(folded)
    place = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Div")
    model.graph.node[place].op_type = "Mul"

    with pytest.raises(QuantizeError, match="begin and end with bytes"):
        observe(model.SerializeToString(), exported.signature, exported.photos)


def test_an_exact_graph_is_refused_since_its_norms_are_not_folded(exported: Exported) -> None:
    with pytest.raises(QuantizeError):
        observe(exported.exact, exported.signature, exported.photos)


def test_a_quiet_channel_is_amplified_where_it_is_made_and_the_function_stays(exported: Exported, folded: bytes) -> None:
    """The sum of a trunk: what is multiplied in one place is divided in every other."""
    spans = observe(folded, exported.signature, exported.photos)
    steps = quantize._steps(onnx.load_from_string(folded).graph, exported.signature)

    equalised, wide = quantize._equalised(steps, spans)

    trunk = [step.output for step in equalised if step.kind == "add"]
    spread = [np.ptp(np.log(np.maximum(s[name].high, 1e-2))) for s in (spans, wide) for name in trunk]
    assert sum(spread[len(trunk) :]) < 0.9 * sum(spread[: len(trunk)])
    photo = framed(exported.photos[0]).transpose(0, 3, 1, 2) / 255.0
    assert np.allclose(computed(equalised, photo), computed(steps, photo), rtol=1e-3, atol=1e-3)


def computed(steps: Sequence[quantize._Step], photo: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The steps done one by one by torch: what the last convolution makes of a photo."""
    known: dict[str, torch.Tensor] = {}
    photo_tensor = torch.tensor(photo).float()
    for step in steps[:-1]:
        inputs = [known.get(name, photo_tensor) for name in step.inputs]
        if step.kind == "add":
            made = inputs[0] + inputs[1]
        elif step.kind == "shuffle":
            made = F.pixel_shuffle(inputs[0], 2)
        elif step.kind == "crop":
            made = F.pad(inputs[0], (-step.pads,) * 4)
        else:
            weight, bias = (torch.tensor(np.asarray(value)).float() for value in (step.weight, step.bias))
            made = F.conv2d(inputs[0], weight, bias, stride=step.stride, padding=step.pads)
        known[step.output] = F.relu(made) if step.relu else made
    return known[steps[-2].output].numpy()


@pytest.mark.parametrize("size", [0.0, 1e-9])
def test_a_filter_of_next_to_nothing_keeps_its_bias(exported: Exported, folded: bytes, target: Target, size: float) -> None:
    """A dead filter's steps would otherwise be so fine that its bias does not fit an int32, and comes out as anything."""
    model = onnx.load_from_string(folded)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    conv = [node for node in model.graph.node if node.op_type == "Conv"][1]
    weight = numpy_helper.to_array(tensors[conv.input[1]]).copy()
    weight[0] *= size
    tensors[conv.input[1]].CopyFrom(numpy_helper.from_array(weight, conv.input[1]))
    dead = model.SerializeToString()

    photo = exported.photos[0]
    pair = [
        paint(open_engine(graph, "dead").run, exported.signature, photo, None)
        for graph in (dead, int8_onnx(dead, exported.signature, observe(dead, exported.signature, exported.photos), target))
    ]

    assert compare([pair[0]], [pair[1]]).psnr_db > 25  # as anything: 10


def test_numbers_that_are_not_finite_are_refused(exported: Exported, folded: bytes, spans: dict[str, Span]) -> None:
    model = onnx.load_from_string(folded)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    tensor = next(t for t in model.graph.initializer if t.name == conv.input[2])
    bias = numpy_helper.to_array(tensor).copy()
    bias[0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))

    with pytest.raises(QuantizeError, match="not finite"):
        int8_onnx(model.SerializeToString(), exported.signature, spans, "onnxruntime")
