"""The door before publishing: a style that repeats a work, or was never compared with the works, does not pass."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_node import __main__ as program
from edge_node import library, originality, paint, releases, styles, train
from edge_node.config import Home
from edge_node.errors import NoWorksError
from edge_node.paint import Order
from edge_node.styles import Style
from export import release
from export.errors import IntegrityError, RefusedError, ResourceError
from export.parity import Folding
from export.signing import VerifiedRelease
from models.contract import Work
from models.originality import Likeness, Originality, examine
from models.update import Assignment
from tests import simulators
from tests.command_line import CommandLine

CLEAN = Originality(Likeness("harbour.jpg", 41), Likeness("dunes.jpg", 0.4), Likeness("harbour.jpg", 0.97))
COPY = Originality(Likeness("harbour.jpg", 41), Likeness("dunes.jpg", 0.93), Likeness("dunes.jpg", 0.2))


@pytest.fixture
def home(tmp_path: Path, world: VerifiedRelease) -> Home:
    del world
    return simulators.agreeing(simulators.trusting(simulators.make_node(tmp_path / "home")))


@pytest.fixture
def sea(home: Home, world: VerifiedRelease) -> Style:
    return styles.compile_style(home, "sea", simulators.style_code(world), world, simulators.LINEAGE)


# --- The door ----------------------------------------------------------------------------------------------------------


def test_a_style_that_repeats_a_work_is_refused_and_the_work_named(sea: Style) -> None:
    with pytest.raises(RefusedError, match=r"near copies of dunes\.jpg") as caught:
        originality.refuse_copies(styles.remember(sea, COPY))

    assert caught.value.exit_code == 5
    assert "more works" in caught.value.advice


def test_a_style_that_was_never_compared_is_refused(home: Home, sea: Style) -> None:
    for style in (sea, styles.find(home, "sea")):
        with pytest.raises(RefusedError, match="never compared") as caught:
            originality.refuse_copies(style)
        assert "sfumato learn DIR --style sea" in caught.value.advice


def test_a_style_that_repeats_nothing_passes(home: Home, sea: Style) -> None:
    styles.remember(sea, CLEAN)

    originality.refuse_copies(styles.find(home, "sea"))


# --- The check ---------------------------------------------------------------------------------------------------------


def test_learning_compares_with_every_work_and_names_files(home: Home, tmp_path: Path) -> None:
    simulators.write_works(tmp_path / "works", count=3)

    learned = train.learn(home, "sea", tmp_path / "works", lambda _done, _total: None)

    assert learned.originality is not None
    assert not learned.originality.is_copy, learned.originality
    assert learned.originality.nearest in {"work-0.png", "work-1.png", "work-2.png"}
    assert styles.find(home, "sea") == learned


def test_a_renewed_style_is_compared_anew(home: Home, world: VerifiedRelease, tmp_path: Path) -> None:
    simulators.write_works(tmp_path / "works")
    library.add(home, tmp_path / "works")
    train.RoundTraining(home).run(assignment(world))

    renewed = train.renew(home, "ada", releases.current(home))

    assert renewed is not None
    assert renewed.originality is not None


def test_the_pictures_compared_are_those_of_the_graph_that_paints(
    home: Home, sea: Style, world: VerifiedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulators.write_works(tmp_path / "works", count=3)
    works, seen = library.load_folder(tmp_path / "works"), []

    def noted(pictures: list[Work], *others: Any) -> Originality:
        seen.append(pictures[0])
        return examine(pictures, *others)

    monkeypatch.setattr(originality, "examine", noted)
    probe = next(iter(release.pictures_of(world, release.PROBE).values()))
    for style in (replace(sea, folding=Folding(0.1, 0.1, 1.0, 0.9)), replace(sea, folding=Folding(0.1, 0.2, 1.0, 0.9))):
        originality.check(style, world, works)
        shown = paint.paint(home, Order(probe, {"sea": 1.0}, precision="fp32", runtime="onnxruntime"))
        assert np.array_equal(seen[-1], shown.picture)
        assert shown.graph == ("folded" if style.is_folded else "exact")


def assignment(world: VerifiedRelease) -> Assignment:
    layout = simulators.body_layout()
    return Assignment(
        federation="guild",
        modality="style-studio",
        round=1,
        policy=simulators.POLICY.digest,
        body=layout.flatten(release.body_of(world)),
        layout_digest=layout.digest,
    )


def test_works_are_those_of_the_folder_or_of_the_library(home: Home, sea: Style, tmp_path: Path) -> None:
    with pytest.raises(NoWorksError):
        originality.works_of(home, sea)
    simulators.write_works(tmp_path / "works")
    library.add(home, tmp_path / "works")

    assert originality.works_of(home, sea).names == ["work-0.png", "work-1.png"]


def test_a_work_that_cannot_be_read_any_more_takes_its_name_along(home: Home, sea: Style, tmp_path: Path) -> None:
    simulators.write_works(tmp_path / "works", count=3)
    library.add(home, tmp_path / "works")
    (tmp_path / "works" / "work-1.png").unlink()

    loaded = originality.works_of(home, sea)

    assert loaded.names == ["work-0.png", "work-2.png"]
    assert len(loaded.works) == 2


def test_no_name_of_a_work_reaches_a_log(home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    simulators.write_works(tmp_path / "works")
    with caplog.at_level(logging.INFO):
        train.learn(home, "sea", tmp_path / "works", lambda _done, _total: None)

    assert "work-" not in caplog.text


# --- The record --------------------------------------------------------------------------------------------------------


def test_a_record_of_an_earlier_version_is_read_as_unchecked(home: Home, sea: Style) -> None:
    styles.remember(sea, CLEAN)
    record = json.loads((sea.folder / "style.json").read_text())
    del record["originality"]
    (sea.folder / "style.json").write_text(json.dumps(record))

    assert styles.find(home, "sea").originality is None


@pytest.mark.parametrize("plain", [{}, [], "yes", {"hashes": 1}, {"hashes": {"work": "a", "figure": "b"}}])
def test_a_damaged_verdict_is_told(home: Home, sea: Style, plain: object) -> None:
    record = json.loads((sea.folder / "style.json").read_text())
    (sea.folder / "style.json").write_text(json.dumps(record | {"originality": plain}))

    with pytest.raises(IntegrityError, match="damaged"):
        styles.find(home, "sea")


def test_a_verdict_with_a_number_that_is_none_is_refused(home: Home, sea: Style) -> None:
    styles.remember(sea, Originality(Likeness("a", float("nan")), CLEAN.patches, CLEAN.ratio))

    with pytest.raises(RefusedError, match="near copies of a"):
        originality.refuse_copies(styles.find(home, "sea"))


def test_on_a_full_disk_a_style_stays_unchecked(home: Home, sea: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError):
        styles.remember(sea, CLEAN)

    assert styles.find(home, "sea") == sea


def test_a_renewal_warns_of_a_near_copy_without_saying_of_what(
    home: Home, sea: Style, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(train, "renew", lambda *_: styles.remember(sea, COPY))

    assert CommandLine(program.app).run(home, "renew").exit_code == 0

    assert "style sea: near copies of a work" in caplog.text
    assert "dunes" not in caplog.text


# --- What the artist is told -------------------------------------------------------------------------------------------


def test_the_artist_is_told_in_one_sentence(sea: Style) -> None:
    assert "not compared" in originality.sentence(sea)
    assert originality.sentence(styles.remember(sea, CLEAN)) == "No picture comes near a work; nearest: harbour.jpg."
    assert "near copies of dunes.jpg (by patches, ratio)" in originality.sentence(styles.remember(sea, COPY))


@pytest.mark.parametrize(
    ("found", "column", "near_copy"),
    [(None, "not checked", None), (CLEAN, "yes", False), (COPY, "near copies of dunes.jpg", True)],
)
def test_styles_are_listed_with_their_originality(
    home: Home, sea: Style, found: Originality | None, column: str, near_copy: object
) -> None:
    if found:
        styles.remember(sea, found)
    line = CommandLine(program.app)

    said = line.data(home, "styles")["styles"][0]["originality"]

    assert said["checked"] is (found is not None)
    assert said.get("near_copy") is near_copy
    assert column in " ".join(line.run(home, "styles").stdout.split())
