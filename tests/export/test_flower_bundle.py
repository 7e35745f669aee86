"""The bundle that names the protocol: the same bytes everywhere, and Flower's own builder agrees."""

import shutil
import stat
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from export.errors import IntegrityError
from export.flower_bundle import APP_DIR, build_fab, fab_digest, installed_fab_digest


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    """Return a copy of the packaged app that a test may change."""
    copy = tmp_path / "flower_app"
    shutil.copytree(APP_DIR, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


# Flower 1.41 calls pathspec by a name that pathspec has deprecated.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_bundle_is_the_one_flower_builds(app_dir: Path) -> None:
    build_fab_from_disk = pytest.importorskip("flwr.cli.build").build_fab_from_disk

    assert build_fab() == build_fab_from_disk(app_dir)


def test_bundle_is_the_same_bytes_every_time() -> None:
    assert build_fab() == build_fab()
    assert installed_fab_digest() == fab_digest(build_fab())


def test_stray_files_do_not_change_the_bundle(app_dir: Path) -> None:
    (app_dir / ".gitignore").write_text("*\n")
    (app_dir / "notes.md").write_text("private")
    (app_dir / "sfumato_app" / "extra.py").write_text("import os")
    (app_dir / "sfumato_app" / "__pycache__").mkdir()

    assert build_fab(app_dir) == build_fab()


@pytest.mark.parametrize("name", ["pyproject.toml", "sfumato_app/server.py", "sfumato_app/client.py"])
def test_every_file_is_part_of_the_digest(app_dir: Path, name: str) -> None:
    with (app_dir / name).open("a") as file:
        file.write("\n")

    assert fab_digest(build_fab(app_dir)) != installed_fab_digest()


def test_bundle_is_built_from_a_folder_that_cannot_be_written(app_dir: Path) -> None:
    for folder in (app_dir, app_dir / "sfumato_app"):
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    before = sorted(app_dir.rglob("*"))

    assert build_fab(app_dir) == build_fab()
    assert sorted(app_dir.rglob("*")) == before
    for folder in (app_dir, app_dir / "sfumato_app"):
        folder.chmod(stat.S_IRWXU)


def test_a_file_that_is_no_stub_is_refused(app_dir: Path) -> None:
    (app_dir / "sfumato_app" / "server.py").write_bytes(b"#" * ((1 << 20) + 1))

    with pytest.raises(IntegrityError, match=r"server\.py is larger"):
        build_fab(app_dir)


def test_bundle_names_the_protocol_and_asks_for_nothing() -> None:
    with zipfile.ZipFile(BytesIO(build_fab())) as archive:
        config = tomllib.loads(archive.read("pyproject.toml").decode())

    assert config["project"]["name"] == "sfumato-app"
    assert config["project"]["version"] == "2.0.0"
    assert config["project"]["dependencies"] == []
    assert config["tool"]["flwr"]["app"]["config"] == {"rounds": 1}
    assert config["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "sfumato_app.server:app",
        "clientapp": "sfumato_app.client:app",
    }
