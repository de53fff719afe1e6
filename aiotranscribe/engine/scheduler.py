"""Which piece of work comes next. Pure.

Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996). Virtual time advances with the work
handed out; a job's next piece starts where its last one ended, or now if it had none waiting.
So jobs share the slots equally, and a newcomer never waits behind what others may still ask.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

W = TypeVar("W")


@dataclass(slots=True)
class _Queue(Generic[W]):
    order: int
    #: Virtual time at which the next piece may start.
    start: float
    pieces: deque[tuple[W, float]] = field(default_factory=deque)


class Scheduler(Generic[W]):
    """Pieces of work by job, handed out fairly."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue[W]] = {}
        self._now = 0.0
        self._order = 0

    def push(self, job_id: str, piece: W, cost: float) -> None:
        """Add a piece of a job's work; a job's pieces keep their order.

        Args:
            job_id: Whose work it is.
            piece: The work.
            cost: How much of the slots' time it will take, in any unit common to all.
        """
        queue = self._queues.get(job_id)
        if queue is None:
            self._order += 1
            queue = self._queues[job_id] = _Queue(self._order, self._now)
        if not queue.pieces:
            queue.start = max(queue.start, self._now)
        queue.pieces.append((piece, cost))

    def take(self) -> W | None:
        """Return the piece that comes next, or ``None`` when there is nothing to do."""
        waiting = [queue for queue in self._queues.values() if queue.pieces]
        if not waiting:
            return None
        queue = min(waiting, key=_turn)
        piece, cost = queue.pieces.popleft()
        self._now = queue.start
        queue.start += cost
        return piece

    def remove(self, job_id: str) -> None:
        """Forget a job and its work."""
        self._queues.pop(job_id, None)

    def order(self) -> list[str]:
        """Return the jobs that have work waiting, in the order of their turns."""
        waiting = {job_id: queue for job_id, queue in self._queues.items() if queue.pieces}
        return sorted(waiting, key=lambda job_id: _turn(waiting[job_id]))


def _turn(queue: "_Queue[W]") -> tuple[float, int]:
    return queue.start, queue.order
