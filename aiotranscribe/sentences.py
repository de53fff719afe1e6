"""What people read: one sentence for each state of a job, in every language. Pure."""

from aiotranscribe.errors import InvalidOption
from aiotranscribe.exports import clock
from aiotranscribe.frame import DEFAULT
from aiotranscribe.job import Job, Status, Step

#: The languages, by their codes; the first one is for those who ask for none.
LANGUAGES = (DEFAULT, "pt")

_SENTENCES = {
    "en": {
        Step.QUEUED: "Waiting for a free worker",
        Step.LOADING_MODEL: "Loading the model",
        Step.DECODING: "Reading the recording",
        Step.DETECTING_SPEECH: "Listening for speech",
        Step.DETECTING_LANGUAGE: "Recognising the language",
        Step.TRANSCRIBING: "Transcribed {position}",
        Step.FINISHING: "Finishing",
        Status.COMPLETED: "Transcribed {duration}",
        Status.CANCELLED: "Cancelled",
        Status.FAILED: "Failed: {why}",
        "transcribing of": "Transcribed {position} of {duration}",
        "downloading": "Downloading the model: {share} %",
        "waiting": "Waiting: {why}",
        "left": "{time} left",
    },
    "pt": {
        Step.QUEUED: "À espera de um processo livre",
        Step.LOADING_MODEL: "A carregar o modelo",
        Step.DECODING: "A ler a gravação",
        Step.DETECTING_SPEECH: "À procura de fala",
        Step.DETECTING_LANGUAGE: "A reconhecer a língua",
        Step.TRANSCRIBING: "Transcritos {position}",
        Step.FINISHING: "A terminar",
        Status.COMPLETED: "Transcritos {duration}",
        Status.CANCELLED: "Cancelado",
        Status.FAILED: "Falhou: {why}",
        "transcribing of": "Transcritos {position} de {duration}",
        "downloading": "A descarregar o modelo: {share} %",
        "waiting": "Em espera: {why}",
        "left": "faltam {time}",
    },
}


def message(
    job: Job,
    language: str = DEFAULT,
    *,
    downloaded: float | None = None,
    waits_for: str | None = None,
) -> str:
    """Return how the job stands, in a sentence for people.

    Args:
        job: The job.
        language: One of :data:`LANGUAGES`.
        downloaded: How much of the model is there, 0 to 1, while it is being fetched.
        waits_for: What keeps the job from going on, if anything does.
    """
    key: str = job.status if job.status.is_terminal else job.step
    if waits_for is not None and not job.status.is_terminal:
        key = "waiting"
    elif job.current_step == Step.LOADING_MODEL and downloaded is not None:
        key = "downloading"
    elif job.current_step == Step.TRANSCRIBING and job.duration:
        key = "transcribing of"
    return _SENTENCES[language][key].format(
        position=clock(job.position),
        duration=clock(job.duration or 0.0),
        share=int(100 * (downloaded or 0.0)),
        why=waits_for or (job.error.message if job.error else ""),
    )


def left(seconds: float, language: str = DEFAULT) -> str:
    """Return how long it still takes, for people."""
    return _SENTENCES[language]["left"].format(time=clock(seconds))


def check(language: str) -> str:
    """Return the code of a language that is one of ours, with or without a country.

    Raises:
        InvalidOption: it is none of ours.
    """
    code = language.lower().partition("-")[0]
    if code not in LANGUAGES:
        raise InvalidOption(f"lang: there is no {language!r}, only {', '.join(LANGUAGES)}")
    return code


def negotiate(accepted: str) -> str:
    """Return the language for an ``Accept-Language`` header (RFC 9110, section 12.5.4)."""
    wishes = []
    for wish in accepted.split(","):
        tag, _, quality = wish.partition(";")
        code = tag.strip().lower().partition("-")[0]
        try:
            weight = float(quality.partition("=")[2] or 1)
        except ValueError:
            continue
        if code in LANGUAGES and weight > 0:
            wishes.append((weight, code))
    # The first of those that are wished for most.
    return max(wishes, key=lambda wish: wish[0])[1] if wishes else DEFAULT
