"""A node's private keys: made once, for this user alone, and a damaged one is told and never replaced."""

import hmac
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_node import keys
from edge_node.config import Home
from export.errors import IntegrityError
from export.identity import PublicKeys


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_the_keys_are_made_once_and_are_three_of_the_right_kinds(home: Home) -> None:
    first = keys.public_keys(home)

    assert PublicKeys.from_plain(first.to_plain()) == first
    assert keys.public_keys(home).digest == first.digest
    assert {file.name for file in (home.root / "keys").iterdir()} == {"flower", "enrolled", "provenance"}


def test_the_private_halves_are_for_this_user_alone(home: Home) -> None:
    keys.public_keys(home)

    assert all(file.stat().st_mode & 0o077 == 0 for file in (home.root / "keys").iterdir())


def test_a_machine_proves_that_it_holds_its_keys_and_no_others(tmp_path: Path) -> None:
    one, other = Home(tmp_path / "one"), Home(tmp_path / "other")
    shown = keys.public_keys(one)

    assert keys.proofs(one, shown).prove(shown)
    assert not keys.proofs(other, shown).prove(shown)


def test_two_machines_have_no_key_in_common(tmp_path: Path) -> None:
    one, other = (keys.public_keys(Home(tmp_path / name)) for name in ("one", "other"))

    assert one.flower != other.flower
    assert one.enrolled != other.enrolled
    assert one.provenance != other.provenance


FILES: dict[str, Callable[[Home], Path]] = {
    "flower": lambda home: home.flower_key,
    "enrolled": lambda home: home.enrolled_key,
    "provenance": lambda home: home.provenance_key,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["text", "another's"])
def test_a_damaged_key_is_told_and_not_replaced(home: Home, name: str, damage: str) -> None:
    keys.public_keys(home)
    file = FILES[name](home)
    other = FILES["enrolled" if name != "enrolled" else "provenance"](home).read_bytes()
    file.write_bytes(b"nonsense" if damage == "text" else other)
    before = file.read_bytes()

    with pytest.raises(IntegrityError, match=f"{name} key cannot be read") as caught:
        keys.public_keys(home)

    assert "backup" in caught.value.advice
    assert file.read_bytes() == before


# --- Seeds that only this machine knows ---------------------------------------------------------------------------------


def test_a_seed_is_the_same_after_a_restart(home: Home) -> None:
    assert keys.derived_seed(home, "lessons") == keys.derived_seed(Home(home.root), "lessons")


def test_seeds_differ_by_what_they_are_for_and_by_machine(tmp_path: Path) -> None:
    purposes = ["lessons", "rounding of round 1", "rounding of round 11", "rounding of round 2", ""]

    seeds = {keys.derived_seed(Home(tmp_path / name), purpose) for name in ("one", "other") for purpose in purposes}

    assert len(seeds) == 2 * len(purposes)


def test_a_seed_has_a_hundred_and_twenty_eight_bits(home: Home) -> None:
    seeds = [keys.derived_seed(home, str(number)) for number in range(64)]

    assert all(0 <= seed < 2**128 for seed in seeds)
    for bit in range(128):  # a bit that is the same in all 64 is so by chance once in 2^63 times
        assert {seed >> bit & 1 for seed in seeds} == {0, 1}


def test_asking_for_a_seed_on_a_new_machine_makes_its_key_first(home: Home) -> None:
    seed = keys.derived_seed(home, "lessons")

    assert home.enrolled_key.exists()
    assert keys.derived_seed(home, "lessons") == seed


def test_there_is_no_seed_from_a_damaged_key(home: Home) -> None:
    home.enrolled_key.parent.mkdir()
    home.enrolled_key.write_bytes(b"nonsense")

    with pytest.raises(IntegrityError, match="enrolled key cannot be read"):
        keys.derived_seed(home, "lessons")


def test_a_seed_is_what_the_standard_says(home: Home) -> None:
    # A second opinion: RFC 5869 by hand, extracting without salt, and one block of expanding.
    secret = keys.enrolled_key(home).private_bytes_raw()
    extracted = hmac.digest(b"\0" * 32, secret, "sha256")
    expanded = hmac.digest(extracted, b"sfumato seed: lessons\x01", "sha256")

    assert keys.derived_seed(home, "lessons") == int.from_bytes(expanded[:16], "big")
