"""Along training: how each arm learns, how far the orders are apart, and at which length."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from analysis.judgement.lengths import find_ends
from analysis.load import spread_times
from analysis.page import charts, curves, theme
from analysis.page import frames as tables
from analysis.page.encodings import reach_of, span
from analysis.page.parts import Figure, Panel, Section, Table
from analysis.page.theme import NONE, interval, number, ratio, signed
from harness.study.wording import format_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from analysis.judgement.courses import CourseEffect, CurvePoint
    from analysis.judgement.lengths import LengthEffect
    from analysis.page.theme import Mark

MOST_PANELS = 12
"""Networks whose learning curves are all shown; of more, the deepest of each kind."""
_BAND = (
    "The band holds at all times shown at once, at 95 % (Bonferroni): where it leaves zero, the orders "
    "differ then."
)


def show_training(
    points: Sequence[CurvePoint],
    courses: Sequence[CourseEffect],
    marks: Mapping[str, Mark],
    *,
    margin: float,
    deciding: int = 0,
) -> Section:
    """Learning curves of every network, of the deciding length first, and the paired difference."""
    return Section(
        "training",
        "How does each order learn?",
        "Accuracy along training is that of the validation part; the test part is looked at once, at "
        "the end."
        if points
        else "",
        (
            *_show_curves(points, marks, deciding=deciding),
            *_show_differences(courses, marks, margin=margin),
        ),
    )


def show_course(
    courses: Sequence[CourseEffect], marks: Mapping[str, Mark], *, margin: float
) -> Section:
    """The ratio of gradient flow along training, architecture by architecture."""
    section = Section("course", "When do the orders differ in gradient flow?")
    rows = _frame(courses, "gradient", margin)
    if rows.empty:
        return section
    arm, baseline = rows["arm"].iloc[0], rows["baseline"].iloc[0]
    figure = _course(
        rows,
        marks,
        name="course",
        title=f"Gradient flow: {arm} / {baseline} along training",
        description="Mean over layers, seeds and depths, each pair of equal seed. The band holds "
        "at all times shown at once, at 95 % (Bonferroni). Shaded: ratios too close to 1 to matter.",
        is_ratio=True,
    )
    return replace(section, figures=(figure,))


def show_lengths(lengths: Sequence[LengthEffect], marks: Mapping[str, Mark]) -> Section:
    """The difference at each length of training, for the networks that have the same lengths."""
    title = "Is it speed, or where training ends?"
    if not lengths:
        return Section("lengths", title)
    rows = tables.name_panels(pd.DataFrame(lengths), "networks")
    what = f"{lengths[0].arm} {theme.MINUS} {lengths[0].baseline} (points)"
    reach = reach_of(rows, is_ratio=False)
    figure = Figure(
        name="lengths",
        title=f"Test accuracy by length of training: {what}",
        description=(
            "Mean difference at the end of trainings of each length, with its 95 % interval, over "
            "networks that were trained at each of them. Each length is a training of its own, with a "
            "schedule of its own. Shaded: differences too small to matter. A difference of speed is "
            "large at short lengths, and at long ones its whole interval is in the shade."
        ),
        panels=tuple(
            Panel(str(name), charts.trend(part, marks, title=what, reach=reach, along="epochs"))
            for name, part in rows.groupby("panel", sort=False)
        ),
        columns=3,
        table=Table(
            (
                *("network", "epochs", "depths and variants", "pairs", what, "95 % interval"),
                *("change since the shortest", "95 % interval of the change"),
            ),
            tuple(
                (
                    row["panel"],
                    str(row["epochs"]),
                    str(row["cells"]),
                    str(row["pairs"]),
                    signed(row["estimate"]),
                    interval(row["low"], row["high"]),
                    *_write_change(row["change"], row["change_low"], row["change_high"]),
                )
                for row in rows.to_dict("records")
            ),
        ),
    )
    return Section("lengths", title, " ".join(map(_tell_change, find_ends(lengths))), (figure,))


def _tell_change(ends: tuple[LengthEffect, LengthEffect]) -> str:
    shortest, longest = ends
    margin = longest.margin
    if -margin < longest.low and longest.high < margin:
        left = "no difference that matters is left"
    elif longest.low > margin or longest.high < -margin:
        left = "a difference that matters is left"
    elif longest.low > 0 or longest.high < 0:
        left = f"a difference is left, whether beyond ±{margin:g} is open"
    else:
        left = f"whether one beyond ±{margin:g} is left is open"
    return (
        f"In {longest.networks}: {signed(shortest.estimate)} points after {shortest.epochs} epochs, "
        f"{signed(longest.estimate)} {interval(longest.low, longest.high)} after {longest.epochs}, a "
        f"change of {signed(longest.change)} {interval(longest.change_low, longest.change_high)}; "
        f"{left}."
    )


def _write_change(change: float, low: float, high: float) -> tuple[str, str]:
    """A change with its interval; of the shortest length there is none."""
    return (signed(change), interval(low, high)) if math.isfinite(low) else (NONE, NONE)


def _show_curves(
    points: Sequence[CurvePoint], marks: Mapping[str, Mark], *, deciding: int
) -> tuple[Figure, ...]:
    """The deciding or longest training first, in the page's first study; the others on demand."""
    if not points:
        return ()
    rows = pd.DataFrame(points)
    rows["network"] = rows["architecture"] + "-" + rows["depth"].astype(str)
    rows["study"] = tables.name_studies(rows)
    rows = tables.name_panels(rows, "network", "variant")
    is_first = rows["study"] == rows["study"].iloc[0]
    lengths = sorted(rows["epochs"].unique(), key=lambda epochs: (epochs != deciding, -epochs))
    is_leading = rows["epochs"] == lengths[0]
    deepest = rows.groupby(["architecture", "study"])["depth"].transform("max")
    has_several = len(lengths) > 1
    figures = []
    for epochs in lengths:
        of_length = rows["epochs"] == epochs
        first = of_length & is_first
        if rows.loc[first, "panel"].nunique() > MOST_PANELS:
            first &= rows["depth"] == deepest
        words = f", {format_count(int(epochs), 'epoch')} of training" * has_several
        for ending, chosen in (("", first), (" in the other networks", of_length & ~first)):
            if chosen.any():
                figures.append(
                    _draw_curves(
                        rows[chosen],
                        marks,
                        name=f"learning-{epochs}" + "-others" * bool(ending),
                        title=f"Learning curves{ending}{words}",
                        is_aside=bool(ending) or not is_leading[chosen].all(),
                    )
                )
    return tuple(sorted(figures, key=lambda figure: figure.is_aside))


def _draw_curves(
    rows: pd.DataFrame, marks: Mapping[str, Mark], *, name: str, title: str, is_aside: bool
) -> Figure:
    shown = spread_times(sorted(rows["epoch"].unique().tolist()))
    rows = rows.assign(is_marked=rows["epoch"].isin(shown))
    late = rows[rows["epoch"] >= rows["epoch"].max() / 2]
    low, high = span(late, "mean", "low", "high")
    reach = [max(0.0, low), min(100.0, high)]
    return Figure(
        name=name,
        title=title,
        description=(
            "Mean validation accuracy over the seeds that trained, with the 95 % interval of each "
            "mean. What counts is the paired difference, not whether two bands overlap. The first "
            "half of training may lie below the axis." + _tell_lost(rows)
        ),
        panels=tuple(
            Panel(
                str(panel),
                curves.learning(
                    part,
                    {arm: mark for arm, mark in marks.items() if arm in set(part["arm"])},
                    title="validation accuracy (%)",
                    reach=reach,
                ),
            )
            for panel, part in rows.groupby("panel", sort=False)
        ),
        columns=3,
        legend=tuple(arm for arm in marks if arm in set(rows["arm"])),
        table=Table(
            ("network", "arm", "epoch", "seeds", "mean (%)", "95 % interval"),
            tuple(
                (
                    row["panel"],
                    row["arm"],
                    str(row["epoch"]),
                    str(row["trials"]),
                    number(row["mean"]),
                    interval(row["low"], row["high"], number),
                )
                for row in rows.to_dict("records")
                if row["epoch"] in {1, row["epochs"]}
            ),
            words=2,
        ),
        is_aside=is_aside,
    )


def _tell_lost(rows: pd.DataFrame) -> str:
    """Which seeds are in no curve."""
    arms = rows.drop_duplicates(["panel", "arm"])
    lost = arms[arms["trials"] < arms["ran"]]
    if lost.empty:
        return ""
    told = [
        f"{row['arm']} in {row['panel']} {row['trials']} of {row['ran']}"
        for row in lost.to_dict("records")
    ]
    more = f" and {len(told) - 6} more" * (len(told) > 6)
    return f" Only some seeds trained: {'; '.join(told[:6])}{more}."


def _show_differences(
    courses: Sequence[CourseEffect], marks: Mapping[str, Mark], *, margin: float
) -> tuple[Figure, ...]:
    rows = _frame(courses, "accuracy", margin)
    if rows.empty:
        return ()
    arm, baseline = rows["arm"].iloc[0], rows["baseline"].iloc[0]
    return (
        _course(
            rows,
            marks,
            name="difference-course",
            title=f"Validation accuracy along training: {arm} {theme.MINUS} {baseline} (points)",
            description=f"Mean over seeds and depths, each pair of equal seed. {_BAND} Shaded: "
            "differences too small to matter.",
            is_ratio=False,
        ),
    )


def _course(
    rows: pd.DataFrame,
    marks: Mapping[str, Mark],
    *,
    name: str,
    title: str,
    description: str,
    is_ratio: bool,
) -> Figure:
    return Figure(
        name=name,
        title=title,
        description=description,
        panels=tuple(
            Panel(
                str(panel),
                curves.course(
                    part,
                    marks,
                    title="ratio" if is_ratio else "points",
                    reach=reach_of(
                        rows[rows["epochs"] == part["epochs"].iloc[0]], is_ratio=is_ratio
                    ),
                    is_ratio=is_ratio,
                ),
            )
            for panel, part in rows.groupby("panel", sort=False)
        ),
        columns=3,
        table=Table(
            (
                *("network", *(["steps"] * is_ratio), "epoch", "pairs"),
                *("ratio" if is_ratio else "points", "simultaneous 95 % band"),
            ),
            tuple(
                (
                    row["panel"],
                    *([str(row["step"])] * is_ratio),
                    f"{row['epoch']:.3g}",
                    str(row["pairs"]),
                    (ratio if is_ratio else signed)(row["estimate"]),
                    interval(row["low"], row["high"], ratio if is_ratio else signed),
                )
                for row in rows.to_dict("records")
            ),
        ),
    )


def _frame(courses: Sequence[CourseEffect], quantity: str, margin: float) -> pd.DataFrame:
    """The effects on one quantity; panels are told apart by length where there are several."""
    chosen = [one for one in courses if one.quantity == quantity]
    if not chosen:
        return pd.DataFrame()
    rows = pd.DataFrame(chosen).assign(margin=margin)
    has_several = len(rows["epochs"].unique()) > 1
    rows["length"] = [f"{epochs} epochs" * has_several for epochs in rows["epochs"]]
    return tables.name_panels(rows, "networks", "length")
