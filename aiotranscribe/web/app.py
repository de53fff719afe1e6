"""The aiohttp application: every route, and the life of the transcriber behind them."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from aiotranscribe.config import Config
from aiotranscribe.service import Transcriber
from aiotranscribe.web import jobs, origins, page, watch
from aiotranscribe.web.errors import problem, problems
from aiotranscribe.web.jobs import TRANSCRIBER


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
    app.add_routes(
        [
            web.post("/v1/jobs", jobs.submit),
            web.get("/v1/jobs", jobs.list_jobs, allow_head=False),
            web.get("/v1/jobs/{job_id}", jobs.show, name="job", allow_head=False),
            web.delete("/v1/jobs/{job_id}", jobs.delete),
            web.post("/v1/jobs/{job_id}/cancel", jobs.cancel),
            web.post("/v1/jobs/{job_id}/retry", jobs.retry),
            web.get("/v1/jobs/{job_id}/audio", jobs.audio, allow_head=False),
            web.get("/v1/jobs/{job_id}/transcript", jobs.transcript, allow_head=False),
            web.get("/v1/jobs/{job_id}/events", watch.events, allow_head=False),
            web.get("/ws/transcription", watch.watch_many, allow_head=False),
            web.get("/ws/transcription/{job_id}", watch.watch, allow_head=False),
            web.get("/health", health),
            web.get("/ready", ready),
            web.get("/", page.page),
            web.get("/static/{name}", page.static),
        ]
    )
    return app


async def health(request: web.Request) -> web.Response:
    """``GET /health``: the server answers."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """``GET /ready``: 200 once a worker has its model, 503 until then."""
    transcriber = request.app[TRANSCRIBER]
    if transcriber.is_ready:
        return web.json_response({"status": "ready"})
    if error := transcriber.model_error:
        return problem(503, error.code, error.message)
    return problem(503, "loading_model", "no worker has its model yet; try again in a moment")


async def _run_transcriber(app: web.Application) -> AsyncIterator[None]:
    async with app[TRANSCRIBER]:
        yield


async def _end_sockets(app: web.Application) -> None:
    """Let every socket say goodbye, all at the same time, under one short deadline."""
    app[TRANSCRIBER].dismiss()
    for listener in app[watch.LISTENING]:
        listener.cancel()
    asyncio.get_running_loop().call_later(watch.GOODBYE_S, watch.abort_stuck, app)
