"""What every registered kind of art must keep to. A new one is tested by existing."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models import registry
from models.contract import Dtype, Frame, Lessons, Medium, Modality, Sampler, Score, Signature, SignatureError, TensorSpec
from models.state import load_inplace, private_arrays, shared_arrays
from models.training import Plan, fit
from tests.tiny import glasses, lessons_of, material_of, shaken, small, works_of

STEPS = 12


@pytest.fixture(params=registry.modalities())
def modality(request: pytest.FixtureRequest) -> Modality[Any, Any]:
    return small(registry.find(request.param))


@pytest.fixture
def lessons(modality: Modality[Any, Any]) -> Lessons[Any]:
    return lessons_of(modality)


def tensors_in(value: object) -> list[Tensor]:
    """Every tensor inside a batch or a tuple of arguments."""
    if isinstance(value, nn.Module):
        return []
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if is_dataclass(value):
        return [t for field in fields(value) for t in tensors_in(getattr(value, field.name))]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors_in(item)]
    if isinstance(value, list | tuple):
        return [t for item in value for t in tensors_in(item)]
    return []


def are_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def mean_loss(modality: Modality[Any, Any], net: nn.Module, lessons: Lessons[Any]) -> float:
    """Over all objectives and a few fixed batches, on a copy: a loss may teach running statistics."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        losses = [o.loss(net, lessons.batch(step)).item() for o in modality.objectives for step in range(4)]
    return sum(losses) / len(losses)


def test_a_modality_is_found_by_the_name_it_gives_itself(modality: Modality[Any, Any]) -> None:
    assert isinstance(modality, Modality)
    assert modality.name == registry.find(modality.name).name


def test_the_same_step_of_the_same_seed_gives_the_same_batch(modality: Modality[Any, Any]) -> None:
    one, other = lessons_of(modality), lessons_of(modality)

    for step in (0, 1, 7, 10**6):
        assert are_equal(tensors_in(one.batch(step)), tensors_in(other.batch(step)))
    # Asked again, and out of order.
    assert are_equal(tensors_in(one.batch(1)), tensors_in(other.batch(1)))


def test_another_step_or_another_seed_gives_another_batch(modality: Modality[Any, Any]) -> None:
    lessons, others = lessons_of(modality), lessons_of(modality, seed=6)

    assert not are_equal(tensors_in(lessons.batch(0)), tensors_in(lessons.batch(1)))
    assert not are_equal(tensors_in(lessons.batch(0)), tensors_in(others.batch(0)))


def test_the_exam_is_the_same_each_time(lessons: Lessons[Any]) -> None:
    first, second = list(lessons.exam()), list(lessons.exam())

    assert first
    assert are_equal(tensors_in(first), tensors_in(second))


def test_the_same_seed_builds_the_same_network_and_another_seed_another(modality: Modality[Any, Any]) -> None:
    one, same, other = modality.build(1, codes=2), modality.build(1, codes=2), modality.build(2, codes=2)

    assert are_equal(tensors_in(one.state_dict()), tensors_in(same.state_dict()))
    assert not are_equal(tensors_in(one.state_dict()), tensors_in(other.state_dict()))


def test_training_makes_the_loss_smaller(modality: Modality[Any, Any], lessons: Lessons[Any]) -> None:
    net = modality.build(0, codes=2)
    with torch.no_grad():  # what a network observes of itself, it has observed by then
        for objective, step in itertools.product(modality.objectives, range(4)):
            objective.loss(net, lessons.batch(step))
    before = mean_loss(modality, net, lessons)

    fit(net, modality, lessons, Plan(steps=10 * STEPS))

    assert mean_loss(modality, net, lessons) < 0.95 * before


def test_body_and_codes_are_both_trained(modality: Modality[Any, Any], lessons: Lessons[Any]) -> None:
    net = modality.build(0, codes=2)
    before = copy.deepcopy(net.state_dict())

    fit(net, modality, lessons, Plan(steps=STEPS))

    after = net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(before)


def test_a_tensor_is_either_shared_or_private_and_both_kinds_exist(modality: Modality[Any, Any]) -> None:
    net = modality.build(0, codes=2)
    shared, private = shared_arrays(modality, net), private_arrays(modality, net)

    assert set(shared) == {name for name in net.state_dict() if modality.is_shared(name)}
    assert set(shared) | set(private) == set(net.state_dict())
    assert not set(shared) & set(private)
    assert shared
    assert private


def test_the_body_does_not_depend_on_how_many_codes_a_machine_holds(modality: Modality[Any, Any]) -> None:
    one = shared_arrays(modality, modality.build(0, codes=1))
    many = shared_arrays(modality, modality.build(0, codes=7))

    assert {name: array.shape for name, array in one.items()} == {name: array.shape for name, array in many.items()}


@pytest.mark.parametrize("name", ["", "nonsense", "stemcell.weight", "x.stem.weight", "../stem"])
def test_a_name_the_network_does_not_have_is_not_shared(modality: Modality[Any, Any], name: str) -> None:
    assert not modality.is_shared(name)


def test_a_body_and_private_tensors_make_the_network_again(modality: Modality[Any, Any]) -> None:
    net, other = modality.build(1, codes=2), modality.build(2, codes=2)

    load_inplace(other, shared_arrays(modality, net) | private_arrays(modality, net))

    assert are_equal(tensors_in(net.state_dict()), tensors_in(other.state_dict()))


def distance(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """The largest difference between two states."""
    return max((some[name] - others[name]).abs().max().item() for name in some)


def constrained(modality: Modality[Any, Any], net: nn.Module) -> dict[str, Tensor]:
    """The state after a copy was brought back to what is allowed."""
    net = copy.deepcopy(net)
    modality.constrain_inplace(net)
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_a_fresh_and_a_trained_network_are_within_what_is_allowed(modality: Modality[Any, Any], lessons: Lessons[Any]) -> None:
    net = modality.build(0, codes=2)
    assert distance(constrained(modality, net), net.state_dict()) < 1e-6

    fit(net, modality, lessons, Plan(steps=STEPS))

    # What constraining once more changes is rounding: float32 keeps seven digits of weights below one.
    assert distance(constrained(modality, net), net.state_dict()) < 1e-6


def test_suiting_a_code_to_its_works_touches_nothing_but_that_code(modality: Modality[Any, Any], lessons: Lessons[Any]) -> None:
    net = shaken(modality.build(0, codes=2))
    shared, codes = copy.deepcopy(shared_arrays(modality, net)), modality.codes(net)

    modality.suit_inplace(net, 1, [])
    assert np.array_equal(modality.codes(net), codes)
    modality.suit_inplace(net, 1, [lessons.batch(step) for step in range(4)])

    assert all(np.array_equal(array, shared[name]) for name, array in shared_arrays(modality, net).items())
    assert np.array_equal(modality.codes(net)[0], codes[0])
    assert np.isfinite(modality.codes(net)).all()


def test_what_is_allowed_is_linear_so_that_averaged_bodies_are_allowed_too(modality: Modality[Any, Any]) -> None:
    """Two arbitrary networks: to constrain their mean is to take the mean of the constrained ones."""
    one, other, mean = (shaken(modality.build(seed, codes=1), seed) for seed in (1, 2, 3))
    halfway = {name: (one.state_dict()[name] + other.state_dict()[name]) / 2 for name in one.state_dict()}
    mean.load_state_dict(halfway)

    expected = {name: (tensor + constrained(modality, other)[name]) / 2 for name, tensor in constrained(modality, one).items()}

    assert distance(constrained(modality, mean), expected) < 1e-5


def test_a_score_is_finite_and_training_brings_the_style_nearer(modality: Modality[Any, Any], lessons: Lessons[Any]) -> None:
    net = modality.build(0, codes=2)
    before = modality.score(net, lessons.exam())

    fit(net, modality, lessons, Plan(steps=10 * STEPS))  # the first from random weights go astray now and then

    after = modality.score(net, lessons.exam())
    assert isinstance(after, Score)
    assert after.style >= 0
    assert -1 <= after.content <= 1
    assert after.style < before.style


def test_scoring_and_painting_leave_the_network_as_it_was(modality: Modality[Any, Any], lessons: Lessons[Any]) -> None:
    net = modality.build(0, codes=2)
    before = tensors_in(copy.deepcopy(net.state_dict()))

    modality.score(net, lessons.exam())
    modality.graph(net)(*example(modality.signature, modality.frame))

    assert are_equal(before, tensors_in(net.state_dict()))


def example(signature: Signature, edge: Frame) -> tuple[Tensor, Tensor]:
    """Valid graph inputs with a frame of no margin, and 3 and 4 multiples in the free dimensions."""
    sizes = iter((3 * edge.multiple + 2 * edge.used, 4 * edge.multiple + 2 * edge.used))
    content, code = (
        torch.ones([d or next(sizes) for d in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in (signature.content, signature.code)
    )
    return content, code


def test_the_exact_graph_keeps_its_signature(modality: Modality[Any, Any]) -> None:
    signature = modality.signature
    net = modality.build(0, codes=1)
    if signature.medium != "image":
        pytest.fail("say here what the graph of this medium gives for what it takes")

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx.ops, "symbolic", eager_instance_norm)
        content, code = example(signature, modality.frame)
        output = modality.graph(net)(content, code)

    assert output.dtype == getattr(torch, signature.output.dtype)
    used = 2 * modality.frame.used
    assert output.shape == (content.shape[0], content.shape[1] - used, content.shape[2] - used, content.shape[3])
    assert all(want in (None, got) for want, got in zip(signature.output.shape, output.shape, strict=True))


def eager_instance_norm(domain_type: str, inputs: tuple[Tensor, ...], attributes: Mapping[str, float], **_: Any) -> Tensor:
    """What ONNX says an InstanceNormalization is; torch's stand-in for it computes nothing outside an export."""
    assert domain_type == "InstanceNormalization"
    return nn.functional.instance_norm(inputs[0], weight=inputs[1], bias=inputs[2], eps=attributes["epsilon"])


# Private works. What "no private work enters the network" means here is non-interference: with the network held as it
# is, swap every private work for another, and not one bit of what enters any part of the network may change.


@contextmanager
def recorded(net: nn.Module) -> Iterator[list[Tensor]]:
    """Every tensor that enters the network or a part of it while the block runs."""
    entered: list[Tensor] = []

    def listen(_module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        entered.extend(tensors_in(arguments))
        entered.extend(tensors_in(named))

    handles = [module.register_forward_pre_hook(listen, with_kwargs=True) for module in net.modules()]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def inputs_seen(modality: Modality[Any, Any], make_lessons: Callable[[], Lessons[Any]]) -> list[Tensor]:
    """All that enters a fixed network while lessons are made, its losses taken and its exam sat."""
    net = modality.build(0, codes=2)
    with recorded(net) as entered, torch.no_grad():
        lessons = make_lessons()
        for step in range(4):
            for objective in modality.objectives:
                objective.loss(net, lessons.batch(step))
        modality.score(net, lessons.exam())
    return entered


def test_no_bit_of_a_private_work_is_an_input_of_the_network(modality: Modality[Any, Any]) -> None:
    seen = inputs_seen(modality, lambda: lessons_of(modality, works_seed=1))
    seen_with_other_works = inputs_seen(modality, lambda: lessons_of(modality, works_seed=2))

    assert seen
    assert are_equal(seen, seen_with_other_works)


def test_the_recorder_would_notice_a_private_work_among_the_inputs(modality: Modality[Any, Any]) -> None:
    """The positive control: the same works, fed as material, are seen at once."""

    def leaking(seed: int) -> Callable[[], Lessons[Any]]:
        works = works_of(modality.signature.medium, seed)
        return lambda: modality.lessons([[], works], works, glasses(modality), 5)

    assert not are_equal(inputs_seen(modality, leaking(1)), inputs_seen(modality, leaking(2)))


def test_the_other_works_used_above_do_make_a_difference_to_the_loss(modality: Modality[Any, Any]) -> None:
    """The second control: the works are not simply ignored."""
    net = modality.build(0, codes=2)

    assert mean_loss(modality, net, lessons_of(modality, works_seed=1)) != mean_loss(
        modality, net, lessons_of(modality, works_seed=2)
    )


def test_what_is_fed_while_training_is_the_material_whatever_the_works(modality: Modality[Any, Any]) -> None:
    """As above, but with the optimiser at work: the code may learn, the first argument must not change."""

    def fed(works_seed: int) -> list[Tensor]:
        net, seen = modality.build(0, codes=2), []
        net.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0].detach().clone()))
        fit(net, modality, lessons_of(modality, works_seed=works_seed), Plan(steps=6))
        return seen

    one, other = fed(1), fed(2)
    assert one
    assert are_equal(one, other)


def test_lessons_do_not_keep_the_works(modality: Modality[Any, Any]) -> None:
    """They become target statistics at once; nothing of their size is held on to."""
    works = works_of(modality.signature.medium, 1)
    lessons = modality.lessons([works], material_of(modality.signature.medium), glasses(modality), 0)
    before = tensors_in(lessons.batch(0))

    for work in works:
        work[:] = 0

    assert are_equal(before, tensors_in(lessons.batch(0)))


# Signatures as plain data.


def plain_signature() -> dict[str, Any]:
    picture = {"name": "photo", "dtype": "uint8", "shape": [1, None, None, 3]}
    return {
        "medium": "image",
        "sampler": "feed-forward",
        "content": picture,
        "code": {"name": "code", "dtype": "float32", "shape": [1, 812]},
        "output": {**picture, "name": "picture"},
    }


def test_the_signature_of_a_modality_survives_json(modality: Modality[Any, Any]) -> None:
    plain = json.loads(json.dumps(modality.signature.to_plain()))

    assert Signature.from_plain(plain) == modality.signature


specs = st.builds(
    TensorSpec,
    st.from_regex(r"[a-z_][a-z0-9_]{0,63}", fullmatch=True).filter(str.isidentifier),
    st.sampled_from(get_args(Dtype)),
    st.lists(st.none() | st.integers(1, 2**20 - 1), max_size=5).map(tuple),
)


@given(
    st.builds(
        Signature,
        st.sampled_from(get_args(Medium)),
        st.sampled_from(get_args(Sampler)),
        specs,
        specs,
        specs,
    )
)
def test_any_valid_signature_survives_json(signature: Signature) -> None:
    assert Signature.from_plain(json.loads(json.dumps(signature.to_plain()))) == signature


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("medium", "smell", "unknown to this version"),
        ("medium", ["image"], "unknown to this version"),
        ("sampler", "diffusion", "unknown to this version"),
        ("sampler", None, "unknown to this version"),
        ("content", None, "exactly name, dtype and shape"),
        ("content", [], "exactly name, dtype and shape"),
    ],
)
def test_a_signature_with_a_bad_field_is_refused(field: str, value: object, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        Signature.from_plain({**plain_signature(), field: value})


@pytest.mark.parametrize("field", sorted(plain_signature()))
def test_a_signature_without_one_of_its_fields_is_refused(field: str) -> None:
    plain = plain_signature()
    del plain[field]

    with pytest.raises(SignatureError, match="exactly the fields"):
        Signature.from_plain(plain)


def test_a_signature_with_a_field_too_many_is_refused() -> None:
    with pytest.raises(SignatureError, match="exactly the fields"):
        Signature.from_plain({**plain_signature(), "entry_point": "os.system"})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": ""}, "not a tensor name"),
        ({"name": "a/b"}, "not a tensor name"),
        ({"name": "n" * 65}, "not a tensor name"),
        ({"name": 7}, "not a tensor name"),
        ({"dtype": "object"}, "unknown element type"),
        ({"dtype": None}, "unknown element type"),
        ({"shape": "13"}, "not a shape"),
        ({"shape": None}, "not a shape"),
        ({"shape": [0]}, "not a shape"),
        ({"shape": [-1]}, "not a shape"),
        ({"shape": [2**20]}, "not a shape"),
        ({"shape": [1.0]}, "not a shape"),
        ({"shape": [True]}, "not a shape"),
        ({"extra": 1}, "exactly name, dtype and shape"),
    ],
)
@pytest.mark.parametrize("role", ["content", "code", "output"])
def test_a_signature_with_a_bad_tensor_is_refused(role: str, change: Mapping[str, object], reason: str) -> None:
    plain = plain_signature()

    with pytest.raises(SignatureError, match=reason):
        Signature.from_plain({**plain, role: {**plain[role], **change}})


def test_a_tensor_name_of_64_characters_and_a_dimension_just_below_the_limit_are_accepted() -> None:
    plain = {**plain_signature(), "code": {"name": "n" * 64, "dtype": "int64", "shape": [2**20 - 1]}}

    assert Signature.from_plain(plain).code == TensorSpec("n" * 64, "int64", (2**20 - 1,))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(plain_signature())), json_values)
def test_whatever_stands_in_a_field_nothing_but_a_signature_error_comes_of_it(field: str, value: object) -> None:
    try:
        signature = Signature.from_plain({**plain_signature(), field: value})
    except SignatureError:
        return
    assert signature.to_plain()[field] == value
