"""The account of what left: appended to, never changed, and each kind of tampering shows at its line."""

import json
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from export import ledger as module
from export.errors import IntegrityError, RefusedError, ResourceError
from export.files import digest_of, held
from export.ledger import Ledger, Value

Tamper = Callable[[list[bytes]], list[bytes]]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Five lines."""
    ledger = Ledger(tmp_path / "deep" / "ledger.jsonl")
    for number in range(5):
        ledger.append({"what": "update", "round": number, "bytes": 40})
    return ledger


def test_a_ledger_that_was_never_written_is_empty(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "ledger.jsonl").entries() == []


def test_lines_come_back_in_order_with_the_time(ledger: Ledger) -> None:
    entries = ledger.entries()

    assert [entry["round"] for entry in entries] == [0, 1, 2, 3, 4]
    assert all(str(entry["when"]).endswith("+00:00") for entry in entries)


def test_every_line_holds_the_digest_of_the_line_before(ledger: Ledger) -> None:
    lines = ledger.path.read_bytes().splitlines()
    before = [json.loads(line)["before"] for line in lines]

    assert before == ["0" * 64, *[digest_of(line) for line in lines[:-1]]]


def changed(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"bytes":40', b'"bytes":41'), *lines[3:]]


@pytest.mark.parametrize(
    ("tamper", "line"),
    [
        (changed, 4),  # its own link still holds: the line after it tells
        (lambda lines: [lines[0].replace(b'"bytes":40', b'"bytes":41'), *lines[1:]], 2),
        (lambda lines: [*lines[:2], *lines[3:]], 3),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], 4),
        (lambda lines: [*lines[:2], b'{"what":"nothing"}', *lines[2:]], 3),
        (lambda lines: [*lines[:2], b"not json", *lines[3:]], 3),
        (lambda lines: [*lines[:2], b"[]", *lines[3:]], 3),
        (lambda lines: [*lines[:2], b"", *lines[2:]], 3),
        (lambda lines: [*lines[:4], lines[4][:-9]], 5),
        (lambda lines: [*lines[:2], b"\xff\xfe", *lines[3:]], 3),
    ],
)
def test_a_changed_missing_doubled_or_foreign_line_is_noticed(ledger: Ledger, tamper: Tamper, line: int) -> None:
    ledger.path.write_bytes(b"\n".join(tamper(ledger.path.read_bytes().splitlines())) + b"\n")

    with pytest.raises(IntegrityError, match=f"changed at line {line}$") as caught:
        ledger.entries()

    assert "lines above" in caught.value.advice


def test_an_untouched_ledger_is_believed(ledger: Ledger) -> None:
    # The positive control of the test above: writing the same lines back is no tampering.
    ledger.path.write_bytes(b"\n".join(ledger.path.read_bytes().splitlines()) + b"\n")

    assert len(ledger.entries()) == 5


def test_a_full_disk_is_told_and_leaves_no_half_line(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ledger.path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="No space left on device") as caught:
            ledger.append({"what": "update", "round": 5})

    assert "nothing is sent while the ledger cannot be kept" in caught.value.advice
    assert ledger.path.read_bytes() == before
    ledger.append({"what": "update", "round": 5})
    assert len(ledger.entries()) == 6


@pytest.mark.parametrize("room", [0, 1, 50])
def test_a_write_that_fails_in_its_middle_leaves_no_half_line(ledger: Ledger, room: int) -> None:
    before = ledger.path.read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, limits[1]))
    try:
        with pytest.raises(ResourceError, match="the ledger could not be written"):
            ledger.append({"what": "update", "round": 5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert ledger.path.read_bytes() == before
    ledger.append({"what": "update", "round": 5})
    assert len(ledger.entries()) == 6


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_a_last_line_that_only_lost_its_end_counts_and_gets_it_back(ledger: Ledger, lines: int) -> None:
    whole = b"".join(ledger.path.read_bytes().splitlines(keepends=True)[:lines])
    ledger.path.write_bytes(whole[:-1])

    assert [entry["round"] for entry in ledger.entries()] == list(range(lines))
    ledger.append({"what": "update", "round": 9})

    assert [entry["round"] for entry in ledger.entries()] == [*range(lines), 9]
    assert ledger.path.read_bytes().startswith(whole)


def test_a_last_line_without_its_end_that_does_not_link_is_none(ledger: Ledger) -> None:
    before = ledger.path.read_bytes()
    ledger.path.write_bytes(before + b'{"before":"' + b"0" * 64 + b'","round":7}')

    assert len(ledger.entries()) == 5
    ledger.append({"what": "update", "round": 5})

    assert [entry["round"] for entry in ledger.entries()] == [0, 1, 2, 3, 4, 5]


def test_lines_dropped_at_the_very_end_cannot_be_noticed_as_the_ledger_says_of_itself(ledger: Ledger) -> None:
    ledger.path.write_bytes(b"".join(ledger.path.read_bytes().splitlines(keepends=True)[:3]))

    assert len(ledger.entries()) == 3
    assert "All but the end" in (module.__doc__ or "")


@pytest.mark.parametrize("part", [b"{", b'{"before":"00', b"\xff"])
def test_what_a_crash_left_of_a_line_was_never_written(ledger: Ledger, part: bytes) -> None:
    before = ledger.path.read_bytes()
    ledger.path.write_bytes(before + part)

    assert len(ledger.entries()) == 5
    ledger.append({"what": "update", "round": 5})

    assert [entry["round"] for entry in ledger.entries()] == [0, 1, 2, 3, 4, 5]
    assert ledger.path.read_bytes().startswith(before)


def test_the_first_line_may_be_the_one_a_crash_cut_off(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.write_bytes(b'{"wh')

    ledger.append({"what": "update"})

    assert [entry["what"] for entry in ledger.entries()] == ["update"]


def test_a_line_longer_than_any_of_ours_is_not_read_to_its_end(ledger: Ledger) -> None:
    with ledger.path.open("ab") as file:
        file.write(b"x" * 3_000_000)

    with pytest.raises(IntegrityError, match=r"changed at line 6$"):
        ledger.entries()


def test_a_line_that_could_not_be_read_back_is_not_written(ledger: Ledger) -> None:
    before = ledger.path.read_bytes()

    with pytest.raises(ValueError, match="too long"):
        ledger.append({"tensors": ["x" * 1_200_000]})

    assert ledger.path.read_bytes() == before


def test_a_long_ledger_is_added_to_by_its_end_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in range(200):
        ledger.append({"number": number, "filling": "x" * 1000})

    assert [entry["number"] for entry in ledger.entries()] == list(range(200))


def test_two_who_write_at_once_break_no_link(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def write() -> None:
        for number in range(10):
            ledger.append({"number": number})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ledger.entries()) == 40


# --- Once ---------------------------------------------------------------------------------------------------------------


def test_the_same_is_written_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")

    added = [ledger.append_once({"what": "update", "round": 1}, "what", "round") for _ in range(3)]

    assert added == [True, False, False]
    assert len(ledger.entries()) == 1


def test_what_differs_in_a_word_that_counts_is_another_line_and_in_any_other_word_is_none(ledger: Ledger) -> None:
    assert ledger.append_once({"what": "update", "round": 5, "bytes": 40}, "what", "round")
    assert ledger.append_once({"what": "verdict", "round": 5, "bytes": 40}, "what", "round")
    assert not ledger.append_once({"what": "update", "round": 0, "bytes": 99}, "what", "round")

    assert [entry["round"] for entry in ledger.entries()] == [0, 1, 2, 3, 4, 5, 5]


def test_a_line_anywhere_before_counts(ledger: Ledger) -> None:
    before = ledger.path.read_bytes()

    assert not any(ledger.append_once({"what": "update", "round": number}, "what", "round") for number in range(5))
    assert ledger.path.read_bytes() == before


def test_a_line_that_lacks_a_word_is_another(ledger: Ledger) -> None:
    assert ledger.append_once({"what": "update", "round": 1, "sha256": "0"}, "what", "round", "sha256")


def test_a_list_of_words_is_compared_word_for_word(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")

    for tensors in (["a", "b"], ["a", "b"], ["b", "a"]):
        ledger.append_once({"tensors": [*tensors]}, "tensors")

    assert [entry["tensors"] for entry in ledger.entries()] == [["a", "b"], ["b", "a"]]


def test_a_last_line_that_only_lost_its_end_is_not_written_again(ledger: Ledger) -> None:
    ledger.path.write_bytes(ledger.path.read_bytes()[:-1])

    assert not ledger.append_once({"what": "update", "round": 4}, "what", "round")


def test_a_last_line_that_a_crash_cut_off_is_written_again(ledger: Ledger) -> None:
    ledger.path.write_bytes(ledger.path.read_bytes()[:-10])

    assert ledger.append_once({"what": "update", "round": 4}, "what", "round")
    assert [entry["round"] for entry in ledger.entries()] == [0, 1, 2, 3, 4]


def test_nothing_is_added_to_a_ledger_that_was_changed(ledger: Ledger) -> None:
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"round":1', b'"round":7'))
    before = ledger.path.read_bytes()

    with pytest.raises(IntegrityError, match=r"changed at line 3$"):
        ledger.append_once({"what": "update", "round": 9}, "what", "round")

    assert ledger.path.read_bytes() == before


def test_what_cannot_be_written_once_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(ResourceError, match="could not be written"):
        Ledger(tmp_path / "file" / "ledger.jsonl").append_once({"what": "update"}, "what")


@pytest.mark.parametrize(("there", "wanted"), [(1, True), (True, 1), (1, 1.0), (0, False), ("1", 1), (None, 0), ([], "")])
def test_a_value_of_another_type_is_another_line_though_it_may_compare_equal(
    tmp_path: Path, there: Value, wanted: Value
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"what": "update", "value": there})

    assert ledger.append_once({"what": "update", "value": wanted}, "what", "value")
    assert not ledger.append_once({"what": "update", "value": wanted}, "what", "value")
    assert len(ledger.entries()) == 2


def test_a_word_that_is_none_is_not_a_word_that_lacks(ledger: Ledger) -> None:
    assert ledger.append_once({"what": "update", "round": 1, "sha256": None}, "what", "round", "sha256")
    assert not ledger.append_once({"what": "update", "round": 1, "sha256": None}, "what", "round", "sha256")


def test_two_who_write_once_at_the_same_time_write_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    start, added = threading.Barrier(4), list[int]()

    def write() -> None:
        start.wait()
        added.extend(number for number in range(10) if ledger.append_once({"number": number}, "number"))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(added) == list(range(10))
    assert sorted(int(str(entry["number"])) for entry in ledger.entries()) == list(range(10))


def test_looking_and_writing_once_are_one_step_under_the_lock(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, append, entries = ledger.path.with_name(".ledger.jsonl.lock"), Ledger.append, Ledger._entries
    refused: list[str] = []

    def noticed(step: str) -> None:
        with pytest.raises(RefusedError), held(lock, "the ledger"):
            pass
        refused.append(step)

    def watched_entries(self: Ledger) -> list[dict[str, Value]]:
        noticed("entries")
        return entries(self)

    def watched_append(self: Ledger, entry: dict[str, Value]) -> None:
        noticed("append")
        append(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_entries", watched_entries)
        patch.setattr(Ledger, "append", watched_append)
        assert ledger.append_once({"what": "update", "round": 5}, "what", "round")

    assert refused == ["entries", "append"]
    with held(lock, "the ledger"):  # and it was let go
        pass


def test_a_ledger_that_cannot_be_read_is_told_as_one_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").mkdir()

    with pytest.raises(ResourceError, match="the ledger could not be written: Is a directory") as caught:
        Ledger(tmp_path / "ledger.jsonl").append_once({"what": "update"}, "what")

    assert "nothing is sent" in caught.value.advice


# --- The digest to write down ---------------------------------------------------------------------------------------------


def test_the_head_of_a_ledger_that_was_never_written_is_the_start(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "ledger.jsonl").head() == "0" * 64


@pytest.mark.parametrize("left", [b"", b'{"wh'])
def test_the_head_of_a_ledger_without_a_whole_line_is_the_start(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(left)

    assert Ledger(tmp_path / "ledger.jsonl").head() == "0" * 64


def test_the_head_is_what_the_next_line_will_hold(ledger: Ledger) -> None:
    head = ledger.head()

    ledger.append({"what": "update", "round": 5})

    assert ledger.entries()[-1]["before"] == head
    assert ledger.head() == digest_of(ledger.path.read_bytes().splitlines()[-1])
    assert ledger.head() != head


def test_whoever_wrote_the_head_down_notices_lines_dropped_at_the_very_end(ledger: Ledger) -> None:
    noted = ledger.head()

    ledger.path.write_bytes(b"".join(ledger.path.read_bytes().splitlines(keepends=True)[:4]))

    assert len(ledger.entries()) == 4  # the ledger alone tells nothing
    assert ledger.head() != noted


def test_whoever_wrote_the_head_down_notices_a_change_of_the_last_line(ledger: Ledger) -> None:
    noted = ledger.head()

    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"round":4', b'"round":7'))

    assert ledger.head() != noted


@pytest.mark.parametrize("left", [b"{", b'{"before":"00'])
def test_what_a_crash_left_after_the_last_line_does_not_count(ledger: Ledger, left: bytes) -> None:
    head = ledger.head()

    ledger.path.write_bytes(ledger.path.read_bytes() + left)

    assert ledger.head() == head


def test_a_last_line_without_its_end_counts(ledger: Ledger) -> None:
    head = ledger.head()

    ledger.path.write_bytes(ledger.path.read_bytes()[:-1])

    assert ledger.head() == head


def test_looking_at_the_head_changes_nothing(ledger: Ledger) -> None:
    before = ledger.path.read_bytes() + b"{"
    ledger.path.write_bytes(before)

    ledger.head()

    assert ledger.path.read_bytes() == before


def test_a_line_that_names_ten_thousand_nodes_has_its_place(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    counted = [f"{2**64 - 1 - number} {number:064x}" for number in range(10_000)]

    ledger.append({"what": "round", "accepted": counted})

    assert [entry["accepted"] for entry in ledger.entries()] == [counted]


def test_a_ledger_that_cannot_be_read_is_told_and_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").mkdir()
    ledger = Ledger(tmp_path / "ledger.jsonl")

    for look in (ledger.entries, ledger.head):
        with pytest.raises(IntegrityError, match="the ledger cannot be read"):
            look()
