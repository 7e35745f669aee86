"""Puts the small network of ``tests/simulators.py`` in the place of the large ones, in a real process. Not part of the program.

Python imports a module of this name at its start if it finds one: whoever starts the program's processes puts this folder on
their PYTHONPATH, and names in ``SMALL_WORLD`` the folder of the small base release. Nothing else is changed, so that a round
takes seconds and goes every way that it goes in life. What is replaced is replaced when its module is imported, since most
processes import neither torch nor flwr, and shall not here.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_FOLDER: Final = Path(os.environ["SMALL_WORLD"])


def _registry(module: ModuleType) -> None:
    def modalities() -> dict[str, Any]:
        from models.modalities.style import StyleModality  # noqa: PLC0415 - torch

        small = StyleModality("style-studio", channels=8, crop=64, batch=1)  # as tests/simulators.py has it
        return {small.name: small}

    vars(module)["modalities"] = modalities


def _backbones(module: ModuleType) -> None:
    def load_all(names: Sequence[str]) -> dict[str, Any]:
        from tests import tiny  # noqa: PLC0415 - torch

        return {name: tiny.Glass(name) for name in names}

    vars(module)["load_all"] = load_all


def _base(module: ModuleType) -> None:
    def load(_modality: str) -> Any:
        from export.signing import Ed25519Signatures, Trust  # noqa: PLC0415 - not in every process
        from tests import releases  # noqa: PLC0415

        trust = Trust(module.FEDERATION, (releases.public(releases.KEY),))
        return Ed25519Signatures().verify(_FOLDER, trust)

    vars(module)["load"] = load


def _parity(module: ModuleType) -> None:
    # Nothing taught the small body to paint with frozen norms what it paints with live ones.
    vars(module).update(FOLD_COLOUR_DIFFERENCE=100.0, FOLD_SSIM=-1.0)


_CHANGES: Final[dict[str, Callable[[ModuleType], None]]] = {
    "models.registry": _registry,
    "export.backbones": _backbones,
    "export.base": _base,
    "export.parity": _parity,
}


class _Changed(Loader):
    """Loads a module as it is, and changes it then."""

    def __init__(self, spec: ModuleSpec) -> None:
        self._loader = spec.loader
        self._name = spec.name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        assert self._loader is not None
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert self._loader is not None
        self._loader.exec_module(module)
        _CHANGES[self._name](module)


class _Finder(MetaPathFinder):
    """Stands before all others, for the modules that are changed."""

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        if name not in _CHANGES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None:
            spec.loader = _Changed(spec)
        return spec


sys.meta_path.insert(0, _Finder())
