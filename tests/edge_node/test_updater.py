"""Fetching a release from a coordinator, an honest one and every other kind."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from coordinator import policies, publish
from coordinator.endpoint import create_endpoint
from coordinator.store import Store
from edge_node import consent, membership, releases, updater
from edge_node.config import Home
from edge_node.errors import NoCoordinatorError, NotJoinedError
from edge_node.membership import Membership
from export import policy
from export.errors import IntegrityError, ResourceError
from export.files import write_json
from export.ledger import Ledger
from export.signing import Trust, VerifiedRelease
from tests import simulators
from tests.releases import Published, key_number
from tests.releases import publish as publish_small
from tests.simulators import CoordinatorHome, FakeCoordinator, Registry


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    del world
    return simulators.make_coordinator(tmp_path / "hub")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return simulators.make_node(tmp_path / "node")


def make_member(home: Home, hub: CoordinatorHome, port: int) -> None:
    home.ca_certificate.parent.mkdir(parents=True, exist_ok=True)
    home.ca_certificate.write_bytes(hub.ca_certificate.read_bytes())
    write_json(
        home.membership_file,
        asdict(Membership("guild", "Ada", "artist", "1", "127.0.0.1", port, "012 345")),
    )
    assert isinstance(membership.load(home), Membership)


@pytest.fixture
def member(home: Home, hub: CoordinatorHome) -> Iterator[Home]:
    """A member of a coordinator that serves its release 1."""
    with simulators.serve_coordinator(hub, create_endpoint(hub, Registry())) as port:
        make_member(home, hub, port)
        simulators.make_known(hub, home)
        trust = Trust.load(hub.trust_file)
        Trust(trust.federation, trust.keys, trust.threshold).save(home.trust_file)
        yield home


@pytest.fixture
def fake() -> FakeCoordinator:
    return FakeCoordinator()


@pytest.fixture
def deceived(home: Home, hub: CoordinatorHome, fake: FakeCoordinator) -> Iterator[Home]:
    """A member of a coordinator that answers whatever the test says; the guild's releases are signed by key number 1."""
    with simulators.serve(fake, hub.server_certificate, hub.server_key) as port:
        make_member(home, hub, port)
        fake.answers["/sfumato/v1/time"] = (200, b'{"time": 1700000000.0}')
        simulators.make_known(hub, home)
        yield simulators.agreeing(simulators.trusting(home))


def offer(fake: FakeCoordinator, published: Published, *, version: int | None = None) -> None:
    """Have the coordinator serve a release folder."""
    number = published.manifest.version if version is None else version
    listed = {"version": number, "files": sorted(published.manifest.files), "round_running": False, "time": 1e9}
    listed |= {"policy": simulators.POLICY.digest, "answers": [], "online": None}
    fake.answers["/sfumato/v1/release"] = (200, json.dumps(listed).encode())
    for path in (p for p in published.folder.rglob("*") if p.is_file()):
        name = path.relative_to(published.folder).as_posix()
        fake.answers[f"/sfumato/v1/releases/{number}/{name}"] = (200, path.read_bytes())


def leftovers(home: Home) -> list[str]:
    return [path.name for path in home.releases.glob("*")] if home.releases.exists() else []


def test_a_new_release_is_fetched_verified_and_installed(member: Home, hub: CoordinatorHome) -> None:
    installed = updater.update(member).installed

    assert installed is not None
    assert installed.digest == publish.current_release(hub).digest
    assert releases.current(member).digest == installed.digest
    assert sorted(leftovers(member)) == ["1", "current"]


def test_a_release_that_was_seen_is_not_fetched_again(member: Home) -> None:
    updater.update(member)

    assert updater.update(member).installed is None


def test_after_going_back_the_newer_one_is_not_forced_upon_the_machine(
    deceived: Home, fake: FakeCoordinator, tmp_path: Path
) -> None:
    releases.install(deceived, publish_small(tmp_path / "two", version=2).folder)
    three = publish_small(tmp_path / "three", version=3)
    offer(fake, three)
    updater.update(deceived)
    releases.rollback(deceived)

    assert updater.update(deceived).installed is None
    assert releases.current(deceived).manifest.version == 2


def test_a_version_one_was_told_of_when_joining_is_fetched(member: Home, hub: CoordinatorHome) -> None:
    Trust.load(hub.trust_file).having_seen(1).save(member.trust_file)

    assert updater.update(member).installed is not None
    assert updater.update(member).installed is None


@pytest.mark.parametrize("seen", [0, 3])
def test_a_release_that_lies_here_but_was_never_made_current_is_installed(
    deceived: Home, fake: FakeCoordinator, tmp_path: Path, seen: int
) -> None:
    three = publish_small(tmp_path / "three")
    releases.install(deceived, three.folder)
    (deceived.releases / "current").unlink()
    simulators.trusting(deceived, highest_version=seen)
    offer(fake, three)

    updater.update(deceived)

    assert releases.current(deceived).manifest.version == 3


def test_an_older_release_than_one_seen_is_not_even_fetched(deceived: Home, fake: FakeCoordinator, tmp_path: Path) -> None:
    simulators.trusting(deceived, highest_version=3)
    offer(fake, publish_small(tmp_path / "two", version=2))

    assert updater.update(deceived).installed is None
    # Once: with the end of a round between two answers, styles were renewed for the body that was just replaced.
    assert [path for _, path, _ in fake.received] == ["/sfumato/v1/time", "/sfumato/v1/release"]


def test_what_a_killed_process_was_fetching_is_swept_away_and_nothing_else(home: Home) -> None:
    for name in (".incoming-abc", "3"):
        (home.releases / name).mkdir(parents=True)
        (home.releases / name / "exact.onnx").write_bytes(b"?")

    updater.sweep(home)

    assert leftovers(home) == ["3"]


def test_a_round_under_way_is_noticed(member: Home, hub: CoordinatorHome) -> None:
    assert updater.update(member).is_round_running is False
    number = simulators.open_round(Store(hub.database))
    assert updater.update(member).is_round_running is True
    Store(hub.database).set_round(number, "failed", "", 0.0)
    assert updater.update(member).is_round_running is False


def test_an_honest_offer_of_the_fake_is_installed(deceived: Home, fake: FakeCoordinator, tmp_path: Path) -> None:
    # The positive control of the refusals below.
    offer(fake, publish_small(tmp_path / "three"))

    installed = updater.update(deceived).installed

    assert installed is not None
    assert installed.manifest.version == 3


def test_a_release_signed_by_another_key_is_refused_and_leaves_nothing(
    deceived: Home, fake: FakeCoordinator, tmp_path: Path
) -> None:
    offer(fake, publish_small(tmp_path / "forged", key_number(66)))

    with pytest.raises(IntegrityError, match="not signed by 'guild'"):
        updater.update(deceived)

    assert leftovers(deceived) == []
    assert releases.trust(deceived).highest_version == 0


def test_a_file_changed_on_the_way_is_refused_and_leaves_nothing(deceived: Home, fake: FakeCoordinator, tmp_path: Path) -> None:
    offer(fake, publish_small(tmp_path / "three"))
    fake.answers["/sfumato/v1/releases/3/exact.onnx"] = (200, b"exact two")

    with pytest.raises(IntegrityError, match=r"exact\.onnx is not what was signed"):
        updater.update(deceived)

    assert leftovers(deceived) == []


def test_an_old_release_offered_as_a_new_one_is_refused(deceived: Home, fake: FakeCoordinator, tmp_path: Path) -> None:
    three, two = publish_small(tmp_path / "three"), publish_small(tmp_path / "two", version=2)
    releases.install(deceived, three.folder)
    offer(fake, two, version=4)

    with pytest.raises(IntegrityError, match="release 2 is older than release 3"):
        updater.update(deceived)

    assert releases.current(deceived).manifest.version == 3
    assert sorted(leftovers(deceived)) == ["3", "current"]


def test_a_release_that_breaks_off_leaves_nothing(deceived: Home, fake: FakeCoordinator, tmp_path: Path) -> None:
    offer(fake, publish_small(tmp_path / "three"))
    del fake.answers["/sfumato/v1/releases/3/body.safetensors"]

    with pytest.raises(IntegrityError):
        updater.update(deceived)

    assert leftovers(deceived) == []


@pytest.mark.parametrize(
    "path", ["../../node.toml", "/etc/passwd", "a/../b.txt", "a\\b.txt", "..", "", "A.txt", "a/b/c/d.txt", "x", "con:aux.txt"]
)
def test_a_file_name_that_no_release_has_is_refused_before_it_is_asked_for(
    deceived: Home, fake: FakeCoordinator, path: str
) -> None:
    plain = {"version": 3, "files": ["exact.onnx", path], "round_running": False, "time": 1e9}
    plain |= {"policy": simulators.POLICY.digest, "answers": [], "online": None}
    fake.answers["/sfumato/v1/release"] = (200, json.dumps(plain).encode())

    with pytest.raises(IntegrityError, match="impossible file names"):
        updater.update(deceived)

    assert [path for _, path, _ in fake.received] == ["/sfumato/v1/time", "/sfumato/v1/release"]
    assert leftovers(deceived) == []


def test_more_files_than_any_release_has_are_refused(deceived: Home, fake: FakeCoordinator) -> None:
    plain = {
        "version": 3,
        "files": [f"a{number}.jpg" for number in range(201)],
        "round_running": False,
        "time": 1_700_000_001.0,
        "policy": simulators.POLICY.digest,
        "answers": [],
        "online": None,
    }
    fake.answers["/sfumato/v1/release"] = (200, json.dumps(plain).encode())

    with pytest.raises(IntegrityError, match="impossible file names"):
        updater.update(deceived)


def test_a_full_disk_leaves_the_release_in_use(
    deceived: Home, fake: FakeCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases.install(deceived, publish_small(tmp_path / "two", version=2).folder)
    offer(fake, publish_small(tmp_path / "three"))

    def full(_path: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match="No space left on device") as caught:
        updater.update(deceived)

    assert "the release in use is untouched" in caught.value.advice
    assert releases.current(deceived).manifest.version == 2
    assert sorted(leftovers(deceived)) == ["2", "current"]


def test_a_coordinator_that_went_away_is_told(home: Home, hub: CoordinatorHome) -> None:
    with simulators.serve(FakeCoordinator(), hub.server_certificate, hub.server_key) as port:
        make_member(simulators.trusting(home), hub, port)

    with pytest.raises(NoCoordinatorError):
        updater.update(home)


def test_a_machine_that_joined_nobody_asks_nobody(home: Home) -> None:
    with pytest.raises(NotJoinedError):
        updater.update(home)


# --- The policy, and what became of updates -----------------------------------------------------------------------------


def test_a_new_policy_is_fetched_and_not_agreed_to(member: Home, hub: CoordinatorHome) -> None:
    updater.update(member)
    assert consent.offered(member) == policies.current(hub)
    second = simulators.change_policy(hub, noise=0.25)

    updater.update(member)

    assert consent.offered(member) == second
    assert consent.accepted(member) is None


def test_a_policy_that_is_known_is_not_fetched_again(deceived: Home, fake: FakeCoordinator, tmp_path: Path) -> None:
    offer(fake, publish_small(tmp_path / "three"))

    updater.update(deceived)

    assert "/sfumato/v1/policy" not in [path for _, path, _ in fake.received]


def test_a_policy_that_the_federation_did_not_sign_is_refused(
    deceived: Home, fake: FakeCoordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = publish_small(tmp_path / "three")
    offer(fake, published)
    forged = policy.sign(simulators.POLICY.policy, key_number(2))
    fake.answers["/sfumato/v1/policy"] = (200, json.dumps(policy.to_plain(forged)).encode())
    listed = json.loads(fake.answers["/sfumato/v1/release"][1]) | {"policy": "0" * 64}
    fake.answers["/sfumato/v1/release"] = (200, json.dumps(listed).encode())

    with caplog.at_level(logging.WARNING):
        assert updater.update(deceived).installed is not None  # releases go on coming

    assert "the policy is not signed by 'guild'" in caplog.text
    assert consent.offered(deceived) == simulators.POLICY


def test_what_became_of_an_update_is_written_down_once_and_told(
    deceived: Home, fake: FakeCoordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    offer(fake, publish_small(tmp_path / "three"))
    verdicts = [
        {"round": 2, "accepted": False, "reason": "not-finite", "advice": "Look at your works."},
        {"round": 1, "accepted": True, "reason": "", "advice": ""},
    ]
    listed = json.loads(fake.answers["/sfumato/v1/release"][1]) | {"answers": verdicts}
    fake.answers["/sfumato/v1/release"] = (200, json.dumps(listed).encode())

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            updater.update(deceived)

    entries = [entry for entry in Ledger(deceived.ledger_file).entries() if entry["what"] == "verdict"]
    assert [(entry["round"], entry["accepted"], entry["reason"]) for entry in entries] == [
        (1, True, ""),
        (2, False, "not-finite"),
    ]
    assert caplog.text.count("does not count: not-finite. Look at your works.") == 1
