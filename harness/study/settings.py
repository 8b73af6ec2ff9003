"""The reference of everything a grid may contain, from the declarations that check it.

`python -m harness.run --settings` prints it; `python -m harness.study.settings` writes it into
grids/README.md.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness.study.architectures import find_depth_mistake
from harness.study.forms import FORMS, ONLY_WITH, Rule
from harness.study.records import AnalysisPlan, Settings
from harness.study.trials import PROGRAMS
from harness.study.tuning import Tuning
from harness.study.wording import show

README = Path(__file__).parents[2] / "grids/README.md"
FENCES = "```text\n", "```\n"
"""Around the text in `README`, whose last block it is."""

WIDTH, LABELS = 96, 17

_SECTIONS = (
    ("", "At the top of the grid", None),
    ("defaults", "Under `defaults`, or in a product under `grid`: a value, or a list", Settings),
    ("margins", "Under `margins`: the smallest effects that matter", AnalysisPlan),
    ("analysis", "Under `analysis`", AnalysisPlan),
    ("tuning", "Under `tuning`", Tuning),
)


def describe_settings() -> str:
    """Every setting of a grid: meaning, allowed values, default, example; then every placement."""
    lines = [
        line
        for key, title, record in _SECTIONS
        for line in ("", title, "", *_describe_form(FORMS[key], record))
    ]
    lines += ["", "Placements of each architecture: the operations of a block, in order"]
    for architecture, programs in PROGRAMS.items():
        found = (find_depth_mistake(architecture, 0, bottleneck=b) or "" for b in (True, False))
        depths = " or ".join(dict.fromkeys(text.partition(":")[0] for text in found))
        lines += ["", f"{architecture}, depth {depths}"]
        lines += [f"  {name:{LABELS - 2}}{program}" for name, program in programs.items()]
    lines.append("\ntorchvision/MODEL: python -m harness.placements lists models and placements")
    return "\n".join(lines).lstrip("\n")


def _describe_form(form: type[BaseModel], record: type | None) -> Iterator[str]:
    columns = {field.name: field for field in fields(record)} if record else {}
    for key, declared in form.model_fields.items():
        rule = _find_rule(declared)
        if rule is None:
            continue  # a section of its own
        column = columns.get(declared.serialization_alias or key)
        meaning = declared.description if column is None else column.metadata["meaning"]
        default = "" if column is None else f" {_describe_default(column.default)}."
        if key in ONLY_WITH:
            default += f" Only with {': '.join(ONLY_WITH[key])}."
        example = f"Example: {key}: {(declared.examples or [''])[0]}"
        texts = (str(meaning), f"Allowed: {rule.allowed}.{default}", example)
        for index, text in enumerate(texts):
            yield from textwrap.wrap(
                text,
                WIDTH,
                initial_indent=f"{'' if index else key:{LABELS}}",
                subsequent_indent=" " * (LABELS + 2),
                break_on_hyphens=False,
            )


def _find_rule(declared: FieldInfo) -> Rule | None:
    """The outermost rule of a value: of a list as a whole, or of what it lists."""

    def unfold(annotation: Any) -> Iterator[Any]:  # noqa: ANN401
        yield annotation
        for part in (*getattr(annotation, "__metadata__", ()), *get_args(annotation)):
            yield from unfold(part)

    candidates = (*declared.metadata, *unfold(declared.annotation))
    return next((each for each in candidates if isinstance(each, Rule)), None)


def _describe_default(value: object) -> str:
    if value is MISSING:
        return "Must be given"
    if value in (None, (), ""):
        return "Default: not set"
    return f"Default: {value if isinstance(value, str) else show(value)}"


def splice(readme: str) -> str:
    """The text of `README` with its last block as it should be."""
    before = readme.rpartition(FENCES[0])[0]
    return f"{before}{FENCES[0]}{describe_settings()}\n{FENCES[1]}"


if __name__ == "__main__":
    README.write_text(splice(README.read_text(encoding="utf-8")), encoding="utf-8")
