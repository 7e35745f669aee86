"""A whole round of real processes in networks of their own, every packet of the artists' side kept. Run as a script:

    unshare --net python tests/enclosed.py WORLD FOLDER

The artists' machine is one network, the coordinator's another, with a wire between them; whatever the artists' processes want
of anybody else goes into that wire, too, since the way to the rest of the world leads there. FOLDER gets the coordinator's and
the nodes' folders, ``packets`` (every frame on the wire and on the artists' loopback, each after its length) and ``seen.json``:
to whom frames on the wire went, when the round was over, and after that what a stranger's packet of our own looks like there.
"""

import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from coordinator import service  # noqa: E402
from coordinator.store import Store  # noqa: E402
from export import settings  # noqa: E402
from tests import simulators  # noqa: E402
from tests.simulators import CoordinatorHome  # noqa: E402

ARTISTS, COORDINATOR, PORT, STRANGER = "10.99.0.1", "10.99.0.2", 7443, ("203.0.113.9", 53)
NAMES: Final = ("ada", "berthe")
PATIENCE_S: Final = 300.0
_EVERY_PROTOCOL: Final = 3  # ETH_P_ALL
_PACKET_STATISTICS, _SOL_PACKET = 6, 263


@dataclass(slots=True)
class Tap:
    """Keeps every frame of an interface."""

    interface: str
    frames: list[bytes] = field(default_factory=list)
    line: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL))
        self.line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 2**20)
        self.line.bind((self.interface, 0))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            self.frames.append(self.line.recv(2**17))

    def dropped(self) -> int:
        """How many frames came too fast."""
        return int(struct.unpack("II", self.line.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])


def destination(frame: bytes) -> str:
    """To whom a frame goes: protocol, address and port, or the kind of frame if it is none of those."""
    kind = struct.unpack_from(">H", frame, 12)[0]
    if kind != 0x0800:
        return {0x0806: "arp", 0x86DD: "ipv6"}.get(kind, hex(kind))
    protocol, header = frame[23], 14 + 4 * (frame[14] & 15)
    name = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp"}.get(protocol, str(protocol))
    port = struct.unpack_from(">H", frame, header + 2)[0] if name in ("tcp", "udp") else 0
    return f"{name} {socket.inet_ntoa(frame[30:34])} {port}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)  # noqa: S607 - wherever a system keeps it


def wire_up(coordinator: int) -> None:
    """Two networks and a wire; the coordinator's is that of a process."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "artists", "type", "veth", "peer", "name", "hub")
    ip("link", "set", "hub", "netns", str(coordinator))
    ip("addr", "add", f"{ARTISTS}/24", "dev", "artists")
    ip("link", "set", "artists", "up")
    for words in (
        ["link", "set", "lo", "up"],
        ["addr", "add", f"{COORDINATOR}/24", "dev", "hub"],
        ["link", "set", "hub", "up"],
    ):
        subprocess.run([*inside(coordinator), "ip", *words], check=True)
    ip("route", "add", "default", "via", COORDINATOR)


def inside(coordinator: int) -> list[str]:
    """What makes a command run in the coordinator's network."""
    return ["nsenter", "--net", f"--target={coordinator}"]


def network_of(process: str) -> Path:
    return Path(f"/proc/{process}/ns/net").readlink()


def until(holds: object, what: str) -> None:
    assert callable(holds)
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"gave up waiting for {what}"
        time.sleep(0.2)


def main(world: Path, folder: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "small_world")]),
        "SMALL_WORLD": str(world),
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
    }
    (folder / "tmp").mkdir(parents=True)
    with ExitStack() as stack:
        simulators.install_world(stack.enter_context(pytest.MonkeyPatch.context()), simulators.open_base(world))
        holder = subprocess.Popen(["unshare", "--net", "sleep", "1000"])  # noqa: S607 - as above
        stack.callback(holder.kill)
        until(lambda: network_of(str(holder.pid)) != network_of("self"), "a second network")
        wire_up(holder.pid)
        taps = [Tap("artists"), Tap("lo")]
        hub = CoordinatorHome(folder / "hub")
        # So many steps that each artist's own code is surely drawn, and is not the public one that it began as.
        simulators.make_coordinator(hub.root, minimum_nodes=len(NAMES), clip=0.05, steps=16, host=COORDINATOR, port=PORT)
        settings.save(hub.config_file, replace(hub.config(), bind=COORDINATOR, gather_timeout_s=PATIENCE_S))
        hold(stack, hub, folder, environment, inside(holder.pid))
        seen = sorted(set(map(destination, taps[0].frames)))
        control = stranger(taps[0])
        with (folder / "packets").open("wb") as kept:
            for frame in (frame for tap in taps for frame in tap.frames):
                kept.write(struct.pack(">I", len(frame)) + frame)
        found = {"seen": seen, "control": control, "dropped": [tap.dropped() for tap in taps]}
        (folder / "seen.json").write_text(json.dumps({**found, "outcome": Store(hub.database).rounds()[-1].state}))


def hold(stack: ExitStack, hub: CoordinatorHome, folder: Path, environment: Mapping[str, str], there: list[str]) -> None:
    """Start everybody, join, hold a round, end everybody."""
    program = [sys.executable, "-P", "-m"]

    def start(name: str, command: list[str]) -> None:
        log = (folder / f"{name}.log").open("ab")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        stack.callback(_end, process)

    def say(*words: str) -> None:
        subprocess.run([*program, "edge_node", *words], env=environment, check=True, stdout=subprocess.DEVNULL)

    start("hub", [*there, *program, "coordinator", "up", "--home", str(hub.root)])
    until(lambda: _answers(COORDINATOR, PORT), "the coordinator")
    for number, name in enumerate(NAMES):
        home = simulators.make_node(folder / name, name, poll_s=1.0)
        simulators.write_works(folder / f"works-{name}", seed=number)
        say("works", "add", str(folder / f"works-{name}"), "--home", str(home.root))
        say("join", service.invite(hub, name, "artist", 3600.0), "--home", str(home.root))
        say("policy", "show", "--home", str(home.root))
        say("policy", "accept", "--home", str(home.root))
        start(name, [*program, "edge_node", "up", "--home", str(home.root)])
    store = Store(hub.database)
    job = store.add_job(1)
    until(lambda: store.job(job.job).state != "open", "the round")


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)


def stranger(tap: Tap) -> list[str]:
    """The control: a packet of our own to somebody else, and a secret in it; gives what the tap saw of it."""
    before = len(tap.frames)
    with socket.socket(type=socket.SOCK_DGRAM) as plug:
        plug.sendto(b"canary " + secrets.token_bytes(16), STRANGER)
    until(lambda: any(destination(frame).startswith("udp 203.") for frame in tap.frames[before:]), "our own packet")
    return sorted({destination(frame) for frame in tap.frames[before:]})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
