"""Files, carefully: bounded reads, digests, and writes that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NewType

from export.errors import IntegrityError, ResourceError

Digest = NewType("Digest", str)
"""A sha256 in lower-case hexadecimal."""


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
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _no_room(path, error) from error


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """``write_atomic`` of canonical JSON."""
    write_atomic(path, canonical_json(value), mode)


def canonical_json(value: object) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8, no NaN. What is signed is written this way."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def write_folder_atomic(target: Path, fill: Callable[[Path], None], mode: int = 0o755) -> None:
    """Make a folder appear whole: ``fill`` writes into a sibling, which is then renamed to ``target``.

    Args:
        target: replaced as one if it exists.
        fill: writes what belongs into the folder it is given.
        mode: of the folder; 0o700 keeps what is in it from other users of the machine.

    Raises:
        ResourceError: the disk is full or not writable; nothing of the folder is left.
    """
    staging = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    aside = staging.with_suffix(".old")
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir(mode=mode)
        fill(staging)
        for path in sorted(staging.rglob("*")):  # folders too: they list the files in them
            _sync_file(path)
        _sync_folder(staging)
        if target.exists():  # moved aside, not deleted: between the two renames nothing is lost
            target.replace(aside)
        staging.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _no_room(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


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
