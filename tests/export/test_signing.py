"""Trust on disk, the parts of a signature, and what a verified release lets one read."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from export.errors import IntegrityError
from export.files import digest_of
from export.signing import MANIFEST, Ed25519Signatures, ReleaseVerifier, Trust, key_id, require_signed, sign, sign_as
from tests import releases
from tests.releases import KEY, TRUST, key_number, public

VERIFIER: Final[ReleaseVerifier] = Ed25519Signatures()


def encoded(key: bytes) -> str:
    return base64.b64encode(key).decode()


PLAIN: Final[Mapping[str, Any]] = {
    "federation": "guild",
    "keys": [encoded(public(KEY))],
    "threshold": 1,
    "highest_version": 4,
}


def test_trust_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    trust = Trust("guild", (public(key_number(1)), public(key_number(2))), threshold=2, highest_version=9)

    trust.save(tmp_path / "trust.json")

    assert Trust.load(tmp_path / "trust.json") == trust


@pytest.mark.parametrize(("seen", "then"), [(4, 4), (3, 4), (5, 5)])
def test_trust_never_forgets_the_newest_version(seen: int, then: int) -> None:
    assert Trust.from_plain(PLAIN).having_seen(seen).highest_version == then


@pytest.mark.parametrize("missing", ["federation", "keys", "threshold", "highest_version"])
def test_trust_without_one_of_its_fields_is_refused(missing: str) -> None:
    with pytest.raises(IntegrityError, match="trust file cannot be read"):
        Trust.from_plain({k: v for k, v in PLAIN.items() if k != missing})


@pytest.mark.parametrize("plain", [None, [], "guild", 3, [PLAIN]])
def test_trust_that_is_no_object_is_refused(plain: object) -> None:
    with pytest.raises(IntegrityError, match="not an object"):
        Trust.from_plain(plain)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keys": []}, "no usable keys"),
        ({"keys": [encoded(b"k" * 31)]}, "no usable keys"),
        ({"keys": [encoded(b"k" * 33)]}, "no usable keys"),
        ({"keys": [""]}, "no usable keys"),
        ({"keys": ["not base64!"]}, "cannot be read"),
        ({"keys": [7]}, "cannot be read"),
        ({"keys": None}, "cannot be read"),
        ({"threshold": 0}, "no usable keys"),
        ({"threshold": -1}, "no usable keys"),
        ({"threshold": 2}, "no usable keys"),
        ({"threshold": "many"}, "cannot be read"),
        ({"threshold": None}, "cannot be read"),
        ({"threshold": float("inf")}, "cannot be read"),
        ({"highest_version": "new"}, "cannot be read"),
        ({"highest_version": float("nan")}, "cannot be read"),
    ],
)
def test_trust_that_trusts_nobody_or_nothing_sensible_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(IntegrityError, match=reason) as caught:
        Trust.from_plain({**PLAIN, **change})

    assert "Join the federation again" in caught.value.advice


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 16_000, b"x" * (16 * 2**10 + 1), json.dumps(PLAIN).encode() + b"}"])
def test_a_damaged_trust_file_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "trust.json").write_bytes(raw)

    with pytest.raises(IntegrityError):
        Trust.load(tmp_path / "trust.json")


def test_a_trust_file_that_is_not_there_is_the_systems_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Trust.load(tmp_path / "trust.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(json_values | st.dictionaries(st.sampled_from(sorted(PLAIN)), json_values).map(lambda d: {**PLAIN, **d}))
def test_whatever_stands_in_a_trust_file_it_is_trust_or_a_refusal(plain: object) -> None:
    try:
        trust = Trust.from_plain(plain)
    except IntegrityError:
        return
    assert 1 <= trust.threshold <= len(trust.keys)


# Signatures.


def test_a_key_is_named_by_the_start_of_its_digest() -> None:
    assert key_id(public(KEY)) == digest_of(public(KEY))[:16]
    assert key_id(public(key_number(1))) != key_id(public(key_number(2)))


def test_the_signature_is_over_the_manifest_and_what_it_is_for() -> None:
    """A second opinion from the library: the same key signing anything else gives nothing to use here."""
    signatures = json.loads(sign(b"manifest", KEY))["signatures"]

    assert list(signatures) == [key_id(public(KEY))]
    signature = base64.b64decode(signatures[key_id(public(KEY))])
    KEY.public_key().verify(signature, b"sfumato release manifest v1\nmanifest")


# Signatures over other things than releases.

LETTER: Final = b"sfumato letter v1\n"
OTHER: Final = key_number(2)


def letter_is_signed(signed: bytes, signatures: bytes, trust: Trust = TRUST, context: bytes = LETTER) -> None:
    require_signed(context, signed, signatures, trust, "the letter")


def by(*keys: Ed25519PrivateKey, signed: bytes = b"come") -> bytes:
    """One signature file of several signers."""
    parts = [json.loads(sign_as(LETTER, signed, key))["signatures"] for key in keys]
    return json.dumps({"signatures": {name: text for part in parts for name, text in part.items()}}).encode()


def test_what_is_signed_as_something_is_signed_as_that() -> None:
    letter_is_signed(b"come", sign_as(LETTER, b"come", KEY))


def test_the_same_bytes_signed_as_the_same_are_the_same_file() -> None:
    assert sign_as(LETTER, b"come", KEY) == sign_as(LETTER, b"come", KEY)
    assert sign(b"manifest", KEY) == sign_as(b"sfumato release manifest v1\n", b"manifest", KEY)


@pytest.mark.parametrize("context", [b"sfumato letter v2\n", b"sfumato release manifest v1\n", b"sfumato letter v1", b""])
def test_what_is_signed_as_something_else_is_not_signed(context: bytes) -> None:
    with pytest.raises(IntegrityError, match="the letter is not signed by 'guild'") as caught:
        letter_is_signed(b"come", sign_as(context, b"come", KEY))

    assert "Do not use it" in caught.value.advice


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_only_the_very_bytes_are_signed(signed: bytes, asked: bytes) -> None:
    signatures = sign_as(LETTER, signed, KEY)

    if asked == signed:
        letter_is_signed(asked, signatures)
    else:
        with pytest.raises(IntegrityError, match="not signed"):
            letter_is_signed(asked, signatures)


def test_a_key_that_is_not_trusted_signs_nothing() -> None:
    with pytest.raises(IntegrityError, match="not signed"):
        letter_is_signed(b"come", by(OTHER))


def test_a_signature_under_another_keys_name_is_none() -> None:
    (theirs,) = json.loads(by(OTHER))["signatures"].values()

    with pytest.raises(IntegrityError, match="not signed"):
        letter_is_signed(b"come", json.dumps({"signatures": {key_id(public(KEY)): theirs}}).encode())


@pytest.mark.parametrize(
    ("threshold", "signers", "is_enough"),
    [
        (1, (KEY,), True),
        (1, (KEY, OTHER), True),
        (2, (KEY,), False),
        (2, (OTHER,), False),
        (2, (KEY, OTHER), True),
        (2, (KEY, key_number(9)), False),
        (3, (KEY, OTHER), False),
    ],
)
def test_as_many_keys_sign_as_the_trust_says(threshold: int, signers: tuple[Ed25519PrivateKey, ...], is_enough: bool) -> None:  # noqa: FBT001
    trust = Trust("guild", tuple(public(key_number(number)) for number in (1, 2, 3)), threshold)

    if is_enough:
        letter_is_signed(b"come", by(*signers), trust)
    else:
        with pytest.raises(IntegrityError, match="not signed"):
            letter_is_signed(b"come", by(*signers), trust)


def test_a_key_that_is_trusted_twice_counts_once() -> None:
    with pytest.raises(IntegrityError, match="not signed"):
        letter_is_signed(b"come", by(KEY), Trust("guild", (public(KEY), public(KEY)), threshold=2))


def test_a_key_that_is_no_point_on_the_curve_signs_nothing() -> None:
    trust = Trust("guild", (b"\xff" * 32,))
    signature = encoded(b"s" * 64)

    with pytest.raises(IntegrityError, match="not signed"):
        letter_is_signed(b"come", json.dumps({"signatures": {key_id(b"\xff" * 32): signature}}).encode(), trust)


def test_a_signature_file_that_is_too_long_is_not_read() -> None:
    file = sign_as(LETTER, b"come", KEY)
    longest = file + b" " * (16 * 2**10 - len(file))
    letter_is_signed(b"come", longest)

    with pytest.raises(IntegrityError, match="the signature file of the letter is too long") as caught:
        letter_is_signed(b"come", longest + b" ")

    assert "Get the letter again" in caught.value.advice


@pytest.mark.parametrize(
    "signatures",
    [b"", b"{", b"\xff", b"[]", b"3", b"{}", b'{"signatures": []}', b'{"signatures": {"a": 3}}', b'{"signatures": {"a": "!"}}'],
)
def test_a_signature_file_that_is_none_is_refused(signatures: bytes) -> None:
    with pytest.raises(IntegrityError, match="signature file cannot be read"):
        letter_is_signed(b"come", signatures)


@given(st.binary(max_size=80) | json_values.map(lambda value: json.dumps({"signatures": value}).encode()))
def test_whatever_stands_in_a_signature_file_nothing_is_signed_by_it(signatures: bytes) -> None:
    with pytest.raises(IntegrityError):
        letter_is_signed(b"come", signatures)


# What a verified release lets one read.


def test_a_file_is_read_and_checked_again_each_time(tmp_path: Path) -> None:
    published = releases.publish(tmp_path / "release")
    verified = VERIFIER.verify(published.folder, TRUST)
    assert verified.read("card.md") == b"# A small body\n"

    (published.folder / "card.md").write_bytes(b"# A SMALL BODY\n")

    with pytest.raises(IntegrityError, match=r"card\.md is not what was signed"):
        verified.read("card.md")


@pytest.mark.parametrize("path", ["other.txt", "../release/card.md", "works", "", MANIFEST])
def test_what_is_not_part_of_a_release_cannot_be_read_from_it(tmp_path: Path, path: str) -> None:
    verified = VERIFIER.verify(releases.publish(tmp_path / "release").folder, TRUST)

    with pytest.raises(IntegrityError, match="has no file"):
        verified.read(path)


def test_the_files_of_a_folder_are_listed_in_order(tmp_path: Path) -> None:
    verified = VERIFIER.verify(releases.publish(tmp_path / "release").folder, TRUST)

    assert verified.paths("calibration") == ["calibration/picture-0.jpg", "calibration/picture-1.jpg"]
    assert verified.paths("calib") == []


def test_a_release_is_named_by_the_digest_of_its_manifest(tmp_path: Path) -> None:
    published = releases.publish(tmp_path / "release")

    assert VERIFIER.verify(published.folder, TRUST).digest == digest_of((published.folder / MANIFEST).read_bytes())
