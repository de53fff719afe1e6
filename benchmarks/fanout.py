"""Many watchers of one job: what a frame costs the server, and how late the last one has it.

``python -m benchmarks.fanout [--watchers 1000] [--frames 100] [--per-second 10] [--only NAME ...]``

One process serves, this one watches. Every kind of server publishes the same frames at the same
pace, each with one new sentence. One line a kind:

- frames for a second of the server's CPU, and that as a share of the floor, which is a bare
  ``transport.write`` of a ready frame
- the time from publishing to the last watcher's receipt: median, 95th percentile, worst
- frames received, as a share of watchers times frames; memory of the server for each watcher
- how long it took until all watchers had their first frame

The kinds: ``write`` (the floor), ``send_str`` (a loop over aiohttp's), ``broadcast`` (of the
package websockets), ``ours`` (the real application and hub), ``busy`` (ours, while both cores
transcribe), ``stuck`` (ours; a tenth of the watchers reads nothing, a tenth 1 kB a second).
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from aiohttp import web

from aiotranscribe import Config, Transcriber
from aiotranscribe import frame as frames
from aiotranscribe.frame import View
from aiotranscribe.job import Job, Options, Run, Step
from aiotranscribe.transcript import Segment
from aiotranscribe.web import limits
from aiotranscribe.web.app import create_app
from benchmarks import speech
from benchmarks.server import handshake

KINDS = ("write", "send_str", "broadcast", "ours", "busy", "stuck")
_HOST = "127.0.0.1"
_JOB = Job(id="job", name="talk.ogg", created=0.0, options=Options(model="tiny.en"))
_WORDS = " and so the sentence goes on for about as long as sentences do when people speak"

#: Sends a frame to all watchers; yields from a server that runs, with its port.
Publish = Callable[[int], Awaitable[None]]


def make_view(number: int) -> View:
    """Return the view whose news is one sentence; its message is its number."""
    segments = [Segment(it, 5.0 * it, 5.0 * it + 5, _WORDS) for it in range(number)]
    job = _JOB.go_on("a").enter(Step.TRANSCRIBING).decode(5.0 * number, 3600.0).write(segments)
    return View(frames.head(job, f"#{number}"), segments, (Run("a", 0),))


def make_text(number: int) -> str:
    """Return the frame that a watcher who is up to date gets."""
    view = make_view(number)
    return view.encode(view.frame(number - 1)).decode()


# -- the servers, each in a process of its own -----------------------------------------------


@contextlib.asynccontextmanager
async def serve_aiohttp(is_bare: bool) -> AsyncIterator[tuple[int, Publish]]:
    """A loop over all sockets, as one writes it at first; or the least that can be done."""
    sockets: list[tuple[web.WebSocketResponse, asyncio.Transport]] = []

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        assert request.transport
        await socket.send_str(make_text(1))
        sockets.append((socket, request.transport))
        async for _ in socket:
            pass
        return socket

    async def publish(number: int) -> None:
        text = make_text(number)
        if is_bare:
            payload = text.encode()
            ready = b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload
            for _, transport in sockets:
                transport.write(ready)
        else:
            for socket, _ in sockets:
                await socket.send_str(text)

    app = web.Application()
    app.router.add_get("/ws/transcription/job", handle)
    async with _run(app) as port:
        yield port, publish


@contextlib.asynccontextmanager
async def serve_broadcast() -> AsyncIterator[tuple[int, Publish]]:
    """The package websockets, and its own way to reach many."""
    from websockets.asyncio.server import ServerConnection, broadcast, serve  # noqa: PLC0415

    connections: set[ServerConnection] = set()

    async def handle(connection: ServerConnection) -> None:
        await connection.send(make_text(1))
        connections.add(connection)
        await connection.wait_closed()

    async def publish(number: int) -> None:
        broadcast(connections, make_text(number))

    async with serve(handle, _HOST, 0, compression=None, backlog=4096) as server:
        yield next(iter(server.sockets)).getsockname()[1], publish


@contextlib.asynccontextmanager
async def serve_ours(recording: Path | None) -> AsyncIterator[tuple[int, Publish]]:
    """The real application; ``recording`` is transcribed meanwhile."""
    with TemporaryDirectory() as folder:
        config = Config(data_dir=Path(folder), max_sockets_per_client=100_000)
        transcriber = Transcriber(config)
        async with _run(create_app(transcriber=transcriber)) as port:
            await transcriber.ready()
            hub = transcriber._hub
            hub.publish("job", make_view(1))
            if recording:
                await transcriber.submit(recording)
                await asyncio.sleep(3)

            async def publish(number: int) -> None:
                hub.publish("job", make_view(number))

            yield port, publish


@contextlib.asynccontextmanager
async def _run(app: web.Application) -> AsyncIterator[int]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, _HOST, 0, backlog=4096).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def serve(kind: str, recording: Path | None) -> None:
    """Serve, and do what is asked on standard input, a line each; answer in JSON."""
    context = {
        "write": lambda: serve_aiohttp(is_bare=True),
        "send_str": lambda: serve_aiohttp(is_bare=False),
        "broadcast": serve_broadcast,
    }.get(kind, lambda: serve_ours(recording if kind == "busy" else None))
    process = psutil.Process()
    async with context() as (port, publish):
        _say(port=port, memory=process.memory_info().rss)
        while line := await asyncio.to_thread(sys.stdin.readline):
            count, per_second = json.loads(line)
            memory = process.memory_info().rss
            times, busy = [], 0.0
            began = time.monotonic()
            for number in range(2, count + 2):
                await asyncio.sleep(began + number / per_second - time.monotonic())
                before = time.process_time()
                times.append(time.monotonic())
                await publish(number)
                await asyncio.sleep(0.9 / per_second)
                busy += time.process_time() - before
            _say(times=times, busy=busy, memory=memory)


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


# -- the watchers ------------------------------------------------------------------------------


class Watcher(asyncio.Protocol):
    """A socket that notes which frames come; others wait for what is noted here."""

    def __init__(self, lasts: dict[int, float]) -> None:
        self._lasts = lasts
        #: Frames received.
        self.count = 0
        self.has_begun = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the job's frames."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(handshake("/ws/transcription/job"))

    def data_received(self, data: bytes) -> None:
        """Note when each frame was there; no frame is longer than a segment of TCP on loopback."""
        for found in re.finditer(rb'"message":"#(\d+)"', data):
            self.count += 1
            self._lasts[int(found[1])] = time.monotonic()
            self.has_begun.set()


async def connect(port: int, count: int) -> tuple[list[Watcher], dict[int, float], float]:
    """Open sockets, all at once; return them, when each frame came last, and how long it took."""
    lasts: dict[int, float] = {}
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(500)
    began = time.monotonic()

    async def one() -> Watcher:
        async with gate:
            _, watcher = await loop.create_connection(lambda: Watcher(lasts), _HOST, port)
            await watcher.has_begun.wait()
            return watcher

    watchers = await asyncio.gather(*(one() for _ in range(count)))
    return watchers, lasts, time.monotonic() - began


async def drip(watcher: Watcher) -> None:
    """Read about a kilobyte a second."""
    while True:
        await asyncio.sleep(1)
        watcher.transport.resume_reading()
        await asyncio.sleep(0)
        watcher.transport.pause_reading()


async def measure(kind: str, arguments: argparse.Namespace, recording: Path) -> float:
    """Measure one kind of server, print its line, and return its frames for a second of CPU."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.fanout", "--serve", kind, "--recording", recording),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    assert process.stdin
    assert process.stdout
    try:
        told = json.loads(await process.stdout.readline())
        watchers, lasts, took_s = await connect(told["port"], arguments.watchers)
        drips = []
        if kind == "stuck":
            tenth = len(watchers) // 10
            for watcher in watchers[: 2 * tenth]:
                watcher.transport.pause_reading()
            drips = [asyncio.create_task(drip(watcher)) for watcher in watchers[:tenth]]
        lasts.clear()
        watchers = [each for each in watchers if each.transport.is_reading()]
        for watcher in watchers:
            watcher.count = 0
        before_bytes = told["memory"]
        process.stdin.write(json.dumps([arguments.frames, arguments.per_second]).encode() + b"\n")
        told = json.loads(await process.stdout.readline())
        await asyncio.sleep(1)
        received = sum(watcher.count for watcher in watchers)
        share = received / len(watchers) / arguments.frames
        late = [1e3 * (lasts.get(it + 2, np.inf) - at) for it, at in enumerate(told["times"])]
        rate = float(received / told["busy"])
        each_bytes = (told["memory"] - before_bytes) / arguments.watchers
        p50, p95, worst = np.percentile(late, [50, 95, 100], method="lower")
        print(
            f"{kind:10}{rate:9.0f} frames/CPU s   last has it after {p50:6.1f} {p95:6.1f}"
            f" {worst:6.1f} ms   received {100 * share:5.1f} %"
            f"   {each_bytes / 1e3:5.1f} kB each   connected in {took_s:5.2f} s",
            flush=True,
        )
        for task in drips:
            task.cancel()
        for watcher in watchers:
            watcher.transport.abort()
        return rate
    finally:
        process.stdin.close()
        await process.wait()


async def measure_all(arguments: argparse.Namespace) -> None:
    """Measure one kind after the other."""
    with TemporaryDirectory() as folder:
        recording = speech.make(Path(folder), 30 * 60, 3).path
        rates = {kind: await measure(kind, arguments, recording) for kind in arguments.only}
    for kind, rate in rates.items():
        if "write" in rates:
            print(f"{kind:10}{rate / rates['write']:5.2f} of the floor")


def main() -> None:
    """Measure and print; or, in a process of its own, serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--per-second", type=float, default=10)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--recording", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    limits.raise_file_limit()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, arguments.recording))
    else:
        asyncio.run(measure_all(arguments))


if __name__ == "__main__":
    main()
