"""How tests wait: for a condition or the next frame, with a deadline, never for time to pass."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, Callable, Iterable

import psutil

from aiotranscribe import Frame, Segment, Status

#: More than anything here takes, even on a machine that is busy with something else.
LONG_S = 60.0

_ORDER = [Status.QUEUED, Status.RUNNING]


async def until(condition: Callable[[], object], timeout_s: float = LONG_S) -> None:
    """Wait until ``condition`` holds, while the loop goes on."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what happens in other processes sets no event
            await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], object], timeout_s: float = LONG_S) -> None:
    """Wait until ``condition`` holds, where there is no loop."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "this takes too long"
        time.sleep(0.01)


async def until_frame(
    frames: AsyncIterable[Frame], condition: Callable[[Frame], object], timeout_s: float = LONG_S
) -> Frame:
    """Return the first frame of which ``condition`` holds."""
    async with asyncio.timeout(timeout_s):
        async for frame in frames:
            if condition(frame):
                return frame
    raise AssertionError("the frames ended without it")


async def to_end(
    frames: AsyncIterable[Frame], before: Iterable[Segment] = (), timeout_s: float = LONG_S
) -> list[Frame]:
    """Return all frames to the last, checked; ``before`` is what the watcher had."""
    async with asyncio.timeout(timeout_s):
        received = [frame async for frame in frames]
    check(received, before)
    return received


def check(frames: Iterable[Frame], segments: Iterable[Segment] = ()) -> None:
    """Check what DESIGN.md promises of the frames of a watcher who saw the end.

    Args:
        frames: All that it received.
        segments: What it had before.
    """
    *before, last = frames
    assert last.status.is_terminal
    assert last.current_step == last.status
    assert (last.error is not None) == (last.status is Status.FAILED)
    assert last.queue_position is None
    assert not any(frame.status.is_terminal for frame in before)
    statuses = [_ORDER.index(frame.status) for frame in before]
    assert statuses == sorted(statuses)
    percentages = [frame.progress_percentage for frame in [*before, last]]
    assert percentages == sorted(percentages)
    assert all(0 <= percentage < 100 for percentage in percentages[:-1])
    assert (percentages[-1] == 100) == (last.status is Status.COMPLETED)
    assert all(frame.message for frame in [*before, last])
    merge([*before, last], segments)


def merge(frames: Iterable[Frame], before: Iterable[Segment] = ()) -> list[Segment]:
    """Return what a watcher has in the end, checking what it has on the way.

    Args:
        frames: What it receives.
        before: What it had.
    """
    mine = list(before)
    for frame in frames:
        assert frame.offset <= len(mine), "a gap"
        mine[frame.offset :] = frame.segments
        assert [segment.id for segment in mine] == list(range(len(mine)))
        assert frame.position_seconds == (mine[-1].end if mine else 0)
    starts = [segment.start for segment in mine]
    assert starts == sorted(starts)
    assert all(segment.start <= segment.end for segment in mine)
    return mine


def text_of(frames: Iterable[Frame]) -> str:
    """Return the text that a watcher has in the end."""
    return "".join(segment.text for segment in merge(frames)).strip()


def is_alive(pid: int) -> bool:
    """Whether a process runs; not one that has ended and that nobody has buried."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def workers(pid: int | None = None) -> set[int]:
    """Return the worker processes under a process, by default this one."""
    found = set()
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("spawn_main" in argument for argument in child.cmdline()):
                found.add(child.pid)
    return found
