"""Tiny pictures, drawn when they are needed: what the tests use for photos and for an artist's works."""

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from PIL import Image

from models.contract import Work

Size = tuple[int, int]
"""(height, width)"""

MEDIUM: Final[Size] = (64, 80)


def gradient(size: Size = MEDIUM) -> Work:
    """Dark to light from left to right in red, from top to bottom in green."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = (255 * columns / max(1, width - 1), 255 * rows / max(1, height - 1))
    return np.stack([red, green, np.full(size, 96.0)], axis=-1).round().astype(np.uint8)


def noise(size: Size = MEDIUM, seed: int = 0) -> Work:
    """Every byte by chance."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def shapes(size: Size = MEDIUM, seed: int = 0) -> Work:
    """Flat discs and bars of a few colours, as a child would cut them from paper."""
    rng = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.empty((*size, 3), np.uint8)
    picture[:] = rng.integers(128, 256, 3)
    for _ in range(6):
        row, column, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.08, 0.25) * min(size)
        picture[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = rng.integers(0, 256, 3)
        picture[np.abs(rows - row) < radius / 6] = rng.integers(0, 256, 3)
    return picture


def stripes(size: Size = MEDIUM, period: int = 8) -> Work:
    """Black and white diagonals: a style nobody can miss."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    lines = ((rows + columns) // (period // 2) % 2 * 255).astype(np.uint8)
    return np.repeat(lines[..., None], 3, axis=-1)


def encoded(picture: Work | Image.Image, form: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def with_names(*pictures: Work) -> Mapping[str, bytes]:
    """Pictures as a release publishes them: JPEG bytes by name."""
    return {f"picture-{number}": encoded(picture, "JPEG", quality=95) for number, picture in enumerate(pictures)}
