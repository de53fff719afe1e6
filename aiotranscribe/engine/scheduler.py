"""Which piece of work comes next. Pure.

Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996). Virtual time advances with the work
handed out; a job's next piece starts where its last one ended, or now if it had none waiting.
So jobs share the slots by their weights, nobody starves, and a newcomer never waits behind what
others may still ask.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

W = TypeVar("W")

# A job whose model is in the slot may overtake by so much virtual time: what loading one costs.
_PREFERENCE = 60.0


@dataclass(frozen=True, slots=True)
class _Piece(Generic[W]):
    work: W
    cost: float
    is_alone: bool


@dataclass(slots=True)
class _Queue(Generic[W]):
    order: int
    #: Virtual time at which the next piece may start.
    start: float
    weight: float
    pieces: deque[_Piece[W]] = field(default_factory=deque)


class Scheduler(Generic[W]):
    """Pieces of work by job, handed out fairly."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue[W]] = {}
        self._now = 0.0
        self._order = 0

    def push(
        self,
        job_id: str,
        work: W,
        cost: float,
        *,
        weight: float = 1.0,
        is_alone: bool = False,
        is_first: bool = False,
    ) -> None:
        """Add a piece of a job's work; a job's pieces keep their order.

        Args:
            job_id: Whose work it is.
            work: The work.
            cost: How much of the slots' time it will take, in any unit common to all.
            weight: The job's share beside others; that of its first piece counts.
            is_alone: Never hand it out together with others.
            is_first: Put it before the job's other pieces.
        """
        queue = self._queues.get(job_id)
        if queue is None:
            self._order += 1
            queue = self._queues[job_id] = _Queue(self._order, self._now, weight)
        if not queue.pieces:
            queue.start = max(queue.start, self._now)
        add = queue.pieces.appendleft if is_first else queue.pieces.append
        add(_Piece(work, cost, is_alone))

    def take(
        self, most: int = 1, *, slots: int = 1, prefers: Callable[[W], bool] = lambda _: False
    ) -> list[W]:
        """Return the pieces that come next, all of one job; none when there is nothing to do.

        Args:
            most: How many may be done together.
            slots: How many slots there are: a job's last pieces are shared out among them.
            prefers: Whether the slot is at an advantage with a piece.
        """
        waiting = [queue for queue in self._queues.values() if queue.pieces]
        if not waiting:
            return []
        queue = min(
            waiting,
            key=lambda queue: (
                queue.start - _PREFERENCE * prefers(queue.pieces[0].work),
                queue.order,
            ),
        )
        self._now = max(self._now, queue.start)
        most = min(most, -(-len(queue.pieces) // slots))
        taken: list[_Piece[W]] = []
        while queue.pieces and (not taken or self._fits(taken, queue.pieces[0], most)):
            taken.append(queue.pieces.popleft())
        queue.start += sum(piece.cost for piece in taken) / queue.weight
        return [piece.work for piece in taken]

    def remove(self, job_id: str) -> None:
        """Forget a job and its work."""
        self._queues.pop(job_id, None)

    def order(self) -> list[str]:
        """Return the jobs that have work waiting, in the order of their turns."""
        waiting = {job_id: queue for job_id, queue in self._queues.items() if queue.pieces}
        return sorted(waiting, key=lambda job_id: (waiting[job_id].start, waiting[job_id].order))

    def leads(self) -> dict[str, float]:
        """Return how far others come before each job's next turn: in cost by weight."""
        return {it: max(0.0, queue.start - self._now) for it, queue in self._queues.items()}

    @staticmethod
    def _fits(taken: list[_Piece[W]], piece: _Piece[W], most: int) -> bool:
        return len(taken) < most and not taken[0].is_alone and not piece.is_alone
