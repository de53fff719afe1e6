"""Decode any recording to 16 kHz mono PCM, block by block, and hear where speech is in it.

Runs in the worker: hostile media is never parsed in the server. Memory stays flat, however
long the recording is.
"""

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from aiotranscribe.engine.spans import FRAME_SAMPLES, SAMPLE_RATE, Floats, Samples
from aiotranscribe.errors import Undecodable

# How damage shows, in FFmpeg and in PyAV.
_DAMAGE = (av.FFmpegError, OSError, ValueError)
# What Silero VAD sees of the frame before.
_CONTEXT_SAMPLES = 64


class Recording:
    """An audio or video file, open for decoding.

    Args:
        path: The file.

    Raises:
        Undecodable: FFmpeg cannot read it, or there is no sound in it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = _File(path)
        except OSError as error:
            raise Undecodable(f"the recording cannot be opened ({error.strerror})") from error
        try:
            # FFmpeg gets the bytes and no protocol at all, not even for files: a playlist that
            # calls itself a recording cannot make it open what else the server can reach.
            self._container: InputContainer = av.open(
                self._file, "r", options={"protocol_whitelist": "none"}, metadata_errors="ignore"
            )
        except _DAMAGE as error:
            self._file.close()
            raise Undecodable(
                f"this is not audio or video that FFmpeg can read ({_why(error)})"
            ) from error
        if not self._container.streams.audio:
            self.close()
            raise Undecodable("there is no sound in this file")
        self._size_bytes, self._read_bytes = path.stat().st_size, 0

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()
        self._file.close()

    @property
    def duration(self) -> float | None:
        """Seconds, as the file claims; ``None`` when it does not say. It may be wrong."""
        stream = self._container.streams.audio[0]
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if self._container.duration:
            return self._container.duration / av.time_base
        return None

    @property
    def share(self) -> float:
        """How much of the file's bytes has been read, 0 to 1."""
        return self._read_bytes / self._size_bytes

    def blocks(self) -> Iterator[Samples]:
        """Decode. Yields int16, shape (n,), mono, 16 kHz; n differs from block to block.

        Damaged packets are passed over, as players do.

        Raises:
            Undecodable: not one packet could be decoded.
        """
        resampler = _Resampler()
        errors, is_audible = 0, False
        for packet in self._packets():
            try:
                frames = [frame for frame in packet.decode() if isinstance(frame, AudioFrame)]
                blocks = [block for frame in frames for block in resampler.push(frame)]
            except _DAMAGE as error:
                errors += 1
                last_error = error
                resampler = _Resampler()
                continue
            is_audible = is_audible or bool(frames)
            yield from blocks
        yield from resampler.flush()
        if errors and not is_audible:
            raise Undecodable(f"nothing in this file can be decoded ({_why(last_error)})")

    def _packets(self) -> Iterator["av.Packet[AudioStream]"]:
        packets = self._container.demux(audio=0)
        while True:
            try:
                packet = next(packets, None)
            except IndexError:  # PyAV 18 cannot name a stream that was not there at first
                packets = self._container.demux(audio=0)
                continue
            except _DAMAGE:  # a broken end: keep what there is
                return
            if packet is None:
                return
            self._read_bytes = max(self._read_bytes, packet.pos or 0)
            yield packet


class _File(io.FileIO):
    """A file that may be told to go before its beginning: damaged ones do that."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            return -(error.errno or errno.EINVAL)  # FFmpeg's way to say so


class _Resampler:
    """Any frames to 16-bit mono at 16 kHz; a stream may change its layout on the way."""

    def __init__(self) -> None:
        self._shape: tuple[object, ...] | None = None
        self._resampler: AudioResampler | None = None

    def push(self, frame: AudioFrame) -> Iterator[Samples]:
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._shape:
            yield from self.flush()
            self._shape = shape
            self._resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        frame.pts = None  # gaps and jumps in the timestamps are not our concern
        yield from self._resample(frame)

    def flush(self) -> Iterator[Samples]:
        if self._resampler:
            yield from self._resample(None)
            self._resampler = None

    def _resample(self, frame: AudioFrame | None) -> Iterator[Samples]:
        assert self._resampler
        for resampled in self._resampler.resample(frame):
            yield resampled.to_ndarray()[0]


class SpeechDetector:
    """Silero VAD over a stream: faster-whisper's own model, with its state carried along."""

    def __init__(self) -> None:
        from faster_whisper.vad import get_vad_model  # noqa: PLC0415 - slow, and only in workers

        self._session = get_vad_model().session
        self._h = np.zeros((1, 1, 128), np.float32)
        self._c = np.zeros((1, 1, 128), np.float32)
        self._context: Floats = np.zeros(_CONTEXT_SAMPLES, np.float32)

    def __call__(self, samples: Floats) -> Floats:
        """Return the probability of speech in each frame.

        Args:
            samples: float32, shape (n * 512,), mono, 16 kHz, in [-1, 1].

        Returns:
            float32, shape (n,).
        """
        frames = samples.reshape(-1, FRAME_SAMPLES)
        tails = np.concatenate([self._context[None], frames[:, -_CONTEXT_SAMPLES:]])
        self._context = tails[-1]
        inputs = np.concatenate([tails[:-1], frames], axis=1)
        output, self._h, self._c = self._session.run(
            None, {"input": inputs, "h": self._h, "c": self._c}
        )
        return np.asarray(output, np.float32).reshape(-1)


def levels(samples: Floats) -> Floats:
    """Return the root mean square of each frame of 512 samples: float32, shape (n,)."""
    frames = samples.reshape(-1, FRAME_SAMPLES)
    loudness: Floats = np.sqrt(np.mean(frames * frames, axis=1))
    return loudness


def regroup(blocks: Iterator[Samples], size: int) -> Iterator[Samples]:
    """Join and split blocks into blocks of exactly ``size`` samples; the last may be shorter."""
    waiting: list[Samples] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count >= size:
            joined = np.concatenate(waiting)
            whole = count // size * size
            yield from joined[:whole].reshape(-1, size)
            waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
