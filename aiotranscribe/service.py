"""The transcriber: takes recordings, answers questions. The library's API.

What happens to a job from then on is the conductor's business.
"""

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Coroutine,
    Sequence,
)
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from aiotranscribe.conductor import Conductor
from aiotranscribe.config import Config
from aiotranscribe.course import Change, Course
from aiotranscribe.engine.whisper import Whisper
from aiotranscribe.engine.worker import Loader
from aiotranscribe.errors import (
    AiotranscribeError,
    Closed,
    InvalidRequest,
    NotFinished,
    Problem,
    QueueFull,
    RecordingLost,
    StorageUnavailable,
    TooMany,
)
from aiotranscribe.frame import DEFAULT, Frame
from aiotranscribe.hub import Board, Hub, Subscription
from aiotranscribe.job import Job, Options, Status, is_english_only
from aiotranscribe.metrics import Metrics
from aiotranscribe.sentences import check
from aiotranscribe.spool import Arrival, Spool, writing_to
from aiotranscribe.store import Store
from aiotranscribe.transcript import Segment, Transcript, join

log = logging.getLogger(__name__)

T = TypeVar("T")

# What decoding a recording costs the scheduler, in seconds of speech: about a minute's worth.
_PREPARE_COST_S = 60.0
# A file name is for people; nobody reads more than this.
_LONGEST_NAME = 255
_COPY_BYTES = 1 << 20
# Spans that a worker decodes in lock-step: more of them is faster, and delays other jobs longer.
_TOGETHER = 3
# Jobs do not wait for workers any more when none has lived to load its model, this often in a row.
_MOST_STARTS = 5
# A disk that is full is tried again after so long; who waits for an answer gets one after this.
_TRY_AGAIN_S, _PATIENCE_S = 1.0, 10.0
# While many jobs wait, each is told of less often: so many of them in a second, in all.
_MOST_WAITING_TOLD = 200
# How often to look whether something is to be told, at least.
_TICK_S = 0.05
# How often to look for jobs that have been kept long enough.
_SWEEP_S = 60.0
# When to come back to a full queue: as soon as a job should be done, within these bounds.
_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0


class Transcriber:
    """Transcribes recordings in worker processes; use it with ``async with``.

    Args:
        config: The settings. Without ``data_dir``, files live in a temporary folder that is
            removed in the end.
        loader: Loads a model in the worker; only tests need another one.

    Start it under ``if __name__ == "__main__":``, since workers import your main module. All
    methods belong to the event loop that entered it.
    """

    def __init__(self, config: Config | None = None, *, loader: Loader = Whisper) -> None:
        #: The settings.
        self.config = config or Config()
        self._metrics = Metrics()
        self._hub = Hub(self._segments)
        self._conductor = Conductor(self.config, loader, self._hub, self._metrics, self._see_off)
        self._is_open = False
        #: How many jobs are being accepted right now.
        self._accepting = 0
        #: Whose the jobs at work are, and how many recordings each is sending, where that is known.
        self._clients: dict[str, str] = {}
        self._arriving: Counter[str] = Counter()
        #: What has to be done before the store is closed.
        self._pending: set[asyncio.Future[Any]] = set()

    async def __aenter__(self) -> "Transcriber":
        folder = self.config.data_dir
        self._temporary = None if folder else tempfile.mkdtemp(prefix="aiotranscribe-")
        root = folder or Path(self._temporary or "")
        self._store = Store(root)
        try:
            await self._store.open()
        except BaseException:
            self._remove_temporary()
            raise
        try:
            with writing_to(root):
                min_free = self.config.min_free_disk_bytes()
                self._spool = await asyncio.to_thread(Spool, root / "spool", min_free)
            conductor = self._conductor
            await conductor.restore(self._store, self._spool)
            await asyncio.to_thread(
                self._spool.tidy,
                conductor.jobs,
                conductor.courses,
                keeps_recordings=self.config.keep_audio,
            )
        except BaseException:
            await self._store.close()
            self._remove_temporary()
            raise
        self._is_open = True
        conductor.start()
        self._sweeper = asyncio.create_task(self._sweep(), name="sweep")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        self.dismiss()
        await self._conductor.close()
        self._sweeper.cancel()
        await asyncio.wait([self._sweeper, *self._pending])
        await self._store.close()
        await asyncio.to_thread(self._remove_temporary)

    def _remove_temporary(self) -> None:
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    # -- what callers do -----------------------------------------------------------------

    def check(self, options: Options) -> Options:
        """Return the options as they would be used, with the model filled in.

        Raises:
            InvalidOption: an option that cannot be.
        """
        return options.settle(self.config.model)

    async def submit(
        self,
        recording: Path | str | AsyncIterable[bytes],
        *,
        name: str | None = None,
        options: Options | None = None,
        client: str | None = None,
    ) -> Job:
        """Take a recording; it is safe when this returns.

        Args:
            recording: A file, which is copied, or its bytes, piece by piece.
            name: What to call it; by default the file's name.
            options: How to transcribe it.
            client: Who sends it; ``None`` for this program, which may send any number.

        Raises:
            InvalidOption: an option that cannot be.
            TooMany: the client has as many jobs as it may.
            InvalidRequest: there is not a single byte, or no such file.
            QueueFull: there are as many jobs as there may be.
            StorageUnavailable: the data folder cannot be written.
            Closed: this transcriber is going away.
        """
        options = self.check(options or Options())
        if isinstance(recording, str | Path):
            name = name or Path(recording).name
            # Whoever gives up in the middle leaves no file open.
            async with contextlib.aclosing(_read(Path(recording))) as pieces:
                return await self.submit(pieces, name=name, options=options, client=client)
        async with self.arrival(client) as arrival:
            async for piece in recording:
                await arrival.write(piece)
            return await self.accept(arrival, name=name, options=options)

    @contextlib.asynccontextmanager
    async def arrival(self, client: str | None = None) -> AsyncIterator[Arrival]:
        """Enter a place to write a recording to, piece by piece, before it is accepted.

        Args:
            client: Who sends it; ``None`` for this program, which may send any number.

        Raises:
            QueueFull: there are as many jobs as there may be.
            Closed: this transcriber is going away.
            TooMany: the client has as many jobs as it may.
        """
        self._admit()
        if client is not None:
            self._check_number(client)
            self._arriving[client] += 1
        try:
            async with self._spool.arrival() as arrival:
                arrival.client = client
                yield arrival
        finally:
            if client is not None:
                self._arriving -= Counter([client])

    def _check_number(self, client: str) -> None:
        most = self.config.max_jobs_per_client
        count = self._arriving[client] + sum(other == client for other in self._clients.values())
        if count >= most:
            raise TooMany(
                f"{client} has {count} jobs that have not ended, and the limit is {most}; wait for "
                "some, or see --max-jobs-per-client"
            )

    async def accept(
        self, arrival: Arrival, *, name: str | None = None, options: Options | None = None
    ) -> Job:
        """Make a whole recording a job; like :meth:`submit`, which is this in one call."""
        options = self.check(options or Options())
        if not arrival.size_bytes:
            raise InvalidRequest("the recording is empty (0 bytes)")
        self._admit()
        job = Job(
            id=uuid.uuid4().hex,
            # Names of files may hold what is no text.
            name=(name or "recording").encode(errors="replace").decode()[:_LONGEST_NAME],
            size_bytes=arrival.size_bytes,
            created=time.time(),
            options=options,
            language="en" if is_english_only(options.model or "") else options.language,
        ).go_on(self._conductor.run_id)
        self._accepting += 1
        # Whoever is cancelled meanwhile gets no answer, but either the job is there or it is not.
        return await asyncio.shield(self._own(self._accept(arrival, job)))

    async def _accept(self, arrival: Arrival, job: Job) -> Job:
        try:
            await self._keep(arrival, job)
            return await self._conductor.enter(job)
        finally:
            self._accepting -= 1

    async def _keep(self, arrival: Arrival, job: Job) -> None:
        """Make a recording and its job safe."""
        try:
            await arrival.keep(self._spool.recording(job.id))
            await self._store.commit([Change(job, 0, (), is_lasting=True)])
        except BaseException:
            await asyncio.to_thread(self._spool.remove, job.id)
            raise
        if arrival.client is not None:
            self._clients[job.id] = arrival.client

    def _admit(self) -> None:
        """Refuse a job that comes too late, or too early."""
        if not self._is_open:
            raise Closed("the server is shutting down")
        most = self.config.max_queue
        if most and len(self._conductor.courses) + self._accepting >= most:
            at_work = self._conductor.courses.keys() & self._conductor.jobs.keys()
            known = [self._hub.view(job_id).summary().eta_seconds for job_id in at_work]
            soonest = min((eta_s for eta_s in known if eta_s), default=_LONGEST_RETRY_S)
            retry_s = max(_SHORTEST_RETRY_S, min(soonest, _LONGEST_RETRY_S))
            raise QueueFull(
                f"{most} jobs wait or are at work, and there may be no more; see --max-queue",
                retry_s,
            )

    def get(self, job_id: str) -> Job:
        """Return a job as it stands, or raise :class:`JobNotFound`."""
        return self._conductor.get(job_id)

    def jobs(self) -> list[Job]:
        """Return all jobs, newest first."""
        return list(reversed(self._conductor.jobs.values()))

    async def frame(
        self,
        job_id: str,
        since: str | None = None,
        *,
        wait_s: float = 0,
        language: str = DEFAULT,
    ) -> Frame:
        """Return the job's frame for someone who has what the cursor ``since`` says.

        Args:
            job_id: Which job.
            since: The cursor of the last frame; ``None`` for all of the text.
            wait_s: If no text is missing, wait so long for the next change.
            language: Of the message; one of ``sentences.LANGUAGES``.

        Raises:
            JobNotFound: there is no such job.
        """
        return await self._hub.frame(job_id, since, wait_s=wait_s, language=check(language))

    def summary(self, job_id: str, language: str = DEFAULT) -> Frame:
        """Return the job's frame without its segments, or raise :class:`JobNotFound`."""
        return self._hub.view(job_id).summary(check(language))

    def watch(
        self, job_id: str, since: str | None = None, *, language: str = DEFAULT
    ) -> Subscription:
        """Iterate over the job's frames: its state at once, then every change, the end last.

        A watcher that is slow gets fewer, larger frames. Close the subscription when you leave
        the loop before its end.

        Raises:
            JobNotFound: there is no such job.
        """
        return self._hub.subscribe(job_id, since, check(language))

    def board(self) -> Board:
        """Iterate over the frames of all jobs, without their segments: now, then every change.

        A deleted job comes as its id and ``None``; an empty id, once every job has come, and then
        as a sign of life.
        """
        return self._hub.board()

    async def transcript(self, job_id: str, *, partial: bool = False) -> Transcript:
        """Return the text of a finished job; with ``partial``, of any job, as far as it is.

        Raises:
            JobNotFound: there is no such job.
            NotFinished: it is still at work.
        """
        view, segments = await self._hub.text(job_id)
        told = view.summary()
        if not (partial or told.status.is_terminal):
            raise NotFinished(
                f"the job is still {told.status.value}; wait for its end, or ask for "
                "partial=true to get the text so far"
            )
        task = self.get(job_id).options.task
        return Transcript(join(segments), told.language, told.duration_seconds, segments, task)

    async def recording(self, job_id: str) -> Path:
        """Return where a job's recording is, to be read only.

        Raises:
            JobNotFound: there is no such job.
            RecordingLost: it was not kept.
        """
        path = self._spool.recording(self.get(job_id).id)
        if not await asyncio.to_thread(path.exists):
            raise RecordingLost(
                "the recording of this job is not here any more; servers with --no-keep-audio "
                "remove it when the job ends"
            )
        return path

    async def retry(self, job_id: str, client: str | None = None) -> Job:
        """Begin a new job with a job's recording, name and options.

        Raises:
            JobNotFound: there is no such job.
            RecordingLost: its recording was not kept.
            TooMany: the client has as many jobs as it may.
        """
        path, job = await self.recording(job_id), self.get(job_id)
        try:
            return await self.submit(path, name=job.name, options=job.options, client=client)
        except InvalidRequest as error:  # it was deleted at this moment
            raise RecordingLost("the recording of this job has just been deleted") from error

    async def cancel(self, job_id: str) -> Job:
        """Stop a job and keep its text so far. A job that has ended stays as it is.

        Raises:
            JobNotFound: there is no such job.
        """
        return await self._conductor.cancel(job_id)

    async def delete(self, job_id: str) -> None:
        """Stop a job if need be, and erase it with its recording and text.

        Raises:
            JobNotFound: there is no such job.
        """
        self.get(job_id)
        # Before the row: on a full disk, that makes the room to write that the job is gone.
        with contextlib.suppress(StorageUnavailable):
            await self._conductor.cancel(job_id)
        await asyncio.to_thread(self._spool.remove, job_id)
        await self._conductor.delete(job_id)

    def dismiss(self) -> None:
        """End every watcher's iteration, because this transcriber is going away."""
        self._hub.close()

    async def ready(self) -> None:
        """Wait until a worker has its model.

        Raises:
            ModelNotAvailable: the model cannot be loaded; the message says what to do.
        """
        await asyncio.shield(self._conductor.ready)

    @property
    def is_ready(self) -> bool:
        """Whether a worker has its model."""
        return any(slot.is_ready for slot in self._conductor.slots)

    @property
    def model_error(self) -> Problem | None:
        """Why no worker has its model, where that is known."""
        return None if self.is_ready else self._conductor.model_error

    def metrics(self) -> bytes:
        """Return what is to be measured, as Prometheus reads it."""
        jobs = [course.job for course in self._conductor.courses.values()]
        statuses = Counter(job.status for job in jobs)
        self._metrics.queued.set(statuses[Status.QUEUED])
        self._metrics.running.set(statuses[Status.RUNNING])
        self._metrics.speed.set(sum(job.speed or 0.0 for job in jobs))
        self._metrics.watchers.set(self._hub.count())
        self._metrics.workers_ready.set(sum(slot.is_ready for slot in self._conductor.slots))
        return self._metrics.text()

    # -- behind the scenes ---------------------------------------------------------------

    def _see_off(self, job_id: str) -> None:
        """Remove what a job that has ended does not need, while everything else goes on."""
        self._clients.pop(job_id, None)
        remove = partial(self._spool.remove_sound, job_id, keeps_recording=self.config.keep_audio)
        self._own(asyncio.to_thread(remove))

    def _own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do something whose end the store waits for."""
        task = asyncio.create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Future[Any]) -> None:
        self._pending.discard(task)
        if not task.cancelled():
            task.exception()  # seen, though whoever asked for it may have gone

    async def _sweep(self) -> None:
        """Delete jobs that have been kept as long as they should be."""
        keep_s = self.config.keep_s()
        while keep_s is not None:
            before = time.time() - keep_s
            for job in list(self._conductor.jobs.values()):
                if job.ended is not None and job.ended <= before:
                    log.info("job %s has been kept for %s", job.id, self.config.keep)
                    with contextlib.suppress(AiotranscribeError):
                        await self.delete(job.id)
            await asyncio.sleep(min(_SWEEP_S, keep_s or 1.0))

    async def _segments(self, job_id: str) -> Sequence[Segment]:
        """Read a finished job's segments from the disk."""
        findings = await self._store.findings(job_id)
        course = await asyncio.to_thread(Course, self.get(job_id), findings)
        return course.draft.segments


async def _read(path: Path) -> AsyncGenerator[bytes, None]:
    """The bytes of a file, piece by piece."""
    try:
        # Not in a thread: whoever is cancelled there would leave it open.
        with path.open("rb") as file:
            while piece := await asyncio.to_thread(file.read, _COPY_BYTES):
                yield piece
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
