"""Starts the processes we do not write ourselves, on a leash, in an environment that calls nobody.

A started command gets its own process group and a keeper (`keeper.py`) that holds the read end of a pipe whose write
end only the parent has. The pipe closes when the parent says so *or dies in any way*, `kill -9` included; the keeper
then ends the command's whole group. That reaches grandchildren, works on every Unix and does not depend on threads,
which Linux's `PR_SET_PDEATHSIG` does (it fires when the starting *thread* ends, and for the direct child only).

The one trap: whoever forks without exec after `Child.start` (multiprocessing's fork) keeps the write end open too, so
the leash holds only when that fork has ended as well. Start children from a supervisor that does not fork.
"""

import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

from export.errors import ResourceError
from export.files import read_bounded, write_atomic

_PORTS: Final = range(16384, 32768)
"""Below Linux's own for outgoing connections (32768 to 60999) and those of RFC 6335 (49152 and up)."""
_PORT_TRIES: Final = 100
_SECRET_BYTES: Final = 32
_SECRET_MAX_BYTES: Final = 4096
_KEEPER_SLACK_S: Final = 5.0
_KEEPER: Final = Path(__file__).with_name("keeper.py")


def child_environment(flwr_home: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every Flower process: `inherited`, less what would make one call out.

    Removed: whatever else configures Flower or Ray, and proxies (a loopback call must not leave by one; a node dials
    its coordinator directly). Kept: the rest, so that CUDA, locale and our own `SFUMATO_*` variables reach the app
    processes. The folder of this interpreter leads PATH, because Flower's runner finds `flwr-serverapp` there and a
    virtual environment need not be activated.
    """
    kept = {name: value for name, value in inherited.items() if not _configures_flower_or_proxy(name)}
    return kept | {
        "PATH": os.pathsep.join(part for part in (_scripts_dir(), inherited.get("PATH", os.defpath)) if part),
        "FLWR_HOME": str(flwr_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        # Belt and braces: should some path of Flower's still ask its hub, it finds nobody (port 9 discards).
        "FLWR_SUPERGRID_API_URL": "http://127.0.0.1:9/v1",
        "FLWR_SUPERGRID_ADDRESS": "127.0.0.1:9",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": "*",
        "no_proxy": "*",
        "PYTHONUNBUFFERED": "1",
    }


def installed_command(name: str) -> str:
    """Return the path of a command installed beside this interpreter, on PATH or not."""
    return str(Path(_scripts_dir()) / name)


def return_freed_memory() -> None:
    """Give what this process has freed back to the system, where the C library is glibc; elsewhere nothing happens.

    glibc keeps small freed pieces for later. After measuring works for lessons that is some 300 MB, in a process that stays.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port nobody listens on now.

    Only for programs that take a port number and nothing else: between this answer and their bind, or while they are started
    again, another process may take it. So it is drawn, and not next to the one that the last asker got; and from below those
    that systems give to outgoing connections, of which one might be there first. Where a socket can be handed over, hand it
    over instead.

    Raises:
        ResourceError: as good as every port is taken.
    """
    for _ in range(_PORT_TRIES):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise ResourceError(f"no port between {_PORTS.start} and {_PORTS.stop - 1} is free", advice="Stop what listens on them.")


def load_or_create_secret(path: Path) -> bytes:
    """Return the secret two local processes share, made on first use and readable by this user only."""
    if not path.exists():
        write_atomic(path, secrets.token_bytes(_SECRET_BYTES), mode=0o600)
    return read_bounded(path, _SECRET_MAX_BYTES)


@dataclass(frozen=True, slots=True)
class Child:
    """A running command, its group and its keeper."""

    name: str
    _keeper: subprocess.Popen[bytes]
    _grace_s: float

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: IO[bytes] | int | None = None,
        grace_s: float = 10.0,
    ) -> Self:
        """Start `command` in its own group; its output goes to `log` (default: where ours goes).

        `grace_s` is what the group gets between TERM and KILL when it is stopped or we die.
        """
        keeper = subprocess.Popen(
            # -I -S: nothing but the standard library is loaded, and no variable or folder of the user's changes it.
            [sys.executable, "-I", "-S", str(_KEEPER), str(grace_s), *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=dict(environment),
            start_new_session=True,
            umask=0o077,  # Databases, keys and logs of the child are for this user only.
        )
        return cls(name, keeper, grace_s)

    @property
    def keeper_pid(self) -> int:
        """The process id of the keeper; the command is its only child."""
        return self._keeper.pid

    def exit_code(self) -> int | None:
        """Return the command's exit code (128 + n after signal n), or None while it runs."""
        code = self._keeper.poll()
        if code is not None:
            self.release()  # Nobody holds the other end of the pipe any more.
        return code

    def wait(self, timeout_s: float) -> int | None:
        """Wait at most `timeout_s` for the command to end; return as `exit_code` does."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(timeout_s)
        return self.exit_code()

    def release(self) -> None:
        """Ask for the end of the whole group and return at once; `stop` also waits."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()

    def stop(self) -> int:
        """End the whole group, TERM first and KILL after the grace, and return the exit code."""
        self.release()
        code = self.wait(self._grace_s + _KEEPER_SLACK_S)
        if code is None:  # The keeper itself is stuck; its death takes the command along on Linux.
            self._keeper.kill()
            code = self._keeper.wait()
        return code

    def __enter__(self) -> Self:
        """Return the running child."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop the child, whatever happened."""
        self.stop()


def stop_all(children: Sequence[Child]) -> None:
    """Stop several children at once, so that their graces run side by side."""
    for child in children:
        child.release()
    for child in children:
        child.stop()


def _configures_flower_or_proxy(name: str) -> bool:
    return name.startswith(("FLWR_", "RAY_")) or name.lower().endswith("_proxy")


def _scripts_dir() -> str:
    # Not resolved: in a virtual environment the interpreter is a link, and its folder is the one with the scripts.
    return str(Path(sys.executable).parent)
