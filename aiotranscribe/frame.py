"""The frame: the one message that every watcher receives, on every transport. Pure."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from aiotranscribe.errors import Problem
from aiotranscribe.job import Job, Run, Status
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
    #: The recording's file name, for people.
    name: str
    #: When the job was accepted, in seconds since the epoch.
    created: float


def now() -> str:
    """Return the current time as a frame has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def head(
    job: Job,
    message: str,
    *,
    eta_seconds: float | None = None,
    queue_position: int | None = None,
) -> Frame:
    """Return the frame of someone who has every segment of ``job``."""
    return Frame(
        job_id=job.id,
        status=job.status,
        progress_percentage=job.percentage,
        current_step=job.current_step,
        message=message,
        eta_seconds=eta_seconds,
        position_seconds=job.position,
        duration_seconds=job.duration,
        speed=job.speed,
        queue_position=queue_position,
        language=job.language,
        error=job.error,
        offset=job.count,
        segments=(),
        cursor=make_cursor(job.runs[-1].id, job.count, is_last=job.status.is_terminal),
        time=now(),
        name=job.name,
        created=job.created,
    )


def make_cursor(run_id: str, count: int, *, is_last: bool = False) -> str:
    """Return the cursor of a watcher who has the first ``count`` segments.

    Args:
        run_id: The job's present run.
        count: How many segments the watcher has.
        is_last: Whether it has seen the job's end too.
    """
    return f"{run_id}-{count}{_END if is_last else ''}"


# The language of those who ask for none.
DEFAULT = "en"
# So many different frames of one view are kept for those who will ask for the same.
_MOST_SHARED = 8
_END = "-end"
_CURSOR = re.compile(rf"([0-9a-f]{{1,16}})-(0|[1-9][0-9]{{0,8}})(?:{_END})?")


def resume(cursor: str | None, runs: Sequence[Run], count: int) -> int | None:
    """Return how many segments the owner of ``cursor`` really has.

    Args:
        cursor: What the watcher gave as ``since``; anything, from anyone.
        runs: The job's runs.
        count: How many segments there are now.

    Returns:
        The count in the cursor, or ``None``, which means everything again, when the cursor is not
        one of this job's, or names segments that a power cut took back: never a guess.
    """
    found = _CURSOR.fullmatch(cursor or "")
    ids = [run.id for run in runs]
    if not found or found[1] not in ids:
        return None
    later = runs[ids.index(found[1]) + 1 :]
    has = int(found[2])
    return has if has <= min([count, *(run.began for run in later)]) else None


class View:
    """A job as it stood when it was published, from which every watcher's frame is cut.

    Args:
        head: The frame of someone who has every segment.
        segments: The job's segments; the list may grow meanwhile, its beginning never changes.
            ``None`` when they are only on the disk.
        runs: The job's runs.
        say: Returns the message in another language; without it, there is only the head's.
    """

    def __init__(
        self,
        head: Frame,
        segments: Sequence[Segment] | None,
        runs: Sequence[Run],
        say: Callable[[str], str] | None = None,
    ) -> None:
        self.segments = segments
        self._runs = runs
        self._say = say
        #: How many segments there were.
        self.count = head.offset
        #: Whether nothing can come after this.
        self.is_last = head.status.is_terminal
        self._head = head
        # By offset and language. Most watchers have equally many segments, or none.
        self._frames: dict[tuple[int, str], Frame] = {}
        self._encoded: dict[tuple[int, str], bytes] = {}

    def frame(self, offset: int, language: str = DEFAULT) -> Frame:
        """Return the frame of a watcher who has the first ``offset`` segments.

        Watchers who have equally many, and speak the same language, get the same object.
        """
        key = offset, language
        if key not in self._frames:
            if len(self._frames) >= _MOST_SHARED:
                self._frames.clear()
                self._encoded.clear()
            message = self._head.message
            if self._say and language != DEFAULT:
                message = self._say(language)
            missing = (self.segments or ())[offset : self.count]
            segments = [segment.brief() for segment in missing] or ()
            self._frames[key] = msgspec.structs.replace(
                self._head, offset=offset, segments=segments, message=message
            )
        return self._frames[key]

    def summary(self, language: str = DEFAULT) -> Frame:
        """Return the frame without any segments."""
        return self.frame(self.count, language)

    def encode(self, frame: Frame) -> bytes:
        """Return a frame of this view as JSON, encoded once for all who share it."""
        for key, kept in self._frames.items():
            if kept is frame:
                if key not in self._encoded:
                    self._encoded[key] = encode(frame)
                return self._encoded[key]
        return encode(frame)

    def is_news_after(self, other: "View") -> bool:
        """Whether a frame of this view says more than that time has passed."""
        return msgspec.structs.replace(self._head, time=other._head.time) != other._head

    def renewed(self, say: Callable[[str], str] | None = None) -> "View":
        """Return the same view with the present time: a sign of life.

        Args:
            say: Another message, for a job that does not go on; nobody knows how long.
        """
        head = msgspec.structs.replace(self._head, time=now())
        if say:
            head = msgspec.structs.replace(head, message=say(DEFAULT), eta_seconds=None)
        return View(head, self.segments, self._runs, say or self._say)

    def holding(self, segments: Sequence[Segment] | None) -> "View":
        """Return the same view with its segments read from the disk, or left there."""
        return View(self._head, segments, self._runs, self._say)

    def resume(self, cursor: str | None) -> int | None:
        """Return how many segments the owner of ``cursor`` has; see :func:`resume`."""
        return resume(cursor, self._runs, self.count)


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Frame).decode
