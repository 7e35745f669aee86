"""One picture: its size, its styles and mixes, its strength, its file; and without torch or flwr."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_node import paint, releases, styles
from edge_node.config import Home
from edge_node.errors import BadPictureError, UnknownStyleError
from edge_node.paint import Order
from edge_node.styles import Style
from export import release, thumbnail, weights
from export.errors import IntegrityError, NotConfiguredError, ResourceError, UsageError
from export.files import digest_of
from export.parity import Parity
from export.quantize import QuantizeError
from export.runtime import Precision, Runtime, RuntimeFailedError, installed, open_engine
from export.signing import VerifiedRelease
from models import codecs, samplers
from models.contract import Signature, Work
from models.measures import psnr
from models.samplers import Run
from tests import pictures, simulators
from tests.releases import KEY as RELEASE_KEY
from tests.releases import public

KEY = public(RELEASE_KEY)
SEA, SKY = {"sea": 1.0}, {"sky": 1.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, packaged: VerifiedRelease) -> Home:
    """A machine with two styles on one body."""
    with pytest.MonkeyPatch.context() as patch:
        simulators.install_world(patch, packaged)
        made = simulators.make_node(tmp_path_factory.mktemp("home"))
        for number, name in enumerate(("sea", "sky")):
            code = simulators.style_code(packaged, seed=number)
            styles.compile_style(made, name, code, packaged, simulators.LINEAGE)
    return made


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("size", [(64, 64), (65, 127), (333, 500), (64, 300)])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("runtime", installed())
def test_a_picture_has_its_photos_size(home: Home, size: tuple[int, int], precision: Precision, runtime: Runtime) -> None:
    photo = pictures.shapes(size, seed=1)

    painted = paint.paint(home, Order(photo, SEA, precision=precision, runtime=runtime))

    assert painted.picture.shape == photo.shape
    assert painted.picture.dtype == np.uint8
    assert (painted.precision, painted.graph, painted.runtime) == (precision, "folded", runtime)
    assert painted.picture.std() > 1
    assert not np.array_equal(painted.picture, photo)


@pytest.mark.slow
@pytest.mark.usefixtures("world")
def test_eight_megapixels_are_painted(home: Home) -> None:
    photo = pictures.gradient((2000, 4000))

    assert paint.paint(home, Order(photo, SEA, precision="fp32")).picture.shape == photo.shape


@pytest.mark.usefixtures("world")
def test_strength_0_gives_the_photos_own_pixels(home: Home) -> None:
    photo = pictures.noise((65, 70))

    painted = paint.paint(home, Order(photo, SEA, strength=0.0))

    np.testing.assert_array_equal(painted.picture, photo)


@pytest.mark.usefixtures("world")
def test_more_strength_is_further_from_the_photo(home: Home) -> None:
    photo = pictures.shapes((80, 96), seed=1)

    distances = [psnr(photo, paint.paint(home, Order(photo, SEA, strength=s)).picture) for s in (0.1, 0.5, 0.9)]

    assert distances == sorted(distances, reverse=True)


@pytest.mark.usefixtures("world")
def test_a_mix_lies_between_its_styles(home: Home) -> None:
    photo = pictures.shapes((80, 96), seed=1)

    def mixed(weights: dict[str, float]) -> paint.Painted:
        return paint.paint(home, Order(photo, weights, strength=1.0))

    both = mixed({"sea": 1.0, "sky": 1.0})
    nearly = mixed({"sea": 1.0, "sky": 0.0})

    assert (both.graph, both.precision) == ("exact", "fp32")
    assert not np.array_equal(both.picture, nearly.picture)
    assert np.array_equal(both.picture, mixed({"sky": 3.0, "sea": 3.0}).picture)


@pytest.mark.usefixtures("world")
def test_auto_takes_int8_only_where_it_was_found_near_enough(home: Home) -> None:
    style = styles.find(home, "sea")

    painted = paint.paint(home, Order(pictures.shapes((64, 64)), SEA))

    assert style.parity is not None
    assert painted.precision == style.best_precision == ("int8" if style.parity.is_near() else "fp32")


def with_distances(place: Path, world: VerifiedRelease, frozen: float, live: float) -> Home:
    """A machine with one style that is so far from its works with all norms frozen, and with the first live; exact: 0.1."""
    made, found = simulators.make_node(place), iter((0.100, frozen, frozen, live))
    code = simulators.style_code(world)
    styles.compile_style(made, "sea", code, world, simulators.LINEAGE, distance=lambda _works: next(found))
    return made


@pytest.fixture
def ill_folded(tmp_path: Path, world: VerifiedRelease) -> Home:
    """A machine with one style whose folded pictures lie further from the works than they may."""
    return with_distances(tmp_path / "ill", world, 0.106, 0.106)


def test_a_style_that_does_not_fold_is_painted_by_the_exact_graph(ill_folded: Home, home: Home) -> None:
    photo = pictures.shapes((64, 96))

    painted, folds = (paint.paint(place, Order(photo, SEA)) for place in (ill_folded, home))

    assert (painted.graph, painted.precision) == ("exact", "fp32")
    assert folds.graph == "folded"  # the control: the same code, where nothing speaks against it


def test_a_style_that_does_not_fold_says_so(ill_folded: Home) -> None:
    said = styles.find(ill_folded, "sea").compromise

    assert "style distance 0.100 to 0.106): it is painted by the exact graph in fp32." in said


def test_who_insists_on_int8_gets_it_of_a_style_that_does_not_fold_too(ill_folded: Home) -> None:
    painted = paint.paint(ill_folded, Order(pictures.shapes((64, 64)), SEA, precision="int8", runtime="onnxruntime"))

    assert (painted.graph, painted.precision) == ("folded", "int8")


def test_who_insists_on_int8_of_a_style_that_has_none_is_told_why(tmp_path: Path, world: VerifiedRelease) -> None:
    made = simulators.make_node(tmp_path / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(styles, "observe", not_quantisable)
        styles.compile_style(made, "sea", simulators.style_code(world), world, simulators.LINEAGE)

    with pytest.raises(UsageError, match="cannot be quantised"):
        paint.paint(made, Order(pictures.shapes((64, 64)), SEA, precision="int8"))

    assert paint.paint(made, Order(pictures.shapes((64, 64)), SEA)).precision == "fp32"


def not_quantisable(*_arguments: object) -> None:
    raise QuantizeError("the graph holds a Sin that is not quantised")


def test_a_style_that_is_written_anew_between_two_looks_is_painted_as_it_is_then(
    tmp_path: Path, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = simulators.make_node(tmp_path / "home")
    old, new = (simulators.style_code(world, seed=seed) for seed in (0, 1))
    styles.compile_style(made, "sea", old, world, simulators.LINEAGE)
    find, order = styles.find, Order(pictures.shapes((64, 64)), SEA)

    def found_and_then_replaced(home: Home, name: str) -> Style:
        style = find(home, name)
        monkeypatch.setattr(styles, "find", find)
        styles.compile_style(home, name, new, world, simulators.LINEAGE)
        return style

    monkeypatch.setattr(styles, "find", found_and_then_replaced)
    picture = paint.paint(made, order).picture

    assert np.array_equal(picture, paint.paint(made, order).picture)


@pytest.mark.usefixtures("world")
@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
def test_a_runtime_that_does_not_work_is_not_taken_and_told_of_only_where_it_is_asked_for(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeFailedError("OpenVINO cannot be loaded (no libtbb)")

    monkeypatch.setattr("export.runtime._openvino", broken)
    (home.root / "runtimes.json").unlink(missing_ok=True)
    order = Order(pictures.shapes((64, 64)), SEA)

    assert paint.paint(home, order).runtime == "onnxruntime"
    assert not (home.root / "runtimes.json").exists()  # it may be mended by next time
    with pytest.raises(NotConfiguredError, match="no libtbb") as caught:
        paint.paint(home, replace(order, runtime="openvino"))
    assert "--runtime" in caught.value.advice


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_photo_above_two_megapixels_is_painted_in_tiles(home: Home, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = pictures.shapes((600, 700), seed=3)
    whole = paint.paint(home, Order(photo, SEA, strength=strength, precision="auto" if strength < 1 else "fp32"))
    tiles: list[int] = []
    real = samplers.paint_in_tiles

    def counted(run: Run, signature: Signature, large: Work) -> Work:
        tiles.append(1)
        return real(run, signature, large, tile=320)

    monkeypatch.setattr(paint, "LARGEST_WHOLE", 600 * 700 - 1)
    monkeypatch.setattr(samplers, "paint_in_tiles", counted)
    monkeypatch.setattr(thumbnail, "paint_in_tiles", counted)
    tiled = paint.paint(home, Order(photo, SEA, strength=strength, precision="auto" if strength < 1 else "fp32"))

    assert len(tiles) == (1 if strength == 1 else 2)  # style and identity
    assert tiled.graph == whole.graph
    if strength == 1:  # by numbers alone, so nothing may differ but the order of sums
        assert np.abs(tiled.picture.astype(np.int16) - whole.picture).max() <= 1
    else:
        assert psnr(tiled.picture, whole.picture) > 20


@pytest.fixture
def live(tmp_path: Path, world: VerifiedRelease) -> Home:
    """A machine with one style whose pictures are near enough to the works only while its first norm is live."""
    return with_distances(tmp_path / "live", world, 0.106, 0.100)


def test_a_style_with_a_live_norm_paints_large_photos_by_the_exact_graph(
    live: Home, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its norm in a tile would be the tile's own, and the control shows what that would look like."""
    photo = np.concatenate([pictures.shapes((600, 350), seed=3) // 3, pictures.noise((600, 350))], axis=1)
    monkeypatch.setattr(Parity, "is_near", lambda _: True)
    sea, fp32 = styles.find(live, "sea"), paint.paint(live, Order(photo, SEA, precision="fp32"))
    whole = paint.paint(live, Order(photo, SEA))
    by_tile = samplers.paint_in_tiles(open_engine(sea.graph("fp32"), "sea").run, world.manifest.signature, photo, tile=320)

    monkeypatch.setattr(paint, "LARGEST_WHOLE", 600 * 700 - 1)
    large = paint.paint(live, Order(photo, SEA))

    assert sea.first_live
    assert (whole.graph, whole.precision, fp32.graph) == ("folded", "int8", "folded")
    assert (large.graph, large.precision) == ("exact", "fp32")
    assert np.abs(by_tile.astype(np.int16) - fp32.picture).max() > 8  # with all norms frozen: 1
    with pytest.raises(UsageError, match="photos above two megapixels are painted by the exact graph"):
        paint.paint(live, Order(photo, SEA, precision="int8"))


# --- Painting again and again -------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What graphs are opened from now on."""
    seen: list[str] = []

    def counted(model: bytes, what: str, *more: Any) -> Any:
        seen.append(what)
        return open_engine(model, what, *more)

    monkeypatch.setattr(paint, "open_engine", counted)
    return seen


@pytest.mark.usefixtures("world")
def test_a_painter_opens_a_graph_once_whatever_is_painted_in_between(home: Home, opened: list[str]) -> None:
    painter, photo = paint.Painter(home), pictures.shapes((64, 64))
    orders = [
        Order(photo, SEA, precision="fp32", runtime="onnxruntime"),
        Order(photo, SKY, precision="fp32", runtime="onnxruntime"),
        Order(photo, {"sea": 1.0, "sky": 2.0}),
        Order(photo, {"sea": 2.0, "sky": 1.0}, strength=0.4),
    ]

    first = [painter.paint(order).picture for order in orders]
    again = [painter.paint(order).picture for order in reversed(orders)]

    assert opened == ["sea fp32", "sky fp32", "release's exact"]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert np.array_equal(first[0], paint.paint(home, orders[0]).picture)
    assert opened[3:] == ["sea fp32"]  # the control: what does not keep anything opens it again


@pytest.mark.usefixtures("world")
def test_styles_that_are_not_painted_with_are_not_looked_at(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    real = styles.find

    def watched(place: Home, name: str) -> Any:
        found.append(name)
        return real(place, name)

    def listed(_place: Home) -> list[str]:
        raise AssertionError("all styles were listed")

    monkeypatch.setattr(styles, "find", watched)
    monkeypatch.setattr(styles, "names", listed)
    paint.paint(home, Order(pictures.shapes((64, 64)), SEA))

    assert found == ["sea"]


def test_a_style_that_was_renewed_meanwhile_is_opened_anew(tmp_path: Path, world: VerifiedRelease, opened: list[str]) -> None:
    made = simulators.make_node(tmp_path / "home")
    painter, order = paint.Painter(made), Order(pictures.shapes((64, 64)), SEA, precision="fp32", runtime="onnxruntime")
    styles.compile_style(made, "sea", simulators.style_code(world, seed=0), world, simulators.LINEAGE)
    before = painter.paint(order).picture
    styles.compile_style(made, "sea", simulators.style_code(world, seed=1), world, simulators.LINEAGE)

    after = painter.paint(order).picture

    assert len(opened) == 2
    assert not np.array_equal(before, after)


@pytest.mark.usefixtures("world")
def test_a_painter_keeps_no_more_than_its_measure(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paint, "_KEPT", 2)
    painter = paint.Painter(home)

    for mixed in (SEA, SKY, {"sea": 1.0, "sky": 1.0}, SEA):
        painter.paint(Order(pictures.shapes((64, 64)), mixed))

    assert len(painter._kept) == 2


@pytest.mark.parametrize("name", ["", ".", "..", "../styles/sea", "sea/"])
@pytest.mark.usefixtures("world")
def test_a_name_that_is_a_way_through_folders_is_no_style(home: Home, name: str) -> None:
    assert not styles.is_installed(home, name)
    assert styles.is_installed(home, "sea")


@pytest.mark.usefixtures("world")
def test_int8_is_refused_for_what_only_the_exact_graph_can_do(home: Home) -> None:
    with pytest.raises(UsageError, match="painted in fp32") as caught:
        paint.paint(home, Order(pictures.shapes((64, 64)), SEA, strength=0.5, precision="int8"))

    assert "--precision" in caught.value.advice


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("largest_whole", [10**6, 1])
@pytest.mark.parametrize(("weights", "strength"), [(SEA, 0.5), ({"sea": 0.3, "sky": 0.7}, 1.0)])
def test_what_only_the_exact_graph_can_do_every_runtime_does_alike(
    home: Home, weights: dict[str, float], strength: float, largest_whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = pictures.shapes((300, 220), seed=6)
    monkeypatch.setattr(paint, "LARGEST_WHOLE", largest_whole)

    one, other = (paint.paint(home, Order(photo, weights, strength, runtime=runtime)) for runtime in installed())

    assert [(p.runtime, p.graph, p.precision) for p in (one, other)] == [(r, "exact", "fp32") for r in installed()]
    assert np.abs(one.picture.astype(np.int16) - other.picture).max() <= 2


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("fast", installed())
def test_a_mix_is_painted_by_the_runtime_that_is_fastest_with_the_exact_graph(
    home: Home, fast: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def times(_signature: Signature, engines: dict[Runtime, object], code: object) -> dict[str, float]:
        measured.append("with a code" if code is not None else "without")
        return {runtime: 1.0 if runtime == fast else 2.0 for runtime in engines}

    monkeypatch.setattr("edge_node.runtimes._milliseconds", times)
    (home.root / "runtimes.json").unlink(missing_ok=True)
    order = Order(pictures.shapes((64, 64)), {"sea": 1.0, "sky": 1.0})

    assert {paint.paint(home, order).runtime for _ in range(2)} == {fast}
    assert measured == ["with a code"]  # once
    (home.root / "runtimes.json").unlink()


@pytest.mark.usefixtures("world")
def test_a_wrong_style_name_is_told_with_those_there_are(home: Home) -> None:
    with pytest.raises(UnknownStyleError, match="no style 'see'") as caught:
        paint.paint(home, Order(pictures.shapes((64, 64)), {"see": 1.0}))

    assert "sea, sky" in caught.value.advice


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_strength_outside_0_to_1_is_refused(home: Home, strength: float) -> None:
    with pytest.raises(UsageError, match="strength") as caught:
        paint.paint(home, Order(pictures.shapes((64, 64)), SEA, strength=strength))

    assert "0 to 1" in caught.value.advice


def test_styles_of_different_bodies_are_not_mixed(tmp_path: Path, world: VerifiedRelease) -> None:
    home = simulators.trusting(simulators.make_node(tmp_path / "home"))
    styles.compile_style(home, "sea", simulators.style_code(world), world, simulators.LINEAGE)
    styles.compile_style(home, "sky", simulators.style_code(world), world, simulators.LINEAGE)
    folder = home.styles / "sky" / world.manifest.body[:16]
    record = (folder / "style.json").read_text()
    (folder / "style.json").write_text(record.replace(world.manifest.body, "0" * 64))

    with pytest.raises(UsageError, match="different bodies"):
        paint.paint(home, Order(pictures.shapes((64, 64)), {"sea": 1.0, "sky": 1.0}))


def test_a_changed_graph_is_not_run(tmp_path: Path, world: VerifiedRelease) -> None:
    home = simulators.make_node(tmp_path / "home")
    style = styles.compile_style(home, "sea", simulators.style_code(world), world, simulators.LINEAGE)
    graph = style.folder / "fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")

    with pytest.raises(IntegrityError, match="style 'sea'"):
        paint.paint(home, Order(pictures.shapes((64, 64)), SEA, precision="fp32"))


# --- Public styles -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("world")
def test_a_machine_without_styles_of_its_own_paints_in_a_public_one(tmp_path: Path, packaged: VerifiedRelease) -> None:
    bare = simulators.make_node(tmp_path / "bare")
    photo = pictures.shapes((80, 96), seed=1)

    painted = paint.paint(bare, Order(photo, {"paper": 1.0}, runtime="onnxruntime"))

    assert (painted.graph, painted.precision) == ("exact", "fp32")
    code = release.codes_of(packaged)["paper"]
    engine = open_engine(packaged.read(release.EXACT), "exact")
    np.testing.assert_array_equal(painted.picture, samplers.paint(engine.run, packaged.manifest.signature, photo, code))


@pytest.mark.usefixtures("world")
def test_public_styles_mix_with_ones_own(home: Home) -> None:
    photo = pictures.shapes((80, 96), seed=1)

    alone, mixed = (
        paint.paint(home, Order(photo, weights)).picture for weights in ({"paper": 1.0}, {"paper": 1.0, "sea": 1.0})
    )

    assert not np.array_equal(alone, mixed)


@pytest.mark.usefixtures("world")
def test_ones_own_style_goes_before_a_public_one_of_the_same_name(tmp_path: Path, packaged: VerifiedRelease) -> None:
    home = simulators.make_node(tmp_path / "home")
    styles.compile_style(home, "paper", simulators.style_code(packaged), packaged, simulators.LINEAGE)

    assert paint.paint(home, Order(pictures.shapes((64, 64)), {"paper": 1.0})).graph == "folded"


@pytest.mark.usefixtures("world")
def test_the_identity_is_no_style(home: Home) -> None:
    with pytest.raises(UnknownStyleError) as caught:
        paint.paint(home, Order(pictures.shapes((64, 64)), {"identity": 1.0}))

    assert caught.value.advice == "There are: paper, sea, sky."


@pytest.mark.usefixtures("world")
def test_a_public_style_has_no_int8_graph(home: Home) -> None:
    with pytest.raises(UsageError, match="painted in fp32"):
        paint.paint(home, Order(pictures.shapes((64, 64)), {"paper": 1.0}, precision="int8"))


def test_a_public_style_does_not_mix_with_one_of_another_body(tmp_path: Path, world: VerifiedRelease) -> None:
    home = simulators.trusting(simulators.make_node(tmp_path / "home"))
    styles.compile_style(home, "sea", simulators.style_code(world), world, simulators.LINEAGE)
    moved = weights.pack({name: array + np.float32(0.01) for name, array in release.body_of(world).items()})
    simulators.release_again(world, tmp_path / "two", body_bytes=moved, body=digest_of(moved), version=2)
    releases.install(home, tmp_path / "two")

    assert paint.paint(home, Order(pictures.shapes((64, 64)), {"sea": 1.0})).graph == "folded"
    with pytest.raises(UsageError, match="different bodies"):
        paint.paint(home, Order(pictures.shapes((64, 64)), {"sea": 1.0, "paper": 1.0}))


def test_a_release_of_another_kind_of_art_is_not_painted_as_a_picture(tmp_path: Path, world: VerifiedRelease) -> None:
    home = simulators.trusting(simulators.make_node(tmp_path / "home"))
    melody = replace(world.manifest.signature, medium="melody")
    simulators.release_again(world, tmp_path / "two", signature=melody, version=2)
    other = releases.install(home, tmp_path / "two")

    with pytest.raises(NotConfiguredError, match="melody") as caught:
        paint.paint(home, Order(pictures.shapes((64, 64)), {"paper": 1.0}, strength=0.0))
    assert caught.value.advice == "Update Sfumato."
    with pytest.raises(NotConfiguredError, match="melody"):
        styles.compile_style(home, "sea", simulators.style_code(world), other, simulators.LINEAGE)


# --- Photos and pictures as files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(63, 64), (64, 63), (10, 1000)])
def test_a_photo_too_small_is_refused_with_advice(tmp_path: Path, height: int, width: int) -> None:
    (tmp_path / "photo.png").write_bytes(pictures.encoded(pictures.gradient((height, width)), "PNG"))

    with pytest.raises(BadPictureError, match=f"photo.png has {width} x {height} pixels") as caught:
        paint.read_photo(tmp_path / "photo.png")

    assert "at least 64 pixels a side" in caught.value.advice
    assert "megapixels" not in caught.value.advice


@pytest.mark.parametrize(("height", "width"), [(2000, 4000), (64, 64)])
def test_a_photo_at_the_limits_is_read(tmp_path: Path, height: int, width: int) -> None:
    (tmp_path / "photo.jpg").write_bytes(pictures.encoded(pictures.gradient((height, width)), "JPEG"))

    assert paint.read_photo(tmp_path / "photo.jpg").shape == (height, width, 3)


def test_a_photo_too_large_is_refused_and_size_makes_it_small_enough(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(pictures.encoded(pictures.gradient((2001, 4000)), "JPEG"))

    with pytest.raises(BadPictureError, match="4000 x 2001") as caught:
        paint.read_photo(tmp_path / "photo.jpg")

    assert "make it smaller first with --size" in caught.value.advice
    assert "at least" not in caught.value.advice
    assert paint.read_photo(tmp_path / "photo.jpg", longest_side=400).shape == (200, 400, 3)


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    photo = pictures.gradient((70, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    (tmp_path / "photo.png").write_bytes(pictures.encoded(photo, "PNG", exif=exif))

    np.testing.assert_array_equal(paint.read_photo(tmp_path / "photo.png"), np.rot90(photo, -1))


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"not a picture at all")

    with pytest.raises(BadPictureError, match=r"photo\.jpg cannot be opened"):
        paint.read_photo(tmp_path / "photo.jpg")


@pytest.mark.parametrize("name", ["picture.png", "picture.JPG", "picture.webp", "picture.jpeg"])
def test_a_picture_is_written_and_can_be_read_again(tmp_path: Path, name: str) -> None:
    picture = pictures.shapes((70, 90))

    paint.write_picture(tmp_path / name, picture)

    assert codecs.decode((tmp_path / name).read_bytes()).shape == picture.shape


@pytest.mark.parametrize("name", ["picture.gif", "picture", "picture.svg", "picture.png.exe"])
def test_an_ending_we_do_not_write_is_refused_and_nothing_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="pictures are written as") as caught:
        paint.write_picture(tmp_path / name, pictures.shapes((70, 90)))

    assert "picture.jpg" in caught.value.advice
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["photo.png", "./photo.png", "link.png", "hard.png"])
def test_a_photo_is_not_overwritten_by_its_picture(tmp_path: Path, name: str) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"the photo")
    (tmp_path / "link.png").symlink_to(photo)
    (tmp_path / "hard.png").hardlink_to(photo)

    with pytest.raises(UsageError, match="is the photo itself") as caught:
        paint.refuse_output(tmp_path / name, photo, pictures.shapes((70, 90)))

    assert "-o" in caught.value.advice


@pytest.mark.parametrize(
    ("name", "width", "reason"),
    [
        ("picture.gif", 90, "pictures are written as"),
        ("picture.webp", 16_384, "WEBP picture has at most 16383"),
        ("picture.jpg", 65_501, "JPEG picture has at most 65500"),
        ("picture.png", 125_000, None),
    ],
)
def test_a_picture_that_could_not_be_written_is_not_painted(tmp_path: Path, name: str, width: int, reason: str | None) -> None:
    photo = np.zeros((64, width, 3), np.uint8)

    if reason is None:
        paint.refuse_output(tmp_path / name, tmp_path / "photo.png", photo)
    else:
        with pytest.raises(UsageError, match=reason) as caught:
            paint.refuse_output(tmp_path / name, tmp_path / "photo.png", photo)
        assert ".png holds every size" in caught.value.advice


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picture.png").write_bytes(b"the old one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        paint.write_picture(tmp_path / "picture.png", pictures.shapes((70, 90)))

    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes() == b"the old one"


# --- What a person types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("sea", {"sea": 1.0}),
        ("sea=0.6,sky=0.4", {"sea": 0.6, "sky": 0.4}),
        ("sea=2, sky=0", {"sea": 2.0, "sky": 0.0}),
        ("sea,sky", {"sea": 1.0, "sky": 1.0}),
    ],
)
def test_a_mix_is_read_as_written(text: str, weights: dict[str, float]) -> None:
    assert paint.parse_mix(text) == weights


@pytest.mark.parametrize("text", ["", "sea=", "sea=x", "sea=-1", "sea=nan", "sea=inf", "=1", "a,a", "a=0", "a=0,b=0", ","])
def test_what_is_no_mix_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no style or mix") as caught:
        paint.parse_mix(text)

    assert "a=0.6,b=0.4" in caught.value.advice


@pytest.mark.parametrize("name", ["auto", "fp32", "int8"])
def test_a_precision_is_chosen_by_name(name: str) -> None:
    assert paint.precision_choice(name) == name


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="no precision 'fp8'"):
        paint.precision_choice("fp8")


def test_painting_and_compiling_a_style_need_neither_torch_nor_flwr(tmp_path: Path, world: VerifiedRelease) -> None:
    # Not only are they not imported: they cannot be, so that an import inside a function would be noticed too.
    simulators.make_node(tmp_path / "home")
    (tmp_path / "photo.png").write_bytes(pictures.encoded(pictures.shapes((70, 90)), "PNG"))
    program = f"""
import sys
for absent in ("torch", "flwr", "httpx", "uvicorn"):
    sys.modules[absent] = None
from pathlib import Path
from edge_node import node, membership, paint, releases, styles, updater
from edge_node.__main__ import app
from edge_node.config import Home
from export import base, release
from export.signing import Ed25519Signatures, Trust
from models.contract import Score
root = Path({str(tmp_path)!r})
base.load = lambda _modality: Ed25519Signatures().verify(Path({str(world.folder)!r}), Trust(base.FEDERATION, ({KEY!r},)))
home = Home(root / "home")
source = releases.current(home)
lineage = styles.Lineage("Ada", "", 1, Score(0.5, 0.5))
styles.compile_style(home, "sea", release.codes_of(source)["paper"], source, lineage)
for number, style in enumerate(("sea", "paper", "sea=1,paper=2")):
    for strength in ("1", "0.5"):
        picture = root / f"{{number}}-{{strength}}.png"
        words = ["paint", str(root / "photo.png"), "--style", style, "--strength", strength, "-o", str(picture)]
        app([*words, "--home", str(home.root)], standalone_mode=False)
        assert picture.exists()
print("painted")
"""

    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=240, cwd=Path(__file__).parents[2]
    )

    assert said.stdout.splitlines()[-1:] == ["painted"], said.stderr
