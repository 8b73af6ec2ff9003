"""What the effect of the order depends on: norm, activation, optimizer, and the size of things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.judgement.outcomes import WINDOWS
from analysis.page import theme
from analysis.page.parts import Section, Table
from analysis.page.theme import capitalized, interval, p_value, signed

if TYPE_CHECKING:
    from analysis.judgement.interactions import Interaction

_INTRO = (
    "Exploratory: no claim rests on it. The effect of the order, after minus before, at one value of a "
    "setting is compared with that at another, in cells that are equal in all else and share their "
    "seeds. What belongs to the value changes with it: an optimizer has its own rates and momentum, "
    "and a batch size may have its own learning rate. Intervals hold one at a time; the last p is "
    "corrected (Holm) for all rows of this section."
)
_FACTORS = {"train_images": "training images", "probe_size": "images in the probe"}
"""Settings whose names are no words."""
_THEORY = (
    " Theory expects gradient flow to depend on the batch that measures it: at initialisation, with "
    "batch norm and ReLU, the squared gradient of a deep MLP grows per layer towards the input by about 1.8 "
    "(before) and 2.0 (after) at 8 images, and by 1.47 in both at 512 (Yang et al. 2019)."
)


def show_interactions(interactions: Sequence[Interaction]) -> Section:
    """A table of differences of accuracy and one of ratios of gradient flow."""
    measures = any(one.factor == "probe_size" for one in interactions)
    return Section(
        "interactions",
        "What does the effect of the order depend on?",
        _INTRO + _THEORY * measures,
        tables=tuple(
            (title, _tabulate(chosen, is_ratio=quantity == "gradient"))
            for quantity, title in (
                ("accuracy", "Test accuracy: after minus before (points)"),
                ("gradient", "Gradient flow: after / before (ratio)"),
            )
            if (chosen := [one for one in interactions if one.quantity == quantity])
        ),
    )


def _tabulate(interactions: Sequence[Interaction], *, is_ratio: bool) -> Table:
    def write(value: float) -> str:
        return theme.ratio(10**value) if is_ratio else signed(value)

    told = [
        name
        for name in ("dataset", "recipe")
        if len({getattr(one, name) for one in interactions}) > 1
    ]
    return Table(
        (
            *("setting", "networks", "values", "effect at the first", "at the second"),
            *("second / first" if is_ratio else "second minus first", "95 % interval"),
            *("p", "p (Holm)", "cells", "pairs"),
        ),
        tuple(
            (
                capitalized(_FACTORS.get(one.factor, one.factor.replace("_", " "))),
                ", ".join(
                    (
                        one.pool,
                        *(getattr(one, name) for name in told),
                        *([WINDOWS[one.window]] if is_ratio else []),
                    )
                ),
                f"{one.reference}, {one.value}",
                write(one.at_reference),
                write(one.at_value),
                write(one.estimate),
                interval(one.low, one.high, write),
                p_value(one.p),
                p_value(one.p_holm),
                str(one.cells),
                str(one.pairs),
            )
            for one in interactions
        ),
        words=3,
    )
