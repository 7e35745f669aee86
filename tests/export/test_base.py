"""The base that comes with the program is a release like any other, and is verified like one."""

import shutil
from pathlib import Path

import pytest

from export import base, release
from export.errors import IntegrityError, NotConfiguredError
from export.signing import Trust
from tests import releases

MODALITIES = sorted(path.name for path in base.FOLDER.iterdir() if path.is_dir() and (path / "release").is_dir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package with one base, of a small modality."""
    releases.publish(tmp_path / "style-tiny" / "release", federation=base.FEDERATION)
    Trust(base.FEDERATION, (releases.public(releases.KEY),)).save(tmp_path / "style-tiny" / base.TRUST)
    return tmp_path


def test_a_packaged_base_is_verified_and_opened(folder: Path) -> None:
    assert base.load("style-tiny", folder).manifest.federation == base.FEDERATION


def test_a_changed_base_is_refused(folder: Path) -> None:
    (folder / "style-tiny" / "release" / release.EXACT).write_bytes(b"exact two")

    with pytest.raises(IntegrityError, match=r"exact\.onnx is not what was signed"):
        base.load("style-tiny", folder)


def test_a_base_of_another_key_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "style-tiny" / "release")
    releases.publish(folder / "style-tiny" / "release", releases.key_number(66), federation=base.FEDERATION)

    with pytest.raises(IntegrityError, match="not signed by 'sfumato-base'"):
        base.load("style-tiny", folder)


@pytest.mark.parametrize("modality", ["style-gigantic", "../style-tiny/nothing", ""])
def test_a_modality_without_a_base_is_told(folder: Path, modality: str) -> None:
    if modality:
        with pytest.raises(NotConfiguredError, match="no base body for") as caught:
            base.load(modality, folder)
        assert "scripts/train_base" in caught.value.advice
    else:
        with pytest.raises((NotConfiguredError, IntegrityError, OSError)):
            base.load(modality, folder)


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_base_in_the_package_is_what_its_key_signed_and_is_whole(modality: str) -> None:
    packaged = base.load(modality)

    assert (packaged.manifest.modality, packaged.manifest.version, packaged.manifest.round) == (modality, 1, 0)
    assert release.IDENTITY in release.codes_of(packaged)
    assert release.body_of(packaged)
    assert 16 <= len(release.calibration_photos(packaged)) <= 32
    assert release.pictures_of(packaged, release.PROBE)
    assert set(release.pictures_of(packaged, release.WORKS)) == set(release.codes_of(packaged)) - {release.IDENTITY}


def test_there_is_a_base_for_what_both_programs_start_with() -> None:
    from coordinator.config import Config as Coordinator  # noqa: PLC0415 - of this test only
    from edge_node.config import Config as Node  # noqa: PLC0415

    assert Node("Ada", "ada").modality == Coordinator("guild").modality
    assert Coordinator("guild").modality in MODALITIES
