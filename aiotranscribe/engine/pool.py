"""Slots: places where one piece of work runs at a time, each a process with a pipe of its own.

A slot is a one-worker ``ProcessPoolExecutor``. One killed worker breaks every job of the pool
that it belongs to, so each has a pool to itself; a future may complete before the last message
is read, so the end of the work travels in the pipe, and a crash is the pipe's own end.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing.process import BaseProcess

from aiotranscribe.engine import messages, worker
from aiotranscribe.engine.messages import (
    Died,
    Done,
    Ended,
    Hello,
    Load,
    Message,
    Transcribe,
    Unload,
    Work,
)
from aiotranscribe.engine.whisper import Settings
from aiotranscribe.errors import WorkerDied

log = logging.getLogger(__name__)

#: A worker that is told to stop and does not within this time is killed.
STOP_GRACE_S = 2.0
# A worker that lived less than this is replaced slowly, lest a broken machine start them for ever.
_SHORT_LIFE_S, _LONGEST_WAIT_S = 5.0, 30.0
# How often to look whether a worker is still heard of.
_LOOK_S = 1.0
# A message is a segment at most; more than this is not from a worker of ours.
_LONGEST_MESSAGE_BYTES = 16 << 20


class Slot(asyncio.Protocol):
    """One worker process after another, doing one piece of work after another.

    Args:
        number: Which slot, for the log.
        model: What a new worker loads first.
        loading: How it does.
        on_message: Called in the loop with the slot, the work at hand and a message about it.
        silence_s: A worker that says nothing about its work for this long is killed.
    """

    def __init__(
        self,
        number: int,
        model: str,
        loading: tuple[Settings, worker.Loader],
        on_message: Callable[["Slot", Work | None, Message], None],
        *,
        silence_s: float,
    ) -> None:
        self.number = number
        #: The model in the worker, or the one being loaded; ``None`` after it was given back.
        self.model: str | None = model
        #: Whether the worker has loaded its model, though it may have given it back.
        self.is_ready = False
        #: How many workers, one after the other, ended before they had loaded their model.
        self.failed_starts = 0
        #: The work at hand.
        self.work: Work | None = None
        self._first_model = model
        self._initargs = loading
        self._silence_s = silence_s
        self._heard_at = 0.0
        self._on_message = on_message
        self._received = bytearray()
        #: Grows with every piece of work.
        self.work_number = 0
        self._has_begun = False
        self._lost = asyncio.Event()
        self._closing = asyncio.Event()
        self._process: BaseProcess | None = None
        self._task = asyncio.create_task(self._live(), name=f"slot-{number}")

    # -- what the owner calls ------------------------------------------------------------

    def perform(self, work: Work) -> None:
        """Begin ``work``. The slot must be free: ``work`` is ``None`` and a worker is up."""
        self.work_number += 1
        self.work = work
        self._has_begun = False
        self._heard_at = time.monotonic()
        match work:
            case Unload():
                self.model = None
            case Transcribe():
                self.model = work.options.model
        # A worker that has just died breaks its executor; the end of its pipe says so in a moment.
        with contextlib.suppress(BrokenExecutor):
            self._executor.submit(worker.perform, self.work_number, work)

    def stop(self) -> None:
        """Give up the work at hand: politely, and after two seconds not so."""
        if self.work is None:
            return
        number = self.work_number
        self._transport.write(number.to_bytes(worker.NUMBER_BYTES, "big"))
        asyncio.get_running_loop().call_later(STOP_GRACE_S, self._insist, number)

    async def close(self) -> None:
        """End the worker, whatever it is doing, and wait until it is gone."""
        self._closing.set()
        self._lost.set()
        await self._task

    @property
    def is_free(self) -> bool:
        """Whether work can begin here."""
        return self.work is None and self._process is not None and not self._closing.is_set()

    # -- the worker's life ---------------------------------------------------------------

    async def _live(self) -> None:
        wait_s = 0.0
        while not self._closing.is_set():
            born = time.monotonic()
            try:
                await self._start()
            except (OSError, RuntimeError) as refusal:  # of a process, memory, a file or a thread
                reason = f"could not be started: {refusal}"
            else:
                silence = await self._watch()
                reason = await self._bury()
                reason = silence or reason
            if self._closing.is_set():
                return
            log.warning("worker %s %s; starting another", self.number, reason)
            error = WorkerDied(f"the worker process {reason}").problem()
            self._deliver(Died(error, self._has_begun))
            is_short = time.monotonic() - born < _SHORT_LIFE_S
            wait_s = min(wait_s * 2 or 0.25, _LONGEST_WAIT_S) if is_short else 0.0
            self._lost.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), wait_s)

    async def _start(self) -> None:
        self.work_number += 1
        self.model = self._first_model
        self.work = Load(self._first_model)
        self._heard_at = time.monotonic()
        self._received.clear()
        ours, theirs = socket.socketpair()
        with theirs:
            self._transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self, ours
            )
            try:
                self._executor = ProcessPoolExecutor(
                    max_workers=1,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=worker.start,
                    initargs=(theirs, *self._initargs),
                )
                # In a thread, because the first call starts the process.
                await asyncio.to_thread(
                    self._executor.submit, worker.perform, self.work_number, self.work
                )
            except (OSError, RuntimeError):
                self._transport.abort()
                await self._lost.wait()  # or it would be taken for the end of the next worker
                raise

    async def _watch(self) -> str | None:
        """Wait until the worker is gone; kill one that has been silent too long, and say so."""
        while not self._lost.is_set():
            # Between two pieces of work a worker has nothing to say.
            silent_s = time.monotonic() - self._heard_at if self.work else 0.0
            if silent_s >= self._silence_s and self._process:
                self._process.kill()
                await self._lost.wait()
                return f"said nothing for {silent_s:.0f} s and was killed; see --worker-silence-s"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._lost.wait()
        return None

    async def _bury(self) -> str:
        """Make sure that the process is gone; return how it went."""
        self._transport.abort()  # which tells a worker that still lives to end itself
        process, self._process = self._process, None
        self.is_ready = False
        if process:
            await asyncio.to_thread(process.join, STOP_GRACE_S)
            process.kill()
        await asyncio.to_thread(self._executor.shutdown)
        return _how(process.exitcode if process else None)

    def _insist(self, number: int) -> None:
        if self.work is not None and self.work_number == number and self._process:
            log.warning("worker %s does not stop by itself; killing it", self.number)
            self._process.kill()

    # -- the pipe: asyncio.Protocol ------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the pipe's end."""

    def data_received(self, data: bytes) -> None:
        """Take whole messages out of what has arrived."""
        self._heard_at = time.monotonic()
        self._received += data
        start = 0
        while len(self._received) >= start + worker.HEADER_BYTES:
            body = start + worker.HEADER_BYTES
            length = int.from_bytes(self._received[start:body], "big")
            if length > _LONGEST_MESSAGE_BYTES:
                log.error("worker %s sent %s bytes in one message", self.number, length)
                self._transport.abort()
                return
            if len(self._received) < body + length:
                break
            start = body + length
            self._deliver(messages.decode(self._received[body:start]))
        del self._received[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Notice that the worker is gone; every message of its own was read before."""
        self._lost.set()

    def _deliver(self, message: Message) -> None:
        work = self.work
        self._has_begun = True
        if isinstance(message, Hello):
            children = multiprocessing.active_children()
            self._process = next((c for c in children if c.pid == message.pid), None)
        if isinstance(message, Ended):
            self.work = None
            if isinstance(work, Load):
                self.failed_starts = self.failed_starts + 1 if isinstance(message, Died) else 0
            if isinstance(work, Load | Transcribe) and isinstance(message, Done):
                self.is_ready = True
        self._on_message(self, work, message)


def _how(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is None:
        return "ended before it was up"
    if exitcode == -signal.SIGKILL:
        return "was killed (signal 9); often that means that the machine was out of memory"
    if exitcode == -signal.SIGXCPU:
        return "was stopped, because a piece of the recording took too much computing time"
    if exitcode < 0:
        return f"crashed (signal {-exitcode}, {signal.Signals(-exitcode).name})"
    return f"ended with exit code {exitcode}"
