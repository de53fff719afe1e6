"""When the jobs at work will be done, and what this machine has learnt from them. Pure."""

from collections.abc import Container, Mapping

from aiotranscribe import progress
from aiotranscribe.course import Course
from aiotranscribe.progress import Pace

# How long a forecast is good for, and for how many jobs it may be twice as old.
_GOOD_FOR_S, _MANY = 0.1, 50


class Outlook:
    """What is to be expected of the jobs at work. Times are of one monotonic clock."""

    def __init__(self) -> None:
        #: What this machine knows of its own pace.
        self.paces: dict[str, Pace] = {}
        #: What of that is not written down yet.
        self.learnt: dict[str, Pace] = {}
        #: How much of a model is downloaded; how much was at first, and when that was.
        self._downloads: dict[str, tuple[float, float, float]] = {}
        #: In how many seconds each job is done, as it was forecast at a time, for which jobs.
        self._forecast: tuple[float, dict[str, float], dict[str, bool]] = 0.0, {}, {}

    def learn(self, course: Course) -> None:
        """Take the paces of a job that is completed for those to come."""
        self.learnt |= progress.learn(course.job, course.meter, self.paces)
        self.paces |= self.learnt

    def download(self, model: str, share: float, now: float) -> None:
        """Note how much of a model is downloaded, 0 to 1; with 1 that is over."""
        if share < 1:
            _, first, began = self._downloads.get(model, (0.0, share, now))
            self._downloads[model] = share, first, began
        else:
            self._downloads.pop(model, None)

    def downloaded(self, model: str | None) -> float | None:
        """Return how much of a model is downloaded, if it is being fetched."""
        return self._downloads.get(model or "", (None,))[0]

    def forecast(
        self,
        courses: Mapping[str, Course],
        leads: Mapping[str, float],
        warm: Container[str | None],
        slots: int,
        now: float,
    ) -> Mapping[str, float]:
        """Return in how many seconds each job is done, for those of which that can be told.

        Args:
            courses: The jobs at work.
            leads: How far others come first, as the scheduler counts.
            warm: The models that some worker has.
            slots: How many workers there are.
            now: The time.
        """
        at, seconds, jobs = self._forecast
        known = {it: course.job.duration is not None for it, course in courses.items()}
        if now - at < _GOOD_FOR_S * (1 + len(known) / _MANY) and jobs == known:
            return {job_id: max(0.0, left - (now - at)) for job_id, left in seconds.items()}
        demands = {}
        for job_id, course in courses.items():
            model = course.job.options.model or ""
            share, first, began = self._downloads.get(model, (1.0, 0.0, now))
            demand = progress.demand(
                course.job,
                course.meter,
                self.paces,
                now,
                lead=leads.get(job_id, 0.0),
                is_cold=model not in warm,
                download_s=(now - began) * (1 - share) / max(share - first, 0.01),
            )
            if demand and not course.job.status.is_terminal:
                demands[job_id] = demand
        seconds = progress.forecast(demands, slots)
        self._forecast = now, seconds, known
        return seconds
