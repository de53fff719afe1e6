"""Exports: files that other programs must be able to read."""

import json
import re
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import get_args

import msgspec
import pysubs2
import pytest
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe.errors import InvalidOption
from aiotranscribe.exports import FORMATS, Format, Shape, clock, export, file_ending
from aiotranscribe.transcript import Segment, Transcript, Word, join
from tests import builders

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


def spoken(*texts: str, step: float = 0.5) -> Transcript:
    """Return a transcript whose words, of ``step`` seconds each, have times."""
    segments, now = [], 0.0
    for number, text in enumerate(texts):
        words = []
        for word in re.findall(r"\s*\S+", text):
            words.append(Word(now, now + step, word, 0.9))
            now += step
        segments.append(Segment(number, words[0].start, now, text, tuple(words)))
    return Transcript(join(segments), "en", now, segments)


def lines(exported: str) -> list[Sequence[str]]:
    """Return the lines of each cue of an SRT, as they are written."""
    return [cue.split("\n")[2:] for cue in exported.split("\n\n")[:-1]]


def times(exported: str) -> list[str]:
    """Return the times of each cue of an SRT, without hours and minutes."""
    return [
        re.sub(r"\d\d:\d\d:(\d\d),(\d)00", r"\1.\2", it) for it in re.findall(".*-->.*", exported)
    ]


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


def test_tsv() -> None:
    """Otherwise a spreadsheet, or a script made for whisper's tables, cannot read it."""
    assert export(make(" Hello,\tworld.", " How?"), "tsv") == (
        "start\tend\ttext\n0\t1500\tHello, world.\n1500\t3000\tHow?\n"
    )


def test_lrc() -> None:
    """Otherwise a player of music shows no lines."""
    assert export(make(" One\ntwo.", " Three.", start=59.996), "lrc") == (
        "[01:00.00]One two.\n[01:01.50]Three.\n"
    )
    assert export(make("x", start=100 * 3600.0), "lrc") == "[6000:00.00]x\n"


def test_verbose_json() -> None:
    """Otherwise programs made for OpenAI's API crash at a field that is not there."""
    words = (Word(0.0, 1.0, " Number", 0.9), Word(1.0, 2.0, " 0.", 0.8))
    segment = msgspec.structs.replace(builders.full_segment(0), words=words)
    assert json.loads(export(Transcript("Number 0.", "pt", 2.5, [segment]), "verbose_json")) == {
        "task": "transcribe",
        "language": "portuguese",
        "duration": 2.5,
        "text": "Number 0.",
        "segments": [
            {
                "id": 0,
                "seek": 0,
                "start": 0.0,
                "end": 2.0,
                "text": " Number 0.",
                "tokens": [50_364, 0],
                "temperature": 0.5,
                "avg_logprob": -0.25,
                "compression_ratio": 1.5,
                "no_speech_prob": 0.125,
            }
        ],
        "words": [
            {"word": "Number", "start": 0.0, "end": 1.0},
            {"word": "0.", "start": 1.0, "end": 2.0},
        ],
    }


def test_a_translation_is_english() -> None:
    """Otherwise a program takes the English text for that of the language that was spoken."""
    transcript = Transcript("Hi.", "de", 1.0, [], "translate")
    told = json.loads(export(transcript, "verbose_json"))
    assert (told["task"], told["language"]) == ("translate", "english")


def test_json_is_what_a_watcher_knows() -> None:
    """Otherwise a small answer grows by every token of the model."""
    transcript = Transcript("Number 1.", "en", 4.0, [builders.full_segment(1)])
    (segment,) = json.loads(export(transcript, "json"))["segments"]
    assert segment == {"id": 1, "start": 2.0, "end": 4.0, "text": " Number 1."}


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
        ("tsv", "start\tend\ttext\n"),
        ("lrc", ""),
        (
            "verbose_json",
            '{"task":"transcribe","language":"unknown","duration":2.0,"text":"","segments":[]}\n',
        ),
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


def test_the_names_of_the_formats_are_known_to_type_checkers() -> None:
    """Otherwise an editor offers a format that there is not, or misses one that there is."""
    assert get_args(Format) == tuple(FORMATS)


def test_files_of_different_formats_have_different_names() -> None:
    """Otherwise one overwrites the other."""
    assert len({file_ending(name) for name in FORMATS}) == len(FORMATS)
    assert file_ending("verbose_json") == "verbose.json"


# -- shapes ------------------------------------------------------------------------------------


SPEECH = spoken(" One two three four.", " Five six.")


def test_lines_are_broken_where_they_are_full() -> None:
    """Otherwise a subtitle is wider than the screen. That needs no times of words."""
    wide = make(" One two three four.", " Five six.")
    for transcript in (wide, SPEECH):
        exported = export(transcript, "srt", Shape(max_line_width=9))
        assert lines(exported) == [["One two", "three", "four."], ["Five six."]]
    assert times(exported) == ["00.0 --> 02.0", "02.0 --> 03.0"]


def test_cues_of_so_many_lines_go_on_over_the_ends_of_segments() -> None:
    """Otherwise a long segment covers the picture, and a short one flashes by."""
    exported = export(SPEECH, "srt", Shape(max_line_width=10, max_line_count=2))
    assert lines(exported) == [["One two", "three"], ["four. Five", "six."]]
    assert times(exported) == ["00.0 --> 01.5", "01.5 --> 03.0"]


def test_a_long_pause_ends_a_cue() -> None:
    """Otherwise a subtitle announces what is said a minute later."""
    before, after = spoken(" One two."), spoken(" Three.").segments[0]
    assert after.words
    words = tuple(Word(60.0, 60.5, word.word, 1.0) for word in after.words)
    later = Segment(1, 60.0, 60.5, after.text, words)
    transcript = Transcript("One two. Three.", "en", 61.0, [*before.segments, later])
    exported = export(transcript, "srt", Shape(max_line_width=40, max_line_count=2))
    assert lines(exported) == [["One two."], ["Three."]]


@pytest.mark.parametrize("name", ["srt", "vtt", "lrc"])
def test_a_cue_for_each_word(name: str) -> None:
    """Otherwise there is no karaoke."""
    exported = export(SPEECH, name, Shape(max_words_per_line=1))
    assert re.findall("[A-Za-z]+(?=[.]?$)", exported, re.MULTILINE) == (
        ["WEBVTT"] * (name == "vtt") + "One two three four Five six".split()
    )
    pairs = export(SPEECH, "srt", Shape(max_words_per_line=3))
    assert lines(pairs) == [["One two three"], ["four."], ["Five six."]]


def test_the_word_that_is_said_is_underlined() -> None:
    """Otherwise the reader loses the place; and nothing flickers between two words."""
    transcript = spoken(" Ah, <so>.")
    first, second = transcript.segments[0].words or ()
    late = msgspec.structs.replace(second, start=0.8)
    segment = msgspec.structs.replace(transcript.segments[0], words=(first, late))
    transcript = msgspec.structs.replace(transcript, segments=[segment])
    exported = export(transcript, "srt", Shape(highlight_words=True))
    assert lines(exported) == [["<u>Ah,</u> <so>."], ["Ah, <so>."], ["Ah, <u><so>.</u>"]]
    assert times(exported) == ["00.0 --> 00.5", "00.5 --> 00.8", "00.8 --> 01.0"]
    assert "Ah, <u>&lt;so&gt;.</u>" in export(transcript, "vtt", Shape(highlight_words=True))
    assert export(transcript, "lrc", Shape(highlight_words=True)) == "[00:00.00]Ah, <so>.\n"


def test_a_language_without_spaces_is_cut_too() -> None:
    """Otherwise a Japanese subtitle is one line over the whole screen and beyond."""
    text = "吾輩は猫である。名前はまだ無い。"
    assert lines(export(make(text), "srt", Shape(max_line_width=6))) == [
        ["吾輩は猫であ", "る。名前はま", "だ無い。"]
    ]
    words = tuple(Word(i * 0.25, i * 0.25 + 0.25, sign, 0.9) for i, sign in enumerate(text))
    transcript = Transcript(text, "ja", 4.0, [Segment(0, 0.0, 4.0, text, words)])
    shape = Shape(max_line_width=5, max_line_count=2)
    assert lines(export(transcript, "srt", shape)) == [
        ["吾輩は猫で", "ある。名前"],
        ["はまだ無い", "。"],
    ]


@pytest.mark.parametrize(
    "shape",
    [
        Shape(max_words_per_line=1),
        Shape(highlight_words=True),
        Shape(max_line_width=9, max_line_count=1),
    ],
)
def test_what_needs_the_times_of_words_says_so(shape: Shape) -> None:
    """Otherwise subtitles are cut at times that somebody made up, or silently not at all."""
    with pytest.raises(InvalidOption, match=f"^{shape.needs_words}: .*word_timestamps"):
        export(HELLO, "srt", shape)
    assert export(EMPTY, "srt", shape) == ""
    assert export(HELLO, "txt", shape) == export(HELLO, "txt"), "it has no cues"


def test_what_has_no_effect_is_refused() -> None:
    """Otherwise somebody wonders why subtitles are as before."""
    with pytest.raises(InvalidOption, match=r"^max_line_count: .*max_line_width"):
        Shape(max_line_count=2)


# -- what others read in it ----------------------------------------------------------------------

# What is hard to write so that others read it: arrows, markup, breaks, no spaces.
HARD = [
    "a --> b",
    "R&D <laugh> &lt;",
    "one\n\ntwo\u2028three",
    "00:00:01,000",
    "12",
    "吾輩は猫である",
]
SHAPES = [
    Shape(),
    Shape(max_line_width=8),
    Shape(max_words_per_line=1),
    Shape(highlight_words=True),
]


def said(text: str) -> str:
    """Return what a reader should see."""
    return " ".join(text.split())


def in_srt(exported: str) -> list[tuple[int, int, str]]:
    """Return the cues of a SubRip file as pysubs2 reads them."""
    events = pysubs2.SSAFile.from_string(exported, "srt", keep_html_tags=True)
    return [(event.start, event.end, event.text) for event in events]


def in_vtt(exported: str) -> list[tuple[int, int, str]]:
    """Return the cues of a WebVTT file as webvtt-py reads them, and a browser shows them."""
    return [
        (in_ms(*cue.start_time.to_tuple()), in_ms(*cue.end_time.to_tuple()), unescape(cue.raw_text))
        for cue in webvtt.from_string(exported).captions
    ]


def in_ms(hours: int, minutes: int, seconds: int, milliseconds: int) -> int:
    """Return a time in milliseconds."""
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds


@pytest.mark.parametrize("start", [0.0, 99 * 3600 + 3598.0], ids=["at once", "after 100 hours"])
def test_other_programs_read_what_was_said(start: float, tmp_path: Path) -> None:
    """Otherwise a subtitle is right by our own rules only."""
    transcript = make(*HARD, start=start)
    vtt, srt = export(transcript, "vtt"), export(transcript, "srt")
    cues = [
        (round(1000 * each.start), round(1000 * each.end), said(each.text))
        for each in transcript.segments
    ]
    assert in_vtt(vtt) == cues
    if not start:  # pysubs2 knows two digits for the hours
        assert in_srt(srt) == [(0, 1500, "a -> b"), *cues[1:]]
    for name, exported in (("srt", srt), ("vtt", vtt)):
        path = tmp_path / f"subtitles.{name}"
        path.write_text(exported, "utf-8")
        assert probe(path) == [(each.start, 1.5) for each in transcript.segments]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(msgspec.to_builtins(shape)))
def test_other_programs_read_every_shape(shape: Shape, tmp_path: Path) -> None:
    """Otherwise subtitles are only right as long as nobody shapes them."""
    transcript = spoken(" One -- > two <three> & four.", " Five six seven.")
    srt, vtt = in_srt(export(transcript, "srt", shape)), in_vtt(export(transcript, "vtt", shape))
    assert [cue[:2] for cue in srt] == [cue[:2] for cue in vtt]
    assert [text.replace("\\N", "\n") for *_, text in srt] == [text for *_, text in vtt]
    for name in ("srt", "vtt", "lrc"):
        path = tmp_path / f"subtitles.{name}"
        path.write_text(export(transcript, name, shape), "utf-8")
        assert len(probe(path)) == (len(srt) if name != "lrc" or not shape.highlight_words else 2)


@given(st.lists(st.text("a-> \n\r<&;é你\u2028\t#").filter(str.strip), max_size=5))
def test_any_text_is_read_by_other_programs(texts: list[str]) -> None:
    """Otherwise one odd sentence makes a player lose the rest of the film."""
    transcript = make(*texts)
    assert [text for *_, text in in_vtt(export(transcript, "vtt"))] == list(map(said, texts))
    read = [text for *_, text in in_srt(export(transcript, "srt"))]
    assert read == [re.sub("-{2,}>", "->", said(text)) for text in texts]


def probe(path: Path) -> list[tuple[float, float]]:
    """Return start and duration of each subtitle that FFmpeg finds in a file."""
    arguments = ["-v", "error", "-show_entries", "packet=pts_time,duration_time", "-of", "json"]
    run = subprocess.run(
        ["ffprobe", *arguments, path], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stderr == ""
    packets = json.loads(run.stdout)["packets"]
    return [(float(each["pts_time"]), float(each["duration_time"])) for each in packets]
