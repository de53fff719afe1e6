"""A job's course: what its workers found, in any order, and brought back from the disk."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe.course import Change, Course, Finding
from aiotranscribe.engine.messages import (
    Decoded,
    Entered,
    LanguageFound,
    Message,
    Prepare,
    Prepared,
    Recognised,
    SpanFound,
    Transcribe,
)
from aiotranscribe.engine.spans import SAMPLE_RATE, Span
from aiotranscribe.errors import Problem
from aiotranscribe.job import Job, Options, Status, Step
from aiotranscribe.transcript import FullSegment

DIED = Problem("worker_died", "the worker process was killed")
#: A recording of three spans of ten seconds, with two windows each.
SPANS = [Span(index, ((index * 160_000, (index + 1) * 160_000),)) for index in range(3)]
WINDOWS = [(span, number) for span in range(3) for number in range(2)]


def make_job(**changes: object) -> Job:
    """Return a job that has just been accepted, of a language that is known."""
    job = Job(id="job", name="memo.ogg", created=0.0, options=Options(), language="en")
    return msgspec.structs.replace(job, **changes).go_on("a")


def window(span: int, number: int) -> Recognised:
    """Return what a worker tells of one of a span's two windows."""
    start = 10.0 * span + 5 * number
    segments = tuple(
        FullSegment(0, start + i, start + i + 1, f" {span}.{number}.{i}") for i in (0, 2)
    )
    return Recognised(span, segments, 500 * (number + 1), is_done=number == 1)


def hear(course: Course, message: Message, now: float = 0.0) -> None:
    """Let a course hear what a worker tells: the one in the first slot decodes."""
    slot, spans = 0, tuple(SPANS)
    if isinstance(message, Recognised):
        slot, spans = message.span + 1, (SPANS[message.span],)
    work: Prepare | Transcribe = Transcribe("job", "pcm", spans, Options())
    if not slot:
        work = Prepare("job", "recording", "pcm", Options())
    course.hear(message, work, slot, now)


def texts(course: Course) -> list[str]:
    """Return what the segments say."""
    return [segment.text for segment in course.draft.segments]


ALL = [f" {span}.{number}.{i}" for span, number in WINDOWS for i in (0, 2)]


# -- any order of news, any moment of a crash -------------------------------------------------


@st.composite
def stories(draw: st.DrawFn) -> list[Message]:
    """Draw an order in which workers may tell all there is to tell of the recording."""
    rest: list[list[Message]] = [[window(index, 0), window(index, 1)] for index in range(3)]
    preparing: list[Message] = [Entered(Step.DECODING)]
    for span in SPANS:
        preparing += [Decoded(span.end, 30.0), SpanFound(span)]
    preparing.append(Prepared(30.0))
    told: list[Message] = []
    while preparing or any(rest):
        known = sum(isinstance(message, SpanFound) for message in told)
        choices = [queue for queue in (preparing, *rest[:known]) if queue]
        told.append(draw(st.sampled_from(choices)).pop(0))
    return told


class Disk:
    """What was written down of a job."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.findings: list[Finding] = []

    def write(self, change: Change | None) -> None:
        """Write it down, as the store does."""
        if change:
            assert change.first == len(self.findings)
            self.job = change.job
            self.findings += change.findings


@given(stories(), st.data())
def test_a_crash_at_any_moment_costs_nothing_that_was_told(
    story: list[Message], data: st.DataObject
) -> None:
    """Otherwise a restart loses words, doubles them, or takes the bar back."""
    disk, course = Disk(), Course(make_job())
    now, told, shown = 0.0, 0, 0.0
    crashes = data.draw(st.sets(st.integers(0, len(story)), max_size=3))
    waiting = list(story)
    for moment in range(len(story) + 1):
        if moment in crashes and disk.job:
            course = Course(disk.job, disk.findings, now)
            course.go_on(f"{moment:x}", has_sound=False)
            disk.write(course.take_change())
            assert texts(course) == ALL[:told], "exactly what was told"
            assert course.job.count == told
            # Everything that was not written is done again; what was is not.
            waiting = [each for each in story if each not in disk.findings]
        if not waiting:
            break
        now += 1.0
        hear(course, waiting.pop(0), now)
        left_s = data.draw(st.none() | st.floats(0, 100))
        frame = course.measure(now, {}, left_s).summary()
        disk.write(course.take_change())
        assert frame.progress_percentage >= shown
        shown, told = frame.progress_percentage, frame.offset
        assert texts(course) == ALL[:told]
    for message in waiting:
        hear(course, message)
    assert texts(course) == ALL
    assert course.is_done


@given(stories())
def test_what_is_on_the_disk_is_the_whole_job(story: list[Message]) -> None:
    """Otherwise a finished job cannot be read any more after a restart."""
    disk, course = Disk(), Course(make_job())
    for message in story:
        hear(course, message)
        disk.write(course.take_change())
    course.job = course.job.end(Status.COMPLETED, 9.0)
    course.measure(9.0, {}, 0.0)
    disk.write(course.take_change())
    assert disk.job
    again = Course(disk.job, disk.findings)
    assert again.draft.segments == course.draft.segments
    assert (again.job.status, again.job.percentage, again.job.count) == ("completed", 100.0, 12)


# -- what has to be written --------------------------------------------------------------------


def test_progress_is_written_in_whole_steps_only() -> None:
    """Otherwise the disk is written ten times a second for numbers that nobody misses."""
    course = Course(make_job())
    written = 0
    for tenth in range(1, 1000):
        hear(course, Entered(Step.DECODING))
        hear(course, Decoded(tenth / 10, 100.0))
        course.measure(tenth / 100, {}, 90.0)
        written += course.take_change() is not None
    assert 5 < written < 20


@pytest.mark.parametrize(
    "message", [SpanFound(SPANS[0]), LanguageFound("pt"), Prepared(30.0)], ids=repr
)
def test_what_cannot_be_measured_again_is_written(message: Message) -> None:
    """Otherwise a restart begins from the beginning."""
    course = Course(make_job(language=None))
    assert course.take_change() is None
    hear(course, message)
    assert course.take_change()
    assert course.take_change() is None


def test_an_end_and_a_new_run_outlive_a_power_cut() -> None:
    """Otherwise a job that was told to be done is at work again, or a cursor deceives."""
    course = Course(make_job())
    course.go_on("b", has_sound=False)
    change = course.take_change()
    assert change
    assert change.is_lasting
    hear(course, SpanFound(SPANS[0]))
    change = course.take_change()
    assert change
    assert not change.is_lasting
    course.job = course.job.end(Status.CANCELLED, 1.0)
    change = course.take_change()
    assert change
    assert change.is_lasting


# -- what is to be transcribed -----------------------------------------------------------------


def test_spans_wait_for_the_language() -> None:
    """Otherwise an interview is transcribed in two languages."""
    course = Course(make_job(language=None))
    for span in SPANS:
        hear(course, SpanFound(span))
    assert course.take_ready() == SPANS[:1]
    assert course.take_ready() == []
    hear(course, LanguageFound("pt"))
    assert course.take_ready() == SPANS[1:]


def test_what_a_dead_worker_told_is_not_handed_out_twice() -> None:
    """Otherwise a recording that is decoded again is transcribed twice."""
    course = Course(make_job())
    for _ in range(2):
        for span in SPANS:
            hear(course, SpanFound(span))
    assert course.take_ready() == SPANS


def test_after_a_restart_a_span_goes_on_when_its_sound_is_there() -> None:
    """Otherwise a worker reads sound that a power cut took, or does again what is done."""
    findings: list[Finding] = [SpanFound(SPANS[0]), SpanFound(SPANS[1])]
    findings += [window(0, 0), window(0, 1), window(1, 0)]
    rest = msgspec.structs.replace(SPANS[1], seek=500)

    course = Course(make_job(), findings)
    course.go_on("b", has_sound=False)
    assert course.take_ready() == []
    hear(course, SpanFound(SPANS[0]))
    assert course.take_ready() == [], "it is done"
    hear(course, SpanFound(SPANS[1]))
    assert course.take_ready() == [rest]

    course = Course(make_job(), findings)
    course.go_on("b", has_sound=True)
    assert course.take_ready() == [rest]


def test_a_span_that_is_not_found_again_is_done_all_the_same() -> None:
    """Otherwise an update, whose decoder cuts otherwise, leaves a job at work for ever."""
    course = Course(make_job(), [SpanFound(span) for span in SPANS])
    course.go_on("b", has_sound=False)
    hear(course, SpanFound(SPANS[0]))
    assert course.take_ready() == SPANS[:1]
    hear(course, Prepared(30.0))
    assert course.take_ready() == SPANS[1:]


def test_restarts_alone_are_no_progress() -> None:
    """Otherwise a server that crashes again and again seems to be nearly done."""
    disk, course = Disk(), Course(make_job(percentage=55.5))
    for run in range(8):
        course.go_on(f"{run:x}", has_sound=False)
        disk.write(course.take_change())
        assert disk.job
        course = Course(disk.job, disk.findings)
    assert disk.job
    assert disk.job.percentage == 56.0


def test_what_kills_two_workers_is_given_up() -> None:
    """Otherwise one recording kills workers for ever, or one crash costs a job."""
    course = Course(make_job(), [SpanFound(span) for span in SPANS])
    assert course.count_death(SPANS[:2], DIED) is None
    hear(course, window(0, 0))
    hear(course, window(0, 1))
    assert course.count_death(SPANS[:1], DIED) is None, "it was done"
    verdict = course.count_death(SPANS[1:], DIED)
    assert verdict
    assert verdict.code == "worker_died"
    assert verdict.message.startswith("the speech from 0:10 to 0:20 ended 2 workers; ")

    assert course.count_death(None, DIED) is None
    verdict = course.count_death(None, DIED)
    assert verdict
    assert verdict.message.startswith("the recording ended 2 workers; ")


def test_a_course_is_done_when_all_that_was_found_is_done() -> None:
    """Otherwise a job ends before its last words, or never."""
    assert SPANS[0].length == 160_000 / SAMPLE_RATE
    course = Course(make_job())
    for message in (SpanFound(SPANS[0]), window(0, 0), window(0, 1)):
        hear(course, message)
        assert not course.is_done
    hear(course, Prepared(10.0))
    assert course.is_done
