"""Whether a candidate body is good enough to publish, judged on public material alone.

The coordinator has no private code, so it renders the release's probe photos with its public codes, which it fits anew
for the candidate with a fixed budget and seed (body frozen), as every node will with its own. The candidate passes when

1. every number of it, and of its codes, is finite,
2. its style distance is at most 1.02 times the current body's, whose codes were fitted as much,
3. its pictures keep at least the current SSIM to the photos, less 0.02,
4. no pixel grid can be seen in its pictures,
5. its folded graph is of use, and so is its int8 graph: near enough to the exact one and to fp32 that styles can be
   compiled to them,
6. what it paints in int8, which is what kiosks and artists see, is of a style distance of at most 1.05 times what the current
   body paints so (one public style: a graph must be calibrated for each),
7. its pictures are no near copies of the public works it was trained on.

A refusal is a stated outcome: the current release stays, and everything goes on working. Either way there is a strip of
pictures before and after, for a person to look at: no figure here knows what is beautiful.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from export import backbones, release
from export.fold import calibrate, fold
from export.manifest import Verdict
from export.parity import Folding, Parity, compare, folding
from export.processes import return_freed_memory
from export.quantize import QuantizeError, int8_onnx, observe
from export.runtime import open_engine
from export.signing import VerifiedRelease
from export.to_onnx import with_body
from models import registry, state, training
from models.codecs import fit_within
from models.contract import Lessons, Score, Work
from models.measures import grid_peak_db
from models.originality import Originality, examine
from models.samplers import Code, paint
from models.update import Arrays

STYLE_RATIO: Final = 1.02
INT8_STYLE_RATIO: Final = 1.05
"""As much as folding may cost on a node (`export/parity.py`); two probe photos say no more exactly."""
CONTENT_LOSS: Final = 0.02
GRID_DB: Final = 6.0
"""A grid peak below this is not seen (`models/measures.py`)."""
# Looser than what a node asks of its own graphs (`export/parity.py`), for a node that misses that paints with the exact graph
# or in fp32: here only a body that no style could be folded or quantised with is kept out.
_FOLD_COLOUR_DIFFERENCE: Final = 8.0
_FOLD_SSIM: Final = 0.75
_INT8_PSNR_DB: Final = 28.0
_INT8_SSIM: Final = 0.9
_FIT_SEED: Final = 20_260
_FIT_RATE: Final = 0.3  # of the modality's code rate: the codes start from ones that nearly fit
_PROBES: Final = 2  # photos the style is scored on; all of them are rendered for grid and parity
_CALIBRATION: Final = 8
_STRIP_HEIGHT: Final = 256
_STRIP_STYLES: Final = 4
_STRIP_GAP: Final = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A body that was judged, with everything a release of it needs."""

    body: Arrays
    exact: bytes
    codes: Mapping[str, Code]
    verdict: Verdict
    reasons: tuple[str, ...]
    originality: Originality | None = None
    strip: Work | None = None

    @property
    def passes(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


class Gate:
    """Judges candidates against one current release. Loads backbone and public material once."""

    def __init__(self, current: VerifiedRelease, fit_steps: int) -> None:
        self._current = current
        self._fit_steps = fit_steps
        self._modality = registry.find(current.manifest.modality)
        self._codes = release.codes_of(current)
        self._names = list(self._codes)
        works = release.pictures_of(current, release.WORKS)
        self._works = works
        targets = [[works[name]] if name in works else [] for name in self._names]
        self._probes = list(release.pictures_of(current, release.PROBE).values())
        self._photos = list(release.calibration_photos(current))
        frozen = backbones.load_all(self._modality.backbones)
        self._lessons: Lessons[Any] = self._modality.lessons(targets, self._photos, frozen, _FIT_SEED)
        self._exam = list(self._modality.lessons(targets, self._probes[:_PROBES], frozen, _FIT_SEED).exam())
        codes, self._before = self._fitted(release.body_of(current))
        exact = current.read(release.EXACT)
        self._painted_before = self._paintings(exact, codes)
        in_int8 = self._int8_pictures(exact, codes)[2]
        self._int8_before = self._int8_style(in_int8) if in_int8 else self._before.style
        return_freed_memory()

    def judge(self, body: Arrays) -> Candidate:
        """Fit, render and compare."""
        if not all(np.isfinite(array).all() for array in body.values()):
            return self._hopeless(body, "the body holds numbers that are not finite")
        try:
            codes, score = self._fitted(body)
        except training.DivergedError as error:
            return self._hopeless(body, str(error))
        exact = with_body(self._current.read(release.EXACT), body)
        grid = self._grid(exact, codes)
        folded, parity, in_int8 = self._int8_pictures(exact, codes)
        verdict = Verdict(
            style_before=self._before.style,
            style_after=score.style,
            content_before=self._before.content,
            content_after=score.content,
            grid=grid,
            int8_psnr_db=parity.psnr_db,
            int8_ssim=parity.ssim,
            int8_style_before=self._int8_before,
            int8_style_after=self._int8_style(in_int8),
        )
        originality = self._compared(exact, codes)
        reasons = (*_reasons(verdict), *_unfoldable(folded), *_copies(originality))
        strip = self._strip(self._paintings(exact, codes), in_int8)
        return Candidate(body, exact, codes, verdict, reasons, originality, strip)

    def _fitted(self, body: Arrays) -> tuple[Mapping[str, Code], Score]:
        """The public codes fitted to a body, from those of the current release, and how well they do.

        Raises:
            DivergedError: a loss was not finite.
        """
        net = self._modality.build(seed=0, codes=len(self._names))
        state.load_inplace(net, body)
        self._modality.set_codes_inplace(net, np.stack([self._codes[name] for name in self._names]))
        if self._fit_steps:
            plan = training.Plan(self._fit_steps, private_only=True, rate_scale=_FIT_RATE)
            training.fit(net, self._modality, self._lessons, plan)
        codes = dict(zip(self._names, self._modality.codes(net), strict=True))
        return codes, self._modality.score(net, self._exam)

    @property
    def _styled(self) -> list[str]:
        """The public codes that are of somebody's style."""
        return [name for name in self._names if name != release.IDENTITY]

    def _grid(self, exact: bytes, codes: Mapping[str, Code]) -> float:
        """The worst grid over the styled public codes."""
        signature, engine = self._current.manifest.signature, open_engine(exact, "candidate's exact")
        return max(grid_peak_db(paint(engine.run, signature, _smooth_photo(), codes[name])) for name in self._styled)

    def _int8_pictures(self, exact: bytes, codes: Mapping[str, Code]) -> tuple[Folding, Parity, list[Work]]:
        """Of the first styled code: folded against exact, int8 against fp32, and some probe photos as int8 paints them."""
        signature, engine = self._current.manifest.signature, open_engine(exact, "an exact")
        photos, probes, code = self._photos[:_CALIBRATION], self._probes[:_PROBES], codes[self._styled[0]]
        folded = fold(exact, signature, code, calibrate(exact, signature, code, photos))
        live = [paint(engine.run, signature, probe, code) for probe in probes]
        frozen = self._painted(folded)
        try:
            int8 = self._painted(int8_onnx(folded, signature, observe(folded, signature, photos), "onnxruntime"))
            parity = compare(frozen, int8)
        except QuantizeError:
            int8, parity = [], Parity(0.0, 0.0)
        return folding(live, frozen), parity, int8

    def _int8_style(self, pictures: list[Work]) -> float:
        """How far pictures are from the first styled code's works; without any, infinitely far."""
        return self._lessons.distance(self._names.index(self._styled[0]), pictures) if pictures else float("inf")

    def _paintings(self, exact: bytes, codes: Mapping[str, Code]) -> list[Work]:
        """The first probe photo by some of the styled codes."""
        signature, engine = self._current.manifest.signature, open_engine(exact, "an exact")
        return [paint(engine.run, signature, self._probes[0], codes[name]) for name in self._styled[:_STRIP_STYLES]]

    def _strip(self, after: list[Work], in_int8: list[Work]) -> Work:
        """Photo, before, after in a row for each style, and at the end of the first what it is in int8; white in between."""
        rows = [[self._probes[0], before, now] for before, now in zip(self._painted_before, after, strict=True)]
        rows[0] += in_int8[:1]
        return _mounted(rows)

    def _painted(self, graph: bytes) -> list[Work]:
        """Some probe photos, by a graph that needs no code."""
        engine = open_engine(graph, "candidate's")
        return [paint(engine.run, self._current.manifest.signature, probe, None) for probe in self._probes[:_PROBES]]

    def _compared(self, exact: bytes, codes: Mapping[str, Code]) -> Originality:
        """The styled public codes' pictures of the probe photos against the public works.

        A body learns from all of them and none is held out, so the photos alone are the reference of the ratio.
        """
        signature, engine = self._current.manifest.signature, open_engine(exact, "candidate's exact")
        styled = [name for name in self._names if name != release.IDENTITY]
        pictures = [paint(engine.run, signature, probe, codes[name]) for name in styled for probe in self._probes]
        return examine(pictures, self._probes * len(styled), self._works.items())

    def _hopeless(self, body: Arrays, reason: str) -> Candidate:
        worst = Verdict(
            style_before=self._before.style,
            style_after=float("inf"),
            content_before=self._before.content,
            content_after=0.0,
            grid=float("inf"),
            int8_psnr_db=0.0,
            int8_ssim=0.0,
            int8_style_before=self._int8_before,
            int8_style_after=float("inf"),
        )
        return Candidate(body, b"", {}, worst, (reason,))


def _reasons(verdict: Verdict) -> tuple[str, ...]:
    """What speaks against a candidate, in words. Written so that NaN fails every comparison."""
    unknown = float("nan")
    in_int8 = [unknown if f is None else f for f in (verdict.int8_style_before, verdict.int8_style_after)]
    checks = (
        (
            verdict.style_after <= STYLE_RATIO * verdict.style_before,
            f"style distance {verdict.style_after:.4f} against {verdict.style_before:.4f} before",
        ),
        (
            verdict.content_after >= verdict.content_before - CONTENT_LOSS,
            f"SSIM to the photos {verdict.content_after:.3f} against {verdict.content_before:.3f} before",
        ),
        (
            verdict.grid <= GRID_DB,
            f"a pixel grid of {verdict.grid:.1f} dB, where {GRID_DB:.0f} dB can be seen",
        ),
        (
            verdict.int8_psnr_db >= _INT8_PSNR_DB and verdict.int8_ssim >= _INT8_SSIM,
            f"int8 at {verdict.int8_psnr_db:.1f} dB and SSIM {verdict.int8_ssim:.3f} of fp32",
        ),
        (
            in_int8[1] <= INT8_STYLE_RATIO * in_int8[0],
            f"style distance in int8 {in_int8[1]:.4f} against {in_int8[0]:.4f} before",
        ),
    )
    return tuple(reason for passed, reason in checks if not passed)


def _unfoldable(found: Folding) -> tuple[str, ...]:
    """Pictures that change with frozen norms, in words."""
    if found.colour_difference <= _FOLD_COLOUR_DIFFERENCE and found.ssim >= _FOLD_SSIM:  # NaN is neither
        return ()
    return (f"with frozen norms its pictures change: colour difference {found.colour_difference:.1f}, SSIM {found.ssim:.2f}",)


def _copies(originality: Originality) -> tuple[str, ...]:
    """A near copy, in words. The work it names is a public one."""
    if not originality.is_copy:
        return ()
    return (f"its pictures are near copies of the public work {originality.nearest} (by {', '.join(originality.spoke)})",)


def _mounted(rows: list[list[Work]]) -> Work:
    """Pictures in rows on white, each of one height."""
    small = [[fit_within(picture, _STRIP_HEIGHT) for picture in row] for row in rows]
    height = max(picture.shape[0] for row in small for picture in row) + _STRIP_GAP
    width = max(picture.shape[1] for row in small for picture in row) + _STRIP_GAP
    columns = max(len(row) for row in small)
    sheet = np.full((height * len(small) + _STRIP_GAP, width * columns + _STRIP_GAP, 3), 255, np.uint8)
    for r, row in enumerate(small):
        for c, picture in enumerate(row):
            top, left = _STRIP_GAP + r * height, _STRIP_GAP + c * width
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def _smooth_photo(side: int = 256) -> Work:
    """Soft colours with a camera's noise: nothing in it that could hide a grid or be mistaken for one.

    Without the noise the steps of eight bits are the only detail there is, and norms that look at the picture alone blow
    them up into something no photo shows.
    """
    rows, columns = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    waves = (columns + rows / 2, rows - columns / 3 + 0.3, columns * rows + 0.6)
    colours = np.stack([128 + 70 * np.sin(4 * wave) for wave in waves], axis=2)
    noise = np.random.default_rng(_FIT_SEED).normal(0, 2.0, (side, side, 1))
    return (colours + noise).round().astype(np.uint8)
