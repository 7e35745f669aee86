"""A node's private keys: made once, for this user alone, and a damaged one is told and never replaced."""

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
