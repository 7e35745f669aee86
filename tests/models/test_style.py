"""What the style modality promises beyond the contract."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from models import registry
from models.modalities import style
from models.modalities.style import Palette
from models.perceptual import Moments, moments
from tests import pictures
from tests.tiny import STYLE, Glass, glasses, shaken


def gradient() -> torch.Tensor:
    """(1, 3, 128, 128) without any texture."""
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    return ((columns + 2 * rows) / 400)[None, None].expand(1, 3, -1, -1)


def test_a_gradient_is_no_grid() -> None:
    assert style._grid(gradient()).item() < 1e-6


def test_a_pattern_of_the_upscalings_period_is_a_grid_of_its_own_size() -> None:
    columns = torch.arange(128.0)
    pattern = 0.05 * (columns % 4 == 0).float()
    found = style._grid(gradient() + pattern).item()
    # A column in four stands out by 0.05: after mean and slope are taken out, about a quarter of that is left.
    assert 0.01 < found < 0.02


def test_a_pattern_of_another_period_is_no_grid() -> None:
    columns = torch.arange(128.0)
    pattern = 0.05 * torch.sin(2 * torch.pi * columns / 32)
    assert style._grid(gradient() + pattern).item() < 1e-3


# --- The upscaling ------------------------------------------------------------------------------------------------------


def slope(down: float, right: float, side: int = 12) -> torch.Tensor:
    steps = torch.arange(float(side))
    return (1.0 + down * steps[:, None] + right * steps[None, :])[None, None]


@pytest.mark.parametrize(("down", "right"), list(itertools.product((0.0, 1.0, -2.0), (0.0, 1.0, 3.0))))
def test_after_the_constraint_flats_and_slopes_come_out_of_the_upscaling_without_a_grid(down: float, right: float) -> None:
    torch.manual_seed(3)
    conv = nn.Conv2d(2, 8, 3, padding=1)
    features = slope(down, right).expand(1, 2, -1, -1)

    def bends() -> float:
        upscaled = F.pixel_shuffle(conv(features), 2)[..., 4:-4, 4:-4].detach()
        return max(upscaled.diff(n=2, dim=axis).abs().max().item() for axis in (2, 3))

    before = bends()
    style._soft_upscaling_inplace(conv)

    assert before > 0.1  # the control: any other weights do leave one
    assert bends() < 1e-4


def test_after_the_constraint_nothing_is_drawn_at_the_period_of_two_pixels() -> None:
    torch.manual_seed(3)
    conv = nn.Conv2d(2, 8, 3, padding=1)
    features = torch.randn(1, 2, 40, 40)
    signs = (-1.0) ** torch.arange(60)
    taper = torch.hann_window(60)  # so that the picture's cut edges say nothing

    def checked() -> float:
        upscaled = F.pixel_shuffle(conv(features), 2)[0, :, 10:70, 10:70].detach()
        return (upscaled * taper * signs).sum(dim=-1).abs().mean().item()

    before = checked()
    style._soft_upscaling_inplace(conv)

    assert before > 1.0  # the control
    assert checked() < 0.01 * before


def test_the_constraint_changes_nothing_that_meets_it_and_holds_for_sums() -> None:
    torch.manual_seed(3)
    one, other = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3)
    style._soft_upscaling_inplace(one)
    style._soft_upscaling_inplace(other)
    total = nn.Conv2d(4, 8, 3)
    with torch.no_grad():
        total.weight.copy_(0.3 * one.weight + 2.0 * other.weight)
        kept = total.weight.clone()
    style._soft_upscaling_inplace(total)

    assert torch.allclose(total.weight, kept, atol=1e-6)
    assert kept.abs().max() > 0.05


@pytest.mark.parametrize("tier", ["style-kiosk", "style-studio"])
def test_a_new_body_meets_the_constraint_already(tier: str) -> None:
    net = registry.find(tier).build(seed=7)

    for conv in (net.to_half, net.to_full):
        before = conv.weight.detach().clone()
        style._soft_upscaling_inplace(conv)
        assert torch.allclose(conv.weight, before, atol=1e-6)


# --- The underpainting --------------------------------------------------------------------------------------------------


def carried(photo: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """What a network with heavy, random weights hands its last convolution as underpainting: (3, H / 2, W / 2)."""
    net = shaken(STYLE.build(0))
    assert isinstance(net, style.StyleNet)
    STYLE.constrain_inplace(net)
    code = torch.cat([net.codes[0, : -style._UNDERPAINTING], matrix.flatten(), offset])[None]
    seen: list[torch.Tensor] = []
    hook = net.to_full.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(photo, code)
    hook.remove()
    return seen[0][0, -style._MASSES :] / style._MASS_GAIN


def test_a_flat_colour_is_mixed_as_the_code_says() -> None:
    torch.manual_seed(4)
    matrix, offset, colour = torch.rand(3, 3), torch.rand(3), torch.rand(3)

    masses = carried(colour[None, :, None, None].expand(1, 3, 40, 48), matrix, offset)

    inner = masses[:, 3:-3, 3:-3]  # the enlargement's zero padding darkens the rim, which the frame cuts off
    assert masses.shape == (3, 20, 24)
    assert torch.allclose(inner, (matrix @ colour + offset)[:, None, None].expand_as(inner), atol=1e-5)


def test_a_slope_stays_where_it_was_and_gets_no_grid() -> None:
    photo = (slope(0.004, 0.003, 96) - 1).expand(1, 3, -1, -1)

    masses = carried(photo, torch.eye(3), torch.zeros(3))

    halved = F.avg_pool2d(photo, 2)[0]  # the middle of two pixels is where a pixel of half the size is
    assert torch.allclose(masses[:, 4:-4, 4:-4], halved[:, 4:-4, 4:-4], atol=1e-5)


def test_what_is_smaller_than_a_stroke_is_left_to_the_convolutions() -> None:
    photo = (torch.arange(64) % 4 < 2).float().expand(1, 3, 64, -1)

    masses = carried(photo, torch.eye(3), torch.zeros(3))[:, 4:-4, 4:-4]

    assert (masses - 0.5).abs().max() < 1e-5


def test_a_colour_below_black_is_black() -> None:
    assert carried(torch.zeros(1, 3, 40, 40), torch.eye(3), torch.tensor([-0.3, 0.0, 0.0])).min() == 0


def test_every_picture_of_a_batch_is_painted_by_its_own_code() -> None:
    net = shaken(STYLE.build(0, codes=2))
    assert isinstance(net, style.StyleNet)
    photos = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(5))

    together = net(photos, net.codes)[0]

    for row in range(2):
        alone = net(photos[row : row + 1], net.codes[row : row + 1])[0]
        assert torch.allclose(together[row], alone[0], atol=1e-4)
    assert (together[0] - net(photos[:1], net.codes[1:])[0]).abs().max() > 0.01


def test_after_the_constraint_the_underpainting_passes_and_sums_of_bodies_let_it_pass_too() -> None:
    photo = torch.full((1, 3, 40, 40), 0.4)
    net = STYLE.build(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    STYLE.constrain_inplace(net)
    kept = [parameter.detach().clone() for parameter in net.parameters()]
    other = STYLE.build(1)
    with torch.no_grad():
        for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
            mine.lerp_(theirs, 0.3)
    mixed = [parameter.detach().clone() for parameter in net.parameters()]
    STYLE.constrain_inplace(net)

    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.parameters(), mixed, strict=True))
    assert any((a - b).abs().max() > 0.01 for a, b in zip(kept, mixed, strict=True))
    assert torch.allclose(carried(photo, torch.eye(3), torch.zeros(3))[:, 4:-4, 4:-4], torch.tensor(0.4), atol=1e-5)


def test_what_lies_beyond_black_and_white_costs() -> None:
    picture = torch.tensor([[-0.5, 0.0], [1.0, 1.25]]).expand(1, 3, 2, 2)

    assert abs(style._beyond(picture).item() - 0.75 / 4) < 1e-6
    assert style._beyond(picture.clamp(0, 1)).item() == 0


def test_a_borrowed_code_is_suited_to_the_palette_of_its_works_at_once() -> None:
    """On photos it was not suited on, too; and suiting it twice does no harm."""
    rng = np.random.default_rng(8)
    blocks = [np.kron(rng.integers(0, 256, (5, 5, 3)), np.ones((48, 48, 1))).astype(np.uint8) for _ in range(6)]
    work = (blocks[0] * [0.2, 0.5, 0.9] + [20, 60, 20]).astype(np.uint8)
    net = shaken(STYLE.build(0, codes=2))
    assert isinstance(net, style.StyleNet)
    batches = [STYLE.lessons([[], [work]], blocks, glasses(STYLE), 1, emphasis=1).batch(step) for step in range(30)]
    held_back = [batch for batch in batches[20:] if batch.code.item() == 1]

    def distance() -> float:
        with torch.no_grad():
            return float(np.mean([distance_of(net, batch) for batch in held_back]))

    borrowed = distance()
    STYLE.suit_inplace(net, 1, batches[:20])
    suited = distance()
    STYLE.suit_inplace(net, 1, batches[:20])

    assert held_back
    # Of a random network, which looks at its underpainting more than a trained one does.
    assert suited < 0.6 * borrowed
    assert distance() < 1.2 * suited


def distance_of(net: style.StyleNet, batch: style.StyleBatch) -> float:
    """How far the broad masses of a batch's picture are from the palette they should have."""
    picture = net(batch.photo, net.codes[batch.code])[0]
    return style._colour_distance(style._without_rim(picture), style._without_rim(batch.recoloured)).item()


# --- The palette --------------------------------------------------------------------------------------------------------


def colours(seed: int, mean: tuple[float, float, float], spread: float) -> torch.Tensor:
    """(3, 40, 50) correlated colours."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(3, 3)) @ rng.uniform(-1, 1, size=(3, 2000))
    return (torch.tensor(mean)[:, None] + spread * torch.tensor(mixed).float()).view(3, 40, 50)


def test_a_photo_in_another_palette_has_its_mean_and_covariance() -> None:
    photo, work = colours(1, (0.5, 0.4, 0.6), 0.4), colours(2, (0.6, 0.5, 0.3), 0.3)
    own, other = Palette.of([photo]), Palette.of([work])

    moved = own.moved_to(other) @ (photo.flatten(1) - own.mean[:, None]) + other.mean[:, None]

    assert torch.allclose(moved.mean(dim=1), work.flatten(1).mean(dim=1), atol=1e-4)
    # The floor that keeps a grey photo from being blown up takes a little of the spread away.
    wanted = torch.cov(work.flatten(1), correction=0)
    assert torch.allclose(torch.cov(moved, correction=0), wanted, atol=0.02 * wanted.abs().max().item())


def test_a_palette_moved_to_itself_stays() -> None:
    palette = Palette.of([colours(1, (0.5, 0.4, 0.6), 0.05)])

    assert torch.allclose(palette.moved_to(palette), torch.eye(3), atol=1e-4)


def test_every_work_counts_the_same_in_a_palette_whatever_its_size() -> None:
    red, blue = torch.zeros(3, 10, 10), torch.zeros(3, 60, 60)
    red[0], blue[2] = 1.0, 1.0

    assert torch.allclose(Palette.of([red, blue]).mean, torch.tensor([0.5, 0.0, 0.5]))


def test_a_grey_photo_is_not_blown_up_into_colours_it_does_not_have() -> None:
    noise = torch.tensor(np.random.default_rng(0).normal(0.5, 0.004, (3, 64, 64))).float()
    grey, vivid = Palette.of([noise]), Palette.of([colours(2, (0.5, 0.5, 0.5), 0.2)])

    moved = grey.moved_to(vivid) @ (noise.flatten(1) - grey.mean[:, None])

    assert moved.std() < 0.1


def test_a_colour_moves_to_the_same_place_in_the_palette_whatever_else_is_in_its_photo() -> None:
    work = np.random.default_rng(2).normal((140, 130, 90), (40, 30, 30), (200, 200, 3)).clip(0, 255).astype(np.uint8)
    photos = [pictures.shapes((200, 260), seed=seed) for seed in range(3)]
    lessons = style.StyleLessons(Glass("glass"), [[work]], photos, 1, size=64, batch=1, settling_steps=0, emphasis=None)
    sky = torch.tensor([0.45, 0.6, 0.8])[:, None, None]
    grey, vivid = torch.full((3, 8, 16), 0.5), torch.rand((3, 8, 16), generator=torch.Generator().manual_seed(1))

    row = torch.tensor([0])
    among_grey, among_colours = (
        lessons._recoloured(torch.cat([sky.expand(3, 8, 16), rest], dim=2)[None], row)[0, :, :, :16] for rest in (grey, vivid)
    )

    assert torch.equal(among_grey, among_colours)
    assert (among_grey - sky).abs().max() > 0.01  # the control: it did move


def test_the_recoloured_photos_have_the_works_palette_on_the_whole() -> None:
    work = np.random.default_rng(2).normal((140, 130, 90), (25, 20, 15), (300, 300, 3)).clip(0, 255).astype(np.uint8)
    photos = [np.random.default_rng(i).normal(120, 20, (300, 300, 3)).clip(0, 255).astype(np.uint8) for i in range(3)]
    lessons = style.StyleLessons(Glass("glass"), [[work]], photos, 1, size=64, batch=1, settling_steps=0, emphasis=None)

    row = torch.tensor([0])
    moved = Palette.of([lessons._recoloured(style._photo(photo)[None], row)[0] for photo in photos])
    wanted = Palette.of([style._sized(work, style._STYLE_SIDE)])

    assert torch.allclose(moved.mean, wanted.mean, atol=0.01)
    assert torch.allclose(moved.covariance, wanted.covariance, atol=1e-3)


def test_broad_masses_of_another_colour_cost_and_strokes_cost_nothing() -> None:
    flat = torch.full((1, 3, 64, 64), 0.5)
    lighter, strokes = flat + 0.1, flat.clone()
    strokes[..., ::2] += 0.1
    strokes[..., 1::2] -= 0.1

    assert style._colour_distance(flat, flat).item() == 0
    assert abs(style._colour_distance(lighter, flat).item() - 0.01) < 1e-6
    assert style._colour_distance(strokes, flat).item() < 1e-9


def test_a_mass_of_another_hue_costs_more_than_one_that_is_as_much_lighter() -> None:
    flat = torch.full((1, 3, 64, 64), 0.5)
    hue = torch.tensor([0.1, -0.1, 0.0])[:, None, None]

    assert abs(style._colour_distance(flat + hue, flat).item() - style._HUE_WEIGHT * 0.02 / 3) < 1e-6
    assert style._HUE_WEIGHT > 2


# --- The distance -------------------------------------------------------------------------------------------------------


def test_the_style_distance_is_nothing_to_itself_and_relative_to_the_target() -> None:
    features = [torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))]
    seen = [moments(f) for f in features]
    loud = [features[0] * 10]
    twice = [Moments(2 * m.mean, 2 * m.covariance) for m in seen]

    assert style._style_distance(features, seen).item() < 1e-9
    assert abs(style._style_distance(features, twice).item() - 0.25) < 1e-4
    assert style._style_loss(features, seen).item() < 1e-6
    assert abs(style._style_loss(features, twice).item() - (0.25 + 4 * (0.5**0.5 - 1) ** 2) / 2) < 1e-4
    # Ten times the contrast against its own target doubled: the same distance, however loud the style.
    louder = [Moments(2 * m.mean, 2 * m.covariance) for m in (moments(f) for f in loud)]
    assert abs(style._style_distance(loud, louder).item() - 0.25) < 1e-4


def test_a_picture_of_other_correlations_comes_nearest_at_the_contrast_of_the_works() -> None:
    rng = np.random.default_rng(3)
    wanted, other = (torch.tensor(np.cov(rng.standard_normal((6, 12)) * rng.uniform(0.3, 3, (6, 1))))[None] for _ in range(2))
    other = other * (wanted.norm() / other.norm())
    scales = [0.3, 0.45, 0.6, 0.8, 1.0, 1.2, 1.5]

    found = [style._spread_distance(scale * other, wanted).item() for scale in scales]
    squared = [((scale * other - wanted).norm() / wanted.norm()).item() ** 2 for scale in scales]  # the control

    assert scales[int(np.argmin(found))] == 1.0
    assert scales[int(np.argmin(squared))] < 1.0


def test_near_the_works_the_distance_of_spreads_is_the_squared_relative_difference() -> None:
    root = torch.randn((1, 5, 30), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = root @ root.transpose(1, 2)
    change = torch.randn((1, 5, 5), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    seen = wanted + 1e-3 * (change + change.transpose(1, 2))

    relative = ((seen - wanted).norm() / wanted.norm()).item() ** 2
    assert style._spread_distance(seen, wanted).item() == pytest.approx(relative, rel=1e-3)


def test_a_frozen_step_costs_what_freezing_changes_and_teaches_both_ways_of_painting() -> None:
    lessons = style.StyleLessons(
        Glass("glass"), [[pictures.shapes((200, 200))]], [pictures.shapes((200, 200), seed=1)], 1,
        size=64, batch=1, settling_steps=0, emphasis=None,
    )  # fmt: skip
    net = shaken(STYLE.build(0))
    assert isinstance(net, style.StyleNet)
    STYLE.set_codes_inplace(net, STYLE.codes(net))  # begins the running statistics anew
    batch = lessons.batch(0)
    live = replace(batch, live=True)
    with torch.no_grad():
        style._painted(net, live)  # the running statistics are now this very picture's
        _, same = style._painted(net, replace(batch, live=False))
        net.norm_var.mul_(4.0)
        _, other = style._painted(net, replace(batch, live=False))
        _, none = style._painted(net, live)

    assert same.max() < 1e-5
    assert other.min() > 1e-3
    assert none.max() == 0


def test_some_crops_are_nearly_flat_and_most_are_not() -> None:
    photo = torch.rand((3, 200, 200), generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(0)

    spreads = np.array([style._crop(photo, 64, rng).std().item() / photo.std().item() for _ in range(300)])

    assert 0.05 < (spreads < 0.35).mean() < 0.16
    assert (spreads > 0.6).mean() > 0.8


def test_the_photos_of_the_exam_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "_EXPOSED_SHARE", 0.0)  # so that a photo is known by its grey
    greys = range(20, 220, 25)
    photos = [np.full((200, 200, 3), grey, np.uint8) for grey in greys]
    work = np.full((200, 200, 3), 90, np.uint8)
    lessons = style.StyleLessons(Glass("glass"), [[], [work]], photos, 1, size=64, batch=2, settling_steps=0, emphasis=None)

    def seen(batch: style.StyleBatch) -> set[int]:
        return {round(255 * photo.mean().item()) for photo in batch.photo}

    trained = set().union(*(seen(lessons.batch(step)) for step in range(60)))
    examined = set().union(*(seen(batch) for batch in lessons.exam()))

    assert trained | examined == set(greys)
    assert not trained & examined
