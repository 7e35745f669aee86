"""Messages go through Flower's records unchanged, and nothing but exactly a message comes out of one."""

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.update import Assignment, Flat, Update
from models.wire import WireError, pack_assignment, pack_update, unpack_assignment, unpack_update

flats = hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))
whole = st.integers(0, 2**62)
numbers = st.floats(allow_nan=False)
# A name holds no line break: that is what separates names on the wire, and no tensor's name has one.
names = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12), min_size=1, max_size=5)
texts = st.text(st.characters(codec="utf-8"), max_size=30)

assignments = st.builds(
    Assignment,
    federation=texts,
    modality=texts,
    round=whole,
    body=flats,
    layout_digest=texts,
    steps=whole,
    clip=numbers,
)
updates = st.builds(
    Update,
    round=whole,
    tensors=names.map(tuple),
    layout_digest=texts,
    delta=flats,
    loss_before=numbers,
    loss_after=numbers,
    steps=whole,
)

UPDATE: Final = Update(
    round=3,
    tensors=("stem.weight", "to_full.bias"),
    layout_digest="ab" * 32,
    delta=np.arange(6, dtype=np.float32),
    loss_before=2.5,
    loss_after=1.25,
    steps=40,
)
ASSIGNMENT: Final = Assignment(
    federation="guild",
    modality="style-kiosk",
    round=3,
    body=np.arange(6, dtype=np.float32),
    layout_digest="ab" * 32,
    steps=40,
    clip=1.5,
)
EMPTY: Final = np.zeros(0, np.float32)


def bits(flat: Flat) -> bytes:
    """NaN equals NaN here, and 0 is not -0."""
    return flat.tobytes()


@given(assignments)
def test_an_assignment_comes_out_as_it_went_in(assignment: Assignment) -> None:
    out = unpack_assignment(pack_assignment(assignment))

    assert bits(out.body) == bits(assignment.body)
    assert replace(out, body=EMPTY) == replace(assignment, body=EMPTY)


@given(updates)
def test_an_update_comes_out_as_it_went_in(update: Update) -> None:
    out = unpack_update(pack_update(update))

    assert bits(out.delta) == bits(update.delta)
    assert replace(out, delta=EMPTY) == replace(update, delta=EMPTY)


def test_a_message_survives_flowers_own_bytes() -> None:
    """Through the protocol buffers that really travel."""
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto  # noqa: PLC0415 - a private function

    out = unpack_update(recorddict_from_proto(recorddict_to_proto(pack_update(UPDATE))))

    assert bits(out.delta) == bits(UPDATE.delta)
    assert out.tensors == UPDATE.tensors


def test_nan_is_carried_and_left_to_admission_to_refuse() -> None:
    odd = replace(UPDATE, delta=np.array([math.nan, math.inf, 1], np.float32), loss_after=math.nan)

    out = unpack_update(pack_update(odd))

    assert np.array_equal(out.delta, odd.delta, equal_nan=True)
    assert math.isnan(out.loss_after)


def test_a_message_is_one_array_however_many_tensors_it_speaks_of() -> None:
    record = pack_update(replace(UPDATE, tensors=tuple(f"t{i}" for i in range(300))))

    assert len(list(record.array_records.values())) == 1
    assert len(next(iter(record.array_records.values()))) == 1


# Refusals. Each starts from a good message and spoils one thing.


def spoilt(spoil: Callable[[RecordDict], None]) -> RecordDict:
    record = pack_update(UPDATE)
    spoil(record)
    return record


def header(record: RecordDict) -> ConfigRecord:
    found = record["header"]
    assert isinstance(found, ConfigRecord)
    return found


def with_header(name: str, value: Any) -> Callable[[RecordDict], None]:
    return lambda record: header(record).__setitem__(name, value)


def with_array(array: Array) -> Callable[[RecordDict], None]:
    return lambda record: record.__setitem__("arrays", ArrayRecord({"flat": array}))


def with_record(name: str, value: Any) -> Callable[[RecordDict], None]:
    return lambda record: record.__setitem__(name, value)


def lying(data: bytes, *, dtype: str = "float32", shape: tuple[int, ...] = (6,), kind: str = "numpy.ndarray") -> Array:
    return Array(dtype, shape, kind, data)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npy_with_header(text: str) -> bytes:
    raw = text.encode()
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, flat=np.zeros(6, np.float32))
    return buffer.getvalue()


def zip_of_nothing() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w"):
        pass
    return buffer.getvalue()


GOOD: Final = npy(np.zeros(6, np.float32))
FLAT: Final = Array(np.zeros(6, np.float32))

OTHER_RECORDS: Final = "other records"
OTHER_ARRAYS: Final = "other arrays"
OTHER_FIELDS: Final = "other fields"
WRONG_TYPE: Final = "wrong type"
NOT_A_ROW: Final = "not one row of float32"
TOO_LARGE: Final = "larger than its shape"
UNREADABLE: Final = "cannot be read"
LYING: Final = "not what it says it is"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(with_record("more", ConfigRecord({"a": 1})), OTHER_RECORDS, id="a record too many"),
        pytest.param(with_record("metrics", MetricRecord({"a": 1})), OTHER_RECORDS, id="metrics riding along"),
        pytest.param(lambda r: r.pop("header"), OTHER_RECORDS, id="no header"),
        pytest.param(lambda r: r.pop("arrays"), OTHER_RECORDS, id="no arrays"),
        pytest.param(lambda r: r.clear(), OTHER_RECORDS, id="nothing at all"),
        pytest.param(with_record("arrays", ConfigRecord({"flat": 1})), OTHER_ARRAYS, id="words for arrays"),
        pytest.param(with_record("arrays", ArrayRecord()), OTHER_ARRAYS, id="no array"),
        pytest.param(with_record("arrays", ArrayRecord({"other": FLAT})), OTHER_ARRAYS, id="another array"),
        pytest.param(with_record("arrays", ArrayRecord({"flat": FLAT, "more": FLAT})), OTHER_ARRAYS, id="an array too many"),
        pytest.param(with_record("header", ArrayRecord({"flat": FLAT})), OTHER_FIELDS, id="arrays for words"),
        pytest.param(with_header("surplus", "hello"), OTHER_FIELDS, id="a field too many"),
        pytest.param(lambda r: header(r).pop("steps"), OTHER_FIELDS, id="a field missing"),
        pytest.param(with_header("version", 0), "another version", id="an older version"),
        pytest.param(with_header("version", 2), "another version", id="a newer version"),
        pytest.param(with_header("version", "1"), "another version", id="a version in words"),
        pytest.param(with_header("version", 1.0), WRONG_TYPE, id="a broken version"),
        pytest.param(with_header("version", value=True), WRONG_TYPE, id="a true version"),
        pytest.param(with_header("round", 3.0), WRONG_TYPE, id="a broken round"),
        pytest.param(with_header("round", value=True), WRONG_TYPE, id="a true round"),
        pytest.param(with_header("round", [3]), WRONG_TYPE, id="a list of rounds"),
        pytest.param(with_header("tensors", b"stem"), WRONG_TYPE, id="names in bytes"),
        pytest.param(with_header("tensors", ["stem"]), WRONG_TYPE, id="names in a list"),
        pytest.param(with_header("loss-after", 1), WRONG_TYPE, id="a whole loss"),
        pytest.param(with_header("loss-before", "1.0"), WRONG_TYPE, id="a loss in words"),
        pytest.param(with_header("tensors", "n" * 20_001), "too many tensor names", id="too many names"),
        pytest.param(with_array(Array(np.zeros(6))), NOT_A_ROW, id="float64"),
        pytest.param(with_array(Array(np.zeros(6, np.float16))), NOT_A_ROW, id="float16"),
        pytest.param(with_array(Array(np.zeros(6, np.int32))), NOT_A_ROW, id="int32"),
        pytest.param(with_array(Array(np.zeros((2, 3), np.float32))), NOT_A_ROW, id="two rows"),
        pytest.param(with_array(Array(np.zeros((), np.float32))), NOT_A_ROW, id="no row"),
        pytest.param(with_array(lying(npy(np.zeros(3)))), LYING, id="float64 that says float32"),
        pytest.param(with_array(lying(npy(np.zeros(6, ">f4")))), LYING, id="another byte order"),
        pytest.param(with_array(lying(npy(np.zeros(5, np.float32)))), LYING, id="fewer numbers than it says"),
        pytest.param(with_array(lying(npy(np.zeros(7, np.float32)))), TOO_LARGE, id="more numbers than it says"),
        pytest.param(with_array(lying(npy(np.zeros((2, 3), np.float32)))), LYING, id="two rows that say one"),
        pytest.param(with_array(lying(GOOD, shape=(-6,))), TOO_LARGE, id="a shape below zero"),
        pytest.param(with_array(lying(GOOD, shape=(2**60,))), LYING, id="an enormous shape"),
        pytest.param(with_array(lying(npy(np.zeros(1100, np.float32)), shape=(1,))), TOO_LARGE, id="an anchor"),
        pytest.param(with_array(lying(b"")), UNREADABLE, id="no bytes"),
        pytest.param(with_array(lying(b"not numpy at all")), UNREADABLE, id="other bytes"),
        pytest.param(with_array(lying(GOOD[:-1])), UNREADABLE, id="cut short"),
        pytest.param(with_array(lying(GOOD, kind="pickle")), UNREADABLE, id="another kind of bytes"),
        pytest.param(with_array(lying(b"\x80\x04N.")), UNREADABLE, id="a pickle"),
        pytest.param(with_array(lying(npz())), TOO_LARGE, id="an archive of arrays"),
        pytest.param(with_array(lying(zip_of_nothing())), LYING, id="an empty archive"),
        pytest.param(with_array(lying(b"PK\x03\x04garbage")), UNREADABLE, id="a broken archive"),
        pytest.param(
            with_array(lying(npy_with_header("{'descr': '|O', 'fortran_order': False, 'shape': (6,), }\n"))),
            UNREADABLE,
            id="objects",
        ),
        pytest.param(
            with_array(lying(npy_with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**60},), }}\n"))),
            UNREADABLE,
            id="a header that asks for more memory than there is",
        ),
        pytest.param(
            with_array(lying(npy_with_header("-" * 3000 + "1\n"))), TOO_LARGE, id="a header too deep to read is not read"
        ),
    ],
)
def test_anything_but_exactly_an_update_is_refused(spoil: Callable[[RecordDict], None], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        unpack_update(spoilt(spoil))


def test_as_many_names_as_are_allowed_are_read() -> None:
    record = pack_update(replace(UPDATE, tensors=("n" * 20_000,)))

    assert unpack_update(record).tensors == ("n" * 20_000,)


def test_an_assignment_is_no_update_and_an_update_no_assignment() -> None:
    with pytest.raises(WireError, match=OTHER_FIELDS):
        unpack_update(pack_assignment(ASSIGNMENT))
    with pytest.raises(WireError, match=OTHER_FIELDS):
        unpack_assignment(pack_update(UPDATE))


@pytest.mark.parametrize("field", ["version", "round", "steps", "clip", "federation", "modality", "layout"])
def test_an_assignment_with_a_field_of_the_wrong_type_is_refused(field: str) -> None:
    record = pack_assignment(ASSIGNMENT)
    header(record)[field] = b"bytes"

    with pytest.raises(WireError):
        unpack_assignment(record)


@given(st.binary(max_size=400), st.integers(-3, 100))
def test_whatever_bytes_an_array_is_made_of_nothing_but_a_wire_error_comes_of_it(data: bytes, length: int) -> None:
    for start in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"):
        with pytest.raises(WireError):
            unpack_update(spoilt(with_array(lying(start + data, shape=(length,)))))


def test_the_text_of_a_refusal_says_nothing_of_what_was_in_the_message() -> None:
    with pytest.raises(WireError) as caught:
        unpack_update(spoilt(with_header("/home/anna/portrait.png", "secret")))

    assert "anna" not in str(caught.value)
