"""A release folder: what is in it, how it is written, how its parts are read.

manifest.json  signatures.json      see manifest.py and signing.py
body.safetensors                    the shared body
exact.onnx                          photo + code → picture
codes.safetensors                   public style codes; one is the identity
works/NAME.jpg                      the public-domain works those codes were fitted on
calibration/*.jpg  probe/*.jpg      public photos: to fold and quantise with, and to judge by
card.md                             the model card
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export import weights
from export.errors import IntegrityError
from export.files import digest_of, write_folder_atomic
from export.manifest import FileEntry, Manifest
from export.signing import MANIFEST, SIGNATURES, VerifiedRelease, sign
from models import codecs
from models.contract import Work
from models.samplers import Code
from models.update import Arrays

BODY, EXACT, CODES, CARD = "body.safetensors", "exact.onnx", "codes.safetensors", "card.md"
WORKS, CALIBRATION, PROBE = "works", "calibration", "probe"
IDENTITY: Final = "identity"
"""Name of the public code that gives the photo back; strength starts from it."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything a release is made of, as bytes by path."""

    files: Mapping[str, bytes]

    @classmethod
    def of(
        cls,
        *,
        body: Arrays,
        exact: bytes,
        codes: Mapping[str, Code],
        works: Mapping[str, bytes],
        calibration: Mapping[str, bytes],
        probe: Mapping[str, bytes],
        card: str,
    ) -> Contents:
        """Lay the parts out; pictures are given as the JPEG bytes they are published as."""
        return cls(
            {
                BODY: weights.pack(body),
                EXACT: exact,
                CODES: weights.pack(codes),
                CARD: card.encode(),
                **{f"{WORKS}/{name}.jpg": data for name, data in works.items()},
                **{f"{CALIBRATION}/{name}.jpg": data for name, data in calibration.items()},
                **{f"{PROBE}/{name}.jpg": data for name, data in probe.items()},
            }
        )

    def entries(self) -> dict[str, FileEntry]:
        """Digest and size of each file, for the manifest."""
        return {path: FileEntry(digest_of(data), len(data)) for path, data in self.files.items()}


def write(folder: Path, contents: Contents, manifest: Manifest, key: Ed25519PrivateKey) -> None:
    """Write and sign a release folder; it appears whole or not at all, the manifest and its signature last.

    Raises:
        ResourceError: the disk is full or not writable.
    """
    raw = manifest.to_bytes()

    def fill(staging: Path) -> None:
        for path, data in {**contents.files, MANIFEST: raw, SIGNATURES: sign(raw, key)}.items():
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_bytes(data)

    write_folder_atomic(folder, fill)


def body_of(release: VerifiedRelease) -> Arrays:
    """The body's tensors.

    Raises:
        IntegrityError: changed, or not the body the manifest names.
    """
    data = release.read(BODY)
    if digest_of(data) != release.manifest.body:
        raise IntegrityError(
            "the release's manifest names another body than it holds", advice="Ask the coordinator to publish it again."
        )
    return weights.unpack(data)


def codes_of(release: VerifiedRelease) -> dict[str, Code]:
    """The public codes by name.

    Raises:
        IntegrityError: there is no identity code, or a code is not as long as the signature says.
    """
    codes = weights.unpack(release.read(CODES))
    length = release.manifest.signature.code.shape[1]
    if IDENTITY not in codes or any(code.shape != (length,) for code in codes.values()):
        raise IntegrityError(
            "the release's public codes do not fit its graph", advice="Ask the coordinator to publish it again."
        )
    return codes


def pictures_of(release: VerifiedRelease, folder: str) -> dict[str, Work]:
    """The decoded pictures of one of its folders, by name."""
    return {Path(path).stem: codecs.decode(release.read(path)) for path in release.paths(folder)}


def calibration_photos(release: VerifiedRelease) -> Sequence[Work]:
    """The public photos to fold and quantise with."""
    return list(pictures_of(release, CALIBRATION).values())
