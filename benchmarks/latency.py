"""How old is a segment when a watcher has read it, while both cores decode?

``python -m benchmarks.latency [--minutes 10]``

Two recordings are decoded by the real model, one on each core. Where the worker has a segment,
the time is put in place of its text; a watcher on the socket, in a process of its own, and a
client that polls once a second subtract it from the time at which they have it.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import msgspec
import numpy as np
from aiohttp import web

from aiotranscribe import Client, Config, Options, Transcriber, create_app
from aiotranscribe.engine.messages import Recognised
from aiotranscribe.engine.whisper import Clip, Whisper
from benchmarks import speech
from benchmarks.server import serving


class Stamped(Whisper):
    """The real model, whose segments say when they were recognised."""

    def transcribe(self, clips: Sequence[Clip], options: Options) -> Iterator[Recognised]:
        """Yield what the real model does, with nanoseconds of the system's clock as text."""
        for recognised in super().transcribe(clips, options):
            now = str(time.monotonic_ns())
            stamped = [msgspec.structs.replace(old, text=now) for old in recognised.segments]
            yield msgspec.structs.replace(recognised, segments=tuple(stamped))


async def serve(folder: Path) -> None:
    """Run the server with the stamping model; tell its URL when it is ready."""
    transcriber = Transcriber(Config(data_dir=folder, workers=2), loader=Stamped)
    runner = web.AppRunner(create_app(transcriber=transcriber), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await transcriber.ready()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await asyncio.Event().wait()


async def measure(url: str, recordings: Sequence[Path]) -> dict[str, list[float]]:
    """Return the age in milliseconds of every segment, pushed and polled."""
    ages: dict[str, list[float]] = {"pushed": [], "polled": []}
    async with Client(url) as client, aiohttp.ClientSession() as session:
        # One span each: a segment that waits for an earlier span's would tell of decoding.
        options = Options(parallel="off")
        jobs = [(await client.submit(path, options)).job_id for path in recordings]

        async def push(job_id: str) -> None:
            async with session.ws_connect(f"{url}/ws/transcription/{job_id}") as socket:
                async for message in socket:
                    now = time.monotonic_ns()
                    rows = msgspec.json.decode(message.data)["segments"]
                    ages["pushed"] += [(now - int(row["text"])) / 1e6 for row in rows]

        async def poll(job_id: str) -> None:
            cursor, is_running = "", True
            while is_running:
                await asyncio.sleep(1)
                async with session.get(f"{url}/v1/jobs/{job_id}?since={cursor}") as response:
                    frame = await response.json()
                now = time.monotonic_ns()
                ages["polled"] += [(now - int(row["text"])) / 1e6 for row in frame["segments"]]
                cursor, is_running = frame["cursor"], frame["status"] in {"queued", "running"}

        await asyncio.gather(*(push(job) for job in jobs), *(poll(job) for job in jobs))
    return ages


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of each recording")
    minutes = parser.parse_args().minutes
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = [speech.make(folder, minutes * 60, seed).path for seed in (1, 2)]
        with serving(folder / "data", module="benchmarks.latency") as (url, _):
            ages = asyncio.run(measure(url, paths))
    for how, values in ages.items():
        p50, p99 = np.percentile(values, [50, 99])
        print(
            f"{how}: {len(values)} segments, p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
            f"worst {max(values):.2f} ms"
        )


if __name__ == "__main__":
    if "serve" in sys.argv:
        asyncio.run(serve(Path(sys.argv[-1])))
    else:
        main()
