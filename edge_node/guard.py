"""The only door out: builds the one value of a round that leaves this machine, from an allow-list of shared tensor names.

Whatever is not named in the body's layout cannot be in the update, since the update is assembled from those names and from
nothing else. In this order:

1. Take the shared tensors, and of them how far training moved them.
2. Add the residual: what earlier updates left out, kept on this machine (error feedback, Seide et al. 2014; Karimireddy et al.
   2019, arXiv 1901.09847).
3. Clip to the policy's norm.
4. Add noise, if the policy says so.
5. Compress: the policy's share of the numbers, in 8 bits each, rounded at random; what is decoded is never longer than the
   clip. The new residual is what was meant and not sent, without the noise, and at most ten clips long: what a clip or a share
   leaves out today is sent tomorrow.
6. Sign with this machine's enrolled key.
7. Write it to the artist's ledger. What is not in the ledger was not sent: sending comes after, and is done by others.

In a veiled round nobody else can see whether the norm is kept, so it is kept here: what has its noise is clipped once more. It
is sent whole, since masks leave no number out, and steps 6 and 7 come when it has its masks (``veil.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeAlias, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export.files import digest_of
from export.ledger import Ledger, Value
from export.policy import Policy
from models import compression, privacy
from models.update import Arrays, Assignment, Flat, Layout, Ready, Update

_RESIDUAL_CLIPS: Final = 10.0

Entry: TypeAlias = Mapping[str, Value]
"""A line of the ledger."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round's training came to on this machine.

    Attributes:
        tensors: every tensor of the network, private ones included.
        loss_before: mean training loss over the first tenth of the steps.
        loss_after: mean training loss over the last tenth.
        steps: batches trained on.
    """

    tensors: Arrays
    loss_before: float
    loss_after: float
    steps: int


_Made_co = TypeVar("_Made_co", bound=Update | Ready, covariant=True)


@dataclass(frozen=True, slots=True)
class Sealed(Generic[_Made_co]):
    """An update that is ready to leave, and what stays.

    Attributes:
        update: the update, signed; in a veiled round what goes out under masks.
        residual: what it leaves out, flat.
        entry: the line of the ledger that goes before it.
    """

    update: _Made_co
    residual: Flat
    entry: Entry


def seal(
    assignment: Assignment,
    policy: Policy,
    trained: Trained,
    layout: Layout,
    residual: Flat,
    key: Ed25519PrivateKey,
    rng: np.random.Generator,
) -> Sealed[Update]:
    """Make the update of a round: steps 1 to 6.

    Args:
        assignment: what was asked, with the body training started from.
        policy: the one the artist has agreed to.
        trained: what training came to.
        layout: names and shapes of the shared tensors: the allow-list.
        residual: what earlier updates left out, flat.
        key: this machine's enrolled key.
        rng: for rounding alone, never for noise.

    Raises:
        ValueError: the training spoilt the body.
    """
    movement, wanted, clipped = _bounded(assignment, policy, trained, layout, residual)
    # 4.
    noised = privacy.with_noise(clipped, policy.noise * policy.clip)
    # 5.
    payload = compression.compress(noised, layout, policy.keep, policy.clip, rng)
    sent = compression.decompress(payload, layout)
    unsent = wanted - clipped + np.where(sent == 0, clipped, noised - sent)
    # 6.
    update = Update(
        federation=assignment.federation,
        round=assignment.round,
        policy=assignment.policy,
        tensors=layout.names,
        layout_digest=layout.digest,
        payload=payload,
        loss_before=trained.loss_before,
        loss_after=trained.loss_after,
        steps=trained.steps,
    )
    signed = replace(update, signature=key.sign(update.statement))
    entry: Entry = {
        "what": "update",
        "federation": assignment.federation,
        "round": assignment.round,
        "policy": assignment.policy,
        "tensors": list(layout.names),
        "bytes": len(payload),
        "norm": privacy.norm(movement),
        "norm-sent": privacy.norm(sent),
        "noise": policy.noise * policy.clip,
        "sha256": digest_of(payload),
        "loss-before": trained.loss_before,
        "loss-after": trained.loss_after,
        "steps": trained.steps,
    }
    return Sealed(signed, privacy.clip(unsent, _RESIDUAL_CLIPS * policy.clip), entry)


def prepare(assignment: Assignment, policy: Policy, trained: Trained, layout: Layout, residual: Flat) -> Sealed[Ready]:
    """Make what a veiled round sends under masks: steps 1 to 4, and the clip once more. Its line of the ledger lacks the digest
    and the size of what is sent.

    Args: as ``seal``.

    Raises:
        ValueError: the training spoilt the body, or it was of fewer steps than all are to make: in a sum nobody can make up
            for them.
    """
    if trained.steps != policy.steps:
        raise ValueError("a veiled round takes all of its steps")
    movement, wanted, clipped = _bounded(assignment, policy, trained, layout, residual)
    # 4.
    sent = privacy.clip(privacy.with_noise(clipped, policy.noise * policy.clip), policy.clip)
    ready = Ready(assignment.federation, assignment.round, assignment.policy, layout.digest, sent)
    entry: Entry = {
        "what": "update",
        "federation": assignment.federation,
        "round": assignment.round,
        "policy": assignment.policy,
        "tensors": list(layout.names),
        "norm": privacy.norm(movement),
        "norm-sent": privacy.norm(sent),
        "noise": policy.noise * policy.clip,
        "steps": trained.steps,
    }
    return Sealed(ready, privacy.clip(wanted - clipped, _RESIDUAL_CLIPS * policy.clip), entry)


def _bounded(
    assignment: Assignment, policy: Policy, trained: Trained, layout: Layout, residual: Flat
) -> tuple[Flat, Flat, Flat]:
    """Steps 1 to 3: what moved, what is meant, and what of that the clip leaves."""
    if residual.shape != (layout.size,) or assignment.body.shape != (layout.size,):
        raise ValueError("the body or the residual has another length than the layout")
    # 1.
    shared = {name: trained.tensors[name] for name in layout.names}
    movement = layout.flatten(shared) - assignment.body
    # 2.
    wanted = movement + residual
    # 3.
    return movement, wanted, privacy.clip(wanted, policy.clip)


def note(ledger: Ledger, entry: Entry) -> None:
    """Step 7: write an update to the ledger, once: a round that is asked for again is answered with the same update.

    Raises:
        ResourceError: the ledger cannot be written, so nothing may be sent.
        IntegrityError: it was changed, so nobody could tell any more what was sent.
    """
    ledger.append_once(entry, "what", "federation", "round", "sha256")
