"""Arrays in and out of safetensors; everything else in such a file is refused with its reason."""

import json
import math

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.errors import IntegrityError
from export.weights import metadata_of, pack, unpack
from models.update import Flat

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=finite),
    max_size=4,
)


def file_saying(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


@given(arrays)
def test_arrays_come_out_as_they_went_in(given_arrays: dict[str, Flat]) -> None:
    out = unpack(pack(given_arrays))

    assert out.keys() == given_arrays.keys()
    for name, array in given_arrays.items():
        assert out[name].shape == array.shape
        assert out[name].tobytes() == array.tobytes()


def test_an_array_that_lies_in_another_order_comes_out_right() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

    out = unpack(pack({"t": array.transpose(2, 0, 1), "s": array[:, ::2]}))

    assert np.array_equal(out["t"], array.transpose(2, 0, 1))
    assert np.array_equal(out["s"], array[:, ::2])


def test_the_same_arrays_give_the_same_bytes_whatever_their_order() -> None:
    some = {name: np.full(3, number, np.float32) for number, name in enumerate("abc")}

    assert pack(some) == pack(dict(reversed(some.items())))


def test_metadata_is_read_back() -> None:
    data = pack({"a": np.zeros(1, np.float32)}, {"artist": "Änne", "body": "ab" * 32})

    assert metadata_of(data) == {"artist": "Änne", "body": "ab" * 32}


def test_metadata_comes_out_in_the_same_bytes_whatever_their_order() -> None:
    notes = {f"note {number}": "ä" * number for number in range(20)}

    packed = pack({"x": np.ones(3, np.float32)}, notes)

    assert packed == pack({"x": np.ones(3, np.float32)}, dict(reversed(notes.items())))
    assert metadata_of(packed) == notes
    assert (unpack(packed)["x"] == 1).all()
    assert int.from_bytes(packed[:8], "little") % 8 == 0


def test_a_file_without_metadata_has_none() -> None:
    assert metadata_of(pack({"a": np.zeros(1, np.float32)})) == {}


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_])
def test_another_element_type_is_refused(dtype: type[np.generic]) -> None:
    data = safetensors.numpy.save({"good": np.zeros(1, np.float32), "odd": np.zeros(2, dtype)})

    with pytest.raises(IntegrityError, match=f"tensor 'odd' is {np.dtype(dtype)}, not float32"):
        unpack(data)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "C64", "NONSENSE"])
def test_an_element_type_numpy_does_not_have_is_refused(kind: str) -> None:
    size = {"BF16": 2, "F8_E4M3": 1, "C64": 8}.get(kind, 4)
    data = file_saying({"a": {"dtype": kind, "shape": [1], "data_offsets": [0, size]}}, b"\0" * size)

    with pytest.raises(IntegrityError, match=r"not a safetensors file|not float32"):
        unpack(data)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(odd: float) -> None:
    with pytest.raises(IntegrityError, match="tensor 'a' holds numbers that are not finite"):
        unpack(pack({"a": np.array([[0, odd]], np.float32)}))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0" * 7, id="less than a length"),
        pytest.param(b"\x80\x04N.", id="a pickle"),
        pytest.param(b"\xff" * 64, id="an enormous header"),
        pytest.param(file_saying(b"{"), id="half a header"),
        pytest.param(file_saying(b"[]"), id="a list"),
        pytest.param(file_saying(b"[" * 5000), id="a deep header"),
        pytest.param(file_saying(b"\xff\xfe{}"), id="no unicode"),
        pytest.param(pack({"a": np.zeros(9, np.float32)})[:-1], id="cut short"),
        pytest.param(pack({"a": np.zeros(9, np.float32)}) + b"\0", id="a byte too many"),
        pytest.param(
            file_saying({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"\0" * 4),
            id="a shape that lies",
        ),
        pytest.param(file_saying({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8), id="a hole"),
        pytest.param(
            file_saying({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"\0" * 4),
            id="two tensors in one place",
        ),
    ],
)
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a safetensors file"):
        unpack(data)


@given(st.binary(max_size=300), st.booleans())
def test_whatever_stands_in_a_file_nothing_but_an_integrity_error_comes_of_it(data: bytes, framed: bool) -> None:  # noqa: FBT001 - hypothesis gives it by position
    file = file_saying(data) if framed else data
    for read in (unpack, metadata_of):
        try:
            read(file)
        except IntegrityError:
            continue


@pytest.mark.parametrize(
    "header", [{"__metadata__": 5}, {"__metadata__": [1]}, {"__metadata__": None}, [], 7, {"__metadata__": "text"}]
)
def test_metadata_of_another_shape_is_no_metadata(header: object) -> None:
    assert metadata_of(file_saying(header)) == {}


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, file_saying(b"{"), file_saying(b"[" * 100_000)])
def test_metadata_of_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a safetensors file"):
        metadata_of(data)
