"""The base bodies that come with the program: releases like any other, trusted by the key beside them.

Whoever installed the program trusts its code; the key in the same package adds nothing to that and takes nothing away, but
lets one way of verifying and reading serve for every release. Its private half was thrown away by ``scripts/train_base``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from export.errors import NotConfiguredError
from export.signing import Ed25519Signatures, Trust, VerifiedRelease

FOLDER: Final = Path(__file__).parent / "base"
TRUST: Final = "trust.json"
FEDERATION: Final = "sfumato-base"


def load(modality: str, folder: Path = FOLDER) -> VerifiedRelease:
    """The packaged base of a modality, verified.

    Raises:
        NotConfiguredError: none comes with this version.
        IntegrityError: the installed files were changed.
    """
    root = folder / modality
    if not root.is_dir():
        raise NotConfiguredError(
            f"no base body for {modality!r} comes with this version",
            advice="Choose another modality, or train a base with scripts/train_base.",
        )
    return Ed25519Signatures().verify(root / "release", Trust.load(root / TRUST))
