"""Intervals of means and of ratios of means, resampled over whole artists, photos and seeds.

A result is an array (seeds, artists, photos). Cells that share a seed, an artist or a photo are not independent, so all
three are drawn anew, with replacement and independently of each other, and a cell counts as often as its seed times its
artist times its photo came up (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111). Of five artists that alone would be
too narrow, as what is drawn of few always is: the interval is read further out in the tails, by as much as Student's t asks
for so many of what the spread comes from most (Hesterberg 2015, arXiv 1411.5279, "expanded percentile interval"). Two rows
that are compared get the same draws, so that what they share (a hard artist, a hard photo) falls out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

DRAWS: Final = 2000
LEVEL: Final = 0.95
_SEED: Final = 1503


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def mean(cells: Floats, draws: int = DRAWS) -> Interval:
    """Of an array of any number of axes, each of which is drawn anew as a whole."""
    return interval(float(cells.mean()), drawn_means(cells, draws), _independent(cells))


def ratio(cells: Floats, others: Floats, draws: int = DRAWS) -> Interval:
    """Mean of some cells over the mean of others of the same shape, drawn alike.

    Raises:
        ValueError: the shapes differ.
    """
    if cells.shape != others.shape:
        raise ValueError(f"rows of shape {cells.shape} and {others.shape} cannot be compared cell by cell")
    found = float(cells.mean() / others.mean())
    drawn = drawn_means(cells, draws) / drawn_means(others, draws)
    return interval(found, drawn, _independent(cells - found * others))


def difference(some: Floats, others: Floats, draws: int = DRAWS) -> Interval:
    """Mean of some independent numbers (N,) minus the mean of others (M,)."""
    drawn = drawn_means(some, draws) - drawn_means(others, draws, _SEED + 1)
    return interval(float(some.mean() - others.mean()), drawn, min(len(some), len(others)))


def drawn_means(cells: Floats, draws: int = DRAWS, seed: int = _SEED) -> Floats:
    """(draws,) means of an array whose every axis is drawn with replacement; the same seed draws alike."""
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(size, np.full(size, 1 / size), size=draws) / size for size in cells.shape]
    found = np.empty(draws)
    for i in range(draws):
        left = cells
        for axis in weights:
            left = np.tensordot(axis[i], left, axes=1)
        found[i] = float(left)
    return found


def _independent(cells: Floats) -> int:
    """Along the axis that the mean's spread comes from most, how many there are."""
    spreads = {
        axis: float(np.moveaxis(cells, axis, 0).reshape(size, -1).mean(axis=1).var(ddof=1)) / size
        for axis, size in enumerate(cells.shape)
        if size > 1
    }
    return cells.shape[max(spreads, key=lambda axis: spreads[axis])] if spreads else 1


def interval(value: float, drawn: Floats, independent: int | None = None) -> Interval:
    """An estimate with the middle of what was drawn: 95 % of it, or more where it was drawn of few.

    Args:
        value: the estimate.
        drawn: what it would be with other draws.
        independent: of how many it is the mean; without, of so many that it does not matter.
    """
    tail = (1 - LEVEL) / 2
    if independent is not None and independent > 1:
        tail = NormalDist().cdf(-_student(independent - 1) * math.sqrt(independent / (independent - 1)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


@cache
def _student(freedom: int) -> float:
    """The quantile of Student's t that 95 % stay within, to a hundredth: by drawing, which takes no other package."""
    drawn = np.abs(np.random.default_rng(_SEED).standard_t(freedom, 2_000_000))
    return float(np.quantile(drawn, LEVEL))
