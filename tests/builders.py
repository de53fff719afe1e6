"""Small made-up segments, frames and views, for tests that need no engine."""

import msgspec

from aiotranscribe.errors import Problem
from aiotranscribe.frame import Frame, View, make_cursor
from aiotranscribe.job import Run, Status
from aiotranscribe.transcript import FullSegment, Segment

#: The contract of a frame: these keys, in this order. Clients in other languages rely on it.
KEYS = [
    "job_id",
    "status",
    "progress_percentage",
    "current_step",
    "message",
    "eta_seconds",
    "position_seconds",
    "duration_seconds",
    "speed",
    "queue_position",
    "language",
    "error",
    "offset",
    "segments",
    "cursor",
    "time",
    "name",
    "created",
]

#: The present run of the server, and all of a job's.
RUN = "7"
RUNS = (Run(RUN, 0),)


def segment(number: int) -> Segment:
    """Return the segment with this ``id``: two seconds that say their number."""
    return Segment(number, number * 2.0, number * 2.0 + 2.0, f" Number {number}.")


def full_segment(number: int) -> FullSegment:
    """Return the same segment as a worker sends it."""
    start = number * 2.0
    return FullSegment(
        number,
        start,
        start + 2.0,
        f" Number {number}.",
        seek=number * 200,
        tokens=(50_364, number),
        temperature=0.5,
        avg_logprob=-0.25,
        compression_ratio=1.5,
        no_speech_prob=0.125,
    )


def segments(count: int) -> list[Segment]:
    """Return the first ``count`` segments."""
    return [segment(number) for number in range(count)]


def head(count: int, status: Status = Status.RUNNING) -> Frame:
    """Return the frame of someone who has all of a job's ``count`` segments."""
    is_completed = status is Status.COMPLETED
    return Frame(
        job_id="job",
        status=status,
        progress_percentage=100.0 if is_completed else 37.5,
        current_step=status.value if status.is_terminal else "transcribing",
        message="Transcribed 22:30 of 1:00:00",
        eta_seconds=None if is_completed else 41.0,
        position_seconds=count * 2.0,
        duration_seconds=3600.0,
        speed=52.3,
        queue_position=None,
        language="en",
        error=Problem("undecodable", "no sound") if status is Status.FAILED else None,
        offset=count,
        segments=(),
        cursor=make_cursor(RUN, count, is_last=status.is_terminal),
        time="2026-01-01T12:00:00.123Z",
        name="lecture.mp3",
        created=1767268800.0,
    )


def view(count: int, status: Status = Status.RUNNING) -> View:
    """Return the view of a job that has ``count`` segments."""
    return View(head(count, status), segments(count), RUNS)


def frame(offset: int, count: int) -> Frame:
    """Return the frame with segments ``offset`` to ``count``."""
    return msgspec.structs.replace(head(count), offset=offset, segments=segments(count)[offset:])
