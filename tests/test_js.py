"""The JavaScript module, in a real browser, against the real server, over lines that break."""

import asyncio
import base64
import functools
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from playwright.async_api import Browser, JSHandle, Page, expect
from pytest_aiohttp import AiohttpServer

from aiotranscribe import Client, Config, Frame, Transcriber, create_app
from aiotranscribe.frame import decode
from tests import scripted
from tests.conftest import ROOT, SAMPLE, SCRIPTED, Server
from tests.line import Line
from tests.scripted import Script
from tests.waiting import LONG_S, check, merge, until, until_frame

MakeWav = Callable[[float], Path]

END = "every word will still be here. Thank you for listening."
#: Before the server speaks again, or gives up.
SOON_S = 10.0
ENDLESS = Script(segments=10_000, delay=0.05).options()

# What a page has at hand in these tests; `base` is where the server is.
PREPARE = """
    async base => {
        const module = await import(`${base}/static/aiotranscribe.js`)
        Object.assign(self, module, {
            file(data, name) {
                return new File([Uint8Array.from(atob(data), byte => byte.charCodeAt(0))], name)
            },
            // Watches in the background; `pace` is awaited after each frame.
            follow(id, options, pace = () => {}) {
                const seen = {frames: [], lost: 0, abort: new AbortController()}
                const more = {signal: seen.abort.signal, onLost: () => seen.lost++}
                seen.end = (async () => {
                    for await (const {all, ...frame} of watch(id, {...more, ...options})) {
                        seen.frames.push(frame)
                        seen.all = all
                        if (await pace(frame) === "leave") break
                    }
                })().catch(error => seen.error = told(error))
                return seen
            },
            told: ({name, message, code, status}) => ({name, message, code, status}),
        })
    }
"""


@pytest.fixture
async def page(browser: Browser, scripted_server: Server) -> AsyncIterator[Page]:
    """An empty page of the server with scripted models, with the module; it may have no errors."""
    page = await browser.new_page(bypass_csp=True)
    page.set_default_timeout(1000 * LONG_S)
    errors: list[object] = []

    def note(error: object) -> None:
        errors.append(error)

    page.on("pageerror", note)
    await page.goto(f"{scripted_server.url}/health")
    await page.evaluate(PREPARE, scripted_server.url)
    yield page
    assert not errors


@pytest.fixture
async def direct(scripted_server: Server) -> AsyncIterator[Client]:
    """A Python client of the server with scripted models."""
    async with Client(scripted_server.url) as entered:
        yield entered


async def follow(page: Page, job_id: str, pace: str = "undefined", **options: object) -> JSHandle:
    """Begin to watch a job in the page; return what `saw` and `finish` look at."""
    return await page.evaluate_handle(
        f"([id, options]) => follow(id, options, {pace})", [job_id, options]
    )


async def saw(seen: JSHandle, condition: str) -> None:
    """Wait until a condition on ``seen`` holds in the page."""
    page_condition = (
        f"async seen => {{ while (!({condition})) await new Promise(requestAnimationFrame) }}"
    )
    async with asyncio.timeout(LONG_S):
        await seen.evaluate(page_condition)


async def finish(seen: JSHandle, timeout_s: float = LONG_S) -> tuple[list[Frame], dict[str, Any]]:
    """Wait for the end; return the frames, checked for the contract of `all`, and all the rest."""
    async with asyncio.timeout(timeout_s):
        told = await seen.evaluate("async seen => { await seen.end; return {...seen, end: null} }")
    frames = [decode(json.dumps(frame)) for frame in told["frames"]]
    if frames and not frames[0].offset:
        segments = merge(frames)
        assert [each["text"] for each in told["all"]] == [each.text for each in segments]
    return frames, told


async def serve(aiohttp_server: AiohttpServer, html: str) -> str:
    """Serve a page from another port than the server's; return where."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=html, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", answer)
    return str((await aiohttp_server(app)).make_url("/"))


def encoded(path: Path) -> str:
    """Return a file's bytes as text for `file` in the page."""
    return base64.b64encode(path.read_bytes()).decode()


async def test_all_jobs_are_followed_through_a_break(
    page: Page, direct: Client, make_wav: MakeWav, scripted_server: Server
) -> None:
    """A page's list of jobs would stand still, or show what was deleted while it was away."""
    first = (await direct.submit(make_wav(2.0), ENDLESS)).job_id
    async with Line(scripted_server.url) as line:
        await page.evaluate(
            """server => {
                self.seen = {lost: 0, sizes: []}
                seen.end = (async () => {
                    const onLost = () => seen.lost++, signal = AbortSignal.any([])
                    for await (const jobs of watchAll({server, signal, onLost})) {
                        seen.jobs = jobs
                        seen.sizes.push(jobs.size)
                    }
                })()
            }""",
            line.url,
        )

        async def shows(condition: str) -> None:
            await page.wait_for_function(condition, arg=first)

        await shows("id => seen.jobs?.get(id)?.current_step === 'transcribing'")
        line.is_up = False
        line.cut()
        await shows("() => seen.lost")
        await direct.delete(first)
        second = (await direct.submit(make_wav(2.0), ENDLESS)).job_id
        line.is_up = True
        await shows("id => seen.jobs && !seen.jobs.has(id)")
        frame = await page.evaluate("id => seen.jobs.get(id)", second)
        assert frame["name"] == make_wav(2.0).name
        assert frame["segments"] == []
        assert await page.evaluate("Math.min(...seen.sizes)"), "it is whole, or not shown"
        await direct.delete(second)
        await page.wait_for_function("id => !seen.jobs.has(id)", arg=second)


# -- a good line -------------------------------------------------------------------------------


async def test_a_recording_is_sent_and_followed_to_its_text(
    real_server: Server, browser: Browser
) -> None:
    """A page of ten lines could not show a transcription."""
    page = await browser.new_page(bypass_csp=True)
    await page.goto(f"{real_server.url}/health")
    await page.evaluate(PREPARE, real_server.url)
    parts, first = await page.evaluate(
        """async data => {
            const parts = [], onProgress = part => parts.push(part)
            return [parts, await submit(file(data, "a.ogg"), {onProgress})]
        }""",
        encoded(SAMPLE),
    )
    assert parts == sorted(parts)
    assert parts[-1] == 1
    assert first["status"] in {"queued", "running"}
    frames, told = await finish(await follow(page, first["job_id"]))
    check(frames)
    assert told["lost"] == 0
    async with Client(real_server.url) as client:
        assert frames[-1].status == "completed"
        assert merge(frames) == list((await client.get(first["job_id"])).segments)
        text = "".join(segment["text"] for segment in told["all"])
        assert text.endswith(END)
        assert text.split() == (await client.transcript(first["job_id"])).split()


async def test_the_page_of_the_documentation_works(
    real_server: Server, browser: Browser, aiohttp_server: AiohttpServer
) -> None:
    """The first thing that a developer of a page tries would fail."""
    (html,) = re.findall("```html\n(.*?)```", (ROOT / "docs/protocol.md").read_text(), re.DOTALL)
    page = await browser.new_page(bypass_csp=True)
    await page.goto(
        await serve(aiohttp_server, html.replace("http://127.0.0.1:8000", real_server.url))
    )
    await page.set_input_files("input", SAMPLE)
    await expect(page.locator("pre")).to_contain_text(END, timeout=1000 * LONG_S)
    await expect(page.locator("progress")).to_have_js_property("value", 100)


async def test_options_and_the_file_name_arrive(
    page: Page, make_wav: MakeWav, scripted_server: Server, direct: Client
) -> None:
    """A page could not say what language is spoken, and a list of jobs would have no names."""
    options = Script(segments=4).fields() | {"language": "de", "temperature": 0.2, "hotwords": None}
    name = "<img src=x onerror=alert(1)> 'Größe' & 100% #1?.wav"
    job = await page.evaluate(
        "([data, name, options]) => submit(file(data, name), {options})",
        [encoded(make_wav(2.0)), name, options],
    )
    frames, _ = await finish(await follow(page, job["job_id"]))
    assert [segment.text for segment in merge(frames)][:2] == [" de 0.0.", " de 0.5."]
    address = f"{scripted_server.url}/v1/jobs?limit=1"
    async with ClientSession() as session, session.get(address) as response:
        (listed,) = (await response.json())["jobs"]
    assert listed["name"] == name


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_neighbour_s_page_uses_a_server_under_a_path(
    browser: Browser, aiohttp_server: AiohttpServer, make_wav: MakeWav, slash: str
) -> None:
    """A developer's own page, or an application that the server is a part of, could not use it."""
    config = Config(model=("scripted",), workers=1)
    app = web.Application()
    app.add_subapp("/stt", create_app(transcriber=Transcriber(config, loader=scripted.load)))
    url = str((await aiohttp_server(app)).make_url("/stt"))
    page = await browser.new_page(bypass_csp=True)
    await page.goto(await serve(aiohttp_server, "<title>mine</title>"))
    await page.evaluate(PREPARE, url)
    for options in ({}, {"server": url + slash}):
        job = await page.evaluate(
            "([data, options]) => submit(file(data, 'a.wav'), {...options, onProgress() {}})",
            [encoded(make_wav(2.0)), options],
        )
        frames, told = await finish(await follow(page, job["job_id"], **options))
        check(frames)
        assert "error" not in told
        error = await page.evaluate("options => submit(new Blob, options).catch(told)", options)
        assert error["code"] == "invalid_request"


async def test_a_browser_takes_the_module_and_asks_again_for_a_new_one(
    scripted_server: Server,
) -> None:
    """A browser would refuse to run it, or run an old one after an update."""
    address = f"{scripted_server.url}/static/aiotranscribe.js"
    async with ClientSession() as session, session.get(address) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/javascript"
        assert response.headers["Cache-Control"] == "no-cache"
        async with session.get(
            address, headers={"If-None-Match": response.headers["ETag"]}
        ) as same:
            assert same.status == 304


async def test_a_page_goes_on_from_a_frame_that_it_had(
    page: Page, direct: Client, make_wav: MakeWav
) -> None:
    """A page that keeps what it has would be sent all of it again, or lose its beginning."""
    job_id = (await direct.submit(make_wav(2.0), Script(segments=10, delay=0.05).options())).job_id
    seen = await follow(page, job_id, "frame => frame.segments.length && 'leave'")
    before, told = await finish(seen)
    assert not before[-1].status.is_terminal
    rest, whole = await finish(await follow(page, job_id, since=before[-1].cursor, all=told["all"]))
    assert rest[0].offset == len(told["all"])
    segments = list((await direct.get(job_id)).segments)
    assert merge([*before, *rest]) == segments
    assert [each["id"] for each in whole["all"]] == list(range(10))


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", ["nope", "", ".", "../../health", "a?b#c", "ä%"])
async def test_an_unknown_job_is_an_error(page: Page, job_id: str) -> None:
    """A page would wait for ever for a job that does not exist."""
    _, told = await finish(await follow(page, job_id))
    assert told["error"]["name"] == "Error"
    assert told["error"]["status"] == 404
    if job_id not in {"", "."}:
        assert told["error"]["code"] == "job_not_found"
        assert repr(job_id) in told["error"]["message"]


async def test_a_refusal_says_why(page: Page, make_wav: MakeWav) -> None:
    """A person would have to guess why a recording is not taken."""
    error = await page.evaluate("submit(new Blob).catch(told)")
    assert error == {
        "name": "Error",
        "message": "the recording is empty (0 bytes)",
        "code": "invalid_request",
        "status": 400,
    }
    error = await page.evaluate(
        "data => submit(file(data, 'a.wav'), {options: {model: 'huge'}}).catch(told)",
        encoded(make_wav(2.0)),
    )
    assert (error["code"], error["status"]) == ("invalid_option", 422)
    assert error["message"].startswith("model: ")


async def test_an_error_of_somebody_else_is_an_error(
    page: Page, aiohttp_server: AiohttpServer
) -> None:
    """A proxy's page of HTML would be an error about JSON, and its bad moment the end."""
    statuses = [502, 403]

    async def answer(request: web.Request) -> web.Response:
        allowed = {"Access-Control-Allow-Origin": "*"}
        if request.path.startswith("/ws"):
            return web.Response(status=502)
        status = statuses.pop(0) if request.method == "GET" else 502
        return web.Response(text="<h1>Bad</h1>", status=status, headers=allowed)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    url = str((await aiohttp_server(app)).make_url("/"))
    error = await page.evaluate("server => submit(new Blob(['a']), {server}).catch(told)", url)
    expected = {"name": "Error", "message": "502 Bad Gateway", "code": "unknown", "status": 502}
    assert error == expected
    _, told = await finish(await follow(page, "some", server=url))
    assert told["error"] == expected | {"message": "403 Forbidden", "status": 403}
    assert told["lost"] == 2, "a server's error is not the end"


async def test_no_server_is_an_error(page: Page) -> None:
    """A recording would seem to be sent that nobody has received."""
    async with Line("http://127.0.0.1:9") as line:
        line.is_up = False
        error = await page.evaluate(
            "server => submit(new Blob(['a']), {server}).catch(told)", line.url
        )
    assert (error["message"], error["status"]) == ("the recording could not be sent", 0)


@pytest.mark.parametrize("token", ["anna_s-token.0123456789", "a+b/c~d-0123456789=="])
async def test_a_page_sends_the_token_that_a_server_wants(
    browser: Browser, start_server: Callable[..., Server], token: str
) -> None:
    """No page could use a server that is open to others, and would not be told why."""
    server = await asyncio.to_thread(
        start_server, "--token", token, *SCRIPTED, program="tests.scripted_program"
    )
    page = await browser.new_page(bypass_csp=True)
    await page.goto(f"{server.url}/health")
    await page.evaluate(PREPARE, server.url)
    options = Script().fields()
    sending = "([data, more]) => submit(file(data, 'a.ogg'), more).catch(told)"
    sent = await page.evaluate(sending, [encoded(SAMPLE), {"options": options, "token": token}])
    frames, _ = await finish(await follow(page, sent["job_id"], token=token))
    assert frames[-1].status == "completed"
    refused = await page.evaluate(sending, [encoded(SAMPLE), {"options": options}])
    _, told = await finish(await follow(page, sent["job_id"], token=token[:-1]))
    for error in (refused, told["error"]):
        assert (error["code"], error["status"]) == ("unauthorized", 401)


# -- a bad line --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
async def test_no_segment_is_lost_or_doubled_when_the_line_is_cut(
    page: Page, direct: Client, scripted_server: Server, make_wav: MakeWav, seed: int
) -> None:
    """A transcript that came over a mobile network would have holes or repetitions."""
    script = Script(segments=50, delay=0.05)
    job_id = (await direct.submit(make_wav(2.0), script.options())).job_id
    async with Line(scripted_server.url) as line:
        # Within and after the handshake, and anywhere in a frame.
        line.limits = [*random.Random(seed).sample(range(800, 4000), 3), 129]
        frames, told = await finish(await follow(page, job_id, server=line.url))
        assert not line.limits
    assert told["lost"] >= 4
    check(frames)
    segments = merge(frames)
    assert len(segments) == 50
    assert sum(len(frame.segments) for frame in frames) == 50, "some came twice"
    assert segments == list((await direct.get(job_id)).segments)


async def test_it_waits_for_a_server_that_is_away(
    page: Page, direct: Client, scripted_server: Server, make_wav: MakeWav
) -> None:
    """A restart of the server would end every page that watches."""
    job_id = (await direct.submit(make_wav(2.0), ENDLESS)).job_id
    async with Line(scripted_server.url) as line:
        seen = await follow(page, job_id, server=line.url)
        await saw(seen, "seen.frames.length")
        assert await seen.evaluate("seen => seen.lost") == 0
        line.is_up = False
        line.cut()
        await saw(seen, "seen.lost >= 2")
        count = len((await direct.get(job_id)).segments)
        assert await seen.evaluate("seen => seen.all.length") < count
        line.is_up = True
        await saw(seen, f"seen.all.length >= {count}")
        await direct.cancel(job_id)
        frames, _ = await finish(seen)
    assert merge(frames) == list((await direct.get(job_id)).segments)


async def test_it_comes_back_less_and_less_often(
    page: Page, direct: Client, scripted_server: Server, make_wav: MakeWav
) -> None:
    """All pages would rush at a server that has just started, or come back after an hour."""
    job_id = (await direct.submit(make_wav(2.0), ENDLESS)).job_id
    await page.evaluate(
        """() => {
            const later = setTimeout
            self.waits = []
            self.setTimeout = (call, ms) => {
                if (ms === 45_000) return later(call, ms)             // for silence
                waits.push(ms)
                return later(call)
            }
            Math.random = () => 0.5
        }"""
    )
    async with Line(scripted_server.url) as line:
        line.is_up = False
        seen = await follow(page, job_id, server=line.url)
        await saw(seen, "waits.length >= 8")
        line.is_up = True
        await saw(seen, "seen.all?.length")
        waits = await page.evaluate("waits.splice(0)")
        assert waits[:7] == [250, 500, 1000, 2000, 4000, 8000, 15_000]
        assert set(waits[7:]) == {15_000}

        line.is_up = False
        line.cut()
        await saw(seen, "waits.length >= 2")
        await page.evaluate("Math.random = () => 0")
        await saw(seen, "waits.includes(7500)")
        await page.evaluate("Math.random = () => 0.9999")
        await saw(seen, "waits.some(ms => ms > 22_000)")
        await seen.evaluate("seen => seen.abort.abort()")
        waits = await page.evaluate("waits")
        assert waits[:2] == [250, 500], "a frame was a new beginning"
        assert max(waits) < 22_500
    await direct.cancel(job_id)


async def test_it_leaves_a_line_that_is_dead(
    browser: Browser, direct: Client, scripted_server: Server, make_wav: MakeWav
) -> None:
    """A page whose network was changed would wait for ever on a line that is no more."""
    page = await browser.new_page(bypass_csp=True)
    await page.clock.install()
    await page.goto(f"{scripted_server.url}/health")
    await page.evaluate(PREPARE, scripted_server.url)
    job_id = (await direct.submit(make_wav(2.0), ENDLESS)).job_id
    async with Line(scripted_server.url) as line:
        seen = await follow(page, job_id, server=line.url)
        await saw(seen, "seen.all?.length")
        line.is_dead = True
        await page.clock.fast_forward(40_000)
        assert await seen.evaluate("seen => seen.lost") == 0
        await page.clock.fast_forward(6_000)
        async with asyncio.timeout(SOON_S):
            await saw(seen, "seen.lost")
        line.is_dead = False
        await page.clock.fast_forward(1_000)
        await direct.cancel(job_id)
        frames, _ = await finish(seen)
    assert merge(frames) == list((await direct.get(job_id)).segments)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_it_goes_on_when_the_server_was_killed(
    browser: Browser,
    start_server: Callable[..., Server],
    make_wav: MakeWav,
    tmp_path: Path,
    is_lost: bool,
) -> None:
    """A power cut would end every page that watches, or keep it waiting for what is lost."""
    start = functools.partial(start_server, *SCRIPTED, program="tests.scripted_program")
    server = await asyncio.to_thread(start)
    page = await browser.new_page(bypass_csp=True)
    await page.goto(f"{server.url}/health")
    await page.evaluate(PREPARE, server.url)
    async with Client(server.url) as client:
        options = Script(segments=4, delay=0.1).options()
        job_id = (await client.submit(make_wav(100.0), options)).job_id
        seen = await follow(page, job_id)
        await saw(seen, "seen.all?.length")
        server.kill()
        await saw(seen, "seen.lost")
        if is_lost:
            server.data_dir.rename(tmp_path / "lost")
        await asyncio.to_thread(start, port=int(server.url.rpartition(":")[2]))
        frames, told = await finish(seen)
        if is_lost:
            assert (told["error"]["code"], told["error"]["status"]) == ("job_not_found", 404)
            assert merge(frames), "the page keeps what it has"
        else:
            check(frames)
            assert frames[-1].status == "completed"
            assert merge(frames) == list((await client.get(job_id)).segments)


# -- leaving -----------------------------------------------------------------------------------


async def test_leaving_the_loop_closes_the_socket(
    page: Page, direct: Client, make_wav: MakeWav
) -> None:
    """A page that shows one job after the other would keep a connection to each."""
    job_id = (await direct.submit(make_wav(2.0), ENDLESS)).job_id
    async with page.expect_websocket() as opening:
        seen = await follow(page, job_id, "frame => frame.segments.length && 'leave'")
    frames, told = await finish(seen)
    assert "error" not in told
    assert not frames[-1].status.is_terminal
    socket = await opening.value
    await until(socket.is_closed)
    await direct.cancel(job_id)


async def test_a_signal_ends_it_at_any_time(
    page: Page, direct: Client, scripted_server: Server, make_wav: MakeWav
) -> None:
    """A page that the reader has left would go on watching, and coming back."""
    job_id = (await direct.submit(make_wav(2.0), Script(hang=30).options())).job_id
    await until_frame(direct.watch(job_id), lambda frame: frame.current_step == "transcribing")
    async with Line(scripted_server.url) as line:
        async with page.expect_websocket() as opening:
            waiting = await follow(page, job_id, server=line.url)
        await saw(waiting, "seen.frames.length")
        await waiting.evaluate("seen => seen.abort.abort()")
        _, told = await finish(waiting, SOON_S)
        assert told["error"]["name"] == "AbortError"
        assert told["lost"] == 0
        await until((await opening.value).is_closed)

        before = await page.evaluate_handle("follow('some', {signal: AbortSignal.abort()})")
        assert (await finish(before))[1]["error"]["name"] == "AbortError"

        line.is_up = False
        away = await page.evaluate_handle(
            """([id, server]) => {
                Math.random = () => 1e6                           // a pause that does not end
                return follow(id, {server})
            }""",
            [job_id, line.url],
        )
        await saw(away, "seen.lost")
        await away.evaluate("seen => seen.abort.abort()")
        assert (await finish(away, SOON_S))[1]["error"]["name"] == "AbortError"

        losing = await page.evaluate_handle(
            """([id, server]) => {
                const seen = follow(id, {server, onLost: () => seen.abort.abort()})
                return seen
            }""",
            [job_id, line.url],
        )
        assert (await finish(losing, SOON_S))[1]["error"]["name"] == "AbortError"
    name = await page.evaluate(
        "submit(new Blob(['a']), {signal: AbortSignal.abort()}).catch(error => error.name)"
    )
    assert name == "AbortError"
    await direct.cancel(job_id)


async def test_an_upload_can_be_stopped(page: Page, direct: Client) -> None:
    """Who has chosen the wrong film would have to close the page."""
    name = await page.evaluate(
        """async () => {
            const abort = new AbortController()
            const film = new Blob(Array(64).fill(new Uint8Array(1 << 20)))
            return submit(film, {signal: abort.signal, onProgress: () => abort.abort()})
                .catch(error => error.name)
        }"""
    )
    assert name == "AbortError"


# -- much to say -------------------------------------------------------------------------------


async def test_a_busy_page_gets_one_frame_with_all_that_it_missed(
    page: Page, direct: Client, make_wav: MakeWav
) -> None:
    """A page that takes its time would lose words, or fall behind in a queue that grows."""
    job_id = (await direct.submit(make_wav(2.0), Script(segments=40, delay=0.03).options())).job_id
    busy = """async ({job_id, status}) => {
        if (status !== "completed")
            while ((await (await fetch(`/v1/jobs/${job_id}`)).json()).status !== "completed") {}
    }"""
    frames, _ = await finish(await follow(page, job_id, busy))
    check(frames)
    assert len(frames) <= 3
    assert merge(frames) == list((await direct.get(job_id)).segments)


async def test_frames_that_a_busy_page_missed_are_put_together_right(
    page: Page, aiohttp_server: AiohttpServer
) -> None:
    """Words that a server took back would stay, or those before them would be lost."""

    def frame(offset: int, text: str, status: str = "running") -> str:
        segments = [{"id": offset + n, "text": letter} for n, letter in enumerate(text)]
        return json.dumps(
            {"status": status, "offset": offset, "segments": segments, "cursor": f"{offset}-{text}"}
        )

    lines = [
        ["a", (0, "ab"), (2, "c"), (3, ""), (3, "de")],
        ["continued", (0, "ab"), (2, "cdef"), (4, "EF"), (6, "g")],
        ["replaced", (0, "abcd"), (4, "ef"), (2, "CD"), (4, "E")],
        ["anew", (0, "abcd"), (4, "e"), (0, "xy"), (2, "z")],
    ]
    expected = ["abcde", "abcdEFg", "abCDE", "xyz"]

    async def answer(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for offset, text in lines[int(request.match_info["number"])][1:]:
            await socket.send_str(frame(int(offset), str(text)))
        await socket.send_str(frame(99, "", "completed"))
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/ws/transcription/{number}", answer)
    url = str((await aiohttp_server(app)).make_url("/"))
    for number, text in enumerate(expected):
        for busy in (0, 300):
            told = await page.evaluate(
                """async ([id, server, busy]) => {
                    const mine = []
                    let whole = "", count = 0
                    for await (const {offset, segments, all} of watch(id, {server})) {
                        mine.splice(offset, Infinity, ...segments)
                        whole = all.map(segment => segment.text).join("")
                        count++
                        await new Promise(resolve => setTimeout(resolve, busy))
                    }
                    return [mine.map(segment => segment.text).join(""), whole, count]
                }""",
                [str(number), url, busy],
            )
            assert told[:2] == [text, text], lines[number][0]
            assert not busy or told[2] == 2


async def test_a_recording_of_a_hundred_hours_fits(
    page: Page, aiohttp_server: AiohttpServer
) -> None:
    """A page would fail on an archive, since JavaScript has no calls with so many arguments."""
    half = 200_000

    def frame(offset: int, status: str) -> str:
        segments = [{"id": offset + number, "text": " word"} for number in range(half)]
        return json.dumps({"status": status, "offset": offset, "segments": segments, "cursor": ""})

    async def answer(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for number, status in enumerate(["running", "running", "completed"]):
            await socket.send_str(frame(number * half, status))
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/ws/transcription/{job_id}", answer)
    url = str((await aiohttp_server(app)).make_url("/"))
    for busy in (0, 2000):
        counts = await page.evaluate(
            """async ([server, busy]) => {
                const counts = []
                for await (const {segments, all} of watch("some", {server})) {
                    counts.push(segments.length, all.length)
                    await new Promise(resolve => setTimeout(resolve, busy))
                }
                return [counts.at(-1), Math.max(...counts)]
            }""",
            [url, busy],
        )
        assert counts == [3 * half, 3 * half]
