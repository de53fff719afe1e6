"""The outlook: all jobs together, and what is remembered from one to the next."""

import pytest

from aiotranscribe.course import Course
from aiotranscribe.engine.messages import Done, Entered, Prepared, Recognised, SpanFound, Transcribe
from aiotranscribe.engine.spans import Span
from aiotranscribe.job import Job, Options, Step
from aiotranscribe.outlook import Outlook
from aiotranscribe.progress import DECODING, Pace, loading, transcribing

MODEL = "tiny.en"
SPAN = Span(0, ((0, 160_000),))
WORK = Transcribe("job", "pcm", (SPAN,), Options(model=MODEL))


def course(job_id: str, *, is_prepared: bool = True) -> Course:
    """Return the course of a job of ten seconds of speech."""
    job = Job(id=job_id, name="", created=0.0, options=Options(model=MODEL), language="en")
    found = Course(job.go_on("a"))
    if is_prepared:
        found.hear(SpanFound(SPAN), WORK, 0, 0.0)
        found.hear(Prepared(10.0), WORK, 0, 0.0)
    return found


def outlook() -> Outlook:
    """Return the outlook of a machine that transcribes ten seconds in one."""
    known = Outlook()
    known.paces = {
        DECODING: Pace(1000.0, 10.0),
        transcribing(MODEL): Pace(600.0, 60.0),
        loading(MODEL): Pace(1.0, 2.0),
    }
    return known


def test_jobs_share_and_those_of_unknown_length_have_no_end() -> None:
    """Otherwise somebody is promised what nobody can know, or as if he were alone."""
    courses = {"a": course("a"), "b": course("b"), "new": course("new", is_prepared=False)}
    assert outlook().forecast(courses, {}, {MODEL}, 1, 0.0) == pytest.approx({"a": 2.5, "b": 2.0})
    assert outlook().forecast({"a": courses["a"]}, {}, {MODEL}, 1, 0.0) == pytest.approx({"a": 1.0})


def test_a_forecast_is_for_the_jobs_there_are() -> None:
    """Otherwise a short job is over before it is told of, or a forecast never ages."""
    machine, courses = outlook(), {"a": course("a")}
    first = machine.forecast(courses, {}, {MODEL}, 1, 0.0)["a"]
    assert machine.forecast(courses, {}, {MODEL}, 1, 0.05)["a"] == pytest.approx(first - 0.05)
    courses["b"] = course("b")
    assert machine.forecast(courses, {}, {MODEL}, 1, 0.06).keys() == {"a", "b"}


def test_a_download_takes_as_long_as_it_has_taken_so_far() -> None:
    """Otherwise the first use of a model has no end in sight."""
    machine, courses = outlook(), {"a": course("a")}
    assert machine.downloaded(MODEL) is None
    cold = machine.forecast(courses, {}, set(), 1, 0.0)["a"]
    assert cold == pytest.approx(3.0)
    machine.download(MODEL, 0.5, 10.0)  # half of it had been there
    machine.download(MODEL, 0.75, 20.0)
    assert machine.downloaded(MODEL) == 0.75
    assert machine.forecast(courses, {}, set(), 1, 20.0)["a"] == pytest.approx(10.0 + cold)
    machine.download(MODEL, 1.0, 30.0)
    assert machine.downloaded(MODEL) is None


def test_what_a_job_teaches_is_kept_and_written_down() -> None:
    """Otherwise every job begins as if it were the first."""
    machine, done = Outlook(), course("a")
    done.hear(Entered(Step.TRANSCRIBING), WORK, 1, 0.0)
    done.hear(Recognised(0, (), 1000, is_done=True), WORK, 1, 2.0)
    done.hear(Done(), WORK, 1, 2.0)
    machine.learn(done)
    pace = machine.paces[transcribing(MODEL)]
    assert pace.speed == pytest.approx(5.0, rel=0.01)
    assert machine.learnt == machine.paces
