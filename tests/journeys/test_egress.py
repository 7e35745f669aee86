"""In a round of real processes an artist's machine talks to the coordinator and to nobody else, and tells no work or code."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from edge_node.config import Home
from export import weights
from export.signing import VerifiedRelease
from tests import enclosed, simulators
from tests.enclosed import COORDINATOR, NAMES, PORT, ROOT
from tests.networks import UNSHARE, needs_networks

OWN_BUSINESS: Final = ("arp", "ipv6", "icmp", "igmp")
"""What a kernel says of itself on a new wire: who it is, and who has an address."""


pytestmark = [pytest.mark.slow, needs_networks]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, packaged: VerifiedRelease) -> Path:
    """A folder with all that a round left, on disk and on the wire."""
    folder = tmp_path_factory.mktemp("enclosed") / "there"
    command = [*UNSHARE, sys.executable, str(ROOT / "tests" / "enclosed.py"), str(packaged.folder), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return folder


def said(held: Path) -> Any:
    return json.loads((held / "seen.json").read_bytes())


def canaries(held: Path) -> dict[str, bytes]:
    """Works as they lie on disk and as rows of pixels, and the codes that the round trained."""
    found = {}
    for number, name in enumerate(NAMES):
        for at, (path, pixels) in enumerate(
            zip(sorted((held / f"works-{name}").iterdir()), simulators.write_works(held / "again", seed=number), strict=True)
        ):
            found[f"{path.parent.name}/{path.name}"] = path.read_bytes()
            found[f"pixels {number} {at}"] = pixels.tobytes()
            found[f"floats {number} {at}"] = (pixels[0].astype(np.float32) / 255).tobytes()
        code = weights.unpack((Home(held / name).training / "code.safetensors").read_bytes())["code"]
        found[f"code of {name}"] = code.astype("<f4").tobytes()
    return found


def public_places(held: Path) -> Iterator[tuple[str, bytes]]:
    """Whatever a round left that is not an artist's private folder of trained things or the works themselves."""
    for path in sorted(held.rglob("*")):
        place = path.relative_to(held)
        private = place.parts[0].startswith(("works-", "again")) or (
            place.parts[0] in NAMES and place.parts[1:2] in (("training",), ("styles",))
        )
        if path.is_file() and not private:
            yield str(place), path.read_bytes()


def test_the_round_was_held(held: Path) -> None:
    assert said(held)["outcome"] == "published"
    assert said(held)["dropped"] == [0, 0]


def test_nobody_but_the_coordinator_was_talked_to(held: Path) -> None:
    contacts = {where for where in said(held)["seen"] if where.split()[0] not in OWN_BUSINESS}
    strangers = {where for where in contacts if where.split()[1] not in (COORDINATOR, enclosed.ARTISTS)}

    assert f"tcp {COORDINATOR} {PORT}" in contacts
    assert strangers <= {"udp 224.0.0.251 5353"}
    assert {where for where in contacts if where.split()[1] == COORDINATOR} == {f"tcp {COORDINATOR} {PORT}"}
    assert {where.split()[0] for where in contacts if where.split()[1] == enclosed.ARTISTS} == {"tcp"}  # its answers


def test_whoever_else_was_talked_to_would_have_been_seen(held: Path) -> None:
    assert f"udp {enclosed.STRANGER[0]} {enclosed.STRANGER[1]}" in said(held)["control"]


def test_no_work_and_no_code_is_in_any_packet_log_database_or_temporary_file(held: Path) -> None:
    secrets = canaries(held)
    places = dict(public_places(held))

    assert {"packets", "hub.log", "ada.log", "hub/coordinator.sqlite", "ada/ledger.jsonl"} <= set(places)
    assert any(place.startswith("ada/logs/") for place in places)
    found = [
        (place, name)
        for place, content in places.items()
        for name, secret in secrets.items()
        if simulators.shares_a_window(content, secret)
    ]
    assert found == []


def test_a_canary_that_is_there_is_found(held: Path) -> None:
    """The control: each secret, hidden in the middle of what was searched, is found."""
    packets = (held / "packets").read_bytes()
    middle = len(packets) // 2
    for name, secret in canaries(held).items():
        planted = packets[:middle] + secret[11 : 11 + 64] + packets[middle:]
        assert simulators.shares_a_window(planted, secret), name


def test_what_travels_between_a_nodes_own_processes_was_searched_in_the_clear(held: Path) -> None:
    """Or else there was nothing to find: the round's message is told in plain words on the artist's loopback."""
    packets = (held / "packets").read_bytes()

    assert b"layout" in packets
    assert b"flat" in packets
