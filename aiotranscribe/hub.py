"""Who watches what. Knows no sockets and no jobs, only views of jobs.

A watcher has no queue. It has a place in the transcript, and when it is ready for more it
gets one frame with all that it missed; so a slow watcher costs nobody anything.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from itertools import chain
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from aiotranscribe.errors import JobNotFound
from aiotranscribe.frame import DEFAULT, Frame, View
from aiotranscribe.transcript import Segment

#: A watcher hears something at least this often; browsers cannot see pings.
HEARTBEAT_S = 15.0
# How many finished transcripts stay in memory, those that were asked for last.
_MOST_KEPT = 16

#: Reads the segments of a finished job from the disk.
Load = Callable[[str], Awaitable[Sequence[Segment]]]


class Peer(Protocol):
    """Somebody who can be pushed to."""

    def resume(self) -> None:
        """Iterate over the subscription again. Called in the midst of publishing."""


#: Sends a frame as JSON to many peers at once; returns those to whom that is not possible now.
Push = Callable[[Iterable[Any], bytes], Sequence[Any]]


class _Watcher:
    """Somebody who waits for news; use it with ``with``, or close it in the end."""

    __slots__ = ("__weakref__", "_is_closed", "_news", "_peers")

    def __init__(self, peers: "set[_Watcher]") -> None:
        self._is_closed = False
        # A future, made when there is something to wait for: thousands of events fill a memory.
        self._news: asyncio.Future[None] | None = None
        self._peers = peers
        peers.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def wake(self, job_id: str) -> None:
        """Look again: there is news of a job."""
        if self._news and not self._news.done():
            self._news.set_result(None)

    def close(self) -> None:
        """End the iteration, now or at the next step. May be called more than once."""
        self._is_closed = True
        self._peers.discard(self)
        _Watcher.wake(self, "")

    async def _wait(self, has_news: Callable[[], object]) -> bool:
        """Wait for news; return whether there are any, or only a heartbeat's time has passed."""
        # Not wait_for, which up to Python 3.11 swallows a cancellation that comes together with
        # the news (cpython issue 86296).
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                while not (has_news() or self._is_closed):
                    self._news = asyncio.get_running_loop().create_future()
                    await self._news
        if self._is_closed:
            raise StopAsyncIteration
        return bool(has_news())


W = TypeVar("W", bound=_Watcher)


class Topic:
    """The latest view of one job, and those who watch it."""

    def __init__(
        self, job_id: str, view: View, load: Load, keep: "Callable[[Topic], None]"
    ) -> None:
        self.job_id = job_id
        self._load = load
        self._keep = keep
        self._loading = asyncio.Lock()
        self.view = view
        #: Grows with every view.
        self.version = 1
        #: Those who are woken, because something is missing or they fetch it themselves.
        self.watchers: set[_Watcher] = set()
        #: Those who miss nothing and are pushed to, by their language and how; and by their peers.
        self.live: dict[tuple[str, Push], dict[Peer, Subscription]] = {}
        self._renewed = 0.0
        # When those who are pushed to heard something, on the monotonic clock.
        self._told_at = 0.0
        self._beat: asyncio.TimerHandle | None = None

    def count(self) -> int:
        """Return how many watch the job."""
        return len(self.everyone())

    def everyone(self) -> "list[_Watcher]":
        """Return all who watch."""
        return [*self.watchers, *chain.from_iterable(live.values() for live in self.live.values())]

    def publish(self, view: View) -> None:
        """Make ``view`` the latest: push it to those who miss nothing else, wake the others."""
        before, self.view = self.view, view
        self.version += 1
        for watcher in tuple(self.watchers):
            watcher.wake(self.job_id)
        if view.is_last:
            for live in self.live.values():
                for subscription in list(live.values()):
                    subscription.fall_behind(before.count)
        else:
            self._tell(before.count)

    def watch_silence(self) -> None:
        """From now on, tell those who are pushed to that the server lives, if nothing else does."""
        if self._beat is None:
            self._told_at = time.monotonic()
            self._beat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._give_sign)

    def _give_sign(self) -> None:
        """Tell those who are pushed to that the server lives, all at once, after a silence."""
        self._beat = None
        if any(self.live.values()):
            wait_s = self._told_at + HEARTBEAT_S - time.monotonic()
            if wait_s <= 0:
                self.renew()
                self._tell(self.view.count)
                wait_s = HEARTBEAT_S
            self._beat = asyncio.get_running_loop().call_later(wait_s, self._give_sign)

    def _tell(self, offset: int) -> None:
        """Push the view to those who miss nothing else; they have ``offset`` segments."""
        self._told_at = time.monotonic()
        for (language, push), live in self.live.items():
            if live:
                for peer in push(live, self.view.encode(self.view.frame(offset, language))):
                    live[peer].fall_behind(offset)

    def renew(self) -> None:
        """Give the view the present time; those who ask at about the same moment share one."""
        now = time.monotonic()
        if now - self._renewed > HEARTBEAT_S / 2:
            self._renewed = now
            self.view = self.view.renewed()

    async def frame(self, offset: int, language: str) -> Frame:
        """Return the frame of a watcher who has the first ``offset`` segments."""
        if offset < self.view.count:
            await self._read()
        frame = self.view.frame(offset, language)
        self._keep(self)
        return frame

    async def text(self) -> tuple[View, Sequence[Segment]]:
        """Return the view, and its segments with all that is known of them."""
        await self._read()
        self._keep(self)
        return self.view, (self.view.segments or ())[: self.view.count]

    async def _read(self) -> None:
        """Read the segments from the disk, unless they are here."""
        async with self._loading:
            if self.view.segments is None:
                segments = await self._load(self.job_id)
                if len(segments) < self.view.count:
                    raise JobNotFound(f"the job {self.job_id} has just been deleted")
                self.view = self.view.holding(segments)

    def drop_text(self) -> None:
        """Leave the text of a finished job to the disk."""
        self.view = self.view.holding(None)


class Subscription(_Watcher, AsyncIterator[Frame]):
    """One watcher's frames: the state at once, then every change, the terminal frame last."""

    __slots__ = ("_language", "_offset", "_peer", "_push", "_seen", "_topic", "is_live")

    def __init__(self, topic: Topic, offset: int, language: str) -> None:
        super().__init__(topic.watchers)
        self._topic = topic
        self._offset = offset
        self._language = language
        self._seen = -1
        self._peer: Peer | None = None
        self._push: Push | None = None
        #: Whether nothing is missing, and what comes is pushed.
        self.is_live = False

    def push_to(self, peer: Peer, push: Push) -> None:
        """Have frames pushed at the moment they are there, while nothing else is missing.

        Then the iteration ends where it would wait for news. There is something to iterate again
        when ``peer.resume`` is called: what could not be pushed, with all that is missing by
        then; the terminal frame; or that the subscription has been closed.

        Args:
            peer: To whom.
            push: How; the same for all who share the work.
        """
        self._peer, self._push = peer, push

    def _join(self, peer: Peer, push: Push) -> None:
        """Be pushed to from now on, instead of being woken."""
        self._topic.live.setdefault((self._language, push), {})[peer] = self
        self._topic.watch_silence()
        self._peers.discard(self)
        self.is_live = True

    def fall_behind(self, offset: int) -> None:
        """Go on with the iteration, from the first segment that is missing."""
        assert self._peer
        assert self._push
        del self._topic.live[self._language, self._push][self._peer]
        self._peers.add(self)
        self.is_live = False
        self._seen, self._offset = -1, offset
        self._peer.resume()

    def close(self) -> None:
        """End the iteration, now or at the next step. May be called more than once."""
        if self.is_live:
            self.fall_behind(self._offset)
        super().close()

    @property
    def is_finished(self) -> bool:
        """Whether the terminal frame was delivered, and not just the iteration ended."""
        return self._topic.view.is_last and self._seen == self._topic.version

    def summary(self) -> Frame:
        """Return the job as it stands, without its segments."""
        return self._topic.view.summary(self._language)

    async def changed(self, version: int) -> None:
        """Wait until the topic is of a later version."""
        while not await self._wait(lambda: self._topic.version > version):
            pass

    async def __anext__(self) -> Frame:
        """Wait for the next change, or for the heartbeat; return the frame for it."""
        topic = self._topic
        if self.is_finished:
            self.close()
        if self._peer and self._push and self._seen == topic.version and not self._is_closed:
            self._join(self._peer, self._push)
            raise StopAsyncIteration
        if not await self._wait(lambda: self._seen != topic.version):
            topic.renew()
        try:
            frame = await self._topic.frame(self._offset, self._language)
        except JobNotFound:
            self.close()
            raise StopAsyncIteration from None
        self._seen = self._topic.version
        self._offset = self._topic.view.count
        return frame

    def encode(self, frame: Frame) -> bytes:
        """Return a frame just received as JSON; watchers of the same frame share the work."""
        return self._topic.view.encode(frame)


class Board(_Watcher, AsyncIterator[tuple[str, View | None]]):
    """Every job's view: all of them at once, then every change.

    A job comes with ``None`` when it has been deleted. An empty id, once every job has come, and
    then as a sign of life.
    """

    def __init__(self, topics: dict[str, Topic], boards: set[_Watcher]) -> None:
        super().__init__(boards)
        self._topics = topics
        # A dict keeps the order; a job that changes twice before it is read comes once.
        self._changed = dict.fromkeys([*topics, ""])

    def wake(self, job_id: str) -> None:
        """Look again, at this job."""
        self._changed[job_id] = None
        super().wake(job_id)

    async def __anext__(self) -> tuple[str, View | None]:
        """Wait for the next change of any job."""
        if not await self._wait(lambda: self._changed):
            return "", None
        job_id = next(iter(self._changed))
        del self._changed[job_id]
        topic = self._topics.get(job_id)
        return job_id, topic.view if topic else None


class Hub:
    """All topics by job.

    Args:
        load: Reads the segments of a finished job.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._topics: dict[str, Topic] = {}
        self._boards: set[_Watcher] = set()
        #: The finished jobs whose text is in memory, the one asked for last at the end.
        self._kept: dict[str, Topic] = {}
        self._is_closed = False

    def is_news(self, job_id: str, view: View) -> bool:
        """Whether ``view`` says more than the latest one, but for the time."""
        topic = self._topics.get(job_id)
        return topic is None or view.is_news_after(topic.view)

    def publish(self, job_id: str, view: View) -> None:
        """Make ``view`` the job's latest, and wake its watchers."""
        topic = self._topics.get(job_id)
        if topic is None:
            topic = self._topics[job_id] = Topic(job_id, view, self._load, self._keep)
        else:
            topic.publish(view)
        for board in tuple(self._boards):
            board.wake(job_id)
        self._keep(topic)

    def count(self) -> int:
        """Return how many watch something."""
        return len(self._boards) + sum(topic.count() for topic in self._topics.values())

    def view(self, job_id: str) -> View:
        """Return the latest view of a job, or raise :class:`JobNotFound`."""
        return self._topic(job_id).view

    async def frame(
        self,
        job_id: str,
        since: str | None = None,
        *,
        wait_s: float = 0.0,
        language: str = DEFAULT,
    ) -> Frame:
        """Return the frame of somebody who has what the cursor ``since`` says.

        Args:
            job_id: Which job.
            since: The cursor; ``None`` for all of the text.
            wait_s: If nothing is missing, wait so long for the next change.
            language: Of the message.

        Raises:
            JobNotFound: there is no such job.
        """
        topic = self._topic(job_id)
        if wait_s and topic.view.resume(since) == topic.view.count and not topic.view.is_last:
            watcher = self._admit(Subscription(topic, topic.view.count, language))
            with watcher, contextlib.suppress(TimeoutError, StopAsyncIteration):
                async with asyncio.timeout(wait_s):
                    await watcher.changed(topic.version)
            topic = self._topic(job_id)
        return await topic.frame(topic.view.resume(since) or 0, language)

    async def text(self, job_id: str) -> tuple[View, Sequence[Segment]]:
        """Return a job's view, and its segments with all that is known of them.

        Raises:
            JobNotFound: there is no such job.
        """
        return await self._topic(job_id).text()

    def subscribe(
        self, job_id: str, since: str | None = None, language: str = DEFAULT
    ) -> Subscription:
        """Watch a job from the cursor ``since`` on, or from its beginning.

        Raises:
            JobNotFound: there is no such job.
        """
        topic = self._topic(job_id)
        return self._admit(Subscription(topic, topic.view.resume(since) or 0, language))

    def board(self) -> Board:
        """Watch all jobs."""
        return self._admit(Board(self._topics, self._boards))

    def drop(self, job_id: str) -> None:
        """Forget a job. Those who watch it still get what was published before."""
        self._topics.pop(job_id, None)
        self._kept.pop(job_id, None)
        for board in self._boards:
            board.wake(job_id)

    def close(self) -> None:
        """End every subscription, and those to come at once."""
        self._is_closed = True
        for topic in self._topics.values():
            for watcher in topic.everyone():
                watcher.close()
        for board in list(self._boards):
            board.close()

    def _admit(self, watcher: W) -> W:
        if self._is_closed:
            watcher.close()
        return watcher

    def _keep(self, topic: Topic) -> None:
        """Keep the text of a finished job that was asked for, and drop that of long ago."""
        if not topic.view.is_last or topic.view.segments is None:
            return
        if self._topics.get(topic.job_id) is not topic:  # it has been deleted meanwhile
            return
        self._kept.pop(topic.job_id, None)
        self._kept[topic.job_id] = topic
        while len(self._kept) > _MOST_KEPT:
            self._kept.pop(next(iter(self._kept))).drop_text()

    def _topic(self, job_id: str) -> Topic:
        with contextlib.suppress(KeyError):
            return self._topics[job_id]
        raise JobNotFound(f"there is no job {job_id[:64]!r}")
