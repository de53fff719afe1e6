"""The jobs on disk: one SQLite file, one connection, one thread.

What is committed here survives ``kill -9``; what has to survive a power cut too waits for the
disk. Two connections at once would meet SQLite's WAL-reset race, so a lock keeps every other
process out.
"""

import asyncio
import contextlib
import fcntl
import importlib.resources
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from aiotranscribe.course import Change, Finding
from aiotranscribe.errors import DataFolderInUse, StorageUnavailable, UnusableStore
from aiotranscribe.job import Job

T = TypeVar("T")

# Ours, in the header of the file (https://www.sqlite.org/fileformat.html, section 1.3).
_APPLICATION_ID = 0x61696F74
_HEADER, _HEADER_BYTES = b"SQLite format 3\0", 100

_encode = msgspec.json.Encoder().encode
_decode_job = msgspec.json.Decoder(Job).decode
_decode_finding = msgspec.json.Decoder(Finding).decode


class Store:
    """The jobs in ``folder``.

    Args:
        folder: Is made if need be, for its owner only.
        schema: The text of ``schema.sql``; only tests have another.
    """

    def __init__(self, folder: Path, *, schema: str | None = None) -> None:
        self._folder = folder
        self._path = folder / "jobs.sqlite3"
        text = schema or (importlib.resources.files(__package__) / "schema.sql").read_text("utf-8")
        #: What brings the schema from each version to the next.
        self._steps = text.split("\n-- version ")[1:]
        self._thread = ThreadPoolExecutor(1, "store")

    async def open(self) -> None:
        """Take possession of the folder.

        Raises:
            DataFolderInUse: somebody else has it.
            UnusableStore: the database is damaged, or not ours.
            StorageUnavailable: the folder cannot be written.
        """
        try:
            await self._call(self._open)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    async def close(self) -> None:
        """Give the folder back, once all that was begun is done."""
        await self._call(self._close)
        self._thread.shutdown()

    async def jobs(self) -> Sequence[Job]:
        """Return all jobs, in the order in which they were accepted."""
        rows = await self._call(lambda: self._select("SELECT job FROM jobs ORDER BY number"))
        return [self._read(_decode_job, row) for row in rows]

    async def findings(self, job_id: str) -> Sequence[Finding]:
        """Return what a job's workers found; nothing if there is no such job."""
        query = "SELECT finding FROM findings WHERE job_id = ? ORDER BY number"

        def select() -> Sequence[Finding]:
            return [self._read(_decode_finding, row) for row in self._select(query, job_id)]

        return await self._call(select)

    async def commit(self, changes: Iterable[Change], deleted: Iterable[str] = ()) -> None:
        """Write down all of this, or nothing.

        Args:
            changes: What has changed.
            deleted: Jobs to forget.

        Raises:
            StorageUnavailable: that is not possible now; try again later.
        """
        await self._call(lambda: self._commit(list(changes), list(deleted)))

    # -- in the thread -------------------------------------------------------------------

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._guarded, function
        )

    def _guarded(self, function: Callable[[], T]) -> T:
        """Say in our words what is wrong with the disk."""
        try:
            return function()
        except (OSError, sqlite3.OperationalError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise StorageUnavailable(f"{self._folder} cannot be written: {reason}") from error
        except sqlite3.DatabaseError as error:
            raise self._unusable(f"is damaged ({error})") from error

    def _unusable(self, reason: str) -> UnusableStore:
        return UnusableStore(
            f"{self._path} {reason}; it is left as it is: move it away to begin anew, or name "
            "another folder with --data-dir"
        )

    def _read(self, decode: Callable[[str], T], row: tuple[str]) -> T:
        try:
            return decode(row[0])
        except msgspec.DecodeError as error:
            raise self._unusable(f"has a row that makes no sense ({error})") from error

    def _open(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take_lock()
            if self._exists():
                with contextlib.closing(self._connect(self._path, "ro")) as connection:
                    self._check(connection)
            else:
                self._create()
            self._connection = self._connect(self._path, "rw")
            self._migrate(self._connection)
        except BaseException:
            os.close(self._lock)
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 20, 0).decode(errors="replace").strip() or "unknown"
            raise DataFolderInUse(
                f"{self._folder} is in use by another aiotranscribe (process {holder}); stop it "
                "first, or name another folder with --data-dir"
            ) from error
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _exists(self) -> bool:
        """Whether there is a database of ours; another one is refused before SQLite touches it."""
        try:
            with self._path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
        except FileNotFoundError:
            return False
        if not (
            header.startswith(_HEADER) and int.from_bytes(header[68:72], "big") == _APPLICATION_ID
        ):
            raise self._unusable("is not a database of aiotranscribe")
        return True

    def _check(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(self._steps):
            raise self._unusable(f"is of a newer aiotranscribe (schema {version})")
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise self._unusable(f"is damaged ({' '.join(found.split())})")

    def _create(self) -> None:
        """Make an empty database that has our mark from its first moment."""
        path = self._path.with_suffix(".new")
        path.unlink(missing_ok=True)
        path.touch(0o600)
        with contextlib.closing(self._connect(path, "rw")) as connection:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._migrate(connection)
        path.rename(self._path)

    def _connect(self, path: Path, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA foreign_keys = ON")
        if mode == "rw" and path == self._path:
            connection.execute("PRAGMA journal_mode = WAL")
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for number, step in enumerate(self._steps[version:], version + 1):
            _, _, script = step.partition("\n")
            with self._transaction(connection):
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

    def _select(self, query: str, *arguments: str) -> list[tuple[str]]:
        return self._connection.execute(query, arguments).fetchall()

    def _commit(self, changes: Sequence[Change], deleted: Sequence[str]) -> None:
        connection = self._connection
        is_lasting = bool(deleted) or any(change.is_lasting for change in changes)
        connection.execute(f"PRAGMA synchronous = {'FULL' if is_lasting else 'NORMAL'}")
        with self._transaction(connection):
            for change in changes:
                connection.execute(
                    "INSERT INTO jobs (id, job) VALUES (?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET job = excluded.job",
                    (change.job.id, _encode(change.job).decode()),
                )
                connection.executemany(
                    "INSERT INTO findings VALUES (?, ?, ?)",
                    (
                        (change.job.id, number, _encode(finding).decode())
                        for number, finding in enumerate(change.findings, change.first)
                    ),
                )
            connection.executemany("DELETE FROM jobs WHERE id = ?", ((it,) for it in deleted))

    @contextlib.contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            # SQLite itself may have rolled back already, when the disk is full.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _close(self) -> None:
        self._connection.close()
        os.close(self._lock)


def _statements(script: str) -> Iterator[str]:
    """Split a script; ``executescript`` would commit in the middle of our transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
