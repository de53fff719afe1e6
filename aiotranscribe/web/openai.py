"""What OpenAI's clients speak: a facade over jobs, as ``web/jobs.py`` is, and no second path."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta

from aiotranscribe.errors import (
    AiotranscribeError,
    Closed,
    InvalidOption,
    JobCancelled,
    ModelNotFound,
)
from aiotranscribe.exports import Shape, Verbose, verbose
from aiotranscribe.hub import Subscription
from aiotranscribe.job import Options, Status, parse
from aiotranscribe.transcript import Transcript
from aiotranscribe.web import uploads, watch
from aiotranscribe.web.auth import client_of
from aiotranscribe.web.describe import EVENTS, Description, describes
from aiotranscribe.web.errors import OpenAIErrors, ProblemDetails, as_openai, details, problem
from aiotranscribe.web.jobs import TRANSCRIBER, file_of

#: OpenAI's names of models that transcribe; here they mean the server's default.
ALIASES = ("whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")
# Where a request notes its job.
_JOB_ID = "job_id"
# How soon it is noticed that a client has gone.
_LOOK_S = 0.5
# Of a prompt, the model hears only the last 223 tokens anyway.
_LONGEST_PROMPT = 2000
# Fields that come as lists, their names with or without brackets.
_LISTS = {"timestamp_granularities", "keywords", "include", "languages"}


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """What OpenAI's clients send beside the file."""

    model: str = ALIASES[0]
    language: str | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    #: 0 means as much as needed, as it does there.
    temperature: Annotated[float, Meta(ge=0, le=1)] = 0.0
    timestamp_granularities: Sequence[Literal["word", "segment"]] = ("segment",)
    stream: bool = False
    #: Words to listen for.
    keywords: Sequence[str] = ()
    #: These are taken and have no effect.
    include: Sequence[str] = ()
    languages: Sequence[str] = ()
    chunking_strategy: str | None = None


class Text(msgspec.Struct, frozen=True):
    """The answer in the format ``json``."""

    text: str


class Model(msgspec.Struct, frozen=True):
    """A model, or another name of one."""

    id: str
    object: Literal["model"] = "model"
    #: Nobody knows.
    created: int = 0
    owned_by: str = "aiotranscribe"


class Models(msgspec.Struct, frozen=True):
    """Everything that may be named as a model."""

    data: Sequence[Model]
    object: Literal["list"] = "list"


class Delta(msgspec.Struct, frozen=True, tag_field="type", tag="transcript.text.delta"):
    """An event of the stream: more text."""

    delta: str


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="transcript.text.done"):
    """The last event of the stream: all of the text."""

    text: str


class Form(uploads.Upload):
    """A form with OpenAI's fields; options of our own may stand beside them."""

    def __init__(self, task: Literal["transcribe", "translate"], models: Sequence[str]) -> None:
        super().__init__()
        self._task = task
        self._models = models
        self._lists: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        """Take a field of the form or the query."""
        name = name.removesuffix("[]")
        if name in _LISTS:
            self._lists.setdefault(name, []).append(value)
        else:
            super().add(name, value)

    def asked(self) -> Fields:
        """Return OpenAI's fields, or raise :class:`InvalidOption`."""
        return parse({**self.fields, **self._lists}, Fields)

    def shape(self) -> Shape:
        """Return how subtitles are to be cut, or raise :class:`InvalidOption`."""
        return parse(self.fields, Shape)

    def options(self) -> Options:
        """Return the options of the job.

        Raises:
            InvalidOption: a field that does not exist or cannot be.
            ModelNotFound: there is no such model.
        """
        asked = self.asked()
        theirs = {*Fields.__struct_fields__, *Shape.__struct_fields__}
        ours = Options.parse({it: text for it, text in self.fields.items() if it not in theirs})
        is_timed = "word" in asked.timestamp_granularities or bool(self.shape().needs_words)
        return msgspec.structs.replace(
            ours,
            task=self._task,
            model=resolve(asked.model, self._models),
            language=asked.language,
            initial_prompt=(asked.prompt or "")[-_LONGEST_PROMPT:] or ours.initial_prompt,
            temperature=asked.temperature or None,
            hotwords=" ".join(asked.keywords) or ours.hotwords,
            word_timestamps=is_timed or ours.word_timestamps,
        )


def resolve(name: str, models: Sequence[str]) -> str | None:
    """Return the model of that name; ``None``, the default, for OpenAI's own names.

    Raises:
        ModelNotFound: there is no such model.
    """
    if name in models:
        return name
    if name in ALIASES:
        return None
    known = ", ".join([*models, *ALIASES])
    raise ModelNotFound(f"model: there is no {name!r} here, only {known}")


_ANSWERS = Description(
    form=Fields,
    headers=["X-Keep-Job"],
    answers={
        200: [
            Text,
            Verbose,
            "text/plain",
            "application/x-subrip",
            "text/vtt",
            (EVENTS, Delta | Done),
            (EVENTS, OpenAIErrors),
        ]
    },
)


@describes(_ANSWERS)
async def transcribe(request: web.Request) -> web.StreamResponse:
    """``POST /v1/audio/transcriptions``: a recording's text, in one answer."""
    return await _work(request, "transcribe")


@describes(_ANSWERS)
async def translate(request: web.Request) -> web.StreamResponse:
    """``POST /v1/audio/translations``: a recording's text in English, in one answer."""
    return await _work(request, "translate")


@describes(Description(answers={200: [Models]}))
async def list_models(request: web.Request) -> web.Response:
    """``GET /v1/models``: everything that may be named as a model."""
    names = [*request.app[TRANSCRIBER].config.model, *ALIASES]
    return _json(Models([Model(name) for name in names]))


@describes(Description(answers={200: [Model]}))
async def show_model(request: web.Request) -> web.Response:
    """``GET /v1/models/{model}``: whether it may be named."""
    name = request.match_info["model"]
    resolve(name, request.app[TRANSCRIBER].config.model)
    return _json(Model(name))


async def name_job(request: web.Request, response: web.StreamResponse) -> None:
    """Say which job an answer is of (signal ``on_response_prepare``)."""
    if job_id := request.get(_JOB_ID):
        response.headers["X-Job-Id"] = job_id


async def _work(
    request: web.Request, task: Literal["transcribe", "translate"]
) -> web.StreamResponse:
    """Submit a job and wait for its end."""
    transcriber = request.app[TRANSCRIBER]
    form = Form(task, transcriber.config.model)
    async with transcriber.arrival(client_of(request)) as arrival:
        await uploads.receive(request, arrival, form, transcriber.check, transcriber.config)
        asked, shape = form.asked(), form.shape()
        if asked.stream and asked.response_format not in {"json", "text"}:
            raise InvalidOption(
                f"response_format: {asked.response_format} cannot be streamed, only json and text"
            )
        job = await transcriber.accept(arrival, name=form.name, options=form.options())
    request[_JOB_ID] = job.id
    async with _while_there(request, job.id) as subscription:
        if asked.stream:
            return await _stream(request, subscription)
        async for _ in subscription:
            pass
        if error := _why_not(request, subscription):
            answer = problem(error.status, error.code, error.detail)
            # Otherwise OpenAI's clients send the same recording twice more.
            answer.headers["X-Should-Retry"] = "false"
            return answer
        # At once: a server that keeps nothing is about to delete it.
        transcript = await transcriber.transcript(job.id)
    return await _answer(transcript, asked, shape)


async def _answer(transcript: Transcript, asked: Fields, shape: Shape) -> web.Response:
    """Return a transcript in the format that is asked for."""
    match asked.response_format:
        case "json":
            return _json(Text(transcript.text))
        case "text":
            return web.Response(text=f"{transcript.text}\n")
        case "verbose_json":
            whole, parts = verbose(transcript), asked.timestamp_granularities
            segments = whole.segments if "segment" in parts else UNSET
            words = (whole.words or ()) if "word" in parts else UNSET
            return _json(msgspec.structs.replace(whole, segments=segments, words=words))
        case name:
            return await file_of(transcript, name, shape)


async def _stream(request: web.Request, subscription: Subscription) -> web.StreamResponse:
    """Send a job's text as it comes; all other news are comments, which keep proxies patient."""
    response = watch.event_stream()
    await response.prepare(request)
    texts: list[str] = []
    with contextlib.suppress(ConnectionError):
        async for frame in subscription:
            for segment in frame.segments:
                texts.append(segment.text if texts else segment.text.lstrip())
            new = texts[len(texts) - len(frame.segments) :]
            comment = f": {int(frame.progress_percentage)} % {' '.join(frame.message.split())}\n\n"
            async with watch.deadline(request, watch.STALLED_S):
                await response.write(b"".join(map(_event, map(Delta, new))) or comment.encode())
        error = _why_not(request, subscription)
        end = as_openai(error)[1] if error else Done("".join(texts).strip())
        async with watch.deadline(request, watch.GOODBYE_S, is_patient=False):
            await response.write(_event(end))
            await response.write_eof()
    return response


def _why_not(request: web.Request, subscription: Subscription) -> ProblemDetails | None:
    """Return why there is no whole text, if there is none.

    Raises:
        ConnectionResetError: there is nobody to tell.
    """
    if not subscription.is_finished:
        if _has_gone(request):
            raise ConnectionResetError
        gone = Closed("the server is shutting down; when it is back, the job goes on")
        return details(gone.problem())
    last = subscription.summary()
    if last.status is Status.CANCELLED:
        return details(JobCancelled(f"the job {last.job_id} was cancelled").problem())
    return details(last.error) if last.error else None


@contextlib.asynccontextmanager
async def _while_there(request: web.Request, job_id: str) -> AsyncIterator[Subscription]:
    """Watch a job for a client; when the client goes, end that, and the job unless it is kept."""
    transcriber = request.app[TRANSCRIBER]
    with transcriber.watch(job_id) as subscription:
        looking = asyncio.create_task(_look(request, subscription), name=f"look-{job_id}")
        try:
            yield subscription
        finally:
            looking.cancel()
            await asyncio.wait([looking])
            keeps = request.headers.get("X-Keep-Job", "").lower() in {"true", "1"}
            if _has_gone(request) and not (keeps or transcriber.config.keep_orphans):
                with contextlib.suppress(AiotranscribeError):  # it has ended, or is deleted
                    await transcriber.cancel(job_id)


async def _look(request: web.Request, subscription: Subscription) -> None:
    """End a subscription when its client goes.

    aiohttp tells a handler only when it writes; to cancel it instead, as an option of the whole
    server, would cut handlers of others in the middle of what they do.
    """
    while not _has_gone(request):  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(_LOOK_S)
    subscription.close()


def _has_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _event(data: object) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(data)


def _json(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
