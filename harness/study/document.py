"""Read a YAML file as plain values, and remember where each was written.

PyYAML follows YAML 1.1, where `on` is true, `1e-3` is text, `010` is 8, `1_0` is 10, `10:30` is 630
and a repeated key silently wins. Here a repeated key is a mistake, text that YAML would turn into a
surprising number stays text, and `find_trap` explains how YAML read a value that was refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.study.errors import GridError
from harness.study.wording import did_you_mean, show

MAX_BYTES = 2**18
MAX_VALUES = 20_000
MAX_MISTAKES = 50
MAX_SEEDS = 100_000

Loc = tuple[int | str, ...]
"""The path to a value, as pydantic writes it: ("grid", 0, "placement", 1)."""


@dataclass(frozen=True)
class Place:
    """Where a value was written; line 0 is the command line."""

    label: str
    line: int
    node: yaml.Node | None = None


class Document:
    """The values of a grid file and its overrides, with their places and mistakes."""

    values: dict[str, Any]

    def __init__(self, path: Path) -> None:
        """Raises GridError if the file cannot be read or is not YAML."""
        self.source = _read_text(path)
        self._path = path
        self._places: dict[Loc, Place] = {(): Place(f"{path}:1", 1)}
        self._inherited: set[Loc] = set()
        self._overrides: dict[Loc, str] = {}
        self._mistakes: list[tuple[int, str]] = []
        for line, text in _find_invisible(self.source):
            self._refuse(Place(f"{path}:{line}", line), text)
        self.raise_mistakes()
        try:
            node = _compose(self.source)
        except _NotYaml as error:
            raise GridError([f"{path}:{error.line}: {error}"]) from None
        if not isinstance(node, yaml.MappingNode):
            found = "no grid" if node is None else f"{show(node.value)}, no grid"
            raise GridError([f"{path}:1: {found}; that is a mapping with 'seeds' and 'grid'"])
        self.values = self._unfold(node, (), self._places[()])
        if "name" not in self.values:
            self.values["name"] = path.stem
            self._places["name",] = Place(f"{path}: name, taken from the file", 1)

    def place(self, at: Loc) -> Place:
        """The place of the value at `at`, or of the nearest one that contains it."""
        if self.is_inherited(at):
            at = ("defaults", *at[2:])
        while at not in self._places:
            at = at[:-1]
        return self._places[at]

    def is_inherited(self, at: Loc) -> bool:
        """Whether a product has the value at `at` from the defaults."""
        return at[:3] in self._inherited

    def refuse(self, at: Loc, text: str) -> None:
        self._refuse(self.place(at), text)

    def raise_mistakes(self) -> None:
        """Raise all mistakes, each once, in line order, those of the command line first."""
        ordered = sorted(self._mistakes, key=lambda mistake: mistake[0])
        lines = list(dict.fromkeys(text for _, text in ordered))
        if len(lines) > MAX_MISTAKES:
            lines[MAX_MISTAKES:] = [f"{self._path}: {len(lines) - MAX_MISTAKES} more mistakes"]
        if lines:
            raise GridError(lines)

    def override(self, text: str) -> None:
        """Replace the file's value by that of `key=value`."""
        place = _on_command_line(text)
        key, equals, value = text.partition("=")
        at = tuple(key.split("."))
        if len(at) == 1:
            at = ("defaults", key)
        if not equals:
            self._refuse(place, "not of the form key=value")
        elif len(at) != 2 or at[0] not in {"defaults", "margins", "analysis"}:
            self._refuse(place, "not a setting, nor of the form margins.KEY or analysis.KEY")
        elif at in self._overrides:
            self._refuse(place, f"given twice (first {self._overrides[at]})")
        else:
            self._overrides[at] = text
            try:
                node = _compose(value)
            except _NotYaml as error:
                self._refuse(place, str(error))
            else:
                if node is None:
                    self._refuse(place, "no value stands here")
                else:
                    self._replace(at, node, place)

    def override_seeds(self, text: str) -> None:
        """Replace the file's seeds by a count ("5") or a list ("0,1,2", "0-9")."""
        place = _on_command_line(f"--seeds {text}")
        seeds: list[int] = []
        if re.fullmatch(r"[0-9]{1,10}", text):
            self._replace(("seeds",), int(text), place)
            return
        for part in text.split(","):
            span = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
            if not span:
                self._refuse(place, f"{show(part)} is not a seed; write 5, 0,1,2 or 0-9")
                return
            first, last = int(span[1]), int(span[2] or span[1])
            if last < first:
                self._refuse(place, f"{part} runs backwards; write {last}-{first}")
                return
            if len(seeds) + last - first >= MAX_SEEDS:
                self._refuse(place, f"more than {MAX_SEEDS:,} seeds")
                return
            seeds += range(first, last + 1)
        self._replace(("seeds",), seeds, place)

    def inherit_defaults(self) -> None:
        """Fill in the defaults that a product does not set."""
        defaults = as_mapping(self.values.get("defaults"))
        products = self.values.get("grid")
        if not isinstance(products, list):
            return
        mappings = {i: product for i, product in enumerate(products) if isinstance(product, dict)}
        for at, text in self._overrides.items():
            if at[0] == "defaults" and mappings and all(at[1] in p for p in mappings.values()):
                lines = ", ".join(str(self.place(("grid", i, at[1])).line) for i in mappings)
                self._refuse(
                    _on_command_line(text),
                    f"changes nothing: every product sets {at[1]} itself (line {lines})",
                )
        for index, product in mappings.items():
            self._inherited |= {("grid", index, key) for key in defaults.keys() - product.keys()}
            products[index] = {**defaults, **product}

    def _refuse(self, place: Place, text: str) -> None:
        self._mistakes.append((place.line, f"{place.label}: {text}"))

    def _replace(self, at: Loc, value: object, place: Place) -> None:
        """Put `value`, plain or still a YAML node, at `at`, and forget the previous value."""
        section: Any = self.values
        for step in at[:-1]:
            section = section.setdefault(step, {})
            if not isinstance(section, dict):
                return  # a separate mistake, reported when the values are checked
        self._places = {known: p for known, p in self._places.items() if known[: len(at)] != at}
        self._places[at] = place
        section[at[-1]] = self._unfold(value, at, place) if isinstance(value, yaml.Node) else value

    def _unfold(self, node: yaml.Node, at: Loc, place: Place) -> Any:  # noqa: ANN401 - whatever YAML says
        """The plain value of `node`; notes the place of each of its parts."""
        self._places[at] = Place(place.label, place.line, node)
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        if tag.removeprefix("!!") not in _TAGS:
            self._refuse(place, f"a grid has no use for the YAML tag {show(tag)}")
        if isinstance(node, yaml.ScalarNode):
            return _read_scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [
                self._unfold(item, (*at, i), self._place_of(item, (*at, i), place))
                for i, item in enumerate(node.value)
            ]
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(place, f"a key is a word; found {show(key_node.value)}")
                continue
            key = key_node.value  # as written: `on` is the word on, `1` the word 1
            below = self._place_of(key_node, (*at, key), place)
            if key == "<<":
                self._refuse(below, "YAML's merge is not read; what products share is in defaults")
            elif key in values:
                first = self._places[(*at, key)]
                self._refuse(below, f"given twice (first on line {first.line})")
            else:
                values[key] = self._unfold(value_node, (*at, key), below)
        return values

    def _place_of(self, node: yaml.Node, at: Loc, around: Place) -> Place:
        if around.line == 0:
            return around
        line = node.start_mark.line + 1
        return Place(f"{self._path}:{line}: {_dotted(at)}", line)


class _NotYaml(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


_TAGS = {"str", "int", "float", "bool", "null", "timestamp", "value", "merge", "seq", "map"}


def _on_command_line(text: str) -> Place:
    plain = text.isprintable() and len(text) <= 200
    return Place(f"command line: {text if plain else show(text)}", 0)


def _read_text(path: Path) -> str:
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():
            raise GridError([f"{path}: a pipe or a device; a grid is a file"])  # it might not end
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise GridError(
            [f"{path}: no such file{did_you_mean(path.name, _grids_in(path.parent))}"]
        ) from None
    except IsADirectoryError:
        grids = ", ".join(_grids_in(path)) or "none"
        raise GridError([f"{path}: a folder; the grids in it: {grids}"]) from None
    except OSError as error:
        raise GridError([f"{path}: cannot be read: {error.strerror}"]) from None
    if len(content) > MAX_BYTES:
        raise GridError([f"{path}: larger than {MAX_BYTES:,} bytes; a grid is written by hand"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{content[error.start]:02X}"
        raise GridError([f"{path}:{line}: not UTF-8 ({found}); save the file as UTF-8"]) from None


def _grids_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*.y*ml") if path.is_file())


def _find_invisible(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of each character outside comments that looks like a space, or is invisible.

    YAML reads them as part of a word or as an end of line, and the author sees neither.
    """
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        said = re.split(r"(?:^|(?<=\s))#", line, maxsplit=1)[0]
        for at, sign in enumerate(said):
            kind = unicodedata.category(sign)
            if kind in {"Cf", "Zl", "Zp"} or (kind == "Zs" and sign != " ") or sign == "\x85":
                name = unicodedata.name(sign, "no name")
                after = f"after {show(said[:at].strip()[-30:])}" if at else "at its begin"
                yield (
                    number,
                    f"an invisible character, U+{ord(sign):04X} ({name}), {after}; put a space there, or nothing",
                )
                break


def _compose(text: str) -> yaml.Node | None:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        unfolded = _count_unfolded(node, {}) if node else 0
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _NotYaml(
            line, f"the character U+{ord(text[error.position]):04X} is not text"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _NotYaml(mark.line + 1 if mark else 1, _explain_yaml(error)) from None
    except RecursionError:
        raise _NotYaml(1, "nested too deeply for a grid") from None
    if unfolded > MAX_VALUES:
        raise _NotYaml(1, f"more than {MAX_VALUES:,} values, its aliases written out")
    return node


def _explain_yaml(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem)
    if "'\\t'" in problem:
        return "a tab; YAML is indented with spaces"
    if "another document" in problem:
        return "a second document begins; a grid is one"
    if not error.context:
        return f"not YAML: {problem}"
    begun, found = error.context_mark, error.problem_mark
    since = f" from line {begun.line + 1}" if begun and found and begun.line < found.line else ""
    return f"not YAML: {problem}, {error.context}{since}"


def _count_unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values `node` has with its aliases expanded, counted without expanding them."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # met again inside itself: infinite
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            parts = [value for _, value in node.value]
        known[id(node)] = 1 + sum(_count_unfolded(part, known) for part in parts)
    return known[id(node)]


def _read_scalar(node: yaml.ScalarNode) -> bool | float | str | None:
    """The value as YAML reads it; text where that would surprise: `010`, `1_0`, `10:30`, a date."""
    text = node.value
    try:
        match node.tag.rpartition(":")[2]:
            case "null":
                return None
            case "bool":
                return yaml.SafeLoader.bool_values[text.lower()]
            case "int" if _PLAIN_INTEGER.fullmatch(text):
                return int(text)
            case "float" if "_" not in text:
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            case _:
                return text
    except (KeyError, ValueError):
        return text


_PLAIN_INTEGER = re.compile("[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)")
"""An integer as expected, including underscores between thousands."""

_NUMBER = re.compile(r"([-+]?)([0-9]+)?(\.[0-9]*)?(?:e([-+]?)([0-9]+))?", re.IGNORECASE)
_NUMBERS = re.compile(r"[-+.e0-9]*[0-9]\.?(( *,| ) *[-+.e0-9]*[0-9]\.?)+", re.IGNORECASE)
LONGEST_NUMBER = 30
"""Most characters in a text that may have been meant as one or several numbers."""


def find_trap(node: yaml.Node | None) -> str | None:
    """Explain how YAML 1.1 read a refused value, where its author may not expect it."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    text, tag = node.value, node.tag.rpartition(":")[2]
    if tag == "null" and not text:
        return "no value stands here"
    if tag == "bool" and text.lower() in {"on", "off", "yes", "no"}:
        return f"YAML reads on, off, yes, no as booleans and found {_read_scalar(node)}"
    return None


def find_number_trap(node: yaml.Node | None, *, whole: bool) -> str | None:
    """The same for a value that was refused because it looks like a number but is not one."""
    if not isinstance(node, yaml.ScalarNode) or not isinstance(_read_scalar(node), str):
        return None
    text, tag = node.value, node.tag.rpartition(":")[2]
    if tag in {"int", "float"} and len(text) <= LONGEST_NUMBER:
        return _explain_odd_number(text)
    if not node.style and len(text) <= LONGEST_NUMBER and _NUMBERS.fullmatch(text):
        return _explain_numbers(text, whole=whole)
    number = _NUMBER.fullmatch(text)
    if (
        not number
        or len(text) > LONGEST_NUMBER
        or not re.search("[0-9]", f"{number[2]}{number[3]}")
    ):
        return None
    if node.style:
        return f"{text!r} is text; write it without quotes"
    return f"YAML reads {text!r} as text; write {_spell_number(number, whole=whole)}"


def _explain_numbers(text: str, *, whole: bool) -> str:
    """Explain numbers joined by commas or spaces: a list without brackets, or a decimal comma."""
    numbers = [_NUMBER.fullmatch(part) for part in re.split("[, ]+", text)]
    listed = ", ".join(_spell_number(number, whole=whole) for number in numbers if number)
    one = ""
    if whole and re.fullmatch("[1-9][0-9]{0,2}(,[0-9]{3})+", text):
        one = f"{text.replace(',', '')}, or "
    elif not whole and _NUMBER.fullmatch(text.replace(",", ".")):
        one = f"{text.replace(',', '.')} with a point, or "
    return f"{text!r} is text; write {one}a list as [{listed}]"


def _explain_odd_number(text: str) -> str:
    """Explain how YAML 1.1 reads other bases and underscores."""
    if ":" in text:
        return f"YAML reads {text!r} in base 60; write the number out"
    digits = text.replace("_", "")
    if "." in text:
        return f"YAML reads {text!r} as {float(digits):g}; write {digits}"
    octal = re.fullmatch("[-+]?0[0-7]+", digits)
    try:
        value = int(digits, 8 if octal else 0)
    except ValueError:  # `0x_`, which YAML takes for a number
        return f"{text!r} is no number"
    return f"YAML reads {text!r} as {value}; write {int(digits) if octal else value}"


def _spell_number(number: re.Match[str], *, whole: bool) -> str:
    """The number as YAML 1.1 requires it: with a point, and a sign in the exponent."""
    if whole and float(number[0]).is_integer():
        return f"{float(number[0]):.0f}"
    sign, integer, fraction, exponent_sign, exponent = number.groups()
    power = f"e{exponent_sign or '+'}{exponent}" if exponent else ""
    return f"{sign}{(integer or '').lstrip('0') or 0}{fraction or '.0'}{power}"


def _dotted(at: Loc) -> str:
    text = ""
    for step in at:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            plain = re.fullmatch(r"[\w-]{1,60}", step, re.ASCII)
            text += f"{'.' * bool(text)}{step if plain else show(step)}"
    return text


def as_mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
