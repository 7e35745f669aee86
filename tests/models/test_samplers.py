"""How a compiled graph becomes a work: with graphs of one line, so that every pixel can be foretold."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import samplers
from models.contract import Medium, Signature, TensorSpec, Work
from models.samplers import Code, Feed, Run, UnknownArtError, mix, paint, paint_in_tiles, paint_with_strength
from tests import pictures

PICTURE: Final = (1, None, None, 3)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
Outputs = Mapping[str, npt.NDArray[np.generic]]


def signature() -> Signature:
    return Signature(
        medium="image",
        sampler="feed-forward",
        content=TensorSpec("photo", "uint8", PICTURE),
        code=TensorSpec("code", "float32", (1, 3)),
        output=TensorSpec("picture", "uint8", PICTURE),
    )


def graph(change: Callable[[npt.NDArray[Any], Feed], npt.NDArray[Any]]) -> Run:
    """A graph that refuses what its signature does not allow, as a compiled one would."""

    def run(feed: Feed) -> Outputs:
        photo = feed["photo"]
        assert photo.dtype == np.uint8
        assert photo.ndim == 4
        return {"picture": change(photo, feed)}

    return run


def tint(photo: npt.NDArray[Any], feed: Feed) -> npt.NDArray[Any]:
    """Adds the code, a colour, to every pixel: linear, as blending styles nearly is."""
    assert feed["code"].shape == (1, 3)
    return np.clip(np.round(photo + feed["code"].astype(np.float64)), 0, 255).astype(np.uint8)


IDENTITY_GRAPH: Final = graph(lambda photo, _feed: photo)
TINT_GRAPH: Final = graph(tint)
# An identity code that does not give the photo back: what the strength has to make up for.
IDENTITY: Final = np.array([-7, 0, 3], np.float32)
CODE: Final = np.array([60, -60, 20], np.float32)


@given(sizes)
def test_a_graph_that_changes_nothing_gives_the_photo_back(size: pictures.Size) -> None:
    photo = pictures.noise(size)

    picture = paint(IDENTITY_GRAPH, signature(), photo, None)

    assert np.array_equal(picture, photo)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous


def test_a_folded_graph_is_given_no_code_and_an_exact_graph_is() -> None:
    fed: list[set[str]] = []

    def run(feed: Feed) -> Outputs:
        fed.append(set(feed))
        return {"picture": feed["photo"]}

    paint(run, signature(), pictures.noise(), None)
    paint(run, signature(), pictures.noise(), CODE)

    assert fed == [{"photo"}, {"photo", "code"}]


def strengthened(photo: Work, strength: float) -> Work:
    return paint_with_strength(TINT_GRAPH, signature(), photo, CODE, IDENTITY, strength)


@given(sizes)
def test_strength_0_is_the_photo_itself(size: pictures.Size) -> None:
    photo = pictures.noise(size)
    picture = strengthened(photo, 0)

    assert np.array_equal(picture, photo)
    assert picture is not photo


def test_strength_1_is_the_style() -> None:
    photo = pictures.noise()

    assert np.array_equal(strengthened(photo, 1), paint(TINT_GRAPH, signature(), photo, CODE))


@pytest.mark.parametrize(("strength", "meant"), [(-0.1, 0), (1.1, 1)])
def test_a_strength_beyond_its_ends_is_the_end(strength: float, meant: float) -> None:
    photo = pictures.noise()

    assert np.array_equal(strengthened(photo, strength), strengthened(photo, meant))


def test_nothing_jumps_between_strength_0_and_1() -> None:
    """Of 65 grey levels in 100 steps no step may take more than two: one of travel, one of rounding."""
    photo = pictures.noise()
    frames = [strengthened(photo, step / 100).astype(int) for step in range(101)]

    assert max(np.abs(b - a).max() for a, b in pairwise(frames)) <= 2
    assert np.abs(frames[-1] - frames[0]).max() > 50


def test_what_lies_between_is_rounded_to_the_nearest_grey() -> None:
    """Red 100 at strength 0.2: painted 100 + 6.4 as 106, and 0.8 of the 7 that the identity code fails to give back."""
    photo = np.full((4, 4, 3), 100, np.uint8)

    assert strengthened(photo, 0.2)[0, 0, 0] == round(106 + 0.8 * 7) == 112


@pytest.mark.parametrize("strength", [1e-6, 1 - 1e-6])
def test_strength_arrives_at_its_ends_without_a_jump(strength: float) -> None:
    photo = pictures.noise()

    assert np.abs(strengthened(photo, strength).astype(int) - strengthened(photo, round(strength))).max() <= 1


def test_the_photo_is_not_changed_by_painting() -> None:
    photo = pictures.noise()
    before = photo.copy()

    strengthened(photo, 0.5)

    assert np.array_equal(photo, before)


@pytest.mark.parametrize("medium", ["melody", "text"])
def test_works_of_another_kind_are_not_painted_as_pictures(medium: Medium) -> None:
    other, photo = replace(signature(), medium=medium), pictures.noise()

    def never(_feed: Feed) -> Outputs:
        raise AssertionError

    for strength in (0.0, 0.5, 1.0):
        with pytest.raises(UnknownArtError, match=f"{medium} by feed-forward"):
            paint_with_strength(never, other, photo, CODE, IDENTITY, strength)
    with pytest.raises(UnknownArtError):
        paint(never, other, photo, None)


# Mixing.

CODES: Final = {"a": np.array([1, 0, 2], np.float32), "b": np.array([0, 4, 2], np.float32)}


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_mix_is_the_weighted_mean(a: float, b: float) -> None:
    if a + b == 0:
        return
    expected = (a * CODES["a"].astype(np.float64) + b * CODES["b"].astype(np.float64)) / (a + b)

    mixed = mix(CODES, {"a": a, "b": b})

    assert mixed.dtype == np.float32
    assert np.allclose(mixed, expected, rtol=1e-5, atol=1e-6)


def test_one_style_alone_is_itself_whatever_its_weight() -> None:
    assert np.array_equal(mix(CODES, {"b": 0.25}), CODES["b"])
    assert np.array_equal(mix(CODES, {"a": 0, "b": 3}), CODES["b"])


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"a": 0.0},
        {"a": 0.0, "b": 0.0},
        {"a": -1.0, "b": 2.0},
        {"a": -1.0},
        {"a": math.nan},
        {"a": 1.0, "b": math.nan},
        {"a": math.inf},
    ],
)
def test_weights_that_are_no_mix_are_refused(weights: Mapping[str, float]) -> None:
    with pytest.raises(ValueError, match="weights of a mix"):
        mix(CODES, weights)


def test_mixing_leaves_the_codes_as_they_were() -> None:
    codes: dict[str, Code] = {name: code.copy() for name, code in CODES.items()}

    mix(codes, {"a": 1, "b": 1})[:] = 0
    mix(codes, {"a": 1})[:] = 0

    assert all(np.array_equal(codes[name], CODES[name]) for name in CODES)


# --- Tiles --------------------------------------------------------------------------------------------------------------


def smear(reach: int, phase: int = 4) -> Run:
    """A graph whose pixels depend on neighbours up to ``reach`` away, on the edge, and on where the grid of ``phase`` lies."""

    def change(photo: npt.NDArray[Any], _feed: Feed) -> npt.NDArray[Any]:
        padded = np.pad(photo[0].astype(np.int64), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        height, width = photo.shape[1:3]
        far = [padded[:height, :width], padded[2 * reach :, 2 * reach :][:height, :width], photo[0]]
        grid = (np.arange(height) % phase)[:, None, None] + (np.arange(width) % phase)[None, :, None]
        smeared: npt.NDArray[Any] = ((np.add.reduce(far) + grid) % 256)[None].astype(np.uint8)
        return smeared

    return graph(change)


@given(st.integers(1, 300), st.integers(1, 300))
def test_tiles_of_a_picture_make_the_whole(height: int, width: int) -> None:
    photo = np.random.default_rng(height * 301 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    run = smear(reach=7)

    assert np.array_equal(paint_in_tiles(run, signature(), photo, tile=64, overlap=8), paint(run, signature(), photo, None))


def test_an_overlap_narrower_than_what_a_pixel_depends_on_would_show() -> None:
    # The positive control of the test above.
    photo = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    run = smear(reach=11)

    assert not np.array_equal(paint_in_tiles(run, signature(), photo, tile=64, overlap=8), paint(run, signature(), photo, None))


@given(st.integers(1, 5000))
def test_no_tile_is_larger_than_it_may_be_and_few_sizes_are_seen(side: int) -> None:
    spans = samplers._spans(side, 256, 64)

    assert (spans[0][0], spans[-1][1]) == (0, side)
    assert all(start % 4 == 0 for start, _ in spans)
    assert all(end - start < 256 + 4 for start, end in spans)
    assert len({end - start for start, end in spans}) <= 2
    assert all(earlier[1] - later[0] >= 128 for earlier, later in pairwise(spans))
