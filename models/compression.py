"""An open round's update as few bytes: the numbers that moved furthest, in eight bits each, and where they stand.

Of the whole update, and not of each tensor, the largest numbers are kept (Aji and Heafield 2017, arXiv 1704.05021): a tensor
that hardly moved has little to say, and what is left out is not lost, since the node adds it to its next update (error
feedback, Karimireddy et al. 2019, arXiv 1901.09847). Numbers are rounded at random to multiples of a scale of their output
channel, so that the mean of what is decoded is what was meant (QSGD, Alistarh et al. 2017, arXiv 1610.02132), but for what the
bound takes off.

    4 bytes    "SFC2"
    4 bytes    how many numbers, unsigned
    4 bytes    how many bytes of gaps, unsigned
    gaps       for each number, how many positions lie between it and the one before: a byte; 255 says "and more follows"
    numbers    a signed byte each, never 0
    largest    a float32 for each channel that has numbers, in order: what 127 stands for; one of its numbers is 127 or -127

All little-endian. There is one way to write an update down and no other: whatever is not in that form is refused, so that two
different payloads never mean the same. Hence a channel's largest number, which comes out as it is, and not a 127th of it: of
two neighbouring scales 127 times either can be one float32. What reading costs is bounded by the layout and by nothing a
payload says.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from models.update import Flat, Layout

_MAGIC: Final = b"SFC2"
_HEAD: Final = struct.Struct("<4sII")
_MORE: Final = 255
_LEVELS: Final = 127
_LEAST: Final = np.float32(_LEVELS * np.finfo(np.float32).tiny)
"""Below this a channel's largest number has multiples that float32 cannot tell apart; such a channel is left out."""
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
        bound: what is decoded has an L2 norm of at most this; all channels are made smaller together if need be.
        rng: for rounding; the same generator gives the same bytes.

    Raises:
        ValueError: another length, numbers that are not finite, or a share or bound that is none.
    """
    if not 0 < keep <= 1 or not bound > 0:
        raise ValueError(f"cannot keep a share of {keep} within {bound}")
    if delta.shape != (layout.size,) or not np.isfinite(delta).all():
        raise ValueError("the update has another length or numbers that are not finite")
    at = _largest(delta, _kept(layout, keep))
    channels, largest = _by_channel(np.abs(delta[at]), _channels(layout)[at])
    scales = largest.astype(np.float64) / _LEVELS
    exact = delta[at].astype(np.float64) / scales[channels]
    levels = np.floor(exact + rng.random(at.size))
    is_largest = np.abs(delta[at]) == largest[channels]
    levels[is_largest] = np.copysign(_LEVELS, exact[is_largest])  # which is what it is, but for the last bit
    length = float(np.sqrt(np.sum(np.square(levels * scales[channels]))))
    factor = min(1.0, bound * _MARGIN / length if length else 1.0)
    shrunk = (largest.astype(np.float64) * factor).astype(np.float32)
    says = (levels != 0) & (shrunk >= _LEAST)[channels]
    return _written(at[says], levels[says].astype(np.int8), shrunk[shrunk >= _LEAST])


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
    largest = np.frombuffer(payload, "<f4", offset=_HEAD.size + gap_bytes + count).astype(np.float32)
    _refuse_odd(levels, channels, largest)
    flat = np.zeros(layout.size, np.float32)
    flat[at] = levels * (largest.astype(np.float64) / _LEVELS)[channels]  # none is above its channel's largest, which is finite
    return flat


def max_bytes(layout: Layout, keep: float) -> int:
    """The longest payload ``compress`` makes."""
    count = _kept(layout, keep)
    return _HEAD.size + _gaps_max(layout, count) + count + 4 * min(count, len(_lengths(layout)))


def _kept(layout: Layout, keep: float) -> int:
    return max(1, min(layout.size, round(keep * layout.size)))


def _gaps_max(layout: Layout, count: int) -> int:
    """Bytes of gaps: one a number, and another for each 255 positions that are passed over."""
    return count + layout.size // _MORE


def _lengths(layout: Layout) -> list[int]:
    """How many numbers each channel has: the first axis of a tensor are its channels; a vector is one channel."""
    lengths: list[int] = []
    for _, shape in layout.tensors:
        lengths += [math.prod(shape[1:])] * shape[0] if len(shape) > 1 else [math.prod(shape)]
    return lengths


def _channels(layout: Layout) -> npt.NDArray[np.int64]:
    """(size,) which channel each number is of."""
    lengths = np.array(_lengths(layout), np.int64)
    return np.repeat(np.arange(lengths.size), lengths)


def _largest(delta: Flat, count: int) -> npt.NDArray[np.int64]:
    """Positions of the largest numbers in order, of equal ones those that stand first; none of them 0."""
    sizes = np.abs(delta)
    order = np.argsort(-sizes, kind="stable")[:count]
    return np.sort(order[sizes[order] > 0])


def _by_channel(sizes: Flat, channel_of: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Flat]:
    """The row of each number's channel among those that have numbers, and the largest magnitude of each row."""
    used, rows = np.unique(channel_of, return_inverse=True)
    largest = np.zeros(used.size, np.float32)
    np.maximum.at(largest, rows, sizes)
    return rows, largest


def _written(at: npt.NDArray[np.int64], levels: npt.NDArray[np.int8], largest: Flat) -> bytes:
    gaps = np.diff(at, prepend=-1) - 1
    more = gaps // _MORE
    stream = np.full(int(at.size + more.sum()), _MORE, np.uint8)
    stream[np.cumsum(more + 1) - 1] = gaps % _MORE
    head = _HEAD.pack(_MAGIC, at.size, stream.size)
    return head + stream.tobytes() + levels.tobytes() + largest.astype("<f4").tobytes()


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


def _refuse_odd(levels: npt.NDArray[np.int8], channels: npt.NDArray[np.int64], largest: Flat) -> None:
    """Refuse what could be written in another way, and largest numbers that are none."""
    if not (np.isfinite(largest).all() and (largest >= _LEAST).all()):
        raise CompressionError("the payload has scales that are none")
    most = np.zeros(largest.size, np.int16)
    np.maximum.at(most, channels, np.abs(levels.astype(np.int16)))
    if (levels == 0).any() or (most != _LEVELS).any():
        raise CompressionError("the payload is not in the one form of an update")
