"""What a federation asks of its members: within its ranges, signed as a policy and as nothing else, and said in words."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export import policy, settings, signing
from export.errors import IntegrityError
from export.files import digest_of
from export.policy import POLICY_MAX_BYTES, RANGES, VEILED_MINIMUM_NODES, Policy
from export.settings import SettingsError
from export.signing import MANIFEST, SIGNATURES, Ed25519Signatures, Trust
from tests import releases
from tests.releases import KEY, TRUST, key_number, public

POLICY: Final = Policy("guild", 3, "style-studio")
SIGNED: Final = policy.sign(POLICY, KEY)
WHOLE: Final = {"version", "minimum_nodes", "rounds", "steps"}


def toml(**changes: Any) -> bytes:
    """A policy's text, whatever it says."""
    plain = {field.name: getattr(POLICY, field.name) for field in fields(Policy)} | changes
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in plain.items()).encode()


def close_to(number: float, key: str) -> float:
    """So far beyond an end of a range that it is noticed."""
    return 1 if key in WHOLE else number * 1e-9


policies = st.builds(
    Policy,
    federation=st.just("guild"),
    version=st.integers(1, 1_000_000),
    modality=st.sampled_from(["style-studio", "style-kiosk", 'a "b" \\ c\n']),
    visibility=st.just("open"),
    minimum_nodes=st.integers(1, 10_000),
    rounds=st.integers(1, 1_000_000),
    steps=st.integers(1, 100_000),
    deadline_s=st.floats(1, 7 * 24 * 3600) | st.integers(1, 3600),
    clip=st.floats(1e-3, 1e4) | st.integers(1, 10),
    noise=st.floats(0, 100) | st.integers(0, 100),
    keep=st.floats(1e-3, 1) | st.just(1),
    aggregation=st.sampled_from(["mean", "robust"]),
) | st.builds(
    Policy,
    federation=st.just("guild"),
    version=st.integers(1, 9),
    modality=st.just("style-studio"),
    visibility=st.just("veiled"),
    minimum_nodes=st.integers(VEILED_MINIMUM_NODES, 20),
)


# --- What a policy may say ------------------------------------------------------------------------------------------------


def test_what_is_not_said_is_the_usual() -> None:
    assert policy.parse(b'federation = "guild"\nversion = 3\nmodality = "style-studio"\n') == POLICY


@pytest.mark.parametrize("missing", ["federation", "version", "modality"])
def test_a_policy_without_a_name_a_version_or_a_kind_of_art_is_none(missing: str) -> None:
    lines = toml().splitlines(keepends=True)

    with pytest.raises(SettingsError, match=f"lacks a value; keys not set: .*{missing}"):
        policy.parse(b"".join(line for line in lines if not line.startswith(missing.encode())))


def test_every_number_of_a_policy_has_a_range() -> None:
    numbers = {field.name for field in fields(Policy) if field.type in ("int", "float")}

    assert set(RANGES) == numbers


def test_no_range_lets_in_what_means_nothing() -> None:
    assert RANGES["keep"][1] == 1
    assert RANGES["noise"][0] == 0
    assert all(low > 0 for key, (low, _) in RANGES.items() if key != "noise")
    assert all(low < high < float("inf") for low, high in RANGES.values())


@pytest.mark.parametrize("key", RANGES)
def test_the_ends_of_each_range_and_what_lies_between_are_allowed(key: str) -> None:
    low, high = RANGES[key]
    for value in (low, low + close_to(low or 1, key), high - close_to(high, key), high):
        said = int(value) if key in WHOLE else value

        assert getattr(policy.parse(toml(**{key: said})), key) == said


@pytest.mark.parametrize("key", RANGES)
def test_what_lies_beyond_the_ends_of_each_range_is_told_with_the_range(key: str) -> None:
    low, high = RANGES[key]
    for value in (low - close_to(low or 1, key), high + close_to(high, key)):
        said = int(value) if key in WHOLE else value

        with pytest.raises(SettingsError, match=re.escape(f"has {key} = {said}; allowed is {low:g} to {high:g}")):
            policy.parse(toml(**{key: said}))


@pytest.mark.parametrize("key", sorted(set(RANGES) - WHOLE))
@pytest.mark.parametrize("odd", [b"nan", b"inf", b"-inf", b"-nan"])
def test_a_number_that_is_none_is_refused(key: str, odd: bytes) -> None:
    raw = re.sub(rb"(?m)^%s = .*$" % key.encode(), b"%s = %s" % (key.encode(), odd), toml())

    with pytest.raises(SettingsError, match=f"has {key} = "):
        policy.parse(raw)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"colour": 3}, "has an unknown key 'colour'; known are federation, version"),
        ({"federation": 3}, "has federation = 3, which is not of type str"),
        ({"version": "3"}, "has version = '3', which is not of type int"),
        ({"version": True}, "has version = True, which is not of type int"),
        ({"steps": 60.0}, "has steps = 60.0, which is not of type int"),
        ({"clip": "10"}, "has clip = '10', which is not of type float"),
        ({"keep": True}, "has keep = True, which is not of type float"),
        ({"noise": [0.1]}, "has noise = [0.1], which is not of type float"),
        ({"visibility": 1}, "has visibility = 1, which is not of type str"),
        ({"visibility": "closed"}, "has visibility = 'closed'; allowed are open and veiled"),
        ({"visibility": "Open"}, "has visibility = 'Open'; allowed are open and veiled"),
        ({"visibility": ""}, "has visibility = ''; allowed are open and veiled"),
        ({"aggregation": "median"}, "has aggregation = 'median'; allowed are mean and robust"),
        ({"aggregation": ""}, "has aggregation = ''; allowed are mean and robust"),
    ],
)
def test_what_no_policy_says_is_told_by_its_key_and_what_it_may_be(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(reason)):
        policy.parse(toml(**changes))


@pytest.mark.parametrize("raw", [b"", b"version =", b"\xff", b"[federation]\nname = 3\n", toml() + b"version = 4\n"])
def test_what_is_no_settings_file_is_no_policy(raw: bytes) -> None:
    with pytest.raises(SettingsError):
        policy.parse(raw)


@pytest.mark.parametrize("aggregation", ["mean", "robust"])
def test_an_open_policy_takes_either_way_of_averaging_and_two_nodes(aggregation: str) -> None:
    found = policy.parse(toml(visibility="open", aggregation=aggregation, minimum_nodes=2))

    assert (found.visibility, found.aggregation, found.minimum_nodes) == ("open", aggregation, 2)


@pytest.mark.parametrize("nodes", [VEILED_MINIMUM_NODES, VEILED_MINIMUM_NODES + 1])
def test_a_veiled_policy_takes_five_nodes_or_more(nodes: int) -> None:
    assert VEILED_MINIMUM_NODES == 5
    assert policy.parse(toml(visibility="veiled", minimum_nodes=nodes)).minimum_nodes == nodes


@pytest.mark.parametrize("nodes", [1, 2, VEILED_MINIMUM_NODES - 1])
def test_a_veiled_policy_of_fewer_nodes_is_refused(nodes: int) -> None:
    with pytest.raises(SettingsError, match="is veiled, which takes minimum_nodes = 5 or more"):
        policy.parse(toml(visibility="veiled", minimum_nodes=nodes))


def test_a_veiled_policy_that_would_look_at_each_update_is_refused() -> None:
    with pytest.raises(SettingsError, match='nothing but aggregation = "mean" can be had'):
        policy.parse(toml(visibility="veiled", minimum_nodes=5, aggregation="robust"))


# --- Signing and checking -------------------------------------------------------------------------------------------------


@given(policies)
def test_what_is_signed_is_what_is_read(asked: Policy) -> None:
    signed = policy.sign(asked, KEY)

    found = policy.verify(signed.raw, signed.signatures, TRUST)

    assert found == signed
    assert found.policy == asked
    assert found.digest == digest_of(signed.raw)


@given(policies)
def test_a_policy_travels_as_json_byte_for_byte(asked: Policy) -> None:
    signed = policy.sign(asked, KEY)

    raw, signatures = policy.from_plain(json.loads(json.dumps(policy.to_plain(signed))))

    assert (raw, signatures) == (signed.raw, signed.signatures)


@given(policies)
def test_the_same_policy_is_the_same_bytes_and_has_one_digest(asked: Policy) -> None:
    signed = policy.sign(asked, KEY)

    assert signed.raw == settings.text(asked)
    assert policy.sign(policy.parse(signed.raw), KEY) == signed  # a coordinator that reads and signs again says the same
    assert policy.sign(asked, key_number(2)).digest == signed.digest


@pytest.mark.parametrize("field", [field.name for field in fields(Policy)])
def test_another_policy_has_another_digest(field: str) -> None:
    value: Any = getattr(POLICY, field)
    change: dict[str, Any] = {field: f"{value}s" if isinstance(value, str) else value + 1}

    assert policy.sign(replace(POLICY, **change), KEY).digest != SIGNED.digest


def test_comments_of_whoever_wrote_the_policy_count_as_what_was_signed() -> None:
    raw = SIGNED.raw + b"# as we said in spring\n"

    found = policy.verify(raw, signing.sign_as(policy._CONTEXT, raw, KEY), TRUST)

    assert found.policy == POLICY
    assert found.digest != SIGNED.digest


@given(st.integers(0, len(SIGNED.raw) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused(at: int, by: int) -> None:
    raw = bytearray(SIGNED.raw)
    raw[at] ^= by

    with pytest.raises(IntegrityError, match="the policy is not signed by 'guild'") as caught:
        policy.verify(bytes(raw), SIGNED.signatures, TRUST)

    assert "Do not use it" in caught.value.advice


@pytest.mark.parametrize("change", [lambda raw: raw + b"\n", lambda raw: raw[:-1], lambda raw: b"\n" + raw, lambda _: b""])
def test_a_policy_that_is_longer_or_shorter_than_what_was_signed_is_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(IntegrityError, match="not signed"):
        policy.verify(change(SIGNED.raw), SIGNED.signatures, TRUST)


def test_a_policy_that_another_key_signed_is_refused() -> None:
    signed = policy.sign(POLICY, key_number(2))

    with pytest.raises(IntegrityError, match="not signed by 'guild'"):
        policy.verify(signed.raw, signed.signatures, TRUST)


def test_a_policy_needs_as_many_signatures_as_the_trust_says() -> None:
    two = Trust("guild", (public(KEY), public(key_number(2))), threshold=2)
    one, other = (json.loads(policy.sign(POLICY, key).signatures)["signatures"] for key in (KEY, key_number(2)))

    assert policy.verify(SIGNED.raw, json.dumps({"signatures": one | other}).encode(), two).policy == POLICY
    with pytest.raises(IntegrityError, match="not signed"):
        policy.verify(SIGNED.raw, SIGNED.signatures, two)


def test_another_federations_policy_is_refused_though_our_key_signed_it() -> None:
    signed = policy.sign(replace(POLICY, federation="others"), KEY)

    with pytest.raises(IntegrityError, match="the policy is another federation's"):
        policy.verify(signed.raw, signed.signatures, TRUST)


@pytest.mark.parametrize("raw", [b"", b"nonsense", toml(steps=0), toml(visibility="closed"), toml(secret_clause=1)])
def test_what_the_federation_signed_and_this_program_cannot_read_is_refused_with_the_advice_to_update(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"the policy (lacks|cannot|has)") as caught:
        policy.verify(raw, signing.sign_as(policy._CONTEXT, raw, KEY), TRUST)

    assert "Update Sfumato" in caught.value.advice


def test_a_policy_as_long_as_may_be_is_read() -> None:
    raw = SIGNED.raw + b"#" * (POLICY_MAX_BYTES - len(SIGNED.raw))

    assert policy.verify(raw, signing.sign_as(policy._CONTEXT, raw, KEY), TRUST).policy == POLICY


def test_a_policy_that_is_too_long_is_refused_before_anybody_looks_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = SIGNED.raw + b"#" * (POLICY_MAX_BYTES + 1 - len(SIGNED.raw))
    signatures = signing.sign_as(policy._CONTEXT, raw, KEY)
    monkeypatch.setattr(policy, "require_signed", lambda *_: pytest.fail("its signature was looked at"))
    monkeypatch.setattr(policy, "parse", lambda *_: pytest.fail("it was read"))

    with pytest.raises(IntegrityError, match="the policy is too long") as caught:
        policy.verify(raw, signatures, TRUST)

    assert "Ask the coordinator" in caught.value.advice


def test_a_policy_is_not_read_before_its_signature_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "parse", lambda *_: pytest.fail("it was read"))

    with pytest.raises(IntegrityError, match="not signed"):
        policy.verify(toml(steps=0), SIGNED.signatures, TRUST)


@pytest.mark.parametrize("signatures", [b"", b"[]", b'{"signatures": 3}', b'{"signatures": {"x": "not base64!"}}', b"\xff"])
def test_signatures_that_cannot_be_read_are_none(signatures: bytes) -> None:
    with pytest.raises(IntegrityError, match="signature file cannot be read"):
        policy.verify(SIGNED.raw, signatures, TRUST)


# --- One key signs policies and releases, and neither signature serves as the other -----------------------------------------


def test_a_signature_over_a_release_is_none_over_a_policy() -> None:
    with pytest.raises(IntegrityError, match="the policy is not signed"):
        policy.verify(SIGNED.raw, signing.sign(SIGNED.raw, KEY), TRUST)


def test_a_signature_over_a_policy_is_none_over_a_release(tmp_path: Path) -> None:
    published = releases.publish(tmp_path / "release")
    manifest = (published.folder / MANIFEST).read_bytes()
    Ed25519Signatures().verify(published.folder, TRUST)  # as it was published it is believed

    (published.folder / SIGNATURES).write_bytes(signing.sign_as(policy._CONTEXT, manifest, KEY))

    with pytest.raises(IntegrityError, match="the release is not signed"):
        Ed25519Signatures().verify(published.folder, TRUST)


def test_neither_context_begins_with_the_other() -> None:
    assert not policy._CONTEXT.startswith(signing._CONTEXT)
    assert not signing._CONTEXT.startswith(policy._CONTEXT)


# --- As JSON ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        "policy",
        {},
        {"policy": "x"},
        {"signatures": "x"},
        {"policy": "x", "signatures": "x", "more": "x"},
        {"policy": 3, "signatures": "x"},
        {"policy": "x", "signatures": None},
        {"policy": b"x", "signatures": "x"},
        {"policy": ["x"], "signatures": "x"},
        {"policy": "\ud800", "signatures": "x"},
        {"policy": "x", "signatures": "\udfff"},
    ],
)
def test_json_that_is_no_signed_policy_is_refused(plain: object) -> None:
    with pytest.raises(ValueError, match=r"no signed policy|surrogates"):
        policy.from_plain(plain)


# --- In words ---------------------------------------------------------------------------------------------------------------


def words(**changes: Any) -> str:
    return "\n".join(policy.in_words(replace(POLICY, **changes)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"federation": "the guild of St Luke"}, "You train a shared body for the guild of St Luke."),
        ({"version": 17}, "version 17"),
        ({"minimum_nodes": 13}, "Fewer than 13 artists' updates are never averaged"),
        ({"rounds": 123}, "You agree to 123 rounds"),
        ({"steps": 77}, "trains on 77 batches"),
        ({"deadline_s": 432.5}, "not waited for beyond 432.5 s"),
        ({"clip": 3.25}, "at most 3.25 in length"),
        ({"noise": 0.125}, "Noise of 12.5 % of that length is added on your machine first"),
        ({"noise": 0.0}, "No noise is added"),
        ({"keep": 0.07}, "the 7 % of its numbers that moved furthest"),
        ({"visibility": "open"}, "The coordinator sees your update"),
        ({"visibility": "veiled"}, "The coordinator sees the sum of all updates and not yours alone"),
        ({"aggregation": "mean"}, "Every artist counts the same"),
        ({"aggregation": "robust"}, "their geometric median is taken"),
    ],
)
def test_the_words_say_what_binds(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in words(**changes)


@pytest.mark.parametrize("field", [field.name for field in fields(Policy) if field.name != "modality"])
def test_whoever_changes_what_binds_changes_the_words(field: str) -> None:
    other: dict[str, Any] = {"visibility": "veiled", "aggregation": "robust", "federation": "others", "noise": 0.001}
    value = other[field] if field in other else getattr(POLICY, field) * 1.5
    changed = int(value) if field in WHOLE else value

    assert words(**{field: changed}) != words()


@given(policies)
def test_every_number_of_any_policy_stands_in_its_words(asked: Policy) -> None:
    said = "\n".join(policy.in_words(asked))

    shown = [asked.version, asked.minimum_nodes, asked.rounds, asked.steps, asked.deadline_s, asked.clip]
    shown += [100 * asked.keep] if asked.visibility == "open" else []
    for number in [*shown, *([100 * asked.noise] if asked.noise else [])]:
        text = str(number) if isinstance(number, int) else f"{number:g}"
        assert re.search(rf"(?<![\d.]){re.escape(text)}(?![\d])", said), text


@pytest.mark.parametrize(
    ("visibility", "beside"),
    [
        ("open", "the mean loss before and after, the number of steps, and your signature"),
        ("veiled", "keys and shares made for this round alone, and your signature. No loss is told"),
    ],
)
def test_what_always_holds_is_always_said(visibility: str, beside: str) -> None:
    said = words(visibility=visibility, minimum_nodes=5)

    assert "Your works and your style code stay on your machine" in said
    assert "You can leave at any time" in said
    assert beside in said
