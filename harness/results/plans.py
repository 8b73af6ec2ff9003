"""Write the grids that a results folder was used for to files, and read them back.

The rows of the file are the trials; everything else is in its metadata. The file's digest covers
both, so that a margin is as hard to alter as a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import pyarrow as pa

from harness.results.tables import check_identity, digest_text, encode, to_table
from harness.study.records import AnalysisPlan, PlannedTrial, settings_of
from harness.study.trials import TRAINING_VERSION, Trial

_FACTS = {"analysis_plan", "grid", "written", "finished_before", "training_version"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A grid that a results folder was used for."""

    analysis: AnalysisPlan
    trials: tuple[Trial, ...]
    source: str
    """The grid as it was written."""
    written: datetime
    """Always later than that of the previous plan, even if the machines' clocks differ."""
    finished_before: int
    """Trials finished when the plan was made; above 0 the results could be seen by then."""
    training_version: int = TRAINING_VERSION

    def says(self, analysis: AnalysisPlan, trials: Sequence[Trial], source: str) -> bool:
        """Would planning the folder for this now change nothing?"""
        said = self.analysis, self.trials, self.source, self.training_version
        return said == (analysis, tuple(trials), source, TRAINING_VERSION)

    @property
    def name(self) -> str:
        """A digest of the whole plan, which names its file below `plans/`."""
        ids = sorted(trial.id_under(self.training_version) for trial in self.trials)
        return digest_text(json.dumps([self._facts, ids], sort_keys=True))

    @property
    def rank(self) -> tuple[datetime, str]:
        """The sort key of the plan among those of a folder."""
        return self.written, self.name

    @property
    def table(self) -> pa.Table:
        """One row per planned trial."""
        rows = [
            PlannedTrial(
                **settings_of(trial),
                arm=trial.arm,
                trial_id=trial.id_under(self.training_version),
            )
            for trial in self.trials
        ]
        return to_table(rows, PlannedTrial)

    def encode(self) -> bytes:
        """The plan as the bytes of one Parquet file."""
        return encode(self.table, self._facts)

    @classmethod
    def of(cls, table: pa.Table) -> Plan:
        """The plan from a table that `encode` wrote.

        Raises:
            ValueError, TypeError: what is wrong with the table.
        """
        facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        if absent := _FACTS - facts.keys():
            raise ValueError(f"lacks metadata: {', '.join(sorted(absent))}")
        version = int(facts["training_version"])
        return cls(
            analysis=AnalysisPlan(**json.loads(facts["analysis_plan"])),
            trials=tuple(check_identity(table, version)),
            source=facts["grid"],
            written=datetime.fromisoformat(facts["written"]).astimezone(UTC),
            finished_before=int(facts["finished_before"]),
            training_version=version,
        )

    @property
    def _facts(self) -> dict[str, str]:
        return {
            "analysis_plan": json.dumps(asdict(self.analysis)),
            "grid": self.source,
            "written": self.written.isoformat(),
            "finished_before": str(self.finished_before),
            "training_version": str(self.training_version),
        }
