"""One small network and its exact graph, exported once for all tests that need a graph."""

from dataclasses import dataclass

import pytest

from export.to_onnx import exact_onnx
from models.contract import Signature, Work
from models.modalities.style import StyleNet
from models.samplers import Code
from tests import pictures
from tests.tiny import STYLE, code_of, shaken


@dataclass(frozen=True)
class Exported:
    """A network with two codes that are far from plain, and its exact graph."""

    net: StyleNet
    exact: bytes
    signature: Signature
    codes: tuple[Code, Code]
    photos: tuple[Work, ...]


@pytest.fixture(scope="session")
def exported() -> Exported:
    net = shaken(STYLE.build(seed=3, codes=2), seed=3)
    assert isinstance(net, StyleNet)
    return Exported(
        net=net,
        exact=exact_onnx(STYLE, net),
        signature=STYLE.signature,
        codes=(code_of(net, 0), code_of(net, 1)),
        photos=(pictures.shapes((40, 52)), pictures.gradient((33, 47)), pictures.noise((48, 36))),
    )
