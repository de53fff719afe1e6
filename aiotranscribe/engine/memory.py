"""Give memory back to the system. Only in workers.

glibc keeps what is freed, in a heap for each thread, and has a hole of the right size less often
than one would think. Measured in ``benchmarks/README.md``. Elsewhere nothing is done.
"""

import ctypes
from typing import Any

# malloc.h: M_ARENA_MAX
_M_ARENA_MAX = -8


def use_one_heap() -> None:
    """Let all threads share a heap; call it before there are any."""
    _call("mallopt", _M_ARENA_MAX, 1)


def give_back() -> None:
    """Return what is free to the system; too often costs time, since it will be needed again."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function: Any = getattr(ctypes.CDLL(None), name, None)
    if function:  # not with musl, nor on macOS
        function(*arguments)
