"""The maths of the privacy bench: each attack works where it must, and is at chance where there is nothing to be had."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch

from scripts import inversion, privacy
from scripts.privacy import Auc, Inverted, Told
from tests import pictures

CODE = np.zeros(3, np.float32)


def picture(seed: int = 0, side: int = 12) -> torch.Tensor:
    return torch.from_numpy(pictures.shapes((side, side), seed=seed)).permute(2, 0, 1).float()[None] / 255


def told(updates: list[list[float]], artist: str, half: int) -> Told:
    return Told(artist, 0, half, np.array(updates, np.float32), np.zeros((len(updates), 1)), np.array([True]), CODE)


def test_what_a_dense_layer_saw_is_read_off_its_gradient() -> None:
    shown = picture()
    weight, bias = inversion.dense_gradients(inversion.Dense(shown[0].numel()), shown)

    assert inversion.psnr(inversion.read_off(weight, bias, shown.shape), shown) > 60


def test_of_a_gradient_that_is_mostly_noise_nothing_is_read_off() -> None:
    shown = picture()
    weight, bias = inversion.dense_gradients(inversion.Dense(shown[0].numel()), shown)
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(part.shape, generator=generator) * 10 * part.abs().max() for part in (weight, bias)]

    assert inversion.psnr(inversion.read_off(weight + noise[0], bias + noise[1], shown.shape), shown) < 15


def test_both_ways_of_rebuilding_work_on_a_small_dense_network() -> None:
    assert all(found > privacy.RECOVERED_DB for found in privacy.controls(pictures.shapes((64, 64), seed=3)).values())


def test_a_picture_is_rebuilt_from_where_its_gradient_points() -> None:
    """Where the gradient is the picture itself, the attack need only follow it."""
    shown = picture(side=8)

    found = inversion.rebuild((shown - 0.5).flatten(), lambda guess: (guess - 0.5).flatten(), tuple(shown.shape), 300, seed=0)

    assert found.cosine > 0.9


def test_psnr_is_that_of_the_textbook() -> None:
    assert inversion.psnr(torch.zeros(3), torch.full((3,), 0.1)) == pytest.approx(20.0, abs=1e-4)
    assert inversion.psnr(torch.ones(2), torch.ones(2)) == math.inf


def test_the_best_match_is_found_among_all() -> None:
    works = torch.stack([torch.zeros(3, 2, 2), torch.full((3, 2, 2), 0.5)])

    best, rebuilt, work = inversion.best_match(torch.stack([torch.ones(3, 2, 2), torch.full((3, 2, 2), 0.45)]), works)

    assert (rebuilt, work) == (1, 1)
    assert best == pytest.approx(-20 * math.log10(0.05), abs=1e-3)


def test_the_area_is_the_share_of_pairs_that_stand_the_right_way() -> None:
    rng = np.random.default_rng(0)
    members, others = [rng.normal(0.5, 1, 7) for _ in range(20)], [rng.normal(0, 1, 9) for _ in range(20)]

    found = privacy.auc_of(members, others)

    slow = [sum(float(m > o) for m in ms for o in os) / 63 for ms, os in zip(members, others, strict=True)]
    assert found.value == pytest.approx(float(np.mean(slow)))
    assert found.low < found.value < found.high
    assert found.pairs == 20 * 7


def test_members_like_any_other_works_are_told_by_chance_and_an_interval_holds_it() -> None:
    rng = np.random.default_rng(1)
    draws = [
        privacy.auc_of([rng.normal(size=4) for _ in range(60)], [rng.normal(size=4) for _ in range(60)]) for _ in range(20)
    ]

    assert sum(one.low <= 0.5 <= one.high for one in draws) >= 17


def test_members_that_stand_out_are_told() -> None:
    found = privacy.auc_of([np.array([5.0, 6.0])] * 3, [np.array([1.0, 2.0])] * 3)

    assert (found.value, found.low, found.high, found.at_one_percent, found.pairs) == (1.0, 1.0, 1.0, 1.0, 6)


def test_ties_count_half() -> None:
    assert privacy.auc_of([np.array([1.0])] * 2, [np.array([1.0])] * 2).value == 0.5


def scored(artist: str, seed: int, half: int, scores: list[float], members: list[bool]) -> Told:
    return Told(artist, seed, half, np.zeros((1, 1), np.float32), np.array([scores]), np.array(members), CODE)


def test_a_work_that_pleases_every_body_is_no_member_once_it_is_held_against_itself() -> None:
    """The first work is near to whatever is painted; what tells is that each body came nearer to its own by a tenth."""
    easy = np.array([5.0, 1.0, 0.0, 2.0])
    halves = [[True, False, True, False], [False, True, False, True]]
    told = [
        scored(artist, seed, half, (easy + 0.1 * np.array(members)).tolist(), members)
        for artist in ("a", "b")
        for seed in range(2)
        for half, members in enumerate(halves)
    ]

    assert privacy.membership(told, 0).value == 0.5
    assert privacy.calibrated(told, 0).value == 1.0


def test_held_against_themselves_works_that_tell_nothing_are_told_by_chance() -> None:
    rng = np.random.default_rng(3)
    told = []
    for number in range(80):
        easy = rng.normal(size=8)
        members = rng.permutation(8) < 4
        for half, mine in enumerate((members, ~members)):
            told.append(scored(str(number), 0, half, (easy + rng.normal(size=8)).tolist(), mine.tolist()))

    found = privacy.calibrated(told, 0)

    assert found.low <= 0.5 <= found.high
    assert found.high - found.low > privacy.auc_of(*_apart(told)).high - privacy.auc_of(*_apart(told)).low


def _apart(told: list[Told]) -> tuple[list[Any], list[Any]]:
    """The same scores, as if no two trainings had to do with each other."""
    scores = [privacy._held_against_itself(one, told, 0) for one in told]
    pairs = list(zip(scores, told, strict=True))
    return [score[one.is_member] for score, one in pairs], [score[~one.is_member] for score, one in pairs]


def test_an_update_is_its_artists_if_it_is_nearest_to_another_half_of_theirs() -> None:
    rounds = [
        told([[1, 0, 0.1]], "a", 0),
        told([[0.9, 0.1, 0]], "a", 1),
        told([[0, 1, 0.1]], "b", 0),
        told([[0.1, 0.9, 0]], "b", 1),
    ]

    assert privacy.attribution(rounds, 0) == 1.0
    assert privacy.attribution([*rounds[:3], told([[-1.0, 0, 0]], "b", 1)], 0) < 1.0


def test_each_row_lets_out_less_than_the_one_before() -> None:
    from models.update import Layout  # noqa: PLC0415 - of this test alone

    layout = Layout((("a", (40, 50)),))
    movement = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    length = float(np.linalg.norm(movement))
    found = {name: privacy.let_out(movement, layout, asked, 1) for name, asked in privacy.policies(length / 2).items()}

    assert np.array_equal(found["nothing"], movement)
    assert np.linalg.norm(found["clip"]) == pytest.approx(length / 2, rel=0.02)
    assert np.count_nonzero(found["default"]) <= 100
    cosines = [privacy._cosine(found[name], movement) for name in ("clip", "default", "noise 100 %")]
    assert cosines[0] > cosines[1] > cosines[2]


def test_a_veiled_round_shows_the_sum_and_rounds_it_by_less_than_a_millionth() -> None:
    rng = np.random.default_rng(4)
    rounds = [told([rng.normal(size=500).tolist()], str(i), 0) for i in range(6)]

    found = privacy.summed(rounds)

    assert np.abs(found - np.sum([one.updates[0] for one in rounds], axis=0)).max() < 1e-5
    assert not any(np.allclose(found, one.updates[0], atol=1e-2) for one in rounds)


def test_works_are_halved_the_same_way_each_time() -> None:
    first, second = privacy.halves(7, 3)

    assert sorted(first + second) == list(range(7))
    assert privacy.halves(7, 3) == [first, second]
    assert privacy.halves(7, 4) != [first, second]


AUC = Auc(0.5, 0.45, 0.55, 0.01, 200)


@pytest.mark.parametrize(("dense", "code"), [(40.0, 0), (19.0, 1)])
def test_if_a_control_fails_the_figures_are_said_to_say_nothing(
    dense: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Here:
        """A pool of this process."""

        def __init__(self, _jobs: int) -> None: ...
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...
        def map(self, work: Any, *units: Any) -> Any:
            return map(work, *units)

    for artist in ("ada", "berthe"):
        (tmp_path / "works" / artist).mkdir(parents=True)
        for number in range(2):
            name = tmp_path / "works" / artist / f"{number}.png"
            name.write_bytes(pictures.encoded(pictures.shapes((160, 160), seed=number), "PNG"))
    monkeypatch.setattr(privacy, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(privacy, "start_of", lambda _folder: CODE)
    monkeypatch.setattr(privacy, "_hold", lambda job: told([[1.0, 0.0]] * 5, job[1], job[5]))
    monkeypatch.setattr(privacy, "hold_veiled", lambda _folder, one, total: replace(one, updates=total[None]))
    monkeypatch.setattr(privacy, "membership", lambda _told, _row: AUC)
    monkeypatch.setattr(privacy, "calibrated", lambda _told, _row: AUC)
    monkeypatch.setattr(privacy, "controls", lambda _work: {"read off": dense, "optimised": 30.0})
    one = [Inverted(1, row, 11.0, 0, 0.5, 0.1) for row in (*privacy.ROWS, privacy.VEILED)]
    monkeypatch.setattr(privacy, "inverted", lambda _every, _firsts, _scale: one)
    works = str(tmp_path / "works")

    ended = privacy.main(["--works", works, "--out", str(tmp_path / "out"), "--quick"])

    assert ended == code
    assert ("the figures above say nothing" in capsys.readouterr().err) == bool(code)
    assert (tmp_path / "out" / "privacy.md").read_text().count("\n") == 8
