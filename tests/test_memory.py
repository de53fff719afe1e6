"""Memory that is free goes back to the system."""

import platform

import numpy as np
import psutil
import pytest

from aiotranscribe.engine import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps so much")
def test_what_is_free_is_given_back() -> None:
    """A worker would keep for ever what its most difficult minute needed."""
    process = psutil.Process()
    blocks = [np.ones(10_000, np.uint8) for _ in range(10_000)]
    pinned = blocks[::100]  # so that there are holes, and the heap cannot just end earlier
    before = process.memory_info().rss
    del blocks
    memory.give_back()
    assert before - process.memory_info().rss > 50e6
    assert len(pinned) == 100


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers would not start on Alpine Linux or macOS."""
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    memory.use_one_heap()
    memory.give_back()
