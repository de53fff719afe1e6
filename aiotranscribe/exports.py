"""A transcript as the files that people use. Pure."""

import re
from collections.abc import Callable, Iterable

import msgspec

from aiotranscribe.errors import InvalidOption
from aiotranscribe.transcript import Segment, Transcript


def to_txt(transcript: Transcript) -> str:
    """One line a segment."""
    return "".join(f"{_line(segment)}\n" for segment in transcript.segments)


def to_srt(transcript: Transcript) -> str:
    """SubRip: numbered cues, times with a comma."""
    return "".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{_cue_text(cue)}\n\n"
        for number, cue in enumerate(transcript.segments, 1)
    )


def to_vtt(transcript: Transcript) -> str:
    """WebVTT, in which ``&`` and ``<`` begin markup and so are escaped (W3C WebVTT, 4.2.2)."""
    return "WEBVTT\n\n" + "".join(_vtt_cues(transcript.segments))


def to_json(transcript: Transcript) -> str:
    """Everything we know."""
    return msgspec.json.encode(transcript).decode() + "\n"


#: Format name -> (media type, function).
FORMATS: dict[str, tuple[str, Callable[[Transcript], str]]] = {
    "txt": ("text/plain", to_txt),
    "srt": ("application/x-subrip", to_srt),
    "vtt": ("text/vtt", to_vtt),
    "json": ("application/json", to_json),
}


def export(transcript: Transcript, name: str) -> str:
    """Return ``transcript`` in the format ``name``.

    Raises:
        InvalidOption: there is no such format.
    """
    return FORMATS[check_format(name)][1](transcript)


def check_format(name: str) -> str:
    """Return ``name`` if it is a format; otherwise raise :class:`InvalidOption`."""
    if name not in FORMATS:
        raise InvalidOption(f"format: there is no {name!r}, only {', '.join(FORMATS)}")
    return name


def clock(seconds: float) -> str:
    """Return a time for people: ``22:30``, ``1:00:00``."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


def _vtt_cues(segments: Iterable[Segment]) -> Iterable[str]:
    for cue in segments:
        text = _cue_text(cue).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{text}\n\n"


def _cue_text(segment: Segment) -> str:
    """The text on one line; an arrow would read as a cue's times, so it is broken up."""
    return re.sub("-{2,}>", "->", _line(segment))


def _line(segment: Segment) -> str:
    """The text on one line."""
    return " ".join(segment.text.split())


def _time(seconds: float, mark: str) -> str:
    """``hh:mm:ss.mmm``, with more digits for the hours when there are over 99."""
    total_ms = round(seconds * 1000)
    minutes, ms = divmod(total_ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{mark}{ms % 1000:03}"
