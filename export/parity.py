"""How far two compiled graphs of the same style differ on the same photos, and whether that is near enough to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.contract import Work
from models.measures import colour_difference, psnr, ssim

# int8 against folded fp32. Below 32 dB and 0.95 a viewer who flips between the two sees flat areas change
# (DESIGN, section 6; measured again on the trained network in the README).
INT8_PSNR_DB = 32.0
INT8_SSIM = 0.95
# Folded fp32 against exact. Strokes may lie a little differently and tones shift a little; whoever sees only one of the two
# shall miss nothing.
FOLD_STYLE_RATIO = 1.05
FOLD_COLOUR_DIFFERENCE = 4.0
FOLD_SSIM = 0.85


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


@dataclass(frozen=True, slots=True)
class Folding:
    """What frozen norm statistics changed in a style's pictures.

    Attributes:
        style_exact, style_folded: distance to the artist's works; equal where nobody could measure it.
        colour_difference: mean CIEDE2000 difference of the pairs.
        ssim: mean over the pairs.
    """

    style_exact: float
    style_folded: float
    colour_difference: float
    ssim: float

    def is_near(self) -> bool:
        """Whether the folded graph may stand for the exact one; NaN may not."""
        return (
            self.style_folded <= FOLD_STYLE_RATIO * self.style_exact
            and self.colour_difference <= FOLD_COLOUR_DIFFERENCE
            and self.ssim >= FOLD_SSIM
        )


def folding(exact: Sequence[Work], folded: Sequence[Work], style_exact: float = 0.0, style_folded: float = 0.0) -> Folding:
    """Compare the same photos painted by an exact graph and by its folded form.

    Args:
        exact: pictures of the exact graph.
        folded: of the folded one, in the same order.
        style_exact: how far the first are from the style's works; left away where these are not at hand.
        style_folded: how far the second are.

    Raises:
        ValueError: nothing to compare, or another number of pictures.
    """
    differences = [colour_difference(a, b) for a, b in zip(exact, folded, strict=True)]
    return Folding(style_exact, style_folded, float(np.mean(differences)), compare(exact, folded).ssim)
