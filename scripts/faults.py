"""A federation of real processes through a storm of faults, held against the same federation in calm weather.

    scripts/faults [--rounds N] [--faults N] [--seed N] [--veiled] [--noise SHARE] [--disk-full]

One coordinator and three artists' nodes (six, if the rounds are veiled) are set up and copied. In calm weather they hold some
rounds. In the storm the same rounds are held while, at times and in an order that the seed says, processes are ended by
`kill -9` (coordinator, SuperLink, SuperExec, the server part that holds rounds, node, SuperNode, runner, trainer; whoever is
started by a person is started again, as systemd would, sometimes with another clock) and what lies between nodes and the
coordinator is cut, held up, kept half open, or says everything twice. With --disk-full, the coordinator's folder and a node's
lie on small file systems that are filled to the last byte for a few seconds.

Held to: the final body is the same, bit for bit; each round counted the same updates; every ledger is unbroken, and no update
is in one twice; every release is genuine; nothing of a round lies about. Seeds and draws follow from the nodes' keys, there is
one torch thread, and no noise. With noise, and under masks, updates differ from run to run: with noise the same nodes must
count in the same rounds; under masks the body must be the same all the same. The network is the small one of the tests: what is
tried here is what carries it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from coordinator import publish, service  # noqa: E402
from coordinator.config import Home as Hub  # noqa: E402
from coordinator.flower import superlink_endpoint  # noqa: E402
from coordinator.store import Store  # noqa: E402
from edge_node.config import Home as NodeHome  # noqa: E402
from export import settings  # noqa: E402
from export.ledger import Ledger  # noqa: E402
from export.processes import free_port  # noqa: E402
from tests import machines, simulators  # noqa: E402

NAMES: Final = ("ada", "berthe", "clara", "dora", "elsa", "frida")
PYTHON: Final = (sys.executable, "-P", "-m")
PATIENCE_S: Final = 900.0
_MARK: Final = "SFUMATO_FAULTS"

KINDS: Final[Mapping[str, str]] = {
    "coordinator": "coordinator\0up",
    "superlink": "coordinator\0serve",
    "superexec": "flower-superexec",
    "rounds": "flwr-serverapp",
    "node": "edge_node\0up",
    "supernode": "edge_node.supernode",
    "runner": "edge_node\0run-tasks",
    "trainer": "multiprocessing.spawn",
}
"""What tells a process by its command line."""

WEATHER: Final = ("cut", "held up", "half open", "twice")
_ENCLOSED: Final = "SFUMATO_FAULTS_ENCLOSED"
_DISK_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Place:
    """A federation's folder."""

    folder: Path

    @property
    def names(self) -> tuple[str, ...]:
        """The artists."""
        return tuple(name for name in NAMES if (self.folder / name).exists())

    @property
    def hub(self) -> Hub:
        return Hub(self.folder / "hub")

    def node(self, name: str) -> NodeHome:
        return NodeHome(self.folder / name)


@dataclass(slots=True)
class Wire:
    """What lies between nodes and coordinator: passes bytes on, or does not."""

    upstream: int = 0
    port: int = 0
    delay_s: float = 0.0
    held: bool = False
    doubled: bool = False
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def start(self) -> None:
        """Listen, in a thread."""
        ready = threading.Event()

        async def listen() -> None:
            server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await server.serve_forever()

        threading.Thread(target=lambda: self.loop.run_until_complete(listen()), name="the wire", daemon=True).start()
        ready.wait(30)

    def cut(self) -> None:
        """End every connection at once."""
        self.loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in list(self.writers):
            writer.transport.abort()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        self.writers |= {writer, back}
        again = (await asyncio.open_connection("127.0.0.1", self.upstream))[1] if self.doubled else None
        await asyncio.gather(self._passed(reader, back, again), self._passed(there, writer))
        self.writers -= {writer, back}

    async def _passed(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, again: asyncio.StreamWriter | None = None
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await source.read(65536):
                await asyncio.sleep(self.delay_s)
                while self.held:  # noqa: ASYNC110 - set from another thread
                    await asyncio.sleep(0.05)
                target.write(data)
                await target.drain()
                if again is not None:  # the same once more, on a connection of its own whose answers nobody reads
                    again.write(data)
        for one in filter(None, (target, again)):
            with suppress(OSError, RuntimeError):
                one.close()


@dataclass(slots=True)
class Federation:
    """The processes of one federation, of which those that a person starts are kept running."""

    place: Place
    world: Path
    wire: Wire
    dice: random.Random
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    clocks: Counter[str] = field(default_factory=Counter)
    disks: list[Path] = field(default_factory=list)

    @property
    def mark(self) -> str:
        return str(self.place.folder)

    def start(self, name: str, machine: Mapping[str, str] | None = None) -> None:
        """Start what a person starts: the coordinator, or a node."""
        program = "coordinator" if name == "hub" else "edge_node"
        log = (self.place.folder / f"{name}.log").open("ab")
        small = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "small_world")])
        environment = {
            **os.environ,
            **(machine or {}),
            _MARK: self.mark,
            "PYTHONPATH": small,
            "SMALL_WORLD": str(self.world),
            "OMP_NUM_THREADS": "1",
        }
        command = [*PYTHON, program, "up", "--home", str(self.place.folder / name)]
        self.started[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        log.close()

    def keep(self, *, storm: bool) -> None:
        """Start again whatever ended of what a person started."""
        for name, process in list(self.started.items()):
            if process.poll() is not None:
                clock = self.dice.choice(machines.CLOCKS) if storm and name != "hub" and self.dice.random() < 0.3 else ""
                self.clocks[clock] += bool(clock)
                self.start(name, machines.with_clock(clock) if clock else None)

    def alive(self) -> dict[str, list[int]]:
        """This federation's processes, by kind."""
        found: dict[str, list[int]] = {}
        mark = f"{_MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    command = (folder / "cmdline").read_bytes().decode(errors="replace")
                    kind = next((kind for kind, sign in KINDS.items() if sign in command and "keeper.py" not in command), None)
                    if kind is not None:
                        found.setdefault(kind, []).append(int(folder.name))
        return found

    def stop(self) -> None:
        """End everything, gently first."""
        for process in self.started.values():
            process.terminate()
        for process in self.started.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
        for pids in self.alive().values():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def running(place: Place, world: Path, dice: random.Random) -> Iterator[Federation]:
    """A federation that is up, with a wire between its nodes and its coordinator."""
    wire = Wire(upstream=place.hub.config().port)
    wire.start()
    for name in place.names:
        file = place.node(name).membership_file
        file.write_text(json.dumps({**json.loads(file.read_bytes()), "port": wire.port}))
    federation = Federation(place, world, wire, dice)
    try:
        for name in ("hub", *place.names):
            federation.start(name)
        await_(lambda: superlink_endpoint(service._superlink_settings(place.hub)) is not None, "the coordinator")  # noqa: SLF001
        yield federation
    finally:
        federation.stop()


def await_(holds: object, what: str) -> None:
    """Poll until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    assert callable(holds)  # noqa: S101 - ours
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"gave up waiting for {what}")
        time.sleep(0.1)


def set_up(folder: Path, world: Path, *, veiled: bool, noise: float) -> Place:
    """A coordinator and artists who have joined and agreed; nothing runs."""
    place, names = Place(folder), NAMES if veiled else NAMES[:3]
    folder.mkdir()
    asked = {"visibility": "veiled", "minimum_nodes": 5} if veiled else {"minimum_nodes": len(names)}
    simulators.make_coordinator(place.hub.root, keep=0.2, clip=0.05, noise=noise, port=free_port(), **asked)
    settings.save(place.hub.config_file, dataclasses.replace(place.hub.config(), bind="127.0.0.1", gather_timeout_s=600))
    started = Federation(place, world, Wire(), random.Random(0))  # noqa: S311 - no secret
    started.start("hub")
    try:
        await_(lambda: superlink_endpoint(service._superlink_settings(place.hub)) is not None, "the coordinator")  # noqa: SLF001
        for number, name in enumerate(names):
            home = simulators.make_node(place.node(name).root, name, poll_s=1.0)
            simulators.write_works(folder.parent / f"works-{name}", seed=number)
            _said(world, "works", "add", str(folder.parent / f"works-{name}"), "--home", str(home.root))
            invite = service.invite(place.hub, name, "artist", 3600.0)
            _said(world, "join", invite, "--home", str(home.root))
            _said(world, "policy", "show", "--home", str(home.root))
            _said(world, "policy", "accept", "--home", str(home.root))
    finally:
        started.stop()
    return place


def _said(world: Path, *words: str) -> None:
    small = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "small_world")])
    environment = {**os.environ, "PYTHONPATH": small, "SMALL_WORLD": str(world)}
    subprocess.run([*PYTHON, "edge_node", *words], env=environment, check=True, stdout=subprocess.DEVNULL)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a federation came to.

    Attributes:
        body: digest of the last release's.
        rounds: state, and who counted with which update, of each round.
        seconds: wall time.
        faults: how many of each kind.
    """

    body: str
    rounds: tuple[tuple[str, tuple[tuple[int, str | None], ...]], ...]
    seconds: float
    faults: Mapping[str, int]


def hold(place: Place, world: Path, rounds: int, dice: random.Random, faults: int, disks: Sequence[Path] = ()) -> Outcome:
    """Hold rounds, with so many faults on the way."""
    began, done = time.monotonic(), Counter[str]()
    with running(place, world, dice) as federation:
        federation.disks = list(disks)
        store = Store(place.hub.database)
        job = store.add_job(rounds)
        next_at = time.monotonic() + 5
        while store.job(job.job).state == "open":
            federation.keep(storm=faults > 0)
            if done.total() < faults and time.monotonic() >= next_at:
                done[strike(federation)] += 1
                next_at = time.monotonic() + dice.uniform(0.5, 6.0)
            if time.monotonic() - began > PATIENCE_S:
                raise SystemExit(f"the rounds did not end: {store.rounds()[-1:]}")
            time.sleep(0.1)
        if store.job(job.job).state != "done":
            raise SystemExit(f"the rounds ended as {store.job(job.job)}")
        done.update({f"clock {clock}": count for clock, count in federation.clocks.items() if clock})
    held = tuple((r.state, tuple((a.node_id, a.sha256) for a in store.answers(r.round) if a.accepted)) for r in store.rounds())
    return Outcome(publish.current_release(place.hub).manifest.body, held, time.monotonic() - began, dict(done))


def strike(federation: Federation) -> str:
    """One fault; says which."""
    dice, alive = federation.dice, federation.alive()
    kinds = [kind for kind in KINDS if kind in alive]
    if federation.disks and dice.random() < 0.4:
        disk = dice.choice(federation.disks)
        threading.Thread(target=_fill, args=(disk, dice.uniform(1.0, 6.0)), daemon=True).start()
        return f"disk full {disk.name}"
    if dice.random() < 0.25 or not kinds:
        kind = dice.choice(WEATHER)
        threading.Thread(target=_weather, args=(federation.wire, kind, dice.uniform(0.5, 5.0)), daemon=True).start()
        return kind
    kind = dice.choice(kinds)
    with suppress(ProcessLookupError):
        os.kill(dice.choice(alive[kind]), signal.SIGKILL)
    return f"kill {kind}"


def _fill(disk: Path, lasts_s: float) -> None:
    """Leave a file system not a byte, for a while."""
    filler = disk / ".filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while file.write(b"x"):
            pass
    time.sleep(lasts_s)
    filler.unlink(missing_ok=True)


def _weather(wire: Wire, kind: str, lasts_s: float) -> None:
    if kind == "cut":
        wire.cut()
    elif kind == "held up":
        wire.delay_s = lasts_s / 5
        time.sleep(lasts_s)
        wire.delay_s = 0.0
    elif kind == "twice":
        wire.doubled = True
        time.sleep(lasts_s)
        wire.doubled = False
    else:
        wire.held = True
        time.sleep(lasts_s)
        wire.held = False
        wire.cut()


def complaints(calm: Outcome, storm: Outcome, place: Place, *, are_drawn: bool, has_noise: bool) -> list[str]:
    """What is not as it must be after a storm.

    Args:
        calm: what it is held against.
        storm: what came of it.
        place: where.
        are_drawn: whether what is sent is drawn anew each time.
        has_noise: whether that shows in the body.
    """
    said = []
    if storm.body != calm.body and not has_noise:
        said.append(f"the body is {storm.body[:12]}, in calm weather {calm.body[:12]}")
    if _counted(storm, digests=not are_drawn) != _counted(calm, digests=not are_drawn):
        said.append(f"rounds counted other updates: {storm.rounds} instead of {calm.rounds}")
    for name in place.names:
        sent = [e["round"] for e in Ledger(place.node(name).ledger_file).entries() if e["what"] == "update"]
        if len(sent) != len(set(sent)):
            said.append(f"{name} has written down an update twice: {sent}")
    told = [e["round"] for e in Ledger(place.hub.ledger_file).entries() if e["what"] == "round"]
    if told != list(range(1, len(storm.rounds) + 1)):
        said.append(f"the coordinator's ledger tells of rounds {told}")
    for version in publish.versions(place.hub):
        publish.open_release(place.hub, version)
    if list(place.hub.rounds.glob("*/*")):
        said.append("updates of rounds that are over lie about")
    return said


def _counted(outcome: Outcome, *, digests: bool) -> list[tuple[str, list[tuple[int, str | None]]]]:
    """State, and who counted with what, of each round."""
    return [(state, [(node, sha256 if digests else None) for node, sha256 in counted]) for state, counted in outcome.rounds]


def mounted(folder: Path) -> list[Path]:
    """The folders of the coordinator and of a node, each on a small file system of its own."""
    disks = [folder / "hub", folder / NAMES[0]]
    for disk in disks:
        aside = disk.rename(disk.with_suffix(".aside"))
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(disk)], check=True)  # noqa: S607
        shutil.copytree(aside, disk, symlinks=True, dirs_exist_ok=True)
    return disks


def enclose(words: Sequence[str]) -> None:
    """Begin anew where file systems can be mounted that nobody else sees; does not return."""
    command = ["unshare", "--mount", "--map-root-user", sys.executable, __file__, *words]
    os.execvpe(command[0], command, {**os.environ, _ENCLOSED: "1"})  # noqa: S606 - ours


def main(words: Sequence[str] | None = None) -> int:
    """Command line; 0 if nothing is to be complained of."""
    parser = argparse.ArgumentParser(
        prog="scripts/faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--veiled", action="store_true", help="rounds in which only the sum is seen, of six artists")
    parser.add_argument("--noise", type=float, default=0.0, help="of the policy")
    parser.add_argument("--disk-full", action="store_true", help="fill disks, too")
    parser.add_argument("--keep", action="store_true", help="leave the folder, with its logs")
    asked = parser.parse_args(words)
    if asked.disk_full and _ENCLOSED not in os.environ:
        enclose(sys.argv[1:] if words is None else words)
    folder = Path(tempfile.mkdtemp(prefix="sfumato-faults-"))
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        simulators.install_world(patch, simulators.make_base(folder / "world"))
        origin = set_up(folder / "origin", folder / "world", veiled=asked.veiled, noise=asked.noise)
        outcomes = []
        for weather, faults in (("calm", 0), ("storm", asked.faults)):
            shutil.copytree(origin.folder, folder / weather, symlinks=True)
            dice = random.Random(asked.seed)  # noqa: S311 - no secret
            disks = mounted(folder / weather) if asked.disk_full and faults else []
            outcomes.append(hold(Place(folder / weather), folder / "world", asked.rounds, dice, faults, disks))
            print(f"{weather}: {outcomes[-1].seconds:.0f} s, {len(outcomes[-1].rounds)} rounds", flush=True)
        are_drawn, has_noise = asked.veiled or asked.noise > 0, asked.noise > 0
        calm, storm = outcomes
        said = complaints(calm, storm, Place(folder / "storm"), are_drawn=are_drawn, has_noise=has_noise)
    print(json.dumps({**asdict(outcomes[1]), "seed": asked.seed, "complaints": said}, indent=1))
    if asked.keep or said:
        print(f"everything lies in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)  # what was mounted goes with this process
    return 1 if said else 0


def asdict(outcome: Outcome) -> dict[str, object]:
    """What a report says of a storm."""
    return {
        "body": outcome.body,
        "seconds": round(outcome.seconds, 1),
        "faults": dict(sorted(outcome.faults.items())),
        "rounds": [[state, len(counted)] for state, counted in outcome.rounds],
    }


if __name__ == "__main__":
    raise SystemExit(main())
