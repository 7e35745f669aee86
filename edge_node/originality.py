"""Whether a style paints works again instead of in their manner: the one door it passes before anything of it is published.

Checked on this machine only: no work, and no name of one, leaves it or reaches a log. What is checked are the style's pictures
of the release's probe photos, against all works it was learned from. Works held out for comparison are the release's public
ones: holding back works of the artist's own would change what is learned, and few artists have more than are used. That they
are another artist's does no harm, see ``models/originality.py``. numpy only.
"""

from __future__ import annotations

from pathlib import Path

from edge_node import library, styles
from edge_node.config import Home
from edge_node.library import Loaded
from edge_node.styles import Style
from export import release
from export.errors import RefusedError
from export.runtime import open_engine
from export.signing import VerifiedRelease
from models.originality import examine
from models.samplers import paint


def works_of(home: Home, style: Style) -> Loaded:
    """The works a style was learned from, as they are now.

    Raises:
        NoWorksError, BadPictureError: they are gone.
    """
    return library.load_folder(Path(style.folder_of_works)) if style.folder_of_works else library.load(home)


def check(style: Style, source: VerifiedRelease, works: Loaded) -> Style:
    """Compare a style's pictures with its works, and note beside it what came of that.

    Args:
        style: as compiled.
        source: the release it is fitted to.
        works: it was learned from.

    Raises:
        IntegrityError: the files of the style or the release were changed.
        ResourceError: the disk is full.
    """
    probes = list(release.pictures_of(source, release.PROBE).values())
    if style.is_folded:  # the graph it will be painted by
        graph, code = style.graph("fp32"), None
    else:
        graph, code = source.read(release.EXACT), style.code()
    engine = open_engine(graph, f"{style.name} fp32")
    pictures = [paint(engine.run, source.manifest.signature, probe, code) for probe in probes]
    held_out = release.pictures_of(source, release.WORKS).values()
    return styles.remember(style, examine(pictures, probes, zip(works.names, works.works, strict=True), held_out))


def refuse_copies(style: Style) -> None:
    """Keep a style that repeats a work from being published.

    Raises:
        RefusedError: its pictures are near copies of a work, which is named, or were never compared with the works.
    """
    if style.originality is None:
        raise RefusedError(
            f"the pictures of style {style.name!r} were never compared with the works it was learned from",
            advice=f"Learn it again, which compares them: sfumato learn DIR --style {style.name}",
        )
    if style.originality.is_copy:
        raise RefusedError(
            f"the pictures of style {style.name!r} are near copies of {style.originality.nearest}",
            advice="Whoever has the style could paint that work. Learn it again from more works, unlike each other.",
        )


def sentence(style: Style) -> str:
    """What to tell the artist of a style's originality."""
    found = style.originality
    if found is None:
        return "Its pictures were not compared with the works yet; until they are, it cannot be published."
    if found.is_copy:
        return f"These pictures are near copies of {found.nearest} (by {', '.join(found.spoke)}): it cannot be published."
    return f"No picture comes near a work; nearest: {found.nearest}."
