"""The folder of recordings and decoded audio: one folder a job.

A recording appears under its job's folder only when it is whole and on the disk, so what a
crash leaves behind is either complete or in the folder of arrivals, which each start empties.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType

import psutil

from aiotranscribe.engine.spans import SAMPLE_RATE
from aiotranscribe.errors import StorageUnavailable

log = logging.getLogger(__name__)


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Say in our words that ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(f"{path} cannot be written: {error.strerror}") from error


class Arrival:
    """A recording on its way in; use it with ``async with``. What is not kept is discarded."""

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        # What is discarded waits for what is being written.
        self._lock = asyncio.Lock()
        #: How much has arrived.
        self.size_bytes = 0
        #: Who sends it, if that is another than this program.
        self.client: str | None = None

    async def __aenter__(self) -> "Arrival":
        # Not in a thread: whoever is cancelled there would leave it open.
        with writing_to(self._folder):
            descriptor, name = tempfile.mkstemp(dir=self._folder)
        self._file = os.fdopen(descriptor, "wb")
        self._path = Path(name)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Whoever is cancelled here too leaves nothing behind either.
        self._leaving = asyncio.create_task(self._leave())
        await asyncio.shield(self._leaving)

    async def _leave(self) -> None:
        async with self._lock:
            await asyncio.to_thread(self._discard)

    async def write(self, piece: bytes) -> None:
        """Take the next bytes; raises :class:`StorageUnavailable` if there is no room."""
        self.size_bytes += len(piece)
        with writing_to(self._folder):
            await asyncio.to_thread(self._write, piece)

    def _write(self, piece: bytes) -> None:
        free, least = shutil.disk_usage(self._folder).free >> 20, self._min_free_bytes >> 20
        if free < least:
            raise StorageUnavailable(
                f"there are {free} MiB left on the disk, and {least} MiB are for the jobs at work; "
                "delete some jobs, or see --min-free-disk"
            )
        self._file.write(piece)

    async def keep(self, path: Path) -> None:
        """Make the whole recording ``path``, on the disk for good."""
        async with self._lock:
            await asyncio.to_thread(self._keep, path)

    def _keep(self, path: Path) -> None:
        with writing_to(self._folder):
            self._file.flush()
            os.fsync(self._file.fileno())
            path.parent.mkdir()
            self._path.rename(path)
            for folder in (path.parent, path.parent.parent):
                _fsync_folder(folder)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # what cannot be written is discarded anyway
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


class Spool:
    """Files of all jobs under ``folder``. Its methods block: call them in a thread.

    Args:
        folder: Where they are.
        min_free_bytes: What recordings that arrive leave free on its disk.
    """

    def __init__(self, folder: Path, min_free_bytes: int = 0) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._arrivals = folder / "arriving"
        shutil.rmtree(self._arrivals, ignore_errors=True)
        self._arrivals.mkdir(parents=True)
        self._forget_sound_before(_boot())

    def _forget_sound_before(self, boot: str) -> None:
        """Remove decoded audio that a power cut may have damaged: all of before this boot.

        To synchronise it with the disk would cost every job more than to decode a few again.
        """
        path = self._folder / "boot"
        if path.exists() and path.read_text() == boot:
            return
        for pcm in self._folder.glob("*/pcm"):
            pcm.unlink()
        path.write_text(boot)

    def arrival(self) -> Arrival:
        """Return a place for a recording that is on its way."""
        return Arrival(self._arrivals, self._min_free_bytes)

    def remove(self, job_id: str) -> None:
        """Remove everything of a job's; nothing happens if there is nothing."""
        shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def remove_sound(self, job_id: str, *, keeps_recording: bool) -> None:
        """Remove what a job that has ended does not need.

        That is the decoded audio, which is many times larger than most recordings, and can be
        had again from them.
        """
        if not keeps_recording:
            self.remove(job_id)
            return
        try:
            self.pcm(job_id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("the decoded sound of job %s stays: %s", job_id, error)

    def has_sound(self, job_id: str, duration: float) -> bool:
        """Whether so many seconds of decoded audio are there."""
        try:
            size_bytes = self.pcm(job_id).stat().st_size
        except OSError:
            return False
        return size_bytes >= 2 * round(duration * SAMPLE_RATE)

    def tidy(
        self, known: Container[str], at_work: Container[str], *, keeps_recordings: bool
    ) -> None:
        """Remove what a crash has left behind.

        Args:
            known: Ids of all jobs.
            at_work: Ids of those that have not ended.
            keeps_recordings: Whether those of jobs that have ended are kept.
        """
        for path in self._folder.iterdir():
            if path == self._arrivals or not path.is_dir() or path.name in at_work:
                continue
            if path.name in known:
                self.remove_sound(path.name, keeps_recording=keeps_recordings)
            else:
                self.remove(path.name)

    def recording(self, job_id: str) -> Path:
        """Where a job's recording is."""
        return self._folder / job_id / "recording"

    def pcm(self, job_id: str) -> Path:
        """Where a job's decoded audio is, or will be."""
        return self._folder / job_id / "pcm"


def _boot() -> str:
    """What tells this run of the machine from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        return str(psutil.boot_time())


def _fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` last through a power cut (POSIX leaves that to us)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
