"""Write what a paper takes from a report: figures as PDF, tables as LaTeX and Markdown, methods."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from analysis.page import drawing, theme
from analysis.page.html import name_file, typeset
from analysis.page.methods import cite, describe_methods
from analysis.page.parts import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from analysis.page.parts import Page

_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # else the length that a row's end may bring
    "<": "$<$",
    ">": "$>$",
    theme.MINUS: "$-$",
    theme.NONE: "--",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "…": r"\dots{}",
    "\N{NO-BREAK SPACE}": "~",
    "✓": r"$\surd$",
    "✕": r"$\times$",
    "↔": r"$\leftrightarrow$",
}
"""What LaTeX reads otherwise, or has no letter for, as it would print it."""


def write_paper(page: Page, folder: Path, figures: Mapping[str, str]) -> list[Future[int]]:
    """Write the folder `paper`; `figures` maps names of files to pictures in SVG.

    Returns what is still being written.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "tables").mkdir(exist_ok=True)
    paragraphs = [theme.visible(typeset(text)) for text in describe_methods(page)]
    drawing.write(folder / "methods.md", "\n\n".join(map(as_markdown, paragraphs)) + "\n")
    drawing.write(folder / "methods.tex", "\n\n".join(map(as_latex, paragraphs)) + "\n")
    drawing.write(folder / "citation.bib", cite())
    for name, title, table in _tables_of(page):
        shown = as_latex(theme.visible(title))
        drawing.write(folder / "tables" / f"{name}.tex", f"% {shown}\n{tabulate_latex(table)}")
        heading = as_markdown(theme.visible(title))
        drawing.write(folder / "tables" / f"{name}.md", f"{heading}\n\n{tabulate_markdown(table)}")
    return [
        drawing.convert(picture, folder / "figures" / f"{name}.pdf")
        for name, picture in figures.items()
    ]


def _tables_of(page: Page) -> Iterator[tuple[str, str, Table]]:
    """Name of the file, title and table: the verdicts, and every table of the page."""
    rows = tuple(
        (
            ", ".join(filter(None, (card.claim, card.study))),
            card.title,
            card.answer,
            card.meaning,
            card.effect,
        )
        for card in page.cards
    )
    if rows:
        columns = ("claim", "what it says", "answer", "in words of statistics", "effect")
        yield "claims", "The answers", Table(columns, rows, words=5)
    for section in page.sections:
        for figure in section.figures:
            if figure.table is not None:
                yield name_file(figure.name), figure.title, figure.table
        for title, table in section.tables:
            yield name_file(f"{section.anchor}-{title}".replace(" ", "-").lower()), title, table


def tabulate_latex(table: Table) -> str:
    r"""The table for LaTeX with the package booktabs.

    >>> print(tabulate_latex(Table(("arm", "points"), (("after_all", "0.3 %"),))))
    \begin{tabular}{lr}
    \toprule
    arm & points \\
    \midrule
    after\_all & 0.3~\% \\
    \bottomrule
    \end{tabular}
    <BLANKLINE>
    """
    head, *body = (
        " & ".join(as_latex(theme.visible(typeset(cell))) for cell in row) + r" \\"
        for row in (table.columns, *table.rows)
    )
    sides = "l" * table.words + "r" * (len(table.columns) - table.words)
    lines = [rf"\begin{{tabular}}{{{sides[: len(table.columns)]}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}", ""])


def tabulate_markdown(table: Table) -> str:
    r"""The table for Markdown.

    >>> print(tabulate_markdown(Table(("arm", "points"), (("a|b", "0.3"),))))
    | arm | points |
    |---|--:|
    | a\|b | 0.3 |
    <BLANKLINE>
    """
    head, *body = (
        "| " + " | ".join(as_markdown(theme.visible(typeset(cell))) for cell in row) + " |"
        for row in (table.columns, *table.rows)
    )
    sides = ["---" if place < table.words else "--:" for place in range(len(table.columns))]
    return "\n".join([head, f"|{'|'.join(sides)}|", *body, ""])


def as_latex(text: str) -> str:
    """Text in which LaTeX finds no command."""
    return "".join(_LATEX.get(sign, sign) for sign in text.replace("\n", " "))


def as_markdown(text: str) -> str:
    """Text in which Markdown finds no markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text.replace("\n", " "))
