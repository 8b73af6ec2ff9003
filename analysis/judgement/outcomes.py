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

from analysis.judgement.studies import Study, find_told, name_settings, split_studies
from analysis.load import BLOCK
from analysis.statistics.looks import ONLY_LOOK, Look
from analysis.statistics.proportions import RiskDifference

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from analysis.load import Results

WINDOWS = {
    "init": "at initialisation",
    "first": "in the first epoch",
    "whole": "over the whole training",
}
"""When gradient flow is judged: a difference counts where all three show it."""
LAYERS = {"first": "at the first layer", "fall": "as its fall over the layers"}
"""Other ways to reduce the layers than their mean, which decides: for the robustness panel."""

AFTER_KINDS = ("after", "after-inner", "after-relu")
"""Every way in which a residual block puts the norm after the activation; C3 and C4 speak of each.
`after-add` is none: it normalises the skip path, and is known to be bad."""

_OF_THE_ARM = {"flow", "flow_lr", "flow_weight_decay"}
"""Settings of a block that tell arms apart, not cells."""

_SMALLEST_STEP = 1e-5
"""Relative size of a step below which float32 rounds it by more than a percent."""

_FLOW_RESOLUTION = 2.0**-23 / np.log(10)
"""Dex between neighbouring float32 numbers."""

_CHANCE_Z = 3.1
"""Standard deviations above guessing from which on a network has learned: one in a thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the trials of a pair share, the seed aside."""

    architecture: str
    depth: int
    variant: str = ""
    """Settings that tell it from other cells of its architecture and depth, to print; the length
    of training that decides goes without saying."""
    told: tuple[str, ...] = ()
    """The names of these settings."""
    settings: tuple[tuple[str, object], ...] = ()
    """All that its trials share but architecture and depth: equal in cells that differ in these."""
    beside: str = ""
    """Why it is shown beside the claims and not judged: "head", where the head reads one more batch
    norm in every arm, or "length", where the grid says that another length of training decides."""

    @property
    def label(self) -> str:
        """The cell as a reader names it."""
        return ", ".join(filter(None, (f"{self.architecture}-{self.depth}", self.variant)))

    @property
    def epochs(self) -> int:
        """How long its trials are trained."""
        return int(str(dict(self.settings)["epochs"]))

    def name_variant(self, *, without: Collection[str]) -> str:
        """The variant but for some settings, which are said elsewhere."""
        of = dict(self.settings)
        return name_settings({name: of[name] for name in self.told if name not in without})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes(Study):
    """Everything measured on one study, and what was planned.

    Shapes:
        accuracy_PCS, flow_PCS (of each window), ran_PCS, diverged_PCS: (..., P, C, S).
        planned_PCS, wall_time_PCS: (P, C, S).
        block_C: (C,), equal where cells share their block seeds.
        correct_PCSN: (P, C, S, N), or None where it was not recorded.
        trial_PCS: (P, C, S), the id of each planned trial; None where they are simulated.
    Units:
        accuracy_PCS in percent, flow_PCS in log10; NaN where the trial did not finish training.
    """

    cells: tuple[Cell, ...]
    placements: tuple[str, ...]
    """The arms: placements, and placements with borrowed step sizes under a name of their own."""
    seeds: tuple[int, ...]
    block_C: NDArray[np.intp]
    accuracy_PCS: NDArray[np.float64]
    flow_PCS: Mapping[str, NDArray[np.float64]]
    """By window, the mean over layers."""
    ran_PCS: NDArray[np.bool_]
    diverged_PCS: NDArray[np.bool_]
    planned_PCS: NDArray[np.bool_]
    wall_time_PCS: NDArray[np.float64]
    other_flows: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    """What `flow_PCS` would be with the layers reduced otherwise, by its name."""
    chance: float = float("nan")
    """Accuracy of guessing, in percent; NaN where it is not known."""
    images: int = 0
    """Test images; 0 where it is not known."""
    correct_PCSN: NDArray[np.int8] | None = None
    trial_PCS: NDArray[np.object_] | None = None
    graft_errors: Mapping[str, float] = field(default_factory=dict)
    """Arm with borrowed steps -> how far they are from the donor's, at most; NaN: not recorded."""
    control: str = ""
    """The arm that is known to differ, if the plan names one."""
    look: Look = ONLY_LOOK

    @property
    def trained_PCS(self) -> NDArray[np.bool_]:  # noqa: N802 (a shape suffix)
        """Did the trial finish and learn anything?"""
        return self._has_learned(self.accuracy_PCS)

    @property
    def least_accuracy(self) -> float:
        """The accuracy above which a network is shown to do better than guessing; NaN: unknown.

        Units:
            Percent.
        """
        return find_least_accuracy(self.chance, self.images)

    @property
    def resolution(self) -> float:
        """Percentage points that one test image is worth; 0 where it is not known."""
        return 100 / self.images if self.images else 0.0

    def difference(self, quantity: str, arm: str, baseline: str) -> NDArray[np.float64]:
        """Arm minus baseline, NaN where a trial of the pair did not train: (..., C, S)."""
        return self.values_of(quantity, arm) - self.values_of(quantity, baseline)

    def values_of(self, quantity: str, arm: str) -> NDArray[np.float64]:
        """One arm's accuracy, or flow in a window; NaN where it did not train: (..., C, S)."""
        values_PCS = self.accuracy_PCS if quantity == "accuracy" else self.flow_PCS[quantity]
        return np.where(self._have_trained(arm), self._of(values_PCS, arm), np.nan)

    def scores_of(self, arm: str) -> NDArray[np.float64]:
        """One arm's accuracy, a diverged trial at chance; NaN where it did not run: (..., C, S)."""
        accuracy_CS = self._of(self.accuracy_PCS, arm)
        return np.where(self._of(self.diverged_PCS, arm), self.chance, accuracy_CS)

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

    def look_on(self, is_member_C: NDArray[np.bool_], *arms: str) -> Look:
        """The look at these arms and cells: a run that stops where it is decided leaves some thin.

        Of cells with unequal numbers of seeds it is that of the thinnest, which is the strictest.
        Cells and arms beside the claims get no more seeds whatever they show: where all are there,
        they are looked at once.
        """
        planned_PCS = np.stack([self._of(self.planned_PCS, arm)[is_member_C] for arm in arms])
        seeds_PC = planned_PCS.sum(-1)
        seeds = seeds_PC[seeds_PC > 0]
        if not len(seeds) or seeds.min() >= len(self.seeds):
            return self.look
        ran_PCS = np.stack([self._of(self.ran_PCS, arm)[..., is_member_C, :] for arm in arms])
        is_judged = (is_member_C & self.judged_C).any() and all(map(self._is_of_claims, arms))
        if not is_judged and (ran_PCS.sum() == planned_PCS.sum()):
            return ONLY_LOOK
        return self.look.at(seeds.min() / len(self.seeds))

    def risks(self, arm: str, baseline: str) -> RiskDifference:
        """How much more often the arm diverges or learns nothing, in each cell: (..., C)."""
        has_run_CS = self.have_run(arm, baseline)
        arm_CS, baseline_CS = (has_run_CS & ~self._have_trained(a) for a in (arm, baseline))
        return RiskDifference(
            arm_only=(arm_CS & ~baseline_CS).sum(-1),
            baseline_only=(baseline_CS & ~arm_CS).sum(-1),
            pairs=has_run_CS.sum(-1),
        )

    def risk(self, arm: str, baseline: str, is_member_C: NDArray[np.bool_]) -> RiskDifference:
        """The same over all pairs of the member cells: (...)."""
        return self.risks(arm, baseline).over(is_member_C).pooled()

    def are_uninformative(self, arm: str, baseline: str, margin: float) -> NDArray[np.bool_]:
        """Cells in which no difference of accuracy could have shown: (..., C).

        Either no trial of either arm learned anything, or the two leave no more to gain, on
        average, than the margin. Of the average, since it does not depend on their difference: one
        arm that has nothing left to gain beside another that has is a difference that shows.
        """
        means = []
        for name in (arm, baseline):
            values_CS = self.values_of("accuracy", name)
            count_C = np.isfinite(values_CS).sum(-1)
            mean_C = np.nansum(values_CS, axis=-1) / np.maximum(count_C, 1)
            means.append(np.where(count_C > 0, mean_C, np.nan))
        has_run_C = self.have_run(arm, baseline).any(-1)
        has_learned_C = np.isfinite(means).any(0)
        return np.where(has_learned_C, 100 - np.mean(means, axis=0) <= margin, has_run_C)

    @property
    def judged_C(self) -> NDArray[np.bool_]:  # noqa: N802 (a shape suffix)
        """Cells that are not just shown beside the claims: (C,)."""
        return np.array([not cell.beside for cell in self.cells], bool)

    def only(self, c: int) -> NDArray[np.bool_]:
        """The cell at this place: (C,)."""
        return np.arange(len(self.cells)) == c

    def members(self, architectures: Sequence[str]) -> NDArray[np.bool_]:
        """Cells of these architectures that a claim is judged on: (C,)."""
        return self.judged_C & [cell.architecture in architectures for cell in self.cells]

    def _is_of_claims(self, arm: str) -> bool:
        """Does a claim speak of it, so that a look may add to its seeds?"""
        return arm.partition(" (")[0] in {"before", "none", self.control, *AFTER_KINDS}

    def _have_trained(self, arm: str) -> NDArray[np.bool_]:
        """`trained_PCS` of one arm; to work out the others' would cost as much again for each."""
        return self._has_learned(self._of(self.accuracy_PCS, arm))

    def _has_learned(self, accuracy: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.isfinite(accuracy) & ~(accuracy <= self.least_accuracy)

    def _of(self, values_PCS: NDArray[Any], arm: str) -> NDArray[Any]:
        return values_PCS[..., self.placements.index(arm), :, :]


def find_least_accuracy(chance: float, images: int) -> float:
    """The accuracy above which a network does better than guessing on so many images; 0: unknown.

    Units:
        Percent, as `chance`.
    """
    share = chance / 100
    return chance + 100 * _CHANCE_Z * float(np.sqrt(share * (1 - share) / (images or 1_000)))


def collect_outcomes(results: Results, look: Look = ONLY_LOOK) -> tuple[Outcomes, ...]:
    """The rows as arrays: one `Outcomes` per study, tuning trials left out.

    Arms are paired by everything but placement, program, learning rate, weight decay and whose
    flow they have. Where that is not unique, because a grid tries several learning rates as part
    of the study, they are paired by those as well.
    """
    planned = results.planned[results.planned["stage"] == "study"]
    trials = results.trials.set_index("trial_id")
    flows = measure_flows(results.readings).reindex(trials.index)
    return tuple(
        replace(
            _collect_study(study, rows, trials, flows, epochs=results.plan.epochs),
            chance=results.chance.get(study.dataset, float("nan")),
            graft_errors=_check_grafts(rows, results.gradients),
            control=results.plan.control,
            look=look.at(rows["seed"].nunique() / planned["seed"].nunique()),
        )
        for study, rows in split_studies(planned)
    )


def measure_flows(readings: pd.DataFrame) -> pd.DataFrame:
    """Gradient flow of each trial in each window: columns (reduction of the layers, window).

    The mean over the readings of a window: those beyond step 0 up to the first epoch's end, and
    those at the ends of all epochs, which are equally spaced.

    Units:
        log10, as the readings are.
    """
    step, epoch = readings["step"], readings["epoch"]
    is_in = {
        "init": step == 0,
        "first": (step > 0) & (epoch <= 1),
        "whole": (step > 0) & (epoch % 1 == 0),
    }
    columns = {}
    for layers in ("mean", *LAYERS):
        for window, rows in is_in.items():
            by_trial = readings[rows].groupby("trial_id")[layers]
            columns[layers, window] = by_trial.mean().where(by_trial.count() == by_trial.size())
    return pd.DataFrame(columns)


def _check_grafts(planned: pd.DataFrame, gradients: pd.DataFrame) -> dict[str, float]:
    """How far the steps of each arm that borrows are from its donor's: largest |log| of the ratio.

    NaN where no reading of a trial and of its donor says. Steps as small as the rounding of float32,
    as the last ones of a cosine schedule are, say nothing.
    """
    borrowed = planned[planned["flow"] != "own"]
    if borrowed.empty:
        return {}
    key = [name for name in BLOCK if name not in _OF_THE_ARM]
    donors = planned[planned["flow"] == "own"]
    pairs = borrowed.merge(
        donors, left_on=[*key, "flow"], right_on=[*key, "placement"], suffixes=("", "_of_donor")
    )
    has_own_recipe = pairs["flow_lr"] > 0
    for name in ("lr", "weight_decay"):
        lent = pairs[f"flow_{name}"].where(has_own_recipe, pairs[name])
        pairs = pairs[pairs[f"{name}_of_donor"] == lent]
    sizes = gradients[gradients["step"] > 0].set_index(["trial_id", "step", "layer_index"])[
        "update_ratio"
    ]
    by_trial = {name: rows.droplevel(0) for name, rows in sizes.groupby(level=0)}
    errors: dict[str, float] = {}
    for row in pairs.to_dict("records"):
        arm = name_arm(row["placement"], row["flow"])
        own, donor = (by_trial.get(row[name]) for name in ("trial_id", "trial_id_of_donor"))
        errors.setdefault(arm, float("nan"))
        if own is not None and donor is not None:
            own, donor = own.align(donor, join="inner")
            is_told = np.fmax(own, donor) > _SMALLEST_STEP
            with np.errstate(divide="ignore", invalid="ignore"):
                distance = np.abs(np.log(own[is_told] / donor[is_told])).max()
            errors[arm] = float(np.fmax(errors[arm], distance))
    return errors


def _collect_study(
    study: Study,
    planned: pd.DataFrame,
    trials: pd.DataFrame,
    flows: pd.DataFrame,
    *,
    epochs: int,
) -> Outcomes:
    key = [name for name in BLOCK if name not in {"seed", *_OF_THE_ARM}]
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
    has_run = np.asarray(found["status"].notna())
    is_done = (found["status"] == "done").to_numpy()

    def spread(values: NDArray[Any], *, empty: Any) -> NDArray[Any]:  # noqa: ANN401
        array_PCS = np.full(shape, empty)
        array_PCS[where] = values
        return array_PCS

    accuracy = np.where(is_done, 100 * found["test_accuracy"].to_numpy(float), np.nan)
    measured = flows.reindex(planned["trial_id"])

    def spread_flow(layers: str) -> dict[str, NDArray[np.float64]]:
        return {
            window: spread(
                np.where(is_done, measured[layers, window].to_numpy(float), np.nan), empty=np.nan
            )
            for window in WINDOWS
        }

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
        **study.identity,
        cells=tuple(_name_cells(cell_rows, key, epochs)),
        placements=placements,
        seeds=seeds,
        block_C=_number(cell_rows, ["architecture", "depth"])[0],
        accuracy_PCS=spread(accuracy, empty=np.nan),
        flow_PCS=spread_flow("mean"),
        other_flows={name: spread_flow(layers) for layers, name in LAYERS.items()},
        ran_PCS=spread(has_run, empty=False),
        diverged_PCS=spread((found["status"] == "diverged").to_numpy(), empty=False),
        planned_PCS=spread(np.ones(len(planned), bool), empty=False),
        wall_time_PCS=spread(found["wall_time"].to_numpy(float), empty=np.nan),
        images=images,
        correct_PCSN=correct_PCSN,
        trial_PCS=spread(planned["trial_id"].to_numpy(object), empty=None),
    )


def _number(rows: pd.DataFrame, key: list[str]) -> tuple[NDArray[np.intp], pd.DataFrame]:
    """Number the distinct values of `key` in order of appearance, and one row for each."""
    codes = np.asarray(rows.groupby(key, sort=False).ngroup(), dtype=np.intp)
    return codes, rows.drop_duplicates(key)


def name_arm(placement: str, flow: str) -> str:
    """What an arm is called: its placement, and whose step sizes it borrows if not its own.

    >>> name_arm("before", "own")
    'before'
    >>> name_arm("before", "after")
    'before (steps of after)'
    """
    return placement if flow in {"own", placement} else f"{placement} (steps of {flow})"


def name_members(cells: Iterable[Cell], *, are_all: bool) -> str:
    """Networks of one architecture: its name; with their depths where these are not all of them."""
    names = dict.fromkeys(
        cell.architecture if are_all else f"{cell.architecture}-{cell.depth}" for cell in cells
    )
    return ", ".join(names)


def _name_cells(rows: pd.DataFrame, key: Sequence[str], epochs: int) -> Iterator[Cell]:
    """The cells, each with the settings that tell it from others of its architecture and depth."""
    shared = [name for name in key if name not in {"architecture", "depth"}]
    told = find_told(rows, shared, ["architecture", "depth"])
    for row, is_told in zip(rows.to_dict("records"), told.to_dict("records"), strict=True):
        names = tuple(name for name in shared if is_told[name])
        is_of_the_head = row.get("final_norm", False) and "final_norm" in names
        is_of_another_length = epochs and row["epochs"] != epochs
        unsaid = set() if not epochs or is_of_another_length else {"epochs"}
        yield Cell(
            architecture=str(row["architecture"]),
            depth=int(row["depth"]),
            variant=name_settings({name: row[name] for name in names if name not in unsaid}),
            told=names,
            settings=tuple((name, row[name]) for name in shared),
            beside="head" if is_of_the_head else "length" if is_of_another_length else "",
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
