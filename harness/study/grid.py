"""From a YAML file to a `Grid`, or to every mistake in it at once, each with its file and line.

Three steps: `Document` reads the text as plain values that remember where they were written,
pydantic checks each value and whatever it must agree with (`_GridForm`), and what only the whole
shows comes last: repeated trials, packs, the count.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from harness.study import zoo
from harness.study.document import (
    MAX_SEEDS,
    Document,
    Loc,
    as_mapping,
    find_number_trap,
    find_trap,
)
from harness.study.records import AnalysisPlan, Settings
from harness.study.trials import (
    EVERY_PROGRAM,
    MAX_DEPTH,
    PROGRAMS,
    WORDS,
    Trial,
    expand,
    find_dataset_mistake,
    find_depth_mistake,
    find_program_mistake,
)
from harness.study.tuning import Tuning
from harness.study.wording import did_you_mean, show

MAX_TRIALS = 100_000
MAX_OPERATIONS = 100


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
    overrides: tuple[str, ...]


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
    for at, text in _find_mistakes_of_the_whole(document, products, form.seeds, tuning, programs):
        document.refuse(at, text)
    document.raise_mistakes()
    return Grid(
        name=form.name,
        source=document.source,
        trials=tuple(expand(products, form.seeds, programs=programs)),
        plan=AnalysisPlan(grid=form.name, **form.margins.said(), **form.analysis.said()),
        tuning=tuning,
        programs=programs,
        overrides=tuple(overrides),
    )


# What a grid may say. Validators run in the order of the fields, and `info.data` holds the fields
# that were right so far: a placement is checked against the architectures beside it.


class _NotANumber(ValueError):  # noqa: N818 - never leaves this module
    """A value that should be a number, and may look like one to its author."""

    def __init__(self, value: object, allowed: str, *, whole: bool) -> None:
        super().__init__(f"{show(value)} is not a {'whole ' * whole}number {allowed}")
        self.whole = whole


def _is_not(value: object, what: str, words: Sequence[str]) -> str:
    hint = ""
    if isinstance(value, str):
        listed = "," in value
        hint = "; a list is written [a, b]" if listed else did_you_mean(value, words)
    return f"{show(value)} is not {what}: {', '.join(words)}{hint}"


def _whole(low: int, high: int) -> BeforeValidator:
    def check(value: object) -> object:
        if type(value) is not int or not low <= value <= high:
            raise _NotANumber(value, f"from {low:,} to {high:,}", whole=True)
        return value

    return BeforeValidator(check)


def _real(allowed: str, is_allowed: Callable[[float], bool]) -> BeforeValidator:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_allowed(value):
            raise _NotANumber(value, allowed, whole=False)
        return float(value) + 0.0  # -0.0 and 0 become 0.0: equal settings, equal trials

    return BeforeValidator(check)


def _word(what: str, words: Sequence[str]) -> BeforeValidator:
    def check(value: object) -> object:
        if value not in words:
            raise ValueError(_is_not(value, what, words))
        return value

    return BeforeValidator(check)


def _check_dataset(dataset: object) -> object:
    if not isinstance(dataset, str):
        raise ValueError(_is_not(dataset, "a data set", WORDS["dataset"]))  # noqa: TRY004 - pydantic collects ValueError
    mistake = find_dataset_mistake(dataset)
    if mistake:
        raise ValueError(f"{mistake}{did_you_mean(dataset, WORDS['dataset'])}")
    return dataset


def _check_boolean(value: object) -> object:
    if type(value) is not bool:
        raise ValueError(_is_not(value, "a boolean", ("true", "false")))
    return value


def _check_architecture(architecture: object) -> object:
    if architecture not in EVERY_PROGRAM:
        words = (*PROGRAMS, f"{zoo.PREFIX}MODEL")
        reason = _is_not(architecture, "an architecture", words)
        if isinstance(architecture, str) and architecture.startswith(zoo.PREFIX):
            reason = zoo.explain_stranger(architecture) + did_you_mean(
                architecture, tuple(zoo.PROGRAMS)
            )
        raise ValueError(reason)
    return architecture


def _check_with_architecture(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
    for architecture in info.data.get("architecture") or ():
        mistake = zoo.find_setting_mistake(architecture, str(info.field_name), value)
        if mistake:
            raise ValueError(mistake)
    return value


def _check_depth(depth: int, info: ValidationInfo) -> int:
    for architecture in info.data.get("architecture") or ():
        for bottleneck in info.data.get("bottleneck") or (Settings.bottleneck,):
            allowed = find_depth_mistake(architecture, depth, bottleneck=bottleneck)
            if allowed:
                raise ValueError(f"{depth} is not a depth of {architecture}, which has {allowed}")
    return depth


def _check_placement(placement: object, info: ValidationInfo) -> object:
    for architecture in info.data.get("architecture") or ():
        words = (info.context or {})[architecture]
        if placement not in words:
            text = _is_not(placement, f"a placement of {architecture}", words)
            if architecture in zoo.PROGRAMS and (
                absence := zoo.explain_absence(architecture, str(placement))
            ):
                text = f"{text.partition('; did you mean')[0]}; {absence}"
            raise ValueError(text)
    if not isinstance(placement, str):
        raise ValueError(f"{show(placement)} is not the name of a placement")  # noqa: TRY004 - pydantic collects ValueError
    return placement


def _check_flow(flow: object, info: ValidationInfo) -> object:
    # Built-in placements only: the donor's program is looked up among them.
    for architecture in info.data.get("architecture") or ():
        words = ("own", *EVERY_PROGRAM[architecture])
        if flow not in words:
            raise ValueError(_is_not(flow, f"a flow of {architecture}", words))
    return flow


def _check_parts(parts: int) -> int:
    if parts == 1:
        raise ValueError("1 part of the probe batch has no variance; 0 for none, or at least 2")
    return parts


def _check_own_placement(placement: str, info: ValidationInfo) -> str:
    architecture = info.field_name
    if placement in PROGRAMS[str(architecture)]:
        raise ValueError(f"{architecture} has this placement already; choose another name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", placement):
        raise ValueError("a placement is named in up to 40 of a-z, 0-9 and '-', the first not '-'")
    return placement


def _check_program(program: object, info: ValidationInfo) -> str:
    architecture = str(info.field_name)
    if not isinstance(program, str):
        raise ValueError(f"{show(program)} is not a program, such as 'conv norm act'")  # noqa: TRY004 - pydantic collects ValueError
    if (count := len(program.split())) > MAX_OPERATIONS:
        raise ValueError(f"a block has {MAX_OPERATIONS} operations at most, this one has {count:,}")
    mistake = find_program_mistake(architecture, program)
    if mistake:
        raise ValueError(mistake)
    program = " ".join(program.split())
    for placement, known in PROGRAMS[architecture].items():
        if program == known:
            raise ValueError(f"this program is {architecture}'s placement {placement!r} already")
    return program


def _check_name(name: object) -> object:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            f"{show(name)} cannot name a grid and its folder: up to 64 of A-Z, a-z, 0-9, '.', "
            "'_' and '-', the first a letter or digit"
        )
    return name


def _list_values(value: object) -> tuple[object, ...]:
    if not isinstance(value, list):
        return (value,)
    if not value:
        raise ValueError("an empty list names no trial")
    return tuple(value)


def _list_seeds(value: object) -> tuple[object, ...]:
    if isinstance(value, list):
        return _list_values(value)
    if type(value) is not int or not 1 <= value <= MAX_SEEDS:
        raise _NotANumber(value, f"from 1 to {MAX_SEEDS:,}, nor a list of seeds", whole=True)
    return tuple(range(value))


def _list_products(value: object) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{show(value)} is not a list of products, each begun by '- '")  # noqa: TRY004 - pydantic collects ValueError
    return _list_values(value)


def _check_distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = [show(value) for value, times in Counter(values).items() if times > 1]
    if repeated:
        raise ValueError(f"given twice: {', '.join(repeated)}")
    return values


_Value = TypeVar("_Value")
_OneOrMore = Annotated[
    tuple[_Value, ...], BeforeValidator(_list_values), AfterValidator(_check_distinct)
]
_Dataset = Annotated[str, BeforeValidator(_check_dataset)]
_ByArchitecture = Annotated[_Value, AfterValidator(_check_with_architecture)]
_Boolean = Annotated[bool, BeforeValidator(_check_boolean)]
_Positive = Annotated[float, _real("above 0, up to 100", lambda number: 0 < number <= 100)]
_Fraction = Annotated[float, _real("from 0, below 1", lambda number: 0 <= number < 1)]
_Warmup = Annotated[float, _real("from 0 to 10,000", lambda number: 0 <= number <= 10_000)]
# Batch norm has no variance to divide by in a batch of one image.
_Batch = Annotated[int, _whole(2, 65_536)]
_Architecture = Annotated[str, BeforeValidator(_check_architecture)]
_Placement = Annotated[str, BeforeValidator(_check_placement)]
_Depth = Annotated[int, _whole(1, MAX_DEPTH), AfterValidator(_check_depth)]
_Programs = dict[
    Annotated[str, AfterValidator(_check_own_placement)],
    Annotated[str, BeforeValidator(_check_program)],
]

_UNSAID: Any = None
"""Stands where a grid says nothing; the defaults are those of the records."""


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    noun: ClassVar[str]
    """What a key of this form is."""

    def said(self) -> dict[str, Any]:
        """What the grid says, under the names of the records, in the order of the fields."""
        return self.model_dump(exclude_unset=True, by_alias=True)


class _Defaults(_Form):
    """Settings in a fixed order, whatever the file's: the placement last, so it varies fastest."""

    noun = "a setting"

    dataset: _OneOrMore[_Dataset] = _UNSAID
    architecture: _OneOrMore[_Architecture] = _UNSAID
    bottleneck: _OneOrMore[_Boolean] = _UNSAID
    depth: _OneOrMore[_Depth] = _UNSAID
    width_factor: _OneOrMore[_ByArchitecture[_Positive]] = _UNSAID
    growth: _OneOrMore[Annotated[int, _whole(1, 1_024)]] = _UNSAID
    norm_affine: _OneOrMore[_Boolean] = _UNSAID
    final_norm: _OneOrMore[_ByArchitecture[_Boolean]] = _UNSAID
    flow: _OneOrMore[Annotated[str, BeforeValidator(_check_flow)]] = _UNSAID
    epochs: _OneOrMore[Annotated[int, _whole(1, 10_000)]] = _UNSAID
    batch_size: _OneOrMore[_Batch] = _UNSAID
    lr: _OneOrMore[_Positive] = _UNSAID
    momentum: _OneOrMore[_Fraction] = _UNSAID
    weight_decay: _OneOrMore[_Fraction] = _UNSAID
    warmup_epochs: _OneOrMore[_Warmup] = _UNSAID
    label_smoothing: _OneOrMore[_Fraction] = _UNSAID
    augmentation: _OneOrMore[Annotated[str, _word("an augmentation", WORDS["augmentation"])]] = (
        _UNSAID
    )
    precision: _OneOrMore[Annotated[str, _word("a precision", WORDS["precision"])]] = _UNSAID
    memory_format: _OneOrMore[Annotated[str, _word("a memory format", WORDS["memory_format"])]] = (
        _UNSAID
    )
    compile: _OneOrMore[_Boolean] = _UNSAID
    threads: _OneOrMore[Annotated[int, _whole(1, 1_024)]] = _UNSAID
    pack_size: _OneOrMore[_ByArchitecture[Annotated[int, _whole(1, 64)]]] = _UNSAID
    probe_size: _OneOrMore[_Batch] = _UNSAID
    snr_batches: _OneOrMore[Annotated[int, _whole(0, 1_024), AfterValidator(_check_parts)]] = (
        _UNSAID
    )
    placement: _OneOrMore[_Placement] = _UNSAID


class _Product(_Defaults):
    """A product with what it inherits; it has the three settings that no record has a default for."""

    architecture: _OneOrMore[_Architecture] = Field()
    depth: _OneOrMore[_Depth] = Field()
    placement: _OneOrMore[_Placement] = Field()


class _Margins(_Form):
    noun = "a margin"

    accuracy_points: Annotated[
        float,
        _real("above 0, up to 50", lambda points: 0 < points <= 50),
        Field(serialization_alias="margin_accuracy"),
    ] = _UNSAID
    gradient_ratio: Annotated[
        float,
        _real("above 1, up to 10", lambda ratio: 1 < ratio <= 10),
        Field(serialization_alias="margin_gradient"),
    ] = _UNSAID


_GRADIENT_COLUMNS = ("actgrad_total", "actgrad_rel", "effective_grad", "update_ratio")
"""Without wgrad_norm: it is not comparable across placements."""
_GRADIENT_LAYERS = ("first", "mean", "slope")
_GRADIENT_WINDOWS = ("first-epoch", "all", "init", "last")


class _Analysis(_Form):
    noun = "a choice of the analysis"

    alpha: Annotated[float, _real("above 0, below 0.5", lambda alpha: 0 < alpha < 0.5)] = _UNSAID
    gradient_column: Annotated[str, _word("a gradient column", _GRADIENT_COLUMNS)] = _UNSAID
    gradient_layer: Annotated[str, _word("a gradient layer", _GRADIENT_LAYERS)] = _UNSAID
    gradient_window: Annotated[str, _word("a gradient window", _GRADIENT_WINDOWS)] = _UNSAID
    looks: Annotated[int, _whole(1, 20)] = _UNSAID


class _Tuning(_Form):
    noun = "a choice of the tuning stage"

    lr: _OneOrMore[_Positive]
    weight_decay: _OneOrMore[_Fraction] = _UNSAID
    seeds: Annotated[int, _whole(1, 100)]
    epochs: Annotated[int, _whole(1, 10_000)] = _UNSAID


class _OwnPrograms(_Form):
    noun = "an architecture"

    mlp: _Programs = {}
    vgg: _Programs = {}
    plain: _Programs = {}
    resnet: _Programs = {}
    preresnet: _Programs = {}
    densenet: _Programs = {}


class _GridForm(_Form):
    noun = "a key of a grid"

    name: Annotated[str, BeforeValidator(_check_name)]
    defaults: _Defaults = _Defaults()
    seeds: Annotated[
        tuple[Annotated[int, _whole(0, 2**31 - 1)], ...],
        BeforeValidator(_list_seeds),
        AfterValidator(_check_distinct),
    ]
    margins: _Margins = _Margins()
    analysis: _Analysis = _Analysis()
    tuning: _Tuning = _UNSAID
    programs: _OwnPrograms = _OwnPrograms()
    grid: Annotated[tuple[_Product, ...], BeforeValidator(_list_products)]


def _placements(document: Document) -> dict[str, tuple[str, ...]]:
    """Of each architecture; the grid's own too, whether or not their programs are right."""
    own = as_mapping(document.values.get("programs"))
    return {
        architecture: (*known, *as_mapping(own.get(architecture)))
        for architecture, known in EVERY_PROGRAM.items()
    }


def _check_values(document: Document) -> _GridForm:
    try:
        return _GridForm.model_validate(document.values, context=_placements(document))
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
        case other:
            raise AssertionError(other)


def _explain_value(document: Document, loc: Loc, reason: ValueError) -> str:
    node = document.place(loc).node
    trap = find_trap(node)
    if not trap and isinstance(reason, _NotANumber):
        trap = find_number_trap(node, whole=reason.whole)
    return trap or str(reason)


def _explain_unknown_key(loc: Loc) -> str:
    key = str(loc[-1])
    if len(loc) == 1:
        form = _GridForm
        hint = "; settings stand under defaults or in a product" if key in _FIELDS else ""
    else:
        form = _SECTIONS[loc[0]]
        hint = _ELSEWHERE.get(key, "") if form is _Defaults else ""
    allowed = tuple(form.model_fields)
    return f"not {form.noun}: {', '.join(allowed)}{hint or did_you_mean(key, allowed)}"


_FIELDS = frozenset(_Defaults.model_fields)
_SECTIONS: Mapping[int | str, type[_Form]] = {
    "defaults": _Defaults,
    "grid": _Defaults,
    "margins": _Margins,
    "analysis": _Analysis,
    "tuning": _Tuning,
    "programs": _OwnPrograms,
}
_ELSEWHERE = {
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
        epochs = min(product.get("epochs", (Settings.epochs,)))
        warmup = max(product.get("warmup_epochs", (Settings.warmup_epochs,)))
        if warmup > epochs:
            said = "warmup_epochs" if "warmup_epochs" in product else "epochs"
            text = f"a warm-up of {warmup:g} epochs does not fit into {epochs}"
            yield ("grid", index, said), f"{text}; set warmup_epochs to {epochs} or less"
        for placement in set(product.get("flow", ())) & set(product["placement"]):
            text = f"{placement!r} would borrow the flow it has; give each such arm a product"
            yield ("grid", index, "flow"), f"{text} of its own, with the other placement's flow"
        for size in product.get("pack_size", (Settings.pack_size,)):
            mistake = _find_pack_mistake(size, seeds)
            if mistake:
                yield ("grid", index, "pack_size"), mistake
    yield from _find_repeated_trials(document, products, seeds, programs)


def _find_pack_mistake(size: int, seeds: Sequence[int]) -> str | None:
    firsts = sorted({seed - seed % size for seed in seeds})
    for first in firsts:
        missing = [seed for seed in range(first, first + size) if seed not in seeds]
        if missing:
            return (
                f"a pack of {size} trains seeds {first} to {first + size - 1} together; "
                f"{', '.join(map(str, missing))} not among the seeds"
            )
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
        for trial in expand([product], seeds[:1], programs=programs):  # other seeds repeat alike
            earlier = owner.setdefault(trial, index)
            if earlier != index:
                repeated.setdefault(earlier, []).append(trial)
        for earlier, trials in repeated.items():
            line = document.place(("grid", earlier)).line
            count = len(trials) * len(seeds)
            text = f"{count:,} of its trials stand in grid[{earlier}] on line {line} already"
            yield ("grid", index), f"{text}, such as {trials[0].label}"
