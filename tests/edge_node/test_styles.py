"""A style on disk: written whole, checked when read, and private."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_node import styles
from edge_node.config import Home
from edge_node.errors import UnknownStyleError
from edge_node.styles import Style
from export import release, weights
from export.errors import IntegrityError, ResourceError, UsageError
from export.files import digest_of
from export.fold import FoldError
from export.parity import INT8_PSNR_DB, Folding, Parity
from export.quantize import QuantizeError
from export.runtime import RuntimeFailedError, inputs_of, installed, open_engine
from export.signing import VerifiedRelease
from models.samplers import paint
from tests import pictures, simulators


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return simulators.make_node(tmp_path / "home")


@pytest.fixture
def sea(home: Home, packaged: VerifiedRelease) -> Style:
    code = simulators.style_code(packaged)
    return styles.compile_style(home, "sea", code, packaged, simulators.LINEAGE)


def test_a_compiled_style_is_found_as_it_was_written(home: Home, sea: Style) -> None:
    assert styles.names(home) == ["sea"]
    assert styles.find(home, "sea") == sea
    assert styles.all_styles(home) == {"sea": sea}


def test_the_code_comes_back_bit_for_bit(sea: Style, packaged: VerifiedRelease) -> None:
    np.testing.assert_array_equal(sea.code(), simulators.style_code(packaged))


def test_the_code_file_says_whose_it_is_and_of_which_body(sea: Style, packaged: VerifiedRelease) -> None:
    said = weights.metadata_of(sea.read("sea.style"))

    assert (said["artist"], said["modality"], said["body"]) == ("Ada", "style-studio", packaged.manifest.body)
    assert said["made"] == sea.made


def test_the_folded_graph_paints_without_a_code_what_the_exact_one_paints_with_it(
    sea: Style, packaged: VerifiedRelease
) -> None:
    signature = packaged.manifest.signature
    folded = open_engine(sea.graph("fp32"), "folded")
    exact = open_engine(packaged.read(release.EXACT), "exact")
    photo = release.calibration_photos(packaged)[0]

    near, far = paint(folded.run, signature, photo, None), paint(exact.run, signature, photo, sea.code())

    assert inputs_of(folded) == (signature.content.name,)
    # Statistics are the mean over two unlike photos, so this is near and not the same, as with one photo (test_fold).
    assert np.abs(near.astype(int) - far).mean() < np.abs(photo.astype(int) - far).mean()
    assert near.std() > 3


def test_a_style_on_another_body_is_added_and_the_old_one_kept(home: Home, sea: Style, packaged: VerifiedRelease) -> None:
    folder = sea.folder.with_name("0" * 16)
    sea.folder.rename(folder)
    simulators.point_style_at(home, "sea", folder.name)
    again = styles.compile_style(home, "sea", simulators.style_code(packaged, 1), packaged, simulators.LINEAGE)

    assert styles.find(home, "sea").folder == again.folder
    assert (folder / "fp32.onnx").is_file()


def test_a_full_disk_leaves_the_style_in_use(
    home: Home, sea: Style, packaged: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        styles.compile_style(home, "sea", simulators.style_code(packaged, 1), packaged, simulators.LINEAGE)

    assert styles.find(home, "sea") == sea
    np.testing.assert_array_equal(styles.find(home, "sea").code(), simulators.style_code(packaged))


@pytest.mark.parametrize("name", ["sea.style", "fp32.onnx", "int8-onnxruntime.onnx"])
def test_a_changed_file_is_noticed_when_it_is_read(sea: Style, name: str) -> None:
    data = (sea.folder / name).read_bytes()
    (sea.folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    with pytest.raises(IntegrityError, match="style 'sea'") as caught:
        sea.read(name)

    assert "sfumato learn" in caught.value.advice


def test_a_missing_file_is_told(sea: Style) -> None:
    (sea.folder / "fp32.onnx").unlink()

    with pytest.raises(IntegrityError, match="style 'sea'"):
        sea.graph("fp32")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"artist": 3}', '{"files": []}', " " * 20_000])
def test_a_damaged_record_is_told(home: Home, sea: Style, text: str) -> None:
    (sea.folder / "style.json").write_text(text)

    with pytest.raises(IntegrityError, match="style 'sea' are damaged"):
        styles.find(home, "sea")


def test_a_damaged_style_does_not_take_the_others_down(home: Home, sea: Style, packaged: VerifiedRelease) -> None:
    styles.compile_style(home, "sky", simulators.style_code(packaged, 1), packaged, simulators.LINEAGE)
    (home.styles / "sky" / "current").write_bytes(b"x" * 200)

    assert styles.all_styles(home) == {"sea": sea, "sky": None}


def test_a_style_learned_from_one_folder_is_not_lost_to_another(home: Home, packaged: VerifiedRelease, tmp_path: Path) -> None:
    lineage = replace(simulators.LINEAGE, folder_of_works=str(tmp_path / "works"))
    styles.compile_style(home, "sea", simulators.style_code(packaged), packaged, lineage)

    styles.refuse_other_folder(home, "sea", tmp_path / "works")
    styles.refuse_other_folder(home, "sky", tmp_path / "more")
    with pytest.raises(UsageError, match=r"was learned from .*works") as caught:
        styles.refuse_other_folder(home, "sea", tmp_path / "more")
    assert "--replace" in caught.value.advice


def test_a_damaged_style_may_be_learned_anew_from_anywhere(home: Home, sea: Style, tmp_path: Path) -> None:
    (sea.folder / "style.json").unlink()

    styles.refuse_other_folder(home, "sea", tmp_path)


def test_a_record_of_an_earlier_version_counts_all_works_as_used(home: Home, sea: Style) -> None:
    record = json.loads((sea.folder / "style.json").read_text())
    del record["works_found"]
    (sea.folder / "style.json").write_text(json.dumps(record))

    assert styles.find(home, "sea") == sea


def test_an_unknown_style_is_told_with_those_there_are(home: Home, sea: Style) -> None:
    with pytest.raises(UnknownStyleError) as caught:
        styles.find(home, "sky")

    assert caught.value.advice == f"There are: {sea.name}."


def test_a_home_without_styles_says_how_to_get_one(home: Home) -> None:
    with pytest.raises(UnknownStyleError) as caught:
        styles.find(home, "sea")

    assert "sfumato learn" in caught.value.advice


@pytest.mark.parametrize("name", ["../sea", "sea/..", ".", "", "/etc"])
def test_a_name_that_leaves_the_folder_is_no_style(home: Home, sea: Style, name: str) -> None:
    del sea
    with pytest.raises(UnknownStyleError):
        styles.find(home, name)


@pytest.mark.parametrize("pointer", ["../../..", "/etc", "", "no-such-body"])
def test_a_pointer_that_leaves_the_folder_is_not_followed(home: Home, sea: Style, pointer: str) -> None:
    del sea
    simulators.point_style_at(home, "sea", pointer)

    with pytest.raises(IntegrityError, match="damaged"):
        styles.find(home, "sea")


def test_the_record_lists_the_digest_of_every_file(sea: Style) -> None:
    plain = json.loads((sea.folder / "style.json").read_text())

    assert plain["files"] == {
        path.name: digest_of(path.read_bytes()) for path in sea.folder.iterdir() if path.name != "style.json"
    }


def test_the_int8_graph_is_near(sea: Style) -> None:
    assert sea.parity is not None
    assert sea.parity.psnr_db > 20


def test_the_best_precision_is_int8_only_when_it_is_near(sea: Style) -> None:
    folds = replace(sea, folding=Folding(0.1, 0.1, 1.0, 0.9), first_live=False)
    near, far = (replace(folds, parity=Parity(psnr_db, 0.99)) for psnr_db in (INT8_PSNR_DB, INT8_PSNR_DB - 0.1))

    assert (near.best_precision, near.compromise) == ("int8", "")
    assert far.best_precision == "fp32"
    assert far.compromise.startswith("int8 would change its pictures too much (31.9 dB")


@pytest.mark.parametrize(
    ("step", "error", "graphs", "sentence"),
    [
        ("observe", QuantizeError("a Sin"), {"fp32.onnx"}, "Its graph cannot be quantised: it is painted in fp32."),
        ("fold", FoldError("a norm"), set(), "Its norms cannot be frozen: it is painted by the exact graph in fp32."),
    ],
)
def test_a_graph_that_a_fast_form_cannot_be_made_of_stays_what_it_is_and_says_so(
    home: Home,
    packaged: VerifiedRelease,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: Exception,
    graphs: set[str],
    sentence: str,
) -> None:
    def odd(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(styles, step, odd)
    sea = styles.compile_style(home, "sea", simulators.style_code(packaged), packaged, simulators.LINEAGE)

    assert set(sea.files) == {"sea.style", *graphs}
    assert (sea.parity, sea.best_precision) == (None, "fp32")
    assert replace(sea, folding=None, first_live=False).compromise == sentence
    assert replace(sea, folding=None).is_folded == bool(graphs)
    assert styles.find(home, "sea") == sea


def broken(*_arguments: object) -> None:
    raise RuntimeFailedError("OpenVINO cannot be loaded (no libtbb)")


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
def test_a_runtime_that_does_not_work_keeps_no_style_from_being_compiled(
    home: Home, sea: Style, packaged: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.runtime._openvino", broken)

    without = styles.compile_style(home, "sky", simulators.style_code(packaged), packaged, simulators.LINEAGE)

    assert without.measured == ("onnxruntime",)
    assert without.parity is not None
    assert sea.measured == installed()  # the control: where it works it is measured


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
def test_the_form_of_a_runtime_that_came_later_is_measured_and_the_worst_counts(
    home: Home, packaged: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(styles, "installed", lambda: ("onnxruntime",))
        sea = styles.compile_style(home, "sea", simulators.style_code(packaged), packaged, simulators.LINEAGE)
    far = Parity(12.0, 0.5)
    monkeypatch.setattr(styles, "compare", lambda *_: far)

    known = styles.measure_missing(home, sea, packaged)

    assert (sea.measured, known.measured) == (("onnxruntime",), ("onnxruntime", "openvino"))
    assert known.parity == far
    assert styles.find(home, "sea") == known
    assert styles.measure_missing(home, known, packaged) is known


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is an extra")
def test_what_cannot_be_remembered_of_a_runtime_is_measured_all_the_same(
    home: Home, packaged: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise ResourceError("the disk is full", advice="Make room.")

    with monkeypatch.context() as before:
        before.setattr(styles, "installed", lambda: ("onnxruntime",))
        sea = styles.compile_style(home, "sea", simulators.style_code(packaged), packaged, simulators.LINEAGE)
    monkeypatch.setattr(styles, "write_atomic", full)

    assert styles.measure_missing(home, sea, packaged).measured == ("onnxruntime", "openvino")
    assert styles.find(home, "sea") == sea


def test_a_style_remembers_what_folding_changed(home: Home, packaged: VerifiedRelease) -> None:
    code = simulators.style_code(packaged)
    sea = styles.compile_style(
        home, "sea", code, packaged, simulators.LINEAGE, distance=lambda works: float(np.mean([w.mean() for w in works]))
    )

    assert sea.folding is not None
    assert sea.folding.style_exact > 0
    assert styles.find(home, "sea").folding == sea.folding


NEAR, FAR = Folding(0.1, 0.1, 1.0, 0.9), Folding(0.1, 0.1, 4.8, 0.9)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([NEAR], ""),
        ([FAR, NEAR], ""),
        ([FAR, FAR, NEAR], "With all norms frozen its pictures would change too much: the first stays live"),
        ([FAR, FAR, FAR], "With frozen norms its pictures would change too much (colour difference 4.8"),
    ],
)
def test_a_style_keeps_its_first_norm_live_where_freezing_all_changes_too_much(
    home: Home, packaged: VerifiedRelease, monkeypatch: pytest.MonkeyPatch, found: list[Folding], said: str
) -> None:
    judged = iter(found)
    monkeypatch.setattr(styles, "folding", lambda *_: next(judged))
    monkeypatch.setattr(Parity, "is_near", lambda _: True)

    sea = styles.compile_style(home, "sea", simulators.style_code(packaged), packaged, simulators.LINEAGE)

    assert next(judged, None) is None
    live = len(found) > 2
    assert sea.first_live == live
    norms = [node.op_type for node in onnx.load_from_string(sea.graph("fp32")).graph.node].count("InstanceNormalization")
    assert norms == int(live)
    assert sea.compromise.startswith(said)
    assert bool(sea.compromise) == bool(said)
    assert sea.is_folded == (found[-1] == NEAR)
    assert styles.find(home, "sea") == sea


def test_a_style_compiled_before_folding_was_measured_still_paints_folded(sea: Style, home: Home) -> None:
    record = sea.folder / "style.json"
    plain = json.loads(record.read_text())
    del plain["folding"], plain["first_live"]
    record.write_text(json.dumps(plain))

    old = styles.find(home, "sea")

    assert old.folding is None
    assert old.is_folded


def test_a_painted_picture_is_not_the_photo(sea: Style, packaged: VerifiedRelease) -> None:
    photo = pictures.shapes((64, 64), seed=4)

    picture = paint(open_engine(sea.graph("fp32"), "folded").run, packaged.manifest.signature, photo, None)

    assert not np.array_equal(picture, photo)
