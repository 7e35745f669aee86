"""Settings of a coordinator."""

from dataclasses import fields
from pathlib import Path

import pytest

from coordinator.config import RANGES, Config, Home, find_home
from coordinator.errors import NoCoordinatorError
from export import settings
from export.errors import NotConfiguredError


def saved(folder: Path, **changes: object) -> Home:
    home = Home(folder)
    settings.save(home.config_file, Config(**{"name": "guild", **changes}))  # type: ignore[arg-type]
    return home


def test_settings_come_back_as_they_were_saved(tmp_path: Path) -> None:
    assert saved(tmp_path, port=4433, momentum=0.5).config() == Config("guild", port=4433, momentum=0.5)


def test_a_folder_without_a_coordinator_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NoCoordinatorError, match="no coordinator in") as caught:
        Home(tmp_path).config()

    assert caught.value.advice == "Make one with: sfumato-coordinator init NAME"


@pytest.mark.parametrize("key", RANGES)
def test_every_number_has_a_range_that_is_kept(tmp_path: Path, key: str) -> None:
    low, high = RANGES[key]
    number = int if {field.name: field.type for field in fields(Config)}[key] == "int" else float
    for value in (low, high):
        assert getattr(saved(tmp_path, **{key: number(value)}).config(), key) == value
    for value in (low - 1, high + 1):
        with pytest.raises(NotConfiguredError, match=f"{key} = .*; allowed is"):
            saved(tmp_path, **{key: number(value)}).config()


def test_every_number_of_the_settings_has_a_range() -> None:
    assert {field.name for field in fields(Config) if field.type in ("int", "float")} == set(RANGES)


def test_a_home_is_taken_from_the_command_line_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_COORDINATOR_HOME", str(tmp_path / "environment"))

    assert find_home(tmp_path / "given").root == tmp_path / "given"
    assert find_home(None).root == tmp_path / "environment"
    monkeypatch.delenv("SFUMATO_COORDINATOR_HOME")
    assert find_home(None).root.name == "sfumato-coordinator"


def test_every_place_of_a_home_lies_in_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    places = [getattr(home, name) for name, kind in vars(Home).items() if isinstance(kind, property)]

    assert len(places) >= 12
    assert all(place.is_relative_to(tmp_path) for place in places)
