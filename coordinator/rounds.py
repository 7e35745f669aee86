"""The round loop, over Flower's ``Grid``: one message out to each artist's node, replies taken one at a time.

Flower carries; what counts is decided here. A round waits for a stated number of nodes until a stated time, takes what
comes until a deadline, and ends in a stated outcome: published, refused by the gate, or failed for want of updates. A late,
dead, slow or broken node is one line in the record and never stops a round. Memory does not grow with the number of nodes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import httpx
import numpy as np
from flwr.app import Message, MessageType, RecordDict

from coordinator.admission import Accepted, Reason, Rejected, Terms, admit
from coordinator.aggregate import Mean
from coordinator.config import Config, Home
from coordinator.gate import Gate
from coordinator.publish import current_release, parent_body, publish
from coordinator.store import Answer, RoundState, Store
from export import release
from export.errors import RefusedError, SfumatoError
from export.files import held
from export.signing import VerifiedRelease
from models import registry, state, wire
from models.update import Arrays, Assignment, Layout

_POLL_S: Final = 0.5
_log = logging.getLogger(__name__)


class Grid(Protocol):
    """What the loop needs of Flower's ``Grid``; a simulator in the tests stands behind the same."""

    def get_node_ids(self) -> Iterable[int]: ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]: ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]: ...


@dataclass(slots=True)
class _Collected:
    """What one round has taken in so far."""

    mean: Mean
    answered: set[int] = field(default_factory=set)
    accepted: int = 0


def run_rounds(grid: Grid, home: Home, config: Config, count: int) -> None:
    """Hold ``count`` rounds, each refining what the last one published.

    Raises:
        RefusedError: another process holds rounds here.
        SfumatoError: a round cannot be held; it is written down as failed, as it is for any other error.
    """
    with held(home.rounds_lock, "a run of rounds"):
        store = Store(home.database)
        store.close_open_rounds("interrupted", time.time())
        gate: tuple[str, Gate] | None = None
        for _ in range(count):
            number = store.open_round(time.time())
            report = _Reporter(store, number)
            with _failing_openly(report):
                current = current_release(home)
                collected = _train(grid, config, store, report, current, number)
                if collected.accepted < config.minimum_nodes:
                    report("failed", f"{collected.accepted} of at least {config.minimum_nodes} updates were accepted")
                    continue
                report("judging", f"judging a body refined by {collected.accepted} artists")
                if gate is None or gate[0] != current.digest:
                    gate = (current.digest, Gate(current, config.fit_steps))
                _judge(home, config.momentum, report, current, gate[1], collected, number)


@dataclass(frozen=True, slots=True)
class _Reporter:
    """Says in the database what a round is at, so that a slow round never looks like a dead one."""

    store: Store
    number: int

    def __call__(self, state: RoundState, detail: str, version: int | None = None) -> None:
        _log.info("round %d: %s, %s", self.number, state, detail)
        self.store.set_round(self.number, state, detail, time.time(), version)


@contextmanager
def _failing_openly(report: _Reporter) -> Iterator[None]:
    """Write down that a round failed, whatever it is that ends it: Flower stops a run by raising, too."""
    try:
        yield
    except SfumatoError as error:
        report("failed", str(error))
        raise
    except Exception as error:
        report("failed", f"an error of the program: {type(error).__name__}")
        raise
    except BaseException:
        report("failed", "interrupted")
        raise


def _train(grid: Grid, config: Config, store: Store, report: _Reporter, current: VerifiedRelease, number: int) -> _Collected:
    """Send the body out and take the updates in."""
    modality = registry.find(current.manifest.modality)
    body = release.body_of(current)
    layout = Layout.of(body)
    nodes = _gather(grid, config, store, report)
    assignment = Assignment(
        federation=current.manifest.federation,
        modality=modality.name,
        round=number,
        body=layout.flatten(body),
        layout_digest=layout.digest,
        steps=config.steps,
        clip=config.clip,
    )
    record = wire.pack_assignment(assignment)
    terms = Terms(number, layout, config.clip, state.private_names(modality))
    collected = _Collected(Mean(layout.size))
    started = time.monotonic()
    pending = dict(zip(grid.push_messages(_messages(record, nodes, number, config)), nodes, strict=True))
    deadline = started + config.round_timeout_s
    while pending:
        taken = _take_one(grid, pending)
        if taken is not None:
            node_id, message = taken
            store.add_answer(number, _answer(node_id, message, terms, collected, time.monotonic() - started))
        elif time.monotonic() < deadline:
            report("training", f"{collected.accepted} of {len(nodes)} updates in, {len(pending)} outstanding")
            time.sleep(_POLL_S)
        else:  # only here: what is in at the deadline is in
            break
    for node_id in pending.values():
        store.add_answer(number, _silent(node_id, "no-answer", config.round_timeout_s))
    return collected


def _gather(grid: Grid, config: Config, store: Store, report: _Reporter) -> list[int]:
    """Wait until enough members' nodes are online; strangers are never sampled."""
    deadline = time.monotonic() + config.gather_timeout_s
    while True:
        members = {node.node_id for node in store.nodes() if node.role == "artist"}
        online = sorted(members.intersection(grid.get_node_ids()))
        left_s = deadline - time.monotonic()
        if len(online) == len(members) >= config.minimum_nodes or (left_s <= 0 and len(online) >= config.minimum_nodes):
            return online
        if left_s <= 0:
            raise SfumatoError(
                f"{len(online)} of at least {config.minimum_nodes} artists' nodes were online in time",
                advice="Ask the artists to start theirs with: sfumato up",
            )
        report("gathering", f"{len(online)} of {len(members)} nodes online, waiting up to {left_s:.0f} s for the rest")
        time.sleep(_POLL_S)


def _messages(record: RecordDict, nodes: list[int], number: int, config: Config) -> list[Message]:
    return [
        Message(
            content=record,
            dst_node_id=node_id,
            message_type=MessageType.TRAIN,
            group_id=str(number),
            ttl=config.round_timeout_s + 60,
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


def _answer(node_id: int, message: Message | None, terms: Terms, collected: _Collected, seconds: float) -> Answer:
    """Admit a reply or say why not; an accepted one is added to the mean at once and let go."""
    if message is None:
        return _silent(node_id, "not-an-update", seconds)
    if message.has_error():
        return _silent(node_id, "node-failed", seconds)
    size = _array_bytes(message.content)
    try:
        update = wire.unpack_update(message.content)
    except wire.WireError:
        return _silent(node_id, "not-an-update", seconds, size)
    verdict = admit(update, terms, has_answered=node_id in collected.answered)
    if isinstance(verdict, Rejected):
        return _silent(node_id, verdict.reason, seconds, size)
    collected.answered.add(node_id)
    collected.accepted += 1
    collected.mean.add(update.delta)
    return _counted(node_id, verdict, size, seconds)


def _counted(node_id: int, verdict: Accepted, size: int, seconds: float) -> Answer:
    update = verdict.update
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
    )


def _silent(node_id: int, reason: Reason | str, seconds: float, size: int = 0) -> Answer:
    return Answer(node_id, False, reason, size, None, None, None, None, seconds)  # noqa: FBT003 - not accepted


def _array_bytes(content: RecordDict) -> int:
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _judge(
    home: Home, momentum: float, report: _Reporter, current: VerifiedRelease, gate: Gate, collected: _Collected, number: int
) -> None:
    """Let the gate decide, and publish or say why not.

    Momentum never costs a round: what the gate refuses with it is judged again without.
    """
    with_momentum, plain = _moved(home, momentum, current, collected)
    candidate = gate.judge(with_momentum if with_momentum is not None else plain)
    said = ""
    if with_momentum is not None and not candidate.passes:
        report("judging", f"judging without momentum, since with it: {'; '.join(candidate.reasons)}")
        candidate, said = gate.judge(plain), ", without momentum"
    if not candidate.passes:
        report("refused", "; ".join(candidate.reasons))
        return
    try:
        published = publish(home, current, candidate, number, collected.accepted)
    except RefusedError as error:  # somebody published meanwhile
        report("refused", str(error))
        return
    report("published", f"release {published.manifest.version}{said}", published.manifest.version)


def _moved(home: Home, momentum: float, current: VerifiedRelease, collected: _Collected) -> tuple[Arrays | None, Arrays]:
    """The body moved by the mean update and a share of its last movement, if there was one; and by the mean alone.

    Server momentum (FedAvgM, Hsu et al. 2019, arXiv 1909.06335). The last movement is what lies between two releases, so
    nothing need be remembered, and a refused round leaves no trace.
    """
    body = release.body_of(current)
    layout = Layout.of(body)
    flat = layout.flatten(body)
    moved = collected.mean.applied_to(flat)
    before = parent_body(home, current) if momentum else None
    if before is None or Layout.of(before) != layout:
        return None, layout.unflatten(moved)
    carried = moved + np.float32(momentum) * (flat - layout.flatten(before))
    return layout.unflatten(carried), layout.unflatten(moved)
