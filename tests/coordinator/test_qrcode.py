"""An invite as a QR code: what a camera reads is the text, and the file is for its owner alone."""

import io
from pathlib import Path

import pytest
import segno
from PIL import Image

from coordinator import qrcode
from export.errors import UsageError
from export.invite import Invite

TEXT = str(Invite(b"f" * 16, b"s" * 10, "art.example.org", 7443))


def modules(text: str) -> list[list[bool]]:
    """The code's dark modules with a border of two, by the library's own account."""
    return [[bool(dark) for dark in row] for row in segno.make_qr(text, error="m").matrix_iter(border=2)]


def test_on_a_terminal_every_module_is_where_it_belongs() -> None:
    lines = qrcode.for_terminal(TEXT).splitlines()

    # Two rows of modules a line: the upper half block is a light upper module over a dark lower one.
    signs = {"█": (False, False), "▀": (False, True), "▄": (True, False), " ": (True, True)}
    rows = [[signs[sign][half] for sign in line] for line in lines for half in (0, 1)]
    assert rows[: len(modules(TEXT))] == modules(TEXT)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_file_holds_the_code_and_is_for_this_user_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"invite.{kind}"

    qrcode.write(path, TEXT)

    assert path.stat().st_mode & 0o077 == 0
    if kind == "png":
        image = Image.open(io.BytesIO(path.read_bytes())).convert("L")
        side = int(segno.make_qr(TEXT, error="m").symbol_size(border=4)[0])
        assert image.size == (8 * side, 8 * side)
        seen = [[image.getpixel((8 * x + 4, 8 * y + 4)) == 0 for x in range(2, side - 2)] for y in range(2, side - 2)]
        assert seen == modules(TEXT)
    else:
        assert path.read_bytes().startswith(b"<?xml")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither \.svg nor \.png"):
        qrcode.write(tmp_path / "invite.gif", TEXT)

    assert list(tmp_path.iterdir()) == []
