"""One picture: a photo, a style or a mix, a strength. Neither torch nor flwr: a gallery's box paints with this.

Which graph runs: one style at full strength uses its folded graph (int8 where that was found near enough, else fp32);
mixes and lower strengths use the body's exact graph, in which styles are a matter of arithmetic on codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from edge_node import ingest, releases, styles
from edge_node.config import Home
from edge_node.errors import BadPictureError
from edge_node.styles import Style
from export import release
from export.errors import UsageError
from export.files import write_atomic
from export.runtime import Precision, open_engine
from models import codecs, samplers
from models.contract import Signature, Work

PrecisionChoice = Literal["auto", "fp32", "int8"]
SMALLEST_SIDE: Final = 64
LARGEST_PIXELS: Final = 8_000_000


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be painted.

    Attributes:
        photo: (H, W, 3) uint8.
        weights: style name → weight of the mix, as given; one style alone has weight 1.
        strength: 0 (the photo) to 1 (the style).
        precision: of the graph, or "auto".
    """

    photo: Work
    weights: Mapping[str, float]
    strength: float = 1.0
    precision: PrecisionChoice = "auto"


@dataclass(frozen=True, slots=True)
class Painted:
    """A picture, and what really made it."""

    picture: Work
    runtime: str
    precision: Precision
    graph: Literal["folded", "exact"]


def paint(home: Home, order: Order) -> Painted:
    """Paint.

    Raises:
        UnknownStyleError: a style is not here.
        UsageError: strength, size, mix or precision cannot be.
        IntegrityError: a style's or release's files were changed.
    """
    _check(order)
    wanted = {name: styles.find(home, name) for name in order.weights}
    source = releases.with_body(home, next(iter(wanted.values())).body)
    if len({style.body for style in wanted.values()}) > 1:
        raise UsageError(
            "these styles were fitted to different bodies and cannot be mixed",
            advice="Run sfumato up until both are renewed, or learn the older one again.",
        )
    if len(wanted) == 1 and order.strength >= 1:
        return _folded(next(iter(wanted.values())), source.manifest.signature, order, home.config().threads)
    if order.precision == "int8":
        raise UsageError(
            "mixes and strengths below 1 are painted in fp32", advice="Leave --precision away, or use --precision fp32."
        )
    code = samplers.mix({name: style.code() for name, style in wanted.items()}, order.weights)
    engine = open_engine(source.read(release.EXACT), "release's exact", home.config().threads)
    identity = release.codes_of(source)[release.IDENTITY]
    picture = samplers.paint_with_strength(engine.run, source.manifest.signature, order.photo, code, identity, order.strength)
    return Painted(picture, engine.runtime, "fp32", "exact")


def _folded(style: Style, signature: Signature, order: Order, threads: int) -> Painted:
    precision = style.best_precision if order.precision == "auto" else order.precision
    engine = open_engine(style.graph(precision), f"{style.name} {precision}", threads)
    return Painted(samplers.paint(engine.run, signature, order.photo, None), engine.runtime, precision, "folded")


def precision_choice(text: str) -> PrecisionChoice:
    """A precision by name.

    Raises:
        UsageError: there is none of that name.
    """
    for choice in get_args(PrecisionChoice):
        if choice == text:
            return choice  # type: ignore[no-any-return]
    raise UsageError(f"there is no precision {text!r}", advice="Use auto, fp32 or int8.")


def read_photo(path: Path, longest_side: int | None = None) -> Work:
    """Open a photo that can be painted, made smaller first if a longest side in pixels is given.

    Raises:
        BadPictureError: it cannot be opened, or is smaller or larger than can be painted.
    """
    photo = ingest.read_picture(path)
    if longest_side is not None:
        photo = codecs.fit_within(photo, longest_side)
    height, width = photo.shape[:2]
    if min(height, width) < SMALLEST_SIDE or height * width > LARGEST_PIXELS:
        raise BadPictureError(
            f"{path.name} has {width} x {height} pixels",
            advice=f"Photos need at least {SMALLEST_SIDE} pixels a side and at most 8 megapixels; --size makes one smaller.",
        )
    return photo


def write_picture(path: Path, picture: Work) -> None:
    """Write the picture whole or not at all.

    Raises:
        UsageError: a format we do not write.
        ResourceError: the disk is full or the folder not writable.
    """
    try:
        data = codecs.encode(picture, path.suffix)
    except codecs.CodecError as error:
        raise UsageError(str(error), advice="Name the output like picture.jpg or picture.png.") from error
    write_atomic(path, data)


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
