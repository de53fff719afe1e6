"""The one task that changes jobs, and what it conducts: the workers, the store, the hub.

All that can change a job goes through one queue, the inbox, and is applied by one task in
total order: apply (pure) -> hand out the next work -> commit -> publish. Nothing else changes a
job, and nothing is told before it is safe.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from aiotranscribe import frame as frames
from aiotranscribe.config import Config
from aiotranscribe.course import Course
from aiotranscribe.engine import messages
from aiotranscribe.engine.messages import Ended, Load, Message, Prepare, Transcribe, Unload, Work
from aiotranscribe.engine.pool import Slot
from aiotranscribe.engine.scheduler import Scheduler
from aiotranscribe.engine.spans import Span
from aiotranscribe.engine.whisper import Settings
from aiotranscribe.engine.worker import Loader
from aiotranscribe.errors import (
    AiotranscribeError,
    Closed,
    JobNotFound,
    ModelNotAvailable,
    Problem,
    StorageUnavailable,
    UnusableStore,
)
from aiotranscribe.frame import View
from aiotranscribe.hub import Hub
from aiotranscribe.job import WEIGHTS, Job, Status, Step
from aiotranscribe.metrics import Metrics
from aiotranscribe.outlook import Outlook
from aiotranscribe.sentences import message
from aiotranscribe.spool import Spool
from aiotranscribe.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

# What decoding a recording costs the scheduler, in seconds of speech: about a minute's worth.
_PREPARE_COST_S = 60.0
# With parallel=off faster-whisper wants 3.5 GB for an hour of speech, and more for silence.
_MOST_WHOLE_S = 90 * 60.0
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


class Conductor:
    """Every job from when it is safe to its end.

    Args:
        config: The settings.
        loader: Loads a model in the worker.
        hub: Where frames are published.
        metrics: What is counted.
        on_end: Called with the id of a job whose end has been told.
    """

    def __init__(
        self,
        config: Config,
        loader: Loader,
        hub: Hub,
        metrics: Metrics,
        on_end: Callable[[str], None],
    ) -> None:
        self._config = config
        self._loader = loader
        self._hub = hub
        self._metrics = metrics
        self._on_end = on_end
        self._store: Store
        self._spool: Spool
        #: Every job, as it was told last.
        self.jobs: dict[str, Job] = {}
        #: The jobs that have no terminal status, or whose end is not told yet.
        self.courses: dict[str, Course] = {}
        #: One for each worker.
        self.slots: list[Slot] = []
        #: Of this life of the server; part of every cursor.
        self.run_id = secrets.token_hex(4)
        #: Done when a worker has its model; failed when it cannot be had.
        self.ready: asyncio.Future[None]
        #: Why no worker has its model, where that is known.
        self.model_error: Problem | None = None
        self._is_open = False
        self._inbox: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        #: When the first message arrived of those that are not told yet.
        self._message_at: float | None = None
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
        #: Jobs that wait, and how many wait before each.
        self._positions: dict[str, int] = {}
        #: Why the data folder cannot be written, while it cannot.
        self._storage_error: AiotranscribeError | None = None

    async def restore(self, store: Store, spool: Spool) -> None:
        """Bring back all jobs as they were told last; those at work go on."""
        self._store, self._spool = store, spool
        self._outlook.paces = await self._store.paces()
        for job in await self._store.jobs():
            self.jobs[job.id] = job
            if job.status.is_terminal:
                say = partial(message, job)
                told = frames.head(job, say())
                self._hub.publish(job.id, View(told, None, job.runs, say))
            else:
                await self._go_on(job)
        self._dispatch()
        await self._commit()
        self._publish()
        if self.jobs:
            log.info("%s jobs are known, %s of them go on", len(self.jobs), len(self.courses))

    async def _go_on(self, job: Job) -> None:
        self._changed[job.id] = None
        now = time.monotonic()
        try:
            course = Course(job, await self._store.findings(job.id), now)
        except UnusableStore as unusable:  # one bad row must not keep all the others away
            self.courses[job.id] = course = Course(job, now=now)
            self._end(course, Status.FAILED, unusable.problem())
            return
        self.courses[job.id] = course
        has_sound = job.is_prepared and self._spool.has_sound(job.id, job.duration or 0.0)
        course.go_on(self.run_id, has_sound=has_sound)
        self._begin(course, has_sound=has_sound)
        if not (has_sound or self._spool.recording(job.id).exists()):
            error = Problem("recording_lost", "the recording is no longer in the data folder")
            self._end(course, Status.FAILED, error)
        elif course.is_done:
            self._end(course, Status.COMPLETED)

    def start(self) -> None:
        """Begin to change jobs, and start the workers."""
        self.ready = asyncio.get_running_loop().create_future()
        self._is_open = True
        self._drainer = asyncio.create_task(self._drain(), name="inbox")
        self._ticker = asyncio.create_task(self._tick(), name="tick")
        config = self._config
        settings = Settings(config.device, config.compute_type, config.threads())
        self.slots = [
            Slot(
                number,
                config.model[0],
                (settings, self._loader),
                self._on_message,
                silence_s=config.worker_silence_s,
            )
            for number in range(config.slots())
        ]

    async def close(self) -> None:
        """Change no job any more, and end the workers."""
        self._is_open = False
        await asyncio.gather(*(slot.close() for slot in self.slots))
        tasks = [self._drainer, self._ticker]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if not self.ready.cancel() and not self.ready.cancelled():
            self.ready.exception()  # seen, even if nobody waited for it

    # -- what callers do -----------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """Return a job as it stands, or raise :class:`JobNotFound`."""
        try:
            return self.jobs[job_id]
        except KeyError:
            raise JobNotFound(f"there is no job {job_id[:64]!r}") from None

    async def enter(self, job: Job) -> Job:
        """Begin with a job that is safe; return when it has been told of."""
        # Whatever the disk does now, the job will be done.
        return await self._do(partial(self._enter, job), patience_s=None)

    async def cancel(self, job_id: str) -> Job:
        """Stop a job, and return it as it ended; see :meth:`Transcriber.cancel`."""
        return await self._do(partial(self._cancel, job_id))

    async def delete(self, job_id: str) -> None:
        """Stop a job if need be, and forget it."""
        await self._do(partial(self._delete, job_id))

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
        course = self.courses[job.id] = Course(job, now=time.monotonic())
        self._changed[job.id] = None
        self._is_busy.set()
        self._begin(course, has_sound=False)
        return job

    def _begin(self, course: Course, *, has_sound: bool) -> None:
        """Give a job's work to the scheduler, decoding first unless that is done."""
        job = course.job
        if not has_sound:
            recording, pcm = self._spool.recording(job.id), self._spool.pcm(job.id)
            most_s = self._config.max_duration_s()
            if job.options.parallel == "off":
                most_s = min(most_s or _MOST_WHOLE_S, _MOST_WHOLE_S)
            work = Prepare(job.id, str(recording), str(pcm), job.options, most_s)
            weight = WEIGHTS[job.options.priority]
            self._scheduler.push(job.id, work, _PREPARE_COST_S, weight=weight)
        self._offer(course, course.take_ready())

    def _cancel(self, job_id: str) -> Job:
        if course := self.courses.get(job_id):
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
        for slot in self.slots:
            if isinstance(slot.work, Prepare | Transcribe) and slot.work.job_id == course.job.id:
                slot.stop()

    def _on_message(self, slot: Slot, work: Work | None, message: Message) -> None:
        self._message_at = self._message_at or time.monotonic()
        if isinstance(message, messages.Died):
            self._metrics.worker_restarts.inc()
        self._inbox.put_nowait(partial(self._apply, slot, work, message))

    def _apply(self, slot: Slot, work: Work | None, message: Message) -> None:
        idle_s = self._config.model_idle_s
        if idle_s and isinstance(message, Ended) and not isinstance(work, Unload):
            event = partial(self._rest, slot, slot.work_number)
            asyncio.get_running_loop().call_later(idle_s, self._inbox.put_nowait, event)
        if isinstance(message, messages.Downloaded | Ended):
            share = message.share if isinstance(message, messages.Downloaded) else 1.0
            self._outlook.download(slot.model or "", share, time.monotonic())
        if isinstance(work, Load | Unload | None):
            self._apply_load(slot, message)
        elif (course := self.courses.get(work.job_id)) and not course.job.status.is_terminal:
            self._changed[work.job_id] = None
            self._apply_work(course, slot, work, message)

    def _apply_load(self, slot: Slot, message: Message) -> None:
        match message:
            case messages.Done() if slot.model:
                log.info("worker %s has the model %s", slot.number, slot.model)
                _answer(self.ready, None)
            case messages.Failed(error) | messages.Died(error):
                log.error("worker %s: %s", slot.number, error.message)
                self.model_error = error
                # Any worker may be killed; when one slot has lost two, it is the model.
                if isinstance(message, messages.Failed) or slot.failed_starts > 1:
                    _refuse(self.ready, ModelNotAvailable(error.message))
                if all(slot.failed_starts >= _MOST_STARTS for slot in self.slots):
                    self._give_up(error)

    def _give_up(self, error: Problem) -> None:
        """Fail all jobs, because there are no workers and will be none."""
        text = f"no worker has come up, {_MOST_STARTS} times in a row; {error.message}"
        for course in self.courses.values():
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
        for slot in self.slots:
            if slot.is_free:
                self._feed(slot)
        loading = sum(isinstance(slot.work, Load) for slot in self.slots)
        waiting = [self.courses[job_id] for job_id in self._scheduler.order()]
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
            _TOGETHER, slots=len(self.slots), prefers=lambda work: _suits(slot, work)
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
        warm = {slot.model for slot in self.slots if slot.is_ready}
        leads, slots = self._scheduler.leads(), max(1, len(self.slots))
        forecast = outlook.forecast(self.courses, leads, warm, slots, now)
        for job_id in [job_id for job_id in self._changed if self._is_due(job_id, now)]:
            del self._changed[job_id]
            if course := self.courses.get(job_id):
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
            change for job_id in self._views if (change := self.courses[job_id].take_change())
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
        self._changed.update(dict.fromkeys(self.courses))

    def _is_due(self, job_id: str, now: float) -> bool:
        """Whether to tell of a job now: always of what matters, of mere progress not too often."""
        course, told_at = self.courses.get(job_id), self._told_at.get(job_id)
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
            if not self.courses:
                self._is_busy.clear()
                await self._is_busy.wait()
            await asyncio.sleep(min([_TICK_S, *map(self._pause, self.courses.values())]))
            if self._inbox.empty():  # on a full disk, nothing is taken from it
                self._inbox.put_nowait(self._touch)

    def _excuse(self, error: AiotranscribeError) -> None:
        """Tell those who watch a job at work what it waits for."""
        if self._storage_error:
            return
        self._storage_error = error
        log.error("%s; trying again until it can", error)
        for job_id in self.courses:
            with contextlib.suppress(JobNotFound):
                view = self._hub.view(job_id)  # a job that has just come is not there yet
                say = partial(message, self.jobs[job_id], waits_for=str(error))
                self._hub.publish(job_id, view.renewed(say))

    def _publish(self) -> None:
        for job_id, view in self._views.items():
            before, job = self.jobs.get(job_id), self.courses[job_id].job
            if before is None or job.status is not before.status:
                why = f": {job.error.message}" if job.error else ""
                fields = {"job_id": job_id, "status": job.status.value}
                fields |= {"code": job.error.code} if job.error else {}
                log.info("job %s %s%s", job_id, job.status.value, why, extra=fields)
            self.jobs[job_id] = job
            if self._hub.is_news(job_id, view):
                self._hub.publish(job_id, view)
            if job.status.is_terminal:
                del self.courses[job_id]
                del self._told_at[job_id]
                self._metrics.ended.labels(job.status.value).inc()
                self._on_end(job_id)
        self._views.clear()
        for job_id in self._deleted:
            log.info("job %s deleted", job_id, extra={"job_id": job_id, "status": "deleted"})
            self._hub.drop(job_id)
            self.jobs.pop(job_id, None)
        self._deleted.clear()


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
