"""Progress: what a watcher is told of how far a job is."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe.engine.spans import SAMPLE_RATE, Span
from aiotranscribe.errors import Problem
from aiotranscribe.job import Job, Options, Status, Step
from aiotranscribe.progress import Meter, Reading, message, read, resume

Event = Callable[[Job, Meter], Job]


def make_job(**changes: object) -> Job:
    """Return a job as it is when it has just been accepted, but for ``changes``."""
    job = Job(id="job", name="memo.ogg", created=0.0, options=Options())
    return msgspec.structs.replace(job, **changes)


def span(index: int, *stretches: tuple[float, float]) -> Span:
    """Return a span of stretches in seconds."""
    return Span(
        index,
        tuple((round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in stretches),
    )


# -- for any measurements --------------------------------------------------------------------


def decoded(samples: int, claim: float | None) -> Event:
    """So much is decoded, of so many seconds that the file claims."""
    return lambda job, _: job.decode(samples / SAMPLE_RATE, claim)


def prepared(samples: int) -> Event:
    """All is decoded."""
    return lambda job, _: job.prepare(samples / SAMPLE_RATE)


def entered(step: Step) -> Event:
    """A worker has come to a step."""
    return lambda job, _: job.enter(step)


def measured(method: Callable[..., None], *values: object) -> Event:
    """A meter's method is called."""

    def event(job: Job, meter: Meter) -> Job:
        method(meter, *values)
        return job

    return event


SAMPLES = st.integers(1, 10**9)
SPANS = st.builds(
    lambda index, start, length: Span(index, ((start, start + length),)),
    st.integers(0, 5),
    SAMPLES,
    SAMPLES,
)
SECONDS = st.floats(0, 1e6)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(decoded, SAMPLES, st.none() | st.floats(-1e6, 1e18)),
    st.builds(prepared, SAMPLES),
    st.builds(entered, st.sampled_from([step for step in Step if step is not Step.QUEUED])),
    st.builds(measured, st.just(Meter.found), SPANS),
    st.builds(measured, st.just(Meter.at), SPANS, st.integers(0, 10**8)),
)


@given(
    events=st.lists(st.tuples(EVENTS, SECONDS)),
    end=st.sampled_from([Status.COMPLETED, Status.FAILED, Status.CANCELLED]),
)
def test_what_a_watcher_is_told_is_sane_whatever_is_measured(
    events: list[tuple[Event, float]], end: Status
) -> None:
    """Otherwise a bar runs backwards, beyond its end, or stands at 100 % and goes on."""
    job, meter, now, last = make_job(), Meter(began=0.0), 0.0, 0.0
    for event, passed_s in [*events, (lambda job, _: job.end(end, 0.0), 1.0)]:
        job, now = event(job, meter), now + passed_s
        reading = read(job, meter, now=now)
        assert last <= reading.percentage <= 100
        assert (reading.percentage == 100) == (job.status is Status.COMPLETED)
        assert reading.eta_seconds is None or reading.eta_seconds >= 0
        assert reading.speed is None or reading.speed >= 0
        assert message(job)
        last = reading.percentage
        job = msgspec.structs.replace(job, percentage=last)
    assert read(job, meter, now=now).eta_seconds is None


# -- plain examples --------------------------------------------------------------------------


def half_done() -> tuple[Job, Meter]:
    """Return a job with one of its two spans of 50 seconds done, begun at second 1000."""
    meter = Meter(began=1000.0)
    first, second = span(0, (0, 50)), span(1, (50, 100))
    meter.found(first)
    meter.found(second)
    meter.at(first, 5000)
    return make_job().enter(Step.TRANSCRIBING).prepare(100.0), meter


def read_after(seconds: float, job: Job, meter: Meter) -> Reading:
    """Read the progress so many seconds after the work began."""
    return read(job, meter, now=1000.0 + seconds)


def test_half_of_the_work_reads_as_about_half() -> None:
    """Otherwise the percentage is a decoration."""
    reading = read_after(10.0, *half_done())
    assert 45 <= reading.percentage <= 60


def test_what_is_left_takes_as_long_as_what_is_done() -> None:
    """Otherwise people wait for an end that does not come."""
    reading = read_after(10.0, *half_done())
    assert reading.eta_seconds is not None
    assert 6 <= reading.eta_seconds <= 12
    assert reading.speed == 5.0


def test_there_is_no_guess_at_the_beginning() -> None:
    """Otherwise the first thing that people see is an hour for a memo, or a second for a film."""
    assert read_after(0.5, *half_done()).eta_seconds is None
    waiting = read(make_job(), Meter(), now=1000.0)
    assert (waiting.percentage, waiting.eta_seconds, waiting.speed) == (0.0, None, None)


def test_decoding_counts_for_little() -> None:
    """Otherwise the bar leaps up while the file is read, and then seems to hang."""
    meter = Meter(began=0.0)
    meter.found(span(0, (0, 90)))
    job = make_job().enter(Step.DECODING).decode(90.0, 100.0)
    assert 0 < read(job, meter, now=5.0).percentage <= 15


def test_spans_not_yet_found_are_expected() -> None:
    """Otherwise a long recording shows 100 % when its first minute is done."""
    meter = Meter(began=0.0)
    first = span(0, (0, 10))
    meter.found(first)
    meter.at(first, 1000)
    job = make_job().enter(Step.TRANSCRIBING).decode(10.0, 100.0)
    assert 5 <= read(job, meter, now=5.0).percentage <= 15


def test_all_the_text_is_not_yet_the_end() -> None:
    """Otherwise a client that waits for 100 % leaves before the job is safe on the disk."""
    job, meter = half_done()
    meter.at(span(1, (50, 100)), 5000)
    assert 99 <= read_after(10.0, job, meter).percentage < 100


def test_a_recording_without_speech_gets_to_its_end() -> None:
    """Otherwise silence hangs at a tenth until it is suddenly over."""
    job = make_job().enter(Step.DETECTING_SPEECH).prepare(100.0)
    assert 99 <= read(job, Meter(began=0.0), now=5.0).percentage < 100


def test_a_percentage_that_was_told_is_never_taken_back() -> None:
    """Otherwise the bar jumps back when a recording proves longer than it claims."""
    job, meter = half_done()
    reading = read_after(10.0, msgspec.structs.replace(job, percentage=80.0), meter)
    assert reading.percentage == 80.0


def test_what_an_earlier_run_of_the_server_did_is_no_measure_of_speed() -> None:
    """Otherwise a job that goes on after a restart is promised to be done in a second."""
    job, meter = half_done()
    resume(job, meter)
    fresh = read_after(2.0, job, meter)
    assert (fresh.eta_seconds, fresh.speed) == (None, None)
    assert fresh.percentage >= 45
    meter.at(span(1, (50, 100)), 2500)
    later = read_after(5.0, job, meter)
    assert later.speed == 5.0
    assert later.eta_seconds == pytest.approx(5.0)


@pytest.mark.parametrize(("seek", "transcribed"), [(0, 0), (1250, 12.5), (2000, 20), (3000, 20)])
def test_what_is_left_out_counts_for_nothing(seek: int, transcribed: float) -> None:
    """Otherwise a long silence counts as an hour's work, or a padded window as speech."""
    meter = Meter()
    meter.at(span(3, (0, 10), (60, 70)), seek)
    assert meter.transcribed == transcribed


def test_spans_add_up() -> None:
    """Otherwise the bar shows one worker, and not all of them."""
    meter = Meter()
    meter.at(span(0, (0, 10)), 500)
    meter.at(span(1, (10, 20)), 250)
    meter.at(span(0, (0, 10)), 1000)
    assert meter.transcribed == 12.5


# -- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (make_job(), "Waiting for a free worker"),
        (make_job().enter(Step.LOADING_MODEL), "Loading the model"),
        (make_job().enter(Step.DECODING), "Reading the recording"),
        (make_job().enter(Step.DETECTING_SPEECH), "Listening for speech"),
        (make_job().enter(Step.DETECTING_LANGUAGE), "Recognising the language"),
        (make_job(position=1350.0).enter(Step.TRANSCRIBING), "Transcribed 22:30"),
        (
            make_job(position=1350.0, duration=3600.0).enter(Step.TRANSCRIBING),
            "Transcribed 22:30 of 1:00:00",
        ),
        (make_job().enter(Step.FINISHING), "Finishing"),
        (make_job(duration=3600.0).end(Status.COMPLETED, 0.0), "Transcribed 1:00:00"),
        (make_job().end(Status.CANCELLED, 0.0), "Cancelled"),
        (
            make_job().end(Status.FAILED, 0.0, Problem("undecodable", "there is no sound here")),
            "Failed: there is no sound here",
        ),
    ],
    ids=lambda value: value.current_step if isinstance(value, Job) else "",
)
def test_every_step_and_every_end_says_so_in_words(job: Job, words: str) -> None:
    """Otherwise people look at a number and wonder what is going on."""
    assert message(job) == words
