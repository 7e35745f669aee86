"""Bounding what one update can say. Pure arithmetic on flat arrays; noise and accounting join it here."""

from __future__ import annotations

import numpy as np

from models.update import Flat


def norm(delta: Flat) -> float:
    """L2 norm, summed in float64 so that millions of small squares are not lost."""
    return float(np.sqrt(np.sum(np.square(delta, dtype=np.float64))))


def clip(delta: Flat, bound: float) -> Flat:
    """The update, made shorter if it is longer than ``bound`` (Abadi et al. 2016, arXiv 1607.00133, algorithm 1).

    Raises:
        ValueError: the bound is not positive, or the update is not finite (it must not be sent at all).
    """
    if not bound > 0:
        raise ValueError(f"a clipping bound must be positive, not {bound}")
    length = norm(delta)
    if not np.isfinite(length):
        raise ValueError("the update holds numbers that are not finite")
    if length <= bound:
        return delta.astype(np.float32, copy=True)
    # One part in a million below the bound, so that float32 rounding cannot lift the result over it; and in float64, since
    # a huge update has a scale below float32's normal range, where digits are lost.
    return np.multiply(delta, bound / length * (1 - 1e-6), dtype=np.float64).astype(np.float32)
