"""How both programs talk: results on stdout, talk on stderr, ``--json`` for machines, errors as advice with an exit code.

Errors are turned into words and exit codes here and nowhere else. What others wrote (a file's name, a coordinator's answer) is
shown as it is and never read as markup or as an order to the terminal.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn, TypeAlias

import click
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from export.errors import SfumatoError

INTERRUPTED: Final = 130

Plain: TypeAlias = Mapping[str, object]

out: Final = Console(soft_wrap=True, highlight=False)
talk: Final = Console(stderr=True, soft_wrap=True, highlight=False)

HomeOption = Annotated[Path | None, typer.Option("--home", help="The folder everything is kept in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")]

DEBUG: Final = bool(os.environ.get("SFUMATO_DEBUG"))


def show(data: Plain, *, as_json: bool, text: Callable[[], None]) -> None:
    """Print a command's result in the form that was asked for."""
    if as_json:
        _write_json({"ok": True, "data": data})
    else:
        text()


def said(*lines: str) -> None:
    """Print lines of a result."""
    for line in lines:
        out.print(_plain(line))


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a small table, or say that there is nothing."""
    if not rows:
        out.print("(none)")
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")  # the end of a path or digest is what it is read for
    for row in rows:
        grid.add_row(*(_plain(cell) for cell in row))
    out.print(grid)


@contextmanager
def errors(*, as_json: bool) -> Iterator[None]:
    """Turn what a command raises into one sentence, advice and an exit code; no traceback reaches a person."""
    try:
        yield
    except SfumatoError as error:
        _fail(error.code, str(error), error.advice, error.exit_code, as_json=as_json)
    except KeyboardInterrupt:
        _fail("interrupted", "interrupted", "", INTERRUPTED, as_json=as_json)
    except OSError as error:
        what = f"{error.filename or 'a file'}: {error.strerror or type(error).__name__}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail("resources", what, "Free some disk space and run the command again.", 6, as_json=as_json)
        _fail("failed", what, "Check the path and your rights to it.", 1, as_json=as_json)
    except MemoryError:
        _fail("resources", "there is not enough memory", "Close other programs, or use a smaller --size.", 6, as_json=as_json)
    except Exception as error:  # noqa: BLE001 - whatever it is, a person gets a sentence
        if DEBUG:
            traceback.print_exc(file=sys.stderr)
        _fail(
            "failed",
            f"an error of the program itself: {type(error).__name__}: {error}",
            "Run again with SFUMATO_DEBUG=1 to see where, and report it.",
            1,
            as_json=as_json,
        )


def run(app: typer.Typer) -> None:
    """Run a program: usage errors of the command line itself exit with 2, as ours do, and Ctrl-C with 130.

    With ``--json`` on the line they are one object too. No traceback shows what was in variables.
    """
    app.pretty_exceptions_enable = False
    try:
        if "--json" in sys.argv[1:]:
            sys.exit(app(standalone_mode=False))
        app()
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        advice = f"See: {where.command_path} --help" if where is not None else ""
        _show_error("usage", error.format_message(), advice, as_json=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _fail(code: str, message: str, advice: str, exit_code: int, *, as_json: bool) -> NoReturn:
    _show_error(code, message, advice, as_json=as_json)
    raise typer.Exit(exit_code)


def _show_error(code: str, message: str, advice: str, *, as_json: bool) -> None:
    if as_json:
        _write_json({"ok": False, "error": {"code": code, "message": message, "advice": advice}})
        return
    talk.print(_plain(f"{message}.", style="bold red"))
    if advice:
        talk.print(_plain(advice))


def _write_json(plain: Plain) -> None:
    sys.stdout.write(json.dumps(_finite(plain), allow_nan=False) + "\n")


def _finite(value: object) -> object:
    """The same with null for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(text: str, style: str = "") -> Text:
    """Text that is not markup; signs that would steer the terminal, or that no terminal can show, are replaced."""
    return Text("".join(sign if sign.isprintable() or sign in "\n\t" else "�" for sign in text), style)


def log_to_stderr(*, debug: bool) -> None:
    """Configure logging, once, for a program that keeps running."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("httpx", "httpcore", "flwr", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
