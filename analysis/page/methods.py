"""Say how a study was done as a paper would, with this study's numbers, and how to cite it."""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING

from analysis.judgement.studies import name_dataset, name_value
from analysis.load import CELL
from analysis.page import theme
from analysis.page.facts import count_seeds, name_networks, range_words
from harness.study.facts import facts_of
from harness.study.wording import format_count, format_duration, list_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from analysis.page.parts import Page

CITATION = """@software{bn_order,
  title   = {bn-order: Does Batch Normalization belong before or after ReLU?},
  author  = {{The authors of bn-order}},
  version = {VERSION},
  year    = {2026},
  license = {MIT}
}
@inproceedings{franceschi2020,
  title     = {Demystifying Batch Normalization: Analysis of Normalizing Layer Inputs in Neural
               Networks},
  author    = {Franceschi, Dinko D. and Jang, Jun Hyek},
  booktitle = {Optimization and Learning},
  year      = {2020},
  doi       = {10.1007/978-3-030-41913-4_5}
}
"""


def cite() -> str:
    """The entries of a bibliography: this benchmark, and the paper whose claims it tests."""
    return CITATION.replace("VERSION", _own_version())


def _own_version() -> str:
    try:
        return metadata.version("bn-order")
    except metadata.PackageNotFoundError:  # run from a checkout that nobody installed
        return "unreleased"


def describe_methods(page: Page) -> tuple[str, ...]:
    """Paragraphs for the methods section of a paper, true of this study and of no other."""
    planned = page.results.planned
    study = planned[planned["stage"] == "study"]
    study = study if len(study) else planned
    return (
        " ".join(_describe_design(page, study)),
        " ".join((*_describe_training(study), *_describe_tuning(planned))),
        " ".join(_describe_tests(page)),
        " ".join(_describe_software(page)),
    )


def _describe_design(page: Page, study: pd.DataFrame) -> Iterator[str]:
    norms, activations = (_names(study, name) for name in ("norm", "activation"))
    arms = list_words(f"'{arm}'" for arm in page.marks)
    yield (
        f"We compared the arms {arms}, which differ in the placement of {norms} relative to "
        f"{activations} inside a block, in {list_words(name_networks(study))}."
    )
    yield from map(_describe_data, dict.fromkeys(study["dataset"]))
    used = sorted(set(study["train_images"].tolist()) - {0})
    if used:
        yield f"Training used {list_words(f'{n:,}' for n in used)} of the training images."
    seeds = count_seeds(study)
    counts = page.counts
    lost = "".join(f", {counts[state]} {state}" for state in ("diverged", "failed", "missing"))
    tuned = len(page.results.planned) - len(study)
    beside = f", and {tuned} to choose recipes" if tuned else ""
    yield (
        f"Each arm of each network, {len(seeds)} together, was planned with "
        f"{range_words(seeds)} seeds, {len(study)} trainings in all"
        f"{beside} ({counts['done']} done{lost}). Arms of equal seed started from the same weights "
        "wherever shapes agree and saw the same batches, so they are compared in pairs."
    )


def _describe_data(dataset: str) -> str:
    facts = facts_of(dataset)
    channels, height, width = facts.shape
    if facts.is_assumed:
        return f"The data are {name_dataset(dataset)}."
    return (
        f"The data are {name_dataset(dataset)} ({facts.classes} classes, images of "
        f"{channels}x{height}x{width}; {facts.train_images:,} to train, "
        f"{facts.validation_images:,} to validate, {facts.test_images:,} to test)."
    )


def _describe_training(study: pd.DataFrame) -> Iterator[str]:
    known = {"sgd": f"SGD with Nesterov momentum {_values(study, 'momentum')}", "adamw": "AdamW"}
    optimizers = list_words(
        (known.get(name, name) for name in dict.fromkeys(study["optimizer"])), "or"
    )
    rates = sorted(study["lr"].unique().tolist())
    rate = (
        list_words((f"{rate:g}" for rate in rates), "or")
        if len(rates) <= 4
        else f"{rates[0]:g} to {rates[-1]:g}, by arm"
    )
    warmup = _values(study, "warmup_epochs")
    yield (
        f"Networks were trained for {_values(study, 'epochs')} epochs by {optimizers} in batches "
        f"of {_values(study, 'batch_size')}, with weight decay {_values(study, 'weight_decay')} "
        f"and a peak learning rate of {rate}, reached linearly over {warmup} "
        f"{'epoch' if warmup == '1' else 'epochs'} and then lowered to zero along a cosine."
    )
    yield (
        f"Augmentation: {_names(study, 'augmentation')}; label smoothing: "
        f"{_values(study, 'label_smoothing')}; precision: {_names(study, 'precision')}."
    )
    if (study["flow"] != "own").any():
        yield (
            "Arms with the steps of another take each layer's step in their own direction and in "
            "the relative size of the other arm's."
        )


def _describe_tuning(planned: pd.DataFrame) -> Iterator[str]:
    """How an arm got its recipe, where a stage of the study chose it."""
    tuning = planned[planned["stage"] == "tuning"]
    if tuning.empty:
        return
    seeds = tuning.groupby(list(CELL), dropna=False)["seed"].nunique().max()
    lengths = planned.loc[planned["stage"] == "study", "epochs"].nunique()
    yield (
        f"Each arm trains at the learning rate, of {_values(tuning, 'lr')} (not all were tried in "
        f"every arm), that scored best on validation images after {_values(tuning, 'epochs')} epochs, "
        f"over {format_count(int(seeds), 'seed')} that the study does not use"
        + "; arms with the steps of another take theirs and the other's"
        * bool((planned["flow"] != "own").any())
        + (
            "; at every length of training it is the same."
            if lengths > tuning["epochs"].nunique()
            else "."
        )
    )


def name_symbols(column: str) -> str:
    """What the letters in the meaning of a column stand for."""
    meaning = theme.meaning(column)
    told = {
        "z": "z is a layer's output",
        "g": "g the gradient of the mean loss by z",
        "W": "W the layer's weight",
    }
    return ", ".join(text for symbol, text in told.items() if re.search(rf"\b{symbol}\b", meaning))


def _describe_tests(page: Page) -> Iterator[str]:
    plan = page.results.plan
    yield (
        "Accuracy is that of the last epoch on the test part. Gradient flow, on a fixed batch of "
        f"{_values(page.results.planned, 'probe_size')} images, is "
        f"{theme.meaning_within(plan.gradient_column)}; its logarithm, averaged over "
        f"layers, is compared ({name_symbols(plan.gradient_column)})."
    )
    yield (
        "The smallest differences that matter were fixed before training: "
        f"±{plan.margin_accuracy:g} percentage points of accuracy, a ratio of "
        f"{1 / plan.margin_gradient:.2f} to {plan.margin_gradient:g} of gradient flow, and "
        f"±{100 * plan.margin_risk:g} points of the risk that a network does not train."
    )
    yield (
        "Differences are tested by paired t tests and equality by two one-sided tests against "
        "these margins; pools over cells weight cells equally, with errors clustered by seed or "
        "combined after Welch and Satterthwaite."
    )
    if plan.epochs:
        yield (
            f"The claims are judged after {plan.epochs} epochs of training, as fixed beforehand; "
            "other lengths are shown beside."
        )
    primary = len(page.cards)
    if primary:
        yield (
            f"The {primary} primary claims form one family with Holm's correction at "
            f"{100 * plan.alpha:g} %; intervals are at 95 % and not corrected for their number."
        )
    looks = len(page.seen) or 1
    if plan.looks:
        has_added = len(set(count_seeds(page.results.planned.query("stage == 'study'")))) > 1
        yield (
            f"Looks were planned at {list_words(map(str, plan.looks))} seeds per cell"
            + "; after a look, seeds were added only where a claim was still open" * has_added
            + "."
        )
    yield (
        "The data were looked at once."
        if looks == 1
        else f"The data were looked at {looks} times; levels and intervals allow for every look "
        "(alpha spending after Lan and DeMets)."
    )
    if plan.control:
        yield (
            f"The positive control is '{plan.control}': where it does not differ, nothing is "
            "called equivalent."
        )


def _describe_software(page: Page) -> Iterator[str]:
    trials = page.results.trials
    ours = f"Trained and judged with bn-order {_own_version()}"
    if trials.empty:
        yield f"{ours}; nothing has run yet."
        return
    commits = [commit[:10] for commit in dict.fromkeys(trials["commit"]) if commit]
    at = f" (commit {list_words(commits)})" if commits and len(commits) <= 3 else ""
    devices = [name or "an unnamed device" for name in dict.fromkeys(trials["device"])]
    told = (
        list_words(devices) if len(devices) <= 3 else format_count(len(devices), "kind of device")
    )
    yield (
        f"{ours}{at}, PyTorch {_names(trials, 'torch')} and Python {_names(trials, 'python')} on {told}, "
        f"{format_duration(float(trials['wall_time'].sum()))} of training."
    )


def _values(rows: pd.DataFrame, column: str) -> str:
    return list_words(f"{value:g}" for value in sorted(rows[column].unique().tolist()))


def _names(rows: pd.DataFrame, column: str) -> str:
    return list_words(name_value(column, value) for value in dict.fromkeys(rows[column]))
