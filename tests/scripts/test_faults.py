"""What a storm is held to, and a short one over real processes; the long ones are run by hand (`scripts/faults --help`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import faults
from scripts.faults import Outcome, Place

CALM = Outcome("body", (("published", ((1, "a"), (2, "b"))),), 1.0, {})
DRAWN = Outcome("another", (("published", ((1, "c"), (2, "d"))),), 1.0, {})


def complained(
    monkeypatch: pytest.MonkeyPatch, storm: Outcome, place: Path, *, drawn: bool = False, noise: bool = False
) -> str:
    monkeypatch.setattr("coordinator.publish.versions", lambda _home: [])
    entries = [{"what": "round", "round": 1}]
    monkeypatch.setattr(faults, "Ledger", lambda _path: type("Account", (), {"entries": lambda _self: entries})())
    return "; ".join(faults.complaints(CALM, storm, Place(place), are_drawn=drawn, has_noise=noise))


@pytest.mark.parametrize(
    ("storm", "said"),
    [
        (Outcome("another", CALM.rounds, 1.0, {}), "the body is another"),
        (Outcome("body", (("published", ((1, "a"),)),), 1.0, {}), "rounds counted other updates"),
        (Outcome("body", (("failed", ()),), 1.0, {}), "rounds counted other updates"),
        (Outcome("body", (("published", ((1, "a"), (2, "c"))),), 1.0, {}), "rounds counted other updates"),
    ],
)
def test_what_is_not_as_it_must_be_is_complained_of(
    storm: Outcome, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert complained(monkeypatch, storm, tmp_path).startswith(said)
    assert complained(monkeypatch, CALM, tmp_path) == ""


def test_where_updates_are_drawn_anew_the_same_nodes_must_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert complained(monkeypatch, DRAWN, tmp_path, drawn=True, noise=True) == ""
    assert "the body is another" in complained(monkeypatch, DRAWN, tmp_path, drawn=True)
    one_less = Outcome("body", (("published", ((1, "c"),)),), 1.0, {})
    assert "rounds counted other" in complained(monkeypatch, one_less, tmp_path, drawn=True, noise=True)


@pytest.mark.slow
def test_a_short_storm_leaves_the_body_of_calm_weather() -> None:
    script = Path(faults.__file__)
    command = [sys.executable, str(script), "--rounds", "1", "--faults", "4", "--seed", "7"]

    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)

    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    said = json.loads(ran.stdout[ran.stdout.index("{") :])
    assert said["complaints"] == []
    assert sum(said["faults"].values()) >= 1
