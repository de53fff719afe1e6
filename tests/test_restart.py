"""What a restart, a kill or a full disk leaves: everything that was told."""

import asyncio
import contextlib
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from aiotranscribe import Client, Config, Frame, Options, Transcriber
from aiotranscribe.errors import DataFolderInUse, JobNotFound, ServerError
from aiotranscribe.job import Status
from tests import scripted
from tests.conftest import ROOT, SAMPLE, SCRIPTED, Server
from tests.scripted import Script
from tests.waiting import LONG_S, check, merge, to_end, until, until_frame

MakeWav = Callable[[float], Path]

ENDLESS = Script(segments=10_000, delay=0.05)
#: Long enough to be killed in the middle, short enough to wait for.
LONG = Script(segments=4, delay=0.1)


def make(folder: Path, **settings: object) -> Transcriber:
    """Return a transcriber with scripted models and one worker, not entered yet."""
    config = Config(model=("scripted",), workers=1, data_dir=folder, **settings)  # type: ignore[arg-type]
    return Transcriber(config, loader=scripted.load)


async def ended(transcriber: Transcriber, job_id: str) -> Frame:
    """Return the terminal frame of a job."""
    return await until_frame(transcriber.watch(job_id), lambda frame: frame.status.is_terminal)


def spooled(folder: Path) -> set[str]:
    """Return the files of all jobs."""
    spool = folder / "spool"
    return {str(path.relative_to(spool)) for path in spool.rglob("*/*") if path.is_file()}


# -- an orderly restart ------------------------------------------------------------------------


async def test_finished_jobs_are_there_after_a_restart(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise yesterday's transcript is gone with today's update."""
    async with make(tmp_path) as transcriber:
        jobs = [
            await transcriber.submit(make_wav(2.0), options=script.options(), name=f"{number}")
            for number, script in enumerate([Script(segments=3), Script(segments=3, fail_at=1)])
        ]
        before = [(await to_end(transcriber.watch(job.id)))[-1] for job in jobs]
        text = (await transcriber.transcript(jobs[0].id)).text
    async with make(tmp_path) as transcriber:
        assert [job.name for job in transcriber.jobs()] == ["1", "0"]
        for job, last in zip(jobs, before, strict=True):
            (frame,) = await to_end(transcriber.watch(job.id))
            assert (frame.status, frame.message) == (last.status, last.message)
            assert (frame.error, frame.cursor) == (last.error, last.cursor)
            assert (frame.progress_percentage, frame.speed) == (
                last.progress_percentage,
                last.speed,
            )
            assert not (await transcriber.frame(job.id, last.cursor)).segments
        assert (await transcriber.transcript(jobs[0].id)).text == text == "pt 0.0. pt 0.7. pt 1.3."
        assert (await transcriber.transcript(jobs[1].id)).text == "pt 0.0."
        await transcriber.delete(jobs[0].id)
        assert not any(name.startswith(jobs[0].id) for name in spooled(tmp_path))
    async with make(tmp_path) as transcriber:
        assert [job.id for job in transcriber.jobs()] == [jobs[1].id]
        with pytest.raises(JobNotFound):
            await transcriber.frame(jobs[0].id)


async def test_the_queue_is_the_same_after_a_restart(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise who came first has to wait longest, or for ever."""
    names = [f"{number}" for number in range(5)]
    async with make(tmp_path) as transcriber:
        busy = await transcriber.submit(make_wav(2.0), options=ENDLESS.options())
        await until_frame(transcriber.watch(busy.id), lambda frame: frame.segments)
        waiting = [
            await transcriber.submit(make_wav(2.0), options=Script().options(), name=name)
            for name in names
        ]
        positions = [transcriber.summary(job.id).queue_position for job in waiting]
        assert positions == [0, 1, 2, 3, 4]
    async with make(tmp_path) as transcriber:
        assert [job.status for job in reversed(transcriber.jobs())] == ["running", *["queued"] * 5]
        await transcriber.cancel(busy.id)
        ends = {}
        for job in waiting:
            assert (await ended(transcriber, job.id)).status is Status.COMPLETED
            ends[job.name] = transcriber.get(job.id).ended
        assert sorted(ends, key=lambda name: ends[name] or 0) == names


async def test_a_running_job_goes_on_and_its_watcher_with_it(
    tmp_path: Path, make_wav: MakeWav
) -> None:
    """Otherwise an update costs an hour's work, or a watcher reads it all again."""
    received: list[Frame] = []
    job_id = ""
    script = Script(segments=4, delay=0.1, is_signed=True)
    for _ in range(10):
        async with make(tmp_path) as transcriber:
            if not job_id:
                options = script.options(language="en")
                job_id = (await transcriber.submit(make_wav(100.0), options=options)).id
            since = received[-1].cursor if received else None
            watcher = transcriber.watch(job_id, since)
            has = len(merge(received))
            first = await anext(watcher)
            received.append(first)
            assert first.offset == has, "only what is missing"
            with contextlib.suppress(AssertionError):
                async with asyncio.timeout(60):
                    async for frame in watcher:
                        received.append(frame)
                        if len(merge(received)) >= has + 4:
                            break
        if received[-1].status.is_terminal:
            break
    check(received)
    segments = merge(received)
    assert len(segments) > 12
    signatures = {segment.text.rpartition(" ")[2] for segment in segments}
    assert len(signatures) > 2, "several runs of the server took part"
    assert segments[-1].end == pytest.approx(100.0, abs=0.1)
    async with make(tmp_path) as transcriber:
        kept = (await transcriber.transcript(job_id)).segments
        assert [segment.brief() for segment in kept] == segments


@pytest.mark.parametrize("is_same_boot", [True, False])
async def test_decoded_sound_is_trusted_until_the_machine_stops(
    tmp_path: Path, make_wav: MakeWav, is_same_boot: bool
) -> None:
    """Otherwise a power cut puts noise into a transcript, or each restart decodes all again."""
    script = Script(segments=4, delay=0.2)
    async with make(tmp_path) as transcriber:
        job = await transcriber.submit(make_wav(60.0), options=script.options(language="en"))
        await until(lambda: transcriber._conductor.courses[job.id].job.is_prepared)
        await until_frame(transcriber.watch(job.id), lambda frame: frame.segments)
    pcm = tmp_path / "spool" / job.id / "pcm"
    if not is_same_boot:
        (tmp_path / "spool" / "boot").write_text("another")
    async with make(tmp_path) as transcriber:
        assert pcm.exists() == is_same_boot
        frames = await to_end(transcriber.watch(job.id))
        assert frames[-1].status is Status.COMPLETED
        assert merge(frames)[-1].end == pytest.approx(60.0, abs=0.1)


async def test_a_recording_that_is_gone_fails_its_job_only(
    tmp_path: Path, make_wav: MakeWav
) -> None:
    """Otherwise a job hangs for ever, or the server does not start."""
    async with make(tmp_path) as transcriber:
        busy, job = [
            await transcriber.submit(make_wav(2.0), options=ENDLESS.options()) for _ in range(2)
        ]
    (tmp_path / "spool" / job.id / "recording").unlink()
    async with make(tmp_path) as transcriber:
        frame = await ended(transcriber, job.id)
        assert frame.error
        assert frame.error.code == "recording_lost"
        assert transcriber.get(busy.id).status is not Status.FAILED


async def test_one_bad_row_fails_one_job(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise a server with a thousand jobs does not start for one of them."""
    async with make(tmp_path) as transcriber:
        bad, good = [
            await transcriber.submit(make_wav(2.0), options=ENDLESS.options()) for _ in range(2)
        ]
        await until_frame(transcriber.watch(bad.id), lambda frame: frame.segments)
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as connection:
        connection.execute("UPDATE findings SET finding = '{}' WHERE job_id = ?", (bad.id,))
        connection.commit()
    async with make(tmp_path) as transcriber:
        frame = transcriber.summary(bad.id)
        assert frame.error
        assert frame.error.code == "unusable_store"
        await until_frame(transcriber.watch(good.id), lambda frame: frame.segments)


async def test_what_a_crash_left_in_the_spool_is_removed(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise every crash fills the disk a little more."""
    async with make(tmp_path) as transcriber:
        job = await transcriber.submit(make_wav(2.0), options=Script().options())
        await ended(transcriber, job.id)
    for name in ("0" * 32, job.id):
        (tmp_path / "spool" / name).mkdir(exist_ok=True)
        (tmp_path / "spool" / name / "pcm").write_bytes(b"left")
    (tmp_path / "spool" / "arriving" / "half").write_bytes(b"left")
    async with make(tmp_path):
        assert spooled(tmp_path) == {f"{job.id}/recording"}


async def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """Otherwise two servers do every job twice."""
    async with make(tmp_path):
        with pytest.raises(DataFolderInUse, match=str(os.getpid())):
            async with make(tmp_path):
                pass
    async with make(tmp_path):
        pass


# -- how long jobs are kept --------------------------------------------------------------------


async def test_jobs_are_kept_as_long_as_is_said(
    tmp_path: Path, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the disk fills with what nobody wants any more, or what is wanted is gone."""
    async with make(tmp_path, keep="forever") as transcriber:
        done, busy = [
            await transcriber.submit(make_wav(2.0), options=script.options())
            for script in (Script(), ENDLESS)
        ]
        await ended(transcriber, done.id)
        end = transcriber.get(done.id).ended or 0.0
    monkeypatch.setattr(time, "time", lambda: end + 3599)
    async with make(tmp_path, keep="1h") as transcriber:
        await until_frame(transcriber.watch(busy.id), lambda frame: frame.segments)
        assert transcriber.get(done.id)
    monkeypatch.setattr(time, "time", lambda: end + 3601)
    async with make(tmp_path, keep="1h") as transcriber:
        await until(lambda: [job.id for job in transcriber.jobs()] == [busy.id])
        await until(lambda: not any(name.startswith(done.id) for name in spooled(tmp_path)))


async def test_nothing_is_kept_where_nothing_should_be(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise a server for secrets keeps them."""
    async with make(tmp_path, keep="0") as transcriber:
        job = await transcriber.submit(make_wav(2.0), options=Script().options())
        frames = await to_end(transcriber.watch(job.id))
        assert len(merge(frames)) == 2
        await until(lambda: not transcriber.jobs())
        await until(lambda: not spooled(tmp_path))


@pytest.mark.parametrize("keep_audio", [True, False])
async def test_recordings_are_kept_only_where_they_should_be(
    tmp_path: Path, make_wav: MakeWav, keep_audio: bool
) -> None:
    """Otherwise recordings pile up that nobody wanted kept, or cannot be played any more."""
    async with make(tmp_path, keep_audio=keep_audio) as transcriber:
        job = await transcriber.submit(make_wav(2.0), options=Script().options())
        await ended(transcriber, job.id)
        expected = {f"{job.id}/recording"} if keep_audio else set()
        await until(lambda: spooled(tmp_path) == expected)
        assert (await transcriber.transcript(job.id)).text


# -- a disk that cannot ------------------------------------------------------------------------


async def test_a_disk_that_was_full_for_a_while_costs_nothing(
    tmp_path: Path, start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """Otherwise a full disk ends the server, or takes text that was safe."""
    server = await asyncio.to_thread(start_server, *SCRIPTED, program="tests.scripted_program")
    process = psutil.Process(server.process.pid)
    async with Client(server.url) as client:
        options = Script(segments=40, delay=0.1).options()
        job = await client.submit(make_wav(2.0), options)
        watcher = client.watch(job.job_id)
        received = [await until_frame(watcher, lambda frame: frame.segments)]
        # Of the server only, and not of its workers: files may not grow any more.
        _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (1, hard))
        waiting = await until_frame(watcher, lambda frame: "Waiting" in frame.message)
        received.append(waiting)
        assert "cannot be written" in waiting.message
        with pytest.raises(ServerError) as caught:
            await client.submit(make_wav(2.0), options)
        assert caught.value.http_status == 507
        assert caught.value.code == "storage_unavailable"
        assert (await client.get(job.job_id)).status == "running", "the server still answers"
        process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        received += [frame async for frame in watcher]
        assert received[-1].status == "completed"
        last = await client.get(job.job_id)
        assert len(last.segments) == 40
        assert (await client.submit(make_wav(2.0), Script().options())).status


# Root may write everywhere, unless it gives up the right to.
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if not os.getuid() else []


async def test_a_folder_that_becomes_read_only_costs_nothing(
    tmp_path: Path, start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """Otherwise a mistake with permissions ends the server, or takes text that was safe."""
    start = partial(start_server, *SCRIPTED, program="tests.scripted_program", prefix=AS_ANYBODY)
    server = await asyncio.to_thread(start)
    data = tmp_path / "data"
    folders = [path for path in (data, *data.rglob("*")) if path.is_dir()]
    async with Client(server.url) as client:
        job = await client.submit(make_wav(2.0), Script(segments=20, delay=0.1).options())
        watcher = client.watch(job.job_id)
        received = [await until_frame(watcher, lambda frame: frame.segments)]
        for folder in folders:
            folder.chmod(0o555)
        with pytest.raises(ServerError, match="cannot be written: Permission denied") as caught:
            await client.submit(make_wav(2.0), Script().options())
        assert (caught.value.http_status, caught.value.code) == (507, "storage_unavailable")
        received += [frame async for frame in watcher]
        assert received[-1].status == "completed"
        for folder in folders:
            folder.chmod(0o700)
        again = await client.submit(make_wav(2.0), Script().options())
        assert [frame async for frame in client.watch(again.job_id)][-1].status == "completed"
        server.kill()

    for folder in folders:
        folder.chmod(0o555)
    with pytest.raises(AssertionError, match="cannot be written"):
        await asyncio.to_thread(start)
    for folder in folders:
        folder.chmod(0o700)
    server = await asyncio.to_thread(start)
    async with Client(server.url) as client:
        assert merge([await client.get(job.job_id)]) == merge(received)


# -- the command line --------------------------------------------------------------------------


async def test_watch_outlives_the_server(
    start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """Otherwise somebody's terminal has half of the text, or all of it twice."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = partial(start_server, *SCRIPTED, program="tests.scripted_program", port=port)
    server = start()
    async with Client(server.url) as client:
        await until_up(client)
        options = Script(segments=4, delay=0.1).options(language="en")
        job = await client.submit(make_wav(100.0), options)
        command = [sys.executable, "-m", "aiotranscribe", "watch", job.job_id, "--url", server.url]
        pipe = asyncio.subprocess.PIPE
        watching = await asyncio.create_subprocess_exec(*command, stdout=pipe, cwd=ROOT)
        assert watching.stdout
        lines = []
        async with asyncio.timeout(LONG_S):
            for _ in range(3):
                for _ in range(3):
                    lines.append((await watching.stdout.readline()).decode())
                server.kill()
                server = start()
            lines += (await watching.stdout.read()).decode().splitlines(keepends=True)
            assert await watching.wait() == 0
        assert "".join(lines) == await client.transcript(job.job_id)
        assert len(lines) > 12


async def until_up(client: Client) -> None:
    """Wait until the server answers."""
    async with asyncio.timeout(LONG_S):
        while True:
            with contextlib.suppress(OSError):
                with contextlib.suppress(ServerError):
                    await client.get("any")
                return
            await asyncio.sleep(0.05)


async def test_a_server_says_why_it_cannot_start(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    """Otherwise a self-hoster reads a traceback."""
    await asyncio.to_thread(start_server, *SCRIPTED, program="tests.scripted_program")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "jobs.sqlite3").write_text("Dear diary")
    for name, reason in (("data", "in use by another"), ("other", "not a database of")):
        folder = tmp_path / name
        command = [sys.executable, "-m", "aiotranscribe", "serve", "--data-dir", str(folder)]
        process = await asyncio.create_subprocess_exec(
            *command, "--port", "0", stderr=asyncio.subprocess.PIPE, cwd=ROOT
        )
        async with asyncio.timeout(LONG_S):
            _, errors = await process.communicate()
        assert process.returncode == 1
        assert reason in errors.decode()
        assert "Traceback" not in errors.decode()


# -- kill -9 -----------------------------------------------------------------------------------


async def test_a_server_that_is_killed_loses_nothing(
    start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """Otherwise a crash throws away an hour of text."""
    real = Options(temperature=0.0)
    arguments = ("--workers", "2")
    server = await asyncio.to_thread(start_server, *arguments)
    async with Client(server.url) as client:
        undisturbed = await client.submit(SAMPLE, real)
        expected = [frame async for frame in client.watch(undisturbed.job_id)][-1]
        assert expected.status == "completed"
        job = await client.submit(SAMPLE, real)
        seen = await until_frame(client.watch(job.job_id), lambda frame: frame.segments)
    server.kill()
    server = await asyncio.to_thread(start_server, *arguments)
    async with Client(server.url) as client:
        frames = [frame async for frame in client.watch(job.job_id, seen.cursor)]
        assert frames[0].offset == len(seen.segments)
        mine = merge(frames, seen.segments)
        last = await client.get(job.job_id)
        assert list(last.segments) == mine
        assert last.status == "completed"
        texts = [segment.text for segment in (await client.get(undisturbed.job_id)).segments]
        assert [segment.text for segment in mine] == texts
