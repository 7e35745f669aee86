"""What a storm is held to: `scripts/faults` itself takes minutes, and is run by hand."""

from pathlib import Path

import pytest

from scripts import faults
from scripts.faults import Outcome, Place

CALM = Outcome("body", (("published", ((1, "a"), (2, "b"))),), 1.0, {})


@pytest.mark.parametrize(
    ("storm", "said"),
    [
        (Outcome("another", CALM.rounds, 1.0, {}), "the body is another"),
        (Outcome("body", (("published", ((1, "a"),)),), 1.0, {}), "rounds counted other updates"),
        (Outcome("body", (("failed", ()),), 1.0, {}), "rounds counted other updates"),
    ],
)
def test_what_is_not_as_it_must_be_is_complained_of(
    storm: Outcome, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("coordinator.publish.versions", lambda _home: [])
    entries = [{"what": "round", "round": 1}]
    monkeypatch.setattr(faults, "Ledger", lambda _path: type("Account", (), {"entries": lambda _self: entries})())

    assert [said in complaint for complaint in faults.complaints(CALM, storm, Place(tmp_path))] == [True]
    assert faults.complaints(CALM, CALM, Place(tmp_path)) == []
