"""What updates give away, measured: inversion, membership, and who made them, on the real model with defences off and on.

    scripts/bench privacy --works DIR            # three quarters of an hour on two cores
    scripts/bench privacy --works DIR --quick    # some minutes: whether it runs, and no figure to be quoted

DIR holds a folder of works for each artist. Nodes train a round from the base of the kiosk tier as the program does, and what
leaves goes through the program's own guard. The attacker knows all but the works: the base, the photos, the seed of the
lessons, the private code. Rows are the update as it would be without any defence; clipped; as it leaves by default (clipped,
the largest twentieth of its numbers, eight bits each); that with noise of 10 and of 100 % of its own length in the policy; and
the sum of all artists' updates, which is all that a veiled round shows.

Each attack is first shown to work where it must: the same code rebuilds a work from a small dense network's gradient, both
ways; the same membership score tells the one work of a node whose body was let loose on it. If a control fails, the bench says
so and ends with 1.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402
from torch import Tensor  # noqa: E402

from edge_node import guard  # noqa: E402
from edge_node import train as node_training  # noqa: E402
from edge_node.ingest import read_picture  # noqa: E402
from export import backbones, base, release  # noqa: E402
from export.files import write_atomic  # noqa: E402
from export.policy import Policy  # noqa: E402
from models import codecs, compression, masking, privacy, state, training  # noqa: E402
from models.contract import Work  # noqa: E402
from models.modalities import style  # noqa: E402
from models.perceptual import Moments, moments  # noqa: E402
from models.samplers import Code  # noqa: E402
from models.update import Assignment, Layout  # noqa: E402
from scripts import inversion  # noqa: E402
from scripts.federation import pictures, works_of  # noqa: E402

Doubles: TypeAlias = npt.NDArray[np.float64]

TIER: Final = "style-kiosk"
ROWS: Final = ("nothing", "clip", "default", "noise 10 %", "noise 100 %")
VEILED: Final = "veiled"
RECOVERED_DB: Final = 20.0
AUC_GOAL: Final = 0.60
_SIDE: Final = 480
_DRAWS: Final = 2000
_EXAMS: Final = 2
_PERCEPTUAL: Final = "vgg19"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done.

    Attributes:
        seeds: splits of each artist's works.
        steps: of a node's round.
        inversions: works at once → steps of the attack.
        veiled_steps: of the attack on a sum.
        overfit_steps: of the membership control.
    """

    seeds: int
    steps: int
    inversions: Mapping[int, int]
    veiled_steps: int
    overfit_steps: int


FULL: Final = Scale(5, 30, {1: 150, 8: 40, 32: 12}, 30, 120)
QUICK: Final = Scale(1, 3, {1: 3}, 2, 6)


@dataclass(frozen=True, slots=True)
class Told:
    """What one node's round came to, in each row.

    Attributes:
        artist, seed, half: whose, and of which half of the works.
        updates: (rows, size) float32.
        scores: (rows, members and others) how much nearer to each work the body came.
        is_member: (members and others,).
        code: the private code after the round.
    """

    artist: str
    seed: int
    half: int
    updates: npt.NDArray[np.float32]
    scores: Doubles
    is_member: npt.NDArray[np.bool_]
    code: Code


# --- Rounds, as a node holds them ----------------------------------------------------------------------------------------


def policies(length: float) -> dict[str, Policy | None]:
    """What each row lets out of updates of about that length."""
    usual = Policy("bench", 1, TIER, steps=1)
    return {
        "nothing": None,
        "clip": replace(usual, clip=length, keep=1.0),
        "default": replace(usual, clip=length),
        "noise 10 %": replace(usual, clip=length, noise=0.1),
        "noise 100 %": replace(usual, clip=length, noise=1.0),
    }


def let_out(movement: npt.NDArray[np.float32], layout: Layout, asked: Policy | None, seed: int) -> npt.NDArray[np.float32]:
    """What of a movement leaves under a policy, by the program's own guard."""
    if asked is None:
        return movement
    start = np.zeros(layout.size, np.float32)
    assignment = Assignment("bench", TIER, 1, "0" * 64, start, layout.digest)
    trained = guard.Trained(layout.unflatten(movement), 1.0, 1.0, 1)
    key, rng = Ed25519PrivateKey.generate(), np.random.default_rng(seed)
    sealed = guard.seal(assignment, asked, trained, layout, np.zeros(layout.size, np.float32), key, rng)
    return compression.decompress(sealed.update.payload, layout)


def round_of(
    works: Sequence[Work], code: Code, seed: int, steps: int, body_rate: float | None = None
) -> tuple[Any, npt.NDArray[np.float32]]:
    """Train as a node does in a round, its code going on from one; the pupil, and how far the body moved."""
    source = base.load(TIER)
    pupil = node_training._Pupil.of(source, works, code, rehearses=True, seed=seed)  # noqa: SLF001 - the very one
    layout = state.body_layout(pupil.modality)
    before = layout.flatten(state.shared_arrays(pupil.modality, pupil.net))
    shared = node_training._BODY_RATE if body_rate is None else body_rate  # noqa: SLF001
    plan = training.Plan(steps, rate_scale=node_training._ROUND_RATE, shared_scale=shared)  # noqa: SLF001
    training.fit(pupil.net, pupil.modality, pupil.lessons, plan)
    return pupil, layout.flatten(state.shared_arrays(pupil.modality, pupil.net)) - before


def halves(count: int, seed: int) -> list[list[int]]:
    """Works in two halves."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    return [sorted(order[: count // 2]), sorted(order[count // 2 :])]


def hold(artist: str, folder: Path, code: Code, seed: int, half: int, steps: int, body_rate: float | None = None) -> Told:
    """A node's round on one half of an artist's works, and how the other half takes it; or, as a control, on a single work and
    with the body let loose at the rate that is given.
    """
    torch.set_num_threads(1)
    works = works_in(folder)
    members = halves(len(works), seed)[half] if body_rate is None else [seed % len(works)]
    pupil, movement = round_of([works[i] for i in members], code, 100 * seed + half, steps, body_rate)
    layout = state.body_layout(pupil.modality)
    sent = np.stack([let_out(movement, layout, asked, seed) for asked in policies(privacy.norm(movement)).values()])
    scores = nearer(pupil, layout, sent, works)
    return Told(artist, seed, half, sent, scores, np.isin(np.arange(len(works)), members), pupil.code())


def summed(told: Sequence[Told]) -> npt.NDArray[np.float32]:
    """What a veiled round of some nodes shows, by the program's own rounding: their sum and no more."""
    movements = [one.updates[0] for one in told]
    clip = max(map(privacy.norm, movements))
    rng = np.random.default_rng(told[0].seed)
    words = [masking.encode(movement, clip, len(told), rng) for movement in movements]
    total = np.add.reduce(words, dtype=words[0].dtype)
    return masking.decode_sum(total, clip, len(told), len(told)).astype(np.float32)


def hold_veiled(folder: Path, one: Told, total: npt.NDArray[np.float32]) -> Told:
    """The same round, of which only the sum was seen."""
    torch.set_num_threads(1)
    works = works_in(folder)
    members = [works[i] for i in np.flatnonzero(one.is_member)]
    pupil = node_training._Pupil.of(  # noqa: SLF001 - the very one
        base.load(TIER), members, one.code, rehearses=True, seed=100 * one.seed + one.half
    )
    scores = nearer(pupil, state.body_layout(pupil.modality), total[None], works)
    return replace(one, updates=total[None], scores=scores)


def nearer(pupil: Any, layout: Layout, sent: npt.NDArray[np.float32], works: Sequence[Work]) -> Doubles:
    """(updates, works) how much nearer each update takes the body to each work."""
    start, targets = layout.flatten(release.body_of(base.load(TIER))), [target_of(work) for work in works]
    before = distances(pupil, layout, start, targets)
    return np.stack([before - distances(pupil, layout, start + one, targets) for one in sent])


def works_in(folder: Path) -> list[Work]:
    """An artist's works, at the size they are learned from."""
    return [codecs.fit_within(read_picture(path), _SIDE) for path in pictures(folder)]


# --- Membership ----------------------------------------------------------------------------------------------------------


def target_of(work: Work) -> list[Moments]:
    """A work's own statistics, as lessons take them."""
    frozen = backbones.load_all((_PERCEPTUAL,))[_PERCEPTUAL]
    return style._targets(frozen, [work])  # noqa: SLF001 - the very measure


@torch.no_grad()
def distances(pupil: Any, layout: Layout, body: npt.NDArray[np.float32], targets: Sequence[list[Moments]]) -> Doubles:
    """(works,) how far pictures painted with a body and the node's own code are from each work."""
    frozen = backbones.load_all((_PERCEPTUAL,))[_PERCEPTUAL]
    state.load_inplace(pupil.net, layout.unflatten(body.astype(np.float32)))
    found = np.zeros(len(targets))
    row = len(pupil.modality.codes(pupil.net)) - 1
    batches = list(islice(pupil.lessons.exam(), _EXAMS))
    for batch in batches:
        picture, _ = pupil.net(batch.photo, pupil.net.codes[[row]])
        painted = style._scales(frozen, style._without_rim(picture).clamp(0, 1))  # noqa: SLF001
        found += [float(style._style_distance(painted, _batched(target))) for target in targets]  # noqa: SLF001
    return found / len(batches)


def _batched(target: list[Moments]) -> list[Moments]:
    return [Moments(layer.mean[None], layer.covariance[None]) for layer in target]


@dataclass(frozen=True, slots=True)
class Auc:
    """How well a score tells members.

    Attributes:
        value, low, high: of the area under the curve; 95 %, drawn over trainings.
        at_one_percent: share of members told at 1 % of others taken for one.
        pairs: of a member and another work of the same artist, each work once.
    """

    value: float
    low: float
    high: float
    at_one_percent: float
    pairs: int


def auc_of(members: Sequence[Doubles], others: Sequence[Doubles], splits: Sequence[object] = (), seed: int = 0) -> Auc:
    """Within each training, since what is near to one artist's body is another matter; then over all of them.

    Args:
        members: scores of each training's members.
        others: of as many trainings' other works.
        splits: which trainings are drawn together, as those on two halves are: each one's members are the other's others.
            Each by itself if left out.
        seed: of the draws.
    """
    each = np.array([_area(ms, os) for ms, os in zip(members, others, strict=True)])
    weights = np.array([min(len(ms), len(os)) for ms, os in zip(members, others, strict=True)], np.float64)
    drawn_together: dict[object, list[int]] = {}
    for i, split in enumerate(splits or range(len(each))):
        drawn_together.setdefault(split, []).append(i)
    groups, rng, drawn = list(drawn_together.values()), np.random.default_rng(seed), []
    for _ in range(_DRAWS):
        at = [i for group in rng.integers(len(groups), size=len(groups)) for i in groups[group]]
        drawn.append(np.average(each[at], weights=weights[at]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    centred = [(ms - os.mean(), os - os.mean()) for ms, os in zip(members, others, strict=True)]
    least = np.quantile(np.concatenate([o for _, o in centred]), 0.99)
    told = float(np.mean(np.concatenate([m for m, _ in centred]) > least))
    return Auc(float(np.average(each, weights=weights)), float(low), float(high), told, int(weights.sum()))


def _area(members: Doubles, others: Doubles) -> float:
    """Share of pairs in which the member's score is higher; a tie counts half."""
    return float(np.mean((members[:, None] > others) + 0.5 * (members[:, None] == others)))


def membership(told: Sequence[Told], row: int) -> Auc:
    """The threshold attack on one row: what the body came nearer to was among the works."""
    return _auc_of([one.scores[row] for one in told], told)


def calibrated(told: Sequence[Told], row: int) -> Auc:
    """The same with each work held against itself: how much nearer the body came than bodies do that were trained on other
    works of the artist, since some works are easy to come near to (difficulty calibration, Watson et al. 2022, section 3). The
    attacker has trained those.
    """
    return _auc_of([_held_against_itself(one, told, row) for one in told], told)


def _auc_of(scores: Sequence[Doubles], told: Sequence[Told]) -> Auc:
    members = [score[one.is_member] for score, one in zip(scores, told, strict=True)]
    others = [score[~one.is_member] for score, one in zip(scores, told, strict=True)]
    return auc_of(members, others, [(one.artist, one.seed) for one in told])


def _held_against_itself(one: Told, told: Sequence[Told], row: int) -> Doubles:
    """(works,) scores, less the mean of those by the trainings that did not see the work."""
    shadows = [other for other in told if other.artist == one.artist and other is not one]
    scores = np.stack([other.scores[row] - other.scores[row].mean() for other in shadows])
    unseen = np.stack([~other.is_member for other in shadows])
    usual = np.sum(scores * unseen, axis=0) / np.maximum(unseen.sum(axis=0), 1)
    return np.asarray(one.scores[row] - usual)


# --- Attribution ---------------------------------------------------------------------------------------------------------


def attribution(told: Sequence[Told], row: int) -> float:
    """How often an update is nearest, by cosine, to one of the same artist's *other* works among all artists'.

    The attacker has trained on the halves that the updates in question were not made of.
    """
    right = 0
    for one in told:
        others = [t for t in told if t.seed == one.seed and t.half != one.half]
        cosines = [_cosine(one.updates[row], t.updates[0]) for t in others]
        right += others[int(np.argmax(cosines))].artist == one.artist
    return right / len(told)


def _cosine(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(one.astype(np.float64) @ other.astype(np.float64)) / lengths if lengths else 0.0


# --- Inversion -----------------------------------------------------------------------------------------------------------


def controls(work: Work) -> dict[str, float]:
    """PSNR of a work rebuilt from a small dense network's gradient: read off, and optimised."""
    small = torch.nn.functional.interpolate(_tensor(work)[None], size=(24, 24), mode="area")
    net = inversion.Dense(small[0].numel())
    weight, bias = inversion.dense_gradients(net, small)

    def gradient(guess: Tensor) -> Tensor:
        labels = torch.zeros(len(guess), dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(net(guess), labels)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(net.parameters()), create_graph=True)])

    rebuilt = inversion.rebuild(gradient(small).detach(), gradient, tuple(small.shape), 1500, seed=0)
    return {
        "read off": inversion.psnr(inversion.read_off(weight, bias, small.shape), small),
        "optimised": inversion.psnr(rebuilt.pictures, small),
    }


@dataclass(frozen=True, slots=True)
class Inverted:
    """What came of rebuilding works.

    Attributes:
        works: how many the node learned from.
        row: which defences.
        psnr: best of any rebuilt picture to any work.
        recovered: works of which one was rebuilt above 20 dB.
        cosine: how well the attack fitted.
        told: share of the right works among so many candidates that come first, by the gradient each would give.
    """

    works: int
    row: str
    psnr: float
    recovered: int
    cosine: float
    told: float


def invert(works: Sequence[Work], candidates: Sequence[Work], steps: int, rows: Sequence[str], seed: int) -> list[Inverted]:
    """Rebuild the works of one step's gradient, and look which candidates they are.

    One step and not a round: nobody averages less than that. The defences are those of the row, relative to the gradient. In
    the veiled row each work is another artist's, and what is seen is the sum of their gradients.
    """
    torch.set_num_threads(2)
    source = base.load(TIER)
    pupil = node_training._Pupil.of(source, works, code=None, rehearses=True, seed=seed)  # noqa: SLF001
    layout, frozen = state.body_layout(pupil.modality), backbones.load_all((_PERCEPTUAL,))[_PERCEPTUAL]
    code = len(pupil.modality.codes(pupil.net)) - 1
    batch = pupil.lessons.batch_of(code, 0)
    named = dict(pupil.net.named_parameters())
    body = [named[name] for name in layout.names]

    def gradient_to(targets: list[Moments]) -> Tensor:
        count = len(batch.photo)
        wide = [Moments(t.mean.expand(count, -1), t.covariance.expand(count, -1, -1)) for t in targets]
        loss = pupil.modality.objectives[0].loss(pupil.net, replace(batch, targets=wide))
        parts = torch.autograd.grad(loss, body, create_graph=True)
        return torch.cat([part.flatten() for part in parts])

    def statistics(guess: Tensor) -> list[Moments]:
        layers = [moments(layer) for layer in style._scales(frozen, guess)]  # noqa: SLF001
        return [Moments(layer.mean.mean(dim=0, keepdim=True), layer.covariance.mean(dim=0, keepdim=True)) for layer in layers]

    def gradient_of(guess: Tensor) -> Tensor:
        if rows == (VEILED,):
            return torch.stack([gradient_to(statistics(one[None])) for one in guess]).sum(dim=0)
        return gradient_to(statistics(guess))

    pooled = [[work] for work in works] if rows == (VEILED,) else [works]
    truths = [_batched(style._targets(frozen, one)) for one in pooled]  # noqa: SLF001 - the very measure
    plain = torch.stack([gradient_to(truth) for truth in truths]).sum(dim=0).detach().numpy().astype(np.float32)
    shown = torch.stack([_square(work) for work in works])
    gradients = [gradient_to(_batched(target_of(work))).detach() for work in candidates]
    right = {i for i, work in enumerate(candidates) if any(work is own for own in works)}
    found = []
    for row in rows:
        asked = None if row == VEILED else policies(privacy.norm(plain))[row]
        update = torch.from_numpy(let_out(plain, layout, asked, seed))
        rebuilt = inversion.rebuild(update, gradient_of, tuple(shown.shape), steps, seed)
        best, _, _ = inversion.best_match(rebuilt.pictures, shown)
        recovered = sum(inversion.best_match(rebuilt.pictures, work[None])[0] > RECOVERED_DB for work in shown)
        told = len(right & set(_ranked(update, gradients)[: len(right)])) / len(right)
        found.append(Inverted(len(works), row, best, recovered, rebuilt.cosine, told))
        print(f"{row}, {len(works)} works: {best:.1f} dB, cosine {rebuilt.cosine:.2f}, {told:.0%} told", flush=True)
    return found


def _ranked(update: Tensor, gradients: Sequence[Tensor]) -> list[int]:
    alike = [float(torch.nn.functional.cosine_similarity(update, one, dim=0)) for one in gradients]
    return sorted(range(len(alike)), key=lambda i: -alike[i])


def _tensor(work: Work) -> Tensor:
    return torch.from_numpy(work.copy()).permute(2, 0, 1).float() / 255


def _square(work: Work, side: int = 192) -> Tensor:
    """(3, side, side): what the attacker is judged against, the whole work at the size that is looked through."""
    return torch.nn.functional.interpolate(_tensor(work)[None], size=(side, side), mode="area")[0]


# --- The bench -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """What attackers got under some defences; a sum is nobody's, so that none can be told to be somebody's."""

    name: str
    inverted: list[Inverted]
    membership: Auc
    calibrated: Auc
    attribution: float | None


def main(words: Sequence[str] | None = None) -> int:
    """Command line; 1 if a control failed."""
    asked = parse(words)
    scale = QUICK if asked.quick else replace(FULL, seeds=asked.seeds)
    folders = works_of(asked.works)
    every = [codecs.fit_within(read_picture(p), _SIDE) for paths in folders.values() for p in paths]
    shown = controls(every[0])
    print(f"controls, dense network: read off {shown['read off']:.0f} dB, optimised {shown['optimised']:.1f} dB", flush=True)
    with ProcessPoolExecutor(asked.jobs) as pool:
        starts = dict(zip(folders, pool.map(start_of, [asked.works / artist for artist in folders]), strict=True))
        seeds, jobs = range(scale.seeds), [(artist, asked.works / artist, starts[artist]) for artist in folders]
        rounds = [(asked.cache, *job, seed, half, scale.steps, None) for seed in seeds for job in jobs for half in (0, 1)]
        wild = [(asked.cache, *job, seed, 0, scale.overfit_steps, 1.0) for seed in seeds for job in jobs]
        fitted = list(pool.map(_hold, wild))
        overfit = {"threshold": membership(fitted, 0), "calibrated": calibrated(fitted, 0)}
        print(f"controls, overfitted: {', '.join(f'{name} {_said(auc)}' for name, auc in overfit.items())}", flush=True)
        told = list(pool.map(_hold, rounds))
        sums = [summed([one for one in told if (one.seed, one.half) == (each.seed, each.half)]) for each in told]
        veiled = list(pool.map(hold_veiled, [asked.works / one.artist for one in told], told, sums))
    apart = {artist: calibrated([one for one in told if one.artist == artist], ROWS.index("default")) for artist in folders}
    for artist, auc in apart.items():
        print(f"by default, {artist} with {len(folders[artist])} works: calibrated {_said(auc)}", flush=True)
    sizes = [len(paths) for paths in folders.values()]
    tried = inverted(every, np.cumsum([0, *sizes[:-1]]).tolist(), scale)
    rows = [
        Row(name, [one for one in tried if one.row == name], membership(told, i), calibrated(told, i), attribution(told, i))
        for i, name in enumerate(ROWS)
    ]
    rows += [Row(VEILED, [one for one in tried if one.row == VEILED], membership(veiled, 0), calibrated(veiled, 0), None)]
    failed = [name for name, value in shown.items() if value <= RECOVERED_DB]
    failed += [f"overfitted, {name}" for name, auc in overfit.items() if auc.low <= AUC_GOAL and not asked.quick]
    table = tabled(rows, len(folders), len(every))
    found = {
        "controls": shown,
        "overfitted": {name: asdict(auc) for name, auc in overfit.items()},
        "rows": [asdict(row) for row in rows],
        "default, by artist": {artist: {"works": len(folders[artist]), **asdict(auc)} for artist, auc in apart.items()},
        "failed": failed,
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "privacy.json").write_text(json.dumps(found, indent=1) + "\n")
    (asked.out / "privacy.md").write_text(table)
    plot(rows, overfit, len(folders), asked.out / "privacy.png")
    print(table)
    if failed:
        print(f"a control failed ({', '.join(failed)}): the figures above say nothing", file=sys.stderr)
    return 1 if failed else 0


def _hold(job: tuple[Path, str, Path, Code, int, int, int, float | None]) -> Told:
    """A round, unless it was held before: a bench that was interrupted goes on."""
    cache, artist, folder, code, seed, half, steps, rate = job
    kept = cache / f"{artist}-{seed}-{half}-{steps}-{rate}.npz"
    if not kept.exists():
        told = hold(artist, folder, code, seed, half, steps, rate)
        cache.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, updates=told.updates, scores=told.scores, is_member=told.is_member, code=told.code)
        write_atomic(kept, buffer.getvalue())
    with np.load(kept) as found:
        return Told(artist, seed, half, found["updates"], found["scores"], found["is_member"], found["code"])


def start_of(folder: Path) -> Code:
    """The code that a node of an artist begins its rounds with."""
    torch.set_num_threads(1)
    return node_training._Pupil.of(base.load(TIER), works_in(folder), code=None).code()  # noqa: SLF001 - the very one


def inverted(every: Sequence[Work], firsts: Sequence[int], scale: Scale) -> list[Inverted]:
    """The inversions: of one work in every row, of more at once without defences and by default, of each artist's first veiled.

    Args:
        every: all works, an artist's after another's.
        firsts: where each artist's begin.
        scale: see there.
    """
    found = []
    for count, steps in scale.inversions.items():
        chosen = np.random.default_rng(count).permutation(len(every))[: min(count, len(every))]
        rows = ROWS if count == 1 else ("nothing", "default")
        found += invert([every[i] for i in chosen], every, steps, rows, seed=count)
    return found + invert([every[i] for i in firsts], every, scale.veiled_steps, (VEILED,), seed=0)


def tabled(rows: Sequence[Row], artists: int, works: int) -> str:
    """The table, in Markdown."""
    lines = [
        f"| defences | rebuilt (1, 8, 32) | works told of {works} | membership AUC | calibrated | artist told of {artists} |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        rebuilt = ", ".join(f"{one.psnr:.1f}" for one in row.inverted)
        told = ", ".join(f"{one.told:.0%}" for one in row.inverted)
        areas = f"{_said(row.membership)} | {_said(row.calibrated)}"
        artist = "-" if row.attribution is None else f"{row.attribution:.0%}"
        lines.append(f"| {row.name} | {rebuilt} dB | {told} | {areas} | {artist} |")
    return "\n".join(lines) + "\n"


def _said(auc: Auc) -> str:
    return f"{auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f})"


def plot(rows: Sequence[Row], overfit: Mapping[str, Auc], artists: int, path: Path) -> None:
    """Membership and attribution by defences, with the controls."""
    importlib.import_module("matplotlib").use("agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    ink = "#333333"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    names = [*(row.name for row in rows), "overfitted\n(control)"]
    places = np.arange(len(names))
    series = {
        "threshold": ([*(row.membership for row in rows), overfit["threshold"]], "#8fb5cf"),
        "calibrated": ([*(row.calibrated for row in rows), overfit["calibrated"]], "#1f5f8b"),
    }
    for i, (label, (aucs, colour)) in enumerate(series.items()):
        errors = [[a.value - a.low for a in aucs], [a.high - a.value for a in aucs]]
        at, heights = places + 0.36 * (i - 0.5), [a.value for a in aucs]
        left.bar(at, heights, yerr=errors, color=colour, width=0.34, ecolor=ink, label=label)
    left.legend(frameon=False, fontsize=8, loc="upper left")
    left.axhline(AUC_GOAL, linestyle=":", color=ink)
    left.axhline(0.5, color=ink, linewidth=0.8)
    left.set_ylim(0.3, 1)
    left.set_ylabel("membership AUC", color=ink)
    told = [100 * row.attribution for row in rows if row.attribution is not None]
    right.bar(places[: len(told)], told, color="#1f5f8b", width=0.6)
    right.axhline(100 / artists, color="#d1495b", linewidth=1.2, label="by chance")
    right.legend(frameon=False, fontsize=8, loc="upper left")
    right.set_ylabel("% of updates told to be their artist's", color=ink)
    right.set_ylim(0, 100)
    for panel, count in ((left, len(names)), (right, len(told))):
        panel.set_xticks(places[:count], names[:count], fontsize=8, rotation=20)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("What does an update give away?", x=0.01, ha="left", fontsize=14, fontweight="bold", color=ink)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench privacy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--works", type=Path, required=True, help="a folder for each artist")
    add("--out", type=Path, default=ROOT / "scripts" / "results")
    add("--cache", type=Path, default=ROOT / "build" / "privacy", help="rounds that were held; an interrupted bench goes on")
    add("--seeds", type=int, default=FULL.seeds, help="splits of each artist's works; five of 45 works make 210 pairs")
    add("--jobs", type=int, default=2, help="processes")
    add("--quick", action="store_true", help="whether it runs, and no figure to be quoted")
    return parser.parse_args(words)


if __name__ == "__main__":
    raise SystemExit(main())
