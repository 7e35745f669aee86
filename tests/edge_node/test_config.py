"""Settings and names of a node."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from edge_node.config import RANGES, Config, Home, checked_name, find_home
from edge_node.errors import NoHomeError
from export import settings
from export.errors import NotConfiguredError, UsageError
from tests import simulators


def test_settings_come_back_as_they_were_saved(tmp_path: Path) -> None:
    home = simulators.make_node(tmp_path, poll_s=2.5, threads=3)

    assert home.config() == Config("Ada", "ada", threads=3, learn_steps=3, renew_steps=2, poll_s=2.5)


def test_a_folder_that_was_not_set_up_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(NoHomeError, match="no Sfumato in") as caught:
        Home(tmp_path).config()

    assert caught.value.advice == "Set it up with: sfumato init"


@pytest.mark.parametrize("key", RANGES)
def test_every_number_has_a_range_that_is_kept(tmp_path: Path, key: str) -> None:
    low, high = RANGES[key]
    whole = {field.name: field.type for field in fields(Config)}[key] == "int"
    for value, is_allowed in ((low, True), (high, True), (low - 1, False), (high + 1, False)):
        changes: dict[str, Any] = {key: int(value) if whole else float(value)}
        home = simulators.make_node(tmp_path, **changes)
        if is_allowed:
            assert getattr(home.config(), key) == value
        else:
            with pytest.raises(NotConfiguredError, match=f"{key} = .*; allowed is"):
                home.config()


def test_every_number_of_the_settings_has_a_range() -> None:
    assert {field.name for field in fields(Config) if field.type in ("int", "float")} == set(RANGES)


def test_a_home_is_taken_from_the_command_line_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "environment"))

    assert find_home(tmp_path / "given").root == tmp_path / "given"
    assert find_home(None).root == tmp_path / "environment"
    monkeypatch.delenv("SFUMATO_HOME")
    assert find_home(None).root.name == "sfumato"


def test_every_place_of_a_home_lies_in_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    places = [getattr(home, name) for name, kind in vars(Home).items() if isinstance(kind, property)]

    assert len(places) >= 12
    assert all(place.is_relative_to(tmp_path) for place in places)


@pytest.mark.parametrize("name", ["a", "Ada", "ada-2", "a.b", "x" * 40, "0"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert checked_name(name, "a style") == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "-a", "a-", ".a", "a.", "x" * 41, "a b", "ä", "a\n", "con:"])
def test_a_name_that_is_no_file_name_everywhere_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a style") as caught:
        checked_name(name, "a style")

    assert "1 to 40 letters" in caught.value.advice


@pytest.mark.parametrize("artist", ['Ada "the quick"', "Åsa\\", "小野", "a\nb", "", "#1 = [x]"])
def test_any_artists_name_survives_being_saved(tmp_path: Path, artist: str) -> None:
    home = Home(tmp_path)
    settings.save(home.config_file, Config(artist, "style"))

    assert home.config().artist == artist
