"""What came out of a run, compared with what was promised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiotranscribe import Frame, Segment, Status
from aiotranscribe.course import Course
from tests.chaos.report import Report
from tests.chaos.watchers import Watcher


@dataclass
class Accepted:
    """A job that was answered with 202, and what happened to it since."""

    id: str
    #: Of its recording.
    name: str
    watchers: list[Watcher] = field(default_factory=list)
    #: What the customer has asked for: to cancel or to delete it.
    wish: str | None = None
    #: The status in the answer to that.
    answer: Status | None = None

    @property
    def is_over(self) -> bool:
        """Whether every watcher has seen the end."""
        return all(watcher.is_over for watcher in self.watchers)


@dataclass
class Life:
    """One life of the server."""

    began: float
    #: When a worker of it was killed.
    kills: list[float] = field(default_factory=list)


class Verdict:
    """On all that was accepted.

    Args:
        jobs: Every accepted job.
        lives: Every life of the server.
        expected: The segments of an undisturbed run, by the recording's name.
        report: Where to note what is not as promised.
    """

    def __init__(
        self,
        jobs: Sequence[Accepted],
        lives: Sequence[Life],
        expected: Mapping[str, Sequence[Segment]],
        report: Report,
    ) -> None:
        self._jobs = jobs
        self._lives = lives
        self._expected = expected
        self._counts = report.counts
        self._promise = report.promise

    def on_jobs(
        self,
        before: Mapping[str, Frame | None],
        after: Mapping[str, Frame | None],
        stored: Mapping[str, Course],
    ) -> None:
        """Judge what is left of the jobs.

        Args:
            before: What the server said of each in the end, ``None`` when it knew of none.
            after: The same after one more restart.
            stored: What is on the disk.
        """
        for job in self._jobs:
            frame, again, course = before[job.id], after[job.id], stored.get(job.id)
            if job.wish == "delete":
                self._counts["jobs deleted"] += 1
                is_gone = not (frame or again or course)
                self._promise(is_gone, f"job {job.id} is back after its deletion")
            elif frame and again and course:
                self._on_frames(job, frame, again, course)
                self._on_status(job, course)
                self._on_watchers(job, frame)
            else:
                self._promise(False, f"job {job.id} is lost: {frame}, {again}, {course}")
        self._counts["jobs whose answer was lost"] = len(stored.keys() - before.keys())
        for course in stored.values():
            self._on_text(course)

    def on_files(self, data_dir: Path) -> None:
        """Judge what is left on the disk, and what the log says."""
        spool = data_dir / "spool"
        for job in self._jobs:
            is_left = job.wish == "delete" and (spool / job.id).exists()
            self._promise(not is_left, f"job {job.id} is deleted, its files are not")
        for path in [*spool.glob("*/pcm"), *spool.glob("arriving/*")]:
            self._promise(False, f"{path} is left over")
        _, *traces = (data_dir / "log").read_text().split("Traceback (most recent call last)")
        self._promise(not traces, f"{len(traces)} tracebacks in {data_dir / 'log'}")

    def _on_frames(self, job: Accepted, frame: Frame, again: Frame, course: Course) -> None:
        is_same = _essence(frame) == _essence(again)
        self._promise(is_same, f"job {job.id} was {frame}, and after a restart {again}")
        told, stored = frame, course.job
        segments = [segment.brief() for segment in course.draft.segments]
        is_stored = told.status is stored.status and list(told.segments) == segments
        self._promise(is_stored, f"job {job.id}: what is told is not what is stored")

    def _on_status(self, job: Accepted, course: Course) -> None:
        status = course.job.status
        self._counts[f"jobs {status.value}"] += 1
        if job.answer:
            is_kept = status is job.answer
            self._promise(is_kept, f"job {job.id} was answered {job.answer}, is {status}")
        if status is Status.CANCELLED:
            self._promise(job.wish == "cancel", f"job {job.id} was cancelled by nobody")
        if status is Status.FAILED:
            self._promise(self._is_due(course), f"job {job.id} failed: {course.job.error}")

    def _is_due(self, course: Course) -> bool:
        """Whether a job failed as it should: one of its spans has ended two workers."""
        error, ended = course.job.error, course.job.ended or 0.0
        life = [life for life in self._lives if life.began <= ended][-1]
        kills = sum(kill <= ended for kill in life.kills)
        return error is not None and error.code == "worker_died" and kills >= 2

    def _on_watchers(self, job: Accepted, frame: Frame) -> None:
        for watcher in job.watchers:
            watcher.promise(watcher.mine == list(frame.segments), "has not the store's segments")
            status = watcher.last and watcher.last.status
            watcher.promise(status is frame.status, f"saw {status}, but it is {frame.status}")
            watcher.promise(not watcher.is_gone, "was told that there is no such job")

    def _on_text(self, course: Course) -> None:
        """Compare with an undisturbed run: a job that was stopped has the beginning of it."""
        job, segments = course.job, [segment.brief() for segment in course.draft.segments]
        self._promise(job.status.is_terminal, f"job {job.id} has no end: {job.status}")
        self._promise(job.count == len(segments), f"job {job.id} counts {job.count} segments")
        expected = list(self._expected[job.name])
        if job.status is not Status.COMPLETED:
            expected = expected[: len(segments)]
        self._promise(segments == expected, f"job {job.id}: {_difference(segments, expected)}")


def _essence(frame: Frame) -> tuple[object, ...]:
    """What a restart must not change of a job that has ended."""
    return frame.status, frame.progress_percentage, list(frame.segments), frame.error


def _difference(found: Sequence[Segment], expected: Sequence[Segment]) -> str:
    """Say where two texts part."""
    pairs = enumerate(zip(found, expected, strict=False))
    where = next((number for number, (a, b) in pairs if a != b), min(len(found), len(expected)))
    return (
        f"{len(found)} segments, {len(expected)} expected; from {where} on: "
        f"{found[where : where + 2]}, not {expected[where : where + 2]}"
    )
