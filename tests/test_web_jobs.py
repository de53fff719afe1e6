"""Jobs over HTTP: real sockets and workers, a scripted model."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientConnectionResetError, ClientResponse, FormData, MultipartWriter, web
from aiohttp.test_utils import TestServer, make_mocked_request

from aiotranscribe import Config, Frame, Transcriber, create_app
from aiotranscribe import frame as frames
from aiotranscribe.exports import FORMATS
from aiotranscribe.web.errors import problems
from aiotranscribe.web.jobs import TRANSCRIBER
from tests import scripted
from tests.builders import KEYS
from tests.conftest import WebClient
from tests.scripted import Script
from tests.waiting import check, until, until_frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

MakeWav = Callable[[float], Path]
Fields = Mapping[str, str]

QUICK = Script().fields()
#: A job that goes on until it is stopped.
ENDLESS = Script(segments=10_000, delay=0.05).fields()
#: For the routes that must refuse a job that does not exist.
ROUTES = [
    ("GET", "/v1/jobs/nope"),
    ("DELETE", "/v1/jobs/nope"),
    ("POST", "/v1/jobs/nope/cancel"),
    ("POST", "/v1/jobs/nope/retry"),
    ("GET", "/v1/jobs/nope/audio"),
    ("GET", "/v1/jobs/nope/transcript"),
    ("GET", "/v1/jobs/nope/events"),
    ("GET", "/v1/jobs?before=nope"),
    ("GET", "/ws/transcription/nope"),
]

BOUNDARY = "limit"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
FILE_HEAD = 'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
# What is no form, or only the beginning of one.
MALFORMED = {
    "nothing": "",
    "no boundary": "RIFF" * 10_000,
    "another boundary": f"--other\r\n{FILE_HEAD}RIFF\r\n--other--\r\n",
    "an empty form": f"--{BOUNDARY}--\r\n",
    "cut off in the head": f"--{BOUNDARY}\r\nContent-Dispo",
    "cut off after the head": f"--{BOUNDARY}\r\n{FILE_HEAD}",
    "cut off in the file": f"--{BOUNDARY}\r\n{FILE_HEAD}" + "RIFF" * 10_000,
    "cut off after the file": f"--{BOUNDARY}\r\n{FILE_HEAD}RIFF\r\n",
    "a head that is none": f"--{BOUNDARY}\r\nnonsense\r\n\r\nRIFF\r\n--{BOUNDARY}--\r\n",
    "a head without end": f"--{BOUNDARY}\r\n" + "X-A: " + "b" * 100_000 + "\r\n\r\n",
    "a field without a name": (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nRIFF\r\n--{BOUNDARY}--\r\n"
    ),
}


async def frame_of(response: ClientResponse, status: int = 200) -> Frame:
    """Return the frame that an answer holds, checking its status."""
    body = await response.read()
    assert response.status == status, body
    assert response.content_type == "application/json"
    return frames.decode(body)


async def problem_of(response: ClientResponse, status: int) -> dict[str, Any]:
    """Return the problem document that an answer holds (RFC 9457), checking its status."""
    body = await response.read()
    assert response.status == status, body
    assert response.content_type == "application/problem+json"
    problem: dict[str, Any] = json.loads(body)
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["code"]
    return problem


async def submit(client: WebClient, recording: Path, fields: Fields = QUICK) -> str:
    """Send a recording as it is; return the job's id."""
    body = await asyncio.to_thread(recording.read_bytes)
    async with client.post("/v1/jobs", params=fields, data=body) as response:
        return (await frame_of(response, 202)).job_id


async def start(client: WebClient, recording: Path, fields: Fields = ENDLESS) -> str:
    """Send a recording and wait for its first segment; return the job's id."""
    job_id = await submit(client, recording, fields)
    await until_frame(transcriber_of(client).watch(job_id), lambda frame: frame.segments)
    return job_id


async def end(client: WebClient, job_id: str) -> Frame:
    """Wait for a job's end; return its last frame with all segments."""
    async for _ in transcriber_of(client).watch(job_id):
        pass
    async with client.get(f"/v1/jobs/{job_id}") as response:
        frame = await frame_of(response)
    check([frame])
    return frame


def transcriber_of(client: WebClient) -> Transcriber:
    """Return the transcriber behind the application."""
    return client.app[TRANSCRIBER]


async def next_job_works(client: WebClient, recording: Path) -> None:
    """Check that the server is as good as new."""
    frame = await end(client, await submit(client, recording))
    assert frame.status == "completed"
    assert len(frame.segments) == 2


def arriving(data_dir: Path) -> list[Path]:
    """Return what is left of recordings on their way."""
    return list((data_dir / "spool" / "arriving").iterdir())


def form_of(recording: Path, before: Fields = {}, after: Fields = {}) -> FormData:  # noqa: B006
    """Return a form with a file, and options before and after it."""
    form = FormData(before)
    form.add_field("file", recording.read_bytes(), filename=recording.name)
    for name, value in after.items():
        form.add_field(name, value)
    return form


# -- submit ------------------------------------------------------------------------------------


async def test_a_form_with_a_file_becomes_a_job(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise neither curl -F nor a browser's form can send a recording."""
    form = form_of(make_wav(2.0), QUICK)
    async with web_client.post("/v1/jobs", data=form) as response:
        frame = await frame_of(response, 202)
        assert response.headers["Location"] == f"/v1/jobs/{frame.job_id}"
        assert frame.status in {"queued", "running"}
        assert (frame.offset, list(frame.segments)) == (0, [])
    frame = await end(web_client, frame.job_id)
    assert (frame.status, frame.progress_percentage) == ("completed", 100)
    assert [segment.text for segment in frame.segments] == [" pt 0.0.", " pt 1.0."]
    assert transcriber_of(web_client).get(frame.job_id).name == make_wav(2.0).name


@pytest.mark.parametrize(
    "content_type",
    [None, "audio/wav", "application/octet-stream", "application/x-www-form-urlencoded"],
)
async def test_the_bare_bytes_become_a_job(
    web_client: WebClient, make_wav: MakeWav, content_type: str | None
) -> None:
    """Otherwise curl --data-binary, or a program without a form library, cannot send one."""
    headers = {"Content-Type": content_type} if content_type else {}
    body = make_wav(2.0).read_bytes()
    query = {**QUICK, "language": "de", "filename": "memo.wav"}
    async with web_client.post("/v1/jobs", params=query, data=body, headers=headers) as response:
        frame = await frame_of(response, 202)
        assert response.headers["Location"] == f"/v1/jobs/{frame.job_id}"
    frame = await end(web_client, frame.job_id)
    assert frame.segments[0].text == " de 0.0."
    assert transcriber_of(web_client).get(frame.job_id).name == "memo.wav"


@pytest.mark.parametrize("place", ["query", "before", "after"])
async def test_options_may_stand_anywhere(
    web_client: WebClient, make_wav: MakeWav, place: str
) -> None:
    """Otherwise an option is ignored because of where a client's library puts it."""
    options = {**QUICK, "model": "scripted", "language": "fr", "word_timestamps": "true"}
    query = options if place == "query" else {}
    form = form_of(
        make_wav(2.0),
        options if place == "before" else {},
        options if place == "after" else {},
    )
    async with web_client.post("/v1/jobs", params=query, data=form) as response:
        frame = await frame_of(response, 202)
    settled = transcriber_of(web_client).get(frame.job_id).options
    assert (settled.language, settled.word_timestamps) == ("fr", True)
    frame = await end(web_client, frame.job_id)
    assert frame.segments[0].text == " fr 0.0."


async def test_a_form_may_come_in_small_pieces(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise an upload over a bad line is misread."""
    whole = form_of(make_wav(2.0), {}, QUICK)()
    body = await whole.as_bytes()

    async def pieces() -> AsyncIterator[bytes]:
        for first in range(0, len(body), 1009):
            yield body[first : first + 1009]

    headers = {"Content-Type": whole.content_type}
    async with web_client.post("/v1/jobs", data=pieces(), headers=headers) as response:
        frame = await frame_of(response, 202)
    assert (await end(web_client, frame.job_id)).duration_seconds == 2.0


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b\\c.wav", "Größe 音声.wav", "\x01;\"'<b>.wav", "x" * 5000, ""]
)
async def test_a_file_name_is_only_a_name(
    web_client: WebClient, make_wav: MakeWav, data_dir: Path, name: str
) -> None:
    """Otherwise a file name leads out of the spool, or is too long for it."""
    query = {**QUICK, "filename": name}
    body = make_wav(2.0).read_bytes()
    async with web_client.post("/v1/jobs", params=query, data=body) as response:
        frame = await frame_of(response, 202)
    assert (await end(web_client, frame.job_id)).status == "completed"
    kept = transcriber_of(web_client).get(frame.job_id).name
    assert kept == name[:255] or (kept and not name)
    assert (data_dir / "spool" / frame.job_id / "recording").is_file()
    async with web_client.get("/v1/jobs?limit=1") as response:
        assert (await response.json())["jobs"][0]["name"] == kept


# -- options that are wrong --------------------------------------------------------------------


@pytest.mark.parametrize("place", ["query", "before", "after"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("langauge", "en"),
        ("language", "english"),
        ("model", "huge"),
        ("task", "sing"),
        ("word_timestamps", "perhaps"),
        ("vad_filter", "2"),
        ("temperature", "warm"),
        ("beam_size", "0"),
        ("hotwords", "x" * 2001),
        ("", "nameless"),
    ],
)
async def test_a_wrong_option_is_refused_by_name(
    web_client: WebClient, make_wav: MakeWav, data_dir: Path, place: str, name: str, value: str
) -> None:
    """Otherwise a mistake is ignored, and noticed in a transcript an hour later."""
    jobs = transcriber_of(web_client).jobs()
    wrong = {name: value}
    form = form_of(
        make_wav(2.0), wrong if place == "before" else {}, wrong if place == "after" else {}
    )
    query = wrong if place == "query" else {}
    async with web_client.post("/v1/jobs", params=query, data=form) as response:
        problem = await problem_of(response, 422)
    assert problem["code"] == "invalid_option"
    assert name in problem["detail"]
    assert arriving(data_dir) == []
    assert transcriber_of(web_client).jobs() == jobs


async def test_what_an_english_model_cannot_do_is_refused(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise German speech comes out as English-sounding nonsense."""
    body = make_wav(2.0).read_bytes()
    for query in ({"language": "de"}, {"task": "translate"}):
        params = {"model": "scripted.en"} | query
        async with web_client.post("/v1/jobs", params=params, data=body) as response:
            problem = await problem_of(response, 422)
            assert next(iter(query)) in problem["detail"]


@pytest.mark.parametrize(
    ("query", "before", "after"),
    [
        ("?language=de&language=fr", {}, {}),
        ("?language=de", {"language": "de"}, {}),
        ("", {"language": "de"}, {"language": "fr"}),
        ("?language=de", {}, {"language": "fr"}),
    ],
)
async def test_an_option_given_twice_is_refused_by_name(
    web_client: WebClient, make_wav: MakeWav, query: str, before: Fields, after: Fields
) -> None:
    """Otherwise one of two contradictions wins by chance."""
    form = form_of(make_wav(2.0), before, after)
    async with web_client.post(f"/v1/jobs{query}", data=form) as response:
        problem = await problem_of(response, 422)
    assert problem["code"] == "invalid_option"
    assert "language" in problem["detail"]


async def test_an_endless_option_is_refused(web_client: WebClient, data_dir: Path) -> None:
    """Otherwise a form's field fills the server's memory, where a file would not."""
    with MultipartWriter("form-data") as form:
        part = form.append("x" * (1 << 20))
        part.set_content_disposition("form-data", name="hotwords")
    async with web_client.post("/v1/jobs", data=form) as response:
        problem = await problem_of(response, 422)
    assert problem["detail"].startswith("hotwords: ")
    assert arriving(data_dir) == []


async def test_endless_options_are_refused(web_client: WebClient, data_dir: Path) -> None:
    """Otherwise a form of nothing but fields fills the server's memory."""
    many = {
        "/v1/jobs": [(f"option{number}", "x") for number in range(200)],
        "/v1/audio/transcriptions": [("keywords[]", "x")] * 200,
    }
    for url, fields in many.items():
        async with web_client.post(
            url, data=FormData(fields, default_to_multipart=True)
        ) as response:
            assert response.status == 400
            assert "over 100 fields" in await response.text()
    assert arriving(data_dir) == []


@pytest.mark.parametrize("query", ["langauge=en", "language=english", "model=huge"])
async def test_a_wrong_option_is_refused_before_the_recording_is_sent(
    web_client: WebClient, query: str
) -> None:
    """Otherwise a user uploads an hour to learn that a word was misspelt."""
    head = (
        f"POST /v1/jobs?{query} HTTP/1.1\r\nHost: {address(web_client)}\r\n"
        "Content-Length: 1000000000\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(*endpoint(web_client))
    writer.write(head.encode())
    try:
        async with asyncio.timeout(5):
            assert b" 422 " in await reader.readline()
    finally:
        writer.transport.abort()


# -- bodies that are wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("body", [pytest.param(MALFORMED[name], id=name) for name in MALFORMED])
async def test_a_malformed_form_is_refused(
    web_client: WebClient, make_wav: MakeWav, data_dir: Path, body: str
) -> None:
    """Otherwise half a recording is taken for the whole, or the sender is told it was our fault."""
    jobs = transcriber_of(web_client).jobs()
    async with web_client.post("/v1/jobs", data=body.encode(), headers=FORM) as response:
        problem = await problem_of(response, 400)
    assert problem["code"] in {"invalid_request", "bad_request"}
    assert arriving(data_dir) == []
    assert transcriber_of(web_client).jobs() == jobs
    await next_job_works(web_client, make_wav(2.0))


@pytest.mark.parametrize(
    "head", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/x"]
)
async def test_a_form_without_a_boundary_is_refused(
    web_client: WebClient, make_wav: MakeWav, data_dir: Path, head: str
) -> None:
    """Otherwise a client's mistake is answered with a 500."""
    headers = {"Content-Type": head}
    async with web_client.post("/v1/jobs", data=b"RIFF", headers=headers) as response:
        await problem_of(response, 400)
    assert arriving(data_dir) == []
    await next_job_works(web_client, make_wav(2.0))


async def test_a_form_without_a_file_is_refused(
    web_client: WebClient, make_wav: MakeWav, data_dir: Path
) -> None:
    """Otherwise nobody learns that the field has to be called "file"."""
    recording = make_wav(2.0).read_bytes()
    misnamed = FormData()
    misnamed.add_field("audio", recording, filename="a.wav")
    twice = form_of(make_wav(2.0))
    twice.add_field("file", recording, filename="b.wav")
    for form in (misnamed, twice):
        async with web_client.post("/v1/jobs", data=form) as response:
            problem = await problem_of(response, 400)
            assert problem["code"] == "invalid_request"
            assert "file" in problem["detail"]
    with MultipartWriter("form-data") as writer:
        part = writer.append("en")
        part.set_content_disposition("form-data", name="language")
    async with web_client.post("/v1/jobs", data=writer) as response:
        assert "'file'" in (await problem_of(response, 400))["detail"]
    with MultipartWriter("form-data") as writer, MultipartWriter("form-data") as inner:
        inner.append("en")
        writer.append(inner)
    async with web_client.post("/v1/jobs", data=writer) as response:
        await problem_of(response, 400)
    assert arriving(data_dir) == []
    await next_job_works(web_client, make_wav(2.0))


async def test_an_empty_recording_is_refused(
    web_client: WebClient, make_wav: MakeWav, data_dir: Path
) -> None:
    """Otherwise an upload that brought nothing becomes a job that can only fail."""
    empty = FormData()
    empty.add_field("file", b"", filename="a.wav")
    for body in (b"", empty):
        async with web_client.post("/v1/jobs", data=body) as response:
            problem = await problem_of(response, 400)
            assert "empty" in problem["detail"]
    assert arriving(data_dir) == []
    await next_job_works(web_client, make_wav(2.0))


async def test_json_is_no_recording(web_client: WebClient, data_dir: Path) -> None:
    """Otherwise a client that guesses the interface gets a job that can only fail."""
    async with web_client.post("/v1/jobs", json={"url": "http://example.com"}) as response:
        problem = await problem_of(response, 415)
    assert problem["code"] == "unsupported_body"
    assert arriving(data_dir) == []


def address(client: WebClient) -> str:
    """Return host and port of the server."""
    return f"{client.host}:{client.port}"


def endpoint(client: WebClient) -> tuple[str, int]:
    """Return where to connect to."""
    assert client.port
    return client.host, client.port


@pytest.mark.parametrize("kind", ["raw", "form", "chunked"])
@pytest.mark.parametrize("is_polite", [True, False])
async def test_an_upload_that_is_cut_off_leaves_nothing(
    web_client: WebClient, make_wav: MakeWav, data_dir: Path, kind: str, is_polite: bool
) -> None:
    """Otherwise half a recording is transcribed, or fills the disk."""
    jobs = transcriber_of(web_client).jobs()
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: {address(web_client)}\r\n"
    sent = make_wav(2.0).read_bytes()[:30_000]
    if kind == "form":
        head += f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: 60000\r\n\r\n"
        head += f"--{BOUNDARY}\r\n{FILE_HEAD}"
    elif kind == "chunked":
        head += f"Transfer-Encoding: chunked\r\n\r\n{60_000:x}\r\n"
    else:
        head += "Content-Length: 60000\r\n\r\n"
    _, writer = await asyncio.open_connection(*endpoint(web_client))
    writer.write(head.encode() + sent)
    await until(lambda: arriving(data_dir))
    if is_polite:
        writer.close()
    else:
        writer.transport.abort()
    await until(lambda: not arriving(data_dir))
    assert transcriber_of(web_client).jobs() == jobs
    await next_job_works(web_client, make_wav(2.0))


@pytest.mark.parametrize("is_form", [True, False])
async def test_a_large_upload_does_not_grow_the_server(
    web_client: WebClient, make_wav: MakeWav, is_form: bool
) -> None:
    """Otherwise one film takes all of the machine's memory."""
    process, piece = psutil.Process(), bytes(1 << 20)
    before, most = process.memory_info().rss, 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal most
        for _ in range(64):
            most = max(most, process.memory_info().rss)
            yield piece

    data: Any = pieces()
    if is_form:
        data = FormData()
        data.add_field("file", pieces(), filename="film.mp4")
    async with web_client.post("/v1/jobs", data=data) as response:
        frame = await frame_of(response, 202)
    assert most - before < 24 << 20
    frame = await end(web_client, frame.job_id)
    assert frame.error
    assert frame.error.code == "undecodable"
    async with web_client.delete(f"/v1/jobs/{frame.job_id}") as response:
        assert response.status == 204
    await next_job_works(web_client, make_wav(2.0))


# -- look, fetch, stop -------------------------------------------------------------------------


async def test_a_job_can_be_looked_at_while_it_runs(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise only sockets can tell how far it is."""
    job_id = await start(web_client, make_wav(2.0))
    async with web_client.get(f"/v1/jobs/{job_id}") as response:
        first = await frame_of(response)
    assert (first.job_id, first.status, first.current_step) == (job_id, "running", "transcribing")
    assert first.offset == 0
    assert first.segments
    query = {"since": first.cursor}
    async with web_client.get(f"/v1/jobs/{job_id}", params=query) as response:
        second = await frame_of(response)
    assert second.offset == len(first.segments)
    async with web_client.post(f"/v1/jobs/{job_id}/cancel") as response:
        assert (await frame_of(response)).status == "cancelled"


async def test_the_frame_is_as_documented(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise clients written after the documentation do not work."""
    job_id = await submit(web_client, make_wav(2.0))
    await end(web_client, job_id)
    async with web_client.get(f"/v1/jobs/{job_id}") as response:
        frame = await response.json()
    assert list(frame) == KEYS
    assert frame["segments"][1] == {"id": 1, "start": 1.0, "end": 2.0, "text": " pt 1.0."}


async def test_jobs_are_listed_newest_first(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise nobody finds a job again whose id is lost."""
    async with own_client(tmp_path) as client:
        async with client.get("/v1/jobs") as response:
            assert await response.json() == {"jobs": []}
        done = [await submit(client, make_wav(2.0), {**QUICK, "filename": n}) for n in "abc"]
        for job_id in done:
            await end(client, job_id)
        running = await start(client, make_wav(2.0))
        newest_first = [running, *reversed(done)]

        async def listed(query: str) -> list[str]:
            async with client.get(f"/v1/jobs{query}") as response:
                assert response.status == 200
                return [job["job_id"] for job in (await response.json())["jobs"]]

        assert await listed("") == newest_first
        assert await listed("?limit=2") == newest_first[:2]
        assert await listed(f"?before={newest_first[1]}&limit=1") == newest_first[2:3]
        assert await listed(f"?before={newest_first[-1]}") == []
        assert await listed("?status=completed") == newest_first[1:]
        assert await listed("?status=completed&limit=1") == newest_first[1:2]
        assert await listed("?status=running") == [running]
        assert await listed("?status=failed") == []
        async with client.get("/v1/jobs") as response:
            jobs = (await response.json())["jobs"]
        assert [job["name"] for job in jobs[1:]] == ["c", "b", "a"]
        assert all(job["segments"] == [] and job["created"] > 1e9 for job in jobs)
        assert [job["offset"] for job in jobs[1:]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=many", "limit"),
        ("limit=1001", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=²", "limit"),
        ("status=done", "status"),
    ],
)
async def test_an_impossible_list_is_refused_by_name(
    web_client: WebClient, query: str, name: str
) -> None:
    """Otherwise a misspelt filter shows the wrong jobs."""
    async with web_client.get(f"/v1/jobs?{query}") as response:
        problem = await problem_of(response, 422)
    assert problem["detail"].startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "content_type", "beginning"),
    [
        ("txt", "text/plain", "pt 0.0.\npt 1.0.\n"),
        ("srt", "application/x-subrip", "1\n00:00:00,000 --> 00:00:01,000\npt 0.0.\n\n2\n"),
        ("vtt", "text/vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\npt 0.0.\n\n"),
        ("tsv", "text/tab-separated-values", "start\tend\ttext\n0\t1000\tpt 0.0.\n1000\t2000\tpt"),
        ("lrc", "text/plain", "[00:00.00]pt 0.0.\n[00:01.00]pt 1.0.\n"),
        ("json", "application/json", '{"text":"pt 0.0. pt 1.0.","language":"pt","duration":2.0,'),
        ("verbose_json", "application/json", '{"task":"transcribe","language":"portuguese",'),
    ],
)
async def test_a_transcript_comes_in_every_format(
    web_client: WebClient, make_wav: MakeWav, name: str, content_type: str, beginning: str
) -> None:
    """Otherwise there are no subtitles."""
    job_id = await submit(web_client, make_wav(2.0))
    await end(web_client, job_id)
    url = f"/v1/jobs/{job_id}/transcript"
    async with web_client.get(url, params={"format": name}) as response:
        assert response.status == 200
        assert response.content_type == content_type
        assert (await response.text()).startswith(beginning)
    async with web_client.get(url) as response:
        assert await response.text() == "pt 0.0.\npt 1.0.\n"


async def test_every_format_is_in_the_table_above() -> None:
    """Otherwise a new format goes untested."""
    (mark,) = [
        mark
        for mark in test_a_transcript_comes_in_every_format.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    ]
    assert {name for name, *_ in mark.args[1]} == set(FORMATS)


async def test_half_a_transcript_is_given_to_who_asks_for_half(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise somebody takes the beginning for the whole."""
    job_id = await start(web_client, make_wav(2.0))
    url = f"/v1/jobs/{job_id}/transcript"
    async with web_client.get(url) as response:
        problem = await problem_of(response, 409)
        assert problem["code"] == "not_finished"
        assert "partial" in problem["detail"]
    for value in ("true", "1", "True"):
        async with web_client.get(url, params={"partial": value}) as response:
            assert response.status == 200
            assert (await response.text()).startswith("pt 0.0.\n")
    async with web_client.get(url, params={"partial": "false"}) as response:
        await problem_of(response, 409)
    async with web_client.post(f"/v1/jobs/{job_id}/cancel") as response:
        await frame_of(response)
    async with web_client.get(url) as response:
        assert (await response.text()).startswith("pt 0.0.\n")


async def test_a_transcript_comes_in_a_shape(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise subtitles do not fit on the screen."""
    job_id = await submit(web_client, make_wav(2.0))
    await end(web_client, job_id)
    url = f"/v1/jobs/{job_id}/transcript"
    query = {"format": "srt", "max_line_width": "4", "highlight_words": "False"}
    async with web_client.get(url, params=query) as response:
        assert "\npt\n0.0.\n" in await response.text()
    for name, value in (("max_line_width", "0"), ("highlight_words", "maybe")):
        async with web_client.get(url, params={"format": "srt", name: value}) as response:
            problem = await problem_of(response, 422)
        assert problem["detail"].startswith(f"{name}: ")
    async with web_client.get(url, params={"format": "srt", "max_words_per_line": "1"}) as response:
        problem = await problem_of(response, 422)
    assert "word_timestamps" in problem["detail"]


@pytest.mark.parametrize("name", ["docx", "TXT", "../txt"])
async def test_an_unknown_format_is_refused_by_name(
    web_client: WebClient, make_wav: MakeWav, name: str
) -> None:
    """Otherwise it silently becomes plain text."""
    job_id = await submit(web_client, make_wav(2.0))
    url = f"/v1/jobs/{job_id}/transcript"
    async with web_client.get(url, params={"format": name}) as response:
        problem = await problem_of(response, 422)
    assert problem["code"] == "invalid_option"
    assert "srt" in problem["detail"]


async def test_cancel_keeps_the_text_so_far(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise stopping a job throws away what was paid for."""
    job_id = await start(web_client, make_wav(2.0))
    for _ in range(2):
        async with web_client.post(f"/v1/jobs/{job_id}/cancel") as response:
            frame = await frame_of(response)
        assert (frame.status, frame.current_step) == ("cancelled", "cancelled")
        assert frame.segments
        assert frame.progress_percentage < 100
    assert await end(web_client, job_id) == frame
    await next_job_works(web_client, make_wav(2.0))
    async with web_client.get(f"/v1/jobs/{job_id}") as response:
        assert await frame_of(response) == frame


async def test_a_finished_job_cannot_be_cancelled(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise a click that comes too late spoils a good transcript."""
    job_id = await submit(web_client, make_wav(2.0))
    frame = await end(web_client, job_id)
    async with web_client.post(f"/v1/jobs/{job_id}/cancel") as response:
        assert await frame_of(response) == frame


async def test_delete_erases(web_client: WebClient, make_wav: MakeWav, data_dir: Path) -> None:
    """Otherwise a recording that somebody wanted gone stays."""
    finished = await submit(web_client, make_wav(2.0))
    await end(web_client, finished)
    running = await start(web_client, make_wav(2.0))
    for job_id in (finished, running):
        assert (data_dir / "spool" / job_id).exists()
        async with web_client.delete(f"/v1/jobs/{job_id}") as response:
            assert response.status == 204
            assert await response.read() == b""
        assert not (data_dir / "spool" / job_id).exists()
        for _ in range(2):
            async with web_client.delete(f"/v1/jobs/{job_id}") as response:
                await problem_of(response, 404)
        async with web_client.get(f"/v1/jobs/{job_id}") as response:
            await problem_of(response, 404)
    await next_job_works(web_client, make_wav(2.0))


async def test_what_is_no_recording_becomes_a_job_that_failed(
    web_client: WebClient, make_wav: MakeWav, tmp_path: Path
) -> None:
    """Otherwise the sender of a text file waits for a transcript of it."""
    path = tmp_path / "notes.mp3"
    path.write_text("not a recording " * 1000)
    job_id = await submit(web_client, path)
    frame = await end(web_client, job_id)
    assert frame.error
    assert frame.error.code == "undecodable"
    assert frame.error.message in frame.message
    async with web_client.get(f"/v1/jobs/{job_id}/transcript") as response:
        assert (response.status, await response.text()) == (200, "")
    await next_job_works(web_client, make_wav(2.0))


async def test_a_worker_that_dies_does_not_take_the_server_along(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise one bad recording ends everybody's connection."""
    job_id = await submit(web_client, make_wav(2.0), Script(die_at=0).fields())
    frame = await end(web_client, job_id)
    assert frame.error
    assert frame.error.code == "worker_died"
    await next_job_works(web_client, make_wav(2.0))


async def test_a_job_is_done_again_with_all_that_it_was(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a recording of hours is sent again because of a moment's trouble."""
    options = Script(fail_at=1).fields() | {"language": "de", "priority": "high"}
    failed = await submit(web_client, make_wav(2.0), options)
    assert (await end(web_client, failed)).error
    async with web_client.post(f"/v1/jobs/{failed}/retry") as response:
        frame = await frame_of(response, 202)
        assert response.headers["Location"] == f"/v1/jobs/{frame.job_id}"
    before, again = (transcriber_of(web_client).get(each) for each in (failed, frame.job_id))
    assert failed != frame.job_id
    assert (again.name, again.options) == (before.name, before.options)
    await web_client.delete(f"/v1/jobs/{failed}")
    last = await end(web_client, frame.job_id)
    assert last.error, "it has a recording of its own"
    assert last.error.code == "work_failed"


# -- the recording -----------------------------------------------------------------------------


async def test_a_recording_can_be_heard_from_anywhere_in_it(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a player has to load hours to play their last minute."""
    recording = make_wav(2.0)
    whole = recording.read_bytes()
    async with web_client.post("/v1/jobs", data=form_of(recording, QUICK)) as response:
        job_id = (await frame_of(response, 202)).job_id
    for wanted, status, part in (
        (None, 200, whole),
        ("bytes=100-199", 206, whole[100:200]),
        ("bytes=-50", 206, whole[-50:]),
    ):
        headers = {"Range": wanted} if wanted else {}
        async with web_client.get(f"/v1/jobs/{job_id}/audio", headers=headers) as response:
            assert response.status == status
            assert await response.read() == part
            assert response.headers["Accept-Ranges"] == "bytes"
            assert response.content_type in {"audio/wav", "audio/x-wav"}
            assert recording.name in response.headers["Content-Disposition"]
    async with web_client.get(
        f"/v1/jobs/{job_id}/audio", headers={"Range": "bytes=999999999-"}
    ) as response:
        assert response.status == 416


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.js", "a.pdf", "a", 'a"\r\nX: y.xml'])
async def test_what_was_sent_never_becomes_a_page_of_ours(
    web_client: WebClient, make_wav: MakeWav, name: str
) -> None:
    """Otherwise a recording that is none runs with all that our own page may do."""
    query = QUICK | {"filename": name}
    async with web_client.post("/v1/jobs", params=query, data=b"<script></script>") as response:
        job_id = (await frame_of(response, 202)).job_id
    async with web_client.get(f"/v1/jobs/{job_id}/audio") as response:
        assert response.content_type == "application/octet-stream"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Disposition"].startswith("attachment;")
        assert "X" not in response.headers


async def test_a_recording_that_was_not_kept_is_gone(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise a player shows an error of which nobody knows the reason."""
    config = Config(model=("scripted",), workers=1, data_dir=tmp_path, keep_audio=False)
    transcriber = Transcriber(config, loader=scripted.load)
    async with WebClient(TestServer(create_app(transcriber=transcriber))) as client:
        job_id = await submit(client, make_wav(2.0))
        await end(client, job_id)
        await until(lambda: not (tmp_path / "spool" / job_id).exists())
        for method, what in (("GET", "audio"), ("POST", "retry")):
            async with client.request(method, f"/v1/jobs/{job_id}/{what}") as response:
                problem = await problem_of(response, 410)
            assert problem["code"] == "recording_lost"
            assert "--no-keep-audio" in problem["detail"]


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_an_unknown_job_is_not_found(web_client: WebClient, method: str, path: str) -> None:
    """Otherwise a client waits for a job that does not exist, or takes it for a mistake of ours."""
    async with web_client.request(method, path) as response:
        problem = await problem_of(response, 404)
    assert problem["code"] == "job_not_found"
    assert "nope" in problem["detail"]


async def test_every_route_of_a_job_is_in_the_table_above(web_client: WebClient) -> None:
    """Otherwise a new route goes untested."""
    routes = {
        (route.method, route.resource.canonical)
        for route in web_client.app.router.routes()
        if route.resource and "{job_id}" in route.resource.canonical
    }
    assert {(method, path.replace("{job_id}", "nope")) for method, path in routes} <= set(ROUTES)


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/jobs/", "/v1/jobs/a/b", "/ws/", "/%00"])
async def test_an_unknown_route_is_not_found(web_client: WebClient, path: str) -> None:
    """Otherwise a mistyped path shows a page of HTML to a program."""
    async with web_client.get(path) as response:
        assert (await problem_of(response, 404))["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", {"GET", "POST"}),
        ("POST", "/v1/jobs/nope", {"DELETE", "GET"}),
        ("GET", "/v1/jobs/nope/cancel", {"POST"}),
        ("DELETE", "/health", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_refused(
    web_client: WebClient, method: str, path: str, allowed: set[str]
) -> None:
    """Otherwise a client is not told how to ask (RFC 9110, section 15.5.6)."""
    async with web_client.request(method, path) as response:
        problem = await problem_of(response, 405)
        assert set(response.headers["Allow"].split(",")) == allowed
    assert problem["code"] == "method_not_allowed"


# -- the server --------------------------------------------------------------------------------


def own_client(data_dir: Path, *models: str) -> WebClient:
    """Return a client of an application that is not started yet, with one worker."""
    config = Config(model=models or ("scripted",), workers=1, data_dir=data_dir)
    transcriber = Transcriber(config, loader=scripted.load)
    return WebClient(TestServer(create_app(transcriber=transcriber)))


async def test_it_says_when_it_is_ready(tmp_path: Path) -> None:
    """Otherwise an orchestrator sends work too early, or kills a server that is loading."""
    async with own_client(tmp_path, "slow") as client:
        async with client.get("/ready") as response:
            assert (await problem_of(response, 503))["code"] == "loading_model"
        async with client.get("/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        await transcriber_of(client).ready()
        async with client.get("/ready") as response:
            assert (response.status, await response.json()) == (200, {"status": "ready"})


async def test_it_says_why_it_is_not_ready(tmp_path: Path) -> None:
    """Otherwise nobody learns why a server never becomes ready."""
    async with own_client(tmp_path, "missing") as client:
        await until(lambda: transcriber_of(client).model_error)
        async with client.get("/ready") as response:
            problem = await problem_of(response, 503)
            assert problem["code"] == "model_not_available"
            assert "run something" in problem["detail"]
        async with client.get("/health") as response:
            assert response.status == 200


async def test_a_peer_that_has_gone_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise every phone in a tunnel writes a traceback into the log, and hides real ones."""

    async def handler(request: web.Request) -> web.StreamResponse:
        raise ClientConnectionResetError("Cannot write to closing transport")

    await problems(make_mocked_request("GET", "/"), handler)
    assert not caplog.messages


async def test_it_answers_while_every_worker_is_busy(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise an orchestrator kills a server because it works."""
    jobs = [await start(web_client, make_wav(2.0)) for _ in range(2)]
    began = time.monotonic()
    for _ in range(20):
        async with web_client.get("/health") as response:
            assert response.status == 200
    assert time.monotonic() - began < 5
    for job_id in jobs:
        async with web_client.delete(f"/v1/jobs/{job_id}") as response:
            assert response.status == 204


async def test_it_fits_into_another_application(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise it cannot be built into a service of one's own."""
    config = Config(model=("scripted",), workers=1, data_dir=tmp_path)
    transcriber = Transcriber(config, loader=scripted.load)
    app = web.Application()
    app.add_subapp("/stt", create_app(transcriber=transcriber))
    async with WebClient(TestServer(app)) as client:
        body = make_wav(2.0).read_bytes()
        async with client.post("/stt/v1/jobs", params=QUICK, data=body) as response:
            frame = await frame_of(response, 202)
            location = response.headers["Location"]
        assert location == f"/stt/v1/jobs/{frame.job_id}"
        async with client.ws_connect(f"/stt/ws/transcription/{frame.job_id}") as socket:
            received = [frames.decode(message.data) async for message in socket]
        check(received)
        async with client.get(location) as response:
            assert (await frame_of(response)).status == "completed"
        async with client.get("/stt/v1/jobs/nope") as response:
            await problem_of(response, 404)
        async with client.get("/stt/nope") as response:
            await problem_of(response, 404)
    assert not transcriber.is_ready, "it stops with its parent"


async def test_many_uploads_at_once_are_all_taken(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise the first busy hour loses recordings."""
    job_ids = await asyncio.gather(*(submit(web_client, make_wav(2.0)) for _ in range(20)))
    assert len(set(job_ids)) == 20
    for job_id, following in itertools.pairwise(job_ids):
        assert (await end(web_client, job_id)).status == "completed"
        assert following != job_id
    assert (await end(web_client, job_ids[-1])).status == "completed"
