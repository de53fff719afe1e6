"""Settings: how many workers run, and with how many threads."""

import dataclasses
import os
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotranscribe.config import Config

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine to run on."""

    cores: int
    #: How many of them this process may use.
    allowed: int
    #: Logical processors of each core.
    siblings: int
    available_bytes: int

    def run_here(self, patch: pytest.MonkeyPatch) -> None:
        """Make this the machine that the settings see."""
        memory = SimpleNamespace(available=self.available_bytes)
        patch.setattr(psutil, "virtual_memory", lambda: memory)
        patch.setattr(psutil, "cpu_count", self._count)
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(self.allowed)))

    def _count(self, *, logical: bool = True) -> int:
        return self.cores * (self.siblings if logical else 1)


MACHINES = st.builds(
    Machine, st.integers(1, 256), st.integers(1, 512), st.integers(1, 2), st.integers(0, 1 << 42)
)


@given(MACHINES, st.integers(0, 64))
def test_every_machine_runs_something(machine: Machine, workers: int) -> None:
    """Otherwise a small machine accepts jobs and never begins them."""
    with pytest.MonkeyPatch.context() as patch:
        machine.run_here(patch)
        chosen = Config(workers=workers)
        assert chosen.slots() >= 1
        assert chosen.threads() >= 1


@given(MACHINES, st.integers(1, 64))
def test_workers_that_are_given_win(machine: Machine, workers: int) -> None:
    """Otherwise someone who shares a machine cannot keep the server small, or make it large."""
    with pytest.MonkeyPatch.context() as patch:
        machine.run_here(patch)
        assert Config(workers=workers).slots() == workers


@given(MACHINES)
def test_no_core_is_given_out_twice(machine: Machine) -> None:
    """Otherwise threads fight for cores, and all are slower than one alone."""
    with pytest.MonkeyPatch.context() as patch:
        machine.run_here(patch)
        chosen = Config()
        assert chosen.slots() * chosen.threads() <= min(machine.cores, machine.allowed)


@pytest.mark.parametrize(
    ("machine", "workers", "slots", "threads"),
    [
        (Machine(8, 16, 2, 64 * GIB), 0, 8, 1),
        (Machine(8, 2, 1, 64 * GIB), 0, 2, 1),  # a container that may use two
        (Machine(8, 8, 1, GIB), 0, 2, 4),  # little memory: fewer workers, each with more threads
        (Machine(8, 8, 1, 0), 0, 1, 8),
        (Machine(8, 8, 1, 64 * GIB), 3, 3, 2),
        (Machine(2, 2, 1, 64 * GIB), 5, 5, 1),
    ],
)
def test_workers_and_threads(
    machine: Machine, workers: int, slots: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise cores idle while people wait."""
    machine.run_here(monkeypatch)
    chosen = Config(workers=workers)
    assert (chosen.slots(), chosen.threads()) == (slots, threads)


def test_settings_never_change() -> None:
    """Otherwise two parts of a running server believe different things."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_every_setting_is_explained(field: "dataclasses.Field[object]") -> None:
    """Otherwise ``--help`` lists a setting and does not say what it does."""
    assert field.metadata["help"].endswith(".")
