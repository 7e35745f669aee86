"""Many updates → one movement of the body: every artist counts the same, however many works or steps stand behind an update.

Nothing is held but sums: updates are read again from where they lie, once for the mean and a few times for the median, so that
memory does not grow with the number of nodes. Sums are in float64 and in the order the updates are given in, so that the same
updates give the same body, bit for bit.

The robust way is the geometric median of updates clipped to their median norm. Not Krum or Multi-Krum, which with no attacker
at all throw away whoever paints unlike the others; and no rule helps where attackers are many among few.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models import privacy
from models.update import Flat

_WEISZFELD_STEPS: Final = 32
_CONVERGED: Final = 1e-7  # of the median norm
_SMOOTHING: Final = 1e-6  # of the median norm: keeps the weight of an update that is the median itself finite

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contribution:
    """One artist's part.

    Attributes:
        delta: how far training moved the body.
        steps: batches it trained on.
    """

    delta: Flat
    steps: int


Contributions = Callable[[], Iterable[Contribution]]
"""Gives all parts, one after the other and in the same order, as often as it is asked."""


def mean(contributions: Contributions, steps: int, clip: float) -> Doubles:
    """The mean of the parts, each brought to the same number of steps first.

    An artist whose machine managed half of the steps moved half as far, and would count half (FedNova, Wang et al. 2020, arXiv
    2007.07481). What is enlarged for it is clipped anew: who claims fewer steps than he made gains nothing beyond the clip.

    Args:
        contributions: the parts.
        steps: how many batches the policy says.
        clip: greatest L2 norm of a part.

    Raises:
        ValueError: there is none.
    """
    total: Doubles | None = None
    count = 0
    for part in contributions():
        delta = _normalised(part, steps, clip)
        total = delta if total is None else total + delta
        count += 1
    if total is None:
        raise ValueError("there is no update to average")
    return total / count


def robust(contributions: Contributions, steps: int, clip: float) -> Doubles:
    """The geometric median of the parts, clipped to their median norm: Weiszfeld's iteration, smoothed (Pillutla et al. 2022,
    arXiv 1912.13445, algorithm 2).

    Args, raises: as ``mean``.
    """
    norms = [float(np.linalg.norm(_normalised(part, steps, clip))) for part in contributions()]
    if not norms:
        raise ValueError("there is no update to average")
    bound = statistics.median(norms)
    if bound == 0:
        return mean(contributions, steps, clip)
    centre = _weighted(contributions, steps, clip, bound, lambda _delta: 1.0)
    for _ in range(_WEISZFELD_STEPS):
        before = centre
        centre = _weighted(contributions, steps, clip, bound, _nearness(before, _SMOOTHING * bound))
        if float(np.linalg.norm(centre - before)) <= _CONVERGED * bound:
            break
    return centre


def moved(body: Flat, movement: Doubles) -> Flat:
    """The body, moved."""
    return (body.astype(np.float64) + movement).astype(np.float32)


def _nearness(centre: Doubles, least: float) -> Callable[[Doubles], float]:
    return lambda delta: 1 / max(least, float(np.linalg.norm(delta - centre)))


def _weighted(
    contributions: Contributions, steps: int, clip: float, bound: float, weigh: Callable[[Doubles], float]
) -> Doubles:
    total: Doubles = np.zeros(0)
    weights = 0.0
    for part in contributions():
        delta = _clipped(_normalised(part, steps, clip), bound)
        weight = weigh(delta)
        total = weight * delta if not weights else total + weight * delta
        weights += weight
    return total / weights


def _normalised(part: Contribution, steps: int, clip: float) -> Doubles:
    return _clipped(part.delta.astype(np.float64) * (steps / part.steps), max(clip, privacy.norm(part.delta)))


def _clipped(delta: Doubles, bound: float) -> Doubles:
    length = float(np.linalg.norm(delta))
    return delta if length <= bound else delta * (bound / length)
