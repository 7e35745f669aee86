"""How each row of the federation bench trains: production's own loop, lessons, clipping and mean, in one process.

One thing nodes do is left out: lessons in the public styles, which keep a base from being forgotten.

What sets the rows apart is only which tensors artists have in common. All rows of a seed start from the same weights and
take the same number of steps an artist, in rounds of the same length with the same rates; after a round the common tensors
move by the mean of the updates, the body's clipped as a node clips it:

* ``local``: nothing in common, a body for each artist.
* ``fedavg``: everything in common, codes and running statistics too.
* ``fine-tune``: fedavg, the last quarter of its rounds taken alone.
* ``ours``: the body in common, codes private.
* ``centralised``: all works in one place: one network, all codes, as many steps in all.

A held-out artist comes afterwards and fits a code to the final body as ``sfumato learn`` does; or, to compare, trains body
and code from that same start for as long as it helps.

Whatever is finished is in the cache, checkpoint by checkpoint, with what each artist's optimiser has seen: a node keeps that
from round to round, too, and going on from a checkpoint is the same as never having stopped.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from coordinator import aggregate
from coordinator.aggregate import Contribution
from edge_node import ingest
from export import backbones, base, release
from export.files import digest_of
from models import compression, privacy, registry, state, training
from models.contract import Lessons, Modality, Work
from models.training import Plan
from models.update import Flat, Layout
from scripts.cache import Cache, Key, Piece, key_of

RowName = Literal["local", "fedavg", "fine-tune", "ours", "centralised"]
ROWS: Final[tuple[RowName, ...]] = get_args(RowName)
Start = Literal["random", "base"]
Arrays: TypeAlias = dict[str, npt.NDArray[np.float32]]

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDS: Final = 3  # a third of an artist's works is held out, another third with the next seed
_SUITING_BATCHES: Final = 6  # as a node does
_SETTLING_BATCHES: Final = 4  # as a node does
_SPLIT_SEED: Final = 1503
_FULL_WINDOW: Final = 500  # steps in which full training must gain ...
_FULL_GAIN: Final = 0.01  # ... this share of its score to go on
_CODE: Final = (
    *("models/modalities/style.py", "models/training.py", "models/perceptual.py", "models/privacy.py", "models/state.py"),
    "models/compression.py",
    *("coordinator/aggregate.py", "scripts/rows.py"),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How rows train; recorded in the report.

    Attributes:
        tier: name of the modality.
        start: random weights, or the base body that comes with the program and saw none of the artists.
        steps: batches an artist takes.
        round_steps: batches between two exchanges.
        rate, body_rate: learning rates' scale, and the body's once more.
        clip: greatest norm of a body's update.
        keep: share of a body's update that is sent, in eight bits a number, with error feedback; 1 sends all of it as float32.
        settling_steps: first steps of an artist with live statistics only; one who comes to a finished body needs none.
        server_momentum: of the common body's movement, as the coordinator's.
        learn_steps, learn_rate: as ``sfumato learn``.
        full_cap: most steps of a held-out artist's full training.
        crop, batch: of a step.
    """

    tier: str
    start: Start
    steps: int
    round_steps: int
    rate: float
    body_rate: float
    clip: float
    keep: float
    settling_steps: int
    server_momentum: float
    learn_steps: int
    learn_rate: float
    full_cap: int
    crop: int = 128
    batch: int = 2

    @property
    def rounds(self) -> int:
        """Rounds in all."""
        return self.steps // self.round_steps

    @property
    def alone_from(self) -> int:
        """The round after which ``fine-tune`` goes on alone."""
        return self.rounds - max(1, self.rounds // 4)

    def modality(self, artists: int = 1) -> Modality[Any, Any]:
        """The tier, fed as these settings say, for a network that so many artists take steps of."""
        found: Any = registry.find(self.tier)
        settling = self.settling_steps * artists
        changed = dataclasses.replace(found, crop=self.crop, batch=self.batch, settling_steps=settling)
        return cast("Modality[Any, Any]", changed)


@dataclass(frozen=True, slots=True)
class Split:
    """An artist's works in one seed: what is trained on, and what style is judged against."""

    trained: tuple[Path, ...]
    held: tuple[Path, ...]


def split(works: Sequence[Path], artist: str, seed: int) -> Split:
    """Hold out one fold of an artist's works; with the next seed another one.

    Args:
        works: two or more.
        artist: whose order of works is drawn by name, so that another artist more changes nothing.
        seed: which fold.
    """
    order = np.random.default_rng((_SPLIT_SEED, zlib.crc32(artist.encode()))).permutation(len(works))
    folds = min(FOLDS, len(works))
    held = {int(work) for place, work in enumerate(order) if place % folds == seed % folds}
    trained = tuple(work for i, work in enumerate(works) if i not in held)
    return Split(trained, tuple(works[i] for i in sorted(held)))


@dataclass(frozen=True, slots=True)
class Chain:
    """One unit of training, for a process of its own: a row's rounds in one seed, or one artist's where rows are alone.

    Attributes:
        settings: see ``Settings``.
        row: which.
        seed: of weights and lessons.
        splits: artists in common; one where the row is alone.
        material: public photos.
        checkpoints: rounds whose result is kept.
        folder: of the cache.
    """

    settings: Settings
    row: RowName
    seed: int
    splits: Mapping[str, Split]
    material: tuple[Path, ...]
    checkpoints: tuple[int, ...]
    folder: Path

    def key(self, finished_round: int) -> Key:
        """Names the state after so many rounds: how many more were planned does not matter."""
        spared = ("steps", "learn_steps", "learn_rate", "full_cap")
        settings = {k: v for k, v in dataclasses.asdict(self.settings).items() if k not in spared}
        return key_of(
            {
                "what": "row",
                "row": self.row,
                "alone_from": self.settings.alone_from if self.row == "fine-tune" else 0,
                "seed": self.seed,
                "round": finished_round,
                "settings": settings,
                "works": {artist: [file_digest(work) for work in works.trained] for artist, works in self.splits.items()},
                "material": [file_digest(photo) for photo in self.material],
                "code": code_digest(),
                "start": start_digest(self.settings),
            }
        )

    def key_of_newcomer(self, split: Split, *, full: bool) -> Key:
        """Names what a held-out artist makes of the final state, or of the start."""
        budget = [self.settings.full_cap] if full else [self.settings.learn_steps, self.settings.learn_rate]
        works = [file_digest(work) for work in (*split.trained, *(split.held if full else ()))]
        after = self.key(0 if self.row == "local" else self.settings.rounds)
        return key_of({"what": "full" if full else "newcomer", "after": after, "budget": budget, "works": works})


@cache
def file_digest(path: Path) -> str:
    """sha256 of a file."""
    return digest_of(path.read_bytes())


@cache
def code_digest() -> str:
    """sha256 of all code that decides what a row becomes."""
    return digest_of(b"".join((ROOT / name).read_bytes() for name in _CODE))


def start_digest(settings: Settings) -> str:
    """The release all rows start from, body and public codes; random weights are named by the seed."""
    return "" if settings.start == "random" else base.load(settings.tier).digest


@dataclass(slots=True)
class _Artist:
    """An artist on their machine: lessons, the tensors that are theirs, and the processor time they have spent."""

    lessons: Lessons[Any]
    own: Arrays
    cpu_s: float = 0.0
    residual: Flat | None = None
    moments: training.Moments = dataclasses.field(default_factory=training.Moments)


@dataclass(slots=True)
class _Federation:
    """A row between two rounds."""

    modality: Modality[Any, Any]
    net: Any
    shared: Arrays
    artists: dict[str, _Artist]
    velocity: Flat
    clipped: int = 0
    updates: int = 0
    norms: float = 0.0
    bytes_sent: int = 0


def train(chain: Chain) -> None:
    """Train a chain to its last checkpoint, from the last one that is in the cache."""
    kept = Cache(chain.folder)
    missing = [r for r in chain.checkpoints if not kept.has(chain.key(r))]
    if not missing:
        return
    done = max((r for r in chain.checkpoints if r < missing[0]), default=0)
    federation = _start(chain)
    if done:
        _resume_inplace(federation, kept.load(chain.key(done)))
    elif chain.row == "fine-tune":
        done = chain.settings.alone_from
        whole = dataclasses.replace(chain, row="fedavg")
        _resume_inplace(federation, _needed(kept, whole.key(done)))
        _part_inplace(federation)
    for number in range(done, chain.checkpoints[-1]):
        _round_inplace(federation, chain, number)
        if number + 1 in chain.checkpoints:
            kept.save(chain.key(number + 1), _as_arrays(federation), _as_facts(federation))


def _start(chain: Chain) -> _Federation:
    """Everybody at the same weights, each artist's code suited to their own works as far as that needs no training."""
    settings = chain.settings
    members = [tuple(chain.splits)] if chain.row == "centralised" else [(artist,) for artist in chain.splits]
    modality = settings.modality(len(members[0]))
    net = modality.build(chain.seed, codes=len(members[0]))
    _load_start_inplace(net, settings)
    fresh = _tensors(net)
    artists = {}
    for group in members:
        lessons = _lessons(modality, [chain.splits[artist].trained for artist in group], chain, group[0])
        state.load_inplace(net, fresh)
        for row in range(len(group)):
            choose_code_inplace(modality, net, row, lessons, settings)
        artists["+".join(group)] = _Artist(lessons, _tensors(net))
    shared = _common(modality, chain.row, [artist.own for artist in artists.values()])
    for artist in artists.values():
        artist.own = {name: array for name, array in artist.own.items() if name not in shared}
    body, _ = _parted(modality, shared)
    return _Federation(modality, net, shared, artists, np.zeros(sum(array.size for array in body.values()), np.float32))


def _common(modality: Modality[Any, Any], row: RowName, owned: Sequence[Arrays]) -> Arrays:
    """The tensors a row has in common, at the mean of where the artists start: equal bodies, codes suited to each."""
    names = owned[0] if row in ("fedavg", "fine-tune") else [name for name in owned[0] if modality.is_shared(name)]
    if row in ("local", "centralised"):
        return {}
    return {name: np.mean([arrays[name] for arrays in owned], axis=0, dtype=np.float32) for name in names}


def _load_start_inplace(net: Any, settings: Settings) -> None:
    if settings.start == "base":
        state.load_inplace(net, release.body_of(base.load(settings.tier)))


def choose_code_inplace(modality: Modality[Any, Any], net: Any, row: int, lessons: Lessons[Any], settings: Settings) -> None:
    """Start a code from the plain one, or from the best public one of the base, suited to the works, as a node does."""
    codes = modality.codes(net)
    starts = [codes[row]]
    if settings.start == "base":
        starts = [code for _, code in sorted(release.codes_of(base.load(settings.tier)).items())]
    tried = []
    for start in starts:
        codes[row] = start
        modality.set_codes_inplace(net, codes)
        modality.suit_inplace(net, row, (lessons.batch(step) for step in range(_SUITING_BATCHES)))
        score = modality.score(net, lessons.exam()).style if len(starts) > 1 else 0.0
        tried.append((score, modality.codes(net)[row]))
    codes[row] = min(tried, key=lambda pair: pair[0])[1]
    modality.set_codes_inplace(net, codes)


def _lessons(modality: Modality[Any, Any], works: Sequence[Sequence[Path]], chain: Chain, who: str) -> Lessons[Any]:
    """An artist's lessons: their own draws of photos and crops, the same ones in every row."""
    targets = [[read(work) for work in group] for group in works]
    frozen = backbones.load_all(modality.backbones)
    return modality.lessons(targets, [read(photo) for photo in chain.material], frozen, _lesson_seed(chain.seed, who))


def _lesson_seed(seed: int, who: str) -> int:
    return seed * 2**32 + zlib.crc32(who.encode())


def read(path: Path) -> Work:
    """A picture, read as a node reads works."""
    return ingest.read_picture(path)


def _round_inplace(federation: _Federation, chain: Chain, number: int) -> None:
    """Every artist trains from the common tensors; these then move by the mean of what came back."""
    body, rest = _parted(federation.modality, federation.shared)
    layouts, flats = _layouts(body, rest), _flats(body, rest)
    sent: list[list[Flat]] = []
    for who, artist in federation.artists.items():
        trained = _trained(federation, artist, chain, number)
        artist.own = {name: trained[name] for name in artist.own}
        deltas = [layout.flatten({n: trained[n] for n in layout.names}) - f for layout, f in zip(layouts, flats, strict=True)]
        if deltas:
            rng = np.random.default_rng((_lesson_seed(chain.seed, who), number))
            deltas[0] = _sent(federation, artist, chain.settings, layouts[0], deltas[0], rng)
        sent.append(deltas)
    moved: Arrays = {}
    for i, (layout, flat) in enumerate(zip(layouts, flats, strict=True)):
        parts = [Contribution(deltas[i], 1) for deltas in sent]
        movement = aggregate.mean(lambda parts=parts: parts, 1, float("inf"))  # type: ignore[misc]  # clipped already
        change = aggregate.moved(flat, movement) - flat
        if i == 0:
            federation.velocity = chain.settings.server_momentum * federation.velocity + change
            change = federation.velocity
        moved |= layout.unflatten((flat + change).astype(np.float32))
    federation.shared = moved


def _parted(modality: Modality[Any, Any], shared: Arrays) -> tuple[Arrays, Arrays]:
    """What a node may send, and what only FedAvg of everything sends besides."""
    body = {name: array for name, array in shared.items() if modality.is_shared(name)}
    return body, {name: array for name, array in shared.items() if name not in body}


def _layouts(*parts: Arrays) -> list[Layout]:
    return [Layout.of(part) for part in parts if part]


def _flats(*parts: Arrays) -> list[Flat]:
    return [Layout.of(part).flatten(part) for part in parts if part]


def _sent(
    federation: _Federation, artist: _Artist, settings: Settings, layout: Layout, delta: Flat, rng: np.random.Generator
) -> Flat:
    """What of a body's update arrives, clipped and compressed as a node's guard does it.

    Codes and statistics, which no node sends, are taken as they are.
    """
    length = privacy.norm(delta)
    federation.norms += length
    federation.clipped += length > settings.clip
    federation.updates += 1
    if settings.keep == 1:
        return privacy.clip(delta, settings.clip)
    wanted = privacy.clip(delta if artist.residual is None else delta + artist.residual, settings.clip)
    payload = compression.compress(wanted, layout, settings.keep, settings.clip, rng)
    federation.bytes_sent += len(payload)
    arrived = compression.decompress(payload, layout)
    artist.residual = wanted - arrived
    return arrived


def _trained(federation: _Federation, artist: _Artist, chain: Chain, number: int) -> Arrays:
    """One artist's round, timed in processor seconds of this process."""
    settings, net = chain.settings, federation.net
    state.load_inplace(net, {**federation.shared, **artist.own})
    steps = settings.round_steps * (len(chain.splits) if chain.row == "centralised" else 1)
    plan = Plan(steps, first_step=number * steps, rate_scale=settings.rate, shared_scale=settings.body_rate)
    started = time.process_time()
    training.fit(net, federation.modality, artist.lessons, plan, moments=artist.moments)
    artist.cpu_s += time.process_time() - started
    return _tensors(net)


def _tensors(net: Any) -> Arrays:
    return {name: tensor.detach().numpy().copy() for name, tensor in net.state_dict().items()}


def _as_arrays(federation: _Federation) -> Arrays:
    """Common tensors under ``*/``, an artist's under their name, their optimiser's under ``~NAME``, what their updates left
    out under ``-NAME``, and the velocity.
    """
    own = {f"{name}/{key}": array for name, artist in federation.artists.items() for key, array in artist.own.items()}
    seen = {
        f"~{name}/{'/'.join(parameter)}/{key}": value.numpy()
        for name, artist in federation.artists.items()
        for parameter, state in artist.moments.seen.items()
        for key, value in state.items()
    }
    common = {f"*/{key}": array for key, array in federation.shared.items()}
    left = {f"-{name}/all": a.residual for name, a in federation.artists.items() if a.residual is not None}
    return {**common, **own, **seen, **left, "velocity": federation.velocity}


def _as_facts(federation: _Federation) -> dict[str, float]:
    times = {f"cpu_s/{name}": artist.cpu_s for name, artist in federation.artists.items()}
    counts = {"clipped": federation.clipped, "updates": federation.updates, "bytes_sent": federation.bytes_sent}
    return {**times, **counts, "norms": federation.norms}


def _resume_inplace(federation: _Federation, piece: Piece | None) -> None:
    if piece is None:
        raise SystemExit("a checkpoint in the cache is damaged; remove the cache folder and start again")
    federation.shared = _under(piece.arrays, "*")
    for name, artist in federation.artists.items():
        artist.own = {**federation.shared, **_under(piece.arrays, name)}
        artist.own = {key: array for key, array in artist.own.items() if key not in federation.shared}
        artist.cpu_s = piece.facts[f"cpu_s/{name}"]
        artist.residual = _under(piece.arrays, f"-{name}").get("all")
        for place, array in _under(piece.arrays, f"~{name}").items():
            objective, parameter, key = place.split("/")
            artist.moments.seen.setdefault((objective, parameter), {})[key] = torch.tensor(array)
    federation.velocity = piece.arrays["velocity"]
    federation.clipped, federation.updates = int(piece.facts["clipped"]), int(piece.facts["updates"])
    federation.norms, federation.bytes_sent = piece.facts["norms"], int(piece.facts["bytes_sent"])


def _part_inplace(federation: _Federation) -> None:
    """From now on every artist has all tensors to themselves."""
    for artist in federation.artists.values():
        artist.own = {**artist.own, **federation.shared}
    federation.shared = {}


def _under(arrays: Arrays, owner: str) -> Arrays:
    return {key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(f"{owner}/")}


def _needed(kept: Cache, key: Key) -> Piece:
    piece = kept.load(key)
    if piece is None:
        raise SystemExit("a row that another one starts from is missing from the cache; run the bench again")
    return piece


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A held-out artist, and what they start from.

    Attributes:
        chain: the row they come to; ``local`` has no common body, they start where everybody did.
        artist: their name.
        split: their works.
        full: train the body, too, as long as it helps.
    """

    chain: Chain
    artist: str
    split: Split
    full: bool = False

    @property
    def key(self) -> Key:
        """Of the result."""
        return self.chain.key_of_newcomer(self.split, full=self.full)


def welcome(newcomer: Newcomer) -> None:
    """Fit a held-out artist to a row's final body, or train the two together from there, unless the cache has it."""
    kept, chain, settings = Cache(newcomer.chain.folder), newcomer.chain, newcomer.chain.settings
    if kept.has(newcomer.key):
        return
    modality = settings.modality(artists=0)
    net = modality.build(chain.seed)
    _load_start_inplace(net, settings)
    if chain.row != "local":
        arrays = _needed(kept, chain.key(settings.rounds)).arrays
        final = next(iter(networks(arrays, chain.row, tuple(chain.splits)).values()))
        state.load_inplace(net, {name: array for name, array in final.items() if modality.is_shared(name)})
    lessons = _lessons(modality, [newcomer.split.trained], chain, newcomer.artist)
    choose_code_inplace(modality, net, 0, lessons, settings)
    _settle(net, modality, lessons)
    facts = (
        _full_inplace(net, modality, lessons, newcomer) if newcomer.full else _code_inplace(net, modality, lessons, settings)
    )
    kept.save(newcomer.key, {f"{newcomer.artist}/{name}": array for name, array in _tensors(net).items()}, facts)


@torch.no_grad()
def _settle(net: Any, modality: Modality[Any, Any], lessons: Lessons[Any]) -> None:
    """Let the running statistics see some pictures before anything relies on them, as a node does."""
    for step in range(_SETTLING_BATCHES):
        modality.objectives[0].loss(net, lessons.batch(step))


def _code_inplace(net: Any, modality: Modality[Any, Any], lessons: Lessons[Any], settings: Settings) -> dict[str, float]:
    """The code alone, with the budget of ``sfumato learn``."""
    started = time.process_time()
    training.fit(net, modality, lessons, Plan(settings.learn_steps, private_only=True, rate_scale=settings.learn_rate))
    return {"cpu_s": time.process_time() - started, "steps": settings.learn_steps}


def _full_inplace(net: Any, modality: Modality[Any, Any], lessons: Lessons[Any], newcomer: Newcomer) -> dict[str, float]:
    """Body and code, until the score on works not trained on gains less than 1 % in 500 steps, or the cap is reached."""
    settings, spent, steps = newcomer.chain.settings, 0.0, 0
    unseen = _lessons(modality, [newcomer.split.held], newcomer.chain, newcomer.artist)
    scores, moments = [modality.score(net, unseen.exam()).style], training.Moments()
    while steps < settings.full_cap:
        # Rounds as long as everybody's, so that the rates are the same; the score is taken every 500 steps.
        until = min(settings.full_cap, steps + _FULL_WINDOW)
        while steps < until:
            plan = Plan(
                min(settings.round_steps, until - steps),
                first_step=steps,
                rate_scale=settings.rate,
                shared_scale=settings.body_rate,
            )
            started = time.process_time()
            training.fit(net, modality, lessons, plan, moments=moments)
            spent += time.process_time() - started
            steps += plan.steps
        scores.append(modality.score(net, unseen.exam()).style)
        if steps % _FULL_WINDOW == 0 and has_converged(scores):
            break
    converged = steps % _FULL_WINDOW == 0 and has_converged(scores)
    return {"cpu_s": spent, "steps": steps, "converged": float(converged), "score": scores[-1]}


def has_converged(scores: Sequence[float]) -> bool:
    """Whether the last window gained less than a hundredth."""
    return scores[-1] > (1 - _FULL_GAIN) * scores[-2]


def networks(arrays: Arrays, row: RowName, artists: Sequence[str]) -> dict[str, Arrays]:
    """Each artist's whole network with its one code, from a cached piece of a row."""
    shared = _under(arrays, "*")
    if row != "centralised":
        return {artist: {**shared, **_under(arrays, artist)} for artist in artists}
    whole = _under(arrays, "+".join(artists))
    private = ("codes", "norm_mean", "norm_var")
    return {
        artist: {name: array[i : i + 1] if name in private else array for name, array in whole.items()}
        for i, artist in enumerate(artists)
    }
