"""Small stand-ins for what is large in life: a network to train in milliseconds, and a glass to look at it through."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from models.contract import Frame, Lessons, Medium, Modality, Work
from models.modalities.style import StyleModality
from tests import pictures

STYLE: Final = StyleModality("style-tiny", channels=8, crop=64, batch=1)
"""The style modality, an eighth as wide as the studio's and sharing every line of its code."""


_CPU: Final = torch.device("cpu")


class Glass(nn.Module):
    """A frozen stack of random convolutions: a ``Perceptual`` that costs nothing and still sees texture."""

    def __init__(self, name: str = "glass", seed: int = 0, device: torch.device = _CPU) -> None:
        super().__init__()
        self.name = name
        self.device = device
        generator = torch.Generator().manual_seed(seed)
        widths = (3, 6, 8, 8)
        self.weights = [
            (torch.randn(outputs, inputs, 3, 3, generator=generator) / (3 * inputs**0.5)).to(device)
            for inputs, outputs in pairwise(widths)
        ]

    def features(self, picture: Tensor) -> list[Tensor]:
        """Three maps, each half the size of the one before."""
        maps = []
        for weight in self.weights:
            picture = F.relu(F.conv2d(picture, weight, padding=1))
            maps.append(picture)
            picture = F.avg_pool2d(picture, 2)
        return maps


def framed(photo: Work, edge: Frame = STYLE.frame) -> Work:
    """(1, H', W', 3): what a network paints whose graph is given a photo (H, W, 3), frame and all."""
    border = edge.margin - edge.used
    rows, columns = ((border, border + -side % edge.multiple) for side in photo.shape[:2])
    return np.pad(photo, (rows, columns, (0, 0)), mode="edge")[None]


def glasses(modality: Modality[Any, Any], device: torch.device = _CPU) -> dict[str, Glass]:
    """A stand-in for every frozen network that a modality asks for."""
    return {name: Glass(name, device=device) for name in modality.backbones}


def small(modality: Modality[Any, Any]) -> Modality[Any, Any]:
    """A modality as it is, but fed with crops that a laptop learns from in a moment."""
    return cast("Modality[Any, Any]", replace(cast("Any", modality), crop=64, batch=1))


def works_of(medium: Medium, seed: int) -> list[Work]:
    """Two private works. A new medium is added here, and every contract test then runs on it."""
    if medium != "image":
        raise NotImplementedError(f"no test works of the medium {medium!r} yet")
    return [pictures.stripes((96, 96), period=6 + 2 * seed), pictures.shapes((96, 120), seed)]


def material_of(medium: Medium) -> list[Work]:
    """Two public photos."""
    if medium != "image":
        raise NotImplementedError(f"no test material of the medium {medium!r} yet")
    return [pictures.gradient((96, 96)), pictures.shapes((120, 96), seed=99)]


def lessons_of(
    modality: Modality[Any, Any], *, works_seed: int = 1, seed: int = 5, device: torch.device = _CPU
) -> Lessons[Any]:
    """Lessons for two codes, the first of which is to give its material back."""
    medium = modality.signature.medium
    return modality.lessons([[], works_of(medium, works_seed)], material_of(medium), glasses(modality, device), seed)


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every tensor moved a little, so that no code is plain ones and zeros. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(0.2 * tensor.std(correction=0).clamp_min(0.5) * torch.randn(tensor.shape, generator=generator))
    return net


def code_of(net: nn.Module, row: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """One style code of a style network."""
    return cast("np.ndarray[tuple[int], np.dtype[np.float32]]", net.state_dict()["codes"][row].numpy().copy())
