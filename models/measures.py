"""How far two pictures are apart: PSNR, SSIM, colour difference, a pixel grid. numpy, for gate, parity and tests alike."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Rec. 601 luma, as in the reference SSIM implementation (Wang et al. 2004).
_LUMA = np.array([0.299, 0.587, 0.114])
_UNSEEN_LEVELS = 0.5  # amplitude, in grey levels of 255, of a pattern that is not seen even on a flat area
_SSIM_RADIUS, _SSIM_SIGMA = 5, 1.5  # the 11x11 Gaussian window of Wang et al. 2004, section III.B


def psnr(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two equal-sized uint8 pictures in dB; infinite when they are the same."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Structural similarity of the luminance of two (H, W, 3) uint8 pictures, in [-1, 1] (Wang et al. 2004, eq. 13).

    Raises:
        ValueError: shapes differ, or a side is shorter than the 11-pixel window.
    """
    if a.shape != b.shape or min(a.shape[:2]) <= 2 * _SSIM_RADIUS:
        raise ValueError(f"cannot compare pictures of shape {a.shape} and {b.shape}")
    x, y = a @ _LUMA, b @ _LUMA
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    index /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(index.mean())


def _window(x: Floats) -> Floats:
    """Gaussian-weighted local mean, valid positions only."""
    offsets = np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1)
    kernel = np.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    kernel /= kernel.sum()
    height, width = x.shape
    rows = sum(k * x[i : height - 2 * _SSIM_RADIUS + i] for i, k in enumerate(kernel))
    result: Floats = sum(k * rows[:, i : width - 2 * _SSIM_RADIUS + i] for i, k in enumerate(kernel))
    return result


def grid_peak_db(picture: npt.NDArray[np.uint8], period: int = 4) -> float:
    """How far a pixel grid of that period stands out of a picture's spectrum, in dB; below about 6 nobody sees it.

    A network that works at a quarter of the resolution can leave a pattern that repeats every ``period`` pixels. In the
    spectrum that is energy at exactly the multiples of 1/period in either direction, and nowhere near them. Each line is
    compared with its neighbours four to twelve bins away, or with a pattern too weak to be seen, whichever is stronger:
    a spectrum finds a pattern of a hundredth of a grey level, and no eye does.

    Args:
        picture: (H, W, 3) uint8, each side at least 64.
        period: pixels.
    """
    height, width = (side // period * period for side in picture.shape[:2])
    luminance = picture[:height, :width] @ _LUMA
    window = np.outer(np.hanning(height), np.hanning(width))
    unseen = (_UNSEEN_LEVELS / 2 * window.sum()) ** 2
    power = np.abs(np.fft.fft2((luminance - luminance.mean()) * window)) ** 2
    peaks, around = [], []
    for row in range(0, height, height // period):
        for column in range(0, width, width // period):
            if row or column:
                peaks.append(power[row, column])
                rows, columns = _ring(row, height), _ring(column, width)
                # Along the line's own row and column too: straight edges fill those, and are no grid.
                near = (power[np.ix_(rows, columns)], power[row, columns], power[rows, column])
                around.append(max(np.exp(np.mean(np.log(n + 1e-12))) for n in near))
    # The mean of ratios and not of their logarithms: a checkerboard is one strong line among many of nothing.
    ratios = (np.array(peaks) + unseen) / (np.array(around) + unseen)
    return float(max(0.0, 10 * np.log10(ratios.mean())))


def _ring(centre: int, length: int) -> list[int]:
    return [(centre + offset) % length for offset in (-12, -10, -8, -6, -4, 4, 6, 8, 10, 12)]


def colour_difference(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Mean CIEDE2000 difference of two equal-sized (H, W, 3) uint8 sRGB pictures; about 1 is the least an eye sees.

    Raises:
        ValueError: shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"cannot compare pictures of shape {a.shape} and {b.shape}")
    return float(ciede2000(lab(a), lab(b)).mean())


# sRGB (IEC 61966-2-1) to CIE XYZ, and its white point D65 of the 2-degree observer.
_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
_WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(picture: npt.NDArray[np.uint8]) -> Floats:
    """CIE L*a*b* (..., 3) of sRGB bytes (..., 3)."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    relative = linear[picture] @ _TO_XYZ.T / _WHITE
    x, y, z = np.moveaxis(np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(one: Floats, other: Floats) -> Floats:
    """CIEDE2000 difference of L*a*b* colours (..., 3) (Sharma, Wu and Dalal 2005, equations 2 to 22, all k = 1)."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    mean_chroma7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1 + 0.5 * (1 - np.sqrt(mean_chroma7 / (mean_chroma7 + 25.0**7)))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = c1 * c2 == 0
    turn = (h2 - h1 + 180) % 360 - 180
    turn = np.where(grey, 0.0, turn)
    hue_step = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2)
    hue = np.where(grey, h1 + h2, (h1 + ((h2 - h1 + 180) % 360 - 180) / 2) % 360)
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    weight = (
        1
        - 0.17 * np.cos(np.radians(hue - 30))
        + 0.24 * np.cos(np.radians(2 * hue))
        + 0.32 * np.cos(np.radians(3 * hue + 6))
        - 0.20 * np.cos(np.radians(4 * hue - 63))
    )
    size_l = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    size_c, size_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * weight
    rotation = -np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2)))) * 2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    dl, dc, dh = (l2 - l1) / size_l, (c2 - c1) / size_c, hue_step / size_h
    difference: Floats = np.sqrt(np.maximum(dl**2 + dc**2 + dh**2 + rotation * dc * dh, 0))
    return difference
