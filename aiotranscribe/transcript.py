"""What was said, and when. Pure data, shared by workers, server and clients."""

from collections.abc import Sequence
from typing import Literal

import msgspec


class Word(msgspec.Struct, frozen=True):
    """One word with its own times; only with the option ``word_timestamps``."""

    #: Seconds from the recording's start.
    start: float
    #: Seconds from the recording's start.
    end: float
    #: As faster-whisper gives it: with its leading space and punctuation.
    word: str
    #: The model's own confidence, 0 to 1.
    probability: float


class Segment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A phrase, as faster-whisper cuts it. Never changes once it has been published."""

    #: Position in the transcript, from 0, without gaps.
    id: int
    #: Seconds from the recording's start.
    start: float
    #: Seconds from the recording's start; never before ``start``.
    end: float
    #: As faster-whisper gives it, leading space included: join with ``""`` to get the text.
    text: str
    #: Absent unless the job asked for ``word_timestamps``.
    words: tuple[Word, ...] | None = None

    def brief(self) -> "Segment":
        """Return what a watcher gets of it."""
        return self


class FullSegment(Segment, frozen=True, omit_defaults=False):
    """A segment with what the model says about it: from the worker, and to the disk.

    The names and meanings are Whisper's. Transcripts of older versions have the defaults.
    """

    #: Where the window begins that it was heard in, in frames of 10 ms.
    seek: int = 0
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0

    def brief(self) -> Segment:
        """Return what a watcher gets of it."""
        return Segment(self.id, self.start, self.end, self.text, self.words)


class Transcript(msgspec.Struct, frozen=True):
    """The segments in order, with what was learnt about the recording."""

    #: All of the text, one space between sentences as the language has it.
    text: str
    #: Code of the spoken language; ``None`` when nothing was said.
    language: str | None
    #: Length of the recording in seconds; ``None`` while unknown.
    duration: float | None
    #: Those of a transcriber are of :class:`FullSegment`.
    segments: Sequence[Segment]
    #: ``translate`` when the text is English, whatever was spoken.
    task: Literal["transcribe", "translate"] = "transcribe"


def join(segments: Sequence[Segment]) -> str:
    """Return the text of ``segments`` as one line."""
    return "".join(segment.text for segment in segments).strip()


class Draft:
    """Segments that come from several spans at once, released in time order.

    A watcher reads ``segments``, which only ever grows at its end: a segment of a later span
    waits here until every span before it is done.
    """

    def __init__(self) -> None:
        #: The released segments. Append-only; do not change it.
        self.segments: list[Segment] = []
        self._current = 0
        self._waiting: dict[int, list[Segment]] = {}
        self._done: set[int] = set()

    def add(self, span: int, segment: Segment) -> None:
        """Take the next segment of a span; its ``id`` is given here."""
        if span == self._current:
            self._release(segment)
        else:
            self._waiting.setdefault(span, []).append(segment)

    def finish(self, span: int) -> None:
        """Note that a span has no more segments, and release what waited for it."""
        self._done.add(span)
        while self._current in self._done:
            self._done.remove(self._current)
            self._current += 1
            for segment in self._waiting.pop(self._current, ()):
                self._release(segment)

    def _release(self, segment: Segment) -> None:
        # The model's times wander by hundredths of a second; time order is our promise.
        start = max(segment.start, self.segments[-1].start if self.segments else 0.0)
        self.segments.append(
            msgspec.structs.replace(
                segment, id=len(self.segments), start=start, end=max(segment.end, start)
            )
        )
