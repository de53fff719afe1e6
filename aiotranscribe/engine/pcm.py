"""Decoded audio, as it lies in the spool: 16-bit samples, mono, 16 kHz, nothing else."""

from pathlib import Path

import numpy as np

from aiotranscribe.engine.spans import Floats, Samples


def read_pcm(path: Path, start: int, end: int) -> Floats:
    """Return samples ``start`` to ``end`` of a PCM file: float32, shape (n,), in [-1, 1]."""
    pcm = np.fromfile(path, np.int16, count=end - start, offset=2 * start)
    return to_float(pcm)


def to_float(pcm: Samples) -> Floats:
    """Return 16-bit samples as float32 in [-1, 1]."""
    return pcm.astype(np.float32) / np.float32(32768)
