"""All that makes a coordinator what it is, in one file; and a coordinator again from it.

In it are the authority and every key, the settings, policies, the database as it is at one moment, the ledger, the releases
and the strips. Not in it: Flower's own memory, from which nothing is lost (``service.tell_flower`` tells it of the members
again), logs, locks, and updates of a round under way.

After a restore the next release and the next round get numbers far above the last known ones: members may have seen releases
and rounds that the backup knows nothing of, and they go back to none.
"""

from __future__ import annotations

import io
import sqlite3
import tarfile
import time
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

from coordinator.config import Home
from coordinator.store import Store
from export.errors import IntegrityError, UsageError
from export.files import write_atomic, write_folder_atomic
from export.signing import Trust

NUMBERS_SKIPPED: Final = 1000
"""More releases and rounds than any federation has between two backups."""
_KEPT: Final = ("coordinator.toml", "policy.toml", "trust.json", "current", "ledger.jsonl")
_FOLDERS: Final = ("pki", "policies", "releases", "strips")
_MADE: Final = "made"
_FILES_MAX: Final = 100_000
_BYTES_MAX: Final = 64 * 2**30


def backup(home: Home, file: Path) -> int:
    """Write the file, for this user alone; its size.

    The ledger is copied before the database: it may lack the last line, and never tells of what the database does not know.

    Raises:
        ResourceError: it cannot be written.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        _put(archive, _MADE, datetime.now(UTC).isoformat(timespec="seconds").encode())
        for name in _KEPT:
            if (home.root / name).exists():
                _put(archive, name, (home.root / name).read_bytes())
        _put(archive, home.database.name, _snapshot(home.database))
        for folder in _FOLDERS:
            for path in sorted((home.root / folder).rglob("*")):
                if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                    _put(archive, path.relative_to(home.root).as_posix(), path.read_bytes())
    data = buffer.getvalue()
    write_atomic(file, data, mode=0o600)
    return len(data)


def restore(home: Home, file: Path) -> str:
    """Set a coordinator up from a backup; when that was made.

    Raises:
        UsageError: there is a coordinator in that folder already, or no such file.
        IntegrityError: the file is no backup.
        ResourceError: it cannot be written; nothing was.
    """
    if home.root.exists() and any(home.root.iterdir()):
        raise UsageError(f"{home.root} is not empty", advice="Restore into a new folder (--home).")
    if not file.is_file():
        raise UsageError(f"there is no file {file}", advice="Name the file that sfumato-coordinator backup wrote.")
    made = ""

    def fill(folder: Path) -> None:
        nonlocal made
        made = _unpack(file, folder)
        _skip_numbers(Home(folder))

    if home.root.exists():
        home.root.rmdir()
    write_folder_atomic(home.root, fill, mode=0o700)
    return made


def _unpack(file: Path, folder: Path) -> str:
    try:
        with tarfile.open(file, mode="r:gz") as archive:
            members = archive.getmembers()
            if len(members) > _FILES_MAX or sum(member.size for member in members) > _BYTES_MAX:
                raise tarfile.TarError("too large")
            for member in members:
                _take(archive, member, folder)
        if not all((folder / name).is_file() for name in ("coordinator.toml", "trust.json", "coordinator.sqlite")):
            raise tarfile.TarError("without a coordinator")
        return (folder / _MADE).read_text()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise IntegrityError(f"{file.name} is no backup of a coordinator", advice="Take another backup.") from error


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """One file; anything but a plain file in a place that a backup has is refused."""
    path = PurePosixPath(member.name)
    is_ours = member.name in (*_KEPT, _MADE, "coordinator.sqlite") or (len(path.parts) > 1 and path.parts[0] in _FOLDERS)
    if not member.isfile() or not is_ours or ".." in path.parts or path.is_absolute():
        raise tarfile.TarError("a stranger")
    source = archive.extractfile(member)
    if source is None:
        raise tarfile.TarError("nothing in it")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(target, source.read(), mode=0o600)


def _skip_numbers(home: Home) -> None:
    trust = Trust.load(home.trust_file)
    trust.having_seen(trust.highest_version + NUMBERS_SKIPPED).save(home.trust_file)
    Store(home.database).skip_rounds(NUMBERS_SKIPPED, time.time())


def _put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    archive.addfile(entry, io.BytesIO(data))


def _snapshot(database: Path) -> bytes:
    """The database as it is at one moment, whoever writes to it meanwhile."""
    source, copy = sqlite3.connect(database), sqlite3.connect(":memory:")
    try:
        source.backup(copy)
        return copy.serialize()
    finally:
        source.close()
        copy.close()
