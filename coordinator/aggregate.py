"""Many updates → one: every artist counts the same, however many works or steps stand behind an update.

Streaming: one float64 sum is held, whatever the number of nodes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.update import Flat


class Mean:
    """A running mean of updates."""

    def __init__(self, size: int) -> None:
        self._sum: npt.NDArray[np.float64] = np.zeros(size, np.float64)
        self.count = 0

    def add(self, delta: Flat) -> None:
        """Count one more artist.

        Raises:
            ValueError: another length.
        """
        if delta.shape != self._sum.shape:
            raise ValueError(f"expected {self._sum.size} numbers, got {delta.size}")
        self._sum += delta
        self.count += 1

    def applied_to(self, body: Flat) -> Flat:
        """The body, moved by the mean update.

        Raises:
            ValueError: nothing was added.
        """
        if self.count == 0:
            raise ValueError("there is no update to apply")
        return (body.astype(np.float64) + self._sum / self.count).astype(np.float32)
