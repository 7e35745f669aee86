"""Invites: what they hold comes back however they are typed, and a typing error never does."""

import base64
import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.invite import Invite, InviteError, _checksum, fingerprint_of

hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,40}[a-z0-9])?", fullmatch=True),
    st.ip_addresses().map(str),
)
invites = st.builds(
    Invite,
    fingerprint=st.binary(min_size=16, max_size=16),
    secret=st.binary(min_size=10, max_size=10),
    host=hosts,
    port=st.integers(1, 65535),
)
SAMPLE = Invite(bytes(range(16)), bytes(range(100, 110)), "studio.example", 4433)


@given(invites)
def test_what_is_in_an_invite_comes_back(invite: Invite) -> None:
    assert Invite.parse(str(invite)) == invite


@given(invites, st.randoms(use_true_random=False))
def test_case_dashes_spaces_and_lookalike_digits_do_not_matter(invite: Invite, rng: random.Random) -> None:
    code, _, address = str(invite).rpartition("@")
    lookalikes = {"O": "O0o", "I": "I1i", "B": "B8b"}
    typed = "".join(rng.choice(lookalikes.get(letter, letter + letter.lower())) + rng.choice(["", "", " "]) for letter in code)

    assert Invite.parse(f"  {typed.replace('-', rng.choice(['-', '', ' ']))}@{address}\n") == invite


def test_two_thousand_single_typing_errors_are_all_noticed() -> None:
    rng = random.Random(1503)  # noqa: S311 - no secret
    alphabet = string.ascii_uppercase + "234567"
    for _ in range(2000):
        invite = Invite(rng.randbytes(16), rng.randbytes(10), "studio.example", 4433)
        code, _, address = str(invite).rpartition("@")
        place = rng.choice([at for at, letter in enumerate(code) if letter != "-"])
        wrong = rng.choice(alphabet.replace(code[place], ""))
        with pytest.raises(InviteError, match="typing error"):
            Invite.parse(f"{code[:place]}{wrong}{code[place + 1 :]}@{address}")


@pytest.mark.parametrize("seed", range(5))
def test_every_wrong_letter_and_every_two_swapped_are_noticed_and_not_only_by_luck(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - no secret
    invite = Invite(rng.randbytes(16), rng.randbytes(10), "studio.example", 4433)
    letters = str(invite).rpartition("@")[0].replace("-", "")
    alphabet = string.ascii_uppercase + "234567"
    wrong = [letters[:at] + other + letters[at + 1 :] for at in range(len(letters)) for other in alphabet]
    wrong += [letters[:at] + letters[at + 1] + letters[at] + letters[at + 2 :] for at in range(len(letters) - 1)]
    for typed in set(wrong) - {letters}:
        with pytest.raises(InviteError, match="typing error"):
            Invite.parse(typed)


@pytest.mark.parametrize("change", ["left out", "doubled", "swapped"])
def test_letters_left_out_doubled_or_swapped_are_noticed(change: str) -> None:
    code, _, address = str(SAMPLE).rpartition("@")
    letters = code.replace("-", "")
    for at in range(len(letters) - 1):
        if change == "left out":
            typed = letters[:at] + letters[at + 1 :]
        elif change == "doubled":
            typed = letters[:at] + letters[at] + letters[at:]
        elif letters[at] != letters[at + 1]:
            typed = letters[:at] + letters[at + 1] + letters[at] + letters[at + 2 :]
        else:
            continue
        with pytest.raises(InviteError):
            Invite.parse(f"{typed}@{address}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "hello",
        "AAAA-BBBB",
        "@studio.example:4433",
        "CODE@studio.example",
        "CODE@studio.example:0",
        "CODE@studio.example:65536",
        "CODE@studio.example:port",
        "CODE@:4433",
        "CODE@bad_host:4433",
        "CODE@host/path:4433",
        "CODE@" + "h" * 254 + ":4433",
        "CODE@[::1:4433",
    ],
)
def test_what_is_not_a_whole_invite_is_called_so(text: str) -> None:
    with pytest.raises(InviteError) as caught:
        Invite.parse(text)

    assert caught.value.advice
    assert "CODE" not in str(caught.value)


def test_an_invite_of_another_version_asks_for_an_update() -> None:
    payload = bytes([2]) + SAMPLE.fingerprint + SAMPLE.secret
    code = base64.b32encode(payload + _checksum(payload)).decode().rstrip("=")

    with pytest.raises(InviteError, match="of another version") as caught:
        Invite.parse(f"{code}@studio.example:4433")

    assert "Update" in caught.value.advice


def test_an_ipv6_address_is_written_in_brackets() -> None:
    text = str(Invite(SAMPLE.fingerprint, SAMPLE.secret, "2001:db8::7", 4433))

    assert text.endswith("@[2001:db8::7]:4433")
    assert Invite.parse(text).host == "2001:db8::7"


def test_the_code_is_groups_of_four_that_can_be_read_aloud() -> None:
    groups = str(SAMPLE).rpartition("@")[0].split("-")

    assert all(len(group) == 4 for group in groups[:-1])
    assert set("".join(groups)) <= set(string.ascii_uppercase + "234567")


def test_a_new_invite_matches_its_authority_and_no_other() -> None:
    invite = Invite.new(b"a certificate", "studio.example", 4433)

    assert invite.matches(b"a certificate")
    assert not invite.matches(b"a certificatf")
    assert invite.fingerprint == fingerprint_of(b"a certificate")


def test_new_invites_never_share_a_secret() -> None:
    assert len({Invite.new(b"a certificate", "studio.example", 4433).secret for _ in range(200)}) == 200
