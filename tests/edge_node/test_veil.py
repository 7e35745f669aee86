"""A node in veiled rounds: what it takes part in, what it never does a second time, and what a lost file may not undo."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_node import guard, keys, veil
from edge_node.config import Home
from edge_node.guard import Trained
from export.errors import ResourceError
from export.ledger import Ledger
from export.policy import Policy
from models import masking, privacy
from models.masking import Context, NodeState, Secrets
from models.update import Assignment, Flat, Layout, Part, Ready, Step, VeiledPart, VeiledStep
from tests import simulators

POLICY = Policy("guild", 1, "style-studio", visibility="veiled", minimum_nodes=5, clip=1.0, steps=20)
DIGEST, LAYOUT = "ab" * 32, Layout((("a", (4, 5)),))
ENTRY: guard.Entry = {"what": "update", "federation": "guild", "round": 3, "policy": DIGEST, "norm": 0.5}


@dataclass
class Others:
    """The other nodes of a round, and the coordinator between them and the one that is tested."""

    home: Home
    count: int = 4
    round: int = 3

    def __post_init__(self) -> None:
        self.key = keys.enrolled_key(self.home)
        self.keys = {number: Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(2, self.count + 2)}
        self.made = Ready("guild", self.round, DIGEST, LAYOUT.digest, np.linspace(-0.1, 0.1, 20, dtype=np.float32))
        everybody = {1: self.key, **self.keys}
        self.roster = tuple((number, key.public_key().public_bytes_raw()) for number, key in everybody.items())
        self.states: dict[int, NodeState] = {}

    @property
    def context(self) -> Context:
        return Context("guild", self.round, DIGEST, LAYOUT.digest, self.roster)

    def ask(self, step: Step, payload: bytes, policy: Policy = POLICY) -> VeiledPart:
        asked = VeiledStep("guild", self.round, DIGEST, step, payload)
        answer = veil.answer(self.home, policy, self.made, {**ENTRY, "round": self.round}, asked)
        self.key.public_key().verify(answer.signature, answer.statement)
        return answer

    def adverts(self) -> bytes:
        """Everybody's, once this node has given its own."""
        own = self.told("roster", self.context.to_bytes(), "advert")
        made = [masking.Advert.from_bytes(own)]
        for number, key in self.keys.items():
            secrets = Secrets(*(bytes([number, kind]) * 16 for kind in range(4)))
            self.states[number] = masking.begin(self.context, number, secrets)
            made.append(masking.advertise(self.states[number], key))
        self.states = {number: masking.accept_adverts(state, made) for number, state in self.states.items()}
        return b"".join(advert.to_bytes() for advert in made)

    def boxes(self) -> bytes:
        """Those for this node, once it has dealt its own."""
        self.told("adverts", self.adverts(), "boxes")
        dealt = [box for state in self.states.values() for box in masking.deal(state)]
        return b"".join(box.to_bytes() for box in dealt if box.recipient == 1)

    def request(self, *dropped: int) -> bytes:
        """Who delivered, once this node has."""
        masked = masking.Masked.from_bytes(self.told("boxes", self.boxes(), "masked"), 20)
        survivors = tuple(number for number in range(1, self.count + 2) if number not in dropped)
        return masking.Request(masked.session, survivors, dropped).to_bytes()

    def told(self, step: Step, payload: bytes, part: Part) -> bytes:
        answer = self.ask(step, payload)
        assert answer.part == part, answer
        return answer.payload

    def refusal(self, step: Step, payload: bytes) -> str:
        answer = self.ask(step, payload)
        assert answer.part == "refused"
        return answer.payload.decode()


@pytest.fixture
def others(tmp_path: Path) -> Others:
    return Others(simulators.make_node(tmp_path / "ada"))


def sent(others: Others) -> list[object]:
    return [entry["sha256"] for entry in Ledger(others.home.ledger_file).entries() if entry["what"] == "update"]


def test_a_node_goes_from_the_roster_to_its_shares(others: Others) -> None:
    shares = masking.Answer.from_bytes(others.told("request", others.request(), "shares"))

    assert len(shares.shares) == 5
    (entry,) = Ledger(others.home.ledger_file).entries()
    assert (entry["bytes"], entry["peers"], entry["peers-new"]) == (40 + 4 * 20, 4, 4)


def test_every_step_that_is_asked_for_again_is_answered_the_same(others: Others) -> None:
    """As a node does that was killed after each: nothing of it is in memory here."""
    request = others.request()
    steps: list[tuple[Step, bytes]] = [("roster", others.context.to_bytes()), ("request", request)]

    first = [others.ask(*step) for step in steps]

    assert [others.ask(*step) for step in steps] == first
    assert len(sent(others)) == 1


def test_the_secrets_are_for_this_user_alone(others: Others) -> None:
    others.told("roster", others.context.to_bytes(), "advert")

    assert others.home.veil_file.stat().st_mode & 0o077 == 0


def test_the_next_round_knows_whom_it_has_met(others: Others) -> None:
    others.request()
    later = Others(others.home, count=5, round=4)
    later.request()

    entries = Ledger(others.home.ledger_file).entries()
    assert [(entry["peers"], entry["peers-new"]) for entry in entries] == [(4, 4), (5, 1)]


# --- What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"federation": "others"}, {"round": 4}, {"policy": "cd" * 32}, {"layout": "cd" * 32}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_roster_of_another_round_than_was_trained_for_is_refused(others: Others, changes: dict[str, object]) -> None:
    other = replace(others.context, **changes)  # type: ignore[arg-type]

    assert others.refusal("roster", other.to_bytes()) == "context"
    assert not others.home.veil_file.exists()


def test_a_roster_without_this_machines_key_is_refused(others: Others) -> None:
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    other = replace(others.context, roster=((1, stranger), *others.roster[1:]))

    assert others.refusal("roster", other.to_bytes()) == "stranger"


def test_a_roster_shorter_than_the_policys_minimum_is_refused(others: Others) -> None:
    strict = replace(POLICY, minimum_nodes=6)

    answer = others.ask("roster", others.context.to_bytes(), strict)

    assert (answer.part, answer.payload) == ("refused", b"too-few-nodes")
    assert others.ask("roster", others.context.to_bytes()).part == "advert"


def test_bytes_that_are_no_roster_are_refused(others: Others) -> None:
    assert others.refusal("roster", b"roster") == "malformed"


@pytest.mark.parametrize("step", ["adverts", "boxes", "request"])
def test_a_step_before_the_roster_is_refused(others: Others, step: Step) -> None:
    payload = masking.Request(bytes(32), (1, 2, 3, 4, 5), ()).to_bytes() if step == "request" else b""

    assert others.refusal(step, payload) == "out-of-turn"


@pytest.mark.parametrize("step", ["adverts", "boxes"])
def test_messages_that_are_not_a_whole_number_of_parts_are_refused(others: Others, step: Step) -> None:
    others.told("roster", others.context.to_bytes(), "advert")

    assert others.refusal(step, b"x" * 99) == "malformed"
    assert others.refusal(step, bytes(98 * 168 * 1001)) == "malformed"


def test_a_smaller_roster_is_taken_as_long_as_nothing_was_delivered(tmp_path: Path) -> None:
    others = Others(simulators.make_node(tmp_path / "ada"), count=5)
    others.boxes()
    smaller = replace(others.context, roster=others.roster[:-1])

    first = masking.Advert.from_bytes(others.told("roster", smaller.to_bytes(), "advert"))

    assert first.mask_key not in others.context.to_bytes()
    masking.verify_advert(smaller, first)
    assert sent(others) == []


def test_once_it_has_delivered_no_other_roster_is_taken(others: Others) -> None:
    """Two sums over different nodes, subtracted, would show the difference."""
    larger = Others(others.home, count=5)
    others.request()

    assert larger.refusal("roster", larger.context.to_bytes()) == "out-of-turn"
    assert len(sent(others)) == 1


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")])
def test_nor_after_its_secrets_were_lost(others: Others, harm: Callable[[Path], object]) -> None:
    others.request()
    harm(others.home.veil_file)

    assert others.refusal("roster", others.context.to_bytes()) == "out-of-turn"
    assert len(sent(others)) == 1


def test_secrets_that_were_lost_before_anything_was_delivered_are_made_anew(others: Others) -> None:
    first = others.told("roster", others.context.to_bytes(), "advert")
    others.home.veil_file.unlink()

    assert others.told("roster", others.context.to_bytes(), "advert") != first


def test_nobody_is_unmasked_with_fewer_survivors_than_the_policy_says(tmp_path: Path) -> None:
    others = Others(simulators.make_node(tmp_path / "ada"), count=5)
    request = others.request(6)
    strict = replace(POLICY, minimum_nodes=6)

    answer = others.ask("request", request, strict)

    assert (answer.part, answer.payload) == ("refused", b"too-few-nodes")
    assert others.ask("request", request).part == "shares"


def test_a_second_request_is_refused(tmp_path: Path) -> None:
    others = Others(simulators.make_node(tmp_path / "ada"), count=5)
    others.told("request", others.request(), "shares")
    first = masking.Request.from_bytes(others.request())

    assert others.refusal("request", masking.Request(first.session, (1, 2, 3, 4, 5), (6,)).to_bytes()) == "second-request"


def test_a_box_that_was_changed_is_told_with_its_sender(others: Others) -> None:
    boxes = bytearray(others.boxes())
    boxes[98 + 20] ^= 1

    assert others.refusal("boxes", bytes(boxes)) == "box-sealed-otherwise 3"
    assert sent(others) == []


def test_what_is_not_in_the_ledger_is_not_sent(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = others.boxes()

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", full)
        with pytest.raises(ResourceError, match="No space"):
            others.ask("boxes", boxes)
    assert sent(others) == []

    others.told("boxes", boxes, "masked")
    assert len(sent(others)) == 1


# --- What the guard lets through ---------------------------------------------------------------------------------------


def prepared(moved: Flat, residual: Flat | None = None, policy: Policy = POLICY, steps: int = 20) -> guard.Sealed[Ready]:
    start = np.ones(20, np.float32)
    assignment = Assignment("guild", "style-studio", 3, DIGEST, start, LAYOUT.digest)
    tensors = {"a": (start + moved).reshape(4, 5), "codes": np.full((2, 3), 7, np.float32)}
    left = np.zeros(20, np.float32) if residual is None else residual
    return guard.prepare(assignment, policy, Trained(tensors, 2.0, 1.0, steps), LAYOUT, left)


def test_a_short_movement_goes_out_whole() -> None:
    moved = np.linspace(-0.1, 0.1, 20, dtype=np.float32)

    sealed = prepared(moved)

    np.testing.assert_allclose(sealed.update.delta, moved, atol=1e-7)
    assert not sealed.residual.any()
    assert "loss-before" not in sealed.entry
    assert "sha256" not in sealed.entry


def test_a_long_one_is_clipped_and_what_was_cut_off_stays() -> None:
    moved = np.linspace(-1, 1, 20, dtype=np.float32)

    sealed = prepared(moved)

    assert privacy.norm(sealed.update.delta) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(sealed.update.delta + sealed.residual, moved, atol=1e-6)


def test_what_earlier_updates_left_out_goes_along() -> None:
    left = np.full(20, 0.01, np.float32)

    np.testing.assert_allclose(prepared(np.zeros(20, np.float32), left).update.delta, left, atol=1e-7)


def test_with_its_noise_it_still_keeps_to_the_clip_and_can_be_encoded() -> None:
    noisy = replace(POLICY, noise=5.0)

    sealed = [prepared(np.full(20, 0.3, np.float32), policy=noisy) for _ in range(20)]

    assert all(privacy.norm(one.update.delta) <= 1.0 for one in sealed)
    assert len({one.update.delta.tobytes() for one in sealed}) == 20
    masking.encode(sealed[0].update.delta, 1.0, 5, np.random.default_rng(0))


def test_a_training_that_ended_early_has_no_place_in_a_sum() -> None:
    with pytest.raises(ValueError, match="takes all of its steps"):
        prepared(np.zeros(20, np.float32), steps=19)
