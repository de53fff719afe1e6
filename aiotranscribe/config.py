"""All settings, in one place.

The fields of :class:`Config` are the one source of the command line's options, of the
``AIOTRANSCRIBE_*`` variables and of the table in ``docs/settings.md``.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

# Resident memory of a worker with a small model, and what a machine should keep for the rest.
_WORKER_BYTES = 512 << 20


def _setting(default: Any, help_text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help_text, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How a transcriber runs. Built once, passed down, never changed."""

    data_dir: Path | None = _setting(
        None, "Folder for recordings and jobs; by default a folder of your user's."
    )
    model: tuple[str, ...] = _setting(
        ("tiny.en",),
        "Model: a name that faster-whisper knows, a repository of the model hub, or a folder. "
        "Give the option again to allow jobs to choose others; the first is the default.",
    )
    workers: int = _setting(
        0, "Worker processes; 0 for one per physical core, as far as memory allows.", minimum=0
    )
    device: str = _setting(
        "auto", "Where to compute.", choices=("auto", "cpu", "cuda")
    )
    compute_type: str = _setting(
        "auto", "Number format of the weights, as CTranslate2 names them; auto picks the fastest."
    )

    def slots(self) -> int:
        """Return how many workers run side by side."""
        if self.workers:
            return self.workers
        by_memory = psutil.virtual_memory().available // _WORKER_BYTES
        return max(1, min(_cores(), by_memory))

    def threads(self) -> int:
        """Return how many threads each worker computes with."""
        return max(1, _cores() // self.slots())


def _cores() -> int:
    """Physical cores that this process may use."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        allowed = os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)
