"""Attacks by members and strangers on a round: one federation, one honest majority, and every kind of bad reply at once.

All of them go through the real round loop; only Flower's transport is a simulator. Each attacker sends what an honest node
would, but for one thing.
"""

import logging
import re
import struct
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
from models import compression, privacy, wire
from models.update import Assignment, Declined, Flat, Update
from tests import simulators
from tests.simulators import Answers, CoordinatorHome, Credentials, Objects, SimulatedGrid, honest, movement

CLIP: Final = 0.05
SEEDS: Final = 5
PRIVATE_PATH: Final = "/home/artist/private/portrait-of-anna.png"
HONEST: Final = (1, 2, 3)
STRANGER: Final = 99
LAYOUT: Final = simulators.body_layout()

Rng = np.random.Generator
Attack = Callable[[Assignment, Credentials, Rng], Update | RecordDict | Objects | Message | None]
"""What an attacker answers to an assignment, with his own enrolled key and his own dice."""


def node(attack: Attack, seed: int) -> Answers:
    """An attacker's node."""

    def answer(message: Message) -> Message | Objects | None:
        me = simulators.credentials(f"key-{message.metadata.dst_node_id}")
        said = attack(wire.unpack_assignment(message.content), me, np.random.default_rng(seed))
        if said is None or isinstance(said, Objects):
            return said
        if isinstance(said, Message):
            said.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
            return said
        return Message(said if isinstance(said, RecordDict) else wire.pack_answer(said), reply_to=message)

    return answer


def honest_update(assignment: Assignment, me: Credentials, rng: Rng, **changes: Any) -> Update:
    """What an honest node would send, but for changes made before it is signed."""
    return simulators.update_for(assignment, movement(int(rng.integers(1000))), me, **changes)


def saying(change: Callable[[Assignment, Rng], dict[str, Any]]) -> Attack:
    """An update that is honest but for some fields, and signed as it is."""
    return lambda assignment, me, rng: honest_update(assignment, me, rng, **change(assignment, rng))


def sending(change: Callable[[bytes, Rng], bytes]) -> Attack:
    """An update whose payload is honest but for one change, signed as it is."""
    return lambda a, me, rng: honest_update(a, me, rng, payload=change(honest_update(a, me, rng).payload, rng))


def after_signing(change: Callable[[Update, Rng], Update]) -> Attack:
    """An update that was changed after it was signed."""
    return lambda assignment, me, rng: change(honest_update(assignment, me, rng), rng)


def hand_made(change: Callable[[dict[str, Array], dict[str, Any], Rng], object]) -> Attack:
    """A record that is honest but for one change; what ``change`` returns are surplus records."""

    def answer(assignment: Assignment, me: Credentials, rng: Rng) -> RecordDict:
        record = wire.pack_answer(honest_update(assignment, me, rng))
        arrays, header = dict(record.array_records["arrays"]), dict(record.config_records["header"])
        surplus = change(arrays, header, rng)
        return simulators.record_of(arrays, header, **(surplus if isinstance(surplus, dict) else {}))

    return answer


def with_field(name: str, *values: object) -> Attack:
    return hand_made(lambda _arrays, header, rng: header.update({name: values[int(rng.integers(len(values)))]}))


def with_array(make: Callable[[Rng], Array]) -> Attack:
    return hand_made(lambda arrays, _header, rng: arrays.update({"flat": make(rng)}))


def taken_apart(change: Callable[[Objects, Rng], Objects]) -> Attack:
    """Honest objects but for one change, which no program of ours would have put together."""

    def answer(assignment: Assignment, me: Credentials, rng: Rng) -> Objects:
        asked = Message(wire.pack_assignment(assignment), dst_node_id=1, message_type="train")
        asked.metadata.__dict__["_message_id"] = "asked"
        return change(Objects.of(Message(wire.pack_answer(honest_update(assignment, me, rng)), reply_to=asked)), rng)

    return answer


def without_content(objects: Objects, _rng: Rng) -> Objects:
    return objects.changed(Message, lambda content: re.sub(rb"^Message \S+ ", b"Message  ", content))


def with_another_content(objects: Objects, _rng: Rng) -> Objects:
    """Its arrays where a record of records should be."""
    old, new = objects.name_of(RecordDict).encode(), objects.name_of(ArrayRecord).encode()
    return objects.changed(Message, lambda content: content.replace(old, new))


def with_junk(objects: Objects, rng: Rng) -> Objects:
    return objects.changed(RecordDict, lambda content: content.partition(b"\0")[0] + b"\0{" + rng.bytes(9))


def with_a_shape_of_words(objects: Objects, _rng: Rng) -> Objects:
    return objects.changed(Array, lambda content: content.replace(b'"shape": [', b'"shape": ["many", '))


def blown_up(objects: Objects, _rng: Rng) -> Objects:
    """One chunk, named so often that a kilobyte of numbers asks for 65 megabytes."""
    once = len(objects.contents[objects.name_of(ArrayChunk)])
    often = b", ".join([b"0"] * (65 * 2**20 // once))
    return objects.changed(Array, lambda content: content.replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": [%b]' % often))


# --- Payloads by hand: magic, count, bytes of gaps; gaps, levels, scales --------------------------------------------------


def head(payload: bytes) -> tuple[int, int]:
    count, gap_bytes = struct.unpack_from("<II", payload, 4)
    return count, gap_bytes


def with_head(payload: bytes, count: int, gap_bytes: int) -> bytes:
    return payload[:4] + struct.pack("<II", count % 2**32, gap_bytes % 2**32) + payload[12:]


def with_scale(payload: bytes, value: float, rng: Rng) -> bytes:
    count, gap_bytes = head(payload)
    first = 12 + gap_bytes + count
    at = first + 4 * int(rng.integers((len(payload) - first) // 4))
    return payload[:at] + struct.pack("<f", value) + payload[at + 4 :]


def with_scales_times(payload: bytes, factor: float) -> bytes:
    count, gap_bytes = head(payload)
    first = 12 + gap_bytes + count
    return payload[:first] + (np.frombuffer(payload, "<f4", offset=first) * np.float32(factor)).astype("<f4").tobytes()


def with_level(payload: bytes, value: int, rng: Rng) -> bytes:
    count, gap_bytes = head(payload)
    at = 12 + gap_bytes + int(rng.integers(count))
    return payload[:at] + struct.pack("b", value) + payload[at + 1 :]


def with_gap(payload: bytes, rng: Rng) -> bytes:
    _, gap_bytes = head(payload)
    at = 12 + int(rng.integers(gap_bytes))
    return payload[:at] + bytes([int(rng.integers(1, 255))]) + payload[at + 1 :]


def halved_scales(payload: bytes, _rng: Rng) -> bytes:
    """The same numbers as a payload of other bytes: scales doubled, levels halved."""
    count, gap_bytes = head(payload)
    levels = np.frombuffer(payload, np.int8, count, 12 + gap_bytes) // 2
    levels[levels == 0] = 1
    return with_scales_times(payload[: 12 + gap_bytes] + levels.tobytes() + payload[12 + gap_bytes + count :], 2.0)


def cut(payload: bytes, rng: Rng) -> bytes:
    return payload[: int(rng.integers(len(payload)))]


def longer(payload: bytes, rng: Rng) -> bytes:
    return payload + rng.bytes(int(rng.integers(1, 9)))


TOO_LONG: Final = 2 * compression.max_bytes(LAYOUT, 1.0) + 1

ATTACKS: Final[dict[str, tuple[Attack, str]]] = {
    # Who signed.
    "somebody else's signature": (
        lambda a, _me, rng: honest_update(a, simulators.credentials("key-1"), rng),
        "signature",
    ),
    "no signature": (after_signing(lambda u, _: replace(u, signature=bytes(64))), "signature"),
    "a signature of random bytes": (after_signing(lambda u, rng: replace(u, signature=rng.bytes(64))), "signature"),
    "another payload than was signed": (after_signing(lambda u, rng: replace(u, payload=longer(u.payload, rng))), "signature"),
    "other steps than were signed": (after_signing(lambda u, _: replace(u, steps=1)), "signature"),
    "another loss than was signed": (after_signing(lambda u, _: replace(u, loss_after=0.0)), "signature"),
    "a signature over another thing": (
        lambda a, me, rng: replace(honest_update(a, me, rng), signature=me.enrolled.sign(b"sfumato request v1\n")),
        "signature",
    ),
    # When, and under what.
    "yesterday's round": (saying(lambda a, _: {"round": a.round - 1}), "another-round"),
    "tomorrow's round": (saying(lambda a, rng: {"round": a.round + int(rng.integers(1, 2**40))}), "another-round"),
    "another federation's round": (saying(lambda _a, _r: {"federation": "others"}), "another-round"),
    "another policy": (saying(lambda _a, rng: {"policy": rng.bytes(32).hex()}), "another-policy"),
    "no steps": (saying(lambda _a, _r: {"steps": 0}), "too-many-steps"),
    "fewer than no steps": (saying(lambda _a, rng: {"steps": -int(rng.integers(1, 2**40))}), "too-many-steps"),
    "more steps than were asked for": (saying(lambda _a, rng: {"steps": 3 + int(rng.integers(2**40))}), "too-many-steps"),
    # Of what.
    "another layout's digest": (saying(lambda _a, rng: {"layout_digest": rng.bytes(32).hex()}), "another-layout"),
    "an unknown tensor": (saying(lambda _a, _r: {"tensors": (*LAYOUT.names[:-1], "back.door")}), "unknown-tensor"),
    "tensors in another order": (saying(lambda _a, _r: {"tensors": LAYOUT.names[::-1]}), "unknown-tensor"),
    "a tensor too few": (saying(lambda _a, _r: {"tensors": LAYOUT.names[:-1]}), "unknown-tensor"),
    "a tensor twice": (saying(lambda _a, _r: {"tensors": (*LAYOUT.names, LAYOUT.names[0])}), "unknown-tensor"),
    "a private tensor": (saying(lambda _a, _r: {"tensors": (*LAYOUT.names[:-1], "codes")}), "private-tensor"),
    "private statistics": (saying(lambda _a, _r: {"tensors": (*LAYOUT.names, "norm_mean")}), "private-tensor"),
    # How long.
    "a payload without end": (sending(lambda _p, rng: rng.bytes(TOO_LONG)), "too-large"),
    "a huge norm": (sending(lambda p, _: with_scales_times(p, 1e6)), "norm-too-large"),
    "a norm a thousandth too large": (
        saying(lambda _a, rng: {"payload": payload_of(movement(int(rng.integers(99)), CLIP * 1.001))}),
        "norm-too-large",
    ),
    # In what form.
    "no payload": (sending(lambda _p, _r: b""), "payload"),
    "random bytes": (sending(lambda _p, rng: rng.bytes(200)), "payload"),
    "a payload cut short": (sending(cut), "payload"),
    "a payload that goes on": (sending(longer), "payload"),
    "another magic": (sending(lambda p, rng: rng.bytes(4) + p[4:]), "payload"),
    "another form's version": (sending(lambda p, _: b"SFC1" + p[4:]), "payload"),
    "a count of billions": (sending(lambda p, rng: with_head(p, 2**31 + int(rng.integers(99)), head(p)[1])), "payload"),
    "one number too few": (sending(lambda p, _: with_head(p, head(p)[0] - 1, head(p)[1])), "payload"),
    "one number too many": (sending(lambda p, _: with_head(p, head(p)[0] + 1, head(p)[1])), "payload"),
    "gaps of billions": (sending(lambda p, rng: with_head(p, head(p)[0], 2**31 + int(rng.integers(99)))), "payload"),
    "numbers beyond the end": (sending(with_gap), "payload"),
    "a scale that is NaN": (sending(lambda p, rng: with_scale(p, float("nan"), rng)), "payload"),
    "a scale that is infinite": (sending(lambda p, rng: with_scale(p, float("inf"), rng)), "payload"),
    "a scale below zero": (sending(lambda p, rng: with_scale(p, -1e-6, rng)), "payload"),
    "a scale of zero": (sending(lambda p, rng: with_scale(p, 0.0, rng)), "payload"),
    "a scale too small for float32": (sending(lambda p, rng: with_scale(p, 1e-42, rng)), "payload"),
    "a scale as large as float32 has": (sending(lambda p, rng: with_scale(p, 3e38, rng)), "norm-too-large"),
    "a level of -128": (sending(lambda p, rng: with_level(p, -128, rng)), "payload"),
    "a level of nothing": (sending(lambda p, rng: with_level(p, 0, rng)), "payload"),
    "the same numbers in other bytes": (sending(halved_scales), "payload"),
    # On what way.
    "a claimed weight": (with_field("num-examples", 1_000_000, -2, 1e9), "not-an-update"),
    "a surplus text": (with_field("title", "portrait of Anna"), "not-an-update"),
    "a surplus record": (hand_made(lambda _a, _h, _r: {"metrics": ConfigRecord({"weight": 9})}), "not-an-update"),
    "a surplus record of arrays": (
        hand_made(lambda arrays, _h, _r: {"codes": ArrayRecord({"code": arrays["flat"]})}),
        "not-an-update",
    ),
    "a missing field": (hand_made(lambda _a, header, _r: header.pop("steps")), "not-an-update"),
    "another version": (with_field("version", 1, 3, 2**60), "not-an-update"),
    "a field of another type": (with_field("round", "1", 1.0, b"1"), "not-an-update"),
    "a loss that is NaN": (with_field("loss-after", float("nan"), float("inf"), float("-inf")), "not-an-update"),
    "a signature of another length": (with_field("signature", b"", b"s" * 63, b"s" * 10_000), "not-an-update"),
    "numbers in the place of bytes": (with_array(lambda _: Array(np.zeros(LAYOUT.size, np.float32))), "not-an-update"),
    "two dimensions": (with_array(lambda _: Array(np.zeros((1, 100), np.uint8))), "not-an-update"),
    "two arrays": (hand_made(lambda arrays, _h, _r: arrays.update({"second": arrays["flat"]})), "not-an-update"),
    "no array": (hand_made(lambda arrays, _h, _r: arrays.clear()), "not-an-update"),
    "bytes that are no array": (
        with_array(lambda rng: Array("uint8", (9,), "numpy.ndarray", b"\x93NUMPY" + rng.bytes(9))),
        "not-an-update",
    ),
    "a pickle": (
        with_array(lambda _: Array("uint8", (9,), "numpy.ndarray", b"\x80\x04cos\nsystem\n(S'true'\ntR.")),
        "not-an-update",
    ),
    "a bomb": (with_array(lambda _: Array("uint8", (2,), "numpy.ndarray", bytes(1_000_000))), "not-an-update"),
    "junk where records should be": (taken_apart(with_junk), "not-an-update"),
    "neither content nor error": (taken_apart(without_content), "not-an-update"),
    "arrays where records should be": (taken_apart(with_another_content), "not-an-update"),
    "a shape of words": (taken_apart(with_a_shape_of_words), "not-an-update"),
    "a chunk that is named too often": (taken_apart(blown_up), "not-an-update"),
    "something else": (lambda _a, _me, _r: simulators.record_of({}, {"what": "ever"}), "not-an-update"),
    "a refusal for a reason of its own": (
        lambda a, _me, _r: RecordDict({"header": ConfigRecord({"version": 2, "round": a.round, "declined": PRIVATE_PATH})}),
        "not-an-update",
    ),
    "a refusal of another round": (lambda a, _me, _r: wire.pack_answer(Declined(a.round + 1, "no-consent")), "another-round"),
    "nothing": (lambda _a, _me, _r: None, "no-answer"),
}
COSTLY: Final = frozenset({"a chunk that is named too often"})
"""Attacks that are made once: their bytes are many."""


def payload_of(delta: Flat) -> bytes:
    return compression.compress(delta, LAYOUT, 1.0, 1e9, np.random.default_rng(0))


def in_words_only(message: Message) -> Message:
    return Message(Error(code=8, reason=f"cannot read {PRIVATE_PATH}"), reply_to=message)


NODES: Final = {
    (name, seed): 100 + SEEDS * number + seed
    for number, name in enumerate(ATTACKS)
    for seed in range(1 if name in COSTLY else SEEDS)
}
IN_WORDS: Final = 98


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
            tmp_path_factory.mktemp("hub"), minimum_nodes=len(HONEST), clip=CLIP, deadline_s=5.0, fit_steps=1
        )
        nodes: dict[int, Answers] = {number: honest(number) for number in HONEST}
        nodes |= {number: node(ATTACKS[name][0], seed) for (name, seed), number in NODES.items()}
        nodes[IN_WORDS] = in_words_only
        simulators.enrol(home, *nodes)
        grid = SimulatedGrid({**nodes, STRANGER: honest(STRANGER)})
        log = logging.getLogger("coordinator")
        patch.setattr(log, "handlers", [listener])
        level = log.level
        log.setLevel(logging.DEBUG)  # and not the attribute: loggers below remember what they may say
        simulators.hold_rounds(patch, home, grid)
        log.setLevel(level)
        answers = {answer.node_id: answer for answer in Store(home.database).answers(1)}
        yield Held(home, grid, answers, "\n".join(records))


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_refused_with_its_reason_whatever_the_dice_say(held: Held, attack: str) -> None:
    answers = [held.answers[number] for (name, _), number in NODES.items() if name == attack]

    assert answers
    for answer in answers:
        assert (answer.accepted, answer.reason) == (False, ATTACKS[attack][1])
        assert (answer.norm, answer.loss_before, answer.loss_after, answer.steps, answer.sha256) == (None,) * 5


def test_an_error_in_words_is_taken_for_a_failure(held: Held) -> None:
    assert (held.answers[IN_WORDS].accepted, held.answers[IN_WORDS].reason) == (False, "node-failed")


def test_there_are_as_many_attacks_as_were_promised() -> None:
    assert len(ATTACKS) >= 60
    assert len(NODES) >= 300


@pytest.mark.parametrize("number", HONEST)
def test_an_honest_update_among_them_is_accepted(held: Held, number: int) -> None:
    answer = held.answers[number]

    assert (answer.accepted, answer.reason, answer.steps) == (True, "", 2)
    assert answer.norm == pytest.approx(1e-3, rel=1e-3)
    assert answer.bytes > 1.5 * LAYOUT.size  # every number is sent, and where it stands


def test_the_round_goes_on_with_the_honest_ones_and_publishes(held: Held) -> None:
    (round_,) = Store(held.home.database).rounds()
    published = publish.current_release(held.home)

    assert (round_.state, round_.version, published.manifest.version) == ("published", 2, 2)
    assert published.manifest.contributors == len(HONEST)


def test_only_the_honest_updates_moved_the_body(held: Held) -> None:
    before, after = (simulators.body_layout().flatten(release.body_of(publish.open_release(held.home, v))) for v in (1, 2))
    mean = np.mean([movement(number) for number in HONEST], axis=0)

    # Eight bits a number: half of one step of the largest number of its channel, at most.
    np.testing.assert_allclose(after - before, mean, atol=np.abs(mean).max() / 64)
    assert privacy.norm(after - before) > 0


def test_a_node_that_is_no_member_is_sent_nothing_and_asked_nothing(held: Held) -> None:
    assert {message.metadata.dst_node_id for message in held.grid.pushed} == {*HONEST, *NODES.values(), IN_WORDS}
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
    attack, _ = ATTACKS["a huge norm"]

    simulators.hold_rounds(monkeypatch, home, SimulatedGrid({1: honest(1), 2: node(attack, 0)}))

    (round_,) = Store(home.database).rounds()
    assert (round_.state, round_.version) == ("failed", None)
    assert round_.detail == "1 of at least 2 updates were accepted"
    assert publish.versions(home) == [1]
    assert publish.current_release(home).manifest.version == 1
    assert [entry["what"] for entry in Ledger(home.ledger_file).entries()][-1] == "round"


def test_the_same_two_nodes_would_have_published_if_both_were_honest(
    tmp_path: Path, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    del world
    home = simulators.make_coordinator(tmp_path, minimum_nodes=2, clip=CLIP)
    simulators.enrol(home, 1, 2)

    simulators.hold_rounds(monkeypatch, home, SimulatedGrid({1: honest(1), 2: honest(2)}))

    assert Store(home.database).rounds()[0].state == "published"


def test_without_admission_numbers_that_are_none_would_reach_the_gate_and_the_gate_refuses_them(
    tmp_path: Path, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    del world
    home = simulators.make_coordinator(tmp_path, minimum_nodes=2, clip=CLIP)
    simulators.enrol(home, 1, 2)
    spoilt = np.full(LAYOUT.size, np.nan, np.float32)
    monkeypatch.setattr(rounds, "admit", lambda *_, **__: Accepted(spoilt, 0.0))
    monkeypatch.setattr(compression, "decompress", lambda *_: spoilt)

    simulators.hold_rounds(monkeypatch, home, SimulatedGrid({1: honest(1), 2: honest(2)}))

    (round_,) = Store(home.database).rounds()
    assert (round_.state, round_.detail) == ("refused", "the body holds numbers that are not finite")
    assert publish.versions(home) == [1]


def test_without_admission_a_huge_update_would_reach_the_gate_and_the_gate_refuses_it(
    tmp_path: Path, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    del world
    home = simulators.make_coordinator(tmp_path, minimum_nodes=2, clip=CLIP)
    simulators.enrol(home, 1, 2)
    monkeypatch.setattr(rounds, "admit", lambda *_, **__: Accepted(movement(1), 0.0))
    huge = node(sending(lambda payload, _: with_scales_times(payload, 1e5)), 0)

    simulators.hold_rounds(monkeypatch, home, SimulatedGrid({1: honest(1), 2: huge}))

    (round_,) = Store(home.database).rounds()
    assert round_.state == "refused"
    assert publish.versions(home) == [1]
