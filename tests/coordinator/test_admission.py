"""Each check of admission, at its limit and on both sides of it."""

from dataclasses import replace

import numpy as np
import pytest

from coordinator.admission import Accepted, Reason, Rejected, Terms, admit
from models.update import Layout, Update

LAYOUT = Layout((("blocks.0.weight", (2, 3)), ("stem.weight", (4,))))
TERMS = Terms(round=7, layout=LAYOUT, clip=2.0, private=frozenset({"codes", "norm_mean", "norm_var"}))


def update(length: float = 1.0) -> Update:
    delta = np.zeros(10, np.float32)
    delta[0] = length
    return Update(7, LAYOUT.names, LAYOUT.digest, delta, 2.0, 1.0, 20)


def assert_rejected(changed: Update, reason: Reason, *, has_answered: bool = False) -> None:
    assert admit(changed, TERMS, has_answered=has_answered) == Rejected(reason)


@pytest.mark.parametrize("length", [0.0, 1.0, 1.999, 2.0, 2.0001])
def test_an_honest_update_is_accepted_with_its_norm(length: float) -> None:
    verdict = admit(update(length), TERMS, has_answered=False)

    assert isinstance(verdict, Accepted)
    assert verdict.norm == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("number", [0, 6, 8, -7])
def test_2_another_round_is_rejected(number: int) -> None:
    assert_rejected(replace(update(), round=number), "another-round")


@pytest.mark.parametrize("name", ["codes", "norm_mean", "norm_var"])
def test_3_a_private_tensor_is_called_so(name: str) -> None:
    assert_rejected(replace(update(), tensors=(*LAYOUT.names, name)), "private-tensor")
    assert_rejected(replace(update(), tensors=(name, "a stranger")), "private-tensor")


@pytest.mark.parametrize(
    "names", [(), LAYOUT.names[:1], LAYOUT.names[::-1], (*LAYOUT.names, LAYOUT.names[0]), ("", ""), (*LAYOUT.names, "x")]
)
def test_3_any_other_set_of_names_is_rejected(names: tuple[str, ...]) -> None:
    assert_rejected(replace(update(), tensors=names), "unknown-tensor")


@pytest.mark.parametrize("shape", [(0,), (9,), (11,), (10, 1), (2, 5), ()])
def test_4_another_shape_is_rejected(shape: tuple[int, ...]) -> None:
    assert_rejected(replace(update(), delta=np.zeros(shape, np.float32)), "another-layout")


@pytest.mark.parametrize("digest", ["", "0" * 64, LAYOUT.digest.upper()])
def test_4_another_digest_is_rejected(digest: str) -> None:
    assert_rejected(replace(update(), layout_digest=digest), "another-layout")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_5_one_number_that_is_not_finite_is_enough(value: float, place: int) -> None:
    spoilt = update()
    spoilt.delta[place] = value

    assert_rejected(spoilt, "not-finite")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_5_a_loss_that_is_not_finite_is_rejected(value: float) -> None:
    assert_rejected(replace(update(), loss_before=value), "not-finite")
    assert_rejected(replace(update(), loss_after=value), "not-finite")


@pytest.mark.parametrize("length", [2.001, 3.0, 1e20, float(np.finfo(np.float32).max)])
def test_6_a_longer_update_than_asked_for_is_rejected(length: float) -> None:
    assert_rejected(update(length), "norm-too-large")


def test_6_many_small_numbers_are_summed_and_not_looked_at_singly() -> None:
    assert_rejected(replace(update(), delta=np.full(10, 0.7, np.float32)), "norm-too-large")  # 0.7 * sqrt(10) = 2.2


def test_7_a_second_answer_is_rejected() -> None:
    assert_rejected(update(), "answered-twice", has_answered=True)


def test_the_checks_come_in_their_order() -> None:
    worst = replace(update(99.0), round=1, tensors=("codes",), layout_digest="")

    assert_rejected(worst, "another-round", has_answered=True)
    assert_rejected(replace(worst, round=7), "private-tensor", has_answered=True)
    assert_rejected(replace(worst, round=7, tensors=LAYOUT.names), "another-layout", has_answered=True)
