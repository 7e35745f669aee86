"""Bytes from anywhere become a bounded array or a reason; arrays become files without a word about the artist."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models import codecs
from models.codecs import CodecError, decode, encode, fit_within, refuse_unwritable
from models.contract import Work
from models.measures import psnr
from tests import pictures
from tests.pictures import encoded

SMALL: Final = pictures.gradient((6, 9))
ORIENTATION: Final = 0x0112
# What a viewer must do to the stored picture for each EXIF orientation (Exif 2.32, section 4.6.4, tag 274).
UPRIGHT: Final[Mapping[int, Callable[[Work], Work]]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_saying(width: int, height: int) -> bytes:
    """A PNG whose header promises a size and whose data is 13 bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk before its picture data."""
    place = png.index(b"IDAT") - 4
    return png[:place] + chunk(kind, data) + png[place:]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_lossless_picture_comes_back_as_it_was(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    picture = pictures.noise((13, 7))

    assert np.array_equal(decode(encoded(picture, form, **options)), picture)


def test_a_jpeg_comes_back_near() -> None:
    picture = pictures.gradient()

    assert psnr(decode(encoded(picture, "JPEG", quality=95)), picture) > 35


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation

    decoded = decode(encoded(SMALL, "PNG", exif=exif))

    assert np.array_equal(decoded, UPRIGHT[orientation](SMALL))


def test_the_orientation_of_a_jpeg_is_applied() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6

    assert decode(encoded(SMALL, "JPEG", exif=exif)).shape == (9, 6, 3)


def test_transparency_is_laid_on_white() -> None:
    layered = np.zeros((1, 3, 4), np.uint8)
    layered[0, :, 0] = 200
    layered[0, :, 3] = (0, 128, 255)

    decoded = decode(encoded(Image.fromarray(layered, "RGBA"), "PNG"))

    # 128/255 of (200, 0, 0) over white: 255 + (200 - 255) * 0.502 = 227.4 and 255 * 0.498 = 127.
    assert decoded.tolist() == [[[255, 255, 255], [227, 127, 127], [200, 0, 0]]]


def test_a_transparent_palette_colour_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)

    decoded = decode(encoded(image, "PNG", transparency=0))

    assert decoded.tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_grey_with_alpha_is_laid_on_white() -> None:
    grey = Image.fromarray(np.array([[[0, 0], [90, 255]]], np.uint8), "LA")

    assert decode(encoded(grey, "PNG")).tolist() == [[[255] * 3, [90] * 3]]


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_grey_picture_becomes_three_equal_channels(form: str) -> None:
    grey = np.repeat(np.array([[0, 100, 255, 30]], np.uint8), 4, axis=0)

    decoded = decode(encoded(Image.fromarray(grey), form))

    assert decoded.shape == (4, 4, 3)
    assert np.array_equal(decoded[..., 0], decoded[..., 2])
    assert np.allclose(decoded[..., 1], grey, atol=12 if form == "JPEG" else 0)


def test_a_picture_of_two_colours_becomes_black_and_white() -> None:
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")

    assert decode(encoded(bits, "PNG")).tolist() == [[[0] * 3, [255] * 3]]


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16))

    assert decode(encoded(deep, "PNG"))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_16_bit_grey_with_a_transparent_value_is_scaled_and_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 0x4000, 0x8000]], np.uint16))

    decoded = decode(with_chunk(encoded(deep, "PNG"), b"tRNS", b"\x12\x34"))

    assert decoded[0, :, 0].tolist() == [0, 64, 128]


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[..., 0] = 220
    decoded = decode(encoded(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95))

    assert decoded.shape == picture.shape
    assert np.abs(decoded.astype(int) - picture).max() < 12


def test_of_a_moving_picture_the_first_frame_is_taken() -> None:
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200)]

    moving = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    assert decode(moving).max() == 10


# Refusals.


def refusal(data: bytes) -> str:
    with pytest.raises(CodecError) as caught:
        decode(data)
    return str(caught.value)


def test_no_bytes_are_refused_as_empty() -> None:
    assert "empty" in refusal(b"")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\0", id="a zero byte"),
        pytest.param(b"this is a letter, not a picture", id="words"),
        pytest.param(b"\x89PNG", id="half a magic number"),
        pytest.param(encoded(SMALL, "GIF"), id="gif"),
        pytest.param(encoded(SMALL, "BMP"), id="bmp"),
        pytest.param(encoded(SMALL, "TIFF"), id="tiff"),
        pytest.param(encoded(SMALL, "ICO"), id="ico"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", id="postscript"),
    ],
)
def test_another_kind_of_file_is_refused_as_no_picture(data: bytes) -> None:
    assert "not a JPEG, PNG or WebP" in refusal(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_picture_cut_short_is_refused_as_damaged(form: str, part: float) -> None:
    whole = encoded(pictures.noise((64, 64)), form)

    assert "damaged or cut short" in refusal(whole[: int(len(whole) * part)])


def test_a_png_with_a_flipped_byte_is_refused_as_damaged() -> None:
    whole = bytearray(encoded(pictures.noise((32, 32)), "PNG"))
    whole[len(whole) // 2] ^= 0xFF

    assert "damaged" in refusal(bytes(whole))


@pytest.mark.parametrize("side", [10_000, 30_000, 60_000])
def test_a_header_that_promises_too_many_pixels_is_refused_before_it_is_decoded(side: int) -> None:
    """100 megapixels, where Pillow warns; 900, where it raises; and far beyond."""
    assert "megapixels" in refusal(png_saying(side, side))


def test_the_limit_on_pixels_at_and_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "MAX_PIXELS", 6 * 9)

    assert decode(encoded(SMALL, "PNG")).shape == SMALL.shape
    assert "7 x 8 pixels" in refusal(encoded(pictures.gradient((8, 7)), "PNG"))


def test_a_picture_one_column_over_40_megapixels_is_refused() -> None:
    assert codecs.MAX_PIXELS == 40_000_000
    assert "40 megapixels is the limit" in refusal(png_saying(40_000_001, 1))


def test_the_limit_on_bytes_at_and_above(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(SMALL, "PNG")
    monkeypatch.setattr(codecs, "MAX_BYTES", len(data))

    assert decode(data).shape == SMALL.shape
    assert "larger than" in refusal(data + b"\0")


def test_a_compressed_text_that_bursts_is_refused() -> None:
    """Pillow stops unpacking a text chunk at 64 MiB; the reason it gives becomes ours."""
    bomb = with_chunk(encoded(SMALL, "PNG"), b"zTXt", b"c\0\0" + zlib.compress(b"\0" * (65 * 2**20), 9))

    assert "damaged" in refusal(bomb)


def test_a_refusal_names_no_file_and_no_library() -> None:
    for data in (b"", b"\0", encoded(SMALL, "PNG")[:60], png_saying(30_000, 30_000)):
        assert not any(word in refusal(data) for word in ("BytesIO", "PIL", "Pillow", "/", "0x"))


@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 300))
def test_whatever_stands_in_a_file_nothing_but_a_codec_error_comes_of_it(rubbish: bytes, form: str, at: int) -> None:
    whole = encoded(SMALL, form)
    try:
        picture = decode(whole[:at] + rubbish + whole[at + len(rubbish) :])
    except CodecError:
        return
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3


# Encoding.


@pytest.mark.parametrize(("suffix", "form"), [(".png", "PNG"), (".JPG", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP")])
def test_the_ending_chooses_the_format(suffix: str, form: str) -> None:
    with Image.open(io.BytesIO(encode(SMALL, suffix))) as image:
        assert image.format == form
        assert image.size == (9, 6)


def test_a_png_keeps_every_byte_of_the_picture() -> None:
    assert np.array_equal(decode(encode(SMALL, ".png")), SMALL)


def test_a_lower_quality_makes_a_smaller_file() -> None:
    assert len(encode(pictures.noise(), ".jpg", quality=30)) < len(encode(pictures.noise(), ".jpg"))


@pytest.mark.parametrize("suffix", ["", ".gif", ".tiff", "png", ".png.exe"])
def test_an_ending_we_do_not_write_is_refused(suffix: str) -> None:
    with pytest.raises(CodecError, match="pictures are written as"):
        encode(SMALL, suffix)


@pytest.mark.parametrize(
    ("suffix", "longest"), [(".webp", 16_383), (".WEBP", 16_383), (".jpg", 65_500), (".jpeg", 65_500), (".png", 125_000)]
)
def test_a_format_is_refused_beyond_the_longest_side_it_can_hold(suffix: str, longest: int) -> None:
    refuse_unwritable(suffix, longest, 64)
    refuse_unwritable(suffix, 64, longest)
    assert encode(np.zeros((1, longest, 3), np.uint8), suffix)
    if suffix != ".png":
        for height, width in ((longest + 1, 64), (64, longest + 1)):
            with pytest.raises(CodecError, match=f"at most {longest} pixels a side, and this one has {width} x {height}"):
                refuse_unwritable(suffix, height, width)


@pytest.mark.parametrize("error", [OSError("encoder error -2"), ValueError("bad")])
def test_a_failing_encoder_is_a_codec_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(CodecError, match="could not be written as PNG"):
        encode(SMALL, ".png")


def test_no_metadata_comes_along() -> None:
    exif = Image.Exif()
    exif[0x013B] = "Anna, 12 Hill Street"  # Artist
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 0.0)  # GPSLatitude
    whole = encoded(SMALL, "JPEG", exif=exif, comment=b"for my eyes")
    assert b"Hill Street" in whole

    again = encode(decode(whole), ".jpg")

    assert b"Hill Street" not in again
    assert b"Exif" not in again
    assert b"for my eyes" not in again


# Fitting.


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((10, 20), 20, (10, 20)),
        ((10, 20), 21, (10, 20)),
        ((10, 20), 19, (10, 19)),
        ((20, 10), 10, (10, 5)),
        ((1, 200), 10, (1, 10)),
    ],
)
def test_a_picture_is_made_no_longer_than_asked_and_never_larger(
    size: pictures.Size, longest: int, expected: pictures.Size
) -> None:
    assert fit_within(pictures.gradient(size), longest).shape == (*expected, 3)


def test_a_picture_that_fits_is_the_same_picture() -> None:
    assert fit_within(SMALL, 9) is SMALL


def test_a_picture_made_smaller_still_shows_the_same() -> None:
    assert psnr(fit_within(pictures.gradient((64, 64)), 32), pictures.gradient((32, 32))) > 35
