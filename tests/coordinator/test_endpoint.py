"""What a stranger can make our own endpoint do: join with an invite, read the served release, and nothing else."""

import base64
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from coordinator import endpoint, enrolment, pki, policies, publish, service
from coordinator.admission import ADVICE
from coordinator.endpoint import create_endpoint
from coordinator.errors import JoinRefusedError
from coordinator.flower import FlowerUnavailable
from coordinator.store import Answer, Node, Role, RoundState, Store
from export import policy, requests
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
from tests.simulators import Asgi, CoordinatorHome, Credentials, Registry, Reply, ask

PREFIX = "/sfumato/v1"
ADA, BERTHE = simulators.credentials("Ada"), simulators.credentials("Berthe")


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


def joining(secret: bytes, who: Credentials = ADA) -> bytes:
    plain = {"secret": base64.b64encode(secret).decode(), "keys": who.keys.to_plain(), "proofs": who.proofs.to_plain()}
    return json.dumps(plain).encode()


def signed(client: Asgi, method: str, path: str, body: bytes = b"", who: Credentials = ADA) -> Reply:
    """A request in somebody's name."""
    headers = who.sign(requests.Request(method, f"{PREFIX}{path}", body))
    return ask(client, method, f"{PREFIX}{path}", [body], headers)


def join(client: Asgi, body: bytes, who: Credentials = ADA) -> Reply:
    return signed(client, "POST", "/join", body, who)


@pytest.fixture
def member(hub: CoordinatorHome, client: Asgi) -> Credentials:
    """Ada, who has joined."""
    assert join(client, joining(invite(hub))).status == 200
    return ADA


# --- Joining -----------------------------------------------------------------------------------------------------------


def test_an_invite_makes_a_member_and_tells_it_whom_to_trust(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    answer = join(client, joining(invite(hub)))

    assert answer.status == 200
    said = answer.json()
    assert (said["alias"], said["role"], said["modality"]) == ("Ada", "artist", "style-studio")
    assert Trust.from_plain(said["trust"]) == Trust.load(hub.trust_file)
    (node,) = Store(hub.database).nodes()
    assert (str(node.node_id), node.keys) == (said["node_id"], ADA.keys)
    assert flower.keys == {ADA.keys.flower.encode(): node.node_id}
    assert abs(said["time"] - time.time()) < 60
    given = x509.load_pem_x509_certificate(said["certificate"].encode())
    assert given.public_key() == x509.load_der_x509_csr(ADA.keys.provenance).public_key()
    assert Ledger(hub.ledger_file).entries()[-1]["what"] == "joined"


def test_an_invite_is_good_once(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    secret = invite(hub)
    join(client, joining(secret))

    answer = join(client, joining(secret, BERTHE), BERTHE)

    assert answer.status == 403
    assert answer.json()["error"] == "that invite has been used already"
    assert answer.json()["advice"]
    assert len(flower.keys) == len(Store(hub.database).nodes()) == 1


def test_an_answer_that_was_lost_is_given_again(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    secret = invite(hub)

    first, second = (join(client, joining(secret)) for _ in range(2))

    assert (first.status, second.status) == (200, 200)
    again = ("time", "certificate")  # the one has gone on, the other is signed anew
    assert {k: v for k, v in second.json().items() if k not in again} == {
        k: v for k, v in first.json().items() if k not in again
    }
    assert len(flower.keys) == len(Store(hub.database).nodes()) == 1
    assert [entry["what"] for entry in Ledger(hub.ledger_file).entries()].count("joined") == 1


def test_flower_is_not_told_of_a_key_whose_owner_chose_a_taken_name(
    hub: CoordinatorHome, client: Asgi, flower: Registry
) -> None:
    first, second = invite(hub, "Ada"), invite(hub, "Ada")
    join(client, joining(first))

    answer = join(client, joining(second, BERTHE), BERTHE)

    assert (answer.status, answer.json()["error"]) == (
        403,
        "there is a member called 'Ada', or with this machine's key, already",
    )
    assert set(flower.keys) == {ADA.keys.flower.encode()}


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
    assert list(flower.keys) == [ADA.keys.flower.encode()]

    assert join(client, joining(secret)).json()["node_id"] == str(flower.keys[ADA.keys.flower.encode()])


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
        b'{"secret": "AAAA", "keys": 3}',
        b'{"secret": "AAAA", "keys": {}}',
        b'{"secret": "AAAA", "keys": {}, "proofs": {}}',
        joining(b"0123456789").replace(b'"proofs"', b'"prooves"'),
        joining(b"0123456789").replace(b'"proofs": {', b'"proofs": {"enrolled": "AAAA", '),
        joining(b"0123456789").replace(b'"proofs": {', b'"proofs": 3, "more": {'),
        joining(b"0123456789").replace(b'"secret"', b'"role": "coordinator", "secret"'),
        joining(b"0123456789").replace(b'"MDEy', b'"not base64!'),
        joining(b"0123456789").replace(b'"MDEy', b'"\xc3\xa4'),
        joining(b"0123456789").replace(b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp256"),
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


# --- Who asks ----------------------------------------------------------------------------------------------------------

MEMBERS_ALONE = [("GET", "/release"), ("GET", "/policy"), ("GET", "/releases/1/card.md"), ("POST", "/certificate")]


@pytest.mark.parametrize(("method", "path"), MEMBERS_ALONE)
def test_a_member_is_answered(client: Asgi, member: Credentials, method: str, path: str) -> None:
    assert signed(client, method, path, who=member).status == 200


@pytest.mark.parametrize(("method", "path"), [*MEMBERS_ALONE, ("POST", "/join"), ("POST", "/rejoin")])
@pytest.mark.usefixtures("member")
def test_who_does_not_sign_is_told_nothing(client: Asgi, method: str, path: str) -> None:
    answer = ask(client, method, f"{PREFIX}{path}")

    assert (answer.status, answer.json()["code"]) == (401, "request-unsigned")


@pytest.mark.parametrize(("method", "path"), MEMBERS_ALONE)
@pytest.mark.usefixtures("member")
def test_a_stranger_is_told_nothing_but_how_to_join(client: Asgi, method: str, path: str) -> None:
    answer = signed(client, method, path, who=BERTHE)

    assert (answer.status, answer.json()["code"]) == (403, "not-a-member")
    assert "sfumato join" in answer.json()["advice"]


@pytest.mark.parametrize(("method", "path"), MEMBERS_ALONE)
def test_who_was_put_out_is_told_so_and_nothing_else(
    hub: CoordinatorHome, client: Asgi, member: Credentials, method: str, path: str
) -> None:
    service.end_membership(hub, "Ada")

    answer = signed(client, method, path, who=member)

    assert (answer.status, answer.json()["code"]) == (403, "membership-ended")
    assert "stays usable" in answer.json()["advice"]


def test_nobody_but_its_holder_hears_what_became_of_a_key(hub: CoordinatorHome, client: Asgi, member: Credentials) -> None:
    service.end_membership(hub, "Ada")
    headers = {**member.sign(requests.Request("GET", "/elsewhere"))}

    assert ask(client, "GET", f"{PREFIX}/release", headers=headers).status == 401


def test_a_request_sent_twice_is_answered_once(client: Asgi, member: Credentials) -> None:
    headers = member.sign(requests.Request("GET", f"{PREFIX}/release"))

    first, second = (ask(client, "GET", f"{PREFIX}/release", headers=headers) for _ in range(2))

    assert (first.status, second.status) == (200, 401)
    assert second.json()["error"] == "the request was made before"


def test_a_request_made_before_the_coordinator_started_is_not_taken(client: Asgi, member: Credentials) -> None:
    # It may have been answered by the process before this one, which has taken its memory with it.
    headers = member.sign(requests.Request("GET", f"{PREFIX}/release"), now_s=time.time() - 30)

    answer = ask(client, "GET", f"{PREFIX}/release", headers=headers)

    assert (answer.status, answer.json()["error"]) == (401, "the request is not from now")


def test_a_signature_over_another_body_joins_nobody(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    headers = ADA.sign(requests.Request("POST", f"{PREFIX}/join", b"something else"))

    assert ask(client, "POST", f"{PREFIX}/join", [joining(invite(hub))], headers).status == 401
    assert flower.keys == {}


def test_keys_are_not_enrolled_by_somebody_elses_signature(hub: CoordinatorHome, client: Asgi, flower: Registry) -> None:
    answer = join(client, joining(invite(hub), ADA), BERTHE)

    assert (answer.status, answer.json()["error"]) == (401, "the request's signature is wrong")
    assert flower.keys == {}


# --- Coming back after a restore ----------------------------------------------------------------------------------------


def rejoining(word: object, who: Credentials = ADA) -> bytes:
    return json.dumps({"keys": who.keys.to_plain(), "enrolment": word}).encode()


@pytest.fixture
def word(hub: CoordinatorHome, client: Asgi) -> object:
    """What Ada was told when she joined a coordinator that has forgotten her since."""
    said = join(client, joining(invite(hub))).json()["enrolment"]
    with sqlite3.connect(hub.database) as database:
        database.execute("DELETE FROM nodes")
    database.close()
    return said


def test_a_member_who_was_forgotten_is_taken_back_on_the_coordinators_own_word(
    hub: CoordinatorHome, client: Asgi, word: object
) -> None:
    assert signed(client, "GET", "/release").status == 403

    answer = signed(client, "POST", "/rejoin", rejoining(word))

    assert (answer.status, answer.json()["alias"], answer.json()["role"]) == (200, "Ada", "artist")
    assert signed(client, "GET", "/release").status == 200
    assert [entry["what"] for entry in Ledger(hub.ledger_file).entries()][-2:] == ["joined", "rejoined"]
    assert signed(client, "POST", "/rejoin", rejoining(word)).status == 200  # an answer that was lost
    assert len(Store(hub.database).nodes()) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("alias", "Berthe"), ("role", "gallery"), ("federation", "others"), ("keys", "0" * 64)]
)
def test_a_word_that_was_changed_takes_nobody_back(client: Asgi, word: dict[str, str], field: str, value: str) -> None:
    answer = signed(client, "POST", "/rejoin", rejoining({**word, field: value}))

    assert (answer.status, answer.json()["error"]) == (403, "that enrolment was not signed here")


def test_a_word_is_good_for_its_owners_keys_alone(client: Asgi, word: object) -> None:
    answer = signed(client, "POST", "/rejoin", rejoining(word, BERTHE), BERTHE)

    assert (answer.status, answer.json()["error"]) == (403, "that enrolment is another machine's")


def test_another_coordinators_word_is_worth_nothing(
    hub: CoordinatorHome, client: Asgi, word: dict[str, str], tmp_path: Path
) -> None:
    other = simulators.make_coordinator(tmp_path / "other", port=1)
    node = Node(7, "Ada", "artist", ADA.keys, "1970-01-01T00:00:01+00:00")
    forged = enrolment.sign(node, hub.config().name, pki.release_key(other))
    assert set(forged) == set(word)

    assert signed(client, "POST", "/rejoin", rejoining(forged)).status == 403


def test_who_was_put_out_does_not_come_back_by_an_old_word(hub: CoordinatorHome, client: Asgi) -> None:
    word = join(client, joining(invite(hub))).json()["enrolment"]
    service.end_membership(hub, "Ada")

    answer = signed(client, "POST", "/rejoin", rejoining(word))

    assert answer.status == 403
    assert "was ended" in answer.json()["error"]
    assert Store(hub.database).nodes() == []


@pytest.mark.parametrize("word", [None, 3, {}, {"alias": "Ada"}, [], "text"])
def test_what_is_no_word_is_called_so(client: Asgi, word: object) -> None:
    answer = signed(client, "POST", "/rejoin", rejoining(word))

    assert (answer.status, answer.json()["error"]) == (400, "this is no enrolment")


def test_what_is_no_request_to_rejoin_is_called_so(client: Asgi) -> None:
    assert signed(client, "POST", "/rejoin", b"{}").json()["error"] == "this is not a request to rejoin"


# --- Reading -----------------------------------------------------------------------------------------------------------


def test_the_newest_release_is_listed(hub: CoordinatorHome, client: Asgi, member: Credentials) -> None:
    said = signed(client, "GET", "/release", who=member).json()

    assert abs(said.pop("time") - time.time()) < 60
    assert said == {
        "version": 1,
        "files": sorted(publish.current_release(hub).manifest.files),
        "round_running": False,
        "policy": policies.current(hub).digest,
        "answers": [],
        "online": None,
    }


@pytest.mark.parametrize(("seen", "told"), [(True, True), (False, False), (None, None)])
def test_a_member_is_told_whether_flower_sees_its_node(hub: CoordinatorHome, *, seen: bool | None, told: bool | None) -> None:
    register = Registry()

    def online() -> frozenset[int] | None:
        return None if seen is None else frozenset(register.keys.values()) if seen else frozenset()

    client = create_endpoint(hub, register, online)
    join(client, joining(invite(hub)))

    assert signed(client, "GET", "/release").json()["online"] is told


def test_a_member_is_told_what_became_of_its_own_updates_and_what_to_do(
    hub: CoordinatorHome, client: Asgi, member: Credentials
) -> None:
    store = Store(hub.database)
    (node,) = store.nodes()
    for reason in ("", "not-finite", "a reason of tomorrow"):
        number = simulators.open_round(store)
        store.add_answer(number, Answer(node.node_id, not reason, reason, 9, None, None, None, None, 1.0, None))
        store.add_answer(number, Answer(77, False, "payload", 9, None, None, None, None, 1.0, None))  # noqa: FBT003
        store.set_round(number, "failed", "", 0.0)

    said = signed(client, "GET", "/release", who=member).json()["answers"]

    assert [(a["round"], a["accepted"], a["reason"]) for a in said] == [
        (3, False, "a reason of tomorrow"),
        (2, False, "not-finite"),
        (1, True, ""),
    ]
    assert [a["advice"] for a in said] == ["Ask the coordinator.", ADVICE["not-finite"], ""]


def test_the_policy_that_holds_is_served_as_it_was_signed(hub: CoordinatorHome, client: Asgi, member: Credentials) -> None:
    holds = simulators.change_policy(hub, minimum_nodes=7)

    served = policy.from_plain(signed(client, "GET", "/policy", who=member).json())

    assert policy.verify(*served, Trust.load(hub.trust_file)) == holds


@pytest.mark.usefixtures("member")
@pytest.mark.parametrize(
    ("state", "is_running"),
    [("gathering", True), ("training", True), ("judging", True), ("published", False), ("refused", False), ("failed", False)],
)
def test_a_round_under_way_is_told(hub: CoordinatorHome, client: Asgi, state: RoundState, *, is_running: bool) -> None:
    store = Store(hub.database)
    simulators.open_round(store, state)

    assert signed(client, "GET", "/release").json()["round_running"] is is_running


@pytest.mark.usefixtures("member")
def test_a_round_that_ends_while_it_is_asked_about_never_hides_its_release(
    hub: CoordinatorHome, client: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "No round, and the release before it" would have nodes work on a body that was just replaced.
    store = Store(hub.database)
    number = simulators.open_round(store, "judging")

    def ends_after_the_look(home: CoordinatorHome) -> VerifiedRelease:
        before = publish.current_release(home)
        store.set_round(number, "published", "", 0.0)
        return before

    monkeypatch.setattr(endpoint, "current_release", ends_after_the_look)

    assert signed(client, "GET", "/release").json()["round_running"] is True


@pytest.mark.usefixtures("member")
def test_every_file_of_a_release_is_served_as_it_was_signed(hub: CoordinatorHome, client: Asgi) -> None:
    release = publish.current_release(hub)

    for path in (*release.manifest.files, MANIFEST, SIGNATURES):
        assert signed(client, "GET", f"/releases/1/{path}").body == (release.folder / path).read_bytes()


@pytest.mark.usefixtures("member")
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
    assert signed(client, "GET", f"/releases/{path}").status == 404


@pytest.mark.usefixtures("member")
def test_a_file_changed_on_disk_is_not_served(hub: CoordinatorHome, client: Asgi) -> None:
    (hub.releases / "1" / "card.md").write_bytes(b"# Another\n")

    answer = signed(client, "GET", "/releases/1/card.md")

    assert (answer.status, answer.json()) == (404, {"error": "no such release or file"})


@pytest.mark.usefixtures("member")
def test_a_damaged_release_is_told_as_the_coordinators_trouble(hub: CoordinatorHome, client: Asgi) -> None:
    (hub.releases / "1" / "card.md").write_bytes(b"# Another\n")

    assert signed(client, "GET", "/release").status == 503


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
