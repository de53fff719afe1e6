"""How many connections each client may keep open, and all of them together."""

import contextlib
import resource
import socket
from collections import Counter
from collections.abc import Awaitable
from types import TracebackType

from aiohttp import web
from aiohttp.typedefs import Handler

from aiotranscribe.errors import ServerFull, TooMany
from aiotranscribe.web import auth

# Descriptors that are kept for the files of those who are connected, and for /health.
_RESERVED_FILES = 64
#: A peer that takes nothing of an answer for this long is cut; a player that pauses comes back.
STALLED_S = 60.0


class Sockets:
    """The sockets and event streams of every client, and how many one may have."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.counts: Counter[str] = Counter()


SOCKETS = web.AppKey("sockets", Sockets)


class Seat:
    """A connection of a client; use it with ``with`` for as long as it is open.

    Raises:
        TooMany: on entering, if the client has as many as it may.
    """

    __slots__ = ("_client", "_sockets")

    def __init__(self, request: web.Request) -> None:
        self._sockets = request.app[SOCKETS]
        self._client = auth.client_of(request)

    def __enter__(self) -> None:
        most = self._sockets.most
        if self._sockets.counts[self._client] >= most:
            raise TooMany(
                f"{self._client} has {most} sockets and event streams open, which is the limit; "
                "see --max-sockets-per-client"
            )
        self._sockets.counts[self._client] += 1

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sockets.counts[self._client] -= 1
        if not self._sockets.counts[self._client]:
            del self._sockets.counts[self._client]


async def bound_stalls(request: web.Request, response: web.StreamResponse) -> None:
    """Have the system cut a peer that takes nothing of an answer (signal ``on_response_prepare``).

    Sockets and event streams have shorter deadlines of their own.
    """
    connection = request.get_extra_info("socket")
    if connection and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        with contextlib.suppress(OSError):  # a Unix socket, or a peer that has gone
            stalled_ms = round(1000 * STALLED_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_ms)


def raise_file_limit() -> None:
    """Let this process open as many files, and so connections, as the system allows it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS says unlimited, and allows that many at least.
    wanted = 10_240 if most == resource.RLIM_INFINITY else most
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


@web.middleware
def leave_room(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
    """Refuse newcomers while there is still a descriptor to tell them so.

    Not a coroutine, of which every watcher would keep one in memory.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    connection = request.get_extra_info("socket")
    # A new file gets the lowest number that is free (POSIX, open): so the number says how many
    # there are.
    is_full = connection and connection.fileno() >= most - _RESERVED_FILES and most > 0
    if is_full and not request.path.endswith(("/health", "/ready")):
        raise ServerFull(
            f"this server may have {most} files and connections open, and nearly has; "
            "whoever runs it can allow more with 'ulimit -n'"
        )
    return handler(request)
