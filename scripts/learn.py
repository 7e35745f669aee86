"""What an artist gets from `sfumato learn`: the command itself on folders of works, in both tiers, with a clock beside it.

    scripts/bench learn --works DIR             # a folder for each artist; a minute an artist and tier
    scripts/bench learn --works DIR --show hokusai van-gogh     # and sheets of these, a work of the artist beside the pictures

For each: how long the whole command took, how far its pictures are from the works, by what graph they are painted and what
folding and int8 changed in them, and the style distance at eleven strengths. The base saw none of the artists; the pictures
are of photos it was not trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402
from demonstration import painted_by  # noqa: E402
from PIL import Image  # noqa: E402

from edge_node import library, styles  # noqa: E402
from edge_node.config import Config, Home  # noqa: E402
from edge_node.paint import Order, Painter  # noqa: E402
from export import backbones, base, release, settings  # noqa: E402
from export.files import write_atomic  # noqa: E402
from models import codecs, registry  # noqa: E402
from models.contract import Work  # noqa: E402
from models.measures import psnr  # noqa: E402

mpl.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

STRENGTHS = tuple(tenth / 10 for tenth in range(11))
_HARDLY = 0.02  # a strength that is hardly to be seen
_SHEET_SIDE = 480  # pixels, the longer side of a picture on the sheet
_STRENGTH_SIDE = 320  # of those whose distance is measured at every strength


@dataclass(frozen=True, slots=True)
class Learned:
    """One artist in one tier.

    Attributes:
        seconds: of the whole command, from the prompt to the prompt.
        style, content: score of the exact graph on the lessons' exam photos.
        painted_by: the graph that whole pictures are painted by.
        folding: what the folded graph changed; None if there is none.
        int8: its parity with fp32; None if there is none.
        distances: to the works at each of ``STRENGTHS`` as painted, mean over the probe photos: by the exact graph, and at
            full strength by ``painted_by``.
        exact_distance: at full strength by the exact graph.
        hardly_db: PSNR to the photo at a strength of a fiftieth, the least of the probe photos'.
    """

    tier: str
    artist: str
    works: int
    seconds: float
    style: float
    content: float
    painted_by: str
    folding: dict[str, float] | None
    int8: dict[str, float] | None
    distances: tuple[float, ...]
    exact_distance: float
    hardly_db: float

    @property
    def is_monotone(self) -> bool:
        """Whether more strength always comes nearer to the works."""
        return all(later < earlier for earlier, later in pairwise(self.distances))


def main() -> None:
    """Learn, measure, print, write."""
    arguments = parse()
    folders = sorted(folder for folder in arguments.works.iterdir() if folder.is_dir())
    if not folders:
        raise SystemExit(f"{arguments.works} holds no folder of works")
    every: list[Learned] = []
    arguments.out.mkdir(parents=True, exist_ok=True)
    for tier in arguments.tiers:
        rows = []
        for folder in folders:
            one, pictures = learned(tier, folder, arguments.threads)
            every.append(one)
            if folder.name in arguments.show:
                rows.append(pictures)
            print(" ", *cells(one), sep="  ", flush=True)
        if rows:
            sheet(rows).save(arguments.out / f"learn-{tier}.jpg", quality=88)
    report = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "load_average": os.getloadavg(),
        "strengths": STRENGTHS,
        "shown": arguments.show,
        "rows": [asdict(one) | {"is_monotone": one.is_monotone} for one in every],
    }
    write_atomic(arguments.out / "learn.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(arguments.out / "learn.md", as_markdown(every, report).encode())
    plot(every, arguments.out / "learn.png")


def learned(tier: str, folder: Path, threads: int) -> tuple[Learned, list[Work]]:
    """Run the command for one artist, and look at what it made."""
    with tempfile.TemporaryDirectory() as place:
        home = Home(Path(place))
        settings.save(home.config_file, Config(artist=folder.name, style="bench", modality=tier, threads=threads))
        command = [sys.executable, "-m", "edge_node", "learn", str(folder), "--style", folder.name, "--home", place, "--json"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"sfumato learn {folder} failed: {done.stderr.strip()[-2000:]}")
        style = styles.find(home, folder.name)
        probes = release.pictures_of(base.load(tier), release.PROBE)
        painter = Painter(home)
        pictures = [painter.paint(Order(photo, {style.name: 1.0})).picture for photo in probes.values()]
        found = strengths(painter, style.name, tier, folder, list(probes.values()))
        one = Learned(
            tier=tier,
            artist=folder.name,
            works=style.works,
            seconds=round(seconds, 1),
            style=round(style.score.style, 4),
            content=round(style.score.content, 3),
            painted_by=painted_by(style),
            folding=asdict(style.folding) if style.folding else None,
            int8=asdict(style.parity) if style.parity else None,
            distances=found.painted,
            exact_distance=found.exact,
            hardly_db=found.hardly_db,
        )
        works = library.load_folder(folder).works
        return one, [codecs.fit_within(picture, _SHEET_SIDE) for picture in (works[0], *pictures)]


class Strengths(NamedTuple):
    """See ``Learned``."""

    painted: tuple[float, ...]
    exact: float
    hardly_db: float


def strengths(painter: Painter, name: str, tier: str, folder: Path, photos: Sequence[Work]) -> Strengths:
    """Distances to the works at each strength, and how near to the photo the faintest is."""
    modality = registry.find(tier)
    small = [codecs.fit_within(photo, _STRENGTH_SIDE) for photo in photos]
    backbone = backbones.load_all(modality.backbones)
    lessons = modality.lessons([library.load_folder(folder).works], small[:2], backbone, seed=1)
    other = next(iter(styles.public_codes(base.load(tier))))

    def painted(weights: Mapping[str, float], strength: float) -> list[Work]:
        return [painter.paint(Order(photo, weights, strength)).picture for photo in small]

    exactly = {name: 1.0, other: 0.0}  # a mix, and so painted by the exact graph
    hardly = painted({name: 1.0}, _HARDLY)
    return Strengths(
        tuple(round(lessons.distance(0, painted({name: 1.0}, strength)), 4) for strength in STRENGTHS),
        round(lessons.distance(0, painted(exactly, 1.0)), 4),
        round(min(psnr(a, b) for a, b in zip(hardly, small, strict=True)), 1),
    )


def cells(one: Learned) -> list[str]:
    """A row of the table."""
    folding = one.folding
    return [
        one.tier,
        one.artist,
        str(one.works),
        f"{one.seconds:.0f}",
        f"{one.style:.3f}",
        f"{one.content:.2f}",
        one.painted_by,
        f"{folding['style_folded'] / folding['style_exact']:.3f}" if folding else "-",
        f"{folding['colour_difference']:.1f}" if folding else "-",
        f"{folding['ssim']:.2f}" if folding else "-",
        f"{one.int8['psnr_db']:.1f} dB, {one.int8['ssim']:.3f}" if one.int8 else "-",
        f"{one.distances[0]:.2f} to {one.distances[-1]:.2f}{'' if one.is_monotone else ', not always nearer'}",
        f"{one.exact_distance:.2f}{'' if one.exact_distance < one.distances[-2] else ', not nearer than at 0.9'}",
        f"{one.hardly_db:.0f} dB",
    ]


def as_markdown(found: Sequence[Learned], report: dict[str, Any]) -> str:
    """The table."""
    heads = [
        "tier",
        "artist",
        "works",
        "seconds",
        "style distance",
        "SSIM to the photo",
        "painted by",
        "folded / exact style distance",
        "CIEDE2000",
        "SSIM",
        "int8 against fp32",
        f"style distance over {len(STRENGTHS)} strengths, as painted",
        "exact graph at full strength",
        f"photo at strength {_HARDLY}",
    ]
    lines = [
        "# Learning",
        "",
        f"By `scripts/bench learn --works DIR` on {report['cores']} cores, {report['threads']} threads, {report['made'][:10]}:",
        "the whole of `sfumato learn`, body frozen, from the base that comes with the program.",
        "",
        "| " + " | ".join(heads) + " |",
        "| --- | --- |" + " ---: |" * 4 + " --- |" + " ---: |" * 7,
    ]
    lines += ["| " + " | ".join(cells(one)) + " |" for one in found]
    lines += ["", f"Strengths are those of photos of {_STRENGTH_SIDE} pixels."]
    if report["shown"]:
        lines += ["", f"Pictures, a work of the artist first: {', '.join(report['shown'])}.", ""]
        lines += [f"![{tier}](learn-{tier}.jpg)" for tier in dict.fromkeys(one.tier for one in found)]
    return "\n".join(lines) + "\n"


def sheet(rows: Sequence[Sequence[Work]]) -> Image.Image:
    """Artists down, pictures across, all of one height."""
    height, gap = 300, 8

    def sized(picture: Work) -> Image.Image:
        image = Image.fromarray(picture)
        return image.resize((round(image.width * height / image.height), height), Image.Resampling.LANCZOS)

    images = [[sized(picture) for picture in row] for row in rows]
    first = max(row[0].width for row in images)
    width = max(first + sum(image.width + gap for image in row[1:]) for row in images)
    whole = Image.new("RGB", (width, len(rows) * (height + gap) - gap), (250, 248, 244))
    for number, row in enumerate(images):
        whole.paste(row[0], (0, number * (height + gap)))
        left = first + gap
        for image in row[1:]:
            whole.paste(image, (left, number * (height + gap)))
            left += image.width + gap
    return whole


def plot(found: Sequence[Learned], path: Path) -> None:
    """Style distance over strength, a panel a tier."""
    tiers = list(dict.fromkeys(one.tier for one in found))
    figure, panels = plt.subplots(1, len(tiers), figsize=(4.6 * len(tiers), 4.2), sharey=True, squeeze=False)
    for panel, tier in zip(panels[0], tiers, strict=True):
        for one in found:
            if one.tier == tier:
                panel.plot(STRENGTHS, one.distances, marker="o", markersize=3, label=one.artist)
        panel.set_title(tier)
        panel.set_xlabel("strength")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("style distance to the works")
    panels[0][-1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", type=Path, required=True, help="a folder for each artist")
    parser.add_argument("--show", nargs="*", default=[], metavar="FOLDER", help="artists who may be shown on a sheet")
    parser.add_argument("--tiers", nargs="+", default=["style-kiosk", "style-studio"], choices=["style-kiosk", "style-studio"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
