"""A crowd in front of the real server: does the decoding suffer, is anything lost, who waits?

``python -m benchmarks.crowd [--minutes 7] [--only NAME ...]``

The real server, the real model, a real recording; all watchers in this process, on one job.

- ``decoding``: how much longer the job takes with 1,000 watchers than with none, in turns; beside
  it, the processor time that the watching process took from the same two cores.
- ``full``: as many watchers as the limit of open files allows, one job to its end: does each have
  every segment, and the terminal frame?
- ``storm``: 5,000 watchers; the server is killed and started again while it decodes, and all come
  back at once, each with its cursor. Time until every one has its first frame, from the moment at
  which the server takes connections; and is anything lost?
- ``goodbye``: 5,000 watchers, of whom a tenth reads nothing; the server is told to stop. How long
  does it take, and does everybody who reads get the close frame that says to come back (1001)?
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import resource
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from aiohttp import WSCloseCode

from aiotranscribe import Client
from aiotranscribe.web import limits
from benchmarks import speech
from benchmarks.server import handshake, serving

_HOST = "127.0.0.1"
_SEGMENT = re.compile(rb'\{"id":')
_CURSOR = re.compile(rb'"cursor":"([^"]+)"')
_TERMINAL = re.compile(rb'"status":"(completed|failed|cancelled)"')
_ARGUMENTS = ("--workers", "2", "--max-sockets-per-client", "100000")
_AT_ONCE = 2000
# What the server has open or keeps for itself, and this process.
_NOT_FOR_WATCHERS = 150


class Watcher(asyncio.Protocol):
    """A socket that counts what it is sent."""

    def __init__(self, target: str, old: "Watcher | None" = None) -> None:
        cursor = old.cursor if old else ""
        self._request = handshake(f"{target}?since={cursor}")
        self._buffer = b""
        self._has_upgraded = False
        self.cursor: str = cursor
        #: Segments and frames received.
        self.segments: int = old.segments if old else 0
        self.frames = 0
        #: The first frame, or the end; and the end.
        self.has_changed = asyncio.Event()
        self.has_ended = asyncio.Event()
        self.status = b""
        self.close_code = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the job's frames."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self.has_changed.set()
        self.has_ended.set()

    def data_received(self, data: bytes) -> None:
        """Take what has come whole."""
        self._buffer += data
        if not self._has_upgraded:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101"):
                self.transport.abort()
                return
            self._buffer, self._has_upgraded = rest, True
        for opcode, payload in self._messages():
            if opcode == 1:
                self._take(payload)
            elif opcode == 8:
                self.close_code = int.from_bytes(payload[:2], "big")
                self.transport.write(b"\x88\x82" + 4 * b"\0" + payload[:2])
            elif opcode == 9:
                self.transport.write(b"\x8a\x80" + 4 * b"\0")

    def _take(self, payload: bytes) -> None:
        self.frames += 1
        self.segments += len(_SEGMENT.findall(payload))
        if found := _CURSOR.search(payload):
            self.cursor = found[1].decode()
        if found := _TERMINAL.search(payload, 0, 200):
            self.status = found[1]
        self.has_changed.set()

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        """Every whole message (RFC 6455, section 5.2), with its opcode."""
        while len(self._buffer) >= 2:
            start, size = 2, self._buffer[1]
            if size > 125:
                start = 4 if size == 126 else 10
                size = int.from_bytes(self._buffer[2:start], "big")
            if len(self._buffer) < start + size:
                return
            opcode, payload = self._buffer[0] & 15, self._buffer[start : start + size]
            self._buffer = self._buffer[start + size :]
            yield opcode, payload


@dataclass
class Arrivals:
    """When those who connect did."""

    #: The first TCP connection, and the first frame of each, on the monotonic clock.
    accepted: float = math.inf
    begun: list[float] = field(default_factory=list)

    @property
    def took_s(self) -> float:
        """How long all of them took."""
        return max(self.begun) - self.accepted


async def connect(
    url: str, job_id: str, old: Sequence[Watcher | None], arrivals: Arrivals | None = None
) -> list[Watcher]:
    """Open a socket for each, those who had one with their cursor; come again when it fails."""
    port = int(url.rpartition(":")[2])
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(_AT_ONCE)
    arrivals = arrivals or Arrivals()

    async def one(before: Watcher | None) -> Watcher:
        while True:
            async with gate:
                with contextlib.suppress(OSError):
                    _, watcher = await loop.create_connection(
                        lambda: Watcher(f"/ws/transcription/{job_id}", before), _HOST, port
                    )
                    arrivals.accepted = min(arrivals.accepted, time.monotonic())
                    await watcher.has_changed.wait()
                    if watcher.frames:
                        arrivals.begun.append(time.monotonic())
                        return watcher
            await asyncio.sleep(random.uniform(0.1, 0.5))

    return await asyncio.gather(*map(one, old))


async def decoding(path: Path, folder: Path) -> None:
    """How much longer does a job take?"""
    took: dict[int, list[float]] = {0: [], 1000: []}
    served: dict[int, list[float]] = {0: [], 1000: []}
    cpu_s, frames = [], []
    with serving(folder / "decoding", *_ARGUMENTS) as (url, pid):
        server = psutil.Process(pid)
        async with Client(url) as client:
            for count in [0, *4 * [0, 1000]]:
                began, used = time.monotonic(), time.process_time()
                before_s = sum(server.cpu_times()[:2])
                job = await client.submit(path)
                watchers = await connect(url, job.job_id, count * [None])
                _, *_, _ = [frame async for frame in client.watch(job.job_id)]
                took[count].append(time.monotonic() - began)
                served[count].append(sum(server.cpu_times()[:2]) - before_s)
                if count:
                    cpu_s.append(time.process_time() - used)
                    frames.append(watchers[-1].frames / took[count][-1])
                for watcher in watchers:
                    watcher.transport.abort()
    alone, crowded = statistics.median(took[0][1:]), statistics.median(took[1000])
    worst = max(took[1000]) / min(took[0][1:])
    used_s = statistics.median(cpu_s)
    print(
        f"decoding: {alone:.1f} s alone, {crowded:.1f} s with 1,000 watchers at "
        f"{statistics.median(frames):.1f} frames a second, {100 * (crowded / alone - 1):.1f} % up "
        f"(worst {100 * (worst - 1):.1f} %)\n  processor time of the server's own process: "
        f"{statistics.median(served[0]):.2f} s alone, {statistics.median(served[1000]):.2f} s; of "
        f"the watching process {used_s:.2f} s, {50 * used_s / alone:.1f} % of both cores",
        flush=True,
    )


async def full(path: Path, folder: Path) -> None:
    """Does everybody get everything?"""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = most - _NOT_FOR_WATCHERS
    with serving(folder / "full", *_ARGUMENTS) as (url, pid):
        async with Client(url) as client:
            job = await client.submit(path)
            arrivals = Arrivals()
            watchers = await connect(url, job.job_id, count * [None], arrivals)
            status = (await client.get(job.job_id)).status
            megabytes = psutil.Process(pid).memory_info().rss / 1e6
            print(
                f"full: {count} connected in {arrivals.took_s:.1f} s, when the job was {status}; "
                f"the server has {megabytes:.0f} MB",
                flush=True,
            )
            await compare(client, job.job_id, watchers)


async def storm(path: Path, folder: Path) -> None:
    """How soon are all back?"""
    with serving(folder / "storm", *_ARGUMENTS) as (url, pid):
        async with Client(url) as client:
            job = await client.submit(path)
            watchers = await connect(url, job.job_id, 5000 * [None])
        os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*(watcher.has_ended.wait() for watcher in watchers))
    arrivals = Arrivals()
    returning = asyncio.create_task(connect(url, job.job_id, watchers, arrivals))
    port = url.rpartition(":")[2]
    with contextlib.ExitStack() as stack:
        again = serving(folder / "storm", *_ARGUMENTS, "--port", port)
        await asyncio.to_thread(stack.enter_context, again)
        watchers = await returning
        async with Client(url) as client:
            frame = await client.get(job.job_id)
            late = np.percentile(arrivals.begun, 50) - arrivals.accepted
            print(
                f"storm: half of 5000 are back after {late:.2f} s, all after "
                f"{arrivals.took_s:.2f} s ({frame.status}, {frame.progress_percentage:.0f} %)",
                flush=True,
            )
            await compare(client, job.job_id, watchers)


async def goodbye(path: Path, folder: Path) -> None:
    """How does the server leave?"""
    with serving(folder / "goodbye", *_ARGUMENTS) as (url, pid):
        async with Client(url) as client:
            job = await client.submit(path)
            watchers = await connect(url, job.job_id, 5000 * [None])
        for watcher in watchers[::10]:
            watcher.transport.pause_reading()
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        await asyncio.to_thread(psutil.Process(pid).wait, 30)
        took_s = time.monotonic() - began
    await asyncio.sleep(0.5)
    told = sum(watcher.close_code == WSCloseCode.GOING_AWAY for watcher in watchers)
    print(f"goodbye: over after {took_s:.2f} s; {told} of 4500 who read were told", flush=True)


async def compare(client: Client, job_id: str, watchers: Sequence[Watcher]) -> None:
    """Wait for the end, and tell whether everybody has everything."""
    await asyncio.gather(*(watcher.has_ended.wait() for watcher in watchers))
    count = json.loads(await client.transcript(job_id, "json"))["segments"][-1]["id"] + 1
    whole = sum(watcher.segments == count for watcher in watchers)
    ends = sum(watcher.status == b"completed" for watcher in watchers)
    print(f"  of {len(watchers)}, {whole} have all {count} segments, {ends} the terminal frame")


def main() -> None:
    """Measure and print."""
    kinds = {kind.__name__: kind for kind in (decoding, full, storm, goodbye)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--only", nargs="*", choices=kinds, default=list(kinds))
    arguments = parser.parse_args()
    limits.raise_file_limit()
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = speech.make(folder, arguments.minutes * 60, 1).path
        for kind in arguments.only:
            asyncio.run(kinds[kind](path, folder))


if __name__ == "__main__":
    main()
