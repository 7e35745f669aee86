"""Intervals of means and of ratios of means, resampled over whole artists, photos and seeds.

A result is an array (seeds, artists, photos). Cells that share a seed, an artist or a photo are not independent, so all
three are drawn anew, with replacement and independently of each other, and a cell counts as often as its seed times its
artist times its photo came up (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111). It is a little too wide rather than
too narrow. Two rows that are compared get the same draws, so that what they share (a hard artist, a hard photo) falls out.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    return interval(float(cells.mean()), drawn_means(cells, draws))


def ratio(cells: Floats, others: Floats, draws: int = DRAWS) -> Interval:
    """Mean of some cells over the mean of others of the same shape, drawn alike.

    Raises:
        ValueError: the shapes differ.
    """
    if cells.shape != others.shape:
        raise ValueError(f"rows of shape {cells.shape} and {others.shape} cannot be compared cell by cell")
    return interval(float(cells.mean() / others.mean()), drawn_means(cells, draws) / drawn_means(others, draws))


def difference(some: Floats, others: Floats, draws: int = DRAWS) -> Interval:
    """Mean of some independent numbers (N,) minus the mean of others (M,)."""
    drawn = drawn_means(some, draws) - drawn_means(others, draws, _SEED + 1)
    return interval(float(some.mean() - others.mean()), drawn)


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


def interval(value: float, drawn: Floats) -> Interval:
    """An estimate with the middle 95 % of what was drawn."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
