"""Which web pages may use the server."""

import pytest
from aiohttp import ClientSession, WSServerHandshakeError, web
from pytest_aiohttp import AiohttpClient, AiohttpServer

from aiotranscribe import Config, Transcriber, create_app
from aiotranscribe.web import origins, proxies
from aiotranscribe.web.errors import problems
from tests import scripted


async def _answer(request: web.Request) -> web.Response:
    return web.Response(text="yours", headers={"Location": "/there"})


@pytest.fixture
def app() -> web.Application:
    """An application that answers whoever the guard lets in."""
    app = web.Application(middlewares=[problems, origins.guard])
    app[origins.ALLOWED] = origins.parse(["https://app.example"])
    app[proxies.TRUSTED] = []
    app.on_response_prepare.append(origins.let_read)
    app.router.add_route("*", "/", _answer)
    return app


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:5173",
        "http://127.0.0.1:1",
        "http://127.8.9.10",
        "https://[::1]:8443",
        "http://app.localhost",
    ],
)
async def test_pages_of_this_machine_are_welcome(
    app: web.Application, aiohttp_client: AiohttpClient, origin: str
) -> None:
    """A developer's own page, on another port, would get nothing but CORS errors."""
    client = await aiohttp_client(app)
    async with client.post("/", headers={"Origin": origin}) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert (
            response.headers["Access-Control-Expose-Headers"] == "Location, Retry-After, X-Job-Id"
        )
        assert response.headers["Vary"] == "Origin"
    asked = {"Origin": origin, "Access-Control-Request-Method": "DELETE"}
    async with client.options("/", headers=asked) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert "DELETE" in response.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.test",
        "https://evil.test:8000",
        "http://localhost.evil.test",
        "http://127.0.0.1.evil.test",
        "http://evil.test#@localhost",
        "http://notlocalhost",
        "http://192.168.1.7",
        "http://0.0.0.0",
        "file://",
        "chrome-extension://abcdef",
        "ws://localhost",
        "http://[::1",
        "localhost",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_pages_of_other_sites_are_refused(
    app: web.Application, aiohttp_client: AiohttpClient, origin: str, method: str
) -> None:
    """Any site that somebody visits could read, feed and empty the server on his machine."""
    client = await aiohttp_client(app)
    headers = {"Origin": origin, "Access-Control-Request-Method": "DELETE"}
    async with client.request(method, "/", headers=headers) as response:
        assert response.status == 403
        assert (await response.json())["code"] == "origin_refused"
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_the_servers_own_pages_are_welcome_by_any_name(
    app: web.Application, aiohttp_server: AiohttpServer
) -> None:
    """A page served through a proxy, with the public name in Host, could not use its own server."""
    server = await aiohttp_server(app)
    headers = {"Host": "stt.example", "Origin": "https://STT.example"}
    async with (
        ClientSession() as session,
        session.post(server.make_url("/"), headers=headers) as response,
    ):
        assert response.status == 200
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_neighbours_are_welcome_only_where_the_server_is_called_local(
    app: web.Application, aiohttp_client: AiohttpClient
) -> None:
    """A page of the visitor's machine is not a page of the machine that serves a public name."""
    client = await aiohttp_client(app)
    headers = {"Host": "stt.example", "Origin": "http://localhost:5173"}
    async with client.get("/", headers=headers) as response:
        assert response.status == 403


async def test_a_site_that_calls_itself_our_address_is_refused(
    app: web.Application, aiohttp_client: AiohttpClient
) -> None:
    """By DNS rebinding a site could pass for the server's own page and read every transcript."""
    client = await aiohttp_client(app)
    name = f"evil.test:{client.port}"
    for headers in ({"Host": name}, {"Host": name, "Origin": f"http://{name}"}):
        async with client.get("/", headers=headers) as response:
            assert response.status == 403
            assert (await response.json())["code"] == "host_refused"


async def test_programs_send_no_origin_and_are_served(
    app: web.Application, aiohttp_client: AiohttpClient
) -> None:
    """No script and no command line could use the server."""
    client = await aiohttp_client(app)
    async with client.get("/") as response:
        assert response.status == 200


async def test_the_application_is_guarded_its_sockets_too(aiohttp_client: AiohttpClient) -> None:
    """No browser keeps a page from another site's sockets: the server has to."""
    transcriber = Transcriber(Config(model=("scripted",), workers=1), loader=scripted.load)
    client = await aiohttp_client(create_app(transcriber=transcriber))
    async with client.post("/v1/jobs", data=b"no recording") as response:
        job_id = (await response.json())["job_id"]
    path = f"/ws/transcription/{job_id}"
    for origin in ("http://evil.test", "null"):
        with pytest.raises(WSServerHandshakeError, match="403"):
            await client.ws_connect(path, headers={"Origin": origin})
        async with client.post("/v1/jobs", data=b"x", headers={"Origin": origin}) as response:
            assert response.status == 403
    own = str(client.make_url("/")).rstrip("/")
    async with client.ws_connect(path, headers={"Origin": own}) as socket:
        assert (await socket.receive_json())["job_id"] == job_id
    async with client.get("/v1/jobs") as response:
        assert len((await response.json())["jobs"]) == 1
