"""How far a job is, and when it will be done, from what has been measured. Pure.

A percentage is a promise about time: it is the share of the job's whole time that has passed. So
percentage and remaining time come from one estimate: how much is left to do, how fast this machine
does it, and who else wants its workers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import msgspec

from aiotranscribe.engine.spans import Span
from aiotranscribe.job import WEIGHTS, Job, Status


class Pace(msgspec.Struct, frozen=True):
    """How fast something goes: so much was done in so many seconds of one worker."""

    done: float = 0.0
    took_s: float = 0.0

    def __add__(self, other: "Pace") -> "Pace":
        return Pace(self.done + other.done, self.took_s + other.took_s)

    @property
    def speed(self) -> float:
        """How much is done in a second; 0 while that is not known."""
        return self.done / self.took_s if self.took_s else 0.0

    def fade(self, most_s: float) -> "Pace":
        """Return the same pace, but easier to outvote: as if it were known from less time."""
        factor = min(1.0, most_s / self.took_s) if self.took_s else 1.0
        return Pace(self.done * factor, self.took_s * factor)

    def blend(self, other: "Pace") -> "Pace":
        """Return what is between the two: the geometric mean, weighted by time.

        The sum would be nearer to the faster one, however little is known of it.
        """
        if not (self.speed and other.speed):
            return other if other.speed else self
        took_s = self.took_s + other.took_s
        weight = other.took_s / took_s
        speed = self.speed ** (1 - weight) * other.speed**weight
        return Pace(speed * took_s, took_s)

    def time(self, amount: float) -> float:
        """Return how many seconds an amount takes."""
        return amount / self.speed if self.speed else 0.0


#: What this machine knows of the pace of something, from the jobs before.
Paces = Mapping[str, Pace]

DECODING = "decoding"


def transcribing(model: str | None) -> str:
    """Name of the pace of transcribing with a model."""
    return f"transcribing {model}"


def loading(model: str | None) -> str:
    """Name of the pace of loading a model: one, in so many seconds."""
    return f"loading {model}"


_SUFFIXES = frozenset(
    ".aac .avi .flac .m4a .m4b .mkv .mov .mp3 .mp4 .mpeg .oga .ogg .opus .wav .webm .wma".split()
)


def lasting(name: str) -> str | None:
    """Name of the pace of recordings like this one: seconds that they last, in a megabyte.

    ``None`` for those whose name does not say what they are.
    """
    suffix = PurePath(name).suffix.lower()
    return f"lasting {suffix}" if suffix in _SUFFIXES else None


# What to think of a machine of which nothing is known: seconds of recording in a second, by what
# stands in the model's name. It is outvoted within a second.
_GUESSES = {"tiny": 30.0, "base": 15.0, "small": 5.0, "medium": 2.0, "large": 1.0}
_GUESS, _DECODING_GUESS, _GUESS_S = 4.0, 100.0, 0.3


def _guess(name: str) -> Pace:
    what, _, model = name.partition(" ")
    if what == "loading":
        return Pace(1.0, 1.0)
    known = [speed for part, speed in _GUESSES.items() if part in model]
    speed = _DECODING_GUESS if what == DECODING else (known or [_GUESS])[0]
    return Pace(speed * _GUESS_S, _GUESS_S)


# How much the jobs before count beside this one, in seconds of a worker; and beside each other.
_HISTORY_S, _MEMORY_S = 3.0, 60.0
# From less than this, in seconds of a worker, an estimate would be a guess.
_ETA_AFTER_S = 0.5
# Of recordings of which nothing has been heard yet, so much is taken to be speech; as if that had
# been found in so many seconds.
_SPEECH_SHARE, _SPEECH_AFTER_S = 0.9, 10.0
# A stretch that one worker does alone, whatever the others do: the last span.
_ALONE_S = 12.0
# So much is handed out at a time, in seconds of speech: three spans.
_TURN_S = 50.0
# A window at work is never taken to be further than this share of itself.
_MOST_OF_WINDOW = 0.9
# While a recording's length is not known the bar moves a little, ever more slowly.
_UNKNOWN_SHARE, _UNKNOWN_S = 0.05, 20.0
# What is told follows the estimate with this delay, as a share of the job's whole time.
_INERTIA = 0.04
# Of mere progress there is something new after such a share of a job's whole time, and of what has
# passed of it, which at first is all that is known; in seconds at least, and at most.
_NEWS_OF_WHOLE, _NEWS_OF_PASSED, _SOONEST_NEWS_S, _LATEST_NEWS_S = 1 / 30, 1 / 5, 0.03, 0.5
_MEGABYTE = 1e6


@dataclass(slots=True)
class _Piece:
    """What one worker is doing for the job."""

    #: When it was last heard of.
    heard: float
    #: The spans it transcribes; none while it decodes.
    spans: tuple[int, ...]


@dataclass(slots=True)
class Meter:
    """What the steps of one job have measured so far. Times are of one monotonic clock."""

    #: When work began, or went on after a restart, in seconds.
    began: float = 0.0
    #: What had been told before that.
    first_percentage: float = 0.0
    #: Seconds transcribed before that.
    transcribed_before: float = 0.0
    #: Seconds to transcribe, of every span found.
    lengths: dict[int, float] = field(default_factory=dict)
    #: Where the last span found ends, in seconds from the recording's start.
    cut: float = 0.0
    #: Seconds transcribed of every span begun.
    reached: dict[int, float] = field(default_factory=dict)
    #: Seconds decoded since the recording's beginning; less than before after a crash.
    decoded: float = 0.0
    #: Which share of the recording's bytes that is, 0 to 1.
    share: float = 0.0
    #: The pace of this job alone, by what is done.
    paces: dict[str, Pace] = field(default_factory=dict)
    #: What workers are doing for the job, by their slots.
    at_work: dict[int, _Piece] = field(default_factory=dict)
    #: What was told last: seconds to the end, and when that was.
    told: tuple[float, float] | None = None
    #: For how many seconds what was told last is good enough.
    pause_s: float = _SOONEST_NEWS_S
    #: When the transcribing began.
    spoke: float | None = None
    #: When a model began to be loaded, by slot; not counting its download.
    loading: dict[int, float] = field(default_factory=dict)

    def found(self, span: Span) -> None:
        """Note a span."""
        self.lengths[span.index] = span.length
        self.cut = max(self.cut, span.end)

    def at(self, span: Span, seek: int) -> None:
        """Note that ``span`` is transcribed up to frame ``seek`` of 10 ms."""
        self.reached[span.index] = min(seek / 100, span.length)

    def finished(self, span: Span) -> None:
        """Note that ``span`` is done: what the model left out at its end was nothing."""
        self.reached[span.index] = span.length

    def load(self, slot: int, now: float) -> None:
        """Note that a worker begins to load the model, or has only downloaded it so far."""
        self.loading[slot] = now

    def decode(self, slot: int, now: float) -> None:
        """Note that a worker begins to decode."""
        self.at_work[slot] = _Piece(now, ())
        self.decoded = 0.0

    def speak(self, slot: int, now: float, spans: Sequence[Span], model: str | None) -> None:
        """Note that a worker begins to transcribe these spans."""
        self.at_work[slot] = _Piece(now, tuple(span.index for span in spans))
        if self.spoke is None:
            self.spoke = now
        if (since := self.loading.pop(slot, None)) is not None:
            self.paces[loading(model)] = Pace(1.0, now - since)

    def hear(self, slot: int, now: float, name: str, done: float) -> None:
        """Note how much more a worker has done since it was last heard of."""
        if piece := self.at_work.get(slot):
            took = Pace(max(0.0, done), max(1e-6, now - piece.heard))
            self.paces[name] = self.paces.get(name, Pace()) + took
            piece.heard = now

    def end(self, slot: int) -> None:
        """Note that a worker does nothing for the job any more."""
        self.at_work.pop(slot, None)
        self.loading.pop(slot, None)

    @property
    def transcribed(self) -> float:
        """Seconds transcribed, over all spans."""
        return sum(self.reached.values())

    @property
    def unfinished(self) -> float:
        """Seconds of the spans at work that are still to transcribe."""
        return sum(map(self._rest, self.at_work.values()))

    def _rest(self, piece: _Piece) -> float:
        return sum(self.lengths[it] - self.reached.get(it, 0.0) for it in piece.spans)

    def pace(self, name: str, paces: Paces, under_way: Pace = Pace()) -> Pace:  # noqa: B008 - frozen
        """Return the pace of this job as far as it is known, and of those before.

        Args:
            name: Of what.
            paces: What is known of the jobs before.
            under_way: What is probably done since workers were last heard of.
        """
        before = paces.get(name) or _guess(name)
        return before.fade(_HISTORY_S).blend(self.paces.get(name, Pace()) + under_way)

    def estimate(self, name: str, paces: Paces, now: float) -> tuple[Pace, float]:
        """Return the pace of transcribing, and how much is probably done, news to come included.

        Workers are taken to go on at the pace that is known, up to just before the end of their
        spans. One that takes longer is slower than was known.
        """
        pace, under_way = self.pace(name, paces), Pace()
        for piece in self.at_work.values():
            if piece.spans:
                took_s = now - piece.heard
                most = _MOST_OF_WINDOW * self._rest(piece)
                under_way += Pace(min(took_s * pace.speed, most), took_s)
        return self.pace(name, paces, under_way), self.transcribed + under_way.done


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job wants of the workers."""

    #: Seconds of one worker.
    work_s: float
    #: Seconds of that which only one worker can do.
    alone_s: float
    #: Its share beside others.
    weight: float
    #: How far others come first: so many seconds of a worker for each unit of their weight.
    lead_s: float = 0.0
    #: How long others wait for one of its turns, in seconds of a worker.
    turn_s: float = 0.0
    #: Whether it has work left for another turn.
    is_waiting: bool = False


def demand(
    job: Job,
    meter: Meter,
    paces: Paces,
    now: float,
    *,
    lead: float = 0.0,
    is_cold: bool = False,
    download_s: float = 0.0,
) -> Demand | None:
    """Return what is left to do for a job; ``None`` while nobody can say how long it lasts.

    Args:
        job: The job as it stands.
        meter: Its measurements.
        paces: What is known of the jobs before.
        now: The time, on the meter's clock.
        lead: How far others come first, as the scheduler counts: in seconds of speech by weight.
        is_cold: Whether no worker has the job's model.
        download_s: How many seconds its download still takes.
    """
    duration = job.duration or _guess_duration(job, meter, paces)
    if duration is None:
        return None
    decoding = meter.pace(DECODING, paces)
    pace, transcribed = meter.estimate(transcribing(job.options.model), paces, now)
    to_decode = max(0.0, duration - meter.decoded)
    known = sum(meter.lengths.values())
    # What comes after the last cut may be speech, or a silence as long as no span.
    heard = max(meter.cut, job.decoded - _ALONE_S)
    share = (known + _SPEECH_SHARE * _SPEECH_AFTER_S) / (heard + _SPEECH_AFTER_S)
    unheard = 0.0 if job.is_prepared else max(0.0, duration - heard)
    speech = known + unheard * min(1.0, share)
    left = max(0.0, speech - transcribed)
    load_s = download_s
    is_speaking = any(piece.spans for piece in meter.at_work.values())
    if (is_cold or meter.loading) and not is_speaking:
        since = min(meter.loading.values(), default=now)
        once_s = meter.pace(loading(job.options.model), paces).time(1.0)
        load_s += max(0.0, once_s - (now - since))
    work_s = load_s + decoding.time(to_decode) + pace.time(left)
    alone_s = load_s + decoding.time(min(to_decode, _ALONE_S)) + pace.time(min(left, _ALONE_S))
    if job.options.parallel == "off":
        alone_s = work_s
    weight = WEIGHTS[job.options.priority]
    # What is at work has had its turn.
    at_work = min(left, meter.unfinished - (transcribed - meter.transcribed))
    ahead = max(0.0, lead - at_work / weight)
    return Demand(
        work_s,
        alone_s,
        weight,
        lead_s=pace.time(ahead),
        turn_s=pace.time(min(left, _TURN_S)),
        is_waiting=left > at_work,
    )


def _guess_duration(job: Job, meter: Meter, paces: Paces) -> float | None:
    """Return how long a recording that does not say so may last by its size, in seconds."""
    if meter.share:
        return meter.decoded / meter.share
    known = paces.get(lasting(job.name) or "")
    return known.speed * job.size_bytes / _MEGABYTE if known else None


def forecast(demands: Mapping[str, Demand], slots: int) -> dict[str, float]:
    """Return in how many seconds each job will be done, if they share the slots by weight.

    That is what the scheduler does: virtual time is what each job at work has had for its weight.
    A job is at work from its lead to its end, and virtual time goes slower the more there are.
    """
    steps = []
    for job_id, each in demands.items():
        steps += [(each.lead_s, 1, job_id), (each.lead_s + each.work_s / each.weight, -1, job_id)]
    seconds: dict[str, float] = {}
    weight, turn_s, passed, reached = 0.0, 0.0, 0.0, 0.0
    for level, direction, job_id in sorted(steps, key=lambda step: step[0]):
        each = demands[job_id]
        passed += (level - reached) * weight / slots
        reached = level
        weight += direction * each.weight
        turn_s += direction * each.turn_s
        if direction < 0:
            # However many slots are free, the last stretch is done in one; and whoever needs
            # another turn comes, as often as not, when others have just begun theirs.
            by_itself = (each.work_s - each.alone_s) / slots + each.alone_s
            wait_s = turn_s / slots / 2 if each.is_waiting else 0.0
            seconds[job_id] = max(passed, by_itself) + wait_s
    return seconds


@dataclass(frozen=True, slots=True)
class Reading:
    """What a watcher is told of the progress."""

    percentage: float
    eta_seconds: float | None
    speed: float | None


def read(job: Job, meter: Meter, paces: Paces, now: float, left_s: float | None) -> Reading:
    """Return what to tell about ``job``.

    Args:
        job: The job as it stands.
        meter: Its measurements.
        paces: What is known of the jobs before.
        now: The time, on the meter's clock.
        left_s: Seconds to its end, as they are forecast; ``None`` while that cannot be told.
    """
    speed = job.speed
    if meter.spoke is not None and now > meter.spoke and not job.status.is_terminal:
        seconds = meter.transcribed - meter.transcribed_before
        speed = round(seconds / (now - meter.spoke), 1) if seconds > 0 else speed
    if job.status.is_terminal:
        return Reading(job.percentage, None, speed)
    elapsed = now - meter.began
    if left_s is None:
        meter.pause_s = _pause(elapsed, math.inf)
        # The bar moves, lest somebody think that nothing does, but nobody is promised anything.
        is_at_work = job.status is Status.RUNNING
        share = _UNKNOWN_SHARE * (1 - math.exp(-elapsed / _UNKNOWN_S)) if is_at_work else 0.0
        return Reading(_percentage(job, meter, share), None, speed)
    if meter.told:
        before_s, at = meter.told
        before_s = max(0.0, before_s - (now - at))
        slowness = _INERTIA * (elapsed + left_s)
        follow = 1 - math.exp((at - now) / slowness) if slowness > 0 else 1.0
        left_s = before_s + (left_s - before_s) * follow
    meter.told = left_s, now
    total_s = elapsed + left_s
    meter.pause_s = _pause(elapsed, total_s)
    name = transcribing(job.options.model)
    known = meter.paces.get(name, Pace()) + paces.get(name, Pace())
    eta = round(left_s, 1) if known.took_s >= _ETA_AFTER_S else None
    share = elapsed / total_s if total_s else 0.0
    return Reading(_percentage(job, meter, share), eta, speed)


def _pause(elapsed: float, total_s: float) -> float:
    """Return how many seconds a frame of mere progress is good for."""
    enough = min(_NEWS_OF_WHOLE * total_s, _NEWS_OF_PASSED * elapsed)
    return min(_LATEST_NEWS_S, max(_SOONEST_NEWS_S, enough))


def _percentage(job: Job, meter: Meter, share: float) -> float:
    """Return the percentage for a share of this run's time; never less than before, nor 100."""
    told = meter.first_percentage + (100 - meter.first_percentage) * share
    return max(job.percentage, round(min(99.9, told), 1))


def learn(job: Job, meter: Meter, paces: Paces) -> dict[str, Pace]:
    """Return what this machine knows after a job that it did not know before."""
    measured = dict(meter.paces)
    if (name := lasting(job.name)) and job.duration and job.size_bytes:
        measured[name] = Pace(job.duration, job.size_bytes / _MEGABYTE)
    return {
        name: paces.get(name, Pace()).fade(_MEMORY_S) + pace
        for name, pace in measured.items()
        if pace.done
    }


def resume(job: Job, meter: Meter, now: float) -> None:
    """Note that the job comes now, or comes back with what it had."""
    meter.began, meter.first_percentage = now, job.percentage
    meter.transcribed_before = meter.transcribed
