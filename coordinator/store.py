"""The coordinator's memory in SQLite: invites, nodes, rounds and what came of each node in each round.

Every method is one transaction, durable when it returns (WAL, synchronous FULL), so that a kill between two of them loses
nothing that was promised to anybody.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

from coordinator.errors import JoinRefusedError
from export.errors import NotConfiguredError, RefusedError, ResourceError
from export.identity import NodeKey, PublicKeys

_VERSION: Final = 2

Role = Literal["artist", "gallery"]
RoundState = Literal["gathering", "training", "judging", "published", "refused", "failed"]
JobState = Literal["open", "done", "stopped", "failed"]
_OVER: Final = ("published", "refused", "failed")

# Flower's node ids are unsigned 64-bit numbers, which SQLite's integers do not hold: they are kept as text.
# A key that was revoked never comes back, a name may.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS invites (
    secret_sha256 TEXT PRIMARY KEY,
    alias TEXT NOT NULL,
    role TEXT NOT NULL,
    expires REAL NOT NULL,
    used REAL,
    revoked REAL
) STRICT;
CREATE TABLE IF NOT EXISTS nodes (
    node_id TEXT PRIMARY KEY,
    alias TEXT NOT NULL,
    role TEXT NOT NULL,
    flower_key TEXT NOT NULL UNIQUE,
    node_key TEXT NOT NULL UNIQUE,
    keys TEXT NOT NULL,
    joined TEXT NOT NULL,
    invite TEXT UNIQUE REFERENCES invites,
    revoked TEXT
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS living_names ON nodes (alias) WHERE revoked IS NULL;
CREATE TABLE IF NOT EXISTS jobs (
    job INTEGER PRIMARY KEY,
    wanted INTEGER NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    run TEXT,
    starts INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY,
    job INTEGER NOT NULL REFERENCES jobs,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    started REAL NOT NULL,
    changed REAL NOT NULL,
    version INTEGER,
    base TEXT NOT NULL,
    policy TEXT NOT NULL,
    deadline REAL
) STRICT;
CREATE TABLE IF NOT EXISTS asked (
    round INTEGER NOT NULL REFERENCES rounds,
    node_id TEXT NOT NULL,
    PRIMARY KEY (round, node_id)
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    round INTEGER NOT NULL REFERENCES rounds,
    node_id TEXT NOT NULL,
    accepted INTEGER NOT NULL,
    reason TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    norm REAL,
    loss_before REAL,
    loss_after REAL,
    steps INTEGER,
    seconds REAL NOT NULL,
    sha256 TEXT,
    PRIMARY KEY (round, node_id)
) STRICT;
CREATE TABLE IF NOT EXISTS parts (
    round INTEGER NOT NULL REFERENCES rounds,
    attempt INTEGER NOT NULL,
    part TEXT NOT NULL,
    node_id TEXT NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (round, attempt, part, node_id)
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A member, or one that was.

    Attributes:
        node_id: Flower's number of it.
        alias: its name here.
        role: what it takes part in.
        keys: what it joined with.
        joined, revoked: when, in ISO 8601; not revoked is None.
    """

    node_id: int
    alias: str
    role: Role
    keys: PublicKeys
    joined: str
    revoked: str | None = None


@dataclass(frozen=True, slots=True)
class OpenInvite:
    """An invite that can still be used, `expires` in seconds since 1970."""

    alias: str
    role: Role
    expires: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one node in one round; numbers are absent where nothing usable came.

    Attributes:
        sha256: of the update's payload, if it counts; the node's own ledger has it, too.
    """

    node_id: int
    accepted: bool
    reason: str
    bytes: int
    norm: float | None
    loss_before: float | None
    loss_after: float | None
    steps: int | None
    seconds: float
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Attributes:
        round: 1, 2, ...
        state: how far it is, or how it ended.
        detail: what it waits for, or what came out.
        started, changed: seconds since 1970.
        version: the release it led to, if any.
        base: digest of the release it began from.
        policy: digest of the policy it is held under.
        deadline: when it stops waiting for updates, seconds since 1970; None until nodes were asked.
    """

    round: int
    state: RoundState
    detail: str
    started: float
    changed: float
    version: int | None
    base: str
    policy: str
    deadline: float | None

    @property
    def is_over(self) -> bool:
        """Whether its state will not change any more."""
        return self.state in _OVER


@dataclass(frozen=True, slots=True)
class Job:
    """Rounds that somebody asked for; they are held whatever happens to the processes that hold them.

    Attributes:
        job: its number.
        wanted: how many rounds.
        state: `open` until they were held, given up or called off.
        detail: why it ended otherwise than well.
        run: the Flower run that was last started for it.
        starts: how often one was, since a round last came to an end.
    """

    job: int
    wanted: int
    state: JobState
    detail: str
    run: int | None
    starts: int


class Store:
    """The database. Opens a connection per call: several processes and threads share it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with self._transaction() as db:
            _refuse_other_version(db)
            for statement in _SCHEMA.split(";\n"):  # not executescript, which would end the transaction first
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")

    def add_invite(self, secret: bytes, alias: str, role: Role, expires: float) -> None:
        """Remember an invite by the digest of its secret."""
        with self._transaction() as db:
            db.execute("INSERT INTO invites VALUES (?, ?, ?, ?, NULL, NULL)", (_sha256(secret), alias, role, expires))

    def open_invites(self, now: float) -> list[OpenInvite]:
        """Invites that can still be used, by name."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT alias, role, expires FROM invites"
                " WHERE used IS NULL AND revoked IS NULL AND expires >= ? ORDER BY alias",
                (now,),
            ).fetchall()
        return [OpenInvite(alias, _role(role), expires) for alias, role, expires in rows]

    def revoke_invites(self, alias: str, now: float) -> int:
        """Take back what invites somebody has not used yet; returns how many."""
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE invites SET revoked = ? WHERE alias = ? AND used IS NULL AND revoked IS NULL", (now, alias)
            )
            return changed.rowcount

    def invited(self, secret: bytes, keys: PublicKeys, now: float) -> tuple[str, Role]:
        """What an invite is good for: the alias and the role it was made for. It stays good.

        Raises:
            JoinRefusedError: unknown, used, revoked or expired; or the alias or a key is a member's already. It says which, to
                the holder of the secret alone.
        """
        with self._transaction() as db:
            return _invited(db, secret, keys, now)

    def joined_with(self, secret: bytes, keys: PublicKeys) -> Node | None:
        """The member that joined with exactly this invite and these keys, whose answer may have been lost on its way."""
        with self._transaction() as db:
            row = db.execute(
                f"SELECT {_NODE_COLUMNS} FROM nodes WHERE invite = ? AND node_key = ? AND revoked IS NULL",  # noqa: S608
                (_sha256(secret), keys.node_key),
            ).fetchone()
        member = _node(*row) if row else None
        return member if member is not None and member.keys.digest == keys.digest else None

    def join(self, secret: bytes, keys: PublicKeys, node_id: int, now: float) -> Node:
        """Use an invite up and enrol its holder, both or neither.

        Raises:
            JoinRefusedError: as ``invited``, or the node's number is a member's already.
        """
        with self._transaction() as db:
            alias, role = _invited(db, secret, keys, now)
            node = Node(node_id, alias, role, keys, _iso(now))
            _insert(db, node, _sha256(secret))
            db.execute("UPDATE invites SET used = ? WHERE secret_sha256 = ?", (now, _sha256(secret)))
        return node

    def take_back(self, node: Node) -> None:
        """Enrol a node again that was a member before this database was.

        Raises:
            JoinRefusedError: its name, its number or a key of it is somebody's here, or was revoked.
        """
        with self._transaction() as db:
            _refuse_taken(db, node.alias, node.keys)
            _insert(db, node, None)

    def member(self, node_key: NodeKey) -> Node | None:
        """Whoever has an enrolled key, revoked or not."""
        with self._transaction() as db:
            row = db.execute(f"SELECT {_NODE_COLUMNS} FROM nodes WHERE node_key = ?", (node_key,)).fetchone()  # noqa: S608
        return _node(*row) if row else None

    def node(self, node_id: int) -> Node | None:
        """The member whose node has that number, if its membership has not ended."""
        with self._transaction() as db:
            row = db.execute(
                f"SELECT {_NODE_COLUMNS} FROM nodes WHERE node_id = ? AND revoked IS NULL",  # noqa: S608
                (str(node_id),),
            ).fetchone()
        return _node(*row) if row else None

    def nodes(self) -> list[Node]:
        """Every member, by alias; those that were revoked are not."""
        return [node for node in self.nodes_ever() if node.revoked is None]

    def nodes_ever(self) -> list[Node]:
        """Everybody who was ever a member, by alias."""
        with self._transaction() as db:
            rows = db.execute(f"SELECT {_NODE_COLUMNS} FROM nodes ORDER BY alias, joined").fetchall()  # noqa: S608
        return [_node(*row) for row in rows]

    def revoke(self, node_id: int, now: float) -> None:
        """End a membership; the first time stands."""
        with self._transaction() as db:
            db.execute("UPDATE nodes SET revoked = ? WHERE node_id = ? AND revoked IS NULL", (_iso(now), str(node_id)))

    def renumber(self, node_id: int, flower_id: int) -> None:
        """Follow Flower, which gave a node another number: its own memory was lost."""
        with self._transaction() as db:
            db.execute("UPDATE nodes SET node_id = ? WHERE node_id = ?", (str(flower_id), str(node_id)))

    def add_job(self, wanted: int) -> Job:
        """Ask for some rounds.

        Raises:
            RefusedError: others are being held.
        """
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM jobs WHERE state = 'open'").fetchone():
                raise RefusedError("rounds are being held already", advice="See: sfumato-coordinator status")
            number = int(db.execute("SELECT COALESCE(MAX(job), 0) + 1 FROM jobs").fetchone()[0])
            db.execute("INSERT INTO jobs VALUES (?, ?, 'open', '', NULL, 0)", (number, wanted))
        return Job(number, wanted, "open", "", None, 0)

    def open_job(self) -> Job | None:
        """The rounds that are to be held now."""
        with self._transaction() as db:
            row = db.execute(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE state = 'open'").fetchone()  # noqa: S608
        return _job(*row) if row else None

    def job(self, number: int) -> Job:
        """Rounds that were asked for once."""
        with self._transaction() as db:
            row = db.execute(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE job = ?", (number,)).fetchone()  # noqa: S608
        return _job(*row)

    def note_run(self, job: int, run: int) -> None:
        """Remember which Flower run was started for a job."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET run = ?, starts = starts + 1 WHERE job = ?", (str(run), job))

    def close_job(self, job: int, state: JobState, detail: str, now: float) -> None:
        """End a job, and a round of it that is not over with it; the first end stands."""
        with self._transaction() as db:
            ended = db.execute("UPDATE jobs SET state = ?, detail = ? WHERE job = ? AND state = 'open'", (state, detail, job))
            if ended.rowcount:
                db.execute(
                    "UPDATE rounds SET state = 'failed', detail = ?, changed = ? WHERE job = ? AND state NOT IN (?, ?, ?)",
                    (detail, now, job, *_OVER),
                )

    def open_round(self, job: int, base: str, policy: str, now: float) -> Round:
        """The round of a job that is not over, or the next one."""
        with self._transaction() as db:
            row = db.execute(
                f"SELECT {_ROUND_COLUMNS} FROM rounds WHERE job = ? AND state NOT IN (?, ?, ?)",  # noqa: S608
                (job, *_OVER),
            ).fetchone()
            if row is None:
                number = int(db.execute("SELECT COALESCE(MAX(round), 0) + 1 FROM rounds").fetchone()[0])
                row = (number, "gathering", "", now, now, None, base, policy, None)
                db.execute(
                    "INSERT INTO rounds VALUES (?, ?, 'gathering', '', ?, ?, NULL, ?, ?, NULL)",
                    (number, job, now, now, base, policy),
                )
        return _round(*row)

    def skip_rounds(self, count: int, now: float) -> None:
        """Never give the next so many numbers to a round: others may have seen rounds that this database has not."""
        with self._transaction() as db:
            last = int(db.execute("SELECT COALESCE(MAX(round), 0) FROM rounds").fetchone()[0])
            job = int(db.execute("SELECT COALESCE(MAX(job), 0) + 1 FROM jobs").fetchone()[0])
            db.execute("UPDATE jobs SET state = 'stopped', detail = 'restored from a backup' WHERE state = 'open'")
            db.execute(
                "UPDATE rounds SET state = 'failed', detail = 'restored from a backup' WHERE state NOT IN (?, ?, ?)", _OVER
            )
            db.execute("INSERT INTO jobs VALUES (?, 0, 'stopped', 'restored from a backup', NULL, 0)", (job,))
            db.execute(
                "INSERT INTO rounds VALUES (?, ?, 'failed', 'numbers left out after a restore', ?, ?, NULL, '', '', NULL)",
                (last + count, job, now, now),
            )

    def ask(self, number: int, node_ids: Sequence[int], deadline: float, now: float) -> None:
        """Settle whom a round asks and until when: from here on it is training, and stays so over a restart."""
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO asked VALUES (?, ?)", [(number, str(node_id)) for node_id in node_ids])
            db.execute(
                "UPDATE rounds SET state = 'training', deadline = ?, changed = ? WHERE round = ? AND state = 'gathering'",
                (deadline, now, number),
            )

    def asked(self, number: int) -> list[int]:
        """The nodes a round has asked, in order of their numbers."""
        with self._transaction() as db:
            rows = db.execute("SELECT node_id FROM asked WHERE round = ?", (number,)).fetchall()
        return sorted(int(node_id) for (node_id,) in rows)

    def set_round(self, number: int, state: RoundState, detail: str, now: float, version: int | None = None) -> None:
        """Move a round on; `detail` says what is being waited for, or what came out. One that is over stays as it ended."""
        with self._transaction() as db:
            moved = db.execute(
                "UPDATE rounds SET state = ?, detail = ?, changed = ?, version = ? WHERE round = ? AND state NOT IN (?, ?, ?)",
                (state, detail, now, version, number, *_OVER),
            )
            if moved.rowcount and state in _OVER:
                db.execute("UPDATE jobs SET starts = 0 WHERE job = (SELECT job FROM rounds WHERE round = ?)", (number,))

    def add_answer(self, number: int, answer: Answer) -> None:
        """Record what came of a node; the first record of a node in a round stands."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    str(answer.node_id),
                    int(answer.accepted),
                    answer.reason,
                    answer.bytes,
                    answer.norm,
                    answer.loss_before,
                    answer.loss_after,
                    answer.steps,
                    answer.seconds,
                    answer.sha256,
                ),
            )

    def add_part(self, number: int, attempt: int, part: str, node_id: int | None, payload: bytes) -> None:
        """Record what came of a node in a veiled round, or what was settled for all (no node); the first record stands."""
        owner = "" if node_id is None else str(node_id)
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, ?)", (number, attempt, part, owner, payload))

    def parts(self, number: int, attempt: int, part: str) -> dict[int, bytes]:
        """What came of each node of one kind, in order of the nodes' numbers."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT node_id, payload FROM parts WHERE round = ? AND attempt = ? AND part = ? AND node_id != ''",
                (number, attempt, part),
            ).fetchall()
        return dict(sorted((int(node_id), payload) for node_id, payload in rows))

    def settled(self, number: int, attempt: int, part: str) -> bytes | None:
        """What was settled of that kind for all nodes, if it was."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT payload FROM parts WHERE round = ? AND attempt = ? AND part = ? AND node_id = ''",
                (number, attempt, part),
            ).fetchone()
        return bytes(row[0]) if row else None

    def forget_parts(self, number: int) -> None:
        """Delete what a veiled round left: with it, and an update that somebody kept, the update could be unmasked."""
        with self._transaction() as db:
            db.execute("DELETE FROM parts WHERE round = ?", (number,))

    def forget_parts_of_ended_rounds(self) -> None:
        """The same for all rounds that are over: a kill may have come between a round's end and that."""
        with self._transaction() as db:
            db.execute("DELETE FROM parts WHERE round IN (SELECT round FROM rounds WHERE state IN (?, ?, ?))", _OVER)

    def rounds(self) -> list[Round]:
        """Every round, oldest first."""
        with self._transaction() as db:
            rows = db.execute(f"SELECT {_ROUND_COLUMNS} FROM rounds ORDER BY round").fetchall()  # noqa: S608
        return [_round(*row) for row in rows]

    def rounds_of(self, job: int) -> list[Round]:
        """The rounds of a job, oldest first."""
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT {_ROUND_COLUMNS} FROM rounds WHERE job = ? ORDER BY round",  # noqa: S608
                (job,),
            ).fetchall()
        return [_round(*row) for row in rows]

    def answers_of(self, node_id: int, last: int) -> list[tuple[int, Answer]]:
        """What came of a node in the last rounds it was asked in, the newest first, each with its round's number."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT round, accepted, reason, bytes, norm, loss_before, loss_after, steps, seconds, sha256 FROM answers"
                " WHERE node_id = ? ORDER BY round DESC LIMIT ?",
                (str(node_id), last),
            ).fetchall()
        return [(number, Answer(node_id, bool(accepted), *rest)) for number, accepted, *rest in rows]

    def counts(self, number: int, node_id: int) -> bool:
        """Whether an update of a node counts in a round already."""
        with self._transaction() as db:
            found = db.execute(
                "SELECT 1 FROM answers WHERE round = ? AND node_id = ? AND accepted = 1", (number, str(node_id))
            ).fetchone()
        return found is not None

    def answers(self, number: int) -> list[Answer]:
        """What came of each node in a round."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT node_id, accepted, reason, bytes, norm, loss_before, loss_after, steps, seconds, sha256"
                " FROM answers WHERE round = ? ORDER BY node_id",
                (number,),
            ).fetchall()
        return [Answer(int(node_id), bool(accepted), *rest) for node_id, accepted, *rest in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is not left in free pages
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT") if connection.in_transaction else None
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise _unwritable(error) from error
            raise
        finally:
            connection.close()


_ASK = "Ask the coordinator for a new one: sfumato-coordinator invite NAME"


_JOB_COLUMNS: Final = "job, wanted, state, detail, run, starts"
_ROUND_COLUMNS: Final = "round, state, detail, started, changed, version, base, policy, deadline"
_NODE_COLUMNS: Final = "node_id, alias, role, keys, joined, revoked"


def _invited(db: sqlite3.Connection, secret: bytes, keys: PublicKeys, now: float) -> tuple[str, Role]:
    row = db.execute(
        "SELECT alias, role, expires, used, revoked FROM invites WHERE secret_sha256 = ?", (_sha256(secret),)
    ).fetchone()
    if row is None:
        raise JoinRefusedError("this coordinator does not know that invite", advice=_ASK)
    alias, role, expires, used, revoked = row
    if used is not None:
        raise JoinRefusedError("that invite has been used already", advice=_ASK)
    if revoked is not None:
        raise JoinRefusedError("that invite was taken back by the coordinator", advice=_ASK)
    if now > expires:
        raise JoinRefusedError("that invite has expired", advice=_ASK)
    _refuse_taken(db, alias, keys)
    return alias, _role(role)


def _refuse_taken(db: sqlite3.Connection, alias: str, keys: PublicKeys) -> None:
    taken = db.execute(
        "SELECT revoked FROM nodes WHERE (alias = ? AND revoked IS NULL) OR flower_key = ? OR node_key = ?",
        (alias, keys.flower, keys.node_key),
    ).fetchall()
    if any(revoked is not None for (revoked,) in taken):
        raise JoinRefusedError(
            "the membership of this machine's key was ended",
            advice="Ask the coordinator. To join anew, ask for an invite and use a new home folder (--home).",
        )
    if taken:
        raise _taken(alias)


def _insert(db: sqlite3.Connection, node: Node, invite: str | None) -> None:
    keys = json.dumps(node.keys.to_plain())
    row = (str(node.node_id), node.alias, node.role, node.keys.flower, node.keys.node_key, keys, node.joined, invite)
    try:
        db.execute("INSERT INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
    except sqlite3.IntegrityError as error:
        raise _taken(node.alias) from error


def _node(node_id: str, alias: str, role: str, keys: str, joined: str, revoked: str | None) -> Node:
    return Node(int(node_id), alias, _role(role), PublicKeys.from_plain(json.loads(keys)), joined, revoked)


def _job(job: int, wanted: int, state: str, detail: str, run: str | None, starts: int) -> Job:
    for known in get_args(JobState):
        if known == state:
            return Job(job, wanted, known, detail, None if run is None else int(run), starts)
    raise ValueError(f"not a job's state: {state!r}")


def _round(
    number: int,
    state: str,
    detail: str,
    started: float,
    changed: float,
    version: int | None,
    base: str,
    policy: str,
    deadline: float | None,
) -> Round:
    return Round(number, _state(state), detail, started, changed, version, base, policy, deadline)


def _iso(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")


def _taken(alias: str) -> JoinRefusedError:
    return JoinRefusedError(
        f"there is a member called {alias!r}, or with this machine's key, already",
        advice="Ask the coordinator for an invite under another name.",
    )


def _refuse_other_version(db: sqlite3.Connection) -> None:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    is_new = db.execute("SELECT 1 FROM sqlite_schema").fetchone() is None
    if not is_new and version != _VERSION:
        raise NotConfiguredError(
            f"the coordinator's database is of version {version}, and this program's is {_VERSION}",
            advice="Use the program it was made with, or set up a coordinator in a new folder (--home).",
        )


def _unwritable(error: sqlite3.OperationalError) -> ResourceError:
    return ResourceError(
        f"the coordinator's database cannot be used: {error}",
        advice="Free some disk space and check that nothing else holds the file; nothing was half-written.",
    )


def _sha256(secret: bytes) -> str:
    return hashlib.sha256(b"sfumato invite secret" + secret).hexdigest()


def _role(value: str) -> Role:
    for role in get_args(Role):
        if role == value:
            return role  # type: ignore[no-any-return]
    raise ValueError(f"not a role: {value!r}")


def _state(value: str) -> RoundState:
    for state in get_args(RoundState):
        if state == value:
            return state  # type: ignore[no-any-return]
    raise ValueError(f"not a round's state: {value!r}")
