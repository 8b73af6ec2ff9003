"""The gradient-flow probe: one forward and backward pass on a fixed batch, without side effects.

It reads the *output tensor* of each conv or linear layer, the same place for every placement (a
module's full backward hook would see another tensor in `after` than in `before`). Hooks exist only
while a reading is taken; no training step runs with one.

Shapes (letters of this module):
    N probe images, R replicas, D = R*C channels of a tensor, K rows of a weight (its filters)
    L layers, Q quantities, M micro-batches, P elements that are reduced over
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.study.records import GradientRow
from harness.study.trials import EARLY_STEPS, Trial
from harness.training.dataflow import Reach, follow_layers
from harness.training.images import Images, Normalize
from harness.training.networks import Network

_PLACE = ("trial_id", "step", "epoch", "layer", "layer_index")
QUANTITIES = tuple(field.name for field in fields(GradientRow) if field.name not in _PLACE)
"""The quantities measured at each layer: the columns of `GradientRow` except its keys."""


@dataclass(frozen=True, slots=True)
class _Tap:
    """The tensors of a forward pass at one layer, and at what its output runs into."""

    z_ND: Tensor  # the layer's output
    relu_ND: Tensor | None  # the output of the ReLU
    norm: nn.Module | None
    normed_ND: Tensor | None  # the norm's input
    reach: Reach


@dataclass(slots=True)
class Probe:
    """Readings of gradient flow in one network of R replicas.

    `read` leaves every buffer, gradient and generator as it found it, and copies nothing to the
    host: training is bit-identical with it on or off. `rows` copies each reading once.
    """

    network: Network
    x_NDHW: Tensor
    y_N: Tensor
    steps_per_epoch: int
    snr_batches: int = 0
    _readings: list[tuple[int, Tensor]] = field(default_factory=list)  # step, (L, Q, R)
    _weights: list[Tensor] | None = None  # before the optimizer step that precedes a reading
    _reaches: dict[str, Reach] = field(init=False)  # layer -> what its output runs into

    def __post_init__(self) -> None:
        self._reaches = follow_layers(self.network)

    @classmethod
    def on(cls, images: Images, network: Network, trial: Trial, *, steps_per_epoch: int) -> Probe:
        """A probe on the first `probe_size` training images, the same for all trials on them."""
        device = network.head.weight.device
        part = images.train
        x_NRHWC = part.x_NHWC[: trial.probe_size, None].expand(
            -1, network.replicas, *part.x_NHWC.shape[1:]
        )
        return cls(
            network=network,
            x_NDHW=Normalize(images, trial, device)(x_NRHWC.to(device)),
            y_N=part.y_N[: trial.probe_size].to(device),
            steps_per_epoch=steps_per_epoch,
            snr_batches=trial.snr_batches,
        )

    def state(self) -> list[tuple[int, Tensor]]:
        return self._readings

    def restore(self, state: list[tuple[int, Tensor]]) -> None:
        self._readings = state

    def is_due(self, step: int) -> bool:
        """Whether a reading is due after `step` optimizer steps."""
        return step in EARLY_STEPS or step % self.steps_per_epoch == 0

    @torch.no_grad()
    def remember_weights(self) -> None:
        """Copy the weights before the step that precedes a reading, for its `update_ratio`."""
        self._weights = [weight.clone() for weight in self._layer_weights()]

    def read(self, step: int) -> None:
        """Measure the network as it stands after `step` optimizer steps."""
        with _left_as_found(self.network), torch.autocast(self.x_NDHW.device.type, enabled=False):
            taps, loss = self._forward()
            wanted = [tap.z_ND for tap in taps] + self._layer_weights()
            normed = [tap.normed_ND for tap in taps if tap.normed_ND is not None]
            grads = torch.autograd.grad(loss, [*wanted, *normed])  # .grad is never touched
            snr_LR = self._measure_snr()
        with torch.no_grad():
            self._readings.append((step, self._measure(taps, grads, snr_LR)))
        self._weights = None

    def _layer_weights(self) -> list[Tensor]:
        return [layer.weight for _, layer in self.network.layers()]

    def _forward(self) -> tuple[list[_Tap], Tensor]:
        outputs: dict[str, Tensor] = {}
        inputs: dict[str, Tensor] = {}

        # These hooks return None: a value they returned would replace the output.
        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def note_tensors(_module: nn.Module, into: tuple[Tensor, ...], out: Tensor) -> None:
                inputs[name], outputs[name] = into[0], out

            return note_tensors

        reaches = self._reaches
        names = {*reaches, *(name for to in reaches.values() for name in (to.relu, to.norm))}
        modules = {name: self.network.get_submodule(name) for name in names if name}
        handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
        try:
            y_NRK = self.network(self.x_NDHW)
        finally:
            for handle in handles:
                handle.remove()
        taps = [
            _Tap(
                z_ND=outputs[name],
                relu_ND=outputs[to.relu] if to.relu else None,
                norm=modules[to.norm] if to.norm else None,
                normed_ND=inputs[to.norm] if to.norm else None,
                reach=to,
            )
            for name, to in reaches.items()
        ]
        return taps, _mean_loss(y_NRK, self.y_N)

    def _measure_snr(self) -> Tensor:
        """(L, R): squared norm of the mean weight gradient over its variance across micro-batches."""
        weights = self._layer_weights()
        if self.snr_batches == 0:
            return weights[0].new_full((len(weights), self.network.replicas), torch.nan)
        parts = zip(
            self.x_NDHW.chunk(self.snr_batches), self.y_N.chunk(self.snr_batches), strict=True
        )
        grads = [torch.autograd.grad(_mean_loss(self.network(x), y), weights) for x, y in parts]
        snr: list[Tensor] = []
        for of_layer in zip(*grads, strict=True):
            grad_MRP = torch.stack(of_layer).unflatten(1, (self.network.replicas, -1)).flatten(2)
            mean_RP = grad_MRP.mean(0)
            variance_R = (grad_MRP - mean_RP).square().sum((0, 2)) / (len(grads) - 1)
            snr.append(mean_RP.square().sum(1) / variance_R)
        return torch.stack(snr)

    def _measure(self, taps: Sequence[_Tap], grads: Sequence[Tensor], snr_LR: Tensor) -> Tensor:
        """(L, Q, R), the quantities in the order of `QUANTITIES`."""
        layers = [layer for _, layer in self.network.layers()]
        z_grads, weight_grads = grads[: len(taps)], grads[len(taps) : 2 * len(taps)]
        normed_grads = iter(grads[2 * len(taps) :])
        before = self._weights or [None] * len(taps)
        reading = [
            _arrange(
                self._measure_layer(
                    tap,
                    z_grad,
                    layer.weight,
                    weight_grad,
                    None if tap.normed_ND is None else next(normed_grads),
                    weight_before,
                    snr_R,
                )
            )
            for tap, z_grad, layer, weight_grad, weight_before, snr_R in zip(
                taps, z_grads, layers, weight_grads, before, snr_LR, strict=True
            )
        ]
        return torch.stack(reading)

    def _measure_layer(
        self,
        tap: _Tap,
        z_grad: Tensor,
        weight: Tensor,
        weight_grad: Tensor,
        normed_grad: Tensor | None,
        weight_before: Tensor | None,
        snr_R: Tensor,
    ) -> dict[str, Tensor]:
        """Every quantity of one layer, by name, (R,) each."""
        replicas = self.network.replicas
        # A user's linear layer over the last axis of more than two has its channels there.
        is_over_positions = weight.ndim == 2 and tap.z_ND.ndim > 2
        z_ND, g_ND = (
            x_ND.movedim(-1, 1) if is_over_positions else x_ND for x_ND in (tap.z_ND, z_grad)
        )
        z_RCP = _by_channel(z_ND, replicas)
        g_RP = _by_channel(g_ND, replicas).flatten(1)
        weight_RKP = weight.unflatten(0, (replicas, -1)).flatten(2)
        weight_grad_RKP = weight_grad.unflatten(0, (replicas, -1)).flatten(2)
        missing_R = z_RCP.new_full((replicas,), torch.nan)

        actgrad_total = g_RP.norm(dim=1)
        act_mean_RC1 = z_RCP.mean(2, keepdim=True)
        # Two passes: torch.var_mean takes 4 times as long, E[z^2] - E[z]^2 loses the digits.
        act_var = (z_RCP - act_mean_RC1).square().mean((1, 2))
        wgrad_norm = weight_grad_RKP.flatten(1).norm(dim=1)
        weight_norm = weight_RKP.flatten(1).norm(dim=1)

        update_ratio = missing_R
        if weight_before is not None:
            before_RP = weight_before.unflatten(0, (replicas, -1)).flatten(1)
            update_ratio = (weight_RKP.flatten(1) - before_RP).norm(dim=1) / before_RP.norm(dim=1)

        zero_fraction = dead_fraction = missing_R
        if tap.relu_ND is not None:
            zero_RCP = _by_channel(tap.relu_ND, replicas) == 0
            zeros_RC = zero_RCP.sum(2)
            positions = zero_RCP.shape[2]
            zero_fraction = zeros_RC.to(z_RCP.dtype).mean(1) / positions
            dead_fraction = (zeros_RC == positions).to(z_RCP.dtype).mean(1)

        qa_sum = qa_dot = missing_R
        if tap.norm is not None and normed_grad is not None and tap.reach.is_shift_invariant:
            normed_RSP = _by_normalised_set(normed_grad, tap.norm, replicas)
            qa_sum = _relative(normed_RSP.sum(2), normed_RSP.abs().sum(2))
        if tap.norm is not None and tap.reach.is_scale_invariant and not is_over_positions:
            filters = _count_filters_scaled_together(tap.norm)
            product_RSP = (weight_RKP * weight_grad_RKP).unflatten(1, (-1, filters)).flatten(2)
            qa_dot = _relative(product_RSP.sum(2), product_RSP.abs().sum(2))

        return {
            "actgrad_total": actgrad_total,
            "actgrad_rel": actgrad_total / g_RP.shape[1] ** 0.5 * act_var.sqrt(),
            "wgrad_norm": wgrad_norm,
            "wgrad_snr": snr_R,
            "weight_norm": weight_norm,
            "effective_grad": weight_norm * wgrad_norm,
            "update_ratio": update_ratio,
            "zero_fraction": zero_fraction,
            "dead_fraction": dead_fraction,
            "act_mean": act_mean_RC1.mean((1, 2)),
            "act_var": act_var,
            "qa_sum": qa_sum,
            "qa_dot": qa_dot,
        }

    def rows(
        self, replica: int, trial_id: str, *, until: int | None = None
    ) -> tuple[GradientRow, ...]:
        """The finite readings of one replica, up to step `until` where it is given."""
        names = [name for name, _ in self.network.layers()]
        total = QUANTITIES.index("actgrad_total")
        return tuple(
            GradientRow(
                trial_id=trial_id,
                step=step,
                epoch=step / self.steps_per_epoch,
                layer=name,
                layer_index=index,
                **dict(zip(QUANTITIES, values, strict=True)),
            )
            for step, reading in self._readings
            if (until is None or step <= until)
            and bool(reading[:, total, replica].isfinite().all())
            for index, (name, values) in enumerate(
                zip(names, reading[:, :, replica].tolist(), strict=True)
            )
        )


def _arrange(measured: Mapping[str, Tensor]) -> Tensor:
    """(Q, R), the quantities of a layer in the order of their columns."""
    assert measured.keys() == {*QUANTITIES}, f"{measured.keys() ^ {*QUANTITIES}}: only in one place"
    return torch.stack([measured[name] for name in QUANTITIES])


def _mean_loss(y_NRK: Tensor, y_N: Tensor) -> Tensor:
    """The sum of one mean per replica: no replica's gradient depends on another's loss."""
    y_NR = y_N[:, None].expand(-1, y_NRK.shape[1])
    loss = functional.cross_entropy(y_NRK.flatten(0, 1), y_NR.flatten(), reduction="sum")
    return loss / len(y_N)


def _by_channel(x_ND: Tensor, replicas: int) -> Tensor:
    """x_ND or x_NDHW to x_RCP: the axes that are reduced over come last, as one."""
    return x_ND.unflatten(1, (replicas, -1)).permute(1, 2, 0, *range(3, x_ND.ndim + 1)).flatten(2)


def _by_normalised_set(x_ND: Tensor, norm: nn.Module, replicas: int) -> Tensor:
    """To x_RSP: S sets that the norm gives mean 0, of P elements each.

    Batch norm's sets are channels; those of the others are the groups of each image.
    """
    match norm:
        case nn.GroupNorm():
            groups = norm.num_groups // replicas
        case nn.InstanceNorm2d():
            groups = norm.num_features // replicas
        case _:
            return _by_channel(x_ND, replicas)
    x_RNGP = x_ND.unflatten(1, (replicas, groups, -1)).flatten(3).transpose(0, 1)
    return x_RNGP.flatten(1, 2)


def _count_filters_scaled_together(norm: nn.Module) -> int:
    """Filters whose common scale the norm takes away; alone, none of them may be scaled."""
    return norm.num_channels // norm.num_groups if isinstance(norm, nn.GroupNorm) else 1


def _relative(sum_RC: Tensor, size_RC: Tensor) -> Tensor:
    """How far each sum is from zero, relative to the size of its terms; 0 where it has none."""
    return sum_RC.norm(dim=1) / size_RC.norm(dim=1).clamp(min=torch.finfo(sum_RC.dtype).tiny)


@contextmanager
def _left_as_found(network: nn.Module) -> Iterator[None]:
    """Run in train mode, then put back the mode and every buffer (batch norm's running statistics)."""
    was_training = network.training
    found = [buffer.clone() for buffer in network.buffers()]
    network.train()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, content in zip(network.buffers(), found, strict=True):
                buffer.copy_(content)
        network.train(was_training)
