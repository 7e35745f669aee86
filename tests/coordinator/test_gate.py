"""What the gate lets out: a body as good as the one before, and nothing worse. Real fits and renderings, a small network."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator import gate
from coordinator.gate import Candidate, Gate
from export import release
from export.fold import NormStatistics, calibrate
from export.manifest import Verdict
from export.parity import INT8_PSNR_DB, INT8_SSIM, Folding, Parity
from export.quantize import QuantizeError
from export.signing import VerifiedRelease
from models import training
from models.contract import Work
from models.originality import HASHES_COPY, PATCHES_COPY, Likeness, Originality
from models.update import Arrays
from tests import simulators


@pytest.fixture(scope="module")
def judge(packaged: VerifiedRelease) -> Iterator[Gate]:
    """A gate whose current body is the small base."""
    with pytest.MonkeyPatch.context() as patch:
        simulators.install_world(patch, packaged)
        yield Gate(packaged, fit_steps=1)


@pytest.fixture
def body(world: VerifiedRelease) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {name: array.copy() for name, array in release.body_of(world).items()}


def assert_refused(candidate: Candidate, reason: str) -> None:
    assert not candidate.passes
    assert any(reason in said for said in candidate.reasons), candidate.reasons


def test_the_body_that_is_served_passes(judge: Gate, body: Arrays) -> None:
    candidate = judge.judge(body)

    assert candidate.passes, candidate.reasons
    assert candidate.verdict.style_after <= gate.STYLE_RATIO * candidate.verdict.style_before
    assert candidate.body is body
    assert set(candidate.codes) == {"identity", "paper"}


def test_the_same_body_is_judged_the_same_twice(judge: Gate, body: Arrays) -> None:
    assert judge.judge(body).verdict == judge.judge(body).verdict


def test_a_body_of_noise_is_refused(judge: Gate, body: Arrays) -> None:
    rng = np.random.default_rng(0)
    noise = {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in body.items()}

    assert_refused(judge.judge(noise), "SSIM to the photos")


def test_a_body_that_paints_one_flat_colour_is_refused_for_its_style(judge: Gate, body: Arrays) -> None:
    flat = {name: np.zeros_like(array) if name.startswith("to_full") else array for name, array in body.items()}

    assert_refused(judge.judge(flat), "style distance")


def test_a_body_that_leaves_a_grid_is_refused_for_it(
    judge: Gate, body: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
) -> None:
    bias = body["to_full.bias"].copy()
    bias[::4] += 0.4  # one of the four pixels of each PixelShuffle is brighter: a grid of period 2
    body["to_full.bias"] = bias

    candidate = judge.judge(body)

    assert_refused(candidate, "a pixel grid of")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["stem.weight", "to_full.bias"])
def test_a_body_with_a_number_that_is_not_finite_is_refused_unseen(
    judge: Gate,
    body: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    name: str,
) -> None:
    body[name].flat[0] = value
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("it was trained on"))

    assert judge.judge(body).reasons == ("the body holds numbers that are not finite",)


def test_a_body_whose_fit_diverges_is_refused(judge: Gate, body: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_arguments: object) -> float:
        raise training.DivergedError("the loss of step 0 is not a finite number")

    monkeypatch.setattr(training, "fit", diverge)

    assert judge.judge(body).reasons == ("the loss of step 0 is not a finite number",)


def test_the_current_body_in_int8_is_as_near_as_it_was(judge: Gate, body: Arrays) -> None:
    verdict = judge.judge(body).verdict

    assert verdict.int8_style_before is not None
    assert 0 < verdict.int8_style_before < 10
    assert verdict.int8_style_after == pytest.approx(verdict.int8_style_before, rel=1e-6)


def test_a_body_that_is_worse_in_int8_alone_is_refused(judge: Gate, body: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = gate.Gate._int8_pictures

    def greyed(self: Gate, *arguments: Any) -> tuple[Folding, Parity, list[Work]]:
        folded, parity, pictures = honest(self, *arguments)
        return folded, parity, [np.full_like(picture, 128) for picture in pictures]

    monkeypatch.setattr(gate.Gate, "_int8_pictures", greyed)

    assert_refused(judge.judge(body), "style distance in int8")


def test_there_is_a_strip_of_pictures_for_a_person_to_look_at(judge: Gate, body: Arrays) -> None:
    moved = {name: array + np.float32(0.02) if name.startswith("to_full") else array for name, array in body.items()}

    strip = judge.judge(moved).strip

    assert strip is not None
    height, width = strip.shape[:2]
    assert width > 3 * height  # photo, before, after, in int8
    photo, before, after, in_int8 = (
        strip[:, left : left + width // 4].astype(int) for left in range(0, 4 * (width // 4), width // 4)
    )
    assert np.abs(before - photo).mean() > 3
    assert 0 < np.abs(after - before).mean() < np.abs(after - photo).mean()
    assert np.abs(in_int8 - after).mean() < np.abs(in_int8 - photo).mean()


def test_judging_does_not_change_the_body(judge: Gate, body: Arrays) -> None:
    before = {name: array.copy() for name, array in body.items()}

    judge.judge(body)

    for name, array in body.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_body_that_no_style_can_be_folded_with_is_refused(judge: Gate, body: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of nothing, in the place of calibrated ones, are what such a body would look like."""

    def senseless(*arguments: Any) -> dict[str, NormStatistics]:
        return {
            name: NormStatistics(one.mean + 4 * np.sqrt(one.variance), one.variance / np.float32(16))
            for name, one in calibrate(*arguments).items()
        }

    monkeypatch.setattr(gate, "calibrate", senseless)

    assert_refused(judge.judge(body), "with frozen norms its pictures change")


def test_a_body_whose_folded_graph_cannot_be_quantised_is_refused(
    judge: Gate, body: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> bytes:
        raise QuantizeError("a convolution holds numbers that are not finite")

    monkeypatch.setattr(gate, "int8_onnx", refuse)

    assert_refused(judge.judge(body), "int8 at 0.0 dB")


@pytest.mark.parametrize(
    ("colour_difference", "ssim", "refused"),
    [
        (8.0, 0.75, False),
        (8.1, 0.75, True),
        (8.0, 0.74, True),
        (float("nan"), 1.0, True),
        (0.0, float("nan"), True),
    ],
)
def test_folding_is_refused_just_beyond_its_limits(colour_difference: float, ssim: float, *, refused: bool) -> None:
    assert bool(gate._unfoldable(Folding(0.0, 0.0, colour_difference, ssim))) == refused


# --- Each comparison, at its limit -------------------------------------------------------------------------------------

GOOD = Verdict(
    style_before=1.0,
    style_after=1.0,
    content_before=0.6,
    content_after=0.6,
    grid=3.0,
    int8_psnr_db=INT8_PSNR_DB,
    int8_ssim=INT8_SSIM,
    int8_style_before=1.0,
    int8_style_after=1.0,
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"style_after": 1.02}, ""),
        ({"style_after": 1.021}, "style distance 1.0210 against 1.0000"),
        ({"content_after": 0.581}, ""),
        ({"content_after": 0.579}, "SSIM to the photos 0.579 against 0.600"),
        ({"grid": 6.0}, ""),
        ({"grid": 6.1}, "a pixel grid of 6.1 dB, where 6 dB can be seen"),
        ({"int8_psnr_db": 28.0, "int8_ssim": 0.9}, ""),
        ({"int8_psnr_db": 27.9}, "int8 at 27.9 dB"),
        ({"int8_ssim": 0.899}, "SSIM 0.899 of fp32"),
        ({"int8_style_after": 1.05}, ""),
        ({"int8_style_after": 1.051}, "style distance in int8 1.0510 against 1.0000"),
        ({"int8_style_after": float("nan")}, "style distance in int8 nan"),
        ({"int8_style_after": float("inf")}, "style distance in int8 inf"),
        ({"int8_style_after": None}, "style distance in int8 nan"),
        ({"int8_style_before": None}, "against nan before"),
        ({"style_after": float("nan")}, "style distance nan"),
        ({"content_after": float("nan")}, "SSIM to the photos nan"),
        ({"grid": float("nan")}, "a pixel grid of nan"),
        ({"int8_psnr_db": float("nan")}, "int8 at nan"),
    ],
)
def test_each_figure_is_held_to_its_limit(changes: dict[str, Any], reason: str) -> None:
    reasons = gate._reasons(replace(GOOD, **changes))

    assert [reason in said for said in reasons] == ([True] if reason else [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"hashes": Likeness("paper", HASHES_COPY)}, "near copies of the public work paper (by hashes)"),
        ({"patches": Likeness("paper", PATCHES_COPY)}, "near copies of the public work paper (by patches)"),
        ({"ratio": Likeness("paper", float("nan"))}, "near copies of the public work paper (by ratio)"),
    ],
)
def test_a_near_copy_of_a_public_work_is_a_reason_and_names_it(changes: dict[str, Likeness], reason: str) -> None:
    clean = Originality(Likeness("stone", 40), Likeness("stone", 0.3), Likeness("stone", 1.0))

    reasons = gate._copies(replace(clean, **changes))

    assert [reason in said for said in reasons] == ([True] if reason else [])


def test_a_candidate_is_compared_with_the_public_works(judge: Gate, body: Arrays) -> None:
    found = judge.judge(body).originality

    assert found is not None
    assert found.nearest == "paper"


def test_the_current_body_is_fitted_as_much_as_the_candidate(judge: Gate, body: Arrays) -> None:
    # What a release says of itself was measured after fewer steps, and more steps would hide what a body lost.
    verdict = judge.judge(body).verdict

    assert verdict.style_before == pytest.approx(verdict.style_after, rel=1e-6)
    assert verdict.content_before == pytest.approx(verdict.content_after, rel=1e-6)
