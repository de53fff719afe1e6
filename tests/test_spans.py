"""Where recordings are cut. Everything is counted in frames of 512 samples, 32 ms each."""

import math
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiotranscribe.engine.spans import (
    FRAME_SAMPLES,
    LADDER,
    SAMPLE_RATE,
    WHOLE,
    Bounds,
    Cutter,
    Span,
)

FRAME_S = 0.032
# What the module promises, in frames: the gap that is left out (2 s), and the padding that is
# kept around speech (0.4 s).
GAP, PAD = 62, 12

SPEECH, SILENCE = 0.9, 0.1


def frames(seconds: float) -> int:
    """Return how many frames last so many seconds."""
    return round(seconds / FRAME_S)


def bounds(shortest: int, longest: int) -> Bounds:
    """Return bounds given in frames."""
    return Bounds(shortest * FRAME_S, longest * FRAME_S)


# Real bounds need minutes of recording to matter; these show the same in seconds.
SHORT = (bounds(16, 48), bounds(30, 90))


@dataclass(frozen=True)
class Heard:
    """A recording as the cutter hears it."""

    #: Probabilities that are repeated, and for how many frames.
    runs: Sequence[tuple[Sequence[float], int]]
    #: Loudness, repeated.
    loudness: Sequence[int] = (1,)
    #: Samples that the last frame is short of.
    missing: int = 0

    @cached_property
    def probabilities(self) -> list[float]:
        """The probability of speech in each frame."""
        return [cycle[n % len(cycle)] for cycle, count in self.runs for n in range(count)]

    @cached_property
    def levels(self) -> list[int]:
        """The loudness of each frame."""
        return [self.loudness[n % len(self.loudness)] for n in range(len(self.probabilities))]

    @property
    def samples(self) -> int:
        """How many samples the recording has."""
        return max(0, len(self.probabilities) * FRAME_SAMPLES - self.missing)

    @cached_property
    def speech(self) -> list[bool]:
        """Decide by the rule, frame by frame: speech begins at 0.5, ends below 0.35."""
        decided, is_speech = [], False
        for probability in self.probabilities:
            is_speech = probability >= 0.35 if is_speech else probability >= 0.5
            decided.append(is_speech)
        return decided


def heard(*runs: tuple[float, int]) -> Heard:
    """Return a recording made of runs: ``(probability, frames)``."""
    return Heard([([probability], count) for probability, count in runs])


def feed(cutter: Cutter, recording: Heard, start: int, end: int) -> list[Span]:
    """Feed some of a recording's frames."""
    probabilities = np.array(recording.probabilities[start:end], np.float32)
    levels = np.array(recording.levels[start:end], np.float32)
    return list(cutter.feed(probabilities, levels))


def cut(
    recording: Heard,
    *,
    speech_only: bool,
    ladder: Sequence[Bounds] = SHORT,
    blocks: Sequence[int] = (),
    clips: Sequence[tuple[int, int]] = ((0, 10**6),),
) -> list[Span]:
    """Return all spans of a recording that is fed in blocks which end at ``blocks``.

    Clips are counted in frames, as all is.
    """
    seconds = [(start * FRAME_S, end * FRAME_S) for start, end in clips]
    cutter = Cutter(speech_only=speech_only, ladder=ladder, clips=seconds)
    edges = [0, *blocks, len(recording.probabilities)]
    spans = [span for start, end in pairwise(edges) for span in feed(cutter, recording, start, end)]
    return spans + list(cutter.finish(recording.samples))


def covered(spans: Sequence[Span]) -> Iterator[int]:
    """Yield the number of every frame that a span covers, again for every time it does."""
    for span in spans:
        for start, end in span.stretches:
            yield from range(start // FRAME_SAMPLES, -(-end // FRAME_SAMPLES))


def of(span: Span) -> range:
    """Return the frames from a span's start to its end."""
    return range(span.stretches[0][0] // FRAME_SAMPLES, -(-span.stretches[-1][1] // FRAME_SAMPLES))


PROBABILITIES = st.sampled_from([0.0, 0.2, 0.34, 0.36, 0.45, 0.5, 0.8, 1.0])
LENGTHS = st.integers(1, 30) | st.integers(31, 200) | st.integers(900, 1000)
#: Speech, silence and doubt, short and long, some of it flickering.
RECORDINGS = st.builds(
    Heard,
    runs=st.lists(st.tuples(st.lists(PROBABILITIES, min_size=1, max_size=3), LENGTHS), max_size=8),
    loudness=st.lists(st.integers(0, 100), min_size=1, max_size=20),
    missing=st.integers(0, FRAME_SAMPLES - 1),
)
LADDERS = st.sampled_from([SHORT, SHORT, LADDER])
#: Stretches in frames; some touch, some lie beyond the recording's end.
CLIPS = st.builds(
    lambda edges, step: list(pairwise(sorted(edges)))[::step],
    st.sets(st.integers(0, 2000), min_size=2, max_size=8),
    st.sampled_from([1, 2]),
)
few = settings(max_examples=60)


# -- for any recording -----------------------------------------------------------------------


@few
@given(RECORDINGS, st.booleans(), LADDERS)
def test_spans_come_in_order_and_do_not_overlap(
    recording: Heard, speech_only: bool, ladder: Sequence[Bounds]
) -> None:
    """Otherwise a sentence appears twice, or out of order."""
    spans = cut(recording, speech_only=speech_only, ladder=ladder)
    assert [span.index for span in spans] == list(range(len(spans)))
    edges = [edge for span in spans for stretch in span.stretches for edge in stretch]
    assert edges == sorted(edges)
    assert all(start < end for span in spans for start, end in span.stretches)
    assert not edges or (edges[0] >= 0 and edges[-1] <= recording.samples)


@few
@given(RECORDINGS, LADDERS)
def test_without_the_filter_nothing_is_left_out(recording: Heard, ladder: Sequence[Bounds]) -> None:
    """Otherwise quiet speech is lost though the user said to decode everything."""
    position = 0
    for span in cut(recording, speech_only=False, ladder=ladder):
        ((start, end),) = span.stretches
        assert start == position
        position = end
    assert position == recording.samples


@few
@given(RECORDINGS, LADDERS)
def test_with_the_filter_speech_is_covered_once(recording: Heard, ladder: Sequence[Bounds]) -> None:
    """Otherwise words are lost, or said twice."""
    frames_covered = list(covered(cut(recording, speech_only=True, ladder=ladder)))
    assert len(frames_covered) == len(set(frames_covered))
    spoken = {number for number, is_speech in enumerate(recording.speech) if is_speech}
    assert spoken <= set(frames_covered)


@few
@given(RECORDINGS, LADDERS)
def test_with_the_filter_speech_keeps_what_comes_just_before(
    recording: Heard, ladder: Sequence[Bounds]
) -> None:
    """Otherwise the soft beginning of a word is cut off, and another word is understood."""
    kept = set(covered(cut(recording, speech_only=True, ladder=ladder)))
    speech = recording.speech
    for number in range(1, len(speech)):
        if speech[number] and not speech[number - 1]:
            assert set(range(max(0, number - PAD), number)) <= kept


@few
@given(RECORDINGS, LADDERS)
def test_with_the_filter_long_silence_is_left_out(
    recording: Heard, ladder: Sequence[Bounds]
) -> None:
    """Otherwise Whisper makes up sentences for the silence, and takes its time for it."""
    spoken = [number for number, is_speech in enumerate(recording.speech) if is_speech]
    for number in covered(cut(recording, speech_only=True, ladder=ladder)):
        place = bisect(spoken, number)
        before = number - spoken[place - 1] if place else math.inf
        after = spoken[place] - number if place < len(spoken) else math.inf
        assert before <= PAD or after <= PAD or before + after - 1 < GAP


@few
@given(RECORDINGS, st.booleans(), LADDERS)
def test_no_span_is_longer_than_its_bound(
    recording: Heard, speech_only: bool, ladder: Sequence[Bounds]
) -> None:
    """Otherwise one span blocks a worker, and a crash costs all of it."""
    for span in cut(recording, speech_only=speech_only, ladder=ladder):
        assert span.length <= ladder[min(span.index, len(ladder) - 1)].longest + 1e-9


@few
@given(RECORDINGS, st.booleans(), LADDERS)
def test_no_span_is_a_splinter_of_silence(
    recording: Heard, speech_only: bool, ladder: Sequence[Bounds]
) -> None:
    """Otherwise Whisper is asked what a blink of silence says, and makes something up."""
    speech = recording.speech
    spans = cut(recording, speech_only=speech_only, ladder=ladder)
    for span in spans if speech_only else spans[:-1]:
        shortest = ladder[min(span.index, len(ladder) - 1)].shortest
        has_speech = any(speech[number] for number in of(span))
        assert has_speech or (not speech_only and span.length > shortest - 2 * FRAME_S)


@few
@given(
    RECORDINGS,
    st.booleans(),
    LADDERS,
    st.lists(st.floats(0, 1), min_size=1, max_size=30).map(sorted),
    CLIPS | st.just([(0, 10**6)]),
)
@example(
    Heard([([SPEECH], 10), ([SILENCE], 1000), ([SPEECH], 10)]), True, SHORT, [0.98], [(0, 10**6)]
)
def test_the_spans_do_not_depend_on_the_blocks(
    recording: Heard,
    speech_only: bool,
    ladder: Sequence[Bounds],
    edges: list[float],
    clips: list[tuple[int, int]],
) -> None:
    """Otherwise the same recording gives another text each time its decoder is changed."""
    blocks = [round(edge * len(recording.probabilities)) for edge in edges]
    whole = cut(recording, speech_only=speech_only, ladder=ladder, clips=clips)
    spans = cut(recording, speech_only=speech_only, ladder=ladder, clips=clips, blocks=blocks)
    assert spans == whole


@few
@given(RECORDINGS, st.booleans(), LADDERS, CLIPS)
def test_only_clips_are_transcribed_and_each_by_itself(
    recording: Heard, speech_only: bool, ladder: Sequence[Bounds], clips: list[tuple[int, int]]
) -> None:
    """Otherwise one reads what was to be left out, or words from both sides of it as one sentence.

    Padding around speech is no excuse.
    """
    spans = cut(recording, speech_only=speech_only, ladder=ladder, clips=clips)
    assert [span.index for span in spans] == list(range(len(spans)))
    edges = [edge for span in spans for stretch in span.stretches for edge in stretch]
    assert edges == sorted(edges)
    assert not edges or edges[-1] <= recording.samples
    for span in spans:
        assert all(start < end for start, end in span.stretches)
        assert any(start <= of(span).start and of(span).stop <= end for start, end in clips)


@few
@given(RECORDINGS, LADDERS, CLIPS)
def test_clips_without_the_filter_are_covered_exactly(
    recording: Heard, ladder: Sequence[Bounds], clips: list[tuple[int, int]]
) -> None:
    """Otherwise a clip lacks its end, or is heard twice."""
    total = len(recording.probabilities)
    spans = cut(recording, speech_only=False, ladder=ladder, clips=clips)
    wanted = [n for start, end in clips for n in range(min(start, total), min(end, total))]
    assert list(covered(spans)) == wanted


@few
@given(RECORDINGS, LADDERS, CLIPS)
def test_speech_in_a_clip_is_covered_once(
    recording: Heard, ladder: Sequence[Bounds], clips: list[tuple[int, int]]
) -> None:
    """Otherwise words are lost at a clip's edge, or where one clip touches the next."""
    frames_covered = list(covered(cut(recording, speech_only=True, ladder=ladder, clips=clips)))
    assert len(frames_covered) == len(set(frames_covered))
    spoken = [number for number, is_speech in enumerate(recording.speech) if is_speech]
    wanted = {n for n in spoken if any(start <= n < end for start, end in clips)}
    assert wanted <= set(frames_covered)


@few
@given(RECORDINGS, st.booleans(), LADDERS)
def test_speech_is_cut_only_where_there_is_no_silence(
    recording: Heard, speech_only: bool, ladder: Sequence[Bounds]
) -> None:
    """Otherwise words are cut in two that need not be, and both halves are misunderstood."""
    speech = recording.speech
    spans = cut(recording, speech_only=speech_only, ladder=ladder)
    for span, after in pairwise(spans):
        where = of(after).start
        if of(span).stop == where and speech[where - 1] and speech[where]:
            first, limits = of(span).start, ladder[min(span.index, len(ladder) - 1)]
            limit = first + int(limits.longest / FRAME_S + 1e-6)
            assert all(speech[speech.index(True, first) : limit])
            candidates = range(first + frames(limits.shortest), limit)
            quietest = min(loudness(recording, number, limit) for number in candidates)
            assert loudness(recording, where, limit) <= quietest


def loudness(recording: Heard, number: int, limit: int) -> int:
    """Return the loudness of nine frames around one, of those before ``limit``."""
    around = range(number - 4, number + 5)
    return sum(recording.levels[max(0, min(other, limit - 1))] for other in around)


# -- plain examples --------------------------------------------------------------------------


def test_silence_gives_no_spans() -> None:
    """Otherwise an empty recording gives invented sentences."""
    assert cut(heard((SILENCE, 5000)), speech_only=True) == []


def test_nothing_gives_no_spans() -> None:
    """Otherwise a recording without a sample fails."""
    assert cut(heard(), speech_only=True) == []
    assert cut(heard(), speech_only=False) == []


def test_a_long_silence_is_left_out_but_for_padding() -> None:
    """Otherwise Whisper hallucinates into it, or the ends of words are cut."""
    recording = heard((SPEECH, 100), (SILENCE, 200), (SPEECH, 100))
    (span,) = cut(recording, speech_only=True, ladder=LADDER)
    assert span.stretches == (
        (0, (100 + PAD) * FRAME_SAMPLES),
        ((300 - PAD) * FRAME_SAMPLES, 400 * FRAME_SAMPLES),
    )


def test_a_short_silence_stays() -> None:
    """Otherwise speech is chopped up, and the model loses its sense of sentences."""
    recording = heard((SPEECH, 100), (SILENCE, GAP - 1), (SPEECH, 100))
    (span,) = cut(recording, speech_only=True, ladder=LADDER)
    assert span.stretches == ((0, (199 + GAP) * FRAME_SAMPLES),)


def test_two_seconds_are_a_long_silence() -> None:
    """Otherwise more is left out, or less, than the option promises."""
    recording = heard((SPEECH, 100), (SILENCE, GAP), (SPEECH, 100))
    (span,) = cut(recording, speech_only=True, ladder=LADDER)
    assert len(span.stretches) == 2


def test_silence_at_both_ends_is_left_out_but_for_padding() -> None:
    """Otherwise the first words wait for the model to decode the silence before them."""
    recording = heard((SILENCE, 200), (SPEECH, 100), (SILENCE, 200))
    (span,) = cut(recording, speech_only=True, ladder=LADDER)
    assert span.stretches == (((200 - PAD) * FRAME_SAMPLES, (300 + PAD) * FRAME_SAMPLES),)


def test_the_last_span_ends_with_the_recording() -> None:
    """Otherwise samples are read that are not there, or the last ones are lost."""
    recording = Heard([([SPEECH], 100)], missing=500)
    for speech_only in (True, False):
        (span,) = cut(recording, speech_only=speech_only, ladder=LADDER)
        assert span.stretches == ((0, recording.samples),)


def test_the_cut_is_in_the_longest_silence_within_the_bounds() -> None:
    """Otherwise sentences are torn apart between two spans."""
    early, short, long = (SILENCE, 50), (SILENCE, 10), (SILENCE, 20)
    recording = heard((SPEECH, 30), early, (SPEECH, 100), short, (SPEECH, 50), long, (SPEECH, 400))
    first, *_ = cut(recording, speech_only=True, ladder=LADDER)
    assert first.stretches == ((0, (30 + 50 + 100 + 10 + 50 + 10) * FRAME_SAMPLES),)


def test_speech_without_a_silence_is_cut_where_it_is_quietest() -> None:
    """Otherwise a word is cut in two while there is a breath close by."""
    loudness = [9] * 200 + [0] * 9 + [9] * 391
    recording = Heard([([SPEECH], 600)], loudness)
    first, *_ = cut(recording, speech_only=True, ladder=LADDER)
    assert first.stretches == ((0, 204 * FRAME_SAMPLES),)


def test_a_silence_before_the_speech_is_no_place_to_cut() -> None:
    """Otherwise the spans of an uninterrupted speech begin with splinters that hold nothing."""
    recording = heard((SILENCE, 10), (SPEECH, 600))
    for speech_only in (True, False):
        first, *_ = cut(recording, speech_only=speech_only, ladder=LADDER)
        assert first.length >= LADDER[0].shortest - FRAME_S


def test_the_first_words_do_not_wait_for_the_end() -> None:
    """Otherwise a watcher sees nothing until all of the recording is decoded."""
    cutter = Cutter(speech_only=True)
    (first,) = feed(cutter, heard((SPEECH, 400)), 0, 400)
    assert LADDER[0].shortest - FRAME_S <= first.length <= LADDER[0].longest


def test_nothing_waits_for_the_end_of_a_silence() -> None:
    """Otherwise what was said before a long break is shown only after it."""
    recording = heard((SPEECH, 100), (SILENCE, frames(32)))
    cutter = Cutter(speech_only=True)
    (span,) = feed(cutter, recording, 0, len(recording.probabilities))
    assert span.stretches == ((0, (100 + PAD) * FRAME_SAMPLES),)


def test_speech_after_a_break_keeps_its_padding() -> None:
    """Otherwise the first word after half a minute of silence loses its beginning."""
    recording = heard((SPEECH, 100), (SILENCE, 1000), (SPEECH, 100))
    for block in range(1095, 1101):
        _, second = cut(recording, speech_only=True, ladder=LADDER, blocks=[block])
        assert second.stretches == (((1100 - PAD) * FRAME_SAMPLES, 1200 * FRAME_SAMPLES),)


def test_a_recording_can_be_one_span() -> None:
    """Otherwise ``parallel=off`` is not what faster-whisper would do."""
    recording = heard((SPEECH, 4000), (SILENCE, 1000), (SPEECH, 4000))
    (span,) = cut(recording, speech_only=False, ladder=WHOLE, blocks=[300, 4500])
    assert span.stretches == ((0, recording.samples),)


def test_a_clip_is_known_before_the_recording_ends() -> None:
    """Otherwise ten seconds out of ten hours come after the ten hours are read."""
    cutter = Cutter(speech_only=True, clips=[(1.0, 2.0), (30.0, 31.0)])
    recording = heard((SPEECH, 3000))
    (first,) = feed(cutter, recording, 0, 500)
    assert (first.start, first.end) == (0.992, 1.984)
    (second,) = feed(cutter, recording, 500, 1000)
    assert (second.start, second.end) == pytest.approx((30.016, 31.008))


# -- a span's times --------------------------------------------------------------------------

# One second from 1.0, half a second from 4.0.
GAPPED = Span(3, ((16_000, 32_000), (64_000, 72_000)))

SPANS = st.lists(st.integers(1, 10**6), min_size=2, max_size=10).map(
    lambda edges: Span(0, tuple(pairwise(accumulate(edges)))[::2])
)


def test_a_span_tells_seconds() -> None:
    """Otherwise times, percentage and fairness are off by what is left out."""
    assert (GAPPED.start, GAPPED.end, GAPPED.length) == (1.0, 4.5, 1.5)


@pytest.mark.parametrize(
    ("seconds", "is_end", "expected"),
    [
        (0.0, False, 1.0),
        (0.25, False, 1.25),
        (1.0, False, 4.0),  # something begins after the gap
        (1.0, True, 2.0),  # something ends before it
        (1.25, True, 4.25),
        (1.5, True, 4.5),
        (9.0, False, 4.5),  # the model pads its windows beyond the end
        (-0.1, False, 1.0),
    ],
)
def test_times_within_a_span_skip_what_is_left_out(
    seconds: float, is_end: bool, expected: float
) -> None:
    """Otherwise subtitles are early by every silence before them, or stretch across one."""
    assert GAPPED.time(seconds, is_end=is_end) == expected


@few
@given(SPANS, st.lists(st.floats(0, 1), min_size=2).map(sorted), st.booleans())
def test_times_within_a_span_stay_in_order_and_in_its_stretches(
    span: Span, shares: list[float], is_end: bool
) -> None:
    """Otherwise a word is said to be where nothing was heard."""
    times = [span.time(share * span.length, is_end=is_end) for share in shares]
    assert times == sorted(times)
    for time in times:
        assert any(
            start - 8 <= time * SAMPLE_RATE <= end + 8  # times have milliseconds, 16 samples
            for start, end in span.stretches
        )
