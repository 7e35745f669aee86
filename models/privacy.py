"""Bounding what one update can say: its norm, and noise on it. Pure arithmetic on flat arrays."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

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


def with_noise(delta: Flat, length: float) -> Flat:
    """The update with Gaussian noise of a stated expected length on it: each number gets a standard deviation of
    ``length / sqrt(size)``.

    The noise is drawn from the operating system's secret randomness, by Box and Muller's transform: whoever could foresee the
    generator could take it off again. Not from one in our own process, whose state a memory dump would give away.

    Raises:
        ValueError: the length is negative or not finite.
    """
    if not (np.isfinite(length) and length >= 0):
        raise ValueError(f"noise must have a length of 0 or more, not {length}")
    if length == 0 or not delta.size:
        return delta.astype(np.float32, copy=True)
    noised: npt.NDArray[np.float64] = delta + secret_gaussian(delta.size) * (length / np.sqrt(delta.size))
    return noised.astype(np.float32)


def secret_gaussian(count: int) -> npt.NDArray[np.float64]:
    """Independent standard normal numbers from the operating system's randomness (Box and Muller 1958)."""
    pairs = (count + 1) // 2
    bits = np.frombuffer(secrets.token_bytes(16 * pairs), np.uint64).reshape(2, pairs) >> np.uint64(11)
    radius = np.sqrt(-2 * np.log((bits[0] + 1.0) / 2**53))  # never the logarithm of zero
    angle = 2 * np.pi * bits[1] / 2**53
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
