"""The recipes of the base bodies name what there is, and a public code is of a work that we drew ourselves."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_base"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT), run_name="train_base")


@pytest.fixture(scope="module", params=["style-kiosk", "style-studio"])
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_drawn_is_of_a_technique_there_is(script: dict[str, Any], tier: str) -> None:
    drawn = script["RECIPES"][tier].styles.drawn

    assert len(set(drawn)) == len(drawn) > 0
    assert {name.rpartition("-")[0] for name in drawn} <= set(script["procedural"].KINDS)


def test_parts_are_of_works_that_are_learned(script: dict[str, Any], tier: str) -> None:
    styles = script["RECIPES"][tier].styles

    assert len(set(styles.parts)) == len(styles.parts) > 0
    for entry in styles.parts:
        work, _, part = entry.rpartition(" ")
        assert work in (*styles.drawn, *script["PAINTINGS"])
        assert part in script["PARTS"]


def test_public_codes_are_of_drawn_works_and_no_painting(script: dict[str, Any], tier: str) -> None:
    styles = script["RECIPES"][tier].styles

    assert set(styles.public) <= set(styles.drawn)
    assert not set(styles.public) & set(script["PAINTINGS"])


def test_the_shipped_card_says_how_its_body_was_trained_and_on_what(script: dict[str, Any], tier: str) -> None:
    recipe = script["RECIPES"][tier]
    text = (SCRIPT.parents[1] / "export" / "base" / tier / "release" / "card.md").read_text()

    assert f"scripts/train_base --tier {tier} {recipe.options}" in text
    assert f"{recipe.steps} steps" in text
    assert all(name in text for name in recipe.styles.drawn)


def test_parts_cover_what_they_say(script: dict[str, Any]) -> None:
    work = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    close, above, below = (script["PARTS"][part](work) for part in ("close", "above", "below"))

    assert np.array_equal(close, work[2:6, 3:9])
    assert np.array_equal(np.concatenate([above, below]), work)
