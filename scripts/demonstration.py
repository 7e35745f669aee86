"""The demo: a coordinator and three artists' nodes as real processes on this machine, from invites to pictures.

    set up → rounds of private training → signed release → verified, installed, folded, quantised on each node → pictures

Everything is done by the two programs as a person would do it; this script starts them, says what is being waited for, and
collects what they made: `contact-sheet.png` and `report.json`. All processes end with it, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent

from coordinator import config as coordinator_config  # noqa: E402
from coordinator import policies  # noqa: E402
from coordinator.store import Store  # noqa: E402
from edge_node import config as node_config  # noqa: E402
from edge_node import ingest, library, node, paint, releases, styles  # noqa: E402
from edge_node.styles import Style  # noqa: E402
from export import release as release_parts  # noqa: E402
from export import settings  # noqa: E402
from export.errors import SfumatoError  # noqa: E402
from export.ledger import Ledger  # noqa: E402
from export.processes import Child, stop_all  # noqa: E402
from export.runtime import open_engine  # noqa: E402
from models import samplers  # noqa: E402
from models.contract import Work  # noqa: E402

ARTISTS: Final = 3
STEPS: Final = 32
"""Batches per node and round; with two rounds on two cores, training and judging take a little over two minutes."""
ROUNDS: Final = 2
FIT_STEPS: Final = 8
RENEW_STEPS: Final = 50
PYTHON: Final = (sys.executable, "-P", "-m")
LATENCY_SIDE: Final = 512
LATENCY_RUNS: Final = 15
TILE: Final = 300
WAIT_S: Final = 600

screen = Console(stderr=True, highlight=False)


def main() -> None:
    """Run the demo, ending every process whatever happens."""
    arguments = parse()
    works = find_works(arguments.works)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stage = Stages()
    with (
        tempfile.TemporaryDirectory(prefix="sfumato-demo-") as temporary,
        kept_logs(Path(temporary), arguments.out / "logs"),
        children() as start,
        MemoryWatch() as memory,
    ):
        folder = Path(temporary)
        coordinator = coordinator_config.Home(folder / "coordinator")
        with stage("set-up"):
            artists, nodes = set_up(folder, coordinator, works, start, stage)
        with stage("rounds"):
            hold_rounds(coordinator, arguments.rounds, start, stage)
        with stage("export and parity"):
            finished = await_styles(coordinator, artists, nodes, stage)
        with stage("pictures"):
            pictures = paint_all(artists, finished, stage)
        sheet = arguments.out / "contact-sheet.png"
        contact_sheet(artists, pictures).save(sheet)
        with stage("latency"):
            stage.say("timing the graphs at 512 px")
            name, style = next(iter(finished.items()))  # folded graphs of one body differ in numbers only
            timing = latency(artists[name], style)
        report = build_report(coordinator, artists, finished, timing, stage, memory)
    (arguments.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    summary(report, sheet, arguments.out / "report.json")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of private training (default %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out", help="where the results go (default demo-out)")
    parser.add_argument(
        "--works", type=Path, default=ROOT / "scripts" / "works", help="a folder with one folder of works per artist"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds needs at least 1")
    return arguments


class Stages:
    """Says what is being waited for and for how long, and remembers how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._status = Status("", console=screen)
        self._what, self._since = "", time.monotonic()
        threading.Thread(target=self._tick, daemon=True).start()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage."""
        started = self._since = time.monotonic()
        with self._status:
            self.say(name)
            yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        screen.print(f"[green]✓[/] {name}: {self.seconds[name]:.0f} s")

    def say(self, what: str) -> None:
        """Name what is being waited for now; without a terminal, each thing is said once, however its seconds run."""
        news = re.sub(r"\d+ s\b", "", what) != re.sub(r"\d+ s\b", "", self._what)
        self._what = what
        if news and not screen.is_terminal:
            screen.print(f"  {what}", markup=False)

    def _tick(self) -> None:
        while True:
            self._status.update(escape(f"{self._what} ({time.monotonic() - self._since:.0f} s in this stage)"))
            time.sleep(0.5)


@contextlib.contextmanager
def children() -> Iterator[Callable[..., Child]]:
    """Start child processes; every one is ended with all its descendants when this ends, or when this process dies."""
    started: list[Child] = []

    def start(name: str, command: list[str], log: Path) -> Child:
        with log.open("ab") as file:
            child = Child.start(name, command, environment=os.environ, log=file, grace_s=15)
        started.append(child)
        return child

    try:
        yield start
    finally:
        stop_all(started)


@contextlib.contextmanager
def kept_logs(folder: Path, kept: Path) -> Iterator[None]:
    """Keep what the processes wrote if the demo fails; their folder goes with it."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:
        for log in folder.rglob("*.log"):
            target = kept / log.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, target)
        screen.print(f"The logs are in {kept}", markup=False)
        raise


class MemoryWatch:
    """Samples the memory of this process and all its descendants once a second (proportional share, Linux only)."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            self.peak_mb = max(self.peak_mb, sum(_proportional_mb(pid) for pid in _descendants(os.getpid())))


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += parents.get(pid, [])
    return found


def _proportional_mb(pid: int) -> float:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def find_works(folder: Path) -> dict[str, Path]:
    """Three artists' folders, by names that styles can have."""
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."] if folder.is_dir() else []
    found = {re.sub(r"[^A-Za-z0-9]+", "-", path.name)[:40].strip("-").lower() or "artist": path for path in folders}
    if len(found) < ARTISTS:
        sys.exit(f"{folder} needs {ARTISTS} folders, one per artist, each with pictures of works. Name another: --works DIR")
    return dict(list(found.items())[:ARTISTS])


def run(module: str, home: Path, *words: str) -> dict[str, object]:
    """One command of a program, as a person would type it; its JSON answer."""
    command = [*PYTHON, module, *words, "--home", str(home), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {}
    if not answer.get("ok"):
        error = answer.get("error", {})
        sys.exit(f"{' '.join(words)}: {error.get('message', done.stderr[-2000:])}. {error.get('advice', '')}")
    data: dict[str, object] = answer["data"]
    return data


def set_up(
    folder: Path,
    coordinator: coordinator_config.Home,
    works: dict[str, Path],
    start: Callable[..., Child],
    stage: Stages,
) -> tuple[dict[str, node_config.Home], dict[str, Child]]:
    """A coordinator that runs, and three nodes that have joined it and run."""
    artists = {name: node_config.Home(folder / name) for name in works}
    with ThreadPoolExecutor(2) as pool:
        stage.say("making the coordinator's authority and keys, and setting up three artists")
        made = pool.submit(run, "coordinator", coordinator.root, "init", "Sfumato demo")
        list(pool.map(lambda name: set_up_node(artists[name], name, works[name]), works))
        made.result()
        config = dataclasses.replace(
            coordinator.config(),
            bind="127.0.0.1",
            fit_steps=FIT_STEPS,
            gather_timeout_s=120,
        )
        settings.save(coordinator.config_file, config)
        # A machine without bfloat16 in hardware takes a few times as long.
        asked = dataclasses.replace(policies.draft(coordinator), minimum_nodes=ARTISTS, steps=STEPS, deadline_s=900)
        settings.save(coordinator.policy_file, asked)
        run("coordinator", coordinator.root, "policy", "publish")
        stage.say("starting the coordinator")
        up = start(
            "coordinator",
            [*PYTHON, "coordinator", "up", "--home", str(coordinator.root)],
            folder / "c.log",
        )
        await_condition(lambda: run("coordinator", coordinator.root, "status")["running"] is True, up, folder / "c.log")
        stage.say("three artists join by invite")
        list(pool.map(lambda name: join(coordinator, artists[name], name), works))
    nodes = {
        name: start(name, [*PYTHON, "edge_node", "up", "--home", str(home.root)], home.root / "up.log")
        for name, home in artists.items()
    }
    return artists, nodes


def set_up_node(home: node_config.Home, name: str, works: Path) -> None:
    """What an artist does first."""
    run("edge_node", home.root, "init", "--artist", name, "--style", name, "--threads", "1")
    run("edge_node", home.root, "works", "add", str(works))
    config = dataclasses.replace(home.config(), poll_s=1.0, renew_steps=RENEW_STEPS)
    settings.save(home.config_file, config)


def join(coordinator: coordinator_config.Home, home: node_config.Home, name: str) -> None:
    """The coordinator invites, the artist joins and agrees to the policy."""
    invite = run("coordinator", coordinator.root, "invite", name)["invite"]
    run("edge_node", home.root, "join", str(invite))
    run("edge_node", home.root, "policy", "show")
    run("edge_node", home.root, "policy", "accept")


def await_condition(holds: Callable[[], bool], child: Child, log: Path) -> None:
    """Wait until something holds, while a child lives."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        if child.exit_code() is not None or time.monotonic() > deadline:
            sys.exit(f"{child.name} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


def hold_rounds(coordinator: coordinator_config.Home, rounds: int, start: Callable[..., Child], stage: Stages) -> None:
    """Have the coordinator hold rounds, and say how they stand."""
    log = coordinator.root / "round.log"
    command = [*PYTHON, "coordinator", "round", "--rounds", str(rounds), "--home", str(coordinator.root)]
    child = start("round", command, log)
    store = Store(coordinator.database)
    while child.exit_code() is None:
        now = store.rounds()[-1:]
        stage.say(f"round {now[0].round} of {rounds}: {now[0].state}, {now[0].detail}" if now else "starting a run of rounds")
        time.sleep(0.5)
    if child.exit_code() != 0:
        sys.exit(f"the rounds failed:\n{log.read_text()[-2000:]}")


def await_styles(
    coordinator: coordinator_config.Home, artists: dict[str, node_config.Home], nodes: dict[str, Child], stage: Stages
) -> dict[str, Style]:
    """Wait until every node has installed the newest release and made its style of it."""
    served = int(coordinator.current_file.read_text())
    deadline = time.monotonic() + WAIT_S
    while True:
        done = {name: styles.find(home, name) for name, home in artists.items() if is_renewed(home, name, served)}
        if len(done) == len(artists):
            return done
        for name, home in artists.items():
            said = (home.root / "up.log").read_text(errors="replace")
            if nodes[name].exit_code() is not None or re.search(r"renewal ended with code -?[1-9]", said):
                sys.exit(f"the node of {name} failed:\n{said[-2000:]}")
            if time.monotonic() > deadline and name not in done:
                sys.exit(f"the node of {name} had no style of release {served} in time:\n{said[-2000:]}{renewal_log(home)}")
        stage.say(f"{len(done)} of {len(artists)} nodes have verified the release, fitted, folded and quantised their style")
        time.sleep(0.5)


def is_renewed(home: node_config.Home, name: str, served: int) -> bool:
    """Whether a node has a style, made of the release that is served or, where that was no better, of the one before."""
    if served not in releases.versions(home):
        return False
    now = releases.current(home).manifest
    if now.version != served or node.renewed_for(home) != now.body:
        return False
    if name not in styles.names(home):
        sys.exit(f"the node of {name} could not make its style:\n{renewal_log(home)}")
    return True


def renewal_log(home: node_config.Home) -> str:
    """The end of what the renewal of a node's styles said."""
    log = home.logs / "renewal.log"
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""


Pictures = dict[tuple[str, str, str], Work]
"""(artist, photo, precision) → picture."""


def paint_all(artists: dict[str, node_config.Home], finished: dict[str, Style], stage: Stages) -> Pictures:
    """Every artist paints every probe photo in both precisions."""
    pictures: Pictures = {}
    for name, home in artists.items():
        photos = release_parts.pictures_of(releases.with_body(home, finished[name].body), release_parts.PROBE)
        painter = paint.Painter(home)
        for photo, pixels in photos.items():
            for precision in ("fp32", "int8"):
                stage.say(f"{name} paints {photo} in {precision}")
                order = paint.Order(pixels, {name: 1.0}, precision=paint.precision_choice(precision))
                pictures[name, photo, precision] = painter.paint(order).picture
            pictures["", photo, ""] = pixels
    return pictures


def contact_sheet(artists: dict[str, node_config.Home], pictures: Pictures) -> Image.Image:
    """Photos down, artists across, each in fp32 and int8; a work of each artist on top, to compare with."""
    photos = sorted({photo for _, photo, _ in pictures})
    gap, head = 12, 40
    columns = 1 + 2 * len(artists)
    heights = [TILE, *(round(TILE * pictures["", p, ""].shape[0] / pictures["", p, ""].shape[1]) for p in photos)]
    size = (columns * (TILE + gap) + gap, head + sum(height + gap for height in heights) + gap)
    sheet = Image.new("RGB", size, (250, 248, 244))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)

    def put(picture: Image.Image, column: int, top: int, height: int) -> None:
        fitted = ImageOps.fit(picture, (TILE, height), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (gap + column * (TILE + gap), top))

    def label(text: str, column: int) -> None:
        draw.text((gap + column * (TILE + gap) + 4, 10), text, (60, 52, 44), font=font)

    label("photo", 0)
    for index, (name, home) in enumerate(artists.items()):
        for offset, precision in enumerate(("fp32", "int8")):
            label(f"{name}, {precision}", 1 + 2 * index + offset)
        for offset, work in enumerate(library.entries(home)[:2]):
            put(Image.fromarray(ingest.read_picture(work.path)), 1 + 2 * index + offset, head, TILE)
    top = head + TILE + gap
    for photo, height in zip(photos, heights[1:], strict=True):
        put(Image.fromarray(pictures["", photo, ""]), 0, top, height)
        for index, name in enumerate(artists):
            for offset, precision in enumerate(("fp32", "int8")):
                put(Image.fromarray(pictures[name, photo, precision]), 1 + 2 * index + offset, top, height)
        top += height + gap
    return sheet


def latency(home: node_config.Home, style: Style) -> dict[str, object]:
    """Median and 95th percentile of the whole call at 512 px, array in and array out."""
    signature = releases.with_body(home, style.body).manifest.signature
    threads = 2
    photo = np.random.default_rng(0).integers(0, 256, (LATENCY_SIDE, LATENCY_SIDE, 3), np.uint8)
    measured: dict[str, object] = {"threads": threads, "side": LATENCY_SIDE, "runs": LATENCY_RUNS}
    for precision in ("fp32", "int8"):
        engine = open_engine(style.graph(precision), precision, threads)
        times = []
        for _ in range(LATENCY_RUNS + 3):
            started = time.perf_counter()
            samplers.paint(engine.run, signature, photo, None)
            times.append(1000 * (time.perf_counter() - started))
        warm = sorted(times[3:])
        measured[precision] = {
            "runtime": engine.runtime,
            "median_ms": round(statistics.median(warm), 1),
            "p95_ms": round(warm[int(0.95 * len(warm))], 1),
        }
    return measured


def build_report(
    coordinator: coordinator_config.Home,
    artists: dict[str, node_config.Home],
    finished: dict[str, Style],
    timing: dict[str, object],
    stage: Stages,
    memory: MemoryWatch,
) -> dict[str, Any]:
    """Everything that was measured, as plain data."""
    store = Store(coordinator.database)
    names = {node.node_id: node.alias for node in store.nodes()}
    rounds = [
        dataclasses.asdict(row)
        | {"seconds": round(row.changed - row.started, 1)}
        | {"answers": [dataclasses.asdict(a) | {"node_id": names[a.node_id]} for a in store.answers(row.round)]}
        for row in store.rounds()
    ]
    packages = ("sfumato", "flwr", "torch", "onnx", "onnxruntime", "numpy", "safetensors", "cryptography", "pillow")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {"cores": os.cpu_count(), "machine": platform.machine()},
        "seconds": stage.seconds,
        "seconds_in_all": round(sum(stage.seconds.values()), 1),
        "memory_peak_mb": round(memory.peak_mb),
        "rounds": rounds,
        "release": json.loads((releases.current(next(iter(artists.values()))).folder / "manifest.json").read_text()),
        "latency_512px": timing,
        "artists": {
            name: {
                "works": finished[name].works,
                "sent": (sent := [e for e in Ledger(home.ledger_file).entries() if e["what"] == "update"]),
                "bytes_sent": sum(int(str(e["bytes"])) for e in sent),
                "style_distance": {
                    "before": json.loads(home.start_score_file.read_text())["style"],
                    "after": finished[name].score.style,
                },
                "content_ssim": finished[name].score.content,
                "int8_parity": dataclasses.asdict(finished[name].parity),
                "folding": dataclasses.asdict(finished[name].folding),
                "painted_by": painted_by(finished[name]),
            }
            for name, home in artists.items()
        },
    }


def painted_by(style: Style) -> str:
    """The graph whole pictures of a style are painted by where nothing is said."""
    if not style.is_folded:
        return "exact graph, fp32"
    return f"{style.best_precision}, {'first norm live' if style.first_live else 'all norms frozen'}"


def summary(report: dict[str, Any], sheet: Path, details: Path) -> None:
    """A short table, and where to look."""
    table = Table("artist", "works", "style distance", "sent", "painted by", "int8 against fp32", box=None)
    for name, a in report["artists"].items():
        distance, parity = a["style_distance"], a["int8_parity"]
        table.add_row(
            name,
            str(a["works"]),
            f"{distance['before']:.3f} → {distance['after']:.3f}",
            f"{a['bytes_sent'] / 2**20:.1f} MiB",
            a["painted_by"],
            f"{parity['psnr_db']:.1f} dB",
        )
    screen.print(table)
    timing = report["latency_512px"]
    painted = ", ".join(f"{p} {timing[p]['median_ms']:.0f} ms" for p in ("fp32", "int8"))
    screen.print(f"A 512 x 512 picture takes {painted} on {timing['threads']} threads.")
    screen.print(f"{report['seconds_in_all']:.0f} s in all, {report['memory_peak_mb']} MB of memory at the most.")
    print(f"Look at {sheet}\nFigures in {details}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves every `with`, and so ends every process
    try:
        main()
    except KeyboardInterrupt:
        screen.print("interrupted; every process was ended")
        sys.exit(130)
    except (SfumatoError, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"the demo failed: {error}. {getattr(error, 'advice', '')}".strip())
