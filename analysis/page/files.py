"""Write a report: the page, its figures, the tables and verdicts beside it, Markdown and PDF."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.judgement.practice import as_frame
from analysis.page import drawing, pictures, theme
from analysis.page import frames as tables
from analysis.page.html import name_file, render_page
from analysis.page.paper import as_markdown, write_paper

if TYPE_CHECKING:
    from concurrent.futures import Future

    from analysis.judgement.effects import Effect
    from analysis.page.parts import Page
    from analysis.page.pictures import Pictures


def write_report(
    page: Page,
    drawn: Pictures,
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
        OSError: a file cannot be written, or a PDF is wanted and the browser could not print it.
    """
    written = datetime.now(UTC)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    html = render_page(page, drawn, written=written, command=command, refresh=refresh)
    converted = _write_figures(page, drawn, folder, formats)
    drawing.write(folder / "index.html", html)
    drawing.write(folder / "verdicts.json", _render_json(page, written=written))
    numbers = tables.without_formulas(tables.tabulate_effects(effects))
    drawing.write(folder / "effects.csv", numbers.to_csv(index=False))
    practice = tables.without_formulas(as_frame(page.practices))
    drawing.write(folder / "practice.csv", practice.to_csv(index=False))
    if page.interactions:
        changes = tables.without_formulas(pd.DataFrame(map(asdict, page.interactions)))
        drawing.write(folder / "interactions.csv", changes.to_csv(index=False))
    trials = tables.without_formulas(_without_bytes(page.results.trials))
    drawing.write(folder / "trials.csv", trials.to_csv(index=False))
    for file in converted:
        file.result()
    if "md" in formats:
        drawing.write(folder / "report.md", _render_markdown(page, written=written))
    if "pdf" in formats:
        drawing.print_pdf(folder / "index.html", folder / "report.pdf")


def _without_bytes(trials: pd.DataFrame) -> pd.DataFrame:
    """The rows with the accuracy of each class in words, and without the bits of the images."""
    shares = [
        " ".join(f"{share:.4g}" for share in np.frombuffer(packed, "<f8"))
        for packed in trials["class_accuracy"]
    ]
    return trials.drop(columns="test_correct").assign(class_accuracy=shares)


def _write_figures(
    page: Page, drawn: Pictures, folder: Path, formats: Sequence[str]
) -> list[Future[int]]:
    """Write every figure as SVG; what else is wanted of it comes from the same picture."""
    figures = {
        name_file(figure.name): pictures.compose(figure, drawn, page.marks)
        for figure in page.figures
    }
    for name, picture in figures.items():
        drawing.write(folder / "figures" / f"{name}.svg", picture)
    converted = []
    if "png" in formats:
        converted += [
            drawing.convert(picture, folder / "figures" / f"{name}.png")
            for name, picture in figures.items()
        ]
    if "paper" in formats:
        converted += write_paper(page, folder / "paper", figures)
    return converted


def _render_json(page: Page, *, written: datetime) -> str:
    results = page.results
    content = {
        "grid": results.plan.grid,
        "written": written.isoformat(timespec="seconds"),
        "complete": results.is_complete,
        "answer": list(page.answer),
        "trials_planned": len(results.planned),
        "trials_found": len(results.trials),
        "warnings": list(results.warnings),
        "plan": asdict(results.plan),
        "looks": [asdict(look) for look in page.seen],
        "verdicts": [asdict(verdict) for verdict in page.verdicts],
        "networks": [asdict(network) for _, network in page.networks],
    }
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return theme.INVISIBLE.sub(lambda sign: json.dumps(sign[0])[1:-1], text)


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


def _render_markdown(page: Page, *, written: datetime) -> str:
    """The verdicts, and those of the figures beside the file that claims rest on."""

    def plain(text: str) -> str:
        return as_markdown(theme.visible(text))

    lines = [
        f"# {page.question}",
        "",
        plain(" ".join(page.answer)),
        "",
        "; ".join(f"{name}: {plain(value)}" for name, value in page.facts) + ".",
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
            title = f"{card.claim} {card.answer}: {card.meaning}"
            lines += [
                "",
                f"{'###' if study else '##'} {card.icon} {title}: {plain(card.title)}",
                "",
                plain(card.sentence),
            ]
            for name, text in card.notes:
                lines += ["", f"**{name}**: {plain(text)}"]
    lines += ["", plain(page.absence)] * bool(page.absence)
    for study, network in page.networks:
        where = f"**{plain(study)}**: " if study else ""
        lines += ["", f"{where}{plain(network.sentence)}"]
    for section in page.sections:
        figures = [figure for figure in section.figures if not figure.is_aside]
        lines += ["", f"## {section.title}"] if figures or section.intro else []
        lines += ["", plain(section.intro)] if section.intro else []
        for figure in figures:
            address = f"figures/{name_file(figure.name)}.svg"
            title = plain(figure.title)
            lines += ["", f"### {title}", "", f"![{title}]({address})", ""]
            lines += [plain(figure.description)]
    lines += [
        "",
        "Every figure: [figures](figures/). Every number: [effects.csv](effects.csv),",
        "[practice.csv](practice.csv), [trials.csv](trials.csv), [verdicts.json](verdicts.json).",
    ]
    return "\n".join(lines) + "\n"
