"""What people read."""

import msgspec
import pytest

from aiotranscribe.errors import Problem
from aiotranscribe.job import Job, Options, Status, Step
from aiotranscribe.sentences import message


def make_job(**changes: object) -> Job:
    """Return a job as it is when it has just been accepted, but for ``changes``."""
    job = Job(id="job", name="memo.ogg", created=0.0, options=Options())
    return msgspec.structs.replace(job, **changes)


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
