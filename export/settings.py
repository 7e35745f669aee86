"""One TOML file → one frozen dataclass, or one sentence that names the key and what it may be."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from export.errors import NotConfiguredError
from export.files import read_bounded, write_atomic

_MAX_BYTES = 64 * 2**10
Settings = TypeVar("Settings")

Range = tuple[float, float]


def load(path: Path, kind: type[Settings], ranges: Mapping[str, Range]) -> Settings:
    """Read settings; an unknown key or a bad value stops the program.

    Args:
        path: a TOML file of plain ``key = value`` lines.
        kind: a dataclass of ``str``, ``int``, ``float`` and ``bool`` fields.
        ranges: smallest and largest allowed value of the numeric fields.

    Raises:
        NotConfiguredError: naming the key, the value and what is allowed.
    """
    try:
        return parse(read_bounded(path, _MAX_BYTES), kind, ranges)
    except OSError as error:
        raise _bad(path, f"cannot be read ({error})") from error
    except SettingsError as error:
        raise _bad(path, str(error)) from error


class SettingsError(ValueError):
    """A text is not such settings; says which key, and what is allowed, as the end of a sentence."""


def parse(raw: bytes, kind: type[Settings], ranges: Mapping[str, Range]) -> Settings:
    """The same from the bytes of a file.

    Raises:
        SettingsError: naming the key, the value and what is allowed.
    """
    try:
        plain = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"cannot be read ({error})") from error
    known = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    for key, value in plain.items():
        if key not in known:
            raise SettingsError(f"has an unknown key {key!r}; known are {', '.join(known)}")
        if type(value).__name__ != known[key] and not (known[key] == "float" and type(value) is int):
            raise SettingsError(f"has {key} = {value!r}, which is not of type {known[key]}")
        low, high = ranges.get(key, (float("-inf"), float("inf")))
        if isinstance(value, int | float) and not low <= value <= high:
            raise SettingsError(f"has {key} = {value}; allowed is {low:g} to {high:g}")
    try:
        return kind(**plain)
    except TypeError as error:
        missing = ", ".join(sorted(set(known) - set(plain)))
        raise SettingsError(f"lacks a value; keys not set: {missing}") from error


def save(path: Path, settings: Any) -> None:
    """Write settings with one ``key = value`` line each."""
    write_atomic(path, text(settings))


def text(settings: Any) -> bytes:
    """The bytes of such a file; the same settings give the same."""
    lines = [f"{field.name} = {_toml(getattr(settings, field.name))}\n" for field in fields(settings)]
    return "".join(lines).encode()


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    return repr(value)


def home_folder(given: Path | None, variable: str, program: str) -> Path:
    """A program's folder: the one given, else the environment's, else the platform's data folder."""
    if given is None and variable in os.environ:
        given = Path(os.environ[variable])
    return given.resolve() if given else Path(platformdirs.user_data_dir(program))


def _bad(path: Path, what: str) -> NotConfiguredError:
    return NotConfiguredError(f"{path.name} {what}", advice=f"Edit {path} and start again.")
