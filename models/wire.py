"""Assignment and update ↔ Flower records: versioned, one flat array a message, everything else a small record.

The only file of ``models`` that knows Flower. A record with an unknown version, a missing or a surplus entry is refused:
nothing rides along unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from models.update import Assignment, Flat, Update

VERSION: Final = 1
_ARRAYS, _HEADER, _FLAT = "arrays", "header", "flat"
_MAX_NAMES_CHARACTERS: Final = 20_000
_NPY_HEADER_MAX_BYTES: Final = 128  # numpy's, of a one-dimensional array


class WireError(ValueError):
    """A record is not a message of this version. Its text is fixed and safe to send back."""


def pack_assignment(assignment: Assignment) -> RecordDict:
    """Assignment → record."""
    return _pack(
        assignment.body,
        {
            "version": VERSION,
            "federation": assignment.federation,
            "modality": assignment.modality,
            "round": assignment.round,
            "layout": assignment.layout_digest,
            "steps": assignment.steps,
            "clip": assignment.clip,
        },
    )


def unpack_assignment(record: RecordDict) -> Assignment:
    """Record → assignment.

    Raises:
        WireError: anything but exactly an assignment of this version.
    """
    body, header = _unpack(
        record,
        {
            "version": int,
            "federation": str,
            "modality": str,
            "round": int,
            "layout": str,
            "steps": int,
            "clip": float,
        },
    )
    return Assignment(
        federation=_text(header, "federation"),
        modality=_text(header, "modality"),
        round=_whole(header, "round"),
        body=body,
        layout_digest=_text(header, "layout"),
        steps=_whole(header, "steps"),
        clip=_number(header, "clip"),
    )


def pack_update(update: Update) -> RecordDict:
    """Update → record."""
    return _pack(
        update.delta,
        {
            "version": VERSION,
            "round": update.round,
            "tensors": "\n".join(update.tensors),
            "layout": update.layout_digest,
            "loss-before": update.loss_before,
            "loss-after": update.loss_after,
            "steps": update.steps,
        },
    )


def unpack_update(record: RecordDict) -> Update:
    """Record → update.

    Raises:
        WireError: anything but exactly an update of this version.
    """
    delta, header = _unpack(
        record,
        {
            "version": int,
            "round": int,
            "tensors": str,
            "layout": str,
            "loss-before": float,
            "loss-after": float,
            "steps": int,
        },
    )
    names = _text(header, "tensors")
    if len(names) > _MAX_NAMES_CHARACTERS:
        raise WireError("too many tensor names")
    return Update(
        round=_whole(header, "round"),
        tensors=tuple(names.split("\n")),
        layout_digest=_text(header, "layout"),
        delta=delta,
        loss_before=_number(header, "loss-before"),
        loss_after=_number(header, "loss-after"),
        steps=_whole(header, "steps"),
    )


def _pack(flat: Flat, header: Mapping[str, int | float | str]) -> RecordDict:
    return RecordDict({_ARRAYS: ArrayRecord({_FLAT: Array(flat)}), _HEADER: ConfigRecord(dict(header))})


def _unpack(record: RecordDict, fields: Mapping[str, type]) -> tuple[Flat, Mapping[str, object]]:
    if set(record) != {_ARRAYS, _HEADER}:
        raise WireError("the message has other records than expected")
    arrays, header = record[_ARRAYS], record[_HEADER]
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {_FLAT}:
        raise WireError("the message holds other arrays than one flat one")
    if not isinstance(header, ConfigRecord) or set(header) != set(fields):
        raise WireError("the message header has other fields than expected")
    if header["version"] != VERSION:
        raise WireError("the message is of another version")
    for name, kind in fields.items():
        if type(header[name]) is not kind:
            raise WireError("a header field has the wrong type")
    return _flat(arrays[_FLAT]), dict(header)


def _flat(array: Array) -> Flat:
    if array.dtype != "float32" or len(array.shape) != 1:
        raise WireError("the array is not one row of float32")
    if len(array.data) > 4 * array.shape[0] + _NPY_HEADER_MAX_BYTES:
        raise WireError("the array is larger than its shape")
    try:
        flat = array.numpy()
    except Exception as error:  # numpy's reader raises BadZipFile, MemoryError and more on hostile bytes
        raise WireError("the array cannot be read") from error
    if not isinstance(flat, np.ndarray) or flat.dtype != np.float32 or flat.shape != tuple(array.shape):
        raise WireError("the array is not what it says it is")
    return flat


def _text(header: Mapping[str, object], name: str) -> str:
    return str(header[name])


def _whole(header: Mapping[str, object], name: str) -> int:
    value = header[name]
    if not isinstance(value, int):
        raise WireError("a header field has the wrong type")
    return value


def _number(header: Mapping[str, object], name: str) -> float:
    value = header[name]
    if not isinstance(value, float):
        raise WireError("a header field has the wrong type")
    return value
