"""What a reader asks of a study first: on what data, with which networks, how often, on what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.judgement.outcomes import name_arm
from analysis.judgement.studies import name_dataset, name_value
from analysis.load import CELL
from harness.study.facts import facts_of
from harness.study.wording import format_count, format_duration, list_words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import pandas as pd

    from analysis.load import Results

_MOST_DEVICES = 2


def describe_facts(results: Results) -> tuple[tuple[str, str], ...]:
    """Names and values for the first screen, as planned; of what has run, the hardware and time."""
    planned = results.planned
    study = planned[planned["stage"] == "study"]
    planned = study if len(study) else planned
    return (
        ("data", "; ".join(_name_data(planned))),
        ("networks", "; ".join(name_networks(planned))),
        ("arms", ", ".join(_name_arms(planned))),
        ("seeds", f"{range_words(count_seeds(planned))} per arm and network"),
        ("training", _describe_training(planned, deciding=results.plan.epochs)),
        ("norm, activation, optimizer", "; ".join(_name_ingredients(planned))),
        ("hardware", _name_hardware(results.trials)),
    )


def _name_arms(planned: pd.DataFrame) -> Iterator[str]:
    arms = planned[["placement", "flow"]].drop_duplicates()
    return map(name_arm, arms["placement"], arms["flow"])


def _name_data(planned: pd.DataFrame) -> Iterator[str]:
    for dataset, rows in planned.groupby("dataset", sort=False):
        facts = facts_of(str(dataset))
        used = sorted(rows["train_images"].unique().tolist())
        if facts.is_assumed:
            size = (
                ""
                if used == [0]
                else f", {list_words(f'{n:,}' for n in used if n)} training images"
            )
        else:
            whole = f"{facts.train_images:,}"
            parts = [f"{n:,} of {whole}" if 0 < n < facts.train_images else whole for n in used]
            size = f", {list_words(dict.fromkeys(parts))} training images, {facts.test_images:,} to test"
        yield f"{name_dataset(str(dataset))}{size}"


def name_networks(planned: pd.DataFrame) -> Iterator[str]:
    """Architectures of the same depths and widths together."""
    sizes: dict[tuple[str, str], list[str]] = {}
    for architecture, rows in planned.groupby("architecture", sort=False):
        depths = list_words(str(depth) for depth in sorted(rows["depth"].unique()))
        widths = list_words(f"{width:g}" for width in sorted(rows["width_factor"].unique()))
        sizes.setdefault((depths, widths), []).append(str(architecture))
    for (depths, widths), names in sizes.items():
        width = "" if widths == "1" else f", width {widths}"
        yield f"{list_words(names)} of depth {depths}{width}"


def count_seeds(planned: pd.DataFrame) -> list[int]:
    """How many seeds each cell and arm has."""
    return planned.groupby([*CELL, "recipe"], dropna=False)["seed"].nunique().tolist()


def range_words(counts: Collection[int]) -> str:
    """What all are, or both, or the least and the most.

    >>> range_words([5, 5]), range_words([10, 5, 5]), range_words([3, 4, 5])
    ('5', '5 or 10', '3 to 5')
    """
    found = sorted(set(counts))
    return " or ".join(map(str, found)) if len(found) < 3 else f"{found[0]} to {found[-1]}"


def _describe_training(planned: pd.DataFrame, *, deciding: int) -> str:
    parts = []
    for name, words in (("epochs", "{} epochs"), ("batch_size", "batches of {}")):
        values = sorted(planned[name].unique().tolist())
        parts.append(words.format(list_words(str(value) for value in values)))
        if name == "epochs" and deciding and len(values) > 1:
            parts[-1] += f" (the claims are judged after {deciding})"
    rates = sorted(planned["lr"].unique().tolist())
    told = list_words(f"{rate:g}" for rate in rates)
    tuned = ", each arm's best" * bool((planned["recipe"] == "tuned").all())
    many = "learning rates" if len(rates) > 1 else "learning rate"
    parts.append(f"{many} {told}{tuned}" if len(rates) <= 3 else f"{len(rates)} {many}{tuned}")
    return ", ".join(parts).replace("1 epochs", "1 epoch") if parts else ""


def _name_ingredients(planned: pd.DataFrame) -> Iterator[str]:
    names = ["norm", "activation", "optimizer"]
    has_norm = planned["program"].str.contains("norm")
    if has_norm.any():  # a network without one belongs to the study of no norm
        planned = planned[has_norm]
    for values in planned[names].drop_duplicates().itertuples(index=False, name=None):
        yield ", ".join(name_value(name, value) for name, value in zip(names, values, strict=True))


def _name_hardware(trials: pd.DataFrame) -> str:
    if trials.empty:
        return "nothing has run yet"
    devices = trials["device"].value_counts()
    names = [name or "unnamed device" for name in devices.index]
    told = list_words(names[:_MOST_DEVICES])
    if len(names) > _MOST_DEVICES:
        told += f" and {format_count(len(names) - _MOST_DEVICES, 'other kind')}"
    return f"{told}, {format_duration(float(trials['wall_time'].sum()))} of training in all"
