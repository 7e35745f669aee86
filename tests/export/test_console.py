"""Errors become a sentence, advice and an exit code, in one place; results go to stdout and talk to stderr."""

import errno
import json
import logging
import math
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest
import typer

import coordinator.errors
import edge_node.errors
import export.errors
from export import console
from export.errors import IntegrityError, RefusedError, SfumatoError, UsageError


def kinds(root: type[SfumatoError] = SfumatoError) -> Iterator[type[SfumatoError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


KINDS: Final = sorted(set(kinds()), key=lambda kind: f"{kind.__module__}.{kind.__name__}")


def raised(error: BaseException, *, as_json: bool = False) -> int:
    with pytest.raises(typer.Exit) as caught, console.errors(as_json=as_json):
        raise error
    return caught.value.exit_code


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_error_leaves_with_its_own_exit_code(
    kind: type[SfumatoError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert raised(kind("it went wrong", advice="Do this.")) == kind.exit_code
    assert 1 <= kind.exit_code <= 7

    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()) == ("", ["it went wrong.", "Do this."])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_error_is_one_object_for_a_machine(kind: type[SfumatoError], capsys: pytest.CaptureFixture[str]) -> None:
    assert raised(kind("it went wrong", advice="Do this."), as_json=True) == kind.exit_code

    said = capsys.readouterr()
    error = {"code": kind.code, "message": "it went wrong", "advice": "Do this."}
    assert json.loads(said.out) == {"ok": False, "error": error}
    assert said.err == ""


def test_the_errors_of_both_programs_were_among_them() -> None:
    found = set(kinds())

    for module in (coordinator.errors, edge_node.errors, export.errors):
        own = {thing for thing in vars(module).values() if isinstance(thing, type) and issubclass(thing, SfumatoError)}
        assert own <= found


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), 1, "a.png: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 6, "a.png: No space left on device"),
        (OSError("strange"), 1, "a file: OSError"),
        (MemoryError(), 6, "there is not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("division by zero"), 1, "an error of the program itself: ZeroDivisionError"),
    ],
)
def test_what_was_not_foreseen_is_said_without_a_traceback(
    error: BaseException, exit_code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raised(error) == exit_code

    spoken = capsys.readouterr()
    assert said in spoken.err
    assert "Traceback" not in spoken.err
    assert spoken.out == ""


def test_an_exit_of_the_command_itself_passes() -> None:
    with pytest.raises(typer.Exit), console.errors(as_json=False):
        raise typer.Exit(3)


@pytest.mark.parametrize("text", ["[red]boo[/]", "[/]", "[link=http://evil.example]x[/link]", "a [b"])
def test_what_others_wrote_is_never_read_as_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    raised(UsageError(text, advice=text))

    assert capsys.readouterr().err == f"{text}.\n{text}\n"


@pytest.mark.parametrize("text", ["line\nbreak", "ü 小野 \x1b[31m", '"quoted"'])
def test_whatever_is_said_stays_one_line_of_json(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    raised(RefusedError(text, advice=text), as_json=True)

    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["error"]["message"] == text


def test_a_result_is_shown_in_the_form_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    def text() -> None:
        console.out.print("seven")

    console.show({"number": 7}, as_json=True, text=text)
    assert json.loads(capsys.readouterr().out) == {"ok": True, "data": {"number": 7}}
    console.show({"number": 7}, as_json=False, text=text)
    assert capsys.readouterr().out == "seven\n"


@pytest.mark.parametrize("name", ["sunset [final].jpg", "[/b]", "[red]boo[/]", ":smile:.png"])
def test_a_cell_is_shown_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["file"], [[name]])
    console.said(name)

    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["file", name, name]


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\rb", "a\udcffb", "a\u202eb"])
def test_a_name_cannot_steer_the_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["file"], [[name]])
    console.said(name)
    raised(UsageError(name, advice=name))

    said = capsys.readouterr()
    shown = "".join(sign if sign.isprintable() else "�" for sign in name)
    assert [line.strip() for line in said.out.splitlines()] == ["file", shown, shown]
    assert said.err.splitlines() == [f"{shown}.", shown]


def test_what_is_no_number_is_null_to_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"score": {"style": math.nan, "content": 0.5}, "all": [math.inf, (1, -math.inf)], "none": None}

    console.show(data, as_json=True, text=lambda: None)

    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said["data"] == {"score": {"style": None, "content": 0.5}, "all": [None, [1, None]], "none": None}


def test_a_program_in_search_of_its_own_error_shows_where_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "DEBUG", True)

    assert raised(ZeroDivisionError("division by zero"), as_json=True) == 1

    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert "in raised" in said.err
    assert json.loads(said.out)["ok"] is False


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["a", "b"], [])

    assert capsys.readouterr().out == "(none)\n"


def test_no_end_of_a_cell_is_lost_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    digest = "0123456789abcdef" * 4

    console.table(["file", "sha256"], [["/home/ada/works/portrait.png", digest]])

    cells = capsys.readouterr().out.splitlines()[1:]
    assert "".join(line[:14].strip() for line in cells).startswith("/home/ada")
    assert sum(line.count("0123") for line in cells) + "".join("".join(cells).split()).count("cdef") >= 4
    assert "…" not in "".join(cells)


def test_a_usage_error_of_a_program_leaves_with_2() -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def one(number: int) -> None:
        raise AssertionError(number)

    assert exit_of(app, ["program", "x"]) == 2


@pytest.mark.parametrize("arguments", [["x", "--json"], ["--json"], ["--json", "--colour", "7"]])
def test_a_usage_error_of_a_program_is_one_object_for_a_machine(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def one(number: int, *, as_json: console.JsonOption = False) -> None:
        raise AssertionError(number, as_json)

    assert exit_of(app, ["program", *arguments]) == 2

    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    answer = json.loads(line)
    assert answer["ok"] is False
    assert answer["error"]["code"] == "usage"
    assert answer["error"]["message"]
    assert "--help" in answer["error"]["advice"]
    assert said.err == ""


@pytest.mark.parametrize("code", [0, 3, 7])
def test_a_command_for_a_machine_leaves_with_its_own_exit_code(code: int) -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def one(*, as_json: console.JsonOption = False) -> None:
        if code:
            raise typer.Exit(code)
        assert as_json

    assert (exit_of(app, ["program", "--json"]) or 0) == code


def test_no_traceback_tells_what_was_in_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def one() -> None:
        secret = "ten bytes!"
        raise ZeroDivisionError(len(secret))

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        console.run(app)

    assert app.pretty_exceptions_enable is False


def test_ctrl_c_outside_a_command_leaves_with_130() -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def one() -> None:
        raise KeyboardInterrupt

    assert exit_of(app, ["program"]) == console.INTERRUPTED == 130


def exit_of(app: typer.Typer, arguments: list[str]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as caught:
            console.run(app)
    return caught.value.code


@pytest.mark.parametrize(("debug", "level"), [(False, logging.INFO), (True, logging.DEBUG)])
def test_logging_is_set_up_once_and_others_are_kept_quiet(monkeypatch: pytest.MonkeyPatch, *, debug: bool, level: int) -> None:
    asked: list[int] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: asked.append(settings["level"]))
    for name in ("httpx", "httpcore", "flwr", "uvicorn"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)

    console.log_to_stderr(debug=debug)

    assert asked == [level]
    assert logging.getLogger("httpx").level == logging.WARNING


def test_an_integrity_error_is_7_as_the_design_says() -> None:
    assert IntegrityError("x", advice="y").exit_code == 7
