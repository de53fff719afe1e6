"""What the tests share: recordings, transcribers with a scripted model, the real server."""

import os
import re
import signal
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import settings
from playwright.async_api import Browser, async_playwright

from aiotranscribe import Config, Transcriber, create_app
from tests import scripted

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "examples" / "sample.ogg"
#: What makes ``tests.scripted_program`` serve the scripted models.
SCRIPTED = ("--model", "scripted", "--model", "scripted.en", "--workers", "2")
SHARED_AUDIO = ROOT.parent / "shared" / "audio"

# How long an example takes is the business of whoever else uses the machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

WebClient = TestClient[web.Request, web.Application]


@pytest.fixture
def shared_audio() -> Path:
    """The folder of real speech, where it is at hand."""
    if not SHARED_AUDIO.is_dir():
        pytest.skip("needs the recordings of ../shared/audio, which a clone does not have")
    return SHARED_AUDIO


@pytest.fixture(scope="session")
def make_wav(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """Return a function that makes a recording of so many seconds of noise."""
    folder = tmp_path_factory.mktemp("wav")

    def make(seconds: float) -> Path:
        path = folder / f"noise-{seconds}.wav"
        if not path.exists():
            noise = np.random.default_rng(1).normal(0, 1000, round(seconds * 16_000))
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(noise.astype(np.int16).tobytes())
        return path

    return make


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the transcriber or the server of a module keeps its files."""
    return tmp_path_factory.mktemp("data")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def transcriber(data_dir: Path) -> AsyncIterator[Transcriber]:
    """A transcriber for a whole module, with two workers and scripted models."""
    config = Config(model=("scripted", "scripted.en"), workers=2, data_dir=data_dir)
    async with Transcriber(config, loader=scripted.load) as entered:
        await entered.ready()
        yield entered


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web_client(data_dir: Path) -> AsyncIterator[WebClient]:
    """A client of an application for a whole module, with two workers and scripted models."""
    config = Config(model=("scripted", "scripted.en"), workers=2, data_dir=data_dir)
    transcriber = Transcriber(config, loader=scripted.load)
    async with WebClient(TestServer(create_app(transcriber=transcriber))) as client:
        await transcriber.ready()
        yield client


class Server:
    """The real server in a process of its own.

    Args:
        data_dir: Where it keeps its files, and its log beside them.
        arguments: Of the command line, after ``serve``.
        port: Where it listens; then it is not waited for. Else at any that is free, once it is
            ready.
        program: What to run; ``tests.scripted_program`` has the scripted models.
        prefix: The beginning of the command, which runs the rest of it.
    """

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        port: int = 0,
        program: str = "aiotranscribe",
        prefix: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        command = [*prefix, sys.executable, "-m", program, "serve", "--port", str(port)]
        with (data_dir / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(data_dir), *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        self.url = f"http://127.0.0.1:{port}" if port else self._until_ready()

    def _until_ready(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            self.kill()
            raise AssertionError(line, (self.data_dir / "log").read_text())
        return found[0]

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 10) -> int:
        """Send a signal, wait for the end, return the exit status."""
        self.process.send_signal(number)
        self.process.communicate(timeout=timeout_s)
        return self.process.returncode

    def kill(self) -> None:
        """End it, whatever it is doing; its workers end with it. May be called again."""
        if self.process.poll() is None:
            self.process.kill()
        if self.process.stdout and not self.process.stdout.closed:
            self.process.communicate()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts the real server; whatever it started is ended."""
    started: list[Server] = []

    def start(*arguments: str, **more: Any) -> Server:
        server = Server(tmp_path / "data", *arguments, **more)
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def real_server(data_dir: Path) -> Iterator[Server]:
    """The real server with the real model, for a whole module."""
    server = Server(data_dir)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def scripted_server(data_dir: Path) -> Iterator[Server]:
    """The real server with scripted models, for a whole module."""
    server = Server(data_dir / "scripted", *SCRIPTED, program="tests.scripted_program")
    yield server
    server.kill()


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Debian's Chromium, which .ci/run installs."""
    path = Path("/usr/bin/chromium")
    if not path.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs Debian's package chromium")
    return path


@pytest.fixture
async def browser(chromium: Path) -> AsyncIterator[Browser]:
    """A real browser, in which ``evil.test`` is a site on this machine."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                "--host-resolver-rules=MAP evil.test 127.0.0.1",
            ],
        )
        yield browser
        await browser.close()
