"""The floors of the two packages: as written in the imports, and as met when a package is absent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

IMPORTER = """
import importlib, importlib.abc, json, sys

absent, modules = json.loads(sys.argv[1])


class Absence(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is absent", name=name)


sys.meta_path.insert(0, Absence())
broken = {}
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        broken[module] = str(error)
print(json.dumps([broken, sorted(sys.modules)]))
"""


def modules_of(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in dotted]


def import_without(
    absent: Collection[str], modules: Sequence[str]
) -> tuple[dict[str, str], set[str]]:
    """Import `modules` in a fresh interpreter: those that broke and why, and all that is loaded."""
    request = json.dumps([sorted(absent), list(modules)])
    command = [sys.executable, "-c", IMPORTER, request]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    broken, loaded = json.loads(output.splitlines()[-1])
    return broken, set(loaded)


def ours(loaded: Collection[str]) -> set[str]:
    return {name for name in loaded if name.partition(".")[0] in {"harness", "analysis"}}


def test_imports_keep_to_their_floors():
    lint = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", lint], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_packages_import_nothing():
    _, loaded = import_without([], ["harness", "analysis"])
    assert ours(loaded) == {"harness", "analysis"}


def test_training_needs_torch_and_the_standard_library_only():
    absent = {"ray", "pydantic", "pyarrow", "pandas", "yaml", "altair", "rich", "scipy", "sklearn"}
    absent |= {"torchvision", "jinja2", "vl_convert"}
    broken, loaded = import_without(absent, modules_of("harness/training"))
    assert broken == {}
    assert {
        "harness.training.networks",
        "harness.training.gradients",
        "harness.training.images",
    } <= ours(loaded)


def test_only_what_talks_to_ray_needs_it():
    broken, _ = import_without({"ray"}, modules_of("harness"))
    talkers = ("connection", "desk", "fanout", "guard", "news", "nodes", "ray_internals", "worker")
    assert broken == {f"harness.cluster.{name}": "ray is absent" for name in talkers}


def test_analysis_needs_neither_torch_nor_ray_and_of_harness_only_what_is_asked_and_the_rows():
    absent = {"torch", "torchvision", "ray", "pydantic", "yaml", "rich", "sklearn"}
    broken, loaded = import_without(absent, modules_of("analysis"))
    assert broken == {}
    packages = {".".join(name.split(".")[:2]) for name in ours(loaded) if "." in name}
    assert {name for name in packages if name.startswith("harness.")} <= {
        "harness.study",
        "harness.results",
    }


@pytest.mark.parametrize(
    ("package", "module"), [("pydantic", "harness.study.grid"), ("torch", "harness.training.train")]
)
def test_an_absent_package_is_really_absent(package, module):
    broken, _ = import_without({package}, [module])
    assert broken == {module: f"{package} is absent"}


@pytest.mark.parametrize(
    "command",
    [
        *(
            f"harness.{name}"
            for name in ("run", "work", "status", "replay", "upkeep", "placements")
        ),
        *("harness.datasets", "analysis.report", "analysis.calibrate"),
    ],
)
def test_help_imports_nothing_that_takes_seconds(command):
    arguments = ["-X", "importtime", "-m", command, "--help"]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert command.partition(".")[0] in loaded, "nothing was measured"
    assert not loaded & {"torch", "ray", "pandas", "altair", "scipy", "pyarrow"}


def test_the_statistics_can_be_taken_elsewhere(tmp_path):
    """They import numpy, scipy and each other."""
    folder = tmp_path / "analysis"
    shutil.copytree(ROOT / "analysis" / "statistics", folder / "statistics")
    (folder / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import analysis.statistics as s; "
    code += "print(s.__file__); s.holm([0.01, 0.04])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert str(tmp_path) in done.stdout
