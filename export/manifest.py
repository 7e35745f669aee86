"""What a release says of itself: a small canonical JSON file, strictly read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from export.errors import IntegrityError
from export.files import Digest, canonical_json
from models.contract import Signature, SignatureError

MANIFEST_MAX_BYTES: Final = 256 * 2**10
FORMAT: Final = 1
_FILE_MAX_BYTES: Final = 64 * 2**20
_FILES_MAX: Final = 200
# Lower case, no "..", at most two folders deep: nothing that two file systems could read as different places.
_PATH: Final = re.compile(r"(?:[a-z0-9_-]{1,40}/){0,2}[a-z0-9_-]{1,60}(?:\.[a-z0-9]{1,12}){1,2}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Digest and size of one file of a release."""

    sha256: Digest
    bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate measured before it let a body out (DESIGN, section 6).

    Attributes:
        style_before, style_after: style distance of the current and the candidate body, 0 is perfect.
        content_before, content_after: mean SSIM to the probe photos, 1 is the same picture.
        grid: strength of a pixel-grid artefact in the candidate, see ``coordinator/gate.py``.
        int8_psnr_db, int8_ssim: int8 against folded fp32 pictures of the candidate.
        int8_style_before, int8_style_after: style distance of what is painted in int8, by the current and the candidate body;
            not known of releases that were made before the gate looked at it.
    """

    style_before: float
    style_after: float
    content_before: float
    content_after: float
    grid: float
    int8_psnr_db: float
    int8_ssim: float
    int8_style_before: float | None = None
    int8_style_after: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A release's description of itself.

    Attributes:
        federation: who published it.
        version: 1, 2, ...; never reused, never goes down.
        round: the round whose outcome it is; 0 for a base.
        modality: registry name of the kind of art.
        signature: how its graphs are fed.
        body: sha256 of ``body.safetensors``; style codes belong to exactly one body.
        parent: body digest this one was refined from; empty for a base trained from nothing.
        contributors: how many nodes' updates were averaged.
        licence: SPDX expression for the weights.
        created: ISO 8601, UTC.
        verdict: the gate's, or None for a base.
        files: every other file of the folder.
    """

    federation: str
    version: int
    round: int
    modality: str
    signature: Signature
    body: Digest
    parent: str
    contributors: int
    licence: str
    created: str
    verdict: Verdict | None
    files: Mapping[str, FileEntry]

    def to_bytes(self) -> bytes:
        """Canonical JSON: what is signed."""
        return canonical_json(
            {
                "format": FORMAT,
                "federation": self.federation,
                "version": self.version,
                "round": self.round,
                "modality": self.modality,
                "signature": self.signature.to_plain(),
                "body": self.body,
                "parent": self.parent,
                "contributors": self.contributors,
                "licence": self.licence,
                "created": self.created,
                "verdict": _verdict_to_plain(self.verdict),
                "files": {path: {"sha256": e.sha256, "bytes": e.bytes} for path, e in self.files.items()},
            }
        )


_FIELDS: Final = frozenset(
    {
        *("format", "federation", "version", "round", "modality", "signature", "body"),
        *("parent", "contributors", "licence", "created", "verdict", "files"),
    }
)
_VERDICT_LATER: Final = frozenset({"int8_style_before", "int8_style_after"})
_VERDICT_FIELDS: Final = frozenset(field.name for field in fields(Verdict))


def _verdict_to_plain(verdict: Verdict | None) -> dict[str, float] | None:
    if verdict is None:
        return None
    figures = {name: getattr(verdict, name) for name in sorted(_VERDICT_FIELDS)}
    return {name: figure for name, figure in figures.items() if figure is not None}


def parse_manifest(raw: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        IntegrityError: a field is missing, surplus, of the wrong type or out of range.
    """
    try:
        plain = json.loads(raw)
        if not isinstance(plain, dict) or set(plain) != _FIELDS or plain["format"] != FORMAT:
            raise ValueError("fields or format unknown to this version")
        return Manifest(
            federation=_text(plain["federation"], 100),
            version=_count(plain["version"]),
            round=_count(plain["round"]),
            modality=_text(plain["modality"], 100),
            signature=Signature.from_plain(plain["signature"]),
            body=_digest(plain["body"]),
            parent=_text(plain["parent"], 64, may_be_empty=True),
            contributors=_count(plain["contributors"]),
            licence=_text(plain["licence"], 200),
            created=_text(plain["created"], 40),
            verdict=_verdict(plain["verdict"]),
            files=_files(plain["files"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, SignatureError) as error:
        raise IntegrityError(
            f"the release's manifest cannot be used: {error}",
            advice="Update Sfumato, or ask the coordinator to publish the release again.",
        ) from error


def _text(value: object, longest: int, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or len(value) > longest or not (value or may_be_empty) or not value.isprintable():
        raise ValueError(f"not a text of at most {longest} characters: {value!r}")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError(f"not a count: {value!r}")
    return value


def _digest(value: object) -> Digest:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"not a sha256: {value!r}")
    return Digest(value)


def _verdict(value: object) -> Verdict | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) not in (_VERDICT_FIELDS, _VERDICT_FIELDS - _VERDICT_LATER):
        raise ValueError("not a verdict")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value.values()):
        raise ValueError("a verdict holds numbers")
    figures = {name: float(v) for name, v in value.items()}
    if not all(math.isfinite(figure) for figure in figures.values()):
        raise ValueError("a verdict holds finite numbers")
    return Verdict(**figures)


def _files(value: object) -> dict[str, FileEntry]:
    if not isinstance(value, dict) or not 0 < len(value) <= _FILES_MAX:
        raise ValueError("no files, or too many")
    files = {}
    for path, entry in value.items():
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            raise ValueError(f"not a path of a release: {path!r}")
        if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
            raise ValueError(f"{path} has no digest and size")
        size = _count(entry["bytes"])
        if size > _FILE_MAX_BYTES:
            raise ValueError(f"{path} is larger than any file of a release")
        files[path] = FileEntry(_digest(entry["sha256"]), size)
    return files
