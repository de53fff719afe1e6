"""The folder of recordings and decoded audio: one folder a job. Blocking; call it in a thread.

A recording appears under its job's folder only when it is whole and on the disk, so what a
crash leaves behind is either complete or in the folder of arrivals, which each start empties.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO


class Spool:
    """Files of all jobs under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrivals = folder / "arriving"
        shutil.rmtree(self._arrivals, ignore_errors=True)
        self._arrivals.mkdir(parents=True)

    def arrive(self) -> BinaryIO:
        """Open a file for a recording that is on its way. Give it to `keep` or to `discard`."""
        return tempfile.NamedTemporaryFile(dir=self._arrivals, delete=False)  # type: ignore[return-value]

    def keep(self, arrived: BinaryIO, job_id: str) -> None:
        """Make a whole recording the job's own, on the disk for good."""
        arrived.flush()
        os.fsync(arrived.fileno())
        arrived.close()
        self.recording(job_id).parent.mkdir()
        Path(arrived.name).rename(self.recording(job_id))
        for folder in (self.recording(job_id).parent, self._folder):
            _fsync_folder(folder)

    def discard(self, arrived: BinaryIO) -> None:
        """Remove a recording that did not arrive whole."""
        arrived.close()
        Path(arrived.name).unlink(missing_ok=True)

    def remove(self, job_id: str) -> None:
        """Remove everything of a job's; nothing happens if there is nothing."""
        shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def recording(self, job_id: str) -> Path:
        """Where a job's recording is."""
        return self._folder / job_id / "recording"

    def pcm(self, job_id: str) -> Path:
        """Where a job's decoded audio is, or will be."""
        return self._folder / job_id / "pcm"


def _fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` last through a power cut (POSIX leaves that to us)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
