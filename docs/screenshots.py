"""Take pictures of the page with the real server and model; see CONTRIBUTING.md.

::

    python -m docs.screenshots FOLDER

``FOLDER`` gets ``empty``, ``running``, ``done``, ``failed`` and ``list``, each on a desktop and a
phone, in the light and in the dark. Needs Debian's chromium, flite and ffmpeg.
"""

import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from aiotranscribe import Client
from tests.conftest import SAMPLE, Server

WIDTHS = {"desktop": (1280, 800), "phone": (390, 844)}

# Lewis Carroll, Alice's Adventures in Wonderland (1865).
ALICE = """
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing
to do. Once or twice she had peeped into the book her sister was reading, but it had no pictures
or conversations in it. And what is the use of a book, thought Alice, without pictures or
conversations? So she was considering in her own mind, as well as she could, for the hot day made
her feel very sleepy and stupid, whether the pleasure of making a daisy chain would be worth the
trouble of getting up and picking the daisies, when suddenly a white rabbit with pink eyes ran
close by her. There was nothing so very remarkable in that. Nor did Alice think it so very much
out of the way to hear the rabbit say to itself, oh dear, oh dear, I shall be late. But when the
rabbit actually took a watch out of its waistcoat pocket, and looked at it, and then hurried on,
Alice started to her feet. It flashed across her mind that she had never before seen a rabbit with
either a waistcoat pocket, or a watch to take out of it. And burning with curiosity, she ran
across the field after it, and fortunately was just in time to see it pop down a large rabbit hole
under the hedge. In another moment down went Alice after it, never once considering how in the
world she was to get out again. The rabbit hole went straight on like a tunnel for some way, and
then dipped suddenly down, so suddenly that Alice had not a moment to think about stopping herself
before she found herself falling down a very deep well. Either the well was very deep, or she fell
very slowly, for she had plenty of time as she went down to look about her, and to wonder what was
going to happen next. First, she tried to look down and make out what she was coming to, but it
was too dark to see anything. Then she looked at the sides of the well, and noticed that they were
filled with cupboards and bookshelves. Here and there she saw maps and pictures hung upon pegs.
She took down a jar from one of the shelves as she passed. It was labelled orange marmalade, but
to her great disappointment it was empty. She did not like to drop the jar, for fear of killing
somebody underneath, so managed to put it into one of the cupboards as she fell past it.
"""


async def main(folder: Path) -> None:
    """Take all of them."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        alice = speak(ALICE, place / "Alice, chapter one.ogg")
        server = Server(place / "data", "--workers", "2")
        try:
            async with async_playwright() as playwright, Client(server.url) as client:
                browser = await playwright.chromium.launch(
                    executable_path="/usr/bin/chromium", args=["--no-sandbox"]
                )
                await Album(browser, client, server.url, folder).fill(alice, place)
                await browser.close()
        finally:
            server.kill()


def speak(text: str, path: Path) -> Path:
    """Make a recording of a machine that reads ``text``."""
    speech = path.with_suffix(".wav")
    subprocess.run(["flite", "-voice", "rms", "-o", speech, "-t", text], check=True)
    encode = ["ffmpeg", "-loglevel", "error", "-i", str(speech), "-c:a", "libvorbis", str(path)]
    subprocess.run(encode, check=True)
    return path


class Album:
    """Pictures of one server's page."""

    def __init__(self, browser: Browser, client: Client, url: str, folder: Path) -> None:
        self._browser = browser
        self._client = client
        self._url = url
        self._folder = folder
        self._pages: dict[str, Page] = {}

    async def fill(self, alice: Path, place: Path) -> None:
        """Take the pictures in the order in which a new server gives occasion to."""
        for device, (width, height) in WIDTHS.items():
            for scheme in ("light", "dark"):
                context = await self._context(width, height, scheme)
                self._pages[f"{device}-{scheme}"] = await context.new_page()
        await self._take("empty", "#/", "#none:not([hidden])")

        broken = place / "Answering machine, 2009.wav"
        broken.write_bytes(b"not a recording" * 1000)
        failed = await self._send(broken)
        await self._take("failed", f"#/jobs/{failed}", "#trouble:not([hidden])")

        for title in ("Grandmother tells of the harvest.ogg", "Lecture 4, on being found.ogg"):
            await self._send(Path(shutil.copy(SAMPLE, place / title)))
        running = (await self._client.submit(alice)).job_id
        for title in ("Town meeting, all of it.ogg", "Bedtime story.ogg"):
            await self._client.submit(Path(shutil.copy(alice, place / title)))
        await self._take("running", f"#/jobs/{running}", "#text p:nth-child(2)")
        await self._take("list", "#/", ".running")
        await self._end(running)
        await self._take("done", f"#/jobs/{running}", "#player:not([hidden])", self._play)

    async def _context(self, width: int, height: int, scheme: str) -> BrowserContext:
        return await self._browser.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=2 if width < 600 else 1,
            has_touch=width < 600,
            is_mobile=width < 600,
            color_scheme="dark" if scheme == "dark" else "light",
            locale="en-GB",
        )

    async def _send(self, recording: Path) -> str:
        job_id = (await self._client.submit(recording)).job_id
        await self._end(job_id)
        return job_id

    async def _end(self, job_id: str) -> None:
        async for _ in self._client.watch(job_id):
            pass

    async def _take(self, name: str, address: str, sign: str, prepare: object = None) -> None:
        """Take one picture on each device, all at about the same time, when ``sign`` is there."""

        async def take(device: str, page: Page) -> None:
            await page.goto(f"{self._url}/{address}")
            await page.wait_for_selector(sign)
            if callable(prepare):
                await prepare(page)
            await page.screenshot(path=self._folder / f"{name}-{device}.png", animations="disabled")

        await asyncio.gather(*(take(*each) for each in self._pages.items()))

    async def _play(self, page: Page) -> None:
        await page.locator("#text span").nth(4).click()
        await page.wait_for_selector(".now")
        await page.locator("#play").click()
        await page.mouse.move(0, 0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
