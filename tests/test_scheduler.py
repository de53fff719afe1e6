"""Who is served next: fairness between jobs, order within each."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe.engine.scheduler import Scheduler
from aiotranscribe.job import WEIGHTS

JOBS = st.sampled_from(["a", "b", "c", "d"])
COSTS = st.integers(1, 60)
JOB_WEIGHTS = st.sampled_from(list(WEIGHTS.values()))


@dataclass(frozen=True)
class Piece:
    """A piece of a job's work."""

    job: str
    number: int
    cost: int = 10
    is_alone: bool = False


@dataclass(frozen=True)
class Ask:
    """A slot that asks for work."""

    most: int
    slots: int


@dataclass
class Record:
    """A scheduler, and what went in and came out."""

    scheduler: Scheduler[Piece] = field(default_factory=Scheduler)
    pushed: dict[str, list[Piece]] = field(default_factory=lambda: defaultdict(list))
    taken: list[Piece] = field(default_factory=list)

    def push(self, piece: Piece) -> None:
        """Push a piece."""
        self.pushed[piece.job].append(piece)
        self.scheduler.push(piece.job, piece, piece.cost, is_alone=piece.is_alone)

    def take(self, ask: Ask) -> list[Piece]:
        """Take what comes next."""
        batch = self.scheduler.take(ask.most, slots=ask.slots)
        self.taken += batch
        return batch

    def waiting(self) -> int:
        """Return how many pieces have not come out yet."""
        return sum(map(len, self.pushed.values())) - len(self.taken)


PIECES = st.builds(Piece, JOBS, st.integers(), COSTS, st.booleans())
ASKS = st.builds(Ask, st.integers(1, 4), st.integers(1, 4))
EVENTS = st.lists(PIECES | ASKS, max_size=60)


def one(scheduler: Scheduler[str]) -> str | None:
    """Take one piece, if there is any."""
    return next(iter(scheduler.take()), None)


def push(scheduler: Scheduler[str], job: str, count: int, cost: float = 10) -> None:
    """Push some equal pieces of a job, each of which is just its name."""
    for _ in range(count):
        scheduler.push(job, job, cost)


def after(events: list[Piece | Ask]) -> Record:
    """Return the record of a scheduler to which all this has happened."""
    record = Record()
    for event in events:
        if isinstance(event, Piece):
            record.push(event)
        else:
            record.take(event)
    return record


# -- nothing lost, nothing mixed -------------------------------------------------------------


@given(EVENTS)
def test_nothing_is_lost_and_a_job_keeps_its_order(events: list[Piece | Ask]) -> None:
    """Otherwise a job waits for ever for a span that was never transcribed."""
    record = after(events)
    while waiting := record.waiting():
        assert record.take(Ask(1, 1))
        assert record.waiting() == waiting - 1
    assert record.take(Ask(4, 1)) == []
    for job, pieces in record.pushed.items():
        assert [piece for piece in record.taken if piece.job == job] == pieces


@given(EVENTS, ASKS)
def test_what_is_handed_out_together_belongs_together(events: list[Piece | Ask], ask: Ask) -> None:
    """Otherwise a worker decodes one recording with the options of another."""
    record = after(events)
    waiting = record.waiting()
    batch = record.take(ask)
    assert bool(batch) == bool(waiting)
    assert len({piece.job for piece in batch}) <= 1
    assert len(batch) <= ask.most
    assert len(batch) <= 1 or not any(piece.is_alone for piece in batch)


@pytest.mark.parametrize(
    ("count", "slots", "together"), [(9, 2, 4), (4, 2, 2), (3, 2, 2), (1, 2, 1)]
)
def test_the_last_pieces_are_shared_out(count: int, slots: int, together: int) -> None:
    """Otherwise one core does all that is left of a recording, and the others look on."""
    scheduler: Scheduler[str] = Scheduler()
    push(scheduler, "job", count)
    assert len(scheduler.take(4, slots=slots)) == together


def test_a_piece_that_is_done_again_comes_first_and_alone() -> None:
    """Otherwise the text stops at a dead worker's span until the rest is done."""
    scheduler: Scheduler[str] = Scheduler()
    push(scheduler, "job", 3)
    scheduler.push("job", "again", 10, is_alone=True, is_first=True)
    assert scheduler.take(4) == ["again"]
    assert scheduler.take(4) == ["job"] * 3


@given(EVENTS, JOBS)
def test_a_job_that_is_removed_is_forgotten(events: list[Piece | Ask], removed: str) -> None:
    """Otherwise a cancelled job still takes the slots, or takes others with it."""
    record = after(events)
    others = [piece for pieces in record.pushed.values() for piece in pieces]
    for piece in record.taken:
        others.remove(piece)
    others = [piece for piece in others if piece.job != removed]
    record.scheduler.remove(removed)
    assert removed not in record.scheduler.order()
    for _ in range(len(others)):
        (piece,) = record.scheduler.take()
        others.remove(piece)
    assert record.scheduler.take() == []


def test_removing_a_job_that_is_not_there_does_nothing() -> None:
    """Otherwise cancelling a job whose work is all handed out fails."""
    scheduler: Scheduler[str] = Scheduler()
    push(scheduler, "other", 1)
    scheduler.remove("job")
    assert scheduler.take() == ["other"]


# -- turns -----------------------------------------------------------------------------------


@given(EVENTS)
def test_the_order_that_is_told_is_the_order_that_comes(events: list[Piece | Ask]) -> None:
    """Otherwise a watcher is told that two jobs come first, and then waits for three."""
    record = Record()
    for event in events:
        turns = record.scheduler.order()
        if isinstance(event, Piece):
            record.push(event)
        else:
            assert [piece.job for piece in record.take(event)][:1] == turns[:1]
    turns = record.scheduler.order()
    left = {job for job, pieces in record.pushed.items() if set(pieces) - set(record.taken)}
    assert len(turns) == len(set(turns))
    assert left <= set(turns), "every job that waits is listed"


def test_order_lists_the_turns() -> None:
    """Otherwise queue positions are wrong for everyone."""
    scheduler: Scheduler[str] = Scheduler()
    for job in ("first", "second", "third"):
        push(scheduler, job, 2)
    assert scheduler.order() == ["first", "second", "third"]
    assert one(scheduler) == "first"
    assert scheduler.order() == ["second", "third", "first"]
    scheduler.remove("third")
    assert scheduler.order() == ["second", "first"]


# -- fairness --------------------------------------------------------------------------------


BACKLOGS = st.tuples(JOB_WEIGHTS, st.lists(COSTS, min_size=1, max_size=30))


@given(ours=BACKLOGS, theirs=BACKLOGS, head_start=st.integers(0, 30), most=st.integers(1, 4))
def test_two_jobs_with_work_waiting_share_by_their_weights(
    ours: tuple[float, list[int]], theirs: tuple[float, list[int]], head_start: int, most: int
) -> None:
    """Otherwise one long recording starves all others, or a priority means nothing.

    The bound is that of start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996, theorem 1):
    over any time in which both have work waiting, what each had, divided by its weight,
    differs by one piece of each at most. Here a piece is what is handed out together.
    """
    scheduler: Scheduler[Piece] = Scheduler()
    backlogs = {"ours": ours, "theirs": theirs}
    left = {job: len(costs) for job, (_, costs) in backlogs.items()}
    for job, (weight, costs) in backlogs.items():
        for number, cost in enumerate(costs):
            scheduler.push(job, Piece(job, number, cost), cost, weight=weight)
        for _ in range(min(head_start, left["ours"] - 1) if job == "ours" else 0):
            left["ours"] -= len(scheduler.take())
    leads = [0.0]
    while all(left.values()):
        batch = scheduler.take(most)
        job = batch[0].job
        left[job] -= len(batch)
        had = sum(piece.cost for piece in batch) / backlogs[job][0]
        leads.append(leads[-1] + (had if job == "ours" else -had))
    bound = most * sum(max(costs) / weight for weight, costs in backlogs.values())
    assert max(leads) - min(leads) <= bound + 1e-6


@given(EVENTS, JOB_WEIGHTS)
def test_a_newcomer_waits_for_one_turn_of_each_other_job(
    events: list[Piece | Ask], weight: float
) -> None:
    """Otherwise a short memo waits behind a ten-hour archive."""
    scheduler = after(events).scheduler
    scheduler.push("newcomer", Piece("newcomer", 0), 1, weight=weight)
    before = []
    while (batch := scheduler.take(4))[0].job != "newcomer":
        before.append(batch[0].job)
    assert len(before) == len(set(before))


def test_a_memo_overtakes_an_archive() -> None:
    """Otherwise whoever has little waits for whoever has much."""
    scheduler: Scheduler[str] = Scheduler()
    push(scheduler, "archive", 600, cost=20)
    for _ in range(100):
        scheduler.take(4)
    push(scheduler, "memo", 1, cost=5)
    assert "memo" in scheduler.take(4) + scheduler.take(4)


def test_a_priority_is_a_share() -> None:
    """Otherwise a job of low priority never ends, or one of high priority has no advantage."""
    scheduler: Scheduler[str] = Scheduler()
    for name, weight in WEIGHTS.items():
        for _ in range(300):
            scheduler.push(name, name, 10, weight=weight)
    taken = [one(scheduler) for _ in range(210)]
    assert [taken.count(name) for name in ("low", "normal", "high")] == [10, 40, 160]


def test_a_job_that_had_no_work_for_a_while_saves_up_no_credit() -> None:
    """Otherwise a job that comes back blocks all others until it has caught up."""
    scheduler: Scheduler[str] = Scheduler()
    push(scheduler, "idler", 1, cost=1)
    push(scheduler, "busy", 100)
    for _ in range(50):
        scheduler.take()
    push(scheduler, "idler", 100)
    assert [one(scheduler) for _ in range(10)].count("busy") >= 4


def prefers(favourite: str) -> Callable[[str], bool]:
    """Return the preference of a slot that has the model of one job."""
    return lambda job: job == favourite


def test_a_slot_goes_on_with_the_model_that_it_has() -> None:
    """Otherwise slots load one model after another, and do nothing else."""
    scheduler: Scheduler[str] = Scheduler()
    push(scheduler, "cold", 10)
    push(scheduler, "warm", 10)
    assert scheduler.take(prefers=prefers("warm")) == ["warm"]
    assert scheduler.take(prefers=prefers("warm")) == ["warm"]


def test_nobody_starves_because_of_a_model() -> None:
    """Otherwise a job that asks for a rare model never begins on a busy server."""
    scheduler: Scheduler[str] = Scheduler()
    push(scheduler, "warm", 200)
    push(scheduler, "cold", 200)
    taken = [next(iter(scheduler.take(prefers=prefers("warm")))) for _ in range(100)]
    assert "cold" in taken[:10]
    assert taken.count("cold") >= 45


def test_it_is_known_how_far_others_come_first() -> None:
    """Otherwise nobody can say when a job whose turn was just now has the next one."""
    scheduler: Scheduler[str] = Scheduler()
    push(scheduler, "memo", 2)
    assert scheduler.leads() == {"memo": 0.0}
    scheduler.take()
    push(scheduler, "long", 10)
    assert scheduler.leads() == {"memo": 10.0, "long": 0.0}
    scheduler.take()
    assert scheduler.leads() == {"memo": 10.0, "long": 10.0}
