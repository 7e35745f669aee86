"""Veiled rounds: a coordinator learns the sum of the updates and no update, by masks that cancel in the sum.

Secure aggregation after Bonawitz et al. 2017 (CCS 2017, eprint 2017/281, figure 4), double-masked, with keys signed by the
nodes' enrolled keys. Pure: what is computed and what is refused; who carries and keeps it is not known here. The coordinator
is trusted with nothing but to answer; it carries every message between nodes.

| step | message | made by | taken by |
|---|---|---|---|
| 1 | to nodes: ``Context``, the round and its roster | | ``begin`` |
| 2 | to coordinator: ``Advert``, public keys, signed | ``advertise`` | ``check_adverts`` |
| 3 | to nodes: all adverts | | ``accept_adverts`` |
| 4 | to coordinator: a ``Box`` of shares for each other node | ``deal`` | sorted by recipient; it cannot open them |
| 5 | to nodes: the boxes for them | | ``accept_boxes`` |
| 6 | to coordinator: ``Masked``, the update | ``encode``, ``deliver`` | ``gather`` |
| 7 | to nodes: ``Request``, who delivered and who did not | ``gather`` | ``answer_request`` |
| 8 | to coordinator: ``Answer``, one share of each node | ``answer_request`` | ``unmask``, ``decode_sum`` |

Killed at any moment: a ``NodeState`` is on disk *before* what was made with it is sent. Every step done again gives the same
bytes, and every step that would be done in a second way is refused. So a state is never restored from a backup nor copied to a
second machine; ``Secrets`` serve one context; and an update is delivered in one context only, even if that round fails, since
two sums over different nodes, subtracted, show the difference.

One list of active nodes: shares are encrypted under the digest of the list, and a node delivers only when it has opened a box
from every other node on it. So all honest nodes of a list hold the same one; and since two lists of ``threshold`` nodes have an
honest node in common (2t > n + c), there is one list in a round, whatever the coordinator tells whom.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets as system_random
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from models import privacy, shamir
from models.update import Flat

Words: TypeAlias = npt.NDArray[np.uint32]
"""Integers modulo 2**32: sums of them wrap."""

Roster: TypeAlias = tuple[tuple[int, bytes], ...]
"""Node id in [0, 2**64) and raw enrolled Ed25519 key of each node that is asked, ascending by id."""

MINIMUM_NODES: Final = 5
MAXIMUM_NODES: Final = 1000
WIDTH_BITS: Final = 32

_KEY_BYTES: Final = 32
_CURVE25519: Final = 2**255 - 19  # the field of X25519 (RFC 7748, section 4.1)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
# Every key here encrypts or masks once, so nonces and counters begin at zero.
_NONCE: Final = bytes(12)
_COUNTER_AND_NONCE: Final = bytes(16)
_CHUNK: Final = 2**16  # words of keystream at a time: 256 KiB, which stay in a core's cache
_ZEROS: Final = memoryview(bytes(4 * _CHUNK))

# Each opens what is signed, hashed or derived for one purpose, so that it never serves another.
_CONTEXT: Final = b"sfumato veiled context v1\n"
_ADVERT: Final = b"sfumato veiled advert v1\n"
_COMMITMENT: Final = b"sfumato veiled seed commitment v1\n"
_ACTIVE: Final = b"sfumato veiled active nodes v1\n"
_REQUEST: Final = b"sfumato veiled unmask request v1\n"
_PAIR: Final = b"sfumato veiled pair mask v1\n"
_SELF: Final = b"sfumato veiled self mask v1\n"
_BOX: Final = b"sfumato veiled share box v1\n"
_SPLIT_KEY: Final = b"sfumato veiled polynomial of a mask key v1\n"
_SPLIT_SEED: Final = b"sfumato veiled polynomial of a seed v1\n"
_STATE: Final = b"sfumato veiled node state v1\n"

Reason = Literal[
    "malformed",  # the bytes are not such a message
    "context",  # the description of the round is out of bounds
    "stranger",  # a node is not of this round
    "doubled",  # a node speaks twice
    "bad-signature",  # an advert is not signed by its node's enrolled key for this context
    "weak-key",  # a public key is one that everybody can compute with
    "same-key",  # two public keys are the same
    "too-few-nodes",  # fewer than the round needs
    "own-advert-changed",  # this node's advert is not on the list as it was made
    "second-list",  # this node has accepted another list for this round
    "boxes-missing",  # there is not one box from each other node
    "box-sealed-otherwise",  # a box cannot be opened
    "out-of-turn",  # a step does not follow what was done before
    "not-finite",  # the update holds numbers that are not finite
    "norm-too-large",  # the update is longer than the clip
    "not-a-vector",  # the vector has another form than expected
    "second-vector",  # this node has delivered another vector in this round
    "another-session",  # the message is of another round or another list of nodes
    "sets-overlap",  # a node is called both survivor and dropped
    "sets-incomplete",  # survivors and dropped are not exactly the active nodes
    "untrue-of-this-node",  # the request says of this node what it did not do
    "second-request",  # this node has answered another request in this round
    "another-request",  # an answer is to another request
    "shares-wrong",  # the shares of a secret do not give what its node advertised
    "sum-too-large",  # the sum is longer than its parts can make it
]


class MaskingError(ValueError):
    """A step of a veiled round is refused. Its text is the reason: fixed, and safe to send back.

    Attributes:
        reason: which refusal.
        node: whose message it was, where that is known; not in the text.
    """

    def __init__(self, reason: Reason, node: int | None = None) -> None:
        super().__init__(reason)
        self.reason: Final = reason
        self.node: Final = node


# Numbers.


def resolution(clip: float, nodes: int) -> float:
    """The step between two encoded numbers: clip / floor((2**31 - 1) / n), about n · clip / 2**31.

    With clip 1 it is 2.3e-9 for 5 nodes, 2.3e-8 for 50 and 4.7e-7 for 1,000; float32 itself has steps of 6e-8 just under 1.
    Rounding moves a number by less than a step (standard deviation at most half of one), and so a vector's norm, which is what
    a privacy budget counts, by less than step · sqrt(size).

    Raises:
        ValueError: the clip is not positive and finite, or nodes are not between 1 and ``MAXIMUM_NODES``.
    """
    if not 0 < clip < math.inf:
        raise ValueError(f"a clip must be positive and finite, not {clip}")
    if not 1 <= nodes <= MAXIMUM_NODES:
        raise ValueError(f"a sum is over 1 to {MAXIMUM_NODES} nodes, not {nodes}")
    return clip / _levels(nodes)


def encode(delta: Flat, clip: float, nodes: int, rounding: np.random.Generator) -> Words:
    """An update → integers modulo 2**32, of which any ``nodes`` can be added without wrapping.

    No coordinate is beyond the norm, so each becomes a whole number of steps in ±floor((2**31 - 1) / n), in two's complement.
    Between two steps it goes up with the probability of its fraction, so that the sum has no bias.

    Args:
        delta: (size,) float32.
        clip: the greatest norm of what is encoded, noise included; the same for all.
        nodes: on the roster, not only the active ones: all use one scale, before they know who is active.
        rounding: of this node and round alone and the same each time, so that a node that was killed encodes the same again.
            It masks nothing.

    Raises:
        MaskingError: the update is not finite, or longer than the clip. No later step, here or elsewhere, could see it.
        ValueError: see ``resolution``.
    """
    step, length = resolution(clip, nodes), privacy.norm(delta)
    if not math.isfinite(length):
        raise MaskingError("not-finite")
    if length > clip:
        raise MaskingError("norm-too-large")
    whole = _round(delta.astype(np.float64) / step, rounding.random(delta.shape))
    # The last digit of a division must not reach beyond the last level.
    return np.clip(whole, -_levels(nodes), _levels(nodes)).astype(np.int64).astype(np.uint32)


def decode_sum(total: Words, clip: float, nodes: int, count: int) -> npt.NDArray[np.float64]:
    """Integers modulo 2**32 → the sum of ``count`` updates.

    Args:
        total: (size,), see ``unmask``.
        clip: as for ``encode``.
        nodes: on the roster.
        count: survivors, at most ``nodes``.

    Raises:
        MaskingError: ``sum-too-large``: masks were left in it, or a node did not keep to the clip. This is all of admission
            that a veiled round leaves; a node can still lie within the sum of all clips.
        ValueError: see ``resolution``; or the count is not within the nodes.
    """
    step = resolution(clip, nodes)
    if not 1 <= count <= nodes:
        raise ValueError(f"a sum is over 1 to {nodes} nodes, not {count}")
    values = total.view(np.int32).astype(np.float64) * step
    if float(np.linalg.norm(values)) > count * (clip + step * math.sqrt(total.size)) * (1 + 1e-9):
        raise MaskingError("sum-too-large")
    return values


def _levels(nodes: int) -> int:
    return int((2 ** (WIDTH_BITS - 1) - 1) // nodes)


def _round(steps: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Down, or up where a number of [0, 1) is below the fraction."""
    below = np.floor(steps)
    return below + (uniform < steps - below)


# Who takes part.


def threshold(nodes: int) -> int:
    """How many nodes it takes to unmask a round that so many were asked for: floor(2n/3) + 1.

    Counted over the roster and not over the active nodes, since it is the coordinator that says who is dead: that must not make
    it easier.

    Why over two thirds. A node has two secrets, of which one is revealed: its seed if it delivered, its mask key if not; both
    together lay its vector open. Each honest node gives one share of each node, and answers once (``check_request``); c nodes
    that collude with the coordinator give both. To have t shares of both secrets of one node takes 2t <= (n - c) + 2c. So with
    2t > n + c, which holds for every c <= n/3, no lists of survivors, told differently to different nodes, unmask one node.

    Different lists can make the sum smaller, though, and how small is ``smallest_sum``.
    """
    return 2 * nodes // 3 + 1


def fewest_active(nodes: int) -> int:
    """How many of a roster must advertise: as many as must survive, or nobody could answer; and ``MINIMUM_NODES``."""
    return max(MINIMUM_NODES, threshold(nodes))


def smallest_sum(nodes: int, colluders: int = 0) -> int:
    """Of how many honest nodes a sum is at least, if the coordinator lies as well as it can; 0 if nothing is promised.

    The pair mask of two honest nodes stays in unless the mask key of one is revealed or both are in the sum. So before anything
    can be learned, each of the h = n - c honest nodes must have its seed revealed (it is in the sum) or its mask key (it is cut
    away). To cut one away takes t - c honest nodes that were told that it dropped out, and each can be told that of n - t
    nodes, for it wants t survivors. So at most h(n - t)/(t - c) are cut away, and in the sum stay at least

        h - h(n - t)/(t - c) = h(2t - n - c)/(t - c)

    With c = 0 that is n(2t - n)/t, about half of the roster; with n/10 colluders 37 %, n/5 23 %, n/4 15 %, and with n/3 only a
    handful, though never one. Fewer active nodes leave more: the figure is concave in their number, and where only t are active
    nobody can be cut away and t - c stay.

    Args:
        nodes: on the roster.
        colluders: nodes that give the coordinator all they know.
    """
    need = threshold(nodes)
    margin = 2 * need - nodes - colluders
    return -(-(nodes - colluders) * margin // (need - colluders)) if margin > 0 else 0


@dataclass(frozen=True, slots=True)
class Context:
    """What everything signed or derived in a round is bound to. A retry takes another roster or another round.

    Whether these are people's keys is for the caller to know: a coordinator with enough nodes of its own unmasks anybody.

    Attributes:
        federation: its name, 1 to 100 characters.
        round: 1, 2, ...
        policy: sha256 in hex of the policy, which holds the clip.
        layout: sha256 in hex of the body's layout.
        roster: 5 to 1,000 nodes; a node's *index* is its place from 1.

    Raises:
        MaskingError: ``context``, if any of it is out of bounds.
    """

    federation: str
    round: int
    policy: str
    layout: str
    roster: Roster

    def __post_init__(self) -> None:
        ids = [node for node, _ in self.roster]
        keys = {key for _, key in self.roster}
        sound = (
            1 <= len(self.federation) <= 100
            and not any("\ud800" <= character <= "\udfff" for character in self.federation)  # no bytes stand for these
            and 1 <= self.round < 2**63
            and _DIGEST.fullmatch(self.policy)
            and _DIGEST.fullmatch(self.layout)
            and MINIMUM_NODES <= len(ids) <= MAXIMUM_NODES
            and ids == sorted(set(ids))
            and 0 <= ids[0] <= ids[-1] < 2**64
            and len(keys) == len(ids)  # one artist, one place
            and all(len(key) == _KEY_BYTES for key in keys)
        )
        if not sound:
            raise MaskingError("context")

    @property
    def digest(self) -> bytes:
        """sha256 of all of it."""
        return hashlib.sha256(_CONTEXT + self.to_bytes()).digest()

    @property
    def threshold(self) -> int:
        """See the function."""
        return threshold(len(self.roster))

    @property
    def indices(self) -> dict[int, int]:
        """Node id → index, at which its shares are taken."""
        return {node: index for index, (node, _) in enumerate(self.roster, 1)}

    def to_bytes(self) -> bytes:
        """One form for each context: at most 40,476 bytes."""
        name = self.federation.encode()
        digests = bytes.fromhex(self.policy + self.layout)
        head = struct.pack(">H", len(name)) + name + struct.pack(">Q64sH", self.round, digests, len(self.roster))
        return head + b"".join(struct.pack(">Q32s", node, key) for node, key in self.roster)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Context:
        """The reverse; ``malformed`` or ``context`` if it is anything else."""
        reader = _Reader(raw)
        try:
            name = reader.take(reader.number("H")).decode()
        except UnicodeDecodeError as error:
            raise MaskingError("malformed") from error
        number, policy, layout = reader.number("Q"), reader.take(32).hex(), reader.take(32).hex()
        roster = tuple((reader.number("Q"), reader.take(_KEY_BYTES)) for _ in range(reader.number("H")))
        reader.close()
        return cls(name, number, policy, layout, roster)


@dataclass(frozen=True, slots=True)
class Advert:
    """The public half of a node's secrets, signed with its enrolled key over the context. 168 bytes.

    Attributes:
        node: id.
        mask_key: X25519.
        share_key: X25519.
        commitment: sha256 over context, node and seed, so that a wrong seed is seen when it is put together from shares.
        signature: Ed25519.
    """

    node: int
    mask_key: bytes
    share_key: bytes
    commitment: bytes
    signature: bytes = b""

    @property
    def unsigned(self) -> bytes:
        """All but the signature."""
        return struct.pack(">Q32s32s32s", self.node, self.mask_key, self.share_key, self.commitment)

    def to_bytes(self) -> bytes:
        """168 bytes."""
        return self.unsigned + self.signature

    @classmethod
    def from_bytes(cls, raw: bytes) -> Advert:
        """The reverse, with the signature unchecked; ``malformed`` if it is anything else."""
        reader = _Reader(raw)
        node, mask_key, share_key, commitment = reader.number("Q"), reader.take(32), reader.take(32), reader.take(32)
        signature = reader.take(64)
        reader.close()
        return cls(node, mask_key, share_key, commitment, signature)


@dataclass(frozen=True, slots=True)
class Active:
    """The nodes of a round that advertised. Made by ``check_adverts``, and by nothing else outside tests.

    Attributes:
        context: of the round.
        adverts: ascending by node.
    """

    context: Context
    adverts: tuple[Advert, ...]

    @property
    def session(self) -> bytes:
        """Digest of the list, which masks and boxes are bound to: over the keys, not the signatures that vouch for them."""
        return hashlib.sha256(_ACTIVE + self.context.digest + b"".join(a.unsigned for a in self.adverts)).digest()

    @property
    def nodes(self) -> tuple[int, ...]:
        """Ids, ascending."""
        return tuple(advert.node for advert in self.adverts)


def check_adverts(context: Context, adverts: Iterable[Advert]) -> Active:
    """The active nodes of a round. For the coordinator, and for every node again, which does not trust it.

    1. Each advert is of a node of the roster, and signed with that node's enrolled key over this context.
    2. Each node speaks once.
    3. No public key is of low order or in a second form (RFC 7748, sections 5 and 6.1): everybody would know its masks.
    4. No two public keys are the same, of one node or of two.
    5. The adverts are enough, see ``fewest_active``.

    Raises:
        MaskingError: a check failed; ``node`` says whose advert it was.
    """
    seen: dict[int, Advert] = {}
    keys: set[bytes] = set()
    for advert in adverts:
        # 1.
        verify_advert(context, advert)
        # 2.
        if advert.node in seen:
            raise MaskingError("doubled", advert.node)
        seen[advert.node] = advert
        for key in (advert.mask_key, advert.share_key):
            # 3.
            if _is_weak(key):
                raise MaskingError("weak-key", advert.node)
            # 4.
            if key in keys:
                raise MaskingError("same-key", advert.node)
            keys.add(key)
    # 5.
    if len(seen) < fewest_active(len(context.roster)):
        raise MaskingError("too-few-nodes")
    return Active(context, tuple(seen[node] for node in sorted(seen)))


def verify_advert(context: Context, advert: Advert) -> None:
    """Check 1 of ``check_adverts``.

    Raises:
        MaskingError: ``stranger`` or ``bad-signature``.
    """
    enrolled = dict(context.roster).get(advert.node)
    if enrolled is None:
        raise MaskingError("stranger", advert.node)
    try:
        key = Ed25519PublicKey.from_public_bytes(enrolled)
        key.verify(advert.signature, _ADVERT + context.digest + advert.unsigned)
    except (InvalidSignature, ValueError) as error:
        raise MaskingError("bad-signature", advert.node) from error


def _is_weak(key: bytes) -> bool:
    # Private keys are multiples of the cofactor 8, so that a point of low order gives zero with any of them.
    if int.from_bytes(key, "little") >= _CURVE25519:
        return True
    try:
        _exchange(bytes(_KEY_BYTES), key)
    except MaskingError:
        return True
    return False


# The other messages.


@dataclass(frozen=True, slots=True)
class Box:
    """A node's shares for one other node, which alone can open it. 98 bytes.

    Attributes:
        sender: node id.
        recipient: node id.
        sealed: two shares, and 16 bytes of authentication.
    """

    sender: int
    recipient: int
    sealed: bytes

    def to_bytes(self) -> bytes:
        """98 bytes."""
        return struct.pack(">QQ82s", self.sender, self.recipient, self.sealed)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Box:
        """The reverse; ``malformed`` if it is anything else."""
        reader = _Reader(raw)
        box = cls(reader.number("Q"), reader.number("Q"), reader.take(2 * shamir.SHARE_BYTES + 16))
        reader.close()
        return box


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """A masked vector: uniform noise to whoever lacks one of its masks. 40 bytes, and 4 for each number.

    Attributes:
        session: of ``Active``.
        node: whose.
        words: (size,).
    """

    session: bytes
    node: int
    words: Words

    def to_bytes(self) -> bytes:
        """Session, node, words in little-endian order."""
        return struct.pack(">32sQ", self.session, self.node) + self.words.astype("<u4", copy=False).tobytes()

    @classmethod
    def from_bytes(cls, raw: bytes, size: int) -> Masked:
        """The reverse, for a vector of that size; ``malformed`` if it is anything else."""
        reader = _Reader(raw)
        session, node, words = reader.take(32), reader.number("Q"), reader.take(4 * size)
        reader.close()
        return cls(session, node, np.frombuffer(words, "<u4").astype(np.uint32))


@dataclass(frozen=True, slots=True)
class Request:
    """Whom the coordinator has a vector of and whom not. 36 bytes, and 8 for each active node.

    Attributes:
        session: of ``Active``.
        survivors: who delivered, ascending. Their seeds are asked for.
        dropped: the other active nodes, ascending. Their mask keys are asked for.
    """

    session: bytes
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]

    @property
    def digest(self) -> bytes:
        """sha256 of all of it."""
        return hashlib.sha256(_REQUEST + self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Session, how many of each, ids."""
        nodes = (*self.survivors, *self.dropped)
        return struct.pack(f">32sHH{len(nodes)}Q", self.session, len(self.survivors), len(self.dropped), *nodes)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Request:
        """The reverse; ``malformed`` if it is anything else."""
        reader = _Reader(raw)
        session, counts = reader.take(32), (reader.number("H"), reader.number("H"))
        survivors, dropped = (tuple(reader.number("Q") for _ in range(count)) for count in counts)
        reader.close()
        return cls(session, survivors, dropped)


@dataclass(frozen=True, slots=True)
class Answer:
    """One share of each active node: of a survivor's seed, of a dropped node's mask key. 42 bytes, and 33 for each node.

    There is no place in it for a second share of a node.

    Attributes:
        request: its digest.
        node: who answers.
        shares: in the order of the active nodes.
    """

    request: bytes
    node: int
    shares: tuple[int, ...] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Request, node, how many, shares."""
        head = struct.pack(">32sQH", self.request, self.node, len(self.shares))
        return head + b"".join(shamir.share_to_bytes(share) for share in self.shares)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Answer:
        """The reverse; ``malformed`` if it is anything else."""
        reader = _Reader(raw)
        request, node = reader.take(32), reader.number("Q")
        shares = tuple(reader.share() for _ in range(reader.number("H")))
        reader.close()
        return cls(request, node, shares)


# A node's part.


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a node draws for one context, 32 bytes each, and tells nobody whole.

    Attributes:
        mask_key: X25519, for pair masks. Revealed if the node drops out.
        share_key: X25519, for boxes.
        seed: of the node's own mask. Revealed if the node delivers.
        dealing: makes the polynomials, so that a node that was killed deals the same shares again.
    """

    mask_key: bytes = field(repr=False)
    share_key: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    dealing: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Secrets:
        """New ones, from the operating system."""
        return cls(*(system_random.token_bytes(_KEY_BYTES) for _ in range(4)))


@dataclass(frozen=True, slots=True)
class SharePair:
    """One holder's shares of a node's two secrets, of which it will give one."""

    mask_key: int = field(repr=False)
    seed: int = field(repr=False)

    def to_bytes(self) -> bytes:
        """66 bytes."""
        return shamir.share_to_bytes(self.mask_key) + shamir.share_to_bytes(self.seed)

    @classmethod
    def from_bytes(cls, raw: bytes) -> SharePair:
        """The reverse; ``malformed`` if it is anything else."""
        reader = _Reader(raw)
        pair = cls(reader.share(), reader.share())
        reader.close()
        return pair


@dataclass(frozen=True, slots=True)
class NodeState:
    """All that a node needs to go on with a round, and to know what it must not do again in another way.

    Attributes:
        context: of the round.
        node: this node's id.
        secrets: this round's.
        active: the accepted list, once there is one.
        held: shares of each active node, in their order; empty until the boxes are accepted.
        delivered: sha256 of the masked vector; empty until there is one.
        answered: digest of the request that was answered; empty until one was.
    """

    context: Context
    node: int
    secrets: Secrets
    active: Active | None = None
    held: tuple[SharePair, ...] = field(default=(), repr=False)
    delivered: bytes = b""
    answered: bytes = b""

    def to_bytes(self) -> bytes:
        """For a file of mode 0600 outside every backup."""
        own, context = self.secrets, self.context.to_bytes()
        adverts = self.active.adverts if self.active else ()
        return b"".join(
            (
                _STATE,
                struct.pack(">I", len(context)) + context,
                struct.pack(">Q32s32s32s32s", self.node, own.mask_key, own.share_key, own.seed, own.dealing),
                struct.pack(">H", len(adverts)) + b"".join(advert.to_bytes() for advert in adverts),
                struct.pack(">H", len(self.held)) + b"".join(pair.to_bytes() for pair in self.held),
                struct.pack(">B", len(self.delivered)) + self.delivered,
                struct.pack(">B", len(self.answered)) + self.answered,
            )
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> NodeState:
        """The reverse, with the adverts verified again; a ``MaskingError`` if it is anything else."""
        reader = _Reader(raw)
        if reader.take(len(_STATE)) != _STATE:
            raise MaskingError("malformed")
        context = Context.from_bytes(reader.take(reader.number("I")))
        state = begin(context, reader.number("Q"), Secrets(*(reader.take(_KEY_BYTES) for _ in range(4))))
        adverts = [Advert.from_bytes(reader.take(168)) for _ in range(reader.number("H"))]
        held = tuple(SharePair.from_bytes(reader.take(66)) for _ in range(reader.number("H")))
        delivered, answered = (reader.take(reader.number("B")) for _ in range(2))
        reader.close()
        if len(held) not in (0, len(adverts)) or not {len(delivered), len(answered)} <= {0, 32}:
            raise MaskingError("malformed")
        state = accept_adverts(state, adverts) if adverts else state
        return replace(state, held=held, delivered=delivered, answered=answered)


def begin(context: Context, node: int, secrets: Secrets) -> NodeState:
    """Step 1: take part.

    It is for the caller to know the roster's keys, to have agreed to the policy, to have no state of this context yet, and to
    have delivered nothing in this round or a later one.

    Raises:
        MaskingError: ``stranger``, this node is not asked.
    """
    if node not in context.indices:
        raise MaskingError("stranger", node)
    return NodeState(context, node, secrets)


def advertise(state: NodeState, enrolled: Ed25519PrivateKey) -> Advert:
    """Step 2: this node's public keys, signed.

    Raises:
        MaskingError: ``bad-signature``, the roster has another key for this node.
    """
    advert = _unsigned_advert(state)
    signed = replace(advert, signature=enrolled.sign(_ADVERT + state.context.digest + advert.unsigned))
    verify_advert(state.context, signed)
    return signed


def accept_adverts(state: NodeState, adverts: Iterable[Advert]) -> NodeState:
    """Step 3: the list of active nodes, which from then on is the only one.

    1. It is good (``check_adverts``).
    2. This node's advert is on it as made.
    3. No other list was accepted before.

    Raises:
        MaskingError: a check failed.
    """
    # 1.
    active = check_adverts(state.context, adverts)
    # 2.
    if _unsigned_advert(state).unsigned not in [advert.unsigned for advert in active.adverts]:
        raise MaskingError("own-advert-changed", state.node)
    # 3.
    if state.active and state.active.session != active.session:
        raise MaskingError("second-list")
    return state if state.active else replace(state, active=active)


def deal(state: NodeState) -> tuple[Box, ...]:
    """Step 4: a box of shares for each other active node.

    The nonce is fixed, since a key encrypts one plaintext only: it is derived for this list and this direction, and dealing
    again gives the same shares.

    Raises:
        MaskingError: ``out-of-turn``.
    """
    active, indices = _active(state), state.context.indices
    session, boxes = active.session, []
    shares = _split(state, session, [indices[node] for node in active.nodes])
    for peer in active.adverts:
        if peer.node != state.node:
            key, bound = _box_key(state, session, peer, sender=state.node, recipient=peer.node)
            sealed = ChaCha20Poly1305(key).encrypt(_NONCE, shares[indices[peer.node]].to_bytes(), bound)
            boxes.append(Box(state.node, peer.node, sealed))
    return tuple(boxes)


def accept_boxes(state: NodeState, boxes: Collection[Box]) -> NodeState:
    """Step 5: this node's shares of everybody, itself among them.

    1. There is one box for this node from each other active node; the sender of a missing one might hold another list.
    2. Each opens: its sender made it for this node and this list.
    3. No others were accepted before.

    Raises:
        MaskingError: a check failed; ``node`` says whose box it was.
    """
    active = _active(state)
    session = active.session
    # 1.
    by_sender = {box.sender: box for box in boxes if box.recipient == state.node}
    if len(by_sender) != len(boxes) or {*by_sender, state.node} != {*active.nodes} or state.node in by_sender:
        raise MaskingError("boxes-missing")
    # 2.
    own = state.context.indices[state.node]
    held = tuple(
        _open(state, session, peer, by_sender[peer.node]) if peer.node in by_sender else _split(state, session, [own])[own]
        for peer in active.adverts
    )
    # 3.
    if state.held and state.held != held:
        raise MaskingError("second-list")
    return replace(state, held=held)


def deliver(state: NodeState, encoded: Words) -> tuple[NodeState, Masked]:
    """Step 6: the update under its masks: one for each other active node, which cancels in the sum, and one of its own.

    1. All boxes are accepted, and nothing is delivered for the first time after an answer.
    2. The vector is a row of uint32.
    3. No other vector was delivered: the same masks over two vectors show their difference.

    Args:
        state: of this node.
        encoded: (size,), see ``encode``.

    Raises:
        MaskingError: a check failed.
    """
    # 1.
    if not state.held or (state.answered and not state.delivered):
        raise MaskingError("out-of-turn")
    # 2.
    if encoded.dtype != np.uint32 or encoded.ndim != 1 or not encoded.size:
        raise MaskingError("not-a-vector")
    active, words = _active(state), encoded.copy()
    session = active.session
    _add_mask_inplace(words, _self_key(state.secrets.seed, session, state.node))
    for peer in active.adverts:
        if peer.node != state.node:
            key = _pair_key(state.secrets.mask_key, session, state.node, peer)
            _add_mask_inplace(words, key, negative=state.node > peer.node)
    masked = Masked(session, state.node, words)
    # 3.
    digest = hashlib.sha256(masked.to_bytes()).digest()
    if state.delivered not in (b"", digest):
        raise MaskingError("second-vector")
    return replace(state, delivered=digest), masked


def answer_request(state: NodeState, request: Request) -> tuple[NodeState, Answer]:
    """Steps 7 and 8: one share of each node. The same request gets the same answer again, and another one never any.

    Raises:
        MaskingError: ``check_request`` says no.
    """
    check_request(state, request)
    survivors = {*request.survivors}
    shares = tuple(
        pair.seed if node in survivors else pair.mask_key for node, pair in zip(_active(state).nodes, state.held, strict=True)
    )
    return replace(state, answered=request.digest), Answer(request.digest, state.node, shares)


def check_request(state: NodeState, request: Request) -> None:
    """Whether a node may answer: what keeps a lying coordinator from unmasking anybody, see ``threshold``.

    1. The boxes are accepted, and the request is about this list of active nodes.
    2. Nobody is both survivor and dropped.
    3. Together they are exactly the active nodes.
    4. The survivors are at least ``threshold``.
    5. This node is a survivor if it delivered, and dropped if not.
    6. No other request was answered.

    Raises:
        MaskingError: a check failed.
    """
    # 1.
    if not state.held:
        raise MaskingError("out-of-turn")
    # 1 to 4.
    _check_sets(_active(state), request)
    # 5.
    if (state.node in request.survivors) != bool(state.delivered):
        raise MaskingError("untrue-of-this-node", state.node)
    # 6.
    if state.answered not in (b"", request.digest):
        raise MaskingError("second-request")


def _check_sets(active: Active, request: Request) -> None:
    # 1.
    if request.session != active.session:
        raise MaskingError("another-session")
    # 2.
    if {*request.survivors} & {*request.dropped}:
        raise MaskingError("sets-overlap")
    # 3. Sorted rows and not sets, so that a node named twice does not count twice in 4.
    if sorted((*request.survivors, *request.dropped)) != [*active.nodes]:
        raise MaskingError("sets-incomplete")
    # 4.
    if len(request.survivors) < active.context.threshold:
        raise MaskingError("too-few-nodes")


def _active(state: NodeState) -> Active:
    if state.active is None:
        raise MaskingError("out-of-turn")
    return state.active


def _unsigned_advert(state: NodeState) -> Advert:
    own = state.secrets
    commitment = _commitment(state.context.digest, state.node, own.seed)
    return Advert(state.node, _public(own.mask_key), _public(own.share_key), commitment)


def _split(state: NodeState, session: bytes, indices: Sequence[int]) -> dict[int, SharePair]:
    own, degree = state.secrets, state.context.threshold - 1
    keys = shamir.split(own.mask_key, _coefficients(own.dealing, session, _SPLIT_KEY, degree), indices)
    seeds = shamir.split(own.seed, _coefficients(own.dealing, session, _SPLIT_SEED, degree), indices)
    return {index: SharePair(keys[index], seeds[index]) for index in indices}


def _coefficients(dealing: bytes, session: bytes, label: bytes, degree: int) -> tuple[int, ...]:
    stream = Cipher(ChaCha20(_derive(dealing, session, label), _COUNTER_AND_NONCE), mode=None).encryptor()
    return shamir.coefficients(stream.update(bytes(degree * shamir.COEFFICIENT_BYTES)))


def _open(state: NodeState, session: bytes, sender: Advert, box: Box) -> SharePair:
    key, bound = _box_key(state, session, sender, sender=sender.node, recipient=state.node)
    try:
        return SharePair.from_bytes(ChaCha20Poly1305(key).decrypt(_NONCE, box.sealed, bound))
    except (InvalidTag, MaskingError) as error:
        raise MaskingError("box-sealed-otherwise", sender.node) from error


def _box_key(state: NodeState, session: bytes, peer: Advert, *, sender: int, recipient: int) -> tuple[bytes, bytes]:
    """A key for one direction, and what the box is bound to."""
    shared = _exchange(state.secrets.share_key, peer.share_key)
    return _derive(shared, session, _BOX, sender, recipient), _BOX + session + struct.pack(">QQ", sender, recipient)


# The coordinator's part.


def gather(active: Active, vectors: Iterable[Masked], size: int) -> tuple[Request, Words]:
    """Masked vectors → the request about them, and their sum, still masked. One at a time, so an iterator will do.

    The request is to be on disk before it is sent: nodes answer no other.

    Args:
        active: the round's nodes.
        vectors: of those that delivered in time.
        size: numbers in each.

    Raises:
        MaskingError: one is of another session or size, of no active node, or a node's second; or they are too few.
    """
    session, nodes, total = active.session, {*active.nodes}, np.zeros(size, np.uint32)
    survivors: set[int] = set()
    for vector in vectors:
        if vector.session != session:
            raise MaskingError("another-session", vector.node)
        if vector.node not in nodes:
            raise MaskingError("stranger", vector.node)
        if vector.node in survivors:
            raise MaskingError("doubled", vector.node)
        if vector.words.shape != (size,) or vector.words.dtype != np.uint32:
            raise MaskingError("not-a-vector", vector.node)
        total += vector.words
        survivors.add(vector.node)
    request = Request(session, tuple(sorted(survivors)), tuple(sorted(nodes - survivors)))
    _check_sets(active, request)
    return request, total


def unmask(active: Active, request: Request, answers: Iterable[Answer], total: Words) -> Words:
    """The sum of the survivors' encoded vectors.

    1. Each answer is to this request, by an active node, once; they are at least ``threshold``.
    2. Each survivor's seed fits its commitment; its self mask is taken off.
    3. Each dropped node's mask key fits its advert; the masks that survivors share with it are taken off.

    A wrong share is seen in 2 or 3. Other choices of answers are then tried, if there are more than needed; that helps
    whenever one of them is wrong, and by luck if more are.

    Args:
        active: the round's nodes.
        request: as sent.
        answers: what came back.
        total: (size,), see ``gather``.

    Raises:
        MaskingError: a check failed; with ``shares-wrong``, ``node`` says whose secret cannot be had.
    """
    # 1.
    given = _admitted(active, request, answers)
    need, context, session, result = active.context.threshold, active.context.digest, active.session, total.copy()
    delivered, ring = {*request.survivors}, deque(given)
    survivors = [advert for advert in active.adverts if advert.node in delivered]
    for place, advert in enumerate(active.adverts):
        shares = {index: answer.shares[place] for index, answer in given.items()}
        # 2.
        if advert.node in delivered:
            seed = _recover(advert.node, shares, ring, need, partial(_is_seed, advert, context))
            _add_mask_inplace(result, _self_key(seed, session, advert.node), negative=True)
            continue
        # 3.
        private = _recover(advert.node, shares, ring, need, partial(_is_mask_key, advert))
        for survivor in survivors:
            key = _pair_key(private, session, advert.node, survivor)
            _add_mask_inplace(result, key, negative=survivor.node < advert.node)
    return result


def _admitted(active: Active, request: Request, answers: Iterable[Answer]) -> dict[int, Answer]:
    """Answers by their nodes' index."""
    _check_sets(active, request)
    digest, indices, nodes = request.digest, active.context.indices, {*active.nodes}
    given: dict[int, Answer] = {}
    for answer in answers:
        if answer.request != digest or len(answer.shares) != len(nodes):
            raise MaskingError("another-request", answer.node)
        if answer.node not in nodes:
            raise MaskingError("stranger", answer.node)
        if indices[answer.node] in given:
            raise MaskingError("doubled", answer.node)
        given[indices[answer.node]] = answer
    if len(given) < active.context.threshold:
        raise MaskingError("too-few-nodes")
    return given


def _recover(node: int, shares: Mapping[int, int], ring: deque[int], need: int, is_right: Callable[[bytes], bool]) -> bytes:
    """A node's secret, from the first holders in the ring; which is turned until theirs are right, and stays so."""
    for _ in range(len(ring) if len(ring) > need else 1):
        secret = shamir.join(tuple(islice(ring, need)), shares)
        if secret is not None and is_right(secret):
            return secret
        ring.rotate(-1)
    raise MaskingError("shares-wrong", node)


def _is_seed(advert: Advert, context_digest: bytes, secret: bytes) -> bool:
    return _commitment(context_digest, advert.node, secret) == advert.commitment


def _is_mask_key(advert: Advert, secret: bytes) -> bool:
    return _public(secret) == advert.mask_key


# Keys, masks, bytes.


def _add_mask_inplace(words: Words, key: bytes, *, negative: bool = False) -> None:
    """Add a keystream of ChaCha20 (RFC 8439), or take it off."""
    stream = Cipher(ChaCha20(key, _COUNTER_AND_NONCE), mode=None).encryptor()
    apply = np.subtract if negative else np.add
    for start in range(0, words.size, _CHUNK):
        part = words[start : start + _CHUNK]
        apply(part, np.frombuffer(stream.update(_ZEROS[: 4 * part.size]), "<u4"), out=part)


def _self_key(seed: bytes, session: bytes, node: int) -> bytes:
    return _derive(seed, session, _SELF, node)


def _pair_key(private: bytes, session: bytes, node: int, other: Advert) -> bytes:
    """Of a mask that both can make: the one with the smaller id adds it, the other takes it off."""
    return _derive(_exchange(private, other.mask_key), session, _PAIR, min(node, other.node), max(node, other.node))


def _commitment(context_digest: bytes, node: int, seed: bytes) -> bytes:
    # It hides the seed, which is 256 random bits.
    return hashlib.sha256(_COMMITMENT + context_digest + struct.pack(">Q", node) + seed).digest()


def _public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _exchange(private: bytes, public: bytes) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # the shared secret is zero
        raise MaskingError("weak-key") from error


def _derive(secret: bytes, session: bytes, label: bytes, *nodes: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) → 32 bytes, for one use."""
    info = label + b"".join(struct.pack(">Q", node) for node in nodes)
    return HKDF(SHA256(), _KEY_BYTES, salt=session, info=info).derive(secret)


class _Reader:
    """The bytes of a message from front to end; nothing may be missing or left over."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def take(self, count: int) -> bytes:
        taken = self._raw[self._at : self._at + count]
        if len(taken) != count:
            raise MaskingError("malformed")
        self._at += count
        return taken

    def number(self, form: Literal["B", "H", "I", "Q"]) -> int:
        return int.from_bytes(self.take(struct.calcsize(f">{form}")), "big")

    def share(self) -> int:
        raw = self.take(shamir.SHARE_BYTES)
        try:
            return shamir.share_from_bytes(raw)
        except ValueError as error:
            raise MaskingError("malformed") from error

    def close(self) -> None:
        if self._at != len(self._raw):
            raise MaskingError("malformed")
