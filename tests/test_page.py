"""The page at ``/``, as a person uses it: real server, real browser, and the real model once."""

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    WebSocketRoute,
    async_playwright,
    expect,
)
from pytest_aiohttp import AiohttpServer

from aiotranscribe import Client, Config, Transcriber, create_app
from aiotranscribe.exports import FORMATS
from tests import scripted
from tests.conftest import ROOT, SAMPLE, SCRIPTED, Server
from tests.line import free_port
from tests.scripted import Script
from tests.waiting import LONG_S, until_frame

MakeWav = Callable[[float], Path]
Open = Callable[..., Awaitable["Reader"]]

STATIC = ROOT / "aiotranscribe" / "web" / "static"
# What the sample says, as far as the model hears it without a mistake.
MIDDLE = "this recording was made by a machine, so that you have something to try"
END = "every word will still be here. Thank you for listening."
HOSTILE = "<img src=x onerror=document.title='owned'>.wav"
ENDLESS = Script(segments=10_000, delay=0.05).options()
BROKEN = Script(fail_at=1).options()

expect.set_options(timeout=1000 * LONG_S)


class Reader:
    """Somebody who looks at the page, and what went wrong there."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.faults: list[str] = []
        page.set_default_timeout(1000 * LONG_S)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self._note(message.text))

    def _note(self, text: str) -> None:
        if re.search("Content.Security.Policy|Trusted", text):
            self.faults.append(text)

    def __getattr__(self, name: str) -> Locator:
        """Return the element with this id, dashes written as underscores."""
        return self.page.locator(f"#{name.replace('_', '-')}")

    @property
    def rows(self) -> Locator:
        """The rows of the list of jobs."""
        return self.page.locator("#jobs li")

    def button(self, name: str) -> Locator:
        """The button that is called so, wherever it is."""
        return self.page.get_by_role("button", name=name).locator("visible=true")

    async def words(self) -> str:
        """What has been transcribed, without the times beside it."""
        spans: str = await self.page.evaluate(
            "[...document.querySelectorAll('#text span')].map(span => span.textContent).join(' ')"
        )
        return spans

    async def until(self, condition: str) -> None:
        """Wait until an expression of the page is true; the page's policy keeps it from polling."""
        async with asyncio.timeout(LONG_S):
            while not await self.page.evaluate(condition):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def send(self, *recordings: Path) -> None:
        """Choose files, as a person does."""
        await self.files.set_input_files(recordings)

    async def until_done(self) -> None:
        """Wait for the end of the job that is looked at."""
        await expect(self.tools).to_be_visible()
        await expect(self.work).to_be_hidden()


@pytest.fixture
async def open_page(browser: Browser) -> AsyncIterator[Open]:
    """Return a function that opens the page; none may do what its policy forbids."""
    readers: list[Reader] = []
    contexts: list[BrowserContext] = []

    async def open_it(url: str, **options: Any) -> Reader:
        if options or not contexts:
            contexts.append(await browser.new_context(**options))
        reader = Reader(await contexts[-1].new_page())
        readers.append(reader)
        await reader.page.goto(url)
        return reader

    yield open_it
    assert [reader.faults for reader in readers] == [[]] * len(readers)


@pytest.fixture
async def client(scripted_server: Server) -> AsyncIterator[Client]:
    """A client of the server with the scripted models, whose jobs are gone afterwards."""
    async with Client(scripted_server.url) as entered:
        yield entered
        address = f"{scripted_server.url}/v1/jobs"
        async with aiohttp.ClientSession() as session, session.get(address) as answer:
            jobs = (await answer.json())["jobs"]
        for job in jobs:
            await entered.delete(job["job_id"])


async def told(client: Client, job_id: str) -> str:
    """Return a job's text as the server has it."""
    return " ".join(segment.text.strip() for segment in (await client.get(job_id)).segments)


# -- from the upload to the text ---------------------------------------------------------------


async def test_a_recording_becomes_a_text_to_read_hear_search_and_take_away(
    real_server: Server, open_page: Open
) -> None:
    """What the page is for would not work with a real recording and a real model."""
    reader = await open_page(
        real_server.url, permissions=["clipboard-read", "clipboard-write", "notifications"]
    )
    await reader.send(SAMPLE)
    await reader.page.wait_for_url("**/#/jobs/*")
    job_id = reader.page.url.rpartition("/")[2]
    await reader.until_done()
    text = await reader.words()
    assert MIDDLE in text
    assert text.endswith(END)
    assert await reader.page.title() == "✓ sample.ogg"
    await expect(reader.facts).to_contain_text("0:18 · English")

    async with Client(real_server.url) as client:
        assert text == await told(client, job_id)
    links = reader.page.locator("#downloads a")
    assert await links.count() == len(FORMATS)
    for number, name in enumerate(FORMATS):
        async with reader.page.expect_download() as download:
            await links.nth(number).click()
        taken = await download.value
        assert taken.suggested_filename == f"sample.{name.rpartition('_')[2]}"
        async with aiohttp.ClientSession() as session:
            address = f"{real_server.url}/v1/jobs/{job_id}/transcript?format={name}"
            async with session.get(address) as answer:
                file = await taken.path()
                assert await asyncio.to_thread(file.read_text) == await answer.text()

    await reader.button("Copy text").click()
    await expect(reader.toast).to_have_text("Copied")
    copied = await reader.page.evaluate("navigator.clipboard.readText()")
    assert " ".join(copied.split()) == text

    await reader.page.locator("#text span").nth(1).click()
    await expect(reader.page.locator("#text .now")).to_have_text(
        re.compile("Thank you for listening.$")
    )
    await reader.until("audio.currentTime > 11")
    await reader.button("Pause").click()
    await reader.button("Previous sentence").click()
    await expect(reader.page.locator("#text .now")).to_have_text(re.compile("^Hello"))
    await reader.until("0 < audio.currentTime && audio.currentTime < 9 && !audio.paused")

    await reader.page.get_by_role("searchbox").fill("EVERY WÓRD")
    await expect(reader.page.locator("#search output")).to_have_text("1 of 1")
    await reader.page.get_by_role("searchbox").fill("xyz")
    await expect(reader.page.locator("#search output")).to_have_text("Not found")


async def test_the_sample_is_one_click_away(
    scripted_server: Server, client: Client, open_page: Open
) -> None:
    """Who has no recording at hand would not see what this does."""
    reader = await open_page(scripted_server.url)
    await expect(reader.none).to_be_visible()
    await reader.button("or try it with a sample").click()
    await reader.until_done()
    await expect(reader.name).to_have_text("sample.ogg")


async def test_several_recordings_are_sent_one_after_the_other(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav, tmp_path: Path
) -> None:
    """Recordings would have to be sent one by one, or an empty one would stop the rest."""
    empty = tmp_path / "empty.wav"
    empty.touch()
    reader = await open_page(scripted_server.url)
    await reader.send(make_wav(2.0), empty, SAMPLE)
    await expect(reader.rows).to_have_count(2)
    upload = reader.page.locator("#uploads li")
    await expect(upload.locator("p")).to_contain_text("It could not be sent. Is the file empty?")
    assert reader.page.url.endswith("#/"), "who sends several stays with the list"
    await reader.button("Discard: empty.wav").click()
    await expect(upload).to_have_count(0)


async def test_sending_shows_how_far_it_is_and_can_be_stopped(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav
) -> None:
    """On a slow line the page would look dead, and a wrong file would have to be waited for."""
    reader = await open_page(scripted_server.url)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 300_000}
    session = await reader.page.context.new_cdp_session(reader.page)
    await session.send("Network.emulateNetworkConditions", slow)
    recording = make_wav(60.0)
    await reader.send(recording)
    upload = reader.page.locator("#uploads li")
    await expect(upload.locator("p")).to_have_text(re.compile("^Sending, [1-9][0-9]? %$"))
    await reader.until("0 < document.querySelector('#uploads progress').value")
    await upload.get_by_role("button", name="Cancel").click()
    await expect(reader.none).to_be_visible()
    assert reader.page.url.endswith("#/")


async def test_files_can_be_dropped_and_pasted(
    scripted_server: Server, client: Client, open_page: Open
) -> None:
    """What every page of this kind can do would do nothing here, or leave the page."""
    reader = await open_page(scripted_server.url)
    for kind, bag in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        await reader.page.evaluate(
            """async ([kind, bag]) => {
                const data = new DataTransfer()
                const blob = await (await fetch("static/sample.ogg")).blob()
                data.items.add(new File([blob], `${kind}.ogg`))
                const Type = kind === "drop" ? DragEvent : ClipboardEvent
                document.body.dispatchEvent(
                    new Type(kind, {[bag]: data, bubbles: true, cancelable: true}))
            }""",
            [kind, bag],
        )
        await expect(reader.name).to_have_text(f"{kind}.ogg")
        await reader.until_done()


async def test_the_microphone_records(real_server: Server, chromium: Path, tmp_path: Path) -> None:
    """A note could not be spoken into a phone, or would be lost."""
    speech = tmp_path / "speech.wav"
    decode = ["ffmpeg", "-loglevel", "error", "-i", str(SAMPLE), "-ar", "48000", str(speech)]
    await asyncio.to_thread(subprocess.check_call, decode)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={speech}",
            ],
        )
        reader = Reader(await browser.new_page())
        await reader.page.goto(real_server.url)
        calm = await reader.page.locator("#wave path").get_attribute("d")
        await reader.button("Record").click()
        await expect(reader.recorded).to_have_text("0:01")
        assert await reader.page.locator("#wave path").get_attribute("d") != calm
        await reader.button("Discard").click()
        await expect(reader.recorder).to_be_hidden()
        await reader.button("Record").click()
        await expect(reader.recorded).to_have_text("0:04")
        await reader.button("Stop and transcribe").click()
        await reader.until_done()
        await expect(reader.name).to_contain_text("Recording")
        assert "welcome" in await reader.words()
        await reader.until("audio.readyState > 0")
        assert not reader.faults
        await browser.close()


# -- interruptions -----------------------------------------------------------------------------


async def test_a_reload_and_a_second_tab_have_the_same_text(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav
) -> None:
    """Whoever reloads, or opens the address elsewhere, would lose words, or read them twice."""
    script = Script(segments=60, delay=0.05)
    job_id = (await client.submit(make_wav(2.0), script.options())).job_id
    url = f"{scripted_server.url}/#/jobs/{job_id}"
    first = await open_page(url)
    await expect(first.text).to_contain_text("pt 0.1")
    await first.page.reload()
    second = await open_page(url)
    for reader in (first, second):
        await reader.until_done()
        assert await reader.words() == await told(client, job_id)


async def test_a_killed_server_costs_nothing(
    start_server: Callable[..., Server], open_page: Open, make_wav: MakeWav
) -> None:
    """A crash would leave a page that stands still, or a text with holes or repetitions."""
    port = free_port()

    def start() -> Server:
        return start_server(*SCRIPTED, program="tests.scripted_program", port=port)

    server = start()
    async with Client(server.url) as client:
        await wait_until_it_answers(server.url)
        script = Script(segments=100, delay=0.03)
        job_id = (await client.submit(make_wav(2.0), script.options())).job_id
        reader = await open_page(f"{server.url}/#/jobs/{job_id}")
        home = await open_page(server.url)
        await expect(reader.text).to_contain_text("pt 0.1")
        server.stop(signal.SIGKILL)
        await expect(reader.message).to_have_text("Connection lost. Reconnecting …")
        await expect(home.list_lost).to_be_visible()
        start()
        await reader.until_done()
        await expect(home.list_lost).to_be_hidden()
        await expect(home.rows).to_have_class("completed")
        text = await reader.words()
        assert text == await told(client, job_id)
        assert text.count("pt") == 100


async def wait_until_it_answers(url: str) -> None:
    """Wait until a server listens."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/health"):
                    return
            except aiohttp.ClientError:
                continue


# -- the list, and what can be done ------------------------------------------------------------


async def test_the_list_is_live_and_its_jobs_can_be_cancelled_and_deleted(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav
) -> None:
    """A list would show what was, and what runs by mistake would run to its end."""
    one, other = await open_page(scripted_server.url), await open_page(scripted_server.url)
    await expect(one.none).to_be_visible()
    for number in range(5):
        job_id = (await client.submit(make_wav(2.0), ENDLESS)).job_id
        if number < 2:  # each worker has one
            await until_frame(client.watch(job_id), lambda frame: frame.segments)
    await expect(one.rows).to_have_count(5)
    await expect(other.page.locator("#jobs .running")).to_have_count(2)
    await expect(other.rows.first).to_contain_text("Waiting, 2 before it")
    await expect(other.rows.nth(2)).to_contain_text("Next in line")

    await one.rows.nth(4).get_by_role("button", name="Cancel").click()
    await expect(other.rows.nth(4)).to_contain_text("Cancelled")
    await expect(other.rows.first).to_have_class("running")

    delete = one.rows.nth(4).get_by_role("button", name="Delete")
    await delete.click()
    await one.button("Keep it").click()
    await expect(one.question).to_be_hidden()
    await delete.click()
    await one.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(one.rows).to_have_count(4)
    await expect(other.rows).to_have_count(4)


async def test_a_job_is_cancelled_tried_again_and_deleted_where_it_is_read(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav
) -> None:
    """Who has only the address of a job could do nothing with it, or would read what is gone."""
    job_id = (await client.submit(make_wav(2.0), ENDLESS)).job_id
    reader = await open_page(f"{scripted_server.url}/#/jobs/{job_id}")
    other = await open_page(reader.page.url)
    await expect(reader.text).to_contain_text("pt 0.0")
    await reader.button("Cancel").click()
    for each in (reader, other):
        await expect(each.trouble).to_contain_text("This is the text so far.")
    assert await reader.words() == await told(client, job_id)
    await reader.trouble.get_by_role("button", name="Try again").click()
    await reader.page.wait_for_url(lambda url: job_id not in url)
    await expect(reader.text).to_contain_text("pt 0.1")
    await reader.button("Cancel").click()

    await other.trouble.get_by_role("button", name="Delete").click()
    await other.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(other.rows).to_have_count(1)
    await other.page.go_back()
    await expect(other.name).to_have_text("There is no such recording")
    assert (await client.get(reader.page.url.rpartition("/")[2])).status == "cancelled"


async def test_a_failed_job_says_what_happened_and_what_to_do(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav, tmp_path: Path
) -> None:
    """Whoever sends the wrong file would be told in the words of a decoder, or nothing."""
    text = tmp_path / "text.mp3"
    text.write_text("not a recording " * 1000)
    reader = await open_page(scripted_server.url)
    await reader.send(text)
    await expect(reader.trouble).to_contain_text("It is not audio or video")
    await expect(reader.trouble).to_contain_text("The server says: this is not audio or video")
    assert await reader.page.title() == "✗ text.mp3"
    assert await reader.player.is_hidden()

    failed = (await client.submit(make_wav(2.0), BROKEN)).job_id
    await reader.page.goto(f"{scripted_server.url}/#/")
    await expect(reader.rows.first).to_contain_text("Something went wrong")
    await reader.rows.first.get_by_role("button", name="Try again").click()
    await reader.page.wait_for_url(lambda url: "#/jobs/" in url and failed not in url)
    await expect(reader.trouble).to_contain_text("log says why")


async def test_a_recording_that_was_not_kept_is_said_to_be_so(
    open_page: Open, aiohttp_server: AiohttpServer
) -> None:
    """A player that plays nothing would look like a broken server."""
    config = Config(model=("scripted",), workers=1, keep_audio=False)
    transcriber = Transcriber(config, loader=scripted.load)
    server = await aiohttp_server(create_app(transcriber=transcriber))
    job = await transcriber.submit(SAMPLE)
    reader = await open_page(str(server.make_url(f"/#/jobs/{job.id}")))
    await expect(reader.toast).to_have_text("The recording is not here any more")
    await expect(reader.player).to_be_hidden()
    assert await reader.words()


async def test_under_a_path_of_an_application_it_is_the_same(
    open_page: Open, aiohttp_server: AiohttpServer
) -> None:
    """Who builds the server into an application would get a page without style or jobs."""
    transcriber = Transcriber(Config(model=("scripted",), workers=1), loader=scripted.load)
    app = web.Application()
    app.add_subapp("/a/b", create_app(transcriber=transcriber))
    server = await aiohttp_server(app)
    reader = await open_page(str(server.make_url("/a/b/")))
    await reader.send(SAMPLE)
    await reader.until_done()
    await expect(reader.player).to_be_visible()
    await reader.until("audio.duration > 18")


# -- reading -----------------------------------------------------------------------------------


async def test_the_page_follows_the_text_until_the_reader_scrolls_up(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav
) -> None:
    """The newest words would be out of sight, or pull the reader away from what he reads."""
    script = Script(segments=10_000, delay=0.01, padding=100).options()
    job_id = (await client.submit(make_wav(2.0), script)).job_id
    reader = await open_page(f"{scripted_server.url}/#/jobs/{job_id}")
    at_end = "innerHeight + scrollY > document.documentElement.scrollHeight - 2"
    await reader.until(f"scrollY > 500 && {at_end}")
    await reader.page.evaluate("self.first = document.querySelector('#text span')")
    await reader.page.mouse.wheel(0, -400)
    await expect(reader.follow).to_be_visible()
    y, count = await reader.page.evaluate("[scrollY, document.querySelectorAll('span').length]")
    await reader.until(f"document.querySelectorAll('span').length > {count} + 50")
    assert await reader.page.evaluate("scrollY") == y
    await reader.follow.click()
    await reader.until(at_end)
    await expect(reader.follow).to_be_hidden()
    assert await reader.page.evaluate("first === document.querySelector('#text span')"), (
        "the text is written again and again"
    )
    await client.cancel(job_id)


async def test_who_looks_elsewhere_is_told_of_the_end(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav
) -> None:
    """Who waits for a long recording would have to look again and again."""
    reader = await open_page(f"{scripted_server.url}/health", permissions=["notifications"])
    await reader.page.add_init_script("""
        document.hasFocus = () => false
        self.shown = []
        self.Notification = class extends Notification {
            constructor(title, options) {
                super(title, options)
                this.addEventListener("show", () => shown.push(`${title}: ${options.body}`))
            }
        }
    """)
    await reader.page.goto(scripted_server.url)
    await expect(reader.none).to_be_visible()
    recording = make_wav(2.0)
    await client.submit(recording, Script(segments=4, delay=0.1).options())
    await reader.until("shown.length")
    assert await reader.page.evaluate("shown") == [f"{recording.name}: Transcribed 0:02"]
    assert await reader.page.title() == f"✓ {recording.name}"
    await reader.page.evaluate("dispatchEvent(new Event('focus'))")
    assert await reader.page.title() == "aiotranscribe"


async def test_names_and_texts_are_never_markup(
    scripted_server: Server, client: Client, open_page: Open, tmp_path: Path
) -> None:
    """A recording, its name, or the model's fancy could run scripts in the listener's browser."""
    reader = await open_page(scripted_server.url, viewport={"width": 360, "height": 640})

    def slander(route: WebSocketRoute) -> None:
        def forward(message: str | bytes) -> None:
            frame = json.loads(message)
            for segment in frame.get("segments", ()):
                segment["text"] = HOSTILE + "m" * 500
            route.send(json.dumps(frame))

        route.connect_to_server().on_message(forward)

    await reader.page.route_web_socket("**/ws/transcription/**", slander)
    await reader.send(Path(shutil.copy(SAMPLE, tmp_path / f"{'m' * 100} {HOSTILE}")))
    await reader.until_done()
    await expect(reader.name).to_contain_text(HOSTILE)
    assert HOSTILE in await reader.words()
    widths = [await reader.page.evaluate("document.documentElement.scrollWidth")]
    await reader.trouble.or_(reader.page.locator("#tools [data-do=delete]")).last.click()
    await expect(reader.asked).to_contain_text(HOSTILE)
    await reader.button("Keep it").click()
    await reader.page.goto(f"{scripted_server.url}/#/")
    await expect(reader.rows).to_contain_text(HOSTILE)
    widths.append(await reader.page.evaluate("document.documentElement.scrollWidth"))
    await reader.page.goto(f"{scripted_server.url}/#/jobs/{HOSTILE}")
    await expect(reader.name).to_have_text("There is no such recording")
    assert await reader.page.locator("img").count() == 0
    assert "owned" not in await reader.page.title()
    assert widths == [360, 360], "a phone would have to scroll sideways"


# -- for everybody -----------------------------------------------------------------------------


async def test_it_speaks_portuguese(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav
) -> None:
    """Half of the family would not understand it; or one half of each sentence."""
    reader = await open_page(scripted_server.url, locale="pt-BR")
    await expect(reader.button("Escolher ficheiros")).to_be_visible()
    assert await reader.page.evaluate("document.documentElement.lang") == "pt"
    job_id = (await client.submit(make_wav(2.0), ENDLESS)).job_id
    await reader.rows.get_by_role("link").click()
    await expect(reader.message).to_contain_text("Transcritos 0:00")
    await expect(reader.facts).to_contain_text("português")
    await reader.button("English").click()
    await expect(reader.message).to_contain_text("Transcribed 0:00")
    await reader.page.reload()
    await expect(reader.page.locator(".back")).to_have_text("← All recordings")
    await client.cancel(job_id)


def test_both_languages_say_the_same() -> None:
    """A reader would meet a word that is not there, and the page would stop."""
    tables = [(STATIC / name).read_text() for name in ("en.js", "pt.js")]
    keys = [re.findall(r"^ +(\w+):", table, re.MULTILINE) for table in tables]
    assert len(keys) == 2
    assert keys[0] == keys[1]
    used = set(re.findall(r"\bsay\.(\w+)", (STATIC / "page.js").read_text()))
    used |= set(re.findall(r'data-(?:say|name|do)="(\w+)"', (STATIC / "index.html").read_text()))
    assert used <= set(keys[0])


async def test_the_keyboard_is_enough(
    scripted_server: Server, client: Client, open_page: Open
) -> None:
    """Who cannot use a mouse could not use the page, or would not see where he is."""
    reader = await open_page(scripted_server.url)
    keyboard = reader.page.keyboard

    async def tab_to(name: str) -> None:
        focused = reader.page.locator(":focus-visible")
        for _ in range(40):
            await keyboard.press("Tab")
            if await focused.count() and name in (
                await focused.first.evaluate(
                    "({ariaLabel, textContent}) => ariaLabel || textContent"
                )
            ):
                style = "element => getComputedStyle(element).outlineStyle"
                pseudo = "element => getComputedStyle(element, '::after').outlineStyle"
                assert "solid" in {await focused.evaluate(style), await focused.evaluate(pseudo)}
                return
        raise AssertionError(f"there is no way to {name!r}")

    await expect(reader.none).to_be_visible()
    await tab_to("sample")
    await keyboard.press("Enter")
    await reader.until_done()
    await tab_to("Copy text")
    await tab_to("Search")
    await keyboard.type("pt")
    await keyboard.press("Enter")
    await expect(reader.page.locator("#search output")).to_have_text(re.compile("^2 of "))
    await tab_to("Next sentence")
    await keyboard.press("Space")
    await reader.until("!audio.paused")
    await tab_to("Play: 0:00")
    await keyboard.press("Enter")
    await expect(reader.page.locator("#text .now")).to_be_visible()
    await reader.page.locator(".back").focus()
    await keyboard.press("Enter")
    await tab_to("sample.ogg")
    await tab_to("Delete")
    await keyboard.press("Enter")
    await keyboard.press("Tab")
    await keyboard.press("Enter")
    await expect(reader.none).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_state_shuts_anybody_out(
    scripted_server: Server, client: Client, open_page: Open, make_wav: MakeWav, scheme: str
) -> None:
    """Who does not see well, or not at all, could not use the page."""
    axe = (files("axe_playwright_python") / "axe.min.js").read_text()
    reader = await open_page(
        scripted_server.url, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True
    )

    async def check(state: str) -> None:
        await reader.page.evaluate(axe)
        found = await reader.page.evaluate("axe.run().then(({violations}) => violations)")
        grave = [each for each in found if each["impact"] in {"serious", "critical"}]
        assert not [(each["id"], each["nodes"][0]["html"]) for each in grave], state

    await expect(reader.none).to_be_visible()
    await check("empty")
    failed, done, running = [
        (await client.submit(make_wav(2.0), options)).job_id
        for options in (BROKEN, Script(segments=4).options(), ENDLESS)
    ]
    await expect(reader.page.locator("#jobs .completed")).to_be_visible()
    await expect(reader.page.locator("#jobs .failed")).to_be_visible()
    await expect(reader.page.locator("#jobs .running")).to_be_visible()
    await check("list")
    await reader.page.locator("#jobs .failed [data-do=delete]").click()
    await check("question")
    await reader.button("Keep it").click()
    for job_id, sign in ((failed, "#trouble"), (done, "#player"), (running, "#work .icon")):
        await reader.page.goto(f"{scripted_server.url}/#/jobs/{job_id}")
        await expect(reader.page.locator(sign).first).to_be_visible()
        await check(sign)
    await reader.button("Cancel").click()
    await reader.page.goto(f"{scripted_server.url}/#/jobs/none")
    await expect(reader.trouble).to_be_visible()
    await check("unknown")


async def test_a_server_that_wants_a_token_asks_for_it_once(
    open_page: Open, start_server: Callable[..., Server]
) -> None:
    """Otherwise nobody can use the page of a server that is not for everybody."""
    token = "a-token-of-many-letters"
    server = start_server(*SCRIPTED, "--token", token, program="tests.scripted_program")
    reader = await open_page(server.url)
    for attempt in ("not-the-right-token", token):
        await expect(reader.door).to_be_visible()
        await reader.door.locator("input").fill(attempt)
        async with reader.page.expect_navigation():
            await reader.page.keyboard.press("Enter")
    await expect(reader.none).to_be_visible()
    await reader.send(SAMPLE)
    await reader.until_done()
    words = await reader.words()
    assert words
    async with reader.page.expect_download() as download:
        await reader.page.locator("#downloads a").first.click()
    taken = await download.value
    file = await taken.path()
    assert (await asyncio.to_thread(file.read_text)).split() == words.split()
    await reader.play.click()
    await reader.until("document.querySelector('#audio').currentTime > 0")
    await reader.page.reload()
    await reader.until_done()
    await expect(reader.door).to_be_hidden()
    log = await asyncio.to_thread((server.data_dir / "log").read_text)
    assert token not in log


# -- what the server says ----------------------------------------------------------------------


async def test_the_page_is_small_and_strict(scripted_server: Server) -> None:
    """It would be slow on a bad line, or a gap in it would be a gap in the whole server."""
    async with aiohttp.ClientSession(scripted_server.url) as session:
        async with session.get("/") as answer:
            policy, html = answer.headers["Content-Security-Policy"], await answer.text()
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<style|\sstyle=|\son\w+=|https?://(?!www\.w3\.org/2000/svg)", html)
        size_bytes, words = len(html.encode()), []
        for name in {*re.findall(r'"static/([\w.]+)"', html), "aiotranscribe.js", "en.js", "pt.js"}:
            async with session.get(f"/static/{name}") as answer:
                assert answer.status == 200, name
                size = len(await answer.read())
            if name in {"en.js", "pt.js"}:
                words.append(size)  # of which a browser loads one
            else:
                size_bytes += size
        assert size_bytes + max(words) < 60_000
        for name in ("index.html", "nope.js", "..%2Fpage.py"):
            async with session.get(f"/static/{name}") as answer:
                assert answer.status == 404
