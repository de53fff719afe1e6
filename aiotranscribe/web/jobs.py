"""Jobs over HTTP: submit, look, fetch, listen, cancel, retry, delete."""

import asyncio
import mimetypes
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated
from urllib.parse import quote

import msgspec
from aiohttp import web
from msgspec import Meta

from aiotranscribe import frame as frames
from aiotranscribe.exports import FORMATS, Format, Shape, Verbose, export
from aiotranscribe.frame import Frame
from aiotranscribe.job import Job, Options, Status, parse
from aiotranscribe.sentences import check, negotiate
from aiotranscribe.service import Transcriber
from aiotranscribe.transcript import Transcript
from aiotranscribe.web import uploads
from aiotranscribe.web.auth import client_of
from aiotranscribe.web.describe import Description, describes
from aiotranscribe.web.uploads import Upload

#: Where the handlers find the transcriber of their application.
TRANSCRIBER = web.AppKey("transcriber", Transcriber)

# Media types of all but JSON.
_TEXTS = sorted({media_type for media_type, _ in FORMATS.values()} - {"application/json"})


class FrameQuery(msgspec.Struct, frozen=True, kw_only=True):
    """How to ask for frames."""

    #: Language of the messages; by default that of the browser.
    lang: str | None = None


class UploadQuery(Options, frozen=True, kw_only=True):
    """What may come with the bare bytes of a recording."""

    filename: str | None = None
    lang: str | None = None


class WatchQuery(FrameQuery, frozen=True, kw_only=True):
    """From where on to watch a job."""

    #: The cursor of the last frame.
    since: str | None = None


class WaitQuery(WatchQuery, frozen=True, kw_only=True):
    """How to ask for the frame of a job."""

    #: Seconds to wait for news; proxies cut a request that takes much longer.
    wait: Annotated[int, Meta(ge=0, le=60)] = 0


class ListQuery(FrameQuery, frozen=True, kw_only=True):
    """Which jobs to list."""

    status: Status | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    #: Only those that are older than this one.
    before: str | None = None


class TranscriptQuery(Shape, frozen=True, kw_only=True):
    """How to write a transcript."""

    format: Format = "txt"
    #: Before the job's end too.
    partial: bool = False


class Listing(msgspec.Struct, frozen=True):
    """Jobs, newest first, without segments. More: ``before=`` the last one's ``job_id``."""

    jobs: Sequence[Frame]


@describes(Description(query=UploadQuery, form=Options, answers={202: [Frame]}))
async def submit(request: web.Request) -> web.Response:
    """``POST /v1/jobs``: take a recording; 202 once it is safe."""
    transcriber, language = request.app[TRANSCRIBER], language_of(request)
    upload = Upload()
    async with transcriber.arrival(client_of(request)) as arrival:
        await uploads.receive(request, arrival, upload, transcriber.check, transcriber.config)
        job = await transcriber.accept(arrival, name=upload.name, options=upload.options())
    return await _accepted(request, job, language)


@describes(Description(query=FrameQuery, answers={202: [Frame]}))
async def retry(request: web.Request) -> web.Response:
    """``POST /v1/jobs/{job_id}/retry``: a new job with the same recording and options; 202."""
    transcriber, language = request.app[TRANSCRIBER], language_of(request)
    return await _accepted(
        request, await transcriber.retry(_job_id(request), client_of(request)), language
    )


@describes(Description(query=ListQuery, answers={200: [Listing]}))
async def list_jobs(request: web.Request) -> web.Response:
    """``GET /v1/jobs``: newest first; ``status=``, ``limit=``, ``before=`` a job."""
    transcriber, language = request.app[TRANSCRIBER], language_of(request)
    query = parse(request.query, ListQuery)
    jobs = transcriber.jobs()
    if query.before:
        jobs = jobs[jobs.index(transcriber.get(query.before)) + 1 :]
    if query.status:
        jobs = [job for job in jobs if job.status is query.status]
    listed = [transcriber.summary(job.id, language) for job in jobs[: query.limit]]
    return _json(msgspec.json.encode(Listing(listed)))


@describes(Description(query=WaitQuery, answers={200: [Frame]}))
async def show(request: web.Request) -> web.Response:
    """``GET /v1/jobs/{job_id}?since=&wait=``: what a watcher receives, at once or with the news."""
    query = parse(request.query, WaitQuery)
    frame = await request.app[TRANSCRIBER].frame(
        _job_id(request), query.since, wait_s=query.wait, language=language_of(request)
    )
    return _json(frames.encode(frame))


@describes(Description(query=FrameQuery, answers={200: [Frame]}))
async def cancel(request: web.Request) -> web.Response:
    """``POST /v1/jobs/{job_id}/cancel``: stop it, keeping the text so far."""
    transcriber, language = request.app[TRANSCRIBER], language_of(request)
    job = await transcriber.cancel(_job_id(request))
    return _json(frames.encode(await transcriber.frame(job.id, language=language)))


@describes(Description(answers={204: []}))
async def delete(request: web.Request) -> web.Response:
    """``DELETE /v1/jobs/{job_id}``: stop it if need be, and erase it."""
    await request.app[TRANSCRIBER].delete(_job_id(request))
    return web.Response(status=204)


@describes(Description(query=TranscriptQuery, answers={200: [Transcript, Verbose, *_TEXTS]}))
async def transcript(request: web.Request) -> web.Response:
    """``GET /v1/jobs/{job_id}/transcript?format=``: the text as a file."""
    query = parse(request.query, TranscriptQuery)
    text = await request.app[TRANSCRIBER].transcript(_job_id(request), partial=query.partial)
    return await file_of(text, query.format, query)


async def file_of(transcript: Transcript, name: str, shape: Shape) -> web.Response:
    """Return a transcript as a file; a long one is written without holding anybody up."""
    text = await asyncio.to_thread(export, transcript, name, shape)
    return web.Response(text=text, content_type=FORMATS[name][0], charset="utf-8")


@describes(
    Description(answers={200: ["application/octet-stream"], 206: ["application/octet-stream"]})
)
async def audio(request: web.Request) -> web.FileResponse:
    """``GET /v1/jobs/{job_id}/audio``: the recording, or the part that ``Range`` asks for."""
    transcriber = request.app[TRANSCRIBER]
    path = await transcriber.recording(_job_id(request))
    name = transcriber.get(_job_id(request)).name
    # Of our origin is what we say it is: a page that was sent as a recording must never be one.
    guess, _ = mimetypes.guess_type(f"name{PurePath(name).suffix}")  # a whole name may be a URL
    is_media = (guess or "").startswith(("audio/", "video/"))
    headers = {
        "Content-Type": guess if guess and is_media else "application/octet-stream",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    return web.FileResponse(path, headers=headers)


def language_of(request: web.Request) -> str:
    """Return the language of messages: what the query says, or else the browser."""
    if language := request.query.get("lang"):
        return check(language)
    return negotiate(request.headers.get("Accept-Language", ""))


def _json(body: bytes, status: int = 200) -> web.Response:
    headers = {"Vary": "Accept-Language"}
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


async def _accepted(request: web.Request, job: Job, language: str) -> web.Response:
    frame = await request.app[TRANSCRIBER].frame(job.id, language=language)
    response = _json(frames.encode(frame), status=202)
    response.headers["Location"] = str(request.app.router["job"].url_for(job_id=job.id))
    return response


def _job_id(request: web.Request) -> str:
    return request.match_info["job_id"]
