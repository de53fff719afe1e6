"""The server's socket, but it says back what it is told: what conformance suites want.

By hand, from the folder above tests: ``python -m tests.fuzz.echo``, then the fuzzing client of the
Autobahn test suite (0.8.2, with autobahn 0.10.9, needs Python 2.7) against ws://127.0.0.1:9001/,
without its cases 12 and 13, which are of compression.
"""

from aiohttp import WSMsgType, web

from aiotranscribe.web import watch


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Say back every message."""
    socket = await watch._open(request)
    async for message in socket:
        data = message.data if message.type is WSMsgType.BINARY else message.data.encode()
        await socket.send_frame(data, message.type)
    return socket


if __name__ == "__main__":
    watch._LONGEST_MESSAGE_BYTES = 32 << 20
    app = web.Application()
    app.add_routes([web.get("/", echo)])
    web.run_app(app, host="127.0.0.1", port=9001, access_log=None)
