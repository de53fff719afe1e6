"""The frame: what it looks like, what a cursor is worth, what is shared."""

import json
import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiotranscribe.errors import Problem
from aiotranscribe.frame import Frame, View, decode, encode, make_cursor, now, resume
from aiotranscribe.job import Run, Status
from aiotranscribe.transcript import Segment, Word
from tests import builders
from tests.builders import KEYS, RUN, RUNS

COUNTS = st.integers(0, 10**6)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text()
SEGMENTS = st.lists(
    st.builds(
        Segment,
        st.integers(0, 2**53),
        FINITE,
        FINITE,
        TEXT,
        st.none() | st.lists(st.builds(Word, FINITE, FINITE, TEXT, FINITE)).map(tuple),
    ),
    max_size=3,
)
FRAMES = st.builds(
    Frame,
    job_id=TEXT,
    status=st.sampled_from(Status),
    progress_percentage=FINITE,
    current_step=TEXT,
    message=TEXT,
    eta_seconds=st.none() | FINITE,
    position_seconds=FINITE,
    duration_seconds=st.none() | FINITE,
    speed=st.none() | FINITE,
    queue_position=st.none() | COUNTS,
    language=st.none() | TEXT,
    error=st.none() | st.builds(Problem, TEXT, TEXT),
    created=FINITE,
    offset=COUNTS,
    segments=SEGMENTS,
    cursor=TEXT,
    time=TEXT,
)


# -- on the wire -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_a_frame_has_every_key_in_its_order(status: Status) -> None:
    """Otherwise clients break, which are written against these names by people we never meet."""
    told = json.loads(encode(builders.head(3, status)))
    assert list(told) == KEYS


def test_a_frame_on_the_wire() -> None:
    """Otherwise numbers arrive as text, or a segment has other names than are documented."""
    told = json.loads(encode(builders.frame(1, 2)))
    assert told == {
        "job_id": "job",
        "status": "running",
        "progress_percentage": 37.5,
        "current_step": "transcribing",
        "message": "Transcribed 22:30 of 1:00:00",
        "eta_seconds": 41.0,
        "position_seconds": 4.0,
        "duration_seconds": 3600.0,
        "speed": 52.3,
        "queue_position": None,
        "language": "en",
        "error": None,
        "offset": 1,
        "segments": [{"id": 1, "start": 2.0, "end": 4.0, "text": " Number 1."}],
        "cursor": "7-2",
        "time": "2026-01-01T12:00:00.123Z",
        "name": "lecture.mp3",
        "created": 1767268800.0,
    }


def test_words_and_errors_on_the_wire() -> None:
    """Otherwise karaoke and error handling need another client."""
    word = Word(0.0, 0.5, " Hi.", 0.9)
    frame = msgspec.structs.replace(
        builders.head(1, Status.FAILED), offset=0, segments=[Segment(0, 0.0, 0.5, " Hi.", (word,))]
    )
    told = json.loads(encode(frame))
    assert told["error"] == {"code": "undecodable", "message": "no sound"}
    assert told["segments"][0]["words"] == [
        {"start": 0.0, "end": 0.5, "word": " Hi.", "probability": 0.9}
    ]


@given(FRAMES)
def test_a_frame_survives_the_wire(frame: Frame) -> None:
    """Otherwise a client sees another job than the server."""
    assert decode(encode(frame)) == frame


def test_a_client_ignores_keys_that_it_does_not_know() -> None:
    """Otherwise every client must be updated together with its server."""
    frame = builders.frame(1, 2)
    assert decode(encode(frame)[:-1] + b',"from_the_future":1}') == frame


def test_the_time_is_utc_with_milliseconds() -> None:
    """Otherwise browsers take it for local time."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now())


# -- cursors ---------------------------------------------------------------------------------


@given(count=COUNTS, more=COUNTS, is_last=st.booleans())
def test_a_cursor_is_good_for_what_it_says(count: int, more: int, is_last: bool) -> None:
    """Otherwise someone who reconnects gets text again, or misses some."""
    assert resume(make_cursor(RUN, count, is_last=is_last), RUNS, count + more) == count


@given(began=COUNTS, has=COUNTS, more=COUNTS)
def test_a_cursor_outlives_a_restart(began: int, has: int, more: int) -> None:
    """Otherwise every restart sends all of the text again, or a power cut leaves lost words."""
    runs = (Run("a", 0), Run("b", began))
    resumed = resume(make_cursor("a", has), runs, began + more)
    assert resumed == (has if has <= began else None)


@given(count=COUNTS)
def test_a_cursor_of_an_unknown_run_is_worth_nothing(count: int) -> None:
    """Otherwise a watcher keeps another job's text."""
    assert resume(make_cursor("8", count), RUNS, count) is None


@given(count=COUNTS, lost=st.integers(1, 10**6))
def test_a_cursor_to_lost_segments_is_worth_nothing(count: int, lost: int) -> None:
    """Otherwise a watcher keeps segments that a power cut took back."""
    assert resume(make_cursor(RUN, count + lost), RUNS, count) is None


@given(
    cursor=st.text()
    | st.text("0123456789-+_ .٣end", max_size=30)
    | st.builds(
        "{}-{}{}".format,
        st.sampled_from(["7", "07", " 7", "\N{FULLWIDTH DIGIT SEVEN}", "+7"]),
        st.integers(-2, 9),
        st.sampled_from(["", "-end", "-END", "-"]),
    ),
    count=st.integers(0, 9),
)
@example("7-٣", 9)
@example("7-03", 9)
@example("7-" + "9" * 5000, 9)
@example("7-3-", 9)
@example("7-3\n", 9)
def test_a_cursor_is_never_guessed(cursor: str, count: int) -> None:
    """Otherwise a string that we never issued silently drops the beginning of someone's text."""
    resumed = resume(cursor, RUNS, count)
    issued = [
        make_cursor(RUN, has, is_last=end) for has in range(count + 1) for end in (False, True)
    ]
    assert (resumed is not None) == (cursor in issued)
    assert resumed is None or 0 <= resumed <= count


@pytest.mark.parametrize("cursor", [None, ""])
def test_without_a_cursor_there_is_everything(cursor: str | None) -> None:
    """Otherwise a first watcher misses the beginning."""
    assert resume(cursor, RUNS, 5) is None


# -- views -----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", range(4))
def test_a_view_holds_what_each_watcher_lacks(offset: int) -> None:
    """Otherwise a watcher gets segments twice, or not at all."""
    frame = builders.view(3).frame(offset)
    assert frame.offset == offset
    assert list(frame.segments) == builders.segments(3)[offset:]
    assert frame.cursor == make_cursor(RUN, 3)


def test_watchers_who_have_equally_much_share_one_frame() -> None:
    """Otherwise a thousand watchers cost a thousand times the work of one."""
    view = builders.view(3)
    frame = view.frame(2)
    assert view.frame(2) is frame
    assert view.encode(frame) is view.encode(view.frame(2))
    assert view.encode(frame) == encode(frame)


def test_watchers_who_have_less_get_their_own_frame() -> None:
    """Otherwise a late watcher is sent what was encoded for someone else."""
    view = builders.view(3)
    live, late = view.frame(2), view.frame(0)
    assert decode(view.encode(live)).offset == 2
    assert decode(view.encode(late)).offset == 0
    assert decode(view.encode(view.frame(2))) == live


def test_a_view_does_not_keep_a_frame_for_everyone() -> None:
    """Otherwise a thousand slow watchers fill the memory with a thousand copies of the text."""
    view = builders.view(1000)
    frames = [view.frame(offset) for offset in range(1000)]
    assert len(view._frames) < 10
    assert [frame.offset for frame in frames] == list(range(1000))
    for offset in (3, 999, 3, 1000):
        assert decode(view.encode(view.frame(offset))).offset == offset
        assert decode(view.encode(frames[3])) == frames[3]


def test_a_view_does_not_grow_with_the_job() -> None:
    """Otherwise a cursor promises fewer segments than the frame has, and they come twice."""
    job = builders.segments(2)
    view = View(builders.head(2), job, RUNS)
    job.append(builders.segment(2))
    assert list(view.frame(0).segments) == builders.segments(2)


def test_a_sign_of_life_differs_in_its_time_only() -> None:
    """Otherwise a heartbeat changes what a watcher sees."""
    view = builders.view(3)
    before, after = view.frame(1), view.renewed().frame(1)
    assert after.time > before.time
    assert msgspec.structs.replace(after, time=before.time) == before


@pytest.mark.parametrize("status", Status)
def test_a_view_knows_whether_it_is_the_last(status: Status) -> None:
    """Otherwise sockets stay open after the end, or close before it."""
    assert builders.view(1, status).is_last == (status in {"completed", "failed", "cancelled"})


def test_a_view_resumes_against_its_own_run_and_count() -> None:
    """Otherwise a reconnecting watcher is judged by another job's numbers."""
    view = builders.view(3)
    assert view.resume(make_cursor(RUN, 3)) == 3
    assert view.resume(make_cursor(RUN, 4)) is None
    assert view.resume(make_cursor("8", 3)) is None
