"""The file of a user's own network: read where the grid lies, and mistakes told with their line."""

from __future__ import annotations

import os

import pytest

from harness.study.errors import GridError
from harness.study.grid import load_grid
from harness.study.own import digest_source, read_network, recall

BUILD = "def build(shape, classes, depth): ...\n"
GRID = """
seeds: 2
grid:
  - {{architecture: {name}, placement: [before, after], depth: [1, 7]}}
"""


@pytest.fixture
def grid(tmp_path):
    """Write a network and a grid that names it; returns the grid's path."""

    def write(source=BUILD, name="nets/mine.py:build", folder="study"):
        path = tmp_path / folder / "my.yaml"
        (path.parent / "nets").mkdir(parents=True, exist_ok=True)
        (path.parent / "nets/mine.py").write_text(source, encoding="utf-8")
        path.write_text(GRID.format(name=name), encoding="utf-8")
        return path

    return write


def test_the_digest_of_the_file_is_part_of_the_trial_and_its_place_is_not(grid):
    one = load_grid(grid())
    moved = load_grid(grid(name="./nets//mine.py:build", folder="elsewhere"))
    changed = load_grid(grid(BUILD + "# changed\n"))
    assert [trial.id for trial in one.trials] == [trial.id for trial in moved.trials]
    assert not {trial.id for trial in one.trials} & {trial.id for trial in changed.trials}
    assert {trial.architecture for trial in moved.trials} == {"nets/mine.py:build"}
    assert one.networks == (BUILD,)
    assert {trial.architecture_digest for trial in one.trials} == {digest_source(BUILD)}
    assert recall(digest_source(BUILD)) == BUILD


def test_our_own_networks_have_no_digest(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(GRID.format(name="mlp"), encoding="utf-8")
    assert {trial.architecture_digest for trial in load_grid(path).trials} == {""}


def test_a_donor_has_the_same_network(grid):
    path = grid()
    path.write_text(path.read_text().replace("depth: [1, 7]", "depth: 1, flow: none"))
    donor = load_grid(path).trials[0].donor
    assert (donor.placement, donor.program) == ("none", "act, + act")
    assert donor.architecture_digest == digest_source(BUILD)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def build(:\n", "nets/mine.py:1: invalid syntax"),
        ("def make(): ...\ndef bild(): ...\n", "nets/mine.py has no function 'build' at its top level; it has make, bild; did you mean 'bild'?"),
        ("import parts\n" + BUILD, "nets/mine.py:1: imports parts, which lies beside it: only this one file travels to the workers; put all it needs into it"),
        ("from .parts import block\n" + BUILD, "nets/mine.py:1: imports .parts, which lies beside it"),
        ("x = '\0'\n" + BUILD, "nets/mine.py"),
        (BUILD + "#" * 2**20, "is larger than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_with_the_line_of_the_grid(grid, source, told):
    path = grid(source)
    (path.parent / "nets/parts.py").touch()
    with pytest.raises(GridError) as error:
        load_grid(path)
    [mistake] = error.value.mistakes
    assert mistake.startswith(f"{path}:4: grid[0].architecture: ")
    assert told in mistake
    assert "\n" not in mistake


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nets/mine.py", "'nets/mine.py' names no function in a file: write it as nets/mine.py:build"),
        ("nets/other.py:build", "other.py cannot be read: No such file or directory"),
        ("nets/mine.py:bui", "nets/mine.py has no function 'bui' at its top level; it has build; did you mean 'build'?"),
    ],
)  # fmt: skip
def test_a_name_that_names_no_network_is_told_what_to_write(grid, name, told):
    with pytest.raises(GridError, match=r"my\.yaml:4: grid") as error:
        load_grid(grid(name=name))
    assert told in str(error.value)


@pytest.mark.parametrize(
    "source",
    ["class build: ...", "build = 1", "from x import y as build", "try:\n    build = 1\nfinally:\n    pass"],
)  # fmt: skip
def test_any_way_to_bind_the_name_will_do(grid, source):
    assert read_network("nets/mine.py:build", grid(source + "\n").parent)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("placement: aftr", "'aftr' is not a placement of nets/mine.py:build: before, after, "),
        ("pack_size: 2", "nets/mine.py:build trains one seed at a time: pack_size must be 1"),
        ("depth: 0", "0 is not a whole number from 1 to 2,000"),
        ("flow: norm-last", "'norm-last' is not a flow of nets/mine.py:build: own, before, "),
    ],
)
def test_settings_are_checked_without_building_it(grid, settings, told):
    path = grid()
    key = settings.partition(":")[0]
    product = {"architecture": "nets/mine.py:build", "placement": "before", "depth": "1"}
    lines = [f"    {name}: {value}" for name, value in product.items() if name != key]
    path.write_text("\n".join(["seeds: 2", "grid:", "  -", *lines, f"    {settings}"]))
    with pytest.raises(GridError) as error:
        load_grid(path)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "source",
    [
        "from common.parts import WIDTH\n",
        "def late():\n    import common.parts\n",
        "import importlib\nx = importlib.import_module('common.parts')\n",
        "x = __import__('common')\n",
    ],
)
def test_what_python_finds_in_the_working_directory_does_not_travel(
    grid, source, tmp_path, monkeypatch
):
    path = grid(source + BUILD)
    (tmp_path / "common").mkdir()
    (tmp_path / "common/parts.py").write_text("WIDTH = 8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(GridError, match=r"imports common(.parts)?, which lies beside it: only"):
        load_grid(path)


def test_what_is_installed_below_the_working_directory_is_no_sibling(grid, tmp_path, monkeypatch):
    installed = tmp_path / "venv/site-packages"
    (installed / "blockparts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(installed))
    load_grid(grid("import random, torch, blockparts, nowhere_at_all\n" + BUILD))


def test_a_file_is_decoded_as_python_decodes_it(grid):
    path = grid()
    file = path.parent / "nets/mine.py"
    file.write_bytes(b"\xef\xbb\xbf" + BUILD.encode())
    assert load_grid(path).networks == (BUILD,)
    text = "# coding: latin-1\nNAME = '\xe9'\n" + BUILD
    file.write_bytes(text.encode("latin-1"))
    assert load_grid(path).networks == (text,)
    file.write_bytes(b"# coding: nothing\n" + BUILD.encode())
    with pytest.raises(GridError, match=r"mine\.py:1: unknown encoding"):
        load_grid(path)


def test_a_pipe_is_not_waited_for(grid):
    path = grid()
    file = path.parent / "nets/mine.py"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(GridError, match=r"mine\.py is not a file"):
        load_grid(path)
