"""The hub: many watchers of one job, of whom each gets everything once."""

import asyncio
import gc
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from aiotranscribe import hub as hubs
from aiotranscribe.errors import JobNotFound
from aiotranscribe.frame import Frame, View, decode, make_cursor
from aiotranscribe.hub import Board, Hub, Subscription
from aiotranscribe.job import Run, Status
from aiotranscribe.transcript import Segment
from tests import builders
from tests.builders import RUN, RUNS
from tests.waiting import until

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


# -- those who are pushed to -----------------------------------------------------------------


class Peer:
    """A watcher who takes what is pushed, unless he is full; and the rest by the iteration."""

    def __init__(self, hub: Hub) -> None:
        self.subscription = hub.subscribe(JOB)
        self.subscription.push_to(self, push)
        self.is_full = False
        #: The frames that were pushed, and those that came by the iteration.
        self.pushed: list[Frame] = []
        self.fetched: list[Frame] = []
        self.text: list[int] = []
        self.task: asyncio.Task[None] | None = None
        self.has_ended = asyncio.Event()
        self.resume()

    def resume(self) -> None:
        """Take what is missing."""
        assert self.task is None or self.task.done(), "one at a time"
        self.task = asyncio.create_task(self.follow())

    async def follow(self) -> None:
        """Take what is missing, until nothing is."""
        async for frame in self.subscription:
            self.fetched.append(frame)
            self.take(frame)
        if not self.subscription.is_live:
            self.has_ended.set()

    async def end(self) -> None:
        """Wait for the end."""
        await asyncio.wait_for(self.has_ended.wait(), PATIENCE_S)

    def take(self, frame: Frame) -> None:
        """Take a frame, after all those before it."""
        assert frame.offset <= len(self.text), "there must be no gap"
        self.text[frame.offset :] = numbers(frame)


def push(peers: Iterable[Peer], data: bytes) -> list[Peer]:
    """Push a frame to all who are not full."""
    for peer in peers:
        if not peer.is_full:
            frame = decode(data)
            peer.pushed.append(frame)
            peer.take(frame)
    return [peer for peer in peers if peer.is_full]


async def settle() -> None:
    """Let everybody who has something to do do it."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_misses_nothing_is_pushed_to_at_once(hub: Hub) -> None:
    """Otherwise each frame is a switch of tasks for each of thousands of watchers."""
    peers = [Peer(hub) for _ in range(3)]
    await settle()
    for count in range(1, 4):
        hub.publish(JOB, builders.view(count))
        assert [peer.text for peer in peers] == 3 * [list(range(count))]
    hub.publish(JOB, builders.view(4, Status.COMPLETED))
    await asyncio.gather(*(peer.end() for peer in peers))
    for peer in peers:
        assert [numbers(frame) for frame in peer.pushed] == [[0], [1], [2]]
        assert [(frame.status, numbers(frame)) for frame in peer.fetched] == [
            ("running", []),
            ("completed", [3]),
        ]


async def test_who_is_full_gets_one_frame_with_all_that_he_missed(hub: Hub) -> None:
    """Otherwise a phone on a bad line loses text, or fills the server's memory."""
    peer = Peer(hub)
    await settle()
    peer.is_full = True
    for count in range(1, 50):
        hub.publish(JOB, builders.view(count))
    assert not peer.text
    await settle()
    peer.is_full = False
    assert [numbers(frame) for frame in peer.fetched] == [[], list(range(49))]
    hub.publish(JOB, builders.view(50))
    assert [numbers(frame) for frame in peer.pushed] == [[49]]
    hub.publish(JOB, builders.view(50, Status.COMPLETED))
    await peer.end()
    assert peer.text == list(range(50))


async def test_who_is_full_delays_nobody(hub: Hub) -> None:
    """Otherwise one stuck phone makes the text late for everybody."""
    peers = [Peer(hub) for _ in range(10)]
    await settle()
    for peer in peers[::2]:
        peer.is_full = True
    for count in range(1, 4):
        # Nothing else runs meanwhile: the others have it when publishing is over.
        hub.publish(JOB, builders.view(count))
        assert [peer.text for peer in peers[1::2]] == 5 * [list(range(count))]
    assert not any(peer.text for peer in peers[::2])
    hub.close()
    await asyncio.gather(*(peer.end() for peer in peers))


async def test_who_is_pushed_to_has_signs_of_life_too(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a page takes a long silence for a dead connection, or gets text twice."""
    monkeypatch.setattr(hubs, "HEARTBEAT_S", 0.01)
    peers = [Peer(hub) for _ in range(3)]
    await until(lambda: len(peers[0].pushed) > 2)
    hub.publish(JOB, builders.view(2))
    peers[0].is_full = True
    count = len(peers[2].pushed)
    await until(lambda: len(peers[2].pushed) > count + 2)
    beats = peers[2].pushed[count:]
    assert all((frame.offset, numbers(frame)) == (2, []) for frame in beats)
    times = [frame.time for frame in beats]
    assert times == sorted(times)
    assert peers[1].pushed == peers[2].pushed, "one sign for all"
    assert all((frame.offset, numbers(frame)) == (2, []) for frame in peers[0].fetched[1:])
    assert [peer.text for peer in peers] == 3 * [[0, 1]]
    for peer in peers:
        peer.subscription.close()
        await peer.end()


async def test_signs_of_life_end_with_the_last_who_is_pushed_to(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every job that was ever watched has a timer for ever."""
    monkeypatch.setattr(hubs, "HEARTBEAT_S", 0.01)
    topic = hub._topics[JOB]
    for _ in range(2):
        peer = Peer(hub)
        await until(lambda: len(peer.pushed) > 1)  # noqa: B023
        peer.subscription.close()
        await peer.end()
        await until(lambda: topic._beat is None)


async def test_who_is_pushed_to_needs_no_other_sign_of_life(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise thousands are told twice as often as need be."""
    monkeypatch.setattr(hubs, "HEARTBEAT_S", 0.2)
    peer = Peer(hub)
    for count in range(1, 50):
        await asyncio.sleep(0.01)
        hub.publish(JOB, builders.view(count))
    # On a slow machine there may have been a silence, but hardly two.
    assert len(peer.fetched) == 1
    assert len(peer.pushed) <= 49 + 1
    peer.subscription.close()
    await peer.end()


async def test_who_is_pushed_to_and_leaves_is_forgotten(hub: Hub) -> None:
    """Otherwise a server that is watched for a week fills its memory, and writes to the dead."""
    peers = [Peer(hub) for _ in range(2)]
    await settle()
    peers[0].subscription.close()
    hub.publish(JOB, builders.view(1))
    assert [peer.text for peer in peers] == [[], [0]]
    hub.close()
    await asyncio.gather(*(peer.end() for peer in peers))
    topic = hub._topics[JOB]
    assert not topic.watchers
    assert not any(topic.live.values())


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), max_size=30))
def test_whoever_lags_and_when_everybody_has_the_whole_text(
    events: list[tuple[int, bool, bool]],
) -> None:
    """Otherwise text is lost or doubled between what is pushed and what is fetched."""

    async def run() -> None:
        hub = Hub(nothing_on_disk)
        hub.publish(JOB, builders.view(0))
        peers = [Peer(hub) for _ in range(3)]
        for count, (number, is_full, settles) in enumerate(events, 1):
            peers[number].is_full = is_full
            hub.publish(JOB, builders.view(count))
            if settles:
                await settle()
        hub.publish(JOB, builders.view(len(events), Status.COMPLETED))
        await asyncio.gather(*(peer.end() for peer in peers))
        for peer in peers:
            assert peer.text == list(range(len(events)))
            assert peer.fetched[-1].status is Status.COMPLETED

    asyncio.run(run())


# -- finished jobs ---------------------------------------------------------------------------


class Disk:
    """Where the text of finished jobs is."""

    def __init__(self) -> None:
        #: By job, how many segments there are.
        self.counts: dict[str, int] = {}
        #: Whose text was read, in order.
        self.read: list[str] = []

    async def load(self, job_id: str) -> list[Segment]:
        """Read a job's segments."""
        self.read.append(job_id)
        await asyncio.sleep(0)
        return builders.segments(self.counts.get(job_id, 0))

    def fill(self, hub: Hub, count: int) -> list[str]:
        """Publish so many finished jobs as a restart does, without their text."""
        names = [f"job-{number}" for number in range(count)]
        for name in names:
            self.counts[name] = 3
            hub.publish(name, builders.view(3, Status.COMPLETED).holding(None))
        return names


async def test_the_text_of_a_finished_job_comes_from_the_disk() -> None:
    """Otherwise a restart loses texts, or the memory grows with every job there ever was."""
    disk = Disk()
    hub = Hub(disk.load)
    names = disk.fill(hub, 100)
    assert disk.read == []
    for name in names:
        (frame,) = await all_of(hub.subscribe(name))
        assert numbers(frame) == [0, 1, 2]
    in_memory = [name for name in names if hub.view(name).segments is not None]
    assert in_memory == names[-16:]
    assert numbers(await hub.frame(names[-1])) == [0, 1, 2]
    assert disk.read == names, "what is in memory is not read again"
    assert numbers(await hub.frame(names[0])) == [0, 1, 2]


async def test_many_who_ask_for_many_texts_at_once_do_not_fill_the_memory() -> None:
    """Otherwise somebody who looks through all jobs brings all of their texts into memory."""
    disk = Disk()
    hub = Hub(disk.load)
    names = disk.fill(hub, 100)
    frames = await asyncio.gather(*(hub.frame(name) for name in names))
    assert all(numbers(frame) == [0, 1, 2] for frame in frames)
    assert sum(hub.view(name).segments is not None for name in names) == 16


async def test_a_finished_text_is_read_once_for_all_who_ask() -> None:
    """Otherwise a thousand watchers of a talk read it from the disk a thousand times."""
    disk = Disk()
    hub = Hub(disk.load)
    (name,) = disk.fill(hub, 1)
    frames = await asyncio.gather(*(all_of(hub.subscribe(name)) for _ in range(100)))
    assert {tuple(numbers(frame)) for (frame,) in frames} == {(0, 1, 2)}
    assert disk.read == [name]


async def test_who_has_all_of_the_text_needs_no_disk() -> None:
    """Otherwise every page that comes back to a finished job costs a read."""
    disk = Disk()
    hub = Hub(disk.load)
    (name,) = disk.fill(hub, 1)
    (frame,) = await all_of(hub.subscribe(name, make_cursor(RUN, 3)))
    assert (frame.status, numbers(frame)) == (Status.COMPLETED, [])
    assert hub.view(name).summary().offset == 3
    assert disk.read == []


async def test_a_job_that_is_deleted_while_its_text_is_read_is_no_half_a_job() -> None:
    """Otherwise somebody gets the end of a job with a text that lacks its words."""
    disk = Disk()
    hub = Hub(disk.load)
    (name,) = disk.fill(hub, 1)
    subscription = hub.subscribe(name)
    disk.counts.clear()
    assert await all_of(subscription) == []
    assert not subscription.is_finished
    with pytest.raises(JobNotFound):
        await hub.frame(name)


async def test_the_text_of_a_deleted_job_does_not_come_back(hub: Hub) -> None:
    """Otherwise what somebody wanted gone stays in the memory for as long as it likes."""
    slow = hub.subscribe(JOB)
    hub.publish(JOB, builders.view(3, Status.CANCELLED))
    hub.drop(JOB)
    assert numbers(await following(slow)) == [0, 1, 2]
    assert hub._kept == {}


# -- all jobs --------------------------------------------------------------------------------


async def next_of(board: Board) -> tuple[str, str | None]:
    """Return the next job on a board, and its status."""
    async with asyncio.timeout(PATIENCE_S):
        job_id, view = await anext(board)
    return job_id, view.summary().status if view else None


async def test_a_board_shows_every_job_and_every_change(hub: Hub) -> None:
    """Otherwise a list of jobs is out of date."""
    hub.publish("other", builders.view(5, Status.COMPLETED))
    with hub.board() as board:
        assert [await next_of(board) for _ in range(3)] == [
            (JOB, "running"),
            ("other", "completed"),
            ("", None),
        ]
        for count in range(5):
            hub.publish(JOB, builders.view(count))
        hub.publish("new", builders.view(0, Status.QUEUED))
        hub.drop("other")
        assert [await next_of(board) for _ in range(3)] == [
            (JOB, "running"),
            ("new", "queued"),
            ("other", None),
        ]
        waiting = asyncio.create_task(next_of(board))
        await asyncio.sleep(0)
        hub.publish("new", builders.view(1, Status.FAILED))
        assert await waiting == ("new", "failed")


async def test_a_board_has_signs_of_life(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a list of jobs cannot tell that its connection is dead."""
    monkeypatch.setattr(hubs, "HEARTBEAT_S", 0.001)
    with hub.board() as board:
        assert await next_of(board) == (JOB, "running")
        assert [await next_of(board) for _ in range(2)] == [("", None)] * 2


async def test_a_hub_that_is_closed_ends_who_comes_too_late(hub: Hub) -> None:
    """Otherwise a server that is about to stop waits for somebody who has just come."""
    board = hub.board()
    hub.close()
    assert await all_of(hub.subscribe(JOB)) == []
    assert [each async for each in board] == []
    assert [each async for each in hub.board()] == []


# -- any interleaving ------------------------------------------------------------------------


@dataclass
class Watcher:
    """Someone who follows by the one rule that the documentation gives."""

    subscription: Subscription | None = None
    mine: list[str] = field(default_factory=list)
    #: The cursors that it was given, the latest last.
    cursors: list[str] = field(default_factory=list)
    has_news: bool = True


class Followers(RuleBasedStateMachine):
    """A job's text, as a list; watchers who come, stall, vanish and come back; restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        #: The text as it is told; what a power cut takes back is written anew, otherwise.
        self.text: list[str] = []
        self.runs: tuple[Run, ...] = (Run("0", 0),)
        self.watchers = [Watcher() for _ in range(3)]
        self.hub = Hub(nothing_on_disk)
        self.publish()

    def teardown(self) -> None:
        """The job ends; everybody who is there or comes sees it, and then nothing more."""
        with self.runner:
            self.publish(Status.COMPLETED)
            for number, watcher in enumerate(self.watchers):
                if not watcher.subscription:
                    self.come(number, 0, nonsense=False)
                assert watcher.subscription
                assert self.receive(watcher).status is Status.COMPLETED
                assert self.runner.run(all_of(watcher.subscription)) == []

    def publish(self, status: Status = Status.RUNNING) -> None:
        """Tell what there is."""
        segments = [Segment(number, number, number, text) for number, text in enumerate(self.text)]
        cursor = make_cursor(self.runs[-1].id, len(segments), is_last=status.is_terminal)
        head = msgspec.structs.replace(builders.head(len(segments), status), cursor=cursor)
        self.hub.publish(JOB, View(head, segments, self.runs))
        for watcher in self.watchers:
            watcher.has_news = True

    def receive(self, watcher: Watcher) -> Frame:
        """Let a watcher read a frame."""
        assert watcher.subscription
        frame = self.runner.run(following(watcher.subscription))
        assert frame.offset <= len(watcher.mine), "there must be no gap"
        watcher.mine[frame.offset :] = [segment.text for segment in frame.segments]
        watcher.cursors.append(frame.cursor)
        watcher.has_news = False
        assert watcher.mine == self.text
        return frame

    @rule(count=st.integers(0, 3))
    def write(self, count: int) -> None:
        """Some segments come."""
        for _ in range(count):
            self.text.append(f"{len(self.text)} in run {len(self.runs)}")
        self.publish()

    @rule(number=st.integers(0, 2))
    def read(self, number: int) -> None:
        """A watcher reads what it has missed; until then it has stalled."""
        watcher = self.watchers[number]
        if watcher.subscription and watcher.has_news:
            self.receive(watcher)

    @rule(number=st.integers(0, 2))
    def vanish(self, number: int) -> None:
        """A watcher loses its connection."""
        watcher = self.watchers[number]
        if watcher.subscription:
            watcher.subscription.close()
            watcher.subscription = None

    @rule(number=st.integers(0, 2), age=st.integers(0, 3), nonsense=st.booleans())
    def come(self, number: int, age: int, nonsense: bool) -> None:
        """A watcher comes, or comes back: with a cursor that it has, an older one, a wrong one."""
        self.vanish(number)
        watcher = self.watchers[number]
        since = watcher.cursors[-1 - age] if age < len(watcher.cursors) else None
        watcher.subscription = self.hub.subscribe(JOB, "nonsense" if nonsense else since)
        watcher.has_news = True

    @rule(lost=st.integers(0, 3))
    def restart(self, lost: int) -> None:
        """The server starts anew; a power cut has taken the last segments."""
        self.hub.close()
        for watcher in self.watchers:
            watcher.subscription = None
        del self.text[max(0, len(self.text) - lost) :]
        self.runs = (*self.runs, Run(f"{len(self.runs):x}", len(self.text)))
        self.hub = Hub(nothing_on_disk)
        self.publish()


TestFollowers = Followers.TestCase
