"""The artist's works, referenced where they lie: an index of paths and digests. Nothing here ever leaves the machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_node import ingest
from edge_node.config import Home
from edge_node.errors import NoWorksError
from edge_node.ingest import Left, Taken
from export.errors import IntegrityError
from export.files import Digest, digest_of, read_bounded, write_json
from models import codecs
from models.contract import Work

_INDEX_MAX_BYTES: Final = 16 * 2**20
_LONGEST: Final = 1024
"""Works are kept in memory no larger than this: strokes are measured at about half of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One work in the index."""

    path: Path
    sha256: Digest
    width: int
    height: int


def entries(home: Home) -> list[Entry]:
    """Every work in the index.

    Raises:
        IntegrityError: the index cannot be read.
    """
    if not home.works_file.exists():
        return []
    try:
        plain = json.loads(read_bounded(home.works_file, _INDEX_MAX_BYTES))
        return [Entry(Path(e["path"]), Digest(str(e["sha256"])), int(e["width"]), int(e["height"])) for e in plain["works"]]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            "the list of works cannot be read",
            advice=f"Delete {home.works_file} and add your works again; the works themselves are untouched.",
        ) from error


def add(home: Home, folder: Path) -> list[Taken | Left]:
    """Take the pictures of a folder into the index.

    Returns:
        What was found there, taken or left out with a reason.

    Raises:
        NoWorksError: there is no picture to take, in it or in the index.
        BadPictureError: the folder cannot be read.
    """
    known = entries(home)
    found = ingest.scan(folder.resolve(), frozenset(entry.sha256 for entry in known))
    taken = [Entry(f.path, f.sha256, f.width, f.height) for f in found if isinstance(f, Taken)]
    if not taken and not known:
        raise nothing_to_learn(folder, found)
    _write(home, [*known, *taken])
    return found


def nothing_to_learn(folder: Path, found: list[Taken | Left]) -> NoWorksError:
    """What to say about a folder without usable works."""
    left = [f for f in found if isinstance(f, Left)]
    why = f"; {left[0].detail}" if left else ""
    return NoWorksError(
        f"{folder} holds no work to learn from{why}",
        advice="Put JPEG, PNG or WebP pictures of your works there, each side at least 128 pixels.",
    )


def load(home: Home) -> list[Work]:
    """The works' pixels, for lessons.

    A work that was moved, changed or damaged since it was added is passed over.

    Raises:
        NoWorksError: none is left.
    """
    works = []
    for entry in entries(home):
        try:
            data = read_bounded(entry.path, codecs.MAX_BYTES)
            if digest_of(data) == entry.sha256:
                works.append(codecs.fit_within(codecs.decode(data), _LONGEST))
        except (OSError, IntegrityError, codecs.CodecError):
            continue
    if not works:
        raise NoWorksError("there is no work to learn from", advice="Add works with: sfumato works add DIR")
    return works


def load_folder(folder: Path) -> list[Work]:
    """The usable works of a folder that is not in the index.

    Raises:
        NoWorksError: there is none.
        BadPictureError: the folder cannot be read.
    """
    found = ingest.scan(folder.resolve())
    works = [codecs.fit_within(ingest.read_picture(f.path), _LONGEST) for f in found if isinstance(f, Taken)]
    if not works:
        raise nothing_to_learn(folder, found)
    return works


def _write(home: Home, works: list[Entry]) -> None:
    plain = [{"path": str(e.path), "sha256": e.sha256, "width": e.width, "height": e.height} for e in works]
    write_json(home.works_file, {"works": plain}, mode=0o600)
