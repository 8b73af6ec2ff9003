"""What a rampage came to, in counts and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Toll:
    """What the faults came to; `is_clean` where they came to nothing but work."""

    faults: Counter[str] = field(default_factory=Counter)
    expected: int = 0
    found: int = 0
    lost: int = 0
    doubled: int = 0
    unequal: int = 0
    starts: int = 0
    """Of trainings."""
    resumed: int = 0
    """Of these, from a checkpoint."""
    repeated: int = 0
    """Trials that were trained more than once."""
    drivers: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    escapes: int = 0
    """Lines of drivers, and texts of failures, that a terminal would obey."""
    foreign: int = 0
    """Files that no run has written."""
    harmed: int = 0
    """Of these, changed or gone."""
    damaged: int = 0
    """Files of ours."""
    leftovers: list[str] = field(default_factory=list)
    """What drivers have left in the temporary folder."""
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Was nothing lost, changed, left or let through?"""
        bad = (self.lost, self.doubled, self.unequal, self.escapes, self.harmed, self.damaged)
        return self.found == self.expected and not any(bad) and not self.leftovers

    @property
    def wasted(self) -> int:
        """Trainings that led to no row of their own."""
        return self.starts - self.found

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        noted = ", ".join(f"{count} {kind}" for kind, count in sorted(self.failures.items()))
        return "\n".join(
            [
                f"faults   {self.faults.total()}: {kinds}",
                (
                    f"rows     {self.expected} expected, {self.found} found, {self.lost} lost, "
                    f"{self.doubled} doubled, {self.unequal} unequal"
                ),
                (
                    f"work     {self.starts} trainings, {self.resumed} from a checkpoint; "
                    f"{self.repeated} trials trained more than once, {self.wasted} trainings "
                    f"wasted ({self.wasted / max(1, self.faults.total()):.2f} per fault)"
                ),
                f"noted    {noted or 'no failures'}; {self.escapes} texts with raw escapes",
                (
                    f"files    {self.foreign} foreign, {self.harmed} of them harmed; "
                    f"{self.damaged} of ours damaged; left in the temporary folder: "
                    f"{', '.join(self.leftovers) or 'nothing'}"
                ),
                f"drivers  {self.drivers}, {self.seconds:.0f} s in all",
            ]
        )
