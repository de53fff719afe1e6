"""The store: real SQLite files, good ones, foreign ones, broken ones."""

import asyncio
import os
import resource
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aiotranscribe import store as stores
from aiotranscribe.course import Change, Finding
from aiotranscribe.engine.messages import Recognised, SpanFound
from aiotranscribe.engine.spans import Span
from aiotranscribe.errors import (
    AiotranscribeError,
    DataFolderInUse,
    Problem,
    StorageUnavailable,
    UnusableStore,
)
from aiotranscribe.job import Job, Options, Status
from aiotranscribe.progress import Pace
from aiotranscribe.store import Store
from aiotranscribe.transcript import FullSegment, Word
from tests import builders

SCHEMA = (Path(stores.__file__).parent / "schema.sql").read_text()
FOUND: list[Finding] = [
    SpanFound(Span(0, ((0, 160_000), (200_000, 300_000)))),
    Recognised(0, (builders.full_segment(0), builders.full_segment(1)), 400, is_done=False),
]


def job(job_id: str, **changes: object) -> Job:
    """Return a job that has just been accepted, but for ``changes``."""
    return Job(id=job_id, name="memo.ogg", created=1.5, options=Options(), **changes).go_on("7")  # type: ignore[arg-type]


def change(job: Job, *findings: Finding, first: int = 0, is_lasting: bool = False) -> Change:
    """Return a change of a job."""
    return Change(job, first, findings, is_lasting)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files in a folder, but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An open store, closed in the end."""
    store = Store(tmp_path)
    await store.open()
    yield store
    await store.close()


async def reopened(folder: Path, **more: str) -> Store:
    """Return an open store of a folder that may have been one before."""
    store = Store(folder, **more)
    await store.open()
    return store


# -- what is committed -------------------------------------------------------------------------


async def test_what_was_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    """Otherwise a restart loses jobs, or their text."""
    store = await reopened(tmp_path)
    failed = job("a", error=Problem("undecodable", "no sound"), status=Status.FAILED, duration=9.5)
    await store.commit([change(failed, is_lasting=True), change(job("b"), *FOUND)])
    more = Recognised(0, (builders.full_segment(2),), 900, is_done=True)
    await store.commit([change(job("b", percentage=50.0), more, first=2)])
    await store.close()

    store = await reopened(tmp_path)
    assert await store.jobs() == [failed, job("b", percentage=50.0)]
    assert await store.findings("a") == []
    assert await store.findings("b") == [*FOUND, more]
    await store.close()


async def test_jobs_keep_the_order_in_which_they_came(store: Store) -> None:
    """Otherwise a restart shuffles the queue."""
    names = [f"{number * 7919 % 1000:03}" for number in range(50)]
    for name in names:
        await store.commit([change(job(name))])
    for name in reversed(names):
        await store.commit([change(job(name, percentage=5.0))])
    assert [each.id for each in await store.jobs()] == names


async def test_words_survive(store: Store) -> None:
    """Otherwise a restart loses what a job asked for at some cost."""
    segment = builders.full_segment(0)
    words = (Word(0.0, 0.5, " Olá,", 0.25), Word(0.5, 1.0, " \U0001f600\0'\"", 1.0))
    found = Recognised(
        0, (type(segment)(0, 0.0, 1.0, " Olá \U0001f600", words),), 100, is_done=True
    )
    await store.commit([change(job("a"), FOUND[0], found)])
    assert (await store.findings("a"))[1] == found


async def test_the_pace_of_the_machine_is_remembered(store: Store) -> None:
    """Otherwise the first minutes after each start have no idea of how long anything takes."""
    assert await store.paces() == {}
    await store.commit([change(job("a"))], paces={"decoding": Pace(5.0, 0.1)})
    await store.commit([change(job("b"))], paces={"decoding": Pace(9.0, 0.5), "x": Pace(1.0, 2.0)})
    assert await store.paces() == {"decoding": Pace(9.0, 0.5), "x": Pace(1.0, 2.0)}


async def test_nothing_of_a_deleted_job_remains(store: Store, tmp_path: Path) -> None:
    """Otherwise what somebody wanted gone can still be read from the disk."""
    await store.commit([change(job("a"), *FOUND), change(job("b"), *FOUND)])
    await store.commit([change(job("a", percentage=9.0))], ["a"])
    assert [each.id for each in await store.jobs()] == ["b"]
    assert await store.findings("a") == []
    assert await store.findings("b") == FOUND
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as connection:
        assert connection.execute("SELECT DISTINCT job_id FROM findings").fetchall() == [("b",)]
    connection.close()


async def test_what_is_deleted_is_overwritten(tmp_path: Path) -> None:
    """Otherwise whoever finds the disk finds the text."""
    store = await reopened(tmp_path)
    secret = FullSegment(0, 0.0, 1.0, " The password is swordfish.")
    found = Recognised(0, (secret,), 100, is_done=True)
    await store.commit([change(job("a"), FOUND[0], found), change(job("b"))])
    assert any(b"swordfish" in data for data in contents(tmp_path).values())
    await store.commit([], ["a"])
    await store.close()
    assert not any(b"swordfish" in data for data in contents(tmp_path).values())


async def test_a_commit_is_all_or_nothing(store: Store) -> None:
    """Otherwise a job has text that was never told, or a percentage for text that is lost."""
    await store.commit([change(job("a"), *FOUND)])
    with pytest.raises(AiotranscribeError):  # these findings are there already
        await store.commit([change(job("b")), change(job("a", percentage=99.0), *FOUND)])
    assert await store.jobs() == [job("a")]
    await store.commit([change(job("b"))])
    assert len(await store.jobs()) == 2


@pytest.mark.parametrize(("is_lasting", "synchronous"), [(True, 2), (False, 1)])
async def test_what_must_outlive_a_power_cut_waits_for_the_disk(
    store: Store, is_lasting: bool, synchronous: int
) -> None:
    """Otherwise a job that was accepted is gone after a power cut (or every word waits)."""
    await store.commit([change(job("a"), is_lasting=is_lasting)])
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    await store.commit([], ["a"])
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_the_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    """Otherwise everybody on the machine reads what was dictated."""
    store = await reopened(tmp_path / "a" / "b")
    await store.commit([change(job("a"))])
    for path in (tmp_path / "a" / "b", *(tmp_path / "a" / "b").iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    await store.close()


# -- who may have it ---------------------------------------------------------------------------


async def test_a_folder_in_use_is_refused(store: Store, tmp_path: Path) -> None:
    """Otherwise two servers do the same jobs twice, and damage the file."""
    with pytest.raises(DataFolderInUse, match=rf"process {os.getpid()}\).*--data-dir"):
        await reopened(tmp_path)
    await store.commit([change(job("a"))])


async def test_a_folder_that_was_left_is_free(tmp_path: Path) -> None:
    """Otherwise a server that was killed cannot be started again."""
    (tmp_path / "lock").write_text("1")
    await (await reopened(tmp_path)).close()
    await (await reopened(tmp_path)).close()


# -- what is not ours --------------------------------------------------------------------------


def foreign(path: Path) -> None:
    """Another program's database."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE jobs (id)")
    connection.close()


def text(path: Path) -> None:
    """No database at all."""
    path.write_text("Dear diary, " * 100)


def empty(path: Path) -> None:
    """What a disk that was full may leave."""
    path.touch()


def damaged(path: Path) -> None:
    """One of ours, in which something has written zeros."""
    _ours(path)
    data = bytearray(path.read_bytes())
    data[4096:20480] = bytes(16384)
    path.write_bytes(data)


def cut(path: Path) -> None:
    """One of ours, of which only the beginning is left."""
    _ours(path)
    os.truncate(path, 5000)


def newer(path: Path) -> None:
    """One that a later version has written."""
    _ours(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def _ours(path: Path) -> None:
    async def fill() -> None:
        store = await reopened(path.parent)
        await store.commit([change(job(f"{number}"), *FOUND) for number in range(100)])
        await store.close()

    asyncio.run(fill())


@pytest.mark.parametrize("make", [foreign, text, empty, damaged, cut, newer])
def test_what_cannot_be_used_is_refused_and_left_alone(make: object, tmp_path: Path) -> None:
    """Otherwise somebody's only copy of something is overwritten."""
    assert callable(make)
    make(tmp_path / "jobs.sqlite3")
    before = contents(tmp_path)
    with pytest.raises(UnusableStore, match=r"jobs\.sqlite3 .* left as it is.*--data-dir"):
        asyncio.run(reopened(tmp_path))
    after = contents(tmp_path)
    # SQLite may make its helper files, empty ones; what was there is as it was.
    assert {name: after[name] for name in before} == before
    # And once all is moved away, there is a beginning.
    tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-away"))
    asyncio.run(_opens(tmp_path))


@pytest.mark.parametrize("left", ["jobs.sqlite3-wal", f"spool/{'a' * 32}/recording"])
async def test_a_folder_without_its_database_is_left_alone(tmp_path: Path, left: str) -> None:
    """Otherwise recordings are removed as nobody's, or an old text turns up in a new database."""
    store = await reopened(tmp_path)
    await store.close()
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("precious")
    (tmp_path / "jobs.sqlite3").unlink()
    for _ in range(2):
        with pytest.raises(UnusableStore, match=r"is gone, but not .*move .* away as a whole"):
            await reopened(tmp_path)
    assert (tmp_path / left).read_text() == "precious"


async def _opens(folder: Path) -> None:
    await (await reopened(folder)).close()


async def test_a_row_that_makes_no_sense_is_said(tmp_path: Path) -> None:
    """Otherwise a traceback tells a self-hoster nothing."""
    store = await reopened(tmp_path)
    await store.commit([change(job("a"))])
    await store.close()
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as connection:
        connection.execute("UPDATE jobs SET job = '{}'")
    connection.close()
    store = await reopened(tmp_path)
    with pytest.raises(UnusableStore, match="makes no sense"):
        await store.jobs()
    await store.close()


# -- versions ----------------------------------------------------------------------------------

NEXT = SCHEMA + "\n-- version 2\nALTER TABLE jobs ADD COLUMN note TEXT NOT NULL DEFAULT 'x;y';\n"


async def test_an_older_database_is_brought_up_to_date(tmp_path: Path) -> None:
    """Otherwise an update loses all jobs, or crashes."""
    store = await reopened(tmp_path)
    await store.commit([change(job("a"), *FOUND)])
    await store.close()
    for _ in range(2):
        store = await reopened(tmp_path, schema=NEXT)
        assert await store.jobs() == [job("a")]
        assert await store.findings("a") == FOUND
        assert store._select("SELECT note FROM jobs") == [("x;y",)]
        await store.close()
    with pytest.raises(UnusableStore, match="newer"):
        await reopened(tmp_path)


async def test_segments_of_an_older_version_are_read(tmp_path: Path) -> None:
    """Otherwise an update loses the text of every job that came before it."""
    store = await reopened(tmp_path)
    await store.commit([change(job("a"))])
    segment = '{"id":0,"start":0.0,"end":2.0,"text":" Number 0."}'
    found = f'{{"type":"Recognised","span":0,"segments":[{segment}],"seek":200,"is_done":true}}'
    store._connection.execute("INSERT INTO findings VALUES ('a', 0, ?)", (found,))
    (read,) = await store.findings("a")
    assert isinstance(read, Recognised)
    assert [each.brief() for each in read.segments] == [builders.segment(0)]
    await store.close()


async def test_an_update_that_fails_changes_nothing(tmp_path: Path) -> None:
    """Otherwise neither the new version nor the old one can read what is left."""
    await (await reopened(tmp_path)).close()
    broken = NEXT + "\n-- version 3\nCREATE TABLE more (id);\nINSERT INTO nowhere VALUES (1);\n"
    with pytest.raises(StorageUnavailable, match="nowhere"):
        await reopened(tmp_path, schema=broken)
    store = await reopened(tmp_path, schema=NEXT)
    assert store._select("SELECT name FROM sqlite_schema WHERE name = 'more'") == []
    await store.close()


# -- a disk that cannot ------------------------------------------------------------------------


async def fill(store: Store) -> None:
    """Accept more jobs than there is room for."""
    for number in range(1000):
        await store.commit([change(job(f"{number}"), *FOUND)])


async def test_a_full_disk_takes_nothing_and_breaks_nothing(store: Store, tmp_path: Path) -> None:
    """Otherwise what was safe is lost when the disk is full, or half of a change is kept."""
    await store.commit([change(job("a"), *FOUND)])
    size = max(len(data) for data in contents(tmp_path).values())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow any more: to a program, that is as good as a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(StorageUnavailable, match="cannot be written"):
            await fill(store)
        known = await store.jobs()
        assert known[0] == job("a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await store.commit([change(job("z"))])
    assert await store.jobs() == [*known, job("z")]


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """Otherwise a mistyped ``--data-dir`` is a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable, match="cannot be written"):
        await reopened(tmp_path / "file" / "data")


async def test_a_copy_of_the_file_is_a_backup(store: Store, tmp_path: Path) -> None:
    """Otherwise there is no way to keep a copy but to stop the server."""
    await store.commit([change(job("a"), *FOUND)])
    (tmp_path / "backup").mkdir()
    for name in ("jobs.sqlite3", "jobs.sqlite3-wal"):
        shutil.copy(tmp_path / name, tmp_path / "backup" / name)
    backup = await reopened(tmp_path / "backup")
    assert await backup.jobs() == [job("a")]
    await backup.close()
