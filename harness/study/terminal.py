"""The border of the terminal: what is printed may hold anybody's text."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

LONGEST_LINE = 10_000
"""Characters of a line that a terminal is given; the rest is counted."""


def say(text: object, *, is_error: bool = False) -> None:
    """Print to the terminal. Nothing else of ours does, but for the live display of a run."""
    stream = sys.stderr if is_error else sys.stdout
    encoding = stream.encoding or "utf-8"
    writable = printable(str(text)).encode(encoding, "backslashreplace").decode(encoding)
    print(writable, file=stream, flush=True)


def printable(text: str) -> str:
    r"""Text that a terminal shows and does not obey, each line of a bearable length.

    Whatever is invisible, moves the cursor or turns the line around is written as its code.

    >>> print(printable("a\x1b[2Jb\u202ec, \udce9"))
    a\x1b[2Jb\u202ec, \udce9
    """
    return "\n".join(map(_printable_line, text.split("\n")))


def _printable_line(line: str) -> str:
    if (more := len(line) - LONGEST_LINE) > 0:
        line = f"{line[:LONGEST_LINE]}... ({more:,} characters more)"
    if line.isprintable():
        return line
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line
    )


class Parser(argparse.ArgumentParser):
    """Its mistakes quote arguments, such as the names of files that a shell's pattern found."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit with 2."""
        super().error(printable(message))
