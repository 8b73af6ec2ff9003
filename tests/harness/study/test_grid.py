"""What a grid may say, and each sentence its author reads when it says something else."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.study.errors import GridError
from harness.study.forms import FORMS
from harness.study.grid import load_grid
from harness.study.records import AnalysisPlan, Settings
from harness.study.trials import PROGRAMS, Trial
from harness.study.tuning import expand_tuning

GRIDS = Path(__file__).parents[3] / "grids"

SEEDS = "seeds: 2\n"
PRODUCT = "grid:\n  - {architecture: resnet, placement: before, depth: 8}\n"
RESNET = ("architecture: resnet", "placement: before", "depth: 8")
SETTINGS = (
    "dataset, architecture, bottleneck, depth, width_factor, growth, norm, norm_groups, "
    "norm_affine, final_norm, activation, flow, epochs, train_images, batch_size, optimizer, lr, "
    "momentum, beta1, beta2, weight_decay, warmup_epochs, label_smoothing, augmentation, "
    "precision, memory_format, compile, threads, pack_size, probe_size, snr_batches, placement"
)
A_NAME = "up to 64 of A-Z, a-z, 0-9, '.', '_' and '-', the first a letter or digit"


def default(line: str) -> str:
    """A grid that is right but for `line`, the third."""
    return f"seeds: 2\ndefaults:\n  {line}\n{PRODUCT}"


def product(*lines: str) -> str:
    """A grid of one product; its first line is the third of the file."""
    return "seeds: 2\ngrid:\n  - " + "\n    ".join(lines) + "\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read_mistakes(path: Path | str, *overrides: str, seeds: str | None = None) -> str:
    with pytest.raises(GridError) as caught:
        load_grid(path, overrides, seeds)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    return str(caught.value)


WRONG = [
    ("an empty file", "", "my.yaml:1: no grid; that is a mapping with 'seeds' and 'grid'"),
    ("only comments", "# later\n", "my.yaml:1: no grid; that is a mapping with 'seeds' and 'grid'"),
    (
        "a list",
        "- seeds: 2\n",
        "my.yaml:1: a list, no grid; that is a mapping with 'seeds' and 'grid'",
    ),
    ("a tab", "seeds: 2\ndefaults:\n\tlr: 0.1\n", "my.yaml:3: a tab; YAML is indented with spaces"),
    ("a NUL", "seeds: 2\nname: a\0b\n", "my.yaml:2: the character U+0000 is not text"),
    (
        "an unclosed list",
        "seeds: [0, 1\ngrid: 3\n",
        "my.yaml:2: not YAML: expected ',' or ']', but got ':', while parsing a flow sequence from line 1",
    ),
    (
        "an unclosed quote",
        SEEDS + PRODUCT + "name: 'my\n",
        "my.yaml:5: not YAML: found unexpected end of stream, while scanning a quoted scalar from line 4",
    ),
    (
        "a file in UTF-16",
        (SEEDS + PRODUCT).encode("utf-16-le"),
        "my.yaml:1: the character U+0000 is not text",
    ),
    (
        "a million seeds one by one",
        "seeds: [" + "1," * 30_000 + "]\n" + PRODUCT,
        "my.yaml:1: more than 20,000 values, its aliases written out",
    ),
    (
        "no space after a colon",
        "seeds: 2\ndefaults:\n  lr:0.1\n  epochs: 3\n",
        "my.yaml:4: not YAML: mapping values are not allowed here",
    ),
    (
        "two documents",
        "seeds: 2\n---\nseeds: 3\n",
        "my.yaml:2: a second document begins; a grid is one",
    ),
    ("an unknown alias", "seeds: *five\n", "my.yaml:1: not YAML: found undefined alias 'five'"),
    (
        "an alias bomb",
        "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ngrid: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
        "my.yaml:1: more than 20,000 values, its aliases written out",
    ),
    (
        "an alias within itself",
        "grid: &a [*a]\n",
        "my.yaml:1: more than 20,000 values, its aliases written out",
    ),
    ("nested without end", "grid: " + "[" * 2000, "my.yaml:1: nested too deeply for a grid"),
    (
        "a tag of Python",
        SEEDS + PRODUCT + "name: !!python/object/apply:os.system [ls]\n",
        (
            "my.yaml:4: name: a grid has no use for the YAML tag '!!python/object/apply:os.system'\n"
            f"my.yaml:4: name: a list cannot name a grid and its folder: {A_NAME}"
        ),
    ),
    (
        "a merge key",
        "seeds: 2\ndefaults: &d {lr: 0.1}\ngrid:\n  - <<: *d\n    architecture: resnet\n    placement: before\n    depth: 8\n",
        "my.yaml:4: grid[0].'<<': YAML's merge is not read; what products share is in defaults",
    ),
    (
        "a list as a key",
        "seeds: 2\n? [1]\n: 2\n" + PRODUCT,
        "my.yaml:1: a key is a word; found a list",
    ),
    ("nothing but seeds", "seeds: 2\n", "my.yaml:1: 'grid' is missing"),
    ("no seeds", PRODUCT, "my.yaml:1: 'seeds' is missing"),
    (
        "no depth",
        product("architecture: resnet", "placement: before"),
        "my.yaml:3: grid[0]: 'depth' is missing, here and in defaults",
    ),
    (
        "a repeated key",
        SEEDS + PRODUCT + "seeds: 3\n",
        "my.yaml:4: seeds: given twice (first on line 1)",
    ),
    (
        "an unknown key",
        "seeds: 2\nmargin: {}\n" + PRODUCT,
        "my.yaml:2: margin: not a key of a grid: name, defaults, seeds, margins, analysis, tuning, programs, grid; did you mean 'margins'?",
    ),
    (
        "a setting at the top",
        "seeds: 2\nepochs: 3\n" + PRODUCT,
        "my.yaml:2: epochs: not a key of a grid: name, defaults, seeds, margins, analysis, tuning, programs, grid; settings stand under defaults or in a product",
    ),
    (
        "an unknown setting",
        default("epoch: 3"),
        f"my.yaml:3: defaults.epoch: not a setting: {SETTINGS}; did you mean 'epochs'?",
    ),
    (
        "an unknown setting of a product",
        product(*RESNET, "learning-rate: 0.1"),
        f"my.yaml:6: grid[0].learning-rate: not a setting: {SETTINGS}",
    ),
    (
        "seeds in a product",
        product(*RESNET, "seed: 3"),
        f"my.yaml:6: grid[0].seed: not a setting: {SETTINGS}; seeds stand at the top of the grid, or in --seeds",
    ),
    (
        "a program in a product",
        product(*RESNET, "program: conv act"),
        f"my.yaml:6: grid[0].program: not a setting: {SETTINGS}; programs stand at the top of the grid, and a product names their placement",
    ),
    (
        "an unknown margin",
        "seeds: 2\nmargins: {accuracy: 1}\n" + PRODUCT,
        "my.yaml:2: margins.accuracy: not a margin: accuracy_points, gradient_ratio, risk; did you mean 'accuracy_points'?",
    ),
    (
        "an unknown choice of the analysis",
        "seeds: 2\nanalysis: {look: 1}\n" + PRODUCT,
        "my.yaml:2: analysis.look: not a choice of the analysis: alpha, gradient_column, control, epochs, looks; did you mean 'looks'?",
    ),
    (
        "tuning without rates",
        "seeds: 2\ntuning: {seeds: 2}\n" + PRODUCT,
        "my.yaml:2: tuning: 'lr' is missing",
    ),
    (
        "tuning at no rate",
        "seeds: 2\ntuning: {lr: [0.1, 0], seeds: 2}\n" + PRODUCT,
        "my.yaml:2: tuning.lr[1]: 0 is not a number above 0, up to 100",
    ),
    (
        "tuning of something else",
        "seeds: 2\ntuning: {lr: 0.1, seeds: 2, momentun: 0.9}\n" + PRODUCT,
        "my.yaml:2: tuning.momentun: not a choice of the tuning stage: lr, weight_decay, seeds, epochs, extensions, common",
    ),
    (
        "tuning that says nothing",
        "seeds: 2\ntuning:\n" + PRODUCT,
        "my.yaml:2: tuning: no value stands here",
    ),
    (
        "tuning of absurd size",
        f"seeds: 2\ntuning: {{lr: [{', '.join(f'0.{i:04}' for i in range(1, 1001))}], weight_decay: [0, 0.1], seeds: 100}}\n"
        + PRODUCT,
        "my.yaml:2: tuning: up to 200,000 trials are too many; 100,000 at most",
    ),
    (
        "tuning that is no mapping",
        "seeds: 2\ntuning: [0.1]\n" + PRODUCT,
        "my.yaml:2: tuning: a list is not a mapping of 'key: value'",
    ),
    (
        "a torchvision model without batch norm",
        product("architecture: torchvision/vgg16", "placement: before", "depth: 16"),
        "my.yaml:3: grid[0].architecture: torchvision/vgg16 has no batch norm; torchvision/vgg16_bn has; did you mean 'torchvision/vgg16_bn'?",
    ),
    (
        "a placement torchvision's model cannot have",
        product("architecture: torchvision/vgg16_bn", "placement: after-add", "depth: 16"),
        "my.yaml:4: grid[0].placement: 'after-add' is not a placement of torchvision/vgg16_bn: before, after, after-inner, none; it has no batch norm that ends a residual branch ahead of an addition and a ReLU",
    ),
    (
        "a pack of torchvision's models",
        product(
            "architecture: torchvision/resnet18", "placement: before", "depth: 18", "pack_size: 2"
        ),
        "my.yaml:6: grid[0].pack_size: torchvision/resnet18 trains one seed at a time: pack_size must be 1",
    ),
    (
        "instance norm without maps",
        product("architecture: mlp", "placement: before", "depth: 3", "norm: [layer, instance]"),
        "my.yaml:6: grid[0].norm[1]: mlp has no maps whose pixels instance norm could average over",
    ),
    (
        "instance norm of one pixel",
        product(
            "architecture: vgg", "placement: none", "depth: 11", "dataset: mnist", "norm: instance"
        ),
        "my.yaml:7: grid[0].norm: in vgg instance norm needs images of 32 pixels: 16 times smaller maps have one, and no spread",
    ),
    (
        "a norm of another name",
        default("norm: layernorm"),
        "my.yaml:3: defaults.norm: 'layernorm' is not a norm: batch, layer, group, instance; did you mean 'layer'?",
    ),
    (
        "another depth than torchvision's",
        product("architecture: torchvision/resnet18", "placement: before", "depth: 34"),
        "my.yaml:5: grid[0].depth: 34 is not a depth of torchvision/resnet18, which has 18",
    ),
    (
        "an arm that borrows what it has",
        product(
            "architecture: plain", "placement: [before, after]", "depth: 8", "flow: [own, before]"
        ),
        "my.yaml:6: grid[0].flow: 'before' would borrow the flow it has; give each such arm a product of its own, with the other placement's flow",
    ),
    (
        "Norway: on",
        default("epochs: on"),
        "my.yaml:3: defaults.epochs: YAML reads on, off, yes, no as booleans and found True",
    ),
    (
        "Norway: no",
        product("architecture: resnet", "placement: no", "depth: 8"),
        "my.yaml:4: grid[0].placement: YAML reads on, off, yes, no as booleans and found False",
    ),
    (
        "a boolean for a number",
        default("epochs: true"),
        "my.yaml:3: defaults.epochs: true is not a whole number from 1 to 10,000",
    ),
    (
        "a number for a boolean",
        default("norm_affine: 1"),
        "my.yaml:3: defaults.norm_affine: 1 is not a boolean: true, false",
    ),
    (
        "an exponent without a point",
        default("lr: 1e-3"),
        "my.yaml:3: defaults.lr: YAML reads '1e-3' as text; write 1.0e-3",
    ),
    (
        "an exponent without a sign",
        default("lr: 1.5e3"),
        "my.yaml:3: defaults.lr: YAML reads '1.5e3' as text; write 1.5e+3",
    ),
    (
        "an exponent in a whole number",
        default("epochs: 1e2"),
        "my.yaml:3: defaults.epochs: YAML reads '1e2' as text; write 100",
    ),
    (
        "a number in quotes",
        default("lr: '0.1'"),
        "my.yaml:3: defaults.lr: '0.1' is text; write it without quotes",
    ),
    (
        "octal",
        default("epochs: 010"),
        "my.yaml:3: defaults.epochs: YAML reads '010' as 8; write 10",
    ),
    (
        "a leading zero",
        default("epochs: 08"),
        "my.yaml:3: defaults.epochs: YAML reads '08' as text; write 8",
    ),
    (
        "sexagesimal",
        default("epochs: 10:30"),
        "my.yaml:3: defaults.epochs: YAML reads '10:30' in base 60; write the number out",
    ),
    (
        "null",
        default("epochs: ~"),
        "my.yaml:3: defaults.epochs: null is not a whole number from 1 to 10,000",
    ),
    ("no value", default("epochs:"), "my.yaml:3: defaults.epochs: no value stands here"),
    (
        "None for none",
        product("architecture: resnet", "placement: None", "depth: 8"),
        "my.yaml:4: grid[0].placement: 'None' is not a placement of resnet: before, after, after-inner, after-relu, after-add, none; did you mean 'none'?",
    ),
    (
        "null for none",
        product("architecture: resnet", "placement: null", "depth: 8"),
        "my.yaml:4: grid[0].placement: null is not a placement of resnet: before, after, after-inner, after-relu, after-add, none",
    ),
    (
        "a comma for a point",
        default("lr: 0,1"),
        "my.yaml:3: defaults.lr: '0,1' is text; write 0.1 with a point, or a list as [0.0, 1.0]",
    ),
    (
        "a list without brackets",
        product("architecture: resnet", "placement: before, after", "depth: 8"),
        "my.yaml:4: grid[0].placement: 'before, after' is not a placement of resnet: before, after, after-inner, after-relu, after-add, none; a list is written [a, b]",
    ),
    (
        "not a number",
        default("lr: .nan"),
        "my.yaml:3: defaults.lr: nan is not a number above 0, up to 100",
    ),
    (
        "infinity",
        default("lr: .inf"),
        "my.yaml:3: defaults.lr: inf is not a number above 0, up to 100",
    ),
    (
        "negative",
        default("lr: -0.1"),
        "my.yaml:3: defaults.lr: -0.1 is not a number above 0, up to 100",
    ),
    (
        "zero",
        default("epochs: 0"),
        "my.yaml:3: defaults.epochs: 0 is not a whole number from 1 to 10,000",
    ),
    (
        "huge",
        default("epochs: 1000000000"),
        "my.yaml:3: defaults.epochs: 1000000000 is not a whole number from 1 to 10,000",
    ),
    (
        "a fraction for a whole number",
        default("epochs: 2.5"),
        "my.yaml:3: defaults.epochs: 2.5 is not a whole number from 1 to 10,000",
    ),
    (
        "a batch of one",
        default("batch_size: 1"),
        "my.yaml:3: defaults.batch_size: 1 is not a whole number from 2 to 65,536",
    ),
    (
        "a mapping for a number",
        default("lr: {a: 1}"),
        "my.yaml:3: defaults.lr: a mapping is not a number above 0, up to 100",
    ),
    (
        "a list in a list",
        default("lr: [[0.1]]"),
        "my.yaml:3: defaults.lr[0]: a list is not a number above 0, up to 100",
    ),
    (
        "an empty list",
        product("architecture: resnet", "placement: []", "depth: 8"),
        "my.yaml:4: grid[0].placement: an empty list names no trial",
    ),
    ("an empty grid", "seeds: 2\ngrid: []\n", "my.yaml:2: grid: an empty list names no trial"),
    (
        "a mapping for the grid",
        "seeds: 2\ngrid: {architecture: resnet}\n",
        "my.yaml:2: grid: a mapping is not a list of products, each begun by '- '",
    ),
    (
        "text for a product",
        "seeds: 2\ngrid: [resnet]\n",
        "my.yaml:2: grid[0]: 'resnet' is not a mapping of 'key: value'",
    ),
    (
        "a list for a section",
        "seeds: 2\ndefaults: [1]\n" + PRODUCT,
        "my.yaml:2: defaults: a list is not a mapping of 'key: value'",
    ),
    (
        "duplicates in a list",
        product("architecture: resnet", "placement: before", "depth: [8, 14, 8]"),
        "my.yaml:5: grid[0].depth: given twice: 8",
    ),
    (
        "duplicates that are spelled apart",
        default("lr: [1, 1.0]"),
        "my.yaml:3: defaults.lr: given twice: 1.0",
    ),
    (
        "an unknown data set",
        default("dataset: cifar"),
        "my.yaml:3: defaults.dataset: 'cifar' is not a data set: digits, cifar10, cifar100, mnist, fashion-mnist, svhn, synthetic, synthetic:..., imagefolder:..., arrays:...; did you mean 'cifar10'?",
    ),
    (
        "a folder of images without its digest",
        default("dataset: imagefolder:flowers:64"),
        "my.yaml:3: defaults.dataset: the digest of its files is missing: `python -m harness.datasets imagefolder:flowers:64` prints it",
    ),
    (
        "an unknown architecture",
        product("architecture: resnt", "placement: before", "depth: 8"),
        "my.yaml:3: grid[0].architecture: 'resnt' is not an architecture: mlp, vgg, plain, resnet, preresnet, densenet, torchvision/MODEL, FILE.py:FUNCTION; did you mean 'resnet'?",
    ),
    (
        "letters that look alike",
        product("architecture: r\u0435snet", "placement: before", "depth: 8"),
        "my.yaml:3: grid[0].architecture: 'r\u0435snet' (that is 'r\\u0435snet') is not an architecture: mlp, vgg, plain, resnet, preresnet, densenet, torchvision/MODEL, FILE.py:FUNCTION; did you mean 'resnet'?",
    ),
    (
        "images that fill any memory",
        default("dataset: synthetic:3x999x999x10x9999999"),
        "my.yaml:3: defaults.dataset: its images have 29,940,027,005,997 bytes; 34,359,738,368 at most",
    ),
    (
        "a data set of too many digits",
        default(f"dataset: synthetic:1x8x8x2x{'9' * 5000}"),
        "my.yaml:3: defaults.dataset: 'synthetic:' goes on with channels x height x width x classes x images: 3x32x32x10x60000",
    ),
    (
        "an unknown word",
        default("precision: bf16"),
        "my.yaml:3: defaults.precision: 'bf16' is not a precision: float32, bfloat16; did you mean 'bfloat16'?",
    ),
    (
        "a mistyped placement",
        product("architecture: resnet", "placement: [before, aftr]", "depth: 8"),
        "my.yaml:4: grid[0].placement[1]: 'aftr' is not a placement of resnet: before, after, after-inner, after-relu, after-add, none; did you mean 'after'?",
    ),
    (
        "a placement that one architecture lacks",
        product("architecture: [resnet, plain]", "placement: after-add", "depth: 8"),
        "my.yaml:4: grid[0].placement: 'after-add' is not a placement of plain: before, after, none; resnet has it: write a product for each",
    ),
    (
        "a placement inherited in vain",
        "seeds: 2\ndefaults:\n  placement: [before, after-add]\ngrid:\n  - {architecture: plain, depth: 8}\n  - {architecture: resnet, depth: 8}\n",
        "my.yaml:3: defaults.placement[1]: 'after-add' is not a placement of plain: before, after, none; did you mean 'after'?",
    ),
    (
        "a depth that resnet lacks",
        product("architecture: resnet", "placement: before", "depth: [20, 21]"),
        "my.yaml:5: grid[0].depth[1]: 21 is not a depth of resnet, which has 6n+2: 20 or 26",
    ),
    (
        "a depth that vgg lacks",
        product("architecture: vgg", "placement: before", "depth: 17"),
        "my.yaml:5: grid[0].depth: 17 is not a depth of vgg, which has 11, 13, 16 or 19",
    ),
    (
        "a depth that densenet lacks",
        product("architecture: densenet", "placement: before", "depth: 43"),
        "my.yaml:5: grid[0].depth: 43 is not a depth of densenet, which has 6n+4: 40 or 46",
    ),
    (
        "a flow that mlp lacks",
        product("architecture: mlp", "placement: before", "depth: 8", "flow: after-add"),
        "my.yaml:6: grid[0].flow: 'after-add' is not a flow of mlp: own, before, after, none; did you mean 'after'?",
    ),
    (
        "a signal without noise",
        default("snr_batches: 1"),
        "my.yaml:3: defaults.snr_batches: 1 part of the probe batch has no variance; 0 for none, or at least 2",
    ),
    (
        "a program that does not parse",
        "seeds: 2\nprograms:\n  resnet:\n    mine: conv relu conv +\n" + PRODUCT,
        "my.yaml:4: programs.resnet.mine: 'relu' is not an operation: conv, +, norm, act",
    ),
    (
        "a program without end",
        "seeds: 2\nprograms:\n  mlp:\n    mine: linear" + " act" * 40_000 + "\n" + PRODUCT,
        "my.yaml:4: programs.mlp.mine: a block has 100 operations at most, this one has 40,001",
    ),
    (
        "a program of another architecture",
        "seeds: 2\nprograms:\n  resnet:\n    mine: conv norm act\n" + PRODUCT,
        "my.yaml:4: programs.resnet.mine: without norm and act a block of resnet is 'conv conv +', this one is 'conv'",
    ),
    (
        "a program that is there already",
        "seeds: 2\nprograms:\n  resnet:\n    mine: conv  norm act conv norm + act\n" + PRODUCT,
        "my.yaml:4: programs.resnet.mine: this program is resnet's placement 'before' already",
    ),
    (
        "a placement that is there already",
        "seeds: 2\nprograms:\n  mlp:\n    before: linear act norm\n" + PRODUCT,
        (
            "my.yaml:4: programs.mlp.before: mlp has this placement already; choose another name\n"
            "my.yaml:4: programs.mlp.before: this program is mlp's placement 'after' already"
        ),
    ),
    (
        "a placement badly named",
        "seeds: 2\nprograms:\n  mlp:\n    My Order: linear norm act norm\n" + PRODUCT,
        "my.yaml:4: programs.mlp.'My Order': a placement is named in up to 40 of a-z, 0-9 and '-', the first not '-'",
    ),
    (
        "a program of no architecture",
        "seeds: 2\nprograms:\n  resnext: {}\n" + PRODUCT,
        "my.yaml:3: programs.resnext: not an architecture: mlp, vgg, plain, resnet, preresnet, densenet; did you mean 'resnet'?",
    ),
    (
        "a program that is a list",
        "seeds: 2\nprograms:\n  mlp:\n    mine: [linear, act]\n" + PRODUCT,
        "my.yaml:4: programs.mlp.mine: a list is not a program, such as 'conv norm act'",
    ),
    (
        "a name that climbs",
        "name: ../other\n" + SEEDS + PRODUCT,
        f"my.yaml:1: name: '../other' cannot name a grid and its folder: {A_NAME}",
    ),
    (
        "a name with control characters",
        'name: "a\\u0007b"\n' + SEEDS + PRODUCT,
        f"my.yaml:1: name: 'a\\x07b' cannot name a grid and its folder: {A_NAME}",
    ),
    (
        "a name written from right to left",
        'name: "a\u202eb"\n' + SEEDS + PRODUCT,
        "my.yaml:1: an invisible character, U+202E (RIGHT-TO-LEFT OVERRIDE), after 'name: \"a'; put a space there, or nothing",
    ),
    (
        "a name of letters that combine",
        "name: re\u0301s\n" + SEEDS + PRODUCT,
        f"my.yaml:1: name: 're\u0301s' (that is 're\\u0301s') cannot name a grid and its folder: {A_NAME}",
    ),
    (
        "a name longer than a file's",
        f"name: {'a' * 300}\n" + SEEDS + PRODUCT,
        f"my.yaml:1: name: '{'a' * 60}'... cannot name a grid and its folder: {A_NAME}",
    ),
    (
        "a name that is an option",
        "name: -rf\n" + SEEDS + PRODUCT,
        f"my.yaml:1: name: '-rf' cannot name a grid and its folder: {A_NAME}",
    ),
    (
        "a name that is a number",
        "name: 42\n" + SEEDS + PRODUCT,
        f"my.yaml:1: name: 42 cannot name a grid and its folder: {A_NAME}",
    ),
    (
        "no seeds at all",
        "seeds: 0\n" + PRODUCT,
        "my.yaml:1: seeds: 0 is not a whole number from 1 to 100,000, nor a list of seeds",
    ),
    (
        "a negative seed",
        "seeds: [0, -1]\n" + PRODUCT,
        "my.yaml:1: seeds[1]: -1 is not a whole number from 0 to 2,147,483,647",
    ),
    ("a seed twice", "seeds: [0, 1, 0]\n" + PRODUCT, "my.yaml:1: seeds: given twice: 0"),
    (
        "seeds as text",
        "seeds: 0-9\n" + PRODUCT,
        "my.yaml:1: seeds: '0-9' is not a whole number from 1 to 100,000, nor a list of seeds",
    ),
    (
        "a margin of zero",
        "seeds: 2\nmargins: {accuracy_points: 0}\n" + PRODUCT,
        "my.yaml:2: margins.accuracy_points: 0 is not a number above 0, up to 50",
    ),
    (
        "a ratio below one",
        "seeds: 2\nmargins: {gradient_ratio: 0.8}\n" + PRODUCT,
        "my.yaml:2: margins.gradient_ratio: 0.8 is not a number above 1, up to 10",
    ),
    (
        "an incomparable gradient",
        "seeds: 2\nanalysis: {gradient_column: wgrad_norm}\n" + PRODUCT,
        "my.yaml:2: analysis.gradient_column: 'wgrad_norm' is not a gradient column: actgrad_total, actgrad_rel, effective_grad, update_ratio",
    ),
    (
        "an alpha above a half",
        "seeds: 2\nanalysis: {alpha: 0.95}\n" + PRODUCT,
        "my.yaml:2: analysis.alpha: 0.95 is not a number above 0, below 0.5",
    ),
    (
        "a pack that is not full",
        "seeds: 6\ndefaults:\n  pack_size: 4\n" + PRODUCT,
        "my.yaml:3: defaults.pack_size: a pack of 4 trains seeds 4 to 7 together; 6, 7 not among the seeds",
    ),
    (
        "a warm-up longer than the training",
        default("{epochs: 3, warmup_epochs: [2, 5]}"),
        "my.yaml:3: defaults.warmup_epochs: a warm-up of 5 epochs does not fit into 3; set warmup_epochs to 3 or less",
    ),
    (
        "a control that is no placement of the grid",
        f"analysis: {{control: befor}}\n{SEEDS}{PRODUCT}",
        "my.yaml:1: analysis.control: 'befor' is not a placement of this grid: before; did you mean 'before'?",
    ),
    (
        "a control that is compared with itself",
        f"analysis: {{control: before}}\n{SEEDS}{PRODUCT}",
        "my.yaml:1: analysis.control: a control is compared with 'before': name a placement that is known to differ",
    ),
    (
        "a deciding length that the grid does not train",
        f"analysis: {{epochs: 12}}\n{SEEDS}{PRODUCT}",
        "my.yaml:1: analysis.epochs: 12 is not a training length of this grid: 200",
    ),
    (
        "looks that go back",
        f"analysis: {{looks: [5, 3]}}\n{SEEDS}{PRODUCT}",
        "my.yaml:1: analysis.looks: looks come in the order of their seeds: [3, 5]",
    ),
    (
        "a torchvision model without its prefix",
        default("architecture: resnet18"),
        "my.yaml:3: defaults.architecture: 'resnet18' is not an architecture: mlp, vgg, plain, resnet, preresnet, densenet, torchvision/MODEL, FILE.py:FUNCTION; did you mean 'torchvision/resnet18'?",
    ),
    (
        "the begin of a setting",
        default("width: 0.5"),
        f"my.yaml:3: defaults.width: not a setting: {SETTINGS}; did you mean 'width_factor'?",
    ),
    (
        "a list in a list",
        product("architecture: [[mlp]]", "placement: before", "depth: 8"),
        "my.yaml:3: grid[0].architecture[0]: a list is not an architecture: mlp, vgg, plain, resnet, preresnet, densenet, torchvision/MODEL, FILE.py:FUNCTION",
    ),
    (
        "a no-break space",
        "seeds: 2  # a\xa0comment\ndefaults:\n  lr:\xa00.1\n" + PRODUCT,
        "my.yaml:3: an invisible character, U+00A0 (NO-BREAK SPACE), after 'lr:'; put a space there, or nothing",
    ),
    (
        "adamw at the rate that is sgd's default",
        product(*RESNET, "optimizer: adamw"),
        "my.yaml:6: grid[0].optimizer: adamw trains badly at sgd's default rate of 0.1; set lr as well, such as lr: 0.001",
    ),
    (
        "adamw for all, tuned, at the rate that is sgd's default",
        f"tuning: {{lr: [0.001, 0.002], seeds: 2}}\ndefaults: {{optimizer: [sgd, adamw]}}\n{SEEDS}{PRODUCT}",
        "my.yaml:2: defaults.optimizer: adamw trains badly at sgd's default rate of 0.1; set lr as well, such as lr: 0.001",
    ),
    (
        "momentum of adamw",
        product(*RESNET, "optimizer: adamw", "lr: 0.001", "momentum: 0.9"),
        "my.yaml:8: grid[0].momentum: momentum is for optimizer: sgd; adamw has beta1 and beta2",
    ),
    (
        "betas of sgd",
        product(*RESNET, "beta1: 0.8", "beta2: 0.95"),
        (
            "my.yaml:6: grid[0].beta1: beta1 is for optimizer: adamw; sgd has momentum\n"
            "my.yaml:7: grid[0].beta2: beta2 is for optimizer: adamw; sgd has momentum"
        ),
    ),
    (
        "momentum of both optimizers",
        product(*RESNET, "optimizer: [sgd, adamw]", "lr: 0.01", "momentum: 0.9"),
        "my.yaml:8: grid[0].momentum: momentum is for optimizer: sgd; adamw has beta1 and beta2; give each optimizer a product of its own",
    ),
    (
        "a default momentum that adamw inherits",
        "seeds: 2\ndefaults:\n  momentum: 0.95\n"
        + PRODUCT
        + "  - {architecture: plain, placement: before, depth: 8, optimizer: adamw, lr: 0.001}\n",
        "my.yaml:3: defaults.momentum: momentum is for optimizer: sgd; adamw has beta1 and beta2; set momentum in the products with optimizer: sgd, not for all",
    ),
    (
        "betas as torch has them",
        product(*RESNET, "betas: [0.9, 0.95]"),
        f"my.yaml:6: grid[0].betas: not a setting: {SETTINGS}; did you mean 'beta1' and 'beta2'?",
    ),
    (
        "groups of a batch norm",
        product(*RESNET, "norm_groups: 4"),
        "my.yaml:6: grid[0].norm_groups: norm_groups is for norm: group",
    ),
    (
        "groups where some norms have none",
        product(*RESNET, "norm: [group, layer]", "norm_groups: 4"),
        "my.yaml:7: grid[0].norm_groups: norm_groups is for norm: group; give each norm a product of its own",
    ),
    (
        "more training images than there are",
        product(*RESNET, "dataset: [digits, cifar10]", "train_images: [1000, 1078]"),
        "my.yaml:7: grid[0].train_images: digits has 1,077 training images, fewer than 1,078; lower train_images, or say 0 for all",
    ),
    (
        "fewer training images than classes",
        product(*RESNET, "dataset: cifar100", "train_images: 99", "batch_size: 16"),
        "my.yaml:7: grid[0].train_images: 99 training images are fewer than the 100 classes of cifar100; raise train_images",
    ),
    (
        "fewer training images than a batch",
        product(*RESNET, "train_images: 100"),
        "my.yaml:6: grid[0].train_images: 100 training images are fewer than one batch of 128; raise train_images or lower batch_size",
    ),
    (
        "a batch larger than the data set",
        product(*RESNET, "dataset: digits", "batch_size: [64, 2048]"),
        "my.yaml:7: grid[0].batch_size: digits has 1,077 training images, fewer than one batch of 2,048; lower batch_size",
    ),
    (
        "a trial named by two products",
        "seeds: 2\ngrid:\n  - {architecture: [plain, resnet], placement: [before, after], depth: 8}\n  - {architecture: resnet, placement: [none, before], depth: [8, 14]}\n",
        "my.yaml:4: grid[1]: 2 of its trials stand in grid[0] on line 3 already, such as cifar10 resnet-8 before seed 0",
    ),
    (
        "a grid of absurd size",
        "seeds: 1000\ngrid:\n  - {architecture: mlp, placement: [before, after], depth: [1,2,3,4,5,6,7,8,9,10], threads: [1,2,3,4,5,6,7,8,9,10], epochs: [10,11,12,13,14,15,16,17,18,19], growth: [1,2,3,4,5,6,7,8,9,10], probe_size: [10,11,12,13,14,15,16,17,18,19]}\n",
        "my.yaml:2: grid: 200,000,000 trials are too many; 100,000 at most",
    ),
]


@pytest.mark.parametrize(
    ("text", "message"), [case[1:] for case in WRONG], ids=[c[0] for c in WRONG]
)
def test_a_wrong_grid_is_told_what_to_do(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, text)
    assert read_mistakes("my.yaml") == message


def test_all_mistakes_are_told_at_once_in_the_order_of_the_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("full.yaml").write_text(
        """\
name: full
seeds: 3
defaults:
  epochs: on
  dataset: cifar10
grid:
  - architecture: resnet
    depth: 20
    placement: [before, aftr]
  - architecture: mlp
    depth: [4, 8]
    lr: 1e-3
    placement: after

seeds: 5
"""
    )
    assert (
        read_mistakes("full.yaml", "epoch=3")
        == f"""\
command line: epoch=3: not a setting: {SETTINGS}; did you mean 'epochs'?
full.yaml:4: defaults.epochs: YAML reads on, off, yes, no as booleans and found True
full.yaml:9: grid[0].placement[1]: 'aftr' is not a placement of resnet: before, after, after-inner, after-relu, after-add, none; did you mean 'after'?
full.yaml:12: grid[1].lr: YAML reads '1e-3' as text; write 1.0e-3
full.yaml:15: seeds: given twice (first on line 2)"""
    )


def test_of_many_mistakes_the_first_are_told_and_the_rest_is_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, SEEDS + PRODUCT + "".join(f"key{index}: 1\n" for index in range(70)))
    *told, last = read_mistakes("my.yaml").splitlines()
    assert len(told) == 50
    assert last == "my.yaml: 20 more mistakes"


def test_a_file_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, SEEDS + PRODUCT)
    Path("grids").mkdir()
    write(Path("grids"), "")
    assert read_mistakes("mi.yaml") == "mi.yaml: no such file; did you mean 'my.yaml'?"
    assert read_mistakes("other/my.yaml") == "other/my.yaml: no such file"
    assert read_mistakes("grids") == "grids: a folder; the grids in it: my.yaml"
    assert read_mistakes("my.yaml/x.yaml") == "my.yaml/x.yaml: cannot be read: Not a directory"
    Path("latin.yaml").write_bytes("seeds: 2\n# für später\n".encode("latin-1"))
    assert (
        read_mistakes("latin.yaml") == "latin.yaml:2: not UTF-8 (byte 0xFC); save the file as UTF-8"
    )
    os.mkfifo("pipe.yaml")  # whose reader would wait for ever
    for odd in ("pipe.yaml", "/dev/zero"):
        assert read_mistakes(odd) == f"{odd}: a pipe or a device; a grid is a file"
    Path("circle.yaml").symlink_to("circle.yaml")
    assert (
        read_mistakes("circle.yaml")
        == "circle.yaml: cannot be read: Too many levels of symbolic links"
    )
    Path("whither-has-it-gone.yaml").symlink_to("nowhere.yaml")
    assert read_mistakes("whither-has-it-gone.yaml") == "whither-has-it-gone.yaml: no such file"
    assert (
        read_mistakes(f"{'a' * 300}.yaml")
        == f"{'a' * 300}.yaml: cannot be read: File name too long"
    )
    Path("huge.yaml").write_bytes(b"#" * 300_000)
    assert (
        read_mistakes("huge.yaml")
        == "huge.yaml: larger than 262,144 bytes; a grid is written by hand"
    )
    Path("my grid.yaml").write_text(SEEDS + PRODUCT)
    assert read_mistakes("my grid.yaml") == (
        "my grid.yaml: name, taken from the file: 'my grid' cannot name a grid and its folder: "
        + A_NAME
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path):
    path = write(tmp_path, SEEDS + PRODUCT)
    path.chmod(0)
    assert read_mistakes(path) == f"{path}: cannot be read: Permission denied"


WRONG_OVERRIDES = [
    ("lr", "not of the form key=value"),
    ("lr=", "no value stands here"),
    ("lr=1e-3", "YAML reads '1e-3' as text; write 1.0e-3"),
    ("lr=-1", "-1 is not a number above 0, up to 100"),
    ("epochs=2.5", "2.5 is not a whole number from 1 to 10,000"),
    ("epochs=0x10", "YAML reads '0x10' as 16; write 16"),
    ("epochs=1_0", "YAML reads '1_0' as 10; write 10"),
    ("epochs=1,2", "'1,2' is text; write a list as [1, 2]"),
    ("epochs=1,000", "'1,000' is text; write 1000, or a list as [1, 0]"),
    ("lr=0,1", "'0,1' is text; write 0.1 with a point, or a list as [0.0, 1.0]"),
    ("lr=[.1 .2]", "'.1 .2' is text; write a list as [0.1, 0.2]"),
    ("rl=1", f"not a setting: {SETTINGS}"),
    ("seeds=3", f"not a setting: {SETTINGS}; seeds stand at the top of the grid, or in --seeds"),
    ("grid.0.lr=3", "not a setting, nor of the form margins.KEY or analysis.KEY"),
    (
        "lr=[0.1",
        "not YAML: expected ',' or ']', but got '<stream end>', while parsing a flow sequence",
    ),
    ("depth=14", "changes nothing: every product sets depth itself (line 3)"),
    (
        "margins.accuracy=1",
        "not a margin: accuracy_points, gradient_ratio, risk; did you mean 'accuracy_points'?",
    ),
    ("analysis.looks=0", "0 is not a whole number from 2 to 10,000"),
    ("margins.gradient_ratio=[2]", "a list is not a number above 1, up to 10"),
    ("epochs={a: b}", "a mapping is not a whole number from 1 to 10,000"),
    ("lr=0.1=2", "'0.1=2' is not a number above 0, up to 100"),
    ("lr=*a", "not YAML: found undefined alias 'a'"),
    (" lr=0.1", f"not a setting: {SETTINGS}; did you mean 'lr'?"),
    ("tuning.lr=0.1", "not a setting, nor of the form margins.KEY or analysis.KEY"),
]
ODD_OVERRIDES = [
    ("lr=\x00", "'lr=\\x00'", "the character U+0000 is not text"),
    ("epochs=9\nlr: 3", "'epochs=9\\nlr: 3'", "not YAML: mapping values are not allowed here"),
    ("lr=\u202e1", "'lr=\\u202e1'", "'\\u202e1' is not a number above 0, up to 100"),
    (
        f"lr={'9' * 5000}",
        f"'lr={'9' * 57}'...",
        f"'{'9' * 60}'... is not a number above 0, up to 100",
    ),
]


@pytest.mark.parametrize(("override", "message"), WRONG_OVERRIDES)
def test_a_wrong_override_is_named_as_it_was_typed(tmp_path, override, message):
    path = write(tmp_path, SEEDS + PRODUCT)
    assert read_mistakes(path, override) == f"command line: {override}: {message}"


@pytest.mark.parametrize(("override", "shown", "message"), ODD_OVERRIDES)
def test_a_wrong_override_is_shown_printable_and_short(tmp_path, override, shown, message):
    path = write(tmp_path, SEEDS + PRODUCT)
    assert read_mistakes(path, override) == f"command line: {shown}: {message}"


def test_a_wrong_override_of_a_list_is_not_blamed_on_the_file(tmp_path):
    path = write(tmp_path, default("lr: [0.1, 0.2]"))
    assert read_mistakes(path, "lr=[-1, 0.1]") == (
        "command line: lr=[-1, 0.1]: -1 is not a number above 0, up to 100"
    )
    assert read_mistakes(path, "lr=-1").startswith("command line: lr=-1: ")


def test_an_override_given_twice_is_a_mistake(tmp_path):
    path = write(tmp_path, SEEDS + PRODUCT)
    told = read_mistakes(path, "lr=0.1", "defaults.lr=0.2")
    assert told == "command line: defaults.lr=0.2: given twice (first lr=0.1)"


WRONG_SEEDS = [
    ("five", "'five' is not a seed; write 5, 0,1,2 or 0-9"),
    ("", "'' is not a seed; write 5, 0,1,2 or 0-9"),
    ("-3", "'-3' is not a seed; write 5, 0,1,2 or 0-9"),
    ("9-0", "9-0 runs backwards; write 0-9"),
    ("0", "0 is not a whole number from 1 to 100,000, nor a list of seeds"),
    ("0,1,1", "given twice: 1"),
    ("0-999999999", "more than 100,000 seeds"),
]


@pytest.mark.parametrize(("seeds", "message"), WRONG_SEEDS)
def test_wrong_seeds_are_named_as_they_were_typed(tmp_path, seeds, message):
    path = write(tmp_path, SEEDS + PRODUCT)
    assert read_mistakes(path, seeds=seeds) == f"command line: --seeds {seeds}: {message}"


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [("3", (0, 1, 2)), ("4,2", (4, 2)), ("5-7", (5, 6, 7)), ("0-1, 8", (0, 1, 8)), ("7-7", (7,))],
)
def test_seeds_are_a_count_or_a_list(tmp_path, seeds, expected):
    grid = load_grid(write(tmp_path, SEEDS + PRODUCT), seeds=seeds)
    assert tuple(trial.seed for trial in grid.trials) == expected


def test_an_override_replaces_a_default_and_leaves_what_a_product_says(tmp_path):
    path = write(
        tmp_path,
        """\
seeds: 1
defaults: {lr: 0.1, epochs: [10, 20]}
grid:
  - {architecture: resnet, placement: before, depth: 8}
  - {architecture: plain, placement: before, depth: 8, lr: 0.5}
""",
    )
    grid = load_grid(path, ["lr=0.2", "defaults.epochs=30", "margins.accuracy_points=1"])
    assert [(trial.lr, trial.epochs) for trial in grid.trials] == [(0.2, 30), (0.5, 30)]
    assert grid.plan == AnalysisPlan(grid="my", margin_accuracy=1.0)
    assert grid.overrides == ("lr=0.2", "defaults.epochs=30", "margins.accuracy_points=1")
    assert grid.source == path.read_text()


def test_the_plan_says_what_the_grid_fixes_and_keeps_the_records_defaults(tmp_path):
    fixed = (
        "margins: {accuracy_points: 1, gradient_ratio: 1.5}\n"
        "analysis: {alpha: 0.01, gradient_column: actgrad_total, control: none, epochs: 200, looks: [3, 5]}\n"
    )
    arms = PRODUCT.replace("before", "[before, none]")
    assert load_grid(write(tmp_path, fixed + SEEDS + arms)).plan == AnalysisPlan(
        grid="my",
        margin_accuracy=1.0,
        margin_gradient=1.5,
        alpha=0.01,
        gradient_column="actgrad_total",
        control="none",
        epochs=200,
        looks=(3, 5),
    )
    assert load_grid(write(tmp_path, SEEDS + PRODUCT)).plan == AnalysisPlan(grid="my")


def test_a_grid_may_bring_placements_of_its_own(tmp_path):
    own = "programs: {resnet: {my-order: 'conv  act norm conv + act'}}\n"
    text = SEEDS + own + PRODUCT.replace("placement: before", "placement: [before, my-order]")
    grid = load_grid(write(tmp_path, text))
    assert [trial.program for trial in grid.trials[:2]] == [
        PROGRAMS["resnet"]["before"],
        "conv act norm conv + act",
    ]
    assert grid.programs["resnet"]["my-order"] == "conv act norm conv + act"
    assert grid.programs["mlp"] == PROGRAMS["mlp"]


def test_packs_that_are_full_are_accepted_wherever_they_begin(tmp_path):
    text = PRODUCT + "seeds: [8, 9, 10, 11, 3, 2, 1, 0]\ndefaults: {pack_size: [1, 4]}\n"
    assert len(load_grid(write(tmp_path, text)).trials) == 16


def test_a_byte_order_mark_and_dos_line_ends_are_accepted(tmp_path):
    text = (SEEDS + PRODUCT).replace("\n", "\r\n")
    grid = load_grid(write(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert len(grid.trials) == 2
    assert grid.source.startswith("seeds")


def test_an_alias_stands_for_what_it_names(tmp_path):
    text = "seeds: 1\ngrid:\n  - {architecture: mlp, placement: &p [before, after], depth: 4}\n"
    text += "  - {architecture: resnet, placement: *p, depth: 8}\n"
    assert len(load_grid(write(tmp_path, text)).trials) == 4


def test_equal_settings_give_equal_trials_however_they_are_spelled(tmp_path):
    plain = load_grid(write(tmp_path, default("{lr: 1.0, weight_decay: 0.0}")))
    other = load_grid(write(tmp_path, default("{weight_decay: -0.0, lr: 1}")))
    assert [trial.id for trial in plain.trials] == [trial.id for trial in other.trials]


def test_the_form_knows_every_setting_and_every_architecture():
    fields = set(FORMS["defaults"].model_fields)
    # The rest is not for a grid to say: it follows from the placement, the seeds, the tuning stage,
    # and a file of the user's.
    assert fields | {
        "architecture_digest",
        "program",
        "seed",
        "stage",
        "recipe",
        "flow_lr",
        "flow_weight_decay",
    } == set(Settings.__dataclass_fields__)
    assert set(FORMS["programs"].model_fields) == set(PROGRAMS)


def test_quickstart_is_a_hundred_paired_trials_on_data_that_need_no_download():
    grid = load_grid(GRIDS / "quickstart.yaml")
    assert len(grid.trials) == 100
    assert {(trial.placement, trial.flow) for trial in grid.trials if trial.flow != "own"} == {
        ("after", "before"),
        ("before", "after"),
    }
    assert {trial.dataset for trial in grid.trials} == {"digits"}
    assert {trial.architecture for trial in grid.trials} == {"mlp", "plain", "resnet"}


def test_the_full_study_has_every_architecture_and_every_placement():
    grid = load_grid(GRIDS / "full.yaml")
    assert len(grid.trials) == 970
    assert len(expand_tuning(grid.trials, grid.tuning)) == 728
    assert {(trial.architecture, trial.placement) for trial in grid.trials} == {
        (architecture, placement)
        for architecture, placements in PROGRAMS.items()
        for placement in placements
    }


DEPTHS = {
    "mlp": st.integers(1, 40),
    "vgg": st.sampled_from([11, 13, 16, 19]),
    "densenet": st.integers(1, 30).map(lambda n: 6 * n + 4),
}
SIX_N_PLUS_TWO = st.integers(1, 30).map(lambda n: 6 * n + 2)


@st.composite
def products(draw):
    """One product: every setting given as a list without repeats, in any order."""
    architecture = draw(st.sampled_from(list(PROGRAMS)))
    choices = {
        "depth": DEPTHS.get(architecture, SIX_N_PLUS_TWO),
        "placement": st.sampled_from(list(PROGRAMS[architecture])),
        "lr": st.floats(1e-6, 10),
        "epochs": st.integers(5, 500),
        "precision": st.sampled_from(["float32", "bfloat16"]),
        "compile": st.booleans(),
    }
    optional = draw(st.sets(st.sampled_from(["lr", "epochs", "precision", "compile"])))
    named = {
        key: draw(st.lists(values, min_size=1, max_size=3, unique=True))
        for key, values in choices.items()
        if key in optional | {"depth", "placement"}
    }
    named["architecture"] = [architecture]
    return {key: named[key] for key in draw(st.permutations(sorted(named)))}


@settings(deadline=None)
@given(products(), st.integers(1, 4))
def test_expansion_is_the_product(tmp_path_factory, product, seeds):
    text = yaml.safe_dump({"seeds": seeds, "grid": [product]}, sort_keys=False)
    trials = load_grid(write(tmp_path_factory.mktemp("grid"), text)).trials
    expected = {
        Trial(
            seed=seed,
            program=PROGRAMS[settings["architecture"]][settings["placement"]],
            **settings,
        )
        for seed in range(seeds)
        for values in itertools.product(*product.values())
        for settings in [dict(zip(product, values, strict=True))]
    }
    assert len(trials) == len(expected) == len({trial.id for trial in trials})
    assert set(trials) == expected
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)


@settings(deadline=None)
@given(products(), st.randoms(use_true_random=False), st.booleans())
def test_neither_the_order_of_keys_nor_the_layout_changes_a_trial(
    tmp_path_factory, product, random, flow
):
    folder = tmp_path_factory.mktemp("grid")
    first = load_grid(write(folder, yaml.safe_dump({"seeds": 1, "grid": [product]})))
    keys = random.sample(list(product), len(product))
    moved = {key: product[key] for key in keys[1:]}
    inherited = {key: product[key] for key in keys[:1]}
    text = yaml.dump(
        {"grid": [moved], "defaults": inherited, "seeds": [0]},
        sort_keys=False,
        default_flow_style=flow,
    )
    second = load_grid(write(folder, text))
    assert [trial.id for trial in first.trials] == [trial.id for trial in second.trials]


@settings(deadline=None)
@given(st.text(max_size=300) | st.binary(max_size=300))
def test_whatever_a_file_holds_its_author_reads_a_mistake_and_no_traceback(tmp_path_factory, text):
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    read_mistakes(write(tmp_path_factory.mktemp("grid"), raw))


@pytest.mark.parametrize(
    ("overrides", "warmups", "note"),
    [
        (["epochs=5"], {5.0}, None),
        (["epochs=2"], {2.0}, "epochs=2: the warm-up of 5 epochs is cut to 2, the whole training"),
        (
            ["epochs=[9, 1]", "warmup_epochs=3"],
            {1.0, 3.0},
            "warmup_epochs=3: the warm-up of 3 epochs is cut to 1, the whole training",
        ),
        (
            ["analysis.looks=[2, 5]"],
            {5.0},
            (
                "analysis.looks=[2, 5]: a look at 5 seeds is planned, and the grid has 2: every "
                "look at these is an early one"
            ),
        ),
    ],
)
def test_what_works_and_may_not_be_meant_is_said_once(tmp_path, overrides, warmups, note):
    grid = load_grid(write(tmp_path, SEEDS + PRODUCT), overrides)
    assert {trial.warmup_epochs for trial in grid.trials} == warmups
    assert grid.notes == ((f"command line: {note}",) if note else ())


ADAMW = "seeds: 2\ndefaults:\n  lr: {rate}\n{tuning}" + PRODUCT.replace(
    "}", ", optimizer: {optimizer}}}"
).replace("{arch", "{{arch")


@pytest.mark.parametrize(
    ("architecture", "placement", "is_told"),
    [
        ("plain", "after", True),
        ("plain", "before", False),
        ("resnet", "after-add", True),
        ("resnet", "after", True),  # its last block
        ("resnet", "after-relu", False),
        ("preresnet", "after", True),
        ("preresnet", "before", False),
    ],
)
def test_instance_norm_ahead_of_the_heads_mean_is_told(tmp_path, architecture, placement, is_told):
    lines = (
        f"architecture: {architecture}",
        f"placement: {placement}",
        "depth: 8",
        "norm: instance",
    )
    (tmp_path / "my.yaml").write_text(product(*lines), encoding="utf-8")
    told = (
        "my.yaml:6: grid[0].norm: behind its last activation instance norm gives every map the mean "
        "0, and the head reads means: what ends in it learns nothing"
    )
    with contextlib.chdir(tmp_path):
        assert load_grid("my.yaml").notes == ((told,) if is_told else ())


@pytest.mark.parametrize(
    ("optimizer", "rate", "tuning", "notes"),
    [
        ("adamw", "0.001", "tuning: {lr: [0.001, 0.002], seeds: 2}\n", []),
        ("sgd", "0.1", "tuning: {lr: [0.05, 0.1], seeds: 2}\n", []),
        (
            "adamw",
            "[0.001, 0.1]",
            "",
            [
                "my.yaml:3: defaults.lr: adamw seldom trains at a rate of 0.1, which would be usual for sgd; 0.001 is usual for adamw"
            ],
        ),
        (
            "[sgd, adamw]",
            "0.01",
            "tuning: {lr: [0.01, 0.1], seeds: 2}\n",
            [
                "my.yaml:4: tuning.lr: tries sgd and adamw at the same rates, of which few are good for both; give each optimizer a grid of its own"
            ],
        ),
    ],
)
def test_a_rate_that_may_be_the_other_optimizers_is_told_of(
    tmp_path, monkeypatch, optimizer, rate, tuning, notes
):
    monkeypatch.chdir(tmp_path)
    text = ADAMW.format(optimizer=optimizer, rate=rate, tuning=tuning)
    write(tmp_path, text)
    assert list(load_grid("my.yaml").notes) == notes


def test_each_optimizer_has_its_settings_in_a_product_of_its_own(tmp_path):
    sgd = "{architecture: resnet, placement: before, depth: 8, momentum: 0.8}"
    adamw = "{architecture: resnet, placement: before, depth: 8, optimizer: adamw, lr: 0.001, beta2: 0.95}"
    grid = load_grid(write(tmp_path, f"seeds: 1\ngrid:\n  - {sgd}\n  - {adamw}\n"))
    assert [(t.optimizer, t.lr, t.momentum, t.beta1, t.beta2) for t in grid.trials] == [
        ("sgd", 0.1, 0.8, 0.9, 0.999),
        ("adamw", 0.001, 0.9, 0.9, 0.95),
    ]


@pytest.mark.parametrize("folder", ["/home/me/flowers", "C:\\flowers", "data/flowers"])
def test_a_path_to_pictures_is_told_where_folders_are_looked_for(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("BN_ORDER_DATA", "/srv/pictures")
    told = read_mistakes(write(tmp_path, default(f"dataset: 'imagefolder:{folder}:64'")))
    assert told.endswith("is looked for in /srv/pictures (BN_ORDER_DATA sets another place)")


def _every_place() -> list[tuple[str, str]]:
    """Where a value may stand: its section and its key."""
    keyed = {name: form.model_fields for name, form in FORMS.items() if isinstance(name, str)}
    keyed["grid"] = FORMS["grid"].model_fields
    return [(section, key) for section, fields in keyed.items() for key in fields]


ANY_VALUE = (
    *(
        "word",
        "''",
        "~",
        "true",
        "on",
        "1",
        "-1",
        "0",
        "010",
        "0x10",
        "1_0",
        "10:30",
        "1e-3",
        "0.5",
    ),
    *(".inf", ".nan", "1e400", "9" * 40, "2020-01-02", "2020-01-02 03:04:05", "!!binary aGk="),
    *("!!set {a, b}", "!!omap [a: 1]", "[]", "[[]]", "[[mlp]]", "[1, word]", "[~]", "{}", "{a: 1}"),
    *("{mlp: {a: 1}}", "{mlp: [a]}", "{1: [2]}", "[{a: {b: [c]}}]", "[true, 1, 1.0]", "[a, [a]]"),
)


@pytest.mark.parametrize(("section", "key"), _every_place())
def test_any_type_at_any_place_is_read_or_told(tmp_path, section, key):
    product = {"architecture": "resnet", "placement": "before", "depth": "8"}
    for value in ANY_VALUE:
        top = {"seeds": "2"}
        cell = product | ({key: value} if section == "grid" else {})
        top["grid"] = "[{" + ", ".join(f"{name}: {said}" for name, said in cell.items()) + "}]"
        if section not in {"", "grid"}:
            top[section] = f"{{{key}: {value}}}"
        elif not section:
            top[key] = value
        text = "".join(f"{name}: {said}\n" for name, said in top.items())
        with contextlib.suppress(GridError):
            assert load_grid(write(tmp_path, text)).trials


WORDS_AND_SIGNS = """
    seeds grid defaults depth placement resnet before 8 on ~ 1e-3 010 0x_ 0b_ 2020-13-45
    [ ] { } : , - ? | ' " *a !!set <<:
"""
SCRAPS = st.sampled_from(
    [*WORDS_AND_SIGNS.split(), "\n", "\n  ", ": ", "- ", ", ", "&a ", "9" * 5_000]
)


@settings(deadline=None)
@given(st.lists(SCRAPS, max_size=25).map("".join))
def test_scraps_of_grids_raise_nothing_but_mistakes(tmp_path_factory, text):
    path = write(tmp_path_factory.mktemp("grid"), default("lr: " + text))
    with contextlib.suppress(GridError):
        load_grid(path)
