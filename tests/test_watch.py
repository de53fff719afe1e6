"""The socket: frames as they happen, whatever watchers and networks do."""

import asyncio
import base64
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestServer
from yarl import URL

from aiotranscribe import Client, Config, Frame, Options, Transcriber, create_app, hub
from aiotranscribe import frame as frames
from aiotranscribe.frame import View
from aiotranscribe.transcript import Segment
from aiotranscribe.web import limits, watch
from aiotranscribe.web.jobs import TRANSCRIBER
from tests import builders, scripted
from tests.conftest import SCRIPTED, Server, WebClient
from tests.scripted import Script
from tests.waiting import LONG_S, check, is_alive, merge, until, until_frame, workers

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("no_errors")]

MakeWav = Callable[[float], Path]
StartWatcher = Callable[[URL | str, str], "RawWatcher"]

ENDLESS = Script(segments=10_000, delay=0.05)


def transcriber_of(client: WebClient) -> Transcriber:
    """Return the transcriber behind the application."""
    return client.app[TRANSCRIBER]


async def submit(client: WebClient, recording: Path, script: Script) -> str:
    """Start a job; return its id."""
    job = await transcriber_of(client).submit(recording, options=script.options())
    return job.id


async def receive(socket: ClientWebSocketResponse) -> AsyncIterator[Frame]:
    """Iterate over the frames that a socket brings, to its close."""
    async for message in socket:
        assert message.type is WSMsgType.TEXT
        yield frames.decode(message.data)


async def story(client: WebClient, job_id: str) -> list[Frame]:
    """Watch a job to its end, and check what every watcher may rely on."""
    async with asyncio.timeout(LONG_S), client.ws_connect(f"/ws/transcription/{job_id}") as socket:
        received = [frame async for frame in receive(socket)]
    assert socket.close_code == 1000
    check(received)
    return received


async def next_job_works(client: WebClient, recording: Path) -> None:
    """Check that the server is as good as new."""
    received = await story(client, await submit(client, recording, Script()))
    assert received[-1].status == "completed"
    assert len(merge(received)) == 2


@pytest.fixture
def raw_watcher() -> Iterator[StartWatcher]:
    """Return a function that starts a watcher without a library; they are closed in the end."""
    started: list[RawWatcher] = []

    def start(url: URL | str, job_id: str) -> RawWatcher:
        started.append(RawWatcher(url, job_id))
        return started[-1]

    yield start
    for watcher in started:
        watcher.socket.close()


class RawWatcher:
    """A watcher without a library, which reads only what it is told to.

    Args:
        url: Of the server.
        job_id: What to watch.
        buffer_bytes: How much the system takes for it.
    """

    def __init__(self, url: URL | str, job_id: str, buffer_bytes: int = 2048) -> None:
        url = URL(url)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.settimeout(LONG_S)
        self.socket.connect((url.host, url.port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws/transcription/{job_id} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert self.socket.recv(12) == b"HTTP/1.1 101"

    def vanish(self) -> None:
        """Cut the connection without a word (with a TCP reset)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def is_cut(self) -> bool:
        """Whether the server has given up the connection; what it sent is thrown away."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True


# -- one watcher -------------------------------------------------------------------------------


async def test_a_watcher_gets_the_whole_story(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise the live page shows nothing, or not the truth."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=5, delay=0.1))
    received = await story(web_client, job_id)
    segments = merge(received)
    assert [segment.text for segment in segments] == [
        f" pt {start:.1f}." for start in (0, 0.4, 0.8, 1.2, 1.6)
    ]
    assert received[-1].status == "completed"
    assert len({frame.progress_percentage for frame in received}) > 5
    # Every segment came by itself, when it was there.
    assert [len(frame.segments) for frame in received if frame.segments] == [1] * 5
    async with web_client.get(f"/v1/jobs/{job_id}") as response:
        now = frames.decode(await response.read())
    assert list(now.segments) == segments
    await next_job_works(web_client, make_wav(2.0))


async def test_the_first_frame_comes_at_once(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise a watcher of a job that waits looks at an empty page."""
    busy = [await submit(web_client, make_wav(2.0), ENDLESS) for _ in range(2)]
    await until(lambda: all(transcriber_of(web_client).summary(it).offset for it in busy))
    job_id = await submit(web_client, make_wav(2.0), Script())
    async with web_client.ws_connect(f"/ws/transcription/{job_id}") as socket:
        frame = frames.decode(await socket.receive_str(timeout=5))
        assert (frame.status, frame.queue_position) == ("queued", 0)
        for each in busy:
            await transcriber_of(web_client).cancel(each)
        check([frame, *[frame async for frame in receive(socket)]])


async def test_what_is_sent_is_the_json_that_is_documented(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise clients written after the documentation do not work."""
    job_id = await submit(web_client, make_wav(2.0), Script())
    async with web_client.ws_connect(f"/ws/transcription/{job_id}") as socket:
        async for message in socket:
            frame = message.json()
            assert list(frame)[:5] == [
                "job_id",
                "status",
                "progress_percentage",
                "current_step",
                "message",
            ]
    assert frame["status"] == "completed"
    assert socket.close_code == 1000


async def test_the_end_of_a_failed_job_is_an_end(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise a failed job is watched for ever."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=3, fail_at=2))
    received = await story(web_client, job_id)
    assert received[-1].error
    assert received[-1].error.code == "work_failed"
    assert len(merge(received)) == 2


@pytest.mark.parametrize("change", ["cancel", "delete"])
async def test_the_end_of_a_stopped_job_is_an_end(
    web_client: WebClient, make_wav: MakeWav, change: str
) -> None:
    """Otherwise a job that somebody else stopped is watched for ever."""
    job_id = await submit(web_client, make_wav(2.0), ENDLESS)
    watching = asyncio.create_task(story(web_client, job_id))
    await until(lambda: transcriber_of(web_client).summary(job_id).offset)
    await getattr(transcriber_of(web_client), change)(job_id)
    received = await watching
    assert received[-1].status == "cancelled"
    assert merge(received)
    await next_job_works(web_client, make_wav(2.0))


async def test_a_watcher_who_comes_late_gets_everything(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise who reloads the page has lost the beginning."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=20, delay=0.05))
    await until(lambda: transcriber_of(web_client).summary(job_id).offset > 5)
    received = await story(web_client, job_id)
    assert len(received[0].segments) > 5
    assert len(merge(received)) == 20


async def test_a_watcher_who_comes_after_the_end_gets_everything_at_once(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise the text is gone for who was not there when it came."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=5))
    received = await story(web_client, job_id)
    for _ in range(2):
        (frame,) = await story(web_client, job_id)
        assert list(frame.segments) == merge(received)
        assert frame.progress_percentage == 100


async def test_who_comes_back_gets_only_what_is_missing(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise every break in the line costs all of the text again, or some of it."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=20, delay=0.05))
    mine: list[Frame] = []
    since = ""
    while not (mine and mine[-1].status.is_terminal):
        url = f"/ws/transcription/{job_id}?since={since}"
        async with web_client.ws_connect(url) as socket:
            received = []
            async for frame in receive(socket):
                received.append(frame)
                if len(received) == 3:
                    break
        assert received[0].offset == len(merge(mine)), "not where it was left"
        mine += received
        since = mine[-1].cursor
    assert len(merge(mine)) == 20
    assert sum(len(frame.segments) for frame in mine) == 20


@pytest.mark.parametrize("since", ["", "0", "1-99", "2-1", "-", "1-", "x" * 2000, "1-²", "%00"])
async def test_a_cursor_that_is_not_ours_brings_everything(
    web_client: WebClient, make_wav: MakeWav, since: str
) -> None:
    """Otherwise a cursor of a server that is no more leaves a hole in the text."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=3))
    await story(web_client, job_id)
    url = f"/ws/transcription/{job_id}?since={since}"
    async with web_client.ws_connect(url) as socket:
        (frame,) = [frame async for frame in receive(socket)]
    assert frame.offset == 0
    assert len(frame.segments) == 3


async def test_a_job_that_stands_still_gives_signs_of_life(
    web_client: WebClient, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a browser, which sees no pings, cannot tell a long step from a dead line."""
    monkeypatch.setattr(hub, "HEARTBEAT_S", 0.05)
    job_id = await submit(web_client, make_wav(2.0), Script(hang=600))
    async with web_client.ws_connect(f"/ws/transcription/{job_id}") as socket:
        stream = receive(socket)
        first = await until_frame(stream, lambda frame: frame.current_step == "transcribing")
        times = {first.time}
        for _ in range(5):
            frame = await anext(stream)
            assert (frame.status, frame.segments) == (first.status, [])
            times.add(frame.time)
        assert len(times) > 3
    await transcriber_of(web_client).delete(job_id)


# -- refused -----------------------------------------------------------------------------------


async def test_an_unknown_job_is_refused_before_the_upgrade(web_client: WebClient) -> None:
    """Otherwise a client waits for frames of a job that does not exist."""
    with pytest.raises(WSServerHandshakeError) as caught:
        await web_client.ws_connect("/ws/transcription/nope")
    assert caught.value.status == 404
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }
    async with web_client.get("/ws/transcription/nope", headers=upgrade) as response:
        assert response.status == 404
        assert response.content_type == "application/problem+json"
        assert (await response.json())["code"] == "job_not_found"


async def test_a_request_that_is_no_websocket_is_refused(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise somebody who opens the address in a browser sees a page of nonsense."""
    job_id = await submit(web_client, make_wav(2.0), Script())
    async with web_client.get(f"/ws/transcription/{job_id}") as response:
        assert response.status == 400
        assert response.content_type == "application/problem+json"
    async with web_client.post(f"/ws/transcription/{job_id}") as response:
        assert response.status == 405


async def test_what_a_watcher_says_does_not_matter(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a client's own heartbeat ends its connection."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=10, delay=0.05))
    async with web_client.ws_connect(f"/ws/transcription/{job_id}") as socket:
        await socket.send_str("ping")
        await socket.send_bytes(b"\0")
        await socket.ping()
        received = [frame async for frame in receive(socket)]
    check(received)
    assert socket.close_code == 1000


async def test_a_watcher_who_says_too_much_is_sent_away(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a watcher can fill the server's memory."""
    job_id = await submit(web_client, make_wav(2.0), ENDLESS)
    async with asyncio.timeout(LONG_S):
        async with web_client.ws_connect(f"/ws/transcription/{job_id}") as socket:
            await socket.send_str("x" * 10_000)
            async for _ in socket:
                pass
    assert socket.close_code == 1009
    await until(lambda: transcriber_of(web_client).summary(job_id).offset)
    await transcriber_of(web_client).delete(job_id)


# -- many watchers -----------------------------------------------------------------------------


async def test_fifty_watchers_get_the_same_story(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise a lecture cannot be followed by its listeners."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=20, delay=0.02))
    stories = await asyncio.gather(*(story(web_client, job_id) for _ in range(50)))
    texts = {tuple(segment.text for segment in merge(received)) for received in stories}
    assert len(texts) == 1
    assert len(texts.pop()) == 20
    assert {received[-1].time for received in stories} == {stories[0][-1].time}


async def test_watchers_who_vanish_hurt_nobody(
    web_client: WebClient, make_wav: MakeWav, raw_watcher: StartWatcher
) -> None:
    """Otherwise closing a laptop stops the job, or the others' news of it."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=20, delay=0.05))
    faithful = asyncio.create_task(story(web_client, job_id))
    url = web_client.make_url("/")
    vanishing = [await asyncio.to_thread(raw_watcher, url, job_id) for _ in range(20)]
    await until(lambda: transcriber_of(web_client).summary(job_id).offset)
    for watcher in vanishing[:10]:
        watcher.vanish()
    for watcher in vanishing[10:]:
        watcher.socket.close()
    received = await faithful
    assert received[-1].status == "completed"
    assert len(merge(received)) == 20
    await until(lambda: count_sockets(web_client) == 0)
    await next_job_works(web_client, make_wav(2.0))


def count_sockets(client: WebClient) -> int:
    """Return how many sockets the server is serving."""
    return sum(client.app[limits.SOCKETS].counts.values())


async def test_a_watcher_who_reads_nothing_hurts_nobody(
    web_client: WebClient,
    make_wav: MakeWav,
    monkeypatch: pytest.MonkeyPatch,
    raw_watcher: StartWatcher,
) -> None:
    """Otherwise one phone in a tunnel holds up everybody, or the server's memory fills for it."""
    monkeypatch.setattr(watch, "STALLED_S", 0.5)
    script = Script(segments=30, delay=0.05, padding=1 << 20)
    job_id = await submit(web_client, make_wav(2.0), script)
    url = web_client.make_url("/")
    stalled = await asyncio.to_thread(raw_watcher, url, job_id)
    async with web_client.ws_connect(f"/ws/transcription/{job_id}", max_msg_size=0) as socket:
        received = [frame async for frame in receive(socket)]
    check(received)
    assert received[-1].status == "completed"
    assert len(merge(received)) == 30
    await until(lambda: count_sockets(web_client) == 0)
    await until(stalled.is_cut)
    await next_job_works(web_client, make_wav(2.0))


async def test_a_watcher_who_says_goodbye_but_takes_nothing_is_cut(
    web_client: WebClient, monkeypatch: pytest.MonkeyPatch, raw_watcher: StartWatcher
) -> None:
    """Otherwise its connection, and what it was sent, stay for ever and count for nobody."""
    monkeypatch.setattr(watch, "GOODBYE_S", 0.5)
    hub = transcriber_of(web_client)._hub
    hub.publish("silent", builders.view(0))
    stuck = await asyncio.to_thread(raw_watcher, web_client.make_url("/"), "silent")
    topic = hub._topics["silent"]
    await until(lambda: any(topic.live.values()))
    (sender,) = next(iter(topic.live.values()))
    assert isinstance(sender, watch._Sender)
    assert sender.transport
    segment = Segment(0, 0.0, 1.0, "a" * (8 << 20))
    hub.publish("silent", View(builders.head(1), [segment], builders.RUNS))
    assert sender.transport.get_write_buffer_size(), "it has not taken everything"
    stuck.socket.sendall(b"\x88\x82\0\0\0\0\x03\xe8")  # close, 1000
    await until(lambda: count_sockets(web_client) == 0)
    assert not sender.transport.get_write_buffer_size()
    await until(stuck.is_cut)
    hub.drop("silent")


# -- the server goes away ----------------------------------------------------------------------


async def test_a_server_that_goes_away_says_so(tmp_path: Path, make_wav: MakeWav) -> None:
    """Otherwise a client takes a restart for the end, and never comes back."""
    config = Config(model=("scripted",), workers=1, data_dir=tmp_path)
    transcriber = Transcriber(config, loader=scripted.load)
    server = TestServer(create_app(transcriber=transcriber))
    async with WebClient(server) as client:
        running = await submit(client, make_wav(2.0), ENDLESS)
        sockets = [await client.ws_connect(f"/ws/transcription/{running}") for _ in range(5)]
        streams = [receive(socket) for socket in sockets]
        for stream in streams:
            await until_frame(stream, lambda frame: frame.segments)
        began = time.monotonic()
        closing = asyncio.create_task(server.close())
        for socket, stream in zip(sockets, streams, strict=True):
            rest = [frame async for frame in stream]
            assert not any(frame.status.is_terminal for frame in rest)
            assert socket.close_code == 1001
        await closing
        assert time.monotonic() - began < 5


async def test_a_watcher_whose_line_is_full_does_not_keep_an_application(
    tmp_path: Path, make_wav: MakeWav, raw_watcher: StartWatcher
) -> None:
    """Otherwise an application that embeds it cannot be restarted for a while."""
    config = Config(model=("scripted",), workers=1, data_dir=tmp_path)
    transcriber = Transcriber(config, loader=scripted.load)
    server = TestServer(create_app(transcriber=transcriber))
    await server.start_server(shutdown_timeout=LONG_S)
    script = Script(segments=100, delay=0.05, padding=1 << 20)
    job = await transcriber.submit(make_wav(2.0), options=script.options())
    await asyncio.to_thread(raw_watcher, server.make_url("/"), job.id)
    await until_frame(transcriber.watch(job.id), lambda frame: frame.position_seconds > 0.5)
    began = time.monotonic()
    await server.close()
    assert time.monotonic() - began < 5


async def start_long_job(url: str, recording: Path, options: Options) -> str:
    """Submit a job to a server, wait until it is at work, and return its id."""
    async with Client(url) as client:
        job_id = (await client.submit(recording, options)).job_id
        await until_frame(client.watch(job_id), lambda frame: frame.current_step == "transcribing")
    return job_id


async def test_a_watcher_who_reads_nothing_does_not_keep_the_server(
    start_server: Callable[..., Server], make_wav: MakeWav, raw_watcher: StartWatcher
) -> None:
    """Otherwise a server cannot be restarted while a phone is in a tunnel."""
    server = await asyncio.to_thread(start_server)
    options = Options(vad_filter=False, temperature=0.0)
    job_id = await start_long_job(server.url, make_wav(600.0), options)
    for _ in range(3):
        await asyncio.to_thread(raw_watcher, server.url, job_id)
    pids = workers(server.process.pid)
    assert pids
    began = time.monotonic()
    assert await asyncio.to_thread(server.stop, signal.SIGTERM) == 0
    assert time.monotonic() - began < 5
    await until(lambda: not any(is_alive(pid) for pid in pids), timeout_s=5)


async def test_a_watcher_whose_line_is_full_does_not_keep_the_server(
    start_server: Callable[..., Server], make_wav: MakeWav, raw_watcher: StartWatcher
) -> None:
    """Otherwise a server with much to say to a phone in a tunnel cannot be restarted."""
    server = await asyncio.to_thread(start_server, *SCRIPTED, program="tests.scripted_program")
    options = Script(segments=100, delay=0.05, padding=1 << 20).options()
    job_id = await start_long_job(server.url, make_wav(2.0), options)
    for _ in range(3):
        await asyncio.to_thread(raw_watcher, server.url, job_id)
    async with aiohttp.ClientSession() as session:
        url = f"{server.url}/ws/transcription/{job_id}"
        async with session.ws_connect(url, max_msg_size=0) as socket:
            await until_frame(receive(socket), lambda frame: frame.position_seconds > 0.5)
            began = time.monotonic()
            stopping = asyncio.create_task(asyncio.to_thread(server.stop, signal.SIGTERM))
            with contextlib.suppress(aiohttp.ClientError):
                async for _ in receive(socket):
                    pass
            assert socket.close_code == 1001, "those who do read are told"
            assert await stopping == 0
            assert time.monotonic() - began < 5


async def test_a_line_that_is_cut_is_no_error_of_ours(
    start_server: Callable[..., Server], make_wav: MakeWav, raw_watcher: StartWatcher
) -> None:
    """Otherwise the log is full of tracebacks that mean nothing, and hide those that do."""
    server = await asyncio.to_thread(start_server, *SCRIPTED, program="tests.scripted_program")
    job_id = await start_long_job(server.url, make_wav(2.0), ENDLESS.options())
    watcher = await asyncio.to_thread(raw_watcher, server.url, job_id)
    watcher.vanish()
    assert await asyncio.to_thread(server.stop, signal.SIGTERM) == 0
    assert "failed" not in (server.data_dir / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_server_that_does_nothing_ends_at_once(
    start_server: Callable[..., Server], number: signal.Signals
) -> None:
    """Otherwise Ctrl-C leaves processes behind, or has to be pressed twice."""
    server = await asyncio.to_thread(start_server, *SCRIPTED, program="tests.scripted_program")
    pids = workers(server.process.pid)
    assert len(pids) == 2
    began = time.monotonic()
    assert await asyncio.to_thread(server.stop, number) == 0
    assert time.monotonic() - began < 3
    await until(lambda: not any(is_alive(pid) for pid in pids), timeout_s=5)
