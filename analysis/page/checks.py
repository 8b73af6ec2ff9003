"""What stands beside the verdicts: other methods, other readings, and how often verdicts err."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.judgement.studies import frame_studies, name_ingredients
from analysis.page import theme
from analysis.page.parts import Section, Table
from analysis.page.theme import NONE, interval, number, p_value, signed

if TYPE_CHECKING:
    from analysis.judgement.promises import Rate
    from analysis.judgement.ranking import Rank
    from analysis.judgement.verdicts import Verdict


def show_robustness(verdicts: Sequence[Verdict], studies: Sequence[str]) -> Section:
    rows = tuple(
        (
            ", ".join(filter(None, (verdict.claim, study))),
            verdict.word,
            p_value(verdict.p),
            p_value(verdict.p_holm),
            p_value(panel.p_sign_flip),
            p_value(panel.p_signed_rank),
            _shift(verdict, panel.hodges_lehmann),
            number(panel.superiority),
            signed(panel.estimate_at_chance),
            verdict.fragile or (NONE if verdict.answer == "open" else "agrees"),
        )
        for verdict, study in zip(verdicts, studies, strict=True)
        # Of C2 the panel tests the gain, which is C1's difference.
        if (panel := verdict.robustness) is not None and verdict.claim != "C2"
    )
    table = Table(
        (
            *("claim", "verdict", "p", "p (Holm)", "sign-flip p (zero)", "signed-rank p (zero)"),
            *("Hodges-Lehmann shift", "P(arm > baseline)"),
            *("difference, untrained at chance", "against the verdict"),
        ),
        rows,
        words=2,
    )
    return Section(
        "robustness",
        "Would other methods say the same?",
        "Shown for comparison; no verdict depends on them. The p of a claim tests what the claim needs, "
        "a margin included; those marked (zero) test that there is no difference at all.",
        tables=tuple(
            (title, table)
            for title, table in (
                ("Other methods", table),
                (
                    "Gradient flow with the layers reduced otherwise",
                    _other_flows(verdicts, studies),
                ),
            )
            if table.rows
        ),
    )


def _shift(verdict: Verdict, shift: float) -> str:
    """In points, or as the ratio of gradient flow that it is the logarithm of."""
    is_flow = verdict.headline is not None and verdict.headline.quantity == "gradient"
    return theme.ratio(10.0**shift) if is_flow else signed(shift)


def show_ranks(ranks: Sequence[Rank]) -> Section:
    """Every arm of every cell, the best first."""
    studies = _name_studies(ranks)
    return Section(
        "ranks",
        "Which placement does best?",
        "All arms of a cell, paired by seed with the one that did best there. The intervals hold for "
        "all pairs of arms of the cell at once (Bonferroni): an arm whose interval reaches zero may "
        "be as good as the best. Exploratory: no claim rests on it.",
        tables=(
            (
                "Arms by mean test accuracy",
                Table(
                    (
                        *("cell", "arm", "place", "mean (%)", "trained of run"),
                        *("behind the best (points)", "simultaneous 95 % interval"),
                    ),
                    tuple(
                        (
                            " ".join(filter(None, (rank.cell, study))),
                            rank.arm,
                            str(rank.place),
                            number(rank.accuracy),
                            f"{rank.trained} of {rank.run}",
                            NONE if rank.place == 1 else signed(rank.behind),
                            interval(rank.low, rank.high, signed),
                        )
                        for rank, study in zip(ranks, studies, strict=True)
                    ),
                    words=2,
                ),
            ),
        )
        if ranks
        else (),
    )


def _name_studies(ranks: Sequence[Rank]) -> list[str]:
    """Data set and recipe, as far as there are several, and what is new beside them."""
    rows = frame_studies(ranks)
    parts = [rows[name] for name in ("dataset", "recipe") if rows[name].nunique() > 1]
    return [
        " ".join(filter(None, words)) for words in zip(*parts, name_ingredients(rows), strict=True)
    ]


def _other_flows(verdicts: Sequence[Verdict], studies: Sequence[str]) -> Table:
    """The ratio of flows that decided, beside what it is at other layers and times."""
    return Table(
        (
            "claim",
            "gradient flow",
            "ratio",
            "95 % interval",
            "p",
            "p (beyond the margin, one-sided)",
        ),
        tuple(
            (
                ", ".join(filter(None, (verdict.claim, study))),
                other.name,
                theme.ratio(10**other.estimate),
                interval(10**other.low, 10**other.high, theme.ratio),
                p_value(other.p),
                p_value(other.p_minimal),
            )
            for verdict, study in zip(verdicts, studies, strict=True)
            if verdict.robustness is not None
            for other in verdict.robustness.other_flows
        ),
        words=2,
    )


def show_calibration(rates: Sequence[Rate]) -> Section:
    rows = tuple(
        (
            rate.scenario,
            rate.measure,
            rate.promise or NONE,
            "" if not rate.promise else "✓ kept" if rate.is_kept else "✕ broken",
            f"{number(100 * rate.share, 1)} ± {number(100 * rate.error, 1)}",
        )
        for rate in rates
        if math.isfinite(rate.share)
    )
    promised = [rate for rate in rates if rate.promise and math.isfinite(rate.share)]
    kept = sum(rate.is_kept for rate in promised)
    return Section(
        "calibration",
        "How often would such verdicts err?",
        (
            "Grids of this design were simulated, with the spread seen here and true effects that "
            f"are known, and judged by the same code: {kept} of {len(promised)} promises were kept. "
            "Shares come with their Monte-Carlo standard error."
        ),
        tables=(
            (
                "Simulated grids",
                Table(
                    ("what is true", "what was counted", "promised", "", "share (%)"), rows, words=4
                ),
            ),
        )
        if rows
        else (),
    )
