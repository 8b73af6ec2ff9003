"""`python -m harness.placements ARCHITECTURE [PLACEMENT]`: what runs, in which order.

Everything printed is read back from the graph of the network that would be trained, not from its
program. For torchvision's models that settles, from torchvision's own source, where they have their
batch norms: `python -m harness.placements torchvision` counts them all.
"""

# ruff: noqa: T201  this file speaks to the terminal

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import fx

from harness.study import zoo
from harness.study.errors import HarnessError
from harness.study.trials import MAX_DEPTH, PROGRAMS, Trial, find_depth_mistake
from harness.study.wording import did_you_mean
from harness.training.graphs import block_of, load_model, operation, rewrite, skip_path, trace
from harness.training.networks import build_network

WIDTH = 80
LABELS = 38  # columns of the blocks' names, at most

_DEPTHS = {"mlp": 3, "vgg": 16, "plain": 20, "resnet": 20, "preresnet": 20, "densenet": 40}
"""What is shown of our own where no depth is asked for."""

_WITHOUT_NORM = tuple(f"{zoo.PREFIX}vgg{depth}" for depth in (11, 13, 16, 19))
"""Shown beside the models of the zoo, because they are often taken to have batch norm."""


@dataclass(frozen=True, slots=True)
class Adjacencies:
    """How many batch norms a network has, and how many of them stand next to what.

    An addition reads a branch and a skip path; a batch norm on either counts.
    """

    norms: int
    ahead_of_act: int  # BN > ReLU
    behind_act: int  # ReLU > BN
    ahead_of_join: int  # BN > + > ReLU
    behind_pool: int  # ReLU > pool > BN


_NAMES = ("BN", "BN>ReLU", "ReLU>BN", "BN>+>ReLU", "ReLU>pool>BN")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what the command line asks for; return its exit code."""
    options = _parse(arguments)
    try:
        for line in _answer(options.architecture, options.placement, options.depth):
            print(line)
    except HarnessError as error:
        print(f"harness.placements: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.placements",
        description="The operations of each block in the order they run, and what stands next to "
        "each batch norm.",
    )
    add = parser.add_argument
    add(
        "architecture",
        metavar="ARCHITECTURE",
        nargs="?",
        help="such as resnet or torchvision/resnet50; `torchvision` counts all its models; "
        "without it, all architectures are listed",
    )
    add("placement", metavar="PLACEMENT", nargs="?", help="such as after (default: each of them)")
    add("--depth", type=int, metavar="D", help="as the architecture counts it")
    return parser.parse_args(arguments)


def _answer(architecture: str | None, placement: str | None, depth: int | None) -> Iterator[str]:
    match architecture:
        case None:
            yield from _list_architectures()
        case "torchvision":
            yield from _tabulate_torchvision()
        case _ if architecture in PROGRAMS or architecture in zoo.PROGRAMS:
            yield from _show(architecture, placement, depth)
        case _ if architecture.removeprefix(zoo.PREFIX) in _models_of_torchvision():
            yield from _show_stranger(architecture, placement)
        case _:
            known = [*PROGRAMS, *zoo.PROGRAMS]
            raise HarnessError(
                f"{architecture!r} is not an architecture: {', '.join(PROGRAMS)} or "
                f"{zoo.PREFIX}MODEL{did_you_mean(architecture, known)}"
            )


def _models_of_torchvision() -> list[str]:
    from torchvision import models  # noqa: PLC0415 - our own networks are shown without it

    return models.list_models(module=models)


def _list_architectures() -> Iterator[str]:
    for architecture, programs in {**PROGRAMS, **zoo.PROGRAMS}.items():
        yield from _column(architecture, ", ".join(programs), 32)


def _tabulate_torchvision() -> Iterator[str]:
    yield _row("torchvision/", _NAMES)
    total = [0] * len(_NAMES)
    for architecture in (*_WITHOUT_NORM, *zoo.PROGRAMS):
        name = architecture.removeprefix(zoo.PREFIX)
        counts = _values(count_adjacencies(trace(load_model(name)).graph))
        total = [sum(pair) for pair in zip(total, counts, strict=True)]
        yield _row(name, counts)
    yield _row("together", total)


def _row(name: str, cells: Sequence[object]) -> str:
    widths = (max(6, len(title)) for title in _NAMES)
    return f"{name:22}" + "".join(
        f"  {cell!s:>{width}}" for cell, width in zip(cells, widths, strict=True)
    )


def _show(architecture: str, placement: str | None, depth: int | None) -> Iterator[str]:
    programs = PROGRAMS[architecture] if architecture in PROGRAMS else zoo.PROGRAMS[architecture]
    if placement is not None and placement not in programs:
        absence = (
            zoo.explain_absence(architecture, placement) if architecture in zoo.PROGRAMS else ""
        )
        raise HarnessError(
            f"{placement!r} is not a placement of {architecture}: {', '.join(programs)}"
            + (f"; {absence}" if absence else did_you_mean(placement, list(programs)))
        )
    if depth is None:
        depth = zoo.DEPTHS[architecture] if architecture in zoo.DEPTHS else _DEPTHS[architecture]
    if depth > MAX_DEPTH:
        raise HarnessError(f"a depth of {depth:,} is beyond {MAX_DEPTH:,}, where a grid ends too")
    allowed = find_depth_mistake(architecture, depth)
    if allowed:
        raise HarnessError(f"{depth} is not a depth of {architecture}, which has {allowed}")
    for name in programs if placement is None else (placement,):
        yield f"{architecture}, depth {depth}, {name}: {programs[name]}"
        yield ""
        graph = _graph_of(architecture, name, programs[name], depth)
        yield from _describe(graph)
        yield ""
    if placement is None and architecture in zoo.PROGRAMS:
        for name in ("after", "after-relu", "after-add"):
            if name not in programs:
                yield from textwrap.wrap(
                    f"{name} is not defined: {zoo.explain_absence(architecture, name)}", WIDTH
                )


def _show_stranger(architecture: str, placement: str | None) -> Iterator[str]:
    reason = zoo.explain_stranger(architecture)
    if placement is not None:
        raise HarnessError(f"{reason}: no placement is defined")
    yield f"{architecture}, as torchvision has it"
    yield ""
    yield from _describe(trace(load_model(architecture.removeprefix(zoo.PREFIX))).graph)
    yield ""
    yield from textwrap.wrap(f"No placement is defined: {reason}.", WIDTH)


def _graph_of(architecture: str, placement: str, program: str, depth: int) -> fx.Graph:
    if architecture in zoo.PROGRAMS:
        return rewrite(load_model(architecture.removeprefix(zoo.PREFIX)), program).graph
    trial = Trial(
        architecture=architecture, placement=placement, program=program, depth=depth, seed=0
    )
    with torch.device("meta"):
        return trace(build_network(trial, (3, 32, 32), 10)).graph


def _describe(graph: fx.Graph) -> Iterator[str]:
    blocks = list(_merge(read_blocks(graph)))
    width = min(LABELS, max(len(label) for label in (*_NAMES, *dict(blocks))))
    for label, operations in blocks:
        yield from _column(label, operations, width, indent=2)
    yield ""
    for name, count in zip(_NAMES, _values(count_adjacencies(graph)), strict=True):
        yield f"  {name:{width}}  {count}"


def read_blocks(graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """Yield the name and the operations of each block; in brackets what runs on a skip path."""
    named = [node for node in graph.nodes if operation(node)]
    skipped = {node for add in named if operation(add) == "+" for node in skip_path(add)}
    for block, nodes in itertools.groupby(named, block_of):
        words: list[str] = []
        for on_skip, part in itertools.groupby(nodes, skipped.__contains__):
            text = " ".join(map(operation, part))
            words.append(f"({text})" if on_skip else text)
        yield block, " ".join(words)


def count_adjacencies(graph: fx.Graph) -> Adjacencies:
    """Count the batch norms of `graph`, and those next to a ReLU, an addition or a pool."""
    norms: set[fx.Node] = set()
    ahead_of_act: set[fx.Node] = set()
    behind_act: set[fx.Node] = set()
    ahead_of_join: set[fx.Node] = set()
    behind_pool: set[fx.Node] = set()
    for node in graph.nodes:
        for source in _sources(node):
            match operation(source), operation(node):
                case "norm", "act":
                    ahead_of_act.add(source)
                case "act", "norm":
                    behind_act.add(node)
                case "+", "act":
                    ahead_of_join |= {
                        term for term in _sources(source) if operation(term) == "norm"
                    }
                case "pool", "norm" if any(operation(past) == "act" for past in _sources(source)):
                    behind_pool.add(node)
        if operation(node) == "norm":
            norms.add(node)
    return Adjacencies(*map(len, (norms, ahead_of_act, behind_act, ahead_of_join, behind_pool)))


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """The operations whose output a node reads, past what only moves data or concatenates one."""
    for source in node.all_input_nodes:
        while len(inputs := source.all_input_nodes) == 1 and operation(source) in {"", "cat"}:
            source = inputs[0]  # noqa: PLW2901 - walks back
        yield source


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
