"""How both programs talk: results on stdout, talk on stderr, ``--json`` for machines, errors as advice with an exit code.

Errors are turned into words and exit codes here and nowhere else.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

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
        sys.stdout.write(json.dumps({"ok": True, "data": data}) + "\n")
    else:
        text()


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a small table, or say that there is nothing."""
    if not rows:
        out.print("(none)")
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")  # the end of a path or digest is what it is read for
    for row in rows:
        grid.add_row(*row)
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
    except Exception as error:
        logging.getLogger(__name__).debug("unforeseen", exc_info=error)
        _fail(
            "failed",
            f"an error of the program itself: {type(error).__name__}: {error}",
            "Run again with SFUMATO_DEBUG=1 to see where, and report it.",
            1,
            as_json=as_json,
        )


def run(app: typer.Typer) -> None:
    """Run a program: usage errors of the command line itself exit with 2, as ours do, and Ctrl-C with 130."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _fail(code: str, message: str, advice: str, exit_code: int, *, as_json: bool) -> None:
    if as_json:
        plain = {"code": code, "message": message, "advice": advice}
        sys.stdout.write(json.dumps({"ok": False, "error": plain}) + "\n")
    else:
        talk.print(f"[bold red]{_escaped(message)}.[/]" if message else "")
        if advice:
            talk.print(_escaped(advice))
    raise typer.Exit(exit_code)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def log_to_stderr(*, debug: bool) -> None:
    """Configure logging, once, for a program that keeps running."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("httpx", "httpcore", "flwr", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
