"""Who watches what. Knows no sockets and no jobs, only views of jobs.

A watcher has no queue. It has a place in the transcript, and when it is ready for more it
gets one frame with all that it missed; so a slow watcher costs nobody anything.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from aiotranscribe.errors import JobNotFound
from aiotranscribe.frame import Frame, View

#: A watcher hears something at least this often; browsers cannot see pings.
HEARTBEAT_S = 15.0


class Topic:
    """The latest view of one job, and those who watch it."""

    def __init__(self, view: View) -> None:
        self.view = view
        #: Grows with every view.
        self.version = 0
        self.subscriptions: set[Subscription] = set()
        self._renewed = 0.0

    def renew(self) -> None:
        """Give the view the present time; those who ask at about the same moment share one."""
        now = time.monotonic()
        if now - self._renewed > HEARTBEAT_S / 2:
            self._renewed = now
            self.view = self.view.renewed()


class Subscription(AsyncIterator[Frame]):
    """One watcher's frames: the state at once, then every change, the terminal frame last."""

    def __init__(self, topic: Topic, offset: int) -> None:
        self._topic = topic
        self._offset = offset
        self._seen = -1
        self._is_closed = False
        self._wake = asyncio.Event()
        topic.subscriptions.add(self)

    @property
    def is_finished(self) -> bool:
        """Whether the terminal frame was delivered, and not just the iteration ended."""
        return self._topic.view.is_last and self._seen == self._topic.version

    async def __anext__(self) -> Frame:
        """Wait for the next change, or for the heartbeat; return the frame for it."""
        if self.is_finished:
            self.close()
        while self._seen == self._topic.version and not self._is_closed:
            self._wake.clear()
            try:
                # Not wait_for, which up to Python 3.11 swallows a cancellation that comes together
                # with the news (cpython issue 86296).
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                self._topic.renew()
                break
        if self._is_closed:
            raise StopAsyncIteration
        frame = self._topic.view.frame(self._offset)
        self._seen = self._topic.version
        self._offset = self._topic.view.count
        return frame

    def encode(self, frame: Frame) -> bytes:
        """Return a frame just received as JSON; watchers of the same frame share the work."""
        return self._topic.view.encode(frame)

    def wake(self) -> None:
        """Let a waiting watcher look again."""
        self._wake.set()

    def close(self) -> None:
        """End the iteration, now or at the next step. May be called more than once."""
        self._is_closed = True
        self._topic.subscriptions.discard(self)
        self._wake.set()


class Hub:
    """All topics by job."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}

    def publish(self, job_id: str, view: View) -> None:
        """Make ``view`` the job's latest, and wake its watchers."""
        topic = self._topics.get(job_id)
        if topic is None:
            topic = self._topics[job_id] = Topic(view)
        topic.view = view
        topic.version += 1
        for subscription in topic.subscriptions:
            subscription.wake()

    def view(self, job_id: str) -> View:
        """Return the latest view of a job, or raise :class:`JobNotFound`."""
        return self._topic(job_id).view

    def subscribe(self, job_id: str, since: str | None = None) -> Subscription:
        """Watch a job from the cursor ``since`` on, or from its beginning.

        Raises:
            JobNotFound: there is no such job.
        """
        topic = self._topic(job_id)
        return Subscription(topic, topic.view.resume(since))

    def drop(self, job_id: str) -> None:
        """Forget a job. Those who watch it still get what was published before."""
        self._topics.pop(job_id, None)

    def close(self) -> None:
        """End every subscription."""
        for topic in self._topics.values():
            for subscription in list(topic.subscriptions):
                subscription.close()

    def _topic(self, job_id: str) -> Topic:
        with contextlib.suppress(KeyError):
            return self._topics[job_id]
        raise JobNotFound(f"there is no job {job_id[:64]!r}")
