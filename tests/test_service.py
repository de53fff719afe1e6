"""The transcriber as a library: real workers, a scripted model."""

import asyncio
import itertools
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aiotranscribe import Config, Options, Transcriber, conductor
from aiotranscribe.course import Change
from aiotranscribe.errors import (
    Closed,
    InvalidOption,
    InvalidRequest,
    JobNotFound,
    ModelNotAvailable,
    NotFinished,
    QueueFull,
    StorageUnavailable,
)
from aiotranscribe.frame import View
from aiotranscribe.hub import Subscription
from aiotranscribe.job import Job, Status, Step
from aiotranscribe.progress import Pace
from aiotranscribe.store import Store
from tests import scripted
from tests.scripted import Script
from tests.waiting import check, is_alive, merge, text_of, to_end, until, until_frame, workers

pytestmark = pytest.mark.asyncio(loop_scope="module")

MakeWav = Callable[[float], Path]

#: A job that goes on until it is stopped, and soon notices that it is.
ENDLESS = Script(segments=10_000, delay=0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def single(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Transcriber]:
    """A transcriber with only one worker, which all jobs have to share."""
    folder = tmp_path_factory.mktemp("single")
    async with make(folder, workers=1) as transcriber:
        await transcriber.ready()
        yield transcriber


def make(folder: Path | None, *models: str, workers: int = 1) -> Transcriber:
    """Return a transcriber with scripted models, not entered yet."""
    config = Config(model=models or ("scripted",), workers=workers, data_dir=folder)
    return Transcriber(config, loader=scripted.load)


async def start(transcriber: Transcriber, recording: Path, script: Script) -> str:
    """Submit a job and wait until its model is at work; return its id."""
    job = await transcriber.submit(recording, options=script.options())
    await until_frame(transcriber.watch(job.id), lambda frame: frame.current_step == "transcribing")
    return job.id


async def next_job_works(transcriber: Transcriber, recording: Path) -> None:
    """Check that the transcriber is as good as new."""
    job = await transcriber.submit(recording, options=Script(segments=3).options())
    frames = await to_end(transcriber.watch(job.id))
    assert frames[-1].status is Status.COMPLETED, frames[-1]
    assert len(merge(frames)) == 3


async def is_unknown(transcriber: Transcriber, job_id: str) -> None:
    """Check that nothing can be asked of a job, or done with it."""
    for ask in (transcriber.get, transcriber.summary, transcriber.watch):
        with pytest.raises(JobNotFound, match=job_id):
            ask(job_id)
    for do in (transcriber.frame, transcriber.transcript, transcriber.cancel, transcriber.delete):
        with pytest.raises(JobNotFound, match=job_id):
            await do(job_id)


def spooled(data_dir: Path) -> set[str]:
    """Return what is in the spool, jobs and recordings on their way alike."""
    return files(data_dir / "spool") - {"boot"}


def files(folder: Path) -> set[str]:
    """Return the names of all files in a folder and below."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# -- what goes in, what comes out --------------------------------------------------------------


async def test_a_file_becomes_text(transcriber: Transcriber, make_wav: MakeWav) -> None:
    """Otherwise the library cannot do the one thing that it is for."""
    path = make_wav(2.0)
    job = await transcriber.submit(path, options=Script(segments=4).options(language="de"))
    assert job.name == path.name
    frames = await to_end(transcriber.watch(job.id))

    last = frames[-1]
    assert (last.status, last.current_step) == (Status.COMPLETED, "completed")
    assert (last.progress_percentage, last.position_seconds) == (100.0, 2.0)
    assert (last.duration_seconds, last.language) == (2.0, "de")
    segments = merge(frames)
    assert [(each.start, each.end) for each in segments] == [
        (0.0, 0.5),
        (0.5, 1.0),
        (1.0, 1.5),
        (1.5, 2.0),
    ]
    transcript = await transcriber.transcript(job.id)
    assert [each.brief() for each in transcript.segments] == segments
    assert transcript.text == "de 0.0. de 0.5. de 1.0. de 1.5."
    assert (transcript.language, transcript.duration) == ("de", 2.0)
    assert transcriber.get(job.id).status is Status.COMPLETED


async def test_bytes_that_come_piece_by_piece_become_text(
    transcriber: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise a service cannot hand on an upload of its own without a file in between."""
    whole = make_wav(2.0).read_bytes()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), 10_000):
            yield whole[start : start + 10_000]

    job = await transcriber.submit(pieces(), name="memo.wav", options=Script().options())
    assert job.name == "memo.wav"
    frames = await to_end(transcriber.watch(job.id))
    assert frames[-1].duration_seconds == 2.0
    assert len(merge(frames)) == 2


async def test_the_first_frame_comes_at_once(single: Transcriber, make_wav: MakeWav) -> None:
    """Otherwise somebody who opens the page of a waiting job looks at nothing."""
    busy = await start(single, make_wav(2.0), ENDLESS)
    job = await single.submit(make_wav(2.0), options=Script().options())
    subscription = single.watch(job.id)
    frame = await anext(subscription)
    assert (frame.status, frame.current_step) == (Status.QUEUED, "queued")
    assert (frame.progress_percentage, frame.queue_position) == (0.0, 0)
    assert (frame.offset, frame.segments, frame.error) == (0, (), None)
    await single.cancel(busy)
    check([frame, *await to_end(subscription)])


async def test_every_segment_is_told_when_it_is_there(
    transcriber: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise the text comes in one piece at the end, as everywhere else."""
    script = Script(segments=5, delay=0.2)
    transcriber._conductor._outlook.paces.clear()  # other scripts have other paces
    job = await transcriber.submit(make_wav(2.0), options=script.options())
    counts, times, percentages = [], [], []
    async for frame in transcriber.watch(job.id):
        counts.append(frame.offset + len(frame.segments))
        if frame.segments:
            times.append(time.monotonic())
            percentages.append(frame.progress_percentage)
    assert set(counts) == set(range(6))
    assert len(times) == 5
    assert times[-1] - times[0] > 0.5
    assert len(set(percentages)) > 3, "the bar does not move"


async def test_every_step_is_told_when_it_begins(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise nobody can tell a slow download of the model from a job that hangs."""
    async with make(tmp_path, "scripted", "slow") as transcriber:
        await transcriber.ready()
        options = Script(delay=0.1).options(model="slow")
        job = await transcriber.submit(make_wav(2.0), options=options)
        frames = await to_end(transcriber.watch(job.id))
    steps = list(dict.fromkeys(frame.current_step for frame in frames))
    expected = [
        Step.DECODING,
        Step.DETECTING_SPEECH,
        Step.LOADING_MODEL,
        Step.DETECTING_LANGUAGE,
        Step.TRANSCRIBING,
        Step.FINISHING,
        Status.COMPLETED,
    ]
    assert [step for step in steps if step != "queued"] == expected


async def test_the_language_is_detected_once_for_the_whole_recording(
    transcriber: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise an interview changes its language in the middle, by the mood of a pause."""
    job = await transcriber.submit(make_wav(100.0), options=Script().options())
    frames = await to_end(transcriber.watch(job.id))
    segments = merge(frames)
    assert len(segments) >= 6, "there should be several spans"
    assert all(segment.text.startswith(" pt ") for segment in segments)
    assert frames[-1].language == "pt"
    assert transcriber.get(job.id).language == "pt"
    assert (await transcriber.transcript(job.id)).language == "pt"


async def test_a_language_that_is_given_is_believed(
    transcriber: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise who knows better than the model cannot say so."""
    job = await transcriber.submit(make_wav(2.0), options=Script().options(language="NL"))
    frames = await to_end(transcriber.watch(job.id))
    assert {frame.language for frame in frames} == {"nl"}
    assert text_of(frames).startswith("nl ")


async def test_a_job_chooses_its_model(single: Transcriber, transcriber: Transcriber) -> None:
    """Otherwise everybody has to take the first model, or the wrong one is used."""
    sample = Path(__file__).parent.parent / "examples" / "sample.ogg"
    english = Script().options(model="scripted.en")
    for options, language in ((english, "en"), (Script().options(), "pt"), (english, "en")):
        job = await transcriber.submit(sample, options=options)
        assert text_of(await to_end(transcriber.watch(job.id))).startswith(f"{language} ")
    with pytest.raises(InvalidOption, match=r"^model: "):
        await single.submit(sample, options=english)


async def test_the_newest_job_comes_first(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise a list of jobs begins with last year's."""
    async with make(tmp_path) as transcriber:
        jobs = [await transcriber.submit(make_wav(2.0), name=name) for name in "abc"]
        assert [job.name for job in transcriber.jobs()] == ["c", "b", "a"]
        assert len({job.id for job in jobs}) == 3


async def test_half_a_transcript_is_given_to_who_asks_for_half(
    single: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise somebody takes the beginning for the whole, or has to wait for the end."""
    job_id = await start(single, make_wav(2.0), ENDLESS)
    await until_frame(single.watch(job_id), lambda frame: frame.segments)
    with pytest.raises(NotFinished, match="partial"):
        await single.transcript(job_id)
    assert (await single.transcript(job_id, partial=True)).text.startswith("pt 0.0.")
    await single.cancel(job_id)
    assert (await single.transcript(job_id)).text.startswith("pt 0.0.")


# -- the queue ---------------------------------------------------------------------------------


async def test_jobs_that_wait_know_how_many_come_first(
    single: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise whoever waits does not know whether it is for one job or for a hundred."""
    busy = await start(single, make_wav(2.0), ENDLESS)
    waiting = [
        (await single.submit(make_wav(2.0), options=Script().options())).id for _ in range(3)
    ]

    def positions() -> list[int | None]:
        return [single.summary(job_id).queue_position for job_id in [busy, *waiting]]

    assert positions() == [None, 0, 1, 2]
    watcher = single.watch(waiting[2])
    await single.cancel(waiting[0])
    assert positions() == [None, None, 0, 1]
    await until_frame(watcher, lambda frame: frame.queue_position == 1)
    await single.cancel(busy)
    for job_id in waiting[1:]:
        frames = await to_end(single.watch(job_id))
        assert frames[-1].status is Status.COMPLETED


async def test_who_waits_is_told_how_long(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise nobody knows whether to wait or to go home."""
    store = Store(tmp_path)
    await store.open()
    paces = {"transcribing scripted": Pace(100.0, 10.0), "lasting .wav": Pace(100.0, 3.2)}
    await store.commit([], paces=paces)
    await store.close()
    async with make(tmp_path) as transcriber:
        await start(transcriber, make_wav(2.0), ENDLESS)
        job = await transcriber.submit(make_wav(60.0), options=Script().options())
        frames = transcriber.watch(job.id)
        first = await until_frame(frames, lambda frame: frame.eta_seconds is not None)
        assert first.queue_position == 0
        assert first.eta_seconds == pytest.approx(6, abs=2)
        await until_frame(frames, lambda frame: 0 < frame.progress_percentage < 50)


async def test_a_short_memo_overtakes_a_long_recording(
    single: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise a memo waits for hours behind an archive."""
    script = Script(segments=1, delay=0.1)
    long = await single.submit(make_wav(300.0), options=script.options())
    await until_frame(single.watch(long.id), lambda frame: frame.segments)
    memo = await single.submit(make_wav(2.0), options=Script().options())
    frames = await to_end(single.watch(memo.id))
    assert frames[-1].status is Status.COMPLETED
    assert single.get(long.id).status is Status.RUNNING
    await single.cancel(long.id)


async def test_the_spans_of_one_recording_use_all_workers(
    transcriber: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise one recording takes twice as long on two cores as it could."""
    script = Script(segments=1, delay=0.05, is_signed=True)
    job = await transcriber.submit(make_wav(300.0), options=script.options(language="en"))
    segments = merge(await to_end(transcriber.watch(job.id)))
    signatures = [segment.text.rpartition(" ")[2] for segment in segments]
    assert len(signatures) > 10
    assert len(set(signatures)) == 2


async def test_jobs_that_wait_are_quiet(
    tmp_path: Path, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a hundred jobs behind a loading worker keep the server and its watchers busy."""
    async with make(tmp_path) as transcriber:
        await start(transcriber, make_wav(2.0), Script(hang=600))
        options = ENDLESS.options()
        jobs = [await transcriber.submit(make_wav(2.0), options=options) for _ in range(20)]
        told: list[str] = []
        publish = transcriber._hub.publish

        def spy(job_id: str, view: View) -> None:
            told.append(job_id)
            publish(job_id, view)

        monkeypatch.setattr(transcriber._hub, "publish", spy)
        await asyncio.sleep(1.0)
        assert [transcriber.summary(job.id).queue_position for job in jobs] == list(range(20))
        assert not {job.id for job in jobs} & set(told)
        assert len(told) < 40


async def test_a_disk_that_fails_as_a_job_comes_loses_nothing(
    tmp_path: Path, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a job that was accepted is unknown, or its first words are never written."""
    commit, count = Store.commit, 0

    async def fail_sometimes(store: Store, *rest: Any) -> None:
        nonlocal count
        count += 1
        if count in {2, 3, 5}:
            raise StorageUnavailable("the disk is full, as the test says")
        await commit(store, *rest)

    async with make(tmp_path) as transcriber:
        await transcriber.ready()
        monkeypatch.setattr(Store, "commit", fail_sometimes)
        monkeypatch.setattr(conductor, "_TRY_AGAIN_S", 0.3)
        job = await transcriber.submit(make_wav(2.0), options=Script(segments=5).options())
        frames = await to_end(transcriber.watch(job.id))
        assert frames[-1].status is Status.COMPLETED
        assert transcriber._conductor._inbox.qsize() < 10
    async with make(tmp_path) as transcriber:
        assert merge([await transcriber.frame(job.id)]) == merge(frames)
    assert count > 5


# -- stopping ----------------------------------------------------------------------------------


async def test_a_job_that_waits_can_be_cancelled(single: Transcriber, make_wav: MakeWav) -> None:
    """Otherwise a mistake has to run before it can be stopped."""
    busy = await start(single, make_wav(2.0), ENDLESS)
    job = await single.submit(make_wav(2.0), options=Script().options())
    assert (await single.cancel(job.id)).status is Status.CANCELLED
    (frame,) = await to_end(single.watch(job.id))
    assert (frame.status, frame.current_step) == (Status.CANCELLED, "cancelled")
    assert not frame.segments
    assert frame.progress_percentage < 5
    await single.cancel(busy)
    await next_job_works(single, make_wav(2.0))
    assert single.get(job.id).status is Status.CANCELLED


async def test_cancel_stops_the_compute_and_keeps_the_text(
    single: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise a cancelled job blocks its worker until it would have ended anyway."""
    before = workers()
    job_id = await start(single, make_wav(2.0), ENDLESS)
    watcher = single.watch(job_id)
    seen = await until_frame(watcher, lambda frame: frame.offset + len(frame.segments) >= 2)

    began = time.monotonic()
    await single.cancel(job_id)
    await next_job_works(single, make_wav(2.0))
    assert time.monotonic() - began < 5
    assert workers() == before, "a worker that stops by itself is not killed"

    (frame,) = await to_end(single.watch(job_id))
    assert frame.status is Status.CANCELLED
    assert len(frame.segments) >= seen.offset + len(seen.segments)
    assert 0 < frame.progress_percentage < 100
    assert (await single.transcript(job_id)).text.startswith("pt 0.0.")


async def test_cancel_stops_a_recording_that_is_being_read(
    single: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise nobody can stop a ten-hour recording in its first minutes."""
    job = await single.submit(make_wav(1800.0), options=ENDLESS.options())
    await until_frame(single.watch(job.id), lambda frame: frame.current_step == "detecting_speech")
    began = time.monotonic()
    await single.cancel(job.id)
    await next_job_works(single, make_wav(2.0))
    assert time.monotonic() - began < 5


async def test_a_model_that_hangs_is_killed(single: Transcriber, make_wav: MakeWav) -> None:
    """Otherwise one hopeless recording takes a worker away for ever."""
    before = workers()
    job_id = await start(single, make_wav(2.0), Script(hang=600))
    began = time.monotonic()
    assert (await single.cancel(job_id)).status is Status.CANCELLED
    assert time.monotonic() - began < 1, "the answer waits for the worker"
    await next_job_works(single, make_wav(2.0))
    assert time.monotonic() - began < 20
    assert len(workers()) == len(before)
    assert workers() != before
    assert single.get(job_id).status is Status.CANCELLED


async def test_cancelling_again_changes_nothing(
    transcriber: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise a second click, or one that comes too late, is an error or spoils the text."""
    job_id = await start(transcriber, make_wav(2.0), ENDLESS)
    both = await asyncio.gather(transcriber.cancel(job_id), transcriber.cancel(job_id))
    assert {job.status for job in both} == {Status.CANCELLED}
    frames = await to_end(transcriber.watch(job_id))
    assert (await transcriber.cancel(job_id)).status is Status.CANCELLED
    assert await to_end(transcriber.watch(job_id)) == frames[-1:]

    job = await transcriber.submit(make_wav(2.0), options=Script().options())
    frames = await to_end(transcriber.watch(job.id))
    assert (await transcriber.cancel(job.id)).status is Status.COMPLETED
    assert text_of(await to_end(transcriber.watch(job.id))) == text_of(frames)


async def test_nothing_of_a_deleted_job_remains(
    transcriber: Transcriber, make_wav: MakeWav, data_dir: Path
) -> None:
    """Otherwise a recording that somebody wanted gone stays on the disk."""
    before = spooled(data_dir)
    finished = await transcriber.submit(make_wav(2.0), options=Script().options())
    await to_end(transcriber.watch(finished.id))
    running = [await start(transcriber, make_wav(2.0), ENDLESS) for _ in range(2)]
    queued = await transcriber.submit(make_wav(2.0), options=Script().options())
    watchers = [transcriber.watch(job_id) for job_id in [*running, queued.id]]
    assert len(spooled(data_dir) - before) >= 4

    for job_id in [queued.id, *running, finished.id]:
        await transcriber.delete(job_id)
        assert not any(job_id in name for name in spooled(data_dir))
        await is_unknown(transcriber, job_id)
        assert job_id not in {job.id for job in transcriber.jobs()}
    for watcher in watchers:
        frames = await to_end(watcher)
        assert frames[-1].status is Status.CANCELLED
    await next_job_works(transcriber, make_wav(2.0))
    assert not any(job_id in name for job_id in running for name in spooled(data_dir))


async def test_deleting_what_is_being_read_leaves_nothing(
    single: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise a worker that still writes brings a deleted recording's sound back."""
    job = await single.submit(make_wav(1800.0), options=Script().options())
    await until_frame(single.watch(job.id), lambda frame: frame.current_step == "detecting_speech")
    await single.delete(job.id)
    await next_job_works(single, make_wav(2.0))
    assert [each.id for each in single.jobs() if each.id == job.id] == []


# -- what goes wrong ---------------------------------------------------------------------------


async def test_a_model_that_fails_fails_its_job_only(
    single: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise a mistake of the model leaves a job running for ever, or loses its text."""
    job = await single.submit(make_wav(2.0), options=Script(segments=3, fail_at=2).options())
    frames = await to_end(single.watch(job.id))
    error = frames[-1].error
    assert error
    assert error.code == "work_failed"
    assert "as the script says" in error.message
    assert error.message in frames[-1].message
    assert len(merge(frames)) == 2
    assert (await single.transcript(job.id)).text == "pt 0.0. pt 0.7."
    await next_job_works(single, make_wav(2.0))


async def test_a_worker_that_dies_hurts_no_other_job(
    transcriber: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise one bad recording takes everybody's work with it."""
    other = await start(transcriber, make_wav(2.0), Script(segments=20, delay=0.1))
    watcher = transcriber.watch(other)
    script = Script(segments=3, delay=0.1, die_at=1)
    job = await transcriber.submit(make_wav(2.0), options=script.options())
    frames = await to_end(transcriber.watch(job.id))
    error = frames[-1].error
    assert error
    assert error.code == "worker_died"
    assert "signal 9" in error.message
    assert error.message in frames[-1].message

    frames = await to_end(watcher)
    assert frames[-1].status is Status.COMPLETED
    assert len(merge(frames)) == 20
    for _ in range(2):
        await next_job_works(transcriber, make_wav(2.0))
    await until(lambda: len(workers()) >= 2)


async def test_the_work_of_a_worker_that_dies_is_done_again(
    transcriber: Transcriber, make_wav: MakeWav, tmp_path: Path
) -> None:
    """Otherwise one crash, or a greedy neighbour, costs a transcript; or words come twice."""
    script = Script(segments=4, die_at=2, once=str(tmp_path / "died"))
    job = await transcriber.submit(make_wav(100.0), options=script.options(language="en"))
    frames = await to_end(transcriber.watch(job.id))
    assert (tmp_path / "died").exists()
    assert frames[-1].status is Status.COMPLETED
    segments = merge(frames)
    for segment, following in itertools.pairwise(segments):
        assert segment.end == pytest.approx(following.start, abs=0.1), "a gap, or twice"
    assert segments[0].start == 0
    assert segments[-1].end == pytest.approx(100.0, abs=0.1)


async def test_a_worker_killed_while_it_has_nothing_to_do_is_replaced(
    tmp_path: Path, make_wav: MakeWav
) -> None:
    """Otherwise the first job after a quiet night fails."""
    before = workers()
    async with make(tmp_path) as transcriber:
        await transcriber.ready()
        (pid,) = workers() - before
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pid not in workers())
        await next_job_works(transcriber, make_wav(2.0))


async def test_a_model_that_is_not_there_is_said_at_once(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise a server with a misspelt model waits for ever, and so does every job."""
    async with make(tmp_path, "missing") as transcriber:
        for _ in range(2):
            with pytest.raises(ModelNotAvailable, match="run something"):
                await transcriber.ready()
        assert not transcriber.is_ready
        assert transcriber.model_error
        job = await transcriber.submit(make_wav(2.0), options=Script().options())
        frames = await to_end(transcriber.watch(job.id))
        assert frames[-1].error
        assert frames[-1].error.code == "model_not_available"
        assert "run something" in frames[-1].error.message


async def test_a_worker_killed_while_it_loads_is_replaced(tmp_path: Path) -> None:
    """Otherwise one process killed at the start, as when memory is short, ends the server."""
    before = workers()
    async with make(tmp_path, "slow") as transcriber:
        await until(lambda: workers() - before)
        os.kill((workers() - before).pop(), signal.SIGKILL)
        await transcriber.ready()


async def test_a_model_that_ends_every_worker_is_said(tmp_path: Path) -> None:
    """Otherwise a server whose model cannot work starts processes for ever, and says nothing."""
    async with make(tmp_path, "fatal") as transcriber:
        with pytest.raises(ModelNotAvailable, match="exit code 3"):
            await transcriber.ready()


async def test_one_model_that_is_not_there_leaves_the_others(
    tmp_path: Path, make_wav: MakeWav
) -> None:
    """Otherwise a job with a missing model leaves a worker without any."""
    async with make(tmp_path, "scripted", "missing") as transcriber:
        options = Script().options(model="missing")
        job = await transcriber.submit(make_wav(2.0), options=options)
        frames = await to_end(transcriber.watch(job.id))
        assert frames[-1].error
        assert frames[-1].error.code == "model_not_available"
        await next_job_works(transcriber, make_wav(2.0))


async def test_no_bytes_are_no_recording(transcriber: Transcriber, data_dir: Path) -> None:
    """Otherwise an upload that brought nothing becomes a job that fails without saying why."""
    before, jobs = spooled(data_dir), transcriber.jobs()

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    with pytest.raises(InvalidRequest, match="empty"):
        await transcriber.submit(nothing())
    with pytest.raises(InvalidRequest, match="empty"):
        await transcriber.submit("/dev/null")
    assert spooled(data_dir) == before
    assert transcriber.jobs() == jobs


@pytest.mark.parametrize("name", ["none.wav", ".", "file/none.wav"])
async def test_a_file_that_cannot_be_read_is_refused(
    transcriber: Transcriber, tmp_path: Path, data_dir: Path, name: str
) -> None:
    """Otherwise a mistyped path is accepted as a job, or shows a traceback."""
    (tmp_path / "file").touch()
    before = spooled(data_dir)
    with pytest.raises(InvalidRequest, match="cannot read"):
        await transcriber.submit(tmp_path / name)
    assert spooled(data_dir) == before


async def test_bytes_that_break_off_leave_nothing(
    transcriber: Transcriber, make_wav: MakeWav, data_dir: Path
) -> None:
    """Otherwise every upload that broke off fills the disk a little more."""
    before, jobs = spooled(data_dir), transcriber.jobs()

    async def broken() -> AsyncIterator[bytes]:
        yield b"RIFF"
        raise ConnectionError("as the test says")

    with pytest.raises(ConnectionError):
        await transcriber.submit(broken())
    assert spooled(data_dir) <= before  # what a job before does not need may go meanwhile
    assert transcriber.jobs() == jobs
    await next_job_works(transcriber, make_wav(2.0))


async def test_a_wrong_option_is_refused_before_the_recording_is_taken(
    transcriber: Transcriber,
) -> None:
    """Otherwise a user uploads an hour to learn that a word was misspelt."""
    asked = False

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal asked
        asked = True
        yield b""

    with pytest.raises(InvalidOption, match=r"^model: "):
        await transcriber.submit(pieces(), options=Options(model="huge"))
    assert not asked


async def test_a_full_queue_takes_no_more(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise jobs are taken that nobody can do in time, many at once before all others."""
    config = Config(model=("scripted",), workers=1, data_dir=tmp_path, max_queue=3)
    async with Transcriber(config, loader=scripted.load) as transcriber:
        submit = partial(transcriber.submit, make_wav(2.0), options=ENDLESS.options())
        answers = await asyncio.gather(*(submit() for _ in range(10)), return_exceptions=True)
        full = [answer for answer in answers if isinstance(answer, QueueFull)]
        assert (len(full), len(transcriber.jobs())) == (7, 3)
        assert all(1 <= int(error.http_headers["Retry-After"]) <= 60 for error in full)
        with pytest.raises(QueueFull, match="3 jobs"):
            async with transcriber.arrival():  # before a single byte is sent
                raise AssertionError("it is let in")
        await transcriber.cancel(transcriber.jobs()[0].id)
        await submit()


async def test_what_is_no_recording_fails_with_a_reason(
    transcriber: Transcriber, make_wav: MakeWav, tmp_path: Path
) -> None:
    """Otherwise the sender of a text file waits for a transcript of it."""
    path = tmp_path / "notes.mp3"
    path.write_text("not a recording " * 1000)
    job = await transcriber.submit(path)
    frames = await to_end(transcriber.watch(job.id))
    assert frames[-1].error
    assert frames[-1].error.code == "undecodable"
    await next_job_works(transcriber, make_wav(2.0))


async def test_an_unknown_job_is_an_error(transcriber: Transcriber) -> None:
    """Otherwise somebody waits for a job that does not exist."""
    await is_unknown(transcriber, "nope")


# -- watchers ----------------------------------------------------------------------------------


async def test_watchers_who_leave_hurt_nobody(transcriber: Transcriber, make_wav: MakeWav) -> None:
    """Otherwise closing a laptop stops the job, or the others' news of it."""
    script = Script(segments=10, delay=0.05)
    job = await transcriber.submit(make_wav(2.0), options=script.options())
    faithful = asyncio.create_task(to_end(transcriber.watch(job.id)))
    for _ in range(10):
        subscription = transcriber.watch(job.id)
        await anext(subscription)
        subscription.close()
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)
    waiting = asyncio.create_task(to_end(transcriber.watch(job.id)))
    await until_frame(transcriber.watch(job.id), lambda frame: frame.segments)
    waiting.cancel()
    frames = await faithful
    assert frames[-1].status is Status.COMPLETED
    assert len(merge(frames)) == 10
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_watcher_who_is_slow_gets_everything_in_fewer_frames(
    transcriber: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise a slow connection loses text, or the server keeps frames for it without end."""
    script = Script(segments=20, delay=0.02)
    job = await transcriber.submit(make_wav(2.0), options=script.options())
    slow = transcriber.watch(job.id)
    first = await anext(slow)
    frames = await to_end(transcriber.watch(job.id))
    (last,) = await to_end(slow)
    assert merge([first, last]) == merge(frames)


async def test_a_watcher_who_comes_late_gets_everything(
    transcriber: Transcriber, make_wav: MakeWav
) -> None:
    """Otherwise who reloads the page has lost the beginning."""
    job_id = await start(transcriber, make_wav(2.0), Script(segments=10, delay=0.05))
    early = transcriber.watch(job_id)
    seen = await until_frame(early, lambda frame: frame.segments)
    late = await to_end(transcriber.watch(job_id))
    assert len(merge(late)) == 10
    mine = merge(late)[: seen.offset + len(seen.segments)]
    rest = await to_end(transcriber.watch(job_id, since=seen.cursor), mine)
    assert rest[0].offset == len(mine)
    assert merge(rest, mine) == merge(late)


# -- the end -----------------------------------------------------------------------------------


async def test_it_closes_quickly_and_leaves_no_process(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise a service that embeds it hangs at its end, or leaves processes behind."""
    before = workers()
    transcriber = make(tmp_path, workers=2)
    async with transcriber:
        await transcriber.ready()
        endless = await start(transcriber, make_wav(2.0), ENDLESS)
        hanging = await start(transcriber, make_wav(2.0), Script(hang=600))
        queued = await transcriber.submit(make_wav(2.0), options=Script().options())
        watchers = [transcriber.watch(job_id) for job_id in (endless, hanging, queued.id)]
        pids = workers() - before
        assert len(pids) == 2
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert not any(is_alive(pid) for pid in pids)
    for watcher in watchers:
        async with asyncio.timeout(1):
            frames = [frame async for frame in watcher]
        assert not any(frame.status.is_terminal for frame in frames)
    with pytest.raises(Closed):
        await transcriber.submit(make_wav(2.0))
    with pytest.raises(Closed):
        await transcriber.cancel(endless)


async def test_it_closes_quickly_while_it_starts(tmp_path: Path) -> None:
    """Otherwise Ctrl-C in the first second hangs."""
    before = workers()
    began = time.monotonic()
    async with make(tmp_path, workers=2):
        pass
    assert time.monotonic() - began < 10
    assert workers() == before


async def test_without_a_folder_of_its_own_it_leaves_no_files(
    tmp_path: Path, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every run of a script leaves its recordings in the temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with make(None) as transcriber:
        await next_job_works(transcriber, make_wav(2.0))
        assert any(name.endswith("recording") for name in files(tmp_path))
    assert files(tmp_path) == set()


async def test_two_side_by_side_do_not_know_each_other(
    transcriber: Transcriber, make_wav: MakeWav, tmp_path: Path
) -> None:
    """Otherwise two applications in one process mix up their jobs, or end each other's."""
    mine = await start(transcriber, make_wav(2.0), Script(segments=30, delay=0.1))
    watcher = transcriber.watch(mine)
    async with make(tmp_path) as other:
        await next_job_works(other, make_wav(2.0))
        with pytest.raises(JobNotFound):
            other.get(mine)
        theirs = await start(other, make_wav(2.0), ENDLESS)
        with pytest.raises(JobNotFound):
            transcriber.get(theirs)
    frames = await to_end(watcher)
    assert frames[-1].status is Status.COMPLETED
    assert len(merge(frames)) == 30


# -- what is safe when -------------------------------------------------------------------------


async def test_a_recording_and_its_job_are_on_the_disk_before_the_answer(
    tmp_path: Path, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut takes a job that somebody was told is safe."""
    done: list[str] = []
    fsync, rename, commit = os.fsync, Path.rename, Store.commit

    def spy_fsync(descriptor: int) -> None:
        done.append(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}').rsplit('/', 1)[1]}")
        fsync(descriptor)

    def spy_rename(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name} {target.name}")
        return rename(path, target)

    async def spy_commit(store: Store, changes: list[Change], *rest: Any) -> None:
        await commit(store, changes, *rest)
        done.extend("lasting" for change in changes if change.is_lasting)

    async with make(tmp_path) as transcriber:
        monkeypatch.setattr(os, "fsync", spy_fsync)
        monkeypatch.setattr(Path, "rename", spy_rename)
        monkeypatch.setattr(Store, "commit", spy_commit)
        job = await transcriber.submit(make_wav(2.0), options=ENDLESS.options())
        arrived = done[0].removeprefix("fsync ")
        expected = [f"fsync {arrived}", f"rename {arrived} recording"]
        expected += [f"fsync {job.id}", "fsync spool", "lasting"]
        assert done[:5] == expected


async def test_a_deleted_job_makes_room_before_it_is_forgotten(
    tmp_path: Path, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nothing can be deleted on a full disk, since that needs room too."""
    commit = Store.commit
    left: list[bool] = []

    async def spy(store: Store, changes: list[Change], deleted: set[str], *rest: Any) -> None:
        left.extend((tmp_path / "spool" / job_id).exists() for job_id in deleted)
        await commit(store, changes, deleted, *rest)

    async with make(tmp_path) as transcriber:
        job_id = await start(transcriber, make_wav(2.0), ENDLESS)
        monkeypatch.setattr(Store, "commit", spy)
        await transcriber.delete(job_id)
    assert left == [False]


async def test_a_name_that_is_no_text_is_made_one(
    transcriber: Transcriber, make_wav: MakeWav, tmp_path: Path
) -> None:
    """Otherwise an old file, named in another encoding, cannot be transcribed."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    shutil.copy(make_wav(2.0), path)
    job = await transcriber.submit(path, options=Script().options())
    assert job.name == "caf?.wav"
    frames = await to_end(transcriber.watch(job.id))
    assert frames[-1].status is Status.COMPLETED


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 10, 20, 50])
async def test_a_submission_that_is_given_up_is_there_or_not(
    tmp_path: Path, make_wav: MakeWav, turns: int
) -> None:
    """Otherwise a client that hangs up leaves half a job, which fails after the next restart."""
    async with make(tmp_path) as transcriber:
        submission = asyncio.create_task(
            transcriber.submit(make_wav(2.0), options=Script().options())
        )
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        submission.cancel()
        await asyncio.wait([submission])
    async with make(tmp_path) as transcriber:
        for job in transcriber.jobs():
            frames = await to_end(transcriber.watch(job.id))
            assert frames[-1].status is Status.COMPLETED
        expected = {f"{job.id}/recording" for job in transcriber.jobs()}
        await until(lambda: spooled(tmp_path) == expected)


# -- one end, whatever comes together ----------------------------------------------------------

#: What may happen at the same moment as a job's last words.
EVENTS = ["cancel", "delete", "kill", "stop", "nothing"]


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations_with_replacement(EVENTS, 2))
)
async def test_a_job_ends_once_whatever_comes_together(
    tmp_path: Path, make_wav: MakeWav, first: str, second: str
) -> None:
    """Otherwise a job that was told to be cancelled is completed after a restart, or both."""
    script = Script(segments=5, delay=0.02).options()
    told: list[Status] = []
    answers: dict[str, object] = {}
    before = workers()

    async def follow(frames: Subscription) -> None:
        told.extend([frame.status async for frame in frames if frame.status.is_terminal])

    async with make(tmp_path) as transcriber:
        job = await transcriber.submit(make_wav(2.0), options=script)
        followers = [asyncio.create_task(follow(transcriber.watch(job.id))) for _ in range(3)]
        await until_frame(transcriber.watch(job.id), lambda frame: frame.offset >= 4)

        async def happen(event: str) -> None:
            match event:
                case "cancel" | "delete":
                    answers[event] = await getattr(transcriber, event)(job.id)
                case "kill":
                    for pid in workers() - before:
                        os.kill(pid, signal.SIGKILL)
                case "nothing":
                    await asyncio.wait(followers)

        done = await asyncio.gather(
            *(happen(event) for event in (first, second)), return_exceptions=True
        )
        assert all(each is None or isinstance(each, JobNotFound) for each in done), done
        if "stop" not in (first, second):
            await asyncio.wait(followers)
    await asyncio.gather(*followers)
    assert len(set(told)) <= 1

    async with make(tmp_path) as transcriber:
        if "delete" in (first, second):
            with pytest.raises(JobNotFound):
                transcriber.get(job.id)
            assert not any(job.id in name for name in spooled(tmp_path))
            return
        (*_, last) = await to_end(transcriber.watch(job.id))
        if told:
            assert last.status is told[0], "what was told stays"
        if cancelled := answers.get("cancel"):
            assert isinstance(cancelled, Job)
            assert last.status is cancelled.status
        if last.status is Status.COMPLETED:
            assert len((await transcriber.transcript(job.id)).segments) == 5
