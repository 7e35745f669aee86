"""Attacks by members and strangers on a round: one federation, one honest majority, and every kind of bad reply at once.

All of them go through the real round loop; only Flower's transport is a simulator. Each attacker sends what an honest node
would, but for one thing.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk

from coordinator import publish, rounds
from coordinator.admission import Accepted
from coordinator.store import Answer, Store
from export import release
from export.ledger import Ledger
from export.signing import VerifiedRelease
from models import privacy, wire
from models.update import Assignment, Update
from tests import simulators
from tests.simulators import Answers, CoordinatorHome, Objects, SimulatedGrid, honest, movement

CLIP: Final = 0.05
PRIVATE_PATH: Final = "/home/artist/private/portrait-of-anna.png"
HONEST: Final = (1, 2, 3)
STRANGER: Final = 99

Spoilt = Callable[[Assignment, Update], Update]


def spoilt(change: Spoilt) -> Answers:
    """A node whose update is honest but for one change."""

    def answer(message: Message) -> Message:
        assignment = wire.unpack_assignment(message.content)
        update = change(assignment, simulators.update_for(assignment, movement(7)))
        return Message(wire.pack_update(update), reply_to=message)

    return answer


def hand_made(change: Callable[[dict[str, Array], dict[str, Any]], object]) -> Answers:
    """A node whose record is honest but for one change; what ``change`` returns are surplus records."""

    def answer(message: Message) -> Message:
        assignment = wire.unpack_assignment(message.content)
        honest_record = wire.pack_update(simulators.update_for(assignment, movement(7)))
        arrays = dict(honest_record.array_records["arrays"])
        header = dict(honest_record.config_records["header"])
        surplus = change(arrays, header)
        record = simulators.record_of(arrays, header, **(surplus if isinstance(surplus, dict) else {}))
        return Message(record, reply_to=message)

    return answer


def with_delta(change: Callable[[np.ndarray[Any, np.dtype[np.float32]]], object]) -> Answers:
    """A node whose numbers are honest but for one change in place."""

    def spoil(_assignment: Assignment, update: Update) -> Update:
        delta = update.delta.copy()
        change(delta)
        return replace(update, delta=delta)

    return spoilt(spoil)


def put(delta: np.ndarray[Any, np.dtype[np.float32]], value: float) -> None:
    delta[delta.size // 2] = value


def named(update: Update, name: str) -> Update:
    return replace(update, tensors=(*update.tensors[:-1], name))


def with_field(name: str, value: object) -> Answers:
    return hand_made(lambda _arrays, header: header.update({name: value}))


def with_array(array: Array) -> Answers:
    return hand_made(lambda arrays, _header: arrays.update({"flat": array}))


def taken_apart(change: Callable[[Objects], Objects]) -> Answers:
    """A node that sends honest objects but for one change, which no program of ours would have put together."""

    def answer(message: Message) -> Objects:
        reply = honest(7)(message)
        assert isinstance(reply, Message)
        return change(Objects.of(reply))

    return answer


def without_content(objects: Objects) -> Objects:
    return objects.changed(Message, lambda content: re.sub(rb"^Message \S+ ", b"Message  ", content))


def with_another_content(objects: Objects) -> Objects:
    """Its arrays where a record of records should be."""
    old, new = objects.name_of(RecordDict).encode(), objects.name_of(ArrayRecord).encode()
    return objects.changed(Message, lambda content: content.replace(old, new))


def with_junk(objects: Objects) -> Objects:
    return objects.changed(RecordDict, lambda content: content.partition(b"\0")[0] + b"\0{junk")


def with_a_shape_of_words(objects: Objects) -> Objects:
    return objects.changed(Array, lambda content: content.replace(b'"shape": [', b'"shape": ["many", '))


def blown_up(objects: Objects) -> Objects:
    """One chunk, named so often that a kilobyte of numbers asks for 65 megabytes."""
    once = len(objects.contents[objects.name_of(ArrayChunk)])
    often = b", ".join([b"0"] * (65 * 2**20 // once))
    return objects.changed(Array, lambda content: content.replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": [%b]' % often))


def in_words_only(message: Message) -> Message:
    return Message(Error(code=8, reason=f"cannot read {PRIVATE_PATH}"), reply_to=message)


def garbage(message: Message) -> Message:
    return Message(simulators.record_of({}, {"what": "ever"}), reply_to=message)


def silence(_message: Message) -> None:
    return None


SIZE: Final = simulators.body_layout().size
ATTACKS: Final[dict[str, tuple[Answers, str]]] = {
    "a NaN": (with_delta(lambda delta: put(delta, float("nan"))), "not-finite"),
    "an infinity": (with_delta(lambda delta: put(delta, float("inf"))), "not-finite"),
    "a negative infinity": (with_delta(lambda delta: put(delta, float("-inf"))), "not-finite"),
    "a loss that is NaN": (spoilt(lambda _a, u: replace(u, loss_after=float("nan"))), "not-finite"),
    "one number too few": (spoilt(lambda _a, u: replace(u, delta=u.delta[:-1])), "another-layout"),
    "one number too many": (spoilt(lambda _a, u: replace(u, delta=np.append(u.delta, u.delta[:1]))), "another-layout"),
    "no numbers": (spoilt(lambda _a, u: replace(u, delta=u.delta[:0])), "another-layout"),
    "another layout's digest": (spoilt(lambda _a, u: replace(u, layout_digest="0" * 64)), "another-layout"),
    "an unknown tensor": (spoilt(lambda _a, u: named(u, "back.door")), "unknown-tensor"),
    "tensors in another order": (spoilt(lambda _a, u: replace(u, tensors=u.tensors[::-1])), "unknown-tensor"),
    "a private tensor": (spoilt(lambda _a, u: named(u, "codes")), "private-tensor"),
    "private statistics": (spoilt(lambda _a, u: replace(u, tensors=(*u.tensors, "norm_mean"))), "private-tensor"),
    "a huge norm": (with_delta(lambda delta: delta.__imul__(1e6)), "norm-too-large"),
    "a norm a thousandth too large": (
        spoilt(lambda a, u: replace(u, delta=movement(7, length=a.clip * 1.001))),
        "norm-too-large",
    ),
    "yesterday's round": (spoilt(lambda a, u: replace(u, round=a.round - 1)), "another-round"),
    "tomorrow's round": (spoilt(lambda a, u: replace(u, round=a.round + 1)), "another-round"),
    "a claimed weight": (with_field("num-examples", 1_000_000), "not-an-update"),
    "a surplus text": (with_field("title", "portrait of Anna"), "not-an-update"),
    "a surplus record": (hand_made(lambda _a, _h: {"metrics": ConfigRecord({"weight": 9})}), "not-an-update"),
    "a surplus record of arrays": (
        hand_made(lambda arrays, _h: {"codes": ArrayRecord({"code": arrays["flat"]})}),
        "not-an-update",
    ),
    "a missing field": (hand_made(lambda _a, header: header.pop("steps")), "not-an-update"),
    "another version": (with_field("version", 2), "not-an-update"),
    "a field of another type": (with_field("round", "1"), "not-an-update"),
    "double precision": (with_array(Array(np.zeros(SIZE, np.float64))), "not-an-update"),
    "two dimensions": (with_array(Array(np.zeros((1, SIZE), np.float32))), "not-an-update"),
    "two arrays": (hand_made(lambda arrays, _h: arrays.update({"second": arrays["flat"]})), "not-an-update"),
    "no array": (hand_made(lambda arrays, _h: arrays.clear()), "not-an-update"),
    "bytes that are no array": (with_array(Array("float32", (SIZE,), "numpy.ndarray", b"\x93NUMPY?")), "not-an-update"),
    "a pickle": (
        with_array(Array("float32", (SIZE,), "numpy.ndarray", b"\x80\x04cos\nsystem\n(S'true'\ntR.")),
        "not-an-update",
    ),
    "a bomb": (with_array(Array("float32", (2,), "numpy.ndarray", bytes(1_000_000))), "not-an-update"),
    "junk where records should be": (taken_apart(with_junk), "not-an-update"),
    "neither content nor error": (taken_apart(without_content), "not-an-update"),
    "arrays where records should be": (taken_apart(with_another_content), "not-an-update"),
    "a shape of words": (taken_apart(with_a_shape_of_words), "not-an-update"),
    "a chunk that is named too often": (taken_apart(blown_up), "not-an-update"),
    "something else": (garbage, "not-an-update"),
    "an error that names a path": (in_words_only, "node-failed"),
    "nothing": (silence, "no-answer"),
}
NODES: Final = {name: 10 + number for number, name in enumerate(ATTACKS)}


@dataclass(frozen=True)
class Held:
    """One round, and what is left of it."""

    home: CoordinatorHome
    grid: SimulatedGrid
    answers: dict[int, Answer]
    log: str


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, packaged: VerifiedRelease) -> Iterator[Held]:
    """One round of three honest nodes, all attackers, and a stranger who is no member."""
    records: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        simulators.install_world(patch, packaged)
        home = simulators.make_coordinator(
            tmp_path_factory.mktemp("hub"), minimum_nodes=len(HONEST), clip=CLIP, round_timeout_s=5.0, fit_steps=1
        )
        nodes: dict[int, Answers] = {node: honest(node) for node in HONEST}
        nodes |= {NODES[name]: attack for name, (attack, _) in ATTACKS.items()}
        simulators.enrol(home, *nodes)
        grid = SimulatedGrid({**nodes, STRANGER: honest(STRANGER)})
        log = logging.getLogger("coordinator")
        patch.setattr(log, "level", logging.DEBUG)
        patch.setattr(log, "handlers", [listener])
        simulators.hold_rounds(patch, home, grid)
        answers = {answer.node_id: answer for answer in Store(home.database).answers(1)}
        yield Held(home, grid, answers, "\n".join(records))


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_refused_with_its_reason(held: Held, attack: str) -> None:
    answer = held.answers[NODES[attack]]

    assert (answer.accepted, answer.reason) == (False, ATTACKS[attack][1])
    assert (answer.norm, answer.loss_before, answer.loss_after, answer.steps) == (None, None, None, None)


@pytest.mark.parametrize("node", HONEST)
def test_an_honest_update_among_them_is_accepted(held: Held, node: int) -> None:
    answer = held.answers[node]

    assert (answer.accepted, answer.reason, answer.steps) == (True, "", 2)
    assert answer.norm == pytest.approx(1e-3, rel=1e-3)
    assert answer.bytes >= 4 * SIZE


def test_the_round_goes_on_with_the_honest_ones_and_publishes(held: Held) -> None:
    (round_,) = Store(held.home.database).rounds()
    published = publish.current_release(held.home)

    assert (round_.state, round_.version, published.manifest.version) == ("published", 2, 2)
    assert published.manifest.contributors == len(HONEST)


def test_only_the_honest_updates_moved_the_body(held: Held) -> None:
    before, after = (simulators.body_layout().flatten(release.body_of(publish.open_release(held.home, v))) for v in (1, 2))
    mean = np.mean([movement(node) for node in HONEST], axis=0)

    np.testing.assert_allclose(after - before, mean, atol=1e-7)
    assert privacy.norm(after - before) > 0


def test_a_node_that_is_no_member_is_sent_nothing_and_asked_nothing(held: Held) -> None:
    assert {message.metadata.dst_node_id for message in held.grid.pushed} == {*HONEST, *NODES.values()}
    assert STRANGER not in held.answers
    assert STRANGER not in held.grid.sent


def test_what_a_failing_node_says_is_kept_nowhere(held: Held) -> None:
    files = [path for path in held.home.root.rglob("*") if path.is_file()]

    assert files
    assert not any(b"portrait-of-anna" in path.read_bytes() for path in files)
    assert not any(b"portrait of Anna" in path.read_bytes() for path in files)
    assert "portrait" not in held.log
    assert "round 1: published" in held.log


def test_too_few_good_updates_end_the_round_as_failed_and_nothing_is_published(
    tmp_path: Path, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    del world
    home = simulators.make_coordinator(tmp_path, minimum_nodes=2, clip=CLIP)
    simulators.enrol(home, 1, 2)
    attack, _ = ATTACKS["a NaN"]

    simulators.hold_rounds(monkeypatch, home, SimulatedGrid({1: honest(1), 2: attack}))

    (round_,) = Store(home.database).rounds()
    assert (round_.state, round_.version) == ("failed", None)
    assert round_.detail == "1 of at least 2 updates were accepted"
    assert publish.versions(home) == [1]
    assert publish.current_release(home).manifest.version == 1
    assert [entry["what"] for entry in Ledger(home.ledger_file).entries()] == ["published"]


def test_the_same_two_nodes_would_have_published_if_both_were_honest(
    tmp_path: Path, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    del world
    home = simulators.make_coordinator(tmp_path, minimum_nodes=2, clip=CLIP)
    simulators.enrol(home, 1, 2)

    simulators.hold_rounds(monkeypatch, home, SimulatedGrid({1: honest(1), 2: honest(2)}))

    assert Store(home.database).rounds()[0].state == "published"


@pytest.mark.parametrize("attack", ["a NaN", "an infinity"])
def test_without_admission_it_would_reach_the_gate_and_the_gate_refuses_it(
    tmp_path: Path, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    del world
    home = simulators.make_coordinator(tmp_path, minimum_nodes=2, clip=CLIP)
    simulators.enrol(home, 1, 2)

    def admit_all(update: Update, _terms: object, *, has_answered: bool) -> Accepted:
        assert not has_answered
        return Accepted(update, 0.0)

    monkeypatch.setattr(rounds, "admit", admit_all)
    simulators.hold_rounds(monkeypatch, home, SimulatedGrid({1: honest(1), 2: ATTACKS[attack][0]}))

    (round_,) = Store(home.database).rounds()
    assert (round_.state, round_.detail) == ("refused", "the body holds numbers that are not finite")
    assert publish.versions(home) == [1]


def test_without_admission_a_huge_update_would_reach_the_gate_and_the_gate_refuses_it(
    tmp_path: Path, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    del world
    home = simulators.make_coordinator(tmp_path, minimum_nodes=2, clip=CLIP)
    simulators.enrol(home, 1, 2)
    monkeypatch.setattr(rounds, "admit", lambda update, _terms, *, has_answered: Accepted(update, float(has_answered)))

    simulators.hold_rounds(monkeypatch, home, SimulatedGrid({1: honest(1), 2: with_delta(lambda delta: delta.__imul__(1e5))}))

    (round_,) = Store(home.database).rounds()
    assert round_.state == "refused"
    assert publish.versions(home) == [1]
