"""A signed request: good for exactly what was signed, by whom, once, and for minutes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export import requests
from export.requests import WINDOW_S, Claim, Replays, Request, claim_of, is_signed, sign
from tests.simulators import credentials

ADA, BERTHE = credentials("Ada"), credentials("Berthe")
REQUEST = Request("POST", "/sfumato/v1/join", b"a body")
NOW = 1_700_000_000.0


def claimed(request: Request = REQUEST, now_s: float = NOW) -> Claim:
    claim = claim_of(sign(request, ADA.enrolled, now_s))
    assert claim is not None
    return claim


@given(st.text(max_size=10), st.text(max_size=40), st.binary(max_size=80))
def test_whatever_is_signed_is_found_signed(method: str, path: str, body: bytes) -> None:
    request = Request(method, path, body)

    assert is_signed(request, claimed(request), ADA.keys.enrolled)


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, method="PUT"),
        replace(REQUEST, path="/sfumato/v1/rejoin"),
        replace(REQUEST, body=b"another body"),
        replace(REQUEST, body=b""),
    ],
)
def test_a_signature_is_good_for_that_request_alone(other: Request) -> None:
    assert not is_signed(other, claimed(), ADA.keys.enrolled)


@pytest.mark.parametrize(
    "changes", [{"time_ms": 1_700_000_000_001}, {"nonce": "0" * 32}, {"signature": b"x" * 64}, {"signature": b""}]
)
def test_a_claim_cannot_be_changed(changes: dict[str, object]) -> None:
    assert not is_signed(REQUEST, replace(claimed(), **changes), ADA.keys.enrolled)  # type: ignore[arg-type]


def test_a_signature_is_its_owners_alone() -> None:
    claim = claimed()

    assert not is_signed(REQUEST, claim, BERTHE.keys.enrolled)
    assert not is_signed(REQUEST, replace(claim, node=BERTHE.keys.node_key), BERTHE.keys.enrolled)
    assert not is_signed(REQUEST, claim, b"short")


def test_two_requests_never_have_the_same_nonce() -> None:
    assert len({claimed().nonce for _ in range(50)}) == 50


@pytest.mark.parametrize("name", ["sfumato-node", "sfumato-time", "sfumato-nonce", "sfumato-signature"])
@pytest.mark.parametrize("value", [None, "", "x", "-1", "1e9", "F" * 64, "0" * 1000, "é"])
def test_headers_in_another_form_are_no_claim(name: str, value: str | None) -> None:
    headers = sign(REQUEST, ADA.enrolled, NOW)
    assert claim_of(headers) is not None
    changed = {k: v for k, v in headers.items() if k != name} | ({name: value} if value is not None else {})

    assert claim_of(changed) is None


def test_a_request_is_taken_once() -> None:
    replays, claim = Replays(NOW), claimed()

    assert [replays.refuse(claim, NOW) for _ in range(3)] == [None, "replayed", "replayed"]
    assert replays.refuse(claimed(), NOW) is None


@pytest.mark.parametrize(
    ("offset_s", "is_taken"), [(-WINDOW_S, True), (WINDOW_S, True), (-WINDOW_S - 0.01, False), (WINDOW_S + 0.01, False)]
)
def test_a_request_is_taken_for_some_minutes(offset_s: float, *, is_taken: bool) -> None:
    replays = Replays(NOW - 1000)

    assert (replays.refuse(claimed(now_s=NOW + offset_s), NOW) is None) is is_taken


def test_a_request_from_before_the_start_is_not_taken() -> None:
    replays = Replays(NOW)

    assert replays.refuse(claimed(now_s=NOW - 1.1), NOW) == "clock"
    assert replays.refuse(claimed(now_s=NOW - 0.9), NOW) is None


def test_the_memory_forgets_what_is_too_old_to_be_taken_and_otherwise_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_REMEMBERED_MAX", 3)
    replays = Replays(NOW - 1000)
    first = [claimed() for _ in range(3)]
    assert [replays.refuse(claim, NOW) for claim in first] == [None] * 3

    assert replays.refuse(claimed(), NOW) == "replayed"  # full of what could come again
    later = NOW + WINDOW_S + 1
    assert replays.refuse(claimed(now_s=later), later) is None
    assert [replays.refuse(claim, later) for claim in first] == ["clock"] * 3
