"""A coordinator's life in one file: whole, for its owner alone, and no way in for a stranger's files."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import backups, pki, policies, publish, service
from coordinator.config import Home
from coordinator.endpoint import create_endpoint
from coordinator.store import Store
from edge_node import consent, membership, updater
from export import settings
from export.errors import IntegrityError, ResourceError, UsageError
from export.files import write_atomic
from export.invite import Invite
from export.ledger import Ledger
from export.signing import Trust, VerifiedRelease
from tests import simulators
from tests.simulators import CoordinatorHome, Registry, SimulatedGrid, hold_rounds, honest


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    del world
    home = simulators.make_coordinator(tmp_path / "hub", minimum_nodes=1)
    simulators.enrol(home, 1)
    return home


@pytest.fixture
def restored(hub: CoordinatorHome, tmp_path: Path) -> CoordinatorHome:
    backups.backup(hub, tmp_path / "backup")
    home = Home(tmp_path / "again")
    backups.restore(home, tmp_path / "backup")
    return home


def test_what_makes_a_coordinator_is_there_again(hub: CoordinatorHome, restored: CoordinatorHome) -> None:
    assert pki.ca_der(restored) == pki.ca_der(hub)
    assert pki.release_key(restored).private_bytes_raw() == pki.release_key(hub).private_bytes_raw()
    assert restored.config() == hub.config()
    assert policies.current(restored) == policies.current(hub)
    assert Store(restored.database).nodes() == Store(hub.database).nodes()
    assert publish.current_release(restored).digest == publish.current_release(hub).digest
    assert Ledger(restored.ledger_file).entries() == Ledger(hub.ledger_file).entries()


def test_a_backup_and_what_comes_of_it_are_for_this_user_alone(
    hub: CoordinatorHome, restored: CoordinatorHome, tmp_path: Path
) -> None:
    del hub
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    assert restored.root.stat().st_mode & 0o077 == 0
    keys = [path for path in (restored.root / "pki").iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    assert len(keys) == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in [*keys, restored.database])


def test_what_was_being_written_while_it_was_taken_is_whole_or_absent(hub: CoordinatorHome, tmp_path: Path) -> None:
    store = Store(hub.database)
    with store._transaction() as db:  # somebody is in the middle of something
        db.execute("INSERT INTO invites VALUES ('x', 'Berthe', 'artist', 1e12, NULL, NULL)")
        backups.backup(hub, tmp_path / "backup")
    backups.restore(Home(tmp_path / "again"), tmp_path / "backup")

    assert Store(Home(tmp_path / "again").database).open_invites(0.0) == []
    assert [invite.alias for invite in store.open_invites(0.0)] == ["Berthe"]


def test_the_next_release_and_round_are_beyond_any_that_a_member_may_have_seen(
    hub: CoordinatorHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups.backup(hub, tmp_path / "backup")
    hold_rounds(monkeypatch, hub, SimulatedGrid({1: honest(1)}), count=2)  # of which the backup knows nothing
    seen = publish.current_release(hub).manifest.version, Store(hub.database).rounds()[-1].round
    again = Home(tmp_path / "again")
    backups.restore(again, tmp_path / "backup")

    hold_rounds(monkeypatch, again, SimulatedGrid({1: honest(1)}))

    now = Store(again.database).rounds()[-1]
    assert now.state == "published"
    assert publish.current_release(again).manifest.version > seen[0]
    assert now.round > seen[1]


def test_rounds_that_were_under_way_are_not_gone_on_with(hub: CoordinatorHome, tmp_path: Path) -> None:
    simulators.open_round(Store(hub.database), "training")
    backups.backup(hub, tmp_path / "backup")
    again = Home(tmp_path / "again")
    backups.restore(again, tmp_path / "backup")

    store = Store(again.database)
    assert store.open_job() is None
    assert {round_.state for round_ in store.rounds()} == {"failed"}


@pytest.fixture
def served(hub: CoordinatorHome) -> Iterator[CoordinatorHome]:
    with simulators.serve_coordinator(hub, create_endpoint(hub, Registry())):
        yield hub


def test_a_member_that_joined_after_the_backup_comes_back_without_a_new_invite(served: CoordinatorHome, tmp_path: Path) -> None:
    backups.backup(served, tmp_path / "backup")
    node = simulators.make_node(tmp_path / "node")
    membership.join(node, Invite.parse(service.invite(served, "Ada", "artist", 60.0)))
    again = Home(tmp_path / "again")
    backups.restore(again, tmp_path / "backup")
    assert "Ada" not in {member.alias for member in Store(again.database).nodes()}

    with simulators.serve_coordinator(again, create_endpoint(again, Registry())) as port:
        # Its address is the same in life; here the port is another.
        text = node.membership_file.read_text().replace(str(membership.load(node).port), str(port))
        node.membership_file.write_text(text)
        updater.update(node)

    assert "Ada" in {member.alias for member in Store(again.database).nodes()}
    assert consent.offered(node) == policies.current(again)


def test_a_folder_that_holds_something_is_not_restored_into(hub: CoordinatorHome, tmp_path: Path) -> None:
    backups.backup(hub, tmp_path / "backup")

    with pytest.raises(UsageError, match="is not empty") as caught:
        backups.restore(hub, tmp_path / "backup")

    assert "--home" in caught.value.advice


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        backups.restore(Home(tmp_path / "again"), tmp_path / "nowhere")


def archive_of(**files: bytes | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name.replace("__", "/"))
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def odd(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"nonsense" * 100, id="nonsense"),
        pytest.param(archive_of(made=b"now")[:-20], id="cut short"),
        pytest.param(archive_of(made=b"now"), id="without a coordinator"),
        pytest.param(archive_of(stranger=b"x"), id="a stranger's file"),
        pytest.param(archive_of(**{"..__escaped": b"x"}), id="outside"),
        pytest.param(archive_of(**{"pki__..__..__escaped": b"x"}), id="outside by a detour"),
        pytest.param(archive_of(__tmp__escaped=b"x"), id="an absolute path"),
        pytest.param(archive_of(x=odd("pki/ca.key", tarfile.SYMTYPE, "/etc/passwd")), id="a link"),
        pytest.param(archive_of(x=odd("pki/ca.key", tarfile.LNKTYPE, "made")), id="a hard link"),
        pytest.param(archive_of(x=odd("pki/ca.key", tarfile.FIFOTYPE)), id="a pipe"),
    ],
)
def test_what_is_no_backup_is_refused_and_nothing_is_left(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "backup").write_bytes(data)

    with pytest.raises(IntegrityError, match="is no backup of a coordinator"):
        backups.restore(Home(tmp_path / "again"), tmp_path / "backup")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup"]


def test_a_full_disk_leaves_no_half_a_coordinator(
    hub: CoordinatorHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups.backup(hub, tmp_path / "backup")
    written: list[Path] = []

    def fills_up(path: Path, data: bytes, mode: int = 0o644) -> None:
        written.append(path)
        if len(written) > 5:
            raise ResourceError("no room", advice="Free some.")
        write_atomic(path, data, mode)

    monkeypatch.setattr(backups, "write_atomic", fills_up)
    with pytest.raises(ResourceError):
        backups.restore(Home(tmp_path / "again"), tmp_path / "backup")

    assert not (tmp_path / "again").exists()


def test_settings_of_the_restored_can_be_changed(restored: CoordinatorHome) -> None:
    settings.save(restored.config_file, restored.config())

    assert Trust.load(restored.trust_file).highest_version == 1 + backups.NUMBERS_SKIPPED
