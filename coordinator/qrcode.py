"""An invite as a QR code: on the terminal it was asked for at, and as a file to print or send."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import segno

from export.errors import UsageError
from export.files import write_atomic

_SCALE: Final = 8
"""Pixels a module, so that an A6 print or a telephone's screen shows it sharply."""


def for_terminal(text: str) -> str:
    """Two modules a character, with the light border a camera needs."""
    out = io.StringIO()
    segno.make_qr(text, error="m").terminal(out, border=2, compact=True)
    return out.getvalue().rstrip("\n")


def write(path: Path, text: str) -> None:
    """Write a .svg or .png file, readable by this user only: who holds it can join.

    Raises:
        UsageError: another kind of file.
        ResourceError: it cannot be written.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("svg", "png"):
        raise UsageError(f"{path.name} is neither .svg nor .png", advice="Name the file so, e.g. invite.svg.")
    out = io.BytesIO()
    segno.make_qr(text, error="m").save(out, kind=kind, scale=_SCALE)
    write_atomic(path, out.getvalue(), mode=0o600)
