"""Makes painterly works by rule: what the base style network learns from beside the real paintings.

A kind is a technique (oil, engraving, mosaic, batik); a seed is one work in it: it picks the palette, the tools and
every stroke. A work renders a photo, so that its composition is natural; without a photo a landscape is imagined.
Strokes are measured in pixels, and keep their size in a larger work as a painter's brushes do.

Rules: pure functions of (kind, seed, photo, size); numpy and Pillow only; every random number comes from the seed. This
module imitates techniques, no artist, and knows nothing of files, of training or of any network.

Inside, a picture is (H, W, 3) float32 in [0, 1] (`Field`), a plane is (H, W) float32, and points are (..., 2) as x, y.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Callable

Uint8Image: TypeAlias = npt.NDArray[np.uint8]
Field: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.intp]
Generator: TypeAlias = np.random.Generator
Scalar = TypeVar("Scalar", bound=np.generic)
Renderer: TypeAlias = "Callable[[Generator, Field], Field]"

FINE = 2  # strokes are drawn at twice the size and brought down, which smooths their edges
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
LIGHT = (-0.6, -0.8)  # paint ridges are lit from the upper left, as in most studios

# name: (cool ramp, warm ramp), each from dark to light
PALETTES: dict[str, tuple[str, str]] = {
    "earth": ("2b2a26 4d4a3a 7d7a5c b3a982 e9dfc0", "2a1a12 6b3a1e a8622c d49a55 f3dcae"),
    "night": ("0a1230 16306a 2f5fa8 7fa6cf e6e2b0", "141a3a 3a3f6b b58a2a e8c33c fff0a0"),
    "ochre": ("101214 33383a 6b6c66 a8a48f e6dec6", "0e0c0a 3a2a18 8a5a1c cc9230 f0d8a0"),
    "powder": ("4a5a7a 8098b8 a8c0d4 c9dce0 f4f2ea", "7a4a5e c07c88 e4a9a0 f2cdb6 fdf0dc"),
    "vivid": ("0b1f4f 005f9e 00a0a8 7ccf6a f7f08a", "4a0d2e c4183c f2542a f99c1c ffe36a"),
    "sepia": ("1e1610 4a3826 80664a b89c78 eedfc4", "24140a 5c3a1e 946436 c89a64 f4e0bc"),
    "rust": ("0c2429 14525a 2f8a8a 85bdb0 e8ecd8", "2e120c 7a2e17 bf5328 e09560 f5e2c4"),
    "forest": ("0f1c12 26452b 57793f 9aae5c e4e4b0", "281a10 5a3b1f 94702f cfae4c f4e8b8"),
    "fauve": ("1d0b3c 4b1f8a 1f7a5c 6fc06a f2f0a8", "3c0b1e b0174f f0562f f9a85a ffe9c8"),
    "winter": ("1a2230 44566b 7f93a6 b9c6cf f4f6f5", "2e2628 6e5a58 a58d84 d0bfb2 faf4ec"),
    "indigo": ("0a0f3c 1c2d7a 4a67b0 a5b8dc f5f3ea", "26143a 4b3a7a 8a74ac c9b8d4 f8f0e6"),
    "gold": ("06231f 0e5a4a 3c8f6b b9b45a f6e9a6", "1f0f0a 6b2b12 b8741a e6b93a fff2b8"),
    "orchard": ("152a1c 2f6b3a 7fa83a c6cf5a f4f0b4", "3a0f14 96222a d2503a eda26a fbe3c2"),
    "dusk": ("12142a 343a6a 6a6aa0 b498b4 f2d8cc", "2a1020 74284a c2564e ee965a fbdc98"),
    "harbour": ("0e1a20 2a4650 5c808a a4bcb8 ecebdc", "2c0e10 8a1c22 c8443a d8a07a f2e4cc"),
    "coral": ("07323a 0f7078 4ab0a8 a8dac4 f6f4de", "4a1430 a42e54 ee6a5c f8a888 ffe8d4"),
}


def draw(kind: str, seed: int, photo: Uint8Image | None, size: int = 512) -> Uint8Image:
    """Make one work.

    Args:
        kind: one of `KINDS`.
        seed: which work of that kind; the same arguments always give the same pixels.
        photo: (H, W, 3) uint8, what the work shows; None for an imagined landscape.
        size: side of the square work in pixels.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in _RENDERERS:
        message = f"unknown kind {kind!r}; one of {', '.join(KINDS)}"
        raise ValueError(message)
    rng = np.random.default_rng([KINDS.index(kind), seed])
    scene = _imagined(rng, size) if photo is None else _framed(rng, photo, size)
    return _to_uint8(_RENDERERS[kind](rng, scene))


# ---- what the work shows ----


def _framed(rng: Generator, photo: Uint8Image, size: int) -> Field:
    """Cut a square out of the photo, 75 to 100 % of its shorter side, and mirror it half of the time."""
    height, width = photo.shape[:2]
    side = int(min(height, width) * rng.uniform(0.75, 1.0))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    cut = photo[top : top + side, left : left + side]
    scene = _to_float(np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.LANCZOS)))
    return scene[:, ::-1] if rng.random() < 0.5 else scene


def _imagined(rng: Generator, size: int) -> Field:
    """Sky, sun, ranges of hills and a foreground, in muted natural colours."""
    y, x = _grid(size)
    scene = np.stack([0.55 + 0.4 * y, 0.7 + 0.15 * y, 0.95 - 0.25 * y], axis=-1)
    scene += 0.12 * _clouds(rng, size, size / 3)[..., None]
    centre, radius = rng.uniform(0.15, 0.85), rng.uniform(0.05, 0.1)
    sun = np.hypot(x - centre, y - rng.uniform(0.15, 0.35)) < radius
    scene[sun] = (1.0, 0.9, 0.6)
    for depth in np.linspace(0.35, 0.95, int(rng.integers(4, 7))):
        ridge = depth + 0.07 * _noise(rng, size, size / 4)[0] + 0.02 * _noise(rng, size, size / 14)[0]
        colour = np.array([0.2, 0.45, 0.25]) * (1.2 - depth) + np.array([0.5, 0.35, 0.15]) * depth * rng.uniform(0.2, 1)
        hill = colour + 0.12 * _clouds(rng, size, 40)[..., None] * depth
        scene = np.where((y > ridge)[..., None], hill, scene)
    return _unit(scene)


# ---- planes and pictures ----


def _to_float(image: Uint8Image) -> Field:
    return np.divide(image, 255, dtype=np.float32)


def _to_uint8(picture: Field) -> Uint8Image:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _grid(size: int) -> tuple[Field, Field]:
    """Give y and x of every pixel, in [0, 1)."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    return y, x


def _luma(picture: Field) -> Field:
    return picture @ LUMA


def _unit(picture: npt.NDArray[np.float32 | np.float64]) -> Field:
    """The picture as float32, cut to [0, 1]."""
    return np.clip(picture, 0, 1).astype(np.float32)


def _mix(a: Field, b: Field, share: Field | float) -> Field:
    """A where share is 0, b where it is 1; a plane of shares serves for all three channels."""
    weight = share[..., None] if isinstance(share, np.ndarray) and share.ndim < a.ndim else share
    return np.asarray(a + (b - a) * weight, np.float32)


def _step(value: Field, edge: float, softness: float) -> Field:
    """0 below the edge, 1 above it, smooth over `softness` on either side."""
    t = np.clip((value - edge) / (2 * softness) + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _blur(field: Field, sigma: float) -> Field:
    """Gaussian blur of a plane or picture, edges repeated."""
    reach = max(1, int(2.5 * sigma + 0.5))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        pads = [(reach, reach) if a == axis else (0, 0) for a in range(field.ndim)]
        padded, length = np.pad(field, pads, mode="edge"), field.shape[axis]
        views = (padded[i : i + length] if axis == 0 else padded[:, i : i + length] for i in range(len(taps)))
        blurred = np.zeros_like(field)
        for tap, view in zip(taps, views, strict=True):
            blurred += tap * view
        field = blurred
    return field


def _slopes(plane: Field) -> tuple[Field, Field]:
    """Slope along y and along x."""
    down, right = np.gradient(plane)
    return np.asarray(down, np.float32), np.asarray(right, np.float32)


def _noise(rng: Generator, size: int, cell: float) -> Field:
    """Smooth noise with features of about `cell` pixels; mean 0, deviation about 1."""
    coarse = max(4, round(size / cell) + 3)
    grid = Image.fromarray(rng.normal(size=(coarse, coarse)).astype(np.float32))
    plane = np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return np.asarray((plane - plane.mean()) / (plane.std() + 1e-6), np.float32)


def _clouds(rng: Generator, size: int, cell: float) -> Field:
    """Four octaves of noise; mean 0, deviation about 1."""
    octaves = [0.6**i * _noise(rng, size, max(2.0, cell / 2**i)) for i in range(4)]
    plane = np.sum(octaves, axis=0)
    return np.asarray(plane / plane.std(), np.float32)


def _grain(rng: Generator, size: int, sigma: float) -> Field:
    """Tooth of paper or cloth: blurred white noise; mean 0, deviation 1."""
    plane = _blur(rng.normal(size=(size, size)).astype(np.float32), sigma)
    return np.asarray(plane / plane.std(), np.float32)


def _moved(field: npt.NDArray[Scalar], right: Field, down: Field) -> npt.NDArray[Scalar]:
    """The field seen through a displacement in pixels (nearest pixel; edges repeated)."""
    height, width = field.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    rows = np.clip(np.rint(y + down), 0, height - 1).astype(np.intp)
    columns = np.clip(np.rint(x + right), 0, width - 1).astype(np.intp)
    moved: npt.NDArray[Scalar] = field[rows, columns]
    return moved


def _at(field: Field, points: Field) -> Field:
    """The field's values at points (..., 2) given as x, y in pixels."""
    height, width = field.shape[:2]
    x = np.clip(points[..., 0], 0, width - 1).astype(np.intp)
    y = np.clip(points[..., 1], 0, height - 1).astype(np.intp)
    return field[y, x]


def _levels(plane: Field) -> Field:
    """Share of pixels darker than each: the plane with a flat histogram, in [0, 1]."""
    ranked = np.sort(plane[::4, ::4].ravel())
    return (np.searchsorted(ranked, plane.ravel()).reshape(plane.shape) / len(ranked)).astype(np.float32)


# ---- colour ----


def _hex(colours: str) -> Field:
    """'2b2a26 4d4a3a' as (2, 3) in [0, 1]."""
    return _to_float(np.array([list(bytes.fromhex(c)) for c in colours.split()], np.uint8))


def _ramp(ramp: Field, tone: Field) -> Field:
    """Colours (..., 3) of tones in [0, 1] on a ramp (n, 3) from dark to light."""
    stops = np.linspace(0, 1, len(ramp))
    return np.stack([np.interp(tone, stops, ramp[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def _palette(rng: Generator, names: str = "") -> tuple[Field, Field]:
    """A cool and a warm ramp of one palette, out of those named or out of all."""
    choice = str(rng.choice(names.split() or sorted(PALETTES)))
    cool, warm = PALETTES[choice]
    return _hex(cool), _hex(warm)


def _tone(scene: Field) -> Field:
    """Lightness with most of its histogram flattened, so that dull photos use the whole palette too."""
    luma = _luma(scene)
    low, high = np.quantile(luma, [0.01, 0.99])
    stretched = np.clip((luma - low) / (high - low + 1e-6), 0, 1)
    return np.asarray(0.55 * _levels(luma) + 0.45 * stretched, np.float32)


def _warmth(rng: Generator, scene: Field) -> Field:
    """How warm each place is against the rest of the scene, in [0, 1], wandering a little by chance."""
    difference = _blur(scene[..., 0] - scene[..., 2], 2.0)
    size = len(scene)
    z = (difference - np.median(difference)) / (difference.std() + 0.03) + 0.5 * _noise(rng, size, size / 4)
    return np.asarray(1 / (1 + np.exp(-2.2 * z)), np.float32)


def _recoloured(rng: Generator, scene: Field, names: str = "", own: float = 0.2) -> Field:
    """The scene in a palette: lightness picks the place on the ramps, warmth the ramp; `own` keeps its colour."""
    cool, warm = _palette(rng, names)
    tone = _tone(scene)
    painted = _mix(_ramp(cool, tone), _ramp(warm, tone), _warmth(rng, scene))
    return _unit(painted + own * (scene - _luma(scene)[..., None]))


def _jittered(rng: Generator, colours: Field, light: float, hue: float) -> Field:
    """Colours (n, 3), each a little lighter or darker and a little off in hue."""
    n = len(colours)
    shift = rng.normal(0, light, (n, 1)) + rng.normal(0, hue, (n, 3))
    return _unit(colours + shift)


def _paper(rng: Generator, size: int, colour: str = "f3ead8", tooth: float = 0.015) -> Field:
    """A sheet: its colour, fibres, some foxing."""
    shade = tooth * _grain(rng, size, 0.8) + 0.012 * _clouds(rng, size, 90)
    return _unit(_hex(colour)[0] + shade[..., None] * np.array([0.9, 1.0, 1.2], np.float32))


# ---- strokes ----


def _flow(rng: Generator, scene: Field, reach: float, swirl: float) -> Field:
    """Angle of the brush at every pixel: along the edges where there are any, else along a slow swirl.

    The structure tensor (Kass & Witkin 1987) averaged over `reach` pixels, in double angles, where no sign is lost.
    """
    size = len(scene)
    down, right = _slopes(_blur(_luma(scene), 1.5))
    across, along = _blur(right * right - down * down, reach), _blur(2 * right * down, reach)
    strength = np.hypot(across, along)
    drift = swirl * 1.6 * _noise(rng, size, size / 2.5) + rng.uniform(0, np.pi)
    calm = np.quantile(strength, 0.55) + 1e-6
    x = -across / calm + swirl * np.cos(2 * drift)
    y = -along / calm + swirl * np.sin(2 * drift)
    return np.asarray(0.5 * np.arctan2(y, x), np.float32)


def _scattered(rng: Generator, size: int, gap: float) -> Field:
    """Points (n, 2), one in each cell of a grid of `gap` pixels, in random order."""
    marks = np.arange(0, size, gap)
    points = np.stack(np.meshgrid(marks, marks), axis=-1).reshape(-1, 2) + rng.uniform(0, gap, (len(marks) ** 2, 2))
    return rng.permutation(points).astype(np.float32)


def _ruled(rng: Generator, size: int, angle: float, gap: float, length: float) -> Field:
    """Points (n, 2) in parallel rows `gap` pixels apart at this angle, one a stroke of `length`; in random order."""
    reach = size * 0.75
    along, across = np.meshgrid(np.arange(-reach, reach, length * 0.9), np.arange(-reach, reach, gap))
    along = along + rng.uniform(0, length, (len(along), 1)) + rng.normal(0, length / 8, along.shape)
    across = across + rng.normal(0, gap / 9, across.shape)
    x = size / 2 + along * np.cos(angle) - across * np.sin(angle)
    y = size / 2 + along * np.sin(angle) + across * np.cos(angle)
    points = np.stack([x, y], axis=-1).reshape(-1, 2)
    inside = ((points > -length) & (points < size + length)).all(-1)
    return rng.permutation(points[inside]).astype(np.float32)


def _traced(angle: Field, starts: Field, length: float | Field, steps: int = 6) -> Field:
    """Paths (n, steps + 1, 2) that follow the angle field, half of the length to each side of their start."""
    stride = np.asarray(length, np.float32).reshape(-1, 1) / steps  # one for all, or one each
    halves = []
    for sign in (-1.0, 1.0):
        theta = _at(angle, starts)
        heading = sign * np.stack([np.cos(theta), np.sin(theta)], axis=-1)
        half = [starts]
        for _ in range(steps // 2):
            theta = _at(angle, half[-1])
            course = np.stack([np.cos(theta), np.sin(theta)], axis=-1)
            course *= np.where((course * heading).sum(-1, keepdims=True) < 0, -1.0, 1.0)  # an angle has no sense
            heading = 0.3 * heading + 0.7 * course
            half.append(half[-1] + np.asarray(heading * stride, np.float32))
        halves.append(half)
    return np.stack(halves[0][:0:-1] + halves[1], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Brush:
    """One tool: sizes in pixels, `ragged` and `gaps` as shares of the stroke, jitters in [0, 1]."""

    width: float
    length: float
    bristles: int = 5
    ragged: float = 0.15  # how unevenly the bristles lift off
    gaps: float = 0.0  # share of bristles that carry no paint
    light: float = 0.04  # jitter of lightness from stroke to stroke
    hue: float = 0.02  # jitter of hue from stroke to stroke
    streak: float = 0.03  # jitter of lightness between the bristles of one stroke
    taper: float = 0.5  # 0 leaves the ends of a stroke square


class _Canvas:
    """Paint and its thickness, drawn at `FINE` times the size of the work."""

    def __init__(self, ground: Field) -> None:
        self.size = len(ground)
        side = (self.size * FINE, self.size * FINE)
        self._paint = Image.fromarray(_to_uint8(ground)).resize(side, Image.Resampling.BILINEAR)
        self._thickness = Image.new("L", side, 60)

    @property
    def picture(self) -> Field:
        return _to_float(np.asarray(self._paint.reduce(FINE)))

    @property
    def thickness(self) -> Field:
        return _to_float(np.asarray(self._thickness.reduce(FINE)))

    def lay_inplace(self, rng: Generator, paths: Field, colours: Field, brush: _Brush) -> None:
        """Draw strokes in order: paths (n, k, 2), colours (n, 3). A stroke is its bristles, side by side."""
        n, points = paths.shape[:2]
        offsets = np.linspace(-0.5, 0.5, brush.bristles) if brush.bristles > 1 else np.zeros(1)
        course = np.gradient(paths, axis=1)
        side = np.stack([-course[..., 1], course[..., 0]], axis=-1)
        side /= np.linalg.norm(side, axis=-1, keepdims=True) + 1e-6
        swell = np.sin(np.linspace(0.25, np.pi - 0.25, points)) ** brush.taper
        spread = offsets[None, :, None, None] * (side * swell[None, :, None])[:, None] * brush.width
        lines = paths[:, None] + spread  # (n, bristles, k, 2)
        slip = rng.normal(0, brush.ragged * brush.length / 2, (n, brush.bristles, 1, 1))
        heading = paths[:, -1] - paths[:, 0]
        heading /= np.linalg.norm(heading, axis=-1, keepdims=True) + 1e-6
        lines = (lines + slip * heading[:, None, None]) * FINE
        tints = _to_uint8(colours[:, None] + rng.normal(0, brush.streak, (n, brush.bristles, 1)).astype(np.float32))
        heights = rng.integers(70, 200, (n, 1)) + rng.integers(-40, 55, (n, brush.bristles))
        heights[:, [0, -1]] += 25  # paint is pushed to the sides of the brush
        carried = rng.random((n, brush.bristles)) >= brush.gaps
        hair = max(1, round(1.5 * FINE * brush.width / brush.bristles))
        self._draw_inplace(lines.astype(np.float32), tints, heights, carried, hair)

    def _draw_inplace(
        self, lines: Field, tints: Uint8Image, heights: npt.NDArray[np.int_], carried: npt.NDArray[np.bool_], hair: int
    ) -> None:
        paint, thickness = ImageDraw.Draw(self._paint), ImageDraw.Draw(self._thickness)
        flat = lines.reshape(*lines.shape[:2], lines.shape[2] * 2).tolist()
        rows = zip(flat, tints.tolist(), heights.tolist(), carried.tolist(), strict=True)
        for stroke, stroke_tints, stroke_heights, stroke_carried in rows:
            for line, tint, height, loaded in zip(stroke, stroke_tints, stroke_heights, stroke_carried, strict=True):
                if loaded:
                    paint.line(line, fill=tuple(tint), width=hair)
                    thickness.line(line, fill=height, width=hair)

    def dot_inplace(self, points: Field, radii: Field, colours: Field) -> None:
        """Draw round dabs in order: points (n, 2), radii (n,), colours (n, 3)."""
        paint, thickness = ImageDraw.Draw(self._paint), ImageDraw.Draw(self._thickness)
        boxes = (np.concatenate([points - radii[:, None], points + radii[:, None]], axis=1) * FINE).tolist()
        for i, (box, tint) in enumerate(zip(boxes, (colours * 255).astype(int).tolist(), strict=True)):
            paint.ellipse(box, fill=tuple(tint))
            thickness.ellipse(box, fill=110 + i * 37 % 120)

    def fill_inplace(self, polygons: Field, colours: Field) -> None:
        """Draw polygons in order: (n, corners, 2), colours (n, 3)."""
        paint, thickness = ImageDraw.Draw(self._paint), ImageDraw.Draw(self._thickness)
        corners = (polygons * FINE).reshape(len(polygons), -1).tolist()
        for i, (polygon, tint) in enumerate(zip(corners, (colours * 255).astype(int).tolist(), strict=True)):
            paint.polygon(polygon, fill=tuple(tint))
            thickness.polygon(polygon, fill=120 + i * 53 % 110)


def _lit(picture: Field, thickness: Field, strength: float) -> Field:
    """Paint in relief: light and shade on the slopes of its thickness, a sheen on the ridges."""
    down, right = _slopes(_blur(thickness, 0.7))
    slope = LIGHT[0] * right + LIGHT[1] * down
    sheen = np.clip(-slope - 0.06, 0, 1)
    return _unit(picture * (1 - strength * slope[..., None]) + 0.35 * strength * sheen[..., None])


def _painted(rng: Generator, ground: Field, reference: Field, angle: Field, brushes: tuple[_Brush, ...]) -> _Canvas:
    """Brushes from broad to fine; each goes only where the canvas is still far from the reference (Hertzmann 1998)."""
    canvas, size = _Canvas(ground), len(reference)
    for i, brush in enumerate(brushes):
        seen = _blur(reference, max(0.6, brush.width / 5))
        starts = _scattered(rng, size, max(2.0, brush.width * 0.62))
        if i > 0:
            error = np.abs(_blur(canvas.picture, brush.width / 3) - seen).sum(-1)
            starts = starts[_at(error, starts) > rng.uniform(0.04, 0.22, len(starts))]
        length = brush.length * rng.uniform(0.5, 1.3, len(starts)).astype(np.float32)
        colours = _jittered(rng, _at(seen, starts), brush.light, brush.hue)
        canvas.lay_inplace(rng, _traced(angle, starts, length), colours, brush)
    return canvas


# ---- kinds: paint ----


def _oil_flow(rng: Generator, scene: Field) -> Field:
    """Long strokes of several brushes that run with the forms."""
    reference = _recoloured(rng, scene)
    angle = _flow(rng, scene, rng.uniform(5, 10), rng.uniform(0.4, 0.9))
    scale = rng.uniform(0.75, 1.3)
    brushes = tuple(
        _Brush(w * scale, w * scale * rng.uniform(4, 6), bristles=b, light=0.05, hue=0.025, streak=0.045)
        for w, b in ((18, 9), (10, 6), (5.5, 4))
    )
    canvas = _painted(rng, reference * 0.7, reference, angle, brushes)
    return _lit(canvas.picture, canvas.thickness, rng.uniform(0.5, 1.0))


def _oil_dashes(rng: Generator, scene: Field) -> Field:
    """Short separate dashes of broken colour; the ground shows between them."""
    reference = _recoloured(rng, scene, "vivid fauve orchard dusk coral gold rust powder harbour", own=0.35)
    size = len(scene)
    ground = np.broadcast_to(_ramp(_palette(rng)[1], np.array([0.55], np.float32)), (size, size, 3)).astype(np.float32)
    angle = _flow(rng, scene, 6, 1.2) + 0.25 * _noise(rng, size, 25)
    scale = rng.uniform(0.8, 1.4)
    brushes = (
        _Brush(11 * scale, 22 * scale, bristles=5, light=0.06, hue=0.05),
        _Brush(7 * scale, 17 * scale, bristles=4, light=0.08, hue=0.07, gaps=0.08),
        _Brush(4.5 * scale, 12 * scale, bristles=3, light=0.08, hue=0.07),
    )
    canvas = _painted(rng, ground, reference, angle, brushes)
    return _lit(canvas.picture, canvas.thickness, 0.7)


def _palette_knife(rng: Generator, scene: Field) -> Field:
    """Broad slabs of paint, flat within, ridged at the rim, at a few steep angles."""
    size = len(scene)
    reference = _recoloured(rng, scene, own=0.3)
    angle = _flow(rng, scene, 9, 1.0) * 0.5 + rng.uniform(0, np.pi) + 0.5 * np.sign(_noise(rng, size, 45))
    scale = rng.uniform(0.8, 1.2)
    brushes = tuple(
        _Brush(w * scale, w * scale * 1.7, bristles=13, ragged=0.04, light=0.08, hue=0.035, streak=0.02, taper=0.1)
        for w in (46, 29, 16)
    )
    canvas = _painted(rng, reference * 0.6, reference, angle.astype(np.float32), brushes)
    return _lit(canvas.picture, canvas.thickness + 0.15 * _luma(canvas.picture), 1.3)


def _dry_brush(rng: Generator, scene: Field) -> Field:
    """A stiff brush with little paint, dragged over a coloured ground."""
    size = len(scene)
    reference = _recoloured(rng, scene)
    ground = _paper(rng, size, str(rng.choice(["3a3128", "5b4a3a", "d8c7a4", "2d3a40", "8c3f2a", "c9b58d"])), 0.03)
    brushes = (
        _Brush(20, 70, bristles=14, ragged=0.3, gaps=0.35, streak=0.07),
        _Brush(12, 45, bristles=10, ragged=0.3, gaps=0.3, streak=0.07),
        _Brush(6, 26, bristles=6, ragged=0.25, gaps=0.2, streak=0.05),
    )
    angle = _flow(rng, scene, 10, 1.0)
    canvas = _painted(rng, ground, reference, angle, brushes)
    worn = _step(_grain(rng, size, 0.8) + 0.6 * _clouds(rng, size, 60), 1.3, 1.1)
    return _mix(canvas.picture, ground, worn * 0.6)


def _gouache(rng: Generator, scene: Field) -> Field:
    """Few flat opaque colours, laid with soft square brushes."""
    size = len(scene)
    reference = _recoloured(rng, scene, own=0.35)
    steps = int(rng.integers(5, 8))
    tone = _tone(_blur(scene, 2))
    flat = np.floor(tone * steps * 0.999) / (steps - 1)
    reference = np.clip(_blur(reference, 3) + (flat - tone)[..., None] * 0.8, 0, 1)
    brushes = tuple(_Brush(w, w * 2.2, bristles=3, light=0.018, hue=0.012, streak=0.01) for w in (26, 13, 6))
    canvas = _painted(rng, reference, reference, _flow(rng, scene, 8, 1.0), brushes)
    chalk = 0.018 * _grain(rng, size, 0.7) + 0.015 * _clouds(rng, size, 30)
    return _unit(canvas.picture + chalk[..., None])


def _pointillism(rng: Generator, scene: Field) -> Field:
    """Dots of pure colour, a third of them from the other side of the palette."""
    size = len(scene)
    cool, warm = _palette(rng, "vivid fauve orchard dusk coral gold rust powder")
    tone, warmth = _tone(scene), _warmth(rng, scene)
    canvas = _Canvas(_paper(rng, size, "efe3c4"))
    scale = rng.uniform(0.85, 1.5)
    for radius in (4.2 * scale, 3.2 * scale, 2.3 * scale):
        points = _scattered(rng, size, radius * 1.45)
        t = _at(tone, points) + rng.normal(0, 0.09, len(points)).astype(np.float32)
        chance = np.clip(0.15 + 0.7 * _at(warmth, points), 0, 1)
        ramps = np.where((rng.random(len(points)) < chance)[:, None], _ramp(warm, t), _ramp(cool, t))
        own = _at(scene, points)
        colours = _jittered(rng, np.clip(ramps + 0.3 * (own - _luma(own)[:, None]), 0, 1), 0.03, 0.05)
        canvas.dot_inplace(points, (radius * rng.uniform(0.75, 1.15, len(points))).astype(np.float32), colours)
    return _lit(canvas.picture, canvas.thickness, 0.35)


# ---- kinds: water and ink ----


def _watercolour(rng: Generator, scene: Field) -> Field:
    """Transparent washes, light to dark: wet dark edges, pigment that settles in the paper, blooms, bare paper left."""
    size = len(scene)
    sheet = _paper(rng, size, "f8f4ea", 0.02)
    pigment = np.clip(_blur(_recoloured(rng, scene, own=0.5), 4), 0.02, 1)
    tooth, blooms = _grain(rng, size, 1.0), _clouds(rng, size, 70)
    wander = [_clouds(rng, size, 40) * rng.uniform(1.0, 2.5) for _ in range(2)]
    tone = _moved(_blur(_tone(scene), 1.6), *wander) + 0.03 * blooms
    absorbed = np.zeros_like(scene)
    hue = pigment / (pigment.max(-1, keepdims=True) + 1e-6)
    for edge in (0.88, 0.68, 0.5, 0.33, 0.18):
        wash = 1 - _step(tone + 0.012 * _clouds(rng, size, 24), edge, 0.012 + 0.05 * float(rng.random() < 0.35))
        rim = np.clip(wash - _blur(wash, 3.0), 0, 1)
        load = wash * (0.8 + 0.16 * blooms + 0.1 * tooth * (1 - edge)) + 1.1 * rim
        absorbed += np.clip(load, 0, None)[..., None] * (1.28 - hue) * 0.62
    return _unit(sheet * np.exp(-absorbed))


def _ink_brush(rng: Generator, scene: Field) -> Field:
    """Grey washes that bleed into rice paper, then a few dark strokes of a loaded brush that runs dry."""
    size = len(scene)
    sheet = _paper(rng, size, str(rng.choice(["efe6d2", "e9dcc0", "f4f0e4"])), 0.02)
    ink = _hex(str(rng.choice(["16161a", "1a2026", "241812", "14203a"])))[0]
    tone = _moved(_blur(_tone(scene), 2.5), 5 * _clouds(rng, size, 30), 5 * _clouds(rng, size, 30))
    shade = np.zeros((size, size), np.float32)
    for edge, load in ((0.6, 0.2), (0.4, 0.26), (0.2, 0.34)):
        wash = 1 - _step(tone + 0.05 * _clouds(rng, size, 40), edge, 0.07)
        shade += load * wash * (1 + 0.2 * _clouds(rng, size, 50)) + 0.5 * load * np.clip(wash - _blur(wash, 4), 0, 1)
    washed = _mix(sheet, np.broadcast_to(ink, sheet.shape), np.clip(shade, 0, 0.9))
    canvas = _Canvas(washed)
    down, right = _slopes(_blur(_luma(scene), 2.0))
    edges = _levels(np.hypot(down, right))
    angle = _flow(rng, scene, 4, 0.3)
    for width, bar, gap in ((10.0, 0.9, 11.0), (5.0, 0.84, 6.0), (2.5, 0.8, 4.0)):
        starts = _scattered(rng, size, gap)
        starts = starts[_at(edges, starts) > rng.uniform(bar, 1.05, len(starts))]
        colours = _jittered(rng, np.broadcast_to(ink, (len(starts), 3)), 0.03, 0.0)
        brush = _Brush(width, width * 6, bristles=max(3, int(width)), ragged=0.25, gaps=0.18, streak=0.05)
        canvas.lay_inplace(rng, _traced(angle, starts, brush.length), colours, brush)
    soaked = np.minimum(canvas.picture, _blur(canvas.picture, 1.4) + 0.08)
    return _unit(soaked + 0.02 * _grain(rng, size, 0.9)[..., None])


# ---- kinds: line ----


def _inked(rng: Generator, size: int, tinted: float = 0.4) -> tuple[Field, Field]:
    """A sheet (H, W, 3) and an ink (3,); `tinted` is the chance that the sheet is not white."""
    sheets = ["f2ead6", "efe4cb", "f6f1e6"] if rng.random() > tinted else ["d9c39a", "b9c4bd", "c8b8a8", "cfa98a", "a9b6c4"]
    ink = _hex(str(rng.choice(["15130f", "2a1a10", "101a33", "3a120e", "0f2a22"])))[0]
    return _paper(rng, size, str(rng.choice(sheets))), ink


def _hatching(rng: Generator, scene: Field) -> Field:
    """Pen and ink: one more direction of lines for each deeper tone, and drawn contours."""
    size = len(scene)
    sheet, ink = _inked(rng, size)
    dark = 1 - _tone(_blur(scene, 1.2))
    canvas, base, gap = _Canvas(sheet), rng.uniform(0, np.pi), rng.uniform(4.2, 6.0)
    bend = 0.1 * _noise(rng, size, 130)
    for bar, turn in ((0.34, 0.0), (0.5, 0.9), (0.64, 0.45), (0.77, 1.35), (0.88, 0.2)):
        length = rng.uniform(14, 26)
        starts = _ruled(rng, size, base + turn, gap, length)
        starts = starts[_at(dark, starts) > bar + rng.normal(0, 0.03, len(starts))]
        colours = _jittered(rng, np.broadcast_to(ink, (len(starts), 3)), 0.06, 0.0)
        lengths = (length * rng.uniform(0.8, 1.25, len(starts))).astype(np.float32)
        pen = _Brush(rng.uniform(0.6, 1.0), length, bristles=1, ragged=0.1)
        canvas.lay_inplace(rng, _traced((base + turn + bend).astype(np.float32), starts, lengths), colours, pen)
    return _contoured(rng, canvas, scene, ink, 0.9).picture


def _contoured(rng: Generator, canvas: _Canvas, scene: Field, ink: Field, width: float = 1.2) -> _Canvas:
    """The canvas with the scene's strongest edges drawn over, in broken lines (drawn on the canvas given)."""
    down, right = _slopes(_blur(_luma(scene), 1.2))
    edges = _levels(np.hypot(down, right))
    starts = _scattered(rng, canvas.size, 3.0)
    starts = starts[_at(edges, starts) > rng.uniform(0.88, 1.06, len(starts))]
    colours = _jittered(rng, np.broadcast_to(ink, (len(starts), 3)), 0.05, 0.0)
    paths = _traced(_flow(rng, scene, 2.0, 0.1), starts, 14.0)
    canvas.lay_inplace(rng, paths, colours, _Brush(width, 14, bristles=1))
    return canvas


def _engraving(rng: Generator, scene: Field) -> Field:
    """Burin lines that swell with the shadow and bend over the forms; a second set crosses them in the dark."""
    size = len(scene)
    sheet, ink = _inked(rng, size)
    tone, relief = _tone(_blur(scene, 0.8)), _blur(_luma(scene), 5)
    y, x = _grid(size)
    first = rng.uniform(0, np.pi)
    cover = np.zeros((size, size), np.float32)
    for turn, reach, period in ((0.0, 1.0, 5.0), (1.1, 0.62, 5.0), (0.55, 0.36, 4.0)):
        angle, gap = first + turn, period * rng.uniform(0.9, 1.2)
        across = size * (x * np.cos(angle) + y * np.sin(angle))
        across = across + 26 * relief * rng.uniform(0.7, 1.3) + 2.5 * _noise(rng, size, 120)
        distance = np.abs(across / gap - np.rint(across / gap)) * gap  # pixels to the middle of the nearest line
        swell = np.clip((reach - tone) / reach, 0, 1) ** 0.8 * gap * 0.44 * (1 + 0.12 * _grain(rng, size, 1.5))
        cover = np.maximum(cover, np.clip(swell - distance + 0.5, 0, 1) * (swell > 0.22))
    pressed = np.clip(cover * (0.93 + 0.05 * _grain(rng, size, 0.8)), 0, 1)
    return _mix(sheet, np.broadcast_to(ink, sheet.shape), pressed)


def _etching(rng: Generator, scene: Field) -> Field:
    """Loose needle lines that follow the forms, grainy aquatint under them, ink left on the plate."""
    size = len(scene)
    sheet, ink = _inked(rng, size, 0.3)
    dark = 1 - _tone(_blur(scene, 1.2))
    grains = _grain(rng, size, 0.7)
    tints = sum(0.13 * _step(dark + 0.06 * grains, bar, 0.09) for bar in (0.5, 0.68, 0.84))
    film = np.clip(0.06 + 0.035 * _clouds(rng, size, 130), 0, 1)  # what the wiping left
    canvas = _Canvas(_mix(sheet, np.broadcast_to(ink, sheet.shape), np.asarray(tints + film, np.float32)))
    form = _flow(rng, scene, 5, 0.7)
    for turn, bar in ((0.0, 0.36), (0.5, 0.55), (1.2, 0.7), (-0.4, 0.84)):
        starts = _scattered(rng, size, 6.6)
        starts = starts[_at(dark, starts) > bar + rng.normal(0, 0.08, len(starts))]
        angle = form + turn + 0.25 * _noise(rng, size, 14)
        colours = _jittered(rng, np.broadcast_to(ink, (len(starts), 3)), 0.08, 0.0)
        length = rng.uniform(7, 24, len(starts)).astype(np.float32)
        canvas.lay_inplace(rng, _traced(angle.astype(np.float32), starts, length), colours, _Brush(0.8, 14, bristles=1))
    printed = _contoured(rng, canvas, scene, ink).picture
    return _unit(_blur(printed, 0.6))


def _stipple(rng: Generator, scene: Field) -> Field:
    """Ink dots, dense and large in the shade, on a washed sheet."""
    size = len(scene)
    sheet, ink = _inked(rng, size)
    cool, warm = _palette(rng)
    dark = 1 - _tone(scene)
    second = (warm if rng.random() < 0.5 else cool)[1 + int(rng.integers(2))]
    canvas = _Canvas(_mix(sheet, _ramp(warm, _tone(_blur(scene, 8))), 0.25))
    for radius, gap in ((1.7, 4.6), (1.25, 3.2), (0.9, 2.4)):
        points = _scattered(rng, size, gap)
        depth = _at(dark, points)
        points = points[1.05 * depth**2.2 > rng.random(len(points))]
        inks = np.where(rng.random((len(points), 1)) < 0.22, second, ink)
        radii = radius * rng.uniform(0.6, 1.15, len(points))
        canvas.dot_inplace(points, radii.astype(np.float32), _jittered(rng, inks.astype(np.float32), 0.04, 0.01))
    return canvas.picture


def _carved(rng: Generator, scene: Field, wood: Field, cut: Field, bars: tuple[float, ...]) -> _Canvas:
    """A block of `wood` colours (H, W, 3) from which gouges, along the forms, take the light parts in `cut` colours."""
    tone, size = _tone(_blur(scene, 1.2)), len(scene)
    angle = _flow(rng, scene, 6, 0.9)
    canvas = _Canvas(wood)
    for bar, width, length, gap in zip(bars, (1.4, 2.4, 4.2), (13.0, 18.0, 22.0), (4.4, 4.8, 4.0), strict=True):
        starts = _scattered(rng, size, gap)
        starts = starts[_at(tone, starts) > bar + rng.normal(0, 0.035, len(starts))]
        lengths = (length * rng.uniform(0.5, 1.3, len(starts))).astype(np.float32)
        gouge = _Brush(width, length, bristles=2, ragged=0.05, streak=0.0)
        canvas.lay_inplace(rng, _traced(angle, starts, lengths), _at(cut, starts), gouge)
    return canvas


def _woodcut(rng: Generator, scene: Field) -> Field:
    """A dark key block over flat tint blocks, with the grain of the plank and uneven ink."""
    size = len(scene)
    cool, warm = _palette(rng)
    tone = np.floor(_tone(_blur(scene, 2.5)) * 3.999) / 3
    flat = _mix(
        _ramp(cool, 0.25 + 0.75 * tone),
        _ramp(warm, 0.25 + 0.75 * tone),
        _step(_blur(_warmth(rng, scene), 3), 0.5, 0.04),
    )
    y, x = _grid(size)
    rings = np.sin(110 * (y + 0.05 * _noise(rng, size, 170) + 0.02 * x) + 3 * _noise(rng, size, 60))
    plank = 0.05 * rings + 0.03 * _grain(rng, size, 1.0)
    key = np.broadcast_to(cool[0] * 0.7, scene.shape) + 0.5 * plank[..., None]
    carved = _carved(rng, scene, np.clip(key, 0, 1).astype(np.float32), flat, (0.3, 0.46, 0.62))
    thin = np.clip(0.5 * plank + 0.02 * _clouds(rng, size, 60), -0.2, 0.2)
    return _unit(carved.picture + thin[..., None])


def _linocut(rng: Generator, scene: Field) -> Field:
    """Two inks on paper: bold shapes, gouge marks along the forms, chatter left in the cleared parts."""
    size = len(scene)
    sheet = _paper(rng, size, str(rng.choice(["f4eddc", "efe2c8", "f6f2e8"])), 0.012)
    cool, warm = _palette(rng)
    dark, light = (cool[0], warm[2]) if rng.random() < 0.5 else (warm[0], cool[2])
    tone = _blur(_tone(_blur(scene, 2.0)), 1.0)
    second = _step(tone, 0.72, 0.01)[..., None] * (sheet - light) + light
    mottled = 0.025 * _grain(rng, size, 0.9) + 0.02 * _clouds(rng, size, 50)
    chatter = (_grain(rng, size, 1.6) > 2.0) & (tone > 0.72)
    second = np.where(chatter[..., None], light, second + mottled[..., None])
    block = np.broadcast_to(dark, scene.shape).astype(np.float32)
    canvas = _carved(rng, scene, block, np.clip(second, 0, 1).astype(np.float32), (0.34, 0.5, 0.56))
    return _unit(canvas.picture + 0.6 * mottled[..., None])


# ---- kinds: chalk and pencil ----


def _pastel(rng: Generator, scene: Field) -> Field:
    """Soft sticks over toned paper, laid in slanting strokes that skip the hollows of its tooth."""
    size = len(scene)
    sheet = _paper(rng, size, str(rng.choice(["6b6358", "4a5560", "8a7a66", "3c3a44", "7d8a84", "b09a80"])), 0.03)
    reference = _recoloured(rng, scene, own=0.45)
    slant = rng.uniform(0.5, 2.6) + 0.6 * _flow(rng, scene, 9, 0.8) * rng.uniform(0.2, 1)
    brushes = (
        _Brush(10, 36, bristles=4, ragged=0.25, light=0.04, hue=0.04, streak=0.02),
        _Brush(6, 28, bristles=3, ragged=0.25, light=0.06, hue=0.05, streak=0.02),
        _Brush(3, 14, bristles=2, ragged=0.2, light=0.06, hue=0.04),
    )
    canvas = _painted(rng, sheet, reference, slant.astype(np.float32), brushes)
    hollow = _step(_grain(rng, size, 0.8) - 0.5 * _clouds(rng, size, 40), 0.9, 1.2)
    return _mix(canvas.picture, sheet, 0.6 * hollow)


def _charcoal(rng: Generator, scene: Field) -> Field:
    """Smudged stick on laid paper, dark accents, lights put back with chalk; sometimes red chalk."""
    size = len(scene)
    sheet = _paper(rng, size, str(rng.choice(["d8cbb2", "c9b79a", "b8b4ac", "e6dcc8"])), 0.02)
    stick = _hex(str(rng.choice(["1c1a19", "1c1a19", "6e2a16", "2a2018"])))[0]
    tone = _tone(scene)
    tooth = _grain(rng, size, 1.0)
    smudge = np.clip(0.72 - _blur(tone, 4), 0, 1) * (0.8 + 0.1 * _clouds(rng, size, 60))
    canvas = _Canvas(_mix(sheet, np.broadcast_to(stick, sheet.shape), np.clip(smudge, 0, 1).astype(np.float32)))
    lean = rng.uniform(0.5, 1.2)
    slant = (lean + 0.12 * _noise(rng, size, 120)).astype(np.float32)
    form = _flow(rng, scene, 4, 0.5)
    strokes = (
        (slant, _ruled(rng, size, lean, 7.0, 34), 0.55, 3.5, 34.0),
        (form, _scattered(rng, size, 8.0), 0.62, 3.0, 20.0),
        (form, _scattered(rng, size, 6.0), 0.84, 4.0, 16.0),
    )
    for angle, places, bar, width, length in strokes:
        starts = places[1 - _at(tone, places) > bar + rng.normal(0, 0.05, len(places))]
        colours = _jittered(rng, np.broadcast_to(stick * (1.3 - bar), (len(starts), 3)).astype(np.float32), 0.06, 0.0)
        canvas.lay_inplace(
            rng, _traced(angle, starts, length), colours, _Brush(width, length, bristles=3, ragged=0.3, gaps=0.2)
        )
    chalk = _ruled(rng, size, lean, 6.0, 22)
    chalk = chalk[_at(tone, chalk) > 0.84 + rng.normal(0, 0.03, len(chalk))]
    white = np.full((len(chalk), 3), 0.95, np.float32)
    canvas.lay_inplace(rng, _traced(slant, chalk, 22.0), white, _Brush(2.5, 22, bristles=2, ragged=0.2))
    drawn = _blur(_contoured(rng, canvas, scene, stick * 0.6, 1.8).picture, 0.7)
    return _mix(drawn, sheet, 0.55 * _step(tooth, 0.7, 1.4))


def _coloured_pencil(rng: Generator, scene: Field) -> Field:
    """Thin strokes in several directions, each pencil a pure colour; they mix as inks do and leave white between."""
    size = len(scene)
    sheet = _paper(rng, size, "faf6ec", 0.01)
    reference = np.clip(_recoloured(rng, scene, own=0.5), 0.03, 1)
    need = -np.log(reference)  # what the paper still has to absorb, per channel
    laid = np.zeros_like(need)
    slant = rng.uniform(0.4, 1.2)
    for turn, gap in ((0.0, 3.4), (0.3, 3.0), (1.25, 3.8), (-0.4, 3.2), (0.1, 3.0)):
        canvas = _Canvas(np.ones_like(scene))
        length = rng.uniform(14, 30)
        starts = _ruled(rng, size, slant + turn, gap, length)
        missing = np.clip(_at(_blur(need - laid, 1.0), starts), 0, 2.5)
        starts, missing = starts[missing.max(-1) > 0.15], missing[missing.max(-1) > 0.15]
        pencils = np.exp(-np.clip(missing * rng.uniform(0.5, 1.4, missing.shape), 0, 1.4)).astype(np.float32)
        angle = (slant + turn + 0.08 * _noise(rng, size, 90)).astype(np.float32)
        canvas.lay_inplace(rng, _traced(angle, starts, length), pencils, _Brush(1.2, length, bristles=1))
        laid -= np.log(np.clip(canvas.picture, 0.05, 1))
    grip = np.clip(0.9 - 0.16 * _grain(rng, size, 0.8), 0, 1.3)
    return _unit(sheet * np.exp(-laid * grip[..., None]))


# ---- kinds: pieces ----


def _cells(rng: Generator, size: int, gap: float) -> tuple[Labels, Field, Field]:
    """Voronoi cells of a jittered grid (Worley 1996): label, pixels to the nearest and to the next site."""
    side = int(size / gap) + 3
    jitter = rng.uniform(0.05, 0.95, (side, side, 2))
    y, x = np.mgrid[0:size, 0:size] / gap
    row, column = y.astype(np.intp) + 1, x.astype(np.intp) + 1
    nearest, following = np.full((2, size, size), np.inf)
    label = np.zeros((size, size), np.intp)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = row + down, column + right
            site = jitter[r, c]
            distance = np.hypot(r - 1 + site[..., 0] - y, c - 1 + site[..., 1] - x) * gap
            closer = distance < nearest
            following = np.where(closer, nearest, np.minimum(following, distance))
            label = np.where(closer, r * side + c, label)
            nearest = np.where(closer, distance, nearest)
    return label, nearest.astype(np.float32), following.astype(np.float32)


def _per_label(picture: Field, label: Labels) -> Field:
    """The mean colour of each label: (labels, 3)."""
    flat = label.ravel()
    count = np.bincount(flat) + 1e-6
    means = [np.bincount(flat, picture[..., c].ravel()) / count for c in range(3)]
    return np.stack(means, axis=-1).astype(np.float32)


def _rims(label: Labels, width: float) -> Field:
    """1 on the borders between labels, softly down to 0 at `width` pixels from them."""
    border = np.zeros(label.shape, np.float32)
    border[:-1] += label[:-1] != label[1:]
    border[:, :-1] += label[:, :-1] != label[:, 1:]
    return _unit(_blur(np.minimum(border, 1), width / 2) * width * 1.3)


def _mosaic(rng: Generator, scene: Field) -> Field:
    """Tesserae set in rows along the forms, uneven in cut and tilt, with grout between."""
    size = len(scene)
    gap = rng.uniform(8.5, 14)
    reference = _recoloured(rng, scene, own=0.35)
    angle = _flow(rng, scene, gap * 0.8, 0.9)
    grout = _paper(rng, size, str(rng.choice(["cbbfa8", "3a342e", "8a8072", "e2d8c4", "20242a"])), 0.04)
    canvas = _Canvas(grout)
    centres = _rows(rng, angle, gap)
    theta, half = _at(angle, centres), gap * rng.uniform(0.36, 0.46, (len(centres), 1)).astype(np.float32)
    along = np.stack([np.cos(theta), np.sin(theta)], axis=-1) * half * rng.uniform(0.9, 1.15, half.shape)
    across = np.stack([-np.sin(theta), np.cos(theta)], axis=-1) * half
    corners = np.stack([along + across, across - along, -along - across, along - across], axis=1)
    corners = corners + rng.normal(0, gap * 0.045, corners.shape) + centres[:, None]
    colours = _jittered(rng, _at(_blur(reference, gap / 4), centres), 0.06, 0.025)
    canvas.fill_inplace(corners.astype(np.float32), colours)
    return _unit(_lit(canvas.picture, canvas.thickness, 0.6) + 0.02 * _grain(rng, size, 0.8)[..., None])


def _rows(rng: Generator, angle: Field, gap: float) -> Field:
    """Points (n, 2) set one beside the other, along and across the angle field, from one corner of the work outward."""
    size, closest = len(angle), 0.84 * gap
    side = int(size / closest) + 4
    grid = np.full((side, side, 2), np.inf)  # one cell holds at most two of them; a lost one only loosens the setting
    waiting = deque([tuple(rng.uniform(0, size, 2))])
    placed: list[tuple[float, float]] = []
    while waiting:
        x, y = waiting.popleft()
        row, column = int(y / closest) + 1, int(x / closest) + 1
        near = grid[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        if not (0 <= x < size and 0 <= y < size) or ((near - (x, y)) ** 2).sum(-1).min() < closest**2:
            continue
        grid[row, column] = x, y
        placed.append((x, y))
        theta = float(angle[int(y), int(x)])
        right, down = gap * np.cos(theta), gap * np.sin(theta)
        waiting.extend([(x + right, y + down), (x - right, y - down), (x - down, y + right), (x + down, y - right)])
    return np.array(placed, np.float32)


def _stained_glass(rng: Generator, scene: Field) -> Field:
    """Panes of streaky glass between lead cames, lit from behind; small panes where the scene is busy."""
    size = len(scene)
    gap = rng.uniform(30, 46)
    label, _, _ = _cells(rng, size, gap)
    fine, _, _ = _cells(rng, size, gap * 0.5)
    down, right = _slopes(_blur(_luma(scene), 2))
    busy = _blur(np.hypot(down, right), gap / 3)
    count = np.bincount(label.ravel())
    share = np.bincount(label.ravel(), busy.ravel()) / (count + 1e-6)
    split = share > np.quantile(share[count > 0], 0.6)
    sliding = [4 * _noise(rng, size, 50) for _ in range(2)]
    label = _moved(np.where(split[label], fine + label.max() + 1, label).astype(np.intp), *sliding)
    colours = _per_label(_recoloured(rng, scene, "vivid fauve gold rust coral orchard night dusk", own=0.7), label)
    grey = _luma(colours)[:, None]
    panes = np.clip(grey + (colours - grey) * 1.7 + rng.normal(0, 0.05, colours.shape), 0.03, 1).astype(np.float32)[label]
    streaks = 0.10 * _moved(_clouds(rng, size, 40), 30 * _noise(rng, size, 120), 6 * _noise(rng, size, 40))
    y, x = _grid(size)
    glow = 1.12 - 0.5 * np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.2, 0.6))
    lit = panes * (glow + streaks)[..., None] + 0.05 * _grain(rng, size, 1.2)[..., None] * panes
    came = _rims(label, rng.uniform(3.5, 5.5))
    metal = 0.09 + 0.05 * _clouds(rng, size, 9) + 0.12 * np.clip(_slopes(_blur(came, 1.0))[0], -0.3, 0.3)
    return _unit(_mix(np.clip(lit, 0, 1), np.repeat(metal[..., None], 3, -1).astype(np.float32), came))


def _collage(rng: Generator, scene: Field) -> Field:
    """Papers cut with scissors, light over dark, each with its own print, edge and shadow."""
    size = len(scene)
    cool, warm = _palette(rng)
    y, x = _grid(size)
    label, _, _ = _cells(rng, size, rng.uniform(9, 16))
    tone = _luma(_per_label(np.repeat(_blur(_tone(scene), 3)[..., None], 3, -1), label)[label])  # straight-edged cuts
    heat = _blur(_warmth(rng, scene), 6)
    picture = _paper(rng, size, "2a2826", 0.02)
    levels = np.linspace(0.0, 0.88, int(rng.integers(6, 9)))
    for i, bar in enumerate(levels):
        for ramp, side in ((cool, heat < 0.5), (warm, heat >= 0.5)):
            piece = _blur(((tone > bar) & side).astype(np.float32), 0.7)
            colour = _ramp(ramp, np.array(min(1.0, bar + 0.1 + rng.normal(0, 0.06)), np.float32))
            printed = np.clip(colour + _print(rng, x * size, y * size, i)[..., None], 0, 1)
            shadow = np.roll(_blur(piece, 2.5), (3, 2), axis=(0, 1))
            picture = picture * (1 - 0.4 * np.clip(shadow - piece, 0, 1))[..., None]
            picture = _mix(picture, np.asarray(printed, np.float32), piece)
            torn = np.clip(piece - _blur(piece, 1.3), 0, 1)
            picture = np.clip(picture + 0.35 * torn[..., None], 0, 1).astype(np.float32)
    return picture


def _print(rng: Generator, x: Field, y: Field, turn: int) -> Field:
    """What is printed on one paper, as a shift of lightness: plain, stripes, dots, mottle or lines of type."""
    size = len(x)
    angle, gap = rng.uniform(0, np.pi), rng.uniform(5, 11)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    grain = 0.02 * _grain(rng, size, 0.8)
    match turn % 5:
        case 0:
            return np.asarray(grain + 0.03 * _clouds(rng, size, 30), np.float32)
        case 1:
            return np.asarray(grain - 0.10 * (np.sin(2 * np.pi * u / gap) > 0.3), np.float32)
        case 2:
            return np.asarray(grain + 0.12 * (np.hypot(u % gap - gap / 2, v % gap - gap / 2) < gap / 4), np.float32)
        case 3:
            return np.asarray(grain + 0.05 * _clouds(rng, size, 8), np.float32)
        case _:
            type_line = (v % gap < gap * 0.5) & (_noise(rng, size, 3) > -0.2)
            return np.asarray(grain - 0.13 * type_line, np.float32)


def _cubist(rng: Generator, scene: Field) -> Field:
    """The scene broken into planes that slide apart, each shaded from one edge and brushed in its own direction."""
    size = len(scene)
    y, x = _grid(size)
    label = np.zeros((size, size), np.intp)
    for _ in range(int(rng.integers(9, 13))):
        angle, reach = rng.uniform(0, np.pi), rng.uniform(-0.42, 0.42)
        bend = rng.uniform(-0.5, 0.5) * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
        label = label * 2 + ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + bend > reach)
    label = np.unique(label, return_inverse=True)[1].reshape(size, size)
    n = int(label.max()) + 1
    slide = rng.normal(0, size * 0.05, (2, n)).astype(np.float32)
    moved = _moved(scene, slide[0][label], slide[1][label])
    reference = _recoloured(rng, moved, "earth ochre sepia rust harbour gold winter dusk", own=0.12)
    lean = rng.uniform(0, 2 * np.pi, n)[label]
    shade = np.sin(2.2 * np.pi * ((x * np.cos(lean) + y * np.sin(lean)) * rng.uniform(0.8, 2, n)[label] + rng.random(n)[label]))
    planes = np.clip(0.75 * reference + 0.25 * _blur(reference, 9) + 0.16 * shade[..., None], 0, 1).astype(np.float32)
    brushed = rng.uniform(0, np.pi, n).astype(np.float32)[label]
    brushes = tuple(_Brush(w, w * 2.6, bristles=5, light=0.035, hue=0.012, streak=0.03) for w in (13, 7, 4))
    canvas = _painted(rng, planes, planes, brushed, brushes)
    drawn = canvas.picture * (1 - 0.75 * _rims(label, 2.2) * np.clip(0.7 + 0.4 * _clouds(rng, size, 40), 0, 1))[..., None]
    return _lit(drawn, canvas.thickness, 0.45)


# ---- kinds: cloth and wall ----


def _batik(rng: Generator, scene: Field) -> Field:
    """Wax-resist dye: few flat tones, pale wax lines between them, fine dark crackle, the weave of the cloth."""
    size = len(scene)
    cool, warm = _palette(rng, "indigo rust gold earth coral vivid ochre orchard dusk")
    tone = _moved(_blur(_tone(scene), 3), *[3 * _noise(rng, size, 30) for _ in range(2)])
    steps = int(rng.integers(4, 6))
    label = np.floor(np.clip(tone, 0, 0.999) * steps).astype(np.intp)
    heat = _blur(_warmth(rng, scene), 5) > 0.5
    level = (label / (steps - 1)).astype(np.float32)
    dyed = np.where(heat[..., None], _ramp(warm, level), _ramp(cool, level)) * (1 + 0.07 * _clouds(rng, size, 35))[..., None]
    wax = _rims(label * 2 + heat, 2.6)
    cloth = _mix(dyed.astype(np.float32), np.broadcast_to(warm[4], dyed.shape), wax * 0.9)
    bent = [6 * _clouds(rng, size, 40) for _ in range(2)]
    crackle = np.zeros((size, size), np.float32)
    for gap, depth in ((46.0, 0.75), (21.0, 0.45)):
        _, nearest, following = _cells(rng, size, gap)
        vein = _moved(following - nearest, *bent) < 1.5
        crackle = np.maximum(crackle, depth * vein * (_clouds(rng, size, 70) > -0.4))
    cloth = _mix(cloth, np.broadcast_to(cool[0], cloth.shape), _blur(crackle, 0.6) * (0.4 + 0.6 * level))
    rows, columns = np.mgrid[0:size, 0:size]
    weave = 0.035 * (np.sin(rows * np.pi / 1.5) * np.sign(np.sin(columns * np.pi / 3)) + 0.5 * _grain(rng, size, 0.6))
    return _unit(cloth * (1 + weave[..., None]))


def _tapestry(rng: Generator, scene: Field) -> Field:
    """Wool weft over warp: ribbed rows, every stitch one yarn, a dozen yarns in all."""
    size = len(scene)
    thick, wide = int(rng.integers(4, 6)), int(rng.integers(5, 8))
    reference = _recoloured(rng, scene, own=0.25)
    rows, columns = np.mgrid[0:size, 0:size]
    row = rows // thick
    shift = (row % 2) * wide // 2
    stitch = (columns + shift) // wide
    at = np.stack([np.clip(stitch * wide - shift + wide // 2, 0, size - 1), row * thick + thick // 2], axis=-1)
    sampled = _at(_blur(reference, 1.6), at.astype(np.float32))
    yarns = np.rint(sampled * 6 + 0.25 * rng.normal(size=(size, size // wide + 2, 1))[row, stitch]) / 6
    yarns = 0.65 * yarns + 0.35 * sampled + 0.03 * rng.normal(size=(size, size // wide + 2, 1))[row, stitch]
    round_ = np.sin(np.pi * (rows % thick + 0.5) / thick) ** 0.7 * (
        0.8 + 0.2 * np.sin(np.pi * ((columns + shift) % wide + 0.5) / wide)
    )
    fibre = 0.05 * _moved(_grain(rng, size, 0.7), (rows % 3).astype(np.float32), np.zeros((size, size), np.float32))
    return _unit(yarns * (0.58 + 0.5 * round_)[..., None] + fibre[..., None])


def _fresco(rng: Generator, scene: Field) -> Field:
    """Earth colours hatched thinly into plaster, worn, stained and cracked."""
    size = len(scene)
    plaster = _paper(rng, size, str(rng.choice(["e2d3b4", "d8c8ac", "e8dcc6"])), 0.03)
    reference = _recoloured(rng, scene, "earth ochre sepia rust harbour forest powder gold", own=0.15)
    brushes = (
        _Brush(16, 34, bristles=8, gaps=0.15, light=0.03, streak=0.03),
        _Brush(7, 24, bristles=5, gaps=0.2, light=0.04, streak=0.04),
        _Brush(2.5, 18, bristles=2, light=0.06),
    )
    painted = _painted(rng, plaster, reference, _flow(rng, scene, 8, 0.6), brushes).picture
    aged = 0.82 * painted + 0.18 * plaster + 0.03 * _clouds(rng, size, 110)[..., None]
    wear = _step(_clouds(rng, size, 50) + 0.35 * _grain(rng, size, 1.3), 1.5, 0.25)
    aged = _mix(np.asarray(aged, np.float32), plaster * 1.03, 0.85 * wear)
    _, nearest, following = _cells(rng, size, rng.uniform(60, 110))
    cracked = _moved(following - nearest, *[7 * _clouds(rng, size, 30) for _ in range(2)]) < 1.2
    crack = _blur((cracked & (_clouds(rng, size, 120) > -0.1)).astype(np.float32), 0.6)
    pits = _lit(np.asarray(aged, np.float32), 0.12 * _clouds(rng, size, 12) + 0.05 * _grain(rng, size, 1.0) - 0.4 * wear, 0.35)
    return _unit(pits * (1 - 0.6 * crack[..., None]))


_RENDERERS: dict[str, Renderer] = {
    "batik": _batik,
    "charcoal": _charcoal,
    "collage": _collage,
    "coloured pencil": _coloured_pencil,
    "cubist": _cubist,
    "dry brush": _dry_brush,
    "engraving": _engraving,
    "etching": _etching,
    "fresco": _fresco,
    "gouache": _gouache,
    "hatching": _hatching,
    "ink brush": _ink_brush,
    "linocut": _linocut,
    "mosaic": _mosaic,
    "oil dashes": _oil_dashes,
    "oil flow": _oil_flow,
    "palette knife": _palette_knife,
    "pastel": _pastel,
    "pointillism": _pointillism,
    "stained glass": _stained_glass,
    "stipple": _stipple,
    "tapestry": _tapestry,
    "watercolour": _watercolour,
    "woodcut": _woodcut,
}
KINDS: tuple[str, ...] = tuple(_RENDERERS)
