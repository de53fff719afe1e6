"""How much memory, beside faster-whisper, and does it grow with the recording?

``python -m benchmarks.memory [--minutes 10 60 240]``

Peak of the resident memory of all processes together, sampled ten times a second; pages that
several processes share are counted in each. faster-whisper is measured on the second recording.
"""

import argparse
import asyncio
import contextlib
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from aiotranscribe import Client
from benchmarks import speech
from benchmarks.server import serving


class Peak:
    """Watches a process and its children; use it with ``with``."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.megabytes = 0.0

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            total = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [self._process, *self._process.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        total += process.memory_info().rss
            self.megabytes = max(self.megabytes, total / 1e6)


async def _transcribe(url: str, path: Path) -> None:
    async with Client(url) as client:
        job = await client.submit(path)
        frame = [frame async for frame in client.watch(job.job_id)][-1]
        assert frame.status == "completed", frame


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60, 240])
    all_minutes = parser.parse_args().minutes
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number, minutes in enumerate(all_minutes):
            recording = speech.make(folder, minutes * 60, 1)
            # A server for each, since a peak stays.
            data = folder / f"data-{minutes}"
            with serving(data, "--workers", "2") as (url, pid), Peak(pid) as peak:
                asyncio.run(_transcribe(url, recording.path))
            print(f"ours, {minutes:.0f} min, 2 workers: {peak.megabytes:.0f} MB", flush=True)
            if number == 1:
                command = [sys.executable, "-m", "benchmarks.throughput", "--peer", "sequential"]
                peer = subprocess.Popen([*command, str(recording.path)], stdout=subprocess.DEVNULL)
                with Peak(peer.pid) as peak:
                    peer.wait()
                print(f"faster-whisper, {minutes:.0f} min: {peak.megabytes:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
