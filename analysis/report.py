"""Write the significance report of a results folder: python -m analysis.report RESULTS."""

# ruff: noqa: T201  this file speaks to the terminal

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import webbrowser
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import jinja2
import markupsafe
import numpy as np
import vl_convert
from altair.utils.schemapi import debug_mode

from analysis.judgement.effects import UNITS, find_effects
from analysis.judgement.outcomes import collect_outcomes
from analysis.judgement.simulation import calibrate, find_design
from analysis.judgement.verdicts import judge_outcomes
from analysis.load import ResultsError, load_results
from analysis.page import frames as tables
from analysis.page.sections import (
    Card,
    Figure,
    Page,
    Panel,
    Table,
    build_page,
    theme,
    with_calibration,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.judgement.effects import Effect
    from analysis.judgement.outcomes import Outcomes
    from analysis.judgement.simulation import Rate
    from analysis.judgement.verdicts import Verdict
    from analysis.load import Results
    from analysis.page.theme import Mark
    from harness.study.records import AnalysisPlan

REPLICATES = 1_000
"""Simulated grids per scenario: enough to tell 5 % from 7 %, in a second or two."""
SIMULATED_TRIALS = 1_000_000
"""Trials that all grids of a scenario hold at most: a very large design is simulated less often."""
WRITTEN, UNUSABLE, INTERRUPTED = 0, 3, 130
FORMATS = ("html", "pdf", "md", "png")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PRINTED_WIDTH = 822
"""Pixels of a window in which charts are as wide as on A4 between the margins of page.css."""
_LONGEST_NAME = 120
"""Characters of a file's name; file systems take 255 bytes."""
PANEL_WIDTH = {1: 620, 2: 400, 3: 280}
"""Pixels per panel in a figure's file, by the panels in a row; on the page the reader decides."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    command = shlex.join(["python", "-m", "analysis.report", *(arguments or sys.argv[1:])])
    folder = options.output or _default_output(options.results)
    try:
        page = _report(options, folder, command)
        if options.open:
            webbrowser.open((folder / "index.html").resolve().as_uri())
        while options.watch and not page.results.is_complete:
            time.sleep(options.watch)
            page = _report(options, folder, command)
    except ResultsError as error:
        print(f"report: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print(f"\nstopped; to write the report: {command}", file=sys.stderr)
        return INTERRUPTED
    return WRITTEN


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description="Judge the claims from the rows of a results folder and show how sure that is.",
        epilog="Exit codes: 0 the report is written, of partial results too, 2 an option cannot be "
        "met, 3 the results folder cannot be used or the report cannot be written, 130 interrupted.",
    )
    parser.add_argument("results", help="folder or s3://bucket/prefix that harness.run wrote")
    parser.add_argument(
        "-o", "--output", type=_folder, help="folder of the report; default: RESULTS/report"
    )
    parser.add_argument(
        "--format",
        type=_formats,
        default=("html",),
        metavar=",".join(FORMATS),
        help="what to write beside the tables and the SVG of every figure: pdf needs Chromium or "
        "Chrome, png adds every figure as pixels",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=30.0,
        metavar="SECONDS",
        help="write the report anew while trials are missing (default every 30 seconds)",
    )
    parser.add_argument(
        "--allow-mixed",
        action="store_true",
        help="compare trials of different training code or precision; the report says so",
    )
    options = parser.parse_args(arguments)
    if "pdf" in options.format and _find_browser() is None:
        parser.error("a PDF needs Chromium or Chrome, and neither was found; print the page")
    return options


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("no folder has an empty name")
    return Path(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 86,400")
    return seconds


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(text.split(","))
    for name in formats:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(FORMATS)}")
    return formats


def _default_output(location: str) -> Path:
    if location.startswith("s3://"):
        return Path("results", location.rstrip("/").rpartition("/")[2], "report")
    return Path(location).expanduser() / "report"


def _report(options: argparse.Namespace, folder: Path, command: str) -> Page:
    with (
        # What neither waits for Python nor keeps it waiting: V8, and numpy's long loops.
        ThreadPoolExecutor(2) as aside,
        debug_mode(False),  # the tests draw every chart; checking each against the schema is slow
    ):
        aside.submit(_script)
        results = load_results(options.results, allow_mixed=options.allow_mixed)
        studies = collect_outcomes(results)
        rates = aside.submit(_calibrate, studies, results.plan)
        effects = tuple(
            effect for quantity in UNITS for effect in find_effects(quantity, studies, results.plan)
        )
        verdicts = judge_outcomes(studies, results.plan, effects=effects)
        page = with_calibration(build_page(results, effects, verdicts), rates.result())
    try:
        write_report(
            page,
            effects,
            folder,
            command=command,
            formats=options.format,
            refresh=None if results.is_complete else options.watch,
        )
    except OSError as error:
        raise ResultsError(f"{folder}: the report cannot be written there ({error})") from error
    _print_verdicts(page, folder)
    return page


def _calibrate(studies: Sequence[Outcomes], plan: AnalysisPlan) -> list[Rate]:
    """How often verdicts err in studies like each of these; the same state, the same numbers."""
    rng = np.random.default_rng(0)
    designs = [(find_design(outcomes, plan), outcomes.planned_PCS.sum()) for outcomes in studies]
    return [
        rate
        for design, trials in designs
        if design is not None
        for rate in calibrate(
            design, replicates=min(REPLICATES, max(100, SIMULATED_TRIALS // int(trials))), rng=rng
        )
    ]


def write_report(
    page: Page,
    effects: Sequence[Effect],
    folder: Path,
    *,
    command: str,
    formats: Sequence[str] = ("html",),
    refresh: float | None = None,
) -> None:
    """Write the page, the tables beside it and every figure as SVG, as PNG too where wanted.

    `command` is printed as what wrote the report; `refresh` makes the page renew itself after so
    many seconds.

    Raises:
        ResultsError: a PDF is wanted and the browser could not print it.
    """
    written = datetime.now(UTC)
    verdicts = [card.verdict for card in page.cards]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as aside:  # the drawing leaves the interpreter to the rest
        drawn = [
            aside.submit(
                _draw, _twin(figure), folder / "figures" / _file_name(figure.name), formats
            )
            for figure in page.figures
        ]
        looks = _count_looks(folder / "looks.json", page.results, written=written)
        html = render_page(page, written=written, command=command, looks=looks, refresh=refresh)
        _write(folder / "index.html", html)
        _write(folder / "verdicts.json", _verdicts_json(page.results, verdicts, written=written))
        numbers = tables.without_formulas(tables.tabulate_effects(effects))
        _write(folder / "effects.csv", numbers.to_csv(index=False))
        trials = tables.without_formulas(page.results.trials.drop(columns="test_correct"))
        _write(folder / "trials.csv", trials.to_csv(index=False))
    for figure in drawn:
        figure.result()
    if "md" in formats:
        _write(folder / "report.md", _render_markdown(page, written=written))
    if "pdf" in formats:
        _print_pdf(folder / "index.html", folder / "report.pdf")


def render_page(
    page: Page,
    *,
    written: datetime,
    command: str,
    looks: int = 1,
    refresh: float | None = None,
) -> str:
    """The whole page as one file that needs no network.

    Strings from results are data: they are escaped where they become text, and what the charts
    draw is packed into letters and digits. The policy lets nothing run but the one script below, and
    no request leave the page.
    """
    charts: list[dict[str, Any]] = []  # in the order of their boxes on the page

    def chart(panel: Panel, label: str, described_by: str = "", *, legend: bool = True) -> str:
        charts.append(_page_spec(panel, legend=legend))
        return _chart_box(label, described_by)

    script = _script()
    style = _read("page.css") + _dark_style()
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_shown,
    )
    environment.filters["typeset"] = _typeset
    return environment.from_string(_read("page.html.j2")).render(
        page=page,
        written=written,
        command=command,
        looks=looks,
        refresh=refresh,
        code=sorted(set(page.results.trials["code_digest"])),
        gradient_meaning=theme.meaning(page.results.plan.gradient_column).rstrip("."),
        provenance=_provenance(page.results),
        reproduction=_reproduction(page, allow_mixed="--allow-mixed" in shlex.split(command)),
        chart=chart,
        file_name=_file_name,
        swatch=_swatch,
        style=style,
        script=script,
        content=lambda: _deflate(_pack({"config": _config(), "charts": charts})),
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src {_hash_of(script)}",
                f"style-src {_hash_of(style)}",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
    )


def _as_shown(value: Any) -> Any:  # noqa: ANN401
    """What a template prints, markup as markup."""
    return type(value)(theme.visible(value)) if isinstance(value, str) else value


def _pack(content: dict[str, Any]) -> str:
    return theme.visible(json.dumps(content, separators=(",", ":"), ensure_ascii=False))


def _deflate(text: str) -> str:
    """Text for the page's script to inflate: an eighth of its size, and no markup in it."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return base64.b64encode(packer.compress(text.encode()) + packer.flush()).decode()


def _typeset(text: str) -> str:
    """True minus signs, and no line that ends between a number and what belongs to it."""
    text = re.sub(r"(?<!\w)-(?=\d)", theme.MINUS, text)
    return re.sub(r"\bp ([=<]) (?=\d)|(?<=\d) (?=%)", lambda gap: gap[0].replace(" ", "\xa0"), text)


def _page_spec(panel: Panel, *, legend: bool = True) -> dict[str, Any]:
    """The chart as the page draws it: as wide as its box; `legend` where the page has none."""
    view = {name: part for name, part in panel.spec.items() if name not in {"$schema", "config"}}
    return {
        **view,
        **({} if legend else {"config": {"legend": {"disable": True}}}),
        "datasets": {name: _columns(rows) for name, rows in panel.spec["datasets"].items()},
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": {"left": 2, "top": 4, "bottom": 2, "right": 4},
    }


@functools.cache
def _config() -> dict[str, Any]:
    """The look that all charts share, once on the page."""
    return theme.configure(alt.Chart()).to_dict(validate=False)["config"]


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows as columns, those that repeat themselves as places in a list; the page turns them back.

    CSV would be as small, but Vega's reader of CSV compiles code, which the page forbids.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows] for name in names}
    words = {name: list(dict.fromkeys(values)) for name, values in columns.items()}
    return {
        "length": len(rows),
        "columns": {
            name: {"words": words[name], "places": [words[name].index(value) for value in values]}
            if len(words[name]) < len(values) / 4
            else values
            for name, values in columns.items()
        },
    }


def _twin(figure: Figure) -> dict[str, Any]:
    """The figure as one picture of fixed width."""
    outside = {"$schema", "config", "datasets"}
    width = PANEL_WIDTH[figure.columns]
    views = [
        {name: part for name, part in panel.spec.items() if name not in outside}
        | {"width": width, "title": panel.title or figure.title}
        for panel in figure.panels
    ]
    return {
        "$schema": alt.SCHEMA_URL,
        "config": _config(),
        "background": theme.PAPER,
        "datasets": {
            name: rows for panel in figure.panels for name, rows in panel.spec["datasets"].items()
        },
        "concat": views,
        "columns": figure.columns,
        "resolve": {"scale": {"color": "independent", "shape": "independent"}},
    }


def _draw(spec: dict[str, Any], path: Path, formats: Sequence[str]) -> None:
    """One figure as files of its own."""
    _write(path.with_name(f"{path.name}.svg"), vl_convert.vegalite_to_svg(spec))
    if "png" in formats:
        path.with_name(f"{path.name}.png").write_bytes(vl_convert.vegalite_to_png(spec, scale=2))


@functools.cache
def _script() -> str:
    """Vega, Vega-Lite and vega-embed, once, and the few lines that draw the charts with them.

    Inside a function, for the bundle would leak its names into the page's.
    """
    bundle = vl_convert.javascript_bundle(_read("page.js"))
    return f"(function () {{\n{bundle}\n}})();"


def _read(name: str) -> str:
    return resources.files("analysis.page").joinpath(name).read_text(encoding="utf-8")


def _dark_style() -> str:
    """The colours of charts on a dark page: style wins over the attributes that Vega writes."""
    rules = "".join(
        f'[fill="{light}"]{{fill:{dark}}}[stroke="{light}"]{{stroke:{dark}}}'
        for light, dark in theme.DARK.items()
    )
    return f"@media screen and (prefers-color-scheme: dark) {{{rules}}}\n"


def _hash_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _chart_box(label: str, described_by: str = "") -> markupsafe.Markup:
    reference = markupsafe.Markup(' aria-describedby="{}"').format(described_by)
    return markupsafe.Markup('<div class="chart" role="img" aria-label="{}"{}></div>').format(
        label, reference if described_by else ""
    )


_SYMBOLS = {
    "circle": "M6 1a5 5 0 1 1 0 10a5 5 0 1 1 0-10z",
    "square": "M1.5 1.5h9v9h-9z",
    "triangle-up": "M6 1l5.5 10h-11z",
    "triangle-down": "M6 11l5.5-10h-11z",
    "triangle-right": "M11 6l-10-5.5v11z",
    "triangle-left": "M1 6l10-5.5v11z",
    "diamond": "M6 0l5 6l-5 6l-5-6z",
    "cross": "M4 0h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
}


def _swatch(mark: Mark) -> markupsafe.Markup:
    return markupsafe.Markup(
        '<svg viewBox="0 0 12 12" aria-hidden="true"><path d="{}" fill="{}"/></svg>'
    ).format(_SYMBOLS[mark.shape], mark.colour)


def _provenance(results: Results) -> Table:
    names = ("device", "torch", "python", "commit", "code_digest", "deterministic", "precision")
    counts = results.trials[list(names)].astype(str).value_counts(sort=False).reset_index()
    return Table(
        ("trials", *(name.replace("_", " ") for name in names)),
        tuple(
            (str(row["count"]), *(row[name] for name in names)) for row in counts.to_dict("records")
        ),
        words=len(names) + 1,
    )


def _reproduction(page: Page, *, allow_mixed: bool) -> Table:
    """What to type for each claim's sentence, and every number of the effect that decided it."""
    rows = []
    for index, card in enumerate(page.cards):
        arguments = json.dumps(page.results.location) + ", allow_mixed=True" * allow_mixed
        source = (
            "from analysis import claims, load; "
            f"verdict = claims.judge(load.load_results({arguments}))[{index}]; "
            "print(verdict.sentence, verdict.headline)"
        )
        if card.verdict.headline is not None:
            claim = ", ".join(filter(None, (card.verdict.claim, card.study)))
            rows.append((claim, shlex.join(["python", "-c", source])))
    return Table(("claim", "command"), tuple(rows), words=2)


def _verdicts_json(results: Results, verdicts: Sequence[Verdict], *, written: datetime) -> str:
    content = {
        "grid": results.plan.grid,
        "written": written.isoformat(timespec="seconds"),
        "complete": results.is_complete,
        "trials_planned": len(results.planned),
        "trials_found": len(results.trials),
        "warnings": list(results.warnings),
        "plan": asdict(results.plan),
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    return json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:  # noqa: ANN401
    """JSON has no NaN: a number that does not exist is null."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _without_nan(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_nan(item) for item in value]
        case _:
            return value


def _count_looks(path: Path, results: Results, *, written: datetime) -> int:
    """How often these results were judged while they grew, this time included.

    The same trials judged again are the same look.
    """
    names = "".join(sorted(results.trials["trial_id"]))
    look = {
        "trials": len(results.trials),
        "digest": hashlib.blake2b(names.encode(), digest_size=8).hexdigest(),
        "first": written.isoformat(timespec="seconds"),
    }
    looks = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if look["digest"] not in {earlier["digest"] for earlier in looks}:
        looks.append(look)
        _write(path, json.dumps(looks, indent=2) + "\n")
    return len(looks)


def _render_markdown(page: Page, *, written: datetime) -> str:
    """The verdicts, and those of the figures beside the file that claims rest on."""

    def plain(text: str) -> str:
        return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)

    lines = [
        "# Does batch norm belong before or after ReLU?",
        "",
        (
            f"Grid {plain(page.results.plan.grid)}, {written:%d %B %Y, %H:%M} UTC: "
            f"{len(page.results.trials)} of {len(page.results.planned)} planned trials."
        ),
    ]
    if not page.results.is_complete:
        lines += ["", f"**INCOMPLETE**: {len(page.results.missing)} trials have no result."]
    lines += [f"\n**Beware**: {plain(warning)}" for warning in page.results.warnings]
    for study, cards in page.studies.items():
        lines += ["", f"## {plain(study).capitalize()}"] if study else []
        for card in cards:
            verdict = card.verdict
            title = f"{verdict.claim} {verdict.word} ({verdict.grade or card.answer})"
            lines += [
                "",
                f"{'###' if study else '##'} {card.icon} {title}: {plain(verdict.title)}",
                "",
                plain(verdict.sentence),
            ]
            if verdict.fragile:
                lines += ["", f"**Fragile**: {plain(verdict.fragile)}"]
            if verdict.settle:
                lines += ["", f"To settle it: {plain(verdict.settle)}"]
    for section in page.sections:
        figures = [figure for figure in section.figures if not figure.is_aside]
        lines += ["", f"## {section.title}"] if figures or section.intro else []
        lines += ["", plain(section.intro)] if section.intro else []
        for figure in figures:
            address = f"figures/{_file_name(figure.name)}.svg"
            title = plain(figure.title)
            lines += ["", f"### {title}", "", f"![{title}]({address})", ""]
            lines += [plain(figure.description)]
    lines += [
        "",
        "Every figure: [figures](figures/). Every number: [effects.csv](effects.csv),",
        "[trials.csv](trials.csv), [verdicts.json](verdicts.json).",
    ]
    return "\n".join(lines) + "\n"


def _find_browser() -> str | None:
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def _print_pdf(page: Path, target: Path) -> None:
    browser = _find_browser()
    assert browser is not None, "the command line asks for one"
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            *("--headless=new", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium insists, as root
            f"--user-data-dir={profile}",
            f"--window-size={_PRINTED_WIDTH},1400",
            "--virtual-time-budget=10000",
            f"--print-to-pdf={target.resolve()}",
            page.resolve().as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    if done.returncode or not target.exists():
        raise ResultsError(f"{browser} could not print {page}")


def _write(path: Path, text: str) -> None:
    """A reader of the file sees the old text or the new, never half of one."""
    hidden = path.with_name(f".{path.name}.tmp")
    hidden.write_text(text, encoding="utf-8")
    hidden.replace(path)


def _file_name(name: str) -> str:
    """A name with nothing in it that a file system would take amiss, another for every other name."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    if plain == re.sub("[ ,]", "_", name) and len(plain) <= _LONGEST_NAME:
        return plain
    digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=4).hexdigest()
    return f"{plain[:_LONGEST_NAME]}-{digest}"


def _print_verdicts(page: Page, folder: Path) -> None:
    if not page.results.is_complete:
        print(
            f"INCOMPLETE: {len(page.results.missing)} of {len(page.results.planned)} planned "
            "trials have no result"
        )
    for warning in page.results.warnings:
        print(f"beware: {theme.visible(warning)}")
    for study, cards in page.studies.items():
        if study:
            print(f"\n{theme.visible(study).upper()}")
        for card in cards:
            _print_verdict(card)
    print(f"\n{folder / 'index.html'}")


def _print_verdict(card: Card) -> None:
    verdict = card.verdict
    meaning = verdict.grade or card.answer
    print(f"\n{card.icon} {verdict.claim} {verdict.word.upper()} ({meaning}): {verdict.title}")
    texts = [verdict.sentence]
    if verdict.fragile:
        texts.append(f"Fragile: {verdict.fragile}")
    if verdict.settle:
        texts.append(f"To settle it: {verdict.settle}")
    width = min(shutil.get_terminal_size().columns, 100)
    for text in texts:
        print(
            textwrap.fill(theme.visible(text), width, initial_indent="  ", subsequent_indent="    ")
        )


if __name__ == "__main__":
    sys.exit(main())
