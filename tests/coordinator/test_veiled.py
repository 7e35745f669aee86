"""Veiled rounds through the real round loop: the sum is right, nothing else is seen, and whoever falls away is made up for."""

import pkgutil
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from coordinator import publish, rounds, veiled
from coordinator.store import Store
from export import release
from export.ledger import Ledger
from export.signing import VerifiedRelease
from models import masking, wire
from models.update import Asked, Assignment, Flat, VeiledStep
from tests import simulators
from tests.simulators import Clock, CoordinatorHome, Killed, SimulatedGrid, VeiledNode, hold_rounds, stumbling

CLIP = 0.05
NODES = 7


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    """A coordinator whose rounds are veiled."""
    del world
    return simulators.make_coordinator(
        tmp_path / "hub", visibility="veiled", minimum_nodes=5, clip=CLIP, deadline_s=400.0, gather_timeout_s=5.0
    )


@pytest.fixture
def nodes(hub: CoordinatorHome, tmp_path: Path) -> dict[int, VeiledNode]:
    """Seven artists."""
    return simulators.veiled_nodes(hub, tmp_path / "nodes", NODES)


@dataclass(slots=True)
class LostAt:
    """A node that is silent from a step on."""

    node: VeiledNode
    step: str
    is_gone: bool = False

    def __call__(self, message: Message) -> Message | None:
        asked = wire.unpack_asked(message.content)
        name = "training" if isinstance(asked, Assignment) else asked.step
        self.is_gone = self.is_gone or name == self.step
        return None if self.is_gone else self.node(message)


def moved(hub: CoordinatorHome) -> Flat:
    """How far the newest release's body is from the first one's."""
    layout = simulators.body_layout()
    before, after = (release.body_of(publish.open_release(hub, version)) for version in (1, publish.versions(hub)[-1]))
    return layout.flatten(after) - layout.flatten(before)


def mean_of(*seeds: int) -> Flat:
    stacked = np.stack([simulators.movement(seed) for seed in seeds]).astype(np.float64)
    return np.asarray(stacked.mean(axis=0), np.float32)


def accepted(hub: CoordinatorHome, number: int = 1) -> list[int]:
    return [answer.node_id for answer in Store(hub.database).answers(number) if answer.accepted]


def reasons(hub: CoordinatorHome, number: int = 1) -> dict[int, str]:
    return {answer.node_id: answer.reason for answer in Store(hub.database).answers(number) if not answer.accepted}


def outcome(hub: CoordinatorHome) -> str:
    return Store(hub.database).rounds()[-1].state


def test_the_body_moves_by_the_mean_of_what_the_nodes_meant(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_rounds(monkeypatch, hub, SimulatedGrid(nodes))

    assert accepted(hub) == list(nodes)
    assert outcome(hub) == "published"
    # Rounding to steps of the scale, and to float32 of a body whose numbers are around one.
    np.testing.assert_allclose(moved(hub), mean_of(*nodes), atol=3e-7)


def test_rounds_follow_each_other(hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch) -> None:
    hold_rounds(monkeypatch, hub, SimulatedGrid(nodes), count=2)

    assert [r.state for r in Store(hub.database).rounds()] == ["published", "published"]
    assert accepted(hub, 2) == list(nodes)


def test_of_one_update_nothing_is_in_what_its_node_sent(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes mean the same, and send what has nothing in common with it nor with one another."""
    nodes[2].seed = nodes[1].seed
    sent: dict[int, masking.Words] = {}
    deliver = masking.deliver

    def noting(state: masking.NodeState, encoded: masking.Words) -> tuple[masking.NodeState, masking.Masked]:
        after, masked = deliver(state, encoded)
        sent[state.node] = masked.words - encoded
        sent[-state.node] = masked.words
        return after, masked

    monkeypatch.setattr(masking, "deliver", noting)
    grid = SimulatedGrid(nodes)
    hold_rounds(monkeypatch, hub, grid)

    meant = simulators.movement(nodes[1].seed).astype(np.float64)
    for first, second in ((1, 2), (1, 3)):
        apart = (sent[-first] - sent[-second]).view(np.int32).astype(np.float64)
        assert abs(np.corrcoef(apart, meant)[0, 1]) < 5 / np.sqrt(meant.size)
    # The control: with the masks taken off, what was sent is what was meant.
    bare = (sent[-1] - sent[1]).view(np.int32).astype(np.float64)
    assert np.corrcoef(bare, meant)[0, 1] > 0.999
    for number, node in nodes.items():
        assert not simulators.shares_a_window(grid.sent[number], simulators.movement(node.seed).tobytes())
        assert simulators.shares_a_window(grid.sent[number], sent[-number].astype("<u4").tobytes())


@pytest.mark.parametrize("step", ["training", "roster", "adverts", "boxes", "request"])
def test_two_of_seven_may_be_lost_at_any_step(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    lost = {number: LostAt(nodes[number], step) for number in (2, 5)}

    hold_rounds(monkeypatch, hub, SimulatedGrid({**nodes, **lost}))

    counted = [number for number in nodes if step == "request" or number not in lost]
    assert outcome(hub) == "published"
    assert accepted(hub) == counted
    assert reasons(hub) == ({} if step == "request" else {2: "no-answer", 5: "no-answer"})
    np.testing.assert_allclose(moved(hub), mean_of(*counted), atol=3e-7)


@pytest.mark.parametrize("step", ["training", "roster", "adverts", "boxes", "request"])
def test_with_three_of_seven_lost_nobody_is_unmasked(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    lost = {number: LostAt(nodes[number], step) for number in (2, 5, 6)}
    grid = SimulatedGrid({**nodes, **lost})

    hold_rounds(monkeypatch, hub, grid)

    steps = [asked.step for asked in map(asked_in, grid.pushed) if isinstance(asked, VeiledStep)]
    assert outcome(hub) == "failed"
    assert accepted(hub) == []
    assert publish.versions(hub) == [1]
    assert ("request" in steps) == (step == "request")


def asked_in(message: Message) -> Asked:
    return wire.unpack_asked(message.content)


def test_nothing_that_could_unmask_an_update_outlives_its_round(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    mean = veiled.mean

    def looking(*arguments: Any) -> Any:
        seen.append(len(Store(hub.database).parts(1, 1, "shares")))
        return mean(*arguments)

    monkeypatch.setattr(veiled, "mean", looking)
    hold_rounds(monkeypatch, hub, SimulatedGrid(nodes))

    assert seen == [NODES]  # the control: they were there
    store = Store(hub.database)
    assert [store.parts(1, 1, part) for part in ("advert", "boxes", "masked", "shares")] == [{}, {}, {}, {}]
    assert not list(hub.rounds.glob("*/*"))


def test_the_ledgers_of_both_sides_name_the_same_bytes(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_rounds(monkeypatch, hub, SimulatedGrid(nodes))

    said = next(entry["accepted"] for entry in Ledger(hub.ledger_file).entries() if entry["what"] == "round")
    kept = {number: Ledger(node.home.ledger_file).entries()[-1] for number, node in nodes.items()}
    assert said == [f"{number} {entry['sha256']}" for number, entry in kept.items()]
    assert {(entry["peers"], entry["peers-new"]) for entry in kept.values()} == {(NODES - 1, NODES - 1)}


def test_a_sum_beyond_what_the_clip_allows_is_thrown_away_whole(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node leaves its own bound out: what it sends is ten times longer than all clips together."""
    encode = masking.encode

    def unbounded(delta: Flat, clip: float, count: int, rounding: np.random.Generator) -> masking.Words:
        words = encode(delta, clip, count, rounding)
        is_liar = np.array_equal(delta, simulators.movement(3))
        return words + np.uint32(2**24) if is_liar else words

    monkeypatch.setattr(masking, "encode", unbounded)
    hold_rounds(monkeypatch, hub, SimulatedGrid(nodes))

    (round_,) = Store(hub.database).rounds()
    assert (round_.state, round_.detail) == ("refused", "the sum of the updates cannot be used: sum-too-large")
    assert publish.versions(hub) == [1]


# --- Killed and begun again ----------------------------------------------------------------------------------------------


PLACES = (
    "coordinator.store.Store.add_part",
    "coordinator.store.Store.add_answer",
    "coordinator.store.Store.set_round",
    "coordinator.veiled.write_atomic",
    "coordinator.veiled.mean",
    "edge_node.veil._save",
    "export.ledger.Ledger.append",
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_a_process_killed_at_any_step_is_followed_by_one_that_makes_the_same_body(
    hub: CoordinatorHome, nodes: dict[int, VeiledNode], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, when: str
) -> None:
    """On either side: both are one process here, so that a kill in a node's step ends the coordinator as well."""
    calm = tmp_path / "calm"
    shutil.copytree(tmp_path / "hub", calm / "hub")
    shutil.copytree(tmp_path / "nodes", calm / "nodes")
    there = {n: VeiledNode(type(node.home)(calm / "nodes" / f"node-{n}"), node.terms, n) for n, node in nodes.items()}
    hold_rounds(monkeypatch, CoordinatorHome(calm / "hub"), SimulatedGrid(there))
    wanted = publish.current_release(CoordinatorHome(calm / "hub")).manifest.body
    owner_name, _, name = place.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    step = getattr(owner, name)
    Store(hub.database).add_job(1)
    kills = 0

    for turn in range(1, 400):
        with monkeypatch.context() as patch:
            simulators.set_clock(patch, Clock())
            patch.setattr(owner, name, stumbling(step, turn, when))
            try:
                rounds.run_rounds(SimulatedGrid(nodes), hub, hub.config())
                break
            except Killed:
                kills += 1

    assert kills >= 1
    assert outcome(hub) == "published"
    assert accepted(hub) == list(nodes)
    assert publish.current_release(hub).manifest.body == wanted
    for node in nodes.values():
        assert [entry["what"] for entry in Ledger(node.home.ledger_file).entries()].count("update") == 1
