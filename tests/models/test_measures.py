"""PSNR and SSIM against slow versions that are written as the papers are."""

import math

import numpy as np
import pytest

from models.contract import Work
from models.measures import ciede2000, colour_difference, grid_peak_db, lab, psnr, ssim
from tests import pictures


def slow_psnr(a: Work, b: Work) -> float:
    errors = [(int(x) - int(y)) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    return 10 * math.log10(255**2 / (sum(errors) / len(errors)))


def slow_ssim(a: Work, b: Work) -> float:
    """Wang et al. 2004, equations 13 to 16, window by window: weighted moments about the weighted means."""
    x = 0.299 * a[..., 0] + 0.587 * a[..., 1] + 0.114 * a[..., 2]
    y = 0.299 * b[..., 0] + 0.587 * b[..., 1] + 0.114 * b[..., 2]
    weights = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    indices = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            p, q = (z[row : row + 11, column : column + 11] for z in (x, y))
            mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
            var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
            covariance = (weights * (p - mean_p) * (q - mean_q)).sum()
            luminance = (2 * mean_p * mean_q + c1) / (mean_p**2 + mean_q**2 + c1)
            indices.append(luminance * (2 * covariance + c2) / (var_p + var_q + c2))
    return float(np.mean(indices))


def near(picture: Work, amount: int) -> Work:
    jitter = np.random.default_rng(1).integers(-amount, amount + 1, picture.shape)
    moved: Work = np.clip(picture.astype(np.int16) + jitter, 0, 255).astype(np.uint8)
    return moved


@pytest.mark.parametrize("size", [(11, 11), (11, 20), (23, 17)])
@pytest.mark.parametrize("amount", [1, 30])
def test_ssim_is_what_the_slow_version_says(size: pictures.Size, amount: int) -> None:
    picture = pictures.shapes(size)

    # The two sum in another order; var(x) = E[x²] - E[x]² loses some digits of float64 besides.
    assert ssim(picture, near(picture, amount)) == pytest.approx(slow_ssim(picture, near(picture, amount)), abs=1e-9)


def test_ssim_of_unrelated_pictures_is_what_the_slow_version_says() -> None:
    a, b = pictures.noise((16, 16), 1), pictures.noise((16, 16), 2)

    assert ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-9)
    assert abs(ssim(a, b)) < 0.3


@pytest.mark.parametrize("amount", [1, 30])
def test_psnr_is_what_the_slow_version_says(amount: int) -> None:
    picture = pictures.shapes((12, 9))

    assert psnr(picture, near(picture, amount)) == pytest.approx(slow_psnr(picture, near(picture, amount)))


def test_a_picture_is_like_itself() -> None:
    picture = pictures.noise((16, 16))

    assert psnr(picture, picture) == math.inf
    assert ssim(picture, picture) == pytest.approx(1)


def test_both_measures_are_symmetric() -> None:
    a, b = pictures.shapes((16, 16), 1), pictures.shapes((16, 16), 2)

    assert ssim(a, b) == pytest.approx(ssim(b, a))
    assert psnr(a, b) == psnr(b, a)


def test_black_and_white_are_as_far_apart_as_pictures_can_be() -> None:
    black, white = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 255, np.uint8)

    assert psnr(black, white) == 0
    assert 0 < ssim(black, white) < 1e-3  # flat pictures: only the luminance term is left


def test_ssim_sees_brightness_and_not_hue() -> None:
    """Two colours of the same luma: 0.299 * 150 = 44.85 of red against 0.587 * 76.4 of green, a rounding apart."""
    red, green = np.zeros((12, 12, 3), np.uint8), np.zeros((12, 12, 3), np.uint8)
    red[..., 0], green[..., 1] = 150, 76

    assert ssim(red, green) > 0.99
    assert psnr(red, green) < 15


@pytest.mark.parametrize("size", [(10, 40), (40, 10), (1, 1)])
def test_ssim_of_a_picture_smaller_than_its_window_is_refused(size: pictures.Size) -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        ssim(pictures.noise(size), pictures.noise(size))


def test_ssim_of_pictures_of_two_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        ssim(pictures.noise((16, 16)), pictures.noise((16, 17)))


# Pixel grids.


def with_grid(picture: Work, strength: float, period: int = 4) -> Work:
    """A pattern of one tile, repeated: what a badly started PixelShuffle leaves."""
    tile = np.random.default_rng(3).choice([-1.0, 1.0], (period, period))
    height, width = picture.shape[:2]
    pattern = np.tile(tile, (height // period + 1, width // period + 1))[:height, :width, None]
    return np.clip(picture + strength * pattern, 0, 255).round().astype(np.uint8)


def textured(size: pictures.Size = (96, 112)) -> Work:
    """Noise in the middle greys, so that there is something for a grid to stand out of."""
    return (100 + pictures.noise(size) // 8).astype(np.uint8)


@pytest.mark.parametrize("picture", [textured(), textured((67, 91)), pictures.shapes((96, 112))])
def test_a_picture_without_a_grid_shows_none(picture: Work) -> None:
    assert grid_peak_db(picture) < 6


def test_a_flat_picture_shows_no_grid_and_no_number_that_is_not_finite() -> None:
    assert grid_peak_db(np.full((64, 64, 3), 128, np.uint8)) == 0


def test_a_grid_shows_the_more_the_stronger_it_is() -> None:
    peaks = [grid_peak_db(with_grid(textured(), strength)) for strength in (0, 2, 6, 20)]

    assert peaks == sorted(peaks)
    assert peaks[0] < 6
    assert peaks[-1] > 20


def test_a_grid_of_another_period_is_not_taken_for_this_one() -> None:
    """Three does not divide four and so has no line in common with it."""
    assert grid_peak_db(with_grid(textured(), 20, period=3)) < 6
    assert grid_peak_db(with_grid(textured(), 20, period=3), period=3) > 20


def test_the_lines_of_a_grid_are_where_a_plain_fourier_sum_finds_them() -> None:
    """A second opinion: the power at one multiple of 1/4, summed pixel by pixel, against that beside it."""
    picture = with_grid(textured((64, 64)), 20)
    light = picture @ np.array([0.299, 0.587, 0.114])
    rows, columns = np.mgrid[0:64, 0:64]

    def power(row: int, column: int) -> float:
        wave = np.exp(-2j * np.pi * (row * rows + column * columns) / 64)
        return float(abs((light * wave).sum()) ** 2)

    assert power(16, 16) > 100 * max(power(16, 22), power(22, 16), power(10, 10))


# Sharma, Wu and Dalal 2005, table 1: pairs chosen to fall on every branch of the formula.
@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, -0.001, 2.49), (50, 0.0009, -2.49), 4.8045),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((90.8027, -2.0831, 1.441), (91.1528, -1.6435, 0.0447), 1.4441),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_colour_differences_are_those_of_the_published_table(
    one: tuple[float, ...], other: tuple[float, ...], difference: float
) -> None:
    pair = np.array(one, np.float64), np.array(other, np.float64)

    assert abs(ciede2000(*pair) - difference) < 5e-5
    assert abs(ciede2000(*reversed(pair)) - difference) < 5e-5


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_srgb_becomes_lab(colour: tuple[int, ...], expected: tuple[float, ...]) -> None:
    assert np.allclose(lab(np.array(colour, np.uint8)), expected, atol=0.02)


def test_a_picture_has_no_colour_difference_to_itself_and_some_to_a_tinted_one() -> None:
    picture = pictures.shapes((40, 40))
    tinted = np.clip(picture.astype(np.int16) + np.array([12, 0, -12]), 0, 255).astype(np.uint8)

    assert colour_difference(picture, picture) == 0
    assert 1 < colour_difference(picture, tinted) < 15
    with pytest.raises(ValueError, match="shape"):
        colour_difference(picture, picture[:20])
