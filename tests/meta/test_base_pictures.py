"""What comes out of the packaged bases, looked at as a visitor would: no grid, no frame, nothing cut off, nothing that
flickers; and strength does what its name says. Each check has a control: a picture with the fault, which it must find."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pytest

from export import backbones, base, release
from export.fold import calibrate, fold
from export.runtime import Engine, open_engine
from models import codecs, registry
from models.contract import Signature, Work
from models.measures import ciede2000, grid_peak_db, lab, psnr
from models.samplers import Code, mix, paint, paint_with_strength

TIERS: Final = sorted(path.name for path in base.FOLDER.iterdir() if (path / base.TRUST).is_file())
SEEN_DB: Final = 6.0  # the gate's limit (coordinator/gate.py)
RIM: Final = 6  # pixels at which a frame would be seen
FRAME_LEVELS: Final = 8.0
CUT_OFF_SHARE: Final = 0.06  # of the colour values, beyond those that are black or white in the photo already
FLICKER_LEVELS: Final = 12.0


@dataclass(frozen=True)
class Base:
    """A packaged base and its graphs, opened."""

    signature: Signature
    exact: Engine
    folded: dict[str, Engine]
    codes: dict[str, Code]
    identity: Code
    probes: dict[str, Work]
    works: dict[str, Work]
    photos: list[Work]


@pytest.fixture(scope="module", params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def packed(tier: str) -> Base:
    source = base.load(tier)
    signature, exact = source.manifest.signature, source.read(release.EXACT)
    codes = dict(release.codes_of(source))
    identity = codes.pop(release.IDENTITY)
    photos = list(release.calibration_photos(source))
    return Base(
        signature=signature,
        exact=open_engine(exact, "exact"),
        folded={
            name: open_engine(fold(exact, signature, code, calibrate(exact, signature, code, photos[:8])), "folded")
            for name, code in codes.items()
        },
        codes=codes,
        identity=identity,
        probes=dict(release.pictures_of(source, release.PROBE)),
        works=dict(release.pictures_of(source, release.WORKS)),
        photos=photos,
    )


def flat(colour: tuple[int, int, int]) -> Work:
    """One colour with the noise of a camera, without which eight bits have no detail at all."""
    noise = np.random.default_rng(1).normal(0, 2, (192, 192, 1))
    return (np.array(colour) + noise).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", [(128, 128, 128), (235, 235, 240), (20, 22, 25), (90, 140, 200), (180, 90, 40)])
def test_a_flat_wall_is_painted_without_a_checkerboard(packed: Base, colour: tuple[int, int, int]) -> None:
    photo = flat(colour)

    for name, engine in packed.folded.items():
        picture = paint(engine.run, packed.signature, photo, None)
        assert max(grid_peak_db(picture, period) for period in (2, 4, 8)) < SEEN_DB, name


def test_a_checkerboard_would_be_found(packed: Base) -> None:
    picture = paint(next(iter(packed.folded.values())).run, packed.signature, flat((128, 128, 128)), None).astype(np.int16)
    rows, columns = np.arange(picture.shape[0])[:, None, None], np.arange(picture.shape[1])[None, :, None]

    for period in (2, 4, 8):
        board = 12 * ((rows // (period // 2) + columns // (period // 2)) % 2)
        assert grid_peak_db(np.clip(picture + board, 0, 255).astype(np.uint8), period) > SEEN_DB


def frame_of(picture: Work) -> float:
    """How far the outermost pixels' mean colour on a side is from that of the next ones inwards, in grey levels: the most."""
    sides = [picture, picture[::-1], picture.transpose(1, 0, 2), picture.transpose(1, 0, 2)[::-1]]
    return max(float(np.abs(s[:RIM].mean(axis=(0, 1)) - s[RIM : 4 * RIM].mean(axis=(0, 1))).max()) for s in sides)


@pytest.mark.parametrize("colour", [(128, 128, 128), (235, 235, 240), (90, 140, 200)])
def test_no_frame_is_painted_around_a_flat_wall(packed: Base, colour: tuple[int, int, int]) -> None:
    for name, engine in packed.folded.items():
        assert frame_of(paint(engine.run, packed.signature, flat(colour), None)) < FRAME_LEVELS, name


def test_a_frame_would_be_found(packed: Base) -> None:
    picture = paint(next(iter(packed.folded.values())).run, packed.signature, flat((128, 128, 128)), None).astype(np.int16)
    picture[:, :RIM] += 12

    assert frame_of(picture.clip(0, 255).astype(np.uint8)) > FRAME_LEVELS


def cut_off(picture: Work) -> float:
    """Share of the colour values that are as black or as white as can be."""
    return float(((picture == 0) | (picture == 255)).mean())


def test_few_colours_are_cut_off_at_black_and_white(packed: Base) -> None:
    for name, engine in packed.folded.items():
        shares = [
            cut_off(paint(engine.run, packed.signature, photo, None)) - cut_off(photo) for photo in packed.probes.values()
        ]
        assert np.mean(shares) < CUT_OFF_SHARE, name


def test_cut_off_colours_would_be_found(packed: Base) -> None:
    engine, photo = next(iter(packed.folded.values())), packed.probes["red-panda"]
    picture = paint(engine.run, packed.signature, photo, None).astype(np.float64)

    assert cut_off(((picture - 128) * 2.5 + 128).clip(0, 255).astype(np.uint8)) - cut_off(photo) > CUT_OFF_SHARE


def flicker(engine: Engine, signature: Signature, photo: Work) -> float:
    """Mean difference, in grey levels, of what two neighbouring frames of a moving camera show of the same things."""
    side, inside = 224, slice(48, 144)
    frames = [photo[30 : 30 + side, 40 + step : 40 + step + side] for step in range(4)]
    painted = [paint(engine.run, signature, np.ascontiguousarray(frame), None).astype(np.int16) for frame in frames]
    same_things = [picture[inside, 48 - step : 144 - step] for step, picture in enumerate(painted)]
    return float(np.mean([np.abs(a - b).mean() for a, b in pairwise(same_things)]))


def test_neighbouring_frames_of_a_moving_camera_do_not_flicker(packed: Base) -> None:
    for name, engine in packed.folded.items():
        assert flicker(engine, packed.signature, packed.probes["red-panda"]) < FLICKER_LEVELS, name


def test_a_network_that_draws_other_strokes_in_every_frame_would_be_found(packed: Base) -> None:
    class Restless:
        runtime = "onnxruntime"

        def __init__(self, engine: Engine) -> None:
            self.engine, self.rng = engine, np.random.default_rng(0)

        def run(self, feed: dict[str, Work]) -> dict[str, Work]:
            picture = self.engine.run(feed)["picture"].astype(np.float64)
            strokes = self.rng.normal(0, 14, (1, picture.shape[1] // 4 + 1, picture.shape[2] // 4 + 1, 1))
            strokes = strokes.repeat(4, axis=1).repeat(4, axis=2)[:, : picture.shape[1], : picture.shape[2]]
            return {"picture": (picture + strokes).clip(0, 255).astype(np.uint8)}

    restless: Engine = Restless(next(iter(packed.folded.values())))  # type: ignore[assignment]  # all that is asked of it
    assert flicker(restless, packed.signature, packed.probes["red-panda"]) > FLICKER_LEVELS


# --- Strength -----------------------------------------------------------------------------------------------------------


def at_strength(packed: Base, photo: Work, code: Code, strength: float) -> Work:
    return paint_with_strength(packed.exact.run, packed.signature, photo, code, packed.identity, strength)


def test_no_strength_is_the_photo_and_a_fiftieth_is_hardly_to_be_seen(packed: Base) -> None:
    for name, code in packed.codes.items():
        for photo in packed.probes.values():
            assert np.array_equal(at_strength(packed, photo, code, 0.0), photo)
            assert psnr(at_strength(packed, photo, code, 0.02), photo) >= 28, name


def test_full_strength_is_seen(packed: Base) -> None:
    # The control of the test above.
    for code in packed.codes.values():
        assert psnr(at_strength(packed, packed.probes["red-panda"], code, 1.0), packed.probes["red-panda"]) < 24


@pytest.mark.slow
def test_the_more_strength_the_nearer_to_the_works(tier: str, packed: Base) -> None:
    modality = registry.find(tier)
    names = list(packed.works)
    lessons = modality.lessons(
        [[packed.works[name]] for name in names], packed.photos[:2], backbones.load_all(modality.backbones), seed=1
    )
    photos = [codecs.fit_within(photo, 320) for photo in packed.probes.values()]

    for row, name in enumerate(names):
        distances = [
            lessons.distance(row, [at_strength(packed, photo, packed.codes[name], tenth / 10) for photo in photos])
            for tenth in range(11)
        ]
        assert all(later < earlier for earlier, later in pairwise(distances)), (name, distances)


def test_a_mix_lies_between_its_styles(packed: Base) -> None:
    one, other = list(packed.codes.values())[:2]
    photo = codecs.fit_within(packed.probes["astronaut"], 256)

    *ends, middle = (
        lab(paint(packed.exact.run, packed.signature, photo, code))
        for code in (one, other, mix({"one": one, "other": other}, {"one": 1.0, "other": 1.0}))
    )
    whole_way = ciede2000(*ends).mean()

    assert all(0.1 * whole_way < ciede2000(middle, end).mean() < whole_way for end in ends)
