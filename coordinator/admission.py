"""Whether one node's update may count: numbered checks, each with a fixed reason that is told to the node.

1. It is an update of this wire version and nothing more (``models/wire.py`` refuses unknown and surplus records, so a claimed
   weight or number of samples has no place to stand), and no longer than an update of this body can be: at most twice of what
   an honest one takes.
2. It is signed with the enrolled key of the member whose node sent it.
3. It is for this federation, this round and this policy, and trained on no more steps than the policy says.
4. It names exactly the shared tensors, in order (a private tensor's name is told apart from an unknown one), of the body's
   layout, and its payload is of the one form that layout has.
5. Every number is finite.
6. Its norm is at most the policy's clip.
7. The node has not answered this round already.

In a veiled round an update is under its masks, and of all this there is left, for each part of the protocol:

1. It is a part of this wire version and nothing more, and no longer than an honest one.
2. It is signed with the enrolled key of the member whose node sent it.
3. It is for this federation, this round and this policy.
4. It is what was asked for in this step, in its exact form, and of the nodes that take part (``veiled.py``).
5. The node has not answered this step already.

Non-finite numbers, a norm beyond the clip, a private tensor in a shared one's place: none of these can be seen in one part. The
masks leave no place for what is not finite or not of the layout; a sum that is longer than its parts may make it, or that the
gate refuses, is thrown away whole. Which kind of bad update each way can refuse is a table, each row a test:
``tests/attacks/test_veiled.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from models import compression, privacy
from models.compression import CompressionError
from models.update import DeclineReason, Flat, Layout, Part, Update, VeiledPart

Reason = (
    Literal[
        "not-an-update",
        "too-large",
        "signature",
        "another-round",
        "another-policy",
        "too-many-steps",
        "private-tensor",
        "unknown-tensor",
        "another-layout",
        "payload",
        "not-finite",
        "norm-too-large",
        "answered-twice",
        "another-step",
        "veil-refused",
        "veil-failed",
        "node-failed",
        "no-answer",
    ]
    | DeclineReason
)

ADVICE: Final[dict[str, str]] = {
    "not-an-update": "Update Sfumato on this machine.",
    "too-large": "Update Sfumato on this machine.",
    "signature": "The update was not signed with this machine's enrolled key. Was a backup put back in part?",
    "another-round": "The update came for a round that was over. Nothing need be done.",
    "another-policy": "Read the policy anew with: sfumato policy show",
    "too-many-steps": "Update Sfumato on this machine.",
    "private-tensor": "Update Sfumato on this machine, and tell us: this must not happen.",
    "unknown-tensor": "Update Sfumato on this machine.",
    "another-layout": "Update Sfumato on this machine.",
    "payload": "Update Sfumato on this machine.",
    "not-finite": "Training spoilt the numbers. Look whether a work is damaged: sfumato works list",
    "norm-too-large": "Update Sfumato on this machine.",
    "answered-twice": "Nothing need be done: the first answer stands.",
    "another-step": "Update Sfumato on this machine.",
    "veil-refused": "This machine did not go on with the veiled round, as it must not. The coordinator's log says why.",
    "veil-failed": "The veiled round went on without this machine, or ended for want of others. Nothing need be done.",
    "node-failed": "See the log of sfumato up.",
    "no-answer": "The round did not wait longer. Is this machine on, and is sfumato up running?",
    "no-consent": "Read the policy with: sfumato policy show, and agree with: sfumato policy accept",
    "rounds-spent": "Agree to more rounds with: sfumato policy accept",
    "budget-spent": "The privacy budget of these works is spent. Nothing more is sent of them.",
    "too-much-asked": "The policy is beyond this machine's own bounds; see clip_max and steps_max in node.toml.",
}
"""What the artist can do about each reason."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The update counts.

    Attributes:
        delta: what it says, flat.
        norm: its L2 norm.
    """

    delta: Flat
    norm: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """It does not, and why."""

    reason: Reason


Verdict = Accepted | Rejected

# Clipping happens in float32 on the node and is checked in float64 here.
_NORM_SLACK: Final = 1 + 1e-4
_REFUSAL_MAX_BYTES: Final = 100


@dataclass(frozen=True, slots=True)
class Terms:
    """What an update of this round must be.

    Attributes:
        federation: its name.
        round: number of the round.
        policy: digest of the policy.
        layout: of the shared body.
        steps: most batches.
        clip: greatest L2 norm.
        keep: share of the numbers that are sent.
        private: names of the modality's private tensors.
    """

    federation: str
    round: int
    policy: str
    layout: Layout
    steps: int
    clip: float
    keep: float
    private: frozenset[str]

    @property
    def payload_max_bytes(self) -> int:
        """Twice the longest payload an honest node sends."""
        return 2 * compression.max_bytes(self.layout, self.keep)


def admit(update: Update, terms: Terms, enrolled: bytes, *, has_answered: bool) -> Verdict:
    """Checks 1 to 7; the first half of check 1 is the translator's.

    Args:
        update: what came.
        terms: of the round.
        enrolled: raw Ed25519 key of the member whose node sent it.
        has_answered: whether an update of that member counts already.
    """
    # 1.
    if len(update.payload) > terms.payload_max_bytes:
        return Rejected("too-large")
    # 2, 3.
    foreign = _foreign(update, terms, enrolled)
    if foreign is not None:
        return foreign
    if not 1 <= update.steps <= terms.steps:
        return Rejected("too-many-steps")
    # 4.
    if update.tensors != terms.layout.names:
        strangers = set(update.tensors) - set(terms.layout.names)
        return Rejected("private-tensor" if strangers & terms.private else "unknown-tensor")
    if update.layout_digest != terms.layout.digest:
        return Rejected("another-layout")
    try:
        delta = compression.decompress(update.payload, terms.layout)
    except CompressionError:
        return Rejected("payload")
    # 5.
    if not np.isfinite(delta).all():
        return Rejected("not-finite")
    # 6.
    length = privacy.norm(delta)
    if length > terms.clip * _NORM_SLACK:
        return Rejected("norm-too-large")
    # 7.
    if has_answered:
        return Rejected("answered-twice")
    return Accepted(delta, length)


def admit_part(part: VeiledPart, terms: Terms, enrolled: bytes, wanted: Part, longest: int) -> Rejected | None:
    """Checks 1 to 4 of a veiled round's part, but for its form; nothing if it passes.

    Args:
        part: what came.
        terms: of the round.
        enrolled: raw Ed25519 key of the member whose node sent it.
        wanted: the part this step asks for. A node may always say why it does not go on instead.
        longest: bytes of the longest such part.
    """
    # 1.
    if len(part.payload) > (longest if part.part == wanted else _REFUSAL_MAX_BYTES):
        return Rejected("too-large")
    # 2, 3.
    foreign = _foreign(part, terms, enrolled)
    if foreign is not None:
        return foreign
    # 4.
    if part.part == "refused":
        return Rejected("veil-refused")
    return None if part.part == wanted else Rejected("another-step")


def _foreign(said: Update | VeiledPart, terms: Terms, enrolled: bytes) -> Rejected | None:
    """Whether it is another's, or of another round or policy."""
    try:
        Ed25519PublicKey.from_public_bytes(enrolled).verify(said.signature, said.statement)
    except (InvalidSignature, ValueError):
        return Rejected("signature")
    if said.federation != terms.federation or said.round != terms.round:
        return Rejected("another-round")
    return None if said.policy == terms.policy else Rejected("another-policy")
