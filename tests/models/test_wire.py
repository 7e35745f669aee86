"""Messages go through Flower's records unchanged, and nothing but exactly a message comes out of one."""

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Final, get_args

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.update import Assignment, Declined, DeclineReason, Flat, Part, Step, Update, VeiledPart, VeiledStep
from models.wire import WireError, pack_answer, pack_assignment, pack_step, unpack_answer, unpack_asked, unpack_assignment

flats = hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))
whole = st.integers(0, 2**62)
numbers = st.floats(allow_nan=False, allow_infinity=False)
# A name holds no line break: that is what separates names on the wire, and no tensor's name has one.
names = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12), min_size=1, max_size=5)
texts = st.text(st.characters(codec="utf-8"), max_size=30)

assignments = st.builds(
    Assignment,
    federation=texts,
    modality=texts,
    round=whole,
    policy=texts,
    body=flats,
    layout_digest=texts,
)
updates = st.builds(
    Update,
    federation=texts,
    round=whole,
    policy=texts,
    tensors=names.map(tuple),
    layout_digest=texts,
    payload=st.binary(max_size=200),
    loss_before=numbers,
    loss_after=numbers,
    steps=whole,
    signature=st.binary(min_size=64, max_size=64),
)

UPDATE: Final = Update(
    federation="guild",
    round=3,
    policy="cd" * 32,
    tensors=("stem.weight", "to_full.bias"),
    layout_digest="ab" * 32,
    payload=bytes(range(6)),
    loss_before=2.5,
    loss_after=1.25,
    steps=40,
    signature=b"s" * 64,
)
ASSIGNMENT: Final = Assignment(
    federation="guild",
    modality="style-kiosk",
    round=3,
    policy="cd" * 32,
    body=np.arange(6, dtype=np.float32),
    layout_digest="ab" * 32,
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
    assert unpack_answer(pack_answer(update)) == update


@pytest.mark.parametrize("reason", get_args(DeclineReason))
def test_a_nodes_word_that_it_takes_no_part_comes_out_as_it_went_in(reason: DeclineReason) -> None:
    assert unpack_answer(pack_answer(Declined(3, reason))) == Declined(3, reason)


def test_a_message_survives_flowers_own_bytes() -> None:
    """Through the protocol buffers that really travel."""
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto  # noqa: PLC0415 - a private function

    assert unpack_answer(recorddict_from_proto(recorddict_to_proto(pack_answer(UPDATE)))) == UPDATE


def test_a_message_is_one_array_however_many_tensors_it_speaks_of() -> None:
    record = pack_answer(replace(UPDATE, tensors=tuple(f"t{i}" for i in range(300))))

    assert len(list(record.array_records.values())) == 1
    assert len(next(iter(record.array_records.values()))) == 1


def test_what_is_signed_is_everything_but_the_signature() -> None:
    changed: list[dict[str, Any]] = [
        {"federation": "others"},
        {"round": 4},
        {"policy": "ef" * 32},
        {"tensors": ("stem.weight",)},
        {"layout_digest": "cd" * 32},
        {"payload": b"another"},
        {"loss_before": 2.25},
        {"loss_after": 1.0},
        {"steps": 39},
    ]
    statements = {replace(UPDATE, **changes).statement for changes in changed} | {UPDATE.statement}

    assert len(statements) == len(changed) + 1
    assert {name for changes in changed for name in changes} | {"signature"} == {field.name for field in fields(Update)}
    assert replace(UPDATE, signature=b"").statement == UPDATE.statement


# Refusals. Each starts from a good message and spoils one thing.


def spoilt(spoil: Callable[[RecordDict], None]) -> RecordDict:
    record = pack_answer(UPDATE)
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


def lying(data: bytes, *, dtype: str = "uint8", shape: tuple[int, ...] = (6,), kind: str = "numpy.ndarray") -> Array:
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
    np.savez(buffer, flat=np.zeros(6, np.uint8))
    return buffer.getvalue()


def zip_of_nothing() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w"):
        pass
    return buffer.getvalue()


GOOD: Final = npy(np.zeros(6, np.uint8))
FLAT: Final = Array(np.zeros(6, np.uint8))

OTHER_RECORDS: Final = "other records"
OTHER_ARRAYS: Final = "other arrays"
OTHER_FIELDS: Final = "other fields"
WRONG_TYPE: Final = "wrong type"
NOT_A_ROW: Final = "not one row of uint8"
TOO_LARGE: Final = "larger than its shape"
UNREADABLE: Final = "cannot be read"
LYING: Final = "not what it says it is"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(with_record("more", ConfigRecord({"a": 1})), OTHER_RECORDS, id="a record too many"),
        pytest.param(with_record("metrics", MetricRecord({"a": 1})), OTHER_RECORDS, id="metrics riding along"),
        pytest.param(lambda r: r.pop("header"), OTHER_RECORDS, id="no header"),
        pytest.param(lambda r: r.pop("arrays"), OTHER_FIELDS, id="no arrays"),
        pytest.param(lambda r: r.clear(), OTHER_RECORDS, id="nothing at all"),
        pytest.param(with_record("arrays", ConfigRecord({"flat": 1})), OTHER_ARRAYS, id="words for arrays"),
        pytest.param(with_record("arrays", ArrayRecord()), OTHER_ARRAYS, id="no array"),
        pytest.param(with_record("arrays", ArrayRecord({"other": FLAT})), OTHER_ARRAYS, id="another array"),
        pytest.param(with_record("arrays", ArrayRecord({"flat": FLAT, "more": FLAT})), OTHER_ARRAYS, id="an array too many"),
        pytest.param(with_record("header", ArrayRecord({"flat": FLAT})), OTHER_FIELDS, id="arrays for words"),
        pytest.param(with_header("surplus", "hello"), OTHER_FIELDS, id="a field too many"),
        pytest.param(lambda r: header(r).pop("steps"), OTHER_FIELDS, id="a field missing"),
        pytest.param(with_header("version", 0), "another version", id="an older version"),
        pytest.param(with_header("version", 1), "another version", id="the version before"),
        pytest.param(with_header("version", 3), "another version", id="a newer version"),
        pytest.param(with_header("version", "2"), "another version", id="a version in words"),
        pytest.param(with_header("version", 2.0), WRONG_TYPE, id="a broken version"),
        pytest.param(with_header("round", 3.0), WRONG_TYPE, id="a broken round"),
        pytest.param(with_header("round", value=True), WRONG_TYPE, id="a true round"),
        pytest.param(with_header("round", [3]), WRONG_TYPE, id="a list of rounds"),
        pytest.param(with_header("tensors", b"stem"), WRONG_TYPE, id="names in bytes"),
        pytest.param(with_header("tensors", ["stem"]), WRONG_TYPE, id="names in a list"),
        pytest.param(with_header("loss-after", 1), WRONG_TYPE, id="a whole loss"),
        pytest.param(with_header("loss-before", "1.0"), WRONG_TYPE, id="a loss in words"),
        pytest.param(with_header("tensors", "n" * 20_001), "too long", id="too many names"),
        pytest.param(with_header("federation", "n" * 201), "too long", id="an endless name"),
        pytest.param(with_header("policy", "n" * 201), "too long", id="an endless policy"),
        pytest.param(with_header("loss-after", math.nan), "loss is not finite", id="a loss that is no number"),
        pytest.param(with_header("loss-before", math.inf), "loss is not finite", id="an endless loss"),
        pytest.param(with_header("signature", b"s" * 63), "another length", id="a short signature"),
        pytest.param(with_header("signature", b"s" * 65), "another length", id="a long signature"),
        pytest.param(with_header("signature", "s" * 64), WRONG_TYPE, id="a signature in words"),
        pytest.param(with_array(Array(np.zeros(6, np.float32))), NOT_A_ROW, id="float32"),
        pytest.param(with_array(Array(np.zeros(6, np.int8))), NOT_A_ROW, id="int8"),
        pytest.param(with_array(Array(np.zeros((2, 3), np.uint8))), NOT_A_ROW, id="two rows"),
        pytest.param(with_array(Array(np.zeros((), np.uint8))), NOT_A_ROW, id="no row"),
        pytest.param(with_array(lying(npy(np.zeros(3, np.uint16)))), LYING, id="uint16 that says uint8"),
        pytest.param(with_array(lying(npy(np.zeros(6, np.int8)))), LYING, id="with a sign"),
        pytest.param(with_array(lying(npy(np.zeros(5, np.uint8)))), LYING, id="fewer numbers than it says"),
        pytest.param(with_array(lying(npy(np.zeros(7, np.uint8)))), TOO_LARGE, id="more numbers than it says"),
        pytest.param(with_array(lying(npy(np.zeros((2, 3), np.uint8)))), LYING, id="two rows that say one"),
        pytest.param(with_array(lying(GOOD, shape=(-6,))), TOO_LARGE, id="a shape below zero"),
        pytest.param(with_array(lying(GOOD, shape=(2**60,))), LYING, id="an enormous shape"),
        pytest.param(with_array(lying(npy(np.zeros(1100, np.uint8)), shape=(1,))), TOO_LARGE, id="an anchor"),
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
            with_array(lying(npy_with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**60},), }}\n"))),
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
        unpack_answer(spoilt(spoil))


def test_as_many_names_as_are_allowed_are_read() -> None:
    record = pack_answer(replace(UPDATE, tensors=("n" * 20_000,)))

    update = unpack_answer(record)
    assert isinstance(update, Update)
    assert update.tensors == ("n" * 20_000,)


@pytest.mark.parametrize(
    ("header_", "reason"),
    [
        ({"version": 2, "round": 3, "declined": "no reason of ours"}, "no known reason"),
        ({"version": 2, "round": 3, "declined": 5}, WRONG_TYPE),
        ({"version": 1, "round": 3, "declined": "no-consent"}, "another version"),
        ({"version": 2, "round": 3}, OTHER_FIELDS),
        ({"version": 2, "round": 3, "declined": "no-consent", "because": "/home/ada"}, OTHER_FIELDS),
    ],
)
def test_a_word_that_a_node_takes_no_part_for_another_reason_is_refused(header_: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        unpack_answer(RecordDict({"header": ConfigRecord(header_)}))


STEP: Final = VeiledStep("guild", 3, "cd" * 32, "adverts", b"all of them")
PART: Final = VeiledPart("guild", 3, "cd" * 32, "boxes", b"one for each", b"s" * 64)


@pytest.mark.parametrize("step", get_args(Step))
@pytest.mark.parametrize("payload", [b"", b"x", bytes(1000)])
def test_a_step_of_a_veiled_round_comes_out_as_it_went_in(step: Step, payload: bytes) -> None:
    asked = replace(STEP, step=step, payload=payload)

    assert unpack_asked(pack_step(asked)) == asked


@pytest.mark.parametrize("part", get_args(Part))
@pytest.mark.parametrize("payload", [b"", b"x", bytes(1000)])
def test_a_part_of_a_veiled_round_comes_out_as_it_went_in(part: Part, payload: bytes) -> None:
    answer = replace(PART, part=part, payload=payload)

    assert unpack_answer(pack_answer(answer)) == answer


def test_an_assignment_is_asked_as_well() -> None:
    asked = unpack_asked(pack_assignment(ASSIGNMENT))

    assert isinstance(asked, Assignment)
    assert bits(asked.body) == bits(ASSIGNMENT.body)


def test_what_is_signed_of_a_part_is_everything_but_the_signature() -> None:
    changed: list[dict[str, Any]] = [
        {"federation": "others"},
        {"round": 4},
        {"policy": "ef" * 32},
        {"part": "masked"},
        {"payload": b"another"},
    ]
    statements = {replace(PART, **changes).statement for changes in changed} | {PART.statement}

    assert len(statements) == len(changed) + 1
    assert {name for changes in changed for name in changes} | {"signature"} == {field.name for field in fields(VeiledPart)}
    assert UPDATE.statement not in statements


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("veiled", "nothing of ours", "of a veiled round"),
        ("veiled", 3, WRONG_TYPE),
        ("version", 1, "another version"),
        ("round", "3", WRONG_TYPE),
        ("policy", "p" * 201, "too long"),
        ("surplus", "x", OTHER_FIELDS),
    ],
)
def test_a_veiled_message_that_is_not_exactly_one_is_refused(field: str, value: object, reason: str) -> None:
    part, step = pack_answer(PART), pack_step(STEP)
    for record in (part, step):
        header(record)[field] = value  # type: ignore[assignment]

    with pytest.raises(WireError, match=reason):
        unpack_answer(part)
    with pytest.raises(WireError, match=reason):
        unpack_asked(step)


def test_a_part_whose_signature_has_another_length_is_refused() -> None:
    with pytest.raises(WireError, match="the signature has another length"):
        unpack_answer(pack_answer(replace(PART, signature=b"s" * 63)))


def test_a_veiled_message_with_another_record_is_refused() -> None:
    record = pack_answer(PART)
    record["more"] = ConfigRecord({})

    with pytest.raises(WireError, match="other records"):
        unpack_answer(record)


def test_an_assignment_is_no_update_and_an_update_no_assignment() -> None:
    with pytest.raises(WireError, match=OTHER_FIELDS):
        unpack_answer(pack_assignment(ASSIGNMENT))
    with pytest.raises(WireError, match=OTHER_FIELDS):
        unpack_assignment(pack_answer(UPDATE))


@pytest.mark.parametrize("field", ["version", "round", "policy", "federation", "modality", "layout"])
def test_an_assignment_with_a_field_of_the_wrong_type_is_refused(field: str) -> None:
    record = pack_assignment(ASSIGNMENT)
    header(record)[field] = b"bytes"

    with pytest.raises(WireError):
        unpack_assignment(record)


@given(st.binary(max_size=400), st.integers(-3, 100))
def test_whatever_bytes_an_array_is_made_of_nothing_but_a_wire_error_comes_of_it(data: bytes, length: int) -> None:
    for start in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"):
        with pytest.raises(WireError):
            unpack_answer(spoilt(with_array(lying(start + data, shape=(length,)))))


def test_the_text_of_a_refusal_says_nothing_of_what_was_in_the_message() -> None:
    with pytest.raises(WireError) as caught:
        unpack_answer(spoilt(with_header("/home/anna/portrait.png", "secret")))

    assert "anna" not in str(caught.value)
