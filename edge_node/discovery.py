"""Where on this network a coordinator might be, and never who it is: multicast DNS (RFC 6762, RFC 6763), IPv4.

Anybody on a network may answer, for anybody. So what comes out are addresses to try and nothing else: on the word of an answer
nothing is looked up, fetched or connected to, and no answer takes another's away. Whom an address belongs to is found out by
``find_coordinator``, by the certificate that the invite pins.

What is sent is one question, the same from every machine. What is heard is hostile until it has passed these checks; what has
not is dropped and counted, and raises nothing:

1. No more than ``_HEARD_MAX`` records are kept, services, texts and addresses, that pass checks 2 to 5.
2. A service is called by 16 hexadecimal digits, and its host by the same ones, as a coordinator makes them
   (``coordinator/announce.py``): no other name is taken, and so none is ever shown, or points to another's host.
3. Its port is one.
4. Its text says the version of the service, and not a byte more: there is nothing in it to be parsed.
5. Its address is of a network without a way to the internet (RFC 1918, RFC 3927). This machine's own (127.0.0.0/8) are taken
   only when it was asked on no other interface. So whoever lies makes a machine knock at most on its own network.
6. No more than ``_INSTANCES_MAX`` services are offered and no more than ``_ADDRESSES_MAX`` addresses of each, those first that
   were heard first. Whoever floods a network can so keep a coordinator from being found. Its address can always be typed.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, TypeAlias

from edge_node import remote
from edge_node.errors import NoCoordinatorError
from export.errors import NotConfiguredError, SfumatoError
from export.invite import SERVICE, Invite

if TYPE_CHECKING:
    from zeroconf import DNSRecord  # type: ignore[attr-defined]  # documented, but not in its __all__

TEXT: Final = b"\x03v=1"
"""One string of three bytes (RFC 6763, section 6.1)."""

_INSTANCE: Final = re.compile(r"([0-9a-f]{16})\." + re.escape(SERVICE))
_HOST: Final = re.compile(r"([0-9a-f]{16})\.local\.")
_NETWORKS: Final = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")))
_CLOUD: Final = ipaddress.IPv4Address("169.254.169.254")
"""Gives a machine in a data centre its credentials: where forged requests are made to go."""
_HEARD_MAX: Final = 1000
_INSTANCES_MAX: Final = 8
_ADDRESSES_MAX: Final = 4
_AGAIN_S: Final = 1.0  # and each time twice as long (RFC 6762, section 5.2)
_PTR, _IN = 12, 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a coordinator might answer: a numeric IPv4 address and a port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    """Says at which port of which host an instance answers (SRV)."""

    instance: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Text:
    """Says something about an instance (TXT)."""

    instance: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Location:
    """Says where a host is (A: four bytes; AAAA: sixteen)."""

    host: str
    address: bytes


Record: TypeAlias = Service | Text | Location


def discover(timeout_s: float = 3.0, interfaces: Sequence[str] = ()) -> list[Address]:
    """Ask the network where coordinators are, and wait for answers.

    Args:
        timeout_s: how long.
        interfaces: IPv4 addresses of this machine to ask from; without any it asks on every interface.

    Raises:
        NotConfiguredError: zeroconf is not installed.
        NoCoordinatorError: the network cannot be asked.
    """
    try:
        from zeroconf import Error  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise NotConfiguredError(
            "the network cannot be searched for the coordinator: zeroconf is not installed here",
            advice="Write the coordinator's address behind the code, CODE@HOST:PORT, or install it: pip install zeroconf",
        ) from error
    sieve = Sieve(at_home=bool(interfaces) and all(ipaddress.ip_address(own).is_loopback for own in interfaces))
    try:
        _ask(timeout_s, interfaces, sieve)
    except (OSError, RuntimeError, Error) as error:  # RuntimeError is how zeroconf says that there is no interface
        raise NoCoordinatorError(
            f"the network cannot be searched for the coordinator: {error}",
            advice="Check the network, or write the coordinator's address behind the code: CODE@HOST:PORT.",
        ) from error
    offered = sieve.offers()
    _log.info("the network offers %d addresses; %d records were dropped", len(offered), sieve.dropped)
    return offered


def sift(records: Iterable[Record], *, at_home: bool = False) -> list[Address]:
    """The addresses that records offer.

    Args:
        records: in the order in which they were heard.
        at_home: whether they were asked for on this machine's own interface and on no other.
    """
    sieve = Sieve(at_home)
    for record in records:
        sieve.take(record)
    return sieve.offers()


@dataclass(slots=True)
class Sieve:
    """What was heard and passed, and how much did not.

    Attributes:
        at_home: whether it was asked for on this machine's own interface and on no other.
        dropped: records that failed a check, or were too many.
    """

    at_home: bool = False
    dropped: int = 0
    _kept: int = 0
    _ports: dict[str, list[int]] = field(default_factory=dict)
    _versioned: set[str] = field(default_factory=set)
    _places: dict[str, list[str]] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Checks 1 to 5."""
        name = self._name(record) if self._kept < _HEARD_MAX else None
        if name is None:
            self.dropped += 1
            return
        self._kept += 1
        if isinstance(record, Service):
            self._ports.setdefault(name, []).append(record.port)
        elif isinstance(record, Text):
            self._versioned.add(name)
        else:
            self._places.setdefault(name, []).append(str(ipaddress.IPv4Address(record.address)))

    def offers(self) -> list[Address]:
        """Check 6."""
        whole = [name for name in self._ports if name in self._versioned and name in self._places]
        return list(dict.fromkeys(one for name in whole[:_INSTANCES_MAX] for one in self._addresses(name)))

    def _addresses(self, name: str) -> Iterator[Address]:
        pairs = product(dict.fromkeys(self._places[name]), dict.fromkeys(self._ports[name]))
        return (Address(host, port) for host, port in islice(pairs, _ADDRESSES_MAX))

    def _name(self, record: Record) -> str | None:
        """The sixteen digits that a record is about, if it passes checks 2 to 5."""
        if isinstance(record, Location):
            return _digits(_HOST, record.host) if self._is_near(record.address) else None
        name = _digits(_INSTANCE, record.instance)
        if isinstance(record, Text):
            return name if record.text == TEXT else None
        return name if 0 < record.port < 65536 and _digits(_HOST, record.host) == name else None

    def _is_near(self, raw: bytes) -> bool:
        if len(raw) != 4:
            return False
        address = ipaddress.IPv4Address(raw)
        if address.is_loopback:
            return self.at_home
        return address != _CLOUD and any(address in network for network in _NETWORKS)


def _digits(form: re.Pattern[str], name: str) -> str | None:
    found = form.fullmatch(name)
    return found[1] if found else None


def find_coordinator(invite: Invite, candidates: Iterable[Address]) -> Invite:
    """The invite with the address of the candidate that proves to be the coordinator who made it.

    All are asked at once, so that one that never ends does not hold up the others. They are asked for the certificate that the
    invite pins and then, to prove that they have its key, for the time; the invite's secret is sent to none.

    Args:
        invite: what it says of an address is not looked at.
        candidates: as ``discover`` gives them.

    Raises:
        NoCoordinatorError: none of them is.
    """
    proofs: SimpleQueue[Invite | None] = SimpleQueue()
    asked = [replace(invite, host=one.host, port=one.port) for one in islice(candidates, _INSTANCES_MAX * _ADDRESSES_MAX)]
    for one in asked:
        threading.Thread(target=_prove, args=(one, proofs), daemon=True).start()
    for _ in asked:
        proven = proofs.get()
        if proven is not None:
            return proven
    raise NoCoordinatorError(
        f"the coordinator who invited you was not found on this network ({len(asked)} tried)",
        advice="Ask for the address, and write it behind the code: CODE@HOST:PORT.",
    )


def _prove(invite: Invite, proofs: SimpleQueue[Invite | None]) -> None:
    proven = None
    try:
        remote.meet(invite).time_s()
        proven = invite
    except SfumatoError as error:
        _log.info("%s:%d is not the coordinator of the invite: %s", invite.host, invite.port, error.code)
    finally:
        proofs.put(proven)


def _ask(timeout_s: float, interfaces: Sequence[str], sieve: Sieve) -> None:
    """Ask, and have a sieve take what is heard within a time."""
    from zeroconf import (  # type: ignore[attr-defined]  # noqa: PLC0415 - loaded when it is needed; see above
        DNSOutgoing,
        DNSQuestion,
        InterfaceChoice,
        RecordUpdate,
        RecordUpdateListener,
        Zeroconf,
    )

    class Ear(RecordUpdateListener):
        """Hears every record as it comes, before a later one takes its place in zeroconf's memory."""

        def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
            del zc, now
            for update in records:
                record = plain(update.new)
                if record is not None:
                    sieve.take(record)

    with Zeroconf(interfaces=list(interfaces) or InterfaceChoice.All, use_asyncio=False) as line:
        line.add_listener(Ear(), None)
        deadline, again_s = time.monotonic() + timeout_s, _AGAIN_S
        while (left_s := deadline - time.monotonic()) > 0:
            question = DNSOutgoing(0)
            question.add_question(DNSQuestion(SERVICE, _PTR, _IN))
            line.send(question)
            time.sleep(min(left_s, again_s))
            again_s *= 2


def plain(record: DNSRecord) -> Record | None:
    """A record of zeroconf's as one of ours, if it is of a kind that says anything here."""
    from zeroconf import DNSAddress, DNSService, DNSText  # type: ignore[attr-defined]  # noqa: PLC0415 - as above

    if isinstance(record, DNSService):
        return Service(record.name, record.server, record.port)
    if isinstance(record, DNSText):
        return Text(record.name, record.text)
    if isinstance(record, DNSAddress):
        return Location(record.name, record.address)
    return None
