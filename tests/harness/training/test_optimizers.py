from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from harness.training.networks import build_network, initialize
from harness.training.optimizers import grafted_updates, make_optimizer, make_schedule, set_rate


def test_the_schedule_warms_up_linearly_then_follows_torchs_cosine(trial_of):
    trial = trial_of(epochs=10, warmup_epochs=2.0, lr=0.4)
    schedule = make_schedule(trial, steps_per_epoch=5)

    assert schedule[:10] == pytest.approx([0.04 * step for step in range(1, 11)])
    torchs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(torchs, T_max=40)
    for lr in schedule[10:]:
        assert lr == pytest.approx(torchs.param_groups[0]["lr"])
        torchs.step()
        cosine.step()


@pytest.mark.parametrize("warmup", [0.0, 0.3, 3.0, 50.0])
def test_the_schedule_has_one_positive_rate_per_step_and_none_above_the_peak(trial_of, warmup):
    schedule = make_schedule(trial_of(epochs=3, warmup_epochs=warmup, lr=0.1), steps_per_epoch=7)
    assert len(schedule) == 21
    assert all(0 < lr <= 0.1 for lr in schedule)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_is_nesterov_with_decay_on_weights_only(trial_of, capturable):
    trial = trial_of("resnet", "before", lr=0.1, momentum=0.9, weight_decay=0.01)
    network = build_network(trial, (1, 8, 8), 10)
    initialize(network, [trial])
    optimizer = make_optimizer(network, trial, capturable=capturable)
    generator = torch.Generator().manual_seed(0)
    slow = {
        name: (p.detach().clone(), torch.zeros_like(p)) for name, p in network.named_parameters()
    }
    for _ in range(3):
        for name, parameter in network.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            value, velocity = slow[name]
            decayed = "norm" not in name and not name.endswith("bias")
            grad = parameter.grad + (0.01 * value if decayed else 0)
            velocity = 0.9 * velocity + grad
            slow[name] = (value - 0.1 * (grad + 0.9 * velocity), velocity)
        optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), slow[name][0])


@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_of_adamw_is_that_of_its_paper_with_decay_on_weights_only(trial_of, capturable):
    adamw = {"optimizer": "adamw", "lr": 0.01, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}
    trial = trial_of("resnet", "before", **adamw)
    network = build_network(trial, (1, 8, 8), 10)
    initialize(network, [trial])
    optimizer = make_optimizer(network, trial, capturable=capturable)
    generator = torch.Generator().manual_seed(0)
    slow = {name: (p.detach().clone(), 0.0, 0.0) for name, p in network.named_parameters()}
    for step in (1, 2, 3):
        for name, parameter in network.named_parameters():
            grad = parameter.grad = torch.randn(parameter.shape, generator=generator)
            value, mean, square = slow[name]
            decayed = "norm" not in name and not name.endswith("bias")
            mean = 0.8 * mean + 0.2 * grad
            square = 0.95 * square + 0.05 * grad**2
            scale = (square / (1 - 0.95**step)).sqrt() + 1e-8
            value = value - 0.01 * (0.1 * value if decayed else 0)
            slow[name] = (value - 0.01 * mean / (1 - 0.8**step) / scale, mean, square)
        optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), slow[name][0])


def test_a_pack_under_adamw_steps_as_torchs_own_on_each_network_alone(trial_of):
    adamw = {"optimizer": "adamw", "lr": 0.01, "beta1": 0.8, "weight_decay": 0.1}
    trials = [trial_of("resnet", "after", seed=seed, **adamw) for seed in range(3)]
    pack = build_network(trials[0], (1, 8, 8), 10, replicas=3)
    initialize(pack, trials)
    pack.double()
    optimizer = make_optimizer(pack, trials[0])
    alone = []
    for trial in trials:
        network = build_network(trial, (1, 8, 8), 10)
        initialize(network, [trial])
        network.double()
        groups = [
            {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        torchs = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.999), foreach=False)
        alone.append((network, torchs))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x_RBCHW = torch.randn(3, 16, 1, 8, 8, dtype=torch.float64, generator=generator)
        y_BR = torch.randint(10, (16, 3), generator=generator)
        optimizer.zero_grad()
        y_BRK = pack(x_RBCHW.transpose(0, 1).flatten(1, 2))
        for replica in range(3):
            functional.cross_entropy(y_BRK[:, replica], y_BR[:, replica]).backward(
                retain_graph=True
            )
        optimizer.step()
        for (network, torchs), x_BCHW, y_B in zip(alone, x_RBCHW, y_BR.T, strict=True):
            torchs.zero_grad()
            functional.cross_entropy(network(x_BCHW)[:, 0], y_B).backward()
            torchs.step()
    for replica, (network, _) in enumerate(alone):
        for ours, theirs in zip(pack.parameters(), network.parameters(), strict=True):
            mine = ours.unflatten(0, (3, -1))[replica]
            torch.testing.assert_close(mine, theirs.view_as(mine), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("capturable", [False, True])
def test_the_rate_that_is_set_is_the_rate_of_the_next_step(trial_of, optimizer, capturable):
    """Under one gradient for ever a step of either optimizer is the rate."""
    trial = trial_of("mlp", optimizer=optimizer, lr=0.1, momentum=0.0, weight_decay=0.0)
    network = build_network(trial, (1, 8, 8), 10)
    initialize(network, [trial])
    optimizer = make_optimizer(network, trial, capturable=capturable)
    held = [group["lr"] for group in optimizer.param_groups]
    weight, bias = network.head.weight, network.head.bias
    for rate in (0.5, 0.25):
        set_rate(optimizer, rate)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = weight.detach().clone(), bias.detach().clone()
        optimizer.step()
        torch.testing.assert_close(weight.detach(), before[0] - rate)
        torch.testing.assert_close(bias.detach(), before[1] - rate)
    if capturable:  # where a recorded step would look for it
        assert all(
            group["lr"] is lr for group, lr in zip(optimizer.param_groups, held, strict=True)
        )


def test_a_grafted_step_keeps_its_direction_and_takes_the_donors_relative_size(trial_of):
    ours, donor = (
        [trial_of("plain", placement, seed=seed) for seed in (0, 1)]
        for placement in ("after", "before")
    )
    networks = []
    for trials in (ours, donor):
        network = build_network(trials[0], (1, 8, 8), 10, replicas=2)
        initialize(network, trials)
        networks.append((network, [layer.weight.detach().clone() for _, layer in network.layers()]))
    generator = torch.Generator().manual_seed(0)
    steps = []
    with torch.no_grad(), grafted_updates(networks[0][0], networks[1][0]):
        for network, _ in networks:
            for _, layer in network.layers():
                steps.append(0.1 * torch.randn(layer.weight.shape, generator=generator))
                layer.weight += steps[-1]

    (ours_network, ours_before), (donor_network, donor_before) = networks
    layers = zip(
        ours_network.layers(),
        ours_before,
        donor_network.layers(),
        donor_before,
        steps,
        strict=False,
    )
    for (_, layer), before, (_, other), other_before, step in layers:
        for rows in (slice(0, len(before) // 2), slice(len(before) // 2, None)):
            moved = (layer.weight.detach() - before)[rows].flatten()
            wanted = (other.weight.detach() - other_before)[rows].norm() / other_before[rows].norm()
            torch.testing.assert_close(moved.norm() / before[rows].norm(), wanted)
            cosine = functional.cosine_similarity(moved, step[rows].flatten(), dim=0)
            assert float(cosine) == pytest.approx(1.0, abs=1e-5)
