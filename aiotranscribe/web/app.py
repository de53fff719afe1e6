"""The aiohttp application: every route, and the life of the transcriber behind them."""

import asyncio
import http
from collections.abc import AsyncIterator

from aiohttp import web

from aiotranscribe.config import Config
from aiotranscribe.errors import Unauthorized
from aiotranscribe.service import Transcriber
from aiotranscribe.web import (
    auth,
    docs,
    jobs,
    limits,
    openai,
    origins,
    page,
    proxies,
    uploads,
    watch,
)
from aiotranscribe.web.describe import Description, describes
from aiotranscribe.web.errors import problem, problems
from aiotranscribe.web.jobs import TRANSCRIBER

# What every answer says, unless its handler says otherwise.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


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
    app = web.Application(middlewares=[problems, limits.leave_room, origins.guard, auth.ask])
    app[TRANSCRIBER] = transcriber = transcriber or Transcriber(config)
    config = transcriber.config
    app[auth.TOKENS] = auth.Tokens(config)
    app[origins.ALLOWED] = origins.parse(config.allow_origin)
    app[proxies.TRUSTED] = proxies.parse(config.trusted_proxy)
    app[limits.SOCKETS] = limits.Sockets(config.max_sockets_per_client)
    app[watch.WRITING] = set()
    app[watch.LISTENING] = set()
    app.cleanup_ctx.append(_run_transcriber)
    app.on_shutdown.append(_end_sockets)
    app.on_response_prepare.extend(
        [_protect, limits.bound_stalls, origins.let_read, openai.name_job]
    )
    routes = [
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
        web.post("/v1/audio/transcriptions", openai.transcribe),
        web.post("/v1/audio/translations", openai.translate),
        web.get("/v1/models", openai.list_models, allow_head=False),
        web.get("/v1/models/{model:.+}", openai.show_model, allow_head=False),
        web.get("/openapi.json", docs.openapi, allow_head=False),
        web.get("/docs", docs.docs, allow_head=False),
        web.get("/health", health),
        web.get("/ready", ready),
        web.get("/metrics", metrics, allow_head=False),
        web.get("/", page.page),
        web.get("/static/{name}", page.static),
    ]
    for route in routes:
        route.kwargs["expect_handler"] = uploads.expect
    app.add_routes(routes)
    return app


def under(path: str, app: web.Application) -> web.Application:
    """Return an application that has ``app`` under a path, or ``app`` if the path is empty."""
    if not path.strip("/"):
        return app
    outer = web.Application(middlewares=[problems])
    outer.on_response_prepare.append(_protect)
    outer.add_subapp(f"/{path.strip('/')}", app)
    return outer


@auth.open_to_all
@describes(Description(answers={200: [dict[str, str]]}))
async def health(request: web.Request) -> web.Response:
    """``GET /health``: the server answers."""
    return web.json_response({"status": "ok"})


@auth.open_to_all
@describes(Description(answers={200: [dict[str, str]]}))
async def ready(request: web.Request) -> web.Response:
    """``GET /ready``: 200 once a worker has its model, 503 until then."""
    transcriber = request.app[TRANSCRIBER]
    if transcriber.is_ready:
        return web.json_response({"status": "ready"})
    if error := transcriber.model_error:
        return problem(503, error.code, error.message)
    return problem(503, "loading_model", "no worker has its model yet; try again in a moment")


@auth.open_to_all
@describes(Description(answers={200: ["text/plain"]}))
async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``: for Prometheus; from elsewhere than this machine only with a token."""
    if not (auth.is_known(request) or proxies.is_local(request)):
        raise Unauthorized("from another machine, and through a proxy, /metrics wants a token")
    answer = web.Response(body=request.app[TRANSCRIBER].metrics())
    answer.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
    return answer


async def _protect(request: web.Request, response: web.StreamResponse) -> None:
    """Say to browsers what they need not do with an answer (signal ``on_response_prepare``)."""
    if response.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)


async def _run_transcriber(app: web.Application) -> AsyncIterator[None]:
    async with app[TRANSCRIBER]:
        yield


async def _end_sockets(app: web.Application) -> None:
    """Let every socket say goodbye, all at the same time, under one short deadline."""
    app[TRANSCRIBER].dismiss()
    for listening in app[watch.LISTENING]:
        listening.reschedule(0)
    asyncio.get_running_loop().call_later(watch.GOODBYE_S, watch.abort_stuck, app)
