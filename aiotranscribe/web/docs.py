"""What every route takes and answers, for people: a page that needs nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from aiohttp import web

from aiotranscribe.web.describe import Description, Schema, describes, document

_STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
details { border-bottom: 1px solid #8884; padding: .5rem 0 }
summary { cursor: pointer }
table { border-collapse: collapse; margin: .5rem 0 1rem 1rem }
td, th { border-top: 1px solid #8884; padding: .2rem .8rem .2rem 0; text-align: left;
  vertical-align: top }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'"


@describes(Description(answers={200: ["application/json"]}))
async def openapi(request: web.Request) -> web.Response:
    """``GET /openapi.json``: this list, for programs (OpenAPI 3.1)."""
    return web.json_response(document(request.app))


@describes(Description(answers={200: ["text/html"]}))
async def docs(request: web.Request) -> web.Response:
    """``GET /docs``: this list, for people."""
    headers = {"Content-Security-Policy": _POLICY}
    return web.Response(
        text=render(document(request.app)), content_type="text/html", headers=headers
    )


def render(openapi: Schema) -> str:
    """Return an OpenAPI document as a page."""
    routes = (
        _route(method, path, operation)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    )
    types = (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code> '
        f"{escape(' '.join(schema.get('description', '').split()))}</summary>"
        f"{_table(schema.get('properties', {}).items()) or _type(schema)}</details>"
        for name, schema in openapi["components"]["schemas"].items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>aiotranscribe</title>'
        f"<style>{_STYLE}</style><h1>aiotranscribe {escape(openapi['info']['version'])}</h1>"
        '<p>Everything that the server can be asked; <a href="openapi.json">for programs</a> '
        f"too.</p>{''.join(routes)}<h2>Types</h2>{''.join(types)}</html>\n"
    )


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    takes = [(f"{each['name']} ({each['in']})", each["schema"]) for each in operation["parameters"]]
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        fields = body["schema"].get("properties", {"body": body["schema"]})
        takes += [(f"{name} ({media_type})", schema) for name, schema in fields.items()]
    answers = [
        (f"{status} {media_type}", body["schema"])
        for status, response in operation["responses"].items()
        for media_type, body in response.get("content", {"": {"schema": {}}}).items()
    ]
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
        f"{escape(operation['summary'])}</summary>{_table(takes)}"
        f"<p>Answers:</p>{_table(answers)}</details>"
    )


def _table(rows: Iterable[tuple[str, Schema]]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{_type(schema)}" for name, schema in rows
    )
    return f"<table>{cells}</table>" if cells else ""


def _type(schema: Schema) -> str:
    """A schema in a few words."""
    if ref := schema.get("$ref"):
        name = escape(ref.rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if choices := schema.get("anyOf"):
        return " or ".join(map(_type, choices))
    if values := schema.get("enum"):
        return ", ".join(f"<code>{escape(str(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or {})}"
    if event := schema.get("properties", {}).get("data", {}).get("contentSchema"):
        return f"events of {_type(event)}"
    limits = [f"{key} {schema[key]}" for key in schema if key.startswith(("min", "max"))]
    if schema.get("default") not in {None, ""}:
        limits.append(f"default {str(schema['default']).lower()}")
    return escape(", ".join([schema.get("format") or schema.get("type", ""), *limits]))
