"""What the federation bench found: targets met and missed, a table, and everything as plain data. Pure.

Numbers of a row are arrays (seeds, artists, photos); how intervals are drawn from them is ``scripts/bootstrap.py``'s business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from scripts import bootstrap
from scripts.bootstrap import Interval
from scripts.judges import Validation
from scripts.references import LITE
from scripts.verdicts import JUDGES, MEASURES, REAL

Floats: TypeAlias = npt.NDArray[np.float64]
Outcome = Literal["met", "met on average", "met so far", "missed", "not measured"]

SHIPPED: Final = "sfumato learn"  # on the base that comes with the program
CONTENT_FLOOR: Final = 0.45  # luminance SSIM of a picture that is still of its photo
WORK_S: Final = 60.0  # of an artist's processor, at which ours is held against learning alone
_CONVERGED: Final = 0.02  # of the style distance, gained in the last half of the steps


@dataclass(frozen=True, slots=True)
class Curve:
    """A row over its checkpoints.

    Attributes:
        steps: (C,) batches an artist has taken.
        cpu_s: (C, seeds, artists) processor seconds of each artist's training.
        verdicts: (C, seeds, artists, photos, measures).
        bodies: how many there are in the end.
        sent: bytes an artist sent in all, on average.
        clipped: share of updates that the clip shortened; NaN where nothing is sent.
        norm: mean norm of the updates before clipping.
    """

    steps: tuple[int, ...]
    cpu_s: Floats
    verdicts: Floats
    bodies: int
    sent: float
    clipped: float = math.nan
    norm: float = math.nan

    @property
    def final(self) -> Floats:
        """(seeds, artists, photos, measures) at the last checkpoint."""
        last: Floats = self.verdicts[-1]
        return last

    def at_seconds(self, seconds: float) -> Floats:
        """(seeds, artists, photos, measures) at that much processor time an artist, between checkpoints on a line."""
        found = np.empty_like(self.final)
        for place in np.ndindex(self.cpu_s.shape[1:]):
            times, values = self.cpu_s[(slice(None), *place)], self.verdicts[(slice(None), *place)]
            right = int(np.clip(np.searchsorted(times, seconds), 1, max(1, len(times) - 1)))
            if len(times) == 1:
                found[place] = values[0]
                continue
            share = float(np.clip((seconds - times[right - 1]) / (times[right] - times[right - 1]), 0, 1))
            found[place] = (1 - share) * values[right - 1] + share * values[right]
        return found


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything measured.

    Attributes:
        validations: of all judges.
        curves: of the rows trained here.
        references: (seeds, artists, photos, measures) of what was not; photos may be fewer.
        newcomers: (seeds, 1, photos, measures) of the held-out artist, by row; "full" is full training.
        newcomer_steps: steps that full training took, and whether it had stopped gaining, each seed.
        artists, held_out: names.
        start: "random" or "base".
    """

    validations: Sequence[Validation]
    curves: Mapping[str, Curve]
    references: Mapping[str, Floats]
    newcomers: Mapping[str, Floats]
    newcomer_steps: Sequence[tuple[int, bool]]
    artists: Sequence[str]
    held_out: str
    start: str = "random"

    @property
    def deciding(self) -> list[str]:
        """Names of the valid judges."""
        return [one.judge for one in self.validations if one.is_valid]


@dataclass(frozen=True, slots=True)
class Target:
    """One promise and what became of it."""

    name: str
    judge: str
    bound: float
    found: Interval | None
    outcome: Outcome
    note: str = ""


def targets(findings: Findings) -> list[Target]:
    """Every target by every valid judge."""
    return [target for judge in findings.deciding for target in _targets_by(judge, findings)] + [
        _beats_lite("ours", findings.curves["ours"].final if "ours" in findings.curves else None, findings),
        _beats_lite(SHIPPED, findings.references.get(SHIPPED), findings),
    ]


def _targets_by(judge: str, findings: Findings) -> list[Target]:
    curves, newcomers, at = findings.curves, findings.newcomers, MEASURES.index(judge)
    ours, local = curves.get("ours"), curves.get("local")
    final = {name: curve.final for name, curve in curves.items()}
    mine = final.get("ours")
    found = [
        _target("ours ≤ 1.05 x centralised", judge, 1.05, mine, final.get("centralised"), at),
        _in_the_end(_target("ours ≤ 1.05 x local only in the end", judge, 1.05, mine, final.get("local"), at), ours, local, at),
    ]
    if findings.start == "random":  # from a base, a code is most of the way from the first second
        found.append(_at_work(judge, curves, at))
    stopped = ", ".join(f"{steps}{'' if done else ' (cap)'}" for steps, done in findings.newcomer_steps)
    onboarded = _target("held-out artist ≤ 1.10 x full training", judge, 1.1, newcomers.get("ours"), newcomers.get("full"), at)
    return [*found, _with_note(onboarded, f"full training took {stopped} steps" if stopped else "")]


def _at_work(judge: str, curves: Mapping[str, Curve], at: int) -> Target:
    """Ours against learning alone after a minute of an artist's work, if both have worked that long.

    The note says what all works in one place reach by then: no way to average updates will be expected to do better.
    """
    chosen = {name: curve for name, curve in curves.items() if name in ("ours", "local")}
    soon = {name: curve.at_seconds(WORK_S) for name, curve in curves.items()}
    found = _target("ours ≤ 0.8 x local only at 60 s of work", judge, 0.8, soon.get("ours"), soon.get("local"), at)
    reached = min((float(curve.cpu_s[-1].min()) for curve in chosen.values()), default=0.0)
    if found.found is None or reached >= WORK_S:
        return _with_note(found, _whole_said(soon, at))
    return Target(found.name, judge, found.bound, None, "not measured", f"the shortest training took {reached:.0f} s")


def _whole_said(soon: Mapping[str, Floats], at: int) -> str:
    if not {"centralised", "local"} <= set(soon):
        return ""
    return f"centralised is at {bootstrap.ratio(soon['centralised'][..., at], soon['local'][..., at]).value:.2f} by then"


def _target(name: str, judge: str, bound: float, some: Floats | None, others: Floats | None, at: int) -> Target:
    """A ratio of two rows by one judge, drawn alike."""
    if some is None or others is None:
        return Target(name, judge, bound, None, "not measured")
    found = bootstrap.ratio(some[..., at], others[..., at])
    return Target(name, judge, bound, found, _outcome(found, bound))


def _outcome(found: Interval, bound: float) -> Outcome:
    if found.high <= bound:
        return "met"
    return "met on average" if found.value <= bound else "missed"


def _with_note(target: Target, note: str) -> Target:
    return Target(target.name, target.judge, target.bound, target.found, target.outcome, note)


def _in_the_end(target: Target, ours: Curve | None, local: Curve | None, at: int) -> Target:
    """What a target is worth that holds of rows which have stopped gaining."""
    if ours is None or local is None or len(ours.steps) < 2 or len(local.steps) < 2:
        return target
    gains = [_late_gain(curve, at) for curve in (ours, local)]
    said = f"gained in the last half of the steps: ours {gains[0]:.1%}, local {gains[1]:.1%}"
    if max(gains) <= _CONVERGED:
        return _with_note(target, said)
    outcome: Outcome = "met so far" if target.outcome in ("met", "met on average") else target.outcome
    return Target(target.name, target.judge, target.bound, target.found, outcome, f"{said}; not yet converged")


def _late_gain(curve: Curve, at: int) -> float:
    """Share of the style distance lost between half of the steps, or the checkpoint nearest to it, and the end."""
    half = int(np.argmin([abs(steps - curve.steps[-1] / 2) for steps in curve.steps[:-1]]))
    return float(1 - curve.final[..., at].mean() / curve.verdicts[half][..., at].mean())


def _beats_lite(contender: str, mine: Floats | None, findings: Findings) -> Target:
    """Nearer to the artists than the peer, by two valid judges that are not partial to it, and still of the photo."""
    name = f"{contender} nearer than {LITE} by two judges at SSIM ≥ {CONTENT_FLOOR}"
    fair, peer = [j for j in findings.deciding if j != "magenta"], findings.references.get(LITE)
    if mine is None or peer is None or len(fair) < 2:
        return Target(name, "all", 1.0, None, "not measured")
    ratios = [bootstrap.ratio(mine[..., MEASURES.index(j)], peer[..., MEASURES.index(j)]) for j in fair]
    second = sorted(ratios, key=lambda ratio: ratio.value)[1]
    content = _content(mine)
    outcome = _outcome(second, 1.0) if content >= CONTENT_FLOOR else "missed"
    return Target(name, ", ".join(fair), 1.0, second, outcome, f"SSIM {content:.2f}, of {LITE} {_content(peer):.2f}")


def _content(cells: Floats) -> float:
    return float(cells[..., MEASURES.index("ssim")].mean())


def as_markdown(findings: Findings, settings: Mapping[str, object]) -> str:
    """The report as a page."""
    about = [
        "# Does federation help?",
        "",
        _setting_out(findings, settings),
        "",
    ]
    body = [
        *_table(findings),
        "",
        _updates_said(findings),
        "",
        *_newcomer_table(findings),
        "",
        *_target_table(targets(findings)),
        "",
        *_judges(findings, settings),
    ]
    return "\n".join([*about, *body]) + "\n"


def _setting_out(findings: Findings, settings: Mapping[str, object]) -> str:
    """What was compared, in a paragraph."""
    return (
        f"{len(findings.artists)} artists ({', '.join(findings.artists)}), {findings.held_out} held out entirely; "
        f"{settings['steps']} steps an artist in rounds of {settings['round_steps']}, {settings['tier']}, every row from "
        f"{_start_said(settings)}, seeds {_listed(settings['seeds'])}, splits by work, "
        f"{settings['photos']} photos never trained on. Style distance: to the mean of the artist's held-out works, where "
        "photos are about 1 from their own mean; lower is better. ± is half of a 95 % interval, artists, photos and seeds "
        "drawn anew (pigeonhole bootstrap, widened for so few). "
        "A judge in brackets failed its validation and decides nothing."
    )


def _listed(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)


def _start_said(settings: Mapping[str, object]) -> str:
    return "the same random weights" if settings["start"] == "random" else "the base body, which saw none of these artists"


def _table(findings: Findings) -> list[str]:
    head = [*_style_heads(findings), "SSIM", "edge F1", "bodies", "sent by an artist"]
    lines = ["| | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for name, cells in findings.references.items():
        lines.append(_line(name, cells, content=name != REAL) + " - | - |")
    for name, curve in findings.curves.items():
        shown = f"**{name}**" if name == "ours" else name
        lines.append(_line(shown, curve.final) + f" {curve.bodies} | {_bytes(curve.sent)} |")
    return lines


def _updates_said(findings: Findings) -> str:
    """How long updates were, and how many the clip made shorter."""
    rows = [f"{n}: norm {c.norm:.1f}, {c.clipped:.0%} clipped" for n, c in findings.curves.items() if math.isfinite(c.norm)]
    return f"Updates of the body before clipping, on average: {'; '.join(rows)}." if rows else ""


def _newcomer_table(findings: Findings) -> list[str]:
    if not findings.newcomers:
        return []
    head = [*_style_heads(findings), "SSIM", "edge F1"]
    lines = [f"{findings.held_out}, who took no part, afterwards:", ""]
    lines += ["| code fitted to the body of | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    names = {"local": "nobody (the start)", "full": "ours, trained on with the code"}
    return lines + [_line(names.get(name, name), cells) for name, cells in findings.newcomers.items()]


def _style_heads(findings: Findings) -> list[str]:
    return [judge if judge in findings.deciding else f"({judge})" for judge in JUDGES]


def _line(name: str, cells: Floats, *, content: bool = True) -> str:
    """A row of the table, up to the content measures."""
    numbers = [bootstrap.mean(cells[..., i]) for i in range(len(MEASURES))]
    styles = [f"{n.value:.2f} ± {n.half:.2f}" for n in numbers[: len(JUDGES)]]
    contents = [f"{n.value:.2f}" if content else "-" for n in numbers[len(JUDGES) :]]
    return f"| {name} | " + " | ".join([*styles, *contents]) + " |"


def _bytes(count: float) -> str:
    return "0" if not count else f"{count / 2**20:.1f} MiB"


def _target_table(found: Sequence[Target]) -> list[str]:
    lines = ["| target | judge | found (95 %) | outcome |", "| --- | --- | ---: | --- |"]
    for target in found:
        number = _found_said(target.found)
        outcome = f"**{target.outcome}**" if target.outcome == "missed" else target.outcome
        lines.append(f"| {target.name} | {target.judge} | {number} | {outcome}{'; ' + target.note if target.note else ''} |")
    return [*lines, "", _OUTCOMES_SAID]


_OUTCOMES_SAID: Final = (
    "*met on average*: the mean is within the bound, its interval reaches beyond. *met so far*: the rows had not stopped "
    "gaining when the steps were over."
)


def _found_said(found: Interval | None) -> str:
    return "-" if found is None else f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _judges(findings: Findings, settings: Mapping[str, object]) -> list[str]:
    distinct = settings["distinct"]
    hands = _listed(distinct)
    about = (
        "The judges on real works, before anything was trained. Accuracy: works left out one by one and given back to the "
        f"nearest artist, among folders of one hand: {hands} (and among all). Gap: how much farther a photo is "
        "than another work of the artist, in units of the ± of these tables, which is half a 95 % interval; over the whole "
        "interval it is half as many."
    )
    lines = [
        about,
        "",
        "| judge | accuracy (≥ 80 %) | among all | gap ± half its interval | gap / half interval (≥ 3) | valid |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in findings.validations:
        cells = [f"{one.accuracy:.0%} of {one.works}", f"{one.accuracy_all:.0%}", f"{one.gap.value:.2f} ± {one.gap.half:.2f}"]
        lines.append(f"| {one.judge} | {' | '.join(cells)} | {one.gap_in_intervals:.1f} | {'yes' if one.is_valid else 'no'} |")
    return lines


def as_plain(findings: Findings, settings: Mapping[str, object]) -> dict[str, object]:
    """The report as data."""
    return {
        "settings": dict(settings),
        "judges": [
            {**asdict(one), "valid": one.is_valid, "gap_in_intervals": one.gap_in_intervals} for one in findings.validations
        ],
        "rows": {name: _curve_plain(curve) for name, curve in findings.curves.items()},
        "references": {name: _means(cells) for name, cells in findings.references.items()},
        "held_out": {
            "artist": findings.held_out,
            "rows": {name: _means(cells) for name, cells in findings.newcomers.items()},
            "full_training": [{"steps": steps, "stopped_gaining": done} for steps, done in findings.newcomer_steps],
        },
        "targets": [asdict(target) for target in targets(findings)],
    }


def _curve_plain(curve: Curve) -> dict[str, object]:
    points = [
        {"steps": steps, "cpu_s": float(cpu.mean()), "means": _means(verdict)}
        for steps, cpu, verdict in zip(curve.steps, curve.cpu_s, curve.verdicts, strict=True)
    ]
    sent = {"share_clipped": _or_none(curve.clipped), "mean_norm": _or_none(curve.norm), "bytes_an_artist": curve.sent}
    return {"bodies": curve.bodies, "points": points, **sent}


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _means(cells: Floats) -> dict[str, object]:
    """Each measure with its interval, and by artist without."""
    return {
        measure: {**asdict(bootstrap.mean(cells[..., i])), "by_artist": cells[..., i].mean(axis=(0, 2)).round(4).tolist()}
        for i, measure in enumerate(MEASURES)
    }
