"""Veiled rounds at the coordinator: it carries messages between nodes, and learns the sum of their updates.

What is computed and refused is in ``models/masking.py``; here, who is asked for what, and what must be on disk when.

After the training, which is asked for as in an open round but answered with "ready", come four short steps:

    roster      who is ready; each answers with public keys, signed
    adverts     those keys; each answers with shares of its secrets, boxed for the others
    boxes       the boxes for each; each answers with its update under masks
    request     who delivered and who did not; each answers with shares, of which the sum's masks are made

Each answer, and each list that is sent, is in the database before anything follows from it, so that a process that was killed
is followed by one that sends the same lists again: nodes answer no others. Whoever is away in the first two steps is left out,
and the keys are agreed on anew; from the third on, shares make up for it.

Nothing can be seen of one update, and so nothing of it is written down but its size and digest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flwr.app import Message, RecordDict

from coordinator import asking
from coordinator.admission import Reason, Rejected, Terms, admit_part
from coordinator.aggregate import Doubles
from coordinator.asking import Grid, ThisRound, array_bytes, silent
from coordinator.store import Answer
from export.errors import IntegrityError
from export.files import digest_of, read_bounded, write_atomic
from models import masking, wire
from models.masking import Active, Context, Masked, MaskingError, Request
from models.update import Declined, Layout, Part, Step, VeiledPart, VeiledStep

_ATTEMPTS: Final = 3
_STEP_S: Final = 180.0
"""How long a step waits: long enough for a machine that was started anew, and for a node that found itself unseen."""
_ADVERT_BYTES, _BOX_BYTES, _MASKED_HEAD_BYTES, _ANSWER_HEAD_BYTES, _SHARE_BYTES = 168, 98, 40, 42, 33
_FAILED: Final = "failed"
_log = logging.getLogger(__name__)


def ready(this: ThisRound) -> list[int]:
    """The nodes that said they have trained."""
    return list(this.store.parts(this.number, 0, "ready"))


def hold(grid: Grid, this: ThisRound, terms: Terms) -> None:
    """Take a round from its training to the shares that unmask its sum, or to where it fails; write down what came of whom."""
    survivors = _survivors(grid, this, terms)
    reasons = _reasons(this)
    for node_id, digest in survivors.items():
        size = _MASKED_HEAD_BYTES + 4 * terms.layout.size
        counted = Answer(node_id, True, "", size, None, None, None, this.policy.steps, 0.0, digest)  # noqa: FBT003 - it counts
        this.store.add_answer(this.number, counted)
    for node_id in ready(this):
        this.store.add_answer(this.number, silent(node_id, reasons.get(node_id, "veil-failed"), 0.0))


def mean(this: ThisRound, layout: Layout) -> Doubles:
    """The mean of the updates of a round whose shares are in.

    Raises:
        MaskingError: the sum cannot be had, or cannot be one of updates within the clip.
        IntegrityError: the disk lost what was accepted.
    """
    attempt, clip = _attempt(this), this.policy.clip
    active = _active(this, attempt)
    request, total = masking.gather(active, _vectors(this, layout), layout.size)
    answers = (masking.Answer.from_bytes(raw) for raw in this.store.parts(this.number, attempt, "shares").values())
    summed = masking.unmask(active, request, answers, total)
    count = len(request.survivors)
    return masking.decode_sum(summed, clip, len(active.context.roster), count) / count


@dataclass(frozen=True, slots=True)
class Training:
    """Asks for the training of a veiled round."""

    this: ThisRound
    terms: Terms
    assignment: RecordDict

    def record(self, node_id: int) -> RecordDict:
        """The same for all."""
        del node_id
        return self.assignment

    def take(self, node_id: int, message: Message | None, seconds: float) -> None:
        """A node is ready, or takes no part."""
        part = _admitted(self.this, self.terms, node_id, message, "ready", 0)
        if isinstance(part, VeiledPart):
            self.this.store.add_part(self.this.number, 0, "ready", node_id, b"")
        else:
            size = array_bytes(message.content) if message is not None and not message.has_error() else 0
            self.this.store.add_answer(self.this.number, silent(node_id, part, seconds, size))

    def miss(self, node_id: int, reason: Reason, seconds: float) -> None:
        """Say why nothing came."""
        self.this.store.add_answer(self.this.number, silent(node_id, reason, seconds))

    def progress(self) -> str:
        """How many are ready."""
        return f"{len(ready(self.this))} of {len(self.this.store.asked(self.this.number))} nodes have trained"


@dataclass(frozen=True, slots=True)
class _StepAsker:
    """Asks for one step.

    Attributes:
        this: the round.
        terms: of the round.
        attempt: at agreeing on keys: 1, 2, ...
        step: what is sent.
        payload: of it, for each node.
        wanted: what is to come back.
        longest: bytes of the longest such part.
        kept: a part, if it has its exact form, as it is to be remembered.
    """

    this: ThisRound
    terms: Terms
    attempt: int
    step: Step
    payload: Callable[[int], bytes]
    wanted: Part
    longest: int
    kept: Callable[[int, bytes], bytes]

    def record(self, node_id: int) -> RecordDict:
        """The step, for a node."""
        terms = self.terms
        return wire.pack_step(VeiledStep(terms.federation, terms.round, terms.policy, self.step, self.payload(node_id)))

    def take(self, node_id: int, message: Message | None, seconds: float) -> None:
        """Remember a part, or why it is none."""
        part = _admitted(self.this, self.terms, node_id, message, self.wanted, self.longest)
        if isinstance(part, VeiledPart):
            try:
                kept = self.kept(node_id, part.payload)
            except MaskingError as error:
                _log.info("round %d: the %s of node %d: %s", self.this.number, self.wanted, node_id, error.reason)
                part = "payload"
            else:
                self.this.store.add_part(self.this.number, self.attempt, self.wanted, node_id, kept)
                return
        self.miss(node_id, part, seconds)

    def miss(self, node_id: int, reason: Reason, seconds: float) -> None:
        """Remember why nothing came."""
        del seconds
        self.this.store.add_part(self.this.number, self.attempt, _FAILED, node_id, reason.encode())

    def progress(self) -> str:
        """How many parts are in."""
        return f"veiled, {len(self.this.store.parts(self.this.number, self.attempt, self.wanted))} parts ({self.wanted}) in"


def _admitted(
    this: ThisRound, terms: Terms, node_id: int, message: Message | None, wanted: Part, longest: int
) -> VeiledPart | Reason:
    """A part that passes the checks of ``admission.py``, or the reason why not."""
    member = this.member(node_id)
    if message is None:
        return "not-an-update"
    if message.has_error() or member is None:
        return "node-failed"
    try:
        answer = wire.unpack_answer(message.content)
    except wire.WireError:
        return "not-an-update"
    if isinstance(answer, Declined):
        return answer.reason if answer.round == terms.round else "another-round"
    if not isinstance(answer, VeiledPart):
        return "not-an-update"
    verdict = admit_part(answer, terms, member.keys.enrolled, wanted, longest)
    if isinstance(verdict, Rejected):
        if verdict.reason == "veil-refused":
            _log.warning("round %d: node %d does not go on: %r", this.number, node_id, answer.payload)
        return verdict.reason
    return answer


def _survivors(grid: Grid, this: ThisRound, terms: Terms) -> dict[int, str]:
    """Hold the four steps, from wherever they are; gives the digest of each vector in the sum, or nothing if there is none."""
    for attempt in range(max(1, _attempt(this)), _ATTEMPTS + 1):
        try:
            active = _agree(grid, this, terms, attempt)
            if active is None:  # somebody was away meanwhile; the others begin anew
                continue
            return _sum_up(grid, this, terms, attempt, active)
        except MaskingError as error:
            _log.warning("round %d: the veiled round ends: %s", this.number, error.reason)
            return {}
    return {}


def _attempt(this: ThisRound) -> int:
    """The last attempt that was begun, 0 for none."""
    return max((number for number in range(1, _ATTEMPTS + 1) if this.store.settled(this.number, number, "roster")), default=0)


def _agree(grid: Grid, this: ThisRound, terms: Terms, attempt: int) -> Active | None:
    """The first two steps: whose masks there are. None if not everybody dealt shares."""
    store, number = this.store, this.number
    context = _context(this, terms, attempt)
    roster = [node for node, _ in context.roster]

    def advert(node_id: int, raw: bytes) -> bytes:
        made = masking.Advert.from_bytes(raw)
        if made.node != node_id:
            raise MaskingError("malformed", node_id)
        masking.verify_advert(context, made)
        return raw

    if store.settled(number, attempt, "adverts") is None:
        offer = context.to_bytes()
        asker = _StepAsker(this, terms, attempt, "roster", lambda _: offer, "advert", _ADVERT_BYTES, advert)
        _ask(grid, this, asker, roster)
        if not _settle_adverts(this, context, attempt):
            return None
    active = _active(this, attempt)
    sent = store.settled(number, attempt, "adverts") or b""

    def boxes(node_id: int, raw: bytes) -> bytes:
        dealt = [masking.Box.from_bytes(raw[at : at + _BOX_BYTES]) for at in range(0, len(raw), _BOX_BYTES)]
        wanted = [(node_id, other) for other in active.nodes if other != node_id]
        if [(box.sender, box.recipient) for box in dealt] != wanted:
            raise MaskingError("malformed", node_id)
        return raw

    longest = _BOX_BYTES * (len(active.nodes) - 1)
    _ask(grid, this, _StepAsker(this, terms, attempt, "adverts", lambda _: sent, "boxes", longest, boxes), active.nodes)
    return active if list(store.parts(number, attempt, "boxes")) == list(active.nodes) else None


def _context(this: ThisRound, terms: Terms, attempt: int) -> Context:
    """Who is asked in an attempt: settled once. In the first all who are ready, then those who went all of the way before."""
    settled = this.store.settled(this.number, attempt, "roster")
    if settled is None:
        present = this.store.parts(this.number, *_furthest(this, attempt - 1))
        keys = {node.node_id: node.keys.enrolled for node in this.store.nodes() if node.node_id in present}
        if len(keys) < this.policy.minimum_nodes:
            raise MaskingError("too-few-nodes")
        context = Context(terms.federation, terms.round, terms.policy, terms.layout.digest, tuple(sorted(keys.items())))
        this.store.add_part(this.number, attempt, "roster", None, context.to_bytes())
        settled = this.store.settled(this.number, attempt, "roster") or b""
    return Context.from_bytes(settled)


def _furthest(this: ThisRound, attempt: int) -> tuple[int, str]:
    """What the nodes that were there to the end of an attempt have answered last."""
    if not attempt:
        return 0, "ready"
    return attempt, "boxes" if this.store.settled(this.number, attempt, "adverts") is not None else "advert"


def _settle_adverts(this: ThisRound, context: Context, attempt: int) -> bool:
    """Settle whose keys are sent to all: of whom a check fails is left out. Whether they are enough."""
    adverts = {node: masking.Advert.from_bytes(raw) for node, raw in this.store.parts(this.number, attempt, "advert").items()}
    while True:
        try:
            masking.check_adverts(context, adverts.values())
            break
        except MaskingError as error:
            if error.node not in adverts:
                return False
            this.store.add_part(this.number, attempt, _FAILED, error.node, b"payload")
            del adverts[error.node]
    this.store.add_part(this.number, attempt, "adverts", None, b"".join(advert.to_bytes() for advert in adverts.values()))
    return True


def _active(this: ThisRound, attempt: int) -> Active:
    context = Context.from_bytes(this.store.settled(this.number, attempt, "roster") or b"")
    raw = this.store.settled(this.number, attempt, "adverts") or b""
    parts = [raw[at : at + _ADVERT_BYTES] for at in range(0, len(raw), _ADVERT_BYTES)]
    return masking.check_adverts(context, map(masking.Advert.from_bytes, parts))


def _sum_up(grid: Grid, this: ThisRound, terms: Terms, attempt: int, active: Active) -> dict[int, str]:
    """The last two steps: the vectors, and the shares that unmask their sum."""
    store, number, size = this.store, this.number, terms.layout.size
    dealt = store.parts(number, attempt, "boxes")

    def boxes_for(node_id: int) -> bytes:
        return b"".join(_box_for(active, sender, raw, node_id) for sender, raw in dealt.items() if sender != node_id)

    def vector(node_id: int, raw: bytes) -> bytes:
        masked = Masked.from_bytes(raw, size)
        if (masked.session, masked.node) != (active.session, node_id):
            raise MaskingError("another-session", node_id)
        write_atomic(this.file(node_id), raw, mode=0o600)
        return digest_of(raw).encode()

    longest = _MASKED_HEAD_BYTES + 4 * size
    if store.settled(number, attempt, "request") is None:
        _ask(grid, this, _StepAsker(this, terms, attempt, "boxes", boxes_for, "masked", longest, vector), active.nodes)
        delivered = store.parts(number, attempt, "masked")
        if len(delivered) < max(this.policy.minimum_nodes, active.context.threshold):
            raise MaskingError("too-few-nodes")
        dropped = tuple(node for node in active.nodes if node not in delivered)
        store.add_part(number, attempt, "request", None, Request(active.session, tuple(delivered), dropped).to_bytes())
    sent = store.settled(number, attempt, "request") or b""
    request = Request.from_bytes(sent)

    def shares(node_id: int, raw: bytes) -> bytes:
        answer = masking.Answer.from_bytes(raw)
        if (answer.request, answer.node, len(answer.shares)) != (request.digest, node_id, len(active.nodes)):
            raise MaskingError("another-request", node_id)
        return raw

    longest = _ANSWER_HEAD_BYTES + _SHARE_BYTES * len(active.nodes)
    _ask(grid, this, _StepAsker(this, terms, attempt, "request", lambda _: sent, "shares", longest, shares), active.nodes)
    if len(store.parts(number, attempt, "shares")) < active.context.threshold:
        raise MaskingError("too-few-nodes")
    delivered = store.parts(number, attempt, "masked")
    return {node: delivered[node].decode() for node in request.survivors}


def _box_for(active: Active, sender: int, dealt: bytes, recipient: int) -> bytes:
    """The box for one node among those that another dealt, which lie in the order of the others."""
    at = [node for node in active.nodes if node != sender].index(recipient)
    return dealt[at * _BOX_BYTES : (at + 1) * _BOX_BYTES]


def _ask(grid: Grid, this: ThisRound, asker: _StepAsker, nodes: Iterable[int]) -> None:
    """Ask whoever has not answered yet and has not failed."""
    done = this.store.parts(this.number, asker.attempt, asker.wanted).keys()
    failed = this.store.parts(this.number, asker.attempt, _FAILED).keys()
    waiting = [node for node in nodes if node not in done and (node not in failed or asker.wanted == "shares")]
    asking.ask(grid, this, asker, waiting, time.time() + min(_STEP_S, this.policy.deadline_s))


def _vectors(this: ThisRound, layout: Layout) -> Iterator[Masked]:
    """The vectors of the survivors, from their files."""
    request = Request.from_bytes(this.store.settled(this.number, _attempt(this), "request") or b"")
    for node_id in request.survivors:
        try:
            yield Masked.from_bytes(read_bounded(this.file(node_id), _MASKED_HEAD_BYTES + 4 * layout.size), layout.size)
        except (OSError, MaskingError) as error:
            raise IntegrityError(
                f"an accepted update of round {this.number} cannot be read any more",
                advice="The disk lost or changed it. Hold another round.",
            ) from error


def _reasons(this: ThisRound) -> Mapping[int, Reason]:
    """Why nothing came of a node, by the last attempt it was asked in."""
    found: dict[int, Reason] = {}
    for attempt in range(1, _ATTEMPTS + 1):
        found |= {node: raw.decode() for node, raw in this.store.parts(this.number, attempt, _FAILED).items()}  # type: ignore[misc]
    return found
