"""Photos above the training scale: tiles of the real bodies without a seam, and no more memory than a tile needs."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from export import base, release, thumbnail
from export.fold import calibrate, fold
from export.runtime import Engine, open_engine
from export.signing import VerifiedRelease
from models import codecs, samplers
from models.contract import Work
from models.samplers import OVERLAP, Code, Feed, paint, paint_in_tiles

TILE = 256


@pytest.fixture(scope="module", params=["style-kiosk", "style-studio"])
def source(request: pytest.FixtureRequest) -> VerifiedRelease:
    return base.load(request.param)


@pytest.fixture(scope="module")
def photo(source: VerifiedRelease) -> Work:
    """A probe photo at an odd size of more than two tiles a side."""
    return codecs.fit_within(next(iter(release.pictures_of(source, release.PROBE).values())), 509)


def a_code(source: VerifiedRelease) -> Code:
    return release.codes_of(source)["oil-flow-1"]


def folded_for(source: VerifiedRelease, small: Work) -> Engine:
    exact, signature, code = source.read(release.EXACT), source.manifest.signature, a_code(source)
    return open_engine(fold(exact, signature, code, calibrate(exact, signature, code, [small])), "folded")


def test_tiled_is_whole(source: VerifiedRelease, photo: Work) -> None:
    engine, signature = folded_for(source, photo), source.manifest.signature

    whole = paint(engine.run, signature, photo, None).astype(np.int16)
    tiled = paint_in_tiles(engine.run, signature, photo, tile=TILE)

    # One grey level: the sums of float32 are blocked otherwise in a tile of another size.
    assert np.abs(whole - tiled).max() <= 1
    assert (whole != tiled).mean() < 0.01


def test_with_half_the_overlap_seams_would_show(source: VerifiedRelease, photo: Work) -> None:
    # The positive control of the test above, and the reason for the overlap.
    engine, signature = folded_for(source, photo), source.manifest.signature

    whole = paint(engine.run, signature, photo, None).astype(np.int16)
    tiled = paint_in_tiles(engine.run, signature, photo, tile=TILE, overlap=OVERLAP // 4)

    assert np.abs(whole - tiled).max() > 3


def test_the_norms_of_a_large_photo_are_those_of_its_thumbnail(source: VerifiedRelease, photo: Work) -> None:
    signature, code = source.manifest.signature, a_code(source)
    large = np.asarray(codecs.fit_within(photo, 400)).repeat(3, axis=0).repeat(3, axis=1)

    run = thumbnail.thumbnail_run(source.read(release.EXACT), signature)
    picture = paint(run, signature, large, code)
    expected = paint(folded_for(source, codecs.fit_within(large, thumbnail._THUMBNAIL_SIDE)).run, signature, large, None)

    assert picture.shape == large.shape
    assert np.abs(picture.astype(np.int16) - expected).max() <= 1


def test_no_graph_is_run_on_more_than_a_tile(source: VerifiedRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    class Watched:
        def __init__(self, engine: Engine) -> None:
            self.engine = engine

        def run(self, feed: Feed) -> Any:
            seen.append(feed["photo"].shape[1:3])
            return {"picture": feed["photo"]}

    monkeypatch.setattr(thumbnail, "open_engine", lambda *arguments: Watched(open_engine(*arguments)))
    large: npt.NDArray[np.uint8] = np.zeros((2000, 4000, 3), np.uint8)

    paint(
        thumbnail.thumbnail_run(source.read(release.EXACT), source.manifest.signature),
        source.manifest.signature,
        large,
        a_code(source),
    )

    assert len(seen) > 8
    assert max(max(size) for size in seen) < samplers.TILE + 4
