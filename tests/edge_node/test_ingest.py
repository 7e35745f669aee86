"""What is taken from an artist's disk, what is left out, and the reason an artist reads."""

import os
from pathlib import Path

import pytest

from edge_node import ingest
from edge_node.errors import BadPictureError
from edge_node.ingest import Left, Taken
from export.files import digest_of
from models import codecs
from tests import pictures


def png(path: Path, height: int = 130, width: int = 140, seed: int = 0) -> bytes:
    data = pictures.encoded(pictures.shapes((height, width), seed), "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def test_every_picture_below_a_folder_is_taken_in_order_of_name(tmp_path: Path) -> None:
    data = png(tmp_path / "b.PNG", seed=1)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "deep.jpeg").write_bytes(pictures.encoded(pictures.shapes((128, 200), 2), "JPEG"))
    (tmp_path / "c.webp").write_bytes(pictures.encoded(pictures.shapes((150, 150), 3), "WEBP"))

    found = ingest.scan(tmp_path)

    assert [f.path.name for f in found] == ["deep.jpeg", "b.PNG", "c.webp"]
    assert found[1] == Taken(tmp_path / "b.PNG", digest_of(data), 140, 130)


def test_what_is_no_picture_by_name_is_passed_over(tmp_path: Path) -> None:
    png(tmp_path / "work.png")
    for name in ("notes.txt", "work.psd", "Thumbs.db", "work.png.bak", ".png"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "folder.png").mkdir()

    assert [f.path.name for f in ingest.scan(tmp_path)] == ["work.png"]


@pytest.mark.parametrize(
    ("height", "width", "is_taken"),
    [(128, 128, True), (127, 500, False), (500, 127, False), (129, 129, True)],
)
def test_a_side_of_128_pixels_is_just_enough(tmp_path: Path, height: int, width: int, *, is_taken: bool) -> None:
    png(tmp_path / "work.png", height, width)

    (found,) = ingest.scan(tmp_path)

    assert isinstance(found, Taken) == is_taken
    if isinstance(found, Left):
        assert found.reason == "too-small"
        assert found.detail == f"{width} x {height} pixels; each side needs at least 128"


@pytest.mark.parametrize(("height", "width", "is_taken"), [(128, 1024, True), (128, 1025, False), (1032, 129, True)])
def test_one_side_of_eight_times_the_other_is_just_enough(tmp_path: Path, height: int, width: int, *, is_taken: bool) -> None:
    png(tmp_path / "work.png", height, width)

    (found,) = ingest.scan(tmp_path)

    assert isinstance(found, Taken) == is_taken
    if isinstance(found, Left):
        assert found == Left(tmp_path / "work.png", "too-long", "1025 x 128 pixels; one side may be 8 times the other")


@pytest.mark.parametrize(("files", "examined"), [(2, 2), (3, 2)])
def test_more_pictures_than_are_examined_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, examined: int
) -> None:
    assert ingest._FILES_MAX == 10_000
    monkeypatch.setattr(ingest, "_FILES_MAX", 2)
    for number in range(files):
        png(tmp_path / f"{number}.png", seed=number)

    found = ingest.scan(tmp_path)

    assert [f.path.name for f in found if isinstance(f, Taken)] == ["0.png", "1.png"][:examined]
    if files > examined:
        assert found[-1] == Left(tmp_path, "too-many", "the first 2 of its 3 pictures were looked at")
    else:
        assert len(found) == files


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "empty"),
        (b"GIF89a", "not a JPEG, PNG or WebP"),
        (pictures.encoded(pictures.shapes((130, 140)), "PNG")[:400], "damaged or cut short"),
    ],
)
def test_what_cannot_be_read_is_left_out_with_the_reason(tmp_path: Path, data: bytes, detail: str) -> None:
    (tmp_path / "work.png").write_bytes(data)

    (found,) = ingest.scan(tmp_path)

    assert isinstance(found, Left)
    assert found.reason == "unreadable"
    assert detail in found.detail


def test_the_same_file_twice_counts_once(tmp_path: Path) -> None:
    data = png(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(data)

    first, second = ingest.scan(tmp_path)

    assert isinstance(first, Taken)
    assert isinstance(second, Left)
    assert second.reason == "duplicate"


def test_a_work_of_the_library_is_a_duplicate(tmp_path: Path) -> None:
    data = png(tmp_path / "a.png")

    (found,) = ingest.scan(tmp_path, known=frozenset({digest_of(data)}))

    assert isinstance(found, Left)
    assert found.reason == "duplicate"


def test_a_file_larger_than_any_picture_is_left_out_unread(tmp_path: Path) -> None:
    with (tmp_path / "work.png").open("wb") as file:
        file.truncate(codecs.MAX_BYTES + 1)

    (found,) = ingest.scan(tmp_path)

    assert isinstance(found, Left)
    assert "larger than 64 MB" in found.detail


def test_a_pipe_named_like_a_picture_does_not_hang_the_scan(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "work.png")

    assert ingest.scan(tmp_path) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadPictureError, match="there is no folder") as caught:
        ingest.scan(tmp_path / "gone")

    assert caught.value.advice


def test_a_missing_picture_is_told_by_its_name_alone(tmp_path: Path) -> None:
    with pytest.raises(BadPictureError, match=r"^gone\.png cannot be opened: no such file"):
        ingest.read_picture(tmp_path / "gone.png")
