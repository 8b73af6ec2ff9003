"""Look after results: check and repair them, pack them, join what several machines have trained.

::

    python -m harness.upkeep check RESULTS         name every damaged or foreign file
    python -m harness.upkeep repair RESULTS        set them aside; the next run trains them again
    python -m harness.upkeep compact RESULTS       put thousands of small files into a few
    python -m harness.upkeep merge A B ... -o C    give C the trials of all

RESULTS is a folder or s3://bucket/prefix. No row is removed that does not stand elsewhere, and
each command may be killed at any moment and given again.
"""

# ruff: noqa: T201  this file speaks to the terminal

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from harness.results.compaction import compact
from harness.results.merging import merge
from harness.results.repair import hold, repair
from harness.results.store import Store
from harness.study.errors import HarnessError, StoreError
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
        print(f"harness.upkeep: {error}", file=sys.stderr)
        return error.exit_code


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.upkeep",
        description="Look after results: check, repair, compact and merge them.",
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
        ("compact", _compact, "Put the trials of many small files into a few."),
    ):
        add(name, command, text).add_argument("results", metavar="RESULTS")
    merging = add("merge", _merge, "Give one folder the trials of several, if they agree.")
    merging.add_argument("sources", metavar="RESULTS", nargs="+")
    merging.add_argument("-o", "--output", metavar="RESULTS", required=True)
    return parser


def _check(options: argparse.Namespace) -> int:
    damage = _open(options.results).find_damage()
    for error in damage:
        print(f"{error.path}: {error.reason}")
    print(f"{options.results}: {format_count(len(damage), 'damaged or foreign file')}")
    return 1 if damage else 0


def _repair(options: argparse.Namespace) -> int:
    for line in repair(_open(options.results)):
        print(line)
    return 0


def _compact(options: argparse.Namespace) -> int:
    store = _open(options.results)
    with hold(store, "compact"):
        before = len(store.measure_stems())
        parts = compact(store)
        after = len(store.measure_stems())
    print(
        f"{options.results}: {format_count(before, 'file')} per table before, {after} now; "
        f"{format_count(len(parts), 'new part')}"
    )
    return 0


def _merge(options: argparse.Namespace) -> int:
    target = Store(options.output)
    sources = [_open(location) for location in options.sources]
    with hold(target, "merge"):
        merged = merge(sources, target)
    print(f"{options.output}: {format_count(merged.trials, 'trial')}")
    if merged.repeated:
        print(
            f"trained more than once, and equal bit for bit, timings and provenance aside: "
            f"{merged.repeated}"
        )
    return 0


def _open(location: str) -> Store:
    """The store, for a command that makes no sense without results: a slip of the pen, mostly."""
    store = Store(location)
    if not (store.place.has("plan.parquet") or store.place.list_files("trials")):
        raise StoreError(f"{location}: no results there: neither plan.parquet nor trials/")
    return store


if __name__ == "__main__":
    sys.exit(main())
