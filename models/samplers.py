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
