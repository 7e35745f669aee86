"""Folded fp32 graph → int8 graph for ONNX Runtime: static, QDQ, per-channel weights, calibrated on real photos."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from models.contract import Signature, Work
from models.samplers import pad


class _Photos(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Feeds padded photos one by one."""

    def __init__(self, signature: Signature, photos: Sequence[Work]) -> None:
        self._feeds = iter([{signature.content.name: pad(photo, signature)} for photo in photos])

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        return next(self._feeds, None)


def int8_onnx(folded: bytes, signature: Signature, photos: Sequence[Work]) -> bytes:
    """Quantise a folded graph.

    Unsigned activations and signed per-channel weights with a quantised bias: the form in which ONNX Runtime fuses
    every convolution of the body.

    Args:
        folded: serialised fp32 graph.
        signature: of the modality.
        photos: (H, W, 3) uint8 to calibrate on, public.
    """
    with tempfile.TemporaryDirectory(prefix="sfumato-int8-") as name:
        folder = Path(name)
        (folder / "folded.onnx").write_bytes(folded)
        quant_pre_process(folder / "folded.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # the quantiser warns on the root logger of graphs that were not pre-processed
        try:
            quantize_static(
                folder / "ready.onnx",
                folder / "int8.onnx",
                _Photos(signature, photos),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                op_types_to_quantize=["Conv", "Add"],
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
        finally:
            root.setLevel(level)
        return (folder / "int8.onnx").read_bytes()
