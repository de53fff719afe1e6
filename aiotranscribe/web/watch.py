"""Frames as they happen: one job's or many jobs' over a WebSocket, one job's as an event stream."""

import asyncio
import contextlib
import logging
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from aiotranscribe import frame as frames
from aiotranscribe.errors import AiotranscribeError, InvalidRequest, Problem
from aiotranscribe.frame import Frame
from aiotranscribe.hub import Board, Subscription
from aiotranscribe.web import auth, limits
from aiotranscribe.web.describe import EVENTS, Description, describes
from aiotranscribe.web.jobs import TRANSCRIBER, FrameQuery, WatchQuery, language_of

log = logging.getLogger(__name__)

#: Connections that are being written to right now.
WRITING = web.AppKey("writing", set[asyncio.Transport])
#: What reads from sockets that watch many jobs.
LISTENING = web.AppKey("listening", set[asyncio.Timeout])

#: A peer that takes nothing for this long is gone, whatever TCP believes.
STALLED_S = 20.0
#: How long a socket may take to say goodbye; every stuck one together, when the server stops.
GOODBYE_S = 2.0
_PING_S = 20.0
# How often to look whether a peer that lags has taken what was sent.
_LOOK_AGAIN_S = 0.1
# Nothing that a watcher has to say is longer.
_LONGEST_MESSAGE_BYTES = 4 << 10
_MOST_SUBSCRIPTIONS = 1000
# More than all subscriptions at once, twice; a peer that says more in such a time is flooding us.
_MOST_MESSAGES, _MESSAGES_S = 4000, 10.0
# How soon a browser's EventSource comes back, when the connection breaks.
_RETRY_MS = 1000

#: Instead of a job's id: every job, without segments.
ALL = "*"


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the watcher of many jobs says: one of the two, the first maybe with a cursor."""

    subscribe: str | None = None
    unsubscribe: str | None = None
    since: str | None = None


class Refusal(msgspec.Struct, frozen=True):
    """Why there is no frame of a job: unlike a frame, it has no other keys."""

    job_id: str
    error: Problem


class _Flooded(Exception):
    """The peer says more than any watcher has to say."""


class _Flood:
    """Counts what a peer says."""

    __slots__ = ("_began", "_count")

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._count = 0

    def count(self) -> None:
        """Count a message, or raise :class:`_Flooded`."""
        if time.monotonic() - self._began > _MESSAGES_S:
            self._began, self._count = time.monotonic(), 0
        self._count += 1
        if self._count > _MOST_MESSAGES:
            raise _Flooded


class SignOfLife(msgspec.Struct, frozen=True):
    """Nothing has changed in any job for a while."""

    time: str


@describes(Description(query=WatchQuery, answers={101: []}))
async def watch(request: web.Request) -> web.WebSocketResponse:
    """``GET /ws/transcription/{job_id}?since=``: the frames of one job, then close 1000.

    An unknown job is refused with 404 before the upgrade.
    """
    job_id, since = request.match_info["job_id"], request.query.get("since")
    language = language_of(request)
    with (
        limits.Seat(request),
        request.app[TRANSCRIBER].watch(job_id, since, language=language) as subscription,
    ):
        socket = await _open(request)
        sender = _Sender(request, socket, subscription)
        try:
            # Nothing that the peer says matters, but pongs and close are handled here.
            async with sender.listening:
                sender.resume()
                flood = _Flood()
                async for _ in socket:
                    flood.count()
        except (TimeoutError, ConnectionError):  # there is nothing to send any more; or to whom
            pass
        except _Flooded:
            sender.code = WSCloseCode.POLICY_VIOLATION
        finally:
            await sender.stop()
        await _close(request, socket, sender.code)
    return socket


@describes(Description(query=FrameQuery, answers={101: []}))
async def watch_many(request: web.Request) -> web.WebSocketResponse:
    """``GET /ws/transcription``: the frames of the jobs that the watcher subscribes to."""
    language = language_of(request)  # a wrong one is refused before the upgrade
    with limits.Seat(request):
        socket = await _open(request)
        many = _Many(request, socket, language)
        code = WSCloseCode.GOING_AWAY
        listening = asyncio.timeout(None)
        request.app[LISTENING].add(listening)
        try:
            async with listening:
                await many.listen()
        except TimeoutError:
            pass  # the server stops
        except _Flooded:
            code = WSCloseCode.POLICY_VIOLATION
        finally:
            request.app[LISTENING].discard(listening)
        await _close(request, socket, code)
    return socket


@describes(Description(query=WatchQuery, answers={200: [(EVENTS, Frame)], 204: []}))
async def events(request: web.Request) -> web.StreamResponse:
    """``GET /v1/jobs/{job_id}/events``: the frames of one job as server-sent events.

    A browser that comes back after the end gets 204, which tells it to stay away.
    """
    with limits.Seat(request):
        return await _stream(request)


async def _stream(request: web.Request) -> web.StreamResponse:
    transcriber, job_id = request.app[TRANSCRIBER], request.match_info["job_id"]
    since = request.headers.get("Last-Event-ID") or request.query.get("since")
    last = transcriber.summary(job_id)
    if last.status.is_terminal and last.cursor == since:
        return web.Response(status=204)
    response = event_stream()
    language = language_of(request)
    with transcriber.watch(job_id, since, language=language) as subscription:
        await response.prepare(request)
        try:
            await response.write(f"retry: {_RETRY_MS}\n\n".encode())
            async for frame in subscription:
                async with deadline(request, STALLED_S):
                    data = subscription.encode(frame)  # JSON on one line
                    await response.write(b"id: %b\ndata: %b\n\n" % (frame.cursor.encode(), data))
            async with deadline(request, GOODBYE_S, is_patient=False):
                await response.write_eof()
        except ConnectionError:
            pass
        except AiotranscribeError:
            log.exception("the text of job %s cannot be read", job_id)
            if request.transport:
                request.transport.abort()
    return response


def event_stream() -> web.StreamResponse:
    """Return an answer to write server-sent events to, which no proxy keeps to itself."""
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    return response


class _Sender:
    """What sends to a socket that watches one job.

    It is the handler that listens. A task sends what is missing, and ends when nothing is: what
    comes then is pushed. So an idle watcher is one task, and little memory.
    """

    __slots__ = (
        *("_is_over", "_request", "_socket", "_subscription", "_task"),
        *("code", "listening", "transport"),
    )

    def __init__(
        self, request: web.Request, socket: web.WebSocketResponse, subscription: Subscription
    ) -> None:
        self._request = request
        self._socket = socket
        self._subscription = subscription
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        #: What is pushed through; ``None`` if the peer has left already.
        self.transport = request.transport
        #: Around what the handler does until there is nothing to send any more.
        self.listening = asyncio.timeout(None)
        #: What to close with.
        self.code = WSCloseCode.GOING_AWAY
        subscription.push_to(self, _push)

    def resume(self) -> None:
        """Send what is missing."""
        self._task = asyncio.create_task(self._send())

    async def stop(self) -> None:
        """Send no more."""
        self._is_over = True
        self._subscription.close()
        if self._task:
            await asyncio.wait([self._task])

    async def _send(self) -> None:
        request, subscription = self._request, self._subscription
        try:
            async for frame in subscription:
                async with deadline(request, STALLED_S):
                    await self._socket.send_frame(subscription.encode(frame), WSMsgType.TEXT)
                    # What comes meanwhile will be one frame.
                    while _unsent_bytes(request):  # noqa: ASYNC110 - nothing tells when it is empty
                        await asyncio.sleep(_LOOK_AGAIN_S)
            if subscription.is_finished:
                self.code = WSCloseCode.OK
        except ConnectionError:
            pass  # the peer has gone
        except Exception:  # the text cannot be read; whatever it is, the handler has to end
            log.exception("%s: what is missing cannot be sent", request.path)
            self.code = WSCloseCode.INTERNAL_ERROR
        self._task = None  # thousands of ended tasks fill a memory
        if not (subscription.is_live or self._is_over):
            # While something receives, aiohttp's close does not wait for the peer's close frame
            # (RFC 6455, section 7.1.1), and a peer that finds the connection cut calls it 1006.
            self._is_over = True
            self.listening.reschedule(0)


class _Many:
    """A socket that watches many jobs."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, language: str) -> None:
        self._request = request
        self._socket = socket
        self._transcriber = request.app[TRANSCRIBER]
        self._language = language
        #: What is being followed, by job, and who sends it.
        self._watchers: dict[str, Subscription | Board] = {}
        self._senders: set[asyncio.Task[None]] = set()
        # So that the deadline of one send is not taken for another's.
        self._sending = asyncio.Lock()

    async def listen(self) -> None:
        """Do what the peer says, until it has gone."""
        try:
            with contextlib.suppress(ConnectionError):
                flood = _Flood()
                async for message in self._socket:
                    flood.count()
                    if message.type is WSMsgType.TEXT:
                        await self._obey(message.data)
        finally:
            # Not cancelled: that would spoil a send at work, and the close after it.
            for watcher in self._watchers.values():
                watcher.close()
            if self._senders:
                await asyncio.wait(self._senders)

    async def _obey(self, text: str) -> None:
        job_id = ""
        try:
            command = _parse(text)
            job_id = command.subscribe or command.unsubscribe or ""
            if watcher := self._watchers.pop(job_id, None):
                watcher.close()
            if command.subscribe is not None:
                self._subscribe(job_id, command.since)
        except AiotranscribeError as error:
            await self._say(Refusal(job_id, error.problem()))

    def _subscribe(self, job_id: str, since: str | None) -> None:
        if len(self._senders) >= _MOST_SUBSCRIPTIONS:
            raise InvalidRequest(
                f"more than {_MOST_SUBSCRIPTIONS} subscriptions on one socket; '*' brings every "
                "job's state"
            )
        watcher = (
            self._transcriber.board()
            if job_id == ALL
            else self._transcriber.watch(job_id, since, language=self._language)
        )
        self._watchers[job_id] = watcher
        sender = asyncio.create_task(self._follow(job_id, watcher))
        self._senders.add(sender)
        sender.add_done_callback(self._senders.discard)

    async def _follow(self, job_id: str, watcher: Subscription | Board) -> None:
        try:
            with watcher, contextlib.suppress(ConnectionError):
                if isinstance(watcher, Board):
                    await self._follow_all(watcher)
                else:
                    async for frame in watcher:
                        await self._send(watcher.encode(frame))
        except AiotranscribeError as error:
            log.exception("the text of job %s cannot be read", job_id)
            with contextlib.suppress(ConnectionError):
                await self._say(Refusal(job_id, error.problem()))
        finally:
            if self._watchers.get(job_id) is watcher:
                del self._watchers[job_id]

    async def _follow_all(self, board: Board) -> None:
        async for job_id, view in board:
            if view:
                await self._send(view.encode(view.summary(self._language)))
            elif job_id:
                await self._say(Refusal(job_id, Problem("job_not_found", "it has been deleted")))
            else:
                await self._say(SignOfLife(frames.now()))

    async def _say(self, message: Refusal | SignOfLife) -> None:
        await self._send(msgspec.json.encode(message))

    async def _send(self, data: bytes) -> None:
        async with self._sending, deadline(self._request, STALLED_S):
            await self._socket.send_frame(data, WSMsgType.TEXT)


def _parse(text: str) -> Command:
    try:
        command = msgspec.json.decode(text, type=Command)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"this is no command: {error}") from error
    if (command.subscribe is None) == (command.unsubscribe is None):
        raise InvalidRequest('a command has either "subscribe" or "unsubscribe", a job\'s id')
    return command


async def _open(request: web.Request) -> web.WebSocketResponse:
    # compress costs eight times the sending; ping and pong notice a peer that has vanished.
    socket = web.WebSocketResponse(
        compress=False,
        heartbeat=_PING_S,
        max_msg_size=_LONGEST_MESSAGE_BYTES,
        protocols=auth.protocols(request),
        timeout=GOODBYE_S,
    )
    await socket.prepare(request)
    return socket


async def _close(request: web.Request, socket: web.WebSocketResponse, code: WSCloseCode) -> None:
    with contextlib.suppress(ConnectionError):  # the peer has left first
        async with deadline(request, GOODBYE_S, is_patient=False):
            await socket.close(code=code)
            # aiohttp leaves alone, and nobody else cuts, a connection whose peer has said goodbye
            # or nothing for long, but takes nothing any more.
            while _unsent_bytes(request):  # noqa: ASYNC110 - nothing tells when it is empty
                await asyncio.sleep(_LOOK_AGAIN_S)


def _push(senders: Iterable[_Sender], data: bytes) -> Sequence[_Sender]:
    """Send a frame to all whose peers have taken what was sent before; return the others.

    Past aiohttp, which wants a task for each: a loop over its sockets reaches two thirds as many.
    Nothing is in the middle of a message here, since aiohttp writes each in one go.
    """
    frame, behind = _text_frame(data), []
    for sender in senders:
        transport = sender.transport
        if transport is None or transport.get_write_buffer_size() or transport.is_closing():
            behind.append(sender)
        else:
            transport.write(frame)
    return behind


def _unsent_bytes(request: web.Request) -> int:
    """What the transport holds; under TLS, which ``serve`` does not speak, up to 64 KiB less."""
    return request.transport.get_write_buffer_size() if request.transport else 0


def _text_frame(data: bytes) -> bytes:
    """Return a whole text message in one unmasked frame (RFC 6455, section 5.2)."""
    size = len(data)
    if size < 126:
        return struct.pack("!BB", 0x81, size) + data
    if size < 1 << 16:
        return struct.pack("!BBH", 0x81, 126, size) + data
    return struct.pack("!BBQ", 0x81, 127, size) + data


@contextlib.asynccontextmanager
async def deadline(
    request: web.Request, limit_s: float, *, is_patient: bool = True
) -> AsyncIterator[None]:
    """Abort the connection of a peer that takes nothing for a while.

    A send must not be cancelled: aiohttp 3.14 shares the waiter of a drain, and a cancelled one
    makes every later send and close fail. Aborting makes the send itself fail.

    Args:
        request: The request.
        limit_s: How long the peer may take nothing; if not patient, how long the block may take.
        is_patient: Whether a peer that takes something, however slowly, gets more time.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def check(before_bytes: int) -> None:
        nonlocal timer
        left_bytes = transport.get_write_buffer_size()
        if is_patient and left_bytes < before_bytes:
            timer = loop.call_later(limit_s, check, left_bytes)
        else:
            transport.abort()

    # More than anything that is sent: the first look only takes the measure.
    timer = loop.call_later(limit_s, check, sys.maxsize)
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
