"""Turn the rows of a study into arrays: cells by placements by seeds.

Real results and simulated grids of known truth are judged by the same functions; simulated ones
have one leading axis more, the replicates of the whole grid.

Legend of shape suffixes: P placements, C cells, S seeds, N test images, T trials, `...` any
leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.load import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from analysis.load import Results
    from harness.study.records import AnalysisPlan

_SMALLEST_FLOW = 2.0**-126
"""The smallest normal float32: a gradient norm below it has died out, and is read as this."""
_LAYERS = {
    "first": "at the first layer",
    "mean": "averaged over the layers",
    "slope": "as its fall over the layers",
}
_WINDOWS = {
    "init": "at initialisation",
    "first-epoch": "over the first epoch",
    "last": "at the last reading",
}
_FLOW_RESOLUTION = 2.0**-23 / np.log(10)
"""Dex between neighbouring float32 numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the trials of a pair share, the seed aside."""

    architecture: str
    depth: int
    variant: str = ""
    """Settings that tell it from other cells of its architecture and depth, to print."""
    settings: tuple[object, ...] = ()
    """All that its trials share but architecture and depth: equal in cells that differ in these."""

    @property
    def label(self) -> str:
        """The cell as one would say it aloud."""
        return " ".join(filter(None, (f"{self.architecture}-{self.depth}", self.variant)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergences:
    """Pairs by which arm diverged: counts of shape (...)."""

    arm_only: NDArray[np.intp]
    baseline_only: NDArray[np.intp]
    both: NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Everything measured on one study, and what was planned.

    Shapes:
        accuracy_PCS, flow_PCS, ran_PCS, diverged_PCS: (..., P, C, S).
        planned_PCS, wall_time_PCS: (P, C, S).
        block_C: (C,), equal where cells share their block seeds.
        correct_PCSN: (P, C, S, N), or None where it was not recorded.
    Units:
        accuracy_PCS in percent, flow_PCS in log10; NaN where the trial did not finish training.
    """

    dataset: str
    recipe: str
    cells: tuple[Cell, ...]
    placements: tuple[str, ...]
    """The arms: placements, and placements with borrowed flow under a name of their own."""
    seeds: tuple[int, ...]
    block_C: NDArray[np.intp]
    accuracy_PCS: NDArray[np.float64]
    flow_PCS: NDArray[np.float64]
    ran_PCS: NDArray[np.bool_]
    diverged_PCS: NDArray[np.bool_]
    planned_PCS: NDArray[np.bool_]
    wall_time_PCS: NDArray[np.float64]
    other_flows: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """What `flow_PCS` would be with another layer or time than the plan fixed, by its name."""
    correct_PCSN: NDArray[np.int8] | None = None
    resolution: float = 0.0
    """Percentage points that one test image is worth; 0 where it is not known."""

    def difference(self, quantity: str, arm: str, baseline: str) -> NDArray[np.float64]:
        """Arm minus baseline, NaN where a trial of the pair did not finish: (..., C, S)."""
        return self.values_of(quantity, arm) - self.values_of(quantity, baseline)

    def values_of(self, quantity: str, placement: str) -> NDArray[np.float64]:
        """One arm's values, NaN where the trial did not finish: (..., C, S)."""
        return self._of(self.accuracy_PCS if quantity == "accuracy" else self.flow_PCS, placement)

    def floor(self, quantity: str) -> float:
        """Variance below which a spread of differences cannot be told from rounding.

        A difference of two readings, each known to within half a step either way: twice 1/12 of
        the squared step.
        """
        step = self.resolution if quantity == "accuracy" else _FLOW_RESOLUTION
        return step**2 / 6

    def are_planned(self, arm: str, baseline: str) -> NDArray[np.bool_]:
        """Pairs that the grid asks for: (C, S)."""
        if not {arm, baseline} <= set(self.placements):
            return np.zeros(self.planned_PCS.shape[1:], bool)
        return self._of(self.planned_PCS, arm) & self._of(self.planned_PCS, baseline)

    def have_run(self, arm: str, baseline: str) -> NDArray[np.bool_]:
        """Pairs with an outcome in both arms, a divergence being one: (..., C, S)."""
        return self._of(self.ran_PCS, arm) & self._of(self.ran_PCS, baseline)

    def count_divergences(
        self, arm: str, baseline: str, is_member_C: NDArray[np.bool_]
    ) -> Divergences:
        """Pairs with an outcome in both arms, by which arm diverged."""
        has_run_CS = self.have_run(arm, baseline) & is_member_C[:, None]
        arm_CS, baseline_CS = (
            has_run_CS & self._of(self.diverged_PCS, placement) for placement in (arm, baseline)
        )
        return Divergences(
            arm_only=(arm_CS & ~baseline_CS).sum((-2, -1)),
            baseline_only=(baseline_CS & ~arm_CS).sum((-2, -1)),
            both=(arm_CS & baseline_CS).sum((-2, -1)),
        )

    def members(self, architectures: Sequence[str]) -> NDArray[np.bool_]:
        """Cells of these architectures: (C,)."""
        return np.array([cell.architecture in architectures for cell in self.cells], bool)

    def _of(self, values_PCS: NDArray[Any], placement: str) -> NDArray[Any]:
        return values_PCS[..., self.placements.index(placement), :, :]


def collect_outcomes(results: Results) -> tuple[Outcomes, ...]:
    """The rows as arrays: one `Outcomes` per data set and recipe, tuning trials left out.

    Arms are paired by everything but placement, program, learning rate, weight decay and whose
    flow they have. Where that is not unique, because a grid tries several learning rates as part
    of the study, they are paired by those as well.
    """
    planned = results.planned[results.planned["stage"] == "study"]
    trials = results.trials.set_index("trial_id")
    plans = {"flow": results.plan, **dict(vary_flow(results.plan))}
    flows = pd.DataFrame(
        {name: measure_flow(results.gradients, plan) for name, plan in plans.items()},
        index=trials.index,
    )
    studies = planned.groupby(["dataset", "recipe"], sort=False)
    return tuple(
        _collect_study(str(dataset), str(recipe), rows, trials, flows)
        for (dataset, recipe), rows in studies  # pyright: ignore[reportGeneralTypeIssues]
    )


def vary_flow(plan: AnalysisPlan) -> Iterator[tuple[str, AnalysisPlan]]:
    """The plan with another layer or another time, one thing at a time, and what that is called.

    Of a plan over all times only the readings that it needs are loaded: no layer but its own.
    """
    for layer, name in _LAYERS.items():
        if plan.gradient_window != "all" and layer != plan.gradient_layer:
            yield name, replace(plan, gradient_layer=layer)
    for window, name in _WINDOWS.items():
        if window != plan.gradient_window:
            yield name, replace(plan, gradient_window=window)


def measure_flow(gradients: pd.DataFrame, plan: AnalysisPlan) -> pd.Series:
    """Gradient flow of each trial, the scalar that the plan fixed: indexed by trial_id.

    Units:
        log10; where the plan's layer is 'slope', log10 of the ratio between the ends of the line
        fitted over the layers, last over first.
    """
    rows = gradients[["trial_id", "step", "epoch", "layer_index", plan.gradient_column]]
    match plan.gradient_window:
        case "first-epoch":
            rows = rows[(rows["step"] > 0) & (rows["epoch"] <= 1)]
        case "all":
            pass
        case "init":
            rows = rows[rows["step"] == 0]
        case "last":
            rows = rows[rows["step"] == rows.groupby("trial_id")["step"].transform("max")]
        case unknown:
            raise ValueError(f"gradient_window {unknown!r}: first-epoch, all, init or last")
    # A norm of zero is flow that died out, not a missing reading; NaN and inf stay no number.
    flow = rows[plan.gradient_column].clip(lower=_SMALLEST_FLOW)
    rows = rows.assign(flow=np.log10(flow.where(np.isfinite(flow))))
    match plan.gradient_layer:
        case "first":
            first = rows.groupby("trial_id")["layer_index"].transform("min")
            rows = rows[rows["layer_index"] == first]
        case "mean":
            pass
        case "slope":
            rows = _fall_over_layers(rows)
        case unknown:
            raise ValueError(f"gradient_layer {unknown!r}: first, mean or slope")
    by_trial = rows.groupby("trial_id")["flow"]
    return by_trial.mean().where(by_trial.count() == by_trial.size())


def _fall_over_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per reading: the fitted line's rise from the first layer to the last."""
    reading = rows.groupby(["trial_id", "step"])
    offset = rows["layer_index"] - reading["layer_index"].transform("mean")
    sums = (
        rows.assign(xx=offset**2, xy=offset * rows["flow"], bad=rows["flow"].isna())
        .groupby(["trial_id", "step"])
        .agg(xx=("xx", "sum"), xy=("xy", "sum"), bad=("bad", "any"), layers=("flow", "size"))
    )
    rise = sums["xy"] / sums["xx"].where(sums["xx"] > 0) * (sums["layers"] - 1)
    return rise.where(~sums["bad"]).rename("flow").reset_index()


def _collect_study(
    dataset: str,
    recipe: str,
    planned: pd.DataFrame,
    trials: pd.DataFrame,
    flows: pd.DataFrame,
) -> Outcomes:
    key = [name for name in BLOCK if name not in {"seed", "flow"}]
    rates = ["lr", "weight_decay"]
    arms = [name_arm(*pair) for pair in zip(planned["placement"], planned["flow"], strict=True)]
    # An arm that borrows its own flow repeats itself.
    planned = (
        planned.assign(arm=arms, borrows=planned["flow"] != "own")
        .sort_values("borrows", kind="stable")
        .drop_duplicates([*key, *rates, "arm", "seed"])
    )
    if planned.duplicated([*key, "arm", "seed"]).any():
        key += rates
    cell_codes, cell_rows = _number(planned, key)
    placements = tuple(dict.fromkeys(planned["arm"]))
    seeds = tuple(sorted(planned["seed"].unique().tolist()))
    where = (
        planned["arm"].map({name: p for p, name in enumerate(placements)}).to_numpy(),
        cell_codes,
        planned["seed"].map({seed: s for s, seed in enumerate(seeds)}).to_numpy(),
    )
    shape = (len(placements), len(cell_rows), len(seeds))
    found = trials.reindex(planned["trial_id"])
    has_run = found["status"].notna().to_numpy()
    is_done = (found["status"] == "done").to_numpy()

    def spread(values: NDArray[Any], *, empty: Any) -> NDArray[Any]:  # noqa: ANN401
        array_PCS = np.full(shape, empty)
        array_PCS[where] = values
        return array_PCS

    accuracy = np.where(is_done, 100 * found["test_accuracy"].to_numpy(float), np.nan)
    measured = flows.reindex(planned["trial_id"])
    flow_PCS, *other_PCS = (
        spread(np.where(is_done, flow_T, np.nan), empty=np.nan) for flow_T in measured.to_numpy().T
    )
    bits = [b if done else b"" for b, done in zip(found["test_correct"], is_done, strict=True)]
    images = _count_test_images(bits, accuracy / 100)
    correct_PCSN = None
    if images:
        correct_PCSN = np.zeros((*shape, images), np.int8)
        for p, c, s, packed in zip(*where, bits, strict=True):
            if packed:
                unpacked = np.unpackbits(np.frombuffer(packed, np.uint8), count=images)
                correct_PCSN[p, c, s] = unpacked
    return Outcomes(
        dataset=dataset,
        recipe=recipe,
        cells=tuple(_name_cells(cell_rows, key)),
        placements=placements,
        seeds=seeds,
        block_C=_number(cell_rows, ["architecture", "depth"])[0],
        accuracy_PCS=spread(accuracy, empty=np.nan),
        flow_PCS=flow_PCS,
        other_flows=dict(zip(map(str, measured.columns[1:]), other_PCS, strict=True)),
        ran_PCS=spread(has_run, empty=False),
        diverged_PCS=spread((found["status"] == "diverged").to_numpy(), empty=False),
        planned_PCS=spread(np.ones(len(planned), bool), empty=False),
        wall_time_PCS=spread(found["wall_time"].to_numpy(float), empty=np.nan),
        correct_PCSN=correct_PCSN,
        resolution=100 / images if images else 0.0,
    )


def _number(rows: pd.DataFrame, key: list[str]) -> tuple[NDArray[np.intp], pd.DataFrame]:
    """Number the distinct values of `key` in order of appearance, and one row for each."""
    codes = np.asarray(rows.groupby(key, sort=False).ngroup(), dtype=np.intp)
    return codes, rows.drop_duplicates(key)


def name_arm(placement: str, flow: str) -> str:
    """What an arm is called: its placement, and whose update sizes it borrows if not its own.

    >>> name_arm("before", "own")
    'before'
    >>> name_arm("before", "after")
    'before with the flow of after'
    """
    return placement if flow in {"own", placement} else f"{placement} with the flow of {flow}"


def _name_cells(rows: pd.DataFrame, key: Sequence[str]) -> Iterator[Cell]:
    """The cells, each with the settings that tell it from others of its architecture and depth."""
    neighbours = rows.groupby(["architecture", "depth"], sort=False)
    varies = {name: (neighbours[name].transform("nunique") > 1).to_numpy() for name in key}
    shared = [name for name in key if name not in {"architecture", "depth"}]
    for number, row in enumerate(rows.to_dict("records")):
        told = (f"{name}={row[name]}" for name, differs in varies.items() if differs[number])
        yield Cell(
            architecture=str(row["architecture"]),
            depth=int(row["depth"]),
            variant=" ".join(told),
            settings=tuple(row[name] for name in shared),
        )


def _count_test_images(packed: Sequence[bytes], accuracy: NDArray[np.float64]) -> int:
    """Images in the test part; 0 where no trial says.

    The bits are padded to whole bytes, so it is the right ones over the accuracy. Where no image
    is right it is the fewest that need so many bytes: a resolution must not be claimed too fine.
    """
    fewest = 0
    for bits, share in zip(packed, accuracy, strict=True):
        if bits and np.isfinite(share):
            fewest = 8 * len(bits) - 7
            if share > 0:
                right = int.from_bytes(bits, "big").bit_count()
                return min(max(round(right / share), fewest), 8 * len(bits))
    return fewest
