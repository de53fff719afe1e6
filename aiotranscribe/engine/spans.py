"""Where to cut a recording, so that its spans can be transcribed side by side. Pure.

The recording arrives as frames of 32 ms, each with the probability that it holds speech and
its loudness. Spans leave as soon as they are certain, so that transcription starts while the
rest is still being decoded.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from aiotranscribe.job import EVERYTHING

SAMPLE_RATE = 16_000
#: Samples in a frame; Silero VAD's own step.
FRAME_SAMPLES = 512
FRAMES_PER_SECOND = SAMPLE_RATE / FRAME_SAMPLES

# faster-whisper's VadOptions: speech begins above the first, ends below the second.
_BEGINS, _ENDS = 0.5, 0.35
# A gap this long is left out when only speech is wanted, but for the padding around speech.
_GAP_FRAMES = round(2.0 * FRAMES_PER_SECOND)
_PAD_FRAMES = round(0.4 * FRAMES_PER_SECOND)
# A gap this long ends a span of any length: nothing waits for the end of a silence.
_PAUSE_FRAMES = round(30.0 * FRAMES_PER_SECOND)
# Loudness is compared over this many frames, lest a cut fall into a click's shadow.
_QUIET_FRAMES = 9

Samples = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class Span(msgspec.Struct, frozen=True):
    """A stretch of a recording, between two cuts."""

    #: Position among the recording's spans, from 0.
    index: int
    #: The stretches to transcribe, ``(first sample, end)`` in samples of 16 kHz, in order.
    #: With ``vad_filter=False`` there is one, and it is the whole span. None crosses a clip's edge.
    stretches: tuple[tuple[int, int], ...]
    #: How much of it is transcribed already, in frames of 10 ms, not counting gaps.
    seek: int = 0

    @property
    def start(self) -> float:
        """Seconds from the recording's start."""
        return self.stretches[0][0] / SAMPLE_RATE

    @property
    def end(self) -> float:
        """Seconds from the recording's start."""
        return self.stretches[-1][1] / SAMPLE_RATE

    @property
    def length(self) -> float:
        """Seconds to transcribe, without what is left out."""
        return sum(end - start for start, end in self.stretches) / SAMPLE_RATE

    def time(self, seconds: float, *, is_end: bool = False) -> float:
        """Return where in the recording ``seconds`` of the span's sound are, in seconds.

        Args:
            seconds: From the span's start, not counting what is left out.
            is_end: Whether something ends there: then a gap that follows is not crossed.
        """
        sample = round(seconds * SAMPLE_RATE)
        for start, end in self.stretches:
            if sample < end - start or (is_end and sample == end - start):
                return round((start + max(0, sample)) / SAMPLE_RATE, 3)
            sample -= end - start
        return round(self.end, 3)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a span may be, in seconds to transcribe."""

    #: Cut at the longest silence after this...
    shortest: float
    #: ...and before this; never later.
    longest: float


#: The first span is short, so that the first words come soon. Then, measured: shorter spans cost
#: words, longer ones more time (and a window of the model ends at 30 s).
LADDER = (Bounds(4, 12), Bounds(14, 22))
#: A recording as one span, as the option ``parallel=off`` wants it.
WHOLE = (Bounds(float("inf"), float("inf")),)


class Cutter:
    """Frames in, spans out.

    Args:
        speech_only: Leave out gaps of two seconds and more (the option ``vad_filter``).
        ladder: Bounds of the first, second, ... span; the last entry holds for all others.
        clips: Leave out all that is not in these, ``(start, end)`` in seconds, in order, without
            overlap; their edges are moved to the nearest frame's, and every edge is a cut.
    """

    def __init__(
        self,
        *,
        speech_only: bool,
        ladder: Sequence[Bounds] = LADDER,
        clips: Sequence[tuple[float, float]] = EVERYTHING,
    ) -> None:
        self._speech_only = speech_only
        self._ladder = ladder
        # The clips that are not over, as frame numbers.
        self._clips = deque(
            (round(start * FRAMES_PER_SECOND), round(end * FRAMES_PER_SECOND))
            for start, end in clips
        )
        self._index = 0
        self._in_speech = False
        # How many frames have come.
        self._seen = 0
        # Frame number of the first buffered frame, and the frames since then, all of one clip.
        self._base = self._clips[0][0]
        self._speech: Mask = np.zeros(0, bool)
        self._levels: Floats = np.zeros(0, np.float32)

    def feed(self, probabilities: Floats, levels: Floats) -> Iterator[Span]:
        """Take the next frames; yield the spans that are now certain.

        Args:
            probabilities: Of speech, float32, shape (n,), in [0, 1].
            levels: Loudness in any unit that grows with it, float32, shape (n,).
        """
        speech = self._hysteresis(probabilities)
        before, self._seen = self._seen, self._seen + len(speech)
        while self._clips:
            first, end = self._clips[0]
            part = slice(max(0, first - before), max(0, end - before))
            self._speech = np.concatenate([self._speech, speech[part]])
            self._levels = np.concatenate([self._levels, levels[part]])
            yield from self._spans(is_end=False)
            if end >= self._seen:  # or it may be the recording's end, which `finish` knows better
                return
            yield from self._spans(is_end=True)
            self._clips.popleft()
            if self._clips:
                self._base = self._clips[0][0]

    def finish(self, samples: int) -> Iterator[Span]:
        """Yield what is left, when the recording has ended after ``samples`` samples."""
        for span in self._spans(is_end=True):
            start, end = span.stretches[-1]
            last = (start, min(end, samples))
            yield msgspec.structs.replace(span, stretches=(*span.stretches[:-1], last))

    def _spans(self, *, is_end: bool) -> Iterator[Span]:
        while span := self._next(is_end=is_end):
            yield span

    def _hysteresis(self, probabilities: Floats) -> Mask:
        """Decide frame by frame; between the two thresholds the last decision holds."""
        decided = np.where(probabilities >= _BEGINS, 1, np.where(probabilities < _ENDS, 0, -1))
        decided = np.concatenate([[int(self._in_speech)], decided])
        last = np.maximum.accumulate(np.where(decided >= 0, np.arange(len(decided)), 0))
        speech: Mask = decided[last][1:] == 1
        if len(speech):
            self._in_speech = bool(speech[-1])
        return speech

    def _next(self, *, is_end: bool) -> Span | None:
        bounds = self._ladder[min(self._index, len(self._ladder) - 1)]
        longest = bounds.longest * FRAMES_PER_SECOND
        kept = self._kept(is_end=is_end)
        count = np.cumsum(kept, dtype=np.int64)
        if not len(count) or not count[-1]:
            # Nothing but silence so far: forget it, but for what may be padding.
            self._drop(len(kept) if is_end else max(0, len(kept) - _PAD_FRAMES))
            return None
        if (pause := self._pause(len(kept))) and count[pause - 1] <= longest:
            cut = pause
        elif count[-1] > longest:
            limit = int(np.searchsorted(count, int(longest) + 1))
            cut = self._cut(count, round(bounds.shortest * FRAMES_PER_SECOND), limit)
        elif is_end:
            cut = len(kept)
        else:
            return None
        stretches = tuple(
            ((self._base + start) * FRAME_SAMPLES, (self._base + end) * FRAME_SAMPLES)
            for start, end in _runs(kept[:cut])
        )
        self._drop(cut)
        self._index += 1
        return Span(self._index - 1, stretches)

    def _kept(self, *, is_end: bool) -> Mask:
        """Which of the buffered frames to transcribe, up to where that is certain."""
        speech = self._speech
        if not self._speech_only:
            return np.ones(len(speech), bool)
        kept = speech.copy()
        for start, end in _runs(~speech):
            is_open = end == len(speech)
            if end - start < _GAP_FRAMES and start > 0:
                if is_open and not is_end:
                    return kept[:start]  # speech may go on within the gap allowed
                kept[start : min(end, start + _PAD_FRAMES) if is_open else end] = True
                continue
            if start > 0:
                kept[start : start + _PAD_FRAMES] = True
            if not is_open:
                kept[max(start, end - _PAD_FRAMES) : end] = True
        return kept

    def _pause(self, frames: int) -> int:
        """Where the first pause lets a span end, before ``frames``; 0 when there is none."""
        silences = _runs(~self._speech[:frames]) if self._speech_only else []
        pauses = [start for start, end in silences if start > 0 and end - start >= _PAUSE_FRAMES]
        return pauses[0] + _PAD_FRAMES if pauses else 0

    def _cut(self, count: npt.NDArray[np.int64], shortest: int, limit: int) -> int:
        """Where to end a span: frames before ``limit``, the longest silence first."""
        earliest = min(int(np.searchsorted(count, shortest)), limit - 1)
        silences = [(start, end) for start, end in _runs(~self._speech[:limit]) if count[start] > 0]
        near = [run for run in silences if sum(run) // 2 >= earliest]
        if chosen := near or [run for run in silences if run[0] > 0]:
            start, end = max(chosen, key=lambda run: run[1] - run[0])
            return max(1, (start + end) // 2)
        levels = np.pad(self._levels[:limit], _QUIET_FRAMES // 2, mode="edge")
        window = np.convolve(levels, np.ones(_QUIET_FRAMES), mode="valid")
        return max(1, earliest + int(np.argmin(window[earliest:])))

    def _drop(self, frames: int) -> None:
        self._base += frames
        self._speech = self._speech[frames:]
        self._levels = self._levels[frames:]


def _runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return ``(start, end)`` of each run of true in ``mask``."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
