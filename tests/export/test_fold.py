"""A folded graph is the exact graph with its statistics frozen: plain convolutions that need no code."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.fold import FoldError, NormStatistics, calibrate, calibrations, fold
from export.runtime import inputs_of, open_engine
from models.contract import Signature, TensorSpec, Work
from models.samplers import mix, paint
from tests import pictures
from tests.export.conftest import Exported
from tests.tiny import framed

Graph = bytes
RNG: Final = np.random.default_rng(0)


def folded_for(exported: Exported, row: int, photos: Sequence[Work]) -> bytes:
    code = exported.codes[row]
    return fold(exported.exact, exported.signature, code, calibrate(exported.exact, exported.signature, code, photos))


def exact_picture(exported: Exported, photo: Work, row: int) -> Work:
    return paint(open_engine(exported.exact, "exact").run, exported.signature, photo, exported.codes[row])


def folded_picture(exported: Exported, folded: bytes, photo: Work) -> Work:
    return paint(open_engine(folded, "folded").run, exported.signature, photo, None)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_folded_with_the_statistics_of_a_picture_it_paints_that_picture_as_the_exact_graph_does(
    exported: Exported, row: int, number: int
) -> None:
    photo = exported.photos[number]

    difference = folded_picture(exported, folded_for(exported, row, [photo]), photo).astype(int) - exact_picture(
        exported, photo, row
    )

    # The same sum in another order; the variance is E[x²] - E[x]² in float32. Two grey levels at a few pixels.
    assert np.abs(difference).max() <= 2
    assert np.abs(difference).mean() < 0.1


def test_with_the_statistics_of_other_pictures_it_paints_another_one(exported: Exported) -> None:
    """The positive control: the statistics do matter, and are frozen."""
    photo, other = exported.photos[0], exported.photos[2]

    difference = folded_picture(exported, folded_for(exported, 0, [other]), photo).astype(int) - exact_picture(
        exported, photo, 0
    )

    assert np.abs(difference).max() > 10


def test_the_code_and_every_norm_are_gone(exported: Exported) -> None:
    folded = folded_for(exported, 0, exported.photos)
    model = onnx.load_from_string(folded)

    assert inputs_of(open_engine(folded, "folded")) == (exported.signature.content.name,)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"InstanceNormalization", "Split", "Reshape"}
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 15
    named = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= named


def test_with_its_first_norm_live_a_graph_of_another_pictures_statistics_is_nearer_to_the_exact_one(exported: Exported) -> None:
    photo, other = exported.photos[0], exported.photos[2]
    code = exported.codes[0]
    statistics = calibrate(exported.exact, exported.signature, code, [other])
    exact = exact_picture(exported, photo, 0).astype(int)

    graphs = (fold(exported.exact, exported.signature, code, statistics, first_live=first) for first in (False, True))
    frozen, live = (np.abs(folded_picture(exported, graph, photo) - exact).mean() for graph in graphs)

    assert 0 < live < 0.8 * frozen


def test_with_its_first_norm_live_and_a_pictures_own_statistics_it_paints_as_the_exact_graph_does(exported: Exported) -> None:
    photo, code = exported.photos[0], exported.codes[0]
    statistics = calibrate(exported.exact, exported.signature, code, [photo])
    folded = fold(exported.exact, exported.signature, code, statistics, first_live=True)

    norms = Counter(node.op_type for node in onnx.load_from_string(folded).graph.node)["InstanceNormalization"]
    difference = folded_picture(exported, folded, photo).astype(int) - exact_picture(exported, photo, 0)

    assert norms == 1
    assert np.abs(difference).max() <= 2


def test_a_folded_graph_of_one_code_is_not_that_of_another(exported: Exported) -> None:
    assert folded_for(exported, 0, exported.photos) != folded_for(exported, 1, exported.photos)


def test_the_same_code_and_photos_fold_to_the_same_bytes(exported: Exported) -> None:
    assert folded_for(exported, 0, exported.photos) == folded_for(exported, 0, exported.photos)


def test_a_mix_folds_like_any_code(exported: Exported) -> None:
    codes = dict(zip("ab", exported.codes, strict=True))
    mixed = replace(exported, codes=(mix(codes, {"a": 1, "b": 1}), exported.codes[1]))
    photo = exported.photos[0]

    picture = folded_picture(mixed, folded_for(mixed, 0, [photo]), photo)

    assert np.abs(picture.astype(int) - exact_picture(mixed, photo, 0)).max() <= 2


def test_what_is_frozen_lies_in_the_middle_of_what_the_network_itself_uses(exported: Exported) -> None:
    """A second opinion from torch: the mean of the means, the geometric mean of 1 / sigma, before each norm."""
    factors, centres = [], []
    for photo in exported.photos:
        content = torch.tensor(framed(photo)).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            _, (mean, variance) = exported.net(content, torch.tensor(exported.codes[0])[None])
        factors.append(((variance[0] + 1e-5) ** -0.5).numpy())
        centres.append(mean[0].numpy())

    statistics = calibrate(exported.exact, exported.signature, exported.codes[0], exported.photos)

    # The norms stand in the graph in the order the network applies them.
    ours = list(zip(statistics.values(), exported.net.widths, strict=True))
    means, variances = (np.concatenate([getattr(s, part)[:width] for s, width in ours]) for part in ("mean", "variance"))
    assert len(exported.photos) > 1
    assert np.allclose((variances + 1e-5) ** -0.5, np.exp(np.mean(np.log(factors), axis=0)), rtol=2e-3, atol=2e-4)
    assert np.allclose(means, np.mean(centres, axis=0), rtol=2e-3, atol=2e-3)


def test_what_leans_to_quiet_photos_strokes_more_strongly_than_the_middle(exported: Exported) -> None:
    quiet, busy = np.full((64, 64, 3), 128, np.uint8), exported.photos[0]
    quiet[32:] += 6

    middle, leaning = calibrations(exported.exact, exported.signature, exported.codes[0], [quiet, busy])

    pairs = [(middle[name].variance, leaning[name].variance) for name in middle]
    assert all((b <= a * 1.001 + 1e-7).all() for a, b in pairs)
    assert any((b < 0.5 * a).any() for a, b in pairs)


def test_calibrating_and_folding_leave_the_exact_graph_as_it_was(exported: Exported) -> None:
    before = bytes(exported.exact)

    folded_for(exported, 0, exported.photos)

    assert exported.exact == before


# Small graphs made by hand: each with one norm, after whatever the test says.

SIGNATURE: Final = Signature(
    medium="image",
    sampler="feed-forward",
    content=TensorSpec("x", "float32", (1, 2, None, None)),
    code=TensorSpec("code", "float32", (1, 2)),
    output=TensorSpec("y", "float32", (1, None, None, None)),
)
CODE: Final = np.array([0.5, -2.0], np.float32)


def tensor(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def graph(*nodes: onnx.NodeProto, channels: int, tensors: Sequence[TensorProto] = ()) -> Graph:
    """x → nodes → h → InstanceNormalization → n → Neg → y."""
    norm = helper.make_node("InstanceNormalization", ["h", "scale", "shift"], ["n"], epsilon=1e-3)
    made = helper.make_graph(
        [*nodes, norm, helper.make_node("Neg", ["n"], ["y"])],
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None, None, None])],
        [*tensors, tensor("scale", channels), tensor("shift", channels)],
    )
    model = helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def statistics_of(model: Graph, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> dict[str, NormStatistics]:
    """Those of the tensor before the norm, by numpy."""
    loaded = onnx.load_from_string(model)
    loaded.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, None))
    h = open_engine(loaded.SerializeToString(), "made").run({"x": x})["h"].astype(np.float64)
    mean, variance = h.mean(axis=(0, 2, 3)), h.var(axis=(0, 2, 3))
    return {"n": NormStatistics(mean.astype(np.float32), variance.astype(np.float32))}


CONV: Final = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])


def shuffle(mode: str) -> onnx.NodeProto:
    return helper.make_node("DepthToSpace", ["c"], ["h"], blocksize=2, mode=mode)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            graph(
                helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
                channels=8,
                tensors=[tensor("w", 8, 2, 3, 3)],
            ),
            id="a convolution",
        ),
        pytest.param(
            graph(
                helper.make_node("Conv", ["x", "w", "b"], ["h"], strides=[2, 2]),
                channels=8,
                tensors=[tensor("w", 8, 2, 3, 3), tensor("b", 8)],
            ),
            id="a convolution with a bias",
        ),
        pytest.param(graph(CONV, shuffle("CRD"), channels=2, tensors=[tensor("w", 8, 2, 3, 3)]), id="a PixelShuffle"),
    ],
)
def test_a_norm_goes_into_the_convolution_before_it(model: Graph) -> None:
    x = RNG.standard_normal((1, 2, 8, 10)).astype(np.float32)
    exact = open_engine(model, "made").run({"x": x})["y"]

    folded = fold(model, SIGNATURE, CODE, statistics_of(model, x))

    assert not any(n.op_type == "InstanceNormalization" for n in onnx.load_from_string(folded).graph.node)
    assert np.allclose(open_engine(folded, "folded").run({"x": x})["y"], exact, rtol=1e-4, atol=1e-4)


def test_what_is_computed_from_the_code_alone_becomes_numbers() -> None:
    """Here the norm's scale is twice the code, and the code itself multiplies the norm's output."""
    made = onnx.load_from_string(graph(CONV, shuffle("CRD"), channels=2, tensors=[tensor("w", 8, 2, 3, 3)]))
    flat = helper.make_node("Reshape", ["code", "all"], ["flat"])
    double = helper.make_node("Add", ["flat", "flat"], ["scale"])
    rows = helper.make_node("Transpose", ["n"], ["rows"], perm=[0, 2, 3, 1])
    scaled = helper.make_node("Mul", ["rows", "code"], ["y"])
    nodes = [flat, double, *made.graph.node[:-1], rows, scaled]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.remove(next(t for t in made.graph.initializer if t.name == "scale"))
    made.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "all"))
    made.graph.input.append(helper.make_tensor_value_info("code", TensorProto.FLOAT, [1, 2]))
    x = RNG.standard_normal((1, 2, 8, 10)).astype(np.float32)
    exact = open_engine(made.SerializeToString(), "made").run({"x": x, "code": CODE[None]})["y"]
    statistics = statistics_of(_without_code(made), x)

    engine = open_engine(fold(made.SerializeToString(), SIGNATURE, CODE, statistics), "folded")

    assert inputs_of(engine) == ("x",)
    assert np.allclose(engine.run({"x": x})["y"], exact, rtol=1e-4, atol=1e-4)


def _without_code(model: onnx.ModelProto) -> Graph:
    """Only what leads to ``h``."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    leads = [node for node in model.graph.node if node.output[0] in ("c", "h")]
    del cut.graph.node[:], cut.graph.output[:], cut.graph.input[1:]
    cut.graph.node.extend(leads)
    return bytes(cut.SerializeToString())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param(graph(helper.make_node("Relu", ["x"], ["h"]), channels=2), "does not follow a convolution", id="a relu"),
        pytest.param(
            graph(helper.make_node("Add", ["x", "x"], ["h"]), channels=2), "does not follow a convolution", id="an add"
        ),
        pytest.param(
            graph(helper.make_node("Identity", ["x"], ["h"]), channels=2),
            "does not follow a convolution",
            id="the input by another name",
        ),
        pytest.param(
            graph(CONV, shuffle("DCR"), channels=2, tensors=[tensor("w", 8, 2, 3, 3)]),
            "DepthToSpace of an order we do not fold",
            id="a PixelShuffle of another order",
        ),
        pytest.param(
            graph(
                helper.make_node("Concat", ["x", "x"], ["c"], axis=1),
                helper.make_node("DepthToSpace", ["c"], ["h"], blocksize=2, mode="CRD"),
                channels=1,
            ),
            "does not follow a convolution",
            id="a PixelShuffle of something else",
        ),
        pytest.param(
            graph(
                helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
                helper.make_node("Relu", ["h"], ["past the norm"]),
                channels=8,
                tensors=[tensor("w", 8, 2, 3, 3)],
            ),
            "feed more than one norm",
            id="a convolution that something else reads too",
        ),
        pytest.param(
            graph(
                helper.make_node("Conv", ["x", "w"], ["before"], pads=[1, 1, 1, 1]),
                helper.make_node("Conv", ["before", "w"], ["h"], pads=[1, 1, 1, 1]),
                channels=2,
                tensors=[tensor("w", 2, 2, 3, 3)],
            ),
            "feed more than one norm",
            id="weights that another convolution reads too",
        ),
    ],
)
def test_a_norm_after_something_else_cannot_be_folded(model: Graph, reason: str) -> None:
    x = RNG.standard_normal((1, 2, 8, 8)).astype(np.float32)

    with pytest.raises(FoldError, match=reason):
        fold(model, SIGNATURE, CODE, statistics_of(model, x))


def test_a_norm_straight_on_the_input_cannot_be_folded() -> None:
    loaded = onnx.load_from_string(graph(helper.make_node("Identity", ["x"], ["h"]), channels=2))
    loaded.graph.node.pop(0)
    loaded.graph.node[0].input[0] = "x"
    some = np.ones(2, np.float32)

    with pytest.raises(FoldError, match="does not follow a convolution"):
        fold(loaded.SerializeToString(), SIGNATURE, CODE, {"n": NormStatistics(some, some)})


def test_a_picture_all_of_one_colour_folds_without_a_number_that_is_not_finite(exported: Exported) -> None:
    """Where nothing varies, rounding can bring a variance below zero; its root must not become NaN."""
    flat = np.full((40, 40, 3), 77, np.uint8)

    statistics = calibrate(exported.exact, exported.signature, exported.codes[0], [flat])
    picture = folded_picture(exported, fold(exported.exact, exported.signature, exported.codes[0], statistics), flat)

    assert all(np.isfinite(s.variance).all() and (s.variance >= 0).all() for s in statistics.values())
    assert picture.shape == flat.shape


def test_folding_does_not_depend_on_pictures_of_one_size(exported: Exported) -> None:
    folded = folded_for(exported, 0, exported.photos)

    for size in ((1, 1), (30, 70)):
        assert folded_picture(exported, folded, pictures.noise(size)).shape == (*size, 3)
