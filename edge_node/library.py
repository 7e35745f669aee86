"""The artist's works, referenced where they lie: an index of paths and digests. Nothing here ever leaves the machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from edge_node import ingest
from edge_node.config import Home
from edge_node.errors import NoWorksError
from edge_node.ingest import Left, Taken
from export.errors import IntegrityError
from export.files import Digest, digest_of, read_bounded, write_json
from models import codecs
from models.contract import Work

T = TypeVar("T")

_INDEX_MAX_BYTES: Final = 16 * 2**20
_LONGEST: Final = 1024
"""Works are kept in memory no larger than this: strokes are measured at about half of it."""
_LESSONS_MAX: Final = 64
"""Works in memory at once; more hardly move the mean of their statistics, and a laptop has memory for so many."""

State = Literal["ok", "missing", "changed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One work in the index; ``mtime_ns`` is when its file was changed last, as far as was known when it was added."""

    path: Path
    sha256: Digest
    width: int
    height: int
    mtime_ns: int | None = None

    def state(self) -> State:
        """Whether the file is still there and still the one that was added."""
        found = mtime_ns(self.path)
        if found is None:
            return "missing"
        if found == self.mtime_ns:
            return "ok"
        try:  # touched, copied back or restored: it may still be the same
            return "ok" if digest_of(read_bounded(self.path, codecs.MAX_BYTES)) == self.sha256 else "changed"
        except (OSError, IntegrityError):
            return "changed"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Works in memory, how many usable ones there are in all, and the file name of each of those in memory."""

    works: list[Work]
    found: int
    names: list[str]


def entries(home: Home) -> list[Entry]:
    """Every work in the index.

    Raises:
        IntegrityError: the index cannot be read.
    """
    if not home.works_file.exists():
        return []
    try:
        plain = json.loads(read_bounded(home.works_file, _INDEX_MAX_BYTES))
        return [
            Entry(Path(e["path"]), Digest(str(e["sha256"])), int(e["width"]), int(e["height"]), e.get("mtime_ns"))
            for e in plain["works"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            "the list of works cannot be read",
            advice=f"Delete {home.works_file} and add your works again; the works themselves are untouched.",
        ) from error


def key(home: Home) -> tuple[tuple[Path, Digest, int | None], ...]:
    """What the library holds now: it changes when a work is added, withdrawn, edited or removed from the disk."""
    return tuple((entry.path, entry.sha256, mtime_ns(entry.path)) for entry in entries(home))


def add(home: Home, folder: Path) -> list[Taken | Left]:
    """Take the pictures of a folder into the index; one that was edited or moved since takes the place of its old entry.

    Returns:
        What was found there, taken or left out with a reason.

    Raises:
        NoWorksError: there is no picture to take, in it or in the index.
        BadPictureError: the folder cannot be read.
    """
    known = entries(home)
    found = ingest.scan(folder.resolve(), frozenset(entry.sha256 for entry in known if entry.state() == "ok"))
    taken = [Entry(f.path, f.sha256, f.width, f.height, mtime_ns(f.path)) for f in found if isinstance(f, Taken)]
    if not taken and not known:
        raise nothing_to_learn(folder, found)
    moved = {entry.sha256 for entry in taken}
    by_path = {entry.path: entry for entry in known if entry.sha256 not in moved}
    _write(home, [*(by_path | {entry.path: entry for entry in taken}).values()])
    return found


def nothing_to_learn(folder: Path, found: list[Taken | Left]) -> NoWorksError:
    """What to say about a folder without usable works."""
    left = [f for f in found if isinstance(f, Left)]
    why = f"; {left[0].detail}" if left else ""
    return NoWorksError(
        f"{folder} holds no work to learn from{why}",
        advice="Put JPEG, PNG or WebP pictures of your works there, each side at least 128 pixels.",
    )


def load(home: Home, *, all_of_them: bool = False) -> Loaded:
    """The works' pixels, for lessons: of more than 64, so many at even distances in the order of their paths.

    Or all of them, where which works are used must not depend on one of them.

    A work that was moved, changed or damaged since it was added is passed over.

    Raises:
        NoWorksError: none is left.
    """
    usable = sorted((entry for entry in entries(home) if entry.state() == "ok"), key=lambda entry: entry.path)
    works, names = [], []
    for entry in usable if all_of_them else _spread(usable):
        try:
            data = read_bounded(entry.path, codecs.MAX_BYTES)
            if digest_of(data) == entry.sha256:
                works.append(codecs.fit_within(codecs.decode(data), _LONGEST))
                names.append(entry.path.name)
        except (OSError, IntegrityError, codecs.CodecError):
            continue
    if not works:
        raise NoWorksError("there is no work to learn from", advice="Add works with: sfumato works add DIR")
    return Loaded(works, len(usable), names)


def load_folder(folder: Path) -> Loaded:
    """The usable works of a folder that is not in the index: of more than 64, so many at even distances in order of name.

    Raises:
        NoWorksError: there is none.
        BadPictureError: the folder cannot be read.
    """
    found = ingest.scan(folder.resolve())
    taken = [f for f in found if isinstance(f, Taken)]
    if not taken:
        raise nothing_to_learn(folder, found)
    used = _spread(taken)
    works = [codecs.fit_within(ingest.read_picture(f.path), _LONGEST) for f in used]
    return Loaded(works, len(taken), [f.path.name for f in used])


def _spread(items: Sequence[T]) -> list[T]:
    """At most as many as lessons are given from, at even distances."""
    used = min(len(items), _LESSONS_MAX)
    return [items[index * len(items) // used] for index in range(used)]


def mtime_ns(path: Path) -> int | None:
    """When a file was changed last; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _write(home: Home, works: list[Entry]) -> None:
    plain = [asdict(entry) | {"path": str(entry.path)} for entry in works]
    write_json(home.works_file, {"works": plain}, mode=0o600)
