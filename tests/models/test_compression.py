"""A compressed update says what was meant, is never longer than the bound, and can be written in one way only."""

import math
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models import registry, state
from models.compression import CompressionError, compress, decompress, max_bytes
from models.privacy import clip, norm
from models.update import Flat, Layout

Doubles = npt.NDArray[np.float64]
Rng = np.random.Generator

MIXED: Final = Layout((("bias", (5,)), ("one", (1, 4)), ("conv", (6, 3, 2, 2)), ("scalar", ()), ("wide", (2, 300))))
TIERS: Final = ("style-kiosk", "style-studio")
TINY: Final = float(np.finfo(np.float32).tiny)
HUGE: Final = float(np.finfo(np.float32).max)
LEAST: Final = 127 * TINY

shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
layouts = st.lists(shapes, min_size=1, max_size=5).map(lambda s: Layout(tuple((f"t{i}", shape) for i, shape in enumerate(s))))
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([HUGE, -HUGE, TINY, 1e-45, 1.0, -1.0])
cases = layouts.flatmap(lambda layout: st.tuples(st.just(layout), hnp.arrays(np.float32, layout.size, elements=numbers)))
shares = st.floats(0, 1, exclude_min=True)
bounds = st.floats(1e-40, 1e40)
seeds = st.integers(0, 2**32 - 1)


class Rolled:
    """Stands in for a generator: every draw is the same number."""

    def __init__(self, drawn: float) -> None:
        self.drawn = drawn

    def random(self, count: int) -> Doubles:
        return np.full(count, self.drawn)


def rng(seed: int = 0) -> Rng:
    return np.random.default_rng(seed)


def through(delta: Flat, layout: Layout, keep: float = 1.0, bound: float = math.inf, seed: int = 0) -> Flat:
    """What arrives."""
    return decompress(compress(delta, layout, keep, bound, rng(seed)), layout)


def exact_norm(delta: Flat) -> float:
    """Squares of float32 are exact in float64, and so is their sum here."""
    return math.sqrt(math.fsum(float(x) ** 2 for x in delta))


def channels(layout: Layout) -> list[slice]:
    """Where each channel lies: a second opinion."""
    found, start = [], 0
    for _, shape in layout.tensors:
        rows, each = (shape[0], math.prod(shape[1:])) if len(shape) >= 2 else (1, math.prod(shape))
        for _ in range(rows):
            found.append(slice(start, start + each))
            start += each
    return found


def steps(delta: Flat, layout: Layout) -> Doubles:
    """(size,) the scale of each number's channel, if its largest number is kept."""
    made = np.zeros(layout.size)
    for channel in channels(layout):
        made[channel] = np.max(np.abs(delta[channel]), initial=0).astype(np.float64) / 127
    return made


def written(at: Sequence[int], levels: Sequence[int], largest: Sequence[float]) -> bytes:
    """The format, written a number at a time: a second opinion, and the pen for what no honest node writes."""
    gaps, last = bytearray(), -1
    for place in at:
        more, rest = divmod(place - last - 1, 255)
        gaps += b"\xff" * more + bytes([rest])
        last = place
    head = b"SFC2" + struct.pack("<II", len(at), len(gaps))
    return head + bytes(gaps) + struct.pack(f"<{len(levels)}b", *levels) + struct.pack(f"<{len(largest)}f", *largest)


def rewritten(flat: Flat, layout: Layout) -> bytes:
    """The one form of what was decoded, from its numbers alone."""
    at, levels, largest = [], [], []
    for channel in channels(layout):
        top = float(np.max(np.abs(flat[channel]), initial=0))
        if top:
            found = [channel.start + i for i, x in enumerate(flat[channel]) if x]
            at += found
            levels += [round(float(flat[i]) / top * 127) for i in found]
            largest.append(top)
    return written(at, levels, largest)


def movement(layout: Layout, kind: str, spread: float, seed: int = 0) -> Flat:
    """Something like an update of norm 1: each tensor moves on a scale of its own, ``exp(spread * normal)``."""
    draws = rng(seed)
    parts = []
    for _, shape in layout.tensors:
        count = math.prod(shape)
        drawn = draws.standard_normal(count) if kind == "normal" else draws.laplace(size=count)
        parts.append(drawn * math.exp(spread * draws.standard_normal()))
    flat = np.concatenate(parts)
    return np.asarray(flat / np.linalg.norm(flat), np.float32)


# --- What arrives is what was meant -----------------------------------------------------------------------------------------


@given(cases, seeds)
def test_a_number_arrives_within_one_step_of_what_it_was(case: tuple[Layout, Flat], seed: int) -> None:
    layout, delta = case

    arrived = through(delta, layout, seed=seed)

    assert arrived.dtype == np.float32
    assert arrived.shape == (layout.size,)
    step = steps(delta, layout)
    said = step >= TINY  # below, a channel is left out
    rounding = np.abs(delta) * 2.0**-23
    assert (np.abs(arrived.astype(np.float64) - delta) <= step + rounding)[said].all()
    assert not arrived[~said].any()


@given(cases, seeds)
def test_a_channels_largest_number_arrives_as_it_is(case: tuple[Layout, Flat], seed: int) -> None:
    layout, delta = case

    arrived = through(delta, layout, seed=seed)

    largest = np.abs(delta) == np.repeat(
        [np.max(np.abs(delta[c]), initial=0) for c in channels(layout)], [c.stop - c.start for c in channels(layout)]
    )
    largest &= np.abs(delta) >= np.float32(LEAST)
    assert np.array_equal(arrived[largest], delta[largest])


@given(cases, shares, seeds)
def test_only_the_largest_numbers_of_the_whole_update_are_sent(case: tuple[Layout, Flat], keep: float, seed: int) -> None:
    layout, delta = case

    sent = set(np.flatnonzero(through(delta, layout, keep, seed=seed)))

    count = max(1, round(keep * layout.size))
    # Of equal numbers those that stand first.
    assert sent <= set(sorted(range(layout.size), key=lambda i: (-abs(delta[i]), i))[:count])


def test_signs_and_places_are_kept() -> None:
    layout = Layout((("a", (2, 3)), ("b", (2,))))
    delta = np.array([127, -64, 0, 0, 0, -254, 0, 3], np.float32)

    assert through(delta, layout).tolist() == delta.tolist()


def test_each_channel_has_a_scale_of_its_own_and_a_vector_has_one() -> None:
    layout = Layout((("a", (2, 2)), ("b", (2,))))
    delta = np.array([1e6, 1e6, 1e-6, 1e-6, 127e-3, 1e-3], np.float32)

    # With one scale for the tensor the millionths would be lost.
    assert through(delta, layout) == pytest.approx(delta, rel=1e-6)


def test_what_is_zero_stays_zero() -> None:
    delta = np.zeros(MIXED.size, np.float32)
    delta[3], delta[40] = 1.0, -0.0

    assert np.flatnonzero(through(delta, MIXED)).tolist() == [3]


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1 - 2**-53])
def test_whatever_is_drawn_no_number_leaves_its_eight_bits(drawn: float) -> None:
    below = np.nextafter(np.float32(1), np.float32(0))
    delta = np.array([1, below, -below, -1, 0.5], np.float32)
    layout = Layout((("a", (5,)),))

    arrived = decompress(compress(delta, layout, 1.0, math.inf, cast("Rng", Rolled(drawn))), layout)

    assert np.abs(arrived).max() == 1
    assert (np.abs(arrived - delta) <= 1 / 127 + 1e-7).all()


# --- Rounding takes no side -------------------------------------------------------------------------------------------------


def test_the_mean_over_all_draws_is_what_was_meant() -> None:
    # Over draws that stand evenly in [0, 1) the mean is exact up to their distance: expectation without chance.
    draws = 512
    layout = Layout((("a", (2, 40)),))
    delta = np.concatenate([rng(1).standard_normal(40), 1e-3 * rng(2).laplace(size=40)]).astype(np.float32)
    total = np.zeros(layout.size)

    for number in range(draws):
        payload = compress(delta, layout, 1.0, math.inf, cast("Rng", Rolled((number + 0.5) / draws)))
        total += decompress(payload, layout)

    assert (np.abs(total / draws - delta) <= steps(delta, layout) / draws + np.abs(delta) * 2.0**-23).all()


def test_the_mean_over_seeds_is_what_was_meant() -> None:
    seeds_, layout = 2000, Layout((("a", (50,)),))
    delta = rng(3).standard_normal(50).astype(np.float32)

    mean = np.mean([through(delta, layout, seed=seed).astype(np.float64) for seed in range(seeds_)], axis=0)

    # A rounding is off by at most half a step as a standard deviation; seven of the mean's: once in 10^11 times.
    assert (np.abs(mean - delta) <= 7 * 0.5 * steps(delta, layout) / math.sqrt(seeds_)).all()


def test_rounding_to_the_nearest_would_take_a_side() -> None:
    # The positive control of the two tests above.
    layout = Layout((("a", (2,)),))
    delta = np.array([127, 0.3], np.float32)

    mean = np.mean([through(delta, layout, seed=seed)[1] for seed in range(1000)])

    assert decompress(compress(delta, layout, 1.0, math.inf, cast("Rng", Rolled(0.5))), layout)[1] == 0
    assert mean == pytest.approx(0.3, abs=7 * 0.5 / math.sqrt(1000))


def test_the_same_generator_gives_the_same_bytes_and_another_gives_others() -> None:
    delta = movement(MIXED, "normal", 1.0)

    one, same, other = (compress(delta, MIXED, 0.5, 1.0, rng(seed)) for seed in (1, 1, 2))

    assert one == same
    assert one != other


def test_compressing_does_not_touch_what_it_was_given() -> None:
    delta = movement(MIXED, "normal", 1.0)
    before = delta.copy()

    compress(delta, MIXED, 0.5, 0.1, rng())

    assert np.array_equal(delta, before)


# --- The bound --------------------------------------------------------------------------------------------------------------


@given(cases, shares, bounds, seeds)
def test_what_is_decoded_is_never_longer_than_the_bound(
    case: tuple[Layout, Flat], keep: float, bound: float, seed: int
) -> None:
    layout, delta = case

    assert exact_norm(through(delta, layout, keep, bound, seed)) <= bound


@given(cases, seeds)
def test_an_update_as_long_as_the_bound_may_be_is_never_longer_for_being_rounded(case: tuple[Layout, Flat], seed: int) -> None:
    # Where rounding would lift it over: clipped to the bound, and everything is kept.
    layout, delta = case
    bound = max(norm(delta) * 0.5, 1e-30)

    assert exact_norm(through(clip(delta, bound), layout, 1.0, bound, seed)) <= bound


@pytest.mark.parametrize(("length", "expected"), [(0.999, 0.999), (1.0, 1.0), (1.001, 1.0), (1e30, 1.0)])
def test_the_bound_below_at_and_above(length: float, expected: float) -> None:
    layout = Layout((("a", (1,)),))

    assert exact_norm(through(np.array([length], np.float32), layout, 1.0, 1.0)) == pytest.approx(expected, rel=2e-6)


def test_float32_does_not_round_over_the_bound() -> None:
    # Nearly half of these bounds lie below the float32 nearest to them.
    layout, delta = Layout((("a", (3, 1)),)), np.array([5, 0, 0], np.float32)

    for bound in rng(4).uniform(0.1, 1, 300):
        assert exact_norm(through(delta, layout, 1.0, float(bound))) <= bound


def test_an_update_is_shortened_by_more_than_float32_can_say() -> None:
    delta = np.array([HUGE], np.float32)

    assert through(delta, Layout((("a", (1,)),)), 1.0, 1e-30) == pytest.approx([1e-30], rel=2e-6, abs=0)


def test_what_is_shortened_keeps_its_direction() -> None:
    layout = Layout((("a", (4, 1)),))
    delta = np.array([1e30, -1e25, 1e20, 3e30], np.float32)

    arrived = through(delta, layout, 1.0, 1e-3)

    assert arrived == pytest.approx(delta.astype(np.float64) * (1e-3 / exact_norm(delta)), rel=3e-6, abs=0)


def test_a_bound_too_small_for_float32_leaves_nothing() -> None:
    assert not through(np.ones(MIXED.size, np.float32), MIXED, 1.0, 1e-44).any()


# --- What is left out is not lost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize("keep", [0.05, 1.0])
def test_what_arrived_and_what_did_not_make_the_whole(kind: str, keep: float) -> None:
    layout = Layout((("a", (40, 250)),))
    delta = movement(layout, kind, 0.0)

    arrived = through(delta, layout, keep)

    # In float64: exactly. Both are float32, and where both are not 0 their exponents lie closer than float64's digits reach.
    exact = delta.astype(np.float64) - arrived
    assert np.array_equal(exact + arrived, delta.astype(np.float64))
    # In float32, as a node reckons: exactly for what was not sent and from two steps on (Sterbenz 1974), and to within half of
    # the last bit of one step below.
    rounded = delta - arrived
    step = steps(delta, layout)
    certain = (arrived == 0) | (np.abs(arrived) > 1.5 * step)
    assert np.array_equal(rounded[certain], exact[certain])
    assert (np.abs(rounded - exact) <= step * 2.0**-24).all()


def fed_back(gradient: Flat, layout: Layout, keep: float, rounds: int) -> tuple[Doubles, Flat]:
    """A node that sees the same gradient in every round: the sum of what arrived, and what it has kept back."""
    residual, total, draws = np.zeros(layout.size, np.float32), np.zeros(layout.size), rng(7)
    for _ in range(rounds):
        wanted = gradient + residual
        arrived = decompress(compress(wanted, layout, keep, 1e6, draws), layout)
        residual = wanted - arrived
        total += arrived
    return total, residual


@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_with_error_feedback_the_mean_of_what_arrives_converges_to_the_gradient(kind: str, spread: float) -> None:
    # Seide et al. 2014; Stich et al. 2018, arXiv 1809.07599; Karimireddy et al. 2019, arXiv 1901.09847, lemma 3: what is kept
    # back is never longer than 2 / keep gradients, so that the mean is off by no more than that over the rounds.
    layout, keep = Layout((("a", (20, 30)), ("b", (20,)), ("c", (10, 138)))), 0.05
    gradient = movement(layout, kind, spread)

    off = []
    for rounds in (50, 100, 400):
        total, residual = fed_back(gradient, layout, keep, rounds)
        assert np.abs(total + residual - rounds * gradient.astype(np.float64)).max() < 1e-4  # float32 over all the rounds
        assert norm(residual) < 2 / keep
        off.append(float(np.linalg.norm(total / rounds - gradient)))

    assert off[2] < off[1] < off[0]
    assert off[2] < 0.04


def test_without_error_feedback_the_mean_does_not_converge() -> None:
    # The positive control.
    layout = Layout((("a", (20, 100)),))
    gradient = movement(layout, "normal", 0.0)

    mean = np.mean([through(gradient, layout, 0.05, seed=seed) for seed in range(100)], axis=0)

    assert np.linalg.norm(mean - gradient) > 0.7


# --- Few bytes --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TIERS)
def body(request: pytest.FixtureRequest) -> Layout:
    """The real thing."""
    return state.body_layout(registry.find(request.param))


@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_a_body_is_sent_in_a_thirtieth_of_its_bytes(body: Layout, kind: str, spread: float) -> None:
    delta = movement(body, kind, spread)

    payload = compress(delta, body, 0.05, 1.0, rng())

    assert 30 * len(payload) <= 4 * body.size
    assert len(payload) <= max_bytes(body, 0.05)
    arrived = decompress(payload, body)
    assert np.count_nonzero(arrived) <= round(0.05 * body.size)
    # A twentieth of the numbers hold more than half of the length, and it arrives: more than 30 dB above what rounding does.
    assert norm(arrived) > 0.5
    sent = arrived != 0
    assert norm(arrived[sent]) > 31.6 * norm((arrived - delta)[sent])


def test_whatever_moved_a_body_is_sent_in_a_thirtieth_of_its_bytes(body: Layout) -> None:
    assert 30 * max_bytes(body, 0.05) <= 4 * body.size


def test_no_share_of_a_tensor_keeps_more_of_the_length_than_the_same_share_of_the_whole(body: Layout) -> None:
    # Why the largest of the whole update are kept.
    delta = movement(body, "normal", 1.0)
    of_each = np.zeros_like(delta)
    start = 0
    for _, shape in body.tensors:
        part = delta[start : start + math.prod(shape)]
        kept = np.argsort(-np.abs(part))[: max(1, round(0.05 * part.size))] + start
        of_each[kept] = delta[kept]
        start += part.size

    assert norm(through(delta, body, 0.05)) > norm(of_each)


@given(cases, shares, bounds, seeds)
def test_no_payload_is_longer_than_said_before(case: tuple[Layout, Flat], keep: float, bound: float, seed: int) -> None:
    layout, delta = case

    assert len(compress(delta, layout, keep, bound, rng(seed))) <= max_bytes(layout, keep)


def test_the_longest_payload_is_reached() -> None:
    layout = Layout((("a", (256,)),))
    delta = np.zeros(256, np.float32)
    delta[255] = 1

    assert len(compress(delta, layout, 1 / 256, 1.0, rng())) == max_bytes(layout, 1 / 256)


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 600])
def test_a_gap_of_any_length_is_kept(gap: int) -> None:
    layout = Layout((("a", (700,)),))
    delta = np.zeros(700, np.float32)
    delta[[3, 4 + gap]] = 1, -1

    payload = compress(delta, layout, 1.0, math.inf, rng())

    assert payload == written([3, 4 + gap], [127, -127], [1])
    assert decompress(payload, layout).tolist() == delta.tolist()


# --- Edges ------------------------------------------------------------------------------------------------------------------


def test_nothing_is_said_in_the_head_alone() -> None:
    payload = compress(np.zeros(MIXED.size, np.float32), MIXED, 0.05, 1.0, rng())

    assert payload == b"SFC2" + bytes(8)
    assert decompress(payload, MIXED).tolist() == [0] * MIXED.size


@pytest.mark.parametrize(
    "layout", [Layout(()), Layout((("a", (0, 3)), ("b", (4, 0)), ("c", (0,)))), Layout((("a", (3, 0)), ("b", (2,))))]
)
def test_tensors_without_numbers_have_none(layout: Layout) -> None:
    delta = np.ones(layout.size, np.float32)

    payload = compress(delta, layout, 1.0, math.inf, rng())

    assert decompress(payload, layout).tolist() == delta.tolist()
    assert len(payload) <= max_bytes(layout, 1.0)


@pytest.mark.parametrize(
    ("keep", "sent"), [(1e-9, 1), (0.001, 1), (0.1, 1), (0.2, 2), (0.25, 2), (0.94, 9), (0.96, 10), (1.0, 10)]
)
def test_one_number_at_least_is_sent_and_otherwise_the_share(keep: float, sent: int) -> None:
    delta = np.full(10, 127, np.float32)

    assert np.flatnonzero(through(delta, Layout((("a", (10,)),)), keep)).tolist() == list(range(sent))


def test_an_update_of_one_number_is_sent_as_it_is() -> None:
    assert through(np.array([-0.3], np.float32), Layout((("a", ()),)), 0.05).tolist() == [np.float32(-0.3)]


@pytest.mark.parametrize(("top", "is_said"), [(LEAST * (1 - 1e-6), False), (LEAST, True), (LEAST * (1 + 1e-6), True)])
def test_a_channel_is_left_out_below_what_float32_can_divide(top: float, *, is_said: bool) -> None:
    layout = Layout((("a", (2, 2)),))
    delta = np.array([1, 0, 0, top], np.float32)

    assert np.flatnonzero(through(delta, layout)).tolist() == ([0, 3] if is_said else [0])


def test_subnormal_numbers_are_left_out_and_stay_in_what_was_not_sent() -> None:
    layout = Layout((("a", (3,)),))
    delta = np.array([1e-45, -1e-40, 0], np.float32)

    arrived = through(delta, layout)

    assert not arrived.any()
    assert np.array_equal(delta - arrived, delta)


@pytest.mark.parametrize("bits_below", range(40))
def test_the_largest_numbers_of_float32_arrive(bits_below: int) -> None:
    # 127 times a 127th of them may be infinite in float32.
    top = np.array(np.float32(HUGE).view(np.uint32) - bits_below, np.uint32).view(np.float32)
    delta = np.array([top, -top, top / 3], np.float32)

    arrived = through(delta, Layout((("a", (3, 1)),)))

    assert np.array_equal(arrived, delta)


def test_channels_may_lie_seventy_powers_of_ten_apart() -> None:
    layout = Layout((("a", (3, 2)),))
    delta = np.array([HUGE, -HUGE, 1.0, -1.0, 1e-35, -1e-35], np.float32)

    assert np.array_equal(through(delta, layout), delta)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused(odd: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        compress(np.array([1, odd], np.float32), Layout((("a", (2,)),)), 1.0, 1.0, rng())


@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_update_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="another length"):
        compress(np.ones(size, np.float32), Layout((("a", (2,)),)), 1.0, 1.0, rng())


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_share_that_is_none_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="cannot keep a share"):
        compress(np.ones(2, np.float32), Layout((("a", (2,)),)), keep, 1.0, rng())


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, -math.inf])
def test_a_bound_that_is_not_positive_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="cannot keep a share"):
        compress(np.ones(2, np.float32), Layout((("a", (2,)),)), 1.0, bound, rng())


# --- One form and no other --------------------------------------------------------------------------------------------------

SMALL: Final = Layout((("a", (2, 3)), ("b", (300,))))


@given(cases, shares, bounds, seeds)
@example((SMALL, np.zeros(SMALL.size, np.float32)), 1.0, 1.0, 0)
def test_what_is_decoded_is_written_again_as_the_same_bytes(
    case: tuple[Layout, Flat], keep: float, bound: float, seed: int
) -> None:
    layout, delta = case

    payload = compress(delta, layout, keep, bound, rng(seed))

    assert rewritten(decompress(payload, layout), layout) == payload


def test_neighbouring_largest_numbers_mean_different_things() -> None:
    # Were a channel's scale written and not its largest number, 127 times either of two neighbours could be one float32.
    layout = Layout((("a", (1,)),))
    for drawn in rng(5).uniform(1, 4, 2000).astype(np.float32):
        one, other = written([0], [127], [float(drawn)]), written([0], [127], [float(np.nextafter(drawn, np.float32(9)))])
        assert decompress(one, layout) != decompress(other, layout)


HEAD: Final = "the payload has another head"
SHORT: Final = "the payload is too short"
LENGTH: Final = "the payload has another length"
GAPS: Final = "the payload has other gaps than numbers"
BEYOND: Final = "the payload has numbers beyond the end"
SCALES: Final = "the payload has scales that are none"
FORM: Final = "the payload is not in the one form of an update"

WHOLE: Final = written([0, 4, 301], [127, -127, 127], [1, 2, 3])


def test_the_payload_the_refusals_start_from_is_taken() -> None:
    assert decompress(WHOLE, SMALL)[[0, 4, 301]].tolist() == [1, -2, 3]


def head(count: int, gap_bytes: int, magic: bytes = b"SFC2") -> bytes:
    return magic + struct.pack("<II", count, gap_bytes)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"", SHORT, id="nothing"),
        pytest.param(WHOLE[:11], SHORT, id="half a head"),
        pytest.param(b"SFC1" + WHOLE[4:], HEAD, id="of the version before"),
        pytest.param(b"SFC3" + WHOLE[4:], HEAD, id="of the version after"),
        pytest.param(head(307, 307), HEAD, id="one more number than the layout has"),
        pytest.param(head(2**32 - 1, 3) + WHOLE[12:], HEAD, id="four thousand million numbers"),
        pytest.param(head(3, 5) + WHOLE[12:], HEAD, id="one more byte of gaps than there can be"),
        pytest.param(head(3, 2**32 - 1) + WHOLE[12:], HEAD, id="four thousand million bytes of gaps"),
        pytest.param(head(0, 1) + b"\xff", GAPS, id="a gap and no number"),
        pytest.param(WHOLE[:15], SHORT, id="gaps cut off"),
        pytest.param(WHOLE[:18], SHORT, id="numbers cut off"),
        pytest.param(WHOLE[:-1], LENGTH, id="a largest number cut off"),
        pytest.param(WHOLE + b"\0", LENGTH, id="one byte more"),
        pytest.param(WHOLE + b"\0\0\x80\x3f", LENGTH, id="one largest number more"),
        pytest.param(head(2, 3) + WHOLE[12:], GAPS, id="more gaps than numbers"),
        pytest.param(head(3, 2) + WHOLE[12:], GAPS, id="fewer gaps than numbers"),
        pytest.param(head(1, 2) + b"\0\xff" + bytes([127]) + WHOLE[-4:], GAPS, id="a gap without an end"),
        pytest.param(written([306], [127], [1]), BEYOND, id="one behind the end"),
        pytest.param(written([510], [127], [1]), HEAD, id="far behind the end"),
        pytest.param(written([0], [127], [math.nan]), SCALES, id="not a number"),
        pytest.param(written([0], [127], [math.inf]), SCALES, id="infinite"),
        pytest.param(written([0], [127], [-1]), SCALES, id="negative"),
        pytest.param(written([0], [127], [0]), SCALES, id="zero"),
        pytest.param(written([0], [127], [-0.0]), SCALES, id="minus zero"),
        pytest.param(written([0], [127], [LEAST * (1 - 1e-6)]), SCALES, id="too small to divide"),
        pytest.param(written([0, 1], [127, 0], [1]), FORM, id="a number that is 0"),
        pytest.param(written([0], [126], [1]), FORM, id="a largest number that is not the largest"),
        pytest.param(written([0, 1], [127, -128], [1]), FORM, id="-128"),
        pytest.param(written([0, 4], [127, 1], [1, 1]), FORM, id="one channel without its largest number"),
    ],
)
def test_what_is_not_in_the_one_form_is_refused_with_a_fixed_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(CompressionError) as caught:
        decompress(payload, SMALL)

    assert str(caught.value) == reason


@pytest.mark.parametrize("at", [0, 5, 6, 300, 305])
def test_a_number_may_stand_anywhere_up_to_the_end(at: int) -> None:
    assert np.flatnonzero(decompress(written([at], [-127], [1]), SMALL)).tolist() == [at]


def test_every_number_of_the_layout_may_be_said() -> None:
    payload = written(range(306), [127] * 306, [LEAST, HUGE, 1])

    assert np.count_nonzero(decompress(payload, SMALL)) == 306


def test_a_payload_is_of_one_layout() -> None:
    payload = compress(movement(MIXED, "normal", 1.0), MIXED, 1.0, 1.0, rng())

    with pytest.raises(CompressionError):
        decompress(payload, SMALL)


def test_every_shorter_payload_is_refused() -> None:
    payload = compress(movement(MIXED, "normal", 1.0), MIXED, 0.2, 1.0, rng())

    for length in range(len(payload)):
        with pytest.raises(CompressionError):
            decompress(payload[:length], MIXED)


# --- Hostile bytes ----------------------------------------------------------------------------------------------------------

MUTANTS: Final = 2000


def flipped(payload: bytes, draws: Rng) -> bytes:
    changed = bytearray(payload)
    for at in draws.integers(len(payload) * 8, size=draws.integers(1, 4)):
        changed[at // 8] ^= 1 << int(at % 8)
    return bytes(changed)


def overwritten(payload: bytes, draws: Rng) -> bytes:
    at = int(draws.integers(len(payload)))
    return payload[:at] + bytes([int(draws.choice([0, 1, 126, 127, 128, 129, 254, 255]))]) + payload[at + 1 :]


def cut(payload: bytes, draws: Rng) -> bytes:
    return payload[: int(draws.integers(len(payload)))]


def extended(payload: bytes, draws: Rng) -> bytes:
    return payload + draws.bytes(int(draws.integers(1, 9)))


def spliced(payload: bytes, draws: Rng) -> bytes:
    other = compress(movement(MIXED, "laplace", 1.0, int(draws.integers(99))), MIXED, 0.3, 1.0, draws)
    at = int(draws.integers(len(payload)))
    return payload[:at] + other[min(at, int(draws.integers(len(other)))) :]


def lying(payload: bytes, draws: Rng) -> bytes:
    count, gap_bytes = struct.unpack_from("<II", payload, 4)
    lie = int(draws.choice([-1, 1, 2, 255, 2**16, 2**31]))
    told = (count + lie, gap_bytes) if draws.random() < 0.5 else (count, gap_bytes + lie)
    return head(max(0, told[0]), max(0, told[1])) + payload[12:]


def noise(_payload: bytes, draws: Rng) -> bytes:
    return head(int(draws.integers(20)), int(draws.integers(20))) + draws.bytes(int(draws.integers(80)))


def shuffled(payload: bytes, draws: Rng) -> bytes:
    """Gaps, numbers and largest numbers of the right lengths, and all of them in disorder."""
    return payload[:12] + draws.permutation(np.frombuffer(payload, np.uint8, offset=12)).tobytes()


ATTACKS: Final[tuple[Callable[[bytes, Rng], bytes], ...]] = (
    *(flipped, overwritten, cut, extended, spliced, lying, noise, shuffled),
)


def test_two_thousand_mutated_payloads_are_refused_or_say_something_finite_in_the_one_form() -> None:
    reasons: set[str] = set()
    taken = 0
    for number in range(MUTANTS):
        draws = rng(number)
        honest = compress(movement(MIXED, "normal", 1.0, number), MIXED, float(draws.uniform(0.01, 1)), 1.0, draws)
        mutant = ATTACKS[number % len(ATTACKS)](honest, draws)
        try:
            flat = decompress(mutant, MIXED)
        except CompressionError as error:
            reasons.add(str(error))
            continue
        taken += 1
        assert flat.dtype == np.float32
        assert flat.shape == (MIXED.size,)
        assert np.isfinite(flat).all()
        assert rewritten(flat, MIXED) == mutant

    assert reasons == {HEAD, SHORT, LENGTH, GAPS, BEYOND, SCALES, FORM}  # all of them fixed, and the attacks reach each
    assert 100 < taken < MUTANTS / 2  # some say something else than before: only a signature can tell


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_or_are_the_one_form(tail: bytes, has_magic: bool) -> None:  # noqa: FBT001 - hypothesis draws it
    payload = b"SFC2" + tail if has_magic else tail
    try:
        flat = decompress(payload, SMALL)
    except CompressionError:
        return
    assert rewritten(flat, SMALL) == payload


@pytest.mark.parametrize(
    "payload",
    [
        head(2**32 - 1, 2**32 - 1),
        head(SMALL.size, SMALL.size),
        head(SMALL.size, SMALL.size) + b"\xff" * 1_000_000,
        head(SMALL.size, SMALL.size) + bytes(1_000_000),
        WHOLE + bytes(1_000_000),
    ],
)
def test_what_reading_costs_is_bounded_by_the_layout_and_not_by_what_a_payload_says(payload: bytes) -> None:
    def refused() -> None:
        with pytest.raises(CompressionError):
            decompress(payload, SMALL)

    refused()  # what numpy keeps from its first use is not the payload's doing

    assert peak_bytes(refused) < 100 * SMALL.size + 50_000


def peak_bytes(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
