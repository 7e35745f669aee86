"""Machines with other clocks than ours: what processes find in their environment, by libfaketime."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

CLOCKS: Final = ("@1970-01-01 00:00:01", "-10m", "+10s", "+10y")
"""A box without a battery; one that is slow, one that is a little fast, one that is far in the future."""


def _library() -> Path | None:
    """The one in PyPI's package: Debian's 0.9.10 makes every sleep fail while the counting clock is left alone."""
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        return None
    library = Path(found.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    return library if library.exists() else None


needs_faketime: Final = pytest.mark.skipif(_library() is None, reason="there is no libfaketime for this system")


def with_clock(setting: str) -> Mapping[str, str]:
    """The environment of a machine whose clock is set so. The clock that only counts is left alone, as it is in life."""
    return {"LD_PRELOAD": str(_library()), "FAKETIME": setting, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
