"""Render the page: one file of markup, style, pictures and a short script that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from typing import TYPE_CHECKING, Any

import jinja2
import markupsafe

from analysis.page import drawing, pictures, theme
from analysis.page.methods import cite, describe_methods, name_symbols
from analysis.page.parts import Table
from analysis.page.runs import tabulate_arms, tabulate_provenance
from harness.study.wording import list_words

if TYPE_CHECKING:
    from datetime import datetime

    from analysis.page.parts import Page, Panel
    from analysis.page.pictures import Pictures

_LONGEST_NAME = 120
"""Characters of a file's name; file systems take 255 bytes."""


def render_page(
    page: Page,
    drawn: Pictures,
    *,
    written: datetime,
    command: str,
    refresh: float | None = None,
) -> str:
    """The whole page as one file that needs no network.

    Strings from results are data: they are escaped where they become text, here and in the charts.
    The policy lets nothing run but the one script below, and no request leave the page.
    """

    def chart(panel: Panel, label: str, described_by: str = "") -> str:
        return _chart_box(pictures.inline(drawn.of(panel)), label, described_by)

    script = drawing.read("page.js")
    style = drawing.read("page.css") + _dark_style()
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_shown,
    )
    environment.filters |= {"typeset": typeset, "in_words": list_words}
    return environment.from_string(drawing.read("page.html.j2")).render(
        page=page,
        written=written,
        command=command,
        tuned=int((page.results.planned["stage"] == "tuning").sum()),
        refresh=refresh,
        gradient_meaning=theme.meaning(page.results.plan.gradient_column).rstrip("."),
        gradient_symbols=name_symbols(page.results.plan.gradient_column),
        methods=describe_methods(page),
        citation=cite(),
        arms=tabulate_arms(page.results),
        provenance=tabulate_provenance(page.results),
        reproduction=_reproduction(page, allow_mixed="--allow-mixed" in shlex.split(command)),
        chart=chart,
        file_name=name_file,
        swatch=pictures.swatch,
        style=style,
        script=script,
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


def typeset(text: str) -> str:
    """True minus signs, and no line that ends between a number and what belongs to it."""
    text = re.sub(r"(?<!\w)-(?=\d)", theme.MINUS, text)
    return re.sub(r"\bp ([=<]) (?=\d)|(?<=\d) (?=%)", lambda gap: gap[0].replace(" ", "\xa0"), text)


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


def _chart_box(picture: markupsafe.Markup, label: str, described_by: str) -> markupsafe.Markup:
    reference = markupsafe.Markup(' aria-describedby="{}"').format(described_by)
    return markupsafe.Markup('<div class="chart" role="img" aria-label="{}"{}>{}</div>').format(
        label, reference if described_by else "", picture
    )


def _reproduction(page: Page, *, allow_mixed: bool) -> Table:
    """What to type for each claim's sentence, and every number of the effect that decided it."""
    rows = []
    for index, card in enumerate(page.cards):
        arguments = json.dumps(page.results.location) + ", allow_mixed=True" * allow_mixed
        source = (
            "from analysis.judgement.verdicts import judge; "
            "from analysis.judgement.sequence import look_at; "
            f"from analysis.load import load_results; results = load_results({arguments}); "
            f"verdict = judge(results, look=look_at(results).look)[{index}]; "
            "print(verdict.sentence, verdict.headline)"
        )
        if card.panel is not None:
            claim = ", ".join(filter(None, (card.claim, card.study)))
            rows.append((claim, shlex.join(["python", "-c", source])))
    return Table(("claim", "command"), tuple(rows), words=2)


def name_file(name: str) -> str:
    """A name with nothing in it that a file system would take amiss, another for every other name."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    if plain == re.sub("[ ,]", "_", name) and len(plain) <= _LONGEST_NAME:
        return plain
    digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=4).hexdigest()
    return f"{plain[:_LONGEST_NAME]}-{digest}"
