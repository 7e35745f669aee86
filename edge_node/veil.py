"""A node's part in a veiled round, from the end of its training on: it takes each step once, in one way, and remembers it.

``models/masking.py`` says what is computed and refused. Here are the artist's own terms, and what a kill may not undo:

1. What goes out is what the guard made for this round, under the policy the artist has agreed to, and of works that are still
   the ones learned from.
2. A roster names this machine by its enrolled key, and is not shorter than the policy's minimum.
3. Another roster is taken only as long as nothing was delivered in this round: who did not answer in time is left out, and the
   keys are agreed on anew.
4. The secrets are on disk before anything made with them is sent, and the update is in the ledger before it is.
5. Nobody is unmasked with fewer survivors than the policy's minimum.

Whose keys a roster holds this machine can't know. It remembers those it has seen, and its ledger says how many were new.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_node import guard, keys
from edge_node.config import Home
from edge_node.guard import Entry
from export.errors import IntegrityError
from export.files import digest_of, read_bounded, write_atomic, write_json
from export.ledger import Ledger
from export.policy import Policy
from models import masking
from models.masking import MaskingError, NodeState
from models.update import Part, Ready, VeiledPart, VeiledStep

_STATE_MAX_BYTES: Final = 2**20
_PEERS_MAX_BYTES: Final = 2**20
_ADVERT_BYTES, _BOX_BYTES = 168, 98
_DIGEST_BYTES: Final = 32


def ready(made: Ready, key: Ed25519PrivateKey) -> VeiledPart:
    """This machine's word that it has trained."""
    return _signed(made, "ready", b"", key)


def answer(home: Home, policy: Policy, made: Ready, entry: Entry, step: VeiledStep) -> VeiledPart:
    """Take a step of the round that an update was made for; what is refused is answered with the reason.

    Args:
        home: this machine's folder.
        policy: the one the artist has agreed to.
        made: what the guard let through.
        entry: its line of the ledger.
        step: what is asked; of the same federation, round and policy.

    Raises:
        ResourceError: the disk is full; nothing was sent.
        IntegrityError: the ledger was changed.
    """
    key = keys.enrolled_key(home)
    try:
        match step.step:
            case "roster":
                return _signed(made, "advert", _advertise(home, policy, made, step.payload, key), key)
            case "adverts":
                return _signed(made, "boxes", _deal(home, made, step.payload), key)
            case "boxes":
                return _signed(made, "masked", _deliver(home, policy, made, entry, step.payload), key)
            case "request":
                return _signed(made, "shares", _share(home, policy, made, step.payload), key)
    except MaskingError as error:
        reason = error.reason if error.node is None else f"{error.reason} {error.node}"
        return _signed(made, "refused", reason.encode(), key)


def _advertise(home: Home, policy: Policy, made: Ready, raw: bytes, key: Ed25519PrivateKey) -> bytes:
    context = masking.Context.from_bytes(raw)
    # 1.
    if (context.federation, context.round, context.policy, context.layout) != _named(made):
        raise MaskingError("context")
    # 2.
    own = [node for node, enrolled in context.roster if enrolled == key.public_key().public_bytes_raw()]
    if not own:
        raise MaskingError("stranger")
    if len(context.roster) < policy.minimum_nodes:
        raise MaskingError("too-few-nodes")
    # 3.
    state = _load(home)
    if state is None or state.context != context:
        if (state is not None and state.delivered and state.context.round == made.round) or _has_sent(home, made):
            raise MaskingError("out-of-turn")
        state = masking.begin(context, own[0], masking.Secrets.generate())
        _save(home, state)
    return masking.advertise(state, key).to_bytes()


def _deal(home: Home, made: Ready, raw: bytes) -> bytes:
    adverts = [masking.Advert.from_bytes(part) for part in _split(raw, _ADVERT_BYTES)]
    state = masking.accept_adverts(_current(home, made), adverts)
    _save(home, state)
    return b"".join(box.to_bytes() for box in masking.deal(state))


def _deliver(home: Home, policy: Policy, made: Ready, entry: Entry, raw: bytes) -> bytes:
    state = masking.accept_boxes(_current(home, made), [masking.Box.from_bytes(part) for part in _split(raw, _BOX_BYTES)])
    digest = state.context.digest
    rounding = np.random.default_rng(keys.derived_seed(home, f"rounding of veiled round {digest.hex()}"))
    encoded = masking.encode(made.delta, policy.clip, len(state.context.roster), rounding)
    state, masked = masking.deliver(state, encoded)
    # 4.
    _save(home, state)
    sent = masked.to_bytes()
    seen, strangers = _peers(home, state)
    told = {"peers": len(state.context.roster) - 1, "peers-new": strangers}
    guard.note(Ledger(home.ledger_file), {**entry, **told, "bytes": len(sent), "sha256": digest_of(sent)})
    write_json(home.peers_file, seen, mode=0o600)
    return sent


def _share(home: Home, policy: Policy, made: Ready, raw: bytes) -> bytes:
    request = masking.Request.from_bytes(raw)
    # 5.
    if len(request.survivors) < policy.minimum_nodes:
        raise MaskingError("too-few-nodes")
    state, shares = masking.answer_request(_current(home, made), request)
    _save(home, state)
    return shares.to_bytes()


def _named(made: Ready) -> tuple[str, int, str, str]:
    return made.federation, made.round, made.policy, made.layout_digest


def _has_sent(home: Home, made: Ready) -> bool:
    """Whether the ledger has an update of this round: it remembers where the secrets were lost."""
    said = [(entry.get("what"), entry.get("federation"), entry.get("round")) for entry in Ledger(home.ledger_file).entries()]
    return ("update", made.federation, made.round) in said


def _current(home: Home, made: Ready) -> NodeState:
    state = _load(home)
    named = state and (state.context.federation, state.context.round, state.context.policy, state.context.layout)
    if state is None or named != _named(made):
        raise MaskingError("out-of-turn")
    return state


def _load(home: Home) -> NodeState | None:
    """The state of the last veiled round; None if there is none.

    A damaged one is as lost as its secrets are: the round goes on without this machine, or begins anew with it if it has
    delivered nothing.
    """
    try:
        raw = read_bounded(home.veil_file, _STATE_MAX_BYTES)
    except (OSError, IntegrityError):
        return None
    digest, rest = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    try:
        return NodeState.from_bytes(rest) if hashlib.sha256(rest).digest() == digest else None
    except (MaskingError, ValueError):
        return None


def _save(home: Home, state: NodeState) -> None:
    raw = state.to_bytes()
    write_atomic(home.veil_file, hashlib.sha256(raw).digest() + raw, mode=0o600)


def _peers(home: Home, state: NodeState) -> tuple[list[str], int]:
    """The keys of all members ever seen, this round's among them, and how many of those are new."""
    own = state.context.roster[state.context.indices[state.node] - 1][1]
    here = {key.hex() for _, key in state.context.roster if key != own}
    known = _known(home.peers_file)
    return sorted(here | known), len(here - known)


def _known(path: Path) -> set[str]:
    try:
        return {str(key) for key in json.loads(read_bounded(path, _PEERS_MAX_BYTES))}
    except (OSError, IntegrityError, ValueError, TypeError, RecursionError):
        return set()


def _split(raw: bytes, each: int) -> list[bytes]:
    if len(raw) % each or len(raw) > each * masking.MAXIMUM_NODES:
        raise MaskingError("malformed")
    return [raw[start : start + each] for start in range(0, len(raw), each)]


def _signed(made: Ready, part: Part, payload: bytes, key: Ed25519PrivateKey) -> VeiledPart:
    plain = VeiledPart(made.federation, made.round, made.policy, part, payload)
    return replace(plain, signature=key.sign(plain.statement))
