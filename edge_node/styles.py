"""Styles on this machine: a private code per body it was fitted to, and the graphs compiled from it.

    styles/NAME/current                names the body in use
    styles/NAME/BODY/NAME.style            the code: safetensors with metadata
                     fp32.onnx             folded, and quantised from it, a form for each runtime
                     int8-RUNTIME.onnx
                     style.json            digests of all, parity, score

A folder is written whole and then pointed to; the one before stays until then, and serves. numpy only.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from edge_node.config import Home
from edge_node.errors import UnknownStyleError
from export import release, weights
from export.errors import IntegrityError, NotConfiguredError, UsageError
from export.files import Digest, digest_of, read_bounded, write_atomic, write_folder_atomic
from export.fold import calibrate, fold
from export.parity import Parity, compare
from export.quantize import int8_onnx, observe
from export.runtime import RUNTIMES, Precision, Runtime, open_engine
from export.signing import VerifiedRelease
from models import samplers
from models.contract import Score, Signature
from models.originality import MEASURES, Likeness, Originality
from models.samplers import Code, paint

_CURRENT: Final = "current"
_RECORD: Final = "style.json"
_RECORD_MAX_BYTES: Final = 16 * 2**10
_GRAPH_MAX_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a code comes from: whom it is credited to, the works' folder (empty for the library), and its score.

    ``works`` were learned from, of ``works_found``; 0 stands for the same number.
    """

    artist: str
    folder_of_works: str
    works: int
    score: Score
    works_found: int = 0


@dataclass(frozen=True, slots=True)
class Style:
    """A compiled style.

    Attributes:
        name: the artist's name for it.
        folder: where it lies.
        artist: whom it is credited to.
        modality: registry name of the kind of art.
        body: the one body its code is valid for.
        made: ISO 8601, UTC.
        folder_of_works: where it was learned from; empty for the library. Never leaves this machine.
        works: how many works it was learned from.
        works_found: how many there were to choose them from.
        score: on its exam photos.
        parity: int8 against folded fp32.
        files: digest of each file.
        originality: how near its pictures come to the works; None while that was not checked (``originality.py``).
    """

    name: str
    folder: Path
    artist: str
    modality: str
    body: Digest
    made: str
    folder_of_works: str
    works: int
    works_found: int
    score: Score
    parity: Parity
    files: dict[str, Digest]
    originality: Originality | None = None

    def code(self) -> Code:
        """The private code.

        Raises:
            IntegrityError: the file was changed or is missing.
        """
        return weights.unpack(self.read(f"{self.name}.style"))["code"]

    def graph(self, precision: Precision, runtime: Runtime = "onnxruntime") -> bytes:
        """The compiled graph of a precision, in the form a runtime is fastest with.

        Raises:
            IntegrityError: the file was changed or is missing.
        """
        return self.read(_graph_file(precision, runtime))

    def read(self, name: str) -> bytes:
        """One of its files, checked now."""
        try:
            data = read_bounded(self.folder / name, _GRAPH_MAX_BYTES)
        except OSError as error:
            raise damaged(self.name) from error
        if digest_of(data) != self.files.get(name):
            raise damaged(self.name)
        return data

    @property
    def best_precision(self) -> Precision:
        """int8 if it is near enough to fp32, else fp32."""
        return "int8" if self.parity.is_near() else "fp32"


def _graph_file(precision: Precision, runtime: Runtime) -> str:
    return "fp32.onnx" if precision == "fp32" else f"int8-{runtime}.onnx"


def names(home: Home) -> list[str]:
    """Names of all styles, sorted."""
    return sorted(path.parent.name for path in home.styles.glob(f"*/{_CURRENT}"))


def find(home: Home, name: str) -> Style:
    """The style in use under a name.

    Raises:
        UnknownStyleError: there is none.
        IntegrityError: its files were changed.
    """
    known = names(home)
    if name not in known:
        raise unknown(name, known)
    try:
        body = read_bounded(home.styles / name / _CURRENT, 128).decode(errors="replace").strip()
    except (OSError, IntegrityError) as error:
        raise damaged(name) from error
    return _opened(home.styles / name / Path(body).name, name)


def unknown(name: str, known: Collection[str]) -> UnknownStyleError:
    """What to say of a name that is no style here."""
    advice = f"There are: {', '.join(known)}." if known else "Learn one with: sfumato learn DIR --style NAME"
    return UnknownStyleError(f"there is no style {name!r}", advice=advice)


def refuse_other_art(signature: Signature) -> None:
    """Keep works of another kind from being taken for pictures.

    Raises:
        NotConfiguredError: this version does not make works of that kind.
    """
    try:
        samplers.refuse_unknown(signature)
    except samplers.UnknownArtError as error:
        raise NotConfiguredError(
            f"this version does not make works of that kind ({error})", advice="Update Sfumato."
        ) from error


def compile_style(home: Home, name: str, code: Code, source: VerifiedRelease, lineage: Lineage) -> Style:
    """Fold, quantise, check parity, write, and make the style the one in use.

    Args:
        home: this machine's folder.
        name: of the style.
        code: (D,) float32, fitted to the release's body.
        source: the release.
        lineage: where the code comes from.

    Raises:
        NotConfiguredError: the release is of a kind of art this version does not make.
        ResourceError: the disk is full; the style that was in use still is.
    """
    refuse_other_art(source.manifest.signature)
    signature, photos = source.manifest.signature, release.calibration_photos(source)
    exact = source.read(release.EXACT)
    folded = fold(exact, signature, code, calibrate(exact, signature, code, photos))
    spans = observe(folded, signature, photos)
    int8: dict[Runtime, bytes] = {runtime: int8_onnx(folded, signature, spans, runtime) for runtime in RUNTIMES}
    probes = list(release.pictures_of(source, release.PROBE).values())
    fp32_pictures, int8_pictures = (
        [paint(open_engine(graph, precision).run, signature, probe, None) for probe in probes]
        for precision, graph in (("fp32", folded), ("int8", int8["onnxruntime"]))
    )
    metadata = {
        "artist": lineage.artist,
        "modality": source.manifest.modality,
        "body": source.manifest.body,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files = {
        f"{name}.style": weights.pack({"code": code}, metadata),
        "fp32.onnx": folded,
        **{_graph_file("int8", runtime): graph for runtime, graph in int8.items()},
    }
    style = Style(
        name=name,
        folder=home.styles / name / source.manifest.body[:16],
        artist=lineage.artist,
        modality=source.manifest.modality,
        body=source.manifest.body,
        made=metadata["made"],
        folder_of_works=lineage.folder_of_works,
        works=lineage.works,
        works_found=lineage.works_found or lineage.works,
        score=lineage.score,
        parity=compare(fp32_pictures, int8_pictures),
        files={file: digest_of(data) for file, data in files.items()},
    )
    _write(style, files)
    write_atomic(home.styles / name / _CURRENT, style.folder.name.encode())
    return style


def remember(style: Style, originality: Originality) -> Style:
    """Note beside a style what came of comparing its pictures with the works.

    Raises:
        ResourceError: the disk is full; the style stays as it was.
    """
    checked = replace(style, originality=originality)
    write_atomic(style.folder / _RECORD, _record(checked), mode=0o600)
    return checked


def _record(style: Style) -> bytes:
    record = {
        "artist": style.artist,
        "modality": style.modality,
        "body": style.body,
        "made": style.made,
        "folder_of_works": style.folder_of_works,
        "works": style.works,
        "works_found": style.works_found,
        "score": asdict(style.score),
        "parity": asdict(style.parity),
        "files": style.files,
        "originality": asdict(style.originality) if style.originality else None,
    }
    return json.dumps(record, indent=2).encode()


def _write(style: Style, files: dict[str, bytes]) -> None:
    def fill(staging: Path) -> None:
        for name, data in files.items():
            (staging / name).write_bytes(data)
        (staging / _RECORD).write_bytes(_record(style))

    write_folder_atomic(style.folder, fill, mode=0o700)  # the code is private, and the graphs hold its numbers too


def _opened(folder: Path, name: str) -> Style:
    try:
        plain = json.loads(read_bounded(folder / _RECORD, _RECORD_MAX_BYTES))
        return Style(
            name=name,
            folder=folder,
            artist=str(plain["artist"]),
            modality=str(plain["modality"]),
            body=Digest(str(plain["body"])),
            made=str(plain["made"]),
            folder_of_works=str(plain["folder_of_works"]),
            works=int(plain["works"]),
            works_found=int(plain.get("works_found", plain["works"])),
            score=Score(**plain["score"]),
            parity=Parity(**plain["parity"]),
            files={str(k): Digest(str(v)) for k, v in plain["files"].items()},
            originality=_originality(plain.get("originality")),
        )
    except (OSError, IntegrityError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(name) from error


def _originality(plain: Any) -> Originality | None:
    """As noted; None where nothing was, as in a record of an earlier version."""
    if plain is None:
        return None
    return Originality(**{m: Likeness(str(plain[m]["work"]), float(plain[m]["figure"])) for m in MEASURES})


def damaged(name: str) -> IntegrityError:
    """What to say of a style whose files are not as they were written."""
    return IntegrityError(f"the files of style {name!r} are damaged", advice=f"Learn it anew: sfumato learn DIR --style {name}")


def all_styles(home: Home) -> dict[str, Style | None]:
    """Every style in use by name; None in the place of one whose files are damaged."""
    found: dict[str, Style | None] = {}
    for name in names(home):
        try:
            found[name] = find(home, name)
        except IntegrityError:
            found[name] = None
    return found


def public_codes(source: VerifiedRelease) -> dict[str, Code]:
    """The styles a release brings along; the identity is none."""
    return {name: code for name, code in sorted(release.codes_of(source).items()) if name != release.IDENTITY}


def refuse_other_folder(home: Home, name: str, folder: Path) -> None:
    """Keep a style from being lost to another one of the same name.

    Raises:
        UsageError: there is a style of that name, and it was learned from somewhere else.
    """
    try:
        learned = find(home, name).folder_of_works
    except (UnknownStyleError, IntegrityError):
        return
    if learned != str(folder.resolve()):
        raise UsageError(
            f"style {name!r} was learned from {learned or 'your library, in rounds'}",
            advice="Choose another --style, or say --replace to learn it anew from this folder.",
        )
