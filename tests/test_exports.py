"""Exports: files that other programs must be able to read."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe.errors import InvalidOption
from aiotranscribe.exports import FORMATS, clock, export
from aiotranscribe.transcript import Segment, Transcript, Word, join

SRT_CUE = re.compile(
    r"(\d+)\n(\d{2,}:\d\d:\d\d,\d{3}) --> (\d{2,}:\d\d:\d\d,\d{3})\n([^\r\n]+)\n\n"
)


def make(*texts: str, start: float = 0.0) -> Transcript:
    """Return a transcript with one segment of a second and a half for each text."""
    segments = [
        Segment(number, start + number * 1.5, start + number * 1.5 + 1.5, text)
        for number, text in enumerate(texts)
    ]
    return Transcript(join(segments), "en", start + len(texts) * 1.5, segments)


HELLO = make(" Hello, world.", " How are you?")
EMPTY = Transcript("", None, 2.0, [])


def test_txt() -> None:
    """Otherwise the text cannot be pasted as it is."""
    assert export(HELLO, "txt") == "Hello, world.\nHow are you?\n"


def test_srt() -> None:
    """Otherwise players show no subtitles."""
    assert export(HELLO, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello, world.\n\n"
        "2\n00:00:01,500 --> 00:00:03,000\nHow are you?\n\n"
    )


def test_vtt() -> None:
    """Otherwise browsers show no subtitles."""
    assert export(HELLO, "vtt") == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:01.500\nHello, world.\n\n"
        "00:00:01.500 --> 00:00:03.000\nHow are you?\n\n"
    )


def test_json() -> None:
    """Otherwise programs lose times, language or words that only this format has."""
    words = (Word(0.0, 1.5, " Hi.", 0.9),)
    transcript = Transcript("Hi.", "en", 1.5, [Segment(0, 0.0, 1.5, " Hi.", words)])
    assert json.loads(export(transcript, "json")) == {
        "text": "Hi.",
        "language": "en",
        "duration": 1.5,
        "segments": [
            {
                "id": 0,
                "start": 0.0,
                "end": 1.5,
                "text": " Hi.",
                "words": [{"start": 0.0, "end": 1.5, "word": " Hi.", "probability": 0.9}],
            }
        ],
        "task": "transcribe",
    }


def test_json_without_words() -> None:
    """Otherwise every segment carries a null that nobody asked for."""
    assert export(make(" Hi."), "json") == (
        '{"text":"Hi.","language":"en","duration":1.5,'
        '"segments":[{"id":0,"start":0.0,"end":1.5,"text":" Hi."}],"task":"transcribe"}\n'
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("txt", ""),
        ("srt", ""),
        ("vtt", "WEBVTT\n\n"),
        ("json", '{"text":"","language":null,"duration":2.0,"segments":[],"task":"transcribe"}\n'),
    ],
)
def test_a_recording_without_speech(name: str, expected: str) -> None:
    """Otherwise silence gives an error in place of an empty file."""
    assert export(EMPTY, name) == expected


def test_vtt_escapes_what_would_be_markup() -> None:
    """Otherwise a browser swallows ``<laugh>``, and ``&lt;`` spoken of turns into markup."""
    assert "\nR&amp;D &lt;laugh&gt; &amp;lt;\n" in export(make(" R&D <laugh> &lt;"), "vtt")


@pytest.mark.parametrize("name", ["txt", "srt"])
def test_formats_without_markup_keep_every_sign(name: str) -> None:
    """Otherwise people read ``&amp;`` in their subtitles."""
    assert "R&D <laugh>\n" in export(make(" R&D <laugh>"), name)


@pytest.mark.parametrize("name", ["srt", "vtt"])
@pytest.mark.parametrize("text", ["a --> b", "a ---> b", "a ------> b", "--> --->"])
def test_an_arrow_that_is_said_is_not_taken_for_times(name: str, text: str) -> None:
    """Otherwise a player drops the cue, or everything after it."""
    assert export(make(text), name).count("-->") == 1


@pytest.mark.parametrize("name", ["txt", "srt", "vtt"])
@pytest.mark.parametrize("space", ["\n", "\r\n", "\r", "\n\n", "\u2028"])
def test_a_line_break_within_a_segment_becomes_a_space(name: str, space: str) -> None:
    """Otherwise an empty line ends the cue early, and one line is no longer one segment."""
    assert "\nOne two.\n" in "\n" + export(make(f" One{space}two."), name)


@given(st.lists(st.text("a-> \n\r<&é你\u2028").filter(str.strip), max_size=5))
def test_any_text_is_a_readable_srt(texts: list[str]) -> None:
    """Otherwise one odd sentence makes a player lose the rest of the film."""
    exported = export(make(*texts), "srt")
    cues = SRT_CUE.findall(exported)
    assert SRT_CUE.sub("", exported) == "", "there is something that is no cue"
    assert [int(number) for number, *_ in cues] == list(range(1, len(texts) + 1))
    assert not any("-->" in text for *_, text in cues)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "00:00:00,000"),
        (59.9996, "00:01:00,000"),  # never 00:00:60
        (3661.25, "01:01:01,250"),
        (99 * 3600 + 3599.999, "99:59:59,999"),
        (123 * 3600.0, "123:00:00,000"),
    ],
)
def test_times(seconds: float, expected: str) -> None:
    """Otherwise subtitles of a long archive start again at zero, or a time is malformed."""
    assert export(make("x", start=seconds), "srt").startswith(f"1\n{expected} --> ")


@pytest.mark.parametrize("name", ["", "TXT", "docx", "../txt"])
def test_an_unknown_format_is_refused_with_those_there_are(name: str) -> None:
    """Otherwise someone who asks for docx silently gets a text."""
    with pytest.raises(InvalidOption, match=f"^format: .*{re.escape(repr(name))}.*txt, srt, vtt"):
        export(HELLO, name)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_media_type(name: str) -> None:
    """Otherwise a browser shows a subtitle file as a page."""
    assert re.fullmatch(r"(text|application)/[a-z0-9.+-]+", FORMATS[name][0])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "0:00"), (9.99, "0:09"), (1350.0, "22:30"), (3600.0, "1:00:00"), (360_005, "100:00:05")],
)
def test_a_clock_for_people(seconds: float, expected: str) -> None:
    """Otherwise messages say that 3,600 seconds are left."""
    assert clock(seconds) == expected
