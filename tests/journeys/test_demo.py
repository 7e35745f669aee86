"""The demo as a user runs it, watched: its results, its contacts, and what is left of it afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

# Put in front of every Python process of the demo through PYTHONPATH: notes each address that is connected to, sent to or
# looked up. Flower 1.41 and our own code speak HTTP from Python, so nothing they do goes around this.
_WATCH = """
import os, sys
def _note(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        target = args[0] if event.startswith("socket.get") else args[1]
        host = target[0] if isinstance(target, tuple) else target
        line = f"{event} {host!r}\\n".encode()
        fd = os.open(os.environ["SFUMATO_TEST_CONTACTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, line)
        os.close(fd)
sys.addaudithook(_note)
"""
_LOOPBACK = {"'127.0.0.1'", "'localhost'", "'::1'", "b'127.0.0.1'", "None"}


def _watched(folder: Path) -> dict[str, str]:
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(_WATCH)
    return {
        **os.environ,
        "PYTHONPATH": str(folder / "watch"),
        "SFUMATO_TEST_CONTACTS": str(folder / "contacts"),
        "SFUMATO_TEST_MARK": str(folder),
    }


def _contacts(folder: Path) -> set[str]:
    lines = (folder / "contacts").read_text().splitlines() if (folder / "contacts").exists() else []
    return {line.split(" ", 1)[1] for line in lines}


def _marked_processes(folder: Path) -> list[str]:
    """Processes that still carry the demo's environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_the_watch_notices_a_contact_beyond_this_machine(tmp_path: Path) -> None:
    # 192.0.2.1 is reserved for documentation (RFC 5737); a datagram to it arrives nowhere.
    code = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.socket(2, 2).sendto(b'x', ('192.0.2.1', 9))"
    subprocess.run([sys.executable, "-c", code], env=_watched(tmp_path), check=True)
    assert _contacts(tmp_path) - _LOOPBACK == {"'192.0.2.1'"}


@pytest.mark.slow
def test_the_demo_makes_its_results_contacts_nobody_else_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "scripts" / "demonstration.py"), "--rounds", "1", "--out", str(out)]
    done = subprocess.run(command, env=_watched(tmp_path), capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]

    with Image.open(out / "contact-sheet.png") as sheet:
        assert min(sheet.size) > 1000
    report = json.loads((out / "report.json").read_text())
    assert report["rounds"][0]["state"] == "published"
    assert set(report["artists"]) == {"hokusai", "impressionists", "van-gogh"}
    for artist in report["artists"].values():
        assert artist["style_distance"]["after"] < artist["style_distance"]["before"]
        assert not any("codes" in name or "norm" in name for entry in artist["sent"] for name in entry["tensors"])

    contacts = _contacts(tmp_path)
    assert contacts & _LOOPBACK  # the watch was there
    assert contacts <= _LOOPBACK, contacts - _LOOPBACK
    assert _marked_processes(tmp_path) == []


def _demo(folder: Path, *options: str) -> "subprocess.Popen[str]":
    # A shell that runs things in the background has them ignore Ctrl-C; a terminal does not.
    restore: Callable[[], object] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    command = [sys.executable, str(ROOT / "scripts" / "demonstration.py"), "--out", str(folder / "out"), *options]
    return subprocess.Popen(
        command,
        env=_watched(folder) | {"TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore,  # noqa: PLW1509 - no threads here
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_demo_ended_in_mid_round_leaves_no_process_and_no_folder(tmp_path: Path, number: int, code: int) -> None:
    with _demo(tmp_path) as demo:
        assert demo.stderr is not None
        said = next(line for line in demo.stderr if "training" in line)
        assert len(_marked_processes(tmp_path)) > 5, said  # the control: there is something to be left

        os.killpg(demo.pid, number)  # as a terminal does
        rest = demo.stderr.read()

        assert demo.wait(60) == code, rest
    assert "Traceback" not in rest
    assert _marked_processes(tmp_path) == []
    assert not list(tmp_path.glob("sfumato-demo-*"))


@pytest.mark.slow
def test_the_demo_that_fails_says_so_in_a_sentence_and_leaves_no_process(tmp_path: Path) -> None:
    works = tmp_path / "works"
    shutil.copytree(ROOT / "scripts" / "works" / "hokusai", works / "Katsushika Hokusai")
    shutil.copytree(ROOT / "scripts" / "works" / "hokusai", works / "b")
    (works / "c").mkdir()
    (works / "c" / "empty.jpg").write_bytes(b"")

    with _demo(tmp_path, "--works", str(works)) as demo:
        assert demo.stderr is not None
        said = demo.stderr.read()
        assert demo.wait(60) == 1
    assert "holds no work to learn from" in said
    assert "Traceback" not in said
    assert _marked_processes(tmp_path) == []
    assert not list(tmp_path.glob("sfumato-demo-*"))
