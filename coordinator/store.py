"""The coordinator's memory in SQLite: invites, nodes, rounds and what came of each node in each round.

Every method is one transaction, durable when it returns (WAL, synchronous FULL), so that a kill between two of them loses
nothing that was promised to anybody.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from coordinator.errors import JoinRefusedError
from export.errors import ResourceError

Role = Literal["artist", "gallery"]
RoundState = Literal["gathering", "training", "judging", "published", "refused", "failed"]

# Flower's node ids are unsigned 64-bit numbers, which SQLite's integers do not hold: they are kept as text.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS invites (
    secret_sha256 TEXT PRIMARY KEY,
    alias TEXT NOT NULL,
    role TEXT NOT NULL,
    expires REAL NOT NULL,
    used REAL
) STRICT;
CREATE TABLE IF NOT EXISTS nodes (
    node_id TEXT PRIMARY KEY,
    alias TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    public_key TEXT NOT NULL UNIQUE,
    joined TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    started REAL NOT NULL,
    changed REAL NOT NULL,
    version INTEGER
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
    PRIMARY KEY (round, node_id)
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A member."""

    node_id: int
    alias: str
    role: Role
    public_key: str
    joined: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one node in one round; numbers are absent where nothing usable came."""

    node_id: int
    accepted: bool
    reason: str
    bytes: int
    norm: float | None
    loss_before: float | None
    loss_after: float | None
    steps: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """One round: `version` is the release it led to, if any."""

    round: int
    state: RoundState
    detail: str
    started: float
    changed: float
    version: int | None


class Store:
    """The database. Opens a connection per call: several processes and threads share it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with self._transaction() as db:
            db.executescript(_SCHEMA)

    def add_invite(self, secret: bytes, alias: str, role: Role, expires: float) -> None:
        """Remember an invite by the digest of its secret."""
        with self._transaction() as db:
            db.execute("INSERT INTO invites VALUES (?, ?, ?, ?, NULL)", (_sha256(secret), alias, role, expires))

    def invited(self, secret: bytes, public_key: str, now: float) -> tuple[str, Role]:
        """What an invite is good for: the alias and the role it was made for. It stays good.

        Raises:
            JoinRefusedError: unknown, used or expired; or the alias or the key is a member's already. It says which, to the
                holder of the secret alone.
        """
        with self._transaction() as db:
            return _invited(db, secret, public_key, now)

    def joined_with(self, secret: bytes, public_key: str) -> Node | None:
        """The member that joined with exactly this invite and key, whose answer may have been lost on its way."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT node_id, nodes.alias, nodes.role, public_key, joined FROM nodes JOIN invites USING (alias)"
                " WHERE secret_sha256 = ? AND used IS NOT NULL AND public_key = ?",
                (_sha256(secret), public_key),
            ).fetchone()
        return _node(*row) if row else None

    def join(self, secret: bytes, public_key: str, node_id: int, now: float) -> Node:
        """Use an invite up and enrol its holder, both or neither.

        Raises:
            JoinRefusedError: as ``invited``, or the node's number is a member's already.
        """
        joined = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        with self._transaction() as db:
            alias, role = _invited(db, secret, public_key, now)
            try:
                db.execute("INSERT INTO nodes VALUES (?, ?, ?, ?, ?)", (str(node_id), alias, role, public_key, joined))
            except sqlite3.IntegrityError as error:
                raise _taken(alias) from error
            db.execute("UPDATE invites SET used = ? WHERE secret_sha256 = ?", (now, _sha256(secret)))
        return Node(node_id, alias, role, public_key, joined)

    def nodes(self) -> list[Node]:
        """Every member, by alias."""
        with self._transaction() as db:
            rows = db.execute("SELECT node_id, alias, role, public_key, joined FROM nodes ORDER BY alias").fetchall()
        return [_node(*row) for row in rows]

    def open_round(self, now: float) -> int:
        """Begin the next round and return its number."""
        with self._transaction() as db:
            number = int(db.execute("SELECT COALESCE(MAX(round), 0) + 1 FROM rounds").fetchone()[0])
            db.execute("INSERT INTO rounds VALUES (?, 'gathering', '', ?, ?, NULL)", (number, now, now))
        return number

    def close_open_rounds(self, detail: str, now: float) -> None:
        """Write down as failed whatever a process that is gone left under way."""
        with self._transaction() as db:
            db.execute(
                "UPDATE rounds SET state = 'failed', detail = ?, changed = ?"
                " WHERE state IN ('gathering', 'training', 'judging')",
                (detail, now),
            )

    def set_round(self, number: int, state: RoundState, detail: str, now: float, version: int | None = None) -> None:
        """Move a round on; `detail` says what is being waited for, or what came out."""
        with self._transaction() as db:
            db.execute(
                "UPDATE rounds SET state = ?, detail = ?, changed = ?, version = ? WHERE round = ?",
                (state, detail, now, version, number),
            )

    def add_answer(self, number: int, answer: Answer) -> None:
        """Record what came of a node; the first record of a node in a round stands."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                ),
            )

    def rounds(self) -> list[Round]:
        """Every round, oldest first."""
        with self._transaction() as db:
            rows = db.execute("SELECT round, state, detail, started, changed, version FROM rounds ORDER BY round").fetchall()
        return [Round(r, _state(state), *rest) for r, state, *rest in rows]

    def answers(self, number: int) -> list[Answer]:
        """What came of each node in a round."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT node_id, accepted, reason, bytes, norm, loss_before, loss_after, steps, seconds"
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


def _invited(db: sqlite3.Connection, secret: bytes, public_key: str, now: float) -> tuple[str, Role]:
    row = db.execute("SELECT alias, role, expires, used FROM invites WHERE secret_sha256 = ?", (_sha256(secret),)).fetchone()
    if row is None:
        raise JoinRefusedError("this coordinator does not know that invite", advice=_ASK)
    alias, role, expires, used = row
    if used is not None:
        raise JoinRefusedError("that invite has been used already", advice=_ASK)
    if now > expires:
        raise JoinRefusedError("that invite has expired", advice=_ASK)
    if db.execute("SELECT 1 FROM nodes WHERE alias = ? OR public_key = ?", (alias, public_key)).fetchone():
        raise _taken(alias)
    return alias, _role(role)


def _node(node_id: str, alias: str, role: str, public_key: str, joined: str) -> Node:
    return Node(int(node_id), alias, _role(role), public_key, joined)


def _taken(alias: str) -> JoinRefusedError:
    return JoinRefusedError(
        f"there is a member called {alias!r}, or with this machine's key, already",
        advice="Ask the coordinator for an invite under another name.",
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
