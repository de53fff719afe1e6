"""The short form of the harness: a few faults of each kind."""

from pathlib import Path
from random import Random

import pytest

from tests.chaos.harness import SHORT, Chaos

_FAULTS = 6


@pytest.mark.timeout(500)
async def test_promises_are_kept_while_everything_breaks(tmp_path: Path) -> None:
    """Otherwise a killed process or a broken line costs somebody words, or the whole job."""
    seed = Random().randrange(10**6)
    print(f"once more: python -m tests.chaos.harness --faults {_FAULTS} --seed {seed}")
    chaos = Chaos(tmp_path, seed, _FAULTS, SHORT)
    await chaos.run()
    assert not chaos.report.violations, chaos.report
    assert chaos.report.counts["jobs completed"], chaos.report
