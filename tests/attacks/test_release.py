"""Attacks on a machine that installs releases: each changes a good release, or the machine's trust, in one way.

The attacker may write whatever files they like; what they lack is the federation's key.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.errors import IntegrityError
from export.files import digest_of, write_json
from export.manifest import MANIFEST_MAX_BYTES, FileEntry
from export.release import BODY, CARD, EXACT
from export.signing import (
    MANIFEST,
    SIGNATURES,
    Ed25519Signatures,
    ReleaseVerifier,
    Trust,
    VerifiedRelease,
    key_id,
    sign,
)
from tests import releases
from tests.releases import FEDERATION, KEY, TRUST, Published, key_number, public

VERIFIER: Final[ReleaseVerifier] = Ed25519Signatures()
STRANGER: Final = key_number(66)


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return releases.publish(tmp_path / "release")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A release that no test changes."""
    return releases.publish(tmp_path_factory.mktemp("pristine") / "release")


def assert_refused(folder: Path, reason: str, trust: Trust = TRUST) -> None:
    with pytest.raises(IntegrityError, match=reason) as caught:
        VERIFIER.verify(folder, trust)
    assert caught.value.advice


def resign(published: Published, **changes: Any) -> None:
    """Change the manifest and sign it again with the federation's own key: an attack by, or a slip of, its holder."""
    raw = replace(published.manifest, **changes).to_bytes()
    (published.folder / MANIFEST).write_bytes(raw)
    (published.folder / SIGNATURES).write_bytes(sign(raw, KEY))


def signed_by(raw: bytes, *numbers: int) -> bytes:
    """A signature file of several keys."""
    signatures: dict[str, str] = {}
    for number in numbers:
        signatures |= json.loads(sign(raw, key_number(number)))["signatures"]
    return json.dumps({"signatures": signatures}).encode()


def test_the_untouched_release_is_accepted(published: Published) -> None:
    """The positive control of every attack in this file."""
    found = VERIFIER.verify(published.folder, TRUST)

    assert isinstance(found, VerifiedRelease)
    assert found.manifest == published.manifest


def test_a_release_carried_to_another_folder_is_accepted(published: Published, tmp_path: Path) -> None:
    shutil.copytree(published.folder, tmp_path / "usb-stick")

    assert VERIFIER.verify(tmp_path / "usb-stick", TRUST).manifest == published.manifest


# Signatures.


def test_an_unsigned_release_is_refused(published: Published) -> None:
    (published.folder / SIGNATURES).unlink()

    assert_refused(published.folder, "the release has no signature")


def test_a_release_with_an_empty_list_of_signatures_is_refused(published: Published) -> None:
    (published.folder / SIGNATURES).write_bytes(b'{"signatures":{}}')

    assert_refused(published.folder, "not signed by 'guild'")


def test_a_release_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    releases.publish(tmp_path / "release", STRANGER)

    assert_refused(tmp_path / "release", "not signed by 'guild'")


def test_a_strangers_signature_under_the_name_of_a_trusted_key_is_refused(published: Published) -> None:
    raw = (published.folder / MANIFEST).read_bytes()
    signature = json.loads(sign(raw, STRANGER))["signatures"][key_id(public(STRANGER))]
    (published.folder / SIGNATURES).write_text(json.dumps({"signatures": {key_id(public(KEY)): signature}}))

    assert_refused(published.folder, "not signed by 'guild'")


def test_a_signature_over_the_bare_manifest_is_refused(published: Published) -> None:
    """What the same key signed for another purpose must not pass for a release."""
    import base64  # noqa: PLC0415 - beside its only use

    raw = (published.folder / MANIFEST).read_bytes()
    signature = base64.b64encode(KEY.sign(raw)).decode()
    (published.folder / SIGNATURES).write_text(json.dumps({"signatures": {key_id(public(KEY)): signature}}))

    assert_refused(published.folder, "not signed by 'guild'")


def test_the_signature_of_another_release_is_refused(published: Published, tmp_path: Path) -> None:
    other = releases.publish(tmp_path / "other", version=9)
    shutil.copy(other.folder / SIGNATURES, published.folder / SIGNATURES)

    assert_refused(published.folder, "not signed by 'guild'")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="half an object"),
        pytest.param(b"\xff", id="no unicode"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="no signatures"),
        pytest.param(b'{"signatures":[]}', id="a list of signatures"),
        pytest.param(b'{"signatures":null}', id="null"),
        pytest.param(b'{"signatures":{"a":5}}', id="a number for a signature"),
        pytest.param(b'{"signatures":{"a":"not base64!"}}', id="words for a signature"),
        pytest.param(b'{"signatures":{"a":"\xc3\xa9"}}', id="letters base64 does not have"),
        pytest.param(b"[" * 16_000, id="too deep"),
    ],
)
def test_a_damaged_signature_file_is_refused(published: Published, raw: bytes) -> None:
    (published.folder / SIGNATURES).write_bytes(raw)

    assert_refused(published.folder, "signature file cannot be read")


@pytest.mark.parametrize("signature", ["", "AAAA", "A" * 88])
def test_a_signature_of_the_wrong_length_or_all_zero_is_refused(published: Published, signature: str) -> None:
    (published.folder / SIGNATURES).write_text(
        json.dumps({"signatures": {key_id(public(KEY)): signature[: len(signature) // 4 * 4]}})
    )

    assert_refused(published.folder, "not signed by 'guild'")


# Thresholds.

TWO_OF_THREE: Final = Trust(FEDERATION, tuple(public(key_number(n)) for n in (1, 2, 3)), threshold=2)


@pytest.mark.parametrize("signers", [(1, 2), (1, 3), (2, 3), (1, 2, 3), (1, 2, 66)])
def test_two_of_three_trusted_signatures_are_enough(published: Published, signers: tuple[int, ...]) -> None:
    raw = (published.folder / MANIFEST).read_bytes()
    (published.folder / SIGNATURES).write_bytes(signed_by(raw, *signers))

    assert VERIFIER.verify(published.folder, TWO_OF_THREE).manifest == published.manifest


@pytest.mark.parametrize("signers", [(1,), (1, 66), (66, 67), (1, 66, 67, 68)])
def test_fewer_trusted_signatures_than_the_threshold_are_refused(published: Published, signers: tuple[int, ...]) -> None:
    raw = (published.folder / MANIFEST).read_bytes()
    (published.folder / SIGNATURES).write_bytes(signed_by(raw, *signers))

    assert_refused(published.folder, "not signed by 'guild'", TWO_OF_THREE)


def test_one_key_listed_twice_in_the_trust_counts_once(published: Published) -> None:
    doubled = Trust(FEDERATION, (public(KEY), public(KEY)), threshold=2)

    assert_refused(published.folder, "not signed by 'guild'", doubled)


def test_one_signature_under_several_names_counts_once(published: Published) -> None:
    raw = (published.folder / MANIFEST).read_bytes()
    signature = json.loads(sign(raw, KEY))["signatures"][key_id(public(KEY))]
    names = [key_id(key) for key in TWO_OF_THREE.keys]
    (published.folder / SIGNATURES).write_text(json.dumps({"signatures": dict.fromkeys(names, signature)}))

    assert_refused(published.folder, "not signed by 'guild'", TWO_OF_THREE)


# The manifest.


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_manifest_with_one_bit_flipped_is_refused(pristine: Published, place: int, bit: int) -> None:
    path = pristine.folder / MANIFEST
    good = path.read_bytes()
    bad = bytearray(good)
    bad[place % len(bad)] ^= 1 << bit
    try:
        path.write_bytes(bad)
        assert_refused(pristine.folder, "not signed by 'guild'")
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("more", [b" ", b"\n", b"{}"])
def test_a_manifest_with_bytes_after_its_end_is_refused(published: Published, more: bytes) -> None:
    path = published.folder / MANIFEST
    path.write_bytes(path.read_bytes() + more)

    assert_refused(published.folder, "not signed by 'guild'")


def test_a_missing_manifest_is_refused(published: Published) -> None:
    (published.folder / MANIFEST).unlink()

    assert_refused(published.folder, "the release has no manifest")


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert_refused(tmp_path / "empty", "the release has no manifest")
    assert_refused(tmp_path / "missing", "the release has no manifest")


def test_a_hostile_manifest_is_not_parsed_before_its_signature_is_checked(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.signing.parse_manifest", lambda _raw: pytest.fail("parsed before it was trusted"))
    (published.folder / MANIFEST).write_bytes(b"[" * 200_000)

    assert_refused(published.folder, "not signed by 'guild'")


def test_even_a_signed_manifest_cannot_name_a_file_outside_the_folder(published: Published, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_bytes(b"secret")
    entry = FileEntry(digest_of(b"secret"), 6)

    for path in ("../secret.txt", str(tmp_path / "secret.txt")):
        resign(published, files={**published.manifest.files, path: entry})
        assert_refused(published.folder, "not a path of a release")


# Rollback and substitution.


@pytest.mark.parametrize(("seen", "accepted"), [(2, True), (3, True), (4, False), (2**40, False)])
def test_a_release_older_than_the_newest_seen_is_refused(published: Published, seen: int, *, accepted: bool) -> None:
    trust = replace(TRUST, highest_version=seen)
    if accepted:
        assert VERIFIER.verify(published.folder, trust).manifest.version == 3
    else:
        assert_refused(published.folder, f"release 3 is older than release {seen}", trust)


def test_a_release_of_another_federation_is_refused_even_with_a_key_trusted_here(tmp_path: Path) -> None:
    releases.publish(tmp_path / "release", federation="guild-2")

    assert_refused(tmp_path / "release", "a release of 'guild-2', not of 'guild'")


def test_a_name_that_only_looks_the_same_is_another_federation(tmp_path: Path) -> None:
    releases.publish(tmp_path / "release", federation="guíld")

    assert_refused(tmp_path / "release", "not of 'guild'")


# Files.


def swap(path: str, data: bytes) -> Callable[[Path], None]:
    def attack(folder: Path) -> None:
        (folder / path).write_bytes(data)

    return attack


def truncate(path: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / path, (folder / path).stat().st_size - 1)


def grow(path: str, size: int) -> Callable[[Path], None]:
    """Sparse: it takes no room on the disk."""
    return lambda folder: os.truncate(folder / path, size)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        pytest.param(swap(EXACT, b"exact two"), "exact.onnx is not what was signed", id="a graph of the same size"),
        pytest.param(swap(EXACT, b""), "exact.onnx is not what was signed", id="an empty graph"),
        pytest.param(swap(CARD, b"# a small body\n"), "card.md is not what was signed", id="another model card"),
        pytest.param(truncate(BODY), "body.safetensors is not what was signed", id="a body cut short"),
        pytest.param(truncate("works/picture-0.jpg"), "not what was signed", id="a picture cut short"),
        pytest.param(grow(BODY, 2**40), "body.safetensors is larger than", id="a terabyte of body"),
        pytest.param(grow(EXACT, 10), "exact.onnx is larger than 9 bytes", id="a byte too many"),
        pytest.param(grow(MANIFEST, 2**40), "manifest.json is larger than", id="a terabyte of manifest"),
        pytest.param(grow(MANIFEST, MANIFEST_MAX_BYTES + 1), "manifest.json is larger than", id="a manifest too large"),
        pytest.param(grow(SIGNATURES, 2**40), "signatures.json is larger than", id="a terabyte of signatures"),
        pytest.param(lambda f: (f / EXACT).unlink(), "exact.onnx is missing", id="a missing graph"),
        pytest.param(lambda f: shutil.rmtree(f / "calibration"), "is missing", id="a missing folder"),
        pytest.param(lambda f: (f / "extra.py").touch(), "extra.py, which was not signed", id="an extra file"),
        pytest.param(lambda f: (f / "works" / ".hidden").touch(), "which was not signed", id="a hidden file"),
        pytest.param(lambda f: (f / "works" / "picture-0.JPG").touch(), "which was not signed", id="a name in capitals"),
    ],
)
def test_a_release_with_a_file_changed_missing_or_added_is_refused(
    published: Published, attack: Callable[[Path], None], reason: str
) -> None:
    attack(published.folder)

    assert_refused(published.folder, reason)


@pytest.mark.parametrize("path", [EXACT, "works/picture-0.jpg"])
def test_a_link_in_place_of_a_file_is_refused_even_if_what_it_leads_to_is_right(
    published: Published, tmp_path: Path, path: str
) -> None:
    """The target could be changed after it was checked, by whoever owns it."""
    (published.folder / path).rename(tmp_path / "elsewhere")
    (published.folder / path).symlink_to(tmp_path / "elsewhere")

    assert_refused(published.folder, f"{path} is missing")


@pytest.mark.parametrize("target", ["nowhere", "/etc/passwd", "."])
def test_an_extra_link_is_refused_wherever_it_leads(published: Published, target: str) -> None:
    (published.folder / "link.txt").symlink_to(target)

    assert_refused(published.folder, "link.txt, which was not signed")


def test_a_link_in_place_of_a_folder_is_refused_even_if_what_it_leads_to_is_right(published: Published, tmp_path: Path) -> None:
    (published.folder / "works").rename(tmp_path / "elsewhere")
    (published.folder / "works").symlink_to(tmp_path / "elsewhere")

    assert_refused(published.folder, "works, which was not signed")


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURES])
def test_a_link_in_place_of_manifest_or_signatures_is_refused(published: Published, tmp_path: Path, name: str) -> None:
    (published.folder / name).rename(tmp_path / "elsewhere")
    (published.folder / name).symlink_to(tmp_path / "elsewhere")

    assert_refused(published.folder, f"{name}, which was not signed")


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(published: Published) -> None:
    (published.folder / EXACT).unlink()
    os.mkfifo(published.folder / EXACT)

    assert_refused(published.folder, "exact.onnx is missing")


def test_a_folder_in_place_of_a_file_is_refused(published: Published) -> None:
    (published.folder / EXACT).unlink()
    (published.folder / EXACT).mkdir()

    assert_refused(published.folder, "exact.onnx is missing")


@settings(max_examples=20)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), number=st.integers(0, 100))
def test_any_file_with_one_bit_flipped_is_refused(pristine: Published, place: int, bit: int, number: int) -> None:
    names = sorted(pristine.contents.files)
    path = pristine.folder / names[number % len(names)]
    good = path.read_bytes()
    bad = bytearray(good)
    bad[place % len(bad)] ^= 1 << bit
    try:
        path.write_bytes(bad)
        assert_refused(pristine.folder, "is not what was signed")
    finally:
        path.write_bytes(good)


# The machine's own trust file.


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"federation": FEDERATION, "keys": [], "threshold": 0},
        {"federation": FEDERATION, "keys": ["AAAA"], "threshold": 1},
        {"federation": FEDERATION, "keys": [""], "threshold": 1},
    ],
)
def test_a_corrupted_trust_file_trusts_nobody(tmp_path: Path, plain: dict[str, object]) -> None:
    write_json(tmp_path / "trust.json", plain)

    with pytest.raises(IntegrityError):
        Trust.load(tmp_path / "trust.json")


def test_a_trusted_key_that_is_no_point_of_the_curve_verifies_nothing(published: Published) -> None:
    raw = json.dumps({"signatures": {key_id(b"\xff" * 32): "A" * 88}}).encode()
    (published.folder / SIGNATURES).write_bytes(raw)

    assert_refused(published.folder, "not signed by 'guild'", replace(TRUST, keys=(b"\xff" * 32,)))
