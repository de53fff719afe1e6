"""Watchers of a job that check every frame, each over a line of its own that is cut.

Four ways to the same frames: the Python client, a bare WebSocket, server-sent events, long polls.
"""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from random import Random

import aiohttp

from aiotranscribe import Client, Frame, Segment, Status
from aiotranscribe import frame as frames
from aiotranscribe.errors import ServerError
from tests.chaos.report import Report
from tests.line import Line

_ORDER = [Status.QUEUED, Status.RUNNING]
# How long a poll waits; and after this much silence any connection is given up.
_POLL_S, _SILENCE_S = 5, 30.0


class Watcher:
    """Somebody who watches a job to its end, whatever happens to the line or the server.

    Args:
        line: To the server; nobody else's.
        job_id: Which job.
        chance: Where and how it comes back.
        report: Where to note what is not as promised.
    """

    def __init__(self, line: Line, job_id: str, chance: Random, report: Report) -> None:
        self.line = line
        self._job_id = job_id
        self._chance = chance
        self._report = report
        #: The segments, as far as they have come.
        self.mine: list[Segment] = []
        #: The frame that came last.
        self.last: Frame | None = None
        #: Whether the server has said that there is no such job.
        self.is_gone = False

    @property
    def is_over(self) -> bool:
        """Whether nothing can come any more."""
        return self.is_gone or bool(self.last and self.last.status.is_terminal)

    @abstractmethod
    async def follow(self) -> None:
        """Watch until it is over."""

    def take(self, frame: Frame, offset: int | None = None) -> None:
        """Take a frame in, and check it against the contract and against all before it.

        Args:
            frame: What has come.
            offset: Where its segments must begin; by default, where those that came end.
        """
        self._report.counts["frames"] += 1
        if frame.segments or frame.status.is_terminal:
            self._report.told.set()
        before, self.last = self.last, frame
        offset = len(self.mine) if offset is None else offset
        self.promise(frame.job_id == self._job_id, f"a frame of {frame.job_id}")
        self.promise(frame.offset == offset, f"segments from {frame.offset} on, not {offset}")
        known = self.mine[frame.offset :]
        self.promise(list(frame.segments[: len(known)]) == known, "segments have changed")
        self.mine[frame.offset :] = frame.segments
        ids = [segment.id for segment in self.mine]
        self.promise(ids == list(range(len(ids))), f"the ids are {ids}")
        position = self.mine[-1].end if self.mine else 0
        self.promise(frame.position_seconds == position, f"position {frame.position_seconds}")
        is_full = frame.progress_percentage == 100
        self.promise(is_full == (frame.status is Status.COMPLETED), "100 % means completed")
        if before:
            self._compare(before, frame)

    def _compare(self, before: Frame, frame: Frame) -> None:
        was, now = before.progress_percentage, frame.progress_percentage
        self.promise(was <= now, f"{was} %, then {now} %")
        self.promise(not before.status.is_terminal, f"a frame after {before.status}")
        if not frame.status.is_terminal:
            is_next = before.status in _ORDER[: _ORDER.index(frame.status) + 1]
            self.promise(is_next, f"{before.status}, then {frame.status}")

    def promise(self, holds: object, otherwise: str) -> None:
        """Note a violation, unless ``holds``, with who saw it in which job."""
        self._report.promise(holds, f"{type(self).__name__} of job {self._job_id}: {otherwise}")


class Program(Watcher):
    """Watches with the Python client, which comes back by itself."""

    async def follow(self) -> None:
        """Watch until it is over."""
        try:
            async with Client(self.line.url) as client:
                async for frame in client.watch(self._job_id):
                    self.take(frame)
        except ServerError as error:
            self.is_gone = error.code == "job_not_found"
            self.promise(self.is_gone, f"the client was refused: {error}")


class _Bare(Watcher):
    """Comes back by itself: with its cursor, at times with an old one, or with none."""

    async def follow(self) -> None:
        """Watch until it is over."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_SILENCE_S)
        cursors: list[tuple[str | None, int]] = [(None, 0)]
        async with aiohttp.ClientSession(self.line.url, timeout=timeout) as session:
            while not self.is_over:
                since, offset = self._choose(cursors)
                self._report.counts["connections of bare watchers"] += 1
                try:
                    async for frame in self._receive(session, since):
                        self.take(frame, offset)
                        offset = None
                        cursors.append((frame.cursor, len(self.mine)))
                        self._at_times_cut()
                except aiohttp.ClientResponseError as error:
                    self.is_gone = error.status == 404
                    self.promise(self.is_gone, f"refused: {error.status} {error.message}")
                except (aiohttp.ClientError, OSError, TimeoutError):
                    self._report.counts["connections that broke"] += 1
                await asyncio.sleep(self._chance.uniform(0, 0.5))

    def _choose(self, cursors: list[tuple[str | None, int]]) -> tuple[str | None, int | None]:
        """Return a cursor that was valid once, most often the last, and what it stands for."""
        if self._chance.random() < 0.7:
            return cursors[-1]
        return self._chance.choice([cursors[0], *cursors[-20:]])

    def _at_times_cut(self) -> None:
        if self._chance.random() < 0.03:
            self._report.counts["cuts by watchers themselves"] += self.line.cut()

    @abstractmethod
    def _receive(self, session: aiohttp.ClientSession, since: str | None) -> AsyncIterator[Frame]:
        """Connect; yield frames until the connection ends or the server closes it."""


class Socket(_Bare):
    """Watches a WebSocket."""

    async def _receive(
        self, session: aiohttp.ClientSession, since: str | None
    ) -> AsyncIterator[Frame]:
        query = {"since": since} if since else None
        path = f"/ws/transcription/{self._job_id}"
        timeout = aiohttp.ClientWSTimeout(ws_receive=_SILENCE_S, ws_close=2)
        async with session.ws_connect(path, params=query, timeout=timeout) as socket:
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                yield frames.decode(message.data)
            is_goodbye = message.type is aiohttp.WSMsgType.CLOSE
            if is_goodbye:  # else the line was cut
                code = socket.close_code
                self.promise((code == 1000) == self.is_over, f"close code {code}")


class Events(_Bare):
    """Watches server-sent events, as a browser's EventSource does."""

    async def _receive(
        self, session: aiohttp.ClientSession, since: str | None
    ) -> AsyncIterator[Frame]:
        headers = {"Last-Event-ID": since} if since else None
        path = f"/v1/jobs/{self._job_id}/events"
        async with session.get(path, headers=headers, raise_for_status=True) as response:
            event_id = b""
            async for line in response.content:
                name, _, value = line.rstrip(b"\n").partition(b": ")
                if name == b"id":
                    event_id = value
                elif name == b"data" and line.endswith(b"\n"):
                    frame = frames.decode(value)
                    self.promise(event_id.decode() == frame.cursor, f"event {event_id!r}")
                    yield frame


class Poll(_Bare):
    """Watches with one request after the other."""

    async def _receive(
        self, session: aiohttp.ClientSession, since: str | None
    ) -> AsyncIterator[Frame]:
        query = {"wait": str(_POLL_S)} | ({"since": since} if since else {})
        path = f"/v1/jobs/{self._job_id}"
        async with session.get(path, params=query, raise_for_status=True) as response:
            body = await response.read()
        yield frames.decode(body)
