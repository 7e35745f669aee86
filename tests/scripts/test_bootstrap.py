import numpy as np
import pytest

from scripts import bootstrap


def test_interval_of_a_constant_has_no_width() -> None:
    found = bootstrap.mean(np.full((2, 3, 4), 0.7))
    assert found.low == pytest.approx(0.7)
    assert found.high == pytest.approx(0.7)


def test_interval_of_normal_numbers_is_near_the_closed_form() -> None:
    numbers = np.random.default_rng(0).standard_normal(400)
    found = bootstrap.mean(numbers)
    assert found.half == pytest.approx(1.96 * numbers.std() / 20, rel=0.08)
    assert found.value == pytest.approx(numbers.mean())


def test_cells_that_share_an_artist_are_not_taken_for_independent() -> None:
    artists = np.random.default_rng(1).standard_normal(10)
    cells = np.broadcast_to(artists[None, :, None], (4, 10, 50)).copy()
    assert bootstrap.mean(cells).half == pytest.approx(2.262 * artists.std(ddof=1) / np.sqrt(10), rel=0.1)  # t of 9


def test_five_artists_and_two_seeds_are_covered_as_often_as_said() -> None:
    """Additive effects of seed, artist and photo; plain percentiles, the control, cover too seldom."""
    rng, trials = np.random.default_rng(4), 200
    covered = {"ours": 0, "plain": 0}
    for _ in range(trials):
        cells = rng.normal(0, 0.3, (2, 1, 1)) + rng.normal(0, 1, (1, 5, 1)) + rng.normal(0, 0.5, (1, 1, 6))
        cells = cells + rng.normal(0, 0.1, (2, 5, 6))
        plain = bootstrap.interval(float(cells.mean()), bootstrap.drawn_means(cells, 400))
        for name, found in (("ours", bootstrap.mean(cells, 400)), ("plain", plain)):
            covered[name] += found.low <= 0 <= found.high

    assert covered["ours"] / trials > 0.92
    assert covered["plain"] / trials < 0.9


def test_ratio_of_rows_that_differ_by_a_factor_is_that_factor_without_width() -> None:
    cells = np.random.default_rng(2).uniform(1, 2, (2, 5, 6))
    found = bootstrap.ratio(0.8 * cells, cells)
    assert (found.low, found.value, found.high) == pytest.approx((0.8, 0.8, 0.8))


def test_ratio_refuses_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="cell by cell"):
        bootstrap.ratio(np.ones((2, 3)), np.ones((2, 4)))


def test_difference_of_independent_means_has_the_closed_form() -> None:
    rng = np.random.default_rng(3)
    some, others = rng.normal(3, 1, 200), rng.normal(1, 2, 300)
    found = bootstrap.difference(some, others)
    assert found.value == pytest.approx(some.mean() - others.mean())
    assert found.half == pytest.approx(1.96 * np.sqrt(some.var() / 200 + others.var() / 300), rel=0.1)
