"""The one place where errors become HTTP answers: problem details (RFC 9457)."""

import http
import logging

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from aiotranscribe.errors import AiotranscribeError

log = logging.getLogger(__name__)

# nginx has this number for it, which no one receives.
_PEER_GONE = 499


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error with a problem document; an unforeseen one shows no insides."""
    try:
        return await handler(request)
    except AiotranscribeError as error:
        answer = problem(error.http_status, error.code, str(error))
        answer.headers.update(error.http_headers)
        return answer
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = http.HTTPStatus(error.status).name.lower()
        answer = problem(error.status, code, _sentence(request, error))
        if allow := error.headers.get("Allow"):
            answer.headers["Allow"] = allow
        return answer
    except ConnectionError:  # the peer has gone, wherever that was noticed: nobody hears an answer
        return web.Response(status=_PEER_GONE)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return problem(500, "internal_error", "something went wrong here; the log says what")


def problem(status: int, code: str, detail: str) -> web.Response:
    """Return an error answer: ``application/problem+json`` with our stable ``code``."""
    body = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/problem+json"
    )


def _sentence(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPNotFound):
        return f"there is nothing at {request.path}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.path} knows {', '.join(sorted(error.allowed_methods))} only"
    return error.reason
