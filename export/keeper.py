"""Runs one command and ends its whole process group when its own standard input closes.

A script, run by `processes.Child` as `python -I -S keeper.py GRACE_S COMMAND…`; it imports little because one stays in
memory beside every child. See `processes` for why it exists.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

_POLL_S: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def keep(grace_s: float, command: Sequence[str]) -> int:
    """Run `command` in its own group until it ends or our standard input does; return its exit code."""
    # Handlers that do nothing, not SIG_IGN, which the command would inherit. Only the parent's end or word stops us.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: None)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=_die_with_keeper(os.getpid()),  # noqa: PLW1509  (one thread so far, so the fork holds no lock)
    )
    released = threading.Event()
    ender = threading.Thread(target=_end_group_when_released, args=(child.pid, grace_s, released), daemon=True)
    ender.start()
    code = child.wait()
    if released.is_set():
        ender.join()
    else:
        _end_group(child.pid, grace_s)  # What the command has started and left behind.
    return 128 - code if code < 0 else code


def _die_with_keeper(keeper_pid: int) -> Callable[[], None] | None:
    """Return what makes the command die if somebody kills the keeper (Linux only)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # Loaded before the fork: between fork and exec as little as possible.

    def ask_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper_pid:
            os._exit(1)

    return ask_kernel


def _end_group_when_released(group: int, grace_s: float, released: threading.Event) -> None:
    while os.read(0, 64):
        pass
    released.set()
    _end_group(group, grace_s)


def _end_group(group: int, grace_s: float) -> None:
    """Send TERM to a process group and, after `grace_s`, KILL to what is left of it."""
    _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while _signal_group(group, 0):
        if time.monotonic() > deadline:
            _signal_group(group, signal.SIGKILL)
            return
        time.sleep(_POLL_S)


def _signal_group(group: int, signum: int) -> bool:
    """Send a signal to a group; False when nobody is left in it."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False
    return True


if __name__ == "__main__":
    sys.exit(keep(float(sys.argv[1]), sys.argv[2:]))
