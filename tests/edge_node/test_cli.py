"""The `sfumato` command line: help everywhere, one object for machines, and for people a sentence, advice and an exit code."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from edge_node import __main__ as program
from edge_node import library, membership, node, releases, styles, train
from edge_node.config import Home
from edge_node.errors import JoinRefusedError, NoWorksError
from edge_node.membership import Membership
from export.errors import ResourceError
from export.invite import Invite
from export.ledger import Ledger
from export.processes import free_port
from export.signing import VerifiedRelease
from models import codecs
from tests import pictures, simulators
from tests.releases import publish

INVITE = str(Invite(b"f" * 16, b"s" * 10, "127.0.0.1", 9))


def run(home: Home, *arguments: str, as_json: bool = False) -> Result:
    extra = ["--json"] if as_json else []
    return CliRunner().invoke(program.app, [*arguments, "--home", str(home.root), *extra])


def data(home: Home, *arguments: str) -> Any:
    """What a command says to a machine."""
    result = run(home, *arguments, as_json=True)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    answer = json.loads(line)
    assert answer["ok"] is True
    assert set(answer) == {"ok", "data"}
    return answer["data"]


def assert_refused(home: Home, arguments: list[str], exit_code: int, code: str, sentence: str) -> None:
    """Refused in both forms: words and advice on stderr, or one object on stdout; never a traceback."""
    spoken, plain = run(home, *arguments), run(home, *arguments, as_json=True)
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


@pytest.fixture
def home(tmp_path: Path, world: VerifiedRelease) -> Home:
    del world
    return simulators.make_node(tmp_path / "home")


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


@pytest.mark.parametrize("path", list(commands(typer.main.get_command(program.app))), ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(program.app, [*path, "--help"])

    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_the_commands_the_design_names_are_there() -> None:
    found = {" ".join(path) for path in commands(typer.main.get_command(program.app))}

    wanted = "init,works add,works list,learn,styles,join,up,status,paint,release list,release install,release verify"
    assert found >= {*wanted.split(","), "release rollback", "ledger"}


# --- Answers -----------------------------------------------------------------------------------------------------------


def test_init_sets_a_machine_up_once(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")

    said = data(home, "init", "--artist", "Ada Lovelace", "--threads", "1")

    assert said == {"home": str(home.root), "artist": "Ada Lovelace", "style": "ada-lovelace"}
    assert home.root.stat().st_mode & 0o077 == 0
    assert_refused(home, ["init", "--artist", "Ada"], 2, "usage", "is set up already")


def test_works_are_added_and_listed(home: Home, tmp_path: Path) -> None:
    simulators.write_works(tmp_path / "works")
    (tmp_path / "works" / "small.png").write_bytes(pictures.encoded(pictures.shapes((20, 20)), "PNG"))

    added = data(home, "works", "add", str(tmp_path / "works"))
    listed = data(home, "works", "list")

    assert added["added"] == ["work-0.png", "work-1.png"]
    assert [(left["file"], left["reason"]) for left in added["left_out"]] == [("small.png", "too-small")]
    assert [Path(work["path"]).name for work in listed["works"]] == ["work-0.png", "work-1.png"]
    # However narrow the terminal is, no end of a name is lost.
    assert "work-0.png" in "".join(run(home, "works", "list").stdout.split())


def test_a_style_is_learned_listed_and_painted_with(home: Home, tmp_path: Path) -> None:
    simulators.write_works(tmp_path / "works")
    photo = pictures.shapes((70, 90), seed=2)
    (tmp_path / "photo.png").write_bytes(pictures.encoded(photo, "PNG"))
    output = str(tmp_path / "picture.png")

    learned = data(home, "learn", str(tmp_path / "works"), "--style", "sea")
    listed = data(home, "styles")
    painted = data(home, "paint", str(tmp_path / "photo.png"), "--style", "sea", "-o", output, "--precision", "fp32")

    assert (learned["name"], learned["works"]) == ("sea", 2)
    assert listed["styles"] == [learned]
    assert "sea" in run(home, "styles").stdout
    assert painted == {
        "picture": output,
        "width": 90,
        "height": 70,
        "runtime": "onnxruntime",
        "precision": "fp32",
        "graph": "folded",
    }
    assert codecs.decode(Path(output).read_bytes()).shape == photo.shape
    assert "90 x 70" in run(home, "paint", str(tmp_path / "photo.png"), "--style", "sea", "-o", output).stdout


def test_releases_are_verified_installed_listed_and_taken_back(home: Home, tmp_path: Path) -> None:
    simulators.trusting(home)
    for version in (1, 2):
        folder = str(publish(tmp_path / str(version), version=version).folder)
        assert data(home, "release", "verify", folder)["version"] == version
        assert data(home, "release", "install", folder)["version"] == version

    assert [(r["version"], r["current"]) for r in data(home, "release", "list")["releases"]] == [(1, False), (2, True)]
    assert data(home, "release", "rollback")["version"] == 1
    assert "* 1" in " ".join(run(home, "release", "list").stdout.split())


def test_the_ledger_shows_what_left_and_names_the_tensors(home: Home) -> None:
    assert data(home, "ledger") == {"entries": []}
    entry: dict[str, Any] = {"what": "update", "federation": "guild", "round": 1, "bytes": 40, "norm-sent": 0.5}
    Ledger(home.ledger_file).append({**entry, "sha256": "ab" * 32, "tensors": ["stem.weight"]})

    assert data(home, "ledger")["entries"][0]["sha256"] == "ab" * 32
    assert "stem.weight" in run(home, "ledger").stdout


def test_status_says_how_the_machine_stands(home: Home, world: VerifiedRelease) -> None:
    said = data(home, "status")

    assert (said["artist"], said["works"], said["styles"], said["federation"]) == ("Ada", 0, [], None)
    assert said["release"]["body"] == world.manifest.body
    assert "Ada" in run(home, "status").stdout


def test_joining_says_whom_one_joined(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    member = Membership("guild", "Ada", "artist", "1", "127.0.0.1", 9)
    monkeypatch.setattr(membership, "join", lambda _home, _invite: member)

    assert data(home, "join", INVITE)["federation"] == "guild"
    assert "Joined guild as Ada." in run(home, "join", INVITE).stdout


def test_one_style_without_works_does_not_keep_the_others_from_being_renewed(
    home: Home, monkeypatch: pytest.MonkeyPatch, world: VerifiedRelease
) -> None:
    tried: list[str] = []

    def renew(_home: Home, name: str) -> None:
        tried.append(name)
        if name == "ada":
            raise NoWorksError("there is no work to learn from", advice="Add works.")

    monkeypatch.setattr(train, "renew", renew)
    monkeypatch.setattr(styles, "names", lambda _home: ["sea", "sky"])

    assert run(home, "renew").exit_code == 0
    assert tried == ["ada", "sea", "sky"]
    assert node.renewed_for(home) == world.manifest.body


# --- Refusals, one for each exit code ----------------------------------------------------------------------------------


def test_2_what_was_typed_is_wrong(home: Home, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(pictures.encoded(pictures.shapes((70, 90)), "PNG"))
    paint = ["paint", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out.png"), "--style"]

    assert_refused(home, [*paint, "see"], 2, "unknown-style", "there is no style 'see'")
    assert_refused(home, [*paint, "a=b"], 2, "usage", "names no style or mix")
    assert_refused(home, [*paint, "a", "--precision", "fp8"], 2, "usage", "no precision 'fp8'")
    assert_refused(home, ["paint", "gone.png", "-o", "o.png", "--style", "a"], 2, "bad-picture", "gone.png cannot be opened")
    assert_refused(home, ["join", "hello"], 2, "invite-mistyped", "not a whole invite")
    assert_refused(home, ["learn", str(tmp_path), "--style", "../x"], 2, "usage", "cannot be the name of a style")
    assert_refused(home, ["release", "rollback"], 2, "usage", "no earlier release")


def test_3_something_has_to_be_set_up_first(home: Home, tmp_path: Path) -> None:
    nowhere = Home(tmp_path / "nowhere")

    assert_refused(nowhere, ["status"], 3, "no-home", "there is no Sfumato in")
    assert_refused(home, ["up"], 3, "not-joined", "joined no federation")
    (tmp_path / "empty").mkdir()
    assert_refused(home, ["works", "add", str(tmp_path / "empty")], 3, "no-works", "holds no work")
    home.config_file.write_text("artist = 3\n")
    assert_refused(home, ["styles"], 3, "not-configured", "artist = 3")


def test_4_nobody_answers(home: Home) -> None:
    invite = str(Invite(b"f" * 16, b"s" * 10, "127.0.0.1", free_port()))

    assert_refused(home, ["join", invite], 4, "no-coordinator", "nobody answers at")


def test_5_somebody_says_no(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_home: Home, _invite: Invite) -> None:
        raise JoinRefusedError("that invite has been used already", advice="Ask for a new one.")

    monkeypatch.setattr(membership, "join", refuse)

    assert_refused(home, ["join", INVITE], 5, "invite-refused", "used already")


def test_6_the_disk_is_full(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(_home: Home, _folder: Path) -> None:
        raise ResourceError("release 3 could not be written", advice="Free some disk space.")

    monkeypatch.setattr(releases, "install", full)

    assert_refused(home, ["release", "install", str(tmp_path)], 6, "resources", "could not be written")


def test_6_there_is_not_enough_memory(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def crowded(_home: Home) -> None:
        raise MemoryError

    monkeypatch.setattr(styles, "all_styles", crowded)

    assert_refused(home, ["styles"], 6, "resources", "not enough memory")


def test_7_what_was_signed_was_changed(home: Home, tmp_path: Path) -> None:
    simulators.trusting(home)
    published = publish(tmp_path / "release")
    (published.folder / "card.md").write_bytes(b"# Another\n")

    assert_refused(home, ["release", "verify", str(published.folder)], 7, "integrity", "card.md is not what was signed")


def test_1_a_file_that_cannot_be_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_home: Home) -> None:
        raise PermissionError(13, "Permission denied", "works.json")

    monkeypatch.setattr(library, "entries", denied)

    assert_refused(home, ["works", "list"], 1, "failed", "works.json: Permission denied")


def test_1_an_error_of_the_program_itself_is_said_without_a_traceback(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_home: Home) -> None:
        raise ZeroDivisionError("division [by] zero")

    monkeypatch.setattr(library, "entries", broken)

    assert_refused(home, ["works", "list"], 1, "failed", "ZeroDivisionError: division [by] zero")


def test_130_somebody_pressed_ctrl_c(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_home: Home) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "entries", interrupted)

    assert run(home, "works", "list").exit_code == 130
    assert json.loads(run(home, "works", "list", as_json=True).stdout)["error"]["code"] == "interrupted"


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["paint"], ["paint", "photo.png", "--style", "a"], ["init", "--threads", "0"], ["works", "add"]],
)
def test_2_what_the_command_line_does_not_know(home: Home, arguments: list[str]) -> None:
    result = run(home, *arguments)

    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_real_process_ends_with_the_exit_code_and_without_a_traceback(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "edge_node", "status", "--home", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr.splitlines() == [f"there is no Sfumato in {tmp_path}.", "Set it up with: sfumato init"]
