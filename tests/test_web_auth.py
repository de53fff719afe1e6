"""Who is let in, and that what lets one in is never told."""

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, WSServerHandshakeError, hdrs
from aiohttp.test_utils import TestServer

from aiotranscribe import Client, Config, Transcriber, create_app
from aiotranscribe.errors import InvalidOption, ServerError
from aiotranscribe.web import auth
from tests import scripted
from tests.conftest import SCRIPTED, Server, WebClient
from tests.scripted import Script

MakeWav = Callable[[float], Path]

TOKEN = "c2VjcmV0-of.anna_0123456789"
OTHER = "the+other/one~0123456789=="
CODE = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a token."""
    return {hdrs.AUTHORIZATION: f"Bearer {token}"}


@contextlib.asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[WebClient]:
    """An application with these settings, and a client of it."""
    config = Config(model=("scripted",), workers=1, data_dir=folder, **settings)
    transcriber = Transcriber(config, loader=scripted.load)
    async with WebClient(TestServer(create_app(transcriber=transcriber))) as client:
        yield client


async def test_every_route_but_the_open_ones_wants_a_token(tmp_path: Path) -> None:
    """Whoever finds the port could read, feed and empty the server."""
    async with serving(tmp_path, token=(f"anna:{TOKEN}", OTHER)) as client:
        is_open = set()
        for route in client.app.router.routes():
            assert route.resource
            path = route.resource.canonical.replace("{job_id}", "nope")
            async with client.request(route.method, path) as response:
                if response.status != 401:
                    is_open.add(path)
                elif route.method != "HEAD":
                    assert response.headers["WWW-Authenticate"].startswith("Bearer")
                    told = await response.json(content_type=None)
                    assert told.get("error", told)["code"] == "unauthorized"
            async with client.request(route.method, path, headers=bearer(OTHER)) as response:
                assert response.status != 401
        assert {"/health", "/ready", "/"} <= is_open
        assert all(path.count("/") == 1 or path.startswith("/static/") for path in is_open)
        async with client.get("/nothing/here") as response:
            assert response.status == 401


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Bearer anna:{TOKEN}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {OTHER}, {TOKEN}",
        "Bearer \udce4\udcf6",
    ],
)
async def test_what_is_no_token_is_refused(tmp_path: Path, value: str) -> None:
    """A guess, a part of a token or another scheme would let one in."""
    async with serving(tmp_path, token=(f"anna:{TOKEN}",)) as client:
        async with client.get("/v1/jobs", headers={hdrs.AUTHORIZATION: value}) as response:
            assert response.status == 401
        async with client.get(f"/v1/jobs?token={TOKEN}&access_token={TOKEN}") as response:
            assert response.status == 401, "never in an address"
        async with client.get("/v1/jobs", headers={hdrs.AUTHORIZATION: f"bearer {TOKEN}"}) as ok:
            assert ok.status == 200


async def test_a_browser_s_socket_brings_its_token_as_a_subprotocol(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A page could not watch a server that wants a token, or its token would be told or logged."""
    caplog.set_level(logging.DEBUG)
    async with serving(tmp_path, token=(TOKEN,)) as client:
        path = "/ws/transcription"
        offers = [auth.PROTOCOL, f"bearer.{CODE}"]
        async with client.ws_connect(path, protocols=offers) as socket:
            assert socket.protocol == auth.PROTOCOL
        async with client.ws_connect(path, headers=bearer(TOKEN)) as socket:
            assert socket.protocol is None
        for wrong in ([], [auth.PROTOCOL], [auth.PROTOCOL, "bearer.!"], [f"bearer.{CODE[:-2]}"]):
            with pytest.raises(WSServerHandshakeError, match="401"):
                await client.ws_connect(path, protocols=wrong)
        with pytest.raises(WSServerHandshakeError, match="400"):
            await client.ws_connect(path, protocols=[f"bearer.{CODE}"])
    assert CODE not in caplog.text


async def test_a_token_may_stand_in_a_file(tmp_path: Path) -> None:
    """A service's secret would have to stand on the command line, where all can read it."""
    path = tmp_path / "tokens"
    path.write_text(f"# who may\n\nanna:{TOKEN}\n  {OTHER}  \n")
    tokens = auth.Tokens(Config(token_file=path))
    assert tokens.name(TOKEN.encode()) == "anna"
    assert tokens.name(OTHER.encode())
    assert tokens.name(b"") is None


@pytest.mark.parametrize("text", ["short", "anna:short", "with space 0123456789", f"ü{TOKEN}"])
async def test_a_bad_token_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    """A server would start with a secret that can be guessed, or print one into a log."""
    (tmp_path / "tokens").write_text(f"{TOKEN}\n{text}\n")
    for config in (Config(token=(TOKEN, text)), Config(token_file=tmp_path / "tokens")):
        with pytest.raises(InvalidOption, match=" 2 ") as caught:
            create_app(config)
        assert text not in str(caught.value)
        assert text not in repr(config)


async def test_the_client_sends_its_token(tmp_path: Path, make_wav: MakeWav) -> None:
    """A program could not use a server that wants a token, and would not be told why."""
    async with serving(tmp_path, token=(f"anna:{TOKEN}",)) as web:
        url = str(web.make_url("/"))
        async with Client(url, TOKEN) as client:
            job_id = (await client.submit(make_wav(2.0), Script().options())).job_id
            assert [frame async for frame in client.watch(job_id)][-1].status == "completed"
        async with Client(url) as client:
            for asking in (client.get(job_id), anext(client.watch(job_id))):
                with pytest.raises(ServerError) as caught:
                    await asking
                assert caught.value.code == "unauthorized"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "stt.example"])
def test_a_server_does_not_open_itself_to_others_by_mistake(host: str) -> None:
    """A self-hoster who opens a port and forgets it would serve the whole network."""
    with pytest.raises(InvalidOption, match="aiotranscribe serve --host"):
        auth.check_listening(Config(host=host))
    auth.check_listening(Config(host=host, allow_anonymous=True))
    auth.check_listening(Config(host=host, token=(TOKEN,)))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    """Trying it at home would begin with inventing a password."""
    auth.check_listening(Config(host=host))


def test_serve_says_what_to_run_instead(start_server: Callable[..., Server]) -> None:
    """It would start, or end without saying how to do it right."""
    with pytest.raises(AssertionError) as caught:
        start_server("--host", "0.0.0.0", *SCRIPTED, program="tests.scripted_program")
    assert "--allow-anonymous" in str(caught.value)
    assert "AIOTRANSCRIBE_TOKEN=" in str(caught.value)


async def test_no_log_ever_has_a_token(
    start_server: Callable[..., Server], make_wav: MakeWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads the log of a server, or is sent it for help, could use the server."""
    monkeypatch.setenv("AIOTRANSCRIBE_TOKEN", f"anna:{TOKEN} {OTHER}")
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    server = await asyncio.to_thread(
        start_server, *SCRIPTED, program="tests.scripted_program", prefix=("env", "DEBUG_LOG=1")
    )
    host, port = server.url.removeprefix("http://").split(":")
    async with Client(server.url, TOKEN) as client:
        job_id = (await client.submit(make_wav(2.0), Script().options())).job_id
        async for _ in client.watch(job_id):
            pass
        with pytest.raises(ServerError):
            await client.get(TOKEN)
    socket = f"GET /ws/transcription HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
    dishonest = [
        f"GET /v1/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\x01\r\n\r\n",
        f"GET /v1/jobs HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nHost {TOKEN}\r\n\r\n",
        f"GET /v1/jobs HTTP/9.9\r\nAuthorization: Bearer {TOKEN}\r\n\r\n",
        f"Authorization: Bearer {TOKEN}\r\n\r\n",
        f"{socket}Sec-WebSocket-Protocol: bearer.{CODE}\r\n\r\n",
        f"{socket}Sec-WebSocket-Protocol: chat, bearer.{CODE}\r\n\r\n",
        f"POST /v1/jobs?model={TOKEN} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Length: 5\r\n\r\n",
    ]
    for request in dishonest:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request.encode())
        writer.write_eof()
        async with asyncio.timeout(30):
            await reader.read()
        writer.close()
        await writer.wait_closed()
    async with ClientSession() as session, session.get(f"{server.url}/v1/jobs?t={TOKEN}") as answer:
        assert answer.status == 401
    await asyncio.to_thread(server.stop)
    log = (server.data_dir / "log").read_text()
    assert f"job {job_id} completed" in log
    assert "DEBUG" in log
    for secret in (TOKEN, OTHER, CODE):
        assert secret not in log


async def test_only_trusted_proxies_say_who_is_asking(tmp_path: Path) -> None:
    """Anybody could pass for a page of the server, or for as many clients as he likes."""
    told = {
        "X-Forwarded-Host": "stt.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "198.51.100.1",
    }
    page = {hdrs.ORIGIN: "https://stt.example"}
    async with (
        serving(tmp_path / "no") as client,
        client.get("/v1/jobs", headers=told | page) as response,
    ):
        assert response.status == 403
    async with serving(tmp_path / "yes", trusted_proxy=("127.0.0.0/8",)) as client:
        async with client.get("/v1/jobs", headers=told | page) as response:
            assert response.status == 200
        for origin in ("http://stt.example", "https://evil.test"):
            async with client.get("/v1/jobs", headers=told | {hdrs.ORIGIN: origin}) as response:
                assert response.status == 403
        rebound = {hdrs.HOST: f"evil.test:{client.port}"} | told
        async with client.get("/v1/jobs", headers=rebound) as response:
            assert response.status == 403, "a page can send these headers too"


async def test_a_site_that_is_allowed_may_send_a_token(tmp_path: Path) -> None:
    """A page of one's own, on another site, could not use the server; or all others could."""
    site = {hdrs.ORIGIN: "https://app.example"}
    asking = site | {
        hdrs.ACCESS_CONTROL_REQUEST_METHOD: "POST",
        hdrs.ACCESS_CONTROL_REQUEST_HEADERS: "authorization",
    }
    settings = {"token": (TOKEN,), "allow_origin": ("https://app.example/",)}
    async with serving(tmp_path, **settings) as client:
        async with client.options("/v1/jobs", headers=asking) as response:
            assert response.status == 204
            assert "Authorization" in response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS]
            assert response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] == "https://app.example"
        async with client.get("/v1/jobs", headers=site) as response:
            assert response.status == 401
            assert response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] == "https://app.example"
        async with client.get("/v1/jobs", headers=site | bearer(TOKEN)) as response:
            assert response.status == 200
        async with client.get(
            "/v1/jobs", headers={hdrs.ORIGIN: "http://app.example"} | bearer(TOKEN)
        ) as response:
            assert response.status == 403


@pytest.mark.parametrize("origin", ["*", "null", "app.example", "https://app.example/page", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    """A setting that can never match, or that opens the server to all sites, would go unseen."""
    with pytest.raises(InvalidOption, match="allow_origin"):
        create_app(Config(allow_origin=(origin,)))


async def test_it_works_under_a_path_behind_a_proxy(
    start_server: Callable[..., Server], make_wav: MakeWav
) -> None:
    """Somebody with one name for many services could not have this one under it."""
    server = await asyncio.to_thread(
        start_server, "--base-path", "/stt/", *SCRIPTED, program="tests.scripted_program"
    )
    assert server.url.endswith("/stt/")
    async with Client(server.url) as client:
        frame = await client.submit(make_wav(2.0), Script().options())
        assert [each async for each in client.watch(frame.job_id)][-1].status == "completed"
    async with ClientSession() as session:
        async with session.get(server.url) as response:
            assert response.status == 200
        async with session.get(server.url.replace("/stt/", "/v1/jobs")) as response:
            assert response.status == 404
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_browsers_are_told_what_not_to_do_with_an_answer(tmp_path: Path) -> None:
    """Another site could put the server into a frame, or a text that a browser takes for a page."""
    async with serving(tmp_path) as client:
        for path in ("/v1/jobs", "/health", "/v1/jobs/nope", "/nothing", "/", "/metrics"):
            async with client.get(path) as response:
                assert response.headers["X-Content-Type-Options"] == "nosniff", path
                assert response.headers["Referrer-Policy"] == "no-referrer", path
                policy = response.headers["Content-Security-Policy"]
                assert "frame-ancestors 'none'" in policy, path
                assert path == "/" or "default-src 'none'" in policy, path


def test_settings_do_not_show_their_tokens() -> None:
    """A settings object that is logged for debugging would tell the secret."""
    assert TOKEN not in repr(Config(token=(TOKEN,)))
