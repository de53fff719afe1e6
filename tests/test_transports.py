"""The same frames on every transport: event streams, long polls, one socket for many jobs."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientResponse, ClientWebSocketResponse

from aiotranscribe import Frame, Transcriber, hub
from aiotranscribe import frame as frames
from aiotranscribe.errors import StorageUnavailable
from aiotranscribe.transcript import Segment
from aiotranscribe.web import watch
from aiotranscribe.web.jobs import TRANSCRIBER
from tests.conftest import WebClient
from tests.scripted import Script
from tests.waiting import LONG_S, check, merge, until, until_frame

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("no_errors")]

MakeWav = Callable[[float], Path]

ENDLESS = Script(segments=10_000, delay=0.05)
SLOW = Script(segments=10, delay=0.05)


def transcriber_of(client: WebClient) -> Transcriber:
    """Return the transcriber behind the application."""
    return client.app[TRANSCRIBER]


async def submit(client: WebClient, recording: Path, script: Script) -> str:
    """Start a job; return its id."""
    return (await transcriber_of(client).submit(recording, options=script.options())).id


async def finished(client: WebClient, recording: Path) -> Frame:
    """Return the last frame of a job that has ended."""
    job_id = await submit(client, recording, Script(segments=3))
    return await until_frame(
        transcriber_of(client).watch(job_id), lambda frame: frame.status.is_terminal
    )


# -- event streams -----------------------------------------------------------------------------


async def events(response: ClientResponse) -> AsyncIterator[tuple[str, Frame]]:
    """Iterate over the events of a stream, as the HTML standard reads them (section 9.2.6)."""
    assert response.status == 200
    assert response.content_type == "text/event-stream"
    fields: dict[str, str] = {}
    async for line in response.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields["id"], frames.decode(fields["data"])
            fields = {}


async def test_an_event_stream_tells_the_whole_story(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a page that uses EventSource gets less than one that uses a socket."""
    job_id = await submit(web_client, make_wav(2.0), SLOW)
    received = []
    async with asyncio.timeout(LONG_S), web_client.get(f"/v1/jobs/{job_id}/events") as response:
        assert response.headers["Cache-Control"] == "no-store"
        async for event_id, frame in events(response):
            assert event_id == frame.cursor
            received.append(frame)
    check(received)
    assert received[-1].status == "completed"
    assert len(merge(received)) == 10
    assert len(received) > 5


async def test_an_event_stream_that_broke_goes_on_where_it_was(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a browser that comes back by itself shows the beginning twice."""
    job_id = await submit(web_client, make_wav(2.0), SLOW)
    received: list[Frame] = []
    for _ in range(50):
        headers = {"Last-Event-ID": received[-1].cursor} if received else {}
        url = f"/v1/jobs/{job_id}/events"
        async with web_client.get(url, headers=headers) as response:
            stream = events(response)
            _, first = await anext(stream)
            assert first.offset == len(merge(received))
            received.append(first)
        if first.status.is_terminal:
            break
        async with asyncio.timeout(LONG_S):
            await poll(web_client, job_id, since=first.cursor, wait="60")
    check(received)
    assert len(received) > 3
    # Who has seen the end is told to stay away.
    async with web_client.get(url, headers={"Last-Event-ID": received[-1].cursor}) as response:
        assert response.status == 204
    # Who has all of the text, but has not seen the end, gets it.
    text_only = received[-1].cursor.removesuffix("-end")
    async with web_client.get(url, headers={"Last-Event-ID": text_only}) as response:
        _, last = await anext(events(response))
        assert (last.status, last.segments) == ("completed", [])


@pytest.mark.parametrize("cursor", ["nonsense", "1-5", "1-0-end"])
async def test_an_event_stream_begins_anew_for_who_has_a_wrong_cursor(
    web_client: WebClient, make_wav: MakeWav, cursor: str
) -> None:
    """Otherwise somebody's text silently lacks its beginning."""
    last = await finished(web_client, make_wav(2.0))
    url = f"/v1/jobs/{last.job_id}/events"
    async with web_client.get(url, headers={"Last-Event-ID": cursor}) as response:
        _, frame = await anext(events(response))
    assert (frame.offset, len(frame.segments)) == (0, 3)


async def test_an_event_stream_says_that_it_lives(
    web_client: WebClient, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a proxy cuts a stream in which nothing happens."""
    monkeypatch.setattr(hub, "HEARTBEAT_S", 0.1)
    job_id = await submit(web_client, make_wav(2.0), Script(hang=600))
    async with asyncio.timeout(LONG_S), web_client.get(f"/v1/jobs/{job_id}/events") as response:
        times = set()
        async for _, frame in events(response):
            times.add(frame.time)
            if len(times) > 10:
                break
    await transcriber_of(web_client).delete(job_id)


# -- long polls --------------------------------------------------------------------------------


async def poll(client: WebClient, job_id: str, **query: str) -> Frame:
    """Ask for a job's frame."""
    async with client.get(f"/v1/jobs/{job_id}", params=query) as response:
        assert response.status == 200, await response.text()
        return frames.decode(await response.read())


async def test_a_job_can_be_followed_by_long_polls(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a shell script has to ask every second, or to speak WebSocket."""
    job_id = await submit(web_client, make_wav(2.0), SLOW)
    received = [await poll(web_client, job_id)]
    async with asyncio.timeout(LONG_S):
        while not received[-1].status.is_terminal:
            received.append(await poll(web_client, job_id, since=received[-1].cursor, wait="30"))
    check(received)
    assert len(merge(received)) == 10


async def test_a_poll_waits_only_when_there_is_nothing_new(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise the text comes half a minute late, or a finished job is waited for."""
    job_id = await submit(web_client, make_wav(2.0), Script(segments=2, hang=600))
    last = await finished(web_client, make_wav(2.0))
    async with asyncio.timeout(10):
        assert len((await poll(web_client, last.job_id, wait="60")).segments) == 3
        for since in (last.cursor, last.cursor.removesuffix("-end"), "nonsense"):
            frame = await poll(web_client, last.job_id, since=since, wait="60")
            assert frame.status == "completed"
        await until(
            lambda: transcriber_of(web_client).summary(job_id).current_step == "transcribing"
        )
        first = await poll(web_client, job_id, wait="60")
        # Nothing new: it waits as long as it may, and no longer.
        again = await poll(web_client, job_id, since=first.cursor, wait="1")
        assert (again.status, again.cursor) == (first.status, first.cursor)
        waiting = asyncio.create_task(poll(web_client, job_id, since=first.cursor, wait="60"))
        await until(lambda: transcriber_of(web_client)._hub._topics[job_id].watchers)
        await transcriber_of(web_client).cancel(job_id)
        assert (await waiting).status == "cancelled"


async def test_a_poll_with_a_wrong_cursor_is_answered_at_once(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise somebody whose cursor is lost looks at nothing for half a minute."""
    job_id = await submit(web_client, make_wav(2.0), Script(hang=600))
    await until(lambda: transcriber_of(web_client).summary(job_id).current_step == "transcribing")
    async with asyncio.timeout(10):
        assert (await poll(web_client, job_id, since="nonsense", wait="60")).offset == 0
    await transcriber_of(web_client).delete(job_id)


@pytest.mark.parametrize("wait", ["-1", "61", "soon", "1e9", "0.5", "0000000061", "0" * 5000])
async def test_a_wait_that_makes_no_sense_is_refused(web_client: WebClient, wait: str) -> None:
    """Otherwise somebody waits longer than any proxy does, or not at all."""
    async with web_client.get("/v1/jobs/any", params={"wait": wait}) as response:
        assert response.status == 422
        assert "wait: " in (await response.json())["detail"]


# -- one socket for many jobs ------------------------------------------------------------------


class Many:
    """A socket that watches many jobs."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.socket = socket
        #: What has come, by job.
        self.frames: dict[str, list[Frame]] = {}
        #: What has come that is no frame.
        self.others: list[dict[str, Any]] = []

    async def say(self, **command: str) -> None:
        """Send a command."""
        await self.socket.send_json(command)

    async def until(self, condition: Callable[[], object]) -> None:
        """Receive until ``condition`` holds."""
        async with asyncio.timeout(LONG_S):
            while not condition():
                text = await self.socket.receive_str()
                told = json.loads(text)
                if "status" in told:
                    frame = frames.decode(text)
                    self.frames.setdefault(frame.job_id, []).append(frame)
                else:
                    self.others.append(told)

    def has_ended(self, job_id: str) -> bool:
        """Whether a job's terminal frame has come."""
        return bool(self.frames.get(job_id)) and self.frames[job_id][-1].status.is_terminal


def connect(client: WebClient) -> Any:
    """Open a socket for many jobs."""
    return client.ws_connect("/ws/transcription")


async def test_one_socket_follows_many_jobs(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise a page with ten jobs needs ten connections, more than a browser gives it."""
    job_ids = [await submit(web_client, make_wav(2.0), SLOW) for _ in range(5)]
    async with connect(web_client) as socket:
        many = Many(socket)
        for job_id in job_ids:
            await many.say(subscribe=job_id)
        await many.until(lambda: all(many.has_ended(job_id) for job_id in job_ids))
        for job_id in job_ids:
            check(many.frames[job_id])
            assert len(merge(many.frames[job_id])) == 10
        assert not many.others
        assert not socket.closed, "there may be more jobs"
        again = await submit(web_client, make_wav(2.0), SLOW)
        await many.say(subscribe=again)
        await many.until(lambda: many.has_ended(again))


async def test_a_subscription_goes_on_where_it_was(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise every break in the line sends the text of all jobs again."""
    last = await finished(web_client, make_wav(2.0))
    async with connect(web_client) as socket:
        many = Many(socket)
        for since, count in ((last.cursor, 0), ("nonsense", 3), ("", 3)):
            many.frames.clear()
            await many.say(subscribe=last.job_id, since=since)
            await many.until(lambda: many.has_ended(last.job_id))
            assert len(many.frames[last.job_id][0].segments) == count


async def test_a_socket_forgets_the_jobs_that_have_ended(
    web_client: WebClient, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a list that is open for weeks holds every text of all those weeks."""
    opened: list[watch._Many] = []
    real = watch._Many.__init__

    def spy(many: watch._Many, *rest: Any) -> None:
        opened.append(many)
        real(many, *rest)

    monkeypatch.setattr(watch._Many, "__init__", spy)
    last = await finished(web_client, make_wav(2.0))
    async with connect(web_client) as socket:
        many = Many(socket)
        await many.say(subscribe=last.job_id)
        await many.until(lambda: many.has_ended(last.job_id))
        await until(lambda: not opened[0]._watchers and not opened[0]._senders)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/jobs/{}/events", StorageUnavailable("the disk is on fire")),
        ("/ws/transcription/{}", StorageUnavailable("the disk is on fire")),
        ("/ws/transcription", StorageUnavailable("the disk is on fire")),
        ("/ws/transcription/{}", ZeroDivisionError("a mistake of ours")),
    ],
)
async def test_a_text_that_cannot_be_read_ends_its_watcher_in_order(
    web_client: WebClient,
    make_wav: MakeWav,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: Exception,
    expected_errors: list[str],
) -> None:
    """Otherwise an error of the disk is written into the middle of somebody's stream."""
    last = await finished(web_client, make_wav(2.0))
    topic = transcriber_of(web_client)._hub._topics[last.job_id]
    topic.drop_text()

    async def fail(job_id: str) -> list[Segment]:
        raise error

    monkeypatch.setattr(topic, "_load", fail)
    expected_errors += ["cannot be read", "cannot be sent"]
    path = path.format(last.job_id)
    async with asyncio.timeout(LONG_S):
        if "events" in path:
            async with web_client.get(path) as response:
                with pytest.raises(ClientError):
                    await response.read()
            return
        async with web_client.ws_connect(path) as socket:
            if path.endswith("transcription"):
                many = Many(socket)
                await many.say(subscribe=last.job_id)
                await many.until(lambda: many.others)
                assert many.others[0]["error"]["code"] == "storage_unavailable"
                return
            await socket.receive()
            assert socket.close_code == 1011


@pytest.mark.parametrize("path", ["/v1/jobs/{}/events", "/ws/transcription/{}"])
@pytest.mark.parametrize("is_reading", [True, False])
async def test_who_reads_slowly_gets_all_and_who_reads_nothing_is_cut(
    web_client: WebClient,
    make_wav: MakeWav,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    is_reading: bool,
) -> None:
    """Otherwise a long text never reaches a phone, or a phone in a tunnel holds memory for ever."""
    monkeypatch.setattr(watch, "STALLED_S", 0.3)
    job_id = await submit(web_client, make_wav(2.0), Script(segments=4, padding=4 << 20))
    await until(lambda: transcriber_of(web_client).summary(job_id).status.is_terminal)
    url = web_client.make_url(path.format(job_id))
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=1 << 16)
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    headers = f"Host: {url.host}:{url.port}\r\n{upgrade if path.startswith('/ws') else ''}"
    writer.write(f"GET {url.path} HTTP/1.1\r\n{headers}\r\n".encode())
    received = 0
    async with asyncio.timeout(LONG_S):
        if not is_reading:
            topic = transcriber_of(web_client)._hub._topics[job_id]
            await until(lambda: topic.watchers)
            await until(lambda: not topic.watchers)
        with contextlib.suppress(ConnectionError):
            while received < 16 << 20 and (data := await reader.read(1 << 18)):
                received += len(data)
                if is_reading:
                    await asyncio.sleep(0.02)
    assert (received >= 16 << 20) == is_reading
    writer.close()


async def test_what_is_unsubscribed_is_silent(web_client: WebClient, make_wav: MakeWav) -> None:
    """Otherwise a page that shows another job goes on receiving the old one."""
    first, second = [await submit(web_client, make_wav(2.0), ENDLESS) for _ in range(2)]
    async with connect(web_client) as socket:
        many = Many(socket)
        await many.say(subscribe=first)
        await many.until(lambda: first in many.frames)
        await many.say(unsubscribe=first)
        await many.say(unsubscribe="never subscribed")
        await many.say(subscribe=second)
        await many.until(lambda: second in many.frames)
        many.frames.clear()
        await many.until(lambda: len(many.frames.get(second, ())) > 5)
        assert first not in many.frames
    for job_id in (first, second):
        await transcriber_of(web_client).delete(job_id)


async def test_the_state_of_every_job_comes_without_text(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a list of jobs has to be asked for every second, or brings all texts."""
    old = await finished(web_client, make_wav(2.0))
    async with connect(web_client) as socket:
        many = Many(socket)
        await many.say(subscribe="*")
        await many.until(lambda: many.others)
        assert old.job_id in many.frames, "the sign that every job has come"
        many.others.clear()
        new = await submit(web_client, make_wav(2.0), SLOW)
        await many.until(lambda: many.has_ended(new))
        assert {frame.current_step for frame in many.frames[new]} >= {"transcribing", "completed"}
        assert not any(frame.segments for each in many.frames.values() for frame in each)
        assert many.frames[new][-1].offset == 10
        # The cursor of such a frame is good for nothing missing, and a subscription for all.
        await many.say(subscribe=new)
        await many.until(lambda: many.frames[new][-1].segments)
        await transcriber_of(web_client).delete(new)
        await many.until(lambda: many.others)
        assert many.others[0]["job_id"] == new
        assert many.others[0]["error"]["code"] == "job_not_found"


async def test_the_state_of_every_job_has_signs_of_life(
    web_client: WebClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a page with a list of jobs cannot tell that its connection is dead."""
    monkeypatch.setattr(hub, "HEARTBEAT_S", 0.05)
    async with connect(web_client) as socket:
        many = Many(socket)
        await many.say(subscribe="*")
        await many.until(lambda: len(many.others) > 2)
        assert all(list(other) == ["time"] for other in many.others)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("ping", "invalid_request"),
        ("[]", "invalid_request"),
        ("{}", "invalid_request"),
        ('{"subscribe": 5}', "invalid_request"),
        ('{"subscribe": "a", "unsubscribe": "b"}', "invalid_request"),
        ('{"subscribe": "a", "sense": "b"}', "invalid_request"),
        ('{"subscribe": "nope"}', "job_not_found"),
        ('{"subscribe": ""}', "job_not_found"),
    ],
)
async def test_a_command_that_cannot_be_done_is_answered(
    web_client: WebClient, make_wav: MakeWav, said: str, code: str
) -> None:
    """Otherwise whoever writes a client waits for ever for what a typing mistake prevents."""
    last = await finished(web_client, make_wav(2.0))
    async with connect(web_client) as socket:
        many = Many(socket)
        await socket.send_str(said)
        await many.until(lambda: many.others)
        assert many.others[0]["error"]["code"] == code
        assert many.others[0]["error"]["message"]
        # And all goes on.
        await socket.send_bytes(b"\0")
        await many.say(subscribe=last.job_id)
        await many.until(lambda: many.has_ended(last.job_id))


async def test_subscriptions_are_limited(
    web_client: WebClient, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one socket fills the server's memory."""
    monkeypatch.setattr("aiotranscribe.web.watch._MOST_SUBSCRIPTIONS", 2)
    job_ids = [await submit(web_client, make_wav(2.0), ENDLESS) for _ in range(3)]
    async with connect(web_client) as socket:
        many = Many(socket)
        for job_id in job_ids:
            await many.say(subscribe=job_id)
        await many.until(lambda: many.others)
        assert many.others[0]["job_id"] == job_ids[2]
        assert many.others[0]["error"]["code"] == "invalid_request"
        await many.say(unsubscribe=job_ids[0])
        await many.until(lambda: many.frames.get(job_ids[1]))
        many.others.clear()
        await until(lambda: len(transcriber_of(web_client)._hub._topics[job_ids[0]].watchers) == 0)
        await many.say(subscribe=job_ids[2])
        await many.until(lambda: many.others or job_ids[2] in many.frames)
        assert not many.others
    for job_id in job_ids:
        await transcriber_of(web_client).delete(job_id)


async def test_a_socket_that_closes_leaves_no_watchers(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise the server's memory grows with everybody who ever looked."""
    job_id = await submit(web_client, make_wav(2.0), ENDLESS)
    watchers = transcriber_of(web_client)._hub._topics[job_id].watchers
    boards = transcriber_of(web_client)._hub._boards
    async with connect(web_client) as socket:
        many = Many(socket)
        await many.say(subscribe="*")
        await many.say(subscribe=job_id)
        await many.until(lambda: many.frames.get(job_id))
        assert watchers
        assert boards
    await until(lambda: not watchers and not boards)
    await transcriber_of(web_client).delete(job_id)


# -- languages ---------------------------------------------------------------------------------


async def test_every_transport_speaks_the_language_that_is_asked_for(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a Portuguese page shows English sentences in one place or another."""
    job_id = (await finished(web_client, make_wav(2.0))).job_id
    portuguese = "Transcritos 0:02"
    browser = {"Accept-Language": "pt-PT,pt;q=0.9,en;q=0.5"}
    for asked in (
        {"params": {"lang": "pt"}},
        {"params": {"lang": "PT-br"}},
        {"params": {"lang": ""}, "headers": browser},
        {"headers": browser},
    ):
        told = [message async for message in _all_messages(web_client, job_id, asked)]
        assert told == [portuguese] * 6
    both = {"params": {"lang": "en"}, "headers": browser}
    assert {message async for message in _all_messages(web_client, job_id, both)} == {
        "Transcribed 0:02"
    }


async def _all_messages(
    client: WebClient, job_id: str, asked: dict[str, Any]
) -> AsyncIterator[str]:
    """Yield what each transport says of a finished job."""
    path = f"/v1/jobs/{job_id}"
    async with client.get(path, **asked) as response:
        yield (await response.json())["message"]
    async with client.post(f"{path}/cancel", **asked) as response:
        yield (await response.json())["message"]
    async with client.get("/v1/jobs", **asked) as response:
        yield next(
            job["message"] for job in (await response.json())["jobs"] if job["job_id"] == job_id
        )
    async with client.get(f"{path}/events", **asked) as response:
        _, frame = await anext(events(response))
        yield frame.message
    async with client.ws_connect(f"/ws/transcription/{job_id}", **asked) as socket:
        yield (await anext(aiter(socket))).json()["message"]
    async with client.ws_connect("/ws/transcription", **asked) as socket:
        await socket.send_json({"subscribe": job_id})
        yield (await anext(aiter(socket))).json()["message"]


@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/v1/jobs/{}/events", "/ws/transcription/{}"])
async def test_a_language_that_is_not_there_is_refused(
    web_client: WebClient, make_wav: MakeWav, path: str
) -> None:
    """Otherwise whoever mistypes it gets English, and wonders."""
    job_id = (await finished(web_client, make_wav(2.0))).job_id
    async with web_client.get(path.format(job_id), params={"lang": "xx"}) as response:
        assert response.status == 422
        assert "lang: there is no 'xx', only en, pt" in (await response.json())["detail"]


async def test_a_wrong_language_is_refused_before_the_deed(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise a job is told to be refused and done all the same, or is cancelled."""
    job_id = await submit(web_client, make_wav(2.0), ENDLESS)
    count = len(transcriber_of(web_client).jobs())
    data = await asyncio.to_thread(make_wav(2.0).read_bytes)
    for path in ("/v1/jobs", f"/v1/jobs/{job_id}/cancel", f"/v1/jobs/{job_id}/retry"):
        async with web_client.post(path, params={"lang": "xx"}, data=data) as response:
            assert response.status == 422
    assert len(transcriber_of(web_client).jobs()) == count
    assert not transcriber_of(web_client).get(job_id).status.is_terminal
    await transcriber_of(web_client).delete(job_id)


async def test_a_submission_is_answered_in_its_language(
    web_client: WebClient, make_wav: MakeWav
) -> None:
    """Otherwise the language of the message is taken for an option of the job."""
    data = await asyncio.to_thread(make_wav(2.0).read_bytes)
    query = Script().fields() | {"lang": "pt"}
    async with web_client.post("/v1/jobs", params=query, data=data) as response:
        assert response.status == 202, await response.text()
        frame = frames.decode(await response.read())
    assert frame.message in {"À espera de um processo livre", "A ler a gravação"}
