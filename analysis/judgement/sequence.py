"""Which look at the study this is, counted where the rows are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.statistics.looks import ONLY_LOOK, Look
from harness.results.looks import SeenLook, read_looks, record_look
from harness.results.store import Store
from harness.study.errors import StoreError

if TYPE_CHECKING:
    from analysis.load import Results

_SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A look at a study, and those before it."""

    look: Look
    """What the levels and intervals of this look follow from."""
    seen: tuple[SeenLook, ...]
    """All looks so far, this one among them, by information."""
    is_recorded: bool
    """Does the folder know of it now? Not where it cannot be written."""

    @property
    def unplanned(self) -> int:
        """Looks that the grid does not plan."""
        return sum(not one.is_planned for one in self.seen)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What belongs on the first screen."""
        found = []
        if self.unplanned:
            many = self.unplanned > 1
            found.append(
                f"{self.unplanned} look{'s' * many} at these results "
                f"{'were' if many else 'was'} not planned. Levels and intervals allow for "
                f"{'them' if many else 'it'}; the grid plans looks with `analysis: looks`."
            )
        if not self.is_recorded:
            found.append("This look could not be recorded beside the rows, so later ones miss it.")
        return tuple(found)


def look_at(results: Results) -> Sighting:
    """Count this look at the study, unless these very rows were looked at before.

    The information is the share of the study's trials that are finished, of those that the last
    planned look asks for; a trial that broke for good is not asked for any more.
    """
    planned = results.planned[results.planned["stage"] == "study"]
    done = planned[planned["trial_id"].isin(results.trials["trial_id"])]
    if done.empty:
        return Sighting(look=ONLY_LOOK, seen=(), is_recorded=True)
    seeds = planned["seed"].nunique()
    looks = results.plan.looks
    asked = len(planned) * max(1.0, max(looks, default=seeds) / seeds)
    asked -= results.failed["trial_id"].isin(planned["trial_id"]).sum()
    fraction = min(1.0, len(done) / asked)
    by_seed = planned["trial_id"].isin(done["trial_id"]).groupby(planned["seed"]).all()
    whole = int(by_seed.sum()) if by_seed.sum() * len(planned) == len(done) * seeds else 0
    is_planned = fraction > 1 - _SLACK or whole in looks
    store = Store(results.location)
    try:
        seen = record_look(store, done["trial_id"], fraction=fraction, is_planned=is_planned)
        is_recorded = True
    except StoreError:
        is_recorded = False
        seen = [*_read_looks(store), SeenLook(fraction, len(done), is_planned, "")]
    earlier = {one.fraction for one in seen if one.fraction < fraction - _SLACK}
    return Sighting(
        look=Look((*sorted(earlier), fraction)), seen=tuple(sorted(seen)), is_recorded=is_recorded
    )


def _read_looks(store: Store) -> list[SeenLook]:
    try:
        return read_looks(store)
    except StoreError:
        return []
