"""Jobs: which options there are, and how a job may change."""

from collections.abc import Callable

import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES
from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe.errors import InvalidOption, Problem
from aiotranscribe.job import (
    EVERYTHING,
    LANGUAGES,
    WEIGHTS,
    Job,
    Options,
    Run,
    Status,
    Step,
    is_english_only,
)
from aiotranscribe.transcript import Segment

MODELS = ("small", "tiny.en")
TERMINAL = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)

# One good value of each option as text, and what it means.
GOOD: dict[str, tuple[str, object]] = {
    "model": ("small", "small"),
    "language": ("de", "de"),
    "task": ("translate", "translate"),
    "word_timestamps": ("true", True),
    "vad_filter": ("false", False),
    "initial_prompt": ("Dr. Müller:", "Dr. Müller:"),
    "clip_timestamps": ("30,60,90", "30,60,90"),
    "hotwords": ("Zürich Basel", "Zürich Basel"),
    "temperature": ("0.4", 0.4),
    "beam_size": ("1", 1),
    "condition_on_previous_text": ("true", True),
    "parallel": ("off", "off"),
    "priority": ("high", "high"),
}

BAD = [
    ("task", "sing"),
    ("word_timestamps", "perhaps"),
    ("vad_filter", "2"),
    ("initial_prompt", "x" * 2001),
    *(
        ("clip_timestamps", text)
        for text in ("x", "1,", ",1", "1;2", "-1", "-0", "+1", "nan", "inf")
    ),
    *(("clip_timestamps", text) for text in ("1e3", "1_0", "9" * 9, "5,5", "5,4", "1,3,2", "٣")),
    ("clip_timestamps", ",".join(map(str, range(1000)))),
    ("hotwords", "x" * 2001),
    ("temperature", "warm"),
    ("temperature", "-0.1"),
    ("temperature", "1.1"),
    ("temperature", "nan"),
    ("beam_size", "0"),
    ("beam_size", "21"),
    ("beam_size", "2.5"),
    ("beam_size", "9" * 400),
    ("condition_on_previous_text", "perhaps"),
    ("parallel", "false"),
    ("priority", "urgent"),
]


def make_job() -> Job:
    """Return a job as it is when it has just been accepted."""
    return Job(id="job", name="memo.ogg", created=0.0, options=Options())


# -- options ---------------------------------------------------------------------------------


def test_every_option_is_in_the_table_above() -> None:
    """Otherwise a new option goes untested."""
    assert set(GOOD) == set(Options.__struct_fields__)


@pytest.mark.parametrize("name", GOOD)
def test_an_option_is_understood_as_text(name: str) -> None:
    """Otherwise a form or a query cannot set it."""
    text, value = GOOD[name]
    options = Options.parse({name: text})
    assert getattr(options, name) == value
    assert type(getattr(options, name)) is type(value)
    assert getattr(Options(), name) != value, "the value must differ from the default"


def test_options_do_not_disturb_each_other() -> None:
    """Otherwise one option that is given resets another."""
    options = Options.parse({name: text for name, (text, _) in GOOD.items()})
    for name, (_, value) in GOOD.items():
        assert getattr(options, name) == value


@pytest.mark.parametrize(("name", "text"), BAD)
def test_an_impossible_value_is_refused_by_name(name: str, text: str) -> None:
    """Otherwise a mistake is ignored, or the user has to guess which option is meant."""
    with pytest.raises(InvalidOption, match=f"^{name}: "):
        Options.parse({name: text})


@pytest.mark.parametrize(
    ("text", "clips"),
    [
        (None, EVERYTHING),
        ("", EVERYTHING),
        ("0", EVERYTHING),
        ("0,30.5", ((0, 30.5),)),
        (" 30, 60 ,90", ((30, 60), (90, EVERYTHING[0][1]))),
        (".5,2,2,5", ((0.5, 2), (2, 5))),
        ("99999999.99999999", ((99999999.99999999, EVERYTHING[0][1]),)),
    ],
)
def test_clips_are_pairs_of_seconds(
    text: str | None, clips: tuple[tuple[float, float], ...]
) -> None:
    """Otherwise what is transcribed is not what was asked for."""
    assert Options(clip_timestamps=text).clips == clips


def test_clips_out_of_order_are_refused_in_a_program_too() -> None:
    """Otherwise a mistake is only noticed when the worker fails, or never."""
    with pytest.raises(InvalidOption, match=r"^clip_timestamps: .* 2 comes after 3$"):
        Options(clip_timestamps="1,3,2,4")


def test_an_unknown_option_is_refused_by_name() -> None:
    """Otherwise a misspelt option silently does nothing."""
    with pytest.raises(InvalidOption, match=r"'langauge'.*language"):
        Options.parse({"langauge": "en"})


@pytest.mark.parametrize("name", GOOD)
def test_an_empty_value_is_as_good_as_none(name: str) -> None:
    """Otherwise a form whose field was left empty is refused."""
    assert Options.parse({name: ""}) == Options()


def test_the_first_model_is_the_default() -> None:
    """Otherwise jobs that ask for no model run with any."""
    assert Options().settle(MODELS).model == "small"
    assert Options(model="tiny.en").settle(MODELS).model == "tiny.en"


def test_a_model_that_is_not_here_is_refused_with_those_that_are() -> None:
    """Otherwise a stranger makes the server download any model, or the job fails much later."""
    with pytest.raises(InvalidOption, match=r"^model: .*'huge'.*small, tiny\.en"):
        Options(model="huge").settle(MODELS)


@pytest.mark.parametrize("options", [Options(language="de"), Options(task="translate")])
def test_an_english_model_refuses_what_it_cannot_do(options: Options) -> None:
    """Otherwise it writes English-sounding nonsense for German speech."""
    assert options.settle(["small"]).model == "small"
    with pytest.raises(InvalidOption, match=r"^(language|task): tiny\.en .*English"):
        options.settle(["tiny.en"])


@pytest.mark.parametrize("language", [None, "en", "EN"])
def test_an_english_model_understands_english(language: str | None) -> None:
    """Otherwise the model that is embedded cannot be used by those who say what they speak."""
    settled = Options(language=language).settle(["tiny.en"])
    assert settled.language == (language and "en")


def test_only_the_end_of_its_name_makes_a_model_english() -> None:
    """Otherwise a folder such as ``my.engine/small`` loses all other languages."""
    assert is_english_only("Systran/faster-whisper-tiny.en")
    assert not is_english_only("my.engine/small")


def test_text_that_is_not_there_yet_cannot_be_a_condition() -> None:
    """Otherwise someone believes that spans know of each other, and they do not."""
    options = Options(condition_on_previous_text=True)
    with pytest.raises(InvalidOption, match=r"^condition_on_previous_text: .*parallel=off"):
        options.settle(MODELS)
    options = Options(condition_on_previous_text=True, parallel="off")
    assert options.settle(MODELS).condition_on_previous_text


def test_every_priority_weighs_four_times_the_one_below() -> None:
    """Otherwise a priority is accepted and then fails, or is less than is documented."""
    names = [name for name in ("low", "normal", "high") if Options.parse({"priority": name})]
    assert list(WEIGHTS) == names
    assert [WEIGHTS[name] / WEIGHTS["low"] for name in names] == [1, 4, 16]


@pytest.mark.parametrize("language", ["xx", "english", "e", " en"])
def test_a_language_that_whisper_does_not_know_is_refused(language: str) -> None:
    """Otherwise the job is accepted, and fails in the worker."""
    with pytest.raises(InvalidOption, match=r"^language: "):
        Options(language=language).settle(MODELS)


def test_the_languages_are_those_of_faster_whisper() -> None:
    """Otherwise a language is refused that the model knows, or accepted and fails later."""
    assert set(_LANGUAGE_CODES) == set(LANGUAGES)


# -- transitions -----------------------------------------------------------------------------

CHANGES: list[Callable[[Job], Job]] = [
    *(lambda job, step=step: job.enter(step) for step in Step if step is not Step.QUEUED),
    *(lambda job, status=status: job.end(status, 5.0) for status in TERMINAL),
    lambda job: job.end(Status.FAILED, 5.0, Problem("worker_died", "it died")),
    lambda job: job.decode(3.0, 10.0),
    lambda job: job.prepare(9.5),
    lambda job: job.speak("pt"),
    lambda job: job.write([Segment(0, 0.0, 2.0, " Hi.")]),
    lambda job: job.go_on("a"),
]


@given(st.lists(st.sampled_from(CHANGES)), st.sampled_from(TERMINAL))
def test_a_job_ends_once(changes: list[Callable[[Job], Job]], status: Status) -> None:
    """Otherwise a cancelled job comes back to life, or fails after it was completed."""
    ended = make_job().end(status, 1.0)
    job = ended
    for change in changes:
        job = change(job)
        assert (job.status, job.current_step, job.error) == (status, status.value, None)
        assert (job.percentage, job.ended) == (ended.percentage, 1.0)


@given(st.lists(st.sampled_from(CHANGES)))
def test_a_job_is_at_100_percent_only_when_it_is_completed(
    changes: list[Callable[[Job], Job]],
) -> None:
    """Otherwise a watcher believes that a failed job is complete."""
    job = make_job()
    for change in changes:
        job = change(job)
        assert (job.percentage == 100.0) == (job.status is Status.COMPLETED)


@pytest.mark.parametrize("step", [step for step in Step if step is not Step.QUEUED])
def test_the_first_step_makes_a_job_run(step: Step) -> None:
    """Otherwise a job that is at work is shown as waiting."""
    job = make_job().enter(step)
    assert (job.status, job.current_step) == (Status.RUNNING, step.value)


def test_the_latest_news_counts_until_there_is_text() -> None:
    """Otherwise a watcher reads "decoding" while the model is being fetched."""
    job = make_job()
    for step in (Step.DECODING, Step.LOADING_MODEL, Step.DETECTING_SPEECH, Step.DECODING):
        job = job.enter(step)
        assert job.step is step


@pytest.mark.parametrize("late", [step for step in Step if step is not Step.FINISHING])
def test_once_there_is_text_only_the_end_counts(late: Step) -> None:
    """Otherwise the step flickers while spans are decoded and transcribed side by side."""
    job = make_job().enter(Step.TRANSCRIBING)
    assert job.enter(late) == job
    job = job.enter(Step.FINISHING)
    assert job.step is Step.FINISHING
    assert job.enter(late) == job, "nothing comes after finishing but the end"


def test_a_job_that_ended_shows_its_status_as_its_step() -> None:
    """Otherwise a failed job is for ever "transcribing"."""
    job = make_job().enter(Step.TRANSCRIBING)
    job = job.end(Status.FAILED, 1.0, Problem("worker_died", "it died"))
    assert job.current_step == "failed"
    assert job.error == Problem("worker_died", "it died")


def test_the_length_is_corrected_by_what_is_decoded() -> None:
    """Otherwise a recording that lies about its length is never, or too early, complete."""
    job = make_job().decode(3.0, None)
    assert (job.decoded, job.duration) == (3.0, None)
    job = job.decode(4.0, 10.0)
    assert (job.decoded, job.duration) == (4.0, 10.0)
    job = job.decode(12.0, 10.0)
    assert (job.decoded, job.duration) == (12.0, 12.0)
    assert job.decode(2.0, 10.0).decoded == 12.0, "decoded again after a crash"
    job = job.prepare(11.5)
    assert (job.decoded, job.duration, job.is_prepared) == (11.5, 11.5, True)


def test_a_job_remembers_with_how_much_text_each_run_began() -> None:
    """Otherwise no cursor outlives a restart, or one for text that is lost seems good."""
    job = make_job().go_on("a").write([Segment(0, 0.0, 2.0, " Hi.")]).go_on("b")
    assert job.runs == (Run("a", 0), Run("b", 1))
    assert (job.count, job.position) == (1, 2.0)
    for number in range(1000):
        job = job.go_on(f"{number:x}")
    assert len(job.runs) == 100
    assert job.runs[-1] == Run("3e7", 1)


@pytest.mark.parametrize(
    "options",
    [
        Options(beam_size=30),
        Options(temperature=2.0),
        Options(initial_prompt="x" * 3000),
        Options(hotwords="\udce9"),
        Options(priority="urgent"),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_options_that_a_program_made_are_checked_too(options: Options) -> None:
    """Otherwise a job is accepted that nobody can read again, and the server does not start."""
    with pytest.raises(InvalidOption):
        options.settle(MODELS)
