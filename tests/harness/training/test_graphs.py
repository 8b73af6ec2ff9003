from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.densenet import _DenseLayer
from torchvision.models.resnet import BasicBlock, Bottleneck

from harness.study.architectures import ARCHITECTURES, PREFIX
from harness.study.errors import GridError
from harness.study.trials import EVERY_PROGRAM, PROGRAMS, Trial
from harness.training.blocks import Block, Layer
from harness.training.graphs import find_sites, load_model, operation, rewrite, trace
from harness.training.images import Images, Part
from harness.training.networks import build_network, initialize
from harness.training.train import train_pack

SMALL = (3, 32, 32)
# One of each kind of block; densenet calls ReLU as a function, resnet one module twice.
SEVERAL = ["resnet18", "densenet121", "vgg11_bn"]


def trial_of(name, placement="before", **settings):
    architecture = PREFIX + name
    small = {
        "program": EVERY_PROGRAM[architecture][placement],
        "depth": ARCHITECTURES[architecture].shown_depth,
        "seed": 0,
        "dataset": "synthetic",
        "epochs": 1,
        "batch_size": 4,
        "augmentation": "none",
        "memory_format": "contiguous",
        "probe_size": 4,
    }
    return Trial(architecture=architecture, placement=placement, **(small | settings))


def network_of(name, placement="before", shape=SMALL, **settings):
    trial = trial_of(name, placement, **settings)
    network = build_network(trial, shape, 10)
    initialize(network, [trial])
    return network


def images(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fill(module, seed=0):
    """Weights, scales, shifts and running statistics that no symmetry hides behind."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.ndim > 1:
            tensor.normal_(std=math.sqrt(2 / tensor[0].numel()), generator=generator)
        elif tensor.is_floating_point():
            tensor.uniform_(0.2, 1.2, generator=generator)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("name", [*SEVERAL, "resnet50"])
def test_before_is_torchvisions_model_bit_for_bit(name):
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10)
    without_dropout(theirs)
    fill(theirs)
    network = build_network(trial_of(name), SMALL, 10)
    state = theirs.state_dict()
    network.features.load_state_dict({key: state[key] for key in network.features.state_dict()})
    *_, head = (module for module in theirs.modules() if isinstance(module, nn.Linear))
    network.head.load_state_dict(head.state_dict())

    x = images(4, *SMALL)
    ours_x, their_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, expected = network(ours_x)[:, 0], theirs(their_x)
    assert torch.equal(ours, expected)
    weights = images(*expected.shape, seed=2)
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(ours_x.grad, their_x.grad)
    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in network.features.named_parameters():
        assert torch.equal(parameter.grad, gradients[key]), key
    assert torch.equal(network.head.weight.grad, head.weight.grad)
    for key, buffer in network.features.named_buffers():  # running statistics moved alike
        assert torch.equal(buffer, theirs.get_buffer(key)), key
    network.eval()
    theirs.eval()
    assert torch.equal(network(x)[:, 0], theirs(x))


def copy_layers(theirs, ours, names):
    for mine, other in names.items():
        ours.get_submodule(mine).load_state_dict(theirs.get_submodule(other).state_dict())


@pytest.mark.parametrize("placement", PROGRAMS["resnet"])
def test_a_rewritten_basic_block_is_our_block_of_the_same_name(placement):
    program = EVERY_PROGRAM["torchvision/resnet18"][placement]
    theirs = rewrite(BasicBlock(6, 6), program)
    ours = Block(PROGRAMS["resnet"][placement], 6, [Layer(6), Layer(6)])
    fill(theirs)
    names = {"conv0": "conv1", "conv1": "conv2", "norm0": "bn1", "norm1": "bn2"}
    copy_layers(theirs, ours, {mine: names[mine] for mine in names if hasattr(ours, mine)})
    x = images(5, 6, 8, 8)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = theirs(one), ours(other)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("placement", PROGRAMS["densenet"])
def test_a_rewritten_dense_layer_is_our_bottleneck_block(placement):
    theirs = rewrite(_DenseLayer(6, 4, 4, 0.0), EVERY_PROGRAM["torchvision/densenet121"][placement])
    body = PROGRAMS["densenet"][placement].removesuffix(" cat")
    ours = Block(f"{body} {body} cat", 6, [Layer(16, kernel=1), Layer(4)])
    fill(theirs)
    names = {"conv0": "conv1", "conv1": "conv2", "norm0": "norm1", "norm1": "norm2"}
    copy_layers(theirs, ours, {mine: names[mine] for mine in names if hasattr(ours, mine)})
    x = images(5, 6, 8, 8)
    assert torch.equal(theirs([x]), ours(x)[:, 6:])


# Read off torchvision/models/resnet.py by hand: a projection fits the skip path, and runs after the
# branch. An addition is no module and does not show; the last word is what it and ReLU leave.
RUNS = {
    "before": "conv1 bn1 act0 conv2 bn2 act1 conv3 bn3 downsample.0 downsample.1 act2",
    "after": "conv1 act3 bn1 conv2 act4 bn2 conv3 act5 bn3 downsample.0 downsample.1",
    "after-inner": "conv1 act3 bn1 conv2 act4 bn2 conv3 bn3 downsample.0 downsample.1 act5",
    "after-relu": "conv1 act3 bn1 conv2 act4 bn2 conv3 act5 bn3 downsample.0 downsample.1 act6",
    "after-add": "conv1 act3 bn1 conv2 act4 bn2 conv3 downsample.0 downsample.1 act5 bn3",
    "none": "conv1 act3 conv2 act4 conv3 downsample.0 act5",
}


@pytest.mark.parametrize("placement", RUNS)
def test_a_rewritten_bottleneck_runs_in_the_order_of_its_placement(placement):
    downsample = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8))
    block = rewrite(
        Bottleneck(6, 2, downsample=downsample), EVERY_PROGRAM["torchvision/resnet50"][placement]
    )
    ran = []
    for name, module in block.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    block(images(2, 6, 4, 4))

    def kinds(names):
        return ["act" if name.startswith("act") else name for name in names]

    assert kinds(ran) == kinds(RUNS[placement].split())


def test_the_skip_path_is_found_on_whichever_side_of_the_addition_it_stands():
    class Swapped(BasicBlock):
        def forward(self, x):
            branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(self.downsample(x) + branch)

    downsample = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
    for block in (BasicBlock, Swapped):
        sites = find_sites(trace(block(6, 6, downsample=downsample)).graph)
        assert [site.norm.target for site in sites.pairs] == ["bn1"]
        assert [site.norm.target for site in sites.joins] == ["bn2"]
        assert [norm.target for norm in sites.projections] == ["downsample.1"]


def test_a_batch_norm_that_more_than_a_relu_reads_is_no_pair():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()

        def forward(self, x):
            normed = self.norm(self.conv(x))
            return torch.cat([self.relu(normed), normed], 1)

    sites = find_sites(trace(Forked()).graph)
    assert not sites.pairs
    assert [norm.target for norm in sites.loose] == ["norm"]


def longest_path(graph):
    layers = {}
    for node in graph.nodes:
        ahead = max((layers[source] for source in node.all_input_nodes), default=0)
        layers[node] = ahead + (operation(node) in {"conv", "linear"})
    return max(layers.values())


@pytest.mark.parametrize(
    "architecture", [name for name in ARCHITECTURES if name.startswith(PREFIX)]
)
def test_what_is_declared_is_what_the_graph_has(architecture):
    graph = trace(load_model(architecture.removeprefix(PREFIX))).graph
    sites = find_sites(graph)
    assert sites.pairs
    assert not sites.loose
    placements = {"before", "after", "after-inner", "none"}
    if sites.joins:
        placements |= {"after-relu", "after-add"}
    declared = ARCHITECTURES[architecture]
    assert set(declared.programs) == placements
    assert declared.depths == (longest_path(graph),)


EVERY_ARM = [
    pytest.param(name, placement, id=f"{name}-{placement}")
    for name in SEVERAL
    for placement in EVERY_PROGRAM[PREFIX + name]
]


@pytest.mark.parametrize(("name", "placement"), EVERY_ARM)
def test_layers_are_listed_in_the_order_they_run_and_every_relu_runs_once(name, placement):
    network = network_of(name, placement)
    ran = []
    relus = []
    for layer_name, layer in network.layers():
        layer.register_forward_hook(lambda *_, name=layer_name: ran.append(name))
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            assert not module.inplace
            module.register_forward_hook(lambda module, *_: relus.append(module))
    out = network(images(2, *SMALL))
    assert out.shape == (2, 1, 10)
    assert ran == [layer_name for layer_name, _ in network.layers()]
    assert len(relus) == len(set(relus)) == sum(isinstance(m, nn.ReLU) for m in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
def test_an_arm_gains_no_parameters_from_its_placement(name):
    def parameters(placement):
        features = rewrite(load_model(name), EVERY_PROGRAM[PREFIX + name][placement])
        return {key: parameter.shape for key, parameter in features.named_parameters()}

    before = parameters("before")
    for placement in EVERY_PROGRAM[PREFIX + name]:
        if placement != "none":
            assert parameters(placement) == before


def test_none_has_no_batch_norm_and_a_bias_on_every_layer():
    for name in ("resnet18", "vgg16_bn", "densenet121"):
        features = rewrite(load_model(name), EVERY_PROGRAM[PREFIX + name]["none"])
        assert not any(isinstance(module, nn.BatchNorm2d) for module in features.modules())
        layers = [m for m in features.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert all(layer.bias is not None for layer in layers)


def test_layers_start_equal_in_every_placement_and_elsewhere_for_another_seed():
    weights = {
        placement: dict(network_of("resnet18", placement).layers())
        for placement in EVERY_PROGRAM["torchvision/resnet18"]
    }
    for layers in weights.values():
        assert list(layers) == list(weights["before"])
        for name, layer in layers.items():
            assert torch.equal(layer.weight, weights["before"][name].weight)
    other = dict(network_of("resnet18", seed=1).layers())
    assert not torch.equal(other["head"].weight, weights["before"]["head"].weight)


def test_building_a_network_takes_no_global_randomness():
    state = torch.get_rng_state()
    network_of("resnet18", "after")
    assert torch.equal(torch.get_rng_state(), state)


def tiny_images():
    generator = torch.Generator().manual_seed(0)

    def part(count):
        shape = (count, 32, 32, 3)
        x_NHWC = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return Part(x_NHWC, torch.arange(count) % 10)

    return Images(
        name="synthetic",
        classes=10,
        train=part(8),
        validation=part(4),
        test=part(4),
        mean_C=torch.full((3,), 127.5),
        std_C=torch.full((3,), 74.0),
    )


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        ("resnet18", "after"),
        ("resnet18", "after-relu"),
        pytest.param("densenet121", "after", marks=pytest.mark.slow),
        pytest.param("densenet121", "none", marks=pytest.mark.slow),
    ],
)
def test_a_rewritten_model_trains_and_the_probe_reads_every_layer(name, placement):
    # Two steps leave running statistics far from the batch's: a bolder rate overflows the evaluation.
    trial = trial_of(name, placement, lr=1e-5)
    (rows,) = train_pack([trial], tiny_images(), device=torch.device("cpu"))
    assert rows.trial.status == "done"
    assert math.isfinite(rows.trial.test_loss)
    layers = [layer for layer, _ in build_network(trial, SMALL, 10).layers()]
    assert [row.layer for row in rows.gradients if row.step == 0] == layers
    assert all(row.actgrad_total > 0 for row in rows.gradients if row.step == 0)


@pytest.mark.parametrize("placement", ["before", "after"])
def test_the_probe_follows_the_data_not_the_order_of_execution(placement):
    (rows,) = train_pack(
        [trial_of("resnet18", placement)], tiny_images(), device=torch.device("cpu")
    )
    for row in rows.gradients:
        if row.step == 0:
            # The projection and the branch beside it run into the ReLU behind their addition; in
            # `after` none stands there, and the projection's is the next block's, past its conv.
            has_relu = row.layer != "head" and not (
                placement == "after" and "downsample" in row.layer
            )
            assert math.isnan(row.zero_fraction) != has_relu, row.layer
            assert math.isnan(row.qa_sum) == (row.layer == "head"), row.layer


def test_the_first_conv_takes_the_images_channels():
    network = network_of("resnet18", "after", (1, 8, 8))
    assert network(images(2, 1, 8, 8)).shape == (2, 1, 10)


def test_batch_norm_without_affine_has_no_parameters():
    names = dict(network_of("resnet18", "after", norm_affine=False).named_parameters())
    assert not any("bn" in name or "downsample.1" in name for name in names)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"pack_size": 2}, "torchvision/resnet18 trains one seed at a time: pack_size must be 1"),
        ({"width_factor": 0.5}, "torchvision/resnet18 comes in one width: width_factor must be 1"),
        (
            {"final_norm": True},
            "torchvision/resnet18 has no rule for one more norm: final_norm must be false",
        ),
    ],
)
def test_a_setting_torchvision_has_no_room_for_is_refused(settings, text):
    with pytest.raises(GridError) as error:
        build_network(trial_of("resnet18", **settings), SMALL, 10)
    assert str(error.value) == text


def test_images_too_small_for_a_model_are_refused():
    with pytest.raises(GridError, match=r"^torchvision/vgg11_bn does not take images of 8 x 8: "):
        build_network(trial_of("vgg11_bn"), (3, 8, 8), 10)
