"""Break the real server at random moments, and find what it promised and did not keep.

The real model hears real speech for several customers at once, while the server and its workers
are killed with SIGKILL and the lines of watchers are cut. By hand, from the folder above tests:

    python -m tests.chaos.harness --faults 50 --seed 7

prints what happened, and every broken promise; then the exit status is 1. The seed gives the same
faults in the same order, not the same moments: those depend on the machine.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
import wave
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

import aiohttp
import numpy as np
import psutil
from faster_whisper.audio import decode_audio

from aiotranscribe import Client, Frame, Options, Segment
from aiotranscribe.course import Course
from aiotranscribe.engine.spans import SAMPLE_RATE
from aiotranscribe.errors import ServerError
from aiotranscribe.store import Store
from tests.chaos.report import Report
from tests.chaos.verdict import Accepted, Life, Verdict
from tests.chaos.watchers import Events, Poll, Program, Socket, Watcher
from tests.conftest import SAMPLE, SHARED_AUDIO, Server
from tests.line import Line
from tests.waiting import merge, until, workers

T = TypeVar("T")

# A window of which the model is in doubt is decoded again at higher temperatures, with words drawn
# by chance: no two runs would be alike. None of these recordings has such windows, on one machine.
OPTIONS = Options(temperature=0)
#: Sounds of each recording, by its name: a server seldom lives long enough for one of them.
SHORT = {"sample": [SAMPLE] * 2, "samples": [SAMPLE] * 4}
LONG = SHORT | {
    name: [SHARED_AUDIO / clip for clip in clips]
    for name, clips in {
        "sonnets": ("sonnet1.mp3", "jfk.flac", "sonnet2.mp3"),
        "lecture": ("lecture60.wav", "jfk.flac", "austen-0870.wav"),
        "archive": ("sonnet2.mp3", "lecture60.wav", "sonnet1.mp3", "jfk.flac"),
    }.items()
}
_CUSTOMERS = 3
_WATCHERS: Sequence[type[Watcher]] = (Program, Socket, Socket, Events, Poll)
# Mean time between two faults: enough for a server to come up and do some work now and then.
_PAUSE_S = 1.5
# What customers do besides, and the mean time to the next fault that is to come in between.
_WISHES, _RACE_S = ("cancel", "delete", "submit"), 0.03
# How long to wait for a server to tell something, before it is killed anyway.
_TOLD_S = 5.0
# What the rest of the work may take once nothing breaks any more.
_END_S = 240.0


class Chaos:
    """One run.

    Args:
        folder: For the recordings and the server's files; empty.
        seed: Of all that is left to chance.
        faults: How many of each kind: the server killed, a worker killed, watchers cut.
        recordings: The sounds of each recording.
    """

    def __init__(
        self, folder: Path, seed: int, faults: int, recordings: Mapping[str, Sequence[Path]]
    ) -> None:
        self._data_dir = folder / "data"
        self._seed = seed
        self._chance = Random(seed)
        self._plan = list(_plan(self._chance, faults))
        self._port = _quiet_port(self._chance)
        self._folder = folder
        self._sounds = recordings
        self._jobs: list[Accepted] = []
        self._lives: list[Life] = []
        self._wishes: list[asyncio.Task[None]] = []
        self._is_breaking = True
        self._starting = asyncio.Lock()
        #: What happened.
        self.report = Report()

    async def run(self) -> None:
        """Do it all; what happened is in the report."""
        self._recordings = [_join(self._folder, *item) for item in self._sounds.items()]
        self._expected = await self._undisturbed()
        self._start()
        watching = asyncio.create_task(self._keep_watch())
        try:
            async with Client(self._url) as self._client:
                customers = [
                    asyncio.create_task(self._be_customer(Random(f"{self._seed}-{number}")))
                    for number in range(_CUSTOMERS)
                ]
                await self._break_things()
                await self._see_to_the_end(customers)
                before = await self._ask_all()
                await self._restart()
                after = await self._ask_all()
            watching.cancel()
            await asyncio.to_thread(self._server.stop)
        finally:
            watching.cancel()
            self._server.kill()
        verdict = Verdict(self._jobs, self._lives, self._expected, self.report)
        verdict.on_jobs(before, after, await self._stored())
        verdict.on_files(self._data_dir)

    # -- what should come out ------------------------------------------------------------

    async def _undisturbed(self) -> dict[str, Sequence[Segment]]:
        """Return what the same server makes of each recording while nothing happens to it."""
        server = await asyncio.to_thread(Server, self._folder / "undisturbed")
        try:
            async with Client(server.url) as client:
                jobs = [(await client.submit(path, OPTIONS)).job_id for path in self._recordings]
                texts = [await _follow(client, job_id) for job_id in jobs]
                names = [path.name for path in self._recordings]
                return dict(zip(names, texts, strict=True))
        finally:
            server.kill()

    # -- the customers -------------------------------------------------------------------

    async def _be_customer(self, chance: Random) -> None:
        """Have one recording after the other transcribed."""
        while self._is_breaking:
            await self._have_transcribed(chance)

    async def _have_transcribed(self, chance: Random) -> None:
        """Submit a recording, and watch the job in all ways to its end."""
        path = chance.choice(self._recordings)
        frame = await self._insist(partial(self._client.submit, path, OPTIONS))
        self.report.counts["jobs accepted"] += 1
        job = Accepted(frame.job_id, path.name)
        async with contextlib.AsyncExitStack() as stack:
            for kind in _WATCHERS:
                line = await stack.enter_async_context(Line(self._url))
                job.watchers.append(kind(line, job.id, Random(chance.random()), self.report))
            self._jobs.append(job)
            await asyncio.gather(*(watcher.follow() for watcher in job.watchers))

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again until there is an answer, as a program does whose server is away."""
        while True:
            try:
                answer = await ask()
                self.report.told.set()
                return answer
            except (aiohttp.ClientError, OSError, TimeoutError):
                self.report.counts["requests repeated"] += 1
                await asyncio.sleep(self._chance.uniform(0, 0.3))

    async def _cancel(self, job: Accepted) -> None:
        job.wish = "cancel"
        job.answer = (await self._insist(partial(self._client.cancel, job.id))).status
        self.report.promise(job.answer.is_terminal, f"cancelled job {job.id} is {job.answer}")

    async def _delete(self, job: Accepted) -> None:
        job.wish = "delete"
        repeated = 0

        async def ask() -> None:
            nonlocal repeated
            repeated += 1
            try:
                await self._client.delete(job.id)
            except ServerError as error:  # the answer that we have missed
                is_gone = error.code == "job_not_found" and repeated > 1
                self.report.promise(is_gone, f"deletion of job {job.id}: {error}")

        await self._insist(ask)

    # -- the faults ----------------------------------------------------------------------

    async def _break_things(self) -> None:
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "server": self._restart,
            "worker": self._kill_worker,
            "cut": self._cut,
            "cancel": partial(self._wish, self._cancel),
            "delete": partial(self._wish, self._delete),
            "submit": self._submit,
        }
        pause_s = _PAUSE_S
        for what in self._plan:
            await asyncio.sleep(self._chance.uniform(0, 2 * pause_s))
            await faults[what]()
            self.report.counts[f"faults: {what}"] += 1
            # What a customer wishes is often overtaken by the next fault.
            is_race = what in _WISHES and self._chance.random() < 0.7
            pause_s = _RACE_S if is_race else _PAUSE_S
        self._is_breaking = False

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _start(self) -> None:
        self._lives.append(Life(time.time()))
        self._server = Server(self._data_dir, port=self._port)

    async def _restart(self) -> None:
        """Kill the server, at times before it is up, and start it again a moment later."""
        async with self._starting:
            if self._chance.random() < 0.5:
                await self._until_told()
            self._server.process.kill()
            await asyncio.to_thread(self._server.kill)
            await asyncio.sleep(self._chance.uniform(0, 0.5))
            self._start()

    async def _until_told(self) -> None:
        """Wait for the moment at which a server that promises too early is caught."""
        self.report.told.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TOLD_S):
                await self.report.told.wait()
            self.report.counts["servers killed the moment they told something"] += 1

    async def _keep_watch(self) -> None:
        """Start the server again when it has ended by itself, which it must not."""
        while True:
            async with self._starting:
                status = self._server.process.poll()
                self.report.promise(status is None, f"the server ended by itself: {status}")
                if status is not None:
                    self._start()
            await asyncio.sleep(0.1)

    async def _kill_worker(self) -> None:
        """Kill a worker, whatever it does; a new server has none for a moment."""
        os.kill(await self._some(self._workers), signal.SIGKILL)
        self._lives[-1].kills.append(time.time())

    def _workers(self) -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return sorted(workers(self._server.process.pid))
        return []

    async def _cut(self) -> None:
        """Cut somebody's line, and at times its next connection within its first frames."""

        def connected() -> list[Watcher]:
            everyone = [watcher for job in self._jobs for watcher in job.watchers]
            return [each for each in everyone if each.line.is_open and not each.is_over]

        watcher = await self._some(connected)
        watcher.line.cut()
        if self._chance.random() < 0.5:
            watcher.line.limits = [self._chance.randrange(1, 4000)]

    async def _wish(self, wish: Callable[[Accepted], Coroutine[None, None, None]]) -> None:
        """Have a customer cancel or delete a job at work, while everything else goes on."""

        def at_work() -> list[Accepted]:
            return [job for job in self._jobs if not (job.wish or job.is_over)]

        self._wishes.append(asyncio.create_task(wish(await self._some(at_work))))

    async def _submit(self) -> None:
        """Have one more customer come, who never hears whether the job was accepted."""

        async def submit() -> None:
            async with Line(self._url) as line, Client(line.url) as client:
                line.limits = [1]
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    await client.submit(self._chance.choice(self._recordings), OPTIONS)

        self._wishes.append(asyncio.create_task(submit()))

    async def _some(self, find: Callable[[], Sequence[T]]) -> T:
        """Return one of what there is, once there is something."""
        await until(find)
        return self._chance.choice(find())

    # -- the end -------------------------------------------------------------------------

    async def _see_to_the_end(self, customers: Sequence[asyncio.Task[None]]) -> None:
        """Wait until every watcher has seen the end of its job, and all jobs have one."""
        tasks = [*customers, *self._wishes]
        done, pending = await asyncio.wait(tasks, timeout=_END_S)
        for job in self._jobs:
            for watcher in job.watchers:
                watcher.promise(watcher.is_over, f"never saw the end; last: {watcher.last}")
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        for task in done:
            task.result()
        # Those whose 202 was lost are nobody's, but in the store.
        async with (
            aiohttp.ClientSession(self._url, raise_for_status=True) as session,
            session.get("/v1/jobs", params={"limit": "1000"}) as response,
        ):
            listing = await response.json()
        for job in listing["jobs"]:
            async with asyncio.timeout(_END_S):
                await _follow(self._client, job["job_id"])

    async def _ask_all(self) -> dict[str, Frame | None]:
        """Return every accepted job's frame, ``None`` of those that are not there."""
        found: dict[str, Frame | None] = {}
        for job in self._jobs:
            found[job.id] = None
            with contextlib.suppress(ServerError):
                found[job.id] = await self._insist(partial(self._client.get, job.id))
        return found

    async def _stored(self) -> dict[str, Course]:
        """Return all jobs with their text, as they are on the disk."""
        store = Store(self._data_dir)
        await store.open()
        try:
            return {job.id: Course(job, await store.findings(job.id)) for job in await store.jobs()}
        finally:
            await store.close()


def _plan(chance: Random, faults: int) -> Iterator[str]:
    """Which faults, in which order: in rounds, so that no kind comes often in a row.

    A span that ends two workers of one server fails its job, as it should; a server that is killed
    in between forgets that.
    """
    for number in range(faults):
        kinds = ["server", "worker", "cut"]
        if number % 2:
            kinds.append(_WISHES[number // 2 % len(_WISHES)])
        yield from chance.sample(kinds, len(kinds))


def _quiet_port(chance: Random) -> int:
    """Return a free port of those that the kernel gives to no client.

    A client that comes back to a server that is away could get the very port that it calls, and be
    connected to itself (simultaneous open, RFC 9293, section 3.5).
    """
    while True:
        port = chance.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _join(folder: Path, name: str, paths: Sequence[Path]) -> Path:
    """Make one recording of many, with pauses of a second."""
    pause = np.zeros(SAMPLE_RATE, np.int16)
    parts = [
        part
        for path in paths
        for part in ((decode_audio(str(path)) * 32767).astype(np.int16), pause)
    ]
    joined = folder / f"{name}.wav"
    with wave.open(str(joined), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(np.concatenate(parts).tobytes())
    return joined


async def _follow(client: Client, job_id: str) -> Sequence[Segment]:
    """Watch a job to its end; return its text."""
    return merge([frame async for frame in client.watch(job_id)])


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=50, help="how many of each kind")
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6))
    parser.add_argument("--keep", type=Path, help="an empty folder, to look into afterwards")
    given = parser.parse_args()
    recordings = LONG if SHARED_AUDIO.is_dir() else SHORT
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(given.keep or Path(folder), given.seed, given.faults, recordings)
        try:
            asyncio.run(chaos.run())
        finally:
            print(chaos.report)
    return 1 if chaos.report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
