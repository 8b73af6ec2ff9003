"""Render the page: one file of markup, style, script and numbers that needs no network."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import shlex
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import jinja2
import markupsafe

from analysis.page import drawing, theme
from analysis.page.parts import Table
from analysis.page.runs import tabulate_provenance

if TYPE_CHECKING:
    from datetime import datetime

    from analysis.page.parts import Page, Panel
    from analysis.page.theme import Mark

_LONGEST_NAME = 120
"""Characters of a file's name; file systems take 255 bytes."""


def render_page(
    page: Page, *, written: datetime, command: str, refresh: float | None = None
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

    # Inside a function, for the bundle would leak its names into the page's.
    script = f"(function () {{\n{drawing.bundle_script().result()}\n}})();"
    style = drawing.read("page.css") + _dark_style()
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_shown,
    )
    environment.filters["typeset"] = _typeset
    return environment.from_string(drawing.read("page.html.j2")).render(
        page=page,
        written=written,
        command=command,
        refresh=refresh,
        gradient_meaning=theme.meaning(page.results.plan.gradient_column).rstrip("."),
        provenance=tabulate_provenance(page.results),
        reproduction=_reproduction(page, allow_mixed="--allow-mixed" in shlex.split(command)),
        chart=chart,
        file_name=name_file,
        swatch=_swatch,
        style=style,
        script=script,
        content=lambda: _deflate(_pack({"config": share_config(), "charts": charts})),
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
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


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
def share_config() -> dict[str, Any]:
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
