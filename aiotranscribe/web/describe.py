"""What every route takes and answers, said beside its handler; and the OpenAPI document of it."""

import http
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from aiotranscribe import __version__
from aiotranscribe.web.errors import PROBLEM, OpenAIErrors, ProblemDetails, is_openai

H = TypeVar("H", bound=Handler)
Schema = dict[str, Any]
#: A body: JSON of a type, text of a media type, or what a media type has of a type.
Body = Any
#: Media type of server-sent events.
EVENTS = "text/event-stream"

_REF = "#/components/schemas/{name}"
_BINARY = {"type": "string", "format": "binary"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a route takes and answers; what it is for, the handler's docstring says."""

    #: By status, each with the bodies that it may have. Every route may also answer a problem.
    answers: Mapping[int, Sequence[Body]]
    #: The struct whose fields are the parameters of the query.
    query: type | None = None
    #: The struct whose fields are those of a form that has a ``file`` besides.
    form: type | None = None
    headers: Sequence[str] = ()


_DESCRIPTIONS: dict[Handler, Description] = {}


def describes(description: Description) -> Callable[[H], H]:
    """Say what the handler below takes and answers."""

    def decorate(handler: H) -> H:
        _DESCRIPTIONS[handler] = description
        return handler

    return decorate


def document(app: web.Application) -> Schema:
    """Return the OpenAPI document of an application's routes."""
    paths: dict[str, Schema] = {}
    types: Schema = {}
    for route in app.router.routes():
        description = _DESCRIPTIONS.get(route.handler)
        if description and route.resource and route.method != "HEAD":
            path = route.resource.canonical
            operation = _operation(route.handler, path, description, types)
            paths.setdefault(path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "aiotranscribe", "version": __version__},
        "paths": paths,
        "components": {"schemas": dict(sorted(types.items()))},
    }


def _operation(handler: Handler, path: str, description: Description, types: Schema) -> Schema:
    text = " ".join((handler.__doc__ or "").split())
    operation: Schema = {
        "operationId": handler.__name__,
        "summary": re.sub("^``.*?``: |``", "", text),
        "parameters": [
            *(
                _parameter("path", name, {"type": "string"})
                for name in re.findall(r"{(\w+)}", path)
            ),
            *(_parameter("header", name, {"type": "string"}) for name in description.headers),
        ],
        "responses": {
            str(status): {"description": _title(status), **_content(bodies, types)}
            for status, bodies in description.answers.items()
        },
    }
    if description.query:
        fields = _fields(description.query, types)
        operation["parameters"] += [_parameter("query", *field) for field in fields.items()]
    if description.form:
        form = {"file": _BINARY, **_fields(description.form, types)}
        content = {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": form, "required": ["file"]}
            },
            "application/octet-stream": {"schema": _BINARY},
        }
        operation["requestBody"] = {"required": True, "content": content}
    problem = OpenAIErrors if is_openai(path) else (PROBLEM, ProblemDetails)
    operation["responses"]["default"] = {
        "description": "Why there is no other answer",
        **_content([problem], types),
    }
    return operation


def _parameter(place: str, name: str, schema: Schema) -> Schema:
    return {"in": place, "name": name, "required": place == "path", "schema": schema}


def _content(bodies: Sequence[Body], types: Schema) -> Schema:
    """The bodies of an answer by media type."""
    found: dict[str, list[Schema]] = {}
    for body in bodies:
        media_type, kind = body if isinstance(body, tuple) else ("application/json", body)
        if isinstance(body, str):
            media_type, kind = body, str
        (schema,), parts = msgspec.json.schema_components([kind], ref_template=_REF)
        types.update(parts)
        if media_type == EVENTS:
            data = {"type": "string", "contentSchema": schema}
            schema = {"type": "object", "properties": {"data": data}}
        found.setdefault(media_type, []).append(schema)
    if not found:
        return {}
    return {
        "content": {
            media_type: {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
            for media_type, schemas in found.items()
        }
    }


def _fields(kind: type, types: Schema) -> dict[str, Schema]:
    """The fields of a struct as they are given: as text, or not at all."""
    _, parts = msgspec.json.schema_components([kind], ref_template=_REF)
    own = parts.pop(kind.__name__)
    types.update(parts)
    return {name: _given(schema) for name, schema in own["properties"].items()}


def _given(schema: Schema) -> Schema:
    """The schema without the null that stands for a field that is not given."""
    rest = {key: value for key, value in schema.items() if (key, value) != ("default", None)}
    choices = [each for each in rest.pop("anyOf", []) if each != {"type": "null"}]
    if len(choices) > 1:
        rest["anyOf"] = choices
    return {**rest, **(choices[0] if len(choices) == 1 else {})}


def _title(status: int) -> str:
    return http.HTTPStatus(status).phrase
