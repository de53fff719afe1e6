"""The hub: many watchers of one job, of whom each gets everything once."""

import asyncio
import gc
import weakref
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe import hub as hubs
from aiotranscribe.errors import JobNotFound
from aiotranscribe.frame import Frame, View, decode, make_cursor
from aiotranscribe.hub import Hub, Subscription
from aiotranscribe.job import Status
from aiotranscribe.transcript import Segment
from tests import builders
from tests.builders import RUN, RUNS

JOB = "job"
# Long enough for any machine; whoever waits this long waits for something that does not come.
PATIENCE_S = 10


@pytest.fixture(autouse=True)
def no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep heartbeats away, lest one hides that a change woke nobody."""
    monkeypatch.setattr(hubs, "HEARTBEAT_S", 3600.0)


async def nothing_on_disk(job_id: str) -> list[Segment]:
    """Read the segments of a job, of which there are none."""
    raise AssertionError(f"{job_id} is in memory")


@pytest.fixture
def hub() -> Hub:
    """A hub with one running job that has no text yet."""
    hub = Hub(nothing_on_disk)
    hub.publish(JOB, builders.view(0))
    return hub


async def following(subscription: Subscription) -> Frame:
    """Return the next frame."""
    async with asyncio.timeout(PATIENCE_S):
        return await anext(subscription)


async def all_of(subscription: Subscription) -> list[Frame]:
    """Return all frames to the end of the iteration."""
    async with asyncio.timeout(PATIENCE_S):
        return [frame async for frame in subscription]


def numbers(frame: Frame) -> list[int]:
    """Return the ids of a frame's segments."""
    return [segment.id for segment in frame.segments]


# -- what one watcher gets -------------------------------------------------------------------


async def test_a_watcher_gets_the_state_at_once(hub: Hub) -> None:
    """Otherwise a page stays empty until something happens."""
    hub.publish(JOB, builders.view(2))
    frame = await following(hub.subscribe(JOB))
    assert frame.status is Status.RUNNING
    assert (frame.offset, numbers(frame)) == (0, [0, 1])


async def test_a_watcher_who_waits_gets_each_change(hub: Hub) -> None:
    """Otherwise nothing is live."""
    subscription = hub.subscribe(JOB)
    await following(subscription)
    for count in (1, 2, 3):
        # The task waits before the loop comes to publishing.
        waiting = asyncio.create_task(following(subscription))
        asyncio.get_running_loop().call_soon(hub.publish, JOB, builders.view(count))
        frame = await waiting
        assert (frame.offset, numbers(frame)) == (count - 1, [count - 1])


async def test_a_change_without_text_is_told_too(hub: Hub) -> None:
    """Otherwise step and percentage stand still while no sentence comes."""
    subscription = hub.subscribe(JOB)
    await following(subscription)
    head = msgspec.structs.replace(builders.head(0), current_step="loading_model")
    hub.publish(JOB, View(head, [], RUNS))
    frame = await following(subscription)
    assert (frame.current_step, numbers(frame)) == ("loading_model", [])


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
async def test_the_terminal_frame_comes_last_and_then_the_end(hub: Hub, status: Status) -> None:
    """Otherwise a client hangs after the end, or ends without having seen it."""
    subscription = hub.subscribe(JOB)
    await following(subscription)
    assert not subscription.is_finished
    waiting = asyncio.create_task(all_of(subscription))
    asyncio.get_running_loop().call_soon(hub.publish, JOB, builders.view(1, status))
    frames = await waiting
    assert [frame.status for frame in frames] == [status]
    assert subscription.is_finished
    assert await all_of(subscription) == [], "an iteration that has ended stays so"


async def test_a_late_watcher_gets_everything_so_far(hub: Hub) -> None:
    """Otherwise someone who comes later never sees the beginning."""
    early = hub.subscribe(JOB)
    await following(early)
    hub.publish(JOB, builders.view(3))
    assert numbers(await following(early)) == [0, 1, 2]
    assert numbers(await following(hub.subscribe(JOB))) == [0, 1, 2]


async def test_a_watcher_after_the_end_gets_one_frame(hub: Hub) -> None:
    """Otherwise opening a finished job hangs, or shows nothing."""
    hub.publish(JOB, builders.view(2, Status.COMPLETED))
    subscription = hub.subscribe(JOB)
    frames = await all_of(subscription)
    assert [(frame.status, numbers(frame)) for frame in frames] == [("completed", [0, 1])]
    assert subscription.is_finished


async def test_a_cursor_saves_what_one_has(hub: Hub) -> None:
    """Otherwise every broken connection sends the whole text again."""
    hub.publish(JOB, builders.view(3))
    frame = await following(hub.subscribe(JOB, make_cursor(RUN, 2)))
    assert (frame.offset, numbers(frame)) == (2, [2])


@pytest.mark.parametrize("cursor", [make_cursor(RUN, 4), make_cursor("6", 2), "garbage"])
async def test_a_cursor_that_is_not_ours_gets_everything(hub: Hub, cursor: str) -> None:
    """Otherwise someone's text silently lacks its beginning."""
    hub.publish(JOB, builders.view(3))
    frame = await following(hub.subscribe(JOB, cursor))
    assert (frame.offset, numbers(frame)) == (0, [0, 1, 2])


async def test_a_slow_watcher_gets_one_frame_with_all_that_it_missed(hub: Hub) -> None:
    """Otherwise one phone on a bad line fills the server's memory, or loses text."""
    subscription = hub.subscribe(JOB)
    await following(subscription)
    for count in range(1, 100):
        hub.publish(JOB, builders.view(count))
    frame = await following(subscription)
    assert (frame.offset, numbers(frame)) == (0, list(range(99)))
    hub.publish(JOB, builders.view(99, Status.COMPLETED))
    frames = await all_of(subscription)
    assert [(frame.status, numbers(frame)) for frame in frames] == [("completed", [])]


async def test_an_unknown_job_cannot_be_watched(hub: Hub) -> None:
    """Otherwise a mistyped id waits for ever for a job that never was."""
    with pytest.raises(JobNotFound, match="'typo'"):
        hub.subscribe("typo")
    with pytest.raises(JobNotFound, match="'typo'"):
        hub.view("typo")


async def test_jobs_do_not_mix(hub: Hub) -> None:
    """Otherwise someone reads what someone else dictated."""
    hub.publish("other", builders.view(5))
    assert numbers(await following(hub.subscribe(JOB))) == []
    assert hub.view("other").count == 5


# -- many watchers ---------------------------------------------------------------------------


async def test_a_thousand_watchers_share_one_frame_and_its_bytes(hub: Hub) -> None:
    """Otherwise a popular job is encoded a thousand times, and every watcher waits for it."""
    watchers = [hub.subscribe(JOB) for _ in range(1000)]
    first = [await following(watcher) for watcher in watchers]
    hub.publish(JOB, builders.view(1))
    frames = [await following(watcher) for watcher in watchers]
    assert len({id(frame) for frame in first}) == len({id(frame) for frame in frames}) == 1
    encoded = [watcher.encode(frame) for watcher, frame in zip(watchers, frames, strict=True)]
    assert len({id(data) for data in encoded}) == 1
    assert decode(encoded[0]) == frames[0]


async def test_a_frame_is_encoded_as_it_was_received(hub: Hub) -> None:
    """Otherwise a watcher who sends late gets the state of another moment, and a gap."""
    hub.publish(JOB, builders.view(1))
    subscription = hub.subscribe(JOB)
    frame = await following(subscription)
    hub.publish(JOB, builders.view(2))
    assert decode(subscription.encode(frame)) == frame


async def test_a_watcher_who_leaves_disturbs_nobody(hub: Hub) -> None:
    """Otherwise one closed tab stops the others."""
    leaving, staying = hub.subscribe(JOB), hub.subscribe(JOB)
    await following(leaving)
    await following(staying)
    leaving.close()
    leaving.close()
    hub.publish(JOB, builders.view(1))
    assert numbers(await following(staying)) == [0]
    assert await all_of(leaving) == []
    assert not leaving.is_finished


async def test_a_watcher_who_leaves_is_forgotten(hub: Hub) -> None:
    """Otherwise the server's memory grows with everyone who ever looked."""
    subscription = hub.subscribe(JOB)
    await following(subscription)
    subscription.close()
    forgotten = weakref.ref(subscription)
    del subscription
    gc.collect()
    assert forgotten() is None


# -- endings ---------------------------------------------------------------------------------


async def test_close_ends_every_iteration(hub: Hub) -> None:
    """Otherwise the server cannot stop while someone watches."""
    waiting, busy = hub.subscribe(JOB), hub.subscribe(JOB)
    await following(waiting)
    ended = asyncio.create_task(all_of(waiting))
    asyncio.get_running_loop().call_soon(hub.close)
    assert await ended == []
    assert await all_of(busy) == []
    assert not waiting.is_finished, "the job goes on: its watchers must come back"


async def test_closing_an_iteration_from_elsewhere_ends_its_wait(hub: Hub) -> None:
    """Otherwise a socket whose peer has left stays until something happens."""
    subscription = hub.subscribe(JOB)
    await following(subscription)
    ended = asyncio.create_task(all_of(subscription))
    asyncio.get_running_loop().call_soon(subscription.close)
    assert await ended == []


async def test_watchers_of_a_dropped_job_still_see_its_end(hub: Hub) -> None:
    """Otherwise a page shows a deleted job as running for ever."""
    subscription = hub.subscribe(JOB)
    await following(subscription)
    hub.publish(JOB, builders.view(1, Status.CANCELLED))
    hub.drop(JOB)
    frames = await all_of(subscription)
    assert [(frame.status, numbers(frame)) for frame in frames] == [("cancelled", [0])]
    assert subscription.is_finished
    with pytest.raises(JobNotFound):
        hub.subscribe(JOB)


async def test_a_heartbeat_comes_while_nothing_changes(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a page cannot tell a long silence from a dead connection."""
    monkeypatch.setattr(hubs, "HEARTBEAT_S", 0.001)
    hub.publish(JOB, builders.view(2))
    subscription = hub.subscribe(JOB)
    frame = await following(subscription)
    for _ in range(3):
        beat = await following(subscription)
        assert (beat.offset, numbers(beat)) == (2, [])
        assert beat.time > builders.head(2).time
        assert (beat.status, beat.cursor, beat.message) == (
            frame.status,
            frame.cursor,
            frame.message,
        )


async def test_changes_come_after_heartbeats_too(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a watcher's text stops after the first quiet quarter of a minute."""
    monkeypatch.setattr(hubs, "HEARTBEAT_S", 0.001)
    subscription = hub.subscribe(JOB)
    await following(subscription)
    await following(subscription)
    hub.publish(JOB, builders.view(1, Status.COMPLETED))
    frames = await all_of(subscription)
    assert [(frame.status, numbers(frame)) for frame in frames] == [("completed", [0])]


# -- any interleaving ------------------------------------------------------------------------


@dataclass
class Watcher:
    """Someone who follows by the one rule that the documentation gives."""

    subscription: Subscription
    mine: list[Segment] = field(default_factory=list)
    cursor: str | None = None
    has_news: bool = True

    async def read(self) -> Frame:
        """Receive a frame and apply it."""
        frame = await following(self.subscription)
        assert frame.offset <= len(self.mine), "there must be no gap"
        self.mine[frame.offset :] = frame.segments
        self.cursor, self.has_news = frame.cursor, False
        return frame


# How many segments come, or which of three watchers reads, or loses its connection.
STEPS = st.lists(
    st.tuples(st.just("publish"), st.integers(0, 3))
    | st.tuples(st.sampled_from(["read", "reconnect"]), st.integers(0, 2)),
    max_size=40,
)


@given(STEPS)
def test_every_watcher_has_the_whole_text_whatever_happens_when(
    steps: list[tuple[str, int]],
) -> None:
    """Otherwise sentences are lost or doubled on somebody's screen."""
    asyncio.run(_follow(steps))


async def _follow(steps: list[tuple[str, int]]) -> None:
    hub, count = Hub(nothing_on_disk), 0
    hub.publish(JOB, builders.view(0))
    watchers = [Watcher(hub.subscribe(JOB)) for _ in range(3)]
    for step, number in steps:
        if step == "publish":
            count += number
            hub.publish(JOB, builders.view(count))
            for watcher in watchers:
                watcher.has_news = True
            continue
        watcher = watchers[number]
        if step == "reconnect":
            watcher.subscription.close()
            watcher.subscription = hub.subscribe(JOB, watcher.cursor)
            watcher.has_news = True
        elif watcher.has_news:
            await watcher.read()
            assert watcher.mine == builders.segments(count)
    hub.publish(JOB, builders.view(count, Status.COMPLETED))
    for watcher in watchers:
        assert (await watcher.read()).status is Status.COMPLETED
        assert watcher.mine == builders.segments(count)
        assert await all_of(watcher.subscription) == []
