"""`--until-decided`: train up to a planned look, ask what is decided, go on with what is open.

The plan beside the rows has the trials wanted so far and no others, so that whoever reads the folder
counts nothing as missing that was never wanted, and a run that is started again finds where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.study.errors import GridError
from harness.study.facts import look_up_facts
from harness.study.records import CLAIMS
from harness.study.trials import Trial, find_pack_mistake
from harness.study.tuning import without_recipe
from harness.study.wording import format_count, list_words

if TYPE_CHECKING:
    from analysis.judgement.deciding import Decision
    from harness.results import Plan
    from harness.study.grid import Grid
    from harness.study.records import AnalysisPlan


@dataclass(frozen=True, slots=True)
class Extent:
    """How many seeds of each cell of a study are wanted so far."""

    looks: tuple[int, ...]
    """Seeds at each planned look; the last one has all of the grid's."""
    seeds: tuple[int, ...]
    counts: Mapping[Trial, int] = field(default_factory=dict)
    """Cell (its trial of seed 0) -> seeds; those of the first look where it is not named."""

    @classmethod
    def of(cls, grid: Grid, plan: Plan | None) -> Extent:
        """As far as the folder's plan has come, if it is of these cells; else the first look.

        To begin again costs no training and leads to the same decisions, as the rows are the same.

        Raises:
            GridError: the grid plans no looks that seeds could be added at.
        """
        seeds = tuple(dict.fromkeys(trial.seed for trial in grid.trials))
        start = cls(grid.plan.looks, seeds)
        if mistake := start._find_mistake({trial.pack_size for trial in grid.trials}):
            raise GridError([f"{grid.name}: --until-decided: {mistake}"])
        if plan is None:
            return start
        known = [trial for trial in plan.trials if trial.stage == "study"]
        there = cls(start.looks, seeds, Counter(map(cell_of, known)))
        is_tuned_alone = grid.tuning is not None and not grid.tuning.common
        own = without_recipe if is_tuned_alone else cell_of
        is_ours = (
            set(map(own, grid.trials)) <= set(map(own, known))
            and all(count in start.looks for count in there.counts.values())
            and all(map(there.covers, known))
        )
        # May be that of a run without looks.
        is_whole = len(known) == len(there.counts) * len(seeds)
        return there if is_ours and not is_whole else start

    @property
    def reached(self) -> int:
        """Seeds at the look that this leads up to."""
        return max(self.counts.values(), default=self.looks[0])

    def covers(self, trial: Trial) -> bool:
        """Is the trial wanted so far? What tunes a study always is."""
        if trial.stage != "study":
            return True
        count = self.counts.get(cell_of(trial), self.looks[0])
        return trial.seed in self.seeds[:count]

    def extend(self, trials: Sequence[Trial], wanted: Collection[str]) -> Extent | None:
        """Up to the next look in the cells of the wanted trials; None if that adds nothing."""
        following = next((look for look in self.looks if look > self.reached), None)
        study = [trial for trial in trials if trial.stage == "study"]
        cells = {cell_of(trial) for trial in study if trial.id in wanted}
        if following is None or not cells:
            return None
        counts = Counter(map(cell_of, study))
        return replace(self, counts={**counts, **dict.fromkeys(cells, following)})

    def _find_mistake(self, pack_sizes: Collection[int]) -> str | None:
        most, looks = len(self.seeds), self.looks
        pack = max(pack_sizes)
        usual = sorted({-(-most * part // (4 * pack)) * pack for part in (1, 2, 3)} | {most})
        advice = f"such as analysis.looks=[{', '.join(str(n) for n in usual if n <= most)}]"
        if len(looks) < 2:
            return f"the grid plans no looks ahead of its end; say at how many seeds, {advice}"
        if looks[-1] != most:
            return f"the last look is at {looks[-1]} seeds and the grid has {most}; make them equal, {advice}"
        for look in looks:
            for size in pack_sizes:
                if find_pack_mistake(size, self.seeds[:look]):
                    return (
                        f"a look at {look} seeds would cut a pack of {size}, whose seeds train "
                        f"together; plan looks that do not, {advice}"
                    )
        return None


def cell_of(trial: Trial) -> Trial:
    """What the seeds of a cell and arm share, as its trial of seed 0."""
    return replace(trial, seed=0)


def ask(location: str, *, allow_mixed: bool) -> Decision:
    """Look at the rows of a folder.

    Raises:
        StoreError: they cannot be judged.
    """
    from analysis.judgement.deciding import decide  # noqa: PLC0415  pandas: only for this

    return decide(location, allow_mixed=allow_mixed)


def describe_decision(extent: Extent, decision: Decision, further: Extent | None) -> Iterator[str]:
    """The state of each claim, and what comes next."""
    yield f"look at {extent.reached} of at most {len(extent.seeds)} seeds:"
    is_last = extent.reached == extent.looks[-1]
    for one in decision.claims:
        reason = "no seeds are left" if one.state == "open" and is_last else one.why
        why = f" ({reason})" if reason else ""
        yield f"  {' '.join(filter(None, (one.study, one.claim)))}: {one.state}{why}"
    if further:
        cells = [count for count in further.counts.values() if count == further.reached]
        more = len(cells) * (further.reached - extent.reached)
        yield f"  goes on with {format_count(more, 'trial')} of what open claims rest on"
    elif is_last:
        yield "  ends here: this is the last look"
    else:
        yield "  ends here: no claim is open that more seeds could settle"


def describe_looks(
    extent: Extent | None, trials: Sequence[Trial], plan: AnalysisPlan
) -> Iterator[str]:
    """What looking costs and saves, for --dry-run; `extent`: None if it was not asked for."""
    if not extent:
        if len(plan.looks) > 1:
            at = list_words(map(str, plan.looks))
            yield f"looks      planned at {at} seeds; --until-decided may stop at each"
        return
    from analysis.statistics.power import expected_seeds  # noqa: PLC0415  scipy: only for a plan

    arms = Counter(map(cell_of, trials))
    most = len(trials)
    at = ", ".join(f"{look * len(arms):,} at {look} seeds" for look in extent.looks)
    yield f"looks      at most {at}"
    margin, alpha = plan.margin_accuracy, plan.alpha
    for dataset in dict.fromkeys(trial.dataset for trial in trials):
        sd = 2**0.5 * look_up_facts(dataset).run_sd
        own = [cell for cell in arms if cell.dataset == dataset]
        cells = len({(cell.architecture, cell.depth) for cell in own})
        expected = [
            expected_seeds(
                effect, margin, sd=sd, cells=cells, looks=extent.looks, alpha=alpha / len(CLAIMS)
            )
            * len(own)
            for effect in (2 * margin, 0.0)
        ]
        yield (
            f"expected   on {dataset} {expected[0]:,.0f} trials if the order matters by twice the "
            f"margin, {expected[1]:,.0f} if not at all; {most:,} without looks "
            f"(paired differences spread by {sd:.2f} points, assumed)"
        )
