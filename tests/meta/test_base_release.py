"""What the packaged base says it was trained on, held against what the demonstration uses: no artist and no file of both."""

import re
from pathlib import Path
from typing import Final

import pytest

from export import base
from export.files import digest_of
from export.release import BODY, CARD

REPOSITORY: Final = Path(__file__).parents[2]
DEMO: Final = REPOSITORY / "scripts" / "works"
MATERIAL: Final = REPOSITORY / "scripts" / "material"
BODY_MAX_BYTES: Final = 2 * 2**20
MODALITIES: Final = sorted(path.name for path in base.FOLDER.iterdir() if (path / "release").is_dir())
_ROW: Final = re.compile(r"^\| (works|paintings|photos) \| (\S+) \| ([0-9a-f]{64}) \|$", re.MULTILINE)


def rows_of(card: str) -> dict[tuple[str, str], str]:
    """(used as, file) → sha256 of every row of a card's table."""
    return {(use, file): digest for use, file, digest in _ROW.findall(card)}


def pictures_under(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})


def column(sources: str, heading: str, name: str) -> list[str]:
    """One column of the first table of a SOURCES.md below a heading."""
    table = [line for line in sources.partition(heading)[2].partition("\n## ")[0].splitlines() if line.startswith("|")]
    titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [row[titles.index(name)] for row in rows]


@pytest.fixture(params=MODALITIES)
def card(request: pytest.FixtureRequest) -> str:
    return base.load(request.param).read(CARD).decode()


def test_the_card_names_the_script_that_drew_works_it_learned_from(card: str) -> None:
    script = digest_of((REPOSITORY / "scripts" / "procedural.py").read_bytes())

    assert f"drawn by `scripts/procedural.py` (sha256 {script})" in card.replace("\n", " ")
    assert not [file for use, file in rows_of(card) if use == "works"]


@pytest.mark.parametrize("kind", ["paintings", "photos"])
def test_the_card_lists_every_file_by_its_digest(card: str, kind: str) -> None:
    listed = {file: digest for (use, file), digest in rows_of(card).items() if use == kind}

    assert listed
    assert listed == {path.name: digest_of(path.read_bytes()) for path in pictures_under(MATERIAL / kind)}


def test_the_base_has_seen_no_file_of_the_demonstration(card: str) -> None:
    demo = {digest_of(path.read_bytes()) for path in pictures_under(DEMO)}

    assert len(demo) >= 3
    assert not demo & set(rows_of(card).values())
    assert not demo & {digest_of(path.read_bytes()) for path in pictures_under(MATERIAL)}


def test_a_file_of_the_demonstration_on_the_card_would_be_noticed(card: str) -> None:
    # The positive control of the test above.
    smuggled = digest_of(pictures_under(DEMO)[0].read_bytes())

    assert smuggled in set(rows_of(f"{card}\n| paintings | mona-lisa.jpg | {smuggled} |\n").values())


def test_nothing_comes_from_where_the_evaluations_pictures_come_from(card: str) -> None:
    sources = (MATERIAL / "SOURCES.md").read_text()
    listed = {file for heading in ("## Photos", "## Paintings") for file in column(sources, heading, "file")}
    used = {f"{use}/{file}" for use, file in rows_of(card)}

    assert used == listed
    photos_from = column(sources, "## Photos", "source")
    assert not [origin for origin in photos_from if "gcompris" in origin or "wesnoth" in origin]
    assert all(path.startswith("images-eink/met/") for path in column(sources, "## Paintings", "file in the package"))
    # The positive control: the demonstration's works do come from there.
    assert [o for o in column((DEMO / "SOURCES.md").read_text(), "# The demo's works", "source") if "gcompris" in o]


def test_no_painter_of_the_base_is_an_artist_of_the_demonstration() -> None:
    ours = {surname(name) for name in column((MATERIAL / "SOURCES.md").read_text(), "## Paintings", "artist")}
    theirs = {surname(name) for name in column((DEMO / "SOURCES.md").read_text(), "# The demo's works", "artist")}

    assert "turner" in ours
    assert {"hokusai", "gogh", "renoir"} <= theirs
    assert not ours & theirs


def surname(artist: str) -> str:
    """The last word of a name, without years in brackets."""
    return artist.partition(" (")[0].split()[-1].lower()


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_body_is_small_enough_for_the_wheel(modality: str) -> None:
    assert 0 < len(base.load(modality).read(BODY)) <= BODY_MAX_BYTES
