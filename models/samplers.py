"""How a compiled graph becomes a work, for each sampler a signature can name. numpy only: a gallery paints with this."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from models.contract import Medium, Sampler, Signature, Work

Feed: TypeAlias = Mapping[str, npt.NDArray[np.generic]]
Run: TypeAlias = Callable[[Feed], Mapping[str, npt.NDArray[np.generic]]]
"""A compiled graph: named inputs in, named outputs out."""

Code: TypeAlias = npt.NDArray[np.float32]

TILE: Final = 1024
# A pixel of the style network depends on 54 pixels around it: 4 of the stem, 40 of its blocks, 10 on the way up. A test paints
# tiled and whole and compares.
OVERLAP: Final = 64
_GRID: Final = 4


class UnknownArtError(LookupError):
    """A signature names a medium or sampler that this version cannot make works with; a newer one may."""


def paint(run: Run, signature: Signature, photo: Work, code: Code | None) -> Work:
    """Make a work in the way its signature names.

    Args:
        run: a compiled exact graph (with ``code``) or folded graph (without).
        signature: of the modality.
        photo: (H, W, 3) uint8, H and W at least 1.
        code: (D,) float32, or None for a folded graph.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnknownArtError: see ``refuse_unknown``.
    """
    refuse_unknown(signature)
    return _SAMPLERS[signature.medium, signature.sampler](run, signature, photo, code)


def refuse_unknown(signature: Signature) -> None:
    """Keep a graph of another kind of art from being run as if it painted pictures.

    Raises:
        UnknownArtError: this version does not make works of that medium, or not with that sampler.
    """
    if (signature.medium, signature.sampler) not in _SAMPLERS:
        raise UnknownArtError(f"{signature.medium} by {signature.sampler}")


def _image_in_one_pass(run: Run, signature: Signature, photo: Work, code: Code | None) -> Work:
    """One pass of a feed-forward graph: bytes in, bytes out, and nothing done to a pixel outside the graph."""
    feed: dict[str, npt.NDArray[np.generic]] = {signature.content.name: photo[None]}
    if code is not None:
        feed[signature.code.name] = code.reshape(1, -1)
    return np.asarray(run(feed)[signature.output.name][0], dtype=np.uint8)


def paint_in_tiles(run: Run, signature: Signature, photo: Work, tile: int = TILE, overlap: int = OVERLAP) -> Work:
    """What ``paint`` makes with a folded graph, tile by tile: memory then depends on the tile and not on the photo.

    A folded graph's norms are numbers, so a pixel depends on its neighbourhood alone. Each tile is painted with an overlap
    wider than that and only its middle is kept; every tile begins at a multiple of the network's grid. There is no seam
    to hide: the pictures are the same. The last tile of a row begins earlier instead of being smaller, so that a runtime
    sees two sizes a direction at the most.

    Args:
        run: a compiled folded graph.
        signature: of the modality.
        photo: (H, W, 3) uint8.
        tile: pixels a side of what is painted at once, overlaps included; a multiple of ``_GRID``, more than two overlaps.
        overlap: pixels, a multiple of ``_GRID``.

    Raises:
        UnknownArtError: see ``refuse_unknown``.
    """
    picture = np.empty_like(photo)
    for top, bottom in _spans(photo.shape[0], tile, overlap):
        for left, right in _spans(photo.shape[1], tile, overlap):
            painted = paint(run, signature, np.ascontiguousarray(photo[top:bottom, left:right]), None)
            above, before = (overlap if start else 0 for start in (top, left))
            # What lies in two tiles' overlap is the same in both but for their rims, which the later tile leaves out and
            # writes over in the earlier one.
            picture[top + above : bottom, left + before : right] = painted[above:, before:]
    return picture


def _spans(side: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """First and last pixel of the tiles along a side: each begins inside the one before, twice the overlap from its end."""
    starts = [0]
    while side - starts[-1] >= tile + _GRID:
        starts.append(min(starts[-1] + tile - 2 * overlap, (side - tile) // _GRID * _GRID))
    return [(start, start + tile) for start in starts[:-1]] + [(starts[-1], side)]


_SAMPLERS: Final[Mapping[tuple[Medium, Sampler], Callable[[Run, Signature, Work, Code | None], Work]]] = {
    ("image", "feed-forward"): _image_in_one_pass
}


def paint_with_strength(run: Run, signature: Signature, photo: Work, code: Code, identity: Code, strength: float) -> Work:
    """Between the photo and the style, on an exact graph.

    The code moves from the identity code to the style's; what the identity code alone fails to give back of the photo
    is added in the measure of what is missing, so that strength 0 is the photo itself and nothing jumps on the way.

    Args:
        run: a compiled exact graph.
        signature: of the modality.
        photo: (H, W, 3) uint8.
        code: (D,) float32 of the style.
        identity: (D,) float32 of the identity.
        strength: 0 (the photo) to 1 (the style).

    Raises:
        UnknownArtError: see ``refuse_unknown``.
    """
    refuse_unknown(signature)
    if strength >= 1:
        return paint(run, signature, photo, code)
    if strength <= 0:
        return photo.copy()
    painted = paint(run, signature, photo, identity + np.float32(strength) * (code - identity))
    missing = photo.astype(np.int16) - paint(run, signature, photo, identity)
    return np.clip(painted + (1 - strength) * missing + 0.5, 0, 255).astype(np.uint8)


def mix(codes: Mapping[str, Code], weights: Mapping[str, float]) -> Code:
    """The weighted mean of style codes: blending styles is arithmetic on codes (Dumoulin et al. 2017, section 3.3).

    Raises:
        ValueError: no weight is above zero, or one is below.
    """
    total = sum(weights.values())
    if not 0 < total < math.inf or min(weights.values()) < 0:  # NaN passes neither comparison
        raise ValueError("the weights of a mix must be finite and not negative, and one must be above zero")
    mixed = sum(codes[name] * np.float32(weight / total) for name, weight in weights.items())
    return np.asarray(mixed, dtype=np.float32)
