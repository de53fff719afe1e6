"""Does the progress tell the truth? Percentage and remaining time beside what really happened.

``python -m benchmarks.progress [--plots FOLDER] [--only NAME ...]``

A watcher notes every frame of a job from the answer to its upload to its end. Then it is known
what the bar should have said: the share of the time that had passed. One line a job:

- distance: mean and greatest, of the percentage from that share, in points
- ETA: error of ``eta_seconds`` from a tenth of the job on, as a share of what really remained:
  median and 90th percentile; and when it was first told
- silence: the longest stretch without a frame while running, in seconds
- back: how often the percentage went down; and frames a second, on average

With ``--plots``, one PNG for each job (needs matplotlib).
"""

import argparse
import asyncio
import itertools
import subprocess
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from aiotranscribe import Client, Frame
from benchmarks import speech
from benchmarks.server import serving

_GRID_S = 0.02


@dataclass(frozen=True)
class Case:
    """Some recordings that are sent one right after the other."""

    name: str
    recordings: Sequence[Path]
    #: Of the server, which then is one of its own.
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class Story:
    """What a watcher saw of one job; times in seconds since the upload was answered."""

    times: Sequence[float]
    frames: Sequence[Frame]

    @property
    def end(self) -> float:
        """When the job ended."""
        return self.times[-1]

    def table_row(self) -> str:
        """Compare what was told with what happened."""
        before = list(zip(self.times, self.frames, strict=True))[:-1]
        grid = np.arange(0, self.end, min(_GRID_S, self.end / 100))
        index = np.maximum(np.searchsorted(self.times, grid, side="right") - 1, 0)
        told = np.array([frame.progress_percentage for frame in self.frames])[index]
        distance = np.abs(told - 100 * grid / self.end)
        # An ETA counts from the moment it is told until another one is.
        etas = [frame.eta_seconds for frame in self.frames]
        errors, late = [], [moment for moment in grid if moment >= self.end / 10]
        for moment, number in zip(grid, index, strict=True):
            eta = etas[number]
            if moment >= self.end / 10 and eta is not None:
                remains = self.end - moment
                errors.append(
                    abs(max(0.0, eta - (moment - self.times[number])) - remains) / remains
                )
        first = next((at for at, frame in before if frame.eta_seconds is not None), None)
        running = [at for at, frame in before if frame.status == "running"] + [self.end]
        silence = max((b - a for a, b in itertools.pairwise(running)), default=0.0)
        percentages = [frame.progress_percentage for frame in self.frames]
        back = sum(b < a for a, b in itertools.pairwise(percentages))
        median, ninety = np.percentile(errors, [50, 90]) if errors else (np.nan, np.nan)
        return (
            f"{self.end:7.2f} s  distance {distance.mean():5.1f} {distance.max():5.1f}"
            f"   ETA {100 * median:4.0f} % {100 * ninety:4.0f} %"
            f" told {100 * len(errors) / max(1, len(late)):3.0f} % of the time,"
            f" first {'never' if first is None else f'{first:.1f} s'}"
            f"   silence {silence:4.2f} s   back {back}"
            f"   {len(self.frames) / self.end:5.1f} frames/s"
        )

    def plot(self, path: Path, title: str) -> None:
        """Draw the percentage beside the ideal line, and the end as it was promised."""
        import matplotlib.pyplot as plt  # noqa: PLC0415 - only for who wants pictures

        figure, axes = plt.subplots(figsize=(5, 3.2), dpi=110, layout="constrained")
        axes.plot([0, self.end], [0, 100], color="0.75", label="time passed")
        percentages = [frame.progress_percentage for frame in self.frames]
        axes.step(self.times, percentages, where="post", label="percentage")
        promised = [
            (at, 100 * (at + frame.eta_seconds) / self.end)
            for at, frame in zip(self.times, self.frames, strict=True)
            if frame.eta_seconds is not None
        ]
        if promised:
            axes.plot(*zip(*promised, strict=True), ".", ms=2, label="promised end, % of real")
        axes.set(title=title, xlabel="seconds", ylim=(0, 160), xlim=(0, self.end))
        axes.legend(loc="upper left", fontsize="small")
        figure.savefig(path)
        plt.close(figure)


async def watch(url: str, recording: Path) -> Story:
    """Send a recording and watch it to its end."""
    times, frames = [], []
    async with Client(url) as client:
        job = await client.submit(recording)
        begin = time.monotonic()
        async for frame in client.watch(job.job_id):
            times.append(time.monotonic() - begin)
            frames.append(frame)
    assert frames[-1].status == "completed", frames[-1]
    return Story(times, frames)


async def watch_all(url: str, recordings: Sequence[Path]) -> list[Story]:
    """Send recordings one right after the other."""
    tasks = []
    for recording in recordings:
        tasks.append(asyncio.create_task(watch(url, recording)))
        await asyncio.sleep(0.3)
    return await asyncio.gather(*tasks)


def make_cases(folder: Path) -> list[Case]:
    """Make the recordings, from real speech where there is speech."""
    minutes = {count: speech.make(folder, count * 60, 3).path for count in (1, 7, 60)}
    memo = speech.FOLDER / "jfk.flac"
    quiet = folder / "quiet.wav"
    _stretch(minutes[7], quiet)
    noise = folder / "noise.wav"
    _write(noise, np.random.default_rng(1).normal(0, 2000, 1200 * speech.RATE).astype(np.int16))
    video = folder / "video.mp4"
    command = ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=size=640x360:rate=15"]
    subprocess.run([*command, "-i", str(minutes[7]), "-shortest", str(video)], check=True)
    return [
        Case("11 s, the first job ever", [memo]),
        Case("11 s", [memo]),
        Case("1 min", [minutes[1]]),
        Case("7 min", [minutes[7]]),
        Case("60 min", [minutes[60]]),
        Case("three quarters silence", [quiet]),
        Case("noise", [noise]),
        Case("video", [video]),
        Case("two at once", [minutes[7], minutes[7]]),
        Case("one behind another", [minutes[7], minutes[1]], ["--workers", "1"]),
        Case("a cold worker", [minutes[1]], ["--model-idle-s", "0.5"]),
    ]


def _stretch(speech_path: Path, path: Path) -> None:
    """Put three minutes of silence after each minute."""
    with wave.open(str(speech_path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    pieces = np.array_split(samples, 7)
    silence = np.zeros(3 * 60 * speech.RATE, np.int16)
    _write(path, np.concatenate([each for piece in pieces for each in (piece, silence)]))


def _write(path: Path, samples: np.ndarray[tuple[int], np.dtype[np.int16]]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, speech.RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plots", type=Path)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        cases = make_cases(folder)
        for settings, group in itertools.groupby(cases, lambda case: tuple(case.arguments)):
            with serving(folder / "data", *settings) as (url, _):
                for case in group:
                    if arguments.only and case.name not in arguments.only:
                        continue
                    time.sleep(2)  # an idle worker gives its model back, if it is told to
                    stories = asyncio.run(watch_all(url, case.recordings))
                    for number, story in enumerate(stories):
                        label = case.name + (f", job {number + 1}" if len(stories) > 1 else "")
                        print(f"{label:27}{story.table_row()}", flush=True)
                        if arguments.plots:
                            arguments.plots.mkdir(parents=True, exist_ok=True)
                            file = label.replace(" ", "-").replace(",", "") + ".png"
                            story.plot(arguments.plots / file, label)


if __name__ == "__main__":
    main()
