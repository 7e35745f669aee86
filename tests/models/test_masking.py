"""A coordinator gets the sum or nothing, whoever drops out and whatever it tells the nodes; and each refusal is reached.

A round here is run whole, with keys made from names so that every run is the same.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any, Final, get_args

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models import masking, privacy, shamir
from models.masking import (
    MAXIMUM_NODES,
    MINIMUM_NODES,
    Active,
    Advert,
    Answer,
    Box,
    Context,
    Masked,
    MaskingError,
    NodeState,
    Reason,
    Request,
    Secrets,
    SharePair,
    Words,
    accept_adverts,
    accept_boxes,
    advertise,
    answer_request,
    begin,
    check_adverts,
    check_request,
    deal,
    decode_sum,
    deliver,
    encode,
    fewest_active,
    gather,
    resolution,
    smallest_sum,
    threshold,
    unmask,
    verify_advert,
)

SIZE: Final = 6


# A round, from names.


def digest(*names: object) -> bytes:
    return hashlib.sha256(repr(names).encode()).digest()


def enrolled(node: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(digest("enrolled", node))


def secrets_of(node: int, draw: object = 0) -> Secrets:
    return Secrets(*(digest(name, node, draw) for name in ("mask", "share", "seed", "dealing")))


def node_ids(nodes: int) -> tuple[int, ...]:
    """Flower's are 64 random bits."""
    return tuple(sorted(int.from_bytes(digest("id", place)[:8], "big") for place in range(nodes)))


def context_of(nodes: int) -> Context:
    roster = tuple((node, enrolled(node).public_key().public_bytes_raw()) for node in node_ids(nodes))
    return Context("guild", 3, "ab" * 32, "cd" * 32, roster)


def adverts_of(context: Context, nodes: Iterable[int]) -> list[Advert]:
    return [advertise(begin(context, node, secrets_of(node)), enrolled(node)) for node in nodes]


@lru_cache(maxsize=32)
def dealt(nodes: int, dead: tuple[int, ...] = ()) -> dict[int, NodeState]:
    """The states of a round's active nodes when all boxes are accepted; ``dead`` by place on the roster."""
    context = context_of(nodes)
    alive = [node for place, node in enumerate(node_ids(nodes)) if place not in dead]
    adverts = adverts_of(context, alive)
    states = {node: accept_adverts(begin(context, node, secrets_of(node)), adverts) for node in alive}
    boxes = [box for state in states.values() for box in deal(state)]
    return {node: accept_boxes(state, [b for b in boxes if b.recipient == node]) for node, state in states.items()}


def active_of(states: Mapping[int, NodeState]) -> Active:
    active = next(iter(states.values())).active
    assert active is not None
    return active


def vectors_of(nodes: Iterable[int], seed: int = 0, size: int = SIZE) -> dict[int, Words]:
    random = np.random.default_rng(seed)
    return {node: random.integers(0, 2**32, size, dtype=np.uint32) for node in nodes}


def plain_sum(vectors: Mapping[int, Words], nodes: Iterable[int]) -> list[int]:
    """Another way to add: Python's integers, reduced at the end."""
    return [sum(column) % 2**32 for column in zip(*(vectors[node].tolist() for node in nodes), strict=True)]


@dataclass(frozen=True)
class Delivered:
    """A round in which everybody delivered; who counts as survivor is for a test to say."""

    states: dict[int, NodeState]
    masked: dict[int, Masked]
    vectors: dict[int, Words]


def delivered(states: Mapping[int, NodeState], vectors: Mapping[int, Words]) -> Delivered:
    made = {node: deliver(states[node], vectors[node]) for node in vectors}
    after = {**states, **{node: state for node, (state, _) in made.items()}}
    return Delivered(after, {node: masked for node, (_, masked) in made.items()}, dict(vectors))


def answers_to(states: Mapping[int, NodeState], request: Request, nodes: Iterable[int]) -> list[Answer]:
    return [answer_request(states[node], request)[1] for node in nodes]


def finish(round_: Delivered, survivors: Collection[int], answering: Collection[int]) -> list[int]:
    """The sum, if only these survived. The others' vectors are lost on the way: for all they know, never made."""
    active = active_of(round_.states)
    request, total = gather(active, (round_.masked[node] for node in survivors), SIZE)
    states = {n: s if n in survivors else replace(s, delivered=b"") for n, s in round_.states.items()}
    result: list[int] = unmask(active, request, answers_to(states, request, answering), total).tolist()
    return result


def refused(reason: Reason, call: Callable[..., object], *arguments: object) -> MaskingError:
    with pytest.raises(MaskingError) as caught:
        call(*arguments)
    assert caught.value.reason == reason
    return caught.value


# Masks cancel.


@pytest.mark.parametrize("nodes", [5, 6, 7])
def test_the_sum_is_exact_for_every_set_of_dead_and_dropped_nodes_that_the_threshold_allows(nodes: int) -> None:
    tried = 0
    for alive in range(fewest_active(nodes), nodes + 1):
        for dead in combinations(range(nodes), nodes - alive):
            states = dealt(nodes, dead)
            round_ = delivered(states, vectors_of(states, nodes))
            for count in range(threshold(nodes), alive + 1):
                for survivors in combinations(states, count):
                    assert finish(round_, survivors, survivors) == plain_sum(round_.vectors, survivors)
                    tried += 1
    assert tried == {5: 1 + 5, 6: 6 * 1 + 1 + 6, 7: 21 + 7 * (1 + 6) + 1 + 7 + 21}[nodes]


@given(st.data())
@settings(max_examples=12)
def test_the_sum_is_exact_whoever_is_dead_dropped_or_silent(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(8, 14))
    need = threshold(nodes)
    dead = data.draw(st.sets(st.integers(0, nodes - 1), max_size=nodes - need))
    states = dealt(nodes, tuple(sorted(dead)))
    order = data.draw(st.permutations(list(states)))
    survivors = order[: data.draw(st.integers(need, len(order)))]
    answering = data.draw(st.permutations(survivors))[: data.draw(st.integers(need, len(survivors)))]
    round_ = delivered(states, vectors_of(states, data.draw(st.integers(0, 99))))

    assert finish(round_, survivors, answering) == plain_sum(round_.vectors, survivors)


def test_a_dropped_node_that_comes_back_may_help_with_its_shares() -> None:
    states = dealt(5)
    nodes = list(states)
    round_ = delivered(states, vectors_of(states))

    assert finish(round_, nodes[:4], [nodes[4], *nodes[1:4]]) == plain_sum(round_.vectors, nodes[:4])


def test_below_the_threshold_nothing_is_recovered() -> None:
    """Not by refusal alone: with one answer too few the shares give another secret."""
    states = dealt(7)
    nodes, active = list(states), active_of(states)
    round_ = delivered(states, vectors_of(states))
    request, total = gather(active, round_.masked.values(), SIZE)
    answers = answers_to(round_.states, request, nodes)

    refused("too-few-nodes", lambda: gather(active, [round_.masked[n] for n in nodes[:4]], SIZE))
    refused("too-few-nodes", lambda: unmask(active, request, answers[:4], total))
    shares = {place: answer.shares[0] for place, answer in enumerate(answers, 1)}
    assert shamir.join((1, 2, 3, 4), shares) != secrets_of(nodes[0]).seed
    assert shamir.join((1, 2, 3, 4, 5), shares) == secrets_of(nodes[0]).seed


def test_whole_updates_come_back_as_their_sum() -> None:
    nodes, clip = 6, 0.5
    states = dealt(nodes)
    random = np.random.default_rng(4)
    deltas = {node: privacy.clip(random.normal(size=SIZE).astype(np.float32), clip) for node in states}
    round_ = delivered(states, {n: encode(d, clip, nodes, np.random.default_rng(n)) for n, d in deltas.items()})
    survivors = list(states)[1:]
    request, total = gather(active_of(states), [round_.masked[n] for n in survivors], SIZE)
    after = {n: s if n in survivors else replace(s, delivered=b"") for n, s in round_.states.items()}

    total = unmask(active_of(states), request, answers_to(after, request, survivors), total)

    expected = np.sum([deltas[n] for n in survivors], axis=0, dtype=np.float64)
    error = np.abs(decode_sum(total, clip, nodes, len(survivors)) - expected)
    assert error.max() < len(survivors) * resolution(clip, nodes)


# What the coordinator sees.


def mask(key: bytes, size: int = SIZE) -> Words:
    words = np.zeros(size, np.uint32)
    masking._add_mask_inplace(words, key)
    return words


def pair_masks(active: Active, nodes: Iterable[int]) -> dict[tuple[int, int], Words]:
    adverts = {advert.node: advert for advert in active.adverts}
    return {
        (low, high): mask(masking._pair_key(secrets_of(low).mask_key, active.session, low, adverts[high]))
        for low, high in combinations(sorted(nodes), 2)
    }


def masked_with(
    vectors: Mapping[int, Words], selves: Mapping[int, Words], pairs: Mapping[tuple[int, int], Words]
) -> dict[int, Words]:
    """Masking said once more, with the masks given."""
    return {
        node: vectors[node]
        + selves[node]
        + sum((m for (low, _), m in pairs.items() if low == node), np.zeros(SIZE, np.uint32))
        - sum((m for (_, high), m in pairs.items() if high == node), np.zeros(SIZE, np.uint32))
        for node in vectors
    }


def same(one: Mapping[int, Words], other: Mapping[int, Words]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[node], other[node]) for node in one)


@given(st.integers(0, 2**32), st.sets(st.integers(0, 6), max_size=2))
@settings(max_examples=20)
def test_what_a_coordinator_sees_fits_every_other_set_of_updates_with_the_same_sum(seed: int, dropped: set[int]) -> None:
    """For other updates with that sum there are pair masks between survivors, which it never learns, that make every byte it
    sees. The way from the true masks to those is adding a constant, so they are just as likely: the view tells none apart.
    """
    states = dealt(7)
    active = active_of(states)
    survivors = [node for place, node in enumerate(states) if place not in dropped]
    selves = {node: mask(masking._self_key(secrets_of(node).seed, active.session, node)) for node in states}
    pairs = pair_masks(active, states)
    vectors = vectors_of(survivors, seed)
    seen = {node: masked.words for node, masked in delivered(states, vectors).masked.items()}
    assert same(seen, masked_with(vectors, selves, pairs))

    instead = vectors_of(survivors, seed + 1)
    hub = survivors[-1]
    instead[hub] = sum(vectors.values(), np.zeros(SIZE, np.uint32)) - sum(
        (instead[node] for node in survivors[:-1]), np.zeros(SIZE, np.uint32)
    )
    # Every other survivor settles its difference over the mask it shares with the last, for whom they then add up to its own.
    other_pairs = dict(pairs)
    for node in survivors[:-1]:
        other_pairs[node, hub] = pairs[node, hub] + vectors[node] - instead[node]

    assert plain_sum(instead, survivors) == plain_sum(vectors, survivors)
    assert same(seen, masked_with(instead, selves, other_pairs))
    assert {p for p in pairs if not np.array_equal(pairs[p], other_pairs[p])} <= {(node, hub) for node in survivors}

    # Control: another sum no pair masks can make, since they cancel.
    instead[hub] = instead[hub] + np.uint32(1)
    assert plain_sum(masked_with(instead, selves, other_pairs), survivors) != plain_sum(seen, survivors)


def test_what_nodes_answer_does_not_depend_on_what_they_delivered() -> None:
    states = dealt(5)
    one, other = (delivered(states, vectors_of(states, seed)) for seed in (1, 2))
    request, _ = gather(active_of(states), one.masked.values(), SIZE)

    assert answers_to(one.states, request, states) == answers_to(other.states, request, states)
    assert not same({n: m.words for n, m in one.masked.items()}, {n: m.words for n, m in other.masked.items()})


def chi_square(words: Words) -> float:
    """Of the bytes against all being equally likely: 255 degrees of freedom; 99.8 % of uniform draws lie in 188 to 331."""
    counts = np.bincount(words.astype("<u4").view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(np.sum((counts - expected) ** 2) / expected)


def test_a_masked_vector_looks_like_noise_whatever_is_under_it() -> None:
    states = dealt(5)
    node, size = next(iter(states)), 50_000
    updates = {
        "nothing": np.zeros(size, np.uint32),
        "the greatest": np.full(size, 2**31 - 1, np.uint32),
        "an update": encode(privacy.clip(np.linspace(-1, 1, size, dtype=np.float32), 1.0), 1.0, 5, np.random.default_rng(0)),
    }
    for encoded in updates.values():
        _, masked = deliver(states[node], encoded)
        assert 188 < chi_square(masked.words) < 331
        assert 188 < chi_square(masked.words - encoded) < 331  # the masks themselves
    # Control: what is not masked is caught.
    assert all(chi_square(encoded) > 10_000 for encoded in updates.values())


def test_two_nodes_masks_have_nothing_in_common_but_their_pair() -> None:
    states, size = dealt(5), 50_000
    one, other = (deliver(states[node], np.zeros(size, np.uint32))[1].words for node in list(states)[:2])

    assert 188 < chi_square(one + other) < 331
    assert 188 < chi_square(one - other) < 331


def test_a_mask_is_of_two_nodes_and_not_of_two_keys() -> None:
    """The second line behind ``same-key``: a node that copies another's key copies none of its masks."""
    active = active_of(dealt(5))
    first, second, third = active.adverts[:3]
    private = secrets_of(first.node).mask_key

    one, copied = (
        mask(masking._pair_key(private, active.session, first.node, peer))
        for peer in (second, replace(third, mask_key=second.mask_key))
    )

    assert not np.array_equal(one, copied)


def test_a_mask_is_chacha20_from_the_start_of_its_stream_whatever_the_chunks() -> None:
    size = 2 * masking._CHUNK + 3
    words = mask(b"k" * 32, size)

    # RFC 8439's AEAD encrypts from block 1 on; the mask begins at block 0.
    aead = ChaCha20Poly1305(b"k" * 32).encrypt(bytes(12), bytes(4 * size - 64), None)
    assert words.astype("<u4").tobytes()[64:] == aead[:-16]


# The threshold.


def test_more_than_two_thirds_are_needed_and_a_third_may_collude() -> None:
    for nodes in range(MINIMUM_NODES, MAXIMUM_NODES + 1):
        need, colluders = threshold(nodes), nodes // 3

        assert 2 * nodes < 3 * need <= 2 * nodes + 3
        assert 2 * need > nodes + colluders
        assert fewest_active(nodes) == max(5, need) <= nodes


def test_the_smallest_sums_are_as_stated() -> None:
    figures = {n: [smallest_sum(n, c) for c in (0, n // 10, n // 5, n // 4, n // 3)] for n in (5, 10, 50, 1000)}

    assert figures == {
        5: [4, 4, 3, 3, 3],
        10: [6, 5, 4, 4, 2],
        50: [27, 21, 14, 11, 4],
        1000: [501, 372, 230, 152, 2],
    }
    assert all(smallest_sum(n, n // 3) >= 2 for n in range(MINIMUM_NODES, MAXIMUM_NODES + 1))
    assert smallest_sum(9, 2 * threshold(9) - 9) == 0


Lists = Mapping[int, Collection[int]]
"""Honest node → the nodes it is told have dropped out."""


def left_in_the_sum(nodes: int, colluders: int, lists: Lists) -> int:
    """Honest nodes, numbered from 0, that cannot be cut away with what these lists make honest nodes and colluders reveal."""
    votes = dict.fromkeys(range(nodes - colluders), 0)
    for named in lists.values():
        for node in named:
            votes[node] += 1
    return sum(count + colluders < threshold(nodes) for count in votes.values())


@pytest.mark.parametrize(("nodes", "colluders"), [(5, 0), (5, 1), (5, 2), (6, 0), (6, 1), (6, 2), (6, 3)])
def test_no_lies_at_all_make_a_smaller_sum_than_stated(nodes: int, colluders: int) -> None:
    """Every list for every honest node. With five or six nodes each can be told of one that dropped out."""
    honest = range(nodes - colluders)
    assert nodes - threshold(nodes) == 1
    choices = [[(), *((node,) for node in honest if node != teller)] for teller in honest]

    least = min(left_in_the_sum(nodes, colluders, dict(zip(honest, lists, strict=True))) for lists in product(*choices))

    assert least >= smallest_sum(nodes, colluders) >= 2


def best_lies(nodes: int, colluders: int, cut: int) -> dict[int, set[int]]:
    """Cut away the first ``cut`` honest nodes: each is named to those who can still be told most, and not to itself."""
    honest, need = range(nodes - colluders), threshold(nodes)
    lists: dict[int, set[int]] = {node: set() for node in honest}
    for target in range(cut):
        tellers = sorted((node for node in honest if node != target), key=lambda node: len(lists[node]))
        for teller in tellers[: need - colluders]:
            if len(lists[teller]) < nodes - need:
                lists[teller].add(target)
    return lists


@given(st.integers(7, 60), st.data())
def test_the_best_known_lies_make_no_smaller_sum_than_stated(nodes: int, data: st.DataObject) -> None:
    colluders = data.draw(st.integers(0, 2 * threshold(nodes) - nodes - 1))

    least = min(left_in_the_sum(nodes, colluders, best_lies(nodes, colluders, cut)) for cut in range(nodes - colluders + 1))

    assert smallest_sum(nodes, colluders) <= least <= smallest_sum(nodes, colluders) + 1


@given(st.integers(7, 20), st.data())
def test_random_lies_make_no_smaller_sum_than_stated(nodes: int, data: st.DataObject) -> None:
    colluders = data.draw(st.integers(0, nodes // 3))
    honest = list(range(nodes - colluders))
    named = st.sets(st.sampled_from(honest), max_size=nodes - threshold(nodes))
    lists = {node: data.draw(named) - {node} for node in honest}

    assert left_in_the_sum(nodes, colluders, lists) >= smallest_sum(nodes, colluders)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_coordinator_that_lies_to_each_node_never_gets_both_secrets_of_one_nor_a_smaller_sum(cut: int) -> None:
    """With real nodes, shares and masks: seven, all honest, each told another list. Two can be cut away and no third."""
    states = dealt(7)
    active, nodes = active_of(states), list(states)
    round_ = delivered(states, vectors_of(states))
    seeds: dict[int, dict[int, int]] = {node: {} for node in nodes}
    keys: dict[int, dict[int, int]] = {node: {} for node in nodes}
    for teller, named in best_lies(7, 0, cut).items():
        dropped = tuple(nodes[place] for place in sorted(named))
        request = Request(active.session, tuple(n for n in nodes if n not in dropped), dropped)
        for node, share in zip(nodes, answer_request(round_.states[nodes[teller]], request)[1].shares, strict=True):
            (keys if node in dropped else seeds)[node][teller + 1] = share

    need = threshold(7)
    bare = {node for node in nodes if len(seeds[node]) >= need}
    cut_away = {node for node in nodes if len(keys[node]) >= need}
    assert not bare & cut_away
    if cut <= 2:
        # What it can do: the sum of five, though seven delivered. And the masks among those five stay.
        assert len(bare) == 7 - cut >= smallest_sum(7)
        assert {shamir.join(tuple(keys[n])[:need], keys[n]) for n in cut_away} == {secrets_of(n).mask_key for n in cut_away}
    else:
        # A third leaves a node with neither secret out, and its masks on all others.
        assert len(cut_away) < 3
        assert len(bare) + len(cut_away) < 7


# Signed keys.


def test_adverts_that_are_good_make_the_list_in_any_order() -> None:
    context = context_of(7)
    adverts = adverts_of(context, node_ids(7))

    active = check_adverts(context, reversed(adverts))

    assert active == Active(context, tuple(adverts))
    assert active.nodes == node_ids(7)


OTHER_KEY: Final = Ed25519PrivateKey.from_private_bytes(digest("somebody else"))


def other_contexts() -> dict[str, Context]:
    context = context_of(6)
    *others, (last, _) = context.roster
    return {
        "federation": replace(context, federation="guilds"),
        "round before": replace(context, round=2),
        "policy": replace(context, policy="ac" * 32),
        "layout": replace(context, layout="ce" * 32),
        "shorter roster": replace(context, roster=context.roster[:5]),
        "other key": replace(context, roster=(*others, (last, OTHER_KEY.public_key().public_bytes_raw()))),
    }


@pytest.mark.parametrize("name", other_contexts())
def test_an_advert_of_another_context_is_refused(name: str) -> None:
    """A replay from another round, federation, policy, layout or roster."""
    context, other = context_of(6), other_contexts()[name]
    replayed = adverts_of(other, node_ids(6)[:1])
    adverts = [*replayed, *adverts_of(context, node_ids(6)[1:])]

    assert other.digest != context.digest
    assert refused("bad-signature", lambda: check_adverts(context, adverts)).node == node_ids(6)[0]
    verify_advert(other, replayed[0])  # control: there it is good


@pytest.mark.parametrize("signature", [b"", bytes(64), b"\xff" * 64])
def test_an_advert_without_a_signature_is_refused(signature: bytes) -> None:
    context = context_of(5)
    first, *others = adverts_of(context, node_ids(5))

    refused("bad-signature", lambda: check_adverts(context, [replace(first, signature=signature), *others]))


@pytest.mark.parametrize("field", ["mask_key", "share_key", "commitment"])
def test_an_advert_changed_after_signing_is_refused(field: str) -> None:
    context = context_of(5)
    first, *others = adverts_of(context, node_ids(5))
    stolen = {field: digest("another")}

    refused("bad-signature", lambda: check_adverts(context, [replace(first, **stolen), *others]))  # type: ignore[arg-type]


def test_an_advert_signed_for_another_node_is_refused() -> None:
    context = context_of(5)
    first, second, *others = adverts_of(context, node_ids(5))

    refused("bad-signature", lambda: check_adverts(context, [replace(first, node=second.node), first, *others]))


def test_an_advert_of_a_node_that_was_not_asked_is_refused() -> None:
    context = context_of(5)
    stranger = replace(adverts_of(context, node_ids(5))[0], node=5)

    assert refused("stranger", lambda: check_adverts(context, [stranger])).node == 5
    assert refused("stranger", lambda: verify_advert(context, stranger)).node == 5


def test_a_node_that_advertises_twice_is_refused() -> None:
    context = context_of(5)
    adverts = adverts_of(context, node_ids(5))
    second = advertise(begin(context, adverts[0].node, secrets_of(adverts[0].node, "again")), enrolled(adverts[0].node))

    assert refused("doubled", lambda: check_adverts(context, [*adverts, second])).node == second.node
    refused("doubled", lambda: check_adverts(context, [adverts[0], *adverts]))


@pytest.mark.parametrize(("nodes", "fewest"), [(5, 5), (6, 5), (7, 5), (8, 6), (9, 7), (12, 9)])
def test_adverts_at_and_below_the_fewest(nodes: int, fewest: int) -> None:
    context = context_of(nodes)
    adverts = adverts_of(context, node_ids(nodes)[:fewest])

    assert len(check_adverts(context, adverts).nodes) == fewest
    refused("too-few-nodes", lambda: check_adverts(context, adverts[1:]))
    refused("too-few-nodes", lambda: check_adverts(context, []))


def signed(context: Context, advert: Advert) -> Advert:
    """By its node: a node may sign nonsense."""
    return replace(advert, signature=enrolled(advert.node).sign(masking._ADVERT + context.digest + advert.unsigned))


# The points of order 1, 2, 4 and 8 (RFC 7748, section 6.1; cr.yp.to/ecdh.html), some in forms beyond the field.
LOW_ORDER: Final = (
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
)


@pytest.mark.parametrize("field", ["mask_key", "share_key"])
@pytest.mark.parametrize("key", LOW_ORDER)
def test_a_key_that_everybody_can_compute_with_is_refused(field: str, key: bytes) -> None:
    context = context_of(5)
    first, *others = adverts_of(context, node_ids(5))
    weak = signed(context, replace(first, **{field: key}))  # type: ignore[arg-type]

    assert refused("weak-key", lambda: check_adverts(context, [*others, weak])).node == first.node


def test_a_key_of_low_order_gives_no_secret() -> None:
    """The second line: deriving from one fails too, whoever made the list."""
    for key in LOW_ORDER:
        refused("weak-key", masking._exchange, secrets_of(1).mask_key, key)


def test_a_key_in_a_second_form_is_refused() -> None:
    """With the top bit set X25519 computes the same: two names for one key."""
    context = context_of(5)
    first, *others = adverts_of(context, node_ids(5))
    second_form = first.mask_key[:31] + bytes([first.mask_key[31] | 0x80])
    assert masking._exchange(secrets_of(1).mask_key, second_form) == masking._exchange(secrets_of(1).mask_key, first.mask_key)

    refused("weak-key", lambda: check_adverts(context, [*others, signed(context, replace(first, mask_key=second_form))]))


@pytest.mark.parametrize("field", ["mask_key", "share_key"])
@pytest.mark.parametrize("copied", ["mask_key", "share_key"])
def test_the_same_key_twice_is_refused(field: str, copied: str) -> None:
    context = context_of(5)
    first, second, *others = adverts_of(context, node_ids(5))
    copy = signed(context, replace(second, **{field: getattr(first, copied)}))

    assert refused("same-key", lambda: check_adverts(context, [first, copy, *others])).node == second.node


def test_one_key_for_masks_and_shares_is_refused() -> None:
    context = context_of(5)
    first, *others = adverts_of(context, node_ids(5))

    refused("same-key", lambda: check_adverts(context, [signed(context, replace(first, share_key=first.mask_key)), *others]))


def test_a_node_signs_only_with_the_key_it_is_enrolled_with() -> None:
    refused("bad-signature", lambda: advertise(begin(context_of(5), node_ids(5)[0], secrets_of(0)), OTHER_KEY))


def test_a_node_that_is_not_asked_does_not_begin() -> None:
    refused("stranger", lambda: begin(context_of(5), 5, secrets_of(5)))


def test_a_list_without_this_nodes_own_advert_is_refused() -> None:
    context = context_of(7)
    adverts = adverts_of(context, node_ids(7))
    state = begin(context, node_ids(7)[0], secrets_of(node_ids(7)[0]))

    refused("own-advert-changed", lambda: accept_adverts(state, adverts[1:]))


def test_a_list_with_an_older_advert_of_this_node_is_refused() -> None:
    """A good signature, over keys that this node has lost."""
    context, node = context_of(5), node_ids(5)[0]
    state = begin(context, node, secrets_of(node, "after a crash"))

    refused("own-advert-changed", lambda: accept_adverts(state, adverts_of(context, node_ids(5))))


def test_a_second_list_is_refused() -> None:
    state, adverts = dealt(7)[node_ids(7)[0]], adverts_of(context_of(7), node_ids(7))

    refused("second-list", lambda: accept_adverts(state, adverts[:-1]))
    assert accept_adverts(state, adverts[::-1]) is state


@dataclass(frozen=True)
class Swap:
    """A coordinator between a node and its peers: what it tells the node are its own keys under its peers' names."""

    context: Context
    victim: int

    def peer(self, node: int) -> NodeState:
        return begin(self.context, node, secrets_of(node, "the coordinator's"))

    def adverts(self) -> list[Advert]:
        """Signed by nobody it could make sign."""
        own = adverts_of(self.context, [self.victim])
        peers = [masking._unsigned_advert(self.peer(node)) for node, _ in self.context.roster if node != self.victim]
        forged = [replace(a, signature=OTHER_KEY.sign(masking._ADVERT + self.context.digest + a.unsigned)) for a in peers]
        return sorted([*own, *forged], key=lambda advert: advert.node)


def test_keys_swapped_on_the_way_are_refused() -> None:
    swap = Swap(context_of(5), node_ids(5)[2])
    state = begin(swap.context, swap.victim, secrets_of(swap.victim))

    refused("bad-signature", lambda: accept_adverts(state, swap.adverts()))


def test_without_the_signatures_a_swap_would_unmask_one_node() -> None:
    """Control: the same swap, past the check, lays the victim's vector open to whoever carries the messages."""
    swap = Swap(context_of(5), node_ids(5)[2])
    active = Active(swap.context, tuple(swap.adverts()))
    peers = {node: replace(swap.peer(node), active=active) for node in active.nodes if node != swap.victim}
    victim = replace(begin(swap.context, swap.victim, secrets_of(swap.victim)), active=active)
    to_victim = [box for peer in peers.values() for box in deal(peer) if box.recipient == swap.victim]
    secret_vector = vectors_of([swap.victim])[swap.victim]
    _, masked = deliver(accept_boxes(victim, to_victim), secret_vector)

    own_advert = next(advert for advert in active.adverts if advert.node == swap.victim)
    indices, shares = swap.context.indices, {}
    for box in deal(victim):
        shares[indices[box.recipient]] = masking._open(peers[box.recipient], active.session, own_advert, box).seed
    seed = shamir.join(tuple(shares), shares)
    assert seed is not None
    words = masked.words - mask(masking._self_key(seed, active.session, swap.victim))
    for node, peer in peers.items():
        pair = mask(masking._pair_key(peer.secrets.mask_key, active.session, node, own_advert))
        words = words - pair if swap.victim < node else words + pair

    assert np.array_equal(words, secret_vector)


# Boxes of shares.


def boxes_for(nodes: int, node: int) -> list[Box]:
    return [box for state in dealt(nodes).values() for box in deal(state) if box.recipient == node]


def before_boxes(nodes: int, place: int = 0) -> NodeState:
    return replace(dealt(nodes)[node_ids(nodes)[place]], held=())


def test_every_share_is_as_dealt_and_a_node_holds_its_own() -> None:
    states = dealt(6)
    for node in states:
        for kind in ("mask_key", "seed"):
            shares = {
                states[holder].context.indices[holder]: getattr(states[holder].held[list(states).index(node)], kind)
                for holder in states
            }
            for some in combinations(shares, threshold(6)):
                assert shamir.join(some, shares) == getattr(secrets_of(node), kind)


def test_a_nodes_two_secrets_are_shared_by_two_polynomials() -> None:
    """By one, the difference of a holder's two shares would be the difference of the secrets."""
    states = dealt(6)
    differences = {(state.held[0].mask_key - state.held[0].seed) % shamir.PRIME for state in states.values()}

    assert len(differences) == 6


def test_a_box_opens_for_its_recipient_alone() -> None:
    states = dealt(5)
    one, two, three = list(states)[:3]
    box = next(box for box in deal(states[one]) if box.recipient == two)
    advert = next(advert for advert in active_of(states).adverts if advert.node == one)
    session = active_of(states).session

    assert masking._open(states[two], session, advert, box) == states[two].held[0]
    refused("box-sealed-otherwise", lambda: masking._open(states[three], session, advert, replace(box, recipient=three)))
    refused("box-sealed-otherwise", lambda: masking._open(states[two], digest("another session"), advert, box))


def test_a_box_sent_back_to_its_sender_does_not_open() -> None:
    """Both directions have the same shared secret; the key is of one."""
    states = dealt(5)
    one, two = list(states)[:2]
    boxes = boxes_for(5, one)
    echo = next(box for box in deal(states[one]) if box.recipient == two)
    forged = [replace(echo, sender=two, recipient=one) if box.sender == two else box for box in boxes]

    assert refused("box-sealed-otherwise", lambda: accept_boxes(before_boxes(5), forged)).node == two


def test_a_box_changed_in_any_byte_does_not_open() -> None:
    first, *others = boxes_for(5, node_ids(5)[0])
    for place in range(0, len(first.sealed), 9):
        changed = bytes(byte ^ (at == place) for at, byte in enumerate(first.sealed))
        error = refused(
            "box-sealed-otherwise",
            accept_boxes,
            before_boxes(5),
            [replace(first, sealed=changed), *others],
        )
        assert error.node == first.sender
        assert isinstance(error.__cause__, InvalidTag)


def test_a_box_that_holds_no_shares_is_refused() -> None:
    """Its sender sealed nonsense, properly."""
    states = dealt(5)
    one, two = list(states)[:2]
    adverts = active_of(states).adverts
    key, bound = masking._box_key(states[two], active_of(states).session, adverts[0], sender=two, recipient=one)
    nonsense = Box(two, one, ChaCha20Poly1305(key).encrypt(bytes(12), b"\xff" * 66, bound))
    boxes = [nonsense if box.sender == two else box for box in boxes_for(5, one)]

    assert refused("box-sealed-otherwise", lambda: accept_boxes(before_boxes(5), boxes)).node == two


def test_a_box_for_another_list_of_nodes_does_not_open() -> None:
    """So that nobody delivers unless all on its list hold the same list."""
    node, other = node_ids(7)[:2]
    short = dealt(7, (6,))
    boxes = [next(b for b in deal(short[other]) if b.recipient == node) if b.sender == other else b for b in boxes_for(7, node)]

    assert refused("box-sealed-otherwise", lambda: accept_boxes(before_boxes(7), boxes)).node == other


@pytest.mark.parametrize(
    "spoil", ["one missing", "one twice", "one of a stranger", "one for another", "one of its own", "none"]
)
def test_boxes_other_than_one_from_each_are_refused(spoil: str) -> None:
    node, other = node_ids(5)[:2]
    boxes = boxes_for(5, node)
    spoilt = {
        "one missing": boxes[1:],
        "one twice": [*boxes, boxes[0]],
        "one of a stranger": [*boxes[1:], replace(boxes[0], sender=5)],
        "one for another": [*boxes[1:], replace(boxes[0], recipient=other)],
        "one of its own": [*boxes, replace(boxes[0], sender=node)],
        "none": [],
    }[spoil]

    refused("boxes-missing", lambda: accept_boxes(before_boxes(5), spoilt))


def test_other_boxes_than_before_are_refused() -> None:
    """Its sender dealt again, in another way."""
    states = dealt(5)
    one, two = list(states)[:2]
    liar = replace(states[two], secrets=replace(secrets_of(two), dealing=digest("other")))
    boxes = [next(b for b in deal(liar) if b.recipient == one) if b.sender == two else b for b in boxes_for(5, one)]

    accept_boxes(before_boxes(5), boxes)  # control: they would do, had there been no others
    refused("second-list", lambda: accept_boxes(states[one], boxes))
    assert accept_boxes(states[one], boxes_for(5, one)) == states[one]


# Delivering.


def test_the_same_vector_again_is_the_same_message() -> None:
    state = dealt(5)[node_ids(5)[0]]
    vector = vectors_of([1])[1]

    after, first = deliver(state, vector)
    again, second = deliver(after, vector.copy())

    assert first.to_bytes() == second.to_bytes()
    assert after == again


def test_a_second_vector_is_refused() -> None:
    """The same masks over two vectors show their difference."""
    state, vectors = dealt(5)[node_ids(5)[0]], vectors_of([1, 2])
    after, first = deliver(state, vectors[1])

    refused("second-vector", lambda: deliver(after, vectors[2]))

    # Control: without the refusal.
    _, second = deliver(state, vectors[2])
    assert np.array_equal(second.words - first.words, vectors[2] - vectors[1])


def test_delivering_does_not_touch_what_it_was_given() -> None:
    vector = np.arange(SIZE, dtype=np.uint32)

    deliver(dealt(5)[node_ids(5)[0]], vector)

    assert vector.tolist() == list(range(SIZE))


@pytest.mark.parametrize(
    "vector", [np.zeros(0, np.uint32), np.zeros((2, 3), np.uint32), np.zeros(6, np.int32), np.zeros(6, np.uint64)]
)
def test_what_is_no_row_of_uint32_is_not_delivered(vector: Words) -> None:
    refused("not-a-vector", lambda: deliver(dealt(5)[node_ids(5)[0]], vector))


def test_steps_out_of_turn_are_refused() -> None:
    node = node_ids(5)[0]
    begun = begin(context_of(5), node, secrets_of(node))
    listed = before_boxes(5)
    request = Request(active_of(dealt(5)).session, node_ids(5), ())

    for state in (begun, listed):
        refused("out-of-turn", deliver, state, np.zeros(SIZE, np.uint32))
        refused("out-of-turn", answer_request, state, request)
    refused("out-of-turn", lambda: deal(begun))
    refused("out-of-turn", lambda: accept_boxes(begun, boxes_for(5, node)))


def test_a_node_that_answered_as_dropped_does_not_deliver_any_more() -> None:
    states = dealt(5)
    node, *others = states
    request = Request(active_of(states).session, tuple(others), (node,))
    after, _ = answer_request(states[node], request)

    refused("out-of-turn", lambda: deliver(after, np.zeros(SIZE, np.uint32)))


# The request.


@pytest.fixture
def surviving() -> NodeState:
    """A node of seven that has delivered."""
    return deliver(dealt(7)[node_ids(7)[0]], np.zeros(SIZE, np.uint32))[0]


def request_of(nodes: int, *dropped: int) -> Request:
    """Nodes by place."""
    ids = node_ids(nodes)
    gone = tuple(ids[place] for place in dropped)
    return Request(active_of(dealt(nodes)).session, tuple(node for node in ids if node not in gone), gone)


def test_a_request_at_the_threshold_is_answered_and_below_it_is_not(surviving: NodeState) -> None:
    check_request(surviving, request_of(7, 5, 6))

    refused("too-few-nodes", lambda: answer_request(surviving, request_of(7, 4, 5, 6)))


def test_overlapping_sets_are_refused(surviving: NodeState) -> None:
    request = request_of(7, 6)

    refused("sets-overlap", lambda: answer_request(surviving, replace(request, survivors=node_ids(7))))
    refused("sets-overlap", lambda: answer_request(surviving, replace(request, dropped=node_ids(7)[5:])))


def test_sets_that_are_not_the_active_nodes_are_refused(surviving: NodeState) -> None:
    ids, request = node_ids(7), request_of(7, 6)

    refused("sets-incomplete", lambda: answer_request(surviving, replace(request, dropped=())))
    refused("sets-incomplete", lambda: answer_request(surviving, replace(request, dropped=(5,))))
    refused("sets-incomplete", lambda: answer_request(surviving, replace(request, survivors=(*ids[:5], ids[4], ids[5]))))
    refused("sets-incomplete", lambda: answer_request(surviving, replace(request, dropped=(ids[6], ids[6]))))


def test_a_node_named_often_does_not_make_up_for_those_that_are_missing(surviving: NodeState) -> None:
    ids, request = node_ids(7), request_of(7, 6)

    refused("sets-incomplete", lambda: answer_request(surviving, replace(request, survivors=ids[:1] * 6)))


def test_a_request_about_another_list_is_refused(surviving: NodeState) -> None:
    other = active_of(dealt(7, (6,))).session

    refused("another-session", lambda: answer_request(surviving, replace(request_of(7), session=other)))


def test_a_node_that_delivered_does_not_answer_that_it_dropped_out(surviving: NodeState) -> None:
    refused("untrue-of-this-node", lambda: answer_request(surviving, request_of(7, 0)))


def test_a_node_that_did_not_deliver_does_not_answer_that_it_did() -> None:
    refused("untrue-of-this-node", lambda: answer_request(dealt(7)[node_ids(7)[0]], request_of(7)))


def test_a_second_request_is_refused_and_the_same_one_gets_the_same_answer(surviving: NodeState) -> None:
    after, answer = answer_request(surviving, request_of(7, 6))

    assert answer_request(after, request_of(7, 6)) == (after, answer)
    for other in (request_of(7), request_of(7, 5), request_of(7, 5, 6)):
        refused("second-request", answer_request, after, other)
    assert answer_request(after, request_of(7, 6)) == (after, answer)


@given(st.lists(st.sets(st.integers(1, 6), max_size=3), min_size=1, max_size=6))
@settings(max_examples=30)
def test_however_a_node_is_asked_it_gives_one_share_of_each_node(asked: list[set[int]]) -> None:
    state, _ = deliver(dealt(7)[node_ids(7)[0]], np.zeros(SIZE, np.uint32))
    given_away: set[int] = set()
    for dropped in asked:
        try:
            # From disk each time, as after a crash.
            state, answer = answer_request(NodeState.from_bytes(state.to_bytes()), request_of(7, *dropped))
        except MaskingError:
            continue
        given_away |= {*answer.shares}

    for pair in state.held:
        assert len({pair.mask_key, pair.seed} & given_away) <= 1
    assert len(given_away) in (0, 7)


# The coordinator.


def test_vectors_that_do_not_belong_are_refused() -> None:
    states = dealt(5)
    active = active_of(states)
    first, *others = delivered(states, vectors_of(states)).masked.values()

    def spoilt(vector: Masked) -> Callable[[], object]:
        return lambda: gather(active, [vector, *others], SIZE)

    refused("another-session", spoilt(Masked(digest(), first.node, first.words)))
    refused("stranger", spoilt(Masked(first.session, 5, first.words)))
    refused("doubled", spoilt(others[0]))
    refused("not-a-vector", spoilt(Masked(first.session, first.node, first.words[1:])))
    refused("not-a-vector", spoilt(Masked(first.session, first.node, first.words.astype(np.uint64))))


@pytest.fixture
def answered() -> tuple[Active, Request, list[Answer], Words, list[int]]:
    """Six nodes, of which the last dropped out and five survived, as many as it takes; and the sum."""
    states = dealt(6)
    survivors = list(states)[:5]
    round_ = delivered(states, {n: v for n, v in vectors_of(states).items() if n in survivors})
    request, total = gather(active_of(states), round_.masked.values(), SIZE)
    answers = answers_to(round_.states, request, states)
    return active_of(states), request, answers, total, plain_sum(round_.vectors, survivors)


Answered = tuple[Active, Request, list[Answer], Words, list[int]]


def with_wrong_share(answer: Answer, place: int) -> Answer:
    shares = list(answer.shares)
    shares[place] = (shares[place] + 1) % shamir.PRIME
    return replace(answer, shares=tuple(shares))


@pytest.mark.parametrize("place", [0, 4, 5])
def test_a_wrong_share_is_detected(answered: Answered, place: int) -> None:
    """Of a survivor's seed by its commitment, of the dropped node's mask key by its advert."""
    active, request, answers, total, _ = answered
    spoilt = [with_wrong_share(answers[0], place), *answers[1:5]]

    assert refused("shares-wrong", lambda: unmask(active, request, spoilt, total)).node == active.nodes[place]


@pytest.mark.parametrize("liar", range(6))
def test_one_liar_is_worked_around_if_there_is_an_answer_more_than_needed(answered: Answered, liar: int) -> None:
    active, request, answers, total, expected = answered
    for place in range(6):
        answers[liar] = with_wrong_share(answers[liar], place)

    assert unmask(active, request, answers, total).tolist() == expected


def test_a_commitment_to_another_seed_is_detected() -> None:
    """Its node advertised one seed and shared another."""
    context, nodes = context_of(5), node_ids(5)
    lied = signed(context, replace(adverts_of(context, nodes[:1])[0], commitment=digest("another")))
    active = check_adverts(context, [lied, *adverts_of(context, nodes[1:])])
    states = {node: replace(begin(context, node, secrets_of(node)), active=active) for node in nodes}
    boxes = [box for state in states.values() for box in deal(state)]
    states = {n: accept_boxes(s, [b for b in boxes if b.recipient == n]) for n, s in states.items()}
    round_ = delivered(states, vectors_of(states))
    request, total = gather(active, round_.masked.values(), SIZE)

    error = refused("shares-wrong", lambda: unmask(active, request, answers_to(round_.states, request, nodes), total))
    assert error.node == nodes[0]


def test_answers_that_do_not_belong_are_refused(answered: Answered) -> None:
    active, request, answers, total, _ = answered

    def spoilt(*instead: Answer) -> Callable[[], object]:
        return lambda: unmask(active, request, [*instead, *answers[1:]], total)

    refused("another-request", spoilt(replace(answers[0], request=digest())))
    refused("another-request", spoilt(replace(answers[0], shares=answers[0].shares[1:])))
    refused("stranger", spoilt(replace(answers[0], node=5)))
    refused("doubled", spoilt(answers[1]))
    refused("another-session", lambda: unmask(active, replace(request, session=digest()), answers, total))


def test_unmasking_does_not_touch_what_it_was_given(answered: Answered) -> None:
    active, request, answers, total, expected = answered
    before = total.copy()

    unmask(active, request, answers, total)

    assert np.array_equal(total, before)
    assert unmask(active, request, reversed(answers), total).tolist() == expected


# Numbers.


@pytest.mark.parametrize(("nodes", "step"), [(5, 2.328e-9), (50, 2.328e-8), (1000, 4.657e-7)])
def test_the_resolution_is_as_stated(nodes: int, step: float) -> None:
    assert resolution(1.0, nodes) == pytest.approx(step, rel=1e-3)
    assert resolution(3.0, nodes) == pytest.approx(3 * nodes / 2**31, rel=1e-6)
    one_step = np.array([step * 0.999], np.float32)
    decoded = {decode_sum(encode(one_step, 1.0, nodes, np.random.default_rng(s)), 1.0, nodes, 1)[0] for s in range(50)}
    assert decoded <= {0.0, resolution(1.0, nodes)}


@pytest.mark.parametrize("nodes", [1, 5, 6, 50, 999, MAXIMUM_NODES])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("clip", [1.0, 0.75, 2.0**-20, 3.0])
def test_all_nodes_at_the_clip_do_not_wrap_around(nodes: int, sign: int, clip: float) -> None:
    vector = encode(np.array([sign * clip, 0], np.float32), clip, nodes, np.random.default_rng(0))
    total = np.zeros(2, np.uint32)
    for _ in range(nodes):
        total += vector

    assert decode_sum(total, clip, nodes, nodes)[0] == pytest.approx(sign * nodes * clip, rel=1e-6)
    # Control: with a scale for one node fewer than there are, they would.
    if nodes in (5, 6):
        total += vector
        assert np.sign(total.view(np.int32)[0]) == -sign


def test_the_last_digit_of_a_division_does_not_lift_a_number_over_the_last_level() -> None:
    always_up: Any = SimpleNamespace(random=np.zeros)
    clips = np.random.default_rng(0).uniform(0.5, 2, 500).astype(np.float32)
    assert any(np.float64(clip) / resolution(float(clip), 5) > masking._levels(5) for clip in clips)  # or this proves nothing

    for clip in clips:
        encoded = encode(np.array([clip], np.float32), float(clip), 5, always_up)
        assert encoded.tolist() == [masking._levels(5)]


@given(st.integers(5, 40), st.floats(1e-3, 1e3), st.data())
def test_a_decoded_sum_is_within_a_step_of_each_update(nodes: int, clip: float, data: st.DataObject) -> None:
    rows = hnp.arrays(np.float32, (nodes, 4), elements=st.floats(-2, 2, width=32))
    deltas = [privacy.clip(row * np.float32(clip), clip) for row in data.draw(rows)]
    total = np.zeros(4, np.uint32)
    for place, delta in enumerate(deltas):
        total += encode(delta, clip, nodes, np.random.default_rng(place))

    error = decode_sum(total, clip, nodes, nodes) - np.sum(deltas, axis=0, dtype=np.float64)

    # A step each; and float64's own rounding of numbers of up to nodes · clip.
    assert np.abs(error).max() <= nodes * resolution(clip, nodes) + 1e-12 * nodes * clip


@given(st.integers(-(2**20), 2**20), st.integers(0, 255))
def test_rounding_has_no_bias(whole: int, parts: int) -> None:
    """The mean over every draw of an even grid is the number itself, exactly."""
    number = whole + parts / 256
    draws = np.arange(256) / 256

    rounded = masking._round(np.full(256, number), draws)

    assert rounded.mean() == number
    assert {*rounded.tolist()} <= {math.floor(number), math.ceil(number)}


def test_encoding_draws_anew_for_each_number_and_the_same_for_the_same_generator() -> None:
    step = resolution(1.0, 5)
    halves = np.full(10_000, 0.5 * step, np.float32)

    one, same_again, other = (encode(halves, 1.0, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))

    assert np.array_equal(one, same_again)
    assert not np.array_equal(one, other)
    assert abs(one.mean() - 0.5) < 5 * 0.5 / math.sqrt(10_000)  # five standard deviations


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_not_encoded(odd: float) -> None:
    refused("not-finite", lambda: encode(np.array([0, odd], np.float32), 1.0, 5, np.random.default_rng(0)))


def test_an_update_is_encoded_up_to_the_clip_and_not_beyond() -> None:
    random = np.random.default_rng(0)
    encode(np.array([0.6, 0.8], np.float64).astype(np.float32) * np.float32(0.9999999), 1.0, 5, random)
    encode(np.array([1, 0], np.float32), 1.0, 5, random)

    refused("norm-too-large", lambda: encode(np.array([np.nextafter(np.float32(1), np.float32(2)), 0]), 1.0, 5, random))
    refused("norm-too-large", lambda: encode(np.array([0.8, 0.8], np.float32), 1.0, 5, random))


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_that_is_no_length_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        encode(np.zeros(2, np.float32), clip, 5, np.random.default_rng(0))
    with pytest.raises(ValueError, match="positive and finite"):
        decode_sum(np.zeros(2, np.uint32), clip, 5, 5)


@pytest.mark.parametrize("nodes", [0, MAXIMUM_NODES + 1])
def test_a_number_of_nodes_out_of_bounds_is_refused(nodes: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000 nodes"):
        resolution(1.0, nodes)


@pytest.mark.parametrize("count", [0, 6])
def test_a_sum_over_more_nodes_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 5 nodes"):
        decode_sum(np.zeros(2, np.uint32), 1.0, 5, count)


def test_a_sum_longer_than_its_parts_can_make_it_is_refused() -> None:
    """What masks left in it, or a node beyond the clip, come to."""
    clip, nodes, count = 1.0, 10, 7
    one = encode(np.array([1, 0, 0, 0], np.float32), clip, nodes, np.random.default_rng(0))
    total = one * np.uint32(count)

    decode_sum(total, clip, nodes, count)
    refused("sum-too-large", lambda: decode_sum(total + one, clip, nodes, count))
    refused("sum-too-large", lambda: decode_sum(mask(b"k" * 32, 1000), clip, nodes, count))


# The context.


def test_every_part_of_a_context_is_in_its_digest() -> None:
    context = context_of(6)

    digests = {context.digest, *(other.digest for other in other_contexts().values())}

    assert len(digests) == 1 + len(other_contexts())


def test_a_context_goes_through_bytes_unchanged() -> None:
    for nodes in (5, 50):
        context = replace(context_of(nodes), federation="Zürcher Künstler:innen 🖌️")
        assert Context.from_bytes(context.to_bytes()) == context


KEY: Final = bytes(31)


@pytest.mark.parametrize(
    "change",
    [
        {"federation": ""},
        {"federation": "x" * 101},
        {"federation": "\ud800"},
        {"round": 0},
        {"round": 2**63},
        {"policy": "AB" * 32},
        {"policy": "ab" * 31},
        {"layout": "zz" * 32},
        {"layout": "ab" * 32 + "\n"},
        {"roster": ()},
        {"roster": tuple((n, KEY + bytes([n])) for n in range(4))},
        {"roster": tuple((n, KEY[2:] + n.to_bytes(3, "big")) for n in range(1001))},
        {"roster": tuple((n, KEY + bytes([n])) for n in (0, 1, 2, 4, 3))},
        {"roster": tuple((n, KEY + bytes([at])) for at, n in enumerate((0, 1, 2, 2, 3)))},
        {"roster": tuple((n, KEY + bytes([n % 4])) for n in range(5))},
        {"roster": tuple((n, KEY) for n in range(5))},
        {"roster": tuple((n, KEY + b"xy" + bytes([n])) for n in range(5))},
        {"roster": tuple((n - 1, KEY + bytes([n])) for n in range(5))},
        {"roster": tuple((2**64 - 4 + n, KEY + bytes([n])) for n in range(5))},
    ],
)
def test_a_context_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    refused("context", lambda: replace(context_of(5), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"federation": "x" * 100},
        {"round": 1},
        {"round": 2**63 - 1},
        {"roster": tuple((n, KEY + bytes([n])) for n in range(5))},
        {"roster": tuple((2**64 - 5 + n, KEY + bytes([n])) for n in range(5))},
        {"roster": tuple((n, KEY[1:] + n.to_bytes(2, "big")) for n in range(1000))},
    ],
)
def test_a_context_at_its_bounds_is_taken(change: dict[str, object]) -> None:
    context = replace(context_of(5), **change)  # type: ignore[arg-type]

    assert Context.from_bytes(context.to_bytes()) == context


# Killed at any moment.


def test_a_node_that_is_killed_after_every_step_sends_the_same_bytes() -> None:
    context, nodes = context_of(5), node_ids(5)
    adverts, node = adverts_of(context, nodes), nodes[0]
    boxes = boxes_for(5, node)
    vector = vectors_of([node])[node]
    request = request_of(5, 4)

    def killed(state: NodeState) -> NodeState:
        again = NodeState.from_bytes(state.to_bytes())
        assert again == state
        return again

    state = killed(begin(context, node, secrets_of(node)))
    assert advertise(state, enrolled(node)) == adverts[0]
    state = killed(accept_adverts(state, adverts))
    assert deal(state) == deal(killed(state)) == deal(dealt(5)[node])
    state = killed(accept_boxes(state, boxes))
    after, masked = deliver(state, vector)
    assert deliver(killed(after), vector)[1].to_bytes() == masked.to_bytes()
    after, answer = answer_request(killed(after), request)
    assert answer_request(killed(after), request) == (after, answer)
    refused("second-request", lambda: answer_request(killed(after), request_of(5)))
    refused("second-vector", lambda: deliver(killed(after), vector + np.uint32(1)))


@given(st.data())
def test_a_damaged_state_is_refused_or_is_another_state(data: st.DataObject) -> None:
    raw = bytearray(full_state().to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))

    try:
        state = NodeState.from_bytes(bytes(raw))
    except MaskingError:
        return
    assert state.to_bytes() == bytes(raw)


def test_a_state_with_another_number_of_shares_or_digests_of_another_length_is_refused() -> None:
    state = full_state()
    for wrong in (
        replace(state, held=state.held[1:]),
        replace(state, delivered=b"short"),
        replace(state, answered=bytes(33)),
        replace(state, active=None),
    ):
        refused("malformed", NodeState.from_bytes, wrong.to_bytes())


# Bytes.


def full_state() -> NodeState:
    state, _ = deliver(dealt(5)[node_ids(5)[0]], np.zeros(SIZE, np.uint32))
    return answer_request(state, request_of(5))[0]


ids = st.integers(0, 2**64 - 1)
many_ids = st.lists(ids, max_size=9).map(tuple)
keys = st.binary(min_size=32, max_size=32)
shares_ = st.integers(0, shamir.PRIME - 1)

Message = Advert | Box | Request | Answer | SharePair
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Advert, ids, keys, keys, keys, st.binary(min_size=64, max_size=64)),
    st.builds(Box, ids, ids, st.binary(min_size=82, max_size=82)),
    st.builds(Request, keys, many_ids, many_ids),
    st.builds(Answer, keys, ids, st.lists(shares_, max_size=9).map(tuple)),
    st.builds(SharePair, shares_, shares_),
)


@given(messages)
def test_a_message_goes_through_bytes_unchanged(message: Message) -> None:
    assert type(message).from_bytes(message.to_bytes()) == message


@given(keys, ids, hnp.arrays(np.uint32, st.integers(0, 20)))
def test_a_masked_vector_goes_through_bytes_unchanged(session: bytes, node: int, words: Words) -> None:
    raw = Masked(session, node, words).to_bytes()
    out = Masked.from_bytes(raw, words.size)

    assert len(raw) == 40 + 4 * words.size
    assert (out.session, out.node) == (session, node)
    assert np.array_equal(out.words, words)
    assert out.words.dtype == np.uint32
    assert out.words.flags.writeable
    for wrong in (-11, -1, words.size - 1, words.size + 1, 2**62):
        if wrong != words.size:
            refused("malformed", Masked.from_bytes, raw, wrong)


@given(messages, st.data())
def test_a_message_cut_short_or_drawn_out_is_refused(message: Message, data: st.DataObject) -> None:
    raw, parse = message.to_bytes(), type(message).from_bytes
    cut = data.draw(st.integers(0, len(raw) - 1))
    more = data.draw(st.binary(min_size=1, max_size=40))

    refused("malformed", lambda: parse(raw[:cut]))
    refused("malformed", lambda: parse(raw + more))


PARSERS: Final = (
    Advert.from_bytes,
    Answer.from_bytes,
    Box.from_bytes,
    Context.from_bytes,
    NodeState.from_bytes,
    Request.from_bytes,
    SharePair.from_bytes,
    lambda raw: Masked.from_bytes(raw, 3),
)


@given(st.one_of(st.binary(max_size=300), messages.map(lambda message: message.to_bytes())), st.data())
@settings(max_examples=200)
def test_hostile_bytes_are_refused_or_are_a_message(raw: bytes, data: st.DataObject) -> None:
    spoilt = bytearray(raw)
    if spoilt and data.draw(st.booleans()):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= data.draw(st.integers(1, 255))
    for parse in PARSERS:
        try:
            message = parse(bytes(spoilt))
        except MaskingError:
            continue
        assert message.to_bytes() == bytes(spoilt)


@given(st.data())
def test_a_damaged_context_is_refused_or_is_another_context(data: st.DataObject) -> None:
    raw = bytearray(context_of(5).to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))

    try:
        context = Context.from_bytes(bytes(raw))
    except MaskingError:
        return
    assert context.to_bytes() == bytes(raw)


def test_a_share_beyond_the_field_is_refused() -> None:
    beyond = shamir.PRIME.to_bytes(shamir.SHARE_BYTES, "big")

    refused("malformed", lambda: SharePair.from_bytes(beyond + bytes(shamir.SHARE_BYTES)))
    refused("malformed", lambda: Answer.from_bytes(bytes(40) + b"\x00\x01" + beyond))


def test_messages_are_as_small_as_stated() -> None:
    states = dealt(6)
    state = states[node_ids(6)[0]]
    request = request_of(6)
    after, masked = deliver(state, np.zeros(SIZE, np.uint32))
    _, answer = answer_request(after, request)

    assert {len(advert.to_bytes()) for advert in active_of(states).adverts} == {168}
    assert {len(box.to_bytes()) for box in deal(state)} == {98}
    assert len(masked.to_bytes()) == 40 + 4 * SIZE
    assert len(request.to_bytes()) == 36 + 6 * 8
    assert len(answer.to_bytes()) == 42 + 6 * 33
    longest = Context("\U0001f58c" * 100, 1, "ab" * 32, "cd" * 32, tuple((n, digest(n)) for n in range(1000)))
    assert len(longest.to_bytes()) == 40_476


# What is said aloud.


def test_no_secret_is_in_what_is_printed_of_a_state_or_an_answer() -> None:
    state = full_state()
    _, answer = answer_request(state, request_of(5))
    printed = repr(state) + str(state) + repr(answer) + repr(state.held) + repr(state.secrets)

    own = state.secrets
    for secret in (own.mask_key, own.share_key, own.seed, own.dealing):
        assert repr(secret) not in printed
        assert secret.hex() not in printed
    for pair in state.held:
        assert str(pair.mask_key) not in printed
        assert str(pair.seed) not in printed


def test_an_errors_text_is_its_reason_and_nothing_else() -> None:
    for reason in get_args(Reason):
        error = MaskingError(reason, node=5)
        assert str(error) == reason
        assert error.args == (reason,)
        assert isinstance(error, ValueError)


def test_secrets_are_drawn_anew_each_time() -> None:
    one, other = Secrets.generate(), Secrets.generate()
    drawn = {value for s in (one, other) for value in (s.mask_key, s.share_key, s.seed, s.dealing)}

    assert len(drawn) == 8
    assert {len(value) for value in drawn} == {32}
