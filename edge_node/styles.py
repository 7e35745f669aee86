"""Styles on this machine: a private code per body it was fitted to, and the graphs compiled from it.

    styles/NAME/current                names the body in use
    styles/NAME/BODY/NAME.style            the code: safetensors with metadata
                     fp32.onnx             folded, and quantised from it, a form for each runtime
                     int8-RUNTIME.onnx
                     style.json            digests of all, parity, score

A folder is written whole and then pointed to; the one before stays until then, and serves. Whoever writes holds ``writing``:
an artist may learn a style while `sfumato up` renews it. numpy only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from edge_node.config import Home
from edge_node.errors import UnknownStyleError
from export import release, weights
from export.errors import IntegrityError, NotConfiguredError, ResourceError, UsageError
from export.files import Digest, digest_of, held, read_bounded, write_atomic, write_folder_atomic
from export.fold import FoldError, NormStatistics, calibrations, fold
from export.parity import Folding, Parity, compare, folding
from export.quantize import QuantizeError, int8_onnx, observe
from export.runtime import RUNTIMES, Precision, Runtime, RuntimeFailedError, installed, open_engine
from export.signing import VerifiedRelease
from models import samplers
from models.contract import Score, Signature, Work
from models.originality import MEASURES, Likeness, Originality
from models.samplers import Code, paint

Distance = Callable[[Sequence[Work]], float]
"""How far pictures are from an artist's works, 0 is perfect."""

_log = logging.getLogger(__name__)

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
        parity: int8 against folded fp32, in the form that is further off; None if it could not be quantised.
        measured: runtimes whose form that was measured of.
        folding: folded fp32 against exact; None of a style compiled before that was measured, or that cannot be folded.
        first_live: its folded graph norms once by the picture at hand, and paints only whole pictures (``export/fold.py``).
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
    parity: Parity | None
    folding: Folding | None
    files: dict[str, Digest]
    originality: Originality | None = None
    measured: tuple[Runtime, ...] = ("onnxruntime",)
    first_live: bool = False

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
    def is_folded(self) -> bool:
        """Whether it has a folded graph, and that is near enough to the exact one to paint in its place."""
        return _FOLDED in self.files and (self.folding is None or self.folding.is_near())

    @property
    def best_precision(self) -> Precision:
        """int8 if both steps to it stay near enough to what they replace, else fp32."""
        return "int8" if self.is_folded and self.parity is not None and self.parity.is_near() else "fp32"

    @property
    def compromise(self) -> str:
        """What of the fast way had to be left, in a sentence; empty if nothing."""
        if _FOLDED not in self.files:
            return "Its norms cannot be frozen: it is painted by the exact graph in fp32."
        if self.folding is not None and not self.folding.is_near():
            seen = self.folding
            return (
                f"With frozen norms its pictures would change too much (colour difference {seen.colour_difference:.1f}, "
                f"SSIM {seen.ssim:.2f}, style distance {seen.style_exact:.3f} to {seen.style_folded:.3f}): "
                "it is painted by the exact graph in fp32."
            )
        left = []
        if self.first_live:
            left.append(
                "With all norms frozen its pictures would change too much: the first stays live, which is a tenth slower, and "
                "photos above two megapixels are painted by the exact graph in fp32."
            )
        if self.parity is None:
            left.append("Its graph cannot be quantised: it is painted in fp32.")
        elif not self.parity.is_near():
            left.append(
                f"int8 would change its pictures too much ({self.parity.psnr_db:.1f} dB, SSIM {self.parity.ssim:.3f}): "
                "it is painted in fp32."
            )
        return " ".join(left)


_FOLDED: Final = "fp32.onnx"


def _graph_file(precision: Precision, runtime: Runtime) -> str:
    return _FOLDED if precision == "fp32" else f"int8-{runtime}.onnx"


def names(home: Home) -> list[str]:
    """Names of all styles, sorted."""
    return sorted(path.parent.name for path in home.styles.glob(f"*/{_CURRENT}"))


def is_installed(home: Home, name: str) -> bool:
    """Whether there is a style of that name, without looking at any other."""
    return name not in ("", ".", "..") and Path(name).name == name and (home.styles / name / _CURRENT).exists()


def find(home: Home, name: str) -> Style:
    """The style in use under a name.

    Raises:
        UnknownStyleError: there is none.
        IntegrityError: its files were changed.
    """
    if not is_installed(home, name):
        raise unknown(name, names(home))
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


def compile_style(
    home: Home, name: str, code: Code, source: VerifiedRelease, lineage: Lineage, distance: Distance | None = None
) -> Style:
    """Fold, quantise, check each against what it replaces, write, and make the style the one in use.

    What is not near enough is not used: a folded graph too far from the exact one makes way for one with its first norm live,
    and that, if it is too far as well, for the exact graph; an int8 graph too far from fp32, or one that cannot be made, for
    fp32. ``Style.compromise`` says so.

    Args:
        home: this machine's folder.
        name: of the style.
        code: (D,) float32, fitted to the release's body.
        source: the release.
        lineage: where the code comes from.
        distance: to the works it was learned from; None where they are not at hand.

    Raises:
        NotConfiguredError: the release is of a kind of art this version does not make.
        ResourceError: the disk is full; the style that was in use still is.
    """
    refuse_other_art(source.manifest.signature)
    signature, photos = source.manifest.signature, release.calibration_photos(source)
    exact = source.read(release.EXACT)
    probes = list(release.pictures_of(source, release.PROBE).values())
    exact_pictures = [paint(open_engine(exact, "exact").run, signature, probe, code) for probe in probes]
    graphs: dict[str, bytes] = {}
    measured = _Measured()
    try:
        folded = _nearest_fold(exact, signature, code, photos, probes, exact_pictures, distance)
    except FoldError as error:
        _log.warning("a style stays exact: %s", error)
    else:
        int8, measured = _quantised(folded.graph, signature, photos, probes, folded.pictures)
        measured = replace(measured, folding=folded.seen, first_live=folded.first_live)
        graphs = {_FOLDED: folded.graph, **{_graph_file("int8", runtime): graph for runtime, graph in int8.items()}}
    metadata = {
        "artist": lineage.artist,
        "modality": source.manifest.modality,
        "body": source.manifest.body,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files = {f"{name}.style": weights.pack({"code": code}, metadata), **graphs}
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
        parity=measured.parity,
        folding=measured.folding,
        files={file: digest_of(data) for file, data in files.items()},
        measured=measured.runtimes,
        first_live=measured.first_live,
    )
    _write(style, files)
    write_atomic(home.styles / name / _CURRENT, style.folder.name.encode())
    return style


@contextmanager
def writing(home: Home) -> Iterator[None]:
    """Let one process at a time write styles; others wait. Hold it from looking at what is there to pointing to the new."""
    with held(home.styles_lock, "writing a style", waits=True):
        yield


@dataclass(frozen=True, slots=True)
class _Measured:
    """How near the fast graphs come to what they replace, and which runtimes' forms were looked at."""

    parity: Parity | None = None
    runtimes: tuple[Runtime, ...] = ()
    folding: Folding | None = None
    first_live: bool = False


@dataclass(frozen=True, slots=True)
class _Folded:
    """A folded graph, what it makes of the probe photos, and how far these are from the exact graph's."""

    graph: bytes
    pictures: list[Work]
    seen: Folding
    first_live: bool


def _nearest_fold(
    exact: bytes,
    signature: Signature,
    code: Code,
    photos: Sequence[Work],
    probes: Sequence[Work],
    exact_pictures: Sequence[Work],
    distance: Distance | None,
) -> _Folded:
    """The first that is near enough: every norm frozen in the middle of the photos, or at quiet ones, or the first norm live.

    Raises:
        FoldError: the graph has a norm that cannot be frozen.
    """
    middle, quiet = calibrations(exact, signature, code, photos)
    far = distance or (lambda _pictures: 0.0)
    style_exact = far(exact_pictures)

    def made(statistics: Mapping[str, NormStatistics], *, first_live: bool) -> _Folded:
        graph = fold(exact, signature, code, statistics, first_live=first_live)
        pictures = _painted(graph, signature, probes)
        return _Folded(graph, pictures, folding(exact_pictures, pictures, style_exact, far(pictures)), first_live)

    for statistics in (middle, quiet):
        frozen = made(statistics, first_live=False)
        if frozen.seen.is_near():
            return frozen
    return made(middle, first_live=True)


def measure_missing(home: Home, style: Style, source: VerifiedRelease) -> Style:
    """Hold int8 against fp32 in the form of every runtime that came to this machine after the style was compiled.

    What is found is remembered where that is possible.
    """
    missing = [r for r in installed() if r not in style.measured and _graph_file("int8", r) in style.files]
    if style.parity is None or not missing:
        return style
    signature, probes = source.manifest.signature, list(release.pictures_of(source, release.PROBE).values())
    found = _parities(
        {runtime: style.graph("int8", runtime) for runtime in missing},
        signature,
        probes,
        _painted(style.graph("fp32"), signature, probes),
    )
    known = replace(style, parity=_worst([style.parity, *found.values()]), measured=(*style.measured, *found))
    try:
        with writing(home):
            if is_installed(home, style.name) and find(home, style.name) == style:
                write_atomic(style.folder / _RECORD, _record(known), mode=0o600)
    except ResourceError as error:
        _log.warning("what int8 costs with %s is not remembered: %s", ", ".join(missing), error)
    return known


def _worst(found: Sequence[Parity]) -> Parity:
    return Parity(min(p.psnr_db for p in found), min(p.ssim for p in found))


def _parities(
    graphs: Mapping[Runtime, bytes], signature: Signature, probes: Sequence[Work], fp32_pictures: Sequence[Work]
) -> dict[Runtime, Parity]:
    """How far the int8 form of each runtime is from fp32; a runtime that does not work here is left out."""
    found = {}
    for runtime, graph in graphs.items():
        try:
            found[runtime] = compare(fp32_pictures, _painted(graph, signature, probes, runtime))
        except RuntimeFailedError as error:
            _log.warning("%s is not used: %s", runtime, error)
    return found


def _quantised(
    folded: bytes, signature: Signature, photos: Sequence[Work], probes: Sequence[Work], fp32_pictures: Sequence[Work]
) -> tuple[dict[Runtime, bytes], _Measured]:
    """The int8 graphs, a form for each runtime, and how far the worst of those that can be run here is from fp32."""
    try:
        spans = observe(folded, signature, photos)
        graphs: dict[Runtime, bytes] = {runtime: int8_onnx(folded, signature, spans, runtime) for runtime in RUNTIMES}
    except QuantizeError as error:
        _log.warning("a style stays fp32: %s", error)
        return {}, _Measured()
    found = _parities({runtime: graphs[runtime] for runtime in installed()}, signature, probes, fp32_pictures)
    return graphs, _Measured(_worst([*found.values()]), tuple(found))


def _painted(graph: bytes, signature: Signature, probes: Sequence[Work], runtime: Runtime = "onnxruntime") -> list[Work]:
    engine = open_engine(graph, "folded", runtime=runtime)
    return [paint(engine.run, signature, probe, None) for probe in probes]


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
        "parity": asdict(style.parity) if style.parity else None,
        "measured": list(style.measured),
        "first_live": style.first_live,
        "folding": asdict(style.folding) if style.folding else None,
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
            parity=Parity(**plain["parity"]) if plain["parity"] else None,
            folding=Folding(**plain["folding"]) if plain.get("folding") else None,
            files={str(k): Digest(str(v)) for k, v in plain["files"].items()},
            originality=_originality(plain.get("originality")),
            measured=tuple(runtime for runtime in RUNTIMES if runtime in plain.get("measured", RUNTIMES)),
            first_live=bool(plain.get("first_live", False)),
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
