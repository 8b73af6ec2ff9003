"""torchvision's models as architectures: their placements, their depths.

Standard library only, so that a grid is checked where torchvision is not installed; `graphs`
finds in each model what is written here, and a test holds the two together. Every classification
model of torchvision is here in which a ReLU reads a batch norm's output, and no other.

A program has one part for the pairs `norm act` of a model's graph and, where a model has them, one
for its joins `norm + act` (see `graphs`):

* vgg, densenet, googlenet, inception: every batch norm is one of a pair. `after` and `after-inner`
  are then one program.
* resnet and its kin, regnet: pairs inside the residual branch, a join at its end; the same six
  placements as our resnet's. A bottleneck has one pair more than a basic block.
* mnasnet, mobilenet, shufflenet: pairs, and batch norms without a ReLU behind them (linear
  bottlenecks, depthwise convs, hard swish), which stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIX = "torchvision/"

_PAIRED = {
    "before": "norm act",
    "after": "act norm",
    "after-inner": "act norm",
    "none": "act",
}

_RESIDUAL = {
    "before": "norm act, norm + act",
    "after": "act norm, act norm +",
    "after-inner": "act norm, norm + act",
    "after-relu": "act norm, act norm + act",
    "after-add": "act norm, + act norm",
    "none": "act, + act",
}

_PARTLY_PAIRED = {
    "before": "norm act",
    "after-inner": "act norm",
    "none": "act",
}

_MODELS = (
    (_PAIRED, "vgg11_bn:11 vgg13_bn:13 vgg16_bn:16 vgg19_bn:19"),
    (_PAIRED, "densenet121:121 densenet161:161 densenet169:169 densenet201:201"),
    (_PAIRED, "googlenet:22 inception_v3:48"),
    (_RESIDUAL, "resnet18:18 resnet34:34 resnet50:50 resnet101:101 resnet152:152"),
    (_RESIDUAL, "resnext50_32x4d:50 resnext101_32x8d:101 resnext101_64x4d:101"),
    (_RESIDUAL, "wide_resnet50_2:50 wide_resnet101_2:101"),
    (_RESIDUAL, "regnet_x_400mf:68 regnet_x_800mf:50 regnet_x_1_6gf:56 regnet_x_3_2gf:77"),
    (_RESIDUAL, "regnet_x_8gf:71 regnet_x_16gf:68 regnet_x_32gf:71"),
    (_RESIDUAL, "regnet_y_400mf:82 regnet_y_800mf:72 regnet_y_1_6gf:137 regnet_y_3_2gf:107"),
    (_RESIDUAL, "regnet_y_8gf:87 regnet_y_16gf:92 regnet_y_32gf:102 regnet_y_128gf:137"),
    (_PARTLY_PAIRED, "mnasnet0_5:53 mnasnet0_75:53 mnasnet1_0:53 mnasnet1_3:53"),
    (_PARTLY_PAIRED, "mobilenet_v3_small:54 mobilenet_v3_large:64"),
    (_PARTLY_PAIRED, "shufflenet_v2_x0_5:51 shufflenet_v2_x1_0:51"),
    (_PARTLY_PAIRED, "shufflenet_v2_x1_5:51 shufflenet_v2_x2_0:51"),
)

PROGRAMS: Mapping[str, Mapping[str, str]] = {
    PREFIX + model.partition(":")[0]: programs
    for programs, models in _MODELS
    for model in models.split()
}
"""architecture -> placement -> what stands in the place of its pairs, and of its joins."""

DEPTHS: Mapping[str, int] = {
    PREFIX + name: int(depth)
    for _, models in _MODELS
    for name, depth in (model.split(":") for model in models.split())
}
"""Conv and linear layers on the longest path through the model.

That is the number in its name wherever the name has one, as 18 in resnet18.
"""


def find_program_mistake(architecture: str, program: str) -> str | None:
    """Say why `program` cannot rewrite `architecture`; None if it can.

    >>> find_program_mistake("torchvision/resnet18", "act norm, norm norm +")
    "'norm norm +' has more than one norm; each pair and each join has one to place"
    >>> find_program_mistake("torchvision/resnet18", "act norm")
    "torchvision/resnet18 takes two parts, for 'norm act' and 'norm + act', and this is one"
    """
    originals = PROGRAMS[architecture]["before"].split(", ")
    parts = [part.strip() for part in program.split(",")]
    if len(parts) != len(originals):
        takes = "one part" if len(originals) == 1 else "two parts"
        places = " and ".join(map(repr, originals))
        found = {1: "one", 2: "two"}.get(len(parts), str(len(parts)))
        return f"{architecture} takes {takes}, for {places}, and this is {found}"
    mistakes = map(_find_part_mistake, parts, originals)
    if mistake := next(filter(None, mistakes), None):
        return mistake
    if len({"norm" in part.split() for part in parts}) > 1:
        return "norm stands in one part only; it stays in both, or leaves both"
    return None


def _find_part_mistake(part: str, original: str) -> str | None:
    operations = part.split()
    known = [op for op in ("norm", "act", "+") if op in original.split()]
    for operation in operations:
        if operation not in known:
            return f"{operation!r} is not an operation of {original!r}: {', '.join(known)}"
    if operations.count("+") != original.count("+"):
        return f"{part!r} adds {operations.count('+')} times, {original!r} adds once"
    if operations.count("norm") > 1:
        return f"{part!r} has more than one norm; each pair and each join has one to place"
    if "act" not in operations:
        return f"{part!r} has no 'act' and is linear"
    return None


def find_depth_mistake(architecture: str, depth: int) -> str | None:
    """Say which depth a model has, if it is not `depth`.

    >>> find_depth_mistake("torchvision/vgg16_bn", 18)
    '16'
    """
    return None if depth == DEPTHS[architecture] else str(DEPTHS[architecture])


def find_setting_mistake(architecture: str, setting: str, value: object) -> str | None:
    """Say why a torchvision model cannot have `setting` at `value`; None for every other network.

    >>> find_setting_mistake("torchvision/resnet18", "pack_size", 5)
    'torchvision/resnet18 trains one seed at a time: pack_size must be 1'
    """
    if not architecture.startswith(PREFIX):
        return None
    match setting:
        case "pack_size" if value != 1:
            return f"{architecture} trains one seed at a time: pack_size must be 1"
        case "width_factor" if value != 1:
            return f"{architecture} comes in one width: width_factor must be 1"
        case "final_norm" if value:
            return f"{architecture} has no rule for one more batch norm: final_norm must be false"
        case _:
            return None


def explain_absence(architecture: str, placement: str) -> str:
    """Why a placement that others have is not defined for a model; "" where no model has it.

    >>> explain_absence("torchvision/vgg16_bn", "after-add")
    'it has no batch norm that ends a residual branch ahead of an addition and a ReLU'
    """
    if placement not in _RESIDUAL:
        return ""
    if placement == "after" and PROGRAMS[architecture] is _PARTLY_PAIRED:
        return (
            "some of its batch norms have no ReLU behind them, and 'after' would have to add one; "
            "'after-inner' swaps the pairs there are"
        )
    return "it has no batch norm that ends a residual branch ahead of an addition and a ReLU"


def explain_stranger(architecture: str) -> str:
    """Why a name that begins like one of torchvision's models is not in the zoo.

    >>> explain_stranger("torchvision/vgg16")
    'torchvision/vgg16 has no batch norm; torchvision/vgg16_bn has'
    """
    if re.fullmatch(PREFIX + r"vgg\d\d", architecture) and architecture + "_bn" in PROGRAMS:
        return f"{architecture} has no batch norm; {architecture}_bn has"
    return f"{architecture} is not a model of torchvision's in which a ReLU reads a batch norm"
