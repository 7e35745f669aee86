"""Finished pieces of work on disk, each under the digest of all it depends on: what is interrupted goes on from there.

A piece is an array set with a few words beside it, written atomically. Whoever asks for a piece says everything that it
depends on; nothing is ever thrown away, so that a longer bench finds what a shorter one has done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NewType, TypeAlias

import numpy as np
import numpy.typing as npt

from export import weights
from export.errors import IntegrityError
from export.files import canonical_json, digest_of, write_atomic
from models.update import Arrays

Key = NewType("Key", str)
Plain: TypeAlias = Mapping[str, object]
"""JSON-ready: numbers, words, lists and mappings of them."""


def key_of(depends_on: Plain) -> Key:
    """The name of a piece of work, from all that it depends on."""
    return Key(digest_of(canonical_json(depends_on)))


@dataclass(frozen=True, slots=True)
class Piece:
    """What one piece of work gave: named float32 arrays and plain facts."""

    arrays: dict[str, npt.NDArray[np.float32]]
    facts: dict[str, float]


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of pieces. It may be shared by processes: each piece is written whole or not at all."""

    folder: Path

    def has(self, key: Key) -> bool:
        """Whether the piece is there and whole."""
        return self.load(key) is not None

    def load(self, key: Key) -> Piece | None:
        """A piece, or None if it is not there or damaged: then it is made again."""
        try:
            data = self._path(key).read_bytes()
            return Piece(weights.unpack(data), json.loads(weights.metadata_of(data).get("facts", "{}")))
        except (OSError, IntegrityError):
            return None

    def save(self, key: Key, arrays: Arrays, facts: Mapping[str, float]) -> None:
        """Keep a piece."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, weights.pack(arrays, {"facts": json.dumps(dict(facts))}))

    def _path(self, key: Key) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
