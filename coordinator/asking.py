"""Asking nodes for something over Flower's ``Grid``, and taking what comes until all have answered or the time is over.

Flower carries; what an answer is worth is for the asker to say. Replies are taken one at a time. A late, dead, slow or broken
node costs its own answer and no one else's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import httpx
from flwr.app import Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from coordinator.admission import Reason
from coordinator.config import Home
from coordinator.store import Answer, Node, Round, RoundState, Store
from export.policy import Policy
from export.signing import VerifiedRelease

POLL_S: Final = 0.5
_COME_BACK_S: Final = 240.0
"""Long enough: of a node that was killed Flower believes for a minute that it is there, and lets it sign in again only after
that, while the node tries every half minute. A round's deadline may be sooner."""
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
    """What rounds need of Flower's ``Grid``; a simulator in the tests stands behind the same."""

    def get_node_ids(self) -> Iterable[int]: ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]: ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]: ...


@dataclass(frozen=True, slots=True)
class ThisRound:
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
        """Where what was accepted lies."""
        return self.home.rounds / str(self.number)

    def file(self, node_id: int) -> Path:
        """What was accepted of a node."""
        return self.folder / f"{node_id}.update"

    def report(self, outcome: RoundState, detail: str, version: int | None = None) -> None:
        """Say in the database what the round is at, so that a slow round never looks like a dead one."""
        _log.info("round %d: %s, %s", self.number, outcome, detail)
        self.store.set_round(self.number, outcome, detail, time.time(), version)

    def member(self, node_id: int) -> Node | None:
        """The member with a node's number, unless the membership has ended since it was asked."""
        return self.store.node(node_id)


class Asker(Protocol):
    """Who asks: what, and what becomes of the answers."""

    def record(self, node_id: int) -> RecordDict:
        """What a node is asked."""

    def take(self, node_id: int, message: Message | None, seconds: float) -> None:
        """A node answered, or sent what cannot be read as a message; it is durable when this returns."""

    def miss(self, node_id: int, reason: Reason, seconds: float) -> None:
        """A node did not answer."""

    def progress(self) -> str:
        """What is in, for people."""


def ask(grid: Grid, this: ThisRound, asker: Asker, nodes: list[int], deadline: float) -> None:
    """Ask nodes, and take what they answer until all have or the time is over.

    Args:
        grid: Flower's.
        this: the round.
        asker: what for.
        nodes: whom.
        deadline: seconds since 1970.
    """
    sent = _Sent(grid, asker.record, this.number, deadline)
    sent.to(nodes)
    started = time.monotonic()
    while sent.pending or sent.lost:
        came = 0
        for message_id in list(sent.pending):
            for node_id, message in _fetched(grid, sent.pending, message_id):
                came += 1
                if message is None or not sent.asks_again(node_id, message):
                    asker.take(node_id, message, time.monotonic() - started)
        if time.time() >= deadline:
            if not came:  # only then: what is in at the deadline is in
                break
            continue
        for node_id in sent.look_for_the_lost():
            asker.miss(node_id, "node-failed", time.monotonic() - started)
        if sent.pending or sent.lost:
            outstanding = f"{len(sent.pending)} outstanding, {len(sent.lost)} lost on the way"
            this.report("training", f"{asker.progress()}, {outstanding}, waiting up to {deadline - time.time():.0f} s")
            time.sleep(POLL_S)  # after a look at everybody, so that a thousand who are slow do not keep a processor busy
    for node_id in (*sent.pending.values(), *sent.lost):
        asker.miss(node_id, "no-answer", this.policy.deadline_s)


def silent(node_id: int, reason: Reason, seconds: float, size: int = 0) -> Answer:
    """What is written down of a node of which nothing counts."""
    return Answer(node_id, False, reason, size, None, None, None, None, seconds, None)  # noqa: FBT003 - not accepted


def array_bytes(content: RecordDict) -> int:
    """How large what came is."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


@dataclass(slots=True)
class _Sent:
    """The messages that are on their way, and the nodes whose message or answer was lost.

    A node that was killed or cut off while it trained is one whose message Flower gives up on. It is asked again when it is
    back: it goes on where it was, or answers with what it has made. Who does not come back costs a round four minutes.

    Attributes:
        grid: Flower's.
        record: what each node is asked.
        number: of the round.
        deadline: seconds since 1970.
        pending: the node of each message that is outstanding.
        lost: since when each lost node is.
        times: how often each node was asked again.
    """

    grid: Grid
    record: Callable[[int], RecordDict]
    number: int
    deadline: float
    pending: dict[str, int] = field(default_factory=dict)
    lost: dict[int, float] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)

    def to(self, nodes: list[int]) -> None:
        """Ask some nodes."""
        if nodes:  # Flower refuses an empty list
            lasts_s = max(0.0, self.deadline - time.time()) + 60
            messages = [self._message(node_id, lasts_s) for node_id in nodes]
            self.pending |= dict(zip(self.grid.push_messages(messages), nodes, strict=True))

    def _message(self, node_id: int, lasts_s: float) -> Message:
        content, group = self.record(node_id), str(self.number)
        return Message(content, dst_node_id=node_id, message_type=MessageType.TRAIN, group_id=group, ttl=lasts_s)

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


def _fetched(grid: Grid, pending: dict[str, int], message_id: str) -> Iterator[tuple[int, Message | None]]:
    """The reply to a message, if it is there, or None in its place if what came cannot be read as one.

    Replies are fetched singly, so that only one is ever held and a bad one costs nobody but its sender.
    """
    try:
        messages = list(grid.pull_messages([message_id]))
    except (httpx.HTTPError, OSError):  # the way to the SuperLink, and no node's doing
        raise
    except Exception as error:  # noqa: BLE001 - Flower builds what a node sent without checking it, and raises anything
        _log.info("what node %d sent cannot be read: %s", pending[message_id], type(error).__name__)
        yield pending.pop(message_id), None
        return
    for message in messages[:1]:
        yield pending.pop(message_id), message
