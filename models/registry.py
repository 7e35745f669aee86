"""Names → modalities, found in ``models/modalities``. A name off the wire is looked up here and never imported.

Importing a modality imports torch, so this happens on the first look-up and not before.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

import models.modalities
from models.contract import Modality


class UnknownModalityError(LookupError):
    """No modality of that name is installed here."""


@cache
def modalities() -> dict[str, Modality[Any, Any]]:
    """Every installed modality by name. ``Any``: each pairs its own network with its own batches."""
    found: dict[str, Modality[Any, Any]] = {}
    for module in pkgutil.iter_modules(models.modalities.__path__):
        for modality in importlib.import_module(f"models.modalities.{module.name}").MODALITIES:
            if modality.name in found:
                raise RuntimeError(f"two kinds of art are called {modality.name!r}")
            found[modality.name] = modality
    return found


def find(name: str) -> Modality[Any, Any]:
    """The modality of that name.

    Raises:
        UnknownModalityError: none is installed.
    """
    try:
        return modalities()[name]
    except KeyError:
        raise UnknownModalityError(f"no kind of art called {name!r}; installed: {', '.join(modalities())}") from None
