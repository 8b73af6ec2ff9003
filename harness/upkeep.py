"""Look after results: check and repair them, join what several machines have trained.

::

    python -m harness.upkeep check RESULTS         name every damaged or foreign file
    python -m harness.upkeep repair RESULTS        set them aside; the next run trains them again
    python -m harness.upkeep merge A B ... -o C    give C the trials of all, in a few large files

RESULTS is a folder or s3://bucket/prefix. No row is removed, and each command may be killed at any
moment and given again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence

from harness.study.errors import HarnessError
from harness.study.terminal import Parser, say
from harness.study.wording import format_count


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    0 as wished, 1 `check` has found damage, 2 bad input, 3 a results folder cannot be used.
    """
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        return options.command(options)
    except HarnessError as error:
        say(f"harness.upkeep: {error}", is_error=True)
        return error.exit_code


def _make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m harness.upkeep",
        description="Look after results: check, repair and merge them.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    for name, command, text in (
        ("check", _check, "Name every damaged or foreign file."),
        ("repair", _repair, "Set damaged and foreign files aside; the next run trains them again."),
    ):
        add(name, command, text).add_argument("results", metavar="RESULTS")
    merging = add(
        "merge",
        _merge,
        "Give one folder the trials of several, if they agree, in a few large files; of one folder "
        "a copy that reads faster from a bucket, and that git can keep.",
    )
    merging.add_argument("sources", metavar="RESULTS", nargs="+")
    merging.add_argument("-o", "--output", metavar="RESULTS", required=True)
    return parser


def _check(options: argparse.Namespace) -> int:
    from harness.results import Store, take_snapshot  # noqa: PLC0415  pyarrow: not for --help

    store = Store(options.results)
    store.refuse_emptiness()
    snapshot = take_snapshot(store, whole_up_to=math.inf)
    for error in snapshot.damage:
        say(f"{error.path}: {error.reason}")
    say(f"{options.results}: {format_count(len(snapshot.damage), 'damaged or foreign file')}")
    return 1 if snapshot.damage else 0


def _repair(options: argparse.Namespace) -> int:
    from harness.results import Store, repair  # noqa: PLC0415  pyarrow: not for --help

    for line in repair(Store(options.results)):
        say(line)
    return 0


def _merge(options: argparse.Namespace) -> int:
    from harness.results import Store, hold, merge  # noqa: PLC0415  pyarrow: not for --help

    sources, target = [Store(source) for source in options.sources], Store(options.output)
    with hold(target, "merge"):
        merged = merge(sources, target)
    say(f"{options.output}: {format_count(merged.trials, 'trial')}")
    if merged.repeated:
        say(
            f"trained more than once, and equal bit for bit, timings and provenance aside: "
            f"{merged.repeated}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
