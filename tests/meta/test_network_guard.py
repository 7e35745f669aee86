"""A test that calls out is caught, whatever it calls with, and whatever it catches."""

import os
import socket
from pathlib import Path

import pytest

from tests.conftest import is_loopback, stays_on_loopback

# 192.0.2.0/24 is kept for documentation (RFC 5737): nobody answers there, should the guard ever fail.
STRANGER = ("192.0.2.1", 9)


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_connecting_to_a_stranger_fails_the_test(method: str) -> None:
    with socket.socket() as plug, pytest.raises(pytest.fail.Exception, match="this machine only"):
        getattr(plug, method)(STRANGER)


def test_a_datagram_to_a_stranger_fails_the_test() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as plug,
        pytest.raises(pytest.fail.Exception, match="this machine only"),
    ):
        plug.sendto(b"x", STRANGER)


def test_the_guard_is_not_an_exception_that_a_program_would_swallow() -> None:
    assert not issubclass(pytest.fail.Exception, Exception)


def test_loopback_and_unix_sockets_are_allowed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as plug:
        assert plug.getpeername() == server.getsockname()
    name = os.path.relpath(tmp_path / "s")  # the name of a UNIX socket has little room
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as plug:
        unix.bind(name)
        unix.listen()
        plug.connect(name)


@pytest.mark.parametrize(
    ("family", "host", "allowed"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "127.9.9.9", True),
        (socket.AF_INET, "localhost", True),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET, "0.0.0.0", False),  # noqa: S104 - asked about, not bound to
        (socket.AF_INET, "10.0.0.1", False),
        (socket.AF_INET, "example.org", False),
        (socket.AF_INET6, "fe80::1%eth0", False),
        (socket.AF_INET, "localhost.example.org", False),
    ],
)
def test_loopback_is_told_from_everything_else(family: int, host: str, *, allowed: bool) -> None:
    assert is_loopback(family, (host, 80)) is allowed


def test_an_address_of_an_unknown_kind_is_refused() -> None:
    assert not is_loopback(socket.AF_INET, "127.0.0.1:80")
    assert not is_loopback(socket.AF_INET, ())


GROUP = ("224.0.0.251", 5353)


def test_a_group_of_machines_is_reached_on_this_machines_own_interface_alone() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as plug:
        assert not stays_on_loopback(plug, GROUP)  # wherever the system thinks best
        with pytest.raises(pytest.fail.Exception, match="this machine only"):
            plug.sendto(b"x", GROUP)
        plug.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        assert stays_on_loopback(plug, GROUP)
        for address in (STRANGER, ("example.org", 9), ("255.255.255.255", 9), ("ff02::fb", 5353), "224.0.0.251", ()):
            assert not stays_on_loopback(plug, address)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as plug:
        assert not stays_on_loopback(plug, ("ff02::fb", 5353))


def test_the_home_folder_of_a_test_is_a_temporary_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert Path.home().is_relative_to(tmp_path_factory.getbasetemp())
    assert Path(os.environ["SFUMATO_HOME"]).is_relative_to(tmp_path_factory.getbasetemp())
