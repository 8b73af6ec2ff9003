"""What a grid may say: each key, and the rule that its value must pass.

Validators run in the order of the fields, and `info.data` holds the fields that were right so far: a
placement is checked against the architectures beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
)

from harness.study.architectures import (
    ARCHITECTURES,
    MAX_DEPTH,
    PREFIX,
    explain_absence,
    explain_stranger,
    find_architecture,
    find_depth_mistake,
    find_norm_mistake,
    find_program_mistake,
    find_setting_mistake,
)
from harness.study.document import MAX_SEEDS
from harness.study.facts import facts_of, find_dataset_mistake
from harness.study.own import is_own, tidy_name
from harness.study.records import Settings
from harness.study.trials import EVERY_PROGRAM, PROGRAMS, WORDS
from harness.study.wording import did_you_mean, list_words, show

MAX_OPERATIONS = 100


class NotANumber(ValueError):  # noqa: N818 - never leaves this module
    """A value that should be a number, and may look like one to its author."""

    def __init__(self, value: object, allowed: str, *, whole: bool) -> None:
        super().__init__(f"{show(value)} is not a {'whole ' * whole}number {allowed}")
        self.whole = whole


def is_not(value: object, what: str, words: Sequence[str], near: Sequence[str] = ()) -> str:
    """`near` are the words that may have been meant, where they are more than those told."""
    hint = ""
    if isinstance(value, str):
        listed = "," in value
        hint = "; a list is written [a, b]" if listed else did_you_mean(value, near or words)
    return f"{show(value)} is not {what}: {', '.join(words)}{hint}"


@dataclass(frozen=True, slots=True)
class Rule(BeforeValidator):
    """A check of one value, and in words what passes it."""

    allowed: str = field(kw_only=True)


def _whole(low: int, high: int) -> Rule:
    def check(value: object) -> object:
        if type(value) is not int or not low <= value <= high:
            raise NotANumber(value, f"from {low:,} to {high:,}", whole=True)
        return value

    return Rule(check, allowed=f"whole number from {low:,} to {high:,}")


def _real(allowed: str, is_allowed: Callable[[float], bool]) -> Rule:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_allowed(value):
            raise NotANumber(value, allowed, whole=False)
        return float(value) + 0.0  # -0.0 and 0 become 0.0: equal settings, equal trials

    return Rule(check, allowed=f"number {allowed}")


def _word(what: str, words: Sequence[str]) -> Rule:
    def check(value: object) -> object:
        if value not in words:
            raise ValueError(is_not(value, what, words))
        return value

    return Rule(check, allowed=f"one of {', '.join(words)}")


def _check_dataset(dataset: object) -> object:
    if not isinstance(dataset, str):
        raise ValueError(is_not(dataset, "a data set", WORDS["dataset"]))  # noqa: TRY004 - pydantic collects ValueError
    mistake = find_dataset_mistake(dataset)
    if mistake:
        raise ValueError(mistake)
    return dataset


def _check_boolean(value: object) -> object:
    if type(value) is not bool:
        raise ValueError(is_not(value, "a boolean", ("true", "false")))
    return value


def _check_architecture(architecture: object) -> object:
    if isinstance(architecture, str) and is_own(architecture):
        return tidy_name(architecture)  # the file itself is read once the whole grid is right
    if isinstance(architecture, str) and ".py" in architecture:
        raise ValueError(
            f"{show(architecture)} names no function in a file: write it as nets/mine.py:build"
        )
    if not isinstance(architecture, str) or architecture not in EVERY_PROGRAM:
        words = (*PROGRAMS, f"{PREFIX}MODEL", "FILE.py:FUNCTION")
        reason = is_not(architecture, "an architecture", words, tuple(ARCHITECTURES))
        if isinstance(architecture, str) and architecture.startswith(PREFIX):
            hint = did_you_mean(architecture, tuple(ARCHITECTURES))
            reason = explain_stranger(architecture) + hint
        raise ValueError(reason)
    return architecture


def _check_with_architecture(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
    for architecture in info.data.get("architecture") or ():
        mistake = find_setting_mistake(architecture, str(info.field_name), value)
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
    known = {
        architecture: (info.context or {}).get(architecture)
        or [*find_architecture(architecture).programs]
        for architecture in info.data.get("architecture") or ()
    }
    for architecture, words in known.items():
        if placement not in words:
            text = is_not(placement, f"a placement of {architecture}", words)
            others = [name for name, of_other in known.items() if placement in of_other]
            absence = (
                f"{list_words(others)} {'has' if len(others) == 1 else 'have'} it: write a product "
                "for each"
                if others
                else explain_absence(architecture, str(placement))
            )
            if absence:
                text = f"{text.partition('; did you mean')[0]}; {absence}"
            raise ValueError(text)
    if not isinstance(placement, str):
        raise ValueError(f"{show(placement)} is not the name of a placement")  # noqa: TRY004 - pydantic collects ValueError
    return placement


def _check_control(control: object) -> object:
    if not isinstance(control, str) or not control:
        raise ValueError(f"{show(control)} is not the name of a placement")
    return control


def _check_flow(flow: object, info: ValidationInfo) -> object:
    # Built-in placements only: the donor's program is looked up among them.
    for architecture in info.data.get("architecture") or ():
        words = ("own", *find_architecture(architecture).programs)
        if flow not in words:
            raise ValueError(is_not(flow, f"a flow of {architecture}", words))
    if not isinstance(flow, str):
        raise ValueError(f"{show(flow)} is not own, nor the name of a placement")  # noqa: TRY004 - pydantic collects ValueError
    return flow


def _check_norm(norm: str, info: ValidationInfo) -> str:
    for dataset in info.data.get("dataset") or (Settings.dataset,):
        for architecture in info.data.get("architecture") or ():
            if mistake := find_norm_mistake(architecture, norm, facts_of(dataset).shape):
                raise ValueError(mistake)
    return norm


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
        raise NotANumber(value, f"from 1 to {MAX_SEEDS:,}, nor a list of seeds", whole=True)
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


def _check_increasing(looks: tuple[int, ...]) -> tuple[int, ...]:
    if list(looks) != sorted(looks):
        raise ValueError(f"looks come in the order of their seeds: {sorted(looks)}")
    return looks


_Value = TypeVar("_Value")
_OneOrMore = Annotated[
    tuple[_Value, ...], BeforeValidator(_list_values), AfterValidator(_check_distinct)
]
_Dataset = Annotated[
    str,
    Rule(
        _check_dataset,
        allowed=f"{', '.join(WORDS['dataset'])}, synthetic:CHANNELSxHEIGHTxWIDTHxCLASSESxIMAGES, "
        "imagefolder:FOLDER:PIXELS@DIGEST, arrays:NAME@DIGEST",
    ),
]
_ByArchitecture = Annotated[_Value, AfterValidator(_check_with_architecture)]
_Boolean = Annotated[bool, Rule(_check_boolean, allowed="true or false")]
_Positive = Annotated[float, _real("above 0, up to 100", lambda number: 0 < number <= 100)]
_Fraction = Annotated[float, _real("from 0, below 1", lambda number: 0 <= number < 1)]
_Warmup = Annotated[float, _real("from 0 to 10,000", lambda number: 0 <= number <= 10_000)]
# Batch norm has no variance to divide by in a batch of one image.
_Batch = Annotated[int, _whole(2, 65_536)]
_Architecture = Annotated[
    str,
    Rule(_check_architecture, allowed=f"{', '.join(PROGRAMS)}, {PREFIX}MODEL, FILE.py:FUNCTION"),
]
_Placement = Annotated[
    str, Rule(_check_placement, allowed="a placement of the architecture, or one under programs")
]
_Flow = Annotated[str, Rule(_check_flow, allowed="own, or a placement of the architecture")]
_Depth = Annotated[int, _whole(1, MAX_DEPTH), AfterValidator(_check_depth)]
_Programs = dict[
    Annotated[str, AfterValidator(_check_own_placement)],
    Annotated[str, BeforeValidator(_check_program)],
]


def _unsaid(example: str) -> Any:  # noqa: ANN401
    """The value of a key that a grid leaves out, whose default is that of the records."""
    return Field(default=None, examples=[example])


class Form(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    noun: ClassVar[str]
    """What a key of this form is."""

    def said(self) -> dict[str, Any]:
        """What the grid says, under the names of the records, in the order of the fields."""
        return self.model_dump(exclude_unset=True, by_alias=True)


class Defaults(Form):
    """Settings in a fixed order, whatever the file's: the placement last, so it varies fastest."""

    noun = "a setting"

    dataset: _OneOrMore[_Dataset] = _unsaid("fashion-mnist")
    architecture: _OneOrMore[_Architecture] = _unsaid("[plain, resnet]")
    bottleneck: _OneOrMore[_Boolean] = _unsaid("false")
    depth: _OneOrMore[_Depth] = _unsaid("[20, 56]")
    width_factor: _OneOrMore[_ByArchitecture[_Positive]] = _unsaid("0.5")
    growth: _OneOrMore[Annotated[int, _whole(1, 1_024)]] = _unsaid("24")
    norm: _OneOrMore[
        Annotated[str, _word("a norm", WORDS["norm"]), AfterValidator(_check_norm)]
    ] = _unsaid("[batch, layer]")
    norm_groups: _OneOrMore[Annotated[int, _whole(1, 1_024)]] = _unsaid("4")
    norm_affine: _OneOrMore[_Boolean] = _unsaid("[true, false]")
    final_norm: _OneOrMore[_ByArchitecture[_Boolean]] = _unsaid("true")
    activation: _OneOrMore[Annotated[str, _word("an activation", WORDS["activation"])]] = _unsaid(
        "gelu"
    )
    flow: _OneOrMore[_Flow] = _unsaid("before")
    epochs: _OneOrMore[Annotated[int, _whole(1, 10_000)]] = _unsaid("[50, 200]")
    train_images: _OneOrMore[Annotated[int, _whole(0, 10**9)]] = _unsaid("10000")
    batch_size: _OneOrMore[_Batch] = _unsaid("64")
    optimizer: _OneOrMore[Annotated[str, _word("an optimizer", WORDS["optimizer"])]] = _unsaid(
        "adamw"
    )
    lr: _OneOrMore[_Positive] = _unsaid("[0.05, 0.1]")
    momentum: _OneOrMore[_Fraction] = _unsaid("0.95")
    beta1: _OneOrMore[_Fraction] = _unsaid("0.95")
    beta2: _OneOrMore[_Fraction] = _unsaid("0.99")
    weight_decay: _OneOrMore[_Fraction] = _unsaid("1.0e-4")
    warmup_epochs: _OneOrMore[_Warmup] = _unsaid("1")
    label_smoothing: _OneOrMore[_Fraction] = _unsaid("0.1")
    augmentation: _OneOrMore[Annotated[str, _word("an augmentation", WORDS["augmentation"])]] = (
        _unsaid("none")
    )
    precision: _OneOrMore[Annotated[str, _word("a precision", WORDS["precision"])]] = _unsaid(
        "bfloat16"
    )
    memory_format: _OneOrMore[Annotated[str, _word("a memory format", WORDS["memory_format"])]] = (
        _unsaid("contiguous")
    )
    compile: _OneOrMore[_Boolean] = _unsaid("true")
    threads: _OneOrMore[Annotated[int, _whole(1, 1_024)]] = _unsaid("2")
    pack_size: _OneOrMore[_ByArchitecture[Annotated[int, _whole(1, 64)]]] = _unsaid("5")
    probe_size: _OneOrMore[_Batch] = _unsaid("128")
    snr_batches: _OneOrMore[Annotated[int, _whole(0, 1_024), AfterValidator(_check_parts)]] = (
        _unsaid("8")
    )
    placement: _OneOrMore[_Placement] = _unsaid("[before, after]")


class _Product(Defaults):
    """A product with what it inherits; it has the three settings that no record has a default for."""

    architecture: _OneOrMore[_Architecture] = Field()
    depth: _OneOrMore[_Depth] = Field()
    placement: _OneOrMore[_Placement] = Field()


class _Margins(Form):
    noun = "a margin"

    accuracy_points: Annotated[
        float,
        _real("above 0, up to 50", lambda points: 0 < points <= 50),
        Field(serialization_alias="margin_accuracy"),
    ] = _unsaid("1.0")
    gradient_ratio: Annotated[
        float,
        _real("above 1, up to 10", lambda ratio: 1 < ratio <= 10),
        Field(serialization_alias="margin_gradient"),
    ] = _unsaid("1.5")
    risk: Annotated[
        float,
        _real("above 0, up to 1", lambda risk: 0 < risk <= 1),
        Field(serialization_alias="margin_risk"),
    ] = _unsaid("0.05")


_GRADIENT_COLUMNS = ("actgrad_total", "actgrad_rel", "effective_grad", "update_ratio")
"""Without wgrad_norm: it is not comparable across placements."""


class AnalysisForm(Form):
    noun = "a choice of the analysis"

    alpha: Annotated[float, _real("above 0, below 0.5", lambda alpha: 0 < alpha < 0.5)] = _unsaid(
        "0.01"
    )
    gradient_column: Annotated[str, _word("a gradient column", _GRADIENT_COLUMNS)] = _unsaid(
        "actgrad_total"
    )
    control: Annotated[str, Rule(_check_control, allowed="a placement of the grid")] = _unsaid(
        "none"
    )
    epochs: Annotated[int, _whole(1, 10_000)] = _unsaid("200")
    looks: Annotated[
        _OneOrMore[Annotated[int, _whole(2, 10_000)]], AfterValidator(_check_increasing)
    ] = _unsaid("[3, 5, 10]")


class _Tuning(Form):
    noun = "a choice of the tuning stage"

    lr: _OneOrMore[_Positive] = Field(examples=["[0.025, 0.05, 0.1, 0.2]"])
    weight_decay: _OneOrMore[_Fraction] = _unsaid("[1.0e-4, 5.0e-4]")
    seeds: Annotated[int, _whole(1, 100)] = Field(examples=["2"])
    epochs: Annotated[int, _whole(1, 10_000)] = _unsaid("60")
    extensions: Annotated[int, _whole(0, 10)] = _unsaid("0")
    common: _Boolean = _unsaid("false")


class _Architectures(Form):
    noun = "an architecture"


_placements_of_each: dict[str, Any] = {name: (_Programs, {}) for name in PROGRAMS}
_OwnPrograms = create_model("_OwnPrograms", __base__=_Architectures, **_placements_of_each)


class GridForm(Form):
    noun = "a key of a grid"

    name: Annotated[str, Rule(_check_name, allowed="up to 64 of A-Z, a-z, 0-9, '.', '_', '-'")] = (
        Field(
            description="Names the grid and its results folder; without it, the file's name does.",
            examples=["small"],
        )
    )
    defaults: Defaults = Defaults()
    seeds: Annotated[
        tuple[Annotated[int, _whole(0, 2**31 - 1)], ...],
        Rule(_list_seeds, allowed="a count, or a list of whole numbers"),
        AfterValidator(_check_distinct),
    ] = Field(
        description="Replicates of every cell: 5 means seeds 0 to 4; every placement gets each seed.",
        examples=["[0, 1, 2]"],
    )
    margins: _Margins = _Margins()
    analysis: AnalysisForm = AnalysisForm()
    tuning: _Tuning = _unsaid("{lr: [0.05, 0.1], seeds: 2}")
    programs: _OwnPrograms = _OwnPrograms()  # pyright: ignore[reportInvalidTypeForm]
    grid: Annotated[tuple[_Product, ...], BeforeValidator(_list_products)]


SETTINGS = frozenset(Defaults.model_fields)
ONLY_WITH: Mapping[str, tuple[str, str]] = {
    "norm_groups": ("norm", "group"),
    "momentum": ("optimizer", "sgd"),
    "beta1": ("optimizer", "adamw"),
    "beta2": ("optimizer", "adamw"),
}
"""A setting -> another one, and the value of that with which alone it does anything."""

FORMS: Mapping[int | str, type[Form]] = {
    "": GridForm,
    "defaults": Defaults,
    "grid": Defaults,
    "margins": _Margins,
    "analysis": AnalysisForm,
    "tuning": _Tuning,
    "programs": _OwnPrograms,
}
