"""An open round's update as few bytes: the numbers that moved furthest, in eight bits each, and where they stand.

Of the whole update, and not of each tensor, the largest numbers are kept (Aji and Heafield 2017, arXiv 1704.05021): a tensor
that hardly moved has little to say, and what is left out is not lost, since the node adds it to its next update (error
feedback, Karimireddy et al. 2019, arXiv 1901.09847). Numbers are rounded at random to multiples of a scale of their output
channel, so that the mean of what is decoded is what was meant (QSGD, Alistarh et al. 2017, arXiv 1610.02132).

    4 bytes    "SFC1"
    4 bytes    how many numbers, unsigned
    4 bytes    how many bytes of gaps, unsigned
    gaps       for each number, how many positions lie between it and the one before: a byte; 255 says "and more follows"
    numbers    a signed byte each, never 0
    scales     a float32 for each channel that has numbers, in order: its largest number is 127 or -127 of it

All little-endian. There is one way to write an update down and no other: whatever is not in that form is refused, so that two
different payloads never mean the same. What reading costs is bounded by the layout and by nothing a payload says.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from models.update import Flat, Layout

_MAGIC: Final = b"SFC1"
_HEAD: Final = struct.Struct("<4sII")
_MORE: Final = 255
_LEVELS: Final = 127
_TINY: Final = float(np.finfo(np.float32).tiny)
_MARGIN: Final = 1 - 1e-6
"""Room for what float32 rounds, so that what is decoded is never longer than the bound."""


class CompressionError(ValueError):
    """Bytes are not a compressed update of that layout. The text is fixed and safe to send back."""


def compress(delta: Flat, layout: Layout, keep: float, bound: float, rng: np.random.Generator) -> bytes:
    """An update as bytes.

    Args:
        delta: (size,) finite.
        layout: names and shapes of its tensors.
        keep: share of the numbers that are kept, above 0 and up to 1.
        bound: what is decoded has an L2 norm of at most this; all scales are made smaller together if need be.
        rng: for rounding; the same generator gives the same bytes.

    Raises:
        ValueError: another length, numbers that are not finite, or a share or bound that is none.
    """
    if not 0 < keep <= 1 or not bound > 0:
        raise ValueError(f"cannot keep a share of {keep} within {bound}")
    if delta.shape != (layout.size,) or not np.isfinite(delta).all():
        raise ValueError("the update has another length or numbers that are not finite")
    at = _largest(delta, _kept(layout, keep))
    at, channels, largest = _with_scales(delta, at, _channels(layout))
    scales = largest.astype(np.float64) / _LEVELS
    exact = delta[at].astype(np.float64) / scales[channels]
    levels = np.floor(exact + rng.random(at.size))
    is_largest = np.abs(delta[at]) == largest[channels]
    levels[is_largest] = np.copysign(_LEVELS, exact[is_largest])  # which is what it is, but for the last bit
    stays = levels != 0
    at, channels, levels = at[stays], channels[stays], np.clip(levels[stays], -_LEVELS, _LEVELS)
    length = float(np.sqrt(np.sum(np.square(levels * scales[channels]))))
    shrunk = (scales * min(1.0, bound * _MARGIN / length if length else 1.0)).astype(np.float32)
    said = shrunk[channels] >= _TINY  # what is too small for float32 beside the rest is left out
    return _written(at[said], levels[said].astype(np.int8), shrunk[shrunk >= _TINY])


def decompress(payload: bytes, layout: Layout) -> Flat:
    """The update that bytes say.

    Returns:
        (size,) float32, finite.

    Raises:
        CompressionError: they are not in the one form that ``compress`` writes for that layout.
    """
    if len(payload) < _HEAD.size:
        raise CompressionError("the payload is too short")
    magic, count, gap_bytes = _HEAD.unpack_from(payload)
    if magic != _MAGIC or count > layout.size or gap_bytes > _gaps_max(layout, count):
        raise CompressionError("the payload has another head")
    if len(payload) < _HEAD.size + gap_bytes + count:
        raise CompressionError("the payload is too short")
    raw = np.frombuffer(payload, np.uint8, offset=_HEAD.size)
    at = _positions(raw[:gap_bytes], count, layout.size)
    levels = raw[gap_bytes : gap_bytes + count].view(np.int8)
    used, channels = np.unique(_channels(layout)[at], return_inverse=True)
    if raw.size != gap_bytes + count + 4 * used.size:
        raise CompressionError("the payload has another length")
    scales = np.frombuffer(payload, "<f4", offset=_HEAD.size + gap_bytes + count).astype(np.float32)
    _refuse_odd(levels, channels, scales)
    flat = np.zeros(layout.size, np.float32)
    with np.errstate(over="ignore"):  # what becomes of it is refused below
        flat[at] = levels.astype(np.float32) * scales[channels]
    if not np.isfinite(flat).all():
        raise CompressionError("the payload says numbers that are not finite")
    return flat


def max_bytes(layout: Layout, keep: float) -> int:
    """The longest payload ``compress`` makes."""
    count = _kept(layout, keep)
    return _HEAD.size + _gaps_max(layout, count) + count + 4 * min(count, int(_channels(layout)[-1]) + 1)


def _kept(layout: Layout, keep: float) -> int:
    return max(1, min(layout.size, round(keep * layout.size)))


def _gaps_max(layout: Layout, count: int) -> int:
    """Bytes of gaps: one a number, and another for each 255 positions that are passed over."""
    return count + layout.size // _MORE


def _channels(layout: Layout) -> npt.NDArray[np.int64]:
    """(size,) which channel each number is of: the first axis of its tensor; a vector is one channel."""
    lengths: list[int] = []
    for _, shape in layout.tensors:
        outputs = shape[0] if len(shape) > 1 else 1
        lengths += [math.prod(shape) // outputs] * outputs
    return np.repeat(np.arange(len(lengths)), lengths)


def _largest(delta: Flat, count: int) -> npt.NDArray[np.int64]:
    """Positions of the largest numbers in order, of equal ones those that stand first; none of them 0."""
    sizes = np.abs(delta)
    order = np.argsort(-sizes, kind="stable")[:count]
    return np.sort(order[sizes[order] > 0])


def _with_scales(
    delta: Flat, at: npt.NDArray[np.int64], channel_of: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Flat]:
    """Positions, the row of each one's channel among those that have numbers, and the largest magnitude of each row.

    A channel whose scale float32 cannot say is left out.
    """
    largest = np.zeros(int(channel_of[-1]) + 1, np.float32)
    np.maximum.at(largest, channel_of[at], np.abs(delta[at]))
    at = at[largest[channel_of[at]] / _LEVELS >= 2 * _TINY]
    used, rows = np.unique(channel_of[at], return_inverse=True)
    return at, rows, largest[used]


def _written(at: npt.NDArray[np.int64], levels: npt.NDArray[np.int8], scales: Flat) -> bytes:
    gaps = np.diff(at, prepend=-1) - 1
    more = gaps // _MORE
    stream = np.full(int(at.size + more.sum()), _MORE, np.uint8)
    stream[np.cumsum(more + 1) - 1] = gaps % _MORE
    head = _HEAD.pack(_MAGIC, at.size, stream.size)
    return head + stream.tobytes() + levels.tobytes() + scales.astype("<f4").tobytes()


def _positions(stream: npt.NDArray[np.uint8], count: int, size: int) -> npt.NDArray[np.int64]:
    ends = np.flatnonzero(stream != _MORE)
    if ends.size != count or (stream.size and stream[-1] == _MORE):
        raise CompressionError("the payload has other gaps than numbers")
    if not count:
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    at = np.cumsum(np.add.reduceat(stream.astype(np.int64), starts) + 1) - 1
    if at[-1] >= size:
        raise CompressionError("the payload has numbers beyond the end")
    return np.asarray(at, np.int64)


def _refuse_odd(levels: npt.NDArray[np.int8], channels: npt.NDArray[np.int64], scales: Flat) -> None:
    """Refuse what could be written in another way, and scales that are none."""
    if not (np.isfinite(scales).all() and (scales >= _TINY).all()):
        raise CompressionError("the payload has scales that are none")
    most = np.zeros(scales.size, np.int16)
    np.maximum.at(most, channels, np.abs(levels.astype(np.int16)))
    if (levels == 0).any() or (most != _LEVELS).any():
        raise CompressionError("the payload is not in the one form of an update")
