"""The coordinator's memory: durable after every call, and strict about invites, names and keys."""

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.errors import JoinRefusedError
from coordinator.store import Answer, Job, Node, OpenInvite, Round, RoundState, Store
from export.errors import NotConfiguredError, RefusedError
from tests import simulators
from tests.simulators import add_member, credentials

SECRET = b"ten bytes!"
KEYS = credentials("Ada").keys
OTHERS = credentials("somebody else").keys
BIG = 2**64 - 1
"""The largest node id Flower hands out; SQLite's integers end at half of it."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "coordinator.sqlite")


def answer(node_id: int = 1, *, accepted: bool = True, reason: str = "") -> Answer:
    return Answer(node_id, accepted, reason, 4096, 0.5, 2.0, 1.0, 20, 3.5, "d" * 64 if accepted else None)


def test_an_invite_gives_the_name_and_role_it_was_made_for_and_stays_good_until_it_is_used(store: Store) -> None:
    store.add_invite(SECRET, "Ada", "gallery", expires=100.0)

    assert [store.invited(SECRET, KEYS, now=99.0) for _ in range(2)] == [("Ada", "gallery")] * 2
    assert store.join(SECRET, KEYS, BIG, now=99.0) == Node(BIG, "Ada", "gallery", KEYS, "1970-01-01T00:01:39+00:00")


def test_an_invite_is_good_once(store: Store) -> None:
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)
    store.join(SECRET, KEYS, 1, now=1.0)

    for ask in (store.invited, lambda secret, keys, now: store.join(secret, keys, 2, now)):
        with pytest.raises(JoinRefusedError, match="has been used already") as caught:
            ask(SECRET, OTHERS, 2.0)
        assert "sfumato-coordinator invite" in caught.value.advice


def test_of_two_who_use_an_invite_at_once_one_gets_it(store: Store) -> None:
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)
    outcomes: list[str] = []
    keys = [credentials(f"thief {number}").keys for number in range(8)]

    def use(number: int) -> None:
        try:
            store.join(SECRET, keys[number], number, now=1.0)
            outcomes.append("got it")
        except JoinRefusedError:
            outcomes.append("refused")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["got it"] + ["refused"] * 7
    assert len(store.nodes()) == 1


@pytest.mark.parametrize(("now", "is_good"), [(99.9, True), (100.0, True), (100.1, False)])
def test_an_invite_expires_when_it_says(store: Store, now: float, *, is_good: bool) -> None:
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)

    if is_good:
        store.invited(SECRET, KEYS, now)
    else:
        with pytest.raises(JoinRefusedError, match="expired"):
            store.invited(SECRET, KEYS, now)
        with pytest.raises(JoinRefusedError, match="expired"):
            store.join(SECRET, KEYS, 1, now)


def test_an_unknown_secret_is_refused(store: Store) -> None:
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)

    with pytest.raises(JoinRefusedError, match="does not know that invite"):
        store.invited(b"ten byteS!", KEYS, now=1.0)


@pytest.mark.parametrize(("node_id", "alias", "key"), [(1, "Ada", "another"), (1, "Berthe", "Ada"), (7, "Berthe", "another")])
def test_a_name_a_key_and_a_node_id_belong_to_one_member_and_the_invite_of_another_stays_good(
    store: Store, node_id: int, alias: str, key: str
) -> None:
    add_member(store, 7, alias, key=key)
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)

    for _ in range(2):  # and not "used already"
        with pytest.raises(JoinRefusedError, match="or with this machine's key, already") as caught:
            store.join(SECRET, KEYS, 7 if node_id == 7 else 1, now=1.0)

    assert caught.value.advice
    assert len(store.nodes()) == 1


def test_whoever_joined_with_an_invite_is_known_by_it_and_the_key(store: Store) -> None:
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)
    assert store.joined_with(SECRET, KEYS) is None
    member = store.join(SECRET, KEYS, BIG, now=1.0)

    assert store.joined_with(SECRET, KEYS) == member
    assert store.joined_with(SECRET, OTHERS) is None
    assert store.joined_with(b"ten byteS!", KEYS) is None


def test_the_same_node_key_with_other_keys_beside_it_is_not_who_joined(store: Store) -> None:
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)
    store.join(SECRET, KEYS, 1, now=1.0)

    assert store.joined_with(SECRET, replace(KEYS, flower=OTHERS.flower)) is None


def test_an_invite_that_was_taken_back_is_refused_and_those_of_others_are_good(store: Store) -> None:
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)
    store.add_invite(b"ten others", "Berthe", "artist", expires=100.0)

    assert (store.revoke_invites("Ada", now=1.0), store.revoke_invites("Ada", now=1.0)) == (1, 0)

    for ask in (store.invited, lambda secret, keys, now: store.join(secret, keys, 2, now)):
        with pytest.raises(JoinRefusedError, match="was taken back") as caught:
            ask(SECRET, KEYS, 2.0)
        assert "sfumato-coordinator invite" in caught.value.advice
    assert store.invited(b"ten others", KEYS, 2.0) == ("Berthe", "artist")


def test_invites_that_can_still_be_used_are_listed(store: Store) -> None:
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)
    store.add_invite(b"ten others", "Berthe", "gallery", expires=100.0)
    store.add_invite(b"expired ..", "Camille", "artist", expires=9.0)
    store.add_invite(b"taken back", "Diane", "artist", expires=100.0)
    store.revoke_invites("Diane", now=1.0)
    store.join(SECRET, KEYS, 1, now=1.0)

    assert store.open_invites(now=10.0) == [OpenInvite("Berthe", "gallery", 100.0)]


def test_who_was_put_out_is_no_member_and_its_key_never_is_again(store: Store) -> None:
    member = add_member(store, 7, "Ada", key="Ada")
    store.revoke(7, now=1.0)
    store.revoke(7, now=9.0)
    store.add_invite(SECRET, "Berthe", "artist", expires=100.0)

    assert store.nodes() == []
    assert store.nodes_ever() == [replace(member, revoked="1970-01-01T00:00:01+00:00")]
    found = store.member(KEYS.node_key)
    assert found is not None
    assert found.revoked is not None
    with pytest.raises(JoinRefusedError, match="was ended") as caught:
        store.join(SECRET, KEYS, 8, now=2.0)
    assert "--home" in caught.value.advice
    with pytest.raises(JoinRefusedError, match="was ended"):
        store.take_back(Node(8, "Berthe", "artist", KEYS, "1970-01-01T00:00:01+00:00"))


def test_the_name_of_who_was_put_out_can_be_given_again(store: Store) -> None:
    add_member(store, 7, "Ada")
    store.revoke(7, now=1.0)
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)

    assert store.join(SECRET, KEYS, 8, now=2.0).alias == "Ada"


def test_a_member_is_found_by_its_key(store: Store) -> None:
    member = add_member(store, 7, "Ada", key="Ada")

    assert store.member(KEYS.node_key) == member
    assert store.member(OTHERS.node_key) is None


def test_a_member_is_taken_back_as_it_was_and_once(store: Store) -> None:
    member = Node(BIG, "Ada", "artist", KEYS, "1970-01-01T00:00:01+00:00")

    store.take_back(member)

    assert store.nodes() == [member]
    for other in (replace(member, node_id=1), replace(member, keys=OTHERS), Node(1, "Ada", "artist", OTHERS, "")):
        with pytest.raises(JoinRefusedError):
            store.take_back(other)


def test_a_node_that_flower_gave_another_number_keeps_all_else(store: Store) -> None:
    member = add_member(store, 7, "Ada")

    store.renumber(7, BIG)

    assert store.nodes() == [replace(member, node_id=BIG)]


def test_a_database_of_another_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE nodes (node_id TEXT PRIMARY KEY)")
    old.close()

    with pytest.raises(NotConfiguredError, match="of version 0") as caught:
        Store(path)

    assert "--home" in caught.value.advice
    with sqlite3.connect(path) as old:
        assert old.execute("SELECT name FROM sqlite_schema").fetchall() == [("nodes",), ("sqlite_autoindex_nodes_1",)]
    old.close()


def test_the_secret_itself_is_not_kept(store: Store, tmp_path: Path) -> None:
    store.add_invite(SECRET, "Ada", "artist", expires=100.0)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(SECRET in path.read_bytes() for path in files)
    assert any(b"Ada" in path.read_bytes() for path in files)


def test_members_are_kept_with_the_largest_of_node_ids(store: Store, tmp_path: Path) -> None:
    add_member(store, BIG, "Berthe", key="key-b")
    add_member(store, 1, "Ada", "gallery", key="key-a")

    again = Store(tmp_path / "deep" / "coordinator.sqlite")
    assert [(n.node_id, n.alias, n.role, n.keys) for n in again.nodes()] == [
        (1, "Ada", "gallery", credentials("key-a").keys),
        (BIG, "Berthe", "artist", credentials("key-b").keys),
    ]


def test_a_round_goes_on_until_it_is_over_and_the_next_has_the_next_number(store: Store) -> None:
    job = store.add_job(2).job
    first = store.open_round(job, "base", "policy", 10.0)
    assert store.open_round(job, "another base", "another policy", 11.0) == first
    store.set_round(1, "published", "release 2", 15.0, version=2)

    assert store.open_round(job, "base 2", "policy", 20.0).round == 2
    assert (
        store.rounds()
        == store.rounds_of(job)
        == [
            Round(1, "published", "release 2", 10.0, 15.0, 2, "base", "policy", None),
            Round(2, "gathering", "", 20.0, 20.0, None, "base 2", "policy", None),
        ]
    )
    assert [r.is_over for r in store.rounds()] == [True, False]


@pytest.mark.parametrize("state", ["published", "refused", "failed"])
def test_a_round_that_is_over_stays_as_it_ended(store: Store, state: RoundState) -> None:
    number = simulators.open_round(store, state, "so it went")

    store.set_round(number, "training", "again", 9.0)

    assert (store.rounds()[0].state, store.rounds()[0].detail, store.rounds()[0].changed) == (state, "so it went", 0.0)


def test_whom_a_round_asks_and_until_when_is_settled_once(store: Store) -> None:
    number = simulators.open_round(store)

    store.ask(number, [3, BIG], deadline=100.0, now=1.0)
    store.ask(number, [3, BIG], deadline=900.0, now=2.0)

    assert store.asked(number) == [3, BIG]
    assert (store.rounds()[0].state, store.rounds()[0].deadline, store.rounds()[0].changed) == ("training", 100.0, 1.0)


def test_rounds_are_asked_for_one_lot_at_a_time(store: Store) -> None:
    job = store.add_job(3)

    assert store.open_job() == job == Job(1, 3, "open", "", None, 0)
    with pytest.raises(RefusedError, match="being held already"):
        store.add_job(1)
    store.close_job(job.job, "done", "", 1.0)
    assert store.open_job() is None
    assert store.add_job(1).job == 2


def test_the_end_of_what_was_asked_for_ends_the_round_under_way_and_no_other(store: Store) -> None:
    published = simulators.open_round(store, "published", "release 2")
    under_way = simulators.open_round(store, "training")

    store.close_job(1, "stopped", "called off", 9.0)
    store.close_job(1, "done", "", 10.0)

    assert (store.job(1).state, store.job(1).detail) == ("stopped", "called off")
    assert [(r.round, r.state, r.detail) for r in store.rounds()] == [
        (published, "published", "release 2"),
        (under_way, "failed", "called off"),
    ]


def test_starts_are_counted_until_a_round_comes_to_an_end(store: Store) -> None:
    number = simulators.open_round(store)
    for run in (7, BIG):
        store.note_run(1, run)
    assert (store.job(1).run, store.job(1).starts) == (BIG, 2)

    store.set_round(number, "judging", "", 1.0)
    assert store.job(1).starts == 2
    store.set_round(number, "failed", "too few", 1.0)
    assert store.job(1).starts == 0


def test_what_became_of_a_nodes_last_updates_is_told_newest_first(store: Store) -> None:
    for _ in range(3):
        number = simulators.open_round(store)
        store.add_answer(number, answer(1, accepted=number != 2, reason="" if number != 2 else "not-finite"))
        store.add_answer(number, answer(9))
        store.set_round(number, "failed", "", 0.0)

    assert [(number, a.accepted, a.reason) for number, a in store.answers_of(1, last=2)] == [
        (3, True, ""),
        (2, False, "not-finite"),
    ]
    assert store.answers_of(5, last=2) == []


def test_answers_come_back_as_they_were(store: Store) -> None:
    number = simulators.open_round(store)
    first, second = answer(BIG), Answer(1, False, "not-finite", 10, None, None, None, None, 1.0, None)  # noqa: FBT003
    store.add_answer(number, first)
    store.add_answer(number, second)

    assert store.answers(number) == [second, first]
    assert store.answers(99) == []


def test_the_first_record_of_a_node_in_a_round_stands(store: Store) -> None:
    number = simulators.open_round(store)
    store.add_answer(number, answer(1))
    store.add_answer(number, answer(1, accepted=False, reason="answered-twice"))

    assert store.answers(number) == [answer(1)]


def test_what_is_half_done_is_not_done(store: Store) -> None:
    def fail_halfway() -> None:
        with store._transaction() as db:
            db.execute("INSERT INTO nodes VALUES ('1', 'Ada', 'artist', 'key', 'key', '{}', 'now', NULL, NULL)")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_halfway()

    assert store.nodes() == []


def test_a_database_that_lies_about_a_role_or_state_is_not_believed(store: Store, tmp_path: Path) -> None:
    add_member(store, 1, "Ada")
    simulators.open_round(store)
    database = sqlite3.connect(tmp_path / "deep" / "coordinator.sqlite")
    database.execute("UPDATE nodes SET role = 'king'")
    database.execute("UPDATE rounds SET state = 'sleeping'")
    database.execute("UPDATE jobs SET state = 'napping'")
    database.commit()
    database.close()

    with pytest.raises(ValueError, match="not a role: 'king'"):
        store.nodes()
    with pytest.raises(ValueError, match="not a round's state: 'sleeping'"):
        store.rounds()
    with pytest.raises(ValueError, match="not a job's state: 'napping'"):
        store.job(1)
