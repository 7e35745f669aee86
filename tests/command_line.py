"""Running the two programs' command lines in this process, and what both promise of every answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args, get_type_hints

import click
import typer
from click.testing import Result
from typer.testing import CliRunner


class HomeFolder(Protocol):
    """Of either program."""

    @property
    def root(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A program, to be called with arguments."""

    app: typer.Typer

    def run(self, home: HomeFolder, *arguments: str, as_json: bool = False) -> Result:
        """Run a command to its end."""
        extra = ["--json"] if as_json else []
        return CliRunner().invoke(self.app, [*arguments, "--home", str(home.root), *extra])

    def data(self, home: HomeFolder, *arguments: str) -> Any:
        """What a command says to a machine."""
        result = self.run(home, *arguments, as_json=True)
        assert result.exit_code == 0, result.output
        (line,) = result.stdout.splitlines()
        answer = json.loads(line)
        assert answer["ok"] is True
        assert set(answer) == {"ok", "data"}
        return answer["data"]

    def assert_refused(self, home: HomeFolder, arguments: list[str], exit_code: int, code: str, sentence: str) -> None:
        """Refused in both forms: words and advice on stderr, or one object on stdout; never a traceback."""
        spoken, plain = self.run(home, *arguments), self.run(home, *arguments, as_json=True)
        assert (spoken.exit_code, plain.exit_code) == (exit_code, exit_code), (spoken.output, plain.output)
        assert spoken.stdout == ""
        first, advice = spoken.stderr.strip().split("\n", 1)
        assert sentence in first
        assert first.endswith(".")
        assert advice
        assert "Traceback" not in spoken.stderr
        answer = json.loads(plain.stdout)
        assert answer["ok"] is False
        assert set(answer["error"]) == {"code", "message", "advice"}
        assert answer["error"]["code"] == code
        assert sentence in answer["error"]["message"]
        assert answer["error"]["advice"]
        assert plain.stderr == ""

    def help(self, path: tuple[str, ...]) -> Result:
        """Ask for a command's help."""
        return CliRunner().invoke(self.app, [*path, "--help"])

    def commands(self) -> list[tuple[str, ...]]:
        """The path of every command and group, the program itself first."""
        return list(_paths(typer.main.get_command(self.app)))

    def declared_help(self, path: tuple[str, ...]) -> list[str]:
        """What a command's function says of its arguments, in its annotations."""
        command = typer.main.get_command(self.app)
        for name in path:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        if command.callback is None:
            return []
        hints = get_type_hints(command.callback, include_extras=True).values()
        notes = [note for hint in hints for note in get_args(hint)[1:]]
        return [note.help or "no help" for note in notes if isinstance(note, typer.models.ArgumentInfo)]


def _paths(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _paths(inner, (*path, name))
