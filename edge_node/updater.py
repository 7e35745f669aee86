"""Fetching the newest release: into a folder of its own first, verified there, and installed as any other."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from edge_node import clock, consent, membership, releases
from edge_node.config import Home
from edge_node.errors import NotAMemberError
from edge_node.remote import Offer, Remote
from export.errors import IntegrityError, ResourceError
from export.ledger import Ledger, Value
from export.signing import MANIFEST, SIGNATURES, VerifiedRelease

_FILE_MAX_BYTES: Final = 64 * 2**20
_FILES_MAX: Final = 200
_INCOMING: Final = ".incoming-"
# As in the manifest, and checked before a name off the wire becomes a path; the signed manifest is checked later.
_PATH: Final = re.compile(r"(?:[a-z0-9_-]{1,40}/){0,2}[a-z0-9_-]{1,60}(?:\.[a-z0-9]{1,12}){1,2}")


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """What one answer of the coordinator came to.

    Both from the same answer: asked one after the other, a round's end between the two would look like "nothing new, and
    no round under way", and styles would be renewed for the body that was just replaced.

    Attributes:
        installed: the release that was installed now, or None.
        is_round_running: whether a round was under way, in which this machine's cores are wanted for training.
        is_seen: whether Flower sees this node at the coordinator; None if that cannot be told.
    """

    installed: VerifiedRelease | None
    is_round_running: bool
    is_seen: bool | None = None


def update(home: Home) -> News:
    """Install the coordinator's newest release if it is newer than any seen, or was seen and never quite installed.

    What was installed and then gone back from stays gone back from.

    Raises:
        NotJoinedError, NoCoordinatorError, WrongCoordinatorError: no way to ask.
        JoinRefusedError, MembershipEndedError: this machine is no member any more.
        IntegrityError: what was offered is not a release this machine accepts; nothing was changed.
        ResourceError: the disk is full; nothing was changed.
    """
    coordinator = membership.coordinator(home)
    try:
        offer = coordinator.newest()
    except NotAMemberError:  # restored from a backup older than this node
        membership.rejoin(home)
        offer = coordinator.newest()
    clock.learn(home, offer.time_s)
    try:
        _note_policy(home, coordinator, offer)
    except IntegrityError as error:  # no round is held under it, and releases go on coming
        _log.warning("%s. %s", error, error.advice)
    _note_verdicts(home, offer)
    membership.renew_certificate(home, coordinator)
    if _is_settled(home, offer.version):
        return News(None, offer.is_round_running, offer.is_seen)
    if len(offer.files) > _FILES_MAX or not all(_PATH.fullmatch(file) for file in offer.files):
        raise IntegrityError("the coordinator offers a release with impossible file names", advice="Do not use it.")
    home.releases.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_INCOMING, dir=home.releases) as name:
        folder = Path(name)
        for file in (*offer.files, MANIFEST, SIGNATURES):
            _put(folder / file, coordinator.file(offer.version, file, _FILE_MAX_BYTES))
        installed = releases.install(home, folder)
    with suppress(ValueError):
        clock.know_at_least(home, datetime.fromisoformat(installed.manifest.created).timestamp())
    return News(installed, offer.is_round_running, offer.is_seen)


def _note_policy(home: Home, coordinator: Remote, offer: Offer) -> None:
    """Fetch the policy that holds, if it is another than the last one that was offered; agreeing is the artist's doing."""
    try:
        known = consent.offered(home)
    except IntegrityError:  # damaged: it is fetched again
        known = None
    if known is None or known.digest != offer.policy:
        found = consent.keep_offered(home, *coordinator.policy())
        _log.warning("policy %d is to be read and agreed to: sfumato policy show", found.policy.version)


def _note_verdicts(home: Home, offer: Offer) -> None:
    """Write down what became of updates, once each: the artist is told why one did not count."""
    for verdict in reversed(offer.verdicts):
        entry: dict[str, Value] = {
            "what": "verdict",
            "federation": releases.trust(home).federation,
            "round": verdict.round,
            "accepted": verdict.accepted,
            "reason": verdict.reason,
            "advice": verdict.advice,
        }
        ledger = Ledger(home.ledger_file)
        if ledger.append_once(entry, "what", "federation", "round") and not verdict.accepted:
            _log.warning(
                "round %d: this machine's update does not count: %s. %s", verdict.round, verdict.reason, verdict.advice
            )


def sweep(home: Home) -> None:
    """Remove what an earlier process was fetching when it was killed."""
    for folder in home.releases.glob(f"{_INCOMING}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _is_settled(home: Home, version: int) -> bool:
    """Whether a served version changes nothing here: it is older than one seen, or installed as a whole.

    Having seen a version says too little: whoever joins is told of the newest one before there is any folder of it.
    """
    seen = releases.trust(home).highest_version
    if version != seen:
        return version < seen
    return version in releases.versions(home) and releases.current_version(home) is not None


def _put(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ResourceError(
            f"the new release could not be stored: {error.strerror}",
            advice="Free some disk space; the release in use is untouched.",
        ) from error
