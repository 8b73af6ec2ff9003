"""Every architecture, declared once: its placements, its depths, and the claims about it.

To add an architecture, write its entry here and the function in `training.networks` that builds a
network from its blocks. Needs the standard library only, so that a grid can be checked without
torch and torchvision.

The list includes the torchvision models of the claims. Their programs have one part for the pairs
`norm act` of a model's graph and, for a resnet, one for its joins `norm + act` (see
`training.graphs`, which finds these places in each model; a test compares the two).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.study.own import is_own

MAX_DEPTH = 2_000

PREFIX = "torchvision/"

SKIP_FREE, RESIDUAL = "skip-free CNN", "residual network"
"""The two kinds of network that the claims are about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One way to build a network from blocks, and the settings it allows."""

    programs: Mapping[str, str]
    """placement -> the operations of one block, in the order they run."""
    depths: range | tuple[int, ...]
    depth_counts: str
    """What its depth counts."""
    shown_depth: int
    """The depth that is shown by default."""
    kind: str = ""
    """SKIP_FREE or RESIDUAL; empty if no claim is about it: estimated and shown separately."""
    depths_without_bottleneck: range | None = None
    """Its depths without `bottleneck`, if that setting changes them."""
    shrinks: int | None = None
    """How many times smaller its last maps are than the images; None: it has none, or it is not known."""

    @property
    def skeleton(self) -> list[str]:
        """The operations that remain in each of its programs without `norm` and `act`."""
        return [operation for operation in self.programs["none"].split() if operation != "act"]


_CNN = {"before": "conv norm act", "after": "conv act norm", "none": "conv act"}
_STAGES_OF_PAIRS = range(8, MAX_DEPTH + 1, 6)

_PAIRED = {
    "before": "norm act",
    "after": "act norm",
    "after-inner": "act norm",
    "none": "act",
}
_JOINED = {
    "before": "norm act, norm + act",
    "after": "act norm, act norm +",
    "after-inner": "act norm, norm + act",
    "after-relu": "act norm, act norm + act",
    "after-add": "act norm, + act norm",
    "none": "act, + act",
}


def _models(
    family: str, names: str, programs: Mapping[str, str], kind: str
) -> dict[str, Architecture]:
    """torchvision models whose depth is the number in their name."""
    depths = {name: int(name.removeprefix(family).removesuffix("_bn")) for name in names.split()}
    return {
        PREFIX + name: Architecture(
            programs=programs,
            depths=(depth,),
            depth_counts="the longest path's layers",
            shown_depth=depth,
            kind=kind,
        )
        for name, depth in depths.items()
    }


ARCHITECTURES: dict[str, Architecture] = {
    # It has no skips either, but it is not a CNN: no claim depends on it.
    "mlp": Architecture(
        programs={"before": "linear norm act", "after": "linear act norm", "none": "linear act"},
        depths=range(1, MAX_DEPTH + 1),
        depth_counts="hidden layers",
        shown_depth=3,
    ),
    "vgg": Architecture(
        programs=_CNN,
        depths=(11, 13, 16, 19),
        depth_counts="weighted layers of torchvision's model, whose head has two more",
        shown_depth=16,
        kind=SKIP_FREE,
        shrinks=16,
    ),
    "plain": Architecture(
        programs=_CNN,
        depths=_STAGES_OF_PAIRS,
        depth_counts="weighted layers",
        shown_depth=20,
        shrinks=4,
        kind=SKIP_FREE,
    ),
    "resnet": Architecture(
        programs={
            "before": "conv norm act conv norm + act",
            "after": "conv act norm conv act norm +",
            "after-inner": "conv act norm conv norm + act",
            "after-relu": "conv act norm conv act norm + act",
            "after-add": "conv act norm conv + act norm",
            "none": "conv act conv + act",
        },
        depths=_STAGES_OF_PAIRS,
        depth_counts="weighted layers",
        shown_depth=20,
        shrinks=4,
        kind=RESIDUAL,
    ),
    "preresnet": Architecture(
        programs={
            "before": "norm act conv norm act conv +",
            "after": "act norm conv act norm conv +",
            "none": "act conv act conv +",
        },
        depths=_STAGES_OF_PAIRS,
        depth_counts="weighted layers",
        shown_depth=20,
        shrinks=4,
        kind=RESIDUAL,
    ),
    # Concatenates instead of adding: neither skip-free nor residual.
    "densenet": Architecture(
        programs={
            "before": "norm act conv cat",
            "after": "act norm conv cat",
            "none": "act conv cat",
        },
        depths=range(10, MAX_DEPTH + 1, 6),  # each of the 3n layers has two convs
        depths_without_bottleneck=range(7, MAX_DEPTH + 1, 3),
        depth_counts="weighted layers",
        shown_depth=40,
        shrinks=4,
    ),
    **_models("vgg", "vgg11_bn vgg13_bn vgg16_bn vgg19_bn", _PAIRED, SKIP_FREE),
    **_models("resnet", "resnet18 resnet34 resnet50 resnet101 resnet152", _JOINED, RESIDUAL),
    **_models("densenet", "densenet121 densenet161 densenet169 densenet201", _PAIRED, ""),
}

_OWN = Architecture(
    programs=_JOINED,
    depths=range(1, MAX_DEPTH + 1),
    depth_counts="whatever its function makes of it",
    shown_depth=1,
)
"""Any network in a user's file. Which of the placements it has is known once it is built."""


def find_architecture(name: str) -> Architecture:
    """The architecture called `name`, a user's own among them.

    >>> find_architecture("nets/mine.py:build").programs["none"]
    'act, + act'
    """
    return _OWN if is_own(name) else ARCHITECTURES[name]


def is_rewritten(architecture: str) -> bool:
    """Is its graph rewritten by a program, where ours are built from blocks?"""
    return architecture.startswith(PREFIX) or is_own(architecture)


def find_program_mistake(architecture: str, program: str) -> str | None:
    """Say why `program` is not a block of `architecture`; None if it is one.

    >>> find_program_mistake("resnet", "conv norm act conv")
    "without norm and act a block of resnet is 'conv conv +', this one is 'conv conv'"
    >>> find_program_mistake("mlp", "linear relu")
    "'relu' is not an operation: linear, norm, act"
    """
    if architecture.startswith(PREFIX):
        return _find_rewriting_mistake(architecture, program)
    skeleton = ARCHITECTURES[architecture].skeleton
    known = (*dict.fromkeys(skeleton), "norm", "act")
    operations = program.split()
    for operation in operations:
        if operation not in known:
            return f"{operation!r} is not an operation: {', '.join(known)}"
    found = [op for op in operations if op not in {"norm", "act"}]
    if found != skeleton:
        return (
            f"without norm and act a block of {architecture} is {' '.join(skeleton)!r}, "
            f"this one is {' '.join(found)!r}"
        )
    if "cat" in skeleton and operations[-1] != "cat":
        return f"a block of {architecture} ends in 'cat'"
    if "act" not in operations:
        return "a block without 'act' is linear"
    return None


def _find_rewriting_mistake(architecture: str, program: str) -> str | None:
    """The same for a program that rewrites one of torchvision's models.

    >>> _find_rewriting_mistake("torchvision/resnet18", "act norm, norm norm +")
    "'norm norm +' has more than one norm; each pair and each join has one to place"
    >>> _find_rewriting_mistake("torchvision/resnet18", "act norm")
    "torchvision/resnet18 takes two parts, for 'norm act' and 'norm + act', and this is one"
    """
    originals = ARCHITECTURES[architecture].programs["before"].split(", ")
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


def find_depth_mistake(architecture: str, depth: int, *, bottleneck: bool = True) -> str | None:
    """Say which depths `architecture` has, if `depth` is not one of them.

    >>> find_depth_mistake("resnet", 21)
    '6n+2: 20 or 26'
    >>> find_depth_mistake("vgg", 17)
    '11, 13, 16 or 19'
    """
    declared = find_architecture(architecture)
    depths = (not bottleneck and declared.depths_without_bottleneck) or declared.depths
    if depth in depths:
        return None
    if isinstance(depths, tuple):
        *others, last = map(str, depths)
        return f"{', '.join(others)} or {last}" if others else last
    first, step = depths.start, depths.step
    if step == 1:
        return f"{first} or more"
    below = depth - (depth - first) % step
    near = [value for value in (below, below + step) if value >= first] or [first]
    return f"{step}n+{first - step}: {' or '.join(map(str, near))}"


def find_norm_mistake(architecture: str, norm: str, shape: tuple[int, int, int]) -> str | None:
    """Say why `norm` has nothing to average over in `architecture` on images of `shape`.

    >>> find_norm_mistake("vgg", "instance", (1, 28, 28))
    'in vgg instance norm needs images of 32 pixels: 16 times smaller maps have one, and no spread'
    """
    if norm != "instance":
        return None
    if architecture == "mlp":
        return "mlp has no maps whose pixels instance norm could average over"
    shrinks = ARCHITECTURES[architecture].shrinks if architecture in ARCHITECTURES else None
    if shrinks and max(shape[1:]) < 2 * shrinks:
        return (
            f"in {architecture} instance norm needs images of {2 * shrinks} pixels: "
            f"{shrinks} times smaller maps have one, and no spread"
        )
    return None


def find_setting_mistake(architecture: str, setting: str, value: object) -> str | None:
    """Say why a network that is rewritten does not allow `setting` to be `value`; None for ours.

    >>> find_setting_mistake("torchvision/resnet18", "pack_size", 5)
    'torchvision/resnet18 trains one seed at a time: pack_size must be 1'
    """
    if not is_rewritten(architecture):
        return None
    match setting:
        case "pack_size" if value != 1:
            return f"{architecture} trains one seed at a time: pack_size must be 1"
        case "width_factor" if value != 1:
            return f"{architecture} comes in one width: width_factor must be 1"
        case "final_norm" if value:
            return f"{architecture} has no rule for one more norm: final_norm must be false"
        case _:
            return None


def explain_absence(architecture: str, placement: str) -> str:
    """Say why a placement of torchvision's resnets is not defined for another of its models.

    >>> explain_absence("torchvision/vgg16_bn", "after-add")
    'it has no batch norm that ends a residual branch ahead of an addition and a ReLU'
    """
    if architecture.startswith(PREFIX) and placement in _JOINED:
        return "it has no batch norm that ends a residual branch ahead of an addition and a ReLU"
    return ""


def explain_lack(program: str, *, pairs: int, joins: int, loose: int) -> str:
    """Say why a user's network with so many places of each kind has none for `program`; else "".

    >>> explain_lack("act, + act", pairs=0, joins=0, loose=2)
    'has no norm that only an activation of ours reads, nor one that ends a residual branch ahead of an addition and such an activation: no placement can move its norms; write it with the norm ahead of the activation'
    """
    placement = next(name for name, known in _JOINED.items() if known == program)
    if not pairs and not joins:
        if not loose:
            return "has no norm that a placement could move: write it with nn.BatchNorm2d"
        return (
            "has no norm that only an activation of ours reads, nor one that ends a residual branch "
            "ahead of an addition and such an activation: no placement can move its norms; write "
            "it with the norm ahead of the activation"
        )
    if not joins and placement not in _PAIRED:
        return (
            f"has no placement {placement!r}: no norm in it ends a residual branch ahead of an "
            "addition and an activation"
        )
    if not pairs and placement == "after-inner":
        return f"has no placement {placement!r}: no norm in it is read by an activation alone"
    return ""


def explain_stranger(architecture: str) -> str:
    """Say why a name that begins like a torchvision model's is not an architecture.

    >>> explain_stranger("torchvision/vgg16")
    'torchvision/vgg16 has no batch norm; torchvision/vgg16_bn has'
    """
    if f"{architecture}_bn" in ARCHITECTURES:
        return f"{architecture} has no batch norm; {architecture}_bn has"
    return f"{architecture} is not one of torchvision's models that the claims speak of"
