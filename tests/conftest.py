"""What holds for every test: no network but loopback, a home of its own, one torch thread, the same random draws."""

import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from export.signing import VerifiedRelease

settings.register_profile("sfumato", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("sfumato")

_LOCAL_NAMES = frozenset({"", "localhost", "ip6-localhost"})


def is_loopback(family: int, address: object) -> bool:
    """Whether a socket of that family stays on this machine when it talks to that address."""
    if family == socket.AF_UNIX:
        return True
    if family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple) or not address:
        return False
    host = address[0].decode() if isinstance(address[0], bytes) else str(address[0])
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def stays_on_loopback(plug: socket.socket, address: object) -> bool:
    """Whether that address is one of many machines, and the socket reaches those on this machine's own interface alone."""
    if plug.family != socket.AF_INET or not isinstance(address, tuple) or not address:
        return False
    try:
        is_group = ipaddress.IPv4Address(address[0]).is_multicast
    except ValueError:
        return False
    outgoing = plug.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4)
    return is_group and ipaddress.IPv4Address(outgoing).is_loopback


def _guarded(method: str) -> Callable[..., Any]:
    original = getattr(socket.socket, method)

    def checked(self: socket.socket, *arguments: Any) -> Any:
        # The address is connect's only argument and sendto's last.
        if not is_loopback(self.family, arguments[-1]) and not stays_on_loopback(self, arguments[-1]):
            pytest.fail(f"a test may talk to this machine only, and this one called {method}({arguments[-1]!r})")
        return original(self, *arguments)

    return checked


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """Fail whoever calls out. ``pytest.fail`` is no ``Exception``, so that no ``except`` of ours swallows it."""
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, method, _guarded(method))
        yield


@pytest.fixture(autouse=True, scope="session")
def _temporary_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the person's own home out of the tests; child processes inherit this one."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("SFUMATO_", "XDG_"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("SFUMATO_HOME", str(home / "sfumato"))
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Forgive one warning: typer imports what newer click deprecates. Goes when a typer is out that does not."""
    config.addinivalue_line("filterwarnings", r"ignore:'click\.utils\.\w+' is deprecated:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: at the end no process waits while another one is still at them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup() -> None:
    """One thread for torch, should a test have brought it in: sums in one order, and the second core left to others."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> "VerifiedRelease":
    """The small base body of `tests/simulators.py`, made once."""
    from tests import simulators  # noqa: PLC0415 - torch and flwr, which most tests do without

    return simulators.make_base(tmp_path_factory.mktemp("base") / "release")


@pytest.fixture
def world(packaged: "VerifiedRelease", monkeypatch: pytest.MonkeyPatch) -> "VerifiedRelease":
    """A world in which the small base is the one that comes with the program."""
    from tests import simulators  # noqa: PLC0415 - as above

    simulators.install_world(monkeypatch, packaged)
    return packaged
