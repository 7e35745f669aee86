"""The round loop, over Flower's ``Grid``: one message out to each artist's node, replies taken one at a time.

Flower carries; what counts is decided here. A round waits for a stated number of nodes until a stated time, takes what
comes until a deadline, and ends in a stated outcome: published, refused by the gate, or failed for want of updates. A late,
dead, slow or broken node is one line in the record and never stops a round.

Rounds are a state machine in the database, and each of its steps can be done again:

    gathering   nothing was promised to anybody yet
    training    whom it asks and until when is settled; each accepted update lies in a file of its own before it is in the table
    judging     what counts is settled: the updates in the table, in order of the nodes' numbers; a body follows from them
    over        published, refused or failed, and a line in the ledger names what counted

Whoever is killed in between is followed by a process that reads how far things are and goes on: nodes that answered are not
asked again, and those that are asked again answer with the update they made. Memory does not grow with the number of nodes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import httpx
import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from coordinator import aggregate, policies
from coordinator.admission import Accepted, Reason, Rejected, Terms, admit
from coordinator.aggregate import Contribution
from coordinator.config import Config, Home
from coordinator.gate import Candidate, Gate
from coordinator.publish import current_release, parent_body, publish
from coordinator.store import Answer, Job, Node, Round, RoundState, Store
from export import release
from export.errors import IntegrityError, RefusedError, SfumatoError
from export.files import digest_of, held, read_bounded, write_atomic
from export.ledger import Ledger, Value
from export.policy import Policy, SignedPolicy
from export.signing import VerifiedRelease
from models import codecs, compression, registry, state, wire
from models.update import Arrays, Assignment, Declined, Layout, Update

_POLL_S: Final = 0.5
_COME_BACK_S: Final = 120.0
_ASKED_AGAIN_MAX: Final = 5
_LOST: Final = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
"""What Flower says of a node that was killed or cut off; a node that failed says so itself, in another code."""
_log = logging.getLogger(__name__)


class Grid(Protocol):
    """What the loop needs of Flower's ``Grid``; a simulator in the tests stands behind the same."""

    def get_node_ids(self) -> Iterable[int]: ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]: ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]: ...


def run_rounds(grid: Grid, home: Home, config: Config) -> None:
    """Hold the rounds that were asked for, each refining what the last one published; go on where another process left off.

    Raises:
        RefusedError: another process holds rounds here.
        SfumatoError: a round cannot be held; it is written down as failed, and with it the rounds asked for.
    """
    with held(home.rounds_lock, "a run of rounds"):
        store = Store(home.database)
        job = store.open_job()
        if job is None:
            return
        _sweep(home, store)
        judge = _Judge(home, config)
        try:
            while _rounds_left(store, job):
                _hold_round(grid, home, config, store, job, judge)
        except SfumatoError as error:
            store.close_job(job.job, "failed", str(error), time.time())
            raise
        store.close_job(job.job, "done", "", time.time())


def _sweep(home: Home, store: Store) -> None:
    """Delete the updates of rounds that are over: a kill may have come between a round's end and that."""
    over = {str(round_.round) for round_ in store.rounds() if round_.is_over}
    for folder in home.rounds.glob("[0-9]*"):
        if folder.name in over:
            shutil.rmtree(folder, ignore_errors=True)


def _rounds_left(store: Store, job: Job) -> bool:
    """Whether another round is to be held: none is once somebody has called the rest off."""
    return store.job(job.job).state == "open" and sum(r.is_over for r in store.rounds_of(job.job)) < job.wanted


def _hold_round(grid: Grid, home: Home, config: Config, store: Store, job: Job, judge: _Judge) -> None:
    """Hold one round, from wherever it is, to its end."""
    signed, current = policies.require_published(home), current_release(home)
    round_ = store.open_round(job.job, current.digest, signed.digest, time.time())
    this = _ThisRound(home, store, round_, signed.policy, current)
    if _is_overtaken(this, signed):
        return
    if round_.state == "gathering":
        nodes = _gather(grid, config, this)
        deadline = time.time() + signed.policy.deadline_s
        store.ask(round_.round, nodes, deadline, time.time())
    else:
        deadline = round_.deadline or 0.0
    if round_.state in ("gathering", "training"):
        _collect(grid, this, signed, min(deadline, time.time() + signed.policy.deadline_s))
    accepted = [answer for answer in store.answers(round_.round) if answer.accepted]
    if len(accepted) < signed.policy.minimum_nodes:
        _conclude(this, "failed", f"{len(accepted)} of at least {signed.policy.minimum_nodes} updates were accepted")
        return
    this.report("judging", f"judging a body refined by {len(accepted)} artists")
    _decide(this, judge, accepted)


@dataclass(frozen=True, slots=True)
class _ThisRound:
    """A round that is being held."""

    home: Home
    store: Store
    round: Round
    policy: Policy
    current: VerifiedRelease

    @property
    def number(self) -> int:
        return self.round.round

    @property
    def folder(self) -> Path:
        """Where its accepted updates lie."""
        return self.home.rounds / str(self.number)

    def report(self, outcome: RoundState, detail: str, version: int | None = None) -> None:
        """Say in the database what the round is at, so that a slow round never looks like a dead one."""
        _log.info("round %d: %s, %s", self.number, outcome, detail)
        self.store.set_round(self.number, outcome, detail, time.time(), version)


def _is_overtaken(this: _ThisRound, signed: SignedPolicy) -> bool:
    """Whether a round that was begun cannot be gone on with: its outcome is out already, or what it began from is no more."""
    current = this.current
    if this.round.base == current.digest and this.round.policy == signed.digest:
        return False
    if current.manifest.round == this.number:  # a kill came between the release and the note of it
        _conclude(this, "published", f"release {current.manifest.version}", current.manifest.version)
    else:
        _conclude(this, "failed", "another release or policy took the place of the one it began from")
    return True


def _collect(grid: Grid, this: _ThisRound, signed: SignedPolicy, deadline: float) -> None:
    """Send the body to those who have not answered, and take updates in until all have or the time is over."""
    modality = registry.find(this.current.manifest.modality)
    body = release.body_of(this.current)
    layout = Layout.of(body)
    assignment = Assignment(
        federation=this.current.manifest.federation,
        modality=modality.name,
        round=this.number,
        policy=signed.digest,
        body=layout.flatten(body),
        layout_digest=layout.digest,
    )
    policy = this.policy
    terms = Terms(
        federation=assignment.federation,
        round=this.number,
        policy=signed.digest,
        layout=layout,
        steps=policy.steps,
        clip=policy.clip,
        keep=policy.keep,
        private=state.private_names(modality),
    )
    asked, store = this.store.asked(this.number), this.store
    answered = {answer.node_id for answer in store.answers(this.number)}
    sent = _Sent(grid, wire.pack_assignment(assignment), this.number, deadline)
    sent.to([node_id for node_id in asked if node_id not in answered])
    started = time.monotonic()
    while sent.pending or sent.lost:
        taken = _take_one(grid, sent.pending)
        if taken is not None:
            if not (taken[1] is not None and sent.asks_again(taken[0], taken[1])):
                store.add_answer(this.number, _answer(this, *taken, terms, time.monotonic() - started))
        elif time.time() < deadline:
            for node_id in sent.look_for_the_lost():
                store.add_answer(this.number, _silent(node_id, "node-failed", time.monotonic() - started))
            accepted = sum(answer.accepted for answer in store.answers(this.number))
            left_s = deadline - time.time()
            outstanding = f"{len(sent.pending)} outstanding, {len(sent.lost)} lost on the way"
            this.report("training", f"{accepted} of {len(asked)} updates in, {outstanding}, waiting up to {left_s:.0f} s")
            time.sleep(_POLL_S)
        else:  # only here: what is in at the deadline is in
            break
    for node_id in (*sent.pending.values(), *sent.lost):
        store.add_answer(this.number, _silent(node_id, "no-answer", policy.deadline_s))


@dataclass(slots=True)
class _Sent:
    """The messages of a round that are on their way, and the nodes whose message or answer was lost.

    A node that was killed or cut off while it trained is one whose message Flower gives up on. It is asked again when it is
    back: it goes on where it was, or answers with the update it has made. Who does not come back costs a round two minutes.

    Attributes:
        grid: Flower's.
        record: what is asked.
        number: of the round.
        deadline: of the round, seconds since 1970.
        pending: the node of each message that is outstanding.
        lost: since when each lost node is.
        times: how often each node was asked again.
    """

    grid: Grid
    record: RecordDict
    number: int
    deadline: float
    pending: dict[str, int] = field(default_factory=dict)
    lost: dict[int, float] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)

    def to(self, nodes: list[int]) -> None:
        """Ask some nodes."""
        messages = _messages(self.record, nodes, self.number, self.deadline - time.time())
        self.pending |= dict(zip(self.grid.push_messages(messages), nodes, strict=True)) if nodes else {}

    def asks_again(self, node_id: int, message: Message) -> bool:
        """Whether what came is no answer but Flower's word that there will be none, and the node can be asked once more."""
        if not message.has_error() or message.error.code not in _LOST or self.times.get(node_id, 0) >= _ASKED_AGAIN_MAX:
            return False
        self.times[node_id] = self.times.get(node_id, 0) + 1
        self.lost[node_id] = time.monotonic()
        return True

    def look_for_the_lost(self) -> list[int]:
        """Ask again whoever is back; those who were away for too long, and are given up."""
        if not self.lost:
            return []
        online = set(self.grid.get_node_ids())
        back = [node_id for node_id in self.lost if node_id in online]
        for node_id in back:
            del self.lost[node_id]
        self.to(back)
        given_up = [node_id for node_id, since in self.lost.items() if time.monotonic() - since > _COME_BACK_S]
        for node_id in given_up:
            del self.lost[node_id]
        return given_up


def _gather(grid: Grid, config: Config, this: _ThisRound) -> list[int]:
    """Wait until enough members' nodes are online; strangers are never sampled, and galleries take no part."""
    minimum = this.policy.minimum_nodes
    deadline = time.monotonic() + config.gather_timeout_s
    while True:
        members = {node.node_id for node in this.store.nodes() if node.role == "artist"}
        online = sorted(members.intersection(grid.get_node_ids()))
        left_s = deadline - time.monotonic()
        if len(online) == len(members) >= minimum or (left_s <= 0 and len(online) >= minimum):
            return online
        if left_s <= 0:
            detail = f"{len(online)} of at least {minimum} artists' nodes were online in time"
            _conclude(this, "failed", detail)
            raise SfumatoError(detail, advice="Ask the artists to start theirs with: sfumato up")
        this.report("gathering", f"{len(online)} of {len(members)} nodes online, waiting up to {left_s:.0f} s for the rest")
        time.sleep(_POLL_S)


def _messages(record: RecordDict, nodes: list[int], number: int, lasts_s: float) -> list[Message]:
    return [
        Message(
            content=record,
            dst_node_id=node_id,
            message_type=MessageType.TRAIN,
            group_id=str(number),
            ttl=max(0.0, lasts_s) + 60,
        )
        for node_id in nodes
    ]


def _take_one(grid: Grid, pending: dict[str, int]) -> tuple[int, Message | None] | None:
    """One reply, if any is there, or None in its place if what came cannot be read as one.

    Replies are fetched singly, so that only one is ever held and a bad one costs nobody but its sender.
    """
    for message_id in list(pending):
        try:
            messages = list(grid.pull_messages([message_id]))
        except (httpx.HTTPError, OSError):  # the way to the SuperLink, and no node's doing
            raise
        except Exception as error:  # noqa: BLE001 - Flower builds what a node sent without checking it, and raises anything
            _log.info("what node %d sent cannot be read: %s", pending[message_id], type(error).__name__)
            return pending.pop(message_id), None
        for message in messages:
            return pending.pop(message_id), message
    return None


def _answer(this: _ThisRound, node_id: int, message: Message | None, terms: Terms, seconds: float) -> Answer:
    """Admit a reply or say why not; an accepted one is on disk when this returns, and let go."""
    member = _member(this.store, node_id)
    if message is None:
        return _silent(node_id, "not-an-update", seconds)
    if message.has_error() or member is None:
        return _silent(node_id, "node-failed", seconds)
    size = _array_bytes(message.content)
    try:
        answer = wire.unpack_answer(message.content)
    except wire.WireError:
        return _silent(node_id, "not-an-update", seconds, size)
    if isinstance(answer, Declined):
        return _silent(node_id, answer.reason if answer.round == terms.round else "another-round", seconds, size)
    counts = {a.node_id for a in this.store.answers(this.number) if a.accepted}
    verdict = admit(answer, terms, member.keys.enrolled, has_answered=node_id in counts)
    if isinstance(verdict, Rejected):
        return _silent(node_id, verdict.reason, seconds, size)
    write_atomic(_file(this, node_id), answer.payload, mode=0o600)
    return _counted(node_id, answer, verdict, size, seconds, digest_of(answer.payload))


def _member(store: Store, node_id: int) -> Node | None:
    """The member with a node's number, unless the membership has ended since it was asked."""
    return next((node for node in store.nodes() if node.node_id == node_id), None)


def _file(this: _ThisRound, node_id: int) -> Path:
    return this.folder / f"{node_id}.update"


def _counted(node_id: int, update: Update, verdict: Accepted, size: int, seconds: float, digest: str) -> Answer:
    return Answer(
        node_id=node_id,
        accepted=True,
        reason="",
        bytes=size,
        norm=verdict.norm,
        loss_before=update.loss_before,
        loss_after=update.loss_after,
        steps=update.steps,
        seconds=seconds,
        sha256=digest,
    )


def _silent(node_id: int, reason: Reason, seconds: float, size: int = 0) -> Answer:
    return Answer(node_id, False, reason, size, None, None, None, None, seconds, None)  # noqa: FBT003 - not accepted


def _array_bytes(content: RecordDict) -> int:
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


@dataclass(slots=True)
class _Judge:
    """The gate for whatever release is current; made when it is first needed, since it measures for a while."""

    home: Home
    config: Config
    _of: str = field(default="", init=False)
    _gate: Gate | None = field(default=None, init=False)

    def for_release(self, current: VerifiedRelease) -> Gate:
        """The gate against a release."""
        if self._gate is None or self._of != current.digest:
            self._gate, self._of = Gate(current, self.config.fit_steps), current.digest
        return self._gate


def _decide(this: _ThisRound, judge: _Judge, accepted: list[Answer]) -> None:
    """Let the gate decide, and publish or say why not.

    Momentum never costs a round: what the gate refuses with it is judged again without.
    """
    gate = judge.for_release(this.current)
    with_momentum, plain = _moved(this, judge.config.momentum, accepted)
    candidate = gate.judge(with_momentum if with_momentum is not None else plain)
    said = ""
    if with_momentum is not None and not candidate.passes:
        this.report("judging", f"judging without momentum, since with it: {'; '.join(candidate.reasons)}")
        candidate, said = gate.judge(plain), ", without momentum"
    _keep_strip(this, candidate)
    if not candidate.passes:
        _conclude(this, "refused", "; ".join(candidate.reasons))
        return
    try:
        published = publish(this.home, this.current, candidate, this.number, len(accepted))
    except RefusedError as error:  # somebody published meanwhile
        _conclude(this, "refused", str(error))
        return
    _conclude(this, "published", f"release {published.manifest.version}{said}", published.manifest.version)


def _keep_strip(this: _ThisRound, candidate: Candidate) -> None:
    """Keep the pictures before and after, for a person to look at."""
    if candidate.strip is not None:
        write_atomic(this.home.strips / f"round-{this.number}.jpg", codecs.encode(candidate.strip, ".jpg"))


def _moved(this: _ThisRound, momentum: float, accepted: list[Answer]) -> tuple[Arrays | None, Arrays]:
    """The body moved by what counts and a share of its last movement, if there was one; and by what counts alone.

    Server momentum (FedAvgM, Hsu et al. 2019, arXiv 1909.06335). The last movement is what lies between two releases, so
    nothing need be remembered, and a refused round leaves no trace.
    """
    body = release.body_of(this.current)
    layout = Layout.of(body)
    flat = layout.flatten(body)
    combine = aggregate.robust if this.policy.aggregation == "robust" else aggregate.mean
    movement = combine(lambda: _contributions(this, layout, accepted), this.policy.steps, this.policy.clip)
    moved = aggregate.moved(flat, movement)
    before = parent_body(this.home, this.current) if momentum else None
    if before is None or Layout.of(before) != layout:
        return None, layout.unflatten(moved)
    carried = moved + np.float32(momentum) * (flat - layout.flatten(before))
    return layout.unflatten(carried), layout.unflatten(moved)


def _contributions(this: _ThisRound, layout: Layout, accepted: list[Answer]) -> Iterator[Contribution]:
    """The updates that count, from their files, in order of the nodes' numbers."""
    limit = 2 * compression.max_bytes(layout, this.policy.keep)
    for answer in sorted(accepted, key=lambda answer: answer.node_id):
        try:
            payload = read_bounded(_file(this, answer.node_id), limit)
            yield Contribution(compression.decompress(payload, layout), answer.steps or this.policy.steps)
        except (OSError, compression.CompressionError) as error:
            raise IntegrityError(
                f"an accepted update of round {this.number} cannot be read any more",
                advice="The disk lost or changed it. Hold another round.",
            ) from error


def _conclude(this: _ThisRound, outcome: RoundState, detail: str, version: int | None = None) -> None:
    """End a round: the ledger first, which names what counted, then the database; what lay there for it is deleted."""
    answers = this.store.answers(this.number)
    entry: dict[str, Value] = {
        "what": "round",
        "round": this.number,
        "outcome": outcome,
        "version": version,
        "base": this.round.base,
        "policy": this.round.policy,
        "accepted": [f"{answer.node_id} {answer.sha256}" for answer in answers if answer.accepted],
        "rejected": [f"{answer.node_id} {answer.reason}" for answer in answers if not answer.accepted],
    }
    Ledger(this.home.ledger_file).append_once(entry, "what", "round")
    this.report(outcome, detail, version)
    shutil.rmtree(this.folder, ignore_errors=True)
