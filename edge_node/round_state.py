"""What a node keeps from round to round, in one file that is there whole or not at all.

It is written when an update has been made and before it is sent. So a node that is killed at any moment either has not made the
update, and makes it as if nothing had happened; or has made it, and answers with the same one: nothing is trained twice,
written down twice or sent in two forms. What is in it never leaves this machine, but for the update.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_node.guard import Entry
from export import weights
from export.errors import IntegrityError
from export.files import Digest, read_bounded, write_atomic
from models.update import Arrays, Assignment, Flat, Ready, Update

_MAX_BYTES: Final = 4 * weights.BODY_MAX_BYTES
_PRIVATE, _MOMENTS, _RESIDUAL, _READY = "private/", "moments/", "residual", "ready"
_READY_FIELDS: Final = ("federation", "round", "policy", "layout_digest")

SeenMoments = Mapping[tuple[str, str], Mapping[str, npt.NDArray[np.float32]]]
"""What the optimiser has seen, by objective and parameter; see ``models.training.Moments``."""


@dataclass(frozen=True, slots=True)
class RoundState:
    """What a node knows after a round.

    Attributes:
        material: names what was learned from; of other works nothing here may be used, and least of all sent.
        asked: names the assignment, its body included.
        private: the network's private tensors as training left them.
        moments: what the optimiser has seen.
        residual: what the updates so far have left out, flat.
        update: what was answered, or what goes out under masks.
        entry: its line of the ledger.
    """

    material: Digest
    asked: Digest
    private: Arrays
    moments: SeenMoments
    residual: Flat
    update: Update | Ready
    entry: Entry


def name_of(assignment: Assignment) -> Digest:
    """Tells one assignment from any other, so that only the very same is answered from memory."""
    body = hashlib.sha256(np.ascontiguousarray(assignment.body).tobytes()).hexdigest()
    said = [assignment.federation, assignment.modality, assignment.round, assignment.policy, assignment.layout_digest, body]
    return Digest(hashlib.sha256(json.dumps(said).encode()).hexdigest())


def save(path: Path, state: RoundState) -> None:
    """Write the file, for this user alone.

    Raises:
        ResourceError: it cannot be written; the old one is still there.
    """
    arrays: dict[str, npt.NDArray[np.float32]] = {_RESIDUAL: state.residual}
    arrays |= {f"{_PRIVATE}{name}": array for name, array in state.private.items()}
    for (objective, parameter), seen in state.moments.items():
        arrays |= {f"{_MOMENTS}{objective}/{parameter}/{key}": value for key, value in seen.items()}
    if isinstance(state.update, Ready):
        arrays[_READY] = state.update.delta
    said = {
        "material": state.material,
        "asked": state.asked,
        "update": _plain(state.update),
        "entry": dict(state.entry),
    }
    text = json.dumps(said)
    write_atomic(path, weights.pack(arrays, {"round": text, "sha256": _checksum(arrays, text)}), mode=0o600)


def load(path: Path) -> RoundState | None:
    """The state after the last round; None if there was none, or the file is damaged and the node starts afresh."""
    try:
        data = read_bounded(path, _MAX_BYTES)
        arrays, metadata = weights.unpack(data), weights.metadata_of(data)
        if _checksum(arrays, metadata["round"]) != metadata["sha256"]:
            return None
        said = json.loads(metadata["round"])
        return RoundState(
            material=Digest(str(said["material"])),
            asked=Digest(str(said["asked"])),
            private={name.removeprefix(_PRIVATE): a for name, a in arrays.items() if name.startswith(_PRIVATE)},
            moments=_moments(arrays),
            residual=arrays[_RESIDUAL],
            update=_update(said["update"], arrays.get(_READY)),
            entry=said["entry"],
        )
    except (OSError, IntegrityError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _checksum(arrays: Arrays, text: str) -> str:
    """Tells a flipped bit, which a file of numbers does not show."""
    return hashlib.sha256(weights.pack(arrays) + text.encode()).hexdigest()


def _moments(arrays: Arrays) -> SeenMoments:
    found: dict[tuple[str, str], dict[str, npt.NDArray[np.float32]]] = {}
    for name, array in arrays.items():
        if name.startswith(_MOMENTS):
            objective, parameter, key = name.removeprefix(_MOMENTS).split("/")
            found.setdefault((objective, parameter), {})[key] = array
    return found


def _plain(update: Update | Ready) -> dict[str, object]:
    if isinstance(update, Ready):
        return {name: getattr(update, name) for name in _READY_FIELDS}
    coded = {name: base64.b64encode(getattr(update, name)).decode() for name in ("payload", "signature")}
    return {**asdict(replace(update, payload=b"", signature=b"")), **coded}


def _update(plain: Mapping[str, object], delta: Flat | None) -> Update | Ready:
    if delta is not None:
        federation, number, policy, layout = (plain[name] for name in _READY_FIELDS)
        return Ready(str(federation), int(str(number)), str(policy), str(layout), delta)
    try:
        coded = {name: base64.b64decode(str(plain[name]), validate=True) for name in ("payload", "signature")}
    except binascii.Error as error:
        raise ValueError("a damaged update") from error
    rest = {name: value for name, value in plain.items() if name not in coded}
    tensors = tuple(str(name) for name in rest.pop("tensors"))  # type: ignore[attr-defined]
    return Update(**rest, **coded, tensors=tensors)  # type: ignore[arg-type]
