"""An append-only account whose every line holds the digest of the line before: a changed or missing line shows.

All but the end: nothing comes after the last line that could tell whether it was changed, or how many were dropped there.
Whoever must know compares with a copy, or with the digest of a line he wrote down.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path
from typing import Final, TypeAlias

from export.errors import IntegrityError, ResourceError
from export.files import canonical_json, digest_of, held

_START: Final = "0" * 64
_LINE_MAX_BYTES: Final = 2**20  # what counted in a round of 10,000 nodes, each by its number and a digest

Value: TypeAlias = str | int | float | bool | list[str] | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """One ledger file of JSON lines."""

    path: Path

    def append(self, entry: Mapping[str, Value]) -> None:
        """Add a line, on disk before this returns.

        Raises:
            ResourceError: it cannot be written; whoever wanted to act on it must not.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what could not be written must not be waiting to be written again.
            with self.path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size, last, end = _tail(file)
                line = end + self._line(entry, last)
                file.truncate(size)  # of what a crash in mid-write left after the last whole line
                try:
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise _unwritable(error) from error

    def append_once(self, entry: Mapping[str, Value], *names: str) -> bool:
        """Add a line unless there is one with the same values of those names: whoever is killed after a line begins again.

        Returns:
            Whether it was added.

        Raises:
            ResourceError: it cannot be written.
            IntegrityError: the chain is broken.
        """
        try:
            with held(self.path.with_name(f".{self.path.name}.lock"), "the ledger", waits=True):
                if any(_is_same(line, entry, names) for line in self._entries()):
                    return False
                self.append(entry)
        except OSError as error:
            raise _unwritable(error) from error
        return True

    def entries(self) -> list[dict[str, Value]]:
        """Every line, oldest first; the file may not exist yet.

        Raises:
            IntegrityError: the chain is broken: a line before the last was changed, removed or put in; or it cannot be read.
        """
        try:
            return self._entries()
        except OSError as error:
            raise _unreadable(error) from error

    def _entries(self) -> list[dict[str, Value]]:
        if not self.path.exists():
            return []
        entries: list[dict[str, Value]] = []
        before = _START
        with self.path.open("rb") as file:
            while (line := file.readline(_LINE_MAX_BYTES)).endswith(b"\n"):
                entry = _linked(line, before)
                if entry is None:
                    raise _changed(len(entries) + 1)
                before = digest_of(line[:-1])
                entries.append(entry)
        if len(line) == _LINE_MAX_BYTES:
            raise _changed(len(entries) + 1)
        cut = _linked(line, before)
        return entries if cut is None else [*entries, cut]

    def head(self) -> str:
        """The digest of the last line, or 64 zeros. Whoever wrote it down can tell later whether lines were dropped."""
        try:
            with self.path.open("rb", buffering=0) as file:
                _, last, _ = _tail(file)
        except FileNotFoundError:
            return _START
        except OSError as error:
            raise _unreadable(error) from error
        return _START if last is None else digest_of(last)

    @staticmethod
    def _line(entry: Mapping[str, Value], last: bytes | None) -> bytes:
        before = _START if last is None else digest_of(last)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        line = canonical_json({"when": when, **entry, "before": before}) + b"\n"
        if len(line) >= _LINE_MAX_BYTES:
            raise ValueError("an entry is too long for the ledger")
        return line


def _unreadable(error: OSError) -> IntegrityError:
    return IntegrityError(
        f"the ledger cannot be read: {error.strerror}",
        advice="Look who owns it, and at the disk; nothing is sent while the ledger cannot be kept.",
    )


def _unwritable(error: OSError) -> ResourceError:
    return ResourceError(
        f"the ledger could not be written: {error.strerror}",
        advice="Free some disk space; nothing is sent while the ledger cannot be kept.",
    )


def _is_same(line: Mapping[str, Value], entry: Mapping[str, Value], names: tuple[str, ...]) -> bool:
    return all(name in line and type(line[name]) is type(entry[name]) and line[name] == entry[name] for name in names)


def _tail(file: RawIOBase) -> tuple[int, bytes | None, bytes]:
    """Where the last whole line ends, that line without its end, and the end it lacks.

    A line counts once all of it is on disk, with its end or without. Whoever wrote a part of one was never told that it
    stands, and did not act on it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * _LINE_MAX_BYTES))
    tail = file.read() or b""
    whole, _, cut = tail.rpartition(b"\n")
    last = whole.rpartition(b"\n")[2] if len(cut) < len(tail) else None
    if _linked(cut, _START if last is None else digest_of(last)) is not None:
        return size, cut, b"\n"
    return size - len(cut), last, b""


def _changed(number: int) -> IntegrityError:
    return IntegrityError(
        f"the ledger was changed at line {number}", advice="Keep the file; the lines above that one can still be trusted."
    )


def _linked(line: bytes, before: str) -> dict[str, Value] | None:
    """The entry of a line, if it is one and holds that digest."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and entry.get("before") == before else None
