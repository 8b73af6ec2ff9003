from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.study.trials import EVERY_PROGRAM, PROGRAMS, Trial
from harness.training.blocks import NORMS, Block, Linear
from harness.training.gradients import EARLY_STEPS, QUANTITIES, Probe
from harness.training.networks import build_network, initialize

EVERY_ARM = [
    pytest.param(architecture, placement, id=f"{architecture}-{placement}")
    for architecture, programs in PROGRAMS.items()
    for placement in programs
]


def probe_of(trials, digits, *, double=False, steps_per_epoch=4):
    network = build_network(trials[0], digits.shape, digits.classes, replicas=len(trials))
    initialize(network, trials)
    probe = Probe.on(digits, network, trials[0], steps_per_epoch=steps_per_epoch)
    if double:
        network.double()
        probe.x_NDHW = probe.x_NDHW.double()
    return probe


def slow_twin(network, x, y):  # noqa: C901 - plain on purpose
    """The same quantities for one replica, spelled out layer by layer with plain loops.

    In our own networks the ReLU and the norm that a layer runs into are the next to run.
    """
    events = []
    scale_invariant = find_scale_invariant(network)

    def note(kind, tensor):
        if kind != "relu":
            tensor.retain_grad()
        events.append((kind, tensor))

    hooks = []
    for name, module in network.named_modules():
        match module:
            case nn.Conv2d() | Linear():
                hook = functools.partial(lambda name, _m, _in, out: note(name, out), name)
            case nn.ReLU():
                hook = lambda _m, _in, out: note("relu", out)  # noqa: E731
            case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.GroupNorm() | nn.InstanceNorm2d():
                hook = lambda module, inputs, _out: note(("norm", module), inputs[0])  # noqa: E731
            case _:
                continue
        hooks.append(module.register_forward_hook(hook))
    network.train()
    functional.cross_entropy(network(x)[:, 0], y).backward()
    for hook in hooks:
        hook.remove()

    table = {}
    layers = [at for at, (kind, _) in enumerate(events) if isinstance(kind, str) and kind != "relu"]
    for at, end in zip(layers, [*layers[1:], len(events)], strict=True):
        name, z = events[at]
        module = network.get_submodule(name)
        relu = next((out for kind, out in events[at:end] if kind == "relu"), None)
        norm, normed = next(
            ((kind[1], out) for kind, out in events[at:end] if isinstance(kind, tuple)),
            (None, None),
        )
        g, z, w, gw = z.grad, z.detach(), module.weight.detach(), module.weight.grad
        channels = range(z.shape[1])
        row = dict.fromkeys(QUANTITIES, math.nan)
        row["actgrad_total"] = sum(float(v) ** 2 for v in g.flatten()) ** 0.5
        row["act_mean"] = sum(float(z[:, c].mean()) for c in channels) / len(channels)
        row["act_var"] = sum(float(z[:, c].var(correction=0)) for c in channels) / len(channels)
        row["actgrad_rel"] = float(g.pow(2).mean().sqrt()) * row["act_var"] ** 0.5
        row["wgrad_norm"] = float(gw.norm())
        row["weight_norm"] = float(w.norm())
        row["effective_grad"] = row["wgrad_norm"] * row["weight_norm"]
        if relu is not None:
            zero = [relu[:, c] == 0 for c in range(relu.shape[1])]
            row["zero_fraction"] = sum(float(c.double().mean()) for c in zero) / len(zero)
            row["dead_fraction"] = sum(bool(c.all()) for c in zero) / len(zero)
        is_batch_norm = isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        if normed is not None and (is_batch_norm or not shares_its_input(network, norm)):
            gn = list(normalised_sets(normed.grad, norm))
            row["qa_sum"] = math.dist([float(c.sum()) for c in gn], [0] * len(gn)) / math.dist(
                [float(c.abs().sum()) for c in gn], [0] * len(gn)
            )
        if name in scale_invariant:
            together = len(w) // norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
            dots = [w[f : f + together] * gw[f : f + together] for f in range(0, len(w), together)]
            row["qa_dot"] = math.dist([float(d.sum()) for d in dots], [0] * len(dots)) / math.dist(
                [float(d.abs().sum()) for d in dots], [0] * len(dots)
            )
        table[name] = row
    return table


def normalised_sets(grad, norm):
    """What a norm gives mean 0: a channel, or a group of channels of one image."""
    match norm:
        case nn.GroupNorm(num_groups=groups):
            for image in grad:
                yield from image.chunk(groups)
        case nn.InstanceNorm2d():
            for image in grad:
                yield from image
        case _:
            yield from grad.transpose(0, 1)


def shares_its_input(network, norm):
    """Whether the skip of its block reads the same tensor."""
    return any(
        block.get_submodule(block.operations[0]) is norm
        for block in network.modules()
        if isinstance(block, Block) and {"+", "cat"} & {*block.operations}
    )


def find_scale_invariant(network):
    """Layers that a norm follows with nothing between but a ReLU: their scale has no effect."""
    return {
        f"{block_name}.{operation}"
        for block_name, block in network.named_modules()
        if isinstance(block, Block)
        for operation in _followed_by_norm(block)
    }


def _followed_by_norm(block):
    for at, operation in enumerate(block.operations):
        following = [op for op in block.operations[at + 1 :] if not is_homogeneous(block, op)]
        is_followed = following[:1] and following[0].startswith("norm")
        if operation.startswith(("conv", "linear")) and is_followed:
            yield operation


def is_homogeneous(block, operation):
    return operation.startswith("act") and isinstance(
        block.get_submodule(operation), nn.ReLU | nn.LeakyReLU
    )


EVERY_NORM_AND_ACTIVATION = [
    pytest.param(architecture, placement, {"norm": norm, "activation": activation})
    for architecture, placement, norm, activation in (
        ("resnet", "before", "layer", "relu"),
        ("resnet", "after", "group", "relu"),
        ("resnet", "after-inner", "instance", "leaky_relu"),
        ("plain", "after", "batch", "gelu"),
        ("plain", "before", "layer", "gelu"),
        ("preresnet", "before", "group", "silu"),
        ("densenet", "after", "instance", "relu"),
        ("densenet", "before", "layer", "tanh"),
        ("mlp", "after", "layer", "relu"),
        ("mlp", "before", "group", "tanh"),
    )
]
EVERY_ARM_AND_NORM = [
    *(pytest.param(*arm.values, {}, id=arm.id) for arm in EVERY_ARM),
    *EVERY_NORM_AND_ACTIVATION,
]


@pytest.mark.parametrize(("architecture", "placement", "settings"), EVERY_ARM_AND_NORM)
def test_every_quantity_is_its_slow_twin(trial_of, digits, architecture, placement, settings):
    trial = trial_of(architecture, placement, probe_size=8, width_factor=0.06, **settings)
    probe = probe_of([trial], digits, double=True)
    probe.read(0)
    rows = probe.rows(0, "id")
    twin = slow_twin(probe.network, probe.x_NDHW, probe.y_N)
    assert [row.layer for row in rows] == list(twin)
    for row in rows:
        for quantity in QUANTITIES:
            expected = twin[row.layer][quantity]
            if quantity.startswith("qa_"):  # zero to rounding in both, or the same number
                assert getattr(row, quantity) == pytest.approx(
                    expected, rel=1e-6, abs=1e-9, nan_ok=True
                ), (row.layer, quantity)
            else:
                assert getattr(row, quantity) == pytest.approx(expected, rel=1e-9, nan_ok=True), (
                    row.layer,
                    quantity,
                )


@pytest.mark.parametrize(("architecture", "placement", "settings"), EVERY_ARM_AND_NORM)
def test_exact_identities_hold_wherever_a_norm_makes_them(
    trial_of, digits, architecture, placement, settings
):
    trial = trial_of(architecture, placement, probe_size=32, **settings)
    probe = probe_of([trial], digits, double=True)
    for module in probe.network.modules():
        if isinstance(module, NORMS):
            module.eps = 1e-14  # any more of it, and the scale of W has an effect after all
    probe.read(0)
    rows = probe.rows(0, "id")
    for row in rows:
        if not math.isnan(row.qa_sum):  # the gradient at a norm's input sums to zero
            assert row.qa_sum < 1e-9, row.layer
        if not math.isnan(row.qa_dot):  # <W, gW> = 0 for what is scaled together
            assert row.qa_dot < 1e-9, row.layer
    claimed = {row.layer for row in rows if not math.isnan(row.qa_dot)}
    assert claimed == find_scale_invariant(probe.network)


@pytest.mark.parametrize("model", ["vgg11_bn", "resnet18"])
def test_identities_are_claimed_of_torchvisions_models_only_where_they_hold(digits, model):
    for placement in ("before", "after"):
        architecture = f"torchvision/{model}"
        program = EVERY_PROGRAM[architecture][placement]
        depth = int("".join(filter(str.isdigit, model)))
        trial = Trial(
            dataset="digits", architecture=architecture, placement=placement, program=program,
            depth=depth, seed=0, probe_size=16,
        )  # fmt: skip
        images = enlarged(digits)
        network = build_network(trial, images.shape, images.classes).double()
        initialize(network, [trial])
        probe = Probe.on(images, network, trial, steps_per_epoch=4)
        probe.x_NDHW = probe.x_NDHW.double()
        for module in network.modules():
            if isinstance(module, NORMS):
                module.eps = 1e-14
        probe.read(0)
        rows = probe.rows(0, "id")
        assert any(not math.isnan(row.qa_dot) for row in rows) == (
            placement == "before" or model == "resnet18"  # vgg's convs have biases
        )
        assert all(row.qa_dot < 1e-8 for row in rows if not math.isnan(row.qa_dot))
        assert all(row.qa_sum < 1e-8 for row in rows if not math.isnan(row.qa_sum))


def enlarged(images):
    """The same images, four times as wide and high: torchvision's models shrink them so often."""

    def grow(part):
        pixels = part.x_NHWC.repeat_interleave(4, 1).repeat_interleave(4, 2)
        return dataclasses.replace(part, x_NHWC=pixels)

    parts = {name: grow(getattr(images, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(images, **parts)


def test_update_ratio_is_of_the_step_just_taken(trial_of, digits):
    probe = probe_of([trial_of("plain", seed=seed) for seed in (0, 1)], digits)
    probe.read(0)
    probe.remember_weights()
    for _, layer in probe.network.layers():
        layer.weight.data[: len(layer.weight) // 2] *= 1.5  # the first replica only
    probe.read(1)
    for replica, ratio in ((0, 0.5), (1, 0.0)):
        rows = probe.rows(replica, "id")
        assert all(math.isnan(row.update_ratio) for row in rows if row.step == 0)
        assert [row.update_ratio for row in rows if row.step == 1] == pytest.approx(
            [ratio] * len(list(probe.network.layers()))
        )


def test_signal_to_noise_is_its_slow_twin_and_off_by_default(trial_of, digits):
    probe = probe_of([trial_of("plain", seed=seed) for seed in (0, 1)], digits, double=True)
    probe.read(0)
    assert all(math.isnan(row.wgrad_snr) for row in probe.rows(0, "id"))

    probe.snr_batches = 4
    probe.read(1)
    rows = [row for row in probe.rows(1, "id") if row.step == 1]
    weights = [layer.weight for _, layer in probe.network.layers()]
    grads = []
    for part in range(4):
        at = slice(16 * part, 16 * part + 16)
        logits = probe.network(probe.x_NDHW[at])[:, 1]
        grads.append(torch.autograd.grad(functional.cross_entropy(logits, probe.y_N[at]), weights))
    for index, row in enumerate(rows):
        ours = [grad[index][len(grad[index]) // 2 :].flatten() for grad in grads]
        mean = sum(ours) / 4
        variance = sum(float((grad - mean) @ (grad - mean)) for grad in ours) / 3
        assert row.wgrad_snr == pytest.approx(float(mean @ mean) / variance, rel=1e-9)


@pytest.mark.parametrize("architecture", PROGRAMS)
def test_a_replica_in_a_pack_reads_as_it_does_alone(trial_of, digits, architecture):
    trials = [trial_of(architecture, "after", seed=seed) for seed in range(3)]
    together = probe_of(trials, digits, double=True)
    together.read(0)
    for replica, trial in enumerate(trials):
        alone = probe_of([trial], digits, double=True)
        alone.read(0)
        for row, other in zip(together.rows(replica, "id"), alone.rows(0, "id"), strict=True):
            for quantity in QUANTITIES:
                if not quantity.startswith("qa_"):
                    assert getattr(row, quantity) == pytest.approx(
                        getattr(other, quantity), rel=1e-9, nan_ok=True
                    )


def test_a_reading_leaves_nothing_behind(trial_of, digits):
    probe = probe_of([trial_of("resnet", "after")], digits)
    network = probe.network
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    network.eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    probe.read(0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_readings_are_due_at_the_early_steps_and_at_every_epochs_end(trial_of, digits):
    probe = probe_of([trial_of()], digits, steps_per_epoch=40)
    due = [step for step in range(401) if probe.is_due(step)]
    assert due == sorted({*EARLY_STEPS, *range(0, 401, 40)})


def test_the_probe_batch_is_the_same_for_every_trial_of_a_data_set(trial_of, digits):
    one, other = probe_of([trial_of("resnet")], digits), probe_of([trial_of("mlp", seed=3)], digits)
    assert torch.equal(one.x_NDHW, other.x_NDHW)
    assert torch.equal(one.y_N, other.y_N)


# Yang et al. 2019, arXiv:1902.08129, theorem 3.10 (their s.3 and appendix): with batch norm the squared
# gradient of an MLP grows by pi/(pi-1) per layer towards the input as the batch grows.
LIMIT = math.pi / (math.pi - 1)


@functools.cache  # several tests look at the same networks
def growth_per_layer(trial_of, placement, batch, *, depth=24, width=512, draws=3, seed=0):
    """Geometric mean growth of the squared activation gradient per layer, away from both ends."""
    generator = torch.Generator().manual_seed(seed)
    logs = []
    for draw in range(draws):
        trial = trial_of("mlp", placement, depth=depth, width_factor=width / 512, seed=draw)
        network = build_network(trial, (1, 1, width), 10)
        initialize(network, [trial])
        probe = Probe(
            network=network,
            x_NDHW=torch.randn(batch, 1, 1, width, generator=generator),
            y_N=torch.randint(10, (batch,), generator=generator),
            steps_per_epoch=1,
        )
        probe.read(0)
        squares = [row.actgrad_total**2 for row in probe.rows(0, "id")[:-1]]
        first, last = 4, depth - 4  # ends see the input and the head
        logs.append(math.log(squares[first] / squares[last]) / (last - first))
    return math.exp(sum(logs) / len(logs))


@pytest.mark.parametrize("placement", ["before", "after"])
def test_gradients_explode_by_pi_over_pi_minus_1_per_layer_under_batch_norm(trial_of, placement):
    # Width 512 and 3 draws leave about 1 % of spread; the batch of 512 adds under 1 %.
    assert growth_per_layer(trial_of, placement, 512) == pytest.approx(LIMIT, rel=0.03)


def test_a_small_batch_explodes_faster_before_relu(trial_of):
    # Yang et al. 2019, finite batches: 1.590 per layer at batch 16 for BN ahead of ReLU.
    assert growth_per_layer(trial_of, "before", 16) == pytest.approx(1.590, rel=0.03)


@pytest.mark.parametrize("placement", ["before", "after"])
def test_the_explosion_slows_towards_its_limit_as_the_batch_grows(trial_of, placement):
    growth = [growth_per_layer(trial_of, placement, batch) for batch in (16, 32, 64, 128, 512)]
    assert growth == sorted(growth, reverse=True)
    assert growth[0] > 1.05 * LIMIT
    assert growth[-1] > 0.98 * LIMIT  # the spread of 3 draws


def test_small_batches_tell_the_placements_apart(trial_of):
    assert growth_per_layer(trial_of, "after", 16) > 1.03 * growth_per_layer(trial_of, "before", 16)


@pytest.mark.parametrize("batch", [16, 64, 512])
def test_without_batch_norm_he_initialisation_keeps_the_gradient(trial_of, batch):
    # Per layer the expectation is 1; its logarithm has a bias of order depth/width: 5/512.
    assert growth_per_layer(trial_of, "none", batch) == pytest.approx(1.0, abs=0.03)


def log_growth(trial_of, architecture, placement, depth):
    """ln of how much larger the squared activation gradient is behind the stem than at the end."""
    generator = torch.Generator().manual_seed(depth)
    trial = trial_of(architecture, placement, depth=depth, width_factor=1.0)
    network = build_network(trial, (3, 8, 8), 10)
    initialize(network, [trial])
    probe = Probe(
        network=network,
        x_NDHW=torch.randn(64, 3, 8, 8, generator=generator),
        y_N=torch.randint(10, (64,), generator=generator),
        steps_per_epoch=1,
    )
    probe.read(0)
    norms = [row.actgrad_total for row in probe.rows(0, "id")]
    return 2 * math.log(norms[1] / norms[-3])


# Yang & Schoenholz 2017, arXiv:1712.08969: without skips gradients grow exponentially with depth, with
# them polynomially. From 20 to 56 to 110 layers an exponential keeps its rate per layer, a power of
# the depth has its rate fall by (ln 110/56) / (110 - 56) over (ln 56/20) / (56 - 20) = 0.44. One draw
# moves either ratio by about 0.1.
@pytest.mark.parametrize(
    ("architecture", "low", "high"),
    [("plain", 0.8, 1.25), ("resnet", 0.2, 0.65), ("preresnet", 0.2, 0.65)],
)
@pytest.mark.parametrize("placement", ["before", "after"])
def test_skips_turn_exponential_growth_into_polynomial(
    trial_of, architecture, placement, low, high
):
    at = {d: log_growth(trial_of, architecture, placement, d) for d in (20, 56, 110)}
    rates = (at[56] - at[20]) / (56 - 20), (at[110] - at[56]) / (110 - 56)
    assert low < rates[1] / rates[0] < high
