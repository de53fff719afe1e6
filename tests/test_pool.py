"""One slot by itself: a real process and pipe, a scripted model."""

import asyncio
import errno
import gc
import operator
import os
import select
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio

from aiotranscribe.engine import messages, pool
from aiotranscribe.engine.messages import (
    Died,
    Done,
    Ended,
    Entered,
    Failed,
    Hello,
    Message,
    Prepare,
    Recognised,
    Stopped,
    Transcribe,
    Unload,
    Work,
)
from aiotranscribe.engine.pool import STOP_GRACE_S, Slot
from aiotranscribe.engine.spans import SAMPLE_RATE, Span
from aiotranscribe.engine.whisper import Settings
from aiotranscribe.job import Options, Step
from tests import scripted
from tests.conftest import ROOT
from tests.scripted import Script
from tests.waiting import LONG_S, is_alive, until, wait_until, workers

pytestmark = pytest.mark.asyncio(loop_scope="module")

MakeWav = Callable[[float], Path]

# Two seconds of a recording.
SPANS = tuple(Span(n, ((n * SAMPLE_RATE, (n + 1) * SAMPLE_RATE),)) for n in range(2))
FOREVER = Script(segments=10_000, delay=0.05)

# What a service does that embeds the transcriber; it says which workers it has.
SERVICE = """
import asyncio, sys
import msgspec
from aiotranscribe import Config, Options, Transcriber
from tests import scripted
from tests.waiting import until_frame, workers

async def main():
    async with Transcriber(Config(model=("scripted",), workers=2), loader=scripted.load) as it:
        await it.ready()
        options = msgspec.json.decode(sys.argv[2], type=Options)
        job = await it.submit(sys.argv[1], options=options)
        await until_frame(it.watch(job.id), lambda frame: frame.current_step == "transcribing")
        print(*workers(), flush=True)
        await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


class Listened:
    """A slot, and all that its owner is told."""

    def __init__(self, model: str = "scripted") -> None:
        self.heard: list[tuple[Work | None, Message]] = []
        self._told = asyncio.Event()
        loading = Settings("cpu", "int8", 1), scripted.load
        self.slot = Slot(0, model, loading, self._note, silence_s=LONG_S)

    def _note(self, slot: Slot, work: Work | None, message: Message) -> None:
        assert slot is self.slot
        self.heard.append((work, message))
        self._told.set()

    async def until(self, condition: Callable[[Message], bool]) -> list[Message]:
        """Return what is heard up to a message; it is forgotten then."""
        async with asyncio.timeout(LONG_S):
            while True:
                for number, (_, message) in enumerate(self.heard, 1):
                    if condition(message):
                        heard, self.heard = self.heard[:number], self.heard[number:]
                        return [message for _, message in heard]
                self._told.clear()
                await self._told.wait()

    async def perform(self, work: Work) -> list[Message]:
        """Do a piece of work; return all that is heard of it."""
        self.slot.perform(work)
        return await self.until(is_end)


def recognised(heard: list[Message]) -> list[Recognised]:
    """Return the messages that bring text."""
    return [message for message in heard if isinstance(message, Recognised)]


def is_end(message: Message) -> bool:
    """Whether the message is the last one about a piece of work."""
    return isinstance(message, Ended)


def is_up(message: Message) -> bool:
    """Whether the message says that a new worker is there."""
    return isinstance(message, Hello)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listened() -> AsyncIterator[Listened]:
    """A slot whose worker has its model."""
    listened = Listened()
    await listened.until(is_end)
    yield listened
    await listened.slot.close()


@pytest.fixture
def pcm(tmp_path: Path) -> Path:
    """Decoded audio: three seconds of nothing."""
    path = tmp_path / "pcm"
    path.write_bytes(bytes(2 * 3 * SAMPLE_RATE))
    return path


def transcribe(pcm: Path, script: Script, *spans: Span) -> Transcribe:
    """Return the work of transcribing spans, by default one."""
    return Transcribe("job", str(pcm), spans or SPANS[:1], script.options(model="scripted"))


def is_broken(slot: Slot) -> bool:
    """Whether the slot's executor takes no more work."""
    try:
        slot._executor.submit(int)
    except BrokenExecutor:
        return True
    return False


async def works(listened: Listened, pcm: Path) -> None:
    """Check that the slot is as good as new."""
    *_, last = await listened.perform(transcribe(pcm, Script()))
    assert last == Done()
    assert listened.slot.is_free


async def test_a_worker_loads_its_model_first() -> None:
    """Otherwise a server says that it is ready, and its first job waits for the model."""
    listened = Listened()
    assert not listened.slot.is_free
    assert not listened.slot.is_ready
    hello, *rest = await listened.until(is_end)
    assert isinstance(hello, Hello)
    assert rest == [Entered(Step.LOADING_MODEL), Done()]
    assert listened.slot.is_free
    assert listened.slot.is_ready
    assert listened.slot.model == "scripted"
    await listened.slot.close()


async def test_a_recording_is_cut_into_spans(
    listened: Listened, make_wav: MakeWav, tmp_path: Path
) -> None:
    """Otherwise there is nothing to transcribe, or the end is told before all of it is."""
    pcm = tmp_path / "pcm"
    options = Options(vad_filter=False)
    heard = await listened.perform(Prepare("job", str(make_wav(20.0)), str(pcm), options))
    assert heard[0] == Entered(Step.DECODING)
    assert heard[-1] == messages.Prepared(20.0)
    seconds = [message.seconds for message in heard if isinstance(message, messages.Decoded)]
    assert seconds == sorted(seconds)
    assert seconds[-1] == 20.0
    spans = [message.span for message in heard if isinstance(message, messages.SpanFound)]
    assert [span.index for span in spans] == list(range(len(spans)))
    assert sum(span.length for span in spans) == pytest.approx(20.0, abs=0.1)
    assert pcm.stat().st_size == 2 * 20 * SAMPLE_RATE


async def test_messages_come_in_order_and_the_end_last(listened: Listened, pcm: Path) -> None:
    """Otherwise a job is completed before its last words are there."""
    heard = await listened.perform(transcribe(pcm, Script(segments=50), *SPANS))
    *before, last = heard
    assert last == Done()
    for span in SPANS:
        told = [each for each in recognised(before) if each.span == span.index]
        starts = [segment.start for each in told for segment in each.segments]
        assert len(starts) == 50
        assert starts == sorted(set(starts))
        assert [each.is_done for each in told] == [False] * 49 + [True]
    assert listened.heard == []


async def test_one_piece_of_work_follows_the_other(listened: Listened, pcm: Path) -> None:
    """Otherwise the text of one recording appears in another."""
    for number in range(3):
        work = transcribe(pcm, Script(segments=number + 1))
        listened.slot.perform(work)
        assert listened.slot.work is work
        assert not listened.slot.is_free
        heard = await listened.until(is_end)
        assert len(recognised(heard)) == number + 1
        assert listened.slot.work is None
        assert listened.slot.is_free


async def test_a_long_message_arrives_whole(listened: Listened, pcm: Path) -> None:
    """Otherwise a long sentence stops the loop, or everything after it is nonsense."""
    heard = await listened.perform(transcribe(pcm, Script(segments=3, padding=1_000_000)))
    texts = [segment.text for each in recognised(heard) for segment in each.segments]
    assert [len(text) > 1_000_000 for text in texts] == [True] * 3
    assert heard[-1] == Done()


async def test_a_message_without_end_ends_the_worker(listened: Listened, pcm: Path) -> None:
    """Otherwise a worker gone mad takes the server's memory."""
    *_, last = await listened.perform(transcribe(pcm, Script(segments=1, padding=17 << 20)))
    assert isinstance(last, Died)
    await listened.until(is_up)
    await listened.until(is_end)
    await works(listened, pcm)


async def test_work_that_fails_says_why(listened: Listened, pcm: Path) -> None:
    """Otherwise a job ends without a reason, or not at all."""
    *_, last = await listened.perform(transcribe(pcm, Script(fail_at=0)))
    assert isinstance(last, Failed)
    assert last.error.code == "work_failed"
    assert "as the script says" in last.error.message
    await works(listened, pcm)


async def test_work_can_be_stopped(listened: Listened, pcm: Path) -> None:
    """Otherwise a cancelled job goes on computing."""
    before = workers()
    listened.slot.perform(transcribe(pcm, FOREVER))
    await listened.until(lambda message: isinstance(message, Recognised))
    began = time.monotonic()
    listened.slot.stop()
    *_, last = await listened.until(is_end)
    assert last == Stopped()
    assert time.monotonic() - began < STOP_GRACE_S
    assert workers() == before
    await works(listened, pcm)


async def test_a_late_stop_hits_nothing_else(listened: Listened, pcm: Path) -> None:
    """Otherwise cancelling one job stops the next one."""
    work = transcribe(pcm, Script(segments=20, delay=0.001))
    for _ in range(10):
        listened.slot.perform(work)
        listened.slot.stop()
        *_, last = await listened.until(is_end)
        assert isinstance(last, Stopped | Done)
        assert (await listened.perform(work))[-1] == Done()
    listened.slot.stop()  # nothing
    await works(listened, pcm)


async def test_work_that_does_not_stop_is_killed(listened: Listened, pcm: Path) -> None:
    """Otherwise a model that hangs blocks its slot for ever."""
    listened.slot.perform(transcribe(pcm, Script(hang=600)))
    await listened.until(lambda message: message == Entered(Step.TRANSCRIBING))
    listened.slot.stop()
    *_, last = await listened.until(is_end)
    assert isinstance(last, Died)
    await listened.until(is_up)
    await listened.until(is_end)
    await works(listened, pcm)


async def test_a_death_is_told_once_and_the_worker_replaced(listened: Listened, pcm: Path) -> None:
    """Otherwise the jobs after a crash wait for a worker that is no more."""
    before = workers()
    heard = await listened.perform(transcribe(pcm, Script(segments=2, die_at=1)))
    assert len(recognised(heard)) == 1, "what it said is lost"
    assert isinstance(heard[-1], Died)
    assert heard[-1].error.code == "worker_died"
    assert "signal 9" in heard[-1].error.message
    assert not listened.slot.is_ready
    heard = [*await listened.until(is_up), *await listened.until(is_end)]
    assert not any(isinstance(message, Died) for message in heard)
    assert listened.slot.is_ready
    assert not workers() & before
    await works(listened, pcm)


async def test_work_given_to_a_worker_that_has_just_died_is_not_lost(pcm: Path) -> None:
    """Otherwise a worker killed in a quiet moment takes the next job, or all jobs, with it."""
    before = workers()
    listened = Listened()
    await listened.until(is_end)
    (pid,) = workers() - before
    os.kill(pid, signal.SIGKILL)
    # Without letting the loop know; the executor notices in a thread of its own.
    wait_until(lambda: not is_alive(pid) and is_broken(listened.slot))
    try:
        listened.slot.perform(transcribe(pcm, Script()))
        *_, last = await listened.until(is_end)
        assert isinstance(last, Died)
        await listened.until(is_up)
        await listened.until(is_end)
        await works(listened, pcm)
    finally:
        await listened.slot.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_only_the_server_ends_a_worker(
    listened: Listened, pcm: Path, number: signal.Signals
) -> None:
    """Otherwise Ctrl-C and service managers, who signal all, fail jobs that could go on."""
    listened.slot.perform(transcribe(pcm, Script(segments=10, delay=0.02)))
    await listened.until(lambda message: isinstance(message, Recognised))
    (pid,) = workers()
    os.kill(pid, number)
    *_, last = await listened.until(is_end)
    assert last == Done()


async def test_workers_are_nicer_than_the_server(listened: Listened) -> None:
    """Otherwise the server does not answer while every core decodes."""
    assert listened.slot.is_ready
    (pid,) = workers()
    assert psutil.Process(pid).nice() >= psutil.Process().nice() + 5


async def test_a_model_is_given_back_and_loaded_again(listened: Listened, pcm: Path) -> None:
    """Otherwise memory never comes back, or comes back at the price of the next job."""
    assert (await listened.perform(Unload()))[-1] == Done()
    assert listened.slot.model is None
    heard = await listened.perform(transcribe(pcm, Script()))
    assert heard[0] == Entered(Step.LOADING_MODEL)
    assert heard[-1] == Done()
    assert listened.slot.model == "scripted"


async def test_a_worker_that_cannot_start_is_tried_again_and_again() -> None:
    """Otherwise a server never recovers from a bad moment, or burns all of the processor."""
    listened = Listened("fatal")
    began = time.monotonic()
    for _ in range(3):
        *_, last = await listened.until(is_end)
        assert isinstance(last, Died)
        assert "exit code 3" in last.error.message
    assert time.monotonic() - began > 0.5, "without a pause"
    began = time.monotonic()
    await listened.slot.close()
    assert time.monotonic() - began < 5
    assert not any(isinstance(message, Died) for _, message in listened.heard)


@pytest.mark.parametrize("what", ["socket.socketpair", "multiprocessing.util.spawnv_passfds"])
async def test_a_worker_that_the_system_refuses_is_tried_again(
    pcm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Otherwise a moment without memory, processes or files costs a worker for ever."""
    refusals = [OSError(errno.EAGAIN, "too many"), OSError(errno.ENOMEM, "too large")]
    real = operator.attrgetter(what.partition(".")[2])(sys.modules[what.partition(".")[0]])

    def start(*arguments: Any) -> Any:
        if refusals:
            raise refusals.pop(0)
        return real(*arguments)

    monkeypatch.setattr(what, start)
    files = psutil.Process().num_fds()
    listened = Listened()
    began = time.monotonic()
    for number, reason in enumerate(["too many", "too large"], 1):
        *_, last = await listened.until(is_end)
        assert isinstance(last, Died)
        assert last.error.code == "worker_died"
        assert reason in last.error.message
        assert listened.slot.failed_starts == number
        assert not listened.slot.is_free
    gc.collect()
    assert psutil.Process().num_fds() <= files + 8, "more stays open than one attempt needs"
    assert [reason in caplog.text for reason in ("too many", "too large")] == [True] * 2
    await listened.until(is_up)
    await listened.until(is_end)
    assert time.monotonic() - began > 0.5, "without a pause"
    assert listened.slot.failed_starts == 0
    await works(listened, pcm)
    await listened.slot.close()


async def test_a_slot_that_the_system_refuses_closes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a server that cannot work cannot be stopped either."""
    monkeypatch.setattr(pool, "ProcessPoolExecutor", refuse)
    listened = Listened()
    for _ in range(3):
        await listened.until(is_end)
    began = time.monotonic()
    await listened.slot.close()
    assert time.monotonic() - began < 1


def refuse(**arguments: Any) -> Any:
    """Start nothing, as a system that is full."""
    raise OSError(errno.EAGAIN, "too many")


async def test_a_busy_slot_closes_quickly(pcm: Path) -> None:
    """Otherwise the server cannot be stopped while it works."""
    before = workers()
    listened = Listened()
    await listened.until(is_end)
    (pid,) = workers() - before
    listened.slot.perform(transcribe(pcm, Script(hang=600)))
    await listened.until(lambda message: message == Entered(Step.TRANSCRIBING))
    began = time.monotonic()
    await listened.slot.close()
    assert time.monotonic() - began < 5
    assert not is_alive(pid)
    assert not listened.slot.is_free


async def test_a_worker_ends_with_its_slot_though_nobody_heard_it_out(
    pcm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a worker that had still something to say when its server died lives for ever.

    The kernel tells it so with a reset, not with an orderly end.
    """
    monkeypatch.setattr(pool, "STOP_GRACE_S", 20.0)
    listened = Listened()
    await listened.until(is_end)
    listened.slot.perform(transcribe(pcm, Script()))
    # Without letting the loop read it.
    pipe = listened.slot._transport.get_extra_info("socket")
    wait_until(lambda: select.select([pipe], [], [], 0)[0])
    began = time.monotonic()
    await listened.slot.close()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("script", [Script(hang=600), FOREVER], ids=["hanging", "talking"])
async def test_a_server_that_is_killed_leaves_no_workers(
    make_wav: MakeWav, tmp_path: Path, script: Script
) -> None:
    """Otherwise workers without a server compute for ever and keep their memory."""
    options = msgspec.json.encode(script.options()).decode()
    with (tmp_path / "said").open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SERVICE, str(make_wav(2.0)), options), cwd=ROOT, stdout=said
        )
    try:
        await until(lambda: (tmp_path / "said").read_text().endswith("\n"))
        pids = [int(pid) for pid in (tmp_path / "said").read_text().split()]
        assert len(pids) == 2
        assert all(is_alive(pid) for pid in pids)
        # It may be so busy at the end that it does not listen any more.
        process.send_signal(signal.SIGSTOP)
        before = switches(pids)
        if script is FOREVER:
            await until(lambda: switches(pids) > before + 10)
    finally:
        process.kill()
        await process.wait()
    await until(lambda: not any(is_alive(pid) for pid in pids), timeout_s=20)


def switches(pids: list[int]) -> int:
    """Return how often the processes have waited for something."""
    return sum(psutil.Process(pid).num_ctx_switches().voluntary for pid in pids)
