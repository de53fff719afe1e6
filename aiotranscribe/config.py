"""All settings, in one place.

The fields of :class:`Config` are the one source of the command line's options, of the
``AIOTRANSCRIBE_*`` variables and of the table in ``docs/settings.md``.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from aiotranscribe.errors import InvalidOption

# Resident memory of a worker with a small model, and what a machine should keep for the rest.
_WORKER_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How a transcriber runs. Built once, passed down, never changed."""

    data_dir: Path | None = field(
        default=None,
        metadata={"help": "Folder for recordings and jobs; by default a folder of your user's."},
    )
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen at."})
    port: int = field(
        default=8000, metadata={"help": "Port to listen at; 0 for any that is free.", "minimum": 0}
    )
    model: tuple[str, ...] = field(
        default=("tiny.en",),
        metadata={
            "help": "Model: a name that faster-whisper knows, a repository of the model hub, or a "
            "folder. Give the option again to let jobs choose others; the first is the default."
        },
    )
    workers: int = field(
        default=0,
        metadata={
            "help": "Worker processes; 0 for one per physical core, as far as memory allows.",
            "minimum": 0,
        },
    )
    device: str = field(
        default="auto",
        metadata={"help": "Where to compute.", "choices": ("auto", "cpu", "cuda")},
    )
    compute_type: str = field(
        default="auto",
        metadata={
            "help": "Number format of the weights, as CTranslate2 names them; auto picks the "
            "fastest that keeps the words."
        },
    )

    model_idle_s: float = field(
        default=0.0,
        metadata={
            "help": "Seconds after which an idle worker gives its model's memory back; 0: never.",
            "minimum": 0,
        },
    )

    max_queue: int = field(
        default=1000,
        metadata={
            "help": "How many jobs may wait or be at work at once; 0 for any number.",
            "minimum": 0,
        },
    )
    keep_orphans: bool = field(
        default=False,
        metadata={
            "help": "Go on with a job of the OpenAI-compatible routes when its client has gone."
        },
    )

    keep: str = field(
        default="7d",
        metadata={
            "help": "How long to keep jobs that have ended, such as 30m, 12h, 7d or forever; "
            "0: not at all."
        },
    )
    keep_audio: bool = field(
        default=True,
        metadata={"help": "Keep the recordings of jobs that have ended as long as the jobs."},
    )

    def __post_init__(self) -> None:
        """Refuse what makes no sense, in words."""
        self.keep_s()

    def keep_s(self) -> float | None:
        """Return how many seconds to keep jobs that have ended; ``None`` for ever."""
        if self.keep == "forever":
            return None
        found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", self.keep)
        if not found or (not found[2] and found[1] != "0"):
            raise InvalidOption(
                f"keep: {self.keep!r} is no length of time such as 30m, 12h, 7d, forever or 0"
            )
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "": 0}[found[2]]

    def slots(self) -> int:
        """Return how many workers run side by side."""
        if self.workers:
            return self.workers
        by_memory = psutil.virtual_memory().available // _WORKER_BYTES
        return max(1, min(_cores(), int(by_memory)))

    def threads(self) -> int:
        """Return how many threads each worker computes with."""
        return max(1, _cores() // self.slots())


def _cores() -> int:
    """Physical cores that this process may use."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        allowed = os.cpu_count() or 1
    return min(allowed, int(psutil.cpu_count(logical=False) or allowed))
