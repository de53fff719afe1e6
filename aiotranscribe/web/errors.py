"""The one place where errors become HTTP answers.

They are problem details (RFC 9457); on the routes that OpenAI's clients know, the object that
those understand. Whoever makes an answer makes a problem: it is translated on its way out.
"""

import http
import logging
import re
from collections.abc import Iterator

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from aiotranscribe.errors import AiotranscribeError, Problem

log = logging.getLogger(__name__)

# nginx has this number for it, which no one receives.
_PEER_GONE = 499
#: Media type of a problem.
PROBLEM = "application/problem+json"
# Where OpenAI's clients ask; an application may be mounted under a path of its own.
_OPENAI = re.compile(r"/v1/(audio|models)(/|$)")
# Those that OpenAI gives to its errors; the rest by the class of the status.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Our names of what they call otherwise.
_PARAMS = {"initial_prompt": "prompt", "word_timestamps": "timestamp_granularities"}


class ProblemDetails(msgspec.Struct, frozen=True):
    """Why there is no other answer (RFC 9457)."""

    type: str
    title: str
    status: int
    #: A sentence for people; it may change.
    detail: str
    #: For programs; it stays.
    code: str


class OpenAIError(msgspec.Struct, frozen=True):
    """What OpenAI's clients want to know of an error."""

    message: str
    type: str
    #: The field at fault, if it is one.
    param: str | None
    code: str


class OpenAIErrors(msgspec.Struct, frozen=True):
    """Why there is no other answer, as OpenAI's clients read it."""

    error: OpenAIError


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error with a problem; an unforeseen one shows no insides."""
    try:
        response = await handler(request)
    except Exception as error:
        response = _answer(request, error)
    if not (isinstance(response, web.Response) and response.content_type == PROBLEM):
        return response
    if is_openai(request.path) and isinstance(response.body, bytes):
        told = msgspec.json.decode(response.body, type=ProblemDetails)
        status, answer = as_openai(told)
        response.set_status(status)
        response.body = msgspec.json.encode(answer)
        response.content_type = "application/json"
    return response


def problem(status: int, code: str, detail: str) -> web.Response:
    """Return an error answer: ``application/problem+json`` with our stable ``code``."""
    body = msgspec.json.encode(_details(status, code, detail))
    return web.Response(body=body, status=status, content_type=PROBLEM)


def details(error: Problem) -> ProblemDetails:
    """Return the problem that reports why a job failed."""
    kinds = (kind for kind in _tree(AiotranscribeError) if kind.code == error.code)
    status = next((kind.http_status for kind in kinds), AiotranscribeError.http_status)
    return _details(status, error.code, error.message)


def is_openai(path: str) -> bool:
    """Whether OpenAI's clients ask there."""
    return bool(_OPENAI.search(path))


def as_openai(told: ProblemDetails) -> tuple[int, OpenAIErrors]:
    """Return a problem as OpenAI's clients know it: its status, and the object.

    What can be wrong with a field is 400 there, and the message begins with the field's name.
    """
    status, code, detail = 400 if told.status == 422 else told.status, told.code, told.detail
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    named = (
        re.match(r"(\w+)\S*: ", detail) if code in {"invalid_option", "model_not_found"} else None
    )
    param = _PARAMS.get(named[1], named[1]) if named else None
    return status, OpenAIErrors(OpenAIError(detail, kind, param, code))


def _details(status: int, code: str, detail: str) -> ProblemDetails:
    return ProblemDetails("about:blank", http.HTTPStatus(status).phrase, status, detail, code)


def _tree(error: type[AiotranscribeError]) -> Iterator[type[AiotranscribeError]]:
    yield error
    for child in error.__subclasses__():
        yield from _tree(child)


def _answer(request: web.Request, error: Exception) -> web.Response:
    if isinstance(error, AiotranscribeError):
        answer = problem(error.http_status, error.code, str(error))
        answer.headers.update(error.http_headers)
        if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            answer.force_close()  # where there is no room, connections do not stay
        return answer
    if isinstance(error, web.HTTPException):
        if error.status < 400:
            raise error
        code = http.HTTPStatus(error.status).name.lower()
        answer = problem(error.status, code, _sentence(request, error))
        if allow := error.headers.get("Allow"):
            answer.headers["Allow"] = allow
        return answer
    if isinstance(error, ConnectionError):  # the peer has gone: nobody hears an answer
        return web.Response(status=_PEER_GONE)
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return problem(500, "internal_error", "something went wrong here; the log says what")


def _sentence(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPNotFound):
        return f"there is nothing at {request.path}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.path} knows {', '.join(sorted(error.allowed_methods))} only"
    return error.reason
