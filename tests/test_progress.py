"""Progress: what a watcher is told of how far a job is, and when it will be done."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe.engine.spans import SAMPLE_RATE, Span
from aiotranscribe.job import Job, Options, Status, Step
from aiotranscribe.progress import (
    DECODING,
    Demand,
    Meter,
    Pace,
    Paces,
    demand,
    forecast,
    learn,
    loading,
    read,
    resume,
    transcribing,
)

Event = Callable[[Job, Meter, float], Job]

MODEL = "tiny.en"
#: A machine that decodes 100, and transcribes 10 seconds of recording in a second of a worker.
KNOWN: Paces = {
    DECODING: Pace(1000.0, 10.0),
    transcribing(MODEL): Pace(600.0, 60.0),
    loading(MODEL): Pace(1.0, 2.0),
}


def make_job(**changes: object) -> Job:
    """Return a job as it is when it has just been accepted, but for ``changes``."""
    job = Job(id="job", name="memo.ogg", created=0.0, options=Options(model=MODEL))
    return msgspec.structs.replace(job, **changes)


def span(index: int, *stretches: tuple[float, float]) -> Span:
    """Return a span of stretches in seconds."""
    return Span(
        index,
        tuple((round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in stretches),
    )


SPANS = [span(index, (20 * index, 20 * index + 20)) for index in range(5)]


# -- for any measurements --------------------------------------------------------------------


def decoded(samples: int, claim: float | None) -> Event:
    """So much is decoded, of so many seconds that the file claims."""

    def event(job: Job, meter: Meter, now: float) -> Job:
        meter.hear(0, now, DECODING, samples / SAMPLE_RATE - meter.decoded)
        meter.decoded = samples / SAMPLE_RATE
        return job.decode(samples / SAMPLE_RATE, claim)

    return event


def transcribed(index: int, seek: int) -> Event:
    """So much of a span is transcribed."""

    def event(job: Job, meter: Meter, now: float) -> Job:
        before = meter.transcribed
        meter.found(SPANS[index])
        meter.at(SPANS[index], seek)
        meter.hear(1, now, transcribing(MODEL), meter.transcribed - before)
        return job

    return event


def done(method: Callable[..., None], *values: object, has_time: bool = False) -> Event:
    """A meter's method is called."""

    def event(job: Job, meter: Meter, now: float) -> Job:
        method(meter, *values[:1], *([now] if has_time else []), *values[1:])
        return job

    return event


def find_and_speak(job: Job, meter: Meter, now: float) -> Job:
    """All spans are found, and a worker begins with them."""
    for each in SPANS:
        meter.found(each)
    meter.speak(1, now, SPANS, MODEL)
    return job


SAMPLES = st.integers(1, 10**9)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(decoded, SAMPLES, st.none() | st.floats(0, 1e6)),
    st.builds(lambda samples: lambda job, *_: job.prepare(samples / SAMPLE_RATE), SAMPLES),
    st.builds(
        lambda step: lambda job, *_: job.enter(step),
        st.sampled_from([step for step in Step if step is not Step.QUEUED]),
    ),
    st.builds(transcribed, st.integers(0, 4), st.integers(0, 3000)),
    st.just(find_and_speak),
    st.just(done(Meter.decode, 0, has_time=True)),
    st.just(done(Meter.load, 1, has_time=True)),
    st.builds(lambda slot: done(Meter.end, slot), st.integers(0, 1)),
)


@given(
    events=st.lists(st.tuples(EVENTS, st.floats(0, 1e5))),
    end=st.sampled_from([Status.COMPLETED, Status.FAILED, Status.CANCELLED]),
    paces=st.sampled_from([{}, KNOWN]),
    slots=st.integers(1, 4),
)
def test_what_a_watcher_is_told_is_sane_whatever_is_measured(
    events: list[tuple[Event, float]], end: Status, paces: Paces, slots: int
) -> None:
    """Otherwise a bar runs backwards, beyond its end, or stands at 100 % and goes on."""
    job, meter, now, last = make_job(), Meter(), 0.0, 0.0
    for event, passed_s in [*events, (lambda job, *_: job.end(end, 0.0), 1.0)]:
        now += passed_s
        job = event(job, meter, now)
        wants = demand(job, meter, paces, now, is_cold=slots == 1)
        left_s = forecast({"job": wants}, slots)["job"] if wants else None
        reading = read(job, meter, paces, now, left_s)
        assert last <= reading.percentage <= 100
        assert (reading.percentage == 100) == (job.status is Status.COMPLETED)
        assert reading.eta_seconds is None or reading.eta_seconds >= 0
        assert reading.speed is None or reading.speed >= 0
        last = reading.percentage
        job = msgspec.structs.replace(job, percentage=last)
    assert read(job, meter, paces, now, 5.0).eta_seconds is None


# -- paces -----------------------------------------------------------------------------------


def test_a_pace_is_how_fast_something_goes() -> None:
    """Otherwise nothing else here is right."""
    assert Pace(100.0, 10.0).time(50.0) == 5.0
    assert Pace(100.0, 10.0) + Pace(20.0, 5.0) == Pace(120.0, 15.0)
    assert Pace().time(50.0) == 0.0


@given(
    *(st.builds(Pace, st.floats(0.01, 1e6), st.floats(0.01, 1e4)) for _ in range(2)),
)
def test_a_blend_is_between_the_two(one: Pace, other: Pace) -> None:
    """Otherwise history and measurement together know less than each alone."""
    blend = one.blend(other)
    low, high = sorted([one.time(1.0), other.time(1.0)])
    assert low * 0.999 <= blend.time(1.0) <= high * 1.001
    assert one.blend(Pace()) == one
    assert Pace().blend(other) == other


@given(st.floats(0.1, 1e6), st.floats(0.1, 1e6), st.floats(0.1, 100))
def test_what_is_known_for_long_does_not_outvote_what_is(
    amount: float, took_s: float, most_s: float
) -> None:
    """Otherwise a machine that has become slower promises too much for a week."""
    faded = Pace(amount, took_s).fade(most_s)
    assert faded.took_s <= most_s * 1.001
    assert faded.time(1.0) == pytest.approx(took_s / amount)


def test_a_job_teaches_its_pace_to_those_after_it() -> None:
    """Otherwise every job begins as if it were the first."""
    meter = Meter()
    for each in SPANS:
        meter.found(each)
    meter.load(1, 0.0)
    meter.speak(1, 3.0, SPANS[:1], MODEL)
    meter.at(SPANS[0], 2000)
    meter.hear(1, 4.0, transcribing(MODEL), 20.0)
    learnt = learn(make_job(), meter, {transcribing(MODEL): Pace(6000.0, 600.0)})
    assert learnt == {loading(MODEL): Pace(1.0, 3.0), transcribing(MODEL): Pace(620.0, 61.0)}


# -- what is left to do ----------------------------------------------------------------------


def work_of(job: Job, meter: Meter, now: float = 0.0, **more: bool) -> float:
    """Return how many seconds of a worker a job still wants."""
    wants = demand(job, meter, KNOWN, now, **more)
    assert wants
    return wants.work_s


def prepared(*reached: float) -> tuple[Job, Meter]:
    """Return a job with five spans of 20 seconds, of which so much is transcribed."""
    meter = Meter()
    for each, seconds in zip(SPANS, [*reached, 0, 0, 0, 0, 0], strict=False):
        meter.found(each)
        meter.at(each, round(seconds * 100))
    meter.decoded = 100.0
    return make_job().enter(Step.TRANSCRIBING).prepare(100.0), meter


def test_what_is_done_is_not_left() -> None:
    """Otherwise the end comes no nearer."""
    assert work_of(*prepared()) == pytest.approx(10.0)
    assert work_of(*prepared(20, 20, 10)) == pytest.approx(5.0)
    assert work_of(*prepared(20, 20, 20, 20, 20)) == 0.0


def test_a_recording_like_others_has_an_end_before_it_is_opened() -> None:
    """Otherwise who waits in the queue is not told how long."""
    before = make_job(name="A.MP3", duration=600.0, size_bytes=10_000_000)
    paces = {**KNOWN, **learn(before, Meter(), {})}
    waiting = make_job(name="b.mp3", size_bytes=5_000_000)
    wants = demand(waiting, Meter(), paces, 0.0)
    assert wants
    assert wants.work_s == pytest.approx(300 / 100 + 0.9 * 300 / 10)
    assert read(waiting, Meter(), paces, 5.0, wants.work_s).eta_seconds == pytest.approx(30.0)


@pytest.mark.parametrize("name", ["b.wav", "b", "mp3", "b.txt", "x/../.mp3"])
def test_recordings_of_other_kinds_teach_nothing_of_this_one(name: str) -> None:
    """Otherwise what is promised is off by a factor of ten."""
    before = make_job(name="a.mp3", duration=600.0, size_bytes=10_000_000)
    paces = {**KNOWN, **learn(before, Meter(), {})}
    assert demand(make_job(name=name, size_bytes=5_000_000), Meter(), paces, 0.0) is None


def test_a_recording_that_does_not_say_how_long_it_is_is_as_long_as_it_is_large() -> None:
    """Otherwise what a browser has recorded has no end in sight until all of it is read."""
    meter = Meter(decoded=30.0, share=0.1)
    assert work_of(make_job().enter(Step.DECODING), meter) == pytest.approx(
        270 / 100 + 0.9 * 300 / 10
    )


def test_a_recording_of_unknown_length_promises_nothing() -> None:
    """Otherwise the bar of a live recording is a lie."""
    assert demand(make_job(), Meter(), KNOWN, 0.0) is None


def test_spans_not_yet_found_are_expected() -> None:
    """Otherwise a long recording shows 100 % when its first minute is done."""
    meter = Meter(decoded=100.0)
    meter.found(span(0, (10, 100)))
    job = make_job().decode(100.0, 1000.0)
    assert work_of(job, meter) == pytest.approx(900 / 100 + 990 * 0.9 / 10, rel=0.05)


def test_silence_is_expected_where_there_was_silence() -> None:
    """Otherwise a recording of a quiet night is promised to take as long as a speech."""
    meter = Meter(decoded=400.0)
    meter.found(span(0, (0, 100)))
    job = make_job().decode(400.0, 800.0)
    assert work_of(job, meter) == pytest.approx(400 / 100 + 200 / 10, rel=0.1)


def test_what_is_decoded_again_takes_its_time_again() -> None:
    """Otherwise a job that goes on after a crash is promised too soon."""
    job = make_job().decode(90.0, 100.0)
    assert work_of(job, Meter(decoded=0.0)) - work_of(job, Meter(decoded=90.0)) == pytest.approx(
        0.9
    )


def test_a_model_that_is_not_there_takes_its_time() -> None:
    """Otherwise the first job after a quiet night stands still while its model is loaded."""
    job, meter = prepared()
    assert work_of(job, meter, is_cold=True) == pytest.approx(12.0)
    meter.load(1, 5.0)
    assert work_of(job, meter, now=6.0) == pytest.approx(11.0)
    assert work_of(job, meter, now=60.0) == pytest.approx(10.0)


def test_time_passes_within_a_window_too_but_not_beyond_it() -> None:
    """Otherwise the bar stands still in a long window, or says more than the next news may."""
    job, meter = prepared()
    meter.speak(1, 100.0, SPANS[:1], MODEL)
    assert work_of(job, meter, now=101.0) == pytest.approx(9.0)
    # It should have been done long ago: so it is slower than was thought, and not yet done.
    assert 10.0 - 0.9 * 2.0 < work_of(job, meter, now=103.0) < work_of(job, meter, now=200.0)
    meter.end(1)
    assert work_of(job, meter, now=200.0) == pytest.approx(10.0)


def test_the_pace_of_the_job_itself_counts_most() -> None:
    """Otherwise a recording that is hard to understand is promised like an easy one."""
    job, meter = prepared()
    meter.speak(1, 0.0, SPANS, MODEL)
    for index, now in enumerate([20.0, 40.0]):
        before = meter.transcribed
        meter.at(SPANS[index], 2000)
        meter.hear(1, now, transcribing(MODEL), meter.transcribed - before)
    meter.end(1)
    assert 40 < work_of(job, meter, now=40.0) < 60


def test_a_recording_in_one_piece_has_one_worker() -> None:
    """Otherwise it is promised in as many times less as there are workers."""
    job, meter = prepared()
    options = msgspec.structs.replace(job.options, parallel="off")
    wants = demand(msgspec.structs.replace(job, options=options), meter, KNOWN, 0.0)
    assert wants
    assert wants.alone_s == wants.work_s == pytest.approx(10.0)


def test_a_download_is_not_learnt_as_the_time_that_loading_takes() -> None:
    """Otherwise, after a slow download, each cold start is promised to take as long again."""
    meter = Meter()
    meter.load(1, 0.0)
    meter.load(1, 600.0)  # downloaded
    meter.load(2, 0.0)
    meter.end(2)  # that worker died
    meter.speak(2, 601.0, SPANS[:1], MODEL)
    assert meter.paces == {}
    meter.speak(1, 602.0, SPANS[1:2], MODEL)
    assert meter.paces == {loading(MODEL): Pace(1.0, 2.0)}


# -- when it is done ---------------------------------------------------------------------------


def forecasts(slots: int, **jobs: Demand) -> dict[str, Any]:
    """Return when each job is done."""
    return {name: pytest.approx(seconds) for name, seconds in forecast(jobs, slots).items()}


def test_one_job_has_all_workers_but_for_its_last_stretch() -> None:
    """Otherwise a job on two cores is promised for twice the time, or a memo for half of it."""
    assert forecasts(2, a=Demand(100.0, 2.0, 4.0)) == {"a": 51.0}
    assert forecasts(2, a=Demand(1.0, 1.0, 4.0)) == {"a": 1.0}
    assert forecasts(1, a=Demand(100.0, 2.0, 4.0)) == {"a": 100.0}


def test_jobs_that_share_take_longer() -> None:
    """Otherwise each of two jobs is promised as if it were alone."""
    both = forecasts(2, a=Demand(100.0, 0.0, 4.0), b=Demand(100.0, 0.0, 4.0))
    assert both == {"a": 100.0, "b": 100.0}
    short = forecasts(2, a=Demand(100.0, 0.0, 4.0), b=Demand(10.0, 0.0, 4.0))
    assert short == {"a": 55.0, "b": 10.0}


def test_who_has_priority_is_done_sooner() -> None:
    """Otherwise an urgent memo is promised for the evening."""
    both = forecasts(1, a=Demand(100.0, 0.0, 16.0), b=Demand(100.0, 0.0, 4.0))
    assert both == {"a": 125.0, "b": 200.0}


def test_who_has_had_more_than_his_turn_waits_for_the_others() -> None:
    """Otherwise a memo whose next turn is far away is nearly done for a long time."""
    jobs = {"long": Demand(10.0, 0.0, 1.0), "memo": Demand(1.0, 0.0, 1.0, lead_s=2.0)}
    assert forecast(jobs, 1) == pytest.approx({"memo": 4.0, "long": 11.0})
    # Where there are no others, there is nobody to wait for.
    assert forecast({"memo": jobs["memo"]}, 1) == pytest.approx({"memo": 1.0})


def test_what_is_at_work_has_had_its_turn() -> None:
    """Otherwise the last spans of a job wait for turns that they do not need."""
    job, meter = prepared()
    meter.speak(0, 0.0, SPANS[:2], MODEL)
    waiting = demand(job, meter, KNOWN, 0.0, lead=50.0)
    assert waiting
    # 40 of 50 seconds are those at work; and normal jobs have a weight of 4.
    assert waiting.lead_s == pytest.approx((50.0 - 40.0 / 4) / 10)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.builds(
            Demand,
            st.floats(0, 1e5),
            st.just(0.0),
            st.sampled_from([1.0, 4.0, 16.0]),
            st.floats(0, 1e3),
        ),
        min_size=1,
    ),
    st.integers(1, 8),
)
def test_all_work_is_done_when_the_last_job_is(jobs: dict[str, Demand], slots: int) -> None:
    """Otherwise work is forgotten, or done twice."""
    seconds = forecast(jobs, slots)
    assert seconds.keys() == jobs.keys()
    total = sum(each.work_s for each in jobs.values())
    assert max(seconds.values()) == pytest.approx(total / slots)


# -- what is told ------------------------------------------------------------------------------


def test_the_percentage_is_the_share_of_the_time() -> None:
    """Otherwise a bar at 40 % says nothing about how long one still has to wait."""
    job, meter = make_job().enter(Step.DECODING), Meter()
    resume(job, meter, 1000.0)
    for now in range(1000, 1100):
        reading = read(job, meter, KNOWN, float(now), 1100.0 - now)
        assert reading.percentage == pytest.approx(now - 1000)
        assert reading.eta_seconds == pytest.approx(1100 - now)


def test_waiting_for_a_worker_counts() -> None:
    """Otherwise the bar stands still in the queue, and then races."""
    job, meter = make_job(), Meter()
    told = [read(job, meter, KNOWN, float(now), 20.0 - now) for now in range(11)]
    assert [each.percentage for each in told] == [5.0 * now for now in range(11)]
    assert [each.eta_seconds for each in told] == [20.0 - now for now in range(11)]
    # But where nobody knows how long, there is nothing to tell.
    assert read(make_job(), Meter(), KNOWN, 600.0, None).percentage == 0.0


def test_a_new_estimate_is_followed_smoothly() -> None:
    """Otherwise the remaining time jumps with every window."""
    job, meter = make_job().enter(Step.TRANSCRIBING), Meter()
    read(job, meter, KNOWN, 100.0, 100.0)
    ends = []
    for passed in range(1, 60):
        reading = read(job, meter, KNOWN, 100.0 + passed, 150.0 - passed)
        ends.append(passed + (reading.eta_seconds or 0.0))
    assert ends == sorted(ends)
    assert 100 < ends[0] < 105
    assert 140 < ends[-1] <= 150


def test_there_is_no_guess_at_the_beginning() -> None:
    """Otherwise the first thing that people see is an hour for a memo, or a second for a film."""
    job, meter = make_job().enter(Step.TRANSCRIBING), Meter()
    assert read(job, meter, {}, 0.1, 100.0).eta_seconds is None
    assert read(job, meter, KNOWN, 0.2, 100.0).eta_seconds is not None
    meter.speak(1, 0.2, SPANS[:1], MODEL)
    meter.hear(1, 1.2, transcribing(MODEL), 10.0)
    assert read(job, meter, {}, 1.2, 100.0).eta_seconds is not None


def test_the_bar_moves_while_nobody_knows_how_long_it_takes() -> None:
    """Otherwise the bar stands at 0 % while a model is loaded."""
    job, meter, last = make_job().enter(Step.LOADING_MODEL), Meter(), 0.0
    for second in range(1, 30):
        reading = read(job, meter, {}, float(second), None)
        assert last <= reading.percentage < 5, "nor does it promise anything"
        assert reading.eta_seconds is None
        last = reading.percentage
    assert last > 3


def test_a_percentage_that_was_told_is_never_taken_back() -> None:
    """Otherwise the bar jumps back when a recording proves longer than it claims."""
    job = make_job(percentage=80.0).enter(Step.TRANSCRIBING)
    assert read(job, Meter(), KNOWN, 10.0, 1000.0).percentage == 80.0


def test_after_a_restart_the_rest_of_the_bar_is_for_the_rest_of_the_time() -> None:
    """Otherwise the bar stands still for as long as the job had run before."""
    job, meter = make_job(percentage=50.0).enter(Step.TRANSCRIBING), Meter()
    resume(job, meter, 1000.0)
    assert read(job, meter, KNOWN, 1000.0, 100.0).percentage == 50.0
    assert read(job, meter, KNOWN, 1050.0, 50.0).percentage == pytest.approx(75.0)


def test_the_end_is_not_told_before_it_is_there() -> None:
    """Otherwise a client that waits for 100 % leaves before the job is safe on the disk."""
    job, meter = make_job().enter(Step.TRANSCRIBING), Meter()
    assert 99 <= read(job, meter, KNOWN, 100.0, 0.0).percentage < 100


def test_speed_is_that_of_all_workers_together_in_this_run() -> None:
    """Otherwise two workers look as fast as one, or a restart like a miracle."""
    job, meter = prepared(20, 20)
    resume(job, meter, 100.0)
    meter.speak(1, 100.0, SPANS[2:3], MODEL)
    meter.at(SPANS[2], 1000)
    meter.at(SPANS[3], 2000)
    assert read(job, meter, KNOWN, 101.0, 5.0).speed == 30.0


@pytest.mark.parametrize(("seek", "seconds"), [(0, 0), (1250, 12.5), (2000, 20), (3000, 20)])
def test_what_is_left_out_counts_for_nothing(seek: int, seconds: float) -> None:
    """Otherwise a long silence counts as an hour's work, or a padded window as speech."""
    meter = Meter()
    meter.at(span(3, (0, 10), (60, 70)), seek)
    assert meter.transcribed == seconds
