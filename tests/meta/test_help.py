"""Both programs explain themselves: every command has help, and the help explains every argument."""

import pytest

import coordinator.__main__
import edge_node.__main__
from tests.command_line import CommandLine

PROGRAMS = {"sfumato": CommandLine(edge_node.__main__.app), "sfumato-coordinator": CommandLine(coordinator.__main__.app)}
EVERY_COMMAND = [
    pytest.param(program, path, id=" ".join((name, *path))) for name, program in PROGRAMS.items() for path in program.commands()
]


@pytest.mark.parametrize(("program", "path"), EVERY_COMMAND)
def test_every_command_has_help(program: CommandLine, path: tuple[str, ...]) -> None:
    result = program.help(path)

    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize(("program", "path"), EVERY_COMMAND)
def test_the_help_explains_every_argument(program: CommandLine, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # click 8.5 forgets what typer 0.20 was told about arguments; what was declared is looked up in the functions.
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    shown = " ".join(program.help(path).stdout.split())

    for text in program.declared_help(path):
        assert text in shown


SFUMATO = ("init", "works add", "works list", "learn", "styles", "join", "up", "status", "paint", "ledger")
SFUMATO_RELEASE = ("release list", "release install", "release verify", "release rollback")
COORDINATOR = ("init", "up", "invite", "nodes", "round", "release list", "release show", "release publish", "status")


@pytest.mark.parametrize(("name", "wanted"), [("sfumato", SFUMATO + SFUMATO_RELEASE), ("sfumato-coordinator", COORDINATOR)])
def test_the_commands_the_design_names_are_there(name: str, wanted: tuple[str, ...]) -> None:
    assert {" ".join(path) for path in PROGRAMS[name].commands()} >= set(wanted)
