"""A line between a client and a server, to be cut."""

import asyncio
import contextlib
import socket

from yarl import URL

from tests.waiting import until


class Line:
    """A line to a server that breaks: a TCP proxy."""

    def __init__(self, url: str) -> None:
        self._target = URL(url)
        #: How many bytes of an answer pass before the line is cut; ``None`` for all.
        self.limits: list[int | None] = []
        #: Whether connections are taken at all.
        self.is_up = True
        #: Whether nothing passes any more, though no connection is cut.
        self.is_dead = False
        #: How many connections there were.
        self.count = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "Line":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()
        await until(lambda: not self._open)

    @property
    def is_open(self) -> bool:
        """Whether there is something to cut."""
        return bool(self._open)

    def cut(self) -> int:
        """Cut all connections without a word; return how many there were."""
        for writer in self._open:
            writer.transport.abort()
        return len(self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.is_up:
            writer.transport.abort()
            return
        limit = self.limits.pop(0) if self.limits else None
        self.count += 1
        try:
            upstream = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:  # the server is away
            writer.transport.abort()
            return
        self._open.add(writer)
        both = [
            asyncio.create_task(self._pass(reader, upstream[1], None)),
            asyncio.create_task(self._pass(upstream[0], writer, limit)),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        await asyncio.wait(both)
        for each in (writer, upstream[1]):
            each.transport.abort()
        self._open.discard(writer)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(limit or 1 << 16):
                if not self.is_dead:
                    writer.write(data)
                    await writer.drain()
                if limit is not None:
                    limit -= len(data)
                    if limit <= 0:
                        return


def free_port() -> int:
    """Return a port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
