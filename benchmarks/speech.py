"""Long recordings of real speech with known text, joined from ../shared/audio."""

import random
import re
import wave
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
from faster_whisper.audio import decode_audio
from whisper_normalizer.english import EnglishTextNormalizer

FOLDER = Path(__file__).parents[2] / "shared" / "audio"
RATE = 16_000


@dataclass(frozen=True)
class Recording:
    """A file and what is said in it."""

    path: Path
    text: str
    seconds: float


def texts() -> dict[str, str]:
    """Return file name -> text, of the clips that have one and are spoken as one."""
    rows = re.findall(r"^\| (\S+?)(?: \(.*?\))? \| [\d.]+ \| (.*?) \|$", _readme(), re.MULTILINE)
    return {name: text for name, text in rows if "no reference" not in text}


def make(folder: Path, seconds: float, seed: int) -> Recording:
    """Shuffle the clips, join them with pauses of 0.5 to 2.5 s, over and over."""
    chance = random.Random(seed)
    said = texts()
    clips = {name: (decode_audio(str(FOLDER / name)) * 32767).astype(np.int16) for name in said}
    parts, order, samples = [], [], 0
    while samples < seconds * RATE:
        for name in chance.sample(sorted(clips), len(clips)):
            pause = np.zeros(round(chance.uniform(0.5, 2.5) * RATE), np.int16)
            parts += [clips[name], pause]
            order.append(name)
            samples += len(clips[name]) + len(pause)
            if samples >= seconds * RATE:
                break
    path = folder / f"speech-{seconds:.0f}-{seed}.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.concatenate(parts).tobytes())
    return Recording(path, " ".join(said[name] for name in order), samples / RATE)


def word_error_rate(said: str, heard: str) -> float:
    """Return the share of words that are wrong, missing or too many, after normalising both."""
    normalize = EnglishTextNormalizer()
    return float(jiwer.wer(normalize(said), normalize(heard)))


def _readme() -> str:
    return (FOLDER / "README.md").read_text("utf-8")
