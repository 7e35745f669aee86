"""A network's tensors as plain arrays and back, split into what is shared and what is private."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.contract import Modality
from models.update import Arrays, Layout, LayoutError

Floats = npt.NDArray[np.float32]


def shared_arrays(modality: Modality[Any, Any], net: nn.Module) -> dict[str, Floats]:
    """Copies of the body's tensors: all that may leave the machine."""
    return {name: array for name, array in _arrays(net).items() if modality.is_shared(name)}


def private_arrays(modality: Modality[Any, Any], net: nn.Module) -> dict[str, Floats]:
    """Copies of everything else: codes and their statistics."""
    return {name: array for name, array in _arrays(net).items() if not modality.is_shared(name)}


def private_names(modality: Modality[Any, Any]) -> frozenset[str]:
    """Names of the tensors that must never leave a machine."""
    return frozenset(private_arrays(modality, modality.build(seed=0)))


def load_inplace(net: nn.Module, arrays: Arrays) -> None:
    """Overwrite the named tensors of a network.

    Raises:
        LayoutError: the network has no tensor of that name and shape.
    """
    state = net.state_dict()
    for name, array in arrays.items():
        if name not in state or tuple(state[name].shape) != array.shape:
            raise LayoutError(f"the network has no tensor {name!r} of shape {array.shape}")
        with torch.no_grad():
            state[name].copy_(torch.tensor(array))


def body_layout(modality: Modality[Any, Any]) -> Layout:
    """Names and shapes of a modality's body."""
    return Layout.of(shared_arrays(modality, modality.build(seed=0)))


def _arrays(net: nn.Module) -> dict[str, Floats]:
    return {name: tensor.detach().cpu().contiguous().numpy().copy() for name, tensor in net.state_dict().items()}
