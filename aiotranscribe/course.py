"""How a job goes its way: what its workers found, and what follows from that. Pure.

All that has to outlive the server is in the job and in the workers' findings: read in order
into a new course, they bring it back to where it was.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from aiotranscribe import frame as frames
from aiotranscribe.engine.messages import (
    Decoded,
    Done,
    Downloaded,
    Ended,
    Entered,
    LanguageFound,
    Message,
    Prepare,
    Prepared,
    Recognised,
    SpanFound,
    Transcribe,
)
from aiotranscribe.engine.spans import Span
from aiotranscribe.errors import Problem
from aiotranscribe.exports import clock
from aiotranscribe.frame import View
from aiotranscribe.job import Job, Step
from aiotranscribe.progress import DECODING, Meter, Paces, read, resume, transcribing
from aiotranscribe.sentences import message
from aiotranscribe.transcript import Draft

#: What is kept of what workers tell.
Finding = SpanFound | Recognised

# A span that this many workers died with is not tried again.
_MOST_DEATHS = 2


@dataclass(frozen=True, slots=True)
class Change:
    """What has to be written down of a course."""

    job: Job
    #: Number of the first finding, counted over the job's life.
    first: int
    findings: Sequence[Finding]
    #: Whether a power cut must not take it back.
    is_lasting: bool


class Course:
    """A job and all that is known of it while it is at work.

    Args:
        job: The job as it was written down.
        findings: All that its workers had found.
        now: The time, on a monotonic clock, in seconds.
    """

    def __init__(self, job: Job, findings: Sequence[Finding] = (), now: float = 0.0) -> None:
        self.draft = Draft()
        self.meter = Meter()
        self._spans: dict[int, Span] = {}
        self._done: set[int] = set()
        #: How much of a span is decoded, in frames of 10 ms.
        self._seeks: dict[int, int] = {}
        #: The spans whose sound is on the disk for certain, in this run of the server...
        self._sounding: set[int] = set()
        #: ...and of these, those that have not been handed out.
        self._ready: list[Span] = []
        #: How many workers died with a span, or (None) with the recording's decoding.
        self._deaths: Counter[int | None] = Counter()
        for finding in findings:
            self._note(finding)
        self._written = len(findings)
        self._written_job = job
        self._new: list[Finding] = []
        self.job = job.write(self.draft.segments)
        resume(self.job, self.meter, now)

    def go_on(self, run_id: str, *, has_sound: bool) -> None:
        """Begin a run of the server.

        Args:
            run_id: Its name.
            has_sound: Whether all of the decoded sound is on the disk. If not, it is decoded
                again, and each span goes on when its sound is there.
        """
        self.job = self.job.go_on(run_id)
        if has_sound:
            self.meter.decoded = self.job.duration or 0.0
            self._sounding = set(self._spans)
            self._ready = list(self.rests(list(self._spans.values())))

    @property
    def is_done(self) -> bool:
        """Whether all of the recording is transcribed."""
        return self.job.is_prepared and self._done == self._spans.keys()

    def hear(self, message: Message, work: Prepare | Transcribe, slot: int, now: float) -> None:
        """Take in what the worker in a slot tells about its work for the job."""
        meter, model = self.meter, self.job.options.model
        match message:
            case Entered(step):
                self._enter(step, work, slot, now)
            case Downloaded():
                meter.load(slot, now)
            case Decoded(seconds, duration, share):
                self.job = self.job.decode(seconds, duration)
                meter.hear(slot, now, DECODING, seconds - meter.decoded)
                meter.decoded, meter.share = seconds, share
            case LanguageFound(language):
                self.job = self.job.speak(language)
            case Prepared(duration):
                self.job = self.job.prepare(duration)
                meter.hear(slot, now, DECODING, duration - meter.decoded)
                meter.decoded = duration
                # Another version of the decoder may not have found again what an earlier one had.
                silent = [span for it, span in self._spans.items() if it not in self._sounding]
                self._sounding.update(span.index for span in silent)
                self._ready.extend(self.rests(silent))
            case SpanFound(span):
                if span.index not in self._spans:
                    self._note(message)
                    self._new.append(message)
                if span.index not in self._sounding:  # else a dead worker had told it
                    self._sounding.add(span.index)
                    self._ready.extend(self.rests([span]))
            case Recognised():
                before = meter.transcribed
                self._note(message)
                self._new.append(message)
                self.job = self.job.write(self.draft.segments)
                meter.hear(slot, now, transcribing(model), meter.transcribed - before)
            case Done():
                meter.hear(slot, now, transcribing(model), 0.0)
        if isinstance(message, Ended):
            meter.end(slot)

    def take_ready(self) -> Sequence[Span]:
        """Return the spans to transcribe; all but the first wait for the language."""
        known = self.job.language is not None
        taken = [span for span in self._ready if known or span.index == 0]
        self._ready = [span for span in self._ready if span not in taken]
        return taken

    def count_death(self, spans: Sequence[Span] | None, error: Problem) -> Problem | None:
        """Hold a worker's death against what it worked on.

        Args:
            spans: What it was transcribing; ``None`` when it was decoding the recording.
            error: How it died.

        Returns:
            Why the job has failed, if this was the last straw.
        """
        indices = [None] if spans is None else [span.index for span in self.rests(spans)]
        self._deaths.update(indices)
        for index in indices:
            if self._deaths[index] >= _MOST_DEATHS:
                text = f"{self._part(index)} ended {_MOST_DEATHS} workers; {error.message}"
                return msgspec.structs.replace(error, message=text)
        return None

    def rests(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Return what of these spans is still to transcribe."""
        return [self._rest(span.index) for span in spans if span.index not in self._done]

    def measure(
        self,
        now: float,
        paces: Paces,
        left_s: float | None,
        *,
        queue_position: int | None = None,
        downloaded: float | None = None,
    ) -> View:
        """Return what watchers see.

        Args:
            now: The time, on the same clock as before.
            paces: What is known of the jobs before.
            left_s: Seconds to the job's end, as they are forecast.
            queue_position: How many jobs come first, if it waits.
            downloaded: How much of its model is there, while it is being fetched.
        """
        reading = read(self.job, self.meter, paces, now, left_s)
        self.job = msgspec.structs.replace(
            self.job, percentage=reading.percentage, speed=reading.speed
        )
        say = partial(message, self.job, downloaded=downloaded)
        head = frames.head(
            self.job, say(), eta_seconds=reading.eta_seconds, queue_position=queue_position
        )
        return View(head, self.draft.segments, self.job.runs, say)

    def take_change(self) -> Change | None:
        """Return what has to be written down before it is told, if anything has.

        What is only progress is not, but for the percentage, in whole steps: rounded up, so that
        after a crash it is never lower than what was told.
        """
        job = self.job
        if not job.status.is_terminal:
            percentage = min(99.9, math.ceil(job.percentage))
            job = msgspec.structs.replace(job, percentage=percentage)
        if not self._new and _essence(job) == _essence(self._written_job):
            return None
        is_lasting = job.status.is_terminal or job.runs != self._written_job.runs
        change = Change(job, self._written, self._new, is_lasting)
        self._written_job, self._written = job, self._written + len(self._new)
        self._new = []
        return change

    def _enter(self, step: Step, work: Prepare | Transcribe, slot: int, now: float) -> None:
        self.job = self.job.enter(step)
        if step is Step.LOADING_MODEL:
            self.meter.load(slot, now)
        elif step is Step.DECODING:
            self.meter.decode(slot, now)
        elif step is Step.TRANSCRIBING and isinstance(work, Transcribe):
            self.meter.speak(slot, now, work.spans, self.job.options.model)

    def _note(self, finding: Finding) -> None:
        if isinstance(finding, SpanFound):
            self._spans[finding.span.index] = finding.span
            self.meter.found(finding.span)
            return
        span = self._spans[finding.span]
        for segment in finding.segments:
            self.draft.add(finding.span, segment)
        self._seeks[finding.span] = finding.seek
        self.meter.at(span, finding.seek)
        if finding.is_done:
            self._done.add(finding.span)
            self.draft.finish(finding.span)
            self.meter.finished(span)

    def _rest(self, index: int) -> Span:
        return msgspec.structs.replace(self._spans[index], seek=self._seeks.get(index, 0))

    def _part(self, index: int | None) -> str:
        """What killed a worker, in words: a span, or the recording while it was decoded."""
        if index is None:
            return "the recording"
        span = self._spans[index]
        return f"the speech from {clock(span.start)} to {clock(span.end)}"


def _essence(job: Job) -> Job:
    """The job without what may be lost, because it is measured again."""
    return msgspec.structs.replace(job, step=Step.QUEUED, decoded=0.0, speed=None)
