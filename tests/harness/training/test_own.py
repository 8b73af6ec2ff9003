"""A user's own network: the same network when `before`, and one sentence where it cannot be used."""

from __future__ import annotations

import random
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.cluster.work import count_in_time, count_or_explain, count_work
from harness.study.architectures import find_architecture
from harness.study.errors import GridError
from harness.study.own import read_network
from harness.study.trials import Trial
from harness.training.graphs import count_adjacencies, rewrite_model
from harness.training.images import Images, Part
from harness.training.networks import build_network, initialize
from harness.training.own import load_own
from harness.training.train import train_pack

NAME = "nets/mine.py:build"
SHAPE = (3, 8, 8)

RESIDUAL = """
    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(channels)

        def forward(self, x):
            out = functional.relu(self.norm1(self.conv1(x)), inplace=True)
            out = self.norm2(self.conv2(out))
            out += x
            return out.relu()

    class Net(nn.Module):
        def __init__(self, shape, classes, depth):
            super().__init__()
            self.stem = nn.Conv2d(shape[0], 6, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(6)
            self.blocks = nn.ModuleList(Block(6) for _ in range(depth))
            self.dropout = nn.Dropout(0.5)
            self.head = nn.Linear(6, classes)

        def forward(self, x):
            x = torch.relu(self.norm(self.stem(x)))
            for block in self.blocks:
                x = block(x)
            return self.head(self.dropout(x.mean((2, 3))))

    build = Net
"""

OTHER = "computes something else once its operations are out of place: write `x = relu(x)`"

PLAIN = """
    def build(shape, classes, depth):
        return nn.Sequential(
            nn.Conv2d(shape[0], 6, 3, padding=1), NORM, ACT,
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
        )
"""


def body(text):
    """A network whose layers are given and whose forward() is `text`."""
    return f"""
    class Net(nn.Module):
        def __init__(self, shape, classes, depth):
            super().__init__()
            self.conv = nn.Conv2d(shape[0], 6, 3, padding=1)
            self.other = nn.Conv2d(6, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.norm2 = nn.BatchNorm2d(6)
            self.scale = nn.Parameter(torch.ones(1))
            self.head = nn.Linear(6, classes)

        def forward(self, x):
            x = torch.relu(self.norm(self.conv(x)))
            {text}

    build = Net
"""


@pytest.fixture
def trial_of(tmp_path):
    """Write the file of a network; make a trial of it."""

    def make(text, placement="before", **settings):
        path = tmp_path / "nets/mine.py"
        path.parent.mkdir(exist_ok=True)
        head = "import torch\nfrom torch import nn\nfrom torch.nn import functional\n"
        path.write_text(head + textwrap.dedent(text), encoding="utf-8")
        small = {
            "architecture_digest": read_network(NAME, tmp_path),
            "program": find_architecture(NAME).programs[placement],
            "depth": 2,
            "seed": 0,
            "dataset": "synthetic:3x8x8x5x600",
            "epochs": 1,
            "batch_size": 32,
            "warmup_epochs": 0.0,
            "augmentation": "none",
            "probe_size": 32,
        }
        return Trial(architecture=NAME, placement=placement, **(small | settings))

    return make


def network_of(trial):
    network = build_network(trial, SHAPE, 5)
    initialize(network, [trial])
    return network


def images(count=4, seed=1):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def theirs(trial, **names):
    """The user's own module, as its file makes it."""
    space = {"torch": torch, "nn": nn, "functional": functional} | names
    exec(textwrap.dedent(trial), space)
    return space["build"](SHAPE, 5, 2)


def share_weights(module, network):
    """Give the user's module the weights of the rewritten network."""
    state = {key.removeprefix("features."): of for key, of in network.state_dict().items()}
    ours = {key: state[key] for key in module.state_dict()}
    module.load_state_dict(ours)


def test_before_is_the_users_own_network(trial_of):
    network = network_of(trial_of(RESIDUAL))
    module = theirs(RESIDUAL)
    module.dropout.p = 0.0
    share_weights(module, network)
    x = images()
    assert torch.equal(network(x)[:, 0], module(x))
    module(x).square().sum().backward()
    network(x).square().sum().backward()
    assert torch.equal(network.features.stem.weight.grad, module.stem.weight.grad)
    network.eval()
    module.eval()
    assert torch.equal(network(x)[:, 0], module(x))


@pytest.mark.parametrize("placement", find_architecture(NAME).programs)
def test_every_placement_stands_in_the_graph(trial_of, placement):
    trial = trial_of(RESIDUAL, placement)
    counts = count_adjacencies(rewrite_model(trial, SHAPE, 5).graph)
    assert counts.norms == (0 if placement == "none" else 5)
    assert (counts.ahead_of_act == 3) == (placement == "before")
    assert (counts.behind_act > 0) == placement.startswith("after")


def test_a_network_starts_alike_in_every_placement_and_not_with_another_seed(trial_of):
    text = PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU(), Scaled()")
    text = (
        """
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(1))

        def forward(self, x):
            return self.scale * x
"""
        + text
    )
    state = torch.get_rng_state()
    before, after, again, other = (
        dict(network_of(trial_of(text, placement, seed=seed)).named_parameters())
        for placement, seed in (("before", 0), ("after", 0), ("before", 0), ("before", 1))
    )
    assert torch.equal(state, torch.get_rng_state())
    for name, weight in before.items():
        assert torch.equal(weight, after[name])
        assert torch.equal(weight, again[name])
    for name in ("features.0.weight", "features.3.scale", "head.weight"):
        assert not torch.equal(before[name], other[name])


@pytest.mark.parametrize(
    ("settings", "norm", "act"),
    [
        ({"norm": "group", "norm_groups": 3}, nn.GroupNorm(3, 6), nn.ReLU()),
        ({"norm": "layer", "activation": "gelu"}, nn.GroupNorm(1, 6), nn.GELU()),
        ({"norm": "instance"}, nn.InstanceNorm2d(6), nn.ReLU()),
        ({"activation": "tanh"}, nn.BatchNorm2d(6), nn.Tanh()),
    ],
)
def test_batch_norm_and_relu_become_what_the_trial_names(trial_of, settings, norm, act):
    text = PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU()")
    network = network_of(trial_of(text, "after", **settings))
    module = theirs(PLAIN.replace("NORM, ACT", "act, norm"), norm=norm, act=act)
    module[0].load_state_dict(network.features.get_submodule("0").state_dict())
    module[-1].load_state_dict(network.head.state_dict())
    assert torch.allclose(network(images())[:, 0], module(images()), atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "act", "settings"),
    [
        (
            "nn.GroupNorm(3, 6)",
            "nn.GELU('tanh')",
            {"norm": "group", "norm_groups": 3, "activation": "gelu"},
        ),
        ("nn.InstanceNorm2d(6)", "nn.SiLU(True)", {"norm": "instance", "activation": "silu"}),
        ("nn.GroupNorm(1, 6)", "nn.LeakyReLU(0.2)", {"norm": "layer", "activation": "leaky_relu"}),
    ],
)
def test_another_norm_and_activation_stay_as_they_are_written(trial_of, norm, act, settings):
    text = PLAIN.replace("NORM", norm).replace("ACT", act)
    network = network_of(trial_of(text, **settings))
    module = theirs(text)
    module[0].load_state_dict(network.features.get_submodule("0").state_dict())
    module[-1].load_state_dict(network.head.state_dict())
    assert torch.allclose(network(images())[:, 0], module(images()), atol=1e-6)


def test_layers_are_listed_in_the_order_they_run(trial_of):
    text = """
    class Net(nn.Module):
        def __init__(self, shape, classes, depth):
            super().__init__()
            self.last = nn.Linear(6, classes)
            self.wide = nn.ModuleList([nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)])
            self.slim = nn.ModuleList([nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)])
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x):
            for wide, slim in zip(self.wide, self.slim):
                x = slim(wide(x))
            return self.last(torch.relu(self.norm(x)).mean((2, 3)))

    build = Net
"""
    trial = trial_of(text)
    names = [name for name, _ in network_of(trial).layers()]
    assert names == [f"features.{kind}.{at}" for at in (0, 1) for kind in ("wide", "slim")] + [
        "head"
    ]


def test_it_trains_alike_twice_and_its_rows_name_its_layers(trial_of):
    pixels = torch.randint(256, (96, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    part = Part(pixels.to(torch.uint8), torch.arange(96) % 5)
    data = Images("own", 5, part, part, part, torch.full((3,), 127.0), torch.full((3,), 74.0))
    trial = trial_of(RESIDUAL, "after")
    (rows,), (again,) = (train_pack([trial], data, device=torch.device("cpu")) for _ in range(2))
    assert rows.trial.architecture_digest == trial.architecture_digest
    assert [e.train_loss for e in rows.epochs] == [e.train_loss for e in again.epochs]
    assert {row.layer for row in rows.gradients} >= {"features.stem", "features.blocks.1.conv2"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("build = None", "nets/mine.py:build is called as build(shape, classes, depth), shape = (channels, height, width): TypeError: 'NoneType' object"),
        ("raise ValueError('one\\ntwo')\ndef build(): ...", "nets/mine.py:4: `raise ValueError('one\\ntwo')`: ValueError: one"),
        ("import sys\nsys.exit(3)\ndef build(): ...", "nets/mine.py:5: `sys.exit(3)`: SystemExit: 3"),
        ("def build(extra, shape, classes, depth): ...", "is called as build(shape, classes, depth), shape = (channels, height, width): TypeError: build() missing 1"),
        ("def build(*_): return 1 + None", "nets/mine.py:4: `def build(*_): return 1 + None`: TypeError: unsupported"),
        ("class Own(BaseException): ...\ndef build(*_): raise Own(1)", "nets/mine.py:5: `def build(*_): raise Own(1)`: Own: 1"),
        ("class Own(Exception):\n    def __str__(self): return None\ndef build(*_): raise Own", "nets/mine.py:6: `def build(*_): raise Own`: Own"),
        (PLAIN.replace("NORM, ACT", "nn.ReLU(), nn.BatchNorm2d(6)"), "no placement can move its norms; write it with the norm ahead of the activation"),
        ("def build(*_): return 7", "nets/mine.py:build returns int, and should return a torch.nn.Module"),
        ("def build(shape, classes, depth): return nn.Linear(3)", "nets/mine.py:4: `def build(shape, classes, depth): return nn.Linear(3)`: TypeError: "),
        (PLAIN.replace("NORM", "nn.Identity()").replace("ACT", "nn.ReLU()"), "nets/mine.py:build has no norm that a placement could move"),
        (PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.Hardswish()"), "nets/mine.py:build has no norm that only an activation of ours reads, nor"),
        (PLAIN.replace("NORM", "nn.LayerNorm(8)").replace("ACT", "nn.ReLU()"), "has a LayerNorm, '1'; of torch's layers with weights it may have Conv2d, Linear, BatchNorm1d, BatchNorm2d, GroupNorm, InstanceNorm2d; nn.GroupNorm(1, channels) normalises"),
        (PLAIN.replace("NORM", "nn.ConvTranspose2d(6, 6, 1)").replace("ACT", "nn.ReLU()"), "has a ConvTranspose2d, '1'"),
        (PLAIN.replace("NORM", "nn.TransformerEncoderLayer(6, 2)").replace("ACT", "nn.ReLU()"), "has a TransformerEncoderLayer, '1'"),
        (PLAIN.replace("NORM", "nn.LazyBatchNorm2d()").replace("ACT", "nn.ReLU()"), "has a lazy layer, '1'; give it its sizes"),
        (PLAIN.replace("NORM", "nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1))").replace("ACT", "nn.ReLU()"), "computes the weight of '1' from others"),
        (PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU(), nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6)"), "has batch norms and others"),
        (PLAIN.replace("NORM", "nn.GroupNorm(2, 6)").replace("ACT", "nn.ReLU()"), "is written with group norm: say `norm: group` in its product"),
        (PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.GELU()"), "is written with gelu: say `activation: gelu` in its product"),
        (PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.GELU(), nn.ReLU()"), "has activations of several kinds, gelu, relu; use one"),
        (PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU()").replace("classes)", "7)"), "gives 7 logits, and the data set has 5 classes"),
        (PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU()").replace("(6, classes)", "(9, classes)"), "nets/mine.py:build does not take images of 3 x 8 x 8: (6,) numbers reach its head, which takes 9"),
        (PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU(), nn.MaxPool2d(9)"), "nets/mine.py:build does not take images of 3 x 8 x 8: "),
        (PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU()").replace("classes),", "classes), nn.Softmax(1)"), "ends in 'Softmax', and should end in an nn.Linear"),
        (body("return self.head(x.mean((2, 3))).log_softmax(1)"), "ends in 'log_softmax', and should end in an nn.Linear"),
        (body("return {'logits': self.head(x.mean((2, 3)))}"), "returns more than one value, and should return the logits alone"),
        (body("return self.head(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))"), "nets/mine.py:17: `return self.head(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))`: what is computed depends on the images"),
        (body("return self.head(self.other(self.other(x)).mean((2, 3)))"), "runs its layer 'other' 2 times; each place needs one of its own"),
        (body("return self.head((x + torch.rand_like(x)).mean((2, 3)))"), "calls 'rand_like', which no seed of a trial decides"),
        (body("return self.head(x.mean((2, 3)) * (2 if self.training else 1))"), "does other operations in evaluation than in training"),
        (body("return self.head(torch.relu(self.norm(x) + self.norm2(self.other(x))).mean((2, 3)))"), "runs its layer 'norm' 2 times"),
        (body("return self.head(x.mean((2, 3)))").replace("torch.ones(1)", "torch.tensor(1.0)"), "has a parameter without an axis, 'scale'; write torch.ones(1)"),
        (body("return self.head(x.mean((2, 3)))").replace("self.norm2 = nn.BatchNorm2d(6)", "self.other.weight = self.conv.weight"), "has one weight at two places, 'conv.weight' and 'other.weight'"),
        (body("return self.head(self.other(x).detach().mean((2, 3)))"), "sends no gradient to its layer 'conv', which would not be trained"),
        (body("self.act(x); return self.head(x.mean((2, 3)))").replace("torch.relu(self.norm(self.conv(x)))", "self.norm(self.conv(x)); x.relu()").replace("self.scale =", "self.act = nn.ReLU(inplace=True); self.scale ="), OTHER),
        (body("y = self.other(x); functional.relu_(y); return self.head((y * x).mean((2, 3)))"), OTHER),
        (body("x.mul_(2); return self.head(x.mean((2, 3)))"), OTHER),
        (body("y = self.other(x); return self.head((functional.relu(y, inplace=True) + y).mean((2, 3)))"), OTHER),
        (body("return self.head(self.act(x).mean((2, 3)))").replace("self.scale =", "self.act = nn.ReLU(); self.act.register_forward_hook(lambda module, x, y: 2 * y); self.scale ="), OTHER),
        (body("return self.head(self.norm2(self.other(x)).mean((2, 3)))").replace("self.scale =", "self.norm2.eval(); self.scale ="), "has in 'norm2' a layer in evaluation mode"),
        (body("return self.head(x.mean((2, 3)))").replace("def forward(self, x)", "def forward(self, x, y)"), "takes 2 arguments in its forward()"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_told_in_one_line(trial_of, text, told):
    with pytest.raises(GridError) as error:
        build_network(trial_of(text), SHAPE, 5)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("nets/mine.py:")


def test_two_branches_of_one_size_are_refused(trial_of):
    text = body(
        "return self.head(torch.relu(self.norm2(self.other(x)) + self.norm3(self.third(x))).mean((2, 3)))"
    ).replace(
        "self.scale = nn.Parameter(torch.ones(1))",
        "self.norm3, self.third = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)",
    )
    with pytest.raises(GridError, match="an addition of two branches with as many convs"):
        build_network(trial_of(text), SHAPE, 5)


@pytest.mark.parametrize("placement", ["after-relu", "after-add"])
def test_a_placement_of_joins_needs_a_join(trial_of, placement):
    text = PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU()")
    build_network(trial_of(text, "after"), SHAPE, 5)
    with pytest.raises(GridError, match=f"has no placement '{placement}': no norm in it ends a"):
        build_network(trial_of(text, placement), SHAPE, 5)


@pytest.mark.parametrize(
    ("setting", "value"), [("pack_size", 2), ("width_factor", 0.5), ("final_norm", True)]
)
def test_settings_without_a_rule_are_refused(trial_of, setting, value):
    with pytest.raises(GridError, match=setting):
        build_network(trial_of(RESIDUAL, **{setting: value}), SHAPE, 5)


def test_constants_buffers_dropout_and_double_precision_are_taken_as_they_are(trial_of):
    text = body(
        "return self.head(functional.dropout(x - torch.linspace(0, 1, 8), 0.5, self.training)"
        ".add(self.offset).mean((2, 3)))"
    ).replace(
        "self.head = nn.Linear(6, classes)",
        "self.head = nn.Linear(6, classes)\n            self.register_buffer('offset', torch.randn(8))\n            self.double()",
    )
    one, again = (network_of(trial_of(text, "after")) for _ in range(2))
    assert one(images()).dtype == torch.float32
    assert torch.equal(one(images()), again(images()))
    assert torch.equal(one(images()), one(images()))


def test_without_norm_its_linear_layers_get_a_bias_too(trial_of):
    text = """
    def build(shape, classes, depth):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(192, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, classes)
        )
"""
    network = network_of(trial_of(text, "none"))
    assert [layer.bias is not None for _, layer in network.layers()] == [True, True]
    layer_norm = network_of(trial_of(text, norm="layer"))
    assert isinstance(layer_norm.features.get_submodule("2"), nn.GroupNorm)
    assert layer_norm(images()).shape == (4, 1, 5)


def test_instance_norm_needs_height_and_width(trial_of):
    text = """
    def build(shape, classes, depth):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, classes)
        )
"""
    with pytest.raises(GridError, match="has a BatchNorm1d, '2', and `norm: instance` needs"):
        build_network(trial_of(text, norm="instance"), SHAPE, 5)


@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_module_that_only_calls_a_function_is_an_activation(trial_of, placement):
    act = """
    class Act(nn.Module):
        def forward(self, x):
            return functional.relu(x)
"""
    own = PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "Act()")
    network = network_of(trial_of(act + own, placement))
    torchs = own.replace("Act()", "nn.ReLU()")
    assert torch.equal(network(images()), network_of(trial_of(torchs, placement))(images()))


@pytest.mark.parametrize("norm", ["layer", "group", "instance"])
def test_another_norm_is_counted_ahead_of_training(trial_of, norm):
    text = PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU()")
    batch, other = (count_work(trial_of(text, "after", norm=kind)) for kind in ("batch", norm))
    assert other.flop == batch.flop


@pytest.mark.parametrize(
    ("norms", "groups", "told"),
    [
        (("GroupNorm(2, 6)",), 2, ""),
        (("GroupNorm(2, 6)",), 8, ""),  # as many as fit into 6 channels, like everywhere
        (("GroupNorm(2, 6)",), 3, "is written with groups of 2: say `norm_groups: 2` in its"),
        (("GroupNorm(2, 6)", "GroupNorm(3, 6)"), 2, "groups of several counts, 2, 3, which no"),
    ],
)
def test_the_groups_of_a_written_norm_are_the_trials(trial_of, norms, groups, told):
    layers = ", nn.ReLU(), nn.Conv2d(6, 6, 1), ".join(f"nn.{norm}" for norm in norms)
    text = PLAIN.replace("NORM", layers).replace("ACT", "nn.ReLU()")
    trial = trial_of(text, norm="group", norm_groups=groups)
    if told:
        with pytest.raises(GridError, match=told):
            build_network(trial, SHAPE, 5)
    else:
        build_network(trial, SHAPE, 5)


def test_a_file_draws_from_streams_of_its_block_and_changes_no_global_state(trial_of):
    text = """
    import random
    import numpy
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1 + torch.get_num_threads())
    drawn = [random.random(), numpy.random.rand(), torch.rand(1).item()]

    def build(shape, classes, depth):
        drawn.append(random.random())
        model = nn.Sequential(
            nn.Conv2d(shape[0], 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
        )
        model.register_buffer("drawn", torch.tensor(drawn))
        return model
"""

    def state():
        _, keys, place, *_ = np.random.get_state()  # noqa: NPY002
        streams = random.getstate(), keys.tolist(), place, torch.get_rng_state().tolist()
        return *streams, torch.get_default_dtype(), torch.get_num_threads()

    before = state()
    one, again = (load_own(trial_of(text), SHAPE, 5).drawn for _ in range(2))
    assert state() == before
    other = load_own(trial_of(text, seed=1), SHAPE, 5).drawn
    assert len(one) == 4
    assert torch.equal(one, again)
    assert not (one == other).any()


def test_a_file_that_never_ends_is_waited_for_once(trial_of):
    endless = trial_of("def build(*_):\n    while True: pass")
    begun = time.monotonic()
    told = count_in_time([endless, endless, endless], seconds=3)
    assert told == ["building nets/mine.py:build took over 0.05 minutes"] * 3
    assert time.monotonic() - begun < 8
    text = PLAIN.replace("NORM", "nn.BatchNorm2d(6)").replace("ACT", "nn.ReLU()")
    fine = trial_of(text)
    assert count_in_time([fine]) == [count_work(fine)]


def test_an_interrupt_by_the_file_is_told_when_it_is_counted(trial_of):
    trial = trial_of("def build(*_): raise KeyboardInterrupt")
    assert count_or_explain(trial) == "nets/mine.py:build raises KeyboardInterrupt"
