"""The time as the federation knows it, whatever this machine's clock says.

A box without a battery wakes up in 1970, and a gallery's network has no time server. Three things need the right time: requests
are signed with it, Flower refuses a node that is 5 s fast or 305 s slow, and what expires must expire. So:

* The coordinator's time is asked for over the pinned connection, and from then on counted with the clock that only counts
  (since the machine started); nobody's setting of the system clock moves it.
* What expires is held against that, or against the latest time that somebody we trust has signed, whichever is later: a clock
  set back makes nothing expired good again.

The system clock itself is never touched.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from edge_node.config import Home
from export.errors import IntegrityError
from export.files import read_bounded, write_json

_STATE_MAX_BYTES: Final = 1024
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_AGREES_S: Final = 0.5
_YEAR_9999_S: Final = 253_402_300_799.0


@dataclass(frozen=True, slots=True)
class Anchor:
    """A time that was known, and what the counting clock said then.

    Attributes:
        boot: of which start of the machine that clock counts from; empty where it cannot be told.
        since_boot_s: what it said.
        time_s: the coordinator's time, seconds since 1970.
    """

    boot: str
    since_boot_s: float
    time_s: float

    def now_s(self) -> float:
        """The coordinator's time now."""
        return self.time_s + since_boot_s() - self.since_boot_s


@dataclass(frozen=True, slots=True)
class _State:
    anchor: Anchor | None
    floor_s: float


def now_s(home: Home) -> float:
    """The coordinator's time as this machine knows it, in seconds since 1970: the system's before the first contact."""
    anchor = anchored(home)
    return time.time() if anchor is None else anchor.now_s()


def expiry_s(home: Home) -> float:
    """The time to hold against what expires: never before the latest that was signed."""
    return max(now_s(home), _load(home).floor_s)


def anchored(home: Home) -> Anchor | None:
    """The last contact's time, if the machine was not started anew since."""
    anchor = _load(home).anchor
    return anchor if anchor is not None and anchor.boot == boot_id() else None


@dataclass(slots=True)
class Follower:
    """The same as ``now_s`` for a process that asks often: the note is read again only when it was written anew."""

    home: Home
    _written_ns: int | None = None
    _anchor: Anchor | None = None

    def now_s(self) -> float:
        """The coordinator's time as this machine knows it."""
        try:
            written_ns = self.home.clock_file.stat().st_mtime_ns
        except OSError:
            written_ns = None
        if written_ns != self._written_ns:
            self._written_ns, self._anchor = written_ns, anchored(self.home)
        return time.time() if self._anchor is None else self._anchor.now_s()


def learn(home: Home, coordinator_s: float) -> Anchor:
    """Believe what the coordinator said over a connection that proved to be its own.

    Args:
        home: this machine's folder.
        coordinator_s: its time in the middle of the exchange.

    Raises:
        IntegrityError: no time a coordinator may have.
        ResourceError: it cannot be written.
    """
    if not 0 < coordinator_s < _YEAR_9999_S:  # NaN passes no comparison
        raise IntegrityError("the coordinator told an impossible time", advice="Tell the coordinator.")
    known = anchored(home)
    if known is not None and abs(known.now_s() - coordinator_s) < _AGREES_S:
        return known  # small boxes write to cards that wear out
    anchor = Anchor(boot_id(), since_boot_s(), coordinator_s)
    _save(home, replace(_load(home), anchor=anchor))
    return anchor


def know_at_least(home: Home, signed_s: float) -> None:
    """Never again believe that it is before a time that somebody we trust has signed."""
    state = _load(home)
    if state.floor_s < signed_s < _YEAR_9999_S:
        _save(home, replace(state, floor_s=signed_s))


def since_boot_s() -> float:
    """Seconds since the machine was started, sleep included where the system counts it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def boot_id() -> str:
    """Names this start of the machine."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _load(home: Home) -> _State:
    try:
        plain = json.loads(read_bounded(home.clock_file, _STATE_MAX_BYTES))
        said = plain["anchor"]
        anchor = None if said is None else Anchor(str(said["boot"]), float(said["since_boot_s"]), float(said["time_s"]))
        return _State(anchor, float(plain["floor_s"]))
    except (OSError, IntegrityError, ValueError, TypeError, KeyError, RecursionError):
        return _State(None, 0.0)  # not written yet, or damaged: the next contact mends it


def _save(home: Home, state: _State) -> None:
    write_json(home.clock_file, asdict(state))
