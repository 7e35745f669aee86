"""No update says more than its bound, whatever numbers it is made of; and noise is what it says and nobody's to foresee."""

import math
import secrets
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.privacy import clip, norm, secret_gaussian, with_noise
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


# --- Noise: the normal distribution ---------------------------------------------------------------------------------------
#
# Every bound is seven standard deviations of what it bounds, or as unlikely: one run in a hundred thousand million fails.

DRAWS: Final = 200_000


def deviations(found: float, expected: float, one: float) -> float:
    """How many standard deviations an estimate is off."""
    return abs(found - expected) / (one / math.sqrt(DRAWS))


def test_secret_draws_have_the_moments_of_the_normal_distribution() -> None:
    drawn = secret_gaussian(DRAWS)

    assert drawn.shape == (DRAWS,)
    assert np.isfinite(drawn).all()
    assert deviations(float(np.mean(drawn)), 0, 1) < 7
    assert deviations(float(np.mean(drawn**2)), 1, math.sqrt(2)) < 7
    assert deviations(float(np.mean(drawn**3)), 0, math.sqrt(15)) < 7
    assert deviations(float(np.mean(drawn**4)), 3, math.sqrt(96)) < 7


def test_secret_draws_are_distributed_as_the_error_function_says() -> None:
    # Kolmogorov and Smirnov: the greatest distance between the two distributions is above 3.6 / sqrt(n) once in 10^11 times.
    drawn = np.sort(secret_gaussian(DRAWS))
    exact = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in drawn])

    below, above = np.arange(DRAWS) / DRAWS, np.arange(1, DRAWS + 1) / DRAWS
    assert max(np.max(exact - below), np.max(above - exact)) < 3.6 / math.sqrt(DRAWS)


def test_secret_draws_do_not_depend_on_one_another() -> None:
    drawn = secret_gaussian(DRAWS)

    # Box and Muller's two of a pair stand half of all apart; what shares a radius would show in the squares. At that distance
    # each product stands twice in the mean.
    for lag in (1, 2, DRAWS // 2):
        turned = np.roll(drawn, lag)
        assert deviations(float(np.mean(drawn * turned)), 0, math.sqrt(2)) < 7
        assert deviations(float(np.mean((drawn**2 - 1) * (turned**2 - 1))), 0, math.sqrt(8)) < 7


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 1000, 1001])
def test_as_many_are_drawn_as_are_asked_for(count: int) -> None:
    drawn = secret_gaussian(count)

    assert drawn.shape == (count,)
    assert len(set(drawn.tolist())) == count


def test_no_two_draws_are_alike() -> None:
    assert not np.isin(secret_gaussian(1000), secret_gaussian(1000)).any()


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_the_rarest_bits_make_a_finite_number(monkeypatch: pytest.MonkeyPatch, byte: bytes) -> None:
    monkeypatch.setattr(secrets, "token_bytes", lambda count: byte * count)

    assert np.isfinite(secret_gaussian(10)).all()


# --- Noise: nobody's to foresee ---------------------------------------------------------------------------------------------


def seeded() -> None:
    """Set the generator that whoever wants to foresee the noise would set."""
    np.random.seed(0)  # noqa: NPY002 - it is the very generator that must not matter


@pytest.mark.parametrize("draw", [lambda: secret_gaussian(100), lambda: with_noise(np.zeros(100, np.float32), 1.0)])
def test_seeding_numpy_changes_nothing(draw: Callable[[], npt.NDArray[np.float64]]) -> None:
    seeded()
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    one = draw()
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    seeded()
    other = draw()

    assert not np.isin(one, other).any()
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert before["state"]["pos"] == after["state"]["pos"]
    np.testing.assert_array_equal(before["state"]["key"], after["state"]["key"])


def test_noise_is_made_of_the_systems_secret_bytes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # The positive control of the tests above: take the secret away, and the noise is the same each time.
    asked: list[int] = []

    def told(count: int) -> bytes:
        asked.append(count)
        return np.random.default_rng(5).bytes(count)

    monkeypatch.setattr(secrets, "token_bytes", told)
    one, other = (with_noise(np.zeros(100, np.float32), 1.0) for _ in range(2))

    np.testing.assert_array_equal(one, other)
    assert asked == [16 * 50] * 2  # sixteen bytes for a pair: none is used twice


# --- Noise on an update -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1e-3, 1.0, 50.0])
def test_noise_has_the_stated_length_and_lies_evenly(length: float) -> None:
    delta = np.linspace(-1, 1, DRAWS, dtype=np.float32)

    noise = (with_noise(delta, length).astype(np.float64) - delta) * (math.sqrt(DRAWS) / length)

    # Float32 rounds an update of ones to a part in ten million, beside which the smallest noise here is twenty times as large.
    assert deviations(float(np.mean(noise)), 0, 1) < 7
    assert deviations(float(np.mean(noise**2)), 1, math.sqrt(2)) < 8
    assert deviations(float(np.mean(noise * delta)), 0, math.sqrt(1 / 3)) < 7


@given(finite)
def test_no_noise_leaves_an_update_as_it_is(delta: Flat) -> None:
    noised = with_noise(delta, 0.0)

    assert noised.tobytes() == delta.tobytes()
    assert noised is not delta


def test_no_noise_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_bytes", lambda _count: pytest.fail("secret bytes were drawn"))

    with_noise(np.ones(5, np.float32), 0.0)


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_an_update_of_no_numbers_stays_one(length: float) -> None:
    assert with_noise(np.zeros(0, np.float32), length).shape == (0,)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_number_gets_noise(size: int) -> None:
    delta = np.ones(size, np.float32)

    noised = with_noise(delta, 1.0)

    assert noised.dtype == np.float32
    assert noised.shape == delta.shape
    assert (noised != delta).all()
    assert (delta == 1).all()  # and what was given is untouched


@pytest.mark.parametrize("length", [-1.0, -1e-300, math.nan, math.inf, -math.inf])
def test_a_length_that_is_none_is_refused(length: float) -> None:
    with pytest.raises(ValueError, match="noise must have a length of 0 or more"):
        with_noise(np.ones(2, np.float32), length)
