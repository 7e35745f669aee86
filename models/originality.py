"""Whether pictures are near copies of works: hashes, patch correlation and a nearest-neighbour ratio, in numpy.

A style shall look like its artist and be no work of his. Three questions are asked of every picture, at the low resolution
at which composition lives and brushwork does not:

* *hashes*: do the signs of its broad gradients (dHash) and of its lowest frequencies (pHash) agree with those of a work, of a
  crop of it, or of either in the mirror? Blind to colour, contrast, stretching and recompression.
* *patches*: does each part of it lie somewhere in one and the same work, at some scale, in the mirror or not (zero-mean
  normalised correlation)? Blind to where a crop was taken.
* *ratio*: is it nearer to the works learned from than to works that were not? About 1 is no memory of either.

All three leave out what a picture has from the photo it was painted from: somebody may photograph a work, or a place that was
painted. What is compared is composition alone, for palette and strokes are what a style is there to take.

Works come as pictures with a name, one at a time, and nothing of them is kept but the figures. How far copies and others are
apart was measured on 45 works of six artists, 6 drawn ones, and 39 photos painted in six styles; the table stands in
``tests/models/test_originality.py``, which repeats it on the works and photos of this repository.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from models.contract import Work

Plane: TypeAlias = npt.NDArray[np.float32]
"""(H, W) luminance, 0 to 255."""
Bits: TypeAlias = npt.NDArray[np.bool_]
Measure = Literal["hashes", "patches", "ratio"]
MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)

_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, as in measures.py
_SIDE: Final = 128  # geometric mean side of the luminance all else is made from

HASH_BITS: Final = 128  # 64 of dHash and 64 of pHash
_CROPS: Final = ((0.8, 2), (0.6, 3))
"""Parts of a work that are hashed by themselves: their share of each side, and at how many places along it."""

_PICTURE_SIDE: Final = 32  # geometric mean side of a picture when its patches are looked for
_PATCH: Final = 16
_PLACES: Final = 3  # along each side
_ZOOMS: Final = (1.0, 1.15, 1.33, 1.53, 1.76, 2.0)
"""How much larger a work is shown than the picture: a copy may be a crop of down to half of each side."""
_DETAIL: Final = 3  # radius of the mean that is taken off: light above and dark below is the composition of half the world
_FLAT: Final = 2.0  # grey levels of detail below which a patch is flat: a sky looks like any sky
_PATCHES_LEAST: Final = 4  # that are not flat, or nothing can be said

_THUMBNAIL: Final = 16
_NEAREST: Final = 0.05  # below this, distances of thumbnails say nothing
_SAME: Final = 0.5  # and below this they are of the same work: different ones were never nearer than 0.91


@dataclass(frozen=True, slots=True)
class Likeness:
    """By one measure, the work that comes nearest to any of the pictures, and how near."""

    work: str
    figure: float


@dataclass(frozen=True, slots=True)
class Originality:
    """How near some pictures come to some works.

    Attributes:
        hashes: bits of 128 in which the hashes differ.
        patches: correlation that half of a picture's patches reach, -1 to 1.
        ratio: of distances to works learned from and works not learned from, in units of the same ratio for the photos.
    """

    hashes: Likeness
    patches: Likeness
    ratio: Likeness

    @property
    def spoke(self) -> tuple[Measure, ...]:
        """The measures by which they are near copies. Written so that NaN speaks."""
        clean = {
            "hashes": self.hashes.figure > HASHES_COPY,
            "patches": self.patches.figure < PATCHES_COPY,
            "ratio": self.ratio.figure > RATIO_COPY,
        }
        return tuple(measure for measure in MEASURES if not clean[measure])

    @property
    def is_copy(self) -> bool:
        """Whether a measure spoke."""
        return bool(self.spoke)

    @property
    def nearest(self) -> str:
        """The work to name: by the first measure that spoke, else by the one that comes nearest to speaking."""
        closeness = {
            "hashes": HASHES_COPY / max(self.hashes.figure, 1.0),
            "patches": self.patches.figure / PATCHES_COPY,
            "ratio": RATIO_COPY / max(self.ratio.figure, _NEAREST),
        }
        measure = self.spoke[0] if self.spoke else max(MEASURES, key=lambda m: closeness[m])
        likeness: Likeness = getattr(self, measure)
        return likeness.work


# Whatever is no copy kept at 33 bits or more, 0.70 or less and 0.65 or more (photos painted in a style at 128, 0 and 0.90), and
# every kind of copy was caught by at least one measure: pytest tests/models/test_originality.py
HASHES_COPY: Final = 26
PATCHES_COPY: Final = 0.74
RATIO_COPY: Final = 0.60
# What of a likeness a photo accounts for: a picture must take after the work by so much more than after its photo.
_HASHES_MARGIN: Final = 16
_PATCHES_MARGIN: Final = 0.15


def examine(
    pictures: Sequence[Work], photos: Sequence[Work], works: Iterable[tuple[str, Work]], held_out: Iterable[Work] = ()
) -> Originality:
    """Compare every picture with every work.

    The ratio is d(picture, works) / d(picture, held out), each the distance to the nearest, divided by the same of the
    picture's photo. The photo was painted by nobody, so its own ratio says how much nearer the nearest of many works is than
    the nearest of few, and of this artist's than of others': only what a picture goes beyond that is memory. So the works
    held out need be neither as many as the others nor by the same artist. Without any, the photo alone is the reference.

    Args:
        pictures: that were generated, (H, W, 3) uint8.
        photos: what each was painted from, in the same order.
        works: name and picture of each work learned from, at least one.
        held_out: works that were not learned from; one that is the same as a work that was is left out.

    Raises:
        ValueError: no picture, no work, or another number of photos.
    """
    seen = [_Seen.of(picture, photo) for picture, photo in zip(pictures, photos, strict=True)]
    found = [(name, _compared(seen, work)) for name, work in works] if seen else []
    if not found:
        raise ValueError("originality needs at least one picture and one work")
    learned = np.stack([compared.thumbnail for _, compared in found])
    away = [one for one in map(_thumbnail, map(luminance, held_out)) if _distance(one, learned) > _SAME]
    # (works, pictures), and in units of the photos' own distance to the nearest work
    ratios = np.array([[_distance(one.thumbnail, work[None]) for one in seen] for work in learned])
    ratios /= [_distance(one.photo_thumbnail, learned) for one in seen]
    if away:
        ratios *= [_distance(one.photo_thumbnail, np.stack(away)) / _distance(one.thumbnail, np.stack(away)) for one in seen]
    return Originality(
        hashes=min((Likeness(name, compared.hashes) for name, compared in found), key=lambda one: one.figure),
        patches=max((Likeness(name, compared.patches) for name, compared in found), key=lambda one: one.figure),
        ratio=_smallest([name for name, _ in found], ratios),
    )


def _smallest(names: Sequence[str], ratios: npt.NDArray[np.float64]) -> Likeness:
    """The work of the smallest of (works, pictures) ratios."""
    work, picture = np.unravel_index(int(np.argmin(ratios)), ratios.shape)
    return Likeness(names[int(work)], float(ratios[work, picture]))


# --- One work against every picture ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture as the three measures see it, and what it has from its photo.

    Attributes:
        hashes: (views, 128): the whole and its crops, then the same in the mirror; the two wholes first.
        from_photo: bits in which picture and photo differ.
        patches: (patches, _PATCH ** 2): those that are not flat, of mean 0 and length 1, then the same in the mirror.
        own: (patches,) correlation of each with the photo at the same place, twice likewise.
        thumbnail, photo_thumbnail: see ``_thumbnail``.
    """

    hashes: Bits
    from_photo: int
    patches: Plane
    own: Plane
    thumbnail: Plane
    photo_thumbnail: Plane

    @classmethod
    def of(cls, picture: Work, photo: Work) -> _Seen:
        drawn, taken = luminance(picture), luminance(photo)
        mirrored = np.ascontiguousarray(drawn[:, ::-1])
        hashes = np.stack([hash_of(drawn), hash_of(mirrored), *(hash_of(v) for g in (drawn, mirrored) for v in _crops(g))])
        detail = _detail(_resized(drawn, _PICTURE_SIDE))
        upright = _normed(_patches(detail))
        source = _normed(_patches(_detail(_shrunk(taken, *detail.shape))))
        turned = upright.reshape(-1, _PATCH, _PATCH)[:, :, ::-1].reshape(upright.shape)
        kept = upright.any(axis=1)
        return cls(
            hashes=hashes,
            from_photo=int(hamming(hashes[:1], hash_of(taken)[None]).min()),
            patches=np.concatenate([upright[kept], turned[kept]]),
            own=np.tile((upright * source).sum(axis=1)[kept], 2),
            thumbnail=_thumbnail(drawn),
            photo_thumbnail=_thumbnail(taken),
        )


@dataclass(frozen=True, slots=True)
class _Compared:
    """A work against all pictures: the least of the hashes' distances, the highest patch correlation; and its thumbnail."""

    hashes: float
    patches: float
    thumbnail: Plane


def _compared(seen: Sequence[_Seen], work: Work) -> _Compared:
    plane = luminance(work)
    hashes = np.stack([hash_of(plane), *(hash_of(view) for view in _crops(plane))])
    return _Compared(
        hashes=min(_hash_distance(one, hashes) for one in seen),
        patches=float(_patch_correlations(seen, plane).max(initial=-1.0)),
        thumbnail=_thumbnail(plane),
    )


def _hash_distance(seen: _Seen, hashes: Bits) -> int:
    """Between whole and whole, or whole and crop, either way; all bits if the photo accounts for it."""
    found = int(min(hamming(seen.hashes[:2], hashes).min(), hamming(seen.hashes, hashes[:1]).min()))
    return found if found + _HASHES_MARGIN < seen.from_photo else HASH_BITS


def _patch_correlations(seen: Sequence[_Seen], plane: Plane) -> Plane:
    """(pictures,) the correlation that half of a picture's patches reach somewhere in the work, at one zoom, in one sense."""
    stacked = np.concatenate([one.patches for one in seen])
    at_zooms = np.stack([correlations(stacked, _detail(_resized(plane, _PICTURE_SIDE * zoom))) for zoom in _ZOOMS])
    ends = np.cumsum([len(one.patches) for one in seen])[:-1]
    found = [-1.0]
    for one, mine in zip(seen, np.split(at_zooms, ends, axis=1), strict=True):
        if len(one.own) >= 2 * _PATCHES_LEAST:
            beyond = np.where(mine > one.own + _PATCHES_MARGIN, mine, 0.0)
            found.append(float(np.median(beyond.reshape(len(_ZOOMS) * 2, -1), axis=1).max()))
    return np.array(found, np.float32)


# --- Hashes ------------------------------------------------------------------------------------------------------------


def hash_of(plane: Plane) -> Bits:
    """The dHash and pHash of a (H, W) plane: 128 bits.

    dHash: which of two neighbours is lighter, 8 rows of 9 (Krawetz 2013, "Kind of like that"). pHash: which of the 64 lowest
    frequencies of the 32 x 32 cosine transform, those of no change left out, lie above their median (Zauner 2010).
    """
    small = _shrunk(plane, 8, 9)
    waves = _COSINES @ _shrunk(plane, 32, 32) @ _COSINES.T
    return np.concatenate([(small[:, 1:] > small[:, :-1]).ravel(), (waves > np.median(waves)).ravel()])


def hamming(a: Bits, b: Bits) -> npt.NDArray[np.int64]:
    """(A, N), (B, N) → (A, B) numbers of bits that differ."""
    return np.asarray((a[:, None] != b[None]).sum(axis=2), np.int64)


def _cosines(frequencies: int, length: int) -> Plane:
    """The first rows but that of frequency 0 of the cosine transform (DCT-II), each of length 1."""
    rows = np.arange(1, frequencies + 1)[:, None] * (2 * np.arange(length) + 1) * np.pi / (2 * length)
    return np.asarray(np.sqrt(2 / length) * np.cos(rows), np.float32)


_COSINES: Final = _cosines(8, 32)


def _crops(plane: Plane) -> Iterator[Plane]:
    """See ``_CROPS``."""
    for share, places in _CROPS:
        height, width = (max(1, round(side * share)) for side in plane.shape)
        for top in _starts(plane.shape[0], height, places):
            for left in _starts(plane.shape[1], width, places):
                yield plane[top : top + height, left : left + width]


# --- Patches -----------------------------------------------------------------------------------------------------------


def correlations(patches: Plane, detail: Plane) -> Plane:
    """The highest zero-mean normalised correlation of each patch with any window of a plane; 0 with flat ones.

    Args:
        patches: (N, _PATCH ** 2) of mean 0 and length 1.
        detail: (H, W), each at least _PATCH.

    Returns:
        (N,) in [-1, 1].
    """
    windows = sliding_window_view(detail, (_PATCH, _PATCH)).reshape(-1, _PATCH**2)
    mean = windows.mean(axis=1)
    length = np.sqrt(np.maximum(np.einsum("ij,ij->i", windows, windows) - _PATCH**2 * mean**2, 0.0))
    inverse = np.where(length > _FLAT * _PATCH, 1 / np.maximum(length, _FLAT), 0.0)
    found: Plane = ((patches @ windows.T) * inverse).max(axis=1)  # the patches' own mean is 0: the windows' falls out
    return np.clip(found, -1.0, 1.0)


def _patches(detail: Plane) -> Plane:
    """Patches at even distances over a plane: (places ** 2, _PATCH ** 2)."""
    tops, lefts = (_starts(side, _PATCH, _PLACES) for side in detail.shape)
    return np.stack([detail[y : y + _PATCH, x : x + _PATCH].ravel() for y in tops for x in lefts])


def _normed(patches: Plane) -> Plane:
    """Each row of mean 0 and length 1, or nothing at all where it is flat."""
    centred = patches - patches.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(np.where(length > _FLAT * _PATCH, centred / np.maximum(length, _FLAT), 0.0), np.float32)


def _detail(plane: Plane) -> Plane:
    """What is left when the mean around each pixel is taken off."""
    side = 2 * _DETAIL + 1
    padded = np.pad(plane, _DETAIL, mode="edge")
    rows = sliding_window_view(padded, side, axis=0).mean(axis=2)
    return np.asarray(plane - sliding_window_view(rows, side, axis=1).mean(axis=2), np.float32)


# --- Thumbnails --------------------------------------------------------------------------------------------------------


def _thumbnail(plane: Plane) -> Plane:
    """The composition in 256 numbers, of mean 0 and length 1; all 0 for a flat one."""
    detail = _detail(_shrunk(plane, _THUMBNAIL, _THUMBNAIL))
    thumbnail: Plane = _normed(detail.reshape(1, -1))[0]
    return thumbnail


def _distance(thumbnail: Plane, others: Plane) -> float:
    """Euclidean, to the nearest of (N, 256), in the mirror or not; never quite 0."""
    turned = thumbnail.reshape(_THUMBNAIL, _THUMBNAIL)[:, ::-1].ravel()
    nearest = max(float((others @ one).max()) for one in (thumbnail, turned))
    return max(_NEAREST, float(np.sqrt(max(0.0, 2 - 2 * nearest))))


# --- Sizes -------------------------------------------------------------------------------------------------------------


def luminance(picture: Work) -> Plane:
    """(H, W, 3) uint8 → a plane of the same proportions and 128 pixels as its geometric mean side."""
    height, width, _ = picture.shape
    rows, columns = _sides(height, width, _SIDE, least=1)
    # Sums of a few rows first, in integers: a large work takes a third of the time. What is left over at the end is cut off.
    together = max(1, min(height, round(float(np.sqrt(height * width)) / (2 * _SIDE))))
    kept = height // together * together
    sums = picture[:kept].reshape(kept // together, together, width * 3).sum(axis=1, dtype=np.uint16)
    light = (sums.reshape(-1, 3).astype(np.float32) @ (_LUMA / together)).reshape(len(sums), width)
    return _shrunk(light, rows, columns)


def _resized(plane: Plane, side: float) -> Plane:
    """With that geometric mean side, or larger so that a patch fits in."""
    height, width = plane.shape
    return _shrunk(plane, *_sides(height, width, side, least=_PATCH))


def _sides(height: int, width: int, side: float, least: int) -> tuple[int, int]:
    scale = max(side / float(np.sqrt(height * width)), least / min(height, width))
    return max(least, round(height * scale)), max(least, round(width * scale))


def _shrunk(plane: Plane, height: int, width: int) -> Plane:
    """Means over equal areas; a pixel counts in the measure it lies inside."""
    return np.asarray(_means(height, plane.shape[0]) @ plane @ _means(width, plane.shape[1]).T, np.float32)


@lru_cache(maxsize=512)
def _means(count: int, length: int) -> Plane:
    """(count, length): row i takes the mean over the i-th of ``count`` equal parts of a side."""
    edges = np.linspace(0, length, count + 1)
    pixels = np.arange(length)
    shares = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.maximum(shares, 0) * (count / length), np.float32)


def _starts(side: int, part: int, places: int) -> list[int]:
    """Where parts of a side begin, at even distances from one end to the other."""
    return [(side - part) * place // (places - 1) for place in range(places)]
