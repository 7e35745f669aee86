"""Installing, listing and going back: a release is taken whole and verified, or nothing changes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_node import releases
from edge_node.config import Home
from edge_node.errors import NotJoinedError
from export.errors import IntegrityError, NotConfiguredError, ResourceError, UsageError
from export.files import Digest
from export.signing import VerifiedRelease
from tests import simulators
from tests.releases import Published, key_number, publish


@pytest.fixture
def home(tmp_path: Path, world: VerifiedRelease) -> Home:
    """A member whose trust is the guild's key number 1."""
    del world
    return simulators.trusting(simulators.make_node(tmp_path / "home"))


@pytest.fixture
def third(tmp_path: Path) -> Published:
    return publish(tmp_path / "third")


def state_of(home: Home) -> dict[str, bytes]:
    """Every file of a home."""
    return {str(path.relative_to(home.root)): path.read_bytes() for path in home.root.rglob("*") if path.is_file()}


def test_a_new_machine_uses_the_base_that_came_with_the_program(home: Home, world: VerifiedRelease) -> None:
    assert releases.versions(home) == []
    assert releases.current(home).digest == world.digest


def test_an_installed_release_is_the_current_one(home: Home, third: Published) -> None:
    installed = releases.install(home, third.folder)

    assert installed.manifest == third.manifest
    assert installed.folder == home.releases / "3"
    assert releases.versions(home) == [3]
    assert releases.current(home).digest == installed.digest
    assert releases.trust(home).highest_version == 3


def test_installing_the_same_release_again_changes_nothing(home: Home, third: Published) -> None:
    releases.install(home, third.folder)
    before = state_of(home)

    releases.install(home, third.folder)

    assert state_of(home) == before


def tampered(published: Published) -> None:
    (published.folder / "exact.onnx").write_bytes(b"exact two")


def unsigned(published: Published) -> None:
    (published.folder / "signatures.json").unlink()


def surplus(published: Published) -> None:
    (published.folder / "run-me.py").write_bytes(b"print()")


@pytest.mark.parametrize(
    ("change", "reason"),
    [(tampered, "exact.onnx is not what was signed"), (unsigned, "has no signature"), (surplus, "which was not signed")],
)
def test_a_changed_release_is_refused_and_nothing_changes(
    home: Home, third: Published, change: Callable[[Published], None], reason: str
) -> None:
    change(third)
    before = state_of(home)

    with pytest.raises(IntegrityError, match=reason):
        releases.install(home, third.folder)

    assert state_of(home) == before


def test_a_release_signed_by_somebody_else_is_refused_and_nothing_changes(home: Home, tmp_path: Path) -> None:
    forged = publish(tmp_path / "forged", key_number(66))
    before = state_of(home)

    with pytest.raises(IntegrityError, match="not signed by 'guild'"):
        releases.install(home, forged.folder)

    assert state_of(home) == before


def test_an_older_release_is_refused_for_ever_and_nothing_changes(home: Home, third: Published, tmp_path: Path) -> None:
    older = publish(tmp_path / "older", version=2)
    releases.install(home, third.folder)
    before = state_of(home)

    with pytest.raises(IntegrityError, match="release 2 is older than release 3"):
        releases.install(home, older.folder)

    assert state_of(home) == before


def test_an_older_release_is_refused_even_after_going_back(home: Home, third: Published, tmp_path: Path) -> None:
    releases.install(home, publish(tmp_path / "second", version=2).folder)
    releases.install(home, third.folder)
    releases.rollback(home)

    with pytest.raises(IntegrityError, match="older"):
        releases.install(home, publish(tmp_path / "again", version=2).folder)


def test_a_full_disk_changes_nothing(home: Home, third: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of(home)

    def full(_source: object, _target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ResourceError, match="No space left on device") as caught:
        releases.install(home, third.folder)

    assert "disk space" in caught.value.advice
    assert state_of(home) == before
    assert releases.versions(home) == []


def test_a_disk_that_fills_while_replacing_leaves_the_installed_release(
    home: Home, third: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases.install(home, third.folder)
    before = state_of(home)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError):
        releases.install(home, third.folder)

    assert state_of(home) == before


@pytest.mark.parametrize("name", ["current", "trust.json"])
def test_an_install_cut_short_is_mended_by_installing_again(
    home: Home, third: Published, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        replace = Path.replace

        def killed(self: Path, target: Path) -> Path:
            if Path(target).name == name:
                raise KeyboardInterrupt
            return replace(self, target)

        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            releases.install(home, third.folder)
    assert releases.trust(home).highest_version == 0

    releases.install(home, third.folder)

    assert releases.current(home).manifest.version == 3
    assert releases.trust(home).highest_version == 3


def test_a_copy_that_went_wrong_never_appears(home: Home, third: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: Path(target).write_bytes(Path(source).read_bytes()[1:]))

    with pytest.raises(IntegrityError):
        releases.install(home, third.folder)

    assert releases.versions(home) == []
    assert not list(home.releases.glob(".*"))


def test_a_release_swapped_while_it_is_copied_is_refused(
    home: Home, third: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fourth = publish(tmp_path / "fourth", version=4)

    def swapped(offered: VerifiedRelease, staging: Path) -> None:
        del offered
        shutil.copytree(fourth.folder, staging, dirs_exist_ok=True)

    monkeypatch.setattr(releases, "_copy", swapped)
    with pytest.raises(IntegrityError, match="changed while it was copied"):
        releases.install(home, third.folder)

    assert releases.versions(home) == []


def test_going_back_takes_the_release_before(home: Home, third: Published, tmp_path: Path) -> None:
    releases.install(home, publish(tmp_path / "first", version=1).folder)
    releases.install(home, publish(tmp_path / "second", version=2).folder)
    releases.install(home, third.folder)

    assert releases.rollback(home).manifest.version == 2
    assert releases.rollback(home).manifest.version == 1
    with pytest.raises(UsageError, match="no earlier release"):
        releases.rollback(home)
    assert releases.current(home).manifest.version == 1
    assert releases.trust(home).highest_version == 3


def test_one_goes_back_from_a_damaged_release_too(home: Home, third: Published, tmp_path: Path) -> None:
    releases.install(home, publish(tmp_path / "second", version=2).folder)
    (releases.install(home, third.folder).folder / "card.md").unlink()

    assert releases.rollback(home).manifest.version == 2


def test_a_damaged_note_of_the_current_release_is_told(home: Home, third: Published) -> None:
    releases.install(home, third.folder)
    (home.releases / "current").write_bytes(b"\xffthree")

    with pytest.raises(IntegrityError, match="which release is in use is damaged") as caught:
        releases.current(home)

    assert "release install" in caught.value.advice


def test_a_machine_without_releases_has_nothing_to_go_back_to(home: Home) -> None:
    with pytest.raises(UsageError, match="no earlier release"):
        releases.rollback(home)


def test_a_release_changed_after_it_was_installed_is_not_opened(home: Home, third: Published) -> None:
    installed = releases.install(home, third.folder)
    (installed.folder / "card.md").write_bytes(b"# Another\n")

    with pytest.raises(IntegrityError, match=r"card\.md is not what was signed"):
        releases.current(home)


def test_a_release_that_is_not_installed_is_told(home: Home) -> None:
    with pytest.raises(IntegrityError, match="release 9 is not installed") as caught:
        releases.opened(home, 9)

    assert "release list" in caught.value.advice


def test_a_folder_that_is_not_there_is_told(home: Home, tmp_path: Path) -> None:
    for call in (releases.install, releases.verify):
        with pytest.raises(UsageError, match="no release folder"):
            call(home, tmp_path / "gone")


def test_a_machine_that_joined_nobody_installs_nothing(tmp_path: Path, third: Published) -> None:
    alone = simulators.make_node(tmp_path / "alone")

    for call in (releases.install, releases.verify):
        with pytest.raises(NotJoinedError, match="joined no federation") as caught:
            call(alone, third.folder)
        assert "sfumato join" in caught.value.advice
    assert not alone.releases.exists()


def test_verifying_changes_nothing(home: Home, third: Published) -> None:
    before = state_of(home)

    assert releases.verify(home, third.folder).manifest == third.manifest
    assert state_of(home) == before


def test_the_release_of_a_body_is_found_among_all(home: Home, third: Published, world: VerifiedRelease) -> None:
    releases.install(home, third.folder)

    assert releases.with_body(home, third.manifest.body).manifest.version == 3
    assert releases.with_body(home, world.manifest.body).digest == world.digest


def test_a_damaged_release_does_not_hide_the_others(home: Home, third: Published, tmp_path: Path) -> None:
    releases.install(home, third.folder)
    newer = releases.install(home, publish(tmp_path / "fourth", version=4).folder)
    (newer.folder / "card.md").unlink()

    assert releases.with_body(home, third.manifest.body).manifest.version == 3


def test_a_body_nobody_has_is_told(home: Home) -> None:
    with pytest.raises(NotConfiguredError, match="no installed release holds body 000000000000"):
        releases.with_body(home, Digest("0" * 64))
