"""The real server in a process of its own, for benchmarks to measure from outside."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(
    data_dir: Path, *arguments: str, module: str = "aiotranscribe"
) -> Iterator[tuple[str, int]]:
    """Run ``aiotranscribe serve``; yields its URL and process id once it is ready."""
    command = [sys.executable, "-m", module, "serve", "--port", "0", "--data-dir", str(data_dir)]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the server did not start"
        yield found[0], process.pid
    finally:
        process.terminate()
        process.wait(20)
