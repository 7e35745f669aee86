"""A short storm: real processes of one federation, some of them killed, and the same body as in calm weather."""

from pathlib import Path

import pytest

from scripts import faults
from scripts.faults import Outcome, Place
from tests.machines import needs_faketime


@pytest.mark.slow
@needs_faketime
def test_a_federation_comes_through_a_storm_to_the_same_body(capsys: pytest.CaptureFixture[str]) -> None:
    assert faults.main(["--rounds", "1", "--faults", "4", "--seed", "5"]) == 0

    assert '"complaints": []' in capsys.readouterr().out


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
    # The control of the test above: had the body or an update been another one, it would have been said.
    monkeypatch.setattr("coordinator.publish.versions", lambda _home: [])
    entries = [{"what": "round", "round": 1}]
    monkeypatch.setattr(faults, "Ledger", lambda _path: type("Account", (), {"entries": lambda _self: entries})())

    assert [said in complaint for complaint in faults.complaints(CALM, storm, Place(tmp_path))] == [True]
    assert faults.complaints(CALM, CALM, Place(tmp_path)) == []
