"""Each check of admission, at its limit and on both sides of it."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from coordinator.admission import ADVICE, Accepted, Reason, Rejected, Terms, admit
from models import compression
from models.update import DeclineReason, Layout, Update
from tests.simulators import credentials

ADA, BERTHE = credentials("Ada"), credentials("Berthe")
LAYOUT = Layout((("blocks.0.weight", (2, 3)), ("stem.weight", (4,))))
PRIVATE = frozenset({"codes", "norm_mean", "norm_var"})
TERMS = Terms("guild", 7, "p" * 64, LAYOUT, steps=20, clip=2.0, keep=1.0, private=PRIVATE)


def payload(length: float = 1.0, bound: float = 1e9) -> bytes:
    delta = np.zeros(10, np.float32)
    delta[0] = length
    return compression.compress(delta, LAYOUT, 1.0, bound, np.random.default_rng(0))


def update(**changes: Any) -> Update:
    """An honest update of norm 1, but for what is changed before it is signed."""
    plain = {
        "federation": "guild",
        "round": 7,
        "policy": "p" * 64,
        "tensors": LAYOUT.names,
        "layout_digest": LAYOUT.digest,
        "payload": payload(),
        "loss_before": 2.0,
        "loss_after": 1.0,
        "steps": 20,
    }
    made = Update(**{**plain, **changes})
    return replace(made, signature=ADA.enrolled.sign(made.statement))


def assert_rejected(changed: Update, reason: Reason, *, has_answered: bool = False) -> None:
    assert admit(changed, TERMS, ADA.keys.enrolled, has_answered=has_answered) == Rejected(reason)


@pytest.mark.parametrize("length", [0.0, 1.0, 1.999, 2.0, 2.0001])
def test_an_honest_update_is_accepted_with_what_it_says_and_its_norm(length: float) -> None:
    verdict = admit(update(payload=payload(length)), TERMS, ADA.keys.enrolled, has_answered=False)

    assert isinstance(verdict, Accepted)
    assert verdict.norm == pytest.approx(length, rel=1e-6)
    assert verdict.delta.tolist() == pytest.approx([length, *[0.0] * 9], rel=1e-6)


def test_1_a_payload_may_be_twice_as_long_as_an_honest_one_and_no_longer() -> None:
    longest = 2 * compression.max_bytes(LAYOUT, 1.0)

    assert_rejected(update(payload=b"x" * (longest + 1)), "too-large")
    assert_rejected(update(payload=b"x" * longest), "payload")


def test_2_an_update_signed_by_another_member_is_rejected() -> None:
    assert_rejected(replace(update(), signature=BERTHE.enrolled.sign(update().statement)), "signature")


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "others"},
        {"round": 8},
        {"policy": "q" * 64},
        {"tensors": LAYOUT.names[::-1]},
        {"layout_digest": "0" * 64},
        {"payload": payload(1.5)},
        {"loss_before": 2.5},
        {"loss_after": 1.5},
        {"steps": 19},
        {"signature": b""},
        {"signature": b"x" * 64},
    ],
)
def test_2_nothing_of_an_update_can_be_changed_after_it_was_signed(changes: dict[str, Any]) -> None:
    assert_rejected(replace(update(), **changes), "signature")


def test_2_a_member_without_a_usable_key_has_signed_nothing() -> None:
    assert admit(update(), TERMS, b"short", has_answered=False) == Rejected("signature")


@pytest.mark.parametrize("number", [0, 6, 8, -7])
def test_3_another_round_is_rejected(number: int) -> None:
    assert_rejected(update(round=number), "another-round")


def test_3_another_federations_round_is_rejected() -> None:
    assert_rejected(update(federation="others"), "another-round")


@pytest.mark.parametrize("policy", ["", "q" * 64, "P" * 64])
def test_3_another_policy_is_rejected(policy: str) -> None:
    assert_rejected(update(policy=policy), "another-policy")


@pytest.mark.parametrize(("steps", "is_accepted"), [(-1, False), (0, False), (1, True), (20, True), (21, False)])
def test_3_steps_are_one_to_those_of_the_policy(steps: int, *, is_accepted: bool) -> None:
    verdict = admit(update(steps=steps), TERMS, ADA.keys.enrolled, has_answered=False)

    assert isinstance(verdict, Accepted) if is_accepted else verdict == Rejected("too-many-steps")


@pytest.mark.parametrize("name", ["codes", "norm_mean", "norm_var"])
def test_4_a_private_tensor_is_called_so(name: str) -> None:
    assert_rejected(update(tensors=(*LAYOUT.names, name)), "private-tensor")
    assert_rejected(update(tensors=(name, "a stranger")), "private-tensor")


@pytest.mark.parametrize(
    "names", [(), LAYOUT.names[:1], LAYOUT.names[::-1], (*LAYOUT.names, LAYOUT.names[0]), ("", ""), (*LAYOUT.names, "x")]
)
def test_4_any_other_set_of_names_is_rejected(names: tuple[str, ...]) -> None:
    assert_rejected(update(tensors=names), "unknown-tensor")


@pytest.mark.parametrize("digest", ["", "0" * 64, LAYOUT.digest.upper()])
def test_4_another_digest_is_rejected(digest: str) -> None:
    assert_rejected(update(layout_digest=digest), "another-layout")


@pytest.mark.parametrize("sent", [b"", b"nonsense", payload()[:-1], payload() + b"\0", b"\0" + payload()[1:]])
def test_4_a_payload_in_another_form_is_rejected(sent: bytes) -> None:
    assert_rejected(update(payload=sent), "payload")


def test_5_numbers_that_are_not_finite_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    # The payload's form has no room for them; should it ever get some, this check stands behind.
    spoilt = np.array([np.nan, *[0.0] * 9], np.float32)
    monkeypatch.setattr(compression, "decompress", lambda _payload, _layout: spoilt)

    assert_rejected(update(), "not-finite")


@pytest.mark.parametrize("length", [2.001, 4.0, 1e6])
def test_6_what_is_longer_than_the_clip_is_rejected(length: float) -> None:
    assert_rejected(update(payload=payload(length)), "norm-too-large")


def test_7_a_second_answer_is_rejected() -> None:
    assert_rejected(update(), "answered-twice", has_answered=True)


def test_every_reason_has_advice() -> None:
    reasons = {reason for part in get_args(Reason) for reason in (get_args(part) or (part,))}

    assert set(get_args(DeclineReason)) <= reasons
    assert set(ADVICE) == reasons
    assert all(advice.endswith((".", "list", "show", "accept", "?", "toml")) or advice for advice in ADVICE.values())
