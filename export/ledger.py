"""An append-only account whose every line holds the digest of the line before: a changed or missing line shows."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, TypeAlias

from export.errors import IntegrityError, ResourceError
from export.files import canonical_json, digest_of

_START: Final = "0" * 64
_LINE_MAX_BYTES: Final = 64 * 2**10

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
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size, last = _tail(file)
                line = self._line(entry, last)
                file.truncate(size)  # of what a crash in mid-write left after the last whole line
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise ResourceError(
                f"the ledger could not be written: {error.strerror}",
                advice="Free some disk space; nothing is sent while the ledger cannot be kept.",
            ) from error

    def entries(self) -> list[dict[str, Value]]:
        """Every line, oldest first; the file may not exist yet.

        Raises:
            IntegrityError: the chain is broken: a line was changed, removed or put in.
        """
        if not self.path.exists():
            return []
        entries: list[dict[str, Value]] = []
        before = _START
        with self.path.open("rb") as file:
            number = 0
            while (line := file.readline(_LINE_MAX_BYTES)).endswith(b"\n"):
                number += 1
                entry = _parsed(line)
                if entry is None or entry.get("before") != before:
                    raise _changed(number)
                before = digest_of(line[:-1])
                entries.append(entry)
        if len(line) == _LINE_MAX_BYTES:
            raise _changed(number + 1)
        return entries

    @staticmethod
    def _line(entry: Mapping[str, Value], last: bytes | None) -> bytes:
        before = _START if last is None else digest_of(last)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        line = canonical_json({"when": when, **entry, "before": before}) + b"\n"
        if len(line) >= _LINE_MAX_BYTES:
            raise ValueError("an entry is too long for the ledger")
        return line


def _tail(file: IO[bytes]) -> tuple[int, bytes | None]:
    """Where the last whole line ends, and that line without its end.

    A line counts once its end is on disk. Whoever wrote a part of one was never told that it stands, and did not act on it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * _LINE_MAX_BYTES))
    tail = file.read()
    whole = tail[: tail.rfind(b"\n") + 1]
    return size - len(tail) + len(whole), whole[:-1].rpartition(b"\n")[2] if whole else None


def _changed(number: int) -> IntegrityError:
    return IntegrityError(
        f"the ledger was changed at line {number}", advice="Keep the file; the lines above that one can still be trusted."
    )


def _parsed(line: bytes) -> dict[str, Value] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
