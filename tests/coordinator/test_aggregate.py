"""The mean of updates: the same whoever comes first, and each artist counts once."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coordinator.aggregate import Mean
from models.update import Flat

numbers = st.floats(-1e3, 1e3, width=32)
updates = st.lists(arrays(np.float32, 7, elements=numbers), min_size=1, max_size=8)


def mean_of(deltas: list[Flat], body: Flat) -> Flat:
    mean = Mean(body.size)
    for delta in deltas:
        mean.add(delta)
    return mean.applied_to(body)


@given(updates, arrays(np.float32, 7, elements=numbers))
def test_it_is_the_mean_that_numpy_computes(deltas: list[Flat], body: Flat) -> None:
    expected = body.astype(np.float64) + np.mean(np.stack(deltas).astype(np.float64), axis=0)

    # Two float64 sums in different orders, rounded to float32 once.
    np.testing.assert_allclose(mean_of(deltas, body), expected, rtol=1e-6, atol=1e-6)


@given(updates, st.integers(0, 2**32))
def test_the_order_of_the_artists_does_not_matter(deltas: list[Flat], seed: int) -> None:
    shuffled = random.Random(seed).sample(deltas, len(deltas))  # noqa: S311 - no secret

    np.testing.assert_allclose(mean_of(shuffled, deltas[0]), mean_of(deltas, deltas[0]), rtol=1e-6, atol=1e-6)


def test_every_artist_counts_the_same() -> None:
    near, far = np.full(3, 1, np.float32), np.full(3, -3, np.float32)

    np.testing.assert_array_equal(mean_of([near, near, far, far], np.zeros(3, np.float32)), np.full(3, -1, np.float32))


def test_many_small_updates_are_not_lost_beside_a_large_body() -> None:
    body = np.full(1, 4096, np.float32)
    # In float32 a sum of 1e4 such numbers drifts; the mean must still be the number itself.
    step = np.float32(0.1)
    mean = Mean(1)
    for _ in range(10_000):
        mean.add(np.array([step], np.float32))

    np.testing.assert_array_equal(mean.applied_to(body), body + step)


def test_the_body_and_the_updates_are_not_changed() -> None:
    body, delta = np.ones(4, np.float32), np.ones(4, np.float32)

    moved = mean_of([delta], body)

    assert body.tolist() == delta.tolist() == [1.0] * 4
    assert moved.tolist() == [2.0] * 4
    assert moved.dtype == np.float32


def test_it_counts() -> None:
    mean = Mean(2)
    mean.add(np.zeros(2, np.float32))
    mean.add(np.zeros(2, np.float32))

    assert mean.count == 2


@pytest.mark.parametrize("shape", [(3,), (5,), (0,), (2, 2)])
def test_an_update_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 4 numbers"):
        Mean(4).add(np.zeros(shape, np.float32))


def test_without_updates_there_is_nothing_to_apply() -> None:
    with pytest.raises(ValueError, match="no update"):
        Mean(4).applied_to(np.zeros(4, np.float32))
