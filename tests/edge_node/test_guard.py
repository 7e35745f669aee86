"""The only door out: what is on the list of shared tensors, clipped, compressed, signed and written down, and nothing else."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_node import guard
from edge_node.guard import Sealed, Trained
from export.errors import IntegrityError, ResourceError
from export.files import digest_of
from export.ledger import Ledger
from export.policy import Policy
from models import compression, privacy, registry, state, wire
from models.update import Arrays, Assignment, Flat, Layout, LayoutError, Update
from tests.releases import KEY, key_number

LAYOUT: Final = Layout((("blocks.0.weight", (2, 3)), ("stem.weight", (4,))))
LARGE: Final = Layout((("blocks.0.weight", (40, 50)), ("stem.weight", (500,)), ("to_full.weight", (100, 5, 3, 3))))
SECRET: Final = np.full(50, 1234.5, np.float32)
POLICY: Final = Policy("guild", 1, "style-studio", clip=100.0, keep=1.0)
MOVED: Final = np.arange(10, dtype=np.float32)
"""Its length is the root of 285."""


def tensors(layout: Layout, flat: Flat, secret: Flat = SECRET) -> Arrays:
    """A network after training, private tensors included."""
    return {**layout.unflatten(flat), "codes": secret, "norm_mean": secret, "norm_var": secret}


@dataclass
class Node:
    """A machine that seals one update after another from a body of zeros, and keeps what they leave out."""

    layout: Layout = LAYOUT
    policy: Policy = POLICY
    key: Ed25519PrivateKey = KEY
    seed: int = 0
    round: int = 7

    def seal(
        self, moved: Flat, residual: Flat | None = None, secret: Flat = SECRET, body: Flat | None = None
    ) -> Sealed[Update]:
        start = np.zeros(self.layout.size, np.float32) if body is None else body
        assignment = Assignment("guild", "style-studio", self.round, "ab" * 32, start, self.layout.digest)
        trained = Trained(tensors(self.layout, moved, secret), 2.0, 1.0, 20)
        left = np.zeros(self.layout.size, np.float32) if residual is None else residual
        return guard.seal(assignment, self.policy, trained, self.layout, left, self.key, np.random.default_rng(self.seed))

    def sent(self, sealed: Sealed[Update]) -> Flat:
        return compression.decompress(sealed.update.payload, self.layout)


def asked(**changes: float) -> Policy:
    return replace(POLICY, **changes)  # type: ignore[arg-type]


def drawn(layout: Layout, length: float, seed: int = 0) -> Flat:
    """A random movement of a stated length."""
    delta = np.random.default_rng(seed).standard_normal(layout.size)
    return np.asarray(delta * (length / np.linalg.norm(delta)), np.float32)


def exact_norm(delta: Flat) -> float:
    """A second opinion: summed without rounding."""
    return math.sqrt(math.fsum(float(x) ** 2 for x in delta))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


# --- 1. What leaves -----------------------------------------------------------------------------------------------------


def test_only_the_tensors_on_the_list_leave() -> None:
    node = Node()

    sealed = node.seal(MOVED)

    assert sealed.update.tensors == LAYOUT.names
    np.testing.assert_allclose(node.sent(sealed), MOVED, atol=0.1)
    assert SECRET[0] not in node.sent(sealed)


def test_nothing_that_leaves_or_is_written_down_depends_on_a_private_tensor() -> None:
    one, other = (Node().seal(MOVED, secret=SECRET * np.float32(scale)) for scale in (1, -3))

    assert one.update == other.update
    assert one.entry == other.entry
    np.testing.assert_array_equal(one.residual, other.residual)


def test_a_private_tensor_leaves_only_if_the_list_names_it() -> None:
    # The positive control of the two tests above: they would have noticed.
    leaky = Node(Layout((*LAYOUT.tensors, ("zz.codes", (50,)))), asked(clip=1e4))
    secrets = [np.concatenate([MOVED, SECRET * np.float32(scale)]) for scale in (1, -0.5)]

    one, other = (leaky.seal(secret) for secret in secrets)

    assert np.count_nonzero(np.isclose(leaky.sent(one), SECRET[0])) == SECRET.size
    assert one.update.payload != other.update.payload
    assert one.entry != other.entry


def test_the_movement_and_not_the_body_leaves() -> None:
    node, body = Node(), np.linspace(5, 6, 10, dtype=np.float32)

    sealed = node.seal(body + np.float32(0.25), body=body)

    np.testing.assert_allclose(node.sent(sealed), 0.25, rtol=1e-2)


def test_an_update_says_what_it_is_an_answer_to_and_what_training_came_to() -> None:
    update = Node().seal(MOVED).update

    assert (update.federation, update.round, update.policy) == ("guild", 7, "ab" * 32)
    assert update.layout_digest == LAYOUT.digest
    assert (update.loss_before, update.loss_after, update.steps) == (2.0, 1.0, 20)


def test_a_network_without_a_listed_tensor_sends_nothing() -> None:
    lacking = {name: array for name, array in tensors(LAYOUT, MOVED).items() if name != "stem.weight"}
    assignment = Assignment("guild", "style-studio", 7, "ab" * 32, MOVED, LAYOUT.digest)

    with pytest.raises(KeyError, match=r"stem\.weight"):
        guard.seal(assignment, POLICY, Trained(lacking, 2.0, 1.0, 20), LAYOUT, MOVED, KEY, np.random.default_rng(0))


def test_a_listed_tensor_of_another_shape_is_not_sent() -> None:
    odd = {**tensors(LAYOUT, MOVED), "stem.weight": np.zeros((2, 2), np.float32)}
    assignment = Assignment("guild", "style-studio", 7, "ab" * 32, MOVED, LAYOUT.digest)

    with pytest.raises(LayoutError, match="other names or shapes"):
        guard.seal(assignment, POLICY, Trained(odd, 2.0, 1.0, 20), LAYOUT, MOVED, KEY, np.random.default_rng(0))


# --- 2. What earlier updates left out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [1e4, 1.0])
@pytest.mark.parametrize("keep", [1.0, 0.05])
def test_what_is_left_out_is_what_was_meant_less_what_is_sent(clip: float, keep: float) -> None:
    node = Node(LARGE, asked(clip=clip, keep=keep))
    moved, left = drawn(LARGE, 3.0, seed=1), drawn(LARGE, 2.0, seed=2)

    sealed = node.seal(moved, left)

    assert sealed.residual.dtype == np.float32
    np.testing.assert_allclose(sealed.residual, (moved + left) - node.sent(sealed), atol=1e-7)  # the clipped part, too
    assert privacy.norm(sealed.residual) > 0


def test_what_is_left_out_is_at_most_ten_clips_long() -> None:
    node = Node(LARGE, asked(clip=0.1))

    assert privacy.norm(node.seal(drawn(LARGE, 50.0)).residual) == pytest.approx(1.0, rel=1e-4)


def test_noise_that_was_not_sent_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # What stays is the signal. Noise would come again and again, and take the place of it under the clip.
    node, noised = Node(LARGE, asked(keep=0.05, noise=0.1)), []
    with_noise = privacy.with_noise

    def noticed(delta: Flat, length: float) -> Flat:
        noised.append(with_noise(delta, length))
        return noised[-1]

    monkeypatch.setattr(privacy, "with_noise", noticed)
    moved = drawn(LARGE, 3.0)
    sealed = node.seal(moved)

    sent = node.sent(sealed)
    np.testing.assert_allclose(sealed.residual[sent == 0], moved[sent == 0], atol=1e-6)
    np.testing.assert_allclose(sealed.residual[sent != 0], (noised[0] - sent)[sent != 0], atol=1e-6)
    assert np.abs(noised[0] - moved)[sent == 0].max() > 1e-4


@pytest.mark.parametrize("length", [1, LARGE.size - 1, LARGE.size + 1])
def test_a_residual_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="another length than the layout"):
        Node(LARGE, asked()).seal(drawn(LARGE, 1.0), np.zeros(length, np.float32))


@pytest.mark.parametrize("shape", [(1,), (9,), (11,), (1, 10), ()])
def test_a_body_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    # Of one number, or of a row of ten, numpy would make ten.
    with pytest.raises(ValueError, match="another length than the layout"):
        Node().seal(MOVED, body=np.zeros(shape, np.float32))


def test_over_many_rounds_all_of_a_movement_is_sent() -> None:
    # Error feedback. At one number in twenty a round, most of them would never be heard of without it.
    rounds, node, moved = 200, Node(LARGE, asked(keep=0.05, clip=1e4)), drawn(LARGE, 1.0)
    total, left = np.zeros(LARGE.size), np.zeros(LARGE.size, np.float32)
    for number in range(rounds):
        sealed = replace(node, seed=number).seal(moved, left)
        total, left = total + node.sent(sealed), sealed.residual

    # What was sent and what is still to be sent is what was meant, but for float32; and ever less of it is still to be sent.
    np.testing.assert_allclose(total + left, rounds * moved.astype(np.float64), atol=1e-4)
    assert privacy.norm(left) < 0.1 * rounds
    forgetful = sum(node.sent(replace(node, seed=number).seal(moved)).astype(np.float64) for number in range(rounds))
    assert privacy.norm(np.asarray(forgetful - rounds * moved, np.float32)) > 0.5 * rounds


def test_what_is_left_out_is_added_before_the_clip() -> None:
    node = Node(policy=asked(clip=5.0))
    moved, left = np.zeros(10, np.float32), np.zeros(10, np.float32)
    moved[0], left[1] = 4.0, 4.0  # each within the clip, and both together not

    sealed = node.seal(moved, left)

    assert privacy.norm(node.sent(sealed)) <= 5.0
    np.testing.assert_allclose(node.sent(sealed)[:2], 5 / math.sqrt(2), rtol=1e-5)


def test_a_movement_that_takes_back_what_was_left_out_is_not_clipped_for_it() -> None:
    node = Node(policy=asked(clip=5.0))
    moved = np.zeros(10, np.float32)
    moved[0] = 8.0

    sealed = node.seal(moved, moved * np.float32(-0.5))

    np.testing.assert_allclose(node.sent(sealed), moved / 2, rtol=1e-5)


# --- 3. The clip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "expected"), [(1.0, 1.0), (16.0, 16.0), (285**0.5, 285**0.5), (17.0, 285**0.5), (1e3, 285**0.5)]
)
def test_what_leaves_is_no_longer_than_the_clip(clip: float, expected: float) -> None:
    node = Node(policy=asked(clip=clip))

    sent = node.sent(node.seal(MOVED))

    assert privacy.norm(sent) <= clip
    assert privacy.norm(sent) == pytest.approx(expected, rel=0.02)  # eight bits a number


hostile = hnp.arrays(np.float32, LAYOUT.size, elements=st.floats(-(2.0**126), 2.0**126, width=32))
policies = st.builds(
    asked,
    clip=st.floats(1e-3, 1e4),
    keep=st.floats(1e-3, 1.0),
    noise=st.just(0.0) | st.floats(1e-6, 100.0),
)


@given(hostile, hostile, policies, st.integers(0, 2**32))
def test_no_movement_rest_or_noise_makes_an_update_longer_than_the_clip(
    moved: Flat, left: Flat, policy: Policy, seed: int
) -> None:
    node = Node(policy=policy, seed=seed)

    sealed = node.seal(moved, left)

    assert exact_norm(node.sent(sealed)) <= policy.clip
    assert np.isfinite(sealed.residual).all()


@pytest.mark.parametrize("noise", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("keep", [0.05, 1.0])
@pytest.mark.parametrize("length", [0.999999, 1.0, 1.000001, 1e6])
def test_an_update_of_many_channels_is_no_longer_than_the_clip(length: float, keep: float, noise: float) -> None:
    node = Node(LARGE, asked(clip=1.0, keep=keep, noise=noise))

    assert exact_norm(node.sent(node.seal(drawn(LARGE, length)))) <= 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["moved", "left", "body"])
def test_numbers_that_are_not_finite_are_never_sent(value: float, place: str) -> None:
    given_ = {name: np.ones(10, np.float32) for name in ("moved", "left", "body")}
    given_[place][3] = value

    with pytest.raises(ValueError, match="not finite"), np.errstate(all="ignore"):
        Node().seal(given_["moved"], given_["left"], body=given_["body"])


def test_a_sum_beyond_float32_is_never_sent() -> None:
    huge = np.full(10, 3e38, np.float32)

    with pytest.raises(ValueError, match="not finite"), np.errstate(over="ignore"):
        Node().seal(huge, huge)


# --- 4. Noise -----------------------------------------------------------------------------------------------------------


def test_noise_has_the_length_that_the_policy_says() -> None:
    # Of n numbers, the length of the noise lies within n^-1/2 of what is stated; allowed is ten times that.
    node, moved = Node(LARGE, asked(clip=4.0, noise=0.5)), drawn(LARGE, 3.0)

    sealed = node.seal(moved)

    noise = node.sent(sealed) + sealed.residual - moved
    assert privacy.norm(noise) == pytest.approx(0.5 * 4.0, rel=10 / math.sqrt(LARGE.size))
    assert sealed.entry["noise"] == 2.0


def test_noise_comes_from_no_generator_that_was_handed_in() -> None:
    # With the same seed for rounding, two updates of one movement differ: whoever knew the seed could not take the noise off.
    node = Node(LARGE, asked(noise=0.1))

    one, other = (node.seal(drawn(LARGE, 3.0)) for _ in range(2))

    assert one.update.payload != other.update.payload
    assert privacy.norm(one.residual + node.sent(one) - other.residual - node.sent(other)) > 1.0


def test_no_noise_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "secret_gaussian", lambda _count: pytest.fail("noise was drawn"))
    node = Node(LARGE)

    one, other = (node.seal(drawn(LARGE, 3.0)) for _ in range(2))

    assert one.update == other.update
    assert one.entry["noise"] == 0
    np.testing.assert_allclose(one.residual + node.sent(one), drawn(LARGE, 3.0), atol=1e-6)


# --- 5. How much is sent ------------------------------------------------------------------------------------------------


def test_no_more_numbers_are_sent_than_the_policy_keeps() -> None:
    node = Node(LARGE, asked(keep=0.05))

    sent = node.sent(node.seal(drawn(LARGE, 3.0)))

    assert 0.04 * LARGE.size < np.count_nonzero(sent) <= round(0.05 * LARGE.size)


@pytest.mark.parametrize("tier", ["style-kiosk", "style-studio"])
@pytest.mark.parametrize("every", [1, 20])
def test_an_update_of_a_real_body_is_thirty_times_smaller_than_its_numbers(tier: str, every: int) -> None:
    layout = state.body_layout(registry.find(tier))
    moved = np.zeros(layout.size, np.float32)
    moved[::every] = drawn(layout, 1.0)[::every]

    update = Node(layout, Policy("guild", 1, tier)).seal(moved).update  # a policy as a new federation has it

    (array,) = wire.pack_answer(update).array_records["arrays"].values()
    assert np.count_nonzero(compression.decompress(update.payload, layout)) <= round(0.05 * layout.size)
    assert 30 * len(array.data) <= 4 * layout.size
    assert 30 * compression.max_bytes(layout, 0.05) <= 4 * layout.size  # whatever moved


# --- 6. The signature ---------------------------------------------------------------------------------------------------


def test_an_update_is_signed_with_the_enrolled_key() -> None:
    key = key_number(3)

    update = Node(key=key).seal(MOVED).update

    key.public_key().verify(update.signature, update.statement)
    with pytest.raises(InvalidSignature):
        KEY.public_key().verify(update.signature, update.statement)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "others"},
        {"round": 8},
        {"policy": "cd" * 32},
        {"tensors": ("stem.weight",)},
        {"layout_digest": "0" * 64},
        {"payload": b"SFC1"},
        {"loss_before": 2.5},
        {"loss_after": 0.5},
        {"steps": 21},
    ],
)
def test_the_signature_is_over_all_an_update_says(changes: dict[str, object]) -> None:
    update = replace(Node().seal(MOVED).update, **changes)  # type: ignore[arg-type]

    with pytest.raises(InvalidSignature):
        KEY.public_key().verify(update.signature, update.statement)


# --- 7. The ledger ------------------------------------------------------------------------------------------------------


def test_the_ledger_says_what_leaves_and_how_far_training_moved(ledger: Ledger) -> None:
    node = Node(policy=asked(clip=1.0, noise=0.25))
    sealed = node.seal(MOVED, np.ones(10, np.float32))

    guard.note(ledger, sealed.entry)

    (entry,) = ledger.entries()
    said = {name: value for name, value in entry.items() if name not in ("when", "before")}
    assert said == {
        "what": "update",
        "federation": "guild",
        "round": 7,
        "policy": "ab" * 32,
        "tensors": list(LAYOUT.names),
        "bytes": len(sealed.update.payload),
        "norm": pytest.approx(285**0.5),  # of the movement alone
        "norm-sent": privacy.norm(node.sent(sealed)),
        "noise": 0.25,
        "sha256": digest_of(sealed.update.payload),
        "loss-before": 2.0,
        "loss-after": 1.0,
        "steps": 20,
    }


def test_the_ledgers_digest_is_that_of_the_bytes_on_the_wire() -> None:
    sealed = Node().seal(MOVED)

    (array,) = wire.pack_answer(sealed.update).array_records["arrays"].values()

    assert digest_of(array.numpy().tobytes()) == sealed.entry["sha256"]
    assert array.data.endswith(sealed.update.payload)


def test_an_update_is_written_down_once_however_often_it_is_asked_for(ledger: Ledger) -> None:
    sealed = Node().seal(MOVED)

    for _ in range(3):
        guard.note(ledger, sealed.entry)

    assert len(ledger.entries()) == 1


@pytest.mark.parametrize("changes", [{"round": 8}, {"federation": "others"}, {"sha256": "0" * 64}])
def test_another_update_is_another_line(ledger: Ledger, changes: dict[str, str | int]) -> None:
    first = Node().seal(MOVED).entry
    guard.note(ledger, first)

    guard.note(ledger, {**first, **changes})

    assert len(ledger.entries()) == 2


def test_a_full_disk_is_told_so_that_nothing_is_sent(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ResourceError, match="ledger could not be written") as caught:
        guard.note(ledger, Node().seal(MOVED).entry)

    assert "nothing is sent" in caught.value.advice
    assert ledger.entries() == []


def test_a_ledger_that_was_changed_is_told_so_that_nothing_is_sent(ledger: Ledger) -> None:
    for number in (1, 2):
        guard.note(ledger, Node(round=number).seal(MOVED).entry)
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"round":1', b'"round":9'))

    with pytest.raises(IntegrityError, match="changed at line 2"):
        guard.note(ledger, Node(round=3).seal(MOVED).entry)


@pytest.mark.parametrize("odd", [MOVED * np.float32(math.nan), np.full(10, math.inf, np.float32)])
def test_what_could_not_be_sealed_is_not_written_down(ledger: Ledger, odd: Flat) -> None:
    with pytest.raises(ValueError, match="not finite"):
        guard.note(ledger, Node().seal(odd).entry)

    assert not ledger.path.exists()
