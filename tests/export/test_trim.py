"""Trimming a folded graph: the same picture from less."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export import fold, trim
from export.runtime import open_engine
from models.samplers import paint
from tests import pictures
from tests.export.conftest import Exported


def folded(exported: Exported, monkeypatch: pytest.MonkeyPatch, more: int | None = 0) -> bytes:
    """A folded graph, with so many pixels of the trunk trimmed more than are; None for none at all."""
    found = trim._enlargements
    with monkeypatch.context() as patch:
        if more is None:
            patch.setattr(fold, "trim_inplace", lambda *_: None)
        elif more:
            patch.setattr(trim, "_enlargements", lambda *arguments: [(n, s, r - more) for n, s, r in found(*arguments)])
        statistics = fold.calibrate(exported.exact, exported.signature, exported.codes[0], exported.photos)
        return fold.fold(exported.exact, exported.signature, exported.codes[0], statistics)


def painted(graph: bytes, exported: Exported, size: pictures.Size) -> Any:
    return paint(open_engine(graph, "folded", 1).run, exported.signature, pictures.shapes(size), None).astype(int)


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (1, 1), (97, 64)])
def test_a_trimmed_graph_paints_what_the_whole_one_does(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, size: pictures.Size
) -> None:
    whole, trimmed = (folded(exported, monkeypatch, more) for more in (None, 0))

    assert [pads_of(graph) for graph in (whole, trimmed)] == [[], [[0, 0, -6, -6] * 2]]
    assert np.abs(painted(whole, exported, size) - painted(trimmed, exported, size)).max() <= 1


def test_a_pixel_more_shows(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, trimmed = (folded(exported, monkeypatch, more) for more in (None, 1))

    assert pads_of(trimmed) == [[0, 0, -7, -7] * 2]
    assert np.abs(painted(whole, exported, (64, 64)) - painted(trimmed, exported, (64, 64))).max() > 1


def test_nothing_is_cropped_before_an_operator_we_do_not_know(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_from_string(folded(exported, monkeypatch, None))
    shuffle = next(node for node in model.graph.node if node.op_type == "DepthToSpace")
    place, made = list(model.graph.node).index(shuffle), shuffle.output[0]
    for node in model.graph.node[place + 1 :]:
        node.input[:] = ["odd" if name == made else name for name in node.input]
    model.graph.node.insert(place + 1, helper.make_node("Sin", [made], ["odd"]))
    before = painted(model.SerializeToString(), exported, (64, 64))

    trim.trim_inplace(model, exported.signature)

    assert pads_of(model.SerializeToString()) == [[0, 0, -17, -17] * 2]  # of the last convolution alone
    assert np.abs(painted(model.SerializeToString(), exported, (64, 64)) - before).max() <= 1


def pads_of(graph: bytes) -> list[list[int]]:
    """What is taken away inside a graph."""
    model = onnx.load_from_string(graph)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pads = [weights[n.input[1]].tolist() for n in model.graph.node if n.op_type == "Pad" and n.input[1] in weights]
    return [amounts for amounts in pads if min(amounts) < 0]
