"""Says on the local network where this coordinator answers, for as long as it runs: multicast DNS (RFC 6762, RFC 6763), IPv4.

Everybody on the network hears it, so it says an address, a port and the version of the service, under a name that is drawn
anew each time: neither the federation's name nor the machine's nor anybody's. Who it is, nodes find out by the certificate that
their invite pins (``edge_node/discovery.py``). It is a convenience: whatever goes wrong with it is a line in the log, since an
invite with its address works without.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from export.invite import SERVICE

if TYPE_CHECKING:
    from zeroconf import Zeroconf

VERSION: Final = {"v": "1"}

_log = logging.getLogger(__name__)


@contextmanager
def announced(host: str, port: int) -> Iterator[bool]:
    """Announce this coordinator while the block runs; gives whether it is announced.

    Args:
        host: as it stands in invites. A node compares what it connects to with the certificate, which is for this host alone:
            so it is announced if it is an address of a local network, on the interface that has it, and not if it is a name.
        port: the public one.
    """
    address = _local(host)
    line = _announce(address, port) if address is not None else None
    if line is None:
        _log.warning("this coordinator is not announced on the network; invites need their address: CODE@HOST:PORT")
    try:
        yield line is not None
    finally:
        if line is not None:
            _close(line)


def _local(host: str) -> ipaddress.IPv4Address | None:
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return None
    return address if address.is_private and not (address.is_unspecified or address.is_reserved) else None


def _announce(address: ipaddress.IPv4Address, port: int) -> Zeroconf | None:
    try:
        from zeroconf import Error, ServiceInfo, Zeroconf  # noqa: PLC0415 - an optional package
    except ImportError:
        _log.warning("zeroconf is not installed: pip install zeroconf")
        return None
    name = secrets.token_hex(8)
    info = ServiceInfo(
        SERVICE, f"{name}.{SERVICE}", port, addresses=[address.packed], properties=VERSION, server=f"{name}.local."
    )
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))  # zeroconf lets its sockets lie where this fails
        line = Zeroconf(interfaces=[str(address)], use_asyncio=False)
    except OSError as error:
        _log.warning("the network of %s takes no announcement: %s", address, error)
        return None
    try:
        line.register_service(info, cooperating_responders=True)  # nobody else has drawn these 64 bits: no need to ask
    except (OSError, Error) as error:
        _log.warning("the network of %s takes no announcement: %s", address, error)
        _close(line)
        return None
    return line


def _close(line: Zeroconf) -> None:
    """Take the announcement back. Should the network be gone, it runs out by itself, after two minutes."""
    from zeroconf import Error  # noqa: PLC0415 - as above

    with suppress(OSError, Error):
        line.close()
