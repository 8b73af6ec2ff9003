"""Count the trials of a plan by outcome, so that the parts add up.

Standard library only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.study.records import FailureRow, TrialRow
from harness.study.trials import Trial
from harness.study.wording import format_count


@dataclass(frozen=True, slots=True)
class Tally:
    """The planned trials by outcome: each is finished, failed, or missing.

    The single answer to "is it done?": what a run still trains, what status counts and what a
    report calls missing all come from here.
    """

    trials: tuple[Trial, ...]
    rows: dict[str, TrialRow]
    failures: dict[str, list[FailureRow]]
    """The failures of each trial that has no row."""
    strangers: int
    """Finished trials in the folder that are not planned."""

    @classmethod
    def of(
        cls, trials: Sequence[Trial], rows: Iterable[TrialRow], failed: Iterable[FailureRow]
    ) -> Tally:
        planned = {trial.id for trial in trials}
        found = {row.trial_id: row for row in rows}
        finished = {trial_id: row for trial_id, row in found.items() if trial_id in planned}
        failures: dict[str, list[FailureRow]] = defaultdict(list)
        for row in failed:
            if row.trial_id in planned and row.trial_id not in finished:
                failures[row.trial_id].append(row)
        return cls(tuple(trials), finished, dict(failures), len(found) - len(finished))

    @property
    def is_complete(self) -> bool:
        """Does every planned trial have a row?"""
        return len(self.rows) == len(self.trials)

    def is_open(self, trial: Trial) -> bool:
        """Does the trial have neither a row nor a failure?"""
        return trial.id not in self.rows and trial.id not in self.failures

    def outcome(self, trial: Trial) -> str:
        """'done', 'diverged', 'failed' or 'missing'."""
        if row := self.rows.get(trial.id):
            return row.status
        return "failed" if trial.id in self.failures else "missing"

    def failed_by_kind(self) -> Counter[str]:
        """How many trials failed, by the kind of their last failure."""
        return Counter(rows[-1].kind for rows in self.failures.values())

    def account(self) -> str:
        """'90 trials = 87 done + 1 diverged + 2 failed (1 exception, 1 timeout)'."""
        counts = Counter(map(self.outcome, self.trials))
        parts = [f"{counts['done']} done"]
        if counts["diverged"]:
            parts.append(f"{counts['diverged']} diverged")
        if self.failures:
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self.failed_by_kind().items()))
            parts.append(f"{counts['failed']} failed ({kinds})")
        if counts["missing"]:
            parts.append(f"{counts['missing']} missing")
        return f"{format_count(len(self.trials), 'trial')} = {' + '.join(parts)}"
