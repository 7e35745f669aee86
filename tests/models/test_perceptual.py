"""The two backbones, built from made-up tensors: shapes, folding and look-up against other ways to compute them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from models.perceptual import EfficientNetLite0, Perceptual, Vgg19, moments
from tests.tiny import Glass

VGG_WIDTHS = {
    "block1_conv1": (3, 64),
    "block1_conv2": (64, 64),
    "block2_conv1": (64, 128),
    "block2_conv2": (128, 128),
    "block3_conv1": (128, 256),
}
# (inputs, expanded, outputs, kernel, stride) of the first five MBConv blocks (Tan and Le 2019, table 1).
LITE0_BLOCKS = ((32, 32, 16, 3, 1), (16, 96, 24, 3, 2), (24, 144, 24, 3, 1), (24, 144, 40, 5, 2), (40, 240, 40, 5, 1))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.fixture
def vgg_tensors(generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {}
    for name, (inputs, outputs) in VGG_WIDTHS.items():
        tensors[f"{name}_W_q"] = torch.randint(0, 256, (outputs, inputs, 3, 3), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_W_table"] = torch.randn(256, generator=generator) * (2 / (9 * inputs)) ** 0.5
        tensors[f"{name}_b"] = torch.randn(outputs, generator=generator) * 0.1
    return tensors


@pytest.fixture
def lite0_tensors(generator: torch.Generator) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}

    def norm(name: str, width: int) -> None:
        tensors[f"{name}.weight"] = torch.rand(width, generator=generator) + 0.5
        tensors[f"{name}.bias"] = torch.randn(width, generator=generator)
        tensors[f"{name}.running_mean"] = torch.randn(width, generator=generator)
        tensors[f"{name}.running_var"] = torch.rand(width, generator=generator) + 0.5

    def conv(name: str, outputs: int, inputs: int, kernel: int) -> None:
        scale = (inputs * kernel * kernel) ** -0.5
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, kernel, kernel, generator=generator) * scale

    conv("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    for index, (inputs, expanded, outputs, kernel, _stride) in enumerate(LITE0_BLOCKS):
        prefix = f"_blocks.{index}"
        if expanded > inputs:
            conv(f"{prefix}._expand_conv", expanded, inputs, 1)
            norm(f"{prefix}._bn0", expanded)
        conv(f"{prefix}._depthwise_conv", expanded, 1, kernel)
        norm(f"{prefix}._bn1", expanded)
        conv(f"{prefix}._project_conv", outputs, expanded, 1)
        norm(f"{prefix}._bn2", outputs)
    return tensors


def picture(generator: torch.Generator, batch: int = 2, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand((batch, 3, height, width), generator=generator)


def slow_vgg(tensors: Mapping[str, Tensor], pictures: Tensor) -> list[Tensor]:
    """relu1_1, relu2_1 and relu3_1: the table looked up number by number, the mean taken off channel by channel."""
    blue, green, red = (pictures[:, channel] * 255 for channel in (2, 1, 0))
    x = torch.stack([blue - 103.939, green - 116.779, red - 123.68], dim=1)
    maps = []
    for name, (inputs, outputs) in VGG_WIDTHS.items():
        table = tensors[f"{name}_W_table"].tolist()
        weight = torch.tensor([table[index] for index in tensors[f"{name}_W_q"].flatten().tolist()])
        if name in ("block2_conv1", "block3_conv1"):
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        x = F.conv2d(x, weight.view(outputs, inputs, 3, 3), tensors[f"{name}_b"], padding=1).clamp_min(0)
        if name.endswith("conv1"):
            maps.append(x)
    return maps


def slow_lite0(tensors: Mapping[str, Tensor], pictures: Tensor) -> list[Tensor]:
    """The stem and three stages with the batch norms left as batch norms."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-3)

    x = F.interpolate(pictures, scale_factor=2, mode="bilinear", align_corners=False) * 2 - 1
    x = norm("_bn0", F.conv2d(x, tensors["_conv_stem.weight"], stride=2, padding=1)).clamp(0, 6)
    maps = [x]
    for index, (inputs, expanded, outputs, kernel, stride) in enumerate(LITE0_BLOCKS):
        prefix, y = f"_blocks.{index}", x
        if expanded > inputs:
            y = norm(f"{prefix}._bn0", F.conv2d(y, tensors[f"{prefix}._expand_conv.weight"])).clamp(0, 6)
        depthwise = tensors[f"{prefix}._depthwise_conv.weight"]
        y = F.conv2d(y, depthwise, stride=stride, padding=kernel // 2, groups=expanded)
        y = norm(f"{prefix}._bn1", y).clamp(0, 6)
        y = norm(f"{prefix}._bn2", F.conv2d(y, tensors[f"{prefix}._project_conv.weight"]))
        x = x + y if stride == 1 and inputs == outputs else y
        if index in (0, 2, 4):
            maps.append(x)
    return maps


def test_vgg19_looks_its_weights_up_in_the_table(vgg_tensors: dict[str, Tensor], generator: torch.Generator) -> None:
    pictures = picture(generator)

    maps = Vgg19(vgg_tensors).features(pictures)

    for ours, theirs in zip(maps, slow_vgg(vgg_tensors, pictures), strict=True):
        # Float32 sums of up to 1152 products in another order.
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_vgg19_gives_three_maps_each_half_as_large(vgg_tensors: dict[str, Tensor], generator: torch.Generator) -> None:
    maps = Vgg19(vgg_tensors).features(picture(generator))

    assert [tuple(m.shape) for m in maps] == [(2, 64, 32, 48), (2, 128, 16, 24), (2, 256, 8, 12)]


def test_vgg19_in_bfloat16_answers_in_float32_and_near(vgg_tensors: dict[str, Tensor], generator: torch.Generator) -> None:
    pictures = picture(generator)

    exact = Vgg19(vgg_tensors).features(pictures)
    rounded = Vgg19(vgg_tensors, torch.bfloat16).features(pictures)

    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).abs().mean() < 0.02 * a.abs().mean()  # bfloat16 keeps 8 bits: 0.4 % a number, over five layers


def test_lite0_with_its_norms_folded_is_lite0_with_its_norms(
    lite0_tensors: dict[str, Tensor], generator: torch.Generator
) -> None:
    pictures = picture(generator)

    with torch.no_grad():
        maps = EfficientNetLite0(lite0_tensors).features(pictures)

    for ours, theirs in zip(maps, slow_lite0(lite0_tensors, pictures), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_lite0_gives_stem_and_three_stages(lite0_tensors: dict[str, Tensor], generator: torch.Generator) -> None:
    maps = EfficientNetLite0(lite0_tensors).features(picture(generator))

    assert [tuple(m.shape) for m in maps] == [(2, 32, 32, 48), (2, 16, 32, 48), (2, 24, 16, 24), (2, 40, 8, 12)]


@pytest.mark.parametrize("name", ["vgg19", "efficientnet-lite0", "glass"])
def test_a_backbone_is_frozen_and_lets_gradients_through_to_the_picture(
    name: str, vgg_tensors: dict[str, Tensor], lite0_tensors: dict[str, Tensor], generator: torch.Generator
) -> None:
    known: tuple[Perceptual, ...] = (Vgg19(vgg_tensors), EfficientNetLite0(lite0_tensors), Glass())
    backbone = next(one for one in known if one.name == name)
    pictures = picture(generator, 1).requires_grad_()

    (slope,) = torch.autograd.grad(backbone.features(pictures)[-1].sum(), pictures)

    assert isinstance(backbone, nn.Module)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("missing", ["block1_conv1_W_q", "block3_conv1_W_table", "block2_conv2_b"])
def test_vgg19_without_one_of_its_tensors_is_not_built(vgg_tensors: dict[str, Tensor], missing: str) -> None:
    del vgg_tensors[missing]

    with pytest.raises(KeyError, match=missing):
        Vgg19(vgg_tensors)


def test_moments_are_mean_and_covariance_over_the_pixels(generator: torch.Generator) -> None:
    features = torch.randn((2, 5, 4, 6), generator=generator) + 3.0

    found = moments(features)

    for one, mean, covariance in zip(features, found.mean, found.covariance, strict=True):
        assert torch.allclose(mean, one.mean(dim=(1, 2)), rtol=1e-5)
        assert torch.allclose(covariance, torch.cov(one.flatten(1), correction=0), rtol=1e-4, atol=1e-5)


def test_moments_of_a_texture_do_not_depend_on_how_much_of_it_is_seen(generator: torch.Generator) -> None:
    tile = torch.randn((1, 5, 4, 4), generator=generator)

    for little, much in zip(moments(tile), moments(tile.repeat(1, 1, 3, 5)), strict=True):
        assert torch.allclose(little, much, rtol=1e-4, atol=1e-6)


def test_moments_do_not_know_where_anything_is(generator: torch.Generator) -> None:
    features = torch.randn((1, 5, 4, 6), generator=generator)
    shuffled = features.flatten(2)[..., torch.randperm(24, generator=generator)].view_as(features)

    for one, other in zip(moments(features), moments(shuffled), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_brighter_texture_has_another_mean_and_the_same_covariance(generator: torch.Generator) -> None:
    features = torch.randn((1, 5, 8, 8), generator=generator)
    dark, bright = moments(features), moments(features + 10.0)

    assert torch.allclose(bright.mean - dark.mean, torch.tensor(10.0), rtol=1e-4)
    assert torch.allclose(bright.covariance, dark.covariance, atol=1e-4)
