"""What the artist has agreed to: only what the federation signed, only as it was read, and never without a word of his."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from edge_node import clock, consent
from edge_node.config import Home
from edge_node.errors import NoConsentError, NotJoinedError
from export import policy, settings
from export.errors import IntegrityError, RefusedError, ResourceError, SfumatoError
from export.files import write_json
from export.ledger import Ledger, Value
from export.policy import POLICY_MAX_BYTES, SignedPolicy
from tests import releases, simulators
from tests.simulators import POLICY, policy_with

LATER: Final = policy_with(version=2, steps=3)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A member who was offered nothing yet."""
    return simulators.trusting(simulators.make_node(tmp_path / "node"))


def offer(home: Home, signed: SignedPolicy = POLICY) -> Home:
    consent.keep_offered(home, signed.raw, signed.signatures)
    return home


def agreements(home: Home) -> list[dict[str, Value]]:
    return [entry for entry in Ledger(home.ledger_file).entries() if entry["what"] == "agreed"]


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let it be that time."""
    monkeypatch.setattr(clock, "now_s", lambda _home: seconds)


# --- What is offered ----------------------------------------------------------------------------------------------------


def test_what_the_federation_signed_is_kept_to_be_read(home: Home) -> None:
    kept = consent.keep_offered(home, POLICY.raw, POLICY.signatures)

    assert kept == POLICY
    assert consent.offered(home) == POLICY


def test_being_offered_something_is_no_agreement(home: Home) -> None:
    offer(home)

    assert consent.accepted(home) is None
    assert agreements(home) == []
    with pytest.raises(NoConsentError):
        consent.required(home)


def test_what_is_offered_next_takes_the_place_of_what_was_offered_and_not_of_what_was_agreed_to(home: Home) -> None:
    simulators.agreeing(home)

    offer(home, LATER)

    assert consent.offered(home) == LATER
    assert consent.accepted(home) == POLICY
    assert consent.required(home) == POLICY


BY_ANOTHER: Final = policy.sign(POLICY.policy, releases.key_number(2))
OF_OTHERS: Final = policy.sign(replace(POLICY.policy, federation="others"), releases.KEY)


@pytest.mark.parametrize(
    ("raw", "signatures", "reason"),
    [
        (BY_ANOTHER.raw, BY_ANOTHER.signatures, "not signed by 'guild'"),
        (POLICY.raw.replace(b"steps = 2", b"steps = 3"), POLICY.signatures, "not signed by 'guild'"),
        (LATER.raw, POLICY.signatures, "not signed by 'guild'"),
        (POLICY.raw, b'{"signatures":{}}', "not signed by 'guild'"),
        (POLICY.raw, b"", "signature file cannot be read"),
        (OF_OTHERS.raw, OF_OTHERS.signatures, "another federation's"),
        (b"#" * (POLICY_MAX_BYTES + 1), POLICY.signatures, "too long"),
    ],
)
def test_what_the_federation_did_not_sign_is_not_kept(home: Home, raw: bytes, signatures: bytes, reason: str) -> None:
    with pytest.raises(IntegrityError, match=reason):
        consent.keep_offered(home, raw, signatures)

    assert consent.offered(home) is None
    assert not home.offered_policy.exists()


def test_a_bad_offer_leaves_the_one_before_it(home: Home) -> None:
    offer(home)

    with pytest.raises(IntegrityError, match="not signed"):
        consent.keep_offered(home, LATER.raw, POLICY.signatures)

    assert consent.offered(home) == POLICY


@pytest.mark.parametrize(("version", "is_kept"), [(1, False), (2, True), (3, True)])
def test_what_is_older_than_what_was_agreed_to_is_not_kept(home: Home, version: int, is_kept: bool) -> None:  # noqa: FBT001
    simulators.agreeing(home, policy_with(version=2))
    offered = policy_with(version=version, steps=9)

    if is_kept:
        offer(home, offered)
    else:
        with pytest.raises(IntegrityError, match="policy 1 is older than policy 2, which you agreed to") as caught:
            offer(home, offered)
        assert "Ask the coordinator" in caught.value.advice

    found = consent.offered(home)
    assert found is not None
    assert (found == offered) is is_kept


def test_who_joined_nobody_is_offered_nothing(tmp_path: Path) -> None:
    alone = simulators.make_node(tmp_path / "alone")

    with pytest.raises(NotJoinedError, match="joined no federation"):
        offer(alone)

    assert consent.offered(alone) is None


def test_an_offer_that_cannot_be_written_is_told(home: Home) -> None:
    home.offered_policy.mkdir()

    with pytest.raises(ResourceError, match="could not be written"):
        offer(home)


# --- Agreeing -----------------------------------------------------------------------------------------------------------


def agree(home: Home) -> SignedPolicy:
    """Read what is offered, and agree."""
    consent.show(home)
    return consent.accept(home)


def test_nothing_is_agreed_to_that_was_not_read(home: Home) -> None:
    offer(home)

    with pytest.raises(NoConsentError, match="have not read the policy that is offered now") as caught:
        consent.accept(home)

    assert "sfumato policy show" in caught.value.advice
    assert consent.accepted(home) is None
    assert not home.ledger_file.exists()


def test_a_policy_that_came_after_the_reading_is_not_agreed_to(home: Home) -> None:
    offer(home)
    assert consent.show(home) == POLICY
    offer(home, LATER)

    with pytest.raises(NoConsentError, match="have not read"):
        consent.accept(home)

    assert agree(home) == LATER


def test_what_is_shown_is_what_is_offered_and_which_one_it_was_is_remembered(home: Home) -> None:
    offer(home)

    assert consent.show(home) == POLICY
    assert home.shown_policy_file.read_text() == POLICY.digest
    offer(home, LATER)
    assert consent.show(home) == LATER
    assert home.shown_policy_file.read_text() == LATER.digest


def test_showing_is_no_agreement(home: Home) -> None:
    offer(home)

    consent.show(home)

    assert consent.accepted(home) is None
    assert not home.ledger_file.exists()


def test_what_cannot_be_remembered_as_shown_is_told_and_not_agreed_to(home: Home) -> None:
    offer(home)
    home.shown_policy_file.mkdir()

    with pytest.raises(ResourceError, match="could not be written"):
        consent.show(home)
    with pytest.raises(NoConsentError, match="have not read"):
        consent.accept(home)


@pytest.mark.parametrize(
    "note", [b"", b"\xff", LATER.digest.encode(), POLICY.digest[:-1].encode(), POLICY.digest.encode() + b" " * 4096]
)
def test_a_note_of_another_reading_is_no_reading(home: Home, note: bytes) -> None:
    offer(home)
    consent.show(home)
    home.shown_policy_file.write_bytes(note)

    with pytest.raises(NoConsentError, match="have not read"):
        consent.accept(home)

    assert not home.ledger_file.exists()
    assert agree(home) == POLICY


@pytest.mark.parametrize("seconds", [0.0, 1.9e9, 1.9e9 + 1e-6, 1.9e9 + 0.25])
def test_when_one_agreed_is_noted_to_the_microsecond(home: Home, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    # Two agreements to one policy within a second are two.
    at(monkeypatch, seconds)

    agree(offer(home))

    when = json.loads(home.consent_file.read_bytes())["when"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", when)
    assert datetime.fromisoformat(when).timestamp() == pytest.approx(seconds, abs=1e-6)


def test_a_policy_for_another_kind_of_art_is_not_agreed_to(home: Home) -> None:
    offer(home, policy_with(version=3, modality="style-kiosk"))

    with pytest.raises(RefusedError, match="the policy is for style-kiosk, this machine works on style-studio"):
        agree(home)

    assert consent.accepted(home) is None
    assert not home.ledger_file.exists()


def test_veiled_rounds_can_be_agreed_to(home: Home) -> None:
    veiled = policy_with(version=3, visibility="veiled", minimum_nodes=5)
    offer(home, veiled)

    assert agree(home) == veiled


def test_agreeing_is_to_what_was_offered_last(home: Home) -> None:
    offer(offer(home), LATER)

    assert agree(home) == LATER
    assert consent.accepted(home) == LATER
    assert consent.required(home) == LATER


def test_an_agreement_is_to_the_very_bytes_that_were_signed(home: Home) -> None:
    simulators.agreeing(home)

    kept = consent.required(home)

    assert (kept.raw, kept.signatures, kept.digest) == (POLICY.raw, POLICY.signatures, POLICY.digest)


def test_an_agreement_is_a_line_in_the_ledger(home: Home) -> None:
    simulators.agreeing(home, policy_with(version=4, minimum_nodes=5))

    (entry,) = Ledger(home.ledger_file).entries()
    assert entry["what"] == "agreed"
    assert (entry["federation"], entry["version"], entry["visibility"]) == ("guild", 4, "open")
    assert entry["policy"] == consent.required(home).digest


def test_there_is_nothing_to_agree_to_before_an_offer(home: Home) -> None:
    with pytest.raises(NoConsentError, match="no policy was offered yet") as caught:
        agree(home)

    assert "sfumato join" in caught.value.advice
    assert not home.ledger_file.exists()


def test_who_agreed_to_nothing_is_told_how_to(home: Home) -> None:
    offer(home)

    with pytest.raises(NoConsentError, match="have not agreed") as caught:
        consent.required(home)

    assert "sfumato policy accept" in caught.value.advice


@pytest.mark.parametrize(
    ("bound", "value", "change", "reason"),
    [
        ("clip_max", 5.0, {"clip": 5.001}, "updates of norm 5.001; this machine allows 5"),
        ("steps_max", 7, {"steps": 8}, "8 steps; this machine allows 7"),
    ],
)
def test_more_than_this_machine_allows_is_not_agreed_to_and_nothing_is_written(
    home: Home, bound: str, value: float, change: dict[str, Any], reason: str
) -> None:
    settings.save(home.config_file, replace(home.config(), **{bound: value}))  # type: ignore[arg-type]
    offer(home, policy_with(**change))

    with pytest.raises(RefusedError, match=reason) as caught:
        agree(home)

    assert bound in caught.value.advice
    assert str(home.config_file) in caught.value.advice
    assert not home.ledger_file.exists()
    assert not home.accepted_policy.exists()
    assert not home.consent_file.exists()


@pytest.mark.parametrize("change", [{"clip": 4.999}, {"clip": 5.0}, {"clip": 5}, {"steps": 6}, {"steps": 7}])
def test_what_this_machine_just_allows_is_agreed_to(home: Home, change: dict[str, Any]) -> None:
    settings.save(home.config_file, replace(home.config(), clip_max=5.0, steps_max=7))
    offered = policy_with(**change)

    assert agree(offer(home, offered)) == offered


def test_a_refusal_leaves_the_agreement_before_it(home: Home) -> None:
    simulators.agreeing(home)
    offer(home, policy_with(version=2, steps=5001))

    with pytest.raises(RefusedError):
        agree(home)

    assert consent.required(home) == POLICY
    assert len(agreements(home)) == 1


def test_the_account_is_written_before_anything_else(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(home)
    lines_at_write = []

    def watched(path: Path, value: object) -> None:
        lines_at_write.append((path.name, len(agreements(home))))
        write_json(path, value)

    monkeypatch.setattr(consent, "write_json", watched)
    agree(home)

    assert lines_at_write == [("policy.json", 1), ("consent.json", 1)]


def test_what_cannot_be_put_into_the_account_is_not_agreed_to(home: Home) -> None:
    offer(home)
    home.ledger_file.mkdir()

    with pytest.raises(ResourceError, match="ledger could not be written"):
        agree(home)

    assert consent.accepted(home) is None
    assert not home.accepted_policy.exists()
    assert not home.consent_file.exists()


@pytest.mark.parametrize("file", ["accepted_policy", "consent_file"])
def test_an_agreement_that_cannot_be_kept_is_none(home: Home, file: str) -> None:
    offer(home)
    getattr(home, file).mkdir()

    with pytest.raises(ResourceError, match="could not be written"):
        agree(home)

    getattr(home, file).rmdir()
    assert consent.accepted(home) is None


@pytest.mark.parametrize("step", ["the ledger", "policy.json", "consent.json"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("had", [None, POLICY])
def test_whoever_is_killed_while_agreeing_has_agreed_or_is_asked_again(
    home: Home, monkeypatch: pytest.MonkeyPatch, step: str, when: str, had: SignedPolicy | None
) -> None:
    if had is not None:
        simulators.agreeing(home, had)
    offer(home, LATER)
    append = Ledger.append

    def stumbling(name: str, call: Callable[[], None]) -> None:
        if when == "before" and name == step:
            raise SystemExit
        call()
        if name == step:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(consent, "write_json", lambda path, value: stumbling(path.name, lambda: write_json(path, value)))
        patch.setattr(Ledger, "append", lambda ledger, entry: stumbling("the ledger", lambda: append(ledger, entry)))
        with pytest.raises(SystemExit):
            agree(home)

    try:
        holds = consent.required(home)
    except (NoConsentError, IntegrityError) as error:
        assert "sfumato policy accept" in error.advice  # noqa: PT017 - not to raise is as good
    else:
        assert holds in (had, LATER)
        assert holds.digest in {entry["policy"] for entry in agreements(home)}
    assert agree(home) == LATER
    assert consent.required(home) == LATER


# --- What lies on this machine --------------------------------------------------------------------------------------------


def changed_policy(plain: dict[str, str]) -> object:
    return {**plain, "policy": plain["policy"].replace("steps = 2", "steps = 3")}


DAMAGES: Final[dict[str, tuple[Callable[[dict[str, str]], object], str]]] = {
    "a changed word": (changed_policy, "not signed by 'guild'"),
    "another's signature": (lambda plain: {**plain, "signatures": BY_ANOTHER.signatures.decode()}, "not signed by 'guild'"),
    "nothing": (lambda _plain: {}, "on this machine cannot be read"),
    "a list": (lambda plain: [plain], "on this machine cannot be read"),
    "no signatures": (lambda plain: {"policy": plain["policy"]}, "on this machine cannot be read"),
    "more": (lambda plain: {**plain, "note": "x"}, "on this machine cannot be read"),
    "a number": (lambda plain: {**plain, "policy": 3}, "on this machine cannot be read"),
    "half a character": (lambda plain: {**plain, "policy": "\ud800"}, "on this machine cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kept", ["offered", "accepted"])
def test_a_policy_that_was_changed_on_this_machine_is_refused(home: Home, kept: str, damage: str) -> None:
    simulators.agreeing(home)
    file = home.offered_policy if kept == "offered" else home.accepted_policy
    change, reason = DAMAGES[damage]
    file.write_text(json.dumps(change(json.loads(file.read_bytes()))))

    with pytest.raises(IntegrityError, match=reason):
        getattr(consent, kept)(home)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 20_000, b" " * (16 * POLICY_MAX_BYTES + 1)])
@pytest.mark.parametrize("kept", ["offered", "accepted"])
def test_a_policy_file_that_is_none_is_refused(home: Home, kept: str, raw: bytes) -> None:
    simulators.agreeing(home)
    (home.offered_policy if kept == "offered" else home.accepted_policy).write_bytes(raw)

    with pytest.raises(IntegrityError, match=r"cannot be read|larger than"):
        getattr(consent, kept)(home)


def test_an_offer_that_was_changed_on_this_machine_is_not_agreed_to(home: Home) -> None:
    offer(home)
    plain = json.loads(home.offered_policy.read_bytes())
    home.offered_policy.write_text(json.dumps(changed_policy(plain)))

    with pytest.raises(IntegrityError, match="not signed"):
        agree(home)

    assert not home.ledger_file.exists()
    assert not home.consent_file.exists()


def test_a_policy_that_was_exchanged_after_it_was_agreed_to_is_noticed_though_it_is_signed(home: Home) -> None:
    simulators.agreeing(home)
    home.accepted_policy.write_text(json.dumps(policy.to_plain(LATER)))

    for ask in (consent.accepted, consent.required):
        with pytest.raises(IntegrityError, match="not the one you agreed to") as caught:
            ask(home)
        assert "sfumato policy accept" in caught.value.advice


def test_an_agreement_ends_with_the_trust_it_was_given_under(home: Home) -> None:
    simulators.agreeing(home)
    simulators.trusting(home, key=2)

    with pytest.raises(IntegrityError, match="not signed by 'guild'"):
        consent.required(home)


@profile(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.sampled_from(["accepted_policy", "consent_file"]), st.integers(0, 10_000), st.integers(0, 255))
def test_no_changed_byte_makes_another_policy_hold(tmp_path: Path, file: str, at_byte: int, value: int) -> None:
    home = simulators.trusting(simulators.make_node(tmp_path / "node"))
    home.consent_file.unlink(missing_ok=True)  # of the example before
    simulators.agreeing(home)
    raw = bytearray(getattr(home, file).read_bytes())
    raw[at_byte % len(raw)] = value
    getattr(home, file).write_bytes(raw)

    try:
        holds = consent.required(home)
    except SfumatoError:
        return
    assert holds == POLICY


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"nonsense",
        b"\xff",
        b"[]",
        b"3",
        b"{}",
        b'{"digest": "x", "version": 1}',
        b'{"digest": "x", "version": "new", "when": "now"}',
        b'{"digest": "x", "version": null, "when": "now"}',
        b'{"digest": "x", "version": NaN, "when": "now"}',
        b'{"digest": "x", "version": Infinity, "when": "now"}',
        b"[" * 4000,
        b" " * 4097,
    ],
)
def test_a_damaged_note_of_the_agreement_is_told_and_agreeing_again_mends_it(home: Home, note: bytes) -> None:
    simulators.agreeing(home)
    home.consent_file.write_bytes(note)

    for ask in (consent.accepted, consent.required):
        with pytest.raises(IntegrityError, match=r"what you agreed to cannot be read|larger than"):
            ask(home)

    assert agree(home) == POLICY
    assert consent.required(home) == POLICY


@pytest.mark.parametrize("file", ["accepted_policy", "consent_file"])
def test_an_agreement_of_which_a_half_is_gone_is_none(home: Home, file: str) -> None:
    simulators.agreeing(home)
    getattr(home, file).unlink()

    assert consent.accepted(home) is None
    with pytest.raises(NoConsentError, match="have not agreed"):
        consent.required(home)


def test_a_policy_that_cannot_be_read_is_told(home: Home) -> None:
    offer(home, LATER)
    home.offered_policy.unlink()
    home.offered_policy.mkdir()

    with pytest.raises(IntegrityError, match="the policy on this machine cannot be read"):
        consent.offered(home)
