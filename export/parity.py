"""How far two compiled graphs of the same style differ on the same photos, and whether that is near enough to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.contract import Work
from models.measures import psnr, ssim

# int8 against folded fp32. Below 32 dB and 0.95 a viewer who flips between the two sees flat areas change
# (DESIGN, section 6; measured again on the trained network in the README).
INT8_PSNR_DB = 32.0
INT8_SSIM = 0.95


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of two sets of pictures: the mean over the pairs."""

    psnr_db: float
    ssim: float

    def is_near(self, psnr_db: float = INT8_PSNR_DB, ssim: float = INT8_SSIM) -> bool:
        """Whether both figures reach their floor; NaN reaches nothing."""
        return self.psnr_db >= psnr_db and self.ssim >= ssim


def compare(reference: Sequence[Work], other: Sequence[Work]) -> Parity:
    """Mean PSNR (capped at 99 dB for equal pictures) and mean SSIM of the pairs.

    Raises:
        ValueError: nothing to compare, or another number of pictures.
    """
    if not reference:
        raise ValueError("parity needs at least one pair of pictures")
    pairs = list(zip(reference, other, strict=True))
    return Parity(
        psnr_db=float(np.mean([min(psnr(a, b), 99.0) for a, b in pairs])),
        ssim=float(np.mean([ssim(a, b) for a, b in pairs])),
    )
