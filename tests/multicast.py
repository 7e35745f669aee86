"""A coordinator that announces itself, whoever floods the network beside it, and a node that looks. Run as a script:

    unshare --net python tests/multicast.py COUNT SEED HOST

In a network of its own: COUNT hostile packets are sent to the group that nodes listen to, half before and half after the honest
announcement is heard, and what discovery makes of it all is printed. HOST is where the coordinator says it is; empty for none.
"""

import json
import logging
import random
import socket
import struct
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from coordinator.announce import announced  # noqa: E402
from edge_node import discovery  # noqa: E402
from export.invite import SERVICE  # noqa: E402

NODE, COORDINATOR, PORT = "10.98.0.2", "10.98.0.1", 7443
GROUP: Final = ("224.0.0.251", 5353)
EVIL: Final = ("10.98.0.66", "8.8.8.8", "127.0.0.1", "169.254.169.254")


def name_of(text: str) -> bytes:
    """A domain name as it stands in a packet."""
    return b"".join(bytes([len(part)]) + part.encode() for part in text.strip(".").split(".")) + b"\0"


def record(name: bytes, kind: int, data: bytes, lasts_s: int = 120, size: int | None = None) -> bytes:
    return name + struct.pack(">HHIH", kind, 0x8001, lasts_s, len(data) if size is None else size) + data


def response(records: list[bytes], count: int | None = None) -> bytes:
    return struct.pack(">HHHHHH", 0, 0x8400, 0, len(records) if count is None else count, 0, 0) + b"".join(records)


def announcement(digits: str, address: str, text: bytes = discovery.TEXT, port: int = 666) -> list[bytes]:
    """The records of an announcement as zeroconf would send it."""
    instance, host = name_of(f"{digits}.{SERVICE}"), name_of(f"{digits}.local.")
    return [
        record(name_of(SERVICE), 12, instance),
        record(instance, 33, struct.pack(">HHH", 0, 0, port) + host),
        record(instance, 16, text),
        record(host, 1, socket.inet_aton(address)),
    ]


def hostile(dice: random.Random) -> bytes:  # noqa: C901 - one branch per kind
    """One packet that no coordinator sends."""
    digits = "".join(dice.choice("0123456789abcdef") for _ in range(16))
    honest = announcement(digits, dice.choice(EVIL[1:]))
    kind = dice.randrange(11)
    if kind == 0:
        return dice.randbytes(dice.randrange(1500))
    if kind == 1:  # flipped bits, but for the address at the end: another one would be a lie that has the form of the truth
        packet = bytearray(response(honest))
        for _ in range(dice.randrange(1, 20)):
            packet[dice.randrange(len(packet) - 4)] ^= 1 << dice.randrange(8)
        return bytes(packet)
    if kind == 2:
        return response(honest)[: dice.randrange(len(response(honest)))]
    if kind == 3:  # texts to be read, fetched or parsed
        return response(announcement(digits, EVIL[0], dice.randbytes(dice.randrange(4, 1200))))
    if kind == 4:
        return response(announcement(digits, EVIL[0], b"\x1ahttp://evil.example/run.sh"))
    if kind == 5:  # names that are paths, commands, far too long, or not UTF-8
        return response([*announcement("../../../etc/x", EVIL[0]), *announcement("$(reboot)-------", EVIL[0])])
    if kind == 6:  # a name that points to itself, and two to one another
        loop = b"\xc0\x0c"
        return response([record(loop, 33, struct.pack(">HHH", 0, 0, 1) + b"\xc0\x0e"), record(b"\xc0\x0e", 12, loop)])
    if kind == 7:
        return response(honest, count=65535)
    if kind == 8:
        return response([record(name_of(f"{digits}.local."), 1, b"\x7f", size=dice.choice([0, 1, 65535]))])
    if kind == 9:  # another's host
        own = announcement(digits, EVIL[0])
        own[1] = record(name_of(f"{digits}.{SERVICE}"), 33, struct.pack(">HHH", 0, 0, 7) + name_of("victim.local."))
        return response(own)
    return response(announcement(digits, EVIL[0], port=0))


def flood(packets: list[bytes], done: threading.Event) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as line:
        line.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(COORDINATOR))
        for packet in packets:
            line.sendto(packet, GROUP)
            done.wait(0.002)


def main(count: int, seed: int, host: str) -> None:
    logging.disable()
    for words in (
        "link set lo up",
        "link add name here type veth peer name there",
        f"addr add {COORDINATOR}/24 dev here",
        f"addr add {NODE}/24 dev here",
        "link set here up",
        "link set there up",
    ):
        subprocess.run(["ip", *words.split()], check=True)  # noqa: S607 - wherever a system keeps it
    dice, done = random.Random(seed), threading.Event()  # noqa: S311 - no secret
    packets = [hostile(dice) for _ in range(count)]
    with announced(host, PORT) if host else nullcontext(False):  # noqa: FBT003 - as it gives
        threading.Thread(target=flood, args=(packets, done), daemon=True).start()
        found = discovery.discover(6.0, [NODE])
    print(json.dumps({"offers": [[one.host, one.port] for one in found], "sent": len(packets)}))  # noqa: T201 - a script


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
