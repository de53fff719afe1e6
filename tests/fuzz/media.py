"""Give a real worker recordings that are damaged or lie, and see that it survives them.

By hand, from the folder above tests:

    python -m tests.fuzz.media --count 2000 --seed 7

prints how they ended, and every one that ended as it should not; then the exit status is 1. The
seed gives the same files again.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import psutil

from aiotranscribe.engine.messages import (
    Died,
    Ended,
    Failed,
    Hello,
    Message,
    Prepare,
    Prepared,
    Work,
)
from aiotranscribe.engine.pool import Slot
from aiotranscribe.engine.whisper import Settings
from aiotranscribe.job import Options
from tests import scripted

SAMPLE = Path(__file__).parent.parent.parent / "examples" / "sample.ogg"
# How the containers and codecs are made that people have; the names are FFmpeg's.
_KINDS = (
    "wav",
    "flac",
    "mp3",
    "ogg",
    "opus",
    "webm",
    "mp4",
    "mkv",
    "aiff",
    "au",
    "avi",
    "ts",
    "caf",
)
# Numbers that programs forget about.
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_DEADLINE_S = 120.0
_MOST_GROWTH_BYTES = 100 << 20
# What an answer may be besides a decoded recording.
_EXPECTED = {"undecodable", "recording_too_long", "out_of_memory"}


def recordings(folder: Path) -> list[bytes]:
    """Return two seconds of speech in every kind of file that can be made here."""
    made = [SAMPLE.read_bytes()]
    for kind in _KINDS if shutil.which("ffmpeg") else ():
        path = folder / f"honest.{kind}"
        command = ["ffmpeg", "-loglevel", "quiet", "-y", "-t", "2", "-i", str(SAMPLE), str(path)]
        if not subprocess.run(command, check=False).returncode:
            made.append(path.read_bytes())
    return made


def mutate(random: Random, honest: list[bytes]) -> bytes:
    """Return a recording with something wrong."""
    data = bytearray(random.choice(honest))
    match random.randrange(6):
        case 0:  # bytes of the head
            for _ in range(random.randint(1, 16)):
                data[random.randrange(min(512, len(data)))] = random.randrange(256)
        case 1:  # an end too early
            del data[random.randrange(len(data)) :]
        case 2:  # lengths and counts
            for _ in range(random.randint(1, 4)):
                width = random.choice((1, 2, 4, 8))
                at = random.randrange(max(1, min(4096, len(data)) - width))
                value = random.choice(_EXTREMES) % (1 << 8 * width)
                data[at : at + width] = value.to_bytes(width, random.choice(("big", "little")))
        case 3:  # bytes anywhere
            for _ in range(random.randint(1, 200)):
                data[random.randrange(len(data))] = random.randrange(256)
        case 4:  # a piece twice, or not at all
            start = random.randrange(len(data))
            end = min(len(data), start + random.randint(1, 4096))
            data[start:end] = data[start:end] * random.choice((0, 2, 50))
        case _:  # two files in one
            data[random.randrange(len(data)) :] = random.choice(honest)
    return bytes(data)


class Fuzz:
    """A worker, and what it made of the recordings that it was given."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        #: What should not be.
        self.findings: list[str] = []
        self._folder = folder
        self._random = Random(seed)
        self._heard: asyncio.Queue[Message] = asyncio.Queue()
        self._pid = 0

    async def run(self, count: int) -> None:
        """Try so many recordings, and an honest one in the end."""
        honest = await asyncio.to_thread(recordings, self._folder)
        loading = Settings("cpu", "int8", 1), scripted.load
        slot = Slot(0, "scripted", loading, self._note, silence_s=_DEADLINE_S)
        try:
            await self._end()
            for data in honest:
                await self._try(slot, data, must_be="prepared")
            before = psutil.Process(self._pid).memory_info().rss
            for number in range(count):
                data = mutate(self._random, honest)
                if not await self._try(slot, data):
                    path = self._folder / f"finding-{number}"
                    path.write_bytes(data)
                    self.findings[-1] += f" (recording {number}, kept as {path})"
            for data in honest:
                await self._try(slot, data, must_be="prepared")
            grown = psutil.Process(self._pid).memory_info().rss - before
            self.counts["MiB grown"] = grown >> 20
            if grown > _MOST_GROWTH_BYTES:
                self.findings.append(f"the worker has grown by {grown >> 20} MiB")
        finally:
            await slot.close()

    async def _try(self, slot: Slot, data: bytes, must_be: str | None = None) -> bool:
        path = self._folder / "recording"
        path.write_bytes(data)
        work = Prepare("job", str(path), str(self._folder / "pcm"), Options(), most_s=3600.0)
        slot.perform(work)
        match ended := await self._end():
            case Prepared():
                how = "prepared"
            case Failed(error):
                how = error.code
            case _:
                how = type(ended).__name__
        self.counts[how] += 1
        if isinstance(ended, Died):
            await self._end()  # another worker comes up
        if how in ({must_be} if must_be else _EXPECTED | {"prepared"}):
            return True
        self.findings.append(f"{how}: {ended}")
        return False

    async def _end(self) -> Message:
        async with asyncio.timeout(2 * _DEADLINE_S):
            while not isinstance(message := await self._heard.get(), Ended):
                pass
        return message

    def _note(self, slot: Slot, work: Work | None, message: Message) -> None:
        if isinstance(message, Hello):
            self._pid = message.pid
        self._heard.put_nowait(message)


def main() -> None:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-media-"))
    fuzz = Fuzz(folder, arguments.seed)
    asyncio.run(fuzz.run(arguments.count))
    print(dict(fuzz.counts), *fuzz.findings, sep="\n")
    sys.exit(bool(fuzz.findings))


if __name__ == "__main__":
    main()
