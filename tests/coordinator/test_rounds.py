"""The round loop: whom it waits for and how long, what it writes down, and in what states it can end."""

import gc
import pkgutil
import shutil
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from coordinator import policies, publish, rounds
from coordinator.gate import Candidate, Gate
from coordinator.store import Store
from export import release, settings
from export.errors import IntegrityError, RefusedError, SfumatoError
from export.files import held
from export.ledger import Ledger
from export.signing import VerifiedRelease
from models import codecs, wire
from models.update import Arrays, Declined, DeclineReason, Flat
from tests import releases, simulators
from tests.simulators import Clock, CoordinatorHome, Killed, Objects, SimulatedGrid, hold_rounds, honest, stumbling


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    """A coordinator with two artists."""
    del world
    home = simulators.make_coordinator(tmp_path / "hub", minimum_nodes=2, clip=0.05, deadline_s=5.0, gather_timeout_s=5.0)
    simulators.enrol(home, 1, 2)
    return home


@dataclass(slots=True)
class LateGrid(SimulatedGrid):
    """A grid whose nodes come online one with each look."""

    looks: int = 0

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return list(self.nodes)[: self.looks]


def test_every_member_is_sent_the_same_assignment(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = SimulatedGrid({1: honest(1), 2: honest(2)})
    body = simulators.body_layout().flatten(release.body_of(publish.current_release(hub)))

    hold_rounds(monkeypatch, hub, grid)

    assert {message.metadata.dst_node_id for message in grid.pushed} == {1, 2}
    for message in grid.pushed:
        sent = wire.unpack_assignment(message.content)
        assert (sent.federation, sent.modality, sent.round) == ("guild", "style-studio", 1)
        assert (sent.policy, sent.layout_digest) == (policies.current(hub).digest, simulators.body_layout().digest)
        np.testing.assert_array_equal(sent.body, body)


def test_the_next_round_sends_what_the_last_one_published(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = SimulatedGrid({1: honest(1), 2: honest(2)})

    hold_rounds(monkeypatch, hub, grid, count=2)

    second = wire.unpack_assignment(grid.pushed[-1].content)
    assert [r.state for r in Store(hub.database).rounds()] == ["published", "published"]
    assert second.round == 2
    np.testing.assert_array_equal(second.body, simulators.body_layout().flatten(release.body_of(publish.open_release(hub, 2))))


def test_a_round_waits_for_members_that_come_late(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = LateGrid({1: honest(1), 2: honest(2)})

    hold_rounds(monkeypatch, hub, grid)

    assert grid.looks == 2
    assert [a.accepted for a in Store(hub.database).answers(1)] == [True, True]


def test_a_round_begins_without_those_who_stay_away_once_it_waited_long_enough(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulators.enrol(hub, 3)
    clock = Clock()
    simulators.set_clock(monkeypatch, clock)
    began = clock.now

    Store(hub.database).add_job(1)
    rounds.run_rounds(SimulatedGrid({1: honest(1), 2: honest(2)}), hub, hub.config())

    assert clock.now - began == pytest.approx(5.0)
    assert Store(hub.database).rounds()[0].state == "published"
    assert {a.node_id for a in Store(hub.database).answers(1)} == {1, 2}


def test_too_few_nodes_online_end_the_run_with_advice(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SfumatoError, match="1 of at least 2 artists' nodes were online") as caught:
        hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1)}))

    assert "sfumato up" in caught.value.advice
    (round_,) = Store(hub.database).rounds()
    assert (round_.state, round_.detail) == ("failed", "1 of at least 2 artists' nodes were online in time")


def test_galleries_are_not_asked_to_train(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    simulators.add_member(Store(hub.database), 7, "the gallery", "gallery")
    grid = SimulatedGrid({1: honest(1), 2: honest(2), 7: honest(7)})

    hold_rounds(monkeypatch, hub, grid)

    assert {message.metadata.dst_node_id for message in grid.pushed} == {1, 2}


def test_a_silent_node_costs_its_deadline_and_nothing_else(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    simulators.enrol(hub, 3)

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2), 3: lambda _message: None}))

    answers = {a.node_id: a for a in Store(hub.database).answers(1)}
    assert (answers[3].accepted, answers[3].reason, answers[3].seconds) == (False, "no-answer", 5.0)
    assert Store(hub.database).rounds()[0].state == "published"


@dataclass(slots=True)
class FlakyGrid(SimulatedGrid):
    """A grid whose node 2 is lost while it trains, so often, and is back after so many looks."""

    losses: int = 1
    looks_away: int = 3
    asked: int = 0
    looks: int = 0

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        is_away = 0 < self.asked <= self.losses and self.looks < self.looks_away
        return [node for node in self.nodes if not (is_away and node == 2)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        if any(message.metadata.dst_node_id == 2 for message in kept):
            self.asked, self.looks = self.asked + 1, 0
        return super(FlakyGrid, self).push_messages(kept)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message_id in message_ids:
            asked = self.pushed[int(message_id)]
            if asked.metadata.dst_node_id == 2 and self.asked <= self.losses:
                asked.metadata.__dict__["_message_id"] = message_id
                yield Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason="gone"), reply_to=asked)
            else:
                yield from super(FlakyGrid, self).pull_messages([message_id])


@pytest.mark.parametrize(("losses", "asked", "counts"), [(0, 1, True), (1, 2, True), (5, 6, True), (6, 6, False)])
def test_a_node_that_was_lost_while_it_trained_is_asked_again_when_it_is_back(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, losses: int, asked: int, *, counts: bool
) -> None:
    simulators.change_policy(hub, minimum_nodes=1, deadline_s=3600)
    grid = FlakyGrid({1: honest(1), 2: honest(2)}, losses=losses)

    hold_rounds(monkeypatch, hub, grid)

    answers = {a.node_id: (a.accepted, a.reason) for a in Store(hub.database).answers(1)}
    assert answers == {1: (True, ""), 2: (True, "") if counts else (False, "node-failed")}
    assert grid.asked == asked


def test_a_node_that_does_not_come_back_costs_four_minutes(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    simulators.change_policy(hub, minimum_nodes=1, deadline_s=3600)
    clock = Clock()
    simulators.set_clock(monkeypatch, clock)
    Store(hub.database).add_job(1)
    began = clock.now

    rounds.run_rounds(FlakyGrid({1: honest(1), 2: honest(2)}, losses=9, looks_away=10**6), hub, hub.config())

    assert 240 < clock.now - began < 245
    assert {a.node_id: a.reason for a in Store(hub.database).answers(1)} == {1: "", 2: "node-failed"}
    assert Store(hub.database).rounds()[0].state == "published"


def test_a_reply_that_came_in_time_counts_however_late_it_is_looked_at(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    simulators.set_clock(monkeypatch, clock)

    def slow_to_fetch(message: Message) -> Message | Objects | None:
        clock.sleep(6.0)  # the whole deadline and more
        return honest(1)(message)

    Store(hub.database).add_job(1)
    rounds.run_rounds(SimulatedGrid({1: slow_to_fetch, 2: honest(2)}), hub, hub.config())

    assert [(a.node_id, a.accepted) for a in Store(hub.database).answers(1)] == [(1, True), (2, True)]


def test_a_failed_round_does_not_keep_the_next_from_being_held(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Message] = []

    def moody(message: Message) -> Message | Objects | None:
        asked.append(message)
        return honest(2)(message) if wire.unpack_assignment(message.content).round > 1 else None

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: moody}), count=2)

    assert [(r.round, r.state) for r in Store(hub.database).rounds()] == [(1, "failed"), (2, "published")]


def test_a_refused_round_publishes_nothing_and_says_why(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Gate.judge

    def strict(self: Gate, body: Arrays) -> Candidate:
        return replace(judge(self, body), reasons=("not good enough", "nor even"))

    monkeypatch.setattr(Gate, "judge", strict)
    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2)}))

    (round_,) = Store(hub.database).rounds()
    assert (round_.state, round_.detail, round_.version) == ("refused", "not good enough; nor even", None)
    assert publish.versions(hub) == [1]
    entries = Ledger(hub.ledger_file).entries()
    assert [entry["version"] for entry in entries if entry["what"] == "published"] == [1]
    assert (entries[-1]["what"], entries[-1]["outcome"]) == ("round", "refused")


def test_a_judged_round_leaves_a_strip_of_pictures(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2)}))

    strip = codecs.decode((hub.strips / "round-1.jpg").read_bytes())
    assert min(strip.shape[:2]) > 100


def bodies_judged(monkeypatch: pytest.MonkeyPatch, refused: Callable[[Flat], bool] = lambda _body: False) -> list[Flat]:
    """What the gate is asked about from now on; what is to be refused, it refuses."""
    judge, judged = Gate.judge, []

    def judge_and_note(self: Gate, body: Arrays) -> Candidate:
        judged.append(simulators.body_layout().flatten(body))
        return replace(judge(self, body), reasons=("not good enough",) if refused(judged[-1]) else ())

    monkeypatch.setattr(Gate, "judge", judge_and_note)
    return judged


def released(hub: CoordinatorHome, version: int) -> Flat:
    return simulators.body_layout().flatten(release.body_of(publish.open_release(hub, version)))


def test_the_body_keeps_a_share_of_its_last_movement(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes that always say the same: the mean is known, and what is beyond it is momentum."""
    always = simulators.movement(1)
    settings.save(hub.config_file, replace(hub.config(), momentum=0.5))
    judged = bodies_judged(monkeypatch)

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(1)}), count=3)

    movements = np.diff(np.stack([released(hub, 1), *judged]), axis=0)
    for movement, share in zip(movements, (1.0, 1.5, 1.75), strict=True):
        np.testing.assert_allclose(movement, share * always, atol=1e-6)


def test_without_momentum_every_round_moves_the_body_by_the_mean_alone(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.save(hub.config_file, replace(hub.config(), momentum=0.0))
    judged = bodies_judged(monkeypatch)

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(1)}), count=2)

    for movement in np.diff(np.stack([released(hub, 1), *judged]), axis=0):
        np.testing.assert_allclose(movement, simulators.movement(1), atol=1e-6)


def test_what_the_gate_refuses_with_momentum_is_judged_again_without(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = released(hub, 1)
    too_far = 2.2 * np.linalg.norm(simulators.movement(1))
    judged = bodies_judged(monkeypatch, refused=lambda body: bool(np.linalg.norm(body - start) > too_far))

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(1)}), count=2)

    last = Store(hub.database).rounds()[-1]
    assert len(judged) == 3
    assert (last.state, last.detail) == ("published", "release 3, without momentum")
    np.testing.assert_allclose(released(hub, 3) - released(hub, 2), simulators.movement(1), atol=1e-6)


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_last_movement_that_is_not_known_any_more_is_none(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    judged = bodies_judged(monkeypatch)
    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(1)}))
    if harm == "gone":
        shutil.rmtree(hub.releases / "1")
    else:
        (hub.releases / "1" / release.BODY).write_bytes(b"other")

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(1)}))

    assert [r.state for r in Store(hub.database).rounds()] == ["published", "published"]
    np.testing.assert_allclose(judged[-1] - released(hub, 2), simulators.movement(1), atol=1e-6)


# --- Killed and begun again ----------------------------------------------------------------------------------------------


def go_on(patch: pytest.MonkeyPatch, hub: CoordinatorHome, grid: SimulatedGrid) -> None:
    """Another process, which finds the rounds that were asked for and did not end."""
    simulators.set_clock(patch, Clock())
    rounds.run_rounds(grid, hub, hub.config())


def undisturbed(patch: pytest.MonkeyPatch, folder: Path, count: int = 2) -> str:
    """The body of the same rounds without any harm."""
    hub = simulators.make_coordinator(folder, minimum_nodes=2, clip=0.05, deadline_s=5.0, gather_timeout_s=5.0)
    simulators.enrol(hub, 1, 2)
    hold_rounds(patch, hub, SimulatedGrid({1: honest(1), 2: honest(2)}), count=count)
    return publish.current_release(hub).manifest.body


PLACES = (
    "coordinator.store.Store.open_round",
    "coordinator.store.Store.ask",
    "coordinator.store.Store.add_answer",
    "coordinator.store.Store.set_round",
    "coordinator.store.Store.close_job",
    "coordinator.rounds.write_atomic",
    "coordinator.rounds.publish",
    "coordinator.publish.write_atomic",
    "coordinator.publish._put_out",
    "export.ledger.Ledger.append",
    "export.release.write",
    "coordinator.rounds._moved",
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_a_process_killed_at_any_step_is_followed_by_one_that_makes_the_same_body(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, when: str
) -> None:
    wanted = undisturbed(monkeypatch, tmp_path / "undisturbed")
    owner_name, _, name = place.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    step = getattr(owner, name)
    Store(hub.database).add_job(2)
    grid = SimulatedGrid({1: honest(1), 2: honest(2)})
    kills = 0

    for turn in range(1, 400):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stumbling(step, turn, when))
            try:
                go_on(patch, hub, grid)
                break
            except Killed:
                kills += 1

    store = Store(hub.database)
    assert kills >= 1
    assert store.job(1).state == "done"
    assert [(r.round, r.state) for r in store.rounds()] == [(1, "published"), (2, "published")]
    assert publish.current_release(hub).manifest.body == wanted
    assert all([a.accepted for a in store.answers(number)] == [True, True] for number in (1, 2))
    entries = Ledger(hub.ledger_file).entries()
    assert [entry["round"] for entry in entries if entry["what"] == "round"] == [1, 2]
    assert not list(hub.rounds.glob("*/*"))


def test_an_update_that_was_accepted_is_not_asked_for_again(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    def killing(_message: Message) -> None:
        raise Killed

    with pytest.raises(Killed):
        hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: killing}))
    grid = SimulatedGrid({1: honest(1), 2: honest(2)})

    go_on(monkeypatch, hub, grid)

    assert {message.metadata.dst_node_id for message in grid.pushed} == {2}
    assert [a.accepted for a in Store(hub.database).answers(1)] == [True, True]
    assert [r.state for r in Store(hub.database).rounds()] == ["published"]


def test_a_round_whose_base_was_replaced_meanwhile_is_not_gone_on_with(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killing(_message: Message) -> None:
        raise Killed

    with pytest.raises(Killed):
        hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: killing}))
    simulators.change_policy(hub, noise=0.5)

    go_on(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2)}))

    (round_,) = Store(hub.database).rounds()
    assert (round_.state, round_.detail) == ("failed", "another release or policy took the place of the one it began from")


def test_an_accepted_update_that_the_disk_lost_is_told(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    def killing(_message: Message) -> None:
        raise Killed

    with pytest.raises(Killed):
        hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: killing}))
    (hub.rounds / "1" / "1.update").unlink()

    with pytest.raises(IntegrityError, match="cannot be read any more"):
        go_on(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2)}))

    assert [r.state for r in Store(hub.database).rounds()] == ["failed"]


def test_an_error_of_the_program_leaves_the_round_to_the_next_process(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError("/home/coordinator/secret")

    with monkeypatch.context() as patch:
        patch.setattr(Gate, "judge", broken)
        with pytest.raises(ZeroDivisionError):
            hold_rounds(patch, hub, SimulatedGrid({1: honest(1), 2: honest(2)}))
    assert Store(hub.database).rounds()[0].state == "judging"

    go_on(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2)}))

    assert Store(hub.database).rounds()[0].state == "published"


def test_rounds_that_were_called_off_end_after_the_one_under_way(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(hub.database)

    def calls_off(message: Message) -> Message | Objects | None:
        store.close_job(1, "stopped", "called off", 1.0)
        return honest(2)(message)

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: calls_off}), count=5)

    assert [(r.round, r.state, r.detail) for r in store.rounds()] == [(1, "failed", "called off")]
    assert store.job(1).state == "stopped"


def test_nothing_is_done_if_no_round_was_asked_for(hub: CoordinatorHome) -> None:
    rounds.run_rounds(SimulatedGrid({1: honest(1), 2: honest(2)}), hub, hub.config())

    assert Store(hub.database).rounds() == []


def test_the_ledger_names_what_counted_and_what_did_not(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    simulators.enrol(hub, 3)
    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2), 3: lambda _message: None}))

    entry = Ledger(hub.ledger_file).entries()[-1]
    digests = {a.node_id: a.sha256 for a in Store(hub.database).answers(1)}
    assert (entry["what"], entry["outcome"], entry["version"]) == ("round", "published", 2)
    assert entry["accepted"] == [f"1 {digests[1]}", f"2 {digests[2]}"]
    assert entry["rejected"] == ["3 no-answer"]


def test_what_a_node_declines_for_is_written_down(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    simulators.enrol(hub, 3, 4)

    def declining(reason: DeclineReason, number: int) -> Callable[[Message], Message]:
        return lambda message: Message(wire.pack_answer(Declined(number, reason)), reply_to=message)

    nodes = {1: honest(1), 2: honest(2), 3: declining("no-consent", 1), 4: declining("budget-spent", 9)}
    hold_rounds(monkeypatch, hub, SimulatedGrid(nodes))

    said = {a.node_id: a.reason for a in Store(hub.database).answers(1)}
    assert said == {1: "", 2: "", 3: "no-consent", 4: "another-round"}


def test_the_answer_of_a_member_whose_membership_ended_meanwhile_does_not_count(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulators.enrol(hub, 3)

    def put_out(message: Message) -> Message | Objects | None:
        Store(hub.database).revoke(3, 1.0)
        return honest(3)(message)

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2), 3: put_out}))

    assert [(a.node_id, a.accepted) for a in Store(hub.database).answers(1)] == [(1, True), (2, True), (3, False)]


def test_a_robust_policy_takes_the_geometric_median(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    simulators.enrol(hub, 3)
    simulators.change_policy(hub, aggregation="robust")
    judged = bodies_judged(monkeypatch)

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(1), 3: honest(9, length=0.04)}))

    # Two say the same and one says something forty times as long: the median is what the two say.
    np.testing.assert_allclose(judged[0] - released(hub, 1), simulators.movement(1), atol=2e-6)


@pytest.mark.parametrize("error", [httpx.ConnectError("gone"), ConnectionResetError()])
def test_a_superlink_that_cannot_be_reached_is_no_nodes_fault(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_message: Message) -> None:
        raise error

    with pytest.raises(type(error)):
        hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: fail}))

    assert Store(hub.database).rounds()[0].state == "training"
    assert 2 not in {a.node_id for a in Store(hub.database).answers(1)}


def test_two_runs_of_rounds_at_once_are_refused(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(hub.rounds_lock, "a run of rounds"), pytest.raises(RefusedError, match="a run of rounds is running already"):
        hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2)}))

    assert Store(hub.database).rounds() == []


def test_a_candidate_that_was_overtaken_by_another_release_is_refused(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Gate.judge

    def publish_meanwhile(self: Gate, body: Arrays) -> Candidate:
        candidate = judge(self, body)
        current = publish.current_release(hub)
        publish.publish(hub, current, replace(candidate, verdict=releases.VERDICT, reasons=()), 0, 0)
        return candidate

    monkeypatch.setattr(Gate, "judge", publish_meanwhile)
    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1), 2: honest(2)}))

    (round_,) = Store(hub.database).rounds()
    assert (round_.state, round_.detail) == ("refused", "another release was published while the candidate was judged")
    assert publish.versions(hub) == [1, 2]


def test_a_node_that_answers_for_another_is_counted_as_itself(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    def imposing(message: Message) -> Message:
        reply = honest(1)(message)
        assert isinstance(reply, Message)
        reply.metadata.__dict__["_src_node_id"] = 2
        return reply

    hold_rounds(monkeypatch, hub, SimulatedGrid({1: imposing, 2: honest(2)}))

    assert {(a.node_id, a.accepted) for a in Store(hub.database).answers(1)} == {(1, True), (2, True)}


@dataclass(slots=True)
class CountingGrid(SimulatedGrid):
    """Counts how many replies are alive when the next is fetched."""

    alive: list[int] = field(default_factory=list)
    fetched: list[weakref.ref[RecordDict]] = field(default_factory=list)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        gc.collect()
        self.alive.append(sum(reference() is not None for reference in self.fetched))
        for message in super(CountingGrid, self).pull_messages(message_ids):
            self.fetched.append(weakref.ref(message.content))
            yield message


def test_memory_does_not_grow_with_the_number_of_nodes(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = range(1, 6)
    simulators.enrol(hub, *nodes[2:])
    grid = CountingGrid({node: honest(node) for node in nodes})

    hold_rounds(monkeypatch, hub, grid)

    assert len(grid.fetched) == len(nodes)
    assert max(grid.alive) <= 1
