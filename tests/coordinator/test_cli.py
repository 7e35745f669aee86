"""The `sfumato-coordinator` command line: help everywhere, one object for machines, advice and an exit code for people."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from coordinator import __main__ as program
from coordinator import pki, publish, service
from coordinator.config import Home
from coordinator.gate import Candidate
from coordinator.store import Answer, Store
from export import release
from export.invite import Invite
from export.signing import VerifiedRelease
from tests import releases, simulators
from tests.command_line import CommandLine
from tests.simulators import CoordinatorHome

CLI: Final = CommandLine(program.app)
run, data, assert_refused = CLI.run, CLI.data, CLI.assert_refused


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    del world
    return simulators.make_coordinator(tmp_path / "hub", port=4433)


@pytest.fixture
def second(hub: CoordinatorHome) -> VerifiedRelease:
    """A release 2 that carries a verdict."""
    current = publish.current_release(hub)
    body = release.body_of(current)
    candidate = Candidate(body, b"a graph", release.codes_of(current), releases.VERDICT, ())
    return publish.publish(hub, current, candidate, 1, 3)


@pytest.mark.usefixtures("world")
def test_init_sets_a_coordinator_up_once(tmp_path: Path) -> None:
    home = Home(tmp_path / "hub")

    assert data(home, "init", "guild") == {"home": str(home.root), "name": "guild"}
    assert publish.current_release(home).manifest.federation == "guild"
    assert_refused(home, ["init", "guild"], 2, "usage", "there is a coordinator in")


def test_an_invite_is_printed_alone_so_that_it_can_be_piped(hub: CoordinatorHome) -> None:
    spoken = run(hub, "invite", "Ada", "--role", "gallery", "--expires", "12h")
    plain = data(hub, "invite", "Berthe")

    assert Invite.parse(spoken.stdout.strip()).port == 4433
    assert (plain["name"], plain["role"]) == ("Berthe", "artist")
    assert Invite.parse(plain["invite"]).secret != Invite.parse(spoken.stdout.strip()).secret


@pytest.mark.parametrize(("text", "seconds"), [("7d", 604800.0), ("12h", 43200.0), ("30m", 1800.0), (" 1d ", 86400.0)])
def test_how_long_an_invite_lasts_is_read(text: str, seconds: float) -> None:
    assert program._seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "0d", "-1d", "7w", "7 days", "99999d", "1.5h"])
def test_what_is_no_time_is_refused(hub: CoordinatorHome, text: str) -> None:
    assert_refused(hub, ["invite", "Ada", f"--expires={text}"], 2, "usage", "is not a time")


def test_the_members_are_listed_and_offline_while_nothing_runs(hub: CoordinatorHome) -> None:
    simulators.enrol(hub, 2**64 - 1)

    (node,) = data(hub, "nodes")["nodes"]

    assert (node["alias"], node["node_id"], node["online"]) == (f"artist-{2**64 - 1}", str(2**64 - 1), False)
    assert "offline" in run(hub, "nodes").stdout


def test_the_list_shows_six_digits_and_who_was_invited(hub: CoordinatorHome) -> None:
    simulators.enrol(hub, 1)
    run(hub, "invite", "Berthe", "--role", "gallery")

    said = data(hub, "nodes")
    spoken = run(hub, "nodes").stdout

    assert said["nodes"][0]["digits"] == pki.digits(hub, simulators.credentials("key-1").keys)
    assert said["nodes"][0]["digits"] in spoken
    assert [(i["alias"], i["role"]) for i in said["invites"]] == [("Berthe", "gallery")]
    assert "invited" in spoken


def test_a_membership_is_ended(hub: CoordinatorHome) -> None:
    simulators.enrol(hub, 1, 2)

    assert data(hub, "nodes", "revoke", "artist-1") == {"alias": "artist-1", "node_id": "1"}
    assert "The membership of artist-2 has ended." in run(hub, "nodes", "revoke", "2").stdout
    assert [node["state"] for node in data(hub, "nodes")["nodes"]] == ["revoked", "revoked"]
    assert_refused(hub, ["nodes", "revoke", "artist-1"], 2, "usage", "there is no member called 'artist-1'")


def test_an_invite_is_taken_back(hub: CoordinatorHome) -> None:
    run(hub, "invite", "Ada")

    assert data(hub, "invite", "Ada", "--revoke") == {"revoked": 1}
    assert data(hub, "nodes")["invites"] == []
    assert_refused(hub, ["invite", "Ada", "--revoke"], 2, "usage", "there is no unused invite")


def test_an_invite_is_also_a_qr_code_on_the_terminal_and_in_a_file(hub: CoordinatorHome, tmp_path: Path) -> None:
    spoken = run(hub, "invite", "Ada", "--qr", str(tmp_path / "invite.svg"))

    assert "█" in spoken.stderr
    assert "█" not in spoken.stdout
    assert (tmp_path / "invite.svg").stat().st_mode & 0o077 == 0


def test_releases_are_listed_shown_and_published_again(hub: CoordinatorHome, second: VerifiedRelease) -> None:
    assert [(r["version"], r["current"]) for r in data(hub, "release", "list")["releases"]] == [(1, False), (2, True)]
    shown = data(hub, "release", "show")
    assert shown["version"] == 2
    assert shown["card"] == second.read(release.CARD).decode()
    assert data(hub, "release", "show", "1")["verdict"] is None
    assert "# guild: style-studio" in run(hub, "release", "show").stdout

    assert data(hub, "release", "publish", "2")["version"] == 3
    assert "Release 2 is served again, as 4." in run(hub, "release", "publish", "2").stdout


def test_going_back_is_one_command(hub: CoordinatorHome, second: VerifiedRelease) -> None:
    assert second.manifest.parent == publish.open_release(hub, 1).manifest.body

    assert data(hub, "release", "rollback")["version"] == 3
    assert_refused(hub, ["release", "rollback"], 2, "usage", "no release to go back to")


def test_the_policy_is_shown_in_words_and_published_when_it_was_changed(hub: CoordinatorHome) -> None:
    before = data(hub, "policy", "show")
    hub.policy_file.write_text(hub.policy_file.read_text().replace("minimum_nodes = 2", "minimum_nodes = 4"))

    published = data(hub, "policy", "publish")

    assert published["policy"]["version"] == before["policy"]["version"] + 1
    assert "Fewer than 4 artists' updates" in " ".join(run(hub, "policy", "show").stdout.split())
    assert "holds" in run(hub, "policy", "publish").stdout
    hub.policy_file.write_text("surprise = 1\n")
    assert_refused(hub, ["policy", "publish"], 3, "not-configured", "unknown key 'surprise'")


def test_the_ledger_is_checked_without_a_running_coordinator(hub: CoordinatorHome) -> None:
    found = data(hub, "ledger", "verify")
    assert found["lines"] == len(hub.ledger_file.read_bytes().splitlines())
    assert found["head"] in run(hub, "ledger", "verify").stdout

    lines = hub.ledger_file.read_bytes().splitlines(keepends=True)
    hub.ledger_file.write_bytes(b"".join([lines[0].replace(b"published", b"Published"), *lines[1:]]))
    assert_refused(hub, ["ledger", "verify"], 7, "integrity", "the ledger was changed at line")


def test_a_coordinator_is_backed_up_and_restored(hub: CoordinatorHome, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar.gz"

    assert data(hub, "backup", str(file))["bytes"] == file.stat().st_size
    again = Home(tmp_path / "again")
    assert data(again, "restore", str(file))["home"] == str(again.root)
    assert data(again, "status")["name"] == "guild"
    assert_refused(again, ["restore", str(file)], 2, "usage", "is not empty")


def test_status_says_how_the_coordinator_stands(hub: CoordinatorHome) -> None:
    said = data(hub, "status")

    assert (said["name"], said["running"], said["nodes"], said["release"], said["rounds"]) == ("guild", False, 0, 1, [])
    assert "guild" in run(hub, "status").stdout


def held(hub: CoordinatorHome, state: str) -> None:
    store = Store(hub.database)
    number = simulators.open_round(store)
    simulators.enrol(hub, 1, 2)
    store.add_answer(number, Answer(1, True, "", 4096, 0.5, 2.0, 1.0, 20, 3.5, "d" * 64))  # noqa: FBT003 - as stored
    store.add_answer(number, Answer(2, False, "not-finite", 4096, None, None, None, None, 3.5, None))  # noqa: FBT003
    store.set_round(number, state, "so it went", 9.0)  # type: ignore[arg-type]


def test_a_rounds_outcome_is_told_node_by_node(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    held(hub, "published")
    monkeypatch.setattr(service, "hold_rounds", lambda *_: [1])

    (round_,) = data(hub, "round")["rounds"]
    spoken = " ".join(run(hub, "round").stdout.split())

    assert (round_["state"], round_["seconds"]) == ("published", 9.0)
    assert [(a["node"], a["accepted"], a["reason"]) for a in round_["answers"]] == [
        ("artist-1", True, ""),
        ("artist-2", False, "not-finite"),
    ]
    assert "artist-1: accepted, 4096 bytes, loss 2.000 → 1.000" in spoken
    assert "artist-2: not counted: not-finite" in spoken


@pytest.mark.parametrize(("state", "exit_code", "code"), [("refused", 5, "gate-refused"), ("failed", 1, "failed")])
def test_rounds_that_lead_to_no_release_are_one_error_and_tell_people_of_each_node_first(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, state: str, exit_code: int, code: str
) -> None:
    held(hub, state)
    monkeypatch.setattr(service, "hold_rounds", lambda *_: [1])

    spoken, plain = run(hub, "round"), run(hub, "round", as_json=True)

    assert (spoken.exit_code, plain.exit_code) == (exit_code, exit_code)
    assert "artist-2: not counted: not-finite" in spoken.stdout
    assert "no round led to a release" in spoken.stderr
    (line,) = plain.stdout.splitlines()
    answer = json.loads(line)
    assert (answer["ok"], answer["error"]["code"]) == (False, code)
    assert f"ended as {state}: so it went" in answer["error"]["message"]


def test_2_what_was_typed_is_wrong(hub: CoordinatorHome) -> None:
    assert_refused(hub, ["invite", "Ada", "--role", "king"], 2, "usage", "there is no role 'king'")
    assert_refused(hub, ["invite", ""], 2, "usage", "cannot be a member's name")
    assert run(hub, "round", "--rounds", "0").exit_code == 2
    assert run(hub, "no-such-command").exit_code == 2


def test_3_there_is_no_coordinator(tmp_path: Path) -> None:
    nowhere = Home(tmp_path / "nowhere")

    for arguments in (["status"], ["nodes"], ["release", "list"], ["round"], ["invite", "Ada"]):
        assert_refused(nowhere, arguments, 3, "no-coordinator", "there is no coordinator in")


def test_4_it_does_not_run(hub: CoordinatorHome) -> None:
    assert_refused(hub, ["round"], 4, "not-running", "the coordinator is not running")


def test_5_the_gate_says_no(hub: CoordinatorHome) -> None:
    assert_refused(hub, ["release", "publish", "1"], 5, "gate-refused", "release 1 carries no verdict")


def test_7_a_release_was_changed(hub: CoordinatorHome) -> None:
    (hub.releases / "1" / "card.md").write_bytes(b"# Another\n")

    assert_refused(hub, ["release", "list"], 7, "integrity", "card.md is not what was signed")
    assert_refused(hub, ["release", "show", "9"], 7, "integrity", "there is no release 9")


def test_a_real_process_ends_with_the_exit_code_and_without_a_traceback(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "coordinator", "status", "--home", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr.splitlines() == [
        f"there is no coordinator in {tmp_path}.",
        "Make one with: sfumato-coordinator init NAME",
    ]
