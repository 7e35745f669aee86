"""Releases on this machine: installing, listing, going back, and finding the one a style belongs to.

A release is copied in whole and verified again before it appears, then made the current one, and remembered as seen last: a
crash in between is mended by installing it again. Older ones stay: a style belongs to exactly one body, and serves from it
until it has been fitted to the next.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from edge_node.config import Home
from edge_node.errors import NotJoinedError
from export import base
from export.errors import IntegrityError, NotConfiguredError, UsageError
from export.files import Digest, read_bounded, write_atomic, write_folder_atomic
from export.signing import Ed25519Signatures, ReleaseVerifier, Trust, VerifiedRelease

_VERIFIER: Final[ReleaseVerifier] = Ed25519Signatures()
_CURRENT: Final = "current"


def trust(home: Home) -> Trust:
    """Whom this machine believes.

    Raises:
        NotJoinedError: it has joined no federation.
    """
    if not home.trust_file.exists():
        raise NotJoinedError("this machine has joined no federation", advice="Join one with: sfumato join INVITE")
    return Trust.load(home.trust_file)


def verify(home: Home, folder: Path) -> VerifiedRelease:
    """Check a folder against this machine's trust, without installing it.

    Raises:
        IntegrityError: it is not a release this machine accepts.
        UsageError: there is no such folder.
        NotJoinedError: this machine has joined no federation.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no release folder {folder}", advice="Name the folder that holds manifest.json.")
    return _VERIFIER.verify(folder, trust(home))


def install(home: Home, folder: Path) -> VerifiedRelease:
    """Verify a release folder, copy it in and make it the current one.

    Raises:
        IntegrityError: it is not a release this machine accepts; nothing was changed.
        UsageError: there is no such folder.
        ResourceError: the disk is full; nothing was changed.
    """
    offered, believed = verify(home, folder), trust(home)
    target = home.releases / str(offered.manifest.version)

    def fill(staging: Path) -> None:
        _copy(offered, staging)
        if _VERIFIER.verify(staging, believed).digest != offered.digest:
            raise IntegrityError("the release was changed while it was copied", advice="Install it again.")

    write_folder_atomic(target, fill)
    write_atomic(home.releases / _CURRENT, target.name.encode())
    believed.having_seen(offered.manifest.version).save(home.trust_file)
    return replace(offered, folder=target)


def rollback(home: Home) -> VerifiedRelease:
    """Make the release before the current one current again; styles that still have a code for it use it."""
    now = current_version(home)
    earlier = [version for version in versions(home) if now is not None and version < now]
    if not earlier:
        raise UsageError("there is no earlier release to go back to", advice="See: sfumato release list")
    write_atomic(home.releases / _CURRENT, str(earlier[-1]).encode())
    return current(home)


def versions(home: Home) -> list[int]:
    """Numbers of the installed releases, oldest first."""
    return sorted(int(path.name) for path in home.releases.glob("[0-9]*") if path.name.isdigit())


def current(home: Home) -> VerifiedRelease:
    """The release in use: the last installed one, else the base that came with the program.

    Raises:
        IntegrityError: its folder was changed, or what names it cannot be read.
    """
    version = current_version(home)
    return base.load(home.config().modality) if version is None else opened(home, version)


def current_version(home: Home) -> int | None:
    """Number of the release in use; None is the base that came with the program.

    Raises:
        IntegrityError: what names it cannot be read.
    """
    try:
        return int(read_bounded(home.releases / _CURRENT, 32))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise IntegrityError(
            "the note of which release is in use is damaged",
            advice=f"Delete {home.releases / _CURRENT} to use the base, or install a release: sfumato release install DIR",
        ) from error


def opened(home: Home, version: int) -> VerifiedRelease:
    """An installed release, verified as it is opened; one that was accepted once may be used again.

    Raises:
        IntegrityError: there is none of that number, or its folder was changed.
    """
    folder = home.releases / str(version)
    if not folder.is_dir():
        raise IntegrityError(f"release {version} is not installed", advice="See: sfumato release list")
    return _VERIFIER.verify(folder, replace(trust(home), highest_version=0))


def with_body(home: Home, body: Digest) -> VerifiedRelease:
    """The installed release, or the packaged base, that holds a body; damaged ones are passed over.

    Raises:
        NotConfiguredError: none does.
    """
    for version in reversed(versions(home)):
        with suppress(IntegrityError):
            release = opened(home, version)
            if release.manifest.body == body:
                return release
    packaged = base.load(home.config().modality)
    if packaged.manifest.body == body:
        return packaged
    raise NotConfiguredError(
        f"no installed release holds body {body[:12]}",
        advice="Install the release this style was made for, or learn the style anew.",
    )


def _copy(offered: VerifiedRelease, staging: Path) -> None:
    for source in sorted(offered.folder.rglob("*")):
        target = staging / source.relative_to(offered.folder)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
