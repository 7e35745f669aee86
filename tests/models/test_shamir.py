"""A threshold of shares gives the secret back, and one share fewer fits every secret there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import shamir
from models.shamir import COEFFICIENT_BYTES, PRIME, SHARE_BYTES, coefficients, join, share_from_bytes, share_to_bytes, split

secrets = st.binary(min_size=32, max_size=32)
elements = st.integers(0, PRIME - 1)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, list[int], tuple[int, ...]]:
    """A secret, a polynomial's coefficients above it, and the holders."""
    holders = draw(st.lists(st.integers(1, 1000), unique=True, min_size=2, max_size=12))
    above = draw(st.lists(elements, min_size=1, max_size=len(holders) - 1))
    return draw(secrets), above, tuple(holders)


def is_prime(number: int) -> bool:
    """A second opinion on the field: Miller and Rabin's test with forty fixed bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def coefficients_through(points: dict[int, int]) -> list[int]:
    """The slow obvious interpolation: the coefficients, from the constant up, of the one polynomial through the points."""
    total = [0] * len(points)
    for x, y in points.items():
        basis, scale = [1], y
        for other in points:
            if other != x:
                basis = [(low - other * high) % PRIME for low, high in zip([0, *basis], [*basis, 0], strict=True)]
                scale = scale * pow(x - other, -1, PRIME) % PRIME
        total = [(sum_ + scale * term) % PRIME for sum_, term in zip(total, basis, strict=True)]
    return total


def test_the_field_is_the_smallest_prime_that_holds_every_secret() -> None:
    assert [above for above in range(298) if is_prime(2**256 + above)] == [297]
    assert PRIME == 2**256 + 297


@given(sharings(), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(
    sharing: tuple[bytes, list[int], tuple[int, ...]], data: st.DataObject
) -> None:
    secret, above, holders = sharing
    shares = split(secret, above, holders)

    some = tuple(data.draw(st.permutations(holders))[: len(above) + 1])

    assert join(some, shares) == secret
    assert join(holders, shares) == secret


@given(sharings(), secrets)
def test_one_share_fewer_fits_every_other_secret(sharing: tuple[bytes, list[int], tuple[int, ...]], other: bytes) -> None:
    """For any other secret there is one choice of coefficients that deals the same shares to those who are one too few."""
    secret, above, holders = sharing
    too_few = holders[: len(above)]
    known = split(secret, above, too_few)

    constant, *instead = coefficients_through({0: int.from_bytes(other, "big"), **known})

    assert constant == int.from_bytes(other, "big")
    assert split(other, instead, too_few) == known


@given(sharings())
def test_the_polynomial_is_the_one_that_was_drawn(sharing: tuple[bytes, list[int], tuple[int, ...]]) -> None:
    secret, above, holders = sharing

    assert coefficients_through(split(secret, above, holders[: len(above) + 1])) == [int.from_bytes(secret, "big"), *above]


@given(st.binary(min_size=32, max_size=32), st.integers(1, 5))
def test_a_wrong_share_gives_another_secret(secret: bytes, wrong: int) -> None:
    shares = split(secret, [11, 12, 13, 14], range(1, 6))
    shares[wrong] = (shares[wrong] + 1) % PRIME

    assert join((1, 2, 3, 4, 5), shares) != secret


def test_too_few_shares_give_another_secret() -> None:
    shares = split(bytes(32), [5, 7, 9], range(1, 6))

    assert join((1, 2, 3), shares) != bytes(32)
    assert join((1, 2, 3, 4), shares) == bytes(32)


def test_what_is_no_secret_of_32_bytes_is_none() -> None:
    assert join((1, 2), {1: PRIME - 1, 2: PRIME - 1}) is None


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, (PRIME % 2**256).to_bytes(32, "big")])
def test_the_ends_of_the_range_come_back(secret: bytes) -> None:
    assert join((3, 1, 1000), split(secret, [PRIME - 1, 1], (1, 3, 1000))) == secret


@given(elements)
def test_a_share_goes_through_bytes_unchanged(share: int) -> None:
    assert share_from_bytes(share_to_bytes(share)) == share


@pytest.mark.parametrize("raw", [b"", bytes(32), bytes(34), PRIME.to_bytes(SHARE_BYTES, "big"), b"\xff" * SHARE_BYTES])
def test_what_is_no_share_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a share"):
        share_from_bytes(raw)


def test_coefficients_are_the_stream_reduced() -> None:
    first, second = PRIME - 1, PRIME + 5
    stream = first.to_bytes(COEFFICIENT_BYTES, "big") + second.to_bytes(COEFFICIENT_BYTES, "big")

    assert coefficients(stream) == (first, 5)
    assert coefficients(b"") == ()


def test_a_coefficient_is_uniform_to_within_two_to_the_minus_127() -> None:
    """The values that come up once more than others are at most PRIME of 2**384."""
    assert PRIME / 2 ** (8 * COEFFICIENT_BYTES) < 2**-127


@pytest.mark.parametrize("size", [1, COEFFICIENT_BYTES - 1, COEFFICIENT_BYTES + 1])
def test_a_stream_that_ends_within_a_coefficient_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 48"):
        coefficients(bytes(size))


@pytest.mark.parametrize("size", [31, 33])
def test_a_secret_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        split(bytes(size), [1], (1, 2))


@pytest.mark.parametrize("index", [0, -1, PRIME])
def test_nobody_holds_the_secret_itself(index: int) -> None:
    with pytest.raises(ValueError, match="no holder"):
        split(bytes(32), [1], (1, index))
    with pytest.raises(ValueError, match="no holder"):
        join((1, index), {1: 1, index: 1})


def test_a_holder_counts_once() -> None:
    with pytest.raises(ValueError, match="counts once"):
        join((1, 2, 2), {1: 1, 2: 1})


def test_the_work_that_depends_on_holders_alone_is_done_once() -> None:
    shamir._weights.cache_clear()

    for secret in (b"a" * 32, b"b" * 32, b"c" * 32):
        assert join((1, 2, 3), split(secret, [1, 2], (1, 2, 3))) == secret

    assert shamir._weights.cache_info().misses == 1
