"""What people read."""

import msgspec
import pytest

from aiotranscribe.errors import Problem
from aiotranscribe.job import Job, Options, Status, Step
from aiotranscribe.sentences import _SENTENCES, LANGUAGES, left, message, negotiate


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


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("job", [make_job().enter(step) for step in Step], ids=lambda job: job.step)
def test_every_language_has_every_sentence(job: Job, language: str) -> None:
    """Otherwise a job whose watcher speaks Portuguese ends in an error."""
    assert _SENTENCES[language].keys() == _SENTENCES["en"].keys()
    assert message(job, language)
    for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        ended = job.end(status, 0.0, Problem("undecodable", "{no} sound"))
        assert "{" not in message(ended, language).replace("{no}", "")


def test_what_a_job_waits_for_is_said() -> None:
    """Otherwise people look at a step that does not go on, and do not know why."""
    loading = make_job().enter(Step.LOADING_MODEL)
    assert message(loading, downloaded=0.349) == "Downloading the model: 34 %"
    assert message(loading, "pt", downloaded=1.0) == "A descarregar o modelo: 100 %"
    assert message(make_job().enter(Step.DECODING), downloaded=0.5) == "Reading the recording"
    assert message(loading, waits_for="the disk is full") == "Waiting: the disk is full"
    assert message(make_job().end(Status.CANCELLED, 0.0), waits_for="the disk") == "Cancelled"


def test_the_time_that_is_left_is_told_in_words() -> None:
    """Otherwise a bar in Portuguese ends in English."""
    assert (left(75.4), left(75.4, "pt")) == ("1:15 left", "faltam 1:15")


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("pt", "pt"),
        ("pt-BR,pt;q=0.9,en;q=0.8", "pt"),
        ("en-US,en;q=0.9,pt;q=0.5", "en"),
        ("de, fr;q=0.8, PT;q=0.2", "pt"),
        ("en;q=0.1, pt;q=0.9", "pt"),
        ("pt;q=0", "en"),
        ("*", "en"),
        ("pt;q=nonsense, ;;,=,", "en"),
    ],
)
def test_the_language_is_the_one_that_is_wished_for_most(accepted: str, language: str) -> None:
    """Otherwise a browser's wish is not heard, or breaks the answer."""
    assert negotiate(accepted) == language
