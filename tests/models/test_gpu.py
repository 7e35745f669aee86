"""Training on a GPU follows training on the CPU. Skipped where there is none, as in CI."""

from typing import Any

import numpy as np
import pytest
import torch

from export import backbones
from export.errors import NotConfiguredError
from models import state, training
from models.training import Plan
from tests import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def fitted(device: torch.device, steps: int) -> tuple[Any, float]:
    """A tiny network after some steps on a device, and how far it is from its works."""
    lessons = tiny.lessons_of(tiny.STYLE, device=device)
    net = tiny.STYLE.build(seed=0, codes=2).to(device)
    tiny.STYLE.suit_inplace(net, 1, map(lessons.batch, range(3)))
    training.fit(net, tiny.STYLE, lessons, Plan(steps))
    return net, tiny.STYLE.score(net, lessons.exam()).style


def test_a_gradient_is_the_cpus() -> None:
    gradients = []
    for device in (CPU, GPU):
        net = tiny.STYLE.build(seed=0, codes=2).to(device)
        batch = tiny.lessons_of(tiny.STYLE, device=device).batch(0)
        tiny.STYLE.objectives[0].loss(net, batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in net.parameters() if p.grad is not None]))

    assert torch.linalg.norm(gradients[1] - gradients[0]) < 0.02 * torch.linalg.norm(gradients[0])
    assert torch.linalg.norm(gradients[0]) > 0


def test_a_short_training_ends_as_near_to_the_works() -> None:
    (_, before), (_, on_cpu), (net, on_gpu) = fitted(CPU, 1), fitted(CPU, 20), fitted(GPU, 20)

    assert on_gpu < before
    assert abs(on_gpu - on_cpu) < 0.1 * before
    assert all(np.isfinite(array).all() for array in state.shared_arrays(tiny.STYLE, net).values())


def test_vgg_sees_what_it_sees_on_the_cpu() -> None:
    picture = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    try:
        seen = [backbones.load("vgg19", device).features(picture.to(device)) for device in (CPU, GPU)]
    except NotConfiguredError:
        pytest.skip("the weights are not installed")

    for here, there in zip(*seen, strict=True):
        assert torch.linalg.norm(there.cpu() - here) < 0.02 * torch.linalg.norm(here)
