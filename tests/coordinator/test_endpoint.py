"""What a stranger can make our own endpoint do: join with an invite, read the served release, and nothing else."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import endpoint, publish, service
from coordinator.endpoint import create_endpoint
from coordinator.errors import JoinRefusedError
from coordinator.flower import FlowerUnavailable
from coordinator.store import Role, Store
from export.errors import (
    IntegrityError,
    NotConfiguredError,
    RefusedError,
    ResourceError,
    SfumatoError,
    UsageError,
)
from export.invite import Invite
from export.ledger import Ledger
from export.signing import MANIFEST, SIGNATURES, Trust, VerifiedRelease
from tests import simulators
from tests.simulators import Asgi, CoordinatorHome, Registry, Reply, ask

PREFIX = "/sfumato/v1"
KEY = "ecdsa-sha2-nistp384 AAAA"


@pytest.fixture
def hub(tmp_path: Path, world: VerifiedRelease) -> CoordinatorHome:
    del world
    return simulators.make_coordinator(tmp_path / "hub", port=1)


@pytest.fixture
def flower() -> Registry:
    return Registry()


@pytest.fixture
def client(hub: CoordinatorHome, flower: Registry) -> Asgi:
    return create_endpoint(hub, flower)


def invite(hub: CoordinatorHome, alias: str = "Ada", role: Role = "artist") -> bytes:
    return Invite.parse(service.invite(hub, alias, role, 3600.0)).secret


def joining(secret: bytes, key: str = KEY) -> bytes:
    return json.dumps({"secret": base64.b64encode(secret).decode(), "flower_key": key}).encode()


def join(client: Asgi, body: bytes) -> Reply:
    return ask(client, "POST", f"{PREFIX}/join", [body])


# --- Joining -----------------------------------------------------------------------------------------------------------


def test_an_invite_makes_a_member_and_tells_it_whom_to_trust(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    answer = join(client, joining(invite(hub)))

    assert answer.status == 200
    said = answer.json()
    assert (said["alias"], said["role"], said["modality"]) == ("Ada", "artist", "style-studio")
    assert Trust.from_plain(said["trust"]) == Trust.load(hub.trust_file)
    (node,) = Store(hub.database).nodes()
    assert (str(node.node_id), node.public_key) == (said["node_id"], KEY)
    assert flower.keys == {KEY.encode(): node.node_id}
    assert Ledger(hub.ledger_file).entries()[-1]["what"] == "joined"


def test_an_invite_is_good_once(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    secret = invite(hub)
    join(client, joining(secret))

    answer = join(client, joining(secret, "ecdsa-sha2-nistp384 BBBB"))

    assert answer.status == 403
    assert answer.json()["error"] == "that invite has been used already"
    assert answer.json()["advice"]
    assert len(flower.keys) == len(Store(hub.database).nodes()) == 1


def test_an_answer_that_was_lost_is_given_again(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    secret = invite(hub)

    first, second = (join(client, joining(secret)) for _ in range(2))

    assert (second.status, second.json()) == (200, first.json())
    assert len(flower.keys) == len(Store(hub.database).nodes()) == 1
    assert [entry["what"] for entry in Ledger(hub.ledger_file).entries()].count("joined") == 1


def test_flower_is_not_told_of_a_key_whose_owner_chose_a_taken_name(
    hub: CoordinatorHome, client: Asgi, flower: Registry
) -> None:
    first, second = invite(hub, "Ada"), invite(hub, "Ada")
    join(client, joining(first))

    answer = join(client, joining(second, "ecdsa-sha2-nistp384 BBBB"))

    assert (answer.status, answer.json()["error"]) == (
        403,
        "there is a member called 'Ada', or with this machine's key, already",
    )
    assert set(flower.keys) == {KEY.encode()}


def test_a_guessed_secret_joins_nobody(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    invite(hub)

    assert join(client, joining(b"0123456789")).status == 403
    assert flower.keys == {}


def test_an_invite_whose_joining_failed_on_our_side_is_good_again(hub: CoordinatorHome) -> None:
    secret = invite(hub)
    fails = [JoinRefusedError("Flower says no", advice="Try again."), RuntimeError("/home/coordinator/secret")]

    def moody(_key: bytes) -> int:
        if fails:
            raise fails.pop(0)
        return 7

    client = create_endpoint(hub, moody)

    first, second, third = (join(client, joining(secret)) for _ in range(3))
    assert (first.status, first.json()["error"]) == (403, "Flower says no")
    assert (second.status, second.json()) == (500, {"error": "the coordinator failed"})
    assert third.status == 200


def test_a_kill_after_flower_was_told_leaves_the_invite_good(
    hub: CoordinatorHome, client: Asgi, flower: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = invite(hub)

    def kill(*_arguments: object, **_named: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Store, "join", kill)
        with pytest.raises(SystemExit):
            join(client, joining(secret))
    assert list(flower.keys) == [KEY.encode()]

    assert join(client, joining(secret)).json()["node_id"] == str(flower.keys[KEY.encode()])


def test_a_gallery_joins_without_flowers_knowing_of_it(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    said = join(client, joining(invite(hub, "the gallery", "gallery"))).json()

    assert said["role"] == "gallery"
    assert 0 <= int(said["node_id"]) < 2**63
    assert flower.keys == {}


def test_a_newcomer_is_told_of_no_newer_version_than_the_served_one(hub: CoordinatorHome, client: Asgi) -> None:
    Trust.load(hub.trust_file).having_seen(9).save(hub.trust_file)

    said = join(client, joining(invite(hub))).json()

    assert Trust.from_plain(said["trust"]).highest_version == 1


class FailedError(SfumatoError):
    """An error of no known kind."""


@pytest.mark.parametrize(
    ("error", "status", "is_said"),
    [
        (JoinRefusedError("no", advice="why"), 403, True),
        (RefusedError("no", advice="why"), 403, True),
        (UsageError("no", advice="why"), 400, True),
        (FailedError("no", advice="why"), 400, True),
        (IntegrityError("no", advice="why"), 503, True),
        (FlowerUnavailable("/home/secret", advice="why"), 503, False),
        (ResourceError("/home/secret", advice="why"), 503, False),
        (NotConfiguredError("/home/secret", advice="why"), 503, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_went_wrong_is_told_by_its_kind_and_our_own_trouble_without_its_words(
    hub: CoordinatorHome, error: SfumatoError, status: int, *, is_said: bool
) -> None:
    def fail(_key: bytes) -> int:
        raise error

    answer = join(create_endpoint(hub, fail), joining(invite(hub)))

    assert answer.status == status
    assert answer.json()["error"] == ("no" if is_said else "the coordinator cannot answer now")
    assert answer.json()["advice"]
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"secret": "AAAA"}',
        b'{"secret": 3, "flower_key": "k"}',
        b'{"secret": "AAAA", "flower_key": 3}',
        b'{"secret": "AAAA", "flower_key": "k", "role": "coordinator"}',
        b'{"secret": "not base64!", "flower_key": "k"}',
        b'{"secret": "\xc3\xa4", "flower_key": "k"}',
        joining(b"0123456789", "k" * 2049),
        b"[" * 8000,
    ],
)
def test_what_is_no_request_to_join_is_called_so(client: Asgi, body: bytes) -> None:
    answer = join(client, body)

    assert (answer.status, answer.json()["error"]) == (400, "this is not a request to join")


@pytest.mark.parametrize(("length", "error"), [(8192, "this is not a request to join"), (8193, "the request is too large")])
def test_a_body_is_read_up_to_8_kilobytes(client: Asgi, length: int, error: str) -> None:
    answer = join(client, b" " * length)

    assert (answer.status, answer.json()["error"]) == (400, error)


def test_a_body_without_an_end_is_not_read_to_its_end(client: Asgi) -> None:
    given: list[int] = []

    def endless() -> Iterator[bytes]:
        for number in range(1000):
            given.append(number)
            yield b" " * 4096

    assert ask(client, "POST", f"{PREFIX}/join", endless()).json()["error"] == "the request is too large"
    assert given == [0, 1, 2]


# --- Reading -----------------------------------------------------------------------------------------------------------


def test_the_newest_release_is_listed(hub: CoordinatorHome, client: Asgi) -> None:
    said = ask(client, "GET", f"{PREFIX}/release").json()

    assert said == {
        "version": 1,
        "files": sorted(publish.current_release(hub).manifest.files),
        "round_running": False,
    }


@pytest.mark.parametrize(
    ("state", "is_running"),
    [("gathering", True), ("training", True), ("judging", True), ("published", False), ("refused", False), ("failed", False)],
)
def test_a_round_under_way_is_told(hub: CoordinatorHome, client: Asgi, state: str, *, is_running: bool) -> None:
    store = Store(hub.database)
    store.set_round(store.open_round(0.0), state, "", 0.0)  # type: ignore[arg-type]

    assert ask(client, "GET", f"{PREFIX}/release").json()["round_running"] is is_running


def test_a_round_that_ends_while_it_is_asked_about_never_hides_its_release(
    hub: CoordinatorHome, client: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "No round, and the release before it" would have nodes work on a body that was just replaced.
    store = Store(hub.database)
    number = store.open_round(0.0)
    store.set_round(number, "judging", "", 0.0)

    def ends_after_the_look(home: CoordinatorHome) -> VerifiedRelease:
        before = publish.current_release(home)
        store.set_round(number, "published", "", 0.0)
        return before

    monkeypatch.setattr(endpoint, "current_release", ends_after_the_look)

    assert ask(client, "GET", f"{PREFIX}/release").json()["round_running"] is True


def test_every_file_of_a_release_is_served_as_it_was_signed(hub: CoordinatorHome, client: Asgi) -> None:
    release = publish.current_release(hub)

    for path in (*release.manifest.files, MANIFEST, SIGNATURES):
        assert ask(client, "GET", f"{PREFIX}/releases/1/{path}").body == (release.folder / path).read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "1/../../pki/release.key",
        "1/..%2f..%2fpki%2frelease.key",
        "1/%2e%2e/%2e%2e/pki/release.key",
        "1/works/../../../pki/ca.key",
        "1//etc/passwd",
        "1/%2fetc%2fpasswd",
        "1/..\\..\\pki\\release.key",
        "1/body.safetensors%00.jpg",
        "1/",
        "1/.",
        "1/works",
        "1/BODY.safetensors",
        "2/manifest.json",
        "0/manifest.json",
        "999999999999999999999999/manifest.json",
        "1/../1/manifest.json",
    ],
)
def test_a_path_that_is_not_in_the_signed_manifest_is_not_there(client: Asgi, path: str) -> None:
    assert ask(client, "GET", f"{PREFIX}/releases/{path}").status == 404


def test_a_file_changed_on_disk_is_not_served(hub: CoordinatorHome, client: Asgi) -> None:
    (hub.releases / "1" / "card.md").write_bytes(b"# Another\n")

    answer = ask(client, "GET", f"{PREFIX}/releases/1/card.md")

    assert (answer.status, answer.json()) == (404, {"error": "no such release or file"})


def test_a_damaged_release_is_told_as_the_coordinators_trouble(hub: CoordinatorHome, client: Asgi) -> None:
    (hub.releases / "1" / "card.md").write_bytes(b"# Another\n")

    assert ask(client, "GET", f"{PREFIX}/release").status == 503


def test_the_authoritys_certificate_is_there_for_all(hub: CoordinatorHome, client: Asgi) -> None:
    answer = ask(client, "GET", f"{PREFIX}/ca")

    assert answer.body == hub.ca_certificate.read_bytes()
    assert b"PRIVATE" not in answer.body


def test_the_time_is_told(client: Asgi) -> None:
    assert ask(client, "GET", f"{PREFIX}/time").json()["time"] > 1_700_000_000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/join", 405),
        ("PUT", "/join", 405),
        ("DELETE", "/join", 405),
        ("POST", "/release", 405),
        ("POST", "/releases/1/body.safetensors", 405),
        ("DELETE", "/releases/1/body.safetensors", 405),
        ("PUT", "/ca", 405),
        ("GET", "/nodes", 404),
        ("GET", "", 404),
        ("GET", "/releases/one/body.safetensors", 404),
        ("GET", "/releases/-1/body.safetensors", 404),
    ],
)
def test_any_other_method_or_path_is_refused(client: Asgi, method: str, path: str, status: int) -> None:
    assert ask(client, method, f"{PREFIX}{path}").status == status
