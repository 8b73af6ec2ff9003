"""What the command line of `python -m harness.run` may say."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.study.terminal import Parser, say


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line of a run asks for; `harness.run --help` says what each option means."""

    grid: str
    overrides: Sequence[str]
    dry_run: bool
    plan_only: bool
    until_decided: bool
    price: Sequence[tuple[str, float]]
    check_cluster: bool
    results: str | None
    seeds_per_trial: int | None
    seeds: str | None
    only: Sequence[str]
    limit: int | None
    retry_failed: bool
    repair: bool
    accept_other_code: bool
    address: str
    cpus_per_trial: float | None
    gpus_per_trial: float | None
    wait_for_nodes: int
    trial_timeout: float | None
    max_concurrent: int | None
    join: bool
    verbose: bool
    quiet: bool


def parse_options(arguments: Sequence[str]) -> Options:
    """What these arguments ask for; ends the process with exit code 2 where they are none."""
    parser = Parser(
        prog="python -m harness.run",
        description="Train the missing trials of a grid and store the results as Parquet. Running the "
        "same command again resumes where it stopped, and does nothing when everything is done.",
        allow_abbrev=False,  # what is short for one option today may be short for two tomorrow
        epilog="Exit codes: 0 all done, 1 some trials failed or a node is not ready, 2 the grid, a "
        "data set or the cluster cannot be used, 3 the results folder cannot be used, "
        "4 Ray was lost under the run (give the command again), 130 interrupted.",
    )
    add = parser.add_argument
    add(
        "grid",
        metavar="GRID",
        type=_grid,
        help="YAML file, as in grids/; --settings lists what it may contain",
    )
    add(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],  # else argparse calls it required
        help="replaces a default, a margin or an analysis option of the grid: epochs=2 depth=[8,14] "
        "margins.accuracy_points=1 analysis.looks=2; values set inside a product win over these",
    )
    add(
        "--settings",
        action=_PrintSettings,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print every setting of a grid: default, allowed values, meaning, example",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print the plan: trials, time, disk, money, what the seeds can detect; changes nothing",
    )
    add(
        "--plan-only",
        action="store_true",
        help="write the plan into the results folder and train nothing: harness.work trains it on "
        "machines without Ray; given again, it adds what the tuning stage or a look leads to",
    )
    add(
        "--until-decided",
        action="store_true",
        help="stop at each planned look (analysis.looks in the grid), and add seeds only for claims "
        "that are still open and that seeds could settle",
    )
    add(
        "--price",
        metavar="MACHINE=USD",
        type=_price,
        action="append",
        default=[],
        help="price of an hour, for the plan, of a node type of ./cluster.yaml or an instance type: "
        "spot=0.30",
    )
    add(
        "--check-cluster",
        action="store_true",
        help="check the versions of every node that is up, and start a worker there that tries "
        "device, storage and data; trains nothing, exits with 1 if something is wrong",
    )
    add(
        "--results",
        metavar="DIR",
        help="where to store the rows: a folder or s3://bucket/prefix (default: results/NAME_OF_THE_GRID)",
    )
    add(
        "--seeds-per-trial",
        metavar="N",
        type=_count,
        help="train N seeds of a cell together, as one grouped network (short for pack_size=N). "
        "Speed on one CPU core with N=5, measured: mlp 3 times as fast, CNNs on 8x8 pixels 2.2, on "
        "28x28 at width 0.5 1.25, at width 1 0.76 times",
    )
    add("--seeds", help="replaces the grid's seeds: a count, 5, or a list, 0,1,2 or 0-9")
    add(
        "--only",
        metavar="key=value",
        action="append",
        default=[],
        help="train only matching trials: --only depth=8,14 --only placement=before; several values "
        "of one key are alternatives",
    )
    add("--limit", metavar="N", type=_count, help="train at most N of the missing trials")
    add(
        "--retry-failed",
        action="store_true",
        help="also retry trials that raised an exception twice with this same code (those that lost "
        "their worker or ran out of memory are always retried)",
    )
    add(
        "--repair",
        action="store_true",
        help="move damaged and foreign files of the results folder aside and train their trials again",
    )
    add(
        "--accept-other-code",
        action="store_true",
        help="continue even if finished trials come from another version of the training code",
    )
    add(
        "--address",
        type=_address,
        default="local",
        help="the Ray cluster: auto on one of its machines, else host:port (default: start Ray here)",
    )
    add(
        "--cpus-per-trial",
        metavar="X",
        type=_amount,
        help="CPUs reserved for a trial (default: the setting `threads`)",
    )
    add(
        "--gpus-per-trial",
        metavar="X",
        type=_gpus,
        help="0.25 puts 4 trials on a GPU; 0 trains on CPUs (default: 1 if there is a GPU)",
    )
    add(
        "--wait-for-nodes",
        metavar="N",
        type=_count,
        default=1,
        help="start once N nodes of the cluster are up; nodes that join later are used too",
    )
    add(
        "--trial-timeout",
        metavar="SECONDS",
        type=_amount,
        help="stop a trial that takes longer, and retry it once (default: 20 minutes, plus 10 times "
        "the slowest trial of its cell, or 50 times the forecast where there is none yet)",
    )
    add("--max-concurrent", metavar="N", type=_count, help="train at most N trials at a time")
    add(
        "--join",
        action="store_true",
        help="work beside another run that is using the same results folder",
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="a line for every trial")
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    options = Options(**vars(parser.parse_intermixed_args(arguments)))
    if options.until_decided and (options.only or options.limit):
        parser.error("--until-decided chooses what to train; leave out --only and --limit")
    return options


class _PrintSettings(argparse.Action):
    """As --help: prints and exits, whatever else is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from harness.study.settings import describe_settings  # noqa: PLC0415  pydantic

        say(describe_settings())
        parser.exit()


def _grid(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no file, such as grids/quickstart.yaml")
    return text


def _count(text: str) -> int:
    if re.fullmatch("[0-9]{1,9}", text) and (value := int(text)):
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def _price(text: str) -> tuple[str, float]:
    machine, _, price = text.rpartition("=")
    if machine and 0 <= (value := _number(price)) < math.inf:
        return machine, value
    raise argparse.ArgumentTypeError(f"{text!r}: write it as spot=0.30, in US dollars an hour")


def _address(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no address; write auto, or host:port")
    return text


def _amount(text: str) -> float:
    if 0 < (value := _number(text)) < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _gpus(text: str) -> float:
    if 0 <= (value := _number(text)) < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or above")


def _number(text: str) -> float:
    """NaN for `inf`, `1_0` and whatever else `float` accepts but nobody would write."""
    plain = re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]{1,3})?", text)
    return float(text) if plain else math.nan
