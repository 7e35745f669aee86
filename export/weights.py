"""Named arrays in and out of safetensors, of one element type and finite. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from export.errors import IntegrityError
from models.update import Arrays

BODY_MAX_BYTES = 64 * 2**20
"""No body of any tier comes near this; a larger file is not one of ours."""


def pack(arrays: Arrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """Arrays as the bytes of a safetensors file; the same arrays give the same bytes."""
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    return _with_metadata(safetensors.numpy.save(ordered), metadata) if metadata else safetensors.numpy.save(ordered)


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """With the metadata in sorted order; the library writes them in an order that changes from run to run."""
    length = int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text + b" " * (-len(text) % 8)  # tensors start on a multiple of eight
    return len(padded).to_bytes(8, "little") + padded + data[8 + length :]


def unpack(data: bytes) -> dict[str, npt.NDArray[np.float32]]:
    """The float32 arrays of a safetensors file.

    Raises:
        IntegrityError: not a safetensors file, another element type, or numbers that are not finite.
    """
    try:
        arrays = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _not_ours(f"the weights are not a safetensors file ({error})") from error
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise _not_ours(f"tensor {name!r} is {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise _not_ours(f"tensor {name!r} holds numbers that are not finite")
    return arrays


def metadata_of(data: bytes) -> dict[str, str]:
    """The free-text metadata of a safetensors file.

    Raises:
        IntegrityError: not a safetensors file.
    """
    header_bytes = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + header_bytes])
    except (ValueError, RecursionError) as error:
        raise _not_ours("the weights are not a safetensors file") from error
    found = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _not_ours(message: str) -> IntegrityError:
    return IntegrityError(message, advice="The file is damaged or was not made by Sfumato; get it again or make it anew.")
