"""What the tests share: recordings, transcribers with a scripted model, the real server."""

import os
import re
import signal
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from aiotranscribe import Config, Transcriber
from tests import scripted

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "examples" / "sample.ogg"
SHARED_AUDIO = ROOT.parent / "shared" / "audio"


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


@pytest.fixture
async def transcriber() -> AsyncIterator[Transcriber]:
    """A transcriber with two workers and a scripted, multilingual model."""
    config = Config(model=("scripted", "scripted.en"), workers=2)
    async with Transcriber(config, loader=scripted.load) as entered:
        await entered.ready()
        yield entered


class Server:
    """The real server in a process of its own, with the real model."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "aiotranscribe", "serve", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--data-dir", str(data_dir), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, (line, self.process.stderr and self.process.stderr.read())
        self.url = found[0]

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 10) -> int:
        """Send a signal, wait for the end, return the exit status."""
        self.process.send_signal(number)
        self.process.communicate(timeout=timeout_s)
        return self.process.returncode


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts the real server; whatever it started is ended."""
    started: list[Server] = []

    def start(*arguments: str) -> Server:
        server = Server(tmp_path / "data", *arguments)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()
