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

    token: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata={
            "help": "Secret that lets in whoever sends it, or NAME:SECRET. Other users of this "
            "machine can see what stands on a command line: better use the variable or a file."
        },
    )
    token_file: Path | None = field(
        default=None, metadata={"help": "File with a token, or NAME:TOKEN, on each line."}
    )
    allow_anonymous: bool = field(
        default=False,
        metadata={"help": "Listen beyond this machine without any token: everybody may do all."},
    )
    allow_origin: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Site whose pages may use the server too, such as https://app.example."},
    )
    base_path: str = field(
        default="", metadata={"help": "Path under which a proxy has the server, such as /stt."}
    )
    trusted_proxy: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Address or network of a proxy whose X-Forwarded-* headers are true."},
    )

    max_upload: str = field(
        default="4GiB", metadata={"help": "Largest recording that is taken, such as 500MiB."}
    )
    min_free_disk: str = field(
        default="256MiB",
        metadata={"help": "Room on the disk that uploads leave to the jobs at work."},
    )
    max_duration: str = field(
        default="24h", metadata={"help": "Longest recording that is transcribed; or forever."}
    )
    max_jobs_per_client: int = field(
        default=1000,
        metadata={"help": "Most jobs of one client that have not ended.", "minimum": 1},
    )
    max_sockets_per_client: int = field(
        default=10_000,
        metadata={"help": "Most sockets and event streams of one client.", "minimum": 1},
    )
    idle_s: float = field(
        default=60.0,
        metadata={
            "help": "Seconds that a connection may be silent before a request, or an upload slow.",
            "minimum": 1,
        },
    )
    worker_silence_s: float = field(
        default=900.0,
        metadata={"help": "Seconds of silence after which a worker is replaced.", "minimum": 1},
    )
    log_format: str = field(
        default="text",
        metadata={
            "help": "Lines for people, or one JSON object each.",
            "choices": ("text", "json"),
        },
    )

    def __post_init__(self) -> None:
        """Refuse what makes no sense, in words."""
        self.keep_s()
        self.max_duration_s()
        self.max_upload_bytes()
        self.min_free_disk_bytes()

    def keep_s(self) -> float | None:
        """Return how many seconds to keep jobs that have ended; ``None`` for ever."""
        return _seconds("keep", self.keep)

    def max_duration_s(self) -> float | None:
        """Return how many seconds a recording may have; ``None`` for any number."""
        return _seconds("max_duration", self.max_duration)

    def max_upload_bytes(self) -> int:
        """Return how large a recording may be."""
        return _bytes("max_upload", self.max_upload)

    def min_free_disk_bytes(self) -> int:
        """Return how much of the disk uploads leave free."""
        return _bytes("min_free_disk", self.min_free_disk)

    def slots(self) -> int:
        """Return how many workers run side by side."""
        if self.workers:
            return self.workers
        by_memory = psutil.virtual_memory().available // _WORKER_BYTES
        return max(1, min(_cores(), int(by_memory)))

    def threads(self) -> int:
        """Return how many threads each worker computes with."""
        return max(1, _cores() // self.slots())


def _seconds(name: str, text: str) -> float | None:
    if text == "forever":
        return None
    found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text)
    if not found or (not found[2] and found[1] != "0"):
        raise InvalidOption(
            f"{name}: {text!r} is no length of time such as 30m, 12h, 7d, forever or 0"
        )
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "": 0}[found[2]]


def _bytes(name: str, text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})([KMGT]i)?B?", text)
    if not found:
        raise InvalidOption(f"{name}: {text!r} is no size such as 500MiB, 4GiB or 0")
    return int(found[1]) << {None: 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}[found[2]]


def _cores() -> int:
    """Physical cores that this process may use."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        allowed = os.cpu_count() or 1
    return min(allowed, int(psutil.cpu_count(logical=False) or allowed))
