"""The socket: frames of one job, as they happen."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from aiohttp import WSCloseCode, WSMsgType, web

from aiotranscribe.hub import Subscription
from aiotranscribe.web.jobs import TRANSCRIBER

log = logging.getLogger(__name__)

#: Connections that are being written to right now.
WRITING = web.AppKey("writing", set[asyncio.Transport])

#: A peer that takes nothing for this long is gone, whatever TCP believes.
STALLED_S = 20.0
#: How long a socket may take to say goodbye; every stuck one together, when the server stops.
GOODBYE_S = 2.0
_PING_S = 20.0
# Nothing that a watcher has to say is longer.
_LONGEST_MESSAGE_BYTES = 4 << 10


async def watch(request: web.Request) -> web.WebSocketResponse:
    """``GET /ws/transcription/{job_id}?since=``: the frames of one job, then close 1000.

    An unknown job is refused with 404 before the upgrade.
    """
    job_id, since = request.match_info["job_id"], request.query.get("since")
    subscription = request.app[TRANSCRIBER].watch(job_id, since)
    # compress costs eight times the sending; ping and pong notice a peer that has vanished.
    socket = web.WebSocketResponse(
        compress=False, heartbeat=_PING_S, max_msg_size=_LONGEST_MESSAGE_BYTES, timeout=GOODBYE_S
    )
    try:
        await socket.prepare(request)
        listener = asyncio.create_task(_listen(socket, subscription), name=f"listen-{job_id}")
        try:
            with contextlib.suppress(ConnectionError):
                await _send(request, socket, subscription)
        finally:
            # While something receives, aiohttp's close does not wait for the peer's close frame
            # (RFC 6455, section 7.1.1), and a peer that finds the connection cut calls it 1006.
            listener.cancel()
            await asyncio.wait([listener])
        code = WSCloseCode.OK if subscription.is_finished else WSCloseCode.GOING_AWAY
        async with _deadline(request, GOODBYE_S):
            await socket.close(code=code)
    finally:
        subscription.close()
    return socket


async def _send(
    request: web.Request, socket: web.WebSocketResponse, subscription: Subscription
) -> None:
    """Send every frame. Ends with ConnectionError when the peer is gone."""
    async for frame in subscription:
        async with _deadline(request, STALLED_S):
            await socket.send_frame(subscription.encode(frame), WSMsgType.TEXT)


async def _listen(socket: web.WebSocketResponse, subscription: Subscription) -> None:
    """Read what the peer sends: nothing that matters, but pongs and close are handled here."""
    async for _ in socket:
        pass
    subscription.close()


@contextlib.asynccontextmanager
async def _deadline(request: web.Request, limit_s: float) -> AsyncIterator[None]:
    """Abort the connection if the block takes longer.

    A send must not be cancelled: aiohttp 3.14 shares the waiter of a drain, and a cancelled one
    makes every later send and close fail. Aborting makes the send itself fail.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    timer = asyncio.get_running_loop().call_later(limit_s, transport.abort)
    writing = request.app[WRITING]
    writing.add(transport)
    try:
        yield
    finally:
        timer.cancel()
        writing.discard(transport)


def abort_stuck(app: web.Application) -> None:
    """Cut the connections whose peers do not read: called when the server has no time left."""
    for transport in app[WRITING]:
        transport.abort()
