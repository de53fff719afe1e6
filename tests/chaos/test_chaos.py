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
    report = await Chaos(tmp_path, seed, _FAULTS, SHORT).run()
    again = f"python -m tests.chaos.harness --faults {_FAULTS} --seed {seed}"
    assert not report.violations, f"{report}\nto try again: {again}"
    assert report.counts["jobs completed"], report
