import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the customary name

from models.contract import Work
from scripts import judges
from scripts.judges import Judge
from tests import pictures


def slow_sliced_wasserstein(a: judges.Floats, b: judges.Floats, directions: judges.Floats) -> float:
    """Point by point: sorted projections of two sets of one size."""
    squares = [np.mean([(x - y) ** 2 for x, y in zip(sorted(a @ d), sorted(b @ d), strict=True)]) for d in directions]
    return float(np.sqrt(np.mean(squares)))


def test_sliced_wasserstein_of_equal_sets_is_zero() -> None:
    points = np.random.default_rng(0).standard_normal((500, 5))
    shuffled = np.random.default_rng(1).permutation(points)
    axes = np.eye(5)
    assert judges.sliced_wasserstein(judges.quantiles(axes @ points.T), judges.quantiles(axes @ shuffled.T)) == 0


def test_sliced_wasserstein_of_a_shifted_set_is_the_shift() -> None:
    points, shift = np.random.default_rng(0).standard_normal((500, 5)), np.array([3.0, 0, 0, 4.0, 0])
    moved = judges.sliced_wasserstein(judges.quantiles(points.T), judges.quantiles((points + shift).T))
    assert moved == pytest.approx(5 / np.sqrt(5))  # over five axes at right angles, the mean square is |shift|² / 5


def test_sliced_wasserstein_agrees_with_the_slow_way() -> None:
    rng = np.random.default_rng(0)
    a, b, directions = rng.standard_normal((300, 4)), rng.gamma(2.0, size=(300, 4)), rng.standard_normal((6, 4))
    fast = judges.sliced_wasserstein(judges.quantiles(directions @ a.T, 300), judges.quantiles(directions @ b.T, 300))
    assert fast == pytest.approx(slow_sliced_wasserstein(a, b, directions), rel=0.02)


def test_patches_are_all_windows_projected() -> None:
    picture = pictures.noise((32, 32))
    windows = F.unfold(torch.tensor(picture).permute(2, 0, 1)[None] / 255.0, 7, stride=4)[0].T.double().numpy()
    expected = judges.quantiles(judges.directions(147) @ windows.T)
    assert judges.patches(picture)[0] == pytest.approx(expected.ravel(), abs=1e-5)


def test_edges_of_the_same_picture_agree_wholly() -> None:
    picture = pictures.shapes((96, 96), seed=1)
    assert judges.edge_f1(picture, picture) == pytest.approx(1.0)


def test_edges_may_move_by_two_pixels_and_not_by_twelve() -> None:
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[30:60, 30:60] = 255
    near, far = (judges.edge_f1(picture, np.roll(picture, (by, by), axis=(0, 1))) for by in (2, 12))
    assert near > 0.95
    assert far < 0.6


def test_layers_of_any_size_and_scale_weigh_the_same() -> None:
    rng = np.random.default_rng(0)
    drawn = iter([(rng.standard_normal(2), 1e6 * rng.standard_normal(50)) for _ in range(60)] * 2)
    judge = Judge.centred("two", lambda _: next(drawn), [pictures.noise()] * 60)
    seen = np.stack([judge.look(pictures.noise()) for _ in range(60)])
    assert np.square(seen[:, :2]).sum(axis=1).mean() == pytest.approx(0.5, rel=1e-6)
    assert np.square(seen[:, 2:]).sum(axis=1).mean() == pytest.approx(0.5, rel=1e-6)


def clouds(distances: float, spread: float = 1.0) -> tuple[dict[str, judges.Floats], judges.Floats]:
    """Works of three artists around points that far from each other and from photos."""
    rng = np.random.default_rng(0)
    centres = distances * np.eye(4)
    works = {f"artist-{i}": centres[i] + spread * rng.standard_normal((8, 4)) for i in range(3)}
    return works, centres[3] + spread * rng.standard_normal((12, 4))


def test_judge_that_tells_artists_apart_is_valid() -> None:
    works, photos = clouds(distances=8.0)
    found = judges.validate("seeing", works, photos, list(works))
    assert found.accuracy == 1.0
    assert found.is_valid


def test_judge_that_cannot_tell_artists_apart_is_refused() -> None:
    works, photos = clouds(distances=0.0)
    found = judges.validate("blind", works, photos, list(works))
    assert found.accuracy < judges.ACCURACY
    assert found.gap_in_intervals < judges.GAP
    assert not found.is_valid


def test_judge_that_takes_photos_for_works_is_refused() -> None:
    works, _ = clouds(distances=8.0)
    photos = np.concatenate(list(works.values()))
    near = {artist: seen.mean(axis=0) + 0.01 * (seen - seen.mean(axis=0)) for artist, seen in works.items()}
    assert judges.validate("seeing", near, photos, list(near)).is_valid  # the control: photos are not all near all artists
    alike = {f"artist-{i}": photos[i::3] for i in range(3)}
    assert not judges.validate("blind to photos", alike, photos, list(alike)).is_valid


def test_schools_are_not_what_a_judge_is_tried_on() -> None:
    works, photos = clouds(distances=8.0)
    mixed = works | {"school": np.concatenate(list(works.values()))[::3]}
    found = judges.validate("seeing", mixed, photos, list(works))
    assert found.accuracy == 1.0
    assert found.accuracy_all < 1.0
    assert found.works == 24


def test_a_picture_is_brought_to_size_with_sides_that_are_multiples_of_four() -> None:
    picture: Work = pictures.noise((100, 201))
    height, width = judges.sized(picture, 64).shape[:2]
    assert height % 4 == width % 4 == 0
    assert np.sqrt(height * width) == pytest.approx(64, rel=0.05)
