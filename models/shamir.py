"""A 32-byte secret → shares, of which a threshold gives it back and any fewer say nothing (Shamir 1979, CACM 22(11)).

A polynomial over a prime field with the secret as its value at 0; a share is its value at a holder's index 1, 2, ... Fewer
shares than the threshold fit every secret there is equally well. Whoever splits brings the coefficients: they must be uniform
and known to nobody else, and where they come from is not known here. Python's long integers do not take constant time; who
can time this machine's arithmetic is not defended against.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33

PRIME: Final = 2**256 + 297
"""The smallest prime over 2**256: every 32 bytes are an element, so no secret needs to be drawn twice or shortened."""

COEFFICIENT_BYTES: Final = 48
"""Of a uniform stream for one coefficient: reduced modulo ``PRIME``, 384 bits are uniform to within 2**-127."""


def coefficients(stream: bytes) -> tuple[int, ...]:
    """Uniform bytes → a polynomial's coefficients of x, x², ...; ``COEFFICIENT_BYTES`` for each.

    Zero is as likely as any other, for the last one too: to forbid it would let fewer shares say something.

    Raises:
        ValueError: not a whole number of coefficients.
    """
    if len(stream) % COEFFICIENT_BYTES:
        raise ValueError(f"a stream for coefficients is a multiple of {COEFFICIENT_BYTES} bytes, not {len(stream)}")
    starts = range(0, len(stream), COEFFICIENT_BYTES)
    return tuple(int.from_bytes(stream[start : start + COEFFICIENT_BYTES], "big") % PRIME for start in starts)


def split(secret: bytes, above: Sequence[int], indices: Iterable[int]) -> dict[int, int]:
    """A secret → its share for each index; ``len(above) + 1`` of them give it back.

    Args:
        secret: 32 bytes.
        above: the coefficients of x, x², ... in [0, ``PRIME``), see ``coefficients``.
        indices: of the holders, in 1..``PRIME`` - 1; at 0 lies the secret.

    Raises:
        ValueError: another length, or an index that is no holder's.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret is {SECRET_BYTES} bytes, not {len(secret)}")
    constant = int.from_bytes(secret, "big")
    return {index: _value(constant, above, _holder(index)) for index in indices}


def join(holders: tuple[int, ...], shares: Mapping[int, int]) -> bytes | None:
    """Shares → the secret; None if they are of no 32-byte secret. Whether it is *the* secret, only who knows it can tell.

    Args:
        holders: indices of those whose shares are used: at least as many as the threshold. For many secrets in a row that the
            same holders share, the work that depends on holders alone is done once.
        shares: index → share, of these holders or more.

    Raises:
        ValueError: an index twice, or one that is no holder's.
    """
    value = sum(weight * shares[index] for index, weight in zip(holders, _weights(holders), strict=True)) % PRIME
    return value.to_bytes(SECRET_BYTES, "big") if value < 2 ** (8 * SECRET_BYTES) else None


def share_to_bytes(share: int) -> bytes:
    """33 bytes, since a share can be a little over 2**256."""
    return share.to_bytes(SHARE_BYTES, "big")


def share_from_bytes(raw: bytes) -> int:
    """The share that 33 bytes are.

    Raises:
        ValueError: another length, or a number that is no element of the field.
    """
    share = int.from_bytes(raw, "big")
    if len(raw) != SHARE_BYTES or share >= PRIME:
        raise ValueError("not a share")
    return share


def _value(constant: int, above: Sequence[int], at: int) -> int:
    value = 0
    for coefficient in reversed(above):  # Horner
        value = (value + coefficient) * at % PRIME
    return (value + constant) % PRIME


@lru_cache(maxsize=1)
def _weights(holders: tuple[int, ...]) -> tuple[int, ...]:
    """What each holder's share counts for at 0: Lagrange's basis. Of indices alone, so nothing secret is remembered."""
    if len(set(holders)) != len(holders):
        raise ValueError("a holder counts once")
    return tuple(_weight(_holder(index), holders) for index in holders)


def _weight(index: int, holders: tuple[int, ...]) -> int:
    above, below = 1, 1
    for other in holders:
        if other != index:
            above = above * other % PRIME
            below = below * (other - index) % PRIME
    return above * pow(below, -1, PRIME) % PRIME


def _holder(index: int) -> int:
    if not 0 < index < PRIME:
        raise ValueError(f"{index} is no holder's index")
    return index
