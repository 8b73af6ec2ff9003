"""From a YAML file to a `Grid`, or to every mistake in it at once, each with its file and line.

Three steps: `Document` reads the text as plain values that remember where they were written,
pydantic checks each value and whatever it must agree with (`GridForm`), and what only the whole
shows comes last: repeated trials, packs, the count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.study.architectures import find_architecture
from harness.study.document import Document, Loc, as_mapping, find_number_trap, find_trap
from harness.study.errors import GridError
from harness.study.facts import facts_of, find_count_mistake
from harness.study.forms import (
    FORMS,
    ONLY_WITH,
    SETTINGS,
    AnalysisForm,
    Defaults,
    GridForm,
    NotANumber,
    is_not,
)
from harness.study.own import is_own, read_network, recall
from harness.study.records import AnalysisPlan, Settings
from harness.study.trials import EVERY_PROGRAM, Trial, expand, expand_product, find_pack_mistake
from harness.study.tuning import Tuning
from harness.study.wording import did_you_mean, show

MAX_TRIALS = 100_000

LARGEST_USUAL_ADAMW_RATE = 0.03
"""Above it an author is asked whether the rate was meant for sgd."""


@dataclass(frozen=True)
class Grid:
    """A grid that is right: its trials, and what its analysis has fixed beforehand."""

    name: str
    source: str
    """The YAML text as written."""
    trials: tuple[Trial, ...]
    """The study at its common recipe, the seed varying slowest and the placement fastest: what is
    cut short leaves whole pairs."""
    plan: AnalysisPlan
    tuning: Tuning | None
    """The recipes to try ahead of the study; None where it runs at the common recipe alone."""
    programs: Mapping[str, Mapping[str, str]]
    """architecture -> placement -> program, the grid's own placements among them."""
    networks: tuple[str, ...]
    """The text of each file that builds a user's own network."""
    overrides: tuple[str, ...]
    notes: tuple[str, ...]
    """What its author may not expect and should read once."""


def load_grid(path: Path | str, overrides: Sequence[str] = (), seeds: str | None = None) -> Grid:
    """Read the grid at `path`, as changed by the command line.

    An override is `key=value` with the value written as in the file: `lr=0.05` or `depth=[8, 14]`
    for a default setting, `margins.accuracy_points=1` or `analysis.looks=2` for the rest. What a
    product sets itself stays. `seeds` is a count or a list: "5", "0,1,2", "0-9".

    Raises:
        GridError: with every mistake that can be told, in the order of the lines.
    """
    document = Document(Path(path))
    for override in overrides:
        document.override(override)
    if seeds is not None:
        document.override_seeds(seeds)
    document.inherit_defaults()

    form = _check_values(document)
    document.raise_mistakes()
    products = [product.said() for product in form.grid]
    tuning = Tuning(**form.tuning.said()) if form.tuning else None
    programs = {
        architecture: {**placements, **getattr(form.programs, architecture, {})}
        for architecture, placements in EVERY_PROGRAM.items()
    }
    digests = _read_networks(document, products, Path(path).parent)
    programs |= {name: find_architecture(name).programs for name in digests}
    document.raise_mistakes()
    for at, text in _find_mistakes_of_the_whole(
        document, products, form.seeds, tuning, programs, form.analysis
    ):
        document.refuse(at, text)
    document.raise_mistakes()
    return Grid(
        name=form.name,
        source=document.source,
        trials=tuple(expand(products, form.seeds, programs=programs, digests=digests)),
        plan=AnalysisPlan(grid=form.name, **form.margins.said(), **form.analysis.said()),
        tuning=tuning,
        programs=programs,
        networks=tuple(filter(None, map(recall, dict.fromkeys(digests.values())))),
        overrides=tuple(overrides),
        notes=tuple(
            f"{document.place(at).label}: {text}"
            for at, text in _find_surprises(
                products, form.seeds, form.analysis.looks, tuning, programs
            )
        ),
    )


def _read_networks(
    document: Document, products: Sequence[Mapping[str, Sequence[Any]]], folder: Path
) -> dict[str, str]:
    """Each network of a user's -> the digest of its file; refuses those that cannot be used."""
    digests: dict[str, str] = {}
    for index, product in enumerate(products):
        for architecture in filter(is_own, product["architecture"]):
            try:
                digests[architecture] = read_network(architecture, folder)
            except GridError as error:
                document.refuse(("grid", index, "architecture"), str(error))
    return digests


def _placements(document: Document) -> dict[str, tuple[str, ...]]:
    """Of each architecture; the grid's own too, whether or not their programs are right."""
    own = as_mapping(document.values.get("programs"))
    return {
        architecture: (*known, *as_mapping(own.get(architecture)))
        for architecture, known in EVERY_PROGRAM.items()
    }


def _check_values(document: Document) -> GridForm:
    try:
        return GridForm.model_validate(document.values, context=_placements(document))
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            document.refuse(error["loc"], _explain(error, document))
        document.raise_mistakes()
        raise AssertionError("an invalid grid without a mistake") from invalid


def _explain(error: Mapping[str, Any], document: Document) -> str:
    loc: Loc = error["loc"]
    *around, key = loc
    match error["type"]:
        case "value_error":
            return _explain_value(document, loc, error["ctx"]["error"])
        case "extra_forbidden":
            return _explain_unknown_key(loc)
        case "missing" if around[:1] == ["grid"]:
            return f"{key!r} is missing, here and in defaults"
        case "missing":
            return f"{key!r} is missing"
        case "model_type" | "dict_type":
            trap = find_trap(document.place(loc).node)
            return trap or f"{show(error['input'])} is not a mapping of 'key: value'"
        case _:
            return f"{show(error['input'])} does not fit here: {error['msg']}"


def _explain_value(document: Document, loc: Loc, reason: ValueError) -> str:
    node = document.place(loc).node
    trap = find_trap(node)
    if not trap and isinstance(reason, NotANumber):
        trap = find_number_trap(node, whole=reason.whole)
    return trap or str(reason)


def _explain_unknown_key(loc: Loc) -> str:
    key = str(loc[-1])
    if len(loc) == 1:
        form = GridForm
        hint = "; settings stand under defaults or in a product" if key in SETTINGS else ""
    else:
        form = FORMS[loc[0]]
        hint = _ELSEWHERE.get(key, "") if form is Defaults else ""
    allowed = tuple(form.model_fields)
    return f"not {form.noun}: {', '.join(allowed)}{hint or did_you_mean(key, allowed)}"


_ELSEWHERE = {
    "learning_rate": "; did you mean 'lr'?",
    "model": "; did you mean 'architecture'?",
    "betas": "; did you mean 'beta1' and 'beta2'?",
    "wd": "; did you mean 'weight_decay'?",
    "seed": "; seeds stand at the top of the grid, or in --seeds",
    "seeds": "; seeds stand at the top of the grid, or in --seeds",
    "program": "; programs stand at the top of the grid, and a product names their placement",
}


def _find_mistakes_of_the_whole(
    document: Document,
    products: Sequence[Mapping[str, Sequence[Any]]],
    seeds: Sequence[int],
    tuning: Tuning | None,
    programs: Mapping[str, Mapping[str, str]],
    analysis: AnalysisForm,
) -> Iterator[tuple[Loc, str]]:
    """What no single value shows, once every value is right."""
    # Multiplied, never built: the numbers may be absurd.
    cells = sum(math.prod(map(len, product.values())) for product in products)
    if (trials := cells * len(seeds)) > MAX_TRIALS:
        yield ("grid",), f"{trials:,} trials are too many; {MAX_TRIALS:,} at most"
        return
    if tuning:
        recipes = len(tuning.lr) * max(1, len(tuning.weight_decay))
        if (trials := cells * recipes * tuning.seeds) > MAX_TRIALS:
            yield ("tuning",), f"up to {trials:,} trials are too many; {MAX_TRIALS:,} at most"
            return
    for index, product in enumerate(products):
        yield from _find_mistakes_of_a_product(document, index, product, seeds)
    if mistake := _find_control_mistake(analysis.control, products):
        yield ("analysis", "control"), mistake
    lengths = dict.fromkeys(count for product in products for count in _values(product, "epochs"))
    if analysis.epochs and analysis.epochs not in lengths:
        text = is_not(analysis.epochs, "a training length of this grid", [*map(str, lengths)])
        yield ("analysis", "epochs"), text
    yield from _find_repeated_trials(document, products, seeds, programs)


def _find_mistakes_of_a_product(
    document: Document, index: int, product: Mapping[str, Sequence[Any]], seeds: Sequence[int]
) -> Iterator[tuple[Loc, str]]:
    """Settings that do not go together."""
    epochs, warmups = _epochs_and_warmups(product)
    if len(warmups) > 1 and max(warmups) > epochs:  # cut to the epochs, two might be one
        text = f"a warm-up of {max(warmups):g} epochs does not fit into {epochs}"
        at = ("grid", index, "warmup_epochs")
        yield at, f"{text}; set warmup_epochs to {epochs} or less"
    for placement in set(product.get("flow", ())) & set(product["placement"]):
        text = f"{placement!r} would borrow the flow it has; give each such arm a product"
        yield ("grid", index, "flow"), f"{text} of its own, with the other placement's flow"
    for size in _values(product, "pack_size"):
        mistake = find_pack_mistake(size, seeds)
        if mistake:
            yield ("grid", index, "pack_size"), mistake
    yield from _find_idle_settings(document, index, product)
    yield from _find_count_mistakes(index, product)
    if "adamw" in _values(product, "optimizer") and "lr" not in product:
        text = f"adamw trains badly at sgd's default rate of {Settings.lr:g}"
        yield ("grid", index, "optimizer"), f"{text}; set lr as well, such as lr: 0.001"


def _find_surprises(
    products: Sequence[Mapping[str, Sequence[Any]]],
    seeds: Sequence[int],
    looks: Sequence[int] | None,
    tuning: Tuning | None,
    programs: Mapping[str, Mapping[str, str]],
) -> Iterator[tuple[Loc, str]]:
    """What is done, yet may not be meant."""
    for index, product in enumerate(products):
        epochs, warmups = _epochs_and_warmups(product)
        if warmups[0] > epochs:
            said = "warmup_epochs" if "warmup_epochs" in product else "epochs"
            text = f"the warm-up of {warmups[0]:g} epochs is cut to {epochs}, the whole training"
            yield ("grid", index, said), text
        rate = max(_values(product, "lr"))
        if "adamw" in _values(product, "optimizer") and rate > LARGEST_USUAL_ADAMW_RATE:
            text = f"adamw seldom trains at a rate of {rate:g}, which would be usual for sgd"
            yield ("grid", index, "lr"), f"{text}; 0.001 is usual for adamw"
        if "instance" in _values(product, "norm") and any(
            final_norm or _ends_in_norm(programs[architecture][placement])
            for final_norm in _values(product, "final_norm")
            for architecture in product["architecture"]
            for placement in product["placement"]
        ):
            text = (
                "behind its last activation instance norm gives every map the mean 0, and the head"
            )
            yield ("grid", index, "norm"), f"{text} reads means: what ends in it learns nothing"
    optimizers = {name for product in products for name in _values(product, "optimizer")}
    if tuning and len(optimizers) > 1:
        text = "tries sgd and adamw at the same rates, of which few are good for both"
        yield ("tuning", "lr"), f"{text}; give each optimizer a grid of its own"
    if looks and looks[-1] > len(seeds):
        text = f"a look at {looks[-1]} seeds is planned, and the grid has {len(seeds)}"
        yield ("analysis", "looks"), f"{text}: every look at these is an early one"


def _ends_in_norm(program: str) -> bool:
    """Whether a norm is the last to change what a block hands on, an addition aside."""
    ahead, _, _ = program.partition("conv")  # of pre-activation networks, what ends them
    return (ahead.strip() or program.removesuffix(" +")).endswith("norm")


def _epochs_and_warmups(product: Mapping[str, Sequence[Any]]) -> tuple[int, Sequence[float]]:
    """The fewest epochs of a product, and its warm-ups."""
    return min(_values(product, "epochs")), _values(product, "warmup_epochs")


def _values(product: Mapping[str, Sequence[Any]], setting: str) -> Sequence[Any]:
    """Those of a product; the default's where it says none."""
    return product.get(setting, (getattr(Settings, setting),))


def _find_idle_settings(
    document: Document, index: int, product: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[Loc, str]]:
    """Settings that nothing would read in some trials of a product."""
    for key, (setting, owner) in ONLY_WITH.items():
        others = [value for value in _values(product, setting) if value != owner]
        if key not in product or not others:
            continue
        at = ("grid", index, key)
        text = f"{key} is for {setting}: {owner}"
        for other in others:
            if own := [name for name, only in ONLY_WITH.items() if only == (setting, other)]:
                text += f"; {other} has {' and '.join(own)}"
        if owner in _values(product, setting):
            text += f"; give each {setting} a product of its own"
        if document.is_inherited(at):
            text += f"; set {key} in the products with {setting}: {owner}, not for all"
        yield at, text


def _find_count_mistakes(
    index: int, product: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[Loc, str]]:
    """Data sets too small for what is asked, where a name tells the size."""
    for dataset, count, batch_size in itertools.product(
        *(_values(product, name) for name in ("dataset", "train_images", "batch_size"))
    ):
        facts = facts_of(dataset)
        mistake = find_count_mistake(
            dataset,
            facts.train_images,
            facts.classes,
            train_images=count,
            batch_size=batch_size,
        )
        if mistake and not facts.is_assumed:
            yield ("grid", index, "train_images" if count else "batch_size"), mistake


def _find_control_mistake(
    control: str | None, products: Sequence[Mapping[str, Sequence[Any]]]
) -> str | None:
    if not control:
        return None
    placements = tuple(dict.fromkeys(name for each in products for name in each["placement"]))
    if control == "before":
        return "a control is compared with 'before': name a placement that is known to differ"
    if control not in placements:
        return is_not(control, "a placement of this grid", placements)
    return None


def _find_repeated_trials(
    document: Document,
    products: Sequence[Mapping[str, Sequence[Any]]],
    seeds: Sequence[int],
    programs: Mapping[str, Mapping[str, str]],
) -> Iterator[tuple[Loc, str]]:
    owner: dict[Trial, int] = {}
    for index, product in enumerate(products):
        repeated: dict[int, list[Trial]] = {}
        for trial in expand_product(product, seeds[0], programs=programs):  # others repeat alike
            earlier = owner.setdefault(trial, index)
            if earlier != index:
                repeated.setdefault(earlier, []).append(trial)
        for earlier, trials in repeated.items():
            line = document.place(("grid", earlier)).line
            count = len(trials) * len(seeds)
            text = f"{count:,} of its trials stand in grid[{earlier}] on line {line} already"
            yield ("grid", index), f"{text}, such as {trials[0].label}"
