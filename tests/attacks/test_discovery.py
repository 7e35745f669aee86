"""A thousand hostile packets on the network while a node looks for its coordinator.

First each is read as discovery reads it, in this process, where nothing that is raised could hide; then they are sent over
multicast, in a network of their own, where systems make such networks.
"""

import json
import random
import subprocess
import sys
from typing import Any

import pytest
from zeroconf import DNSIncoming  # type: ignore[attr-defined]  # documented, but not in its __all__

from edge_node import discovery
from edge_node.discovery import Address, Sieve
from tests import multicast
from tests.multicast import COORDINATOR, PORT, ROOT
from tests.networks import UNSHARE, needs_networks


def hear(sieve: Sieve, packet: bytes) -> None:
    for record in DNSIncoming(packet).answers():
        said = discovery.plain(record)
        if said is not None:
            sieve.take(said)


@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_hostile_packets_offer_nothing_and_none_raises_anything(seed: int) -> None:
    dice, sieve = random.Random(seed), Sieve()  # noqa: S311 - no secret
    honest = multicast.response(multicast.announcement("0123456789abcdef", COORDINATOR, port=PORT))
    for _ in range(500):
        hear(sieve, multicast.hostile(dice))
    assert sieve.offers() == []
    assert sieve.dropped > 100  # they were read, and it was the checks that dropped what they say

    hear(sieve, honest)
    for _ in range(500):
        hear(sieve, multicast.hostile(dice))

    assert sieve.offers() == [Address(COORDINATOR, PORT)]  # the control


@pytest.mark.parametrize("seed", range(3))
def test_a_bit_of_the_true_announcement_that_flips_offers_nothing_else(seed: int) -> None:
    """But for its address and port: those are lies then that have the form of the truth, and the certificate finds them out."""
    honest = multicast.response(multicast.announcement("0123456789abcdef", COORDINATOR, port=PORT))
    believed = {honest.index(PORT.to_bytes(2)) + at for at in range(2)} | {len(honest) - 1 - at for at in range(4)}
    dice = random.Random(seed)  # noqa: S311 - no secret
    places = [at for at in range(len(honest)) if at not in believed]
    for _ in range(1000):
        packet, sieve = bytearray(honest), Sieve()
        for at in dice.sample(places, dice.randrange(1, 4)):
            packet[at] ^= 1 << dice.randrange(8)
        hear(sieve, bytes(packet))
        assert sieve.offers() in ([], [Address(COORDINATOR, PORT)])


# --- Over multicast ------------------------------------------------------------------------------------------------------


def looked(count: int, seed: int, host: str) -> Any:
    command = [*UNSHARE, sys.executable, str(ROOT / "tests" / "multicast.py"), str(count), str(seed), host]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
@needs_networks
def test_a_coordinator_that_announces_itself_is_found() -> None:
    assert looked(0, 0, COORDINATOR)["offers"] == [[COORDINATOR, PORT]]


@pytest.mark.slow
@needs_networks
def test_where_nobody_does_nothing_is_found() -> None:
    assert looked(0, 0, "")["offers"] == []


@pytest.mark.slow
@needs_networks
@pytest.mark.parametrize("seed", [1, 2])
def test_of_five_hundred_hostile_packets_none_offers_anything_and_the_coordinator_is_found_all_the_same(seed: int) -> None:
    found = looked(500, seed, COORDINATOR)

    assert found == {"offers": [[COORDINATOR, PORT]], "sent": 500}
