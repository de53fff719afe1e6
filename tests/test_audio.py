"""Decoding: what a recording tells of itself while it is read."""

import itertools
from pathlib import Path

import av
import pytest

from aiotranscribe.engine import audio
from aiotranscribe.engine.spans import SAMPLE_RATE
from tests.conftest import SAMPLE


def make_live(path: Path) -> None:
    """Write the sample as a browser records it: a stream, begun before its length was known."""
    with av.open(str(SAMPLE)) as source, av.open(str(path), "w", options={"live": "1"}) as target:
        stream = source.streams.audio[0]
        copy = target.add_stream("libopus", rate=48000)
        for frame in itertools.chain(source.decode(stream), [None]):
            target.mux(copy.encode(frame))


def test_how_much_is_read_tells_how_long_a_recording_is_that_does_not_say(tmp_path: Path) -> None:
    """Otherwise what a browser has recorded has no end in sight until all of it is read."""
    make_live(tmp_path / "live.webm")
    guesses, samples = [], 0
    with audio.Recording(tmp_path / "live.webm") as recording:
        assert recording.duration is None
        for block in audio.regroup(recording.blocks(), 5 * SAMPLE_RATE):
            samples += len(block)
            guesses.append(samples / SAMPLE_RATE / recording.share)
    assert len(guesses) > 2
    assert guesses == pytest.approx([samples / SAMPLE_RATE] * len(guesses), rel=0.2)


def test_a_stream_that_turns_up_late_does_not_end_the_recording(tmp_path: Path) -> None:
    """A broadcast that changes its channels would fail, with a mistake of ours."""
    path = tmp_path / "broadcast.ts"
    with av.open(str(SAMPLE)) as source, av.open(str(path), "w", format="mpegts") as target:
        stream = source.streams.audio[0]
        copy = target.add_stream("mp2", rate=48000)
        for frame in itertools.chain(source.decode(stream), [None]):
            target.mux(copy.encode(frame))
    honest = path.read_bytes()
    # Where a packet of the sound begins (ISO 13818-1, section 2.4.3); later it is another stream's.
    begins = [at for at in range(0, len(honest), 188) if honest[at + 1 : at + 3] == b"\x41\x00"]
    for at in begins[1:20]:
        path.write_bytes(honest[: at + 1] + b"\x41\xff" + honest[at + 3 :])
        with audio.Recording(path) as recording:
            seconds = sum(map(len, recording.blocks())) / SAMPLE_RATE
        assert seconds == pytest.approx(18, abs=1)
