"""What the server says of its routes: complete, true, and readable offline."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Browser

from aiotranscribe import create_app
from aiotranscribe.web.describe import document
from tests.conftest import Server
from tests.test_openai import client_of
from tests.waiting import LONG_S

MakeWav = Callable[[float], Path]


def routes(app: web.Application) -> set[tuple[str, str]]:
    """Return method and path of every route."""
    return {
        (route.method.lower(), route.resource.canonical)
        for route in app.router.routes()
        if route.resource and route.method != "HEAD"
    }


@pytest.mark.parametrize("prefix", ["", "/stt"])
def test_every_route_is_described_and_no_other(prefix: str) -> None:
    """Otherwise a program that reads the list misses a part of the server, or asks in vain."""
    app = create_app()
    if prefix:
        web.Application().add_subapp(prefix, app)
    told = document(app)
    described = {(method, path) for path, methods in told["paths"].items() for method in methods}
    assert described == routes(app)
    assert ("post", f"{prefix}/v1/audio/transcriptions") in described
    for methods in told["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert not operation["summary"].startswith("`")


def test_the_types_are_those_of_the_code() -> None:
    """Otherwise a client that is made from the list is made for another server."""
    told = document(create_app())
    schemas, paths = told["components"]["schemas"], told["paths"]
    assert {"Frame", "Segment", "Verbose", "ProblemDetails", "OpenAIErrors"} <= schemas.keys()
    parameters = {each["name"]: each for each in paths["/v1/jobs"]["get"]["parameters"]}
    assert parameters["limit"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "default": 100,
    }
    form = paths["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert form["properties"]["temperature"] == {"type": "number", "minimum": 0, "maximum": 1}


async def test_what_it_says_is_what_it_does(
    scripted_server: Server, make_wav: MakeWav, tmp_path: Path
) -> None:
    """Otherwise odd requests break the server, or its answers are not what it says they are."""
    with client_of(scripted_server) as client:  # a job, for the routes that want one
        client.audio.transcriptions.create(model="whisper-1", file=make_wav(2.0))
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_headers_conformance,response_schema_conformance,unsupported_method"
    )
    arguments = ["--checks", checks, "--max-examples", "20", "--seed", "1", "--no-color"]
    run = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        *["run", f"{scripted_server.url}/openapi.json", *arguments, "--continue-on-failure"],
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LONG_S):
        output, _ = await run.communicate()
    assert run.returncode == 0, output.decode()
    # All but the list itself, which it has read already.
    assert f"Tested: {len(routes(create_app())) - 1}".encode() in output


async def test_the_page_needs_nothing_from_elsewhere(
    scripted_server: Server, browser: Browser
) -> None:
    """Otherwise it is empty on a machine without the internet, which is where this runs."""
    page = await browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    await page.goto(f"{scripted_server.url}/docs")
    assert [url for url in asked if not url.endswith("/favicon.ico")] == [
        f"{scripted_server.url}/docs"
    ]
    assert [text for text in wrong if "favicon" not in text and "404" not in text] == []
    route = page.locator("details", has_text="/v1/audio/transcriptions")
    await route.locator("summary").click()
    assert await route.get_by_text("response_format").first.is_visible()
    assert await route.locator("table").first.evaluate("it => getComputedStyle(it).marginLeft") == (
        "16px"
    )
