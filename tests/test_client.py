"""The client against a real server, over lines that break."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiotranscribe import Client, Frame, Options, Shape, client
from aiotranscribe.errors import ServerError
from tests.conftest import Server
from tests.line import Line
from tests.scripted import Script
from tests.waiting import check, merge, to_end, until, until_frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

MakeWav = Callable[[float], Path]

ENDLESS = Script(segments=10_000, delay=0.05).options()


@pytest_asyncio.fixture(loop_scope="module")
async def direct(scripted_server: Server) -> AsyncIterator[Client]:
    """A client of the real server with a scripted model."""
    async with Client(scripted_server.url) as entered:
        yield entered


async def follow(line: Line, job_id: str) -> list[Frame]:
    """Watch a job to its end through a line."""
    async with Client(line.url) as entered:
        return await to_end(entered.watch(job_id))


# -- a good line -------------------------------------------------------------------------------


async def test_a_recording_is_sent_and_followed_to_its_text(
    direct: Client, make_wav: MakeWav
) -> None:
    """Otherwise a program of five lines cannot use a server."""
    options = Script(segments=4).options(language="de", word_timestamps=True, temperature=0.2)
    first = await direct.submit(make_wav(2.0), options)
    assert first.status in {"queued", "running"}
    received = await to_end(direct.watch(first.job_id))
    assert received[-1].status == "completed"
    segments = merge(received)
    assert [segment.text for segment in segments] == [
        " de 0.0.",
        " de 0.5.",
        " de 1.0.",
        " de 1.5.",
    ]
    assert list((await direct.get(first.job_id)).segments) == segments
    assert await direct.transcript(first.job_id) == "de 0.0.\nde 0.5.\nde 1.0.\nde 1.5.\n"
    assert (await direct.transcript(first.job_id, "vtt")).startswith("WEBVTT\n")
    shaped = await direct.transcript(first.job_id, "srt", Shape(max_line_width=4))
    assert "\nde\n0.0.\n" in shaped
    assert await to_end(direct.watch(first.job_id)) == [await direct.get(first.job_id)]


async def test_a_cursor_brings_only_what_is_missing(direct: Client, make_wav: MakeWav) -> None:
    """Otherwise a program that was restarted has to begin anew."""
    job_id = (await direct.submit(make_wav(2.0), Script(segments=10, delay=0.05).options())).job_id
    watching = direct.watch(job_id)
    seen = await until_frame(watching, lambda frame: frame.segments)
    received = await to_end(direct.watch(job_id))
    mine = merge(received)[: seen.offset + len(seen.segments)]
    rest = await to_end(direct.watch(job_id, seen.cursor), mine)
    assert rest[0].offset == len(mine)
    assert merge(rest, mine) == merge(received)


@pytest.mark.parametrize("name", ["Größe & 100% #1?.wav", "a=b;c.wav"])
async def test_any_file_name_arrives(
    direct: Client, make_wav: MakeWav, tmp_path: Path, scripted_server: Server, name: str
) -> None:
    """Otherwise a file cannot be sent because of its name."""
    path = tmp_path / name
    path.write_bytes(make_wav(2.0).read_bytes())
    job_id = (await direct.submit(str(path), Script().options())).job_id
    url = f"{scripted_server.url}/v1/jobs?limit=1"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        (job,) = (await response.json())["jobs"]
    assert (job["job_id"], job["name"]) == (job_id, name)


async def test_a_job_is_stopped_and_erased(direct: Client, make_wav: MakeWav) -> None:
    """Otherwise a program can start jobs and never stop them."""
    job_id = (await direct.submit(make_wav(2.0), ENDLESS)).job_id
    await until_frame(direct.watch(job_id), lambda frame: frame.segments)
    with pytest.raises(ServerError, match="partial") as caught:
        await direct.transcript(job_id)
    assert (caught.value.code, caught.value.http_status) == ("not_finished", 409)
    for _ in range(2):
        frame = await direct.cancel(job_id)
        assert frame.status == "cancelled"
        assert frame.segments
    check(await to_end(direct.watch(job_id)))
    await direct.delete(job_id)
    with pytest.raises(ServerError):
        await direct.get(job_id)


# -- errors ------------------------------------------------------------------------------------


async def test_an_unknown_job_is_an_error(direct: Client) -> None:
    """Otherwise a program waits for a job that does not exist, for ever."""
    for ask in (direct.get, direct.transcript, direct.cancel, direct.delete):
        with pytest.raises(ServerError, match="nope") as caught:
            await ask("nope")
        assert (caught.value.code, caught.value.http_status) == ("job_not_found", 404)
    with pytest.raises(ServerError, match="nope") as caught:
        await to_end(direct.watch("nope"))
    assert (caught.value.code, caught.value.http_status) == ("job_not_found", 404)


async def test_a_refusal_says_why(direct: Client, make_wav: MakeWav, tmp_path: Path) -> None:
    """Otherwise a program, or its user, has to guess."""
    with pytest.raises(ServerError, match=r"^model: .*scripted") as caught:
        await direct.submit(make_wav(2.0), Options(model="huge"))
    assert (caught.value.code, caught.value.http_status) == ("invalid_option", 422)
    empty = tmp_path / "empty.wav"
    empty.touch()
    with pytest.raises(ServerError, match="empty") as caught:
        await direct.submit(empty)
    assert caught.value.code == "invalid_request"
    with pytest.raises(FileNotFoundError):
        await direct.submit(tmp_path / "none.wav")


async def test_an_error_of_somebody_else_is_an_error(make_wav: MakeWav) -> None:
    """Otherwise a proxy's page of HTML shows a traceback about JSON."""

    async def answer(request: web.Request) -> web.Response:
        status = int(request.path.rpartition("/")[2]) if request.method == "GET" else 502
        return web.Response(text="<h1>Bad Gateway</h1>", status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server, Client(str(server.make_url("/"))) as there:
        with pytest.raises(ServerError, match="502 Bad Gateway") as caught:
            await there.submit(make_wav(2.0))
        assert (caught.value.code, caught.value.http_status) == ("unknown", 502)
        for status in (403, 404):
            with pytest.raises(ServerError) as caught:
                await to_end(there.watch(str(status)))
            assert caught.value.http_status == status


async def test_no_server_is_an_error(make_wav: MakeWav) -> None:
    """Otherwise a recording seems to be sent that nobody has received."""
    async with Line("http://127.0.0.1:9") as line:
        line.is_up = False
        async with Client(line.url) as there:
            with pytest.raises((aiohttp.ClientError, OSError)):
                await there.submit(make_wav(2.0))


# -- a bad line --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_no_segment_is_lost_or_doubled_when_the_line_is_cut(
    direct: Client, scripted_server: Server, make_wav: MakeWav, seed: int
) -> None:
    """Otherwise a transcript that came over a mobile network has holes or repetitions."""
    script = Script(segments=50, delay=0.04)
    job_id = (await direct.submit(make_wav(2.0), script.options())).job_id
    async with Line(scripted_server.url) as line:
        # Before, within and after the handshake, and anywhere in a frame.
        line.limits = [*random.Random(seed).sample(range(1, 4000), 5), 129]
        received = await follow(line, job_id)
        assert line.count == 7
    segments = merge(received)
    assert len(segments) == 50
    assert sum(len(frame.segments) for frame in received) == 50, "some came twice"
    assert segments == list((await direct.get(job_id)).segments)


async def test_it_waits_for_a_server_that_is_away(
    direct: Client, scripted_server: Server, make_wav: MakeWav
) -> None:
    """Otherwise a restart of the server ends every program that watches."""
    job_id = (await direct.submit(make_wav(2.0), ENDLESS)).job_id
    async with Line(scripted_server.url) as line, Client(line.url) as there:
        watching = there.watch(job_id)
        received = [await anext(watching)]
        line.is_up = False
        line.cut()
        frame = await direct.get(job_id)
        more = asyncio.create_task(to_end(watching, merge(received)))
        count = len(frame.segments) + 5
        await until_frame(direct.watch(job_id), lambda frame: frame.offset > count)
        assert not more.done()
        line.is_up = True
        await until(lambda: line.count == 2)
        await direct.cancel(job_id)
        received += await more
    assert merge(received) == list((await direct.get(job_id)).segments)


async def test_it_leaves_a_line_that_is_dead(
    direct: Client, scripted_server: Server, make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a watcher whose network was changed waits for ever on a line that is no more."""
    monkeypatch.setattr(client, "SILENCE_S", 0.5)
    job_id = (await direct.submit(make_wav(2.0), Script(segments=10, delay=0.05).options())).job_id
    async with Line(scripted_server.url) as line, Client(line.url) as there:
        watching = there.watch(job_id)
        received = [await anext(watching)]
        line.is_dead = True
        await to_end(direct.watch(job_id))
        more = asyncio.create_task(to_end(watching, merge(received)))
        await until(lambda: line.count == 2)
        line.is_dead = False
        received += await more
    assert len(merge(received)) == 10


async def test_a_job_that_is_deleted_meanwhile_is_an_error(
    direct: Client, scripted_server: Server, make_wav: MakeWav
) -> None:
    """Otherwise a watcher comes back for ever to a job that is gone."""
    job_id = (await direct.submit(make_wav(2.0), ENDLESS)).job_id
    async with Line(scripted_server.url) as line, Client(line.url) as there:
        watching = there.watch(job_id)
        await anext(watching)
        line.is_up = False
        line.cut()
        await direct.delete(job_id)
        line.is_up = True
        with pytest.raises(ServerError, match="no job"):
            await until_frame(watching, lambda frame: frame.status.is_terminal)
