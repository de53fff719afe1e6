"""The transcript: segments of many spans become one text, in order."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe.transcript import Draft, Segment, join

TIMES = st.floats(0, 1e5)


def said(text: str, start: float = 0.0, end: float = 1.0) -> Segment:
    """Return a segment as a worker sends it: its ``id`` means nothing."""
    return Segment(0, start, end, text)


@st.composite
def interleavings(draw: st.DrawFn) -> list[tuple[int, str | None]]:
    """Messages of several spans, mixed: ``(span, text)``, and ``(span, None)`` when it is done."""
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    turns = draw(st.permutations([span for span, n in enumerate(counts) for _ in range(n + 1)]))
    left = {
        span: iter([*(f"{span}.{number}" for number in range(n)), None])
        for span, n in enumerate(counts)
    }
    return [(span, next(left[span])) for span in turns]


def due(told: Sequence[tuple[int, str | None]]) -> list[str]:
    """Return the texts that can be shown: of every span up to the first that is not done."""
    done = {span for span, text in told if text is None}
    first_open = min(set(range(len(done) + 1)) - done)
    return [text for text_span in range(first_open + 1) for text in texts_of(text_span, told)]


def texts_of(span: int, told: Sequence[tuple[int, str | None]]) -> list[str]:
    """Return what one span has said so far."""
    return [text for of, text in told if of == span and text is not None]


@given(interleavings())
def test_segments_come_out_in_order_whatever_the_workers_do(
    told: list[tuple[int, str | None]],
) -> None:
    """Otherwise sentences are lost, doubled or swapped when spans are transcribed side by side."""
    draft = Draft()
    for count, (span, text) in enumerate(told, 1):
        before = list(draft.segments)
        if text is None:
            draft.finish(span)
        else:
            draft.add(span, said(text))
        assert draft.segments[: len(before)] == before, "what a watcher has must never change"
        assert [segment.text for segment in draft.segments] == due(told[:count])
    assert [segment.id for segment in draft.segments] == list(range(len(draft.segments)))
    everything = [text for _, text in sorted(told, key=lambda of: of[0]) if text is not None]
    assert [segment.text for segment in draft.segments] == everything


@given(st.lists(st.tuples(TIMES, TIMES)))
def test_times_never_run_backwards(times: list[tuple[float, float]]) -> None:
    """Otherwise players jump back, and subtitles show before the ones in front of them."""
    draft = Draft()
    for start, end in times:
        draft.add(0, said("…", start, end))
    starts = [segment.start for segment in draft.segments]
    assert starts == sorted(starts)
    assert all(segment.start <= segment.end for segment in draft.segments)


def test_times_that_are_in_order_stay_exact() -> None:
    """Otherwise subtitles drift from what is said."""
    draft = Draft()
    draft.add(0, said("a", 0.5, 2.25))
    draft.add(0, said("b", 2.25, 3.0))
    assert [(s.start, s.end) for s in draft.segments] == [(0.5, 2.25), (2.25, 3.0)]


def test_a_segment_of_the_earliest_open_span_is_shown_at_once() -> None:
    """Otherwise the text comes in lumps, a span at a time, and nothing is live."""
    draft = Draft()
    draft.add(1, said(" later"))
    assert draft.segments == []
    draft.add(0, said(" first"))
    assert [segment.text for segment in draft.segments] == [" first"]
    draft.finish(0)
    draft.add(1, said(" last"))
    assert [segment.text for segment in draft.segments] == [" first", " later", " last"]


def test_join_keeps_the_spaces_of_the_language() -> None:
    """Otherwise English loses its spaces, or Chinese gains some."""
    assert join([said(" Hello,"), said(" world.")]) == "Hello, world."
    assert join([said("你好。"), said("再见。")]) == "你好。再见。"
    assert join([]) == ""
