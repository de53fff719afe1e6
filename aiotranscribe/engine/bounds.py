"""How much memory and time a recording may cost while it is decoded. Only in workers.

A file that lies can make a decoder ask for any amount of memory, or turn in circles. What the
model needs is not counted: the bounds are relative to what the process has when decoding begins.
"""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

# Measured: decoding and listening take 51 MiB more than a worker has. A decoder of video may ask
# for large pictures, and what is asked for counts, used or not.
_MEMORY_BYTES = 1 << 30
# Eight seconds of sound take 0.1 s on a slow machine.
_BLOCK_CPU_S = 120


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Bound memory, beyond which allocations fail, and time, which :func:`begin_block` renews."""
    with _restored(resource.RLIMIT_DATA), _restored(resource.RLIMIT_CPU):
        with contextlib.suppress(OSError):  # not Linux, where this limit means something else
            pages = int(Path("/proc/self/statm").read_text().split()[5])
            _lower(resource.RLIMIT_DATA, pages * resource.getpagesize() + _MEMORY_BYTES)
        begin_block()
        yield


def begin_block() -> None:
    """Give the next block of sound its time; the system kills a process that takes more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + _BLOCK_CPU_S)


@contextlib.contextmanager
def _restored(limit: int) -> Iterator[None]:
    before = resource.getrlimit(limit)
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


def _lower(limit: int, value: int) -> None:
    """Set the soft limit, which may be raised again; never over the hard one."""
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
