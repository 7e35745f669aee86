"""A name is looked up among what is installed; nothing is imported on its say-so."""

import pkgutil
import sys
from types import ModuleType, SimpleNamespace

import pytest

import models.modalities
from models import registry
from models.registry import UnknownModalityError


def test_every_modality_stands_under_its_own_name() -> None:
    assert registry.modalities()
    assert all(name == modality.name for name, modality in registry.modalities().items())


@pytest.mark.parametrize("name", ["style-kiosk", "style-studio"])
def test_both_tiers_of_the_style_modality_are_there(name: str) -> None:
    assert registry.find(name).name == name


@pytest.mark.parametrize(
    "name",
    ["", "nothing", "style", "STYLE-KIOSK", "style-kiosk ", "models.modalities.style", "os", "../style", "antigravity"],
)
def test_a_name_that_is_not_installed_is_refused_and_never_imported(name: str) -> None:
    before = set(sys.modules)

    with pytest.raises(UnknownModalityError, match="no kind of art called"):
        registry.find(name)

    assert set(sys.modules) == before


def test_the_refusal_says_what_is_installed() -> None:
    with pytest.raises(UnknownModalityError, match="style-kiosk"):
        registry.find("nothing")


def test_two_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("models.modalities.mosaic")
    module.MODALITIES = (SimpleNamespace(name="mosaic"), SimpleNamespace(name="mosaic"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(pkgutil, "iter_modules", lambda _path: [SimpleNamespace(name="mosaic")])

    with pytest.raises(RuntimeError, match="two kinds of art are called 'mosaic'"):
        registry.modalities.__wrapped__()


def test_a_new_file_in_the_folder_is_all_a_new_modality_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("models.modalities.mosaic")
    module.MODALITIES = (SimpleNamespace(name="mosaic"),)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(pkgutil, "iter_modules", lambda _path: [SimpleNamespace(name="mosaic")])

    found = registry.modalities.__wrapped__()

    assert list(found) == ["mosaic"]
    assert list(models.modalities.__path__)
