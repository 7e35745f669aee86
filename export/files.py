"""Files, carefully: bounded reads, digests, and writes that are there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NewType

from export.errors import IntegrityError, RefusedError, ResourceError

Digest = NewType("Digest", str)
"""A sha256 in lower-case hexadecimal."""

_STALE_S: Final = 3600.0
"""No folder of ours is being filled for so long: whoever began it is gone."""


def digest_of(data: bytes) -> Digest:
    """The sha256 of some bytes."""
    return Digest(hashlib.sha256(data).hexdigest())


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """Read a whole file that may not be larger than ``limit_bytes``.

    Raises:
        IntegrityError: it is larger.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise IntegrityError(
            f"{path.name} is larger than {limit_bytes} bytes",
            advice="This is not a file Sfumato made; get it again from where it came.",
        )
    return data


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part: temporary, fsync, rename.

    Raises:
        ResourceError: the disk is full or not writable; the old file is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _no_room(path, error) from error
        raise


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """``write_atomic`` of canonical JSON."""
    write_atomic(path, canonical_json(value), mode)


def canonical_json(value: object) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8, no NaN. What is signed is written this way."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def write_folder_atomic(target: Path, fill: Callable[[Path], None], mode: int = 0o755) -> None:
    """Make a folder appear whole: ``fill`` writes into a sibling, which is then renamed to ``target``.

    What a kill has left beside the target is put right first: an old folder that was moved aside comes back if the new one
    had not taken its place, and the rest is swept.

    Args:
        target: replaced as one if it exists.
        fill: writes what belongs into the folder it is given.
        mode: of the folder; 0o700 keeps what is in it from other users of the machine.

    Raises:
        ResourceError: the disk is full or not writable; nothing of the new folder is left, and the old one is in its place.
    """
    staging = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    aside = staging.with_suffix(".old")
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        _put_right(target)
        staging.mkdir(mode=mode)
        fill(staging)
        for path in sorted(staging.rglob("*")):  # folders too: they list the files in them
            _sync_file(path)
        _sync_folder(staging)
        if target.exists():  # moved aside, not deleted: between the two renames nothing is lost
            target.replace(aside)
        try:
            staging.replace(target)
        except OSError:
            with suppress(OSError):
                aside.replace(target)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise _no_room(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _put_right(target: Path) -> None:
    """Finish or undo what killed writers of ``target`` left, but for what may still be another's work in progress."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.(part|old)")
    left = [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]
    aside = [path for path in left if path.suffix == ".old"]
    if aside and not target.exists():
        max(aside, key=lambda path: path.stat().st_ctime_ns).replace(target)
    for path in left:
        with suppress(FileNotFoundError):  # whoever made it has just ended
            if path.suffix == ".old" or time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def held(path: Path, what: str, *, waits: bool = False) -> Iterator[None]:
    """Keep a second process from doing the same here at the same time; the system lets go when this one dies.

    Args:
        path: the lock's file; it is empty and stays.
        what: is going on, for whom it is refused: "a round".
        waits: until nobody holds it, instead of refusing.

    Raises:
        RefusedError: somebody holds it already.
        ResourceError: the lock's file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_room(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                f"{what} is running already", advice="Wait until it has ended, or end it, and run the same command again."
            ) from error
        yield
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_sync_folder = _sync_file  # a rename is only durable once the folder that lists it is


def _no_room(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{path.name} could not be written: {error.strerror or error}",
        advice="Free some disk space or choose a folder you may write to, then run the same command again.",
    )
