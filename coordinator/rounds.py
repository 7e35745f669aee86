"""The round loop: what an artist's node is asked, what counts, and what comes of it. Flower carries (``asking.py``).

A round waits for a stated number of nodes until a stated time, takes what
comes until a deadline, and ends in a stated outcome: published, refused by the gate, or failed for want of updates. A late,
dead, slow or broken node is one line in the record and never stops a round.

Rounds are a state machine in the database, and each of its steps can be done again:

    gathering   nothing was promised to anybody yet
    training    whom it asks and until when is settled; each accepted update lies in a file of its own before it is in the
                table; in a veiled round, so does each part of the protocol after it (``veiled.py``)
    judging     what counts is settled: the updates in the table, in order of the nodes' numbers; a body follows from them
    over        published, refused or failed, and a line in the ledger names what counted

Whoever is killed in between is followed by a process that reads how far things are and goes on: nodes that answered are not
asked again, and those that are asked again answer with the update they made. Memory does not grow with the number of nodes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, RecordDict

from coordinator import aggregate, asking, policies, veiled
from coordinator.admission import Accepted, Reason, Rejected, Terms, admit
from coordinator.aggregate import Contribution
from coordinator.asking import POLL_S, Grid, ThisRound, array_bytes, silent
from coordinator.config import Config, Home
from coordinator.gate import Candidate, Gate
from coordinator.publish import current_release, parent_body, publish
from coordinator.store import Answer, Job, RoundState, Store
from export import release
from export.errors import IntegrityError, RefusedError, SfumatoError
from export.files import digest_of, held, read_bounded, write_atomic
from export.ledger import Ledger, Value
from export.policy import SignedPolicy
from export.signing import VerifiedRelease
from models import codecs, compression, registry, state, wire
from models.masking import MaskingError
from models.update import Arrays, Assignment, Declined, Layout, Update

_log = logging.getLogger(__name__)


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
    store.forget_parts_of_ended_rounds()


def _rounds_left(store: Store, job: Job) -> bool:
    """Whether another round is to be held: none is once somebody has called the rest off."""
    return store.job(job.job).state == "open" and sum(r.is_over for r in store.rounds_of(job.job)) < job.wanted


def _hold_round(grid: Grid, home: Home, config: Config, store: Store, job: Job, judge: _Judge) -> None:
    """Hold one round, from wherever it is, to its end."""
    signed, current = policies.require_published(home), current_release(home)
    round_ = store.open_round(job.job, current.digest, signed.digest, time.time())
    this = ThisRound(home, store, round_, signed.policy, current)
    if _is_overtaken(this, signed):
        return
    if round_.state == "gathering":
        nodes = _gather(grid, config, this)
        deadline = time.time() + signed.policy.deadline_s
        store.ask(round_.round, nodes, deadline, time.time())
    else:
        deadline = round_.deadline or 0.0
    if round_.state in ("gathering", "training"):
        terms = _collect(grid, this, signed, min(deadline, time.time() + signed.policy.deadline_s))
        if signed.policy.visibility == "veiled":
            veiled.hold(grid, this, terms)
    accepted = [answer for answer in store.answers(round_.round) if answer.accepted]
    if len(accepted) < signed.policy.minimum_nodes:
        _conclude(this, "failed", f"{len(accepted)} of at least {signed.policy.minimum_nodes} updates were accepted")
        return
    this.report("judging", f"judging a body refined by {len(accepted)} artists")
    _decide(this, judge, accepted)


def _is_overtaken(this: ThisRound, signed: SignedPolicy) -> bool:
    """Whether a round that was begun cannot be gone on with: its outcome is out already, or what it began from is no more."""
    current = this.current
    if this.round.base == current.digest and this.round.policy == signed.digest:
        return False
    if current.manifest.round == this.number:  # a kill came between the release and the note of it
        _conclude(this, "published", f"release {current.manifest.version}", current.manifest.version)
    else:
        _conclude(this, "failed", "another release or policy took the place of the one it began from")
    return True


def _collect(grid: Grid, this: ThisRound, signed: SignedPolicy, deadline: float) -> Terms:
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
    answered = {answer.node_id for answer in this.store.answers(this.number)}
    asker = (veiled.Training if policy.visibility == "veiled" else _Updates)(this, terms, wire.pack_assignment(assignment))
    waiting = [node_id for node_id in this.store.asked(this.number) if node_id not in answered | set(veiled.ready(this))]
    asking.ask(grid, this, asker, waiting, deadline)
    return terms


@dataclass(frozen=True, slots=True)
class _Updates:
    """Asks for the updates of an open round."""

    this: ThisRound
    terms: Terms
    assignment: RecordDict

    def record(self, node_id: int) -> RecordDict:
        """The same for all."""
        del node_id
        return self.assignment

    def take(self, node_id: int, message: Message | None, seconds: float) -> None:
        """Admit a reply or say why not; an accepted one is on disk when this returns, and let go."""
        self.this.store.add_answer(self.this.number, self._answer(node_id, message, seconds))

    def miss(self, node_id: int, reason: Reason, seconds: float) -> None:
        """Say why nothing came."""
        self.this.store.add_answer(self.this.number, silent(node_id, reason, seconds))

    def progress(self) -> str:
        """How many are in."""
        accepted = sum(answer.accepted for answer in self.this.store.answers(self.this.number))
        return f"{accepted} of {len(self.this.store.asked(self.this.number))} updates in"

    def _answer(self, node_id: int, message: Message | None, seconds: float) -> Answer:
        member = self.this.member(node_id)
        if message is None:
            return silent(node_id, "not-an-update", seconds)
        if message.has_error() or member is None:
            return silent(node_id, "node-failed", seconds)
        size = array_bytes(message.content)
        try:
            answer = wire.unpack_answer(message.content)
        except wire.WireError:
            return silent(node_id, "not-an-update", seconds, size)
        if isinstance(answer, Declined):
            return silent(node_id, answer.reason if answer.round == self.terms.round else "another-round", seconds, size)
        if not isinstance(answer, Update):
            return silent(node_id, "not-an-update", seconds, size)
        has_answered = self.this.store.counts(self.this.number, node_id)
        verdict = admit(answer, self.terms, member.keys.enrolled, has_answered=has_answered)
        if isinstance(verdict, Rejected):
            return silent(node_id, verdict.reason, seconds, size)
        write_atomic(self.this.file(node_id), answer.payload, mode=0o600)
        return _counted(node_id, answer, verdict, size, seconds, digest_of(answer.payload))


def _gather(grid: Grid, config: Config, this: ThisRound) -> list[int]:
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
        time.sleep(POLL_S)


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


def _decide(this: ThisRound, judge: _Judge, accepted: list[Answer]) -> None:
    """Let the gate decide, and publish or say why not.

    Momentum never costs a round: what the gate refuses with it is judged again without.
    """
    gate = judge.for_release(this.current)
    try:
        with_momentum, plain = _moved(this, judge.config.momentum, accepted)
    except MaskingError as error:  # whose doing it is cannot be seen
        _conclude(this, "refused", f"the sum of the updates cannot be used: {error.reason}")
        return
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


def _keep_strip(this: ThisRound, candidate: Candidate) -> None:
    """Keep the pictures before and after, for a person to look at."""
    if candidate.strip is not None:
        write_atomic(this.home.strips / f"round-{this.number}.jpg", codecs.encode(candidate.strip, ".jpg"))


def _moved(this: ThisRound, momentum: float, accepted: list[Answer]) -> tuple[Arrays | None, Arrays]:
    """The body moved by what counts and a share of its last movement, if there was one; and by what counts alone.

    Server momentum (FedAvgM, Hsu et al. 2019, arXiv 1909.06335). The last movement is what lies between two releases, so
    nothing need be remembered, and a refused round leaves no trace.
    """
    body = release.body_of(this.current)
    layout = Layout.of(body)
    flat = layout.flatten(body)
    movement = _movement(this, layout, accepted)
    moved = aggregate.moved(flat, movement)
    before = parent_body(this.home, this.current) if momentum else None
    if before is None or Layout.of(before) != layout:
        return None, layout.unflatten(moved)
    carried = moved + np.float32(momentum) * (flat - layout.flatten(before))
    return layout.unflatten(carried), layout.unflatten(moved)


def _movement(this: ThisRound, layout: Layout, accepted: list[Answer]) -> aggregate.Doubles:
    """What the updates come to."""
    policy = this.policy
    if policy.visibility == "veiled":
        return veiled.mean(this, layout)
    combine = aggregate.robust if policy.aggregation == "robust" else aggregate.mean
    return combine(lambda: _contributions(this, layout, accepted), policy.steps, policy.clip)


def _contributions(this: ThisRound, layout: Layout, accepted: list[Answer]) -> Iterator[Contribution]:
    """The updates that count, from their files, in order of the nodes' numbers."""
    limit = 2 * compression.max_bytes(layout, this.policy.keep)
    for answer in sorted(accepted, key=lambda answer: answer.node_id):
        try:
            payload = read_bounded(this.file(answer.node_id), limit)
            yield Contribution(compression.decompress(payload, layout), answer.steps or this.policy.steps)
        except (OSError, compression.CompressionError) as error:
            raise IntegrityError(
                f"an accepted update of round {this.number} cannot be read any more",
                advice="The disk lost or changed it. Hold another round.",
            ) from error


def _conclude(this: ThisRound, outcome: RoundState, detail: str, version: int | None = None) -> None:
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
    this.store.forget_parts(this.number)
    shutil.rmtree(this.folder, ignore_errors=True)
