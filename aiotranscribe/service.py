"""The transcriber: takes recordings, drives the workers, tells the watchers. The library's API.

All that can change a job goes through one queue, the inbox, and is applied by one task in
total order: apply (pure) -> hand out the next work -> commit -> publish. Nothing else changes a
job, and nothing is told before it is safe.
"""

import asyncio
import contextlib
import logging
import secrets
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Sequence,
)
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from aiotranscribe import frame as frames
from aiotranscribe.config import Config
from aiotranscribe.course import Change, Course
from aiotranscribe.engine import messages
from aiotranscribe.engine.messages import Ended, Load, Message, Prepare, Transcribe, Unload, Work
from aiotranscribe.engine.pool import Slot
from aiotranscribe.engine.scheduler import Scheduler
from aiotranscribe.engine.spans import Span
from aiotranscribe.engine.whisper import Settings, Whisper
from aiotranscribe.engine.worker import Loader
from aiotranscribe.errors import (
    AiotranscribeError,
    Closed,
    InvalidRequest,
    JobNotFound,
    ModelNotAvailable,
    NotFinished,
    Problem,
    QueueFull,
    RecordingLost,
    StorageUnavailable,
    TooMany,
    UnusableStore,
)
from aiotranscribe.frame import DEFAULT, Frame, View
from aiotranscribe.hub import Board, Hub, Subscription
from aiotranscribe.job import WEIGHTS, Job, Options, Status, Step, is_english_only
from aiotranscribe.metrics import Metrics
from aiotranscribe.outlook import Outlook
from aiotranscribe.sentences import check, message
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
        self._loader = loader
        self._inbox: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        #: Every job, as it was told last.
        self._jobs: dict[str, Job] = {}
        self._metrics = Metrics()
        #: When the first message arrived of those that are not told yet.
        self._message_at: float | None = None
        #: The jobs that have no terminal status, or whose end is not told yet.
        self._courses: dict[str, Course] = {}
        #: In order, without repetitions.
        self._changed: dict[str, None] = {}
        self._deleted: set[str] = set()
        #: What is told of the jobs that have changed, once that is safe.
        self._views: dict[str, View] = {}
        self._replies: list[Callable[[], None]] = []
        self._outlook = Outlook()
        #: When each job was told of last.
        self._told_at: dict[str, float] = {}
        #: Whether there are jobs at work.
        self._is_busy = asyncio.Event()
        self._scheduler: Scheduler[Prepare | Transcribe] = Scheduler()
        self._slots: list[Slot] = []
        #: Jobs that wait, and how many wait before each.
        self._positions: dict[str, int] = {}
        self._hub = Hub(self._segments)
        self._run_id = secrets.token_hex(4)
        self._is_open = False
        #: How many jobs are being accepted right now.
        self._accepting = 0
        self._model_error: Problem | None = None
        #: Why the data folder cannot be written, while it cannot.
        self._storage_error: AiotranscribeError | None = None
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
            await self._restore()
        except BaseException:
            await self._store.close()
            self._remove_temporary()
            raise
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_open = True
        self._drainer = asyncio.create_task(self._drain(), name="inbox")
        self._sweeper = asyncio.create_task(self._sweep(), name="sweep")
        self._ticker = asyncio.create_task(self._tick(), name="tick")
        config = self.config
        settings = Settings(config.device, config.compute_type, config.threads())
        self._slots = [
            Slot(
                number,
                config.model[0],
                (settings, self._loader),
                self._on_message,
                silence_s=config.worker_silence_s,
            )
            for number in range(config.slots())
        ]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        self.dismiss()
        await asyncio.gather(*(slot.close() for slot in self._slots))
        tasks = [self._drainer, self._sweeper, self._ticker]
        for task in tasks:
            task.cancel()
        await asyncio.wait([*tasks, *self._pending])
        await self._store.close()
        if not self._ready.cancel() and not self._ready.cancelled():
            self._ready.exception()  # seen, even if nobody waited for it
        await asyncio.to_thread(self._remove_temporary)

    def _remove_temporary(self) -> None:
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    async def _restore(self) -> None:
        """Bring back all jobs as they were told last; those at work go on."""
        self._outlook.paces = await self._store.paces()
        for job in await self._store.jobs():
            self._jobs[job.id] = job
            if job.status.is_terminal:
                say = partial(message, job)
                told = frames.head(job, say())
                self._hub.publish(job.id, View(told, None, job.runs, say))
            else:
                await self._go_on(job)
        self._dispatch()
        await self._commit()
        self._publish()
        if self._jobs:
            log.info("%s jobs are known, %s of them go on", len(self._jobs), len(self._courses))
        await asyncio.to_thread(
            self._spool.tidy, self._jobs, self._courses, keeps_recordings=self.config.keep_audio
        )

    async def _go_on(self, job: Job) -> None:
        self._changed[job.id] = None
        now = time.monotonic()
        try:
            course = Course(job, await self._store.findings(job.id), now)
        except UnusableStore as unusable:  # one bad row must not keep all the others away
            self._courses[job.id] = course = Course(job, now=now)
            self._end(course, Status.FAILED, unusable.problem())
            return
        self._courses[job.id] = course
        has_sound = job.is_prepared and self._spool.has_sound(job.id, job.duration or 0.0)
        course.go_on(self._run_id, has_sound=has_sound)
        self._begin(course, has_sound=has_sound)
        if not (has_sound or self._spool.recording(job.id).exists()):
            error = Problem("recording_lost", "the recording is no longer in the data folder")
            self._end(course, Status.FAILED, error)
        elif course.is_done:
            self._end(course, Status.COMPLETED)

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
        ).go_on(self._run_id)
        self._accepting += 1
        # Whoever is cancelled meanwhile gets no answer, but either the job is there or it is not.
        return await asyncio.shield(self._own(self._accept(arrival, job)))

    async def _accept(self, arrival: Arrival, job: Job) -> Job:
        try:
            await self._keep(arrival, job)
            # It is safe: whatever the disk does now, the job will be done.
            return await self._do(partial(self._enter, job), patience_s=None)
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
        if most and len(self._courses) + self._accepting >= most:
            known = [
                self._hub.view(it).summary().eta_seconds for it in self._courses if it in self._jobs
            ]
            soonest = min((eta_s for eta_s in known if eta_s), default=_LONGEST_RETRY_S)
            retry_s = max(_SHORTEST_RETRY_S, min(soonest, _LONGEST_RETRY_S))
            raise QueueFull(
                f"{most} jobs wait or are at work, and there may be no more; see --max-queue",
                retry_s,
            )

    def get(self, job_id: str) -> Job:
        """Return a job as it stands, or raise :class:`JobNotFound`."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise JobNotFound(f"there is no job {job_id[:64]!r}") from None

    def jobs(self) -> list[Job]:
        """Return all jobs, newest first."""
        return list(reversed(self._jobs.values()))

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
        return await self.submit(path, name=job.name, options=job.options, client=client)

    async def cancel(self, job_id: str) -> Job:
        """Stop a job and keep its text so far. A job that has ended stays as it is.

        Raises:
            JobNotFound: there is no such job.
        """
        return await self._do(partial(self._cancel, job_id))

    async def delete(self, job_id: str) -> None:
        """Stop a job if need be, and erase it with its recording and text.

        Raises:
            JobNotFound: there is no such job.
        """
        self.get(job_id)
        # Before the row: on a full disk, that makes the room to write that the job is gone.
        with contextlib.suppress(StorageUnavailable):
            await self._do(partial(self._cancel, job_id))
        await asyncio.to_thread(self._spool.remove, job_id)
        await self._do(partial(self._delete, job_id))

    def dismiss(self) -> None:
        """End every watcher's iteration, because this transcriber is going away."""
        self._hub.close()

    async def ready(self) -> None:
        """Wait until a worker has its model.

        Raises:
            ModelNotAvailable: the model cannot be loaded; the message says what to do.
        """
        await asyncio.shield(self._ready)

    @property
    def is_ready(self) -> bool:
        """Whether a worker has its model."""
        return any(slot.is_ready for slot in self._slots)

    @property
    def model_error(self) -> Problem | None:
        """Why no worker has its model, where that is known."""
        return None if self.is_ready else self._model_error

    def metrics(self) -> bytes:
        """Return what is to be measured, as Prometheus reads it."""
        jobs = [course.job for course in self._courses.values()]
        statuses = Counter(job.status for job in jobs)
        self._metrics.queued.set(statuses[Status.QUEUED])
        self._metrics.running.set(statuses[Status.RUNNING])
        self._metrics.speed.set(sum(job.speed or 0.0 for job in jobs))
        self._metrics.watchers.set(self._hub.count())
        self._metrics.workers_ready.set(sum(slot.is_ready for slot in self._slots))
        return self._metrics.text()

    # -- the one task that changes jobs --------------------------------------------------

    async def _drain(self) -> None:
        while True:
            # What these events put into the inbox gets a turn of its own.
            events = [await self._inbox.get()]
            events += [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
            message_at, self._message_at = self._message_at, None
            for event in events:
                try:
                    event()
                except Exception:
                    log.exception("an event could not be applied")
            try:
                self._dispatch()
                await self._commit()
                self._publish()
            except Exception:  # a mistake of ours must not stop every job for ever
                log.exception("what has changed could not be told")
            if message_at:
                self._metrics.event_latency.observe(time.monotonic() - message_at)
            replies, self._replies = self._replies, []
            for reply in replies:
                reply()
            await asyncio.sleep(0)  # whoever waits for news sees every turn

    async def _do(self, change: Callable[[], T], *, patience_s: float | None = _PATIENCE_S) -> T:
        """Have ``change`` applied in its turn; return its result once all have been told."""
        if not self._is_open:
            raise Closed("the server is shutting down")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def event() -> None:
            try:
                reply = partial(_answer, answer, change())
            except AiotranscribeError as error:
                reply = partial(_refuse, answer, error)
            self._replies.append(reply)

        self._inbox.put_nowait(event)
        either: list[asyncio.Future[Any]] = [answer, self._drainer]
        await asyncio.wait(either, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        if self._drainer.done():
            raise Closed("the server is shutting down")
        raise self._storage_error or StorageUnavailable("the data folder does not answer")

    def _enter(self, job: Job) -> Job:
        """Begin with a job that has just been accepted."""
        course = self._courses[job.id] = Course(job, now=time.monotonic())
        self._changed[job.id] = None
        self._is_busy.set()
        self._begin(course, has_sound=False)
        return job

    def _begin(self, course: Course, *, has_sound: bool) -> None:
        """Give a job's work to the scheduler, decoding first unless that is done."""
        job = course.job
        if not has_sound:
            recording, pcm = self._spool.recording(job.id), self._spool.pcm(job.id)
            most_s = self.config.max_duration_s()
            work = Prepare(job.id, str(recording), str(pcm), job.options, most_s)
            weight = WEIGHTS[job.options.priority]
            self._scheduler.push(job.id, work, _PREPARE_COST_S, weight=weight)
        self._offer(course, course.take_ready())

    def _cancel(self, job_id: str) -> Job:
        if course := self._courses.get(job_id):
            self._end(course, Status.CANCELLED)
            return course.job
        return self.get(job_id)

    def _delete(self, job_id: str) -> None:
        self._cancel(job_id)
        self._deleted.add(job_id)

    def _end(self, course: Course, status: Status, error: Problem | None = None) -> None:
        """Give a job its terminal status, unless it has one, and stop what runs for it."""
        course.job = course.job.end(status, time.time(), error)
        self._changed[course.job.id] = None
        self._scheduler.remove(course.job.id)
        for slot in self._slots:
            if isinstance(slot.work, Prepare | Transcribe) and slot.work.job_id == course.job.id:
                slot.stop()

    def _on_message(self, slot: Slot, work: Work | None, message: Message) -> None:
        self._message_at = self._message_at or time.monotonic()
        if isinstance(message, messages.Died):
            self._metrics.worker_restarts.inc()
        self._inbox.put_nowait(partial(self._apply, slot, work, message))

    def _apply(self, slot: Slot, work: Work | None, message: Message) -> None:
        idle_s = self.config.model_idle_s
        if idle_s and isinstance(message, Ended) and not isinstance(work, Unload):
            event = partial(self._rest, slot, slot.work_number)
            asyncio.get_running_loop().call_later(idle_s, self._inbox.put_nowait, event)
        if isinstance(message, messages.Downloaded | Ended):
            share = message.share if isinstance(message, messages.Downloaded) else 1.0
            self._outlook.download(slot.model or "", share, time.monotonic())
        if isinstance(work, Load | Unload | None):
            self._apply_load(slot, message)
        elif (course := self._courses.get(work.job_id)) and not course.job.status.is_terminal:
            self._changed[work.job_id] = None
            self._apply_work(course, slot, work, message)

    def _apply_load(self, slot: Slot, message: Message) -> None:
        match message:
            case messages.Done() if slot.model:
                log.info("worker %s has the model %s", slot.number, slot.model)
                _answer(self._ready, None)
            case messages.Failed(error) | messages.Died(error):
                log.error("worker %s: %s", slot.number, error.message)
                self._model_error = error
                # Any worker may be killed; when one slot has lost two, it is the model.
                if isinstance(message, messages.Failed) or slot.failed_starts > 1:
                    _refuse(self._ready, ModelNotAvailable(error.message))
                if all(slot.failed_starts >= _MOST_STARTS for slot in self._slots):
                    self._give_up(error)

    def _give_up(self, error: Problem) -> None:
        """Fail all jobs, because there are no workers and will be none."""
        text = f"no worker has come up, {_MOST_STARTS} times in a row; {error.message}"
        for course in self._courses.values():
            self._end(course, Status.FAILED, Problem(error.code, text))

    def _apply_work(
        self, course: Course, slot: Slot, work: Prepare | Transcribe, message: Message
    ) -> None:
        course.hear(message, work, slot.number, time.monotonic())
        self._offer(course, course.take_ready())
        match message:
            case messages.Failed(error):
                self._end(course, Status.FAILED, error)
            case messages.Died(error, has_begun):
                self._retry(course, work, error, is_at_fault=has_begun)
        if isinstance(message, Ended) and course.is_done and not course.job.status.is_terminal:
            course.job = course.job.enter(Step.FINISHING)
            # In a turn of its own, after this one is published: watchers see this step too.
            event = partial(self._end, course, Status.COMPLETED)
            asyncio.get_running_loop().call_soon(self._inbox.put_nowait, event)

    def _offer(self, course: Course, spans: Sequence[Span], *, is_again: bool = False) -> None:
        """Give spans to the scheduler; those that are done again go first, and alone."""
        job = course.job
        options = msgspec.structs.replace(job.options, language=job.language)
        for span in reversed(spans) if is_again else spans:
            self._scheduler.push(
                job.id,
                Transcribe(job.id, str(self._spool.pcm(job.id)), (span,), options),
                span.length,
                weight=WEIGHTS[job.options.priority],
                is_alone=is_again,
                is_first=is_again,
            )

    def _retry(
        self, course: Course, work: Prepare | Transcribe, error: Problem, *, is_at_fault: bool
    ) -> None:
        """Do again what a dead worker had not done; give up what has killed too many.

        Spans go alone now, so that the one at fault is the one that is counted.
        """
        spans = work.spans if isinstance(work, Transcribe) else None
        if is_at_fault and (verdict := course.count_death(spans, error)):
            self._end(course, Status.FAILED, verdict)
            return
        log.warning("job %s: %s; its work is done again", course.job.id, error.message)
        if isinstance(work, Prepare):
            self._begin(course, has_sound=False)
        else:
            self._offer(course, course.rests(work.spans), is_again=True)

    # -- after every batch ---------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give free slots their next work, and say where the rest stands in the queue."""
        for slot in self._slots:
            if slot.is_free:
                self._feed(slot)
        loading = sum(isinstance(slot.work, Load) for slot in self._slots)
        waiting = [self._courses[job_id] for job_id in self._scheduler.order()]
        for course in [each for each in waiting[:loading] if each.job.status is Status.QUEUED]:
            course.job = course.job.enter(Step.LOADING_MODEL)
            self._changed[course.job.id] = None
        queued = (course for course in waiting if course.job.status is Status.QUEUED)
        positions = {course.job.id: position for position, course in enumerate(queued)}
        for job_id in self._positions | positions:
            if positions.get(job_id) != self._positions.get(job_id):
                self._changed[job_id] = None
        self._positions = positions

    def _feed(self, slot: Slot) -> None:
        """Give a free slot what comes next, if anything does."""
        taken = self._scheduler.take(
            _TOGETHER, slots=len(self._slots), prefers=lambda work: _suits(slot, work)
        )
        if not taken:
            return
        work = taken[0]
        if isinstance(work, Transcribe):
            spans = tuple(part.spans[0] for part in taken if isinstance(part, Transcribe))
            work = msgspec.structs.replace(work, spans=spans)
        slot.perform(work)

    def _rest(self, slot: Slot, work_number: int) -> None:
        """Have a slot give its model back if it has done nothing since."""
        if slot.is_free and slot.work_number == work_number and slot.model is not None:
            log.info("worker %s is idle and gives its model back", slot.number)
            slot.perform(Unload())

    async def _commit(self) -> None:
        """Write down what has changed, however long the disk takes to be ready for it."""
        now = time.monotonic()
        outlook = self._outlook
        warm = {slot.model for slot in self._slots if slot.is_ready}
        leads, slots = self._scheduler.leads(), max(1, len(self._slots))
        forecast = outlook.forecast(self._courses, leads, warm, slots, now)
        for job_id in [job_id for job_id in self._changed if self._is_due(job_id, now)]:
            del self._changed[job_id]
            if course := self._courses.get(job_id):
                self._views[job_id] = course.measure(
                    now,
                    outlook.paces,
                    forecast.get(job_id),
                    queue_position=self._positions.get(job_id),
                    downloaded=outlook.downloaded(course.job.options.model),
                )
                self._told_at[job_id] = now
                if course.job.status is Status.COMPLETED:
                    outlook.learn(course)
        changes = [
            change for job_id in self._views if (change := self._courses[job_id].take_change())
        ]
        while changes or self._deleted:
            try:
                await self._store.commit(changes, self._deleted, outlook.learnt)
                outlook.learnt.clear()
                break
            except AiotranscribeError as error:
                self._excuse(error)
                await asyncio.sleep(_TRY_AGAIN_S)
        if self._storage_error:
            log.info("the data folder can be written again")
            self._storage_error = None
            self._touch()

    def _touch(self) -> None:
        """Have every job at work told of anew."""
        self._changed.update(dict.fromkeys(self._courses))

    def _is_due(self, job_id: str, now: float) -> bool:
        """Whether to tell of a job now: always of what matters, of mere progress not too often."""
        course, told_at = self._courses.get(job_id), self._told_at.get(job_id)
        if course is None or told_at is None or now - told_at >= self._pause(course):
            return True
        job = course.job
        try:
            told = self._hub.view(job_id).summary()
        except JobNotFound:  # it has just come
            return True
        return (job.status, job.current_step, job.count, job.language) != (
            told.status,
            told.current_step,
            told.offset,
            told.language,
        ) or self._positions.get(job_id) != told.queue_position

    def _pause(self, course: Course) -> float:
        """How long nothing has to be told of a job that only goes on."""
        crowd = len(self._positions) if course.job.status is Status.QUEUED else 0
        return max(course.meter.pause_s, crowd / _MOST_WAITING_TOLD)

    async def _tick(self) -> None:
        """Let those who watch a job see that time passes."""
        while True:
            if not self._courses:
                self._is_busy.clear()
                await self._is_busy.wait()
            await asyncio.sleep(min([_TICK_S, *map(self._pause, self._courses.values())]))
            if self._inbox.empty():  # on a full disk, nothing is taken from it
                self._inbox.put_nowait(self._touch)

    def _excuse(self, error: AiotranscribeError) -> None:
        """Tell those who watch a job at work what it waits for."""
        if self._storage_error:
            return
        self._storage_error = error
        log.error("%s; trying again until it can", error)
        for job_id in self._courses:
            with contextlib.suppress(JobNotFound):
                view = self._hub.view(job_id)  # a job that has just come is not there yet
                say = partial(message, self._jobs[job_id], waits_for=str(error))
                self._hub.publish(job_id, view.renewed(say))

    def _publish(self) -> None:
        for job_id, view in self._views.items():
            before, job = self._jobs.get(job_id), self._courses[job_id].job
            if before is None or job.status is not before.status:
                why = f": {job.error.message}" if job.error else ""
                fields = {"job_id": job_id, "status": job.status.value}
                fields |= {"code": job.error.code} if job.error else {}
                log.info("job %s %s%s", job_id, job.status.value, why, extra=fields)
            self._jobs[job_id] = job
            if self._hub.is_news(job_id, view):
                self._hub.publish(job_id, view)
            if job.status.is_terminal:
                del self._courses[job_id]
                del self._told_at[job_id]
                self._metrics.ended.labels(job.status.value).inc()
                self._clients.pop(job_id, None)
                self._clean(job_id)
        self._views.clear()
        for job_id in self._deleted:
            log.info("job %s deleted", job_id, extra={"job_id": job_id, "status": "deleted"})
            self._hub.drop(job_id)
            self._jobs.pop(job_id, None)
        self._deleted.clear()

    def _clean(self, job_id: str) -> None:
        """Remove what a job that has ended does not need, while everything else goes on."""
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
            for job in list(self._jobs.values()):
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


def _suits(slot: Slot, work: Prepare | Transcribe) -> bool:
    """Whether a slot can begin some work at once: it has the model, or needs none."""
    return isinstance(work, Prepare) or work.options.model == slot.model


def _answer(waiting: asyncio.Future[T], value: T) -> None:
    """Answer someone who may have stopped waiting, or have an answer."""
    if not waiting.done():
        waiting.set_result(value)


def _refuse(waiting: asyncio.Future[T], error: AiotranscribeError) -> None:
    """Answer with an error."""
    if not waiting.done():
        waiting.set_exception(error)


async def _read(path: Path) -> AsyncGenerator[bytes, None]:
    """The bytes of a file, piece by piece."""
    try:
        # Not in a thread: whoever is cancelled there would leave it open.
        with path.open("rb") as file:
            while piece := await asyncio.to_thread(file.read, _COPY_BYTES):
                yield piece
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
