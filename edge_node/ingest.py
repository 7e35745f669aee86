"""Reading pictures from an artist's disk: what is taken, what is not, and why in words an artist can act on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edge_node.errors import BadPictureError
from export.errors import IntegrityError
from export.files import Digest, digest_of, read_bounded
from models import codecs
from models.contract import Work

SMALLEST_SIDE: Final = 128
"""Below this many pixels, a work has no strokes left to learn."""
_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_LONGEST_ASPECT: Final = 8
"""A longer strip is rather a banner or a scan of an edge, and made small enough for lessons it has no strokes left."""
_FILES_MAX: Final = 10_000

Reason = Literal["unreadable", "too-small", "too-long", "duplicate", "too-many"]


@dataclass(frozen=True, slots=True)
class Taken:
    """A file that can be learned from."""

    path: Path
    sha256: Digest
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Left:
    """A file that was left out, and why; with "too-many", the folder itself."""

    path: Path
    reason: Reason
    detail: str


def read_picture(path: Path) -> Work:
    """Open one picture.

    Returns:
        (H, W, 3) uint8 sRGB, turned as its EXIF orientation says.

    Raises:
        BadPictureError: it cannot be read, is damaged, too large or not a picture.
    """
    return _decoded(path, _bytes(path))


def scan(folder: Path, known: frozenset[Digest] = frozenset()) -> list[Taken | Left]:
    """Every picture below a folder, in order of name; files that are not pictures by name are passed over.

    Of more than 10,000 pictures the first are examined, and a last entry says so.

    Args:
        folder: searched with all its subfolders.
        known: digests of works that are in the library already.

    Raises:
        BadPictureError: the folder cannot be read.
    """
    if not folder.is_dir():
        raise BadPictureError(f"there is no folder {folder}", advice="Name a folder that holds pictures of your works.")
    seen = set(known)
    found: list[Taken | Left] = []
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    for path in paths[:_FILES_MAX]:
        verdict = _examine(path, frozenset(seen))
        if isinstance(verdict, Taken):
            seen.add(verdict.sha256)
        found.append(verdict)
    if len(paths) > _FILES_MAX:
        found.append(Left(folder, "too-many", f"the first {_FILES_MAX} of its {len(paths)} pictures were looked at"))
    return found


def _examine(path: Path, seen: frozenset[Digest]) -> Taken | Left:
    try:
        data = _bytes(path)
        digest = digest_of(data)
        if digest in seen:
            return Left(path, "duplicate", "the same file is in the library already")
        height, width = _decoded(path, data).shape[:2]
    except BadPictureError as error:
        return Left(path, "unreadable", str(error))
    if min(width, height) < SMALLEST_SIDE:
        return Left(path, "too-small", f"{width} x {height} pixels; each side needs at least {SMALLEST_SIDE}")
    if max(width, height) > _LONGEST_ASPECT * min(width, height):
        return Left(path, "too-long", f"{width} x {height} pixels; one side may be {_LONGEST_ASPECT} times the other")
    return Taken(path, digest, width, height)


def _bytes(path: Path) -> bytes:
    try:
        return read_bounded(path, codecs.MAX_BYTES)
    except IntegrityError as error:
        raise _bad(path, f"it is larger than {codecs.MAX_BYTES // 2**20} MB") from error
    except OSError as error:
        raise _bad(path, (error.strerror or "it cannot be read").lower()) from error


def _decoded(path: Path, data: bytes) -> Work:
    try:
        return codecs.decode(data)
    except codecs.CodecError as error:
        raise _bad(path, str(error)) from error


def _bad(path: Path, why: str) -> BadPictureError:
    return BadPictureError(
        f"{path.name} cannot be opened: {why}", advice="Use a JPEG, PNG or WebP picture of at most 40 megapixels."
    )
