"""Arrays ↔ one flat vector, without a number lost or taken for another."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.update import Flat, Layout, LayoutError

shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)
layouts = st.dictionaries(st.text(min_size=1, max_size=8), shapes, min_size=1, max_size=5)


def arrays_of(layout: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Flat]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in layout.items()}


@given(layouts)
def test_flatten_and_unflatten_are_each_others_inverse(shapes_by_name: dict[str, tuple[int, ...]]) -> None:
    arrays = arrays_of(shapes_by_name)
    layout = Layout.of(arrays)

    flat = layout.flatten(arrays)
    again = layout.unflatten(flat)

    assert flat.shape == (layout.size,)
    assert flat.dtype == np.float32
    assert again.keys() == arrays.keys()
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    assert np.array_equal(layout.flatten(again), flat)


def test_tensors_lie_in_the_order_of_their_names_whatever_the_order_of_the_dictionary() -> None:
    arrays = {"b": np.full((2, 2), 2, np.float32), "a": np.full(3, 1, np.float32)}
    layout = Layout.of(arrays)

    assert layout.names == ("a", "b")
    assert layout.flatten(arrays).tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert Layout.of(dict(reversed(arrays.items()))) == layout


def test_a_layout_counts_its_numbers() -> None:
    layout = Layout((("a", (2, 3)), ("b", ()), ("c", (4,))))

    assert layout.size == 2 * 3 + 1 + 4


def test_the_digest_is_the_one_other_versions_compute() -> None:
    """Said again by hand: nodes and coordinator of two versions compare these."""
    layout = Layout((("a.weight", (2, 3)), ("b", (1,))))

    assert layout.digest == hashlib.sha256(b'[["a.weight", [2, 3]], ["b", [1]]]').hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        (("a", (2, 3)),),
        (("a", (3, 2)), ("b", (1,))),
        (("a", (2, 3)), ("c", (1,))),
        (("a", (6,)), ("b", (1,))),
    ],
)
def test_another_name_or_shape_is_another_digest(other: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
    assert Layout(other).digest != Layout((("a", (2, 3)), ("b", (1,)))).digest


@pytest.mark.parametrize(
    "shapes_by_name",
    [{}, {"a": (2, 2)}, {"a": (2, 2), "b": (3,), "c": (1,)}, {"a": (4,), "b": (3,)}, {"a": (2, 2), "B": (3,)}],
)
def test_arrays_of_another_layout_are_not_flattened(shapes_by_name: dict[str, tuple[int, ...]]) -> None:
    layout = Layout((("a", (2, 2)), ("b", (3,))))

    with pytest.raises(LayoutError, match="other names or shapes"):
        layout.flatten(arrays_of(shapes_by_name))


@pytest.mark.parametrize("shape", [(6,), (8,), (7, 1), (1, 7), (), (0,)])
def test_a_vector_of_another_length_or_rank_is_not_unflattened(shape: tuple[int, ...]) -> None:
    layout = Layout((("a", (2, 2)), ("b", (3,))))
    assert layout.size == 7

    with pytest.raises(LayoutError, match="expected 7 numbers"):
        layout.unflatten(np.zeros(shape, np.float32))


def test_unflattened_arrays_are_copies() -> None:
    layout = Layout((("a", (2,)),))
    flat = np.zeros(2, np.float32)

    layout.unflatten(flat)["a"][:] = 1

    assert flat.tolist() == [0, 0]


def test_numbers_that_are_not_finite_are_carried_as_they_are() -> None:
    layout = Layout((("a", (3,)),))
    odd = {"a": np.array([math.nan, math.inf, -math.inf], np.float32)}

    assert np.array_equal(layout.unflatten(layout.flatten(odd))["a"], odd["a"], equal_nan=True)
