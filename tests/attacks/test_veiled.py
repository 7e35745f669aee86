"""Attacks by members on a veiled round, and what each of the two ways of holding rounds can refuse: a table, each row a test.

Seven members; number 4 attacks, and does all else as an honest node would. The coordinator sees masks and can check an
envelope, whose it is, and its turn. What it cannot see, it can only throw away with the whole sum, or not at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from coordinator import publish, veiled
from coordinator.aggregate import Doubles
from coordinator.asking import ThisRound
from coordinator.store import Store
from edge_node import keys
from export.signing import VerifiedRelease
from models import masking, wire
from models.masking import Words
from models.update import Answered, Asked, Assignment, Declined, Flat, Layout, Part, VeiledPart
from tests import simulators
from tests.simulators import CoordinatorHome, SimulatedGrid, VeiledNode, hold_rounds

pytestmark = pytest.mark.slow

CLIP: Final = 0.05
LIAR: Final = 4
SEEDS: Final = 3

Rng = np.random.Generator
Lie = Callable[[VeiledPart, Rng], Answered | RecordDict | None]


@dataclass(slots=True)
class Liar:
    """A member that is honest but for what it makes of one part."""

    node: VeiledNode
    part: str
    lie: Lie
    seed: int

    def __call__(self, message: Message) -> Message | None:
        honest = self.node.answer(wire.unpack_asked(message.content))
        if not isinstance(honest, VeiledPart) or honest.part != self.part:
            return Message(wire.pack_answer(honest), reply_to=message)
        said = self.lie(honest, np.random.default_rng(self.seed))
        if said is None:
            return None
        if isinstance(said, VeiledPart) and said.signature == honest.signature and said is not honest:
            said = self.signed(said)
        return Message(said if isinstance(said, RecordDict) else wire.pack_answer(said), reply_to=message)

    def signed(self, part: VeiledPart) -> VeiledPart:
        return replace(part, signature=keys.enrolled_key(self.node.home).sign(part.statement))


def payload(change: Callable[[bytes, Rng], bytes]) -> Lie:
    return lambda part, rng: replace(part, payload=change(part.payload, rng))


def field(**changes: object) -> Lie:
    return lambda part, _rng: replace(part, **changes)  # type: ignore[arg-type]


def flipped(raw: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(raw)))
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def with_surplus(part: VeiledPart, _rng: Rng) -> RecordDict:
    record = wire.pack_answer(part)
    record["more"] = ConfigRecord({"weight": 1000})
    return record


def with_claim(part: VeiledPart, _rng: Rng) -> RecordDict:
    record = wire.pack_answer(part)
    header = record["header"]
    assert isinstance(header, ConfigRecord)
    header["works"] = 1000
    return record


def forged(part: VeiledPart, rng: Rng) -> RecordDict:
    return wire.pack_answer(replace(part, signature=rng.bytes(64)))


OTHER: Final[dict[Part, Part]] = {
    "ready": "shares",
    "advert": "boxes",
    "boxes": "advert",
    "masked": "shares",
    "shares": "masked",
}
ENVELOPES: Final[dict[str, tuple[Lie, str]]] = {
    "a signature that is none": (forged, "signature"),
    "another federation's": (field(federation="others"), "another-round"),
    "another round's": (field(round=2), "another-round"),
    "another policy's": (field(policy="0" * 64), "another-policy"),
    "too long": (payload(lambda raw, _: raw + bytes(2**21)), "too-large"),
    "what was not asked for": (
        lambda part, _: replace(part, part=OTHER[part.part], payload=b""),
        "another-step",
    ),
    "a surplus record": (with_surplus, "not-an-update"),
    "a claimed number of works": (with_claim, "not-an-update"),
    "junk": (lambda _part, _rng: RecordDict({"junk": ConfigRecord({"a": 1})}), "not-an-update"),
    "that it takes no part": (lambda part, _: Declined(part.round, "budget-spent"), "budget-spent"),
    "a refusal": (field(part="refused", payload=b"norm-too-large"), "veil-refused"),
    "a long refusal": (field(part="refused", payload=b"x" * 101), "too-large"),
    "silence": (lambda _part, _rng: None, "no-answer"),
}
"""What can be wrong with any part, and what the coordinator calls it."""

FORMS: Final[dict[tuple[str, str], tuple[Lie, str]]] = {
    ("advert", "cut short"): (payload(lambda raw, _: raw[:-1]), "payload"),
    ("advert", "of another node"): (payload(lambda raw, _: (5).to_bytes(8, "big") + raw[8:]), "payload"),
    ("advert", "changed after it was signed"): (payload(flipped), "payload"),
    ("boxes", "one too few"): (payload(lambda raw, _: raw[98:]), "payload"),
    ("boxes", "in another order"): (payload(lambda raw, _: raw[98:] + raw[:98]), "payload"),
    ("boxes", "one to itself"): (payload(lambda raw, _: raw[:8] + (LIAR).to_bytes(8, "big") + raw[16:]), "payload"),
    ("boxes", "from another"): (payload(lambda raw, _: (5).to_bytes(8, "big") + raw[8:]), "payload"),
    ("masked", "a number too few"): (payload(lambda raw, _: raw[:-4]), "payload"),
    ("masked", "another's"): (payload(lambda raw, _: raw[:32] + (5).to_bytes(8, "big") + raw[40:]), "payload"),
    ("masked", "of another list"): (payload(lambda raw, rng: rng.bytes(32) + raw[32:]), "payload"),
    ("shares", "to another request"): (payload(lambda raw, rng: rng.bytes(32) + raw[32:]), "payload"),
    ("shares", "of another"): (payload(lambda raw, _: raw[:32] + (5).to_bytes(8, "big") + raw[40:]), "payload"),
    ("shares", "one too few"): (payload(lambda raw, _: raw[:41] + bytes([raw[41] - 1]) + raw[42:-33]), "payload"),
    ("shares", "beyond the field"): (payload(lambda raw, _: raw[:-33] + b"\xff" * 33), "payload"),
}
"""What can be wrong with one kind of part."""

ROWS = [(part, name, *lie) for part in ("ready", "advert", "boxes", "masked", "shares") for name, lie in ENVELOPES.items()]
ROWS += [(part, name, *lie) for (part, name), lie in FORMS.items()]


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    del world
    return simulators.make_coordinator(
        tmp_path / "hub", visibility="veiled", minimum_nodes=5, clip=CLIP, deadline_s=400.0, gather_timeout_s=5.0
    )


@pytest.fixture
def nodes(hub: CoordinatorHome, tmp_path: Path) -> dict[int, VeiledNode]:
    return simulators.veiled_nodes(hub, tmp_path / "nodes", 7)


def counted(hub: CoordinatorHome) -> list[int]:
    return [answer.node_id for answer in Store(hub.database).answers(1) if answer.accepted]


@pytest.mark.parametrize(("part", "name", "lie", "reason"), ROWS, ids=[f"{part}: {name}" for part, name, _, _ in ROWS])
def test_what_the_coordinator_can_see_of_one_part_costs_its_sender_alone(
    hub: CoordinatorHome,
    nodes: dict[int, VeiledNode],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    name: str,
    lie: Lie,
    reason: str,
) -> None:
    seed = sum(map(ord, part + name)) % 1000
    grid = SimulatedGrid({**nodes, LIAR: Liar(nodes[LIAR], part, lie, seed)})

    hold_rounds(monkeypatch, hub, grid)

    (round_,) = Store(hub.database).rounds()
    honest = [number for number in nodes if number != LIAR]
    assert round_.state == "published", round_.detail
    # Whoever has delivered is in the sum; others' shares make up for what it keeps back then.
    assert counted(hub) == (list(nodes) if part == "shares" else honest)
    assert {a.node_id: a.reason for a in Store(hub.database).answers(1) if not a.accepted} == (
        {} if part == "shares" else {LIAR: reason}
    )


def test_a_member_who_is_honest_throughout_is_counted(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same liar, who changes nothing."""
    hold_rounds(monkeypatch, hub, SimulatedGrid({**nodes, LIAR: Liar(nodes[LIAR], "masked", lambda part, _: part, 0)}))

    assert counted(hub) == list(nodes)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_wrong_shares_are_found_out_and_others_taken(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    def wrong(raw: bytes, rng: Rng) -> bytes:
        at = 42 + 33 * int(rng.integers(7)) + int(rng.integers(1, 33))
        return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]

    hold_rounds(monkeypatch, hub, SimulatedGrid({**nodes, LIAR: Liar(nodes[LIAR], "shares", payload(wrong), seed)}))

    assert Store(hub.database).rounds()[0].state == "published"
    assert counted(hub) == list(nodes)


def test_a_box_that_cannot_be_opened_costs_the_round_and_unmasks_nobody(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nodes deliver only to a list that all hold: they say whose box it was, and stop."""
    spoilt = payload(lambda raw, _: b"".join(raw[at : at + 97] + bytes([raw[at + 97] ^ 1]) for at in range(0, len(raw), 98)))

    hold_rounds(monkeypatch, hub, SimulatedGrid({**nodes, LIAR: Liar(nodes[LIAR], "boxes", spoilt, 0)}))

    assert Store(hub.database).rounds()[0].state == "failed"
    assert publish.versions(hub) == [1]
    assert caplog.text.count("does not go on: b'box-sealed-otherwise 4'") == 6
    reasons = {answer.node_id: answer.reason for answer in Store(hub.database).answers(1)}
    assert {number for number, reason in reasons.items() if reason == "veil-refused"} == {1, 2, 3, 5, 6, 7}


# --- What no part shows --------------------------------------------------------------------------------------------------


def encoding(monkeypatch: pytest.MonkeyPatch, change: Callable[[Words, float, int], Words]) -> None:
    """Have the liar leave its own bound out."""
    encode = masking.encode

    def lying(delta: Flat, clip: float, count: int, rounding: Rng) -> Words:
        words = encode(delta, clip, count, rounding)
        return change(words, clip, count) if np.array_equal(delta, simulators.movement(LIAR)) else words

    monkeypatch.setattr(masking, "encode", lying)


def encoded(numbers: Flat, clip: float, count: int) -> Words:
    step = masking.resolution(clip, count)
    return np.rint(numbers.astype(np.float64) / step).astype(np.int64).astype(np.uint32)


def times(clips: int) -> Callable[[Words, float, int], Words]:
    long = simulators.movement(LIAR, length=clips * CLIP)
    return lambda _words, clip, count: encoded(long, clip, count)


@pytest.mark.parametrize(
    "change",
    [
        times(8),
        times(1000),
        lambda words, _clip, _count: np.random.default_rng(0).integers(2**32, size=words.size, dtype=np.uint32),
    ],
    ids=["8 clips", "1000 clips", "random words"],
)
def test_what_is_beyond_all_clips_together_is_thrown_away_with_the_sum(
    hub: CoordinatorHome,
    nodes: dict[int, VeiledNode],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Words, float, int], Words],
) -> None:
    encoding(monkeypatch, change)

    hold_rounds(monkeypatch, hub, SimulatedGrid(nodes))

    (round_,) = Store(hub.database).rounds()
    assert (round_.state, round_.detail) == ("refused", "the sum of the updates cannot be used: sum-too-large")
    assert publish.versions(hub) == [1]


def test_a_norm_beyond_one_clip_and_within_all_is_not_seen(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The price of a veil, said in the policy: an open round refuses the very same."""
    sums: list[float] = []
    mean = veiled.mean

    def measured(this: ThisRound, layout: Layout) -> Doubles:
        found = mean(this, layout)
        sums.append(float(np.linalg.norm(found)) * 7)
        return found * 1e-3  # what the gate thinks of it is another test's

    monkeypatch.setattr(veiled, "mean", measured)
    long = simulators.movement(LIAR, length=5 * CLIP)
    encoding(monkeypatch, lambda _words, clip, count: encoded(long, clip, count))

    hold_rounds(monkeypatch, hub, SimulatedGrid(nodes))

    assert counted(hub) == list(nodes)
    assert sums[0] == pytest.approx(5 * CLIP, rel=0.05)


def test_numbers_that_are_none_cannot_be_said_under_masks(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every word is a number: what a liar writes for NaN is one, and the sum is finite."""
    found: list[bool] = []
    mean = veiled.mean

    def looked_at(this: ThisRound, layout: Layout) -> Doubles:
        summed = mean(this, layout)
        found.append(bool(np.isfinite(summed).all()))
        return summed

    monkeypatch.setattr(veiled, "mean", looked_at)
    encoding(monkeypatch, lambda words, _clip, _count: np.where(np.arange(words.size) == 0, np.uint32(0x7FC00000 >> 8), words))

    hold_rounds(monkeypatch, hub, SimulatedGrid(nodes))

    assert found == [True]


def test_an_open_update_has_no_place_in_a_veiled_round(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_the_open(message: Message) -> Message:
        asked: Asked = wire.unpack_asked(message.content)
        assert isinstance(asked, Assignment)
        signer = simulators.credentials("key-4")
        return Message(wire.pack_answer(simulators.update_for(asked, simulators.movement(4), signer)), reply_to=message)

    hold_rounds(monkeypatch, hub, SimulatedGrid({**nodes, LIAR: in_the_open}))

    assert {a.node_id: a.reason for a in Store(hub.database).answers(1) if not a.accepted} == {LIAR: "not-an-update"}
    assert Store(hub.database).rounds()[0].state == "published"
