"""A release folder is written whole, verified, and gives back what went in."""

import errno
import os
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
import pytest

from export import release
from export.errors import IntegrityError, ResourceError
from export.files import digest_of
from export.release import BODY, CARD, CODES, EXACT, IDENTITY, PROBE, WORKS
from export.signing import MANIFEST, SIGNATURES, Ed25519Signatures, VerifiedRelease
from models import codecs
from tests import releases
from tests.releases import CODE_LENGTH, TRUST

VERIFIER: Final = Ed25519Signatures()


def verified(folder: Path, **changes: object) -> VerifiedRelease:
    published = releases.publish(folder, of=releases.contents(**changes))
    return VERIFIER.verify(published.folder, TRUST)


def test_what_was_written_is_verified_and_read_back_equal(tmp_path: Path) -> None:
    published = releases.publish(tmp_path / "release")

    found = VERIFIER.verify(published.folder, TRUST)

    assert found.manifest == published.manifest
    assert {path: found.read(path) for path in found.manifest.files} == published.contents.files
    assert found.read(EXACT) == b"exact one"
    assert found.read(CARD) == b"# A small body\n"


def test_body_and_codes_come_back_number_by_number(tmp_path: Path) -> None:
    found = verified(tmp_path / "release")

    body, codes = release.body_of(found), release.codes_of(found)

    assert body.keys() == releases.body().keys()
    assert all(np.array_equal(body[name], array) for name, array in releases.body().items())
    assert codes.keys() == releases.codes().keys()
    assert all(np.array_equal(codes[name], code) for name, code in releases.codes().items())


def test_pictures_come_back_decoded_under_their_names(tmp_path: Path) -> None:
    found = verified(tmp_path / "release")

    works = release.pictures_of(found, WORKS)

    assert list(works) == ["picture-0"]
    assert np.array_equal(works["picture-0"], codecs.decode(found.read("works/picture-0.jpg")))
    assert [photo.shape for photo in release.calibration_photos(found)] == [(24, 24, 3), (24, 32, 3)]
    assert len(release.pictures_of(found, PROBE)) == 1


def test_a_damaged_picture_of_a_release_is_refused(tmp_path: Path) -> None:
    found = verified(tmp_path / "release", works={"odd": b"no picture"})

    with pytest.raises(codecs.CodecError, match="not a JPEG"):
        release.pictures_of(found, WORKS)


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param({"durer": np.zeros(CODE_LENGTH, np.float32)}, id="no identity"),
        pytest.param({IDENTITY: np.zeros(CODE_LENGTH - 1, np.float32)}, id="too short"),
        pytest.param({IDENTITY: np.zeros((1, CODE_LENGTH), np.float32)}, id="of another rank"),
        pytest.param({IDENTITY: np.zeros(CODE_LENGTH, np.float32), "a": np.zeros(CODE_LENGTH + 1, np.float32)}, id="too long"),
        pytest.param({}, id="none"),
    ],
)
def test_public_codes_that_do_not_fit_the_graph_are_refused(
    tmp_path: Path, codes: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
) -> None:
    with pytest.raises(IntegrityError, match="do not fit its graph"):
        release.codes_of(verified(tmp_path / "release", codes=codes))


def test_the_entries_of_contents_are_the_digests_and_sizes_of_its_files() -> None:
    contents = releases.contents()

    entries = contents.entries()

    assert entries.keys() == contents.files.keys()
    assert {BODY, EXACT, CODES, CARD} < set(entries)
    assert all(entries[path].sha256 == digest_of(data) for path, data in contents.files.items())
    assert all(entries[path].bytes == len(data) for path, data in contents.files.items())


def test_a_release_is_exactly_its_files_its_manifest_and_its_signatures(tmp_path: Path) -> None:
    published = releases.publish(tmp_path / "release")

    there = {p.relative_to(published.folder).as_posix() for p in published.folder.rglob("*") if p.is_file()}
    assert there == {*published.contents.files, MANIFEST, SIGNATURES}


@pytest.mark.parametrize("call", [1, 5, 9])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    calls = [0]
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        calls[0] += 1
        if calls[0] == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(ResourceError, match="release could not be written"):
        releases.publish(tmp_path / "releases" / "release")

    assert calls[0] == call
    assert list((tmp_path / "releases").iterdir()) == []


def test_a_write_that_is_stopped_by_hand_leaves_nothing_and_keeps_the_old_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases.publish(tmp_path / "release")

    def stop(_self: Path, _data: bytes) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", stop)
        with pytest.raises(KeyboardInterrupt):
            releases.publish(tmp_path / "release", version=4)

    assert VERIFIER.verify(tmp_path / "release", TRUST).manifest.version == 3
    assert [p.name for p in tmp_path.iterdir()] == ["release"]
