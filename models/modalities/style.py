"""Image style: a feed-forward network whose convolutions all artists share and whose norms carry the style.

Every convolution (the *body*) is common. A style is only the scale and shift of the conditional instance norms (CIN,
Dumoulin et al. 2017, arXiv 1610.07629) and how its underpainting mixes the photo's colours: the *style code*, 764 numbers
for the kiosk tier and 1,468 for the studio tier.

Two rules of this file:

* A private work is a *target*: it is turned into means and covariances when lessons are made and is never an input of the
  network. Only public photos are.
* During training a step uses either the live statistics of the picture at hand or the running statistics of the
  style, so that a code folded into the convolutions at export (which freezes them) keeps its look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from models.contract import Frame, Score, Signature, TensorSpec, Work
from models.measures import ssim
from models.perceptual import Moments, Perceptual, moments

if TYPE_CHECKING:
    from numpy.random import Generator

BLOCKS: Final = 5
_HALF_CHANNELS: Final = 16  # channels at half resolution, after the first PixelShuffle
_UNDERPAINTING: Final = 12  # numbers of a code that mix the underpainting's colours: 3 x 3 and an offset each
_MASSES: Final = 3  # channels of the trunk, the last ones, that carry the underpainting past the norms
_MASS_GAIN: Final = 4.0  # of those channels: eight bits are shared with features that reach this far
_EPSILON: Final = 1e-5  # of the norms; the fold uses the same
_LEAST: Final = 1e-6  # to divide by, where a code has no works and its zeros count nothing
_STATISTICS_MOMENTUM: Final = 0.2  # weight of the newest picture in a style's running statistics

_EMPHASIS: Final = 0.6  # of the draws are of the emphasised code; the rest is shared by all
# Of the training steps use live statistics, the others the running ones. Folded pictures are what is shown; with half of the
# steps live, a code of few steps had a tenth more style distance folded than exact. A body needs the half all the same while
# its strokes come about (`scripts/train_base`): frozen norms leave what is flat flat, and 5,000 steps from random weights with
# a share as small as this, at 2.5 times today's rate, taught relief along edges and no stroke.
_LIVE_SHARE: Final = 0.15

_OVERHANG: Final = 2  # pixels by which the stem's window reaches beyond the four it is about
# Edge padding around what is painted, cut off afterwards. With 32 pixels a bare wall has a frame of up to 21 grey levels, with
# these none that strokes do not make by themselves (the public codes, folded; `tests/meta/test_base_pictures.py` asks for 8).
_MARGIN: Final = 36
_STUDIO_MARGIN: Final = 40
# What the zero padding inside does to a picture reaches as far inwards while training, too. The style loss does not see that
# rim, or it would teach the network to park the palette's rarer colours there; the loss of colour sees its inner part, so that
# it is painted like the rest.
_RIM: Final = 16
_RIM_UNSEEN: Final = 10

_SHRINKS: Final = (1, 2, 4)  # the style loss sees the picture at these fractions of its size
# Works are measured at this geometric mean side, larger than the 512 px pictures they teach: at their own scale an oil
# painter's strokes are as narrow as one pixel of the trunk, and all it can make of them is a hatching on its own grid.
_STYLE_SIDE: Final = 704
_PHOTO_SIDE: Final = 320  # photos are fed at about this geometric mean side while training
_EXAM_PHOTOS: Final = 4
_EXPOSED_SHARE: Final = 0.4  # of the crops are exposed and contrasted at random
_FAINT_SHARE: Final = 0.1  # of the crops are nearly flat, as a wall or a sky that fills the picture
_SHIFT: Final = 4  # the loss sees the picture shifted by 0.._SHIFT-1 px: a fixed pixel grid cannot hide from it
_CONTENT_WEIGHT: Final = 1.0
_STYLE_WEIGHT: Final = 32.0
_COLOUR_WEIGHT: Final = 220.0
# Hues count more than lights and darks. Counting the same, strokes took the commonest hue of the palette wherever there was
# much to paint: a blue sky turned beige, a red coat ochre.
_HUE_WEIGHT: Final = 6.0
_COLOUR_PATCH: Final = 16  # pixels a side: broad masses of colour follow the photo's, strokes inside them are free
_COLOUR_FLOOR: Final = 1e-3  # variance added to a photo's colours, so that a grey one is not blown up
_SUITINGS: Final = 4  # the last only looks whether the one before was for the better
_COLOUR_RIDGE: Final = 0.01  # per patch: few photos do not show every hue
_IDENTITY_WEIGHT: Final = 30.0
_SMOOTH_WEIGHT: Final = 1.5
_GRID_WEIGHT: Final = 60.0
_FOLD_WEIGHT: Final = 60.0  # of what changes in a picture when the norms' statistics are frozen
_CLIP_WEIGHT: Final = 30.0  # of what lies beyond black or white: it would be cut off and leave flat patches


class StyleNet(nn.Module):
    """The shared body with a table of style codes.

    8x8 stride-4 stem, five residual blocks at quarter resolution, a PixelShuffle step up, one narrow residual block, a second
    step. Zero padding, dense 3x3 convolutions, features never below zero and nothing else: what int8 kernels are best at
    (figures in the README). The block at half resolution is what draws a stroke narrower than the stem's stride; without it,
    strokes are pieced together from squares of four pixels.

    The convolutions paint over an *underpainting*: the photo's broad masses of colour, moved to the artist's palette. The
    norms forget how dark and of what hue a large flat area is, and a new code of few steps would paint a black visor in the
    mean of the palette. The underpainting costs no operator of its own: it is three of the channels. The stem makes them (an
    8x8 stride-4 mean is a stem filter), no norm touches them, the blocks add nothing to them, ``to_half`` enlarges them
    bilinearly, and ``to_full`` reads them as it likes.

    Attributes:
        codes: (N, 2 * S + 12) the private scales, shifts and underpainting, S = sum of the normed channels; row 0 first.
        norm_mean, norm_var: (N, S) running statistics of every normed channel, private like the code.
    """

    norm_mean: Tensor
    norm_var: Tensor

    def __init__(self, channels: int, codes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 8, stride=4, bias=False)
        self.blocks = nn.ModuleList(_Block(channels) for _ in range(BLOCKS))
        self.to_half = _conv3(channels, 4 * _HALF_CHANNELS)
        self.detail = _Block(_HALF_CHANNELS)
        self.to_full = nn.Conv2d(_HALF_CHANNELS, 12, 3, padding=1)
        self.widths = normed_widths(channels)
        total = sum(self.widths)
        plain = torch.cat([torch.ones(total), torch.zeros(total), torch.eye(3).flatten(), torch.zeros(3)])
        self.codes = nn.Parameter(plain.repeat(codes, 1))
        self.register_buffer("norm_mean", torch.zeros(codes, total))
        self.register_buffer("norm_var", torch.ones(codes, total))

    def forward(
        self, photo: Tensor, code: Tensor, statistics: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Paint.

        Args:
            photo: (B, 3, H, W) float32 in [0, 1]; H and W multiples of 4.
            code: (B, 2 * S + 12) float32.
            statistics: mean and variance, each (B, S), to norm with; the picture's own if absent.

        Returns:
            The picture (B, 3, H, W), a little beyond [0, 1] here and there, and the statistics each norm was given.
        """
        norms, mix = code[:, :-_UNDERPAINTING], code[:, -_UNDERPAINTING:]
        norm = _Norms(self.widths, norms, statistics)
        return self.body(F.pad(photo, (_OVERHANG,) * 4, mode="replicate"), norm, mix), norm.seen()

    def body(self, photo: Tensor, norm: Norm, mix: Tensor) -> Tensor:
        """The convolutions, with ``norm`` after each but the last, over an underpainting of ``mix`` (B, 12).

        The photo has two pixels more on every side than the picture will have.
        """
        x = F.relu(norm(self._sketch(photo, mix), passes=True))
        for block in self.blocks:
            x = block(x, norm)
        x = F.relu(norm(F.pixel_shuffle(self.to_half(x), 2), passes=True))
        x = self.detail(x, norm)
        return F.pixel_shuffle(self.to_full(x), 2)

    def _sketch(self, photo: Tensor, mix: Tensor) -> Tensor:
        """The stem's features and, in the last channels, the underpainting: one convolution, of each picture's own weights."""
        batch, colours, height, width = photo.shape
        masses, offset = _mass_filters(mix, self.stem.out_channels)
        weight = (self.stem.weight + masses).flatten(0, 1)
        if batch == 1:  # what ships: a convolution and nothing around it
            return F.conv2d(photo, weight, offset, stride=4)
        stacked = F.conv2d(photo.reshape(1, batch * colours, height, width), weight, offset, stride=4, groups=batch)
        return stacked.reshape(batch, self.stem.out_channels, *stacked.shape[2:])


def normed_widths(channels: int) -> tuple[int, ...]:
    """Normed channels after each convolution of a body that wide; the others carry the underpainting."""
    free = channels - _MASSES
    return (free, *(channels, free) * BLOCKS, _HALF_CHANNELS - _MASSES, _HALF_CHANNELS, _HALF_CHANNELS - _MASSES)


def _mass_filters(mix: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """8x8 means of the photo, their colours mixed linearly: weights (B, channels, 3, 8, 8) and offsets (B * channels,).

    The window of a stride-4 mean and the four enlarged pixels have the same centre, 4 i + 1.5.
    """
    rows = _MASS_GAIN / 64 * mix[:, :9].reshape(-1, _MASSES, 3, 1, 1).expand(-1, -1, -1, 8, 8)
    offset = F.pad(_MASS_GAIN * mix[:, 9:], (channels - _MASSES, 0))
    return F.pad(rows, (0, 0, 0, 0, 0, 0, channels - _MASSES, 0)), offset.reshape(-1)


class Norm(Protocol):
    """What follows a convolution."""

    def __call__(self, x: Tensor, *, passes: bool = False) -> Tensor:
        """Norm the next channels of the code.

        Args:
            x: (B, C, H, W), C up to three more than are normed.
            passes: hand on the last channels as they are, else empty them.
        """
        ...


class _Block(nn.Module):
    """Two normed convolutions and a way past them (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = _conv3(channels, channels)
        self.b = _conv3(channels, channels)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        """relu(X + norm(b(relu(norm(a(x))))))."""
        changed = norm(self.b(F.relu(norm(self.a(x)))))
        return F.relu(x + changed)


class _Norms:
    """Hands each convolution in turn its slice of the code and, if frozen, of the statistics."""

    def __init__(self, widths: Sequence[int], code: Tensor, statistics: tuple[Tensor, Tensor] | None) -> None:
        scale, shift = code.chunk(2, dim=1)
        self._scales = iter(torch.split(scale, list(widths), dim=1))
        self._shifts = iter(torch.split(shift, list(widths), dim=1))
        self._frozen = (
            None if statistics is None else zip(*(torch.split(s, list(widths), dim=1) for s in statistics), strict=True)
        )
        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []

    def __call__(self, x: Tensor, *, passes: bool = False) -> Tensor:
        """See ``Norm``."""
        scale, shift = next(self._scales), next(self._shifts)
        # One pass for both moments; instance_norm's backward on the CPU is several times slower.
        variance, mean = (m[:, : scale.shape[1]] for m in torch.var_mean(x, dim=(2, 3), correction=0))
        self._means.append(mean.detach())
        self._variances.append(variance.detach())
        if self._frozen is not None:
            mean, variance = next(self._frozen)
        gain = scale * torch.rsqrt(variance + _EPSILON)
        offset = shift - mean * gain
        masses = (0, x.shape[1] - scale.shape[1])
        gain, offset = F.pad(gain, masses, value=float(passes)), F.pad(offset, masses)
        normed: Tensor = x * gain[:, :, None, None] + offset[:, :, None, None]
        return normed

    def seen(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._means, dim=1), torch.cat(self._variances, dim=1)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


@dataclass(frozen=True, slots=True)
class StyleBatch:
    """One step's worth of lessons.

    Attributes:
        photo: (B, 3, H, W) float32 in [0, 1], public, with a rim of ``_RIM`` pixels whose style the loss does not look at.
        code: (B,) int64, the row of ``StyleNet.codes`` each picture is painted with.
        perceptual: the frozen network the loss looks through.
        targets: moments of the works, one per perceptual layer.
        recoloured: (B, 3, H, W) the photo with its colours moved to the artist's palette.
        weight: (B,) how much the style counts; 0 for the identity code, which is to give the photo back.
        live: norm with the picture's own statistics, else with the style's running ones.
        shift: pixels by which the loss shifts what it looks at, (down, right).
    """

    photo: Tensor
    code: Tensor
    perceptual: Perceptual
    targets: list[Moments]
    recoloured: Tensor
    weight: Tensor
    live: bool
    shift: tuple[int, int]


class StyleLessons:
    """Works become target statistics once, photos become batches; the works themselves are then let go."""

    def __init__(
        self,
        perceptual: Perceptual,
        targets: Sequence[Sequence[Work]],
        material: Sequence[Work],
        seed: int,
        *,
        size: int,
        batch: int,
        settling_steps: int,
        emphasis: int | None,
        live_share: float = _LIVE_SHARE,
    ) -> None:
        self._perceptual = perceptual
        self._seed = seed
        self._size = size
        self._batch = batch
        self._settling_steps = settling_steps
        self._emphasis = emphasis
        self._live_share = live_share
        photos = [_photo(work) for work in material]
        self._daylight = Palette.of(photos)
        self._exam_photos = photos[:_EXAM_PHOTOS]
        self._photos = photos[_EXAM_PHOTOS:] or photos
        self._targets = _stacked([_targets(perceptual, works) for works in targets])
        self._turns, self._hues = (
            torch.stack(m).to(perceptual.device) for m in zip(*map(self._recolouring, targets), strict=True)
        )
        self._styled = [i for i, works in enumerate(targets) if works]
        self._plain = [i for i, works in enumerate(targets) if not works]

    def batch(self, step: int) -> StyleBatch:
        """A seeded draw of photos, crops and codes. A code without works learns to give the photo back."""
        rng = np.random.default_rng((self._seed, step))
        return self._drawn(step, [self._draw_code(rng) for _ in range(self._batch)], rng)

    def batch_of(self, code: int, step: int) -> StyleBatch:
        """See ``Lessons.batch_of``. All codes of a step see the same photos, so that what one says depends on no other."""
        return self._drawn(step, [code] * self._batch, np.random.default_rng((self._seed, step)))

    def _drawn(self, step: int, codes: list[int], rng: Generator) -> StyleBatch:
        photos = [_crop(self._photos[rng.integers(len(self._photos))], self._size + 2 * _RIM, rng) for _ in codes]
        shift = rng.integers(_SHIFT, size=2)
        live = step < self._settling_steps or rng.random() < self._live_share
        return self._assemble(photos, codes, live=bool(live), shift=(int(shift[0]), int(shift[1])))

    def exam(self) -> Iterable[StyleBatch]:
        """Every styled code, or the emphasised one, on a few centre crops.

        Their photos are kept out of the batches, unless there are no others.
        """
        photos = [_centre(photo, 256 + 2 * _RIM) for photo in self._exam_photos]
        for code in self._styled if self._emphasis is None else [self._emphasis]:
            for photo in photos:
                yield self._assemble([photo], [code], live=True, shift=(0, 0))

    @torch.no_grad()
    def distance(self, code: int, works: Sequence[Work]) -> float:
        """See ``Lessons.distance``, of pictures as they are, each counting the same."""
        target = [Moments(layer.mean[code : code + 1], layer.covariance[code : code + 1]) for layer in self._targets]
        pictures = (_pixels_of(work)[None].to(self._perceptual.device) for work in works)
        return float(np.mean([_style_distance(_scales(self._perceptual, p), target).item() for p in pictures]))

    def _draw_code(self, rng: Generator) -> int:
        if self._emphasis is not None and rng.random() < _EMPHASIS:
            return self._emphasis
        plain = self._plain and (not self._styled or rng.random() < 1 / 8)
        pool = self._plain if plain else self._styled
        return pool[rng.integers(len(pool))]

    def _assemble(self, photos: list[Tensor], codes: list[int], *, live: bool, shift: tuple[int, int]) -> StyleBatch:
        device = self._perceptual.device
        index = torch.tensor(codes, device=device)
        photo = torch.stack(photos).to(device)
        return StyleBatch(
            photo=photo,
            code=index,
            perceptual=self._perceptual,
            targets=[Moments(layer.mean[index], layer.covariance[index]) for layer in self._targets],
            recoloured=self._recoloured(photo, index),
            weight=torch.tensor([float(code in self._styled) for code in codes], device=device),
            live=live,
            shift=shift,
        )

    def _recolouring(self, works: Sequence[Work]) -> tuple[Tensor, Tensor]:
        """The (3, 3) map into the palette of a code's works, and their mean colour (3,); without works, what changes nothing.

        One map for all photos, from the colours photos have on the whole: the artist's blue is then the same in every
        picture, and a blue sky does not turn beige because the rest of its photo is grey.
        """
        if not works:
            return torch.eye(3), self._daylight.mean
        palette = Palette.of(_sized(work, _STYLE_SIDE) for work in works)
        return self._daylight.moved_to(palette), palette.mean

    def _recoloured(self, photos: Tensor, codes: Tensor) -> Tensor:
        """Photos (B, 3, H, W) in the palettes of the works of each one's code (B,), kept within [0, 1]."""
        centred = photos - self._daylight.mean.to(photos.device)[:, None, None]
        turned = torch.einsum("bij,bjhw->bihw", self._turns[codes], centred)
        return (turned + self._hues[codes][:, :, None, None]).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class Palette:
    """Mean (3,) and covariance (3, 3) of the colours of some pictures, each picture counting the same."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, pictures: Iterable[Tensor]) -> Palette:
        """From pictures (3, H, W) of any sizes, looked at one after the other."""
        sums = [(p.mean(dim=(1, 2)), p.flatten(1) @ p.flatten(1).T / p[0].numel()) for p in pictures]
        mean, square = (torch.stack(parts).mean(dim=0) for parts in zip(*sums, strict=True))
        return cls(mean, square - torch.outer(mean, mean) + _COLOUR_FLOOR * torch.eye(3))

    def moved_to(self, other: Palette) -> Tensor:
        """The (3, 3) map that turns these colours into the other's with the least movement.

        Monge-Kantorovitch colour transfer (Pitié and Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping
        for example-based colour transfer", eq. 13).
        """
        root = _power(self.covariance, 0.5)
        back = _power(self.covariance, -0.5)
        return back @ _power(root @ other.covariance @ root, 0.5) @ back


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    power: Tensor = vectors @ torch.diag(values.clamp_min(1e-9) ** exponent) @ vectors.T
    return power


def _photo(work: Work) -> Tensor:
    """(3, H, W) at the training scale, its edge repeated outwards by the rim as when painting."""
    return F.pad(_sized(work, _PHOTO_SIDE)[None], (_RIM,) * 4, mode="replicate")[0]


def _crop(photo: Tensor, size: int, rng: Generator) -> Tensor:
    """A square of a photo, mirrored and exposed at random.

    Well-made photos have few deep shadows, blown lights and bare walls; on a wall, whatever a body does of its own accord
    shows, a frame along the edge above all.
    """
    top = int(rng.integers(photo.shape[1] - size + 1))
    left = int(rng.integers(photo.shape[2] - size + 1))
    crop = photo[:, top : top + size, left : left + size]
    if rng.random() < _EXPOSED_SHARE:
        contrast, lift = rng.uniform(0.8, 1.7), rng.uniform(-0.4, 0.2)
        crop = ((crop - 0.5) * contrast + 0.5 + lift).clamp(0, 1)
    elif rng.random() < _FAINT_SHARE / (1 - _EXPOSED_SHARE):
        mean = crop.mean(dim=(1, 2), keepdim=True)
        crop = mean + rng.uniform(0.02, 0.3) * (crop - mean)
    return crop.flip(2) if rng.random() < 0.5 else crop


def _centre(photo: Tensor, size: int) -> Tensor:
    height, width = (min(size, side) // 4 * 4 for side in photo.shape[1:])
    top, left = (photo.shape[1] - height) // 2, (photo.shape[2] - width) // 2
    return photo[:, top : top + height, left : left + width]


def _sized(work: Work, side: int) -> Tensor:
    """(H, W, 3) uint8 → (3, h, w) float32 in [0, 1] with a geometric mean side of ``side`` and no side under 192."""
    picture = _pixels_of(work)[None]
    height, width = picture.shape[2:]
    scale = max(side / math.sqrt(height * width), 192 / min(height, width))
    size = (round(height * scale), round(width * scale))
    return F.interpolate(picture, size=size, mode="bicubic", antialias=True).clamp(0, 1)[0]


def _pixels_of(work: Work) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 in [0, 1]."""
    return torch.tensor(work).permute(2, 0, 1).float() / 255.0


@torch.no_grad()
def _targets(perceptual: Perceptual, works: Sequence[Work]) -> list[Moments]:
    """The mean moments of an artist's works: each work counts the same, whatever its size."""
    per_work = [
        [moments(f) for f in _scales(perceptual, _sized(work, _STYLE_SIDE)[None].to(perceptual.device))] for work in works
    ]
    return [
        Moments(torch.cat([m.mean for m in layer]).mean(dim=0), torch.cat([m.covariance for m in layer]).mean(dim=0))
        for layer in zip(*per_work, strict=True)
    ]


def _scales(perceptual: Perceptual, picture: Tensor) -> list[Tensor]:
    """Feature maps of the picture, then of the picture at half and at a quarter of its size: fine strokes and broad ones."""
    pictures = (F.avg_pool2d(picture, shrink) if shrink > 1 else picture for shrink in _SHRINKS)
    return [layer for smaller in pictures for layer in perceptual.features(smaller)]


def _stacked(targets: Sequence[list[Moments]]) -> list[Moments]:
    """The moments of all codes, layer by layer; a code without works gets zeros, which carry no weight."""
    shapes = next((t for t in targets if t), [])
    return [
        Moments(
            torch.stack([target[i].mean if target else torch.zeros_like(like.mean) for target in targets]),
            torch.stack([target[i].covariance if target else torch.zeros_like(like.covariance) for target in targets]),
        )
        for i, like in enumerate(shapes)
    ]


@dataclass(frozen=True, slots=True)
class StyleObjective:
    """Content + style, for body and codes at once: a code is small and may take longer steps.

    Of a body's gradients half are longer than 250, and a few longer than 1,000 would set the size of Adam's steps for dozens
    of steps.
    """

    name: str = "style"
    gradient_limit: float = 200.0
    body_rate: float = 2e-3
    code_rate: float = 1e-2

    def rate(self, parameter: str) -> float:
        """See ``Objective.rate``."""
        return self.body_rate if is_body(parameter) else self.code_rate

    def loss(self, net: StyleNet, batch: StyleBatch) -> Tensor:
        """Perceptual loss of Johnson et al. 2016, each layer's style divided by its target's own size.

        Without that division, an artist of strong contrast pulls the body harder than a quiet one (Cheng et al.,
        CVPR 2021, "Style-Aware Normalized Loss").
        """
        whole, folded = _painted(net, batch)
        picture, photo = _without_rim(whole), _without_rim(batch.photo)
        down, right = batch.shift
        seen, shown = picture[:, :, down:, right:], photo[:, :, down:, right:]
        painted = _scales(batch.perceptual, seen)
        with torch.no_grad():
            original = batch.perceptual.features(shown)[-1]
        deepest = len(painted) // len(_SHRINKS) - 1
        styled = batch.weight
        content = (_whitened(painted[deepest]) - _whitened(original)).square().mean(dim=(1, 2, 3))
        style = _style_loss(painted, batch.targets)
        colour = _colour_distance(_cut(whole, _RIM_UNSEEN), _cut(batch.recoloured, _RIM_UNSEEN))
        identity = (picture - photo).abs().mean(dim=(1, 2, 3))
        smooth = _roughness(picture)
        return torch.mean(
            styled * (_CONTENT_WEIGHT * content + _STYLE_WEIGHT * style + _COLOUR_WEIGHT * colour + _SMOOTH_WEIGHT * smooth)
            + _GRID_WEIGHT * _grid(picture)
            + _CLIP_WEIGHT * _beyond(picture)
            + _FOLD_WEIGHT * folded
            + (1 - styled) * (content + _IDENTITY_WEIGHT * identity)
        )


def _painted(net: StyleNet, batch: StyleBatch) -> tuple[Tensor, Tensor]:
    """Paint a training step, live steps teaching the styles' running statistics.

    A style that has none yet is painted live, whatever the batch says.

    Returns:
        The pictures, and (B,) how far those of frozen statistics are from live ones: what folding will change. Both ways of
        painting learn from the difference, so that what a picture shows comes to depend little on its own statistics.
    """
    codes = net.codes[batch.code]
    if batch.live or not bool(net.norm_mean[batch.code].any(dim=1).all()):
        picture, seen = net(batch.photo, codes)
        _observe_inplace(net, batch.code, *seen)
        return picture, codes.new_zeros(len(codes))
    frozen = net.norm_mean[batch.code], net.norm_var[batch.code]
    picture = net(batch.photo, codes, frozen)[0]
    return picture, (picture - net(batch.photo, codes)[0]).abs().mean(dim=(1, 2, 3))


def _grid(picture: Tensor, period: int = 4, blocks: int = 8) -> Tensor:
    """Mean size of a pattern that repeats every ``period`` pixels, in windows of ``blocks`` periods: (B,).

    The weights (``_soft_upscaling_inplace``) rule such a pattern out on flat features; this asks for the
    same where features vary. A slope across a window is no grid and is taken out first.
    """
    batch, channels, height, width = picture.shape
    window = period * blocks
    rows, columns = height // window, width // window
    trimmed = picture[:, :, : rows * window, : columns * window]
    phases = trimmed.reshape(batch, channels, rows, blocks, period, columns, blocks, period).mean(dim=(3, 6))
    phases = phases.permute(0, 1, 2, 4, 3, 5)  # (B, C, rows, columns, period, period)
    phases = phases - phases.mean(dim=(4, 5), keepdim=True)
    ramp = torch.linspace(-1.0, 1.0, period, device=picture.device)
    for axis in (ramp[:, None], ramp[None, :]):
        slope = (phases * axis).sum(dim=(4, 5), keepdim=True) / (axis.square().sum() * period)
        phases = phases - slope * axis
    size: Tensor = phases.abs().mean(dim=(1, 2, 3, 4, 5))
    return size


def _style_distance(painted: Sequence[Tensor], targets: Sequence[Moments]) -> Tensor:
    """Squared distance of means and of covariances, each relative to the target's own size, over all layers: (B,).

    Covariances and not Gram matrices: after a ReLU the means are large, and in a Gram matrix they would drown the
    correlations that make a stroke (Novak and Nikulin 2016, arXiv 1605.04603, section 3.2, "activation shift").
    """
    return _over_layers(painted, targets, _relative)


def _style_loss(painted: Sequence[Tensor], targets: Sequence[Moments]) -> Tensor:
    """What is taught in the place of ``_style_distance``: (B,); the same close by, and a better teacher from afar."""
    return _over_layers(painted, targets, _spread_distance)


def _over_layers(painted: Sequence[Tensor], targets: Sequence[Moments], unlike: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean over layers of the distance of means, and of covariances by ``unlike``: (B,)."""
    layers = []
    for features, target in zip(painted, targets, strict=True):
        seen = moments(features)
        mean = (seen.mean - target.mean).square().sum(dim=1) / target.mean.square().sum(dim=1).clamp_min(_LEAST)
        layers.append((mean + unlike(seen.covariance, target.covariance)) / 2)
    return torch.stack(layers).mean(dim=0)


def _relative(seen: Tensor, wanted: Tensor) -> Tensor:
    """|seen - wanted|^2 / |wanted|^2 of two covariances (B, C, C): (B,)."""
    return (seen - wanted).square().sum(dim=(1, 2)) / wanted.square().sum(dim=(1, 2)).clamp_min(_LEAST)


def _spread_distance(seen: Tensor, wanted: Tensor) -> Tensor:
    """How unlike two covariances (B, C, C) are in direction, and in size: (B,).

    Close by this is ``_relative``. Farther off that is no good teacher: a picture whose correlations are not the artist's is
    nearest if it has little contrast at all, and pictures came out with half of the works' variance.
    """
    sizes = [covariance.square().sum(dim=(1, 2)).clamp_min(_LEAST).sqrt() for covariance in (seen, wanted)]
    cosine = (seen * wanted).sum(dim=(1, 2)) / (sizes[0] * sizes[1])
    contrast = (sizes[0] / sizes[1]).sqrt()  # of deviations, where the ratio is one of variances
    distance: Tensor = 2 * (1 - cosine) + 4 * (contrast - 1).square()
    return distance


def _colour_distance(picture: Tensor, recoloured: Tensor) -> Tensor:
    """Mean squared difference of the broad masses of colour, hues counting more than lights and darks: (B,)."""
    masses = F.avg_pool2d(picture - recoloured, _COLOUR_PATCH)
    grey = masses.mean(dim=1, keepdim=True)
    distance: Tensor = (grey.square() + _HUE_WEIGHT * (masses - grey).square()).mean(dim=(1, 2, 3))
    return distance


def _broad_masses(pictures: Tensor) -> Tensor:
    """Mean colours of patches, (B, 3, H, W) → (N, 3)."""
    return F.avg_pool2d(pictures, _COLOUR_PATCH).permute(0, 2, 3, 1).reshape(-1, 3)


def _whitened(features: Tensor) -> Tensor:
    """Features without their per-channel mean and size: content should not fight over palette and contrast."""
    variance, mean = torch.var_mean(features, dim=(2, 3), correction=0, keepdim=True)
    return (features - mean) * torch.rsqrt(variance + 1e-3)


def _without_rim(pictures: Tensor) -> Tensor:
    return _cut(pictures, _RIM)


def _cut(pictures: Tensor, pixels: int) -> Tensor:
    return pictures[:, :, pixels:-pixels, pixels:-pixels]


def _beyond(picture: Tensor) -> Tensor:
    """By how much a picture is blacker than black or whiter than white, on average: (B,)."""
    size: Tensor = (picture - picture.clamp(0, 1)).abs().mean(dim=(1, 2, 3))
    return size


def _roughness(picture: Tensor) -> Tensor:
    """Mean absolute second difference at distance one, where a pixel grid shows: (B,)."""
    across = picture[..., 2:] - 2 * picture[..., 1:-1] + picture[..., :-2]
    down = picture[..., 2:, :] - 2 * picture[..., 1:-1, :] + picture[..., :-2, :]
    roughness: Tensor = across.abs().mean(dim=(1, 2, 3)) + down.abs().mean(dim=(1, 2, 3))
    return roughness


@torch.no_grad()
def _observe_inplace(net: StyleNet, codes: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics of the codes that were painted with towards what was seen."""
    for row, m, v in zip(codes.tolist(), mean, variance, strict=True):
        weight = _STATISTICS_MOMENTUM if net.norm_mean[row].any() else 1.0
        net.norm_mean[row].lerp_(m, weight)
        net.norm_var[row].lerp_(v, weight)


def is_body(parameter: str) -> bool:
    """Whether the tensor of that name is part of the shared body: the convolutions, and only they."""
    return parameter.split(".", maxsplit=1)[0] in ("stem", "blocks", "to_half", "detail", "to_full")


class ExactGraph(nn.Module):
    """Photo and code in, picture out, norms computed live: what ships. uint8 at both ends, so bytes are all it takes."""

    def __init__(self, net: StyleNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, photo: Tensor, code: Tensor) -> Tensor:
        """(1, H, W, 3) uint8 and (1, 2 * S + 12) float32 → (1, H, W, 3) uint8."""
        x = photo.permute(0, 3, 1, 2).float() / 255.0
        norms, mix = code[:, :-_UNDERPAINTING], code[:, -_UNDERPAINTING:]
        picture = self.net.body(x, _OnnxNorms(self.net.widths, norms), mix)
        return torch.round(picture.clamp(0, 1) * 255.0).permute(0, 2, 3, 1).to(torch.uint8)


class _OnnxNorms:
    """The norms as one ONNX operator each, with scale and shift computed from the code.

    torch's own export spells an instance norm out in a dozen operators; ONNX Runtime has a kernel for the whole, and
    the fold finds it by name.
    """

    def __init__(self, widths: Sequence[int], code: Tensor) -> None:
        scale, shift = code.reshape(-1).chunk(2)
        self._scales = iter(torch.split(scale, list(widths)))
        self._shifts = iter(torch.split(shift, list(widths)))

    def __call__(self, x: Tensor, *, passes: bool = False) -> Tensor:
        """See ``Norm``."""
        scale, shift = next(self._scales), next(self._shifts)
        masses = (0, x.shape[1] - scale.shape[0])
        arguments = (x, F.pad(scale, masses), F.pad(shift, masses))
        attributes: dict[str, Any] = {"epsilon": _EPSILON}
        normed = torch.onnx.ops.symbolic("InstanceNormalization", arguments, attributes, dtype=x.dtype, shape=x.shape)
        passed = torch.cat([torch.zeros(scale.shape[0]), torch.ones(masses[1])])
        return normed + x * passed.reshape(1, -1, 1, 1) if passes else normed


@dataclass(frozen=True, slots=True)
class StyleModality:
    """The style modality in one of its tiers.

    Attributes:
        name: "style-kiosk" or "style-studio".
        channels: width of the body.
        crop: side of the training crops in pixels.
        batch: crops per step.
        settling_steps: first steps that use live statistics only, where running ones mean nothing yet.
        live_share: of the later steps use them, too.
        margin: pixels that the photo's edge is repeated outwards before painting.
    """

    name: str
    channels: int
    crop: int = 128
    batch: int = 2
    settling_steps: int = 0
    live_share: float = _LIVE_SHARE
    margin: int = _MARGIN
    backbones: tuple[str, ...] = ("vgg19",)
    objectives: tuple[StyleObjective, ...] = (StyleObjective(),)

    @property
    def signature(self) -> Signature:
        """See ``Modality.signature``."""
        picture = (1, None, None, 3)
        normed = sum(normed_widths(self.channels))
        return Signature(
            medium="image",
            sampler="feed-forward",
            content=TensorSpec("photo", "uint8", picture),
            code=TensorSpec("code", "float32", (1, 2 * normed + _UNDERPAINTING)),
            output=TensorSpec("picture", "uint8", picture),
        )

    @property
    def frame(self) -> Frame:
        """See ``Modality.frame``."""
        return Frame(multiple=4, margin=self.margin + _OVERHANG, used=_OVERHANG)

    def build(self, seed: int, codes: int = 1) -> StyleNet:
        """See ``Modality.build``: He initialisation; the PixelShuffle layers start without a grid."""
        generator = torch.Generator().manual_seed(seed)
        net = StyleNet(self.channels, codes)
        for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        _smooth_shuffle_inplace(net.to_half)
        _smooth_shuffle_inplace(net.to_full, gain=0.05)  # the first pictures are the underpainting, and little more
        with torch.no_grad():
            net.to_full.weight[:, -_MASSES:] = _enlarged(torch.eye(3) / _MASS_GAIN)
        _pass_masses_inplace(net)
        return net

    def lessons(
        self,
        targets: Sequence[Sequence[Work]],
        material: Sequence[Work],
        backbones: Mapping[str, Perceptual],
        seed: int,
        emphasis: int | None = None,
    ) -> StyleLessons:
        """See ``Modality.lessons``; a code without works learns to give the photo back."""
        return StyleLessons(
            backbones[self.backbones[0]],
            targets,
            material,
            seed,
            size=self.crop,
            batch=self.batch,
            settling_steps=self.settling_steps,
            live_share=self.live_share,
            emphasis=emphasis,
        )

    def graph(self, net: StyleNet) -> nn.Module:
        """See ``Modality.graph``."""
        return ExactGraph(net)

    def codes(self, net: StyleNet) -> npt.NDArray[np.float32]:
        """See ``Modality.codes``."""
        return net.codes.detach().cpu().numpy().copy()

    @torch.no_grad()
    def set_codes_inplace(self, net: StyleNet, codes: npt.NDArray[np.float32]) -> None:
        """See ``Modality.set_codes_inplace``: the running statistics begin anew."""
        net.codes.copy_(torch.tensor(codes))
        net.norm_mean.zero_()
        net.norm_var.fill_(1.0)

    @torch.no_grad()
    def suit_inplace(self, net: StyleNet, row: int, batches: Iterable[StyleBatch]) -> None:
        """See ``Modality.suit_inplace``: mix the underpainting so that broad masses have the artist's colours.

        Ridge regression, a few times over: what passes the convolutions is linear in those numbers, but they look at it too.
        """
        lessons = list(batches)
        best, least = net.codes[row].clone(), math.inf
        for _ in range(_SUITINGS):
            known, missing = self._broad_masses_of(net, row, lessons)
            error = missing.square().mean().item() if len(missing) else math.inf
            if not error < least:
                break
            best, least = net.codes[row].clone(), error
            ridge = _COLOUR_RIDGE * len(known) * torch.eye(4, device=known.device)
            change = torch.linalg.solve(known.T @ known + ridge, known.T @ missing)  # (4, 3)
            net.codes[row, -_UNDERPAINTING:] += torch.cat([change[:3].T.flatten(), change[3]])
        net.codes[row] = best

    def _broad_masses_of(self, net: StyleNet, row: int, batches: Sequence[StyleBatch]) -> tuple[Tensor, Tensor]:
        """What the underpainting of a code is mixed from, (N, 4), and how far the picture is from the palette, (N, 3)."""
        known, missing = [net.codes.new_zeros(0, 4)], [net.codes.new_zeros(0, 3)]
        for batch in batches:
            mine = batch.code == row
            photo, recoloured = batch.photo[mine], batch.recoloured[mine]
            if len(photo):
                picture = net(photo, net.codes[row].expand(len(photo), -1))[0]
                masses, wanted, found = (_broad_masses(_without_rim(p)) for p in (photo, recoloured, picture))
                known.append(torch.cat([masses, masses.new_ones(len(masses), 1)], dim=1))
                missing.append(wanted - found)
        return torch.cat(known), torch.cat(missing)

    def constrain_inplace(self, net: StyleNet) -> None:
        """See ``Modality.constrain_inplace``: both PixelShuffle layers draw softly, and the underpainting passes."""
        _soft_upscaling_inplace(net.to_half)
        _soft_upscaling_inplace(net.to_full)
        _pass_masses_inplace(net)

    def is_shared(self, parameter: str) -> bool:
        """See ``Modality.is_shared``."""
        return is_body(parameter)

    @torch.no_grad()
    def score(self, net: StyleNet, batches: Iterable[StyleBatch]) -> Score:
        """Mean style distance, and mean luminance SSIM between photo and picture."""
        styles, contents = [], []
        for batch in batches:
            painted = net(batch.photo, net.codes[batch.code])[0].clamp(0, 1)
            picture, photo = _without_rim(painted), _without_rim(batch.photo)
            styles.append(_style_distance(_scales(batch.perceptual, picture), batch.targets).mean().item())
            contents += [ssim(a, b) for a, b in zip(_pixels(photo), _pixels(picture), strict=True)]
        return Score(style=float(np.mean(styles)), content=float(np.mean(contents)))


@torch.no_grad()
def _smooth_shuffle_inplace(conv: nn.Conv2d, gain: float = 1.0) -> None:
    """Start a PixelShuffle layer as a mix of its inputs, enlarged bilinearly.

    ICNR (Aitken et al. 2017, arXiv 1707.02937) starts with the nearest neighbour instead, and squares stay for thousands of
    steps.
    """
    mix = conv.weight[::4].sum(dim=(2, 3)) * gain
    conv.weight.copy_(_enlarged(mix))


def _enlarged(mix: Tensor) -> Tensor:
    """Weights (4 * O, I, 3, 3) that mix channels by ``mix`` (O, I) and enlarge them twice, bilinearly, after PixelShuffle."""
    near, far = torch.tensor([0.25, 0.75, 0.0]), torch.tensor([0.0, 0.75, 0.25])
    kernels = torch.stack([torch.outer(down, right) for down in (near, far) for right in (near, far)])
    return torch.einsum("oi,phw->opihw", mix, kernels).flatten(0, 1)


@torch.no_grad()
def _pass_masses_inplace(net: StyleNet) -> None:
    """Let the underpainting pass: no convolution of the trunk adds to it, ``to_half`` enlarges it and does nothing else."""
    net.stem.weight[-_MASSES:] = 0
    for block in (*net.blocks, net.detail):
        block.b.weight[-_MASSES:] = 0
    net.to_half.weight[-4 * _MASSES :] = 0
    net.to_half.weight[-4 * _MASSES :, -_MASSES:] = _enlarged(torch.eye(_MASSES)).to(net.to_half.weight)


@torch.no_grad()
def _soft_upscaling_inplace(conv: nn.Conv2d) -> None:
    """Make a 3x3 convolution before a PixelShuffle(2) draw with a soft brush.

    The two together are a transposed convolution with a 6x6 kernel. Only such kernels are allowed as a 4x4 kernel blurred by
    [1 2 1] / 4 in both directions: they answer a flat input flat and a slope with a slope, and a slanting line has no stairs
    of the coarse grid's pixels. Sugawara et al. 2018 (arXiv 1806.02658) filter after the upscaling; asking it of the weights
    costs nothing when painting. The set of such weights is linear, so averages and sums of constrained bodies are
    constrained too.
    """
    weight = conv.weight.view(-1, 4, conv.in_channels, 9).permute(0, 2, 1, 3).reshape(-1, 36)
    soft = (weight @ _SOFT.to(weight)).view(-1, conv.in_channels, 4, 9).permute(0, 2, 1, 3)
    conv.weight.copy_(soft.reshape(conv.weight.shape))
    if conv.bias is not None:
        biases = conv.bias.view(-1, 4)
        biases.copy_(biases.mean(dim=1, keepdim=True).expand_as(biases))


def _soft_projector() -> Tensor:
    """(36, 36) orthogonal projector onto the blurred kernels, as four phases of 3x3 taps.

    Tap t of phase d reaches the pixel 2 * (2 - t) + d of the six: the coarse pixel t - 1 steps away lies on its other side.
    """
    blurred = torch.zeros(6, 4, dtype=torch.float64)
    for place in range(4):
        blurred[place : place + 3, place] = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    rows = torch.tensor([[2 * (2 - tap) + phase for tap in range(3)] for phase in range(2)])  # (phase, tap)
    along = blurred[rows]  # (2, 3, 4)
    both = torch.einsum("pam,qbn->pqabmn", along, along).reshape(36, 16)
    basis = torch.linalg.qr(both)[0]
    projector: Tensor = basis @ basis.T
    return projector


_SOFT: Final = _soft_projector()


def _pixels(pictures: Tensor) -> list[Work]:
    return [(p.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy() for p in pictures]


MODALITIES: Final = (StyleModality("style-kiosk", 32), StyleModality("style-studio", 64, margin=_STUDIO_MARGIN))
