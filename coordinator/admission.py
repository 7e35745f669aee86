"""Whether one node's update may count: numbered checks, each with a fixed reason that is safe to send back.

1. It is an update of this wire version, and nothing more (``models/wire.py`` refuses unknown and surplus records, so a
   claimed weight or number of samples has no place to stand).
2. It is for this round.
3. It names exactly the shared tensors, in order; a private tensor's name is told apart from an unknown one.
4. Its layout and length are the body's.
5. Every number is finite.
6. Its norm is at most the clip the assignment asked for.
7. The node has not answered this round already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models import privacy
from models.update import Layout, Update

Reason = Literal[
    "not-an-update",
    "another-round",
    "private-tensor",
    "unknown-tensor",
    "another-layout",
    "not-finite",
    "norm-too-large",
    "answered-twice",
    "node-failed",
]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The update counts."""

    update: Update
    norm: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """It does not, and why."""

    reason: Reason


Verdict = Accepted | Rejected

# Clipping happens in float32 on the node and is checked in float64 here.
_NORM_SLACK = 1 + 1e-4


@dataclass(frozen=True, slots=True)
class Terms:
    """What an update of this round must be.

    Attributes:
        round: number of the round.
        layout: of the shared body.
        clip: greatest L2 norm.
        private: names of the modality's private tensors.
    """

    round: int
    layout: Layout
    clip: float
    private: frozenset[str]


def admit(update: Update, terms: Terms, *, has_answered: bool) -> Verdict:
    """Checks 2 to 7; check 1 is the translator's."""
    # 2.
    if update.round != terms.round:
        return Rejected("another-round")
    # 3.
    if update.tensors != terms.layout.names:
        strangers = set(update.tensors) - set(terms.layout.names)
        return Rejected("private-tensor" if strangers & terms.private else "unknown-tensor")
    # 4.
    if update.layout_digest != terms.layout.digest or update.delta.shape != (terms.layout.size,):
        return Rejected("another-layout")
    # 5.
    if not (np.isfinite(update.delta).all() and math.isfinite(update.loss_before) and math.isfinite(update.loss_after)):
        return Rejected("not-finite")
    # 6.
    length = privacy.norm(update.delta)
    if length > terms.clip * _NORM_SLACK:
        return Rejected("norm-too-large")
    # 7.
    if has_answered:
        return Rejected("answered-twice")
    return Accepted(update, length)
