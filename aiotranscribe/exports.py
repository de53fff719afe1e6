"""A transcript as the files that people use. Pure.

The writers are our own because those of the libraries do not escape what is said, or end at a
hundred hours; the tests read everything back with the libraries.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from aiotranscribe.errors import InvalidOption
from aiotranscribe.job import LANGUAGES
from aiotranscribe.transcript import Segment, Transcript, Word

# A pause as long as this ends a cue that goes on from one segment to the next; whisper's own.
_PAUSE_S = 3.0
_Count = Annotated[int, Meta(ge=1, le=1000)]


class Shape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How ``srt``, ``vtt`` and ``lrc`` cut the text; the names are the whisper command line's.

    As it is, a segment is a cue. All but ``max_line_width`` need the times of words, so the job's
    option ``word_timestamps``.
    """

    #: Break lines that have more characters.
    max_line_width: _Count | None = None
    #: Lines of a cue at most; cues may then go on from one segment to the next. Only together with
    #: ``max_line_width``.
    max_line_count: _Count | None = None
    #: Words of a cue at most; 1 makes a cue of each word.
    max_words_per_line: _Count | None = None
    #: Underline each word while it is said; not in ``lrc``.
    highlight_words: bool = False

    def __post_init__(self) -> None:
        """Refuse what would have no effect."""
        if self.max_line_count and not self.max_line_width:
            raise InvalidOption("max_line_count: has no effect without max_line_width")

    @property
    def needs_words(self) -> str | None:
        """The first of its options that takes the times of words, if any does."""
        names = ("max_line_count", "max_words_per_line", "highlight_words")
        return next((name for name in names if getattr(self, name)), None)


Format = Literal["txt", "srt", "vtt", "tsv", "lrc", "json", "verbose_json"]
#: A cue for each segment.
PLAIN = Shape()


class VerboseSegment(msgspec.Struct, frozen=True):
    """A segment as OpenAI's API has it; see :class:`~aiotranscribe.transcript.FullSegment`."""

    id: int
    start: float
    end: float
    text: str
    seek: int = 0
    tokens: Sequence[int] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0


class VerboseWord(msgspec.Struct, frozen=True):
    """A word as OpenAI's API has it."""

    word: str
    start: float
    end: float


class Verbose(msgspec.Struct, frozen=True):
    """A transcript as OpenAI's API has it: ``verbose_json``."""

    task: Literal["transcribe", "translate"]
    #: The English name of the language of the text; ``unknown`` when nothing was said.
    language: str
    duration: float
    text: str
    segments: Sequence[VerboseSegment] | UnsetType = UNSET
    words: Sequence[VerboseWord] | UnsetType = UNSET


def verbose(transcript: Transcript) -> Verbose:
    """Return a transcript as OpenAI's API has it, with words if they have times."""
    language = "en" if transcript.task == "translate" else transcript.language
    words = [
        VerboseWord(word.word.strip(), word.start, word.end)
        for segment in transcript.segments
        for word in segment.words or ()
    ]
    return Verbose(
        transcript.task,
        LANGUAGES.get(language or "", "unknown"),
        transcript.duration or 0.0,
        transcript.text,
        msgspec.convert(transcript.segments, list[VerboseSegment], from_attributes=True),
        words or UNSET,
    )


def to_txt(transcript: Transcript, shape: Shape = PLAIN) -> str:
    """One line a segment."""
    return "".join(f"{_line(segment.text)}\n" for segment in transcript.segments)


def to_srt(transcript: Transcript, shape: Shape = PLAIN) -> str:
    """SubRip: numbered cues, times with a comma."""
    return "".join(
        f"{number}\n{_time(start, ',')} --> {_time(end, ',')}\n{text}\n\n"
        for number, (start, end, text) in enumerate(_cues(transcript, shape), 1)
    )


def to_vtt(transcript: Transcript, shape: Shape = PLAIN) -> str:
    """WebVTT, in which ``&`` and ``<`` begin markup and so are escaped (W3C WebVTT, 4.2.2)."""
    return "WEBVTT\n\n" + "".join(
        f"{_time(start, '.')} --> {_time(end, '.')}\n{text}\n\n"
        for start, end, text in _cues(transcript, shape, _escape)
    )


def to_tsv(transcript: Transcript, shape: Shape = PLAIN) -> str:
    """A table with times in whole milliseconds, as whisper writes it."""
    return "start\tend\ttext\n" + "".join(
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{_line(segment.text)}\n"
        for segment in transcript.segments
    )


def to_lrc(transcript: Transcript, shape: Shape = PLAIN) -> str:
    """Lyrics: each line with the minutes and seconds at which it begins."""
    cues = _cues(transcript, msgspec.structs.replace(shape, highlight_words=False))
    lines = []
    for start, _, text in cues:
        minutes, hundredths = divmod(round(start * 100), 6000)
        lines.append(f"[{minutes:02}:{hundredths // 100:02}.{hundredths % 100:02}]{_line(text)}\n")
    return "".join(lines)


def to_json(transcript: Transcript, shape: Shape = PLAIN) -> str:
    """What a watcher knows, in one piece."""
    segments = [segment.brief() for segment in transcript.segments]
    return _json(msgspec.structs.replace(transcript, segments=segments))


def to_verbose_json(transcript: Transcript, shape: Shape = PLAIN) -> str:
    """What the model said about each segment too, as OpenAI's API has it."""
    return _json(verbose(transcript))


#: Format name -> (media type, function).
FORMATS: dict[str, tuple[str, Callable[[Transcript, Shape], str]]] = {
    "txt": ("text/plain", to_txt),
    "srt": ("application/x-subrip", to_srt),
    "vtt": ("text/vtt", to_vtt),
    "tsv": ("text/tab-separated-values", to_tsv),
    "lrc": ("text/plain", to_lrc),
    "json": ("application/json", to_json),
    "verbose_json": ("application/json", to_verbose_json),
}


def export(transcript: Transcript, name: str, shape: Shape = PLAIN) -> str:
    """Return ``transcript`` in the format ``name``.

    Raises:
        InvalidOption: there is no such format, or ``shape`` needs words that have no times.
    """
    if name not in FORMATS:
        raise InvalidOption(f"format: there is no {name!r}, only {', '.join(FORMATS)}")
    return FORMATS[name][1](transcript, shape)


def file_ending(name: str) -> str:
    """Return how the names of files of the format ``name`` end."""
    return name.replace("_", ".")


def clock(seconds: float) -> str:
    """Return a time for people: ``22:30``, ``1:00:00``."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


def _cues(
    transcript: Transcript, shape: Shape, escape: Callable[[str], str] = str
) -> Iterator[tuple[float, float, str]]:
    """Yield start, end and text of every cue."""
    for lines in _cut(transcript.segments, shape):
        words = [word for line in lines for word in line]
        if not shape.highlight_words:
            yield words[0].start, words[-1].end, _show(lines, escape)
            continue
        now = words[0].start
        for word in words:
            if word.start > now:
                yield now, word.start, _show(lines, escape)
                now = word.start
            yield now, max(now, word.end), _show(lines, escape, word)
            now = max(now, word.end)


def _cut(segments: Sequence[Segment], shape: Shape) -> Iterator[list[list[Word]]]:
    """Yield cues: lists of lines, which are lists of words."""
    if (name := shape.needs_words) and segments and not any(each.words for each in segments):
        raise InvalidOption(
            f"{name}: the times of the words are not known; transcribe with word_timestamps"
        )
    width = shape.max_line_width or math.inf
    lines: list[list[Word]] = []
    for segment in segments:
        for number, word in enumerate(_words(segment, shape)):
            is_full = bool(lines) and _width([*lines[-1], word]) > width
            if not lines or _begins_cue(lines, word, shape, is_full=is_full, is_first=not number):
                if lines:
                    yield lines
                lines = [[word]]
            elif is_full:
                lines.append([word])
            else:
                lines[-1].append(word)
    if lines:
        yield lines


def _begins_cue(
    lines: list[list[Word]], word: Word, shape: Shape, *, is_full: bool, is_first: bool
) -> bool:
    """Whether the word after these lines needs a cue of its own.

    Args:
        lines: The cue so far.
        word: What comes next.
        shape: What is asked for.
        is_full: Whether the word does not fit into the last line.
        is_first: Whether a segment begins with it.
    """
    if shape.max_words_per_line and sum(map(len, lines)) >= shape.max_words_per_line:
        return True
    if shape.max_line_count is None:
        return is_first
    has_paused = word.start - lines[-1][-1].end > _PAUSE_S
    return has_paused or (is_full and len(lines) >= shape.max_line_count)


def _words(segment: Segment, shape: Shape) -> Sequence[Word]:
    """The words with their times if these are needed, else pieces of the segment with its times.

    What is longer than a line is cut where the line is full: some languages have no spaces.
    """
    if shape.needs_words and segment.words:
        return [word for word in segment.words if word.word.strip()]
    width = shape.max_line_width
    pieces = re.findall(rf"\s*\S{{1,{width}}}", segment.text) if width else [segment.text]
    return [Word(segment.start, segment.end, piece, 1.0) for piece in pieces if piece.strip()]


def _width(line: Sequence[Word]) -> int:
    return len(_line("".join(word.word for word in line)))


def _show(
    lines: Sequence[Sequence[Word]], escape: Callable[[str], str], marked: Word | None = None
) -> str:
    """The text of a cue; an arrow in it would read as a cue's times, so it is broken up."""
    texts = []
    for line in lines:
        words = [
            re.sub(r"\S+", r"<u>\g<0></u>", escape(word.word))
            if word is marked
            else escape(word.word)
            for word in line
        ]
        texts.append(_line("".join(words)))
    return re.sub("-{2,}>", "->", "\n".join(texts))


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _line(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def _time(seconds: float, mark: str) -> str:
    """``hh:mm:ss.mmm``, with more digits for the hours when there are over 99."""
    total_ms = round(seconds * 1000)
    minutes, ms = divmod(total_ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{mark}{ms % 1000:03}"


def _json(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode() + "\n"
