"""How values, counts, durations and sizes are written in what a user reads."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Sequence


def clip(text: str, width: int = 200) -> str:
    """Anybody's text on one line, cut where it is long.

    >>> clip("out of   memory"), clip("abcdefgh", 6)
    ('out of memory', 'abc...')
    """
    begun = text if len(text) <= width else f"{text[: width - 3]}..."
    return " ".join(begun.split())


def format_count(number: int, noun: str) -> str:
    """A number of things as people say it.

    >>> [format_count(number, "trial") for number in (0, 1, 12)]
    ['0 trials', '1 trial', '12 trials']
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def list_words(words: Iterable[str], link: str = "and") -> str:
    """Words as a sentence lists them.

    >>> list_words(["a", "b", "c"]), list_words(["a", "b"], "or"), list_words([])
    ('a, b and c', 'a or b', 'none')
    """
    *most, last = [*words] or ["none"]
    return f"{', '.join(most)} {link} {last}" if most else last


def format_duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [format_duration(seconds) for seconds in (1.24, 40, 150, 9000, 200_000)]
    ['1.2 s', '40 s', '2 min 30 s', '2 h 30 min', '2 d 7 h']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, part in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def format_size(size: float) -> str:
    """Bytes as people say them.

    >>> [format_size(size) for size in (20_000, 3_400_000, 2_100_000_000)]
    ['20 kB', '3.4 MB', '2.1 GB']
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def did_you_mean(found: str, words: Sequence[str]) -> str:
    """The word that was likely meant, as the end of a sentence; nothing where none is near.

    >>> did_you_mean("width", ("depth", "width_factor")), did_you_mean("aftr", ("before", "after"))
    ("; did you mean 'width_factor'?", "; did you mean 'after'?")
    >>> did_you_mean("ResNet18", ("resnet", "torchvision/resnet18"))
    "; did you mean 'torchvision/resnet18'?"
    """
    start = found.lower()
    begun = [word for word in words if start and word.rpartition("/")[2].startswith(start)]
    near = begun or difflib.get_close_matches(start, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def show(value: object) -> str:
    r"""A value as a mistake quotes it: printable, on one line, not long.

    >>> show("on"), show(None), show(True), show([1])
    ("'on'", 'null', 'true', 'a list')
    >>> print(show("\uff11"))  # not the digit it looks like
    '\uff11' (that is '\uff11')
    """
    match value:
        case None | bool():
            return json.dumps(value)  # as YAML writes them too
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case str():
            return _show_text(value)
        case int() if abs(value) >= 10**30:
            return "a number of more than 30 digits"
    return repr(value)


def _show_text(text: str) -> str:
    if len(text) > 60:
        return f"{text[:60]!r}..."
    # Letters may look alike and not be the same.
    return f"{text!r}" if ascii(text) == repr(text) else f"{text!r} (that is {text!a})"


def explain_lost_docstrings(what_fails: str) -> str | None:
    """Why a library that rewrites its docstrings fails in this Python; None where it does not."""
    if sys.flags.optimize < 2:
        return None
    return (
        "PYTHONOPTIMIZE=2, or python -OO, takes away docstrings, and without them "
        f"{what_fails}: unset PYTHONOPTIMIZE, or set it to 1"
    )
