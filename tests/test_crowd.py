"""More watchers than there is room for."""

import asyncio
import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, TCPConnector, WSServerHandshakeError

from aiotranscribe import Client
from tests.conftest import SCRIPTED, Server
from tests.scripted import Script
from tests.waiting import LONG_S, to_end, until

MakeWav = Callable[[float], Path]

FILES = 200
ENDLESS = Script(segments=10_000, delay=0.05).options()


class Watcher:
    """Somebody who is connected, and what he was told."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.socket = socket
        #: How many segments he has.
        self.count = 0
        self.task = asyncio.create_task(self.follow())

    async def follow(self) -> None:
        """Take every frame."""
        async for message in self.socket:
            frame = message.json()
            assert frame["offset"] == self.count
            self.count += len(frame["segments"])


@pytest.fixture
def small_server(start_server: Callable[..., Server]) -> Server:
    """The real server, which may open few files."""
    prefix = ("sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh")
    arguments = (*SCRIPTED, "--max-sockets-per-client", "1000")
    return start_server(*arguments, program="tests.scripted_program", prefix=prefix)


async def fill(session: ClientSession, url: str) -> tuple[list[Watcher], WSServerHandshakeError]:
    """Connect until there is no room."""
    watchers: list[Watcher] = []
    for _ in range(FILES):
        try:
            watchers.append(Watcher(await session.ws_connect(url)))
        except WSServerHandshakeError as error:
            return watchers, error
    raise AssertionError("more watchers than files")


async def come(session: ClientSession, url: str) -> Watcher:
    """Connect as soon as there is room."""
    async with asyncio.timeout(LONG_S):
        while True:
            with contextlib.suppress(WSServerHandshakeError):
                return Watcher(await session.ws_connect(url))
            await asyncio.sleep(0.05)


async def test_who_comes_when_there_is_no_room_is_told_so_and_the_others_stay(
    small_server: Server, make_wav: MakeWav
) -> None:
    """One watcher too many would end a live event for all the others, or hang without a word."""
    url = small_server.url
    async with Client(url) as client, ClientSession(connector=TCPConnector(limit=0)) as session:
        job = await client.submit(make_wav(2.0), ENDLESS)
        watchers, refusal = await fill(session, f"{url}/ws/transcription/{job.job_id}")
        assert len(watchers) > FILES // 4
        assert refusal.status == 503
        async with session.get(f"{url}/v1/jobs") as response:
            assert (response.status, (await response.json())["code"]) == (503, "server_full")
            assert response.headers["Retry-After"] == "10"
            assert response.headers["Connection"] == "close"
        async with session.get(f"{url}/health") as response:
            assert response.status == 200, "whoever watches the server may not end it for this"
        counts = [watcher.count for watcher in watchers]
        await until(lambda: all(w.count > was for w, was in zip(watchers, counts, strict=True)))
        for watcher in watchers[:5]:
            await watcher.socket.close()
        watchers.append(await come(session, f"{url}/ws/transcription/{job.job_id}"))
        await until(lambda: watchers[-1].count > 0)
        await client.cancel(job.job_id)
        await until(lambda: all(watcher.task.done() for watcher in watchers))
        for watcher in watchers:
            await watcher.task
            assert watcher.socket.close_code == 1000


async def test_connections_that_take_the_last_descriptor_hurt_nobody_for_long(
    small_server: Server, make_wav: MakeWav
) -> None:
    """Anybody could end everybody's jobs by connecting, without a single request."""
    url = small_server.url
    port = int(url.rpartition(":")[2])
    async with Client(url) as client, ClientSession() as session:
        job = await client.submit(make_wav(2.0), ENDLESS)
        watcher = Watcher(await session.ws_connect(f"{url}/ws/transcription/{job.job_id}"))
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(FILES):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                stack.callback(writer.close)
            log = small_server.data_dir / "log"
            await until(lambda: re.search("socket.accept|Too many open files", log.read_text()))
            count = watcher.count
            await until(lambda: watcher.count > count + 10)
        assert log.read_text().count("Too many open files") < 10, "it does not flood the log"
        another = await client.submit(make_wav(2.0), Script(segments=3).options())
        assert (await to_end(client.watch(another.job_id)))[-1].status == "completed"


async def test_a_server_that_stops_says_goodbye_to_all_at_once(
    start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """One watcher who does not answer would keep the others, and the server, for its time-out."""
    server = start_server(
        *(*SCRIPTED, "--max-sockets-per-client", "1000"), program="tests.scripted_program"
    )
    url = server.url
    async with Client(url) as client, ClientSession(connector=TCPConnector(limit=0)) as session:
        job = await client.submit(make_wav(2.0), ENDLESS)
        target = f"{url}/ws/transcription/{job.job_id}"
        watchers = [Watcher(await session.ws_connect(target)) for _ in range(200)]
        # They are sent frames, but never read nor answer.
        deaf = [await session.ws_connect(target) for _ in range(20)]
        await until(lambda: all(watcher.count for watcher in watchers))
        status = await asyncio.to_thread(server.stop)
        assert status == 0
        await until(lambda: all(watcher.task.done() for watcher in watchers))
        assert {watcher.socket.close_code for watcher in watchers} == {1001}
        await asyncio.gather(*(socket.close() for socket in deaf))
