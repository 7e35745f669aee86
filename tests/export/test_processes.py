"""Children end when they should, whole groups of them, and call nobody."""

import ctypes
import os
import platform
import secrets
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from export.errors import ResourceError
from export.processes import (
    Child,
    child_environment,
    free_port,
    installed_command,
    load_or_create_secret,
    return_freed_memory,
    stop_all,
)

DEADLINE_S = 60.0
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath)}
# Writes the process ids of itself and of a grandchild, then waits; `trap` makes both deaf to TERM.
FAMILY = "{trap} sleep 600 & echo $$ $! > {file}.part; mv {file}.part {file}; wait; sleep 600"


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, far longer than it can take."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie (nobody may reap orphans in a container)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before the file was opened, or before it was read
        return False


def resident_kb() -> int:
    """Memory of this process that is its own and in use."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def test_freed_memory_goes_back_to_the_system() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    blocks = [libc.malloc(60_000) for _ in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
        libc.free(block)
    before = resident_kb()

    return_freed_memory()

    assert before - resident_kb() > 80_000
    libc.free(blocks[-1])


def family(file: Path, *, deaf: bool = False) -> list[str]:
    """Return a command that starts a grandchild and writes both process ids into `file`."""
    return ["bash", "-c", FAMILY.format(file=file, trap="trap '' TERM;" if deaf else "")]


def members(file: Path) -> list[int]:
    """Return the process ids of a family that has started."""
    until(file.exists)
    return [int(pid) for pid in file.read_text().split()]


def test_exit_code_of_the_command_is_the_childs() -> None:
    with Child.start("seven", ["bash", "-c", "exit 7"], environment=ENVIRONMENT) as child:
        assert child.wait(DEADLINE_S) == 7


def test_death_by_signal_is_told_as_a_shell_does() -> None:
    with Child.start("killed", ["bash", "-c", "kill -9 $$"], environment=ENVIRONMENT) as child:
        assert child.wait(DEADLINE_S) == 128 + signal.SIGKILL


def test_a_running_child_has_no_exit_code() -> None:
    with Child.start("sleeper", ["sleep", "600"], environment=ENVIRONMENT) as child:
        assert child.wait(0.01) is None
        assert child.exit_code() is None


def test_stop_ends_grandchildren_too(tmp_path: Path) -> None:
    child = Child.start("family", family(tmp_path / "pids"), environment=ENVIRONMENT)
    pids = members(tmp_path / "pids")

    assert child.stop() == 128 + signal.SIGTERM
    until(lambda: not any(map(is_running, pids)))


def test_stop_kills_what_does_not_hear(tmp_path: Path) -> None:
    child = Child.start("deaf", family(tmp_path / "pids", deaf=True), environment=ENVIRONMENT, grace_s=0.2)
    pids = members(tmp_path / "pids")

    assert child.stop() == 128 + signal.SIGKILL
    until(lambda: not any(map(is_running, pids)))


def test_stop_of_a_child_that_has_ended_returns_its_code() -> None:
    child = Child.start("seven", ["bash", "-c", "exit 7"], environment=ENVIRONMENT)
    child.wait(DEADLINE_S)

    assert child.stop() == 7
    assert child.stop() == 7


def test_stop_all_ends_everyone() -> None:
    children = [Child.start("sleeper", ["sleep", "600"], environment=ENVIRONMENT) for _ in range(3)]

    stop_all(children)

    assert [child.exit_code() for child in children] == [128 + signal.SIGTERM] * 3


@pytest.mark.parametrize("deaf", [False, True])
def test_children_die_with_a_parent_that_is_killed(tmp_path: Path, *, deaf: bool) -> None:
    source = (
        "import sys, time; from export.processes import Child\n"
        "child = Child.start('family', sys.argv[1:], environment={'PATH': '/usr/bin:/bin'}, grace_s=0.2)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", source, *family(tmp_path / "pids", deaf=deaf)], cwd=Path(__file__).parents[2]
    )
    pids = members(tmp_path / "pids")

    parent.kill()
    parent.wait()

    until(lambda: not any(map(is_running, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_the_command_dies_with_a_keeper_that_is_killed(tmp_path: Path) -> None:
    child = Child.start("family", family(tmp_path / "pids"), environment=ENVIRONMENT)
    command, grandchild = members(tmp_path / "pids")

    os.kill(child.keeper_pid, signal.SIGKILL)

    until(lambda: not is_running(command))
    os.kill(grandchild, signal.SIGKILL)
    assert child.stop() == -signal.SIGKILL


def test_a_command_left_behind_by_its_leader_is_ended(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! > {tmp_path}/pids.part; mv {tmp_path}/pids.part {tmp_path}/pids"
    with Child.start("leaver", ["bash", "-c", script], environment=ENVIRONMENT, grace_s=1.0) as child:
        [orphan] = members(tmp_path / "pids")

        assert child.wait(DEADLINE_S) == 0
        until(lambda: not is_running(orphan))


def test_output_goes_to_the_log(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        Child.start("talker", ["bash", "-c", "echo out; echo err >&2"], environment=ENVIRONMENT, log=log).wait(DEADLINE_S)

    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]


def test_what_a_child_writes_is_for_this_user_only(tmp_path: Path) -> None:
    Child.start("writer", ["touch", str(tmp_path / "file")], environment=ENVIRONMENT).wait(DEADLINE_S)

    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_environment_turns_off_whatever_calls_out(tmp_path: Path) -> None:
    environment = child_environment(
        tmp_path,
        {
            "FLWR_TELEMETRY_ENABLED": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "0",
            "FLWR_OIDC_ENABLED": "1",
            "FLWR_INTERNAL_GRPC_FLEET_API": "1",
            "RAY_ADDRESS": "auto",
            "RAY_USAGE_STATS_ENABLED": "1",
        },
    )

    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["PYTHONUNBUFFERED"] == "1"
    assert not {"FLWR_OIDC_ENABLED", "FLWR_INTERNAL_GRPC_FLEET_API", "RAY_ADDRESS"} & environment.keys()


def test_environment_has_no_proxy(tmp_path: Path) -> None:
    inherited = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "ftp_proxy"), "http://proxy:3128")

    environment = child_environment(tmp_path, inherited | {"NO_PROXY": "example.org"})

    assert not inherited.keys() & environment.keys()
    assert environment["NO_PROXY"] == environment["no_proxy"] == "*"


def test_environment_keeps_the_rest_and_leads_path_with_our_scripts(tmp_path: Path) -> None:
    environment = child_environment(tmp_path, {"SFUMATO_COORDINATOR_HOME": "/home", "PATH": "/bin"})

    assert environment["SFUMATO_COORDINATOR_HOME"] == "/home"
    assert environment["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/bin"


def test_commands_are_found_beside_the_interpreter() -> None:
    assert Path(installed_command("python")).exists()


def test_a_free_port_can_be_bound() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_a_port_is_none_that_outgoing_connections_are_given() -> None:
    """One that was, two nodes had at once: the second's SuperNode did not start, and its runner asked the first's."""
    ports = {free_port() for _ in range(50)}

    assert all(1024 <= port < 32768 for port in ports)
    assert len(ports) > 40  # nor the one that the asker before was given


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        draws = iter([taken.getsockname()[1], free := free_port()])
        monkeypatch.setattr(secrets, "choice", lambda _ports: next(draws))

        assert free_port() == free


def test_if_every_port_is_taken_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(secrets, "choice", lambda _ports: taken.getsockname()[1])

        with pytest.raises(ResourceError, match="is free"):
            free_port()


def test_secret_is_made_once_and_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret"

    secret = load_or_create_secret(path)

    assert len(secret) == 32
    assert load_or_create_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_secret(tmp_path / "other") != secret
