"""How rounds grow with the number of nodes: the same client app and round loop on Flower's simulation engine.

    scripts/bench federation --simulate 1000

10, 100 and 1,000 virtual nodes (up to the number asked for), each size in a process of its own that is coordinator and engine
at once. A node is the program's own client app, wire, guard and signature, at the real size of the body; in the place of the
training stands a movement drawn at random, since a thousand trainings would take hours and say nothing of the coordinator. The
coordinator is the program's own from whom it asks to what it publishes. All nodes share this machine's cores, so that "flat" is
seconds a node and not seconds. They are the engine's, too: it hands out messages by looking through all of them once for each
node, over and over, which grows with the square. So the processor time of the thread in which the round loop runs, which is
the program's own with what it asks of Flower's grid, is measured apart.

Memory is the greatest the coordinator's process ever had when the last answer of the first round was in (VmHWM), with all that
Flower's engine keeps in it, and before the gate, which takes more and the same for any number; workers of the engine, which
stand for the artists' machines, are not in it.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

# Before Flower and Ray are imported: neither is to tell anybody of this.
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from coordinator import policies, rounds, service  # noqa: E402
from coordinator.config import Home  # noqa: E402
from coordinator.store import Node, Store  # noqa: E402
from edge_node import guard  # noqa: E402
from edge_node.client_app import create_client_app  # noqa: E402
from export import policy, settings  # noqa: E402
from models import registry, state  # noqa: E402
from models.update import Answered, Asked, Assignment, Layout  # noqa: E402
from tests import simulators  # noqa: E402

SIZES: Final = (10, 100, 1000)
TIER: Final = "style-studio"
MEMORY_GOAL: Final = 1.5
_CLIP: Final = 0.5
_MINUTES: Final = 30


@dataclass(frozen=True, slots=True)
class Sample:
    """The second round of one size; in the first, the engine's workers import what they need.

    Attributes:
        nodes: how many.
        seconds: from the first message out to the last answer in.
        loop_s: processor seconds of the round loop's thread meanwhile.
        megabytes: greatest resident size of the coordinator's process when the first round's last answer was in.
        accepted: updates that counted.
        outcome: of the round.
        aggregate_s: from there to the end of the round: mean, gate, release.
    """

    nodes: int
    seconds: float
    loop_s: float
    megabytes: float
    accepted: int
    outcome: str
    aggregate_s: float


@cache
def _layout() -> Layout:
    return state.body_layout(registry.find(TIER))


def _policy() -> policy.Policy:
    return policy.Policy("simulation", 1, TIER, clip=_CLIP, deadline_s=60.0 * _MINUTES)


@dataclass(frozen=True, slots=True)
class Artist:
    """A virtual node but for its training."""

    node_id: int

    def run(self, asked: Asked) -> Answered:
        """What the guard lets through of a movement of half the clip."""
        assert isinstance(asked, Assignment)  # noqa: S101 - ours
        layout, rng = _layout(), np.random.default_rng(self.node_id % 2**32)
        moved = rng.standard_normal(layout.size).astype(np.float32)
        body = layout.unflatten(asked.body + moved * np.float32(_CLIP / 2 / np.linalg.norm(moved)))
        trained = guard.Trained(body, 2.0, 1.0, _policy().steps)
        signer = simulators.credentials(f"key-{self.node_id}")
        return guard.seal(asked, _policy(), trained, layout, np.zeros(layout.size, np.float32), signer.enrolled, rng).update


def client_app() -> ClientApp:
    """The program's client app, one for each virtual node."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return create_client_app(Artist(int(context.node_id)))(message, context)

    return app


@dataclass(slots=True)
class TimedGrid:
    """Flower's grid, with a note of when a round's first message went out and its last answer came, and of the memory."""

    grid: Grid
    sent_at: float = 0.0
    last_at: float = 0.0
    spent_before: float = 0.0
    spent: float = 0.0
    megabytes: float = 0.0
    round: str = ""

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        if sent[0].metadata.group_id != self.round:
            self.round, self.sent_at, self.spent_before = sent[0].metadata.group_id, time.monotonic(), time.thread_time()
        return self.grid.push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(self.grid.pull_messages(message_ids))
        if found:
            self.last_at, self.spent = time.monotonic(), time.thread_time()
            if self.round == "1":
                self.megabytes = _peak_megabytes()
        return found


def _peak_megabytes() -> float:
    """Of this process alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def one(nodes: int) -> Sample:
    """Hold a round of a size, in this process."""
    from flwr.simulation import run_simulation  # noqa: PLC0415 - Ray

    logging.basicConfig(level=logging.WARNING)
    found: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "hub")
        _set_up(home, nodes)
        server = ServerApp()

        @server.main()
        def main(grid: Grid, _context: Context) -> None:
            found.append(_held(home, TimedGrid(grid), nodes))

        resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server, client_app(), num_supernodes=nodes, backend_config=resources)  # type: ignore[arg-type]
    if not found:
        raise SystemExit(f"the round of {nodes} nodes was not held; see above")
    return found[0]


def say(nodes: int) -> None:
    """``one``, in a line."""
    print(json.dumps(asdict(one(nodes))))


def _set_up(home: Home, nodes: int) -> None:
    service.init(home, "simulation", "127.0.0.1", 0)
    settings.save(home.policy_file, replace(_policy(), minimum_nodes=nodes))
    policies.publish(home)


def _held(home: Home, grid: TimedGrid, nodes: int) -> Sample:
    store = Store(home.database)
    while len(ids := sorted(grid.get_node_ids())) < nodes:
        time.sleep(0.1)
    for node_id in ids:
        keys = simulators.credentials(f"key-{node_id}").keys
        store.take_back(Node(node_id, f"artist {node_id}", "artist", keys, "1970-01-01T00:00:01+00:00"))
    store.add_job(2)
    rounds.run_rounds(grid, home, home.config())
    ended = time.monotonic()
    _, round_ = store.rounds()
    accepted = sum(answer.accepted for answer in store.answers(2))
    seconds, loop_s = grid.last_at - grid.sent_at, grid.spent - grid.spent_before
    return Sample(nodes, seconds, loop_s, grid.megabytes, accepted, round_.state, ended - grid.last_at)


def measure(most: int, out: Path) -> list[Sample]:
    """All sizes up to the greatest, each in a process of its own; writes ``simulation.json`` and ``.png``.

    Raises:
        SystemExit: a size could not be measured.
    """
    samples = []
    for nodes in sorted({size for size in SIZES if size < most} | {most}):
        # Not as a script: what the engine's workers are sent names its module, which they import.
        command = [sys.executable, "-c", f"from scripts import simulation; simulation.say({nodes})"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        said = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True, env=environment)
        if said.returncode:
            raise SystemExit(f"{nodes} nodes: the simulation ended with {said.returncode}; see above")
        samples.append(Sample(**json.loads(said.stdout.splitlines()[-1])))
        print(_line(samples[-1]), flush=True)
    ratio = samples[-1].megabytes / samples[0].megabytes
    found = {"samples": [asdict(sample) for sample in samples], "memory_ratio": ratio, "goal": MEMORY_GOAL}
    (out / "simulation.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(samples, out / "simulation.png")
    print(f"memory at {samples[-1].nodes} nodes is {ratio:.2f} times that at {samples[0].nodes}; the goal was {MEMORY_GOAL}")
    return samples


def _line(sample: Sample) -> str:
    each, loop = 1000 * sample.seconds / sample.nodes, 1000 * sample.loop_s / sample.nodes
    return (
        f"{sample.nodes:5d} nodes: {sample.seconds:6.1f} s, {each:.0f} ms a node, {loop:.1f} of them the loop's, "
        f"{sample.megabytes:.0f} MB, "
        f"{sample.accepted} accepted, {sample.outcome}, {sample.aggregate_s:.1f} s to the release"
    )


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Seconds a node and memory over the number of nodes."""
    importlib.import_module("matplotlib").use("agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    ink, sizes = "#333333", [sample.nodes for sample in samples]
    figure, (time_, memory) = plt.subplots(1, 2, figsize=(9.2, 3.9))
    time_.plot(sizes, [1000 * s.seconds / s.nodes for s in samples], "o-", color="#1f5f8b", linewidth=2, label="engine and all")
    loop = [1000 * s.loop_s / s.nodes for s in samples]
    time_.plot(sizes, loop, "o-", color="#8fb5cf", linewidth=2, label="the round loop's processor time")
    time_.legend(frameon=False, fontsize=9, loc="upper left")
    time_.set_ylabel("milliseconds a node", color=ink)
    memory.plot(sizes, [s.megabytes for s in samples], "o-", color="#d1495b", linewidth=2, label="measured")
    memory.axhline(MEMORY_GOAL * samples[0].megabytes, linestyle=":", color=ink, label=f"{MEMORY_GOAL} times {sizes[0]} nodes'")
    memory.set_ylabel("MB, the coordinator's process", color=ink)
    memory.legend(frameon=False, fontsize=9, loc="lower right")
    for panel in (time_, memory):
        panel.set_xscale("log")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel("virtual nodes in one round", color=ink)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Does a round grow with its nodes?", x=0.01, ha="left", fontsize=14, fontweight="bold", color=ink)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
