"""The README is run as it stands, installing aside."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def command_under(heading):
    """The first bash block below a heading, its continuation lines joined."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block, f"no command under {heading!r}"
    return block.group(1).replace("\\\n", " ").strip()


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A checkout in which the quickstart command was run with this environment's Python."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("harness", "analysis", "grids"):
        shutil.copytree(ROOT / name, checkout / name)
    installing, ran = re.split(
        r"(?=python -m harness\.run)", command_under("Quickstart"), maxsplit=1
    )
    assert "pip install -c constraints.txt" in installing
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ran],
        cwd=checkout,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout, done


@pytest.mark.ray
def test_the_quickstart_ends_in_rows_a_report_and_verdicts(quickstart):
    checkout, done = quickstart
    report = checkout / "results" / "quickstart" / "report"
    assert len(list((checkout / "results/quickstart/trials").glob("*.parquet"))) == 100
    assert (report / "index.html").stat().st_size > 100_000
    verdicts = json.loads((report / "verdicts.json").read_text(encoding="utf-8"))
    assert verdicts
    assert "report/index.html" in done.stdout
    for claim in ("C1", "C3", "C4"):
        assert claim in done.stdout


@pytest.mark.ray
def test_running_the_quickstart_again_trains_nothing(quickstart):
    checkout, _ = quickstart
    again = subprocess.run(
        [sys.executable, "-m", "harness.run", "grids/quickstart.yaml"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "100 trials" in again.stdout + again.stderr
    assert "nothing" in (again.stdout + again.stderr).lower()


def test_the_test_command_is_the_one_ci_calls():
    assert re.search(r"&&\s+pytest -n 2 --dist loadfile$", command_under("Tests"))
    assert "/^## Tests$/" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_tree_names_every_package_and_command_and_nothing_that_is_not_there():
    tree = README.partition("```text\n")[2].partition("```")[0]
    folder, named = "", set()
    for line in tree.splitlines():
        entry = line.split()[0]
        folder = folder if line.startswith(" ") else entry
        path = folder + entry if line.startswith(" ") else entry
        assert (ROOT / path).exists(), f"{path} is in the README's tree and nowhere else"
        named.add(path)
    for package in ("harness", "analysis"):
        inner = {
            f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / package).rglob("__init__.py")
        }
        assert inner <= named
        commands = re.search(rf"^{package}/ .*$", tree, re.MULTILINE)
        assert commands
        for module in (ROOT / package).glob("[!_]*.py"):
            if "__main__" in module.read_text(encoding="utf-8"):
                assert re.search(rf"\b{module.stem}\b", commands[0]), f"{module.stem} is missing"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 175
