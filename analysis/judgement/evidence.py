"""Weigh what a study says of each claim, and call it by a word.

`weigh` turns outcomes into p-values of what would affirm and what would refute each claim, and
`call` turns those into words. Both take arrays with any leading axes, so that simulated grids are
judged by the very functions that judge the real one.

Errors are bounded twice, each by Holm over all claims of the grid, tested or not: a claim wrongly
affirmed, and a claim wrongly refuted. Within one claim the null hypotheses of a difference and of
equivalence exclude each other, so a claim needs no further correction.

Legend of shape suffixes: M claims, C cells, `...` any leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from analysis.judgement.comparisons import Comparison, Margins, any_of, compare, compare_twins
from analysis.judgement.effects import (
    AFTER_AS_BEFORE,
    BEFORE_AS_AFTER,
    GRAFTS,
    RESIDUAL,
    SKIP_FREE,
)
from analysis.judgement.outcomes import AFTER_KINDS, WINDOWS
from analysis.statistics.multiplicity import holm
from harness.study.records import CLAIMS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from analysis.judgement.outcomes import Outcomes

_AFFIRMED = {claim: "equivalent" if claim in {"C3", "C4"} else "supported" for claim in CLAIMS}
"""The word that a claim holds by."""

MOST_GRAFT_ERROR = 0.01
"""An arm that borrows steps must take them: largest |log| of a layer's relative step over the
donor's, at any reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """C2's intervention: the gain that moves with borrowed steps, and the gain that stays.

    In each direction both are of one gain: `moved` + `stayed` = `after` minus `before`.
    """

    moved: tuple[Comparison, Comparison]
    stayed: tuple[Comparison, Comparison]

    @property
    def p_goes(self) -> NDArray[np.float64]:
        """Of "the gain does not go away in one direction or the other"."""
        return np.maximum.reduce(
            [*(one.p_up for one in self.moved), *(one.p_average for one in self.stayed)]
        )

    @property
    def p_stays(self) -> NDArray[np.float64]:
        """Of "the gain does not stay, in some cell of one direction or the other"."""
        return np.maximum.reduce(
            [*(one.p_equal for one in self.moved), *(one.p_up for one in self.stayed)]
        )

    def is_conflicting(self, alpha: float) -> NDArray[np.bool_]:
        """Does the gain go where steps go in one direction, and stay in the other?"""
        goes = [
            np.maximum(moved.p_up, stayed.p_average) <= alpha
            for moved, stayed in zip(self.moved, self.stayed, strict=True)
        ]
        stays = [
            np.maximum(moved.p_equal, stayed.p_up) <= alpha
            for moved, stayed in zip(self.moved, self.stayed, strict=True)
        ]
        return (goes[0] & stays[1]) | (goes[1] & stays[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """For each claim: p-values of what affirms it and of the ways to refute it.

    Shapes:
        affirms_M, contradicts_M, equates_M, averages_M: (..., M), in the order of `CLAIMS`; NaN:
        untestable.
    """

    affirms_M: NDArray[np.float64]
    contradicts_M: NDArray[np.float64]
    equates_M: NDArray[np.float64]
    averages_M: NDArray[np.float64]
    """Equivalence of the mean over cells alone."""
    words: tuple[str, ...]
    """What each claim is called where it is affirmed."""
    comparisons: Mapping[str, tuple[Comparison, ...]]
    """Of each claim, the deciding one first; empty where the grid cannot test it."""
    mechanism: Mechanism | None = None
    unusable: tuple[str, ...] = ()
    """Arms of the intervention that did not take the steps they were given."""
    is_blind: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Claims in whose cells the plan's positive control shows no difference, so that nothing can
    be called equivalent there."""


def weigh(outcomes: Outcomes, *, margins: Margins, alpha: float, control: str = "") -> Evidence:
    """Test everything that the claims speak of, on one study.

    * C1 is affirmed by `after` above `before` and above `none` (where the grid has it): both must
      hold, so the larger p-value counts (intersection-union). It is refuted by either being
      below, or by equivalence with `before` in every cell.
    * C2 asks first for a gain to explain. Then flow must be higher in every window. Then arms with
      borrowed step sizes tell: a gain that goes away where both orders take steps of one size
      affirms C2, a gain that stays refutes it, and both directions must agree. All is judged on
      the cells that have these arms. Without them the rows can only be consistent with C2.
    * C3 and C4 are affirmed by equivalence in every cell, for each way to put the norm after the
      activation, and refuted by a difference beyond the margin, pooled or in a cell. C4 in every
      window.
    * C5 is affirmed by `after` gaining more without skips than with them, between twins.

    `control` names the arm whose difference from `before` is known to exist: where it does not
    show, nothing is called equivalent.

    Source:
        Berger 1982, doi:10.1080/00401706.1982.10487790 (intersection-union).
    """
    compare_on = partial(compare, outcomes, margins=margins, alpha=alpha)
    free_C, residual_C = outcomes.members(SKIP_FREE), outcomes.members(RESIDUAL)
    # A check that no reading allows is not passed either.
    unusable = tuple(
        arm for arm, error in outcomes.graft_errors.items() if not error <= MOST_GRAFT_ERROR
    )
    grafted_C = free_C & _have_grafts(outcomes, unusable)
    mechanism = None
    if grafted_C.any():
        moved, moved_back, stayed, stayed_back = (
            cast("Comparison", compare_on("accuracy", *pair, grafted_C)) for pair in GRAFTS
        )
        mechanism = Mechanism(moved=(moved, moved_back), stayed=(stayed, stayed_back))
    twins = compare_twins(outcomes, "accuracy", "after", "before", margins=margins, alpha=alpha)
    tests = {
        "C1": _test_order(compare_on, free_C),
        "C2": _test_cause(compare_on, grafted_C if mechanism else free_C, mechanism),
        "C3": _test_equality(compare_on, ["accuracy"], residual_C),
        "C4": _test_equality(compare_on, list(WINDOWS), residual_C),
        "C5": _Test.of(twins) if twins else _Test(),
    }
    is_blind: dict[str, NDArray[np.bool_]] = {}
    if control in outcomes.placements:
        for claim, quantity, pool_C in (
            ("C1", "accuracy", free_C),
            ("C3", "accuracy", residual_C),
            ("C4", "whole", residual_C),
            ("C5", "accuracy", twins.is_member_C if twins else free_C),
        ):
            seen = compare_on(quantity, "before", control, pool_C)
            shows = np.asarray(seen is not None and np.fmin(seen.p_up, seen.p_down) <= alpha)
            is_blind[claim] = ~shows
            withheld = {"equates", "averages"}
            if _AFFIRMED[claim] == "equivalent":
                withheld.add("affirms")
            tests[claim] = replace(
                tests[claim],
                **{way: np.where(shows, getattr(tests[claim], way), np.nan) for way in withheld},
            )

    def stack(way: str) -> NDArray[np.float64]:
        lead = outcomes.accuracy_PCS.shape[:-3]
        found = [np.broadcast_to(getattr(test, way), lead) for test in tests.values()]
        return np.stack(found, axis=-1)

    return Evidence(
        affirms_M=stack("affirms"),
        contradicts_M=stack("contradicts"),
        equates_M=stack("equates"),
        averages_M=stack("averages"),
        words=tuple(
            "inconclusive" if claim == "C2" and not mechanism else word
            for claim, word in _AFFIRMED.items()
        ),
        comparisons={claim: test.comparisons for claim, test in tests.items()},
        mechanism=mechanism,
        unusable=unusable,
        is_blind=is_blind,
    )


_never = partial(np.array, np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test:
    """The p-values of one claim and the comparisons they come from; NaN: it cannot be tested."""

    comparisons: tuple[Comparison, ...] = ()
    affirms: NDArray[np.float64] = field(default_factory=_never)
    contradicts: NDArray[np.float64] = field(default_factory=_never)
    equates: NDArray[np.float64] = field(default_factory=_never)
    averages: NDArray[np.float64] = field(default_factory=_never)

    @classmethod
    def of(cls, one: Comparison) -> _Test:
        """Of a claim that says which way a difference goes."""
        return cls(
            comparisons=(one,),
            affirms=one.p_up,
            contradicts=one.p_down,
            equates=one.p_equal,
            averages=one.p_average,
        )


def _test_order(on: Callable[..., Comparison | None], free_C: NDArray[np.bool_]) -> _Test:
    order = on("accuracy", "after", "before", free_C)
    norm = on("accuracy", "after", "none", free_C)
    if not order:
        return _Test()
    if not norm:
        return _Test.of(order)
    return replace(
        _Test.of(order),
        comparisons=(order, norm),
        affirms=np.maximum(order.p_up, norm.p_up),
        contradicts=any_of(order.p_down, norm.p_down),
    )


def _test_cause(
    on: Callable[..., Comparison | None], pool_C: NDArray[np.bool_], mechanism: Mechanism | None
) -> _Test:
    gain = on("accuracy", "after", "before", pool_C)
    flows = [one for window in WINDOWS if (one := on(window, "after", "before", pool_C))]
    if not gain:
        return _Test()
    p_higher, p_lower, p_same = (
        np.maximum(gain.p_up, _all_of(flows, p)) for p in ("p_up", "p_down", "p_equal")
    )
    if mechanism is None:
        return _Test(
            comparisons=(gain, *flows), affirms=p_higher, contradicts=p_lower, equates=p_same
        )
    return _Test(
        comparisons=(gain, *flows, *mechanism.moved, *mechanism.stayed),
        affirms=np.maximum(p_higher, mechanism.p_goes),
        contradicts=any_of(p_lower, np.maximum(gain.p_up, mechanism.p_stays)),
        equates=p_same,
    )


def _test_equality(
    on: Callable[..., Comparison | None], quantities: Sequence[str], pool_C: NDArray[np.bool_]
) -> _Test:
    """Of all quantities, and for each way to put the norm after the activation."""
    by_kind = [
        [on(quantity, kind, "before", pool_C) for quantity in quantities] for kind in AFTER_KINDS
    ]
    found = [[one for one in several if one] for several in by_kind if all(several)]
    if not found:
        return _Test()
    return _Test(
        comparisons=tuple(one for several in found for one in several),
        affirms=np.maximum.reduce([_all_of(several, "p_equal") for several in found]),
        contradicts=any_of(*(_all_of(several, "p_beyond") for several in found)),
        averages=np.maximum.reduce([_all_of(several, "p_average") for several in found]),
    )


def _all_of(several: Sequence[Comparison], p: str) -> NDArray[np.float64]:
    """The largest p-value of that name (intersection-union); NaN if any is."""
    return np.maximum.reduce([getattr(one, p) for one in several])


def _have_grafts(outcomes: Outcomes, unusable: Sequence[str]) -> NDArray[np.bool_]:
    """Cells that have both arms of the intervention: (C,)."""
    if {AFTER_AS_BEFORE, BEFORE_AS_AFTER} & set(unusable):
        return np.zeros(len(outcomes.cells), bool)
    has_C = np.asarray(outcomes.are_planned("after", AFTER_AS_BEFORE).any(-1))
    return has_C & outcomes.are_planned("before", BEFORE_AS_AFTER).any(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The words of all claims, and the p-values they rest on after Holm.

    Shapes:
        All (..., M).
    """

    word_M: NDArray[np.str_]
    is_consistent_M: NDArray[np.bool_]
    """What the rows could show of C2 they do show; never true of another claim."""
    affirms_M: NDArray[np.float64]
    refutes_M: NDArray[np.float64]
    averages_M: NDArray[np.float64]


def call(evidence: Sequence[Evidence], *, alpha: float) -> Call:
    """Turn the evidence of one or several studies, read together, into words."""
    raw = {
        name: np.concatenate([getattr(one, name) for one in evidence], axis=-1)
        for name in ("affirms_M", "contradicts_M", "equates_M", "averages_M")
    }
    words = [word for one in evidence for word in one.words]
    affirms_M = holm(raw["affirms_M"])
    refutes_M = holm(np.fmin(raw["contradicts_M"], raw["equates_M"]))
    averages_M = holm(raw["averages_M"])
    is_affirmed_M = affirms_M <= alpha
    is_refuted_M = refutes_M <= alpha
    # A way that was withheld (NaN) led to no word.
    equates_M, contradicts_M = (
        np.where(np.isnan(raw[way]), np.inf, raw[way]) for way in ("equates_M", "contradicts_M")
    )
    is_contradicted_M = is_refuted_M & (contradicts_M <= equates_M)
    return Call(
        word_M=np.select(
            [is_affirmed_M, is_contradicted_M, is_refuted_M, averages_M <= alpha],
            [
                np.broadcast_to(words, affirms_M.shape),
                "contradicted",
                "equivalent",
                "equivalent on average",
            ],
            "inconclusive",
        ),
        is_consistent_M=is_affirmed_M & (np.array(words) == "inconclusive"),
        affirms_M=affirms_M,
        refutes_M=refutes_M,
        averages_M=averages_M,
    )
