"""What users took, as an endpoint was told: a log on disk, where an event that was acknowledged is there after a crash.

It is an SQLite file, and one process of the endpoint has it open. Replicas read on from the last event that they know.
Beside the events lie the codes that an LLM has made of them, which replicas read on likewise; so whose events are not
read yet is what the log says, and no queue beside it can lose them.
"""

import secrets
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from llm4msr.errors import StorageError

FILE = "events.sqlite"
DAY = 86_400.0
EXPIRE_EVERY_S = 60.0
TABLE = """
    CREATE TABLE IF NOT EXISTS events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE, user_id TEXT NOT NULL,
        item_id TEXT NOT NULL, scenario TEXT NOT NULL, liked INTEGER NOT NULL, time REAL NOT NULL, arrived REAL NOT NULL
    );
    CREATE INDEX IF NOT EXISTS by_user ON events (user_id);
    CREATE INDEX IF NOT EXISTS by_arrival ON events (arrived);
    CREATE TABLE IF NOT EXISTS codes (
        change INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL UNIQUE, sequence INTEGER NOT NULL,
        arrived REAL NOT NULL, reader TEXT NOT NULL, coder TEXT NOT NULL, code BLOB NOT NULL
    );
"""
COLUMNS = "sequence, user_id, item_id, scenario, liked, time, arrived"
"""Those of a `LoggedEvent`."""
SAFE = ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "busy_timeout = 5000")
"""What is committed survives a loss of power; what is deleted is overwritten; another process is waited for."""

Row = tuple[str, str, str, str, bool, float]
"""Event id, user id, item id, scenario, liked, time."""


class LoggedEvent(NamedTuple):
    """An event of the log."""

    sequence: int
    user_id: str
    item_id: str
    scenario: str
    liked: bool
    time: float
    """When the user took the item, in seconds since 1970."""
    arrived: float
    """When it was logged, likewise."""


class LoggedCode(NamedTuple):
    """A user's code, made of all their events until one of them."""

    change: int
    """Grows with each code that is logged; a user's newer one takes the place of the older."""
    user_id: str
    sequence: int
    """Of the last of those events."""
    arrived: float
    """When it was logged, in seconds since 1970."""
    reader: str
    """Identity of what made the code, and of the data that it added the events to."""
    coder: str
    """Checksum of the coder of the bundle that can use the code."""
    code: bytes
    """float16 [K]; empty where the events change nothing, or cannot be read."""


class Page(NamedTuple):
    """Events and codes that follow each other in the log."""

    epoch: int
    """Another number: something was deleted at somebody's wish, or this is another log. Read from the beginning."""
    events: list[LoggedEvent]
    codes: list[LoggedCode] = []  # noqa: RUF012 - nobody changes it


class Unread(NamedTuple):
    """Users with events that their code is not made of."""

    epoch: int
    sequence: int
    """All events until this one are of users who are read or stand here."""
    events: dict[str, list[LoggedEvent]]
    """The latest of each user, the latest by their time first."""


class EventLog:
    """The log of a folder.

    Args:
        folder: of a disk of this machine; made where it is missing.
        days: how long an event is kept.
        most: how many of the latest are read, which is what a replica can hold; it need not read a whole log first.

    Raises:
        StorageError: the folder cannot be used, or what lies there is no such log.
    """

    def __init__(self, folder: str, days: float, most: int):
        self._days, self._most, self._expired, self._lock = days, most, 0.0, threading.Lock()
        file = Path(folder) / FILE
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = sqlite3.connect(file, check_same_thread=False)
            file.chmod(0o600)
            for setting in SAFE:
                self._database.execute(f"PRAGMA {setting}")
            self._database.executescript(TABLE)
            if not self._epoch():
                self._set_epoch(secrets.randbelow(1 << 30) + 1)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{file}: cannot keep events there ({error}); set serve.events") from None

    def append(self, rows: Sequence[Row], now: float) -> int:
        """Log events, on disk when this returns; gives back how many of them have an id that the log does not know."""
        with self._lock, self._database as database:
            added = database.executemany(
                "INSERT INTO events (event_id, user_id, item_id, scenario, liked, time, arrived) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
                [(*row, now) for row in rows],
            )
            return added.rowcount

    def since(self, sequence: int, limit: int, now: float, change: int = 0) -> Page:
        """The events after this one, if they are among the latest, and the codes after this change; so many at most."""
        with self._lock, self._database as database:
            if now - self._expired >= EXPIRE_EVERY_S:
                for table in ("events", "codes"):
                    database.execute(f"DELETE FROM {table} WHERE arrived < ?", [now - self._days * DAY])
                self._expired = now
            found = database.execute(
                f"SELECT {COLUMNS} FROM events "
                "WHERE sequence > max(?, (SELECT max(sequence) FROM events) - ?) ORDER BY sequence LIMIT ?",
                [sequence, self._most, limit],
            )
            codes = database.execute("SELECT * FROM codes WHERE change > ? ORDER BY change LIMIT ?", [change, limit])
            return Page(self._epoch(), _events(found), [LoggedCode(*one) for one in codes])

    def of(self, user_id: str, limit: int) -> list[LoggedEvent]:
        """A user's latest events by their time, the latest first; so many at most."""
        with self._lock:
            return self._of(user_id, limit)

    def unread(self, sequence: int, users: int, limit: int, reader: str) -> Unread:
        """Users with events after this one that the reader's codes are not made of, the longest waiting first.

        Args:
            sequence: what an earlier call gave back; 0 at first.
            users: so many events of them at most, and so no more of them.
            limit: of the events that are given of each.
            reader: whose codes count.
        """
        with self._lock:
            found = self._database.execute(
                "SELECT sequence, user_id FROM events e WHERE sequence > ? AND NOT EXISTS (SELECT 1 FROM codes c WHERE "
                "c.user_id = e.user_id AND c.reader = ? AND c.sequence >= e.sequence) ORDER BY sequence LIMIT ?",
                [sequence, reader, users],
            ).fetchall()
            events = {user_id: self._of(user_id, limit) for _, user_id in found}
            return Unread(self._epoch(), found[-1][0] if found else sequence, events)

    def put_codes(self, codes: Sequence[LoggedCode]) -> None:
        """Log codes, whatever their `change`; not of a user who was forgotten since, and whose event is gone."""
        with self._lock, self._database as database:
            database.executemany(
                "INSERT OR REPLACE INTO codes (user_id, sequence, arrived, reader, coder, code) "
                "SELECT ?, ?, ?, ?, ?, ? WHERE EXISTS (SELECT 1 FROM events WHERE sequence = ? AND user_id = ?)",
                [(*one[1:], one.sequence, one.user_id) for one in codes],
            )

    def _of(self, user_id: str, limit: int) -> list[LoggedEvent]:
        found = self._database.execute(
            f"SELECT {COLUMNS} FROM events WHERE user_id = ? ORDER BY time DESC, sequence DESC LIMIT ?",
            [user_id, limit],
        )
        return _events(found)

    def forget(self, user_ids: Sequence[str]) -> int:
        """Delete all events of these users, without a trace in the files; gives back how many there were."""
        with self._lock:
            with self._database as database:
                users = [(one,) for one in user_ids]
                deleted = database.executemany("DELETE FROM events WHERE user_id = ?", users)
                codes = database.executemany("DELETE FROM codes WHERE user_id = ?", users)
                if deleted.rowcount or codes.rowcount:
                    self._set_epoch(self._epoch() + 1)
            self._database.execute("VACUUM")  # a page keeps scraps of what moved to others when it was full
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return deleted.rowcount

    def _epoch(self) -> int:
        (epoch,) = self._database.execute("PRAGMA user_version").fetchone()
        return int(epoch)

    def _set_epoch(self, epoch: int) -> None:
        self._database.execute(f"PRAGMA user_version = {epoch:d}")


def _events(found: Iterable[tuple[int, str, str, str, int, float, float]]) -> list[LoggedEvent]:
    return [LoggedEvent(n, u, i, s, bool(liked), at, arrived) for n, u, i, s, liked, at, arrived in found]
