"""faster-whisper, decoding several spans in lock-step.

One window of one recording leaves a core waiting for memory. Several windows together read the
model's weights once for all of them, and an encoder that sees only as much as there is to hear
does not compute half a minute of padding. Measured in ``benchmarks/README.md``.

Window by window everything is upstream's: prompt, timestamps, seeking, the checks of the result
and the climb of temperatures when they fail. Text before the window is not given to the model:
it costs speed, and cost no words. ``parallel=off`` leaves the whole recording to upstream.
"""

import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from aiotranscribe.engine import memory
from aiotranscribe.engine.messages import Recognised
from aiotranscribe.engine.model import locate
from aiotranscribe.engine.spans import Floats, Span
from aiotranscribe.errors import InvalidOption, ModelNotAvailable
from aiotranscribe.job import EVERYTHING, Options
from aiotranscribe.transcript import FullSegment, Word

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer
    from faster_whisper.transcribe import TranscriptionOptions

# The encoder hears the speech and this much padding, in frames of 10 ms, rounded up to one of these
# lengths; trained on half a minute of anything, it does well with less. The length depends on the
# window alone, not on the company it is decoded in, so that doing work again gives the same words.
_PADDING, _LENGTHS = 100, (700, 1100, 1500, 1900, 2300, 3000)
# Less than this after the last timestamp is the rest of a pause, not of a sentence.
_REST = 30
# faster-whisper's own thresholds and temperatures.
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_MOST_COMPRESSED, _LEAST_LOGPROB, _NO_SPEECH = 2.4, -1.0, 0.6
# Its names for what they are compared with.
_MEASURES = "avg_logprob", "compression_ratio", "no_speech_prob"
# Samples taken at once; all five of upstream need 60 MB more and save a tenth of a second.
_SAMPLES = 3


class Settings(msgspec.Struct, frozen=True):
    """How a worker computes."""

    device: str
    compute_type: str
    threads: int


@dataclass(frozen=True, slots=True)
class Clip:
    """A span and its sound: float32, shape (n,), mono, 16 kHz, in [-1, 1], without its gaps."""

    span: Span
    samples: Floats


class Model(Protocol):
    """What a worker needs of a speech model. Tests script one."""

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows more than English."""

    def detect_language(self, samples: Floats) -> str:
        """Return the code of the language spoken in ``samples``."""

    def transcribe(self, clips: Sequence[Clip], options: Options) -> Iterator[Recognised]:
        """Yield what is recognised, window by window, each span's in order.

        Args:
            clips: Spans of one recording, each to be decoded from its ``seek`` on. The times of
                the segments are the recording's.
            options: With the language filled in.
        """


@dataclass(slots=True)
class _Window:
    """Where the decoding of one clip is."""

    span: Span
    #: Log-mel spectrogram, float32, shape (mels, frames of 10 ms).
    features: Floats
    #: The first frame that is not decoded yet.
    seek: int

    @property
    def frames(self) -> int:
        """Frames in all; upstream's extractor adds one of padding."""
        return len(self.features[0]) - 1

    @property
    def is_done(self) -> bool:
        """Whether nothing is left that could be speech."""
        return self.seek >= self.frames - _REST


class Whisper:
    """A faster-whisper model.

    Args:
        name: See :func:`aiotranscribe.engine.model.locate`.
        settings: How to compute.
        tell: Is told how much of the model is downloaded, 0 to 1.

    Raises:
        ModelNotAvailable: it cannot be had or cannot be loaded.
    """

    def __init__(
        self, name: str, settings: Settings, tell: Callable[[float], None] = lambda _: None
    ) -> None:
        from faster_whisper import WhisperModel  # noqa: PLC0415 - slow, and only in workers
        from tqdm import tqdm  # noqa: PLC0415

        # Its own lock is a semaphore between processes, which `os._exit` would leave behind.
        tqdm.set_lock(threading.RLock())
        path = locate(name, tell)
        try:
            self._model = WhisperModel(
                str(path),
                device=settings.device,
                compute_type=_compute_type(settings),
                cpu_threads=settings.threads,
            )
        except (RuntimeError, ValueError, OSError) as error:
            text = f"the model {name!r} in {path} cannot be used: {error}"
            raise ModelNotAvailable(text) from error

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows more than English."""
        return bool(self._model.model.is_multilingual)

    def detect_language(self, samples: Floats) -> str:
        """Return the code of the language spoken in the first half minute."""
        language, _, _ = self._model.detect_language(samples)
        return str(language)

    def transcribe(self, clips: Sequence[Clip], options: Options) -> Iterator[Recognised]:
        """Yield what is recognised, window by window; see :meth:`Model.transcribe`."""
        if not self.is_multilingual and (options.task == "translate" or options.language != "en"):
            raise InvalidOption("language, task: this model only understands English")
        if options.parallel == "off":
            yield from self._as_upstream(clips, options)
            return
        tokenizer, settings = self._settings(options)
        extract = self._model.feature_extractor
        windows = [_Window(clip.span, extract(clip.samples), clip.span.seek) for clip in clips]
        while windows:
            for window, encoded, result in self._decode(windows, tokenizer, settings):
                segments = tuple(self._cut(window, encoded, result, tokenizer, settings))
                yield Recognised(window.span.index, segments, window.seek, window.is_done)
            windows = [window for window in windows if not window.is_done]

    def _decode(
        self, windows: Sequence[_Window], tokenizer: "Tokenizer", settings: "TranscriptionOptions"
    ) -> Iterator[tuple[_Window, Any, "_Result"]]:
        """Decode the next window of every span; those of one length together.

        Yields:
            For each what the encoder made of it, and the result.
        """
        by_length: dict[int, list[_Window]] = {}
        for window in windows:
            needed = window.frames - window.seek + _PADDING
            length = next((length for length in _LENGTHS if length >= needed), _LENGTHS[-1])
            by_length.setdefault(length, []).append(window)
        prompt = self._prompt(tokenizer, settings)
        for length, together in by_length.items():
            outputs = [self._encode(window, length) for window in together]
            generated = self._generate(outputs, prompt, settings, settings.temperatures[0])
            for window, output, rough in zip(together, outputs, generated, strict=True):
                result = _Result.of(rough, settings.temperatures[0], tokenizer)
                if result.looks_wrong:
                    yield window, *self._decode_again(window, prompt, tokenizer, settings)
                else:
                    yield window, output, result

    def _decode_again(
        self,
        window: _Window,
        prompt: list[int],
        tokenizer: "Tokenizer",
        settings: "TranscriptionOptions",
    ) -> tuple[Any, "_Result"]:
        """Decode a window as upstream does: half a minute of input, rising temperatures.

        Upstream's own function takes all samples at once; see ``_generate``.
        """
        # This takes more at once than all else, and would find no hole that is large enough.
        memory.give_back()
        output = self._encode(window, _LENGTHS[-1])
        results = []
        for temperature in settings.temperatures:
            memory.give_back()
            (generated,) = self._generate([output], prompt, settings, temperature)
            result = _Result.of(generated, temperature, tokenizer)
            if not result.looks_wrong:
                return output, result
            results.append(result)
        plain = [result for result in results if result.compression <= _MOST_COMPRESSED]
        return output, max(plain or results, key=lambda result: result.logprob)

    def _generate(
        self,
        outputs: Sequence[Any],
        prompt: list[int],
        settings: "TranscriptionOptions",
        temperature: float,
    ) -> list[Any]:
        """Search, or take samples, and return the best result for each window.

        Samples are taken a few at a time, since each has a copy of what the decoder keeps of the
        sound: 31 MB for half a minute. (A beam shares one.)
        """
        searches = [{"beam_size": settings.beam_size, "patience": settings.patience}]
        if temperature:
            sample = {"beam_size": 1, "sampling_topk": 0, "sampling_temperature": temperature}
            counts = range(settings.best_of, 0, -_SAMPLES)
            searches = [sample | {"num_hypotheses": min(_SAMPLES, count)} for count in counts]
        together = _together(outputs)
        tries = [
            self._model.model.generate(
                together,
                [prompt] * len(outputs),
                max_length=self._model.max_length,
                return_scores=True,
                return_no_speech_prob=True,
                suppress_blank=settings.suppress_blank,
                suppress_tokens=settings.suppress_tokens,
                max_initial_timestamp_index=round(
                    settings.max_initial_timestamp / self._model.time_precision
                ),
                **search,
            )
            for search in searches
        ]
        return [max(each, key=lambda result: result.scores[0]) for each in zip(*tries, strict=True)]

    def _prompt(self, tokenizer: "Tokenizer", settings: "TranscriptionOptions") -> list[int]:
        """The same for every window, so that they can be decoded together."""
        before = settings.initial_prompt
        tokens = tokenizer.encode(f" {before.strip()}") if isinstance(before, str) else []
        prompt: list[int] = self._model.get_prompt(tokenizer, tokens, hotwords=settings.hotwords)
        return prompt

    def _encode(self, window: _Window, length: int) -> Any:
        from faster_whisper.audio import pad_or_trim  # noqa: PLC0415

        end = min(window.seek + length, window.frames)
        return self._model.encode(pad_or_trim(window.features[:, window.seek : end], length))

    def _cut(
        self,
        window: _Window,
        encoded: Any,
        result: "_Result",
        tokenizer: "Tokenizer",
        settings: "TranscriptionOptions",
    ) -> Iterator[FullSegment]:
        """Turn a window's tokens into segments, and move the window to where they end."""
        seek = window.seek
        size = min(self._model.feature_extractor.nb_max_frames, window.frames - seek)
        if result.is_silence:
            window.seek += size
            return
        rows, window.seek, _ = self._model._split_segments_by_timestamps(
            tokenizer=tokenizer,
            tokens=result.tokens,
            time_offset=seek / 100,
            segment_size=size,
            segment_duration=size / 100,
            seek=seek,
        )
        if window.seek <= seek:  # a timestamp of 0 would bring us here again for ever
            window.seek = seek + size
        if settings.word_timestamps:
            self._model.add_word_timestamps(
                [rows],
                tokenizer,
                encoded,
                size,
                settings.prepend_punctuations,
                settings.append_punctuations,
                last_speech_timestamp=seek / 100,
            )
        for row in rows:
            text = tokenizer.decode(row["tokens"])
            if row["start"] != row["end"] and text.strip():
                yield _segment(row | {"text": text} | result.measures(), window.span)

    def _as_upstream(self, clips: Sequence[Clip], options: Options) -> Iterator[Recognised]:
        """Leave everything to upstream, span by span."""
        for clip in clips:
            span, arguments = clip.span, _upstream(options)
            segments: Iterable[Any] = ()
            # What is left of the clips, when going on after a dead worker.
            begin = span.seek / 100
            left = [(max(start, begin), end) for start, end in options.clips if end > begin]
            if left != [*EVERYTHING]:
                arguments["clip_timestamps"] = [edge for edges in left for edge in edges]
            if left:
                segments, _ = self._model.transcribe(
                    clip.samples, vad_filter=options.vad_filter, **arguments
                )
            for row in segments:
                segment = _segment(dataclasses.asdict(row), span)
                yield Recognised(span.index, (segment,), round(row.end * 100), is_done=False)
            yield Recognised(span.index, (), round(span.length * 100), is_done=True)

    def _settings(self, options: Options) -> tuple["Tokenizer", "TranscriptionOptions"]:
        """What upstream's own functions want to know: its defaults, but for what is asked."""
        from faster_whisper.tokenizer import Tokenizer  # noqa: PLC0415
        from faster_whisper.transcribe import (  # noqa: PLC0415
            TranscriptionOptions,
            WhisperModel,
            get_suppressed_tokens,
        )

        tokenizer = Tokenizer(
            self._model.hf_tokenizer,
            self.is_multilingual,
            task=options.task,
            language=options.language,
        )
        given = _upstream(options)
        parameters = inspect.signature(WhisperModel.transcribe).parameters.values()
        values = {parameter.name: parameter.default for parameter in parameters} | given
        values["temperatures"] = given.get("temperature", _TEMPERATURES)
        values["suppress_tokens"] = get_suppressed_tokens(tokenizer, [-1])
        fields = TranscriptionOptions.__dataclass_fields__
        return tokenizer, TranscriptionOptions(**{name: values[name] for name in fields})


@dataclass(frozen=True, slots=True)
class _Result:
    """What the model made of one window, and upstream's measures of how good it is."""

    tokens: list[int]
    temperature: float
    logprob: float
    compression: float
    no_speech: float

    @classmethod
    def of(cls, result: Any, temperature: float, tokenizer: "Tokenizer") -> "_Result":
        from faster_whisper.transcribe import get_compression_ratio  # noqa: PLC0415

        tokens = result.sequences_ids[0]
        logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
        compression = get_compression_ratio(tokenizer.decode(tokens).strip())
        return cls(tokens, temperature, logprob, compression, result.no_speech_prob)

    def measures(self) -> dict[str, float]:
        """Return what holds for all of the window's segments, under upstream's names."""
        values = self.temperature, self.logprob, self.compression, self.no_speech
        return dict(zip(("temperature", *_MEASURES), values, strict=True))

    @property
    def is_silence(self) -> bool:
        """Whether nobody speaks here."""
        return self.no_speech > _NO_SPEECH and self.logprob < _LEAST_LOGPROB

    @property
    def looks_wrong(self) -> bool:
        """Whether it repeats itself, or the model itself does not believe it."""
        is_doubtful = self.compression > _MOST_COMPRESSED or self.logprob < _LEAST_LOGPROB
        return is_doubtful and not self.is_silence


def _together(encoded: Sequence[Any]) -> Any:
    """Join the encoder's outputs of several windows. Encoding them at once is slower."""
    if len(encoded) == 1:
        return encoded[0]
    import ctranslate2  # noqa: PLC0415 - slow, and only in workers

    return ctranslate2.StorageView.from_array(np.concatenate([np.array(one) for one in encoded]))


def _segment(row: Mapping[str, Any], span: Span) -> FullSegment:
    """A segment with times of the recording, from upstream's with times of the span's sound."""
    timed = tuple(
        Word(
            span.time(word["start"]),
            span.time(word["end"], is_end=True),
            word["word"],
            round(float(word["probability"]), 3),
        )
        for word in row.get("words") or ()
    )
    return FullSegment(
        0,
        span.time(row["start"]),
        span.time(row["end"], is_end=True),
        row["text"],
        timed or None,
        seek=round(100 * span.time(row["seek"] / 100)),
        tokens=tuple(row["tokens"]),
        temperature=row["temperature"],
        **{name: round(row[name], 4) for name in _MEASURES},
    )


def _upstream(options: Options) -> dict[str, Any]:
    """The arguments of upstream's ``transcribe``; what is left out has its default."""
    arguments: dict[str, Any] = {
        "language": options.language,
        "task": options.task,
        "beam_size": options.beam_size,
        "word_timestamps": options.word_timestamps,
        "initial_prompt": options.initial_prompt,
        "hotwords": options.hotwords,
    }
    if options.temperature is not None:
        arguments["temperature"] = [options.temperature]
    if options.condition_on_previous_text is not None:
        arguments["condition_on_previous_text"] = options.condition_on_previous_text
    return arguments


def _compute_type(settings: Settings) -> str:
    """Turn ``auto`` into the fastest that keeps the words: int8 on a CPU."""
    if settings.compute_type != "auto":
        return settings.compute_type
    import ctranslate2  # noqa: PLC0415 - slow, and only in workers

    has_gpu = settings.device != "cpu" and ctranslate2.get_cuda_device_count() > 0
    return "auto" if has_gpu else "int8"
