"""`python -m harness.placements ARCHITECTURE [PLACEMENT]`: what runs, in which order.

Everything printed is read back from the graph of the network that would be trained, not from its
program. For torchvision's models that settles, from torchvision's own source, where they have their
batch norms: `python -m harness.placements torchvision` counts them all. For a user's own network it
says which placements it has: `python -m harness.placements nets/mine.py:build`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.study.architectures import (
    ARCHITECTURES,
    MAX_DEPTH,
    PREFIX,
    explain_absence,
    explain_stranger,
    find_architecture,
    find_depth_mistake,
    is_rewritten,
)
from harness.study.errors import GridError, HarnessError
from harness.study.own import is_own, read_network, tidy_name
from harness.study.terminal import Parser, say
from harness.study.trials import PROGRAMS, Trial
from harness.study.wording import did_you_mean

if TYPE_CHECKING:
    from torch import fx

    from harness.training.graphs import Adjacencies

WIDTH = 80
LABELS = 38  # columns of the blocks' names, at most

_WITHOUT_NORM = tuple(f"{PREFIX}vgg{depth}" for depth in (11, 13, 16, 19))
"""Shown beside torchvision's other models, because they are often taken to have batch norm."""


_NAMES = ("BN", "BN>ReLU", "ReLU>BN", "BN>+>ReLU", "ReLU>pool>BN")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what the command line asks for; return its exit code."""
    options = _parse(arguments)
    try:
        for line in _answer(options):
            say(line)
    except HarnessError as error:
        say(f"harness.placements: {error}", is_error=True)
        return error.exit_code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m harness.placements",
        description="The operations of each block in the order they run, and what stands next to "
        "each batch norm.",
    )
    add = parser.add_argument
    add(
        "architecture",
        metavar="ARCHITECTURE",
        nargs="?",
        help="such as resnet, torchvision/resnet50 or your nets/mine.py:build; `torchvision` counts "
        "all its models; without it, all architectures are listed",
    )
    add("placement", metavar="PLACEMENT", nargs="?", help="such as after (default: each of them)")
    add("--depth", type=int, metavar="D", help="as the architecture counts it")
    add(
        "--shape",
        type=_shape,
        default=(3, 32, 32),
        metavar="CxHxW",
        help="of an image, for your own network (default: 3x32x32)",
    )
    add("--classes", type=int, default=10, metavar="K", help="the same (default: 10)")
    return parser.parse_args(arguments)


def _shape(text: str) -> tuple[int, int, int]:
    if match := re.fullmatch("x".join(["([1-9][0-9]{0,4})"] * 3), text):
        channels, height, width = map(int, match.groups())
        return channels, height, width
    raise argparse.ArgumentTypeError(f"{text!r}: write channels x height x width, as in 3x32x32")


def _answer(options: argparse.Namespace) -> Iterator[str]:
    architecture, placement = options.architecture, options.placement
    match architecture:
        case None:
            yield from _list_architectures()
        case "torchvision":
            yield from _tabulate_torchvision()
        case _ if architecture in ARCHITECTURES or is_own(architecture):
            yield from _show(architecture, placement, options)
        case _ if architecture in _WITHOUT_NORM:
            yield from _show_stranger(architecture, placement)
        case _:
            raise HarnessError(
                f"{architecture!r} is not an architecture: {', '.join(PROGRAMS)}, "
                f"{PREFIX}MODEL or FILE.py:FUNCTION{did_you_mean(architecture, list(ARCHITECTURES))}"
            )


def _list_architectures() -> Iterator[str]:
    for name, architecture in ARCHITECTURES.items():
        placements = ", ".join(architecture.programs)
        yield from _column(name, f"{placements}; depth: {architecture.depth_counts}", 23)


def _tabulate_torchvision() -> Iterator[str]:
    from harness.training.graphs import count_adjacencies, load_model, trace  # noqa: PLC0415 - torch: not for --help

    yield _row("torchvision/", _NAMES)
    total = [0] * len(_NAMES)
    rewritten = [name for name in ARCHITECTURES if name not in PROGRAMS]
    for architecture in (*_WITHOUT_NORM, *rewritten):
        name = architecture.removeprefix(PREFIX)
        counts = _values(count_adjacencies(trace(load_model(name)).graph))
        total = [sum(pair) for pair in zip(total, counts, strict=True)]
        yield _row(name, counts)
    yield _row("together", total)


def _row(name: str, cells: Sequence[object]) -> str:
    widths = (max(6, len(title)) for title in _NAMES)
    return f"{name:22}" + "".join(
        f"  {cell!s:>{width}}" for cell, width in zip(cells, widths, strict=True)
    )


def _show(architecture: str, placement: str | None, options: argparse.Namespace) -> Iterator[str]:
    declared = find_architecture(architecture)
    programs = declared.programs
    depth = declared.shown_depth if options.depth is None else options.depth
    _refuse(architecture, placement, depth)
    lacks: list[str] = []
    for trial in _list_trials(architecture, depth, programs if placement is None else (placement,)):
        try:
            graph = _graph_of(trial, options)
        except GridError as error:
            if placement is not None or trial.placement == "before":  # the network as it is
                raise
            lacks.append(str(error))
            continue
        yield f"{architecture}, depth {depth}, {trial.placement}: {trial.program}"
        yield ""
        yield from _describe(graph)
        yield ""
    for text in lacks:
        yield from textwrap.wrap(text, WIDTH)
    for name in ("after-relu", "after-add") if placement is None else ():
        if name not in programs and (absence := explain_absence(architecture, name)):
            yield from textwrap.wrap(f"{name} is not defined: {absence}", WIDTH)


def _refuse(architecture: str, placement: str | None, depth: int) -> None:
    programs = find_architecture(architecture).programs
    if placement is not None and placement not in programs:
        absence = explain_absence(architecture, placement)
        raise HarnessError(
            f"{placement!r} is not a placement of {architecture}: {', '.join(programs)}"
            + (f"; {absence}" if absence else did_you_mean(placement, list(programs)))
        )
    if depth > MAX_DEPTH:
        raise HarnessError(f"a depth of {depth:,} is beyond {MAX_DEPTH:,}, where a grid ends too")
    if allowed := find_depth_mistake(architecture, depth):
        raise HarnessError(f"{depth} is not a depth of {architecture}, which has {allowed}")


def _list_trials(architecture: str, depth: int, placements: Iterable[str]) -> Iterator[Trial]:
    """A trial for each of the placements; reads the file of a user's own network."""
    programs = find_architecture(architecture).programs
    digest = read_network(architecture, Path.cwd()) if is_own(architecture) else ""
    for placement in placements:
        yield Trial(
            architecture=tidy_name(architecture) if digest else architecture,
            architecture_digest=digest,
            placement=placement,
            program=programs[placement],
            depth=depth,
            seed=0,
        )


def _show_stranger(architecture: str, placement: str | None) -> Iterator[str]:
    from harness.training.graphs import load_model, trace  # noqa: PLC0415 - torch: not for --help

    reason = explain_stranger(architecture)
    if placement is not None:
        raise HarnessError(f"{reason}: no placement is defined")
    yield f"{architecture}, as torchvision has it"
    yield ""
    yield from _describe(trace(load_model(architecture.removeprefix(PREFIX))).graph)
    yield ""
    yield from textwrap.wrap(f"No placement is defined: {reason}.", WIDTH)


def _graph_of(trial: Trial, options: argparse.Namespace) -> fx.Graph:
    import torch  # noqa: PLC0415 - as above

    from harness.training.graphs import rewrite_model, trace  # noqa: PLC0415 - as above
    from harness.training.networks import build_network  # noqa: PLC0415 - as above

    if is_own(trial.architecture):
        return _graph_of_own(trial, options)
    if is_rewritten(trial.architecture):
        return rewrite_model(trial, options.shape, options.classes).graph
    with torch.device("meta"):
        return trace(build_network(trial, options.shape, options.classes)).graph


def _graph_of_own(trial: Trial, options: argparse.Namespace) -> fx.Graph:
    """Of a user's network, with the norm and activation it is written with; refused as by a run."""
    from harness.training.graphs import build_graph, rewrite_model  # noqa: PLC0415 - as above
    from harness.training.kinds import Unfit  # noqa: PLC0415 - as above

    while True:
        try:
            build_graph(trial, options.shape, options.classes)
            return rewrite_model(trial, options.shape, options.classes).graph
        except GridError as error:
            says = error.__cause__.says if isinstance(error.__cause__, Unfit) else {}
            if all(getattr(trial, name) == value for name, value in says.items()):
                raise
            trial = replace(trial, **says)


def _describe(graph: fx.Graph) -> Iterator[str]:
    from harness.training.graphs import count_adjacencies, read_blocks  # noqa: PLC0415 - torch: not for --help

    blocks = list(_merge(read_blocks(graph)))
    width = min(LABELS, max(len(label) for label in (*_NAMES, *dict(blocks))))
    for label, operations in blocks:
        yield from _column(label, operations, width, indent=2)
    yield ""
    for name, count in zip(_NAMES, _values(count_adjacencies(graph)), strict=True):
        yield f"  {name:{width}}  {count}"


def _merge(blocks: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Give the blocks the names they are shown under, and equal siblings in a row one for all."""
    listed = list(blocks)
    last = len(listed) - 1
    named = [
        (name or ("stem" if at == 0 else "head" if at == last else "-"), operations)
        for at, (name, operations) in enumerate(listed)
    ]
    for (_, operations), run in itertools.groupby(
        named, lambda block: (block[0].rpartition(".")[0], block[1])
    ):
        yield _span([name for name, _ in run]), operations


def _span(names: Sequence[str]) -> str:
    """One label for siblings.

    >>> _span(["layer1.1", "layer1.2"]), _span(["inception3a", "inception3b"]), _span(["stem"])
    ('layer1.1 .. 2', 'inception3a .. inception3b', 'stem')
    """
    first, last = names[0], names[-1]
    if len(names) == 1:
        return first
    end = last.rpartition(".")[2]
    number = re.search(r"\d+$", end)
    if number and last[: -len(number[0])] == first.rstrip("0123456789"):
        end = number[0]
    return f"{first} .. {end}"


def _column(label: str, text: str, width: int, *, indent: int = 0) -> list[str]:
    """A label and a text beside it, wrapped below itself."""
    start = " " * indent + f"{label:{width}}  "
    below = " " * (indent + width + 2)
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=below, break_on_hyphens=False
    )


def _values(counts: Adjacencies) -> list[int]:
    return [getattr(counts, field.name) for field in fields(counts)]


if __name__ == "__main__":
    sys.exit(main())
