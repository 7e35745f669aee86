"""Whether a candidate body is good enough to publish, judged on public material alone.

The coordinator has no private code, so it renders the release's probe photos with its public codes, which it fits anew
for the candidate with a fixed budget and seed (body frozen), as every node will with its own. The candidate passes when

1. every number of it, and of its codes, is finite,
2. its style distance is at most 1.02 times the current body's, whose codes were fitted as much,
3. its pictures keep at least the current SSIM to the photos, less 0.02,
4. no pixel grid can be seen in its pictures,
5. its folded graph is of use, and so is its int8 graph: near enough to the exact one and to fp32 that styles can be
   compiled to them,
6. its pictures are no near copies of the public works it was trained on.

A refusal is a stated outcome: the current release stays, and everything goes on working.
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
from models.contract import Lessons, Score, Work
from models.measures import grid_peak_db
from models.originality import Originality, examine
from models.samplers import Code, paint
from models.update import Arrays

STYLE_RATIO: Final = 1.02
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A body that was judged, with everything a release of it needs."""

    body: Arrays
    exact: bytes
    codes: Mapping[str, Code]
    verdict: Verdict
    reasons: tuple[str, ...]
    originality: Originality | None = None

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
        _, self._before = self._fitted(release.body_of(current))
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
        grid, folded, parity = self._rendered(exact, codes)
        verdict = Verdict(
            style_before=self._before.style,
            style_after=score.style,
            content_before=self._before.content,
            content_after=score.content,
            grid=grid,
            int8_psnr_db=parity.psnr_db,
            int8_ssim=parity.ssim,
        )
        originality = self._compared(exact, codes)
        reasons = (*_reasons(verdict), *_unfoldable(folded), *_copies(originality))
        return Candidate(body, exact, codes, verdict, reasons, originality)

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

    def _rendered(self, exact: bytes, codes: Mapping[str, Code]) -> tuple[float, Folding, Parity]:
        """The worst grid over the styled public codes; of the first of them, folded against exact and int8 against fp32."""
        signature = self._current.manifest.signature
        engine = open_engine(exact, "candidate's exact")
        styled = [name for name in self._names if name != release.IDENTITY]
        grids = [grid_peak_db(paint(engine.run, signature, _smooth_photo(), codes[name])) for name in styled]
        photos, probes, code = self._photos[:_CALIBRATION], self._probes[:_PROBES], codes[styled[0]]
        folded = fold(exact, signature, code, calibrate(exact, signature, code, photos))
        live = [paint(engine.run, signature, probe, code) for probe in probes]
        frozen = self._painted(folded)
        try:
            int8 = int8_onnx(folded, signature, observe(folded, signature, photos), "onnxruntime")
            parity = compare(frozen, self._painted(int8))
        except QuantizeError:
            parity = Parity(0.0, 0.0)
        return max(grids), folding(live, frozen), parity

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
        worst = Verdict(self._before.style, float("inf"), self._before.content, 0.0, float("inf"), 0.0, 0.0)
        return Candidate(body, b"", {}, worst, (reason,))


def _reasons(verdict: Verdict) -> tuple[str, ...]:
    """What speaks against a candidate, in words. Written so that NaN fails every comparison."""
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
