"""The examples, run as a person would run them: real processes, real model, real browser."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, WebSocket, WebSocketRoute, expect
from pytest_aiohttp import AiohttpServer

from aiotranscribe import Client, Config, Transcriber, create_app
from tests import scripted
from tests.conftest import ROOT, SAMPLE, Server
from tests.line import Line, free_port
from tests.scripted import Script
from tests.waiting import LONG_S

EXAMPLES = ROOT / "examples"
PAGE = EXAMPLES / "browser.html"
# What examples/make_sample.sh says, as far as the model hears it without a mistake.
MIDDLE = "this recording was made by a machine, so that you have something to try"
END = "every word will still be here. Thank you for listening."

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

# Keeps every notification that was really shown; runs before the page's own script.
KEEP_NOTIFICATIONS = """
    const Real = Notification
    self.shown = []
    self.Notification = class extends Real {
        constructor(title, options) {
            super(title, options)
            this.addEventListener("show", () => shown.push(`${title}: ${options.body}`))
        }
    }
"""

# All that a page can try against the server at `url` and its job `id`.
ATTACK = """
    async ([url, id]) => {
        const tried = {}
        for (const method of ["GET", "POST"])
            for (const mode of ["cors", "no-cors"])
                tried[`${method} ${mode}`] = await fetch(`${url}/v1/jobs`, {method, mode})
                    .then(answer => answer.type, () => "refused")
        tried.form = await fetch(`${url}/v1/jobs/${id}/cancel`, {
            method: "POST", mode: "no-cors", body: new URLSearchParams({a: "b"})
        }).then(answer => answer.type, () => "refused")
        tried.socket = await new Promise(answer => {
            const socket = new WebSocket(`${url.replace("http", "ws")}/ws/transcription/${id}`)
            socket.onopen = () => answer("open")
            socket.onerror = () => answer("refused")
        })
        return tried
    }
"""
# An opaque answer is one that the page cannot look into.
IN_VAIN = {
    "GET cors": "refused",
    "GET no-cors": "opaque",
    "POST cors": "refused",
    "POST no-cors": "opaque",
    "form": "opaque",
    "socket": "refused",
}


@pytest.fixture
async def page(browser: Browser) -> Page:
    """A page of somebody who wants to be notified."""
    context = await browser.new_context(permissions=["notifications"])
    page = await context.new_page()
    await page.add_init_script(KEEP_NOTIFICATIONS)
    return page


async def upload(page: Page, recording: Path = SAMPLE) -> None:
    """Choose a file, as a person does."""
    await page.set_input_files("input[type=file]", recording)


async def wait_for_end(page: Page) -> str:
    """Wait until the bar is full and the page is ready for the next; return its text."""
    timeout = 1000 * LONG_S
    await expect(page.locator("progress")).to_have_js_property("value", 100, timeout=timeout)
    await expect(page.locator("input")).to_be_enabled(timeout=timeout)
    return await page.locator("main").inner_text()


async def expect_text_of(page: Page, client: Client, job_id: str) -> None:
    """Wait for the end; the page has to have the server's text."""
    text = await wait_for_end(page)
    frame = await client.get(job_id)
    assert frame.segments
    assert text == "".join(segment.text for segment in frame.segments).strip()


async def serve_elsewhere(aiohttp_server: AiohttpServer, url: str) -> str:
    """Serve the page from another port, for the server at ``url``; return where."""

    async def answer(request: web.Request) -> web.Response:
        edited = re.sub("const server = .*;", f'const server = "{url}/";', PAGE.read_text())
        return web.Response(text=edited, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", answer)
    return str((await aiohttp_server(app)).make_url("/"))


async def test_the_page_follows_a_recording_to_its_end(
    real_server: Server, page: Page, aiohttp_server: AiohttpServer
) -> None:
    """The example that people copy would not show a transcription."""
    sockets: list[WebSocket] = []

    def note(socket: WebSocket) -> None:
        sockets.append(socket)

    page.on("websocket", note)

    await page.goto(await serve_elsewhere(aiohttp_server, real_server.url))
    await upload(page)
    text = await wait_for_end(page)

    assert MIDDLE in text
    assert text.endswith(END)
    await expect(page.get_by_role("status")).to_have_text("100 % · Transcribed 0:18")
    await page.wait_for_function("shown.length")
    (notification,) = await page.evaluate("shown")
    assert notification.startswith("100 % · Transcribed 0:18: Hello")
    assert [socket.is_closed() for socket in sockets] == [True]


async def test_the_page_of_a_neighbour_comes_back_after_a_break(
    real_server: Server, page: Page, aiohttp_server: AiohttpServer
) -> None:
    """Behind a developer's own web server the page would not work, or lose or double words."""
    url = real_server.url
    sockets: list[str] = []

    def cut_the_first(route: WebSocketRoute) -> None:
        upstream = route.connect_to_server()
        sockets.append(route.url)

        async def forward(message: str | bytes) -> None:
            route.send(message)
            if json.loads(message)["segments"]:
                await route.close(code=1001)

        if len(sockets) == 1:
            upstream.on_message(forward)

    await page.route_web_socket("**/ws/transcription/**", cut_the_first)
    await page.goto(await serve_elsewhere(aiohttp_server, url))
    await upload(page)
    await wait_for_end(page)

    first, second = sockets
    assert "since" not in first
    assert re.search(r"\?since=\w+-[1-9]\d*$", second)
    async with Client(url) as client:
        await expect_text_of(page, client, re.findall("[0-9a-f]{32}", first)[0])
    await page.wait_for_function("shown.length == 1")


async def test_the_page_goes_on_when_it_is_reloaded(
    scripted_server: Server,
    page: Page,
    aiohttp_server: AiohttpServer,
    make_wav: Callable[[float], Path],
) -> None:
    """Who reloads the page, or opens it elsewhere, would never see the text of his recording."""
    url = await serve_elsewhere(aiohttp_server, scripted_server.url)
    await page.goto(url)
    async with Client(scripted_server.url) as client:
        await upload(page)
        await wait_for_end(page)
        sent = page.url.partition("#")[2]
        await expect_text_of(page, client, sent)
        await page.wait_for_function("shown.length == 1")

        script = Script(segments=60, delay=0.05)
        slow = (await client.submit(make_wav(2.0), script.options())).job_id
        await page.goto(f"{url}#{slow}")
        await expect(page.locator("main")).to_contain_text("pt 0.1")
        await expect(page.locator("input")).to_be_disabled()
        await page.reload()
        await expect(page.locator("main")).to_contain_text("pt 0.0")
        await expect_text_of(page, client, slow)
        await page.wait_for_function("shown.length == 1")
        await page.reload()
        await expect_text_of(page, client, slow)
        assert await page.evaluate("shown.length") == 0, "this is no news"

        await page.goto(f"{url}#{sent}")
        await expect_text_of(page, client, sent)
        await page.goto(f"{url}#nope")
        await expect(page.get_by_role("status")).to_have_text("there is no job 'nope'")
        await upload(page)
        await wait_for_end(page)


async def test_the_page_says_that_the_connection_is_lost(
    scripted_server: Server,
    page: Page,
    aiohttp_server: AiohttpServer,
    make_wav: Callable[[float], Path],
) -> None:
    """Who looks at a page in a tunnel would take the recording, or the server, for dead."""
    status = page.get_by_role("status")
    async with Line(scripted_server.url) as line, Client(scripted_server.url) as client:
        endless = Script(segments=10_000, delay=0.05).options()
        job_id = (await client.submit(make_wav(2.0), endless)).job_id
        url = await serve_elsewhere(aiohttp_server, line.url)
        await page.goto(f"{url}#{job_id}")
        await expect(page.locator("main")).to_contain_text("pt 0.0")
        line.is_up = False
        line.cut()
        await expect(status).to_have_text("The connection is lost. Coming back …")
        line.is_up = True
        await expect(status).to_contain_text("Transcribed", timeout=1000 * LONG_S)
        await client.cancel(job_id)
        await expect(status).to_contain_text("Cancelled")
        frame = await client.get(job_id)
        text = "".join(segment.text for segment in frame.segments).strip()
        await expect(page.locator("main")).to_have_text(text)


async def test_the_page_says_what_is_wrong(
    page: Page, aiohttp_server: AiohttpServer, tmp_path: Path
) -> None:
    """Whoever sends the wrong file, or too late, would look at a bar that stands still."""
    transcriber = Transcriber(Config(model=("scripted",), workers=1), loader=scripted.load)
    server = await aiohttp_server(create_app(transcriber=transcriber))
    status = page.get_by_role("status")
    url = str(server.make_url("")).rstrip("/")
    await page.goto(await serve_elsewhere(aiohttp_server, url))

    empty = tmp_path / "empty.ogg"
    empty.touch()
    await upload(page, empty)
    await expect(status).to_have_text("the recording is empty (0 bytes)")

    text = tmp_path / "text.mp3"
    text.write_text("not a recording " * 1000)
    await upload(page, text)
    await expect(status).to_contain_text("Failed: this is not audio", timeout=1000 * LONG_S)
    await expect(page.locator("input")).to_be_enabled()

    async def lose_the_job(route: WebSocketRoute) -> None:
        await transcriber.delete(transcriber.jobs()[0].id)
        await route.close(code=1001)

    await page.route_web_socket("**/ws/transcription/**", lose_the_job)
    await upload(page)
    await expect(status).to_contain_text("there is no job")
    await expect(page.locator("input")).to_be_enabled()

    await server.close()
    await upload(page, empty)
    await expect(status).to_contain_text("the recording could not be sent")


async def test_the_page_from_disk_says_how_to_open_it(page: Page) -> None:
    """Who double-clicks the example would choose a recording, and be refused without a reason."""
    await page.goto(PAGE.as_uri())
    await expect(page.get_by_role("status")).to_contain_text("python3 -m http.server")


async def test_what_is_said_is_text_and_never_markup(
    real_server: Server, page: Page, aiohttp_server: AiohttpServer, tmp_path: Path
) -> None:
    """A recording, its name, or the model's fancy could run scripts in the listener's browser."""

    def slander(route: WebSocketRoute) -> None:
        def forward(message: str | bytes) -> None:
            frame = json.loads(message)
            frame["message"] = HOSTILE
            for segment in frame["segments"]:
                segment["text"] = HOSTILE + "m" * 500
            route.send(json.dumps(frame))

        route.connect_to_server().on_message(forward)

    await page.set_viewport_size({"width": 360, "height": 640})
    await page.route_web_socket("**/ws/transcription/**", slander)
    url = await serve_elsewhere(aiohttp_server, real_server.url)
    await page.goto(url)
    await upload(page, Path(shutil.copy(SAMPLE, tmp_path / HOSTILE.partition("</")[0])))
    text = await wait_for_end(page)

    assert text.startswith(HOSTILE)
    assert await page.get_by_role("status").inner_text() == f"100 % · {HOSTILE}"
    assert await page.locator(":is(main, [role=status]) *").count() == 0
    await page.goto(f"{url}#{HOSTILE}")
    await expect(page.get_by_role("status")).to_contain_text("there is no")
    assert await page.locator(":is(main, [role=status]) *").count() == 0
    assert await page.title() == "Transcribe a recording"
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width == 360, "a phone would have to scroll sideways"


async def test_a_page_of_another_site_gets_nowhere(
    page: Page, aiohttp_server: AiohttpServer
) -> None:
    """Any site could read what is transcribed on its visitors' machines, and send more."""
    transcriber = Transcriber(Config(model=("scripted",), workers=1), loader=scripted.load)
    server = await aiohttp_server(create_app(transcriber=transcriber))
    job = await transcriber.submit(SAMPLE, options=scripted.Script(hang=30).options())

    async def answer(request: web.Request) -> web.Response:
        frame = '<iframe sandbox="allow-scripts" srcdoc="an origin of its own: null"></iframe>'
        return web.Response(text=frame, content_type="text/html")

    site = web.Application()
    site.router.add_get("/", answer)
    port = (await aiohttp_server(site)).port
    await page.goto(f"http://evil.test:{port}/")
    url = f"http://127.0.0.1:{server.port}"
    for frame in page.frames:
        assert await frame.evaluate(ATTACK, [url, job.id]) == IN_VAIN
    assert [await frame.evaluate("origin") for frame in page.frames] == [
        f"http://evil.test:{port}",
        "null",
    ]

    assert [each.id for each in transcriber.jobs()] == [job.id]
    assert not transcriber.get(job.id).status.is_terminal
    answer_to_own_name = await page.goto(f"http://evil.test:{server.port}/")
    assert answer_to_own_name
    assert answer_to_own_name.status == 403


async def test_watch_shows_a_job_to_its_end(real_server: Server) -> None:
    """The script that people copy to write a client of their own would not work."""
    url = real_server.url
    async with Client(url) as client:
        job_id = (await client.submit(SAMPLE)).job_id
    lines = (await run("watch.py", job_id, url)).splitlines()
    assert MIDDLE in lines[-1]
    assert lines[-1].endswith(END)
    percentages = [float(line.split()[0]) for line in lines[:-1]]
    assert percentages == sorted(percentages)
    assert percentages[-1] == 100


async def test_watch_says_that_there_is_no_such_job(real_server: Server) -> None:
    """A mistyped id would show a traceback, or wait for ever."""
    error = await run("watch.py", "nope", real_server.url, expected_status=1)
    assert error.strip() == "the server refuses to tell about nope: 404"


async def run(script: str, *arguments: str, expected_status: int = 0) -> str:
    """Run an example; return what it said, on standard error if it was to fail."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / script),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, error = await asyncio.wait_for(process.communicate(), LONG_S)
    assert process.returncode == expected_status, error.decode()
    return (error if expected_status else output).decode()


@pytest.fixture
def embedded() -> Iterator[str]:
    """Where examples/embed.py listens; it has to stop when it is told to."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "embed.py"), str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout
        assert "Running on" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


async def test_embed_puts_the_transcriber_into_an_application(embedded: str) -> None:
    """Who builds it into a service of his own would start from an example that does not work."""
    async with aiohttp.ClientSession(embedded) as session:
        async with session.post("/captions", data=SAMPLE.read_bytes()) as response:
            captions = await response.text()
            assert response.status == 200
        assert captions.startswith("WEBVTT\n\n00:00:00.000 --> ")
        assert MIDDLE in captions
        async with session.post("/captions", data=b"") as response:
            assert response.status == 400
    async with Client(f"{embedded}/stt") as client:
        frames = [frame async for frame in client.watch((await client.submit(SAMPLE)).job_id)]
    assert frames[-1].progress_percentage == 100
