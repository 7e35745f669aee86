"""What the style modality promises beyond the contract."""

import torch

from models.modalities import style


def gradient() -> torch.Tensor:
    """(1, 3, 128, 128) without any texture."""
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    return ((columns + 2 * rows) / 400)[None, None].expand(1, 3, -1, -1)


def test_a_gradient_is_no_grid() -> None:
    assert style._grid(gradient()).item() < 1e-6


def test_a_pattern_of_the_upscalings_period_is_a_grid_of_its_own_size() -> None:
    columns = torch.arange(128.0)
    pattern = 0.05 * (columns % 4 == 0).float()
    found = style._grid(gradient() + pattern).item()
    # A column in four stands out by 0.05: after mean and slope are taken out, about a quarter of that is left.
    assert 0.01 < found < 0.02


def test_a_pattern_of_another_period_is_no_grid() -> None:
    columns = torch.arange(128.0)
    pattern = 0.05 * torch.sin(2 * torch.pi * columns / 32)
    assert style._grid(gradient() + pattern).item() < 1e-3
