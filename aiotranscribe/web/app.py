"""The aiohttp application: every route, and the life of the transcriber behind them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from aiotranscribe.config import Config
from aiotranscribe.service import Transcriber
from aiotranscribe.web import docs, jobs, openai, origins, watch
from aiotranscribe.web.describe import Description, describes
from aiotranscribe.web.errors import problem, problems
from aiotranscribe.web.jobs import TRANSCRIBER

_STATIC = Path(__file__).parent / "static"


def create_app(
    config: Config | None = None, *, transcriber: Transcriber | None = None
) -> web.Application:
    """Return an application to run, or to put under a path of your own.

    It starts and stops its transcriber with itself::

        app.add_subapp("/stt", create_app(Config(model=("tiny.en",))))

    Args:
        config: The settings.
        transcriber: One that you have not entered yet, in place of one made from ``config``;
            the application enters and leaves it.
    """
    app = web.Application(middlewares=[problems, origins.guard])
    app[TRANSCRIBER] = transcriber or Transcriber(config)
    app[watch.WRITING] = set()
    app[watch.LISTENING] = set()
    app.cleanup_ctx.append(_run_transcriber)
    app.on_shutdown.append(_end_sockets)
    app.on_response_prepare.append(origins.let_read)
    app.on_response_prepare.append(openai.name_job)
    app.add_routes(
        [
            web.post("/v1/jobs", jobs.submit),
            web.get("/v1/jobs", jobs.list_jobs, allow_head=False),
            web.get("/v1/jobs/{job_id}", jobs.show, name="job", allow_head=False),
            web.delete("/v1/jobs/{job_id}", jobs.delete),
            web.post("/v1/jobs/{job_id}/cancel", jobs.cancel),
            web.get("/v1/jobs/{job_id}/transcript", jobs.transcript, allow_head=False),
            web.get("/v1/jobs/{job_id}/events", watch.events, allow_head=False),
            web.get("/ws/transcription", watch.watch_many, allow_head=False),
            web.get("/ws/transcription/{job_id}", watch.watch, allow_head=False),
            web.post("/v1/audio/transcriptions", openai.transcribe),
            web.post("/v1/audio/translations", openai.translate),
            web.get("/v1/models", openai.list_models, allow_head=False),
            web.get("/v1/models/{model:.+}", openai.show_model, allow_head=False),
            web.get("/openapi.json", docs.openapi, allow_head=False),
            web.get("/docs", docs.docs, allow_head=False),
            web.get("/health", health),
            web.get("/ready", ready),
            web.get("/", page),
            web.get("/static/aiotranscribe.js", module),
        ]
    )
    return app


@describes(Description(answers={200: [dict[str, str]]}))
async def health(request: web.Request) -> web.Response:
    """``GET /health``: the server answers."""
    return web.json_response({"status": "ok"})


@describes(Description(answers={200: [dict[str, str]]}))
async def ready(request: web.Request) -> web.Response:
    """``GET /ready``: 200 once a worker has its model, 503 until then."""
    transcriber = request.app[TRANSCRIBER]
    if transcriber.is_ready:
        return web.json_response({"status": "ready"})
    if error := transcriber.model_error:
        return problem(503, error.code, error.message)
    return problem(503, "loading_model", "no worker has its model yet; try again in a moment")


@describes(Description(answers={200: ["text/html"]}))
async def page(request: web.Request) -> web.FileResponse:
    """``GET /``: a page to try the server with; the same file as ``examples/browser.html``."""
    return web.FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})


@describes(Description(answers={200: ["text/javascript"]}))
async def module(request: web.Request) -> web.FileResponse:
    """``GET /static/aiotranscribe.js``: what a page needs to submit and watch."""
    # Browsers run a module only if it says what it is, which is not left to the system's tables.
    headers = {"Cache-Control": "no-cache", "Content-Type": "text/javascript"}
    return web.FileResponse(_STATIC / "aiotranscribe.js", headers=headers)


async def _run_transcriber(app: web.Application) -> AsyncIterator[None]:
    async with app[TRANSCRIBER]:
        yield


async def _end_sockets(app: web.Application) -> None:
    """Let every socket say goodbye, all at the same time, under one short deadline."""
    app[TRANSCRIBER].dismiss()
    for listener in app[watch.LISTENING]:
        listener.cancel()
    asyncio.get_running_loop().call_later(watch.GOODBYE_S, watch.abort_stuck, app)
