"""Bytes ↔ arrays, per medium, bounded before anything is decoded.

Pictures: JPEG, PNG and WebP by their magic bytes, first frame only, EXIF orientation applied, transparency laid on white,
always 8-bit sRGB at the end. Metadata (GPS included) does not come along.
"""

from __future__ import annotations

import io
import warnings
from typing import Final

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from models.contract import Work

MAX_BYTES: Final = 64 * 2**20
MAX_PIXELS: Final = 40_000_000
_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_WRITTEN: Final = {
    ".jpg": ("JPEG", 65_500),  # libjpeg's JPEG_MAX_DIMENSION
    ".jpeg": ("JPEG", 65_500),
    ".png": ("PNG", 2**31 - 1),
    ".webp": ("WEBP", 16_383),  # libwebp's WEBP_MAX_DIMENSION
}
"""Format of each ending, and the longest side it can hold in pixels."""


class CodecError(ValueError):
    """The bytes are not a picture we open, or the picture is none we write. The text says why, without naming the file."""


def decode(data: bytes) -> Work:
    """Encoded picture → (H, W, 3) uint8 sRGB.

    Raises:
        CodecError: empty, too large, not one of the formats, truncated or damaged.
    """
    if not data:
        raise CodecError("it is empty (0 bytes)")
    if len(data) > MAX_BYTES:
        raise CodecError(f"it is larger than {MAX_BYTES // 2**20} MB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise CodecError(
                        f"it has {image.width} x {image.height} pixels; {MAX_PIXELS // 10**6} megapixels is the limit"
                    )
                return _flattened(_in_srgb(ImageOps.exif_transpose(image)))
    except CodecError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CodecError(f"it has more than {MAX_PIXELS // 10**6} megapixels") from error
    except UnidentifiedImageError as error:
        raise CodecError("it is not a JPEG, PNG or WebP picture") from error
    except Exception as error:  # decoders raise many undocumented types on damaged files
        raise CodecError("it is damaged or cut short") from error


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colours as the picture's own profile means them; without one, or with a broken one, sRGB is what screens assume."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, target, outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _flattened(image: Image.Image) -> Work:
    """Any mode → RGB; transparent parts become white, as paper would show."""
    # 16 bits first: Pillow would clip them, not scale them, on the way to RGBA.
    if image.mode.startswith("I;16") or image.mode == "I":
        return np.asarray(Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        return np.asarray(Image.alpha_composite(ground, layered).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def refuse_unwritable(suffix: str, height: int, width: int) -> None:
    """Say before any work is done whether a picture of that size can be written under that ending.

    Raises:
        CodecError: an ending we do not write, or a side longer than its format can hold.
    """
    if suffix.lower() not in _WRITTEN:
        raise CodecError(f"pictures are written as {', '.join(_WRITTEN)}, not {suffix or 'without an ending'}")
    form, longest = _WRITTEN[suffix.lower()]
    if max(height, width) > longest:
        raise CodecError(f"a {form} picture has at most {longest} pixels a side, and this one has {width} x {height}")


def encode(picture: Work, suffix: str, quality: int = 92) -> bytes:
    """(H, W, 3) uint8 → bytes of the format a file name ends in.

    Raises:
        CodecError: see ``refuse_unwritable``; or the format's own library fails.
    """
    refuse_unwritable(suffix, *picture.shape[:2])
    form = _WRITTEN[suffix.lower()][0]
    buffer = io.BytesIO()
    options = {} if form == "PNG" else {"quality": quality}
    try:
        Image.fromarray(picture).save(buffer, form, **options)
    except (OSError, ValueError) as error:
        raise CodecError(f"the picture could not be written as {form}") from error
    return buffer.getvalue()


def fit_within(picture: Work, longest: int) -> Work:
    """The picture made smaller, if need be, so that no side is longer than ``longest`` pixels."""
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
