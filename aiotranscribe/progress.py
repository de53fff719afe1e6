"""How far a job is, from what has been measured. Pure."""

from dataclasses import dataclass, field

from aiotranscribe.engine.spans import Span
from aiotranscribe.exports import clock
from aiotranscribe.job import Job, Status, Step

# Share of a job's time that goes into decoding and hearing where speech is; measured with
# tiny.en, and less with every larger model.
_PREPARING = 0.1
# An estimate from less than this many seconds of work would be a guess.
_ETA_AFTER_S = 1.0


@dataclass(slots=True)
class Meter:
    """What the steps of one job have measured so far. Times are of one monotonic clock."""

    #: When the first worker began, in seconds.
    began: float | None = None
    #: What earlier runs of the server had done: share of the work, and seconds transcribed.
    share_before: float = 0.0
    transcribed_before: float = 0.0
    #: Seconds to transcribe, of every span found.
    lengths: list[float] = field(default_factory=list)
    #: Seconds transcribed of every span begun.
    reached: dict[int, float] = field(default_factory=dict)

    def found(self, span: Span) -> None:
        """Note a span."""
        self.lengths.append(span.length)

    def at(self, span: Span, seek: int) -> None:
        """Note that ``span`` is transcribed up to frame ``seek`` of 10 ms."""
        self.reached[span.index] = min(seek / 100, span.length)

    def finished(self, span: Span) -> None:
        """Note that ``span`` is done: what the model left out at its end was nothing."""
        self.reached[span.index] = span.length

    @property
    def transcribed(self) -> float:
        """Seconds transcribed, over all spans."""
        return sum(self.reached.values())


@dataclass(frozen=True, slots=True)
class Reading:
    """What a watcher is told of the progress."""

    percentage: float
    eta_seconds: float | None
    speed: float | None


def read(job: Job, meter: Meter, now: float) -> Reading:
    """Return what to tell about ``job``.

    Args:
        job: The job as it stands.
        meter: Its measurements.
        now: The time, on the meter's clock.
    """
    elapsed = 0.0 if meter.began is None else now - meter.began
    share = _share(job, meter)
    is_running = job.status is Status.RUNNING
    eta = None
    # What was done before does not tell how fast it goes now.
    done = share - meter.share_before
    if is_running and done > 0.01 and elapsed >= _ETA_AFTER_S:
        eta = round(elapsed * (1 - share) / done, 1)
    transcribed = meter.transcribed - meter.transcribed_before
    speed = round(transcribed / elapsed, 1) if transcribed > 0 and elapsed else job.speed
    percentage = job.percentage
    if is_running:
        percentage = max(percentage, round(min(99.9, 100 * share), 1))
    return Reading(percentage, eta, speed)


def resume(job: Job, meter: Meter) -> None:
    """Note that all that ``meter`` has so far was measured in earlier runs of the server."""
    meter.share_before, meter.transcribed_before = _share(job, meter), meter.transcribed


def _share(job: Job, meter: Meter) -> float:
    """Share of the work that is done, 0 to 1."""
    if job.is_prepared:
        decoded, expected = 1.0, sum(meter.lengths)
    elif job.duration and job.decoded:
        decoded = min(1.0, job.decoded / job.duration)
        # As much of the rest will be speech as of what is known, or all of it.
        expected = (sum(meter.lengths) or job.decoded) / decoded
    else:
        return 0.0
    transcribed = min(1.0, meter.transcribed / expected) if expected else 1.0
    return _PREPARING * decoded + (1 - _PREPARING) * transcribed


_WAITING = {
    Step.QUEUED: "Waiting for a free worker",
    Step.LOADING_MODEL: "Loading the model",
    Step.DECODING: "Reading the recording",
    Step.DETECTING_SPEECH: "Listening for speech",
    Step.DETECTING_LANGUAGE: "Recognising the language",
    Step.FINISHING: "Finishing",
}


def message(job: Job) -> str:
    """Return how the job stands, in a sentence for people."""
    match job.status:
        case Status.COMPLETED:
            return f"Transcribed {clock(job.duration or 0.0)}"
        case Status.CANCELLED:
            return "Cancelled"
        case Status.FAILED:
            return f"Failed: {job.error.message}" if job.error else "Failed"
    if job.step is Step.TRANSCRIBING:
        whole = f" of {clock(job.duration)}" if job.duration else ""
        return f"Transcribed {clock(job.position)}{whole}"
    return _WAITING[job.step]
