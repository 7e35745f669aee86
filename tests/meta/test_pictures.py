"""The pictures the other tests stand on are what their names say, and the same each time."""

from collections.abc import Callable

import numpy as np
import pytest

from models.contract import Work
from tests import pictures


@pytest.mark.parametrize("draw", [pictures.gradient, pictures.noise, pictures.shapes, pictures.stripes])
def test_a_picture_is_bytes_of_the_size_asked_for_and_the_same_each_time(
    draw: Callable[[pictures.Size], Work],
) -> None:
    picture = draw((24, 32))

    assert picture.shape == (24, 32, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, draw((24, 32)))


def test_another_seed_draws_another_picture() -> None:
    assert not np.array_equal(pictures.shapes(seed=1), pictures.shapes(seed=2))
    assert not np.array_equal(pictures.noise(seed=1), pictures.noise(seed=2))
