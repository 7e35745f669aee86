"""The artist's works stay where they lie; the library is a list that notices what changed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edge_node import library
from edge_node.config import Home
from edge_node.errors import BadPictureError, NoWorksError
from edge_node.ingest import Left, Taken
from export.errors import IntegrityError
from tests import pictures, simulators


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def works(tmp_path: Path) -> Path:
    simulators.write_works(tmp_path / "works")
    return tmp_path / "works"


def test_a_home_without_works_has_an_empty_library(home: Home) -> None:
    assert library.entries(home) == []


def test_works_are_listed_where_they_lie_and_not_copied(home: Home, works: Path) -> None:
    found = library.add(home, works)

    assert [type(f) for f in found] == [Taken, Taken]
    assert [entry.path for entry in library.entries(home)] == [works / "work-0.png", works / "work-1.png"]
    assert [path.name for path in home.root.rglob("*") if path.is_file()] == ["works.json"]


def test_the_list_is_for_this_user_only(home: Home, works: Path) -> None:
    library.add(home, works)

    assert home.works_file.stat().st_mode & 0o077 == 0


def test_adding_a_folder_twice_adds_nothing(home: Home, works: Path) -> None:
    library.add(home, works)

    found = library.add(home, works)

    assert [f.reason for f in found if isinstance(f, Left)] == ["duplicate", "duplicate"]
    assert len(library.entries(home)) == 2


def test_a_second_folder_joins_the_first(home: Home, works: Path, tmp_path: Path) -> None:
    simulators.write_works(tmp_path / "more", seed=9, count=1)
    library.add(home, works)
    library.add(home, tmp_path / "more")

    assert len(library.entries(home)) == 3


def test_a_folder_without_a_usable_work_is_refused_with_the_first_reason(home: Home, tmp_path: Path) -> None:
    (tmp_path / "works").mkdir()
    (tmp_path / "works" / "small.png").write_bytes(pictures.encoded(pictures.shapes((20, 20)), "PNG"))

    with pytest.raises(NoWorksError, match="20 x 20 pixels") as caught:
        library.add(home, tmp_path / "works")

    assert "at least 128 pixels" in caught.value.advice
    assert not home.works_file.exists()


def test_a_folder_that_is_not_there_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(BadPictureError, match="there is no folder"):
        library.add(home, tmp_path / "gone")


def test_works_are_loaded_as_they_are(home: Home, tmp_path: Path) -> None:
    made = simulators.write_works(tmp_path / "works")
    library.add(home, tmp_path / "works")

    for work, loaded in zip(made, library.load(home).works, strict=True):
        np.testing.assert_array_equal(loaded, work)


def test_large_works_are_held_no_larger_than_needed(home: Home, tmp_path: Path) -> None:
    (tmp_path / "works").mkdir()
    (tmp_path / "works" / "large.png").write_bytes(pictures.encoded(pictures.gradient((512, 2048)), "PNG"))
    library.add(home, tmp_path / "works")

    assert [work.shape for work in library.load(home).works] == [(256, 1024, 3)]


@pytest.mark.parametrize("how", ["removed", "changed", "damaged"])
def test_a_work_that_is_no_longer_the_same_is_passed_over(home: Home, works: Path, how: str) -> None:
    library.add(home, works)
    work = works / "work-0.png"
    if how == "removed":
        work.unlink()
    elif how == "changed":
        work.write_bytes(pictures.encoded(pictures.shapes((130, 130), seed=77), "PNG"))
    else:
        work.write_bytes(work.read_bytes()[:100])

    assert len(library.load(home).works) == 1


def test_the_state_of_every_work_is_known(home: Home, works: Path) -> None:
    library.add(home, works)
    assert [entry.state() for entry in library.entries(home)] == ["ok", "ok"]

    (works / "work-0.png").unlink()
    (works / "work-1.png").write_bytes(b"another work")

    assert [entry.state() for entry in library.entries(home)] == ["missing", "changed"]


def test_a_work_that_was_only_touched_is_the_same(home: Home, works: Path) -> None:
    library.add(home, works)
    before = library.key(home)

    os.utime(works / "work-0.png", (1, 1))

    assert [entry.state() for entry in library.entries(home)] == ["ok", "ok"]
    assert library.key(home) != before


def test_a_list_of_an_earlier_version_is_read(home: Home, works: Path) -> None:
    library.add(home, works)
    plain = json.loads(home.works_file.read_bytes())
    for entry in plain["works"]:
        del entry["mtime_ns"]
    home.works_file.write_text(json.dumps(plain))

    assert [entry.state() for entry in library.entries(home)] == ["ok", "ok"]


def test_an_edited_work_takes_the_place_of_its_old_entry(home: Home, works: Path) -> None:
    library.add(home, works)
    (works / "work-0.png").write_bytes(pictures.encoded(pictures.shapes((140, 150), seed=77), "PNG"))

    library.add(home, works)

    first, second = library.entries(home)
    assert (first.path.name, first.width, first.height) == ("work-0.png", 150, 140)
    assert (first.state(), second.state()) == ("ok", "ok")


def test_a_work_that_was_moved_is_added_again_in_its_new_place(home: Home, works: Path, tmp_path: Path) -> None:
    library.add(home, works)
    works.rename(tmp_path / "elsewhere")

    library.add(home, tmp_path / "elsewhere")

    assert [entry.path.parent.name for entry in library.entries(home)] == ["elsewhere", "elsewhere"]


@pytest.mark.parametrize(("usable", "used"), [(2, 2), (3, 3), (4, 3)])
def test_no_more_works_are_learned_from_than_fit_in_memory(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: int, used: int
) -> None:
    monkeypatch.setattr(library, "_LESSONS_MAX", 3)
    simulators.write_works(tmp_path / "works", count=usable)
    library.add(home, tmp_path / "works")

    for loaded in (library.load(home), library.load_folder(tmp_path / "works")):
        assert (len(loaded.works), loaded.found) == (used, usable)


def test_the_works_that_are_used_lie_at_even_distances() -> None:
    assert library._LESSONS_MAX == 64
    assert library._spread(range(64)) == list(range(64))
    assert library._spread(range(640)) == list(range(0, 640, 10))
    assert len(set(library._spread(range(65)))) == 64
    assert library._spread([]) == []


def test_a_library_whose_works_are_all_gone_is_told(home: Home, works: Path) -> None:
    library.add(home, works)
    for work in works.iterdir():
        work.unlink()

    with pytest.raises(NoWorksError, match="no work to learn from") as caught:
        library.load(home)

    assert "sfumato works add" in caught.value.advice


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"works": [{}]}', '{"works": 3}', "{"])
def test_a_damaged_list_is_told_with_what_to_do(home: Home, text: str) -> None:
    home.root.mkdir()
    home.works_file.write_text(text)

    with pytest.raises(IntegrityError, match="list of works cannot be read") as caught:
        library.entries(home)

    assert str(home.works_file) in caught.value.advice


def test_the_list_says_only_where_and_what(home: Home, works: Path) -> None:
    library.add(home, works)

    plain = json.loads(home.works_file.read_bytes())

    assert all(set(entry) == {"path", "sha256", "width", "height", "mtime_ns"} for entry in plain["works"])


def test_a_folder_beside_the_library_can_be_loaded(works: Path) -> None:
    assert len(library.load_folder(works).works) == 2


def test_a_folder_beside_the_library_without_works_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoWorksError, match="holds no work"):
        library.load_folder(tmp_path)
