"""How many connections each client may keep open."""

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TypeVar

from aiohttp import web

from aiotranscribe.errors import TooMany
from aiotranscribe.web.auth import client_of

R = TypeVar("R", bound=web.StreamResponse)


class Sockets:
    """The sockets and event streams of every client, and how many one may have."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.counts: Counter[str] = Counter()


SOCKETS = web.AppKey("sockets", Sockets)


def counted(
    handler: Callable[[web.Request], Awaitable[R]],
) -> Callable[[web.Request], Awaitable[R]]:
    """Refuse a client that has too many connections with this and the other counted handlers."""

    @wraps(handler)
    async def count(request: web.Request) -> R:
        sockets, client = request.app[SOCKETS], client_of(request)
        if sockets.counts[client] >= sockets.most:
            raise TooMany(
                f"{client} has {sockets.most} sockets and event streams open, which is the limit; "
                "see --max-sockets-per-client"
            )
        sockets.counts[client] += 1
        try:
            return await handler(request)
        finally:
            sockets.counts[client] -= 1
            if not sockets.counts[client]:
                del sockets.counts[client]

    return count
