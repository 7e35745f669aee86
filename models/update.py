"""What an artist's machine sends: how far training moved the shared body, and nothing else.

A body is a set of named arrays. On the wire it is one flat array, since the cost of a Flower message follows its number
of tensors and not its bytes; ``Layout`` says which stretch of it is which tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Flat: TypeAlias = npt.NDArray[np.float32]
Arrays: TypeAlias = Mapping[str, npt.NDArray[np.float32]]


DeclineReason: TypeAlias = Literal["no-consent", "rounds-spent", "budget-spent", "too-much-asked"]
"""Why a node takes no part: its artist has not agreed to the policy, or to no more rounds; its privacy budget is spent; the
policy is beyond its own bounds. Nothing else of the node is said."""

Step: TypeAlias = Literal["roster", "adverts", "boxes", "request"]
"""What a coordinator sends in a veiled round once the nodes have trained; see ``models/masking.py``."""
Part: TypeAlias = Literal["ready", "advert", "boxes", "masked", "shares", "refused"]
"""What a node answers in a veiled round: that it has trained; what the protocol asks for; or why it does not go on."""

# Keeps a signature over one of these from being one over anything else that the same key signs.
_STATEMENT: Final = b"sfumato update v2\n"
_PART_STATEMENT: Final = b"sfumato veiled part v1\n"


class LayoutError(ValueError):
    """Arrays and layout do not belong together."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a body's tensors, sorted by name."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, arrays: Arrays) -> Layout:
        """The layout of some arrays."""
        return cls(tuple((name, arrays[name].shape) for name in sorted(arrays)))

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in order."""
        return tuple(name for name, _ in self.tensors)

    @property
    def size(self) -> int:
        """Numbers in the flat array."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def digest(self) -> str:
        """sha256 of names and shapes: two machines with the same digest mean the same by a flat array."""
        return hashlib.sha256(json.dumps(self.tensors).encode()).hexdigest()

    def flatten(self, arrays: Arrays) -> Flat:
        """Arrays → one float32 vector of ``size`` numbers.

        Raises:
            LayoutError: other names or shapes.
        """
        if Layout.of(arrays) != self:
            raise LayoutError("the arrays have other names or shapes than the layout")
        return np.concatenate([np.ravel(arrays[name]).astype(np.float32, copy=False) for name in self.names])

    def unflatten(self, flat: Flat) -> dict[str, Flat]:
        """One vector → arrays.

        Raises:
            LayoutError: another length.
        """
        if flat.shape != (self.size,):
            raise LayoutError(f"expected {self.size} numbers, got an array of shape {flat.shape}")
        arrays, start = {}, 0
        for name, shape in self.tensors:
            end = start + math.prod(shape)
            arrays[name] = flat[start:end].reshape(shape).copy()
            start = end
        return arrays


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the coordinator asks of a node in one round. All that binds the node is in the policy, which it has agreed to.

    Attributes:
        federation: name of the federation.
        modality: registry name of the kind of art.
        round: 1, 2, ...
        policy: digest of the policy the round is held under.
        body: the current body, flat.
        layout_digest: of the body's layout.
    """

    federation: str
    modality: str
    round: int
    policy: str
    body: Flat
    layout_digest: str


@dataclass(frozen=True, slots=True)
class Update:
    """What a node answers in an open round.

    Attributes:
        federation, round, policy: the assignment's.
        tensors: names of the shared tensors, in the order of the flat array.
        layout_digest: of the body's layout.
        payload: trained body minus assigned body: clipped, compressed (``models/compression.py``).
        loss_before: mean training loss over the first tenth of the steps.
        loss_after: mean training loss over the last tenth.
        steps: batches really trained on.
        signature: of the node's enrolled Ed25519 key over ``statement``; empty while it is being made.
    """

    federation: str
    round: int
    policy: str
    tensors: tuple[str, ...]
    layout_digest: str
    payload: bytes
    loss_before: float
    loss_after: float
    steps: int
    signature: bytes = b""

    @property
    def statement(self) -> bytes:
        """What is signed: everything but the signature, the payload by its digest."""
        said = {
            "federation": self.federation,
            "round": self.round,
            "policy": self.policy,
            "tensors": self.tensors,
            "layout": self.layout_digest,
            "payload": hashlib.sha256(self.payload).hexdigest(),
            "loss-before": self.loss_before,
            "loss-after": self.loss_after,
            "steps": self.steps,
        }
        return _said(_STATEMENT, said)


@dataclass(frozen=True, slots=True)
class Declined:
    """A node's answer that it takes no part in a round, and which of the stated reasons it has."""

    round: int
    reason: DeclineReason


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """What a node has for a veiled round, and keeps until it goes out under its masks.

    Attributes:
        federation, round, policy, layout_digest: the assignment's.
        delta: trained body minus assigned body, clipped, with its noise, flat.
    """

    federation: str
    round: int
    policy: str
    layout_digest: str
    delta: Flat


@dataclass(frozen=True, slots=True)
class VeiledStep:
    """What the coordinator asks of a node in a veiled round after the training.

    Attributes:
        federation, round, policy: as in the assignment.
        step: what it is.
        payload: the step's message in the bytes of ``models/masking.py``; several of one kind one behind the other.
    """

    federation: str
    round: int
    policy: str
    step: Step
    payload: bytes


@dataclass(frozen=True, slots=True)
class VeiledPart:
    """What a node answers in a veiled round.

    Attributes:
        federation, round, policy: as in the assignment.
        part: what it is.
        payload: the message, in the bytes of ``models/masking.py``; nothing with `ready`; with `refused`, the reason.
        signature: of the node's enrolled Ed25519 key over ``statement``; empty while it is being made.
    """

    federation: str
    round: int
    policy: str
    part: Part
    payload: bytes
    signature: bytes = b""

    @property
    def statement(self) -> bytes:
        """What is signed: everything but the signature, the payload by its digest."""
        said = {
            "federation": self.federation,
            "round": self.round,
            "policy": self.policy,
            "part": self.part,
            "payload": hashlib.sha256(self.payload).hexdigest(),
        }
        return _said(_PART_STATEMENT, said)


Asked: TypeAlias = Assignment | VeiledStep
Answered: TypeAlias = Update | Declined | VeiledPart


def _said(purpose: bytes, said: Mapping[str, object]) -> bytes:
    """One byte string for what is said, for one purpose."""
    return purpose + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
