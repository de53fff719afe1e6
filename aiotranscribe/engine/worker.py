"""The worker process: one piece of work after the other, every event told at once.

Only this side of the pipe touches recordings and models. faster-whisper is imported when a
model is loaded or speech is looked for, never by the server.
"""

import contextlib
import gc
import io
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from aiotranscribe.engine import bounds, memory, messages
from aiotranscribe.engine.messages import Entered, Load, Message, Prepare, Transcribe, Unload, Work
from aiotranscribe.engine.pcm import read_pcm, to_float
from aiotranscribe.engine.spans import (
    FRAME_SAMPLES,
    LADDER,
    SAMPLE_RATE,
    WHOLE,
    Cutter,
    Floats,
    Span,
)
from aiotranscribe.engine.whisper import Clip, Model, Settings
from aiotranscribe.errors import AiotranscribeError, Problem, StorageUnavailable, TooLong
from aiotranscribe.job import EVERYTHING, Options, Step

log = logging.getLogger(__name__)

#: Loads a model, and tells how much of it is downloaded, 0 to 1, if it has to be.
Loader = Callable[[str, Settings, Callable[[float], None]], Model]

# Decoded audio is looked at in blocks of this many samples, about eight seconds: a whole
# number of the VAD's frames, large enough to be cheap, small enough to hear "stop" soon.
_BLOCK_SAMPLES = 256 * FRAME_SAMPLES

# How often to tell of a download.
_DOWNLOAD_PAUSE_S = 0.25

#: Bytes of the length before each message, and of a number that says which work to stop.
HEADER_BYTES = 4
NUMBER_BYTES = 8


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
        #: How much of a model was said to be downloaded, and when.
        self._downloaded = 0.0, 0.0
        self._telling = threading.Lock()
        self._stop_number = 0
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def tell(self, message: Message) -> None:
        """Send a message to the server; waits while the pipe is full."""
        payload = messages.encode(message)
        try:
            with self._telling:  # a model is downloaded by several threads
                self._pipe.sendall(len(payload).to_bytes(HEADER_BYTES, "big") + payload)
        except OSError:  # the server is gone, and so are we
            os._exit(0)

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
            if self._stop_number == number:  # a deleted job's files are gone already
                self.tell(messages.Stopped())
                return
            log.exception("%s failed", type(work).__name__)
            text = f"unexpected: {type(error).__name__}: {error}"
            self.tell(messages.Failed(Problem("work_failed", text)))

    def _end_of(self, work: Work) -> messages.Ended:
        match work:
            case Load():
                self._load(work.model)
            case Unload():
                self._model = self._model_name = None
                gc.collect()
                memory.give_back()
            case Prepare():
                return messages.Prepared(self._prepare(work))
            case Transcribe():
                self._transcribe(work)
        return messages.Done()

    def _listen(self) -> None:
        """Hear which work to stop. The end of the pipe is the end of the server, and ours."""
        with contextlib.suppress(OSError):  # a server that dies with our words unread resets it
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
            self._downloaded = 0.0, 0.0
            self._model = self._loader(name, self._settings, self._tell_download)
            self._model_name = name
            memory.give_back()  # it was read in another number format
        return self._model

    def _tell_download(self, share: float) -> None:
        now, (told, at) = time.monotonic(), self._downloaded
        # There may be two bars, of what has come and of what is on the disk: the first one counts.
        if share > told and (now - at > _DOWNLOAD_PAUSE_S or share >= 1):
            self._downloaded = share, now
            self.tell(messages.Downloaded(share))

    def _prepare(self, work: Prepare) -> float:
        """Decode to disk, hear where speech is, hand out spans. Returns the seconds decoded."""
        from aiotranscribe.engine import audio  # noqa: PLC0415 - FFmpeg is not for the server

        self.tell(Entered(Step.DECODING))
        options = work.options
        is_parallel = options.parallel == "on"
        cutter = Cutter(
            speech_only=options.vad_filter and is_parallel,
            ladder=LADDER if is_parallel else WHOLE,
            # Upstream wants the whole recording, and takes the clips out by itself.
            clips=options.clips if is_parallel else EVERYTHING,
        )
        detector: audio.SpeechDetector | None = None
        total = 0
        # Not truncated: when a dead worker's work is done again, others are reading the same.
        pcm_descriptor = os.open(work.pcm, os.O_WRONLY | os.O_CREAT, 0o600)
        with (
            os.fdopen(pcm_descriptor, "wb", buffering=0) as pcm,
            bounds.bounded(),
            audio.Recording(Path(work.recording)) as recording,
        ):
            for block in audio.regroup(recording.blocks(), _BLOCK_SAMPLES):
                self._check()
                bounds.begin_block()
                total += len(block)
                if work.most_s is not None and total > work.most_s * SAMPLE_RATE:
                    raise TooLong(
                        f"the recording is longer than {work.most_s / 3600:g} hours, which is the "
                        f"limit{'; see --max-duration' if is_parallel else ' with parallel=off'}"
                    )
                _write(pcm, block.tobytes())
                seconds = total / SAMPLE_RATE
                self.tell(messages.Decoded(seconds, recording.duration, recording.share))
                if detector is None:
                    self.tell(Entered(Step.DETECTING_SPEECH))
                    detector = audio.SpeechDetector()
                samples = to_float(np.pad(block, (0, -len(block) % FRAME_SAMPLES)))
                for span in cutter.feed(detector(samples), audio.levels(samples)):
                    self.tell(messages.SpanFound(span))
            for span in cutter.finish(total):
                self.tell(messages.SpanFound(span))
        return total / SAMPLE_RATE

    def _transcribe(self, work: Transcribe) -> None:
        model = self._load(work.options.model or "")
        clips = [Clip(span, _sound(Path(work.pcm), span)) for span in work.spans]
        options = work.options
        if options.language is None:
            language = "en"
            if model.is_multilingual:
                self.tell(Entered(Step.DETECTING_LANGUAGE))
                language = model.detect_language(_beginning(clips[0], options))
            self.tell(messages.LanguageFound(language))
            options = msgspec.structs.replace(options, language=language)
        self.tell(Entered(Step.TRANSCRIBING))
        for recognised in model.transcribe(clips, options):
            self._check()
            self.tell(recognised)


def _write(file: io.FileIO, data: bytes) -> None:
    """Write all of it; a full disk takes a part first, and refuses the rest."""
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise StorageUnavailable(
            f"the decoded sound cannot be written: {error.strerror}"
        ) from error


def _sound(pcm: Path, span: Span) -> Floats:
    """What is to be heard in a span, without its gaps."""
    return np.concatenate([read_pcm(pcm, start, end) for start, end in span.stretches])


def _beginning(clip: Clip, options: Options) -> Floats:
    """Where to listen for the language: with ``parallel=off`` a span is the whole recording."""
    first = round(options.clips[0][0] * SAMPLE_RATE) if options.parallel == "off" else 0
    return clip.samples[first:] if first < len(clip.samples) else clip.samples


# Set once by `start`: the executor gives its calls no other place to keep state in a process.
_worker: _Worker | None = None


def start(pipe: socket.socket, settings: Settings, loader: Loader) -> None:
    """Begin life as a worker; the executor's initializer."""
    global _worker  # noqa: PLW0603 - see there
    # Ctrl-C and service managers signal the whole group; it is the server that ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    memory.use_one_heap()
    with contextlib.suppress(OSError):
        os.nice(10)  # the server answers while every core decodes
    _worker = _Worker(pipe, settings, loader)
    _worker.tell(messages.Hello(os.getpid()))


def perform(number: int, work: Work) -> None:
    """Do one piece of work; how it went travels in the pipe."""
    if _worker is None:
        raise RuntimeError("this process was not started as a worker")
    _worker.perform(number, work)
