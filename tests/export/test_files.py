"""Files are there whole or not at all, and no larger than they may be."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import IntegrityError, RefusedError, ResourceError
from export.files import canonical_json, digest_of, held, read_bounded, write_atomic, write_folder_atomic, write_json

Fail = Callable[[str, int], None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Let a function of ``os`` say that the disk is full from its nth call on."""

    def install(name: str, call: int) -> None:
        original, calls = getattr(os, name), [0]

        def full(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] >= call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **named)

        monkeypatch.setattr(os, name, full)

    return install


def everything_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_digest_is_the_sha256_in_small_hexadecimal() -> None:
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of(b"") == hashlib.sha256().hexdigest()


@pytest.mark.parametrize("size", [0, 9, 10])
def test_a_file_below_or_at_the_limit_is_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)

    assert read_bounded(tmp_path / "file", 10) == b"x" * size


@pytest.mark.parametrize("size", [11, 5000])
def test_a_file_above_the_limit_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)

    with pytest.raises(IntegrityError, match="file is larger than 10 bytes"):
        read_bounded(tmp_path / "file", 10)


def test_of_an_endless_file_no_more_than_the_limit_is_read() -> None:
    with pytest.raises(IntegrityError, match="larger than 1000 bytes"):
        read_bounded(Path("/dev/zero"), 1000)


def test_a_file_that_is_not_there_is_the_systems_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "file", 10)


def test_a_file_is_written_whole_with_its_folders_and_nothing_beside_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "file", b"new")

    assert everything_in(tmp_path) == {"a/b/file": b"new"}


def test_a_file_is_replaced(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"old, and longer")
    write_atomic(tmp_path / "file", b"new")

    assert everything_in(tmp_path) == {"file": b"new"}


def test_a_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    write_atomic(tmp_path / "key", b"secret", mode=0o600)

    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("function", ["open", "fsync"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_part_of_the_new(tmp_path: Path, fail: Fail, function: str) -> None:
    write_atomic(tmp_path / "file", b"old")
    fail(function, 1)

    with pytest.raises(ResourceError, match="file could not be written: No space left") as caught:
        write_atomic(tmp_path / "file", b"new")

    assert "Free some disk space" in caught.value.advice
    assert everything_in(tmp_path) == {"file": b"old"}


def test_a_failed_rename_keeps_the_old_file_and_leaves_no_part_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "file", b"old")

    def refuse(_self: Path, _target: Path) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "replace", refuse)

    with pytest.raises(ResourceError, match="Input/output error"):
        write_atomic(tmp_path / "file", b"new")

    assert everything_in(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_a_file_that_is_broken_off_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_atomic(tmp_path / "file", b"old")

    def break_off(_descriptor: int) -> NoReturn:
        raise error

    monkeypatch.setattr(os, "fsync", break_off)
    with pytest.raises(type(error)):
        write_atomic(tmp_path / "file", b"new")

    assert everything_in(tmp_path) == {"file": b"old"}


def test_a_folder_that_cannot_be_made_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")

    with pytest.raises(ResourceError, match="could not be written"):
        write_atomic(tmp_path / "file" / "below", b"new")
    with pytest.raises(ResourceError, match="could not be written"):
        write_folder_atomic(tmp_path / "file" / "below" / "folder", lambda _: None)

    assert everything_in(tmp_path) == {"file": b"in the way"}


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that makes a crash harmless: sync the file, rename it, sync the folder that lists it."""
    events: list[str] = []
    sync, rename = os.fsync, Path.replace

    def traced_sync(descriptor: int) -> None:
        events.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        sync(descriptor)

    def traced_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", traced_sync)
    monkeypatch.setattr(Path, "replace", traced_rename)

    write_atomic(tmp_path / "file", b"new")
    assert events == ["sync file", "rename", "sync folder"]

    events.clear()
    write_folder_atomic(tmp_path / "folder", fill_two)
    assert sorted(events[:-2]) == ["sync file", "sync file", "sync folder", "sync folder"]
    assert events[-2:] == ["rename", "sync folder"]


# Folders.


def fill_two(folder: Path) -> None:
    (folder / "one").write_bytes(b"1")
    (folder / "deep").mkdir()
    (folder / "deep" / "two").write_bytes(b"2")


def fill_old(folder: Path) -> None:
    (folder / "old").write_bytes(b"old")


def test_a_folder_appears_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    write_folder_atomic(tmp_path / "a" / "folder", fill_two)

    assert everything_in(tmp_path) == {"a/folder/one": b"1", "a/folder/deep/two": b"2"}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["folder"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    write_folder_atomic(tmp_path / "folder", fill_old)
    write_folder_atomic(tmp_path / "folder", fill_two)

    assert everything_in(tmp_path) == {"folder/one": b"1", "folder/deep/two": b"2"}


def test_while_a_folder_is_filled_it_cannot_be_seen(tmp_path: Path) -> None:
    def look(folder: Path) -> None:
        fill_two(folder)
        assert not (tmp_path / "folder").exists()
        assert folder.name.startswith(".")

    write_folder_atomic(tmp_path / "folder", look)


class OfTheFillError(Exception):
    """Raised by a fill."""


@pytest.mark.parametrize("error", [OfTheFillError(), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("old", [True, False])
def test_a_fill_that_raises_leaves_nothing_and_keeps_the_old_folder(tmp_path: Path, error: BaseException, *, old: bool) -> None:
    if old:
        write_folder_atomic(tmp_path / "folder", fill_two)
    before = everything_in(tmp_path)

    def fill(folder: Path) -> None:
        (folder / "half").write_bytes(b"?")
        raise error

    with pytest.raises(type(error)):
        write_folder_atomic(tmp_path / "folder", fill)

    assert everything_in(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["folder"] if old else [])


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_disk_that_fills_up_leaves_nothing_and_keeps_the_old_folder(tmp_path: Path, fail: Fail, call: int) -> None:
    write_folder_atomic(tmp_path / "folder", fill_old)
    fail("fsync", call)

    with pytest.raises(ResourceError, match="folder could not be written: No space left"):
        write_folder_atomic(tmp_path / "folder", fill_two)

    assert everything_in(tmp_path) == {"folder/old": b"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def killed_between_the_renames(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a folder up to where the old one is aside and the new one not in its place."""
    rename = Path.replace

    def kill(self: Path, to: Path) -> Path:
        if to == target:
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            write_folder_atomic(target, fill_two)


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder"
    write_folder_atomic(target, fill_old)
    rename = Path.replace

    def refuse(self: Path, to: Path) -> Path:
        if self.suffix == ".part":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ResourceError, match="Input/output error"):
        write_folder_atomic(target, fill_two)

    assert everything_in(tmp_path) == {"folder/old": b"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_an_old_folder_that_a_kill_left_aside_comes_back_before_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    write_folder_atomic(target, fill_old)
    killed_between_the_renames(target, monkeypatch)
    assert not target.exists()

    def fail(_folder: Path) -> None:
        raise OfTheFillError

    with pytest.raises(OfTheFillError):
        write_folder_atomic(target, fail)

    assert everything_in(tmp_path) == {"folder/old": b"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_what_a_kill_left_is_swept_but_not_what_is_still_being_filled_or_anothers(tmp_path: Path) -> None:
    stale, fresh, old = (
        tmp_path / f".folder.{mark * 12}.{kind}" for mark, kind in (("a", "part"), ("b", "part"), ("c", "old"))
    )
    others = [tmp_path / ".folder.two.aaaaaaaaaaaa.part", tmp_path / ".other.aaaaaaaaaaaa.old", tmp_path / ".folder.short.part"]
    for path in (stale, fresh, old, *others):
        path.mkdir()
        (path / "file").write_bytes(b"?")
        os.utime(path, (0, 0))
    os.utime(fresh)
    write_folder_atomic(tmp_path / "folder", fill_old)  # in place of what was aside

    assert {p.name for p in tmp_path.iterdir()} == {"folder", fresh.name, *(p.name for p in others)}
    assert everything_in(tmp_path / "folder") == {"old": b"old"}


# Locks.


def test_what_is_held_is_refused_to_another_and_free_again_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "up.lock"

    with held(lock, "a round"):
        with pytest.raises(RefusedError, match=r"^a round is running already$") as caught, held(lock, "a round"):
            pass
        with held(tmp_path / "another.lock", "a round"):
            pass

    assert caught.value.advice
    with held(lock, "a round"):
        assert lock.read_bytes() == b""


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from export.files import held
with held(Path(sys.argv[1]), "x"):
    print()
    input()
"""
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RefusedError), held(tmp_path / "lock", "x"):
            pass
        holder.kill()

    with held(tmp_path / "lock", "x"):
        pass


def test_a_lock_that_cannot_be_made_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")

    with pytest.raises(ResourceError, match="could not be written"), held(tmp_path / "file" / "lock", "x"):
        pass


# Canonical JSON.

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_canonical_json_says_the_same_as_the_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), json_values, max_size=6))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_canonical_json_has_sorted_keys_no_spaces_and_letters_as_they_are() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "Dürer"}) == '{"a":"Dürer","b":[1,2.5,null,true]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, -float("inf")], {"a": float("nan")}])
def test_canonical_json_refuses_numbers_that_json_does_not_have(value: object) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json(value)


def test_write_json_writes_canonical_json(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"b": 1, "a": 2})

    assert (tmp_path / "file.json").read_bytes() == b'{"a":2,"b":1}'
