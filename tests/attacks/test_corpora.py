"""Files made by chance and malice: weights and pictures, mutated by the thousand. Each is refused or is what it says."""

import json
import random
import struct
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from edge_node import ingest
from edge_node.errors import BadPictureError
from edge_node.ingest import Left, Taken
from export import weights
from export.errors import IntegrityError
from models import codecs
from models.codecs import CodecError
from tests import pictures

WEIGHTS, PICTURES = 3000, 2000
Mutation = Callable[[bytes, random.Random], bytes]


def flipped(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randrange(1, 30)):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def flipped_in_front(data: bytes, dice: random.Random) -> bytes:
    head = min(len(data), 200)
    return flipped(data[:head], dice) + data[head:]


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


def longer(data: bytes, dice: random.Random) -> bytes:
    return data + dice.randbytes(dice.randrange(1, 5000))


def spliced(data: bytes, dice: random.Random) -> bytes:
    first, second = sorted((dice.randrange(len(data)), dice.randrange(len(data))))
    return data[:first] + data[second:] + data[first:second]


def junk(data: bytes, dice: random.Random) -> bytes:
    return dice.randbytes(dice.randrange(len(data)))


ANY: tuple[Mutation, ...] = (flipped, flipped_in_front, cut, longer, spliced, junk)


# --- Weights -------------------------------------------------------------------------------------------------------------

ARRAYS = {"a.weight": np.arange(24, dtype=np.float32).reshape(4, 6), "b": np.ones(5, np.float32), "c": np.zeros((), np.float32)}


def header_of(data: bytes) -> dict[str, object]:
    length = int.from_bytes(data[:8], "little")
    found: dict[str, object] = json.loads(data[8 : 8 + length])
    return found


def with_header(header: object, body: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def lying(data: bytes, dice: random.Random) -> bytes:
    """A header that says one thing that is not so."""
    header, body = header_of(data), data[8 + int.from_bytes(data[:8], "little") :]
    name = dice.choice(list(ARRAYS))
    entry = dict(header[name])  # type: ignore[call-overload]
    kind = dice.randrange(10)
    if kind == 0:
        entry["shape"] = [dice.choice([-1, 0, 2**31, 2**62, 2**64 - 1]), 6]
    elif kind == 1:
        entry["dtype"] = dice.choice(["F64", "F16", "BF16", "I8", "U64", "BOOL", "X", "", 5, None])
    elif kind == 2:
        entry["data_offsets"] = [dice.randrange(200), dice.randrange(200)]
    elif kind == 3:
        entry["data_offsets"] = dice.choice([[0], [0, -1], [2**63, 2**64], "0,96", None, [0.5, 96]])
    elif kind == 4:
        del entry[dice.choice(list(entry))]
    elif kind == 5:
        entry = {}
    elif kind == 6:
        return with_header(header, body, dice.choice([0, 1, 2**32, 2**63, 2**64 - 1]))
    elif kind == 7:
        header["__metadata__"] = dice.choice([{"a": 1}, {"a": ["b"]}, [], "text", {"a": "b" * 100_000}])
    elif kind == 8:  # the same name twice, and depth
        text = json.dumps(header)
        return with_header(header, body)[:8] + (text[:-1] + f', "{name}": {{}}}}').encode() + body
    else:
        return struct.pack("<Q", 50_000) + b"[" * 50_000 + body
    header[name] = entry
    return with_header(header, body)


def not_numbers(data: bytes, dice: random.Random) -> bytes:
    at = len(data) - 4 * dice.randrange(1, 29)
    return data[:at] + struct.pack("<f", dice.choice([float("nan"), float("inf"), float("-inf")])) + data[at + 4 :]


def test_weights_that_were_changed_are_refused_or_are_weights() -> None:
    honest, dice, came = weights.pack(ARRAYS), random.Random(5), Counter[str]()  # noqa: S311 - chance is the point
    tracemalloc.start()
    for number in range(WEIGHTS):
        data = (*ANY, lying, lying, not_numbers)[number % 9](honest, dice)
        for read in (weights.unpack, weights.metadata_of):
            try:
                found = read(data)
            except IntegrityError:
                came["refused"] += 1
            else:
                came["read"] += 1
                for value in found.values():
                    assert isinstance(value, str) or (value.dtype == np.float32 and np.isfinite(value).all())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert came.total() == 2 * WEIGHTS
    assert came["refused"] > WEIGHTS / 2
    assert came["read"] > 0
    assert peak < 16 * 2**20
    assert all(np.array_equal(array, ARRAYS[name]) for name, array in weights.unpack(honest).items())  # the control


# --- Pictures ------------------------------------------------------------------------------------------------------------


def encoded() -> dict[str, bytes]:
    """A picture in each form that artists' folders hold, and in some that are only called so."""
    picture = pictures.shapes((160, 144), seed=2)
    made = {suffix: codecs.encode(picture, suffix) for suffix in (".jpg", ".png", ".webp")}
    for form, suffix in (("GIF", ".png"), ("TIFF", ".jpg"), ("BMP", ".png"), ("PPM", ".jpg")):
        made[f"{form}{suffix}"] = pictures.encoded(picture, form)
    return made | decorated(Image.fromarray(picture))


def decorated(picture: Image.Image) -> dict[str, bytes]:
    """The same picture in forms that take other ways through the decoders: profiles, turns, layers, palettes, depths, films."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    deep = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) << 8)
    film: dict[str, Any] = {"save_all": True, "append_images": [picture.rotate(9)]}
    said = {"icc_profile": profile, "exif": turned}
    return {
        "profile.jpg": pictures.encoded(picture, "JPEG", **said),
        "profile.png": pictures.encoded(picture, "PNG", **said),
        "profile.webp": pictures.encoded(picture, "WEBP", **said),
        "inks.jpg": pictures.encoded(picture.convert("CMYK"), "JPEG", icc_profile=profile),
        "progressive.jpg": pictures.encoded(picture, "JPEG", progressive=True),
        "lossless.webp": pictures.encoded(picture.convert("RGBA"), "WEBP", lossless=True),
        "palette.png": pictures.encoded(picture.convert("P"), "PNG", transparency=3),
        "deep.png": pictures.encoded(deep, "PNG"),
        "film.png": pictures.encoded(picture, "PNG", **film),
        "film.webp": pictures.encoded(picture, "WEBP", **film),
    }


def test_pictures_that_were_changed_are_pictures_or_are_refused() -> None:
    forms, dice, came = list(encoded().items()), random.Random(9), Counter[str]()  # noqa: S311 - chance is the point
    for number in range(PICTURES):
        _, honest = forms[number % len(forms)]
        data = dice.choice(ANY)(honest, dice)
        try:
            work = codecs.decode(data)
        except CodecError:
            came["refused"] += 1
        else:
            came["read"] += 1
            assert work.dtype == np.uint8
            assert work.ndim == 3
            assert work.shape[2] == 3

    assert came.total() == PICTURES
    assert came["refused"] > PICTURES / 4
    assert came["read"] > 0


def test_a_folder_of_such_pictures_is_taken_in_with_a_reason_for_each_that_is_not(tmp_path: Path) -> None:
    forms, dice = list(encoded().items()), random.Random(11)  # noqa: S311 - chance is the point
    for number in range(300):
        name, honest = forms[number % len(forms)]
        data = honest if number < 3 else dice.choice(ANY)(honest, dice)
        (tmp_path / f"{number:03d}.{name.rpartition('.')[2]}").write_bytes(data)

    found = ingest.scan(tmp_path)

    assert len(found) == 300
    assert sum(isinstance(one, Taken) for one in found) >= 3
    assert all(one.detail for one in found if isinstance(one, Left))


@pytest.mark.parametrize("sides", [(60_000, 60_000), (1, 2**30), (30_000, 30_000)])
def test_a_picture_that_says_it_is_huge_is_refused_before_it_is_unpacked(sides: tuple[int, int], tmp_path: Path) -> None:
    """A bomb: a few bytes that ask for gigabytes."""
    honest = bytearray(encoded()[".png"])
    honest[16:24] = struct.pack(">II", *sides)
    honest[29:33] = struct.pack(">I", zlib.crc32(bytes(honest[12:29])))
    (tmp_path / "bomb.png").write_bytes(honest)
    tracemalloc.start()

    with pytest.raises(BadPictureError):
        ingest.read_picture(tmp_path / "bomb.png")

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128 * 2**20  # what is read of a file at the most, and some
