"""The exact graph paints what the network paints; and what "near enough" means."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from export.parity import (
    FOLD_COLOUR_DIFFERENCE,
    FOLD_SSIM,
    FOLD_STYLE_RATIO,
    INT8_PSNR_DB,
    INT8_SSIM,
    Folding,
    Parity,
    compare,
    folding,
)
from export.runtime import open_engine
from models.contract import Work
from models.measures import psnr, ssim
from models.samplers import Code
from tests import pictures
from tests.export.conftest import Exported
from tests.tiny import STYLE, framed


def painted_by_torch(exported: Exported, photo: Work, code: Code) -> Work:
    """(1, H, W, 3) uint8, by the network itself and not by its graph."""
    content = torch.tensor(framed(photo)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        picture, _ = exported.net(content, torch.tensor(code)[None])
    rounded: Work = (picture.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()
    border = STYLE.frame.margin - STYLE.frame.used
    return rounded[:, border : border + photo.shape[0], border : border + photo.shape[1]]


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("size", [(32, 32), (32, 72), (61, 34), (1, 1)])
def test_onnx_runtime_paints_what_torch_paints(exported: Exported, row: int, size: pictures.Size) -> None:
    engine = open_engine(exported.exact, "exact", threads=1)
    photo, code = pictures.shapes(size), exported.codes[row]

    picture = engine.run({"photo": photo[None], "code": code[None]})["picture"]

    assert picture.dtype == np.uint8
    expected = painted_by_torch(exported, photo, code)
    # One grey level: two sums of float32 in another order may fall on either side of a half.
    assert np.abs(picture.astype(int) - expected).max() <= 1
    if photo.shape[:2] != (1, 1):
        assert expected.std() > 10  # a picture, not a grey wall on which everything agrees


def test_the_two_codes_paint_two_pictures(exported: Exported) -> None:
    """The positive control of the parity above: the code does matter."""
    photo = pictures.shapes()
    one, other = (painted_by_torch(exported, photo, code) for code in exported.codes)

    assert np.abs(one.astype(int) - other).mean() > 5


def test_a_network_with_another_body_is_told_apart(exported: Exported) -> None:
    photo = pictures.shapes()
    other = STYLE.build(seed=99, codes=2)
    strange = replace(exported, net=other)

    one, two = (painted_by_torch(e, photo, exported.codes[0]) for e in (exported, strange))

    assert np.abs(one.astype(int) - two).max() > 1


# The verdict.


def test_parity_is_the_mean_over_the_pairs() -> None:
    a, b = pictures.shapes(seed=1), pictures.shapes(seed=2)
    near = np.clip(a.astype(int) + 3, 0, 255).astype(np.uint8)

    parity = compare([a, a], [near, b])

    assert parity.psnr_db == pytest.approx((psnr(a, near) + psnr(a, b)) / 2)
    assert parity.ssim == pytest.approx((ssim(a, near) + ssim(a, b)) / 2)


def test_equal_pictures_count_as_99_decibels() -> None:
    parity = compare([pictures.shapes()], [pictures.shapes()])

    assert parity.psnr_db == 99
    assert parity.ssim == pytest.approx(1)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        compare([], [])


@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (1, 0)])
def test_two_numbers_of_pictures_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(*([pictures.shapes()] * count for count in counts))


@pytest.mark.parametrize(
    ("psnr_db", "similarity", "near"),
    [
        (INT8_PSNR_DB, INT8_SSIM, True),
        (INT8_PSNR_DB + 0.01, INT8_SSIM + 0.01, True),
        (INT8_PSNR_DB - 0.01, 1.0, False),
        (99.0, INT8_SSIM - 0.001, False),
        (math.nan, 1.0, False),
        (99.0, math.nan, False),
    ],
)
def test_near_is_at_or_above_both_floors(psnr_db: float, similarity: float, *, near: bool) -> None:
    assert Parity(psnr_db, similarity).is_near() is near


def test_the_floors_can_be_chosen() -> None:
    assert Parity(20, 0.5).is_near(psnr_db=20, ssim=0.5)
    assert not Parity(20, 0.5).is_near(psnr_db=20.1, ssim=0.5)
    assert not Parity(20, 0.5).is_near(psnr_db=20, ssim=0.51)


# --- Folded against exact -----------------------------------------------------------------------------------------------

LIMIT = Folding(style_exact=0.2, style_folded=0.2 * FOLD_STYLE_RATIO, colour_difference=FOLD_COLOUR_DIFFERENCE, ssim=FOLD_SSIM)


def test_a_folded_graph_at_every_limit_is_near() -> None:
    assert LIMIT.is_near()
    assert replace(LIMIT, style_folded=0.1).is_near()  # nearer to the artist than the exact one is no fault


@pytest.mark.parametrize(
    "beyond",
    [
        {"style_folded": 0.2 * FOLD_STYLE_RATIO + 1e-6},
        {"colour_difference": FOLD_COLOUR_DIFFERENCE + 1e-6},
        {"ssim": FOLD_SSIM - 1e-6},
        {"style_folded": math.nan},
        {"colour_difference": math.nan},
        {"ssim": math.nan},
    ],
)
def test_a_folded_graph_beyond_any_one_limit_is_not_near(beyond: dict[str, float]) -> None:
    assert not replace(LIMIT, **beyond).is_near()


def test_folding_compares_pair_by_pair_and_keeps_how_far_both_sets_are_from_the_works() -> None:
    exact = [pictures.shapes((40, 40), seed=seed) for seed in range(2)]
    folded = [exact[0], np.clip(exact[1].astype(np.int16) + 9, 0, 255).astype(np.uint8)]

    found = folding(exact, folded, 0.25, 0.5)
    unmeasured = folding(exact, folded)

    assert found.style_folded > found.style_exact > 0
    assert 0 < found.colour_difference < 5
    assert found.ssim == compare(exact, folded).ssim
    assert (unmeasured.style_exact, unmeasured.style_folded) == (0, 0)
    with pytest.raises(ValueError, match=r"shorter|argument"):
        folding(exact, folded[:1])
