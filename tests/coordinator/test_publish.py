"""What is published, and what never is: no verdict, no release; no number twice."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator import pki, publish
from coordinator.errors import GateRefusedError
from coordinator.gate import Candidate
from export import release
from export.errors import IntegrityError, NotConfiguredError, RefusedError, ResourceError, UsageError
from export.files import held
from export.ledger import Ledger, Value
from export.signing import Trust, VerifiedRelease
from models.originality import Likeness, Originality
from tests import releases, simulators
from tests.simulators import CoordinatorHome


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    del world
    return simulators.make_coordinator(tmp_path / "hub")


def candidate(hub: CoordinatorHome, *reasons: str) -> Candidate:
    """The served body moved a little, with a verdict made up for it."""
    current = publish.current_release(hub)
    body = {name: array + np.float32(0.01) for name, array in release.body_of(current).items()}
    return Candidate(body, b"a graph", release.codes_of(current), releases.VERDICT, reasons)


def put_out(hub: CoordinatorHome, round_: int = 1) -> VerifiedRelease:
    return publish.publish(hub, publish.current_release(hub), candidate(hub), round_, contributors=3)


def published_in(hub: CoordinatorHome) -> list[dict[str, Value]]:
    """The releases in the coordinator's account."""
    return [entry for entry in Ledger(hub.ledger_file).entries() if entry["what"] == "published"]


def test_a_new_federation_serves_the_base_under_its_own_key(hub: CoordinatorHome, world: VerifiedRelease) -> None:
    first = publish.current_release(hub)

    assert (first.manifest.federation, first.manifest.version, first.manifest.round) == ("guild", 1, 0)
    assert first.manifest.body == world.manifest.body
    assert first.digest != world.digest
    assert {path: first.read(path) for path in first.manifest.files} == {
        path: world.read(path) for path in world.manifest.files
    }


def test_a_candidate_that_passed_becomes_the_served_release(hub: CoordinatorHome) -> None:
    before = publish.current_release(hub)

    published = put_out(hub, round_=4)

    assert publish.current_release(hub).digest == published.digest
    said = published.manifest
    assert (said.version, said.round, said.contributors, said.parent) == (2, 4, 3, before.manifest.body)
    assert said.verdict == releases.VERDICT
    assert said.licence == "Apache-2.0"
    assert Trust.load(hub.trust_file).highest_version == 2


def test_the_public_material_travels_on_unchanged(hub: CoordinatorHome) -> None:
    before, after = publish.current_release(hub), put_out(hub)

    for folder in (release.WORKS, release.CALIBRATION, release.PROBE):
        assert [after.read(p) for p in after.paths(folder)] == [before.read(p) for p in before.paths(folder)]


def test_the_card_says_the_verdict_and_keeps_what_the_base_says_of_itself(hub: CoordinatorHome) -> None:
    card = put_out(hub).read(release.CARD).decode()

    assert "3 artists' machines" in card
    assert "| style distance (0 is perfect) | 0.9000 | 0.8500 |" in card
    assert card.rstrip().endswith("Made by tests/simulators.py.")


def test_the_card_names_the_public_work_the_pictures_come_nearest_to(hub: CoordinatorHome) -> None:
    found = Originality(Likeness("paper", 41), Likeness("paper", 0.31), Likeness("paper", 0.98))
    compared = replace(candidate(hub), originality=found)

    card = publish.publish(hub, publish.current_release(hub), compared, 1, 3).read(release.CARD).decode()

    assert "Nearest public work: paper; hashes 41 of 128 bits apart, patches 0.31, ratio of distances 0.98." in card


def test_what_the_gate_refused_is_not_published(hub: CoordinatorHome) -> None:
    current = publish.current_release(hub)

    with pytest.raises(GateRefusedError, match="style distance; a grid") as caught:
        publish.publish(hub, current, candidate(hub, "style distance", "a grid"), 1, 3)

    assert caught.value.advice
    assert publish.versions(hub) == [1]
    assert publish.current_release(hub).digest == current.digest


def test_a_release_without_a_verdict_is_not_published_again(hub: CoordinatorHome) -> None:
    assert publish.current_release(hub).manifest.verdict is None

    with pytest.raises(GateRefusedError, match="release 1 carries no verdict"):
        publish.publish_again(hub, 1)

    assert publish.versions(hub) == [1]


def test_going_back_goes_forward(hub: CoordinatorHome) -> None:
    second = put_out(hub)
    put_out(hub, round_=2)

    again = publish.publish_again(hub, 2)

    assert again.manifest.version == 4
    assert again.manifest.body == second.manifest.body
    assert again.manifest.verdict == second.manifest.verdict
    assert publish.versions(hub) == [1, 2, 3, 4]


def test_one_command_goes_back_to_the_body_before_and_again_to_the_one_before_that(hub: CoordinatorHome) -> None:
    first = publish.current_release(hub)
    body = {name: array + np.float32(0.01) for name, array in release.body_of(first).items()}
    second = publish.publish(hub, first, replace(candidate(hub), body=body), 1, 3)
    other = {name: array + np.float32(0.02) for name, array in body.items()}
    publish.publish(hub, second, replace(candidate(hub), body=other), 2, 3)

    back = publish.rollback(hub)
    assert (back.manifest.version, back.manifest.body) == (4, second.manifest.body)
    assert publish.current_release(hub).digest == back.digest
    farther = publish.rollback(hub)
    assert (farther.manifest.version, farther.manifest.body) == (5, first.manifest.body)
    with pytest.raises(UsageError, match="no release to go back to"):
        publish.rollback(hub)


def test_a_number_is_never_used_twice_even_if_its_folder_is_gone(hub: CoordinatorHome) -> None:
    put_out(hub)
    (hub.current_file).write_bytes(b"1")
    shutil.rmtree(hub.releases / "2")

    assert publish.newest_version(hub) == 2
    assert put_out(hub).manifest.version == 3


def test_a_number_is_never_used_twice_even_if_the_memory_of_it_is_gone(hub: CoordinatorHome) -> None:
    put_out(hub)
    trust = Trust.load(hub.trust_file)
    replace(trust, highest_version=0).save(hub.trust_file)

    assert put_out(hub).manifest.version == 3


@pytest.mark.parametrize("killed_at", ["ledger", "current", "trust"])
def test_a_kill_in_the_middle_leaves_a_newcomer_able_to_install_what_is_served(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    def kill(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    step = {"ledger": (Ledger, "append"), "current": (publish, "write_atomic"), "trust": (Trust, "save")}[killed_at]
    with monkeypatch.context() as patch:
        patch.setattr(*step, kill)
        with pytest.raises(KeyboardInterrupt):
            put_out(hub)

    served = publish.current_release(hub).manifest.version
    assert served == (2 if killed_at == "trust" else 1)
    assert Trust.load(hub.trust_file).highest_version <= served
    assert [entry["version"] for entry in published_in(hub)] == ([1] if killed_at == "ledger" else [1, 2])
    assert put_out(hub).manifest.version == 3


def test_a_candidate_judged_against_another_release_than_the_served_is_refused(hub: CoordinatorHome) -> None:
    judged, first = candidate(hub), publish.current_release(hub)
    put_out(hub)

    with pytest.raises(GateRefusedError, match="another release was published") as caught:
        publish.publish(hub, first, judged, 2, 3)

    assert caught.value.advice
    assert publish.versions(hub) == [1, 2]


def test_two_who_publish_at_once_are_told_apart(hub: CoordinatorHome) -> None:
    put_out(hub)
    made = candidate(hub)

    with held(hub.publish_lock, "publishing"):
        with pytest.raises(RefusedError, match="publishing is running already"):
            publish.publish(hub, publish.current_release(hub), made, 2, 3)
        with pytest.raises(RefusedError, match="publishing is running already"):
            publish.publish_again(hub, 2)

    assert publish.versions(hub) == [1, 2]


def test_everything_published_stands_in_the_ledger(hub: CoordinatorHome) -> None:
    published = put_out(hub)

    entries = published_in(hub)
    assert [entry["version"] for entry in entries] == [1, 2]
    assert entries[-1]["manifest"] == published.digest
    assert entries[-1]["contributors"] == 3


def test_a_full_disk_leaves_the_served_release(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    before = publish.current_release(hub)
    made = candidate(hub)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError):
        publish.publish(hub, before, made, 1, 3)

    assert publish.versions(hub) == [1]
    assert publish.current_release(hub).digest == before.digest


def test_a_release_changed_on_the_coordinators_disk_is_not_served(hub: CoordinatorHome) -> None:
    (hub.releases / "1" / "card.md").write_bytes(b"# Another\n")

    with pytest.raises(IntegrityError, match=r"card\.md is not what was signed"):
        publish.current_release(hub)


def test_a_release_of_another_key_is_not_served(hub: CoordinatorHome, tmp_path: Path) -> None:
    releases.publish(tmp_path / "forged", releases.key_number(66), version=7)
    shutil.copytree(tmp_path / "forged", hub.releases / "7")

    with pytest.raises(IntegrityError, match="not signed by 'guild'"):
        publish.open_release(hub, 7)


def test_a_release_that_was_never_published_is_told(hub: CoordinatorHome) -> None:
    with pytest.raises(IntegrityError, match="there is no release 9") as caught:
        publish.open_release(hub, 9)

    assert "release list" in caught.value.advice


def test_a_coordinator_without_a_release_is_told(hub: CoordinatorHome) -> None:
    hub.current_file.unlink()

    with pytest.raises(NotConfiguredError, match="no release has been published"):
        publish.current_release(hub)


def test_releases_are_signed_with_the_coordinators_key(hub: CoordinatorHome) -> None:
    assert Trust.load(hub.trust_file).keys == (pki.release_key(hub).public_key().public_bytes_raw(),)
