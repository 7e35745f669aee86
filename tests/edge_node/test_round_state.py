"""What a node keeps between rounds: it comes back bit for bit, whole or not at all, and to this machine's user alone."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_node import round_state
from edge_node.round_state import RoundState
from export import weights
from export.errors import ResourceError
from export.files import Digest
from models.update import Arrays, Assignment, Ready, Update

Floats = npt.NDArray[np.float32]
quick = profile(suppress_health_check=[HealthCheck.function_scoped_fixture])

BODY: Final = np.linspace(-1, 1, 10, dtype=np.float32)
ASSIGNMENT: Final = Assignment("guild", "style-studio", 7, "ab" * 32, BODY, "cd" * 32)
UPDATE: Final = Update(
    federation="guild",
    round=7,
    policy="ab" * 32,
    tensors=("blocks.0.weight", "stem.weight"),
    layout_digest="cd" * 32,
    payload=b"SFC1" + bytes(range(256)),
    loss_before=2.0,
    loss_after=0.1,
    steps=20,
    signature=bytes(reversed(range(64))),
)
STATE: Final = RoundState(
    material=Digest("1" * 64),
    asked=Digest("2" * 64),
    private={"codes": np.arange(12, dtype=np.float32).reshape(3, 4), "norm_mean": np.ones(3, np.float32)},
    moments={
        ("style", "codes"): {"step": np.array(8, np.float32), "exp_avg": np.full((3, 4), 0.1, np.float32)},
        ("content", "stem.weight"): {"step": np.array(8, np.float32)},
    },
    residual=np.array([1e-30, -0.0, 3e38], np.float32),
    update=UPDATE,
    entry={"what": "update", "round": 7, "norm": 0.1, "tensors": ["blocks.0.weight"], "sha256": "4" * 64},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "training" / "round.safetensors"


def in_bits(arrays: Mapping[Any, Floats]) -> dict[Any, tuple[tuple[int, ...], str, bytes]]:
    return {name: (array.shape, array.dtype.str, array.tobytes()) for name, array in arrays.items()}


def by_hand(kept: Arrays, words_: object) -> bytes:
    """A file with these words, and a checksum that is right."""
    return with_text(kept, json.dumps(words_))


def with_text(kept: Arrays, text: str) -> bytes:
    return weights.pack(kept, {"round": text, "sha256": round_state._checksum(kept, text)})


def assert_the_same(one: RoundState | None, other: RoundState) -> None:
    assert one is not None
    for name in ("material", "asked", "update", "entry"):
        assert getattr(one, name) == getattr(other, name)
    assert in_bits(one.private) == in_bits(other.private)
    assert in_bits({"": one.residual}) == in_bits({"": other.residual})
    assert {key: in_bits(seen) for key, seen in one.moments.items()} == {k: in_bits(s) for k, s in other.moments.items()}


# --- There and back -----------------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back(path: Path) -> None:
    round_state.save(path, STATE)

    assert_the_same(round_state.load(path), STATE)


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=numbers)
names = st.text("abcxyz._-0123456789", min_size=1, max_size=8)
words = st.text(st.characters(codec="utf-8"), max_size=12)
values = (
    words | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.booleans() | st.lists(words, max_size=2) | st.none()
)
updates = st.builds(
    Update,
    federation=words,
    round=st.integers(0, 2**40),
    policy=words,
    tensors=st.lists(words, max_size=3).map(tuple),
    layout_digest=words,
    payload=st.binary(max_size=40),
    loss_before=st.floats(allow_nan=False),
    loss_after=st.floats(allow_nan=False),
    steps=st.integers(0, 2**40),
    signature=st.binary(max_size=64),
)
states = st.builds(
    RoundState,
    material=words.map(Digest),
    asked=words.map(Digest),
    private=st.dictionaries(words, arrays, max_size=3),
    moments=st.dictionaries(st.tuples(names, names), st.dictionaries(names, arrays, min_size=1, max_size=2), max_size=2),
    residual=hnp.arrays(np.float32, st.integers(0, 20), elements=numbers),
    update=updates,
    entry=st.dictionaries(words, values, max_size=4),
)


@quick
@given(states)
def test_whatever_is_kept_comes_back_bit_for_bit(path: Path, state: RoundState) -> None:
    round_state.save(path, state)

    assert_the_same(round_state.load(path), state)


@quick
@given(states)
def test_the_update_that_comes_back_says_the_same_to_whoever_checks_its_signature(path: Path, state: RoundState) -> None:
    round_state.save(path, state)

    found = round_state.load(path)

    assert found is not None
    assert isinstance(found.update, Update)
    assert isinstance(state.update, Update)
    assert found.update.statement == state.update.statement


def test_arrays_that_do_not_lie_in_a_row_come_back(path: Path) -> None:
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    state = replace(STATE, private={"turned": square.T, "every second": square[:, ::2]}, residual=square.ravel()[::3])

    round_state.save(path, state)

    assert_the_same(round_state.load(path), state)


def test_the_same_state_is_the_same_bytes(tmp_path: Path) -> None:
    round_state.save(tmp_path / "one", STATE)
    round_state.save(tmp_path / "other", replace(STATE, private=dict(reversed([*STATE.private.items()]))))

    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_newest_state_is_the_one_that_comes_back(path: Path) -> None:
    round_state.save(path, STATE)
    later = replace(STATE, asked=Digest("5" * 64), private={}, moments={}, residual=np.zeros(0, np.float32))

    round_state.save(path, later)

    assert_the_same(round_state.load(path), later)


# --- What an assignment is called -----------------------------------------------------------------------------------------


def test_the_same_assignment_has_the_same_name_wherever_its_numbers_lie() -> None:
    twice = np.repeat(BODY, 2)

    assert round_state.name_of(ASSIGNMENT) == round_state.name_of(replace(ASSIGNMENT, body=BODY.copy()))
    assert round_state.name_of(ASSIGNMENT) == round_state.name_of(replace(ASSIGNMENT, body=twice[::2]))


@pytest.mark.parametrize(
    "change",
    [
        {"federation": "others"},
        {"modality": "style-kiosk"},
        {"round": 8},
        {"policy": "00" * 32},
        {"layout_digest": "00" * 32},
        {"body": np.nextafter(BODY, np.float32(9))},
        {"body": BODY[:-1]},
        {"body": np.append(BODY, np.float32(0))},
        {"body": BODY[::-1]},
        {"federation": "guil", "modality": "dstyle-studio"},
        {"policy": "cd" * 32, "layout_digest": "ab" * 32},
    ],
)
def test_an_assignment_that_differs_in_anything_has_another_name(change: dict[str, object]) -> None:
    assert round_state.name_of(replace(ASSIGNMENT, **change)) != round_state.name_of(ASSIGNMENT)  # type: ignore[arg-type]


assignments = st.builds(
    Assignment,
    federation=st.sampled_from(["guild", "others", "", '","']),
    modality=st.sampled_from(["style-studio", "", '","']),
    round=st.integers(0, 3),
    policy=st.sampled_from(["", "a", '"']),
    body=hnp.arrays(np.float32, st.integers(0, 2), elements=st.sampled_from([0.0, -0.0, 1.0])),
    layout_digest=st.sampled_from(["", "a"]),
)


@given(assignments, assignments)
def test_two_assignments_have_one_name_exactly_if_they_are_one(one: Assignment, other: Assignment) -> None:
    def parts(of: Assignment) -> tuple[object, ...]:
        return (of.federation, of.modality, of.round, of.policy, of.layout_digest, of.body.tobytes())

    assert (round_state.name_of(one) == round_state.name_of(other)) is (parts(one) == parts(other))


# --- Files that are none --------------------------------------------------------------------------------------------------


def test_before_the_first_round_there_is_nothing(path: Path) -> None:
    assert round_state.load(path) is None


def test_a_folder_in_its_place_is_nothing(path: Path) -> None:
    path.mkdir(parents=True)

    assert round_state.load(path) is None


def written(path: Path) -> bytes:
    round_state.save(path, STATE)
    return path.read_bytes()


@quick
@given(st.integers(0, 10**6))
def test_a_file_that_was_cut_off_is_nothing(path: Path, length: int) -> None:
    whole = written(path)
    path.write_bytes(whole[: length % len(whole)])

    assert round_state.load(path) is None


def test_a_file_with_more_behind_it_is_nothing(path: Path) -> None:
    path.write_bytes(written(path) + b"\0")

    assert round_state.load(path) is None


@profile(quick, max_examples=300)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
def test_a_file_that_was_damaged_stops_nobody(path: Path, at: int, damage: bytes) -> None:
    raw = bytearray(written(path))
    at %= len(raw)
    raw[at : at + len(damage)] = damage
    path.write_bytes(raw)

    found = round_state.load(path)

    if found is not None:  # the damage was what stood there already
        assert_the_same(found, STATE)


@profile(quick, max_examples=300)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_file_with_one_flipped_bit_is_nothing(path: Path, at: int, bit: int) -> None:
    raw = bytearray(written(path))
    raw[at % len(raw)] ^= 1 << bit
    path.write_bytes(raw)

    assert round_state.load(path) is None


def test_a_flipped_bit_of_any_array_is_noticed(path: Path) -> None:
    # Another finite number is as good a number: without the checksum nothing would tell.
    written(path)
    kept, metadata = weights.unpack(path.read_bytes()), weights.metadata_of(path.read_bytes())

    for name, array in kept.items():
        other = array.copy()
        other.reshape(-1).view(np.uint32)[0] ^= 1
        path.write_bytes(weights.pack({**kept, name: other}, metadata))
        assert round_state.load(path) is None, name
    path.write_bytes(weights.pack(kept, metadata))
    assert_the_same(round_state.load(path), STATE)


@pytest.mark.parametrize("change", [{"material": "3" * 64}, {"asked": "3" * 64}, {"entry": {}}, {"more": 1}])
def test_other_words_under_the_old_checksum_are_nothing(path: Path, change: dict[str, object]) -> None:
    words_ = {**said(path), **change}
    kept, metadata = weights.unpack(path.read_bytes()), weights.metadata_of(path.read_bytes())
    path.write_bytes(weights.pack(kept, {**metadata, "round": json.dumps(words_)}))

    assert round_state.load(path) is None


@pytest.mark.parametrize("checksum", [None, "", "0" * 64])
def test_words_and_arrays_without_their_checksum_are_nothing(path: Path, checksum: str | None) -> None:
    text = json.dumps(said(path))
    metadata = {"round": text} | ({} if checksum is None else {"sha256": checksum})
    path.write_bytes(weights.pack(weights.unpack(path.read_bytes()), metadata))

    assert round_state.load(path) is None


def test_a_file_says_no_more_than_this(path: Path) -> None:
    assert set(said(path)) == {"material", "asked", "update", "entry"}
    assert set(weights.metadata_of(path.read_bytes())) == {"round", "sha256"}


def test_a_file_beyond_all_bounds_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(written(path))

    monkeypatch.setattr(round_state, "_MAX_BYTES", size)
    assert round_state.load(path) is not None
    monkeypatch.setattr(round_state, "_MAX_BYTES", size - 1)
    assert round_state.load(path) is None


RESIDUAL: Final[dict[str, Floats]] = {"residual": np.zeros(3, np.float32)}


def said(path: Path) -> dict[str, Any]:
    """What the file says in words."""
    found: dict[str, Any] = json.loads(weights.metadata_of(written(path))["round"])
    return found


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"no safetensors",
        weights.pack({"code": np.zeros(4, np.float32)}, {"modality": "style-studio"}),
        weights.pack(RESIDUAL),
        with_text(RESIDUAL, ""),
        with_text(RESIDUAL, "{"),
        with_text(RESIDUAL, "[]"),
        with_text(RESIDUAL, "3"),
        with_text(RESIDUAL, "{}"),
        with_text(RESIDUAL, "[" * 100_000),
    ],
)
def test_a_foreign_file_is_nothing(path: Path, foreign: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(foreign)

    assert round_state.load(path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"update": None},
        {"update": []},
        {"update": {}},
        {"update": "update"},
    ],
)
def test_a_file_with_other_words_in_it_is_nothing(path: Path, change: dict[str, object]) -> None:
    words_ = {**said(path), **change}
    path.write_bytes(by_hand(weights.unpack(path.read_bytes()), words_))

    assert round_state.load(path) is None


@pytest.mark.parametrize("missing", ["material", "asked", "update", "entry"])
def test_a_file_that_lacks_a_word_is_nothing(path: Path, missing: str) -> None:
    words_ = {name: value for name, value in said(path).items() if name != missing}
    path.write_bytes(by_hand(weights.unpack(path.read_bytes()), words_))

    assert round_state.load(path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"payload": "not base64!"},
        {"payload": "AAA"},
        {"payload": "AA!AA"},
        {"signature": "AAA"},
        {"signature": 3},
        {"tensors": 3},
        {"weight": 1.0},
    ],
)
def test_a_file_with_another_kind_of_update_is_nothing(path: Path, change: dict[str, object]) -> None:
    words_ = said(path)
    words_["update"] = {**words_["update"], **change}
    path.write_bytes(by_hand(weights.unpack(path.read_bytes()), words_))

    assert round_state.load(path) is None


@pytest.mark.parametrize("missing", [field for field in UPDATE.__dataclass_fields__ if field != "signature"])
def test_a_file_with_half_an_update_is_nothing(path: Path, missing: str) -> None:
    words_ = said(path)
    del words_["update"][missing]
    path.write_bytes(by_hand(weights.unpack(path.read_bytes()), words_))

    assert round_state.load(path) is None


@pytest.mark.parametrize(
    "arrays_",
    [
        {},
        {"private/codes": np.zeros(3, np.float32)},
        {"residual": np.zeros(3, np.float64)},
        {"residual": np.array([0, np.nan], np.float32)},
        {"residual": np.array([0, np.inf], np.float32)},
        {**RESIDUAL, "moments/style": np.zeros(3, np.float32)},
        {**RESIDUAL, "moments/style/codes/step/more": np.zeros(3, np.float32)},
    ],
)
def test_a_file_with_other_arrays_is_nothing(path: Path, arrays_: dict[str, Floats]) -> None:
    words_ = said(path)
    path.write_bytes(by_hand(arrays_, words_))

    assert round_state.load(path) is None


def test_words_and_arrays_put_together_by_hand_are_a_state(path: Path) -> None:
    # The positive control of the five tests above: what they refuse, they refuse for what was changed.
    words_, kept = said(path), weights.unpack(path.read_bytes())

    path.write_bytes(by_hand(kept, words_))

    assert_the_same(round_state.load(path), STATE)


# --- Writing ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    round_state.save(path, STATE)

    def full(*_more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step, full)
        with pytest.raises(ResourceError, match=r"round\.safetensors could not be written: No space left on device"):
            round_state.save(path, replace(STATE, asked=Digest("5" * 64)))

    assert_the_same(round_state.load(path), STATE)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_first_write_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError):
        round_state.save(path, STATE)

    assert round_state.load(path) is None
    assert list(path.parent.iterdir()) == []


def test_what_is_kept_is_for_this_user_alone_whatever_lay_there(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"")
    path.chmod(0o666)

    round_state.save(path, STATE)

    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_kept_is_for_this_user_alone_while_it_is_being_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: set[int] = set()
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        modes.update(file.stat().st_mode & 0o777 for file in path.parent.iterdir())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    round_state.save(path, STATE)

    assert modes == {0o600}


def test_what_goes_out_under_masks_comes_back_as_it_was(path: Path) -> None:
    made = Ready("guild", 3, "ab" * 32, "cd" * 32, np.arange(5, dtype=np.float32))
    round_state.save(path, replace(STATE, update=made))

    found = round_state.load(path)

    assert found is not None
    assert isinstance(found.update, Ready)
    assert (found.update.federation, found.update.round, found.update.policy) == ("guild", 3, "ab" * 32)
    assert found.update.layout_digest == "cd" * 32
    np.testing.assert_array_equal(found.update.delta, made.delta)
