"""OpenAI's own clients against the real server: what they send, and what they make of answers."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import ClientSession, FormData, web
from aiohttp.test_utils import make_mocked_request
from openai.types.audio import TranscriptionTextDoneEvent

from aiotranscribe.web.errors import problems
from aiotranscribe.web.openai import ALIASES
from tests.conftest import ROOT, SAMPLE, SCRIPTED, Server
from tests.scripted import Script
from tests.waiting import LONG_S, until

MakeWav = Callable[[float], Path]
Ask = dict[str, Any]

#: What brings a script to the model through a client that knows nothing of it.
RAW = {"vad_filter": "false"}


def scripted(**script: Any) -> Ask:
    """Return the arguments that bring a script to the model."""
    return {"prompt": Script(**script).fields()["initial_prompt"], "extra_body": RAW}


QUICK = scripted()


@pytest.fixture
def client(scripted_server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's Python client, of a server with scripted models."""
    with client_of(scripted_server) as client:
        yield client


def client_of(server: Server, **more: Any) -> openai.OpenAI:
    """Return a client that does not try again."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, **more)


def ask(server: Server, path: str, method: str = "GET") -> Any:
    """Return what one of the server's own routes answers."""
    request = urllib.request.Request(f"{server.url}/v1/{path}", method=method)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def jobs(server: Server) -> list[dict[str, Any]]:
    """Return the server's jobs, newest first."""
    return list(ask(server, "jobs")["jobs"])


def status_of(server: Server, job_id: str) -> str:
    """Return a job's status."""
    return str(ask(server, f"jobs/{job_id}")["status"])


def text_of(server: Server, job_id: str) -> str:
    """Return a job's text as the job's own routes have it."""
    return str(ask(server, f"jobs/{job_id}/transcript?format=json")["text"])


def form_of(recording: Path, *fields: tuple[str, str], **script: Any) -> FormData:
    """Return a form that no client's library has touched."""
    form = FormData([("prompt", scripted(**script)["prompt"]), *RAW.items(), *fields])
    form.add_field("file", recording.read_bytes(), filename=recording.name)
    return form


# -- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        ("text", "pt 0.0. pt 1.0.\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:01,000\npt 0.0.\n\n2\n00:00:01,000 --> 00:00:02,000\n"),
        ("vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\npt 0.0.\n\n"),
    ],
)
def test_text_and_subtitles(
    client: openai.OpenAI, make_wav: MakeWav, response_format: Any, expected: str
) -> None:
    """Otherwise a tool that makes subtitles gets none, or gets them wrapped in JSON."""
    text = client.audio.transcriptions.create(
        model="whisper-1", file=make_wav(2.0), response_format=response_format, **QUICK
    )
    assert str(text).startswith(expected)


@pytest.mark.parametrize("model", [*ALIASES, "scripted"])
def test_json_and_every_name_of_the_model(
    client: openai.OpenAI, scripted_server: Server, make_wav: MakeWav, model: str
) -> None:
    """Otherwise a client whose model cannot be changed cannot be used."""
    answer = client.audio.transcriptions.with_raw_response.create(
        model=model, file=make_wav(2.0), **QUICK
    )
    assert answer.parse().text == "pt 0.0. pt 1.0."
    job = jobs(scripted_server)[0]
    assert answer.headers["X-Job-Id"] == job["job_id"]
    assert job["name"] == make_wav(2.0).name
    assert text_of(scripted_server, job["job_id"]) == answer.parse().text


def test_verbose_json(client: openai.OpenAI, make_wav: MakeWav) -> None:
    """Otherwise a program that reads segments fails at the first field that is not there."""
    answer = client.audio.transcriptions.create(
        model="whisper-1", file=make_wav(2.0), response_format="verbose_json", **QUICK
    )
    assert (answer.language, answer.duration, answer.words) == ("portuguese", 2.0, None)
    assert answer.segments
    assert [(each.id, each.start, each.end) for each in answer.segments] == [
        (0, 0.0, 1.0),
        (1, 1.0, 2.0),
    ]


def test_what_was_asked_is_what_is_done(
    client: openai.OpenAI, scripted_server: Server, make_wav: MakeWav
) -> None:
    """Otherwise an option is lost on its way from OpenAI's name to ours."""
    answer = client.audio.transcriptions.create(
        model="scripted",
        file=make_wav(2.0),
        language="de",
        temperature=0,
        **QUICK | {"extra_body": RAW | {"beam_size": "2", "max_line_width": "4"}},
        response_format="srt",
    )
    assert "\nde\n0.0.\n" in str(answer), "options of our own pass through"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_translations(client: openai.OpenAI, make_wav: MakeWav) -> None:
    """Otherwise a client that translates gets a 404."""
    answer = client.audio.translations.create(
        model="whisper-1", file=make_wav(2.0), response_format="verbose_json", **QUICK
    )
    assert (answer.text, answer.language) == ("pt 0.0. pt 1.0.", "english")
    with pytest.raises(openai.BadRequestError, match=r"scripted\.en cannot translate") as caught:
        client.audio.translations.create(model="scripted.en", file=make_wav(2.0), **QUICK)
    assert caught.value.param == "task"


@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
@pytest.mark.parametrize("values", [["word"], ["segment"], ["segment", "word"]])
async def test_granularities_with_and_without_brackets(
    scripted_server: Server, make_wav: MakeWav, name: str, values: list[str]
) -> None:
    """Otherwise it depends on a client's library of forms whether it gets words."""
    fields = [("response_format", "verbose_json"), *((name, value) for value in values)]
    async with ClientSession() as session:
        url = f"{scripted_server.url}/v1/audio/transcriptions"
        async with session.post(url, data=form_of(make_wav(2.0), *fields)) as response:
            answer = await response.json()
    assert ("words" in answer, "segments" in answer) == ("word" in values, "segment" in values)


def test_models(client: openai.OpenAI) -> None:
    """Otherwise a client that lets its user choose has nothing to show."""
    listed = [model.id for model in client.models.list()]
    assert listed == ["scripted", "scripted.en", *ALIASES]
    for name in listed:
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError, match=r"only scripted, .*whisper-1") as none:
        client.models.retrieve("Systran/nothing")
    assert none.value.code == "model_not_found"


# -- streaming ---------------------------------------------------------------------------------


def test_a_stream_brings_the_text_as_it_comes(
    client: openai.OpenAI, scripted_server: Server, make_wav: MakeWav
) -> None:
    """Otherwise a client that shows text as it comes shows nothing, or not all of it."""
    ask = scripted(segments=4, delay=0.05)
    stream = client.audio.transcriptions.create(
        model="whisper-1", file=make_wav(2.0), stream=True, **ask
    )
    with stream:
        job_id = stream.response.headers["X-Job-Id"]
        events = list(stream)
    *deltas, done = events
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert len(deltas) == 4
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == (
        done.text
    )
    assert done.text == "pt 0.0. pt 0.5. pt 1.0. pt 1.5."
    assert text_of(scripted_server, job_id) == done.text


async def test_a_stream_says_something_while_there_is_no_text(
    scripted_server: Server, make_wav: MakeWav
) -> None:
    """Otherwise a proxy cuts the connection of a long job."""
    form = form_of(make_wav(2.0), ("stream", "true"), delay=0.3)
    async with ClientSession() as session:
        url = f"{scripted_server.url}/v1/audio/transcriptions"
        async with session.post(url, data=form) as response:
            assert response.content_type == "text/event-stream"
            text = await response.text()
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert blocks[0].startswith(": ")
    assert any(block.startswith(": ") and "Transcribed" in block for block in blocks)
    assert all(block.startswith((": ", 'data: {"type":"transcript.text.')) for block in blocks)


def test_what_cannot_be_streamed_is_refused(client: openai.OpenAI, make_wav: MakeWav) -> None:
    """Otherwise somebody who asked for subtitles gets something else."""
    with pytest.raises(openai.BadRequestError, match="srt cannot be streamed") as caught:
        client.audio.transcriptions.create(
            model="whisper-1", file=make_wav(2.0), response_format="srt", stream=True
        )
    assert caught.value.param == "response_format"


def test_a_stream_that_fails_raises(client: openai.OpenAI, make_wav: MakeWav) -> None:
    """Otherwise half of a text passes for the whole."""
    ask = scripted(segments=4, fail_at=2)
    stream = client.audio.transcriptions.create(
        model="whisper-1", file=make_wav(2.0), stream=True, **ask
    )
    with stream, pytest.raises(openai.APIError, match="as the script says"):
        list(stream)


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "error", "param", "code"),
    [
        ({"model": "huge"}, openai.NotFoundError, "model", "model_not_found"),
        ({"language": "english"}, openai.BadRequestError, "language", "invalid_option"),
        ({"temperature": 2}, openai.BadRequestError, "temperature", "invalid_option"),
        ({"response_format": "docx"}, openai.BadRequestError, "response_format", "invalid_option"),
        (
            {"timestamp_granularities": ["letter"]},
            openai.BadRequestError,
            "timestamp_granularities",
            "invalid_option",
        ),
        ({"extra_body": {"langauge": "de"}}, openai.BadRequestError, None, "invalid_option"),
        ({"file": b""}, openai.BadRequestError, None, "invalid_request"),
    ],
)
def test_what_is_wrong_is_said_in_openai_s_way(
    client: openai.OpenAI, make_wav: MakeWav, ask: Ask, error: Any, param: str | None, code: str
) -> None:
    """Otherwise a client shows "unknown error", or tries again what can never work."""
    fields: dict[str, Any] = {"model": "whisper-1", "file": make_wav(2.0)} | ask
    with pytest.raises(error) as caught:
        client.audio.transcriptions.create(**fields)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"
    if code == "model_not_found":
        assert "scripted, scripted.en, whisper-1" in str(caught.value)


def test_what_is_no_recording(client: openai.OpenAI, scripted_server: Server) -> None:
    """Otherwise a client sends it again and again."""
    with pytest.raises(openai.APIStatusError, match="not audio or video") as caught:
        client.audio.transcriptions.create(model="whisper-1", file=b"no recording" * 1000)
    assert (caught.value.status_code, caught.value.code) == (415, "undecodable")
    assert caught.value.response.headers["X-Job-Id"] == jobs(scripted_server)[0]["job_id"]


def test_a_failure_is_not_tried_again(scripted_server: Server, make_wav: MakeWav) -> None:
    """Otherwise a recording that no worker survives is sent three times, by default."""
    before = len(jobs(scripted_server))
    with (
        client_of(scripted_server).with_options(max_retries=2) as client,
        pytest.raises(openai.InternalServerError, match="as the script says") as caught,
    ):
        client.audio.transcriptions.create(
            model="whisper-1", file=make_wav(2.0), **scripted(fail_at=0)
        )
    assert caught.value.type == "server_error"
    assert len(jobs(scripted_server)) == before + 1


async def test_a_full_queue_says_when_to_come_back(
    start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """Otherwise a server that has too much to do takes more, and nobody's job ends."""
    arguments = (*SCRIPTED, "--max-queue", "1")
    server = start_server(*arguments, program="tests.scripted_program")
    async with Caller(server, make_wav(2.0)) as caller:
        await caller.until_at_work()
        with client_of(server) as client:
            with pytest.raises(openai.RateLimitError, match="1 jobs wait or are at work") as caught:
                client.audio.transcriptions.create(model="whisper-1", file=make_wav(2.0))
            assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
            assert (caught.value.code, caught.value.type) == ("queue_full", "rate_limit_error")
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(server, "jobs", "POST")
            assert refused.value.status == 429
            assert json.load(refused.value)["code"] == "queue_full"
            assert "Retry-After" in refused.value.headers
            await caller.hang_up()
            await until(lambda: jobs(server)[0]["status"] == "cancelled")
            answer = client.audio.transcriptions.create(
                model="whisper-1", file=make_wav(2.0), **QUICK
            )
    assert answer.text == "pt 0.0. pt 1.0."


async def test_a_server_that_goes_says_so_and_keeps_the_job(
    start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """Otherwise a client waits for ever, or the job is lost with the answer."""
    server = start_server(*SCRIPTED, program="tests.scripted_program")
    async with Caller(server, make_wav(2.0), segments=60, delay=0.05) as caller:
        await caller.until_at_work()
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        status, answer = await caller.answer()
        assert await stopping == 0
    assert (status, answer["error"]["code"]) == (503, "closed")
    again = start_server(*SCRIPTED, program="tests.scripted_program")
    await until(lambda: jobs(again)[0]["status"] == "completed")


def test_a_server_that_keeps_nothing_answers(
    start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """Otherwise a text is deleted before its only reader has it."""
    server = start_server(*SCRIPTED, "--keep", "0", program="tests.scripted_program")
    with client_of(server) as client:
        for _ in range(5):
            answer = client.audio.transcriptions.create(
                model="whisper-1", file=make_wav(2.0), **QUICK
            )
            assert answer.text == "pt 0.0. pt 1.0."


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (web.HTTPUnauthorized(), 401, "authentication_error"),
        (web.HTTPForbidden(), 403, "permission_error"),
        (web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2), 413, "invalid_request_error"),
        (web.HTTPTooManyRequests(), 429, "rate_limit_error"),
        (RuntimeError("secret"), 500, "server_error"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/stt/v1/models", "/v1/jobs"])
async def test_every_error_has_openai_s_shape_on_its_routes(
    path: str, error: Exception, status: int, kind: str
) -> None:
    """Otherwise a client cannot tell that its key is wrong, whoever found that out."""

    async def handler(request: web.Request) -> web.StreamResponse:
        raise error

    answer = await problems(make_mocked_request("POST", path), handler)
    assert isinstance(answer, web.Response)
    assert isinstance(answer.body, bytes)
    assert answer.status == status
    told = json.loads(answer.body)
    if path == "/v1/jobs":
        assert (told["status"], answer.content_type) == (status, "application/problem+json")
    else:
        assert answer.content_type == "application/json"
        assert told["error"].keys() == {"message", "type", "param", "code"}
        assert told["error"]["type"] == kind
        assert "secret" not in told["error"]["message"]


# -- clients that go ---------------------------------------------------------------------------


class Caller:
    """A client that may hang up.

    Args:
        server: Whom it calls.
        recording: What it sends.
        fields: Of the form.
        headers: Of the request.
        script: What the model does; by default it goes on until it is stopped.
    """

    def __init__(
        self,
        server: Server,
        recording: Path,
        *fields: tuple[str, str],
        headers: dict[str, str] | None = None,
        **script: Any,
    ) -> None:
        self._server = server
        self._form = form_of(recording, *fields, **(script or {"segments": 10_000, "delay": 0.05}))
        self._headers = headers

    async def __aenter__(self) -> "Caller":
        self._call = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.hang_up()

    async def until_at_work(self) -> str:
        """Wait until there is some text; return the job's id."""
        await until(lambda: self._newest().get("offset"))
        return str(self._newest()["job_id"])

    async def hang_up(self) -> None:
        """Break the connection, if it is not over."""
        self._call.cancel()
        await asyncio.wait([self._call])

    async def answer(self) -> tuple[int, Any]:
        """Return the status and what it answered."""
        status, body = await self._call
        return status, json.loads(body)

    async def _ask(self) -> tuple[int, str]:
        url = f"{self._server.url}/v1/audio/transcriptions"
        async with (
            ClientSession(headers=self._headers) as session,
            session.post(url, data=self._form) as response,
        ):
            return response.status, await response.text()

    def _newest(self) -> dict[str, Any]:
        found = jobs(self._server)
        return found[0] if found and found[0]["status"] == "running" else {}


WAYS = pytest.mark.parametrize("fields", [[], [("stream", "true")]], ids=["whole", "stream"])


@WAYS
async def test_a_client_that_hangs_up_frees_its_slot(
    scripted_server: Server, client: openai.OpenAI, make_wav: MakeWav, fields: Any
) -> None:
    """Otherwise the machine works for hours on what nobody waits for."""
    async with Caller(scripted_server, make_wav(2.0), *fields) as caller:
        job_id = await caller.until_at_work()
        await caller.hang_up()
        began = time.monotonic()
        await until(lambda: status_of(scripted_server, job_id) == "cancelled")
        assert time.monotonic() - began < 3
    client.audio.transcriptions.create(model="whisper-1", file=make_wav(2.0), **QUICK)


@WAYS
async def test_a_job_that_is_to_be_kept_outlives_its_client(
    scripted_server: Server, make_wav: MakeWav, fields: Any
) -> None:
    """Otherwise a client whose time-out is shorter than the work never gets a text."""
    more: Ask = {"headers": {"X-Keep-Job": "true"}, "segments": 20, "delay": 0.1}
    async with Caller(scripted_server, make_wav(2.0), *fields, **more) as caller:
        job_id = await caller.until_at_work()
        await caller.hang_up()
    await until(lambda: status_of(scripted_server, job_id) == "completed")
    assert text_of(scripted_server, job_id).endswith("pt 1.9.")


async def test_a_server_may_keep_them_all(
    start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """Otherwise who cannot make a client send a header cannot keep its jobs."""
    server = start_server(*SCRIPTED, "--keep-orphans", program="tests.scripted_program")
    async with Caller(server, make_wav(2.0), segments=20, delay=0.1) as caller:
        job_id = await caller.until_at_work()
        await caller.hang_up()
    await until(lambda: status_of(server, job_id) == "completed")


async def test_a_job_that_somebody_cancels_is_an_error(
    scripted_server: Server, make_wav: MakeWav
) -> None:
    """Otherwise half of a text passes for the whole."""
    async with Caller(scripted_server, make_wav(2.0)) as caller:
        job_id = await caller.until_at_work()
        ask(scripted_server, f"jobs/{job_id}/cancel", "POST")
        status, answer = await caller.answer()
    assert (status, answer["error"]["code"]) == (409, "job_cancelled")


# -- with the real model -----------------------------------------------------------------------


def test_the_same_words_everywhere(real_server: Server, tmp_path: Path) -> None:
    """Otherwise it matters by which door a recording comes in."""
    with client_of(real_server) as client:
        answer = client.audio.transcriptions.with_raw_response.create(
            model="whisper-1",
            file=SAMPLE,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )
        plain = client.audio.transcriptions.create(model="whisper-1", file=SAMPLE)
    verbose = answer.parse()
    assert text_of(real_server, answer.headers["X-Job-Id"]) == verbose.text
    assert "this recording was made by a machine" in verbose.text
    command = [sys.executable, "-m", "aiotranscribe", "transcribe", str(SAMPLE)]
    more = ["--highlight_words", "True", "--output_format", "all", "--output_dir", str(tmp_path)]
    subprocess.run([*command, *more], cwd=ROOT, check=True, timeout=LONG_S, capture_output=True)
    here = json.loads((tmp_path / "sample.verbose.json").read_text())
    assert here == verbose.to_dict(), "to the last number"
    assert json.loads((tmp_path / "sample.json").read_text())["text"] == verbose.text == plain.text
    assert "<u>machine,</u>" in (tmp_path / "sample.srt").read_text()

    assert (verbose.language, here["task"]) == ("english", "transcribe")
    assert verbose.duration == pytest.approx(18.1, abs=0.2)
    assert verbose.words
    assert " ".join(word.word for word in verbose.words) == verbose.text
    assert verbose.segments
    for segment in verbose.segments:
        assert segment.tokens
        assert -1 < segment.avg_logprob < 0
        assert 0.3 < segment.compression_ratio < 2.4
        assert 0 <= segment.no_speech_prob < 0.6
        assert segment.temperature == 0
        assert 0 <= segment.seek / 100 <= segment.start + 0.1


# -- the npm package ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def npm_openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with OpenAI's package for JavaScript, which .ci/run can install."""
    unless = pytest.fail if os.environ.get("CI") else pytest.skip
    if not (shutil.which("node") and shutil.which("npm")):
        unless("needs node and npm")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "openai@6"]
    run = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )
    if run.returncode:
        unless(f"npm cannot install openai: {run.stderr[-300:]}")
    return folder


def test_the_npm_package(npm_openai: Path, scripted_server: Server, make_wav: MakeWav) -> None:
    """Otherwise what is made with JavaScript, as most tools are, does not work."""
    script = (ROOT / "tests" / "openai_client.mjs").read_text()
    (npm_openai / "client.mjs").write_text(script)
    arguments = [f"{scripted_server.url}/v1", str(make_wav(2.0)), QUICK["prompt"]]
    run = subprocess.run(
        ["node", "client.mjs", *arguments],
        cwd=npm_openai,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG_S,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    text = "pt 0.0. pt 1.0."
    assert told["json"] == {"text": text}
    assert told["text"] == f"{text}\n"
    assert told["srt"].startswith("1\n00:00:00,000 --> ")
    assert told["vtt"].startswith("WEBVTT\n")
    assert told["verbose_json"]["language"] == "portuguese"
    assert [segment["text"] for segment in told["verbose_json"]["segments"]] == [
        " pt 0.0.",
        " pt 1.0.",
    ]
    assert told["verbose_json"]["words"] == []
    *deltas, done = told["stream"]
    assert "".join(event["delta"] for event in deltas) == done["text"] == text
    assert told["models"][0] == "scripted"
    assert told["error"] == {
        "status": 404,
        "code": "model_not_found",
        "param": "model",
        "type": "invalid_request_error",
    }
    assert told["job"] in {job["job_id"] for job in jobs(scripted_server)}
