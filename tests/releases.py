"""Small releases of a federation called guild, signed with keys that are good for nothing else."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export import release
from export.files import digest_of
from export.manifest import Manifest, Verdict
from export.release import BODY, Contents
from export.signing import Trust
from models.modalities.style import StyleModality
from models.samplers import Code
from models.update import Arrays
from tests import pictures

FEDERATION: Final = "guild"
SIGNATURE: Final = StyleModality("style-tiny", channels=8).signature
CODE_LENGTH: Final = SIGNATURE.code.shape[1] or 0
VERDICT: Final = Verdict(
    style_before=0.9,
    style_after=0.85,
    content_before=0.6,
    content_after=0.61,
    grid=0.01,
    int8_psnr_db=36.5,
    int8_ssim=0.97,
    int8_style_before=0.92,
    int8_style_after=0.88,
)


def key_number(number: int) -> Ed25519PrivateKey:
    """One of a row of keys everybody can compute."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def public(key: Ed25519PrivateKey) -> bytes:
    """The raw public key."""
    return key.public_key().public_bytes_raw()


KEY: Final = key_number(1)
TRUST: Final = Trust(FEDERATION, (public(KEY),))


def body() -> Arrays:
    """Two small tensors in place of a body."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("stem.weight", "to_full.weight")}


def codes() -> dict[str, Code]:
    """Two public codes."""
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(CODE_LENGTH).astype(np.float32) for name in ("identity", "durer")}


def contents(**changes: Any) -> Contents:
    """The files of a release; its graph is nine bytes that nobody opens."""
    parts: dict[str, Any] = {
        "body": body(),
        "exact": b"exact one",
        "codes": codes(),
        "works": pictures.with_names(pictures.stripes((24, 24))),
        "calibration": pictures.with_names(pictures.shapes((24, 24), 1), pictures.gradient((24, 32))),
        "probe": pictures.with_names(pictures.shapes((24, 24), 2)),
        "card": "# A small body\n",
    }
    return Contents.of(**{**parts, **changes})


def manifest(of: Contents, **changes: Any) -> Manifest:
    """A manifest that fits some contents."""
    plain = Manifest(
        federation=FEDERATION,
        version=3,
        round=7,
        modality="style-tiny",
        signature=SIGNATURE,
        body=digest_of(of.files[BODY]),
        parent="ab" * 32,
        contributors=4,
        licence="Apache-2.0",
        created="2026-01-02T03:04:05+00:00",
        verdict=VERDICT,
        files=of.entries(),
    )
    return replace(plain, **changes)


@dataclass(frozen=True)
class Published:
    """A release folder and what went into it."""

    folder: Path
    contents: Contents
    manifest: Manifest


def publish(folder: Path, key: Ed25519PrivateKey = KEY, of: Contents | None = None, **changes: Any) -> Published:
    """Write a signed release folder."""
    files = contents() if of is None else of
    said = manifest(files, **changes)
    release.write(folder, files, said, key)
    return Published(folder, files, said)
