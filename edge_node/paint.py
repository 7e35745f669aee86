"""One picture: a photo, a style or a mix, a strength. Neither torch nor flwr: a gallery's box paints with this.

Which graph runs: one style at full strength uses its folded graph (int8 where that was found near enough, else fp32);
mixes, lower strengths, the public styles a release brings along and a style that did not fold well use the body's exact
graph, in which styles are a matter of arithmetic on codes. Photos above two megapixels are painted in tiles, by a folded
graph with all norms frozen or by the exact one with the norm statistics of a thumbnail.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

from edge_node import ingest, releases, runtimes, styles
from edge_node.config import Home
from edge_node.errors import BadPictureError
from edge_node.runtimes import RuntimeChoice
from edge_node.styles import Style
from export import release
from export.errors import IntegrityError, NotConfiguredError, UsageError
from export.files import write_atomic
from export.runtime import Engine, Precision, Runtime, RuntimeFailedError, installed, open_engine
from export.signing import VerifiedRelease
from export.thumbnail import LARGEST_WHOLE, thumbnail_run
from models import codecs, samplers
from models.contract import Signature, Work
from models.samplers import Code

T = TypeVar("T")
PrecisionChoice = Literal["auto", "fp32", "int8"]
SMALLEST_SIDE: Final = 64
LARGEST_PIXELS: Final = 8_000_000
_KEPT: Final = 32  # engines, codes and releases held open: a dozen styles' worth, a few megabytes each


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be painted.

    Attributes:
        photo: (H, W, 3) uint8.
        weights: style name → weight of the mix, as given; one style alone has weight 1.
        strength: 0 (the photo) to 1 (the style).
        precision: of the graph, or "auto".
        runtime: that is to run it, or "auto": the fastest of those installed here.
    """

    photo: Work
    weights: Mapping[str, float]
    strength: float = 1.0
    precision: PrecisionChoice = "auto"
    runtime: RuntimeChoice = "auto"


@dataclass(frozen=True, slots=True)
class Painted:
    """A picture, and what really made it."""

    picture: Work
    runtime: Runtime
    precision: Precision
    graph: Literal["folded", "exact"]


def paint(home: Home, order: Order) -> Painted:
    """Paint one picture; see ``Painter.paint``."""
    return Painter(home).paint(order)


class Painter:
    """Paints again and again. What was verified and opened once stays open, the least used making room for the new.

    So a second picture of a style costs the picture alone, and so does going back to a style used before. How many styles are
    installed plays no part: none is looked at but those of the order. A style that was renewed meanwhile has other digests
    and is opened anew.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._kept: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._looked_up: Mapping[str, Style] = {}

    def paint(self, order: Order) -> Painted:
        """Paint.

        Raises:
            UnknownStyleError: a style is not here, and no public one of the release in use either.
            UsageError: strength, size, mix or precision cannot be.
            NotConfiguredError: no release here holds the styles' body, or it is of another kind of art.
            IntegrityError: a style's or release's files were changed.
        """
        _check(order)
        try:
            return self._painted(order)
        except RuntimeFailedError as error:
            raise NotConfiguredError(str(error), advice="Leave --runtime away, or install OpenVINO anew.") from error
        except IntegrityError:
            if not self._changed(order):
                raise
            return self._painted(order)  # a style was written anew between looking it up and reading it

    def _changed(self, order: Order) -> bool:
        """Whether a style of the order is another by now than when it was last looked up."""
        looked_up, self._looked_up = self._looked_up, {}
        return any(
            styles.find(self._home, name).files != style.files for name, style in looked_up.items() if name in order.weights
        )

    def _painted(self, order: Order) -> Painted:
        self._looked_up = own = {
            name: styles.find(self._home, name) for name in order.weights if styles.is_installed(self._home, name)
        }
        source, public = self._source(order, own)
        signature = source.manifest.signature
        styles.refuse_other_art(signature)
        if any(style.body != source.manifest.body for style in own.values()):
            raise UsageError(
                "these styles were fitted to different bodies and cannot be mixed",
                advice="Run sfumato up until both are renewed, or learn the older one again.",
            )
        alone = next(iter(own.values())) if len(order.weights) == len(own) == 1 and order.strength >= 1 else None
        if alone is not None and _paints_folded(alone, order):
            known = alone if order.precision == "fp32" else self._known(alone, source)
            return self._folded(known, signature, order)
        if order.precision == "int8":
            raise UsageError(
                alone.compromise if alone else "mixes, public styles and strengths below 1 are painted in fp32",
                advice="Leave --precision away.",
            )
        codes = {name: self._code(own[name]) if name in own else public[name] for name in order.weights}
        return self._exact(source, samplers.mix(codes, order.weights), order)

    def _source(self, order: Order, own: Mapping[str, Style]) -> tuple[VerifiedRelease, Mapping[str, Code]]:
        """The release to paint with, and its public styles if the order names any: those of the release in use.

        Raises:
            UnknownStyleError: a name is neither a style of this machine nor a public one.
        """
        home = self._home
        if len(own) == len(order.weights):
            body = next(iter(own.values())).body
            return self._keep(("body", body), lambda: releases.with_body(home, body)), {}
        source = self._keep(("in use", releases.current_version(home)), lambda: releases.current(home))
        public = self._keep(("public", source.digest), lambda: styles.public_codes(source))
        for name in order.weights:
            if name not in own and name not in public:
                raise styles.unknown(name, sorted({*styles.names(home), *public}))
        return source, public

    def _known(self, style: Style, source: VerifiedRelease) -> Style:
        """The style with every runtime's form measured; one that was installed since is measured now."""
        if set(installed()) <= set(style.measured):
            return style
        key = ("measured", style.folder, *style.files.values(), *installed())
        return self._keep(key, lambda: styles.measure_missing(self._home, style, source))

    def _code(self, style: Style) -> Code:
        return self._keep(("code", style.folder, *style.files.values()), style.code)

    def _exact(self, source: VerifiedRelease, code: Code, order: Order) -> Painted:
        signature, threads = source.manifest.signature, self._home.config().threads

        def opened(runtime: Runtime) -> Engine:
            return open_engine(source.read(release.EXACT), "release's exact", threads, runtime)

        if _is_large(order.photo):  # a graph of its own for this one picture: what opens fastest
            runtime: Runtime = "onnxruntime" if order.runtime == "auto" else order.runtime
            run = thumbnail_run(source.read(release.EXACT), signature, threads, runtime)
        else:
            kind = f"{source.manifest.modality} exact {threads} threads"
            choice = order.runtime
            engine = self._keep(
                ("exact", source.digest, choice), lambda: self._opened(opened, choice, kind, signature, installed(), code)
            )
            run, runtime = engine.run, engine.runtime
        identity = self._keep(("identity", source.digest), lambda: release.codes_of(source)[release.IDENTITY])
        picture = samplers.paint_with_strength(run, signature, order.photo, code, identity, order.strength)
        return Painted(picture, runtime, "fp32", "exact")

    def _folded(self, style: Style, signature: Signature, order: Order) -> Painted:
        precision = style.best_precision if order.precision == "auto" else order.precision
        threads = self._home.config().threads

        def opened(runtime: Runtime) -> Engine:
            return open_engine(style.graph(precision, runtime), f"{style.name} {precision}", threads, runtime)

        kind = f"{style.modality} {precision}{' first norm live' if style.first_live else ''} {threads} threads"
        usable = [r for r in installed() if precision == "fp32" or r in style.measured]
        engine = self._keep(
            ("folded", style.folder, *style.files.values(), precision, order.runtime),
            lambda: self._opened(opened, order.runtime, kind, signature, usable),
        )
        if _is_large(order.photo):
            picture = samplers.paint_in_tiles(engine.run, signature, order.photo)
        else:
            picture = samplers.paint(engine.run, signature, order.photo, None)
        return Painted(picture, engine.runtime, precision, "folded")

    def _opened(
        self,
        opened: Callable[[Runtime], Engine],
        choice: RuntimeChoice,
        kind: str,
        signature: Signature,
        usable: Sequence[Runtime],
        code: Code | None = None,
    ) -> Engine:
        """A graph in the runtime that was asked for, else in the fastest that can be used."""
        if choice != "auto":
            return opened(choice)
        return opened(runtimes.fastest(self._home, kind, signature, {r: partial(opened, r) for r in usable}, code))

    def _keep(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """What was made for a key before, or now."""
        if key not in self._kept:
            self._kept[key] = make()
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        kept: T = self._kept[key]
        return kept


def _paints_folded(style: Style, order: Order) -> bool:
    """Whether a style's folded graph is to paint an order, and can: one with a live norm paints no tiles."""
    if style.first_live and _is_large(order.photo):
        return False
    return style.parity is not None if order.precision == "int8" else style.is_folded


def _is_large(photo: Work) -> bool:
    return photo[..., 0].size > LARGEST_WHOLE


def precision_choice(text: str) -> PrecisionChoice:
    """A precision by name.

    Raises:
        UsageError: there is none of that name.
    """
    choice: PrecisionChoice = runtimes.chosen("precision", text, get_args(PrecisionChoice))
    return choice


def read_photo(path: Path, longest_side: int | None = None) -> Work:
    """Open a photo that can be painted, made smaller first if a longest side in pixels is given.

    Raises:
        BadPictureError: it cannot be opened, or is smaller or larger than can be painted.
    """
    photo = ingest.read_picture(path)
    if longest_side is not None:
        photo = codecs.fit_within(photo, longest_side)
    height, width = photo.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise BadPictureError(
            f"{path.name} has {width} x {height} pixels",
            advice=f"Photos need at least {SMALLEST_SIDE} pixels a side; --size only makes one smaller.",
        )
    if height * width > LARGEST_PIXELS:
        raise BadPictureError(
            f"{path.name} has {width} x {height} pixels",
            advice=f"Photos may have {LARGEST_PIXELS // 10**6} megapixels; make it smaller first with --size 2500, say.",
        )
    return photo


def refuse_output(path: Path, photo_path: Path, photo: Work) -> None:
    """Say before painting, which takes a while, that the picture could not be written.

    Raises:
        UsageError: it would overwrite the photo, or its format is none we write or cannot hold its size.
    """
    if path.exists() and path.samefile(photo_path):
        raise UsageError(f"{path.name} is the photo itself and would be lost", advice="Name another output with -o.")
    try:
        codecs.refuse_unwritable(path.suffix, *photo.shape[:2])
    except codecs.CodecError as error:
        raise _unwritable(error) from error


def write_picture(path: Path, picture: Work) -> None:
    """Write the picture whole or not at all.

    Raises:
        UsageError: a format we do not write, or one that cannot hold the picture.
        ResourceError: the disk is full or the folder not writable.
    """
    try:
        data = codecs.encode(picture, path.suffix)
    except codecs.CodecError as error:
        raise _unwritable(error) from error
    write_atomic(path, data)


def _unwritable(error: codecs.CodecError) -> UsageError:
    return UsageError(str(error), advice="Name the output like picture.jpg or picture.png; .png holds every size.")


def parse_mix(text: str) -> dict[str, float]:
    """``NAME`` or ``NAME=WEIGHT,NAME=WEIGHT`` → weights.

    Raises:
        UsageError: it is not that, a name comes twice, or no weight is above zero.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = float("nan")
        if not name or name in weights or not 0 <= weight <= 1e6:
            raise _not_a_mix(text)
        weights[name] = weight
    if not sum(weights.values()) > 0:
        raise _not_a_mix(text)
    return weights


def _not_a_mix(text: str) -> UsageError:
    return UsageError(f"{text!r} names no style or mix", advice="Write NAME, or a mix such as a=0.6,b=0.4.")


def _check(order: Order) -> None:
    if not 0 <= order.strength <= 1:
        raise UsageError(f"a strength of {order.strength} cannot be", advice="Use a number from 0 to 1.")
