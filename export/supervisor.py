"""Keeps a program's child processes running: one that ends is started again, with growing pauses if it keeps ending."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Final

from export.processes import Child, stop_all

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_HEALTHY_S: Final = 60.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kept:
    """One child, how to start it, and when it may be started again."""

    start: Callable[[], Child]
    child: Child
    started: float
    pause_s: float = _FIRST_PAUSE_S
    not_before: float = 0.0
    is_wanted: bool = True


@dataclass(slots=True)
class Supervisor:
    """The children of one program."""

    _kept: dict[str, _Kept] = field(default_factory=dict)

    def keep(self, name: str, start: Callable[[], Child]) -> Child:
        """Start a child and keep it running from now on."""
        child = start()
        self._kept[name] = _Kept(start, child, time.monotonic())
        return child

    def tend(self) -> None:
        """Start again what ended; call it every second or so."""
        now = time.monotonic()
        for name, kept in self._kept.items():
            code = kept.child.exit_code()
            if code is None or not kept.is_wanted:
                continue
            if kept.not_before == 0.0:
                if now - kept.started > _HEALTHY_S:
                    kept.pause_s = _FIRST_PAUSE_S
                _log.warning("%s ended with code %d, starting it again in %.0f s", name, code, kept.pause_s)
                _pause(kept, now)
            elif now >= kept.not_before:
                _start(name, kept, now)

    def rest(self, name: str) -> None:
        """End a child and leave it ended until ``resume``; a name that is not kept is passed over."""
        kept = self._kept.get(name)
        if kept is not None and kept.is_wanted:
            kept.is_wanted = False
            kept.child.stop()

    def resume(self, name: str) -> None:
        """Start a resting child again."""
        kept = self._kept.get(name)
        if kept is not None and not kept.is_wanted:
            kept.is_wanted = True
            _start(name, kept, time.monotonic())

    def stop(self) -> None:
        """End every child and all its descendants."""
        stop_all([kept.child for kept in self._kept.values()])


def _start(name: str, kept: _Kept, now: float) -> None:
    """Start a child, or leave it for later: a machine that is short of processes or memory may have some again."""
    try:
        kept.child, kept.started, kept.not_before = kept.start(), now, 0.0
    except OSError as error:
        _log.warning("%s could not be started (%s), trying again in %.0f s", name, error.strerror, kept.pause_s)
        _pause(kept, now)


def _pause(kept: _Kept, now: float) -> None:
    kept.not_before = now + kept.pause_s
    kept.pause_s = min(2 * kept.pause_s, _LONGEST_PAUSE_S)


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that a program can end in order."""
    event = threading.Event()

    def leave(_signal: int, _frame: FrameType | None) -> None:
        event.set()

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_log(folder: Path, name: str) -> IO[bytes]:
    """A child's log file, begun anew when it has grown past 16 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.log"
    if path.exists() and path.stat().st_size > 16 * 2**20:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")
