"""The transcriber: takes recordings, drives the workers, tells the watchers. The library's API.

All that can change a job goes through one queue, the inbox, and is applied by one task in
total order: apply (pure) -> publish -> hand out the next work. Nothing else changes a job.
"""

import asyncio
import logging
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterable, Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from aiotranscribe.config import Config
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
)
from aiotranscribe.exports import clock
from aiotranscribe.frame import Frame, View, make_cursor, now
from aiotranscribe.hub import Hub, Subscription
from aiotranscribe.job import WEIGHTS, Job, Options, Status, Step, is_english_only
from aiotranscribe.progress import Meter, read
from aiotranscribe.spool import Arrival, Spool
from aiotranscribe.transcript import Draft, Transcript, join

log = logging.getLogger(__name__)

T = TypeVar("T")

# What decoding a recording costs the scheduler, in seconds of speech: about a minute's worth.
_PREPARE_COST_S = 60.0
# A file name is for people; nobody reads more than this.
_LONGEST_NAME = 255
_COPY_BYTES = 1 << 20
# Spans that a worker decodes in lock-step: more of them is faster, and delays other jobs longer.
_TOGETHER = 3
# A span that this many workers died with is not tried again.
_MOST_DEATHS = 2
# Jobs do not wait for workers any more when none has lived to load its model, this often in a row.
_MOST_STARTS = 5


class _Entry:
    """A job and what belongs to it while it is known here."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.draft = Draft()
        self.meter = Meter()
        #: Every span found, as it was found.
        self.spans: dict[int, Span] = {}
        #: The spans that have no more segments to come.
        self.done: set[int] = set()
        #: Spans that wait until the first one has found the language.
        self.held: list[Span] = []
        #: How much of a span is decoded, in frames of 10 ms.
        self.seeks: dict[int, int] = {}
        #: How many workers died with a span, or (None) with the recording's decoding.
        self.deaths: Counter[int | None] = Counter()


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
        self._config = config or Config()
        self._loader = loader
        self._inbox: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        self._entries: dict[str, _Entry] = {}
        self._changed: set[str] = set()
        self._replies: list[Callable[[], None]] = []
        self._scheduler: Scheduler[Prepare | Transcribe] = Scheduler()
        self._slots: list[Slot] = []
        #: Jobs that wait, and how many wait before each.
        self._positions: dict[str, int] = {}
        self._hub = Hub()
        self._run = 1
        self._is_open = False
        self._model_error: Problem | None = None

    async def __aenter__(self) -> "Transcriber":
        folder = self._config.data_dir
        self._temporary = None if folder else tempfile.mkdtemp(prefix="aiotranscribe-")
        root = folder or Path(self._temporary or "")
        self._spool = await asyncio.to_thread(Spool, root / "spool")
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_open = True
        self._drainer = asyncio.create_task(self._drain(), name="inbox")
        config = self._config
        settings = Settings(config.device, config.compute_type, config.threads())
        self._slots = [
            Slot(number, config.model[0], settings, self._loader, self._on_message)
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
        self._drainer.cancel()
        await asyncio.wait([self._drainer])
        if not self._ready.cancel() and not self._ready.cancelled():
            self._ready.exception()  # seen, even if nobody waited for it
        if self._temporary:
            await asyncio.to_thread(shutil.rmtree, self._temporary, ignore_errors=True)

    # -- what callers do -----------------------------------------------------------------

    def check(self, options: Options) -> Options:
        """Return the options as they would be used, with the model filled in.

        Raises:
            InvalidOption: an option that cannot be.
        """
        return options.settle(self._config.model)

    async def submit(
        self,
        recording: Path | str | AsyncIterable[bytes],
        *,
        name: str | None = None,
        options: Options | None = None,
    ) -> Job:
        """Take a recording; it is safe when this returns.

        Args:
            recording: A file, which is copied, or its bytes, piece by piece.
            name: What to call it; by default the file's name.
            options: How to transcribe it.

        Raises:
            InvalidOption: an option that cannot be.
            InvalidRequest: there is not a single byte, or no such file.
            Closed: this transcriber is going away.
        """
        options = self.check(options or Options())
        if isinstance(recording, str | Path):
            name = name or Path(recording).name
            recording = _read(Path(recording))
        async with self.arrival() as arrival:
            async for piece in recording:
                await arrival.write(piece)
            return await self.accept(arrival, name=name, options=options)

    def arrival(self) -> Arrival:
        """Return a place to write a recording to, piece by piece, before it is accepted.

        Raises:
            Closed: this transcriber is going away.
        """
        if not self._is_open:
            raise Closed("the server is shutting down")
        return self._spool.arrival()

    async def accept(
        self, arrival: Arrival, *, name: str | None = None, options: Options | None = None
    ) -> Job:
        """Make a whole recording a job; like :meth:`submit`, which is this in one call."""
        options = self.check(options or Options())
        if not arrival.size_bytes:
            raise InvalidRequest("the recording is empty (0 bytes)")
        language = "en" if is_english_only(options.model or "") else options.language
        job = Job(
            id=uuid.uuid4().hex,
            name=(name or "recording")[:_LONGEST_NAME],
            created=time.time(),
            options=options,
            language=language,
        )
        try:
            await asyncio.to_thread(arrival.keep, self._spool.recording(job.id))
            return await self._do(partial(self._accept, job))
        except Exception:
            await asyncio.to_thread(self._spool.remove, job.id)
            raise

    def get(self, job_id: str) -> Job:
        """Return a job as it stands, or raise :class:`JobNotFound`."""
        return self._entry(job_id).job

    def jobs(self) -> list[Job]:
        """Return all jobs, newest first."""
        return [entry.job for entry in reversed(self._entries.values())]

    def frame(self, job_id: str, since: str | None = None) -> Frame:
        """Return the job's frame for someone who has what the cursor ``since`` says.

        Raises:
            JobNotFound: there is no such job.
        """
        view = self._hub.view(job_id)
        return view.frame(view.resume(since))

    def summary(self, job_id: str) -> Frame:
        """Return the job's frame without its segments, or raise :class:`JobNotFound`."""
        view = self._hub.view(job_id)
        return view.frame(view.count)

    def watch(self, job_id: str, since: str | None = None) -> Subscription:
        """Iterate over the job's frames: its state at once, then every change, the end last.

        A watcher that is slow gets fewer, larger frames. Close the subscription when you leave
        the loop before its end.

        Raises:
            JobNotFound: there is no such job.
        """
        return self._hub.subscribe(job_id, since)

    def transcript(self, job_id: str, *, partial: bool = False) -> Transcript:
        """Return the text of a finished job; with ``partial``, of any job, as far as it is.

        Raises:
            JobNotFound: there is no such job.
            NotFinished: it is still at work.
        """
        entry = self._entry(job_id)
        if not (partial or entry.job.status.is_terminal):
            raise NotFinished(
                f"the job is still {entry.job.status.value}; wait for its end, or ask for "
                "partial=true to get the text so far"
            )
        segments = tuple(entry.draft.segments)
        return Transcript(join(segments), entry.job.language, entry.job.duration, segments)

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
        await self._do(partial(self._delete, job_id))
        await asyncio.to_thread(self._spool.remove, job_id)

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

    # -- the one task that changes jobs --------------------------------------------------

    async def _drain(self) -> None:
        while True:
            # What these events put into the inbox gets a turn of its own.
            events = [await self._inbox.get()]
            events += [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
            for event in events:
                try:
                    event()
                except Exception:
                    log.exception("an event could not be applied")
            self._dispatch()
            self._publish()
            replies, self._replies = self._replies, []
            for reply in replies:
                reply()
            await asyncio.sleep(0)  # whoever waits for news sees every turn

    async def _do(self, change: Callable[[], T]) -> T:
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
        return await answer

    def _set(self, entry: _Entry, job: Job) -> None:
        """Make ``job`` the state of its entry; one log line for every change of status."""
        before, entry.job = entry.job, job
        if job != before:
            self._changed.add(job.id)
        if job.status is not before.status:
            why = f": {job.error.message}" if job.error else ""
            log.info("job %s %s%s", job.id, job.status.value, why)

    def _accept(self, job: Job) -> Job:
        self._entries[job.id] = _Entry(job)
        log.info("job %s queued", job.id)
        work = Prepare(
            job.id,
            str(self._spool.recording(job.id)),
            str(self._spool.pcm(job.id)),
            job.options,
        )
        weight = WEIGHTS[job.options.priority]
        self._scheduler.push(job.id, work, _PREPARE_COST_S, weight=weight)
        self._changed.add(job.id)
        return job

    def _cancel(self, job_id: str) -> Job:
        entry = self._entry(job_id)
        self._end(entry, Status.CANCELLED)
        return entry.job

    def _delete(self, job_id: str) -> None:
        entry = self._entry(job_id)
        self._end(entry, Status.CANCELLED)
        self._positions.pop(job_id, None)
        self._publish_one(entry)
        self._hub.drop(job_id)
        del self._entries[job_id]
        self._changed.discard(job_id)
        log.info("job %s deleted", job_id)

    def _end(self, entry: _Entry, status: Status, error: Problem | None = None) -> None:
        """Give a job its terminal status, unless it has one, and stop what runs for it."""
        self._set(entry, entry.job.end(status, error))
        self._scheduler.remove(entry.job.id)
        for slot in self._slots:
            if isinstance(slot.work, Prepare | Transcribe) and slot.work.job_id == entry.job.id:
                slot.stop()

    def _on_message(self, slot: Slot, work: Work | None, message: Message) -> None:
        self._inbox.put_nowait(partial(self._apply, slot, work, message))

    def _apply(self, slot: Slot, work: Work | None, message: Message) -> None:
        idle_s = self._config.model_idle_s
        if idle_s and isinstance(message, Ended) and not isinstance(work, Unload):
            event = partial(self._rest, slot, slot.work_number)
            asyncio.get_running_loop().call_later(idle_s, self._inbox.put_nowait, event)
        if isinstance(work, Load | Unload | None):
            self._apply_load(slot, message)
        elif (entry := self._entries.get(work.job_id)) and not entry.job.status.is_terminal:
            self._changed.add(work.job_id)
            self._apply_work(entry, work, message)

    def _apply_load(self, slot: Slot, message: Message) -> None:
        match message:
            case messages.Done() if slot.model:
                log.info("worker %s has the model %s", slot.number, slot.model)
                _answer(self._ready, None)
            case messages.Failed(error) | messages.Died(error):
                log.error("worker %s: %s", slot.number, error.message)
                self._model_error = error
                _refuse(self._ready, ModelNotAvailable(error.message))
                if all(slot.failed_starts >= _MOST_STARTS for slot in self._slots):
                    self._give_up(error)

    def _give_up(self, error: Problem) -> None:
        """Fail all jobs, because there are no workers and will be none."""
        text = f"no worker has come up, {_MOST_STARTS} times in a row; {error.message}"
        for entry in self._entries.values():
            if not entry.job.status.is_terminal:
                self._end(entry, Status.FAILED, Problem(error.code, text))

    def _apply_work(self, entry: _Entry, work: Prepare | Transcribe, message: Message) -> None:
        job = entry.job
        match message:
            case messages.Entered(step):
                self._set(entry, job.enter(step))
            case messages.Decoded(seconds, duration):
                self._set(entry, job.decode(seconds, duration))
            case messages.SpanFound(span) if span.index not in entry.spans:
                entry.spans[span.index] = span
                entry.meter.found(span)
                self._offer(entry, span)
            case messages.LanguageFound(language):
                self._set(entry, job.speak(language))
                held, entry.held = entry.held, []
                for span in held:
                    self._offer(entry, span)
            case messages.Recognised(index, segments, seek, is_done):
                for segment in segments:
                    entry.draft.add(index, segment)
                entry.seeks[index] = seek
                entry.meter.at(entry.spans[index], seek)
                if is_done:
                    entry.done.add(index)
                    entry.draft.finish(index)
                    entry.meter.finished(entry.spans[index])
            case messages.Prepared(duration):
                self._set(entry, job.prepare(duration))
            case messages.Failed(error):
                self._end(entry, Status.FAILED, error)
            case messages.Died(error, has_begun):
                self._retry(entry, work, error, is_at_fault=has_begun)
        is_over = entry.job.is_prepared and entry.done == entry.spans.keys()
        if isinstance(message, Ended) and is_over and not entry.job.status.is_terminal:
            self._set(entry, entry.job.enter(Step.FINISHING))
            # In a turn of its own, after this one is published: watchers see this step too.
            event = partial(self._end, entry, Status.COMPLETED)
            asyncio.get_running_loop().call_soon(self._inbox.put_nowait, event)

    def _offer(self, entry: _Entry, span: Span, *, is_again: bool = False) -> None:
        """Give a span to the scheduler; all but the first wait for the language."""
        job = entry.job
        if job.language is None and span.index > 0:
            entry.held.append(span)
            return
        options = msgspec.structs.replace(job.options, language=job.language)
        self._scheduler.push(
            job.id,
            Transcribe(job.id, str(self._spool.pcm(job.id)), (span,), options),
            span.length,
            is_alone=is_again,
            is_first=is_again,
        )

    def _retry(
        self, entry: _Entry, work: Prepare | Transcribe, error: Problem, *, is_at_fault: bool
    ) -> None:
        """Do again what a dead worker had not done; give up what has killed too many.

        Spans go alone now, so that the one at fault is the one that is counted.
        """
        spans: Sequence[Span] = ()
        if isinstance(work, Transcribe):
            spans = [span for span in work.spans if span.index not in entry.done]
        at_fault: Sequence[int | None] = (
            [None] if isinstance(work, Prepare) else [span.index for span in spans]
        )
        if not is_at_fault:
            at_fault = []
        entry.deaths.update(at_fault)
        for index in at_fault:
            if entry.deaths[index] == _MOST_DEATHS:
                text = f"{_part(entry, index)} ended {_MOST_DEATHS} workers; {error.message}"
                self._end(entry, Status.FAILED, Problem(error.code, text))
                return
        log.warning("job %s: %s; its work is done again", entry.job.id, error.message)
        if isinstance(work, Prepare):
            self._scheduler.push(entry.job.id, work, _PREPARE_COST_S)
        for span in reversed(spans):
            seek = entry.seeks.get(span.index, 0)
            self._offer(entry, msgspec.structs.replace(span, seek=seek), is_again=True)

    # -- after every batch ---------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give free slots their next work, and say where the rest stands in the queue."""
        for slot in self._slots:
            if slot.is_free:
                self._feed(slot)
        loading = sum(isinstance(slot.work, Load) for slot in self._slots)
        waiting = [self._entries[job_id] for job_id in self._scheduler.order()]
        for entry in [entry for entry in waiting if entry.job.status is Status.QUEUED][:loading]:
            self._set(entry, entry.job.enter(Step.LOADING_MODEL))
        queued = (entry for entry in waiting if entry.job.status is Status.QUEUED)
        positions = {entry.job.id: position for position, entry in enumerate(queued)}
        for job_id in self._positions | positions:
            if positions.get(job_id) != self._positions.get(job_id):
                self._changed.add(job_id)
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
        meter = self._entries[work.job_id].meter
        if meter.began is None:
            meter.began = time.monotonic()
        slot.perform(work)

    def _rest(self, slot: Slot, work_number: int) -> None:
        """Have a slot give its model back if it has done nothing since."""
        if slot.is_free and slot.work_number == work_number and slot.model is not None:
            log.info("worker %s is idle and gives its model back", slot.number)
            slot.perform(Unload())

    def _publish(self) -> None:
        changed, self._changed = self._changed, set()
        for job_id in changed:
            if entry := self._entries.get(job_id):
                self._publish_one(entry)

    def _publish_one(self, entry: _Entry) -> None:
        job, segments = entry.job, entry.draft.segments
        position = segments[-1].end if segments else 0.0
        reading = read(job, entry.meter, position, time.monotonic())
        entry.job = job = msgspec.structs.replace(job, percentage=reading.percentage)
        head = Frame(
            job_id=job.id,
            status=job.status,
            progress_percentage=reading.percentage,
            current_step=job.current_step,
            message=reading.message,
            eta_seconds=reading.eta_seconds,
            position_seconds=position,
            duration_seconds=job.duration,
            speed=reading.speed,
            queue_position=self._positions.get(job.id),
            language=job.language,
            error=job.error,
            offset=len(segments),
            segments=(),
            cursor=make_cursor(self._run, len(segments)),
            time=now(),
        )
        self._hub.publish(job.id, View(head, segments, self._run))

    def _entry(self, job_id: str) -> _Entry:
        try:
            return self._entries[job_id]
        except KeyError:
            raise JobNotFound(f"there is no job {job_id[:64]!r}") from None


def _part(entry: _Entry, index: int | None) -> str:
    """What killed a worker, in words: a span, or the recording while it was decoded."""
    if index is None:
        return "the recording"
    span = entry.spans[index]
    return f"the speech from {clock(span.start)} to {clock(span.end)}"


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


async def _read(path: Path) -> AsyncIterable[bytes]:
    """The bytes of a file, piece by piece."""
    try:
        with await asyncio.to_thread(path.open, "rb") as file:
            while piece := await asyncio.to_thread(file.read, _COPY_BYTES):
                yield piece
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
