"""What happened in a run, and which promises were broken."""

import asyncio
from collections import Counter


class Report:
    """Counts and violations of one run."""

    def __init__(self) -> None:
        #: How often what happened.
        self.counts: Counter[str] = Counter()
        #: What was promised and not kept, in words.
        self.violations: list[str] = []
        #: Set whenever somebody was told something that must not be taken back.
        self.told = asyncio.Event()

    def promise(self, holds: object, otherwise: str) -> None:
        """Note a violation, unless ``holds``."""
        if not holds:
            self.violations.append(otherwise)

    def __str__(self) -> str:
        """The counts as a table, then every violation."""
        rows = [f"{count:6}  {what}" for what, count in sorted(self.counts.items())]
        rows.append(f"{len(self.violations):6}  violations")
        return "\n".join([*rows, *(f"VIOLATION {text}" for text in self.violations)])
