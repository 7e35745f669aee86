"""Many updates to one: every artist counts the same, in any number, and an outlier moves the median little."""

import itertools
import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordinator import aggregate
from coordinator.aggregate import Contribution, Contributions
from models.update import Flat

STEPS, CLIP = 20, 10.0
vectors = hnp.arrays(np.float32, 6, elements=st.floats(-3, 3, width=32))


def of(*deltas: Flat | list[float], steps: Iterable[int] | None = None) -> Contributions:
    each = list(steps or [STEPS] * len(deltas))
    return lambda: [Contribution(np.asarray(d, np.float32), n) for d, n in zip(deltas, each, strict=True)]


@given(st.lists(vectors, min_size=1, max_size=7))
def test_the_mean_is_the_mean(deltas: list[Flat]) -> None:
    expected = np.mean(np.stack(deltas).astype(np.float64), axis=0)

    np.testing.assert_allclose(aggregate.mean(of(*deltas), STEPS, CLIP), expected, atol=1e-12)


@pytest.mark.parametrize("combine", [aggregate.mean, aggregate.robust])
def test_the_same_updates_in_the_same_order_give_the_same_bits(combine: object) -> None:
    rng = np.random.default_rng(0)
    parts = of(*[rng.standard_normal(1000).astype(np.float32) for _ in range(9)])
    assert callable(combine)

    assert combine(parts, STEPS, 1e3).tobytes() == combine(parts, STEPS, 1e3).tobytes()


@pytest.mark.parametrize("combine", [aggregate.mean, aggregate.robust])
def test_nothing_cannot_be_averaged(combine: object) -> None:
    assert callable(combine)
    with pytest.raises(ValueError, match="no update to average"):
        combine(of(), STEPS, CLIP)


def test_who_made_half_of_the_steps_counts_as_much() -> None:
    moved = aggregate.mean(of([2.0, 0.0], [0.0, 1.0], steps=[20, 10]), STEPS, CLIP)

    assert moved.tolist() == [1.0, 1.0]


def test_who_claims_fewer_steps_gains_nothing_beyond_the_clip() -> None:
    moved = aggregate.mean(of([9.0, 0.0], [0.0, 9.0], steps=[20, 1]), STEPS, CLIP)

    assert moved.tolist() == pytest.approx([4.5, 5.0])


def test_what_is_within_the_slack_of_the_clip_is_not_shortened() -> None:
    assert aggregate.mean(of([10.0005, 0.0]), STEPS, CLIP)[0] == pytest.approx(10.0005)


def test_the_median_of_a_line_is_the_middle_one() -> None:
    moved = aggregate.robust(of([1.0, 0.0], [1.1, 0.0], [0.9, 0.0]), STEPS, CLIP)

    np.testing.assert_allclose(moved, [1.0, 0.0], atol=0.01)


def test_the_median_makes_the_sum_of_distances_least() -> None:
    # A second opinion: a search by hand, over updates of one length, which clipping leaves alone.
    rng = np.random.default_rng(3)
    deltas = rng.standard_normal((5, 2)).astype(np.float32)
    deltas /= np.linalg.norm(deltas, axis=1, keepdims=True)

    found = aggregate.robust(of(*deltas), STEPS, CLIP)

    def distance(point: object) -> float:
        return float(np.linalg.norm(deltas - np.asarray(point), axis=1).sum())

    near = [found + np.array(step) * 1e-3 for step in itertools.product((-1, 0, 1), repeat=2)]
    grid = [np.array(point) for point in itertools.product(np.linspace(-1, 1, 81), repeat=2)]
    assert distance(found) <= min(map(distance, near)) + 1e-6
    assert distance(found) <= min(map(distance, grid)) + 1e-6


@pytest.mark.parametrize("count", [5, 10, 20])
@pytest.mark.parametrize("attack", ["hundredfold", "backwards", "noise"])
def test_one_attacker_moves_the_median_little_and_the_mean_much(count: int, attack: str) -> None:
    rng = np.random.default_rng(count)
    common, own = rng.standard_normal(500), rng.standard_normal((count, 500))
    honest = [(common + own[n]).astype(np.float32) for n in range(count - 1)]
    wanted = np.mean(honest, axis=0)
    evil = {"hundredfold": -100 * wanted, "backwards": -wanted * 3, "noise": 40 * rng.standard_normal(500)}[attack]
    parts = of(*honest, evil.astype(np.float32))

    robust = aggregate.robust(parts, STEPS, 1e6)

    assert _cosine(robust, wanted) >= 0.9
    if attack == "hundredfold":
        assert _cosine(aggregate.mean(parts, STEPS, 1e6), wanted) < 0


def test_without_an_attacker_no_artist_is_left_out() -> None:
    # Krum and Multi-Krum would drop whoever paints unlike the others: the share of the one worst treated is far below zero.
    rng = np.random.default_rng(1)
    common, own = rng.standard_normal(500), rng.standard_normal((5, 500))
    deltas = [(common + own[n]).astype(np.float32) for n in range(5)]

    robust, mean = (combine(of(*deltas), STEPS, 1e6) for combine in (aggregate.robust, aggregate.mean))

    shares = [float(robust @ own[n]) / float(mean @ own[n]) for n in range(5)]
    assert min(shares) >= 0.8


def test_updates_that_say_nothing_are_no_division_by_zero() -> None:
    assert aggregate.robust(of([0.0, 0.0], [0.0, 0.0], [1.0, 0.0]), STEPS, CLIP).tolist() == pytest.approx([1 / 3, 0.0])


@pytest.mark.parametrize("combine", [aggregate.mean, aggregate.robust])
def test_memory_does_not_grow_with_the_number_of_updates(combine: object) -> None:
    size = 50_000
    assert callable(combine)

    def many(count: int) -> Contributions:
        return lambda: (Contribution(np.full(size, 1e-3 * (n % 7), np.float32), STEPS) for n in range(count))

    def peak(count: int) -> int:
        tracemalloc.start()
        combine(many(count), STEPS, CLIP)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(3)
    assert peak(60) < 1.2 * peak(6)


def test_the_body_is_moved_in_double_precision() -> None:
    body = np.array([1.0, 1e8], np.float32)

    assert aggregate.moved(body, np.array([1e-9, 3.0])).tolist() == [1.0, np.float32(100000003.0)]


def _cosine(a: object, b: object) -> float:
    one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
