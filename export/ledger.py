"""An append-only account whose every line holds the digest of the line before: a changed or missing line shows."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

from export.errors import IntegrityError, ResourceError
from export.files import canonical_json, digest_of

_START: Final = "0" * 64

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
                file.seek(0)
                line = self._line(entry, _last_line(file.read()))
                size = file.tell()
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
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            entry = _parsed(line)
            if entry is None or entry.get("before") != before:
                raise IntegrityError(
                    f"the ledger was changed at line {number}",
                    advice="Keep the file; the lines above that one can still be trusted.",
                )
            before = digest_of(line)
            entries.append(entry)
        return entries

    @staticmethod
    def _line(entry: Mapping[str, Value], last: bytes | None) -> bytes:
        before = _START if last is None else digest_of(last)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        return canonical_json({"when": when, **entry, "before": before}) + b"\n"


def _last_line(data: bytes) -> bytes | None:
    lines = data.splitlines()
    return lines[-1] if lines else None


def _parsed(line: bytes) -> dict[str, Value] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
