"""How fast, and with how good words, beside faster-whisper on the same machine in the same run?

``python -m benchmarks.throughput [--minutes 7 7 7 60]``

For each recording of real speech with known text: faster-whisper as installed (its defaults,
int8, beam 5), its batched pipeline, and our server from the start of the upload to
``completed`` over HTTP. On the longest recording also: the first words, and an 11-second memo
sent while it is being transcribed.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from aiotranscribe import Client, Segment
from aiotranscribe.engine.model import locate
from benchmarks import speech
from benchmarks.server import serving


@dataclass(frozen=True)
class Run:
    """One transcription."""

    seconds: float
    text: str


def faster_whisper(recording: Path, how: str) -> Run:
    """Transcribe in a process of its own; the time does not count start-up and loading."""
    command = [sys.executable, "-m", "benchmarks.throughput", "--peer", how, str(recording)]
    printed = subprocess.run(command, check=True, capture_output=True).stdout
    return msgspec.json.decode(printed, type=Run)


def be_peer(how: str, recording: str) -> None:
    """Be that process."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel  # noqa: PLC0415

    model = WhisperModel(str(locate("tiny.en")), device="cpu", compute_type="int8")
    begin = time.perf_counter()
    if how == "batched":
        segments, _ = BatchedInferencePipeline(model).transcribe(recording, batch_size=8)
    else:
        segments, _ = model.transcribe(recording, beam_size=5)
    text = "".join(segment.text for segment in segments)
    print(msgspec.json.encode(Run(time.perf_counter() - begin, text)).decode())


@dataclass(frozen=True)
class Ours(Run):
    """One of our own."""

    first_words_s: float
    memo_s: float | None


async def ours(url: str, recording: speech.Recording, *, with_memo: bool) -> Ours:
    """Upload over HTTP and watch to the end."""
    async with Client(url) as client:
        begin = time.perf_counter()
        job = await client.submit(recording.path)
        uploaded = time.perf_counter()
        memo = asyncio.create_task(_memo(client)) if with_memo else None
        segments: list[Segment] = []
        first = 0.0
        async for frame in client.watch(job.job_id):
            segments[frame.offset :] = frame.segments
            if segments and not first:
                first = time.perf_counter() - uploaded
        seconds = time.perf_counter() - begin
        assert frame.status == "completed", frame
        text = "".join(segment.text for segment in segments)
        return Ours(seconds, text, first, await memo if memo else None)


async def _memo(client: Client) -> float:
    """Send a memo in the middle of the work; return the worst of five waits for its text."""
    waits = []
    for _ in range(5):
        await asyncio.sleep(3)
        begin = time.perf_counter()
        job = await client.submit(speech.FOLDER / "jfk.flac")
        async for _ in client.watch(job.job_id):
            pass
        waits.append(time.perf_counter() - begin)
    return max(waits)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[7, 7, 7, 60])
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return be_peer(*arguments.peer)
    print(
        "| recording | faster-whisper | batched | ours | ratio | WER: sequential, batched, ours |"
    )
    print("|---|---|---|---|---|---|")
    with TemporaryDirectory() as name:
        folder = Path(name)
        for seed, minutes in enumerate(arguments.minutes, 1):
            recording = speech.make(folder, minutes * 60, seed)
            is_long = minutes >= 30
            peer = faster_whisper(recording.path, "sequential")
            batched = faster_whisper(recording.path, "batched")
            with serving(folder / f"data-{seed}") as (url, _):
                run = asyncio.run(ours(url, recording, with_memo=False))
                disturbed = asyncio.run(ours(url, recording, with_memo=True)) if is_long else None
            rates = ", ".join(
                f"{100 * speech.word_error_rate(recording.text, each.text):.1f} %"
                for each in (peer, batched, run)
            )
            print(
                f"| {recording.seconds:.0f} s | {peer.seconds:.1f} s | {batched.seconds:.1f} s "
                f"| {run.seconds:.1f} s ({recording.seconds / run.seconds:.1f} x real time), first "
                f"words {run.first_words_s:.1f} s | {peer.seconds / run.seconds:.2f} | {rates} |",
                flush=True,
            )
            if disturbed:
                print(f"\nworst of five 11 s memos beside it: {disturbed.memo_s:.1f} s", flush=True)
    return None


if __name__ == "__main__":
    main()
