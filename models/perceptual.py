"""Two image classifiers as *perceptual* measures behind one ``Protocol``: needed while training, never to paint.

* ``VGG19`` (Simonyan and Zisserman 2014): the measure of Gatys et al. 2016 (arXiv 1508.06576) and Johnson et al. 2016
  (arXiv 1603.08155). Best strokes, slow.
* ``EfficientNet-Lite0`` (Liu et al. 2020): an order of magnitude less work. It sees stride-2 grids only now and then,
  so it is shown the picture enlarged twice; without that, checkerboards slip through.

This module is given tensors and computes. Where the files lie, their digests and their loading is
``export/backbones.py``'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

# Keras' "caffe" preprocessing, with which the VGG19 weights were trained: BGR, 0..255, minus the ImageNet mean.
_VGG_MEAN_BGR = (103.939, 116.779, 123.68)
# Pairs of (block, convs) up to relu3_1: strokes live in relu1_1..relu3_1 (Johnson et al. use relu1_2..relu4_3; the
# shallower set costs a third and was as good to the eye at 512 pixels).
_VGG_CONVS = ("block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", "block3_conv1")
_VGG_POOL_BEFORE = ("block2_conv1", "block3_conv1")
_VGG_STYLE = ("block1_conv1", "block2_conv1", "block3_conv1")


class Perceptual(Protocol):
    """A frozen network that turns pictures into feature maps."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> torch.device:
        """Where it computes; lessons made with it lie there, and so must the network they teach."""
        ...

    def features(self, picture: Tensor) -> list[Tensor]:
        """Feature maps from shallow to deep; the last is the one content is compared in.

        Args:
            picture: (B, 3, H, W) float32 sRGB in [0, 1], H and W at least 32.

        Returns:
            Maps (B, C_l, H_l, W_l) float32.
        """
        ...


class Vgg19(nn.Module):
    """VGG19 up to relu3_1 with average pooling, which gives smoother pictures than max pooling (Gatys et al., 2.2)."""

    name = "vgg19"

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        """Take the first five convolutions from a table-quantised state.

        Args:
            tensors: for each convolution ``NAME_W_q`` (8-bit indices), ``NAME_W_table`` (their 256 values) and
                ``NAME_b``.
            dtype: what to compute in. bfloat16 takes 0.6 times the time on CPUs that multiply in it, and its
                rounding is far below the noise of a random crop.
        """
        super().__init__()
        self._dtype = dtype
        self._convs = nn.ModuleDict()
        for name in _VGG_CONVS:
            weight = tensors[f"{name}_W_table"][tensors[f"{name}_W_q"].long()]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
            conv.weight = nn.Parameter(weight, requires_grad=False)
            conv.bias = nn.Parameter(tensors[f"{name}_b"].to(dtype), requires_grad=False)
            self._convs[name] = conv
        self._mean: Tensor
        self.register_buffer("_mean", torch.tensor(_VGG_MEAN_BGR).view(1, 3, 1, 1))

    @property
    def device(self) -> torch.device:
        """See ``Perceptual.device``."""
        return self._mean.device

    def features(self, picture: Tensor) -> list[Tensor]:
        """See ``Perceptual.features``: relu1_1, relu2_1, relu3_1."""
        x = picture.flip(1) * 255.0 - self._mean
        x = x.to(self._dtype).contiguous(memory_format=torch.channels_last)
        maps = []
        for name, conv in self._convs.items():
            if name in _VGG_POOL_BEFORE:
                x = F.avg_pool2d(x, 2)
            x = F.relu(conv(x))
            if name in _VGG_STYLE:
                maps.append(x.float())
        return maps


# (kernel, stride, expansion) of the first MBConv blocks of EfficientNet-Lite0 (Tan and Le 2019, table 1).
_LITE0_BLOCKS = ((3, 1, 1), (3, 2, 6), (3, 1, 6), (5, 2, 6), (5, 1, 6))
_LITE0_TAPS = (0, 2, 4)  # the last block of each of the first three stages
_BATCHNORM_EPSILON = 1e-3  # EfficientNet's, not torch's default


class EfficientNetLite0(nn.Module):
    """The first three stages of EfficientNet-Lite0 with its batch norms folded into the convolutions."""

    name = "efficientnet-lite0"

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take stem and five blocks from the published state dictionary."""
        super().__init__()
        self._stem = _folded(tensors, "_conv_stem", "_bn0", stride=2)
        self._blocks = nn.ModuleList(
            _MBConv(tensors, f"_blocks.{i}", kernel, stride, expand=expansion > 1)
            for i, (kernel, stride, expansion) in enumerate(_LITE0_BLOCKS)
        )
        self.requires_grad_(requires_grad=False)

    @property
    def device(self) -> torch.device:
        """See ``Perceptual.device``."""
        return self._stem.weight.device

    def features(self, picture: Tensor) -> list[Tensor]:
        """See ``Perceptual.features``: stem, stages 1, 2 and 3, of the picture enlarged twice."""
        x = F.interpolate(picture, scale_factor=2, mode="bilinear", align_corners=False)
        x = (x * 2.0 - 1.0).contiguous(memory_format=torch.channels_last)  # Lite0 was trained on [-1, 1]
        x = F.relu6(self._stem(x))
        maps = [x]
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in _LITE0_TAPS:
                maps.append(x)
        return maps


class _MBConv(nn.Module):
    """Expand 1x1, depthwise, project 1x1; no squeeze-excitation in the Lite family."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str, kernel: int, stride: int, *, expand: bool) -> None:
        super().__init__()
        self._expand = _folded(tensors, f"{prefix}._expand_conv", f"{prefix}._bn0") if expand else None
        self._depthwise = _folded(
            tensors, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride=stride, padding=kernel // 2, depthwise=True
        )
        self._project = _folded(tensors, f"{prefix}._project_conv", f"{prefix}._bn2")
        first = self._expand or self._depthwise
        self._residual = stride == 1 and self._project.out_channels == first.in_channels

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self._expand is None else F.relu6(self._expand(x))
        y: Tensor = self._project(F.relu6(self._depthwise(wide)))
        return x + y if self._residual else y


def _folded(
    tensors: Mapping[str, Tensor],
    conv: str,
    norm: str,
    *,
    stride: int = 1,
    padding: int | None = None,
    depthwise: bool = False,
) -> nn.Conv2d:
    """A convolution with its batch norm's four tensors folded in."""
    weight = tensors[f"{conv}.weight"]
    scale = tensors[f"{norm}.weight"] / torch.sqrt(tensors[f"{norm}.running_var"] + _BATCHNORM_EPSILON)
    out_channels, in_channels, kernel = weight.shape[0], weight.shape[1], weight.shape[2]
    groups = out_channels if depthwise else 1
    layer = nn.Conv2d(
        in_channels * groups,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2 if padding is None else padding,
        groups=groups,
    )
    layer.weight = nn.Parameter(weight * scale.view(-1, 1, 1, 1))
    layer.bias = nn.Parameter(tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale)
    return layer


class Moments(NamedTuple):
    """Mean (..., C) and covariance (..., C, C) of feature maps over their pixels."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """First and second moments of feature maps (B, C, H, W); independent of H and W for a stationary texture.

    Sums and E[xx'] - mm', not means of centred maps: their gradients would be written out at the size of the maps. Features
    are a few hundred at most and means no larger than deviations by much, so float32 has the digits for it.
    """
    flat = features.flatten(2)
    pixels = flat.shape[2]
    mean = flat.sum(dim=2, keepdim=True) / pixels
    return Moments(mean[:, :, 0], (flat @ flat.transpose(1, 2)) / pixels - mean @ mean.transpose(1, 2))
