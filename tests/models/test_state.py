"""A network's tensors as arrays and back."""

import numpy as np
import pytest
import torch

from models.registry import find
from models.state import body_layout, load_inplace, private_arrays, private_names, shared_arrays
from models.update import LayoutError
from tests.tiny import STYLE, shaken


def test_arrays_are_copies_that_no_later_training_changes() -> None:
    net = STYLE.build(0, codes=2)
    arrays = shared_arrays(STYLE, net) | private_arrays(STYLE, net)
    before = {name: array.copy() for name, array in arrays.items()}

    shaken(net)

    assert all(np.array_equal(before[name], array) for name, array in arrays.items())


def test_arrays_lie_row_by_row_in_float32_however_torch_keeps_them() -> None:
    net = STYLE.build(0)

    for name, array in shared_arrays(STYLE, net).items():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert np.array_equal(array, net.state_dict()[name].numpy())


def test_loading_what_was_taken_makes_the_same_network() -> None:
    net, other = shaken(STYLE.build(0, codes=2)), STYLE.build(1, codes=2)

    load_inplace(other, shared_arrays(STYLE, net))
    load_inplace(other, private_arrays(STYLE, net))

    theirs = other.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in net.state_dict().items())


def test_loading_some_tensors_leaves_the_others() -> None:
    net, other = STYLE.build(0), STYLE.build(1)
    before = other.state_dict()["stem.weight"].clone()

    load_inplace(other, {"to_full.weight": shared_arrays(STYLE, net)["to_full.weight"]})

    assert torch.equal(other.state_dict()["to_full.weight"], net.state_dict()["to_full.weight"])
    assert torch.equal(other.state_dict()["stem.weight"], before)


def test_loading_does_not_tie_the_network_to_the_array() -> None:
    net = STYLE.build(0)
    array = np.zeros((12,), np.float32)
    load_inplace(net, {"to_full.bias": array})

    array[:] = 9

    assert net.state_dict()["to_full.bias"].abs().max() == 0


@pytest.mark.parametrize(
    ("name", "shape"), [("to_full.bias", (11,)), ("to_full.bias", (12, 1)), ("to_full", (12,)), ("", (1,))]
)
def test_a_tensor_the_network_does_not_have_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match="the network has no tensor"):
        load_inplace(STYLE.build(0), {name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(("tier", "numbers"), [("style-kiosk", 764), ("style-studio", 1468)])
def test_a_style_code_has_two_numbers_for_each_normed_channel_and_twelve_for_the_underpainting(tier: str, numbers: int) -> None:
    modality = find(tier)

    assert modality.signature.code.shape == (1, numbers)
    assert private_arrays(modality, modality.build(0, codes=3))["codes"].shape == (3, numbers)


def test_the_layout_of_a_body_is_that_of_any_network_of_its_kind() -> None:
    layout = body_layout(STYLE)
    arrays = shared_arrays(STYLE, STYLE.build(7, codes=5))

    assert layout.names == tuple(sorted(arrays))
    assert layout.flatten(arrays).shape == (layout.size,)


def test_private_names_are_those_of_the_tensors_that_are_not_shared() -> None:
    names = private_names(STYLE)

    assert names == set(private_arrays(STYLE, STYLE.build(0, codes=4)))
    assert "codes" in names
    assert not any(STYLE.is_shared(name) for name in names)
    assert not names & set(body_layout(STYLE).names)
