"""The worker process: one piece of work after the other, every event told at once.

Only this side of the pipe touches recordings and models. faster-whisper is imported when a
model is loaded or speech is looked for, never by the server.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from aiotranscribe.engine import audio, messages
from aiotranscribe.engine.messages import Entered, Load, Message, Prepare, Transcribe, Work
from aiotranscribe.engine.model import locate
from aiotranscribe.engine.spans import FRAME_SAMPLES, SAMPLE_RATE, Cutter, Floats
from aiotranscribe.errors import AiotranscribeError, ModelNotAvailable, Problem
from aiotranscribe.job import Options, Step
from aiotranscribe.transcript import Segment, Word

log = logging.getLogger(__name__)

# Decoded audio is looked at in blocks of this many samples, about eight seconds: a whole
# number of the VAD's frames, large enough to be cheap, small enough to hear "stop" soon.
_BLOCK_SAMPLES = 256 * FRAME_SAMPLES

#: Bytes of the length before each message, and of a number that says which work to stop.
HEADER_BYTES = 4
NUMBER_BYTES = 8


class Settings(msgspec.Struct, frozen=True):
    """How a worker computes."""

    device: str
    compute_type: str
    threads: int


class Model(Protocol):
    """What a worker needs of a speech model. Tests script one."""

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows more than English."""

    def detect_language(self, samples: Floats) -> str:
        """Return the code of the language spoken in ``samples``."""

    def transcribe(
        self, samples: Floats, stretches: tuple[tuple[int, int], ...], options: Options
    ) -> Iterator[Segment]:
        """Yield segments as they are recognised.

        Args:
            samples: float32, shape (n,), mono, 16 kHz, in [-1, 1].
            stretches: Where in the recording the samples come from, in order, in samples;
                the times of the segments are the recording's.
            options: With the language filled in.
        """


Loader = Callable[[str, Settings], Model]


class Whisper:
    """A faster-whisper model, decoding exactly as faster-whisper does."""

    def __init__(self, name: str, settings: Settings) -> None:
        from faster_whisper import WhisperModel  # noqa: PLC0415 - slow, and only in workers
        from tqdm import tqdm  # noqa: PLC0415

        # Its own lock is a semaphore between processes, which `os._exit` would leave behind.
        tqdm.set_lock(threading.RLock())
        path = locate(name)
        try:
            self._model = WhisperModel(
                str(path),
                device=settings.device,
                compute_type=_compute_type(settings),
                cpu_threads=settings.threads,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelNotAvailable(
                f"the model {name!r} in {path} cannot be used: {error}"
            ) from error

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows more than English."""
        return bool(self._model.model.is_multilingual)

    def detect_language(self, samples: Floats) -> str:
        """Return the code of the language spoken in the first half minute."""
        language, _, _ = self._model.detect_language(samples)
        return str(language)

    def transcribe(
        self, samples: Floats, stretches: tuple[tuple[int, int], ...], options: Options
    ) -> Iterator[Segment]:
        """Yield segments as they are recognised; see :meth:`Model.transcribe`."""
        from faster_whisper.transcribe import restore_speech_timestamps  # noqa: PLC0415

        segments, _ = self._model.transcribe(samples, **_upstream(options))
        chunks = [{"start": start, "end": end} for start, end in stretches]
        last = stretches[-1][1] / SAMPLE_RATE  # the model pads its windows beyond the end
        for segment in restore_speech_timestamps(segments, chunks, SAMPLE_RATE):
            words = segment.words and tuple(
                Word(word.start, word.end, word.word, round(word.probability, 3))
                for word in segment.words
            )
            yield Segment(
                0, round(segment.start, 3), round(min(segment.end, last), 3), segment.text, words
            )


def _compute_type(settings: Settings) -> str:
    """Turn ``auto`` into the fastest that keeps the words: int8 on a CPU."""
    if settings.compute_type != "auto":
        return settings.compute_type
    import ctranslate2  # noqa: PLC0415 - slow, and only in workers

    has_gpu = settings.device != "cpu" and ctranslate2.get_cuda_device_count() > 0
    return "auto" if has_gpu else "int8"


def _upstream(options: Options) -> dict[str, Any]:
    """The arguments of ``WhisperModel.transcribe``; what is left out has its default."""
    arguments: dict[str, Any] = {
        "language": options.language,
        "task": options.task,
        "beam_size": options.beam_size,
        "word_timestamps": options.word_timestamps,
        "initial_prompt": options.initial_prompt,
        "hotwords": options.hotwords,
    }
    if options.temperature is not None:
        arguments["temperature"] = options.temperature
    return arguments


class _StopWork(Exception):
    """The server wants the work at hand given up."""


class _Worker:
    """The process's own state: its pipe, its model, what it is told to stop."""

    def __init__(self, pipe: socket.socket, settings: Settings, loader: Loader) -> None:
        self._pipe = pipe
        self._settings = settings
        self._loader = loader
        self._model: Model | None = None
        self._model_name: str | None = None
        self._number = 0
        self._stop_number = 0
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def tell(self, message: Message) -> None:
        """Send a message to the server; waits while the pipe is full."""
        payload = messages.encode(message)
        self._pipe.sendall(len(payload).to_bytes(HEADER_BYTES, "big") + payload)

    def perform(self, number: int, work: Work) -> None:
        """Do one piece of work and say how it ended, whatever happens."""
        self._number = number
        try:
            self.tell(self._end_of(work))
        except _StopWork:
            self.tell(messages.Stopped())
        except AiotranscribeError as error:
            self.tell(messages.Failed(error.problem()))
        except MemoryError:
            self.tell(messages.Failed(Problem("out_of_memory", "there is not enough memory")))
        except Exception as error:
            log.exception("%s failed", type(work).__name__)
            text = f"unexpected: {type(error).__name__}: {error}"
            self.tell(messages.Failed(Problem("work_failed", text)))

    def _end_of(self, work: Work) -> messages.Ended:
        match work:
            case Load():
                self._load(work.model)
                return messages.Done()
            case Prepare():
                return messages.Prepared(self._prepare(work))
            case Transcribe():
                self._transcribe(work)
                return messages.Done()

    def _listen(self) -> None:
        """Hear which work to stop. The end of the pipe is the end of the server, and ours."""
        while number := self._pipe.recv(NUMBER_BYTES, socket.MSG_WAITALL):
            self._stop_number = int.from_bytes(number, "big")
        # Not sys.exit: OpenMP and onnxruntime have been seen to deadlock on the way out.
        os._exit(0)

    def _check(self) -> None:
        if self._stop_number == self._number:
            raise _StopWork

    def _load(self, name: str) -> Model:
        if self._model is None or self._model_name != name:
            self.tell(Entered(Step.LOADING_MODEL))
            self._model = self._model_name = None  # give the memory back first
            self._model = self._loader(name, self._settings)
            self._model_name = name
        return self._model

    def _prepare(self, work: Prepare) -> float:
        """Decode to disk, hear where speech is, hand out spans. Returns the seconds decoded."""
        self.tell(Entered(Step.DECODING))
        cutter = Cutter(speech_only=work.speech_only)
        detector: audio.SpeechDetector | None = None
        total = 0
        with audio.Recording(Path(work.recording)) as recording, Path(work.pcm).open("wb") as pcm:
            for block in audio.regroup(recording.blocks(), _BLOCK_SAMPLES):
                self._check()
                pcm.write(block.tobytes())
                pcm.flush()
                total += len(block)
                self.tell(messages.Decoded(total / SAMPLE_RATE, recording.duration))
                if detector is None:
                    self.tell(Entered(Step.DETECTING_SPEECH))
                    detector = audio.SpeechDetector()
                samples = audio.to_float(np.pad(block, (0, -len(block) % FRAME_SAMPLES)))
                for span in cutter.feed(detector(samples), audio.levels(samples)):
                    self.tell(messages.SpanFound(span))
            for span in cutter.finish(total):
                self.tell(messages.SpanFound(span))
        return total / SAMPLE_RATE

    def _transcribe(self, work: Transcribe) -> None:
        model = self._load(work.options.model or "")
        stretches = work.span.stretches
        samples = np.concatenate(
            [audio.read_pcm(Path(work.pcm), start, end) for start, end in stretches]
        )
        options = work.options
        if options.language is None:
            language = "en"
            if model.is_multilingual:
                self.tell(Entered(Step.DETECTING_LANGUAGE))
                language = model.detect_language(samples)
            self.tell(messages.LanguageFound(language))
            options = msgspec.structs.replace(options, language=language)
        self.tell(Entered(Step.TRANSCRIBING))
        for segment in model.transcribe(samples, stretches, options):
            self._check()
            self.tell(messages.Recognised(segment))


# Set once by `start`: the executor gives its calls no other place to keep state in a process.
_worker: _Worker | None = None


def start(pipe: socket.socket, settings: Settings, loader: Loader) -> None:
    """Begin life as a worker; the executor's initializer."""
    global _worker  # noqa: PLW0603 - see there
    # Ctrl-C and service managers signal the whole group; it is the server that ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(10)  # the server answers while every core decodes
    _worker = _Worker(pipe, settings, loader)
    _worker.tell(messages.Hello(os.getpid()))


def perform(number: int, work: Work) -> None:
    """Do one piece of work; how it went travels in the pipe."""
    if _worker is None:
        raise RuntimeError("this process was not started as a worker")
    _worker.perform(number, work)
