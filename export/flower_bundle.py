"""Builds the Flower app bundle (FAB) that names our protocol, as the same bytes on every machine.

A node runs only the program it has installed. The bundle Flower pushes to it is therefore no code to run but a name to
compare: its digest changes when, and only when, a file of `flower_app/` changes, which is when the protocol does
(raise `version` there, and the two programs refuse each other until both are updated).

Written with the standard library alone, because both sides need it and neither `export` nor a gallery has Flower. A FAB
is a stored zip with fixed dates and a manifest; `tests/export/test_flower_bundle.py` holds this file to Flower's
own builder. Two traps follow from that: Flower re-dumps `pyproject.toml`, so the file must stay in the shape its TOML
writer gives (no comments), and it packs every text file it finds, so `_SOURCES` must name them all.

A run may override the keys of the configuration in `flower_app/pyproject.toml` and no others: `rounds` to hold.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NewType

from export.files import Digest, digest_of, read_bounded

FabDigest = NewType("FabDigest", Digest)
"""The digest of a bundle's bytes; also Flower's own name for a bundle."""

APP_DIR: Final = Path(__file__).parent / "flower_app"

_CONFIG: Final = "pyproject.toml"
# Sorted, as Flower sorts them. A list and not a search: a stray file in the installed folder must change nothing.
_SOURCES: Final = ("sfumato_app/__init__.py", "sfumato_app/client.py", "sfumato_app/server.py")
# flwr 1.41 common/constant.py: FAB_DATE and FAB_MAX_SIZE.
_DATE: Final = (2024, 10, 1, 0, 0, 0)
_FILE_MAX_BYTES: Final = 1 << 20


def build_fab(app_dir: Path | None = None) -> bytes:
    """Return the bundle of `app_dir`, or of the app inside this package; reads only, writes nothing."""
    root = APP_DIR if app_dir is None else app_dir
    return _pack({name: read_bounded(root / name, _FILE_MAX_BYTES) for name in (_CONFIG, *_SOURCES)})


def fab_digest(fab: bytes) -> FabDigest:
    """Return the digest by which a node recognises a bundle."""
    return FabDigest(digest_of(fab))


def installed_fab_digest() -> FabDigest:
    """Return the digest of the app this installation speaks."""
    return fab_digest(build_fab())


def _pack(files: Mapping[str, bytes]) -> bytes:
    """Zip `files` in their order, with Flower's manifest (name, digest, size in bits) last."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(_entry(name), content)
        archive.writestr(_entry(".info/CONTENT"), "\n".join(_manifest_line(n, c) for n, c in files.items()))
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.create_system = 3  # Unix, also when built on Windows: this byte is part of the digest.
    return entry


def _manifest_line(name: str, content: bytes) -> str:
    return f"{name},{digest_of(content)},{len(content) * 8}"
