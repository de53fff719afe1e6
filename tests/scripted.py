"""A model that says what it is told to: the only thing that a test may replace.

The script travels as JSON in the option ``initial_prompt``, since that is what reaches the
worker; see `Script` for what it can hold.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from aiotranscribe.engine.messages import Recognised
from aiotranscribe.engine.spans import SAMPLE_RATE, Floats
from aiotranscribe.engine.whisper import Clip, Settings
from aiotranscribe.errors import ModelNotAvailable
from aiotranscribe.job import Options
from aiotranscribe.transcript import FullSegment


class Script(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the model does with each span."""

    #: How many segments it recognises, evenly spread over the span.
    segments: int = 2
    #: Seconds of sleep before each segment, in which it hears nothing, as in a long window.
    delay: float = 0.0
    #: Kill the worker with SIGKILL before this segment.
    die_at: int | None = None
    #: ...but only while this file does not exist; it is made just before.
    once: str | None = None
    #: Raise before this segment.
    fail_at: int | None = None
    #: Seconds to sleep in one piece at the beginning.
    hang: float = 0.0
    #: How many characters to lengthen each segment by.
    padding: int = 0
    #: End each segment with the number of the worker's process.
    is_signed: bool = False

    def options(self, **more: object) -> Options:
        """Return the options of a job that follows this script."""
        return msgspec.convert(self.fields() | more, Options, strict=False)

    def fields(self) -> dict[str, str]:
        """Return these options as a form or a query has them."""
        return {"initial_prompt": msgspec.json.encode(self).decode(), "vad_filter": "false"}


class ScriptedModel:
    """Follows the script that comes with each job."""

    def __init__(self, *, is_multilingual: bool, delay: float = 0.0) -> None:
        self.is_multilingual = is_multilingual
        self._delay = delay

    def detect_language(self, samples: Floats) -> str:
        """Everybody speaks Portuguese."""
        time.sleep(self._delay)
        return "pt"

    def transcribe(self, clips: Sequence[Clip], options: Options) -> Iterator[Recognised]:
        """Yield the script's segments; their text tells where and in what language."""
        script = msgspec.json.decode(options.initial_prompt or "{}", type=Script)
        time.sleep(script.hang)
        for clip in clips:
            span, length = clip.span, len(clip.samples) / SAMPLE_RATE
            step = max(1, round(100 * length / script.segments))
            for number in range(span.seek // step, script.segments):
                time.sleep(script.delay)
                self._misbehave(script, number)
                begin, end = span.time(number * step / 100), span.time((number + 1) * step / 100)
                text = f" {options.language} {begin:.1f}." + "x" * script.padding
                text += f" {os.getpid()}" * script.is_signed
                segment = FullSegment(0, begin, end, text)
                is_last = number == script.segments - 1
                yield Recognised(span.index, (segment,), (number + 1) * step, is_last)

    def _misbehave(self, script: Script, number: int) -> None:
        if number == script.die_at and not (script.once and Path(script.once).exists()):
            if script.once:
                Path(script.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == script.fail_at:
            raise RuntimeError("as the script says")


def load(name: str, settings: Settings, tell: Callable[[float], None]) -> ScriptedModel:
    """Load a scripted model.

    The name ``missing`` cannot be loaded, ``fatal`` ends the worker after a moment, ``slow`` takes
    its time to be loaded and to detect the language.
    """
    if name == "missing":
        raise ModelNotAvailable("there is no model 'missing'; run something")
    delay = 0.3 if name in {"fatal", "slow"} else 0.0
    time.sleep(delay)
    if name == "fatal":
        os._exit(3)
    return ScriptedModel(is_multilingual=not name.endswith(".en"), delay=delay)
