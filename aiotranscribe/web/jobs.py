"""Jobs over HTTP: submit, look, fetch, listen, cancel, retry, delete."""

import mimetypes
from collections.abc import Sequence
from pathlib import PurePath
from urllib.parse import quote

import msgspec
from aiohttp import web

from aiotranscribe import frame as frames
from aiotranscribe.errors import InvalidOption
from aiotranscribe.exports import FORMATS, check_format, export
from aiotranscribe.frame import Frame
from aiotranscribe.job import Job, Status
from aiotranscribe.sentences import check, negotiate
from aiotranscribe.service import Transcriber
from aiotranscribe.web import uploads
from aiotranscribe.web.auth import client_of

#: Where the handlers find the transcriber of their application.
TRANSCRIBER = web.AppKey("transcriber", Transcriber)

_MOST_LISTED = 1000
# Proxies cut a request that takes much longer.
_LONGEST_WAIT_S = 60


class Listing(msgspec.Struct, frozen=True):
    """Jobs, newest first, without segments. More: ``before=`` the last one's ``job_id``."""

    jobs: Sequence[Frame]


async def submit(request: web.Request) -> web.Response:
    """``POST /v1/jobs``: take a recording; 202 once it is safe."""
    transcriber, language = request.app[TRANSCRIBER], language_of(request)
    async with transcriber.arrival(client_of(request)) as arrival:
        upload = await uploads.receive(request, arrival, transcriber.check, transcriber.config)
        job = await transcriber.accept(arrival, name=upload.name, options=upload.options())
    return await _accepted(request, job, language)


async def retry(request: web.Request) -> web.Response:
    """``POST /v1/jobs/{job_id}/retry``: a new job with the same recording and options; 202."""
    transcriber, language = request.app[TRANSCRIBER], language_of(request)
    return await _accepted(
        request, await transcriber.retry(_job_id(request), client_of(request)), language
    )


async def list_jobs(request: web.Request) -> web.Response:
    """``GET /v1/jobs``: newest first; ``status=``, ``limit=``, ``before=`` a job."""
    transcriber, language = request.app[TRANSCRIBER], language_of(request)
    query = request.query
    jobs = transcriber.jobs()
    if before := query.get("before"):
        jobs = jobs[jobs.index(transcriber.get(before)) + 1 :]
    if status := query.get("status"):
        jobs = [job for job in jobs if job.status is _status(status)]
    limit = _number("limit", query.get("limit", "100"), 1, _MOST_LISTED)
    listed = [transcriber.summary(job.id, language) for job in jobs[:limit]]
    return _json(msgspec.json.encode(Listing(listed)))


async def show(request: web.Request) -> web.Response:
    """``GET /v1/jobs/{job_id}?since=&wait=``: what a watcher receives, at once or with the news."""
    wait_s = _number("wait", request.query.get("wait", "0"), 0, _LONGEST_WAIT_S)
    since = request.query.get("since")
    frame = await request.app[TRANSCRIBER].frame(
        _job_id(request), since, wait_s=wait_s, language=language_of(request)
    )
    return _json(frames.encode(frame))


async def cancel(request: web.Request) -> web.Response:
    """``POST /v1/jobs/{job_id}/cancel``: stop it, keeping the text so far."""
    transcriber, language = request.app[TRANSCRIBER], language_of(request)
    job = await transcriber.cancel(_job_id(request))
    return _json(frames.encode(await transcriber.frame(job.id, language=language)))


async def delete(request: web.Request) -> web.Response:
    """``DELETE /v1/jobs/{job_id}``: stop it if need be, and erase it."""
    await request.app[TRANSCRIBER].delete(_job_id(request))
    return web.Response(status=204)


async def transcript(request: web.Request) -> web.Response:
    """``GET /v1/jobs/{job_id}/transcript?format=``: the text as a file."""
    name = check_format(request.query.get("format", "txt"))
    is_partial = request.query.get("partial", "").lower() in {"true", "1"}
    text = await request.app[TRANSCRIBER].transcript(_job_id(request), partial=is_partial)
    media_type, _ = FORMATS[name]
    return web.Response(text=export(text, name), content_type=media_type, charset="utf-8")


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


def _status(text: str) -> Status:
    try:
        return Status(text)
    except ValueError as error:
        raise InvalidOption(f"status: {text!r} is none of {', '.join(Status)}") from error


def _number(name: str, text: str, lowest: int, highest: int) -> int:
    if not (text.isdecimal() and len(text) < 10 and lowest <= int(text) <= highest):
        raise InvalidOption(f"{name}: {text!r} is not a number from {lowest} to {highest}")
    return int(text)
