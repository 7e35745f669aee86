"""A thousand hostile packets on the network while a node looks for its coordinator: in a network of its own, over multicast."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.multicast import COORDINATOR, PORT, ROOT
from tests.networks import UNSHARE, needs_networks

pytestmark = [pytest.mark.slow, needs_networks]


def looked(count: int, seed: int, host: str) -> Any:
    command = [*UNSHARE, sys.executable, str(ROOT / "tests" / "multicast.py"), str(count), str(seed), host]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_coordinator_that_announces_itself_is_found() -> None:
    assert looked(0, 0, COORDINATOR)["offers"] == [[COORDINATOR, PORT]]


def test_where_nobody_does_nothing_is_found() -> None:
    assert looked(0, 0, "")["offers"] == []


@pytest.mark.parametrize("seed", [1, 2])
def test_of_five_hundred_hostile_packets_none_offers_anything_and_the_coordinator_is_found_all_the_same(seed: int) -> None:
    found = looked(500, seed, COORDINATOR)

    assert found == {"offers": [[COORDINATOR, PORT]], "sent": 500}
