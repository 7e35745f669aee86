"""The exact graph on pictures far above the training scale: norm statistics from a thumbnail, then tiles.

An instance norm needs the whole picture at once, so memory grows with it, and the detail of a large photo is smoother than
any the network was trained on. Chen et al. 2022 (URST, arXiv 2103.11784, section 3.2) take the statistics from a thumbnail
instead. Here they go the way a style's calibrated ones go: into the convolutions. What is left depends on a pixel's
neighbourhood alone and is painted in tiles without seams. numpy only.
"""

from __future__ import annotations

from typing import Final

from export.fold import calibrate, fold
from export.runtime import DEFAULT_THREADS, Runtime, open_engine
from models import codecs
from models.contract import Signature
from models.samplers import Feed, Run, paint_in_tiles

LARGEST_WHOLE: Final = 2_000_000
"""Pixels; what is larger is painted in tiles."""
_THUMBNAIL_SIDE: Final = 640  # pixels, the longer side: about the scale of the pictures the network was trained on


def thumbnail_run(exact: bytes, signature: Signature, threads: int = DEFAULT_THREADS, runtime: Runtime = "onnxruntime") -> Run:
    """Something that is run like the exact graph, photo and code in and picture out, and needs memory for a tile only.

    Args:
        exact: serialised exact graph, verified.
        signature: of the modality.
        threads: CPU threads.
        runtime: that paints the tiles.

    Raises:
        FoldError: when run, of a graph with a norm that cannot be folded.
    """

    def run(feed: Feed) -> Feed:
        photo, code = feed[signature.content.name][0], feed[signature.code.name][0]
        thumbnail = codecs.fit_within(photo, _THUMBNAIL_SIDE)
        folded = fold(exact, signature, code, calibrate(exact, signature, code, [thumbnail]))
        engine = open_engine(folded, "picture's", threads, runtime)
        return {signature.output.name: paint_in_tiles(engine.run, signature, photo)[None]}

    return run
