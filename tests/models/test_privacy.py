"""No update says more than its bound, whatever numbers it is made of."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.privacy import clip, norm
from models.update import Flat

finite = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
bounds = st.floats(1e-6, 1e6)


def exact_norm(delta: Flat) -> float:
    """A second opinion: summed without rounding."""
    return math.sqrt(math.fsum(float(x) ** 2 for x in delta))


@given(finite)
def test_the_norm_is_the_root_of_the_sum_of_squares(delta: Flat) -> None:
    assert norm(delta) == pytest.approx(exact_norm(delta), rel=1e-12)


def test_the_norm_does_not_lose_many_small_numbers_beside_a_large_one() -> None:
    delta = np.full(1_000_001, 1e-2, np.float32)
    delta[0] = 1e4

    # In float32 the squares of the small ones vanish beside 1e8, one by one.
    assert norm(delta) == pytest.approx(math.sqrt(1e8 + 1e6 * float(np.float32(1e-2)) ** 2), rel=1e-12)


@given(finite, bounds)
def test_a_clipped_update_is_never_longer_than_the_bound(delta: Flat, bound: float) -> None:
    assert exact_norm(clip(delta, bound)) <= bound


@given(finite, bounds)
def test_clipping_keeps_the_direction(delta: Flat, bound: float) -> None:
    length = exact_norm(delta)
    assume(length > bound)

    clipped = clip(delta, bound)

    # Float32 products of numbers near its smallest lose digits; they are not what makes the length.
    expected = delta.astype(np.float64) * (bound / length)
    assert np.allclose(clipped, expected, rtol=1e-5, atol=1e-6 * bound)


@given(finite)
def test_an_update_within_the_bound_is_left_as_it_is(delta: Flat) -> None:
    bound = max(norm(delta), 1e-30)

    clipped = clip(delta, bound)

    assert np.array_equal(clipped, delta)
    assert clipped is not delta


@pytest.mark.parametrize(("length", "expected"), [(0.999, 0.999), (1.0, 1.0), (1.001, 1.0)])
def test_the_bound_below_at_and_above(length: float, expected: float) -> None:
    delta = np.array([length, 0], np.float32)

    assert norm(clip(delta, 1.0)) == pytest.approx(expected, rel=2e-6)


def test_clipping_does_not_touch_what_it_was_given() -> None:
    delta = np.array([3, 4], np.float32)

    clip(delta, 1.0)

    assert delta.tolist() == [3, 4]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused(odd: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        clip(np.array([1, odd, 2], np.float32), 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, -math.inf])
def test_a_bound_that_is_not_positive_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        clip(np.ones(2, np.float32), bound)
