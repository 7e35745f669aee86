"""Assignment and answer ↔ Flower records: versioned, one flat array a message, everything else a small record.

The only file of ``models`` that knows Flower. A record with an unknown version, a missing or a surplus entry is refused:
nothing rides along unnoticed, and a claimed weight or number of works has no place to stand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from models.update import Answered, Asked, Assignment, Declined, DeclineReason, Part, Step, Update, VeiledPart, VeiledStep

VERSION: Final = 2
_ARRAYS, _HEADER, _FLAT = "arrays", "header", "flat"
_MAX_NAMES_CHARACTERS: Final = 20_000
_MAX_TEXT_CHARACTERS: Final = 200
_NPY_HEADER_MAX_BYTES: Final = 128  # numpy's, of a one-dimensional array
_SIGNATURE_BYTES: Final = 64

_ASSIGNMENT: Final[Mapping[str, type]] = {
    "version": int,
    "federation": str,
    "modality": str,
    "round": int,
    "policy": str,
    "layout": str,
}
_UPDATE: Final[Mapping[str, type]] = {
    "version": int,
    "federation": str,
    "round": int,
    "policy": str,
    "tensors": str,
    "layout": str,
    "loss-before": float,
    "loss-after": float,
    "steps": int,
    "signature": bytes,
}
_DECLINED: Final[Mapping[str, type]] = {"version": int, "round": int, "declined": str}
_VEILED: Final[Mapping[str, type]] = {"version": int, "federation": str, "round": int, "policy": str, "veiled": str}
_PART: Final[Mapping[str, type]] = {**_VEILED, "signature": bytes}
_T = TypeVar("_T")


class WireError(ValueError):
    """A record is not a message of this version. Its text is fixed and safe to send back."""


def pack_assignment(assignment: Assignment) -> RecordDict:
    """Assignment → record."""
    header: dict[str, int | float | str | bytes] = {
        "version": VERSION,
        "federation": assignment.federation,
        "modality": assignment.modality,
        "round": assignment.round,
        "policy": assignment.policy,
        "layout": assignment.layout_digest,
    }
    return _pack(assignment.body, header)


def unpack_assignment(record: RecordDict) -> Assignment:
    """Record → assignment.

    Raises:
        WireError: anything but exactly an assignment of this version.
    """
    arrays, header = _parts(record, {_ARRAYS, _HEADER})
    said = _fields(header, _ASSIGNMENT)
    return Assignment(
        federation=_text(said, "federation"),
        modality=_text(said, "modality"),
        round=_value(said, "round", int),
        policy=_text(said, "policy"),
        body=_array(arrays, "float32").astype(np.float32, copy=False),
        layout_digest=_text(said, "layout"),
    )


def pack_step(step: VeiledStep) -> RecordDict:
    """A veiled round's step → record."""
    header: dict[str, int | float | str | bytes] = {
        "version": VERSION,
        "federation": step.federation,
        "round": step.round,
        "policy": step.policy,
        "veiled": step.step,
    }
    return _pack(np.frombuffer(step.payload, np.uint8), header)


def unpack_asked(record: RecordDict) -> Asked:
    """Record → what a coordinator asks.

    Raises:
        WireError: anything but exactly an assignment, or a veiled round's step, of this version.
    """
    return _step(record) if _is_veiled(record) else unpack_assignment(record)


def pack_answer(answer: Answered) -> RecordDict:
    """Answer → record."""
    if isinstance(answer, VeiledPart):
        return _pack_part(answer)
    if isinstance(answer, Declined):
        header = {"version": VERSION, "round": answer.round, "declined": answer.reason}
        return RecordDict({_HEADER: ConfigRecord(dict(header))})
    return _pack(
        np.frombuffer(answer.payload, np.uint8),
        {
            "version": VERSION,
            "federation": answer.federation,
            "round": answer.round,
            "policy": answer.policy,
            "tensors": "\n".join(answer.tensors),
            "layout": answer.layout_digest,
            "loss-before": answer.loss_before,
            "loss-after": answer.loss_after,
            "steps": answer.steps,
            "signature": answer.signature,
        },
    )


def unpack_answer(record: RecordDict) -> Answered:
    """Record → answer.

    Raises:
        WireError: anything but exactly an update, a part of a veiled round, or a node's word that it takes no part, of this
            version.
    """
    if set(record) == {_HEADER}:
        return _declined(record)
    if _is_veiled(record):
        return _part(record)
    arrays, header = _parts(record, {_ARRAYS, _HEADER})
    said = _fields(header, _UPDATE)
    names, signature = _text(said, "tensors", _MAX_NAMES_CHARACTERS), _value(said, "signature", bytes)
    if len(signature) != _SIGNATURE_BYTES:
        raise WireError("the signature has another length")
    losses = _value(said, "loss-before", float), _value(said, "loss-after", float)
    if not all(map(math.isfinite, losses)):
        raise WireError("a loss is not finite")
    return Update(
        federation=_text(said, "federation"),
        round=_value(said, "round", int),
        policy=_text(said, "policy"),
        tensors=tuple(names.split("\n")),
        layout_digest=_text(said, "layout"),
        payload=_array(arrays, "uint8").tobytes(),
        loss_before=losses[0],
        loss_after=losses[1],
        steps=_value(said, "steps", int),
        signature=signature,
    )


def _declined(record: RecordDict) -> Declined:
    said = _fields(record[_HEADER], _DECLINED)
    for reason in get_args(DeclineReason):
        if said["declined"] == reason:
            return Declined(_value(said, "round", int), reason)
    raise WireError("a node declines for no known reason")


def _is_veiled(record: RecordDict) -> bool:
    header = record.get(_HEADER)
    return isinstance(header, ConfigRecord) and "veiled" in header


def _step(record: RecordDict) -> VeiledStep:
    arrays, header = _parts(record, {_ARRAYS, _HEADER})
    said = _fields(header, _VEILED)
    for step in get_args(Step):
        if said["veiled"] == step:
            payload = _array(arrays, "uint8").tobytes()
            return VeiledStep(_text(said, "federation"), _value(said, "round", int), _text(said, "policy"), step, payload)
    raise WireError("a step is none of a veiled round")


def _pack_part(part: VeiledPart) -> RecordDict:
    header: dict[str, int | float | str | bytes] = {
        "version": VERSION,
        "federation": part.federation,
        "round": part.round,
        "policy": part.policy,
        "veiled": part.part,
        "signature": part.signature,
    }
    return _pack(np.frombuffer(part.payload, np.uint8), header)


def _part(record: RecordDict) -> VeiledPart:
    arrays, header = _parts(record, {_ARRAYS, _HEADER})
    said = _fields(header, _PART)
    signature = _value(said, "signature", bytes)
    if len(signature) != _SIGNATURE_BYTES:
        raise WireError("the signature has another length")
    for part in get_args(Part):
        if said["veiled"] == part:
            return VeiledPart(
                federation=_text(said, "federation"),
                round=_value(said, "round", int),
                policy=_text(said, "policy"),
                part=part,
                payload=_array(arrays, "uint8").tobytes(),
                signature=signature,
            )
    raise WireError("an answer is no part of a veiled round")


def _pack(flat: npt.NDArray[np.float32] | npt.NDArray[np.uint8], header: Mapping[str, int | float | str | bytes]) -> RecordDict:
    return RecordDict({_ARRAYS: ArrayRecord({_FLAT: Array(flat)}), _HEADER: ConfigRecord(dict(header))})


def _parts(record: RecordDict, names: set[str]) -> tuple[ArrayRecord, object]:
    if set(record) != names:
        raise WireError("the message has other records than expected")
    arrays = record[_ARRAYS]
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {_FLAT}:
        raise WireError("the message holds other arrays than one flat one")
    return arrays, record[_HEADER]


def _fields(header: object, fields: Mapping[str, type]) -> Mapping[str, object]:
    if not isinstance(header, ConfigRecord) or set(header) != set(fields):
        raise WireError("the message header has other fields than expected")
    if header["version"] != VERSION:
        raise WireError("the message is of another version")
    for name, kind in fields.items():
        if type(header[name]) is not kind:
            raise WireError("a header field has the wrong type")
    return dict(header)


def _array(arrays: ArrayRecord, dtype: Literal["float32", "uint8"]) -> npt.NDArray[np.generic]:
    array = arrays[_FLAT]
    if array.dtype != dtype or len(array.shape) != 1:
        raise WireError(f"the array is not one row of {dtype}")
    if len(array.data) > np.dtype(dtype).itemsize * array.shape[0] + _NPY_HEADER_MAX_BYTES:
        raise WireError("the array is larger than its shape")
    try:
        flat = array.numpy()
    except Exception as error:  # numpy's reader raises BadZipFile, MemoryError and more on hostile bytes
        raise WireError("the array cannot be read") from error
    if not isinstance(flat, np.ndarray) or flat.dtype != np.dtype(dtype) or flat.shape != tuple(array.shape):
        raise WireError("the array is not what it says it is")
    return flat


def _text(said: Mapping[str, object], name: str, limit: int = _MAX_TEXT_CHARACTERS) -> str:
    text = _value(said, name, str)
    if len(text) > limit:
        raise WireError("a header field is too long")
    return text


def _value(said: Mapping[str, object], name: str, kind: type[_T]) -> _T:
    value = said[name]
    if not isinstance(value, kind):
        raise WireError("a header field has the wrong type")
    return value
