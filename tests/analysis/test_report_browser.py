"""The page in a real browser: without a script, on a phone, on paper, by keyboard and by ear."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import zlib
from importlib import resources, util

import numpy as np
import pytest

from analysis import report
from analysis.page import drawing
from tests.analysis.conftest import Study, write_study

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    study = Study(diverges=lambda t: t.placement == "none" and t.depth == 14 and t.seed < 2)
    write_study(folder, study, rng=np.random.default_rng(0))
    assert report.main([str(folder)]) == 0
    return folder / "report" / "index.html"


@pytest.fixture
def ask(page, tmp_path):
    """What an expression of JavaScript gives on the page in a window of so many pixels."""

    def ask(expression: str, *, width: int, library: str = "", dark: bool = False):
        text = re.sub(r'<meta http-equiv="Content-Sec[^>]*>', "", page.read_text(encoding="utf-8"))
        question = (
            f"(async () => {expression})().catch(String)"
            ".then((found) => parent.postMessage(JSON.stringify(found), '*'))"
        )
        asking = (
            f"<script>{library}</script><script>addEventListener('load', () => {question})</script>"
        )
        (tmp_path / "page.html").write_text(text.replace("</body>", f"{asking}</body>"), "utf-8")
        # No window of Chromium is as narrow as a phone; a frame in one is.
        (tmp_path / "frame.html").write_text(
            "<script>onmessage = (said) => (document.title = said.data)</script>"
            f"<iframe src='page.html' style='border: 0; width: {width}px; height: 800px'></iframe>",
            "utf-8",
        )
        run = subprocess.run(
            [
                str(CHROMIUM),
                *FLAGS,
                *("--window-size=1400,900", "--virtual-time-budget=60000", "--dump-dom"),
                *(["--blink-settings=preferredColorScheme=0"] if dark else []),
                f"--user-data-dir={tmp_path / 'profile'}",
                (tmp_path / "frame.html").as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return json.loads(
            html.unescape(re.search("<title>(.*?)</title>", run.stdout, re.DOTALL)[1])
        )

    return ask


OPEN = "document.querySelectorAll('details').forEach((box) => (box.open = true));"


@pytest.mark.skipif(util.find_spec("axe_core_python") is None, reason="no axe here")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_keeps_a_reader_without_eyes_or_mouse_out(ask, width, dark):
    library = resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    said = ask(
        f"""{{ {OPEN} const {{ passes, violations }} = await axe.run(document);
        return {{ passes: passes.length, violations: violations.map((found) =>
            [found.id, ...found.nodes.map((node) => node.html.slice(0, 200))]) }}; }}""",
        width=width,
        dark=dark,
        library=library,
    )
    assert said["violations"] == []
    assert said["passes"] > 25


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off(ask, width):
    said = ask(
        f"""{{ {OPEN} const root = document.documentElement;
        const out = [...document.querySelectorAll(".chart, .chart text, p, h1, h2, h3, h4, summary")]
            .filter((part) => {{ const box = part.getBoundingClientRect();
                return box.left < 0 || box.right > root.clientWidth; }});
        return [innerWidth, root.scrollWidth - root.clientWidth, out.map((part) => part.outerHTML)]; }}""",
        width=width,
    )
    assert said == [width, 0, []]


def test_a_phone_shows_the_answers_and_unfolds_what_is_asked_for(ask):
    height = "document.documentElement.scrollHeight"
    short, opened, tall = ask(
        f"""{{ const short = {height}; location.hash = "#differences";
        await new Promise((done) => setTimeout(done, 100));
        const opened = [...document.querySelectorAll(".fold[open]")].map((it) => it.parentNode.id);
        {OPEN} return [short, opened, {height}]; }}""",
        width=390,
    )
    assert short < 7_000
    assert tall > 2 * short
    assert opened == ["differences"]


def test_a_table_sorts_by_its_heads_and_says_how(ask):
    said = ask(
        """{ const table = document.querySelector("#figure-forest-accuracy-after-before table");
        const heads = [...table.tHead.rows[0].cells];
        const place = heads.findIndex((head) => head.textContent === "pairs") + 1;
        const read = () => [heads[place].getAttribute("aria-sort"),
            [...table.tBodies[0].rows].map((row) => row.cells[place].textContent)];
        const seen = [read()];
        for (const _ of [1, 2]) { heads[place].querySelector("button").click(); seen.push(read()); }
        return seen; }""",
        width=1280,
    )
    (unsaid, as_written), (rising, up), (falling, down) = said
    assert (unsaid, rising, falling) == (None, "ascending", "descending")

    def value(cell):
        return float(cell.replace("\N{MINUS SIGN}", "-"))

    assert up == sorted(as_written, key=value)
    assert down == sorted(as_written, key=value, reverse=True)
    assert up != as_written


def test_a_mark_tells_its_numbers(ask):
    said = ask(
        """{ const mark = document.querySelector("#figure-forest-accuracy-after-before title").parentNode;
        const title = mark.textContent; const tip = document.querySelector(".tip");
        const before = tip.hidden;
        mark.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
        return [before, tip.hidden, title, tip.textContent, mark.querySelector("title")]; }""",
        width=1280,
    )
    hidden_first, hidden_then, title, shown, left = said
    assert (hidden_first, hidden_then, left) == (True, False, None)
    assert shown == title
    assert re.search(r"; .+: [+\u2212]?\d", shown)


def test_every_chart_is_printed_though_no_script_runs(page, tmp_path):
    text = re.sub("<script>.*</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    charts = text.count('<svg class="marks"')
    spot = '<path d="M0,0h9v9z" fill="#01fe03"/>'  # a colour that nothing else has
    marked = re.sub(r'(<svg class="marks"[^>]*>)', rf"\1{spot}", text)
    (tmp_path / "marked.html").write_text(marked, encoding="utf-8")
    drawing.print_pdf(tmp_path / "marked.html", tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    streams = re.findall(rb"stream\r?\n(.*?)endstream", content, flags=re.DOTALL)
    packed = [part for part in streams if part.startswith(b"\x78")]
    painted = b"".join(zlib.decompressobj().decompress(part) for part in packed)
    assert charts > 15
    assert len(re.findall(rb"\.0039\d* \.996\d* \.011[78]\d* rg", painted)) == charts
