"""The `sfumato` command line: help everywhere, one object for machines, and for people a sentence, advice and an exit code."""

import getpass
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from edge_node import __main__ as program
from edge_node import consent, library, membership, node, paint, releases, styles, train
from edge_node.config import Home
from edge_node.errors import JoinRefusedError, NoWorksError
from edge_node.membership import Membership
from export import parity, settings
from export.errors import IntegrityError, ResourceError
from export.fold import FoldError
from export.invite import Invite
from export.ledger import Ledger
from export.processes import free_port
from export.signing import VerifiedRelease
from models import codecs
from models.training import DivergedError
from tests import pictures, simulators
from tests.command_line import CommandLine
from tests.releases import publish

INVITE = str(Invite(b"f" * 16, b"s" * 10, "127.0.0.1", 9))


CLI: Final = CommandLine(program.app)
run, data, assert_refused = CLI.run, CLI.data, CLI.assert_refused


@pytest.fixture
def home(tmp_path: Path, world: VerifiedRelease) -> Home:
    del world
    return simulators.make_node(tmp_path / "home")


# --- Answers -----------------------------------------------------------------------------------------------------------


def test_init_sets_a_machine_up_once(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")

    said = data(home, "init", "--artist", "Ada Lovelace", "--threads", "1")

    assert said == {"home": str(home.root), "artist": "Ada Lovelace", "style": "ada-lovelace"}
    assert home.root.stat().st_mode & 0o077 == 0
    assert_refused(home, ["init", "--artist", "Ada"], 2, "usage", "is set up already")


@pytest.mark.parametrize(
    ("artist", "style"), [("A" * 39 + " B", "a" * 39), ("小野", "style"), ("--Ada--", "ada"), ("a" * 100, "a" * 40)]
)
def test_any_name_makes_a_style_name(tmp_path: Path, artist: str, style: str) -> None:
    assert data(Home(tmp_path), "init", "--artist", artist)["style"] == style
    assert Home(tmp_path).config().artist == artist


@pytest.mark.parametrize("artist", ["a\nb", "a\x1b[31m", "a\udcff", " ", "a" * 101])
def test_a_name_that_cannot_be_shown_is_refused_and_nothing_set_up(tmp_path: Path, artist: str) -> None:
    home = Home(tmp_path / "home")

    assert_refused(home, ["init", "--artist", artist], 2, "usage", "cannot be an artist's name")
    assert not home.root.exists()


@pytest.mark.parametrize("error", [OSError("no such user"), KeyError("uid 77"), ImportError("pwd")])
def test_a_system_without_login_names_is_asked_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", fail)

    result = run(Home(tmp_path / "home"), "init")

    assert result.exit_code == 2
    assert "--artist NAME" in result.stderr


def test_works_that_are_gone_or_changed_are_told(home: Home, tmp_path: Path) -> None:
    simulators.write_works(tmp_path / "works", count=3)
    data(home, "works", "add", str(tmp_path / "works"))
    (tmp_path / "works" / "work-0.png").unlink()
    (tmp_path / "works" / "work-1.png").write_bytes(b"another")

    assert [work["state"] for work in data(home, "works", "list")["works"]] == ["missing", "changed", "ok"]
    said = data(home, "status")
    assert (said["works"], said["works_gone_or_changed"]) == (1, 2)
    assert "changed" in run(home, "works", "list").stdout


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


def test_adding_works_says_in_words_what_was_left_out_and_nothing_more(home: Home, tmp_path: Path) -> None:
    simulators.write_works(tmp_path / "works")
    complete = run(home, "works", "add", str(tmp_path / "works")).stdout
    (tmp_path / "works" / "small.png").write_bytes(pictures.encoded(pictures.shapes((20, 20)), "PNG"))

    assert complete == "2 works added, 0 left out.\n"
    assert "small.png" in run(home, "works", "add", str(tmp_path / "works")).stdout


def test_a_style_is_learned_listed_and_painted_with(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "FOLD_STYLE_RATIO", 100.0)  # what a body trained for a moment makes of that is chance
    simulators.write_works(tmp_path / "works")
    photo = pictures.shapes((70, 90), seed=2)
    (tmp_path / "photo.png").write_bytes(pictures.encoded(photo, "PNG"))
    output = str(tmp_path / "picture.png")

    learned = data(home, "learn", str(tmp_path / "works"), "--style", "sea")
    listed = data(home, "styles")
    painted = data(
        home,
        "paint",
        str(tmp_path / "photo.png"),
        "--style",
        "sea",
        "-o",
        output,
        "--precision",
        "fp32",
        "--runtime",
        "onnxruntime",
    )

    assert (learned["name"], learned["works"], learned["works_found"]) == ("sea", 2, 2)
    assert (learned["originality"]["checked"], learned["originality"]["near_copy"]) == (True, False)
    assert learned["originality"]["nearest"] in {"work-0.png", "work-1.png"}
    assert listed == {"styles": [learned], "public": [{"name": "paper", "release": "sfumato-base 1"}]}
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


def test_learning_says_how_many_works_it_used(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_LESSONS_MAX", 2)
    simulators.write_works(tmp_path / "works", count=3)

    said = run(home, "learn", str(tmp_path / "works"), "--style", "sea").stdout
    assert "Learned from 2 of 3 works." in said
    assert "No picture comes near a work; nearest: work-" in said
    assert "2 of 3" in " ".join(run(home, "styles").stdout.split())


def test_a_style_is_not_learned_from_other_works_by_mistake(home: Home, tmp_path: Path) -> None:
    for name in ("works", "more"):
        simulators.write_works(tmp_path / name, seed=len(name))
    data(home, "learn", str(tmp_path / "works"), "--style", "sea")
    again = ["learn", str(tmp_path / "more"), "--style", "sea"]

    assert_refused(home, again, 2, "usage", "was learned from")
    assert data(home, "learn", str(tmp_path / "works"), "--style", "sea")["works"] == 2
    assert data(home, *again, "--replace")["works"] == 2
    assert styles.find(home, "sea").folder_of_works == str(tmp_path / "more")


def test_a_public_style_paints_where_nothing_was_learned(home: Home, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(pictures.encoded(pictures.shapes((70, 90)), "PNG"))
    output = tmp_path / "picture.jpg"

    assert "paper" in run(home, "styles").stdout
    painted = data(home, "paint", str(tmp_path / "photo.png"), "--style", "paper", "-o", str(output))

    assert (painted["graph"], painted["precision"]) == ("exact", "fp32")
    assert output.exists()


def test_a_photo_is_not_painted_over(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(pictures.encoded(pictures.shapes((70, 90)), "PNG"))
    before = photo.read_bytes()
    monkeypatch.setattr(paint, "paint", lambda *_: pytest.fail("it was painted before it was checked"))

    assert_refused(home, ["paint", str(photo), "--style", "paper", "-o", str(photo)], 2, "usage", "is the photo itself")
    assert_refused(home, ["paint", str(photo), "--style", "paper", "-o", "o.gif"], 2, "usage", "pictures are written as")
    assert photo.read_bytes() == before


def test_one_damaged_style_is_listed_beside_the_others(home: Home, world: VerifiedRelease) -> None:
    for name in ("sea", "sky"):
        styles.compile_style(home, name, simulators.style_code(world), world, simulators.LINEAGE)
    (styles.find(home, "sky").folder / "style.json").write_text("{}")

    listed = data(home, "styles")["styles"]
    assert [(style["name"], style["damaged"]) for style in listed] == [("sea", False), ("sky", True)]
    assert "damaged" in run(home, "styles").stdout
    said = data(home, "status")
    assert (said["styles"], said["damaged"]) == (["sea", "sky"], ["style sky"])
    assert "style sky" in run(home, "status").stdout


def test_one_damaged_release_is_listed_beside_the_others(home: Home, tmp_path: Path) -> None:
    simulators.trusting(home)
    for version in (1, 2):
        releases.install(home, publish(tmp_path / str(version), version=version).folder)
    (home.releases / "2" / "card.md").unlink()

    listed = data(home, "release", "list")["releases"]
    assert [(r["version"], r["damaged"], r["current"]) for r in listed] == [(1, False, False), (2, True, True)]
    assert "damaged" in run(home, "release", "list").stdout
    said = data(home, "status")
    assert (said["release"], said["damaged"]) == ({"version": 2, "damaged": True}, ["release"])
    assert "damaged" in run(home, "status").stdout
    assert data(home, "styles") == {"styles": [], "public": []}


def test_releases_are_listed_without_a_note_of_the_one_in_use(home: Home, tmp_path: Path) -> None:
    simulators.trusting(home)
    releases.install(home, publish(tmp_path / "1", version=1).folder)
    (home.releases / "current").write_text("one")

    assert [(r["version"], r["current"]) for r in data(home, "release", "list")["releases"]] == [(1, False)]
    assert data(home, "status")["release"] == {"version": None, "damaged": True}


def test_releases_are_verified_installed_listed_and_taken_back(home: Home, tmp_path: Path) -> None:
    simulators.trusting(home)
    for version in (1, 2):
        folder = str(publish(tmp_path / str(version), version=version).folder)
        assert data(home, "release", "verify", folder)["version"] == version
        assert data(home, "release", "install", folder)["version"] == version

    assert [(r["version"], r["current"]) for r in data(home, "release", "list")["releases"]] == [(1, False), (2, True)]
    assert data(home, "release", "rollback")["version"] == 1
    assert "* 1" in " ".join(run(home, "release", "list").stdout.split())


JOINED: dict[str, Any] = {"what": "joined", "federation": "guild", "alias": "Ada", "role": "artist", "sha256": "cd" * 32}
UPDATE: dict[str, Any] = {"what": "update", "federation": "guild", "round": 1, "bytes": 40, "norm-sent": 0.5}


def test_the_ledger_shows_what_left_and_names_the_tensors(home: Home) -> None:
    assert data(home, "ledger") == {"entries": []}
    Ledger(home.ledger_file).append(JOINED)
    Ledger(home.ledger_file).append({**UPDATE, "sha256": "ab" * 32, "tensors": ["stem.weight"]})
    Ledger(home.ledger_file).append(JOINED)

    assert [entry["what"] for entry in data(home, "ledger")["entries"]] == ["joined", "update", "joined"]
    said = run(home, "ledger").stdout
    assert "when" in said
    assert "joined" in said
    assert "stem.weight" in said
    assert data(home, "status")["updates_sent"] == 1


def test_a_ledger_without_updates_says_nothing_of_tensors(home: Home) -> None:
    Ledger(home.ledger_file).append(JOINED)

    said = run(home, "ledger")

    assert (said.exit_code, "joined" in said.stdout, "tensors" in said.stdout) == (0, True, False)


def test_a_broken_ledger_is_told(home: Home) -> None:
    for _ in range(2):
        Ledger(home.ledger_file).append(JOINED)
    home.ledger_file.write_bytes(home.ledger_file.read_bytes().replace(b"Ada", b"Eva", 1))

    for question in (["ledger"], ["ledger", "--verify"]):
        assert_refused(home, question, 7, "integrity", "the ledger was changed at line")


def test_status_says_how_the_machine_stands(home: Home, world: VerifiedRelease) -> None:
    said = data(home, "status")

    assert (said["artist"], said["works"], said["styles"], said["federation"]) == ("Ada", 0, [], None)
    assert said["release"]["body"] == world.manifest.body
    assert "Ada" in run(home, "status").stdout


def test_a_policy_is_read_and_then_agreed_to(home: Home) -> None:
    signed = simulators.POLICY
    consent.keep_offered(simulators.trusting(home), signed.raw, signed.signatures)
    assert_refused(home, ["policy", "accept"], 5, "no-consent", "have not read the policy")

    spoken = " ".join(run(home, "policy", "show").stdout.split())
    assert "Your works and your style code stay on your machine." in spoken
    assert "You have not agreed to it." in spoken
    assert data(home, "policy", "accept")["version"] == 1
    assert data(home, "policy", "show")["accepted"] is True
    assert "You have agreed to it." in run(home, "policy", "show").stdout


def test_a_machine_that_was_offered_no_policy_says_so(home: Home) -> None:
    assert_refused(home, ["policy", "show"], 5, "no-consent", "no policy was offered yet")


def test_the_ledger_is_verified_alone(home: Home) -> None:
    Ledger(home.ledger_file).append({"what": "update", "round": 1})

    found = data(home, "ledger", "--verify")
    assert found == {"lines": 1, "head": Ledger(home.ledger_file).head()}
    assert found["head"] in run(home, "ledger", "--verify").stdout


def test_a_ledger_that_was_never_written_is_unbroken(home: Home) -> None:
    assert data(home, "ledger", "--verify") == {"lines": 0, "head": "0" * 64}


def test_a_policy_that_came_after_the_reading_is_read_before_it_is_agreed_to(home: Home) -> None:
    later = simulators.policy_with(version=2, steps=3)
    simulators.agreeing(simulators.trusting(home))
    consent.keep_offered(home, later.raw, later.signatures)

    assert_refused(home, ["policy", "accept"], 5, "no-consent", "have not read the policy")
    shown = data(home, "policy", "show")
    assert (shown["digest"], shown["accepted"], shown["accepted_before"]) == (later.digest, False, 1)
    assert data(home, "policy", "accept") == {"version": 2, "digest": later.digest}


def test_joining_says_whom_one_joined(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    member = Membership("guild", "Ada", "artist", "1", "127.0.0.1", 9, "012 345")
    monkeypatch.setattr(membership, "join", lambda _home, _invite: member)

    assert data(home, "join", INVITE)["federation"] == "guild"
    spoken = " ".join(run(home, "join", INVITE).stdout.split())
    assert "Joined guild as Ada." in spoken
    assert "012 345" in spoken


@pytest.mark.parametrize(
    "error",
    [
        NoWorksError("there is no work to learn from in /secret", advice="Add works."),
        IntegrityError("the files of style 'ada' are damaged", advice="Learn it anew."),
        DivergedError("the loss of step 3 is not a finite number"),
        FoldError("a norm does not follow a convolution"),
    ],
)
def test_one_style_that_cannot_be_renewed_does_not_keep_the_others(
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    world: VerifiedRelease,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    tried: list[str] = []

    def renew(_home: Home, name: str, _source: VerifiedRelease) -> None:
        tried.append(name)
        if name == "ada":
            raise error

    monkeypatch.setattr(train, "renew", renew)
    monkeypatch.setattr(styles, "names", lambda _home: ["sea", "sky"])

    assert run(home, "renew").exit_code == 0
    assert tried == ["ada", "sea", "sky"]
    assert node.renewed_for(home) == world.manifest.body
    assert "style ada: kept as it was" in caplog.text
    assert "/secret" not in caplog.text


def test_a_release_that_comes_during_a_renewal_is_not_noted_as_tried(
    home: Home, world: VerifiedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulators.trusting(home)
    simulators.release_again(world, tmp_path / "one", body="1" * 64)
    first = releases.install(home, tmp_path / "one")
    fitted_to: list[str] = []

    def renew(_home: Home, name: str, source: VerifiedRelease) -> None:
        fitted_to.append(source.manifest.body)
        if name == home.config().style:
            simulators.release_again(world, tmp_path / "two", body="2" * 64, version=2)
            releases.install(home, tmp_path / "two")

    monkeypatch.setattr(train, "renew", renew)
    monkeypatch.setattr(styles, "names", lambda _home: ["sea"])

    assert run(home, "renew").exit_code == 0
    assert releases.current(home).manifest.version == 2
    assert fitted_to == [first.manifest.body] * 2
    assert node.renewed_for(home) == first.manifest.body


def test_a_full_disk_ends_a_renewal_that_is_then_tried_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_home: Home, _name: str, _source: VerifiedRelease) -> None:
        raise ResourceError("sea could not be written", advice="Free some disk space.")

    monkeypatch.setattr(train, "renew", full)

    assert run(home, "renew").exit_code == 6
    assert node.renewed_for(home) == ""


# --- Refusals, one for each exit code ----------------------------------------------------------------------------------


def test_2_what_was_typed_is_wrong(home: Home, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(pictures.encoded(pictures.shapes((70, 90)), "PNG"))
    painting = ["paint", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out.png"), "--style"]

    assert_refused(home, [*painting, "see"], 2, "unknown-style", "there is no style 'see'")
    assert_refused(home, [*painting, "a=b"], 2, "usage", "names no style or mix")
    assert_refused(home, [*painting, "a", "--precision", "fp8"], 2, "usage", "no precision 'fp8'")
    assert_refused(home, ["paint", "gone.png", "-o", "o.png", "--style", "a"], 2, "bad-picture", "gone.png cannot be opened")
    assert_refused(home, ["join", "hello"], 2, "invite-mistyped", "has a typing error")
    assert_refused(home, ["join", INVITE, "--at", "nowhere"], 2, "invite-mistyped", "names no address")
    assert_refused(home, ["learn", str(tmp_path), "--style", "../x"], 2, "usage", "cannot be the name of a style")
    assert_refused(home, ["release", "rollback"], 2, "usage", "no earlier release")
    assert_refused(home, ["release", "verify", str(tmp_path / "gone")], 2, "usage", "there is no release folder")


def test_3_something_has_to_be_set_up_first(home: Home, tmp_path: Path) -> None:
    nowhere = Home(tmp_path / "nowhere")

    assert_refused(nowhere, ["status"], 3, "no-home", "there is no Sfumato in")
    assert_refused(home, ["up"], 3, "not-joined", "joined no federation")
    (tmp_path / "empty").mkdir()
    assert_refused(home, ["works", "add", str(tmp_path / "empty")], 3, "no-works", "holds no work")
    home.config_file.write_text("artist = 3\n")
    assert_refused(home, ["styles"], 3, "not-configured", "artist = 3")


def test_3_a_code_alone_where_nobody_is_looked_for(home: Home) -> None:
    settings.save(home.config_file, replace(home.config(), discovery=False))

    assert_refused(home, ["join", INVITE.partition("@")[0]], 3, "not-configured", "does not look for coordinators")


def test_4_nobody_answers(home: Home) -> None:
    invite = str(Invite(b"f" * 16, b"s" * 10, "127.0.0.1", free_port()))
    place = f"127.0.0.1:{free_port()}"

    assert_refused(home, ["join", invite], 4, "no-coordinator", "nobody answers at")
    assert_refused(home, ["join", invite.partition("@")[0], "--at", place], 4, "no-coordinator", f"nobody answers at {place}")
    assert_refused(home, ["join", INVITE, "--at", place], 4, "no-coordinator", f"nobody answers at {place}")


def test_following_a_coordinator_says_where_it_answers_now(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(home, ["move", "127.0.0.1:9"], 3, "not-joined", "joined no federation")
    assert_refused(home, ["move", "127.0.0.1"], 2, "invite-mistyped", "names no address")
    monkeypatch.setattr(
        membership, "move", lambda _home, host, port: Membership("guild", "Ada", "artist", "1", host, port, "012 345")
    )

    assert data(home, "move", "10.0.0.7:9")["host"] == "10.0.0.7"
    assert "guild answers at 10.0.0.7:9" in " ".join(run(home, "move", "10.0.0.7:9").stdout.split())


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


def test_a_real_process_tells_a_machine_of_its_usage_errors_too(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "edge_node", "paint", "--json", "--home", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (ran.returncode, ran.stderr) == (2, "")
    assert json.loads(ran.stdout)["error"]["code"] == "usage"
