"""The frame: the one message that every watcher receives, on every transport. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from aiotranscribe.errors import Problem
from aiotranscribe.job import Status
from aiotranscribe.transcript import Segment


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it stands, plus the segments that this watcher does not have yet.

    A watcher handles every frame alike: ``mine[frame.offset:] = frame.segments``.
    """

    job_id: str
    status: Status
    #: 0 to 100; never goes down, and is 100 only when the job is completed.
    progress_percentage: float
    #: The step at work, or the terminal status.
    current_step: str
    #: A sentence for people.
    message: str
    #: Seconds until the end; ``None`` until that can be told.
    eta_seconds: float | None
    #: How far the text reaches, in seconds from the recording's start.
    position_seconds: float
    #: Length of the recording; ``None`` while unknown.
    duration_seconds: float | None
    #: Seconds of recording transcribed in a second; ``None`` until that can be told.
    speed: float | None
    #: How many jobs come before this one, from 0; ``None`` when it does not wait.
    queue_position: int | None
    language: str | None
    #: Why a failed job failed.
    error: Problem | None
    #: ``id`` of the first segment in ``segments``, or of the next one to come.
    offset: int
    segments: Sequence[Segment]
    #: Give it back as ``since`` to receive only what is missing.
    cursor: str
    #: When the frame was made: UTC, RFC 3339.
    time: str


def now() -> str:
    """Return the current time as a frame has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make_cursor(run: int, count: int) -> str:
    """Return the cursor of a watcher who has the first ``count`` segments.

    Args:
        run: Which run of the server issues it.
        count: How many segments the watcher has.
    """
    return f"{run}-{count}"


def resume(cursor: str | None, run: int, count: int) -> int:
    """Return how many segments the owner of ``cursor`` really has.

    Args:
        cursor: What the watcher gave as ``since``; anything, from anyone.
        run: The present run of the server.
        count: How many segments there are now.

    Returns:
        The count in the cursor, or 0, which is everything again, when the cursor is not one
        of ours: never a guess.
    """
    left, dash, right = (cursor or "").partition("-")
    if not (dash and left.isdecimal() and right.isdecimal() and len(left + right) < 20):
        return 0
    has = int(right)
    return has if has <= count and cursor == make_cursor(run, has) else 0


class View:
    """A job as it stood when it was published, from which every watcher's frame is cut.

    Args:
        head: The frame of someone who has every segment.
        segments: The job's segments; the list may grow meanwhile, its beginning never changes.
        run: The present run of the server.
    """

    def __init__(self, head: Frame, segments: Sequence[Segment], run: int) -> None:
        self._segments = segments
        self._run = run
        #: How many segments there were.
        self.count = head.offset
        self._head = head
        self._last = head
        self._encoded: tuple[Frame, bytes] | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing can come after this."""
        return self._head.status.is_terminal

    def frame(self, offset: int) -> Frame:
        """Return the frame of a watcher who has the first ``offset`` segments.

        Watchers who have equally many get the same object.
        """
        if self._last.offset != offset:
            self._last = msgspec.structs.replace(
                self._head, offset=offset, segments=self._segments[offset : self.count]
            )
        return self._last

    def encode(self, frame: Frame) -> bytes:
        """Return a frame of this view as JSON, encoded once for all who share it."""
        if self._encoded is None or self._encoded[0] is not frame:
            self._encoded = frame, encode(frame)
        return self._encoded[1]

    def renewed(self) -> "View":
        """Return the same view with the present time: a sign of life."""
        return View(msgspec.structs.replace(self._head, time=now()), self._segments, self._run)

    def resume(self, cursor: str | None) -> int:
        """Return how many segments the owner of ``cursor`` has; see :func:`resume`."""
        return resume(cursor, self._run, self.count)


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Frame).decode
