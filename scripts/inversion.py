"""Gradient inversion: what an update gives away of what it was computed from. Attacks, and nothing of ours.

The analytic one: where a dense layer sees its input, one row of its weights' gradient over the same row of its bias' gradient
*is* the input (Phong et al. 2018, IEEE TIFS 13(5), section 3). The optimised one: pictures are changed until their gradient
points where the update does (Geiping et al. 2020, arXiv 2003.14053, eq. 4: cosine and total variation, Adam on signs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

Gradient: TypeAlias = "Callable[[Tensor], Tensor]"
"""Pictures (N, 3, H, W) in [0, 1] → the flat gradient that training on them would give; differentiable."""

_VARIATION: Final = 1e-2
_RATE: Final = 0.05


def psnr(one: Tensor, other: Tensor) -> float:
    """Of two pictures in [0, 1], in dB."""
    error = float((one - other).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


class Dense(nn.Module):
    """A small network that looks at pixels directly: what every one of these attacks was first shown on."""

    def __init__(self, pixels: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.seen = nn.Linear(pixels, 32)
        self.said = nn.Linear(32, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, 4)."""
        return self.said(torch.sigmoid(self.seen(pictures.flatten(1))))  # type: ignore[no-any-return]


def dense_gradients(net: Dense, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Of the first layer's weights and bias, for a loss that wants the first of four answers."""
    labels = torch.zeros(len(pictures), dtype=torch.long)
    loss = F.cross_entropy(net(pictures), labels)
    weight, bias = torch.autograd.grad(loss, (net.seen.weight, net.seen.bias))
    return weight, bias


def read_off(weight: Tensor, bias: Tensor, shape: torch.Size) -> Tensor:
    """The input of a dense layer, from one step on one picture: the row whose bias moved most."""
    row = int(bias.abs().argmax())
    return (weight[row] / bias[row]).reshape(shape).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What an optimised attack came to.

    Attributes:
        pictures: (N, 3, H, W).
        cosine: of their gradient with the update, at the end.
    """

    pictures: Tensor
    cosine: float


def rebuild(update: Tensor, gradient: Gradient, shape: tuple[int, ...], steps: int, seed: int) -> Rebuilt:
    """Change pictures until their gradient points where the update does.

    Args:
        update: flat; its sign is that of the gradient.
        gradient: of pictures, with everything else the attacker knows in it.
        shape: (N, 3, H, W).
        steps: of Adam.
        seed: of the first pictures, which are grey with a little noise.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = (0.5 + 0.1 * torch.randn(shape, generator=generator)).requires_grad_()
    optimiser = torch.optim.Adam([pictures], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    cosine = 0.0
    for _ in range(steps):
        optimiser.zero_grad()
        alike = F.cosine_similarity(gradient(pictures), update, dim=0)
        loss = 1 - alike + _VARIATION * total_variation(pictures)
        (pictures.grad,) = torch.autograd.grad(loss, (pictures,))
        pictures.grad = pictures.grad.sign()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            pictures.clamp_(0, 1)
        cosine = float(alike.detach())
    return Rebuilt(pictures.detach(), cosine)


def total_variation(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbours."""
    return pictures.diff(dim=2).abs().mean() + pictures.diff(dim=3).abs().mean()


def best_match(rebuilt: Tensor, works: Tensor) -> tuple[float, int, int]:
    """The best PSNR of any rebuilt picture to any work, and which they are."""
    found = [(psnr(one, work), i, j) for i, one in enumerate(rebuilt) for j, work in enumerate(works)]
    return max(found)
