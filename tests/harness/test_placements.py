from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harness.placements import main
from harness.study.architectures import PREFIX
from harness.study.trials import EVERY_PROGRAM, PROGRAMS
from harness.training.graphs import (
    Adjacencies,
    count_adjacencies,
    load_model,
    read_blocks,
    rewrite,
    trace,
)
from harness.training.networks import build_network

SHOWN = """\
torchvision/resnet18, depth 18, after: act norm, act norm +

  stem           conv act norm pool
  layer1.0 .. 1  conv act norm conv act norm +
  layer2.0       conv act norm conv act norm (conv norm) +
  layer2.1       conv act norm conv act norm +
  layer3.0       conv act norm conv act norm (conv norm) +
  layer3.1       conv act norm conv act norm +
  layer4.0       conv act norm conv act norm (conv norm) +
  layer4.1       conv act norm conv act norm +
  head           pool linear

  BN             20
  BN>ReLU        0
  ReLU>BN        17
  BN>+>ReLU      0
  ReLU>pool>BN   0

"""


def test_a_placement_is_shown_block_by_block(capsys):
    assert main(["torchvision/resnet18", "after"]) == 0
    assert capsys.readouterr().out == SHOWN


# Counted by hand in torchvision/models/{vgg,resnet,densenet}.py: layers of the configuration, blocks
# of each stage, 58 dense layers with two batch norms, the stem, three transitions, the last.
AS_TORCHVISION_HAS_THEM = {
    "vgg16": Adjacencies(0, 0, 0, 0, 0),
    "vgg16_bn": Adjacencies(13, 13, 0, 0, 0),
    "resnet18": Adjacencies(20, 1 + 8, 0, 8 + 3, 0),
    "resnet50": Adjacencies(53, 1 + 2 * 16, 0, 16 + 4, 0),
    "densenet121": Adjacencies(1 + 2 * 58 + 3 + 1, 1 + 2 * 58 + 3 + 1, 0, 0, 1),
}


@pytest.mark.parametrize("name", AS_TORCHVISION_HAS_THEM)
def test_torchvision_has_every_batch_norm_ahead_of_its_relu(name):
    graph = trace(load_model(name)).graph
    assert count_adjacencies(graph) == AS_TORCHVISION_HAS_THEM[name]


def test_the_one_pool_between_relu_and_batch_norm_is_densenets_stem():
    features = trace(load_model("densenet121"))
    (stem, *_), layers = zip(*read_blocks(features.graph), strict=True)
    assert stem == "features"
    assert layers[:2] == ("conv norm act pool", "cat norm act conv norm act conv")


@pytest.mark.parametrize(
    ("name", "placement", "counts"),
    [
        ("vgg16_bn", "after", Adjacencies(13, 0, 13, 0, 0)),
        ("vgg16_bn", "none", Adjacencies(0, 0, 0, 0, 0)),
        ("densenet121", "after", Adjacencies(121, 0, 121, 0, 0)),
        ("resnet50", "after", Adjacencies(53, 0, 49, 0, 0)),
        ("resnet50", "after-inner", Adjacencies(53, 0, 33, 20, 0)),
        # Behind the last addition of each stage but the fourth stands the next stage's projection:
        # of 16 batch norms 12 reach the next addition by the skip path, and 4 are projections.
        ("resnet50", "after-add", Adjacencies(53, 0, 49, 12 + 4, 0)),
    ],
)
def test_a_rewritten_model_has_its_batch_norms_where_its_placement_says(name, placement, counts):
    program = EVERY_PROGRAM[PREFIX + name][placement]
    assert count_adjacencies(rewrite(load_model(name), program).graph) == counts


EVERY_ARM = [
    pytest.param(architecture, placement, id=f"{architecture}-{placement}")
    for architecture, programs in PROGRAMS.items()
    for placement in programs
]


@pytest.mark.parametrize(("architecture", "placement"), EVERY_ARM)
def test_our_own_programs_are_read_back_from_the_networks(trial_of, architecture, placement):
    trial = trial_of(architecture, placement, bottleneck=False)
    with torch.device("meta"):
        graph = trace(build_network(trial, (3, 32, 32), 10)).graph
    programs = [operations for _, operations in read_blocks(graph)]
    blocks = {"mlp": 3, "vgg": 8, "plain": 6, "resnet": 3, "preresnet": 3, "densenet": 12}
    repeated = PROGRAMS[architecture][placement]
    expected = blocks[architecture] + (
        architecture == "plain"
    )  # its stem is a block like the others
    assert programs.count(repeated) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["reznet"],
            (
                "'reznet' is not an architecture: mlp, vgg, plain, resnet, preresnet, densenet, "
                "torchvision/MODEL or FILE.py:FUNCTION; did you mean 'resnet'?"
            ),
        ),
        (
            ["torchvision/resnet55"],
            (
                "'torchvision/resnet55' is not an architecture: mlp, vgg, plain, resnet, preresnet, "
                "densenet, torchvision/MODEL or FILE.py:FUNCTION; did you mean 'torchvision/resnet50'?"
            ),
        ),
        (
            ["resnet", "aftr"],
            (
                "'aftr' is not a placement of resnet: before, after, after-inner, after-relu, "
                "after-add, none; did you mean 'after'?"
            ),
        ),
        (
            ["torchvision/vgg16_bn", "after-add"],
            (
                "'after-add' is not a placement of torchvision/vgg16_bn: before, after, after-inner, "
                "none; it has no batch norm that ends a residual branch ahead of an addition and a ReLU"
            ),
        ),
        (
            ["torchvision/vgg16", "after"],
            "torchvision/vgg16 has no batch norm; torchvision/vgg16_bn has: no placement is defined",
        ),
        (
            ["resnet", "after", "--depth", "21"],
            "21 is not a depth of resnet, which has 6n+2: 20 or 26",
        ),
        (
            ["mlp", "after", "--depth", "99999999"],
            "a depth of 99,999,999 is beyond 2,000, where a grid ends too",
        ),
        (
            ["torchvision/resnet18", "after", "--depth", "34"],
            "34 is not a depth of torchvision/resnet18, which has 18",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"harness.placements: {message}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["densenet"],
        ["resnet", "--depth", "110"],
        ["torchvision/vgg16"],
        ["torchvision/vgg19_bn"],
        ["torchvision/densenet201", "after"],
    ],
)
def test_everything_shown_fits_80_columns(arguments, capsys):
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(len(line) <= 80 for line in lines)


def test_a_model_without_batch_norm_is_shown_with_the_reason_it_has_no_placement(capsys):
    main(["torchvision/vgg16"])
    out = capsys.readouterr().out
    assert out.startswith("torchvision/vgg16, as torchvision has it\n")
    assert "No placement is defined: torchvision/vgg16 has no batch norm;" in out


OWN = """
from torch import nn

def build(shape, classes, depth):
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 6, 3, padding=1), NORM, ACT, nn.AdaptiveAvgPool2d(1), nn.Flatten(), END
    )
"""


def show_own(folder, monkeypatch, norm="nn.BatchNorm2d(6)", act="nn.ReLU()", **names):
    monkeypatch.chdir(folder)
    text = OWN.replace("NORM", norm).replace("ACT", act)
    text = text.replace("CHANNELS", names.get("channels", "shape[0]"))
    text = text.replace("END", names.get("end", "nn.Linear(6, classes)"))
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return main(["mine.py:build", "after", "--depth", "1", "--shape", "1x8x8", "--classes", "7"])


@pytest.mark.parametrize("norm", ["nn.BatchNorm2d(6)", "nn.GroupNorm(2, 6)", "nn.GroupNorm(1, 6)"])
@pytest.mark.parametrize("act", ["nn.ReLU()", "nn.GELU()"])
def test_a_users_network_is_shown_with_the_norm_and_activation_it_has(
    tmp_path, monkeypatch, capsys, norm, act
):
    assert show_own(tmp_path, monkeypatch, norm, act) == 0
    assert "conv act norm pool linear" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"end": "nn.Linear(6, 10)"}, "gives 10 logits, and the data set has 7 classes"),
        ({"end": "nn.Linear(6, classes), nn.ReLU()"}, "should end in an nn.Linear"),
        ({"channels": "3"}, "does not take images of 1 x 8 x 8"),
    ],
)
def test_a_users_network_that_a_run_refuses_is_refused(tmp_path, monkeypatch, capsys, names, told):
    assert show_own(tmp_path, monkeypatch, **names) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("harness.placements: mine.py:build ")
    assert told in shown.err


def test_our_own_networks_are_shown_where_torchvision_is_absent():
    program = (
        "import sys; sys.modules['torchvision'] = None; "
        "from harness.placements import main; sys.exit(main(['mlp', 'after']))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
