"""What a client may send, and how fast, and what it is told when that is too much."""

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, FormData, WSCloseCode, WSServerHandshakeError
from prometheus_client.parser import text_string_to_metric_families

from aiotranscribe import Client, Config, conductor
from aiotranscribe.errors import InvalidOption
from aiotranscribe.web import limits
from aiotranscribe.web.jobs import TRANSCRIBER
from tests.conftest import SCRIPTED, Server, WebClient
from tests.scripted import Script
from tests.test_web_auth import TOKEN, bearer, serving
from tests.waiting import LONG_S, to_end, until

MakeWav = Callable[[float], Path]

QUICK = Script().fields()
ENDLESS = Script(segments=10_000, delay=0.05)


async def refused(response: ClientResponse, status: int, code: str, *words: str) -> None:
    """Check that an answer is this error, and says these words."""
    body = await response.json()
    assert (response.status, body["code"]) == (status, code), body
    for word in words:
        assert word in body["detail"]


async def next_job_works(client: WebClient, recording: Path) -> None:
    """Check that the server is as good as new."""
    data = await asyncio.to_thread(recording.read_bytes)
    async with client.post("/v1/jobs", params=QUICK, data=data) as response:
        assert response.status == 202
        job_id = (await response.json())["job_id"]
    frames = await to_end(client.app[TRANSCRIBER].watch(job_id))
    assert frames[-1].status == "completed"


async def test_a_recording_that_is_too_large_is_refused(tmp_path: Path, make_wav: MakeWav) -> None:
    """One upload could fill the disk."""
    recording = make_wav(2.0)
    limit = recording.stat().st_size
    async with serving(tmp_path, max_upload=str(limit)) as client:
        large = recording.read_bytes() + b"\0"

        async def chunks() -> object:
            yield large

        form = FormData()
        form.add_field("file", large, filename="a.wav")
        for body in (large, chunks(), form):
            async with client.post("/v1/jobs", params=QUICK, data=body) as response:
                await refused(response, 413, "upload_too_large", str(limit), "--max-upload")
        await until(lambda: not list((tmp_path / "spool" / "arriving").iterdir()))
        await next_job_works(client, recording)


async def test_uploads_leave_room_on_the_disk(tmp_path: Path, make_wav: MakeWav) -> None:
    """Jobs at work would wait for ever, because uploads have taken the last byte."""
    async with serving(tmp_path, min_free_disk="999999TiB") as client:
        data = make_wav(2.0).read_bytes()
        async with client.post("/v1/jobs", params=QUICK, data=data) as response:
            await refused(response, 507, "storage_unavailable", "MiB", "--min-free-disk")


async def test_a_client_has_only_so_many_jobs(tmp_path: Path, make_wav: MakeWav) -> None:
    """One client could keep all others waiting for days."""
    recording = make_wav(2.0).read_bytes()
    settings = {"token": (f"anna:{TOKEN}", "ben:other-other-other"), "max_jobs_per_client": 2}
    async with serving(tmp_path, **settings) as client:
        anna, ben = bearer(TOKEN), bearer("other-other-other")
        for status in (202, 202, 429):
            async with client.post(
                "/v1/jobs", params=ENDLESS.fields(), data=recording, headers=anna
            ) as response:
                assert response.status == status
                body = await response.json()
                if status == 202:
                    job_id = body["job_id"]
        assert response.headers["Retry-After"]
        assert "anna" in body["detail"]
        assert "--max-jobs-per-client" in body["detail"]
        async with client.post("/v1/jobs", params=QUICK, data=recording, headers=ben) as response:
            assert response.status == 202, "others have their own"
        async with client.post(f"/v1/jobs/{job_id}/cancel", headers=anna) as response:
            assert response.status == 200
        async with client.post("/v1/jobs", params=QUICK, data=recording, headers=anna) as response:
            assert response.status == 202, "what has ended does not count"


async def test_a_client_has_only_so_many_sockets(tmp_path: Path, make_wav: MakeWav) -> None:
    """One client could take all connections that the system lets the server have."""
    async with serving(tmp_path, max_sockets_per_client=2) as client:
        transcriber = client.app[TRANSCRIBER]
        job = await transcriber.submit(make_wav(2.0), options=Script().options())
        await to_end(transcriber.watch(job.id))
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(client.ws_connect("/ws/transcription"))
            for path in ("/ws/transcription", f"/ws/transcription/{job.id}"):
                with pytest.raises(WSServerHandshakeError, match="429"):
                    await client.ws_connect(path)
            async with client.get(f"/v1/jobs/{job.id}/events") as response:
                await refused(response, 429, "too_many")
            assert transcriber._hub.count() == 0, "who is refused does not watch"
            async with client.get("/v1/jobs/nope/events") as response:
                await refused(response, 429, "too_many", "2", "--max-sockets-per-client")

        await until(lambda: not client.app[limits.SOCKETS].counts)
        async with client.ws_connect("/ws/transcription"):
            pass


@pytest.mark.parametrize("kind", ["body", "form"])
async def test_an_upload_that_hardly_comes_is_given_up(
    tmp_path: Path, make_wav: MakeWav, kind: str
) -> None:
    """A few clients that send a byte a second could keep all places for uploads for ever."""
    async with serving(tmp_path, idle_s=1) as client:

        async def drops() -> object:
            if kind == "form":
                yield b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
            while True:
                yield b"x"
                await asyncio.sleep(0.1)

        kinds = {"body": "audio/wav", "form": "multipart/form-data; boundary=x"}
        headers = {"Content-Type": kinds[kind]}
        async with client.post("/v1/jobs", data=drops(), headers=headers) as response:
            await refused(response, 408, "upload_too_slow", "1 s", "--idle-s")
        await next_job_works(client, make_wav(2.0))


async def test_a_connection_that_says_nothing_is_closed(
    start_server: Callable[..., Server],
) -> None:
    """Whoever opens connections, or asks letter by letter, could use up all that there are."""
    server = await asyncio.to_thread(
        start_server, "--idle-s", "1", *SCRIPTED, program="tests.scripted_program"
    )
    host, port = server.url.removeprefix("http://").split(":")
    for beginning in (b"", b"GET /v1/jobs HTTP/1.1\r\nHost: a\r\nX-", b"GET /health HT"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(beginning)
        async with asyncio.timeout(LONG_S):
            assert await reader.read() == b""
        writer.close()


async def test_heads_and_fields_are_bounded(tmp_path: Path, make_wav: MakeWav) -> None:
    """A request could hold any amount of memory before it is even understood."""
    async with serving(tmp_path) as client:
        for headers in ({"X-A": "a" * 10_000}, {f"X-{n}": "a" for n in range(200)}):
            async with client.get("/v1/jobs", headers=headers) as response:
                assert response.status == 400
        async with client.get("/v1/jobs", params={"a": "a" * 10_000}) as response:
            assert response.status == 400
        form = FormData()
        for number in range(101):
            form.add_field(f"field{number}", "a")
        form.add_field("file", b"RIFF", filename="a.wav")
        async with client.post("/v1/jobs", data=form) as response:
            await refused(response, 400, "invalid_request", "100")
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        async with client.post("/v1/jobs", data=b"\n" * 100_000, headers=headers) as response:
            await refused(response, 400, "invalid_request", "2000 lines")
        await next_job_works(client, make_wav(2.0))


@pytest.mark.parametrize(
    ("token", "size_bytes", "expected"),
    [
        (TOKEN, None, b"HTTP/1.1 100 Continue"),
        (TOKEN, 10**12, b"HTTP/1.1 413 "),
        ("wrong" + TOKEN, None, b"HTTP/1.1 401 "),
    ],
)
async def test_who_waits_to_be_asked_for_a_body_is_asked_only_if_it_will_be_read(
    tmp_path: Path, make_wav: MakeWav, token: str, size_bytes: int | None, expected: bytes
) -> None:
    """Somebody would upload an hour of video, to hear that his token is wrong."""
    data = await asyncio.to_thread(make_wav(2.0).read_bytes)
    async with serving(tmp_path, token=(TOKEN,)) as client:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(
            f"POST /v1/jobs HTTP/1.1\r\nHost: {client.host}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: {size_bytes or len(data)}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        async with asyncio.timeout(LONG_S):
            assert (await reader.readline()).startswith(expected)
            if b"100" in expected:
                assert await reader.readline() == b"\r\n"
                writer.write(data)
                assert (await reader.readline()).startswith(b"HTTP/1.1 202 ")
        writer.close()


async def test_who_takes_nothing_of_an_answer_is_cut(
    tmp_path: Path, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few hundred downloads that nobody reads would use up the server's connections for ever."""
    monkeypatch.setattr(limits, "STALLED_S", 0.5)
    async with serving(tmp_path) as client:
        job = await client.app[TRANSCRIBER].submit(make_wav(600.0), options=ENDLESS.options())
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.connect((client.host, client.port))
            deaf.sendall(f"GET /v1/jobs/{job.id}/audio HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            server: Any = client.server
            await until(lambda: server.runner.server.connections)
            await until(lambda: not server.runner.server.connections)


async def test_what_takes_memory_by_its_length_is_shorter(
    tmp_path: Path, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file of hours of silence would take all of the machine's memory."""
    monkeypatch.setattr(conductor, "_MOST_WHOLE_S", 1.0)
    async with serving(tmp_path) as client:
        transcriber = client.app[TRANSCRIBER]
        options = Script().options(parallel="off")
        job = await transcriber.submit(make_wav(2.0), options=options)
        last = (await to_end(transcriber.watch(job.id)))[-1]
        assert last.error
        assert last.error.code == "recording_too_long"
        assert "parallel=off" in last.error.message


async def test_an_expectation_that_is_no_text_is_no_fault_of_ours(
    start_server: Callable[..., Server],
) -> None:
    """A stranger could fill the log with errors."""
    server = await asyncio.to_thread(start_server, *SCRIPTED, program="tests.scripted_program")
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nExpect: \xa0\r\n\r\n")
    async with asyncio.timeout(LONG_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert "ERROR" not in (server.data_dir / "log").read_text()


async def test_a_body_is_not_unpacked(tmp_path: Path) -> None:
    """A few bytes could become as many as the server takes, at the server's expense."""
    async with serving(tmp_path) as client:
        headers = {"Content-Encoding": "gzip"}
        data = gzip.compress(bytes(1 << 20))
        async with client.post("/v1/jobs", data=data, headers=headers) as response:
            await refused(response, 415, "unsupported_body", "Content-Encoding")


async def test_an_address_is_no_recording(tmp_path: Path) -> None:
    """The server would fetch what it can reach and others cannot, or fail without saying why."""
    async with serving(tmp_path) as client:
        form = FormData({"url": "http://127.0.0.1/"}, default_to_multipart=True)
        async with client.post("/v1/jobs", data=form) as response:
            await refused(response, 422, "invalid_option", "url", "send the recording itself")
        async with client.post("/v1/jobs?url=http://127.0.0.1/", data=b"x") as response:
            await refused(response, 422, "invalid_option", "url")
        async with client.post("/v1/jobs", json={"url": "http://127.0.0.1/"}) as response:
            await refused(response, 415, "unsupported_body", "send the recording itself")


@pytest.mark.parametrize("message", ["", "{}", '{"unsubscribe": "nope"}'])
async def test_a_flood_of_messages_ends_the_socket(
    tmp_path: Path, make_wav: MakeWav, message: str
) -> None:
    """A peer that talks without end could take the server's time and memory from all others."""
    async with serving(tmp_path) as client:
        async with client.ws_connect("/ws/transcription", max_msg_size=0) as socket:

            async def flood() -> None:
                with contextlib.suppress(ConnectionError):
                    while not socket.closed:
                        await socket.send_str(message)
                        await asyncio.sleep(0)

            flooding = asyncio.create_task(flood())
            async with asyncio.timeout(LONG_S):
                async for _ in socket:
                    pass
            await flooding
            assert socket.close_code == WSCloseCode.POLICY_VIOLATION
        await next_job_works(client, make_wav(2.0))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_upload", "4GB?"), ("max_upload", "-1"), ("max_duration", "long"), ("min_free_disk", "")],
)
def test_what_is_no_limit_is_refused(setting: str, value: str) -> None:
    """A limit with a slip of the pen would be another one, or none."""
    given: dict[str, Any] = {setting: value}
    with pytest.raises(InvalidOption, match=setting):
        Config(**given)


# -- what can be measured, and what is logged ---------------------------------------------------


async def measures(client: WebClient, **more: object) -> dict[str, float]:
    """Return what ``/metrics`` says."""
    async with client.get("/metrics", **more) as response:  # type: ignore[arg-type]
        assert response.status == 200
        text = await response.text()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("status", "completed") == "completed"
    }


async def test_metrics_say_what_happens(tmp_path: Path, make_wav: MakeWav) -> None:
    """Whoever runs it could not see that it is overloaded, or that its workers die."""
    async with serving(tmp_path) as client:
        transcriber = client.app[TRANSCRIBER]
        await transcriber.ready()
        before = await measures(client)
        assert before["aiotranscribe_workers_ready"] == 1
        assert before["aiotranscribe_jobs_running"] == before["aiotranscribe_jobs_queued"] == 0
        data = make_wav(2.0).read_bytes()
        for _ in range(2):
            async with client.post("/v1/jobs", params=ENDLESS.fields(), data=data) as response:
                job_id = (await response.json())["job_id"]
        async with client.ws_connect(f"/ws/transcription/{job_id}") as socket:
            await socket.receive()
            during = await measures(client)
            assert during["aiotranscribe_watchers"] == 1
            jobs = during["aiotranscribe_jobs_running"] + during["aiotranscribe_jobs_queued"]
            assert jobs == 2
        for job in transcriber.jobs():
            await transcriber.cancel(job.id)
        once = str(tmp_path / "once")
        script = Script(die_at=0, once=once).fields()
        async with client.post("/v1/jobs", params=script, data=data) as response:
            job_id = (await response.json())["job_id"]
        await to_end(transcriber.watch(job_id))
        after = await measures(client)
        assert after["aiotranscribe_worker_restarts_total"] == 1
        assert after["aiotranscribe_jobs_ended_total"] == 1
        assert after["aiotranscribe_event_latency_seconds_count"] > 0


async def test_metrics_are_for_this_machine_or_a_token(tmp_path: Path) -> None:
    """A stranger could see when and how much somebody works; or no monitor could."""
    async with serving(tmp_path, token=(TOKEN,)) as client:
        assert await measures(client), "from here, without a token"
        through_proxy = {"X-Forwarded-For": "198.51.100.1"}
        others = {"X-Real-IP": "198.51.100.1"}, {"Host": "stt.example"}, {"Host": "a:b"}
        for headers in (through_proxy, *others):
            async with client.get("/metrics", headers=headers) as response:
                await refused(response, 401, "unauthorized")
        assert await measures(client, headers=through_proxy | bearer(TOKEN))


async def test_the_log_can_be_read_by_programs(
    start_server: Callable[..., Server], make_wav: MakeWav, tmp_path: Path
) -> None:
    """Whoever collects logs would have to guess which job a line is about."""
    server = await asyncio.to_thread(
        start_server, "--log-format", "json", *SCRIPTED, program="tests.scripted_program"
    )
    (tmp_path / "noise").write_bytes(b"\0" * 100)
    async with Client(server.url) as client:
        for path, end in ((make_wav(2.0), "completed"), (tmp_path / "noise", "failed")):
            job_id = (await client.submit(path, Script().options())).job_id
            assert [frame async for frame in client.watch(job_id)][-1].status == end
        await client.delete(job_id)
    # aiohttp warns of such a header, and would show it.
    part = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"; filename=b{\xc2\x9b\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    async with ClientSession() as session:
        data = part + b"\r\nRIFF\r\n--x--\r\n"
        async with session.post(f"{server.url}/v1/jobs", data=data, headers=headers) as response:
            assert response.status in {202, 400}
    await asyncio.to_thread(server.stop)
    lines = [json.loads(line) for line in (server.data_dir / "log").read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert not any("Content" in line["message"] for line in lines)
    told = [line["status"] for line in lines if line.get("job_id") == job_id]
    assert told[0] == "queued"
    assert told[-2:] == ["failed", "deleted"]
    assert [line["code"] for line in lines if line.get("status") == "failed"] == ["undecodable"]
