"""What crosses between the server and a worker process: plain data, nothing shared. Pure.

Down goes a piece of work, one at a time. Up come messages about it, in order, and exactly one
:data:`Ended` message last.
"""

import msgspec

from aiotranscribe.engine.spans import Span
from aiotranscribe.errors import Problem
from aiotranscribe.job import Options, Step
from aiotranscribe.transcript import FullSegment


class Load(msgspec.Struct, frozen=True, tag=True):
    """Work: have this model ready. Every new worker gets it first."""

    model: str


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Work: decode a recording to PCM and cut it into spans."""

    job_id: str
    recording: str
    pcm: str
    options: Options
    #: A recording that is longer is given up.
    most_s: float | None = None


class Transcribe(msgspec.Struct, frozen=True, tag=True):
    """Work: transcribe some spans of the PCM, in lock-step."""

    job_id: str
    pcm: str
    spans: tuple[Span, ...]
    #: With the model and, once it is known, the language filled in.
    options: Options


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Work: give the model's memory back."""


Work = Load | Unload | Prepare | Transcribe


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The worker process is up."""

    pid: int


class Entered(msgspec.Struct, frozen=True, tag=True):
    """The work at hand has come to this step."""

    step: Step


class Downloaded(msgspec.Struct, frozen=True, tag=True):
    """So much of the model is here, 0 to 1."""

    share: float


class Decoded(msgspec.Struct, frozen=True, tag=True):
    """So many seconds are decoded, of so many (as far as the recording tells)."""

    seconds: float
    duration: float | None
    #: Which share of the recording's bytes that is, 0 to 1.
    share: float = 0.0


class SpanFound(msgspec.Struct, frozen=True, tag=True):
    """A span is certain and its PCM is on disk."""

    span: Span


class LanguageFound(msgspec.Struct, frozen=True, tag=True):
    """The recording's language was detected."""

    language: str


class Recognised(msgspec.Struct, frozen=True, tag=True):
    """A window of a span is decoded. What a window says comes whole or not at all."""

    #: The span's index.
    span: int
    #: Their ``id`` means nothing yet.
    segments: tuple[FullSegment, ...]
    #: How much of the span is decoded now, in frames of 10 ms.
    seek: int
    #: Whether that is all of it.
    is_done: bool


class Done(msgspec.Struct, frozen=True, tag=True):
    """The work is done. Ends it."""


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The whole recording is decoded, so many seconds. Ends the work."""

    duration: float


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """The work was given up because the server said so. Ends it."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The work cannot be done. Ends it."""

    error: Problem


class Died(msgspec.Struct, frozen=True, tag=True):
    """The worker process ended; sent by the pool in its place. Ends the work."""

    error: Problem
    #: Whether it had begun the work: if not, the work is not at fault.
    has_begun: bool = True


Ended = Done | Prepared | Stopped | Failed | Died
Message = Hello | Entered | Downloaded | Decoded | SpanFound | LanguageFound | Recognised | Ended

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode
