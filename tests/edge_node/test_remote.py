"""Talking to a coordinator: who answers is checked before anything is said, and every answer is bounded."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import coordinator.config
from coordinator import pki
from edge_node import remote
from edge_node.errors import (
    JoinRefusedError,
    MembershipEndedError,
    NoCoordinatorError,
    NotAMemberError,
    WrongCoordinatorError,
)
from edge_node.remote import Offer, Remote, Verdict
from export import requests
from export.errors import IntegrityError, RefusedError
from export.invite import Invite
from export.processes import free_port
from tests import simulators
from tests.simulators import CoordinatorHome, FakeCoordinator

SECRET = b"ten bytes!"
ADA = simulators.credentials("Ada")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorHome:
    """A coordinator's keys and nothing else."""
    home = coordinator.config.Home(tmp_path_factory.mktemp("hub"))
    pki.create(home, "127.0.0.1")
    return home


@pytest.fixture
def fake(hub: CoordinatorHome) -> FakeCoordinator:
    return FakeCoordinator({"/sfumato/v1/ca": (200, hub.ca_certificate.read_bytes())})


@pytest.fixture
def port(hub: CoordinatorHome, fake: FakeCoordinator) -> Iterator[int]:
    with simulators.serve(fake, hub.server_certificate, hub.server_key) as port:
        yield port


@pytest.fixture
def known(hub: CoordinatorHome, port: int) -> Remote:
    """The coordinator as a member knows it."""
    return Remote("127.0.0.1", port, hub.ca_certificate.read_text(), ADA.sign)


def invited(hub: CoordinatorHome, port: int) -> Invite:
    made = Invite.new(pki.ca_der(hub), "127.0.0.1", port)
    return Invite(made.fingerprint, SECRET, made.host, made.port)


# --- Meeting -----------------------------------------------------------------------------------------------------------


def test_whoever_shows_the_invited_certificate_is_met_and_asked_for_nothing_else(
    hub: CoordinatorHome, port: int, fake: FakeCoordinator
) -> None:
    met = remote.meet(invited(hub, port))

    assert met == Remote("127.0.0.1", port, hub.ca_certificate.read_text())
    assert [(method, path, body) for method, path, body in fake.received] == [("GET", "/sfumato/v1/ca", b"")]


def test_another_coordinator_is_not_sent_the_secret(port: int, fake: FakeCoordinator, tmp_path: Path) -> None:
    other = coordinator.config.Home(tmp_path)
    pki.create(other, "127.0.0.1")

    with pytest.raises(WrongCoordinatorError, match="is not the coordinator who invited you") as caught:
        remote.meet(invited(other, port))

    assert "Nothing was sent" in caught.value.advice
    assert len(fake.received) == 1
    assert SECRET not in fake.everything()


def test_one_who_shows_the_invited_certificate_without_its_key_is_not_sent_the_secret(
    hub: CoordinatorHome, tmp_path: Path
) -> None:
    # An impostor who copied the public certificate of the authority: the meeting is passed, the join is not.
    impostor = coordinator.config.Home(tmp_path)
    pki.create(impostor, "127.0.0.1")
    fake = FakeCoordinator({"/sfumato/v1/ca": (200, hub.ca_certificate.read_bytes())})
    with simulators.serve(fake, impostor.server_certificate, impostor.server_key) as port:
        met = remote.meet(invited(hub, port))
        with pytest.raises(WrongCoordinatorError, match="cannot prove to be the coordinator"):
            replace(met, sign=ADA.sign).join(SECRET, ADA.keys, ADA.proofs)

    assert [path for _, path, _ in fake.received] == ["/sfumato/v1/ca"]
    assert SECRET not in fake.everything()
    assert ADA.keys.flower.encode() not in fake.everything()


def test_a_certificate_for_another_address_is_not_believed(tmp_path: Path) -> None:
    elsewhere = coordinator.config.Home(tmp_path)
    pki.create(elsewhere, "gallery.example")
    fake = FakeCoordinator()
    with simulators.serve(fake, elsewhere.server_certificate, elsewhere.server_key) as port:
        # 127.0.0.2 is this machine too, but no name of the certificate.
        member = Remote("127.0.0.2", port, elsewhere.ca_certificate.read_text(), ADA.sign)
        with pytest.raises((WrongCoordinatorError, NoCoordinatorError)):
            member.join(SECRET, ADA.keys, ADA.proofs)

    assert fake.received == []


def test_the_true_coordinator_is_sent_the_secret(known: Remote, fake: FakeCoordinator) -> None:
    # The positive control: had the secret been sent in the tests above, it would have been seen.
    fake.answers["/sfumato/v1/join"] = (200, b'{"alias": "Ada"}')

    assert known.join(SECRET, ADA.keys, ADA.proofs) == {"alias": "Ada"}
    (_, path, body) = fake.received[-1]
    assert path == "/sfumato/v1/join"
    assert json.loads(body) == {
        "secret": "dGVuIGJ5dGVzIQ==",
        "keys": ADA.keys.to_plain(),
        "proofs": ADA.proofs.to_plain(),
    }
    claim = requests.claim_of(fake.headers[-1])
    assert claim is not None
    assert requests.is_signed(requests.Request("POST", path, body), claim, ADA.keys.enrolled)


@pytest.mark.parametrize(
    "answer", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff\xfe", b"hello"]
)
def test_what_is_no_certificate_is_not_believed(hub: CoordinatorHome, port: int, fake: FakeCoordinator, answer: bytes) -> None:
    fake.answers["/sfumato/v1/ca"] = (200, answer)

    with pytest.raises(WrongCoordinatorError):
        remote.meet(invited(hub, port))

    assert SECRET not in fake.everything()


# --- Nobody there ------------------------------------------------------------------------------------------------------


def test_nobody_at_the_address_is_told_with_what_to_check(hub: CoordinatorHome) -> None:
    port = free_port()

    with pytest.raises(NoCoordinatorError, match=f"nobody answers at 127.0.0.1:{port}") as caught:
        remote.meet(invited(hub, port))

    assert "whether the coordinator is running" in caught.value.advice


def test_one_who_speaks_no_tls_is_nobody(hub: CoordinatorHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        _answer_once(listener, b"HTTP/1.1 200 OK\r\n\r\n")
        with pytest.raises(NoCoordinatorError):
            remote.meet(invited(hub, port))


def test_one_who_takes_too_long_is_nobody(hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_TIMEOUT_S", 0.2)
    # It accepts, and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(NoCoordinatorError):
        remote.meet(invited(hub, listener.getsockname()[1]))


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(None, id="in a TLS record of 16 kB"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Endless: ", id="in headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", id="in the body"),
        # http.client closes its end of such a connection before the body is read.
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", id="in the body of the last answer"),
    ],
)
def test_one_who_drips_bytes_for_ever_is_cut_off(
    hub: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, first: bytes | None
) -> None:
    # Each byte comes well within the wait for the next bytes; only the total ends it.
    monkeypatch.setattr(remote, "_ANSWER_S", 0.5)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(hub.server_certificate, hub.server_key)
    over = threading.Event()
    deadline = time.monotonic() + 30  # should it not be cut off, the test fails instead of hanging

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        line = connection if first is None else context.wrap_socket(connection, server_side=True)
        with line, suppress(OSError):
            line.sendall(b"\x16\x03\x03\x40\x00" if first is None else first)
            while not over.wait(0.02) and time.monotonic() < deadline:
                line.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        with pytest.raises(NoCoordinatorError, match="nobody answers"):
            remote.meet(invited(hub, listener.getsockname()[1]))
        over.set()
        thread.join()


def _answer_once(listener: socket.socket, data: bytes) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(data)

    threading.Thread(target=answer, daemon=True).start()


# --- Answers -----------------------------------------------------------------------------------------------------------


def test_the_newest_release_is_read(known: Remote, fake: FakeCoordinator) -> None:
    plain = {"version": 3, "files": ["body.safetensors", "works/a.jpg"], "round_running": True, "time": 1e9}
    plain |= {"policy": "ab" * 32, "answers": [{"round": 2, "accepted": False, "reason": "payload", "advice": "Update."}]}
    plain |= {"online": True}
    fake.answers["/sfumato/v1/release"] = (200, json.dumps(plain).encode())

    assert known.newest() == Offer(
        version=3,
        files=("body.safetensors", "works/a.jpg"),
        is_round_running=True,
        time_s=1e9,
        policy="ab" * 32,
        verdicts=(Verdict(2, accepted=False, reason="payload", advice="Update."),),
        is_seen=True,
    )


NONSENSE = [
    b"",
    b"\xff",
    b"[]",
    b"3",
    b"null",
    b"{}",
    b'{"version": "x", "files": [], "round_running": false, "time": 1e9, "policy": "", "answers": [], "online": null}',
    b'{"version": 3, "files": "body", "round_running": false, "time": 1e9, "policy": "", "answers": [], "online": null}',
    b'{"version": 3, "files": []}',
    b'{"version": 3, "files": [], "round_running": false}',
    b'{"version": 3, "files": [], "round_running": false, "time": "noon"}',
    b'{"version": 3, "files": [], "round_running": false, "time": 1e9, "answers": []}',
    b'{"version": 3, "files": [], "round_running": false, "time": 1e9, "policy": "", "answers": {}, "online": null}',
    b'{"version": 3, "files": [], "round_running": false, "time": 1e9, "policy": "", "answers": [], "online": 1}',
    b'{"version": 3, "files": [], "round_running": false, "time": 1e9, "policy": "", "answers": [3]}',
    b'{"version": 3, "files": [], "round_running": false, "time": 1e9, "policy": "", "answers": [{"round": 1}]}',
    b'{"version": null, "files": [], "round_running": false, "time": 1e9, "policy": "", "answers": [], "online": null}',
    b"[" * 5000,
    b'{"version": 1e999, "files": [], "round_running": false, "time": 1e9, "policy": "", "answers": [], "online": null}',
]


@pytest.mark.parametrize("answer", NONSENSE)
def test_nonsense_is_called_so(known: Remote, fake: FakeCoordinator, answer: bytes) -> None:
    fake.answers["/sfumato/v1/release"] = (200, answer)

    with pytest.raises(IntegrityError, match="makes no sense") as caught:
        known.newest()

    assert "Update Sfumato" in caught.value.advice


@pytest.mark.parametrize(("surplus", "is_read"), [(-1, True), (0, True), (1, False)])
def test_an_answer_is_read_up_to_its_limit(known: Remote, fake: FakeCoordinator, surplus: int, *, is_read: bool) -> None:
    fake.answers["/sfumato/v1/releases/3/body.safetensors"] = (200, bytes(1000 + surplus))

    if is_read:
        assert len(known.file(3, "body.safetensors", 1000)) == 1000 + surplus
    else:
        with pytest.raises(IntegrityError, match="makes no sense"):
            known.file(3, "body.safetensors", 1000)


def test_an_endless_answer_is_not_read_to_its_end(known: Remote, fake: FakeCoordinator) -> None:
    fake.answers["/sfumato/v1/release"] = (200, b" " * (300 * 2**10))

    with pytest.raises(IntegrityError, match="makes no sense"):
        known.newest()


def test_a_refusal_is_told_in_the_coordinators_words(known: Remote, fake: FakeCoordinator) -> None:
    said = {"error": "that invite has been used already", "advice": "Ask for a new one."}
    fake.answers["/sfumato/v1/join"] = (403, json.dumps(said).encode())

    with pytest.raises(JoinRefusedError, match="used already") as caught:
        known.join(SECRET, ADA.keys, ADA.proofs)

    assert caught.value.advice == "Ask for a new one."


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not-a-member", NotAMemberError),
        ("membership-ended", MembershipEndedError),
        ("invite-refused", JoinRefusedError),
        ("anything", JoinRefusedError),
        ([], JoinRefusedError),
    ],
)
def test_a_refusal_is_told_by_its_kind(known: Remote, fake: FakeCoordinator, code: object, kind: type[RefusedError]) -> None:
    said = {"error": "no", "advice": "Ask.", "code": code}
    fake.answers["/sfumato/v1/release"] = (403, json.dumps(said).encode())

    with pytest.raises(RefusedError) as caught:
        known.newest()

    assert type(caught.value) is kind


def test_the_time_is_asked_for_without_saying_who_asks(known: Remote, fake: FakeCoordinator) -> None:
    fake.answers["/sfumato/v1/time"] = (200, b'{"time": 1700000000.0}')

    assert 1_700_000_000.0 <= known.time_s() < 1_700_000_060.0
    assert requests.claim_of(fake.headers[-1]) is None


@pytest.mark.parametrize("answer", [b"{}", b'{"time": "noon"}', b"[]", b'{"time": null}', b'{"time": 1%s}' % (b"0" * 400)])
def test_what_is_no_time_is_not_believed(known: Remote, fake: FakeCoordinator, answer: bytes) -> None:
    fake.answers["/sfumato/v1/time"] = (200, answer)

    with pytest.raises(IntegrityError, match="makes no sense"):
        known.time_s()


def test_a_refusals_words_are_cut_short(known: Remote, fake: FakeCoordinator) -> None:
    fake.answers["/sfumato/v1/join"] = (403, json.dumps({"error": "no" * 5000, "advice": "a" * 5000}).encode())

    with pytest.raises(JoinRefusedError) as caught:
        known.join(SECRET, ADA.keys, ADA.proofs)

    assert (len(str(caught.value)), len(caught.value.advice)) == (300, 300)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_another_failure_is_told_as_the_coordinators(known: Remote, fake: FakeCoordinator, status: int) -> None:
    fake.answers["/sfumato/v1/release"] = (status, b'{"error": "the coordinator failed"}')

    with pytest.raises(IntegrityError, match="the coordinator answered: the coordinator failed") as caught:
        known.newest()

    assert caught.value.advice


@pytest.mark.parametrize(
    ("body", "said"), [(b'{"error": "it is starting", "advice": "Wait."}', "it is starting"), (b"Unavailable", "not now")]
)
def test_a_coordinator_that_is_busy_is_told_as_one_that_does_not_answer(
    known: Remote, fake: FakeCoordinator, body: bytes, said: str
) -> None:
    fake.answers["/sfumato/v1/release"] = (503, body)

    with pytest.raises(NoCoordinatorError, match=f"the coordinator answered: {said}") as caught:
        known.newest()

    assert caught.value.advice


def test_a_refusals_words_cannot_steer_the_terminal(known: Remote, fake: FakeCoordinator) -> None:
    said = {"error": "no\x1b[2J\r\nway\u202e", "advice": "\x07ask"}
    fake.answers["/sfumato/v1/join"] = (403, json.dumps(said).encode())

    with pytest.raises(JoinRefusedError) as caught:
        known.join(SECRET, ADA.keys, ADA.proofs)

    assert (str(caught.value), caught.value.advice) == ("no[2Jway", "ask")


@pytest.mark.parametrize("status", [302, 403, 404, 500, 503])
def test_a_strangers_words_are_not_shown(hub: CoordinatorHome, port: int, fake: FakeCoordinator, status: int) -> None:
    fake.answers["/sfumato/v1/ca"] = (status, b'{"error": "pay me first", "advice": "Send money."}')

    with pytest.raises(WrongCoordinatorError) as caught:
        remote.meet(invited(hub, port))

    assert "pay me" not in str(caught.value)
    assert "money" not in caught.value.advice


@pytest.mark.parametrize(("status", "body"), [(500, b"Internal Server Error"), (403, b"[]"), (302, b"")])
def test_a_failure_without_words_is_nonsense(known: Remote, fake: FakeCoordinator, status: int, body: bytes) -> None:
    fake.answers["/sfumato/v1/release"] = (status, body)

    with pytest.raises(IntegrityError, match="makes no sense"):
        known.newest()


def test_a_damaged_authority_is_told(port: int) -> None:
    with pytest.raises(IntegrityError, match="makes no sense"):
        Remote("127.0.0.1", port, "not a certificate").newest()
